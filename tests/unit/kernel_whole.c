/* vhost-vsock, vhost-scsi and any other device of vhost_kernel.h, whose queues all start and stop
   together, on a kernel that records: which ioctls, with which bytes, and what is undone. */
#include "fake_kernel.h"
#include "fixture.h"

#include <errno.h>
#include <limits.h>
#include <string.h>

enum {
    QUEUES = FAKE_RINGS,
    CID = 42
};

#define BIT(number) (UINT64_C(1) << (number))
#define VERSION_1   BIT(VHOST_FEATURE_VERSION_1)
#define LOG_ALL     BIT(VHOST_FEATURE_LOG_ALL)
#define PLATFORM    BIT(VHOST_FEATURE_ACCESS_PLATFORM)
#define IOVA        UINT64_C(0x7f0000000000) /* where the vIOMMU has the first 512 KiB */

#define TEST_RUN       0x4004af00ul
#define NEVER_HEARD_OF 0x4004affful

typedef struct bench {
    fixture *f;
    fake_kind kind;
    fake_kernel kernel;
    vhost_kernel_calls calls;
    vhost_kernel_options options;
    vhost_device_options device_options;
    vhost_kernel vhost;
    vhost_device device;
    vhost_queue queue[QUEUES];
    vhost_features accepted;
    uint32_t queues;
    uint64_t base; /* of the addresses of rings: behind a vIOMMU, IOVA */
    bool passed;   /* its fd is passed */
} bench;

typedef enum greatest_test_res bench_test(bench *b);

/* ---- what the VMM adds to a device that the library does not know ---- */

typedef struct switching {
    unsigned on, off;
    int refusal; /* of the next call */
    void *user;
} switching;

static switching switched;

static int switch_device(vhost_kernel *kernel, bool on, void *user)
{
    int32_t value = on;
    int refusal = switched.refusal;
    switched.refusal = 0;
    switched.on += on;
    switched.off += !on;
    switched.user = user;
    return refusal < 0 ? refusal : vhost_kernel_ioctl(kernel, "TEST_RUN", TEST_RUN, &value);
}

/* ---- a vIOMMU with one entry ---- */

static int translate(vhost_device *device, uint64_t iova, bool write, vhost_translation *entry,
                     void *user)
{
    (void)device;
    (void)write;
    (void)user;
    if (iova < IOVA || iova - IOVA >= 128 * VHOST_PAGE) {
        return -EFAULT;
    }
    entry->iova = IOVA;
    entry->size = 128 * VHOST_PAGE;
    entry->gpa = 0;
    entry->permit = VHOST_PERMIT_READ | VHOST_PERMIT_WRITE;
    return 0;
}

static int watch(vhost_device *device, bool on, void *user)
{
    (void)device;
    (void)on;
    (void)user;
    return 0;
}

static const vhost_memory_ops memory_ops = {NULL, NULL, translate, watch};

/* ---- arranging ---- */

static const char *kind_name(fake_kind kind)
{
    static const char *const names[FAKE_KINDS] = {"net", "vsock", "scsi", "vdpa", "other"};
    return names[kind];
}

static void fill(bench *b)
{
    for (uint32_t q = 0; q < b->queues; q++) {
        vhost_queue *queue = &b->queue[q];
        uint64_t area = b->base + VHOST_PAGE * (8 + 4 * q);
        queue->ready = true;
        queue->size = 256;
        queue->desc = area;
        queue->avail = area + VHOST_PAGE;
        queue->used = area + 2 * VHOST_PAGE;
        queue->kick_fd = (int)(500 + q);
        queue->call_fd = (int)(600 + q);
    }
}

static int open_path(bench *b)
{
    if (b->kind == FAKE_VSOCK) {
        return vhost_kernel_vsock_open(&b->vhost, FAKE_VSOCK_PATH, CID, &b->options);
    }
    if (b->kind == FAKE_SCSI) {
        return vhost_kernel_scsi_open(&b->vhost, FAKE_SCSI_PATH, FAKE_TARGET, &b->options);
    }
    return vhost_kernel_open(&b->vhost, FAKE_OTHER_PATH, QUEUES, &b->options);
}

/* The nth fd ever opened. */
static int fd_number(unsigned nth)
{
    return FAKE_FD + (int)nth;
}

/* Passes an fd that is open already, or a new one. */
static int open_passed(bench *b)
{
    if (b->kernel.opened == 0) {
        (void)fake_kernel_pass_kind(&b->kernel, b->kind);
    }
    int fd = fd_number(b->kernel.opened - 1);
    if (b->kind == FAKE_VSOCK) {
        return vhost_kernel_vsock_open_fd(&b->vhost, fd, CID, &b->options);
    }
    if (b->kind == FAKE_SCSI) {
        return vhost_kernel_scsi_open_fd(&b->vhost, fd, FAKE_TARGET, &b->options);
    }
    return vhost_kernel_open_fd(&b->vhost, fd, QUEUES, &b->options);
}

static int open_vhost(bench *b)
{
    return b->passed ? open_passed(b) : open_path(b);
}

static int init_device(bench *b)
{
    return vhost_device_init(&b->device, &b->f->vm, vhost_kernel_ops(&b->vhost), &b->vhost,
                             b->queue, b->queues, &b->device_options);
}

static int attach_device(bench *b)
{
    int result = init_device(b);
    fill(b);
    return result < 0 ? result : vhost_device_ack(&b->device, b->accepted);
}

