#define _GNU_SOURCE /* memfd_create */

#include "peer.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

static peer_bench the_bench;

/* ---- messages as text ---- */

static void put(peer_bytes *message, const void *bytes, size_t size)
{
    if (message->size + size > sizeof message->bytes) {
        abort();
    }
    memcpy(message->bytes + message->size, bytes, size);
    message->size += size;
}

static void put_number(peer_bytes *message, uint64_t number, size_t width)
{
    const uint32_t word = (uint32_t)number;
    const uint16_t half = (uint16_t)number;
    const uint8_t byte = (uint8_t)number;
    const void *const from[] = {NULL, &byte, &half, NULL, &word, NULL, NULL, NULL, &number};
    put(message, from[width], width);
}

static void put_token(peer_bytes *message, char kind, const char *digits)
{
    static const uint8_t zeroes[PEER_MESSAGE];
    switch (kind) {
    case 'Q':
        put_number(message, strtoull(digits, NULL, 16), 8);
        break;
    case 'D':
        put_number(message, strtoull(digits, NULL, 16), 4);
        break;
    case 'W':
        put_number(message, strtoull(digits, NULL, 16), 2);
        break;
    case 'B':
        put_number(message, strtoull(digits, NULL, 16), 1);
        break;
    case 'Z':
        put(message, zeroes, strtoul(digits, NULL, 10));
        break;
    case '+':
        message->fds[message->fd_count++] = strtoull(digits, NULL, 10);
        break;
    default:
        abort();
    }
}

peer_bytes peer_parse(const char *text)
{
    peer_bytes message;
    unsigned id, flags, size;
    int used = 0;
    memset(&message, 0, sizeof message);
    if (sscanf(text, "%u %x %u%n", &id, &flags, &size, &used) != 3) {
        abort();
    }
    put_number(&message, id, 4);
    put_number(&message, flags, 4);
    put_number(&message, size, 4);
    for (text += used; *text == ' '; text += strcspn(text, " ")) {
        text++;
        put_token(&message, text[0], text + 1);
    }
    return message;
}

static uint64_t get(const uint8_t *bytes, size_t width)
{
    uint64_t number;
    uint32_t word;
    uint16_t half;
    memcpy(&number, bytes, width == 8 ? 8 : 1);
    memcpy(&word, bytes, width == 4 ? 4 : 1);
    memcpy(&half, bytes, width == 2 ? 2 : 1);
    return width == 8 ? number : width == 4 ? word : width == 2 ? half : bytes[0];
}

uint32_t peer_id(const peer_bytes *message)
{
    return (uint32_t)get(message->bytes, 4);
}

uint32_t peer_flags(const peer_bytes *message)
{
    return (uint32_t)get(message->bytes + 4, 4);
}

uint64_t peer_number(const peer_bytes *message, size_t at, size_t width)
{
    return get(message->bytes + 12 + at, width);
}

static void compose(peer_bytes *message, uint32_t id)
{
    memset(message, 0, sizeof *message);
    put_number(message, id, 4);
    put_number(message, 5, 4);
    put_number(message, 0, 4);
}

/* An answer says how large it is. */
static void fix_size(peer_bytes *message)
{
    uint32_t size = (uint32_t)message->size - 12;
    memcpy(message->bytes + 8, &size, sizeof size);
}

/* ---- lists ---- */

static void append(peer_list *list, const peer_bytes *message)
{
    if (list->count == list->capacity) {
        list->capacity = list->capacity ? 2 * list->capacity : 64;
        list->at = (peer_bytes *)realloc(list->at, list->capacity * sizeof *list->at);
        if (!list->at) {
            abort();
        }
    }
    list->at[list->count++] = *message;
}

static bool same(const peer_bytes *a, const peer_bytes *b)
{
    return a->size == b->size && memcmp(a->bytes, b->bytes, a->size) == 0 &&
           a->fd_count == b->fd_count &&
           memcmp(a->fds, b->fds, a->fd_count * sizeof a->fds[0]) == 0;
}

static void print(const char *what, const peer_bytes *message)
{
    fprintf(stderr, "%s:", what);
    for (size_t i = 0; i < message->size && i < 120; i++) {
        fprintf(stderr, "%s%02x", i % 4 == 0 ? " " : "", message->bytes[i]);
    }
    for (unsigned i = 0; i < message->fd_count; i++) {
        fprintf(stderr, " +%llu", (unsigned long long)message->fds[i]);
    }
    fprintf(stderr, "\n");
}

static void forget(peer_list *list)
{
    if (list == &the_bench.peer.heard) {
        the_bench.peer.answered = 0;
    }
    list->count = 0;
}

enum greatest_test_res peer_check(peer_list *list, const char *const *texts)
{
    size_t i;
    peer_turn(&the_bench.peer);
    for (i = 0; texts[i]; i++) {
        peer_bytes expected = peer_parse(texts[i]);
        if (i >= list->count) {
            print("this did not come", &expected);
            FAILm("a message is missing");
        }
        if (!same(&expected, &list->at[i])) {
            print("expected", &expected);
            print("     got", &list->at[i]);
            FAILm("another message was expected");
        }
    }
    if (i < list->count) {
        print("unexpected", &list->at[i]);
    }
    ASSERT_UINT(i, list->count);
    forget(list);
    PASS();
}

unsigned peer_count(const peer *self, uint32_t id)
{
    unsigned count = 0;
    for (size_t i = 0; i < self->heard.count; i++) {
        count += peer_id(&self->heard.at[i]) == id;
    }
    return count;
}

