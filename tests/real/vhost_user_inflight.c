/* Requests in flight survive their back-end: DPDK's vhost_blk, killed again and again under load.

   Its disk is memory of its own, so it is empty after each death: what was read is compared within
   one life. Of a life before it, what counts is that each request comes back, and only once.

   backends: dpdk_blk */
#define _GNU_SOURCE
#include "clock.h"
#include "packed_ring.h"
#include "user_machine.h"

#include <endian.h>
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define SECTOR   512u
#define BUFFER   (512u << 10) /* large: requests take their time */
#define SLOTS    48u
#define HEADERS  UINT64_C(0x4000) /* gpas; the ring is at 0 */
#define STATUSES UINT64_C(0x8000)
#define BUFFERS  UINT64_C(0x10000)
#define MEMORY   (BUFFERS + SLOTS * BUFFER)

enum {
    RING_SIZE = 256,
    DEATHS = 3,       /* of each kind of ring: a connection takes DPDK a second */
    NO_STATUS = 0xff, /* 0 is success */
    NO_DATA = 0x5a
};

/* Each slot has its own piece of the disk. */
typedef struct slot {
    bool busy, writes;
    uint32_t size;
    uint8_t pattern; /* of its piece of the disk, in this life; 0: never written */
} slot;

typedef struct disk {
    user_machine *m;
    bool packed;
    split_ring split;
    packed_ring pack;
    slot slots[SLOTS];
    uint32_t random;
    unsigned busy, done;
    unsigned in_flight; /* by the record of the back-end, at each of its deaths */
} disk;

static disk d;

/* Not of great quality, but the same each time. */
static uint32_t next_random(uint32_t below)
{
    d.random = d.random * 1664525u + 1013904223u;
    return (d.random >> 8) % below;
}

/* ---- requests ---- */

static void submit(unsigned index, bool writes)
{
    struct {
        uint32_t verb, reserved;
        uint64_t sector;
    } header = {htole32(writes), 0, htole64(index * (BUFFER / SECTOR))};
    slot *s = &d.slots[index];
    uint8_t *data = d.m->ram + BUFFERS + index * BUFFER;
    s->busy = true;
    s->writes = writes;
    s->size = writes ? BUFFER : SECTOR * (1 + next_random(BUFFER / SECTOR));
    s->pattern = writes ? (uint8_t)(1 + next_random(0x50)) : s->pattern;
    ring_piece pieces[3] = {{HEADERS + index * sizeof header, sizeof header, false},
                            {BUFFERS + index * BUFFER, s->size, !writes},
                            {STATUSES + index, 1, true}};
    memcpy(d.m->ram + pieces[0].gpa, &header, sizeof header);
    memset(data, writes ? s->pattern : NO_DATA, s->size);
    d.m->ram[STATUSES + index] = NO_STATUS;
    (void)(d.packed ? packed_ring_add(&d.pack, pieces, 3, (uint16_t)index)
                    : split_ring_add(&d.split, pieces, 3, (uint16_t)index));
    d.busy++;
}

static bool is_filled(const uint8_t *bytes, uint32_t size, uint8_t with)
{
    return bytes[0] == with && memcmp(bytes, bytes + 1, size - 1) == 0;
}

/* Came back once, with an answer. */
static enum greatest_test_res take(unsigned index)
{
    slot *s = &d.slots[index];
    ASSERT(index < SLOTS && s->busy);
    ASSERT_INT(0, d.m->ram[STATUSES + index]);
    if (!s->writes) {
        ASSERT(is_filled(d.m->ram + BUFFERS + index * BUFFER, s->size, s->pattern));
    }
    s->busy = false;
    d.busy--;
    d.done++;
    PASS();
}

static enum greatest_test_res take_all(void)
{
    uint16_t index;
    uint32_t length;
    while (d.packed ? packed_ring_collect(&d.pack, &index, &length)
                    : split_ring_collect(&d.split, &index, &length)) {
        CHECK_CALL(take(index));
    }
    if (d.split.broken || d.pack.broken) {
        FAILm("a request came back twice");
    }
    PASS();
}

static void fill(void)
{
    for (unsigned i = 0; i < SLOTS; i++) {
        unsigned index = (i + d.random) % SLOTS;
        if (!d.slots[index].busy) {
            submit(index, next_random(3) > 0 || d.slots[index].pattern == 0);
        }
    }
}

static void kick(const user_machine *m)
{
    uint64_t one = 1;
    (void)!write(m->queue[0].kick_fd, &one, sizeof one);
}

