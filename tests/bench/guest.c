#define _GNU_SOURCE
#include "guest.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum {
    RING_SIZE = 64,
    RING_BYTES = 4096, /* from one ring to the next */
    HOLE = 4 * 4096
};

void guest_must(int code, const char *what)
{
    if (code < 0) {
        fprintf(stderr, "bench: %s: errno %d\n", what, -code);
        exit(1);
    }
}

/* ---- the back-end ---- */

static void *last_log;

unsigned long *guest_log(void)
{
    return last_log;
}

static int null_open(void *backend, vhost_device *device, vhost_facts *facts)
{
    (void)backend;
    (void)device;
    facts->name = "nothing";
    facts->profile = VHOST_PROFILE_BY_HOST;
    facts->log_kind = VHOST_DIRTY_PRIVATE;
    vhost_features_set(&facts->offered, VHOST_FEATURE_LOG_ALL);
    vhost_features_set(&facts->offered, VHOST_FEATURE_VERSION_1);
    facts->its_bits = facts->offered;
    return 0;
}

static void null_sever(void *backend)
{
    (void)backend;
}

static int null_features(void *backend, const vhost_features *features)
{
    (void)backend;
    (void)features;
    return 0;
}

static int null_table(void *backend, const vhost_table_change *change)
{
    (void)backend;
    (void)change;
    return 0;
}

static int null_log(void *backend, const vhost_log_memory *memory)
{
    (void)backend;
    last_log = memory->base;
    return 0;
}

static int null_fd(void *backend, uint32_t queue, int fd)
{
    (void)backend;
    (void)queue;
    (void)fd;
    return 0;
}

static int null_number(void *backend, uint32_t queue, uint32_t number)
{
    (void)backend;
    (void)queue;
    (void)number;
    return 0;
}

static int null_addresses(void *backend, uint32_t queue, const vhost_ring_addresses *addresses)
{
    (void)backend;
    (void)queue;
    (void)addresses;
    return 0;
}

static int null_base(void *backend, uint32_t queue, vhost_ring_base *base)
{
    (void)backend;
    (void)queue;
    base->value = 0;
    base->answered = true;
    return 0;
}

static const vhost_backend_ops null_ops = {
    .open = null_open,
    .sever = null_sever,
    .set_features = null_features,
    .set_table = null_table,
    .set_log = null_log,
    .set_ring_call = null_fd,
    .set_ring_size = null_number,
    .set_ring_base = null_number,
    .set_ring_addresses = null_addresses,
    .set_ring_kick = null_fd,
    .get_ring_base = null_base,
};

/* ---- the guest ---- */

static void *count_allocation(void *memory, size_t size, void *user)
{
    guest *self = user;
    if (size == 0) {
        free(memory);
        return NULL;
    }
    self->allocations++;
    return realloc(memory, size);
}

void guest_commit(guest *self)
{
    guest_must(vhost_memory_begin(&self->vm), "begin");
    for (uint32_t i = 0; i < self->section_count; i++) {
        guest_must(vhost_memory_add(&self->vm, &self->sections[i]), "add");
    }
    guest_must(vhost_memory_commit(&self->vm), "commit");
}

static void make_sections(guest *self, uint64_t size, uint32_t count)
{
    self->sections = calloc(count, sizeof *self->sections);
    self->section_count = count;
    self->stride = size / count;
    for (uint32_t i = 0; i < count; i++) {
        uint64_t gpa = i * self->stride;
        vhost_section_init(&self->sections[i], gpa, self->stride - (count > 1 ? HOLE : 0),
                           &self->ram, gpa);
    }
}

/* Rings stand one after the other from gpa 0 on, as far as sections hold them whole. */
static void attach(guest *self, unsigned d, unsigned queues)
{
    vhost_device *device = &self->device[d];
    vhost_features accepted = {{0, 0}};
    uint64_t gpa = d * queues * RING_BYTES;
    for (unsigned i = 0; i < queues; i++, gpa += RING_BYTES) {
        vhost_queue *queue = &self->queue[d][i];
        vhost_queue_init(queue);
        if (gpa % self->stride + RING_BYTES > self->sections[0].size) {
            gpa += self->stride - gpa % self->stride;
        }
        queue->ready = true;
        queue->size = RING_SIZE;
        queue->desc = gpa;
        queue->avail = gpa + 1024;
        queue->used = gpa + 2048;
    }
    vhost_features_set(&accepted, VHOST_FEATURE_VERSION_1);
    guest_must(vhost_device_init(device, &self->vm, &null_ops, NULL, self->queue[d], queues, NULL),
               "device init");
    guest_must(vhost_device_ack(device, accepted), "ack");
    guest_must(vhost_device_start(device), "start");
}

void guest_open(guest *self, uint64_t size, uint32_t sections, unsigned devices, unsigned queues)
{
    vhost_vm_options options = {.allocate = count_allocation, .user = self};
    uint64_t rings = UINT64_C(1) << 30; /* wherever rings stand */
    memset(self, 0, sizeof *self);
    void *host = mmap(NULL, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (host == MAP_FAILED ||
        mprotect(host, rings < size ? rings : size, PROT_READ | PROT_WRITE) != 0) {
        guest_must(-1, "address space for a guest");
    }
    vhost_backing_init(&self->ram, host, size, -1, 0);
    make_sections(self, size, sections);
    guest_must(vhost_vm_init(&self->vm, &options), "vm init");
    guest_commit(self);
    self->device_count = devices;
    for (unsigned d = 0; d < devices; d++) {
        attach(self, d, queues);
    }
}

void guest_close(guest *self)
{
    for (unsigned d = 0; d < self->device_count; d++) {
        (void)vhost_device_stop(&self->device[d]);
        vhost_device_cleanup(&self->device[d]);
    }
    guest_must(vhost_vm_cleanup(&self->vm), "vm cleanup");
    munmap(self->ram.host, self->ram.size);
    free(self->sections);
}
