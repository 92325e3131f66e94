/* vhost_kernel.h on the real vhost-scsi: a disk of the kernel's SCSI target, a file in memory.

   vm-modules: vhost_scsi target_core_file */
#define _GNU_SOURCE
#include "scsi_machine.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/utsname.h>
#include <unistd.h>

enum {
    SET_ENDPOINT = 0x40, /* numbers of ioctls */
    CLEAR_ENDPOINT = 0x41,
    FLOW = 48 /* pieces: more than can be in flight at once */
};

/* ---- the data path ---- */

TEST data_goes_both_ways(scsi_machine *m)
{
    m->queues = SCSI_QUEUES;
    ASSERT_OK(scsi_machine_running(m));
    for (int round = 0; round < 3; round++) {
        CHECK_CALL(scsi_machine_flows(m, SCSI_PIECES));
        CHECK_CALL(scsi_machine_file_is_right(m));
    }
    PASS();
}

TEST the_facts_are_those_of_the_kernel(scsi_machine *m)
{
    static const unsigned present[] = {SCSI_FEATURE_HOTPLUG, VHOST_FEATURE_LOG_ALL,
                                       VHOST_FEATURE_INDIRECT_DESC, VHOST_FEATURE_EVENT_IDX,
                                       VHOST_FEATURE_VERSION_1};
    ASSERT_OK(scsi_machine_stopped(m));
    const vhost_facts *facts = &m->device.facts;
    ASSERT_STR_EQ("vhost-scsi", facts->name);
    for (unsigned i = 0; i < sizeof present / sizeof present[0]; i++) {
        ASSERT(vhost_features_test(&facts->offered, present[i]));
    }
    ASSERT_FALSE(vhost_features_test(&facts->offered, VHOST_FEATURE_ACCESS_PLATFORM));
    ASSERT(facts->queues_together);
    ASSERT_INT(VHOST_WHY_LOG_PARTIAL, facts->log_obstacle);
    ASSERT_UINT(64, facts->max_regions);
    PASS();
}

TEST it_is_a_disk(scsi_machine *m)
{
    ASSERT_OK(scsi_machine_running(m));
    scsi_request *request = scsi_driver_idle(&m->driver, SCSI_FIRST);
    scsi_inquiry(request, 96);
    scsi_driver_submit(&m->driver, SCSI_FIRST, request);
    ASSERT_EQ(request, scsi_machine_await(m, SCSI_FIRST));
    ASSERT(scsi_good(request));
    ASSERT_MEM_EQ("LIO-ORG ", request->data + 8, 8);
    CHECK_CALL(scsi_machine_is_ready(m, 0));
    request = scsi_driver_idle(&m->driver, SCSI_FIRST + 1);
    scsi_read_capacity(request);
    scsi_driver_submit(&m->driver, SCSI_FIRST + 1, request);
    ASSERT_EQ(request, scsi_machine_await(m, SCSI_FIRST + 1));
    ASSERT(scsi_good(request));
    ASSERT_UINT(SCSI_DISK, scsi_capacity(request));
    PASS();
}

/* What is refused takes nothing with it. */
TEST what_makes_no_sense_is_answered(scsi_machine *m)
{
    ASSERT_OK(scsi_machine_running(m));
    scsi_request *request = scsi_driver_idle(&m->driver, SCSI_FIRST);
    request->command[0] = 0xff;
    scsi_driver_submit(&m->driver, SCSI_FIRST, request);
    ASSERT_EQ(request, scsi_machine_await(m, SCSI_FIRST));
    ASSERT_UINT(0, request->response);
    ASSERT_UINT(2, request->status);
    ASSERT_UINT(5, request->sense);
    request = scsi_driver_idle(&m->driver, SCSI_FIRST);
    scsi_test_unit_ready(request);
    request->target = LIO_GROUP + 1;
    scsi_driver_submit(&m->driver, SCSI_FIRST, request);
    ASSERT_EQ(request, scsi_machine_await(m, SCSI_FIRST));
    ASSERT_UINT(3, request->response);
    return scsi_machine_flows(m, FLOW);
}

TEST a_device_without_calls_works(scsi_machine *m)
{
    ASSERT_OK(scsi_machine_stopped(m));
    const scsi_queue *queue = &m->driver.queues[SCSI_FIRST];
    m->queue[SCSI_FIRST].call_fd = -1;
    ASSERT_OK(vhost_device_start(&m->device));
    ASSERT(scsi_machine_puts(m, SCSI_FIRST, 0));
    scsi_driver_kick(&m->driver);
    for (int ms = 0; split_ring_done(&queue->ring) == 0 && ms < SCSI_PATIENCE; ms++) {
        (void)usleep(1000);
    }
    CHECK_CALL(scsi_machine_finishes(m));
    ASSERT_FALSE(scsi_driver_called(&m->driver, SCSI_FIRST));
    PASS();
}

TEST a_masked_call_is_pending(scsi_machine *m)
{
    ASSERT_OK(scsi_machine_running(m));
    const scsi_queue *queue = &m->driver.queues[SCSI_FIRST];
    ASSERT_OK(vhost_queue_mask(&m->device, SCSI_FIRST));
    ASSERT_INT(0, vhost_queue_pending(&m->device, SCSI_FIRST));
    ASSERT(scsi_machine_puts(m, SCSI_FIRST, 0));
    scsi_driver_kick(&m->driver);
    for (int ms = 0; split_ring_done(&queue->ring) == 0 && ms < SCSI_PATIENCE; ms++) {
        (void)usleep(1000);
    }
    (void)usleep(5000); /* the call follows */
    ASSERT_FALSE(scsi_driver_called(&m->driver, SCSI_FIRST));
    ASSERT_INT(1, vhost_queue_unmask(&m->device, SCSI_FIRST));
    CHECK_CALL(scsi_machine_finishes(m));
    return scsi_machine_flows(m, FLOW);
}

/* ---- control and events ---- */

TEST a_disk_is_reset(scsi_machine *m)
{
    uint8_t answer = 0;
    ASSERT_OK(scsi_machine_running(m));
    CHECK_CALL(scsi_machine_flows(m, FLOW));
    for (int round = 1; round <= 5; round++) {
        scsi_driver_reset_lun(&m->driver, 0);
        scsi_driver_kick(&m->driver);
        ASSERT(scsi_machine_waits(m, m->driver.queues[SCSI_CONTROL].call, SCSI_PATIENCE));
        (void)scsi_driver_called(&m->driver, SCSI_CONTROL);
        ASSERT(scsi_driver_answer(&m->driver, &answer));
        ASSERT_UINT(10, answer);
        CHECK_CALL(scsi_machine_is_ready(m, 1));
        CHECK_CALL(scsi_machine_flows(m, FLOW));
    }
    ASSERT_OK(vhost_device_stop(&m->device));
    ASSERT_UINT(5, m->queue[SCSI_CONTROL].position.avail);
    PASS();
}

