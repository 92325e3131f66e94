/* vhost_kernel.h behind a vIOMMU, on a kernel that records: messages byte by byte, and whose they
   are. */
#include "fake_kernel.h"
#include "fixture.h"

#include <errno.h>
#include <string.h>

#define PAGE      VHOST_PAGE
#define IOVA      UINT64_C(0x7f0000000000) /* where the guest's first 512 KiB are, in pieces */
#define CHUNK     UINT64_C(0x10000)        /* of one entry of the vIOMMU */
#define VERSION_1 (UINT64_C(1) << VHOST_FEATURE_VERSION_1)
#define PLATFORM  (UINT64_C(1) << VHOST_FEATURE_ACCESS_PLATFORM)

enum {
    PAIRS = 3,
    QUEUES = 2 * PAIRS,
    CHUNKS = 8,
    PARTS = 3, /* of a ring, a page each */
    WIRE = 320,
    MESSAGE = 72,
    MISS = 1, /* types, as in <linux/vhost_types.h> */
    UPDATE = 2,
    INVALIDATE = 3,
    FAIL = 4,
    RO = 1,
    WO = 2,
    RW = 3
};

typedef struct wire_message {
    int fd;
    size_t size;
    unsigned char bytes[MESSAGE];
} wire_message;

typedef struct bench {
    fixture *f;
    fake_kernel kernel;
    vhost_kernel_calls calls;
    vhost_kernel_options options;
    vhost_device_options device_options;
    vhost_kernel net;
    vhost_device device;
    vhost_queue queue[QUEUES];
    vhost_features accepted;
    uint32_t pairs;
    wire_message wire[WIRE]; /* what the kernel has to say */
    unsigned wire_count;
    unsigned reads, interruptions; /* of vhost fds; of as many reads and writes to come */
    int read_error;                /* of the next read of a vhost fd */
    size_t cut;                    /* bytes that the next write leaves out */
    int watching;
    unsigned translations;
} bench;

typedef enum greatest_test_res bench_test(bench *b);

static bench the;

/* ---- the wire: reads and writes of vhost fds ---- */

static bool interrupted(void)
{
    bool now = the.interruptions > 0;
    the.interruptions -= now;
    return now;
}

static ptrdiff_t take_message(unsigned i, void *bytes, size_t size)
{
    const wire_message message = the.wire[i];
    size_t count = message.size < size ? message.size : size;
    the.wire_count--;
    memmove(&the.wire[i], &the.wire[i + 1], (the.wire_count - i) * sizeof *the.wire);
    memcpy(bytes, message.bytes, count);
    return (ptrdiff_t)count;
}

static ptrdiff_t read_wire(int fd, void *bytes, size_t size, void *user)
{
    bool of_vhost = fd >= FAKE_FD;
    the.reads += of_vhost;
    if (of_vhost && interrupted()) {
        return -EINTR;
    }
    if (of_vhost && the.read_error < 0) {
        int error = the.read_error;
        the.read_error = 0;
        return error;
    }
    for (unsigned i = 0; of_vhost && i < the.wire_count; i++) {
        if (the.wire[i].fd == fd && the.kernel.fds[fd - FAKE_FD].patient) {
            return take_message(i, bytes, size);
        }
    }
    return fake_kernel_calls.read(fd, bytes, size, user);
}

static ptrdiff_t write_wire(int fd, const void *bytes, size_t size, void *user)
{
    if (interrupted()) {
        return -EINTR;
    }
    ptrdiff_t count = fake_kernel_calls.write(fd, bytes, size, user) - (ptrdiff_t)the.cut;
    the.cut = 0;
    return count;
}

/* A message by hand: 4 bytes of version, 4 of nothing, then iova, size, host, permit, type. */
static void make_message(unsigned char *bytes, uint32_t version, unsigned type, uint64_t iova,
                         uint64_t size, uint64_t host, unsigned permit)
{
    memset(bytes, 0, MESSAGE);
    memcpy(bytes, &version, 4);
    memcpy(bytes + 8, &iova, 8);
    memcpy(bytes + 16, &size, 8);
    memcpy(bytes + 24, &host, 8);
    bytes[32] = (unsigned char)permit;
    bytes[33] = (unsigned char)type;
}

static int fd_number(unsigned nth)
{
    return FAKE_FD + (int)nth;
}

static uint32_t version_of(const bench *b)
{
    return b->kernel.backend_features & 2 ? 2 : 1;
}

static void say(bench *b, unsigned pair, unsigned type, uint64_t iova, unsigned permit)
{
    wire_message *message = &b->wire[b->wire_count++];
    message->fd = fd_number(pair);
    message->size = MESSAGE;
    make_message(message->bytes, version_of(b), type, iova, 0, 0, permit);
}

/* ---- the vIOMMU: chunks in reverse order; the last one cannot be written ---- */

static uint64_t gpa_of(uint64_t iova)
{
    uint64_t offset = iova - IOVA;
    return (CHUNKS - 1 - offset / CHUNK) * CHUNK + offset % CHUNK;
}

static unsigned permit_of(uint64_t iova)
{
    return (iova - IOVA) / CHUNK == CHUNKS - 1 ? RO : RW;
}

