/* vhost_kernel.h on every kind of device: the kernel says what it likes in messages about the
   IOTLB, short ones and those of another version included; a vDPA device, which may be another
   process (VDUSE), what it likes of itself; system calls fail or are interrupted; and the VMM calls
   anything in any order.

   The kernel itself complains of what it is told. What failed says why, and in the end nothing is
   left over. */
#include "fake_kernel.h"
#include "fixture.h"
#include "fuzz.h"

#include <string.h>

enum {
    STEPS = 40,
    QUEUES = 4, /* two pairs, or all that another kind may have */
    TAP = 300,
    CID = 3,
    MISS = 1 /* as in <linux/vhost_types.h> */
};

#define IOVA UINT64_C(0x7f0000000000) /* behind the vIOMMU, the guest's memory is here */

typedef struct bench {
    fixture *f;
    fake_kernel kernel;
    vhost_kernel_calls calls;
    vhost_kernel_options options;
    vhost_device_options device_options;
    fake_kind kind;
    bool viommu;
    bool lies; /* now: a vDPA device, of itself */
    bool lied; /* ever: then the kernel may complain of what comes of it */
    vhost_kernel vhost;
    vhost_device device;
    vhost_queue queue[QUEUES];
    uint32_t queues;
} bench;

static bench the;
static dice *the_chance;

static uint64_t roll(uint64_t sides)
{
    return dice_roll(the_chance, sides);
}

static bool now_and_then(void)
{
    return roll(8) == 7;
}

/* ---- what the kernel says ---- */

static void put(unsigned char *bytes, size_t at, uint64_t number, size_t size)
{
    memcpy(bytes + at, &number, size); /* of the host's order, whatever it is */
}

/* Version, iova, size, host address, permit and type. */
static ptrdiff_t say(unsigned char *bytes, size_t room)
{
    unsigned char message[FAKE_MESSAGE];
    size_t size = now_and_then() ? (size_t)roll(FAKE_MESSAGE + 1) : FAKE_MESSAGE;
    memset(message, 0, sizeof message);
    put(message, 0, now_and_then() ? fuzz_number(the_chance) : 1 + roll(2), 4);
    put(message, 8, now_and_then() ? fuzz_number(the_chance) : IOVA + roll(1 << 20), 8);
    put(message, 16, now_and_then() ? fuzz_number(the_chance) : 0, 8);
    put(message, 24, now_and_then() ? fuzz_number(the_chance) : 0, 8);
    message[32] = (unsigned char)(now_and_then() ? roll(256) : roll(4));
    message[33] = (unsigned char)(now_and_then() ? roll(256) : MISS);
    size = size < room ? size : room;
    memcpy(bytes, message, size);
    return (ptrdiff_t)size;
}

static ptrdiff_t read_messages(int fd, void *bytes, size_t size, void *user)
{
    if (fd >= FAKE_FD && roll(4) == 3) {
        return now_and_then() ? -5 : say((unsigned char *)bytes, size);
    }
    return fake_kernel_calls.read(fd, bytes, size, user);
}

/* What an ioctl reads out, of a direction and a size that are in its number. */
static int lie(int fd, unsigned long request, void *argument, void *user)
{
    int result = fake_kernel_calls.ioctl(fd, request, argument, user);
    bool reads = request >> 30 & 2;
    size_t size = request >> 16 & 0x3fff;
    if (the.lies && result >= 0 && reads && size > 0 && now_and_then()) {
        uint64_t number = fuzz_number(the_chance);
        memcpy(argument, &number, size < sizeof number ? size : sizeof number);
        the.lied = true;
    }
    return result;
}

/* ---- the vIOMMU ---- */

static int translate(vhost_device *device, uint64_t iova, bool write, vhost_translation *entry,
                     void *user)
{
    (void)device, (void)write, (void)user;
    entry->iova = iova & ~(uint64_t)(VHOST_PAGE - 1);
    entry->gpa = entry->iova - IOVA;
    entry->size = VHOST_PAGE << roll(6);
    entry->permit = now_and_then() ? (uint8_t)roll(4) : 3;
    return now_and_then() ? -14 : 0;
}

static int watch(vhost_device *device, bool on, void *user)
{
    (void)device, (void)user;
    return on && now_and_then() ? -16 : 0;
}

static const vhost_memory_ops viommu_ops = {NULL, NULL, translate, watch};

/* ---- what the VMM does ---- */

static int open_kind(bench *b)
{
    static const int taps[] = {TAP, TAP + 1};
    vhost_kernel *vhost = &b->vhost;
    switch (b->kind) {
    case FAKE_NET:
        return vhost_kernel_net_open(vhost, FAKE_PATH, taps, QUEUES / 2, &b->options);
    case FAKE_VSOCK:
        return vhost_kernel_vsock_open(vhost, FAKE_VSOCK_PATH, CID, &b->options);
    case FAKE_SCSI:
        return vhost_kernel_scsi_open(vhost, FAKE_SCSI_PATH, FAKE_TARGET, &b->options);
    case FAKE_VDPA:
        return vhost_kernel_vdpa_open(vhost, FAKE_VDPA_PATH, &b->options);
    case FAKE_OTHER:
    case FAKE_KINDS:
        break;
    }
    return vhost_kernel_open(vhost, FAKE_OTHER_PATH, QUEUES, &b->options);
}

