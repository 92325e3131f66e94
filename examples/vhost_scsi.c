/* vhost_scsi.c - a virtio-scsi device on vhost-scsi, without a guest
   SPDX-License-Identifier: MIT OR Unlicense

   shows     What a SCSI host adapter needs of vhost.h and vhost_kernel.h. This program is the
             hypervisor, makes a SCSI target of the kernel with a file as its disk, and plays the
             guest's driver: it writes to the disk and reads from it through two queues, checks
             every byte, resets the disk, plugs another one in, stops, and goes on.
   build     make build/examples/vhost_scsi, or by hand:
             cc -O2 -I. examples/vhost_scsi.c examples/common/?*.c
   run       make demo-vm: on real kernels, in virtual machines.
             vhost_scsi: on this one, as root. It makes a target of its own in configfs, and a file
             in /tmp, and takes both away again.
             vhost_scsi kernel: the same, but it is a failure where that cannot be done.
   expected  Seven numbered steps, each with what was found, and as the last line
             vhost_scsi: ok (/dev/vhost-scsi, Linux 6.12.117, requests: 199)
             Exit status 0 only if all of it held; else the last line is vhost_scsi: FAILED (what),
             and 1.

   The VM of make demo-vm loads    vm-modules: vhost_scsi target_core_file */
#define _GNU_SOURCE
#define VHOST_IMPLEMENTATION
#include "vhost_kernel.h"

#include "common/clock.h"
#include "common/lio_target.h"
#include "common/report.h"
#include "common/scsi_driver.h"
#include "common/virtio_names.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/utsname.h>

#define KIB       UINT64_C(1024)
#define MIB       (1024 * KIB)
#define RAM_SIZE  (8 * MIB)
#define DISK_SIZE (16 * MIB)
#define AREA      (4 * MIB) /* at the beginning of the disk: what we write */
#define PATIENCE  10.0      /* seconds until a request that does not come back is lost */

enum {
    QUEUES = SCSI_FIRST + 2,
    DEPTH = 8
};

typedef enum task {
    PUT,
    GET
} task;

typedef struct demo {
    /* The hypervisor's. */
    vhost_vm vm;
    vhost_backing ram;
    vhost_device device;
    vhost_queue queues[QUEUES];
    vhost_kernel kernel;
    lio_target target;
    /* The guest's. */
    scsi_driver driver;
    uint8_t *pattern; /* what we write, AREA bytes, */
    uint8_t *found;   /* and what we read */
    double progress;  /* when something came back last */

    report report;
} demo;

#define FAIL(...) report_fail(&d->report, __VA_ARGS__)
#define TRY(call) REPORT_TRY(&d->report, call)

static void on_message(vhost_level level, const vhost_error *what, const vhost_device *device,
                       void *user)
{
    demo *d = user;
    (void)device;
    if (level == VHOST_LEVEL_ERROR)
        snprintf(d->report.message, sizeof d->report.message, "%s", what->text);
    fprintf(stderr, "vhost.h, %s: %s\n", level == VHOST_LEVEL_ERROR ? "error" : "note", what->text);
}

static void on_queue_error(vhost_device *device, uint32_t queue, void *user)
{
    demo *d = user;
    (void)device;
    FAIL("the kernel found queue %u broken", (unsigned)queue);
}

static void on_broken(vhost_device *device, void *user)
{
    demo *d = user;
    FAIL("the device broke: %s", device->last_error.text);
}

/* ---- 1. target ------------------------------------------------------------------------------- */

static bool make_target(demo *d)
{
    double begin = clock_now();
    report_step(&d->report, "a target of the kernel");
    int code = lio_target_open(&d->target, 0, DISK_SIZE);
    if (code < 0)
        return FAIL("making %s: %s", d->target.failed, strerror(-code));
    printf("   %s, with one disk: %s, %llu MiB (%.0f ms)\n", d->target.wwpn, d->target.file,
           (unsigned long long)(DISK_SIZE / MIB), (clock_now() - begin) * 1e3);
    return true;
}

/* ---- 2. device ------------------------------------------------------------------------------- */

