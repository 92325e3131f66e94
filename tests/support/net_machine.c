#define _GNU_SOURCE
#include "net_machine.h"

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
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

static const uint8_t host_ip[4] = {10, 77, 0, 1};
static const char vhost_net[] = "/dev/vhost-net";

static station guest_station(uint32_t pair)
{
    station guest = {{2, 0, 0, 0, 0, 0x10}, {10, 77, 0, 100}};
    guest.mac[5] = (uint8_t)(guest.mac[5] + pair);
    guest.ip[3] = (uint8_t)(guest.ip[3] + pair);
    return guest;
}

/* ---- what the library tells ---- */

static void on_message(vhost_level level, const vhost_error *what, const vhost_device *device,
                       void *user)
{
    machine *m = user;
    (void)what;
    (void)device;
    m->errors += level == VHOST_LEVEL_ERROR;
}

static void on_trace(const vhost_trace *trace, void *user)
{
    machine *m = user;
    if (trace->event == VHOST_TRACE_OP) {
        m->ops[trace->op]++;
    } else if (trace->event == VHOST_TRACE_LOG) {
        m->logs++;
    } else if (trace->event == VHOST_TRACE_MISS) {
        m->answered += trace->result == 0;
        m->unanswered += trace->result < 0;
    }
}

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
    m->queue_errors[queue]++;
}

/* ---- arranging: memory ---- */

int machine_open_memory(machine *m)
{
    if (m->ram) {
        return 0;
    }
    m->ram_fd = memfd_create("guest", MFD_CLOEXEC);
    if (m->ram_fd < 0 || ftruncate(m->ram_fd, (off_t)MACHINE_END) != 0) {
        return -errno;
    }
    m->ram = mmap(NULL, MACHINE_END, PROT_READ | PROT_WRITE, MAP_SHARED, m->ram_fd, 0);
    if (m->ram == MAP_FAILED) {
        m->ram = NULL;
        return -errno;
    }
    if (!m->view) {
        m->view = m->ram;
    }
    vhost_backing_init(&m->backing, m->ram, MACHINE_END, m->ram_fd, 0);
    vhost_section_init(&m->low, 0, MACHINE_RAM, &m->backing, 0);
    vhost_section_init(&m->plug, MACHINE_PLUG, MACHINE_PLUG_SIZE, &m->backing, MACHINE_PLUG);
    return vhost_vm_init(&m->vm, &m->vm_options);
}

int machine_map_sections(machine *m, const vhost_section *sections, unsigned count)
{
    int result = vhost_memory_begin(&m->vm);
    for (unsigned i = 0; i < count && result >= 0; i++) {
        result = vhost_memory_add(&m->vm, &sections[i]);
    }
    return result < 0 ? result : vhost_memory_commit(&m->vm);
}

int machine_map(machine *m, bool plugged)
{
    const vhost_section both[2] = {m->low, m->plug};
    return machine_map_sections(m, both, plugged ? 2 : 1);
}

/* ---- arranging: drivers ---- */

/* Buffers begin in the middle of nowhere, so that some frames cross a border of pages. */
static net_layout layout_of(const machine *m, uint32_t pair)
{
    uint64_t base = m->base + pair * MACHINE_PAIR;
    net_layout layout = {.ring = {base, base + 0x8000},
                         .header = base + 0x10000,
                         .buffers = {base + 0x20700, base + 0xb0700}};
    for (int i = 0; i < 2 && pair == 0; i++) {
        layout.buffers[i] = m->buffers[i] ? m->buffers[i] : layout.buffers[i];
    }
    return layout;
}

/* Gives each part of a ring pages of its own, and lets the used ring cross a border of pages. */
static void spread_ring(split_ring *ring, uint8_t *view)
{
    uint64_t available = ring->descriptors_gpa + 0x1000, used = ring->descriptors_gpa + 0x2c00;
    memcpy(view + available, ring->available, 4 + 2 * (size_t)ring->size);
    memset(view + used, 0, 4 + 8 * (size_t)ring->size);
    ring->available_gpa = available;
    ring->used_gpa = used;
    ring->available = (void *)(view + available);
    ring->used = (void *)(view + used);
}

void machine_fill_queues(machine *m)
{
    for (uint32_t q = 0; q < 2 * m->pairs; q++) {
        const net_driver *driver = &m->driver[q / 2];
        const split_ring *ring = &driver->ring[q % 2];
        vhost_queue *queue = &m->queue[q];
        queue->ready = true;
        queue->size = ring->size;
        queue->desc = ring->descriptors_gpa;
        queue->avail = ring->available_gpa;
        queue->used = ring->used_gpa;
        queue->kick_fd = driver->kick[q % 2];
        queue->call_fd = driver->call[q % 2];
    }
}

