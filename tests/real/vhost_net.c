/* vhost_kernel.h on the real vhost-net: frames between two rings and a tap.

   vm-modules: vhost_net tun */
#define _GNU_SOURCE
#include "net_machine.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#define MIB UINT64_C(0x100000)

/* ---- the data path ---- */

TEST frames_go_both_ways(machine *m)
{
    ASSERT_OK(machine_running(m, 1));
    for (int round = 0; round < 5; round++) {
        CHECK_CALL(machine_frames_flow(m, MACHINE_BURST));
    }
    ASSERT(m->driver[0].calls > 0);
    PASS();
}

TEST the_facts_are_those_of_the_kernel(machine *m)
{
    char text[16] = "";
    ASSERT_OK(machine_stopped(m, 1));
    int fd = open("/sys/module/vhost/parameters/max_mem_regions", O_RDONLY | O_CLOEXEC);
    ASSERT(fd >= 0 && read(fd, text, sizeof text - 1) > 0);
    close(fd);
    ASSERT_UINT(strtoul(text, NULL, 10), m->device.facts.max_regions);
    ASSERT_UINT(2, m->device.facts.max_queues);
    ASSERT(vhost_features_test(&m->device.facts.offered, VHOST_FEATURE_VERSION_1));
    ASSERT(vhost_features_test(&m->device.facts.offered, VHOST_FEATURE_LOG_ALL));
    ASSERT_FALSE(vhost_features_test(&m->device.facts.offered, 27));
    PASS();
}

TEST a_device_without_calls_works(machine *m)
{
    ASSERT_OK(machine_stopped(m, 1));
    m->queue[1].call_fd = -1;
    ASSERT_OK(vhost_device_start(&m->device));
    CHECK_CALL(machine_frames_go_out(m, MACHINE_BURST));
    ASSERT_FALSE(net_driver_called(&m->driver[0], NET_TRANSMIT));
    PASS();
}

TEST a_busy_loop_is_taken_and_taken_back(machine *m)
{
    ASSERT_OK(machine_stopped(m, 1));
    m->queue[0].busy_loop_us = m->queue[1].busy_loop_us = 50;
    ASSERT_OK(vhost_device_start(&m->device));
    CHECK_CALL(machine_frames_flow(m, MACHINE_BURST));
    ASSERT_OK(vhost_device_stop(&m->device));
    m->queue[0].busy_loop_us = m->queue[1].busy_loop_us = 0;
    ASSERT_OK(vhost_device_start(&m->device));
    CHECK_CALL(machine_frames_flow(m, MACHINE_BURST));
    PASS();
}

/* ---- stop and start ---- */

/* After a stop: what the kernel took is what the driver counts. */
static enum greatest_test_res positions_are_right(const machine *m)
{
    const split_ring *rings = m->driver[0].ring;
    for (int i = 0; i < 2; i++) {
        const vhost_position *position = &m->queue[i].position;
        ASSERT_INT(VHOST_POSITION_CERTAIN, position->state);
        ASSERT_UINT(split_ring_done(&rings[i]), position->avail);
        ASSERT_UINT(split_ring_done(&rings[i]), position->used);
        ASSERT(position->used_certain);
    }
    PASS();
}

TEST positions_are_exact_and_go_on(machine *m)
{
    ASSERT_OK(machine_running(m, 1));
    for (unsigned round = 1; round <= 8; round++) {
        CHECK_CALL(machine_frames_flow(m, 11 * round));
        ASSERT_OK(vhost_device_stop(&m->device));
        CHECK_CALL(positions_are_right(m));
        ASSERT_UINT(m->sent, m->queue[1].position.avail);
        ASSERT_OK(vhost_device_start(&m->device));
    }
    ASSERT_UINT(11 * 36, m->sent);
    PASS();
}

TEST what_came_while_stopped_is_not_lost(machine *m)
{
    ASSERT_OK(machine_running(m, 1));
    CHECK_CALL(machine_frames_flow(m, 10));
    ASSERT_OK(vhost_device_stop(&m->device));
    CHECK_CALL(machine_guest_posts(m, 50));
    CHECK_CALL(machine_host_posts(m, 50));
    ASSERT_UINT(10, split_ring_done(&m->driver[0].ring[NET_TRANSMIT]));
    ASSERT_OK(vhost_device_start(&m->device));
    CHECK_CALL(machine_host_gets(m, 50));
    CHECK_CALL(machine_guest_gets(m, 50));
    PASS();
}