static bool map_memory(demo *d)
{
    void *host = mmap(NULL, RAM_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (host == MAP_FAILED)
        return FAIL("no memory for a guest: %s", strerror(errno));
    vhost_backing_init(&d->ram, host, RAM_SIZE, -1, 0);
    vhost_section section;
    vhost_section_init(&section, 0, RAM_SIZE, &d->ram, 0);
    return TRY(vhost_memory_begin(&d->vm)) && TRY(vhost_memory_add(&d->vm, &section)) &&
           TRY(vhost_memory_commit(&d->vm));
}

static void show_features(const char *what, const vhost_features *features)
{
    printf("   %s", what);
    for (unsigned bit = 0; bit < 64; bit++) {
        const char *name = virtio_feature_name(virtio_type_find("scsi"), bit);
        if (vhost_features_test(features, bit))
            printf(" %s", name != NULL ? name : "(a newer one)");
    }
    printf("\n");
}

static bool agree_on_features(demo *d)
{
    vhost_features mine = {{0, 0}};
    vhost_features_set(&mine, SCSI_FEATURE_HOTPLUG);
    vhost_features_set(&mine, VHOST_FEATURE_VERSION_1);
    vhost_features offer = vhost_device_offer(&d->device, mine);
    show_features("the kernel has", &d->device.facts.offered);
    show_features("the driver takes", &offer);
    if (!vhost_features_test(&offer, VHOST_FEATURE_VERSION_1))
        return FAIL("VERSION_1 is not offered");
    return TRY(vhost_device_ack(&d->device, offer));
}

static bool attach(demo *d)
{
    vhost_device_options options = {
        .user = d, .on_queue_error = on_queue_error, .on_broken = on_broken};
    for (int i = 0; i < QUEUES; i++)
        vhost_queue_init(&d->queues[i]);
    report_step(&d->report, "a device: a control queue, an event queue, %d for requests",
                QUEUES - SCSI_FIRST);
    if (!TRY(vhost_kernel_scsi_open(&d->kernel, "/dev/vhost-scsi", d->target.wwpn, NULL)) ||
        !TRY(vhost_device_init(&d->device, &d->vm, vhost_kernel_ops(&d->kernel), &d->kernel,
                               d->queues, QUEUES, &options)))
        return false;
    return agree_on_features(d);
}

/* ---- 3. start -------------------------------------------------------------------------------- */

static bool start_timed(demo *d, const char *what)
{
    double begin = clock_now();
    if (!TRY(vhost_device_start(&d->device)))
        return false;
    printf("   %s: the queues run after %.1f ms\n", what, (clock_now() - begin) * 1e3);
    return true;
}

static bool start(demo *d)
{
    report_step(&d->report, "start");
    if (!TRY(scsi_driver_open(&d->driver, d->ram.host, 0, QUEUES, DEPTH)))
        return false;
    for (int i = 0; i < QUEUES; i++) {
        const scsi_queue *from = &d->driver.queues[i];
        vhost_queue *queue = &d->queues[i];
        queue->ready = true;
        queue->size = from->ring.size;
        queue->desc = from->ring.descriptors_gpa;
        queue->avail = from->ring.available_gpa;
        queue->used = from->ring.used_gpa;
        queue->kick_fd = from->kick;
        queue->call_fd = from->call;
    }
    return start_timed(d, "SET_ENDPOINT is the last step, and takes the longest");
}

/* ---- requests come and go -------------------------------------------------------------------- */

/* The event loop of this hypervisor, once around: waits for a call of any queue. */
static bool turn(demo *d)
{
    enum {
        ROOM = 16,
        LONGEST = 100 /* milliseconds */
    };
    struct pollfd polled[QUEUES + ROOM];
    int fds[ROOM];
    uint32_t count = vhost_device_poll_fds(&d->device, fds, ROOM);
    if (count > ROOM)
        return FAIL("%u fds to poll", (unsigned)count);
    for (int i = 0; i < QUEUES; i++)
        polled[i] = (struct pollfd){.fd = d->driver.queues[i].call, .events = POLLIN};
    for (uint32_t i = 0; i < count; i++)
        polled[QUEUES + i] = (struct pollfd){.fd = fds[i], .events = POLLIN};
    scsi_driver_kick(&d->driver);
    if (poll(polled, QUEUES + count, LONGEST) > 0)
        TRY(vhost_device_process(&d->device));
    for (int i = 0; i < QUEUES; i++)
        if (scsi_driver_called(&d->driver, i))
            d->progress = clock_now();
    if (clock_now() > d->progress + PATIENCE)
        FAIL("nothing has happened for %.0f seconds", PATIENCE);
    return d->report.failure[0] == '\0';
}

/* Waits for one request, the only one. */
static bool finish(demo *d, int queue, scsi_request *request)
{
    scsi_driver_submit(&d->driver, queue, request);
    d->progress = clock_now();
    while (scsi_driver_collect(&d->driver, queue) == NULL)
        if (!turn(d))
            return false;
    if (d->driver.fault != NULL)
        return FAIL("%s", d->driver.fault);
    return true;
}

/* The same, and it has to be good. */
static bool finish_well(demo *d, int queue, scsi_request *request, const char *what)
{
    return finish(d, queue, request) &&
           (scsi_good(request) || FAIL("%s: response %u, status %u, sense %u", what,
                                       request->response, request->status, request->sense));
}

/* Block n of the area; 0 is through the first queue, 1 through the second, and so on. shift: then
   0 is through the second. */
static void submit(demo *d, task what, int queue, uint64_t block)
{
    scsi_request *request = scsi_driver_idle(&d->driver, queue);
    uint64_t place = block * SCSI_BUFFER;
    if (what == PUT) {
        scsi_write(request, place, SCSI_BUFFER);
        memcpy(request->data, d->pattern + place, SCSI_BUFFER);
    } else {
        scsi_read(request, place, SCSI_BUFFER);
    }
    scsi_driver_submit(&d->driver, queue, request);
}

static uint64_t block_of(const scsi_request *request)
{
    uint64_t first = (uint64_t)request->command[2] << 24 | (uint64_t)request->command[3] << 16 |
                     (uint64_t)request->command[4] << 8 | request->command[5];
    return first * SCSI_BLOCK / SCSI_BUFFER;
}

static bool take(demo *d, task what, int queue)
{
    const scsi_request *request;
    while ((request = scsi_driver_collect(&d->driver, queue)) != NULL) {
        if (!scsi_good(request))
            return FAIL("queue %d: response %u, status %u, sense %u", queue, request->response,
                        request->status, request->sense);
        if (what == GET)
            memcpy(d->found + block_of(request) * SCSI_BUFFER, request->data, SCSI_BUFFER);
    }
    return d->driver.fault == NULL || FAIL("%s", d->driver.fault);
}

/* All of the area, through all request queues at once: every second block through each of two. */
static bool run(demo *d, task what, int shift)
{
    const int count = QUEUES - SCSI_FIRST;
    uint64_t next[QUEUES - SCSI_FIRST], blocks = AREA / SCSI_BUFFER;
    bool busy = true;
    for (int i = 0; i < count; i++)
        next[i] = (uint64_t)((i + shift) % count);
    d->progress = clock_now();
    while (busy) {
        busy = false;
        for (int i = 0; i < count; i++) {
            const scsi_queue *queue = &d->driver.queues[SCSI_FIRST + i];
            for (; queue->in_flight < DEPTH && next[i] < blocks; next[i] += (uint64_t)count)
                submit(d, what, SCSI_FIRST + i, next[i]);
            busy = busy || queue->in_flight > 0;
        }
        if (busy && !turn(d))
            return false;
        for (int i = 0; i < count; i++)
            if (!take(d, what, SCSI_FIRST + i))
                return false;
    }
    return true;
}

/* ---- 4. who is there ------------------------------------------------------------------------- */

static bool identify(demo *d)
{
    report_step(&d->report, "who is there?");
    scsi_request *request = scsi_driver_idle(&d->driver, SCSI_FIRST);
    scsi_inquiry(request, 96);
    if (!finish_well(d, SCSI_FIRST, request, "INQUIRY"))
        return false;
    printf("   INQUIRY: vendor \"%.8s\", product \"%.16s\"\n", (const char *)request->data + 8,
           (const char *)request->data + 16);

    request = scsi_driver_idle(&d->driver, SCSI_FIRST);
    scsi_test_unit_ready(request);
    if (!finish_well(d, SCSI_FIRST, request, "TEST UNIT READY"))
        return false;
    request = scsi_driver_idle(&d->driver, SCSI_FIRST);
    scsi_read_capacity(request);
    if (!finish_well(d, SCSI_FIRST, request, "READ CAPACITY"))
        return false;
    printf("   TEST UNIT READY: it is\n   READ CAPACITY: %llu KiB\n",
           (unsigned long long)(scsi_capacity(request) / KIB));
    return scsi_capacity(request) == DISK_SIZE || FAIL("the capacity is wrong");
}

/* ---- 5. write and read ----------------------------------------------------------------------- */

/* FNV-1a: for people to see; what is compared is every byte. */
static unsigned long long checksum(const uint8_t *bytes, uint64_t size)
{
    uint64_t sum = UINT64_C(0xcbf29ce484222325);
    for (uint64_t i = 0; i < size; i++)
        sum = (sum ^ bytes[i]) * UINT64_C(0x100000001b3);
    return sum;
}

static void make_pattern(uint8_t *bytes, uint64_t size)
{
    uint64_t state = (uint64_t)(clock_now() * 1e9);
    for (uint64_t i = 0; i < size; i++) {
        state = state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
        bytes[i] = (uint8_t)(state >> 56);
    }
}

static bool read_back(demo *d, int shift)
{
    double begin = clock_now();
    memset(d->found, 0, AREA);
    if (!run(d, GET, shift))
        return false;
    printf("   read      %016llx  in %.0f ms\n", checksum(d->found, AREA),
           (clock_now() - begin) * 1e3);
    return memcmp(d->pattern, d->found, AREA) == 0 || FAIL("something else was read than written");
}

static bool write_and_read(demo *d)
{
    report_step(&d->report, "write %llu MiB, and read them back", (unsigned long long)(AREA / MIB));
    d->pattern = malloc(AREA);
    d->found = malloc(AREA);
    if (d->pattern == NULL || d->found == NULL)
        return FAIL("no memory");
    make_pattern(d->pattern, AREA);
    double begin = clock_now();
    if (!run(d, PUT, 0))
        return false;
    printf("   written   %016llx  in %.0f ms\n", checksum(d->pattern, AREA),
           (clock_now() - begin) * 1e3);
    if (!read_back(d, 1))
        return false;
    if (!lio_target_has(&d->target, 0, d->pattern, AREA))
        return FAIL("the file does not have what was written");
    printf("   the file has the same; each block was read through another queue than written\n");
    return true;
}

/* ---- 6. the other two queues ----------------------------------------------------------------- */

static bool await_answer(demo *d, uint8_t *answer)
{
    d->progress = clock_now();
    while (!scsi_driver_answer(&d->driver, answer))
        if (!turn(d))
            return false;
    return true;
}

/* What has happened to a disk it tells whoever asks for anything next: by sense 6, once for each
   thing. Returns how many things there were; negative: something else went wrong. */
static int attentions(demo *d)
{
    enum {
        MANY = 10
    };
    for (int count = 0; count < MANY; count++) {
        scsi_request *request = scsi_driver_idle(&d->driver, SCSI_FIRST);
        scsi_test_unit_ready(request);
        if (!finish(d, SCSI_FIRST, request))
            return -1;
        if (scsi_good(request))
            return count;
        if (request->sense != 6)
            break;
    }
    FAIL("the disk is not ready");
    return -1;
}

static bool reset_disk(demo *d)
{
    uint8_t answer;
    scsi_driver_reset_lun(&d->driver, 0);
    if (!await_answer(d, &answer))
        return false;
    int count = attentions(d);
    if (count < 0)
        return false;
    printf("   control: LUN 0 is reset, answer %u; it tells of %d thing%s that happened\n", answer,
           count, count == 1 ? "" : "s");
    return (answer == 10 && count == 1) || FAIL("the disk was not reset");
}

static bool await_event(demo *d, scsi_event *event)
{
    d->progress = clock_now();
    while (!scsi_driver_event(&d->driver, event))
        if (!turn(d))
            return false;
    return true;
}

static bool plug_disk(demo *d)
{
    scsi_event came, went;
    scsi_driver_expect(&d->driver, 2);
    scsi_driver_kick(&d->driver);
    if (lio_target_plug(&d->target, 1) < 0)
        return FAIL("plugging in %s: %s", d->target.failed, strerror(errno));
    if (!await_event(d, &came))
        return false;
    if (lio_target_unplug(&d->target, 1) < 0)
        return FAIL("unplugging %s: %s", d->target.failed, strerror(errno));
    if (!await_event(d, &went))
        return false;
    printf("   events: LUN %u came, LUN %u went\n", came.lun, went.lun);
    if (attentions(d) < 0)
        return false;
    return (came.event == 1 && came.lun == 1 && came.reason == 1 && went.event == 1 &&
            went.lun == 1 && went.reason == 2) ||
           FAIL("the events are wrong");
}

static bool use_other_queues(demo *d)
{
    report_step(&d->report, "the control queue, and the event queue");
    return reset_disk(d) && plug_disk(d);
}

/* ---- 7. stop, and start where it was --------------------------------------------------------- */

static bool stop(demo *d)
{
    if (!TRY(vhost_device_stop(&d->device)))
        return false;
    printf("   stopped; positions:");
    for (int i = 0; i < QUEUES; i++) {
        const vhost_position *position = &d->queues[i].position;
        printf(" %u", position->avail);
        if (position->state != VHOST_POSITION_CERTAIN ||
            position->avail != d->driver.queues[i].ring.added)
            return FAIL("queue %d did not stop where its driver is", i);
    }
    printf(", where the driver is\n");
    return true;
}

static bool stop_and_start(demo *d)
{
    report_step(&d->report, "stop, start from these positions, and read once more");
    return stop(d) && start_timed(d, "started again") && read_back(d, 0) && stop(d);
}

/* ---- the whole of it ------------------------------------------------------------------------- */

static void demonstrate(demo *d)
{
    vhost_vm_options vm = {.user = d, .on_message = on_message};
    bool good = TRY(vhost_vm_init(&d->vm, &vm)) && map_memory(d) && make_target(d) && attach(d) &&
                start(d) && identify(d) && write_and_read(d) && use_other_queues(d) &&
                stop_and_start(d);
    (void)good; /* the first failure is kept in d->report.failure */
}

/* Harmless for whatever was not set up. The target cannot go before the device. */
static void tear_down(demo *d)
{
    vhost_device_cleanup(&d->device);
    vhost_kernel_close(&d->kernel);
    (void)vhost_vm_cleanup(&d->vm);
    int code = lio_target_close(&d->target);
    if (code < 0)
        FAIL("taking down %s: %s", d->target.failed, strerror(-code));
    scsi_driver_close(&d->driver);
    if (d->ram.size != 0)
        munmap(d->ram.host, RAM_SIZE);
    free(d->pattern);
    free(d->found);
}

int main(int argc, char **argv)
{
    static demo the_demo; /* fixed address: vhost.h never moves its objects, nor may we */
    demo *d = &the_demo;
    struct utsname system;
    d->report.program = "vhost_scsi";
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (!lio_target_possible()) {
        printf(
            "vhost_scsi: no /dev/vhost-scsi here; make demo-vm runs this in a virtual machine\n");
        return argc > 1 && strcmp(argv[1], "kernel") == 0;
    }
    demonstrate(d);
    tear_down(d);
    return report_end(&d->report, "/dev/vhost-scsi, Linux %s, requests: %llu",
                      uname(&system) == 0 ? system.release : "of unknown version",
                      (unsigned long long)d->driver.done);
}
