/* A new memory map under running devices: >>commit. */
#include "fixture.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define PAGE VHOST_PAGE

/* The default map with one more section, out of the way of all rings. */
static int map_one_more(fixture *f)
{
    vhost_section sections[3];
    sections[0] = fixture_section(f, 0, 120, 0);
    sections[1] = fixture_section(f, 200 * PAGE, 8, 120);
    sections[2] = f->high;
    return fixture_map(f, sections, 3);
}

/* ---- what devices are told ---- */

TEST a_running_device_is_told_the_difference(fixture *f)
{
    ASSERT_OK(fixture_running_device(f));
    mock_forget(&f->mock[0]);
    ASSERT_OK(map_one_more(f));
    const mock_call *call = mock_last(&f->mock[0], VHOST_OP_SET_TABLE, -1);
    ASSERT_UINT(1, f->mock[0].calls.count);
    ASSERT(call->from_known);
    ASSERT_UINT(2, call->from_count);
    ASSERT_UINT(3, call->to_count);
    ASSERT_UINT(1, call->removed_count);
    ASSERT_UINT(2, call->added_count);
    ASSERT_INT(VHOST_STATE_RUNNING, f->device[0].state);
    PASS();
}

TEST the_commit_waits_for_the_back_end(fixture *f)
{
    ASSERT_OK(fixture_running_device(f));
    unsigned fences = f->mock[0].fences;
    ASSERT_OK(map_one_more(f));
    ASSERT_FALSE(mock_is_pending(&f->mock[0]));
    ASSERT_UINT(fences + (f->mode != MOCK_SYNCHRONOUS), f->mock[0].fences);
    ASSERT_UINT(3, f->mock[0].table_count);
    PASS();
}

TEST an_unchanged_map_is_told_to_nobody(fixture *f)
{
    ASSERT_OK(fixture_running_device(f));
    mock_forget(&f->mock[0]);
    ASSERT_OK(fixture_map_default(f));
    ASSERT_UINT(0, f->mock[0].calls.count);
    PASS();
}

TEST changes_that_back_ends_do_not_see_are_told_to_nobody(fixture *f)
{
    vhost_section sections[3];
    sections[0] = f->low;
    sections[1] = fixture_section(f, 200 * PAGE, 8, 120);
    sections[1].flags = VHOST_SECTION_ROM;
    sections[2] = f->high;
    ASSERT_OK(fixture_running_device(f));
    mock_forget(&f->mock[0]);
    ASSERT_OK(fixture_map(f, sections, 3));
    ASSERT_UINT(0, f->mock[0].calls.count);
    vhost_extent extent;
    ASSERT_OK(vhost_memory_find(&f->vm, 200 * PAGE, &extent));
    PASS();
}

TEST another_split_of_the_same_memory_is_no_change(fixture *f)
{
    vhost_section sections[3];
    sections[0] = fixture_section(f, 0, 10, 0);
    sections[1] = fixture_section(f, 10 * PAGE, 118, 10);
    sections[2] = f->high;
    ASSERT_OK(fixture_running_device(f));
    mock_forget(&f->mock[0]);
    ASSERT_OK(fixture_map(f, sections, 3));
    ASSERT_UINT(0, f->mock[0].calls.count);
    return fixture_check(f);
}

TEST a_stopped_device_is_told_at_its_next_start(fixture *f)
{
    ASSERT_OK(fixture_running_device(f));
    ASSERT_OK(vhost_device_stop(&f->device[0]));
    mock_forget(&f->mock[0]);
    ASSERT_OK(map_one_more(f));
    ASSERT_UINT(0, f->mock[0].calls.count);
    ASSERT_OK(vhost_device_start(&f->device[0]));
    const mock_call *call = mock_last(&f->mock[0], VHOST_OP_SET_TABLE, -1);
    ASSERT(call->from_known);
    ASSERT_UINT(2, call->from_count);
    ASSERT_UINT(3, f->mock[0].table_count);
    PASS();
}

TEST the_first_table_comes_from_nothing(fixture *f)
{
    ASSERT_OK(fixture_running_device(f));
    const mock_call *call = mock_last(&f->mock[0], VHOST_OP_SET_TABLE, -1);
    ASSERT_FALSE(call->from_known);
    ASSERT_UINT(0, call->removed_count);
    ASSERT_UINT(2, call->added_count);
    PASS();
}