static int translate(vhost_device *device, uint64_t iova, bool write, vhost_translation *entry,
                     void *user)
{
    bench *b = (bench *)user;
    (void)device;
    b->translations++;
    if (iova < IOVA || iova - IOVA >= CHUNKS * CHUNK ||
        (permit_of(iova) & (write ? WO : RO)) == 0) {
        return -EFAULT;
    }
    entry->iova = iova - iova % CHUNK;
    entry->size = CHUNK;
    entry->gpa = gpa_of(entry->iova);
    entry->permit = (uint8_t)permit_of(iova);
    return 0;
}

static int watch(vhost_device *device, bool on, void *user)
{
    (void)device;
    ((bench *)user)->watching += on ? 1 : -1;
    return 0;
}

static const vhost_memory_ops memory_ops = {NULL, NULL, translate, watch};

/* ---- arranging ---- */

static uint64_t part_of(unsigned q, unsigned part)
{
    return IOVA + PAGE * (8 + 4 * q + part);
}

static void fill(bench *b, uint64_t base)
{
    for (unsigned q = 0; q < 2 * b->pairs; q++) {
        vhost_queue *queue = &b->queue[q];
        queue->ready = true;
        queue->size = 256;
        queue->desc = part_of(q, VHOST_DESC) - IOVA + base;
        queue->avail = part_of(q, VHOST_AVAIL) - IOVA + base;
        queue->used = part_of(q, VHOST_USED) - IOVA + base;
        queue->kick_fd = (int)(500 + q);
        queue->call_fd = (int)(600 + q);
    }
}

static int stopped(bench *b, uint32_t pairs)
{
    const int taps[PAIRS] = {300, 301, 302};
    int result = fixture_map_default(b->f);
    b->pairs = pairs;
    if (result >= 0) {
        result = vhost_kernel_net_open(&b->net, FAKE_PATH, taps, pairs, &b->options);
    }
    if (result >= 0) {
        result = vhost_device_init(&b->device, &b->f->vm, vhost_kernel_ops(&b->net), &b->net,
                                   b->queue, 2 * pairs, &b->device_options);
    }
    fill(b, IOVA);
    return result < 0 ? result : vhost_device_ack(&b->device, b->accepted);
}

static int running(bench *b, uint32_t pairs)
{
    int result = stopped(b, pairs);
    return result < 0 ? result : vhost_device_start(&b->device);
}

static int running_anew(bench *b, uint32_t pairs)
{
    int result = running(b, pairs);
    fake_kernel_forget(&b->kernel);
    b->reads = b->translations = 0;
    return result;
}

static int map_three(bench *b)
{
    vhost_section sections[3];
    sections[0] = b->f->low;
    sections[1] = b->f->high;
    sections[2] = fixture_section(b->f, FIXTURE_REMOTE, 1, 0);
    return fixture_map(b->f, sections, 3);
}

static void open_bench(bench *b, fixture *f)
{
    memset(b, 0, sizeof *b);
    b->f = f;
    vhost_vm_options options = fixture_vm_options(f);
    fake_kernel_init(&b->kernel);
    b->kernel.fault = &f->fault;
    b->kernel.allocate = options.allocate;
    b->kernel.user = options.user;
    b->options = fake_kernel_options(&b->kernel);
    b->calls = fake_kernel_calls;
    b->calls.read = read_wire;
    b->calls.write = write_wire;
    b->options.calls = &b->calls;
    b->device_options.user = b;
    b->device_options.memory = &memory_ops;
    b->accepted = fixture_features(VERSION_1 | PLATFORM, 0);
    for (unsigned q = 0; q < QUEUES; q++) {
        vhost_queue_init(&b->queue[q]);
    }
}

static void close_bench(bench *b)
{
    fault_disarm(&b->f->fault);
    fake_kernel_relent(&b->kernel);
    vhost_device_cleanup(&b->device);
    vhost_kernel_close(&b->net);
}

/* ---- checking ---- */

static enum greatest_test_res check(const bench *b)
{
    bool runs = b->device.state == VHOST_STATE_RUNNING;
    ASSERT_STR_EQ("", b->kernel.complaint);
    ASSERT_INT(runs && (b->net.features.word[0] & PLATFORM) != 0, b->watching);
    if (b->device.state == VHOST_STATE_BROKEN) {
        ASSERT_UINT(0, fake_kernel_open_fds(&b->kernel));
    }
    for (unsigned i = 0; i < b->kernel.opened; i++) {
        for (int ring = 0; ring < FAKE_RINGS; ring++) {
            ASSERT(runs || b->kernel.fds[i].ring[ring].tap == -1);
        }
    }
    PASS();
}

static enum greatest_test_res is_broken(const bench *b, int code)
{
    ASSERT_INT(VHOST_STATE_BROKEN, b->device.state);
    ASSERT_INT(code, b->device.last_error.code);
    return check(b);
}

static unsigned writes(const bench *b, int fd)
{
    return fake_kernel_count(&b->kernel, FAKE_WRITE, fd);
}

/* The next write from *next on. */
static const fake_call *next_write(const bench *b, unsigned *next)
{
    while (*next < b->kernel.count && b->kernel.calls[*next].op != FAKE_WRITE) {
        ++*next;
    }
    return *next < b->kernel.count ? &b->kernel.calls[(*next)++] : NULL;
}

static enum greatest_test_res writes_next(const bench *b, unsigned *next, unsigned pair,
                                          const unsigned char *bytes)
{
    const fake_call *call = next_write(b, next);
    ASSERT(call != NULL);
    ASSERT_INT(fd_number(pair), call->fd);
    ASSERT_UINT(MESSAGE, call->size);
    ASSERT_MEM_EQ(bytes, call->bytes, MESSAGE);
    PASS();
}

