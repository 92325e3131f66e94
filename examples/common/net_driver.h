/* net_driver.h - the driver of a virtio-net device, in user space: frames over two split rings
   SPDX-License-Identifier: MIT OR Unlicense

   It keeps the receive ring full of empty buffers, and sends each frame as a chain of two pieces:
   the net header and the frame. Nothing is checksummed or segmented by the device, so the net
   header is all zeros. */
#ifndef NET_DRIVER_H_INCLUDED
#define NET_DRIVER_H_INCLUDED

#include "frames.h"
#include "split_ring.h"

enum {
    NET_RECEIVE = 0, /* queues of virtio-net, as the driver sees them */
    NET_TRANSMIT = 1,
    NET_HEADER = 12,    /* bytes, with VIRTIO_F_VERSION_1 */
    NET_BUFFER = 2048,  /* bytes */
    NET_RING_SIZE = 256 /* descriptors */
};

typedef struct net_layout { /* where in guest memory things shall stand; gpa */
    uint64_t ring[2];
    uint64_t buffers[2]; /* NET_RING_SIZE * NET_BUFFER bytes each */
    uint64_t header;     /* the zeros that go before each frame */
} net_layout;

typedef struct net_driver {
    split_ring ring[2];
    int kick[2];        /* eventfds: written by the driver */
    int call[2];        /* eventfds: readable when the device has something to say */
    uint64_t kicks;     /* how often it was kicked */
    uint64_t calls;     /* how often it has called */
    uint16_t kicked[2]; /* chains given to it at the last kick of a ring */
    uint8_t *memory;    /* guest memory, from gpa 0 on */
    net_layout layout;
    uint16_t idle[NET_RING_SIZE]; /* transmit buffers not in use */
    uint16_t idle_count;
    const char *fault; /* what the device did that no device may do, or NULL */
} net_driver;

/* Lays out both rings, and fills the receive ring. Returns 0 or a negative errno. */
int net_driver_open(net_driver *driver, void *memory, const net_layout *layout);

/* Harmless for a driver of zeros. */
void net_driver_close(net_driver *driver);

/* Gives a frame to the device. Returns false if the ring is full. */
bool net_driver_send(net_driver *driver, const frame *sent);

/* Kicks the device for all that it was given since the last time, if it wants to be kicked. */
void net_driver_kick(net_driver *driver);

/* The interrupt handler of a queue: returns whether there was a call, and forgets it. Then all that
   is in the ring has to be taken: frames by _receive, buffers of sent frames by _reclaim. */
bool net_driver_called(net_driver *driver, int queue);
bool net_driver_receive(net_driver *driver, frame *received);
void net_driver_reclaim(net_driver *driver);

#endif