static enum greatest_test_res event_comes(scsi_machine *m, uint32_t kind, uint8_t lun,
                                          uint32_t reason)
{
    scsi_event event;
    ASSERT(scsi_machine_waits(m, m->driver.queues[SCSI_EVENT].call, SCSI_PATIENCE));
    (void)scsi_driver_called(&m->driver, SCSI_EVENT);
    ASSERT(scsi_driver_event(&m->driver, &event));
    ASSERT_UINT(kind, event.event);
    ASSERT_UINT(lun, event.lun);
    ASSERT_UINT(reason, event.reason);
    PASS();
}

TEST a_disk_that_comes_and_goes_is_told(scsi_machine *m)
{
    bool missed = true;
    vhost_features_set(&m->accepted, SCSI_FEATURE_HOTPLUG);
    ASSERT_OK(scsi_machine_running(m));
    for (uint8_t lun = 1; lun < 4; lun++) {
        scsi_driver_expect(&m->driver, 2);
        scsi_driver_kick(&m->driver);
        ASSERT_OK(lio_target_plug(&m->target, lun));
        CHECK_CALL(event_comes(m, 1, lun, 1));
        ASSERT_OK(lio_target_unplug(&m->target, lun));
        CHECK_CALL(event_comes(m, 1, lun, 2));
    }
    ASSERT_OK(vhost_kernel_scsi_get_events_missed(&m->scsi, &missed));
    ASSERT_FALSE(missed);
    CHECK_CALL(scsi_machine_is_ready(m, 3));
    return scsi_machine_flows(m, FLOW);
}

TEST a_missed_event_is_told_later(scsi_machine *m)
{
    bool missed = false;
    vhost_features_set(&m->accepted, SCSI_FEATURE_HOTPLUG);
    ASSERT_OK(scsi_machine_running(m));
    ASSERT_OK(lio_target_plug(&m->target, 1));
    ASSERT_OK(vhost_device_stop(&m->device));
    ASSERT_OK(vhost_kernel_scsi_get_events_missed(&m->scsi, &missed));
    ASSERT(missed);
    ASSERT_OK(vhost_device_start(&m->device));
    scsi_driver_expect(&m->driver, 2);
    scsi_driver_kick(&m->driver);
    CHECK_CALL(event_comes(m, UINT32_C(0x80000000), 0, 0));
    ASSERT_OK(vhost_kernel_scsi_get_events_missed(&m->scsi, &missed));
    ASSERT_FALSE(missed);
    PASS();
}

/* What migration does: the other side's device has missed nothing, but is told that it did. */
TEST missed_events_move_to_another_device(scsi_machine *m)
{
    bool missed = true;
    vhost_features_set(&m->accepted, SCSI_FEATURE_HOTPLUG);
    ASSERT_OK(scsi_machine_stopped(m));
    ASSERT_OK(vhost_kernel_scsi_get_events_missed(&m->scsi, &missed));
    ASSERT_FALSE(missed);
    ASSERT_OK(vhost_kernel_scsi_set_events_missed(&m->scsi, true));
    ASSERT_OK(vhost_device_start(&m->device));
    ASSERT_OK(vhost_kernel_scsi_get_events_missed(&m->scsi, &missed));
    ASSERT(missed);
    scsi_driver_expect(&m->driver, 1);
    scsi_driver_kick(&m->driver);
    CHECK_CALL(event_comes(m, UINT32_C(0x80000000), 0, 0));
    ASSERT_OK(vhost_kernel_scsi_set_events_missed(&m->scsi, true));
    ASSERT_OK(vhost_kernel_scsi_set_events_missed(&m->scsi, false));
    ASSERT_OK(vhost_kernel_scsi_get_events_missed(&m->scsi, &missed));
    ASSERT_FALSE(missed);
    PASS();
}

TEST without_a_device_no_event_was_missed(scsi_machine *m)
{
    bool missed = false;
    ASSERT(vhost_kernel_scsi_get_events_missed(&m->scsi, &missed) < 0);
    ASSERT(vhost_kernel_scsi_set_events_missed(&m->scsi, true) < 0);
    ASSERT_OK(scsi_machine_stopped(m));
    vhost_device_cleanup(&m->device);
    ASSERT(vhost_kernel_scsi_get_events_missed(&m->scsi, &missed) < 0);
    PASS();
}

/* ---- stop and start ---- */

/* After a stop: what the kernel took is what it gave back, and nothing is in flight. */
static enum greatest_test_res positions_are_right(const scsi_machine *m)
{
    for (int i = 0; i < m->queues; i++) {
        const vhost_position *position = &m->queue[i].position;
        const split_ring *ring = &m->driver.queues[i].ring;
        ASSERT_INT(VHOST_POSITION_CERTAIN, position->state);
        ASSERT_UINT(split_ring_done(ring), position->avail);
        ASSERT_UINT(split_ring_done(ring), position->used);
        ASSERT(position->used_certain);
        ASSERT((uint16_t)(ring->added - position->avail) <= ring->size);
    }
    PASS();
}

static enum greatest_test_res positions_are_the_drivers(const scsi_machine *m)
{
    CHECK_CALL(positions_are_right(m));
    for (int i = 0; i < m->queues; i++) {
        ASSERT_UINT(m->driver.queues[i].ring.added, m->queue[i].position.avail);
    }
    PASS();
}

TEST positions_are_exact_and_go_on(scsi_machine *m)
{
    ASSERT_OK(scsi_machine_running(m));
    for (uint32_t round = 1; round <= 8; round++) {
        CHECK_CALL(scsi_machine_flows(m, 7 * round));
        ASSERT_OK(vhost_device_stop(&m->device));
        CHECK_CALL(positions_are_the_drivers(m));
        ASSERT_OK(vhost_device_start(&m->device));
    }
    ASSERT_UINT(7 * 36, m->queue[SCSI_FIRST].position.avail);
    return scsi_machine_file_is_right(m);
}

/* As deep as all request queues are, without a kick. */
static enum greatest_test_res puts_all(scsi_machine *m)
{
    uint32_t piece = 0;
    for (int queue = SCSI_FIRST; queue < m->queues; queue++) {
        for (int i = 0; i < m->depth; i++) {
            ASSERT(scsi_machine_puts(m, queue, piece++));
        }
        ASSERT_FALSE(scsi_machine_puts(m, queue, piece));
    }
    PASS();
}