TEST every_running_device_is_told(fixture *f)
{
    ASSERT_OK(fixture_map_default(f));
    for (unsigned d = 0; d < FIXTURE_DEVICES; d++) {
        ASSERT_OK(fixture_attach(f, d));
        ASSERT_OK(d == 1 ? 0 : fixture_start(f, d));
    }
    ASSERT_OK(map_one_more(f));
    ASSERT_UINT(3, f->mock[0].table_count);
    ASSERT_UINT(0, mock_count(&f->mock[1], VHOST_OP_SET_TABLE, -1));
    ASSERT_UINT(3, f->mock[2].table_count);
    PASS();
}

/* ---- slots of several devices ---- */

TEST one_device_with_too_few_slots_holds_the_commit_back(fixture *f)
{
    f->mock[1].facts.max_regions = 2;
    ASSERT_OK(fixture_map_default(f));
    for (unsigned d = 0; d < FIXTURE_DEVICES; d++) {
        ASSERT_OK(fixture_attach(f, d));
        ASSERT_OK(fixture_start(f, d));
        mock_forget(&f->mock[d]);
    }
    ASSERT_FAILS(f, map_one_more(f), &f->vm.last_error, -ENOSPC, VHOST_WHY_TOO_MANY_REGIONS);
    for (unsigned d = 0; d < FIXTURE_DEVICES; d++) {
        ASSERT_UINT(0, f->mock[d].calls.count);
        ASSERT_INT(VHOST_STATE_RUNNING, f->device[d].state);
    }
    vhost_extent extent;
    ASSERT_INT(-EFAULT, vhost_memory_find(&f->vm, 200 * PAGE, &extent));
    vhost_device_cleanup(&f->device[1]);
    ASSERT_OK(map_one_more(f));
    return fixture_check(f);
}

/* ---- rings that lose their memory ---- */

/* The commit breaks device 0 for this reason, at queue `queue`, and succeeds. */
static enum greatest_test_res breaks(fixture *f, const vhost_section *sections, size_t count,
                                     vhost_why why, int queue)
{
    unsigned errors = f->errors;
    ASSERT_OK(fixture_map(f, sections, count));
    ASSERT_INT(VHOST_STATE_BROKEN, f->device[0].state);
    CHECK_CALL(fixture_failed(f, errors, &f->device[0].last_error, -EFAULT, why));
    CHECK_CALL(fixture_names(&f->device[0].last_error, VHOST_OP_NONE, queue));
    ASSERT_UINT(1, f->broken[0]);
    ASSERT_UINT(1, f->mock[0].severs);
    ASSERT_INT(0, f->vm.last_error.code);
    return fixture_check(f);
}

TEST a_ring_whose_region_vanishes_breaks_its_device(fixture *f)
{
    ASSERT_OK(fixture_running_device(f));
    return breaks(f, &f->high, 1, VHOST_WHY_RING_UNMAPPED, 0);
}

TEST a_ring_of_which_the_end_vanishes_breaks_its_device(fixture *f)
{
    ASSERT_OK(fixture_stopped_device(f));
    f->queue[0][2].desc = 99 * PAGE - 512;
    ASSERT_OK(vhost_device_start(&f->device[0]));
    vhost_section section = fixture_section(f, 0, 99, 0);
    return breaks(f, &section, 1, VHOST_WHY_RING_UNMAPPED, 2);
}

TEST a_ring_of_which_the_beginning_vanishes_breaks_its_device(fixture *f)
{
    ASSERT_OK(fixture_stopped_device(f));
    for (unsigned q = 0; q < FIXTURE_QUEUES; q++) {
        f->queue[0][q].desc += 64 * PAGE;
        f->queue[0][q].avail += 64 * PAGE;
        f->queue[0][q].used += 64 * PAGE;
    }
    f->queue[0][1].avail = 32 * PAGE - 2;
    ASSERT_OK(vhost_device_start(&f->device[0]));
    vhost_section section = fixture_section(f, 32 * PAGE, 96, 32);
    return breaks(f, &section, 1, VHOST_WHY_RING_UNMAPPED, 1);
}

TEST a_ring_that_moves_breaks_its_device(fixture *f)
{
    vhost_section section = fixture_section(f, 0, 128, 128);
    ASSERT_OK(fixture_running_device(f));
    return breaks(f, &section, 1, VHOST_WHY_RING_MOVED, 0);
}

TEST a_ring_of_which_a_page_moves_breaks_its_device(fixture *f)
{
    vhost_section sections[3];
    uint64_t page = 8 + 4 * 2 + 2; /* the used ring of queue 2 */
    sections[0] = fixture_section(f, 0, page, 0);
    sections[1] = fixture_section(f, page * PAGE, 1, 200);
    sections[2] = fixture_section(f, (page + 1) * PAGE, 100, page + 1);
    ASSERT_OK(fixture_running_device(f));
    return breaks(f, sections, 3, VHOST_WHY_RING_MOVED, 2);
}

