/* vsock_driver.c - the driver of a virtio-vsock device, in user space: streams over split rings
   SPDX-License-Identifier: MIT OR Unlicense */
#define _DEFAULT_SOURCE
#include "vsock_driver.h"

#include <endian.h>
#include <errno.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

enum {
    HOST_CID = 2,
    TYPE_STREAM = 1,
    SHUT_BOTH = 3,
    FIRST_PORT = 49152,
    SPARE = VSOCK_RING_SIZE / 4 /* transmit buffers that no data is sent from: for answers */
};

/* ---- headers, as they stand in memory -------------------------------------------------------- */

static void header_store(uint8_t *bytes, const vsock_header *header)
{
    vsock_header little = {
        .source_cid = htole64(header->source_cid),
        .target_cid = htole64(header->target_cid),
        .source_port = htole32(header->source_port),
        .target_port = htole32(header->target_port),
        .length = htole32(header->length),
        .type = htole16(header->type),
        .op = htole16(header->op),
        .flags = htole32(header->flags),
        .room = htole32(header->room),
        .taken = htole32(header->taken),
    };
    memcpy(bytes, &little, VSOCK_HEADER); /* no gap is in it, only behind */
}

static void header_load(vsock_header *header, const uint8_t *bytes)
{
    vsock_header little = {0};
    memcpy(&little, bytes, VSOCK_HEADER);
    *header = (vsock_header){
        .source_cid = le64toh(little.source_cid),
        .target_cid = le64toh(little.target_cid),
        .source_port = le32toh(little.source_port),
        .target_port = le32toh(little.target_port),
        .length = le32toh(little.length),
        .type = le16toh(little.type),
        .op = le16toh(little.op),
        .flags = le32toh(little.flags),
        .room = le32toh(little.room),
        .taken = le32toh(little.taken),
    };
}

/* ---- packets over rings ---------------------------------------------------------------------- */

static uint64_t buffer_gpa(const vsock_driver *driver, int queue, uint16_t buffer)
{
    return driver->layout.buffers[queue] + (uint64_t)buffer * VSOCK_BUFFER;
}

/* Gives an empty buffer to the device. */
static void post(vsock_driver *driver, int queue, uint16_t buffer)
{
    uint32_t size = queue == VSOCK_EVENT ? VSOCK_EVENT_SIZE : VSOCK_BUFFER;
    ring_piece piece = {buffer_gpa(driver, queue, buffer), size, true};
    (void)split_ring_add(&driver->ring[queue], &piece, 1, buffer);
}

int vsock_driver_open(vsock_driver *driver, void *memory, const vsock_layout *layout, uint64_t cid)
{
    *driver = (vsock_driver){.memory = memory, .layout = *layout, .cid = cid};
    driver->next_port = FIRST_PORT;
    for (int i = 0; i < VSOCK_QUEUES; i++) {
        split_ring_init(&driver->ring[i], VSOCK_RING_SIZE, driver->memory + layout->ring[i],
                        layout->ring[i]);
        driver->kick[i] = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
        driver->call[i] = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    }
    for (int i = 0; i < VSOCK_QUEUES; i++)
        if (driver->kick[i] < 0 || driver->call[i] < 0)
            return -errno;
    for (uint16_t i = 0; i < VSOCK_RING_SIZE; i++) {
        post(driver, VSOCK_RECEIVE, i);
        post(driver, VSOCK_EVENT, i);
        driver->idle[driver->idle_count++] = i;
    }
    return 0;
}

void vsock_driver_close(vsock_driver *driver)
{
    for (int i = 0; i < VSOCK_QUEUES && driver->memory != NULL; i++) {
        if (driver->kick[i] >= 0)
            close(driver->kick[i]);
        if (driver->call[i] >= 0)
            close(driver->call[i]);
    }
}

void vsock_driver_kick(vsock_driver *driver)
{
    static const uint64_t one = 1;
    for (int i = 0; i < VSOCK_QUEUES; i++) {
        if (driver->kicked[i] == driver->ring[i].added)
            continue;
        driver->kicked[i] = driver->ring[i].added;
        if (!split_ring_wants_kick(&driver->ring[i]))
            continue;
        if (write(driver->kick[i], &one, sizeof one) != sizeof one)
            driver->fault = "a kick could not be written";
    }
}

bool vsock_driver_called(vsock_driver *driver, int queue)
{
    uint64_t count;
    return read(driver->call[queue], &count, sizeof count) == sizeof count;
}

/* One finished chain of a queue, if there is one. */
static bool collect(vsock_driver *driver, int queue, uint16_t *buffer, uint32_t *length)
{
    bool any = split_ring_collect(&driver->ring[queue], buffer, length);
    if (driver->ring[queue].broken)
        driver->fault = "a buffer came back that the device did not have";
    return any;
}

