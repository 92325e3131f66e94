/* vhost_kernel.h on vDPA devices that refuse: a disk on VDUSE that is told to, or dies; kernels
   that know less, or lock no more memory.

   vm-modules: vhost_vdpa vduse vdpa_sim_net vdpa_sim_blk
   vm-programs: vdpa qemu-storage-daemon
   vm-kernels: 6.12 */
#include "vdpa_machine.h"

#include <errno.h>
#include <string.h>
#include <sys/resource.h>

#define MIB UINT64_C(0x100000)

enum { /* back-end features */
    BATCH = 1u << 2,
    ASID = 1u << 3,
    SUSPEND = 1u << 4,
    RESUME = 1u << 5,
    PERSIST = 1u << 8
};

enum {
    A_WHILE = 200 /* ms, in which what cannot be done would have been */
};

/* ---- a device that has to be reset to be stopped ---- */

TEST an_idle_ring_tells_its_position(vdpa_machine *m)
{
    m->hidden = SUSPEND;
    ASSERT_OK(vdpa_machine_running(m));
    for (unsigned i = 1; i <= 3; i++) {
        ASSERT(vdpa_machine_transfers(m, BLK_READ, VDPA_DATA));
        ASSERT_OK(vhost_device_stop(&m->device));
        CHECK_CALL(vdpa_machine_positions_are_exact(m));
        ASSERT_UINT(i, m->queue[0].position.avail);
        ASSERT_OK(vhost_device_start(&m->device));
    }
    ASSERT_UINT(0, m->calls.suspends);
    ASSERT_UINT(0, m->calls.bases_read);
    PASS();
}

/* Stops the device while it has a burst of requests, of which it has completed some. */
static enum greatest_test_res stops_in_a_burst(vdpa_machine *m, unsigned completed)
{
    uint16_t before = m->disk.queues[0].ring.added;
    ASSERT_OK(vduse_device_hold(&m->vduse, true));
    CHECK_CALL(vdpa_machine_posts(m));
    ASSERT(vduse_device_await(&m->vduse, VDUSE_DEVICE_HELD_NOW, BLK_DEPTH));
    for (unsigned i = 0; i < completed; i++) {
        ASSERT_OK(vduse_device_release(&m->vduse, 0));
    }
    ASSERT_OK(vhost_device_stop(&m->device));
    ASSERT_UINT((uint16_t)(before + completed), m->queue[0].position.avail);
    ASSERT_OK(vduse_device_hold(&m->vduse, false));
    PASS();
}

TEST a_guess_is_not_started_from(vdpa_machine *m)
{
    ASSERT_OK(vdpa_machine_running(m));
    CHECK_CALL(vdpa_machine_flows(m));
    CHECK_CALL(stops_in_a_burst(m, 5));
    ASSERT_INT(VHOST_POSITION_GUESSED, m->queue[0].position.state);
    ASSERT_INT(-EINVAL, vhost_device_start(&m->device));
    ASSERT_INT(VHOST_WHY_POSITION_GUESSED, m->device.last_error.why);
    ASSERT_INT(VHOST_STATE_STOPPED, m->device.state);
    ASSERT_OK(vdpa_machine_restart(m));
    return vdpa_machine_flows(m);
}

/* It completes requests in order, and forgets at a reset those that it holds. */
TEST a_guess_is_right_for_who_knows_the_device(vdpa_machine *m)
{
    ASSERT_OK(vdpa_machine_running(m));
    CHECK_CALL(vdpa_machine_flows(m));
    for (unsigned completed = 0; completed < BLK_DEPTH; completed += 5) {
        CHECK_CALL(stops_in_a_burst(m, completed));
        ASSERT_INT(VHOST_POSITION_GUESSED, m->queue[0].position.state);
        m->queue[0].position.state = VHOST_POSITION_CERTAIN;
        ASSERT_OK(vhost_device_start(&m->device));
        CHECK_CALL(vdpa_machine_finishes(m));
    }
    PASS();
}

