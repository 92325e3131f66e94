/* guest.c - the guest: drivers of its devices, and what it does with them
   SPDX-License-Identifier: MIT OR Unlicense */
#define _GNU_SOURCE
#include "guest.h"

#include "examples/common/clock.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#define KIB UINT64_C(1024)

enum {
    DOORBELLS = 500 /* from here on are the fds of notifiers */
};

/* Gives a notifier a number that nothing else has, here and on the other machine. */
static int fix_number(int *fd)
{
    int fixed = fcntl(*fd, F_DUPFD_CLOEXEC, DOORBELLS);
    if (fixed < 0)
        return -errno;
    close(*fd);
    *fd = fixed;
    return 0;
}

static void describe(const split_ring *ring, int kick, int call, vhost_queue *queue)
{
    queue->ready = true;
    queue->size = ring->size;
    queue->desc = ring->descriptors_gpa;
    queue->avail = ring->available_gpa;
    queue->used = ring->used_gpa;
    queue->kick_fd = kick;
    queue->call_fd = call;
}

/* ---- a disk ---------------------------------------------------------------------------------- */

#define CACHE_EVERY 0.001 /* seconds */

enum {
    CACHE_PIECES = 128,
    CACHE = CACHE_PIECES * DISK_LOAD_BLOCK /* bytes of each piece of memory that is one */
};

static guest_piece piece_of(const guest_cache *cache, uint32_t index)
{
    uint64_t at = (uint64_t)index * DISK_LOAD_BLOCK;
    return (guest_piece){cache->first.memory + at, cache->first.gpa + at};
}

static int boot_disk(const guest_place *place)
{
    guest_disk *disk = (guest_disk *)(void *)(place->ram->view + place->gpa);
    uint64_t gpa = place->gpa + GUEST_DRIVER, cache = gpa + BLK_QUEUE_BYTES;
    int code = blk_driver_open(&disk->driver, place->ram->view + gpa, gpa, 1);
    if (code == 0)
        code = fix_number(&disk->driver.queues[0].kick);
    if (code == 0)
        code = fix_number(&disk->driver.queues[0].call);
    disk_load_init(&disk->load, &disk->driver, place->seed, DISK_LOAD_BLOCKS, BLK_DEPTH);
    disk->cache = (guest_cache){.first = {place->ram->view + cache, cache}};
    disk->cache.before = piece_of(&disk->cache, CACHE_PIECES - 1);
    return code;
}

static void use_plugged_for_disk(void *driver, uint8_t *memory, uint64_t gpa)
{
    guest_disk *disk = driver;
    guest_piece before = piece_of(&disk->cache, CACHE_PIECES - 1);
    disk->cache = (guest_cache){.before = before, .first = {memory, gpa}};
}

static void read_ahead(guest_disk *disk)
{
    guest_cache *cache = &disk->cache;
    uint32_t turn = cache->reads % 3, others = CACHE_PIECES - 2;
    guest_piece into = turn == 0   ? cache->first
                       : turn == 1 ? cache->before
                                   : piece_of(cache, 1 + cache->reads / 3 % others);
    double now = clock_now();
    if (now < cache->due || !disk_load_read(&disk->load, 0, into.memory, into.gpa))
        return;
    cache->reads++;
    cache->due = now + CACHE_EVERY;
}

static void work_disk(void *driver, uint32_t most)
{
    guest_disk *disk = driver;
    if (blk_driver_called(&disk->driver, 0))
        disk_load_take(&disk->load);
    if (most > 0)
        read_ahead(disk);
    disk_load_feed(&disk->load, most);
}

static uint32_t disk_waiting(const void *driver)
{
    const guest_disk *disk = driver;
    return disk_load_in_flight(&disk->load);
}

static uint64_t disk_done(const void *driver)
{
    const guest_disk *disk = driver;
    return disk->load.done;
}

static const char *disk_fault(const void *driver)
{
    const guest_disk *disk = driver;
    return disk->load.fault != NULL ? disk->load.fault : disk->driver.fault;
}

static void describe_disk(const void *driver, uint32_t index, vhost_queue *queue)
{
    const guest_disk *disk = driver;
    const blk_queue *from = &disk->driver.queues[index];
    describe(&from->ring, from->kick, from->call, queue);
}

const guest_driver guest_disk_driver = {
    .window = GUEST_DRIVER + BLK_QUEUE_BYTES + CACHE,
    .cache = CACHE,
    .queues = 1,
    .boot = boot_disk,
    .work = work_disk,
    .use_plugged = use_plugged_for_disk,
    .waiting = disk_waiting,
    .done = disk_done,
    .fault = disk_fault,
    .describe = describe_disk,
};

/* ---- network cards --------------------------------------------------------------------------- */

enum {
    CARD_BUFFERS = NET_RING_SIZE * NET_BUFFER, /* bytes, of each ring */
    CARD_RINGS = 32 * 1024                     /* bytes: both rings, and the header of frames */
};

static int boot_card(const guest_place *place, net_answer answer)
{
    static const station me = {{2, 0, 0, 0, 0, 1}, {10, 0, 0, 1}};
    guest_card *card = (guest_card *)(void *)(place->ram->view + place->gpa);
    uint64_t gpa = place->gpa + GUEST_DRIVER;
    net_layout layout = {
        .ring = {gpa + 4 * KIB, gpa + 16 * KIB},
        .buffers = {gpa + CARD_RINGS, gpa + CARD_RINGS + CARD_BUFFERS},
        .header = gpa,
    };
    int code = net_driver_open(&card->driver, place->ram->view, &layout);
    for (int i = 0; i < 2 && code == 0; i++) {
        code = fix_number(&card->driver.kick[i]);
        if (code == 0)
            code = fix_number(&card->driver.call[i]);
    }
    net_load_init(&card->load, &card->driver, answer, &me, place->other, NET_LOAD_WINDOW);
    return code;
}

static int boot_ping(const guest_place *place)
{
    return boot_card(place, NET_ANSWER_PING);
}

static int boot_swap(const guest_place *place)
{
    return boot_card(place, NET_ANSWER_SWAP);
}

static void work_card(void *driver, uint32_t most)
{
    guest_card *card = driver;
    bool received = net_driver_called(&card->driver, NET_RECEIVE);
    bool transmitted = net_driver_called(&card->driver, NET_TRANSMIT);
    if (received || transmitted)
        net_load_take(&card->load);
    net_load_feed(&card->load, most);
}

static uint32_t card_waiting(const void *driver)
{
    const guest_card *card = driver;
    return net_load_waiting(&card->load);
}

static uint64_t card_done(const void *driver)
{
    const guest_card *card = driver;
    return card->load.answered;
}

static const char *card_fault(const void *driver)
{
    const guest_card *card = driver;
    return card->load.fault != NULL ? card->load.fault : card->driver.fault;
}

static void describe_card(const void *driver, uint32_t index, vhost_queue *queue)
{
    const guest_card *card = driver;
    describe(&card->driver.ring[index], card->driver.kick[index], card->driver.call[index], queue);
}

#define CARD(how)                                                                                  \
    {                                                                                              \
        .window = GUEST_DRIVER + CARD_RINGS + 2 * CARD_BUFFERS, .queues = 2, .boot = how,          \
        .work = work_card, .waiting = card_waiting, .done = card_done, .fault = card_fault,        \
        .describe = describe_card,                                                                 \
    }

const guest_driver guest_ping_driver = CARD(boot_ping);
const guest_driver guest_swap_driver = CARD(boot_swap);
