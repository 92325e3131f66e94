/* guest.h - the guest: drivers of its devices, and what it does with them
   SPDX-License-Identifier: MIT OR Unlicense

   All of a driver stands in guest memory, in a window of its own: so it is on the other machine as
   soon as its bytes are. A VMM knows of it what a VMM can: the addresses of its rings, the fds of
   its kicks and calls. Those have the same numbers on both machines, as a doorbell has the same
   address. */
#ifndef GUEST_H_INCLUDED
#define GUEST_H_INCLUDED

#include "guest_ram.h"

#include "examples/common/disk_load.h"
#include "examples/common/net_load.h"
#include "vhost.h"

enum {
    GUEST_DRIVER = 64 * 1024 /* bytes of a window in front of rings and buffers */
};

typedef struct guest_place { /* of a driver */
    guest_ram *ram;
    uint64_t gpa; /* of its window */
    uint32_t seed;
    const station *other; /* whom a network card talks to */
} guest_place;

/* A kind of driver. `driver` is where its window begins in the guest's view. */
typedef struct guest_driver {
    uint64_t window; /* bytes */
    uint64_t cache;  /* bytes of plugged memory that it uses, too */
    uint32_t queues;
    int (*boot)(const guest_place *place); /* 0 or a negative errno */
    /* Handles interrupts, and submits up to `most` requests. */
    void (*work)(void *driver, uint32_t most);
    void (*use_plugged)(void *driver, uint8_t *memory, uint64_t gpa); /* `cache` bytes at gpa */
    uint32_t (*waiting)(const void *driver);                          /* requests not done yet */
    uint64_t (*done)(const void *driver);
    const char *(*fault)(const void *driver); /* what a device did that none may do, or NULL */
    /* What the driver has written to the registers of a queue, and the fds of its notifiers. */
    void (*describe)(const void *driver, uint32_t index, vhost_queue *queue);
} guest_driver;

typedef struct guest_piece { /* of guest memory: one block of the disk */
    uint8_t *memory;
    uint64_t gpa;
} guest_piece;

/* Where a disk is read to, as into a page cache: again and again into the two pieces at an edge of
   memory, and into the others one after the other, not again for long. A page there that a
   migration misses stays missed. */
typedef struct guest_cache {
    guest_piece before; /* the last one of what was used before more memory came */
    guest_piece first;
    uint32_t reads;
    double due; /* when the next one is (clock_now) */
} guest_cache;

typedef struct guest_disk {
    blk_driver driver;
    disk_load load;
    guest_cache cache;
} guest_disk;

typedef struct guest_card {
    net_driver driver;
    net_load load;
} guest_card;

extern const guest_driver guest_disk_driver;
extern const guest_driver guest_ping_driver; /* a network card that pings */
extern const guest_driver guest_swap_driver; /* one whose frames come back */

#endif
