/* scsi_driver.c - the driver of a virtio-scsi device, in user space, with many request queues
   SPDX-License-Identifier: MIT OR Unlicense */
#define _DEFAULT_SOURCE
#include "scsi_driver.h"

#include <endian.h>
#include <errno.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

/* A header has 51 bytes: LUN, id, three small numbers, and the command. */
enum {
    HEADER = 51,
    HEADER_LUN = 0,
    HEADER_ID = 8,
    HEADER_COMMAND = 19
};

/* A response has 108: sense size, residue, qualifier, status, response, and the sense. */
enum {
    RESPONSE = 108,
    RESPONSE_STATUS = 10,
    RESPONSE_CODE = 11,
    RESPONSE_SENSE = 12,
    SENSE_KEY = 2, /* in the sense, bits 0 to 3 */
    NOT_WRITTEN = 0xff
};

enum { /* of the control queue */
    TASK = 24,
    TASK_KIND = 4, /* after the type, which is 0 */
    TASK_LUN = 8,
    TASK_RESET_LUN = 5
};

enum {
    EVENT = 16,
    EVENT_LUN = 4,
    EVENT_REASON = 12
};

enum { /* where things stand in the memory of a queue; the ring is at its beginning */
    HEADERS = 0x1000,
    HEADER_ROOM = 64,
    RESPONSE_ROOM = 128
};

enum { /* SCSI commands: the first byte */
    TEST_UNIT_READY = 0x00,
    INQUIRY = 0x12,
    READ_CAPACITY_10 = 0x25,
    READ_10 = 0x28,
    WRITE_10 = 0x2a
};

enum {
    TARGET = 1 /* of all requests, at first */
};

static void open_queue(scsi_queue *queue, uint8_t *memory, uint64_t gpa, int depth)
{
    queue->memory = memory;
    queue->gpa = gpa;
    memset(memory, 0, HEADERS);
    split_ring_init(&queue->ring, (uint16_t)(4 * depth), memory, gpa);
    for (int i = 0; i < depth; i++)
        queue->requests[i].data = memory + SCSI_BUFFERS + i * SCSI_BUFFER;
}

int scsi_driver_open(scsi_driver *driver, void *memory, uint64_t gpa, int count, int depth)
{
    uint8_t *bytes = memory;
    *driver = (scsi_driver){.count = count, .depth = depth};
    for (int i = 0; i < count; i++, gpa += SCSI_QUEUE_BYTES) {
        scsi_queue *queue = &driver->queues[i];
        open_queue(queue, bytes + gpa, gpa, depth);
        queue->kick = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
        queue->call = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
        if (queue->kick < 0 || queue->call < 0)
            return -errno;
    }
    return 0;
}

void scsi_driver_close(scsi_driver *driver)
{
    for (int i = 0; i < driver->count && driver->queues[i].memory != NULL; i++) {
        if (driver->queues[i].kick >= 0)
            close(driver->queues[i].kick);
        if (driver->queues[i].call >= 0)
            close(driver->queues[i].call);
    }
}

/* ---- commands -------------------------------------------------------------------------------- */

scsi_request *scsi_driver_idle(scsi_driver *driver, int queue)
{
    scsi_queue *at = &driver->queues[queue];
    for (int i = 0; i < driver->depth; i++) {
        scsi_request *request = &at->requests[i];
        if (request->in_flight)
            continue;
        uint64_t gpa = at->gpa + SCSI_BUFFERS + (uint64_t)i * SCSI_BUFFER;
        *request = (scsi_request){.target = TARGET, .gpa = gpa, .data = request->data};
        return request;
    }
    return NULL;
}

void scsi_test_unit_ready(scsi_request *request)
{
    request->command[0] = TEST_UNIT_READY;
}

void scsi_inquiry(scsi_request *request, uint32_t size)
{
    request->command[0] = INQUIRY;
    request->command[3] = (uint8_t)(size >> 8);
    request->command[4] = (uint8_t)size;
    request->flow = SCSI_FROM_DEVICE;
    request->size = size;
}

void scsi_read_capacity(scsi_request *request)
{
    request->command[0] = READ_CAPACITY_10;
    request->flow = SCSI_FROM_DEVICE;
    request->size = 8;
}

/* SCSI has its numbers big-endian. */
static void read_or_write(scsi_request *request, uint8_t command, uint64_t place, uint32_t size)
{
    uint32_t first = htobe32((uint32_t)(place / SCSI_BLOCK));
    uint16_t count = htobe16((uint16_t)(size / SCSI_BLOCK));
    request->command[0] = command;
    memcpy(request->command + 2, &first, sizeof first);
    memcpy(request->command + 7, &count, sizeof count);
    request->size = size;
}

void scsi_read(scsi_request *request, uint64_t place, uint32_t size)
{
    read_or_write(request, READ_10, place, size);
    request->flow = SCSI_FROM_DEVICE;
}

void scsi_write(scsi_request *request, uint64_t place, uint32_t size)
{
    read_or_write(request, WRITE_10, place, size);
    request->flow = SCSI_TO_DEVICE;
}

uint64_t scsi_capacity(const scsi_request *request)
{
    uint32_t answer[2]; /* the last block, and the bytes of one */
    memcpy(answer, request->data, sizeof answer);
    return ((uint64_t)be32toh(answer[0]) + 1) * be32toh(answer[1]);
}

bool scsi_good(const scsi_request *request)
{
    return request->response == 0 && request->status == 0;
}

/* ---- requests -------------------------------------------------------------------------------- */

static void write_lun(uint8_t *bytes, uint8_t target, uint8_t lun)
{
    const uint8_t written[8] = {1, target, 0x40, lun};
    memcpy(bytes, written, sizeof written);
}