static enum greatest_test_res writes_to_all(const bench *b, unsigned *next,
                                            const unsigned char *bytes)
{
    for (unsigned pair = 0; pair < b->pairs; pair++) {
        CHECK_CALL(writes_next(b, next, pair, bytes));
    }
    PASS();
}

static uint64_t host_of(const bench *b, uint64_t iova)
{
    return (uintptr_t)(b->f->host + gpa_of(iova));
}

static enum greatest_test_res maps_queue(const bench *b, unsigned *next, unsigned q)
{
    unsigned char bytes[MESSAGE];
    for (unsigned part = 0; part < PARTS; part++) {
        uint64_t iova = part_of(q, part);
        make_message(bytes, version_of(b), UPDATE, iova, PAGE, host_of(b, iova), RW);
        CHECK_CALL(writes_to_all(b, next, bytes));
    }
    PASS();
}

/* All fds forget everything, and then learn of all rings. */
static enum greatest_test_res begins_anew(const bench *b, unsigned *next)
{
    unsigned char bytes[MESSAGE];
    make_message(bytes, version_of(b), INVALIDATE, 0, UINT64_MAX, 0, 0);
    CHECK_CALL(writes_to_all(b, next, bytes));
    for (unsigned q = 0; q < 2 * b->pairs; q++) {
        CHECK_CALL(maps_queue(b, next, q));
    }
    PASS();
}

/* The answer to a miss at `iova`: the whole chunk. */
static enum greatest_test_res answers_next(const bench *b, unsigned *next, unsigned pair,
                                           uint64_t iova)
{
    unsigned char bytes[MESSAGE];
    uint64_t chunk = iova - iova % CHUNK;
    make_message(bytes, version_of(b), UPDATE, chunk, CHUNK, host_of(b, chunk), permit_of(iova));
    return writes_next(b, next, pair, bytes);
}

static unsigned place_of(const bench *b, fake_op op)
{
    for (unsigned i = 0; i < b->kernel.count; i++) {
        if (b->kernel.calls[i].op == op) {
            return i;
        }
    }
    return b->kernel.count;
}

/* ---- start ---- */

static enum greatest_test_res start_is_right(bench *b)
{
    ASSERT_OK(running(b, 2));
    unsigned next = place_of(b, FAKE_WRITE);
    ASSERT(place_of(b, FAKE_SET_FEATURES) < next);
    ASSERT(place_of(b, FAKE_SET_MEM_TABLE) < next);
    CHECK_CALL(begins_anew(b, &next));
    ASSERT(next <= place_of(b, FAKE_SET_VRING_CALL));
    ASSERT_UINT(2 * (1 + 4 * PARTS), writes(b, -1));
    PASS();
}

TEST start_behind_a_viommu_writes_these_bytes(bench *b)
{
    CHECK_CALL(start_is_right(b));
    const fake_call *bits = fake_kernel_last(&b->kernel, FAKE_SET_BACKEND_FEATURES, -1);
    ASSERT(bits != NULL);
    ASSERT_U64(2, fake_kernel_number(bits->bytes, 8));
    ASSERT(place_of(b, FAKE_SET_BACKEND_FEATURES) < place_of(b, FAKE_WRITE));
    PASS();
}

TEST kernels_without_version_2_are_written_version_1(bench *b)
{
    b->kernel.backend_features = 0;
    CHECK_CALL(start_is_right(b));
    ASSERT_UINT(0, fake_kernel_count(&b->kernel, FAKE_SET_BACKEND_FEATURES, -1));
    PASS();
}

TEST other_back_end_features_choose_no_version(bench *b)
{
    b->kernel.backend_features = ~UINT64_C(2);
    return start_is_right(b);
}

TEST version_2_is_used_only_if_every_fd_has_it(bench *b)
{
    b->kernel.lacks[1] = UINT64_C(1) << VHOST_FEATURE_EVENT_IDX; /* and back-end features */
    ASSERT_OK(running(b, 2));
    ASSERT_U64(1, fake_kernel_number(fake_kernel_last(&b->kernel, FAKE_WRITE, -1)->bytes, 4));
    PASS();
}

TEST rings_are_told_to_the_kernel_by_iova(bench *b)
{
    ASSERT_OK(running(b, 2));
    const fake_call *call = fake_kernel_last(&b->kernel, FAKE_SET_VRING_ADDR, fd_number(1));
    ASSERT(call != NULL);
    ASSERT_U64(1, fake_kernel_number(call->bytes, 4));
    ASSERT_U64(part_of(3, VHOST_DESC), fake_kernel_number(call->bytes + 8, 8));
    ASSERT_U64(part_of(3, VHOST_USED), fake_kernel_number(call->bytes + 16, 8));
    ASSERT_U64(part_of(3, VHOST_AVAIL), fake_kernel_number(call->bytes + 24, 8));
    ASSERT_U64(gpa_of(part_of(3, VHOST_USED)), fake_kernel_number(call->bytes + 32, 8));
    const fake_call *features = fake_kernel_last(&b->kernel, FAKE_SET_FEATURES, -1);
    ASSERT_U64(VERSION_1 | PLATFORM, fake_kernel_number(features->bytes, 8));
    PASS();
}