TEST what_came_while_stopped_is_not_lost(scsi_machine *m)
{
    ASSERT_OK(scsi_machine_running(m));
    CHECK_CALL(scsi_machine_flows(m, FLOW));
    ASSERT_OK(vhost_device_stop(&m->device));
    uint16_t before = split_ring_done(&m->driver.queues[SCSI_FIRST].ring);
    CHECK_CALL(puts_all(m));
    scsi_driver_kick(&m->driver);
    (void)usleep(20000);
    ASSERT_UINT(before, split_ring_done(&m->driver.queues[SCSI_FIRST].ring));
    ASSERT_OK(vhost_device_start(&m->device));
    CHECK_CALL(scsi_machine_finishes(m));
    CHECK_CALL(scsi_machine_file_is_right(m));
    return scsi_machine_flows(m, FLOW);
}

/* The driver kicked somebody else, before its VM was moved here. */
TEST what_waits_at_the_first_start_needs_no_kick(scsi_machine *m)
{
    ASSERT_OK(scsi_machine_stopped(m));
    CHECK_CALL(puts_all(m));
    for (int i = SCSI_FIRST; i < m->queues; i++) {
        m->driver.queues[i].kicked = m->driver.queues[i].ring.added;
    }
    ASSERT_OK(vhost_device_start(&m->device));
    CHECK_CALL(scsi_machine_finishes(m));
    return scsi_machine_file_is_right(m);
}

/* How many requests wait in the rings, and how many are done. */
static void count_requests(const scsi_machine *m, unsigned *waiting, unsigned *done)
{
    for (int i = SCSI_FIRST; i < m->queues; i++) {
        const split_ring *ring = &m->driver.queues[i].ring;
        *waiting += (uint16_t)(ring->added - split_ring_done(ring));
        *done += (uint16_t)(split_ring_done(ring) - ring->collected);
    }
}

/* The kernel waits for requests that it took: none is in flight after a stop. Every second time it
   is not kicked, and may take none. */
TEST a_stop_under_load_loses_and_doubles_nothing(scsi_machine *m)
{
    unsigned waiting = 0, done = 0;
    m->queues = SCSI_QUEUES;
    ASSERT_OK(scsi_machine_running(m));
    for (int round = 0; round < 12; round++) {
        CHECK_CALL(puts_all(m));
        if (round % 2 == 0) {
            scsi_driver_kick(&m->driver);
            (void)usleep((unsigned)round * 100);
        }
        ASSERT_OK(vhost_device_stop(&m->device));
        CHECK_CALL(positions_are_right(m));
        count_requests(m, &waiting, &done);
        ASSERT_OK(vhost_device_start(&m->device));
        CHECK_CALL(scsi_machine_finishes(m));
        CHECK_CALL(scsi_machine_file_is_right(m));
    }
    ASSERT_UINT(12 * 4 * m->depth, waiting + done);
    ASSERT(waiting > 0);
    ASSERT(done > 0);
    PASS();
}

TEST queues_start_and_stop_together(scsi_machine *m)
{
    ASSERT_OK(scsi_machine_running(m));
    ASSERT_INT(-ENOTSUP, vhost_queue_stop(&m->device, SCSI_FIRST));
    ASSERT_INT(-ENOTSUP, vhost_queue_start(&m->device, SCSI_FIRST));
    ASSERT_INT(VHOST_STATE_RUNNING, m->device.state);
    return scsi_machine_flows(m, FLOW);
}

TEST queues_that_are_not_ready_are_passed_over(scsi_machine *m)
{
    ASSERT_OK(scsi_machine_stopped(m));
    m->queue[SCSI_CONTROL].ready = m->queue[SCSI_EVENT].ready = false;
    m->queue[SCSI_FIRST + 1].ready = false;
    ASSERT_OK(vhost_device_start(&m->device));
    ASSERT(scsi_machine_puts(m, SCSI_FIRST, 0));
    CHECK_CALL(scsi_machine_finishes(m));
    ASSERT_OK(vhost_device_stop(&m->device));
    scsi_machine_fill_queues(m);
    ASSERT_OK(vhost_device_start(&m->device));
    return scsi_machine_flows(m, FLOW);
}

/* The kernel runs every ring that its fd has heard of. So a queue that ran is left out only after a
   reset, and then nobody touches the ring that it had. */
TEST a_queue_that_ran_is_not_left_out_before_a_reset(scsi_machine *m)
{
    const int last = SCSI_FIRST + 1;
    ASSERT_OK(scsi_machine_running(m));
    CHECK_CALL(scsi_machine_flows(m, FLOW));
    ASSERT_OK(vhost_device_stop(&m->device));
    m->queue[last].ready = false;
    ASSERT_INT(-EINVAL, vhost_device_start(&m->device));
    ASSERT_INT(VHOST_WHY_QUEUE_NOT_READY, m->scsi.last_error.why);
    ASSERT_INT(VHOST_STATE_STOPPED, m->device.state);
    ASSERT_OK(vhost_device_reset(&m->device));
    ASSERT_OK(vhost_device_ack(&m->device, m->accepted));
    scsi_machine_close_driver(m);
    ASSERT_OK(scsi_machine_open_driver(m));
    m->queue[last].ready = false;
    ASSERT_OK(vhost_device_start(&m->device));
    ASSERT(scsi_machine_puts(m, last, 1));
    scsi_driver_kick(&m->driver);
    (void)usleep(20000);
    ASSERT_UINT(0, split_ring_done(&m->driver.queues[last].ring));
    ASSERT_OK(vhost_device_stop(&m->device));
    m->queue[last].ready = true;
    ASSERT_OK(vhost_device_start(&m->device));
    CHECK_CALL(scsi_machine_finishes(m));
    return scsi_machine_flows(m, FLOW);
}

/* A start takes 2 to 10 ms here, with rings as short as can be, and more with each descriptor. */
TEST a_thousand_starts_and_stops_leave_nothing_behind(scsi_machine *m)
{
    m->queues = SCSI_FIRST + 1;
    m->depth = 1;
    ASSERT_OK(scsi_machine_running(m));
    ASSERT(scsi_machine_puts(m, SCSI_FIRST, 0));
    CHECK_CALL(scsi_machine_finishes(m));
    unsigned fds = machine_fds();
    long before = machine_resident();
    for (int i = 0; i < 1000; i++) {
        ASSERT_OK(vhost_device_stop(&m->device));
        ASSERT_OK(vhost_device_start(&m->device));
    }
    ASSERT_UINT(fds, machine_fds());
    ASSERT_UINT(1, scsi_machine_threads(1));
    ASSERT(before > 0 && machine_resident() - before < 64);
    ASSERT(scsi_machine_gets(m, SCSI_FIRST, 0));
    return scsi_machine_finishes(m);
}

