#define _GNU_SOURCE
#include "vdpa_machine.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/vhost_types.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

enum { /* numbers of ioctls */
    GET_BACKEND_FEATURES = 0x26,
    GET_VRING_BASE = 0x12,
    SUSPEND = 0x7d,
    RESUME = 0x7e
};

enum {
    FRAMES = 60,         /* at a time */
    RING_BYTES = 0x8000, /* no ring is larger */
    TAG = 0x1000,        /* of a request that is not blk_driver's */
    NOT_WRITTEN = 0xff,  /* no status of a request */
    HEADER_AT = (int)VDPA_SPARE,
    STATUS_AT = HEADER_AT + 16
};

static const station card_owner = {{2, 0, 0, 0, 0, 9}, {10, 77, 0, 9}};

static const net_layout layout = {
    .ring = {0, RING_BYTES}, .header = 0x10000, .buffers = {0x20700, 0xb0700}};

/* ---- the devices ---- */

static struct {
    char net[VDPA_DEVICE_PATH], blk[VDPA_DEVICE_PATH];
    vdpa_disk storage;
} devices;

static int add_simulated(void)
{
    int result =
        vdpa_device_add("sim_net", "vdpasim_net", "mac 02:00:00:00:00:09 mtu 1500", devices.net);
    return result < 0 ? result : vdpa_device_add("sim_blk", "vdpasim_blk", "", devices.blk);
}

static void remove_simulated(void)
{
    if (devices.net[0] != '\0') {
        (void)vdpa_device_remove("sim_net");
    }
    if (devices.blk[0] != '\0') {
        (void)vdpa_device_remove("sim_blk");
    }
    devices.net[0] = devices.blk[0] = '\0';
}

int vdpa_machines_open(void)
{
    int result = add_simulated();
    return result < 0 ? result : vdpa_disk_open(&devices.storage, "storage", 1 << 20, 1);
}

void vdpa_machines_close(void)
{
    remove_simulated();
    vdpa_disk_close(&devices.storage);
}

int vdpa_machines_pin(void)
{
    static const char reload[] =
        "cd /modules && busybox rmmod vdpa_sim_net && busybox rmmod vdpa_sim_blk && "
        "busybox rmmod vdpa_sim && busybox insmod vdpa_sim.ko use_va=0 && "
        "busybox insmod vdpa_sim_net.ko && busybox insmod vdpa_sim_blk.ko";
    remove_simulated();
    return system(reload) != 0 ? -EIO : add_simulated();
}

const char *vdpa_machine_path(vdpa_kind kind)
{
    return kind == VDPA_SIM_NET   ? devices.net
           : kind == VDPA_SIM_BLK ? devices.blk
                                  : devices.storage.path;
}

const vdpa_disk *vdpa_machine_storage(void)
{
    return &devices.storage;
}

static int find_device(vdpa_machine *m)
{
    if (m->kind == VDPA_VDUSE) {
        int result = vduse_device_start(&m->vduse, &m->vduse_options);
        strcpy(m->path, m->vduse.path);
        return result;
    }
    strcpy(m->path, vdpa_machine_path(m->kind));
    return 0;
}

/* ---- what the library tells, and asks of the kernel ---- */

static void on_broken(vhost_device *device, void *user)
{
    vdpa_machine *m = user;
    (void)device;
    m->broken++;
}

static void on_config(vhost_device *device, void *user)
{
    vdpa_machine *m = user;
    (void)device;
    m->configs++;
}

static int call_open(const char *path, bool writable, void *user)
{
    int fd = open(path, (writable ? O_RDWR : O_RDONLY) | O_CLOEXEC);
    (void)user;
    return fd < 0 ? -errno : fd;
}

static int call_close(int fd, void *user)
{
    (void)user;
    return close(fd) != 0 ? -errno : 0;
}

static int call_ioctl(int fd, unsigned long request, void *argument, void *user)
{
    vdpa_calls *calls = &((vdpa_machine *)user)->calls;
    unsigned number = _IOC_NR(request);
    calls->suspends += number == SUSPEND;
    calls->resumes += number == RESUME;
    calls->bases_read += number == GET_VRING_BASE && (_IOC_DIR(request) & _IOC_READ) != 0;
    int result = ioctl(fd, request, argument);
    if (result >= 0 && number == GET_BACKEND_FEATURES) {
        *(uint64_t *)argument &= ~((vdpa_machine *)user)->hidden;
    }
    return result < 0 ? -errno : result;
}

