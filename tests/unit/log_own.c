/* Devices with a dirty log of their own, beside those that share one: options.own_log. Of one kind,
   so that nothing but the owner tells the logs apart; each test with private and shared logs. */
#include "fixture.h"

#include <errno.h>
#include <string.h>

#define PAGE VHOST_PAGE
#define NEAR (512 * PAGE)
#define FAR  (UINT64_C(100000) * PAGE) /* beyond the slack of a log that ends at NEAR */

/* Which devices have a log of their own, a bit each. */
enum {
    NONE = 0,
    FIRST = 1,
    SECOND = 2,
    BOTH = 3
};

/* ---- arranging ---- */

static int map_some(fixture *f, bool far)
{
    vhost_section sections[3];
    sections[0] = f->low;
    sections[1] = fixture_section(f, NEAR, 64, 128);
    sections[2] = fixture_section(f, FAR, 64, 192);
    return fixture_map(f, sections, far ? 3 : 2);
}

static int attach(fixture *f, unsigned d, bool own)
{
    f->device_options.own_log = own;
    return fixture_attach(f, d);
}

static int attach_and_start(fixture *f, unsigned d, bool own)
{
    int result = attach(f, d, own);
    return result < 0 ? result : fixture_start(f, d);
}

/* A fresh fixture in which devices 0 and 1 run, and can log. */
static enum greatest_test_res running(fixture *f, vhost_log_kind kind, unsigned owners)
{
    CHECK_CALL(fixture_renew(f));
    for (unsigned d = 0; d < FIXTURE_DEVICES; d++) {
        f->mock[d].facts.log_kind = kind;
        vhost_features_set(&f->mock[d].facts.offered, VHOST_FEATURE_LOG_ALL);
    }
    ASSERT_OK(map_some(f, false));
    ASSERT_OK(attach_and_start(f, 0, owners & FIRST));
    ASSERT_OK(attach_and_start(f, 1, owners & SECOND));
    PASS();
}

static enum greatest_test_res logging(fixture *f, vhost_log_kind kind, unsigned owners)
{
    CHECK_CALL(running(f, kind, owners));
    ASSERT_OK(vhost_log_start(&f->vm));
    PASS();
}

/* ---- what is dirty ---- */

typedef struct pages {
    uint64_t gpa[8];
    unsigned count;
} pages;

static void on_range(uint64_t gpa, uint64_t size, void *user)
{
    pages *taken = (pages *)user;
    for (; size > 0 && taken->count < sizeof taken->gpa / sizeof *taken->gpa; size -= PAGE) {
        taken->gpa[taken->count++] = gpa;
        gpa += PAGE;
    }
}

/* Whether one sync from NEAR on, so without rings, hands over these pages; 0 for none. */
static enum greatest_test_res takes(fixture *f, uint64_t one, uint64_t other)
{
    uint64_t wanted[2] = {one, other};
    unsigned count = one == 0 ? 0 : other == 0 ? 1 : 2;
    pages taken;
    vhost_log_sink sink;
    memset(&taken, 0, sizeof taken);
    memset(&sink, 0, sizeof sink);
    sink.range = on_range;
    sink.user = &taken;
    ASSERT_OK(vhost_log_sync(&f->vm, NEAR, FAR + 64 * PAGE - NEAR, &sink));
    ASSERT_UINT(count, taken.count);
    for (unsigned i = 0; i < count; i++) {
        ASSERT_U64(wanted[i], taken.gpa[i]);
    }
    PASS();
}

/* ---- the tests, for one kind ---- */

static enum greatest_test_res has_memory_of_its_own(fixture *f, vhost_log_kind kind)
{
    for (unsigned owners = NONE; owners <= BOTH; owners++) {
        CHECK_CALL(logging(f, kind, owners));
        ASSERT_OK(attach_and_start(f, 2, false)); /* shares with those that share */
        const vhost_log_memory *log[3] = {&f->mock[0].log, &f->mock[1].log, &f->mock[2].log};
        bool same[3] = {log[0]->base == log[1]->base, log[0]->base == log[2]->base,
                        log[1]->base == log[2]->base};
        ASSERT_INT(owners == NONE, same[0]);
        ASSERT_INT(!(owners & FIRST), same[1]);
        ASSERT_INT(!(owners & SECOND), same[2]);
        ASSERT_INT(same[0], log[0]->id == log[1]->id);
        ASSERT_UINT(1 + !!(owners & FIRST) + !!(owners & SECOND), fixture_logs_alive(f));
        CHECK_CALL(fixture_check(f));
        ASSERT_OK(vhost_log_stop(&f->vm));
        ASSERT_UINT(0, fixture_logs_alive(f));
    }
    PASS();
}