static int stopped(bench *b)
{
    int result = fixture_map_default(b->f);
    if (result >= 0) {
        result = open_vhost(b);
    }
    return result < 0 ? result : attach_device(b);
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

/* As after a driver's reset: what it accepts and sets up, anew. */
static int driver_comes(bench *b)
{
    fill(b);
    return vhost_device_ack(&b->device, b->accepted);
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

static int send_features(bench *b, uint64_t bits)
{
    vhost_features features = fixture_features(bits, 0);
    return vhost_kernel_ops(&b->vhost)->set_features(&b->vhost, &features);
}

static void put_behind_viommu(bench *b)
{
    b->device_options.memory = &memory_ops;
    b->accepted = fixture_features(VERSION_1 | PLATFORM, 0);
    b->base = IOVA;
}

static void take_from_viommu(bench *b)
{
    b->accepted = fixture_features(VERSION_1, 0);
    b->base = 0;
}

static void open_bench(bench *b, fixture *f, fake_kind kind)
{
    static const uint32_t counts[FAKE_KINDS] = {2, 2, 4, 2, 3};
    memset(b, 0, sizeof *b);
    memset(&switched, 0, sizeof switched);
    b->f = f;
    b->kind = kind;
    b->queues = counts[kind];
    vhost_vm_options options = fixture_vm_options(f);
    fake_kernel_init(&b->kernel);
    b->kernel.fault = &f->fault;
    b->kernel.allocate = options.allocate;
    b->kernel.user = options.user;
    b->options = fake_kernel_options(&b->kernel);
    b->options.set_running = kind == FAKE_OTHER ? switch_device : NULL;
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
    vhost_kernel_close(&b->vhost);
}

/* ---- checking ---- */

/* A device that does not run has nothing in the kernel that does; a broken one has no fd. */
static enum greatest_test_res check_state(const bench *b)
{
    bool runs = b->device.state == VHOST_STATE_RUNNING;
    ASSERT_STR_EQ("", b->kernel.complaint);
    if (b->device.state == VHOST_STATE_BROKEN) {
        ASSERT_UINT(0, fake_kernel_open_fds(&b->kernel));
    }
    for (unsigned i = 0; i < b->kernel.opened; i++) {
        ASSERT(runs || !fake_kernel_runs(&b->kernel.fds[i]));
    }
    for (uint32_t q = 0; q < b->queues; q++) {
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
static fake_kind kind_of_now;

static enum greatest_test_res run_on_bench(fixture *f)
{
    bench *b = the_bench();
    open_bench(b, f, kind_of_now);
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

#define RUN_KIND(TEST_NAME, KIND)                                                                  \
    do {                                                                                           \
        test_of_now = TEST_NAME;                                                                   \
        kind_of_now = (KIND);                                                                      \
        greatest_set_test_suffix(kind_name(KIND));                                                 \
        if (greatest_test_pre(#TEST_NAME) == 1) {                                                  \
            greatest_test_post(fixture_run(run_on_bench, MOCK_SYNCHRONOUS));                       \
        }                                                                                          \
    } while (0)
#define RUN_KINDS(TEST_NAME)                                                                       \
    do {                                                                                           \
        RUN_KIND(TEST_NAME, FAKE_VSOCK);                                                           \
        RUN_KIND(TEST_NAME, FAKE_SCSI);                                                            \
        RUN_KIND(TEST_NAME, FAKE_OTHER);                                                           \
    } while (0)

/* What the kernel refused, as the vhost_kernel tells it. */
static enum greatest_test_res kernel_says(const bench *b, int code, vhost_why why, const char *text)
{
    ASSERT_INT(code, b->vhost.last_error.code);
    ASSERT_STR_EQ(vhost_why_text(why), vhost_why_text(b->vhost.last_error.why));
    ASSERT(strstr(b->vhost.last_error.text, text) != NULL);
    ASSERT(strstr(b->vhost.last_error.text, "pair") == NULL);
    PASS();
}

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

/* The next ioctl from *next on; NULL: there is none. */
static const fake_call *next_ioctl(const bench *b, unsigned *next)
{
    while (*next < b->kernel.count && b->kernel.calls[*next].request == 0) {
        ++*next;
    }
    return *next < b->kernel.count ? &b->kernel.calls[(*next)++] : NULL;
}

static enum greatest_test_res ioctls_are(const bench *b, unsigned *next, const expected *e,
                                         size_t count)
{
    for (size_t i = 0; i < count; i++) {
        const fake_call *call = next_ioctl(b, next);
        ASSERT(call != NULL);
        CHECK_CALL(ioctl_is(call, fd_number(b->kernel.opened - 1), &e[i]));
    }
    PASS();
}

#define IOCTLS_ARE(B, NEXT, LIST)                                                                  \
    CHECK_CALL(ioctls_are((B), (NEXT), (LIST), sizeof(LIST) / sizeof(LIST)[0]))

static uint64_t number_of(const void *pointer)
{
    return (uintptr_t)pointer;
}

static unsigned count_of(const bench *b, fake_op op)
{
    return fake_kernel_count(&b->kernel, op, -1);
}

static const fake_fd *last_fd(const bench *b)
{
    return &b->kernel.fds[b->kernel.opened - 1];
}

/* The ioctl that lets the whole device run, and the one that stops it. */
static fake_op start_op(const bench *b)
{
    return b->kind == FAKE_VSOCK  ? FAKE_VSOCK_SET_RUNNING
           : b->kind == FAKE_SCSI ? FAKE_SCSI_SET_ENDPOINT
                                  : FAKE_TEST_RUN;
}

static fake_op stop_op(const bench *b)
{
    return b->kind == FAKE_SCSI ? FAKE_SCSI_CLEAR_ENDPOINT : start_op(b);
}

/* ---- numbers and bytes ---- */

static const expected asks_features[] = {
    {0x8008af83, "888", {2, 0, 0}}, /* GET_FEATURES_ARRAY, which only vhost-net has */
    {0x8008af00, "8", {0}},
    {0x8008af26, "8", {0}},
};

TEST init_of_vsock_makes_these_ioctls(bench *b)
{
    static const expected list[] = {
        {0x5421, "4", {1}}, /* FIONBIO: a read does not wait */
        {0xaf01, "", {0}},
        {0x4008af60, "8", {CID}},
    };
    unsigned next = 0;
    b->options.worker_per_queue = true; /* it has none to give */
    ASSERT_OK(stopped(b));
    IOCTLS_ARE(b, &next, list);
    IOCTLS_ARE(b, &next, asks_features);
    ASSERT_UINT(b->kernel.count, next + 3); /* open, read and close of max_mem_regions */
    PASS();
}

TEST init_of_scsi_makes_these_ioctls(bench *b)
{
    static const expected list[] = {
        {0x5421, "4", {1}}, {0xaf01, "", {0}}, {0x4004af42, "4", {0}}, /* the version of its ABI */
    };
    unsigned next = 0;
    ASSERT_OK(stopped(b));
    IOCTLS_ARE(b, &next, list);
    IOCTLS_ARE(b, &next, asks_features);
    ASSERT_UINT(b->kernel.count, next + 3);
    PASS();
}

TEST init_of_another_makes_these_ioctls(bench *b)
{
    static const expected list[] = {
        {0x5421, "4", {1}},
        {0xaf01, "", {0}},
    };
    unsigned next = 0;
    ASSERT_OK(stopped(b));
    IOCTLS_ARE(b, &next, list);
    IOCTLS_ARE(b, &next, asks_features);
    ASSERT_UINT(b->kernel.count, next + 3);
    PASS();
}

TEST the_thread_is_chosen_before_there_is_one(bench *b)
{
    b->options.thread = VHOST_KERNEL_THREAD_KTHREAD;
    ASSERT_OK(stopped(b));
    const fake_call *fork = fake_kernel_last(&b->kernel, FAKE_SET_FORK_FROM_OWNER, -1);
    ASSERT(fork != NULL);
    ASSERT(fork < fake_kernel_last(&b->kernel, FAKE_SET_OWNER, -1));
    ASSERT_UINT(0, fork->bytes[0]);
    PASS();
}

/* Features and memory; scsi has no back-end features. */
static enum greatest_test_res whole_is_set_up(const bench *b, unsigned *next)
{
    const unsigned char *host = b->f->host;
    static const expected features[] = {{0x4008af00, "8", {UINT64_C(0x100000000)}}};
    static const expected version_2[] = {{0x4008af25, "8", {2}}};
    const expected table[] = {{0x4008af03,
                               "4488888888",
                               {2, 0, 0, 128 * 4096, number_of(host), 0, UINT64_C(0x100000000),
                                128 * 4096, number_of(host + 128 * 4096), 0}}};
    IOCTLS_ARE(b, next, features);
    if (b->kind != FAKE_SCSI) {
        IOCTLS_ARE(b, next, version_2);
    }
    IOCTLS_ARE(b, next, table);
    PASS();
}

/* One ring, from its call to its addresses. */
static enum greatest_test_res ring_is_set_up(const bench *b, unsigned *next, uint32_t ring)
{
    const unsigned char *host = b->f->host;
    const vhost_queue *queue = &b->queue[ring];
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
    IOCTLS_ARE(b, next, list);
    PASS();
}

/* version 1, the name, filled up with zeros, and neither tag nor anything else */
static enum greatest_test_res is_endpoint(const fake_call *call, unsigned long request,
                                          const char *wwpn)
{
    unsigned char bytes[232];
    memset(bytes, 0, sizeof bytes);
    memcpy(bytes + 4, wwpn, strlen(wwpn));
    const uint32_t version = 1;
    memcpy(bytes, &version, sizeof version);
    ASSERT(call != NULL);
    ASSERT_EQ_FMT(request, call->request, "%#lx");
    ASSERT_UINT(sizeof bytes, call->size);
    ASSERT_MEM_EQ(bytes, call->bytes, sizeof bytes);
    PASS();
}

/* The one that lets the device run, or stops it. */
static enum greatest_test_res is_switch(const bench *b, unsigned *next, bool on)
{
    const fake_call *call = next_ioctl(b, next);
    const expected e = {b->kind == FAKE_VSOCK ? 0x4004af61 : TEST_RUN, "4", {on}};
    ASSERT(call != NULL);
    ASSERT_INT(on ? start_op(b) : stop_op(b), call->op);
    if (b->kind == FAKE_SCSI) {
        return is_endpoint(call, on ? 0x40e8af40ul : 0x40e8af41ul, FAKE_TARGET);
    }
    return ioctl_is(call, fd_number(b->kernel.opened - 1), &e);
}

TEST start_makes_these_ioctls_and_runs_last(bench *b)
{
    unsigned next = 0;
    ASSERT_OK(stopped(b));
    fake_kernel_forget(&b->kernel);
    ASSERT_OK(vhost_device_start(&b->device));
    CHECK_CALL(whole_is_set_up(b, &next));
    for (uint32_t q = 0; q < b->queues; q++) {
        CHECK_CALL(ring_is_set_up(b, &next, q));
    }
    for (uint32_t q = 0; q < b->queues; q++) {
        const expected kick[] = {{0x4008af20, "44", {q, (uint64_t)b->queue[q].kick_fd}}};
        IOCTLS_ARE(b, &next, kick);
    }
    CHECK_CALL(is_switch(b, &next, true));
    ASSERT_UINT(b->kernel.count, next + b->queues); /* kicks */
    ASSERT(last_fd(b)->running);
    PASS();
}

/* These devices do not look into their rings when they begin to run. */
TEST queues_are_kicked_once_they_run(bench *b)
{
    const uint64_t one = 1;
    ASSERT_OK(stopped(b));
    b->queue[1].kick_fd = -1;
    fake_kernel_refuse_once(&b->kernel, FAKE_WRITE, -1, 0, -EAGAIN); /* it is signalled */
    ASSERT_OK(vhost_device_start(&b->device));
    const fake_call *call = fake_kernel_last(&b->kernel, start_op(b), -1);
    const fake_call *end = b->kernel.calls + b->kernel.count;
    for (uint32_t q = 0; q < b->queues; q++) {
        if (q == 1) {
            continue;
        }
        ASSERT(++call < end);
        ASSERT_INT(FAKE_WRITE, call->op);
        ASSERT_INT(b->queue[q].kick_fd, call->fd);
        ASSERT_UINT(sizeof one, call->size);
        ASSERT_MEM_EQ(&one, call->bytes, sizeof one);
    }
    ASSERT(++call == end);
    PASS();
}

TEST a_queue_that_is_not_ready_is_not_told_of(bench *b)
{
    ASSERT_OK(stopped(b));
    b->queue[0].ready = false;
    ASSERT_OK(vhost_device_start(&b->device));
    ASSERT_FALSE(b->kernel.fds[0].ring[0].sized);
    ASSERT_UINT(b->queues - 1, count_of(b, FAKE_WRITE));
    PASS();
}

TEST vsock_runs_both_queues_or_none(bench *b)
{
    for (uint32_t q = 0; q < 2; q++) {
        ASSERT_OK(stopped(b));
        b->queue[q].ready = false;
        ASSERT_INT(-EINVAL, vhost_device_start(&b->device));
        CHECK_CALL(kernel_says(b, -EINVAL, VHOST_WHY_QUEUE_NOT_READY, "both"));
        ASSERT_INT(VHOST_STATE_STOPPED, b->device.state);
        ASSERT_UINT(0, count_of(b, FAKE_VSOCK_SET_RUNNING));
        close_bench(b);
    }
    b->queues = 1;
    ASSERT_OK(stopped(b));
    ASSERT_INT(-EINVAL, vhost_device_start(&b->device));
    PASS();
}

/* The kernel would run it, in memory that is another's by now. */
TEST a_queue_of_a_former_life_is_not_run(bench *b)
{
    b->passed = true;
    ASSERT_OK(running(b));
    ASSERT_OK(vhost_device_stop(&b->device));
    ASSERT_OK(vhost_device_reset(&b->device));
    ASSERT_OK(driver_comes(b));
    b->queue[1].ready = false;
    fake_kernel_forget(&b->kernel);
    ASSERT_INT(-EINVAL, vhost_device_start(&b->device));
    CHECK_CALL(kernel_says(b, -EINVAL, VHOST_WHY_QUEUE_NOT_READY, "before"));
    ASSERT_INT(VHOST_STATE_STOPPED, b->device.state);
    ASSERT_UINT(0, count_of(b, start_op(b)));
    b->queue[1].ready = true;
    ASSERT_OK(vhost_device_start(&b->device));
    PASS();
}

/* A mistake of the caller, who is told, and nothing worse. */
TEST an_object_that_is_closed_too_early_breaks_its_device(bench *b)
{
    ASSERT_OK(running(b));
    vhost_kernel_close(&b->vhost);
    ASSERT_INT(-ENODEV, vhost_device_stop(&b->device));
    ASSERT_INT(VHOST_STATE_BROKEN, b->device.state);
    vhost_device_cleanup(&b->device);
    PASS();
}

TEST an_fd_that_is_none_is_refused(bench *b)
{
    const int none = -1;
    ASSERT_INT(-EINVAL, vhost_kernel_net_open_fds(&b->vhost, &none, &none, 1, &b->options));
    ASSERT_INT(-EINVAL, vhost_kernel_vsock_open_fd(&b->vhost, none, 3, &b->options));
    ASSERT_INT(-EINVAL, vhost_kernel_scsi_open_fd(&b->vhost, none, "naa.1", &b->options));
    ASSERT_INT(-EINVAL, vhost_kernel_vdpa_open_fd(&b->vhost, none, &b->options));
    ASSERT_INT(-EINVAL, vhost_kernel_open_fd(&b->vhost, none, 1, &b->options));
    return kernel_says(b, -EINVAL, VHOST_WHY_ARGUMENT, "fd");
}

TEST an_object_that_was_never_opened_is_refused(bench *b)
{
    memset(&b->vhost, 0, sizeof b->vhost);
    ASSERT_INT(-EINVAL, init_device(b));
    ASSERT(strstr(b->device.last_error.text, "not open") != NULL);
    PASS();
}

/* The kernel did not take its addresses. */
TEST a_queue_that_was_refused_is_not_remembered(bench *b)
{
    b->passed = true;
    ASSERT_OK(stopped(b));
    fake_kernel_refuse_once(&b->kernel, FAKE_SET_VRING_ADDR, -1, (int)b->queues - 1, -EFAULT);
    ASSERT_INT(-EFAULT, vhost_device_start(&b->device));
    fake_kernel_relent(&b->kernel);
    ASSERT_OK(vhost_device_reset(&b->device));
    ASSERT_OK(driver_comes(b));
    b->queue[b->queues - 1].ready = false;
    ASSERT_OK(vhost_device_start(&b->device));
    PASS();
}

/* The fd stays, and the kernel's memory with it, whatever becomes of the vhost_device. */
TEST a_passed_fd_remembers_queues_over_cleanup(bench *b)
{
    b->passed = true;
    ASSERT_OK(running(b));
    vhost_device_cleanup(&b->device);
    ASSERT_OK(attach_device(b));
    b->queue[b->queues - 1].ready = false;
    ASSERT_INT(-EINVAL, vhost_device_start(&b->device));
    CHECK_CALL(kernel_says(b, -EINVAL, VHOST_WHY_QUEUE_NOT_READY, "before"));
    b->queue[b->queues - 1].ready = true;
    ASSERT_OK(vhost_device_start(&b->device));
    PASS();
}

TEST a_path_opened_anew_knows_no_former_life(bench *b)
{
    ASSERT_OK(running(b));
    ASSERT_OK(vhost_device_stop(&b->device));
    ASSERT_OK(vhost_device_reset(&b->device));
    ASSERT_OK(driver_comes(b));
    b->queue[1].ready = false;
    ASSERT_OK(vhost_device_start(&b->device));
    PASS();
}

TEST a_device_that_runs_is_not_told_to_run(bench *b)
{
    ASSERT_OK(running(b));
    ASSERT_OK(vhost_kernel_ops(&b->vhost)->set_running(&b->vhost, true));
    ASSERT_UINT(0, b->kernel.count);
    ASSERT_OK(vhost_device_stop(&b->device));
    fake_kernel_forget(&b->kernel);
    ASSERT_OK(vhost_kernel_ops(&b->vhost)->set_running(&b->vhost, false));
    ASSERT_UINT(0, b->kernel.count);
    PASS();
}

TEST stop_makes_these_ioctls_and_stops_first(bench *b)
{
    unsigned next = 0;
    ASSERT_OK(running(b));
    ASSERT_OK(vhost_device_stop(&b->device));
    CHECK_CALL(is_switch(b, &next, false));
    for (uint32_t q = b->queues; q-- > 0;) {
        const expected base[] = {{0xc008af12, "44", {q, 0}}};
        IOCTLS_ARE(b, &next, base);
    }
    ASSERT_UINT(b->kernel.count, next);
    ASSERT_FALSE(last_fd(b)->running);
    PASS();
}

TEST cleanup_closes_and_no_more(bench *b)
{
    ASSERT_OK(running(b));
    ASSERT_OK(vhost_device_stop(&b->device));
    fake_kernel_forget(&b->kernel);
    vhost_device_cleanup(&b->device);
    ASSERT_UINT(1, b->kernel.count);
    ASSERT_UINT(1, count_of(b, FAKE_CLOSE));
    vhost_kernel_close(&b->vhost);
    ASSERT_UINT(1, b->kernel.count);
    PASS();
}

TEST opening_makes_no_call(bench *b)
{
    ASSERT_OK(open_path(b));
    ASSERT_UINT(0, b->kernel.count);
    vhost_kernel_close(&b->vhost);
    ASSERT_OK(open_passed(b));
    ASSERT_UINT(0, b->kernel.count);
    b->queues = 0;
    PASS();
}

TEST positions_are_sent_and_handed_back(bench *b)
{
    const expected base = {0x4008af12, "44", {1, 0xfedc}};
    ASSERT_OK(stopped(b));
    b->queue[1].position.state = VHOST_POSITION_CERTAIN;
    b->queue[1].position.avail = 0xfedc;
    fake_kernel_forget(&b->kernel);
    ASSERT_OK(vhost_device_start(&b->device));
    const fake_call *call = b->kernel.calls;
    while (call->request != base.request || fake_kernel_number(call->bytes, 4) != 1) {
        call++;
    }
    CHECK_CALL(ioctl_is(call, FAKE_FD, &base));
    b->kernel.fds[0].ring[1].base = 0xfee1;
    fixture_put_used(&b->f->vm, &b->queue[1], 0xfee0);
    ASSERT_OK(vhost_device_stop(&b->device));
    ASSERT_UINT(0xfee1, b->queue[1].position.avail);
    ASSERT_INT(VHOST_POSITION_CERTAIN, b->queue[1].position.state);
    ASSERT_UINT(0, b->queue[0].position.avail);
    PASS();
}

TEST masking_changes_the_call_and_nothing_else(bench *b)
{
    ASSERT_OK(running(b));
    const expected calls[] = {
        {0x4008af21, "44", {1, (uint64_t)b->queue[1].masked_event.signal_fd}},
        {0x4008af21, "44", {1, (uint64_t)b->queue[1].call_fd}},
    };
    unsigned next = 0;
    ASSERT_OK(vhost_queue_mask(&b->device, 1));
    ASSERT_OK(vhost_queue_unmask(&b->device, 1));
    IOCTLS_ARE(b, &next, calls);
    ASSERT_UINT(b->kernel.count, next);
    PASS();
}

TEST a_new_map_is_a_new_table_while_it_runs(bench *b)
{
    ASSERT_OK(running(b));
    ASSERT_OK(grow(b));
    ASSERT_UINT(1, b->kernel.count);
    ASSERT_INT(FAKE_SET_MEM_TABLE, b->kernel.calls[0].op);
    ASSERT_U64(3, fake_kernel_number(b->kernel.calls[0].bytes, 4));
    ASSERT(last_fd(b)->running);
    PASS();
}

/* ---- facts ---- */

TEST features_are_the_kernels_to_offer(bench *b)
{
    uint64_t has = b->kernel.offers[b->kind].features;
    ASSERT_OK(stopped(b));
    vhost_features offer =
        vhost_device_offer(&b->device, fixture_features(~UINT64_C(0), ~UINT64_C(0)));
    ASSERT_U64(has, b->device.facts.offered.word[0]);
    ASSERT_U64(has & ~LOG_ALL, offer.word[0]);
    ASSERT_U64(0, offer.word[1]);
    ASSERT(b->device.facts.queues_together);
    ASSERT_UINT(64, b->device.facts.max_regions);
    PASS();
}

TEST features_that_are_not_offered_are_refused(bench *b)
{
    b->kernel.offers[b->kind].features &= ~BIT(28);
    ASSERT_OK(stopped(b));
    ASSERT_FAILS(b->f, vhost_device_ack(&b->device, fixture_features(VERSION_1 | BIT(28), 0)),
                 &b->device.last_error, -EINVAL, VHOST_WHY_FEATURE_NOT_OFFERED);
    PASS();
}

TEST scsi_has_as_many_queues_as_wished(bench *b)
{
    b->queues = QUEUES;
    ASSERT_OK(running(b));
    ASSERT_INT(500 + QUEUES - 1, b->kernel.fds[0].ring[QUEUES - 1].kick);
    PASS();
}

TEST more_queues_than_there_are_is_refused(bench *b)
{
    static vhost_queue queues[QUEUES + 1];
    uint32_t count = b->kind == FAKE_VSOCK ? 3 : QUEUES + 1;
    for (uint32_t q = 0; q < count; q++) {
        vhost_queue_init(&queues[q]);
    }
    ASSERT_OK(open_path(b));
    ASSERT_FAILS(b->f,
                 vhost_device_init(&b->device, &b->f->vm, vhost_kernel_ops(&b->vhost), &b->vhost,
                                   queues, count, NULL),
                 &b->device.last_error, -EINVAL, VHOST_WHY_TOO_MANY_QUEUES);
    ASSERT_UINT(0, fake_kernel_open_fds(&b->kernel));
    b->queues = 0;
    PASS();
}

/* What cannot be read is not polled: a poll would tell of an error for ever. */
TEST an_fd_is_read_where_it_has_an_iotlb(bench *b)
{
    bool reads = b->kind != FAKE_SCSI;
    int fds[3 * QUEUES];
    b->device_options.memory = &memory_ops;
    ASSERT_OK(running(b));
    ASSERT_UINT(reads + b->queues, vhost_device_poll_fds(&b->device, fds, 3 * QUEUES));
    ASSERT_INT(reads, fds[0] == FAKE_FD);
    ASSERT_OK(vhost_device_process(&b->device));
    ASSERT_UINT(reads, count_of(b, FAKE_READ));
    PASS();
}

TEST queues_do_not_start_and_stop_alone(bench *b)
{
    ASSERT_OK(running(b));
    ASSERT_FAILS(b->f, vhost_queue_stop(&b->device, 1), &b->device.last_error, -ENOTSUP,
                 VHOST_WHY_NOT_SUPPORTED);
    ASSERT_FAILS(b->f, vhost_queue_start(&b->device, 1), &b->device.last_error, -ENOTSUP,
                 VHOST_WHY_NOT_SUPPORTED);
    ASSERT_UINT(0, b->kernel.count);
    ASSERT(b->queue[1].started);
    PASS();
}

TEST there_is_no_tap_to_attach(bench *b)
{
    ASSERT_OK(running(b));
    ASSERT_INT(-EINVAL, vhost_kernel_net_attach(&b->vhost, 0, 7));
    CHECK_CALL(kernel_says(b, -EINVAL, VHOST_WHY_ARGUMENT, "attach"));
    ASSERT_UINT(0, b->kernel.count);
    PASS();
}

/* ---- arguments ---- */

TEST a_cid_that_no_guest_has_is_refused(bench *b)
{
    static const uint64_t cids[] = {
        0, 1, 2, 0xffffffff, UINT64_C(0x100000000), UINT64_C(0x100000007), UINT64_MAX};
    for (size_t i = 0; i < sizeof cids / sizeof cids[0]; i++) {
        ASSERT_INT(-EINVAL,
                   vhost_kernel_vsock_open(&b->vhost, FAKE_VSOCK_PATH, cids[i], &b->options));
        CHECK_CALL(kernel_says(b, -EINVAL, VHOST_WHY_ARGUMENT, "CID"));
        ASSERT_INT(-EINVAL, vhost_kernel_vsock_open_fd(&b->vhost, 5, cids[i], &b->options));
    }
    ASSERT_UINT(0, b->f->allocations);
    ASSERT_UINT(0, b->kernel.count);
    PASS();
}

TEST the_first_and_the_last_cid_reach_the_kernel(bench *b)
{
    static const uint64_t cids[] = {3, 0xfffffffe};
    for (int i = 0; i < 2; i++) {
        ASSERT_OK(vhost_kernel_vsock_open(&b->vhost, FAKE_VSOCK_PATH, cids[i], &b->options));
        ASSERT_OK(init_device(b));
        ASSERT_U64(cids[i], b->kernel.fds[i].cid);
        close_bench(b);
    }
    PASS();
}

TEST a_cid_in_use_says_so(bench *b)
{
    b->kernel.taken_cid = CID;
    ASSERT_OK(open_path(b));
    ASSERT_FAILS(b->f, init_device(b), &b->device.last_error, -EADDRINUSE,
                 VHOST_WHY_BACKEND_REFUSED);
    CHECK_CALL(kernel_says(b, -EADDRINUSE, VHOST_WHY_KERNEL_CID, "VSOCK_SET_GUEST_CID"));
    ASSERT_UINT(0, fake_kernel_open_fds(&b->kernel));
    b->kernel.taken_cid = 0;
    ASSERT_OK(init_device(b));
    PASS();
}

TEST a_cid_that_is_refused_otherwise_is_not_in_use(bench *b)
{
    fake_kernel_refuse(&b->kernel, FAKE_VSOCK_SET_GUEST_CID, -1, 0, -ENOMEM);
    ASSERT_OK(open_path(b));
    ASSERT_INT(-ENOMEM, init_device(b));
    CHECK_CALL(kernel_says(b, -ENOMEM, VHOST_WHY_BACKEND_REFUSED, "VSOCK_SET_GUEST_CID"));
    PASS();
}

TEST a_wwpn_has_1_to_223_bytes(bench *b)
{
    static char name[225];
    memset(name, 'n', sizeof name);
    name[224] = '\0';
    ASSERT_INT(-EINVAL, vhost_kernel_scsi_open(&b->vhost, FAKE_SCSI_PATH, name, &b->options));
    CHECK_CALL(kernel_says(b, -EINVAL, VHOST_WHY_ARGUMENT, "wwpn"));
    ASSERT_INT(-EINVAL, vhost_kernel_scsi_open_fd(&b->vhost, 5, "", &b->options));
    ASSERT_UINT(0, b->f->allocations);
    ASSERT_OK(fixture_map_default(b->f));
    for (int end = 1; end <= 223; end += 222) {
        name[223] = name[1] = 'n';
        name[end] = '\0';
        b->kernel.target = name;
        ASSERT_OK(vhost_kernel_scsi_open(&b->vhost, FAKE_SCSI_PATH, name, &b->options));
        ASSERT_OK(attach_device(b));
        ASSERT_OK(vhost_device_start(&b->device));
        CHECK_CALL(is_endpoint(fake_kernel_last(&b->kernel, FAKE_SCSI_SET_ENDPOINT, -1),
                               0x40e8af40ul, name));
        close_bench(b);
    }
    PASS();
}

TEST another_has_a_queue_at_least(bench *b)
{
    ASSERT_INT(-EINVAL, vhost_kernel_open(&b->vhost, FAKE_OTHER_PATH, 0, &b->options));
    CHECK_CALL(kernel_says(b, -EINVAL, VHOST_WHY_ARGUMENT, "queues"));
    ASSERT_INT(-EINVAL, vhost_kernel_open_fd(&b->vhost, 5, 0, &b->options));
    ASSERT_UINT(0, b->f->allocations);
    PASS();
}

static int open_at(bench *b, const char *path)
{
    if (b->kind == FAKE_VSOCK) {
        return vhost_kernel_vsock_open(&b->vhost, path, CID, &b->options);
    }
    if (b->kind == FAKE_SCSI) {
        return vhost_kernel_scsi_open(&b->vhost, path, FAKE_TARGET, &b->options);
    }
    return vhost_kernel_open(&b->vhost, path, 1, &b->options);
}

TEST a_path_has_1_to_63_bytes(bench *b)
{
    char path[65];
    memset(path, 'x', sizeof path);
    path[64] = '\0';
    ASSERT_INT(-EINVAL, open_at(b, path));
    ASSERT_INT(-EINVAL, open_at(b, ""));
    ASSERT_UINT(0, b->f->allocations);
    path[63] = '\0';
    ASSERT_OK(open_at(b, path));
    PASS();
}

TEST a_path_that_is_not_there_is_told(bench *b)
{
    ASSERT_OK(open_at(b, "/dev/nothing"));
    ASSERT_INT(-ENOENT, init_device(b));
    CHECK_CALL(kernel_says(b, -ENOENT, VHOST_WHY_KERNEL_OPEN, "/dev/nothing"));
    ASSERT_INT(VHOST_OP_OPEN, b->device.last_error.op);
    PASS();
}

/* ---- the target of vhost-scsi ---- */

TEST an_abi_that_is_too_new_is_refused(bench *b)
{
    b->kernel.scsi_abi = 2;
    ASSERT_OK(open_path(b));
    ASSERT_INT(-ENOTSUP, init_device(b));
    CHECK_CALL(kernel_says(b, -ENOTSUP, VHOST_WHY_NOT_SUPPORTED, "ABI"));
    ASSERT_UINT(0, fake_kernel_open_fds(&b->kernel));
    for (b->kernel.scsi_abi = 0; b->kernel.scsi_abi <= 1; b->kernel.scsi_abi++) {
        ASSERT_OK(init_device(b));
        vhost_device_cleanup(&b->device);
    }
    PASS();
}

static enum greatest_test_res target_is_not_to_be_had(bench *b)
{
    ASSERT_FAILS(b->f, vhost_device_start(&b->device), &b->device.last_error, -ENXIO,
                 VHOST_WHY_BACKEND_REFUSED);
    CHECK_CALL(fixture_names(&b->device.last_error, VHOST_OP_SET_RUNNING, -1));
    CHECK_CALL(kernel_says(b, -ENXIO, VHOST_WHY_KERNEL_TARGET, FAKE_TARGET));
    ASSERT_INT(VHOST_STATE_STOPPED, b->device.state);
    ASSERT_UINT(0, count_of(b, FAKE_SCSI_CLEAR_ENDPOINT));
    PASS();
}

TEST a_target_that_is_not_there_leaves_the_device_stopped(bench *b)
{
    b->kernel.target = NULL;
    ASSERT_OK(stopped(b));
    CHECK_CALL(target_is_not_to_be_had(b));
    b->kernel.target = FAKE_TARGET;
    ASSERT_OK(vhost_device_start(&b->device));
    PASS();
}

TEST a_target_in_use_leaves_the_device_stopped(bench *b)
{
    int other = fake_kernel_pass_kind(&b->kernel, FAKE_SCSI);
    b->kernel.fds[0].running = true;
    ASSERT_OK(stopped(b));
    CHECK_CALL(target_is_not_to_be_had(b));
    b->kernel.fds[0].running = false;
    ASSERT_OK(vhost_device_start(&b->device));
    (void)fake_kernel_calls.close(other, &b->kernel);
    PASS();
}

TEST an_endpoint_is_never_set_twice(bench *b)
{
    ASSERT_OK(running(b));
    ASSERT_OK(vhost_kernel_ops(&b->vhost)->set_running(&b->vhost, true));
    ASSERT_UINT(0, b->kernel.count);
    for (unsigned i = 1; i <= 3; i++) {
        ASSERT_OK(vhost_device_stop(&b->device));
        ASSERT_UINT(i, count_of(b, FAKE_SCSI_CLEAR_ENDPOINT));
        ASSERT_OK(vhost_kernel_ops(&b->vhost)->set_running(&b->vhost, false));
        ASSERT_UINT(i, count_of(b, FAKE_SCSI_CLEAR_ENDPOINT));
        ASSERT_OK(vhost_device_start(&b->device));
        ASSERT_UINT(i, count_of(b, FAKE_SCSI_SET_ENDPOINT));
    }
    PASS();
}

/* It is still set, so it is cleared once more before the fd goes. */
TEST an_endpoint_that_cannot_be_cleared_breaks_the_device(bench *b)
{
    ASSERT_OK(running(b));
    fake_kernel_refuse_once(&b->kernel, FAKE_SCSI_CLEAR_ENDPOINT, -1, 0, -ENOMEM);
    ASSERT_FAILS(b->f, vhost_device_stop(&b->device), &b->device.last_error, -ENOMEM,
                 VHOST_WHY_BACKEND_REFUSED);
    ASSERT_INT(VHOST_STATE_BROKEN, b->device.state);
    ASSERT_UINT(2, count_of(b, FAKE_SCSI_CLEAR_ENDPOINT));
    ASSERT_UINT(0, fake_kernel_open_fds(&b->kernel));
    ASSERT_OK(vhost_device_reset(&b->device));
    ASSERT_OK(driver_comes(b));
    ASSERT_OK(vhost_device_start(&b->device));
    PASS();
}

TEST an_error_of_clearing_is_not_taken_for_a_target(bench *b)
{
    ASSERT_OK(running(b));
    fake_kernel_refuse_once(&b->kernel, FAKE_SCSI_CLEAR_ENDPOINT, -1, 0, -ENODEV);
    ASSERT_INT(-ENODEV, vhost_kernel_ops(&b->vhost)->set_running(&b->vhost, false));
    CHECK_CALL(kernel_says(b, -ENODEV, VHOST_WHY_BACKEND_REFUSED, "SCSI_CLEAR_ENDPOINT"));
    PASS();
}

/* ---- events that vhost-scsi missed ---- */

TEST events_missed_are_read_and_set(bench *b)
{
    static const expected calls[] = {
        {0x4004af44, "4", {0}}, {0x4004af43, "4", {1}}, {0x4004af43, "4", {0}}};
    bool missed = false;
    unsigned next = 0;
    ASSERT_OK(stopped(b));
    fake_kernel_forget(&b->kernel);
    b->kernel.fds[0].missed = 256;
    ASSERT_OK(vhost_kernel_scsi_get_events_missed(&b->vhost, &missed));
    ASSERT(missed);
    ASSERT_OK(vhost_kernel_scsi_set_events_missed(&b->vhost, true));
    ASSERT_UINT(1, b->kernel.fds[0].missed);
    ASSERT_OK(vhost_kernel_scsi_set_events_missed(&b->vhost, false));
    IOCTLS_ARE(b, &next, calls);
    ASSERT_OK(vhost_kernel_scsi_get_events_missed(&b->vhost, &missed));
    ASSERT_FALSE(missed);
    PASS();
}

TEST events_missed_that_cannot_be_read_are_not_told(bench *b)
{
    bool missed = true;
    ASSERT_OK(stopped(b));
    fake_kernel_refuse(&b->kernel, FAKE_SCSI_GET_EVENTS_MISSED, -1, 0, -EIO);
    ASSERT_INT(-EIO, vhost_kernel_scsi_get_events_missed(&b->vhost, &missed));
    CHECK_CALL(kernel_says(b, -EIO, VHOST_WHY_BACKEND_REFUSED, "SCSI_GET_EVENTS_MISSED"));
    ASSERT(missed);
    PASS();
}

TEST only_scsi_has_events_to_miss(bench *b)
{
    bool missed = true;
    ASSERT_OK(stopped(b));
    ASSERT_INT(-ENOTSUP, vhost_kernel_scsi_get_events_missed(&b->vhost, &missed));
    ASSERT_INT(-ENOTSUP, vhost_kernel_scsi_set_events_missed(&b->vhost, true));
    ASSERT(missed);
    PASS();
}

/* ---- workers ---- */

TEST each_queue_of_requests_but_the_first_gets_a_worker(bench *b)
{
    b->options.worker_per_queue = true;
    b->queues = 6;
    ASSERT_OK(stopped(b));
    for (uint32_t q = 0; q < QUEUES; q++) {
        ASSERT_UINT(q < 3 || q >= 6 ? 0 : 101 + q - 3, b->kernel.fds[0].ring[q].worker);
    }
    ASSERT_UINT(3, count_of(b, FAKE_NEW_WORKER));
    ASSERT(fake_kernel_last(&b->kernel, FAKE_ATTACH_VRING_WORKER, -1) <
           fake_kernel_last(&b->kernel, FAKE_SCSI_GET_ABI_VERSION, -1));
    PASS();
}

TEST each_queue_of_another_but_the_first_gets_a_worker(bench *b)
{
    b->options.worker_per_queue = true;
    ASSERT_OK(stopped(b));
    ASSERT_UINT(0, b->kernel.fds[0].ring[0].worker);
    ASSERT_UINT(101, b->kernel.fds[0].ring[1].worker);
    ASSERT_UINT(102, b->kernel.fds[0].ring[2].worker);
    ASSERT_UINT(2, count_of(b, FAKE_NEW_WORKER));
    PASS();
}

TEST workers_are_hired_if_wished_and_to_be_had(bench *b)
{
    ASSERT_OK(stopped(b));
    ASSERT_UINT(0, count_of(b, FAKE_NEW_WORKER));
    close_bench(b);
    b->options.worker_per_queue = true;
    b->kernel.release = FAKE_LINUX_6_1;
    ASSERT_OK(running(b));
    ASSERT_UINT(0, count_of(b, FAKE_ATTACH_VRING_WORKER));
    ASSERT_INT(0, b->vhost.last_error.code);
    PASS();
}

/* What an attempt that failed left behind is there for the next one. */
TEST workers_are_hired_once_in_two_attempts(bench *b)
{
    const expected freed = {0x4004af09, "4", {102}};
    b->passed = true;
    b->options.worker_per_queue = true;
    b->queues = 6;
    ASSERT_OK(open_vhost(b));
    fake_kernel_refuse_once(&b->kernel, FAKE_ATTACH_VRING_WORKER, -1, 1, -ENOMEM);
    ASSERT_INT(-ENOMEM, init_device(b));
    CHECK_CALL(kernel_says(b, -ENOMEM, VHOST_WHY_BACKEND_REFUSED, "ATTACH_VRING_WORKER"));
    ASSERT_UINT(1, count_of(b, FAKE_FREE_WORKER));
    CHECK_CALL(ioctl_is(fake_kernel_last(&b->kernel, FAKE_FREE_WORKER, -1), FAKE_FD, &freed));
    ASSERT_OK(init_device(b));
    ASSERT_UINT(4, count_of(b, FAKE_NEW_WORKER));
    ASSERT_UINT(1, count_of(b, FAKE_SET_OWNER));
    for (uint32_t q = 3; q < 6; q++) {
        ASSERT(b->kernel.fds[0].ring[q].worker != 0);
    }
    PASS();
}

TEST a_worker_that_cannot_be_freed_is_not_what_is_told(bench *b)
{
    b->options.worker_per_queue = true;
    ASSERT_OK(open_vhost(b));
    fault_arm(&b->f->fault, FAULT_ONCE, UINT_MAX, 0);
    fake_kernel_refuse_once(&b->kernel, FAKE_ATTACH_VRING_WORKER, -1, 0, -ENOMEM);
    ASSERT_INT(-ENOMEM, init_device(b));
    unsigned calls = b->f->fault.calls;
    fault_disarm(&b->f->fault);
    close_bench(b);
    ASSERT(calls > 0);
    ASSERT_OK(open_vhost(b));
    fault_arm_operation(&b->f->fault, 6); /* open, FIONBIO, owner, new worker, attach, free */
    fake_kernel_refuse_once(&b->kernel, FAKE_ATTACH_VRING_WORKER, -1, 0, -ENOMEM);
    ASSERT_INT(-ENOMEM, init_device(b));
    ASSERT_INT(-EIO, fake_kernel_last(&b->kernel, FAKE_FREE_WORKER, -1)->result);
    CHECK_CALL(kernel_says(b, -ENOMEM, VHOST_WHY_BACKEND_REFUSED, "ATTACH_VRING_WORKER"));
    PASS();
}

/* ---- start, stop, and what fails ---- */

TEST a_start_that_is_refused_leaves_the_device_stopped(bench *b)
{
    ASSERT_OK(stopped(b));
    fake_kernel_refuse_once(&b->kernel, start_op(b), -1, 0, -ENOMEM);
    fake_kernel_forget(&b->kernel);
    ASSERT_FAILS(b->f, vhost_device_start(&b->device), &b->device.last_error, -ENOMEM,
                 VHOST_WHY_BACKEND_REFUSED);
    CHECK_CALL(fixture_names(&b->device.last_error, VHOST_OP_SET_RUNNING, -1));
    ASSERT_INT(VHOST_STATE_STOPPED, b->device.state);
    ASSERT_UINT(1, count_of(b, start_op(b)) + (b->kind == FAKE_SCSI ? count_of(b, stop_op(b)) : 0));
    ASSERT_UINT(b->queues, count_of(b, FAKE_GET_VRING_BASE));
    CHECK_CALL(check_state(b));
    ASSERT_OK(vhost_device_start(&b->device));
    PASS();
}

TEST a_ring_that_is_refused_keeps_the_device_from_running(bench *b)
{
    static const fake_op ops[] = {FAKE_SET_FEATURES,   FAKE_SET_MEM_TABLE,  FAKE_SET_VRING_NUM,
                                  FAKE_SET_VRING_BASE, FAKE_SET_VRING_ADDR, FAKE_SET_VRING_KICK,
                                  FAKE_SET_VRING_CALL, FAKE_SET_VRING_ERR};
    ASSERT_OK(stopped(b));
    for (size_t i = 0; i < sizeof ops / sizeof ops[0]; i++) {
        fake_kernel_forget(&b->kernel);
        fake_kernel_refuse_once(&b->kernel, ops[i], -1, 0, -ENOMEM);
        ASSERT_INT(-ENOMEM, vhost_device_start(&b->device));
        ASSERT_UINT(0, count_of(b, start_op(b)));
        CHECK_CALL(check_state(b));
    }
    ASSERT_OK(vhost_device_start(&b->device));
    PASS();
}

TEST a_stop_that_is_refused_breaks_the_device(bench *b)
{
    ASSERT_OK(running(b));
    fake_kernel_refuse(&b->kernel, stop_op(b), -1, 0, -ENOMEM);
    ASSERT_FAILS(b->f, vhost_device_stop(&b->device), &b->device.last_error, -ENOMEM,
                 VHOST_WHY_BACKEND_REFUSED);
    fake_kernel_relent(&b->kernel);
    ASSERT_INT(VHOST_STATE_BROKEN, b->device.state);
    ASSERT_UINT(0, fake_kernel_open_fds(&b->kernel));
    ASSERT_INT(VHOST_POSITION_CERTAIN, b->queue[0].position.state); /* the ring is empty */
    ASSERT_OK(vhost_device_reset(&b->device));
    ASSERT_OK(driver_comes(b));
    ASSERT_OK(vhost_device_start(&b->device));
    ASSERT(b->kernel.fds[1].running);
    PASS();
}

/* The ring runs on until it is severed: where it is found means nothing. */
TEST a_position_of_a_ring_that_did_not_stop_is_a_guess(bench *b)
{
    ASSERT_OK(running(b));
    fixture_put_available(&b->f->vm, &b->queue[1], 3);
    b->kernel.fds[0].ring[1].base = 2;
    fake_kernel_refuse_once(&b->kernel, stop_op(b), -1, 0, -ENOMEM);
    ASSERT_INT(-ENOMEM, vhost_device_stop(&b->device));
    ASSERT_INT(VHOST_POSITION_GUESSED, b->queue[1].position.state);
    ASSERT_UINT(0, b->queue[1].position.avail);
    ASSERT_UINT(0, count_of(b, FAKE_GET_VRING_BASE));
    PASS();
}

TEST a_position_that_is_not_told_is_a_guess(bench *b)
{
    ASSERT_OK(running(b));
    fixture_put_available(&b->f->vm, &b->queue[1], 1);
    b->kernel.fds[0].ring[0].base = 8;
    fixture_put_used(&b->f->vm, &b->queue[0], 8);
    fake_kernel_refuse_once(&b->kernel, FAKE_GET_VRING_BASE, -1, (int)b->queues - 2, -ENOMEM);
    ASSERT_INT(-ENOMEM, vhost_device_stop(&b->device));
    CHECK_CALL(fixture_names(&b->device.last_error, VHOST_OP_GET_RING_BASE, 1));
    ASSERT_INT(VHOST_POSITION_GUESSED, b->queue[1].position.state);
    ASSERT_INT(VHOST_POSITION_CERTAIN, b->queue[0].position.state);
    ASSERT_UINT(8, b->queue[0].position.avail);
    PASS();
}

/* Whether it was told to stop, last of all, before its fd was closed. */
static enum greatest_test_res stopped_before_it_was_closed(const bench *b, int fd)
{
    const fake_call *last = NULL, *closed = fake_kernel_last(&b->kernel, FAKE_CLOSE, fd);
    for (const fake_call *call = b->kernel.calls; closed && call < closed; call++) {
        last = call->fd == fd ? call : last;
    }
    ASSERT(last != NULL);
    ASSERT_INT(stop_op(b), last->op);
    ASSERT_INT(0, last->result);
    if (b->kind == FAKE_SCSI) {
        return is_endpoint(last, 0x40e8af41ul, FAKE_TARGET);
    }
    ASSERT_U64(0, fake_kernel_number(last->bytes, 4));
    PASS();
}

/* Somebody else may hold the fd open, so closing it is not enough. */
TEST severing_stops_the_device_before_it_closes(bench *b)
{
    ASSERT_OK(running(b));
    vhost_kernel_ops(&b->vhost)->sever(&b->vhost);
    CHECK_CALL(stopped_before_it_was_closed(b, FAKE_FD));
    ASSERT_UINT(0, fake_kernel_open_fds(&b->kernel));
    fake_kernel_forget(&b->kernel);
    vhost_kernel_ops(&b->vhost)->sever(&b->vhost);
    ASSERT_UINT(0, b->kernel.count);
    ASSERT_FAILS(b->f, vhost_device_stop(&b->device), &b->device.last_error, -ENODEV,
                 VHOST_WHY_BACKEND_LOST);
    PASS();
}

TEST a_running_device_is_stopped_by_cleanup(bench *b)
{
    ASSERT_OK(running(b));
    vhost_device_cleanup(&b->device);
    const fake_call *stop = fake_kernel_last(&b->kernel, stop_op(b), FAKE_FD);
    ASSERT(stop == b->kernel.calls);
    ASSERT_UINT(0, fake_kernel_open_fds(&b->kernel));
    PASS();
}

TEST a_broken_device_opens_its_path_anew(bench *b)
{
    ASSERT_OK(running(b));
    ASSERT_OK(vhost_kernel_set_log_fd(&b->vhost, 77));
    ASSERT_OK(break_device(b));
    ASSERT_INT(VHOST_STATE_BROKEN, b->device.state);
    ASSERT_UINT(0, fake_kernel_open_fds(&b->kernel));
    fake_kernel_forget(&b->kernel);
    ASSERT_OK(vhost_device_reset(&b->device));
    ASSERT_UINT(2, b->kernel.opened);
    ASSERT_UINT(1, count_of(b, FAKE_SET_OWNER));
    ASSERT_U64(77, fake_kernel_number(fake_kernel_last(&b->kernel, FAKE_SET_LOG_FD, -1)->bytes, 4));
    ASSERT_U64(b->kind == FAKE_VSOCK ? CID : 0, b->kernel.fds[1].cid);
    ASSERT_OK(driver_comes(b));
    ASSERT_OK(vhost_device_start(&b->device));
    ASSERT(b->kernel.fds[1].running);
    PASS();
}

/* Its endpoint went with the old fd, and is set on the new one. */
TEST a_broken_device_recovers(bench *b)
{
    ASSERT_OK(running(b));
    ASSERT_OK(break_device(b));
    ASSERT_OK(vhost_device_recover(&b->device));
    ASSERT_INT(VHOST_STATE_RUNNING, b->device.state);
    ASSERT(b->kernel.fds[1].running);
    PASS();
}

TEST a_refusal_names_the_ioctl_and_no_pair(bench *b)
{
    ASSERT_OK(stopped(b));
    fake_kernel_refuse(&b->kernel, FAKE_SET_VRING_KICK, -1, 1, -EBADF);
    ASSERT_INT(-EBADF, vhost_device_start(&b->device));
    CHECK_CALL(fixture_names(&b->device.last_error, VHOST_OP_SET_RING_KICK, 1));
    CHECK_CALL(kernel_says(b, -EBADF, VHOST_WHY_BACKEND_REFUSED, "SET_VRING_KICK"));
    ASSERT(strstr(b->device.last_error.text, "SET_VRING_KICK") != NULL);
    PASS();
}

/* ---- whose fds ---- */

TEST a_passed_fd_is_closed_by_close_alone(bench *b)
{
    b->passed = true;
    ASSERT_OK(running(b));
    ASSERT(b->kernel.fds[0].patient);
    vhost_device_cleanup(&b->device);
    ASSERT_UINT(1, fake_kernel_open_fds(&b->kernel));
    ASSERT_FALSE(b->kernel.fds[0].running);
    ASSERT_OK(attach_device(b));
    ASSERT_UINT(0, count_of(b, FAKE_SET_OWNER)); /* it had done that */
    ASSERT_OK(vhost_device_start(&b->device));
    vhost_device_cleanup(&b->device);
    vhost_kernel_close(&b->vhost);
    ASSERT_UINT(0, fake_kernel_open_fds(&b->kernel));
    vhost_kernel_close(&b->vhost);
    PASS();
}

TEST a_passed_fd_stays_the_callers_where_opening_fails(bench *b)
{
    b->passed = true;
    fault_arm(&b->f->fault, FAULT_ONCE, 1, 0);
    ASSERT_INT(-ENOMEM, open_vhost(b));
    CHECK_CALL(kernel_says(b, -ENOMEM, VHOST_WHY_MEMORY, "fds"));
    fault_disarm(&b->f->fault);
    vhost_kernel_close(&b->vhost);
    ASSERT_UINT(1, fake_kernel_open_fds(&b->kernel));
    (void)fake_kernel_calls.close(FAKE_FD, &b->kernel);
    b->queues = 0;
    PASS();
}

TEST a_passed_fd_stays_open_where_init_fails(bench *b)
{
    b->passed = true;
    ASSERT_OK(open_vhost(b));
    fake_kernel_refuse_once(&b->kernel, FAKE_GET_FEATURES, -1, 0, -EIO);
    ASSERT_INT(-EIO, init_device(b));
    ASSERT_UINT(1, fake_kernel_open_fds(&b->kernel));
    ASSERT_OK(init_device(b));
    ASSERT_UINT(1, count_of(b, FAKE_SET_OWNER));
    PASS();
}

TEST a_passed_fd_does_not_come_back_after_a_break(bench *b)
{
    b->passed = true;
    ASSERT_OK(running(b));
    ASSERT_OK(break_device(b));
    ASSERT_UINT(0, fake_kernel_open_fds(&b->kernel));
    ASSERT_INT(-ENODEV, vhost_device_reset(&b->device));
    ASSERT_INT(VHOST_STATE_BROKEN, b->device.state);
    CHECK_CALL(kernel_says(b, -ENODEV, VHOST_WHY_KERNEL_SEVERED, "passed"));
    PASS();
}

TEST an_fd_with_an_owner_is_refused(bench *b)
{
    b->passed = true;
    b->kernel.has_owner = true;
    ASSERT_OK(open_vhost(b));
    ASSERT_INT(-EBUSY, init_device(b));
    CHECK_CALL(kernel_says(b, -EBUSY, VHOST_WHY_KERNEL_OWNER, "SET_OWNER"));
    ASSERT_UINT(1, fake_kernel_open_fds(&b->kernel));
    PASS();
}

TEST a_closed_object_is_refused(bench *b)
{
    int32_t value = 0;
    ASSERT_OK(open_vhost(b));
    vhost_kernel_close(&b->vhost);
    ASSERT_INT(-EINVAL, init_device(b));
    ASSERT_INT(-EINVAL, vhost_kernel_ioctl(&b->vhost, "TEST_RUN", TEST_RUN, &value));
    ASSERT_UINT(0, b->kernel.count);
    PASS();
}

/* ---- an IOTLB that sticks: Linux 6.1 keeps it until the fd is closed ---- */

/* The driver before this one used an IOTLB. */
static int sticky(bench *b)
{
    b->kernel.release = FAKE_LINUX_6_1;
    int result = stopped(b);
    return result < 0 ? result : send_features(b, VERSION_1 | PLATFORM);
}

TEST a_reset_opens_the_path_anew(bench *b)
{
    ASSERT_OK(b->kind == FAKE_SCSI ? stopped(b) : sticky(b));
    fake_kernel_forget(&b->kernel);
    ASSERT_OK(vhost_device_reset(&b->device));
    ASSERT_UINT(2, b->kernel.opened);
    ASSERT_FALSE(b->kernel.fds[0].open);
    ASSERT_U64(b->kind == FAKE_VSOCK ? CID : 0, b->kernel.fds[1].cid);
    ASSERT(b->kernel.calls[0].op == FAKE_CLOSE && b->kernel.calls[1].op == FAKE_OPEN);
    ASSERT_OK(driver_comes(b));
    ASSERT_OK(vhost_device_start(&b->device));
    PASS();
}

TEST a_reset_makes_no_call_on_a_passed_fd(bench *b)
{
    b->passed = true;
    ASSERT_OK(running(b));
    ASSERT_OK(vhost_device_stop(&b->device));
    fake_kernel_forget(&b->kernel);
    ASSERT_OK(vhost_device_reset(&b->device));
    ASSERT_UINT(0, b->kernel.count);
    PASS();
}

TEST an_fd_that_cannot_be_opened_anew_breaks_the_device(bench *b)
{
    static const fake_op ops[] = {FAKE_OPEN, FAKE_SET_OWNER};
    for (size_t i = 0; i < 2; i++) {
        ASSERT_OK(sticky(b));
        fake_kernel_refuse(&b->kernel, ops[i], -1, 0, -EMFILE);
        ASSERT_INT(-EMFILE, vhost_device_reset(&b->device));
        ASSERT_INT(VHOST_STATE_BROKEN, b->device.state);
        CHECK_CALL(check_state(b));
        fake_kernel_relent(&b->kernel);
        ASSERT_OK(vhost_device_reset(&b->device));
        ASSERT_OK(driver_comes(b));
        ASSERT_OK(vhost_device_start(&b->device));
        close_bench(b);
    }
    PASS();
}

/* An owner's reset, vhost-net's way out, the others do not have. */
TEST a_passed_fd_that_keeps_its_iotlb_is_stuck(bench *b)
{
    b->passed = true;
    ASSERT_OK(sticky(b));
    ASSERT_OK(vhost_device_reset(&b->device));
    ASSERT_UINT(1, b->kernel.opened);
    ASSERT_OK(driver_comes(b));
    for (int attempt = 0; attempt < 2; attempt++) {
        ASSERT_FAILS(b->f, vhost_device_start(&b->device), &b->device.last_error, -EFAULT,
                     VHOST_WHY_BACKEND_REFUSED);
        CHECK_CALL(kernel_says(b, -EFAULT, VHOST_WHY_KERNEL_STUCK, "start"));
        ASSERT_INT(VHOST_STATE_STOPPED, b->device.state);
    }
    ASSERT_UINT(0, count_of(b, FAKE_RESET_OWNER));
    PASS();
}

TEST a_passed_fd_that_gave_its_iotlb_up_is_not_stuck(bench *b)
{
    b->passed = true;
    ASSERT_OK(stopped(b));
    ASSERT_OK(send_features(b, VERSION_1 | PLATFORM));
    ASSERT_OK(vhost_device_start(&b->device));
    fake_kernel_refuse_once(&b->kernel, stop_op(b), -1, 0, -EFAULT);
    ASSERT_INT(-EFAULT, vhost_kernel_ops(&b->vhost)->set_running(&b->vhost, false));
    ASSERT_INT(VHOST_WHY_BACKEND_REFUSED, b->vhost.last_error.why);
    PASS();
}

TEST a_fault_without_an_iotlb_is_not_taken_for_a_stuck_one(bench *b)
{
    ASSERT_OK(stopped(b));
    fake_kernel_refuse_once(&b->kernel, start_op(b), -1, 0, -EFAULT);
    ASSERT_INT(-EFAULT, vhost_device_start(&b->device));
    ASSERT_INT(VHOST_WHY_BACKEND_REFUSED, b->vhost.last_error.why);
    PASS();
}

/* ---- behind a vIOMMU ---- */

TEST rings_are_told_by_iova_and_mapped_before_it_runs(bench *b)
{
    put_behind_viommu(b);
    ASSERT_OK(stopped(b));
    fake_kernel_forget(&b->kernel);
    ASSERT_OK(vhost_device_start(&b->device));
    for (uint32_t q = 0; q < b->queues; q++) {
        ASSERT_U64(b->queue[q].used, b->kernel.fds[0].ring[q].used);
        ASSERT_U64(b->queue[q].desc, b->kernel.fds[0].ring[q].desc);
    }
    const fake_call *mapped = fake_kernel_last(&b->kernel, FAKE_WRITE, FAKE_FD);
    ASSERT(mapped != NULL && mapped < fake_kernel_last(&b->kernel, start_op(b), FAKE_FD));
    ASSERT_U64(2, fake_kernel_number(mapped->bytes, 4));
    ASSERT_U64(0, fake_kernel_number(mapped->bytes + 4, 4));
    uint64_t iova = fake_kernel_number(mapped->bytes + 8, 8);
    ASSERT_U64(number_of(b->f->host) + (iova - IOVA), fake_kernel_number(mapped->bytes + 24, 8));
    PASS();
}

TEST a_miss_is_answered_and_an_unmap_obeyed(bench *b)
{
    const uint32_t version = 2;
    const uint64_t iova = IOVA + 100 * VHOST_PAGE;
    put_behind_viommu(b);
    ASSERT_OK(running(b));
    memset(b->kernel.message, 0, sizeof b->kernel.message);
    memcpy(b->kernel.message, &version, sizeof version);
    memcpy(b->kernel.message + 8, &iova, sizeof iova);
    b->kernel.message[32] = VHOST_PERMIT_READ;
    b->kernel.message[33] = VHOST_TLB_MISS;
    b->kernel.message_size = FAKE_MESSAGE;
    b->kernel.message_fd = FAKE_FD;
    ASSERT_OK(vhost_device_process(&b->device));
    const fake_call *answer = fake_kernel_last(&b->kernel, FAKE_WRITE, FAKE_FD);
    ASSERT(answer != NULL);
    ASSERT_UINT(VHOST_TLB_MAP, answer->bytes[33]);
    ASSERT(iova - fake_kernel_number(answer->bytes + 8, 8) <
           fake_kernel_number(answer->bytes + 16, 8));
    ASSERT_OK(vhost_device_unmapped(&b->device, iova, VHOST_PAGE));
    const fake_call *unmap = fake_kernel_last(&b->kernel, FAKE_WRITE, FAKE_FD);
    ASSERT_UINT(VHOST_TLB_UNMAP, unmap->bytes[33]);
    ASSERT_U64(iova, fake_kernel_number(unmap->bytes + 8, 8));
    PASS();
}

/* From a driver behind a vIOMMU to one that is not, and back. */
TEST drivers_with_and_without_an_iotlb_take_turns(bench *b)
{
    b->kernel.release = FAKE_LINUX_6_1;
    put_behind_viommu(b);
    ASSERT_OK(running(b));
    for (int turn = 0; turn < 4; turn++) {
        ASSERT_OK(vhost_device_stop(&b->device));
        ASSERT_OK(vhost_device_reset(&b->device));
        if (turn % 2 == 0) {
            take_from_viommu(b);
        } else {
            put_behind_viommu(b);
        }
        ASSERT_OK(driver_comes(b));
        ASSERT_OK(vhost_device_start(&b->device));
        CHECK_CALL(check_state(b));
    }
    ASSERT_UINT(5, b->kernel.opened);
    PASS();
}

TEST a_fault_behind_a_viommu_is_not_taken_for_a_stuck_iotlb(bench *b)
{
    put_behind_viommu(b);
    ASSERT_OK(stopped(b));
    fake_kernel_refuse_once(&b->kernel, start_op(b), -1, 0, -EFAULT);
    ASSERT_INT(-EFAULT, vhost_device_start(&b->device));
    ASSERT_INT(VHOST_WHY_BACKEND_REFUSED, b->vhost.last_error.why);
    PASS();
}

/* ---- the dirty log ---- */

/* Whether this device stands in the way of logging, and why. */
static enum greatest_test_res blocked_for(const bench *b, vhost_why why)
{
    vhost_why blocked = VHOST_WHY_NONE;
    const vhost_device *blocker = vhost_log_blocker(&b->f->vm, NULL, &blocked);
    ASSERT_PTR(why == VHOST_WHY_NONE ? NULL : &b->device, blocker);
    ASSERT_STR_EQ(vhost_why_text(why), vhost_why_text(blocked));
    PASS();
}

TEST what_is_logged_is_as_known_or_as_the_vmm_says(bench *b)
{
    static const struct {
        vhost_kernel_logs logs;
        vhost_why why;
    } cases[] = {{VHOST_KERNEL_LOGS_AS_KNOWN, VHOST_WHY_LOG_PARTIAL},
                 {VHOST_KERNEL_LOGS_ALL, VHOST_WHY_NONE},
                 {VHOST_KERNEL_LOGS_INCOMPLETE, VHOST_WHY_LOG_PARTIAL}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        b->options.logs = cases[i].logs;
        ASSERT_OK(running(b));
        CHECK_CALL(blocked_for(b, cases[i].why));
        ASSERT_INT(cases[i].why == VHOST_WHY_NONE ? 0 : -ENOTSUP, vhost_log_start(&b->f->vm));
        ASSERT_UINT(cases[i].why == VHOST_WHY_NONE, count_of(b, FAKE_SET_LOG_BASE));
        ASSERT_OK(vhost_log_stop(&b->f->vm));
        close_bench(b);
    }
    PASS();
}

/* Whatever the VMM says of it. */
TEST a_kernel_that_does_not_offer_to_log_cannot(bench *b)
{
    b->options.logs = VHOST_KERNEL_LOGS_ALL;
    b->kernel.offers[b->kind].features &= ~LOG_ALL;
    ASSERT_OK(running(b));
    return blocked_for(b, VHOST_WHY_LOG_UNSUPPORTED);
}

TEST vhost_net_logs_all_unless_the_vmm_says_otherwise(bench *b)
{
    const int tap = 300;
    for (int i = 0; i < 2; i++) {
        b->options.logs = i == 0 ? VHOST_KERNEL_LOGS_AS_KNOWN : VHOST_KERNEL_LOGS_INCOMPLETE;
        ASSERT_OK(vhost_kernel_net_open(&b->vhost, FAKE_PATH, &tap, 1, &b->options));
        ASSERT_OK(init_device(b));
        CHECK_CALL(blocked_for(b, i == 0 ? VHOST_WHY_NONE : VHOST_WHY_LOG_PARTIAL));
        close_bench(b);
    }
    PASS();
}

static enum greatest_test_res logs(const bench *b, bool on)
{
    const fake_fd *fd = last_fd(b);
    ASSERT_U64(VERSION_1 | (on ? LOG_ALL : 0), fd->features[0]);
    for (uint32_t q = 0; q < b->queues; q++) {
        ASSERT_INT(on, fd->ring[q].logs);
        ASSERT_U64(b->queue[q].used, fd->ring[q].log);
    }
    ASSERT(fd->running);
    PASS();
}

TEST logging_goes_on_and_off_while_it_runs(bench *b)
{
    b->options.logs = VHOST_KERNEL_LOGS_ALL;
    ASSERT_OK(running(b));
    ASSERT_OK(vhost_log_start(&b->f->vm));
    CHECK_CALL(logs(b, true));
    ASSERT_OK(vhost_log_stop(&b->f->vm));
    CHECK_CALL(logs(b, false));
    ASSERT_UINT(0, count_of(b, start_op(b)));
    ASSERT_UINT(0, count_of(b, stop_op(b)));
    PASS();
}

TEST a_device_that_starts_while_the_vm_logs_does_so(bench *b)
{
    b->options.logs = VHOST_KERNEL_LOGS_ALL;
    ASSERT_OK(stopped(b));
    ASSERT_OK(vhost_log_start(&b->f->vm));
    ASSERT_OK(vhost_device_start(&b->device));
    CHECK_CALL(logs(b, true));
    ASSERT(fake_kernel_last(&b->kernel, FAKE_SET_LOG_BASE, -1) <
           fake_kernel_last(&b->kernel, start_op(b), -1));
    ASSERT_OK(vhost_log_stop(&b->f->vm));
    PASS();
}

TEST the_log_fd_is_told_and_taken_back(bench *b)
{
    static const expected calls[] = {{0x4004af07, "4", {77}}, {0x4004af07, "4", {0xffffffff}}};
    unsigned next = 0;
    ASSERT_OK(running(b));
    ASSERT_OK(vhost_kernel_set_log_fd(&b->vhost, 77));
    ASSERT_OK(vhost_kernel_set_log_fd(&b->vhost, -1));
    IOCTLS_ARE(b, &next, calls);
    PASS();
}

/* ---- any other: what the VMM adds ---- */

TEST the_vmm_is_asked_last_to_run_and_first_to_stop(bench *b)
{
    ASSERT_OK(stopped(b));
    ASSERT_UINT(0, switched.on + switched.off);
    ASSERT_OK(vhost_device_start(&b->device));
    ASSERT_INT(FAKE_TEST_RUN, b->kernel.calls[b->kernel.count - 1 - b->queues].op); /* kicks */
    ASSERT_UINT(1, switched.on);
    ASSERT_PTR(&b->kernel, switched.user);
    fake_kernel_forget(&b->kernel);
    ASSERT_OK(vhost_device_stop(&b->device));
    ASSERT_INT(FAKE_TEST_RUN, b->kernel.calls[0].op);
    ASSERT_UINT(1, switched.on);
    ASSERT_UINT(1, switched.off);
    PASS();
}

TEST a_vmm_that_refuses_to_run_is_undone(bench *b)
{
    ASSERT_OK(stopped(b));
    switched.refusal = -ENODATA;
    fake_kernel_forget(&b->kernel);
    ASSERT_FAILS(b->f, vhost_device_start(&b->device), &b->device.last_error, -ENODATA,
                 VHOST_WHY_BACKEND_REFUSED);
    CHECK_CALL(fixture_names(&b->device.last_error, VHOST_OP_SET_RUNNING, -1));
    ASSERT_INT(VHOST_STATE_STOPPED, b->device.state);
    ASSERT_UINT(0, switched.off);
    ASSERT_UINT(b->queues, count_of(b, FAKE_GET_VRING_BASE));
    ASSERT_OK(vhost_device_start(&b->device));
    PASS();
}

TEST a_vmm_that_refuses_to_stop_breaks_the_device(bench *b)
{
    ASSERT_OK(running(b));
    switched.refusal = -ENODATA;
    ASSERT_INT(-ENODATA, vhost_device_stop(&b->device));
    ASSERT_INT(VHOST_STATE_BROKEN, b->device.state);
    ASSERT_UINT(2, switched.off); /* once more before the fd is closed */
    CHECK_CALL(stopped_before_it_was_closed(b, FAKE_FD));
    PASS();
}

TEST a_vmm_may_have_nothing_to_add(bench *b)
{
    b->options.set_running = NULL;
    ASSERT_OK(running(b));
    ASSERT_OK(vhost_device_stop(&b->device));
    ASSERT_UINT(b->queues, b->kernel.count);
    ASSERT_UINT(0, switched.on + switched.off);
    PASS();
}

TEST only_another_asks_the_vmm(bench *b)
{
    b->options.set_running = switch_device;
    ASSERT_OK(running(b));
    ASSERT_OK(vhost_device_stop(&b->device));
    ASSERT_UINT(0, switched.on + switched.off);
    PASS();
}

static int answer_seven(int fd, unsigned long request, void *argument, void *user)
{
    return request == NEVER_HEARD_OF ? 7 : fake_kernel_calls.ioctl(fd, request, argument, user);
}

TEST an_ioctl_is_passed_through(bench *b)
{
    uint64_t value = 0;
    b->calls = fake_kernel_calls;
    b->calls.ioctl = answer_seven;
    b->options.calls = &b->calls;
    ASSERT_OK(stopped(b));
    fake_kernel_forget(&b->kernel);
    ASSERT_INT(7, vhost_kernel_ioctl(&b->vhost, "SEVEN", NEVER_HEARD_OF, &value));
    fake_kernel_refuse(&b->kernel, FAKE_GET_FEATURES, -1, 0, -EDOM);
    ASSERT_INT(-EDOM, vhost_kernel_ioctl(&b->vhost, "EVERYTHING", 0x8008af00ul, &value));
    CHECK_CALL(kernel_says(b, -EDOM, VHOST_WHY_BACKEND_REFUSED, "EVERYTHING"));
    fake_kernel_refuse_once(&b->kernel, FAKE_SET_LOG_FD, -1, 0, -EINTR);
    ASSERT_OK(vhost_kernel_ioctl(&b->vhost, "SET_LOG_FD", 0x4004af07ul, &value));
    ASSERT_UINT(2, count_of(b, FAKE_SET_LOG_FD));
    PASS();
}

TEST an_ioctl_that_the_kernel_does_not_know_is_not_supported(bench *b)
{
    int32_t tap[2] = {0, -1};
    ASSERT_OK(stopped(b));
    ASSERT_INT(-ENOTSUP, vhost_kernel_ioctl(&b->vhost, "NET_SET_BACKEND", 0x4008af30ul, tap));
    CHECK_CALL(kernel_says(b, -ENOTSUP, VHOST_WHY_NOT_SUPPORTED, "NET_SET_BACKEND"));
    PASS();
}

TEST an_ioctl_needs_an_fd(bench *b)
{
    int32_t value = 0;
    ASSERT_OK(open_path(b));
    ASSERT_INT(-ENODEV, vhost_kernel_ioctl(&b->vhost, "TEST_RUN", TEST_RUN, &value));
    CHECK_CALL(kernel_says(b, -ENODEV, VHOST_WHY_KERNEL_SEVERED, "TEST_RUN"));
    ASSERT_UINT(0, b->kernel.count);
    PASS();
}

/* ---- old kernels, interrupted calls ---- */

/* All that a device does in its life, and all options. */
static enum greatest_test_res whole_life(bench *b)
{
    b->options.thread = VHOST_KERNEL_THREAD_OF_OWNER;
    b->options.worker_per_queue = true;
    b->options.logs = VHOST_KERNEL_LOGS_ALL;
    ASSERT_OK(running(b));
    ASSERT_OK(grow(b));
    ASSERT_OK(vhost_kernel_set_log_fd(&b->vhost, 77));
    ASSERT_OK(vhost_queue_mask(&b->device, 0));
    ASSERT_OK(vhost_queue_unmask(&b->device, 0));
    ASSERT_OK(vhost_log_start(&b->f->vm));
    ASSERT_OK(vhost_log_stop(&b->f->vm));
    ASSERT_OK(vhost_device_process(&b->device));
    ASSERT_OK(vhost_device_stop(&b->device));
    ASSERT_OK(b->kind == FAKE_SCSI ? 0 : send_features(b, VERSION_1 | PLATFORM));
    ASSERT_OK(vhost_device_reset(&b->device));
    ASSERT_OK(driver_comes(b));
    ASSERT_OK(vhost_device_start(&b->device));
    vhost_device_cleanup(&b->device);
    vhost_kernel_close(&b->vhost);
    PASS();
}

TEST every_release_will_do(bench *b)
{
    static const fake_release releases[] = {FAKE_LINUX_6_17, FAKE_LINUX_6_12, FAKE_LINUX_6_1,
                                            FAKE_LINUX_4_19};
    for (size_t i = 0; i < sizeof releases / sizeof releases[0]; i++) {
        b->kernel.release = releases[i];
        CHECK_CALL(whole_life(b));
        ASSERT_INT(0, b->vhost.last_error.code);
    }
    PASS();
}

TEST every_ioctl_may_be_interrupted(bench *b)
{
    b->kernel.interrupts = true;
    return whole_life(b);
}

/* Any call but close, which is done when it is interrupted. */
TEST any_call_may_be_interrupted(bench *b)
{
    for (int op = 0; op < FAKE_OP_COUNT; op++) {
        bool came = op != FAKE_CLOSE;
        for (int skip = 0; came; skip++) {
            fake_kernel_refuse_once(&b->kernel, (fake_op)op, -1, skip, -EINTR);
            CHECK_CALL(whole_life(b));
            came = b->kernel.refused == FAKE_NO_OP;
            fake_kernel_relent(&b->kernel);
            b->kernel.opened = 0;
        }
    }
    PASS();
}

/* ---- every call fails once ---- */

typedef int step(bench *b);

/* After a revival the device runs already. */
static bool is_running(const bench *b)
{
    return b->device.state == VHOST_STATE_RUNNING;
}

static int step_map(bench *b)
{
    return fixture_map_default(b->f);
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

static int step_log_fd(bench *b)
{
    return vhost_kernel_set_log_fd(&b->vhost, 77);
}

static int step_mask(bench *b)
{
    int result = vhost_queue_mask(&b->device, 1);
    return result < 0 ? result : vhost_queue_unmask(&b->device, 1);
}

static int step_log(bench *b)
{
    return vhost_log_start(&b->f->vm);
}

static int step_log_off(bench *b)
{
    return vhost_log_stop(&b->f->vm);
}

static int step_missed(bench *b)
{
    bool missed;
    return b->kind == FAKE_SCSI ? vhost_kernel_scsi_get_events_missed(&b->vhost, &missed) : 0;
}

static int step_stop(bench *b)
{
    return vhost_device_stop(&b->device);
}

/* A driver that uses an IOTLB comes and goes. */
static int step_iotlb(bench *b)
{
    bool has = b->kind != FAKE_SCSI && !b->passed && !is_running(b);
    return has ? send_features(b, VERSION_1 | PLATFORM) : 0;
}

static int step_reset(bench *b)
{
    int result = is_running(b) ? 0 : vhost_device_reset(&b->device);
    return result < 0 || is_running(b) ? result : driver_comes(b);
}

static step *const steps[] = {step_map,     open_vhost,  attach_device, step_start, step_grow,
                              step_log_fd,  step_mask,   step_log,      step_stop,  step_start,
                              step_log_off, step_missed, step_stop,     step_iotlb, step_reset,
                              step_start,   step_stop};

/* Brings a broken device back to life, running. */
static int revive(bench *b)
{
    int result = vhost_device_reset(&b->device);
    if (result >= 0) {
        result = driver_comes(b);
    }
    return result < 0 ? result : vhost_device_start(&b->device);
}

static enum greatest_test_res failure_is_told(const bench *b, step *done, int result)
{
    ASSERT(result == -ENOMEM || result == -EIO || result == -EMFILE || result == -EDQUOT);
    if (result == -EIO && b->vhost.fd_count != 0) {
        ASSERT_INT(-EIO, b->vhost.last_error.code);
    }
    if (done == attach_device || done == step_start || done == step_stop) {
        ASSERT_INT(result, b->device.last_error.code);
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
        if (b->device.state != VHOST_STATE_BROKEN) {
            CHECK_CALL(failure_is_told(b, next, result));
        }
        CHECK_CALL(check_state(b));
        if (b->passed && b->device.state == VHOST_STATE_BROKEN) {
            PASS(); /* for good */
        }
    }
    FAILm("a step fails though nothing stands in its way");
}

static enum greatest_test_res life_with_failures(bench *b)
{
    b->options.thread = VHOST_KERNEL_THREAD_OF_OWNER;
    b->options.worker_per_queue = true;
    b->options.logs = VHOST_KERNEL_LOGS_ALL;
    for (size_t i = 0; i < sizeof steps / sizeof steps[0]; i++) {
        CHECK_CALL(take_step(b, steps[i]));
        if (b->passed && b->device.state == VHOST_STATE_BROKEN) {
            PASS(); /* for good */
        }
    }
    PASS();
}

/* From some call on nothing works any more. */
static enum greatest_test_res life_without_mercy(bench *b)
{
    int result = 0;
    b->options.worker_per_queue = true;
    b->options.logs = VHOST_KERNEL_LOGS_ALL;
    for (size_t i = 0; i < sizeof steps / sizeof steps[0] && result >= 0; i++) {
        result = steps[i](b);
    }
    vhost_device_cleanup(&b->device);
    vhost_kernel_close(&b->vhost);
    PASS();
}

typedef struct ordeal {
    fault_plan plan;
    unsigned distance;
    fake_release release;
    enum greatest_test_res (*life)(bench *b);
} ordeal;

static enum greatest_test_res fails_at_every_call(bench *b, const ordeal *o)
{
    fixture *f = b->f;
    fake_kind kind = b->kind;
    bool hit = true, passed = b->passed;
    for (unsigned nth = 1; hit; nth++) {
        open_bench(b, f, kind);
        b->kernel.release = o->release;
        b->passed = passed;
        fault_arm(&f->fault, o->plan, nth, o->distance);
        enum greatest_test_res result = o->life(b);
        hit = f->fault.hit;
        const char *message = greatest_info.msg;
        close_bench(b);
        greatest_info.msg = message;
        CHECK_CALL(result);
        ASSERT_STR_EQ("", b->kernel.complaint);
        ASSERT_UINT(0, b->passed && b->vhost.kind == NULL ? 0 : fake_kernel_open_fds(&b->kernel));
        CHECK_CALL(fixture_renew(f));
    }
    PASS();
}

TEST any_call_may_fail_once(bench *b)
{
    static const ordeal newest = {FAULT_ONCE, 0, FAKE_LINUX_6_17, life_with_failures};
    static const ordeal old = {FAULT_ONCE, 0, FAKE_LINUX_6_1, life_with_failures};
    CHECK_CALL(fails_at_every_call(b, &newest));
    return fails_at_every_call(b, &old);
}

TEST any_two_calls_may_fail(bench *b)
{
    for (unsigned distance = 1; distance <= 6; distance++) {
        ordeal o = {FAULT_TWICE, distance, FAKE_LINUX_6_17, life_with_failures};
        CHECK_CALL(fails_at_every_call(b, &o));
    }
    PASS();
}

TEST a_kernel_may_stop_working(bench *b)
{
    static const ordeal o = {FAULT_EVER_AFTER, 0, FAKE_LINUX_6_17, life_without_mercy};
    return fails_at_every_call(b, &o);
}

TEST any_call_on_a_passed_fd_may_fail_once(bench *b)
{
    static const ordeal o = {FAULT_ONCE, 0, FAKE_LINUX_6_1, life_with_failures};
    b->passed = true;
    return fails_at_every_call(b, &o);
}

/* ---- system calls: manual, chapter 4 ---- */

#define OP(NAME) BIT(FAKE_##NAME)

#define OWNS (OP(OPEN) | OP(CLOSE) | OP(FIONBIO) | OP(SET_FORK_FROM_OWNER) | OP(SET_OWNER))
#define OPENS                                                                                      \
    (OWNS | OP(READ) | OP(GET_FEATURES_ARRAY) | OP(GET_FEATURES) | OP(GET_BACKEND_FEATURES))
#define STARTS                                                                                     \
    (OP(SET_FEATURES) | OP(SET_MEM_TABLE) | OP(SET_VRING_CALL) | OP(SET_VRING_ERR) |               \
     OP(SET_VRING_NUM) | OP(SET_VRING_BASE) | OP(SET_VRING_ADDR) |                                 \
     OP(SET_VRING_BUSYLOOP_TIMEOUT) | OP(SET_VRING_ENDIAN) | OP(SET_VRING_KICK) | OP(WRITE))
#define LOGS (OP(SET_LOG_BASE) | OP(SET_FEATURES) | OP(SET_VRING_ADDR))

typedef struct life {
    uint64_t init, start, stop, again, reset, cleanup, mask, commit, log, broken, close;
} life;

/* The calls since the last time. */
static uint64_t made_now(bench *b)
{
    uint64_t made = fake_kernel_set(&b->kernel);
    fake_kernel_forget(&b->kernel);
    return made;
}

static int first_half(bench *b, life *made)
{
    int result = fixture_map_default(b->f) | open_vhost(b);
    fake_kernel_forget(&b->kernel);
    result |= attach_device(b);
    made->init = made_now(b);
    b->queue[0].busy_loop_us = 5;
    const uint16_t one = 1;
    unsigned char first;
    memcpy(&first, &one, 1);
    b->queue[0].big_endian = first == 1;
    result |= vhost_device_start(&b->device);
    made->start = made_now(b);
    result |= grow(b);
    made->commit = made_now(b);
    result |= vhost_queue_mask(&b->device, 0) | vhost_queue_unmask(&b->device, 0);
    made->mask = made_now(b);
    result |= vhost_log_start(&b->f->vm) | vhost_log_stop(&b->f->vm);
    made->log = made_now(b);
    return result;
}

static int second_half(bench *b, life *made)
{
    int result = vhost_device_stop(&b->device);
    made->stop = made_now(b);
    result |= vhost_device_reset(&b->device);
    made->again = made_now(b);
    result |= driver_comes(b) | vhost_device_start(&b->device) | fixture_map_default(b->f);
    fake_kernel_forget(&b->kernel);
    result |= break_device(b);
    made->broken = made_now(b);
    result |= vhost_device_reset(&b->device);
    made->reset = made_now(b);
    vhost_device_cleanup(&b->device);
    made->cleanup = made_now(b);
    vhost_kernel_close(&b->vhost);
    made->close = made_now(b);
    return result;
}

/* What a function made is what the manual lists: not more, and not less. */
static enum greatest_test_res made_as_listed(uint64_t listed, uint64_t made)
{
    for (int op = 0; op < FAKE_OP_COUNT; op++) {
        const char *name = fake_kernel_name((fake_op)op);
        ASSERT_STR_EQ((listed >> op & 1) != 0 ? name : "", (made >> op & 1) != 0 ? name : "");
    }
    PASS();
}

/* What each kind adds to what all make. */
static uint64_t furnishes(const bench *b)
{
    const uint64_t workers = OP(NEW_WORKER) | OP(ATTACH_VRING_WORKER);
    return b->kind == FAKE_VSOCK  ? OP(VSOCK_SET_GUEST_CID)
           : b->kind == FAKE_SCSI ? OP(SCSI_GET_ABI_VERSION) | workers
                                  : workers;
}

TEST the_system_calls_are_those_of_the_manual(bench *b)
{
    const uint64_t on = BIT(start_op(b)), off = BIT(stop_op(b)) | OP(GET_VRING_BASE);
    const uint64_t version = b->kind == FAKE_SCSI ? 0 : OP(SET_BACKEND_FEATURES);
    life made;
    b->options.thread = VHOST_KERNEL_THREAD_OF_OWNER;
    b->options.worker_per_queue = true;
    b->options.logs = VHOST_KERNEL_LOGS_ALL;
    b->accepted = fixture_features(0, 0);
    ASSERT_OK(first_half(b, &made));
    ASSERT_OK(second_half(b, &made));
    CHECK_CALL(made_as_listed(OPENS | furnishes(b), made.init));
    CHECK_CALL(made_as_listed(STARTS | version | on, made.start));
    CHECK_CALL(made_as_listed(OP(SET_MEM_TABLE), made.commit));
    CHECK_CALL(made_as_listed(OP(SET_VRING_CALL), made.mask));
    CHECK_CALL(made_as_listed(LOGS | version, made.log));
    CHECK_CALL(made_as_listed(off, made.stop));
    CHECK_CALL(made_as_listed(OWNS | furnishes(b), made.again));
    CHECK_CALL(made_as_listed(OP(SET_MEM_TABLE) | off | OP(CLOSE), made.broken));
    CHECK_CALL(made_as_listed(OPENS | furnishes(b), made.reset));
    CHECK_CALL(made_as_listed(OP(CLOSE), made.cleanup));
    CHECK_CALL(made_as_listed(0, made.close));
    PASS();
}

TEST a_steady_state_allocates_nothing(bench *b)
{
    ASSERT_OK(running(b));
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

/* ---- the suite ---- */

static void numbers_and_bytes(void)
{
    RUN_KIND(init_of_vsock_makes_these_ioctls, FAKE_VSOCK);
    RUN_KIND(init_of_scsi_makes_these_ioctls, FAKE_SCSI);
    RUN_KIND(init_of_another_makes_these_ioctls, FAKE_OTHER);
    RUN_KINDS(the_thread_is_chosen_before_there_is_one);
    RUN_KINDS(start_makes_these_ioctls_and_runs_last);
    RUN_KINDS(queues_are_kicked_once_they_run);
    RUN_KIND(a_queue_that_is_not_ready_is_not_told_of, FAKE_SCSI);
    RUN_KIND(a_queue_that_is_not_ready_is_not_told_of, FAKE_OTHER);
    RUN_KIND(vsock_runs_both_queues_or_none, FAKE_VSOCK);
    RUN_KIND(a_queue_that_was_refused_is_not_remembered, FAKE_SCSI);
    RUN_KIND(a_queue_that_was_refused_is_not_remembered, FAKE_OTHER);
    RUN_KIND(a_queue_of_a_former_life_is_not_run, FAKE_SCSI);
    RUN_KIND(a_queue_of_a_former_life_is_not_run, FAKE_OTHER);
    RUN_KINDS(an_object_that_is_closed_too_early_breaks_its_device);
    RUN_KIND(an_fd_that_is_none_is_refused, FAKE_OTHER);
    RUN_KIND(an_object_that_was_never_opened_is_refused, FAKE_OTHER);
    RUN_KIND(a_passed_fd_remembers_queues_over_cleanup, FAKE_SCSI);
    RUN_KIND(a_passed_fd_remembers_queues_over_cleanup, FAKE_OTHER);
    RUN_KIND(a_path_opened_anew_knows_no_former_life, FAKE_SCSI);
    RUN_KIND(a_path_opened_anew_knows_no_former_life, FAKE_OTHER);
    RUN_KINDS(a_device_that_runs_is_not_told_to_run);
    RUN_KINDS(stop_makes_these_ioctls_and_stops_first);
    RUN_KINDS(cleanup_closes_and_no_more);
    RUN_KINDS(opening_makes_no_call);
    RUN_KINDS(positions_are_sent_and_handed_back);
    RUN_KINDS(masking_changes_the_call_and_nothing_else);
    RUN_KINDS(a_new_map_is_a_new_table_while_it_runs);
}

static void facts(void)
{
    RUN_KINDS(features_are_the_kernels_to_offer);
    RUN_KINDS(features_that_are_not_offered_are_refused);
    RUN_KIND(scsi_has_as_many_queues_as_wished, FAKE_SCSI);
    RUN_KIND(more_queues_than_there_are_is_refused, FAKE_VSOCK);
    RUN_KIND(more_queues_than_there_are_is_refused, FAKE_OTHER);
    RUN_KINDS(an_fd_is_read_where_it_has_an_iotlb);
    RUN_KINDS(queues_do_not_start_and_stop_alone);
    RUN_KINDS(there_is_no_tap_to_attach);
}

static void arguments(void)
{
    RUN_KIND(a_cid_that_no_guest_has_is_refused, FAKE_VSOCK);
    RUN_KIND(the_first_and_the_last_cid_reach_the_kernel, FAKE_VSOCK);
    RUN_KIND(a_cid_in_use_says_so, FAKE_VSOCK);
    RUN_KIND(a_cid_that_is_refused_otherwise_is_not_in_use, FAKE_VSOCK);
    RUN_KIND(a_wwpn_has_1_to_223_bytes, FAKE_SCSI);
    RUN_KIND(another_has_a_queue_at_least, FAKE_OTHER);
    RUN_KINDS(a_path_has_1_to_63_bytes);
    RUN_KINDS(a_path_that_is_not_there_is_told);
}

static void scsi(void)
{
    RUN_KIND(an_abi_that_is_too_new_is_refused, FAKE_SCSI);
    RUN_KIND(a_target_that_is_not_there_leaves_the_device_stopped, FAKE_SCSI);
    RUN_KIND(a_target_in_use_leaves_the_device_stopped, FAKE_SCSI);
    RUN_KIND(an_endpoint_is_never_set_twice, FAKE_SCSI);
    RUN_KIND(an_endpoint_that_cannot_be_cleared_breaks_the_device, FAKE_SCSI);
    RUN_KIND(an_error_of_clearing_is_not_taken_for_a_target, FAKE_SCSI);
    RUN_KIND(events_missed_are_read_and_set, FAKE_SCSI);
    RUN_KIND(events_missed_that_cannot_be_read_are_not_told, FAKE_SCSI);
    RUN_KIND(only_scsi_has_events_to_miss, FAKE_VSOCK);
    RUN_KIND(each_queue_of_requests_but_the_first_gets_a_worker, FAKE_SCSI);
    RUN_KIND(each_queue_of_another_but_the_first_gets_a_worker, FAKE_OTHER);
    RUN_KIND(workers_are_hired_if_wished_and_to_be_had, FAKE_SCSI);
    RUN_KIND(workers_are_hired_once_in_two_attempts, FAKE_SCSI);
    RUN_KIND(a_worker_that_cannot_be_freed_is_not_what_is_told, FAKE_SCSI);
}

static void start_and_stop(void)
{
    RUN_KINDS(a_start_that_is_refused_leaves_the_device_stopped);
    RUN_KINDS(a_ring_that_is_refused_keeps_the_device_from_running);
    RUN_KINDS(a_stop_that_is_refused_breaks_the_device);
    RUN_KINDS(a_position_of_a_ring_that_did_not_stop_is_a_guess);
    RUN_KINDS(a_position_that_is_not_told_is_a_guess);
    RUN_KINDS(severing_stops_the_device_before_it_closes);
    RUN_KINDS(a_running_device_is_stopped_by_cleanup);
    RUN_KINDS(a_broken_device_opens_its_path_anew);
    RUN_KINDS(a_broken_device_recovers);
    RUN_KINDS(a_refusal_names_the_ioctl_and_no_pair);
}

static void fds(void)
{
    RUN_KINDS(a_passed_fd_is_closed_by_close_alone);
    RUN_KINDS(a_passed_fd_stays_the_callers_where_opening_fails);
    RUN_KINDS(a_passed_fd_stays_open_where_init_fails);
    RUN_KINDS(a_passed_fd_does_not_come_back_after_a_break);
    RUN_KINDS(an_fd_with_an_owner_is_refused);
    RUN_KINDS(a_closed_object_is_refused);
}

#define RUN_WITH_IOTLB(TEST_NAME)                                                                  \
    do {                                                                                           \
        RUN_KIND(TEST_NAME, FAKE_VSOCK);                                                           \
        RUN_KIND(TEST_NAME, FAKE_OTHER);                                                           \
    } while (0)

static void iotlbs(void)
{
    RUN_KINDS(a_reset_opens_the_path_anew);
    RUN_KINDS(a_reset_makes_no_call_on_a_passed_fd);
    RUN_WITH_IOTLB(an_fd_that_cannot_be_opened_anew_breaks_the_device);
    RUN_WITH_IOTLB(a_passed_fd_that_keeps_its_iotlb_is_stuck);
    RUN_WITH_IOTLB(a_passed_fd_that_gave_its_iotlb_up_is_not_stuck);
    RUN_KINDS(a_fault_without_an_iotlb_is_not_taken_for_a_stuck_one);
    RUN_WITH_IOTLB(rings_are_told_by_iova_and_mapped_before_it_runs);
    RUN_WITH_IOTLB(a_miss_is_answered_and_an_unmap_obeyed);
    RUN_WITH_IOTLB(drivers_with_and_without_an_iotlb_take_turns);
    RUN_WITH_IOTLB(a_fault_behind_a_viommu_is_not_taken_for_a_stuck_iotlb);
}

static void dirty_log(void)
{
    RUN_KINDS(what_is_logged_is_as_known_or_as_the_vmm_says);
    RUN_KINDS(a_kernel_that_does_not_offer_to_log_cannot);
    RUN_KIND(vhost_net_logs_all_unless_the_vmm_says_otherwise, FAKE_NET);
    RUN_KINDS(logging_goes_on_and_off_while_it_runs);
    RUN_KINDS(a_device_that_starts_while_the_vm_logs_does_so);
    RUN_KINDS(the_log_fd_is_told_and_taken_back);
}

static void additions(void)
{
    RUN_KIND(the_vmm_is_asked_last_to_run_and_first_to_stop, FAKE_OTHER);
    RUN_KIND(a_vmm_that_refuses_to_run_is_undone, FAKE_OTHER);
    RUN_KIND(a_vmm_that_refuses_to_stop_breaks_the_device, FAKE_OTHER);
    RUN_KIND(a_vmm_may_have_nothing_to_add, FAKE_OTHER);
    RUN_KIND(only_another_asks_the_vmm, FAKE_VSOCK);
    RUN_KIND(only_another_asks_the_vmm, FAKE_SCSI);
    RUN_KINDS(an_ioctl_is_passed_through);
    RUN_KINDS(an_ioctl_that_the_kernel_does_not_know_is_not_supported);
    RUN_KINDS(an_ioctl_needs_an_fd);
}

static void failures_and_lists(void)
{
    RUN_KINDS(every_release_will_do);
    RUN_KINDS(every_ioctl_may_be_interrupted);
    RUN_KINDS(any_call_may_be_interrupted);
    RUN_KINDS(any_call_may_fail_once);
    RUN_KINDS(any_two_calls_may_fail);
    RUN_KINDS(a_kernel_may_stop_working);
    RUN_KINDS(any_call_on_a_passed_fd_may_fail_once);
    RUN_KINDS(the_system_calls_are_those_of_the_manual);
    RUN_KINDS(a_steady_state_allocates_nothing);
}

SUITE(kernel_whole_suite)
{
    numbers_and_bytes();
    facts();
    arguments();
    scsi();
    start_and_stop();
    fds();
    iotlbs();
    dirty_log();
    additions();
    failures_and_lists();
}