TEST a_stop_in_mid_traffic_loses_and_doubles_nothing(machine *m)
{
    ASSERT_OK(machine_running(m, 1));
    for (int round = 0; round < 20; round++) {
        uint16_t before = m->queue[1].position.avail;
        CHECK_CALL(machine_guest_posts(m, MACHINE_BURST));
        CHECK_CALL(machine_host_posts(m, 20));
        ASSERT_OK(vhost_device_stop(&m->device));
        CHECK_CALL(positions_are_right(m));
        unsigned taken = (uint16_t)(m->queue[1].position.avail - before);
        ASSERT(taken <= MACHINE_BURST);
        CHECK_CALL(machine_host_gets(m, taken));
        ASSERT_FALSE(machine_host_has_more(m));
        ASSERT_OK(vhost_device_start(&m->device));
        CHECK_CALL(machine_host_gets(m, MACHINE_BURST - taken));
        CHECK_CALL(machine_guest_gets(m, 20));
        ASSERT(machine_settles(m));
        ASSERT_OK(vhost_device_stop(&m->device));
        ASSERT_OK(vhost_device_start(&m->device));
    }
    PASS();
}

TEST one_queue_stops_while_the_other_runs(machine *m)
{
    ASSERT_OK(machine_running(m, 1));
    CHECK_CALL(machine_frames_flow(m, 10));
    ASSERT_OK(vhost_queue_stop(&m->device, 1));
    ASSERT_UINT(10, m->queue[1].position.avail);
    CHECK_CALL(machine_guest_posts(m, 5));
    CHECK_CALL(machine_frames_come_in(m, 20));
    ASSERT_FALSE(machine_host_has_more(m));
    ASSERT_OK(vhost_queue_start(&m->device, 1));
    CHECK_CALL(machine_host_gets(m, 5));
    ASSERT(machine_settles(m));
    ASSERT_OK(vhost_queue_stop(&m->device, 0));
    ASSERT_UINT(30, m->queue[0].position.avail);
    CHECK_CALL(machine_frames_go_out(m, 10));
    ASSERT_OK(vhost_queue_start(&m->device, 0));
    CHECK_CALL(machine_frames_flow(m, 10));
    PASS();
}

TEST a_thousand_starts_and_stops_leave_nothing_behind(machine *m)
{
    ASSERT_OK(machine_running(m, 1));
    CHECK_CALL(machine_frames_flow(m, 20));
    unsigned fds = machine_fds();
    long before = machine_resident();
    for (int i = 0; i < 1000; i++) {
        ASSERT_OK(vhost_device_stop(&m->device));
        ASSERT_OK(vhost_device_start(&m->device));
    }
    ASSERT_UINT(fds, machine_fds());
    ASSERT(before > 0 && machine_resident() - before < 64);
    CHECK_CALL(machine_frames_flow(m, 20));
    PASS();
}

TEST fifty_lives_leave_nothing_behind(machine *m)
{
    ASSERT_OK(machine_running(m, 1));
    unsigned fds = machine_fds();
    for (int i = 0; i < 50; i++) {
        vhost_device_cleanup(&m->device);
        ASSERT_UINT(fds - 5, machine_fds()); /* the vhost fd, and two notifiers per queue */
        ASSERT_OK(machine_attach(m));
        ASSERT_OK(vhost_device_start(&m->device));
    }
    ASSERT_UINT(fds, machine_fds());
    CHECK_CALL(machine_frames_flow(m, 20));
    PASS();
}

/* ---- memory ---- */

TEST memory_comes_and_goes_under_traffic(machine *m)
{
    ASSERT_OK(machine_running(m, 1));
    for (int round = 0; round < 30; round++) {
        CHECK_CALL(machine_guest_posts(m, 60));
        CHECK_CALL(machine_host_posts(m, 30));
        ASSERT_OK(machine_map(m, true));
        CHECK_CALL(machine_guest_gets(m, 15));
        ASSERT_OK(machine_map(m, false));
        CHECK_CALL(machine_guest_gets(m, 15));
        CHECK_CALL(machine_host_gets(m, 60));
        ASSERT(machine_settles(m));
    }
    PASS();
}

