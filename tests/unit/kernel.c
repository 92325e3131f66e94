/* vhost_kernel.h, on a kernel that records: which ioctls, with which bytes, and what is undone. */
#include "fake_kernel.h"
#include "fixture.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

enum {
    PAIRS = 3,
    QUEUES = 2 * PAIRS,
    TAP = 300,
    OTHER_TAP = 400
};

#define BIT(number) (UINT64_C(1) << (number))
#define VERSION_1   BIT(VHOST_FEATURE_VERSION_1)
#define MRG_RXBUF   BIT(15)
#define PLATFORM    BIT(VHOST_FEATURE_ACCESS_PLATFORM)

typedef struct bench {
    fixture *f;
    fake_kernel kernel;
    vhost_kernel_options options;
    vhost_kernel net;
    vhost_device device;
    vhost_device_options device_options;
    vhost_queue queue[QUEUES];
    vhost_features accepted;
    uint32_t pairs;
} bench;

typedef enum greatest_test_res bench_test(bench *b);

/* ---- arranging ---- */

static void fill(bench *b)
{
    for (uint32_t q = 0; q < 2 * b->pairs; q++) {
        vhost_queue *queue = &b->queue[q];
        uint64_t area = VHOST_PAGE * (8 + 4 * q);
        queue->ready = true;
        queue->size = 256;
        queue->desc = area;
        queue->avail = area + VHOST_PAGE;
        queue->used = area + 2 * VHOST_PAGE;
        queue->kick_fd = (int)(500 + q);
        queue->call_fd = (int)(600 + q);
    }
}

static int open_net(bench *b, uint32_t pairs)
{
    const int taps[PAIRS] = {TAP, TAP + 1, TAP + 2};
    b->pairs = pairs;
    return vhost_kernel_net_open(&b->net, FAKE_PATH, taps, pairs, &b->options);
}

static int pass_fds(bench *b, uint32_t pairs)
{
    const int taps[PAIRS] = {TAP, TAP + 1, TAP + 2};
    int fds[PAIRS];
    b->pairs = pairs;
    for (uint32_t i = 0; i < pairs; i++) {
        fds[i] = fake_kernel_pass(&b->kernel);
    }
    return vhost_kernel_net_open_fds(&b->net, fds, taps, pairs, &b->options);
}

static int attach_device(bench *b)
{
    int result = vhost_device_init(&b->device, &b->f->vm, vhost_kernel_ops(&b->net), &b->net,
                                   b->queue, 2 * b->pairs, &b->device_options);
    fill(b);
    return result < 0 ? result : vhost_device_ack(&b->device, b->accepted);
}

static int stopped(bench *b, uint32_t pairs)
{
    int result = fixture_map_default(b->f);
    if (result >= 0) {
        result = open_net(b, pairs);
    }
    return result < 0 ? result : attach_device(b);
}

static int running(bench *b, uint32_t pairs)
{
    int result = stopped(b, pairs);
    if (result >= 0) {
        result = vhost_device_start(&b->device);
    }
    fake_kernel_forget(&b->kernel);
    return result;
}

static int running_on_passed_fds(bench *b, uint32_t pairs)
{
    int result = fixture_map_default(b->f);
    if (result >= 0) {
        result = pass_fds(b, pairs);
    }
    if (result >= 0) {
        result = attach_device(b);
    }
    return result < 0 ? result : vhost_device_start(&b->device);
}

/* One section more than the default map. */
static int grow(bench *b)
{
    vhost_section sections[3];
    sections[0] = b->f->low;
    sections[1] = b->f->high;
    sections[2] = fixture_section(b->f, FIXTURE_REMOTE, 1, 0);
    return fixture_map(b->f, sections, 3);
}

/* Breaks a running device: a commit whose table the kernel refuses. */
static int break_device(bench *b)
{
    fake_kernel_refuse(&b->kernel, FAKE_SET_MEM_TABLE, -1, 0, -ENOMEM);
    int result = grow(b);
    fake_kernel_relent(&b->kernel);
    return result;
}

/* The nth vhost fd ever opened. */
static int fd_number(unsigned nth)
{
    return FAKE_FD + (int)nth;
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
    vhost_kernel_close(&b->net);
}

/* ---- checking ---- */

/* A device that does not run has nothing in the kernel that does; a broken one has no fds. */
static enum greatest_test_res check_state(const bench *b)
{
    bool runs = b->device.state == VHOST_STATE_RUNNING;
    ASSERT_STR_EQ("", b->kernel.complaint);
    if (b->device.state == VHOST_STATE_BROKEN) {
        ASSERT_UINT(0, fake_kernel_open_fds(&b->kernel));
    }
    for (unsigned i = 0; i < b->kernel.opened; i++) {
        for (int ring = 0; ring < FAKE_RINGS; ring++) {
            ASSERT(runs || b->kernel.fds[i].ring[ring].tap == -1);
        }
    }
    for (uint32_t q = 0; q < 2 * b->pairs; q++) {
        ASSERT(!b->queue[q].started || runs);
    }
    PASS();
}

static bench *the_bench(void)
{
    static bench b;
    return &b;
}

static bench_test *test_of_now;