const peer_bytes *peer_find(const peer *self, uint32_t id, size_t start)
{
    for (size_t i = start; i < self->heard.count; i++) {
        if (peer_id(&self->heard.at[i]) == id) {
            return &self->heard.at[i];
        }
    }
    return NULL;
}

const peer_bytes *peer_last(const peer *self, uint32_t id)
{
    size_t i = self->heard.count;
    while (i > 0 && peer_id(&self->heard.at[i - 1]) != id) {
        i--;
    }
    return i > 0 ? &self->heard.at[i - 1] : NULL;
}

void peer_forget(peer *self)
{
    peer_turn(self);
    forget(&self->heard);
    forget(&self->told);
    self->waits = 0;
    memset(self->kicks, 0, sizeof self->kicks);
    memset(self->calls, 0, sizeof self->calls);
    memset(self->errors, 0, sizeof self->errors);
}

static void complain(peer *self, const char *what, uint32_t id)
{
    if (self->complaint[0] == '\0') {
        (void)snprintf(self->complaint, sizeof self->complaint, "%s, message %u", what, id);
    }
}

/* ---- files ---- */

int peer_file(uint64_t size)
{
    int fd = memfd_create("peer", MFD_CLOEXEC);
    if (fd < 0 || ftruncate(fd, (off_t)size) < 0) {
        abort();
    }
    return fd;
}

static uint64_t size_of_file(int fd)
{
    struct stat about;
    return fstat(fd, &about) < 0 ? 0 : (uint64_t)about.st_size;
}

static void shut(int *fd)
{
    if (*fd >= 0) {
        close(*fd);
    }
    *fd = -1;
}

/* ---- reading ---- */

typedef union control {
    struct cmsghdr align;
    unsigned char bytes[CMSG_SPACE(sizeof(int) * PEER_FDS)];
} control;

static void take_fds(peer_bytes *in, int *fds, struct msghdr *header)
{
    struct cmsghdr *one = header->msg_controllen > 0 ? CMSG_FIRSTHDR(header) : NULL;
    if (!one || one->cmsg_type != SCM_RIGHTS) {
        return;
    }
    size_t count = (one->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < count && in->fd_count < PEER_FDS; i++) {
        memcpy(&fds[in->fd_count], CMSG_DATA(one) + i * sizeof(int), sizeof(int));
        in->fds[in->fd_count] = size_of_file(fds[in->fd_count]);
        in->fd_count++;
    }
}

static size_t lacking(const peer_bytes *in)
{
    return (in->size < 12 ? 12 : 12 + (size_t)get(in->bytes + 8, 4)) - in->size;
}

