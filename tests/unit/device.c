/* Init, start, stop, reset, config, news: >>device. */
#include "fixture.h"

#include <errno.h>
#include <string.h>

#define BIT(n) (UINT64_C(1) << (n))

/* ---- init and cleanup ---- */

TEST init_only_opens(fixture *f)
{
    ASSERT_OK(fixture_map_default(f));
    ASSERT_OK(fixture_attach(f, 0));
    ASSERT_INT(VHOST_STATE_STOPPED, f->device[0].state);
    ASSERT_UINT(1, f->mock[0].opens);
    ASSERT_PTR(&f->device[0], f->mock[0].device);
    ASSERT_UINT(0, f->mock[0].calls.count);
    ASSERT_STR_EQ("mock", f->device[0].facts.name);
    ASSERT_PTR(&f->vm, f->device[0].vm);
    ASSERT_UINT(FIXTURE_QUEUES, f->device[0].queue_count);
    PASS();
}

typedef struct required_op {
    const char *name;
    size_t offset;
} required_op;

#define REQUIRED(MEMBER)                                                                           \
    {                                                                                              \
#MEMBER, offsetof(vhost_backend_ops, MEMBER)                                               \
    }

TEST init_needs_every_required_operation(fixture *f)
{
    static const required_op required[] = {
        REQUIRED(open),          REQUIRED(sever),         REQUIRED(set_features),
        REQUIRED(set_table),     REQUIRED(set_ring_call), REQUIRED(set_ring_size),
        REQUIRED(set_ring_base), REQUIRED(set_ring_kick), REQUIRED(set_ring_addresses),
        REQUIRED(get_ring_base)};
    for (size_t i = 0; i < sizeof required / sizeof *required; i++) {
        vhost_backend_ops whole = f->mock[0].ops;
        memset((char *)&f->mock[0].ops + required[i].offset, 0, sizeof f->mock[0].ops.open);
        ASSERT_FAILS(f, fixture_attach(f, 0), &f->device[0].last_error, -EINVAL,
                     VHOST_WHY_BACKEND_INCOMPLETE);
        ASSERT_INT(VHOST_STATE_CLOSED, f->device[0].state);
        ASSERT_UINT(0, f->mock[0].opens);
        f->mock[0].ops = whole;
    }
    PASS();
}

static void leave_out_what_is_optional(vhost_backend_ops *ops)
{
    ops->close = NULL;
    ops->poll_fds = NULL;
    ops->process = NULL;
    ops->set_log = NULL;
    ops->set_ring_error = NULL;
    ops->set_ring_endian = NULL;
    ops->set_ring_busy_loop = NULL;
    ops->set_config_call = NULL;
    ops->iotlb_send = NULL;
    ops->enable_ring = NULL;
    ops->set_running = NULL;
    ops->reset = NULL;
    ops->get_config = NULL;
    ops->set_config = NULL;
}

TEST a_back_end_needs_no_more_than_what_is_required(fixture *f)
{
    leave_out_what_is_optional(&f->mock[0].ops);
    ASSERT_OK(fixture_running_device(f));
    ASSERT(mock_ring_runs(&f->mock[0], 0));
    CHECK_CALL(fixture_check(f));
    ASSERT_OK(vhost_queue_mask(&f->device[0], 1));
    ASSERT_OK(vhost_queue_unmask(&f->device[0], 1));
    ASSERT_OK(vhost_queue_stop(&f->device[0], 1));
    ASSERT_OK(vhost_queue_start(&f->device[0], 1));
    ASSERT_OK(vhost_device_process(&f->device[0]));
    ASSERT_UINT(0, vhost_device_poll_fds(&f->device[0], NULL, 0));
    CHECK_CALL(fixture_check(f));
    ASSERT_OK(vhost_device_stop(&f->device[0]));
    ASSERT_OK(vhost_device_reset(&f->device[0]));
    CHECK_CALL(fixture_check(f));
    vhost_device_cleanup(&f->device[0]);
    f->mock[0].opened = false; /* it has no close to notice */
    f->mock[0].closes = f->mock[0].opens;
    PASS();
}

TEST init_of_more_queues_than_the_back_end_has(fixture *f)
{
    f->mock[0].facts.max_queues = FIXTURE_QUEUES - 1;
    ASSERT_FAILS(f, fixture_attach(f, 0), &f->device[0].last_error, -EINVAL,
                 VHOST_WHY_TOO_MANY_QUEUES);
    ASSERT_INT(VHOST_STATE_CLOSED, f->device[0].state);
    f->mock[0].facts.max_queues = 0;
    ASSERT_OK(fixture_attach(f, 0));
    PASS();
}

TEST a_back_end_without_a_name_gets_one(fixture *f)
{
    f->mock[0].facts.name = NULL;
    ASSERT_OK(fixture_attach(f, 0));
    ASSERT_STR_EQ("back-end", f->device[0].facts.name);
    PASS();
}

TEST init_without_queues(fixture *f)
{
    ASSERT_FAILS(f,
                 vhost_device_init(&f->device[0], &f->vm, &f->mock[0].ops, &f->mock[0], f->queue[0],
                                   0, NULL),
                 &f->device[0].last_error, -EINVAL, VHOST_WHY_ARGUMENT);
    ASSERT_FAILS(
        f, vhost_device_init(&f->device[0], &f->vm, &f->mock[0].ops, &f->mock[0], NULL, 3, NULL),
        &f->device[0].last_error, -EINVAL, VHOST_WHY_ARGUMENT);
    ASSERT_UINT(0, f->mock[0].opens);
    PASS();
}

TEST init_of_a_back_end_with_an_unknown_table(fixture *f)
{
    f->mock[0].facts.profile = VHOST_PROFILE_COUNT;
    ASSERT_FAILS(f, fixture_attach(f, 0), &f->device[0].last_error, -ENOTSUP,
                 VHOST_WHY_NOT_SUPPORTED);
    ASSERT_INT(VHOST_STATE_CLOSED, f->device[0].state);
    PASS();
}

TEST init_with_too_few_slots_for_the_map(fixture *f)
{
    f->mock[0].facts.max_regions = 1;
    ASSERT_OK(fixture_map_default(f));
    ASSERT_FAILS(f, fixture_attach(f, 0), &f->device[0].last_error, -ENOSPC,
                 VHOST_WHY_TOO_MANY_REGIONS);
    ASSERT_INT(VHOST_STATE_CLOSED, f->device[0].state);
    f->mock[0].facts.max_regions = 2;
    ASSERT_OK(fixture_attach(f, 0));
    ASSERT_UINT(0, vhost_memory_free_slots(&f->vm));
    PASS();
}

TEST init_in_a_transaction_is_refused(fixture *f)
{
    ASSERT_OK(vhost_memory_begin(&f->vm));
    ASSERT_FAILS(f, fixture_attach(f, 0), &f->device[0].last_error, -EBUSY, VHOST_WHY_STATE);
    vhost_memory_abort(&f->vm);
    ASSERT_OK(fixture_attach(f, 0));
    PASS();
}

TEST init_fails_as_open_does(fixture *f)
{
    mock_refuse(&f->mock[0], VHOST_OP_OPEN, -1, -EACCES);
    ASSERT_FAILS(f, fixture_attach(f, 0), &f->device[0].last_error, -EACCES,
                 VHOST_WHY_BACKEND_REFUSED);
    CHECK_CALL(fixture_names(&f->device[0].last_error, VHOST_OP_OPEN, -1));
    ASSERT_UINT(0, fixture_events_alive(f));
    PASS();
}

TEST cleanup_may_be_repeated_after_failed_init(fixture *f)
{
    mock_refuse(&f->mock[0], VHOST_OP_OPEN, -1, -EACCES);
    ASSERT_INT(-EACCES, fixture_attach(f, 0));
    vhost_device_cleanup(&f->device[0]);
    vhost_device_cleanup(&f->device[0]);
    mock_revive(&f->mock[0]);
    ASSERT_OK(fixture_attach(f, 0));
    vhost_device_cleanup(&f->device[0]);
    vhost_device_cleanup(&f->device[0]);
    ASSERT_INT(VHOST_STATE_CLOSED, f->device[0].state);
    ASSERT_UINT(1, f->mock[0].closes);
    PASS();
}

