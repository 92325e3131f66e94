/* Back-ends with memory slots, told of a map that changes while their rings run: >>commit. */
#include "fixture.h"

#include <errno.h>
#include <string.h>

#define PAGE VHOST_PAGE

/* Low memory with the rings, `pages` of high memory, and more of it far away. */
static int map_some(fixture *f, uint64_t pages, bool remote)
{
    vhost_section sections[3];
    size_t count = 1;
    f->ram.fd = 5;
    sections[0] = f->low;
    if (pages > 0) {
        sections[count++] = fixture_section(f, FIXTURE_HIGH, pages, 128);
    }
    if (remote) {
        sections[count++] = fixture_section(f, FIXTURE_REMOTE, 4, 200);
    }
    return fixture_map(f, sections, count);
}

/* Device 0 runs, and has used up 4 buffers of queue 1. */
static int running(fixture *f, vhost_profile profile)
{
    f->mock[0].facts.profile = profile;
    int result = map_some(f, 8, false);
    if (result == 0) {
        result = fixture_attach(f, 0);
    }
    if (result == 0) {
        result = fixture_start(f, 0);
    }
    if (result == 0) {
        mock_advance(&f->mock[0], 1, 4);
        mock_forget(&f->mock[0]);
    }
    return result;
}

static int place(const fixture *f, vhost_op op, int queue)
{
    return mock_find(&f->mock[0], op, queue, 0);
}

TEST memory_that_only_comes_or_goes_stops_no_ring(fixture *f)
{
    ASSERT_OK(running(f, VHOST_PROFILE_SLOTS));
    ASSERT_OK(map_some(f, 8, true));
    ASSERT_OK(map_some(f, 8, false));
    ASSERT_OK(map_some(f, 0, false));
    ASSERT_OK(map_some(f, 0, true));
    ASSERT_UINT(4, mock_count(&f->mock[0], VHOST_OP_SET_TABLE, -1));
    ASSERT_UINT(4, f->mock[0].calls.count);
    return fixture_check(f);
}

TEST what_goes_and_comes_apart_stops_no_ring(fixture *f)
{
    ASSERT_OK(running(f, VHOST_PROFILE_SLOTS));
    ASSERT_OK(map_some(f, 0, true));
    ASSERT_UINT(1, f->mock[0].calls.count);
    ASSERT_OK(map_some(f, 8, false));
    ASSERT_UINT(2, f->mock[0].calls.count);
    return fixture_check(f);
}

TEST a_region_that_changes_stops_the_rings_around_the_change(fixture *f)
{
    ASSERT_OK(running(f, VHOST_PROFILE_SLOTS));
    unsigned fences = f->mock[0].fences;
    ASSERT_OK(map_some(f, 9, false));
    int table = place(f, VHOST_OP_SET_TABLE, -1);
    for (int q = 0; q < FIXTURE_QUEUES; q++) {
        int stopped = place(f, VHOST_OP_GET_RING_BASE, q);
        int set_up = place(f, VHOST_OP_SET_RING_ADDRESSES, q);
        int kicked = place(f, VHOST_OP_SET_RING_KICK, q);
        ASSERT(stopped >= 0 && stopped < table && table < set_up && set_up < kicked);
        ASSERT(mock_find(&f->mock[0], VHOST_OP_ENABLE_RING, q, kicked) > kicked);
        ASSERT(f->queue[0][q].started);
    }
    ASSERT(place(f, VHOST_OP_SET_RING_KICK, 0) > place(f, VHOST_OP_SET_RING_ADDRESSES, 2));
    ASSERT_UINT(0, mock_count(&f->mock[0], VHOST_OP_SET_RUNNING, -1));
    ASSERT(f->mode == MOCK_SYNCHRONOUS || f->mock[0].fences == fences + 2);
    ASSERT_UINT(4, f->mock[0].rings[1].position);
    CHECK_CALL(fixture_check(f));
    mock_advance(&f->mock[0], 1, 3);
    ASSERT_OK(vhost_device_stop(&f->device[0]));
    ASSERT_UINT(7, f->queue[0][1].position.avail);
    return fixture_check(f);
}

TEST a_queue_that_was_stopped_stays_so(fixture *f)
{
    ASSERT_OK(running(f, VHOST_PROFILE_SLOTS));
    ASSERT_OK(vhost_queue_stop(&f->device[0], 2));
    mock_forget(&f->mock[0]);
    ASSERT_OK(map_some(f, 9, false));
    ASSERT_UINT(1, mock_count(&f->mock[0], VHOST_OP_SET_RING_KICK, 1));
    ASSERT_UINT(0, mock_count(&f->mock[0], VHOST_OP_SET_RING_KICK, 2));
    ASSERT_FALSE(f->queue[0][2].started);
    return fixture_check(f);
}

TEST whole_tables_stop_no_ring(fixture *f)
{
    for (int profile = VHOST_PROFILE_BY_HOST; profile <= VHOST_PROFILE_BY_FD; profile++) {
        ASSERT_OK(running(f, (vhost_profile)profile));
        ASSERT_OK(map_some(f, 9, false));
        ASSERT_UINT(1, f->mock[0].calls.count);
        CHECK_CALL(fixture_renew(f));
    }
    PASS();
}