int machine_open_drivers(machine *m)
{
    for (uint32_t pair = 0; pair < m->pairs; pair++) {
        const net_layout layout = layout_of(m, pair);
        memset(m->view + layout.ring[0], 0, 0x2000);
        memset(m->view + layout.ring[1], 0, 0x2000);
        int result = net_driver_open(&m->driver[pair], m->view, &layout);
        if (result < 0) {
            return result;
        }
        for (int i = 0; i < 2; i++) {
            spread_ring(&m->driver[pair].ring[i], m->view);
        }
    }
    machine_fill_queues(m);
    return 0;
}

void machine_close_drivers(machine *m)
{
    for (uint32_t pair = 0; pair < m->pairs; pair++) {
        net_driver_close(&m->driver[pair]);
        memset(&m->driver[pair], 0, sizeof m->driver[pair]);
    }
}

/* ---- arranging: the cable ---- */

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

/* ---- arranging: the device ---- */

static int open_net(machine *m)
{
    int fds[MACHINE_PAIRS];
    if (!m->pass_fds) {
        return vhost_kernel_net_open(&m->net, vhost_net, m->taps, m->pairs, &m->kernel_options);
    }
    for (uint32_t i = 0; i < m->pairs; i++) {
        fds[i] = open(vhost_net, O_RDWR | O_CLOEXEC);
        if (fds[i] < 0) {
            return -errno;
        }
    }
    return vhost_kernel_net_open_fds(&m->net, fds, m->taps, m->pairs, &m->kernel_options);
}

int machine_attach(machine *m)
{
    int result = vhost_device_init(&m->device, &m->vm, vhost_kernel_ops(&m->net), &m->net, m->queue,
                                   2 * m->pairs, &m->device_options);
    return result < 0 ? result : vhost_device_ack(&m->device, m->accepted);
}

int machine_prepared(machine *m, uint32_t pairs)
{
    m->pairs = pairs;
    int result = machine_open_memory(m);
    if (result >= 0) {
        result = open_cable(m);
    }
    if (result >= 0) {
        result = machine_open_drivers(m);
    }
    return result < 0 ? result : machine_map(m, false);
}

int machine_stopped(machine *m, uint32_t pairs)
{
    int result = machine_prepared(m, pairs);
    if (result >= 0) {
        result = open_net(m);
    }
    return result < 0 ? result : machine_attach(m);
}

int machine_running(machine *m, uint32_t pairs)
{
    int result = machine_stopped(m, pairs);
    return result < 0 ? result : vhost_device_start(&m->device);
}

static void set_defaults(machine *m)
{
    memset(m, 0, sizeof *m);
    m->cable.fd = m->cable.socket = m->ram_fd = -1;
    for (int i = 0; i < MACHINE_PAIRS; i++) {
        m->taps[i] = -1;
    }
    for (int q = 0; q < MACHINE_QUEUES; q++) {
        vhost_queue_init(&m->queue[q]);
    }
    m->vm_options.user = m->device_options.user = m->kernel_options.user = m;
    m->vm_options.on_message = on_message;
    m->vm_options.on_trace = on_trace;
    m->device_options.on_broken = on_broken;
    m->device_options.on_queue_error = on_queue_error;
    vhost_features_set(&m->accepted, VHOST_FEATURE_VERSION_1);
}

static void take_down(machine *m)
{
    vhost_device_cleanup(&m->device);
    vhost_kernel_close(&m->net);
    (void)vhost_vm_cleanup(&m->vm);
    machine_close_drivers(m);
    for (int i = 0; i < MACHINE_PAIRS; i++) {
        if (m->taps[i] >= 0 && m->taps[i] != m->cable.fd) {
            close(m->taps[i]);
        }
    }
    tap_close(&m->cable);
    if (m->ram) {
        munmap(m->ram, MACHINE_END);
    }
    if (m->ram_fd >= 0) {
        close(m->ram_fd);
    }
}

static enum greatest_test_res judge(machine *m, enum greatest_test_res result)
{
    for (uint32_t pair = 0; pair < m->pairs; pair++) {
        if (m->driver[pair].fault) {
            printf("driver %u: %s\n", (unsigned)pair, m->driver[pair].fault);
            greatest_info.msg = m->driver[pair].fault;
            result = GREATEST_TEST_RES_FAIL;
        }
    }
    if (result != GREATEST_TEST_RES_PASS) {
        printf("vm: %s\ndevice: %s\nkernel: %s\n", m->vm.last_error.text, m->device.last_error.text,
               m->net.last_error.text);
    }
    return result;
}