TEST cleanup_stops_a_running_device(fixture *f)
{
    ASSERT_OK(fixture_running_device(f));
    mock_advance(&f->mock[0], 1, 4);
    vhost_device_cleanup(&f->device[0]);
    ASSERT_FALSE(mock_runs(&f->mock[0]));
    ASSERT_FALSE(f->mock[0].opened);
    ASSERT_INT(VHOST_POSITION_CERTAIN, f->queue[0][1].position.state);
    ASSERT_UINT(4, f->queue[0][1].position.avail);
    PASS();
}

TEST cleanup_of_a_dead_back_end_completes(fixture *f)
{
    ASSERT_OK(fixture_running_device(f));
    mock_die(&f->mock[0]);
    vhost_device_cleanup(&f->device[0]);
    ASSERT_INT(VHOST_STATE_CLOSED, f->device[0].state);
    ASSERT_UINT(1, f->mock[0].closes);
    PASS();
}

TEST queues_keep_their_public_fields_over_cleanup(fixture *f)
{
    ASSERT_OK(fixture_running_device(f));
    mock_advance(&f->mock[0], 0, 9);
    f->queue[0][0].busy_loop_us = 50;
    vhost_device_cleanup(&f->device[0]);
    const vhost_queue *queue = &f->queue[0][0];
    ASSERT(queue->ready);
    ASSERT_UINT(FIXTURE_RING_SIZE, queue->size);
    ASSERT_U64(8 * VHOST_PAGE, queue->desc);
    ASSERT_INT(FIXTURE_KICK_FD, queue->kick_fd);
    ASSERT_INT(FIXTURE_CALL_FD, queue->call_fd);
    ASSERT_UINT(50, queue->busy_loop_us);
    ASSERT_UINT(9, queue->position.avail);

    ASSERT_OK(fixture_attach(f, 0));
    ASSERT_OK(vhost_device_start(&f->device[0]));
    ASSERT_UINT(9, f->mock[0].rings[0].position);
    PASS();
}

TEST a_vm_with_a_device_is_not_cleaned_up(fixture *f)
{
    ASSERT_OK(fixture_map_default(f));
    ASSERT_OK(fixture_attach(f, 0));
    ASSERT_OK(fixture_attach(f, 1));
    vhost_device_cleanup(&f->device[0]);
    ASSERT_FAILS(f, vhost_vm_cleanup(&f->vm), &f->vm.last_error, -EBUSY, VHOST_WHY_STATE);
    vhost_extent extent;
    ASSERT_OK(vhost_memory_find(&f->vm, 0, &extent));
    vhost_device_cleanup(&f->device[1]);
    ASSERT_OK(vhost_vm_cleanup(&f->vm));
    ASSERT_OK(vhost_vm_cleanup(&f->vm));
    PASS();
}

TEST unplugging_one_device_leaves_the_others_their_memory(fixture *f)
{
    f->mock[1].facts.max_regions = 3;
    ASSERT_OK(fixture_map_default(f));
    for (unsigned d = 0; d < 3; d++) {
        ASSERT_OK(fixture_attach(f, d));
        ASSERT_OK(fixture_start(f, d));
    }
    vhost_device_cleanup(&f->device[2]);
    vhost_device_cleanup(&f->device[0]);
    ASSERT_UINT(1, vhost_memory_free_slots(&f->vm));
    ASSERT_UINT(2, f->mock[1].table_count);
    mock_forget(&f->mock[1]);
    ASSERT_OK(fixture_map_default(f));
    ASSERT_UINT(0, f->mock[1].calls.count);
    PASS();
}

/* A notifier whose file descriptor is 0. */
static int create_zero(vhost_event *event, void *user)
{
    fixture *f = (fixture *)user;
    event->wait_fd = 0;
    event->signal_fd = 0;
    f->event_count++;
    return 0;
}

static void destroy_zero(vhost_event *event, void *user)
{
    fixture *f = (fixture *)user;
    f->event_count -= event->wait_fd == 0;
}

static int test_zero(const vhost_event *event, void *user)
{
    (void)user;
    return event->wait_fd == 0;
}

TEST fd_zero_is_a_notifier(fixture *f)
{
    static const vhost_event_ops zero = {create_zero, destroy_zero, test_zero};
    vhost_vm_options options = fixture_vm_options(f);
    options.events = &zero;
    ASSERT_OK(vhost_vm_cleanup(&f->vm));
    ASSERT_OK(vhost_vm_init(&f->vm, &options));
    ASSERT_OK(fixture_attach(f, 0));
    ASSERT_UINT(2 * FIXTURE_QUEUES + 1, f->event_count);
    ASSERT_INT(1, vhost_queue_pending(&f->device[0], 0));
    ASSERT_UINT(FIXTURE_QUEUES + 1, vhost_device_poll_fds(&f->device[0], NULL, 0));
    vhost_device_cleanup(&f->device[0]);
    ASSERT_UINT(0, f->event_count);
    PASS();
}

/* ---- start ---- */

static int place(const fixture *f, vhost_op op, int queue)
{
    return mock_find(&f->mock[0], op, queue, 0);
}

TEST start_goes_in_the_order_of_the_manual(fixture *f)
{
    f->accepted = fixture_features(0, 0);
    ASSERT_OK(fixture_stopped_device(f));
    for (unsigned q = 0; q < FIXTURE_QUEUES; q++) {
        f->queue[0][q].busy_loop_us = 7;
        f->queue[0][q].big_endian = true;
    }
    ASSERT_OK(vhost_device_start(&f->device[0]));
    ASSERT_INT(0, place(f, VHOST_OP_SET_FEATURES, -1));
    ASSERT_INT(1, place(f, VHOST_OP_SET_TABLE, -1));
    int inflight = place(f, VHOST_OP_SET_INFLIGHT, -1),
        enables = place(f, VHOST_OP_ENABLE_RING, -1);
    for (int q = 0; q < FIXTURE_QUEUES; q++) {
        int before = 1;
        for (int op = VHOST_OP_SET_RING_CALL; op < VHOST_OP_SET_INFLIGHT; op++) {
            int here = place(f, (vhost_op)op, q);
            if (here == -1 && op == VHOST_OP_SET_RING_ENDIAN) {
                continue; /* the host is big-endian itself */
            }
            ASSERT(here > before && here < inflight);
            before = here;
        }
        ASSERT(place(f, VHOST_OP_SET_RING_KICK, q) > inflight);
        ASSERT(place(f, VHOST_OP_SET_RING_KICK, q) < enables);
        ASSERT(place(f, VHOST_OP_ENABLE_RING, q) > place(f, VHOST_OP_SET_CONFIG_CALL, -1));
    }
    ASSERT_INT((int)f->mock[0].calls.count - 1, place(f, VHOST_OP_SET_RUNNING, -1));
    PASS();
}

TEST rings_are_started_in_ascending_order(fixture *f)
{
    ASSERT_OK(fixture_running_device(f));
    for (int q = 1; q < FIXTURE_QUEUES; q++) {
        ASSERT(place(f, VHOST_OP_SET_RING_SIZE, q) > place(f, VHOST_OP_SET_RING_SIZE, q - 1));
        ASSERT(place(f, VHOST_OP_ENABLE_RING, q) > place(f, VHOST_OP_ENABLE_RING, q - 1));
    }
    PASS();
}

TEST start_fences_once_or_twice(fixture *f)
{
    ASSERT_OK(fixture_stopped_device(f));
    unsigned before = f->mock[0].fences;
    ASSERT_OK(vhost_device_start(&f->device[0]));
    ASSERT(f->mock[0].fences - before <= 2);
    PASS();
}

TEST queues_that_are_not_ready_are_passed_over(fixture *f)
{
    ASSERT_OK(fixture_stopped_device(f));
    f->queue[0][0].ready = false;
    f->queue[0][2].ready = false;
    ASSERT_OK(vhost_device_start(&f->device[0]));
    ASSERT_FALSE(f->queue[0][0].started);
    ASSERT(f->queue[0][1].started);
    for (int op = VHOST_OP_SET_RING_SIZE; op <= VHOST_OP_SET_RING_KICK; op++) {
        ASSERT_UINT(0, mock_count(&f->mock[0], (vhost_op)op, 0));
        ASSERT_UINT(0, mock_count(&f->mock[0], (vhost_op)op, 2));
    }
    ASSERT_UINT(0, mock_count(&f->mock[0], VHOST_OP_ENABLE_RING, 0));
    ASSERT_OK(vhost_device_stop(&f->device[0]));
    ASSERT_UINT(0, mock_count(&f->mock[0], VHOST_OP_GET_RING_BASE, 0));
    ASSERT_UINT(1, mock_count(&f->mock[0], VHOST_OP_GET_RING_BASE, 1));
    PASS();
}