/* In the memory of a queue, a room for each request. */
static uint8_t *header_of(const scsi_queue *queue, unsigned slot)
{
    return queue->memory + HEADERS + slot * HEADER_ROOM;
}

static uint8_t *response_of(const scsi_queue *queue, unsigned slot)
{
    return queue->memory + SCSI_RESPONSES + slot * RESPONSE_ROOM;
}

static uint64_t gpa_in(const scsi_queue *queue, const uint8_t *bytes)
{
    return queue->gpa + (uint64_t)(bytes - queue->memory);
}

static void write_header(uint8_t *header, const scsi_request *request, uint64_t id)
{
    memset(header, 0, HEADER_ROOM);
    write_lun(header + HEADER_LUN, request->target, request->lun);
    id = htole64(id);
    memcpy(header + HEADER_ID, &id, sizeof id);
    memcpy(header + HEADER_COMMAND, request->command, sizeof request->command);
}

void scsi_driver_submit(scsi_driver *driver, int queue, scsi_request *request)
{
    scsi_queue *at = &driver->queues[queue];
    unsigned slot = (unsigned)(request - at->requests);
    uint8_t *header = header_of(at, slot), *response = response_of(at, slot);
    ring_piece data = {request->gpa, request->size, request->flow == SCSI_FROM_DEVICE};
    ring_piece pieces[3];
    uint16_t count = 0;

    write_header(header, request, at->ring.added);
    memset(response, NOT_WRITTEN, RESPONSE);
    pieces[count++] = (ring_piece){gpa_in(at, header), HEADER, false};
    if (request->flow == SCSI_TO_DEVICE)
        pieces[count++] = data;
    pieces[count++] = (ring_piece){gpa_in(at, response), RESPONSE, true};
    if (request->flow == SCSI_FROM_DEVICE)
        pieces[count++] = data;
    (void)split_ring_add(&at->ring, pieces, count, (uint16_t)slot); /* the ring has room for all */
    request->in_flight = true;
    at->in_flight++;
}

void scsi_driver_kick(scsi_driver *driver)
{
    static const uint64_t one = 1;
    for (int i = 0; i < driver->count; i++) {
        scsi_queue *queue = &driver->queues[i];
        if (queue->kicked == queue->ring.added)
            continue;
        queue->kicked = queue->ring.added;
        if (split_ring_wants_kick(&queue->ring) &&
            write(queue->kick, &one, sizeof one) != sizeof one)
            driver->fault = "a kick could not be written";
    }
}

bool scsi_driver_called(scsi_driver *driver, int queue)
{
    uint64_t count;
    return read(driver->queues[queue].call, &count, sizeof count) == sizeof count;
}

/* A chain that is done, and its slot. What a device says of the bytes it has written is not looked
   at: vhost-scsi always says 0. */
static bool take(scsi_driver *driver, int queue, uint16_t *slot)
{
    split_ring *ring = &driver->queues[queue].ring;
    uint32_t length;
    bool taken = split_ring_collect(ring, slot, &length);
    if (ring->broken)
        driver->fault = "a request came back that the device did not have";
    return taken;
}

scsi_request *scsi_driver_collect(scsi_driver *driver, int queue)
{
    scsi_queue *at = &driver->queues[queue];
    uint16_t slot;
    if (!take(driver, queue, &slot))
        return NULL;
    const uint8_t *response = response_of(at, slot);
    scsi_request *request = &at->requests[slot];
    request->in_flight = false;
    request->response = response[RESPONSE_CODE];
    request->status = response[RESPONSE_STATUS];
    request->sense = response[RESPONSE_SENSE + SENSE_KEY] & 15;
    at->in_flight--;
    driver->done++;
    if (request->response == NOT_WRITTEN)
        driver->fault = "a request came back without a response";
    return request;
}

/* ---- the control queue and the event queue --------------------------------------------------- */

void scsi_driver_reset_lun(scsi_driver *driver, uint8_t lun)
{
    scsi_queue *at = &driver->queues[SCSI_CONTROL];
    uint8_t *header = header_of(at, 0), *response = response_of(at, 0);
    ring_piece pieces[2] = {{gpa_in(at, header), TASK, false}, {gpa_in(at, response), 1, true}};
    memset(header, 0, TASK);
    header[TASK_KIND] = TASK_RESET_LUN;
    write_lun(header + TASK_LUN, TARGET, lun);
    *response = NOT_WRITTEN;
    (void)split_ring_add(&at->ring, pieces, 2, 0);
}

bool scsi_driver_answer(scsi_driver *driver, uint8_t *answer)
{
    uint16_t slot;
    if (!take(driver, SCSI_CONTROL, &slot))
        return false;
    *answer = *response_of(&driver->queues[SCSI_CONTROL], 0);
    return true;
}

void scsi_driver_expect(scsi_driver *driver, int count)
{
    scsi_queue *at = &driver->queues[SCSI_EVENT];
    for (int i = 0; i < count; i++) {
        uint16_t slot = (uint16_t)((at->ring.added) % driver->depth);
        ring_piece piece = {gpa_in(at, response_of(at, slot)), EVENT, true};
        (void)split_ring_add(&at->ring, &piece, 1, slot);
    }
}

bool scsi_driver_event(scsi_driver *driver, scsi_event *event)
{
    const scsi_queue *at = &driver->queues[SCSI_EVENT];
    uint16_t slot;
    if (!take(driver, SCSI_EVENT, &slot))
        return false;
    const uint8_t *bytes = response_of(at, slot);
    memcpy(&event->event, bytes, sizeof event->event);
    memcpy(&event->reason, bytes + EVENT_REASON, sizeof event->reason);
    event->event = le32toh(event->event);
    event->reason = le32toh(event->reason);
    event->lun = bytes[EVENT_LUN + 3];
    return true;
}