TEST all_done_is_no_guess(vdpa_machine *m)
{
    ASSERT_OK(vdpa_machine_running(m));
    CHECK_CALL(stops_in_a_burst(m, BLK_DEPTH));
    CHECK_CALL(vdpa_machine_positions_are_exact(m));
    ASSERT_OK(vhost_device_start(&m->device));
    return vdpa_machine_finishes(m);
}

TEST a_packed_ring_does_not_tell(vdpa_machine *m)
{
    m->vduse_options.features |= UINT64_C(1) << VHOST_FEATURE_RING_PACKED;
    vhost_features_set(&m->accepted, VHOST_FEATURE_RING_PACKED);
    ASSERT_OK(vdpa_machine_stopped(m));
    m->queue[0].avail = 0x1000;
    m->queue[0].used = 0x2000;
    m->queue[0].position = (vhost_position){VHOST_POSITION_CERTAIN, 0x8005, 0x8003, false};
    for (int round = 0; round < 2; round++) {
        ASSERT_OK(vhost_device_start(&m->device));
        ASSERT_OK(vhost_device_stop(&m->device));
        ASSERT_INT(VHOST_POSITION_GUESSED, m->queue[0].position.state);
        ASSERT_UINT(0x8005, m->queue[0].position.avail);
        ASSERT_UINT(0x8003, m->queue[0].position.used);
        ASSERT_INT(-EINVAL, vhost_device_start(&m->device));
        m->queue[0].position.state = VHOST_POSITION_CERTAIN;
    }
    PASS();
}

/* ---- a device that refuses a step ---- */

typedef struct step {
    vduse_device_counter step;
    vhost_op op;      /* of which it is a part */
    const char *name; /* that is told */
} step;

static const step start_steps[] = {
    {VDUSE_DEVICE_FEATURES_OK, VHOST_OP_SET_FEATURES, "FEATURES_OK"},
    {VDUSE_DEVICE_DRIVER_OK, VHOST_OP_SET_RUNNING, "DRIVER_OK"},
};

/* Both objects say what failed: one the operation, the other the step of it. */
static enum greatest_test_res start_fails(vdpa_machine *m, const step *at, vhost_state after)
{
    ASSERT_INT(-EINVAL, vhost_device_start(&m->device));
    ASSERT_INT(at->op, m->device.last_error.op);
    ASSERT_INT(-EINVAL, m->device.last_error.code);
    ASSERT(strstr(m->device.last_error.text, at->name));
    ASSERT_INT(VHOST_WHY_KERNEL_STATUS, m->vdpa.last_error.why);
    ASSERT(strstr(m->vdpa.last_error.text, at->name));
    ASSERT_INT(after, m->device.state);
    ASSERT_UINT(after == VHOST_STATE_BROKEN, m->broken);
    PASS();
}

static enum greatest_test_res start_is_refused(vdpa_machine *m, const step *at)
{
    ASSERT_OK(vduse_device_refuse(&m->vduse, at->step, VDUSE_DEVICE_FAIL, 1, 2));
    CHECK_CALL(start_fails(m, at, VHOST_STATE_STOPPED));
    CHECK_CALL(start_fails(m, at, VHOST_STATE_STOPPED));
    ASSERT_OK(vhost_device_start(&m->device));
    CHECK_CALL(vdpa_machine_flows(m));
    ASSERT_OK(vhost_device_stop(&m->device));
    return vdpa_machine_positions_are_exact(m);
}

TEST a_refused_start_can_be_tried_again(vdpa_machine *m)
{
    ASSERT_OK(vdpa_machine_stopped(m));
    for (unsigned i = 0; i < 2 * sizeof start_steps / sizeof start_steps[0]; i++) {
        CHECK_CALL(start_is_refused(m, &start_steps[i / 2]));
    }
    PASS();
}

static enum greatest_test_res stop_breaks(vdpa_machine *m)
{
    ASSERT_INT(-EIO, vhost_device_stop(&m->device));
    ASSERT_INT(VHOST_STATE_BROKEN, m->device.state);
    ASSERT_INT(VHOST_OP_SET_RUNNING, m->device.last_error.op);
    ASSERT(strstr(m->device.last_error.text, "SET_STATUS"));
    ASSERT_UINT(1, m->broken);
    PASS();
}