static ptrdiff_t call_read(int fd, void *bytes, size_t size, void *user)
{
    ptrdiff_t count = read(fd, bytes, size);
    (void)user;
    return count < 0 ? -errno : count;
}

static ptrdiff_t call_write(int fd, const void *bytes, size_t size, void *user)
{
    vdpa_calls *calls = &((vdpa_machine *)user)->calls;
    struct vhost_msg_v2 message;
    if (size == sizeof message) {
        memcpy(&message, bytes, size);
        calls->maps += message.iotlb.type == VHOST_IOTLB_UPDATE;
        calls->unmaps += message.iotlb.type == VHOST_IOTLB_INVALIDATE;
        calls->batches += message.iotlb.type == VHOST_IOTLB_BATCH_BEGIN;
    }
    ptrdiff_t count = write(fd, bytes, size);
    return count < 0 ? -errno : count;
}

static int call_map(int fd, uint64_t offset, size_t size, void **at, void *user)
{
    (void)user;
    *at = mmap(NULL, size, PROT_WRITE, MAP_SHARED, fd, (off_t)offset);
    return *at == MAP_FAILED ? -errno : 0;
}

static int call_unmap(void *at, size_t size, void *user)
{
    (void)user;
    return munmap(at, size) != 0 ? -errno : 0;
}

static const vhost_kernel_calls counted = {call_open,  call_close, call_ioctl, call_read,
                                           call_write, call_map,   call_unmap};

/* ---- arranging ---- */

static int open_memory(vdpa_machine *m)
{
    m->ram_fd = memfd_create("guest", MFD_CLOEXEC);
    if (m->ram_fd < 0 || ftruncate(m->ram_fd, (off_t)VDPA_END) != 0) {
        return -errno;
    }
    m->ram = mmap(NULL, VDPA_END, PROT_READ | PROT_WRITE, MAP_SHARED, m->ram_fd, 0);
    if (m->ram == MAP_FAILED) {
        m->ram = NULL;
        return -errno;
    }
    m->image = calloc(1, VDPA_AREA);
    vhost_backing_init(&m->backing, m->ram, VDPA_END, m->ram_fd, 0);
    vhost_section_init(&m->low, 0, VDPA_RAM, &m->backing, 0);
    vhost_section_init(&m->plug, VDPA_PLUG, VDPA_PLUG_SIZE, &m->backing, VDPA_PLUG);
    return m->image ? vhost_vm_init(&m->vm, NULL) : -ENOMEM;
}

int vdpa_machine_map_sections(vdpa_machine *m, const vhost_section *sections, unsigned count)
{
    int result = vhost_memory_begin(&m->vm);
    for (unsigned i = 0; i < count && result >= 0; i++) {
        result = vhost_memory_add(&m->vm, &sections[i]);
    }
    return result < 0 ? result : vhost_memory_commit(&m->vm);
}

int vdpa_machine_map(vdpa_machine *m, bool plugged)
{
    const vhost_section both[2] = {m->low, m->plug};
    return vdpa_machine_map_sections(m, both, plugged ? 2 : 1);
}

split_ring *vdpa_machine_ring(vdpa_machine *m, uint32_t queue)
{
    return m->kind == VDPA_SIM_NET ? &m->card.ring[queue] : &m->disk.queues[queue].ring;
}

static uint32_t driver_queues(const vdpa_machine *m)
{
    return m->kind == VDPA_SIM_NET ? 2 : m->queues;
}

void vdpa_machine_fill_queues(vdpa_machine *m)
{
    bool net = m->kind == VDPA_SIM_NET;
    for (uint32_t i = 0; i < driver_queues(m); i++) {
        const split_ring *ring = vdpa_machine_ring(m, i);
        vhost_queue *queue = &m->queue[i];
        queue->ready = true;
        queue->size = ring->size;
        queue->desc = ring->descriptors_gpa;
        queue->avail = ring->available_gpa;
        queue->used = ring->used_gpa;
        queue->kick_fd = net ? m->card.kick[i] : m->disk.queues[i].kick;
        queue->call_fd = net ? m->card.call[i] : m->disk.queues[i].call;
    }
}