static void close_all(bench *b)
{
    vhost_device_cleanup(&b->device);
    vhost_kernel_close(&b->vhost);
}

static uint32_t count_queues(const bench *b)
{
    uint32_t rings = b->vhost.vdpa.queue_count;
    if (b->kind == FAKE_VDPA) {
        return rings < QUEUES ? rings : (uint32_t)QUEUES;
    }
    return b->kind == FAKE_VSOCK ? 2 : (uint32_t)QUEUES;
}

static int open_anew(bench *b)
{
    close_all(b);
    int result = open_kind(b);
    for (int q = 0; q < QUEUES; q++) {
        vhost_queue_init(&b->queue[q]);
    }
    b->queues = count_queues(b);
    return result < 0 ? result
                      : vhost_device_init(&b->device, &b->f->vm, vhost_kernel_ops(&b->vhost),
                                          &b->vhost, b->queue, b->queues, &b->device_options);
}

static int ack(bench *b)
{
    vhost_features accepted = b->device.facts.offered;
    accepted.word[0] &= now_and_then() ? fuzz_number(the_chance) : UINT64_MAX;
    if (!b->viommu && b->kind != FAKE_VDPA) {
        vhost_features_clear(&accepted, VHOST_FEATURE_ACCESS_PLATFORM);
    }
    vhost_features_clear(&accepted, VHOST_FEATURE_LOG_ALL);
    return vhost_device_ack(&b->device, accepted);
}

static int fill(bench *b)
{
    uint64_t base = b->viommu ? IOVA : 0;
    if (b->device.state == VHOST_STATE_RUNNING) {
        return 0;
    }
    for (unsigned q = 0; q < b->queues; q++) {
        vhost_queue *queue = &b->queue[q];
        queue->ready = q == 0 || !now_and_then();
        queue->size = 16U << roll(5);
        queue->desc = base + VHOST_PAGE * (8 + 4 * q);
        queue->avail = queue->desc + VHOST_PAGE;
        queue->used = queue->avail + VHOST_PAGE;
        queue->kick_fd = (int)(500 + q);
        queue->call_fd = (int)(600 + q);
        queue->position.state = (vhost_position_state)roll(3);
        queue->position.avail = (uint16_t)roll(65536);
    }
    return 0;
}

/* The kernel would complain of a device that runs without queues. */
static int start(bench *b)
{
    if (!b->queue[0].ready) {
        (void)fill(b);
    }
    return vhost_device_start(&b->device);
}

static int change_map(bench *b)
{
    vhost_section sections[3];
    unsigned count = 1;
    sections[0] = b->f->low;
    if (roll(2)) {
        sections[count++] = b->f->high;
    }
    if (roll(2)) {
        sections[count++] = fixture_section(b->f, FIXTURE_REMOTE, 1 + roll(4), roll(2));
    }
    return fixture_map(b->f, sections, count);
}

static int of_vdpa(bench *b)
{
    void *page = NULL;
    uint32_t group;
    switch (roll(5)) {
    case 0:
        return vhost_kernel_vdpa_get_group(&b->vhost, (uint32_t)roll(6), &group);
    case 1:
        return vhost_kernel_vdpa_set_space(&b->vhost, (uint32_t)roll(5), (uint32_t)roll(5));
    case 2:
        return vhost_kernel_vdpa_map(&b->vhost, (uint32_t)roll(5), fuzz_number(the_chance),
                                     fuzz_number(the_chance), b->f->host, (uint8_t)roll(5));
    case 3:
        return vhost_kernel_vdpa_unmap(&b->vhost, (uint32_t)roll(5), fuzz_number(the_chance),
                                       fuzz_number(the_chance));
    default:
        if (vhost_kernel_vdpa_map_doorbell(&b->vhost, (uint32_t)roll(6), &page) < 0) {
            return b->vhost.last_error.code;
        }
        return vhost_kernel_vdpa_unmap_doorbell(&b->vhost, page);
    }
}

static int of_kind(bench *b)
{
    bool missed = true;
    int value = 0;
    switch (roll(5)) {
    case 0:
        return vhost_kernel_net_attach(&b->vhost, (uint32_t)roll(3), (int)roll(3) + TAP - 1);
    case 1:
        return vhost_kernel_scsi_get_events_missed(&b->vhost, &missed);
    case 2:
        return vhost_kernel_scsi_set_events_missed(&b->vhost, missed);
    case 3:
        return vhost_kernel_set_log_fd(&b->vhost, (int)roll(2) - 1);
    default:
        return b->kind == FAKE_OTHER ? vhost_kernel_ioctl(&b->vhost, "TEST_RUN", 0x4004af42, &value)
                                     : of_vdpa(b);
    }
}

