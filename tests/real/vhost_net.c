/* vhost_kernel.h on the real vhost-net: frames between two rings and a tap.

   vm-modules: vhost_net tun */
#define _GNU_SOURCE
#include "greatest.h"
#include "net_driver.h"
#include "tap.h"
#include "vhost_kernel.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_ether.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <netpacket/packet.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#define MIB       UINT64_C(0x100000)
#define RAM_SIZE  (16 * MIB)
#define PLUG_GPA  (32 * MIB) /* where memory is plugged in */
#define PLUG_SIZE (2 * MIB)
#define ALL_SIZE  (40 * MIB)
#define PAIR_SIZE (2 * MIB) /* of memory for the rings and buffers of one pair */
#define VERSION_1 (UINT64_C(1) << VHOST_FEATURE_VERSION_1)

enum {
    PAIRS = 4,
    QUEUES = 2 * PAIRS,
    PATIENCE = 3000, /* ms: whoever waits longer has lost a frame */
    BURST = 100      /* frames: no more fit into the transmit ring, two descriptors each */
};

static const uint8_t host_ip[4] = {10, 77, 0, 1};

/* A guest with up to four pairs of queues, on a cable to a host. */
typedef struct machine {
    uint8_t *memory;
    vhost_vm vm;
    vhost_backing backing;
    vhost_section ram, plug;
    tap cable;
    int taps[PAIRS]; /* of pairs 1 to 3; the first is the cable's */
    uint32_t pairs;
    vhost_kernel_options options;
    vhost_kernel net;
    vhost_device device;
    vhost_queue queue[QUEUES];
    net_driver driver[PAIRS];
    vhost_device_options device_options;
    uint32_t sent, received; /* numbers of the next frames, out and in */
    unsigned broken, ring_errors[QUEUES];
} machine;

static machine *the_machine(void)
{
    static machine m;
    return &m;
}

static station guest_station(uint32_t pair)
{
    station guest = {{2, 0, 0, 0, 0, 0x10}, {10, 77, 0, 100}};
    guest.mac[5] = (uint8_t)(guest.mac[5] + pair);
    guest.ip[3] = (uint8_t)(guest.ip[3] + pair);
    return guest;
}

#define ASSERT_INT(EXPECTED, GOT)  ASSERT_EQ_FMT((int)(EXPECTED), (int)(GOT), "%d")
#define ASSERT_UINT(EXPECTED, GOT) ASSERT_EQ_FMT((unsigned)(EXPECTED), (unsigned)(GOT), "%u")
#define ASSERT_OK(CALL)            ASSERT_INT(0, (CALL))

/* ---- arranging ---- */

static void on_broken(vhost_device *device, void *user)
{
    machine *m = user;
    (void)device;
    m->broken++;
}

static void on_queue_error(vhost_device *device, uint32_t queue, void *user)
{
    machine *m = user;
    (void)device;
    m->ring_errors[queue]++;
}

static int map_sections(machine *m, const vhost_section *sections, unsigned count)
{
    int result = vhost_memory_begin(&m->vm);
    for (unsigned i = 0; i < count && result >= 0; i++) {
        result = vhost_memory_add(&m->vm, &sections[i]);
    }
    return result < 0 ? result : vhost_memory_commit(&m->vm);
}

static int map_ram(machine *m)
{
    return map_sections(m, &m->ram, 1);
}

static int map_ram_and_plug(machine *m)
{
    const vhost_section both[2] = {m->ram, m->plug};
    return map_sections(m, both, 2);
}

static net_layout layout_of(uint32_t pair)
{
    uint64_t base = pair * PAIR_SIZE;
    return (net_layout){.ring = {base, base + 0x4000},
                        .header = base + 0x8000,
                        .buffers = {base + 0x10000, base + 0x90000}};
}

static void fill(machine *m, uint32_t pair)
{
    for (int i = 0; i < 2; i++) {
        const split_ring *ring = &m->driver[pair].ring[i];
        vhost_queue *queue = &m->queue[2 * pair + (uint32_t)i];
        queue->ready = true;
        queue->size = ring->size;
        queue->desc = ring->descriptors_gpa;
        queue->avail = ring->available_gpa;
        queue->used = ring->used_gpa;
        queue->kick_fd = m->driver[pair].kick[i];
        queue->call_fd = m->driver[pair].call[i];
    }
}

static int open_drivers(machine *m)
{
    for (uint32_t pair = 0; pair < m->pairs; pair++) {
        const net_layout layout = layout_of(pair);
        int result = net_driver_open(&m->driver[pair], m->memory, &layout);
        if (result < 0) {
            return result;
        }
        fill(m, pair);
    }
    return 0;
}

static int attach_device(machine *m)
{
    int result = vhost_device_init(&m->device, &m->vm, vhost_kernel_ops(), &m->net, m->queue,
                                   2 * m->pairs, &m->device_options);
    return result < 0 ? result : vhost_device_ack(&m->device, (vhost_features){{VERSION_1, 0}});
}

/* One more queue of a tap that was made with IFF_MULTI_QUEUE. */
static int tap_queue(const char *name)
{
    static const int header = NET_HEADER;
    struct ifreq request = {.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | IFF_MULTI_QUEUE};
    int fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK);
    strcpy(request.ifr_name, name);
    if (fd < 0 || ioctl(fd, TUNSETIFF, &request) != 0 || ioctl(fd, TUNSETVNETHDRSZ, &header) != 0) {
        return -errno;
    }
    return fd;
}

