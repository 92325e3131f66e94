/* The driver's half of a packed virtqueue; its sister is examples/common/split_ring.h.

   A packed virtqueue is one ring of descriptors, written by both sides. The driver makes the pieces
   of a buffer available in it, one after another; the device writes over the first of them when the
   buffer is used, and skips the others. Two bits of each descriptor say who has it: both sides flip
   their meaning each time around, and count by one bit, the wrap counter, which time it is. Buffers
   have numbers (ids), so that they can be used in any order. All numbers are little-endian. */
#ifndef TEST_PACKED_RING_H
#define TEST_PACKED_RING_H

#include "split_ring.h" /* ring_piece, RING_NEXT, RING_DEVICE_WRITES */

typedef struct packed_descriptor {
    uint64_t address; /* guest physical */
    uint32_t length;  /* bytes; of a used buffer: that were written */
    uint16_t id;
    uint16_t flags;
} packed_descriptor;

typedef struct packed_event { /* whether a side wants to be told */
    uint16_t place;           /* not used here */
    uint16_t flags;           /* PACKED_RING_NO_EVENT */
} packed_event;

enum {
    PACKED_RING_AVAILABLE = 1 << 7,
    PACKED_RING_USED = 1 << 15,
    PACKED_RING_NO_EVENT = 1,
    PACKED_RING_MAX = 256 /* descriptors */
};

/* Where a side is in the ring, as vhost has it: bits 0-14 the index, bit 15 the wrap counter. */
typedef uint16_t packed_place;

typedef struct packed_ring {
    uint16_t size; /* descriptors */
    /* Where it is in guest memory: what a device is told of a ring. */
    uint64_t descriptors_gpa;
    uint64_t driver_gpa;
    uint64_t device_gpa;
    /* The same three, as the driver sees them. */
    packed_descriptor *descriptors;
    packed_event *driver, *device;

    packed_place next;   /* descriptor that the driver makes available next */
    packed_place used;   /* descriptor in which the next used buffer is expected */
    uint16_t free_count; /* descriptors */
    uint16_t first_free; /* a list of ids, linked by `ids` */
    struct packed_id {   /* of a buffer */
        uint16_t next;   /* id that is free, too */
        uint16_t count;  /* descriptors that it takes; 0: the device does not have it */
        uint16_t tag;    /* the caller's number for it */
    } ids[PACKED_RING_MAX];
    uint32_t added;     /* buffers ever given to the device */
    uint32_t collected; /* buffers ever taken back */
    bool broken;        /* the device gave back a buffer that it did not have */
} packed_ring;

/* How much guest memory a ring takes, in bytes. */
size_t packed_ring_bytes(uint16_t size);

/* Lays an empty ring out in zeroed memory, which is at `gpa` for the device (multiple of 16). The
   size need not be a power of two. */
void packed_ring_init(packed_ring *ring, uint16_t size, void *memory, uint64_t gpa);

/* Gives pieces to the device, as one buffer. Returns false if there are not enough free
   descriptors. tag comes back with the buffer. */
bool packed_ring_add(packed_ring *ring, const ring_piece *pieces, uint16_t count, uint16_t tag);

/* Whether the device wants a kick for what was added. */
bool packed_ring_wants_kick(const packed_ring *ring);

/* Takes one buffer back from the device. Returns false if there is none, or the ring is broken. */
bool packed_ring_collect(packed_ring *ring, uint16_t *tag, uint32_t *length);

#endif
