/* Back-ends that map each section by itself, that start and stop all queues together, or that log
   only a part of what they write: what the core makes of these facts. */
#include "fixture.h"

#include <errno.h>

enum {
    RING_PAGE = 2 /* of `low`: where some ring part is cut in two */
};

/* `low` in two neighbours, the first of `pages`, with `flags`; and high memory. */
static int map_cut(fixture *f, uint64_t pages, uint32_t flags)
{
    vhost_section sections[3];
    sections[0] = fixture_section(f, 0, pages, 0);
    sections[0].flags = flags;
    sections[1] = fixture_section(f, pages * VHOST_PAGE, 128 - pages, pages);
    sections[2] = f->high;
    return fixture_map(f, sections, 3);
}

static int attach(fixture *f, vhost_profile profile)
{
    f->mock[0].facts.profile = profile;
    return fixture_attach(f, 0);
}

TEST neighbours_are_maps_of_their_own(fixture *f)
{
    ASSERT_OK(map_cut(f, 64, 0));
    ASSERT_OK(attach(f, VHOST_PROFILE_MAPS));
    ASSERT_UINT(3, vhost_device_table(&f->device[0])->count);
    CHECK_CALL(fixture_renew(f));
    ASSERT_OK(map_cut(f, 64, 0));
    ASSERT_OK(attach(f, VHOST_PROFILE_BY_HOST));
    ASSERT_UINT(2, vhost_device_table(&f->device[0])->count);
    PASS();
}

/* A device sees IOVAs, which go on from one map to the next. */
TEST a_ring_may_run_through_two_maps(fixture *f)
{
    ASSERT_OK(map_cut(f, RING_PAGE, 0));
    ASSERT_OK(attach(f, VHOST_PROFILE_MAPS));
    fixture_fill(f, 0);
    f->queue[0][0].desc = RING_PAGE * VHOST_PAGE - 16;
    ASSERT_OK(vhost_device_start(&f->device[0]));
    return fixture_check(f);
}

TEST a_ring_outside_of_all_maps_is_refused(fixture *f)
{
    ASSERT_OK(map_cut(f, RING_PAGE, VHOST_SECTION_ROM));
    ASSERT_OK(attach(f, VHOST_PROFILE_MAPS));
    fixture_fill(f, 0);
    f->queue[0][0].avail = 0;
    ASSERT_FAILS(f, vhost_device_start(&f->device[0]), &f->device[0].last_error, -EFAULT,
                 VHOST_WHY_RING_UNMAPPED);
    return fixture_check(f);
}

TEST one_queue_alone_is_not_started_or_stopped(fixture *f)
{
    f->mock[0].facts.queues_together = true;
    ASSERT_OK(fixture_running_device(f));
    mock_forget(&f->mock[0]);
    ASSERT_FAILS(f, vhost_queue_stop(&f->device[0], 1), &f->device[0].last_error, -ENOTSUP,
                 VHOST_WHY_NOT_SUPPORTED);
    ASSERT_FAILS(f, vhost_queue_start(&f->device[0], 1), &f->device[0].last_error, -ENOTSUP,
                 VHOST_WHY_NOT_SUPPORTED);
    ASSERT_UINT(0, f->mock[0].calls.count);
    ASSERT(f->queue[0][1].started);
    return fixture_check(f);
}

/* It offers LOG_ALL; what is known of it says more. */
TEST a_log_that_leaves_writes_out_is_none(fixture *f)
{
    vhost_why why = VHOST_WHY_NONE;
    f->mock[0].facts.log_kind = VHOST_DIRTY_PRIVATE;
    vhost_features_set(&f->mock[0].facts.offered, VHOST_FEATURE_LOG_ALL);
    f->mock[0].facts.log_obstacle = VHOST_WHY_LOG_PARTIAL;
    ASSERT_OK(fixture_running_device(f));
    ASSERT_PTR(&f->device[0], vhost_log_blocker(&f->vm, NULL, &why));
    ASSERT_INT(VHOST_WHY_LOG_PARTIAL, why);
    ASSERT_FAILS(f, vhost_log_start(&f->vm), &f->vm.last_error, -ENOTSUP, VHOST_WHY_LOG_PARTIAL);
    vhost_device_cleanup(&f->device[0]);
    ASSERT_OK(vhost_log_start(&f->vm));
    ASSERT_FAILS(f, fixture_attach(f, 0), &f->device[0].last_error, -ENOTSUP,
                 VHOST_WHY_LOG_PARTIAL);
    PASS();
}

SUITE(maps_suite)
{
    RUN_BOTH(neighbours_are_maps_of_their_own);
    RUN_BOTH(a_ring_may_run_through_two_maps);
    RUN_BOTH(a_ring_outside_of_all_maps_is_refused);
    RUN_BOTH(one_queue_alone_is_not_started_or_stopped);
    RUN_BOTH(a_log_that_leaves_writes_out_is_none);
}