TEST a_device_without_a_ready_queue_runs(fixture *f)
{
    ASSERT_OK(fixture_map_default(f));
    ASSERT_OK(fixture_attach(f, 0));
    ASSERT_OK(vhost_device_start(&f->device[0]));
    ASSERT_INT(VHOST_STATE_RUNNING, f->device[0].state);
    ASSERT_OK(vhost_device_stop(&f->device[0]));
    PASS();
}

TEST a_device_starts_without_any_memory(fixture *f)
{
    ASSERT_OK(fixture_attach(f, 0));
    ASSERT_OK(vhost_device_start(&f->device[0]));
    ASSERT(f->mock[0].table_set);
    ASSERT_UINT(0, f->mock[0].table_count);
    PASS();
}

TEST rings_are_checked_before_the_back_end_is_told_of_them(fixture *f)
{
    ASSERT_OK(fixture_stopped_device(f));
    f->queue[0][2].used = FIXTURE_REMOTE;
    ASSERT_FAILS(f, vhost_device_start(&f->device[0]), &f->device[0].last_error, -EFAULT,
                 VHOST_WHY_RING_UNMAPPED);
    CHECK_CALL(fixture_names(&f->device[0].last_error, VHOST_OP_NONE, 2));
    for (int op = VHOST_OP_SET_RING_SIZE; op <= VHOST_OP_SET_RING_KICK; op++) {
        ASSERT_UINT(0, mock_count(&f->mock[0], (vhost_op)op, -1));
    }
    ASSERT_INT(VHOST_STATE_STOPPED, f->device[0].state);
    PASS();
}

TEST positive_results_are_success(fixture *f)
{
    f->mock[0].success = 1;
    ASSERT_OK(fixture_running_device(f));
    ASSERT_INT(VHOST_STATE_RUNNING, f->device[0].state);
    ASSERT_OK(vhost_queue_mask(&f->device[0], 0));
    ASSERT_OK(vhost_queue_unmask(&f->device[0], 0));
    ASSERT_OK(vhost_queue_stop(&f->device[0], 0));
    ASSERT_OK(vhost_queue_start(&f->device[0], 0));
    unsigned char byte;
    ASSERT_OK(vhost_device_get_config(&f->device[0], 0, &byte, 1));
    ASSERT_OK(vhost_device_set_config(&f->device[0], 0, &byte, 1));
    ASSERT_OK(fixture_map(f, &f->low, 1));
    ASSERT_INT(VHOST_STATE_RUNNING, f->device[0].state);
    ASSERT_OK(vhost_device_stop(&f->device[0]));
    ASSERT_OK(vhost_device_reset(&f->device[0]));
    PASS();
}

TEST starting_and_stopping_leaves_nothing_behind(fixture *f)
{
    ASSERT_OK(fixture_running_device(f));
    ASSERT_OK(vhost_device_stop(&f->device[0]));
    size_t allocations = f->allocation_calls;
    unsigned events = f->event_count;
    for (int i = 0; i < 100; i++) {
        ASSERT_OK(vhost_device_start(&f->device[0]));
        ASSERT_OK(vhost_queue_mask(&f->device[0], 1));
        ASSERT_OK(vhost_queue_unmask(&f->device[0], 1));
        ASSERT_OK(vhost_device_stop(&f->device[0]));
    }
    ASSERT_UINT(allocations, f->allocation_calls);
    ASSERT_UINT(events, f->event_count);
    PASS();
}

/* Where a back-end goes on after a failure, it is only guessed how far a ring came. */
static void take_guesses(fixture *f)
{
    for (unsigned q = 0; q < FIXTURE_QUEUES; q++) {
        vhost_position *position = &f->queue[0][q].position;
        if (f->mode == MOCK_QUEUED_STUBBORN && position->state == VHOST_POSITION_GUESSED) {
            position->state = VHOST_POSITION_CERTAIN;
        }
    }
}

TEST a_start_that_was_refused_can_be_repeated(fixture *f)
{
    ASSERT_OK(fixture_stopped_device(f));
    mock_refuse(&f->mock[0], VHOST_OP_SET_RING_KICK, 1, -EBADF);
    ASSERT_FAILS(f, vhost_device_start(&f->device[0]), &f->device[0].last_error, -EBADF,
                 VHOST_WHY_BACKEND_REFUSED);
    CHECK_CALL(fixture_names(&f->device[0].last_error, VHOST_OP_SET_RING_KICK, 1));
    ASSERT_INT(VHOST_STATE_STOPPED, f->device[0].state);
    CHECK_CALL(fixture_check(f));
    mock_revive(&f->mock[0]);
    take_guesses(f);
    ASSERT_OK(vhost_device_start(&f->device[0]));
    PASS();
}

/* What was refused did not happen, and need not be undone. */
TEST a_start_of_which_only_the_refused_is_left_is_undone(fixture *f)
{
    static const vhost_op ops[] = {VHOST_OP_SET_FEATURES, VHOST_OP_SET_CONFIG_CALL,
                                   VHOST_OP_SET_RUNNING};
    for (size_t i = 0; i < sizeof ops / sizeof *ops; i++) {
        ASSERT_OK(fixture_stopped_device(f));
        mock_refuse(&f->mock[0], ops[i], -1, -ENOTTY);
        ASSERT_INT(-ENOTTY, vhost_device_start(&f->device[0]));
        ASSERT_INT(VHOST_STATE_STOPPED, f->device[0].state);
        CHECK_CALL(fixture_renew(f));
    }
    PASS();
}

/* What was accepted into a queue is undone if it was done, and not if it was not: a back-end says
   in its fence which of the two it does behind a failure. */
TEST a_failed_start_undoes_just_what_was_done(fixture *f)
{
    bool all = f->mode == MOCK_QUEUED_STUBBORN;
    for (unsigned before = 0; before < 2; before++) { /* before the config notifier, or after */
        CHECK_CALL(fixture_renew(f));
        ASSERT_OK(fixture_stopped_device(f));
        if (before) {
            mock_refuse(&f->mock[0], VHOST_OP_SET_RING_KICK, 1, -EBADF);
        } else {
            mock_refuse_unless(&f->mock[0], VHOST_OP_ENABLE_RING, 1, false, -EBADF);
        }
        ASSERT_INT(-EBADF, vhost_device_start(&f->device[0]));
        const mock_call *config = mock_last(&f->mock[0], VHOST_OP_SET_CONFIG_CALL, -1);
        const mock_call *runs = mock_last(&f->mock[0], VHOST_OP_SET_RUNNING, -1);
        ASSERT_INT(all || !before, config && config->value == -1);
        ASSERT_INT(all, runs && !runs->value);
        ASSERT_INT(-1, f->mock[0].config_fd);
        ASSERT_FALSE(f->mock[0].running);
    }
    PASS();
}

/* The last operation of start fails, and then the rings cannot be disabled. */
TEST a_start_that_cannot_be_undone_breaks_the_device(fixture *f)
{
    ASSERT_OK(fixture_running_device(f));
    unsigned operations = (unsigned)f->mock[0].calls.count;
    CHECK_CALL(fixture_renew(f));
    ASSERT_OK(fixture_stopped_device(f));
    mock_refuse_unless(&f->mock[0], VHOST_OP_ENABLE_RING, -1, true, -EIO);
    fault_arm_operation(&f->fault, operations);
    ASSERT_FAILS(f, vhost_device_start(&f->device[0]), &f->device[0].last_error, -EPERM,
                 VHOST_WHY_BACKEND_REFUSED);
    CHECK_CALL(fixture_names(&f->device[0].last_error, VHOST_OP_SET_RUNNING, -1));
    ASSERT_INT(VHOST_STATE_BROKEN, f->device[0].state);
    ASSERT_UINT(1, f->mock[0].severs);
    ASSERT_UINT(1, f->broken[0]);
    PASS();
}