TEST a_refused_stop_breaks_the_device(vdpa_machine *m)
{
    ASSERT_OK(vdpa_machine_running(m));
    CHECK_CALL(vdpa_machine_flows(m));
    ASSERT_OK(vduse_device_refuse(&m->vduse, VDUSE_DEVICE_RESET, VDUSE_DEVICE_FAIL, 1, 1));
    CHECK_CALL(stop_breaks(m));
    CHECK_CALL(vdpa_machine_positions_are_exact(m));
    ASSERT_INT(-EIO, vhost_device_start(&m->device));
    ASSERT_OK(vdpa_machine_restart(m));
    return vdpa_machine_flows(m);
}

TEST a_refused_reset_breaks_the_device(vdpa_machine *m)
{
    ASSERT_OK(vdpa_machine_running(m));
    CHECK_CALL(vdpa_machine_flows(m));
    ASSERT_OK(vhost_device_stop(&m->device));
    ASSERT_OK(vduse_device_refuse(&m->vduse, VDUSE_DEVICE_RESET, VDUSE_DEVICE_FAIL, 1, 1));
    ASSERT_INT(-EIO, vhost_device_reset(&m->device));
    ASSERT_INT(VHOST_STATE_BROKEN, m->device.state);
    ASSERT_INT(VHOST_OP_RESET, m->device.last_error.op);
    ASSERT_OK(vdpa_machine_restart(m));
    return vdpa_machine_flows(m);
}

/* Only a device that is suspended has positions. */
TEST a_position_is_never_asked_for_where_it_could_move(vdpa_machine *m)
{
    ASSERT_OK(vdpa_machine_running(m));
    ASSERT_OK(vduse_device_refuse(&m->vduse, VDUSE_DEVICE_VQ_STATE, VDUSE_DEVICE_FAIL, 1, 99));
    for (int round = 0; round < 3; round++) {
        CHECK_CALL(vdpa_machine_flows(m));
        ASSERT_OK(vhost_device_stop(&m->device));
        CHECK_CALL(vdpa_machine_positions_are_exact(m));
        ASSERT_OK(vhost_device_start(&m->device));
    }
    ASSERT_INT(0, vduse_device_count(&m->vduse, VDUSE_DEVICE_VQ_STATE));
    ASSERT_UINT(0, m->calls.bases_read);
    PASS();
}

/* In a batch, the kernel tells of no refusal; a lone map is none. */
TEST a_refused_map_breaks_the_device(vdpa_machine *m)
{
    ASSERT_OK(vdpa_machine_running(m));
    CHECK_CALL(vdpa_machine_flows(m));
    m->calls.batches = 0;
    ASSERT_OK(vduse_device_refuse(&m->vduse, VDUSE_DEVICE_IOTLB, VDUSE_DEVICE_FAIL, 1, 1));
    ASSERT_OK(vdpa_machine_map(m, true));
    ASSERT_INT(VHOST_STATE_BROKEN, m->device.state);
    ASSERT_INT(VHOST_OP_SET_TABLE, m->device.last_error.op);
    ASSERT(strstr(m->vdpa.last_error.text, "0x800000+0x100000"));
    ASSERT_UINT(0, m->calls.batches);
    CHECK_CALL(vdpa_machine_positions_are_exact(m));
    ASSERT_OK(vhost_device_recover(&m->device));
    return vdpa_machine_flows(m);
}

/* ---- a device that does not answer, or dies: it is lost, and another one takes its place ---- */

/* The same name, the same path, and an empty disk. */
static enum greatest_test_res another_takes_its_place(vdpa_machine *m)
{
    ASSERT_OK(vduse_device_stop(&m->vduse));
    ASSERT_OK(vduse_device_start(&m->vduse, &m->vduse_options));
    ASSERT_STR_EQ(m->path, m->vduse.path);
    PASS();
}

/* There is nothing to be had from it any more, and no call waits for it again. */
static enum greatest_test_res lost_and_replaced(vdpa_machine *m)
{
    ASSERT(vhost_device_start(&m->device) < 0);
    ASSERT_INT(-EIO, vhost_device_reset(&m->device));
    ASSERT_INT(VHOST_STATE_BROKEN, m->device.state);
    ASSERT_INT(-EIO, vhost_device_reset(&m->device));
    CHECK_CALL(another_takes_its_place(m));
    ASSERT_OK(vdpa_machine_restart(m));
    return vdpa_machine_flows(m);
}

