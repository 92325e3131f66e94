/* vhost_kernel.h on the real vhost-vsock: bytes between the sockets of the host and a guest.

   vm-modules: vhost_vsock */
#define _GNU_SOURCE
#include "vsock_machine.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#define KIB 1024u
#define MIB UINT64_C(0x100000)

/* The kernel's numbers, not those of the library. */
#define SET_OWNER     0xaf01ul
#define SET_VRING_NUM 0x4008af10ul
#define SET_GUEST_CID 0x4008af60ul
#define SET_RUNNING   0x4004af61ul
#define GET_FEATURES  0x8008af00ul
#define UNKNOWN       0x4008af7ful

/* ---- the data path ---- */

TEST bytes_go_both_ways(vsock_machine *m)
{
    ASSERT_OK(vsock_machine_running(m));
    CHECK_CALL(vsock_machine_connects(m));
    CHECK_CALL(vsock_machine_talks(m, 1));
    CHECK_CALL(vsock_machine_talks(m, 1000));
    CHECK_CALL(vsock_machine_talks(m, 512 * KIB)); /* more than there is credit for */
    ASSERT(m->calls[0] > 0 && m->calls[1] > 0);
    return vsock_machine_closes(m);
}

TEST streams_come_and_go(vsock_machine *m)
{
    ASSERT_OK(vsock_machine_running(m));
    for (unsigned round = 0; round < 30; round++) {
        CHECK_CALL(vsock_machine_connects(m));
        CHECK_CALL(vsock_machine_talks(m, 1000 + 97 * round));
        CHECK_CALL(vsock_machine_closes(m));
    }
    PASS();
}

TEST the_facts_are_those_of_the_kernel(vsock_machine *m)
{
    char text[16] = "";
    ASSERT_OK(vsock_machine_stopped(m));
    const vhost_facts *facts = &m->device.facts;
    int fd = open("/sys/module/vhost/parameters/max_mem_regions", O_RDONLY | O_CLOEXEC);
    ASSERT(fd >= 0 && read(fd, text, sizeof text - 1) > 0);
    close(fd);
    ASSERT_UINT(strtoul(text, NULL, 10), facts->max_regions);
    ASSERT_UINT(2, facts->max_queues);
    ASSERT(facts->queues_together);
    ASSERT(vhost_features_test(&facts->offered, VHOST_FEATURE_VERSION_1));
    ASSERT(vhost_features_test(&facts->offered, VHOST_FEATURE_LOG_ALL));
    ASSERT(vhost_features_test(&facts->offered, 1)); /* SEQPACKET */
    PASS();
}

TEST a_busy_loop_is_taken(vsock_machine *m)
{
    ASSERT_OK(vsock_machine_stopped(m));
    m->queue[0].busy_loop_us = m->queue[1].busy_loop_us = 50;
    ASSERT_OK(vhost_device_start(&m->device));
    CHECK_CALL(vsock_machine_connects(m));
    return vsock_machine_talks(m, 10 * KIB);
}

TEST a_legacy_guest_works(vsock_machine *m)
{
    vhost_features_clear(&m->accepted, VHOST_FEATURE_VERSION_1);
    ASSERT_OK(vsock_machine_running(m));
    CHECK_CALL(vsock_machine_connects(m));
    return vsock_machine_talks(m, 10 * KIB);
}

/* The kernel's vsock has no foreign byte order. */
TEST a_legacy_guest_of_foreign_byte_order_is_refused(vsock_machine *m)
{
    vhost_features_clear(&m->accepted, VHOST_FEATURE_VERSION_1);
    ASSERT_OK(vsock_machine_stopped(m));
    m->queue[0].big_endian = m->queue[1].big_endian = true;
    ASSERT_INT(-ENOTSUP, vhost_device_start(&m->device));
    ASSERT_INT(VHOST_STATE_STOPPED, m->device.state);
    PASS();
}

/* ---- the guest's CID ---- */

TEST a_cid_is_a_guests(vsock_machine *m)
{
    static const uint64_t wrong[] = {
        0,         1, 2, UINT32_MAX, UINT64_C(1) << 32, (UINT64_C(1) << 32) + VSOCK_MACHINE_CID,
        UINT64_MAX};
    ASSERT_OK(vsock_machine_prepared(m));
    for (unsigned i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        ASSERT_INT(-EINVAL, vhost_kernel_vsock_open(&m->kernel, m->path, wrong[i], NULL));
        ASSERT_INT(VHOST_WHY_ARGUMENT, m->kernel.last_error.why);
    }
    m->cid = 3;
    ASSERT_OK(vsock_machine_attach(m));
    vsock_machine_detach(m);
    m->cid = UINT32_MAX - 1;
    ASSERT_OK(vsock_machine_attach(m));
    PASS();
}

TEST a_cid_in_use_is_told(vsock_machine *m)
{
    vhost_queue queue[2];
    vhost_kernel kernel;
    vhost_device device = {0};
    ASSERT_OK(vsock_machine_running(m));
    vhost_queue_init(&queue[0]);
    vhost_queue_init(&queue[1]);
    unsigned fds = machine_fds();
    ASSERT_OK(vhost_kernel_vsock_open(&kernel, m->path, m->cid, NULL));
    ASSERT_INT(-EADDRINUSE, vhost_device_init(&device, &m->vm, vhost_kernel_ops(&kernel), &kernel,
                                              queue, 2, NULL));
    ASSERT_INT(VHOST_WHY_KERNEL_CID, kernel.last_error.why);
    ASSERT_INT(VHOST_STATE_CLOSED, device.state);
    ASSERT_UINT(fds, machine_fds());
    CHECK_CALL(vsock_machine_connects(m));
    CHECK_CALL(vsock_machine_talks(m, 10 * KIB));
    vsock_machine_detach(m);
    ASSERT_OK(
        vhost_device_init(&device, &m->vm, vhost_kernel_ops(&kernel), &kernel, queue, 2, NULL));
    vhost_device_cleanup(&device);
    vhost_kernel_close(&kernel);
    PASS();
}

/* ---- stop and start ---- */

/* After a stop: what the kernel took is what the driver counts. */
static enum greatest_test_res positions_are_right(const vsock_machine *m)
{
    for (int i = 0; i < 2; i++) {
        const vhost_position *position = &m->queue[i].position;
        ASSERT_INT(VHOST_POSITION_CERTAIN, position->state);
        ASSERT_UINT(split_ring_done(&m->driver.ring[i]), position->avail);
        ASSERT_UINT(split_ring_done(&m->driver.ring[i]), position->used);
        ASSERT(position->used_certain);
    }
    PASS();
}

TEST positions_are_exact_and_go_on(vsock_machine *m)
{
    ASSERT_OK(vsock_machine_running(m));
    CHECK_CALL(vsock_machine_connects(m));
    for (unsigned round = 1; round <= 8; round++) {
        CHECK_CALL(vsock_machine_talks(m, 7000 * round));
        ASSERT_OK(vhost_device_stop(&m->device));
        CHECK_CALL(positions_are_right(m));
        ASSERT_UINT(m->driver.ring[VSOCK_TRANSMIT].added, m->queue[1].position.avail);
        ASSERT_OK(vhost_device_start(&m->device));
    }
    return vsock_machine_closes(m);
}