static enum greatest_test_res run_on_bench(fixture *f)
{
    bench *b = the_bench();
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

#define RUN_KERNEL(TEST_NAME)                                                                      \
    do {                                                                                           \
        test_of_now = TEST_NAME;                                                                   \
        if (greatest_test_pre(#TEST_NAME) == 1) {                                                  \
            greatest_test_post(fixture_run(run_on_bench, MOCK_SYNCHRONOUS));                       \
        }                                                                                          \
    } while (0)

/* An ioctl by hand: its number, and its argument as numbers of 4 or 8 bytes ("44" or "8"). */
typedef struct expected {
    unsigned long request;
    const char *widths;
    uint64_t numbers[10];
} expected;

static enum greatest_test_res ioctl_is(const fake_call *call, int fd, const expected *e)
{
    size_t at = 0;
    ASSERT_EQ_FMT(e->request, call->request, "%#lx");
    ASSERT_INT(fd, call->fd);
    for (size_t i = 0; e->widths[i] != '\0'; i++) {
        size_t width = (size_t)(e->widths[i] - '0');
        ASSERT(at + width <= call->size);
        ASSERT_U64(e->numbers[i], fake_kernel_number(call->bytes + at, width));
        at += width;
    }
    ASSERT_UINT(call->size, at);
    PASS();
}

/* Whether the ioctls from *next on are these; the other calls are passed over. */
static enum greatest_test_res ioctls_are(const bench *b, unsigned *next, int fd, const expected *e,
                                         size_t count)
{
    for (size_t i = 0; i < count; i++) {
        while (*next < b->kernel.count && b->kernel.calls[*next].request == 0) {
            ++*next;
        }
        ASSERT(*next < b->kernel.count);
        CHECK_CALL(ioctl_is(&b->kernel.calls[*next], fd, &e[i]));
        ++*next;
    }
    PASS();
}

#define IOCTLS_ARE(B, NEXT, FD, LIST)                                                              \
    CHECK_CALL(ioctls_are((B), (NEXT), (FD), (LIST), sizeof(LIST) / sizeof(LIST)[0]))

static uint64_t number_of(const void *pointer)
{
    return (uintptr_t)pointer;
}

/* ---- numbers and bytes ---- */

TEST opening_makes_these_ioctls(bench *b)
{
    static const expected list[] = {
        {0x5421, "4", {1}},           /* FIONBIO: a read does not wait */
        {0x4001af84, "", {0}},        /* the thread is chosen before there is one */
        {0xaf01, "", {0}},            /* SET_OWNER */
        {0x8004af08, "4", {0}},       /* a worker, */
        {0x4008af15, "44", {1, 101}}, /* for ring 1 */
        {0x8008af83, "888", {2, 0, 0}},
        {0x8008af26, "8", {0}},
    };
    unsigned next = 0;
    b->options.thread = VHOST_KERNEL_THREAD_OF_OWNER;
    b->options.worker_per_queue = true;
    ASSERT_OK(stopped(b, 1));
    const fake_call *fork = fake_kernel_last(&b->kernel, FAKE_SET_FORK_FROM_OWNER, -1);
    ASSERT(fork != NULL);
    ASSERT_UINT(1, fork->bytes[0]);
    b->kernel.calls[fork - b->kernel.calls].size = 0;
    IOCTLS_ARE(b, &next, FAKE_FD, list);
    ASSERT_UINT(b->kernel.count, next + 3); /* open, read and close of max_mem_regions */
    PASS();
}

TEST opening_asks_for_nothing_that_was_not_wished(bench *b)
{
    ASSERT_OK(stopped(b, 1));
    ASSERT_UINT(0, fake_kernel_count(&b->kernel, FAKE_SET_FORK_FROM_OWNER, -1));
    ASSERT_UINT(0, fake_kernel_count(&b->kernel, FAKE_NEW_WORKER, -1));
    ASSERT_UINT(0, fake_kernel_count(&b->kernel, FAKE_SET_FEATURES, -1));
    PASS();
}

TEST a_kernel_thread_is_chosen_with_zero(bench *b)
{
    b->options.thread = VHOST_KERNEL_THREAD_KTHREAD;
    ASSERT_OK(stopped(b, 1));
    const fake_call *fork = fake_kernel_last(&b->kernel, FAKE_SET_FORK_FROM_OWNER, -1);
    ASSERT(fork != NULL);
    ASSERT_UINT(0, fork->bytes[0]);
    PASS();
}

/* One ring at `area` of guest memory, from its call to its kick. */
static enum greatest_test_res ring_is_set_up(const bench *b, unsigned *next, uint32_t ring,
                                             const vhost_queue *queue)
{
    const unsigned char *host = b->f->host;
    const expected list[] = {
        {0x4008af21, "44", {ring, (uint64_t)queue->call_fd}},
        {0x4008af22, "44", {ring, (uint64_t)queue->error_event.signal_fd}},
        {0x4008af10, "44", {ring, 256}},
        {0x4008af12, "44", {ring, 0}},
        {0x4028af11,
         "448888",
         {ring, 0, number_of(host + queue->desc), number_of(host + queue->used),
          number_of(host + queue->avail), queue->used}},
    };
    IOCTLS_ARE(b, next, FAKE_FD, list);
    PASS();
}

TEST start_makes_these_ioctls(bench *b)
{
    unsigned next = 0;
    ASSERT_OK(stopped(b, 1));
    fake_kernel_forget(&b->kernel);
    ASSERT_OK(vhost_device_start(&b->device));
    const unsigned char *host = b->f->host;
    const expected whole[] = {
        {0x4008af00, "8", {UINT64_C(0x100000000)}},
        {0x4008af25, "8", {2}},
        {0x4008af03,
         "4488888888",
         {2, 0, 0, 128 * 4096, number_of(host), 0, UINT64_C(0x100000000), 128 * 4096,
          number_of(host + 128 * 4096), 0}},
    };
    const expected kicks[] = {
        {0x4008af20, "44", {0, (uint64_t)b->queue[0].kick_fd}},
        {0x4008af20, "44", {1, (uint64_t)b->queue[1].kick_fd}},
    };
    static const expected taps[] = {
        {0x4008af30, "44", {0, TAP}},
        {0x4008af30, "44", {1, TAP}},
    };
    IOCTLS_ARE(b, &next, FAKE_FD, whole);
    CHECK_CALL(ring_is_set_up(b, &next, 0, &b->queue[0]));
    CHECK_CALL(ring_is_set_up(b, &next, 1, &b->queue[1]));
    IOCTLS_ARE(b, &next, FAKE_FD, kicks);
    IOCTLS_ARE(b, &next, FAKE_FD, taps);
    ASSERT_UINT(b->kernel.count, next);
    PASS();
}

TEST stop_makes_these_ioctls(bench *b)
{
    static const expected list[] = {
        {0x4008af30, "44", {1, 0xffffffff}},
        {0xc008af12, "44", {1, 0}},
        {0x4008af30, "44", {0, 0xffffffff}},
        {0xc008af12, "44", {0, 0}},
    };
    unsigned next = 0;
    ASSERT_OK(running(b, 1));
    ASSERT_OK(vhost_device_stop(&b->device));
    IOCTLS_ARE(b, &next, FAKE_FD, list);
    ASSERT_UINT(b->kernel.count, next);
    PASS();
}

TEST features_above_bit_63_go_out_as_an_array(bench *b)
{
    static const expected list[] = {{0x4008af83, "888", {2, UINT64_C(0x100008000), 2}}};
    unsigned next = 0;
    b->accepted = fixture_features(VERSION_1 | MRG_RXBUF, 2);
    ASSERT_OK(stopped(b, 1));
    fake_kernel_forget(&b->kernel);
    ASSERT_OK(vhost_device_start(&b->device));
    IOCTLS_ARE(b, &next, FAKE_FD, list);
    ASSERT_UINT(0, fake_kernel_count(&b->kernel, FAKE_SET_FEATURES, -1));
    PASS();
}

TEST a_foreign_ring_and_a_busy_loop_are_told(bench *b)
{
    const uint16_t one = 1;
    unsigned char first;
    memcpy(&first, &one, 1);
    const expected endian = {0x4008af13, "44", {1, first}};
    const expected busy = {0x4008af23, "44", {1, 50}};
    b->accepted = fixture_features(0, 0);
    ASSERT_OK(stopped(b, 1));
    b->queue[0].big_endian = first == 0;
    b->queue[1].big_endian = first == 1;
    b->queue[1].busy_loop_us = 50;
    ASSERT_OK(vhost_device_start(&b->device));
    ASSERT_UINT(1, fake_kernel_count(&b->kernel, FAKE_SET_VRING_ENDIAN, -1));
    CHECK_CALL(ioctl_is(fake_kernel_last(&b->kernel, FAKE_SET_VRING_ENDIAN, -1), FAKE_FD, &endian));
    ASSERT_UINT(1, fake_kernel_count(&b->kernel, FAKE_SET_VRING_BUSYLOOP_TIMEOUT, -1));
    CHECK_CALL(ioctl_is(fake_kernel_last(&b->kernel, FAKE_SET_VRING_BUSYLOOP_TIMEOUT, -1), FAKE_FD,
                        &busy));
    PASS();
}

TEST a_queue_without_notifiers_is_told_so(bench *b)
{
    const expected call = {0x4008af21, "44", {0, 0xffffffff}};
    const expected kick = {0x4008af20, "44", {0, 0xffffffff}};
    ASSERT_OK(stopped(b, 1));
    b->queue[0].call_fd = b->queue[0].kick_fd = -1;
    b->queue[1].ready = false;
    ASSERT_OK(vhost_device_start(&b->device));
    CHECK_CALL(ioctl_is(fake_kernel_last(&b->kernel, FAKE_SET_VRING_CALL, -1), FAKE_FD, &call));
    CHECK_CALL(ioctl_is(fake_kernel_last(&b->kernel, FAKE_SET_VRING_KICK, -1), FAKE_FD, &kick));
    PASS();
}

TEST a_masked_queue_calls_the_notifier_of_the_library(bench *b)
{
    ASSERT_OK(running(b, 1));
    ASSERT_OK(vhost_queue_mask(&b->device, 1));
    ASSERT_INT(b->queue[1].masked_event.signal_fd, b->kernel.fds[0].ring[1].call);
    ASSERT_OK(vhost_queue_unmask(&b->device, 1));
    ASSERT_INT(b->queue[1].call_fd, b->kernel.fds[0].ring[1].call);
    ASSERT_UINT(2, b->kernel.count);
    PASS();
}

TEST the_position_is_sent_and_handed_back(bench *b)
{
    const expected base = {0x4008af12, "44", {1, 0xfedc}};
    ASSERT_OK(stopped(b, 1));
    b->queue[1].position.state = VHOST_POSITION_CERTAIN;
    b->queue[1].position.avail = 0xfedc;
    ASSERT_OK(vhost_device_start(&b->device));
    CHECK_CALL(ioctl_is(fake_kernel_last(&b->kernel, FAKE_SET_VRING_BASE, -1), FAKE_FD, &base));
    b->kernel.fds[0].ring[1].base = 0xfee1;
    fixture_put_used(&b->f->vm, &b->queue[1], 0xfee0);
    ASSERT_OK(vhost_device_stop(&b->device));
    ASSERT_UINT(0xfee1, b->queue[1].position.avail);
    ASSERT_INT(VHOST_POSITION_CERTAIN, b->queue[1].position.state);
    ASSERT_UINT(0, b->queue[0].position.avail);
    PASS();
}

TEST a_new_map_is_a_new_table(bench *b)
{
    ASSERT_OK(running(b, 1));
    const unsigned char *host = b->f->host;
    const expected smaller[] = {{0x4008af03, "448888", {1, 0, 0, 128 * 4096, number_of(host), 0}}};
    const expected grown = {0x4008af03, "44", {3, 0}};
    unsigned next = 0;
    ASSERT_OK(fixture_map(b->f, &b->f->low, 1));
    IOCTLS_ARE(b, &next, FAKE_FD, smaller);
    ASSERT_OK(grow(b));
    const fake_call *call = &b->kernel.calls[1];
    ASSERT_UINT(8 + 3 * 32, call->size);
    ASSERT_U64(grown.numbers[0], fake_kernel_number(call->bytes, 4));
    ASSERT_U64(FIXTURE_REMOTE, fake_kernel_number(call->bytes + 8 + 2 * 32, 8));
    ASSERT_UINT(2, b->kernel.count);
    PASS();
}

TEST the_log_is_told_by_address_and_by_fd(bench *b)
{
    static const expected log_fd[] = {{0x4004af07, "4", {77}}, {0x4004af07, "4", {0xffffffff}}};
    vhost_log_memory memory;
    unsigned next = 0;
    memset(&memory, 0, sizeof memory);
    ASSERT_OK(stopped(b, 1));
    fake_kernel_forget(&b->kernel);
    memory.base = b->f->host;
    const expected base[] = {{0x4008af04, "8", {number_of(b->f->host)}}};
    ASSERT_OK(vhost_kernel_ops(&b->net)->set_log(&b->net, &memory));
    IOCTLS_ARE(b, &next, FAKE_FD, base);
    ASSERT_OK(vhost_kernel_set_log_fd(&b->net, 77));
    ASSERT_OK(vhost_kernel_set_log_fd(&b->net, -1));
    IOCTLS_ARE(b, &next, FAKE_FD, log_fd);
    PASS();
}

/* ---- features and facts ---- */

TEST features_are_those_that_all_fds_have(bench *b)
{
    b->kernel.lacks[1] = MRG_RXBUF;
    b->kernel.lacks[2] = BIT(28);
    ASSERT_OK(stopped(b, 3));
    ASSERT_U64(b->kernel.features[0] & ~(MRG_RXBUF | BIT(28) | BIT(27)),
               b->device.facts.offered.word[0]);
    ASSERT_U64(2, b->device.facts.offered.word[1]);
    PASS();
}

TEST backend_features_that_one_fd_lacks_are_set_on_none(bench *b)
{
    b->kernel.lacks[1] = MRG_RXBUF; /* this fd also has no back-end features */
    ASSERT_OK(running(b, 3));
    for (int i = 0; i < 3; i++) {
        ASSERT_U64(0, b->kernel.fds[i].backend_features);
    }
    PASS();
}

TEST only_message_format_2_is_asked_for(bench *b)
{
    b->kernel.backend_features = 0xff;
    ASSERT_OK(running(b, 2));
    ASSERT_U64(2, b->kernel.fds[0].backend_features);
    ASSERT_U64(2, b->kernel.fds[1].backend_features);
    PASS();
}

TEST the_net_header_is_offered_to_those_who_ask(bench *b)
{
    ASSERT_OK(stopped(b, 1));
    ASSERT_FALSE(vhost_features_test(&b->device.facts.offered, 27));
    close_bench(b);
    b->options.makes_net_header = true;
    ASSERT_OK(stopped(b, 1));
    ASSERT(vhost_features_test(&b->device.facts.offered, 27));
    PASS();
}

TEST offloads_are_not_the_kernels_to_offer(bench *b)
{
    ASSERT_OK(stopped(b, 1));
    vhost_features mine = fixture_features(~UINT64_C(0), ~UINT64_C(0));
    vhost_features offer = vhost_device_offer(&b->device, mine);
    ASSERT_U64(~(BIT(15) | UINT64_C(0x3ffff000000)), offer.word[0] & ~b->kernel.features[0]);
    ASSERT_FALSE(vhost_features_test(&offer, VHOST_FEATURE_LOG_ALL));
    ASSERT(vhost_features_test(&offer, 5));  /* MAC */
    ASSERT(vhost_features_test(&offer, 15)); /* MRG_RXBUF */
    ASSERT_U64(2, offer.word[1]);
    PASS();
}

TEST what_is_not_the_kernels_is_not_sent_to_it(bench *b)
{
    b->accepted = fixture_features(VERSION_1 | BIT(5), 0);
    ASSERT_OK(running(b, 1));
    ASSERT_U64(VERSION_1, b->kernel.fds[0].features[0]);
    PASS();
}

TEST max_mem_regions_is_read_where_it_makes_sense(bench *b)
{
    static const struct {
        const char *text;
        uint32_t slots;
    } cases[] = {{"64\n", 64},
                 {"509\n", 509},
                 {"1\n", 1},
                 {"65535\n", 65535},
                 {NULL, 64},
                 {"", 64},
                 {"\n", 64},
                 {"many\n", 64},
                 {"0\n", 64},
                 {"-3\n", 64},
                 {"65536\n", 64},
                 {"99999999999999999999", 64},
                 {"18446744073709551617", 64}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        b->kernel.max_mem_regions = cases[i].text;
        ASSERT_OK(open_net(b, 1));
        ASSERT_OK(attach_device(b));
        ASSERT_UINT(cases[i].slots, b->device.facts.max_regions);
        ASSERT_UINT(cases[i].slots, vhost_memory_free_slots(&b->f->vm));
        close_bench(b);
    }
    PASS();
}

TEST max_mem_regions_that_cannot_be_read_is_64(bench *b)
{
    b->kernel.max_mem_regions = "509\n";
    fake_kernel_refuse(&b->kernel, FAKE_READ, -1, 0, -EIO);
    ASSERT_OK(stopped(b, 1));
    ASSERT_UINT(64, b->device.facts.max_regions);
    ASSERT_FALSE(b->kernel.file_open);
    PASS();
}

/* `count` sections that do not touch each other. */
static int map_islands(bench *b, unsigned count)
{
    int result = vhost_memory_begin(&b->f->vm);
    for (unsigned i = 0; i < count && result >= 0; i++) {
        vhost_section section = fixture_section(b->f, i == 0 ? 0 : (200 + 2 * i) * VHOST_PAGE,
                                                i == 0 ? 128 : 1, i == 0 ? 0 : 128);
        result = vhost_memory_add(&b->f->vm, &section);
    }
    return result < 0 ? result : vhost_memory_commit(&b->f->vm);
}

TEST one_region_too_many_is_refused_before_any_call(bench *b)
{
    ASSERT_OK(running(b, 1));
    ASSERT_OK(map_islands(b, 64));
    ASSERT_UINT(1, b->kernel.count);
    ASSERT_FAILS(b->f, map_islands(b, 65), &b->f->vm.last_error, -ENOSPC,
                 VHOST_WHY_TOO_MANY_REGIONS);
    ASSERT_UINT(1, b->kernel.count);
    ASSERT_INT(VHOST_STATE_RUNNING, b->device.state);
    PASS();
}

TEST more_queues_than_the_pairs_have_are_refused(bench *b)
{
    ASSERT_OK(open_net(b, 2));
    ASSERT_FAILS(b->f,
                 vhost_device_init(&b->device, &b->f->vm, vhost_kernel_ops(&b->net), &b->net,
                                   b->queue, 5, NULL),
                 &b->device.last_error, -EINVAL, VHOST_WHY_TOO_MANY_QUEUES);
    ASSERT_UINT(0, fake_kernel_open_fds(&b->kernel));
    b->pairs = 0;
    PASS();
}

/* ---- several pairs are one ---- */

TEST every_pair_has_its_fd_and_its_tap(bench *b)
{
    ASSERT_OK(running(b, 3));
    ASSERT_UINT(3, b->kernel.opened);
    for (int i = 0; i < 3; i++) {
        const fake_fd *fd = &b->kernel.fds[i];
        ASSERT_U64(VERSION_1, fd->features[0]);
        ASSERT(fd->table_set);
        ASSERT_INT(TAP + i, fd->ring[0].tap);
        ASSERT_INT(TAP + i, fd->ring[1].tap);
    }
    PASS();
}

TEST queues_are_numbered_anew_on_each_fd(bench *b)
{
    ASSERT_OK(running(b, 3));
    for (uint32_t q = 0; q < 6; q++) {
        const fake_ring *ring = &b->kernel.fds[q / 2].ring[q % 2];
        ASSERT_INT(500 + (int)q, ring->kick);
        ASSERT_INT(600 + (int)q, ring->call);
        ASSERT_INT(b->queue[q].error_event.signal_fd, ring->error);
    }
    PASS();
}

TEST positions_come_from_the_right_ring(bench *b)
{
    ASSERT_OK(running(b, 3));
    for (uint32_t q = 0; q < 6; q++) {
        b->kernel.fds[q / 2].ring[q % 2].base = 1 + q;
    }
    ASSERT_OK(vhost_device_stop(&b->device));
    for (uint32_t q = 0; q < 6; q++) {
        ASSERT_UINT(1 + q, b->queue[q].position.avail);
    }
    PASS();
}

TEST one_queue_stops_and_starts_alone(bench *b)
{
    ASSERT_OK(running(b, 3));
    b->kernel.fds[2].ring[1].base = 9;
    ASSERT_OK(vhost_queue_stop(&b->device, 5));
    ASSERT_UINT(9, b->queue[5].position.avail);
    ASSERT_INT(-1, b->kernel.fds[2].ring[1].tap);
    ASSERT_INT(TAP + 2, b->kernel.fds[2].ring[0].tap);
    ASSERT_UINT(2, b->kernel.count);
    ASSERT_OK(vhost_queue_start(&b->device, 5));
    ASSERT_INT(TAP + 2, b->kernel.fds[2].ring[1].tap);
    ASSERT_UINT(b->kernel.count, fake_kernel_count(&b->kernel, FAKE_NET_SET_BACKEND, fd_number(2)) +
                                     7); /* position; call, error, size, base, addresses, kick */
    PASS();
}

TEST features_are_taken_back_where_the_last_fd_refuses(bench *b)
{
    ASSERT_OK(running(b, 3));
    ASSERT_OK(vhost_device_stop(&b->device));
    ASSERT_OK(vhost_device_ack(&b->device, fixture_features(VERSION_1 | MRG_RXBUF, 0)));
    fake_kernel_refuse(&b->kernel, FAKE_SET_FEATURES, fd_number(2), 0, -ENOMEM);
    ASSERT_FAILS(b->f, vhost_device_start(&b->device), &b->device.last_error, -ENOMEM,
                 VHOST_WHY_BACKEND_REFUSED);
    CHECK_CALL(fixture_names(&b->device.last_error, VHOST_OP_SET_FEATURES, -1));
    for (int i = 0; i < 3; i++) {
        ASSERT_U64(VERSION_1, b->kernel.fds[i].features[0]);
    }
    ASSERT_INT(VHOST_STATE_STOPPED, b->device.state);
    ASSERT_OK((fake_kernel_relent(&b->kernel), vhost_device_start(&b->device)));
    ASSERT_U64(VERSION_1 | MRG_RXBUF, b->kernel.fds[0].features[0]);
    PASS();
}

TEST a_table_is_taken_back_where_the_last_fd_refuses(bench *b)
{
    static const uint32_t counts[] = {3, 3, 3, 2, 2};
    static const int fds[] = {0, 1, 2, 1, 0};
    ASSERT_OK(running(b, 3));
    fake_kernel_refuse(&b->kernel, FAKE_SET_MEM_TABLE, fd_number(2), 0, -ENOMEM);
    ASSERT_OK(grow(b));
    for (int i = 0; i < 5; i++) {
        ASSERT_INT(FAKE_SET_MEM_TABLE, b->kernel.calls[i].op);
        ASSERT_INT(FAKE_FD + fds[i], b->kernel.calls[i].fd);
        ASSERT_U64(counts[i], fake_kernel_number(b->kernel.calls[i].bytes, 4));
    }
    ASSERT_INT(VHOST_STATE_BROKEN, b->device.state);
    ASSERT_INT(-ENOMEM, b->device.last_error.code);
    ASSERT_INT(-ENOMEM, vhost_device_stop(&b->device));
    PASS();
}

TEST a_first_table_cannot_be_taken_back(bench *b)
{
    ASSERT_OK(stopped(b, 2));
    fake_kernel_refuse(&b->kernel, FAKE_SET_MEM_TABLE, fd_number(1), 0, -ENOMEM);
    ASSERT_INT(-ENOMEM, vhost_device_start(&b->device));
    ASSERT_UINT(2, fake_kernel_count(&b->kernel, FAKE_SET_MEM_TABLE, -1));
    ASSERT_INT(VHOST_STATE_STOPPED, b->device.state);
    fake_kernel_relent(&b->kernel);
    ASSERT_OK(vhost_device_start(&b->device));
    ASSERT_UINT(4, fake_kernel_count(&b->kernel, FAKE_SET_MEM_TABLE, -1));
    PASS();
}

TEST a_log_is_taken_back_where_the_last_fd_refuses(bench *b)
{
    vhost_log_memory memory;
    memset(&memory, 0, sizeof memory);
    ASSERT_OK(stopped(b, 2));
    memory.base = b->f->host;
    ASSERT_OK(vhost_kernel_ops(&b->net)->set_log(&b->net, &memory));
    fake_kernel_refuse(&b->kernel, FAKE_SET_LOG_BASE, fd_number(1), 0, -ENOMEM);
    memory.base = b->f->host + 4096;
    ASSERT_INT(-ENOMEM, vhost_kernel_ops(&b->net)->set_log(&b->net, &memory));
    const fake_call *last = fake_kernel_last(&b->kernel, FAKE_SET_LOG_BASE, fd_number(0));
    ASSERT_U64(number_of(b->f->host), fake_kernel_number(last->bytes, 8));
    PASS();
}

/* The log of an earlier logging is gone, so nothing goes back to it. */
TEST a_log_that_has_ended_is_not_gone_back_to(bench *b)
{
    ASSERT_OK(running(b, 2));
    ASSERT_OK(vhost_log_start(&b->f->vm));
    ASSERT_OK(vhost_log_stop(&b->f->vm));
    fake_kernel_forget(&b->kernel);
    fake_kernel_refuse(&b->kernel, FAKE_SET_LOG_BASE, fd_number(1), 0, -ENOMEM);
    ASSERT_INT(-ENOMEM, vhost_log_start(&b->f->vm));
    ASSERT_UINT(1, fake_kernel_count(&b->kernel, FAKE_SET_LOG_BASE, fd_number(0)));
    PASS();
}

TEST a_log_fd_is_taken_back_where_the_last_fd_refuses(bench *b)
{
    ASSERT_OK(stopped(b, 2));
    fake_kernel_refuse(&b->kernel, FAKE_SET_LOG_FD, fd_number(1), 0, -ENOMEM);
    ASSERT_INT(-ENOMEM, vhost_kernel_set_log_fd(&b->net, 77));
    const fake_call *last = fake_kernel_last(&b->kernel, FAKE_SET_LOG_FD, fd_number(0));
    ASSERT_U64(0xffffffff, fake_kernel_number(last->bytes, 4));
    PASS();
}

TEST a_refused_tap_leaves_a_stopped_device(bench *b)
{
    for (int nth = 0; nth < 6; nth++) {
        ASSERT_OK(stopped(b, 3));
        fake_kernel_refuse_once(&b->kernel, FAKE_NET_SET_BACKEND, -1, nth, -EBADFD);
        ASSERT_FAILS(b->f, vhost_device_start(&b->device), &b->device.last_error, -EBADFD,
                     VHOST_WHY_BACKEND_REFUSED);
        CHECK_CALL(fixture_names(&b->device.last_error, VHOST_OP_ENABLE_RING, nth));
        ASSERT_INT(VHOST_STATE_STOPPED, b->device.state);
        CHECK_CALL(check_state(b));
        ASSERT_OK(vhost_device_start(&b->device));
        close_bench(b);
    }
    PASS();
}

TEST a_start_that_cannot_be_undone_breaks(bench *b)
{
    ASSERT_OK(stopped(b, 3));
    fake_kernel_refuse(&b->kernel, FAKE_NET_SET_BACKEND, fd_number(2), 1, -EBADFD);
    ASSERT_INT(-EBADFD, vhost_device_start(&b->device));
    ASSERT_INT(VHOST_STATE_BROKEN, b->device.state);
    PASS();
}

/* ---- the tap ---- */

TEST a_tap_attached_before_start_is_used_by_start(bench *b)
{
    ASSERT_OK(open_net(b, 2));
    ASSERT_OK(vhost_kernel_net_attach(&b->net, 1, OTHER_TAP));
    ASSERT_OK(fixture_map_default(b->f));
    ASSERT_OK(attach_device(b));
    ASSERT_OK(vhost_kernel_net_attach(&b->net, 0, OTHER_TAP + 1));
    ASSERT_UINT(0, fake_kernel_count(&b->kernel, FAKE_NET_SET_BACKEND, -1));
    ASSERT_OK(vhost_device_start(&b->device));
    ASSERT_INT(OTHER_TAP + 1, b->kernel.fds[0].ring[1].tap);
    ASSERT_INT(OTHER_TAP, b->kernel.fds[1].ring[0].tap);
    PASS();
}

TEST a_tap_attached_while_running_is_used_at_once(bench *b)
{
    ASSERT_OK(running(b, 2));
    ASSERT_OK(vhost_kernel_net_attach(&b->net, 1, OTHER_TAP));
    ASSERT_UINT(2, b->kernel.count);
    ASSERT_INT(TAP, b->kernel.fds[0].ring[0].tap);
    ASSERT_INT(OTHER_TAP, b->kernel.fds[1].ring[0].tap);
    ASSERT_INT(OTHER_TAP, b->kernel.fds[1].ring[1].tap);
    PASS();
}

TEST a_tap_goes_to_running_rings_only(bench *b)
{
    ASSERT_OK(running(b, 1));
    ASSERT_OK(vhost_queue_stop(&b->device, 0));
    ASSERT_OK(vhost_kernel_net_attach(&b->net, 0, OTHER_TAP));
    ASSERT_INT(-1, b->kernel.fds[0].ring[0].tap);
    ASSERT_INT(OTHER_TAP, b->kernel.fds[0].ring[1].tap);
    ASSERT_OK(vhost_queue_start(&b->device, 0));
    ASSERT_INT(OTHER_TAP, b->kernel.fds[0].ring[0].tap);
    PASS();
}

TEST a_refused_tap_leaves_the_old_one(bench *b)
{
    for (int ring = 0; ring < 2; ring++) {
        ASSERT_OK(running(b, 1));
        fake_kernel_refuse_once(&b->kernel, FAKE_NET_SET_BACKEND, -1, ring, -ENOTSOCK);
        ASSERT_INT(-ENOTSOCK, vhost_kernel_net_attach(&b->net, 0, OTHER_TAP));
        ASSERT_INT(-ENOTSOCK, b->net.last_error.code);
        const fake_fd *fd = &b->kernel.fds[b->kernel.opened - 1];
        ASSERT_INT(TAP, fd->ring[0].tap);
        ASSERT_INT(TAP, fd->ring[1].tap);
        ASSERT_OK(vhost_device_stop(&b->device));
        ASSERT_OK(vhost_device_start(&b->device));
        ASSERT_INT(TAP, fd->ring[1].tap);
        close_bench(b);
    }
    PASS();
}

TEST a_pair_may_have_no_tap(bench *b)
{
    ASSERT_OK(running(b, 1));
    ASSERT_OK(vhost_kernel_net_attach(&b->net, 0, -1));
    ASSERT_INT(-1, b->kernel.fds[0].ring[0].tap);
    ASSERT_INT(-1, b->kernel.fds[0].ring[1].tap);
    ASSERT_OK(vhost_kernel_net_attach(&b->net, 0, OTHER_TAP));
    ASSERT_INT(OTHER_TAP, b->kernel.fds[0].ring[1].tap);
    PASS();
}

TEST a_pair_that_is_not_there_gets_no_tap(bench *b)
{
    ASSERT_OK(running(b, 2));
    ASSERT_INT(-EINVAL, vhost_kernel_net_attach(&b->net, 2, OTHER_TAP));
    ASSERT_INT(-EINVAL, vhost_kernel_net_attach(&b->net, UINT32_MAX, OTHER_TAP));
    ASSERT_INT(VHOST_WHY_ARGUMENT, b->net.last_error.why);
    ASSERT_UINT(0, b->kernel.count);
    PASS();
}

/* ---- whose fds ---- */

TEST no_pairs_or_an_impossible_path_are_refused(bench *b)
{
    char path[65];
    const int tap = TAP;
    memset(path, 'x', sizeof path);
    path[64] = '\0';
    ASSERT_INT(-EINVAL, vhost_kernel_net_open(&b->net, path, &tap, 1, &b->options));
    ASSERT_INT(VHOST_WHY_ARGUMENT, b->net.last_error.why);
    ASSERT_INT(-EINVAL, vhost_kernel_net_open(&b->net, "", &tap, 1, &b->options));
    ASSERT_INT(-EINVAL, vhost_kernel_net_open(&b->net, FAKE_PATH, &tap, 0, &b->options));
    ASSERT_INT(-EINVAL, vhost_kernel_net_open_fds(&b->net, &tap, &tap, 0, &b->options));
    ASSERT_UINT(0, b->f->allocations);
    ASSERT_UINT(0, b->kernel.count);
    path[63] = '\0';
    ASSERT_OK(vhost_kernel_net_open(&b->net, path, &tap, 1, &b->options));
    PASS();
}

TEST what_init_opened_cleanup_closes(bench *b)
{
    ASSERT_OK(running(b, 2));
    ASSERT_UINT(2, fake_kernel_open_fds(&b->kernel));
    vhost_device_cleanup(&b->device);
    ASSERT_UINT(0, fake_kernel_open_fds(&b->kernel));
    ASSERT_OK(attach_device(b));
    ASSERT_UINT(4, b->kernel.opened);
    ASSERT_OK(vhost_device_start(&b->device));
    PASS();
}

TEST a_pair_that_cannot_be_opened_closes_the_others(bench *b)
{
    fake_kernel_refuse(&b->kernel, FAKE_OPEN, -1, 1, -ENODEV);
    ASSERT_OK(open_net(b, 2));
    ASSERT_INT(-ENODEV, attach_device(b));
    ASSERT_UINT(1, b->kernel.opened);
    ASSERT_UINT(0, fake_kernel_open_fds(&b->kernel));
    ASSERT_INT(VHOST_WHY_KERNEL_OPEN, b->net.last_error.why);
    ASSERT_INT(VHOST_OP_OPEN, b->device.last_error.op);
    ASSERT(strstr(b->net.last_error.text, FAKE_PATH) != NULL);
    fake_kernel_relent(&b->kernel);
    ASSERT_OK(attach_device(b));
    PASS();
}

TEST passed_fds_are_closed_by_close_alone(bench *b)
{
    ASSERT_OK(running_on_passed_fds(b, 2));
    vhost_device_cleanup(&b->device);
    ASSERT_UINT(2, fake_kernel_open_fds(&b->kernel));
    vhost_kernel_close(&b->net);
    ASSERT_UINT(0, fake_kernel_open_fds(&b->kernel));
    vhost_kernel_close(&b->net);
    PASS();
}

TEST passed_fds_are_owned_once(bench *b)
{
    ASSERT_OK(running_on_passed_fds(b, 2));
    vhost_device_cleanup(&b->device);
    ASSERT_OK(attach_device(b));
    ASSERT_OK(vhost_device_start(&b->device));
    ASSERT_UINT(2, fake_kernel_count(&b->kernel, FAKE_SET_OWNER, -1));
    PASS();
}

TEST passed_fds_stay_the_callers_where_opening_fails(bench *b)
{
    fault_arm(&b->f->fault, FAULT_ONCE, 1, 0);
    ASSERT_INT(-ENOMEM, pass_fds(b, 2));
    ASSERT_INT(VHOST_WHY_MEMORY, b->net.last_error.why);
    fault_disarm(&b->f->fault);
    vhost_kernel_close(&b->net);
    ASSERT_UINT(2, fake_kernel_open_fds(&b->kernel));
    (void)fake_kernel_calls.close(fd_number(0), &b->kernel);
    (void)fake_kernel_calls.close(fd_number(1), &b->kernel);
    PASS();
}

TEST a_closed_object_is_refused(bench *b)
{
    ASSERT_OK(open_net(b, 1));
    vhost_kernel_close(&b->net);
    ASSERT_FAILS(b->f, attach_device(b), &b->device.last_error, -EINVAL, VHOST_WHY_BACKEND_REFUSED);
    ASSERT_UINT(0, b->kernel.count);
    PASS();
}

TEST an_fd_with_an_owner_is_refused(bench *b)
{
    b->kernel.has_owner = true;
    ASSERT_OK(pass_fds(b, 1));
    ASSERT_INT(-EBUSY, attach_device(b));
    ASSERT_INT(VHOST_WHY_KERNEL_OWNER, b->net.last_error.why);
    ASSERT_UINT(1, fake_kernel_open_fds(&b->kernel));
    PASS();
}

TEST a_broken_device_has_no_fds_and_opens_them_anew(bench *b)
{
    ASSERT_OK(running(b, 2));
    ASSERT_OK(break_device(b));
    ASSERT_INT(VHOST_STATE_BROKEN, b->device.state);
    ASSERT_UINT(0, fake_kernel_open_fds(&b->kernel));
    ASSERT_OK(vhost_device_reset(&b->device));
    ASSERT_UINT(4, b->kernel.opened);
    ASSERT_OK(vhost_device_ack(&b->device, b->accepted));
    fill(b);
    ASSERT_OK(vhost_device_start(&b->device));
    for (int i = 2; i < 4; i++) {
        ASSERT_U64(VERSION_1, b->kernel.fds[i].features[0]);
        ASSERT_INT(TAP + i - 2, b->kernel.fds[i].ring[1].tap);
    }
    PASS();
}

TEST passed_fds_do_not_come_back_after_a_break(bench *b)
{
    ASSERT_OK(running_on_passed_fds(b, 2));
    ASSERT_OK(break_device(b));
    ASSERT_UINT(0, fake_kernel_open_fds(&b->kernel));
    ASSERT_INT(-ENODEV, vhost_device_reset(&b->device));
    ASSERT_INT(VHOST_STATE_BROKEN, b->device.state);
    ASSERT_INT(VHOST_WHY_KERNEL_SEVERED, b->net.last_error.why);
    PASS();
}

TEST breaking_needs_no_help_of_the_kernel(bench *b)
{
    ASSERT_OK(running(b, 2));
    fault_arm(&b->f->fault, FAULT_EVER_AFTER, 1, 0);
    ASSERT_INT(-EIO, vhost_device_stop(&b->device));
    fault_disarm(&b->f->fault);
    ASSERT_INT(VHOST_STATE_BROKEN, b->device.state);
    ASSERT_UINT(0, fake_kernel_open_fds(&b->kernel));
    PASS();
}

/* Whether the last thing that a ring was told, before its fd was closed, is to have no tap. */
static enum greatest_test_res tap_went_first(const bench *b, uint32_t queue)
{
    int fd = fd_number(queue / 2);
    const fake_call *last = NULL, *closed = fake_kernel_last(&b->kernel, FAKE_CLOSE, fd);
    for (unsigned i = 0; i < b->kernel.count; i++) {
        const fake_call *call = &b->kernel.calls[i];
        if (call->op == FAKE_NET_SET_BACKEND && call->fd == fd &&
            fake_kernel_number(call->bytes, 4) == queue % 2) {
            last = call;
        }
    }
    ASSERT(last != NULL && closed != NULL && last < closed);
    ASSERT_INT(0, last->result);
    ASSERT_U64(0xffffffff, fake_kernel_number(last->bytes + 4, 4));
    PASS();
}

/* Somebody else may hold the fd open, so closing it is not enough. */
TEST severing_takes_the_taps_away_before_it_closes(bench *b)
{
    ASSERT_OK(running(b, 2));
    vhost_kernel_ops(&b->net)->sever(&b->net);
    for (uint32_t queue = 0; queue < 4; queue++) {
        CHECK_CALL(tap_went_first(b, queue));
    }
    ASSERT_UINT(0, fake_kernel_open_fds(&b->kernel));
    ASSERT_FAILS(b->f, vhost_device_stop(&b->device), &b->device.last_error, -ENODEV,
                 VHOST_WHY_BACKEND_LOST);
    PASS();
}

TEST a_position_that_is_not_told_is_a_guess(bench *b)
{
    ASSERT_OK(running(b, 2));
    b->kernel.fds[0].ring[0].base = 8;
    fixture_put_used(&b->f->vm, &b->queue[0], 8);
    fixture_put_available(&b->f->vm, &b->queue[3], 1);
    fake_kernel_refuse_once(&b->kernel, FAKE_GET_VRING_BASE, fd_number(1), 0, -ENOMEM);
    ASSERT_FAILS(b->f, vhost_device_stop(&b->device), &b->device.last_error, -ENOMEM,
                 VHOST_WHY_BACKEND_REFUSED);
    CHECK_CALL(fixture_names(&b->device.last_error, VHOST_OP_GET_RING_BASE, 3));
    ASSERT_INT(VHOST_POSITION_GUESSED, b->queue[3].position.state);
    ASSERT_INT(VHOST_POSITION_CERTAIN, b->queue[0].position.state);
    ASSERT_UINT(8, b->queue[0].position.avail);
    PASS();
}

/* ---- ACCESS_PLATFORM given back: the core does not send it yet, so the operations by hand ---- */

static int send_features(bench *b, uint64_t bits)
{
    vhost_features features = fixture_features(bits, 0);
    return vhost_kernel_ops(&b->net)->set_features(&b->net, &features);
}

static int sticky(bench *b, uint32_t pairs)
{
    b->kernel.release = FAKE_LINUX_6_1;
    int result = stopped(b, pairs);
    return result < 0 ? result : send_features(b, VERSION_1 | PLATFORM);
}

/* Whether rings run on every fd, which they do not beside an IOTLB. */
static enum greatest_test_res nothing_sticks(bench *b)
{
    ASSERT_OK(vhost_device_start(&b->device));
    for (uint32_t i = 0; i < b->pairs; i++) {
        ASSERT_INT(TAP + (int)i, b->kernel.fds[i].ring[0].tap);
    }
    PASS();
}

TEST access_platform_given_back_resets_every_owner(bench *b)
{
    ASSERT_OK(sticky(b, 3));
    CHECK_CALL(nothing_sticks(b));
    ASSERT_UINT(3, fake_kernel_count(&b->kernel, FAKE_RESET_OWNER, -1));
    ASSERT_UINT(6, fake_kernel_count(&b->kernel, FAKE_SET_OWNER, -1));
    ASSERT_UINT(3, b->kernel.opened);
    PASS();
}

TEST access_platform_kept_resets_no_owner(bench *b)
{
    ASSERT_OK(sticky(b, 1));
    ASSERT_OK(send_features(b, VERSION_1 | PLATFORM | MRG_RXBUF));
    ASSERT_UINT(0, fake_kernel_count(&b->kernel, FAKE_RESET_OWNER, -1));
    PASS();
}

TEST a_giving_back_that_failed_can_be_repeated(bench *b)
{
    static const fake_op ops[] = {FAKE_RESET_OWNER, FAKE_SET_OWNER, FAKE_SET_FEATURES};
    for (size_t i = 0; i < sizeof ops / sizeof ops[0]; i++) {
        for (unsigned nth = 0; nth < 3; nth++) {
            ASSERT_OK(sticky(b, 3));
            fake_kernel_refuse(&b->kernel, ops[i], fd_number(nth), 0, -ENOMEM);
            ASSERT_INT(-ENOMEM, vhost_device_start(&b->device));
            fake_kernel_relent(&b->kernel);
            CHECK_CALL(nothing_sticks(b));
            close_bench(b);
            b->kernel.opened = 0;
        }
    }
    PASS();
}

TEST access_platform_that_one_fd_refuses_sticks_to_none(bench *b)
{
    b->kernel.release = FAKE_LINUX_6_1;
    ASSERT_OK(stopped(b, 2));
    fake_kernel_refuse(&b->kernel, FAKE_SET_FEATURES, fd_number(1), 0, -ENOMEM);
    ASSERT_INT(-ENOMEM, send_features(b, VERSION_1 | PLATFORM));
    fake_kernel_relent(&b->kernel);
    return nothing_sticks(b);
}

/* What an attempt that failed left behind is there for the next one. */
TEST an_fd_that_is_furnished_in_two_attempts_has_one_more_worker(bench *b)
{
    static const fake_op ops[] = {FAKE_ATTACH_VRING_WORKER, FAKE_SET_LOG_FD};
    for (size_t i = 0; i < sizeof ops / sizeof ops[0]; i++) {
        b->options.worker_per_queue = true;
        ASSERT_OK(stopped(b, 1));
        ASSERT_OK(vhost_kernel_set_log_fd(&b->net, 77));
        ASSERT_OK(send_features(b, VERSION_1 | PLATFORM));
        fake_kernel_forget(&b->kernel);
        fake_kernel_refuse(&b->kernel, ops[i], -1, 0, -ENOMEM);
        ASSERT_INT(-ENOMEM, vhost_device_start(&b->device));
        fake_kernel_relent(&b->kernel);
        ASSERT_OK(vhost_device_start(&b->device));
        ASSERT_UINT(1, fake_kernel_count(&b->kernel, FAKE_RESET_OWNER, -1));
        unsigned freed = fake_kernel_count(&b->kernel, FAKE_FREE_WORKER, -1);
        ASSERT_UINT(ops[i] == FAKE_ATTACH_VRING_WORKER, freed);
        ASSERT_UINT(1, fake_kernel_count(&b->kernel, FAKE_NEW_WORKER, -1) - freed);
        ASSERT(b->kernel.fds[b->kernel.opened - 1].ring[1].worker != 0);
        close_bench(b);
        fake_kernel_forget(&b->kernel);
    }
    PASS();
}

/* ---- messages about the IOTLB: int or two words, then iova, size, host, permit, type ---- */

static vhost_iotlb mapped(bench *b)
{
    vhost_iotlb message;
    memset(&message, 0, sizeof message);
    message.type = VHOST_TLB_MAP;
    message.permit = VHOST_PERMIT_READ | VHOST_PERMIT_WRITE;
    message.iova = UINT64_C(0x123456789000);
    message.size = 4096;
    message.gpa = 8192;
    message.host = b->f->host + 8192;
    return message;
}

static enum greatest_test_res message_is(const bench *b, int fd, uint32_t version)
{
    static const unsigned char zeros[38] = {0};
    const fake_call *call = fake_kernel_last(&b->kernel, FAKE_WRITE, fd);
    ASSERT(call != NULL);
    ASSERT_UINT(72, call->size);
    ASSERT_U64(version, fake_kernel_number(call->bytes, 4));
    ASSERT_U64(0, fake_kernel_number(call->bytes + 4, 4));
    ASSERT_U64(UINT64_C(0x123456789000), fake_kernel_number(call->bytes + 8, 8));
    ASSERT_U64(4096, fake_kernel_number(call->bytes + 16, 8));
    ASSERT_U64(number_of(b->f->host + 8192), fake_kernel_number(call->bytes + 24, 8));
    ASSERT_UINT(3, call->bytes[32]);
    ASSERT_UINT(2, call->bytes[33]);
    ASSERT_MEM_EQ(zeros, call->bytes + 34, sizeof zeros);
    PASS();
}

TEST a_mapping_is_told_to_every_fd(bench *b)
{
    ASSERT_OK(stopped(b, 2));
    vhost_iotlb message = mapped(b);
    ASSERT_OK(vhost_kernel_ops(&b->net)->iotlb_send(&b->net, &message));
    CHECK_CALL(message_is(b, fd_number(0), 2));
    CHECK_CALL(message_is(b, fd_number(1), 2));
    ASSERT_UINT(2, fake_kernel_count(&b->kernel, FAKE_WRITE, -1));
    PASS();
}

TEST an_old_kernel_gets_old_messages(bench *b)
{
    b->kernel.backend_features = 0;
    ASSERT_OK(stopped(b, 1));
    vhost_iotlb message = mapped(b);
    ASSERT_OK(vhost_kernel_ops(&b->net)->iotlb_send(&b->net, &message));
    return message_is(b, fd_number(0), 1);
}

TEST a_refused_message_is_an_error(bench *b)
{
    ASSERT_OK(stopped(b, 2));
    vhost_iotlb message = mapped(b);
    fake_kernel_refuse(&b->kernel, FAKE_WRITE, fd_number(1), 0, -EFAULT);
    ASSERT_INT(-EFAULT, vhost_kernel_ops(&b->net)->iotlb_send(&b->net, &message));
    ASSERT_INT(VHOST_WHY_BACKEND_REFUSED, b->net.last_error.why);
    PASS();
}

TEST nothing_to_read_is_no_error(bench *b)
{
    b->device_options.memory = &fixture_empty_viommu;
    ASSERT_OK(running(b, 3));
    ASSERT_OK(vhost_device_process(&b->device));
    ASSERT_UINT(3, fake_kernel_count(&b->kernel, FAKE_READ, -1));
    PASS();
}

/* They could not be, and a poll of them tells of an error for ever. */
TEST fds_of_a_kernel_without_an_iotlb_are_never_read(bench *b)
{
    int fds[3 * QUEUES];
    b->device_options.memory = &fixture_empty_viommu;
    b->kernel.features[0] &= ~PLATFORM;
    ASSERT_OK(running(b, 3));
    ASSERT_OK(vhost_device_process(&b->device));
    ASSERT_UINT(0, fake_kernel_count(&b->kernel, FAKE_READ, -1));
    ASSERT_UINT(6, vhost_device_poll_fds(&b->device, fds, 3 * QUEUES));
    for (unsigned i = 0; i < 6; i++) {
        ASSERT(fds[i] >= FIXTURE_EVENT_FD && fds[i] < FAKE_FD);
    }
    PASS();
}

/* While somebody waits for an fd, it stays open, whoever closes it. */
TEST without_a_viommu_no_vhost_fd_is_polled_or_read(bench *b)
{
    static const vhost_memory_ops maps_only = {NULL, NULL, NULL, NULL};
    int fds[3 * QUEUES];
    for (int turn = 0; turn < 2; turn++) {
        b->device_options.memory = turn == 0 ? NULL : &maps_only;
        ASSERT_OK(running(b, 3));
        ASSERT_OK(vhost_device_process(&b->device));
        ASSERT_UINT(0, fake_kernel_count(&b->kernel, FAKE_READ, -1));
        ASSERT_UINT(6, vhost_device_poll_fds(&b->device, fds, 3 * QUEUES));
        ASSERT(fds[0] < FAKE_FD);
        close_bench(b);
    }
    PASS();
}

TEST every_fd_is_polled_for_a_viommu(bench *b)
{
    int fds[3 * QUEUES];
    b->device_options.memory = &fixture_empty_viommu;
    ASSERT_OK(running(b, 3));
    ASSERT_UINT(3 + 6, vhost_device_poll_fds(&b->device, fds, 3 * QUEUES));
    for (unsigned i = 0; i < 3; i++) {
        ASSERT_INT(fd_number(i), fds[i]);
    }
    ASSERT_OK(break_device(b));
    ASSERT_UINT(6, vhost_device_poll_fds(&b->device, fds, 3 * QUEUES));
    PASS();
}

TEST a_message_of_a_wrong_size_or_version_breaks_the_device(bench *b)
{
    static const struct {
        size_t size;
        uint32_t version;
    } cases[] = {{71, 2}, {8, 2}, {72, 1}, {72, 3}};
    b->device_options.memory = &fixture_empty_viommu;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        ASSERT_OK(running(b, 2));
        b->kernel.message_fd = FAKE_FD + (int)b->kernel.opened - 1;
        b->kernel.message_size = cases[i].size;
        memcpy(b->kernel.message, &cases[i].version, 4);
        ASSERT_INT(-EPROTO, vhost_device_process(&b->device));
        ASSERT_INT(VHOST_STATE_BROKEN, b->device.state);
        ASSERT_INT(VHOST_WHY_IOTLB_MESSAGE, b->net.last_error.why);
        CHECK_CALL(check_state(b));
        close_bench(b);
    }
    PASS();
}

/* ---- old kernels, interrupted calls ---- */

/* All that a device does in its life, and all options. */
static enum greatest_test_res whole_life(bench *b, uint32_t pairs)
{
    b->options.thread = VHOST_KERNEL_THREAD_OF_OWNER;
    b->options.worker_per_queue = true;
    ASSERT_OK(running(b, pairs));
    ASSERT_OK(grow(b));
    ASSERT_OK(vhost_kernel_net_attach(&b->net, 0, OTHER_TAP));
    ASSERT_OK(vhost_kernel_set_log_fd(&b->net, 77));
    ASSERT_OK(vhost_queue_stop(&b->device, 1));
    ASSERT_OK(vhost_queue_start(&b->device, 1));
    ASSERT_OK(vhost_queue_mask(&b->device, 0));
    ASSERT_OK(vhost_queue_unmask(&b->device, 0));
    ASSERT_OK(vhost_device_stop(&b->device));
    ASSERT_OK(vhost_device_reset(&b->device));
    vhost_device_cleanup(&b->device);
    vhost_kernel_close(&b->net);
    PASS();
}

TEST every_release_will_do(bench *b)
{
    static const fake_release releases[] = {FAKE_LINUX_6_17, FAKE_LINUX_6_12, FAKE_LINUX_6_1,
                                            FAKE_LINUX_2_6_34};
    for (size_t i = 0; i < sizeof releases / sizeof releases[0]; i++) {
        b->kernel.release = releases[i];
        CHECK_CALL(whole_life(b, 2));
    }
    PASS();
}

TEST an_old_kernel_has_64_features(bench *b)
{
    b->kernel.release = FAKE_LINUX_6_12;
    b->accepted = fixture_features(VERSION_1, 0);
    ASSERT_OK(running(b, 1));
    ASSERT_U64(b->kernel.features[0] & ~BIT(27), b->device.facts.offered.word[0]);
    ASSERT_U64(0, b->device.facts.offered.word[1]);
    vhost_features offer = vhost_device_offer(&b->device, fixture_features(0, 2));
    ASSERT_U64(0, offer.word[1]);
    PASS();
}

TEST the_oldest_kernel_has_no_backend_features(bench *b)
{
    b->kernel.release = FAKE_LINUX_2_6_34;
    ASSERT_OK(running(b, 1));
    ASSERT_UINT(0, fake_kernel_count(&b->kernel, FAKE_SET_BACKEND_FEATURES, -1));
    PASS();
}

TEST a_foreign_ring_needs_a_kernel_that_swaps(bench *b)
{
    const uint16_t one = 1;
    unsigned char first;
    memcpy(&first, &one, 1);
    b->kernel.release = FAKE_LINUX_6_1;
    b->accepted = fixture_features(0, 0);
    ASSERT_OK(stopped(b, 1));
    b->queue[0].big_endian = first == 1;
    b->queue[1].big_endian = first == 0;
    ASSERT_FAILS(b->f, vhost_device_start(&b->device), &b->device.last_error, -ENOTSUP,
                 VHOST_WHY_NOT_SUPPORTED);
    CHECK_CALL(fixture_names(&b->device.last_error, VHOST_OP_SET_RING_ENDIAN, 0));
    ASSERT_INT(VHOST_STATE_STOPPED, b->device.state);
    PASS();
}

TEST a_busy_loop_needs_a_kernel_that_has_it(bench *b)
{
    b->kernel.release = FAKE_LINUX_2_6_34;
    ASSERT_OK(stopped(b, 1));
    b->queue[1].busy_loop_us = 5;
    ASSERT_FAILS(b->f, vhost_device_start(&b->device), &b->device.last_error, -ENOTSUP,
                 VHOST_WHY_NOT_SUPPORTED);
    PASS();
}

TEST interrupted_ioctls_are_repeated(bench *b)
{
    b->kernel.interrupts = true;
    return whole_life(b, 2);
}

TEST a_refusal_names_ioctl_pair_and_errno(bench *b)
{
    ASSERT_OK(stopped(b, 2));
    fake_kernel_refuse(&b->kernel, FAKE_SET_VRING_KICK, fd_number(1), 0, -EBADF);
    ASSERT_INT(-EBADF, vhost_device_start(&b->device));
    CHECK_CALL(fixture_names(&b->device.last_error, VHOST_OP_SET_RING_KICK, 2));
    ASSERT_INT(-EBADF, b->net.last_error.code);
    ASSERT_INT(VHOST_WHY_BACKEND_REFUSED, b->net.last_error.why);
    ASSERT(strstr(b->net.last_error.text, "SET_VRING_KICK") != NULL);
    ASSERT(strstr(b->net.last_error.text, "pair 1") != NULL);
    ASSERT(strstr(b->device.last_error.text, "SET_VRING_KICK of pair 1") != NULL);
    ASSERT(strstr(b->device.last_error.text, "errno 9") != NULL);
    PASS();
}

/* A kernel without a choice of threads says EPERM: what the library overcame is not told. */
TEST what_is_overcome_is_no_last_error(bench *b)
{
    b->options.thread = VHOST_KERNEL_THREAD_OF_OWNER;
    fake_kernel_refuse(&b->kernel, FAKE_SET_FORK_FROM_OWNER, -1, 0, -EPERM);
    ASSERT_OK(stopped(b, 1));
    ASSERT_INT(0, b->net.last_error.code);
    PASS();
}

/* ---- every call fails once ---- */

typedef int step(bench *b);

static int step_map(bench *b)
{
    return fixture_map_default(b->f);
}

static int step_open(bench *b)
{
    return open_net(b, 2);
}

static int step_pass(bench *b)
{
    int fds[2];
    if (b->kernel.opened == 0) {
        (void)fake_kernel_pass(&b->kernel);
        (void)fake_kernel_pass(&b->kernel);
    }
    fds[0] = FAKE_FD;
    fds[1] = FAKE_FD + 1;
    b->pairs = 2;
    return vhost_kernel_net_open_fds(&b->net, fds, NULL, 2, &b->options);
}

/* After a revival the device runs already, with all its queues. */
static bool is_running(const bench *b)
{
    return b->device.state == VHOST_STATE_RUNNING;
}

static int step_start(bench *b)
{
    return is_running(b) ? 0 : vhost_device_start(&b->device);
}

static int step_grow(bench *b)
{
    int result = grow(b);
    return b->device.state == VHOST_STATE_BROKEN ? b->device.last_error.code : result;
}

static int step_tap(bench *b)
{
    return vhost_kernel_net_attach(&b->net, 1, OTHER_TAP);
}

static int step_log_fd(bench *b)
{
    return vhost_kernel_set_log_fd(&b->net, 77);
}

static int step_queue_stop(bench *b)
{
    return vhost_queue_stop(&b->device, 1);
}

static int step_queue_start(bench *b)
{
    return b->queue[1].started ? 0 : vhost_queue_start(&b->device, 1);
}

static int step_mask(bench *b)
{
    return vhost_queue_mask(&b->device, 2);
}

static int step_stop(bench *b)
{
    return vhost_device_stop(&b->device);
}

static int step_back(bench *b)
{
    return is_running(b) ? 0 : send_features(b, VERSION_1 | PLATFORM);
}

static step *const steps[] = {step_map,  step_open,   attach_device,   step_start, step_grow,
                              step_tap,  step_log_fd, step_queue_stop, step_mask,  step_queue_start,
                              step_stop, step_back,   step_start,      step_stop};

/* Brings a broken device back to life, running. */
static int revive(bench *b)
{
    int result = vhost_device_reset(&b->device);
    if (result < 0) {
        return result;
    }
    fill(b);
    result = vhost_device_ack(&b->device, b->accepted);
    return result < 0 ? result : vhost_device_start(&b->device);
}

static enum greatest_test_res failure_is_told(const bench *b, step *done, int result)
{
    bool of_memory = result == -ENOMEM;
    bool by_kernel = result == -EIO;
    ASSERT(of_memory || by_kernel || result == -EMFILE);
    if (done == attach_device) {
        ASSERT_INT(result, b->device.last_error.code);
    }
    if (!by_kernel || b->device.state == VHOST_STATE_CLOSED) {
        PASS();
    }
    if (done != step_tap && done != step_log_fd && done != step_back) {
        ASSERT_INT(-EIO, b->device.last_error.code);
        ASSERT_INT(VHOST_WHY_BACKEND_REFUSED, b->device.last_error.why);
    }
    PASS();
}

/* One step, tried until it is done. A step whose failure broke the device is done by a revival. */
static enum greatest_test_res take_step(bench *b, step *next)
{
    for (int attempt = 0; attempt < 4; attempt++) {
        int result = b->device.state == VHOST_STATE_BROKEN ? revive(b) : next(b);
        if (result >= 0 && b->device.state != VHOST_STATE_BROKEN) {
            PASS();
        }
        CHECK_CALL(failure_is_told(b, next, result));
        CHECK_CALL(check_state(b));
    }
    FAILm("a step fails though nothing stands in its way");
}

static enum greatest_test_res life_with_failures(bench *b)
{
    b->options.thread = VHOST_KERNEL_THREAD_OF_OWNER;
    b->options.worker_per_queue = true;
    for (size_t i = 0; i < sizeof steps / sizeof steps[0]; i++) {
        CHECK_CALL(take_step(b, steps[i]));
    }
    PASS();
}

static enum greatest_test_res fails_at_every_call(bench *b, fault_plan plan, unsigned distance)
{
    fixture *f = b->f;
    bool hit = true;
    for (unsigned nth = 1; hit; nth++) {
        fake_release release = b->kernel.release;
        open_bench(b, f);
        b->kernel.release = release;
        fault_arm(&f->fault, plan, nth, distance);
        enum greatest_test_res result = life_with_failures(b);
        hit = f->fault.hit;
        const char *message = greatest_info.msg;
        close_bench(b);
        greatest_info.msg = message;
        CHECK_CALL(result);
        ASSERT_STR_EQ("", b->kernel.complaint);
        ASSERT_UINT(0, fake_kernel_open_fds(&b->kernel));
        CHECK_CALL(fixture_renew(f));
    }
    PASS();
}

TEST any_call_may_fail_once(bench *b)
{
    return fails_at_every_call(b, FAULT_ONCE, 0);
}

TEST any_call_may_fail_once_on_an_old_kernel(bench *b)
{
    b->kernel.release = FAKE_LINUX_6_1;
    return fails_at_every_call(b, FAULT_ONCE, 0);
}

TEST any_two_calls_may_fail(bench *b)
{
    for (unsigned distance = 1; distance <= 6; distance++) {
        CHECK_CALL(fails_at_every_call(b, FAULT_TWICE, distance));
    }
    PASS();
}

/* From some call on nothing works any more, but for closing: it can all be put away. */
TEST a_kernel_may_stop_working(bench *b)
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
        vhost_kernel_close(&b->net);
        fault_disarm(&f->fault);
        ASSERT_STR_EQ("", b->kernel.complaint);
        ASSERT_UINT(0, fake_kernel_open_fds(&b->kernel));
        CHECK_CALL(fixture_renew(f));
    }
    PASS();
}

