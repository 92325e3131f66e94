#define _GNU_SOURCE
#include "vsock_machine.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <linux/vm_sockets.h> /* old ones need what comes before */

enum {
    PIECE = 6000, /* bytes in one go */
    GUEST_OPENED = 0,
    HOST_OPENED = 1
};

/* ---- what the library tells ---- */

static void on_message(vhost_level level, const vhost_error *what, const vhost_device *device,
                       void *user)
{
    vsock_machine *m = user;
    (void)what;
    (void)device;
    m->errors += level == VHOST_LEVEL_ERROR;
}

static void on_trace(const vhost_trace *trace, void *user)
{
    vsock_machine *m = user;
    if (trace->event == VHOST_TRACE_OP) {
        m->ops[trace->op]++;
    } else if (trace->event == VHOST_TRACE_MISS) {
        m->answered += trace->result == 0;
        m->unanswered += trace->result < 0;
    }
}

static void on_broken(vhost_device *device, void *user)
{
    vsock_machine *m = user;
    (void)device;
    m->broken++;
}

static void on_queue_error(vhost_device *device, uint32_t queue, void *user)
{
    vsock_machine *m = user;
    (void)device;
    m->queue_errors[queue]++;
}

/* ---- arranging: memory ---- */

int vsock_machine_open_memory(vsock_machine *m)
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

int vsock_machine_map_sections(vsock_machine *m, const vhost_section *sections, unsigned count)
{
    int result = vhost_memory_begin(&m->vm);
    for (unsigned i = 0; i < count && result >= 0; i++) {
        result = vhost_memory_add(&m->vm, &sections[i]);
    }
    return result < 0 ? result : vhost_memory_commit(&m->vm);
}

int vsock_machine_map(vsock_machine *m, bool plugged)
{
    const vhost_section both[2] = {m->low, m->plug};
    return vsock_machine_map_sections(m, both, plugged ? 2 : 1);
}

/* ---- arranging: the driver ---- */

/* Gives each part of a ring pages of its own, and lets the used ring cross a border of pages. */
static void spread_ring(split_ring *ring, uint8_t *view)
{
    uint64_t available = ring->descriptors_gpa + 0x1000, used = ring->descriptors_gpa + 0x2f80;
    memcpy(view + available, ring->available, 4 + 2 * (size_t)ring->size);
    memset(view + used, 0, 4 + 8 * (size_t)ring->size);
    ring->available_gpa = available;
    ring->used_gpa = used;
    ring->available = (void *)(view + available);
    ring->used = (void *)(view + used);
}

void vsock_machine_fill_queues(vsock_machine *m)
{
    for (uint32_t q = 0; q < 2; q++) {
        const split_ring *ring = &m->driver.ring[q];
        vhost_queue *queue = &m->queue[q];
        queue->ready = true;
        queue->size = ring->size;
        queue->desc = ring->descriptors_gpa;
        queue->avail = ring->available_gpa;
        queue->used = ring->used_gpa;
        queue->kick_fd = m->driver.kick[q];
        queue->call_fd = m->driver.call[q];
    }
}

/* Buffers begin in the middle of nowhere, so that each crosses a border of pages. Each driver has
   ports of its own: the host may not know yet that the one before is gone. */
int vsock_machine_open_driver(vsock_machine *m)
{
    static uint32_t first_port = 50000;
    vsock_layout layout = {
        .ring = {m->base, m->base + 0x8000, m->base + 0x10000},
        .buffers = {m->base + 0x20700, m->base + 0x61e00, m->base + 0xa3000},
    };
    if (m->transmits_from != 0) {
        layout.buffers[VSOCK_TRANSMIT] = m->transmits_from;
    }
    memset(m->view + m->base, 0, 0x18000);
    int result = vsock_driver_open(&m->driver, m->view, &layout, m->cid);
    for (int i = 0; i < VSOCK_QUEUES && result >= 0; i++) {
        spread_ring(&m->driver.ring[i], m->view);
    }
    m->driver.listens = VSOCK_MACHINE_GUEST_PORT;
    m->driver.next_port = first_port;
    first_port += 100;
    m->events = 0;
    vsock_machine_fill_queues(m);
    return result;
}

void vsock_machine_close_driver(vsock_machine *m)
{
    vsock_driver_close(&m->driver);
    memset(&m->driver, 0, sizeof m->driver);
}

