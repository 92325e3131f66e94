/* Counts what a vhost-user front-end, any program, sends to its back-end, and how often it waits.

      LD_PRELOAD=build/shim/wire_shim.so PROGRAM

   prints, when the program ends:

      PROGRAM: 21 messages in 12 calls, 8 waits, 9 blocked calls, 0.41 ms blocked: SET_OWNER=1 ...

   to the standard error, or at the end of the file that WIRE_SHIM_FILE names. Counted are messages
   that go out on connected UNIX stream sockets, if the first send begins with a whole header of a
   vhost-user request. A wait is a round trip: after something was sent, the first answer that is
   read or polled for. How fast the back-end is makes no difference: until a poll has shown the
   answer, a read that does not block finds nothing, as if it were not there yet. (So a program that
   waits with epoll or select would wait for ever.) A blocked call is one that reads from such a
   socket, or polls it, while nothing is there; that is up to the scheduler. A program that declares

      __attribute__((weak)) void wire_shim_phase(const char *name);

   gets such a line, with a name, when it calls this; then the counts begin again. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

void wire_shim_phase(const char *name);

enum {
    FDS = 1024,
    REQUESTS = 64,
    HEADER = 12
};

static const char *const names[REQUESTS] = {
    [1] = "GET_FEATURES",
    [2] = "SET_FEATURES",
    [3] = "SET_OWNER",
    [4] = "RESET_OWNER",
    [5] = "SET_MEM_TABLE",
    [6] = "SET_LOG_BASE",
    [7] = "SET_LOG_FD",
    [8] = "SET_VRING_NUM",
    [9] = "SET_VRING_ADDR",
    [10] = "SET_VRING_BASE",
    [11] = "GET_VRING_BASE",
    [12] = "SET_VRING_KICK",
    [13] = "SET_VRING_CALL",
    [14] = "SET_VRING_ERR",
    [15] = "GET_PROTOCOL",
    [16] = "SET_PROTOCOL",
    [17] = "GET_QUEUE_NUM",
    [18] = "SET_VRING_ENABLE",
    [19] = "SEND_RARP",
    [20] = "NET_SET_MTU",
    [21] = "SET_BACKEND_REQ_FD",
    [22] = "IOTLB_MSG",
    [23] = "SET_VRING_ENDIAN",
    [24] = "GET_CONFIG",
    [25] = "SET_CONFIG",
    [26] = "CREATE_CRYPTO_SESSION",
    [27] = "CLOSE_CRYPTO_SESSION",
    [28] = "POSTCOPY_ADVISE",
    [29] = "POSTCOPY_LISTEN",
    [30] = "POSTCOPY_END",
    [31] = "GET_INFLIGHT_FD",
    [32] = "SET_INFLIGHT_FD",
    [33] = "GPU_SET_SOCKET",
    [34] = "RESET_DEVICE",
    [35] = "VRING_KICK",
    [36] = "GET_MAX_MEM_SLOTS",
    [37] = "ADD_MEM_REG",
    [38] = "REM_MEM_REG",
    [39] = "SET_STATUS",
    [40] = "GET_STATUS",
};

typedef enum kind {
    UNKNOWN,
    OTHER,
    WIRE
} kind;

/* What goes out on one socket: messages may be sent in parts, and several at once. */
typedef struct wire {
    kind kind;
    unsigned char header[HEADER];
    size_t header_bytes;   /* of the next message */
    uint32_t payload_left; /* of this one */
    bool sent;             /* since the last answer: the next one is a wait */
} wire;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static wire wires[FDS];
static unsigned messages, calls, waits, blocked, by_request[REQUESTS];
static double blocked_ms;

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec * 1e3 + (double)time.tv_nsec / 1e6;
}

/* ---- the report ---- */

/* With the lock held. */
static void report(const char *phase)
{
    const char *path = getenv("WIRE_SHIM_FILE");
    FILE *out = path ? fopen(path, "a") : stderr;
    if (out == NULL) {
        return;
    }
    fprintf(out, "%s%s%s: %u messages in %u calls, %u waits, %u blocked calls, %.2f ms blocked:",
            program_invocation_short_name, *phase ? ", " : "", phase, messages, calls, waits,
            blocked, blocked_ms);
    for (int i = 0; i < REQUESTS; i++) {
        if (by_request[i] > 0 && names[i] != NULL) {
            fprintf(out, " %s=%u", names[i], by_request[i]);
        } else if (by_request[i] > 0) {
            fprintf(out, " %d=%u", i, by_request[i]);
        }
    }
    fputc('\n', out);
    if (path != NULL) {
        fclose(out);
    }
    messages = calls = waits = blocked = 0;
    blocked_ms = 0;
    memset(by_request, 0, sizeof by_request);
}

