/* memory_backend.c - a vhost back-end in this process: the example of how to write one
   SPDX-License-Identifier: MIT OR Unlicense

   In three parts: the rings, moving frames, and the table of functions that vhost.h calls. A driver
   is never to be trusted, so each number of a ring is read once, and checked before it is used. */
#define _DEFAULT_SOURCE
#include "memory_backend.h"

#include <endian.h>
#include <errno.h>
#include <string.h>
#include <unistd.h>

enum {
    HEADER = 12,  /* bytes of a net header */
    FRAME = 1514, /* bytes of the largest frame */
    BATCH = 32    /* frames a poll, each way */
};

/* ---- the rings ---- */

/* What we wrote is dirty, if we are to log: a bit a page, in words that the VMM takes any time. */
static void mark(const memory_backend *backend, bool logs, uint64_t gpa, uint64_t size)
{
    const uint64_t bits = 8 * sizeof *backend->log;
    for (uint64_t page = gpa / VHOST_PAGE; logs && page <= (gpa + size - 1) / VHOST_PAGE; page++)
        __atomic_fetch_or(&backend->log[page / bits], 1ul << (page % bits), __ATOMIC_RELEASE);
}

/* Copies from (or to) guest memory, piece by piece: what is one range for the driver may lie in
   several regions. Returns false if not all of it is memory. */
static bool copy(const memory_backend *backend, uint64_t gpa, uint8_t *bytes, uint64_t size,
                 bool to_guest)
{
    for (uint32_t i = 0; size > 0 && i < backend->region_count; i++) { /* regions ascend */
        const vhost_region *region = &backend->regions[i];
        uint64_t offset = gpa - region->gpa;
        if (gpa < region->gpa || offset >= region->size)
            continue;
        uint64_t piece = region->size - offset < size ? region->size - offset : size;
        uint8_t *guest = (uint8_t *)region->host + offset;
        memcpy(to_guest ? guest : bytes, to_guest ? bytes : guest, (size_t)piece);
        mark(backend, to_guest && backend->logs, gpa, piece);
        gpa += piece;
        bytes += piece;
        size -= piece;
    }
    return size == 0;
}

/* The head of the next chain that the driver has made available. */
static bool peek(const memory_queue *queue, uint16_t *head)
{
    if (!queue->enabled ||
        queue->next == le16toh(__atomic_load_n(&queue->available->index, __ATOMIC_ACQUIRE)))
        return false;
    *head = le16toh(queue->available->entries[queue->next % queue->size]);
    return true;
}

/* Copies a chain from (or to) guest memory. Returns the bytes copied, or -1: the chain is bad. */
static long copy_chain(const memory_backend *backend, const memory_queue *queue, uint16_t head,
                       uint8_t *bytes, uint32_t size, bool to_guest)
{
    uint32_t done = 0;
    uint16_t index = head;
    for (uint32_t links = 0; links < queue->size && index < queue->size; links++) {
        ring_descriptor descriptor = queue->descriptors[index];
        uint16_t flags = le16toh(descriptor.flags);
        uint32_t piece = le32toh(descriptor.length);
        piece = piece < size - done ? piece : size - done;
        if ((flags & RING_INDIRECT) != 0 || ((flags & RING_DEVICE_WRITES) != 0) != to_guest ||
            !copy(backend, le64toh(descriptor.address), bytes + done, piece, to_guest))
            return -1;
        done += piece;
        if ((flags & RING_NEXT) == 0)
            return (long)done;
        index = le16toh(descriptor.next);
    }
    return -1;
}

/* Notifiers are eventfds or pipes; what fails here is signalled already, or not kicked. */
static void notify(int fd)
{
    static const uint64_t one = 1;
    ssize_t written = fd >= 0 ? write(fd, &one, sizeof one) : 0;
    (void)written;
}