static int open_socket(const char *name)
{
    struct sockaddr_ll address = {.sll_family = AF_PACKET,
                                  .sll_protocol = (uint16_t)(ETH_P_ALL << 8 | ETH_P_ALL >> 8),
                                  .sll_ifindex = (int)if_nametoindex(name)};
    int fd = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0 || bind(fd, (const struct sockaddr *)&address, sizeof address) != 0) {
        return -errno;
    }
    return fd;
}

static int switch_on(const char *name)
{
    struct ifreq request = {.ifr_flags = IFF_UP | IFF_RUNNING};
    int control = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    strcpy(request.ifr_name, name);
    int result = ioctl(control, SIOCSIFFLAGS, &request) != 0 ? -errno : 0;
    close(control);
    return result;
}

/* A tap with a queue for each pair; no stack answers on it. */
static int open_wide_tap(machine *m)
{
    static const char name[] = "wide0";
    m->cable = (tap){.fd = -1, .socket = -1};
    memcpy(m->cable.name, name, sizeof name);
    m->cable.host = (station){{2, 0, 0, 0, 0, 1}, {10, 77, 0, 1}};
    if (unshare(CLONE_NEWNET) != 0) {
        return -errno;
    }
    for (uint32_t i = 0; i < m->pairs; i++) {
        m->taps[i] = tap_queue(name);
        if (m->taps[i] < 0) {
            return m->taps[i];
        }
    }
    int result = switch_on(name);
    m->cable.socket = result < 0 ? -1 : open_socket(name);
    return result < 0 ? result : m->cable.socket < 0 ? m->cable.socket : 0;
}

static int open_cable(machine *m)
{
    if (m->pairs > 1) {
        return open_wide_tap(m);
    }
    int result = tap_open(&m->cable, host_ip, NET_HEADER);
    m->taps[0] = m->cable.fd;
    return result;
}