TEST any_call_on_passed_fds_may_fail_once(bench *b)
{
    fixture *f = b->f;
    bool hit = true;
    for (unsigned nth = 1; hit; nth++) {
        open_bench(b, f);
        fault_arm(&f->fault, FAULT_ONCE, nth, 0);
        int result = 0;
        for (size_t i = 0; i < sizeof steps / sizeof steps[0] && result >= 0; i++) {
            step *next = steps[i] == step_open ? step_pass : steps[i];
            result = next(b);
            result = result < 0 && b->device.state != VHOST_STATE_BROKEN ? next(b) : result;
            CHECK_CALL(check_state(b));
        }
        hit = f->fault.hit;
        ASSERT(result >= 0 || b->device.state == VHOST_STATE_BROKEN);
        close_bench(b);
        ASSERT_STR_EQ("", b->kernel.complaint);
        ASSERT_UINT(0, fake_kernel_open_fds(&b->kernel));
        CHECK_CALL(fixture_renew(f));
    }
    PASS();
}

/* ---- system calls: manual, chapter 4 ---- */

#define OP(NAME) BIT(FAKE_##NAME)

#define OPENS                                                                                      \
    (OP(OPEN) | OP(READ) | OP(CLOSE) | OP(FIONBIO) | OP(SET_FORK_FROM_OWNER) | OP(SET_OWNER) |     \
     OP(GET_FEATURES_ARRAY) | OP(GET_FEATURES) | OP(GET_BACKEND_FEATURES) | OP(NEW_WORKER) |       \
     OP(ATTACH_VRING_WORKER))
