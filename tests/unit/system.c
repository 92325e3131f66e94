/* The system's own calls, as they are used when the VMM brings none: each fails, for want of fds or
   memory, or is interrupted, at each place. Nothing is left open, and what failed is told.

   They are wrapped by the linker, as system_calls.link says. */
#define _POSIX_C_SOURCE 200809L

#include "peer.h"
#include "vhost_kernel.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

/* ---- wrapping ---- */

static struct {
    int error; /* of the nth call from now on; 0: none fails */
    unsigned nth;
} strike;

static bool strikes(void)
{
    if (strike.error == 0 || --strike.nth > 0) {
        return false;
    }
    errno = strike.error;
    strike.error = 0;
    return true;
}

#define WRAP(TYPE, NAME, PARAMETERS, ARGUMENTS)                                                    \
    TYPE __real_##NAME PARAMETERS;                                                                 \
    TYPE __wrap_##NAME PARAMETERS;                                                                 \
    TYPE __wrap_##NAME PARAMETERS                                                                  \
    {                                                                                              \
        return strikes() ? (TYPE)-1 : __real_##NAME ARGUMENTS;                                     \
    }

WRAP(int, socket, (int domain, int type, int protocol), (domain, type, protocol))
WRAP(int, connect, (int fd, const struct sockaddr *to, socklen_t size), (fd, to, size))
WRAP(int, bind, (int fd, const struct sockaddr *to, socklen_t size), (fd, to, size))
WRAP(int, listen, (int fd, int backlog), (fd, backlog))
WRAP(int, accept, (int fd, struct sockaddr *from, socklen_t *size), (fd, from, size))
WRAP(int, socketpair, (int domain, int type, int protocol, int *ends),
     (domain, type, protocol, ends))
WRAP(int, fcntl, (int fd, int what, long argument), (fd, what, argument))
WRAP(int, poll, (void *fds, unsigned long count, int timeout), (fds, count, timeout))
WRAP(ssize_t, read, (int fd, void *bytes, size_t size), (fd, bytes, size))
WRAP(ssize_t, write, (int fd, const void *bytes, size_t size), (fd, bytes, size))
WRAP(off_t, lseek, (int fd, off_t offset, int whence), (fd, offset, whence))
WRAP(ssize_t, recvmsg, (int fd, void *message, int flags), (fd, message, flags))
WRAP(ssize_t, sendmsg, (int fd, const void *message, int flags), (fd, message, flags))
WRAP(int, eventfd, (unsigned start, int flags), (start, flags))
WRAP(int, memfd_create, (const char *name, unsigned flags), (name, flags))
WRAP(int, fstat, (int fd, void *about), (fd, about))
WRAP(int, open, (const char *path, int flags, unsigned mode), (path, flags, mode))
WRAP(int, ioctl, (int fd, unsigned long request, void *argument), (fd, request, argument))

void *__real_mmap(void *at, size_t size, int access, int flags, int fd, off_t offset);
void *__wrap_mmap(void *at, size_t size, int access, int flags, int fd, off_t offset);
void *__wrap_mmap(void *at, size_t size, int access, int flags, int fd, off_t offset)
{
    return strikes() ? MAP_FAILED : __real_mmap(at, size, access, flags, fd, offset);
}

/* ---- what is done, with nothing left over ---- */

typedef struct operation {
    const char *name;
    int (*act)(peer_bench *b);
    bool ignores_interrupts; /* it goes on: else it says -EINTR */
    int instead;             /* what else it may say */
} operation;

static char path[100];

static int close_fd(int fd)
{
    if (fd >= 0) {
        close(fd);
    }
    return fd < 0 ? fd : 0;
}

static int act_memory(peer_bench *b)
{
    return close_fd(b->peer.base_calls.memory(5000, NULL));
}

static int act_listen(peer_bench *b)
{
    remove(path);
    return close_fd(b->peer.base_calls.listen(path, NULL));
}

/* The socket of one that died is in the way. */
static int act_listen_again(peer_bench *b)
{
    return close_fd(b->peer.base_calls.listen(path, NULL));
}

static int act_connect_and_accept(peer_bench *b)
{
    const vhost_user_calls *calls = &b->peer.base_calls;
    remove(path);
    int listener = calls->listen(path, NULL);
    int fd = listener < 0 ? listener : calls->connect(path, NULL);
    int accepted = fd < 0 ? fd : calls->accept(listener, NULL);
    (void)close_fd(fd);
    (void)close_fd(listener);
    return close_fd(accepted);
}

static int act_pair(peer_bench *b)
{
    int ends[2], code = b->peer.base_calls.socket_pair(ends, NULL);
    if (code == 0) {
        close(ends[0]);
        close(ends[1]);
    }
    return code;
}

/* A byte and an fd go through a pair of sockets. */
static int act_send(peer_bench *b)
{
    const vhost_user_calls *calls = &b->peer.base_calls;
    int ends[2], got = -1, code = calls->socket_pair(ends, NULL);
    uint32_t count = 1;
    char byte = 0;
    if (code < 0) {
        return code;
    }
    code = (int)calls->send(ends[0], "x", 1, &ends[0], 1, NULL);
    code = code < 0 ? code : (int)calls->receive(ends[1], &byte, 1, &got, &count, NULL);
    (void)close_fd(got);
    close(ends[0]);
    close(ends[1]);
    return code == 1 && byte == 'x' ? 0 : code;
}

