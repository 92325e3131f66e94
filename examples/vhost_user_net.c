/* vhost_user_net.c - a virtio-net device whose back-end is another party on a socket
   SPDX-License-Identifier: MIT OR Unlicense

   shows     The second act of the demo: the same guest as in vhost_net.c, over vhost-user. What
             both sides can, memory that is shared by fd, frames that come back byte by byte, the
             dirty log, and a back-end that dies in the middle and comes back.
   build     make build/examples/vhost_user_net
   run       make demo: on a small back-end in a thread of it, tests/support/user_backend.c.
             vhost_user_net SOCKET: on any that sends each frame back, with its MAC addresses
             swapped or not, such as
             dpdk-testpmd --vdev net_vhost0,iface=SOCKET -- --forward-mode=macswap
   expected  Five numbered steps (four on a back-end of yours, which is not killed), and as the
             last line vhost_user_net: ok (21328 frames, each byte of them)
             Exit status 0 only if all of it held. */
#define _GNU_SOURCE
#define VHOST_IMPLEMENTATION
#include "vhost_user.h"

#include "common/clock.h"
#include "common/net_driver.h"
#include "common/report.h"
#include "tests/support/user_backend.h"

#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define KIB      UINT64_C(1024)
#define MIB      (1024 * KIB)
#define RAM_SIZE (16 * MIB)
#define PAGES    (RAM_SIZE / VHOST_PAGE)

enum {
    FRAMES = 20000,
    IN_FLIGHT = 128, /* frames on their way at a time */
    PATIENCE = 10    /* seconds until what has not come is lost */
};

typedef struct demo {
    report report;
    user_backend *own; /* NULL: the back-end is somebody else's */
    char folder[32], path[80];

    vhost_vm vm;
    int ram_fd;
    uint8_t *ram;
    vhost_backing backing;
    vhost_user user;
    vhost_device device;
    vhost_queue queues[2];

    net_driver driver;
    station me, peer;
    uint32_t sent, received; /* numbered frames */
    uint32_t total;
    unsigned submits, fences; /* told by on_trace */
} demo;

static const station guest = {{2, 0, 0, 0, 0, 1}, {10, 0, 0, 1}};
static const station other = {{2, 0, 0, 0, 0, 2}, {10, 0, 0, 2}};

static void on_message(vhost_level level, const vhost_error *what, const vhost_device *device,
                       void *user)
{
    demo *d = user;
    (void)device;
    if (level == VHOST_LEVEL_ERROR)
        snprintf(d->report.message, sizeof d->report.message, "%s", what->text);
}

static void on_trace(const vhost_trace *trace, void *user)
{
    demo *d = user;
    d->submits += trace->event == VHOST_TRACE_OP && trace->op != VHOST_OP_SEVER;
    d->fences += trace->event == VHOST_TRACE_FENCE;
}

/* ---- 1. what both sides can ------------------------------------------------------------------ */

static bool start_own_backend(demo *d)
{
    user_backend_options options = user_backend_defaults(USER_BACKEND_LOOP);
    snprintf(d->folder, sizeof d->folder, "/tmp/vhost-demo-XXXXXX");
    if (mkdtemp(d->folder) == NULL)
        return report_fail(&d->report, "no folder for a socket");
    snprintf(d->path, sizeof d->path, "%s/net.sock", d->folder);
    options.listen_path = d->path;
    options.queues = 2;
    d->own = user_backend_start(&options);
    return d->own != NULL || report_fail(&d->report, "the back-end did not start");
}

static bool share_memory(demo *d)
{
    vhost_section all;
    d->ram_fd = memfd_create("guest", MFD_CLOEXEC);
    if (d->ram_fd < 0 || ftruncate(d->ram_fd, (off_t)RAM_SIZE) < 0)
        return report_fail(&d->report, "no memory for a guest");
    d->ram = mmap(NULL, RAM_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, d->ram_fd, 0);
    if (d->ram == MAP_FAILED)
        return report_fail(&d->report, "no memory for a guest");
    vhost_backing_init(&d->backing, d->ram, RAM_SIZE, d->ram_fd, 0);
    vhost_section_init(&all, 0, RAM_SIZE, &d->backing, 0);
    return REPORT_TRY(&d->report, vhost_memory_begin(&d->vm)) &&
           REPORT_TRY(&d->report, vhost_memory_add(&d->vm, &all)) &&
           REPORT_TRY(&d->report, vhost_memory_commit(&d->vm));
}

static void show_protocol(const vhost_user *user)
{
    printf("   protocol features in use:");
    for (unsigned bit = 0; bit < VHOST_USER_BIT_COUNT; bit++)
        if ((user->protocol >> bit & 1) != 0)
            printf(" %s", vhost_user_protocol_name(bit));
    printf("\n   virtio features 0x%" PRIx64 ", %" PRIu64 " memory slots\n", user->features,
           user->slots);
}

