/* vhost_kernel.h on real vhost-vdpa devices: a card and a disk that the kernel simulates, a disk of
   QEMU's storage daemon, and a disk of the tests' own. vhost_vdpa_refused.c has what goes wrong.

   vm-modules: vhost_vdpa vduse vdpa_sim_net vdpa_sim_blk
   vm-programs: vdpa qemu-storage-daemon
   vm-kernels: 6.12 */
#define _GNU_SOURCE
#include "vdpa_machine.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/virtio_blk.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define MIB UINT64_C(0x100000)

enum { /* features */
    NET_MAC = 5,
    BLK_FLUSH = 9,
    NET_CTRL_VQ = 17,
    NET_CTRL_MAC_ADDR = 23
};

enum { /* places in config space */
    CAPACITY_AT = 0,
    MTU_AT = 10
};

enum {
    A_WHILE = 200 /* ms, in which what cannot be done would have been */
};

/* ---- data ---- */

TEST data_goes_both_ways(vdpa_machine *m)
{
    ASSERT_OK(vdpa_machine_running(m));
    for (int round = 0; round < 3; round++) {
        CHECK_CALL(vdpa_machine_flows(m));
    }
    if (m->kind == VDPA_STORAGE) {
        ASSERT(vdpa_disk_has(vdpa_machine_storage(), 0, m->image, VDPA_AREA));
    }
    PASS();
}

TEST two_queues_are_one_disk(vdpa_machine *m)
{
    m->queues = 2;
    ASSERT_OK(vdpa_machine_running(m));
    CHECK_CALL(vdpa_machine_flows(m));
    ASSERT_OK(vhost_device_stop(&m->device));
    CHECK_CALL(vdpa_machine_positions_are_exact(m));
    ASSERT(m->queue[0].position.avail > 0 && m->queue[1].position.avail > 0);
    ASSERT_OK(vhost_device_start(&m->device));
    return vdpa_machine_flows(m);
}

static bool done_without_call(const vdpa_machine *m, uint16_t before)
{
    int ms = 0;
    while (split_ring_done(&m->disk.queues[0].ring) == before && ms++ < VDPA_PATIENCE) {
        (void)usleep(1000);
    }
    (void)usleep(5000); /* the call would follow */
    return ms < VDPA_PATIENCE;
}

/* Some devices call more than they have to, and late. */
static void wait_for_silence(vdpa_machine *m)
{
    while (vdpa_machine_waits(m, m->queue[0].call_fd, 20)) {
        (void)blk_driver_called(&m->disk, 0);
    }
}

static bool comes_pending(vdpa_machine *m)
{
    int ms = 0;
    while (vhost_queue_pending(&m->device, 0) == 0 && ms++ < VDPA_PATIENCE) {
        (void)usleep(1000);
    }
    return ms < VDPA_PATIENCE;
}

TEST a_masked_call_is_pending(vdpa_machine *m)
{
    ASSERT_OK(vdpa_machine_running(m));
    ASSERT(vdpa_machine_transfers(m, BLK_READ, VDPA_DATA));
    wait_for_silence(m);
    ASSERT_OK(vhost_queue_mask(&m->device, 0));
    ASSERT_INT(0, vhost_queue_pending(&m->device, 0));
    ASSERT(vdpa_machine_asks(m, BLK_READ, VDPA_DATA));
    ASSERT(comes_pending(m));
    ASSERT_FALSE(blk_driver_called(&m->disk, 0));
    ASSERT(vdpa_machine_transferred(m, 0));
    ASSERT(vdpa_machine_asks(m, BLK_READ, VDPA_DATA));
    int told = vhost_queue_unmask(&m->device, 0);
    ASSERT(told == 1 || vdpa_machine_waits(m, m->queue[0].call_fd, VDPA_PATIENCE));
    ASSERT(vdpa_machine_transferred(m, 0));
    PASS();
}

TEST a_queue_without_calls_works(vdpa_machine *m)
{
    ASSERT_OK(vdpa_machine_stopped(m));
    m->queue[0].call_fd = -1;
    ASSERT_OK(vhost_device_start(&m->device));
    ASSERT(vdpa_machine_asks(m, BLK_READ, VDPA_DATA));
    ASSERT(done_without_call(m, 0));
    ASSERT_FALSE(blk_driver_called(&m->disk, 0));
    ASSERT(vdpa_machine_transferred(m, 0));
    PASS();
}

/* Ring memory is fresh, and so is the device. */
static enum greatest_test_res works_with_ring_of(vdpa_machine *m, uint16_t size)
{
    ASSERT_OK(vhost_device_reset(&m->device));
    memset(m->ram, 0, VHOST_PAGE * 4);
    split_ring_init(&m->disk.queues[0].ring, size, m->ram, 0);
    vdpa_machine_fill_queues(m);
    ASSERT_OK(vhost_device_ack(&m->device, m->accepted));
    ASSERT_OK(vhost_device_start(&m->device));
    for (int i = 0; i < 5; i++) {
        ASSERT(vdpa_machine_transfers(m, BLK_READ, VDPA_DATA));
    }
    ASSERT_OK(vhost_device_stop(&m->device));
    ASSERT_UINT(5, m->queue[0].position.avail);
    PASS();
}

TEST rings_of_all_sizes_work(vdpa_machine *m)
{
    ASSERT_OK(vdpa_machine_stopped(m));
    for (unsigned size = 4; size <= m->vdpa.vdpa.ring_max; size *= 2) {
        CHECK_CALL(works_with_ring_of(m, (uint16_t)size));
    }
    PASS();
}

TEST a_ring_larger_than_it_takes_is_refused(vdpa_machine *m)
{
    ASSERT_OK(vdpa_machine_stopped(m));
    m->queue[0].size = 2 * m->vdpa.vdpa.ring_max;
    m->queue[0].desc = VDPA_SPARE;
    m->queue[0].avail = VDPA_SPARE + 0x4000;
    m->queue[0].used = VDPA_SPARE + 0x8000;
    ASSERT_INT(-EINVAL, vhost_device_start(&m->device));
    ASSERT_INT(VHOST_OP_SET_RING_SIZE, m->device.last_error.op);
    ASSERT_INT(0, m->device.last_error.queue);
    ASSERT_INT(VHOST_WHY_RING_SIZE, m->vdpa.last_error.why);
    ASSERT_INT(VHOST_STATE_STOPPED, m->device.state);
    vdpa_machine_fill_queues(m);
    ASSERT_OK(vhost_device_start(&m->device));
    return vdpa_machine_flows(m);
}