TEST twenty_lives_leave_nothing_behind(scsi_machine *m)
{
    m->depth = 1;
    ASSERT_OK(scsi_machine_running(m));
    unsigned fds = machine_fds();
    for (int i = 0; i < 20; i++) {
        vhost_device_cleanup(&m->device);
        ASSERT_UINT(0, scsi_machine_threads(0));
        ASSERT_OK(scsi_machine_attach(m));
        ASSERT_OK(vhost_device_start(&m->device));
    }
    ASSERT_UINT(fds, machine_fds());
    return scsi_machine_flows(m, FLOW);
}

/* The driver's last queue becomes number `last` of the device. */
static int init_many(scsi_machine *m, vhost_queue *many, uint32_t last)
{
    for (uint32_t i = 0; i <= last; i++) {
        vhost_queue_init(&many[i]);
    }
    for (int i = 0; i < m->queues; i++) {
        uint32_t place = i + 1 < m->queues ? (uint32_t)i : last;
        many[place] = m->queue[i];
    }
    return vhost_device_init(&m->device, &m->vm, vhost_kernel_ops(&m->scsi), &m->scsi, many,
                             last + 1, &m->device_options);
}

TEST queue_129_is_the_last_that_the_kernel_has(scsi_machine *m)
{
    static vhost_queue many[131];
    ASSERT_OK(scsi_machine_prepared(m));
    ASSERT_OK(vhost_kernel_scsi_open(&m->scsi, "/dev/vhost-scsi", m->target.wwpn, NULL));
    ASSERT_OK(init_many(m, many, 130));
    ASSERT_OK(vhost_device_ack(&m->device, m->accepted));
    ASSERT_INT(-ENOBUFS, vhost_device_start(&m->device));
    ASSERT_INT(130, m->device.last_error.queue);
    ASSERT_INT(VHOST_STATE_STOPPED, m->device.state);
    vhost_device_cleanup(&m->device);
    ASSERT_OK(init_many(m, many, 129));
    ASSERT_OK(vhost_device_ack(&m->device, m->accepted));
    ASSERT_OK(vhost_device_start(&m->device));
    CHECK_CALL(scsi_machine_flows(m, FLOW));
    ASSERT_OK(vhost_device_stop(&m->device));
    ASSERT_UINT(FLOW, many[129].position.avail);
    PASS();
}

/* ---- the endpoint ---- */

/* The ioctls that were made, by number. */
static struct {
    uint32_t made[512];
    unsigned count;
} ioctls;

static int counted_open(const char *path, bool writable, void *user)
{
    (void)user;
    int fd = open(path, (writable ? O_RDWR : O_RDONLY) | O_CLOEXEC);
    return fd < 0 ? -errno : fd;
}

static int counted_close(int fd, void *user)
{
    (void)user;
    return close(fd) < 0 ? -errno : 0;
}

static int counted_ioctl(int fd, unsigned long request, void *argument, void *user)
{
    (void)user;
    if (ioctls.count < sizeof ioctls.made / sizeof ioctls.made[0]) {
        ioctls.made[ioctls.count++] = (uint32_t)request & 0xff;
    }
    int result = ioctl(fd, request, argument);
    return result < 0 ? -errno : result;
}

static ptrdiff_t counted_read(int fd, void *bytes, size_t size, void *user)
{
    (void)user;
    ptrdiff_t result = read(fd, bytes, size);
    return result < 0 ? -errno : result;
}

static ptrdiff_t counted_write(int fd, const void *bytes, size_t size, void *user)
{
    (void)user;
    ptrdiff_t result = write(fd, bytes, size);
    return result < 0 ? -errno : result;
}

static const vhost_kernel_calls counted_calls = {
    .open = counted_open,
    .close = counted_close,
    .ioctl = counted_ioctl,
    .read = counted_read,
    .write = counted_write,
};

static unsigned ioctls_made(uint32_t which)
{
    unsigned count = 0;
    for (unsigned i = 0; i < ioctls.count; i++) {
        count += ioctls.made[i] == which;
    }
    return count;
}

TEST the_endpoint_is_the_last_step_of_start_and_the_first_of_stop(scsi_machine *m)
{
    m->kernel_options.calls = &counted_calls;
    ASSERT_OK(scsi_machine_stopped(m));
    for (int round = 0; round < 3; round++) {
        ioctls.count = 0;
        ASSERT_OK(vhost_device_start(&m->device));
        ASSERT_UINT(1, ioctls_made(SET_ENDPOINT));
        ASSERT_UINT(SET_ENDPOINT, ioctls.made[ioctls.count - 1]);
        CHECK_CALL(scsi_machine_flows(m, FLOW));
        ASSERT_OK(scsi_machine_map(m, true));
        ASSERT_OK(scsi_machine_map(m, false));
        ASSERT_OK(vhost_queue_mask(&m->device, 2));
        ASSERT(vhost_queue_unmask(&m->device, 2) >= 0);
        ASSERT_UINT(1, ioctls_made(SET_ENDPOINT));
        ASSERT_UINT(0, ioctls_made(CLEAR_ENDPOINT));
        ioctls.count = 0;
        ASSERT_OK(vhost_device_stop(&m->device));
        ASSERT_OK(vhost_device_stop(&m->device));
        ASSERT_UINT(1, ioctls_made(CLEAR_ENDPOINT));
        ASSERT_UINT(CLEAR_ENDPOINT, ioctls.made[0]);
    }
    ioctls.count = 0;
    vhost_device_cleanup(&m->device);
    ASSERT_UINT(0, ioctls_made(CLEAR_ENDPOINT));
    PASS();
}

static enum greatest_test_res target_is_refused(const scsi_other *other, int code, const char *wwpn)
{
    ASSERT_INT(-ENXIO, code);
    ASSERT_INT(VHOST_STATE_STOPPED, other->device.state);
    ASSERT_INT(VHOST_WHY_KERNEL_TARGET, other->scsi.last_error.why);
    ASSERT(strstr(other->scsi.last_error.text, wwpn));
    ASSERT(strstr(other->device.last_error.text, wwpn));
    ASSERT_INT(VHOST_OP_SET_RUNNING, other->device.last_error.op);
    PASS();
}

TEST a_target_has_one_device_at_a_time(scsi_machine *m)
{
    ASSERT_OK(scsi_machine_running(m));
    CHECK_CALL(scsi_machine_flows(m, FLOW));
    ASSERT_OK(scsi_machine_open_other(m, m->target.wwpn));
    int code = vhost_device_start(&m->other.device);
    CHECK_CALL(target_is_refused(&m->other, code, m->target.wwpn));
    CHECK_CALL(scsi_machine_flows(m, FLOW));
    ASSERT_OK(vhost_device_stop(&m->device));
    scsi_machine_close_other(m);
    ASSERT_OK(scsi_machine_open_other(m, m->target.wwpn));
    ASSERT_OK(vhost_device_start(&m->other.device));
    CHECK_CALL(scsi_machine_flows(m, FLOW)); /* the same rings, at the positions of the first */
    ASSERT_INT(-ENXIO, vhost_device_start(&m->device));
    ASSERT_OK(vhost_device_stop(&m->other.device));
    for (int i = 0; i < m->queues; i++) {
        m->queue[i].position = m->other.queue[i].position;
    }
    ASSERT_OK(vhost_device_start(&m->device));
    CHECK_CALL(scsi_machine_flows(m, FLOW));
    scsi_machine_close_other(m);
    PASS();
}

