/* Every fallible call of every operation fails once: allocations, notifiers, mappings, and what is
   asked of the back-end. Each time the operation must fail as documented, say so once, leave the
   device as it was or BROKEN, leak nothing, and work when it is tried again. */
#include "exhaust.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define PAGE VHOST_PAGE

typedef struct operation {
    const char *name;
    int (*arrange)(fixture *f);
    int (*act)(fixture *f);
    bool of_vm;   /* tells its failures in vm.last_error */
    bool undoes;  /* a single failure leaves the device as it was */
    bool repeats; /* can be done again at once */
} operation;

typedef struct snapshot {
    vhost_state state;
    uint16_t position[FIXTURE_QUEUES];
    unsigned used_up[FIXTURE_QUEUES];
    size_t events;
    unsigned errors;
} snapshot;

/* ---- operations ---- */

static int nothing(fixture *f)
{
    (void)f;
    return 0;
}

/* Rings in order, that have come some way already: a position that is lost is found out. */
static int stopped(fixture *f)
{
    vhost_features_set(&f->accepted, VHOST_FEATURE_IN_ORDER);
    int result = fixture_stopped_device(f);
    for (unsigned q = 0; q < FIXTURE_QUEUES; q++) {
        f->queue[0][q].position.state = VHOST_POSITION_CERTAIN;
        f->queue[0][q].position.avail = (uint16_t)(100 + q);
        f->queue[0][q].busy_loop_us = 5;
        fixture_set_used(f, 0, q, (uint16_t)(100 + q));
    }
    return result;
}

static int stopped_eager(fixture *f)
{
    f->mock[0].eager = 3;
    return stopped(f);
}

static int stopped_own_memory(fixture *f)
{
    f->device_options.memory = &fixture_memory_ops;
    return stopped(f);
}

static int running(fixture *f)
{
    int result = stopped(f);
    if (result == 0) {
        result = vhost_device_start(&f->device[0]);
    }
    if (result == 0) {
        mock_advance(&f->mock[0], 1, 4);
    }
    return result;
}

static int running_by_kicks(fixture *f)
{
    f->mock[0].ops.enable_ring = NULL;
    f->mock[0].ops.set_running = NULL;
    return running(f);
}

static int stopped_by_kicks(fixture *f)
{
    f->mock[0].ops.enable_ring = NULL;
    f->mock[0].ops.set_running = NULL;
    return stopped_eager(f);
}

static int queue_stopped(fixture *f)
{
    int result = running(f);
    f->mock[0].eager = 3;
    return result < 0 ? result : vhost_queue_stop(&f->device[0], 1);
}

static int masked(fixture *f)
{
    int result = running(f);
    return result < 0 ? result : vhost_queue_mask(&f->device[0], 1);
}

static int broken(fixture *f)
{
    int result = running(f);
    fixture_break(f, 0);
    mock_revive(&f->mock[0]);
    return result;
}

static int broken_eager(fixture *f)
{
    f->mock[0].ops.enable_ring = NULL;
    f->mock[0].ops.set_running = NULL;
    int result = broken(f);
    f->mock[0].eager = 3;
    return result;
}

static int started_before(fixture *f)
{
    int result = running(f);
    return result < 0 ? result : vhost_device_stop(&f->device[0]);
}

static int act_map(fixture *f)
{
    vhost_section sections[100];
    for (uint64_t i = 0; i < 100; i++) {
        sections[i] = fixture_section(f, 2 * i * PAGE, 1, i);
    }
    return fixture_map(f, sections, 100);
}

static int act_init(fixture *f)
{
    return fixture_attach(f, 0);
}

static int act_start(fixture *f)
{
    return vhost_device_start(&f->device[0]);
}

static int act_stop(fixture *f)
{
    return vhost_device_stop(&f->device[0]);
}

static int act_reset(fixture *f)
{
    return vhost_device_reset(&f->device[0]);
}

static int act_recover(fixture *f)
{
    return vhost_device_recover(&f->device[0]);
}

static int act_queue_start(fixture *f)
{
    return vhost_queue_start(&f->device[0], 1);
}

static int act_queue_stop(fixture *f)
{
    return vhost_queue_stop(&f->device[0], 1);
}

static int act_mask(fixture *f)
{
    return vhost_queue_mask(&f->device[0], 1);
}

static int act_unmask(fixture *f)
{
    return vhost_queue_unmask(&f->device[0], 1);
}

static int act_pending(fixture *f)
{
    return vhost_queue_pending(&f->device[0], 1);
}

static int act_process(fixture *f)
{
    return vhost_device_process(&f->device[0]);
}

static int act_get_config(fixture *f)
{
    char bytes[4];
    return vhost_device_get_config(&f->device[0], 0, bytes, sizeof bytes);
}