TEST a_device_of_small_rings_takes_small_rings(vdpa_machine *m)
{
    m->vduse_options.max_size = 32;
    ASSERT_OK(vdpa_machine_stopped(m));
    ASSERT_INT(-EINVAL, vhost_device_start(&m->device));
    ASSERT_INT(VHOST_WHY_RING_SIZE, m->vdpa.last_error.why);
    CHECK_CALL(works_with_ring_of(m, 16));
    return works_with_ring_of(m, 32);
}

/* As after a migration. From here on, the indexes of the ring wrap around. */
TEST a_ring_goes_on_from_anywhere(vdpa_machine *m)
{
    const uint16_t begin = 65530;
    ASSERT_OK(vdpa_machine_stopped(m));
    split_ring *ring = vdpa_machine_ring(m, 0);
    ring->added = ring->collected = begin;
    ring->available->index = ring->used->index = begin;
    m->queue[0].position = (vhost_position){VHOST_POSITION_CERTAIN, begin, begin, true};
    ASSERT_OK(vhost_device_start(&m->device));
    for (int i = 0; i < 12; i++) {
        ASSERT(vdpa_machine_transfers(m, BLK_READ, VDPA_DATA));
    }
    ASSERT_OK(vhost_device_stop(&m->device));
    CHECK_CALL(vdpa_machine_positions_are_exact(m));
    ASSERT_UINT(6, m->queue[0].position.avail);
    PASS();
}

/* ---- behind an IOMMU of the host ---- */

TEST a_driver_may_know_of_the_iommu(vdpa_machine *m)
{
    vhost_features_set(&m->accepted, VHOST_FEATURE_ACCESS_PLATFORM);
    ASSERT_OK(vdpa_machine_running(m));
    return vdpa_machine_flows(m);
}

static int translate(vhost_device *device, uint64_t iova, bool write, vhost_translation *entry,
                     void *user)
{
    (void)device;
    (void)write;
    (void)user;
    *entry =
        (vhost_translation){iova / VHOST_PAGE * VHOST_PAGE, VHOST_PAGE,
                            iova / VHOST_PAGE * VHOST_PAGE, VHOST_PERMIT_READ | VHOST_PERMIT_WRITE};
    return 0;
}

TEST an_iommu_of_the_guest_is_refused(vdpa_machine *m)
{
    static const vhost_memory_ops guest_iommu = {.translate = translate};
    m->device_options.memory = &guest_iommu;
    vhost_features_set(&m->accepted, VHOST_FEATURE_ACCESS_PLATFORM);
    ASSERT_OK(vdpa_machine_stopped(m));
    ASSERT_INT(-ENOTSUP, vhost_device_start(&m->device));
    ASSERT_INT(VHOST_WHY_IOTLB_UNSUPPORTED, m->device.last_error.why);
    ASSERT_INT(VHOST_STATE_STOPPED, m->device.state);
    PASS();
}

/* ---- what the device says of itself ---- */

TEST the_facts_are_those_of_the_device(vdpa_machine *m)
{
    static const vhost_kernel_vdpa facts[] = {
        [VDPA_SIM_NET] = {1, 3, 256, 24, 2, 2, 0, UINT64_MAX},
        [VDPA_SIM_BLK] = {2, 1, 256, 96, 1, 1, 0, UINT64_MAX},
        [VDPA_STORAGE] = {2, 1, 256, 60, 1, 1, 0, UINT64_MAX},
        [VDPA_VDUSE] = {2, 2, 256, sizeof(struct virtio_blk_config), 1, 1, 0, UINT64_MAX},
    };
    const vhost_kernel_vdpa *expected = &facts[m->kind], *found = &m->vdpa.vdpa;
    ASSERT_OK(vdpa_machine_stopped(m));
    ASSERT_UINT(expected->device_id, found->device_id);
    ASSERT_UINT(expected->queue_count, found->queue_count);
    ASSERT_UINT(expected->ring_max, found->ring_max);
    ASSERT_UINT(expected->config_size, found->config_size);
    ASSERT_UINT(expected->group_count, found->group_count);
    ASSERT_UINT(expected->space_count, found->space_count);
    ASSERT(expected->iova_first == found->iova_first && expected->iova_last == found->iova_last);
    ASSERT_STR_EQ("vhost-vdpa", m->device.facts.name);
    ASSERT_UINT(expected->queue_count, m->device.facts.max_queues);
    ASSERT(vhost_features_test(&m->device.facts.offered, VHOST_FEATURE_VERSION_1));
    ASSERT(vhost_features_test(&m->device.facts.offered, VHOST_FEATURE_ACCESS_PLATFORM));
    ASSERT(m->device.facts.queues_together);
    PASS();
}

TEST more_queues_than_it_has_are_refused(vdpa_machine *m)
{
    ASSERT_OK(vdpa_machine_opened(m));
    m->queues = m->vdpa.vdpa.queue_count + 1;
    ASSERT_INT(-EINVAL, vdpa_machine_attach(m));
    ASSERT_INT(VHOST_WHY_TOO_MANY_QUEUES, m->device.last_error.why);
    PASS();
}

#define GET_STATUS _IOR(0xAF, 0x71, uint8_t)

static int status_of(vdpa_machine *m)
{
    uint8_t status = 0;
    int code = vhost_kernel_ioctl(&m->vdpa, "GET_STATUS", GET_STATUS, &status);
    return code < 0 ? code : status;
}

TEST the_status_goes_with_the_device(vdpa_machine *m)
{
    bool suspends = m->kind == VDPA_SIM_NET || m->kind == VDPA_SIM_BLK;
    ASSERT_OK(vdpa_machine_stopped(m));
    ASSERT_INT(0, status_of(m));
    ASSERT_OK(vhost_device_start(&m->device));
    ASSERT_INT(0xf, status_of(m));
    ASSERT_OK(vhost_device_stop(&m->device));
    ASSERT_INT(suspends ? 0xf : 0, status_of(m));
    ASSERT_UINT(suspends, m->calls.suspends);
    ASSERT_OK(vhost_device_reset(&m->device));
    ASSERT_INT(0, status_of(m));
    PASS();
}

/* ---- config space ---- */