TEST a_target_that_is_not_there_is_named(scsi_machine *m)
{
    static const char nobody[] = "naa.5000000000000001";
    ASSERT_OK(scsi_machine_prepared(m));
    ASSERT_OK(scsi_machine_open_other(m, nobody));
    for (int round = 0; round < 3; round++) {
        int code = vhost_device_start(&m->other.device);
        CHECK_CALL(target_is_refused(&m->other, code, nobody));
    }
    scsi_machine_close_other(m);
    PASS();
}

TEST a_name_has_a_length(scsi_machine *m)
{
    char name[225];
    memset(name, 'n', sizeof name);
    name[224] = '\0';
    ASSERT_INT(-EINVAL, vhost_kernel_scsi_open(&m->scsi, "/dev/vhost-scsi", name, NULL));
    ASSERT_INT(VHOST_WHY_ARGUMENT, m->scsi.last_error.why);
    ASSERT_INT(-EINVAL, vhost_kernel_scsi_open(&m->scsi, "/dev/vhost-scsi", "", NULL));
    name[223] = '\0';
    ASSERT_OK(vhost_kernel_scsi_open(&m->scsi, "/dev/vhost-scsi", name, NULL));
    ASSERT_OK(scsi_machine_prepared(m));
    ASSERT_OK(scsi_machine_attach(m));
    ASSERT_INT(-ENXIO, vhost_device_start(&m->device));
    ASSERT_INT(VHOST_WHY_KERNEL_TARGET, m->scsi.last_error.why);
    PASS();
}

/* While the device runs its target stays; then it may go and come back. */
TEST a_target_is_bound_from_start_to_stop(scsi_machine *m)
{
    ASSERT_OK(scsi_machine_running(m));
    CHECK_CALL(scsi_machine_flows(m, FLOW));
    ASSERT_INT(-EBUSY, lio_target_close(&m->target));
    ASSERT_OK(vhost_device_stop(&m->device));
    ASSERT_OK(lio_target_close(&m->target));
    ASSERT_INT(-ENXIO, vhost_device_start(&m->device));
    ASSERT_OK(lio_target_open(&m->target, 0, SCSI_DISK));
    memset(m->disk, 0, SCSI_DISK);
    ASSERT_OK(vhost_device_start(&m->device));
    return scsi_machine_flows(m, FLOW);
}

/* ---- fds and options ---- */

static bool has_workers(void)
{
    struct utsname system;
    int major = 0, minor = 0;
    return uname(&system) == 0 && sscanf(system.release, "%d.%d", &major, &minor) == 2 &&
           (major > 6 || (major == 6 && minor >= 5));
}

TEST queues_share_a_thread(scsi_machine *m)
{
    m->queues = SCSI_QUEUES;
    ASSERT_OK(scsi_machine_running(m));
    CHECK_CALL(scsi_machine_flows(m, FLOW));
    ASSERT_UINT(1, scsi_machine_threads(1));
    PASS();
}

/* Of four request queues, one keeps the thread that the control and the event queue have. */
TEST each_queue_has_a_thread_of_its_own(scsi_machine *m)
{
    unsigned threads = has_workers() ? 4 : 1;
    m->queues = SCSI_QUEUES;
    m->kernel_options.worker_per_queue = true;
    ASSERT_OK(scsi_machine_running(m));
    for (int round = 0; round < 3; round++) {
        ASSERT_UINT(threads, scsi_machine_threads(threads));
        CHECK_CALL(scsi_machine_flows(m, SCSI_PIECES));
        ASSERT_OK(vhost_device_stop(&m->device));
        ASSERT_OK(vhost_device_start(&m->device));
    }
    CHECK_CALL(scsi_machine_file_is_right(m));
    vhost_device_cleanup(&m->device);
    ASSERT_UINT(0, scsi_machine_threads(0));
    PASS();
}

static int take_all_memory(scsi_machine *m)
{
    vhost_section rest;
    vhost_section_init(&rest, SCSI_PLUG, SCSI_PLUG_SIZE, &m->backing, SCSI_PLUG);
    return scsi_machine_map_sections(m, &rest, 1);
}

TEST a_passed_fd_works_until_the_device_breaks(scsi_machine *m)
{
    m->pass_fd = true;
    ASSERT_OK(scsi_machine_running(m));
    CHECK_CALL(scsi_machine_flows(m, FLOW));
    vhost_device_cleanup(&m->device);
    ASSERT_OK(scsi_machine_attach(m));
    ASSERT_OK(vhost_device_start(&m->device));
    CHECK_CALL(scsi_machine_flows(m, FLOW));
    ASSERT_OK(take_all_memory(m));
    ASSERT_INT(VHOST_STATE_BROKEN, m->device.state);
    ASSERT_INT(-ENODEV, vhost_device_reset(&m->device));
    ASSERT_INT(VHOST_WHY_KERNEL_SEVERED, m->scsi.last_error.why);
    PASS();
}

TEST an_fd_of_somebody_else_is_refused(scsi_machine *m)
{
    ASSERT_OK(scsi_machine_prepared(m));
    int fd = open("/dev/vhost-scsi", O_RDWR | O_CLOEXEC);
    ASSERT_OK(ioctl(fd, _IO(0xAF, 0x01)));
    ASSERT_OK(vhost_kernel_scsi_open_fd(&m->scsi, fd, m->target.wwpn, NULL));
    ASSERT_INT(-EBUSY, scsi_machine_attach(m));
    ASSERT_INT(VHOST_WHY_KERNEL_OWNER, m->scsi.last_error.why);
    PASS();
}

TEST a_device_that_is_not_there_is_refused(scsi_machine *m)
{
    ASSERT_OK(scsi_machine_prepared(m));
    ASSERT_OK(vhost_kernel_scsi_open(&m->scsi, "/dev/vhost-nothing", m->target.wwpn, NULL));
    ASSERT_INT(-ENOENT, scsi_machine_attach(m));
    ASSERT_INT(VHOST_WHY_KERNEL_OPEN, m->scsi.last_error.why);
    vhost_kernel_close(&m->scsi);
    ASSERT_OK(vhost_kernel_scsi_open(&m->scsi, "/dev/null", m->target.wwpn, NULL));
    ASSERT_INT(-ENOTSUP, scsi_machine_attach(m));
    PASS();
}