TEST a_used_ring_that_becomes_rom_breaks_its_device(fixture *f)
{
    vhost_section section = f->low;
    section.flags = VHOST_SECTION_ROM;
    ASSERT_OK(fixture_running_device(f));
    return breaks(f, &section, 1, VHOST_WHY_RING_READ_ONLY, 0);
}

TEST a_ring_that_straddles_adjacent_regions_stays(fixture *f)
{
    vhost_section sections[2];
    ASSERT_OK(fixture_stopped_device(f));
    f->queue[0][1].used = 64 * PAGE - 1024;
    ASSERT_OK(vhost_device_start(&f->device[0]));
    sections[0] = fixture_section(f, 0, 64, 0);
    sections[1] = fixture_section(f, 64 * PAGE, 64, 64);
    sections[1].flags = VHOST_SECTION_UNMERGEABLE;
    ASSERT_OK(fixture_map(f, sections, 2));
    ASSERT_INT(VHOST_STATE_RUNNING, f->device[0].state);
    return fixture_check(f);
}

TEST rings_outside_of_the_table_stay_too(fixture *f)
{
    vhost_section sections[2] = {f->low, f->high};
    sections[0].flags = VHOST_SECTION_DIRTY_TRACKED;
    ASSERT_OK(fixture_running_device(f));
    ASSERT_OK(fixture_map(f, sections, 2));
    ASSERT_INT(VHOST_STATE_RUNNING, f->device[0].state);
    ASSERT_UINT(1, f->mock[0].table_count);
    return fixture_check(f);
}

TEST queues_that_are_not_started_are_not_checked(fixture *f)
{
    ASSERT_OK(fixture_stopped_device(f));
    f->queue[0][0].ready = false;
    f->queue[0][2].used = FIXTURE_HIGH;
    ASSERT_OK(vhost_device_start(&f->device[0]));
    ASSERT_OK(vhost_queue_stop(&f->device[0], 2));
    ASSERT_OK(fixture_map(f, &f->low, 1));
    ASSERT_INT(VHOST_STATE_RUNNING, f->device[0].state);
    return fixture_check(f);
}

TEST a_stopped_device_does_not_break(fixture *f)
{
    ASSERT_OK(fixture_running_device(f));
    ASSERT_OK(vhost_device_stop(&f->device[0]));
    ASSERT_OK(fixture_map(f, NULL, 0));
    ASSERT_INT(VHOST_STATE_STOPPED, f->device[0].state);
    ASSERT_UINT(0, f->errors);
    ASSERT_OK(fixture_map_default(f));
    ASSERT_OK(vhost_device_start(&f->device[0]));
    return fixture_check(f);
}

TEST a_device_that_breaks_hands_its_positions_back(fixture *f)
{
    ASSERT_OK(fixture_running_device(f));
    mock_advance(&f->mock[0], 1, 5);
    ASSERT_OK(fixture_map(f, &f->high, 1));
    ASSERT_INT(VHOST_POSITION_CERTAIN, f->queue[0][1].position.state);
    ASSERT_UINT(5, f->queue[0][1].position.avail);
    PASS();
}

TEST one_device_breaks_and_the_others_go_on(fixture *f)
{
    ASSERT_OK(fixture_map_default(f));
    for (unsigned d = 0; d < FIXTURE_DEVICES; d++) {
        ASSERT_OK(fixture_attach(f, d));
        fixture_fill(f, d);
    }
    f->queue[1][2].desc = FIXTURE_HIGH;
    for (unsigned d = 0; d < FIXTURE_DEVICES; d++) {
        ASSERT_OK(vhost_device_start(&f->device[d]));
    }
    ASSERT_OK(fixture_map(f, &f->low, 1));
    ASSERT_INT(VHOST_STATE_RUNNING, f->device[0].state);
    ASSERT_INT(VHOST_STATE_BROKEN, f->device[1].state);
    ASSERT_INT(VHOST_STATE_RUNNING, f->device[2].state);
    ASSERT_UINT(1, f->mock[0].table_count);
    ASSERT_UINT(1, f->mock[2].table_count);
    return fixture_check(f);
}