/* Between its enabling and the undoing, a ring may already have used buffers up. */
TEST a_failed_start_does_not_lose_what_a_ring_did_meanwhile(fixture *f)
{
    ASSERT_OK(fixture_stopped_device(f));
    f->mock[0].ops.set_running = NULL;
    f->mock[0].eager = 3;
    mock_refuse(&f->mock[0], VHOST_OP_ENABLE_RING, 2, -EPERM);
    int result = vhost_device_start(&f->device[0]);
    ASSERT(result < 0);
    mock_revive(&f->mock[0]);
    f->mock[0].eager = 0;
    for (unsigned q = 0; q < 2; q++) {
        const vhost_position *position = &f->queue[0][q].position;
        ASSERT_UINT(3, position->avail);
        ASSERT(position->state != VHOST_POSITION_INITIAL);
    }
    PASS();
}

/* ---- stop ---- */

TEST stop_goes_in_the_order_of_the_manual(fixture *f)
{
    ASSERT_OK(fixture_running_device(f));
    mock_forget(&f->mock[0]);
    ASSERT_OK(vhost_device_stop(&f->device[0]));
    int halted = place(f, VHOST_OP_SET_RUNNING, -1);
    ASSERT(halted >= 0);
    for (int q = 0; q < FIXTURE_QUEUES; q++) {
        int off = place(f, VHOST_OP_ENABLE_RING, q);
        int base = place(f, VHOST_OP_GET_RING_BASE, q);
        ASSERT(off > halted);
        ASSERT(base > off);
        ASSERT_INT(0, f->mock[0].calls.at[off].value);
    }
    ASSERT_UINT(0, mock_count(&f->mock[0], VHOST_OP_RESET, -1));
    PASS();
}

TEST stop_hands_back_the_positions(fixture *f)
{
    ASSERT_OK(fixture_running_device(f));
    for (unsigned q = 0; q < FIXTURE_QUEUES; q++) {
        mock_advance(&f->mock[0], q, 10 + q);
    }
    ASSERT_OK(vhost_device_stop(&f->device[0]));
    for (unsigned q = 0; q < FIXTURE_QUEUES; q++) {
        ASSERT_INT(VHOST_POSITION_CERTAIN, f->queue[0][q].position.state);
        ASSERT_UINT(10 + q, f->queue[0][q].position.avail);
        ASSERT_FALSE(f->queue[0][q].started);
    }
    PASS();
}

TEST stop_may_be_repeated(fixture *f)
{
    ASSERT_OK(fixture_running_device(f));
    mock_advance(&f->mock[0], 0, 5);
    ASSERT_OK(vhost_device_stop(&f->device[0]));
    mock_forget(&f->mock[0]);
    ASSERT_OK(vhost_device_stop(&f->device[0]));
    ASSERT_UINT(0, f->mock[0].calls.count);
    ASSERT_UINT(5, f->queue[0][0].position.avail);
    PASS();
}

TEST a_paused_device_goes_on_where_it_was(fixture *f)
{
    ASSERT_OK(fixture_running_device(f));
    for (unsigned i = 1; i <= 3; i++) {
        mock_advance(&f->mock[0], 1, 30000);
        ASSERT_OK(vhost_device_stop(&f->device[0]));
        ASSERT_OK(vhost_device_start(&f->device[0]));
        ASSERT_UINT(i * 30000 % 65536, f->mock[0].rings[1].position);
    }
    PASS();
}

/* A ring that cannot be asked does not keep the others from being asked. */
TEST stop_asks_every_ring_and_returns_the_first_error(fixture *f)
{
    ASSERT_OK(fixture_running_device(f));
    for (unsigned q = 0; q < FIXTURE_QUEUES; q++) {
        mock_advance(&f->mock[0], q, 7);
    }
    mock_refuse(&f->mock[0], VHOST_OP_GET_RING_BASE, 1, -EPERM);
    ASSERT_FAILS(f, vhost_device_stop(&f->device[0]), &f->device[0].last_error, -EPERM,
                 VHOST_WHY_BACKEND_REFUSED);
    CHECK_CALL(fixture_names(&f->device[0].last_error, VHOST_OP_GET_RING_BASE, 1));
    ASSERT_INT(VHOST_STATE_BROKEN, f->device[0].state);
    ASSERT_INT(VHOST_POSITION_GUESSED, f->queue[0][1].position.state);
    ASSERT_UINT(7, f->queue[0][1].position.avail);
    for (unsigned q = 0; q < FIXTURE_QUEUES; q += 2) {
        const mock_call *asked = mock_last(&f->mock[0], VHOST_OP_GET_RING_BASE, (int)q);
        ASSERT(asked);
        ASSERT_INT(asked->done ? VHOST_POSITION_CERTAIN : VHOST_POSITION_GUESSED,
                   f->queue[0][q].position.state);
    }
    PASS();
}

TEST stop_of_a_dead_back_end_completes(fixture *f)
{
    ASSERT_OK(fixture_running_device(f));
    mock_advance(&f->mock[0], 1, 6);
    mock_die(&f->mock[0]);
    ASSERT_FAILS(f, vhost_device_stop(&f->device[0]), &f->device[0].last_error, -ECONNRESET,
                 VHOST_WHY_BACKEND_LOST);
    ASSERT_INT(VHOST_STATE_BROKEN, f->device[0].state);
    ASSERT_INT(VHOST_POSITION_GUESSED, f->queue[0][1].position.state);
    ASSERT_UINT(6, f->queue[0][1].position.avail);
    PASS();
}

TEST stop_of_a_broken_device_says_what_broke_it(fixture *f)
{
    ASSERT_OK(fixture_running_device(f));
    fixture_break(f, 0);
    ASSERT_INT(-ECONNRESET, vhost_device_stop(&f->device[0]));
    ASSERT_INT(-EIO, vhost_device_start(&f->device[0]));
    ASSERT_INT(-ECONNRESET, vhost_device_stop(&f->device[0]));
    ASSERT_INT(VHOST_STATE_BROKEN, f->device[0].state);
    PASS();
}

/* ---- reset ---- */

TEST reset_forgets_the_driver(fixture *f)
{
    ASSERT_OK(fixture_running_device(f));
    f->queue[0][0].busy_loop_us = 50;
    mock_advance(&f->mock[0], 0, 5);
    ASSERT_OK(vhost_device_stop(&f->device[0]));
    ASSERT_OK(vhost_device_reset(&f->device[0]));
    const vhost_queue *queue = &f->queue[0][0];
    ASSERT_FALSE(queue->ready);
    ASSERT_U64(0, queue->desc | queue->avail | queue->used);
    ASSERT_INT(VHOST_POSITION_INITIAL, queue->position.state);
    ASSERT_U64(0, f->device[0].acked.word[0] | f->device[0].acked.word[1]);
    PASS();
}

/* News that nobody looked at before the reset are of a driver that is gone. */
TEST reset_forgets_news(fixture *f)
{
    for (unsigned broken = 0; broken < 2; broken++) {
        CHECK_CALL(fixture_renew(f));
        ASSERT_OK(fixture_running_device(f));
        mock_ring_error(&f->mock[0], 2);
        mock_config_change(&f->mock[0]);
        if (broken) {
            mock_die(&f->mock[0]);
            (void)vhost_device_stop(&f->device[0]);
            mock_revive(&f->mock[0]);
        } else {
            ASSERT_OK(vhost_device_stop(&f->device[0]));
        }
        ASSERT_OK(vhost_device_reset(&f->device[0]));
        ASSERT_OK(vhost_device_process(&f->device[0]));
        ASSERT_UINT(0, f->queue_errors[2]);
        ASSERT_UINT(0, f->configs);
    }
    PASS();
}

TEST reset_keeps_what_is_the_vmms(fixture *f)
{
    ASSERT_OK(fixture_stopped_device(f));
    f->queue[0][0].busy_loop_us = 50;
    ASSERT_OK(vhost_device_reset(&f->device[0]));
    const vhost_queue *queue = &f->queue[0][0];
    ASSERT_INT(FIXTURE_KICK_FD, queue->kick_fd);
    ASSERT_INT(FIXTURE_CALL_FD, queue->call_fd);
    ASSERT_UINT(FIXTURE_RING_SIZE, queue->size);
    ASSERT_UINT(50, queue->busy_loop_us);
    PASS();
}

