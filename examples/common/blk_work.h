/* blk_work.h - reads, writes and compares a part of a disk, through many queues at once
   SPDX-License-Identifier: MIT OR Unlicense

   The part has an image in memory. It is gone through in blocks, which go around the queues: one
   queue has every second block if there are two, every third if there are three. */
#ifndef BLK_WORK_H_INCLUDED
#define BLK_WORK_H_INCLUDED

#include "blk_driver.h"

typedef enum blk_task {
    BLK_SAVE,   /* read the disk into the image */
    BLK_PUT,    /* write the image to the disk */
    BLK_COMPARE /* read the disk, and compare with the image */
} blk_task;

typedef struct blk_job {
    blk_task task;
    uint8_t *image;
    uint32_t block; /* bytes, at most BLK_BUFFER; a divisor of the size of the part */
    int queues;     /* that take part, the first ones */
    int shift;      /* queue n begins with block n + shift */
    int depth;      /* requests in flight in each queue, at most BLK_DEPTH */
    double until;   /* around and around until then (clock_now); 0: each block once */
} blk_job;

typedef struct blk_work {
    /* Filled in by the caller, once. */
    blk_driver *driver;
    uint64_t place; /* where the part begins on the disk, bytes */
    uint64_t size;  /* bytes */

    uint64_t done; /* requests that came back, ever */
    blk_job job;
    uint64_t next[BLK_QUEUES]; /* block for the next request of each queue */
} blk_work;

/* An image in which no two blocks are alike, nor any two made at different times. */
void blk_work_pattern(uint8_t *image, uint64_t size);

void blk_work_begin(blk_work *work, const blk_job *job);

/* Submits what there is room for. Returns false if all is done and nothing is in flight. */
bool blk_work_feed(blk_work *work);

/* Takes from a queue what is done. If something else was read than is in the image, the driver's
   `fault` says so. */
void blk_work_take(blk_work *work, int queue);

#endif