static int act_size(peer_bench *b)
{
    const vhost_user_calls *calls = &b->peer.base_calls;
    int fd = calls->memory(100, NULL);
    int64_t size = fd < 0 ? fd : calls->size_of(fd, NULL);
    (void)close_fd(fd);
    return size == 100 ? 0 : (int)size;
}

static int act_event(peer_bench *b)
{
    vhost_device_cleanup(&b->f->device[0]);
    int result = fixture_attach(b->f, 0);
    return result < 0 ? result : fixture_start(b->f, 0);
}

static int act_pending(peer_bench *b)
{
    const uint64_t one = 1;
    int code = vhost_queue_mask(&b->f->device[0], 1);
    bool signalled =
        code == 0 && __real_write(b->f->mock[0].rings[1].call_fd, &one, sizeof one) == sizeof one;
    code = signalled ? vhost_queue_unmask(&b->f->device[0], 1) : code;
    return code == 1 ? 0 : code == 0 ? -ENOMSG : code; /* a call that is lost */
}

static int act_log(peer_bench *b)
{
    int code = vhost_log_start(&b->f->vm);
    (void)vhost_log_stop(&b->f->vm);
    return code;
}

/* /dev/null is no vhost device, and says so; qemu-user does not know the ioctl. */
static int act_kernel(peer_bench *b)
{
    vhost_kernel kernel;
    vhost_device device;
    vhost_queue queues[2];
    memset(&device, 0, sizeof device);
    vhost_queue_init(&queues[0]);
    vhost_queue_init(&queues[1]);
    int code = vhost_kernel_open(&kernel, "/dev/null", 2, NULL);
    if (code == 0) {
        code = vhost_device_init(&device, &b->f->vm, vhost_kernel_ops(&kernel), &kernel, queues, 2,
                                 NULL);
    }
    vhost_device_cleanup(&device);
    vhost_kernel_close(&kernel);
    return code == -ENOTSUP || code == -ENOSYS ? 0 : code;
}

static const operation operations[] = {
    {"memory", act_memory, false, 0},
    {"listen", act_listen, false, 0},
    {"listen again", act_listen_again, false, -EADDRINUSE}, /* who knows whether it died? */
    {"connect and accept", act_connect_and_accept, false, 0},
    {"pair", act_pair, false, 0},
    {"send", act_send, false, 0},
    {"size", act_size, false, 0},
    {"notifiers", act_event, false, 0},
    {"a call while masked", act_pending, true, 0},
    {"log", act_log, false, 0},
    {"kernel", act_kernel, true, 0},
};

/* ---- each fails at each place ---- */

static int arrange(peer_bench *b)
{
    vhost_vm_options options = fixture_vm_options(b->f);
    options.events = NULL;
    options.log = NULL;
    int result = vhost_vm_cleanup(&b->f->vm);
    result = result < 0 ? result : vhost_vm_init(&b->f->vm, &options);
    b->f->mock[0].facts.log_kind = VHOST_DIRTY_SHARED;
    vhost_features_set(&b->f->mock[0].facts.offered, VHOST_FEATURE_LOG_ALL);
    (void)snprintf(path, sizeof path, "/tmp/vhost-test-%ld", (long)getpid());
    return result < 0 ? result : fixture_running_device(b->f);
}

/* How often it was struck: once for each call that it makes. */
static enum greatest_test_res strike_each(peer_bench *b, const operation *o, int error,
                                          unsigned *struck)
{
    for (unsigned nth = 1;; nth++) {
        ASSERT_OK(o->act(b));
        int fds = fixture_open_fds();
        strike.nth = nth;
        strike.error = error;
        int code = o->act(b);
        bool missed = strike.error != 0;
        strike.error = 0;
        bool fits = code == 0 || code == -error || code == o->instead;
        if (!fits) {
            fprintf(stderr, "%s, call %u: %d\n", o->name, nth, code);
        }
        ASSERT(fits);
        ASSERT(code == 0 || !(error == EINTR && o->ignores_interrupts));
        ASSERT(fixture_open_fds() <= fds);
        if (missed) {
            ASSERT_OK(code);
            PASS();
        }
        ++*struck;
    }
}

static enum greatest_test_res strike_all(peer_bench *b, int error)
{
    unsigned struck = 0;
    ASSERT_OK(arrange(b));
    for (size_t i = 0; i < sizeof operations / sizeof *operations; i++) {
        CHECK_CALL(strike_each(b, &operations[i], error, &struck));
    }
    remove(path);
    ASSERT(struck >= 40);
    PASS();
}

TEST each_system_call_may_lack_fds(peer_bench *b)
{
    return strike_all(b, EMFILE);
}

TEST each_system_call_may_lack_memory(peer_bench *b)
{
    return strike_all(b, ENOMEM);
}

TEST each_system_call_may_be_interrupted(peer_bench *b)
{
    return strike_all(b, EINTR);
}

/* Where words are of 32 bits, times() wraps five minutes after the machine started. */
TEST time_is_that_of_the_monotonic_clock(peer_bench *b)
{
    struct timespec now;
    ASSERT_OK(clock_gettime(CLOCK_MONOTONIC, &now));
    uint64_t ms = (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
    uint64_t told = b->peer.base_calls.now(NULL);
    ASSERT(told >= ms && told - ms < 1000);
    PASS();
}

SUITE(system_suite)
{
    RUN_USER(each_system_call_may_lack_fds);
    RUN_USER(each_system_call_may_lack_memory);
    RUN_USER(each_system_call_may_be_interrupted);
    RUN_USER(time_is_that_of_the_monotonic_clock);
}
