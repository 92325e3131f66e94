/* Random lives of three devices: any call at any time, under a guest that moves its memory, and
   back-ends that refuse and die. After every step all that the manual promises must hold. */
#include "fixture.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PAGE VHOST_PAGE

enum {
    ROUNDS = 300,
    STEPS = 60
};

/* What the library must know, kept in another way. */
typedef struct life {
    fixture *f;
    uint64_t random;
    uint16_t truth[FIXTURE_DEVICES][FIXTURE_QUEUES]; /* where each ring stands */
    bool called[FIXTURE_DEVICES][FIXTURE_QUEUES];    /* while masked, and not yet told */
    bool faulty[FIXTURE_DEVICES];                    /* its back-end failed since it was mended */
    unsigned d, q;                                   /* of this step */
} life;

static uint64_t roll(life *l, uint64_t sides)
{
    l->random ^= l->random << 13;
    l->random ^= l->random >> 7;
    l->random ^= l->random << 17;
    return (l->random >> 11) % sides;
}

/* ---- steps; each returns what the library did ---- */

static vhost_device *device_of(const life *l)
{
    return &l->f->device[l->d];
}

static vhost_queue *queue_of(const life *l)
{
    return &l->f->queue[l->d][l->q];
}

static mock_backend *mock_of(const life *l)
{
    return &l->f->mock[l->d];
}

/* The driver prepares its rings as far as they are in memory. */
static void write_used(const life *l, unsigned q)
{
    const vhost_queue *queue = &l->f->queue[l->d][q];
    vhost_extent extent;
    if (vhost_memory_find(&l->f->vm, queue->used + 2, &extent) == 0 && extent.size >= 2) {
        unsigned char *index = (unsigned char *)extent.host;
        index[0] = (unsigned char)l->truth[l->d][q];
        index[1] = (unsigned char)(l->truth[l->d][q] >> 8);
    }
}

/* A VMM that knows its device takes a guess, and here even knows the truth. */
static void know_positions(life *l)
{
    for (unsigned q = 0; q < FIXTURE_QUEUES; q++) {
        vhost_position *position = &l->f->queue[l->d][q].position;
        if (!l->f->queue[l->d][q].started && position->state == VHOST_POSITION_GUESSED) {
            position->state = VHOST_POSITION_CERTAIN;
            position->avail = l->truth[l->d][q];
        }
        if (!l->f->queue[l->d][q].started) {
            write_used(l, q);
        }
    }
}

static int step_attach(life *l)
{
    if (device_of(l)->state != VHOST_STATE_CLOSED) {
        return 0;
    }
    memset(l->called[l->d], 0, sizeof l->called[l->d]);
    return fixture_attach(l->f, l->d);
}

static int step_cleanup(life *l)
{
    if (roll(l, 4) == 0) {
        vhost_device_cleanup(device_of(l));
    }
    return 0;
}

static int step_fill(life *l)
{
    if (device_of(l)->state == VHOST_STATE_STOPPED) {
        fixture_fill(l->f, l->d);
        queue_of(l)->ready = roll(l, 4) != 0;
    }
    return 0;
}

static int step_ack(life *l)
{
    vhost_features accepted = l->f->accepted;
    if (roll(l, 2)) {
        vhost_features_set(&accepted, VHOST_FEATURE_IN_ORDER);
    }
    return vhost_device_ack(device_of(l), accepted);
}

static int step_start(life *l)
{
    if (vhost_features_test(&device_of(l)->acked, VHOST_FEATURE_VERSION_1)) {
        know_positions(l);
        return vhost_device_start(device_of(l));
    }
    return 0;
}

static int step_stop(life *l)
{
    int result = vhost_device_stop(device_of(l));
    return device_of(l)->state == VHOST_STATE_BROKEN && !l->faulty[l->d] ? 0 : result;
}

