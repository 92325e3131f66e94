/* Every real vhost-user back-end starts, tells its features, and ends with the test.

   backends: blk net fs gpu dpdk_blk crypto */
#define _GNU_SOURCE
#include "greatest.h"
#include "real_backend.h"

#include <inttypes.h>
#include <signal.h>
#include <stdint.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum {
    GET_FEATURES = 1,
    GET_PROTOCOL_FEATURES = 15
};

#define BIT(n) (UINT64_C(1) << (n))
/* VERSION_1, and the bit that opens the protocol features. */
#define COMMON_FEATURES (BIT(32) | BIT(30))

typedef struct expectation {
    const char *name, *options;
    uint64_t features, protocol; /* among others */
} expectation;

static const expectation expectations[] = {
    {"blk", "queues=4", BIT(29) | BIT(12), BIT(15) | BIT(9) | BIT(3) | BIT(0)},
    {"blk", "writable=off", BIT(5), BIT(9)},
    {"net", "queues=2", BIT(34) | BIT(26) | BIT(22), BIT(16) | BIT(3) | BIT(0)},
    {"net", "iommu=1 postcopy=1", BIT(33), BIT(8)},
    {"fs", "", BIT(29), BIT(15) | BIT(3)},
    {"gpu", "", BIT(29), BIT(9) | BIT(3)},
    {"dpdk_blk", "", BIT(34), BIT(12) | BIT(9)},
    {"crypto", "", BIT(17), BIT(7) | BIT(3)},
};

typedef struct message {
    uint32_t request, flags, size;
    uint32_t low, high; /* of the answer */
} message;

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec * 1e3 + (double)time.tv_nsec / 1e6;
}

static int patient_socket(void)
{
    struct timeval limit = {.tv_sec = 10};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit); /* also of accept() */
    return fd;
}

static struct sockaddr_un address_of(const real_backend *backend)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    strcpy(address.sun_path, backend->socket);
    return address;
}

static int connect_to(const real_backend *backend)
{
    struct sockaddr_un address = address_of(backend);
    int fd = patient_socket();
    if (connect(fd, (struct sockaddr *)&address, sizeof address) != 0) {
        close(fd);
        return -1;
    }
    return fd;
}

static enum greatest_test_res ask(int fd, uint32_t request, uint64_t *answer)
{
    message m = {.request = request, .flags = 1};
    ASSERT_EQ_FMT((ssize_t)12, send(fd, &m, 12, MSG_NOSIGNAL), "%zd");
    ASSERT_EQ_FMT((ssize_t)20, recv(fd, &m, sizeof m, MSG_WAITALL), "%zd");
    ASSERT_EQ_FMT(request, m.request, "%u");
    ASSERT_EQ_FMT(5u, m.flags, "%u");
    ASSERT_EQ_FMT(8u, m.size, "%u");
    *answer = (uint64_t)m.high << 32 | m.low;
    PASS();
}

static enum greatest_test_res talk(const expectation *expected, real_backend *backend)
{
    uint64_t features = 0, protocol = 0;
    double start = now();
    ASSERT(real_backend_start(backend, expected->name, expected->options));
    double listening = now() - start;
    int fd = connect_to(backend);
    ASSERT(fd >= 0);
    CHECK_CALL(ask(fd, GET_FEATURES, &features));
    CHECK_CALL(ask(fd, GET_PROTOCOL_FEATURES, &protocol));
    printf("%s %s: listens after %.0f ms, answered after %.0f ms, features %#" PRIx64
           ", protocol %#" PRIx64 "\n",
           expected->name, expected->options, listening, now() - start, features, protocol);
    ASSERT_EQ_FMT(expected->features | COMMON_FEATURES,
                  features & (expected->features | COMMON_FEATURES), "%#" PRIx64);
    ASSERT_EQ_FMT(expected->protocol, protocol & expected->protocol, "%#" PRIx64);
    ASSERT(real_backend_runs(backend));
    close(fd);
    PASS();
}

TEST a_back_end_tells_its_features(const expectation *expected)
{
    real_backend backend;
    ASSERT(real_backend_open(&backend));
    enum greatest_test_res result = talk(expected, &backend);
    real_backend_close(&backend);
    ASSERT_FALSE(real_backend_runs(&backend));
    ASSERT_EQ_FMT(-1, access(backend.folder, F_OK), "%d");
    return result;
}

