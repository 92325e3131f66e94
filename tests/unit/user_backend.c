/* The back-end of the tests itself, spoken to byte by byte. */
#define _GNU_SOURCE
#include "fixture.h"
#include "user_backend.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define BIT(n) (UINT64_C(1) << (n))
#define GPA    UINT64_C(0x100000)
#define USER   UINT64_C(0x7000000000)

enum {
    MEMORY = 1 << 20,
    RING = 8,
    QUEUE_SPACE = 0x4000, /* of a queue: descriptors, and its other two parts */
    AVAIL = 0x1000,
    USED = 0x2000,
    DATA = 0x40000,
    LOG_SIZE = 4096,
    PATIENCE = 10000,
    PACKED = 34,
    IOMMU = 33,
    PROTOCOL = 30,
    LOG_ALL = 26,
    EVENT_IDX = 29,
    INBAND = 14, /* protocol features */
    INFLIGHT_BASE = 20,
    GPA_ADDRESSES = 21
};

typedef struct descriptor { /* of a packed ring; a split one has flags and next at its end */
    uint64_t address;
    uint32_t size;
    uint16_t id, flags;
} descriptor;

typedef struct driver_ring {
    int kick, call;
    uint16_t next, used;
    bool wrap, used_wrap;
} driver_ring;

typedef struct peer {
    user_backend *backend;
    user_backend_options options;
    int fd, channel;
    uint64_t features;
    int memory_fd;
    unsigned char *memory;
    unsigned char disk[64 * 1024];
    driver_ring rings[4];
} peer;

/* ---- messages ---- */

static bool send_raw(int fd, const void *bytes, size_t size, int passed)
{
    char control[CMSG_SPACE(sizeof(int))] = {0};
    struct iovec iov = {(void *)(uintptr_t)bytes, size};
    struct msghdr header = {.msg_iov = &iov, .msg_iovlen = 1};
    if (passed >= 0) {
        header.msg_control = control;
        header.msg_controllen = sizeof control;
        struct cmsghdr *part = CMSG_FIRSTHDR(&header);
        part->cmsg_level = SOL_SOCKET;
        part->cmsg_type = SCM_RIGHTS;
        part->cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(part), &passed, sizeof passed);
    }
    return sendmsg(fd, &header, MSG_NOSIGNAL) == (ssize_t)size;
}

static bool say(peer *p, uint32_t id, uint32_t flags, const void *payload, uint32_t size,
                int passed)
{
    unsigned char bytes[600];
    const uint32_t header[3] = {id, flags, size};
    memcpy(bytes, header, 12);
    if (size) {
        memcpy(bytes + 12, payload, size);
    }
    return send_raw(p->fd, bytes, 12 + size, passed);
}

/* Returns bytes of payload, or -1: the end, or no answer to this; *fd is -1, or the caller's. */
static int hear_on(int socket, uint32_t id, uint32_t flags, void *payload, size_t room, int *fd)
{
    uint32_t header[3];
    char control[CMSG_SPACE(sizeof(int))];
    struct iovec iov = {header, 12};
    struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1};
    struct pollfd input = {socket, POLLIN, 0};
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    if (fd) {
        *fd = -1;
    }
    if (poll(&input, 1, PATIENCE) != 1 || recvmsg(socket, &message, MSG_WAITALL) != 12 ||
        header[0] != id || header[1] != flags || header[2] > room) {
        return -1;
    }
    struct cmsghdr *part = CMSG_FIRSTHDR(&message);
    if (part && fd) {
        memcpy(fd, CMSG_DATA(part), sizeof *fd);
    } else if (part) {
        return -1;
    }
    if (header[2] && recv(socket, payload, header[2], MSG_WAITALL) != (ssize_t)header[2]) {
        return -1;
    }
    return (int)header[2];
}

static int hear(peer *p, uint32_t id, void *payload, size_t room, int *fd)
{
    return hear_on(p->fd, id, 5, payload, room, fd);
}

static enum greatest_test_res ask(peer *p, uint32_t id, uint64_t expected)
{
    uint64_t value = ~expected;
    ASSERT(say(p, id, 1, NULL, 0, -1));
    ASSERT_INT(8, hear(p, id, &value, 8, NULL));
    ASSERT_U64(expected, value);
    PASS();
}

/* Sends, and expects the ack. */
static enum greatest_test_res tell(peer *p, uint32_t id, const void *payload, uint32_t size, int fd,
                                   uint64_t verdict)
{
    uint64_t value = ~verdict;
    ASSERT(say(p, id, 9, payload, size, fd));
    ASSERT_INT(8, hear(p, id, &value, 8, NULL));
    ASSERT_U64(verdict, value);
    PASS();
}

static enum greatest_test_res tell_number(peer *p, uint32_t id, uint64_t value, int fd)
{
    return tell(p, id, &value, 8, fd, 0);
}

static enum greatest_test_res tell_state(peer *p, uint32_t id, uint32_t queue, uint32_t value)
{
    const uint32_t state[2] = {queue, value};
    return tell(p, id, state, 8, -1, 0);
}

static bool is_closed(peer *p)
{
    char byte;
    struct pollfd input = {p->fd, POLLIN, 0};
    return poll(&input, 1, PATIENCE) == 1 && recv(p->fd, &byte, 1, 0) <= 0;
}

/* ---- a connection ---- */

static enum greatest_test_res connect_pair(peer *p)
{
    int ends[2];
    ASSERT_INT(0, socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends));
    p->fd = ends[0];
    p->options.fd = ends[1];
    p->backend = user_backend_start(&p->options);
    ASSERT(p->backend);
    PASS();
}

static enum greatest_test_res negotiate(peer *p)
{
    CHECK_CALL(ask(p, 1, p->options.features));
    CHECK_CALL(ask(p, 15, p->options.protocol));
    uint64_t protocol = p->options.protocol & ~(BIT(INFLIGHT_BASE) | BIT(GPA_ADDRESSES));
    ASSERT(say(p, 16, 1, &protocol, 8, -1));
    int ends[2];
    ASSERT_INT(0, socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends));
    p->channel = ends[0];
    CHECK_CALL(tell(p, 21, NULL, 0, ends[1], 0));
    close(ends[1]);
    CHECK_CALL(tell(p, 3, NULL, 0, -1, 0));
    return tell_number(p, 2, p->features, -1);
}

static enum greatest_test_res give_memory(peer *p)
{
    const uint64_t region[5] = {0, GPA, MEMORY, USER, 0};
    return tell(p, 37, region, sizeof region, p->memory_fd, 0);
}

static uint64_t address_in(uint32_t offset)
{
    return USER + offset;
}