static int step_reset(life *l)
{
    int result = vhost_device_reset(device_of(l));
    if (result == 0) {
        memset(l->truth[l->d], 0, sizeof l->truth[l->d]);
        memset(l->called[l->d], 0, sizeof l->called[l->d]);
    }
    return result;
}

static int step_queue_start(life *l)
{
    know_positions(l);
    return vhost_queue_start(device_of(l), l->q);
}

static int step_queue_stop(life *l)
{
    return vhost_queue_stop(device_of(l), l->q);
}

static int step_mask(life *l)
{
    return vhost_queue_mask(device_of(l), l->q);
}

static int step_advance(life *l)
{
    if (mock_ring_runs(mock_of(l), l->q)) {
        mock_advance(mock_of(l), l->q, 1 + (unsigned)roll(l, 40000));
    }
    return 0;
}

static int step_break_back_end(life *l)
{
    l->faulty[l->d] = true;
    if (roll(l, 3) == 0) {
        mock_die(mock_of(l));
    } else {
        vhost_op op = (vhost_op)(1 + roll(l, VHOST_OP_COUNT - 1));
        mock_refuse(mock_of(l), op, roll(l, 2) ? -1 : (int)l->q, -EPERM);
    }
    return 0;
}

static int step_mend_back_end(life *l)
{
    mock_revive(mock_of(l));
    l->faulty[l->d] = false;
    return 0;
}

static int step_config(life *l)
{
    unsigned char bytes[4];
    return vhost_device_get_config(device_of(l), (uint32_t)roll(l, 4), bytes, sizeof bytes);
}

static int step_process(life *l)
{
    return vhost_device_process(device_of(l));
}

typedef int life_step(life *l);

static life_step *const steps[] = {
    step_attach,        step_attach,        step_cleanup, step_fill,        step_fill,
    step_ack,           step_ack,           step_start,   step_start,       step_start,
    step_stop,          step_reset,         step_reset,   step_queue_start, step_queue_stop,
    step_mask,          step_advance,       step_advance, step_advance,     step_break_back_end,
    step_mend_back_end, step_mend_back_end, step_config,  step_process};

/* ---- memory that moves ---- */

/* The default map, with a hole, other memory, or other flags at [first, first + count). */
static size_t random_map(life *l, vhost_section *sections)
{
    static const uint32_t flags[] = {
        0, VHOST_SECTION_ROM, VHOST_SECTION_DIRTY_TRACKED, VHOST_SECTION_UNMERGEABLE, 0, 0};
    uint64_t first = 1 + roll(l, 60), count = 1 + roll(l, 3), kind = roll(l, 6);
    bool absent = kind == 4, elsewhere = kind == 5;
    size_t n = 0;
    if (roll(l, 2)) {
        sections[n++] = l->f->low;
    } else {
        sections[n++] = fixture_section(l->f, 0, first, 0);
        sections[n] = fixture_section(l->f, first * PAGE, count, first + (elsewhere ? 128 : 0));
        sections[n].flags = flags[kind];
        n += !absent;
        sections[n++] =
            fixture_section(l->f, (first + count) * PAGE, 128 - first - count, first + count);
    }
    if (roll(l, 3)) {
        sections[n++] = fixture_section(l->f, FIXTURE_HIGH, 1 + roll(l, 3), 250);
    }
    return n;
}

typedef struct lived {
    vhost_state state;
    bool started[FIXTURE_QUEUES];
    mock_ring ring[FIXTURE_QUEUES];
} lived;

static lived live_of(const fixture *f, unsigned d)
{
    lived live;
    live.state = f->device[d].state;
    for (unsigned q = 0; q < FIXTURE_QUEUES; q++) {
        live.started[q] = f->queue[d][q].started;
        live.ring[q] = f->mock[d].rings[q];
    }
    return live;
}

static bool ring_stayed(const vhost_vm *vm, const mock_ring *ring)
{
    for (int part = 0; part < 3; part++) {
        const vhost_mapping *mapping = &ring->addresses.part[part];
        vhost_extent extent;
        if (vhost_memory_find(vm, mapping->gpa, &extent) < 0 || extent.host != mapping->host ||
            extent.size < mapping->size || (part == VHOST_USED && !extent.writable)) {
            return false;
        }
    }
    return true;
}

