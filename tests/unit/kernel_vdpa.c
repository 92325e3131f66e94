/* vhost-vdpa of vhost_kernel.h, on a kernel that records: what it says, byte by byte, and what the
   device can reach at any time. */
#include "fake_kernel.h"
#include "fixture.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define PAGE      VHOST_PAGE
#define BIT(n)    (UINT64_C(1) << (n))
#define VERSION_1 BIT(VHOST_FEATURE_VERSION_1)
#define PLATFORM  BIT(VHOST_FEATURE_ACCESS_PLATFORM)
#define PACKED    BIT(VHOST_FEATURE_RING_PACKED)
#define IN_ORDER  BIT(VHOST_FEATURE_IN_ORDER)

/* ioctls, as on x86, Arm, RISC-V and s390 */
#define GET_FEATURES         0x8008af00ul
#define SET_FEATURES         0x4008af00ul
#define SET_OWNER            0xaf01ul
#define SET_VRING_NUM        0x4008af10ul
#define SET_VRING_ADDR       0x4028af11ul
#define SET_VRING_BASE       0x4008af12ul
#define GET_VRING_BASE       0xc008af12ul
#define SET_VRING_KICK       0x4008af20ul
#define SET_VRING_CALL       0x4008af21ul
#define SET_VRING_ERR        0x4008af22ul
#define SET_BACKEND_FEATURES 0x4008af25ul
#define GET_BACKEND_FEATURES 0x8008af26ul
#define GET_DEVICE_ID        0x8004af70ul
#define GET_STATUS           0x8001af71ul
#define SET_STATUS           0x4001af72ul
#define GET_CONFIG           0x8008af73ul
#define SET_CONFIG           0x4008af74ul
#define SET_VRING_ENABLE     0x4008af75ul
#define GET_VRING_MAX        0x8002af76ul
#define SET_CONFIG_CALL      0x4004af77ul
#define GET_IOVA_RANGE       0x8010af78ul
#define GET_CONFIG_SIZE      0x8004af79ul
#define GET_AS_NUM           0x8004af7aul
#define GET_VRING_GROUP      0xc008af7bul
#define SET_GROUP_ASID       0x4008af7cul
#define SUSPEND              0xaf7dul
#define RESUME               0xaf7eul
#define GET_VQS_COUNT        0x8004af80ul
#define GET_GROUP_NUM        0x8004af81ul
#define GET_VRING_SIZE       0xc008af82ul
#define GET_FEATURES_ARRAY   0x8008af83ul
#define FIONBIO_REQUEST      0x5421ul
#define MESSAGE              0ul /* no ioctl: written */

enum {
    QUEUES = 3,
    RING_PAGES = 4, /* of each queue, from gpa 0 on */
    MAPS = 32,
    UPDATE = 2, /* types of messages, as in <linux/vhost_types.h> */
    INVALIDATE = 3,
    BATCH_BEGIN = 5,
    BATCH_END = 6,
    READ_WRITE = 3
};

enum { /* back-end features */
    F_V2 = 1u << 1,
    F_BATCH = 1u << 2,
    F_ASID = 1u << 3,
    F_SUSPEND = 1u << 4,
    F_RESUME = 1u << 5,
    F_PERSIST = 1u << 8,
    F_ALL = F_V2 | F_BATCH | F_ASID | F_SUSPEND | F_RESUME | F_PERSIST
};

typedef struct map {
    uint64_t iova, size, host;
    unsigned permit;
    bool lost; /* by a reset: the kernel still has it, the device does not */
} map;

/* What the messages for space 0 come to, by the calls alone. */
typedef struct ledger {
    map maps[MAPS];
    map gone[MAPS]; /* while the device runs, since the last look */
    unsigned count, gone_count;
    unsigned mapped, unmapped, wiped; /* messages since the last look */
    unsigned alone;                   /* of these, outside of batches though there are batches */
    bool ever;                        /* something was mapped since all was taken away */
    uint64_t backend_features;
    uint8_t status;
    bool runs, batching;
    const char *wrong; /* the first; NULL: nothing */
} ledger;

typedef struct bench {
    fixture *f;
    fake_kernel kernel;
    vhost_kernel_calls calls;
    vhost_kernel_options options;
    vhost_device_options device_options;
    vhost_kernel vdpa;
    vhost_device device;
    vhost_queue queue[QUEUES];
    vhost_features accepted;
    bool write_interrupted;
    ledger ledger;
} bench;

typedef enum greatest_test_res bench_test(bench *b);

static bench the;

/* ---- between the library and the fake ---- */

/* The end of a batch that is refused is one all the same: no library can do more. */
static ptrdiff_t write_to_fake(int fd, const void *bytes, size_t size, void *user)
{
    ptrdiff_t count = fake_kernel_calls.write(fd, bytes, size, user);
    if (count < 0 && size == FAKE_MESSAGE && ((const unsigned char *)bytes)[33] == BATCH_END) {
        the.kernel.vdpa.in_batch = false;
    }
    return count;
}

static ptrdiff_t write_interrupting(int fd, const void *bytes, size_t size, void *user)
{
    if (the.kernel.interrupts) {
        the.write_interrupted = !the.write_interrupted;
        if (the.write_interrupted) {
            return -EINTR;
        }
    }
    return write_to_fake(fd, bytes, size, user);
}

/* ---- arranging ---- */

static void fill(bench *b)
{
    for (uint32_t q = 0; q < QUEUES; q++) {
        vhost_queue *queue = &b->queue[q];
        uint64_t area = PAGE * RING_PAGES * q;
        queue->ready = true;
        queue->size = 256;
        queue->desc = area;
        queue->avail = area + PAGE;
        queue->used = area + 2 * PAGE;
        queue->kick_fd = (int)(500 + q);
        queue->call_fd = (int)(600 + q);
    }
}

static int open_vdpa(bench *b)
{
    return vhost_kernel_vdpa_open(&b->vdpa, FAKE_VDPA_PATH, &b->options);
}

static int init_device(bench *b)
{
    return vhost_device_init(&b->device, &b->f->vm, vhost_kernel_ops(&b->vdpa), &b->vdpa, b->queue,
                             QUEUES, &b->device_options);
}

static int ack(bench *b)
{
    fill(b);
    return vhost_device_ack(&b->device, b->accepted);
}

static int attach_device(bench *b)
{
    int result = init_device(b);
    return result < 0 ? result : ack(b);
}

static int opened(bench *b)
{
    int result = fixture_map_default(b->f);
    if (result >= 0) {
        result = open_vdpa(b);
    }
    return result;
}

static int stopped(bench *b)
{
    int result = opened(b);
    if (result >= 0) {
        result = attach_device(b);
    }
    return result;
}

static int running(bench *b)
{
    int result = stopped(b);
    if (result >= 0) {
        result = vhost_device_start(&b->device);
    }
    fake_kernel_forget(&b->kernel);
    return result;
}

static int running_with(bench *b, uint64_t backend_features)
{
    b->kernel.offers[FAKE_VDPA].backend_features = backend_features;
    return running(b);
}

/* The default map and one section more. */
static int grow(bench *b)
{
    vhost_section sections[3];
    sections[0] = b->f->low;
    sections[1] = b->f->high;
    sections[2] = fixture_section(b->f, FIXTURE_REMOTE, 1, 0);
    return fixture_map(b->f, sections, 3);
}

/* High memory becomes other memory, at the same place. */
static int swap_high(bench *b, uint64_t first_page)
{
    vhost_section sections[2];
    sections[0] = b->f->low;
    sections[1] = fixture_section(b->f, FIXTURE_HIGH, 32, first_page);
    return fixture_map(b->f, sections, 2);
}

static void refuse_message(bench *b, int skip, int error)
{
    fake_kernel_refuse(&b->kernel, FAKE_WRITE, -1, skip, error);
}

/* Breaks a running device: a commit of which a message is refused. */
static int break_device(bench *b)
{
    refuse_message(b, 0, -EFAULT);
    int result = grow(b);
    fake_kernel_relent(&b->kernel);
    return result;
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
    b->kernel.offers[FAKE_VDPA].features = VERSION_1 | PLATFORM | PACKED | IN_ORDER;
    b->kernel.offers[FAKE_VDPA].backend_features = F_ALL;
    b->kernel.vdpa.groups = b->kernel.vdpa.spaces = 2;
    b->kernel.vdpa.group_of[2] = 1;
    b->calls = fake_kernel_calls;
    b->calls.write = write_interrupting;
    b->options = fake_kernel_options(&b->kernel);
    b->options.calls = &b->calls;
    b->device_options = f->device_options;
    b->device_options.on_broken = NULL;
    b->accepted = fixture_features(VERSION_1, 0);
    for (uint32_t q = 0; q < QUEUES; q++) {
        vhost_queue_init(&b->queue[q]);
    }
}

static void close_bench(bench *b)
{
    fault_disarm(&b->f->fault);
    fake_kernel_relent(&b->kernel);
    vhost_device_cleanup(&b->device);
    vhost_kernel_close(&b->vdpa);
}

/* ---- checking: calls, byte by byte ---- */

/* A call by hand: its request (0: a message), and its bytes as numbers of 1, 2, 4 or 8 bytes. */
typedef struct expected {
    unsigned long request;
    const char *widths;
    uint64_t numbers[8];
} expected;

static uint64_t number_at(const unsigned char *bytes, size_t width)
{
    uint16_t half;
    if (width == 1) {
        return bytes[0];
    }
    if (width == 2) {
        memcpy(&half, bytes, sizeof half);
        return half;
    }
    return fake_kernel_number(bytes, width);
}

static enum greatest_test_res call_is(const fake_call *call, const expected *e)
{
    size_t at = 0;
    ASSERT_EQ_FMT(e->request, call->request, "%#lx");
    ASSERT(e->request != MESSAGE || call->op == FAKE_WRITE);
    for (size_t i = 0; e->widths[i] != '\0'; i++) {
        size_t width = (size_t)(e->widths[i] - '0');
        ASSERT(at + width <= call->size);
        ASSERT_U64(e->numbers[i], number_at(call->bytes + at, width));
        at += width;
    }
    for (; e->request == MESSAGE && call->size == FAKE_MESSAGE && at < call->size; at++) {
        ASSERT_UINT(0, call->bytes[at]);
    }
    ASSERT_UINT(call->size, at);
    PASS();
}

/* Whether the calls from *next on are these. */
static enum greatest_test_res calls_are(const bench *b, unsigned *next, const expected *e,
                                        size_t count)
{
    for (size_t i = 0; i < count; i++) {
        ASSERT(*next < b->kernel.count);
        CHECK_CALL(call_is(&b->kernel.calls[*next], &e[i]));
        ++*next;
    }
    PASS();
}

#define CALLS_ARE(B, NEXT, LIST)                                                                   \
    CHECK_CALL(calls_are((B), (NEXT), (LIST), sizeof(LIST) / sizeof(LIST)[0]))

/* These calls, and no others. */
#define ONLY_CALLS_ARE(B, LIST)                                                                    \
    do {                                                                                           \
        unsigned only_next = 0;                                                                    \
        CALLS_ARE((B), &only_next, (LIST));                                                        \
        ASSERT_UINT((B)->kernel.count, only_next);                                                 \
    } while (0)

static uint64_t number_of(const void *pointer)
{
    return (uintptr_t)pointer;
}

/* Version, space, iova, size, host, permit, type. */
#define MESSAGE_WIDTHS "4488811"

static expected unmap_of(uint64_t iova, uint64_t size)
{
    const expected e = {MESSAGE, MESSAGE_WIDTHS, {2, 0, iova, size, 0, 0, INVALIDATE}};
    return e;
}

static expected map_of(uint64_t iova, uint64_t pages, const unsigned char *host)
{
    const expected e = {
        MESSAGE, MESSAGE_WIDTHS, {2, 0, iova, pages * PAGE, number_of(host), READ_WRITE, UPDATE}};
    return e;
}

/* Buffers may wait in a ring: it is looked at once it runs. */
static const expected a_kick = {MESSAGE, "8", {1}};
static const expected batch_begin = {MESSAGE, MESSAGE_WIDTHS, {2, 0, 0, 0, 0, 0, BATCH_BEGIN}};
static const expected batch_end = {MESSAGE, MESSAGE_WIDTHS, {2, 0, 0, 0, 0, 0, BATCH_END}};

static unsigned count_of(const bench *b, unsigned long request)
{
    unsigned count = 0;
    for (unsigned i = 0; i < b->kernel.count; i++) {
        count += b->kernel.calls[i].request == request;
    }
    return count;
}

/* Where the first such call is; -1: there is none. */
static int place_of(const bench *b, unsigned long request)
{
    for (unsigned i = 0; i < b->kernel.count; i++) {
        if (b->kernel.calls[i].request == request) {
            return (int)i;
        }
    }
    return -1;
}

/* The last status that was set; -1: none was. */
static int last_status(const bench *b)
{
    const fake_call *call = fake_kernel_last(&b->kernel, FAKE_VDPA_SET_STATUS, -1);
    return call ? call->bytes[0] : -1;
}

/* ---- checking: what the messages come to ---- */

static void note_wrong(ledger *l, const char *what)
{
    if (!l->wrong) {
        l->wrong = what;
    }
}

static bool meets(const map *m, uint64_t iova, uint64_t size)
{
    return iova <= m->iova + (m->size - 1) && m->iova <= iova + (size - 1);
}

static void take_away(ledger *l, uint64_t iova, uint64_t size)
{
    unsigned kept = 0;
    for (unsigned i = 0; i < l->count; i++) {
        map m = l->maps[i];
        if (!meets(&m, iova, size)) {
            l->maps[kept++] = m;
            continue;
        }
        if (size != UINT64_MAX && (m.iova != iova || m.size != size)) {
            note_wrong(l, "a map is taken away that was made otherwise");
        }
        if (l->runs && l->gone_count < MAPS) {
            l->gone[l->gone_count++] = m;
        }
    }
    l->count = kept;
}

static void put_there(ledger *l, const map *m)
{
    for (unsigned i = 0; i < l->count; i++) {
        if (meets(&l->maps[i], m->iova, m->size)) {
            note_wrong(l, "a map is made twice");
        }
    }
    for (unsigned i = 0; i < l->gone_count; i++) {
        if (l->runs && meets(&l->gone[i], m->iova, m->size)) {
            note_wrong(l, "memory was away while the device ran");
        }
    }
    if (l->count < MAPS) {
        l->maps[l->count++] = *m;
    }
}

static void read_message(ledger *l, const unsigned char *bytes)
{
    const map m = {number_at(bytes + 8, 8), number_at(bytes + 16, 8), number_at(bytes + 24, 8),
                   bytes[32], false};
    bool has_batches = (l->backend_features & F_BATCH) != 0;
    bool inside = l->batching || !has_batches;
    if (!inside && m.size != UINT64_MAX) { /* the end */
        inside = l->alone++ == 0;
    }
    switch (bytes[33]) {
    case UPDATE:
        l->ever = true;
        put_there(l, &m);
        break;
    case INVALIDATE:
        inside |= m.size == UINT64_MAX;
        l->ever &= m.size != UINT64_MAX;
        take_away(l, m.iova, m.size);
        break;
    default:
        inside = has_batches && l->batching == (bytes[33] == BATCH_END);
        l->batching = bytes[33] == BATCH_BEGIN;
    }
    if (!inside) {
        note_wrong(l, "batches do not begin and end around what changes");
    }
}