bool vsock_machine_put_event(vsock_machine *m, uint32_t id)
{
    static const uint64_t one = 1;
    split_ring *ring = &m->driver.ring[VSOCK_EVENT];
    uint16_t place = (uint16_t)(m->events % ring->size);
    uint16_t head = ring->available->entries[place];
    memcpy(m->view + ring->descriptors[head].address, &id, sizeof id);
    ring->used->entries[place] = (ring_used_entry){head, sizeof id};
    m->events++;
    __atomic_store_n(&ring->used->index, m->events, __ATOMIC_RELEASE);
    return write(m->driver.call[VSOCK_EVENT], &one, sizeof one) == sizeof one;
}

/* ---- arranging: the device ---- */

int vsock_machine_attach(vsock_machine *m)
{
    const vhost_kernel_options *options = &m->kernel_options;
    int result = m->passed_fd < 0
                     ? vhost_kernel_vsock_open(&m->kernel, m->path, m->cid, options)
                     : vhost_kernel_vsock_open_fd(&m->kernel, m->passed_fd, m->cid, options);
    if (result >= 0) {
        result = vhost_device_init(&m->device, &m->vm, vhost_kernel_ops(&m->kernel), &m->kernel,
                                   m->queue, 2, &m->device_options);
    }
    return result < 0 ? result : vhost_device_ack(&m->device, m->accepted);
}

void vsock_machine_detach(vsock_machine *m)
{
    vhost_device_cleanup(&m->device);
    vhost_kernel_close(&m->kernel);
}