static enum greatest_test_res start_hangs(vdpa_machine *m, const step *at, vhost_state after)
{
    ASSERT_OK(vdpa_machine_stopped(m));
    ASSERT_OK(vduse_device_refuse(&m->vduse, at->step, VDUSE_DEVICE_SILENT, 1, 1));
    CHECK_CALL(start_fails(m, at, after));
    return lost_and_replaced(m);
}

TEST no_answer_to_features_ok(vdpa_machine *m)
{
    return start_hangs(m, &start_steps[0], VHOST_STATE_STOPPED);
}

/* The reset that shall undo it is not done either. */
TEST no_answer_to_driver_ok(vdpa_machine *m)
{
    return start_hangs(m, &start_steps[1], VHOST_STATE_BROKEN);
}

TEST no_answer_to_a_stop(vdpa_machine *m)
{
    ASSERT_OK(vdpa_machine_running(m));
    CHECK_CALL(vdpa_machine_flows(m));
    ASSERT_OK(vduse_device_refuse(&m->vduse, VDUSE_DEVICE_RESET, VDUSE_DEVICE_SILENT, 1, 1));
    CHECK_CALL(stop_breaks(m));
    CHECK_CALL(vdpa_machine_positions_are_exact(m));
    return lost_and_replaced(m);
}

/* Killed with a request in flight. Nobody is told; only the stop finds out. */
static enum greatest_test_res dies(vdpa_machine *m)
{
    ASSERT_OK(vdpa_machine_running(m));
    ASSERT(vdpa_machine_transfers(m, BLK_READ, VDPA_DATA));
    ASSERT_OK(vduse_device_kill(&m->vduse));
    ASSERT(vdpa_machine_asks(m, BLK_READ, VDPA_DATA));
    ASSERT_FALSE(vdpa_machine_transferred(m, A_WHILE));
    ASSERT_INT(VHOST_STATE_RUNNING, m->device.state);
    CHECK_CALL(stop_breaks(m));
    ASSERT_INT(VHOST_POSITION_GUESSED, m->queue[0].position.state);
    ASSERT_UINT(1, m->queue[0].position.avail);
    PASS();
}

TEST a_device_that_dies_is_replaced(vdpa_machine *m)
{
    CHECK_CALL(dies(m));
    return lost_and_replaced(m);
}

/* The driver does not notice: what was in flight is done by the other one. */
TEST a_device_that_dies_is_replaced_behind_the_driver(vdpa_machine *m)
{
    CHECK_CALL(dies(m));
    ASSERT_INT(-EINVAL, vhost_device_recover(&m->device));
    ASSERT_INT(VHOST_WHY_POSITION_GUESSED, m->device.last_error.why);
    m->queue[0].position.state = VHOST_POSITION_CERTAIN;
    ASSERT_INT(-EIO, vhost_device_recover(&m->device));
    CHECK_CALL(another_takes_its_place(m));
    ASSERT_OK(vhost_device_recover(&m->device));
    ASSERT_INT(VHOST_STATE_RUNNING, m->device.state);
    ASSERT(vdpa_machine_transferred(m, VDPA_PATIENCE));
    return vdpa_machine_flows(m);
}

/* ---- kernels that know less ---- */

static enum greatest_test_res works(vdpa_machine *m)
{
    ASSERT_OK(vdpa_machine_running(m));
    for (int round = 0; round < 3; round++) {
        CHECK_CALL(vdpa_machine_flows(m));
        ASSERT_OK(vdpa_machine_map(m, round % 2 == 0));
        CHECK_CALL(vdpa_machine_flows(m));
        ASSERT_OK(vhost_device_stop(&m->device));
        if (m->kind != VDPA_SIM_NET) { /* the buffers to receive into are always in flight */
            CHECK_CALL(vdpa_machine_positions_are_exact(m));
        }
        if (round == 1) {
            ASSERT_OK(vdpa_machine_restart(m));
            continue;
        }
        for (uint32_t i = 0; i < m->queues; i++) {
            m->queue[i].position.state = VHOST_POSITION_CERTAIN;
        }
        ASSERT_OK(vhost_device_start(&m->device));
    }
    return vdpa_machine_flows(m);
}

