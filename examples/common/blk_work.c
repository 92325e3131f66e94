/* blk_work.c - reads, writes and compares a part of a disk, through many queues at once
   SPDX-License-Identifier: MIT OR Unlicense */
#include "blk_work.h"

#include "clock.h"

#include <string.h>

void blk_work_pattern(uint8_t *image, uint64_t size)
{
    uint64_t state = (uint64_t)(clock_now() * 1e9);
    for (uint64_t i = 0; i < size; i++) {
        state = state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
        image[i] = (uint8_t)(state >> 56);
    }
}

void blk_work_begin(blk_work *work, const blk_job *job)
{
    work->job = *job;
    for (int i = 0; i < job->queues; i++)
        work->next[i] = (uint64_t)((i + job->shift) % job->queues);
}

static void submit(blk_work *work, int queue, uint64_t offset)
{
    const blk_job *job = &work->job;
    blk_request *request = blk_driver_idle(work->driver, queue);
    request->verb = job->task == BLK_PUT ? BLK_WRITE : BLK_READ;
    request->sector = (work->place + offset) / BLK_SECTOR;
    request->size = job->block;
    if (job->task == BLK_PUT)
        memcpy(request->data, job->image + offset, job->block);
    blk_driver_submit(work->driver, queue, request);
}

bool blk_work_feed(blk_work *work)
{
    const blk_job *job = &work->job;
    uint64_t blocks = work->size / job->block;
    uint64_t end = job->until <= 0 ? blocks : clock_now() < job->until ? UINT64_MAX : 0;
    bool any = false;
    for (int i = 0; i < job->queues; i++) {
        const blk_queue *queue = &work->driver->queues[i];
        while (queue->in_flight < job->depth && work->next[i] < end) {
            submit(work, i, work->next[i] % blocks * job->block);
            work->next[i] += (uint64_t)job->queues;
        }
        any = any || queue->in_flight > 0;
    }
    return any;
}

void blk_work_take(blk_work *work, int queue)
{
    const blk_request *request;
    while ((request = blk_driver_collect(work->driver, queue)) != NULL) {
        uint8_t *image = work->job.image + (request->sector * BLK_SECTOR - work->place);
        if (work->job.task == BLK_SAVE)
            memcpy(image, request->data, request->size);
        else if (work->job.task == BLK_COMPARE && memcmp(image, request->data, request->size) != 0)
            work->driver->fault = "something else was read than was written";
        work->done++;
    }
}
