/* blk_driver.c - the driver of a virtio-blk device, in user space, with many queues
   SPDX-License-Identifier: MIT OR Unlicense */
#define _DEFAULT_SOURCE
#include "blk_driver.h"

#include <endian.h>
#include <errno.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

typedef struct blk_header { /* little-endian */
    uint32_t verb;
    uint32_t reserved;
    uint64_t sector;
} blk_header;

/* Where things stand in the memory of a queue; its ring is at the beginning, but for the used ring,
   which has a page of its own: the driver never writes there. */
enum {
    HEADERS = 2048,
    STATUSES = HEADERS + BLK_DEPTH * (int)sizeof(blk_header),
    USED = 4096,
    BUFFERS = 2 * 4096,
    NOT_WRITTEN = 0xff /* no status: 0 is success, 1 and 2 are failures */
};

static void open_ring(blk_queue *queue)
{
    memset(queue->memory, 0, HEADERS);
    memset(queue->memory + USED, 0, BUFFERS - USED);
    split_ring_init(&queue->ring, BLK_RING_SIZE, queue->memory, queue->gpa);
    queue->ring.used = (ring_used *)(void *)(queue->memory + USED);
    queue->ring.used_gpa = queue->gpa + USED;
    queue->in_flight = queue->kicked = 0;
}

static void open_queue(blk_queue *queue, uint8_t *memory, uint64_t gpa)
{
    queue->memory = memory;
    queue->gpa = gpa;
    open_ring(queue);
}

int blk_driver_open(blk_driver *driver, void *memory, uint64_t gpa, int count)
{
    uint8_t *bytes = memory;
    *driver = (blk_driver){.count = count};
    for (int i = 0; i < count; i++) {
        blk_queue *queue = &driver->queues[i];
        size_t at = (size_t)i * BLK_QUEUE_BYTES;
        open_queue(queue, bytes + at, gpa + at);
        queue->kick = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
        queue->call = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
        if (queue->kick < 0 || queue->call < 0)
            return -errno;
    }
    return 0;
}

void blk_driver_close(blk_driver *driver)
{
    for (int i = 0; i < driver->count && driver->queues[i].memory != NULL; i++) {
        if (driver->queues[i].kick >= 0)
            close(driver->queues[i].kick);
        if (driver->queues[i].call >= 0)
            close(driver->queues[i].call);
    }
}

blk_request *blk_driver_idle(blk_driver *driver, int queue)
{
    blk_queue *at = &driver->queues[queue];
    int slot = 0;
    while (slot < BLK_DEPTH && at->requests[slot].in_flight)
        slot++;
    if (slot == BLK_DEPTH)
        return NULL;
    at->requests[slot].data = at->memory + BUFFERS + slot * BLK_BUFFER;
    at->requests[slot].gpa = at->gpa + BUFFERS + (uint64_t)slot * BLK_BUFFER;
    return &at->requests[slot];
}

static uint8_t *status_of(blk_queue *queue, unsigned slot)
{
    return queue->memory + STATUSES + slot;
}

void blk_driver_submit(blk_driver *driver, int queue, blk_request *request)
{
    blk_queue *at = &driver->queues[queue];
    unsigned slot = (unsigned)(request - at->requests);
    size_t header_at = HEADERS + slot * sizeof(blk_header);
    ring_piece pieces[3] = {
        {at->gpa + header_at, sizeof(blk_header), false},
        {request->gpa, request->size, request->verb == BLK_READ},
        {at->gpa + STATUSES + slot, 1, true},
    };
    blk_header *header = (void *)(at->memory + header_at);
    *header = (blk_header){htole32((uint32_t)request->verb), 0, htole64(request->sector)};
    *status_of(at, slot) = NOT_WRITTEN;
    (void)split_ring_add(&at->ring, pieces, 3, (uint16_t)slot); /* the ring has room for all */
    request->in_flight = true;
    at->in_flight++;
}

void blk_driver_kick(blk_driver *driver)
{
    static const uint64_t one = 1;
    for (int i = 0; i < driver->count; i++) {
        blk_queue *queue = &driver->queues[i];
        if (queue->kicked == queue->ring.added)
            continue;
        queue->kicked = queue->ring.added;
        if (split_ring_wants_kick(&queue->ring) &&
            write(queue->kick, &one, sizeof one) != sizeof one)
            driver->fault = "a kick could not be written";
    }
}

void blk_driver_again(blk_driver *driver)
{
    for (int i = 0; i < driver->count; i++) {
        blk_queue *queue = &driver->queues[i];
        open_ring(queue);
        for (int k = 0; k < BLK_DEPTH; k++)
            if (queue->requests[k].in_flight)
                blk_driver_submit(driver, i, &queue->requests[k]);
    }
}

bool blk_driver_called(blk_driver *driver, int queue)
{
    uint64_t count;
    return read(driver->queues[queue].call, &count, sizeof count) == sizeof count;
}

blk_request *blk_driver_collect(blk_driver *driver, int queue)
{
    blk_queue *at = &driver->queues[queue];
    uint16_t slot;
    uint32_t length;
    if (!split_ring_collect(&at->ring, &slot, &length)) {
        if (at->ring.broken)
            driver->fault = "a request came back that the device did not have";
        return NULL;
    }
    blk_request *request = &at->requests[slot];
    request->in_flight = false;
    at->in_flight--;
    if (*status_of(at, slot) == NOT_WRITTEN)
        driver->fault = "a request came back without a status";
    else if (*status_of(at, slot) != 0)
        driver->fault = "the device could not read or write";
    else if (length > request->size + 1) /* what it has written; some count what they read, too */
        driver->fault = "the device says that it has written more than there is room for";
    return request;
}
