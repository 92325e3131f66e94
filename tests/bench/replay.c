#define _GNU_SOURCE
#include "replay.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

enum {
    HEADER = 12,
    MESSAGE = 4364, /* most bytes */
    MESSAGES = 4096,
    FDS = 8,
    NEED_REPLY = 8
};

typedef struct message {
    uint8_t bytes[MESSAGE];
    uint32_t size;
    int fds[FDS];
    unsigned fd_count, phase;
} message;

struct replay {
    message *messages;
    unsigned count, phase;
};

static __thread replay *recording;

/* ---- writing it down ---- */

static uint32_t word(const message *self, unsigned i)
{
    uint32_t value;
    memcpy(&value, self->bytes + 4 * i, sizeof value);
    return value;
}

static uint32_t whole_size(const message *self)
{
    return self->size < HEADER ? HEADER : HEADER + word(self, 2);
}

static void keep_bytes(replay *self, const uint8_t *bytes, size_t size)
{
    while (size > 0 && self->count < MESSAGES) {
        message *last = &self->messages[self->count];
        size_t part = whole_size(last) - last->size;
        part = part < size ? part : size;
        memcpy(last->bytes + last->size, bytes, part);
        last->size += (uint32_t)part;
        last->phase = self->phase;
        bytes += part;
        size -= part;
        self->count += last->size >= HEADER && last->size == whole_size(last);
    }
}

/* They ride on the first byte of their message. */
static void keep_fds(replay *self, const struct msghdr *sent)
{
    const struct cmsghdr *control = CMSG_FIRSTHDR(sent);
    message *next = &self->messages[self->count];
    int fds[FDS];
    if (control == NULL || control->cmsg_type != SCM_RIGHTS) {
        return;
    }
    next->fd_count = (unsigned)((control->cmsg_len - CMSG_LEN(0)) / sizeof(int));
    memcpy(fds, CMSG_DATA(control), next->fd_count * sizeof(int));
    for (unsigned i = 0; i < next->fd_count; i++) {
        next->fds[i] = fcntl(fds[i], F_DUPFD_CLOEXEC, 0);
    }
}

/* In place of that of libc. */
ssize_t sendmsg(int fd, const struct msghdr *sent, int flags)
{
    ssize_t result = syscall(SYS_sendmsg, fd, sent, flags);
    size_t left = result > 0 ? (size_t)result : 0;
    if (recording == NULL || left == 0) {
        return result;
    }
    keep_fds(recording, sent);
    for (size_t i = 0; i < sent->msg_iovlen && left > 0; i++) {
        size_t part = sent->msg_iov[i].iov_len < left ? sent->msg_iov[i].iov_len : left;
        keep_bytes(recording, sent->msg_iov[i].iov_base, part);
        left -= part;
    }
    return result;
}

replay *replay_begin(void)
{
    replay *self = calloc(1, sizeof *self);
    self->messages = calloc(MESSAGES + 1, sizeof *self->messages);
    recording = self;
    return self;
}

void replay_next_phase(replay *self)
{
    self->phase++;
}

void replay_end(replay *self)
{
    (void)self;
    recording = NULL;
}

void replay_free(replay *self)
{
    for (unsigned i = 0; i < self->count; i++) {
        for (unsigned k = 0; k < self->messages[i].fd_count; k++) {
            close(self->messages[i].fds[k]);
        }
    }
    free(self->messages);
    free(self);
}

/* ---- saying it again ---- */

/* Messages that always have an answer. */
static bool is_question(uint32_t id)
{
    static const uint8_t questions[] = {1, 6, 11, 15, 17, 24, 31, 36, 40};
    return memchr(questions, (int)id, sizeof questions) != NULL;
}

/* Messages for whose acknowledgement front-ends in use wait: SET_MEM_TABLE, ADD_MEM_REG,
   REM_MEM_REG; SET_VRING_ADDR, SET_VRING_KICK, SET_VRING_CALL. */