TEST a_mapping_that_one_fd_refuses_refuses_the_start(bench *b)
{
    ASSERT_OK(stopped(b, 2));
    fake_kernel_refuse(&b->kernel, FAKE_WRITE, fd_number(1), 3, -EFAULT);
    ASSERT_INT(-EFAULT, vhost_device_start(&b->device));
    ASSERT_INT(VHOST_OP_IOTLB_SEND, b->device.last_error.op);
    ASSERT_INT(VHOST_STATE_STOPPED, b->device.state);
    CHECK_CALL(check(b));
    fake_kernel_relent(&b->kernel);
    ASSERT_OK(vhost_device_start(&b->device));
    return check(b);
}

TEST one_queue_alone_is_mapped_on_every_fd(bench *b)
{
    unsigned next = 0;
    ASSERT_OK(running(b, 2));
    ASSERT_OK(vhost_queue_stop(&b->device, 2));
    fake_kernel_forget(&b->kernel);
    ASSERT_OK(vhost_queue_start(&b->device, 2));
    CHECK_CALL(maps_queue(b, &next, 2));
    ASSERT_UINT(2 * PARTS, writes(b, -1));
    return check(b);
}

/* ---- misses ---- */

TEST a_miss_is_answered_on_the_fd_that_missed(bench *b)
{
    ASSERT_OK(running_anew(b, 3));
    for (unsigned pair = 0; pair < 3; pair++) {
        unsigned next = 0;
        fake_kernel_forget(&b->kernel);
        say(b, pair, MISS, IOVA + 3 * CHUNK + 0x1234 + pair, RO);
        ASSERT_OK(vhost_device_process(&b->device));
        CHECK_CALL(answers_next(b, &next, pair, IOVA + 3 * CHUNK));
        ASSERT_UINT(1, writes(b, -1));
    }
    return check(b);
}

TEST misses_of_old_kernels_are_version_1(bench *b)
{
    unsigned next = 0;
    b->kernel.backend_features = 0;
    ASSERT_OK(running_anew(b, 2));
    say(b, 1, MISS, IOVA + CHUNK, WO);
    ASSERT_OK(vhost_device_process(&b->device));
    CHECK_CALL(answers_next(b, &next, 1, IOVA + CHUNK));
    ASSERT_UINT(1, writes(b, -1));
    PASS();
}

TEST an_answer_tells_what_the_entry_permits(bench *b)
{
    unsigned next = 0;
    uint64_t read_only = IOVA + (CHUNKS - 1) * CHUNK;
    ASSERT_OK(running_anew(b, 1));
    say(b, 0, MISS, read_only, WO);
    say(b, 0, MISS, read_only, RO);
    ASSERT_OK(vhost_device_process(&b->device));
    ASSERT_UINT(1, b->f->errors);
    CHECK_CALL(answers_next(b, &next, 0, read_only));
    ASSERT_UINT(1, writes(b, -1));
    return check(b);
}

/* The fd of an answer is that of its miss, and is forgotten with it. */
TEST what_is_unmapped_after_a_miss_is_told_to_every_fd(bench *b)
{
    unsigned char bytes[MESSAGE];
    unsigned next = 0;
    ASSERT_OK(running_anew(b, 3));
    say(b, 1, MISS, IOVA, RO);
    say(b, 2, MISS, 0x1000, RO);
    ASSERT_OK(vhost_device_process(&b->device));
    fake_kernel_forget(&b->kernel);
    ASSERT_OK(vhost_device_unmapped(&b->device, IOVA + CHUNK, 3 * PAGE));
    make_message(bytes, 2, INVALIDATE, IOVA + CHUNK, 3 * PAGE, 0, 0);
    CHECK_CALL(writes_to_all(b, &next, bytes));
    ASSERT_UINT(3, writes(b, -1));
    return check(b);
}

TEST misses_are_read_until_there_are_no_more(bench *b)
{
    unsigned next = 0;
    ASSERT_OK(running_anew(b, 2));
    for (unsigned i = 0; i < 5; i++) {
        say(b, 1, MISS, IOVA + i * CHUNK, RO);
    }
    say(b, 0, MISS, IOVA + 6 * CHUNK, RO);
    ASSERT_OK(vhost_device_process(&b->device));
    CHECK_CALL(answers_next(b, &next, 0, IOVA + 6 * CHUNK));
    for (unsigned i = 0; i < 5; i++) {
        CHECK_CALL(answers_next(b, &next, 1, IOVA + i * CHUNK));
    }
    ASSERT_UINT(2 + 6, b->reads);
    ASSERT_UINT(6, b->translations);
    PASS();
}

TEST no_fd_has_more_than_256_misses_answered_in_a_row(bench *b)
{
    ASSERT_OK(running_anew(b, 2));
    for (unsigned i = 0; i < 300; i++) {
        say(b, 0, MISS, IOVA, RO);
    }
    say(b, 1, MISS, IOVA, RO);
    ASSERT_OK(vhost_device_process(&b->device));
    ASSERT_UINT(256, writes(b, fd_number(0)));
    ASSERT_UINT(1, writes(b, fd_number(1)));
    ASSERT_UINT(44, b->wire_count);
    ASSERT_OK(vhost_device_process(&b->device));
    ASSERT_UINT(300, writes(b, fd_number(0)));
    return check(b);
}