/* ---- memory ---- */

TEST memory_comes_and_goes_under_load(scsi_machine *m)
{
    ASSERT_OK(scsi_machine_running(m));
    for (int round = 0; round < 30; round++) {
        CHECK_CALL(puts_all(m));
        scsi_driver_kick(&m->driver);
        ASSERT_OK(scsi_machine_map(m, true));
        ASSERT_OK(scsi_machine_map(m, false));
        CHECK_CALL(scsi_machine_finishes(m));
    }
    ASSERT_INT(VHOST_STATE_RUNNING, m->device.state);
    return scsi_machine_file_is_right(m);
}

TEST memory_plugged_in_is_used(scsi_machine *m)
{
    m->data = SCSI_PLUG;
    ASSERT_OK(scsi_machine_running(m));
    for (int round = 0; round < 3; round++) {
        ASSERT_OK(scsi_machine_map(m, true));
        CHECK_CALL(scsi_machine_flows(m, FLOW));
        ASSERT_OK(scsi_machine_map(m, false));
    }
    return scsi_machine_file_is_right(m);
}

/* The kernel's error comes out at on_queue_error, for this queue and no other. */
static enum greatest_test_res ring_error_is_told(scsi_machine *m, uint32_t queue)
{
    for (int ms = 0; m->queue_errors[queue] == 0 && ms < SCSI_PATIENCE; ms++) {
        ASSERT_OK(vhost_device_process(&m->device));
        (void)usleep(1000);
    }
    for (uint32_t i = 0; i < (uint32_t)m->queues; i++) {
        ASSERT_UINT(i == queue, m->queue_errors[i]);
    }
    ASSERT_INT(VHOST_STATE_RUNNING, m->device.state);
    PASS();
}

static enum greatest_test_res resets_and_works(scsi_machine *m)
{
    m->data = 0;
    ASSERT_OK(vhost_device_reset(&m->device));
    scsi_machine_close_driver(m);
    ASSERT_OK(scsi_machine_open_driver(m));
    ASSERT_OK(vhost_device_ack(&m->device, m->accepted));
    ASSERT_OK(vhost_device_start(&m->device));
    CHECK_CALL(scsi_machine_flows(m, SCSI_PIECES));
    return scsi_machine_file_is_right(m);
}

TEST memory_left_out_is_out_of_reach(scsi_machine *m)
{
    m->data = SCSI_PLUG;
    ASSERT_OK(scsi_machine_running(m));
    ASSERT_OK(scsi_machine_map(m, true));
    CHECK_CALL(scsi_machine_flows(m, FLOW));
    ASSERT_OK(scsi_machine_map(m, false));
    ASSERT(scsi_machine_gets(m, SCSI_FIRST, 1));
    scsi_driver_kick(&m->driver);
    CHECK_CALL(ring_error_is_told(m, SCSI_FIRST));
    ASSERT_UINT(0xee, m->ram[SCSI_PLUG + SCSI_PIECE]);
    ASSERT_OK(vhost_device_stop(&m->device));
    return resets_and_works(m);
}

TEST memory_taken_from_under_a_ring_breaks_the_device(scsi_machine *m)
{
    ASSERT_OK(scsi_machine_running(m));
    CHECK_CALL(scsi_machine_flows(m, FLOW));
    unsigned fds = machine_fds();
    ASSERT_OK(take_all_memory(m));
    ASSERT_INT(VHOST_STATE_BROKEN, m->device.state);
    ASSERT_INT(VHOST_WHY_RING_UNMAPPED, m->device.last_error.why);
    ASSERT_UINT(1, m->broken);
    ASSERT_UINT(fds - 1, machine_fds());
    ASSERT_UINT(0, scsi_machine_threads(0));
    ASSERT_UINT(FLOW, m->queue[SCSI_FIRST].position.avail);
    ASSERT(scsi_machine_puts(m, SCSI_FIRST, 0));
    scsi_driver_kick(&m->driver);
    (void)usleep(20000);
    ASSERT_UINT(FLOW, split_ring_done(&m->driver.queues[SCSI_FIRST].ring));
    ASSERT(vhost_device_stop(&m->device) < 0);
    ASSERT_OK(scsi_machine_map(m, false));
    ASSERT_OK(scsi_machine_open_other(m, m->target.wwpn));
    ASSERT_OK(vhost_device_start(&m->other.device)); /* the target is free */
    CHECK_CALL(scsi_machine_finishes(m));
    scsi_machine_close_other(m);
    return resets_and_works(m);
}

/* Closing the fd would not do: somebody else has it, too. */
TEST a_broken_device_lets_go_of_its_target(scsi_machine *m)
{
    ASSERT_OK(scsi_machine_prepared(m));
    int fd = open("/dev/vhost-scsi", O_RDWR | O_CLOEXEC);
    int held = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    ASSERT_OK(vhost_kernel_scsi_open_fd(&m->scsi, fd, m->target.wwpn, NULL));
    ASSERT_OK(scsi_machine_attach(m));
    ASSERT_OK(vhost_device_start(&m->device));
    CHECK_CALL(scsi_machine_flows(m, FLOW));
    ASSERT_OK(take_all_memory(m));
    ASSERT_INT(VHOST_STATE_BROKEN, m->device.state);
    ASSERT_OK(scsi_machine_map(m, false));
    ASSERT_OK(scsi_machine_open_other(m, m->target.wwpn));
    ASSERT_OK(vhost_device_start(&m->other.device));
    CHECK_CALL(scsi_machine_flows(m, FLOW));
    scsi_machine_close_other(m);
    close(held);
    PASS();
}

/* The device goes on where it was; who waited for a request never learns of it. */
TEST a_broken_device_recovers(scsi_machine *m)
{
    ASSERT_OK(scsi_machine_running(m));
    for (int round = 0; round < 3; round++) {
        CHECK_CALL(puts_all(m));
        scsi_driver_kick(&m->driver);
        ASSERT_OK(take_all_memory(m));
        ASSERT_INT(VHOST_STATE_BROKEN, m->device.state);
        CHECK_CALL(positions_are_right(m));
        ASSERT_OK(scsi_machine_map(m, false));
        ASSERT_OK(vhost_device_recover(&m->device));
        ASSERT_INT(VHOST_STATE_RUNNING, m->device.state);
        CHECK_CALL(scsi_machine_finishes(m));
        CHECK_CALL(scsi_machine_file_is_right(m));
    }
    PASS();
}