static void forget_rings(vdpa_machine *m)
{
    for (uint32_t i = 0; i < driver_queues(m); i++) {
        uint64_t at = m->kind == VDPA_SIM_NET ? layout.ring[i] : i * (uint64_t)BLK_QUEUE_BYTES;
        memset(m->ram + at, 0, RING_BYTES);
    }
}

int vdpa_machine_open_driver(vdpa_machine *m)
{
    forget_rings(m);
    int result = m->kind == VDPA_SIM_NET ? net_driver_open(&m->card, m->ram, &layout)
                                         : blk_driver_open(&m->disk, m->ram, 0, (int)m->queues);
    m->work = (blk_work){.driver = &m->disk, .size = VDPA_AREA};
    m->sent = m->received = 0;
    vdpa_machine_fill_queues(m);
    return result;
}

void vdpa_machine_close_driver(vdpa_machine *m)
{
    net_driver_close(&m->card);
    blk_driver_close(&m->disk);
    memset(&m->card, 0, sizeof m->card);
    memset(&m->disk, 0, sizeof m->disk);
}

int vdpa_machine_prepared(vdpa_machine *m)
{
    int result = find_device(m);
    if (result >= 0) {
        result = open_memory(m);
    }
    if (result >= 0) {
        result = vdpa_machine_open_driver(m);
    }
    return result < 0 ? result : vdpa_machine_map(m, false);
}

int vdpa_machine_open(vdpa_machine *m)
{
    if (!m->pass_fd) {
        return vhost_kernel_vdpa_open(&m->vdpa, m->path, &m->kernel_options);
    }
    int fd = open(m->path, O_RDWR | O_CLOEXEC);
    return fd < 0 ? -errno : vhost_kernel_vdpa_open_fd(&m->vdpa, fd, &m->kernel_options);
}

int vdpa_machine_opened(vdpa_machine *m)
{
    int result = vdpa_machine_prepared(m);
    return result < 0 ? result : vdpa_machine_open(m);
}

int vdpa_machine_attach(vdpa_machine *m)
{
    int result = vhost_device_init(&m->device, &m->vm, vhost_kernel_ops(&m->vdpa), &m->vdpa,
                                   m->queue, m->queues, &m->device_options);
    return result < 0 ? result : vhost_device_ack(&m->device, m->accepted);
}

int vdpa_machine_stopped(vdpa_machine *m)
{
    int result = vdpa_machine_opened(m);
    return result < 0 ? result : vdpa_machine_attach(m);
}

int vdpa_machine_running(vdpa_machine *m)
{
    int result = vdpa_machine_stopped(m);
    return result < 0 ? result : vhost_device_start(&m->device);
}

int vdpa_machine_restart(vdpa_machine *m)
{
    int result = vhost_device_reset(&m->device);
    if (result < 0) {
        return result;
    }
    vdpa_machine_close_driver(m);
    result = vdpa_machine_open_driver(m);
    if (result >= 0) {
        result = vhost_device_ack(&m->device, m->accepted);
    }
    return result < 0 ? result : vhost_device_start(&m->device);
}

static void set_defaults(vdpa_machine *m, vdpa_kind kind)
{
    memset(m, 0, sizeof *m);
    m->kind = kind;
    m->queues = kind == VDPA_SIM_NET ? 2 : 1;
    m->ram_fd = -1;
    m->me = card_owner;
    for (int i = 0; i < VDPA_QUEUES; i++) {
        vhost_queue_init(&m->queue[i]);
    }
    m->vduse_options = vduse_device_defaults();
    m->vduse_options.patience_s = 1;
    m->device_options.user = m->kernel_options.user = m;
    m->kernel_options.calls = &counted;
    m->device_options.on_broken = on_broken;
    m->device_options.on_config = on_config;
    vhost_features_set(&m->accepted, VHOST_FEATURE_VERSION_1);
}

static int take_down(vdpa_machine *m)
{
    vhost_device_cleanup(&m->device);
    vhost_kernel_close(&m->vdpa);
    (void)vhost_vm_cleanup(&m->vm);
    vdpa_machine_close_driver(m);
    if (m->ram) {
        munmap(m->ram, VDPA_END);
    }
    if (m->ram_fd >= 0) {
        close(m->ram_fd);
    }
    free(m->image);
    return vduse_device_stop(&m->vduse);
}