/* Whether every ring that was started is still where it was. */
static bool rings_stayed(const vhost_vm *vm, const lived *before)
{
    for (unsigned q = 0; q < FIXTURE_QUEUES; q++) {
        if (before->started[q] && !ring_stayed(vm, &before->ring[q])) {
            return false;
        }
    }
    return true;
}

/* Commits a random map. A device breaks if it lost a ring, or else if its back-end is faulty. */
static enum greatest_test_res commit_step(life *l)
{
    fixture *f = l->f;
    vhost_section sections[5];
    lived before[FIXTURE_DEVICES];
    for (unsigned d = 0; d < FIXTURE_DEVICES; d++) {
        before[d] = live_of(f, d);
    }
    unsigned errors = f->errors, broken = 0;
    ASSERT_OK(fixture_map(f, sections, random_map(l, sections)));
    for (unsigned d = 0; d < FIXTURE_DEVICES; d++) {
        bool breaks = f->device[d].state != before[d].state;
        bool stayed = rings_stayed(&f->vm, &before[d]);
        ASSERT(!breaks || f->device[d].state == VHOST_STATE_BROKEN);
        ASSERT(!breaks || !stayed || l->faulty[d]);
        ASSERT(breaks || stayed || before[d].state != VHOST_STATE_RUNNING);
        broken += breaks;
    }
    ASSERT_UINT(errors + broken, f->errors);
    PASS();
}

/* ---- calls while masked ---- */

static enum greatest_test_res interrupt_step(life *l)
{
    unsigned before = l->f->calls[l->d][l->q];
    if (!mock_ring_runs(mock_of(l), l->q)) {
        PASS();
    }
    mock_interrupt(mock_of(l), l->q);
    bool delivered = l->f->calls[l->d][l->q] != before;
    ASSERT(delivered || queue_of(l)->masked);
    l->called[l->d][l->q] = l->called[l->d][l->q] || !delivered;
    PASS();
}

static enum greatest_test_res unmask_step(life *l)
{
    bool look_only = roll(l, 2);
    int result = look_only ? vhost_queue_pending(device_of(l), l->q)
                           : vhost_queue_unmask(device_of(l), l->q);
    if (result >= 0) {
        ASSERT_INT(l->called[l->d][l->q], result);
        l->called[l->d][l->q] = false;
    }
    PASS();
}

/* ---- what must hold ---- */

static enum greatest_test_res positions_are_true(const life *l)
{
    for (unsigned d = 0; d < FIXTURE_DEVICES; d++) {
        for (unsigned q = 0; q < FIXTURE_QUEUES; q++) {
            const vhost_queue *queue = &l->f->queue[d][q];
            const vhost_position *position = &queue->position;
            if (queue->started || position->state == VHOST_POSITION_GUESSED) {
                continue;
            }
            ASSERT_UINT(l->truth[d][q],
                        position->state == VHOST_POSITION_INITIAL ? 0 : position->avail);
        }
    }
    PASS();
}

static void learn_truth(life *l)
{
    for (unsigned d = 0; d < FIXTURE_DEVICES; d++) {
        for (unsigned q = 0; q < FIXTURE_QUEUES; q++) {
            l->truth[d][q] = (uint16_t)(l->truth[d][q] + l->f->mock[d].used_up[q]);
            l->f->mock[d].used_up[q] = 0;
        }
    }
}