/* RAM, and single pages that nothing merges. */
static int map_regions(scsi_machine *m, unsigned count)
{
    vhost_section sections[65];
    sections[0] = m->low;
    for (unsigned i = 1; i < count; i++) {
        uint64_t gpa = SCSI_PLUG + i * VHOST_PAGE;
        vhost_section_init(&sections[i], gpa, VHOST_PAGE, &m->backing, gpa);
        sections[i].flags = VHOST_SECTION_UNMERGEABLE;
    }
    return scsi_machine_map_sections(m, sections, count);
}

TEST as_many_regions_as_the_kernel_has_slots(scsi_machine *m)
{
    ASSERT_OK(scsi_machine_running(m));
    ASSERT_OK(map_regions(m, 64));
    ASSERT_UINT(0, vhost_memory_free_slots(&m->vm));
    CHECK_CALL(scsi_machine_flows(m, FLOW));
    ASSERT_INT(-ENOSPC, map_regions(m, 65));
    ASSERT_INT(VHOST_STATE_RUNNING, m->device.state);
    return scsi_machine_flows(m, FLOW);
}

/* ---- broken rings, and what is refused ---- */

TEST a_descriptor_outside_of_memory_is_told(scsi_machine *m)
{
    const ring_piece nowhere = {SCSI_PLUG, 64, false};
    ASSERT_OK(scsi_machine_running(m));
    CHECK_CALL(scsi_machine_flows(m, FLOW));
    ASSERT_OK(vhost_device_process(&m->device));
    ASSERT(split_ring_add(&m->driver.queues[SCSI_FIRST].ring, &nowhere, 1, 0));
    scsi_driver_kick(&m->driver);
    CHECK_CALL(ring_error_is_told(m, SCSI_FIRST));
    ASSERT(scsi_machine_puts(m, SCSI_FIRST + 1, 1)); /* the other one goes on */
    ASSERT_UINT(0, m->driver.queues[SCSI_FIRST].in_flight);
    CHECK_CALL(scsi_machine_finishes(m));
    ASSERT_OK(vhost_device_stop(&m->device));
    ASSERT_UINT(FLOW, m->queue[SCSI_FIRST].position.avail);
    return resets_and_works(m);
}

TEST an_available_index_that_jumps_is_told(scsi_machine *m)
{
    ASSERT_OK(scsi_machine_running(m));
    CHECK_CALL(scsi_machine_flows(m, FLOW));
    ASSERT_OK(vhost_device_process(&m->device));
    split_ring *ring = &m->driver.queues[SCSI_FIRST].ring;
    ring->available->index = (uint16_t)(ring->added + ring->size + 1);
    ring->added++; /* or there is nothing to kick for */
    scsi_driver_kick(&m->driver);
    CHECK_CALL(ring_error_is_told(m, SCSI_FIRST));
    ASSERT_OK(vhost_device_stop(&m->device));
    ASSERT_UINT(FLOW, m->queue[SCSI_FIRST].position.avail);
    return resets_and_works(m);
}

/* The request was done, but nobody will ever hear of it: the stop says that it is in flight. */
TEST a_used_ring_that_cannot_be_written_is_told(scsi_machine *m)
{
    ASSERT_OK(scsi_machine_running(m));
    CHECK_CALL(scsi_machine_flows(m, FLOW));
    ASSERT_OK(vhost_device_process(&m->device));
    void *page = m->ram + m->queue[SCSI_FIRST].used / VHOST_PAGE * VHOST_PAGE;
    ASSERT(scsi_machine_puts(m, SCSI_FIRST, 0));
    ASSERT_OK(mprotect(page, VHOST_PAGE, PROT_READ));
    scsi_driver_kick(&m->driver);
    CHECK_CALL(ring_error_is_told(m, SCSI_FIRST));
    ASSERT_OK(mprotect(page, VHOST_PAGE, PROT_READ | PROT_WRITE));
    ASSERT_OK(vhost_device_stop(&m->device));
    const vhost_position *position = &m->queue[SCSI_FIRST].position;
    ASSERT_INT(VHOST_POSITION_CERTAIN, position->state);
    ASSERT_UINT(FLOW + 1, position->avail);
    ASSERT_UINT(FLOW, position->used);
    ASSERT_FALSE(position->used_certain);
    return resets_and_works(m);
}

TEST a_ring_outside_of_memory_is_refused(scsi_machine *m)
{
    ASSERT_OK(scsi_machine_stopped(m));
    m->queue[SCSI_FIRST].used = SCSI_RAM - 64;
    ASSERT_INT(-EFAULT, vhost_device_start(&m->device));
    ASSERT_INT(VHOST_WHY_RING_UNMAPPED, m->device.last_error.why);
    scsi_machine_fill_queues(m);
    ASSERT_OK(vhost_device_start(&m->device));
    return scsi_machine_flows(m, FLOW);
}

/* ---- the dirty log ---- */

TEST it_stands_in_the_way_of_a_migration(scsi_machine *m)
{
    vhost_why why = VHOST_WHY_NONE;
    ASSERT_OK(scsi_machine_running(m));
    ASSERT_EQ(&m->device, vhost_log_blocker(&m->vm, NULL, &why));
    ASSERT_INT(VHOST_WHY_LOG_PARTIAL, why);
    ASSERT_INT(-ENOTSUP, vhost_log_start(&m->vm));
    CHECK_CALL(scsi_machine_flows(m, FLOW));
    vhost_device_cleanup(&m->device);
    ASSERT_OK(vhost_log_start(&m->vm));
    ASSERT_INT(-ENOTSUP, scsi_machine_attach(m));
    ASSERT_OK(vhost_log_stop(&m->vm));
    ASSERT_OK(scsi_machine_attach(m));
    ASSERT_OK(vhost_device_start(&m->device));
    return scsi_machine_flows(m, FLOW);
}

TEST an_option_keeps_a_vm_where_it_is(scsi_machine *m)
{
    vhost_why why = VHOST_WHY_NONE;
    m->kernel_options.logs = VHOST_KERNEL_LOGS_INCOMPLETE;
    ASSERT_OK(scsi_machine_running(m));
    ASSERT_EQ(&m->device, vhost_log_blocker(&m->vm, NULL, &why));
    ASSERT_INT(-ENOTSUP, vhost_log_start(&m->vm));
    return scsi_machine_flows(m, FLOW);
}

static unsigned char dirty_pages[SCSI_PAGES];

static void take_range(uint64_t gpa, uint64_t size, void *user)
{
    (void)user;
    memset(dirty_pages + gpa / VHOST_PAGE, 1, (size_t)(size / VHOST_PAGE));
}

static int take_log(scsi_machine *m)
{
    vhost_log_sink sink = {.range = take_range};
    memset(dirty_pages, 0, sizeof dirty_pages);
    return vhost_log_sync(&m->vm, 0, SCSI_END, &sink);
}