static enum greatest_test_res starts_again(const char *name, real_backend *backend)
{
    for (int round = 0; round < 3; round++) {
        ASSERT(real_backend_start(backend, name, ""));
        int fd = connect_to(backend);
        ASSERT(fd >= 0);
        ASSERT(real_backend_runs(backend));
        real_backend_end(backend, SIGKILL);
        ASSERT_FALSE(real_backend_runs(backend));
        close(fd);
    }
    PASS();
}

TEST a_killed_back_end_starts_again_on_its_socket(const char *name)
{
    real_backend backend;
    ASSERT(real_backend_open(&backend));
    enum greatest_test_res result = starts_again(name, &backend);
    real_backend_close(&backend);
    return result;
}

static enum greatest_test_res connects(int listening, real_backend *backend)
{
    uint64_t features = 0;
    struct sockaddr_un address = address_of(backend);
    ASSERT_EQ(0, bind(listening, (struct sockaddr *)&address, sizeof address));
    ASSERT_EQ(0, listen(listening, 1));
    ASSERT(real_backend_start(backend, "net", "client=1"));
    int fd = accept(listening, NULL, NULL);
    ASSERT(fd >= 0);
    CHECK_CALL(ask(fd, GET_FEATURES, &features));
    ASSERT_EQ(COMMON_FEATURES, features & COMMON_FEATURES);
    close(fd);
    PASS();
}

TEST a_back_end_connects_to_us(void)
{
    real_backend backend;
    int listening = patient_socket();
    ASSERT(real_backend_open(&backend));
    enum greatest_test_res result = connects(listening, &backend);
    real_backend_close(&backend);
    close(listening);
    return result;
}

/* The status with which a child of ours ended; 0: it has not. */
static int status_of(pid_t child)
{
    int status = 0;
    double start = now();
    while (waitpid(child, &status, WNOHANG) == 0 && now() - start < 2000) {
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    }
    return status;
}

/* Its orphan comes to us to be buried. */
TEST a_back_end_ends_with_a_test_that_crashes(const expectation *expected)
{
    real_backend backend;
    ASSERT(real_backend_open(&backend));
    ASSERT_EQ(0, prctl(PR_SET_CHILD_SUBREAPER, 1));
    int pipe_fds[2];
    ASSERT_EQ(0, pipe(pipe_fds));
    pid_t crashing = fork();
    if (crashing == 0) {
        bool started = real_backend_start(&backend, expected->name, expected->options);
        pid_t orphan = started ? backend.pid : 0;
        (void)!write(pipe_fds[1], &orphan, sizeof orphan);
        raise(SIGKILL);
    }
    pid_t orphan = 0;
    ASSERT_EQ(crashing, waitpid(crashing, NULL, 0));
    ASSERT_EQ_FMT((ssize_t)sizeof orphan, read(pipe_fds[0], &orphan, sizeof orphan), "%zd");
    ASSERT(orphan > 0);
    ASSERT_EQ_FMT(SIGKILL, status_of(orphan), "%d");
    ASSERT_EQ_FMT((pid_t)-1, waitpid(-1, NULL, WNOHANG), "%d"); /* nor did it leave children */
    close(pipe_fds[0]);
    close(pipe_fds[1]);
    real_backend_close(&backend);
    PASS();
}

SUITE(real_backends)
{
    for (size_t i = 0; i < sizeof expectations / sizeof expectations[0]; i++) {
        greatest_set_test_suffix(expectations[i].name);
        RUN_TEST1(a_back_end_tells_its_features, &expectations[i]);
        greatest_set_test_suffix(expectations[i].name);
        RUN_TEST1(a_back_end_ends_with_a_test_that_crashes, &expectations[i]);
    }
    RUN_TEST1(a_killed_back_end_starts_again_on_its_socket, "blk");
    RUN_TEST1(a_killed_back_end_starts_again_on_its_socket, "dpdk_blk");
    RUN_TEST(a_back_end_connects_to_us);
}

GREATEST_MAIN_DEFS();

int main(int argc, char **argv)
{
    GREATEST_MAIN_BEGIN();
    RUN_SUITE(real_backends);
    GREATEST_MAIN_END();
}