static bool send_packet(vsock_driver *driver, const vsock_header *header, const void *data)
{
    if (driver->idle_count == 0)
        return false;
    uint16_t buffer = driver->idle[--driver->idle_count];
    ring_piece piece = {buffer_gpa(driver, VSOCK_TRANSMIT, buffer), VSOCK_HEADER + header->length,
                        false};
    header_store(driver->memory + piece.gpa, header);
    if (header->length > 0)
        memcpy(driver->memory + piece.gpa + VSOCK_HEADER, data, header->length);
    (void)split_ring_add(&driver->ring[VSOCK_TRANSMIT], &piece, 1, buffer);
    driver->packets[VSOCK_TRANSMIT]++;
    return true;
}

void vsock_driver_reclaim(vsock_driver *driver)
{
    uint16_t buffer;
    uint32_t length;
    while (collect(driver, VSOCK_TRANSMIT, &buffer, &length)) {
        if (length != 0)
            driver->fault = "the device has written to a packet that is sent";
        driver->idle[driver->idle_count++] = buffer;
    }
}

/* ---- streams --------------------------------------------------------------------------------- */

static vsock_stream *new_stream(vsock_driver *driver, uint32_t port, uint32_t peer_port)
{
    for (int i = 0; i < VSOCK_STREAMS; i++) {
        vsock_stream *stream = &driver->stream[i];
        if (stream->state != VSOCK_FREE)
            continue;
        memset(stream, 0, sizeof *stream);
        stream->port = port;
        stream->peer_port = peer_port;
        return stream;
    }
    return NULL;
}

static vsock_stream *find_stream(vsock_driver *driver, uint32_t port, uint32_t peer_port)
{
    for (int i = 0; i < VSOCK_STREAMS; i++) {
        vsock_stream *stream = &driver->stream[i];
        bool alive = stream->state != VSOCK_FREE && stream->state != VSOCK_ENDED;
        if (alive && stream->port == port && stream->peer_port == peer_port)
            return stream;
    }
    return NULL;
}

/* Every header says how much was taken. */
static bool say(vsock_driver *driver, vsock_stream *stream, vsock_op op, const void *data,
                uint32_t length)
{
    const vsock_header header = {
        .source_cid = driver->cid,
        .target_cid = HOST_CID,
        .source_port = stream->port,
        .target_port = stream->peer_port,
        .length = length,
        .type = TYPE_STREAM,
        .op = (uint16_t)op,
        .flags = op == VSOCK_OP_SHUTDOWN ? SHUT_BOTH : 0,
        .room = VSOCK_ROOM,
        .taken = stream->taken,
    };
    if (!send_packet(driver, &header, data))
        return false;
    stream->told = stream->taken;
    return true;
}

/* Not for every byte: when the peer may soon run out of credit. */
static void give_credit(vsock_driver *driver, vsock_stream *stream)
{
    if (stream->state == VSOCK_OPEN && stream->taken - stream->told >= VSOCK_ROOM / 2)
        (void)say(driver, stream, VSOCK_OP_CREDIT_UPDATE, NULL, 0);
}

vsock_stream *vsock_connect(vsock_driver *driver, uint32_t port)
{
    vsock_stream *stream = new_stream(driver, driver->next_port, port);
    if (stream == NULL || !say(driver, stream, VSOCK_OP_REQUEST, NULL, 0))
        return NULL;
    driver->next_port++;
    stream->state = VSOCK_ASKING;
    return stream;
}

vsock_stream *vsock_accept(vsock_driver *driver)
{
    for (int i = 0; i < VSOCK_STREAMS; i++) {
        vsock_stream *stream = &driver->stream[i];
        if (stream->state == VSOCK_FREE || !stream->fresh)
            continue;
        stream->fresh = false;
        return stream;
    }
    return NULL;
}

static size_t smaller(size_t a, size_t b)
{
    return a < b ? a : b;
}

size_t vsock_write(vsock_driver *driver, vsock_stream *stream, const void *bytes, size_t size)
{
    size_t done = 0;
    while (stream->state == VSOCK_OPEN && driver->idle_count > SPARE) {
        uint32_t credit = stream->peer_room - (stream->sent - stream->peer_taken);
        size_t piece = smaller(smaller(size - done, credit), VSOCK_DATA);
        if (piece == 0)
            break;
        (void)say(driver, stream, VSOCK_OP_RW, (const uint8_t *)bytes + done, (uint32_t)piece);
        stream->sent += (uint32_t)piece;
        done += piece;
    }
    return done;
}

size_t vsock_read(vsock_driver *driver, vsock_stream *stream, void *bytes, size_t size)
{
    size_t count = smaller(size, stream->received - stream->taken);
    for (size_t i = 0; i < count; i++)
        ((uint8_t *)bytes)[i] = stream->bytes[stream->taken++ % VSOCK_ROOM];
    give_credit(driver, stream);
    return count;
}

bool vsock_shutdown(vsock_driver *driver, vsock_stream *stream)
{
    if (stream->state != VSOCK_OPEN)
        return true;
    if (!say(driver, stream, VSOCK_OP_SHUTDOWN, NULL, 0))
        return false;
    stream->state = VSOCK_ENDING;
    return true;
}

void vsock_release(vsock_stream *stream)
{
    stream->state = VSOCK_FREE;
}

/* ---- what comes in --------------------------------------------------------------------------- */

