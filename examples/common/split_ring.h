/* split_ring.h - the driver's half of a split virtqueue, written to be read
   SPDX-License-Identifier: MIT OR Unlicense

   A split virtqueue is three tables in guest memory:

      descriptors   each a piece of a buffer: where it is, how long, and which side writes it;
                    pieces are chained, and a chain is named by its first descriptor
      available     a ring of chains that the driver gives to the device
      used          a ring of chains that the device gives back, with the bytes it has written

   Each ring has one writer. Its index says how many entries were ever written, modulo 65,536; entry
   n stands at n modulo the size of the ring. All numbers are little-endian. */
#ifndef SPLIT_RING_H_INCLUDED
#define SPLIT_RING_H_INCLUDED

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* ---- the layout in memory, for drivers and devices ---- */

typedef struct ring_descriptor {
    uint64_t address; /* guest physical */
    uint32_t length;  /* bytes */
    uint16_t flags;
    uint16_t next; /* descriptor of the next piece, if RING_NEXT */
} ring_descriptor;

typedef struct ring_available {
    uint16_t flags;
    uint16_t index;
    uint16_t entries[];
} ring_available;

typedef struct ring_used_entry {
    uint32_t head;   /* the chain: its first descriptor */
    uint32_t length; /* bytes written by the device */
} ring_used_entry;

typedef struct ring_used {
    uint16_t flags;
    uint16_t index;
    ring_used_entry entries[];
} ring_used;

enum {
    RING_NEXT = 1,          /* descriptor: the chain goes on */
    RING_DEVICE_WRITES = 2, /* descriptor: the device writes this piece, else it reads it */
    RING_INDIRECT = 4,      /* descriptor: it points to a table of descriptors; not used here */
    RING_NO_INTERRUPT = 1,  /* ring_available: the driver does not want to be called */
    RING_NO_KICK = 1        /* ring_used: the device does not need to be kicked */
};

/* ---- the driver ---- */

#define SPLIT_RING_MAX    256    /* descriptors */
#define SPLIT_RING_NO_TAG 0xffff /* of a chain that the device does not have */

typedef struct split_ring {
    uint16_t size; /* descriptors */
    /* Where the three tables are in guest memory: what a device is told of a ring. */
    uint64_t descriptors_gpa;
    uint64_t available_gpa;
    uint64_t used_gpa;
    /* The same three, as the driver sees them. */
    ring_descriptor *descriptors;
    ring_available *available;
    ring_used *used;

    uint16_t added;      /* chains ever given to the device: our available index */
    uint16_t collected;  /* chains ever taken back: how far we have read the used ring */
    uint16_t first_free; /* a list of free descriptors, linked by their `next` */
    uint16_t free_count;
    uint16_t tags[SPLIT_RING_MAX]; /* of a chain that the device has: the caller's number for it */
    bool broken;                   /* the device gave back a chain that it did not have */
} split_ring;

typedef struct ring_piece {
    uint64_t gpa;
    uint32_t length;    /* bytes */
    bool device_writes; /* pieces that the device writes come last in a chain */
} ring_piece;

/* How much guest memory a ring takes, in bytes. */
size_t split_ring_bytes(uint16_t size);

/* Lays an empty ring out in zeroed memory, which is at `gpa` for the device (multiple of 16). */
void split_ring_init(split_ring *ring, uint16_t size, void *memory, uint64_t gpa);

/* Gives a chain of pieces to the device. Returns false if there are not enough free descriptors.
   tag: any number but SPLIT_RING_NO_TAG; it comes back with the chain. */
bool split_ring_add(split_ring *ring, const ring_piece *pieces, uint16_t count, uint16_t tag);

/* Whether the device wants a kick for what was added. */
bool split_ring_wants_kick(const split_ring *ring);

/* Takes one chain back from the device. Returns false if there is none, or the ring is broken. */
bool split_ring_collect(split_ring *ring, uint16_t *tag, uint32_t *length);

/* How many chains the device has ever given back, modulo 65,536. */
uint16_t split_ring_done(const split_ring *ring);

#endif