static enum greatest_test_res judge(vdpa_machine *m, enum greatest_test_res result)
{
    const char *fault = m->card.fault ? m->card.fault : m->disk.fault;
    if (fault) {
        printf("driver: %s\n", fault);
        greatest_info.msg = fault;
        result = GREATEST_TEST_RES_FAIL;
    }
    if (result != GREATEST_TEST_RES_PASS) {
        printf("vm: %s\ndevice: %s\nkernel: %s\n", m->vm.last_error.text, m->device.last_error.text,
               m->vdpa.last_error.text);
    }
    return result;
}

static enum greatest_test_res run_one(vdpa_machine_test *test, vdpa_kind kind)
{
    static vdpa_machine the_machine;
    vdpa_machine *m = &the_machine;
    unsigned fds = machine_fds();
    set_defaults(m, kind);
    enum greatest_test_res result = judge(m, test(m));
    int left = take_down(m);
    if (result == GREATEST_TEST_RES_PASS) {
        ASSERT_OK(left);
        ASSERT_UINT(fds, machine_fds());
    }
    return result;
}

void vdpa_machine_run(vdpa_machine_test *test, const char *name, vdpa_kind first, vdpa_kind last)
{
    static const char *const suffixes[] = {"on_sim_net", "on_sim_blk", "on_storage_daemon",
                                           "on_vduse"};
    for (vdpa_kind kind = first; kind <= last; kind++) {
        greatest_set_test_suffix(suffixes[kind]);
        if (greatest_test_pre(name) == 1) {
            greatest_test_post(run_one(test, kind));
        }
    }
}

/* ---- waiting ---- */

bool vdpa_machine_waits(vdpa_machine *m, int fd, int milliseconds)
{
    enum {
        SERVED = VDPA_QUEUES + 4
    };
    int fds[SERVED];
    struct pollfd polled[1 + SERVED] = {{.fd = fd, .events = POLLIN}};
    for (;;) {
        uint32_t count = vhost_device_poll_fds(&m->device, fds, SERVED);
        for (uint32_t i = 0; i < count; i++) {
            polled[1 + i] = (struct pollfd){.fd = fds[i], .events = POLLIN};
        }
        int ready = poll(polled, 1 + count, milliseconds);
        if (ready <= 0 || polled[0].revents != 0) {
            return ready > 0;
        }
        (void)vhost_device_process(&m->device);
    }
}

void vdpa_machine_kick(vdpa_machine *m, uint32_t queue)
{
    static const uint64_t one = 1;
    if (write(m->queue[queue].kick_fd, &one, sizeof one) != sizeof one) {
        m->disk.fault = "a kick could not be written";
    }
}

/* ---- a disk ---- */

static void begin_work(vdpa_machine *m, blk_task task)
{
    const blk_job job = {task,      m->image, VDPA_BLOCK, (int)m->queues, task == BLK_COMPARE,
                         BLK_DEPTH, 0};
    blk_work_begin(&m->work, &job);
}

static enum greatest_test_res finish_work(vdpa_machine *m)
{
    while (blk_work_feed(&m->work)) {
        blk_driver_kick(&m->disk);
        for (uint32_t i = 0; i < m->queues; i++) {
            const blk_queue *queue = &m->disk.queues[i];
            if (queue->in_flight > 0) {
                ASSERT(vdpa_machine_waits(m, queue->call, VDPA_PATIENCE));
                (void)blk_driver_called(&m->disk, (int)i);
                blk_work_take(&m->work, (int)i);
            }
        }
        ASSERT_FALSE(m->disk.fault);
    }
    PASS();
}

enum greatest_test_res vdpa_machine_compares(vdpa_machine *m)
{
    begin_work(m, BLK_COMPARE);
    return finish_work(m);
}

static void put_header(vdpa_machine *m, blk_verb verb)
{
    const uint64_t header[2] = {verb, 0}; /* little-endian, as this machine */
    memcpy(m->ram + HEADER_AT, header, sizeof header);
    m->ram[STATUS_AT] = NOT_WRITTEN;
}

bool vdpa_machine_asks(vdpa_machine *m, blk_verb verb, uint64_t gpa)
{
    const ring_piece pieces[3] = {
        {HEADER_AT, 16, false}, {gpa, VDPA_BLOCK, verb == BLK_READ}, {STATUS_AT, 1, true}};
    put_header(m, verb);
    if (!split_ring_add(vdpa_machine_ring(m, 0), pieces, 3, TAG)) {
        return false;
    }
    m->disk.queues[0].kicked = vdpa_machine_ring(m, 0)->added;
    vdpa_machine_kick(m, 0);
    return true;
}