TEST the_config_is_read_within_its_bounds(vdpa_machine *m)
{
    uint8_t bytes[128];
    ASSERT_OK(vdpa_machine_stopped(m));
    uint32_t size = m->vdpa.vdpa.config_size;
    ASSERT(size > 0 && size <= sizeof bytes);
    ASSERT_OK(vhost_device_get_config(&m->device, 0, bytes, size));
    ASSERT_OK(vhost_device_get_config(&m->device, size - 1, bytes, 1));
    ASSERT_INT(-EINVAL, vhost_device_get_config(&m->device, size, bytes, 1));
    ASSERT_INT(VHOST_WHY_ARGUMENT, m->vdpa.last_error.why);
    ASSERT_INT(-EINVAL, vhost_device_get_config(&m->device, size - 1, bytes, 2));
    ASSERT_INT(-EINVAL, vhost_device_get_config(&m->device, UINT32_MAX, bytes, 1));
    ASSERT_INT(-EINVAL, vhost_device_get_config(&m->device, 0, bytes, 0));
    ASSERT_INT(VHOST_STATE_STOPPED, m->device.state);
    PASS();
}

TEST the_config_is_that_of_the_device(vdpa_machine *m)
{
    static const uint64_t sectors[] = {0, 0x40000, 2048, 2048};
    uint8_t mac[6];
    uint16_t mtu = 0;
    uint64_t capacity = 0;
    ASSERT_OK(vdpa_machine_running(m));
    if (m->kind == VDPA_SIM_NET) {
        ASSERT_OK(vhost_device_get_config(&m->device, 0, mac, sizeof mac));
        ASSERT_MEM_EQ(m->me.mac, mac, sizeof mac);
        ASSERT_OK(vhost_device_get_config(&m->device, MTU_AT, &mtu, sizeof mtu));
        ASSERT_UINT(1500, mtu);
    } else {
        ASSERT_OK(vhost_device_get_config(&m->device, CAPACITY_AT, &capacity, sizeof capacity));
        ASSERT_UINT(sectors[m->kind], capacity);
    }
    PASS();
}

TEST the_config_is_written_within_its_bounds(vdpa_machine *m)
{
    uint8_t bytes[128];
    ASSERT_OK(vdpa_machine_running(m));
    uint32_t size = m->vdpa.vdpa.config_size;
    ASSERT_OK(vhost_device_get_config(&m->device, 0, bytes, size));
    ASSERT_OK(vhost_device_set_config(&m->device, 0, bytes, size));
    ASSERT_INT(-EINVAL, vhost_device_set_config(&m->device, size, bytes, 1));
    ASSERT_INT(VHOST_WHY_ARGUMENT, m->vdpa.last_error.why);
    ASSERT_INT(-EINVAL, vhost_device_set_config(&m->device, 1, bytes, size));
    ASSERT_INT(VHOST_STATE_RUNNING, m->device.state);
    return vdpa_machine_flows(m);
}

/* The last fd to be polled is that of the config space. */
static bool config_is_told(vdpa_machine *m)
{
    int fds[VDPA_QUEUES + 1];
    uint32_t count = vhost_device_poll_fds(&m->device, fds, VDPA_QUEUES + 1);
    return count > 0 && count <= VDPA_QUEUES + 1 &&
           vdpa_machine_waits(m, fds[count - 1], VDPA_PATIENCE) &&
           vhost_device_process(&m->device) == 0;
}

TEST a_change_of_the_config_is_told(vdpa_machine *m)
{
    uint64_t grown = 4096, found = 0;
    ASSERT_OK(vdpa_machine_running(m));
    for (unsigned i = 1; i <= 3; i++) {
        grown++;
        ASSERT_OK(vduse_device_set_config(&m->vduse, CAPACITY_AT, &grown, sizeof grown));
        ASSERT(config_is_told(m));
        ASSERT_UINT(i, m->configs);
        ASSERT_OK(vhost_device_get_config(&m->device, CAPACITY_AT, &found, sizeof found));
        ASSERT_UINT(grown, found);
    }
    CHECK_CALL(vdpa_machine_flows(m));
    ASSERT_UINT(3, m->configs);
    PASS();
}

/* ---- stop and start ---- */

TEST positions_are_exact_and_go_on(vdpa_machine *m)
{
    ASSERT_OK(vdpa_machine_running(m));
    for (int round = 0; round < 5; round++) {
        CHECK_CALL(vdpa_machine_flows(m));
        ASSERT_OK(vhost_device_stop(&m->device));
        CHECK_CALL(vdpa_machine_positions_are_exact(m));
        ASSERT_UINT(vdpa_machine_ring(m, m->queues - 1)->added,
                    m->queue[m->queues - 1].position.avail);
        ASSERT_OK(vhost_device_start(&m->device));
    }
    PASS();
}

TEST what_came_while_stopped_is_not_lost(vdpa_machine *m)
{
    ASSERT_OK(vdpa_machine_running(m));
    for (int round = 0; round < 3; round++) {
        ASSERT_OK(vhost_device_stop(&m->device));
        uint16_t before = split_ring_done(vdpa_machine_ring(m, m->queues - 1));
        CHECK_CALL(vdpa_machine_posts(m));
        (void)usleep(20000);
        ASSERT_UINT(before, split_ring_done(vdpa_machine_ring(m, m->queues - 1)));
        ASSERT_OK(vhost_device_start(&m->device));
        CHECK_CALL(vdpa_machine_finishes(m));
    }
    PASS();
}

/* What can be suspended stops where it is. */
TEST a_stop_in_mid_traffic_loses_and_doubles_nothing(vdpa_machine *m)
{
    ASSERT_OK(vdpa_machine_running(m));
    for (int round = 0; round < 20; round++) {
        CHECK_CALL(vdpa_machine_posts(m));
        ASSERT_OK(vhost_device_stop(&m->device));
        CHECK_CALL(vdpa_machine_positions_are_exact(m));
        ASSERT_OK(vhost_device_start(&m->device));
        CHECK_CALL(vdpa_machine_finishes(m));
    }
    PASS();
}

TEST starts_and_stops_leave_nothing_behind(vdpa_machine *m)
{
    const int rounds = m->kind <= VDPA_SIM_BLK ? 1000 : 200; /* a process takes its time */
    ASSERT_OK(vdpa_machine_running(m));
    CHECK_CALL(vdpa_machine_flows(m));
    unsigned fds = machine_fds();
    long before = machine_resident();
    for (int i = 0; i < rounds; i++) {
        ASSERT_OK(vhost_device_stop(&m->device));
        ASSERT_OK(vhost_device_start(&m->device));
    }
    ASSERT_UINT(fds, machine_fds());
    ASSERT(before > 0 && machine_resident() - before < 64);
    return vdpa_machine_flows(m);
}