TEST reset_resets_the_back_end_after_its_rings(fixture *f)
{
    ASSERT_OK(fixture_running_device(f));
    mock_forget(&f->mock[0]);
    ASSERT_OK(vhost_device_stop(&f->device[0]));
    ASSERT_OK(vhost_device_reset(&f->device[0]));
    ASSERT_UINT(1, mock_count(&f->mock[0], VHOST_OP_RESET, -1));
    ASSERT(place(f, VHOST_OP_RESET, -1) > place(f, VHOST_OP_GET_RING_BASE, FIXTURE_QUEUES - 1));
    ASSERT_OK(vhost_device_ack(&f->device[0], f->accepted));
    ASSERT_OK(fixture_start(f, 0));
    ASSERT_UINT(0, f->mock[0].rings[0].position);
    PASS();
}

TEST reset_opens_a_broken_back_end_again(fixture *f)
{
    ASSERT_OK(fixture_running_device(f));
    fixture_break(f, 0);
    mock_revive(&f->mock[0]);
    ASSERT_OK(vhost_device_reset(&f->device[0]));
    ASSERT_INT(VHOST_STATE_STOPPED, f->device[0].state);
    ASSERT_UINT(2, f->mock[0].opens);
    ASSERT_UINT(1, f->mock[0].closes);
    CHECK_CALL(fixture_check(f));
    ASSERT_OK(vhost_device_ack(&f->device[0], f->accepted));
    mock_forget(&f->mock[0]);
    ASSERT_OK(fixture_start(f, 0));
    const mock_call *table = mock_last(&f->mock[0], VHOST_OP_SET_TABLE, -1);
    ASSERT_FALSE(table->from_known);
    ASSERT_UINT(table->to_count, table->added_count);
    PASS();
}

TEST reset_of_a_back_end_that_cannot_be_opened_again(fixture *f)
{
    f->mock[0].no_reopening = true;
    ASSERT_OK(fixture_running_device(f));
    fixture_break(f, 0);
    mock_revive(&f->mock[0]);
    int result = vhost_device_reset(&f->device[0]);
    ASSERT_INT(-EPERM, result);
    ASSERT_INT(VHOST_STATE_BROKEN, f->device[0].state);
    ASSERT_INT(-EIO, vhost_device_start(&f->device[0]));
    f->mock[0].no_reopening = false;
    ASSERT_OK(vhost_device_reset(&f->device[0]));
    ASSERT_INT(VHOST_STATE_STOPPED, f->device[0].state);
    PASS();
}

TEST an_earlier_failure_is_none_of_reset(fixture *f)
{
    char byte;
    ASSERT_OK(fixture_stopped_device(f));
    mock_refuse(&f->mock[0], VHOST_OP_GET_CONFIG, -1, -EPERM);
    ASSERT_INT(-EPERM, vhost_device_get_config(&f->device[0], 0, &byte, 1));
    ASSERT_OK(vhost_device_reset(&f->device[0]));
    ASSERT_INT(VHOST_STATE_STOPPED, f->device[0].state);
    PASS();
}

/* What a back-end offers may be other than before, when it was opened anew. */
TEST reset_of_a_broken_device_reads_the_facts_anew(fixture *f)
{
    ASSERT_OK(fixture_running_device(f));
    fixture_break(f, 0);
    mock_revive(&f->mock[0]);
    f->mock[0].facts.max_regions = 5;
    ASSERT_OK(vhost_device_reset(&f->device[0]));
    ASSERT_UINT(3, vhost_memory_free_slots(&f->vm));
    PASS();
}

TEST reset_of_a_back_end_that_came_back_with_too_few_slots(fixture *f)
{
    ASSERT_OK(fixture_running_device(f));
    fixture_break(f, 0);
    mock_revive(&f->mock[0]);
    f->mock[0].facts.max_regions = 1;
    ASSERT_INT(-ENOSPC, vhost_device_reset(&f->device[0]));
    ASSERT_INT(VHOST_WHY_TOO_MANY_REGIONS, f->device[0].last_error.why);
    ASSERT_INT(VHOST_STATE_BROKEN, f->device[0].state);
    ASSERT_UINT(UINT32_MAX, vhost_memory_free_slots(&f->vm));
    ASSERT_FALSE(mock_runs(&f->mock[0]));
    f->mock[0].facts.max_regions = 2;
    ASSERT_OK(vhost_device_reset(&f->device[0]));
    PASS();
}

TEST a_device_is_attached_once(fixture *f)
{
    ASSERT_OK(fixture_running_device(f));
    ASSERT_INT(-EBUSY, fixture_attach(f, 0));
    ASSERT_INT(VHOST_STATE_RUNNING, f->device[0].state);
    ASSERT_INT(-EBUSY, vhost_device_init(&f->device[1], &f->vm, &f->mock[1].ops, &f->mock[1],
                                         f->queue[0], FIXTURE_QUEUES, &f->device_options));
    ASSERT_INT(-EBUSY, vhost_device_init(&f->device[1], &f->vm, &f->mock[0].ops, &f->mock[0],
                                         f->queue[1], FIXTURE_QUEUES, &f->device_options));
    ASSERT_INT(VHOST_WHY_STATE, f->device[1].last_error.why);
    ASSERT_INT(-EBUSY, vhost_device_init(&f->device[1], &f->vm, &f->mock[1].ops, &f->mock[1],
                                         &f->queue[0][FIXTURE_QUEUES - 1], 2, &f->device_options));
    ASSERT_OK(fixture_attach(f, 2));
    ASSERT_INT(-EBUSY, vhost_device_init(&f->device[1], &f->vm, &f->mock[1].ops, &f->mock[1],
                                         f->queue[1], FIXTURE_QUEUES + 1, &f->device_options));
    ASSERT_OK(fixture_attach(f, 1));
    ASSERT_OK(fixture_map_default(f));
    return fixture_check(f);
}

/* A driver goes on masking and unmasking while the VMM sees to a reset. */
TEST an_unmask_of_a_broken_device_counts_after_its_reset(fixture *f)
{
    ASSERT_OK(fixture_running_device(f));
    ASSERT_OK(vhost_queue_mask(&f->device[0], 0));
    fixture_break(f, 0);
    ASSERT_OK(vhost_queue_unmask(&f->device[0], 0));
    mock_revive(&f->mock[0]);
    ASSERT_OK(vhost_device_reset(&f->device[0]));
    ASSERT_OK(vhost_device_ack(&f->device[0], f->accepted));
    fixture_fill(f, 0);
    ASSERT_OK(vhost_device_start(&f->device[0]));
    ASSERT_INT(f->queue[0][0].call_fd, f->mock[0].rings[0].call_fd);
    PASS();
}

TEST a_back_end_is_closed_once(fixture *f)
{
    ASSERT_OK(fixture_running_device(f));
    fixture_break(f, 0);
    mock_revive(&f->mock[0]);
    f->mock[0].facts.max_regions = 1;
    ASSERT_INT(-ENOSPC, vhost_device_reset(&f->device[0]));
    unsigned closes = f->mock[0].closes;
    bool open = f->mock[0].opened;
    vhost_device_cleanup(&f->device[0]);
    ASSERT_UINT(closes + open, f->mock[0].closes);
    PASS();
}

/* ---- config space ---- */

TEST config_space_is_read_and_written(fixture *f)
{
    unsigned char bytes[6] = {1, 2, 3, 4, 5, 6};
    ASSERT_OK(fixture_stopped_device(f));
    ASSERT_OK(vhost_device_set_config(&f->device[0], 10, bytes, sizeof bytes));
    ASSERT_MEM_EQ(bytes, f->mock[0].config + 10, sizeof bytes);
    f->mock[0].config[12] = 77;
    ASSERT_OK(vhost_device_start(&f->device[0]));
    ASSERT_OK(vhost_device_get_config(&f->device[0], 12, bytes, 2));
    ASSERT_INT(77, bytes[0]);
    ASSERT_INT(4, bytes[1]);
    ASSERT_INT(3, bytes[2]);
    PASS();
}