/* Says no to a packet of no stream. Nobody says no to a no. */
static void refuse(vsock_driver *driver, const vsock_header *got)
{
    const vsock_header answer = {
        .source_cid = driver->cid,
        .target_cid = got->source_cid,
        .source_port = got->target_port,
        .target_port = got->source_port,
        .type = got->type,
        .op = VSOCK_OP_RST,
    };
    if (got->op != VSOCK_OP_RST)
        (void)send_packet(driver, &answer, NULL);
}

static void end(vsock_stream *stream)
{
    stream->cut = stream->state != VSOCK_ENDING;
    stream->state = VSOCK_ENDED;
}

static void keep_data(vsock_driver *driver, vsock_stream *stream, const uint8_t *data,
                      uint32_t length)
{
    if (length > VSOCK_ROOM - (stream->received - stream->taken)) {
        driver->fault = "the peer sent more than there is credit for";
        return;
    }
    for (uint32_t i = 0; i < length; i++)
        stream->bytes[stream->received++ % VSOCK_ROOM] = data[i];
}

static void take_request(vsock_driver *driver, const vsock_header *got)
{
    vsock_stream *stream = NULL;
    if (driver->listens != 0 && got->target_port == driver->listens)
        stream = new_stream(driver, got->target_port, got->source_port);
    if (stream == NULL) {
        refuse(driver, got);
        return;
    }
    stream->state = VSOCK_OPEN;
    stream->fresh = true;
    stream->peer_room = got->room;
    stream->peer_taken = got->taken;
    (void)say(driver, stream, VSOCK_OP_RESPONSE, NULL, 0);
}

static void take_packet(vsock_driver *driver, const vsock_header *got, const uint8_t *data)
{
    vsock_stream *stream = find_stream(driver, got->target_port, got->source_port);
    if (stream == NULL && got->op == VSOCK_OP_REQUEST) {
        take_request(driver, got);
        return;
    }
    if (stream == NULL) {
        refuse(driver, got);
        return;
    }
    stream->peer_room = got->room;
    stream->peer_taken = got->taken;
    switch (got->op) {
    case VSOCK_OP_RESPONSE:
        if (stream->state == VSOCK_ASKING)
            stream->state = VSOCK_OPEN;
        break;
    case VSOCK_OP_RW:
        keep_data(driver, stream, data, got->length);
        break;
    case VSOCK_OP_CREDIT_REQUEST:
        (void)say(driver, stream, VSOCK_OP_CREDIT_UPDATE, NULL, 0);
        break;
    case VSOCK_OP_SHUTDOWN:
        if ((got->flags & SHUT_BOTH) == SHUT_BOTH) {
            stream->state = VSOCK_ENDING;
            end(stream);
            refuse(driver, got); /* confirms it */
        }
        break;
    case VSOCK_OP_RST:
        end(stream);
        break;
    default: /* CREDIT_UPDATE has no more than its header */
        break;
    }
}

bool vsock_driver_receive(vsock_driver *driver)
{
    uint16_t buffer;
    uint32_t length;
    vsock_header header;
    if (driver->idle_count == 0 || !collect(driver, VSOCK_RECEIVE, &buffer, &length))
        return false;
    const uint8_t *bytes = driver->memory + buffer_gpa(driver, VSOCK_RECEIVE, buffer);
    header_load(&header, bytes);
    driver->packets[VSOCK_RECEIVE]++;
    if (length < VSOCK_HEADER || length > VSOCK_BUFFER || header.length != length - VSOCK_HEADER)
        driver->fault = "a packet was received with a wrong length";
    else if (header.target_cid != driver->cid || header.type != TYPE_STREAM)
        refuse(driver, &header);
    else
        take_packet(driver, &header, bytes + VSOCK_HEADER);
    post(driver, VSOCK_RECEIVE, buffer);
    return true;
}

/* The only event that there is says that all streams are gone. (It also says that the guest may
   have another CID now; here it has not.) */
void vsock_driver_take_events(vsock_driver *driver)
{
    uint16_t buffer;
    uint32_t length;
    while (collect(driver, VSOCK_EVENT, &buffer, &length)) {
        uint32_t id;
        memcpy(&id, driver->memory + buffer_gpa(driver, VSOCK_EVENT, buffer), sizeof id);
        if (length != VSOCK_EVENT_SIZE || id != 0)
            driver->fault = "an event came that does not exist";
        driver->transport_resets++;
        for (int i = 0; i < VSOCK_STREAMS; i++)
            if (driver->stream[i].state != VSOCK_FREE && driver->stream[i].state != VSOCK_ENDED)
                end(&driver->stream[i]);
        post(driver, VSOCK_EVENT, buffer);
    }
}

void vsock_driver_serve(vsock_driver *driver)
{
    bool called = false;
    for (int i = 0; i < VSOCK_QUEUES; i++)
        called |= vsock_driver_called(driver, i);
    if (!called)
        return;
    vsock_driver_reclaim(driver);
    vsock_driver_take_events(driver);
    while (vsock_driver_receive(driver)) {
    }
}