TEST twenty_lives_leave_nothing_behind(vdpa_machine *m)
{
    ASSERT_OK(vdpa_machine_running(m));
    unsigned fds = machine_fds();
    for (int i = 0; i < 20; i++) {
        vhost_device_cleanup(&m->device);
        vhost_kernel_close(&m->vdpa);
        ASSERT_OK(vdpa_machine_open(m));
        ASSERT_OK(vdpa_machine_attach(m));
        ASSERT_OK(vhost_device_start(&m->device));
    }
    ASSERT_UINT(fds, machine_fds());
    return vdpa_machine_flows(m);
}

TEST a_cleanup_and_an_init_go_on(vdpa_machine *m)
{
    ASSERT_OK(vdpa_machine_running(m));
    for (int i = 0; i < 3; i++) {
        CHECK_CALL(vdpa_machine_flows(m));
        vhost_device_cleanup(&m->device);
        CHECK_CALL(vdpa_machine_positions_are_exact(m));
        ASSERT_OK(vdpa_machine_attach(m));
        ASSERT_OK(vhost_device_start(&m->device));
    }
    return vdpa_machine_flows(m);
}

TEST it_starts_again_with_other_features(vdpa_machine *m)
{
    const unsigned bit = m->kind == VDPA_SIM_NET ? NET_MAC : BLK_FLUSH;
    ASSERT_OK(vdpa_machine_running(m));
    CHECK_CALL(vdpa_machine_flows(m));
    ASSERT_OK(vhost_device_stop(&m->device));
    vhost_features_set(&m->accepted, bit);
    ASSERT_OK(vdpa_machine_restart(m));
    CHECK_CALL(vdpa_machine_flows(m));
    ASSERT_OK(vhost_device_stop(&m->device));
    vhost_features_set(&m->accepted, 63);
    ASSERT_INT(-EINVAL, vhost_device_ack(&m->device, m->accepted));
    ASSERT_INT(VHOST_WHY_FEATURE_NOT_OFFERED, m->device.last_error.why);
    vhost_features_clear(&m->accepted, 63);
    vhost_features_clear(&m->accepted, bit);
    ASSERT_OK(vdpa_machine_restart(m));
    return vdpa_machine_flows(m);
}

TEST one_queue_alone_is_refused(vdpa_machine *m)
{
    ASSERT_OK(vdpa_machine_running(m));
    ASSERT_INT(-ENOTSUP, vhost_queue_stop(&m->device, 0));
    ASSERT_INT(VHOST_WHY_NOT_SUPPORTED, m->device.last_error.why);
    ASSERT_INT(VHOST_STATE_RUNNING, m->device.state);
    CHECK_CALL(vdpa_machine_flows(m));
    ASSERT_OK(vhost_device_stop(&m->device));
    m->queue[1].ready = false;
    ASSERT_OK(vhost_device_start(&m->device));
    m->queue[1].ready = true;
    ASSERT_INT(-ENOTSUP, vhost_queue_start(&m->device, 1));
    ASSERT_INT(VHOST_STATE_RUNNING, m->device.state);
    PASS();
}

TEST migration_is_refused_with_the_reason(vdpa_machine *m)
{
    vhost_why why = VHOST_WHY_NONE;
    ASSERT_OK(vdpa_machine_running(m));
    ASSERT_INT(-ENOTSUP, vhost_log_start(&m->vm));
    ASSERT_INT(VHOST_WHY_LOG_UNSUPPORTED, m->vm.last_error.why);
    ASSERT(strstr(m->vm.last_error.text, "vhost-vdpa"));
    ASSERT_EQ(&m->device, vhost_log_blocker(&m->vm, NULL, &why));
    ASSERT_INT(VHOST_WHY_LOG_UNSUPPORTED, why);
    ASSERT_INT(VHOST_STATE_RUNNING, m->device.state);
    return vdpa_machine_flows(m);
}

/* ---- memory ---- */

/* The first block of the disk is written from one place and read to another. */
static enum greatest_test_res block_goes(vdpa_machine *m, uint64_t from, uint64_t to)
{
    for (int i = 0; i < VDPA_BLOCK; i++) {
        m->ram[from + (uint64_t)i] = (uint8_t)(i * 7 + i / 256 + (int)m->disk.queues[0].ring.added);
    }
    memset(m->ram + to, 0xee, VDPA_BLOCK);
    ASSERT(vdpa_machine_transfers(m, BLK_WRITE, from));
    ASSERT(vdpa_machine_transfers(m, BLK_READ, to));
    ASSERT_FALSE(m->disk.fault);
    ASSERT_MEM_EQ(m->ram + from, m->ram + to, VDPA_BLOCK);
    PASS();
}

TEST memory_plugged_in_is_used(vdpa_machine *m)
{
    const uint64_t low = VDPA_DATA, high = VDPA_PLUG + VDPA_PLUG_SIZE - VDPA_BLOCK;
    ASSERT_OK(vdpa_machine_running(m));
    CHECK_CALL(block_goes(m, low, low + 0x10000));
    for (int round = 0; round < 5; round++) {
        const vdpa_calls before = m->calls;
        ASSERT_OK(vdpa_machine_map(m, true));
        ASSERT_UINT(before.maps + 1, m->calls.maps);
        ASSERT_UINT(before.unmaps, m->calls.unmaps);
        CHECK_CALL(block_goes(m, low, high));
        CHECK_CALL(block_goes(m, high, VDPA_PLUG));
        ASSERT_OK(vdpa_machine_map(m, false));
        ASSERT_UINT(before.maps + 1, m->calls.maps);
        ASSERT_UINT(before.unmaps + 1, m->calls.unmaps);
        ASSERT_UINT(before.suspends, m->calls.suspends);
    }
    CHECK_CALL(block_goes(m, low, low + 0x10000));
    PASS();
}

/* Not with qemu-storage-daemon: it may fail what is in flight then, whatever it is that changes. */
TEST memory_comes_and_goes_under_traffic(vdpa_machine *m)
{
    ASSERT_OK(vdpa_machine_running(m));
    for (int round = 0; round < 10; round++) {
        CHECK_CALL(vdpa_machine_posts(m));
        ASSERT_OK(vdpa_machine_map(m, true));
        ASSERT_OK(vdpa_machine_map(m, false));
        CHECK_CALL(vdpa_machine_finishes(m));
    }
    ASSERT_INT(VHOST_STATE_RUNNING, m->device.state);
    PASS();
}