TEST config_space_that_the_back_end_does_not_have(fixture *f)
{
    unsigned char byte = 0;
    f->mock[0].ops.get_config = NULL;
    f->mock[0].ops.set_config = NULL;
    ASSERT_OK(fixture_stopped_device(f));
    ASSERT_FAILS(f, vhost_device_get_config(&f->device[0], 0, &byte, 1), &f->device[0].last_error,
                 -ENOTSUP, VHOST_WHY_NOT_SUPPORTED);
    ASSERT_FAILS(f, vhost_device_set_config(&f->device[0], 0, &byte, 1), &f->device[0].last_error,
                 -ENOTSUP, VHOST_WHY_NOT_SUPPORTED);
    PASS();
}

TEST config_space_arguments_are_checked(fixture *f)
{
    unsigned char byte = 0;
    ASSERT_OK(fixture_stopped_device(f));
    ASSERT_FAILS(f, vhost_device_get_config(&f->device[0], 0, &byte, 0), &f->device[0].last_error,
                 -EINVAL, VHOST_WHY_ARGUMENT);
    ASSERT_FAILS(f, vhost_device_set_config(&f->device[0], UINT32_MAX, &byte, 2),
                 &f->device[0].last_error, -EINVAL, VHOST_WHY_ARGUMENT);
    ASSERT_UINT(0, f->mock[0].calls.count);
    PASS();
}

TEST config_space_that_the_back_end_refuses(fixture *f)
{
    unsigned char byte = 0;
    ASSERT_OK(fixture_running_device(f));
    ASSERT_FAILS(f, vhost_device_get_config(&f->device[0], MOCK_CONFIG_SIZE, &byte, 1),
                 &f->device[0].last_error, -EINVAL, VHOST_WHY_BACKEND_REFUSED);
    CHECK_CALL(fixture_names(&f->device[0].last_error, VHOST_OP_GET_CONFIG, -1));
    ASSERT_INT(VHOST_STATE_RUNNING, f->device[0].state);
    PASS();
}

/* ---- news ---- */

TEST config_changes_are_told(fixture *f)
{
    ASSERT_OK(fixture_running_device(f));
    ASSERT_OK(vhost_device_process(&f->device[0]));
    ASSERT_UINT(0, f->configs);
    mock_config_change(&f->mock[0]);
    ASSERT_OK(vhost_device_process(&f->device[0]));
    ASSERT_UINT(1, f->configs);
    ASSERT_OK(vhost_device_process(&f->device[0]));
    ASSERT_UINT(1, f->configs);
    PASS();
}

TEST no_config_change_is_told_for_a_start(fixture *f)
{
    ASSERT_OK(fixture_running_device(f));
    for (int i = 0; i < 3; i++) {
        ASSERT_OK(vhost_device_process(&f->device[0]));
        ASSERT_OK(vhost_device_stop(&f->device[0]));
        ASSERT_OK(vhost_device_process(&f->device[0]));
        ASSERT_OK(vhost_device_start(&f->device[0]));
    }
    ASSERT_UINT(0, f->configs);
    PASS();
}

TEST stop_takes_the_config_notifier_back(fixture *f)
{
    ASSERT_OK(fixture_running_device(f));
    ASSERT(f->mock[0].config_fd >= FIXTURE_EVENT_FD);
    ASSERT_OK(vhost_device_stop(&f->device[0]));
    ASSERT_INT(-1, f->mock[0].config_fd);
    PASS();
}

TEST news_need_no_listener(fixture *f)
{
    memset(&f->device_options, 0, sizeof f->device_options);
    ASSERT_OK(fixture_running_device(f));
    mock_ring_error(&f->mock[0], 2);
    mock_config_change(&f->mock[0]);
    ASSERT_OK(vhost_device_process(&f->device[0]));
    mock_die(&f->mock[0]);
    ASSERT_INT(-ECONNRESET, vhost_device_process(&f->device[0]));
    PASS();
}

TEST broken_rings_are_told_by_their_number(fixture *f)
{
    ASSERT_OK(fixture_running_device(f));
    mock_ring_error(&f->mock[0], 2);
    ASSERT_OK(vhost_device_process(&f->device[0]));
    ASSERT_UINT(0, f->queue_errors[0]);
    ASSERT_UINT(0, f->queue_errors[1]);
    ASSERT_UINT(1, f->queue_errors[2]);
    ASSERT_OK(vhost_device_process(&f->device[0]));
    ASSERT_UINT(1, f->queue_errors[2]);
    ASSERT_INT(VHOST_STATE_RUNNING, f->device[0].state);
    PASS();
}

TEST poll_fds_are_the_waiting_ends(fixture *f)
{
    int fds[16];
    f->mock[0].fds[0] = 4001;
    f->mock[0].fds[1] = 4002;
    f->mock[0].fd_count = 2;
    ASSERT_OK(fixture_stopped_device(f));
    uint32_t count = vhost_device_poll_fds(&f->device[0], fds, 16);
    ASSERT_UINT(2 + FIXTURE_QUEUES + 1, count);
    unsigned of_back_end = 0;
    for (uint32_t i = 0; i < count; i++) {
        of_back_end += fds[i] == 4001 || fds[i] == 4002;
        ASSERT(fds[i] < FIXTURE_EVENT_FD || fds[i] % 2 == 0);
    }
    ASSERT_UINT(2, of_back_end);
    PASS();
}

TEST poll_fds_do_not_overrun(fixture *f)
{
    int fds[16];
    f->mock[0].fds[0] = 4001;
    f->mock[0].fd_count = 1;
    ASSERT_OK(fixture_stopped_device(f));
    uint32_t count = vhost_device_poll_fds(&f->device[0], NULL, 0);
    for (uint32_t capacity = 0; capacity <= count; capacity++) {
        memset(fds, 0xff, sizeof fds);
        ASSERT_UINT(count, vhost_device_poll_fds(&f->device[0], fds, capacity));
        for (uint32_t i = 0; i < 16; i++) {
            ASSERT((fds[i] != -1) == (i < capacity));
        }
    }
    PASS();
}

TEST poll_fds_stay_the_same_over_start_and_stop(fixture *f)
{
    int before[16], after[16];
    ASSERT_OK(fixture_stopped_device(f));
    uint32_t count = vhost_device_poll_fds(&f->device[0], before, 16);
    ASSERT_OK(vhost_device_start(&f->device[0]));
    ASSERT_UINT(count, vhost_device_poll_fds(&f->device[0], after, 16));
    ASSERT_MEM_EQ(before, after, count * sizeof *before);
    ASSERT_OK(vhost_device_stop(&f->device[0]));
    ASSERT_UINT(count, vhost_device_poll_fds(&f->device[0], after, 16));
    PASS();
}

TEST a_closed_device_has_nothing_to_poll(fixture *f)
{
    int fd = 0;
    ASSERT_OK(fixture_stopped_device(f));
    vhost_device_cleanup(&f->device[0]);
    ASSERT_UINT(0, vhost_device_poll_fds(&f->device[0], &fd, 1));
    PASS();
}

TEST a_broken_back_end_has_nothing_to_poll(fixture *f)
{
    int fds[16];
    f->mock[0].fds[0] = 4001;
    f->mock[0].fd_count = 1;
    ASSERT_OK(fixture_running_device(f));
    fixture_break(f, 0);
    uint32_t count = vhost_device_poll_fds(&f->device[0], fds, 16);
    for (uint32_t i = 0; i < count; i++) {
        ASSERT(fds[i] >= FIXTURE_EVENT_FD);
    }
    PASS();
}

TEST process_gives_the_back_end_its_turn(fixture *f)
{
    ASSERT_OK(fixture_stopped_device(f));
    ASSERT_OK(vhost_device_process(&f->device[0]));
    ASSERT_UINT(1, f->mock[0].processed);
    PASS();
}

TEST an_error_in_process_breaks_the_device(fixture *f)
{
    ASSERT_OK(fixture_running_device(f));
    mock_advance(&f->mock[0], 0, 3);
    mock_die(&f->mock[0]);
    ASSERT_FAILS(f, vhost_device_process(&f->device[0]), &f->device[0].last_error, -ECONNRESET,
                 VHOST_WHY_BACKEND_LOST);
    CHECK_CALL(fixture_names(&f->device[0].last_error, VHOST_OP_PROCESS, -1));
    ASSERT_INT(VHOST_STATE_BROKEN, f->device[0].state);
    ASSERT_UINT(1, f->broken[0]);
    ASSERT_UINT(3, f->queue[0][0].position.avail);
    ASSERT_INT(VHOST_POSITION_GUESSED, f->queue[0][0].position.state);
    PASS();
}