static bool attach(demo *d)
{
    vhost_user_options options = {.retry_ms = 20, .retry_max_ms = 200, .counts_pairs = true};
    vhost_features wanted = {{0, 0}};
    report_step(&d->report, "connect: what both sides can");
    if (!share_memory(d) ||
        !REPORT_TRY(&d->report, vhost_user_connect(&d->user, d->path, &options)))
        return false;
    vhost_queue_init(&d->queues[0]);
    vhost_queue_init(&d->queues[1]);
    if (!REPORT_TRY(&d->report, vhost_device_init(&d->device, &d->vm, vhost_user_ops(), &d->user,
                                                  d->queues, 2, NULL)))
        return false;
    show_protocol(&d->user);
    vhost_features_set(&wanted, VHOST_FEATURE_VERSION_1);
    return REPORT_TRY(&d->report, vhost_device_ack(&d->device, wanted));
}

/* ---- 2. start -------------------------------------------------------------------------------- */

static bool start(demo *d)
{
    static const net_layout where = {
        .ring = {64 * KIB, 1 * MIB},
        .buffers = {2 * MIB, 3 * MIB},
        .header = 4 * KIB,
    };
    report_step(&d->report, "start: all messages in one go, and one wait for all answers");
    if (!REPORT_TRY(&d->report, net_driver_open(&d->driver, d->ram, &where)))
        return false;
    for (int i = 0; i < 2; i++) {
        vhost_queue *queue = &d->queues[i];
        queue->ready = true;
        queue->size = d->driver.ring[i].size;
        queue->desc = d->driver.ring[i].descriptors_gpa;
        queue->avail = d->driver.ring[i].available_gpa;
        queue->used = d->driver.ring[i].used_gpa;
        queue->kick_fd = d->driver.kick[i];
        queue->call_fd = d->driver.call[i];
    }
    d->submits = d->fences = 0;
    if (!REPORT_TRY(&d->report, vhost_device_start(&d->device)))
        return false;
    printf("   %u operations, %u wait\n", d->submits, d->fences);
    return d->fences == 1 || report_fail(&d->report, "%u waits", d->fences);
}

/* ---- frames ---------------------------------------------------------------------------------- */

static bool send_next(demo *d)
{
    frame next;
    frame_numbered(&next, &guest, &other, d->sent + 1, FRAME_MAX);
    if (!net_driver_send(&d->driver, &next))
        return false;
    d->sent++;
    return true;
}

/* As it was sent, or with its MAC addresses swapped. */
static bool take(demo *d, const frame *got)
{
    frame straight, swapped;
    uint32_t number;
    if (!frame_number(got, &number))
        return true; /* not ours */
    frame_numbered(&straight, &guest, &other, number, FRAME_MAX);
    swapped = straight;
    memcpy(swapped.bytes, straight.bytes + 6, 6);
    memcpy(swapped.bytes + 6, straight.bytes, 6);
    if (!frame_equal(got, &straight) && !frame_equal(got, &swapped))
        return report_fail(&d->report, "frame %u came back damaged", number);
    if (number != d->received + 1)
        return report_fail(&d->report, "frame %u came after frame %u", number, d->received);
    d->received++;
    return true;
}

static bool interrupt(demo *d, int queue)
{
    frame got;
    bool good = true;
    if (!net_driver_called(&d->driver, queue))
        return true;
    if (queue == NET_TRANSMIT)
        net_driver_reclaim(&d->driver);
    while (good && queue == NET_RECEIVE && net_driver_receive(&d->driver, &got))
        good = take(d, &got);
    return good && (d->driver.fault == NULL || report_fail(&d->report, "%s", d->driver.fault));
}

/* The event loop, once around: the library says what to poll, and for how long at most. */
static bool turn(demo *d)
{
    struct pollfd polled[16] = {{.fd = d->driver.call[0], .events = POLLIN},
                                {.fd = d->driver.call[1], .events = POLLIN}};
    int fds[14], timeout = vhost_user_timeout(&d->user);
    uint32_t count = vhost_user_poll_fds(&d->user, fds, 14);
    for (uint32_t i = 0; i < count && i < 14; i++)
        polled[2 + i] = (struct pollfd){.fd = fds[i], .events = POLLIN};
    net_driver_kick(&d->driver);
    (void)poll(polled, 2 + count, timeout >= 0 && timeout < 20 ? timeout : 20);
    if (vhost_user_process(&d->user) == 1)
        printf("   the back-end is back, and the device runs again\n");
    return interrupt(d, 0) && interrupt(d, 1);
}

static bool send_frames(demo *d, uint32_t count)
{
    double end = clock_now() + PATIENCE;
    d->sent = d->received = 0;
    while (d->received < count) {
        while (d->sent < count && d->sent - d->received < IN_FLIGHT && send_next(d)) {
        }
        if (!turn(d))
            return false;
        if (clock_now() > end)
            return report_fail(&d->report, "%u of %u frames came back", d->received, d->sent);
    }
    d->total += count;
    return true;
}

static bool echo(demo *d)
{
    double begin = clock_now(), time;
    report_step(&d->report, "%d frames there and back, every byte checked", FRAMES);
    if (!send_frames(d, FRAMES))
        return false;
    time = clock_now() - begin;
    printf("   %.0f frames/s, %.0f MiB/s each way\n", FRAMES / time,
           FRAMES * (double)FRAME_MAX / (double)MIB / time);
    return true;
}