TEST memory_left_out_is_out_of_reach(vdpa_machine *m)
{
    ASSERT_OK(vdpa_machine_stopped(m));
    ASSERT_OK(vdpa_machine_map(m, true));
    ASSERT_OK(vhost_device_start(&m->device));
    CHECK_CALL(block_goes(m, VDPA_DATA, VDPA_PLUG));
    ASSERT_OK(vdpa_machine_map(m, false));
    memset(m->ram + VDPA_PLUG, 0xee, VDPA_BLOCK);
    ASSERT(vdpa_machine_asks(m, BLK_READ, VDPA_PLUG));
    (void)vdpa_machine_transferred(m, A_WHILE);
    for (uint64_t i = 0; i < VDPA_BLOCK; i++) {
        ASSERT_UINT(0xee, m->ram[VDPA_PLUG + i]);
    }
    m->disk.fault = NULL; /* it may say that it failed */
    ASSERT_OK(vhost_device_stop(&m->device));
    ASSERT_OK(vdpa_machine_restart(m));
    return vdpa_machine_flows(m);
}

/* RAM becomes larger: it is one map, so the whole of it changes. */
static int grow(vdpa_machine *m, uint64_t size)
{
    vhost_section more = m->low;
    more.size = VDPA_RAM + size;
    return vdpa_machine_map_sections(m, &more, 1);
}

TEST memory_changes_in_place_while_it_pauses(vdpa_machine *m)
{
    ASSERT_OK(vdpa_machine_running(m));
    for (unsigned round = 1; round <= 10; round++) {
        CHECK_CALL(vdpa_machine_posts(m));
        ASSERT_OK(grow(m, round % 2 * MIB));
        ASSERT_INT(VHOST_STATE_RUNNING, m->device.state);
        ASSERT_UINT(round, m->calls.suspends);
        ASSERT_UINT(round, m->calls.resumes);
        CHECK_CALL(vdpa_machine_finishes(m));
    }
    ASSERT_OK(vhost_device_stop(&m->device));
    CHECK_CALL(vdpa_machine_positions_are_exact(m));
    ASSERT_UINT(11, m->calls.suspends);
    ASSERT_OK(grow(m, MIB)); /* it is stopped: no need to */
    ASSERT_UINT(11, m->calls.suspends);
    ASSERT_OK(vhost_device_start(&m->device));
    return vdpa_machine_flows(m);
}

static enum greatest_test_res breaks_by_growth(vdpa_machine *m, uint64_t size)
{
    ASSERT_OK(grow(m, size));
    ASSERT_INT(VHOST_STATE_BROKEN, m->device.state);
    ASSERT_INT(-EBUSY, m->device.last_error.code);
    ASSERT_INT(VHOST_OP_SET_TABLE, m->device.last_error.op);
    ASSERT_INT(VHOST_WHY_KERNEL_REMAP, m->vdpa.last_error.why);
    PASS();
}

TEST memory_that_changes_in_place_breaks_what_cannot_pause(vdpa_machine *m)
{
    ASSERT_OK(vdpa_machine_running(m));
    CHECK_CALL(vdpa_machine_flows(m));
    CHECK_CALL(breaks_by_growth(m, MIB));
    ASSERT_UINT(1, m->broken);
    CHECK_CALL(vdpa_machine_positions_are_exact(m));
    ASSERT_OK(vhost_device_recover(&m->device));
    ASSERT_INT(VHOST_STATE_RUNNING, m->device.state);
    CHECK_CALL(vdpa_machine_flows(m));
    CHECK_CALL(breaks_by_growth(m, 0));
    ASSERT_INT(-EBUSY, vhost_device_stop(&m->device));
    ASSERT_OK(vdpa_machine_restart(m));
    return vdpa_machine_flows(m);
}

TEST memory_taken_from_under_a_ring_breaks_the_device(vdpa_machine *m)
{
    vhost_section rest;
    ASSERT_OK(vdpa_machine_running(m));
    CHECK_CALL(vdpa_machine_flows(m));
    unsigned fds = machine_fds();
    vhost_section_init(&rest, 2 * MIB, MIB, &m->backing, 2 * MIB);
    ASSERT_OK(vdpa_machine_map_sections(m, &rest, 1));
    ASSERT_INT(VHOST_STATE_BROKEN, m->device.state);
    ASSERT_INT(VHOST_WHY_RING_UNMAPPED, m->device.last_error.why);
    ASSERT_UINT(fds - 1, machine_fds());
    ASSERT_OK(vdpa_machine_map(m, false));
    ASSERT_OK(vdpa_machine_restart(m));
    return vdpa_machine_flows(m);
}

/* Pages, each a section, with gaps between them. */
static int map_pages(vdpa_machine *m, unsigned count)
{
    vhost_section sections[101];
    sections[0] = m->low;
    for (unsigned i = 1; i <= count; i++) {
        uint64_t gpa = VDPA_PLUG + 2 * (i - 1) * VHOST_PAGE;
        vhost_section_init(&sections[i], gpa, VHOST_PAGE, &m->backing, gpa);
    }
    return vdpa_machine_map_sections(m, sections, 1 + count);
}

TEST there_are_as_many_sections_as_one_likes(vdpa_machine *m)
{
    ASSERT_OK(vdpa_machine_running(m));
    ASSERT_UINT(UINT32_MAX, vhost_memory_free_slots(&m->vm));
    const vdpa_calls before = m->calls;
    ASSERT_OK(map_pages(m, 100));
    ASSERT_UINT(before.maps + 100, m->calls.maps);
    CHECK_CALL(vdpa_machine_flows(m));
    ASSERT_OK(map_pages(m, 99));
    ASSERT_OK(map_pages(m, 100));
    ASSERT_UINT(before.maps + 101, m->calls.maps);
    ASSERT_OK(vdpa_machine_map(m, false));
    ASSERT_UINT(before.unmaps + 101, m->calls.unmaps);
    return vdpa_machine_flows(m);
}

static struct {
    vhost_kernel kernel;
    vhost_queue queue;
    vhost_device device;
} second;

static int start_second(vdpa_machine *m)
{
    vhost_queue_init(&second.queue);
    int result =
        vhost_kernel_vdpa_open(&second.kernel, vdpa_machine_path(VDPA_SIM_BLK), &m->kernel_options);
    if (result >= 0) {
        result = vhost_device_init(&second.device, &m->vm, vhost_kernel_ops(&second.kernel),
                                   &second.kernel, &second.queue, 1, NULL);
    }
    if (result >= 0) {
        result = vhost_device_ack(&second.device, m->accepted);
    }
    return result < 0 ? result : vhost_device_start(&second.device);
}

