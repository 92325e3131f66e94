/* virtio.c - the virtio-mmio transport (virtio 1.2, 4.2)
   SPDX-License-Identifier: MIT OR Unlicense */
#define _GNU_SOURCE
#include "virtio.h"

#include "glue.h"

#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>

enum { /* registers */
    MAGIC = 0x000,
    VERSION = 0x004,
    DEVICE_ID = 0x008,
    VENDOR_ID = 0x00c,
    DEVICE_FEATURES = 0x010,
    DEVICE_FEATURES_SEL = 0x014,
    DRIVER_FEATURES = 0x020,
    DRIVER_FEATURES_SEL = 0x024,
    QUEUE_SEL = 0x030,
    QUEUE_SIZE_MAX = 0x034,
    QUEUE_SIZE = 0x038,
    QUEUE_READY = 0x044,
    QUEUE_NOTIFY = 0x050,
    INTERRUPT_STATUS = 0x060,
    INTERRUPT_ACK = 0x064,
    STATUS = 0x070,
    QUEUE_DESC = 0x080, /* low half; the high one follows */
    QUEUE_DRIVER = 0x090,
    QUEUE_DEVICE = 0x0a0,
    QUEUE_RESET = 0x0c0,
    CONFIG_GENERATION = 0x0fc,
    CONFIG = 0x100
};

enum {
    USED_BUFFER = 1, /* bits of INTERRUPT_STATUS */
    CONFIG_CHANGE = 2,

    DRIVER_OK = 4, /* and of STATUS */
    FEATURES_OK = 8,
    NEEDS_RESET = 64,

    VERSION_1 = 32, /* feature bits */
    RING_RESET = 40
};

/* ---- making one ------------------------------------------------------------------------------ */

/* Where a VMM and vhost meet: KVM signals the kick of a queue, and injects its call, by itself. */
static bool wire_queue(virtio_device *self, uint32_t place, uint32_t queue)
{
    uint64_t gpa = MACHINE_VIRTIO_GPA + place * MACHINE_VIRTIO_STRIDE + QUEUE_NOTIFY;
    self->kick[queue] = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    self->call[queue] = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    return self->kick[queue] >= 0 && self->call[queue] >= 0 &&
           machine_bind_kick(self->machine, gpa, queue, self->kick[queue]) &&
           machine_bind_call(self->machine, self->call[queue], self->gsi);
}

virtio_device *virtio_plug(kvm_machine *machine, uint32_t id, uint32_t queues)
{
    uint32_t place = 0;
    virtio_device *self = calloc(1, sizeof *self);
    while (place < MACHINE_DEVICES && machine->devices[place] != NULL)
        place++;
    if (self == NULL || place == MACHINE_DEVICES) {
        free(self);
        return NULL;
    }
    machine->devices[place] = self;
    *self = (virtio_device){.id = id, .queue_count = queues, .machine = machine};
    self->gsi = MACHINE_VIRTIO_GSI + place;
    if (id == VIRTIO_ID_NET)
        memcpy(self->registers.config, (uint8_t[]){0x52, 0x54, 0, 0, 0, (uint8_t)place}, 6);
    for (uint32_t i = 0; i < queues; i++)
        if (!wire_queue(self, place, i))
            return NULL;
    return self;
}

/* ---- what the device does by itself ---------------------------------------------------------- */

void virtio_changed(virtio_device *self)
{
    self->registers.generation++;
    self->registers.interrupt |= CONFIG_CHANGE;
    machine_interrupt(self->machine, self->gsi);
}

/* Of a queue that is no back-end's: gives the driver bytes in its next buffer, if there is one. */
static void put(virtio_device *self, uint32_t number, const void *bytes, uint32_t size)
{
    const virtio_queue *queue = &self->registers.queues[number];
    uint16_t *avail = machine_host(self->machine, queue->avail, 4 + 2 * (uint64_t)queue->size);
    uint8_t *used = machine_host(self->machine, queue->used, 4 + 8 * (uint64_t)queue->size);
    uint8_t *desc = machine_host(self->machine, queue->desc, 16 * (uint64_t)queue->size);
    if (!queue->ready || queue->size == 0 || (queue->avail | queue->used) % 4 != 0 ||
        avail == NULL || used == NULL || desc == NULL)
        return;
    uint16_t *used_index = (uint16_t *)(void *)(used + 2);
    uint32_t slot = *used_index % queue->size;
    uint32_t element[2] = {avail[2 + slot], size};
    uint64_t buffer;
    if (avail[1] == *used_index || element[0] >= queue->size)
        return;
    memcpy(&buffer, desc + 16 * element[0], sizeof buffer);
    void *to = machine_host(self->machine, buffer, size);
    if (to == NULL)
        return;
    memcpy(to, bytes, size);
    memcpy(used + 4 + 8 * slot, element, sizeof element);
    __atomic_store_n(used_index, (uint16_t)(*used_index + 1), __ATOMIC_RELEASE);
}

void virtio_resumed(virtio_device *self, bool fresh)
{
    const uint32_t transport_reset = 0; /* virtio 1.2, 5.10.6.7 */
    if (fresh && self->id == VIRTIO_ID_VSOCK)
        put(self, 2, &transport_reset, sizeof transport_reset);
    for (uint32_t i = 0; i < self->queue_count; i++)
        (void)eventfd_write(self->call[i], 1);
}

/* ---- status ---------------------------------------------------------------------------------- */

