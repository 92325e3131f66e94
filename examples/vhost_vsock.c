/* vhost_vsock.c - sockets between host and guest, on vhost-vsock
   SPDX-License-Identifier: MIT OR Unlicense

   shows     A virtio-vsock device as a hypervisor has it: two of its queues are the kernel's, the
             third, for events, is the hypervisor's own. This program plays the guest too, with a
             driver of its own; its host is the real one, with plain AF_VSOCK sockets. Streams are
             opened from both sides, live through a stop and a start, and end as they have to when
             the guest goes on in another device, as after a migration.
   build     make build/examples/vhost_vsock
   run       make demo-vm: on real kernels, in virtual machines.
             vhost_vsock: here, if there is a /dev/vhost-vsock, as root or with access to it; else
             it says so, and that is all. With the argument "kernel" that is a failure.
   expected  Five numbered steps, and as the last line
             vhost_vsock: ok (3932160 bytes, each of them; Linux 6.12.117)
             Exit status 0 only if all of it held.

   The VM of make demo-vm loads    vm-modules: vhost_vsock */
#define _GNU_SOURCE
#define VHOST_IMPLEMENTATION
#include "vhost_kernel.h"

#include "common/clock.h"
#include "common/report.h"
#include "common/virtio_names.h"
#include "common/vsock_driver.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/vm_sockets.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/utsname.h>
#include <unistd.h>

#define KIB      UINT64_C(1024)
#define MIB      (1024 * KIB)
#define RAM_SIZE (4 * MIB)

static const char path[] = "/dev/vhost-vsock";

enum {
    GUEST_CID = 30042,
    HOST_PORT = 1024,  /* where the host listens */
    GUEST_PORT = 2048, /* where the guest does */
    LETTER = 320 * 1024,
    PIECE = 8192, /* bytes in one go */
    PATIENCE = 10 /* seconds until what has not come is lost */
};

typedef struct stream { /* one, seen from both of its ends */
    int host;
    vsock_stream *guest;
    /* Bytes of the letters that go each way. */
    uint32_t host_sent, host_got, guest_sent, guest_got;
} stream;

typedef struct demo {
    report report;
    vhost_vm vm;
    uint8_t *ram;
    vhost_backing backing;
    vhost_kernel kernel;
    vhost_device device;
    vhost_queue queues[2]; /* those of the kernel */
    vsock_driver driver;
    uint16_t events; /* put into the event queue by us, the device of that queue */
    int listener;
    stream from_guest, from_host;
    uint64_t total; /* bytes */
} demo;

static bool fail_errno(demo *d, const char *what)
{
    return report_fail(&d->report, "%s: %s", what, strerror(errno));
}

static void on_message(vhost_level level, const vhost_error *what, const vhost_device *device,
                       void *user)
{
    demo *d = user;
    (void)device;
    if (level == VHOST_LEVEL_ERROR)
        snprintf(d->report.message, sizeof d->report.message, "%s", what->text);
}

static void on_queue_error(vhost_device *device, uint32_t queue, void *user)
{
    demo *d = user;
    (void)device;
    report_fail(&d->report, "the kernel found queue %u broken", (unsigned)queue);
}

/* ---- 1. a device ----------------------------------------------------------------------------- */

static bool map_memory(demo *d)
{
    vhost_section all;
    void *ram = NULL;
    if (posix_memalign(&ram, VHOST_PAGE, RAM_SIZE) != 0)
        return report_fail(&d->report, "no memory for a guest");
    d->ram = ram;
    memset(d->ram, 0, RAM_SIZE);
    vhost_backing_init(&d->backing, d->ram, RAM_SIZE, -1, 0);
    vhost_section_init(&all, 0, RAM_SIZE, &d->backing, 0);
    return REPORT_TRY(&d->report, vhost_memory_begin(&d->vm)) &&
           REPORT_TRY(&d->report, vhost_memory_add(&d->vm, &all)) &&
           REPORT_TRY(&d->report, vhost_memory_commit(&d->vm));
}