static enum greatest_test_res plain_step(life *l)
{
    unsigned errors = l->f->errors;
    vhost_state state = device_of(l)->state;
    life_step *step = steps[roll(l, sizeof steps / sizeof *steps)];
    int result = step(l);
    bool told = step == step_stop && state == VHOST_STATE_BROKEN; /* when it broke */
    bool silent = state == VHOST_STATE_CLOSED && step != step_attach;
    bool cleanup = step == step_cleanup; /* says it if it cannot stop */
    if (result < 0 && !told && !silent) {
        ASSERT_UINT(errors + 1, l->f->errors);
        ASSERT_INT(result, device_of(l)->last_error.code);
    } else if (!cleanup) {
        ASSERT_UINT(errors, l->f->errors);
    }
    ASSERT(result >= 0 || l->faulty[l->d] || result != -EPERM);
    PASS();
}

static enum greatest_test_res one_step(life *l)
{
    l->d = (unsigned)roll(l, FIXTURE_DEVICES);
    l->q = (unsigned)roll(l, FIXTURE_QUEUES);
    uint64_t kind = roll(l, 10);
    if (kind == 0) {
        CHECK_CALL(commit_step(l));
    } else if (kind == 1) {
        CHECK_CALL(interrupt_step(l));
    } else if (kind == 2) {
        CHECK_CALL(unmask_step(l));
    } else {
        CHECK_CALL(plain_step(l));
    }
    learn_truth(l);
    CHECK_CALL(positions_are_true(l));
    return fixture_check(l->f);
}

static enum greatest_test_res one_life(life *l, uint64_t seed)
{
    CHECK_CALL(fixture_renew(l->f));
    fixture *f = l->f;
    memset(l, 0, sizeof *l);
    l->f = f;
    l->random = seed * UINT64_C(0x9e3779b97f4a7c15) + 1;
    for (unsigned d = 0; d < FIXTURE_DEVICES; d++) {
        f->mock[d].eager = (unsigned)roll(l, 3);
        fixture_fill(f, d);
    }
    ASSERT_OK(fixture_map_default(f));
    for (int step = 0; step < STEPS; step++) {
        if (one_step(l) != GREATEST_TEST_RES_PASS) {
            fprintf(stderr, "SEED=%llu, step %d of device %u\n", (unsigned long long)seed, step,
                    l->d);
            return GREATEST_TEST_RES_FAIL;
        }
    }
    PASS();
}

TEST random_lives_keep_every_promise(fixture *f)
{
    static life l;
    const char *given = getenv("SEED");
    uint64_t first = given ? strtoull(given, NULL, 0) : 1;
    l.f = f;
    for (uint64_t seed = first; seed < first + ROUNDS; seed++) {
        CHECK_CALL(one_life(&l, seed));
    }
    PASS();
}

/* A device of zeros is CLOSED: it may be asked anything, and does nothing. */
TEST a_device_that_was_never_initialised_refuses(fixture *f)
{
    vhost_device *device = &f->device[1];
    vhost_features none = fixture_features(0, 0);
    char byte = 0;
    ASSERT_INT(-EBUSY, vhost_device_ack(device, none));
    ASSERT_INT(-EBUSY, vhost_device_start(device));
    ASSERT_INT(0, vhost_device_stop(device));
    ASSERT_INT(-EBUSY, vhost_device_reset(device));
    ASSERT_INT(-EBUSY, vhost_queue_start(device, 0));
    ASSERT_INT(-EBUSY, vhost_queue_stop(device, 0));
    ASSERT_INT(-EBUSY, vhost_queue_mask(device, 0));
    ASSERT_INT(-EBUSY, vhost_queue_unmask(device, 0));
    ASSERT_INT(-EBUSY, vhost_queue_pending(device, 0));
    ASSERT_INT(-EBUSY, vhost_device_get_config(device, 0, &byte, 1));
    ASSERT_INT(-EBUSY, vhost_device_set_config(device, 0, &byte, 1));
    ASSERT_INT(0, vhost_device_process(device));
    ASSERT_UINT(0, vhost_device_poll_fds(device, NULL, 0));
    vhost_device_cleanup(device);
    PASS();
}

SUITE(life_suite)
{
    RUN_PLAIN(a_device_that_was_never_initialised_refuses);
    RUN_ALL(random_lives_keep_every_promise);
}