/* Returns whether a whole message is there. */
static bool read_message(int *fd, peer_bytes *in, int *fds)
{
    while (*fd >= 0 && (in->size < 12 || lacking(in) > 0)) {
        control extra;
        struct iovec piece = {in->bytes + in->size, lacking(in)};
        struct msghdr header;
        memset(&header, 0, sizeof header);
        header.msg_iov = &piece;
        header.msg_iovlen = 1;
        header.msg_control = &extra;
        header.msg_controllen = sizeof extra;
        ssize_t count = recvmsg(*fd, &header, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
        if (count <= 0) {
            if (count == 0 || errno != EAGAIN) {
                shut(fd);
            }
            return false;
        }
        take_fds(in, fds, &header);
        in->size += (size_t)count;
    }
    return *fd >= 0;
}

static void close_fds(peer_bytes *in, int *fds)
{
    for (unsigned i = 0; i < in->fd_count; i++) {
        shut(&fds[i]);
    }
}

/* Keeps the fds that it needs. */
static void keep_fds(peer *self, const peer_bytes *in)
{
    int *keep = NULL;
    if (peer_id(in) == PEER_SET_BACKEND_REQ_FD) {
        keep = &self->channel;
    } else if (peer_id(in) == PEER_SET_DEVICE_STATE_FD) {
        keep = &self->state_fd;
    } else if (peer_id(in) == PEER_SET_INFLIGHT_FD) {
        keep = &self->record_fd;
    }
    if (keep && in->fd_count == 1) {
        shut(keep);
        *keep = self->in_fd[0];
        self->in_fd[0] = -1;
    }
}

static void drain(peer *self)
{
    while (!self->deaf && read_message(&self->fd, &self->in, self->in_fd)) {
        append(&self->heard, &self->in);
        keep_fds(self, &self->in);
        close_fds(&self->in, self->in_fd);
        memset(&self->in, 0, sizeof self->in);
    }
    while (!self->deaf && read_message(&self->channel, &self->in_channel, self->in_channel_fd)) {
        append(&self->told, &self->in_channel);
        close_fds(&self->in_channel, self->in_channel_fd);
        memset(&self->in_channel, 0, sizeof self->in_channel);
    }
}

/* ---- answering ---- */

typedef struct answer {
    peer_bytes message; /* no size: none */
    int fd[PEER_FDS];
} answer;

static void add_fd(answer *a, int fd)
{
    a->fd[a->message.fd_count++] = fd;
}

static void answer_number(answer *a, uint32_t id, uint64_t number)
{
    compose(&a->message, id);
    put_number(&a->message, number, 8);
    fix_size(&a->message);
}

static void answer_base(const peer *self, answer *a, const peer_bytes *asked)
{
    uint64_t queue = peer_number(asked, 0, 4);
    compose(&a->message, peer_id(asked));
    put_number(&a->message, queue, 4);
    put_number(&a->message, self->base[queue % PEER_QUEUES], 4);
}

static void answer_config(peer *self, answer *a, const peer_bytes *asked)
{
    uint64_t offset = peer_number(asked, 0, 4), size = peer_number(asked, 4, 4);
    compose(&a->message, PEER_GET_CONFIG);
    put(&a->message, asked->bytes + 12, 12);
    for (uint64_t i = 0; i < size; i++) {
        put_number(&a->message, offset + i < sizeof self->config ? self->config[offset + i] : 0, 1);
    }
}

static void answer_log(const peer *self, answer *a, const peer_bytes *asked)
{
    compose(&a->message, PEER_SET_LOG_BASE);
    if (self->log_answer == 16) {
        put(&a->message, asked->bytes + 12, 16);
    } else if (self->log_answer == 8) {
        put_number(&a->message, 0, 8);
    }
}

static void answer_record(peer *self, answer *a, const peer_bytes *asked)
{
    uint64_t queues = peer_number(asked, 16, 2), size = queues * self->record_size;
    uint64_t file = self->record_file ? self->record_file : self->record_offset + size;
    compose(&a->message, PEER_GET_INFLIGHT_FD);
    put_number(&a->message, size, 8);
    put_number(&a->message, size ? self->record_offset : 0, 8);
    put(&a->message, asked->bytes + 12 + 16, 8);
    if (size == 0) {
        return;
    }
    shut(&self->record_fd);
    self->record_fd = peer_file(file);
    if (self->record &&
        pwrite(self->record_fd, self->record, size, (off_t)self->record_offset) < 0) {
        abort();
    }
    add_fd(a, dup(self->record_fd));
}

static void answer_shmem(const peer *self, answer *a)
{
    static const uint8_t zeroes[2056];
    uint32_t count = 0;
    compose(&a->message, PEER_GET_SHMEM_CONFIG);
    put(&a->message, zeroes, sizeof zeroes);
    for (int i = 0; i < 4; i++) {
        count += self->shmem[i] != 0;
        memcpy(a->message.bytes + 12 + 8 + 8 * i, &self->shmem[i], 8);
    }
    memcpy(a->message.bytes + 12, &count, sizeof count);
}

/* Where it has the regions, and then the front-end says that it knows. */
static bool answer_postcopy(peer *self, answer *a, const peer_bytes *asked)
{
    size_t step = self->protocol_set >> 17 & 1 ? 40 : 32;
    if (self->unacked) {
        self->unacked = false;
        return true;
    }
    if (!self->listening) {
        return false;
    }
    self->unacked = true;
    compose(&a->message, peer_id(asked));
    put(&a->message, asked->bytes + 12, asked->size - 12);
    for (size_t at = 8; at + step <= asked->size - 12; at += step) {
        uint64_t base = peer_number(asked, at, 8) + self->postcopy_base;
        memcpy(a->message.bytes + 12 + at + 16, &base, sizeof base);
    }
    fix_size(&a->message);
    return true;
}

static void answer_state(peer *self, answer *a, const peer_bytes *asked)
{
    int ends[2];
    self->saves = peer_number(asked, 0, 4) == 0;
    self->state_at = self->state_got = 0;
    self->state_ended = false;
    answer_number(a, PEER_SET_DEVICE_STATE_FD, self->own_state_fd ? 0 : 0x100);
    if (self->own_state_fd) {
        if (socketpair(AF_UNIX, SOCK_STREAM, 0, ends) < 0) {
            abort();
        }
        shut(&self->state_fd);
        self->state_fd = ends[0];
        add_fd(a, ends[1]);
    }
}

/* A state is well if all of it came, and was what it has. */
static bool is_state_well(const peer *self)
{
    return self->saves || self->state_ended;
}

static void answer_native(peer *self, answer *a, const peer_bytes *asked)
{
    static const uint32_t flags = 5;
    uint32_t id = peer_id(asked);
    switch (id) {
    case PEER_GET_FEATURES:
        answer_number(a, id, self->features);
        break;
    case PEER_GET_PROTOCOL_FEATURES:
        answer_number(a, id, self->protocol);
        break;
    case PEER_GET_QUEUE_NUM:
        answer_number(a, id, self->queue_number);
        break;
    case PEER_GET_MAX_MEM_SLOTS:
        answer_number(a, id, self->slots);
        break;
    case PEER_GET_STATUS:
        answer_number(a, id, self->status_set & ~self->status_lost);
        break;
    case PEER_IOTLB_MSG:
    case PEER_POSTCOPY_END:
        answer_number(a, id, 0);
        break;
    case PEER_CHECK_DEVICE_STATE:
        answer_number(a, id, !is_state_well(self));
        break;
    case PEER_GET_VRING_BASE:
    case PEER_GET_VRING_BASE_SKIP_DRAIN:
        answer_base(self, a, asked);
        break;
    case PEER_GET_CONFIG:
        answer_config(self, a, asked);
        break;
    case PEER_SET_LOG_BASE:
        answer_log(self, a, asked);
        break;
    case PEER_GET_INFLIGHT_FD:
        answer_record(self, a, asked);
        break;
    case PEER_GET_SHMEM_CONFIG:
        answer_shmem(self, a);
        break;
    case PEER_SET_DEVICE_STATE_FD:
        answer_state(self, a, asked);
        break;
    case PEER_CREATE_CRYPTO_SESSION:
        a->message = *asked;
        memcpy(a->message.bytes + 4, &flags, sizeof flags);
        a->message.bytes[asked->size - 1] = 0x4d;
        break;
    case PEER_POSTCOPY_ADVISE:
    case PEER_GET_SHARED_OBJECT:
        compose(&a->message, id);
        add_fd(a, peer_file(id));
        break;
    default:
        break;
    }
}

static void note(peer *self, const peer_bytes *asked)
{
    switch (peer_id(asked)) {
    case PEER_SET_PROTOCOL_FEATURES:
        self->protocol_set = peer_number(asked, 0, 8);
        break;
    case PEER_SET_STATUS:
        self->status_set = (uint8_t)peer_number(asked, 0, 8);
        break;
    case PEER_POSTCOPY_LISTEN:
        self->listening = true;
        break;
    case PEER_POSTCOPY_END:
        self->listening = false;
        break;
    default:
        break;
    }
}

static answer make_answer(peer *self, const peer_bytes *asked)
{
    uint32_t flags = (uint32_t)get(asked->bytes + 4, 4);
    uint32_t id = peer_id(asked);
    answer a;
    memset(&a, 0, sizeof a);
    if ((flags & ~8u) != 1 || ((flags & 8) && !(self->protocol_set & PEER_ACK))) {
        complain(self, "flags", id);
    }
    note(self, asked);
    if ((id == PEER_SET_MEM_TABLE || id == PEER_ADD_MEM_REG) && answer_postcopy(self, &a, asked)) {
        return a;
    }
    answer_native(self, &a, asked);
    if (a.message.size == 0 && (flags & 8)) {
        answer_number(&a, id, 0);
    }
    if (a.message.size > 0) {
        fix_size(&a.message);
    }
    return a;
}

/* ---- sending ---- */

static ssize_t send_some(int fd, const uint8_t *bytes, size_t size, const int *fds, unsigned count)
{
    control extra;
    struct iovec piece = {(void *)(uintptr_t)bytes, size};
    struct msghdr header;
    memset(&header, 0, sizeof header);
    memset(&extra, 0, sizeof extra);
    header.msg_iov = &piece;
    header.msg_iovlen = 1;
    if (count > 0) {
        extra.align.cmsg_level = SOL_SOCKET;
        extra.align.cmsg_type = SCM_RIGHTS;
        extra.align.cmsg_len = CMSG_LEN(count * sizeof(int));
        memcpy(CMSG_DATA(&extra.align), fds, count * sizeof(int));
        header.msg_control = &extra;
        header.msg_controllen = CMSG_SPACE(count * sizeof(int));
    }
    return sendmsg(fd, &header, MSG_DONTWAIT | MSG_NOSIGNAL);
}

static void push(peer *self, const uint8_t *bytes, size_t size)
{
    if (size == 0) {
        return;
    }
    if (self->out_size + size > self->out_capacity) {
        self->out_capacity = 2 * (self->out_size + size);
        self->out = (uint8_t *)realloc(self->out, self->out_capacity);
        if (!self->out) {
            abort();
        }
    }
    memcpy(self->out + self->out_size, bytes, size);
    self->out_size += size;
}

static bool flush(peer *self)
{
    while (self->fd >= 0 && self->out_sent < self->out_size) {
        ssize_t sent = send_some(self->fd, self->out + self->out_sent,
                                 self->out_size - self->out_sent, NULL, 0);
        if (sent < 0) {
            return false;
        }
        self->out_sent += (size_t)sent;
    }
    self->out_size = self->out_sent = 0;
    return true;
}

/* Bytes go out together; fds with the first byte of their message. */
static void emit(peer *self, answer *a)
{
    size_t done = 0;
    if (a->message.fd_count > 0 && self->fd >= 0 && flush(self)) {
        ssize_t sent =
            send_some(self->fd, a->message.bytes, a->message.size, a->fd, a->message.fd_count);
        done = sent > 0 ? (size_t)sent : 0;
    }
    push(self, a->message.bytes + done, a->message.size - done);
    close_fds(&a->message, a->fd);
}

static answer parse_answer(const char *text)
{
    answer a;
    a.message = peer_parse(text);
    for (unsigned i = 0; i < a.message.fd_count; i++) {
        a.fd[i] = peer_file(a.message.fds[i]);
    }
    return a;
}

void peer_say(peer *self, const char *text)
{
    answer a = parse_answer(text);
    emit(self, &a);
    (void)flush(self);
}

void peer_ask(peer *self, const char *text)
{
    answer a = parse_answer(text);
    (void)send_some(self->channel, a.message.bytes, a.message.size, a.fd, a.message.fd_count);
    close_fds(&a.message, a.fd);
}

static void drop_fds(answer *a)
{
    close_fds(&a->message, a->fd);
    a->message.fd_count = 0;
}

static void resize(answer *a, int64_t by)
{
    static const uint8_t zeroes[PEER_MESSAGE];
    if (a->message.size < 12) {
        return; /* there is no answer */
    }
    if (by < 0) {
        a->message.size -= a->message.size - 12 < (size_t)-by ? a->message.size - 12 : (size_t)-by;
    } else {
        put(&a->message, zeroes, (size_t)by);
    }
    fix_size(&a->message);
}

static void add_to_word(answer *a, size_t at, uint64_t value)
{
    uint32_t word = (uint32_t)(get(a->message.bytes + at, 4) + value);
    memcpy(a->message.bytes + at, &word, sizeof word);
}

static void set_word(answer *a, size_t at, uint64_t value)
{
    uint32_t word = (uint32_t)value;
    memcpy(a->message.bytes + at, &word, sizeof word);
}

static void say_all(peer *self, const char *texts)
{
    char text[PEER_MESSAGE];
    while (*texts) {
        size_t size = strcspn(texts, ";");
        memcpy(text, texts, size);
        text[size] = '\0';
        peer_say(self, text);
        texts += size + (texts[size] == ';');
    }
}

/* What a rule makes of an answer, before it is sent. */
static void twist(peer *self, const peer_rule *rule, const peer_bytes *asked, answer *a)
{
    switch (rule->action) {
    case PEER_REFUSE:
        drop_fds(a);
        answer_number(a, peer_id(asked), rule->value);
        break;
    case PEER_SAY:
        drop_fds(a);
        a->message.size = 0;
        say_all(self, rule->text);
        break;
    case PEER_SILENT:
    case PEER_STOP:
        drop_fds(a);
        a->message.size = 0;
        self->away = rule->action == PEER_STOP;
        break;
    case PEER_CLOSE:
        self->close_after = 1;
        if (rule->value < a->message.size) {
            a->message.size = rule->value;
        }
        break;
    case PEER_SHORT:
        resize(a, -(int64_t)rule->value);
        break;
    case PEER_LONG:
        resize(a, (int64_t)rule->value);
        break;
    case PEER_ID:
        add_to_word(a, 0, rule->value);
        break;
    case PEER_FLAGS:
        set_word(a, 4, rule->value);
        break;
    case PEER_SIZE:
        set_word(a, 8, rule->value);
        break;
    case PEER_WORD:
        add_to_word(a, 12 + rule->at, rule->value);
        break;
    case PEER_MORE_FDS:
        for (uint64_t i = 0; i < rule->value; i++) {
            add_fd(a, peer_file(1));
        }
        break;
    case PEER_NO_FDS:
        drop_fds(a);
        break;
    case PEER_LATE:
        self->late = a->message;
        a->message.size = 0;
        break;
    case PEER_TWICE:
        push(self, a->message.bytes, a->message.size);
        break;
    case PEER_ASK:
        for (uint64_t i = 0; i <= rule->value; i++) {
            peer_ask(self, rule->text);
        }
        break;
    case PEER_DEAF:
        self->deaf = true;
        break;
    case PEER_HOOK:
        self->hook(self, asked);
        break;
    }
}

static void answer_one(peer *self, const peer_bytes *asked)
{
    if (self->before) {
        self->before(self, asked);
    }
    answer a = make_answer(self, asked);
    for (int i = 0; i < PEER_RULES; i++) {
        peer_rule *rule = &self->rules[i];
        if (rule->action == 0 || (rule->id != 0 && rule->id != peer_id(asked))) {
            continue;
        }
        rule->seen++;
        if (rule->nth == 0 || rule->nth == rule->seen) {
            rule->hit = true;
            twist(self, rule, asked, &a);
        }
    }
    if (a.message.size > 0) {
        emit(self, &a);
    } else {
        drop_fds(&a);
    }
}

/* ---- its turn ---- */

static void give_state(peer *self)
{
    size_t left = self->state_size - self->state_at;
    size_t most = self->state_piece && left > self->state_piece ? self->state_piece : left;
    ssize_t count = 0;
    if (most > 0) {
        count = send_some(self->state_fd, self->state + self->state_at, most, NULL, 0);
    }
    self->state_at += count > 0 ? (size_t)count : 0;
    if (self->state_at == self->state_size) {
        shut(&self->state_fd);
    }
}

static void take_state(peer *self)
{
    size_t room = sizeof self->state - self->state_got;
    size_t most = self->state_piece && room > self->state_piece ? self->state_piece : room;
    ssize_t count = recv(self->state_fd, self->state + self->state_got, most, MSG_DONTWAIT);
    self->state_got += count > 0 ? (size_t)count : 0;
    if (count == 0) {
        self->state_ended = true;
        shut(&self->state_fd);
    }
}

static void move_state(peer *self)
{
    if (self->state_fd < 0 || self->keeps_state || self->deaf) {
        return;
    }
    if (self->saves) {
        give_state(self);
    } else {
        take_state(self);
    }
}

/* What came of a message that is not there in full. */
static void forget_input(peer *self)
{
    close_fds(&self->in, self->in_fd);
    close_fds(&self->in_channel, self->in_channel_fd);
    memset(&self->in, 0, sizeof self->in);
    memset(&self->in_channel, 0, sizeof self->in_channel);
}

void peer_leave(peer *self)
{
    forget_input(self);
    shut(&self->fd);
    shut(&self->channel);
    shut(&self->state_fd);
    self->out_size = self->out_sent = self->late.size = 0;
}

static void knock(peer *self)
{
    if (self->knocks && !self->knocked && self->listener >= 0) {
        self->knocked = send_some(self->listener, (const uint8_t *)"k", 1, NULL, 0) == 1;
    }
}

void peer_turn(peer *self)
{
    if (self->away) {
        return;
    }
    knock(self);
    push(self, self->late.bytes, self->late.size);
    self->late.size = 0;
    drain(self);
    if (!self->saves) { /* what was sent before a message is there before it */
        for (int i = 0; i < 64 && self->state_fd >= 0; i++) {
            move_state(self);
        }
    }
    while (self->answered < self->heard.count && !self->close_after && self->fd >= 0 &&
           !self->away) {
        peer_bytes asked = self->heard.at[self->answered++];
        answer_one(self, &asked);
    }
    if (self->fd < 0) {
        self->answered = self->heard.count;
    }
    (void)flush(self);
    if (self->saves) {
        move_state(self);
    }
    if (self->close_after) {
        self->close_after = 0;
        self->answered = self->heard.count;
        peer_leave(self);
    }
}

int peer_connect(peer *self)
{
    int ends[2];
    peer_leave(self);
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) < 0) {
        abort();
    }
    self->fd = ends[0];
    self->status_set = 0;
    self->protocol_set = 0;
    self->listening = self->unacked = self->deaf = false;
    self->answered = self->heard.count;
    self->connections++;
    return ends[1];
}