/* Has a ring begin at this index, a multiple of its size, instead of 0. */
static void turn_ring(vsock_machine *m, int queue, uint16_t index)
{
    split_ring *ring = &m->driver.ring[queue];
    ring->available->index = ring->added = (uint16_t)(ring->added + index);
    ring->used->index = ring->collected = index;
    m->queue[queue].position = (vhost_position){VHOST_POSITION_CERTAIN, index, index, true};
}

TEST positions_go_around(vsock_machine *m)
{
    const uint16_t first = 0x10000 - 2 * VSOCK_RING_SIZE;
    ASSERT_OK(vsock_machine_stopped(m));
    turn_ring(m, VSOCK_RECEIVE, first);
    turn_ring(m, VSOCK_TRANSMIT, first);
    ASSERT_OK(vhost_device_start(&m->device));
    CHECK_CALL(vsock_machine_connects(m));
    for (int round = 0; round < 20; round++) {
        CHECK_CALL(vsock_machine_talks(m, 40 * KIB));
        ASSERT_OK(vhost_device_stop(&m->device));
        CHECK_CALL(positions_are_right(m));
        ASSERT_OK(vhost_device_start(&m->device));
    }
    ASSERT(m->queue[0].position.avail < first && m->queue[1].position.avail < first);
    return vsock_machine_closes(m);
}

TEST a_stop_in_mid_traffic_loses_nothing(vsock_machine *m)
{
    ASSERT_OK(vsock_machine_running(m));
    CHECK_CALL(vsock_machine_connects(m));
    for (unsigned round = 0; round < 20; round++) {
        vsock_machine_posts(m, 100 * KIB);
        vsock_machine_turn(m);
        ASSERT_OK(vhost_device_stop(&m->device));
        CHECK_CALL(positions_are_right(m));
        ASSERT_OK(vhost_device_start(&m->device));
        CHECK_CALL(vsock_machine_arrives(m));
    }
    return vsock_machine_closes(m);
}

TEST what_came_while_stopped_is_not_lost(vsock_machine *m)
{
    ASSERT_OK(vsock_machine_running(m));
    CHECK_CALL(vsock_machine_connects(m));
    CHECK_CALL(vsock_machine_talks(m, 10 * KIB));
    ASSERT_OK(vhost_device_stop(&m->device));
    vsock_machine_posts(m, 100 * KIB);
    vsock_machine_turn(m);
    CHECK_CALL(positions_are_right(m));
    ASSERT_OK(vhost_device_start(&m->device));
    return vsock_machine_arrives(m);
}

/* Its kick came while nobody listened, and it has no reason for another one. */
TEST what_the_guest_sent_while_stopped_is_looked_at(vsock_machine *m)
{
    ASSERT_OK(vsock_machine_running(m));
    CHECK_CALL(vsock_machine_connects(m));
    for (int round = 0; round < 20; round++) {
        ASSERT_OK(vhost_device_stop(&m->device));
        vsock_machine_posts(m, 1);
        ASSERT_OK(vhost_device_start(&m->device));
        CHECK_CALL(vsock_machine_arrives(m));
    }
    return vsock_machine_closes(m);
}

TEST who_connects_while_stopped_waits(vsock_machine *m)
{
    ASSERT_OK(vsock_machine_stopped(m));
    ASSERT_OK(vsock_machine_host_connects(m));
    m->pair[0].guest = vsock_connect(&m->driver, VSOCK_MACHINE_HOST_PORT);
    ASSERT_OK(vhost_device_start(&m->device));
    CHECK_CALL(vsock_machine_accepts(m));
    return vsock_machine_talks(m, 10 * KIB);
}

TEST a_thousand_starts_and_stops_leave_nothing_behind(vsock_machine *m)
{
    ASSERT_OK(vsock_machine_running(m));
    CHECK_CALL(vsock_machine_connects(m));
    CHECK_CALL(vsock_machine_talks(m, 100 * KIB));
    unsigned fds = machine_fds(), threads = vsock_machine_threads();
    long before = machine_resident();
    for (int i = 0; i < 1000; i++) {
        ASSERT_OK(vhost_device_stop(&m->device));
        ASSERT_OK(vhost_device_start(&m->device));
    }
    ASSERT_UINT(fds, machine_fds());
    ASSERT_UINT(threads, vsock_machine_threads());
    ASSERT(before > 0 && machine_resident() - before < 64);
    CHECK_CALL(vsock_machine_talks(m, 100 * KIB));
    return vsock_machine_closes(m);
}

TEST fifty_lives_leave_nothing_behind(vsock_machine *m)
{
    ASSERT_OK(vsock_machine_running(m));
    unsigned fds = machine_fds(), threads = vsock_machine_threads();
    for (int i = 0; i < 50; i++) {
        vsock_machine_detach(m);
        ASSERT_UINT(fds - 5, machine_fds()); /* the vhost fd, and two notifiers per queue */
        ASSERT_OK(vsock_machine_attach(m));
        ASSERT_OK(vhost_device_start(&m->device));
    }
    ASSERT_UINT(fds, machine_fds());
    ASSERT_UINT(threads, vsock_machine_threads());
    CHECK_CALL(vsock_machine_connects(m));
    return vsock_machine_talks(m, 10 * KIB);
}

/* ---- as after a migration ---- */

/* Another device goes on where the first one was. */
static int migrate(vsock_machine *m)
{
    int result = vhost_device_stop(&m->device);
    vhost_position positions[2] = {m->queue[0].position, m->queue[1].position};
    vsock_machine_detach(m);
    vhost_queue_init(&m->queue[0]);
    vhost_queue_init(&m->queue[1]);
    if (result >= 0) {
        result = vsock_machine_attach(m);
    }
    vsock_machine_fill_queues(m);
    m->queue[0].position = positions[0];
    m->queue[1].position = positions[1];
    return result < 0 ? result : vhost_device_start(&m->device);
}

TEST a_migration_cuts_streams_and_keeps_rings(vsock_machine *m)
{
    ASSERT_OK(vsock_machine_running(m));
    for (unsigned round = 1; round <= 5; round++) {
        CHECK_CALL(vsock_machine_connects(m));
        CHECK_CALL(vsock_machine_talks(m, 50 * KIB));
        ASSERT_OK(migrate(m));
        ASSERT(vsock_machine_put_event(m, 0));
        CHECK_CALL(vsock_machine_is_cut(m));
        ASSERT_UINT(round, m->driver.transport_resets);
    }
    CHECK_CALL(vsock_machine_connects(m));
    CHECK_CALL(vsock_machine_talks(m, 50 * KIB));
    return vsock_machine_closes(m);
}