TEST a_miss_without_translation_waits(bench *b)
{
    ASSERT_OK(running_anew(b, 2));
    say(b, 1, MISS, 0x1000, RO);
    ASSERT_OK(vhost_device_process(&b->device));
    ASSERT_UINT(0, writes(b, -1));
    ASSERT_UINT(1, b->f->errors);
    ASSERT_INT(VHOST_WHY_IOTLB_UNMAPPED, b->device.last_error.why);
    ASSERT_INT(VHOST_STATE_RUNNING, b->device.state);
    return check(b);
}

TEST messages_that_are_no_misses_are_passed_over(bench *b)
{
    unsigned next = 0;
    ASSERT_OK(running_anew(b, 1));
    say(b, 0, FAIL, IOVA, RW);
    say(b, 0, UPDATE, IOVA, RW);
    say(b, 0, 255, IOVA, RW);
    say(b, 0, MISS, IOVA, RO);
    ASSERT_OK(vhost_device_process(&b->device));
    ASSERT_UINT(3, b->f->errors);
    CHECK_CALL(answers_next(b, &next, 0, IOVA));
    ASSERT_UINT(1, writes(b, -1));
    return check(b);
}

TEST misses_that_come_late_are_not_answered(bench *b)
{
    ASSERT_OK(running(b, 2));
    ASSERT_OK(vhost_device_stop(&b->device));
    fake_kernel_forget(&b->kernel);
    say(b, 1, MISS, IOVA, RO);
    ASSERT_OK(vhost_device_process(&b->device));
    ASSERT_UINT(0, b->wire_count);
    ASSERT_UINT(0, writes(b, -1));
    ASSERT_INT(VHOST_STATE_STOPPED, b->device.state);
    return check(b);
}

/* ---- what may go wrong on an fd ---- */

TEST interrupted_reads_and_writes_are_repeated(bench *b)
{
    unsigned next = 0;
    ASSERT_OK(stopped(b, 2));
    b->interruptions = 3;
    ASSERT_OK(vhost_device_start(&b->device));
    ASSERT_UINT(0, b->interruptions);
    ASSERT_UINT(2 * (1 + 4 * PARTS), writes(b, -1));
    fake_kernel_forget(&b->kernel);
    say(b, 1, MISS, IOVA, RO);
    b->interruptions = 5;
    ASSERT_OK(vhost_device_process(&b->device));
    ASSERT_UINT(0, b->interruptions);
    CHECK_CALL(answers_next(b, &next, 1, IOVA));
    return check(b);
}

static enum greatest_test_res breaks_by_reading(bench *b, int code)
{
    ASSERT_INT(code, vhost_device_process(&b->device));
    CHECK_CALL(is_broken(b, code));
    ASSERT_INT(VHOST_OP_PROCESS, b->device.last_error.op);
    ASSERT_INT(code, b->net.last_error.code);
    ASSERT_INT(code == -EPROTO ? VHOST_WHY_IOTLB_MESSAGE : VHOST_WHY_BACKEND_REFUSED,
               b->net.last_error.why);
    ASSERT_UINT(0, writes(b, -1));
    PASS();
}

/* In both versions, on the second fd: too short, empty, and the version of another. */
TEST messages_of_another_size_or_version_break_the_device(bench *b)
{
    static const size_t sizes[] = {0, 4, 8, 34, 71, MESSAGE, MESSAGE, MESSAGE};
    static const uint32_t off[] = {0, 0, 0, 0, 0, 1, 2, 0xff00};
    fixture *f = b->f;
    for (size_t i = 0; i < 2 * sizeof sizes / sizeof *sizes; i++) {
        close_bench(b);
        open_bench(b, f);
        b->kernel.backend_features = i % 2 ? 2 : 0;
        ASSERT_OK(running_anew(b, 2));
        say(b, 1, MISS, IOVA, RO);
        uint32_t version = version_of(b) + off[i / 2];
        memcpy(b->wire[0].bytes, &version, 4);
        b->wire[0].size = sizes[i / 2];
        CHECK_CALL(breaks_by_reading(b, -EPROTO));
    }
    PASS();
}

TEST a_read_that_fails_breaks_the_device(bench *b)
{
    ASSERT_OK(running_anew(b, 2));
    b->read_error = -EIO;
    return breaks_by_reading(b, -EIO);
}

TEST a_start_whose_message_is_written_short_fails(bench *b)
{
    ASSERT_OK(stopped(b, 2));
    b->cut = 1;
    ASSERT_INT(-EIO, vhost_device_start(&b->device));
    ASSERT_INT(VHOST_OP_IOTLB_SEND, b->device.last_error.op);
    ASSERT_INT(VHOST_STATE_STOPPED, b->device.state);
    CHECK_CALL(check(b));
    ASSERT_OK(vhost_device_start(&b->device));
    return check(b);
}

TEST an_unmapping_that_is_written_short_breaks_the_device(bench *b)
{
    ASSERT_OK(running(b, 2));
    b->cut = MESSAGE;
    ASSERT_INT(-EIO, vhost_device_unmapped(&b->device, IOVA, PAGE));
    return is_broken(b, -EIO);
}

TEST an_unmapping_that_one_fd_refuses_breaks_the_device(bench *b)
{
    ASSERT_OK(running(b, 3));
    fake_kernel_refuse(&b->kernel, FAKE_WRITE, fd_number(2), 0, -EFAULT);
    ASSERT_INT(-EFAULT, vhost_device_unmapped(&b->device, IOVA, PAGE));
    fake_kernel_relent(&b->kernel);
    return is_broken(b, -EFAULT);
}