TEST a_doomed_device_is_not_told_the_new_table(fixture *f)
{
    ASSERT_OK(fixture_running_device(f));
    mock_forget(&f->mock[0]);
    ASSERT_OK(fixture_map(f, &f->high, 1));
    ASSERT_UINT(0, mock_count(&f->mock[0], VHOST_OP_SET_TABLE, -1));
    PASS();
}

TEST a_broken_device_comes_back_after_reset(fixture *f)
{
    ASSERT_OK(fixture_running_device(f));
    ASSERT_OK(fixture_map(f, &f->high, 1));
    ASSERT_OK(fixture_map_default(f));
    ASSERT_OK(vhost_device_reset(&f->device[0]));
    ASSERT_OK(vhost_device_ack(&f->device[0], f->accepted));
    ASSERT_OK(fixture_start(f, 0));
    return fixture_check(f);
}

TEST rings_mapped_by_memory_ops_are_checked_by_their_gpa(fixture *f)
{
    f->device_options.memory = &fixture_memory_ops;
    ASSERT_OK(fixture_running_device(f));
    ASSERT_OK(map_one_more(f));
    ASSERT_INT(VHOST_STATE_RUNNING, f->device[0].state);
    ASSERT_OK(fixture_map(f, &f->high, 1));
    ASSERT_INT(VHOST_STATE_BROKEN, f->device[0].state);
    ASSERT_INT(0, f->mappings);
    PASS();
}

/* ---- back-ends that refuse ---- */

TEST a_back_end_that_refuses_the_table_breaks(fixture *f)
{
    ASSERT_OK(fixture_running_device(f));
    mock_advance(&f->mock[0], 1, 5);
    mock_refuse(&f->mock[0], VHOST_OP_SET_TABLE, -1, -E2BIG);
    unsigned errors = f->errors;
    ASSERT_OK(map_one_more(f));
    ASSERT_INT(VHOST_STATE_BROKEN, f->device[0].state);
    CHECK_CALL(
        fixture_failed(f, errors, &f->device[0].last_error, -E2BIG, VHOST_WHY_BACKEND_REFUSED));
    CHECK_CALL(fixture_names(&f->device[0].last_error, VHOST_OP_SET_TABLE, -1));
    ASSERT_INT(-E2BIG, vhost_device_stop(&f->device[0]));
    ASSERT_UINT(1, f->broken[0]);
    ASSERT_INT(VHOST_POSITION_CERTAIN, f->queue[0][1].position.state);
    ASSERT_UINT(5, f->queue[0][1].position.avail);
    PASS();
}

TEST a_back_end_that_dies_in_a_commit_breaks_alone(fixture *f)
{
    ASSERT_OK(fixture_map_default(f));
    for (unsigned d = 0; d < FIXTURE_DEVICES; d++) {
        ASSERT_OK(fixture_attach(f, d));
        ASSERT_OK(fixture_start(f, d));
    }
    mock_die(&f->mock[1]);
    ASSERT_OK(map_one_more(f));
    ASSERT_INT(VHOST_STATE_RUNNING, f->device[0].state);
    ASSERT_INT(VHOST_STATE_BROKEN, f->device[1].state);
    ASSERT_INT(VHOST_WHY_BACKEND_LOST, f->device[1].last_error.why);
    ASSERT_INT(VHOST_STATE_RUNNING, f->device[2].state);
    ASSERT_UINT(1, f->errors);
    return fixture_check(f);
}

TEST a_broken_device_is_left_alone_by_commits(fixture *f)
{
    ASSERT_OK(fixture_running_device(f));
    fixture_break(f, 0);
    mock_forget(&f->mock[0]);
    ASSERT_OK(map_one_more(f));
    ASSERT_UINT(0, f->mock[0].calls.count);
    ASSERT_UINT(0, f->errors);
    PASS();
}

/* ---- backings ---- */

/* Nothing may look at a backing after the commit that leaves it out (the sanitizers watch). */
TEST a_backing_may_go_once_it_is_left_out(fixture *f)
{
    vhost_backing *extra = (vhost_backing *)malloc(sizeof *extra);
    ASSERT(extra);
    vhost_backing_init(extra, f->host, 8 * PAGE, -1, 0);
    vhost_section sections[2];
    sections[0] = f->low;
    vhost_section_init(&sections[1], FIXTURE_REMOTE, 8 * PAGE, extra, 0);
    ASSERT_OK(fixture_map(f, sections, 2));
    ASSERT_OK(fixture_attach(f, 0));
    ASSERT_OK(fixture_attach(f, 1));
    ASSERT_OK(fixture_start(f, 0));
    ASSERT_OK(fixture_start(f, 1));
    ASSERT_OK(vhost_device_stop(&f->device[1])); /* holds the old table on */
    ASSERT_OK(fixture_map(f, sections, 1));
    memset(extra, 0xee, sizeof *extra);
    free(extra);

    ASSERT_OK(map_one_more(f));
    ASSERT_OK(vhost_device_start(&f->device[1]));
    ASSERT_OK(fixture_attach(f, 2));
    ASSERT_OK(fixture_map(f, sections, 1));
    return fixture_check(f);
}

