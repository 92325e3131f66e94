/* A broken device whose back-end comes back, and goes on as if nothing had been. */
#include "fixture.h"

#include <errno.h>
#include <string.h>

#define PAGE VHOST_PAGE

/* Device 0 ran, used up 4 buffers of queue 1, in order, and broke; its back-end could come back. */
static int broken(fixture *f)
{
    vhost_features_set(&f->accepted, VHOST_FEATURE_IN_ORDER);
    int result = fixture_running_device(f);
    if (result == 0) {
        mock_advance(&f->mock[0], 1, 4);
        fixture_break(f, 0);
        mock_revive(&f->mock[0]);
        mock_forget(&f->mock[0]);
    }
    return result;
}

static unsigned entered(const fixture *f, vhost_state state)
{
    unsigned count = 0;
    for (unsigned i = 0; i < f->trace_count && i < FIXTURE_TRACES; i++) {
        count += f->traces[i].event == VHOST_TRACE_STATE && f->traces[i].value == (int64_t)state;
    }
    return count;
}

TEST a_recovered_device_goes_on_where_it_was(fixture *f)
{
    ASSERT_OK(broken(f));
    vhost_features sent = f->mock[0].features;
    f->trace_count = 0;
    ASSERT_OK(vhost_device_recover(&f->device[0]));
    ASSERT_INT(VHOST_STATE_RUNNING, f->device[0].state);
    ASSERT_UINT(1, entered(f, VHOST_STATE_RUNNING));
    ASSERT_UINT(0, entered(f, VHOST_STATE_STOPPED));
    ASSERT_UINT(4, f->mock[0].rings[1].position);
    ASSERT_U64(sent.word[0], f->mock[0].features.word[0]);
    ASSERT_UINT(0, f->broken[0] + f->errors);
    mock_advance(&f->mock[0], 1, 3);
    ASSERT_OK(vhost_device_stop(&f->device[0]));
    ASSERT_UINT(7, f->queue[0][1].position.avail);
    PASS();
}

TEST a_device_that_broke_while_stopped_recovers_stopped(fixture *f)
{
    ASSERT_OK(fixture_stopped_device(f));
    fixture_break(f, 0);
    mock_revive(&f->mock[0]);
    mock_forget(&f->mock[0]);
    ASSERT_OK(vhost_device_recover(&f->device[0]));
    ASSERT_INT(VHOST_STATE_STOPPED, f->device[0].state);
    ASSERT_UINT(0, f->mock[0].calls.count);
    ASSERT_U64(f->accepted.word[0], f->device[0].acked.word[0]);
    ASSERT_OK(vhost_device_start(&f->device[0]));
    return fixture_check(f);
}

TEST a_guess_is_refused_before_the_back_end_is_opened(fixture *f)
{
    ASSERT_OK(fixture_running_device(f));
    mock_advance(&f->mock[0], 1, 4);
    fixture_break(f, 0);
    mock_revive(&f->mock[0]);
    f->queue[0][0].position.state = VHOST_POSITION_CERTAIN;
    f->queue[0][2].position.state = VHOST_POSITION_CERTAIN;
    ASSERT_FAILS(f, vhost_device_recover(&f->device[0]), &f->device[0].last_error, -EINVAL,
                 VHOST_WHY_POSITION_GUESSED);
    ASSERT_INT(1, f->device[0].last_error.queue);
    ASSERT_UINT(1, f->mock[0].opens);
    f->queue[0][1].position.state = VHOST_POSITION_CERTAIN;
    f->queue[0][1].position.avail = 3; /* the VMM knows better */
    ASSERT_OK(vhost_device_recover(&f->device[0]));
    ASSERT_UINT(3, f->mock[0].rings[1].position);
    return fixture_check(f);
}