/* Whoever the host talked to is gone; the host learns it at once. */
TEST a_reset_cuts_the_streams(vsock_machine *m)
{
    ASSERT_OK(vsock_machine_running(m));
    for (int round = 0; round < 5; round++) {
        CHECK_CALL(vsock_machine_connects(m));
        CHECK_CALL(vsock_machine_talks(m, 10 * KIB));
        ASSERT_OK(vhost_device_stop(&m->device));
        ASSERT_OK(vhost_device_reset(&m->device));
        ASSERT(vsock_machine_put_event(m, 0)); /* the old driver has nothing to wait for */
        CHECK_CALL(vsock_machine_is_cut(m));
        vsock_machine_close_driver(m);
        ASSERT_OK(vsock_machine_open_driver(m));
        ASSERT_OK(vhost_device_ack(&m->device, m->accepted));
        ASSERT_OK(vhost_device_start(&m->device));
    }
    PASS();
}

/* Who goes on without the event is told no by the host, packet by packet. */
TEST without_the_event_a_stream_is_cut_by_its_next_packet(vsock_machine *m)
{
    ASSERT_OK(vsock_machine_running(m));
    CHECK_CALL(vsock_machine_connects(m));
    ASSERT_OK(migrate(m));
    vsock_machine_posts(m, 1);
    CHECK_CALL(vsock_machine_is_cut(m));
    ASSERT_UINT(0, m->driver.transport_resets);
    PASS();
}

/* ---- what is refused ---- */

TEST queues_start_and_stop_together_only(vsock_machine *m)
{
    ASSERT_OK(vsock_machine_running(m));
    CHECK_CALL(vsock_machine_connects(m));
    for (uint32_t queue = 0; queue < 2; queue++) {
        ASSERT_INT(-ENOTSUP, vhost_queue_stop(&m->device, queue));
        ASSERT_INT(-ENOTSUP, vhost_queue_start(&m->device, queue));
        ASSERT(m->queue[queue].started);
    }
    ASSERT_INT(VHOST_STATE_RUNNING, m->device.state);
    return vsock_machine_talks(m, 10 * KIB);
}

static enum greatest_test_res some_queues_do_not_start(vsock_machine *m)
{
    for (unsigned ready = 0; ready < 3; ready++) {
        m->queue[0].ready = ready == 1;
        m->queue[1].ready = ready == 2;
        ASSERT_INT(-EINVAL, vhost_device_start(&m->device));
        ASSERT_INT(VHOST_WHY_QUEUE_NOT_READY, m->kernel.last_error.why);
        ASSERT_INT(VHOST_STATE_STOPPED, m->device.state);
        ASSERT_FALSE(m->queue[0].started || m->queue[1].started);
    }
    vsock_machine_fill_queues(m);
    PASS();
}

/* The kernel runs both rings or none; and it would run one that is not ready now, at the addresses
   that it heard of in a former life of the guest. */
TEST a_start_without_a_queue_is_refused(vsock_machine *m)
{
    ASSERT_OK(vsock_machine_stopped(m));
    CHECK_CALL(some_queues_do_not_start(m));
    ASSERT_OK(vhost_device_start(&m->device));
    CHECK_CALL(vsock_machine_connects(m));
    CHECK_CALL(vsock_machine_talks(m, 10 * KIB));
    ASSERT_OK(vhost_device_stop(&m->device));
    CHECK_CALL(some_queues_do_not_start(m));
    ASSERT_OK(vhost_device_start(&m->device));
    CHECK_CALL(vsock_machine_talks(m, 10 * KIB));
    return vsock_machine_closes(m);
}

TEST a_used_ring_that_cannot_be_written_is_refused(vsock_machine *m)
{
    ASSERT_OK(vsock_machine_stopped(m));
    void *page = m->ram + m->queue[1].used / VHOST_PAGE * VHOST_PAGE;
    ASSERT_OK(mprotect(page, VHOST_PAGE, PROT_READ));
    ASSERT_INT(-EFAULT, vhost_device_start(&m->device));
    ASSERT_INT(VHOST_WHY_BACKEND_REFUSED, m->device.last_error.why);
    ASSERT_INT(VHOST_OP_SET_RUNNING, m->device.last_error.op);
    ASSERT_INT(VHOST_STATE_STOPPED, m->device.state);
    ASSERT_OK(mprotect(page, VHOST_PAGE, PROT_READ | PROT_WRITE));
    ASSERT_OK(vhost_device_start(&m->device));
    CHECK_CALL(vsock_machine_connects(m));
    return vsock_machine_talks(m, 10 * KIB);
}

TEST a_ring_outside_of_memory_is_refused(vsock_machine *m)
{
    ASSERT_OK(vsock_machine_stopped(m));
    m->queue[1].used = MACHINE_RAM - 64;
    ASSERT_INT(-EFAULT, vhost_device_start(&m->device));
    ASSERT_INT(VHOST_WHY_RING_UNMAPPED, m->device.last_error.why);
    vsock_machine_fill_queues(m);
    ASSERT_OK(vhost_device_start(&m->device));
    CHECK_CALL(vsock_machine_connects(m));
    return vsock_machine_talks(m, 10 * KIB);
}

TEST a_third_queue_is_refused(vsock_machine *m)
{
    vhost_queue queue[3];
    for (int i = 0; i < 3; i++) {
        vhost_queue_init(&queue[i]);
    }
    ASSERT_OK(vsock_machine_prepared(m));
    ASSERT_OK(vhost_kernel_vsock_open(&m->kernel, m->path, m->cid, NULL));
    ASSERT_INT(-EINVAL, vhost_device_init(&m->device, &m->vm, vhost_kernel_ops(&m->kernel),
                                          &m->kernel, queue, 3, NULL));
    ASSERT_INT(VHOST_WHY_TOO_MANY_QUEUES, m->device.last_error.why);
    PASS();
}

TEST a_device_that_is_not_there_is_refused(vsock_machine *m)
{
    m->path = "/dev/nothing";
    ASSERT_INT(-ENOENT, vsock_machine_stopped(m));
    ASSERT_INT(VHOST_WHY_KERNEL_OPEN, m->kernel.last_error.why);
    ASSERT_INT(VHOST_STATE_CLOSED, m->device.state);
    vsock_machine_detach(m);
    m->path = "/dev/null";
    ASSERT(vsock_machine_attach(m) < 0);
    vsock_machine_detach(m);
    m->path = "/dev/vhost-vsock";
    ASSERT_OK(vsock_machine_attach(m));
    PASS();
}

/* ---- fds and options ---- */

static int open_vsock(void)
{
    return open("/dev/vhost-vsock", O_RDWR | O_CLOEXEC);
}

TEST a_passed_fd_works(vsock_machine *m)
{
    m->passed_fd = open_vsock();
    ASSERT_OK(vsock_machine_running(m));
    CHECK_CALL(vsock_machine_connects(m));
    CHECK_CALL(vsock_machine_talks(m, 100 * KIB));
    ASSERT_OK(vhost_device_stop(&m->device));
    ASSERT_OK(vhost_device_reset(&m->device)); /* which keeps the fd */
    CHECK_CALL(vsock_machine_talks(m, 0));
    ASSERT(fcntl(m->passed_fd, F_GETFD) >= 0);
    vsock_machine_detach(m);
    ASSERT_INT(-1, fcntl(m->passed_fd, F_GETFD));
    PASS();
}

