/* Every fallible call fails while the dirty log comes, goes, is replaced, or is in use: all devices
   log or none does, nobody logs into memory that is gone, no page is lost, and all works again. */
#include "exhaust.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define PAGE VHOST_PAGE
#define NEAR (512 * PAGE)
#define FAR  (UINT64_C(100000) * PAGE) /* beyond the slack of a log that ends at NEAR */

enum {
    NEAR_PAGES = 128
};

/* What the VM does afterwards. */
typedef enum outcome {
    LOGS,
    IS_SILENT
} outcome;

typedef struct operation {
    const char *name;
    int (*arrange)(fixture *f);
    int (*act)(fixture *f);
    outcome good, bad; /* if the operation worked, if it failed */
    bool undoes;       /* one operation that is refused breaks no device */
    bool lives;        /* a back-end that is gone is no failure of it */
} operation;

/* ---- arranging: devices 0 and 1 run, of different kinds; device 2 is stopped ---- */

static bool own_logs; /* each device has a log of its own, not each kind */

static int map_some(fixture *f, bool far)
{
    vhost_section sections[3];
    sections[0] = fixture_section(f, 0, 64, 0);
    sections[1] = fixture_section(f, NEAR, NEAR_PAGES, 64);
    sections[2] = fixture_section(f, FAR, 64, 192);
    return fixture_map(f, sections, far ? 3 : 2);
}

/* Maps both, so that neither needs to be warmed up. */
static int map_warm(fixture *f)
{
    int result = map_some(f, true);
    return result < 0 ? result : map_some(f, false);
}

static void can_log(fixture *f, unsigned d, vhost_log_kind kind)
{
    f->mock[d].facts.log_kind = kind;
    vhost_features_set(&f->mock[d].facts.offered, VHOST_FEATURE_LOG_ALL);
}

static int attach_two(fixture *f, vhost_log_kind second)
{
    can_log(f, 0, VHOST_DIRTY_PRIVATE);
    can_log(f, 1, second);
    can_log(f, 2, VHOST_DIRTY_SHARED);
    f->device_options.own_log = own_logs;
    int result = map_warm(f);
    for (unsigned d = 0; d < 2 && result == 0; d++) {
        result = fixture_attach(f, d);
        result = result < 0 ? result : fixture_start(f, d);
    }
    return result;
}

static int silent(fixture *f)
{
    int result = attach_two(f, VHOST_DIRTY_SHARED);
    fixture_fill(f, 2);
    return result < 0 ? result : fixture_attach(f, 2);
}

static int logging(fixture *f)
{
    int result = silent(f);
    return result < 0 ? result : vhost_log_start(&f->vm);
}

static int logging_far(fixture *f)
{
    int result = logging(f);
    return result < 0 ? result : map_some(f, true);
}

static int logging_without_queue(fixture *f)
{
    int result = logging(f);
    return result < 0 ? result : vhost_queue_stop(&f->device[0], 1);
}

/* Nobody has a shared log yet. */
static int logging_before_the_third(fixture *f)
{
    int result = attach_two(f, VHOST_DIRTY_PRIVATE);
    fixture_fill(f, 2);
    return result < 0 ? result : vhost_log_start(&f->vm);
}

static int logging_broken(fixture *f)
{
    int result = logging(f);
    fixture_break(f, 2);
    mock_revive(&f->mock[2]);
    return result;
}

/* ---- operations ---- */

static int act_log_start(fixture *f)
{
    return vhost_log_start(&f->vm);
}

static int act_log_stop(fixture *f)
{
    return vhost_log_stop(&f->vm);
}

static int act_start(fixture *f)
{
    return vhost_device_start(&f->device[2]);
}

static int act_stop(fixture *f)
{
    return vhost_device_stop(&f->device[0]);
}

static int act_queue_start(fixture *f)
{
    return vhost_queue_start(&f->device[0], 1);
}

static int act_queue_stop(fixture *f)
{
    return vhost_queue_stop(&f->device[0], 1);
}

static int act_grow(fixture *f)
{
    return map_some(f, true);
}

static int act_shrink(fixture *f)
{
    return map_some(f, false);
}

static int act_init(fixture *f)
{
    return fixture_attach(f, 2);
}

static int act_reset(fixture *f)
{
    return vhost_device_reset(&f->device[2]);
}

static int act_process(fixture *f)
{
    return vhost_device_process(&f->device[1]);
}

static const operation operations[] = {
    {"log_start", silent, act_log_start, LOGS, IS_SILENT, true, true},
    {"log_stop", logging, act_log_stop, IS_SILENT, IS_SILENT, false, false},
    {"start", logging, act_start, LOGS, LOGS, true, false},
    {"stop", logging, act_stop, LOGS, LOGS, false, false},
    {"queue_start", logging_without_queue, act_queue_start, LOGS, LOGS, true, false},
    {"queue_stop", logging, act_queue_stop, LOGS, LOGS, false, false},
    {"commit that grows the log", logging, act_grow, LOGS, LOGS, false, true},
    {"commit that shrinks the log", logging_far, act_shrink, LOGS, LOGS, false, true},
    {"init", logging_before_the_third, act_init, LOGS, LOGS, true, false},
    {"reset of a broken device", logging_broken, act_reset, LOGS, LOGS, true, false},
    {"process", logging, act_process, LOGS, LOGS, false, false}};