TEST only_a_broken_device_recovers(fixture *f)
{
    ASSERT_INT(-EBUSY, vhost_device_recover(&f->device[0]));
    ASSERT_OK(fixture_stopped_device(f));
    ASSERT_FAILS(f, vhost_device_recover(&f->device[0]), &f->device[0].last_error, -EBUSY,
                 VHOST_WHY_STATE);
    ASSERT_OK(vhost_device_start(&f->device[0]));
    ASSERT_FAILS(f, vhost_device_recover(&f->device[0]), &f->device[0].last_error, -EBUSY,
                 VHOST_WHY_STATE);
    return fixture_check(f);
}

/* ---- a back-end that comes back with less ---- */

static void lose_a_feature(vhost_facts *facts)
{
    vhost_features_clear(&facts->offered, VHOST_FEATURE_IN_ORDER);
}

/* It is the VMM's to offer, but the back-end was told of it. */
static void lose_a_feature_of_the_vmm(vhost_facts *facts)
{
    lose_a_feature(facts);
    vhost_features_clear(&facts->its_bits, VHOST_FEATURE_IN_ORDER);
}

static void lose_a_slot(vhost_facts *facts)
{
    facts->max_regions = 7;
}

static void change_profile(vhost_facts *facts)
{
    facts->profile = VHOST_PROFILE_BY_FD;
}

static void change_log(vhost_facts *facts)
{
    facts->log_kind = VHOST_DIRTY_PRIVATE;
}

TEST a_back_end_that_comes_back_with_less_is_refused(fixture *f)
{
    static const struct {
        void (*change)(vhost_facts *facts);
        int code;
    } losses[] = {{lose_a_feature, -EINVAL},
                  {lose_a_feature_of_the_vmm, -EINVAL},
                  {lose_a_slot, -ENOSPC},
                  {change_profile, -EINVAL},
                  {change_log, -EINVAL}};
    for (unsigned limit = 0; limit <= 8; limit += 8) { /* slots; 0: no limit */
        for (unsigned i = 0; i < sizeof losses / sizeof *losses; i++) {
            f->mock[0].facts.max_regions = limit;
            ASSERT_OK(broken(f));
            vhost_facts facts = f->mock[0].facts;
            losses[i].change(&f->mock[0].facts);
            for (int twice = 0; twice < 2; twice++) {
                ASSERT_FAILS(f, vhost_device_recover(&f->device[0]), &f->device[0].last_error,
                             losses[i].code, VHOST_WHY_BACKEND_LESS);
                ASSERT_UINT(0, f->mock[0].calls.count);
                CHECK_CALL(fixture_check(f));
            }
            f->mock[0].facts = facts;
            ASSERT_OK(vhost_device_recover(&f->device[0]));
            CHECK_CALL(fixture_check(f));
            CHECK_CALL(fixture_renew(f));
        }
    }
    PASS();
}

TEST a_back_end_that_comes_back_with_more_is_welcome(fixture *f)
{
    f->mock[0].facts.max_regions = 8;
    ASSERT_OK(broken(f));
    f->mock[0].facts.max_regions = 9;
    vhost_features_set(&f->mock[0].facts.offered, VHOST_FEATURE_RING_RESET);
    ASSERT_OK(vhost_device_recover(&f->device[0]));
    return fixture_check(f);
}

/* ---- failures ---- */

TEST a_failed_recovery_is_no_second_break(fixture *f)
{
    ASSERT_OK(broken(f));
    int first = vhost_device_stop(&f->device[0]);
    mock_refuse(&f->mock[0], VHOST_OP_ENABLE_RING, -1, -EPERM); /* on and off: it is severed */
    f->trace_count = 0;
    for (int i = 0; i < 3; i++) {
        ASSERT_INT(-EPERM, vhost_device_recover(&f->device[0]));
        ASSERT_INT(VHOST_STATE_BROKEN, f->device[0].state);
        ASSERT_INT(first, vhost_device_stop(&f->device[0]));
    }
    ASSERT_UINT(0, f->broken[0]);
    ASSERT_UINT(0, entered(f, VHOST_STATE_STOPPED) + entered(f, VHOST_STATE_BROKEN));
    mock_revive(&f->mock[0]);
    ASSERT_OK(vhost_device_recover(&f->device[0]));
    ASSERT_UINT(4, f->mock[0].rings[1].position);
    return fixture_check(f);
}