/* The same change is one map for each. */
static enum greatest_test_res each_bears_it_as_it_can(vdpa_machine *m)
{
    unsigned before = m->calls.maps;
    ASSERT_OK(vdpa_machine_map(m, true));
    ASSERT_UINT(before + 2, m->calls.maps);
    ASSERT_OK(grow(m, MIB));
    ASSERT_INT(VHOST_STATE_BROKEN, m->device.state);
    ASSERT_INT(VHOST_STATE_RUNNING, second.device.state);
    ASSERT_UINT(1, m->calls.suspends);
    ASSERT_UINT(1, m->calls.resumes);
    ASSERT_OK(vhost_device_recover(&m->device));
    return vdpa_machine_flows(m);
}

TEST what_breaks_one_device_pauses_another(vdpa_machine *m)
{
    memset(&second, 0, sizeof second);
    ASSERT_OK(vdpa_machine_running(m));
    int code = start_second(m);
    enum greatest_test_res result = code == 0 ? each_bears_it_as_it_can(m) : GREATEST_TEST_RES_FAIL;
    vhost_device_cleanup(&second.device);
    vhost_kernel_close(&second.kernel);
    ASSERT_OK(code);
    return result;
}

/* ---- fds ---- */

TEST a_second_open_is_refused(vdpa_machine *m)
{
    vhost_kernel again;
    ASSERT_OK(vdpa_machine_running(m));
    ASSERT_INT(-EBUSY, vhost_kernel_vdpa_open(&again, m->path, NULL));
    ASSERT_INT(-EBUSY, again.last_error.code);
    vhost_kernel_close(&again);
    CHECK_CALL(vdpa_machine_flows(m));
    vhost_device_cleanup(&m->device);
    vhost_kernel_close(&m->vdpa);
    ASSERT_OK(vhost_kernel_vdpa_open(&again, m->path, NULL));
    vhost_kernel_close(&again);
    PASS();
}

TEST what_is_no_vdpa_device_is_refused(vdpa_machine *m)
{
    ASSERT_INT(-ENOENT, vhost_kernel_vdpa_open(&m->vdpa, "/dev/vhost-vdpa-99", NULL));
    ASSERT_INT(VHOST_WHY_KERNEL_OPEN, m->vdpa.last_error.why);
    vhost_kernel_close(&m->vdpa);
    ASSERT_INT(-ENOTSUP, vhost_kernel_vdpa_open(&m->vdpa, "/dev/null", NULL));
    vhost_kernel_close(&m->vdpa);
    PASS();
}

TEST a_passed_fd_works_until_the_device_breaks(vdpa_machine *m)
{
    vhost_section rest;
    m->pass_fd = true;
    ASSERT_OK(vdpa_machine_running(m));
    CHECK_CALL(vdpa_machine_flows(m));
    vhost_section_init(&rest, 2 * MIB, MIB, &m->backing, 2 * MIB);
    ASSERT_OK(vdpa_machine_map_sections(m, &rest, 1));
    ASSERT_INT(VHOST_STATE_BROKEN, m->device.state);
    ASSERT_INT(-ENODEV, vhost_device_reset(&m->device));
    ASSERT_INT(VHOST_WHY_KERNEL_SEVERED, m->vdpa.last_error.why);
    PASS();
}

/* Somebody else may have it, too. */
TEST a_passed_fd_is_left_at_rest(vdpa_machine *m)
{
    uint8_t status = 0;
    ASSERT_OK(vdpa_machine_prepared(m));
    int fd = open(m->path, O_RDWR | O_CLOEXEC);
    ASSERT_OK(vhost_kernel_vdpa_open_fd(&m->vdpa, fd, &m->kernel_options));
    ASSERT_OK(vdpa_machine_attach(m));
    ASSERT_OK(vhost_device_start(&m->device));
    CHECK_CALL(vdpa_machine_flows(m));
    ASSERT_OK(ioctl(fd, GET_STATUS, &status));
    ASSERT_UINT(0xf, status);
    vhost_device_cleanup(&m->device);
    ASSERT_OK(ioctl(fd, GET_STATUS, &status));
    ASSERT_UINT(0, status);
    ASSERT_OK(vdpa_machine_attach(m));
    ASSERT_OK(vhost_device_start(&m->device));
    return vdpa_machine_flows(m);
}

TEST an_fd_of_somebody_else_is_refused(vdpa_machine *m)
{
    m->pass_fd = true;
    ASSERT_OK(vdpa_machine_prepared(m));
    int fd = open(m->path, O_RDWR | O_CLOEXEC);
    ASSERT_OK(ioctl(fd, _IO(0xAF, 0x01)));
    ASSERT_OK(vhost_kernel_vdpa_open_fd(&m->vdpa, fd, NULL));
    ASSERT_INT(-EBUSY, vdpa_machine_attach(m));
    ASSERT_INT(VHOST_WHY_KERNEL_OWNER, m->vdpa.last_error.why);
    PASS();
}

TEST there_is_no_doorbell(vdpa_machine *m)
{
    void *page = NULL;
    ASSERT_OK(vdpa_machine_running(m));
    ASSERT_INT(-ENOTSUP, vhost_kernel_vdpa_map_doorbell(&m->vdpa, 0, &page));
    ASSERT_INT(VHOST_WHY_NOT_SUPPORTED, m->vdpa.last_error.why);
    return vdpa_machine_flows(m);
}

/* ---- groups and address spaces ---- */

enum {
    CONTROL = 2, /* the queue, */
    CONTROL_SIZE = 16,
    CONTROL_AT = (int)VDPA_SPARE, /* its ring, */
    COMMAND_AT = CONTROL_AT + 0x1000,
    ACK_AT = COMMAND_AT + 8,
    CONTROL_BYTES = 0x2000, /* and all its memory */
    OK = 0,
    NO_ANSWER = 0x55,
    CARD = 9 /* last byte of its address, at first */
};

/* The commands are the VMM's own: here, the control queue is filled by the test. */
static split_ring control;

static int open_control(vdpa_machine *m)
{
    vhost_queue *queue = &m->queue[CONTROL];
    split_ring_init(&control, CONTROL_SIZE, m->ram + CONTROL_AT, CONTROL_AT);
    queue->ready = true;
    queue->size = control.size;
    queue->desc = control.descriptors_gpa;
    queue->avail = control.available_gpa;
    queue->used = control.used_gpa;
    queue->kick_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    queue->call_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    return queue->kick_fd < 0 || queue->call_fd < 0 ? -errno : 0;
}

static void close_control(vdpa_machine *m)
{
    close(m->queue[CONTROL].kick_fd);
    close(m->queue[CONTROL].call_fd);
}

