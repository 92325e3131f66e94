/* memory_backend.h - a vhost back-end in this process: the example of how to write one
   SPDX-License-Identifier: MIT OR Unlicense

   It is a virtio-net device with one pair of split queues: it moves frames between the rings of a
   driver and a `wire`, as vhost-net moves them between rings and a tap. It has no thread: it works
   when memory_backend_poll is called. Use:

      memory_backend net = {.wire = fd};
      vhost_device_init(&device, &vm, memory_backend_ops(), &net, queues, 2, NULL);
      ... vhost_device_start ...
      memory_backend_poll(&net);            again and again
      ... vhost_device_stop, vhost_device_cleanup ...

   Kick notifiers must not block when read. */
#ifndef MEMORY_BACKEND_H_INCLUDED
#define MEMORY_BACKEND_H_INCLUDED

#include "common/split_ring.h"
#include "vhost.h"

#define MEMORY_BACKEND_REGIONS 8 /* memory slots */

typedef struct memory_queue {
    uint32_t size;
    uint16_t next; /* the next available entry to take: the position that stop hands back */
    const ring_descriptor *descriptors;
    const ring_available *available;
    ring_used *used;
    uint64_t used_gpa;
    bool logs_used;        /* writes to the used ring go to the log */
    int kick, call, error; /* notifiers, or -1 */
    bool enabled;
} memory_queue;

typedef struct memory_backend {
    int wire; /* yours: a socket or tap that keeps frames apart, and does not block */

    /* Private. */
    vhost_region regions[MEMORY_BACKEND_REGIONS];
    uint32_t region_count;
    unsigned long *log;     /* a bit for each page */
    bool logs;              /* writes to buffers go to it */
    memory_queue queues[2]; /* 0 receives, 1 transmits: as the driver sees it */
} memory_backend;

/* The back-end operations for vhost_device_init, whose `backend` is then a memory_backend. */
const vhost_backend_ops *memory_backend_ops(void);

/* Moves what can be moved, at most 32 frames each way. Returns how many there were. */
int memory_backend_poll(memory_backend *backend);

#endif