enum greatest_test_res machine_run(machine_test *test)
{
    static machine the_machine;
    machine *m = &the_machine;
    unsigned fds = machine_fds();
    set_defaults(m);
    enum greatest_test_res result = judge(m, test(m));
    take_down(m);
    if (result == GREATEST_TEST_RES_PASS) {
        ASSERT_UINT(fds, machine_fds());
    }
    return result;
}

/* ---- waiting ---- */

bool machine_waits(machine *m, int fd, int milliseconds)
{
    enum {
        SERVED = MACHINE_PAIRS + MACHINE_QUEUES
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

bool machine_host_has_more(machine *m)
{
    return machine_waits(m, m->cable.socket, 20);
}

void machine_kick(machine *m, int queue)
{
    static const uint64_t one = 1;
    if (write(m->driver[0].kick[queue], &one, sizeof one) != sizeof one) {
        m->driver[0].fault = "a kick could not be written";
    }
}

/* ---- taking back, with an entry in the books ---- */

static uint64_t gpa_of(machine *m, uint64_t address)
{
    return m->gpa_of ? m->gpa_of(m, address) : address;
}

void machine_note_written(machine *m, uint64_t address, uint64_t size)
{
    uint64_t page = address / VHOST_PAGE, last = (address + (size - 1)) / VHOST_PAGE;
    for (; page <= last; page++) {
        m->written[gpa_of(m, page * VHOST_PAGE) / VHOST_PAGE] = 1;
    }
}

void machine_note_used_ring(machine *m, uint32_t queue)
{
    const split_ring *ring = &m->driver[queue / 2].ring[queue % 2];
    machine_note_written(m, ring->used_gpa, 4 + 8 * (uint64_t)ring->size);
}

void machine_note_used_rings(machine *m)
{
    for (uint32_t queue = 0; queue < 2 * m->pairs; queue++) {
        machine_note_used_ring(m, queue);
    }
}

void machine_forget_written(machine *m)
{
    memset(m->written, 0, sizeof m->written);
}

/* The next used entry, if there is one: it and the index were written, and the buffer it is for. */
static void note_used_entry(machine *m, const net_driver *driver, int queue)
{
    const split_ring *ring = &driver->ring[queue];
    uint16_t place = (uint16_t)(ring->collected % ring->size);
    if (ring->collected == split_ring_done(ring)) {
        return;
    }
    const ring_used_entry *entry = &ring->used->entries[place];
    machine_note_written(m, ring->used_gpa, 4);
    machine_note_written(m, ring->used_gpa + 4 + 8 * (uint64_t)place, 8);
    if (queue == NET_RECEIVE && entry->head < ring->size && entry->length > 0) {
        uint64_t buffer = driver->layout.buffers[queue] + ring->tags[entry->head] * NET_BUFFER;
        machine_note_written(m, buffer, m->logs_whole_buffers ? NET_BUFFER : entry->length);
    }
}

static bool receive(machine *m, uint32_t pair, frame *got)
{
    note_used_entry(m, &m->driver[pair], NET_RECEIVE);
    return net_driver_receive(&m->driver[pair], got);
}

static void reclaim(machine *m, uint32_t pair)
{
    net_driver *driver = &m->driver[pair];
    net_driver ahead = *driver;
    while (ahead.ring[NET_TRANSMIT].collected != split_ring_done(&ahead.ring[NET_TRANSMIT])) {
        note_used_entry(m, &ahead, NET_TRANSMIT);
        ahead.ring[NET_TRANSMIT].collected++;
    }
    (void)net_driver_called(driver, NET_TRANSMIT);
    net_driver_reclaim(driver);
}

bool machine_settles(machine *m)
{
    for (uint32_t pair = 0; pair < m->pairs; pair++) {
        split_ring *ring = &m->driver[pair].ring[NET_TRANSMIT];
        for (int ms = 0; split_ring_done(ring) != ring->added && ms < MACHINE_PATIENCE; ms += 2) {
            (void)vhost_device_process(&m->device);
            (void)usleep(2000);
        }
        reclaim(m, pair);
        if (ring->collected != ring->added) {
            return false;
        }
    }
    (void)usleep(2000); /* vhost-net writes to a ring's flags when it goes to sleep */
    return true;
}

/* ---- frames ---- */

static size_t size_of_frame(uint32_t number)
{
    return 60 + number * 97 % (FRAME_MAX - 59);
}

void machine_outgoing(const machine *m, uint32_t number, frame *made)
{
    const station guest = guest_station(0);
    frame_numbered(made, &guest, &m->cable.host, number, size_of_frame(number));
}

void machine_incoming(const machine *m, uint32_t number, frame *made)
{
    const station guest = guest_station(0);
    frame_numbered(made, &m->cable.host, &guest, number, size_of_frame(number));
}

static bool host_receives_any(machine *m, frame *got)
{
    if (!machine_waits(m, m->cable.socket, MACHINE_PATIENCE)) {
        return false;
    }
    ssize_t size = recv(m->cable.socket, got->bytes, sizeof got->bytes, 0);
    got->size = size < 0 ? 0 : (size_t)size;
    return true;
}

/* The next numbered frame of the guest. */
static bool host_receives(machine *m, frame *got)
{
    const station guest = guest_station(0);
    uint32_t number;
    while (host_receives_any(m, got)) {
        if (frame_is_from(got, &guest) && frame_number(got, &number)) {
            return true;
        }
    }
    return false;
}

/* The next frame from the host on one pair, waiting for calls. */
static bool pair_receives(machine *m, uint32_t pair, frame *got)
{
    net_driver *driver = &m->driver[pair];
    while (!receive(m, pair, got)) {
        if (driver->fault || !machine_waits(m, driver->call[NET_RECEIVE], MACHINE_PATIENCE)) {
            return false;
        }
        (void)net_driver_called(driver, NET_RECEIVE);
    }
    net_driver_kick(driver);
    return true;
}

/* The next numbered one. */
static bool guest_receives(machine *m, frame *got)
{
    uint32_t number;
    while (pair_receives(m, 0, got)) {
        if (frame_number(got, &number)) {
            return true;
        }
    }
    return false;
}

enum greatest_test_res machine_guest_posts(machine *m, unsigned count)
{
    frame made;
    for (unsigned i = 0; i < count; i++) {
        machine_outgoing(m, m->sent + i, &made);
        ASSERT(net_driver_send(&m->driver[0], &made));
        net_driver_kick(&m->driver[0]);
    }
    PASS();
}

enum greatest_test_res machine_host_gets(machine *m, unsigned count)
{
    frame made, got;
    for (unsigned i = 0; i < count; i++) {
        machine_outgoing(m, m->sent, &made);
        ASSERT(host_receives(m, &got));
        ASSERT(frame_equal(&got, &made));
        m->sent++;
    }
    PASS();
}

bool machine_host_sends(const machine *m, uint32_t number)
{
    frame made;
    machine_incoming(m, number, &made);
    return send(m->cable.socket, made.bytes, made.size, 0) == (ssize_t)made.size;
}

enum greatest_test_res machine_host_posts(machine *m, unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        ASSERT(machine_host_sends(m, m->received + i));
    }
    PASS();
}

enum greatest_test_res machine_guest_gets(machine *m, unsigned count)
{
    frame made, got;
    for (unsigned i = 0; i < count; i++) {
        machine_incoming(m, m->received, &made);
        ASSERT(guest_receives(m, &got));
        ASSERT(frame_equal(&got, &made));
        m->received++;
    }
    PASS();
}

enum greatest_test_res machine_frames_go_out(machine *m, unsigned count)
{
    CHECK_CALL(machine_guest_posts(m, count));
    CHECK_CALL(machine_host_gets(m, count));
    ASSERT(machine_settles(m));
    PASS();
}

enum greatest_test_res machine_frames_come_in(machine *m, unsigned count)
{
    CHECK_CALL(machine_host_posts(m, count));
    return machine_guest_gets(m, count);
}

enum greatest_test_res machine_frames_flow(machine *m, unsigned count)
{
    CHECK_CALL(machine_frames_go_out(m, count));
    return machine_frames_come_in(m, count);
}

enum greatest_test_res machine_pair_talks(machine *m, uint32_t pair, uint16_t sequence)
{
    const station guest = guest_station(pair);
    frame request, got, answer;
    frame_echo_request(&request, &guest, &m->cable.host, sequence, 64 + (size_t)sequence);
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

enum greatest_test_res machine_pairs_talk(machine *m, uint16_t first, uint16_t count)
{
    for (uint16_t i = 0; i < count; i++) {
        for (uint32_t pair = 0; pair < m->pairs; pair++) {
            CHECK_CALL(machine_pair_talks(m, pair, (uint16_t)(first + i)));
        }
    }
    PASS();
}

/* ---- the dirty log ---- */

typedef struct taken {
    unsigned char *dirty;
    uint64_t end; /* of the last range */
    bool in_order;
} taken;

static void take_range(uint64_t gpa, uint64_t size, void *user)
{
    taken *it = user;
    it->in_order &= size > 0 && (it->end == 0 || gpa > it->end);
    it->end = gpa + size;
    memset(it->dirty + gpa / VHOST_PAGE, 1, (size_t)(size / VHOST_PAGE));
}

unsigned machine_count_pages(const unsigned char *marks)
{
    unsigned marked = 0;
    for (unsigned i = 0; i < MACHINE_PAGES; i++) {
        marked += marks[i];
    }
    return marked;
}

unsigned char *machine_no_pages(void)
{
    static unsigned char marks[MACHINE_PAGES];
    memset(marks, 0, sizeof marks);
    return marks;
}

enum greatest_test_res machine_same_pages(const unsigned char *written, const unsigned char *dirty)
{
    for (unsigned page = 0; page < MACHINE_PAGES; page++) {
        if (written[page] != dirty[page]) {
            printf("page 0x%x is %s\n", page, dirty[page] ? "dirty, but not written" : "lost");
            FAIL();
        }
    }
    PASS();
}

enum greatest_test_res machine_take_log(machine *m, unsigned char *dirty)
{
    taken it = {dirty, 0, true};
    vhost_log_sink sink = {.range = take_range, .user = &it};
    unsigned before = machine_count_pages(dirty);
    ASSERT_OK(vhost_log_sync(&m->vm, 0, MACHINE_END, &sink));
    ASSERT(it.in_order);
    ASSERT_UINT(0, sink.pages_dropped);
    ASSERT(machine_count_pages(dirty) - before <= sink.pages_dirty);
    PASS();
}

enum greatest_test_res machine_written_is_dirty(machine *m, unsigned char *dirty)
{
    ASSERT(machine_settles(m));
    CHECK_CALL(machine_take_log(m, dirty));
    CHECK_CALL(machine_same_pages(m->written, dirty));
    machine_forget_written(m);
    PASS();
}

enum greatest_test_res machine_exactly_written(machine *m)
{
    return machine_written_is_dirty(m, machine_no_pages());
}

enum greatest_test_res machine_nothing_is_dirty(machine *m)
{
    unsigned char *dirty = machine_no_pages();
    CHECK_CALL(machine_take_log(m, dirty));
    ASSERT_UINT(0, machine_count_pages(dirty));
    PASS();
}

enum greatest_test_res machine_begin_log(machine *m)
{
    CHECK_CALL(machine_frames_flow(m, 5));
    ASSERT(machine_settles(m));
    ASSERT_OK(vhost_log_start(&m->vm));
    machine_forget_written(m);
    return machine_nothing_is_dirty(m);
}

enum greatest_test_res machine_resizes_lose_no_page(machine *m)
{
    unsigned char *dirty = machine_no_pages();
    CHECK_CALL(machine_guest_posts(m, 60));
    CHECK_CALL(machine_host_posts(m, 30));
    ASSERT_OK(machine_map(m, true));
    CHECK_CALL(machine_guest_gets(m, 10));
    CHECK_CALL(machine_take_log(m, dirty));
    CHECK_CALL(machine_guest_gets(m, 10));
    ASSERT_OK(machine_map(m, false));
    CHECK_CALL(machine_guest_gets(m, 10));
    CHECK_CALL(machine_host_gets(m, 60));
    return machine_written_is_dirty(m, dirty);
}

enum greatest_test_res machine_log_switches_lose_no_frame(machine *m, unsigned count)
{
    CHECK_CALL(machine_guest_posts(m, 4 * count));
    CHECK_CALL(machine_host_posts(m, 2 * count));
    ASSERT_OK(vhost_log_start(&m->vm));
    CHECK_CALL(machine_guest_gets(m, count));
    ASSERT_OK(vhost_log_stop(&m->vm));
    CHECK_CALL(machine_guest_gets(m, count));
    CHECK_CALL(machine_host_gets(m, 4 * count));
    ASSERT(machine_settles(m));
    PASS();
}

/* ---- books of the process ---- */

unsigned machine_fds(void)
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

long machine_resident(void)
{
    char line[128];
    long size = -1;
    FILE *status = fopen("/proc/self/status", "r");
    while (status && fgets(line, sizeof line, status)) {
        if (strncmp(line, "RssAnon:", 8) == 0) {
            size = strtol(line + 8, NULL, 10);
        }
    }
    if (status) {
        fclose(status);
    }
    return size;
}