/* Somebody else may hold the fd, so closing it is not enough. */
TEST a_broken_device_does_not_run_behind_our_back(vsock_machine *m)
{
    uint32_t number[2] = {0, VSOCK_RING_SIZE};
    m->passed_fd = open_vsock();
    int held = fcntl(m->passed_fd, F_DUPFD_CLOEXEC, 0);
    ASSERT_OK(vsock_machine_running(m));
    CHECK_CALL(vsock_machine_connects(m));
    ASSERT_INT(-1, ioctl(held, SET_VRING_NUM, number));
    ASSERT_INT(EBUSY, errno); /* while it runs */
    ASSERT_OK(vsock_machine_map_sections(m, &m->plug, 1));
    ASSERT_INT(VHOST_STATE_BROKEN, m->device.state);
    ASSERT_INT(-1, fcntl(m->passed_fd, F_GETFD));
    ASSERT_OK(ioctl(held, SET_VRING_NUM, number));
    ASSERT_INT(-ENODEV, vhost_device_reset(&m->device));
    ASSERT_INT(VHOST_WHY_KERNEL_SEVERED, m->kernel.last_error.why);
    close(held);
    PASS();
}

TEST an_fd_of_somebody_else_is_refused(vsock_machine *m)
{
    m->passed_fd = open_vsock();
    ASSERT_OK(ioctl(m->passed_fd, SET_OWNER, NULL));
    ASSERT_INT(-EBUSY, vsock_machine_stopped(m));
    ASSERT_INT(VHOST_WHY_KERNEL_OWNER, m->kernel.last_error.why);
    PASS();
}

TEST options_for_other_kernels_do_no_harm(vsock_machine *m)
{
    m->kernel_options.worker_per_queue = true;
    m->kernel_options.thread = VHOST_KERNEL_THREAD_OF_OWNER;
    ASSERT_OK(vsock_machine_running(m));
    CHECK_CALL(vsock_machine_connects(m));
    return vsock_machine_talks(m, 100 * KIB);
}

TEST ioctls_are_passed_on(vsock_machine *m)
{
    uint64_t features = 0, unknown[2] = {0, 0}, cid = 2;
    ASSERT_OK(vsock_machine_stopped(m));
    ASSERT_OK(vhost_kernel_ioctl(&m->kernel, "GET_FEATURES", GET_FEATURES, &features));
    ASSERT((features >> VHOST_FEATURE_VERSION_1 & 1) != 0);
    ASSERT_INT(-ENOTSUP, vhost_kernel_ioctl(&m->kernel, "UNKNOWN", UNKNOWN, unknown));
    ASSERT_INT(-EINVAL, vhost_kernel_ioctl(&m->kernel, "SET_GUEST_CID", SET_GUEST_CID, &cid));
    PASS();
}

/* ---- a vhost device that the library does not know ---- */

static int refused_start;

static int set_running(vhost_kernel *kernel, bool on, void *user)
{
    int32_t value = on;
    (void)user;
    if (on && refused_start < 0) {
        return refused_start;
    }
    return vhost_kernel_ioctl(kernel, "SET_RUNNING", SET_RUNNING, &value);
}

static int attach_unknown(vsock_machine *m)
{
    m->kernel_options.set_running = set_running;
    int result = vhost_kernel_open(&m->kernel, m->path, 2, &m->kernel_options);
    if (result >= 0) {
        result = vhost_device_init(&m->device, &m->vm, vhost_kernel_ops(&m->kernel), &m->kernel,
                                   m->queue, 2, &m->device_options);
    }
    if (result >= 0) {
        result = vhost_kernel_ioctl(&m->kernel, "SET_GUEST_CID", SET_GUEST_CID, &m->cid);
    }
    return result < 0 ? result : vhost_device_ack(&m->device, m->accepted);
}

TEST a_vsock_is_driven_as_a_device_of_any_kind(vsock_machine *m)
{
    ASSERT_OK(vsock_machine_prepared(m));
    ASSERT_OK(attach_unknown(m));
    refused_start = -EDOM;
    ASSERT_INT(-EDOM, vhost_device_start(&m->device));
    ASSERT_INT(VHOST_STATE_STOPPED, m->device.state);
    refused_start = 0;
    ASSERT_OK(vhost_device_start(&m->device));
    CHECK_CALL(vsock_machine_connects(m));
    for (int round = 0; round < 5; round++) {
        vsock_machine_posts(m, 50 * KIB);
        ASSERT_OK(vhost_device_stop(&m->device));
        CHECK_CALL(positions_are_right(m));
        ASSERT_OK(vhost_device_start(&m->device));
        CHECK_CALL(vsock_machine_arrives(m));
    }
    return vsock_machine_closes(m);
}

/* ---- calls ---- */

/* The call follows the used buffer. */
static int pending_soon(vsock_machine *m)
{
    double begin = clock_now();
    int pending;
    do {
        pending = vhost_queue_pending(&m->device, 0);
    } while (pending == 0 && vsock_machine_waits(m, begin));
    return pending;
}

static void call_guest(vsock_machine *m, int queue)
{
    static const uint64_t one = 1;
    if (write(m->driver.call[queue], &one, sizeof one) != sizeof one) {
        m->driver.fault = "a call could not be written";
    }
}

TEST a_masked_call_is_pending(vsock_machine *m)
{
    ASSERT_OK(vsock_machine_running(m));
    CHECK_CALL(vsock_machine_connects(m));
    CHECK_CALL(vsock_machine_talks(m, 1));
    ASSERT_OK(vhost_queue_mask(&m->device, 0));
    vsock_machine_turn(m); /* takes the calls from before */
    unsigned calls = m->calls[0];
    vsock_machine_posts(m, 1);
    ASSERT_INT(1, pending_soon(m));
    ASSERT_UINT(calls, m->calls[0]);
    ASSERT_OK(vhost_device_stop(&m->device)); /* so that no call is on its way */
    (void)vhost_queue_pending(&m->device, 0);
    ASSERT_INT(0, vhost_queue_pending(&m->device, 0));
    vsock_machine_posts(m, 1);
    ASSERT_OK(vhost_device_start(&m->device));
    ASSERT_INT(1, pending_soon(m));
    ASSERT(vhost_queue_unmask(&m->device, 0) >= 0);
    call_guest(m, VSOCK_RECEIVE);
    return vsock_machine_arrives(m);
}