static int card_with_control(vdpa_machine *m)
{
    m->queues = 3;
    vhost_features_set(&m->accepted, NET_MAC);
    vhost_features_set(&m->accepted, NET_CTRL_VQ);
    vhost_features_set(&m->accepted, NET_CTRL_MAC_ADDR);
    int result = vdpa_machine_stopped(m);
    return result < 0 ? result : open_control(m);
}

static bool control_answers(vdpa_machine *m, int milliseconds)
{
    uint64_t calls;
    uint16_t tag;
    uint32_t length;
    while (!split_ring_collect(&control, &tag, &length)) {
        if (!vdpa_machine_waits(m, m->queue[CONTROL].call_fd, milliseconds) ||
            read(m->queue[CONTROL].call_fd, &calls, sizeof calls) != sizeof calls) {
            return false;
        }
    }
    return m->ram[ACK_AT] == OK;
}

/* The card gets another address. */
static void command_mac(vdpa_machine *m, uint8_t last)
{
    static const uint8_t set_mac[] = {1, 1, 2, 0, 0, 0, 0}; /* class, command, address */
    const ring_piece pieces[3] = {
        {COMMAND_AT, 2, false}, {COMMAND_AT + 2, 6, false}, {ACK_AT, 1, true}};
    memcpy(m->ram + COMMAND_AT, set_mac, sizeof set_mac);
    m->ram[COMMAND_AT + 7] = last;
    m->ram[ACK_AT] = NO_ANSWER;
    (void)split_ring_add(&control, pieces, 3, 1);
    vdpa_machine_kick(m, CONTROL);
}

/* It has it, and frames go to it. */
static enum greatest_test_res has_mac(vdpa_machine *m, uint8_t last)
{
    uint8_t mac[6];
    ASSERT_OK(vhost_device_get_config(&m->device, 0, mac, sizeof mac));
    ASSERT_UINT(last, mac[5]);
    m->me.mac[5] = last;
    return vdpa_machine_flows(m);
}

static enum greatest_test_res takes_mac(vdpa_machine *m, uint8_t last)
{
    command_mac(m, last);
    ASSERT(control_answers(m, VDPA_PATIENCE));
    return has_mac(m, last);
}

static int map_control(vdpa_machine *m)
{
    return vhost_kernel_vdpa_map(&m->vdpa, 1, CONTROL_AT, CONTROL_BYTES, m->ram + CONTROL_AT,
                                 VHOST_PERMIT_READ | VHOST_PERMIT_WRITE);
}

static int unmap_control(vdpa_machine *m)
{
    return vhost_kernel_vdpa_unmap(&m->vdpa, 1, CONTROL_AT, CONTROL_BYTES);
}

/* In space 1 it sees nothing but what is mapped there. */
static enum greatest_test_res control_is_apart(vdpa_machine *m)
{
    CHECK_CALL(takes_mac(m, 0x21));
    ASSERT_OK(vhost_device_stop(&m->device));
    ASSERT_OK(vhost_kernel_vdpa_set_space(&m->vdpa, 1, 1));
    ASSERT_OK(vhost_device_start(&m->device));
    command_mac(m, 0x22);
    ASSERT_FALSE(control_answers(m, A_WHILE));
    CHECK_CALL(has_mac(m, 0x21));
    ASSERT_OK(map_control(m));
    vdpa_machine_kick(m, CONTROL);
    ASSERT(control_answers(m, VDPA_PATIENCE));
    return has_mac(m, 0x22);
}

/* Maps stay over a stop, and space 1 over a reset. */
static enum greatest_test_res control_stays_apart(vdpa_machine *m)
{
    ASSERT_OK(vhost_device_stop(&m->device));
    ASSERT_OK(vhost_device_start(&m->device));
    CHECK_CALL(takes_mac(m, 0x23));
    ASSERT_OK(unmap_control(m));
    command_mac(m, 0x24);
    ASSERT_FALSE(control_answers(m, A_WHILE));
    ASSERT_OK(vhost_device_stop(&m->device));
    ASSERT_OK(vhost_kernel_vdpa_set_space(&m->vdpa, 1, 0));
    ASSERT_OK(vhost_device_start(&m->device));
    ASSERT(control_answers(m, VDPA_PATIENCE));
    CHECK_CALL(has_mac(m, 0x24));
    return takes_mac(m, CARD);
}

/* Where a start loses maps, they have to be made again. */
static enum greatest_test_res control_is_mapped_again(vdpa_machine *m)
{
    ASSERT_OK(vhost_kernel_vdpa_set_space(&m->vdpa, 1, 1));
    ASSERT_OK(map_control(m));
    for (uint8_t last = 0x31; last < 0x34; last++) {
        ASSERT_OK(vhost_device_start(&m->device));
        ASSERT_OK(unmap_control(m));
        ASSERT_OK(map_control(m));
        CHECK_CALL(takes_mac(m, last));
        CHECK_CALL(takes_mac(m, CARD));
        ASSERT_OK(vhost_device_stop(&m->device));
    }
    PASS();
}

static enum greatest_test_res with_control(vdpa_machine *m, vdpa_machine_test *test)
{
    ASSERT_OK(card_with_control(m));
    enum greatest_test_res result = test(m);
    vhost_device_cleanup(&m->device);
    close_control(m);
    return result;
}

static enum greatest_test_res control_moves(vdpa_machine *m)
{
    ASSERT_OK(vhost_device_start(&m->device));
    CHECK_CALL(control_is_apart(m));
    return control_stays_apart(m);
}

TEST the_control_queue_lives_in_a_space_of_its_own(vdpa_machine *m)
{
    return with_control(m, control_moves);
}

TEST maps_of_a_space_are_made_again_where_a_start_loses_them(vdpa_machine *m)
{
    m->hidden = UINT64_C(1) << 8; /* back-end feature IOTLB_PERSIST */
    return with_control(m, control_is_mapped_again);
}

TEST groups_are_those_of_the_device(vdpa_machine *m)
{
    static const uint32_t groups[] = {0, 0, 1};
    ASSERT_OK(vdpa_machine_stopped(m));
    for (uint32_t queue = 0; queue < 3; queue++) {
        uint32_t group = 99;
        ASSERT_OK(vhost_kernel_vdpa_get_group(&m->vdpa, queue, &group));
        ASSERT_UINT(groups[queue], group);
    }
    ASSERT_INT(-EINVAL, vhost_kernel_vdpa_set_space(&m->vdpa, 2, 0));
    ASSERT_INT(-EINVAL, vhost_kernel_vdpa_set_space(&m->vdpa, 0, 2));
    ASSERT_OK(vhost_device_start(&m->device));
    ASSERT_INT(-EBUSY, vhost_kernel_vdpa_set_space(&m->vdpa, 1, 1));
    return vdpa_machine_flows(m);
}