static enum greatest_test_res one_sync_for_all(fixture *f, vhost_log_kind kind)
{
    for (unsigned owners = NONE; owners <= BOTH; owners++) {
        CHECK_CALL(logging(f, kind, owners));
        mock_dirty(&f->mock[0], NEAR);
        mock_dirty(&f->mock[1], NEAR + PAGE);
        CHECK_CALL(takes(f, NEAR, NEAR + PAGE));
        CHECK_CALL(takes(f, 0, 0));
        mock_dirty(&f->mock[0], NEAR + 9 * PAGE);
        mock_dirty(&f->mock[1], NEAR + 9 * PAGE);
        CHECK_CALL(takes(f, NEAR + 9 * PAGE, 0));
        CHECK_CALL(takes(f, 0, 0));
    }
    PASS();
}

/* A back-end clears all that it can: the first, then the second. */
static enum greatest_test_res clears_no_other(fixture *f, vhost_log_kind kind)
{
    for (unsigned owners = FIRST; owners <= BOTH; owners++) {
        for (unsigned bad = 0; bad < 2; bad++) {
            CHECK_CALL(logging(f, kind, owners));
            mock_dirty(&f->mock[0], NEAR);
            mock_dirty(&f->mock[1], NEAR + PAGE);
            memset(f->mock[bad].log.base, 0, (size_t)f->mock[bad].log.size);
            CHECK_CALL(takes(f, bad == 0 ? NEAR + PAGE : NEAR, 0));
        }
    }
    PASS();
}

/* What was dirty is so in the successor of the log that it was in, and in no other. */
static enum greatest_test_res moves_with_the_others(fixture *f, vhost_log_kind kind)
{
    CHECK_CALL(logging(f, kind, SECOND));
    vhost_log_memory first = f->mock[0].log, second = f->mock[1].log;
    for (int step = 0; step < 2; step++) {
        bool grows = step == 0;
        mock_dirty(&f->mock[0], NEAR);
        mock_dirty(&f->mock[1], NEAR + PAGE);
        ASSERT_OK(map_some(f, grows));
        for (unsigned d = 0; d < 2; d++) {
            const vhost_log_memory *log = &f->mock[d].log, *before = d == 0 ? &first : &second;
            ASSERT(log->id != before->id);
            ASSERT(grows ? log->size > before->size : log->size == before->size);
            ASSERT(mock_log_covers_table(&f->mock[d]));
        }
        ASSERT(f->mock[0].log.base != f->mock[1].log.base);
        ASSERT_UINT(2, fixture_logs_alive(f));
        memset(f->mock[1].log.base, 0, (size_t)f->mock[1].log.size);
        CHECK_CALL(takes(f, NEAR, 0));
        mock_dirty(&f->mock[1], NEAR + PAGE);
        CHECK_CALL(takes(f, NEAR + PAGE, 0));
    }
    return fixture_check(f);
}

/* Only the log that is dirty beyond the top stays large. */
static enum greatest_test_res shrinks_alone(fixture *f, vhost_log_kind kind)
{
    CHECK_CALL(logging(f, kind, SECOND));
    ASSERT_OK(map_some(f, true));
    uint64_t large = f->mock[0].log.size;
    mock_dirty(&f->mock[1], FAR);
    ASSERT_OK(map_some(f, false));
    ASSERT(f->mock[0].log.size < large);
    ASSERT_U64(large, f->mock[1].log.size);
    ASSERT_OK(map_some(f, true));
    return takes(f, FAR, 0);
}

/* A device comes during the migration, and goes; another takes its place at the same address. */
static enum greatest_test_res comes_and_goes(fixture *f, vhost_log_kind kind)
{
    CHECK_CALL(logging(f, kind, NONE));
    ASSERT_OK(attach_and_start(f, 2, true));
    vhost_log_memory gone = f->mock[2].log;
    ASSERT_UINT(2, fixture_logs_alive(f));
    mock_dirty(&f->mock[1], NEAR);
    mock_dirty(&f->mock[2], NEAR + PAGE);
    vhost_device_cleanup(&f->device[2]);
    ASSERT_UINT(2, fixture_logs_alive(f));
    ASSERT_OK(attach_and_start(f, 2, true));
    ASSERT(f->mock[2].log.base != gone.base);
    ASSERT(f->mock[2].log.base != f->mock[0].log.base);
    memset(f->mock[2].log.base, 0, (size_t)f->mock[2].log.size);
    CHECK_CALL(takes(f, NEAR, NEAR + PAGE));
    mock_dirty(&f->mock[2], NEAR + 2 * PAGE);
    CHECK_CALL(takes(f, NEAR + 2 * PAGE, 0));
    CHECK_CALL(fixture_check(f));
    ASSERT_OK(vhost_log_stop(&f->vm));
    ASSERT_UINT(0, fixture_logs_alive(f));
    PASS();
}