#define STARTS_RING                                                                                \
    (OP(SET_VRING_CALL) | OP(SET_VRING_ERR) | OP(SET_VRING_NUM) | OP(SET_VRING_BASE) |             \
     OP(SET_VRING_ENDIAN) | OP(SET_VRING_ADDR) | OP(SET_VRING_BUSYLOOP_TIMEOUT) |                  \
     OP(SET_VRING_KICK) | OP(NET_SET_BACKEND))
#define STARTS                                                                                     \
    (OP(SET_FEATURES) | OP(SET_FEATURES_ARRAY) | OP(SET_BACKEND_FEATURES) | OP(SET_MEM_TABLE) |    \
     STARTS_RING)
#define STOPS (OP(NET_SET_BACKEND) | OP(GET_VRING_BASE))

/* The calls since the last time, added to `made`. */
static void collect(bench *b, uint64_t *made)
{
    *made |= fake_kernel_set(&b->kernel);
    fake_kernel_forget(&b->kernel);
}

typedef struct life {
    uint64_t init, start, stop, reset, cleanup, queue_start, queue_stop, mask, commit, attach;
    uint64_t log_fd, broken, close;
} life;

static int first_half(bench *b, life *made)
{
    b->options.thread = VHOST_KERNEL_THREAD_OF_OWNER;
    b->options.worker_per_queue = true;
    int result = fixture_map_default(b->f) | open_net(b, 2);
    fake_kernel_forget(&b->kernel);
    result |= attach_device(b);
    collect(b, &made->init);
    b->queue[0].busy_loop_us = 5;
    bool foreign = !vhost_features_test(&b->accepted, VHOST_FEATURE_VERSION_1) &&
                   b->kernel.release == FAKE_LINUX_6_17;
    b->queue[0].big_endian = foreign == FIXTURE_FOREIGN;
    result |= vhost_device_start(&b->device);
    collect(b, &made->start);
    result |= grow(b);
    collect(b, &made->commit);
    result |= vhost_kernel_net_attach(&b->net, 0, OTHER_TAP);
    collect(b, &made->attach);
    result |= vhost_kernel_set_log_fd(&b->net, 77);
    collect(b, &made->log_fd);
    return result;
}