void virtio_reset(virtio_device *self)
{
    uint8_t config[VIRTIO_CONFIG];
    memcpy(config, self->registers.config, sizeof config);
    glue_reset(self->glue);
    self->registers = (virtio_registers){.generation = self->registers.generation};
    memcpy(self->registers.config, config, sizeof config);
}

bool virtio_runs(const virtio_device *self)
{
    return (self->registers.status & DRIVER_OK) != 0;
}

static bool accept_features(virtio_device *self)
{
    uint64_t accepted = self->registers.accepted;
    return (accepted & ~self->offered) == 0 && (accepted >> VERSION_1 & 1) != 0 &&
           glue_accept(self->glue, accepted);
}

/* The driver writes all bits that are set so far: what counts is which of them is new. */
static void set_status(virtio_device *self, uint32_t status)
{
    uint32_t fresh = status & ~self->registers.status;
    if (status == 0) {
        virtio_reset(self);
        return;
    }
    if ((fresh & FEATURES_OK) != 0 && !accept_features(self))
        status &= ~(uint32_t)FEATURES_OK;
    self->registers.status = status | (self->registers.status & NEEDS_RESET);
    if ((fresh & DRIVER_OK) != 0 && !glue_start(self->glue)) {
        self->registers.status |= NEEDS_RESET;
        virtio_changed(self);
    }
}

/* ---- queues ---------------------------------------------------------------------------------- */

/* While a device runs, its queues are the back-end's, but for single ones that the driver may take
   back (QUEUE_RESET) and set up anew, if it has accepted that. */
static bool may_restart(const virtio_device *self)
{
    return (self->registers.accepted >> RING_RESET & 1) != 0;
}

static void set_ready(virtio_device *self, virtio_queue *queue, bool ready)
{
    if (virtio_runs(self) && !(ready && may_restart(self)))
        return;
    queue->ready = ready;
    if (virtio_runs(self))
        queue->ready = glue_run_queue(self->glue, self->registers.queue, true);
}

static void reset_queue(virtio_device *self, virtio_queue *queue)
{
    if (!virtio_runs(self) || !may_restart(self))
        return;
    (void)glue_run_queue(self->glue, self->registers.queue, false);
    *queue = (virtio_queue){0};
}

static void set_half(uint64_t *address, uint32_t half, uint32_t value)
{
    uint64_t shift = 32 * (uint64_t)half;
    *address = (*address & ~(UINT64_C(0xffffffff) << shift)) | (uint64_t)value << shift;
}

static void write_queue(virtio_device *self, virtio_queue *queue, uint32_t offset, uint32_t value)
{
    uint32_t half = offset / 4 % 2;
    switch (offset) {
    case QUEUE_SIZE:
        queue->size = value <= VIRTIO_RING_MAX ? value : 0;
        break;
    case QUEUE_READY:
        set_ready(self, queue, value != 0);
        break;
    case QUEUE_RESET:
        reset_queue(self, queue);
        break;
    case QUEUE_DESC:
    case QUEUE_DESC + 4:
        set_half(&queue->desc, half, value);
        break;
    case QUEUE_DRIVER:
    case QUEUE_DRIVER + 4:
        set_half(&queue->avail, half, value);
        break;
    case QUEUE_DEVICE:
    case QUEUE_DEVICE + 4:
        set_half(&queue->used, half, value);
        break;
    default:
        break;
    }
}

/* ---- registers ------------------------------------------------------------------------------- */

static uint32_t read_config(const virtio_device *self, uint32_t at, uint32_t size)
{
    uint32_t value = 0;
    if (at < VIRTIO_CONFIG && size <= VIRTIO_CONFIG - at)
        memcpy(&value, self->registers.config + at, size);
    return value;
}

uint32_t virtio_read(virtio_device *self, uint32_t offset, uint32_t size)
{
    virtio_registers *r = &self->registers;
    if (offset >= CONFIG)
        return read_config(self, offset - CONFIG, size);
    switch (offset) {
    case MAGIC:
        return 0x74726976;
    case VERSION:
        return 2;
    case DEVICE_ID:
        return self->id;
    case VENDOR_ID:
        return 0x74736f68;
    case DEVICE_FEATURES:
        return r->offer_half < 2 ? (uint32_t)(self->offered >> 32 * r->offer_half) : 0;
    case QUEUE_SIZE_MAX:
        return r->queue < self->queue_count ? VIRTIO_RING_MAX : 0;
    case QUEUE_READY:
        return r->queue < self->queue_count ? r->queues[r->queue].ready : 0;
    case INTERRUPT_STATUS: /* a back-end's call does not come by here: there may have been one */
        return r->interrupt | USED_BUFFER;
    case STATUS:
        return r->status;
    case CONFIG_GENERATION:
        return r->generation;
    default:
        return 0;
    }
}

void virtio_write(virtio_device *self, uint32_t offset, uint32_t value)
{
    virtio_registers *r = &self->registers;
    switch (offset) {
    case DEVICE_FEATURES_SEL:
        r->offer_half = value;
        break;
    case DRIVER_FEATURES_SEL:
        r->accept_half = value;
        break;
    case DRIVER_FEATURES:
        if (r->accept_half < 2)
            set_half(&r->accepted, r->accept_half, value);
        break;
    case QUEUE_SEL:
        r->queue = value;
        break;
    case INTERRUPT_ACK:
        r->interrupt &= ~value;
        break;
    case STATUS:
        set_status(self, value);
        break;
    default:
        if (r->queue < self->queue_count)
            write_queue(self, &r->queues[r->queue], offset, value);
    }
}