static enum greatest_test_res keep_working(user_machine *m, unsigned requests)
{
    double end = clock_now() + USER_PATIENCE / 1e3;
    for (unsigned last = d.done + requests; d.done < last;) {
        fill();
        kick(m);
        CHECK_CALL(take_all());
        user_machine_turn(m, 1);
        ASSERTm("a request was lost", clock_now() < end);
    }
    PASS();
}

/* All come back, and then nothing more. */
static enum greatest_test_res finish(user_machine *m)
{
    double end = clock_now() + USER_PATIENCE / 1e3;
    while (d.busy > 0) {
        user_machine_turn(m, 1);
        CHECK_CALL(take_all());
        ASSERTm("a request was lost", clock_now() < end);
    }
    end = clock_now() + 0.01;
    while (clock_now() < end) {
        user_machine_turn(m, 1);
        CHECK_CALL(take_all());
    }
    PASS();
}

/* ---- the device ---- */

/* Rings of zeros. */
static void open_driver(user_machine *m, bool packed)
{
    memset(&d, 0, sizeof d);
    d.m = m;
    d.packed = packed;
    if (packed) {
        packed_ring_init(&d.pack, RING_SIZE, m->ram, 0);
    } else {
        split_ring_init(&d.split, RING_SIZE, m->ram, 0);
    }
}

static void fill_queue(vhost_queue *queue)
{
    queue->ready = true;
    queue->size = RING_SIZE;
    queue->desc = d.packed ? d.pack.descriptors_gpa : d.split.descriptors_gpa;
    queue->avail = d.packed ? d.pack.driver_gpa : d.split.available_gpa;
    queue->used = d.packed ? d.pack.device_gpa : d.split.used_gpa;
    queue->kick_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    queue->call_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
}

static enum greatest_test_res attach(user_machine *m)
{
    m->user_options.retry_ms = 5;
    m->user_options.retry_max_ms = 20;
    if (d.packed) {
        vhost_features_set(&m->wanted, VHOST_FEATURE_RING_PACKED);
    }
    ASSERT_OK(user_machine_attach(m, 1));
    ASSERT(m->link.protocol >> VHOST_USER_BIT_INFLIGHT & 1);
    ASSERT_EQ(d.packed, vhost_features_test(&m->device.acked, VHOST_FEATURE_RING_PACKED));
    fill_queue(&m->queue[0]);
    PASS();
}

static void detach(user_machine *m)
{
    int kick_fd = m->queue[0].kick_fd, call_fd = m->queue[0].call_fd;
    user_machine_detach(m);
    close(kick_fd);
    close(call_fd);
}

static enum greatest_test_res running(user_machine *m, bool packed)
{
    ASSERT(real_backend_start(&m->peer, "dpdk_blk", ""));
    ASSERT_OK(user_machine_plug(m, 0, 0, MEMORY));
    open_driver(m, packed);
    CHECK_CALL(attach(m));
    ASSERT_OK(vhost_device_start(&m->device));
    PASS();
}

/* ---- its deaths ---- */

/* What the back-end was at, as it wrote it down. The layout is that of the specification. */
static unsigned count_in_flight(user_machine *m)
{
    static uint8_t saved[1 << 20];
    const uint8_t *record = saved + 24;
    unsigned count = 0, head = d.packed ? 32 : 16, entry = d.packed ? 32 : 16;
    size_t size = vhost_user_inflight_size(&m->link);
    if (size == 0 || size > sizeof saved || vhost_user_save_inflight(&m->link, saved, size) != 0) {
        return 0;
    }
    for (unsigned i = 0; i < RING_SIZE; i++) {
        count += record[head + i * entry] == 1;
    }
    return count;
}

/* After all that was used is taken: there the back-end was, by its record. */
static enum greatest_test_res position_is_certain(const user_machine *m)
{
    const vhost_position *position = &m->queue[0].position;
    ASSERT_INT(VHOST_POSITION_CERTAIN, position->state);
    ASSERT_UINT(d.packed ? d.pack.used : d.split.collected, position->used);
    ASSERT_UINT(position->used, position->avail);
    PASS();
}

/* Whether the device is to call. If it is not, it spends its time with requests in flight. */
static void want_calls(bool wanted)
{
    if (d.packed) {
        __atomic_store_n(&d.pack.driver->flags, htole16(wanted ? 0 : PACKED_RING_NO_EVENT),
                         __ATOMIC_SEQ_CST);
    } else {
        __atomic_store_n(&d.split.available->flags, htole16(wanted ? 0 : RING_NO_INTERRUPT),
                         __ATOMIC_SEQ_CST);
    }
}

/* Takes so many without ever sleeping. */
static enum greatest_test_res spin(unsigned requests)
{
    double end = clock_now() + 0.1;
    for (unsigned last = d.done + requests; d.done < last && clock_now() < end;) {
        CHECK_CALL(take_all());
    }
    PASS();
}