peer_rule *peer_add_rule(peer *self, uint32_t id, unsigned nth, peer_action action, uint64_t value)
{
    for (int i = 0; i < PEER_RULES; i++) {
        peer_rule *rule = &self->rules[i];
        if (rule->action == 0) {
            memset(rule, 0, sizeof *rule);
            rule->id = id;
            rule->nth = nth;
            rule->action = action;
            rule->value = value;
            return rule;
        }
    }
    abort();
}

void peer_obey(peer *self)
{
    memset(self->rules, 0, sizeof self->rules);
}

/* ---- system calls ---- */

static peer *peer_of(void *user)
{
    return &((peer_bench *)user)->peer;
}

static bool strikes(peer *self)
{
    return fault_strikes(&self->f->fault, FAULT_OPERATION, VHOST_OP_NONE, -1);
}

static bool interrupts(peer *self)
{
    self->all_calls++;
    return self->interrupt_every && self->all_calls % self->interrupt_every == 0;
}

static int call_connect(const char *path, void *user)
{
    peer *self = peer_of(user);
    (void)path;
    if (strikes(self)) {
        return -ENFILE;
    }
    if (self->refusals > 0) {
        self->refusals--;
        return -ECONNREFUSED;
    }
    int fd = peer_connect(self);
    (void)self->base_calls.unblock(fd, NULL);
    return fd;
}