void wire_shim_phase(const char *name)
{
    pthread_mutex_lock(&lock);
    report(name);
    pthread_mutex_unlock(&lock);
}

__attribute__((destructor)) static void at_end(void)
{
    if (messages > 0) {
        report("");
    }
}

/* ---- counting ---- */

/* A first message that is a request of version 1. */
static kind kind_of(int fd, const unsigned char *bytes, size_t size)
{
    int domain = 0, type = 0;
    uint32_t header[3];
    if (getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &(socklen_t){sizeof domain}) != 0 ||
        getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &(socklen_t){sizeof type}) != 0 ||
        domain != AF_UNIX || type != SOCK_STREAM || size < HEADER) {
        return OTHER;
    }
    memcpy(header, bytes, HEADER);
    return header[0] > 0 && header[0] < REQUESTS && (header[1] & 7) == 1 && header[2] < 4096
               ? WIRE
               : OTHER;
}

static void count_message(wire *self)
{
    uint32_t header[3];
    memcpy(header, self->header, HEADER);
    self->header_bytes = 0;
    self->payload_left = header[2];
    messages++;
    by_request[header[0] < REQUESTS ? header[0] : 0]++;
}

static void count_bytes(wire *self, const unsigned char *bytes, size_t size)
{
    while (size > 0) {
        bool in_payload = self->payload_left > 0;
        size_t left = in_payload ? self->payload_left : HEADER - self->header_bytes;
        size_t part = size < left ? size : left;
        if (in_payload) {
            self->payload_left -= (uint32_t)part;
        } else {
            memcpy(self->header + self->header_bytes, bytes, part);
            self->header_bytes += part;
            if (self->header_bytes == HEADER) {
                count_message(self);
            }
        }
        bytes += part;
        size -= part;
    }
}

static void count_sent(int fd, const struct iovec *parts, size_t count, ssize_t size)
{
    if (fd < 0 || fd >= FDS || size <= 0 || wires[fd].kind == OTHER) {
        return;
    }
    pthread_mutex_lock(&lock);
    wire *self = &wires[fd];
    if (self->kind == UNKNOWN) {
        self->kind = kind_of(fd, parts[0].iov_base, parts[0].iov_len);
    }
    if (self->kind == WIRE) {
        size_t left = (size_t)size;
        calls++;
        self->sent = true;
        for (size_t i = 0; i < count && left > 0; i++) {
            size_t part = parts[i].iov_len < left ? parts[i].iov_len : left;
            count_bytes(self, parts[i].iov_base, part);
            left -= part;
        }
    }
    pthread_mutex_unlock(&lock);
}

static bool is_wire(int fd)
{
    return fd >= 0 && fd < FDS && wires[fd].kind == WIRE;
}

/* An answer came; the call that waited for it blocked from `start` on, or (0) did not. */
static void count_answered(int fd, double start)
{
    pthread_mutex_lock(&lock);
    waits += wires[fd].sent;
    wires[fd].sent = false;
    if (start > 0) {
        blocked++;
        blocked_ms += now() - start;
    }
    pthread_mutex_unlock(&lock);
}

/* ---- the calls ---- */