/* ---- pages that back-ends dirty before and after whatever they do ---- */

static bool dirtied[NEAR_PAGES];
static unsigned next_page;

static void dirty_next(mock_backend *mock, bool begins, void *user)
{
    (void)begins;
    (void)user;
    if (mock_runs(mock) && mock_logs(mock)) {
        dirtied[next_page % NEAR_PAGES] = true;
        mock_dirty(mock, NEAR + next_page++ % NEAR_PAGES * PAGE);
    }
}

static void begin_to_dirty(fixture *f)
{
    memset(dirtied, 0, sizeof dirtied);
    next_page = 0;
    for (unsigned d = 0; d < FIXTURE_DEVICES; d++) {
        f->mock[d].around = dirty_next;
        dirty_next(&f->mock[d], true, f);
    }
}

/* ---- what must hold ---- */

static const vhost_log_memory *log_at(const fixture *f, const void *base)
{
    for (unsigned i = 0; i < FIXTURE_LOGS; i++) {
        if (f->logs[i].size && f->logs[i].base == base) {
            return &f->logs[i];
        }
    }
    return NULL;
}

static enum greatest_test_res device_logs(const fixture *f, unsigned d, bool logs)
{
    const mock_backend *mock = &f->mock[d];
    ASSERT_INT(logs, vhost_features_test(&mock->features, VHOST_FEATURE_LOG_ALL));
    if (logs) {
        const vhost_log_memory *log = log_at(f, mock->log.base);
        ASSERT(log && log->size == mock->log.size && log->fd == mock->log.fd);
        ASSERT(mock_log_covers_table(mock));
    }
    for (unsigned q = 0; q < FIXTURE_QUEUES; q++) {
        if (f->queue[d][q].started) {
            ASSERT_INT(logs, mock->rings[q].addresses.log);
        }
    }
    PASS();
}

static enum greatest_test_res all_log(const fixture *f, bool log)
{
    for (unsigned d = 0; d < FIXTURE_DEVICES; d++) {
        if (f->device[d].state == VHOST_STATE_RUNNING && !f->mock[d].dead) {
            CHECK_CALL(device_logs(f, d, log));
        }
    }
    if (!log) {
        ASSERT_UINT(0, fixture_logs_alive(f));
    }
    return fixture_check(f);
}

static bool is_dirty(const uint64_t *bits, uint64_t bit)
{
    return bits[bit / 64] >> bit % 64 & 1;
}

/* Every page that was dirtied, and the used ring of every device that broke, is in the log. */
static enum greatest_test_res nothing_is_lost(fixture *f, const vhost_state *before)
{
    uint64_t bits[(512 + NEAR_PAGES) / 64] = {0};
    vhost_log_sink sink;
    memset(&sink, 0, sizeof sink);
    sink.bits = bits;
    sink.bits_count = 512 + NEAR_PAGES;
    ASSERT_OK(vhost_log_sync(&f->vm, 0, (512 + NEAR_PAGES) * PAGE, &sink));
    ASSERT_U64(0, sink.pages_dropped);
    for (unsigned page = 0; page < NEAR_PAGES; page++) {
        ASSERT_INT(dirtied[page], is_dirty(bits, 512 + page));
    }
    for (unsigned d = 0; d < FIXTURE_DEVICES; d++) {
        bool left = before[d] == VHOST_STATE_RUNNING && f->device[d].state != before[d];
        for (unsigned q = 0; q < FIXTURE_QUEUES && left; q++) {
            ASSERT(is_dirty(bits, f->queue[d][q].used / PAGE));
        }
    }
    PASS();
}

static unsigned broken_devices(const fixture *f)
{
    unsigned broken = 0;
    for (unsigned d = 0; d < FIXTURE_DEVICES; d++) {
        broken += f->device[d].state == VHOST_STATE_BROKEN;
    }
    return broken;
}

static int expected_code(const fault *failed)
{
    if (failed->kind == FAULT_NOTIFIER) {
        return -EMFILE;
    }
    if (failed->kind == FAULT_ALLOCATION) {
        return failed->op == VHOST_OP_SET_LOG ? -EDQUOT : -ENOMEM;
    }
    return failed->plan == FAULT_DEATH ? -ECONNRESET : -EPERM;
}