static bool is_acknowledged(uint32_t id)
{
    static const uint8_t awaited[] = {5, 37, 38, 9, 12, 13};
    return memchr(awaited, (int)id, sizeof awaited) != NULL;
}

static bool read_bytes(int fd, uint8_t *bytes, size_t size)
{
    while (size > 0) {
        ssize_t got = recv(fd, bytes, size, 0);
        if (got <= 0) {
            return false;
        }
        bytes += got;
        size -= (size_t)got;
    }
    return true;
}

/* An answer, of whatever size; none has an fd. */
static bool read_answer(int fd)
{
    message answer;
    answer.size = HEADER;
    return read_bytes(fd, answer.bytes, HEADER) && word(&answer, 2) <= MESSAGE - HEADER &&
           read_bytes(fd, answer.bytes + HEADER, word(&answer, 2));
}

static bool send_message(int fd, const message *self, bool acknowledged, int flags)
{
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(FDS * sizeof(int))];
    } control;
    uint32_t header[3] = {word(self, 0), word(self, 1), word(self, 2)};
    struct iovec parts[2] = {{header, HEADER},
                             {(void *)(uintptr_t)(self->bytes + HEADER), self->size - HEADER}};
    struct msghdr out = {.msg_iov = parts, .msg_iovlen = 2};
    header[1] = (header[1] & ~(uint32_t)NEED_REPLY) | (acknowledged ? NEED_REPLY : 0);
    if (self->fd_count > 0) {
        struct cmsghdr *first = &control.align;
        out.msg_control = control.bytes;
        out.msg_controllen = CMSG_SPACE(self->fd_count * sizeof(int));
        first->cmsg_level = SOL_SOCKET;
        first->cmsg_type = SCM_RIGHTS;
        first->cmsg_len = CMSG_LEN(self->fd_count * sizeof(int));
        memcpy(CMSG_DATA(first), self->fds, self->fd_count * sizeof(int));
    }
    return sendmsg(fd, &out, flags | MSG_NOSIGNAL) == (ssize_t)self->size;
}

static bool is_answered(const message *self, bool acknowledged)
{
    return is_question(word(self, 0)) || acknowledged;
}

static int play_synchronously(int fd, const message *messages, unsigned count)
{
    int waits = 0;
    for (unsigned i = 0; i < count; i++) {
        bool acknowledged = is_acknowledged(word(&messages[i], 0));
        if (!send_message(fd, &messages[i], acknowledged, 0)) {
            return -1;
        }
        if (is_answered(&messages[i], acknowledged)) {
            waits++;
            if (!read_answer(fd)) {
                return -1;
            }
        }
    }
    return waits;
}

/* Answers are read when nothing more can be sent: the back-end may be waiting for that. */
static int play_at_once(int fd, const message *messages, unsigned count)
{
    unsigned due = 0;
    for (unsigned i = 0; i < count; i++) {
        bool acknowledged = (word(&messages[i], 1) & NEED_REPLY) != 0;
        while (!send_message(fd, &messages[i], acknowledged, MSG_DONTWAIT)) {
            struct pollfd ready = {.fd = fd, .events = (short)(POLLOUT | (due > 0 ? POLLIN : 0))};
            if (errno != EAGAIN || poll(&ready, 1, -1) < 0) {
                return -1;
            }
            if ((ready.revents & POLLIN) != 0 && (due-- == 0 || !read_answer(fd))) {
                return -1;
            }
        }
        due += is_answered(&messages[i], acknowledged);
    }
    for (; due > 0; due--) {
        if (!read_answer(fd)) {
            return -1;
        }
    }
    return 1;
}

int replay_play(const replay *self, int fd, unsigned phase, replay_order order)
{
    unsigned first = 0, count = 0;
    while (first < self->count && self->messages[first].phase < phase) {
        first++;
    }
    while (first + count < self->count && self->messages[first + count].phase == phase) {
        count++;
    }
    return order == REPLAY_SYNCHRONOUS ? play_synchronously(fd, self->messages + first, count)
                                       : play_at_once(fd, self->messages + first, count);
}