static int second_half(bench *b, life *made)
{
    int result = vhost_queue_stop(&b->device, 0);
    collect(b, &made->queue_stop);
    result |= vhost_queue_start(&b->device, 0);
    collect(b, &made->queue_start);
    result |= vhost_queue_mask(&b->device, 0);
    result |= vhost_queue_unmask(&b->device, 0);
    collect(b, &made->mask);
    result |= vhost_device_stop(&b->device);
    collect(b, &made->stop);
    result |= vhost_device_start(&b->device) | fixture_map_default(b->f);
    fake_kernel_forget(&b->kernel);
    result |= break_device(b);
    collect(b, &made->broken);
    result |= vhost_device_reset(&b->device);
    collect(b, &made->reset);
    vhost_device_cleanup(&b->device);
    collect(b, &made->cleanup);
    vhost_kernel_close(&b->net);
    collect(b, &made->close);
    return result;
}

/* What a function made in all lives is what the manual lists: not more, and not less. */
static enum greatest_test_res made_as_listed(uint64_t listed, uint64_t made)
{
    for (int op = 0; op < FAKE_OP_COUNT; op++) {
        const char *name = fake_kernel_name((fake_op)op);
        ASSERT_STR_EQ((listed >> op & 1) != 0 ? name : "", (made >> op & 1) != 0 ? name : "");
    }
    PASS();
}