static void lose_maps(ledger *l)
{
    for (unsigned i = 0; i < l->count && (l->backend_features & F_PERSIST) == 0; i++) {
        l->maps[i].lost = true;
    }
}

static void read_status(ledger *l, uint8_t status)
{
    if (status == 0) {
        lose_maps(l);
    } else if ((l->status & ~status) != 0) {
        note_wrong(l, "a status bit is taken back");
    }
    l->status = status;
    l->runs = (status & 4) != 0;
}

/* Of space 0. */
static bool is_message(const fake_call *call)
{
    return call->op == FAKE_WRITE && call->size == FAKE_MESSAGE &&
           number_at(call->bytes + 4, 4) == 0;
}

static void count_message(ledger *l, const unsigned char *bytes)
{
    l->mapped += bytes[33] == UPDATE;
    l->unmapped += bytes[33] == INVALIDATE;
    l->wiped += bytes[33] == INVALIDATE && number_at(bytes + 16, 8) == UINT64_MAX;
}

static void read_call(ledger *l, const fake_call *call)
{
    switch (call->request) {
    case SET_BACKEND_FEATURES:
        l->backend_features = number_at(call->bytes, 8);
        break;
    case SET_STATUS:
        read_status(l, call->bytes[0]);
        break;
    case SUSPEND:
        l->runs = false;
        break;
    case RESUME:
        l->runs = (l->status & 4) != 0;
        break;
    case MESSAGE:
        if (is_message(call)) {
            read_message(l, call->bytes);
        }
        if (call->op == FAKE_CLOSE) {
            memset(l, 0, sizeof *l);
        }
        break;
    default:
        break;
    }
}

/* Enters the calls since the last look, and forgets them. */
static void look(bench *b)
{
    ledger *l = &b->ledger;
    l->mapped = l->unmapped = l->wiped = l->gone_count = l->alone = 0;
    for (unsigned i = 0; i < b->kernel.count; i++) {
        const fake_call *call = &b->kernel.calls[i];
        if (is_message(call)) {
            count_message(l, call->bytes);
        }
        if (call->result >= 0) {
            read_call(l, call);
        } else if (is_message(call) && call->bytes[33] == BATCH_END) {
            l->batching = false;
        }
    }
    fake_kernel_forget(&b->kernel);
}

/* Whether the device has these regions, no more and no fewer, by the ledger and by the fake. */
static enum greatest_test_res reaches(const bench *b, const vhost_table *table)
{
    const ledger *l = &b->ledger;
    ASSERT_UINT(table->count, l->count);
    for (uint32_t i = 0; i < table->count; i++) {
        const vhost_region *region = &table->regions[i];
        const map *found = NULL;
        for (unsigned k = 0; k < l->count; k++) {
            found = l->maps[k].iova == region->gpa ? &l->maps[k] : found;
        }
        ASSERT(found != NULL);
        ASSERT_U64(region->size, found->size);
        ASSERT_U64(number_of(region->host), found->host);
        ASSERT_UINT(READ_WRITE, found->permit);
        ASSERT_FALSE(found->lost);
    }
    ASSERT(fake_vdpa_has_table(&b->kernel, table));
    PASS();
}

/* ---- checking: states ---- */

static bool device_runs(const bench *b)
{
    return (b->kernel.vdpa.status & 4) != 0 && !b->kernel.vdpa.suspended;
}

/* A device that does not run touches nothing; of a broken one, the fd is closed. */
static enum greatest_test_res check_state(const bench *b)
{
    bool runs = b->device.state == VHOST_STATE_RUNNING;
    ASSERT_STR_EQ("", b->kernel.complaint);
    if (b->device.state == VHOST_STATE_BROKEN) {
        ASSERT_UINT(0, fake_kernel_open_fds(&b->kernel));
    }
    ASSERT_INT(runs, device_runs(b));
    for (uint32_t q = 0; q < QUEUES; q++) {
        ASSERT(!b->queue[q].started || runs);
    }
    if (runs && b->options.iova_of == NULL) {
        ASSERT(fake_vdpa_has_table(&b->kernel, vhost_device_table(&b->device)));
    }
    PASS();
}

static bench_test *test_of_now;

static enum greatest_test_res run_on_bench(fixture *f)
{
    bench *b = &the;
    open_bench(b, f);
    enum greatest_test_res result = test_of_now(b);
    if (result == GREATEST_TEST_RES_PASS) {
        result = check_state(b);
    }
    const char *message = greatest_info.msg;
    close_bench(b);
    greatest_info.msg = message;
    CHECK_CALL(result);
    ASSERT_STR_EQ("", b->kernel.complaint);
    ASSERT_UINT(0, fake_kernel_open_fds(&b->kernel));
    PASS();
}