TEST memory_plugged_in_is_used(machine *m)
{
    m->buffers[NET_TRANSMIT] = MACHINE_PLUG;
    ASSERT_OK(machine_stopped(m, 1));
    ASSERT_OK(vhost_device_start(&m->device));
    for (int round = 0; round < 3; round++) {
        ASSERT_OK(machine_map(m, true));
        CHECK_CALL(machine_frames_flow(m, MACHINE_BURST));
        ASSERT_OK(machine_map(m, false));
    }
    PASS();
}

/* The error comes out at the fd of its queue, and at no other. */
static enum greatest_test_res ring_error_is_told(machine *m, uint32_t queue)
{
    int fds[MACHINE_QUEUES];
    uint32_t count = vhost_device_poll_fds(&m->device, fds, MACHINE_QUEUES);
    ASSERT(count >= 2 && count <= MACHINE_QUEUES);
    ASSERT_UINT(0, m->queue_errors[queue]);
    int told = fds[count - 2 + queue]; /* the back-end's own come first */
    ASSERT(machine_waits(m, told, MACHINE_PATIENCE));
    ASSERT_OK(vhost_device_process(&m->device));
    ASSERT_UINT(1, m->queue_errors[queue]);
    ASSERT_UINT(0, m->queue_errors[!queue]);
    ASSERT_INT(VHOST_STATE_RUNNING, m->device.state);
    PASS();
}

TEST memory_left_out_is_out_of_reach(machine *m)
{
    m->buffers[NET_TRANSMIT] = MACHINE_PLUG;
    ASSERT_OK(machine_stopped(m, 1));
    ASSERT_OK(machine_map(m, true));
    ASSERT_OK(vhost_device_start(&m->device));
    CHECK_CALL(machine_frames_go_out(m, 3));
    ASSERT_OK(machine_map(m, false));
    ASSERT_OK(vhost_device_process(&m->device));
    ASSERT_UINT(0, m->queue_errors[1]);
    CHECK_CALL(machine_guest_posts(m, 1));
    CHECK_CALL(ring_error_is_told(m, 1));
    ASSERT_FALSE(machine_host_has_more(m));
    PASS();
}

static enum greatest_test_res resets_and_works(machine *m)
{
    ASSERT_OK(vhost_device_reset(&m->device));
    machine_close_drivers(m);
    ASSERT_OK(machine_open_drivers(m));
    ASSERT_OK(vhost_device_ack(&m->device, m->accepted));
    ASSERT_OK(vhost_device_start(&m->device));
    CHECK_CALL(machine_frames_flow(m, MACHINE_BURST));
    PASS();
}

TEST memory_taken_from_under_a_ring_breaks_the_device(machine *m)
{
    ASSERT_OK(machine_running(m, 1));
    CHECK_CALL(machine_frames_flow(m, 7));
    unsigned fds = machine_fds();
    vhost_section rest;
    vhost_section_init(&rest, MIB, MIB, &m->backing, MIB);
    ASSERT_OK(machine_map_sections(m, &rest, 1));
    ASSERT_INT(VHOST_STATE_BROKEN, m->device.state);
    ASSERT_INT(VHOST_WHY_RING_UNMAPPED, m->device.last_error.why);
    ASSERT_UINT(1, m->broken);
    ASSERT_UINT(fds - 1, machine_fds());
    ASSERT_UINT(7, m->queue[1].position.avail);
    CHECK_CALL(machine_guest_posts(m, 5));
    ASSERT_FALSE(machine_host_has_more(m));
    ASSERT_INT(-EFAULT, vhost_device_stop(&m->device));
    ASSERT_OK(machine_map(m, false));
    return resets_and_works(m);
}

/* RAM, and single pages that nothing merges. */
static int map_regions(machine *m, unsigned count)
{
    vhost_section sections[65];
    sections[0] = m->low;
    for (unsigned i = 1; i < count; i++) {
        uint64_t gpa = MACHINE_PLUG + i * VHOST_PAGE;
        vhost_section_init(&sections[i], gpa, VHOST_PAGE, &m->backing, gpa);
        sections[i].flags = VHOST_SECTION_UNMERGEABLE;
    }
    return machine_map_sections(m, sections, count);
}