TEST it_works_without_batches(vdpa_machine *m)
{
    m->hidden = BATCH;
    CHECK_CALL(works(m));
    ASSERT_UINT(0, m->calls.batches);
    PASS();
}

TEST it_works_where_a_reset_takes_the_maps(vdpa_machine *m)
{
    m->hidden = PERSIST;
    return works(m);
}

TEST it_works_without_suspension(vdpa_machine *m)
{
    m->hidden = SUSPEND;
    CHECK_CALL(works(m));
    ASSERT_UINT(0, m->calls.suspends);
    PASS();
}

TEST it_works_as_on_the_oldest_kernels(vdpa_machine *m)
{
    m->hidden = BATCH | ASID | SUSPEND | RESUME | PERSIST;
    return works(m);
}

TEST it_cannot_pause_without_resumption(vdpa_machine *m)
{
    vhost_section more;
    m->hidden = RESUME;
    CHECK_CALL(works(m));
    more = m->low;
    more.size += MIB;
    ASSERT_OK(vdpa_machine_map_sections(m, &more, 1));
    ASSERT_INT(VHOST_STATE_BROKEN, m->device.state);
    ASSERT_INT(VHOST_WHY_KERNEL_REMAP, m->vdpa.last_error.why);
    ASSERT_OK(vdpa_machine_restart(m));
    return vdpa_machine_flows(m);
}

/* ---- memory that is pinned ---- */

static int limit_locked(rlim_t bytes)
{
    struct rlimit limit = {bytes, RLIM_INFINITY};
    return setrlimit(RLIMIT_MEMLOCK, &limit) != 0 ? -errno : 0;
}

TEST data_goes_both_ways(vdpa_machine *m)
{
    ASSERT_OK(vdpa_machine_running(m));
    return vdpa_machine_flows(m);
}

static enum greatest_test_res start_cannot_lock(vdpa_machine *m)
{
    ASSERT_OK(limit_locked(0x10000));
    int code = vhost_device_start(&m->device);
    ASSERT_OK(limit_locked(RLIM_INFINITY));
    ASSERT(code == -ENOMEM || code == -EFAULT);
    ASSERT_INT(VHOST_OP_SET_TABLE, m->device.last_error.op);
    ASSERT_INT(VHOST_WHY_KERNEL_MEMLOCK, m->vdpa.last_error.why);
    ASSERT_INT(VHOST_STATE_STOPPED, m->device.state);
    PASS();
}

TEST what_may_not_be_locked_is_told(vdpa_machine *m)
{
    ASSERT_OK(vdpa_machine_stopped(m));
    for (int i = 0; i < 3; i++) {
        CHECK_CALL(start_cannot_lock(m));
    }
    ASSERT_OK(vhost_device_start(&m->device));
    return vdpa_machine_flows(m);
}

/* What does not fit any more breaks the device, as any table that is refused. */
TEST growth_that_may_not_be_locked_breaks_the_device(vdpa_machine *m)
{
    ASSERT_OK(vdpa_machine_running(m));
    ASSERT_OK(limit_locked(0x10000));
    ASSERT_OK(vdpa_machine_map(m, true));
    ASSERT_OK(limit_locked(RLIM_INFINITY));
    ASSERT_INT(VHOST_STATE_BROKEN, m->device.state);
    ASSERT_INT(VHOST_OP_SET_TABLE, m->device.last_error.op);
    ASSERT_INT(VHOST_WHY_KERNEL_MEMLOCK, m->vdpa.last_error.why);
    ASSERT_OK(vdpa_machine_restart(m));
    return vdpa_machine_flows(m);
}

static long pinned(void)
{
    return vdpa_machine_memory("VmPin") + vdpa_machine_memory("VmLck");
}

static enum greatest_test_res is_pinned(long before, uint64_t bytes)
{
    ASSERT_INT(bytes / 1024, pinned() - before);
    PASS();
}