static int listen_on_host(vsock_machine *m)
{
    struct sockaddr_vm any = {
        .svm_family = AF_VSOCK, .svm_port = VSOCK_MACHINE_HOST_PORT, .svm_cid = VMADDR_CID_ANY};
    m->listener = socket(AF_VSOCK, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (m->listener < 0 || bind(m->listener, (struct sockaddr *)&any, sizeof any) != 0 ||
        listen(m->listener, 4) != 0) {
        return -errno;
    }
    return 0;
}

int vsock_machine_prepared(vsock_machine *m)
{
    int result = vsock_machine_open_memory(m);
    if (result >= 0) {
        result = listen_on_host(m);
    }
    if (result >= 0) {
        result = vsock_machine_open_driver(m);
    }
    return result < 0 ? result : vsock_machine_map(m, false);
}

int vsock_machine_stopped(vsock_machine *m)
{
    int result = vsock_machine_prepared(m);
    return result < 0 ? result : vsock_machine_attach(m);
}

int vsock_machine_running(vsock_machine *m)
{
    int result = vsock_machine_stopped(m);
    return result < 0 ? result : vhost_device_start(&m->device);
}

static void set_defaults(vsock_machine *m)
{
    memset(m, 0, sizeof *m);
    m->ram_fd = m->listener = m->passed_fd = -1;
    m->pair[0].host = m->pair[1].host = -1;
    m->cid = VSOCK_MACHINE_CID;
    m->path = "/dev/vhost-vsock";
    vhost_queue_init(&m->queue[0]);
    vhost_queue_init(&m->queue[1]);
    m->vm_options.user = m->device_options.user = m->kernel_options.user = m;
    m->vm_options.on_message = on_message;
    m->vm_options.on_trace = on_trace;
    m->device_options.on_broken = on_broken;
    m->device_options.on_queue_error = on_queue_error;
    vhost_features_set(&m->accepted, VHOST_FEATURE_VERSION_1);
}

static void close_sockets(vsock_machine *m)
{
    for (int i = 0; i < 2; i++) {
        if (m->pair[i].host >= 0) {
            close(m->pair[i].host);
        }
        m->pair[i] = (vsock_pair){.host = -1};
    }
}

static void take_down(vsock_machine *m)
{
    vsock_machine_detach(m);
    (void)vhost_vm_cleanup(&m->vm);
    vsock_machine_close_driver(m);
    close_sockets(m);
    if (m->listener >= 0) {
        close(m->listener);
    }
    if (m->ram) {
        munmap(m->ram, MACHINE_END);
    }
    if (m->ram_fd >= 0) {
        close(m->ram_fd);
    }
}

static enum greatest_test_res judge(vsock_machine *m, enum greatest_test_res result)
{
    const char *fault = m->driver.fault ? m->driver.fault : m->damage;
    if (fault) {
        greatest_info.msg = fault;
        result = GREATEST_TEST_RES_FAIL;
    }
    if (result != GREATEST_TEST_RES_PASS) {
        printf("%svm: %s\ndevice: %s\nkernel: %s\n", fault ? fault : "", m->vm.last_error.text,
               m->device.last_error.text, m->kernel.last_error.text);
    }
    return result;
}

enum greatest_test_res vsock_machine_run(vsock_machine_test *test)
{
    static vsock_machine the_machine;
    vsock_machine *m = &the_machine;
    unsigned fds = machine_fds();
    set_defaults(m);
    enum greatest_test_res result = judge(m, test(m));
    take_down(m);
    if (result == GREATEST_TEST_RES_PASS) {
        ASSERT_UINT(fds, machine_fds());
    }
    return result;
}

/* ---- books ---- */

static void note(vsock_machine *m, unsigned char *marks, uint64_t address, uint64_t size)
{
    uint64_t page = address / VHOST_PAGE, last = (address + size - 1) / VHOST_PAGE;
    for (; page <= last; page++) {
        uint64_t gpa = m->gpa_of ? m->gpa_of(m, page * VHOST_PAGE) : page * VHOST_PAGE;
        marks[gpa / VHOST_PAGE] = 1;
    }
}

/* The used entry at `place`, ever: it and the index were written, and the buffer it is for. */
static void note_entry(vsock_machine *m, int queue, uint16_t place)
{
    const split_ring *ring = &m->driver.ring[queue];
    const ring_used_entry *entry = &ring->used->entries[place % ring->size];
    note(m, m->written, ring->used_gpa, 4);
    note(m, m->written, ring->used_gpa + 4 + 8 * (uint64_t)(place % ring->size), 8);
    if (entry->head < ring->size && entry->length > 0) {
        note(m, m->filled, ring->descriptors[entry->head].address, entry->length);
    }
}

void vsock_machine_note_used_ring(vsock_machine *m, uint32_t queue)
{
    const split_ring *ring = &m->driver.ring[queue];
    note(m, m->written, ring->used_gpa, 4 + 8 * (uint64_t)ring->size);
}

void vsock_machine_forget_written(vsock_machine *m)
{
    memset(m->written, 0, sizeof m->written);
    memset(m->filled, 0, sizeof m->filled);
}

static void take_range(uint64_t gpa, uint64_t size, void *user)
{
    memset((unsigned char *)user + gpa / VHOST_PAGE, 1, (size_t)(size / VHOST_PAGE));
}

enum greatest_test_res vsock_machine_take_log(vsock_machine *m, unsigned char *dirty)
{
    vhost_log_sink sink = {.range = take_range, .user = dirty};
    ASSERT_OK(vhost_log_sync(&m->vm, 0, MACHINE_END, &sink));
    ASSERT_UINT(0, sink.pages_dropped);
    PASS();
}

static unsigned count_tasks(void)
{
    unsigned count = 0;
    DIR *folder = opendir("/proc/self/task");
    while (folder && readdir(folder)) {
        count++;
    }
    if (folder) {
        closedir(folder);
    }
    return count;
}

static bool is_of_vhost(const char *pid)
{
    char path[300], name[16] = "";
    snprintf(path, sizeof path, "/proc/%s/comm", pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t size = fd < 0 ? 0 : read(fd, name, sizeof name - 1);
    if (fd >= 0) {
        close(fd);
    }
    return size > 0 && strncmp(name, "vhost-", 6) == 0;
}

unsigned vsock_machine_threads(void)
{
    unsigned count = count_tasks();
    DIR *folder = opendir("/proc");
    const struct dirent *entry;
    while (folder && (entry = readdir(folder)) != NULL) {
        count += isdigit((unsigned char)entry->d_name[0]) && is_of_vhost(entry->d_name);
    }
    if (folder) {
        closedir(folder);
    }
    return count;
}

/* ---- the guest's interrupts ---- */

static void reclaim(vsock_machine *m)
{
    const split_ring *ring = &m->driver.ring[VSOCK_TRANSMIT];
    for (uint16_t at = ring->collected; at != split_ring_done(ring); at++) {
        note_entry(m, VSOCK_TRANSMIT, at);
    }
    vsock_driver_reclaim(&m->driver);
}

static bool receive(vsock_machine *m)
{
    const split_ring *ring = &m->driver.ring[VSOCK_RECEIVE];
    if (m->driver.idle_count > 0 && ring->collected != split_ring_done(ring)) {
        note_entry(m, VSOCK_RECEIVE, ring->collected);
    }
    return vsock_driver_receive(&m->driver);
}

/* Looks at its rings only when it is called: a lost call would be a lost packet. */
static void serve_guest(vsock_machine *m)
{
    bool called = vsock_driver_called(&m->driver, VSOCK_EVENT);
    for (int q = 0; q < 2; q++) {
        bool now = vsock_driver_called(&m->driver, q);
        m->calls[q] += now;
        called |= now;
    }
    if (!called) {
        return;
    }
    reclaim(m);
    vsock_driver_take_events(&m->driver);
    while (receive(m)) {
    }
}

/* ---- bytes ---- */

static uint8_t letter(char side, uint32_t place)
{
    return (uint8_t)((place * UINT32_C(2654435761) >> 24) ^ (uint8_t)side);
}

static size_t fill_piece(uint8_t *bytes, char side, uint32_t sent, uint32_t goal)
{
    size_t size = goal - sent < PIECE ? goal - sent : PIECE;
    for (size_t i = 0; i < size; i++) {
        bytes[i] = letter(side, sent + (uint32_t)i);
    }
    return size;
}

static void check_piece(vsock_machine *m, const uint8_t *bytes, size_t size, char side,
                        uint32_t *got)
{
    for (size_t i = 0; i < size; i++) {
        if (bytes[i] != letter(side, *got)) {
            m->damage = "a byte came damaged, twice, or out of order\n";
        }
        ++*got;
    }
}

static void guest_works(vsock_machine *m, vsock_pair *pair)
{
    uint8_t bytes[PIECE];
    size_t size = fill_piece(bytes, 'g', pair->guest_sent, pair->goal);
    pair->guest_sent += (uint32_t)vsock_write(&m->driver, pair->guest, bytes, size);
    while ((size = vsock_read(&m->driver, pair->guest, bytes, sizeof bytes)) > 0) {
        check_piece(m, bytes, size, 'h', &pair->guest_got);
    }
}

static void host_works(vsock_machine *m, vsock_pair *pair)
{
    uint8_t bytes[PIECE];
    size_t left = fill_piece(bytes, 'h', pair->host_sent, pair->goal);
    ssize_t size = left > 0 ? send(pair->host, bytes, left, MSG_NOSIGNAL) : 0;
    pair->host_sent += size > 0 ? (uint32_t)size : 0;
    pair->reset |= size < 0 && errno == ECONNRESET;
    while ((size = recv(pair->host, bytes, sizeof bytes, 0)) > 0) {
        check_piece(m, bytes, (size_t)size, 'g', &pair->host_got);
    }
    pair->reset |= size < 0 && errno == ECONNRESET;
}

static void both_work(vsock_machine *m)
{
    for (int i = 0; i < 2; i++) {
        if (m->pair[i].host >= 0 && m->pair[i].guest) {
            guest_works(m, &m->pair[i]);
            host_works(m, &m->pair[i]);
        }
    }
    vsock_driver_kick(&m->driver);
}

/* ---- waiting ---- */

enum {
    OWN = VSOCK_QUEUES + 2, /* fds that are not the device's: calls and sockets */
    ALL = OWN + 8
};

static void poll_all(vsock_machine *m)
{
    struct pollfd polled[ALL];
    int fds[ALL - OWN];
    for (int i = 0; i < VSOCK_QUEUES; i++) {
        polled[i] = (struct pollfd){.fd = m->driver.call[i], .events = POLLIN};
    }
    for (int i = 0; i < 2; i++) {
        const vsock_pair *pair = &m->pair[i];
        bool writes = pair->guest && pair->host_sent != pair->goal;
        polled[VSOCK_QUEUES + i] =
            (struct pollfd){.fd = pair->host, .events = writes ? POLLIN | POLLOUT : POLLIN};
    }
    uint32_t count = vhost_device_poll_fds(&m->device, fds, ALL - OWN);
    for (uint32_t i = 0; i < count; i++) {
        polled[OWN + i] = (struct pollfd){.fd = fds[i], .events = POLLIN};
    }
    (void)poll(polled, OWN + count, 20);
}

void vsock_machine_turn(vsock_machine *m)
{
    vsock_driver_kick(&m->driver);
    poll_all(m);
    (void)vhost_device_process(&m->device);
    serve_guest(m);
    both_work(m);
}

bool vsock_machine_waits(vsock_machine *m, double since)
{
    vsock_machine_turn(m);
    return clock_now() - since < MACHINE_PATIENCE / 1000.0 && !m->driver.fault;
}

typedef bool condition(vsock_machine *m);

static bool comes(vsock_machine *m, condition *is_so)
{
    double begin = clock_now();
    while (!is_so(m)) {
        if (!vsock_machine_waits(m, begin)) {
            return false;
        }
    }
    return true;
}

void vsock_machine_kick(vsock_machine *m, int queue)
{
    static const uint64_t one = 1;
    if (write(m->driver.kick[queue], &one, sizeof one) != sizeof one) {
        m->driver.fault = "a kick could not be written";
    }
}

/* ---- streams ---- */

int vsock_machine_host_connects(vsock_machine *m)
{
    struct sockaddr_vm guest = {
        .svm_family = AF_VSOCK, .svm_port = VSOCK_MACHINE_GUEST_PORT, .svm_cid = (unsigned)m->cid};
    int fd = socket(AF_VSOCK, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    m->pair[HOST_OPENED] = (vsock_pair){.host = fd};
    if (fd >= 0 && connect(fd, (struct sockaddr *)&guest, sizeof guest) != 0 &&
        errno == EINPROGRESS) {
        return 0;
    }
    return -errno;
}

static bool both_are_open(vsock_machine *m)
{
    vsock_pair *ours = &m->pair[GUEST_OPENED], *theirs = &m->pair[HOST_OPENED];
    struct pollfd connecting = {.fd = theirs->host, .events = POLLOUT};
    if (ours->host < 0) {
        ours->host = accept4(m->listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    }
    if (!theirs->guest) {
        theirs->guest = vsock_accept(&m->driver);
    }
    return ours->host >= 0 && ours->guest->state == VSOCK_OPEN && theirs->guest &&
           poll(&connecting, 1, 0) == 1;
}

enum greatest_test_res vsock_machine_accepts(vsock_machine *m)
{
    ASSERT(comes(m, both_are_open));
    PASS();
}

enum greatest_test_res vsock_machine_connects(vsock_machine *m)
{
    close_sockets(m);
    m->pair[GUEST_OPENED].guest = vsock_connect(&m->driver, VSOCK_MACHINE_HOST_PORT);
    ASSERT(m->pair[GUEST_OPENED].guest);
    ASSERT_OK(vsock_machine_host_connects(m));
    return vsock_machine_accepts(m);
}

static bool host_is_at_the_end(vsock_machine *m)
{
    uint8_t byte;
    return recv(m->pair[GUEST_OPENED].host, &byte, 1, 0) == 0;
}

static bool guest_is_at_the_end(vsock_machine *m)
{
    return m->pair[0].guest->state == VSOCK_ENDED && m->pair[1].guest->state == VSOCK_ENDED;
}

enum greatest_test_res vsock_machine_closes(vsock_machine *m)
{
    vsock_stream *const streams[2] = {m->pair[0].guest, m->pair[1].guest};
    ASSERT(vsock_shutdown(&m->driver, streams[GUEST_OPENED]));
    ASSERT(comes(m, host_is_at_the_end));
    for (int i = 0; i < 2; i++) {
        close(m->pair[i].host);
        m->pair[i].host = -1;
    }
    ASSERT(comes(m, guest_is_at_the_end));
    for (int i = 0; i < 2; i++) {
        ASSERT_FALSE(streams[i]->cut);
        vsock_release(streams[i]);
    }
    close_sockets(m);
    PASS();
}

static bool both_are_cut(vsock_machine *m)
{
    return guest_is_at_the_end(m) && m->pair[0].reset && m->pair[1].reset;
}

enum greatest_test_res vsock_machine_is_cut(vsock_machine *m)
{
    ASSERT(comes(m, both_are_cut));
    for (int i = 0; i < 2; i++) {
        ASSERT(m->pair[i].guest->cut);
        vsock_release(m->pair[i].guest);
    }
    close_sockets(m);
    PASS();
}

void vsock_machine_posts(vsock_machine *m, uint32_t size)
{
    m->pair[0].goal += size;
    m->pair[1].goal += size;
    both_work(m);
}

static bool all_is_there(vsock_machine *m)
{
    const split_ring *ring = &m->driver.ring[VSOCK_TRANSMIT];
    for (int i = 0; i < 2; i++) {
        const vsock_pair *pair = &m->pair[i];
        if (pair->host_got != pair->goal || pair->guest_got != pair->goal) {
            return false;
        }
    }
    return ring->collected == ring->added;
}

enum greatest_test_res vsock_machine_arrives(vsock_machine *m)
{
    ASSERT(comes(m, all_is_there));
    for (int i = 0; i < 2; i++) {
        ASSERT_UINT(m->pair[i].goal, m->pair[i].host_sent);
        ASSERT_UINT(m->pair[i].goal, m->pair[i].guest_sent);
    }
    PASS();
}

enum greatest_test_res vsock_machine_talks(vsock_machine *m, uint32_t size)
{
    vsock_machine_posts(m, size);
    return vsock_machine_arrives(m);
}