bool vdpa_machine_transferred(vdpa_machine *m, int milliseconds)
{
    uint16_t tag;
    uint32_t length;
    while (!split_ring_collect(vdpa_machine_ring(m, 0), &tag, &length)) {
        if (!vdpa_machine_waits(m, m->disk.queues[0].call, milliseconds)) {
            return false;
        }
        (void)blk_driver_called(&m->disk, 0);
    }
    if (tag != TAG || m->ram[STATUS_AT] != 0) {
        m->disk.fault = "a request was not done well";
    }
    return true;
}

bool vdpa_machine_transfers(vdpa_machine *m, blk_verb verb, uint64_t gpa)
{
    return vdpa_machine_asks(m, verb, gpa) && vdpa_machine_transferred(m, VDPA_PATIENCE);
}

/* ---- a card ---- */

static void make_frame(const vdpa_machine *m, uint32_t number, frame *made)
{
    frame_numbered(made, &m->me, &m->me, number, 60 + number * 97 % (FRAME_MAX - 59));
}

static enum greatest_test_res send_frames(vdpa_machine *m)
{
    frame made;
    (void)net_driver_called(&m->card, NET_TRANSMIT);
    net_driver_reclaim(&m->card);
    for (unsigned i = 0; i < FRAMES; i++) {
        make_frame(m, m->sent, &made);
        ASSERT(net_driver_send(&m->card, &made));
        m->sent++;
    }
    net_driver_kick(&m->card);
    PASS();
}

static enum greatest_test_res receive_frames(vdpa_machine *m)
{
    frame made, got;
    while (m->received != m->sent) {
        if (!net_driver_receive(&m->card, &got)) {
            ASSERT_FALSE(m->card.fault);
            ASSERT(vdpa_machine_waits(m, m->card.call[NET_RECEIVE], VDPA_PATIENCE));
            (void)net_driver_called(&m->card, NET_RECEIVE);
            continue;
        }
        make_frame(m, m->received, &made);
        ASSERT(frame_equal(&got, &made));
        m->received++;
        net_driver_kick(&m->card);
    }
    PASS();
}

/* ---- data ---- */

enum greatest_test_res vdpa_machine_posts(vdpa_machine *m)
{
    if (m->kind == VDPA_SIM_NET) {
        return send_frames(m);
    }
    blk_work_pattern(m->image, VDPA_AREA);
    begin_work(m, BLK_PUT);
    (void)blk_work_feed(&m->work);
    blk_driver_kick(&m->disk);
    PASS();
}

enum greatest_test_res vdpa_machine_finishes(vdpa_machine *m)
{
    if (m->kind == VDPA_SIM_NET) {
        return receive_frames(m);
    }
    CHECK_CALL(finish_work(m));
    return vdpa_machine_compares(m);
}

enum greatest_test_res vdpa_machine_flows(vdpa_machine *m)
{
    CHECK_CALL(vdpa_machine_posts(m));
    return vdpa_machine_finishes(m);
}

enum greatest_test_res vdpa_machine_positions_are_exact(const vdpa_machine *m)
{
    for (uint32_t i = 0; i < driver_queues(m); i++) {
        const vhost_position *position = &m->queue[i].position;
        const split_ring *ring =
            m->kind == VDPA_SIM_NET ? &m->card.ring[i] : &m->disk.queues[i].ring;
        ASSERT_INT(VHOST_POSITION_CERTAIN, position->state);
        ASSERT_UINT(split_ring_done(ring), position->avail);
        ASSERT_UINT(split_ring_done(ring), position->used);
        ASSERT(position->used_certain);
    }
    PASS();
}

/* ---- what the process has ---- */

long vdpa_machine_memory(const char *field)
{
    char line[128];
    long found = -1;
    FILE *status = fopen("/proc/self/status", "r");
    while (status && fgets(line, sizeof line, status)) {
        if (strncmp(line, field, strlen(field)) == 0 && line[strlen(field)] == ':') {
            found = strtol(line + strlen(field) + 1, NULL, 10);
        }
    }
    if (status) {
        fclose(status);
    }
    return found;
}
