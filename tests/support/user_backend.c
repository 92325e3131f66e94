#define _GNU_SOURCE
#include "user_backend.h"

#include <dirent.h>
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum {
    HEADER = 12,
    PAYLOAD = 4352, /* most bytes that any message has */
    FDS = 8,
    REGIONS = 64,
    IOTLB = 256,
    MISSES = 16,
    PIECES = 1024, /* of one request */
    REQUESTS = 46,
    PAGE = 4096
};

enum { /* flags of a header */
    VERSION = 1,
    REPLY = 4,
    NEED_REPLY = 8
};

enum { /* virtio features */
    F_INDIRECT = 28,
    F_EVENT_IDX = 29,
    F_PROTOCOL = 30,
    F_LOG_ALL = 26,
    F_MRG_RXBUF = 15,
    F_VERSION_1 = 32,
    F_IOMMU = 33,
    F_PACKED = 34,
    F_IN_ORDER = 35
};

enum { /* protocol features */
    P_MQ = 0,
    P_LOG_SHMFD = 1,
    P_RARP = 2,
    P_REPLY_ACK = 3,
    P_MTU = 4,
    P_BACKEND_REQ = 5,
    P_CROSS_ENDIAN = 6,
    P_CRYPTO = 7,
    P_PAGEFAULT = 8,
    P_CONFIG = 9,
    P_INFLIGHT = 12,
    P_RESET = 13,
    P_INBAND = 14,
    P_SLOTS = 15,
    P_STATUS = 16,
    P_OBJECT = 18,
    P_STATE = 19,
    P_INFLIGHT_BASE = 20,
    P_GPA = 21,
    P_SHMEM = 22,
    P_SKIP_DRAIN = 23
};

enum { /* flags of a descriptor */
    D_NEXT = 1,
    D_WRITE = 2,
    D_INDIRECT = 4,
    D_AVAIL = 1 << 7,
    D_USED = 1 << 15
};

#define BIT(n) (UINT64_C(1) << (n))

typedef struct message {
    uint32_t request, flags, size;
    unsigned char bytes[PAYLOAD];
    int fds[FDS]; /* whoever keeps one puts -1 there */
    unsigned fd_count;
} message;

typedef struct mapping {
    void *base;
    size_t length;
    unsigned char *at; /* NULL: none */
} mapping;

typedef struct region {
    uint64_t gpa, size, user;
    mapping map;
} region;

typedef struct translation {
    uint64_t iova, size, user;
    uint8_t permission; /* 1 read, 2 write */
} translation;

typedef struct segment {
    uint64_t address;
    uint32_t size;
    bool write;
} segment;

typedef struct request {
    struct request *next;
    uint16_t id;    /* split: the head */
    uint16_t count; /* packed: descriptors in the ring */
    uint16_t entry; /* packed: in the record of requests in flight */
    bool gathered;
    uint64_t counter, due;
    segment *segments;
    unsigned segment_count;
} request;

/* Layouts of the record of requests in flight, which outlives the back-end. */
typedef struct split_record {
    uint64_t features;
    uint16_t version, entries, last_batch_head, used;
} split_record;

typedef struct split_entry {
    uint8_t inflight, pad[5];
    uint16_t next;
    uint64_t counter;
} split_entry;

typedef struct packed_record {
    uint64_t features;
    uint16_t version, entries, free_head, old_free_head, used, old_used;
    uint8_t used_wrap, old_used_wrap, pad[8];
} packed_record;

typedef struct packed_entry {
    uint8_t inflight, pad;
    uint16_t next, last, count;
    uint64_t counter;
    uint16_t id, flags;
    uint32_t size;
    uint64_t address;
} packed_entry;

typedef struct descriptor {
    uint64_t address;
    uint32_t size;
    uint16_t id, flags; /* packed; a split one has flags and next here */
} descriptor;

typedef struct ring {
    uint32_t size;
    uint64_t desc, avail, used, log;
    bool logs, addressed, kickable, polled;
    int kick, call, error;
    bool started, enabled, broken;
    bool kicked;          /* there may be work */
    bool call_due;        /* something was completed */
    uint16_t next;        /* to be taken */
    uint16_t used_next;   /* to be completed */
    uint16_t called;      /* used_next at the last look at the driver's wish */
    bool wrap, used_wrap; /* packed */
    uint64_t counter;
    request *first;
} ring;

typedef struct connection {
    int fd, channel, log_call, state_fd;
    uint64_t features, protocol;
    region regions[REGIONS];
    unsigned region_count;
    translation iotlb[IOTLB];
    unsigned iotlb_next;
    uint64_t misses[MISSES];
    unsigned miss_count;
    mapping log, inflight;
    uint64_t log_size;
    uint32_t inflight_queues, inflight_size;
    bool state_loads, state_failed;
    uint32_t state_done;
    bool postcopy;
    uint32_t ack_awaited; /* the front-end confirms the bases of these regions */
    bool answered;        /* since the last wait was counted */
    ring rings[USER_BACKEND_QUEUES];
} connection;

/* What both sides of a fork see. All words are atomic. */
typedef struct shared {
    uint32_t counters[USER_BACKEND_COUNTERS];
    uint32_t trap_left[USER_BACKEND_TRAPS], trap_id[USER_BACKEND_TRAPS];
    uint32_t hold_every, hold_ms;
    uint32_t stop, kill, release, over;
    uint32_t say, say_request, say_size, say_way;
    unsigned char say_payload[4096];
    uint32_t complained;
    char complaint[160];
    unsigned char config[USER_BACKEND_CONFIG];
    uint32_t state_size;
    unsigned char state[USER_BACKEND_STATE];
} shared;

enum { /* of shared.say */
    SAY_NOTHING,
    SAY_IT,
    SAID,
    NOT_SAID
};

typedef struct pieces {
    struct iovec at[PIECES];
    uint64_t gpa[PIECES];
    unsigned readable, count;
} pieces;

struct user_backend {
    user_backend_options options;
    shared *shared;
    int wake; /* eventfd: look into shared */
    int listener;
    pthread_t thread;
    pid_t process; /* or 0 */
    bool owns_disk;
    connection c;
    pieces pieces[2]; /* of a request, and of the one that receives what it sends */
};

static uint32_t get(const uint32_t *word)
{
    return __atomic_load_n(word, __ATOMIC_SEQ_CST);
}

static void set(uint32_t *word, uint32_t value)
{
    __atomic_store_n(word, value, __ATOMIC_SEQ_CST);
}

static void count(user_backend *self, unsigned counter)
{
    __atomic_fetch_add(&self->shared->counters[counter], 1, __ATOMIC_SEQ_CST);
}

static bool has(uint64_t bits, unsigned bit)
{
    return bits >> bit & 1;
}

static uint64_t now_ms(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000 + (uint64_t)time.tv_nsec / 1000000;
}

static void close_fd(int *fd)
{
    if (*fd >= 0) {
        close(*fd);
    }
    *fd = -1;
}

__attribute__((format(printf, 2, 3))) static int complain(user_backend *self, const char *format,
                                                          ...)
{
    if (!get(&self->shared->complained)) {
        va_list values;
        va_start(values, format);
        vsnprintf(self->shared->complaint, sizeof self->shared->complaint, format, values);
        va_end(values);
        set(&self->shared->complained, 1);
    }
    return -EPROTO;
}

/* ---- sockets ---- */

static bool leaves(const user_backend *self)
{
    return get(&self->shared->stop) || get(&self->shared->kill);
}

/* Waits for the fd, if there is one; false: it is time to leave. */
static bool await_fd(user_backend *self, int fd, short events, int timeout)
{
    while (!leaves(self)) {
        struct pollfd fds[2] = {{self->wake, POLLIN, 0}, {fd, events, 0}};
        uint64_t drained;
        int ready = poll(fds, 2, timeout);
        if (fds[0].revents && !leaves(self)) {
            (void)!read(self->wake, &drained, sizeof drained);
            return fd < 0 || await_fd(self, fd, events, timeout);
        }
        if (ready >= 0 && (fds[1].revents || ready == 0)) {
            return true;
        }
    }
    return false;
}