TEST a_broken_device_tells_it_once(fixture *f)
{
    ASSERT_OK(fixture_running_device(f));
    mock_die(&f->mock[0]);
    (void)vhost_device_process(&f->device[0]);
    (void)vhost_device_process(&f->device[0]);
    (void)vhost_device_stop(&f->device[0]);
    ASSERT_OK(fixture_map(f, &f->low, 1));
    ASSERT_UINT(1, f->broken[0]);
    ASSERT_UINT(1, f->mock[0].severs);
    PASS();
}

TEST process_of_a_broken_device_leaves_the_back_end_alone(fixture *f)
{
    ASSERT_OK(fixture_running_device(f));
    fixture_break(f, 0);
    unsigned processed = f->mock[0].processed;
    (void)vhost_device_process(&f->device[0]);
    ASSERT_UINT(processed, f->mock[0].processed);
    PASS();
}

TEST each_operation_is_traced(fixture *f)
{
    ASSERT_OK(fixture_running_device(f));
    ASSERT_OK(vhost_queue_mask(&f->device[0], 1));
    unsigned traced = f->trace_count;
    size_t calls = f->mock[0].calls.count;
    f->queue[0][1].call_fd = 4242;
    ASSERT_OK(vhost_queue_unmask(&f->device[0], 1));
    ASSERT_UINT(calls + 1, f->mock[0].calls.count);
    const vhost_trace *trace = &f->traces[traced % FIXTURE_TRACES];
    ASSERT_INT(VHOST_TRACE_OP, trace->event);
    ASSERT_PTR(&f->device[0], trace->device);
    ASSERT_INT(VHOST_OP_SET_RING_CALL, trace->op);
    ASSERT_INT(1, trace->queue);
    ASSERT_INT(4242, trace->value);
    ASSERT_UINT(traced + 1 + (f->mode != MOCK_SYNCHRONOUS), f->trace_count);
    PASS();
}

TEST each_fence_is_traced_with_what_it_found(fixture *f)
{
    ASSERT_OK(fixture_running_device(f));
    mock_refuse(&f->mock[0], VHOST_OP_SET_RING_CALL, 1, -EPERM);
    ASSERT_INT(-EPERM, vhost_queue_mask(&f->device[0], 1));
    const vhost_trace *trace = &f->traces[(f->trace_count - 1) % FIXTURE_TRACES];
    ASSERT_INT(VHOST_TRACE_FENCE, trace->event);
    ASSERT_PTR(&f->device[0], trace->device);
    ASSERT_INT(VHOST_OP_SET_RING_CALL, trace->op);
    ASSERT_INT(1, trace->queue);
    ASSERT_INT(-EPERM, trace->result);
    PASS();
}

TEST options_are_copied(fixture *f)
{
    vhost_vm vm;
    vhost_vm_options options = fixture_vm_options(f);
    ASSERT_OK(vhost_vm_init(&vm, &options));
    memset(&options, 0xff, sizeof options);
    ASSERT_OK(fixture_map_default(f));
    ASSERT_OK(fixture_attach(f, 0));
    memset(&f->device_options, 0xff, sizeof f->device_options);
    ASSERT_OK(fixture_start(f, 0));
    mock_config_change(&f->mock[0]);
    ASSERT_OK(vhost_device_process(&f->device[0]));
    ASSERT_UINT(1, f->configs);
    ASSERT_INT(-EBUSY, vhost_memory_commit(&vm));
    ASSERT_UINT(1, f->errors);
    return vhost_vm_cleanup(&vm) == 0 ? GREATEST_TEST_RES_PASS : GREATEST_TEST_RES_FAIL;
}

TEST two_vms_share_nothing(fixture *f)
{
    vhost_vm vm;
    vhost_extent extent;
    vhost_vm_options options = fixture_vm_options(f);
    ASSERT_OK(vhost_vm_init(&vm, &options));
    ASSERT_OK(vhost_memory_begin(&vm));
    ASSERT_OK(fixture_running_device(f));
    ASSERT_OK(vhost_memory_commit(&vm));
    ASSERT_INT(-EFAULT, vhost_memory_find(&vm, 0, &extent));
    ASSERT_UINT(2, f->mock[0].table_count);
    ASSERT_OK(vhost_vm_cleanup(&vm));
    return fixture_check(f);
}

TEST each_state_is_traced(fixture *f)
{
    ASSERT_OK(fixture_running_device(f));
    ASSERT_OK(vhost_device_stop(&f->device[0]));
    vhost_device_cleanup(&f->device[0]);
    static const vhost_state states[] = {VHOST_STATE_STOPPED, VHOST_STATE_RUNNING,
                                         VHOST_STATE_STOPPED, VHOST_STATE_CLOSED};
    unsigned next = 0;
    for (unsigned i = 0; i < f->trace_count && i < FIXTURE_TRACES; i++) {
        const vhost_trace *trace =
            &f->traces[(f->trace_count <= FIXTURE_TRACES ? i : f->trace_count + i) %
                       FIXTURE_TRACES];
        if (trace->event == VHOST_TRACE_STATE && next < 4 && trace->value == states[next]) {
            next++;
        }
    }
    ASSERT(next >= 3);
    PASS();
}

/* ---- chapter 5: every call in every state ---- */

typedef struct state_row {
    const char *name;
    int (*call)(fixture *f);
    int result[4];        /* in CLOSED, STOPPED, RUNNING, BROKEN */
    vhost_state state[4]; /* afterwards */
} state_row;

static int call_ack(fixture *f)
{
    return vhost_device_ack(&f->device[0], f->accepted);
}

static int call_start(fixture *f)
{
    return vhost_device_start(&f->device[0]);
}

static int call_stop(fixture *f)
{
    return vhost_device_stop(&f->device[0]);
}

static int call_settled(fixture *f)
{
    return vhost_device_settled(&f->device[0]);
}

static int call_reset(fixture *f)
{
    return vhost_device_reset(&f->device[0]);
}

static int call_queue_start(fixture *f)
{
    f->queue[0][2].ready = true;
    return vhost_queue_start(&f->device[0], 2);
}

static int call_queue_stop(fixture *f)
{
    return vhost_queue_stop(&f->device[0], 0);
}

static int call_mask(fixture *f)
{
    return vhost_queue_mask(&f->device[0], 0);
}

static int call_unmask(fixture *f)
{
    return vhost_queue_unmask(&f->device[0], 0);
}

static int call_process(fixture *f)
{
    return vhost_device_process(&f->device[0]);
}

static int call_get_config(fixture *f)
{
    char byte;
    return vhost_device_get_config(&f->device[0], 0, &byte, 1);
}

static int call_set_config(fixture *f)
{
    char byte = 0;
    return vhost_device_set_config(&f->device[0], 0, &byte, 1);
}

static int call_commit(fixture *f)
{
    return fixture_map(f, &f->low, 1);
}

static int call_cleanup(fixture *f)
{
    vhost_device_cleanup(&f->device[0]);
    return 0;
}

/* Queue 2 is not started in any state. */
static int arrange_state(fixture *f, vhost_state state)
{
    int result = fixture_stopped_device(f);
    f->queue[0][2].ready = false;
    if (state == VHOST_STATE_CLOSED) {
        vhost_device_cleanup(&f->device[0]);
    } else if (state == VHOST_STATE_RUNNING && result == 0) {
        result = vhost_device_start(&f->device[0]);
    } else if (state == VHOST_STATE_BROKEN && result == 0) {
        result = vhost_device_start(&f->device[0]);
        fixture_break(f, 0);
        mock_revive(&f->mock[0]);
    }
    return result;
}

#define CLOSED  VHOST_STATE_CLOSED
#define STOPPED VHOST_STATE_STOPPED
#define RUNNING VHOST_STATE_RUNNING
#define BROKEN  VHOST_STATE_BROKEN
#define SAME                                                                                       \
    {                                                                                              \
        CLOSED, STOPPED, RUNNING, BROKEN                                                           \
    }