static enum greatest_test_res set_addresses(peer *p, uint32_t q, bool logs)
{
    uint32_t at = q * QUEUE_SPACE;
    bool packed = p->features >> PACKED & 1;
    const uint32_t index[2] = {q, logs};
    uint64_t address[5] = {0, address_in(at), address_in(at + USED), address_in(at + AVAIL),
                           GPA + at + (packed ? 0 : USED)};
    memcpy(address, index, sizeof index);
    return tell(p, 9, address, sizeof address, -1, 0);
}

static enum greatest_test_res set_up_ring(peer *p, uint32_t q, uint32_t base)
{
    CHECK_CALL(tell_state(p, 8, q, RING));
    CHECK_CALL(tell_state(p, 10, q, base));
    CHECK_CALL(set_addresses(p, q, false));
    CHECK_CALL(tell_number(p, 13, q, p->rings[q].call));
    CHECK_CALL(tell_number(p, 12, q, p->rings[q].kick));
    return tell_state(p, 18, q, 1);
}

static enum greatest_test_res begin(peer *p, uint64_t more_features)
{
    p->options.features |= more_features;
    p->features = p->options.features & ~(BIT(LOG_ALL) | BIT(EVENT_IDX));
    CHECK_CALL(connect_pair(p));
    CHECK_CALL(negotiate(p));
    return give_memory(p);
}

/* ---- a driver ---- */

static void make_available(peer *p, uint32_t q, const descriptor *chain, uint16_t count)
{
    driver_ring *r = &p->rings[q];
    descriptor *ring = (descriptor *)(void *)(p->memory + q * QUEUE_SPACE);
    bool packed = p->features >> PACKED & 1;
    uint16_t head = (uint16_t)(r->next % RING), first = 0;
    for (uint16_t i = 0; i < count; i++) {
        uint16_t at = (uint16_t)((head + i) % RING);
        uint16_t flags = (uint16_t)(chain[i].flags | (i + 1 < count));
        ring[at].address = address_in((uint32_t)chain[i].address);
        ring[at].size = chain[i].size;
        if (packed) {
            ring[at].id = (uint16_t)(100 + head);
            flags = (uint16_t)(flags | (r->wrap ? 0x80 : 0x8000));
            r->wrap ^= at == RING - 1;
            if (i == 0) {
                first = flags;
            } else {
                ring[at].flags = flags;
            }
        } else {
            ring[at].id = flags;
            ring[at].flags = (uint16_t)((at + 1) % RING);
        }
    }
    r->next = (uint16_t)(r->next + count);
    if (packed) {
        __atomic_store_n(&ring[head].flags, first, __ATOMIC_SEQ_CST);
    } else {
        uint16_t *avail = (uint16_t *)(void *)(p->memory + q * QUEUE_SPACE + AVAIL);
        avail[2 + avail[1] % RING] = head;
        __atomic_store_n(&avail[1], (uint16_t)(avail[1] + 1), __ATOMIC_SEQ_CST);
    }
    uint64_t one = 1;
    (void)!write(r->kick, &one, 8);
}

static bool is_called(peer *p, uint32_t q, int timeout)
{
    uint64_t calls;
    struct pollfd call = {p->rings[q].call, POLLIN, 0};
    return poll(&call, 1, timeout) == 1 && read(call.fd, &calls, 8) == 8;
}

/* The next used buffer: which, and how many bytes were written; `count` is that of its chain. */
static enum greatest_test_res take_used(peer *p, uint32_t q, uint16_t count, uint32_t *id,
                                        uint32_t *size)
{
    driver_ring *r = &p->rings[q];
    if (p->features >> PACKED & 1) {
        descriptor *at = (descriptor *)(void *)(p->memory + q * QUEUE_SPACE) + r->used;
        uint16_t flags = __atomic_load_n(&at->flags, __ATOMIC_SEQ_CST);
        ASSERT_INT(r->used_wrap, flags >> 7 & 1);
        ASSERT_INT(r->used_wrap, flags >> 15);
        *id = at->id - 100u;
        *size = at->size;
        r->used_wrap ^= r->used + count >= RING;
        r->used = (uint16_t)((r->used + count) % RING);
    } else {
        uint16_t *used = (uint16_t *)(void *)(p->memory + q * QUEUE_SPACE + USED);
        uint32_t *elements = (uint32_t *)(void *)(used + 2);
        ASSERT((uint16_t)(__atomic_load_n(&used[1], __ATOMIC_SEQ_CST) - r->used) > 0);
        *id = elements[2 * (r->used % RING)];
        *size = elements[2 * (r->used % RING) + 1];
        r->used++;
    }
    PASS();
}

/* Offers a disk request; its header is at `at`, then the status, and a page further the data. */
static void ask_disk(peer *p, uint32_t type, uint64_t sector, uint32_t at, uint32_t size)
{
    memcpy(p->memory + at, &type, 4);
    memcpy(p->memory + at + 8, &sector, 8);
    p->memory[at + 16] = 0xff;
    const descriptor chain[3] = {
        {at, 16, 0, 0}, {at + 0x1000, size, 0, type == 1 ? 0 : 2}, {at + 16, 1, 0, 2}};
    make_available(p, 0, chain, 3);
}

static enum greatest_test_res finish_disk(peer *p, uint32_t at, uint32_t written,
                                          unsigned char status)
{
    uint32_t id, size;
    ASSERT(is_called(p, 0, PATIENCE));
    CHECK_CALL(take_used(p, 0, 3, &id, &size));
    ASSERT_UINT(written, size);
    ASSERT_UINT(status, p->memory[at + 16]);
    PASS();
}

static enum greatest_test_res stop_at(peer *p, uint32_t q, uint32_t base)
{
    const uint32_t state[2] = {q, 0};
    uint32_t answer[2];
    ASSERT(say(p, 11, 1, state, 8, -1));
    ASSERT_INT(8, hear(p, 11, answer, 8, NULL));
    ASSERT_UINT(q, answer[0]);
    ASSERT_UINT(base, answer[1]);
    PASS();
}

/* ---- every test runs in a fresh peer, and leaves nothing behind ---- */

static unsigned shared_mappings(void)
{
    unsigned found = 0;
    char line[512];
    FILE *maps = fopen("/proc/self/maps", "r");
    while (maps && fgets(line, sizeof line, maps)) {
        found += strstr(line, "-s ") != NULL;
    }
    if (maps) {
        fclose(maps);
    }
    return found;
}

static void set_up(peer *p, user_backend_device device)
{
    memset(p, 0, sizeof *p);
    p->fd = p->channel = -1;
    p->options = user_backend_defaults(device);
    p->options.disk = p->disk;
    p->options.disk_size = sizeof p->disk;
    p->memory_fd = memfd_create("ram", MFD_CLOEXEC);
    (void)!ftruncate(p->memory_fd, MEMORY);
    p->memory =
        (unsigned char *)mmap(NULL, MEMORY, PROT_READ | PROT_WRITE, MAP_SHARED, p->memory_fd, 0);
    for (int q = 0; q < 4; q++) {
        p->rings[q].kick = eventfd(0, EFD_CLOEXEC);
        p->rings[q].call = eventfd(0, EFD_CLOEXEC);
        p->rings[q].wrap = p->rings[q].used_wrap = true;
    }
}