/* What a lone failure leads to: it is returned and said once, and breaks as little as can be. */
static enum greatest_test_res lone_failure(const fixture *f, const operation *what, int result,
                                           unsigned broken_before)
{
    bool operation_failed = f->fault.kind == FAULT_OPERATION;
    unsigned broken = broken_devices(f) - broken_before;
    if (result == 0 && what->act == act_shrink && f->fault.kind == FAULT_ALLOCATION) {
        ASSERT_UINT(0, broken + f->errors); /* the log just stays large */
        PASS();
    }
    if (f->fault.plan == FAULT_DEATH && what->lives) {
        ASSERT_OK(result);
        ASSERT_UINT(1, broken);
    } else if (operation_failed && what->lives && !what->undoes) { /* a commit */
        ASSERT_OK(result);
        ASSERT_UINT(1, broken);
    } else {
        ASSERT_INT(expected_code(&f->fault), result);
    }
    if (!operation_failed || (what->undoes && f->fault.plan == FAULT_ONCE)) {
        ASSERT_UINT(0, broken);
    }
    ASSERT_UINT(1, f->errors);
    PASS();
}

static enum greatest_test_res mend(fixture *f)
{
    for (unsigned d = 0; d < FIXTURE_DEVICES; d++) {
        vhost_device *device = &f->device[d];
        f->mock[d].around = NULL;
        mock_revive(&f->mock[d]);
        if (device->state == VHOST_STATE_CLOSED) {
            ASSERT_OK(fixture_attach(f, d));
        }
        if (device->state != VHOST_STATE_RUNNING) { /* positions may be mere guesses */
            ASSERT_OK(vhost_device_reset(device));
            ASSERT_OK(vhost_device_ack(device, f->accepted));
            ASSERT_OK(fixture_start(f, d));
        }
    }
    PASS();
}

static enum greatest_test_res works_again(fixture *f, bool log)
{
    CHECK_CALL(mend(f));
    CHECK_CALL(all_log(f, log));
    ASSERT_OK(vhost_log_start(&f->vm));
    CHECK_CALL(all_log(f, true));
    ASSERT_OK(map_some(f, true));
    ASSERT_OK(map_some(f, false));
    CHECK_CALL(all_log(f, true));
    ASSERT_OK(vhost_log_stop(&f->vm));
    return all_log(f, false);
}

/* ---- the harness ---- */

static enum greatest_test_res judge(fixture *f, const operation *what, int result,
                                    const vhost_state *before, unsigned broken_before)
{
    bool log = (result < 0 ? what->bad : what->good) == LOGS;
    if (!f->fault.hit) {
        ASSERT_OK(result);
        ASSERT_UINT(0, f->errors);
    } else if (f->fault.kind == FAULT_NOTIFIER && result == 0) {
        ASSERT_UINT(0, f->errors); /* it could do without */
    } else if (f->fault.plan == FAULT_ONCE || f->fault.plan == FAULT_DEATH) {
        CHECK_CALL(lone_failure(f, what, result, broken_before));
    }
    CHECK_CALL(all_log(f, log));
    if (log && what->arrange != silent) {
        CHECK_CALL(nothing_is_lost(f, before));
    }
    return works_again(f, log);
}

static enum greatest_test_res let_fail(fixture *f, size_t number, fault_plan plan, unsigned nth,
                                       unsigned distance)
{
    const operation *what = &operations[number];
    vhost_state before[FIXTURE_DEVICES];
    CHECK_CALL(fixture_renew(f));
    ASSERT_OK(what->arrange(f));
    for (unsigned d = 0; d < FIXTURE_DEVICES; d++) {
        before[d] = f->device[d].state;
    }
    unsigned broken_before = broken_devices(f);
    begin_to_dirty(f);
    fault_arm(&f->fault, plan, nth, distance);
    int result = what->act(f);
    fault_disarm(&f->fault);
    return judge(f, what, result, before, broken_before);
}

static const char *name_of(size_t number)
{
    return operations[number].name;
}

static const exhaust_trial trial = {sizeof operations / sizeof *operations, name_of, let_fail};

static enum greatest_test_res shared_and_own(fixture *f, fixture_test *test)
{
    own_logs = false;
    CHECK_CALL(test(f));
    own_logs = true;
    return test(f);
}

static enum greatest_test_res once(fixture *f)
{
    return exhaust(f, &trial, FAULT_ONCE);
}

static enum greatest_test_res ever_after(fixture *f)
{
    return exhaust(f, &trial, FAULT_EVER_AFTER);
}

static enum greatest_test_res pairs(fixture *f)
{
    return exhaust_pairs(f, &trial, 10);
}

static enum greatest_test_res death(fixture *f)
{
    return exhaust(f, &trial, FAULT_DEATH);
}

TEST each_call_about_the_log_fails_once(fixture *f)
{
    return shared_and_own(f, once);
}

TEST each_call_about_the_log_fails_and_all_after_it(fixture *f)
{
    return shared_and_own(f, ever_after);
}

TEST each_call_about_the_log_fails_and_one_after_it(fixture *f)
{
    return shared_and_own(f, pairs);
}

TEST a_back_end_dies_in_each_call_about_the_log(fixture *f)
{
    return shared_and_own(f, death);
}

SUITE(log_faults_suite)
{
    RUN_ALL(each_call_about_the_log_fails_once);
    RUN_ALL(each_call_about_the_log_fails_and_all_after_it);
    RUN_ALL(each_call_about_the_log_fails_and_one_after_it);
    RUN_ALL(a_back_end_dies_in_each_call_about_the_log);
}