TEST as_many_regions_as_the_kernel_has_slots(machine *m)
{
    ASSERT_OK(machine_running(m, 1));
    ASSERT_UINT(64, m->device.facts.max_regions);
    ASSERT_OK(map_regions(m, 64));
    ASSERT_UINT(0, vhost_memory_free_slots(&m->vm));
    CHECK_CALL(machine_frames_flow(m, 10));
    ASSERT_INT(-ENOSPC, map_regions(m, 65));
    ASSERT_INT(VHOST_WHY_TOO_MANY_REGIONS, m->vm.last_error.why);
    ASSERT_INT(VHOST_STATE_RUNNING, m->device.state);
    CHECK_CALL(machine_frames_flow(m, 10));
    PASS();
}

/* ---- calls ---- */

/* Waits until the device has used the next buffer to receive into. */
static bool arrived(const machine *m, uint16_t before)
{
    int ms = 0;
    while (split_ring_done(&m->driver[0].ring[NET_RECEIVE]) == before && ms++ < MACHINE_PATIENCE) {
        (void)usleep(1000);
    }
    (void)usleep(5000); /* the call follows */
    return ms < MACHINE_PATIENCE;
}

TEST a_masked_call_is_pending(machine *m)
{
    ASSERT_OK(machine_running(m, 1));
    CHECK_CALL(machine_frames_come_in(m, 1));
    (void)net_driver_called(&m->driver[0], NET_RECEIVE);
    ASSERT_OK(vhost_queue_mask(&m->device, 0));
    ASSERT_INT(0, vhost_queue_pending(&m->device, 0));
    ASSERT(machine_host_sends(m, 1));
    ASSERT(arrived(m, 1));
    ASSERT_FALSE(net_driver_called(&m->driver[0], NET_RECEIVE));
    ASSERT_INT(1, vhost_queue_pending(&m->device, 0));
    ASSERT_INT(0, vhost_queue_pending(&m->device, 0));
    ASSERT(machine_host_sends(m, 2));
    ASSERT(arrived(m, 2));
    ASSERT_INT(1, vhost_queue_unmask(&m->device, 0));
    ASSERT_INT(0, vhost_queue_pending(&m->device, 0));
    CHECK_CALL(machine_guest_gets(m, 2));
    PASS();
}

TEST no_call_is_lost_at_a_mask(machine *m)
{
    ASSERT_OK(machine_running(m, 1));
    for (uint32_t i = 0; i < 100; i++) {
        frame made, got;
        ASSERT(machine_host_sends(m, i));
        ASSERT_OK(vhost_queue_mask(&m->device, 0));
        int pending = i % 2 == 0 ? vhost_queue_pending(&m->device, 0) : 0;
        int unmasked = vhost_queue_unmask(&m->device, 0);
        ASSERT(pending >= 0 && unmasked >= 0);
        ASSERT(pending || unmasked ||
               machine_waits(m, m->driver[0].call[NET_RECEIVE], MACHINE_PATIENCE));
        (void)net_driver_called(&m->driver[0], NET_RECEIVE);
        machine_incoming(m, i, &made);
        ASSERT(net_driver_receive(&m->driver[0], &got)); /* called, so it is there */
        ASSERT(frame_equal(&got, &made));
    }
    PASS();
}

/* ---- broken rings ---- */

TEST a_descriptor_outside_of_memory_is_told(machine *m)
{
    const ring_piece nowhere = {MACHINE_PLUG, 64, false};
    ASSERT_OK(machine_running(m, 1));
    CHECK_CALL(machine_frames_flow(m, 1));
    ASSERT_OK(vhost_device_process(&m->device));
    ASSERT(split_ring_add(&m->driver[0].ring[NET_TRANSMIT], &nowhere, 1, 0));
    machine_kick(m, NET_TRANSMIT);
    return ring_error_is_told(m, 1);
}

TEST an_available_index_that_jumps_is_told(machine *m)
{
    ASSERT_OK(machine_running(m, 1));
    CHECK_CALL(machine_frames_flow(m, 1));
    ASSERT_OK(vhost_device_process(&m->device));
    m->driver[0].ring[NET_TRANSMIT].available->index = 1 + NET_RING_SIZE + 1;
    machine_kick(m, NET_TRANSMIT);
    CHECK_CALL(ring_error_is_told(m, 1));
    ASSERT_OK(vhost_device_stop(&m->device));
    ASSERT_UINT(1, m->queue[1].position.avail);
    return resets_and_works(m);
}