static void disconnect(peer *p)
{
    if (p->backend) {
        user_backend_stop(p->backend);
    }
    if (p->fd >= 0) {
        close(p->fd);
    }
    if (p->channel >= 0) {
        close(p->channel);
    }
    p->backend = NULL;
    p->fd = p->channel = -1;
}

static void tear_down(peer *p)
{
    disconnect(p);
    munmap(p->memory, MEMORY);
    close(p->memory_fd);
    for (int q = 0; q < 4; q++) {
        close(p->rings[q].kick);
        close(p->rings[q].call);
    }
}

typedef enum greatest_test_res peer_test(peer *p);

static enum greatest_test_res run(peer_test *test, user_backend_device device)
{
    static peer p;
    int fds = fixture_open_fds();
    unsigned mappings = shared_mappings();
    set_up(&p, device);
    enum greatest_test_res result = test(&p);
    if (result == GREATEST_TEST_RES_FAIL && p.backend) {
        printf("\nit complained: \"%s\"\n", user_backend_complaint(p.backend));
    }
    tear_down(&p);
    CHECK_CALL(result);
    ASSERT_INT(fds, fixture_open_fds());
    ASSERT_UINT(mappings, shared_mappings());
    PASS();
}

#define RUN_PEER(TEST_NAME, DEVICE)                                                                \
    do {                                                                                           \
        if (greatest_test_pre(#TEST_NAME) == 1) {                                                  \
            greatest_test_post(run(TEST_NAME, DEVICE));                                            \
        }                                                                                          \
    } while (0)

/* ---- the tests ---- */

TEST answers_are_what_the_wire_says(peer *p)
{
    static const unsigned char get_features[12] = {1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0};
    static const unsigned char features[20] = {1, 0, 0, 0, 5, 0,    0, 0, 8, 0,
                                               0, 0, 0, 0, 0, 0x40, 1, 0, 0, 0};
    static const unsigned char twice[24] = {36, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0,
                                            17, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0};
    unsigned char bytes[40];
    uint16_t one = 1;
    p->options.features = BIT(32) | BIT(PROTOCOL);
    CHECK_CALL(connect_pair(p));
    if (*(unsigned char *)&one == 0) {
        SKIPm("the bytes are those of a little-endian machine");
    }
    ASSERT(send_raw(p->fd, get_features, sizeof get_features, -1));
    ASSERT_INT(20, (int)recv(p->fd, bytes, 20, MSG_WAITALL));
    ASSERT_MEM_EQ(features, bytes, 20);
    CHECK_CALL(ask(p, 15, p->options.protocol));
    ASSERT(say(p, 16, 1, &p->options.protocol, 8, -1));
    ASSERT(send_raw(p->fd, twice, sizeof twice, -1));
    ASSERT_INT(40, (int)recv(p->fd, bytes, 40, MSG_WAITALL));
    ASSERT_UINT(32, bytes[12]);
    ASSERT_UINT(8, bytes[32]);
    ASSERT_UINT(1, user_backend_count(p->backend, USER_BACKEND_RECEIVED + 17));
    ASSERT_UINT(5, user_backend_count(p->backend, USER_BACKEND_MESSAGES));
    ASSERT_UINT(4, user_backend_count(p->backend, USER_BACKEND_ANSWERS));
    ASSERT_STR_EQ("", user_backend_complaint(p->backend));
    PASS();
}

static enum greatest_test_res use_disk(peer *p)
{
    unsigned char *data = p->memory + DATA + 0x1000;
    memset(data, 0x5a, 1024);
    ask_disk(p, 1, 3, DATA, 1024);
    CHECK_CALL(finish_disk(p, DATA, 1, 0));
    ASSERT_UINT(0x5a, p->disk[3 * 512 + 1023]);
    ASSERT_UINT(0, p->disk[3 * 512 + 1024]);
    memset(data, 0, 1024);
    ask_disk(p, 0, 4, DATA, 512);
    CHECK_CALL(finish_disk(p, DATA, 513, 0));
    ASSERT_UINT(0x5a, data[511]);
    ASSERT_UINT(0, data[512]);
    ask_disk(p, 8, 0, DATA, 20);
    CHECK_CALL(finish_disk(p, DATA, 21, 0));
    ASSERT_STR_EQ("user_backend", (char *)data);
    ask_disk(p, 0, sizeof p->disk / 512, DATA, 512);
    CHECK_CALL(finish_disk(p, DATA, 513, 1));
    ask_disk(p, 77, 0, DATA, 512);
    return finish_disk(p, DATA, 513, 2);
}

TEST a_disk_reads_and_writes(peer *p)
{
    uint64_t capacity;
    CHECK_CALL(begin(p, 0));
    CHECK_CALL(set_up_ring(p, 0, 0));
    CHECK_CALL(use_disk(p));
    ASSERT_UINT(5, user_backend_count(p->backend, USER_BACKEND_COMPLETED));
    memcpy(&capacity, user_backend_config(p->backend), 8);
    ASSERT_U64(sizeof p->disk / 512, capacity);
    return stop_at(p, 0, 5);
}

TEST a_packed_disk_reads_and_writes(peer *p)
{
    CHECK_CALL(begin(p, BIT(PACKED)));
    CHECK_CALL(set_up_ring(p, 0, 0x80008000));
    CHECK_CALL(use_disk(p));
    /* 15 descriptors: once around, and 7. */
    return stop_at(p, 0, 0x00070007);
}

TEST a_driver_may_chain_elsewhere_and_ask_for_few_calls(peer *p)
{
    descriptor *table = (descriptor *)(void *)(p->memory + DATA);
    uint16_t *avail = (uint16_t *)(void *)(p->memory + AVAIL);
    const descriptor indirect = {DATA, 3 * 16, 0, 4};
    CHECK_CALL(begin(p, 0));
    CHECK_CALL(tell_number(p, 2, p->features | BIT(EVENT_IDX), -1));
    CHECK_CALL(set_up_ring(p, 0, 0));
    memset(p->memory + DATA + 0x100, 0, 16);
    table[0] = (descriptor){address_in(DATA + 0x100), 16, 1, 2};
    table[1] = (descriptor){address_in(DATA + 0x110), 1, 2, 0};
    table[2] = (descriptor){address_in(DATA + 0x200), 512, 3, 1};
    p->memory[DATA + 0x110] = 0xff;
    p->disk[511] = 0x33;
    avail[2 + RING] = 1; /* call at the second */
    make_available(p, 0, &indirect, 1);
    ASSERT(user_backend_await(p->backend, USER_BACKEND_COMPLETED, 1));
    make_available(p, 0, &indirect, 1);
    ASSERT(is_called(p, 0, PATIENCE));
    ASSERT_UINT(1, user_backend_count(p->backend, USER_BACKEND_CALLS));
    ASSERT_UINT(0, p->memory[DATA + 0x110]);
    ASSERT_UINT(0x33, p->memory[DATA + 0x200 + 511]);
    ASSERT_UINT(2, *(uint16_t *)(void *)(p->memory + USED + 4 + 8 * RING));
    return stop_at(p, 0, 2);
}

static enum greatest_test_res loop(peer *p)
{
    uint32_t id, size;
    const descriptor buffer = {DATA, 2048, 0, 2};
    const descriptor packet[2] = {{DATA + 0x1000, 12, 0, 0}, {DATA + 0x1100, 60, 0, 0}};
    memset(p->memory + DATA + 0x1000, 1, 12);
    memset(p->memory + DATA + 0x1100, 0x77, 60);
    make_available(p, 3, packet, 2); /* it waits for a buffer */
    ASSERT(user_backend_await(p->backend, USER_BACKEND_TAKEN, 1));
    make_available(p, 2, &buffer, 1);
    ASSERT(is_called(p, 2, PATIENCE));
    ASSERT(is_called(p, 3, PATIENCE));
    CHECK_CALL(take_used(p, 3, 2, &id, &size));
    ASSERT_UINT(0, size);
    CHECK_CALL(take_used(p, 2, 1, &id, &size));
    ASSERT_UINT(72, size);
    ASSERT_UINT(1, p->memory[DATA + 9]);
    ASSERT_UINT(1, p->memory[DATA + 10]);
    ASSERT_UINT(0, p->memory[DATA + 11]);
    ASSERT_UINT(0x77, p->memory[DATA + 71]);
    ASSERT_UINT(0, p->memory[DATA + 72]);
    PASS();
}

TEST a_net_receives_what_it_sends(peer *p)
{
    CHECK_CALL(begin(p, 0));
    CHECK_CALL(set_up_ring(p, 2, 0));
    CHECK_CALL(set_up_ring(p, 3, 0));
    /* Nothing starts the receiving ring but a kick. */
    uint64_t one = 1;
    (void)!write(p->rings[2].kick, &one, 8);
    CHECK_CALL(loop(p));
    CHECK_CALL(stop_at(p, 2, 1));
    return stop_at(p, 3, 1);
}

TEST a_disabled_net_drops_what_it_sends(peer *p)
{
    const descriptor packet = {DATA, 60, 0, 0};
    uint32_t id, size;
    CHECK_CALL(begin(p, 0));
    CHECK_CALL(set_up_ring(p, 1, 0));
    CHECK_CALL(tell_state(p, 18, 1, 0));
    make_available(p, 1, &packet, 1);
    ASSERT(is_called(p, 1, PATIENCE));
    return take_used(p, 1, 1, &id, &size);
}

/* Bits of the pages from GPA on, as a mask. */
static uint64_t logged(const unsigned char *log)
{
    uint64_t bits;
    memcpy(&bits, log + GPA / 4096 / 8, 8);
    return bits;
}

/* Reads a sector to `at`, with what is to be logged then. */
static enum greatest_test_res log_read(peer *p, unsigned char *log, uint32_t at, uint64_t expected)
{
    memset(log, 0, LOG_SIZE);
    ask_disk(p, 0, 0, at, 512);
    CHECK_CALL(finish_disk(p, at, 513, 0));
    ASSERT_U64(expected, logged(log));
    PASS();
}

static enum greatest_test_res log_reads(peer *p, unsigned char *log, uint64_t used)
{
    CHECK_CALL(log_read(p, log, 0x10000, 0));
    CHECK_CALL(tell_number(p, 2, p->features | BIT(LOG_ALL), -1));
    CHECK_CALL(log_read(p, log, 0x20000, BIT(0x20) | BIT(0x21)));
    CHECK_CALL(set_addresses(p, 0, true));
    CHECK_CALL(log_read(p, log, 0x1f000, BIT(0x1f) | BIT(0x20) | used));
    CHECK_CALL(tell_number(p, 2, p->features, -1));
    return log_read(p, log, 0x20000, used);
}

static enum greatest_test_res log_to_shared_memory(peer *p, uint64_t used)
{
    const uint64_t place[2] = {LOG_SIZE, 4096};
    uint64_t answer;
    int fd = memfd_create("log", MFD_CLOEXEC);
    ASSERT_INT(0, ftruncate(fd, 4096 + LOG_SIZE));
    unsigned char *log =
        (unsigned char *)mmap(NULL, LOG_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 4096);
    for (int round = 0; round < 2; round++) {
        ASSERT(say(p, 6, 1, place, 16, fd));
        ASSERT_INT(8, hear(p, 6, &answer, 8, NULL));
    }
    enum greatest_test_res result = log_reads(p, log, used);
    munmap(log, LOG_SIZE);
    close(fd);
    return result;
}

TEST writes_are_logged(peer *p)
{
    CHECK_CALL(begin(p, 0));
    CHECK_CALL(set_up_ring(p, 0, 0));
    return log_to_shared_memory(p, BIT(USED / 4096));
}

TEST writes_of_a_packed_ring_are_logged(peer *p)
{
    CHECK_CALL(begin(p, BIT(PACKED)));
    CHECK_CALL(set_up_ring(p, 0, 0x80008000));
    return log_to_shared_memory(p, BIT(0));
}

/* ---- death ---- */

static enum greatest_test_res get_record(peer *p, int *fd, uint64_t record[3])
{
    const uint16_t shape[2] = {2, RING};
    memset(record, 0, 24);
    memcpy(&record[2], shape, sizeof shape);
    ASSERT(say(p, 31, 1, record, 24, -1));
    ASSERT_INT(24, hear(p, 31, record, 24, fd));
    ASSERT(*fd >= 0);
    PASS();
}

/* It dies when it holds the first of two requests, and has done the second. */
static enum greatest_test_res die_with_requests(peer *p, uint32_t base, int *fd, uint64_t record[3])
{
    CHECK_CALL(begin(p, 0));
    CHECK_CALL(get_record(p, fd, record));
    CHECK_CALL(tell(p, 32, record, 24, *fd, 0));
    CHECK_CALL(set_up_ring(p, 0, base));
    user_backend_hold(p->backend, 1, 1000000);
    ask_disk(p, 0, 1, DATA, 512);
    ASSERT(user_backend_await(p->backend, USER_BACKEND_HELD, 1));
    user_backend_hold(p->backend, 0, 0);
    ask_disk(p, 0, 2, DATA + 0x4000, 512);
    CHECK_CALL(finish_disk(p, DATA + 0x4000, 513, 0));
    ASSERT_UINT(1, user_backend_count(p->backend, USER_BACKEND_COMPLETED));
    ASSERT_UINT(0, p->memory[DATA + 0x1000]);
    ASSERT_UINT(2, p->memory[DATA + 0x5000]);
    user_backend_kill(p->backend);
    ASSERT(is_closed(p));
    disconnect(p);
    PASS();
}

static enum greatest_test_res resume(peer *p, uint32_t base, int fd, const uint64_t record[3])
{
    uint32_t id, size;
    uint16_t free = p->options.features >> PACKED & 1 ? 6 : 3; /* the second one's are */
    CHECK_CALL(begin(p, 0));
    CHECK_CALL(tell(p, 32, record, 24, fd, 0));
    CHECK_CALL(set_up_ring(p, 0, base));
    p->rings[0].next = free;
    ask_disk(p, 0, 7, DATA + 0x8000, 512);
    ASSERT(user_backend_await(p->backend, USER_BACKEND_COMPLETED, 2));
    ASSERT_UINT(1, user_backend_count(p->backend, USER_BACKEND_RESUBMITTED));
    CHECK_CALL(take_used(p, 0, 3, &id, &size)); /* the older one is the first */
    ASSERT_UINT(0, id);
    ASSERT_UINT(513, size);
    CHECK_CALL(take_used(p, 0, 3, &id, &size));
    ASSERT_UINT(free, id);
    ASSERT_UINT(1, p->memory[DATA + 0x1000]);
    ASSERT_UINT(7, p->memory[DATA + 0x9000]);
    PASS();
}

static void number_sectors(unsigned char *disk, size_t size)
{
    for (size_t i = 0; i < size; i += 512) {
        disk[i] = (unsigned char)(i / 512);
    }
}

static enum greatest_test_res survive(peer *p, uint64_t features, uint32_t base,
                                      uint32_t base_after, uint32_t end)
{
    uint64_t record[3];
    int fd = -1;
    number_sectors((unsigned char *)p->options.disk, sizeof p->disk);
    p->options.features |= features;
    CHECK_CALL(die_with_requests(p, base, &fd, record));
    CHECK_CALL(resume(p, base_after, fd, record));
    close(fd);
    return stop_at(p, 0, end);
}

TEST requests_in_flight_survive(peer *p)
{
    return survive(p, 0, 0, 1, 3); /* told where the driver's view ends */
}

TEST requests_in_flight_survive_at_their_own_base(peer *p)
{
    return survive(p, 0, 0, 2, 3);
}

TEST requests_in_flight_of_a_packed_ring_survive(peer *p)
{
    /* 9 of 8 descriptors: once around, and 1. */
    return survive(p, BIT(PACKED), 0x80008000, 0x80038003, 0x00010001);
}

TEST requests_in_flight_survive_a_process(peer *p)
{
    p->options.forks = true;
    p->options.disk =
        mmap(NULL, sizeof p->disk, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    enum greatest_test_res result = survive(p, 0, 0, 1, 3);
    munmap(p->options.disk, sizeof p->disk);
    return result;
}

/* The driver saw that the second request was done, and then the record was to be told. */
static void undo_last_of_record(int fd, bool packed)
{
    const unsigned char one = 1, none = 0, sixth = 6;
    if (packed) {
        (void)!pwrite(fd, &one, 1, 32 + 3 * 32); /* in flight, from the third entry on */
        (void)!pwrite(fd, &sixth, 1, 14);        /* where the free list began */
        (void)!pwrite(fd, &none, 1, 18);         /* used index */
    } else {
        (void)!pwrite(fd, &one, 1, 16 + 3 * 16);
        (void)!pwrite(fd, &none, 1, 14);
    }
}

static enum greatest_test_res settle(peer *p, uint64_t features, uint32_t base, uint32_t after)
{
    uint64_t record[3];
    int fd = -1;
    number_sectors(p->disk, sizeof p->disk);
    p->options.features |= features;
    CHECK_CALL(die_with_requests(p, base, &fd, record));
    undo_last_of_record(fd, features != 0);
    enum greatest_test_res result = resume(p, after, fd, record);
    close(fd);
    return result;
}

TEST a_request_done_at_the_moment_of_death_is_not_done_again(peer *p)
{
    return settle(p, 0, 0, 1);
}

TEST a_packed_request_done_at_the_moment_of_death_is_not_done_again(peer *p)
{
    return settle(p, BIT(PACKED), 0x80008000, 0x80038003);
}

TEST a_stop_waits_for_requests_unless_told_not_to(peer *p)
{
    uint64_t record[3];
    const uint32_t state[2] = {0, 0};
    uint32_t base[2];
    int fd;
    CHECK_CALL(begin(p, 0));
    CHECK_CALL(get_record(p, &fd, record));
    CHECK_CALL(tell(p, 32, record, 24, fd, 0));
    close(fd);
    user_backend_hold(p->backend, 1, 1000000);
    for (uint32_t round = 0; round < 2; round++) {
        CHECK_CALL(set_up_ring(p, 0, round));
        ask_disk(p, 0, 0, DATA, 512);
        ASSERT(user_backend_await(p->backend, USER_BACKEND_TAKEN, round + 1));
        ASSERT(say(p, round ? 45 : 11, 1, state, 8, -1));
        ASSERT_INT(8, hear(p, round ? 45 : 11, base, 8, NULL));
        ASSERT_UINT(round + 1, base[1]);
        ASSERT_UINT(1, user_backend_count(p->backend, USER_BACKEND_COMPLETED));
    }
    PASS();
}

TEST a_held_request_is_overtaken_and_then_done(peer *p)
{
    uint32_t id, size;
    CHECK_CALL(begin(p, 0));
    CHECK_CALL(set_up_ring(p, 0, 0));
    user_backend_hold(p->backend, 3, 30);
    for (uint32_t i = 0; i < 5; i++) {
        ask_disk(p, 8, 0, DATA + i * 0x2000, 20);
        if (i == 1) {
            ASSERT(user_backend_await(p->backend, USER_BACKEND_COMPLETED, 2));
            p->rings[0].next = 0; /* their descriptors are free */
        }
        ASSERT(user_backend_await(p->backend, USER_BACKEND_TAKEN, i + 1));
        if (i == 3) {
            break;
        }
    }
    ASSERT(user_backend_await(p->backend, USER_BACKEND_COMPLETED, 4));
    ASSERT_UINT(1, user_backend_count(p->backend, USER_BACKEND_HELD));
    for (unsigned i = 0; i < 4; i++) {
        CHECK_CALL(take_used(p, 0, 3, &id, &size));
        ASSERT_UINT(((const unsigned[]){0, 3, 3, 0})[i], id);
    }
    PASS();
}

/* ---- memory ---- */

static enum greatest_test_res hear_miss(peer *p, uint64_t address, unsigned permission)
{
    unsigned char miss[32];
    uint64_t missed;
    ASSERT_INT(32, hear_on(p->channel, 1, 1, miss, 32, NULL));
    memcpy(&missed, miss, 8);
    ASSERT_U64(address, missed);
    ASSERT_UINT(permission, miss[24]);
    ASSERT_UINT(1, miss[25]);
    PASS();
}

/* type 2 tells a translation of all memory, 3 takes it back. */
static enum greatest_test_res translate(peer *p, unsigned permission, unsigned type)
{
    unsigned char message[32] = {0};
    const uint64_t entry[3] = {USER, MEMORY, USER};
    memcpy(message, entry, sizeof entry);
    message[24] = (unsigned char)permission;
    message[25] = (unsigned char)type;
    return tell(p, 22, message, sizeof message, -1, 0);
}

TEST translations_are_asked_for(peer *p)
{
    CHECK_CALL(begin(p, BIT(IOMMU)));
    CHECK_CALL(set_up_ring(p, 0, 0));
    ask_disk(p, 8, 0, DATA, 20);
    CHECK_CALL(hear_miss(p, USER + USED, 1));
    CHECK_CALL(translate(p, 1, 2));
    CHECK_CALL(hear_miss(p, USER + DATA + 0x1000, 2));
    ASSERT_UINT(0, user_backend_count(p->backend, USER_BACKEND_TAKEN));
    for (int round = 0; round < 2; round++) {
        CHECK_CALL(translate(p, 3, 2));
        CHECK_CALL(finish_disk(p, DATA, 21, 0));
        CHECK_CALL(translate(p, 3, 3));
        ask_disk(p, 8, 0, DATA, 20);
        CHECK_CALL(hear_miss(p, USER + AVAIL, 1));
    }
    CHECK_CALL(stop_at(p, 0, 2));
    ASSERT_UINT(4, user_backend_count(p->backend, USER_BACKEND_MISSES));
    ASSERT_UINT(2, user_backend_count(p->backend, USER_BACKEND_COMPLETED));
    PASS();
}

TEST slots_are_added_and_removed(peer *p)
{
    uint64_t region[5] = {0, GPA, MEMORY, USER, 0};
    CHECK_CALL(begin(p, 0));
    CHECK_CALL(tell(p, 37, region, 40, p->memory_fd, 1)); /* it overlaps */
    region[1] = region[3] = 8 * (uint64_t)MEMORY;
    region[4] = 4096;
    CHECK_CALL(tell(p, 37, region, 40, p->memory_fd, 1)); /* the fd is too short */
    region[2] = 4096;
    CHECK_CALL(tell(p, 37, region, 40, p->memory_fd, 0));
    CHECK_CALL(tell(p, 38, region, 40, -1, 0));
    CHECK_CALL(tell(p, 38, region, 40, -1, 1));
    ASSERT_UINT(3, user_backend_count(p->backend, USER_BACKEND_NACKS));
    ASSERT_STR_EQ("regions that overlap", user_backend_complaint(p->backend));
    PASS();
}

TEST a_table_replaces_all_memory_and_postcopy_tells_bases(peer *p)
{
    unsigned char table[40] = {1};
    const uint64_t region[4] = {GPA, MEMORY, USER, 0};
    uint64_t bases[5], ack = 0;
    memcpy(table + 8, region, sizeof region);
    int fd;
    p->options.protocol &= ~BIT(15);
    p->features = p->options.features;
    CHECK_CALL(connect_pair(p));
    CHECK_CALL(negotiate(p));
    for (int round = 0; round < 2; round++) {
        CHECK_CALL(tell(p, 5, table, sizeof table, p->memory_fd, 0));
    }
    ASSERT(say(p, 28, 1, NULL, 0, -1));
    ASSERT_INT(0, hear(p, 28, NULL, 0, &fd));
    ASSERT(fd >= 0);
    close(fd);
    CHECK_CALL(tell(p, 29, NULL, 0, -1, 0));
    ASSERT(say(p, 5, 1, table, sizeof table, p->memory_fd));
    ASSERT_INT(40, hear(p, 5, bases, sizeof bases, NULL));
    ASSERT(bases[3] != USER && bases[3] != 0);
    ASSERT(say(p, 5, 1, &ack, 8, -1));
    return ask(p, 30, 0);
}

/* ---- refusals, and what it is made to do ---- */

TEST what_it_does_not_know_is_refused(peer *p)
{
    CHECK_CALL(begin(p, 0));
    CHECK_CALL(tell(p, 60, NULL, 0, -1, 1));
    ASSERT_STR_EQ("the unknown message 60", user_backend_complaint(p->backend));
    ASSERT(say(p, 60, 1, NULL, 0, -1)); /* nobody could be told */
    ASSERT(is_closed(p));
    ASSERT(user_backend_await(p->backend, USER_BACKEND_ENDED, 1));
    PASS();
}

TEST without_protocol_features_all_rings_are_enabled(peer *p)
{
    unsigned char table[40] = {1};
    const uint64_t region[4] = {GPA, MEMORY, USER, 0};
    const uint32_t size[2] = {0, RING}, base[2] = {0, 0};
    const uint64_t address[5] = {0, USER, USER + USED, USER + AVAIL, 0}, queue = 0;
    p->options.features = p->features = BIT(32);
    p->options.protocol = 0;
    memcpy(table + 8, region, sizeof region);
    CHECK_CALL(connect_pair(p));
    ASSERT(say(p, 3, 1, NULL, 0, -1));
    ASSERT(say(p, 2, 1, &p->features, 8, -1));
    ASSERT(say(p, 5, 1, table, sizeof table, p->memory_fd));
    ASSERT(say(p, 8, 1, size, 8, -1));
    ASSERT(say(p, 10, 1, base, 8, -1));
    ASSERT(say(p, 9, 1, address, 40, -1));
    ASSERT(say(p, 13, 1, &queue, 8, p->rings[0].call));
    ASSERT(say(p, 12, 9, &queue, 8, p->rings[0].kick)); /* no ack was negotiated */
    ask_disk(p, 8, 0, DATA, 20);
    CHECK_CALL(finish_disk(p, DATA, 21, 0));
    CHECK_CALL(stop_at(p, 0, 1));
    ASSERT(say(p, 15, 1, NULL, 0, -1));
    ASSERT(is_closed(p));
    PASS();
}

TEST traps_snap_once(peer *p)
{
    struct pollfd input;
    CHECK_CALL(begin(p, 0));
    user_backend_arm(p->backend, USER_BACKEND_NACK, 2, 3);
    CHECK_CALL(tell(p, 3, NULL, 0, -1, 0));
    CHECK_CALL(tell_number(p, 2, p->features, -1));
    CHECK_CALL(tell(p, 3, NULL, 0, -1, 1));
    CHECK_CALL(tell(p, 3, NULL, 0, -1, 0));
    user_backend_arm(p->backend, USER_BACKEND_STALL, 1, 0);
    ASSERT(say(p, 3, 9, NULL, 0, -1));
    ASSERT(user_backend_await(p->backend, USER_BACKEND_STALLED, 1));
    input.fd = p->fd;
    input.events = POLLIN;
    ASSERT_INT(0, poll(&input, 1, 20));
    user_backend_release(p->backend);
    uint64_t value;
    ASSERT_INT(8, hear(p, 3, &value, 8, NULL));
    user_backend_arm(p->backend, USER_BACKEND_DIE_AFTER, 1, 3);
    CHECK_CALL(tell(p, 3, NULL, 0, -1, 0));
    ASSERT(is_closed(p));
    PASS();
}

TEST it_dies_before_it_answers_also_as_a_process(peer *p)
{
    p->options.forks = true;
    CHECK_CALL(begin(p, 0));
    user_backend_arm(p->backend, USER_BACKEND_DIE, 2, 0);
    CHECK_CALL(tell(p, 3, NULL, 0, -1, 0));
    ASSERT(say(p, 3, 9, NULL, 0, -1));
    ASSERT(is_closed(p));
    ASSERT(user_backend_await(p->backend, USER_BACKEND_ENDED, 1));
    PASS();
}

TEST waits_are_counted(peer *p)
{
    static const uint32_t ask_thrice[9] = {1, 1, 0, 1, 1, 0, 1, 1, 0};
    const uint32_t mixed[6] = {1, 1, 0, 3, 1, 0};
    uint64_t value;
    p->options.linger_ms = 20;
    CHECK_CALL(connect_pair(p));
    ASSERT(send_raw(p->fd, ask_thrice, sizeof ask_thrice, -1));
    for (int i = 0; i < 3; i++) {
        ASSERT_INT(8, hear(p, 1, &value, 8, NULL));
    }
    CHECK_CALL(ask(p, 1, p->options.features));
    ASSERT(send_raw(p->fd, mixed, sizeof mixed, -1));
    ASSERT_INT(8, hear(p, 1, &value, 8, NULL));
    ASSERT(user_backend_await(p->backend, USER_BACKEND_WAITS, 3));
    ASSERT(say(p, 3, 1, NULL, 0, -1));
    ASSERT(user_backend_await(p->backend, USER_BACKEND_MESSAGES, 7));
    ASSERT_UINT(3, user_backend_count(p->backend, USER_BACKEND_WAITS));
    PASS();
}

TEST it_asks_on_its_channel(peer *p)
{
    const uint32_t answer[5] = {2, 5, 8, 7, 0};
    unsigned char area[24] = {0};
    int fd;
    CHECK_CALL(begin(p, 0));
    ASSERT(
        user_backend_say(p->backend, 2, "", 0, USER_BACKEND_ON_CHANNEL | USER_BACKEND_NEED_REPLY));
    ASSERT_INT(0, hear_on(p->channel, 2, 9, NULL, 0, NULL));
    ASSERT(send_raw(p->channel, answer, sizeof answer, -1));
    ASSERT(user_backend_await(p->backend, USER_BACKEND_CHANNEL_ANSWERS, 1));
    ASSERT_UINT(7, user_backend_count(p->backend, USER_BACKEND_CHANNEL_VALUE));
    ASSERT(
        user_backend_say(p->backend, 3, area, 24, USER_BACKEND_ON_CHANNEL | USER_BACKEND_WITH_FD));
    ASSERT_INT(24, hear_on(p->channel, 3, 1, area, 24, &fd));
    ASSERT(fd >= 0);
    close(fd);
    ASSERT(user_backend_say(p->backend, 0, answer, 20, USER_BACKEND_WITHOUT_HEADER));
    ASSERT_INT(8, hear(p, 2, area, 8, NULL));
    PASS();
}

TEST config_is_read_and_written(peer *p)
{
    unsigned char config[14] = {10, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 1, 2};
    CHECK_CALL(begin(p, 0));
    CHECK_CALL(tell(p, 25, config, 14, -1, 0));
    ASSERT_UINT(2, user_backend_config(p->backend)[11]);
    config[12] = config[13] = 0;
    ASSERT(say(p, 24, 1, config, 14, -1));
    ASSERT_INT(14, hear(p, 24, config, 14, NULL));
    ASSERT_UINT(1, config[12]);
    config[0] = 63;
    ASSERT(say(p, 24, 1, config, 14, -1));
    ASSERT_INT(0, hear(p, 24, NULL, 0, NULL));
    config[0] = 0;
    CHECK_CALL(tell(p, 25, config, 14, -1, 1)); /* the driver cannot write a capacity */
    config[8] = 1;
    return tell(p, 25, config, 14, -1, 0);
}

static enum greatest_test_res move_state(peer *p, uint32_t direction, int fd)
{
    const uint32_t transfer[2] = {direction, 0};
    uint64_t value;
    ASSERT(say(p, 42, 1, transfer, 8, fd));
    ASSERT_INT(8, hear(p, 42, &value, 8, NULL));
    ASSERT_U64(0x100, value);
    close(fd);
    PASS();
}

TEST its_state_is_saved_and_loaded(peer *p)
{
    int ends[2];
    uint32_t *size;
    static unsigned char saved[200000], found[200001];
    CHECK_CALL(begin(p, 0));
    ASSERT_INT(0, pipe(ends));
    CHECK_CALL(move_state(p, 1, ends[0]));
    for (size_t i = 0; i < sizeof saved; i++) {
        saved[i] = (unsigned char)(i * 7 >> 3);
    }
    ASSERT_INT((int)sizeof saved, (int)write(ends[1], saved, sizeof saved));
    close(ends[1]);
    CHECK_CALL(ask(p, 43, 0));
    ASSERT_MEM_EQ(saved, user_backend_state(p->backend, &size), sizeof saved);
    ASSERT_UINT(sizeof saved, *size);
    ASSERT_INT(0, pipe(ends));
    CHECK_CALL(move_state(p, 0, ends[1]));
    size_t there = 0;
    ssize_t part;
    while ((part = read(ends[0], found + there, sizeof found - there)) > 0) {
        there += (size_t)part;
    }
    close(ends[0]);
    ASSERT_UINT(sizeof saved, there);
    ASSERT_MEM_EQ(saved, found, sizeof saved);
    return ask(p, 43, 0);
}

TEST a_reset_forgets_rings(peer *p)
{
    CHECK_CALL(begin(p, 0));
    CHECK_CALL(set_up_ring(p, 0, 5));
    CHECK_CALL(tell_number(p, 39, 15, -1));
    CHECK_CALL(ask(p, 40, 15));
    CHECK_CALL(tell(p, 34, NULL, 0, -1, 0));
    CHECK_CALL(ask(p, 40, 0));
    ASSERT_UINT(1, user_backend_count(p->backend, USER_BACKEND_RESETS));
    return stop_at(p, 0, 0);
}

TEST rings_work_without_fds(peer *p)
{
    uint64_t none = 0x100;
    unsigned char called[8];
    CHECK_CALL(begin(p, 0));
    CHECK_CALL(set_up_ring(p, 0, 0));
    CHECK_CALL(tell_number(p, 12, none, -1));
    CHECK_CALL(tell_number(p, 13, none, -1));
    ask_disk(p, 8, 0, DATA, 20);
    CHECK_CALL(tell_state(p, 35, 0, 0));
    ASSERT_INT(8, hear_on(p->channel, 4, 1, called, 8, NULL));
    ASSERT_UINT(0, p->memory[DATA + 16]);
    PASS();
}

TEST a_ring_without_a_kick_is_polled(peer *p)
{
    p->options.protocol &= ~BIT(INBAND);
    CHECK_CALL(begin(p, 0));
    CHECK_CALL(set_up_ring(p, 0, 0));
    CHECK_CALL(tell_number(p, 12, 0x100, -1));
    ask_disk(p, 8, 0, DATA, 20);
    return finish_disk(p, DATA, 21, 0);
}

/* ---- sockets ---- */

static struct sockaddr_un socket_address(void)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    snprintf(address.sun_path, sizeof address.sun_path, "/tmp/user_backend.%d", (int)getpid());
    return address;
}

static enum greatest_test_res connect_twice(peer *p, bool forks)
{
    struct sockaddr_un address = socket_address();
    p->options.listen_path = address.sun_path;
    p->options.forks = forks;
    p->backend = user_backend_start(&p->options);
    ASSERT(p->backend);
    for (uint32_t i = 1; i <= 2; i++) {
        p->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        ASSERT_INT(0, connect(p->fd, (struct sockaddr *)&address, sizeof address));
        CHECK_CALL(negotiate(p));
        CHECK_CALL(give_memory(p));
        close(p->fd);
        close(p->channel);
        ASSERT(user_backend_await(p->backend, USER_BACKEND_ENDED, i));
    }
    p->fd = p->channel = -1;
    ASSERT_STR_EQ("", user_backend_complaint(p->backend));
    disconnect(p);
    ASSERT_INT(-1, access(address.sun_path, F_OK));
    PASS();
}

TEST it_listens(peer *p)
{
    p->features = p->options.features;
    return connect_twice(p, false);
}

TEST it_listens_as_a_process(peer *p)
{
    p->features = p->options.features;
    return connect_twice(p, true);
}

TEST it_connects(peer *p)
{
    struct sockaddr_un address = socket_address();
    p->options.connect_path = address.sun_path;
    p->backend = user_backend_start(&p->options);
    ASSERT(p->backend);
    int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    ASSERT_INT(0, bind(listener, (struct sockaddr *)&address, sizeof address));
    ASSERT_INT(0, listen(listener, 1));
    p->fd = accept(listener, NULL, NULL);
    ASSERT(p->fd >= 0);
    enum greatest_test_res result = ask(p, 1, p->options.features);
    unlink(address.sun_path);
    close(listener);
    return result;
}

SUITE(user_backend_suite)
{
    if (!FIXTURE_FOREIGN) {
        SKIP_HERE("user_backend_suite", "its driver knows little-endian rings only");
        return;
    }
    RUN_PEER(answers_are_what_the_wire_says, USER_BACKEND_NONE);
    RUN_PEER(a_disk_reads_and_writes, USER_BACKEND_DISK);
    RUN_PEER(a_packed_disk_reads_and_writes, USER_BACKEND_DISK);
    RUN_PEER(a_driver_may_chain_elsewhere_and_ask_for_few_calls, USER_BACKEND_DISK);
    RUN_PEER(a_net_receives_what_it_sends, USER_BACKEND_LOOP);
    RUN_PEER(a_disabled_net_drops_what_it_sends, USER_BACKEND_LOOP);
    RUN_PEER(writes_are_logged, USER_BACKEND_DISK);
    RUN_PEER(writes_of_a_packed_ring_are_logged, USER_BACKEND_DISK);
    RUN_PEER(requests_in_flight_survive, USER_BACKEND_DISK);
    RUN_PEER(requests_in_flight_survive_at_their_own_base, USER_BACKEND_DISK);
    RUN_PEER(requests_in_flight_of_a_packed_ring_survive, USER_BACKEND_DISK);
    RUN_PEER(requests_in_flight_survive_a_process, USER_BACKEND_DISK);
    RUN_PEER(a_request_done_at_the_moment_of_death_is_not_done_again, USER_BACKEND_DISK);
    RUN_PEER(a_packed_request_done_at_the_moment_of_death_is_not_done_again, USER_BACKEND_DISK);
    RUN_PEER(a_stop_waits_for_requests_unless_told_not_to, USER_BACKEND_DISK);
    RUN_PEER(a_held_request_is_overtaken_and_then_done, USER_BACKEND_DISK);
    RUN_PEER(translations_are_asked_for, USER_BACKEND_DISK);
    RUN_PEER(slots_are_added_and_removed, USER_BACKEND_NONE);
    RUN_PEER(a_table_replaces_all_memory_and_postcopy_tells_bases, USER_BACKEND_NONE);
    RUN_PEER(what_it_does_not_know_is_refused, USER_BACKEND_NONE);
    RUN_PEER(without_protocol_features_all_rings_are_enabled, USER_BACKEND_DISK);
    RUN_PEER(traps_snap_once, USER_BACKEND_NONE);
    RUN_PEER(it_dies_before_it_answers_also_as_a_process, USER_BACKEND_NONE);
    RUN_PEER(waits_are_counted, USER_BACKEND_NONE);
    RUN_PEER(it_asks_on_its_channel, USER_BACKEND_NONE);
    RUN_PEER(config_is_read_and_written, USER_BACKEND_DISK);
    RUN_PEER(its_state_is_saved_and_loaded, USER_BACKEND_NONE);
    RUN_PEER(a_reset_forgets_rings, USER_BACKEND_DISK);
    RUN_PEER(rings_work_without_fds, USER_BACKEND_DISK);
    RUN_PEER(a_ring_without_a_kick_is_polled, USER_BACKEND_DISK);
    RUN_PEER(it_listens, USER_BACKEND_NONE);
    RUN_PEER(it_listens_as_a_process, USER_BACKEND_NONE);
    RUN_PEER(it_connects, USER_BACKEND_NONE);
}