TEST an_unmask_tells_of_a_call(vsock_machine *m)
{
    ASSERT_OK(vsock_machine_running(m));
    CHECK_CALL(vsock_machine_connects(m));
    ASSERT_OK(vhost_device_stop(&m->device));
    ASSERT_OK(vhost_queue_mask(&m->device, 0));
    uint16_t done = split_ring_done(&m->driver.ring[VSOCK_RECEIVE]);
    vsock_machine_posts(m, 1);
    ASSERT_OK(vhost_device_start(&m->device));
    double begin = clock_now();
    while (split_ring_done(&m->driver.ring[VSOCK_RECEIVE]) == done) {
        ASSERT(vsock_machine_waits(m, begin));
    }
    ASSERT_OK(vhost_device_stop(&m->device)); /* so that its call is out */
    ASSERT_INT(1, vhost_queue_unmask(&m->device, 0));
    ASSERT_INT(0, vhost_queue_pending(&m->device, 0));
    ASSERT_OK(vhost_device_start(&m->device));
    call_guest(m, VSOCK_RECEIVE);
    return vsock_machine_arrives(m);
}

TEST no_call_is_lost_at_a_mask(vsock_machine *m)
{
    ASSERT_OK(vsock_machine_running(m));
    CHECK_CALL(vsock_machine_connects(m));
    for (uint32_t i = 0; i < 200; i++) {
        uint32_t queue = i % 2;
        vsock_machine_posts(m, 5000);
        ASSERT_OK(vhost_queue_mask(&m->device, queue));
        if (i % 3 == 0) {
            vsock_machine_turn(m);
        }
        int unmasked = vhost_queue_unmask(&m->device, queue);
        ASSERT(unmasked >= 0);
        if (unmasked > 0) {
            call_guest(m, (int)queue);
        }
        CHECK_CALL(vsock_machine_arrives(m));
    }
    PASS();
}

/* ---- memory ---- */

TEST memory_comes_and_goes_under_traffic(vsock_machine *m)
{
    ASSERT_OK(vsock_machine_running(m));
    CHECK_CALL(vsock_machine_connects(m));
    for (int round = 0; round < 30; round++) {
        vsock_machine_posts(m, 60 * KIB);
        ASSERT_OK(vsock_machine_map(m, true));
        vsock_machine_turn(m);
        ASSERT_OK(vsock_machine_map(m, false));
        CHECK_CALL(vsock_machine_arrives(m));
    }
    return vsock_machine_closes(m);
}

TEST memory_plugged_in_is_used(vsock_machine *m)
{
    m->transmits_from = MACHINE_PLUG;
    ASSERT_OK(vsock_machine_running(m));
    ASSERT_OK(vsock_machine_map(m, true));
    CHECK_CALL(vsock_machine_connects(m));
    return vsock_machine_talks(m, 100 * KIB);
}

static enum greatest_test_res resets_and_works(vsock_machine *m)
{
    ASSERT_OK(vhost_device_reset(&m->device));
    vsock_machine_close_driver(m);
    ASSERT_OK(vsock_machine_open_driver(m));
    ASSERT_OK(vhost_device_ack(&m->device, m->accepted));
    ASSERT_OK(vhost_device_start(&m->device));
    CHECK_CALL(vsock_machine_connects(m));
    CHECK_CALL(vsock_machine_talks(m, 100 * KIB));
    return vsock_machine_closes(m);
}

TEST memory_taken_from_under_a_ring_breaks_the_device(vsock_machine *m)
{
    vhost_section rest;
    ASSERT_OK(vsock_machine_running(m));
    CHECK_CALL(vsock_machine_connects(m));
    CHECK_CALL(vsock_machine_talks(m, 1000));
    vhost_section_init(&rest, MIB, MIB, &m->backing, MIB);
    unsigned fds = machine_fds();
    ASSERT_OK(vsock_machine_map_sections(m, &rest, 1));
    ASSERT_INT(VHOST_STATE_BROKEN, m->device.state);
    ASSERT_INT(VHOST_WHY_RING_UNMAPPED, m->device.last_error.why);
    ASSERT_UINT(1, m->broken);
    ASSERT_UINT(fds - 1, machine_fds());
    ASSERT_UINT(split_ring_done(&m->driver.ring[1]), m->queue[1].position.avail);
    ASSERT_INT(-EFAULT, vhost_device_stop(&m->device));
    ASSERT(vsock_machine_put_event(m, 0)); /* the host's end is cut by itself */
    CHECK_CALL(vsock_machine_is_cut(m));
    ASSERT_OK(vsock_machine_map(m, false));
    return resets_and_works(m);
}

/* Broken by its memory, and put back as it was: rings go on, streams do not. */
TEST a_broken_device_recovers(vsock_machine *m)
{
    vhost_section rest;
    ASSERT_OK(vsock_machine_running(m));
    CHECK_CALL(vsock_machine_connects(m));
    CHECK_CALL(vsock_machine_talks(m, 1000));
    vhost_section_init(&rest, MIB, MIB, &m->backing, MIB);
    ASSERT_OK(vsock_machine_map_sections(m, &rest, 1));
    ASSERT_INT(VHOST_STATE_BROKEN, m->device.state);
    ASSERT_OK(vsock_machine_map(m, false));
    ASSERT_OK(vhost_device_recover(&m->device));
    ASSERT_INT(VHOST_STATE_RUNNING, m->device.state);
    ASSERT(vsock_machine_put_event(m, 0));
    CHECK_CALL(vsock_machine_is_cut(m));
    CHECK_CALL(vsock_machine_connects(m));
    return vsock_machine_talks(m, 100 * KIB);
}

/* Of its queue, and of no other. */
static enum greatest_test_res transmit_error_is_told(vsock_machine *m)
{
    double begin = clock_now();
    while (m->queue_errors[1] == 0) {
        ASSERT(vsock_machine_waits(m, begin));
    }
    ASSERT_UINT(1, m->queue_errors[1]);
    ASSERT_UINT(0, m->queue_errors[0]);
    ASSERT_INT(VHOST_STATE_RUNNING, m->device.state);
    PASS();
}

TEST memory_left_out_is_out_of_reach(vsock_machine *m)
{
    m->transmits_from = MACHINE_PLUG;
    ASSERT_OK(vsock_machine_stopped(m));
    ASSERT_OK(vsock_machine_map(m, true));
    ASSERT_OK(vhost_device_start(&m->device));
    CHECK_CALL(vsock_machine_connects(m));
    CHECK_CALL(vsock_machine_talks(m, 10 * KIB));
    ASSERT_OK(vsock_machine_map(m, false));
    uint32_t before = m->pair[0].host_got;
    ASSERT_UINT(0, m->queue_errors[1]);
    vsock_machine_posts(m, 1);
    CHECK_CALL(transmit_error_is_told(m));
    ASSERT_UINT(before, m->pair[0].host_got);
    PASS();
}

