/* virtio.h - the virtio-mmio transport (virtio 1.2, 4.2): registers, and what they do
   SPDX-License-Identifier: MIT OR Unlicense */
#ifndef KVM_VIRTIO_H_INCLUDED
#define KVM_VIRTIO_H_INCLUDED

#include "machine.h"

enum {
    VIRTIO_QUEUES = 3,
    VIRTIO_RING_MAX = 256, /* descriptors */
    VIRTIO_CONFIG = 64,    /* bytes */

    VIRTIO_ID_NET = 1, /* device ids */
    VIRTIO_ID_DISK = 2,
    VIRTIO_ID_VSOCK = 19
};

/* A queue as its driver set it up, and where it stood when it was stopped. */
typedef struct virtio_queue {
    uint32_t ready, size;
    uint64_t desc, avail, used; /* guest physical addresses */
    uint16_t next_avail, next_used;
} virtio_queue;

/* What the driver sees and wrote; what a migration sends. */
typedef struct virtio_registers {
    uint32_t status;
    uint32_t offer_half, accept_half, queue; /* what the driver has selected */
    uint32_t interrupt, generation;
    uint64_t accepted; /* feature bits */
    virtio_queue queues[VIRTIO_QUEUES];
    uint8_t config[VIRTIO_CONFIG];
} virtio_registers;

typedef struct virtio_device {
    uint32_t id;
    uint32_t queue_count;
    uint64_t offered; /* feature bits */
    virtio_registers registers;
    kvm_machine *machine;
    uint32_t gsi;
    int kick[VIRTIO_QUEUES], call[VIRTIO_QUEUES];
    struct glue_device *glue; /* what moves its data */
} virtio_device;

/* Plugs a device into the next free place. NULL: it cannot be. */
virtio_device *virtio_plug(kvm_machine *machine, uint32_t id, uint32_t queues);

uint32_t virtio_read(virtio_device *self, uint32_t offset, uint32_t size);
void virtio_write(virtio_device *self, uint32_t offset, uint32_t value);

/* As power-on, and as status 0, leave it. */
void virtio_reset(virtio_device *self);

/* Its driver has set it going. */
bool virtio_runs(const virtio_device *self);

/* The config space has changed, or the status. */
void virtio_changed(virtio_device *self);

/* It goes on, here or elsewhere: its driver is interrupted once more, as it may have been then.
   fresh: its back-end knows nothing of the past, so that connections of a vsock are gone. */
void virtio_resumed(virtio_device *self, bool fresh);

#endif
