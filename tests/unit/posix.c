/* The notifiers that are made when the VMM brings none: >>posix. */
#define _POSIX_C_SOURCE 200809L

#include "fixture.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

/* A running device of a VM without options.events; it is device 0 of the fixture. */
static int run_with_default_events(fixture *f)
{
    vhost_vm_options options = fixture_vm_options(f);
    options.events = NULL;
    int result = vhost_vm_cleanup(&f->vm);
    if (result == 0) {
        result = vhost_vm_init(&f->vm, &options);
    }
    return result < 0 ? result : fixture_running_device(f);
}

/* Signals as a back-end does. */
static bool signal_fd(int fd)
{
    const uint64_t one = 1;
    return write(fd, &one, sizeof one) == (ssize_t)sizeof one;
}

TEST default_notifiers_do_not_block_and_close_on_exec(fixture *f)
{
    int fds[16];
    ASSERT_OK(run_with_default_events(f));
    uint32_t count = vhost_device_poll_fds(&f->device[0], fds, 16);
    ASSERT_UINT(FIXTURE_QUEUES + 1, count);
    for (uint32_t i = 0; i < count; i++) {
        ASSERT(fcntl(fds[i], F_GETFD) & FD_CLOEXEC);
        ASSERT(fcntl(fds[i], F_GETFL) & O_NONBLOCK);
    }
    PASS();
}

TEST default_notifiers_keep_calls_while_masked(fixture *f)
{
    ASSERT_OK(run_with_default_events(f));
    ASSERT_OK(vhost_queue_mask(&f->device[0], 1));
    ASSERT_INT(0, vhost_queue_pending(&f->device[0], 1));
    int fd = f->mock[0].rings[1].call_fd;
    ASSERT(signal_fd(fd) && signal_fd(fd) && signal_fd(fd));
    ASSERT_INT(1, vhost_queue_pending(&f->device[0], 1));
    ASSERT_INT(0, vhost_queue_pending(&f->device[0], 1));
    ASSERT(signal_fd(fd));
    ASSERT_INT(1, vhost_queue_unmask(&f->device[0], 1));
    PASS();
}

/* O_NONBLOCK is of the file, and so as good as the back-end's: it has the file, too. */
TEST default_notifiers_do_not_block_though_a_back_end_wants_them_to(fixture *f)
{
    ASSERT_OK(run_with_default_events(f));
    ASSERT_OK(vhost_queue_mask(&f->device[0], 1));
    int fd = f->mock[0].rings[1].call_fd;
    ASSERT_INT(0, fcntl(fd, F_SETFL, 0));
    alarm(10); /* or else it would be for ever */
    ASSERT_INT(0, vhost_queue_pending(&f->device[0], 1));
    ASSERT(signal_fd(fd));
    ASSERT_INT(1, vhost_queue_pending(&f->device[0], 1));
    ASSERT_INT(0, vhost_queue_pending(&f->device[0], 1));
    alarm(0);
    PASS();
}

TEST default_notifiers_tell_of_config_and_ring_errors(fixture *f)
{
    ASSERT_OK(run_with_default_events(f));
    ASSERT(signal_fd(f->mock[0].config_fd));
    ASSERT(signal_fd(f->mock[0].rings[2].error_fd));
    ASSERT_OK(vhost_device_process(&f->device[0]));
    ASSERT_UINT(1, f->configs);
    ASSERT_UINT(1, f->queue_errors[2]);
    ASSERT_OK(vhost_device_process(&f->device[0]));
    ASSERT_UINT(1, f->configs);
    PASS();
}

TEST default_notifiers_are_closed_by_cleanup(fixture *f)
{
    int before = fixture_open_fds();
    ASSERT_OK(run_with_default_events(f));
    int fd = f->mock[0].config_fd;
    ASSERT(fcntl(fd, F_GETFD) >= 0);
    vhost_device_cleanup(&f->device[0]);
    ASSERT_INT(-1, fcntl(fd, F_GETFD));
    ASSERT_INT(before, fixture_open_fds());
    PASS();
}

TEST default_notifiers_survive_stop_start_and_reset(fixture *f)
{
    ASSERT_OK(run_with_default_events(f));
    int before = fixture_open_fds();
    for (int i = 0; i < 20; i++) {
        ASSERT_OK(vhost_device_stop(&f->device[0]));
        ASSERT_OK(vhost_device_reset(&f->device[0]));
        ASSERT_OK(fixture_start(f, 0));
    }
    ASSERT_INT(before, fixture_open_fds());
    PASS();
}

/* Lets this process open `count` more file descriptors, or so. Returns whether it can be told. */
static bool leave_fds(const struct rlimit *usual, int count)
{
    struct rlimit limit = *usual;
    int next = dup(0);
    if (next < 0) {
        return false;
    }
    close(next);
    limit.rlim_cur = (rlim_t)(next + count);
    return setrlimit(RLIMIT_NOFILE, &limit) == 0;
}