TEST an_available_index_that_jumps_is_told(vsock_machine *m)
{
    ASSERT_OK(vsock_machine_running(m));
    CHECK_CALL(vsock_machine_connects(m));
    CHECK_CALL(vsock_machine_talks(m, 1000));
    uint16_t done = split_ring_done(&m->driver.ring[VSOCK_TRANSMIT]);
    m->driver.ring[VSOCK_TRANSMIT].available->index = (uint16_t)(done + VSOCK_RING_SIZE + 1);
    vsock_machine_kick(m, VSOCK_TRANSMIT);
    CHECK_CALL(transmit_error_is_told(m));
    ASSERT_OK(vhost_device_stop(&m->device));
    ASSERT_UINT(done, m->queue[1].position.avail);
    return resets_and_works(m);
}

/* ---- the dirty log ---- */

TEST its_log_is_not_to_be_trusted(vsock_machine *m)
{
    vhost_why why = VHOST_WHY_NONE;
    ASSERT_OK(vsock_machine_running(m));
    CHECK_CALL(vsock_machine_connects(m));
    ASSERT_EQ(&m->device, vhost_log_blocker(&m->vm, NULL, &why));
    ASSERT_INT(VHOST_WHY_LOG_PARTIAL, why);
    ASSERT_EQ(NULL, vhost_log_blocker(&m->vm, &m->device, &why));
    ASSERT_INT(-ENOTSUP, vhost_log_start(&m->vm));
    CHECK_CALL(vsock_machine_talks(m, 10 * KIB));
    vsock_machine_detach(m);
    ASSERT_OK(vhost_log_start(&m->vm));
    ASSERT_INT(-ENOTSUP, vsock_machine_attach(m));
    ASSERT_INT(VHOST_WHY_LOG_PARTIAL, m->device.last_error.why);
    vsock_machine_detach(m);
    ASSERT_OK(vhost_log_stop(&m->vm));
    ASSERT_OK(vsock_machine_attach(m));
    PASS();
}

static bool is_within(const unsigned char *some, const unsigned char *all)
{
    bool within = true;
    for (unsigned page = 0; page < MACHINE_PAGES; page++) {
        within &= some[page] <= all[page];
    }
    return within;
}

/* Waits until what was written is dirty: the kernel logs an index after it has written it. */
static enum greatest_test_res used_rings_are_dirty(vsock_machine *m)
{
    unsigned char *dirty = machine_no_pages();
    double begin = clock_now();
    while (!is_within(m->written, dirty)) {
        ASSERT(vsock_machine_waits(m, begin));
        CHECK_CALL(vsock_machine_take_log(m, dirty));
    }
    for (unsigned page = 0; page < MACHINE_PAGES; page++) {
        ASSERTm("a buffer is in the log: correct the library's table",
                dirty[page] == 0 || m->written[page] != 0);
    }
    ASSERT_UINT(4, machine_count_pages(dirty)); /* both pages of both used rings */
    ASSERT(machine_count_pages(m->filled) > 32);
    PASS();
}

/* Why the library does not trust it: of all that the device writes, the log has the used rings. */
TEST the_kernel_logs_used_rings_alone(vsock_machine *m)
{
    vhost_why why;
    m->kernel_options.logs = VHOST_KERNEL_LOGS_ALL;
    ASSERT_OK(vsock_machine_running(m));
    CHECK_CALL(vsock_machine_connects(m));
    ASSERT_EQ(NULL, vhost_log_blocker(&m->vm, NULL, &why));
    ASSERT_OK(vhost_log_start(&m->vm));
    vsock_machine_forget_written(m);
    CHECK_CALL(vsock_machine_talks(m, 512 * KIB)); /* once around each ring, and more */
    CHECK_CALL(used_rings_are_dirty(m));
    ASSERT_OK(vhost_device_stop(&m->device));
    unsigned char *dirty = machine_no_pages();
    CHECK_CALL(vsock_machine_take_log(m, dirty));
    vsock_machine_forget_written(m);
    vsock_machine_note_used_ring(m, 0);
    vsock_machine_note_used_ring(m, 1);
    CHECK_CALL(machine_same_pages(m->written, dirty)); /* a stop leaves them dirty */
    ASSERT_OK(vhost_device_start(&m->device));
    CHECK_CALL(vsock_machine_talks(m, 10 * KIB));
    ASSERT_OK(vhost_log_stop(&m->vm));
    return vsock_machine_talks(m, 10 * KIB);
}

TEST the_log_goes_on_and_off_under_traffic(vsock_machine *m)
{
    m->kernel_options.logs = VHOST_KERNEL_LOGS_ALL;
    ASSERT_OK(vsock_machine_running(m));
    CHECK_CALL(vsock_machine_connects(m));
    for (int round = 0; round < 50; round++) {
        vsock_machine_posts(m, 30 * KIB);
        ASSERT_OK(vhost_log_start(&m->vm));
        vsock_machine_turn(m);
        ASSERT_OK(vsock_machine_map(m, round % 2 == 0));
        ASSERT_OK(vhost_log_stop(&m->vm));
        CHECK_CALL(vsock_machine_arrives(m));
    }
    return vsock_machine_closes(m);
}

/* ---- behind a vIOMMU ----

   The driver sees IOVAs in `view`, which maps the pages of guest memory that the entries lead to,
   one entry for each page, in another order. */

#define WINDOW UINT64_C(0x123400000) /* the first IOVA, far above all memory */
#define HOME   (8 * MIB)             /* from the one place of a page to its other one */

enum {
    ENTRIES = (int)(VSOCK_MACHINE_DRIVER / VHOST_PAGE)
};

static struct {
    uint8_t *view;
    vhost_translation entry[ENTRIES]; /* of the page; size 0: none */
    int watching;
} unit;

static vhost_translation *entry_of(uint64_t iova)
{
    uint64_t page = (iova - WINDOW) / VHOST_PAGE;
    return iova >= WINDOW && page < ENTRIES ? &unit.entry[page] : NULL;
}

static int translate(vhost_device *device, uint64_t iova, bool write, vhost_translation *found,
                     void *user)
{
    const vhost_translation *entry = entry_of(iova);
    (void)device;
    (void)write;
    (void)user;
    if (!entry || entry->size == 0) {
        return -EFAULT;
    }
    *found = *entry;
    return 0;
}

static int watch(vhost_device *device, bool on, void *user)
{
    (void)device;
    (void)user;
    unit.watching += on ? 1 : -1;
    return 0;
}

static const vhost_memory_ops behind_iommu = {NULL, NULL, translate, watch};

static uint64_t gpa_of(vsock_machine *m, uint64_t iova)
{
    const vhost_translation *entry = entry_of(iova);
    (void)m;
    return entry ? entry->gpa + (iova - entry->iova) : iova;
}

static void iommu_map(vsock_machine *m, uint64_t iova, uint64_t gpa)
{
    *entry_of(iova) =
        (vhost_translation){iova, VHOST_PAGE, gpa, VHOST_PERMIT_READ | VHOST_PERMIT_WRITE};
    if (mmap(unit.view + iova, VHOST_PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED,
             m->ram_fd, (off_t)gpa) == MAP_FAILED) {
        abort();
    }
}