static int call_listen(const char *path, void *user)
{
    peer *self = peer_of(user);
    int ends[2];
    (void)path;
    if (strikes(self)) {
        return -EACCES;
    }
    if (self->base_calls.socket_pair(ends, NULL) < 0) {
        abort();
    }
    shut(&self->listener);
    self->listener = ends[1];
    self->knocked = false;
    return ends[0];
}

static int call_accept(int fd, void *user)
{
    peer *self = peer_of(user);
    char byte;
    if (strikes(self)) {
        return -EMFILE;
    }
    if (interrupts(self)) {
        return -EINTR;
    }
    if (recv(fd, &byte, 1, MSG_DONTWAIT) != 1) {
        return -EAGAIN;
    }
    self->knocked = false;
    self->knocks = false;
    int accepted = peer_connect(self);
    (void)self->base_calls.unblock(accepted, NULL);
    return accepted;
}

static int call_socket_pair(int ends[2], void *user)
{
    peer *self = peer_of(user);
    return strikes(self) ? -EMFILE : self->base_calls.socket_pair(ends, NULL);
}

static int call_unblock(int fd, void *user)
{
    peer *self = peer_of(user);
    return strikes(self) ? -EBADF : self->base_calls.unblock(fd, NULL);
}

static int call_close(int fd, void *user)
{
    peer *self = peer_of(user);
    if (fd >= PEER_FAKE_FD) {
        complain(self, "an fd of the VMM was closed", (uint32_t)fd);
    }
    int result = self->base_calls.close(fd, NULL);
    if (result < 0) {
        complain(self, "an fd was closed twice", (uint32_t)fd);
    }
    return strikes(self) ? -EIO : result;
}