TEST a_ring_that_does_not_say_where_it_stopped_cannot_go_on(fixture *f)
{
    ASSERT_OK(running(f, VHOST_PROFILE_SLOTS));
    f->mock[0].rings[1].position = 0x10000;
    ASSERT_OK(map_some(f, 9, false));
    ASSERT_INT(VHOST_STATE_BROKEN, f->device[0].state);
    ASSERT_INT(-EPROTO, f->device[0].last_error.code);
    ASSERT_INT(VHOST_WHY_POSITION_GUESSED, f->device[0].last_error.why);
    CHECK_CALL(fixture_names(&f->device[0].last_error, VHOST_OP_GET_RING_BASE, 1));
    ASSERT_UINT(0, mock_count(&f->mock[0], VHOST_OP_SET_TABLE, -1));
    ASSERT_UINT(1, f->broken[0]);
    return fixture_check(f);
}

TEST a_paused_ring_is_given_back_as_written(fixture *f)
{
    f->device_options.memory = &fixture_memory_ops;
    ASSERT_OK(running(f, VHOST_PROFILE_SLOTS));
    mock_refuse(&f->mock[0], VHOST_OP_SET_TABLE, -1, -EPERM);
    ASSERT_OK(map_some(f, 9, false));
    ASSERT_INT(VHOST_STATE_BROKEN, f->device[0].state);
    ASSERT_UINT(FIXTURE_QUEUES, f->written[VHOST_USED]);
    ASSERT_UINT(4, f->queue[0][1].position.avail);
    return fixture_check(f);
}

/* Stubborn, it ran the ring from wherever: its answer is worth nothing. */
TEST a_ring_that_went_on_without_its_position_is_not_trusted(fixture *f)
{
    ASSERT_OK(running(f, VHOST_PROFILE_SLOTS));
    mock_refuse(&f->mock[0], VHOST_OP_SET_RING_BASE, 1, -EPERM);
    ASSERT_OK(map_some(f, 9, false));
    ASSERT_INT(VHOST_STATE_BROKEN, f->device[0].state);
    bool ran = f->mode == MOCK_QUEUED_STUBBORN;
    ASSERT_INT(ran ? VHOST_POSITION_GUESSED : VHOST_POSITION_CERTAIN,
               f->queue[0][1].position.state);
    ASSERT_INT(VHOST_POSITION_CERTAIN, f->queue[0][0].position.state);
    ASSERT_UINT(4, f->queue[0][1].position.avail);
    f->mock[0].complaint[0] = '\0'; /* that it began before it was set up */
    return fixture_check(f);
}

/* Each operation of the commit fails; the device breaks, and its positions are true. */
static enum greatest_test_res fail_each(fixture *f, fault_plan plan)
{
    bool hit = true;
    for (unsigned nth = 1; hit; nth++) {
        ASSERT(nth < 100);
        CHECK_CALL(fixture_renew(f));
        vhost_features_set(&f->accepted, VHOST_FEATURE_IN_ORDER);
        ASSERT_OK(running(f, VHOST_PROFILE_SLOTS));
        fault_arm(&f->fault, plan, nth, 0);
        f->fault.only_operations = true;
        ASSERT_OK(map_some(f, 9, false));
        fault_disarm(&f->fault);
        hit = f->fault.hit;
        ASSERT_INT(hit ? VHOST_STATE_BROKEN : VHOST_STATE_RUNNING, f->device[0].state);
        ASSERT_UINT(hit, f->broken[0]);
        ASSERT_UINT(hit ? 1 : 0, f->errors);
        for (unsigned q = 0; q < FIXTURE_QUEUES && hit; q++) {
            ASSERT_INT(VHOST_POSITION_CERTAIN, f->queue[0][q].position.state);
            ASSERT_UINT(q == 1 ? 4 : 0, f->queue[0][q].position.avail);
        }
        CHECK_CALL(fixture_check(f));
        if (hit) {
            mock_revive(&f->mock[0]);
            ASSERT_OK(vhost_device_recover(&f->device[0]));
            CHECK_CALL(fixture_check(f));
        }
    }
    PASS();
}

TEST each_operation_around_the_change_fails(fixture *f)
{
    return fail_each(f, FAULT_ONCE);
}

TEST the_back_end_dies_in_each_operation_around_the_change(fixture *f)
{
    return fail_each(f, FAULT_DEATH);
}

SUITE(slots_suite)
{
    RUN_BOTH(memory_that_only_comes_or_goes_stops_no_ring);
    RUN_BOTH(what_goes_and_comes_apart_stops_no_ring);
    RUN_BOTH(a_region_that_changes_stops_the_rings_around_the_change);
    RUN_BOTH(a_queue_that_was_stopped_stays_so);
    RUN_BOTH(whole_tables_stop_no_ring);
    RUN_BOTH(a_ring_that_does_not_say_where_it_stopped_cannot_go_on);
    RUN_ALL(a_paused_ring_is_given_back_as_written);
    RUN_ALL(a_ring_that_went_on_without_its_position_is_not_trusted);
    RUN_ALL(each_operation_around_the_change_fails);
    RUN_ALL(the_back_end_dies_in_each_operation_around_the_change);
}