TEST the_system_calls_are_those_of_the_manual(bench *b)
{
    static const fake_release releases[] = {FAKE_LINUX_6_17, FAKE_LINUX_6_17, FAKE_LINUX_6_12};
    life made;
    memset(&made, 0, sizeof made);
    for (size_t i = 0; i < 3; i++) {
        b->kernel.release = releases[i];
        b->accepted = fixture_features(i == 1 ? 0 : VERSION_1, i == 0 ? 2 : 0);
        ASSERT_OK(first_half(b, &made));
        ASSERT_OK(second_half(b, &made));
        b->queue[0].big_endian = !FIXTURE_FOREIGN;
    }
    CHECK_CALL(made_as_listed(OPENS, made.init));
    CHECK_CALL(made_as_listed(STARTS, made.start));
    CHECK_CALL(made_as_listed(STOPS, made.stop));
    CHECK_CALL(made_as_listed(OPENS | OP(SET_LOG_FD), made.reset));
    CHECK_CALL(made_as_listed(OP(CLOSE), made.cleanup));
    CHECK_CALL(made_as_listed(STARTS_RING, made.queue_start));
    CHECK_CALL(made_as_listed(STOPS, made.queue_stop));
    CHECK_CALL(made_as_listed(OP(SET_VRING_CALL), made.mask));
    CHECK_CALL(made_as_listed(OP(SET_MEM_TABLE), made.commit));
    CHECK_CALL(made_as_listed(OP(SET_MEM_TABLE) | STOPS | OP(CLOSE), made.broken));
    CHECK_CALL(made_as_listed(OP(NET_SET_BACKEND), made.attach));
    CHECK_CALL(made_as_listed(OP(SET_LOG_FD), made.log_fd));
    CHECK_CALL(made_as_listed(0, made.close));
    PASS();
}

