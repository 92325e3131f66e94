/* disk_load.c - reads and writes of a disk, at random, that notice every wrong byte
   SPDX-License-Identifier: MIT OR Unlicense */
#define _GNU_SOURCE
#include "disk_load.h"

#include <fcntl.h>
#include <string.h>
#include <unistd.h>

enum {
    WORDS = DISK_LOAD_BLOCK / (int)sizeof(uint64_t),
    SECTORS = DISK_LOAD_BLOCK / BLK_SECTOR,
    NOT_READ = 0x5a /* what is in a buffer before a block is read into it */
};

void disk_load_init(disk_load *self, blk_driver *driver, uint32_t seed, uint32_t blocks,
                    uint32_t depth)
{
    *self = (disk_load){
        .driver = driver, .seed = seed, .blocks = blocks, .depth = depth, .random = seed};
}

/* Not of great quality, but the same for the same seed. */
static uint32_t random_below(disk_load *self, uint32_t limit)
{
    self->random = self->random * 1664525u + 1013904223u;
    return (self->random >> 8) % limit;
}

/* A word of a block that was written so often. */
static uint64_t word_of(const disk_load *self, uint32_t block, uint32_t times, uint32_t index)
{
    uint64_t word = ((uint64_t)self->seed << 32 | block) + ((uint64_t)times << 40) + index;
    word = (word ^ word >> 31) * UINT64_C(0x9e3779b97f4a7c15);
    word = (word ^ word >> 29) * UINT64_C(0xbf58476d1ce4e5b9);
    return times == 0 ? 0 : word ^ word >> 32;
}

static void fill(const disk_load *self, uint8_t *data, uint32_t block, uint32_t times)
{
    for (uint32_t i = 0; i < WORDS; i++) {
        uint64_t word = word_of(self, block, times, i);
        memcpy(data + i * sizeof word, &word, sizeof word);
    }
}

static bool is_right(const disk_load *self, const uint8_t *data, uint32_t block)
{
    for (uint32_t i = 0; i < WORDS; i++) {
        uint64_t word = word_of(self, block, self->written[block], i);
        if (memcmp(data + i * sizeof word, &word, sizeof word) != 0)
            return false;
    }
    return true;
}

/* ---- requests -------------------------------------------------------------------------------- */

/* One that nobody works on. There always is: they are more than there can be requests. */
static uint32_t idle_block(disk_load *self)
{
    uint32_t block = random_below(self, self->blocks);
    while (self->busy[block])
        block = (block + 1) % self->blocks;
    return block;
}

static bool has_room(const disk_load *self, int queue)
{
    return self->driver->queues[queue].in_flight < self->depth;
}

static void submit(disk_load *self, int queue, blk_request *request, uint32_t block)
{
    request->sector = (uint64_t)block * SECTORS;
    request->size = DISK_LOAD_BLOCK;
    self->busy[block] = true;
    self->submitted++;
    blk_driver_submit(self->driver, queue, request);
}

static void submit_any(disk_load *self, int queue)
{
    blk_request *request = blk_driver_idle(self->driver, queue);
    uint32_t block = idle_block(self);
    request->verb = random_below(self, 2) == 0 ? BLK_WRITE : BLK_READ;
    if (request->verb == BLK_WRITE)
        fill(self, request->data, block, self->written[block] + 1);
    else
        memset(request->data, NOT_READ, DISK_LOAD_BLOCK);
    submit(self, queue, request, block);
}

void disk_load_feed(disk_load *self, uint32_t most)
{
    for (int queue = 0; queue < self->driver->count; queue++)
        for (; most > 0 && has_room(self, queue); most--)
            submit_any(self, queue);
    blk_driver_kick(self->driver);
}

static bool is_being_written(const disk_load *self, uint64_t gpa)
{
    for (int queue = 0; queue < self->driver->count; queue++)
        for (int i = 0; i < BLK_DEPTH; i++) {
            const blk_request *request = &self->driver->queues[queue].requests[i];
            if (request->in_flight && request->gpa == gpa)
                return true;
        }
    return false;
}

bool disk_load_read(disk_load *self, int queue, uint8_t *memory, uint64_t gpa)
{
    blk_request *request = has_room(self, queue) ? blk_driver_idle(self->driver, queue) : NULL;
    if (request == NULL || is_being_written(self, gpa))
        return false;
    request->verb = BLK_READ;
    request->data = memory;
    request->gpa = gpa;
    submit(self, queue, request, idle_block(self));
    return true;
}

static void take(disk_load *self, const blk_request *request)
{
    uint32_t block = (uint32_t)(request->sector / SECTORS);
    self->busy[block] = false;
    self->done++;
    if (request->verb == BLK_WRITE)
        self->written[block]++;
    else if (!is_right(self, request->data, block))
        self->fault = "something else was read than was written";
}

void disk_load_take(disk_load *self)
{
    const blk_request *request;
    for (int queue = 0; queue < self->driver->count; queue++)
        while ((request = blk_driver_collect(self->driver, queue)) != NULL)
            take(self, request);
}

uint32_t disk_load_in_flight(const disk_load *self)
{
    return (uint32_t)(self->submitted - self->done);
}

/* ---- the file behind the disk ---------------------------------------------------------------- */

int disk_load_wrong_blocks(const disk_load *self, const char *path)
{
    uint8_t data[DISK_LOAD_BLOCK];
    int wrong = 0, fd = open(path, O_RDONLY | O_CLOEXEC);
    for (uint32_t block = 0; block < self->blocks && wrong >= 0; block++)
        if (pread(fd, data, sizeof data, (off_t)block * DISK_LOAD_BLOCK) != sizeof data)
            wrong = -1;
        else if (!is_right(self, data, block))
            wrong++;
    if (fd >= 0)
        close(fd);
    return wrong;
}