#define RUN_VDPA(TEST_NAME)                                                                        \
    do {                                                                                           \
        test_of_now = TEST_NAME;                                                                   \
        if (greatest_test_pre(#TEST_NAME) == 1) {                                                  \
            greatest_test_post(fixture_run(run_on_bench, MOCK_SYNCHRONOUS));                       \
        }                                                                                          \
    } while (0)

/* The last failure of the back-end, in its own words. */
static enum greatest_test_res kernel_says(const bench *b, int code, vhost_why why, const char *word)
{
    ASSERT_INT(code, b->vdpa.last_error.code);
    ASSERT_STR_EQ(vhost_why_text(why), vhost_why_text(b->vdpa.last_error.why));
    ASSERT(strstr(b->vdpa.last_error.text, word) != NULL);
    PASS();
}

/* ---- identity ---- */

TEST what_a_device_is_is_asked_like_this(bench *b)
{
    const expected list[] = {
        {GET_DEVICE_ID, "4", {0}},   {GET_VRING_MAX, "2", {0}}, {GET_VQS_COUNT, "4", {0}},
        {GET_CONFIG_SIZE, "4", {0}}, {GET_GROUP_NUM, "4", {0}}, {GET_AS_NUM, "4", {0}},
        {GET_IOVA_RANGE, "88", {0}},
    };
    unsigned next = 1;
    fake_vdpa *fake = &b->kernel.vdpa;
    fake->iova_first = 0x1000;
    fake->iova_last = UINT64_C(0xffffffffff);
    ASSERT_OK(open_vdpa(b));
    ASSERT_INT(FAKE_OPEN, b->kernel.calls[0].op);
    ASSERT_STR_EQ(FAKE_VDPA_PATH, (const char *)b->kernel.calls[0].bytes);
    b->kernel.calls[7].bytes[8] = 0; /* the end of the range comes in as all ones */
    memset(b->kernel.calls[7].bytes, 0, 16);
    CALLS_ARE(b, &next, list);
    ASSERT_UINT(b->kernel.count, next);
    const vhost_kernel_vdpa *vdpa = &b->vdpa.vdpa;
    ASSERT_UINT(fake->device_id, vdpa->device_id);
    ASSERT_UINT(fake->rings, vdpa->queue_count);
    ASSERT_UINT(fake->ring_max, vdpa->ring_max);
    ASSERT_UINT(fake->config_size, vdpa->config_size);
    ASSERT_UINT(fake->groups, vdpa->group_count);
    ASSERT_UINT(fake->spaces, vdpa->space_count);
    ASSERT_U64(0x1000, vdpa->iova_first);
    ASSERT_U64(UINT64_C(0xffffffffff), vdpa->iova_last);
    PASS();
}

static enum greatest_test_res old_kernel_is(bench *b, fake_release release,
                                            const vhost_kernel_vdpa *expect)
{
    b->kernel.release = release;
    ASSERT_OK(open_vdpa(b));
    const vhost_kernel_vdpa *vdpa = &b->vdpa.vdpa;
    ASSERT_UINT(expect->device_id, vdpa->device_id);
    ASSERT_UINT(expect->ring_max, vdpa->ring_max);
    ASSERT_UINT(expect->queue_count, vdpa->queue_count);
    ASSERT_UINT(expect->config_size, vdpa->config_size);
    ASSERT_UINT(expect->group_count, vdpa->group_count);
    ASSERT_UINT(expect->space_count, vdpa->space_count);
    ASSERT_U64(expect->iova_first, vdpa->iova_first);
    ASSERT_U64(expect->iova_last, vdpa->iova_last);
    ASSERT_INT(0, b->vdpa.last_error.code);
    vhost_kernel_close(&b->vdpa);
    PASS();
}

TEST what_an_old_kernel_does_not_know_has_its_usual_value(bench *b)
{
    fake_vdpa *fake = &b->kernel.vdpa;
    fake->iova_first = 0x1000;
    fake->iova_last = UINT64_C(0xffffffffff);
    vhost_kernel_vdpa expect;
    memset(&expect, 0, sizeof expect);
    expect.device_id = fake->device_id;
    expect.ring_max = fake->ring_max;
    expect.group_count = expect.space_count = 1;
    expect.iova_last = UINT64_MAX;
    CHECK_CALL(old_kernel_is(b, FAKE_LINUX_5_7, &expect));
    expect.iova_first = fake->iova_first;
    expect.iova_last = fake->iova_last;
    CHECK_CALL(old_kernel_is(b, FAKE_LINUX_5_10, &expect));
    expect.queue_count = fake->rings;
    expect.config_size = fake->config_size;
    CHECK_CALL(old_kernel_is(b, FAKE_LINUX_5_18, &expect));
    expect.group_count = fake->groups;
    expect.space_count = fake->spaces;
    return old_kernel_is(b, FAKE_LINUX_5_19, &expect);
}

TEST a_device_that_somebody_has_open_is_refused_by_name(bench *b)
{
    b->kernel.vdpa.taken = true;
    ASSERT_INT(-EBUSY, open_vdpa(b));
    CHECK_CALL(kernel_says(b, -EBUSY, VHOST_WHY_KERNEL_OPEN, FAKE_VDPA_PATH));
    b->kernel.vdpa.taken = false;
    vhost_kernel other;
    ASSERT_OK(open_vdpa(b));
    ASSERT_INT(-EBUSY, vhost_kernel_vdpa_open(&other, FAKE_VDPA_PATH, &b->options));
    vhost_kernel_close(&other);
    ASSERT_UINT(1, fake_kernel_open_fds(&b->kernel));
    PASS();
}

/* Memory would be allocated by these: a device may be another process. */
TEST a_device_of_absurd_numbers_is_refused(bench *b)
{
    fake_vdpa *fake = &b->kernel.vdpa;
    uint32_t *const numbers[] = {&fake->rings, &fake->config_size, &fake->groups, &fake->groups};
    static const uint32_t absurd[] = {65537, UINT32_MAX, 0, 65537};
    for (int i = 0; i < 4; i++) {
        uint32_t usual = *numbers[i];
        *numbers[i] = absurd[i];
        ASSERT_INT(-EPROTO, open_vdpa(b));
        CHECK_CALL(kernel_says(b, -EPROTO, VHOST_WHY_BACKEND_REFUSED, "65536"));
        ASSERT_UINT(0, fake_kernel_open_fds(&b->kernel));
        *numbers[i] = usual;
    }
    ASSERT_OK(open_vdpa(b));
    PASS();
}

TEST a_path_that_cannot_be_is_refused(bench *b)
{
    char path[80];
    memset(path, 'x', sizeof path);
    path[79] = '\0';
    ASSERT_INT(-EINVAL, vhost_kernel_vdpa_open(&b->vdpa, path, &b->options));
    ASSERT_INT(-EINVAL, vhost_kernel_vdpa_open(&b->vdpa, "", &b->options));
    CHECK_CALL(kernel_says(b, -EINVAL, VHOST_WHY_ARGUMENT, "path"));
    ASSERT_INT(-ENOENT, vhost_kernel_vdpa_open(&b->vdpa, "/dev/nothing", &b->options));
    ASSERT_UINT(0, fake_kernel_open_fds(&b->kernel));
    PASS();
}

/* Each call, and each allocation: then there is nothing to close. */
TEST each_call_of_open_may_fail(bench *b)
{
    for (unsigned nth = 1;; nth++) {
        fault_arm(&b->f->fault, FAULT_ONCE, nth, 0);
        int result = open_vdpa(b);
        fault_disarm(&b->f->fault);
        if (!b->f->fault.hit) {
            ASSERT_OK(result);
            ASSERT_UINT(11, nth); /* 8 calls, fds, groups */
            PASS();
        }
        ASSERT_INT(b->f->fault.kind == FAULT_ALLOCATION ? -ENOMEM : -EIO, result);
        ASSERT_INT(result, b->vdpa.last_error.code);
        ASSERT_UINT(0, fake_kernel_open_fds(&b->kernel));
        ASSERT_UINT(0, b->f->allocations);
    }
}

TEST a_passed_vdpa_fd_stays_the_callers_where_opening_fails(bench *b)
{
    int fd = fake_kernel_pass_kind(&b->kernel, FAKE_VDPA);
    bool hit = true;
    for (unsigned nth = 1; hit; nth++) {
        fault_arm(&b->f->fault, FAULT_ONCE, nth, 0);
        int result = vhost_kernel_vdpa_open_fd(&b->vdpa, fd, &b->options);
        fault_disarm(&b->f->fault);
        hit = b->f->fault.hit;
        ASSERT_INT(hit, result < 0);
        ASSERT_UINT(1, fake_kernel_open_fds(&b->kernel));
        if (hit) {
            vhost_kernel_close(&b->vdpa);
            ASSERT_UINT(1, fake_kernel_open_fds(&b->kernel));
        }
    }
    ASSERT_UINT(fake_kernel_count(&b->kernel, FAKE_CLOSE, -1), 0);
    PASS();
}

static int passed(bench *b)
{
    int fd = fake_kernel_pass_kind(&b->kernel, FAKE_VDPA);
    int result = fixture_map_default(b->f);
    return result < 0 ? result : vhost_kernel_vdpa_open_fd(&b->vdpa, fd, &b->options);
}

/* Cleanup takes back what was the guest's, and leaves the fd open for the next device. */
TEST a_passed_fd_serves_one_device_after_another(bench *b)
{
    ASSERT_OK(passed(b));
    for (int i = 0; i < 3; i++) {
        ASSERT_OK(attach_device(b));
        ASSERT_OK(vhost_device_start(&b->device));
        CHECK_CALL(check_state(b));
        vhost_device_cleanup(&b->device);
        ASSERT_UINT(1, fake_kernel_open_fds(&b->kernel));
        ASSERT_UINT(0, fake_vdpa_maps(&b->kernel, 0));
        ASSERT_UINT(0, b->kernel.vdpa.status);
    }
    ASSERT_UINT(1, fake_kernel_count(&b->kernel, FAKE_SET_OWNER, -1));
    PASS();
}

TEST an_fd_of_a_vdpa_device_with_an_owner_is_refused(bench *b)
{
    b->kernel.has_owner = true;
    ASSERT_OK(passed(b));
    ASSERT_FAILS(b->f, init_device(b), &b->device.last_error, -EBUSY, VHOST_WHY_BACKEND_REFUSED);
    CHECK_CALL(kernel_says(b, -EBUSY, VHOST_WHY_KERNEL_OWNER, "SET_OWNER"));
    ASSERT_UINT(1, fake_kernel_open_fds(&b->kernel));
    PASS();
}

TEST an_open_that_is_interrupted_is_repeated(bench *b)
{
    fake_kernel_refuse_once(&b->kernel, FAKE_OPEN, -1, 0, -EINTR);
    ASSERT_OK(open_vdpa(b));
    ASSERT_UINT(2, fake_kernel_count(&b->kernel, FAKE_OPEN, -1));
    PASS();
}

TEST more_queues_than_the_device_has_are_refused(bench *b)
{
    b->kernel.vdpa.rings = QUEUES - 1;
    ASSERT_OK(opened(b));
    ASSERT_FAILS(b->f, init_device(b), &b->device.last_error, -EINVAL, VHOST_WHY_TOO_MANY_QUEUES);
    PASS();
}

/* ---- sequences ---- */

TEST init_says_this(bench *b)
{
    const expected list[] = {
        {FIONBIO_REQUEST, "4", {1}},
        {SET_OWNER, "", {0}},
        {GET_FEATURES_ARRAY, "888", {2, 0, 0}},
        {GET_FEATURES, "8", {0}},
        {GET_BACKEND_FEATURES, "8", {0}},
        {SET_BACKEND_FEATURES, "8", {F_ALL}},
    };
    b->kernel.offers[FAKE_VDPA].backend_features = F_ALL | BIT(6) | BIT(7);
    ASSERT_OK(opened(b));
    fake_kernel_forget(&b->kernel);
    ASSERT_OK(init_device(b));
    ONLY_CALLS_ARE(b, list);
    ASSERT_U64(b->kernel.offers[FAKE_VDPA].features, b->device.facts.offered.word[0]);
    ASSERT_INT(VHOST_PROFILE_MAPS, b->device.facts.profile);
    ASSERT_UINT(0, b->device.facts.max_regions);
    ASSERT(b->device.facts.queues_together);
    PASS();
}

static enum greatest_test_res features_are_said(const bench *b, unsigned *next)
{
    const expected list[] = {
        {SET_STATUS, "1", {3}},         {SET_FEATURES, "8", {VERSION_1 | PLATFORM}},
        {SET_STATUS, "1", {11}},        {GET_STATUS, "1", {0}},
        {SET_GROUP_ASID, "44", {0, 0}}, {SET_GROUP_ASID, "44", {1, 0}},
    };
    CALLS_ARE(b, next, list);
    PASS();
}

/* All of them; what was there before has to go. */
static enum greatest_test_res maps_are_said(const bench *b, unsigned *next, bool again)
{
    const expected begin[] = {batch_begin};
    const expected away[] = {unmap_of(0, UINT64_MAX)};
    const expected list[] = {
        map_of(0, 128, b->f->host),
        map_of(FIXTURE_HIGH, 128, b->f->host + 128 * PAGE),
        batch_end,
    };
    CALLS_ARE(b, next, begin);
    if (again) {
        CALLS_ARE(b, next, away);
    }
    CALLS_ARE(b, next, list);
    PASS();
}

/* Addresses are those of the guest. */
static enum greatest_test_res ring_is_said(const bench *b, unsigned *next, uint32_t q)
{
    const vhost_queue *queue = &b->queue[q];
    const expected list[] = {
        {SET_VRING_CALL, "44", {q, (uint64_t)queue->call_fd}},
        {SET_VRING_ERR, "44", {q, (uint64_t)queue->error_event.signal_fd}},
        {GET_VRING_SIZE, "44", {q, 0}},
        {SET_VRING_NUM, "44", {q, 256}},
        {SET_VRING_BASE, "44", {q, 0}},
        {SET_VRING_ADDR, "448888", {q, 0, queue->desc, queue->used, queue->avail, 0}},
    };
    CALLS_ARE(b, next, list);
    PASS();
}

static enum greatest_test_res rings_are_said(const bench *b, unsigned *next)
{
    const expected rest[] = {
        {SET_VRING_KICK, "44", {0, 500}},
        {SET_VRING_KICK, "44", {1, 501}},
        {SET_VRING_KICK, "44", {2, 502}},
        {SET_CONFIG_CALL, "4", {(uint64_t)b->device.config_event.signal_fd}},
        {SET_VRING_ENABLE, "44", {0, 1}},
        {SET_VRING_ENABLE, "44", {1, 1}},
        {SET_VRING_ENABLE, "44", {2, 1}},
        {SET_STATUS, "1", {15}},
        {GET_STATUS, "1", {0}},
        a_kick,
        a_kick,
        a_kick,
    };
    for (uint32_t q = 0; q < QUEUES; q++) {
        CHECK_CALL(ring_is_said(b, next, q));
    }
    CALLS_ARE(b, next, rest);
    ASSERT_UINT(b->kernel.count, *next);
    for (uint32_t q = 0; q < QUEUES; q++) {
        ASSERT_INT(500 + (int)q, b->kernel.calls[*next - QUEUES + q].fd);
    }
    PASS();
}

TEST start_says_this_to_a_vdpa_device(bench *b)
{
    unsigned next = 0;
    ASSERT_OK(stopped(b));
    fake_kernel_forget(&b->kernel);
    ASSERT_OK(vhost_device_start(&b->device));
    CHECK_CALL(features_are_said(b, &next));
    CHECK_CALL(maps_are_said(b, &next, false));
    return rings_are_said(b, &next);
}

TEST stop_suspends_and_asks_for_positions(bench *b)
{
    const expected list[] = {
        {SUSPEND, "", {0}},
        {GET_VRING_BASE, "44", {2, 0}},
        {GET_VRING_BASE, "44", {1, 0}},
        {GET_VRING_BASE, "44", {0, 0}},
        {SET_CONFIG_CALL, "4", {0xffffffff}},
    };
    ASSERT_OK(running(b));
    ASSERT_OK(vhost_device_stop(&b->device));
    ONLY_CALLS_ARE(b, list);
    ASSERT_INT(-1, b->kernel.vdpa.config_call);
    PASS();
}

TEST stop_resets_what_cannot_be_suspended(bench *b)
{
    const expected list[] = {
        {SET_STATUS, "1", {0}},
        {SET_CONFIG_CALL, "4", {0xffffffff}},
    };
    ASSERT_OK(running_with(b, F_ALL & ~F_SUSPEND));
    ASSERT_OK(vhost_device_stop(&b->device));
    ONLY_CALLS_ARE(b, list);
    PASS();
}

/* All again but the maps, which are known. */
TEST a_second_start_resets_first(bench *b)
{
    const expected reset = {SET_STATUS, "1", {0}};
    unsigned next = 1;
    ASSERT_OK(running(b));
    ASSERT_OK(vhost_device_stop(&b->device));
    fake_kernel_forget(&b->kernel);
    ASSERT_OK(vhost_device_start(&b->device));
    CHECK_CALL(call_is(&b->kernel.calls[0], &reset));
    CHECK_CALL(features_are_said(b, &next));
    return rings_are_said(b, &next);
}

TEST maps_that_a_reset_takes_are_made_anew(bench *b)
{
    unsigned next = 1;
    ASSERT_OK(running_with(b, F_ALL & ~F_PERSIST));
    ASSERT_OK(vhost_device_stop(&b->device));
    fake_kernel_forget(&b->kernel);
    ASSERT_OK(vhost_device_start(&b->device));
    CHECK_CALL(features_are_said(b, &next));
    CHECK_CALL(maps_are_said(b, &next, true));
    return rings_are_said(b, &next);
}

TEST reset_says_this_to_a_vdpa_device(bench *b)
{
    const expected list[] = {{SET_STATUS, "1", {0}}};
    ASSERT_OK(running(b));
    ASSERT_OK(vhost_device_stop(&b->device));
    fake_kernel_forget(&b->kernel);
    ASSERT_OK(vhost_device_reset(&b->device));
    ONLY_CALLS_ARE(b, list);
    PASS();
}

TEST cleanup_resets_unmaps_and_closes(bench *b)
{
    const expected list[] = {{SET_STATUS, "1", {0}}, unmap_of(0, UINT64_MAX)};
    unsigned next = 0;
    ASSERT_OK(running(b));
    ASSERT_OK(vhost_device_stop(&b->device));
    fake_kernel_forget(&b->kernel);
    vhost_device_cleanup(&b->device);
    CALLS_ARE(b, &next, list);
    ASSERT_INT(FAKE_CLOSE, b->kernel.calls[next].op);
    ASSERT_UINT(b->kernel.count, next + 1);
    PASS();
}

TEST a_commit_says_what_changes(bench *b)
{
    const expected more[] = {map_of(FIXTURE_REMOTE, 1, b->f->host)};
    const expected less[] = {batch_begin, unmap_of(FIXTURE_HIGH, 128 * PAGE),
                             unmap_of(FIXTURE_REMOTE, PAGE), batch_end};
    ASSERT_OK(running(b));
    ASSERT_OK(grow(b));
    ONLY_CALLS_ARE(b, more);
    fake_kernel_forget(&b->kernel);
    ASSERT_OK(fixture_map(b->f, &b->f->low, 1));
    ONLY_CALLS_ARE(b, less);
    PASS();
}

static uint64_t far_away(uint64_t gpa, void *user)
{
    (void)user;
    return gpa + (UINT64_C(1) << 40);
}

TEST memory_is_mapped_where_the_vmm_says(bench *b)
{
    const expected more[] = {map_of(far_away(FIXTURE_REMOTE, b), 1, b->f->host)};
    const expected less[] = {unmap_of(far_away(FIXTURE_REMOTE, b), PAGE)};
    b->options.iova_of = far_away;
    ASSERT_OK(running(b));
    const fake_ring *ring = &b->kernel.fds[0].ring[1];
    ASSERT_U64(far_away(b->queue[1].desc, b), ring->desc);
    ASSERT_U64(far_away(b->queue[1].avail, b), ring->avail);
    ASSERT_U64(far_away(b->queue[1].used, b), ring->used);
    ASSERT_OK(grow(b));
    ONLY_CALLS_ARE(b, more);
    fake_kernel_forget(&b->kernel);
    ASSERT_OK(fixture_map_default(b->f));
    ONLY_CALLS_ARE(b, less);
    PASS();
}

TEST without_batches_each_map_is_said_alone(bench *b)
{
    const expected more[] = {map_of(FIXTURE_REMOTE, 1, b->f->host)};
    ASSERT_OK(running_with(b, F_ALL & ~F_BATCH));
    ASSERT_OK(grow(b));
    ONLY_CALLS_ARE(b, more);
    PASS();
}

/* Before Linux 5.10 a vDPA device has no back-end features: messages are of version 1. */
TEST the_oldest_kernel_gets_messages_of_version_1(bench *b)
{
    unsigned messages = 0;
    b->kernel.release = FAKE_LINUX_5_7;
    ASSERT_OK(stopped(b));
    ASSERT_UINT(0, count_of(b, SET_BACKEND_FEATURES));
    ASSERT_OK(vhost_device_start(&b->device));
    for (unsigned i = 0; i < b->kernel.count; i++) {
        const fake_call *call = &b->kernel.calls[i];
        if (call->op == FAKE_WRITE && call->size == FAKE_MESSAGE) {
            ASSERT_U64(1, fake_kernel_number(call->bytes, 4));
            ASSERT_UINT(UPDATE, call->bytes[33]);
            messages++;
        }
    }
    ASSERT_UINT(2, messages);
    return check_state(b);
}

TEST queues_that_are_not_ready_are_left_alone(bench *b)
{
    ASSERT_OK(stopped(b));
    b->queue[1].ready = false;
    fake_kernel_forget(&b->kernel);
    ASSERT_OK(vhost_device_start(&b->device));
    ASSERT_UINT(2, count_of(b, SET_VRING_ADDR));
    ASSERT_UINT(2, count_of(b, SET_VRING_ENABLE));
    ASSERT_FALSE(b->kernel.fds[0].ring[1].enabled);
    PASS();
}

TEST queues_without_notifiers_are_told_so_and_not_kicked(bench *b)
{
    const expected call = {SET_VRING_CALL, "44", {2, 0xffffffff}};
    const expected kick = {SET_VRING_KICK, "44", {2, 0xffffffff}};
    ASSERT_OK(stopped(b));
    b->queue[2].call_fd = b->queue[2].kick_fd = -1;
    fake_kernel_forget(&b->kernel);
    ASSERT_OK(vhost_device_start(&b->device));
    CHECK_CALL(call_is(fake_kernel_last(&b->kernel, FAKE_SET_VRING_CALL, -1), &call));
    CHECK_CALL(call_is(fake_kernel_last(&b->kernel, FAKE_SET_VRING_KICK, -1), &kick));
    ASSERT_UINT(1, fake_kernel_count(&b->kernel, FAKE_WRITE, 500));
    ASSERT_UINT(1, fake_kernel_count(&b->kernel, FAKE_WRITE, 501));
    ASSERT_INT(501, b->kernel.calls[b->kernel.count - 1].fd);
    PASS();
}

TEST rings_are_enabled_before_the_driver_is_ok(bench *b)
{
    ASSERT_OK(stopped(b));
    fake_kernel_forget(&b->kernel);
    ASSERT_OK(vhost_device_start(&b->device));
    int enabled = place_of(b, SET_VRING_ENABLE);
    ASSERT(enabled > place_of(b, SET_VRING_KICK));
    ASSERT(enabled + QUEUES <
           (int)(fake_kernel_last(&b->kernel, FAKE_VDPA_SET_STATUS, -1) - b->kernel.calls) + 1);
    ASSERT_INT(15, last_status(b));
    PASS();
}

TEST queues_start_and_stop_only_together(bench *b)
{
    ASSERT_OK(running(b));
    ASSERT_FAILS(b->f, vhost_queue_stop(&b->device, 1), &b->device.last_error, -ENOTSUP,
                 VHOST_WHY_NOT_SUPPORTED);
    ASSERT_UINT(0, b->kernel.count);
    PASS();
}

TEST a_masked_queue_of_a_vdpa_device_calls_the_library(bench *b)
{
    ASSERT_OK(running(b));
    ASSERT_OK(vhost_queue_mask(&b->device, 2));
    ASSERT_INT(b->queue[2].masked_event.signal_fd, b->kernel.fds[0].ring[2].call);
    ASSERT_OK(vhost_queue_unmask(&b->device, 2));
    ASSERT_INT(602, b->kernel.fds[0].ring[2].call);
    PASS();
}

/* ---- status and features ---- */

/* FEATURES_OK or DRIVER_OK: the device says no. It is reset, and nothing of it is left. */
static enum greatest_test_res refusal_of_status(bench *b, uint8_t bit, vhost_op op,
                                                const char *word)
{
    ASSERT_OK(stopped(b));
    b->queue[1].position.state = VHOST_POSITION_CERTAIN;
    b->queue[1].position.avail = 77;
    fixture_put_used(&b->f->vm, &b->queue[1], 77);
    b->kernel.vdpa.refuses = bit;
    ASSERT_FAILS(b->f, vhost_device_start(&b->device), &b->device.last_error, -EINVAL,
                 VHOST_WHY_BACKEND_REFUSED);
    CHECK_CALL(fixture_names(&b->device.last_error, op, -1));
    CHECK_CALL(kernel_says(b, -EINVAL, VHOST_WHY_KERNEL_STATUS, word));
    ASSERT(strstr(b->device.last_error.text, word) != NULL);
    ASSERT_INT(VHOST_STATE_STOPPED, b->device.state);
    ASSERT_UINT(77, b->queue[1].position.avail);
    ASSERT_INT(VHOST_POSITION_CERTAIN, b->queue[1].position.state);
    CHECK_CALL(check_state(b));
    b->kernel.vdpa.refuses = 0;
    ASSERT_OK(vhost_device_start(&b->device));
    ASSERT_UINT(77, b->kernel.fds[0].ring[1].base);
    return check_state(b);
}

TEST a_device_may_refuse_features_ok(bench *b)
{
    return refusal_of_status(b, 8, VHOST_OP_SET_FEATURES, "FEATURES_OK");
}

TEST a_device_may_refuse_driver_ok(bench *b)
{
    CHECK_CALL(refusal_of_status(b, 4, VHOST_OP_SET_RUNNING, "DRIVER_OK"));
    PASS();
}

TEST a_device_that_refused_driver_ok_is_reset(bench *b)
{
    ASSERT_OK(stopped(b));
    b->kernel.vdpa.refuses = 4;
    ASSERT_INT(-EINVAL, vhost_device_start(&b->device));
    ASSERT_INT(0, last_status(b));
    ASSERT_UINT(0, b->kernel.vdpa.status);
    PASS();
}

/* It was let run before it was asked whether it does: it may have run. */
TEST a_device_of_which_the_status_is_not_known_is_reset(bench *b)
{
    ASSERT_OK(stopped(b));
    fake_kernel_refuse(&b->kernel, FAKE_VDPA_GET_STATUS, -1, 1, -EIO);
    ASSERT_INT(-EIO, vhost_device_start(&b->device));
    ASSERT_INT(0, last_status(b));
    CHECK_CALL(fixture_names(&b->device.last_error, VHOST_OP_SET_RUNNING, -1));
    ASSERT_INT(VHOST_STATE_STOPPED, b->device.state);
    return check_state(b);
}

/* It may have run, and has no positions any more; where a packed ring is, nobody knows. */
TEST a_device_that_may_have_run_has_no_positions(bench *b)
{
    b->accepted = fixture_features(VERSION_1 | PACKED, 0);
    ASSERT_OK(stopped(b));
    fake_kernel_refuse(&b->kernel, FAKE_VDPA_GET_STATUS, -1, 1, -EIO);
    ASSERT_INT(-EIO, vhost_device_start(&b->device));
    ASSERT_INT(VHOST_POSITION_GUESSED, b->queue[0].position.state);
    ASSERT_INT(VHOST_STATE_STOPPED, b->device.state);
    return check_state(b);
}

/* Its status is not told, nor does it take a reset: the last two calls of a start that fails. */
TEST a_device_that_runs_and_cannot_be_reset_is_cut_off(bench *b)
{
    ASSERT_OK(running(b));
    ASSERT_OK(vhost_device_stop(&b->device));
    fake_kernel_forget(&b->kernel);
    ASSERT_OK(vhost_device_start(&b->device));
    unsigned last = b->kernel.count - QUEUES; /* then come kicks */
    ASSERT_EQ_FMT(GET_STATUS, b->kernel.calls[last - 1].request, "%#lx");
    ASSERT_OK(vhost_device_stop(&b->device));
    fault_arm(&b->f->fault, FAULT_TWICE, last, 1);
    ASSERT_INT(-EIO, vhost_device_start(&b->device));
    fault_disarm(&b->f->fault);
    CHECK_CALL(fixture_names(&b->device.last_error, VHOST_OP_SET_RUNNING, -1));
    ASSERT_INT(VHOST_STATE_BROKEN, b->device.state);
    return check_state(b);
}

TEST status_bits_are_only_added(bench *b)
{
    ASSERT_OK(stopped(b));
    for (int i = 0; i < 3; i++) {
        ASSERT_OK(vhost_device_start(&b->device));
        ASSERT_OK(vhost_device_stop(&b->device));
    }
    ASSERT_OK(vhost_device_reset(&b->device));
    ASSERT_OK(ack(b));
    ASSERT_OK(vhost_device_start(&b->device));
    look(b);
    ASSERT(b->ledger.wrong == NULL);
    PASS();
}

/* F1: it is behind an IOMMU of the host, whatever the driver was told. */
TEST access_platform_is_sent_if_it_is_offered(bench *b)
{
    ASSERT_OK(running(b));
    ASSERT_U64(VERSION_1 | PLATFORM, b->kernel.fds[0].features[0]);
    ASSERT_OK(vhost_device_stop(&b->device));
    vhost_device_cleanup(&b->device);
    b->kernel.offers[FAKE_VDPA].features &= ~PLATFORM;
    ASSERT_OK(attach_device(b));
    ASSERT_OK(vhost_device_start(&b->device));
    ASSERT_U64(VERSION_1, b->kernel.fds[1].features[0]);
    PASS();
}

TEST what_the_driver_took_is_sent(bench *b)
{
    b->accepted = fixture_features(VERSION_1 | PACKED | IN_ORDER | BIT(5), 0);
    ASSERT_OK(opened(b));
    ASSERT_INT(-EINVAL, attach_device(b)); /* bit 5 is the device's to offer, as all are */
    vhost_device_cleanup(&b->device);
    b->kernel.offers[FAKE_VDPA].features |= BIT(5);
    ASSERT_OK(attach_device(b));
    ASSERT_OK(vhost_device_start(&b->device));
    ASSERT_U64(b->accepted.word[0] | PLATFORM, b->kernel.fds[1].features[0]);
    PASS();
}

TEST a_vdpa_device_has_no_place_behind_a_viommu(bench *b)
{
    b->device_options.memory = &fixture_empty_viommu;
    b->accepted = fixture_features(VERSION_1 | PLATFORM, 0);
    ASSERT_OK(stopped(b));
    ASSERT_FAILS(b->f, vhost_device_start(&b->device), &b->device.last_error, -ENOTSUP,
                 VHOST_WHY_IOTLB_UNSUPPORTED);
    PASS();
}

/* ---- rings ---- */

static enum greatest_test_res size_is_refused(bench *b, uint32_t q, uint32_t size)
{
    b->queue[q].size = size;
    fake_kernel_forget(&b->kernel);
    ASSERT_FAILS(b->f, vhost_device_start(&b->device), &b->device.last_error, -EINVAL,
                 VHOST_WHY_BACKEND_REFUSED);
    CHECK_CALL(fixture_names(&b->device.last_error, VHOST_OP_SET_RING_SIZE, (int)q));
    CHECK_CALL(kernel_says(b, -EINVAL, VHOST_WHY_RING_SIZE, "SET_VRING_NUM"));
    ASSERT_UINT(q, count_of(b, SET_VRING_NUM));
    ASSERT_INT(VHOST_STATE_STOPPED, b->device.state);
    b->queue[q].size = 128;
    PASS();
}

TEST each_ring_has_its_largest_size(bench *b)
{
    b->kernel.vdpa.ring_limit[0] = b->kernel.vdpa.ring_limit[2] = 256;
    b->kernel.vdpa.ring_limit[1] = 128;
    ASSERT_OK(stopped(b));
    CHECK_CALL(size_is_refused(b, 1, 256));
    ASSERT_OK(vhost_device_start(&b->device));
    ASSERT_UINT(128, b->kernel.fds[0].ring[1].size);
    ASSERT_UINT(256, b->kernel.fds[0].ring[2].size);
    PASS();
}

TEST where_rings_have_no_limits_the_device_has_one(bench *b)
{
    b->kernel.release = FAKE_LINUX_6_7; /* it does not know GET_VRING_SIZE */
    ASSERT_OK(stopped(b));
    CHECK_CALL(size_is_refused(b, 2, 512));
    ASSERT_OK(vhost_device_start(&b->device));
    PASS();
}

TEST rings_are_told_by_guest_addresses(bench *b)
{
    ASSERT_OK(stopped(b));
    b->queue[1].desc = FIXTURE_HIGH + 64;
    ASSERT_OK(vhost_device_start(&b->device));
    const fake_ring *ring = &b->kernel.fds[0].ring[1];
    ASSERT_U64(FIXTURE_HIGH + 64, ring->desc);
    ASSERT_U64(b->queue[1].avail, ring->avail);
    ASSERT_U64(b->queue[1].used, ring->used);
    ASSERT_FALSE(ring->logs);
    PASS();
}

TEST queues_keep_their_numbers(bench *b)
{
    ASSERT_OK(running(b));
    for (uint32_t q = 0; q < QUEUES; q++) {
        ASSERT_INT(500 + (int)q, b->kernel.fds[0].ring[q].kick);
        ASSERT_INT(600 + (int)q, b->kernel.fds[0].ring[q].call);
        ASSERT_INT(b->queue[q].error_event.signal_fd, b->kernel.fds[0].ring[q].error);
    }
    PASS();
}

/* ---- positions ---- */

static void set_position(bench *b, uint32_t q, uint16_t avail, uint16_t used)
{
    b->queue[q].position.state = VHOST_POSITION_CERTAIN;
    b->queue[q].position.avail = avail;
    b->queue[q].position.used = used;
}

static void put_indexes(bench *b, uint32_t q, uint16_t avail, uint16_t used)
{
    fixture_put_available(&b->f->vm, &b->queue[q], avail);
    fixture_put_used(&b->f->vm, &b->queue[q], used);
}

static enum greatest_test_res position_is(const bench *b, uint32_t q, vhost_position_state state,
                                          uint16_t avail)
{
    ASSERT_INT(state, b->queue[q].position.state);
    ASSERT_UINT(avail, b->queue[q].position.avail);
    PASS();
}

TEST a_suspended_device_says_where_it_is(bench *b)
{
    ASSERT_OK(stopped(b));
    set_position(b, 1, 0xfedc, 0xfedc);
    put_indexes(b, 1, 0xfef0, 0xfedc);
    ASSERT_OK(vhost_device_start(&b->device));
    ASSERT_UINT(0xfedc, b->kernel.fds[0].ring[1].base);
    b->kernel.fds[0].ring[1].base = 0xfee1;
    put_indexes(b, 1, 0xfef0, 0xfee0);
    ASSERT_OK(vhost_device_stop(&b->device));
    CHECK_CALL(position_is(b, 1, VHOST_POSITION_CERTAIN, 0xfee1));
    CHECK_CALL(position_is(b, 0, VHOST_POSITION_CERTAIN, 0));
    ASSERT_OK(vhost_device_start(&b->device));
    ASSERT_UINT(0xfee1, b->kernel.fds[0].ring[1].base);
    PASS();
}

/* avail in the low half, used in the high one, with their wrap counters. */
TEST a_packed_ring_has_two_positions(bench *b)
{
    b->accepted = fixture_features(VERSION_1 | PACKED, 0);
    ASSERT_OK(stopped(b));
    set_position(b, 1, 0x8012, 0x0034);
    ASSERT_OK(vhost_device_start(&b->device));
    ASSERT_UINT(0x00348012, b->kernel.fds[0].ring[1].base);
    ASSERT_UINT(0x80008000, b->kernel.fds[0].ring[0].base);
    b->kernel.fds[0].ring[1].base = 0x80568056;
    ASSERT_OK(vhost_device_stop(&b->device));
    CHECK_CALL(position_is(b, 1, VHOST_POSITION_CERTAIN, 0x8056));
    ASSERT_UINT(0x8056, b->queue[1].position.used);
    PASS();
}

/* Ring 0 is idle, ring 1 is not: of what it took and did not use, nobody knows. */
static enum greatest_test_res stops_without_positions(bench *b)
{
    for (uint32_t q = 0; q < QUEUES; q++) {
        b->kernel.fds[0].ring[q].base = 99;
    }
    put_indexes(b, 0, 5, 5);
    put_indexes(b, 1, 9, 5);
    ASSERT_OK(vhost_device_stop(&b->device));
    ASSERT_INT(0, last_status(b));
    ASSERT_UINT(0, count_of(b, GET_VRING_BASE));
    CHECK_CALL(position_is(b, 0, VHOST_POSITION_CERTAIN, 5));
    CHECK_CALL(position_is(b, 1, VHOST_POSITION_GUESSED, 5));
    CHECK_CALL(position_is(b, 2, VHOST_POSITION_CERTAIN, 0));
    ASSERT_INT(VHOST_STATE_STOPPED, b->device.state);
    PASS();
}

TEST a_device_that_was_reset_does_not_say_where_it_is(bench *b)
{
    ASSERT_OK(running_with(b, F_ALL & ~F_SUSPEND));
    return stops_without_positions(b);
}

TEST a_suspension_that_fails_is_a_reset(bench *b)
{
    ASSERT_OK(running(b));
    fake_kernel_refuse(&b->kernel, FAKE_VDPA_SUSPEND, -1, 0, -EIO);
    CHECK_CALL(stops_without_positions(b));
    ASSERT_UINT(1, count_of(b, SUSPEND));
    return check_state(b);
}

TEST used_in_order_a_position_is_certain_without_suspension(bench *b)
{
    b->accepted = fixture_features(VERSION_1 | IN_ORDER, 0);
    ASSERT_OK(running_with(b, F_ALL & ~F_SUSPEND));
    put_indexes(b, 1, 9, 5);
    ASSERT_OK(vhost_device_stop(&b->device));
    return position_is(b, 1, VHOST_POSITION_CERTAIN, 5);
}

TEST a_packed_ring_without_suspension_is_a_guess(bench *b)
{
    b->accepted = fixture_features(VERSION_1 | PACKED, 0);
    ASSERT_OK(running_with(b, F_ALL & ~F_SUSPEND));
    ASSERT_OK(vhost_device_stop(&b->device));
    return position_is(b, 1, VHOST_POSITION_GUESSED, 0x8000);
}

/* Nothing was let go: whoever has the fd, the device is reset and has no maps. */
TEST a_device_that_does_not_stop_is_cut_off(bench *b)
{
    ASSERT_OK(running_with(b, F_ALL & ~F_SUSPEND));
    fake_kernel_refuse_once(&b->kernel, FAKE_VDPA_SET_STATUS, -1, 0, -EIO);
    ASSERT_INT(-EIO, vhost_device_stop(&b->device));
    CHECK_CALL(fixture_names(&b->device.last_error, VHOST_OP_SET_RUNNING, -1));
    ASSERT_INT(VHOST_STATE_BROKEN, b->device.state);
    return check_state(b);
}

TEST a_position_that_is_not_told_breaks_the_device(bench *b)
{
    ASSERT_OK(running(b));
    put_indexes(b, 0, 9, 5);
    fake_kernel_refuse(&b->kernel, FAKE_GET_VRING_BASE, -1, 2, -EIO);
    ASSERT_INT(-EIO, vhost_device_stop(&b->device));
    ASSERT_INT(VHOST_STATE_BROKEN, b->device.state);
    CHECK_CALL(position_is(b, 0, VHOST_POSITION_GUESSED, 5));
    return position_is(b, 2, VHOST_POSITION_CERTAIN, 0);
}

/* ---- maps ---- */

/* Of a vDPA device, `low` and the high memory, cut in two. */
TEST every_section_is_a_map_and_rom_is_none(bench *b)
{
    vhost_section sections[4];
    sections[0] = fixture_section(b->f, 0, 64, 0);
    sections[1] = fixture_section(b->f, 64 * PAGE, 64, 64);
    sections[2] = fixture_section(b->f, FIXTURE_HIGH, 8, 128);
    sections[2].flags = VHOST_SECTION_ROM;
    sections[3] = fixture_section(b->f, FIXTURE_HIGH + 8 * PAGE, 8, 136);
    ASSERT_OK(stopped(b));
    ASSERT_OK(fixture_map(b->f, sections, 4));
    ASSERT_OK(vhost_device_start(&b->device));
    ASSERT_UINT(3, fake_vdpa_maps(&b->kernel, 0));
    ASSERT(fake_vdpa_find(&b->kernel, 0, FIXTURE_HIGH) == NULL);
    look(b);
    return reaches(b, vhost_device_table(&b->device));
}

TEST memory_that_changes_in_place_suspends_the_device(bench *b)
{
    ASSERT_OK(running(b));
    const expected list[] = {
        {SUSPEND, "", {0}},
        batch_begin,
        unmap_of(FIXTURE_HIGH, 128 * PAGE),
        map_of(FIXTURE_HIGH, 32, b->f->host + 160 * PAGE),
        batch_end,
        {RESUME, "", {0}},
        a_kick,
        a_kick,
        a_kick,
    };
    ASSERT_OK(swap_high(b, 160));
    ONLY_CALLS_ARE(b, list);
    ASSERT_INT(VHOST_STATE_RUNNING, b->device.state);
    return check_state(b);
}

TEST memory_that_comes_or_goes_suspends_nothing(bench *b)
{
    ASSERT_OK(running(b));
    ASSERT_OK(grow(b));
    ASSERT_OK(fixture_map(b->f, &b->f->low, 1));
    ASSERT_UINT(0, count_of(b, SUSPEND) + count_of(b, RESUME));
    return check_state(b);
}

static enum greatest_test_res in_place_breaks(bench *b, uint64_t lacks)
{
    ASSERT_OK(running_with(b, F_ALL & ~lacks));
    put_indexes(b, 0, 5, 5);
    b->kernel.fds[0].ring[0].base = 5;
    ASSERT_OK(swap_high(b, 160));
    ASSERT_INT(VHOST_STATE_BROKEN, b->device.state);
    ASSERT_INT(-EBUSY, b->device.last_error.code);
    CHECK_CALL(fixture_names(&b->device.last_error, VHOST_OP_SET_TABLE, -1));
    CHECK_CALL(kernel_says(b, -EBUSY, VHOST_WHY_KERNEL_REMAP, "IOTLB map"));
    ASSERT(strstr(b->device.last_error.text, "cannot pause") != NULL);
    CHECK_CALL(position_is(b, 0, VHOST_POSITION_CERTAIN, 5));
    CHECK_CALL(check_state(b));
    ASSERT_OK(vhost_device_recover(&b->device));
    ASSERT_UINT(5, b->kernel.fds[1].ring[0].base);
    return check_state(b);
}

TEST memory_that_changes_in_place_breaks_what_cannot_suspend(bench *b)
{
    return in_place_breaks(b, F_SUSPEND);
}

TEST memory_that_changes_in_place_breaks_what_cannot_resume(bench *b)
{
    return in_place_breaks(b, F_RESUME);
}

/* ---- what it is may change while it is away ---- */

static int break_it(bench *b)
{
    fake_kernel_refuse(&b->kernel, FAKE_WRITE, -1, 0, -EFAULT);
    int result = swap_high(b, 160);
    fake_kernel_relent(&b->kernel);
    return result;
}

/* Something of it is `by` less than it was. */
static enum greatest_test_res is_not_run(bench *b, uint32_t *what, uint32_t by)
{
    ASSERT_OK(running(b));
    ASSERT_OK(break_it(b));
    ASSERT_INT(VHOST_STATE_BROKEN, b->device.state);
    vhost_kernel_vdpa before = b->vdpa.vdpa;
    *what -= by;
    ASSERT_INT(-ENODEV, vhost_device_reset(&b->device));
    CHECK_CALL(kernel_says(b, -ENODEV, VHOST_WHY_BACKEND_LESS, "another device"));
    ASSERT_EQ(before.device_id, b->vdpa.vdpa.device_id);
    *what += by;
    ASSERT_OK(vhost_device_reset(&b->device));
    ASSERT_INT(VHOST_STATE_STOPPED, b->device.state);
    PASS();
}

TEST a_device_of_another_kind_at_its_path_is_not_run(bench *b)
{
    return is_not_run(b, &b->kernel.vdpa.device_id, 1);
}

TEST a_device_with_a_smaller_config_space_is_not_run(bench *b)
{
    return is_not_run(b, &b->kernel.vdpa.config_size, 8);
}

TEST a_queue_cannot_be_reset_alone_and_nobody_is_told_so(bench *b)
{
    b->kernel.offers[FAKE_VDPA].features |= BIT(40);
    ASSERT_OK(stopped(b));
    vhost_features all = fixture_features(UINT64_MAX, UINT64_MAX);
    vhost_features offered = vhost_device_offer(&b->device, all);
    ASSERT_FALSE(vhost_features_test(&offered, VHOST_FEATURE_RING_RESET));
    PASS();
}

/* Suspension or resumption fails, or a message in between: positions are true all the same. */
static enum greatest_test_res in_place_fails(bench *b, fake_op op, int skip)
{
    ASSERT_OK(running(b));
    put_indexes(b, 1, 7, 7);
    b->kernel.fds[0].ring[1].base = 7;
    fake_kernel_refuse_once(&b->kernel, op, -1, skip, -EIO);
    ASSERT_OK(swap_high(b, 160));
    ASSERT_INT(VHOST_STATE_BROKEN, b->device.state);
    ASSERT_INT(-EIO, b->device.last_error.code);
    CHECK_CALL(position_is(b, 1, VHOST_POSITION_CERTAIN, 7));
    CHECK_CALL(check_state(b));
    ASSERT_OK(vhost_device_recover(&b->device));
    CHECK_CALL(check_state(b));
    ASSERT_UINT(7, b->kernel.fds[1].ring[1].base);
    PASS();
}

TEST a_device_that_does_not_suspend_for_a_map_breaks(bench *b)
{
    return in_place_fails(b, FAKE_VDPA_SUSPEND, 0);
}

TEST a_device_that_does_not_resume_breaks(bench *b)
{
    return in_place_fails(b, FAKE_VDPA_RESUME, 0);
}

TEST a_map_refused_in_place_breaks(bench *b)
{
    return in_place_fails(b, FAKE_WRITE, 2);
}

TEST the_end_of_a_batch_refused_in_place_breaks(bench *b)
{
    return in_place_fails(b, FAKE_WRITE, 3);
}

/* A batch that was begun is ended, and the first failure is told. */
TEST a_batch_is_ended_though_a_map_was_refused(bench *b)
{
    ASSERT_OK(stopped(b));
    refuse_message(b, 1, -EFAULT);
    fake_kernel_forget(&b->kernel);
    b->kernel.refused_once = true;
    ASSERT_INT(-EFAULT, vhost_device_start(&b->device));
    const fake_call *last = fake_kernel_last(&b->kernel, FAKE_WRITE, -1);
    ASSERT_UINT(BATCH_END, last->bytes[33]);
    ASSERT_FALSE(b->kernel.vdpa.in_batch);
    CHECK_CALL(kernel_says(b, -EFAULT, b->vdpa.last_error.why, "0x0+0x80000"));
    PASS();
}

/* The kernel says EFAULT of whatever went wrong inside. */
static enum greatest_test_res memory_is_short(bench *b, int error)
{
    ASSERT_OK(stopped(b));
    refuse_message(b, 2, error); /* begin, low memory; */
    b->kernel.refused_once = true;
    ASSERT_INT(error, vhost_device_start(&b->device));
    CHECK_CALL(fixture_names(&b->device.last_error, VHOST_OP_SET_TABLE, -1));
    CHECK_CALL(kernel_says(b, error, VHOST_WHY_KERNEL_MEMLOCK, "0x100000000+0x80000"));
    ASSERT(strstr(b->device.last_error.text, "RLIMIT_MEMLOCK") != NULL);
    ASSERT(strstr(b->device.last_error.text, "0x100000000+0x80000") != NULL);
    ASSERT_INT(VHOST_STATE_STOPPED, b->device.state);
    CHECK_CALL(check_state(b));
    ASSERT_OK(vhost_device_start(&b->device));
    CHECK_CALL(check_state(b));
    refuse_message(b, 0, error);
    b->kernel.refused_once = true;
    ASSERT_OK(grow(b));
    ASSERT_INT(VHOST_STATE_BROKEN, b->device.state);
    ASSERT_INT(error, b->device.last_error.code);
    CHECK_CALL(kernel_says(b, error, VHOST_WHY_KERNEL_MEMLOCK, "0x200000000+0x1000"));
    return check_state(b);
}

TEST a_map_for_which_memory_is_short_names_the_limit(bench *b)
{
    return memory_is_short(b, -ENOMEM);
}

TEST a_map_that_the_kernel_did_not_make_names_the_limit(bench *b)
{
    return memory_is_short(b, -EFAULT);
}

/* The start finds out before the kernel is asked. */
TEST memory_that_the_device_cannot_address_is_refused(bench *b)
{
    b->kernel.vdpa.iova_last = FIXTURE_HIGH + 128 * PAGE - 2;
    ASSERT_OK(stopped(b));
    fake_kernel_forget(&b->kernel);
    ASSERT_INT(-EINVAL, vhost_device_start(&b->device));
    CHECK_CALL(fixture_names(&b->device.last_error, VHOST_OP_SET_TABLE, -1));
    CHECK_CALL(kernel_says(b, -EINVAL, VHOST_WHY_KERNEL_IOVA, "0x100000000+0x80000"));
    ASSERT(strstr(b->device.last_error.text, "cannot address") != NULL);
    ASSERT_INT(VHOST_STATE_STOPPED, b->device.state);
    ASSERT(fake_vdpa_find(&b->kernel, 0, FIXTURE_HIGH) == NULL);
    PASS();
}

TEST memory_before_what_the_device_can_address_is_refused(bench *b)
{
    b->kernel.vdpa.iova_first = 1;
    ASSERT_OK(stopped(b));
    ASSERT_INT(-EINVAL, vhost_device_start(&b->device));
    return kernel_says(b, -EINVAL, VHOST_WHY_KERNEL_IOVA, "0x0+0x80000");
}

TEST memory_up_to_the_last_address_will_do(bench *b)
{
    b->kernel.vdpa.iova_last = FIXTURE_HIGH + 128 * PAGE - 1;
    ASSERT_OK(running(b));
    CHECK_CALL(check_state(b));
    ASSERT_OK(grow(b));
    ASSERT_INT(VHOST_STATE_BROKEN, b->device.state);
    ASSERT_INT(-EINVAL, b->device.last_error.code);
    return kernel_says(b, -EINVAL, VHOST_WHY_KERNEL_IOVA, "0x200000000+0x1000");
}

/* The rings move to other memory while it is stopped; nothing else is there any more. */
static int move_away(bench *b)
{
    vhost_section remote = fixture_section(b->f, FIXTURE_REMOTE, 32, 0);
    for (uint32_t q = 0; q < QUEUES; q++) {
        b->queue[q].desc += FIXTURE_REMOTE;
        b->queue[q].avail += FIXTURE_REMOTE;
        b->queue[q].used += FIXTURE_REMOTE;
    }
    return fixture_map(b->f, &remote, 1);
}

TEST memory_that_is_not_let_go_fails_the_start(bench *b)
{
    ASSERT_OK(running_with(b, F_V2 | F_SUSPEND));
    ASSERT_OK(vhost_device_stop(&b->device));
    ASSERT_OK(move_away(b));
    refuse_message(b, 0, -EIO);
    b->kernel.refused_once = true;
    ASSERT_INT(-EIO, vhost_device_start(&b->device));
    CHECK_CALL(fixture_names(&b->device.last_error, VHOST_OP_SET_TABLE, -1));
    ASSERT_OK(vhost_device_start(&b->device));
    return check_state(b);
}

/* Whoever else has the fd: the device is reset, and reaches nothing of the guest. */
TEST a_device_is_reset_and_unmapped_before_it_is_closed(bench *b)
{
    const expected end[] = {{SET_STATUS, "1", {0}}, unmap_of(0, UINT64_MAX)};
    ASSERT_OK(running(b));
    ASSERT_OK(break_device(b));
    ASSERT_INT(VHOST_STATE_BROKEN, b->device.state);
    ASSERT_INT(FAKE_CLOSE, b->kernel.calls[b->kernel.count - 1].op);
    unsigned next = b->kernel.count - 3;
    CALLS_ARE(b, &next, end);
    CHECK_CALL(kernel_says(b, -EFAULT, b->vdpa.last_error.why, "IOTLB"));
    ASSERT_OK(vhost_device_reset(&b->device));
    ASSERT_OK(ack(b));
    ASSERT_OK(vhost_device_start(&b->device));
    return check_state(b);
}

TEST a_passed_fd_of_a_vdpa_device_does_not_come_back(bench *b)
{
    ASSERT_OK(passed(b));
    ASSERT_OK(attach_device(b));
    ASSERT_OK(vhost_device_start(&b->device));
    ASSERT_OK(break_device(b));
    ASSERT_UINT(0, fake_kernel_open_fds(&b->kernel));
    ASSERT_INT(-ENODEV, vhost_device_reset(&b->device));
    ASSERT_INT(VHOST_WHY_KERNEL_SEVERED, b->vdpa.last_error.why);
    ASSERT_INT(VHOST_STATE_BROKEN, b->device.state);
    PASS();
}

TEST cutting_off_needs_no_help_of_the_kernel(bench *b)
{
    ASSERT_OK(running(b));
    fault_arm(&b->f->fault, FAULT_EVER_AFTER, 1, 0);
    b->f->fault.only_operations = true;
    ASSERT_OK(grow(b));
    ASSERT_INT(VHOST_STATE_BROKEN, b->device.state);
    ASSERT_UINT(0, fake_kernel_open_fds(&b->kernel));
    b->kernel.complaint[0] = '\0';
    fault_disarm(&b->f->fault);
    ASSERT_OK(vhost_device_reset(&b->device));
    PASS();
}

/* ---- config space ---- */

TEST the_config_space_is_read_and_written(bench *b)
{
    const expected get = {GET_CONFIG, "441111", {90, 4, 0, 0, 0, 0}};
    const expected set = {SET_CONFIG, "441111", {2, 4, 9, 8, 7, 6}};
    const unsigned char ours[4] = {9, 8, 7, 6};
    unsigned char bytes[5] = {0, 0, 0, 0, 0x55};
    for (int i = 0; i < FAKE_CONFIG; i++) {
        b->kernel.vdpa.config[i] = (unsigned char)(i + 1);
    }
    ASSERT_OK(stopped(b));
    ASSERT_OK(vhost_device_get_config(&b->device, 90, bytes, 4));
    fake_call *call = &b->kernel.calls[b->kernel.count - 1];
    memset(call->bytes + 8, 0, 4); /* what is to be filled in */
    CHECK_CALL(call_is(call, &get));
    ASSERT_MEM_EQ("\x5b\x5c\x5d\x5e\x55", bytes, 5);
    ASSERT_OK(vhost_device_start(&b->device));
    ASSERT_OK(vhost_device_set_config(&b->device, 2, ours, 4));
    CHECK_CALL(call_is(&b->kernel.calls[b->kernel.count - 1], &set));
    ASSERT_MEM_EQ("\x02\x09\x08\x07\x06\x07", b->kernel.vdpa.config + 1, 6);
    PASS();
}

TEST bytes_beyond_the_config_space_are_not_asked_for(bench *b)
{
    static const uint32_t outside[][2] = {{0, 97}, {96, 1}, {97, 1}, {93, 4}, {0xfffffff0, 8}};
    unsigned char bytes[128] = {0};
    ASSERT_OK(stopped(b));
    fake_kernel_forget(&b->kernel);
    for (size_t i = 0; i < sizeof outside / sizeof outside[0]; i++) {
        uint32_t offset = outside[i][0], size = outside[i][1];
        ASSERT_INT(-EINVAL, vhost_device_get_config(&b->device, offset, bytes, size));
        CHECK_CALL(kernel_says(b, -EINVAL, VHOST_WHY_ARGUMENT, "config space"));
        ASSERT_INT(-EINVAL, vhost_device_set_config(&b->device, offset, bytes, size));
        CHECK_CALL(fixture_names(&b->device.last_error, VHOST_OP_SET_CONFIG, -1));
    }
    ASSERT_UINT(0, b->kernel.count);
    ASSERT_OK(vhost_device_get_config(&b->device, 0, bytes, 96));
    ASSERT_OK(vhost_device_set_config(&b->device, 95, bytes, 1));
    PASS();
}

TEST where_its_size_is_not_known_the_kernel_is_asked(bench *b)
{
    unsigned char bytes[128];
    b->kernel.release = FAKE_LINUX_5_10;
    ASSERT_OK(stopped(b));
    ASSERT_UINT(0, b->vdpa.vdpa.config_size);
    ASSERT_OK(vhost_device_get_config(&b->device, 0, bytes, 96));
    ASSERT_INT(-EINVAL, vhost_device_get_config(&b->device, 0, bytes, 97));
    ASSERT_INT(VHOST_WHY_BACKEND_REFUSED, b->vdpa.last_error.why);
    ASSERT_UINT(2, count_of(b, GET_CONFIG));
    PASS();
}

TEST config_changes_are_announced_while_it_runs(bench *b)
{
    ASSERT_OK(stopped(b));
    ASSERT_INT(-1, b->kernel.vdpa.config_call);
    ASSERT_OK(vhost_device_start(&b->device));
    ASSERT_INT(b->device.config_event.signal_fd, b->kernel.vdpa.config_call);
    int fds[8];
    uint32_t count = vhost_device_poll_fds(&b->device, fds, 8);
    ASSERT_UINT(QUEUES + 1, count); /* errors of rings, config; the device itself says nothing */
    ASSERT_INT(b->device.config_event.wait_fd, fds[QUEUES]);
    ASSERT_OK(vhost_device_process(&b->device));
    ASSERT_UINT(0, fake_kernel_count(&b->kernel, FAKE_READ, -1));
    ASSERT_OK(vhost_device_stop(&b->device));
    ASSERT_INT(-1, b->kernel.vdpa.config_call);
    PASS();
}

/* ---- groups and address spaces ---- */

TEST a_queue_is_in_a_group(bench *b)
{
    const expected ask = {GET_VRING_GROUP, "44", {2, 0}};
    uint32_t group = 7;
    ASSERT_OK(stopped(b));
    ASSERT_OK(vhost_kernel_vdpa_get_group(&b->vdpa, 1, &group));
    ASSERT_UINT(0, group);
    ASSERT_OK(vhost_kernel_vdpa_get_group(&b->vdpa, 2, &group));
    ASSERT_UINT(1, group);
    CHECK_CALL(call_is(&b->kernel.calls[b->kernel.count - 1], &ask));
    ASSERT(vhost_kernel_vdpa_get_group(&b->vdpa, 3, &group) < 0);
    ASSERT_UINT(1, group);
    PASS();
}

TEST an_old_kernel_has_no_groups(bench *b)
{
    uint32_t group = 7;
    b->kernel.release = FAKE_LINUX_5_18;
    ASSERT_OK(stopped(b));
    ASSERT_INT(-ENOTSUP, vhost_kernel_vdpa_get_group(&b->vdpa, 0, &group));
    ASSERT_UINT(7, group);
    ASSERT_OK(vhost_device_start(&b->device));
    ASSERT_UINT(0, count_of(b, SET_GROUP_ASID));
    PASS();
}

/* A reset puts all groups back into space 0: they are placed at each start. */
TEST a_group_stays_in_the_space_it_was_given(bench *b)
{
    ASSERT_OK(opened(b));
    ASSERT_OK(vhost_kernel_vdpa_set_space(&b->vdpa, 1, 1));
    ASSERT_OK(attach_device(b));
    for (int i = 0; i < 3; i++) {
        ASSERT_OK(vhost_device_start(&b->device));
        ASSERT_UINT(0, b->kernel.vdpa.space_of[0]);
        ASSERT_UINT(1, b->kernel.vdpa.space_of[1]);
        ASSERT_INT(-EBUSY, vhost_kernel_vdpa_set_space(&b->vdpa, 1, 0));
        CHECK_CALL(kernel_says(b, -EBUSY, VHOST_WHY_STATE, "address space"));
        ASSERT_OK(vhost_device_stop(&b->device));
    }
    ASSERT_OK(vhost_kernel_vdpa_set_space(&b->vdpa, 1, 0));
    ASSERT_OK(vhost_device_start(&b->device));
    ASSERT_UINT(0, b->kernel.vdpa.space_of[1]);
    PASS();
}

TEST groups_and_spaces_that_are_not_there_are_refused(bench *b)
{
    ASSERT_OK(stopped(b));
    fake_kernel_forget(&b->kernel);
    ASSERT_INT(-EINVAL, vhost_kernel_vdpa_set_space(&b->vdpa, 2, 0));
    ASSERT_INT(-EINVAL, vhost_kernel_vdpa_set_space(&b->vdpa, 0, 2));
    CHECK_CALL(kernel_says(b, -EINVAL, VHOST_WHY_ARGUMENT, "group or address space"));
    ASSERT_UINT(0, b->kernel.count);
    PASS();
}

TEST a_group_that_is_refused_its_space_stops_the_start(bench *b)
{
    ASSERT_OK(stopped(b));
    fake_kernel_refuse(&b->kernel, FAKE_VDPA_SET_GROUP_ASID, -1, 1, -EIO);
    ASSERT_INT(-EIO, vhost_device_start(&b->device));
    CHECK_CALL(fixture_names(&b->device.last_error, VHOST_OP_SET_FEATURES, -1));
    CHECK_CALL(kernel_says(b, -EIO, VHOST_WHY_BACKEND_REFUSED, "VDPA_SET_GROUP_ASID"));
    ASSERT_INT(VHOST_STATE_STOPPED, b->device.state);
    PASS();
}

TEST memory_is_mapped_into_another_space(bench *b)
{
    ASSERT_OK(running(b));
    const expected list[] = {
        {MESSAGE, MESSAGE_WIDTHS, {2, 1, 0x5000, PAGE, number_of(b->f->host), 1, UPDATE}},
        {MESSAGE, MESSAGE_WIDTHS, {2, 1, 0x5000, PAGE, 0, 0, INVALIDATE}},
    };
    void *host = b->f->host;
    ASSERT_OK(vhost_kernel_vdpa_map(&b->vdpa, 1, 0x5000, PAGE, host, VHOST_PERMIT_READ));
    ASSERT(vhost_kernel_vdpa_map(&b->vdpa, 1, 0x5000, PAGE, host, VHOST_PERMIT_READ) < 0);
    b->kernel.count--;
    ASSERT_UINT(1, fake_vdpa_maps(&b->kernel, 1));
    ASSERT_UINT(1, fake_vdpa_find(&b->kernel, 1, 0x5fff)->permit);
    ASSERT_OK(vhost_kernel_vdpa_unmap(&b->vdpa, 1, 0x5000, PAGE));
    ASSERT_UINT(0, fake_vdpa_maps(&b->kernel, 1));
    ONLY_CALLS_ARE(b, list);
    return check_state(b);
}

/* What is mapped elsewhere is not touched by what becomes of the VM's memory. */
TEST maps_in_other_spaces_outlast_a_commit_and_a_start(bench *b)
{
    ASSERT_OK(running(b));
    ASSERT_OK(vhost_kernel_vdpa_map(&b->vdpa, 1, 0, PAGE, b->f->host, VHOST_PERMIT_READ));
    ASSERT_OK(grow(b));
    ASSERT_OK(vhost_device_stop(&b->device));
    ASSERT_OK(swap_high(b, 160));
    ASSERT_OK(vhost_device_start(&b->device));
    ASSERT_UINT(1, fake_vdpa_maps(&b->kernel, 1));
    ASSERT_FALSE(fake_vdpa_find(&b->kernel, 1, 0)->lost);
    return check_state(b);
}

static enum greatest_test_res no_map(bench *b, uint32_t space, uint64_t iova, uint64_t size)
{
    int code = -EINVAL;
    ASSERT_INT(code, vhost_kernel_vdpa_map(&b->vdpa, space, iova, size, b->f->host, 3));
    CHECK_CALL(kernel_says(b, code, VHOST_WHY_ARGUMENT, ""));
    ASSERT_INT(code, vhost_kernel_vdpa_unmap(&b->vdpa, space, iova, size));
    PASS();
}

TEST maps_that_cannot_be_are_refused(bench *b)
{
    ASSERT_OK(stopped(b));
    fake_kernel_forget(&b->kernel);
    CHECK_CALL(no_map(b, 0, 0, PAGE)); /* that of the VM */
    CHECK_CALL(no_map(b, 2, 0, PAGE));
    CHECK_CALL(no_map(b, 1, 0, 0));
    CHECK_CALL(no_map(b, 1, 0, PAGE + 1));
    CHECK_CALL(no_map(b, 1, 1, PAGE));
    CHECK_CALL(no_map(b, 1, 512, PAGE - 512));
    CHECK_CALL(no_map(b, 1, UINT64_C(0xfffffffffffff000), 2 * PAGE));
    ASSERT_UINT(0, b->kernel.count);
    ASSERT_OK(
        vhost_kernel_vdpa_map(&b->vdpa, 1, UINT64_C(0xfffffffffffff000), PAGE, b->f->host, 3));
    PASS();
}

TEST a_map_elsewhere_has_its_limits_too(bench *b)
{
    b->kernel.vdpa.iova_last = 0xffff;
    ASSERT_OK(opened(b));
    ASSERT_INT(-EBUSY, vhost_kernel_vdpa_map(&b->vdpa, 1, 0, PAGE, b->f->host, 3));
    CHECK_CALL(kernel_says(b, -EBUSY, VHOST_WHY_STATE, "before init"));
    ASSERT_INT(-EBUSY, vhost_kernel_vdpa_unmap(&b->vdpa, 1, 0, PAGE));
    ASSERT_OK(attach_device(b));
    ASSERT_INT(-EINVAL, vhost_kernel_vdpa_map(&b->vdpa, 1, 0xf000, 2 * PAGE, b->f->host, 3));
    CHECK_CALL(kernel_says(b, -EINVAL, VHOST_WHY_KERNEL_IOVA, "0xf000+0x2000"));
    refuse_message(b, 0, -ENOMEM);
    ASSERT_INT(-ENOMEM, vhost_kernel_vdpa_map(&b->vdpa, 1, 0, PAGE, b->f->host, 3));
    CHECK_CALL(kernel_says(b, -ENOMEM, VHOST_WHY_KERNEL_MEMLOCK, "0x0+0x1000"));
    fake_kernel_relent(&b->kernel);
    vhost_device_cleanup(&b->device);
    ASSERT_INT(-EBUSY, vhost_kernel_vdpa_map(&b->vdpa, 1, 0, PAGE, b->f->host, 3));
    PASS();
}

TEST a_closed_object_maps_nothing(bench *b)
{
    void *page;
    uint32_t group;
    ASSERT_OK(open_vdpa(b));
    vhost_kernel_close(&b->vdpa);
    vhost_kernel_close(&b->vdpa);
    ASSERT(vhost_kernel_vdpa_map(&b->vdpa, 1, 0, PAGE, b->f->host, 3) < 0);
    ASSERT(vhost_kernel_vdpa_unmap(&b->vdpa, 1, 0, PAGE) < 0);
    ASSERT(vhost_kernel_vdpa_set_space(&b->vdpa, 0, 0) < 0);
    ASSERT(vhost_kernel_vdpa_get_group(&b->vdpa, 0, &group) < 0);
    ASSERT(vhost_kernel_vdpa_map_doorbell(&b->vdpa, 0, &page) < 0);
    ASSERT_FAILS(b->f, init_device(b), &b->device.last_error, -EINVAL, VHOST_WHY_BACKEND_REFUSED);
    PASS();
}

/* ---- doorbells ---- */

TEST a_doorbell_is_mapped_and_unmapped(bench *b)
{
    void *page = NULL;
    ASSERT_OK(running(b));
    ASSERT_OK(vhost_kernel_vdpa_map_doorbell(&b->vdpa, 2, &page));
    ASSERT_PTR(&b->kernel.vdpa.doorbell[2], page);
    ASSERT_UINT(1, fake_vdpa_doorbells(&b->kernel));
    ASSERT_OK(vhost_kernel_vdpa_unmap_doorbell(&b->vdpa, page));
    ASSERT_UINT(0, fake_vdpa_doorbells(&b->kernel));
    ASSERT(vhost_kernel_vdpa_map_doorbell(&b->vdpa, QUEUES, &page) < 0);
    PASS();
}

TEST a_doorbell_that_cannot_be_unmapped_is_told(bench *b)
{
    static vhost_kernel zeroed;
    ASSERT_INT(-EINVAL, vhost_kernel_vdpa_unmap_doorbell(&zeroed, b));
    ASSERT_INT(-EINVAL, zeroed.last_error.code);
    void *page = NULL;
    ASSERT_OK(running(b));
    ASSERT_OK(vhost_kernel_vdpa_map_doorbell(&b->vdpa, 2, &page));
    fault_arm(&b->f->fault, FAULT_ONCE, 1, 0);
    ASSERT_INT(-EIO, vhost_kernel_vdpa_unmap_doorbell(&b->vdpa, page));
    CHECK_CALL(kernel_says(b, -EIO, VHOST_WHY_ARGUMENT, "unmapping a doorbell"));
    ASSERT_OK(vhost_kernel_vdpa_unmap_doorbell(&b->vdpa, page));
    PASS();
}

TEST a_device_without_doorbells_says_so(bench *b)
{
    void *page;
    ASSERT_OK(running(b));
    fake_kernel_refuse(&b->kernel, FAKE_MAP, -1, 0, -EOPNOTSUPP);
    ASSERT_INT(-ENOTSUP, vhost_kernel_vdpa_map_doorbell(&b->vdpa, 0, &page));
    CHECK_CALL(kernel_says(b, -ENOTSUP, VHOST_WHY_NOT_SUPPORTED, "doorbell"));
    fake_kernel_relent(&b->kernel);
    b->kernel.vdpa.doorbells = false; /* errno 524, which leaks out of the kernel */
    ASSERT_INT(-ENOTSUP, vhost_kernel_vdpa_map_doorbell(&b->vdpa, 0, &page));
    return kernel_says(b, -ENOTSUP, VHOST_WHY_NOT_SUPPORTED, "doorbell");
}

TEST a_doorbell_needs_memory_and_a_device(bench *b)
{
    void *page;
    ASSERT_OK(running(b));
    fake_kernel_refuse(&b->kernel, FAKE_MAP, -1, 0, -ENOMEM);
    ASSERT_INT(-ENOMEM, vhost_kernel_vdpa_map_doorbell(&b->vdpa, 0, &page));
    fake_kernel_relent(&b->kernel);
    ASSERT_OK(break_device(b));
    ASSERT_INT(-EINVAL, vhost_kernel_vdpa_map_doorbell(&b->vdpa, 0, &page));
    return kernel_says(b, -EINVAL, VHOST_WHY_ARGUMENT, "doorbell");
}

/* ---- migration ---- */

static enum greatest_test_res cannot_log(bench *b, uint64_t features, vhost_kernel_logs logs)
{
    vhost_why why = VHOST_WHY_NONE;
    b->kernel.offers[FAKE_VDPA].features = VERSION_1 | PLATFORM | features;
    b->options.logs = logs;
    ASSERT_OK(running(b));
    ASSERT_PTR(&b->device, vhost_log_blocker(&b->f->vm, NULL, &why));
    ASSERT_INT(VHOST_WHY_LOG_UNSUPPORTED, why);
    ASSERT_FAILS(b->f, vhost_log_start(&b->f->vm), &b->f->vm.last_error, -ENOTSUP,
                 VHOST_WHY_LOG_UNSUPPORTED);
    ASSERT(strstr(b->f->vm.last_error.text, "vhost-vdpa") != NULL);
    ASSERT_UINT(0, b->kernel.count);
    close_bench(b);
    ASSERT_OK(vhost_log_start(&b->f->vm));
    ASSERT_OK(opened(b));
    ASSERT_FAILS(b->f, init_device(b), &b->device.last_error, -ENOTSUP, VHOST_WHY_LOG_UNSUPPORTED);
    close_bench(b);
    return vhost_log_stop(&b->f->vm) == 0 ? GREATEST_TEST_RES_PASS : GREATEST_TEST_RES_FAIL;
}

/* D9: beside a device of another kind, each has the VM's memory in its own way. */
TEST a_vdpa_device_and_another_kind_share_a_vm(bench *b)
{
    fixture *f = b->f;
    vhost_features_set(&f->mock[0].facts.offered, VHOST_FEATURE_LOG_ALL);
    f->mock[0].facts.log_kind = VHOST_DIRTY_PRIVATE;
    ASSERT_OK(fixture_running_device(f));
    ASSERT_OK(open_vdpa(b));
    ASSERT_OK(attach_device(b));
    ASSERT_OK(vhost_device_start(&b->device));
    ASSERT_OK(grow(b));
    ASSERT_UINT(3, fake_vdpa_maps(&b->kernel, 0));
    CHECK_CALL(check_state(b));
    ASSERT_INT(-ENOTSUP, vhost_log_start(&f->vm));
    ASSERT_OK(break_device(b)); /* nothing changes, so nothing breaks */
    ASSERT_OK(swap_high(b, 160));
    ASSERT_INT(VHOST_STATE_RUNNING, b->device.state);
    vhost_device_cleanup(&b->device);
    ASSERT_OK(vhost_log_start(&f->vm));
    ASSERT_OK(vhost_log_stop(&f->vm));
    return fixture_check(f);
}

TEST a_vdpa_device_stands_in_the_way_of_migration(bench *b)
{
    static const vhost_kernel_logs logs[] = {VHOST_KERNEL_LOGS_AS_KNOWN, VHOST_KERNEL_LOGS_ALL,
                                             VHOST_KERNEL_LOGS_INCOMPLETE};
    for (int i = 0; i < 3; i++) {
        CHECK_CALL(cannot_log(b, 0, logs[i]));
        CHECK_CALL(cannot_log(b, BIT(VHOST_FEATURE_LOG_ALL), logs[i]));
    }
    PASS();
}

/* ---- whatever happens, the device has the VM's memory ---- */

enum {
    SLOTS = 8,
    SLOT_PAGES = 16
};

typedef struct slot { /* of guest memory; the rings are in the first */
    bool present, rom;
    uint32_t first, pages; /* in the backing */
    unsigned generation;   /* another one is other memory */
} slot;

typedef struct model {
    slot now[SLOTS];
    slot told[SLOTS]; /* that the device has */
    bool known;       /* whether the library can know that */
    bool started;     /* since the fd was opened: the next start resets */
    uint64_t features;
    uint64_t random;
} model;

static uint32_t roll(model *m, uint32_t sides)
{
    m->random = m->random * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (uint32_t)(m->random >> 33) % sides;
}

static bool usable(const slot *s)
{
    return s->present && !s->rom;
}

static bool same(const slot *a, const slot *b)
{
    return a->first == b->first && a->pages == b->pages && a->generation == b->generation;
}

static uint64_t place_of_slot(uint32_t i)
{
    uint64_t half = i < SLOTS / 2 ? 0 : FIXTURE_HIGH;
    return half + (i % (SLOTS / 2)) * SLOT_PAGES * PAGE;
}

static void change_slot(model *m, uint32_t i)
{
    slot *s = &m->now[i];
    slot next = *s;
    next.present = i == 0 || roll(m, 3) != 0;
    next.rom = i != 0 && roll(m, 6) == 0;
    next.first = i * 2 * SLOT_PAGES + (roll(m, i == 0 ? 12 : 3) == 0 ? SLOT_PAGES : 0);
    next.pages = i == 0 || roll(m, 3) != 0 ? SLOT_PAGES : SLOT_PAGES / 2;
    if (next.present != s->present || next.first != s->first || next.pages != s->pages) {
        next.generation++;
    }
    *s = next;
}

static int put_layout(bench *b, const model *m)
{
    vhost_section sections[SLOTS];
    size_t count = 0;
    for (uint32_t i = 0; i < SLOTS; i++) {
        const slot *s = &m->now[i];
        if (s->present) {
            sections[count] = fixture_section(b->f, place_of_slot(i), s->pages, s->first);
            sections[count++].flags = s->rom ? VHOST_SECTION_ROM : 0;
        }
    }
    return fixture_map(b->f, sections, count);
}

typedef struct change {
    unsigned removed, added;
    bool in_place;
} change;

static change change_between(const slot *from, const slot *to)
{
    change c = {0, 0, false};
    for (int i = 0; i < SLOTS; i++) {
        bool stays = usable(&from[i]) && usable(&to[i]) && same(&from[i], &to[i]);
        c.removed += usable(&from[i]) && !stays;
        c.added += usable(&to[i]) && !stays;
        c.in_place |= usable(&from[i]) && usable(&to[i]) && !stays;
    }
    return c;
}

/* Nothing but the difference was said, or all if the library could not know. */
static enum greatest_test_res only_changes_were_said(const bench *b, const model *m, bool ever)
{
    change c = change_between(m->told, m->now);
    unsigned all = 0;
    for (int i = 0; i < SLOTS; i++) {
        all += usable(&m->now[i]);
    }
    ASSERT_UINT(m->known ? 0 : ever, b->ledger.wiped);
    ASSERT_UINT(m->known ? c.removed : ever, b->ledger.unmapped);
    ASSERT_UINT(m->known ? c.added : all, b->ledger.mapped);
    PASS();
}

static enum greatest_test_res device_has_it_all(bench *b, model *m)
{
    const vhost_table *table = vhost_device_table(&b->device);
    unsigned next = 0;
    bool ever = b->ledger.ever;
    look(b);
    CHECK_CALL(only_changes_were_said(b, m, ever));
    CHECK_CALL(reaches(b, table));
    for (uint32_t i = 0; i < SLOTS; i++) {
        const slot *s = &m->now[i];
        if (usable(s)) {
            ASSERT(next < table->count);
            ASSERT_U64(place_of_slot(i), table->regions[next].gpa);
            ASSERT_U64(s->pages * PAGE, table->regions[next].size);
            ASSERT_PTR(b->f->host + s->first * PAGE, table->regions[next].host);
            next++;
        }
    }
    ASSERT_UINT(table->count, next);
    memcpy(m->told, m->now, sizeof m->told);
    m->known = true;
    PASS();
}

static bool can_pause(const model *m)
{
    return (m->features & F_SUSPEND) != 0 && (m->features & F_RESUME) != 0;
}

static enum greatest_test_res random_commit(bench *b, model *m, bool sabotage)
{
    bool ran = b->device.state == VHOST_STATE_RUNNING;
    slot before[SLOTS];
    memcpy(before, m->now, sizeof before);
    for (uint32_t i = 0; i < SLOTS; i++) {
        if (roll(m, 3) == 0) {
            change_slot(m, i);
        }
    }
    bool breaks =
        !same(&before[0], &m->now[0]) || (change_between(before, m->now).in_place && !can_pause(m));
    if (sabotage && ran) {
        fake_kernel_refuse_once(&b->kernel, FAKE_WRITE, -1, (int)roll(m, 4), -EFAULT);
    }
    ASSERT_OK(put_layout(b, m));
    sabotage = sabotage && ran && b->kernel.refused == FAKE_NO_OP;
    fake_kernel_relent(&b->kernel);
    if (!ran) {
        PASS();
    }
    if (b->device.state == VHOST_STATE_RUNNING) {
        ASSERT_FALSE(breaks);
        return device_has_it_all(b, m);
    }
    ASSERT(breaks || sabotage);
    look(b);
    m->known = m->started = false;
    PASS();
}

static enum greatest_test_res random_start(bench *b, model *m, bool sabotage)
{
    if (sabotage) {
        fake_kernel_refuse_once(&b->kernel, FAKE_WRITE, -1, 0, -EFAULT);
    }
    int result = vhost_device_start(&b->device);
    bool refused = sabotage && b->kernel.refused == FAKE_NO_OP;
    fake_kernel_relent(&b->kernel);
    if (m->started) {
        m->known = m->known && (m->features & F_PERSIST) != 0;
    }
    m->started = true;
    if (refused && result < 0) {
        look(b);
        m->known = false;
        PASS();
    }
    ASSERT_OK(result);
    return device_has_it_all(b, m);
}

/* A stop, or the reset at a start, takes the maps that do not persist. */
static enum greatest_test_res random_rest(bench *b, model *m)
{
    if (b->device.state == VHOST_STATE_RUNNING) {
        ASSERT_OK(vhost_device_stop(&b->device));
    } else {
        ASSERT_OK(vhost_device_reset(&b->device));
        ASSERT_OK(ack(b));
        m->known = m->known && (m->features & F_PERSIST) != 0;
    }
    look(b);
    PASS();
}

static enum greatest_test_res random_revival(bench *b, model *m)
{
    m->known = m->started = false;
    fake_kernel_forget(&b->kernel);
    if (roll(m, 2) == 0) {
        ASSERT_OK(vhost_device_recover(&b->device));
        m->started = true;
        return device_has_it_all(b, m);
    }
    ASSERT_OK(vhost_device_reset(&b->device));
    ASSERT_OK(ack(b));
    look(b);
    PASS();
}

static enum greatest_test_res random_step(bench *b, model *m)
{
    bool sabotage = roll(m, 8) == 0;
    if (b->device.state == VHOST_STATE_BROKEN) {
        return random_revival(b, m);
    }
    switch (roll(m, 8)) {
    case 0:
    case 1:
        if (b->device.state == VHOST_STATE_STOPPED) {
            return random_start(b, m, sabotage);
        }
        return random_commit(b, m, sabotage);
    case 2:
        return random_rest(b, m);
    default:
        return random_commit(b, m, sabotage);
    }
}

static void begin_model(model *m, uint64_t features, uint64_t seed)
{
    memset(m, 0, sizeof *m);
    m->features = features;
    m->random = seed;
    for (uint32_t i = 0; i < SLOTS; i++) {
        m->now[i].present = true;
        m->now[i].pages = SLOT_PAGES;
        m->now[i].first = i * 2 * SLOT_PAGES;
    }
}

static enum greatest_test_res random_life(bench *b, uint64_t features, uint64_t seed, int steps)
{
    model m;
    begin_model(&m, features, seed);
    b->kernel.offers[FAKE_VDPA].backend_features = features;
    ASSERT_OK(put_layout(b, &m));
    ASSERT_OK(open_vdpa(b));
    ASSERT_OK(attach_device(b));
    look(b);
    for (int i = 0; i < steps; i++) {
        enum greatest_test_res result = random_step(b, &m);
        if (result == GREATEST_TEST_RES_PASS) {
            result = check_state(b);
        }
        if (result != GREATEST_TEST_RES_PASS || b->ledger.wrong) {
            fprintf(stderr, "step %d, features 0x%llx, seed %llu: %s\n", i,
                    (unsigned long long)features, (unsigned long long)seed,
                    b->ledger.wrong ? b->ledger.wrong : "see below");
            return GREATEST_TEST_RES_FAIL;
        }
    }
    PASS();
}

TEST random_maps_reach_the_device_exactly(bench *b)
{
    fixture *f = b->f;
    for (uint64_t seed = 1; seed <= 5; seed++) {
        CHECK_CALL(random_life(b, F_ALL, seed, 400));
        close_bench(b);
        CHECK_CALL(fixture_renew(f));
        open_bench(b, f);
    }
    PASS();
}

/* BATCH, ASID, SUSPEND, RESUME, PERSIST: each may be there or not. */
TEST random_maps_reach_every_kind_of_device(bench *b)
{
    static const unsigned bits[] = {F_BATCH, F_ASID, F_SUSPEND, F_RESUME, F_PERSIST};
    fixture *f = b->f;
    for (unsigned chosen = 0; chosen < 32; chosen++) {
        uint64_t features = F_V2;
        for (int i = 0; i < 5; i++) {
            features |= (chosen >> i & 1) != 0 ? bits[i] : 0;
        }
        CHECK_CALL(random_life(b, features, 100 + chosen, 100));
        close_bench(b);
        CHECK_CALL(fixture_renew(f));
        open_bench(b, f);
    }
    PASS();
}

/* ---- every call fails ---- */

typedef int step(bench *b);

static int step_map(bench *b)
{
    return fixture_map_default(b->f);
}

static int step_pass(bench *b)
{
    if (b->kernel.opened == 0) {
        (void)fake_kernel_pass_kind(&b->kernel, FAKE_VDPA);
    }
    return vhost_kernel_vdpa_open_fd(&b->vdpa, FAKE_FD, &b->options);
}

static int step_space(bench *b)
{
    return vhost_kernel_vdpa_set_space(&b->vdpa, 1, 1);
}

static int step_other_map(bench *b)
{
    const fake_map *there = fake_vdpa_find(&b->kernel, 1, 0);
    return there ? 0 : vhost_kernel_vdpa_map(&b->vdpa, 1, 0, PAGE, b->f->host, 3);
}

/* After a revival the device runs already. */
static int step_start(bench *b)
{
    return b->device.state == VHOST_STATE_RUNNING ? 0 : vhost_device_start(&b->device);
}

static int result_of(const bench *b, int result)
{
    return b->device.state == VHOST_STATE_BROKEN ? b->device.last_error.code : result;
}

static int step_grow(bench *b)
{
    return result_of(b, grow(b));
}

static int step_swap(bench *b)
{
    return result_of(b, swap_high(b, 160));
}

static int step_swap_back(bench *b)
{
    return result_of(b, swap_high(b, 192));
}

static int step_config(bench *b)
{
    unsigned char bytes[8] = {0};
    int result = vhost_device_get_config(&b->device, 0, bytes, 8);
    return result < 0 ? result : vhost_device_set_config(&b->device, 8, bytes, 8);
}

static int step_mask(bench *b)
{
    return vhost_queue_mask(&b->device, 2);
}

static int step_doorbell(bench *b)
{
    void *page = NULL;
    int result = vhost_kernel_vdpa_map_doorbell(&b->vdpa, 0, &page);
    for (int i = 0; i < 4 && result >= 0; i++) {
        if (vhost_kernel_vdpa_unmap_doorbell(&b->vdpa, page) == 0) {
            return 0;
        }
    }
    return result;
}

static int step_stop(bench *b)
{
    return vhost_device_stop(&b->device);
}

static int step_reset(bench *b)
{
    if (b->device.state == VHOST_STATE_RUNNING) {
        return 0;
    }
    int result = vhost_device_reset(&b->device);
    return result < 0 ? result : ack(b);
}

static int step_cleanup(bench *b)
{
    vhost_device_cleanup(&b->device);
    return 0;
}

static step *const steps[] = {
    step_map,       open_vdpa,  step_space,  attach_device, step_other_map, step_start,
    step_grow,      step_swap,  step_config, step_mask,     step_doorbell,  step_stop,
    step_swap_back, step_start, step_stop,   step_reset,    step_start,     step_cleanup,
};

/* Brings a broken device back to life, running. */
static int revive(bench *b)
{
    int result = vhost_device_reset(&b->device);
    if (result >= 0) {
        result = ack(b);
    }
    return result < 0 ? result : vhost_device_start(&b->device);
}

static enum greatest_test_res failure_is_told(const bench *b, step *done, int result)
{
    ASSERT(result == -ENOMEM || result == -EIO || result == -EMFILE ||
           (done == step_doorbell && result == -ENOTSUP));
    ASSERT(b->vdpa.last_error.code < 0 || result != -EIO);
    if (done == attach_device || done == step_start) {
        ASSERT_INT(result, b->device.last_error.code);
        ASSERT(b->device.last_error.text[0] != '\0');
    }
    PASS();
}

/* One step, tried until it is done. A step whose failure broke the device is done by a revival. */
static enum greatest_test_res take_step(bench *b, step *next)
{
    for (int attempt = 0; attempt < 4; attempt++) {
        int result =
            b->device.state == VHOST_STATE_BROKEN && next != step_cleanup ? revive(b) : next(b);
        if (result >= 0 && b->device.state != VHOST_STATE_BROKEN) {
            return check_state(b);
        }
        CHECK_CALL(failure_is_told(b, next, result));
        CHECK_CALL(check_state(b));
    }
    FAILm("a step fails though nothing stands in its way");
}

static enum greatest_test_res life_with_failures(bench *b)
{
    for (size_t i = 0; i < sizeof steps / sizeof steps[0]; i++) {
        CHECK_CALL(take_step(b, steps[i]));
        look(b);
        ASSERT(b->ledger.wrong == NULL);
    }
    PASS();
}

static enum greatest_test_res fails_at_every_call(bench *b, uint64_t features, fault_plan plan,
                                                  unsigned distance)
{
    fixture *f = b->f;
    bool hit = true;
    for (unsigned nth = 1; hit; nth++) {
        open_bench(b, f);
        b->kernel.offers[FAKE_VDPA].backend_features = features;
        fault_arm(&f->fault, plan, nth, distance);
        enum greatest_test_res result = life_with_failures(b);
        hit = f->fault.hit;
        const char *message = greatest_info.msg;
        if (result == GREATEST_TEST_RES_FAIL) {
            fprintf(stderr, "call %u+%u fails: %s; %s; %s\n", nth, distance,
                    fake_kernel_name((fake_op)f->fault.queue), b->kernel.complaint,
                    b->ledger.wrong ? b->ledger.wrong : "");
        }
        close_bench(b);
        greatest_info.msg = message;
        CHECK_CALL(result);
        ASSERT_STR_EQ("", b->kernel.complaint);
        ASSERT_UINT(0, fake_kernel_open_fds(&b->kernel));
        CHECK_CALL(fixture_renew(f));
        ASSERT(nth < 1000);
    }
    PASS();
}

TEST any_call_to_a_vdpa_device_may_fail_once(bench *b)
{
    return fails_at_every_call(b, F_ALL, FAULT_ONCE, 0);
}

TEST any_call_to_a_plain_vdpa_device_may_fail_once(bench *b)
{
    return fails_at_every_call(b, F_V2 | F_ASID | F_SUSPEND | F_RESUME, FAULT_ONCE, 0);
}

TEST any_two_calls_to_a_vdpa_device_may_fail(bench *b)
{
    for (unsigned distance = 1; distance <= 8; distance++) {
        CHECK_CALL(fails_at_every_call(b, F_ALL, FAULT_TWICE, distance));
    }
    PASS();
}

TEST any_two_calls_to_a_plain_vdpa_device_may_fail(bench *b)
{
    uint64_t plain = F_V2 | F_ASID | F_SUSPEND | F_RESUME;
    for (unsigned distance = 1; distance <= 8; distance++) {
        CHECK_CALL(fails_at_every_call(b, plain, FAULT_TWICE, distance));
    }
    PASS();
}

/* From some call on nothing works any more, but for closing: it can all be put away. */
TEST a_kernel_with_a_vdpa_device_may_stop_working(bench *b)
{
    fixture *f = b->f;
    bool hit = true;
    for (unsigned nth = 1; hit; nth++) {
        open_bench(b, f);
        fault_arm(&f->fault, FAULT_EVER_AFTER, nth, 0);
        int result = 0;
        for (size_t i = 0; i < sizeof steps / sizeof steps[0] && result >= 0; i++) {
            result = steps[i](b);
        }
        hit = f->fault.hit;
        vhost_device_cleanup(&b->device);
        vhost_kernel_close(&b->vdpa);
        fault_disarm(&f->fault);
        b->kernel.vdpa.doorbell[0] = 0; /* that could not be unmapped */
        ASSERT_UINT(0, fake_kernel_open_fds(&b->kernel));
        CHECK_CALL(fixture_renew(f));
    }
    PASS();
}

TEST any_call_on_a_passed_vdpa_fd_may_fail_once(bench *b)
{
    fixture *f = b->f;
    bool hit = true;
    for (unsigned nth = 1; hit; nth++) {
        open_bench(b, f);
        fault_arm(&f->fault, FAULT_ONCE, nth, 0);
        for (size_t i = 0; i < sizeof steps / sizeof steps[0]; i++) {
            step *next = steps[i] == open_vdpa ? step_pass : steps[i];
            int result = next(b);
            if (result < 0 && b->device.state != VHOST_STATE_BROKEN) {
                result = next(b);
            }
            CHECK_CALL(check_state(b));
            if (b->device.state == VHOST_STATE_BROKEN) {
                break;
            }
            ASSERT(result >= 0);
        }
        hit = f->fault.hit;
        close_bench(b);
        ASSERT_STR_EQ("", b->kernel.complaint);
        ASSERT_UINT(0, fake_kernel_open_fds(&b->kernel));
        CHECK_CALL(fixture_renew(f));
    }
    PASS();
}

/* Signals come all the time. */
TEST interrupted_calls_to_a_vdpa_device_are_repeated(bench *b)
{
    b->kernel.interrupts = true;
    for (size_t i = 0; i + 1 < sizeof steps / sizeof steps[0]; i++) {
        ASSERT_OK(steps[i](b));
        look(b);
        ASSERT(b->ledger.wrong == NULL);
        CHECK_CALL(check_state(b));
    }
    ASSERT(b->device.state == VHOST_STATE_RUNNING);
    return reaches(b, vhost_device_table(&b->device));
}

TEST a_steady_vdpa_device_allocates_nothing(bench *b)
{
    ASSERT_OK(running(b));
    ASSERT_OK(swap_high(b, 160));
    ASSERT_OK(swap_high(b, 192));
    ASSERT_OK(step_config(b));
    ASSERT_OK(vhost_device_stop(&b->device));
    size_t before = b->f->allocation_calls;
    for (int i = 0; i < 5; i++) {
        ASSERT_OK(vhost_device_start(&b->device));
        ASSERT_OK(swap_high(b, 192));
        ASSERT_OK(step_config(b));
        ASSERT_OK(vhost_device_stop(&b->device));
    }
    ASSERT_UINT(before, b->f->allocation_calls);
    PASS();
}

static void identity(void)
{
    RUN_VDPA(what_a_device_is_is_asked_like_this);
    RUN_VDPA(what_an_old_kernel_does_not_know_has_its_usual_value);
    RUN_VDPA(a_device_that_somebody_has_open_is_refused_by_name);
    RUN_VDPA(a_device_of_absurd_numbers_is_refused);
    RUN_VDPA(a_path_that_cannot_be_is_refused);
    RUN_VDPA(each_call_of_open_may_fail);
    RUN_VDPA(a_passed_vdpa_fd_stays_the_callers_where_opening_fails);
    RUN_VDPA(a_passed_fd_serves_one_device_after_another);
    RUN_VDPA(an_fd_of_a_vdpa_device_with_an_owner_is_refused);
    RUN_VDPA(an_open_that_is_interrupted_is_repeated);
    RUN_VDPA(more_queues_than_the_device_has_are_refused);
}

static void sequences(void)
{
    RUN_VDPA(init_says_this);
    RUN_VDPA(a_device_of_another_kind_at_its_path_is_not_run);
    RUN_VDPA(a_device_with_a_smaller_config_space_is_not_run);
    RUN_VDPA(a_queue_cannot_be_reset_alone_and_nobody_is_told_so);
    RUN_VDPA(start_says_this_to_a_vdpa_device);
    RUN_VDPA(stop_suspends_and_asks_for_positions);
    RUN_VDPA(stop_resets_what_cannot_be_suspended);
    RUN_VDPA(a_second_start_resets_first);
    RUN_VDPA(maps_that_a_reset_takes_are_made_anew);
    RUN_VDPA(reset_says_this_to_a_vdpa_device);
    RUN_VDPA(cleanup_resets_unmaps_and_closes);
    RUN_VDPA(a_commit_says_what_changes);
    RUN_VDPA(memory_is_mapped_where_the_vmm_says);
    RUN_VDPA(without_batches_each_map_is_said_alone);
    RUN_VDPA(the_oldest_kernel_gets_messages_of_version_1);
    RUN_VDPA(queues_that_are_not_ready_are_left_alone);
    RUN_VDPA(queues_without_notifiers_are_told_so_and_not_kicked);
    RUN_VDPA(rings_are_enabled_before_the_driver_is_ok);
    RUN_VDPA(queues_start_and_stop_only_together);
    RUN_VDPA(a_masked_queue_of_a_vdpa_device_calls_the_library);
}

static void status_and_features(void)
{
    RUN_VDPA(a_device_may_refuse_features_ok);
    RUN_VDPA(a_device_may_refuse_driver_ok);
    RUN_VDPA(a_device_that_refused_driver_ok_is_reset);
    RUN_VDPA(a_device_of_which_the_status_is_not_known_is_reset);
    RUN_VDPA(a_device_that_may_have_run_has_no_positions);
    RUN_VDPA(a_device_that_runs_and_cannot_be_reset_is_cut_off);
    RUN_VDPA(status_bits_are_only_added);
    RUN_VDPA(access_platform_is_sent_if_it_is_offered);
    RUN_VDPA(what_the_driver_took_is_sent);
    RUN_VDPA(a_vdpa_device_has_no_place_behind_a_viommu);
}

static void rings_and_positions(void)
{
    RUN_VDPA(each_ring_has_its_largest_size);
    RUN_VDPA(where_rings_have_no_limits_the_device_has_one);
    RUN_VDPA(rings_are_told_by_guest_addresses);
    RUN_VDPA(queues_keep_their_numbers);
    RUN_VDPA(a_suspended_device_says_where_it_is);
    RUN_VDPA(a_packed_ring_has_two_positions);
    RUN_VDPA(a_device_that_was_reset_does_not_say_where_it_is);
    RUN_VDPA(a_suspension_that_fails_is_a_reset);
    RUN_VDPA(used_in_order_a_position_is_certain_without_suspension);
    RUN_VDPA(a_packed_ring_without_suspension_is_a_guess);
    RUN_VDPA(a_device_that_does_not_stop_is_cut_off);
    RUN_VDPA(a_position_that_is_not_told_breaks_the_device);
}

static void maps(void)
{
    RUN_VDPA(every_section_is_a_map_and_rom_is_none);
    RUN_VDPA(memory_that_changes_in_place_suspends_the_device);
    RUN_VDPA(memory_that_comes_or_goes_suspends_nothing);
    RUN_VDPA(memory_that_changes_in_place_breaks_what_cannot_suspend);
    RUN_VDPA(memory_that_changes_in_place_breaks_what_cannot_resume);
    RUN_VDPA(a_device_that_does_not_suspend_for_a_map_breaks);
    RUN_VDPA(a_device_that_does_not_resume_breaks);
    RUN_VDPA(a_map_refused_in_place_breaks);
    RUN_VDPA(the_end_of_a_batch_refused_in_place_breaks);
    RUN_VDPA(a_batch_is_ended_though_a_map_was_refused);
    RUN_VDPA(a_map_for_which_memory_is_short_names_the_limit);
    RUN_VDPA(a_map_that_the_kernel_did_not_make_names_the_limit);
    RUN_VDPA(memory_that_the_device_cannot_address_is_refused);
    RUN_VDPA(memory_before_what_the_device_can_address_is_refused);
    RUN_VDPA(memory_up_to_the_last_address_will_do);
    RUN_VDPA(memory_that_is_not_let_go_fails_the_start);
    RUN_VDPA(a_device_is_reset_and_unmapped_before_it_is_closed);
    RUN_VDPA(a_passed_fd_of_a_vdpa_device_does_not_come_back);
    RUN_VDPA(cutting_off_needs_no_help_of_the_kernel);
    RUN_VDPA(random_maps_reach_the_device_exactly);
    RUN_VDPA(random_maps_reach_every_kind_of_device);
}

static void config_and_spaces(void)
{
    RUN_VDPA(the_config_space_is_read_and_written);
    RUN_VDPA(bytes_beyond_the_config_space_are_not_asked_for);
    RUN_VDPA(where_its_size_is_not_known_the_kernel_is_asked);
    RUN_VDPA(config_changes_are_announced_while_it_runs);
    RUN_VDPA(a_queue_is_in_a_group);
    RUN_VDPA(an_old_kernel_has_no_groups);
    RUN_VDPA(a_group_stays_in_the_space_it_was_given);
    RUN_VDPA(groups_and_spaces_that_are_not_there_are_refused);
    RUN_VDPA(a_group_that_is_refused_its_space_stops_the_start);
    RUN_VDPA(memory_is_mapped_into_another_space);
    RUN_VDPA(maps_in_other_spaces_outlast_a_commit_and_a_start);
    RUN_VDPA(maps_that_cannot_be_are_refused);
    RUN_VDPA(a_map_elsewhere_has_its_limits_too);
    RUN_VDPA(a_closed_object_maps_nothing);
    RUN_VDPA(a_doorbell_is_mapped_and_unmapped);
    RUN_VDPA(a_doorbell_that_cannot_be_unmapped_is_told);
    RUN_VDPA(a_device_without_doorbells_says_so);
    RUN_VDPA(a_doorbell_needs_memory_and_a_device);
    RUN_VDPA(a_vdpa_device_and_another_kind_share_a_vm);
    RUN_VDPA(a_vdpa_device_stands_in_the_way_of_migration);
}

static void failures(void)
{
    RUN_VDPA(any_call_to_a_vdpa_device_may_fail_once);
    RUN_VDPA(any_call_to_a_plain_vdpa_device_may_fail_once);
    RUN_VDPA(any_two_calls_to_a_vdpa_device_may_fail);
    RUN_VDPA(any_two_calls_to_a_plain_vdpa_device_may_fail);
    RUN_VDPA(a_kernel_with_a_vdpa_device_may_stop_working);
    RUN_VDPA(any_call_on_a_passed_vdpa_fd_may_fail_once);
    RUN_VDPA(interrupted_calls_to_a_vdpa_device_are_repeated);
    RUN_VDPA(a_steady_vdpa_device_allocates_nothing);
}

SUITE(kernel_vdpa_suite)
{
    identity();
    sequences();
    status_and_features();
    rings_and_positions();
    maps();
    config_and_spaces();
    failures();
}
