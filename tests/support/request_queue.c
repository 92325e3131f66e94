#define _GNU_SOURCE
#include "request_queue.h"

#include "clock.h"

#include <errno.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

int request_queue_open(request_queue *self, user_machine *m, unsigned index, uint64_t gpa)
{
    memset(m->ram + gpa, 0, REQUEST_QUEUE_BYTES);
    *self = (request_queue){.memory = m->ram, .gpa = gpa};
    self->kick = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    self->call = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    split_ring_init(&self->ring, REQUEST_RING_SIZE, m->ram + gpa, gpa);
    vhost_queue *queue = &m->queue[index];
    queue->ready = true;
    queue->size = self->ring.size;
    queue->desc = self->ring.descriptors_gpa;
    queue->avail = self->ring.available_gpa;
    queue->used = self->ring.used_gpa;
    queue->kick_fd = self->kick;
    queue->call_fd = self->call;
    return self->kick < 0 || self->call < 0 ? -errno : 0;
}

void request_queue_close(request_queue *self)
{
    if (self->memory != NULL) {
        close(self->kick);
        close(self->call);
        self->memory = NULL;
    }
}

int64_t request_queue_send(request_queue *self, user_machine *m, const ring_piece *pieces,
                           uint16_t count)
{
    const uint64_t one = 1;
    double end = clock_now() + USER_PATIENCE / 1e3;
    uint32_t room = 0, length;
    uint16_t tag;
    for (uint16_t i = 0; i < count; i++) {
        room += pieces[i].device_writes ? pieces[i].length : 0;
    }
    if (!split_ring_add(&self->ring, pieces, count, 1) ||
        write(self->kick, &one, sizeof one) != sizeof one) {
        return -1;
    }
    while (!split_ring_collect(&self->ring, &tag, &length)) {
        if (self->ring.broken || clock_now() > end) {
            return -1;
        }
        user_machine_turn(m, 100);
    }
    return length <= room ? (int64_t)length : -1;
}

int64_t request_queue_ask(request_queue *self, user_machine *m, const void *request, uint32_t size,
                          uint64_t answer, uint32_t room)
{
    uint64_t at = self->gpa + VHOST_PAGE;
    ring_piece pieces[2] = {{at, size, false}, {answer, room, true}};
    memcpy(self->memory + at, request, size);
    return request_queue_send(self, m, pieces, 2);
}