static int call_unlink(const char *path, void *user)
{
    (void)path;
    return strikes(peer_of(user)) ? -ENOENT : 0;
}

/* An fd of the fixture goes out as a file of so many bytes. */
static ptrdiff_t send_translated(peer *self, int fd, const void *bytes, size_t size, const int *fds,
                                 uint32_t count)
{
    int real[PEER_FDS];
    for (uint32_t i = 0; i < count; i++) {
        real[i] = fds[i] >= PEER_FAKE_FD ? peer_file((uint64_t)fds[i]) : fds[i];
    }
    ptrdiff_t sent = self->base_calls.send(fd, bytes, size, real, count, NULL);
    for (uint32_t i = 0; i < count; i++) {
        if (real[i] != fds[i]) {
            close(real[i]);
        }
    }
    return sent;
}

static ptrdiff_t call_send(int fd, const void *bytes, size_t size, const int *fds, uint32_t count,
                           void *user)
{
    peer *self = peer_of(user);
    if (strikes(self)) {
        return -EIO;
    }
    if (interrupts(self)) {
        return -EINTR;
    }
    if (self->again_every && ++self->send_calls % self->again_every == 0) {
        return -EAGAIN;
    }
    if (count > 0 && self->too_many > 0) {
        self->too_many--;
        return -ETOOMANYREFS;
    }
    if (!self->lazy && !self->away) {
        drain(self);
    }
    if (self->send_most && size > self->send_most) {
        size = self->send_most;
    }
    return send_translated(self, fd, bytes, size, fds, count);
}

static ptrdiff_t call_receive(int fd, void *bytes, size_t size, int *fds, uint32_t *count,
                              void *user)
{
    peer *self = peer_of(user);
    uint32_t room = *count;
    *count = 0;
    if (strikes(self)) {
        return -EIO;
    }
    if (interrupts(self)) {
        return -EINTR;
    }
    if (self->floods && self->channel >= 0) {
        self->floods = ++self->flooded < 20000; /* or it would go on for ever */
        peer_ask(self, self->flood);
        drain(self);
    }
    if (self->receive_most && size > self->receive_most) {
        size = self->receive_most;
    }
    *count = room;
    return self->base_calls.receive(fd, bytes, size, fds, count, NULL);
}

static int call_wait(vhost_user_poll *polls, uint32_t count, int timeout, void *user)
{
    peer *self = peer_of(user);
    self->last_wait = timeout;
    if (strikes(self)) {
        self->now += timeout > 0 ? (uint64_t)timeout : 0;
        return -ENOMEM;
    }
    if (interrupts(self)) {
        return -EINTR;
    }
    int ready = self->base_calls.wait(polls, count, 0, NULL);
    if (ready != 0) {
        return ready;
    }
    self->waits++;
    peer_turn(self);
    ready = self->base_calls.wait(polls, count, 0, NULL);
    if (ready == 0) {
        self->now += timeout > 0 ? (uint64_t)timeout : 0;
    }
    return ready;
}