/* A log without a device: nobody may write where memory comes, so it need not grow. */
static enum greatest_test_res stays_without_a_device(fixture *f, vhost_log_kind kind)
{
    CHECK_CALL(logging(f, kind, SECOND));
    mock_dirty(&f->mock[1], NEAR);
    vhost_device_cleanup(&f->device[1]);
    unsigned made = f->log_maps;
    ASSERT_OK(map_some(f, true));
    ASSERT_UINT(made + 1, f->log_maps);
    mock_dirty(&f->mock[0], FAR);
    return takes(f, NEAR, FAR);
}

/* The log of a broken device goes on with it, wherever the top of memory went meanwhile. */
static enum greatest_test_res outlives_a_break(fixture *f, vhost_log_kind kind)
{
    for (int recover = 0; recover < 2; recover++) {
        CHECK_CALL(logging(f, kind, SECOND));
        mock_dirty(&f->mock[1], NEAR);
        fixture_break(f, 1);
        mock_revive(&f->mock[1]);
        ASSERT_OK(map_some(f, true));
        for (unsigned q = 0; q < FIXTURE_QUEUES; q++) {
            f->queue[1][q].position.state = VHOST_POSITION_CERTAIN;
        }
        if (recover) {
            ASSERT_OK(vhost_device_recover(&f->device[1]));
        } else {
            ASSERT_OK(vhost_device_reset(&f->device[1]));
            ASSERT_OK(vhost_device_ack(&f->device[1], f->accepted));
            ASSERT_OK(fixture_start(f, 1));
        }
        /* Another process may still write to the one before. */
        ASSERT_UINT(kind == VHOST_DIRTY_SHARED ? 3 : 2, fixture_logs_alive(f));
        ASSERT(f->mock[1].log.base != f->mock[0].log.base);
        mock_dirty(&f->mock[1], FAR);
        CHECK_CALL(takes(f, NEAR, FAR));
        CHECK_CALL(fixture_check(f));
    }
    PASS();
}

/* Stopped while memory grows, it gets its new log when it starts. */
static enum greatest_test_res starts_with_the_new_one(fixture *f, vhost_log_kind kind)
{
    CHECK_CALL(logging(f, kind, SECOND));
    mock_dirty(&f->mock[1], NEAR);
    ASSERT_OK(vhost_device_stop(&f->device[1]));
    ASSERT_OK(map_some(f, true));
    ASSERT_OK(vhost_device_start(&f->device[1]));
    ASSERT(mock_log_covers_table(&f->mock[1]));
    ASSERT(f->mock[1].log.base != f->mock[0].log.base);
    ASSERT_UINT(2, fixture_logs_alive(f));
    mock_dirty(&f->mock[1], FAR);
    return takes(f, NEAR, FAR);
}

/* One that refuses its new log is cut off, with its bits; the other goes on. */
static enum greatest_test_res refuses_the_new_one(fixture *f, vhost_log_kind kind)
{
    for (int shrink = 0; shrink < 2; shrink++) {
        CHECK_CALL(logging(f, kind, SECOND));
        ASSERT_OK(shrink ? map_some(f, true) : 0);
        mock_dirty(&f->mock[0], NEAR);
        mock_dirty(&f->mock[1], NEAR + PAGE);
        mock_refuse(&f->mock[1], VHOST_OP_SET_LOG, -1, -EPERM);
        ASSERT_OK(map_some(f, !shrink));
        ASSERT_INT(VHOST_STATE_RUNNING, f->device[0].state);
        ASSERT_INT(VHOST_STATE_BROKEN, f->device[1].state);
        CHECK_CALL(takes(f, NEAR, NEAR + PAGE));
        CHECK_CALL(fixture_check(f));
    }
    PASS();
}

/* Where there is no memory for both, there is neither. */
static enum greatest_test_res both_or_neither(fixture *f, vhost_log_kind kind)
{
    CHECK_CALL(running(f, kind, SECOND));
    for (unsigned nth = 1; nth <= 4; nth++) { /* of each, the log and its memory */
        fault_arm(&f->fault, FAULT_ONCE, nth, 0);
        ASSERT_FAILS(f, vhost_log_start(&f->vm), &f->vm.last_error, nth % 2 ? -ENOMEM : -EDQUOT,
                     VHOST_WHY_LOG_MEMORY);
        fault_disarm(&f->fault);
        ASSERT_UINT(0, fixture_logs_alive(f));
        ASSERT_UINT(0, mock_count(&f->mock[0], VHOST_OP_SET_LOG, -1));
    }
    ASSERT_OK(vhost_log_start(&f->vm));
    ASSERT_OK(map_some(f, true)); /* the maps have their memory now */
    ASSERT_OK(map_some(f, false));
    mock_forget(&f->mock[0]);
    mock_forget(&f->mock[1]);
    for (unsigned nth = 1, failures = 0; failures < 4; nth++) {
        fault_arm(&f->fault, FAULT_ONCE, nth, 0);
        ASSERT(map_some(f, true) < 0);
        fault_disarm(&f->fault);
        failures += f->vm.last_error.why == VHOST_WHY_LOG_MEMORY;
        ASSERT_UINT(2, fixture_logs_alive(f));
        ASSERT_UINT(0, f->mock[0].calls.count + f->mock[1].calls.count);
    }
    return fixture_check(f);
}

