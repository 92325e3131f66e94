/* vhost_user.h: every allocation, notifier and system call of every call fails. Nothing leaks, the
   state is one of those documented, and the device can be brought back. */
#include "exhaust.h"
#include "user_calls.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

static peer_bench *bench_of_now;

static const char *name_of(size_t operation)
{
    return user_calls[operation].name;
}

/* A new connection, from the beginning. */
static enum greatest_test_res open_anew(peer_bench *b)
{
    vhost_user_close(&b->user);
    ASSERT_OK(peer_open(b));
    b->device_options.memory = NULL;
    b->accepted = fixture_features(PEER_BIT(32), 0);
    return peer_attach(b, 1) == 0 ? GREATEST_TEST_RES_PASS : GREATEST_TEST_RES_FAIL;
}

static enum greatest_test_res reset_device(peer_bench *b)
{
    vhost_user_reopen(&b->user, peer_connect(&b->peer));
    ASSERT_OK(vhost_device_reset(&b->device));
    b->device.options.memory = NULL;
    peer_fill(b);
    ASSERT_OK(vhost_device_ack(&b->device, fixture_features(PEER_BIT(32), 0)));
    PASS();
}

/* Whatever came of it, it works again. */
static enum greatest_test_res bring_back(peer_bench *b)
{
    if (b->device.state == VHOST_STATE_CLOSED) {
        CHECK_CALL(open_anew(b));
    }
    (void)vhost_user_process(&b->user);
    (void)vhost_user_postcopy_end(&b->user); /* if it has begun, all memory is there now */
    if (b->device.state == VHOST_STATE_RUNNING && vhost_device_stop(&b->device) == 0) {
        ASSERT_INT(VHOST_STATE_STOPPED, b->device.state);
    }
    if (b->device.state == VHOST_STATE_STOPPED) {
        b->queue[0].position.state = VHOST_POSITION_CERTAIN;
        (void)vhost_device_start(&b->device);
    }
    if (b->device.state == VHOST_STATE_STOPPED) { /* it cannot, then: its connection is gone */
        ASSERT(vhost_user_process(&b->user) < 0);
    }
    if (b->device.state == VHOST_STATE_BROKEN) {
        CHECK_CALL(reset_device(b));
        ASSERT_OK(vhost_device_start(&b->device));
    }
    ASSERT_INT(VHOST_STATE_RUNNING, b->device.state);
    ASSERT_OK(vhost_device_stop(&b->device));
    PASS();
}

static enum greatest_test_res judge(peer_bench *b, int code, unsigned errors)
{
    if (code < 0 && b->user.last_error.code == 0) {
        ASSERT(b->f->errors > errors); /* then the core has said why */
    }
    return bring_back(b);
}

static enum greatest_test_res round_of(fixture *f, size_t operation, fault_plan plan, unsigned nth,
                                       unsigned distance)
{
    peer_bench *b = bench_of_now;
    ASSERT_OK(user_arrange(b, &user_calls[operation]));
    unsigned errors = f->errors;
    fault_arm(&f->fault, plan, nth, distance);
    int code = user_calls[operation].act(b);
    fault_disarm(&f->fault);
    fault seen = f->fault;
    enum greatest_test_res result = judge(b, code, errors);
    if (result != GREATEST_TEST_RES_PASS) {
        fprintf(stderr, "%d: %s\n", code, b->user.last_error.text);
    }
    enum greatest_test_res renewed = peer_renew(b);
    f->fault = seen;
    return result != GREATEST_TEST_RES_PASS ? result : renewed;
}

static enum greatest_test_res exhaust_calls(peer_bench *b, fault_plan plan)
{
    exhaust_trial trial = {0, name_of, round_of};
    trial.count = user_call_count;
    bench_of_now = b;
    return exhaust(b->f, &trial, plan);
}

TEST each_system_call_fails_once(peer_bench *b)
{
    return exhaust_calls(b, FAULT_ONCE);
}

TEST each_system_call_fails_from_some_point_on(peer_bench *b)
{
    return exhaust_calls(b, FAULT_EVER_AFTER);
}

TEST two_system_calls_fail(peer_bench *b)
{
    exhaust_trial trial = {0, name_of, round_of};
    trial.count = user_call_count;
    bench_of_now = b;
    return exhaust_pairs(b->f, &trial, 4);
}

SUITE(user_faults_suite)
{
    RUN_USER(each_system_call_fails_once);
    RUN_USER(each_system_call_fails_from_some_point_on);
    RUN_USER(two_system_calls_fail);
}