/* Moves what is behind a page: where it was, nothing is left. */
static int iommu_move_home(vsock_machine *m, uint64_t iova)
{
    uint64_t from = entry_of(iova)->gpa, to = from ^ HOME;
    entry_of(iova)->size = 0;
    int result = vhost_device_unmapped(&m->device, iova, VHOST_PAGE);
    memcpy(m->ram + to, m->ram + from, VHOST_PAGE);
    memset(m->ram + from, 0, VHOST_PAGE);
    iommu_map(m, iova, to);
    return result;
}

static int iommu_open(vsock_machine *m)
{
    memset(&unit, 0, sizeof unit);
    unit.view = mmap(NULL, WINDOW + VSOCK_MACHINE_DRIVER, PROT_NONE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (unit.view == MAP_FAILED) {
        unit.view = NULL;
        return -errno;
    }
    m->view = unit.view;
    m->base = WINDOW;
    m->gpa_of = gpa_of;
    m->device_options.memory = &behind_iommu;
    vhost_features_set(&m->accepted, VHOST_FEATURE_ACCESS_PLATFORM);
    int result = vsock_machine_open_memory(m);
    for (uint64_t i = 0; i < ENTRIES && result >= 0; i++) {
        iommu_map(m, WINDOW + i * VHOST_PAGE, 4 * MIB + i * 101 % ENTRIES * VHOST_PAGE);
    }
    return result;
}

static bool is_led_to(uint64_t gpa)
{
    for (unsigned i = 0; i < ENTRIES; i++) {
        if (unit.entry[i].size != 0 && unit.entry[i].gpa == gpa) {
            return true;
        }
    }
    return false;
}

/* Whatever no entry leads to is untouched; the first MiB are for a driver without vIOMMU. */
static enum greatest_test_res nothing_is_elsewhere(const vsock_machine *m)
{
    static const uint8_t zeros[VHOST_PAGE];
    off_t at = (off_t)VSOCK_MACHINE_DRIVER;
    while ((at = lseek(m->ram_fd, at, SEEK_DATA)) >= 0) { /* most of it was never touched */
        ASSERT(is_led_to((uint64_t)at) || memcmp(m->ram + at, zeros, VHOST_PAGE) == 0);
        at += (off_t)VHOST_PAGE;
    }
    PASS();
}

static vsock_machine_test *current_test;

static enum greatest_test_res run_behind_iommu(vsock_machine *m)
{
    ASSERT_OK(iommu_open(m));
    CHECK_CALL(current_test(m));
    vsock_machine_detach(m);
    ASSERT_INT(0, unit.watching);
    ASSERT_UINT(0, m->queue_errors[0] + m->queue_errors[1]);
    return nothing_is_elsewhere(m);
}

static enum greatest_test_res run_iommu(vsock_machine_test *test)
{
    current_test = test;
    enum greatest_test_res result = vsock_machine_run(run_behind_iommu);
    if (unit.view) {
        munmap(unit.view, WINDOW + VSOCK_MACHINE_DRIVER);
        unit.view = NULL;
    }
    return result;
}

#define RUN_IOMMU(TEST_NAME)                                                                       \
    do {                                                                                           \
        if (greatest_test_pre(#TEST_NAME) == 1) {                                                  \
            greatest_test_post(run_iommu(TEST_NAME));                                              \
        }                                                                                          \
    } while (0)

TEST bytes_find_their_way(vsock_machine *m)
{
    ASSERT_OK(vsock_machine_running(m));
    ASSERT_INT(1, unit.watching);
    CHECK_CALL(vsock_machine_connects(m));
    CHECK_CALL(vsock_machine_talks(m, 512 * KIB));
    unsigned answered = m->answered;
    ASSERT(answered >= 64); /* each buffer to receive into has a page of its own */
    CHECK_CALL(vsock_machine_talks(m, 512 * KIB));
    ASSERT(m->answered < 2 * ENTRIES); /* it knows all entries by now */
    ASSERT_UINT(0, m->errors);
    return vsock_machine_closes(m);
}

TEST stops_and_starts_lose_nothing(vsock_machine *m)
{
    ASSERT_OK(vsock_machine_running(m));
    CHECK_CALL(vsock_machine_connects(m));
    for (int round = 0; round < 50; round++) {
        vsock_machine_posts(m, 20 * KIB);
        ASSERT_OK(vhost_device_stop(&m->device));
        ASSERT_INT(0, unit.watching);
        CHECK_CALL(positions_are_right(m));
        ASSERT_OK(vhost_device_start(&m->device));
        CHECK_CALL(vsock_machine_arrives(m));
    }
    return vsock_machine_closes(m);
}

/* A page that nothing is mapped at for now: its packet waits, and no other overtakes it. */
TEST a_packet_in_an_unmapped_page_waits(vsock_machine *m)
{
    ASSERT_OK(vsock_machine_running(m));
    CHECK_CALL(vsock_machine_connects(m));
    CHECK_CALL(vsock_machine_talks(m, 10 * KIB));
    for (unsigned round = 0; round < 5; round++) {
        uint16_t buffer = m->driver.idle[m->driver.idle_count - 1];
        uint64_t page = m->driver.layout.buffers[VSOCK_TRANSMIT] + buffer * (uint64_t)VSOCK_BUFFER;
        vhost_translation *entry = entry_of(page / VHOST_PAGE * VHOST_PAGE);
        entry->size = 0;
        ASSERT_OK(vhost_device_unmapped(&m->device, entry->iova, VHOST_PAGE));
        unsigned unanswered = m->unanswered;
        vsock_machine_posts(m, 1);
        double begin = clock_now();
        while (m->unanswered == unanswered) {
            ASSERT(vsock_machine_waits(m, begin));
        }
        ASSERT(m->pair[0].host_got < m->pair[0].goal);
        ASSERT_OK(vhost_device_stop(&m->device)); /* and asks again after a start */
        entry->size = VHOST_PAGE;
        ASSERT_OK(vhost_device_start(&m->device));
        CHECK_CALL(vsock_machine_arrives(m));
    }
    return vsock_machine_closes(m);
}

static enum greatest_test_res buffers_move(vsock_machine *m, unsigned first, unsigned count)
{
    for (unsigned i = first; i < first + count; i++) {
        for (int queue = 0; queue < 2; queue++) {
            uint64_t buffers = m->driver.layout.buffers[queue] / VHOST_PAGE * VHOST_PAGE;
            ASSERT_OK(iommu_move_home(m, buffers + i * 31 % 64 * VHOST_PAGE));
        }
    }
    PASS();
}

TEST pages_move_under_traffic(vsock_machine *m)
{
    ASSERT_OK(vsock_machine_running(m));
    CHECK_CALL(vsock_machine_connects(m));
    for (unsigned round = 0; round < 10; round++) {
        CHECK_CALL(vsock_machine_talks(m, 60 * KIB));
        CHECK_CALL(buffers_move(m, round * 10, 20));
        CHECK_CALL(vsock_machine_talks(m, 60 * KIB));
        ASSERT_OK(vsock_machine_map(m, true));
        ASSERT_OK(vsock_machine_map(m, false)); /* the device forgets all entries */
    }
    ASSERT_UINT(0, m->errors);
    return vsock_machine_closes(m);
}

/* Another driver boots, with a vIOMMU or without. */
static int reboot(vsock_machine *m, bool with)
{
    int result = vhost_device_stop(&m->device);
    if (result >= 0) {
        result = vhost_device_reset(&m->device);
    }
    if (with) {
        vhost_features_set(&m->accepted, VHOST_FEATURE_ACCESS_PLATFORM);
    } else {
        vhost_features_clear(&m->accepted, VHOST_FEATURE_ACCESS_PLATFORM);
    }
    if (result >= 0) {
        result = vhost_device_ack(&m->device, m->accepted);
    }
    vsock_machine_close_driver(m);
    m->view = with ? unit.view : m->ram;
    m->base = with ? WINDOW : 0;
    return result < 0 ? result : vsock_machine_open_driver(m);
}

static enum greatest_test_res talks_anew(vsock_machine *m)
{
    CHECK_CALL(vsock_machine_connects(m));
    CHECK_CALL(vsock_machine_talks(m, 20 * KIB));
    return vsock_machine_closes(m);
}

TEST access_platform_is_given_back_20_times(vsock_machine *m)
{
    ASSERT_OK(vsock_machine_running(m));
    unsigned fds = machine_fds(), threads = vsock_machine_threads();
    CHECK_CALL(talks_anew(m));
    for (unsigned round = 0; round < 20; round++) {
        for (int with = 0; with < 2; with++) {
            ASSERT_OK(reboot(m, with));
            ASSERT_OK(vhost_device_start(&m->device));
            ASSERT_INT(with, unit.watching);
            CHECK_CALL(talks_anew(m));
        }
    }
    ASSERT_UINT(fds, machine_fds());
    ASSERT_UINT(threads, vsock_machine_threads());
    ASSERT_UINT(0, m->errors);
    PASS();
}

/* There are kernels (6.1 is one) whose device keeps its IOTLB as long as its fd is open. */
TEST access_platform_is_given_back_with_a_passed_fd(vsock_machine *m)
{
    m->passed_fd = open_vsock();
    ASSERT_OK(vsock_machine_running(m));
    CHECK_CALL(talks_anew(m));
    ASSERT_OK(reboot(m, false));
    int result = vhost_device_start(&m->device);
    if (result < 0) {
        ASSERT_INT(-EFAULT, result);
        ASSERT_INT(VHOST_WHY_KERNEL_STUCK, m->kernel.last_error.why);
        ASSERT_INT(VHOST_STATE_STOPPED, m->device.state);
        ASSERT_OK(reboot(m, true));
        ASSERT_OK(vhost_device_start(&m->device));
    }
    return talks_anew(m);
}

SUITE(data_path)
{
    RUN_VSOCK(bytes_go_both_ways);
    RUN_VSOCK(streams_come_and_go);
    RUN_VSOCK(the_facts_are_those_of_the_kernel);
    RUN_VSOCK(a_busy_loop_is_taken);
    RUN_VSOCK(a_legacy_guest_works);
    RUN_VSOCK(a_legacy_guest_of_foreign_byte_order_is_refused);
    RUN_VSOCK(a_cid_is_a_guests);
    RUN_VSOCK(a_cid_in_use_is_told);
}

SUITE(stop_and_start)
{
    RUN_VSOCK(positions_are_exact_and_go_on);
    RUN_VSOCK(positions_go_around);
    RUN_VSOCK(a_stop_in_mid_traffic_loses_nothing);
    RUN_VSOCK(what_came_while_stopped_is_not_lost);
    RUN_VSOCK(what_the_guest_sent_while_stopped_is_looked_at);
    RUN_VSOCK(who_connects_while_stopped_waits);
    RUN_VSOCK(a_thousand_starts_and_stops_leave_nothing_behind);
    RUN_VSOCK(fifty_lives_leave_nothing_behind);
    RUN_VSOCK(a_migration_cuts_streams_and_keeps_rings);
    RUN_VSOCK(a_reset_cuts_the_streams);
    RUN_VSOCK(without_the_event_a_stream_is_cut_by_its_next_packet);
}

SUITE(refusals)
{
    RUN_VSOCK(queues_start_and_stop_together_only);
    RUN_VSOCK(a_start_without_a_queue_is_refused);
    RUN_VSOCK(a_used_ring_that_cannot_be_written_is_refused);
    RUN_VSOCK(a_ring_outside_of_memory_is_refused);
    RUN_VSOCK(a_third_queue_is_refused);
    RUN_VSOCK(a_device_that_is_not_there_is_refused);
}

SUITE(fds_options_and_calls)
{
    RUN_VSOCK(a_passed_fd_works);
    RUN_VSOCK(a_broken_device_does_not_run_behind_our_back);
    RUN_VSOCK(an_fd_of_somebody_else_is_refused);
    RUN_VSOCK(options_for_other_kernels_do_no_harm);
    RUN_VSOCK(ioctls_are_passed_on);
    RUN_VSOCK(a_vsock_is_driven_as_a_device_of_any_kind);
    RUN_VSOCK(a_masked_call_is_pending);
    RUN_VSOCK(an_unmask_tells_of_a_call);
    RUN_VSOCK(no_call_is_lost_at_a_mask);
}

SUITE(memory)
{
    RUN_VSOCK(memory_comes_and_goes_under_traffic);
    RUN_VSOCK(memory_plugged_in_is_used);
    RUN_VSOCK(memory_taken_from_under_a_ring_breaks_the_device);
    RUN_VSOCK(a_broken_device_recovers);
    RUN_VSOCK(memory_left_out_is_out_of_reach);
    RUN_VSOCK(an_available_index_that_jumps_is_told);
}

SUITE(dirty_log)
{
    RUN_VSOCK(its_log_is_not_to_be_trusted);
    RUN_VSOCK(the_kernel_logs_used_rings_alone);
    RUN_VSOCK(the_log_goes_on_and_off_under_traffic);
}

SUITE(viommu)
{
    RUN_IOMMU(bytes_find_their_way);
    RUN_IOMMU(stops_and_starts_lose_nothing);
    RUN_IOMMU(a_packet_in_an_unmapped_page_waits);
    RUN_IOMMU(pages_move_under_traffic);
    RUN_IOMMU(the_kernel_logs_used_rings_alone); /* at guest physical addresses */
    RUN_IOMMU(access_platform_is_given_back_20_times);
    RUN_IOMMU(access_platform_is_given_back_with_a_passed_fd);
}

GREATEST_MAIN_DEFS();

int main(int argc, char **argv)
{
    GREATEST_MAIN_BEGIN();
    RUN_SUITE(data_path);
    RUN_SUITE(stop_and_start);
    RUN_SUITE(refusals);
    RUN_SUITE(fds_options_and_calls);
    RUN_SUITE(memory);
    RUN_SUITE(dirty_log);
    RUN_SUITE(viommu);
    GREATEST_MAIN_END();
}