/* ---- what the kernel refuses ---- */

/* The kernel writes to a used ring when it is given a tap. */
TEST a_used_ring_that_cannot_be_written_is_refused(machine *m)
{
    ASSERT_OK(machine_stopped(m, 1));
    void *page = m->ram + m->queue[1].used / VHOST_PAGE * VHOST_PAGE;
    ASSERT_OK(mprotect(page, VHOST_PAGE, PROT_READ));
    ASSERT_INT(-EFAULT, vhost_device_start(&m->device));
    ASSERT_INT(VHOST_WHY_BACKEND_REFUSED, m->device.last_error.why);
    ASSERT_INT(VHOST_OP_ENABLE_RING, m->device.last_error.op);
    ASSERT_INT(1, m->device.last_error.queue);
    ASSERT_INT(VHOST_STATE_STOPPED, m->device.state);
    ASSERT_OK(mprotect(page, VHOST_PAGE, PROT_READ | PROT_WRITE));
    ASSERT_OK(vhost_device_start(&m->device));
    CHECK_CALL(machine_frames_flow(m, 10));
    PASS();
}

TEST a_ring_outside_of_memory_is_refused(machine *m)
{
    ASSERT_OK(machine_stopped(m, 1));
    m->queue[1].used = MACHINE_RAM - 64;
    ASSERT_INT(-EFAULT, vhost_device_start(&m->device));
    ASSERT_INT(VHOST_WHY_RING_UNMAPPED, m->device.last_error.why);
    ASSERT_INT(VHOST_STATE_STOPPED, m->device.state);
    machine_fill_queues(m);
    ASSERT_OK(vhost_device_start(&m->device));
    CHECK_CALL(machine_frames_flow(m, 10));
    PASS();
}

TEST what_is_no_tap_is_refused(machine *m)
{
    ASSERT_OK(machine_running(m, 1));
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    CHECK_CALL(machine_frames_flow(m, 10));
    ASSERT_INT(-ENOTSOCK, vhost_kernel_net_attach(&m->net, 0, null));
    ASSERT_INT(VHOST_WHY_BACKEND_REFUSED, m->net.last_error.why);
    CHECK_CALL(machine_frames_flow(m, 10));
    ASSERT_OK(vhost_device_stop(&m->device));
    ASSERT_OK(vhost_kernel_net_attach(&m->net, 0, null));
    ASSERT_INT(-ENOTSOCK, vhost_device_start(&m->device));
    ASSERT_INT(VHOST_STATE_STOPPED, m->device.state);
    ASSERT_OK(vhost_kernel_net_attach(&m->net, 0, m->taps[0]));
    ASSERT_OK(vhost_device_start(&m->device));
    CHECK_CALL(machine_frames_flow(m, 10));
    close(null);
    PASS();
}

TEST a_tap_is_changed_under_way(machine *m)
{
    ASSERT_OK(machine_running(m, 1));
    CHECK_CALL(machine_frames_flow(m, 10));
    tap first = m->cable;
    ASSERT_OK(tap_open(&m->cable, first.host.ip, NET_HEADER));
    ASSERT_OK(vhost_kernel_net_attach(&m->net, 0, m->cable.fd));
    m->taps[0] = m->cable.fd;
    tap_close(&first);
    CHECK_CALL(machine_frames_flow(m, MACHINE_BURST));
    ASSERT_OK(vhost_kernel_net_attach(&m->net, 0, -1));
    CHECK_CALL(machine_guest_posts(m, 3));
    ASSERT_FALSE(machine_host_has_more(m));
    ASSERT_OK(vhost_kernel_net_attach(&m->net, 0, m->cable.fd));
    CHECK_CALL(machine_host_gets(m, 3));
    PASS();
}

/* ---- fds and options ---- */

TEST a_passed_fd_works_until_the_device_breaks(machine *m)
{
    ASSERT_OK(machine_prepared(m, 1));
    int fd = open("/dev/vhost-net", O_RDWR | O_CLOEXEC);
    ASSERT(fd >= 0);
    ASSERT_OK(vhost_kernel_net_open_fds(&m->net, &fd, m->taps, 1, NULL));
    ASSERT_OK(machine_attach(m));
    vhost_device_cleanup(&m->device);
    ASSERT_OK(machine_attach(m));
    ASSERT_OK(vhost_device_start(&m->device));
    CHECK_CALL(machine_frames_flow(m, 10));
    vhost_section rest;
    vhost_section_init(&rest, MIB, MIB, &m->backing, MIB);
    ASSERT_OK(machine_map_sections(m, &rest, 1));
    ASSERT_INT(-1, fcntl(fd, F_GETFD));
    ASSERT_INT(-ENODEV, vhost_device_reset(&m->device));
    ASSERT_INT(VHOST_WHY_KERNEL_SEVERED, m->net.last_error.why);
    PASS();
}