static int act_set_config(fixture *f)
{
    const char bytes[4] = "abc";
    return vhost_device_set_config(&f->device[0], 0, bytes, sizeof bytes);
}

static const operation operations[] = {
    {"map", nothing, act_map, true, true, true},
    {"init", fixture_map_default, act_init, false, true, true},
    {"start", stopped, act_start, false, true, true},
    {"start of an eager back-end", stopped_eager, act_start, false, true, true},
    {"start by kicks", stopped_by_kicks, act_start, false, true, true},
    {"start with memory ops", stopped_own_memory, act_start, false, true, true},
    {"start again", started_before, act_start, false, true, true},
    {"stop", running, act_stop, false, false, false},
    {"stop by kicks", running_by_kicks, act_stop, false, false, false},
    {"reset", started_before, act_reset, false, false, true},
    {"reset of a broken device", broken, act_reset, false, true, true},
    {"recover", broken, act_recover, false, true, true},
    {"recover of an eager back-end", broken_eager, act_recover, false, true, true},
    {"queue_start", queue_stopped, act_queue_start, false, true, true},
    {"queue_stop", running, act_queue_stop, false, false, true},
    {"mask", running, act_mask, false, true, true},
    {"unmask", masked, act_unmask, false, true, true},
    {"pending", masked, act_pending, false, true, true},
    {"process", running, act_process, false, false, true},
    {"get_config", running, act_get_config, false, true, true},
    {"set_config", stopped, act_set_config, false, true, true}};

/* ---- what must hold after a failure ---- */

static uint16_t begins_at(const vhost_position *position)
{
    return position->state == VHOST_POSITION_INITIAL ? 0 : position->avail;
}

static snapshot take_snapshot(const fixture *f)
{
    snapshot before;
    before.state = f->device[0].state;
    before.events = fixture_events_alive(f);
    before.errors = f->errors;
    for (unsigned q = 0; q < FIXTURE_QUEUES; q++) {
        before.position[q] = begins_at(&f->queue[0][q].position);
        before.used_up[q] = f->mock[0].used_up[q];
        if (f->queue[0][q].started) {
            before.position[q] = (uint16_t)f->mock[0].rings[q].position;
        }
    }
    return before;
}

static vhost_why expected_why(const fault *failed)
{
    switch (failed->kind) {
    case FAULT_ALLOCATION:
        return VHOST_WHY_MEMORY;
    case FAULT_NOTIFIER:
        return VHOST_WHY_EVENT;
    case FAULT_MAPPING:
        return VHOST_WHY_RING_UNMAPPED;
    case FAULT_OPERATION:
        return failed->plan == FAULT_DEATH ? VHOST_WHY_BACKEND_LOST : VHOST_WHY_BACKEND_REFUSED;
    }
    return VHOST_WHY_NONE;
}

static int expected_code(const fault *failed)
{
    switch (failed->kind) {
    case FAULT_ALLOCATION:
        return failed->op == VHOST_OP_SET_LOG ? -EDQUOT : -ENOMEM;
    case FAULT_NOTIFIER:
        return -EMFILE;
    case FAULT_MAPPING:
        return -EFAULT;
    case FAULT_OPERATION:
        return failed->plan == FAULT_DEATH ? -ECONNRESET : -EPERM;
    }
    return 0;
}

static enum greatest_test_res told_once(const fixture *f, const snapshot *before,
                                        const vhost_error *error, int result)
{
    ASSERT_INT(expected_code(&f->fault), result);
    CHECK_CALL(fixture_failed(f, before->errors, error, result, expected_why(&f->fault)));
    if (f->fault.kind == FAULT_OPERATION) {
        CHECK_CALL(fixture_names(error, f->fault.op, f->fault.queue));
    }
    PASS();
}

/* A position that counts as known must be the true one; one that ran on may be known as a guess. */
static enum greatest_test_res positions_are_true(const fixture *f, const snapshot *before)
{
    for (unsigned q = 0; q < FIXTURE_QUEUES; q++) {
        const vhost_queue *queue = &f->queue[0][q];
        unsigned moved = f->mock[0].used_up[q] - before->used_up[q];
        if (queue->started) {
            continue;
        }
        if (queue->position.state != VHOST_POSITION_GUESSED) {
            ASSERT_UINT((uint16_t)(before->position[q] + moved), begins_at(&queue->position));
        } else {
            ASSERT_INT(VHOST_STATE_BROKEN, f->device[0].state);
        }
    }
    PASS();
}

