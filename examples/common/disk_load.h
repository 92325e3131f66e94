/* disk_load.h - reads and writes of a disk, at random, that notice every wrong byte
   SPDX-License-Identifier: MIT OR Unlicense

   The disk is divided into blocks. What is in a block follows from the seed, its number, and how
   often it was written: so a write that is lost, done late, or done elsewhere shows when a block is
   read next, or at the end, when the file behind the disk is looked at. A block has one request in
   flight at most, so one that is done twice does no harm. All of it may stand in guest memory:
   nothing is allocated. */
#ifndef DISK_LOAD_H_INCLUDED
#define DISK_LOAD_H_INCLUDED

#include "blk_driver.h"

enum {
    DISK_LOAD_BLOCK = 16 * 1024, /* bytes */
    DISK_LOAD_BLOCKS = 256       /* at most: 4 MiB */
};

typedef struct disk_load {
    blk_driver *driver;
    uint32_t seed;
    uint32_t blocks; /* of the disk, from its beginning */
    uint32_t depth;  /* requests in flight in each queue, at most BLK_DEPTH */
    uint64_t submitted, done;
    const char *fault; /* what was wrong first, or NULL; see also driver->fault */
    uint32_t random;
    uint32_t written[DISK_LOAD_BLOCKS]; /* how often; 0: never, the block is zeros */
    bool busy[DISK_LOAD_BLOCKS];        /* a request for it is in flight */
} disk_load;

void disk_load_init(disk_load *self, blk_driver *driver, uint32_t seed, uint32_t blocks,
                    uint32_t depth);

/* Submits up to `most` requests where there is room, and kicks. */
void disk_load_feed(disk_load *self, uint32_t most);

/* Submits a read of some block into a piece of guest memory, DISK_LOAD_BLOCK bytes at gpa, which is
   written by the device alone. Returns false if there is no room, or that place is in use. */
bool disk_load_read(disk_load *self, int queue, uint8_t *memory, uint64_t gpa);

/* Takes what is done, of all queues. */
void disk_load_take(disk_load *self);

/* Requests that the device has. */
uint32_t disk_load_in_flight(const disk_load *self);

/* Looks into the file behind the disk, when nothing is in flight: the number of blocks that are not
   as they should be; -1: it cannot be read. */
int disk_load_wrong_blocks(const disk_load *self, const char *path);

#endif