TEST after_a_failed_recovery_a_reset_works(fixture *f)
{
    ASSERT_OK(broken(f));
    mock_refuse(&f->mock[0], VHOST_OP_SET_TABLE, -1, -EPERM);
    ASSERT_INT(-EPERM, vhost_device_recover(&f->device[0]));
    mock_revive(&f->mock[0]);
    ASSERT_OK(vhost_device_reset(&f->device[0]));
    ASSERT_INT(VHOST_STATE_STOPPED, f->device[0].state);
    ASSERT_OK(vhost_device_ack(&f->device[0], f->accepted));
    ASSERT_OK(fixture_start(f, 0));
    return fixture_check(f);
}

TEST a_ring_whose_memory_went_away_does_not_recover(fixture *f)
{
    ASSERT_OK(broken(f));
    ASSERT_OK(fixture_map(f, &f->high, 1));
    ASSERT_FAILS(f, vhost_device_recover(&f->device[0]), &f->device[0].last_error, -EFAULT,
                 VHOST_WHY_RING_UNMAPPED);
    CHECK_CALL(fixture_check(f));
    ASSERT_OK(fixture_map_default(f));
    ASSERT_OK(vhost_device_recover(&f->device[0]));
    return fixture_check(f);
}

TEST a_start_that_broke_the_device_recovers_to_stopped(fixture *f)
{
    ASSERT_OK(broken(f));
    ASSERT_OK(vhost_device_recover(&f->device[0])); /* what it did before does not count */
    ASSERT_OK(vhost_device_stop(&f->device[0]));
    mock_refuse(&f->mock[0], VHOST_OP_ENABLE_RING, -1, -EPERM); /* on and off */
    ASSERT_INT(-EPERM, vhost_device_start(&f->device[0]));
    ASSERT_INT(VHOST_STATE_BROKEN, f->device[0].state);
    mock_revive(&f->mock[0]);
    ASSERT_OK(vhost_device_recover(&f->device[0]));
    ASSERT_INT(VHOST_STATE_STOPPED, f->device[0].state);
    return fixture_check(f);
}

TEST a_device_that_recovers_while_the_vm_logs_logs(fixture *f)
{
    f->mock[0].facts.log_kind = VHOST_DIRTY_PRIVATE;
    vhost_features_set(&f->mock[0].facts.offered, VHOST_FEATURE_LOG_ALL);
    ASSERT_OK(broken(f));
    ASSERT_OK(vhost_log_start(&f->vm));
    ASSERT_OK(vhost_device_recover(&f->device[0]));
    ASSERT(mock_logs(&f->mock[0]));
    ASSERT(f->mock[0].rings[1].addresses.log);
    return fixture_check(f);
}

SUITE(recover_suite)
{
    RUN_ALL(a_recovered_device_goes_on_where_it_was);
    RUN_BOTH(a_device_that_broke_while_stopped_recovers_stopped);
    RUN_BOTH(a_guess_is_refused_before_the_back_end_is_opened);
    RUN_BOTH(only_a_broken_device_recovers);
    RUN_BOTH(a_back_end_that_comes_back_with_less_is_refused);
    RUN_BOTH(a_back_end_that_comes_back_with_more_is_welcome);
    RUN_ALL(a_failed_recovery_is_no_second_break);
    RUN_ALL(after_a_failed_recovery_a_reset_works);
    RUN_BOTH(a_ring_whose_memory_went_away_does_not_recover);
    RUN_BOTH(a_start_that_broke_the_device_recovers_to_stopped);
    RUN_BOTH(a_device_that_recovers_while_the_vm_logs_logs);
}