static bool is_used_ring(const scsi_machine *m, uint64_t gpa)
{
    for (int i = SCSI_FIRST; i < m->queues; i++) {
        if (m->queue[i].used / VHOST_PAGE == gpa / VHOST_PAGE) {
            return true;
        }
    }
    return false;
}

/* What the library's table says of these kernels, by the memory itself. If this fails, a kernel
   logs more, and the table is to be changed. */
TEST this_kernel_logs_the_used_rings_alone(scsi_machine *m)
{
    unsigned lost = 0;
    m->kernel_options.logs = VHOST_KERNEL_LOGS_ALL;
    ASSERT_OK(scsi_machine_running(m));
    CHECK_CALL(scsi_machine_flows(m, FLOW));
    ASSERT_OK(vhost_log_start(&m->vm));
    ASSERT_OK(take_log(m));
    uint8_t *before = malloc(SCSI_RAM);
    for (int i = SCSI_FIRST; i < m->queues; i++) {
        ASSERT(scsi_machine_gets(m, i, (uint32_t)i));
    }
    memcpy(before, m->ram, SCSI_RAM);
    CHECK_CALL(scsi_machine_finishes(m));
    ASSERT_OK(take_log(m));
    for (uint64_t gpa = 0; gpa < SCSI_RAM; gpa += VHOST_PAGE) {
        bool changed = memcmp(before + gpa, m->ram + gpa, VHOST_PAGE) != 0;
        ASSERT_EQ(is_used_ring(m, gpa), dirty_pages[gpa / VHOST_PAGE] != 0);
        lost += changed && !dirty_pages[gpa / VHOST_PAGE];
    }
    free(before);
    ASSERT_UINT(2 * (1 + SCSI_PIECE / 4096), lost); /* of each request: response and data */
    PASS();
}

/* Its used rings at least are all there, whatever happens. */
TEST used_rings_are_logged_over_stop_and_start(scsi_machine *m)
{
    m->kernel_options.logs = VHOST_KERNEL_LOGS_ALL;
    ASSERT_OK(scsi_machine_running(m));
    for (int round = 0; round < 5; round++) {
        ASSERT_OK(vhost_log_start(&m->vm));
        CHECK_CALL(puts_all(m));
        scsi_driver_kick(&m->driver);
        ASSERT_OK(vhost_device_stop(&m->device));
        ASSERT_OK(take_log(m));
        for (int i = 0; i < m->queues; i++) {
            ASSERT(dirty_pages[m->queue[i].used / VHOST_PAGE]);
        }
        ASSERT_OK(vhost_device_start(&m->device));
        CHECK_CALL(scsi_machine_finishes(m));
        ASSERT_OK(vhost_log_stop(&m->vm));
        CHECK_CALL(scsi_machine_flows(m, FLOW));
    }
    PASS();
}

SUITE(data_path)
{
    RUN_SCSI(data_goes_both_ways);
    RUN_SCSI(the_facts_are_those_of_the_kernel);
    RUN_SCSI(it_is_a_disk);
    RUN_SCSI(what_makes_no_sense_is_answered);
    RUN_SCSI(a_device_without_calls_works);
    RUN_SCSI(a_masked_call_is_pending);
}

SUITE(control_and_events)
{
    RUN_SCSI(a_disk_is_reset);
    RUN_SCSI(a_disk_that_comes_and_goes_is_told);
    RUN_SCSI(a_missed_event_is_told_later);
    RUN_SCSI(missed_events_move_to_another_device);
    RUN_SCSI(without_a_device_no_event_was_missed);
}

SUITE(stop_and_start)
{
    RUN_SCSI(positions_are_exact_and_go_on);
    RUN_SCSI(what_came_while_stopped_is_not_lost);
    RUN_SCSI(what_waits_at_the_first_start_needs_no_kick);
    RUN_SCSI(a_stop_under_load_loses_and_doubles_nothing);
    RUN_SCSI(queues_start_and_stop_together);
    RUN_SCSI(queues_that_are_not_ready_are_passed_over);
    RUN_SCSI(a_queue_that_ran_is_not_left_out_before_a_reset);
    RUN_SCSI(queue_129_is_the_last_that_the_kernel_has);
    RUN_SCSI(a_thousand_starts_and_stops_leave_nothing_behind);
    RUN_SCSI(twenty_lives_leave_nothing_behind);
}

SUITE(endpoint)
{
    RUN_SCSI(the_endpoint_is_the_last_step_of_start_and_the_first_of_stop);
    RUN_SCSI(a_target_has_one_device_at_a_time);
    RUN_SCSI(a_target_that_is_not_there_is_named);
    RUN_SCSI(a_name_has_a_length);
    RUN_SCSI(a_target_is_bound_from_start_to_stop);
}

SUITE(fds_and_options)
{
    RUN_SCSI(queues_share_a_thread);
    RUN_SCSI(each_queue_has_a_thread_of_its_own);
    RUN_SCSI(a_passed_fd_works_until_the_device_breaks);
    RUN_SCSI(an_fd_of_somebody_else_is_refused);
    RUN_SCSI(a_device_that_is_not_there_is_refused);
}

SUITE(memory)
{
    RUN_SCSI(memory_comes_and_goes_under_load);
    RUN_SCSI(memory_plugged_in_is_used);
    RUN_SCSI(memory_left_out_is_out_of_reach);
    RUN_SCSI(memory_taken_from_under_a_ring_breaks_the_device);
    RUN_SCSI(a_broken_device_lets_go_of_its_target);
    RUN_SCSI(a_broken_device_recovers);
    RUN_SCSI(as_many_regions_as_the_kernel_has_slots);
}

SUITE(refusals)
{
    RUN_SCSI(a_descriptor_outside_of_memory_is_told);
    RUN_SCSI(an_available_index_that_jumps_is_told);
    RUN_SCSI(a_used_ring_that_cannot_be_written_is_told);
    RUN_SCSI(a_ring_outside_of_memory_is_refused);
}

SUITE(dirty_log)
{
    RUN_SCSI(it_stands_in_the_way_of_a_migration);
    RUN_SCSI(an_option_keeps_a_vm_where_it_is);
    RUN_SCSI(this_kernel_logs_the_used_rings_alone);
    RUN_SCSI(used_rings_are_logged_over_stop_and_start);
}

GREATEST_MAIN_DEFS();

int main(int argc, char **argv)
{
    GREATEST_MAIN_BEGIN();
    RUN_SUITE(data_path);
    RUN_SUITE(control_and_events);
    RUN_SUITE(stop_and_start);
    RUN_SUITE(endpoint);
    RUN_SUITE(fds_and_options);
    RUN_SUITE(memory);
    RUN_SUITE(refusals);
    RUN_SUITE(dirty_log);
    GREATEST_MAIN_END();
}