/* Finds the original of the function that we stand in for. */
#define ORIGINAL(type, name, ...)                                                                  \
    static type (*original)(__VA_ARGS__);                                                          \
    if (original == NULL) {                                                                        \
        *(void **)&original = dlsym(RTLD_NEXT, #name);                                             \
    }

ssize_t sendmsg(int fd, const struct msghdr *message, int flags)
{
    ORIGINAL(ssize_t, sendmsg, int, const struct msghdr *, int)
    ssize_t result = original(fd, message, flags);
    count_sent(fd, message->msg_iov, message->msg_iovlen, result);
    return result;
}

ssize_t writev(int fd, const struct iovec *parts, int count)
{
    ORIGINAL(ssize_t, writev, int, const struct iovec *, int)
    ssize_t result = original(fd, parts, count);
    count_sent(fd, parts, (size_t)count, result);
    return result;
}

ssize_t send(int fd, const void *bytes, size_t size, int flags)
{
    ORIGINAL(ssize_t, send, int, const void *, size_t, int)
    ssize_t result = original(fd, bytes, size, flags);
    count_sent(fd, &(struct iovec){.iov_base = (void *)(uintptr_t)bytes, .iov_len = size}, 1,
               result);
    return result;
}

ssize_t write(int fd, const void *bytes, size_t size)
{
    ORIGINAL(ssize_t, write, int, const void *, size_t)
    ssize_t result = original(fd, bytes, size);
    count_sent(fd, &(struct iovec){.iov_base = (void *)(uintptr_t)bytes, .iov_len = size}, 1,
               result);
    return result;
}

static bool awaits_answer(int fd)
{
    pthread_mutex_lock(&lock);
    bool sent = wires[fd].sent;
    pthread_mutex_unlock(&lock);
    return sent;
}

/* Returns false if it shall find nothing. *start: when it began to block; 0: it will not. */
static bool may_read(int fd, int flags, double *start)
{
    ORIGINAL(int, poll, struct pollfd *, nfds_t, int)
    struct pollfd one = {.fd = fd, .events = POLLIN};
    *start = 0;
    if (!is_wire(fd)) {
        return true;
    }
    if ((flags & MSG_DONTWAIT) != 0 || (fcntl(fd, F_GETFL) & O_NONBLOCK) != 0) {
        return !awaits_answer(fd);
    }
    *start = original(&one, 1, 0) == 0 ? now() : 0;
    return true;
}

static ssize_t find_nothing(void)
{
    errno = EAGAIN;
    return -1;
}

static ssize_t has_read(int fd, ssize_t size, double start)
{
    if (size > 0 && is_wire(fd)) {
        count_answered(fd, start);
    }
    return size;
}

ssize_t recvmsg(int fd, struct msghdr *message, int flags)
{
    ORIGINAL(ssize_t, recvmsg, int, struct msghdr *, int)
    double start;
    return may_read(fd, flags, &start) ? has_read(fd, original(fd, message, flags), start)
                                       : find_nothing();
}

ssize_t recv(int fd, void *bytes, size_t size, int flags)
{
    ORIGINAL(ssize_t, recv, int, void *, size_t, int)
    double start;
    return may_read(fd, flags, &start) ? has_read(fd, original(fd, bytes, size, flags), start)
                                       : find_nothing();
}

ssize_t read(int fd, void *bytes, size_t size)
{
    ORIGINAL(ssize_t, read, int, void *, size_t)
    double start;
    return may_read(fd, 0, &start) ? has_read(fd, original(fd, bytes, size), start)
                                   : find_nothing();
}

static void has_polled(const struct pollfd *fds, nfds_t count, double start)
{
    for (nfds_t i = 0; i < count; i++) {
        if ((fds[i].revents & (POLLIN | POLLHUP)) != 0 && is_wire(fds[i].fd)) {
            count_answered(fds[i].fd, start);
            start = 0; /* it was one call */
        }
    }
}

int poll(struct pollfd *fds, nfds_t count, int timeout)
{
    ORIGINAL(int, poll, struct pollfd *, nfds_t, int)
    double start = 0;
    int result = original(fds, count, 0);
    if (result == 0 && timeout != 0) {
        start = now();
        result = original(fds, count, timeout);
    }
    if (result > 0) {
        has_polled(fds, count, start);
    }
    return result;
}

int ppoll(struct pollfd *fds, nfds_t count, const struct timespec *timeout, const sigset_t *mask)
{
    ORIGINAL(int, ppoll, struct pollfd *, nfds_t, const struct timespec *, const sigset_t *)
    double start = 0;
    int result = original(fds, count, &(struct timespec){.tv_sec = 0}, mask);
    if (result == 0) {
        start = now();
        result = original(fds, count, timeout, mask);
    }
    if (result > 0) {
        has_polled(fds, count, start);
    }
    return result;
}

/* Its number may come back as something else. */
int close(int fd)
{
    ORIGINAL(int, close, int)
    if (fd >= 0 && fd < FDS) {
        pthread_mutex_lock(&lock);
        memset(&wires[fd], 0, sizeof wires[fd]);
        pthread_mutex_unlock(&lock);
    }
    return original(fd);
}