static enum greatest_test_res as_before_or_broken(fixture *f, const operation *what,
                                                  const snapshot *before)
{
    vhost_state state = f->device[0].state;
    ASSERT(state == before->state || state == VHOST_STATE_BROKEN);
    if (what->undoes && f->fault.plan == FAULT_ONCE) {
        ASSERT_INT(before->state, state);
    }
    if (state == VHOST_STATE_BROKEN && before->state != VHOST_STATE_BROKEN) {
        ASSERT_UINT(1, f->broken[0]);
        ASSERT_INT(f->device[0].last_error.code, vhost_device_stop(&f->device[0]));
    } else {
        ASSERT_UINT(0, f->broken[0]);
    }
    ASSERT_UINT(before->events, fixture_events_alive(f));
    return fixture_check(f);
}

/* From whatever state it is in, the device can be brought to run again. */
static enum greatest_test_res runs_again(fixture *f)
{
    vhost_device *device = &f->device[0];
    if (device->state == VHOST_STATE_CLOSED) {
        ASSERT_OK(fixture_attach(f, 0));
    }
    if (device->state == VHOST_STATE_BROKEN) {
        ASSERT_OK(vhost_device_reset(device));
        ASSERT_OK(vhost_device_ack(device, f->accepted));
    }
    ASSERT_OK(fixture_map_default(f));
    if (device->state == VHOST_STATE_STOPPED) {
        fixture_fill(f, 0);
        ASSERT_OK(vhost_device_start(device));
    }
    ASSERT_INT(VHOST_STATE_RUNNING, device->state);
    CHECK_CALL(fixture_check(f));
    ASSERT_OK(vhost_device_stop(device));
    return fixture_check(f);
}

static enum greatest_test_res works_again(fixture *f, const operation *what, const snapshot *before)
{
    mock_revive(&f->mock[0]);
    if (what->repeats && f->device[0].state == before->state) {
        ASSERT(what->act(f) >= 0);
        CHECK_CALL(fixture_check(f));
    }
    return runs_again(f);
}

/* What the operation did not need to succeed is no failure, and not told as one. */
static enum greatest_test_res judge(fixture *f, const operation *what, const snapshot *before,
                                    int result)
{
    const vhost_error *error = what->of_vm ? &f->vm.last_error : &f->device[0].last_error;
    if (result >= 0) {
        ASSERT_UINT(before->errors, f->errors);
        return fixture_check(f);
    }
    CHECK_CALL(told_once(f, before, error, result));
    CHECK_CALL(as_before_or_broken(f, what, before));
    return positions_are_true(f, before);
}

/* ---- the harness ---- */

static enum greatest_test_res let_fail(fixture *f, size_t number, fault_plan plan, unsigned nth,
                                       unsigned distance)
{
    const operation *what = &operations[number];
    CHECK_CALL(fixture_renew(f));
    ASSERT_OK(what->arrange(f));
    snapshot before = take_snapshot(f);
    fault_arm(&f->fault, plan, nth, distance);
    int result = what->act(f);
    fault_disarm(&f->fault);
    if (!f->fault.hit) {
        ASSERT(result >= 0);
        PASS();
    }
    CHECK_CALL(judge(f, what, &before, result));
    return works_again(f, what, &before);
}

static const char *name_of(size_t number)
{
    return operations[number].name;
}

static const exhaust_trial trial = {sizeof operations / sizeof *operations, name_of, let_fail};

TEST each_call_fails_once(fixture *f)
{
    return exhaust(f, &trial, FAULT_ONCE);
}

TEST each_call_fails_and_all_after_it(fixture *f)
{
    return exhaust(f, &trial, FAULT_EVER_AFTER);
}

TEST each_call_fails_and_one_after_it(fixture *f)
{
    return exhaust_pairs(f, &trial, 12);
}

TEST the_back_end_dies_in_each_of_its_operations(fixture *f)
{
    return exhaust(f, &trial, FAULT_DEATH);
}

/* ---- commit: its caller's mistakes fail, everything else breaks a device ---- */

static int two_running_one_stopped(fixture *f)
{
    int result = fixture_map_default(f);
    for (unsigned d = 0; d < FIXTURE_DEVICES && result == 0; d++) {
        result = fixture_attach(f, d);
        if (result == 0) {
            result = fixture_start(f, d);
        }
    }
    return result < 0 ? result : vhost_device_stop(&f->device[2]);
}

static int act_commit(fixture *f)
{
    vhost_section sections[40];
    sections[0] = f->low;
    for (uint64_t i = 1; i < 40; i++) {
        sections[i] = fixture_section(f, FIXTURE_HIGH + 2 * i * PAGE, 1, 128 + i);
    }
    return fixture_map(f, sections, 40);
}