static void take_kick(const memory_queue *queue)
{
    uint64_t kicks;
    ssize_t taken = queue->enabled && queue->kick >= 0 ? read(queue->kick, &kicks, 8) : 0;
    (void)taken;
}

/* Gives a chain back to the driver. */
static void put_used(const memory_backend *backend, memory_queue *queue, uint16_t head,
                     uint32_t length)
{
    uint16_t index = le16toh(queue->used->index), place = (uint16_t)(index % queue->size);
    queue->used->entries[place] = (ring_used_entry){htole32(head), htole32(length)};
    __atomic_store_n(&queue->used->index, htole16((uint16_t)(index + 1)), __ATOMIC_RELEASE);
    queue->next++;
    mark(backend, queue->logs_used, queue->used_gpa, sizeof(ring_used));
    mark(backend, queue->logs_used, queue->used_gpa + sizeof(ring_used) + 8u * place, 8);
}

/* A queue that makes no sense is given up, until the driver resets it. */
static bool give_up(memory_queue *queue)
{
    queue->enabled = false;
    notify(queue->error);
    return false;
}

/* ---- moving frames ---- */

static bool transmit_frame(memory_backend *backend, memory_queue *queue)
{
    uint8_t bytes[HEADER + FRAME];
    uint16_t head;
    if (!peek(queue, &head))
        return false;
    long size = copy_chain(backend, queue, head, bytes, sizeof bytes, false);
    if (size <= HEADER)
        return give_up(queue);
    if (write(backend->wire, bytes + HEADER, (size_t)size - HEADER) < 0 && errno == EAGAIN)
        return false; /* the wire is full: the chain stays where it is */
    put_used(backend, queue, head, 0);
    return true;
}

static bool receive_frame(memory_backend *backend, memory_queue *queue)
{
    uint8_t bytes[HEADER + FRAME] = {[10] = 1}; /* zeros, but for: the frame is in one buffer */
    uint16_t head;
    if (!peek(queue, &head))
        return false; /* no buffer: the frame stays in the wire */
    long size = (long)read(backend->wire, bytes + HEADER, FRAME);
    if (size <= 0)
        return false;
    size += HEADER;
    if (copy_chain(backend, queue, head, bytes, (uint32_t)size, true) != size)
        return give_up(queue);
    put_used(backend, queue, head, (uint32_t)size);
    return true;
}

/* Moves a batch through one queue; then calls the driver, once, if it wants to be called. We look
   whether there was a kick or not: frames come from the wire as well, and a queue that was just
   started may hold what was added, and kicked for, long before. */
static int work(memory_backend *backend, memory_queue *queue,
                bool (*move)(memory_backend *, memory_queue *))
{
    int moved = 0;
    take_kick(queue);
    while (moved < BATCH && move(backend, queue))
        moved++;
    if (moved > 0) {
        __atomic_thread_fence(__ATOMIC_SEQ_CST); /* the used index before the flags */
        uint16_t flags = __atomic_load_n(&queue->available->flags, __ATOMIC_RELAXED);
        if ((le16toh(flags) & RING_NO_INTERRUPT) == 0)
            notify(queue->call);
    }
    return moved;
}

int memory_backend_poll(memory_backend *backend)
{
    return work(backend, &backend->queues[0], receive_frame) +
           work(backend, &backend->queues[1], transmit_frame);
}

/* ---- what vhost.h calls: what each has to do is said at vhost_backend_ops ---- */

/* vhost_device_init: who we are, and what we have. */
static int be_open(void *backend, vhost_device *device, vhost_facts *facts)
{
    (void)backend;
    (void)device;
    *facts = (vhost_facts){.name = "memory", .profile = VHOST_PROFILE_BY_HOST, .max_queues = 2};
    facts->max_regions = MEMORY_BACKEND_REGIONS;
    facts->log_kind = VHOST_DIRTY_PRIVATE;
    vhost_features_set(&facts->offered, VHOST_FEATURE_VERSION_1);
    vhost_features_set(&facts->offered, VHOST_FEATURE_LOG_ALL);
    for (unsigned bit = 24; bit <= 41; bit++) /* rings and transport are ours to offer */
        vhost_features_set(&facts->its_bits, bit);
    return 0;
}