TEST an_answer_that_the_kernel_refuses_breaks_nothing(bench *b)
{
    unsigned next = 0;
    ASSERT_OK(running_anew(b, 1));
    fake_kernel_refuse_once(&b->kernel, FAKE_WRITE, -1, 0, -EFAULT);
    say(b, 0, MISS, IOVA, RO);
    say(b, 0, MISS, IOVA + CHUNK, RO);
    ASSERT_OK(vhost_device_process(&b->device));
    ASSERT_UINT(1, b->f->errors);
    (void)next_write(b, &next);
    CHECK_CALL(answers_next(b, &next, 0, IOVA + CHUNK));
    return check(b);
}

/* ---- fds: polled, and not waited for ---- */

TEST all_vhost_fds_are_polled_for_misses(bench *b)
{
    int fds[4];
    ASSERT_OK(stopped(b, 3));
    ASSERT_UINT(3 + QUEUES, vhost_device_poll_fds(&b->device, fds, 4));
    ASSERT_INT(fd_number(0), fds[0]);
    ASSERT_INT(fd_number(1), fds[1]);
    ASSERT_INT(fd_number(2), fds[2]);
    ASSERT(fds[3] >= FIXTURE_EVENT_FD && fds[3] < FAKE_FD - 1);
    fds[1] = -7;
    ASSERT_UINT(3 + QUEUES, vhost_device_poll_fds(&b->device, fds, 1));
    ASSERT_INT(-7, fds[1]);
    ASSERT_UINT(3 + QUEUES, vhost_device_poll_fds(&b->device, NULL, 0));
    PASS();
}

TEST opening_makes_reads_not_wait(bench *b)
{
    ASSERT_OK(stopped(b, 3));
    for (unsigned pair = 0; pair < 3; pair++) {
        const fake_call *call = fake_kernel_last(&b->kernel, FAKE_FIONBIO, fd_number(pair));
        ASSERT(call != NULL);
        ASSERT_U64(1, fake_kernel_number(call->bytes, 4));
        ASSERT(b->kernel.fds[pair].patient);
    }
    ASSERT_OK(vhost_device_process(&b->device));
    PASS();
}

TEST an_fd_that_would_wait_is_not_taken(bench *b)
{
    for (int pair = 0; pair < 2; pair++) {
        fake_kernel_refuse(&b->kernel, FAKE_FIONBIO, -1, pair, -EINVAL);
        ASSERT_INT(-EINVAL, stopped(b, 2));
        ASSERT_INT(VHOST_STATE_CLOSED, b->device.state);
        ASSERT(strstr(b->net.last_error.text, "FIONBIO") != NULL);
        ASSERT_UINT(0, fake_kernel_open_fds(&b->kernel));
        vhost_kernel_close(&b->net);
    }
    fake_kernel_relent(&b->kernel);
    PASS();
}

/* ---- the map, the log ---- */

TEST a_commit_that_takes_memory_away_empties_every_iotlb(bench *b)
{
    unsigned next = 0;
    ASSERT_OK(running(b, 2));
    ASSERT_OK(map_three(b));
    fake_kernel_forget(&b->kernel);
    ASSERT_OK(fixture_map_default(b->f));
    ASSERT_UINT(2, place_of(b, FAKE_WRITE));
    ASSERT_UINT(2, fake_kernel_count(&b->kernel, FAKE_SET_MEM_TABLE, -1));
    CHECK_CALL(begins_anew(b, &next));
    ASSERT_UINT(b->kernel.count, next);
    return check(b);
}

/* vhost-net has an empty IOTLB after each SET_FEATURES. */
TEST the_log_is_switched_with_all_rings_mapped_again(bench *b)
{
    for (int on = 1; on >= 0; on--) {
        ASSERT_OK(on ? running(b, 2) : 0);
        fake_kernel_forget(&b->kernel);
        ASSERT_OK(on ? vhost_log_start(&b->f->vm) : vhost_log_stop(&b->f->vm));
        unsigned next = place_of(b, FAKE_SET_FEATURES);
        ASSERT(next < place_of(b, FAKE_WRITE));
        CHECK_CALL(begins_anew(b, &next));
        ASSERT_UINT(2 * (1 + 4 * PARTS), writes(b, -1));
        ASSERT_UINT(4, fake_kernel_count(&b->kernel, FAKE_SET_VRING_ADDR, -1));
    }
    return check(b);
}

/* ---- ACCESS_PLATFORM comes and goes with the driver ---- */

static int reboot(bench *b, uint64_t features)
{
    int result = vhost_device_stop(&b->device);
    if (result >= 0) {
        result = vhost_device_reset(&b->device);
    }
    if (result >= 0) {
        result = vhost_device_ack(&b->device, fixture_features(features, 0));
    }
    fill(b, features & PLATFORM ? IOVA : 0);
    return result;
}