TEST a_device_may_have_no_groups(vdpa_machine *m)
{
    uint32_t group = 99;
    ASSERT_OK(vdpa_machine_running(m));
    ASSERT_INT(-ENOTSUP, vhost_kernel_vdpa_get_group(&m->vdpa, 0, &group));
    ASSERT_OK(vhost_device_stop(&m->device));
    ASSERT_OK(vhost_kernel_vdpa_set_space(&m->vdpa, 0, 0));
    ASSERT_INT(-EINVAL, vhost_kernel_vdpa_set_space(&m->vdpa, 0, 1));
    ASSERT_OK(vhost_device_start(&m->device));
    return vdpa_machine_flows(m);
}

TEST maps_that_cannot_be_are_refused(vdpa_machine *m)
{
    const uint8_t both = VHOST_PERMIT_READ | VHOST_PERMIT_WRITE;
    ASSERT_OK(vdpa_machine_opened(m));
    ASSERT_INT(-EBUSY, vhost_kernel_vdpa_map(&m->vdpa, 1, 0, VHOST_PAGE, m->ram, both));
    ASSERT_OK(vdpa_machine_attach(m));
    ASSERT_INT(-EINVAL, vhost_kernel_vdpa_map(&m->vdpa, 0, 0, VHOST_PAGE, m->ram, both));
    ASSERT_INT(-EINVAL, vhost_kernel_vdpa_map(&m->vdpa, 2, 0, VHOST_PAGE, m->ram, both));
    ASSERT_INT(-EINVAL, vhost_kernel_vdpa_map(&m->vdpa, 1, 8, VHOST_PAGE, m->ram, both));
    ASSERT_INT(-EINVAL, vhost_kernel_vdpa_map(&m->vdpa, 1, 0, 0, m->ram, both));
    ASSERT_OK(vhost_kernel_vdpa_map(&m->vdpa, 1, 0, 2 * VHOST_PAGE, m->ram, both));
    ASSERT(vhost_kernel_vdpa_map(&m->vdpa, 1, VHOST_PAGE, VHOST_PAGE, m->ram, both) < 0);
    ASSERT_OK(vhost_kernel_vdpa_unmap(&m->vdpa, 1, 0, 2 * VHOST_PAGE));
    ASSERT_OK(vhost_kernel_vdpa_map(&m->vdpa, 1, VHOST_PAGE, VHOST_PAGE, m->ram, both));
    PASS();
}

/* ---- all of it ---- */

SUITE(data_path)
{
    ON_ALL(data_goes_both_ways);
    ON_VDUSE(two_queues_are_one_disk);
    ON_DISKS(a_masked_call_is_pending);
    ON_DISKS(a_queue_without_calls_works);
    ON_DISKS(rings_of_all_sizes_work);
    ON_VDUSE(a_device_of_small_rings_takes_small_rings);
    ON_DISKS(a_ring_goes_on_from_anywhere);
    ON_ALL(a_driver_may_know_of_the_iommu);
    ON_ALL(an_iommu_of_the_guest_is_refused);
    ON_ALL(a_ring_larger_than_it_takes_is_refused);
}

SUITE(facts_and_config)
{
    ON_ALL(the_facts_are_those_of_the_device);
    ON_ALL(more_queues_than_it_has_are_refused);
    ON_ALL(the_status_goes_with_the_device);
    ON_ALL(the_config_is_read_within_its_bounds);
    ON_ALL(the_config_is_that_of_the_device);
    ON_ALL(the_config_is_written_within_its_bounds);
    ON_VDUSE(a_change_of_the_config_is_told);
}

SUITE(stop_and_start)
{
    ON_ALL(positions_are_exact_and_go_on);
    ON_ALL(what_came_while_stopped_is_not_lost);
    ON_SIMULATED(a_stop_in_mid_traffic_loses_and_doubles_nothing);
    ON_ALL(starts_and_stops_leave_nothing_behind);
    ON_ALL(twenty_lives_leave_nothing_behind);
    ON_ALL(a_cleanup_and_an_init_go_on);
    ON_ALL(it_starts_again_with_other_features);
    ON_CARD(one_queue_alone_is_refused);
    ON_ALL(migration_is_refused_with_the_reason);
}

SUITE(memory)
{
    ON_DISKS(memory_plugged_in_is_used);
    ON_SIMULATED(memory_comes_and_goes_under_traffic);
    ON_VDUSE(memory_comes_and_goes_under_traffic);
    ON_DISKS(memory_left_out_is_out_of_reach);
    ON_SIMULATED(memory_changes_in_place_while_it_pauses);
    ON_USER(memory_that_changes_in_place_breaks_what_cannot_pause);
    ON_ALL(memory_taken_from_under_a_ring_breaks_the_device);
    ON_ALL(there_are_as_many_sections_as_one_likes);
    ON_USER(what_breaks_one_device_pauses_another);
}

SUITE(fds)
{
    ON_ALL(a_second_open_is_refused);
    ON_CARD(what_is_no_vdpa_device_is_refused);
    ON_ALL(a_passed_fd_works_until_the_device_breaks);
    ON_ALL(a_passed_fd_is_left_at_rest);
    ON_ALL(an_fd_of_somebody_else_is_refused);
    ON_ALL(there_is_no_doorbell);
}

SUITE(groups_and_spaces)
{
    ON_CARD(groups_are_those_of_the_device);
    ON_CARD(the_control_queue_lives_in_a_space_of_its_own);
    ON_CARD(maps_of_a_space_are_made_again_where_a_start_loses_them);
    ON_CARD(maps_that_cannot_be_are_refused);
    ON_USER(a_device_may_have_no_groups);
}

GREATEST_MAIN_DEFS();

int main(int argc, char **argv)
{
    GREATEST_MAIN_BEGIN();
    if (vdpa_machines_open() < 0) {
        printf("no devices\n");
        return 1;
    }
    RUN_SUITE(data_path);
    RUN_SUITE(facts_and_config);
    RUN_SUITE(stop_and_start);
    RUN_SUITE(memory);
    RUN_SUITE(fds);
    RUN_SUITE(groups_and_spaces);
    vdpa_machines_close();
    GREATEST_MAIN_END();
}