TEST what_undoes_a_start_is_in_the_manual(bench *b)
{
    uint64_t made = 0;
    b->kernel.release = FAKE_LINUX_6_1;
    ASSERT_OK(stopped(b, 1));
    ASSERT_OK(send_features(b, VERSION_1 | PLATFORM));
    fake_kernel_forget(&b->kernel);
    fake_kernel_refuse(&b->kernel, FAKE_NET_SET_BACKEND, -1, 0, -EBADFD);
    ASSERT_INT(-EBADFD, vhost_device_start(&b->device));
    collect(b, &made);
    uint64_t more = OP(SET_FEATURES_ARRAY) | OP(SET_VRING_ENDIAN) | OP(SET_VRING_BUSYLOOP_TIMEOUT);
    uint64_t owns = OP(RESET_OWNER) | OP(FIONBIO) | OP(SET_OWNER);
    return made_as_listed((STARTS & ~more) | owns | OP(CLOSE), made);
}

TEST opening_the_back_end_makes_no_call(bench *b)
{
    ASSERT_OK(open_net(b, 3));
    ASSERT_UINT(0, b->kernel.count);
    vhost_kernel_close(&b->net);
    ASSERT_OK(pass_fds(b, 3));
    ASSERT_UINT(0, b->kernel.count);
    b->pairs = 0;
    PASS();
}