/* No log is left behind by a device that is refused. */
static enum greatest_test_res is_refused_without_memory(fixture *f, vhost_log_kind kind)
{
    CHECK_CALL(logging(f, kind, NONE));
    for (unsigned nth = 1, failures = 0; failures < 2; nth++) {
        fault_arm(&f->fault, FAULT_ONCE, nth, 0);
        ASSERT(attach(f, 2, true) < 0);
        fault_disarm(&f->fault);
        failures += f->device[2].last_error.why == VHOST_WHY_LOG_MEMORY;
        ASSERT_INT(VHOST_STATE_CLOSED, f->device[2].state);
        ASSERT_UINT(1, fixture_logs_alive(f));
    }
    ASSERT_OK(attach_and_start(f, 2, true));
    ASSERT_UINT(2, fixture_logs_alive(f));
    return fixture_check(f);
}

/* ---- the tests, for both kinds ---- */

typedef enum greatest_test_res kind_test(fixture *f, vhost_log_kind kind);

static enum greatest_test_res for_both_kinds(fixture *f, kind_test *test)
{
    CHECK_CALL(test(f, VHOST_DIRTY_PRIVATE));
    return test(f, VHOST_DIRTY_SHARED);
}

TEST a_log_of_its_own_is_memory_of_its_own(fixture *f)
{
    return for_both_kinds(f, has_memory_of_its_own);
}

TEST one_sync_takes_the_bits_of_own_and_shared_logs(fixture *f)
{
    return for_both_kinds(f, one_sync_for_all);
}

TEST who_clears_an_own_log_clears_no_other(fixture *f)
{
    return for_both_kinds(f, clears_no_other);
}

TEST own_logs_grow_and_shrink_with_the_others(fixture *f)
{
    return for_both_kinds(f, moves_with_the_others);
}

TEST an_own_log_shrinks_only_where_it_is_clean(fixture *f)
{
    return for_both_kinds(f, shrinks_alone);
}

TEST own_logs_come_and_their_bits_stay(fixture *f)
{
    return for_both_kinds(f, comes_and_goes);
}

TEST a_log_without_a_device_keeps_its_bits_and_its_size(fixture *f)
{
    return for_both_kinds(f, stays_without_a_device);
}

TEST an_own_log_outlives_a_break(fixture *f)
{
    return for_both_kinds(f, outlives_a_break);
}

TEST a_stopped_device_starts_with_its_own_new_log(fixture *f)
{
    return for_both_kinds(f, starts_with_the_new_one);
}

TEST who_refuses_its_own_new_log_breaks_and_its_bits_stay(fixture *f)
{
    return for_both_kinds(f, refuses_the_new_one);
}

TEST without_memory_for_one_log_there_is_none(fixture *f)
{
    return for_both_kinds(f, both_or_neither);
}

TEST without_memory_for_its_log_a_device_is_refused(fixture *f)
{
    return for_both_kinds(f, is_refused_without_memory);
}

SUITE(log_own_suite)
{
    RUN_BOTH(a_log_of_its_own_is_memory_of_its_own);
    RUN_BOTH(one_sync_takes_the_bits_of_own_and_shared_logs);
    RUN_BOTH(who_clears_an_own_log_clears_no_other);
    RUN_BOTH(own_logs_grow_and_shrink_with_the_others);
    RUN_BOTH(an_own_log_shrinks_only_where_it_is_clean);
    RUN_BOTH(own_logs_come_and_their_bits_stay);
    RUN_BOTH(a_log_without_a_device_keeps_its_bits_and_its_size);
    RUN_BOTH(an_own_log_outlives_a_break);
    RUN_BOTH(a_stopped_device_starts_with_its_own_new_log);
    RUN_ALL(who_refuses_its_own_new_log_breaks_and_its_bits_stay);
    RUN_BOTH(without_memory_for_one_log_there_is_none);
    RUN_BOTH(without_memory_for_its_log_a_device_is_refused);
}