static uint64_t call_now(void *user)
{
    peer *self = peer_of(user);
    self->now += self->tick;
    return self->now;
}

static int call_memory(uint64_t size, void *user)
{
    peer *self = peer_of(user);
    return strikes(self) ? -ENOSPC : self->base_calls.memory(size, NULL);
}

static int64_t call_size_of(int fd, void *user)
{
    peer *self = peer_of(user);
    return strikes(self) ? -EIO : self->base_calls.size_of(fd, NULL);
}

static ptrdiff_t call_read(int fd, void *bytes, size_t size, void *user)
{
    peer *self = peer_of(user);
    if (strikes(self)) {
        return -EIO;
    }
    if (interrupts(self)) {
        return -EINTR;
    }
    if (self->receive_most && size > self->receive_most) {
        size = self->receive_most;
    }
    return self->base_calls.read(fd, bytes, size, NULL);
}

/* A notifier of the library, or one of the VMM. */
static void signal_fake(peer *self, int fd)
{
    int event = (fd - PEER_EVENT_FD) / 2;
    if (fd >= PEER_EVENT_FD && fd % 2 == 1 && event < PEER_EVENTS && self->event_alive[event]) {
        self->event_set[event] = true;
    } else if (fd >= FIXTURE_CALL_FD && fd < FIXTURE_CALL_FD + PEER_QUEUES) {
        self->calls[fd - FIXTURE_CALL_FD]++;
    } else if (fd >= FIXTURE_KICK_FD && fd < FIXTURE_KICK_FD + PEER_QUEUES) {
        self->kicks[fd - FIXTURE_KICK_FD]++;
    } else {
        complain(self, "something strange was signalled", (uint32_t)fd);
    }
}

static ptrdiff_t call_write(int fd, const void *bytes, size_t size, void *user)
{
    peer *self = peer_of(user);
    if (strikes(self)) {
        return -EIO;
    }
    if (interrupts(self)) {
        return -EINTR;
    }
    if (fd < PEER_FAKE_FD) {
        if (self->send_most && size > self->send_most) {
            size = self->send_most;
        }
        return self->base_calls.write(fd, bytes, size, NULL);
    }
    uint64_t one;
    if (size != sizeof one) {
        abort();
    }
    memcpy(&one, bytes, sizeof one);
    if (one != 1) {
        complain(self, "not signalled with 1", (uint32_t)fd);
    }
    signal_fake(self, fd);
    return (ptrdiff_t)size;
}

static int call_seek(int fd, uint64_t offset, void *user)
{
    peer *self = peer_of(user);
    return strikes(self) ? -EIO : self->base_calls.seek(fd, offset, NULL);
}

const vhost_user_calls peer_calls = {call_connect, call_listen, call_accept, call_socket_pair,
                                     call_unblock, call_close,  call_unlink, call_send,
                                     call_receive, call_wait,   call_now,    call_memory,
                                     call_size_of, call_read,   call_write,  call_seek};

static void *call_allocate(void *memory, size_t size, void *user)
{
    fixture *f = ((peer_bench *)user)->f;
    return f->vm.options.allocate(memory, size, f);
}

/* ---- notifiers: more than the fixture has ---- */

static int create_event(vhost_event *event, void *user)
{
    peer *self = &the_bench.peer;
    (void)user;
    if (fault_strikes(&self->f->fault, FAULT_NOTIFIER, VHOST_OP_NONE, -1)) {
        return -EMFILE;
    }
    for (int i = 0; i < PEER_EVENTS; i++) {
        if (!self->event_alive[i]) {
            self->event_alive[i] = true;
            self->event_set[i] = false;
            event->wait_fd = PEER_EVENT_FD + 2 * i;
            event->signal_fd = PEER_EVENT_FD + 2 * i + 1;
            return 0;
        }
    }
    return -ENFILE;
}

static void destroy_event(vhost_event *event, void *user)
{
    (void)user;
    the_bench.peer.event_alive[(event->wait_fd - PEER_EVENT_FD) / 2] = false;
}

static int test_and_clear_event(const vhost_event *event, void *user)
{
    peer *self = &the_bench.peer;
    int i = (event->wait_fd - PEER_EVENT_FD) / 2;
    (void)user;
    if (fault_strikes(&self->f->fault, FAULT_NOTIFIER, VHOST_OP_NONE, -1)) {
        return -EMFILE;
    }
    int signalled = self->event_set[i];
    self->event_set[i] = false;
    return signalled;
}

static const vhost_event_ops peer_events = {create_event, destroy_event, test_and_clear_event};

/* ---- the bench ---- */

static void on_broken(vhost_device *device, void *user)
{
    peer_bench *b = (peer_bench *)user;
    b->broken += device->state == VHOST_STATE_BROKEN && device->last_error.code < 0;
}

static void on_queue_error(vhost_device *device, uint32_t queue, void *user)
{
    (void)device;
    ((peer_bench *)user)->queue_errors[queue]++;
}

static void on_config(vhost_device *device, void *user)
{
    (void)device;
    ((peer_bench *)user)->configs++;
}