TEST a_steady_state_allocates_nothing(bench *b)
{
    ASSERT_OK(running(b, 2));
    ASSERT_OK(vhost_device_stop(&b->device));
    ASSERT_OK(fixture_map_default(b->f)); /* warm */
    size_t before = b->f->allocation_calls;
    for (int i = 0; i < 5; i++) {
        ASSERT_OK(vhost_device_start(&b->device));
        ASSERT_OK(vhost_queue_mask(&b->device, 1));
        ASSERT_OK(vhost_queue_unmask(&b->device, 1));
        ASSERT_OK(fixture_map_default(b->f));
        ASSERT_OK(vhost_device_stop(&b->device));
    }
    ASSERT_UINT(before, b->f->allocation_calls);
    PASS();
}

static void numbers_and_bytes(void)
{
    RUN_KERNEL(opening_makes_these_ioctls);
    RUN_KERNEL(opening_asks_for_nothing_that_was_not_wished);
    RUN_KERNEL(a_kernel_thread_is_chosen_with_zero);
    RUN_KERNEL(start_makes_these_ioctls);
    RUN_KERNEL(stop_makes_these_ioctls);
    RUN_KERNEL(features_above_bit_63_go_out_as_an_array);
    RUN_KERNEL(a_foreign_ring_and_a_busy_loop_are_told);
    RUN_KERNEL(a_queue_without_notifiers_is_told_so);
    RUN_KERNEL(a_masked_queue_calls_the_notifier_of_the_library);
    RUN_KERNEL(the_position_is_sent_and_handed_back);
    RUN_KERNEL(a_new_map_is_a_new_table);
    RUN_KERNEL(the_log_is_told_by_address_and_by_fd);
}

static void features_and_facts(void)
{
    RUN_KERNEL(features_are_those_that_all_fds_have);
    RUN_KERNEL(backend_features_that_one_fd_lacks_are_set_on_none);
    RUN_KERNEL(only_message_format_2_is_asked_for);
    RUN_KERNEL(the_net_header_is_offered_to_those_who_ask);
    RUN_KERNEL(offloads_are_not_the_kernels_to_offer);
    RUN_KERNEL(what_is_not_the_kernels_is_not_sent_to_it);
    RUN_KERNEL(max_mem_regions_is_read_where_it_makes_sense);
    RUN_KERNEL(max_mem_regions_that_cannot_be_read_is_64);
    RUN_KERNEL(one_region_too_many_is_refused_before_any_call);
    RUN_KERNEL(more_queues_than_the_pairs_have_are_refused);
}

static void several_pairs(void)
{
    RUN_KERNEL(every_pair_has_its_fd_and_its_tap);
    RUN_KERNEL(queues_are_numbered_anew_on_each_fd);
    RUN_KERNEL(positions_come_from_the_right_ring);
    RUN_KERNEL(one_queue_stops_and_starts_alone);
    RUN_KERNEL(features_are_taken_back_where_the_last_fd_refuses);
    RUN_KERNEL(a_table_is_taken_back_where_the_last_fd_refuses);
    RUN_KERNEL(a_first_table_cannot_be_taken_back);
    RUN_KERNEL(a_log_is_taken_back_where_the_last_fd_refuses);
    RUN_KERNEL(a_log_that_has_ended_is_not_gone_back_to);
    RUN_KERNEL(a_log_fd_is_taken_back_where_the_last_fd_refuses);
    RUN_KERNEL(a_start_that_cannot_be_undone_breaks);
    RUN_KERNEL(a_refused_tap_leaves_a_stopped_device);
}

static void taps(void)
{
    RUN_KERNEL(a_tap_attached_before_start_is_used_by_start);
    RUN_KERNEL(a_tap_attached_while_running_is_used_at_once);
    RUN_KERNEL(a_tap_goes_to_running_rings_only);
    RUN_KERNEL(a_refused_tap_leaves_the_old_one);
    RUN_KERNEL(a_pair_may_have_no_tap);
    RUN_KERNEL(a_pair_that_is_not_there_gets_no_tap);
}

static void fds(void)
{
    RUN_KERNEL(no_pairs_or_an_impossible_path_are_refused);
    RUN_KERNEL(what_init_opened_cleanup_closes);
    RUN_KERNEL(a_pair_that_cannot_be_opened_closes_the_others);
    RUN_KERNEL(passed_fds_are_closed_by_close_alone);
    RUN_KERNEL(passed_fds_are_owned_once);
    RUN_KERNEL(passed_fds_stay_the_callers_where_opening_fails);
    RUN_KERNEL(an_fd_with_an_owner_is_refused);
    RUN_KERNEL(a_closed_object_is_refused);
    RUN_KERNEL(a_broken_device_has_no_fds_and_opens_them_anew);
    RUN_KERNEL(passed_fds_do_not_come_back_after_a_break);
    RUN_KERNEL(breaking_needs_no_help_of_the_kernel);
    RUN_KERNEL(severing_takes_the_taps_away_before_it_closes);
    RUN_KERNEL(a_position_that_is_not_told_is_a_guess);
}

static void platform_and_old_kernels(void)
{
    RUN_KERNEL(access_platform_given_back_resets_every_owner);
    RUN_KERNEL(access_platform_kept_resets_no_owner);
    RUN_KERNEL(a_giving_back_that_failed_can_be_repeated);
    RUN_KERNEL(access_platform_that_one_fd_refuses_sticks_to_none);
    RUN_KERNEL(an_fd_that_is_furnished_in_two_attempts_has_one_more_worker);
    RUN_KERNEL(every_release_will_do);
    RUN_KERNEL(an_old_kernel_has_64_features);
    RUN_KERNEL(the_oldest_kernel_has_no_backend_features);
    RUN_KERNEL(a_foreign_ring_needs_a_kernel_that_swaps);
    RUN_KERNEL(a_busy_loop_needs_a_kernel_that_has_it);
    RUN_KERNEL(interrupted_ioctls_are_repeated);
    RUN_KERNEL(a_refusal_names_ioctl_pair_and_errno);
    RUN_KERNEL(what_is_overcome_is_no_last_error);
}

static void iotlb_messages(void)
{
    RUN_KERNEL(a_mapping_is_told_to_every_fd);
    RUN_KERNEL(an_old_kernel_gets_old_messages);
    RUN_KERNEL(a_refused_message_is_an_error);
    RUN_KERNEL(nothing_to_read_is_no_error);
    RUN_KERNEL(every_fd_is_polled_for_a_viommu);
    RUN_KERNEL(without_a_viommu_no_vhost_fd_is_polled_or_read);
    RUN_KERNEL(fds_of_a_kernel_without_an_iotlb_are_never_read);
    RUN_KERNEL(a_message_of_a_wrong_size_or_version_breaks_the_device);
}

static void failures_and_lists(void)
{
    RUN_KERNEL(any_call_may_fail_once);
    RUN_KERNEL(any_call_may_fail_once_on_an_old_kernel);
    RUN_KERNEL(any_two_calls_may_fail);
    RUN_KERNEL(a_kernel_may_stop_working);
    RUN_KERNEL(any_call_on_passed_fds_may_fail_once);
    RUN_KERNEL(the_system_calls_are_those_of_the_manual);
    RUN_KERNEL(what_undoes_a_start_is_in_the_manual);
    RUN_KERNEL(opening_the_back_end_makes_no_call);
    RUN_KERNEL(a_steady_state_allocates_nothing);
}

SUITE(kernel_suite)
{
    numbers_and_bytes();
    features_and_facts();
    several_pairs();
    taps();
    fds();
    platform_and_old_kernels();
    iotlb_messages();
    failures_and_lists();
}