static const state_row state_rows[] = {
    {"ack", call_ack, {-EBUSY, 0, -EBUSY, -EIO}, SAME},
    {"start", call_start, {-EBUSY, 0, -EBUSY, -EIO}, {CLOSED, RUNNING, RUNNING, BROKEN}},
    {"stop", call_stop, {0, 0, 0, -ECONNRESET}, {CLOSED, STOPPED, STOPPED, BROKEN}},
    {"settled", call_settled, {-EBUSY, 1, 1, -ECONNRESET}, SAME},
    {"reset", call_reset, {-EBUSY, 0, -EBUSY, 0}, {CLOSED, STOPPED, RUNNING, STOPPED}},
    {"queue_start", call_queue_start, {-EBUSY, -EBUSY, 0, -EIO}, SAME},
    {"queue_stop", call_queue_stop, {-EBUSY, -EBUSY, 0, -EIO}, SAME},
    {"mask", call_mask, {-EBUSY, 0, 0, 0}, SAME},
    {"unmask", call_unmask, {-EBUSY, 0, 0, 0}, SAME},
    {"process", call_process, {0, 0, 0, 0}, SAME},
    {"get_config", call_get_config, {-EBUSY, 0, 0, -EIO}, SAME},
    {"set_config", call_set_config, {-EBUSY, 0, 0, -EIO}, SAME},
    {"commit", call_commit, {0, 0, 0, 0}, SAME},
    {"cleanup", call_cleanup, {0, 0, 0, 0}, {CLOSED, CLOSED, CLOSED, CLOSED}}};

static enum greatest_test_res check_row(fixture *f, const state_row *row, vhost_state state)
{
    ASSERT_OK(arrange_state(f, state));
    ASSERT_INT(state, f->device[0].state);
    unsigned errors = f->errors;
    int result = row->call(f);
    ASSERT_INT(row->result[state], result);
    ASSERT_INT(row->state[state], f->device[0].state);
    if (state == CLOSED && result < 0) {
        ASSERT_INT(result, f->device[0].last_error.code); /* there may be no VM to tell */
        ASSERT_INT(VHOST_WHY_STATE, f->device[0].last_error.why);
    } else if (result == -EBUSY || result == -EIO) {
        CHECK_CALL(fixture_failed(f, errors, &f->device[0].last_error, result,
                                  result == -EIO ? VHOST_WHY_DEVICE_BROKEN : VHOST_WHY_STATE));
    }
    return fixture_check(f);
}

TEST every_call_in_every_state(fixture *f)
{
    for (size_t i = 0; i < sizeof state_rows / sizeof *state_rows; i++) {
        for (int state = CLOSED; state <= BROKEN; state++) {
            if (check_row(f, &state_rows[i], (vhost_state)state) != GREATEST_TEST_RES_PASS) {
                fprintf(stderr, "%s in state %d\n", state_rows[i].name, state);
                return GREATEST_TEST_RES_FAIL;
            }
            CHECK_CALL(fixture_renew(f));
        }
    }
    PASS();
}

/* ---- the suite ---- */

static void run_init(void)
{
    RUN_BOTH(init_only_opens);
    RUN_PLAIN(init_needs_every_required_operation);
    RUN_PLAIN(a_back_end_needs_no_more_than_what_is_required);
    RUN_PLAIN(init_of_more_queues_than_the_back_end_has);
    RUN_PLAIN(a_back_end_without_a_name_gets_one);
    RUN_PLAIN(init_without_queues);
    RUN_PLAIN(init_of_a_back_end_with_an_unknown_table);
    RUN_PLAIN(init_with_too_few_slots_for_the_map);
    RUN_PLAIN(init_in_a_transaction_is_refused);
    RUN_PLAIN(init_fails_as_open_does);
    RUN_BOTH(cleanup_may_be_repeated_after_failed_init);
    RUN_BOTH(cleanup_stops_a_running_device);
    RUN_BOTH(cleanup_of_a_dead_back_end_completes);
    RUN_BOTH(queues_keep_their_public_fields_over_cleanup);
    RUN_PLAIN(fd_zero_is_a_notifier);
    RUN_PLAIN(a_vm_with_a_device_is_not_cleaned_up);
    RUN_BOTH(unplugging_one_device_leaves_the_others_their_memory);
}

static void run_start(void)
{
    RUN_BOTH(start_goes_in_the_order_of_the_manual);
    RUN_BOTH(rings_are_started_in_ascending_order);
    RUN_FIXTURE(start_fences_once_or_twice, MOCK_QUEUED);
    RUN_BOTH(queues_that_are_not_ready_are_passed_over);
    RUN_BOTH(a_device_without_a_ready_queue_runs);
    RUN_BOTH(a_device_starts_without_any_memory);
    RUN_BOTH(rings_are_checked_before_the_back_end_is_told_of_them);
    RUN_BOTH(positive_results_are_success);
    RUN_BOTH(starting_and_stopping_leaves_nothing_behind);
    RUN_ALL(a_start_that_was_refused_can_be_repeated);
    RUN_PLAIN(a_start_of_which_only_the_refused_is_left_is_undone);
    RUN_FIXTURE(a_start_of_which_only_the_refused_is_left_is_undone, MOCK_QUEUED_REFUSING);
    RUN_ALL(a_failed_start_undoes_just_what_was_done);
    RUN_ALL(a_start_that_cannot_be_undone_breaks_the_device);
    RUN_ALL(a_failed_start_does_not_lose_what_a_ring_did_meanwhile);
}

static void run_stop_and_reset(void)
{
    RUN_BOTH(stop_goes_in_the_order_of_the_manual);
    RUN_BOTH(stop_hands_back_the_positions);
    RUN_BOTH(stop_may_be_repeated);
    RUN_BOTH(a_paused_device_goes_on_where_it_was);
    RUN_ALL(stop_asks_every_ring_and_returns_the_first_error);
    RUN_ALL(stop_of_a_dead_back_end_completes);
    RUN_BOTH(stop_of_a_broken_device_says_what_broke_it);
    RUN_BOTH(reset_forgets_the_driver);
    RUN_BOTH(reset_forgets_news);
    RUN_BOTH(reset_keeps_what_is_the_vmms);
    RUN_BOTH(reset_resets_the_back_end_after_its_rings);
    RUN_BOTH(reset_opens_a_broken_back_end_again);
    RUN_BOTH(reset_of_a_back_end_that_cannot_be_opened_again);
    RUN_ALL(an_earlier_failure_is_none_of_reset);
    RUN_BOTH(reset_of_a_broken_device_reads_the_facts_anew);
    RUN_BOTH(reset_of_a_back_end_that_came_back_with_too_few_slots);
    RUN_BOTH(a_device_is_attached_once);
    RUN_BOTH(an_unmask_of_a_broken_device_counts_after_its_reset);
    RUN_BOTH(a_back_end_is_closed_once);
}

static void run_config_and_news(void)
{
    RUN_BOTH(config_space_is_read_and_written);
    RUN_PLAIN(config_space_that_the_back_end_does_not_have);
    RUN_BOTH(config_space_arguments_are_checked);
    RUN_ALL(config_space_that_the_back_end_refuses);
    RUN_BOTH(config_changes_are_told);
    RUN_BOTH(no_config_change_is_told_for_a_start);
    RUN_BOTH(stop_takes_the_config_notifier_back);
    RUN_BOTH(news_need_no_listener);
    RUN_BOTH(broken_rings_are_told_by_their_number);
    RUN_PLAIN(poll_fds_are_the_waiting_ends);
    RUN_PLAIN(poll_fds_do_not_overrun);
    RUN_PLAIN(poll_fds_stay_the_same_over_start_and_stop);
    RUN_PLAIN(a_closed_device_has_nothing_to_poll);
    RUN_PLAIN(a_broken_back_end_has_nothing_to_poll);
    RUN_PLAIN(process_gives_the_back_end_its_turn);
    RUN_BOTH(an_error_in_process_breaks_the_device);
    RUN_BOTH(a_broken_device_tells_it_once);
    RUN_BOTH(process_of_a_broken_device_leaves_the_back_end_alone);
    RUN_BOTH(each_state_is_traced);
    RUN_BOTH(each_operation_is_traced);
    RUN_FIXTURE(each_fence_is_traced_with_what_it_found, MOCK_QUEUED);
    RUN_PLAIN(options_are_copied);
    RUN_PLAIN(two_vms_share_nothing);
}

SUITE(device_suite)
{
    run_init();
    run_start();
    run_stop_and_reset();
    run_config_and_news();
    RUN_BOTH(every_call_in_every_state);
}