/* Requests are in the ring, and some of them are being done. */
static enum greatest_test_res dies(user_machine *m)
{
    CHECK_CALL(keep_working(m, 50 + next_random(150)));
    want_calls(false);
    fill();
    kick(m);
    CHECK_CALL(spin(next_random(SLOTS)));
    real_backend_end(&m->peer, SIGKILL);
    want_calls(true);
    double end = clock_now() + USER_PATIENCE / 1e3;
    for (unsigned before = m->broken; m->broken == before;) {
        user_machine_turn(m, 100);
        ASSERTm("nobody noticed", clock_now() < end);
    }
    CHECK_CALL(take_all());
    for (unsigned i = 0; i < SLOTS; i++) { /* its disk is gone */
        d.slots[i].pattern = d.slots[i].busy && d.slots[i].writes ? d.slots[i].pattern : 0;
    }
    d.in_flight += count_in_flight(m);
    return position_is_certain(m);
}

static enum greatest_test_res comes_back(user_machine *m)
{
    unsigned before = m->returns;
    double end = clock_now() + USER_PATIENCE / 1e3;
    ASSERT(real_backend_start(&m->peer, "dpdk_blk", ""));
    while (m->returns == before) {
        user_machine_turn(m, 100);
        ASSERTm("it did not come back", clock_now() < end);
    }
    ASSERT_INT(VHOST_STATE_RUNNING, m->device.state);
    ASSERT_UINT(0, m->refusals);
    PASS();
}

/* Where the driver is. */
static enum greatest_test_res stops(user_machine *m)
{
    ASSERT_OK(vhost_device_stop(&m->device));
    ASSERT_INT(VHOST_POSITION_CERTAIN, m->queue[0].position.state);
    ASSERT_UINT(d.packed ? d.pack.next : d.split.added, m->queue[0].position.avail);
    ASSERT_UINT(d.packed ? d.pack.used : d.split.collected, m->queue[0].position.used);
    PASS();
}

static enum greatest_test_res dies_often(user_machine *m, bool packed)
{
    CHECK_CALL(running(m, packed));
    d.random = 12345;
    for (unsigned i = 0; i < DEATHS; i++) {
        CHECK_CALL(dies(m));
        fill(); /* while nobody is there */
        CHECK_CALL(comes_back(m));
        CHECK_CALL(finish(m));
        CHECK_CALL(keep_working(m, 100));
    }
    CHECK_CALL(finish(m));
    CHECK_CALL(stops(m));
    printf("%s ring, %d deaths: %u requests came back once each; in flight at a death: %u\n",
           packed ? "packed" : "split", DEATHS, d.done, d.in_flight);
    detach(m);
    PASS();
}

TEST a_split_ring_survives(user_machine *m)
{
    return dies_often(m, false);
}

TEST a_packed_ring_survives(user_machine *m)
{
    return dies_often(m, true);
}

/* ---- migration, from one dead back-end to another one ---- */

static enum greatest_test_res moves(user_machine *m, bool packed)
{
    static uint8_t saved[1 << 20];
    CHECK_CALL(running(m, packed));
    d.random = 54321;
    CHECK_CALL(dies(m));
    vhost_position position = m->queue[0].position;
    size_t size = vhost_user_inflight_size(&m->link);
    ASSERT(size > 0 && size <= sizeof saved);
    ASSERT_OK(vhost_user_save_inflight(&m->link, saved, size));
    detach(m);
    ASSERT(real_backend_start(&m->peer, "dpdk_blk", ""));
    CHECK_CALL(attach(m));
    ASSERT_OK(vhost_user_load_inflight(&m->link, saved, size));
    m->queue[0].position = position;
    ASSERT_OK(vhost_device_start(&m->device));
    CHECK_CALL(finish(m));
    CHECK_CALL(keep_working(m, 100));
    CHECK_CALL(finish(m));
    CHECK_CALL(stops(m));
    detach(m);
    PASS();
}

TEST a_split_ring_moves_with_its_record(user_machine *m)
{
    return moves(m, false);
}

TEST a_packed_ring_moves_with_its_record(user_machine *m)
{
    return moves(m, true);
}

SUITE(inflight)
{
    RUN_USER(a_split_ring_survives);
    RUN_USER(a_packed_ring_survives);
    RUN_USER(a_split_ring_moves_with_its_record);
    RUN_USER(a_packed_ring_moves_with_its_record);
}

GREATEST_MAIN_DEFS();

int main(int argc, char **argv)
{
    GREATEST_MAIN_BEGIN();
    RUN_SUITE(inflight);
    GREATEST_MAIN_END();
}