static int act(bench *b, uint64_t what)
{
    uint8_t bytes[64] = {0};
    uint32_t queue = (uint32_t)roll(5), size = (uint32_t)roll(sizeof bytes);
    switch (what) {
    case 0:
        return start(b);
    case 1:
        return vhost_device_process(&b->device);
    case 2:
        return vhost_device_stop(&b->device);
    case 3:
        return open_anew(b);
    case 4:
        return ack(b);
    case 5:
        return fill(b);
    case 6:
        return change_map(b);
    case 7:
        return vhost_device_reset(&b->device);
    case 8:
        return vhost_device_recover(&b->device);
    case 9:
        return vhost_log_start(&b->f->vm);
    case 10:
        return vhost_log_stop(&b->f->vm);
    case 11:
        return vhost_queue_start(&b->device, queue);
    case 12:
        return vhost_queue_stop(&b->device, queue);
    case 13:
        return vhost_queue_mask(&b->device, queue);
    case 14:
        return vhost_queue_unmask(&b->device, queue);
    case 15:
        return vhost_device_get_config(&b->device, (uint32_t)roll(300), bytes, size);
    case 16:
        return vhost_device_set_config(&b->device, (uint32_t)roll(300), bytes, size);
    case 17:
        return vhost_device_unmapped(&b->device, IOVA + VHOST_PAGE * roll(256), VHOST_PAGE);
    case 18:
        return vhost_device_settled(&b->device);
    case 19:
        return of_vdpa(b);
    default:
        return of_kind(b);
    }
}

/* ---- the whole ---- */

static void forget_errors(bench *b)
{
    b->vhost.last_error.code = b->device.last_error.code = b->f->vm.last_error.code = 0;
}

static bool is_told(const bench *b, int code)
{
    return b->vhost.last_error.code == code || b->device.last_error.code == code ||
           b->f->vm.last_error.code == code || b->device.state == VHOST_STATE_BROKEN;
}

static enum greatest_test_res step(bench *b)
{
    uint64_t what = roll(21);
    if (now_and_then()) {
        fault_arm(&b->f->fault, (fault_plan)roll(3), 1 + (unsigned)roll(40), 1 + (unsigned)roll(4));
    }
    b->lies = b->kind == FAKE_VDPA && roll(4) == 3;
    b->kernel.interrupts = now_and_then();
    forget_errors(b);
    fake_kernel_forget(&b->kernel); /* what comes next is no part of what was */
    int code = act(b, what);
    fault_disarm(&b->f->fault);
    fuzz_note("call %u of kind %d: %d; state %d; %s\n", (unsigned)what, (int)b->kind, code,
              (int)b->device.state, b->kernel.complaint);
    ASSERT(code >= 0 || is_told(b, code));
    ASSERT(b->lied || b->kernel.complaint[0] == '\0');
    PASS();
}

static void open_bench(bench *b, fixture *f)
{
    memset(b, 0, sizeof *b);
    vhost_vm_options options = fixture_vm_options(f);
    b->f = f;
    fake_kernel_init(&b->kernel);
    b->kind = (fake_kind)roll(FAKE_KINDS);
    b->viommu = b->kind != FAKE_VDPA && roll(2);
    b->kernel.release = (fake_release)roll(FAKE_LINUX_6_17 + 1);
    b->kernel.fault = &f->fault;
    b->kernel.allocate = options.allocate;
    b->kernel.user = options.user;
    b->options = fake_kernel_options(&b->kernel);
    b->options.worker_per_queue = roll(2);
    b->options.thread = (vhost_kernel_thread)roll(3);
    b->options.logs = (vhost_kernel_logs)roll(3);
    b->calls = fake_kernel_calls;
    b->calls.read = read_messages;
    b->calls.ioctl = lie;
    b->options.calls = &b->calls;
    b->device_options.memory = b->viommu ? &viommu_ops : NULL;
}

static enum greatest_test_res run(fixture *f)
{
    bench *b = &the;
    enum greatest_test_res result = GREATEST_TEST_RES_PASS;
    open_bench(b, f);
    ASSERT_OK(fixture_map_default(f));
    (void)open_anew(b);
    (void)ack(b);
    (void)fill(b);
    for (int i = 0; i < STEPS && !dice_ended(the_chance) && result == GREATEST_TEST_RES_PASS; i++) {
        result = step(b);
    }
    fake_kernel_relent(&b->kernel);
    close_all(b);
    CHECK_CALL(result);
    ASSERT_UINT(0, fake_kernel_open_fds(&b->kernel));
    PASS();
}

enum greatest_test_res fuzz_once(dice *chance)
{
    the_chance = chance;
    return fixture_run(run, MOCK_SYNCHRONOUS);
}