/* After this the CID is ours, on the whole machine. */
static bool attach(demo *d)
{
    vhost_device_options options = {.user = d, .on_queue_error = on_queue_error};
    vhost_features wanted = {{0, 0}};
    vhost_queue_init(&d->queues[0]);
    vhost_queue_init(&d->queues[1]);
    if (!REPORT_TRY(&d->report, vhost_kernel_vsock_open(&d->kernel, path, GUEST_CID, NULL)) ||
        !REPORT_TRY(&d->report, vhost_device_init(&d->device, &d->vm, vhost_kernel_ops(&d->kernel),
                                                  &d->kernel, d->queues, 2, &options)))
        return false;
    vhost_features_set(&wanted, VHOST_FEATURE_VERSION_1);
    return REPORT_TRY(&d->report, vhost_device_ack(&d->device, wanted));
}

static void detach(demo *d)
{
    vhost_device_cleanup(&d->device);
    vhost_kernel_close(&d->kernel);
}

static void show_features(const vhost_features *offered)
{
    const virtio_type *type = virtio_type_find("vsock");
    printf("   CID %d; the kernel offers", GUEST_CID);
    for (unsigned bit = 0; bit < 128; bit++) {
        const char *name = virtio_feature_name(type, bit);
        if (vhost_features_test(offered, bit))
            printf(" %s", name != NULL ? name : "(a newer one)");
    }
    printf("\n");
}

static void show_log(demo *d)
{
    vhost_why why = VHOST_WHY_NONE;
    if (vhost_log_blocker(&d->vm, NULL, &why) == NULL)
        printf("   it logs the pages that it writes\n");
    else
        printf("   its dirty log is of no use for a live migration: %s\n", vhost_why_text(why));
}

static bool open_device(demo *d)
{
    report_step(&d->report, "a device for the sockets of a guest");
    if (!map_memory(d) || !attach(d))
        return false;
    show_features(&d->device.facts.offered);
    show_log(d);
    return true;
}

/* ---- 2. start -------------------------------------------------------------------------------- */

/* The driver has written the addresses of its rings to the device's registers. */
static void fill_queues(demo *d)
{
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
}

static bool start(demo *d)
{
    static const vsock_layout where = {
        .ring = {64 * KIB, 128 * KIB, 192 * KIB},
        .buffers = {1 * MIB, 2 * MIB, 3 * MIB},
    };
    report_step(&d->report, "start: queues 0 and 1 are the kernel's, queue 2 (events) is ours");
    if (!REPORT_TRY(&d->report, vsock_driver_open(&d->driver, d->ram, &where, GUEST_CID)))
        return false;
    fill_queues(d);
    if (!REPORT_TRY(&d->report, vhost_device_start(&d->device)))
        return false;
    printf("   the guest gave %u buffers to receive into, of %d bytes\n",
           d->driver.ring[VSOCK_RECEIVE].added, VSOCK_BUFFER);
    return true;
}

/* ---- the event loop -------------------------------------------------------------------------- */

/* Once around. The guest looks at its rings only when it is called, so a lost interrupt would not
   go unnoticed. */
static bool turn(demo *d)
{
    enum {
        CALLS = VSOCK_QUEUES,
        HOST = CALLS + 3,
        ALL = 16
    };
    const stream *a = &d->from_guest, *b = &d->from_host;
    short full = POLLIN | POLLOUT; /* no more to write: no question whether it could be */
    struct pollfd polled[ALL] = {
        [CALLS] = {.fd = d->listener, .events = POLLIN},
        [CALLS + 1] = {.fd = a->host, .events = a->host_sent < LETTER ? full : POLLIN},
        [CALLS + 2] = {.fd = b->host, .events = b->host_sent < LETTER ? full : POLLIN},
    };
    int fds[ALL - HOST];
    uint32_t count = vhost_device_poll_fds(&d->device, fds, ALL - HOST);
    for (int i = 0; i < CALLS; i++)
        polled[i] = (struct pollfd){.fd = d->driver.call[i], .events = POLLIN};
    for (uint32_t i = 0; i < count && i < ALL - HOST; i++)
        polled[HOST + i] = (struct pollfd){.fd = fds[i], .events = POLLIN};
    vsock_driver_kick(&d->driver);
    (void)poll(polled, HOST + count, 20);
    vsock_driver_serve(&d->driver);
    if (d->driver.fault != NULL)
        return report_fail(&d->report, "%s", d->driver.fault);
    return REPORT_TRY(&d->report, vhost_device_process(&d->device));
}