static void init_peer(peer *self, fixture *f)
{
    vhost_user probe;
    self->f = f;
    self->features = PEER_BIT(30) | PEER_BIT(VHOST_FEATURE_VERSION_1) |
                     PEER_BIT(VHOST_FEATURE_LOG_ALL) | PEER_BIT(VHOST_FEATURE_RING_PACKED) |
                     PEER_BIT(VHOST_FEATURE_IN_ORDER) | PEER_BIT(VHOST_FEATURE_ACCESS_PLATFORM) |
                     PEER_BIT(3);
    self->protocol = ~UINT64_C(0);
    self->queue_number = PEER_QUEUES;
    self->slots = 32;
    self->postcopy_base = UINT64_C(0x7e0000000000);
    self->fd = self->channel = self->listener = self->state_fd = self->record_fd = -1;
    self->now = 1000000;
    (void)vhost_user_connect(&probe, "nowhere", NULL); /* only to see the system's calls */
    self->base_calls = *probe.options.calls;
    vhost_user_close(&probe);
}

static void open_bench(peer_bench *b, fixture *f)
{
    memset(b, 0, sizeof *b);
    b->f = f;
    init_peer(&b->peer, f);
    f->vm.options.events = &peer_events;
    f->ram.fd = PEER_RAM_FD;
    b->options.user = b;
    b->options.allocate = call_allocate;
    b->options.calls = &peer_calls;
    b->options.timeout_ms = 1000;
    b->device_options.user = b;
    b->device_options.on_broken = on_broken;
    b->device_options.on_queue_error = on_queue_error;
    b->device_options.on_config = on_config;
    b->accepted = fixture_features(PEER_BIT(VHOST_FEATURE_VERSION_1), 0);
    for (int q = 0; q < PEER_QUEUES; q++) {
        vhost_queue_init(&b->queue[q]);
    }
}

static void close_bench(peer_bench *b)
{
    fault_disarm(&b->f->fault);
    b->peer.tick = 1;
    b->peer.floods = false;
    vhost_device_cleanup(&b->device);
    vhost_user_close(&b->user);
    vhost_user_close(&b->user);
    peer_leave(&b->peer);
    shut(&b->peer.listener);
    shut(&b->peer.record_fd);
    free(b->peer.heard.at);
    free(b->peer.told.at);
    free(b->peer.out);
    memset(&b->peer.heard, 0, sizeof b->peer.heard);
    memset(&b->peer.told, 0, sizeof b->peer.told);
    b->peer.out = NULL;
    b->peer.out_capacity = 0;
}

static enum greatest_test_res check_books(const peer_bench *b)
{
    ASSERT_STR_EQ("", b->peer.complaint);
    for (int i = 0; i < PEER_EVENTS; i++) {
        ASSERT_FALSE(b->peer.event_alive[i]);
    }
    PASS();
}

enum greatest_test_res peer_check_state(const peer_bench *b)
{
    if (b->device.state == VHOST_STATE_BROKEN) {
        ASSERT_INT(-1, b->user.main.fd);
        ASSERT_INT(-1, b->user.channel.fd);
    }
    for (uint32_t q = 0; q < b->queues; q++) {
        ASSERT(!b->queue[q].started || b->device.state == VHOST_STATE_RUNNING);
    }
    PASS();
}

static peer_test *test_of_now;

static enum greatest_test_res run_on_bench(fixture *f)
{
    peer_bench *b = &the_bench;
    open_bench(b, f);
    enum greatest_test_res result = test_of_now(b);
    if (result == GREATEST_TEST_RES_PASS) {
        result = peer_check_state(b);
    }
    const char *message = greatest_info.msg;
    close_bench(b);
    greatest_info.msg = message;
    CHECK_CALL(result);
    return check_books(b);
}

enum greatest_test_res peer_run(peer_test *test)
{
    test_of_now = test;
    return fixture_run(run_on_bench, MOCK_SYNCHRONOUS);
}

enum greatest_test_res peer_renew(peer_bench *b)
{
    fixture *f = b->f;
    CHECK_CALL(peer_check_state(b));
    close_bench(b);
    CHECK_CALL(check_books(b));
    CHECK_CALL(fixture_renew(f));
    open_bench(b, f);
    PASS();
}

int peer_open(peer_bench *b)
{
    int fd = peer_connect(&b->peer);
    int result = vhost_user_open(&b->user, fd, &b->options);
    if (result < 0) {
        close(fd);
    }
    return result;
}

void peer_fill(peer_bench *b)
{
    for (uint32_t q = 0; q < b->queues; q++) {
        vhost_queue *queue = &b->queue[q];
        queue->ready = true;
        queue->size = 16;
        queue->desc = 0x8000 + 0x400 * (uint64_t)q;
        queue->avail = queue->desc + 0x100;
        queue->used = queue->desc + 0x200;
        queue->kick_fd = (int)(FIXTURE_KICK_FD + q);
        queue->call_fd = (int)(FIXTURE_CALL_FD + q);
    }
}

int peer_attach(peer_bench *b, uint32_t queues)
{
    int result = fixture_map_default(b->f);
    b->queues = queues;
    if (result >= 0) {
        result = vhost_device_init(&b->device, &b->f->vm, vhost_user_ops(), &b->user, b->queue,
                                   queues, &b->device_options);
    }
    peer_fill(b);
    return result < 0 ? result : vhost_device_ack(&b->device, b->accepted);
}

int peer_stopped(peer_bench *b, uint32_t queues)
{
    int result = peer_open(b);
    return result < 0 ? result : peer_attach(b, queues);
}

int peer_running(peer_bench *b, uint32_t queues)
{
    int result = peer_stopped(b, queues);
    if (result >= 0) {
        result = vhost_device_start(&b->device);
    }
    peer_forget(&b->peer);
    return result;
}