static int send_message(user_backend *self, int fd, unsigned char *bytes, size_t size, int passed)
{
    size_t sent = 0;
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control;
    while (sent < size) {
        struct iovec rest = {bytes + sent, size - sent};
        struct msghdr header = {.msg_iov = &rest, .msg_iovlen = 1};
        if (passed >= 0 && sent == 0) {
            memset(&control, 0, sizeof control);
            header.msg_control = &control;
            header.msg_controllen = sizeof control;
            struct cmsghdr *part = CMSG_FIRSTHDR(&header);
            part->cmsg_level = SOL_SOCKET;
            part->cmsg_type = SCM_RIGHTS;
            part->cmsg_len = CMSG_LEN(sizeof(int));
            memcpy(CMSG_DATA(part), &passed, sizeof passed);
        }
        ssize_t done = sendmsg(fd, &header, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (done >= 0) {
            sent += (size_t)done;
        } else if (errno != EAGAIN && errno != EINTR) {
            return -errno;
        } else if (!await_fd(self, fd, POLLOUT, -1)) {
            return -ECANCELED;
        }
    }
    return 0;
}

static int compose_and_send(user_backend *self, int fd, uint32_t id, uint32_t flags,
                            const void *payload, uint32_t size, int passed)
{
    unsigned char bytes[HEADER + PAYLOAD];
    const uint32_t header[3] = {id, flags, size};
    memcpy(bytes, header, HEADER);
    if (size) {
        memcpy(bytes + HEADER, payload, size);
    }
    return send_message(self, fd, bytes, HEADER + size, passed);
}

static void keep_fds(message *m, struct msghdr *header)
{
    for (struct cmsghdr *p = CMSG_FIRSTHDR(header); p; p = CMSG_NXTHDR(header, p)) {
        if (p->cmsg_level == SOL_SOCKET && p->cmsg_type == SCM_RIGHTS) {
            m->fd_count = (unsigned)((p->cmsg_len - CMSG_LEN(0)) / sizeof(int));
            memcpy(m->fds, CMSG_DATA(p), m->fd_count * sizeof(int));
        }
    }
}

static void close_fds(message *m)
{
    for (unsigned i = 0; i < m->fd_count; i++) {
        close_fd(&m->fds[i]);
    }
    m->fd_count = 0;
}

/* Only the first byte of a message may bring fds: the system closes those that come later. */
static int receive_bytes(user_backend *self, int fd, message *m, void *bytes, size_t size,
                         bool begins)
{
    size_t there = 0;
    while (there < size) {
        union {
            struct cmsghdr align;
            char bytes[CMSG_SPACE(FDS * sizeof(int))];
        } control;
        struct iovec rest = {(char *)bytes + there, size - there};
        struct msghdr header = {.msg_iov = &rest, .msg_iovlen = 1};
        if (begins && there == 0) {
            header.msg_control = &control;
            header.msg_controllen = sizeof control;
        }
        ssize_t done = recvmsg(fd, &header, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
        if (done > 0) {
            if (begins && there == 0) {
                keep_fds(m, &header);
            }
            if (header.msg_flags & MSG_CTRUNC) {
                return complain(self, "fds where none belong, or more than %d", FDS);
            }
            there += (size_t)done;
        } else if (done == 0) {
            return there || !begins ? complain(self, "the end, in a message") : -EPIPE;
        } else if (errno != EAGAIN && errno != EINTR) {
            return -errno;
        } else if (!await_fd(self, fd, POLLIN, -1)) {
            return -ECANCELED;
        }
    }
    return 0;
}

static int receive(user_backend *self, int fd, message *m)
{
    uint32_t header[3];
    m->fd_count = 0;
    int code = receive_bytes(self, fd, m, header, HEADER, true);
    if (code < 0) {
        return code;
    }
    m->request = header[0];
    m->flags = header[1];
    m->size = header[2];
    if ((m->flags & 3) != VERSION) {
        return complain(self, "message %u has the version %u", m->request, m->flags & 3);
    }
    if (m->size > PAYLOAD) {
        return complain(self, "message %u has %u bytes", m->request, m->size);
    }
    return receive_bytes(self, fd, m, m->bytes, m->size, false);
}

static bool is_dry(user_backend *self)
{
    struct pollfd input = {self->c.fd, POLLIN, 0};
    return poll(&input, 1, (int)self->options.linger_ms) == 0;
}

static int answer(user_backend *self, const message *m, const void *payload, uint32_t size,
                  int passed)
{
    if (is_dry(self)) {
        count(self, USER_BACKEND_WAITS);
        self->c.answered = false;
    } else {
        self->c.answered = true;
    }
    count(self, USER_BACKEND_ANSWERS);
    return compose_and_send(self, self->c.fd, m->request, VERSION | REPLY, payload, size, passed);
}

static int answer_number(user_backend *self, const message *m, uint64_t value)
{
    return answer(self, m, &value, sizeof value, -1);
}

/* ---- memory ---- */

static uint32_t word_at(const message *m, size_t offset)
{
    uint32_t value;
    memcpy(&value, m->bytes + offset, sizeof value);
    return value;
}

static uint64_t number_at(const message *m, size_t offset)
{
    uint64_t value;
    memcpy(&value, m->bytes + offset, sizeof value);
    return value;
}

static void unmap(mapping *map)
{
    if (map->at) {
        munmap(map->base, map->length);
    }
    memset(map, 0, sizeof *map);
}

/* The fd must be large enough now: nobody wants to find out by SIGBUS. */
static int map_fd(mapping *map, int fd, uint64_t offset, uint64_t size)
{
    uint64_t before = offset % PAGE;
    struct stat status;
    if (!size || offset + size < size || fstat(fd, &status) != 0 ||
        (uint64_t)status.st_size < offset + size) {
        return -EINVAL;
    }
    void *base = mmap(NULL, (size_t)(size + before), PROT_READ | PROT_WRITE, MAP_SHARED, fd,
                      (off_t)(offset - before));
    if (base == MAP_FAILED) {
        return -errno;
    }
    map->base = base;
    map->length = (size_t)(size + before);
    map->at = (unsigned char *)base + before;
    return 0;
}

static bool overlap(uint64_t a, uint64_t a_size, uint64_t b, uint64_t b_size)
{
    return a <= b + (b_size - 1) && b <= a + (a_size - 1);
}

/* `bytes` is a region of 32 bytes as on the wire. */
static int add_region(user_backend *self, const message *m, size_t offset, int fd)
{
    connection *c = &self->c;
    region added = {
        number_at(m, offset), number_at(m, offset + 8), number_at(m, offset + 16), {NULL, 0, NULL}};
    unsigned most = has(c->protocol, P_SLOTS) ? self->options.slots : 8;
    if (c->region_count >= most || c->region_count >= REGIONS) {
        return complain(self, "more than %u regions", most);
    }
    if (!added.size || added.gpa + (added.size - 1) < added.gpa ||
        added.user + (added.size - 1) < added.user) {
        return complain(self, "a region that is empty, or wraps around");
    }
    if (has(c->protocol, P_GPA) && added.user != added.gpa) {
        return complain(self, "a user address that is not the guest's");
    }
    for (unsigned i = 0; i < c->region_count; i++) {
        const region *other = &c->regions[i];
        if (overlap(added.gpa, added.size, other->gpa, other->size) ||
            overlap(added.user, added.size, other->user, other->size)) {
            return complain(self, "regions that overlap");
        }
    }
    if (map_fd(&added.map, fd, number_at(m, offset + 24), added.size) != 0) {
        return complain(self, "a region that its fd does not hold");
    }
    c->regions[c->region_count++] = added;
    return 0;
}

static void remove_regions(connection *c)
{
    while (c->region_count) {
        unmap(&c->regions[--c->region_count].map);
    }
}

/* A miss is asked for once, until the front-end says something about translations. */
static int miss(user_backend *self, uint64_t iova, uint64_t size, uint8_t permission)
{
    connection *c = &self->c;
    unsigned char payload[32] = {0};
    for (unsigned i = 0; i < c->miss_count; i++) {
        if (c->misses[i] == (iova | permission)) {
            return -EAGAIN;
        }
    }
    if (c->miss_count < MISSES && c->channel >= 0) {
        c->misses[c->miss_count++] = iova | permission;
        memcpy(payload, &iova, 8);
        memcpy(payload + 8, &size, 8);
        payload[24] = permission;
        payload[25] = 1;
        count(self, USER_BACKEND_MISSES);
        compose_and_send(self, c->channel, 1, VERSION, payload, sizeof payload, -1);
    }
    return -EAGAIN;
}

static int translate(user_backend *self, uint64_t *address, uint64_t *size, uint8_t permission)
{
    for (unsigned i = 0; i < IOTLB; i++) {
        const translation *t = &self->c.iotlb[i];
        if (t->size && *address >= t->iova && *address - t->iova < t->size &&
            (t->permission & permission)) {
            uint64_t into = *address - t->iova;
            *size = *size < t->size - into ? *size : t->size - into;
            *address = t->user + into;
            return 0;
        }
    }
    return miss(self, *address & ~(uint64_t)(PAGE - 1), PAGE, permission);
}

/* Memory at an address as rings and descriptors have it; the piece may be shorter than wanted. */
static int reach(user_backend *self, uint64_t address, uint64_t size, bool write,
                 struct iovec *piece, uint64_t *gpa)
{
    if (has(self->c.features, F_IOMMU)) {
        int code = translate(self, &address, &size, write ? 2 : 1);
        if (code < 0) {
            return code;
        }
    }
    for (unsigned i = 0; i < self->c.region_count; i++) {
        const region *r = &self->c.regions[i];
        if (address >= r->user && address - r->user < r->size) {
            uint64_t into = address - r->user;
            piece->iov_base = r->map.at + into;
            piece->iov_len = (size_t)(size < r->size - into ? size : r->size - into);
            *gpa = r->gpa + into;
            return 0;
        }
    }
    return -EFAULT;
}

/* A piece of a ring, which does not straddle anything. */
static int reach_whole(user_backend *self, uint64_t address, size_t size, bool write, void *found)
{
    struct iovec piece;
    uint64_t gpa;
    int code = reach(self, address, size, write, &piece, &gpa);
    uintptr_t alignment = size == sizeof(uint16_t) ? 2 : size == sizeof(descriptor) ? 8 : 4;
    if (code == 0 && (piece.iov_len < size || (uintptr_t)piece.iov_base % alignment)) {
        code = -EFAULT;
    }
    if (code == 0) {
        memcpy(found, &piece.iov_base, sizeof(void *));
    }
    return code;
}

static uint16_t load16(const uint16_t *at)
{
    return le16toh(__atomic_load_n(at, __ATOMIC_SEQ_CST));
}

static void store16(uint16_t *at, uint16_t value)
{
    __atomic_store_n(at, htole16(value), __ATOMIC_SEQ_CST);
}

/* ---- the dirty log ---- */

static void log_range(user_backend *self, uint64_t gpa, uint64_t size)
{
    connection *c = &self->c;
    uint64_t one = 1;
    if (!c->log.at || !size) {
        return;
    }
    for (uint64_t page = gpa / PAGE; page <= (gpa + (size - 1)) / PAGE; page++) {
        if (page / 8 >= c->log_size) {
            complain(self, "the log has no bit for page %llu", (unsigned long long)page);
            return;
        }
        __atomic_fetch_or(&c->log.at[page / 8], (unsigned char)(1 << page % 8), __ATOMIC_SEQ_CST);
    }
    if (c->log_call >= 0) {
        (void)!write(c->log_call, &one, sizeof one);
    }
}

/* With an IOMMU the log address is an IOVA too: the used ring's own tells which page it is. */
static void log_used(user_backend *self, const ring *r, uint64_t offset, uint64_t size)
{
    bool packed = has(self->c.features, F_PACKED);
    uint64_t gpa = r->log + offset;
    struct iovec piece;
    if (!r->logs) {
        return;
    }
    if (has(self->c.features, F_IOMMU) &&
        reach(self, (packed ? r->desc : r->used) + offset, size, true, &piece, &gpa) != 0) {
        return;
    }
    log_range(self, gpa, size);
}

static void log_written(user_backend *self, const pieces *p, uint64_t written)
{
    if (!has(self->c.features, F_LOG_ALL)) {
        return;
    }
    for (unsigned i = p->readable; i < p->count && written; i++) {
        uint64_t size = written < p->at[i].iov_len ? written : p->at[i].iov_len;
        log_range(self, p->gpa[i], size);
        written -= size;
    }
}

/* ---- the record of requests in flight ---- */

static uint64_t record_stride(bool packed, uint32_t size)
{
    uint64_t bytes = packed ? sizeof(packed_record) + size * sizeof(packed_entry)
                            : sizeof(split_record) + size * sizeof(split_entry);
    return (bytes + 63) / 64 * 64;
}

/* The record of this ring, or NULL. */
static void *record_of(user_backend *self, const ring *r)
{
    connection *c = &self->c;
    unsigned queue = (unsigned)(r - c->rings);
    if (!c->inflight.at || queue >= c->inflight_queues || r->size > c->inflight_size) {
        return NULL;
    }
    return c->inflight.at + queue * record_stride(has(c->features, F_PACKED), c->inflight_size);
}

static void record_taken_split(split_record *record, request *q)
{
    split_entry *entries = (split_entry *)(void *)(record + 1);
    entries[q->id].counter = q->counter;
    __atomic_store_n(&entries[q->id].inflight, 1, __ATOMIC_SEQ_CST);
}

static void record_taken_packed(packed_record *record, const descriptor *chain, request *q)
{
    packed_entry *entries = (packed_entry *)(void *)(record + 1);
    uint16_t at = record->free_head;
    q->entry = at;
    entries[at].count = q->count;
    entries[at].counter = q->counter;
    for (unsigned i = 0; i < q->count; i++) {
        entries[at].id = chain[i].id;
        entries[at].flags = chain[i].flags;
        entries[at].size = chain[i].size;
        entries[at].address = chain[i].address;
        entries[q->entry].last = at;
        at = entries[at].next;
    }
    __atomic_store_n(&entries[q->entry].inflight, 1, __ATOMIC_SEQ_CST);
    record->free_head = at;
    record->old_free_head = at;
}

/* Before the driver sees it: whoever recovers can tell from the used index if the driver did. */
static void record_completing(user_backend *self, const ring *r, const request *q)
{
    void *found = record_of(self, r);
    if (found && has(self->c.features, F_PACKED)) {
        packed_record *record = (packed_record *)found;
        packed_entry *entries = (packed_entry *)(void *)(record + 1);
        entries[entries[q->entry].last].next = record->free_head;
        record->free_head = q->entry;
        record->used = (uint16_t)(record->used + q->count);
        if (record->used >= r->size) {
            record->used = (uint16_t)(record->used - r->size);
            record->used_wrap = !record->used_wrap;
        }
    } else if (found) {
        split_record *record = (split_record *)found;
        split_entry *entries = (split_entry *)(void *)(record + 1);
        entries[q->id].next = record->last_batch_head;
        record->last_batch_head = q->id;
    }
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
}

static void record_completed(user_backend *self, const ring *r, const request *q)
{
    void *found = record_of(self, r);
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    if (found && has(self->c.features, F_PACKED)) {
        packed_record *record = (packed_record *)found;
        packed_entry *entries = (packed_entry *)(void *)(record + 1);
        entries[q->entry].inflight = 0;
        record->old_free_head = record->free_head;
        record->old_used = record->used;
        record->old_used_wrap = record->used_wrap;
    } else if (found) {
        split_record *record = (split_record *)found;
        split_entry *entries = (split_entry *)(void *)(record + 1);
        entries[q->id].inflight = 0;
        record->used = r->used_next;
    }
}

static void insert_by_counter(ring *r, request *q)
{
    request **at = &r->first;
    while (*at && (*at)->counter < q->counter) {
        at = &(*at)->next;
    }
    q->next = *at;
    *at = q;
    r->counter = r->counter > q->counter ? r->counter : q->counter + 1;
}

static void resubmit(user_backend *self, ring *r, request found)
{
    request *q = (request *)malloc(sizeof *q);
    *q = found;
    insert_by_counter(r, q);
    count(self, USER_BACKEND_RESUBMITTED);
}

/* Where it goes on follows from the ring: all that was taken is used by now, or is in flight. */
static int recover_split(user_backend *self, ring *r, split_record *record)
{
    split_entry *entries = (split_entry *)(void *)(record + 1);
    unsigned found = 0;
    uint16_t head = record->last_batch_head;
    if (record->version == 0) {
        record->version = 1;
        record->entries = (uint16_t)self->c.inflight_size;
        record->used = r->used_next;
        return 0;
    }
    if (record->version != 1 || record->entries != self->c.inflight_size) {
        return complain(self, "a record of requests in flight that is none");
    }
    for (; record->used != r->used_next && head < r->size; record->used++) {
        entries[head].inflight = 0;
        head = entries[head].next;
    }
    record->used = r->used_next;
    for (uint16_t i = 0; i < r->size; i++) {
        if (entries[i].inflight) {
            resubmit(self, r, (request){.id = i, .counter = entries[i].counter});
            found++;
        }
    }
    r->next = (uint16_t)(r->used_next + found);
    return 0;
}

static void begin_packed_record(user_backend *self, const ring *r, packed_record *record)
{
    packed_entry *entries = (packed_entry *)(void *)(record + 1);
    for (unsigned i = 0; i < self->c.inflight_size; i++) {
        entries[i].next = (uint16_t)(i + 1);
    }
    record->version = 1;
    record->entries = (uint16_t)self->c.inflight_size;
    record->used = record->old_used = r->used_next;
    record->used_wrap = record->old_used_wrap = r->used_wrap;
}

/* The used bit alone tells that a descriptor was returned: the driver may have offered it anew. */
static int settle_packed_record(user_backend *self, const ring *r, packed_record *record)
{
    packed_entry *entries = (packed_entry *)(void *)(record + 1);
    descriptor *returned = NULL;
    int code = reach_whole(self, r->desc + record->old_used * sizeof(descriptor),
                           sizeof(descriptor), false, &returned);
    if (code < 0) {
        return code;
    }
    bool used = load16(&returned->flags) & D_USED;
    if (record->old_used != record->used && used == record->old_used_wrap) {
        record->old_used = record->used;
        record->old_used_wrap = record->used_wrap;
        record->old_free_head = record->free_head;
    } else {
        record->used = record->old_used;
        record->used_wrap = record->old_used_wrap;
        record->free_head = record->old_free_head;
    }
    unsigned walked = 0;
    for (uint16_t i = record->free_head; i < record->entries && walked < record->entries;
         i = entries[i].next, walked++) {
        entries[i].inflight = 0;
    }
    return 0;
}

static int recover_packed(user_backend *self, ring *r, packed_record *record)
{
    packed_entry *entries = (packed_entry *)(void *)(record + 1);
    unsigned found = 0;
    if (record->version == 0) {
        begin_packed_record(self, r, record);
        return 0;
    }
    if (record->version != 1 || record->entries != self->c.inflight_size ||
        record->old_used >= r->size) {
        return complain(self, "a record of requests in flight that is none");
    }
    int code = settle_packed_record(self, r, record);
    if (code < 0) {
        return code;
    }
    for (uint16_t i = 0; i < record->entries; i++) {
        if (entries[i].inflight && entries[i].last < record->entries) {
            resubmit(self, r,
                     (request){.id = entries[entries[i].last].id,
                               .count = entries[i].count,
                               .entry = i,
                               .counter = entries[i].counter});
            found += entries[i].count;
        }
    }
    r->used_next = record->used;
    r->used_wrap = record->used_wrap;
    r->next = (uint16_t)((r->used_next + found) % r->size);
    r->wrap = r->used_wrap != (r->used_next + found >= r->size);
    return 0;
}

/* ---- taking requests from rings ---- */

static void free_request(request *q)
{
    free(q->segments);
    free(q);
}

static int add_segment(request *q, uint64_t address, uint32_t size, bool write)
{
    if (q->segment_count >= PIECES ||
        (!write && q->segment_count && q->segments[q->segment_count - 1].write)) {
        return -EINVAL;
    }
    if (q->segment_count % 16 == 0) {
        q->segments =
            (segment *)realloc(q->segments, (q->segment_count + 16) * sizeof *q->segments);
    }
    q->segments[q->segment_count++] = (segment){address, size, write};
    return 0;
}

static int read_descriptor(user_backend *self, uint64_t address, descriptor *d)
{
    struct iovec piece;
    uint64_t gpa;
    int code = reach(self, address, sizeof *d, false, &piece, &gpa);
    if (code < 0 || piece.iov_len < sizeof *d) {
        return code < 0 ? code : -EFAULT;
    }
    memcpy(d, piece.iov_base, sizeof *d);
    d->address = le64toh(d->address);
    d->size = le32toh(d->size);
    d->id = le16toh(d->id);
    d->flags = le16toh(d->flags);
    return 0;
}

/* In a split ring, the flags come first, and then the next one. */
static int read_split_descriptor(user_backend *self, uint64_t address, descriptor *d)
{
    int code = read_descriptor(self, address, d);
    uint16_t next = d->flags;
    d->flags = d->id;
    d->id = next;
    return code;
}

static int gather_indirect(user_backend *self, request *q, uint64_t table, uint32_t size)
{
    bool packed = has(self->c.features, F_PACKED);
    uint32_t entries = size / (uint32_t)sizeof(descriptor), at = 0;
    for (uint32_t step = 0; step < entries && at < entries; step++) {
        descriptor d;
        int code = packed ? read_descriptor(self, table + at * sizeof d, &d)
                          : read_split_descriptor(self, table + at * sizeof d, &d);
        if (code == 0) {
            code = d.flags & D_INDIRECT ? -EINVAL
                                        : add_segment(q, d.address, d.size, d.flags & D_WRITE);
        }
        if (code < 0 || (!packed && !(d.flags & D_NEXT))) {
            return code;
        }
        at = packed ? at + 1 : d.id;
    }
    return packed && entries ? 0 : -EINVAL;
}

static int gather_descriptor(user_backend *self, request *q, const descriptor *d)
{
    if (!(d->flags & D_INDIRECT)) {
        return add_segment(q, d->address, d->size, d->flags & D_WRITE);
    }
    if (!has(self->c.features, F_INDIRECT) || d->flags & D_NEXT || d->size % sizeof(descriptor)) {
        return -EINVAL;
    }
    return gather_indirect(self, q, d->address, d->size);
}

static int gather_split(user_backend *self, const ring *r, request *q)
{
    uint16_t at = q->id;
    for (uint32_t step = 0; step < r->size && at < r->size; step++) {
        descriptor d;
        int code = read_split_descriptor(self, r->desc + at * sizeof d, &d);
        if (code == 0) {
            code = gather_descriptor(self, q, &d);
        }
        if (code < 0 || !(d.flags & D_NEXT)) {
            return code;
        }
        at = d.id;
    }
    return -EINVAL;
}

/* From the record: the ring's own descriptors may be overwritten by used ones. */
static int gather_recorded(user_backend *self, const ring *r, request *q)
{
    packed_record *record = (packed_record *)record_of(self, r);
    packed_entry *entries = (packed_entry *)(void *)(record + 1);
    uint16_t at = q->entry;
    int code = 0;
    for (unsigned i = 0; i < q->count && code == 0; i++) {
        descriptor d = {entries[at].address, entries[at].size, entries[at].id, entries[at].flags};
        at = entries[at].next;
        code = i + 1 < q->count && at >= record->entries ? -EINVAL : gather_descriptor(self, q, &d);
    }
    return code;
}

/* Fills in the pieces of memory that a request has. */
static int find_pieces(user_backend *self, const request *q, pieces *p)
{
    p->readable = p->count = 0;
    for (unsigned i = 0; i < q->segment_count; i++) {
        segment rest = q->segments[i];
        while (rest.size) {
            struct iovec *piece = &p->at[p->count];
            if (p->count == PIECES) {
                return -EINVAL;
            }
            int code = reach(self, rest.address, rest.size, rest.write, piece, &p->gpa[p->count]);
            if (code < 0) {
                return code;
            }
            rest.address += piece->iov_len;
            rest.size -= (uint32_t)piece->iov_len;
            p->count++;
            p->readable += !rest.write;
        }
    }
    return 0;
}

static int gather(user_backend *self, const ring *r, request *q, pieces *p)
{
    if (!q->gathered) {
        q->segment_count = 0;
        int code = has(self->c.features, F_PACKED) ? gather_recorded(self, r, q)
                                                   : gather_split(self, r, q);
        if (code < 0) {
            return code;
        }
        q->gathered = true;
    }
    return find_pieces(self, q, p);
}

/* Returns 1: there is one, 0, or a negative errno, -EAGAIN if a translation is awaited. */
static int take_split(user_backend *self, ring *r, request *q, pieces *p)
{
    uint16_t *index = NULL, *head = NULL;
    int code = reach_whole(self, r->avail + 2, 2, false, &index);
    if (code < 0) {
        return code;
    }
    uint16_t there = (uint16_t)(load16(index) - r->next);
    if (there == 0 || there > r->size) {
        return there ? -EINVAL : 0;
    }
    code = reach_whole(self, r->avail + 4 + 2 * (r->next % r->size), 2, false, &head);
    if (code < 0) {
        return code;
    }
    q->id = load16(head);
    code = q->id < r->size ? gather(self, r, q, p) : -EINVAL;
    if (code < 0) {
        return code;
    }
    r->next++;
    q->counter = r->counter++;
    split_record *record = (split_record *)record_of(self, r);
    if (record) {
        record_taken_split(record, q);
    }
    return 1;
}

static bool is_available(const descriptor *d, bool wrap)
{
    return !!(d->flags & D_AVAIL) == wrap && !!(d->flags & D_USED) != wrap;
}

/* Returns how many descriptors it has, 0: none is there. */
static int read_packed_chain(user_backend *self, ring *r, request *q, descriptor *chain)
{
    uint16_t *flags;
    uint32_t at = r->next;
    int code = reach_whole(self, r->desc + at * sizeof *chain + 14, 2, false, &flags);
    if (code == 0) {
        chain->flags = load16(flags);
    }
    if (code < 0 || !is_available(chain, r->wrap)) {
        return code;
    }
    for (unsigned n = 0; n < r->size; n++) {
        code = read_descriptor(self, r->desc + at * sizeof *chain, &chain[n]);
        if (code == 0) {
            code = gather_descriptor(self, q, &chain[n]);
        }
        if (code < 0 || !(chain[n].flags & D_NEXT)) {
            return code < 0 ? code : (int)n + 1;
        }
        at = (at + 1) % r->size;
    }
    return -EINVAL;
}

static int take_packed(user_backend *self, ring *r, request *q, pieces *p)
{
    descriptor *chain = (descriptor *)calloc(r->size, sizeof *chain);
    int found = read_packed_chain(self, r, q, chain);
    int code = found > 0 ? find_pieces(self, q, p) : found;
    if (found > 0 && code == 0) {
        packed_record *record = (packed_record *)record_of(self, r);
        q->gathered = true;
        q->count = (uint16_t)found;
        q->id = chain[found - 1].id;
        q->counter = r->counter++;
        r->wrap = r->wrap != (r->next + (uint32_t)found >= r->size);
        r->next = (uint16_t)((r->next + (uint32_t)found) % r->size);
        if (record) {
            record_taken_packed(record, chain, q);
        }
        code = 1;
    }
    free(chain);
    return code;
}

static int take(user_backend *self, ring *r, request **taken, pieces *p)
{
    request *q = (request *)calloc(1, sizeof *q);
    int code =
        has(self->c.features, F_PACKED) ? take_packed(self, r, q, p) : take_split(self, r, q, p);
    if (code <= 0) {
        free_request(q);
        return code;
    }
    count(self, USER_BACKEND_TAKEN);
    *taken = q;
    return 1;
}

/* ---- giving them back ---- */

/* Where the next completion will be written: asked for before anything is done. */
static int find_room(user_backend *self, const ring *r, void *element, void *index)
{
    if (has(self->c.features, F_PACKED)) {
        return reach_whole(self, r->desc + r->used_next * sizeof(descriptor), sizeof(descriptor),
                           true, element);
    }
    int code = reach_whole(self, r->used + 4 + 8 * (r->used_next % r->size), 8, true, element);
    return code < 0 ? code : reach_whole(self, r->used + 2, 2, true, index);
}

static void write_used_packed(user_backend *self, ring *r, const request *q, descriptor *d,
                              uint32_t written)
{
    uint64_t offset = r->used_next * sizeof *d;
    d->id = htole16(q->id);
    d->size = htole32(written);
    store16(&d->flags, (uint16_t)((r->used_wrap ? D_AVAIL | D_USED : 0) | (written ? D_WRITE : 0)));
    r->used_wrap = r->used_wrap != (r->used_next + (uint32_t)q->count >= r->size);
    r->used_next = (uint16_t)((r->used_next + (uint32_t)q->count) % r->size);
    log_used(self, r, offset, sizeof *d);
}

static void write_used_split(user_backend *self, ring *r, const request *q, uint32_t *element,
                             uint16_t *index, uint32_t written)
{
    uint64_t offset = 4 + 8 * (r->used_next % r->size);
    element[0] = htole32(q->id);
    element[1] = htole32(written);
    log_used(self, r, offset, 8);
    store16(index, ++r->used_next);
    log_used(self, r, 2, 2);
}

static void complete(user_backend *self, ring *r, request *q, uint32_t written)
{
    void *element = NULL;
    uint16_t *index = NULL;
    if (find_room(self, r, &element, &index) == 0) {
        record_completing(self, r, q);
        if (has(self->c.features, F_PACKED)) {
            write_used_packed(self, r, q, (descriptor *)element, written);
        } else {
            write_used_split(self, r, q, (uint32_t *)element, index, written);
        }
        record_completed(self, r, q);
        r->call_due = true;
        count(self, USER_BACKEND_COMPLETED);
    }
    free_request(q);
}

static bool wants_call_split(user_backend *self, ring *r)
{
    uint16_t *flags, *event, before = r->called;
    if (!has(self->c.features, F_EVENT_IDX)) {
        return reach_whole(self, r->avail, 2, false, &flags) != 0 || !(load16(flags) & 1);
    }
    r->called = r->used_next;
    if (reach_whole(self, r->avail + 4 + 2 * r->size, 2, false, &event) != 0) {
        return true;
    }
    return (uint16_t)(r->used_next - load16(event) - 1) < (uint16_t)(r->used_next - before);
}

/* In a packed ring a call too many is allowed: an event offset is not looked into. */
static bool wants_call_packed(user_backend *self, const ring *r)
{
    uint16_t *flags;
    return reach_whole(self, r->avail + 2, 2, false, &flags) != 0 || (load16(flags) & 3) != 1;
}

static void signal_ring(user_backend *self, const ring *r, int fd, uint32_t inband)
{
    uint64_t one = 1;
    const uint32_t state[2] = {(uint32_t)(r - self->c.rings), 0};
    if (fd >= 0) {
        (void)!write(fd, &one, sizeof one);
    } else if (has(self->c.protocol, P_INBAND) && self->c.channel >= 0) {
        compose_and_send(self, self->c.channel, inband, VERSION, state, sizeof state, -1);
    }
}

static void call_driver(user_backend *self, ring *r)
{
    bool packed = has(self->c.features, F_PACKED);
    if (r->call_due && (packed ? wants_call_packed(self, r) : wants_call_split(self, r))) {
        count(self, USER_BACKEND_CALLS);
        signal_ring(self, r, r->call, 4);
    }
    r->call_due = false;
}

/* Asks for a kick at the next buffer; returns whether one came in the meantime. */
static bool ask_for_kick(user_backend *self, ring *r)
{
    uint16_t *event, *index;
    if (!has(self->c.features, F_EVENT_IDX) || has(self->c.features, F_PACKED) ||
        reach_whole(self, r->used + 4 + 8 * r->size, 2, true, &event) != 0 ||
        reach_whole(self, r->avail + 2, 2, false, &index) != 0) {
        return false;
    }
    store16(event, r->next);
    log_used(self, r, 4 + 8 * r->size, 2);
    return load16(index) != r->next;
}

static void break_ring(user_backend *self, ring *r, const char *what)
{
    if (!r->broken) {
        r->broken = true;
        count(self, USER_BACKEND_RING_ERRORS);
        complain(self, "ring %d: %s", (int)(r - self->c.rings), what);
        signal_ring(self, r, r->error, 5);
    }
}

/* ---- devices ---- */

static size_t copy_iov(const struct iovec *iov, unsigned iov_count, size_t skip, void *bytes,
                       size_t size, bool into)
{
    size_t done = 0;
    for (unsigned i = 0; i < iov_count && done < size; i++) {
        if (skip >= iov[i].iov_len) {
            skip -= iov[i].iov_len;
            continue;
        }
        size_t part = iov[i].iov_len - skip;
        part = part < size - done ? part : size - done;
        void *guest = (char *)iov[i].iov_base + skip;
        void *own = (char *)bytes + done;
        memcpy(into ? guest : own, into ? own : guest, part);
        done += part;
        skip = 0;
    }
    return done;
}

static size_t iov_size(const struct iovec *iov, unsigned iov_count)
{
    size_t size = 0;
    for (unsigned i = 0; i < iov_count; i++) {
        size += iov[i].iov_len;
    }
    return size;
}

enum { /* virtio-blk */
    BLK_IN = 0,
    BLK_OUT = 1,
    BLK_FLUSH = 4,
    BLK_GET_ID = 8,
    BLK_OK = 0,
    BLK_ERROR = 1,
    BLK_UNSUPPORTED = 2
};

/* `size` counts the bytes of data, in whichever direction they go. */
static unsigned char do_block(user_backend *self, const user_backend_request *q, uint32_t type,
                              uint64_t sector, size_t size)
{
    static const char id[20] = "user_backend";
    uint64_t capacity = self->options.disk_size / USER_BACKEND_BLOCK;
    unsigned char *disk = (unsigned char *)self->options.disk;
    if (type == BLK_IN || type == BLK_OUT) {
        if (size % USER_BACKEND_BLOCK || sector > capacity ||
            size / USER_BACKEND_BLOCK > capacity - sector) {
            return BLK_ERROR;
        }
        disk += sector * USER_BACKEND_BLOCK;
    }
    switch (type) {
    case BLK_IN:
        copy_iov(q->writable, q->writable_count, 0, disk, size, true);
        return BLK_OK;
    case BLK_OUT:
        copy_iov(q->readable, q->readable_count, 16, disk, size, false);
        return BLK_OK;
    case BLK_FLUSH:
        return msync(disk, (size_t)self->options.disk_size, MS_SYNC) == 0 ||
                       !self->options.disk_path
                   ? BLK_OK
                   : BLK_ERROR;
    case BLK_GET_ID:
        copy_iov(q->writable, q->writable_count, 0, (void *)(uintptr_t)id,
                 size < sizeof id ? size : sizeof id, true);
        return BLK_OK;
    default:
        return BLK_UNSUPPORTED;
    }
}

/* What fails has its data zeroed, so that all bytes are written whatever happens. */
static uint32_t serve_disk(user_backend *self, const user_backend_request *q)
{
    struct {
        uint32_t type, ioprio;
        uint64_t sector;
    } header = {0, 0, 0};
    size_t writable = iov_size(q->writable, q->writable_count);
    size_t readable = iov_size(q->readable, q->readable_count);
    unsigned char status = BLK_ERROR, zero = 0;
    if (writable == 0) {
        return 0;
    }
    if (copy_iov(q->readable, q->readable_count, 0, &header, sizeof header, false) ==
        sizeof header) {
        uint32_t type = le32toh(header.type);
        status = do_block(self, q, type, le64toh(header.sector),
                          type == BLK_OUT ? readable - sizeof header : writable - 1);
    }
    for (size_t i = 0; i + 1 < writable && status != BLK_OK; i++) {
        copy_iov(q->writable, q->writable_count, i, &zero, 1, true);
    }
    copy_iov(q->writable, q->writable_count, writable - 1, &status, 1, true);
    return (uint32_t)writable;
}

/* Copies what `sent` has into the next buffer of the receiving ring. -EAGAIN: there is none yet. */
static int loop_back(user_backend *self, ring *receiving, const pieces *sent)
{
    pieces *p = &self->pieces[1];
    const uint16_t one_buffer = htole16(1);
    void *element = NULL, *index = NULL;
    request *q = NULL;
    size_t written = 0;
    if (!receiving->started || !receiving->enabled || receiving->broken) {
        return 0; /* it is lost, as on any wire */
    }
    int code = find_room(self, receiving, &element, &index);
    do {
        code = code < 0 ? code : take(self, receiving, &q, p);
    } while (code == 0 && ask_for_kick(self, receiving));
    if (code <= 0) {
        if (code < 0 && code != -EAGAIN) {
            break_ring(self, receiving, "a buffer that makes no sense");
            return 0;
        }
        return -EAGAIN;
    }
    const struct iovec *buffer = p->at + p->readable;
    unsigned buffers = p->count - p->readable;
    for (unsigned i = 0; i < sent->readable; i++) {
        written +=
            copy_iov(buffer, buffers, written, sent->at[i].iov_base, sent->at[i].iov_len, true);
    }
    if (has(self->c.features, F_VERSION_1) || has(self->c.features, F_MRG_RXBUF)) {
        copy_iov(buffer, buffers, 10, (void *)(uintptr_t)&one_buffer, 2, true);
    }
    log_written(self, p, written);
    complete(self, receiving, q, (uint32_t)written);
    call_driver(self, receiving);
    return 0;
}

/* Returns bytes written, or a negative errno. */
static int64_t serve(user_backend *self, ring *r, pieces *p)
{
    unsigned queue = (unsigned)(r - self->c.rings);
    user_backend_request q = {queue, p->at, p->at + p->readable, p->readable,
                              p->count - p->readable};
    switch (self->options.device) {
    case USER_BACKEND_LOOP:
        return queue % 2 && r->enabled ? loop_back(self, r - 1, p) : 0;
    case USER_BACKEND_DISK:
        return serve_disk(self, &q);
    case USER_BACKEND_NONE:
        break;
    }
    return self->options.handle ? self->options.handle(&q, self->options.user) : 0;
}

/* ---- running rings ---- */

static int start_ring(user_backend *self, ring *r)
{
    void *record = record_of(self, r);
    uint16_t *index;
    int code = 0;
    if (has(self->c.features, F_PACKED)) {
        code = record ? recover_packed(self, r, (packed_record *)record) : 0;
    } else {
        code = reach_whole(self, r->used + 2, 2, false, &index);
        if (code == 0) {
            r->used_next = r->called = load16(index);
            code = record ? recover_split(self, r, (split_record *)record) : 0;
        }
    }
    r->started = code == 0;
    return code;
}

/* Returns 0 when it is done, also if it failed, and -EAGAIN when it has to wait. */
static int run_request(user_backend *self, ring *r, request *q, bool now_or_never)
{
    pieces *p = &self->pieces[0];
    void *element, *index;
    int64_t written = find_room(self, r, &element, &index);
    if (written == 0) {
        written = gather(self, r, q, p);
    }
    if (written == 0) {
        written = serve(self, r, p);
    }
    if (written == -EAGAIN && !now_or_never) {
        q->due = 0; /* not time is what it waits for */
        return -EAGAIN;
    }
    if (written < 0) {
        count(self, USER_BACKEND_FAILED);
        written = 0;
    }
    log_written(self, p, (uint64_t)written);
    complete(self, r, q, (uint32_t)written);
    return 0;
}

/* Runs what is due, or all. */
static void run_requests(user_backend *self, ring *r, bool all)
{
    uint64_t time = now_ms();
    bool in_order = has(self->c.features, F_IN_ORDER), waits = false;
    request **at = &r->first;
    while (*at && !(in_order && waits)) {
        request *q = *at, *rest = q->next;
        if (!all && q->due > time) {
            waits = in_order;
            at = &q->next;
        } else if (run_request(self, r, q, all) == 0) {
            *at = rest;
        } else {
            waits = true;
            at = &q->next;
        }
    }
}

static void append(user_backend *self, ring *r, request *q)
{
    uint32_t every = get(&self->shared->hold_every);
    request **at = &r->first;
    if (every && get(&self->shared->counters[USER_BACKEND_TAKEN]) % every == 0) {
        q->due = now_ms() + get(&self->shared->hold_ms);
        count(self, USER_BACKEND_HELD);
    }
    while (*at) {
        at = &(*at)->next;
    }
    *at = q;
}

static void take_all(user_backend *self, ring *r)
{
    int code;
    do {
        request *q;
        while ((code = take(self, r, &q, &self->pieces[0])) == 1) {
            append(self, r, q);
        }
    } while (code == 0 && ask_for_kick(self, r));
    if (code < 0 && code != -EAGAIN) {
        break_ring(self, r, "a request that makes no sense");
    }
}

static bool is_receiving(const user_backend *self, const ring *r)
{
    return self->options.device == USER_BACKEND_LOOP && (r - self->c.rings) % 2 == 0;
}

/* A ring that is started and disabled goes on without effect: a net drops what is sent. */
static void run_ring(user_backend *self, ring *r)
{
    if (!r->kickable || !r->addressed || !r->size || r->broken) {
        return;
    }
    if (!r->started && r->kicked) {
        int code = start_ring(self, r);
        if (code < 0 && code != -EAGAIN) {
            break_ring(self, r, "it is not where it can be read");
        }
    }
    if (!r->started || (!r->enabled && self->options.device != USER_BACKEND_LOOP)) {
        return;
    }
    if (!is_receiving(self, r)) {
        if (r->kicked) {
            take_all(self, r);
        }
        run_requests(self, r, false);
        call_driver(self, r);
    }
    r->kicked = false;
}

static void discard_requests(ring *r)
{
    while (r->first) {
        request *q = r->first;
        r->first = q->next;
        free_request(q);
    }
}

static void stop_ring(user_backend *self, ring *r, bool drain)
{
    if (r->started && drain) {
        run_requests(self, r, true);
        call_driver(self, r);
    }
    discard_requests(r);
    r->started = r->kicked = r->kickable = r->broken = false;
    close_fd(&r->kick);
}

static void kick_all(connection *c)
{
    for (unsigned i = 0; i < USER_BACKEND_QUEUES; i++) {
        c->rings[i].kicked |= c->rings[i].started;
    }
}

static bool any_started(const connection *c)
{
    bool any = false;
    for (unsigned i = 0; i < USER_BACKEND_QUEUES; i++) {
        any |= c->rings[i].started;
    }
    return any;
}

static void reset_device(user_backend *self)
{
    for (unsigned i = 0; i < USER_BACKEND_QUEUES; i++) {
        ring *r = &self->c.rings[i];
        stop_ring(self, r, false);
        close_fd(&r->call);
        close_fd(&r->error);
        memset(r, 0, sizeof *r);
        r->kick = r->call = r->error = -1;
    }
    unmap(&self->c.inflight);
    set(&self->shared->counters[USER_BACKEND_STATUS], 0);
    count(self, USER_BACKEND_RESETS);
}

/* ---- messages: the whole device. Each returns 0 or a negative errno ---- */

static int get_features(user_backend *self, message *m)
{
    return answer_number(self, m, self->options.features);
}

static int set_features(user_backend *self, message *m)
{
    connection *c = &self->c;
    uint64_t features = number_at(m, 0);
    if (features & ~self->options.features) {
        return complain(self, "features that were not offered");
    }
    if ((features ^ c->features) & ~BIT(F_LOG_ALL) && any_started(c)) {
        return complain(self, "other features, while a ring runs");
    }
    c->features = features;
    for (unsigned i = 0; i < self->options.queues && !has(features, F_PROTOCOL); i++) {
        c->rings[i].enabled = true;
    }
    return 0;
}

static int set_owner(user_backend *self, message *m)
{
    (void)self, (void)m;
    return 0;
}

static int reset_owner(user_backend *self, message *m)
{
    (void)m;
    for (unsigned i = 0; i < self->options.queues; i++) {
        self->c.rings[i].enabled = false;
    }
    return 0;
}

static int get_protocol_features(user_backend *self, message *m)
{
    return answer_number(self, m, self->options.protocol);
}

static int set_protocol_features(user_backend *self, message *m)
{
    uint64_t bits = number_at(m, 0);
    bool channel = has(bits, P_REPLY_ACK) && has(bits, P_BACKEND_REQ);
    bool records = has(bits, P_INFLIGHT);
    if (bits & ~self->options.protocol) {
        return complain(self, "protocol features that were not offered");
    }
    if ((has(bits, P_INBAND) && !channel) || (has(bits, P_INFLIGHT_BASE) && !records) ||
        (has(bits, P_SKIP_DRAIN) && !records)) {
        return complain(self, "a protocol feature without its companions");
    }
    self->c.protocol = bits;
    return 0;
}

/* A net counts its pairs. */
static int get_queue_num(user_backend *self, message *m)
{
    unsigned per = self->options.device == USER_BACKEND_LOOP ? 2 : 1;
    return answer_number(self, m, self->options.queues / per);
}

static int get_max_mem_slots(user_backend *self, message *m)
{
    return answer_number(self, m, self->options.slots);
}

/* With postcopy, the answer tells where the back-end has the regions; the front-end confirms. */
static int answer_bases(user_backend *self, message *m, unsigned first)
{
    for (unsigned i = first; i < self->c.region_count; i++) {
        uint64_t base = (uintptr_t)self->c.regions[i].map.at;
        memcpy(m->bytes + 8 + 32 * (i - first) + 16, &base, sizeof base);
    }
    self->c.ack_awaited = m->request;
    return answer(self, m, m->bytes, m->size, -1);
}

static int set_mem_table(user_backend *self, message *m)
{
    uint32_t regions = m->size >= 8 ? word_at(m, 0) : UINT32_MAX;
    if (has(self->c.protocol, P_SLOTS)) {
        return complain(self, "a whole table, though there are slots");
    }
    if (regions > 8 || m->size != 8 + 32 * regions || m->fd_count != regions) {
        return complain(self, "a table of %u regions in %u bytes with %u fds", regions, m->size,
                        m->fd_count);
    }
    remove_regions(&self->c);
    for (uint32_t i = 0; i < regions; i++) {
        int code = add_region(self, m, 8 + 32 * i, m->fds[i]);
        if (code < 0) {
            return code;
        }
    }
    kick_all(&self->c);
    return self->c.postcopy ? answer_bases(self, m, 0) : 0;
}

static int add_mem_reg(user_backend *self, message *m)
{
    int code = m->fd_count == 1 ? add_region(self, m, 8, m->fds[0])
                                : complain(self, "a region with %u fds", m->fd_count);
    if (code == 0) {
        kick_all(&self->c);
        code = self->c.postcopy ? answer_bases(self, m, self->c.region_count - 1) : 0;
    }
    return code;
}

static int rem_mem_reg(user_backend *self, message *m)
{
    connection *c = &self->c;
    for (unsigned i = 0; i < c->region_count; i++) {
        region *r = &c->regions[i];
        if (r->gpa == number_at(m, 8) && r->size == number_at(m, 16) &&
            r->user == number_at(m, 24)) {
            unmap(&r->map);
            *r = c->regions[--c->region_count];
            return 0;
        }
    }
    return complain(self, "no such region to remove");
}

static int set_log_base(user_backend *self, message *m)
{
    connection *c = &self->c;
    uint64_t echo[2] = {0, 0};
    mapping fresh = {NULL, 0, NULL};
    if (!has(c->protocol, P_LOG_SHMFD)) {
        return 0; /* a log that cannot be reached: nothing is written */
    }
    if (m->fd_count != 1 || map_fd(&fresh, m->fds[0], number_at(m, 8), number_at(m, 0)) != 0) {
        return complain(self, "a log that its fd does not hold");
    }
    unmap(&c->log);
    c->log = fresh;
    c->log_size = number_at(m, 0);
    if (self->options.log_answer == 16) {
        memcpy(echo, m->bytes, 16);
    }
    return answer(self, m, echo, (uint32_t)self->options.log_answer, -1);
}

static int keep_fd(user_backend *self, message *m, int *kept)
{
    if (m->fd_count != 1) {
        return complain(self, "message %u with %u fds", m->request, m->fd_count);
    }
    close_fd(kept);
    *kept = m->fds[0];
    m->fds[0] = -1;
    return 0;
}

static int set_log_fd(user_backend *self, message *m)
{
    return keep_fd(self, m, &self->c.log_call);
}

static int set_backend_req_fd(user_backend *self, message *m)
{
    return keep_fd(self, m, &self->c.channel);
}

static int gpu_set_socket(user_backend *self, message *m)
{
    return m->fd_count == 1 ? 0 : complain(self, "a display with %u fds", m->fd_count);
}

static int send_rarp(user_backend *self, message *m)
{
    (void)m;
    count(self, USER_BACKEND_RARPS);
    return 0;
}

static int net_set_mtu(user_backend *self, message *m)
{
    if (number_at(m, 0) < 68 || number_at(m, 0) > UINT16_MAX) {
        return complain(self, "an MTU that is none");
    }
    set(&self->shared->counters[USER_BACKEND_MTU], (uint32_t)number_at(m, 0));
    return 0;
}

static int reset_message(user_backend *self, message *m)
{
    (void)m;
    reset_device(self);
    return 0;
}

static int set_status(user_backend *self, message *m)
{
    if (number_at(m, 0) > UINT8_MAX) {
        return complain(self, "a status of more than a byte");
    }
    if (number_at(m, 0) == 0) {
        reset_device(self);
    }
    set(&self->shared->counters[USER_BACKEND_STATUS], (uint32_t)number_at(m, 0));
    return 0;
}

static int get_status(user_backend *self, message *m)
{
    return answer_number(self, m, get(&self->shared->counters[USER_BACKEND_STATUS]));
}

/* ---- messages: config, IOTLB, state, and what only some devices have ---- */

static bool is_in_config(const user_backend *self, const message *m)
{
    return m->size >= 12 && word_at(m, 4) == m->size - 12 && m->size > 12 &&
           word_at(m, 4) <= self->options.config_size &&
           word_at(m, 0) <= self->options.config_size - word_at(m, 4);
}

static int get_config(user_backend *self, message *m)
{
    if (!is_in_config(self, m)) {
        return complain(self, "no such config space to read");
    }
    memcpy(m->bytes + 12, self->shared->config + word_at(m, 0), word_at(m, 4));
    return answer(self, m, m->bytes, m->size, -1);
}

static int set_config(user_backend *self, message *m)
{
    bool fixed = self->options.device == USER_BACKEND_DISK && m->size >= 4 && word_at(m, 0) < 8;
    if (!is_in_config(self, m) || word_at(m, 8) > 1) {
        return complain(self, "no such config space to write");
    }
    if (fixed && word_at(m, 8) == 0) {
        return complain(self, "config space that cannot be written");
    }
    memcpy(self->shared->config + word_at(m, 0), m->bytes + 12, word_at(m, 4));
    return 0;
}

static int iotlb_msg(user_backend *self, message *m)
{
    connection *c = &self->c;
    translation t = {number_at(m, 0), number_at(m, 8), number_at(m, 16), m->bytes[24]};
    uint8_t type = m->bytes[25];
    if (!has(c->features, F_IOMMU) || type < 2 || type > 3 || !t.size ||
        t.iova + (t.size - 1) < t.iova) {
        return complain(self, "a translation that makes no sense");
    }
    for (unsigned i = 0; i < IOTLB; i++) {
        if (c->iotlb[i].size && overlap(t.iova, t.size, c->iotlb[i].iova, c->iotlb[i].size)) {
            c->iotlb[i].size = 0;
        }
    }
    if (type == 2) {
        c->iotlb[c->iotlb_next++ % IOTLB] = t;
        c->miss_count = 0;
        kick_all(c);
    }
    return answer_number(self, m, 0);
}

/* The last 8 bytes are where the answer has the session. */
static int create_crypto(user_backend *self, message *m)
{
    const uint64_t session = 1;
    if (m->size < sizeof session) {
        return complain(self, "a session of %u bytes", m->size);
    }
    memcpy(m->bytes + m->size - sizeof session, &session, sizeof session);
    return answer(self, m, m->bytes, m->size, -1);
}

static int close_crypto(user_backend *self, message *m)
{
    return number_at(m, 0) == 1 ? 0 : complain(self, "no such session");
}

/* Nominal: nobody's faults are caught, the userfaultfd is an eventfd. */
static int postcopy_advise(user_backend *self, message *m)
{
    int fd = eventfd(0, EFD_CLOEXEC);
    int code = answer(self, m, NULL, 0, fd);
    close_fd(&fd);
    return code;
}

static int postcopy_listen(user_backend *self, message *m)
{
    (void)m;
    self->c.postcopy = true;
    return 0;
}

static int postcopy_end(user_backend *self, message *m)
{
    self->c.postcopy = false;
    return answer_number(self, m, 0);
}

static int get_shared_object(user_backend *self, message *m)
{
    bool known = memcmp(m->bytes, self->options.object, sizeof self->options.object) == 0;
    int fd = known ? memfd_create("object", MFD_CLOEXEC) : -1;
    int code = answer(self, m, NULL, 0, fd);
    close_fd(&fd);
    return code;
}

static int get_shmem_config(user_backend *self, message *m)
{
    unsigned char payload[2056] = {0};
    uint32_t regions = 0;
    for (unsigned i = 0; i < USER_BACKEND_SHMEM; i++) {
        regions += self->options.shmem[i] != 0;
    }
    memcpy(payload, &regions, sizeof regions);
    memcpy(payload + 8, self->options.shmem, sizeof self->options.shmem);
    return answer(self, m, payload, sizeof payload, -1);
}

static int set_device_state_fd(user_backend *self, message *m)
{
    connection *c = &self->c;
    int ends[2] = {-1, -1};
    bool loads = m->size == 8 && word_at(m, 0) == 1;
    if (word_at(m, 0) > 1 || word_at(m, 4) != 0 || any_started(c)) {
        return complain(self, "no such state, or a ring runs");
    }
    int code = keep_fd(self, m, &c->state_fd);
    if (code < 0) {
        return code;
    }
    c->state_loads = loads;
    c->state_failed = false;
    c->state_done = 0;
    if (!self->options.own_state_fd || pipe2(ends, O_CLOEXEC) != 0) {
        return answer_number(self, m, 0x100);
    }
    close_fd(&c->state_fd);
    c->state_fd = ends[loads ? 0 : 1];
    const uint64_t with_fd = 0;
    code = answer(self, m, &with_fd, sizeof with_fd, ends[loads ? 1 : 0]);
    close(ends[loads ? 1 : 0]);
    return code;
}

/* One step: the fd is ready, and a pipe that is takes a page without blocking. */
static void move_state(user_backend *self)
{
    connection *c = &self->c;
    shared *s = self->shared;
    size_t room = (c->state_loads ? sizeof s->state : get(&s->state_size)) - c->state_done;
    room = room < PAGE ? room : PAGE;
    ssize_t done = c->state_loads ? read(c->state_fd, s->state + c->state_done, room)
                                  : write(c->state_fd, s->state + c->state_done, room);
    if (done > 0) {
        c->state_done += (uint32_t)done;
        if (c->state_loads || c->state_done < get(&s->state_size)) {
            return;
        }
    } else if (done < 0 && (errno == EAGAIN || errno == EINTR)) {
        return;
    }
    c->state_failed = done < 0 || (c->state_loads && room == 0);
    if (c->state_loads) {
        set(&s->state_size, c->state_done);
    }
    close_fd(&c->state_fd);
}

/* What the front-end wrote before it asked may still be on its way. */
static int check_device_state(user_backend *self, message *m)
{
    connection *c = &self->c;
    while (c->state_fd >= 0 && await_fd(self, c->state_fd, c->state_loads ? POLLIN : POLLOUT, -1)) {
        move_state(self);
    }
    return answer_number(self, m, c->state_failed);
}

/* ---- messages: rings ---- */

static ring *ring_of(user_backend *self, const message *m)
{
    uint32_t queue = word_at(m, 0);
    if (m->request >= 12 && m->request <= 14) {
        queue &= 0xff;
    }
    if (queue >= self->options.queues) {
        complain(self, "message %u for queue %u", m->request, queue);
        return NULL;
    }
    return &self->c.rings[queue];
}

static int set_vring_num(user_backend *self, message *m)
{
    ring *r = ring_of(self, m);
    uint32_t size = word_at(m, 4);
    if (!r || r->started || !size || size > 32768 ||
        (!has(self->c.features, F_PACKED) && size & (size - 1))) {
        return complain(self, "a ring of size %u, or it runs", size);
    }
    r->size = size;
    return 0;
}

static int set_vring_addr(user_backend *self, message *m)
{
    ring *r = ring_of(self, m);
    uint64_t desc = number_at(m, 8), used = number_at(m, 16), avail = number_at(m, 24);
    if (!r || word_at(m, 4) > 1 || desc % 16 || used % 4 || avail % 2) {
        return complain(self, "ring addresses that make no sense");
    }
    r->desc = desc;
    r->used = used;
    r->avail = avail;
    r->log = number_at(m, 32);
    r->logs = word_at(m, 4);
    r->addressed = true;
    return 0;
}

static int set_vring_base(user_backend *self, message *m)
{
    ring *r = ring_of(self, m);
    uint32_t base = word_at(m, 4);
    bool packed = has(self->c.features, F_PACKED);
    if (!r || r->started || (!packed && base > UINT16_MAX)) {
        return complain(self, "a base that makes no sense, or the ring runs");
    }
    r->next = (uint16_t)(packed ? base & 0x7fff : base);
    r->wrap = base >> 15 & 1;
    if (packed) {
        r->used_next = base >> 16 & 0x7fff;
        r->used_wrap = base >> 31;
    }
    return 0;
}

static int get_vring_base(user_backend *self, message *m)
{
    ring *r = ring_of(self, m);
    bool drain = m->request == 11 && !has(self->c.protocol, P_INFLIGHT_BASE);
    if (!r || word_at(m, 4) != 0) {
        return complain(self, "a question for a base that makes no sense");
    }
    stop_ring(self, r, drain);
    uint32_t base[2] = {word_at(m, 0), r->next};
    if (has(self->c.features, F_PACKED)) {
        base[1] |=
            (uint32_t)r->wrap << 15 | (uint32_t)r->used_next << 16 | (uint32_t)r->used_wrap << 31;
    }
    return answer(self, m, base, sizeof base, -1);
}

static int set_ring_fd(user_backend *self, message *m, int *fd)
{
    if (m->fd_count != (number_at(m, 0) & 0x100 ? 0u : 1u) || number_at(m, 0) > 0x1ff) {
        return complain(self, "message %u with %u fds", m->request, m->fd_count);
    }
    close_fd(fd);
    return m->fd_count ? keep_fd(self, m, fd) : 0;
}

static int set_vring_kick(user_backend *self, message *m)
{
    ring *r = ring_of(self, m);
    int code = r ? set_ring_fd(self, m, &r->kick) : -EINVAL;
    if (code == 0) {
        r->kickable = true;
        r->polled = r->kick < 0 && !has(self->c.protocol, P_INBAND);
        r->kicked |= r->started;
    }
    return code;
}

static int set_vring_call(user_backend *self, message *m)
{
    ring *r = ring_of(self, m);
    return r ? set_ring_fd(self, m, &r->call) : -EINVAL;
}

static int set_vring_err(user_backend *self, message *m)
{
    ring *r = ring_of(self, m);
    return r ? set_ring_fd(self, m, &r->error) : -EINVAL;
}

static int set_vring_enable(user_backend *self, message *m)
{
    ring *r = ring_of(self, m);
    if (!r || word_at(m, 4) > 1) {
        return complain(self, "a queue that is neither enabled nor disabled");
    }
    r->enabled = word_at(m, 4);
    r->kicked |= r->started;
    return 0;
}

static int set_vring_endian(user_backend *self, message *m)
{
    ring *r = ring_of(self, m);
    return r && !r->started && word_at(m, 4) == 0
               ? 0
               : complain(self, "an endianness that it does not have");
}

static int vring_kick(user_backend *self, message *m)
{
    ring *r = ring_of(self, m);
    if (!r || word_at(m, 4) != 0) {
        return complain(self, "a kick that makes no sense");
    }
    r->kicked = true;
    return 0;
}

static int get_inflight_fd(user_backend *self, message *m)
{
    uint16_t shape[2];
    memcpy(shape, m->bytes + 16, sizeof shape);
    uint64_t reply[3] = {0, 0, 0};
    reply[0] = shape[0] * record_stride(has(self->c.features, F_PACKED), shape[1]);
    memcpy(&reply[2], shape, sizeof shape);
    int fd = memfd_create("inflight", MFD_CLOEXEC);
    int code = -EINVAL;
    if (shape[0] && shape[1] && shape[0] <= self->options.queues &&
        ftruncate(fd, (off_t)reply[0]) == 0) {
        code = answer(self, m, reply, sizeof reply, fd);
    }
    close_fd(&fd);
    return code;
}

static int set_inflight_fd(user_backend *self, message *m)
{
    connection *c = &self->c;
    uint16_t shape[2];
    mapping fresh = {NULL, 0, NULL};
    uint64_t size = number_at(m, 0);
    memcpy(shape, m->bytes + 16, sizeof shape);
    if (any_started(c) || number_at(m, 8) % sizeof(uint64_t) ||
        size < shape[0] * record_stride(has(c->features, F_PACKED), shape[1]) || m->fd_count != 1 ||
        map_fd(&fresh, m->fds[0], number_at(m, 8), size) != 0) {
        return complain(self, "a record of requests in flight that does not fit");
    }
    unmap(&c->inflight);
    c->inflight = fresh;
    c->inflight_queues = shape[0];
    c->inflight_size = shape[1];
    return 0;
}

/* ---- dispatching ---- */

enum { /* how a message that fails is answered, if not by an ack */
    BY_ACK,
    BY_CLOSING,
    BY_NUMBER,
    BY_NOTHING /* zero bytes */
};

enum {
    ANY_SIZE = -1,
    NO_BIT = -1
};

static const struct {
    int size;
    int fds; /* at most */
    int bit; /* of the protocol features; 30: they must be offered */
    int failure;
    int (*handle)(user_backend *self, message *m);
} rules[REQUESTS] = {
    [1] = {0, 0, NO_BIT, BY_CLOSING, get_features},
    [2] = {8, 0, NO_BIT, BY_ACK, set_features},
    [3] = {0, 0, NO_BIT, BY_ACK, set_owner},
    [4] = {0, 0, NO_BIT, BY_ACK, reset_owner},
    [5] = {ANY_SIZE, 8, NO_BIT, BY_ACK, set_mem_table},
    [6] = {16, 1, NO_BIT, BY_CLOSING, set_log_base},
    [7] = {0, 1, NO_BIT, BY_ACK, set_log_fd},
    [8] = {8, 0, NO_BIT, BY_ACK, set_vring_num},
    [9] = {40, 0, NO_BIT, BY_ACK, set_vring_addr},
    [10] = {8, 0, NO_BIT, BY_ACK, set_vring_base},
    [11] = {8, 0, NO_BIT, BY_CLOSING, get_vring_base},
    [12] = {8, 1, NO_BIT, BY_ACK, set_vring_kick},
    [13] = {8, 1, NO_BIT, BY_ACK, set_vring_call},
    [14] = {8, 1, NO_BIT, BY_ACK, set_vring_err},
    [15] = {0, 0, F_PROTOCOL, BY_CLOSING, get_protocol_features},
    [16] = {8, 0, F_PROTOCOL, BY_ACK, set_protocol_features},
    [17] = {0, 0, P_MQ, BY_CLOSING, get_queue_num},
    [18] = {8, 0, F_PROTOCOL, BY_ACK, set_vring_enable},
    [19] = {8, 0, P_RARP, BY_ACK, send_rarp},
    [20] = {8, 0, P_MTU, BY_ACK, net_set_mtu},
    [21] = {0, 1, P_BACKEND_REQ, BY_ACK, set_backend_req_fd},
    [22] = {32, 0, NO_BIT, BY_NUMBER, iotlb_msg},
    [23] = {8, 0, P_CROSS_ENDIAN, BY_ACK, set_vring_endian},
    [24] = {ANY_SIZE, 0, P_CONFIG, BY_NOTHING, get_config},
    [25] = {ANY_SIZE, 0, P_CONFIG, BY_ACK, set_config},
    [26] = {ANY_SIZE, 0, P_CRYPTO, BY_CLOSING, create_crypto},
    [27] = {8, 0, P_CRYPTO, BY_ACK, close_crypto},
    [28] = {0, 0, P_PAGEFAULT, BY_CLOSING, postcopy_advise},
    [29] = {0, 0, P_PAGEFAULT, BY_ACK, postcopy_listen},
    [30] = {0, 0, P_PAGEFAULT, BY_NUMBER, postcopy_end},
    [31] = {24, 0, P_INFLIGHT, BY_CLOSING, get_inflight_fd},
    [32] = {24, 1, P_INFLIGHT, BY_ACK, set_inflight_fd},
    [33] = {0, 1, NO_BIT, BY_ACK, gpu_set_socket},
    [34] = {0, 0, P_RESET, BY_ACK, reset_message},
    [35] = {8, 0, P_INBAND, BY_ACK, vring_kick},
    [36] = {0, 0, P_SLOTS, BY_CLOSING, get_max_mem_slots},
    [37] = {40, 1, P_SLOTS, BY_ACK, add_mem_reg},
    [38] = {40, 1, P_SLOTS, BY_ACK, rem_mem_reg},
    [39] = {8, 0, P_STATUS, BY_ACK, set_status},
    [40] = {0, 0, P_STATUS, BY_CLOSING, get_status},
    [41] = {16, 0, P_OBJECT, BY_NOTHING, get_shared_object},
    [42] = {8, 1, P_STATE, BY_NUMBER, set_device_state_fd},
    [43] = {0, 0, P_STATE, BY_NUMBER, check_device_state},
    [44] = {0, 0, P_SHMEM, BY_CLOSING, get_shmem_config},
    [45] = {8, 0, P_SKIP_DRAIN, BY_CLOSING, get_vring_base},
};

/* In postcopy the answer to these has something to say. */
static bool has_own_answer(const user_backend *self, uint32_t id)
{
    bool memory = id == 5 || id == 37;
    bool log = id == 6 && has(self->c.protocol, P_LOG_SHMFD);
    return id < REQUESTS &&
           (memory ? self->c.postcopy : log || (id != 6 && rules[id].failure != BY_ACK));
}

static int check_rules(user_backend *self, const message *m)
{
    if (m->request >= REQUESTS || !rules[m->request].handle) {
        return complain(self, "the unknown message %u", m->request);
    }
    int size = rules[m->request].size, bit = rules[m->request].bit;
    if (size != ANY_SIZE && m->size != (uint32_t)size) {
        return complain(self, "message %u with %u bytes", m->request, m->size);
    }
    if (m->fd_count > (unsigned)rules[m->request].fds) {
        return complain(self, "message %u with %u fds", m->request, m->fd_count);
    }
    if (m->flags & REPLY) {
        return complain(self, "message %u is a reply", m->request);
    }
    uint64_t bits = bit == F_PROTOCOL ? self->options.features : self->c.protocol;
    if (bit != NO_BIT && !has(bits, (unsigned)bit)) {
        return complain(self, "message %u was not negotiated", m->request);
    }
    return 0;
}

static int answer_failure(user_backend *self, const message *m, bool wants_ack)
{
    int failure = m->request < REQUESTS ? rules[m->request].failure : BY_ACK;
    if (failure == BY_NUMBER) {
        return answer_number(self, m, m->request == 42 ? 0x101 : 1);
    }
    if (failure == BY_NOTHING) {
        return answer(self, m, NULL, 0, -1);
    }
    if (!wants_ack) {
        return -EPROTO;
    }
    count(self, USER_BACKEND_NACKS);
    return answer_number(self, m, 1);
}

/* A front-end that asks to listen for page faults waits for an ack, whatever was negotiated. */
static int handle(user_backend *self, message *m, bool refused)
{
    bool acks = has(self->c.protocol, P_REPLY_ACK) || m->request == 29;
    bool wants_ack = acks && m->flags & NEED_REPLY && !has_own_answer(self, m->request);
    if (self->c.ack_awaited == m->request && m->size == 8 && !m->fd_count) {
        self->c.ack_awaited = 0;
        return 0;
    }
    int code = check_rules(self, m);
    if (code == 0) {
        code = refused ? -EIO : rules[m->request].handle(self, m);
    }
    if (code < 0) {
        return answer_failure(self, m, wants_ack);
    }
    if (wants_ack) {
        count(self, USER_BACKEND_ACKS);
        code = answer_number(self, m, 0);
    }
    return code;
}

static bool snaps(user_backend *self, user_backend_trap trap, uint32_t id)
{
    shared *s = self->shared;
    uint32_t left = get(&s->trap_left[trap]);
    if (!left || (get(&s->trap_id[trap]) && get(&s->trap_id[trap]) != id)) {
        return false;
    }
    set(&s->trap_left[trap], left - 1);
    return left == 1;
}

static void stall(user_backend *self)
{
    count(self, USER_BACKEND_STALLED);
    while (!get(&self->shared->release) && await_fd(self, -1, 0, -1)) {
    }
    set(&self->shared->release, 0);
}

static int die(user_backend *self)
{
    if (self->options.forks) {
        count(self, USER_BACKEND_ENDED);
        _exit(1);
    }
    return -EPIPE;
}

/* A negative result ends the connection. */
static int serve_message(user_backend *self)
{
    message m;
    int code = receive(self, self->c.fd, &m);
    if (code == 0) {
        count(self, USER_BACKEND_MESSAGES);
        count(self, USER_BACKEND_RECEIVED + m.request % 64);
        bool dies_after = snaps(self, USER_BACKEND_DIE_AFTER, m.request);
        bool refused = snaps(self, USER_BACKEND_NACK, m.request);
        if (snaps(self, USER_BACKEND_STALL, m.request)) {
            stall(self);
        }
        code = snaps(self, USER_BACKEND_DIE, m.request) ? die(self) : handle(self, &m, refused);
        code = dies_after ? die(self) : code;
        if (code == 0 && self->c.answered && is_dry(self)) {
            count(self, USER_BACKEND_WAITS);
            self->c.answered = false;
        }
    }
    close_fds(&m);
    return code;
}

/* An answer to a request of ours. A channel that fails is given up, and nothing else. */
static void serve_channel(user_backend *self)
{
    message m;
    if (receive(self, self->c.channel, &m) == 0) {
        uint64_t value = m.size == 8 ? number_at(&m, 0) : UINT64_MAX;
        for (unsigned i = 0; i < m.fd_count; i++) {
            count(self, USER_BACKEND_CHANNEL_FDS);
        }
        set(&self->shared->counters[USER_BACKEND_CHANNEL_VALUE], (uint32_t)value);
        count(self, USER_BACKEND_CHANNEL_ANSWERS);
    } else {
        close_fd(&self->c.channel);
    }
    close_fds(&m);
}

static void say(user_backend *self)
{
    shared *s = self->shared;
    if (get(&s->say) != SAY_IT) {
        return;
    }
    uint32_t way = get(&s->say_way), size = get(&s->say_size);
    int to = way & USER_BACKEND_ON_CHANNEL ? self->c.channel : self->c.fd, code = -EBADF;
    int passed = way & USER_BACKEND_WITH_FD ? memfd_create("passed", MFD_CLOEXEC) : -1;
    if (passed >= 0) {
        (void)!ftruncate(passed, 1 << 16);
    }
    if (to >= 0 && way & USER_BACKEND_WITHOUT_HEADER) {
        code = send_message(self, to, s->say_payload, size, passed);
    } else if (to >= 0) {
        uint32_t flags = VERSION | (way & USER_BACKEND_NEED_REPLY ? NEED_REPLY : 0);
        code =
            compose_and_send(self, to, get(&s->say_request), flags, s->say_payload, size, passed);
    }
    close_fd(&passed);
    set(&s->say, code == 0 ? SAID : NOT_SAID);
}

/* ---- the loop ---- */

static void begin_connection(user_backend *self, int fd)
{
    connection *c = &self->c;
    memset(c, 0, sizeof *c);
    c->fd = fd;
    c->channel = c->log_call = c->state_fd = -1;
    for (unsigned i = 0; i < USER_BACKEND_QUEUES; i++) {
        c->rings[i].kick = c->rings[i].call = c->rings[i].error = -1;
    }
    count(self, USER_BACKEND_CONNECTIONS);
}

/* As a process that dies: nothing is completed, nobody is told. */
static void end_connection(user_backend *self)
{
    connection *c = &self->c;
    for (unsigned i = 0; i < USER_BACKEND_QUEUES; i++) {
        discard_requests(&c->rings[i]);
        close_fd(&c->rings[i].kick);
        close_fd(&c->rings[i].call);
        close_fd(&c->rings[i].error);
    }
    remove_regions(c);
    unmap(&c->log);
    unmap(&c->inflight);
    close_fd(&c->channel);
    close_fd(&c->log_call);
    close_fd(&c->state_fd);
    close_fd(&c->fd);
    set(&self->shared->kill, 0);
    count(self, USER_BACKEND_ENDED);
}

static int time_to_next(const user_backend *self)
{
    uint64_t time = now_ms();
    int wait = -1;
    for (unsigned i = 0; i < self->options.queues; i++) {
        const ring *r = &self->c.rings[i];
        if (r->polled && r->kickable) {
            return 1;
        }
        for (const request *q = r->started ? r->first : NULL; q; q = q->next) {
            int left = q->due > time ? (int)(q->due - time) : 0;
            wait = q->due && (wait < 0 || left < wait) ? left : wait;
        }
    }
    return wait;
}

static void take_kick(ring *r)
{
    uint64_t kicks;
    if (read(r->kick, &kicks, sizeof kicks) > 0) {
        r->kicked = true;
    }
}

static void run_rings(user_backend *self)
{
    for (unsigned i = 0; i < self->options.queues; i++) {
        ring *r = &self->c.rings[i];
        r->kicked |= r->polled && r->kickable;
        run_ring(self, r);
    }
}

/* Returns false at the end of the connection. */
static bool serve_once(user_backend *self)
{
    connection *c = &self->c;
    struct pollfd fds[4 + USER_BACKEND_QUEUES] = {
        {c->fd, POLLIN, 0},
        {c->channel, POLLIN, 0},
        {c->state_fd, (short)(c->state_loads ? POLLIN : POLLOUT), 0},
        {self->wake, POLLIN, 0},
    };
    uint64_t drained;
    for (unsigned i = 0; i < self->options.queues; i++) {
        fds[4 + i].fd = c->rings[i].kick;
        fds[4 + i].events = POLLIN;
    }
    if (poll(fds, 4 + self->options.queues, time_to_next(self)) < 0) {
        return errno == EINTR;
    }
    if (fds[3].revents && !leaves(self)) {
        (void)!read(self->wake, &drained, sizeof drained);
    }
    for (unsigned i = 0; i < self->options.queues; i++) {
        if (fds[4 + i].revents & POLLIN) {
            take_kick(&c->rings[i]);
        }
    }
    if (fds[1].revents) {
        serve_channel(self);
    }
    if (fds[2].revents) {
        move_state(self);
    }
    run_rings(self);
    return !fds[0].revents || serve_message(self) == 0;
}

static void serve_connection(user_backend *self, int fd)
{
    begin_connection(self, fd);
    while (!leaves(self)) {
        say(self);
        run_rings(self);
        if (!serve_once(self)) {
            break;
        }
    }
    end_connection(self);
}

static int dial(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    strncpy(address.sun_path, path, sizeof address.sun_path - 1);
    if (connect(fd, (struct sockaddr *)&address, sizeof address) != 0) {
        close_fd(&fd);
    }
    return fd;
}

/* The next connection; -1: there will be none. */
static int next_connection(user_backend *self)
{
    int fd = self->options.fd;
    self->options.fd = -1;
    while (fd < 0 && !get(&self->shared->stop)) {
        set(&self->shared->kill, 0);
        if (self->listener >= 0) {
            if (await_fd(self, self->listener, POLLIN, -1)) {
                fd = accept4(self->listener, NULL, NULL, SOCK_CLOEXEC);
            }
        } else if (self->options.connect_path) {
            fd = dial(self->options.connect_path);
            if (fd < 0) {
                await_fd(self, -1, 0, 5);
            }
        } else {
            return -1;
        }
    }
    return fd;
}

static void *serve_connections(void *user)
{
    user_backend *self = (user_backend *)user;
    sigset_t broken_pipe; /* a front-end may close the one that its state goes to */
    int fd;
    sigemptyset(&broken_pipe);
    sigaddset(&broken_pipe, SIGPIPE);
    pthread_sigmask(SIG_BLOCK, &broken_pipe, NULL);
    while ((fd = next_connection(self)) >= 0) {
        serve_connection(self, fd);
    }
    close_fd(&self->listener);
    set(&self->shared->over, 1);
    return NULL;
}

/* ---- what others call ---- */

user_backend_options user_backend_defaults(user_backend_device device)
{
    user_backend_options options;
    memset(&options, 0, sizeof options);
    options.fd = -1;
    options.features =
        BIT(F_LOG_ALL) | BIT(F_INDIRECT) | BIT(F_EVENT_IDX) | BIT(F_PROTOCOL) | BIT(F_VERSION_1);
    options.protocol = USER_BACKEND_PROTOCOL;
    options.queues = 8;
    options.slots = 32;
    options.config_size = 64;
    options.log_answer = 8;
    options.device = device;
    options.disk_size = 1 << 20;
    return options;
}

static bool open_disk(user_backend *self)
{
    user_backend_options *o = &self->options;
    struct stat status;
    int fd = -1;
    if (o->device != USER_BACKEND_DISK) {
        return true;
    }
    if (o->disk_path) {
        fd = open(o->disk_path, O_RDWR | O_CLOEXEC);
        if (fd < 0 || fstat(fd, &status) != 0) {
            close_fd(&fd);
            return false;
        }
        o->disk_size = (uint64_t)status.st_size;
    }
    self->owns_disk = fd >= 0 || !o->disk;
    if (self->owns_disk) {
        o->disk = mmap(NULL, (size_t)o->disk_size, PROT_READ | PROT_WRITE,
                       fd >= 0 ? MAP_SHARED : MAP_SHARED | MAP_ANONYMOUS, fd, 0);
        self->owns_disk = o->disk != MAP_FAILED;
    }
    close_fd(&fd);
    uint64_t capacity = htole64(o->disk_size / USER_BACKEND_BLOCK);
    memcpy(self->shared->config, &capacity, sizeof capacity);
    return o->disk != MAP_FAILED;
}

static bool open_listener(user_backend *self)
{
    const char *path = self->options.listen_path;
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (!path) {
        return true;
    }
    if (strlen(path) >= sizeof address.sun_path) {
        return false;
    }
    strcpy(address.sun_path, path);
    unlink(path);
    self->listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    return bind(self->listener, (struct sockaddr *)&address, sizeof address) == 0 &&
           listen(self->listener, 8) == 0;
}

/* What the child has of its parent's fds would keep the other ends of sockets open. */
static void close_all_but(const int *kept, unsigned kept_count)
{
    int fds[1024];
    unsigned found = 0;
    DIR *folder = opendir("/proc/self/fd");
    struct dirent *entry;
    while (folder && (entry = readdir(folder)) && found < 1024) {
        int fd = atoi(entry->d_name);
        bool keep = fd <= 2 || fd == dirfd(folder);
        for (unsigned i = 0; i < kept_count; i++) {
            keep |= fd == kept[i];
        }
        if (!keep) {
            fds[found++] = fd;
        }
    }
    if (folder) {
        closedir(folder);
    }
    while (found) {
        close(fds[--found]);
    }
}

static bool fork_off(user_backend *self)
{
    pid_t parent = getpid();
    self->process = fork();
    if (self->process == 0) {
        const int kept[3] = {self->wake, self->listener, self->options.fd};
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() == parent) {
            close_all_but(kept, 3);
            serve_connections(self);
        }
        _exit(0);
    }
    close_fd(&self->listener);
    close_fd(&self->options.fd);
    return self->process > 0;
}

static void release_all(user_backend *self)
{
    close_fd(&self->listener);
    close_fd(&self->options.fd);
    close_fd(&self->wake);
    if (self->owns_disk) {
        munmap(self->options.disk, (size_t)self->options.disk_size);
    }
    if (self->shared) {
        munmap(self->shared, sizeof *self->shared);
    }
    free(self);
}

user_backend *user_backend_start(const user_backend_options *options)
{
    user_backend *self = (user_backend *)calloc(1, sizeof *self);
    self->options = *options;
    self->listener = -1;
    self->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    void *memory =
        mmap(NULL, sizeof *self->shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    self->shared = memory == MAP_FAILED ? NULL : (shared *)memory;
    bool ready = self->shared && self->wake >= 0 && options->queues <= USER_BACKEND_QUEUES &&
                 options->config_size <= USER_BACKEND_CONFIG && open_disk(self) &&
                 open_listener(self);
    if (ready) {
        ready = options->forks ? fork_off(self)
                               : pthread_create(&self->thread, NULL, serve_connections, self) == 0;
    }
    if (!ready) {
        release_all(self);
        return NULL;
    }
    return self;
}

static void wake(user_backend *self)
{
    uint64_t one = 1;
    (void)!write(self->wake, &one, sizeof one);
}

static void join(user_backend *self)
{
    if (!self->options.forks) {
        pthread_join(self->thread, NULL);
    } else if (self->process > 0) {
        waitpid(self->process, NULL, 0);
        self->process = 0;
    }
}

void user_backend_stop(user_backend *self)
{
    set(&self->shared->stop, 1);
    wake(self);
    join(self);
    if (self->options.listen_path) {
        unlink(self->options.listen_path);
    }
    release_all(self);
}

static void rest(void)
{
    nanosleep(&(struct timespec){.tv_nsec = 200000}, NULL);
}

void user_backend_kill(user_backend *self)
{
    if (self->options.forks) {
        if (self->process > 0) {
            kill(self->process, SIGKILL);
            join(self);
            set(&self->shared->counters[USER_BACKEND_ENDED],
                get(&self->shared->counters[USER_BACKEND_CONNECTIONS]));
        }
        return;
    }
    set(&self->shared->kill, 1);
    wake(self);
    while (get(&self->shared->kill) && !get(&self->shared->over)) {
        rest();
    }
}

uint32_t user_backend_count(const user_backend *self, unsigned counter)
{
    return get(&self->shared->counters[counter]);
}

enum {
    PATIENCE_MS = 10000
};

bool user_backend_await(const user_backend *self, unsigned counter, uint32_t at_least)
{
    uint64_t start = now_ms();
    while (user_backend_count(self, counter) < at_least && now_ms() - start < PATIENCE_MS) {
        rest();
    }
    return user_backend_count(self, counter) >= at_least;
}

const char *user_backend_complaint(const user_backend *self)
{
    return get(&self->shared->complained) ? self->shared->complaint : "";
}

unsigned char *user_backend_disk(const user_backend *self)
{
    return (unsigned char *)self->options.disk;
}

unsigned char *user_backend_config(const user_backend *self)
{
    return self->shared->config;
}

unsigned char *user_backend_state(const user_backend *self, uint32_t **size)
{
    *size = &self->shared->state_size;
    return self->shared->state;
}

void user_backend_arm(user_backend *self, user_backend_trap trap, unsigned nth, unsigned id)
{
    set(&self->shared->trap_left[trap], 0);
    set(&self->shared->trap_id[trap], id);
    set(&self->shared->trap_left[trap], nth);
}

void user_backend_release(user_backend *self)
{
    set(&self->shared->release, 1);
    wake(self);
}

void user_backend_hold(user_backend *self, unsigned every, unsigned ms)
{
    set(&self->shared->hold_ms, ms);
    set(&self->shared->hold_every, every);
}

bool user_backend_say(user_backend *self, uint32_t id, const void *payload, uint32_t size,
                      unsigned way)
{
    shared *s = self->shared;
    uint64_t start = now_ms();
    memcpy(s->say_payload, payload, size);
    set(&s->say_request, id);
    set(&s->say_size, size);
    set(&s->say_way, way);
    set(&s->say, SAY_IT);
    wake(self);
    while (get(&s->say) == SAY_IT && !get(&s->over) && now_ms() - start < PATIENCE_MS) {
        rest();
    }
    return get(&s->say) == SAID;
}