/* Turns until something is so. */
#define AWAIT(d, condition) await(d, condition, #condition)

static bool await(demo *d, bool (*condition)(demo *), const char *what)
{
    double end = clock_now() + PATIENCE;
    while (!condition(d)) {
        if (!turn(d))
            return false;
        if (clock_now() > end)
            return report_fail(&d->report, "waited in vain: %s", what);
    }
    return d->report.failure[0] == '\0';
}

/* ---- 3. streams ------------------------------------------------------------------------------ */

static bool listen_on_host(demo *d)
{
    struct sockaddr_vm any = {
        .svm_family = AF_VSOCK, .svm_port = HOST_PORT, .svm_cid = VMADDR_CID_ANY};
    d->listener = socket(AF_VSOCK, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (d->listener < 0 || bind(d->listener, (struct sockaddr *)&any, sizeof any) != 0 ||
        listen(d->listener, 1) != 0)
        return fail_errno(d, "listening on the host");
    return true;
}

static bool both_have_it(demo *d)
{
    if (d->from_guest.host < 0)
        d->from_guest.host = accept4(d->listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (d->from_host.guest == NULL)
        d->from_host.guest = vsock_accept(&d->driver);
    struct pollfd connecting = {.fd = d->from_host.host, .events = POLLOUT};
    return d->from_guest.host >= 0 && d->from_guest.guest->state == VSOCK_OPEN &&
           d->from_host.guest != NULL && poll(&connecting, 1, 0) == 1;
}

static bool host_connects(demo *d)
{
    struct sockaddr_vm guest = {
        .svm_family = AF_VSOCK, .svm_port = GUEST_PORT, .svm_cid = GUEST_CID};
    int fd = socket(AF_VSOCK, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    d->from_host = (stream){.host = fd};
    return (fd >= 0 && connect(fd, (struct sockaddr *)&guest, sizeof guest) != 0 &&
            errno == EINPROGRESS) ||
           fail_errno(d, "connecting to the guest");
}

static bool connect_both(demo *d)
{
    d->driver.listens = GUEST_PORT;
    d->from_guest = (stream){.host = -1, .guest = vsock_connect(&d->driver, HOST_PORT)};
    if (d->from_guest.guest == NULL)
        return report_fail(&d->report, "the guest has no room for a stream");
    if (!host_connects(d) || !AWAIT(d, both_have_it))
        return false;
    printf("   the guest is connected to port %d of the host, the host to port %d of the guest\n",
           HOST_PORT, GUEST_PORT);
    return true;
}

/* Byte `place` of the letter that this side sends. */
static uint8_t letter(char side, uint32_t place)
{
    return (uint8_t)((place * UINT32_C(2654435761) >> 24) ^ (uint8_t)side);
}

static void write_letter(uint8_t *bytes, char side, uint32_t place, size_t size)
{
    for (size_t i = 0; i < size; i++)
        bytes[i] = letter(side, place + (uint32_t)i);
}

static void read_letter(demo *d, const uint8_t *bytes, char side, uint32_t place, size_t size)
{
    for (size_t i = 0; i < size; i++)
        if (bytes[i] != letter(side, place + (uint32_t)i))
            report_fail(&d->report, "byte %u came damaged", place + (unsigned)i);
    d->total += size;
}

static size_t left(uint32_t sent)
{
    return LETTER - sent < PIECE ? LETTER - sent : PIECE;
}

static void guest_works(demo *d, stream *it)
{
    uint8_t bytes[PIECE];
    size_t size;
    write_letter(bytes, 'g', it->guest_sent, left(it->guest_sent));
    it->guest_sent += (uint32_t)vsock_write(&d->driver, it->guest, bytes, left(it->guest_sent));
    while ((size = vsock_read(&d->driver, it->guest, bytes, sizeof bytes)) > 0) {
        read_letter(d, bytes, 'h', it->guest_got, size);
        it->guest_got += (uint32_t)size;
    }
}

static void host_works(demo *d, stream *it)
{
    uint8_t bytes[PIECE];
    ssize_t size;
    write_letter(bytes, 'h', it->host_sent, left(it->host_sent));
    size = send(it->host, bytes, left(it->host_sent), MSG_NOSIGNAL);
    it->host_sent += size > 0 ? (uint32_t)size : 0;
    while ((size = recv(it->host, bytes, sizeof bytes, 0)) > 0) {
        read_letter(d, bytes, 'g', it->host_got, (size_t)size);
        it->host_got += (uint32_t)size;
    }
}

static bool is_through(demo *d, stream *it)
{
    guest_works(d, it);
    host_works(d, it);
    return it->host_got == LETTER && it->guest_got == LETTER;
}

static bool all_letters_are_through(demo *d)
{
    bool one = is_through(d, &d->from_guest), other = is_through(d, &d->from_host);
    return one && other;
}

static bool exchange(demo *d)
{
    double begin = clock_now();
    uint64_t before = d->total;
    d->driver.packets[VSOCK_RECEIVE] = d->driver.packets[VSOCK_TRANSMIT] = 0;
    if (!AWAIT(d, all_letters_are_through))
        return false;
    printf("   %d bytes each way in each, every byte right: %.1f MB/s in %u packets out, %u in\n",
           LETTER, (double)(d->total - before) / (clock_now() - begin) * 1e-6,
           d->driver.packets[VSOCK_TRANSMIT], d->driver.packets[VSOCK_RECEIVE]);
    return true;
}

static bool host_is_at_the_end(demo *d)
{
    uint8_t byte;
    return recv(d->from_guest.host, &byte, 1, 0) == 0;
}

static bool guest_is_at_the_end(demo *d)
{
    return d->from_guest.guest->state == VSOCK_ENDED && d->from_host.guest->state == VSOCK_ENDED;
}

/* Each side closes what it has opened. */
static bool close_both(demo *d)
{
    if (!vsock_shutdown(&d->driver, d->from_guest.guest) || !AWAIT(d, host_is_at_the_end))
        return report_fail(&d->report, "the guest cannot close its stream");
    close(d->from_guest.host);
    close(d->from_host.host);
    d->from_guest.host = d->from_host.host = -1;
    if (!AWAIT(d, guest_is_at_the_end))
        return false;
    if (d->from_guest.guest->cut || d->from_host.guest->cut)
        return report_fail(&d->report, "a stream was cut");
    vsock_release(d->from_guest.guest);
    vsock_release(d->from_host.guest);
    printf("   both are closed, each by the side that opened it\n");
    return true;
}

static bool talk(demo *d)
{
    report_step(&d->report, "two streams");
    return listen_on_host(d) && connect_both(d) && exchange(d) && close_both(d);
}

/* ---- 4. stop, and start where it was --------------------------------------------------------- */

static bool positions_are_exact(demo *d)
{
    static const char *const names[2] = {"receive", "transmit"};
    for (int i = 0; i < 2; i++) {
        const vhost_position *position = &d->queues[i].position;
        uint16_t done = split_ring_done(&d->driver.ring[i]);
        printf("   queue %d (%s) is at position %u, and so is its used ring\n", i, names[i],
               position->avail);
        if (position->state != VHOST_POSITION_CERTAIN || position->avail != done)
            return report_fail(&d->report, "queue %d is at %u, its used ring at %u", i,
                               position->avail, done);
    }
    return true;
}

static bool stop_and_start(demo *d)
{
    report_step(&d->report, "stop with bytes on their way in two streams, and start");
    if (!connect_both(d))
        return false;
    (void)all_letters_are_through(d); /* a first piece of each is on its way */
    if (!turn(d) || !REPORT_TRY(&d->report, vhost_device_stop(&d->device)) ||
        !positions_are_exact(d) || !REPORT_TRY(&d->report, vhost_device_start(&d->device)))
        return false;
    printf("   started again: nobody has noticed\n");
    return exchange(d) && close_both(d);
}

/* ---- 5. as after a migration ----------------------------------------------------------------- */

/* The kernel's device is at a new place, and knows nothing of the streams of the old one. */
static bool move(demo *d)
{
    vhost_position positions[2];
    if (!REPORT_TRY(&d->report, vhost_device_stop(&d->device)) || !positions_are_exact(d))
        return false;
    for (int i = 0; i < 2; i++)
        positions[i] = d->queues[i].position;
    detach(d);
    if (!attach(d))
        return false;
    fill_queues(d);
    for (int i = 0; i < 2; i++)
        d->queues[i].position = positions[i];
    printf("   closed; another device has the CID and the positions now\n");
    return true;
}

/* What the device of a ring does. Of a hostile guest it would believe nothing: not the head, nor
   the address. */
static bool put_event(demo *d, const void *event, uint32_t size)
{
    static const uint64_t one = 1;
    split_ring *ring = &d->driver.ring[VSOCK_EVENT];
    uint16_t head = ring->available->entries[d->events % ring->size];
    const ring_descriptor *descriptor = &ring->descriptors[head];
    if (d->events == ring->available->index || descriptor->length < size)
        return report_fail(&d->report, "the guest has no buffer for an event");
    memcpy(d->ram + descriptor->address, event, size);
    ring->used->entries[d->events % ring->size] = (ring_used_entry){head, size};
    d->events++;
    __atomic_store_n(&ring->used->index, d->events, __ATOMIC_RELEASE);
    return write(d->driver.call[VSOCK_EVENT], &one, sizeof one) == sizeof one ||
           fail_errno(d, "calling the guest");
}

static bool guest_knows(demo *d)
{
    return d->driver.transport_resets == 1;
}

static bool host_is_cut(demo *d)
{
    uint8_t byte;
    return recv(d->from_guest.host, &byte, 1, 0) < 0 && errno == ECONNRESET;
}

static bool drop_both(demo *d)
{
    if (!AWAIT(d, host_is_cut))
        return false;
    printf("   the host's sockets: %s\n", strerror(ECONNRESET));
    if (!AWAIT(d, guest_knows))
        return false;
    if (!d->from_guest.guest->cut || !d->from_host.guest->cut)
        return report_fail(&d->report, "the guest keeps streams that are gone");
    printf("   the guest's: cut, by the event TRANSPORT_RESET that we put into its event queue\n");
    close(d->from_guest.host);
    close(d->from_host.host);
    vsock_release(d->from_guest.guest);
    vsock_release(d->from_host.guest);
    return true;
}

static bool migrate(demo *d)
{
    static const uint32_t transport_reset = 0;
    report_step(&d->report, "as after a migration");
    return connect_both(d) && move(d) && put_event(d, &transport_reset, sizeof transport_reset) &&
           REPORT_TRY(&d->report, vhost_device_start(&d->device)) && drop_both(d) &&
           connect_both(d) && exchange(d) && close_both(d);
}

/* ---- the whole of it ------------------------------------------------------------------------- */

static void clean_up(demo *d)
{
    detach(d);
    (void)vhost_vm_cleanup(&d->vm);
    vsock_driver_close(&d->driver);
    if (d->listener >= 0)
        close(d->listener);
    free(d->ram);
}

/* Whether there is such a device here. */
static bool can_run(const char *choice, int *status)
{
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd >= 0) {
        close(fd);
        return true;
    }
    *status = strcmp(choice, "kernel") == 0;
    printf("vhost_vsock: no %s here (%s); make demo-vm runs this in a virtual machine\n", path,
           strerror(errno));
    return false;
}

int main(int argc, char **argv)
{
    static demo d = {.report = {.program = "vhost_vsock"}, .listener = -1};
    vhost_vm_options options = {.user = &d, .on_message = on_message};
    struct utsname system;
    int status;
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (!can_run(argc > 1 ? argv[1] : "", &status))
        return status;
    bool good = REPORT_TRY(&d.report, vhost_vm_init(&d.vm, &options)) && open_device(&d) &&
                start(&d) && talk(&d) && stop_and_start(&d) && migrate(&d);
    clean_up(&d);
    (void)good; /* the first failure is kept in the report */
    return report_end(&d.report, "%llu bytes, each of them; Linux %s", (unsigned long long)d.total,
                      uname(&system) == 0 ? system.release : "of unknown version");
}