TEST init_without_file_descriptors_left_leaks_none(fixture *f)
{
    struct rlimit usual;
    ASSERT_OK(getrlimit(RLIMIT_NOFILE, &usual));
    for (int left = 0; left < 2 * FIXTURE_QUEUES + 1; left++) {
        bool told = leave_fds(&usual, left);
        int result = run_with_default_events(f);
        ASSERT_OK(setrlimit(RLIMIT_NOFILE, &usual));
        ASSERT(told);
        ASSERT_INT(-EMFILE, result);
        ASSERT_INT(VHOST_WHY_EVENT, f->device[0].last_error.why);
        ASSERT_INT(VHOST_STATE_CLOSED, f->device[0].state);
    }
    ASSERT_OK(run_with_default_events(f));
    PASS();
}

/* A device that logs to shared memory, of a VM without options.log. */
static int log_to_default_memory(fixture *f)
{
    vhost_vm_options options = fixture_vm_options(f);
    options.log = NULL;
    int result = vhost_vm_cleanup(&f->vm);
    if (result == 0) {
        result = vhost_vm_init(&f->vm, &options);
    }
    f->mock[0].facts.log_kind = VHOST_DIRTY_SHARED;
    vhost_features_set(&f->mock[0].facts.offered, VHOST_FEATURE_LOG_ALL);
    if (result == 0) {
        result = fixture_running_device(f);
    }
    return result < 0 ? result : vhost_log_start(&f->vm);
}

/* What a peer writes through the fd is in the log. */
TEST a_shared_log_is_shared_through_its_fd(fixture *f)
{
    const unsigned char bit = 1;
    ASSERT_OK(log_to_default_memory(f));
    const vhost_log_memory *log = &f->mock[0].log;
    ASSERT(log->fd >= 0);
    ASSERT(fcntl(log->fd, F_GETFD) & FD_CLOEXEC);
    ASSERT_U64(log->size, lseek(log->fd, 0, SEEK_END));
    ASSERT_INT(1, pwrite(log->fd, &bit, 1, 0));
    vhost_log_sink sink;
    uint64_t bits = 0;
    memset(&sink, 0, sizeof sink);
    sink.bits = &bits;
    sink.bits_count = 64;
    ASSERT_OK(vhost_log_sync(&f->vm, 0, 64 * VHOST_PAGE, &sink));
    ASSERT_U64(1, bits);
    PASS();
}

#if defined(__linux__)
TEST nobody_can_resize_a_shared_log(fixture *f)
{
    ASSERT_OK(log_to_default_memory(f));
    const vhost_log_memory *log = &f->mock[0].log;
    ASSERT_INT(-1, ftruncate(log->fd, 0));
    ASSERT_INT(EPERM, errno);
    ASSERT_INT(-1, ftruncate(log->fd, (off_t)log->size * 2));
    ASSERT_INT(-1, fcntl(log->fd, 1033 /* F_ADD_SEALS */, 8));
    PASS();
}
#endif

TEST a_shared_log_is_closed_by_log_stop(fixture *f)
{
    ASSERT_OK(log_to_default_memory(f));
    int before = fixture_open_fds();
    ASSERT_OK(vhost_log_stop(&f->vm));
    ASSERT_INT(before - 1, fixture_open_fds());
    PASS();
}

TEST a_shared_log_without_file_descriptors_left_says_so(fixture *f)
{
    struct rlimit usual;
    ASSERT_OK(log_to_default_memory(f));
    ASSERT_OK(vhost_log_stop(&f->vm));
    ASSERT_OK(getrlimit(RLIMIT_NOFILE, &usual));
    bool told = leave_fds(&usual, 0);
    int result = vhost_log_start(&f->vm);
    ASSERT_OK(setrlimit(RLIMIT_NOFILE, &usual));
    ASSERT(told);
    ASSERT_INT(-EMFILE, result);
    ASSERT_INT(VHOST_WHY_LOG_MEMORY, f->vm.last_error.why);
    ASSERT_OK(vhost_log_start(&f->vm));
    PASS();
}

SUITE(posix_suite)
{
    RUN_PLAIN(default_notifiers_do_not_block_and_close_on_exec);
    RUN_BOTH(default_notifiers_keep_calls_while_masked);
    RUN_BOTH(default_notifiers_do_not_block_though_a_back_end_wants_them_to);
    RUN_BOTH(default_notifiers_tell_of_config_and_ring_errors);
    RUN_PLAIN(default_notifiers_are_closed_by_cleanup);
    RUN_BOTH(default_notifiers_survive_stop_start_and_reset);
    RUN_PLAIN(init_without_file_descriptors_left_leaks_none);
    RUN_PLAIN(a_shared_log_is_shared_through_its_fd);
#if defined(__linux__)
    RUN_PLAIN(nobody_can_resize_a_shared_log);
#endif
    RUN_PLAIN(a_shared_log_is_closed_by_log_stop);
    RUN_PLAIN(a_shared_log_without_file_descriptors_left_says_so);
}
