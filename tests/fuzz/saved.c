/* The record of requests in flight, which a back-end writes as it likes, and which comes back from
   a migration stream as it likes: saved, loaded, handed over, and read to learn where the rings of
   a back-end that died stood.

   Nothing is taken for a position that cannot be one, and what is saved can be loaded again. */
#define _POSIX_C_SOURCE 200809L

#include "fuzz.h"
#include "user_calls.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

enum {
    STEPS = 12,
    QUEUES = 2,
    SIZE = 16,    /* descriptors, as peer_fill has it */
    RECORD = 512, /* bytes of a queue */
    HEAD = 24,    /* of what is saved */
    SAVED = HEAD + QUEUES * RECORD
};

static dice *the_chance;
static uint8_t record[QUEUES * RECORD];
static uint8_t saved[SAVED];

static uint64_t roll(uint64_t sides)
{
    return dice_roll(the_chance, sides);
}

/* Bytes where the specification has something, of which the first eight are features. */
static void scribble(uint8_t *bytes, size_t size)
{
    for (uint64_t count = roll(8); count > 0; count--) {
        size_t at = (size_t)roll(size < 64 || roll(2) ? size : 64);
        uint64_t value = fuzz_number(the_chance);
        memcpy(bytes + at, &value, size - at < 2 ? 1 : 2);
    }
}

static void make_record(peer *self)
{
    uint16_t version = 1;
    memset(record, 0, sizeof record);
    for (size_t q = 0; q < QUEUES; q++) {
        scribble(record + q * RECORD, RECORD);
        if (roll(8) != 7) {
            memcpy(record + q * RECORD + 8, &version, sizeof version);
        }
    }
    self->record = record;
    self->record_size = roll(8) == 7 ? roll(RECORD + 1) : RECORD;
    self->record_offset = roll(8) == 7 ? VHOST_PAGE * roll(4) : 0;
    self->record_file = roll(8) == 7 ? roll(4096) : 0;
}

static void write_record(peer_bench *b)
{
    scribble(record, RECORD);
    scribble(record + RECORD, RECORD);
    if (b->peer.record_fd >= 0) {
        (void)!pwrite(b->peer.record_fd, record, sizeof record, (off_t)b->peer.record_offset);
    }
}

static void scribble_rings(peer_bench *b)
{
    for (int q = 0; q < QUEUES; q++) {
        unsigned char *at = b->f->host + b->queue[q].desc;
        scribble(at, 16 * SIZE);
        fixture_put_used(&b->f->vm, &b->queue[q], (uint16_t)roll(65536));
        fixture_put_available(&b->f->vm, &b->queue[q], (uint16_t)roll(65536));
    }
}

static enum greatest_test_res check_positions(const peer_bench *b)
{
    bool packed = vhost_features_test(&b->device.acked, VHOST_FEATURE_RING_PACKED);
    for (int q = 0; q < QUEUES && packed; q++) {
        const vhost_position *position = &b->queue[q].position;
        if (position->state != VHOST_POSITION_INITIAL) {
            ASSERT((position->avail & 0x7fff) < SIZE);
            ASSERT((position->used & 0x7fff) < SIZE);
        }
    }
    PASS();
}

static int die(peer_bench *b)
{
    peer_leave(&b->peer);
    (void)vhost_user_process(&b->user);
    for (int q = 0; q < QUEUES; q++) {
        if (b->queue[q].position.state == VHOST_POSITION_GUESSED) {
            b->queue[q].position.state = VHOST_POSITION_CERTAIN;
        }
    }
    int fd = peer_connect(&b->peer);
    if (vhost_user_reopen(&b->user, fd) < 0) {
        close(fd);
    }
    return vhost_device_recover(&b->device);
}

/* What was saved a moment ago is what is loaded, unless somebody changed it. */
static enum greatest_test_res save_and_load(peer_bench *b)
{
    uint8_t again[SAVED];
    size_t size = vhost_user_inflight_size(&b->user);
    bool fits = size > 0 && size <= SAVED;
    if (!fits || vhost_user_save_inflight(&b->user, saved, size) < 0) {
        PASS();
    }
    if (roll(2)) {
        scribble(saved, roll(2) ? HEAD : size);
        (void)vhost_user_load_inflight(&b->user, saved, roll(4) == 3 ? (size_t)roll(size) : size);
        PASS();
    }
    ASSERT_INT(b->device.state == VHOST_STATE_STOPPED ? 0 : -EBUSY,
               vhost_user_load_inflight(&b->user, saved, size));
    ASSERT_UINT(size, vhost_user_inflight_size(&b->user));
    ASSERT_OK(vhost_user_save_inflight(&b->user, again, size));
    ASSERT_MEM_EQ(saved, again, size);
    PASS();
}

static enum greatest_test_res step(peer_bench *b)
{
    int code = 0;
    uint64_t what = roll(6);
    switch (what) {
    case 0:
        code = die(b);
        break;
    case 1:
        write_record(b);
        break;
    case 2:
        scribble_rings(b);
        break;
    case 3:
        CHECK_CALL(save_and_load(b));
        break;
    case 4:
        code = vhost_device_stop(&b->device);
        break;
    default:
        code = vhost_device_start(&b->device);
        break;
    }
    fuzz_note("step %u: %d; state %d\n", (unsigned)what, code, (int)b->device.state);
    CHECK_CALL(check_positions(b));
    return peer_check_state(b);
}

static enum greatest_test_res run(peer_bench *b)
{
    uint64_t in_order = roll(2) << VHOST_FEATURE_IN_ORDER;
    uint64_t packed = roll(2) << VHOST_FEATURE_RING_PACKED;
    b->peer.features |= in_order | packed;
    b->accepted.word[0] |= in_order | packed;
    b->peer.tick = 1;
    make_record(&b->peer);
    (void)peer_running(b, QUEUES);
    for (int i = 0; i < STEPS && !dice_ended(the_chance); i++) {
        CHECK_CALL(step(b));
    }
    PASS();
}

enum greatest_test_res fuzz_once(dice *chance)
{
    the_chance = chance;
    return peer_run(run);
}