/* The same place in guest and host, but other memory behind it: not the same region. */
TEST another_backing_at_the_same_place_is_a_change(fixture *f)
{
    vhost_backing other = f->ram;
    vhost_section sections[2];
    sections[0] = f->low;
    sections[1] = f->high;
    sections[1].backing = &other;
    ASSERT_OK(fixture_running_device(f));
    mock_forget(&f->mock[0]);
    ASSERT_OK(fixture_map(f, sections, 2));
    const mock_call *call = mock_last(&f->mock[0], VHOST_OP_SET_TABLE, -1);
    ASSERT(call);
    ASSERT_UINT(1, call->removed_count);
    ASSERT_UINT(1, call->added_count);
    ASSERT_OK(fixture_map(f, &f->low, 1));
    PASS();
}

TEST commits_are_traced(fixture *f)
{
    ASSERT_OK(fixture_running_device(f));
    ASSERT_OK(fixture_map_default(f));
    const vhost_trace *trace = &f->traces[(f->trace_count - 1) % FIXTURE_TRACES];
    ASSERT_INT(VHOST_TRACE_COMMIT, trace->event);
    ASSERT_INT(2, trace->value);
    ASSERT_INT(0, trace->result);
    ASSERT_OK(fixture_map(f, &f->low, 1));
    trace = &f->traces[(f->trace_count - 1) % FIXTURE_TRACES];
    ASSERT_INT(VHOST_TRACE_COMMIT, trace->event);
    ASSERT_INT(1, trace->value);
    ASSERT_INT(1, trace->result);
    PASS();
}

/* ---- the suite ---- */

static void run_telling(void)
{
    RUN_BOTH(a_running_device_is_told_the_difference);
    RUN_BOTH(the_commit_waits_for_the_back_end);
    RUN_BOTH(an_unchanged_map_is_told_to_nobody);
    RUN_BOTH(changes_that_back_ends_do_not_see_are_told_to_nobody);
    RUN_BOTH(another_split_of_the_same_memory_is_no_change);
    RUN_BOTH(a_stopped_device_is_told_at_its_next_start);
    RUN_BOTH(the_first_table_comes_from_nothing);
    RUN_BOTH(every_running_device_is_told);
    RUN_BOTH(one_device_with_too_few_slots_holds_the_commit_back);
}

static void run_rings(void)
{
    RUN_BOTH(a_ring_whose_region_vanishes_breaks_its_device);
    RUN_BOTH(a_ring_of_which_the_end_vanishes_breaks_its_device);
    RUN_BOTH(a_ring_of_which_the_beginning_vanishes_breaks_its_device);
    RUN_BOTH(a_ring_that_moves_breaks_its_device);
    RUN_BOTH(a_ring_of_which_a_page_moves_breaks_its_device);
    RUN_BOTH(a_used_ring_that_becomes_rom_breaks_its_device);
    RUN_BOTH(a_ring_that_straddles_adjacent_regions_stays);
    RUN_BOTH(rings_outside_of_the_table_stay_too);
    RUN_BOTH(queues_that_are_not_started_are_not_checked);
    RUN_BOTH(a_stopped_device_does_not_break);
    RUN_BOTH(a_device_that_breaks_hands_its_positions_back);
    RUN_BOTH(one_device_breaks_and_the_others_go_on);
    RUN_BOTH(a_doomed_device_is_not_told_the_new_table);
    RUN_BOTH(a_broken_device_comes_back_after_reset);
    RUN_BOTH(rings_mapped_by_memory_ops_are_checked_by_their_gpa);
}

SUITE(commit_suite)
{
    run_telling();
    run_rings();
    RUN_ALL(a_back_end_that_refuses_the_table_breaks);
    RUN_ALL(a_back_end_that_dies_in_a_commit_breaks_alone);
    RUN_BOTH(a_broken_device_is_left_alone_by_commits);
    RUN_BOTH(a_backing_may_go_once_it_is_left_out);
    RUN_BOTH(another_backing_at_the_same_place_is_a_change);
    RUN_BOTH(commits_are_traced);
}