TEST an_fd_of_somebody_else_is_refused(machine *m)
{
    ASSERT_OK(machine_prepared(m, 1));
    int fd = open("/dev/vhost-net", O_RDWR | O_CLOEXEC);
    ASSERT_OK(ioctl(fd, _IO(0xAF, 0x01)));
    ASSERT_OK(vhost_kernel_net_open_fds(&m->net, &fd, m->taps, 1, NULL));
    ASSERT_INT(-EBUSY, machine_attach(m));
    ASSERT_INT(VHOST_WHY_KERNEL_OWNER, m->net.last_error.why);
    PASS();
}

TEST a_device_that_is_not_there_is_refused(machine *m)
{
    ASSERT_OK(machine_prepared(m, 1));
    ASSERT_OK(vhost_kernel_net_open(&m->net, "/dev/vhost-nothing", m->taps, 1, NULL));
    ASSERT_INT(-ENOENT, machine_attach(m));
    ASSERT_INT(VHOST_WHY_KERNEL_OPEN, m->net.last_error.why);
    vhost_kernel_close(&m->net);
    ASSERT_OK(vhost_kernel_net_open(&m->net, "/dev/null", m->taps, 1, NULL));
    ASSERT_INT(-ENOTSUP, machine_attach(m));
    PASS();
}

static enum greatest_test_res works_with(machine *m, vhost_kernel_thread thread, bool workers)
{
    m->kernel_options.thread = thread;
    m->kernel_options.worker_per_queue = workers;
    vhost_device_cleanup(&m->device);
    vhost_kernel_close(&m->net);
    ASSERT_OK(vhost_kernel_net_open(&m->net, "/dev/vhost-net", m->taps, 1, &m->kernel_options));
    ASSERT_OK(machine_attach(m));
    ASSERT_OK(vhost_device_start(&m->device));
    CHECK_CALL(machine_frames_flow(m, 10));
    ASSERT_OK(vhost_device_stop(&m->device));
    PASS();
}

/* A position that goes on: the rings are the same, the back-end is a new one. */
TEST options_for_newer_kernels_do_no_harm(machine *m)
{
    ASSERT_OK(machine_stopped(m, 1));
    CHECK_CALL(works_with(m, VHOST_KERNEL_THREAD_KTHREAD, false));
    CHECK_CALL(works_with(m, VHOST_KERNEL_THREAD_OF_OWNER, false));
    CHECK_CALL(works_with(m, VHOST_KERNEL_THREAD_DEFAULT, true));
    CHECK_CALL(works_with(m, VHOST_KERNEL_THREAD_OF_OWNER, true));
    PASS();
}

TEST a_log_fd_is_taken_and_taken_back(machine *m)
{
    ASSERT_OK(machine_stopped(m, 1));
    int fd = eventfd(0, EFD_CLOEXEC);
    ASSERT_OK(vhost_kernel_set_log_fd(&m->net, fd));
    ASSERT_OK(vhost_kernel_set_log_fd(&m->net, -1));
    close(fd);
    PASS();
}

/* ---- four pairs ---- */

static enum greatest_test_res all_pairs_talk(machine *m, uint16_t first, uint16_t count)
{
    CHECK_CALL(machine_pairs_talk(m, first, count));
    ASSERT(machine_settles(m));
    PASS();
}

TEST four_pairs_are_one_device(machine *m)
{
    ASSERT_OK(machine_running(m, MACHINE_PAIRS));
    CHECK_CALL(all_pairs_talk(m, 0, 10));
    ASSERT_OK(vhost_device_stop(&m->device));
    for (int q = 0; q < MACHINE_QUEUES; q++) {
        ASSERT_UINT(10, m->queue[q].position.avail);
    }
    ASSERT_OK(vhost_device_start(&m->device));
    CHECK_CALL(all_pairs_talk(m, 10, 5));
    ASSERT_OK(machine_map(m, true));
    CHECK_CALL(all_pairs_talk(m, 15, 5));
    PASS();
}