TEST what_was_pinned_is_let_go(vdpa_machine *m)
{
    long before = pinned();
    ASSERT_OK(vdpa_machine_running(m));
    CHECK_CALL(is_pinned(before, VDPA_RAM));
    ASSERT_OK(vdpa_machine_map(m, true));
    CHECK_CALL(is_pinned(before, VDPA_RAM + VDPA_PLUG_SIZE));
    ASSERT_OK(vdpa_machine_map(m, false));
    CHECK_CALL(is_pinned(before, VDPA_RAM));
    for (int i = 0; i < 100; i++) {
        ASSERT_OK(vhost_device_stop(&m->device));
        ASSERT_OK(vhost_device_start(&m->device));
    }
    CHECK_CALL(is_pinned(before, VDPA_RAM));
    CHECK_CALL(vdpa_machine_flows(m));
    vhost_device_cleanup(&m->device);
    return is_pinned(before, 0);
}

/* Though somebody else may still have the fd. */
TEST a_cleanup_pins_nothing(vdpa_machine *m)
{
    long before = pinned();
    m->pass_fd = true;
    ASSERT_OK(vdpa_machine_running(m));
    CHECK_CALL(is_pinned(before, VDPA_RAM));
    vhost_device_cleanup(&m->device);
    CHECK_CALL(is_pinned(before, 0));
    ASSERT_OK(vdpa_machine_attach(m));
    ASSERT_OK(vhost_device_start(&m->device));
    CHECK_CALL(vdpa_machine_flows(m));
    return is_pinned(before, VDPA_RAM);
}

/* ---- all of it ---- */

SUITE(resets)
{
    ON_DISKS(an_idle_ring_tells_its_position);
    ON_VDUSE(a_guess_is_not_started_from);
    ON_VDUSE(a_guess_is_right_for_who_knows_the_device);
    ON_VDUSE(all_done_is_no_guess);
    ON_VDUSE(a_packed_ring_does_not_tell);
}

SUITE(refusals)
{
    ON_VDUSE(a_refused_start_can_be_tried_again);
    ON_VDUSE(a_refused_stop_breaks_the_device);
    ON_VDUSE(a_refused_reset_breaks_the_device);
    ON_VDUSE(a_position_is_never_asked_for_where_it_could_move);
    ON_VDUSE(a_refused_map_breaks_the_device);
}

SUITE(losses)
{
    ON_VDUSE(no_answer_to_features_ok);
    ON_VDUSE(no_answer_to_driver_ok);
    ON_VDUSE(no_answer_to_a_stop);
    ON_VDUSE(a_device_that_dies_is_replaced);
    ON_VDUSE(a_device_that_dies_is_replaced_behind_the_driver);
}

SUITE(lesser_kernels)
{
    ON_ALL(it_works_without_batches);
    ON_SIMULATED(it_works_where_a_reset_takes_the_maps);
    ON_SIMULATED(it_works_without_suspension);
    ON_ALL(it_works_as_on_the_oldest_kernels);
    ON_SIMULATED(it_cannot_pause_without_resumption);
}

SUITE(pinned_memory)
{
    ON_SIMULATED(data_goes_both_ways);
    ON_SIMULATED(what_may_not_be_locked_is_told);
    ON_SIMULATED(growth_that_may_not_be_locked_breaks_the_device);
    ON_SIMULATED(what_was_pinned_is_let_go);
    ON_SIMULATED(a_cleanup_pins_nothing);
}

GREATEST_MAIN_DEFS();

int main(int argc, char **argv)
{
    GREATEST_MAIN_BEGIN();
    if (vdpa_machines_open() < 0) {
        printf("no vDPA devices\n");
        return 1;
    }
    RUN_SUITE(resets);
    RUN_SUITE(refusals);
    RUN_SUITE(losses);
    RUN_SUITE(lesser_kernels);
    if (vdpa_machines_pin() < 0) {
        printf("no devices that pin memory\n");
        return 1;
    }
    RUN_SUITE(pinned_memory);
    vdpa_machines_close();
    GREATEST_MAIN_END();
}