static int open_memory(machine *m)
{
    m->memory = mmap(NULL, ALL_SIZE, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (m->memory == MAP_FAILED) {
        m->memory = NULL;
        return -errno;
    }
    vhost_backing_init(&m->backing, m->memory, ALL_SIZE, -1, 0);
    vhost_section_init(&m->ram, 0, RAM_SIZE, &m->backing, 0);
    vhost_section_init(&m->plug, PLUG_GPA, PLUG_SIZE, &m->backing, PLUG_GPA);
    return vhost_vm_init(&m->vm, NULL);
}

/* Everything but the vhost fds and the device. */
static int prepare(machine *m, uint32_t pairs)
{
    memset(m, 0, sizeof *m);
    m->pairs = pairs;
    m->cable.fd = m->cable.socket = -1;
    for (int i = 0; i < PAIRS; i++) {
        m->taps[i] = -1;
    }
    for (int q = 0; q < QUEUES; q++) {
        vhost_queue_init(&m->queue[q]);
    }
    m->device_options.user = m;
    m->device_options.on_broken = on_broken;
    m->device_options.on_queue_error = on_queue_error;
    int result = open_memory(m);
    if (result >= 0) {
        result = open_cable(m);
    }
    if (result >= 0) {
        result = open_drivers(m);
    }
    return result < 0 ? result : map_ram(m);
}

static int stopped(machine *m, uint32_t pairs)
{
    int result = prepare(m, pairs);
    if (result >= 0) {
        result = vhost_kernel_net_open(&m->net, "/dev/vhost-net", m->taps, pairs, &m->options);
    }
    return result < 0 ? result : attach_device(m);
}

static int running(machine *m, uint32_t pairs)
{
    int result = stopped(m, pairs);
    return result < 0 ? result : vhost_device_start(&m->device);
}

static void take_down(machine *m)
{
    vhost_device_cleanup(&m->device);
    vhost_kernel_close(&m->net);
    (void)vhost_vm_cleanup(&m->vm);
    for (uint32_t i = 0; i < m->pairs; i++) {
        net_driver_close(&m->driver[i]);
        if (m->taps[i] >= 0 && m->taps[i] != m->cable.fd) {
            close(m->taps[i]);
        }
    }
    tap_close(&m->cable);
    if (m->memory) {
        munmap(m->memory, ALL_SIZE);
    }
}

static unsigned open_fds(void)
{
    unsigned count = 0;
    DIR *folder = opendir("/proc/self/fd");
    while (folder && readdir(folder)) {
        count++;
    }
    if (folder) {
        closedir(folder);
    }
    return count;
}

/* Of this process, in KiB. */
static long resident(void)
{
    char line[128];
    long size = -1;
    FILE *status = fopen("/proc/self/status", "r");
    while (status && fgets(line, sizeof line, status)) {
        if (strncmp(line, "VmRSS:", 6) == 0) {
            size = strtol(line + 6, NULL, 10);
        }
    }
    if (status) {
        fclose(status);
    }
    return size;
}

typedef enum greatest_test_res machine_test(machine *m);

/* A fresh machine for each test, and nothing left of it afterwards. */
static enum greatest_test_res run_on_machine(machine_test *test)
{
    machine *m = the_machine();
    unsigned fds = open_fds();
    enum greatest_test_res result = test(m);
    for (uint32_t pair = 0; pair < m->pairs && result == GREATEST_TEST_RES_PASS; pair++) {
        if (m->driver[pair].fault) {
            greatest_info.msg = m->driver[pair].fault;
            result = GREATEST_TEST_RES_FAIL;
        }
    }
    if (result != GREATEST_TEST_RES_PASS && m->device.last_error.text[0]) {
        printf("device: %s\nkernel: %s\n", m->device.last_error.text, m->net.last_error.text);
    }
    take_down(m);
    if (result == GREATEST_TEST_RES_PASS) {
        ASSERT_UINT(fds, open_fds());
    }
    return result;
}

#define RUN_MACHINE(TEST_NAME)                                                                     \
    do {                                                                                           \
        if (greatest_test_pre(#TEST_NAME) == 1) {                                                  \
            greatest_test_post(run_on_machine(TEST_NAME));                                         \
        }                                                                                          \
    } while (0)

/* ---- frames: numbered, so that none is lost, doubled or overtaken in silence ---- */

static size_t size_of_frame(uint32_t number)
{
    return 60 + number * 97 % (FRAME_MAX - 59);
}

static void outgoing(const machine *m, uint32_t pair, uint32_t number, frame *made)
{
    const station guest = guest_station(pair);
    frame_numbered(made, &guest, &m->cable.host, number, size_of_frame(number));
}

static void incoming(const machine *m, uint32_t number, frame *made)
{
    const station guest = guest_station(0);
    frame_numbered(made, &m->cable.host, &guest, number, size_of_frame(number));
}

static bool wait_for(int fd)
{
    struct pollfd wait = {.fd = fd, .events = POLLIN};
    return poll(&wait, 1, PATIENCE) == 1;
}

/* The next numbered frame of the guest, as the host sees it; false: none in time. */
static bool host_receives(const machine *m, uint32_t pair, frame *got)
{
    const station guest = guest_station(pair);
    uint32_t number;
    while (wait_for(m->cable.socket)) {
        ssize_t size = recv(m->cable.socket, got->bytes, sizeof got->bytes, 0);
        got->size = size < 0 ? 0 : (size_t)size;
        if (frame_is_from(got, &guest) && frame_number(got, &number)) {
            return true;
        }
    }
    return false;
}

static bool host_has_more(const machine *m)
{
    struct pollfd wait = {.fd = m->cable.socket, .events = POLLIN};
    return poll(&wait, 1, 20) == 1;
}

static bool host_sends(const machine *m, uint32_t number)
{
    frame made;
    incoming(m, number, &made);
    return send(m->cable.socket, made.bytes, made.size, 0) == (ssize_t)made.size;
}

/* The next numbered frame of the host, waiting for calls. */
static bool guest_receives(machine *m, frame *got)
{
    uint32_t number;
    for (;;) {
        while (net_driver_receive(&m->driver[0], got)) {
            net_driver_kick(&m->driver[0]);
            if (frame_number(got, &number)) {
                return true;
            }
        }
        if (m->driver[0].fault || !wait_for(m->driver[0].call[NET_RECEIVE])) {
            return false;
        }
        (void)net_driver_called(&m->driver[0], NET_RECEIVE);
    }
}

/* Waits until the device has given back all that was sent. */
static bool all_sent(net_driver *driver)
{
    split_ring *ring = &driver->ring[NET_TRANSMIT];
    for (int ms = 0; split_ring_done(ring) != ring->added && ms < PATIENCE; ms++) {
        (void)usleep(1000);
    }
    (void)net_driver_called(driver, NET_TRANSMIT);
    net_driver_reclaim(driver);
    return ring->collected == ring->added;
}

static enum greatest_test_res guest_posts(machine *m, uint32_t first, unsigned count)
{
    frame made;
    for (unsigned i = 0; i < count; i++) {
        outgoing(m, 0, first + i, &made);
        ASSERT(net_driver_send(&m->driver[0], &made));
        net_driver_kick(&m->driver[0]);
    }
    PASS();
}

static enum greatest_test_res host_gets(const machine *m, uint32_t first, unsigned count)
{
    frame made, got;
    for (unsigned i = 0; i < count; i++) {
        outgoing(m, 0, first + i, &made);
        ASSERT(host_receives(m, 0, &got));
        ASSERT(frame_equal(&got, &made));
    }
    PASS();
}

static enum greatest_test_res guest_gets(machine *m, uint32_t first, unsigned count)
{
    frame made, got;
    for (unsigned i = 0; i < count; i++) {
        incoming(m, first + i, &made);
        ASSERT(guest_receives(m, &got));
        ASSERT(frame_equal(&got, &made));
    }
    PASS();
}

static enum greatest_test_res frames_go_out(machine *m, unsigned count)
{
    CHECK_CALL(guest_posts(m, m->sent, count));
    CHECK_CALL(host_gets(m, m->sent, count));
    m->sent += count;
    ASSERT(all_sent(&m->driver[0]));
    PASS();
}

static enum greatest_test_res frames_come_in(machine *m, unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        ASSERT(host_sends(m, m->received + i));
    }
    CHECK_CALL(guest_gets(m, m->received, count));
    m->received += count;
    PASS();
}

static enum greatest_test_res frames_flow(machine *m, unsigned count)
{
    CHECK_CALL(frames_go_out(m, count));
    return frames_come_in(m, count);
}

/* ---- the data path ---- */

TEST frames_go_both_ways(machine *m)
{
    ASSERT_OK(running(m, 1));
    for (int round = 0; round < 5; round++) {
        CHECK_CALL(frames_flow(m, BURST));
    }
    ASSERT(m->driver[0].calls > 0);
    PASS();
}

TEST the_facts_are_those_of_the_kernel(machine *m)
{
    char text[16] = "";
    ASSERT_OK(stopped(m, 1));
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
    ASSERT_OK(stopped(m, 1));
    m->queue[1].call_fd = -1;
    ASSERT_OK(vhost_device_start(&m->device));
    CHECK_CALL(frames_go_out(m, BURST));
    ASSERT_FALSE(net_driver_called(&m->driver[0], NET_TRANSMIT));
    PASS();
}

TEST a_busy_loop_is_taken_and_taken_back(machine *m)
{
    ASSERT_OK(stopped(m, 1));
    m->queue[0].busy_loop_us = m->queue[1].busy_loop_us = 50;
    ASSERT_OK(vhost_device_start(&m->device));
    CHECK_CALL(frames_flow(m, BURST));
    ASSERT_OK(vhost_device_stop(&m->device));
    m->queue[0].busy_loop_us = m->queue[1].busy_loop_us = 0;
    ASSERT_OK(vhost_device_start(&m->device));
    CHECK_CALL(frames_flow(m, BURST));
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
    ASSERT_OK(running(m, 1));
    for (unsigned round = 1; round <= 8; round++) {
        CHECK_CALL(frames_flow(m, 11 * round));
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
    ASSERT_OK(running(m, 1));
    CHECK_CALL(frames_flow(m, 10));
    ASSERT_OK(vhost_device_stop(&m->device));
    CHECK_CALL(guest_posts(m, m->sent, 50));
    for (unsigned i = 0; i < 50; i++) {
        ASSERT(host_sends(m, m->received + i));
    }
    ASSERT_UINT(10, split_ring_done(&m->driver[0].ring[NET_TRANSMIT]));
    ASSERT_OK(vhost_device_start(&m->device));
    CHECK_CALL(host_gets(m, m->sent, 50));
    CHECK_CALL(guest_gets(m, m->received, 50));
    PASS();
}

TEST a_stop_in_mid_traffic_loses_and_doubles_nothing(machine *m)
{
    ASSERT_OK(running(m, 1));
    for (int round = 0; round < 20; round++) {
        uint16_t before = m->queue[1].position.avail;
        CHECK_CALL(guest_posts(m, m->sent, BURST));
        for (unsigned i = 0; i < 20; i++) {
            ASSERT(host_sends(m, m->received + i));
        }
        ASSERT_OK(vhost_device_stop(&m->device));
        CHECK_CALL(positions_are_right(m));
        unsigned taken = (uint16_t)(m->queue[1].position.avail - before);
        ASSERT(taken <= BURST);
        CHECK_CALL(host_gets(m, m->sent, taken));
        ASSERT_FALSE(host_has_more(m));
        ASSERT_OK(vhost_device_start(&m->device));
        CHECK_CALL(host_gets(m, m->sent + taken, BURST - taken));
        CHECK_CALL(guest_gets(m, m->received, 20));
        m->sent += BURST;
        m->received += 20;
        ASSERT(all_sent(&m->driver[0]));
        ASSERT_OK(vhost_device_stop(&m->device));
        ASSERT_OK(vhost_device_start(&m->device));
    }
    PASS();
}

TEST one_queue_stops_while_the_other_runs(machine *m)
{
    ASSERT_OK(running(m, 1));
    CHECK_CALL(frames_flow(m, 10));
    ASSERT_OK(vhost_queue_stop(&m->device, 1));
    ASSERT_UINT(10, m->queue[1].position.avail);
    CHECK_CALL(guest_posts(m, m->sent, 5));
    CHECK_CALL(frames_come_in(m, 20));
    ASSERT_FALSE(host_has_more(m));
    ASSERT_OK(vhost_queue_start(&m->device, 1));
    CHECK_CALL(host_gets(m, m->sent, 5));
    m->sent += 5;
    ASSERT(all_sent(&m->driver[0]));
    ASSERT_OK(vhost_queue_stop(&m->device, 0));
    ASSERT_UINT(30, m->queue[0].position.avail);
    CHECK_CALL(frames_go_out(m, 10));
    ASSERT_OK(vhost_queue_start(&m->device, 0));
    CHECK_CALL(frames_flow(m, 10));
    PASS();
}

TEST a_thousand_starts_and_stops_leave_nothing_behind(machine *m)
{
    ASSERT_OK(running(m, 1));
    CHECK_CALL(frames_flow(m, 20));
    unsigned fds = open_fds();
    long before = resident();
    for (int i = 0; i < 1000; i++) {
        ASSERT_OK(vhost_device_stop(&m->device));
        ASSERT_OK(vhost_device_start(&m->device));
    }
    ASSERT_UINT(fds, open_fds());
    ASSERT(before > 0 && resident() - before < 512);
    CHECK_CALL(frames_flow(m, 20));
    PASS();
}

TEST fifty_lives_leave_nothing_behind(machine *m)
{
    ASSERT_OK(running(m, 1));
    unsigned fds = open_fds();
    for (int i = 0; i < 50; i++) {
        vhost_device_cleanup(&m->device);
        ASSERT_UINT(fds - 5, open_fds()); /* the vhost fd, and two notifiers per queue */
        ASSERT_OK(attach_device(m));
        ASSERT_OK(vhost_device_start(&m->device));
    }
    ASSERT_UINT(fds, open_fds());
    CHECK_CALL(frames_flow(m, 20));
    PASS();
}

/* ---- memory ---- */

TEST memory_comes_and_goes_under_traffic(machine *m)
{
    ASSERT_OK(running(m, 1));
    for (int round = 0; round < 30; round++) {
        CHECK_CALL(guest_posts(m, m->sent, 60));
        for (unsigned i = 0; i < 30; i++) {
            ASSERT(host_sends(m, m->received + i));
        }
        ASSERT_OK(map_ram_and_plug(m));
        CHECK_CALL(guest_gets(m, m->received, 15));
        ASSERT_OK(map_ram(m));
        CHECK_CALL(guest_gets(m, m->received + 15, 15));
        CHECK_CALL(host_gets(m, m->sent, 60));
        m->sent += 60;
        m->received += 30;
        ASSERT(all_sent(&m->driver[0]));
    }
    PASS();
}

/* Moves the buffers of frames to be sent into the memory that is plugged in. */
static int use_plugged_memory(machine *m)
{
    net_layout layout = layout_of(0);
    layout.buffers[NET_TRANSMIT] = PLUG_GPA;
    net_driver_close(&m->driver[0]);
    memset(m->memory, 0, PAIR_SIZE);
    int result = net_driver_open(&m->driver[0], m->memory, &layout);
    fill(m, 0);
    return result;
}

TEST memory_plugged_in_is_used(machine *m)
{
    ASSERT_OK(stopped(m, 1));
    ASSERT_OK(use_plugged_memory(m));
    ASSERT_OK(vhost_device_start(&m->device));
    for (int round = 0; round < 3; round++) {
        ASSERT_OK(map_ram_and_plug(m));
        CHECK_CALL(frames_flow(m, BURST));
        ASSERT_OK(map_ram(m));
    }
    PASS();
}

/* The error comes out at the fd of its queue, and at no other. */
static enum greatest_test_res ring_error_is_told(machine *m, uint32_t queue)
{
    int fds[QUEUES];
    uint32_t count = vhost_device_poll_fds(&m->device, fds, QUEUES);
    ASSERT(count >= 2 && count <= QUEUES);
    ASSERT_UINT(0, m->ring_errors[queue]);
    ASSERT(wait_for(fds[count - 2 + queue])); /* the back-end's own come first */
    ASSERT_OK(vhost_device_process(&m->device));
    ASSERT_UINT(1, m->ring_errors[queue]);
    ASSERT_UINT(0, m->ring_errors[!queue]);
    ASSERT_INT(VHOST_STATE_RUNNING, m->device.state);
    PASS();
}

TEST memory_left_out_is_out_of_reach(machine *m)
{
    ASSERT_OK(stopped(m, 1));
    ASSERT_OK(use_plugged_memory(m));
    ASSERT_OK(map_ram_and_plug(m));
    ASSERT_OK(vhost_device_start(&m->device));
    CHECK_CALL(frames_go_out(m, 3));
    ASSERT_OK(map_ram(m));
    ASSERT_OK(vhost_device_process(&m->device));
    ASSERT_UINT(0, m->ring_errors[1]);
    CHECK_CALL(guest_posts(m, m->sent, 1));
    CHECK_CALL(ring_error_is_told(m, 1));
    ASSERT_FALSE(host_has_more(m));
    PASS();
}

static enum greatest_test_res resets_and_works(machine *m)
{
    ASSERT_OK(vhost_device_reset(&m->device));
    net_driver_close(&m->driver[0]);
    memset(m->memory, 0, PAIR_SIZE);
    ASSERT_OK(open_drivers(m));
    ASSERT_OK(vhost_device_ack(&m->device, (vhost_features){{VERSION_1, 0}}));
    ASSERT_OK(vhost_device_start(&m->device));
    CHECK_CALL(frames_flow(m, BURST));
    PASS();
}

TEST memory_taken_from_under_a_ring_breaks_the_device(machine *m)
{
    ASSERT_OK(running(m, 1));
    CHECK_CALL(frames_flow(m, 7));
    unsigned fds = open_fds();
    vhost_section rest;
    vhost_section_init(&rest, MIB, MIB, &m->backing, MIB);
    ASSERT_OK(map_sections(m, &rest, 1));
    ASSERT_INT(VHOST_STATE_BROKEN, m->device.state);
    ASSERT_INT(VHOST_WHY_RING_UNMAPPED, m->device.last_error.why);
    ASSERT_UINT(1, m->broken);
    ASSERT_UINT(fds - 1, open_fds());
    ASSERT_UINT(7, m->queue[1].position.avail);
    CHECK_CALL(guest_posts(m, m->sent, 5));
    ASSERT_FALSE(host_has_more(m));
    ASSERT_INT(-EFAULT, vhost_device_stop(&m->device));
    ASSERT_OK(map_ram(m));
    return resets_and_works(m);
}

/* RAM, and single pages that nothing merges. */
static int map_regions(machine *m, unsigned count)
{
    vhost_section sections[65];
    sections[0] = m->ram;
    for (unsigned i = 1; i < count; i++) {
        uint64_t gpa = PLUG_GPA + i * VHOST_PAGE;
        vhost_section_init(&sections[i], gpa, VHOST_PAGE, &m->backing, gpa);
        sections[i].flags = VHOST_SECTION_UNMERGEABLE;
    }
    return map_sections(m, sections, count);
}

TEST as_many_regions_as_the_kernel_has_slots(machine *m)
{
    ASSERT_OK(running(m, 1));
    ASSERT_UINT(64, m->device.facts.max_regions);
    ASSERT_OK(map_regions(m, 64));
    ASSERT_UINT(0, vhost_memory_free_slots(&m->vm));
    CHECK_CALL(frames_flow(m, 10));
    ASSERT_INT(-ENOSPC, map_regions(m, 65));
    ASSERT_INT(VHOST_WHY_TOO_MANY_REGIONS, m->vm.last_error.why);
    ASSERT_INT(VHOST_STATE_RUNNING, m->device.state);
    CHECK_CALL(frames_flow(m, 10));
    PASS();
}

/* ---- calls ---- */

/* Waits until the device has used the next buffer to receive into. */
static bool arrived(const machine *m, uint16_t before)
{
    int ms = 0;
    while (split_ring_done(&m->driver[0].ring[NET_RECEIVE]) == before && ms++ < PATIENCE) {
        (void)usleep(1000);
    }
    (void)usleep(5000); /* the call follows */
    return ms < PATIENCE;
}

TEST a_masked_call_is_pending(machine *m)
{
    ASSERT_OK(running(m, 1));
    CHECK_CALL(frames_come_in(m, 1));
    (void)net_driver_called(&m->driver[0], NET_RECEIVE);
    ASSERT_OK(vhost_queue_mask(&m->device, 0));
    ASSERT_INT(0, vhost_queue_pending(&m->device, 0));
    ASSERT(host_sends(m, 1));
    ASSERT(arrived(m, 1));
    ASSERT_FALSE(net_driver_called(&m->driver[0], NET_RECEIVE));
    ASSERT_INT(1, vhost_queue_pending(&m->device, 0));
    ASSERT_INT(0, vhost_queue_pending(&m->device, 0));
    ASSERT(host_sends(m, 2));
    ASSERT(arrived(m, 2));
    ASSERT_INT(1, vhost_queue_unmask(&m->device, 0));
    ASSERT_INT(0, vhost_queue_pending(&m->device, 0));
    CHECK_CALL(guest_gets(m, 1, 2));
    PASS();
}

TEST no_call_is_lost_at_a_mask(machine *m)
{
    ASSERT_OK(running(m, 1));
    for (uint32_t i = 0; i < 100; i++) {
        frame made, got;
        ASSERT(host_sends(m, i));
        ASSERT_OK(vhost_queue_mask(&m->device, 0));
        int pending = i % 2 == 0 ? vhost_queue_pending(&m->device, 0) : 0;
        int unmasked = vhost_queue_unmask(&m->device, 0);
        ASSERT(pending >= 0 && unmasked >= 0);
        ASSERT(pending || unmasked || wait_for(m->driver[0].call[NET_RECEIVE]));
        (void)net_driver_called(&m->driver[0], NET_RECEIVE);
        incoming(m, i, &made);
        ASSERT(net_driver_receive(&m->driver[0], &got)); /* called, so it is there */
        ASSERT(frame_equal(&got, &made));
    }
    PASS();
}

/* ---- broken rings ---- */

TEST a_descriptor_outside_of_memory_is_told(machine *m)
{
    const ring_piece nowhere = {PLUG_GPA, 64, false};
    const uint64_t one = 1;
    ASSERT_OK(running(m, 1));
    CHECK_CALL(frames_flow(m, 1));
    ASSERT_OK(vhost_device_process(&m->device));
    ASSERT(split_ring_add(&m->driver[0].ring[NET_TRANSMIT], &nowhere, 1, 0));
    ASSERT(write(m->driver[0].kick[NET_TRANSMIT], &one, sizeof one) == sizeof one);
    return ring_error_is_told(m, 1);
}

TEST an_available_index_that_jumps_is_told(machine *m)
{
    const uint64_t one = 1;
    ASSERT_OK(running(m, 1));
    CHECK_CALL(frames_flow(m, 1));
    ASSERT_OK(vhost_device_process(&m->device));
    m->driver[0].ring[NET_TRANSMIT].available->index = 1 + NET_RING_SIZE + 1;
    ASSERT(write(m->driver[0].kick[NET_TRANSMIT], &one, sizeof one) == sizeof one);
    CHECK_CALL(ring_error_is_told(m, 1));
    ASSERT_OK(vhost_device_stop(&m->device));
    ASSERT_UINT(1, m->queue[1].position.avail);
    return resets_and_works(m);
}

/* ---- what the kernel refuses ---- */

/* The kernel writes to a used ring when it is given a tap. */
TEST a_used_ring_that_cannot_be_written_is_refused(machine *m)
{
    ASSERT_OK(stopped(m, 1));
    void *page = m->memory + m->queue[1].used / VHOST_PAGE * VHOST_PAGE;
    ASSERT_OK(mprotect(page, VHOST_PAGE, PROT_READ));
    ASSERT_INT(-EFAULT, vhost_device_start(&m->device));
    ASSERT_INT(VHOST_WHY_BACKEND_REFUSED, m->device.last_error.why);
    ASSERT_INT(VHOST_OP_ENABLE_RING, m->device.last_error.op);
    ASSERT_INT(1, m->device.last_error.queue);
    ASSERT_INT(VHOST_STATE_STOPPED, m->device.state);
    ASSERT_OK(mprotect(page, VHOST_PAGE, PROT_READ | PROT_WRITE));
    ASSERT_OK(vhost_device_start(&m->device));
    CHECK_CALL(frames_flow(m, 10));
    PASS();
}

TEST a_ring_outside_of_memory_is_refused(machine *m)
{
    ASSERT_OK(stopped(m, 1));
    m->queue[1].used = RAM_SIZE - 64;
    ASSERT_INT(-EFAULT, vhost_device_start(&m->device));
    ASSERT_INT(VHOST_WHY_RING_UNMAPPED, m->device.last_error.why);
    ASSERT_INT(VHOST_STATE_STOPPED, m->device.state);
    fill(m, 0);
    ASSERT_OK(vhost_device_start(&m->device));
    CHECK_CALL(frames_flow(m, 10));
    PASS();
}

TEST what_is_no_tap_is_refused(machine *m)
{
    ASSERT_OK(running(m, 1));
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    CHECK_CALL(frames_flow(m, 10));
    ASSERT_INT(-ENOTSOCK, vhost_kernel_net_attach(&m->net, 0, null));
    ASSERT_INT(VHOST_WHY_BACKEND_REFUSED, m->net.last_error.why);
    CHECK_CALL(frames_flow(m, 10));
    ASSERT_OK(vhost_device_stop(&m->device));
    ASSERT_OK(vhost_kernel_net_attach(&m->net, 0, null));
    ASSERT_INT(-ENOTSOCK, vhost_device_start(&m->device));
    ASSERT_INT(VHOST_STATE_STOPPED, m->device.state);
    ASSERT_OK(vhost_kernel_net_attach(&m->net, 0, m->taps[0]));
    ASSERT_OK(vhost_device_start(&m->device));
    CHECK_CALL(frames_flow(m, 10));
    close(null);
    PASS();
}

TEST a_tap_is_changed_under_way(machine *m)
{
    ASSERT_OK(running(m, 1));
    CHECK_CALL(frames_flow(m, 10));
    tap first = m->cable;
    ASSERT_OK(tap_open(&m->cable, host_ip, NET_HEADER));
    ASSERT_OK(vhost_kernel_net_attach(&m->net, 0, m->cable.fd));
    m->taps[0] = m->cable.fd;
    tap_close(&first);
    CHECK_CALL(frames_flow(m, BURST));
    ASSERT_OK(vhost_kernel_net_attach(&m->net, 0, -1));
    CHECK_CALL(guest_posts(m, m->sent, 3));
    ASSERT_FALSE(host_has_more(m));
    ASSERT_OK(vhost_kernel_net_attach(&m->net, 0, m->cable.fd));
    CHECK_CALL(host_gets(m, m->sent, 3));
    PASS();
}

/* ---- fds and options ---- */

TEST a_passed_fd_works_until_the_device_breaks(machine *m)
{
    ASSERT_OK(prepare(m, 1));
    int fd = open("/dev/vhost-net", O_RDWR | O_CLOEXEC);
    ASSERT(fd >= 0);
    ASSERT_OK(vhost_kernel_net_open_fds(&m->net, &fd, m->taps, 1, NULL));
    ASSERT_OK(attach_device(m));
    vhost_device_cleanup(&m->device);
    ASSERT_OK(attach_device(m));
    ASSERT_OK(vhost_device_start(&m->device));
    CHECK_CALL(frames_flow(m, 10));
    vhost_section rest;
    vhost_section_init(&rest, MIB, MIB, &m->backing, MIB);
    ASSERT_OK(map_sections(m, &rest, 1));
    ASSERT_INT(-1, fcntl(fd, F_GETFD));
    ASSERT_INT(-ENODEV, vhost_device_reset(&m->device));
    ASSERT_INT(VHOST_WHY_KERNEL_SEVERED, m->net.last_error.why);
    PASS();
}

TEST an_fd_of_somebody_else_is_refused(machine *m)
{
    ASSERT_OK(prepare(m, 1));
    int fd = open("/dev/vhost-net", O_RDWR | O_CLOEXEC);
    ASSERT_OK(ioctl(fd, _IO(0xAF, 0x01)));
    ASSERT_OK(vhost_kernel_net_open_fds(&m->net, &fd, m->taps, 1, NULL));
    ASSERT_INT(-EBUSY, attach_device(m));
    ASSERT_INT(VHOST_WHY_KERNEL_OWNER, m->net.last_error.why);
    PASS();
}

TEST a_device_that_is_not_there_is_refused(machine *m)
{
    ASSERT_OK(prepare(m, 1));
    ASSERT_OK(vhost_kernel_net_open(&m->net, "/dev/vhost-nothing", m->taps, 1, NULL));
    ASSERT_INT(-ENOENT, attach_device(m));
    ASSERT_INT(VHOST_WHY_KERNEL_OPEN, m->net.last_error.why);
    vhost_kernel_close(&m->net);
    ASSERT_OK(vhost_kernel_net_open(&m->net, "/dev/null", m->taps, 1, NULL));
    ASSERT_INT(-ENOTSUP, attach_device(m));
    PASS();
}

static enum greatest_test_res works_with(machine *m, vhost_kernel_thread thread, bool workers)
{
    m->options.thread = thread;
    m->options.worker_per_queue = workers;
    vhost_device_cleanup(&m->device);
    vhost_kernel_close(&m->net);
    ASSERT_OK(vhost_kernel_net_open(&m->net, "/dev/vhost-net", m->taps, 1, &m->options));
    ASSERT_OK(attach_device(m));
    ASSERT_OK(vhost_device_start(&m->device));
    CHECK_CALL(frames_flow(m, 10));
    ASSERT_OK(vhost_device_stop(&m->device));
    PASS();
}

/* A position that goes on: the rings are the same, the back-end is a new one. */
TEST options_for_newer_kernels_do_no_harm(machine *m)
{
    ASSERT_OK(stopped(m, 1));
    CHECK_CALL(works_with(m, VHOST_KERNEL_THREAD_KTHREAD, false));
    CHECK_CALL(works_with(m, VHOST_KERNEL_THREAD_OF_OWNER, false));
    CHECK_CALL(works_with(m, VHOST_KERNEL_THREAD_DEFAULT, true));
    CHECK_CALL(works_with(m, VHOST_KERNEL_THREAD_OF_OWNER, true));
    PASS();
}

TEST a_log_fd_is_taken_and_taken_back(machine *m)
{
    ASSERT_OK(stopped(m, 1));
    int fd = eventfd(0, EFD_CLOEXEC);
    ASSERT_OK(vhost_kernel_set_log_fd(&m->net, fd));
    ASSERT_OK(vhost_kernel_set_log_fd(&m->net, -1));
    close(fd);
    PASS();
}

/* ---- four pairs ---- */

/* The next frame from the host on one pair. */
static bool pair_receives(machine *m, uint32_t pair, frame *got)
{
    net_driver *driver = &m->driver[pair];
    while (!net_driver_receive(driver, got)) {
        if (driver->fault || !wait_for(driver->call[NET_RECEIVE])) {
            return false;
        }
        (void)net_driver_called(driver, NET_RECEIVE);
    }
    net_driver_kick(driver);
    return true;
}

static bool host_receives_any(const machine *m, frame *got)
{
    if (!wait_for(m->cable.socket)) {
        return false;
    }
    ssize_t size = recv(m->cable.socket, got->bytes, sizeof got->bytes, 0);
    got->size = size < 0 ? 0 : (size_t)size;
    return true;
}

/* A ping goes out on a pair. The tap remembers where it came from: the answer comes in there. */
static enum greatest_test_res pair_talks(machine *m, uint32_t pair, uint16_t sequence)
{
    const station guest = guest_station(pair);
    frame request, got, answer;
    frame_echo_request(&request, &guest, &m->cable.host, sequence, 64 + sequence);
    ASSERT(net_driver_send(&m->driver[pair], &request));
    net_driver_kick(&m->driver[pair]);
    ASSERT(host_receives_any(m, &got));
    ASSERT(frame_equal(&got, &request));
    ASSERT(frame_answer(&answer, &got, &m->cable.host));
    ASSERT(send(m->cable.socket, answer.bytes, answer.size, 0) == (ssize_t)answer.size);
    ASSERT(pair_receives(m, pair, &got));
    ASSERT(frame_equal(&got, &answer));
    PASS();
}

static enum greatest_test_res all_pairs_talk(machine *m, uint16_t first, uint16_t count)
{
    for (uint16_t i = 0; i < count; i++) {
        for (uint32_t pair = 0; pair < PAIRS; pair++) {
            CHECK_CALL(pair_talks(m, pair, (uint16_t)(first + i)));
        }
    }
    for (uint32_t pair = 0; pair < PAIRS; pair++) {
        ASSERT(all_sent(&m->driver[pair]));
    }
    PASS();
}

TEST four_pairs_are_one_device(machine *m)
{
    ASSERT_OK(running(m, PAIRS));
    CHECK_CALL(all_pairs_talk(m, 0, 10));
    ASSERT_OK(vhost_device_stop(&m->device));
    for (int q = 0; q < QUEUES; q++) {
        ASSERT_UINT(10, m->queue[q].position.avail);
    }
    ASSERT_OK(vhost_device_start(&m->device));
    CHECK_CALL(all_pairs_talk(m, 10, 5));
    ASSERT_OK(map_ram_and_plug(m));
    CHECK_CALL(all_pairs_talk(m, 15, 5));
    PASS();
}

TEST one_pair_of_four_rests(machine *m)
{
    ASSERT_OK(running(m, PAIRS));
    CHECK_CALL(all_pairs_talk(m, 0, 3));
    ASSERT_OK(vhost_queue_stop(&m->device, 5));
    ASSERT_UINT(3, m->queue[5].position.avail);
    for (uint32_t pair = 0; pair < PAIRS; pair++) {
        if (pair != 2) {
            CHECK_CALL(pair_talks(m, pair, 9));
        }
    }
    ASSERT_OK(vhost_queue_start(&m->device, 5));
    CHECK_CALL(all_pairs_talk(m, 10, 3));
    PASS();
}

TEST four_pairs_break_as_one(machine *m)
{
    ASSERT_OK(running(m, PAIRS));
    unsigned fds = open_fds();
    vhost_section rest;
    vhost_section_init(&rest, 0, 3 * PAIR_SIZE, &m->backing, 0);
    ASSERT_OK(map_sections(m, &rest, 1));
    ASSERT_INT(VHOST_STATE_BROKEN, m->device.state);
    ASSERT_UINT(fds - PAIRS, open_fds());
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