TEST a_driver_without_the_viommu_gets_fds_that_never_had_one(bench *b)
{
    b->kernel.release = FAKE_LINUX_6_1;
    ASSERT_OK(running(b, 2));
    ASSERT_OK(reboot(b, VERSION_1));
    fake_kernel_forget(&b->kernel);
    ASSERT_OK(vhost_device_start(&b->device));
    ASSERT_UINT(2, fake_kernel_count(&b->kernel, FAKE_RESET_OWNER, -1));
    ASSERT_UINT(2, fake_kernel_count(&b->kernel, FAKE_SET_OWNER, -1));
    ASSERT_UINT(2, fake_kernel_count(&b->kernel, FAKE_SET_MEM_TABLE, -1));
    ASSERT_UINT(0, writes(b, -1));
    ASSERT_INT(300, b->kernel.fds[0].ring[1].tap);
    ASSERT_INT(301, b->kernel.fds[1].ring[0].tap);
    CHECK_CALL(check(b));
    ASSERT_OK(reboot(b, VERSION_1 | PLATFORM));
    fake_kernel_forget(&b->kernel);
    ASSERT_OK(vhost_device_start(&b->device));
    ASSERT_UINT(0, fake_kernel_count(&b->kernel, FAKE_RESET_OWNER, -1));
    unsigned next = 0;
    CHECK_CALL(begins_anew(b, &next));
    return check(b);
}

TEST a_driver_that_keeps_the_viommu_resets_no_owner(bench *b)
{
    ASSERT_OK(running(b, 2));
    ASSERT_OK(reboot(b, VERSION_1 | PLATFORM));
    ASSERT_OK(vhost_device_start(&b->device));
    ASSERT_UINT(0, fake_kernel_count(&b->kernel, FAKE_RESET_OWNER, -1));
    return check(b);
}

TEST a_viommu_given_back_in_several_attempts(bench *b)
{
    static const fake_op ops[] = {FAKE_RESET_OWNER, FAKE_SET_OWNER, FAKE_FIONBIO, FAKE_SET_FEATURES,
                                  FAKE_SET_BACKEND_FEATURES};
    fixture *f = b->f;
    for (size_t i = 0; i < 2 * sizeof ops / sizeof *ops; i++) {
        close_bench(b);
        open_bench(b, f);
        b->kernel.release = FAKE_LINUX_6_1;
        ASSERT_OK(running(b, 2));
        ASSERT_OK(reboot(b, VERSION_1));
        fake_kernel_refuse(&b->kernel, ops[i / 2], fd_number(i % 2), 0, -ENOMEM);
        ASSERT_INT(-ENOMEM, vhost_device_start(&b->device));
        CHECK_CALL(check(b));
        fake_kernel_relent(&b->kernel);
        ASSERT_OK(vhost_device_start(&b->device));
        ASSERT_INT(301, b->kernel.fds[1].ring[1].tap);
        CHECK_CALL(check(b));
    }
    PASS();
}

/* ---- steady state, and failures ---- */

static enum greatest_test_res one_round(bench *b)
{
    ASSERT_OK(vhost_device_start(&b->device));
    say(b, 1, MISS, IOVA, RO);
    ASSERT_OK(vhost_device_process(&b->device));
    ASSERT_OK(vhost_device_unmapped(&b->device, IOVA, PAGE));
    ASSERT_OK(vhost_device_stop(&b->device));
    fake_kernel_forget(&b->kernel);
    PASS();
}

TEST misses_in_a_steady_state_allocate_nothing(bench *b)
{
    ASSERT_OK(stopped(b, 2));
    CHECK_CALL(one_round(b));
    size_t before = b->f->allocation_calls;
    CHECK_CALL(one_round(b));
    CHECK_CALL(one_round(b));
    ASSERT_UINT(before, b->f->allocation_calls);
    PASS();
}

static int step_start(bench *b)
{
    fill(b, b->device.acked.word[0] & PLATFORM ? IOVA : 0);
    for (unsigned q = 0; q < QUEUES; q++) {
        b->queue[q].position.state = VHOST_POSITION_INITIAL;
    }
    return b->device.state == VHOST_STATE_RUNNING ? 0 : vhost_device_start(&b->device);
}

static int step_miss(bench *b)
{
    b->wire_count = 0;
    say(b, 1, MISS, IOVA, RO);
    return vhost_device_process(&b->device);
}

static int step_unmapped(bench *b)
{
    return vhost_device_unmapped(&b->device, IOVA + 2 * CHUNK, PAGE);
}

static int step_log_on(bench *b)
{
    return vhost_log_start(&b->f->vm);
}

static int step_log_off(bench *b)
{
    return vhost_log_stop(&b->f->vm);
}

static int step_shrink(bench *b)
{
    return fixture_map_default(b->f);
}

static int step_queue(bench *b)
{
    int result = vhost_queue_stop(&b->device, 2);
    b->queue[2].position.state = VHOST_POSITION_INITIAL;
    return result < 0 ? result : vhost_queue_start(&b->device, 2);
}

static int step_give_back(bench *b)
{
    return reboot(b, VERSION_1);
}

static int step_take_again(bench *b)
{
    return reboot(b, VERSION_1 | PLATFORM);
}

typedef int step(bench *b);

static step *const steps[] = {
    step_start, step_miss,  step_unmapped,  map_three,  step_shrink,     step_log_on, step_log_off,
    step_queue, step_start, step_give_back, step_start, step_take_again, step_start,  step_miss};

/* A device that broke is opened again; one that does not run is started. */
static int revive(bench *b)
{
    vhost_features accepted = b->device.acked;
    int result = 0;
    if (b->device.state == VHOST_STATE_BROKEN) {
        result = vhost_device_reset(&b->device);
        result = result < 0 ? result : vhost_device_ack(&b->device, accepted);
    }
    return result < 0 ? result : step_start(b);
}