static enum greatest_test_res commit_failed(const fixture *f, int result)
{
    vhost_extent extent;
    ASSERT_INT(-ENOMEM, result);
    CHECK_CALL(fixture_failed(f, 0, &f->vm.last_error, -ENOMEM, VHOST_WHY_MEMORY));
    ASSERT_OK(vhost_memory_find(&f->vm, FIXTURE_HIGH, &extent));
    for (unsigned d = 0; d < 2; d++) {
        ASSERT_INT(VHOST_STATE_RUNNING, f->device[d].state);
        ASSERT_UINT(2, f->mock[d].table_count);
        ASSERT_UINT(1, mock_count(&f->mock[d], VHOST_OP_SET_TABLE, -1));
    }
    return fixture_check(f);
}

static enum greatest_test_res commit_broke(const fixture *f, int result)
{
    vhost_extent extent;
    unsigned broken_devices = 0;
    ASSERT_OK(result);
    ASSERT_INT(-EFAULT, vhost_memory_find(&f->vm, FIXTURE_HIGH, &extent));
    for (unsigned d = 0; d < 2; d++) {
        const vhost_device *device = &f->device[d];
        if (device->state == VHOST_STATE_BROKEN) {
            broken_devices++;
            ASSERT_INT(expected_code(&f->fault), device->last_error.code);
            ASSERT_INT(expected_why(&f->fault), device->last_error.why);
            CHECK_CALL(fixture_names(&device->last_error, VHOST_OP_SET_TABLE, -1));
        } else {
            ASSERT_UINT(40, f->mock[d].table_count);
        }
    }
    ASSERT_UINT(broken_devices, f->errors);
    ASSERT(broken_devices == 1 || f->fault.plan == FAULT_EVER_AFTER);
    return fixture_check(f);
}

static enum greatest_test_res all_run_again(fixture *f)
{
    for (unsigned d = 0; d < FIXTURE_DEVICES; d++) {
        mock_revive(&f->mock[d]);
        if (f->device[d].state == VHOST_STATE_BROKEN) {
            ASSERT_OK(vhost_device_reset(&f->device[d]));
            ASSERT_OK(vhost_device_ack(&f->device[d], f->accepted));
        }
    }
    ASSERT_OK(act_commit(f));
    for (unsigned d = 0; d < FIXTURE_DEVICES; d++) {
        if (f->device[d].state == VHOST_STATE_STOPPED) {
            ASSERT_OK(fixture_start(f, d));
        }
        ASSERT_UINT(40, f->mock[d].table_count);
    }
    return fixture_check(f);
}

static enum greatest_test_res let_commit_fail(fixture *f, size_t number, fault_plan plan,
                                              unsigned nth, unsigned distance)
{
    (void)number;
    CHECK_CALL(fixture_renew(f));
    ASSERT_OK(two_running_one_stopped(f));
    fault_arm(&f->fault, plan, nth, distance);
    int result = act_commit(f);
    fault_disarm(&f->fault);
    if (!f->fault.hit) {
        ASSERT_OK(result);
    } else if (f->fault.kind == FAULT_ALLOCATION) {
        CHECK_CALL(commit_failed(f, result));
    } else {
        CHECK_CALL(commit_broke(f, result));
    }
    return all_run_again(f);
}

static const char *name_of_commit(size_t number)
{
    (void)number;
    return "commit";
}

static const exhaust_trial commit_trial = {1, name_of_commit, let_commit_fail};

TEST each_call_of_a_commit_fails(fixture *f)
{
    CHECK_CALL(exhaust(f, &commit_trial, FAULT_ONCE));
    CHECK_CALL(exhaust(f, &commit_trial, FAULT_EVER_AFTER));
    return exhaust(f, &commit_trial, FAULT_DEATH);
}

/* ---- cleanup cannot fail ---- */

TEST cleanup_completes_whatever_fails(fixture *f)
{
    static const fault_plan plans[] = {FAULT_ONCE, FAULT_EVER_AFTER, FAULT_DEATH};
    for (size_t i = 0; i < sizeof plans / sizeof *plans; i++) {
        bool hit = true;
        for (unsigned nth = 1; hit; nth++) {
            CHECK_CALL(fixture_renew(f));
            ASSERT_OK(running(f));
            fault_arm(&f->fault, plans[i], nth, 0);
            vhost_device_cleanup(&f->device[0]);
            fault_disarm(&f->fault);
            hit = f->fault.hit;
            ASSERT_INT(VHOST_STATE_CLOSED, f->device[0].state);
            ASSERT_UINT(0, fixture_events_alive(f));
            ASSERT_FALSE(f->mock[0].opened);
        }
    }
    PASS();
}

SUITE(faults_suite)
{
    RUN_ALL(each_call_fails_once);
    RUN_ALL(each_call_fails_and_all_after_it);
    RUN_ALL(each_call_fails_and_one_after_it);
    RUN_ALL(the_back_end_dies_in_each_of_its_operations);
    RUN_ALL(each_call_of_a_commit_fails);
    RUN_ALL(cleanup_completes_whatever_fails);
}
