/* blk_driver.h - the driver of a virtio-blk device, in user space, with many queues
   SPDX-License-Identifier: MIT OR Unlicense

   A request is a chain of three pieces: a header that says what to do and where on the disk, the
   data, and one byte into which the device writes how it went. Each queue has room for as many
   requests as it can have in flight, and a buffer for each, all in guest memory. */
#ifndef BLK_DRIVER_H_INCLUDED
#define BLK_DRIVER_H_INCLUDED

#include "split_ring.h"

enum {
    BLK_SECTOR = 512,       /* bytes; the unit of all places on the disk, whatever its blocks are */
    BLK_QUEUES = 16,        /* that this driver uses at most */
    BLK_DEPTH = 16,         /* requests in flight, in each queue */
    BLK_RING_SIZE = 64,     /* descriptors */
    BLK_BUFFER = 64 * 1024, /* bytes of data in a request, at most */
    BLK_QUEUE_BYTES = 2 * 4096 + BLK_DEPTH * BLK_BUFFER /* guest memory for each queue */
};

typedef enum blk_verb { /* as in the header of a request */
    BLK_READ = 0,
    BLK_WRITE = 1
} blk_verb;

typedef struct blk_request {
    uint64_t sector; /* on the disk */
    uint32_t size;   /* bytes */
    blk_verb verb;
    uint8_t *data; /* in guest memory, and */
    uint64_t gpa;  /* where that is */
    bool in_flight;
} blk_request;

typedef struct blk_queue {
    split_ring ring;
    int kick;           /* eventfd: written by the driver */
    int call;           /* eventfd: readable when the device has something to say */
    uint16_t kicked;    /* requests that the device has when it was kicked last */
    uint16_t in_flight; /* requests that the device has */
    uint64_t gpa;       /* of this queue's memory */
    uint8_t *memory;
    blk_request requests[BLK_DEPTH];
} blk_queue;

typedef struct blk_driver {
    int count;
    blk_queue queues[BLK_QUEUES];
    const char *fault; /* what the device did that no device may do, or NULL */
} blk_driver;

/* Lays out `count` queues in guest memory, from gpa on: BLK_QUEUE_BYTES each. Returns 0 or a
   negative errno. */
int blk_driver_open(blk_driver *driver, void *memory, uint64_t gpa, int count);

/* Harmless for a driver of zeros. */
void blk_driver_close(blk_driver *driver);

/* A request that is not in flight, to be filled in and then submitted; NULL: all are in flight. It
   has a buffer of the queue, BLK_BUFFER bytes, but may be given another. */
blk_request *blk_driver_idle(blk_driver *driver, int queue);
void blk_driver_submit(blk_driver *driver, int queue, blk_request *request);

/* Kicks the device for all that was submitted since the last time, where it wants to be kicked. */
void blk_driver_kick(blk_driver *driver);

/* The interrupt handler of a queue: returns whether there was a call, and forgets it. Then all that
   is done has to be taken. */
bool blk_driver_called(blk_driver *driver, int queue);

/* After a reset of the device: the rings are empty, and all that was in flight is submitted again.
   What the device had done has to be collected before. */
void blk_driver_again(blk_driver *driver);

/* A request that is done, until the next one is submitted; NULL: none. */
blk_request *blk_driver_collect(blk_driver *driver, int queue);

#endif
