/* saved.c - a stopped device, as it goes from one VMM to another
   SPDX-License-Identifier: MIT OR Unlicense */
#define _GNU_SOURCE
#include "saved.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

typedef struct saved_queue {
    uint32_t ready, size;
    uint64_t desc, avail, used;
    uint16_t next_avail, next_used; /* the position */
    int32_t kick, call;             /* numbers of the doorbells */
} saved_queue;

typedef struct saved_device {
    uint32_t kind; /* machine_kind */
    uint32_t count;
    vhost_features accepted;
    saved_queue queues[MACHINE_QUEUES];
} saved_device;

/* ---- source ---------------------------------------------------------------------------------- */

static int send_registers(int stream, uint32_t place, const machine_device *device)
{
    saved_device saved = {.kind = (uint32_t)device->number,
                          .count = device->device.queue_count,
                          .accepted = device->accepted};
    for (uint32_t i = 0; i < saved.count; i++) {
        const vhost_queue *queue = &device->queues[i];
        if (queue->position.state == VHOST_POSITION_GUESSED)
            return -EINVAL;
        saved.queues[i] = (saved_queue){queue->ready,         queue->size,    queue->desc,
                                        queue->avail,         queue->used,    queue->position.avail,
                                        queue->position.used, queue->kick_fd, queue->call_fd};
    }
    return stream_send(stream, STREAM_DEVICE, place, &saved, sizeof saved);
}

static int send_inflight(int stream, uint32_t place, machine_device *device)
{
    size_t size = vhost_user_inflight_size(&device->user);
    void *bytes = malloc(size);
    if (size == 0 || bytes == NULL) {
        free(bytes);
        return size == 0 ? 0 : -ENOMEM;
    }
    int code = vhost_user_save_inflight(&device->user, bytes, size);
    if (code == 0)
        code = stream_send(stream, STREAM_RECORD, place, bytes, size);
    free(bytes);
    return code;
}

typedef struct sender {
    int stream;
    uint32_t place;
} sender;

static int send_piece(const void *bytes, size_t size, void *user)
{
    const sender *to = user;
    return stream_send(to->stream, STREAM_STATE, to->place, bytes, size);
}

int saved_send(int stream, uint32_t place, machine_device *device)
{
    sender to = {stream, place};
    int code = send_registers(stream, place, device);
    if (code == 0 && device->kind->user)
        code = send_inflight(stream, place, device);
    if (code == 0 && (device->user.protocol >> VHOST_USER_BIT_STATE & 1) != 0)
        code = vhost_user_save_state(&device->user, send_piece, &to, MACHINE_STATE);
    return code;
}

/* ---- destination ----------------------------------------------------------------------------- */

/* A notifier with the number that the guest's driver knows. */
static int make_doorbell(int number)
{
    int fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    int code = fd < 0 || dup3(fd, number, O_CLOEXEC) < 0 ? -errno : 0;
    if (fd >= 0)
        close(fd);
    return code;
}

static int take_queue(const saved_queue *saved, vhost_queue *queue)
{
    int code = make_doorbell(saved->kick);
    if (code == 0)
        code = make_doorbell(saved->call);
    queue->ready = saved->ready != 0;
    queue->size = saved->size;
    queue->desc = saved->desc;
    queue->avail = saved->avail;
    queue->used = saved->used;
    queue->position =
        (vhost_position){VHOST_POSITION_CERTAIN, saved->next_avail, saved->next_used, false};
    queue->kick_fd = saved->kick;
    queue->call_fd = saved->call;
    return code;
}

static int take_registers(const void *bytes, size_t size, machine_device *device)
{
    saved_device saved;
    if (size != sizeof saved)
        return -EPROTO;
    memcpy(&saved, bytes, sizeof saved);
    if (saved.kind != (uint32_t)device->number || saved.count != device->device.queue_count)
        return -EPROTO;
    device->accepted = saved.accepted;
    for (uint32_t i = 0; i < saved.count; i++) {
        int code = take_queue(&saved.queues[i], &device->queues[i]);
        if (code < 0)
            return code;
    }
    return 0;
}

/* Called by the start that loads the state. */
static ptrdiff_t give_piece(void *bytes, size_t size, void *user)
{
    machine_device *device = user;
    size_t rest = device->state_size - device->state_given;
    size = size < rest ? size : rest;
    memcpy(bytes, device->state + device->state_given, size);
    device->state_given += size;
    return (ptrdiff_t)size;
}

static int take_state(const void *bytes, size_t size, machine_device *device)
{
    if (size > MACHINE_STATE - device->state_size)
        return -EPROTO;
    memcpy(device->state + device->state_size, bytes, size);
    device->state_size += size;
    return vhost_user_load_state(&device->user, give_piece, device);
}

int saved_take(const stream_record *record, const void *bytes, machine_device *device)
{
    switch (record->kind) {
    case STREAM_DEVICE:
        return take_registers(bytes, record->size, device);
    case STREAM_RECORD:
        return vhost_user_load_inflight(&device->user, bytes, record->size);
    case STREAM_STATE:
        return take_state(bytes, record->size, device);
    default:
        return -EPROTO;
    }
}