/* ---- 4. dirty pages -------------------------------------------------------------------------- */

/* What the driver writes is the hypervisor's own business: the log is the back-end's. */
static bool is_written_by_device(const demo *d, uint64_t gpa)
{
    const net_layout *at = &d->driver.layout;
    return (gpa >= at->buffers[NET_RECEIVE] &&
            gpa < at->buffers[NET_RECEIVE] + NET_RING_SIZE * NET_BUFFER) ||
           gpa == d->queues[0].used / VHOST_PAGE * VHOST_PAGE ||
           gpa == d->queues[1].used / VHOST_PAGE * VHOST_PAGE;
}

static bool compare_log(demo *d, const uint8_t *before, const uint64_t *dirty)
{
    unsigned changed = 0, missed = 0;
    for (uint64_t page = 0; page < PAGES; page++) {
        uint64_t gpa = page * VHOST_PAGE;
        if (!is_written_by_device(d, gpa) || memcmp(before + gpa, d->ram + gpa, VHOST_PAGE) == 0)
            continue;
        changed++;
        missed += (dirty[page / 64] >> (page % 64) & 1) == 0;
    }
    printf("   %u pages were written by the device, %u of them are in the log\n", changed,
           changed - missed);
    return (missed == 0 && changed > 0) ||
           report_fail(&d->report, "%u of %u dirty pages are not in the log", missed, changed);
}

static bool log_dirty_pages(demo *d)
{
    static uint8_t before[RAM_SIZE];
    static uint64_t dirty[PAGES / 64];
    vhost_log_sink sink = {.bits = dirty, .bits_count = PAGES};
    report_step(&d->report, "the dirty log, switched on while it runs");
    if (!REPORT_TRY(&d->report, vhost_log_start(&d->vm)))
        return false;
    memcpy(before, d->ram, RAM_SIZE);
    return send_frames(d, 200) &&
           REPORT_TRY(&d->report, vhost_log_sync(&d->vm, 0, RAM_SIZE, &sink)) &&
           compare_log(d, before, dirty) && REPORT_TRY(&d->report, vhost_log_stop(&d->vm));
}

/* ---- 5. the back-end dies -------------------------------------------------------------------- */

static bool survive(demo *d)
{
    report_step(&d->report, "the back-end is killed with frames on their way");
    uint32_t before = user_backend_count(d->own, USER_BACKEND_HELD);
    d->sent = d->received = 0;
    user_backend_hold(d->own, 1, 60000); /* it takes each frame, and keeps it */
    for (int i = 0; i < IN_FLIGHT; i++)
        (void)send_next(d);
    net_driver_kick(&d->driver);
    if (!user_backend_await(d->own, USER_BACKEND_HELD, before + IN_FLIGHT))
        return report_fail(&d->report, "the back-end does not take the frames");
    user_backend_hold(d->own, 0, 0);
    user_backend_kill(d->own);
    double end = clock_now() + PATIENCE;
    while (d->received < d->sent && clock_now() < end)
        if (!turn(d))
            return false;
    if (d->received < d->sent)
        return report_fail(&d->report, "%u of %u frames came back: %s", d->received, d->sent,
                           d->report.message);
    printf(
        "   %u frames were in its hands; the record of requests in flight gave them to the next\n"
        "   life of it, and all came back, each once\n",
        user_backend_count(d->own, USER_BACKEND_RESUBMITTED));
    d->total += d->sent;
    return send_frames(d, 1000);
}

static bool stop(demo *d)
{
    if (!REPORT_TRY(&d->report, vhost_device_stop(&d->device)))
        return false;
    for (int i = 0; i < 2; i++)
        if (d->queues[i].position.state != VHOST_POSITION_CERTAIN ||
            d->queues[i].position.used != split_ring_done(&d->driver.ring[i]))
            return report_fail(&d->report, "the position of queue %d is not that of its ring", i);
    return true;
}

static void clean_up(demo *d)
{
    vhost_device_cleanup(&d->device);
    vhost_user_close(&d->user);
    (void)vhost_vm_cleanup(&d->vm);
    net_driver_close(&d->driver);
    if (d->own != NULL)
        user_backend_stop(d->own);
    if (d->folder[0] != '\0') {
        (void)unlink(d->path);
        (void)rmdir(d->folder);
    }
}

int main(int argc, char **argv)
{
    static demo d = {.report = {.program = "vhost_user_net"}};
    vhost_vm_options options = {.user = &d, .on_message = on_message, .on_trace = on_trace};
    bool own = argc < 2;
    printf("A network card over vhost-user; its back-end is %s.\n\n",
           own ? "a thread of this program" : argv[1]);
    if (!own)
        snprintf(d.path, sizeof d.path, "%s", argv[1]);
    bool good = REPORT_TRY(&d.report, vhost_vm_init(&d.vm, &options)) &&
                (!own || start_own_backend(&d)) && attach(&d) && start(&d) && echo(&d) &&
                log_dirty_pages(&d) && (!own || survive(&d)) && stop(&d);
    clean_up(&d);
    (void)good;
    return report_end(&d.report, "%u frames, each byte of them", d.total);
}