/* The device is given up: nothing of the guest may be touched from now on. */
static void be_sever(void *backend)
{
    *(memory_backend *)backend = (memory_backend){.wire = ((memory_backend *)backend)->wire};
}

static int be_set_features(void *backend, const vhost_features *features)
{
    ((memory_backend *)backend)->logs = vhost_features_test(features, VHOST_FEATURE_LOG_ALL);
    return vhost_features_test(features, VHOST_FEATURE_VERSION_1) ? 0 : -ENOTSUP;
}

/* Never more regions than be_open said. What is added and removed is told as well; the whole new
   table is simpler. */
static int be_set_table(void *backend, const vhost_table_change *change)
{
    memory_backend *it = backend;
    it->region_count = change->to->count;
    for (uint32_t i = 0; i < it->region_count; i++)
        it->regions[i] = change->to->regions[i];
    return 0;
}

/* It has a bit for every page of the table, and is there before anything is to be logged. */
static int be_set_log(void *backend, const vhost_log_memory *memory)
{
    ((memory_backend *)backend)->log = memory->base;
    return 0;
}

static int be_set_ring_call(void *backend, uint32_t queue, int fd)
{
    ((memory_backend *)backend)->queues[queue].call = fd;
    return 0;
}

static int be_set_ring_error(void *backend, uint32_t queue, int fd)
{
    ((memory_backend *)backend)->queues[queue].error = fd;
    return 0;
}

static int be_set_ring_kick(void *backend, uint32_t queue, int fd)
{
    ((memory_backend *)backend)->queues[queue].kick = fd;
    return 0;
}

static int be_set_ring_size(void *backend, uint32_t queue, uint32_t size)
{
    ((memory_backend *)backend)->queues[queue].size = size;
    return 0;
}

static int be_set_ring_base(void *backend, uint32_t queue, uint32_t base)
{
    ((memory_backend *)backend)->queues[queue].next = (uint16_t)base;
    return 0;
}

/* The parts are checked and mapped for us. */
static int be_set_ring_addresses(void *backend, uint32_t queue, const vhost_ring_addresses *rings)
{
    memory_queue *it = &((memory_backend *)backend)->queues[queue];
    it->descriptors = rings->part[VHOST_DESC].host;
    it->available = rings->part[VHOST_AVAIL].host;
    it->used = rings->part[VHOST_USED].host;
    it->used_gpa = rings->part[VHOST_USED].gpa;
    it->logs_used = rings->log;
    return 0;
}

/* The last call of a start, and the first of a stop: what runs between is ours. */
static int be_enable_ring(void *backend, uint32_t queue, bool on)
{
    ((memory_backend *)backend)->queues[queue].enabled = on;
    return 0;
}

/* Where to go on after a stop. Nothing is in flight here: else it would have to end first. */
static int be_get_ring_base(void *backend, uint32_t queue, vhost_ring_base *base)
{
    base->value = ((memory_backend *)backend)->queues[queue].next;
    base->answered = true;
    return 0;
}

const vhost_backend_ops *memory_backend_ops(void)
{
    static const vhost_backend_ops ops = {
        /* What is not here is not supported. */
        .open = be_open,
        .sever = be_sever,
        .set_features = be_set_features,
        .set_table = be_set_table,
        .set_log = be_set_log,
        .set_ring_call = be_set_ring_call,
        .set_ring_error = be_set_ring_error,
        .set_ring_size = be_set_ring_size,
        .set_ring_base = be_set_ring_base,
        .set_ring_addresses = be_set_ring_addresses,
        .set_ring_kick = be_set_ring_kick,
        .enable_ring = be_enable_ring,
        .get_ring_base = be_get_ring_base,
    };
    return &ops;
}