static enum greatest_test_res take_step(bench *b, step *next)
{
    for (int attempt = 0; attempt < 4; attempt++) {
        int result = b->device.state == VHOST_STATE_BROKEN ? revive(b) : next(b);
        CHECK_CALL(check(b));
        if (result >= 0 && b->device.state != VHOST_STATE_BROKEN) {
            PASS();
        }
    }
    FAILm("a step fails though nothing stands in its way");
}

static enum greatest_test_res live(bench *b)
{
    for (size_t i = 0; i < sizeof steps / sizeof *steps; i++) {
        CHECK_CALL(take_step(b, steps[i]));
    }
    PASS();
}

static enum greatest_test_res lives_again(bench *b, fault_plan plan, unsigned distance)
{
    fixture *f = b->f;
    bool hit = true;
    for (unsigned nth = 1; hit; nth++) {
        fake_release release = b->kernel.release;
        close_bench(b);
        CHECK_CALL(fixture_renew(f));
        open_bench(b, f);
        b->kernel.release = release;
        ASSERT_OK(stopped(b, 2));
        ASSERT_OK(map_three(b));
        fault_arm(&f->fault, plan, nth, distance);
        CHECK_CALL(live(b));
        hit = f->fault.hit;
    }
    PASS();
}

TEST any_call_behind_a_viommu_may_fail(bench *b)
{
    CHECK_CALL(lives_again(b, FAULT_ONCE, 0));
    return lives_again(b, FAULT_TWICE, 3);
}

TEST any_call_behind_a_viommu_may_fail_on_an_old_kernel(bench *b)
{
    b->kernel.release = FAKE_LINUX_6_1;
    return lives_again(b, FAULT_ONCE, 0);
}

/* ---- the suite ---- */

static bench_test *test_of_now;

static enum greatest_test_res run_on_bench(fixture *f)
{
    open_bench(&the, f);
    enum greatest_test_res result = test_of_now(&the);
    if (result == GREATEST_TEST_RES_PASS) {
        result = check(&the);
    }
    const char *message = greatest_info.msg;
    close_bench(&the);
    greatest_info.msg = message;
    CHECK_CALL(result);
    ASSERT_STR_EQ("", the.kernel.complaint);
    ASSERT_UINT(0, fake_kernel_open_fds(&the.kernel));
    ASSERT_INT(0, the.watching);
    PASS();
}

#define RUN_KERNEL(TEST_NAME)                                                                      \
    do {                                                                                           \
        test_of_now = TEST_NAME;                                                                   \
        if (greatest_test_pre(#TEST_NAME) == 1) {                                                  \
            greatest_test_post(fixture_run(run_on_bench, MOCK_SYNCHRONOUS));                       \
        }                                                                                          \
    } while (0)

SUITE(kernel_iotlb_suite)
{
    RUN_KERNEL(start_behind_a_viommu_writes_these_bytes);
    RUN_KERNEL(kernels_without_version_2_are_written_version_1);
    RUN_KERNEL(other_back_end_features_choose_no_version);
    RUN_KERNEL(version_2_is_used_only_if_every_fd_has_it);
    RUN_KERNEL(rings_are_told_to_the_kernel_by_iova);
    RUN_KERNEL(a_mapping_that_one_fd_refuses_refuses_the_start);
    RUN_KERNEL(one_queue_alone_is_mapped_on_every_fd);
    RUN_KERNEL(a_miss_is_answered_on_the_fd_that_missed);
    RUN_KERNEL(misses_of_old_kernels_are_version_1);
    RUN_KERNEL(an_answer_tells_what_the_entry_permits);
    RUN_KERNEL(what_is_unmapped_after_a_miss_is_told_to_every_fd);
    RUN_KERNEL(misses_are_read_until_there_are_no_more);
    RUN_KERNEL(no_fd_has_more_than_256_misses_answered_in_a_row);
    RUN_KERNEL(a_miss_without_translation_waits);
    RUN_KERNEL(messages_that_are_no_misses_are_passed_over);
    RUN_KERNEL(misses_that_come_late_are_not_answered);
    RUN_KERNEL(interrupted_reads_and_writes_are_repeated);
    RUN_KERNEL(messages_of_another_size_or_version_break_the_device);
    RUN_KERNEL(a_read_that_fails_breaks_the_device);
    RUN_KERNEL(a_start_whose_message_is_written_short_fails);
    RUN_KERNEL(an_unmapping_that_is_written_short_breaks_the_device);
    RUN_KERNEL(an_unmapping_that_one_fd_refuses_breaks_the_device);
    RUN_KERNEL(an_answer_that_the_kernel_refuses_breaks_nothing);
    RUN_KERNEL(all_vhost_fds_are_polled_for_misses);
    RUN_KERNEL(opening_makes_reads_not_wait);
    RUN_KERNEL(an_fd_that_would_wait_is_not_taken);
    RUN_KERNEL(a_commit_that_takes_memory_away_empties_every_iotlb);
    RUN_KERNEL(the_log_is_switched_with_all_rings_mapped_again);
    RUN_KERNEL(a_driver_without_the_viommu_gets_fds_that_never_had_one);
    RUN_KERNEL(a_driver_that_keeps_the_viommu_resets_no_owner);
    RUN_KERNEL(a_viommu_given_back_in_several_attempts);
    RUN_KERNEL(misses_in_a_steady_state_allocate_nothing);
    RUN_KERNEL(any_call_behind_a_viommu_may_fail);
    RUN_KERNEL(any_call_behind_a_viommu_may_fail_on_an_old_kernel);
}