TEST one_pair_of_four_rests(machine *m)
{
    ASSERT_OK(machine_running(m, MACHINE_PAIRS));
    CHECK_CALL(all_pairs_talk(m, 0, 3));
    ASSERT_OK(vhost_queue_stop(&m->device, 5));
    ASSERT_UINT(3, m->queue[5].position.avail);
    for (uint32_t pair = 0; pair < MACHINE_PAIRS; pair++) {
        if (pair != 2) {
            CHECK_CALL(machine_pair_talks(m, pair, 9));
        }
    }
    ASSERT_OK(vhost_queue_start(&m->device, 5));
    CHECK_CALL(all_pairs_talk(m, 10, 3));
    PASS();
}

TEST four_pairs_break_as_one(machine *m)
{
    ASSERT_OK(machine_running(m, MACHINE_PAIRS));
    unsigned fds = machine_fds();
    vhost_section rest;
    vhost_section_init(&rest, 0, 3 * MACHINE_PAIR, &m->backing, 0);
    ASSERT_OK(machine_map_sections(m, &rest, 1));
    ASSERT_INT(VHOST_STATE_BROKEN, m->device.state);
    ASSERT_UINT(fds - MACHINE_PAIRS, machine_fds());
    PASS();
}

SUITE(data_path)
{
    RUN_MACHINE(frames_go_both_ways);
    RUN_MACHINE(the_facts_are_those_of_the_kernel);
    RUN_MACHINE(a_device_without_calls_works);
    RUN_MACHINE(a_busy_loop_is_taken_and_taken_back);
    RUN_MACHINE(a_masked_call_is_pending);
    RUN_MACHINE(no_call_is_lost_at_a_mask);
}

SUITE(stop_and_start)
{
    RUN_MACHINE(positions_are_exact_and_go_on);
    RUN_MACHINE(what_came_while_stopped_is_not_lost);
    RUN_MACHINE(a_stop_in_mid_traffic_loses_and_doubles_nothing);
    RUN_MACHINE(one_queue_stops_while_the_other_runs);
    RUN_MACHINE(a_thousand_starts_and_stops_leave_nothing_behind);
    RUN_MACHINE(fifty_lives_leave_nothing_behind);
}

SUITE(memory)
{
    RUN_MACHINE(memory_comes_and_goes_under_traffic);
    RUN_MACHINE(memory_plugged_in_is_used);
    RUN_MACHINE(memory_left_out_is_out_of_reach);
    RUN_MACHINE(memory_taken_from_under_a_ring_breaks_the_device);
    RUN_MACHINE(as_many_regions_as_the_kernel_has_slots);
}

SUITE(refusals)
{
    RUN_MACHINE(a_descriptor_outside_of_memory_is_told);
    RUN_MACHINE(an_available_index_that_jumps_is_told);
    RUN_MACHINE(a_used_ring_that_cannot_be_written_is_refused);
    RUN_MACHINE(a_ring_outside_of_memory_is_refused);
    RUN_MACHINE(what_is_no_tap_is_refused);
    RUN_MACHINE(a_tap_is_changed_under_way);
}

SUITE(fds_and_options)
{
    RUN_MACHINE(a_passed_fd_works_until_the_device_breaks);
    RUN_MACHINE(an_fd_of_somebody_else_is_refused);
    RUN_MACHINE(a_device_that_is_not_there_is_refused);
    RUN_MACHINE(options_for_newer_kernels_do_no_harm);
    RUN_MACHINE(a_log_fd_is_taken_and_taken_back);
}

SUITE(four_pairs)
{
    RUN_MACHINE(four_pairs_are_one_device);
    RUN_MACHINE(one_pair_of_four_rests);
    RUN_MACHINE(four_pairs_break_as_one);
}

GREATEST_MAIN_DEFS();

int main(int argc, char **argv)
{
    GREATEST_MAIN_BEGIN();
    RUN_SUITE(data_path);
    RUN_SUITE(stop_and_start);
    RUN_SUITE(memory);
    RUN_SUITE(refusals);
    RUN_SUITE(fds_and_options);
    RUN_SUITE(four_pairs);
    GREATEST_MAIN_END();
}
