/* vhost_vdpa.c - whatever vDPA devices there are, driven without a guest
   SPDX-License-Identifier: MIT OR Unlicense

   shows     What a vDPA device needs of vhost.h and vhost_kernel.h. This program is the hypervisor,
             and asks each device what it is: a disk, a network card, or another. To a disk and to a
             card it is the guest's driver too: it writes to the disk and reads it back, or sends
             frames to a card that gives back what it is sent, checks every byte, stops, and goes on
             from where it was. A disk gets back what was on it before.
   build     make build/examples/vhost_vdpa, or by hand:
             cc -O2 -I. examples/vhost_vdpa.c examples/common/?*.c
   run       make demo-vm: on real kernels, in virtual machines.
             vhost_vdpa: with all of /dev/vhost-vdpa-*, as root, one after another. A card that is
             connected to a network gives nothing back, and fails.
             vhost_vdpa /dev/vhost-vdpa-0: with this one.
             vhost_vdpa kernel: with devices that it makes, if there are none: a card and a disk
             that the kernel simulates, and a disk of qemu-storage-daemon, if that is installed.
   expected  Numbered steps for each device, each with what was found, and as the last line
             vhost_vdpa: ok (devices: 3, Linux 6.12.117)
             Exit status 0 only if all of it held; else the last line is vhost_vdpa: FAILED (what),
             and 1.

   What the VM of make demo-vm has:
   vm-modules: vhost_vdpa vduse vdpa_sim_net vdpa_sim_blk
   vm-programs: vdpa qemu-storage-daemon
   vm-kernels: 6.12 */
#define _GNU_SOURCE
#define VHOST_IMPLEMENTATION
#include "vhost_kernel.h"

#include "common/blk_work.h"
#include "common/clock.h"
#include "common/net_driver.h"
#include "common/report.h"
#include "common/vdpa_device.h"
#include "common/virtio_names.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/utsname.h>
#include <unistd.h>

#define KIB       UINT64_C(1024)
#define MIB       (1024 * KIB)
#define RAM_SIZE  (8 * MIB)
#define AREA_SIZE (512 * KIB) /* at the end of a disk: what we write, and put back */
#define PATIENCE  10.0        /* seconds until what does not come is lost */

enum {
    MOST_QUEUES = 4, /* that we drive */
    NET = 1,         /* kinds of device, as virtio numbers them */
    BLOCK = 2,
    FRAMES = 100 /* at a time */
};

typedef struct demo {
    /* The hypervisor's. */
    vhost_vm vm;
    vhost_backing ram;
    vhost_kernel kernel;
    vhost_device device;
    vhost_queue queues[MOST_QUEUES];
    uint32_t queue_count;
    /* The guest's: one of the two. */
    blk_driver disk;
    net_driver card;
    blk_work work;
    uint8_t *original; /* what was on the disk before */
    uint8_t *pattern;  /* what we write */
    station me;
    uint32_t sent, received; /* numbered frames */
    double progress;         /* when something came back last */

    report report;
} demo;

#define FAIL(...) report_fail(&d->report, __VA_ARGS__)
#define TRY(call) REPORT_TRY(&d->report, call)

static void on_message(vhost_level level, const vhost_error *what, const vhost_device *device,
                       void *user)
{
    demo *d = user;
    (void)device;
    if (level == VHOST_LEVEL_ERROR)
        snprintf(d->report.message, sizeof d->report.message, "%s", what->text);
    fprintf(stderr, "vhost.h, %s: %s\n", level == VHOST_LEVEL_ERROR ? "error" : "note", what->text);
}

static void on_broken(vhost_device *device, void *user)
{
    demo *d = user;
    FAIL("the device broke: %s", device->last_error.text);
}

static void on_config(vhost_device *device, void *user)
{
    (void)device;
    (void)user;
    printf("   the device says that its config space has changed\n");
}

static bool is_a(const demo *d, uint32_t kind)
{
    return d->kernel.vdpa.device_id == kind;
}

/* ---- what it is ------------------------------------------------------------------------------ */

static const char *kind_name(uint32_t id)
{
    static const char *const names[] = {
        [1] = "net",  [2] = "blk",    [3] = "console", [4] = "rng",     [8] = "scsi",
        [16] = "gpu", [18] = "input", [19] = "vsock",  [20] = "crypto", [26] = "fs",
    };
    return id < sizeof names / sizeof names[0] && names[id] != NULL ? names[id] : "unnamed";
}

static bool identify(demo *d, const char *path)
{
    const vhost_kernel_vdpa *vdpa = &d->kernel.vdpa;
    report_step(&d->report, "%s", path);
    int code = vhost_kernel_vdpa_open(&d->kernel, path, NULL);
    if (code < 0)
        return FAIL("%s: %s", d->kernel.last_error.text, strerror(-code));
    printf("   virtio device %u (%s)\n", (unsigned)vdpa->device_id, kind_name(vdpa->device_id));
    printf("   queues: %u of up to %u descriptors, in groups: %u, address spaces: %u\n",
           (unsigned)vdpa->queue_count, (unsigned)vdpa->ring_max, (unsigned)vdpa->group_count,
           (unsigned)vdpa->space_count);
    printf("   config space: %u bytes; it can address 0x%llx to 0x%llx\n",
           (unsigned)vdpa->config_size, (unsigned long long)vdpa->iova_first,
           (unsigned long long)vdpa->iova_last);
    return true;
}

static void show_features(const demo *d, const vhost_features *features)
{
    const virtio_type *type = virtio_type_find(kind_name(d->kernel.vdpa.device_id));
    printf("   features:");
    for (unsigned bit = 0; bit < 128; bit++) {
        const char *name = virtio_feature_name(type, bit);
        if (!vhost_features_test(features, bit))
            continue;
        if (name != NULL)
            printf(" %s", name);
        else
            printf(" %u", bit);
    }
    printf("\n");
}

/* A field of the config space, little-endian. 0: the device has none there. */
static uint64_t config_field(demo *d, uint32_t offset, uint32_t size)
{
    uint8_t bytes[8] = {0};
    uint64_t value = 0;
    if (offset + size <= d->kernel.vdpa.config_size &&
        TRY(vhost_device_get_config(&d->device, offset, bytes, size)))
        for (uint32_t i = size; i > 0; i--)
            value = value << 8 | bytes[i - 1];
    return value;
}

/* ---- the hypervisor -------------------------------------------------------------------------- */

/* A device of user space can see only memory that has an fd, and is shared. */
static bool map_memory(demo *d)
{
    int fd = memfd_create("guest", MFD_CLOEXEC);
    void *host = MAP_FAILED;
    if (fd >= 0 && ftruncate(fd, (off_t)RAM_SIZE) == 0)
        host = mmap(NULL, RAM_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (host == MAP_FAILED)
        return FAIL("no memory for a guest: %s", strerror(errno));
    vhost_backing_init(&d->ram, host, RAM_SIZE, fd, 0);
    vhost_section section;
    vhost_section_init(&section, 0, RAM_SIZE, &d->ram, 0);
    return TRY(vhost_memory_begin(&d->vm)) && TRY(vhost_memory_add(&d->vm, &section)) &&
           TRY(vhost_memory_commit(&d->vm));
}

/* Of a card, the first pair of queues; of a disk, those that we can drive; of others, one. */
static uint32_t queues_to_drive(const demo *d)
{
    uint32_t most = is_a(d, NET) ? 2 : is_a(d, BLOCK) ? MOST_QUEUES : 1;
    uint32_t has = d->kernel.vdpa.queue_count;
    return has > 0 && has < most ? has : most;
}

static bool attach(demo *d)
{
    vhost_device_options options = {.user = d, .on_broken = on_broken, .on_config = on_config};
    vhost_features mine = {{0, 0}};
    d->queue_count = queues_to_drive(d);
    for (uint32_t i = 0; i < d->queue_count; i++)
        vhost_queue_init(&d->queues[i]);
    if (!TRY(vhost_device_init(&d->device, &d->vm, vhost_kernel_ops(&d->kernel), &d->kernel,
                               d->queues, d->queue_count, &options)))
        return false;
    show_features(d, &d->device.facts.offered);
    vhost_features_set(&mine, VHOST_FEATURE_VERSION_1);
    return TRY(vhost_device_ack(&d->device, vhost_device_offer(&d->device, mine)));
}

static split_ring *ring_of(demo *d, uint32_t queue)
{
    return is_a(d, NET) ? &d->card.ring[queue] : &d->disk.queues[queue].ring;
}

static int call_of(const demo *d, uint32_t queue)
{
    return is_a(d, NET) ? d->card.call[queue] : d->disk.queues[queue].call;
}

/* The driver has written the addresses of its rings to the device's registers. */
static void fill_queues(demo *d)
{
    for (uint32_t i = 0; i < d->queue_count; i++) {
        const split_ring *ring = ring_of(d, i);
        vhost_queue *queue = &d->queues[i];
        queue->ready = true;
        queue->size = ring->size;
        queue->desc = ring->descriptors_gpa;
        queue->avail = ring->available_gpa;
        queue->used = ring->used_gpa;
        queue->kick_fd = is_a(d, NET) ? d->card.kick[i] : d->disk.queues[i].kick;
        queue->call_fd = call_of(d, i);
    }
}

static bool start(demo *d)
{
    double begin = clock_now();
    fill_queues(d);
    if (!TRY(vhost_device_start(&d->device)))
        return false;
    report_step(&d->report, "start: the queues run after %.2f ms", (clock_now() - begin) * 1e3);
    return true;
}

static void disk_interrupt(demo *d, int queue)
{
    if (blk_driver_called(&d->disk, queue))
        blk_work_take(&d->work, queue);
    if (d->disk.fault != NULL)
        FAIL("queue %d: %s", queue, d->disk.fault);
}

static void make_frame(const demo *d, uint32_t number, size_t size, frame *made)
{
    frame_numbered(made, &d->me, &d->me, number, size);
}

static void take_frame(demo *d, const frame *got)
{
    frame expected;
    make_frame(d, d->received, got->size, &expected);
    if (!frame_equal(got, &expected))
        FAIL("frame %u came back damaged, or not at all", (unsigned)d->received);
    d->received++;
}

static void card_interrupt(demo *d, int queue)
{
    frame got;
    if (!net_driver_called(&d->card, queue))
        return;
    if (queue == NET_TRANSMIT)
        net_driver_reclaim(&d->card);
    while (queue == NET_RECEIVE && net_driver_receive(&d->card, &got))
        take_frame(d, &got);
    if (d->card.fault != NULL)
        FAIL("%s", d->card.fault);
}

/* The event loop of this hypervisor, once around. */
static bool turn(demo *d)
{
    enum {
        ROOM = MOST_QUEUES + 4,
        LONGEST = 100 /* milliseconds */
    };
    struct pollfd polled[MOST_QUEUES + ROOM];
    int fds[ROOM];
    uint32_t calls = d->queue_count, count = vhost_device_poll_fds(&d->device, fds, ROOM);
    if (count > ROOM)
        return FAIL("%u fds to poll", (unsigned)count);
    for (uint32_t i = 0; i < calls; i++)
        polled[i] = (struct pollfd){.fd = call_of(d, i), .events = POLLIN};
    for (uint32_t i = 0; i < count; i++)
        polled[calls + i] = (struct pollfd){.fd = fds[i], .events = POLLIN};
    net_driver_kick(&d->card);
    blk_driver_kick(&d->disk);
    if (poll(polled, calls + count, LONGEST) > 0) {
        TRY(vhost_device_process(&d->device));
        d->progress = clock_now();
    }
    for (uint32_t i = 0; i < calls; i++)
        if (polled[i].revents != 0 && is_a(d, NET))
            card_interrupt(d, (int)i);
        else if (polled[i].revents != 0)
            disk_interrupt(d, (int)i);
    if (clock_now() > d->progress + PATIENCE)
        FAIL("nothing has happened for %.0f seconds", PATIENCE);
    return d->report.failure[0] == '\0';
}

/* ---- a disk ---------------------------------------------------------------------------------- */

/* All of the area, through all queues. */
static bool disk_runs(demo *d, blk_task task, uint8_t *image, int shift)
{
    blk_job job = {task, image, 16 * KIB, d->disk.count, shift, BLK_DEPTH, 0};
    blk_work_begin(&d->work, &job);
    d->progress = clock_now();
    while (blk_work_feed(&d->work))
        if (!turn(d))
            return false;
    return true;
}

static uint32_t checksum(const uint8_t *bytes, uint64_t size)
{
    uint32_t a = 1, b = 0; /* Adler-32 */
    for (uint64_t i = 0; i < size; i++) {
        a = (a + bytes[i]) % 65521;
        b = (b + a) % 65521;
    }
    return b << 16 | a;
}

static bool open_disk(demo *d)
{
    enum {
        CAPACITY = 0,
        READ_ONLY = 5 /* a feature that no driver can decline */
    };
    uint64_t size = config_field(d, CAPACITY, 8) * BLK_SECTOR;
    printf("   disk: %llu KiB\n", (unsigned long long)(size / KIB));
    if (vhost_features_test(&d->device.facts.offered, READ_ONLY))
        return FAIL("the disk is read-only");
    if (size < AREA_SIZE)
        return FAIL("the disk is too small");
    d->original = malloc(AREA_SIZE);
    d->pattern = malloc(AREA_SIZE);
    d->work = (blk_work){.driver = &d->disk, .place = size - AREA_SIZE, .size = AREA_SIZE};
    if (d->original == NULL || d->pattern == NULL)
        return FAIL("no memory");
    return TRY(blk_driver_open(&d->disk, d->ram.host, 0, (int)d->queue_count));
}

static bool disk_moves_data(demo *d)
{
    blk_work_pattern(d->pattern, AREA_SIZE);
    if (!disk_runs(d, BLK_PUT, d->pattern, 0) || !disk_runs(d, BLK_COMPARE, d->pattern, 1))
        return false;
    printf("   %llu KiB written and read back, checksum %08x\n",
           (unsigned long long)(AREA_SIZE / KIB), (unsigned)checksum(d->pattern, AREA_SIZE));
    return true;
}

static bool disk_is_restored(demo *d)
{
    if (!disk_runs(d, BLK_PUT, d->original, 0) || !disk_runs(d, BLK_COMPARE, d->original, 1))
        return false;
    printf("   the disk is as it was before\n");
    return true;
}

/* ---- a card that gives back what it is sent -------------------------------------------------- */

static bool open_card(demo *d)
{
    enum {
        MAC = 0,
        MTU = 10
    };
    static const net_layout where = {
        .ring = {64 * KIB, 128 * KIB},
        .header = 4 * KIB,
        .buffers = {1 * MIB, 2 * MIB},
    };
    uint64_t mac = config_field(d, MAC, 6);
    for (int i = 0; i < 6; i++)
        d->me.mac[i] = (uint8_t)(mac >> 8 * i);
    printf("   MAC %02x:%02x:%02x:%02x:%02x:%02x, MTU %u\n", d->me.mac[0], d->me.mac[1],
           d->me.mac[2], d->me.mac[3], d->me.mac[4], d->me.mac[5],
           (unsigned)config_field(d, MTU, 2));
    return TRY(net_driver_open(&d->card, d->ram.host, &where));
}

/* Frames of all sizes, to ourselves. */
static bool card_moves_data(demo *d)
{
    uint32_t first = d->sent;
    frame next;
    for (int i = 0; i < FRAMES; i++, d->sent++) {
        make_frame(d, d->sent, 60 + d->sent * 97 % (FRAME_MAX - 59), &next);
        if (!net_driver_send(&d->card, &next))
            return FAIL("no room for frame %u", (unsigned)d->sent);
    }
    d->progress = clock_now();
    while (d->received != d->sent || split_ring_done(ring_of(d, NET_TRANSMIT)) != d->sent)
        if (!turn(d))
            return false;
    net_driver_reclaim(&d->card);
    printf("   frames %u to %u came back, every byte is right\n", (unsigned)first + 1,
           (unsigned)d->sent);
    return true;
}

/* ---- data, and a stop ------------------------------------------------------------------------ */

static bool move_data(demo *d)
{
    return is_a(d, NET) ? card_moves_data(d) : disk_moves_data(d);
}

static bool stop(demo *d)
{
    if (!TRY(vhost_device_stop(&d->device)))
        return false;
    report_step(&d->report, "stop");
    for (uint32_t i = 0; i < d->queue_count; i++) {
        vhost_position *position = &d->queues[i].position;
        bool certain = position->state == VHOST_POSITION_CERTAIN;
        printf("   queue %u is at position %u%s\n", (unsigned)i, position->avail,
               certain ? "" : ", as far as its used ring tells");
        if (position->avail != split_ring_done(ring_of(d, i)))
            return FAIL("queue %u is not where its driver is", (unsigned)i);
        position->state = VHOST_POSITION_CERTAIN; /* we know: nothing was on its way */
    }
    return true;
}

static bool start_again(demo *d)
{
    return start(d) && move_data(d);
}

static bool drive(demo *d)
{
    bool good = is_a(d, NET) ? open_card(d) : open_disk(d);
    good = good && start(d) && (is_a(d, NET) || disk_runs(d, BLK_SAVE, d->original, 0));
    good = good && move_data(d) && stop(d) && start_again(d) && stop(d) && start_again(d);
    good = good && (is_a(d, NET) || disk_is_restored(d));
    return good && stop(d);
}

/* ---- one device after another ---------------------------------------------------------------- */

/* Harmless for whatever was not set up. */
static void let_go(demo *d)
{
    vhost_device_cleanup(&d->device);
    vhost_kernel_close(&d->kernel);
    (void)vhost_vm_cleanup(&d->vm);
    blk_driver_close(&d->disk);
    net_driver_close(&d->card);
    if (d->ram.size != 0) {
        munmap(d->ram.host, RAM_SIZE);
        close(d->ram.fd);
    }
    free(d->original);
    free(d->pattern);
}

/* Everything anew, but the report. */
static bool demonstrate(demo *d, const char *path)
{
    const report so_far = d->report;
    memset(d, 0, sizeof *d);
    d->report = so_far;
    vhost_vm_options vm = {.user = d, .on_message = on_message};
    bool good = identify(d, path) && TRY(vhost_vm_init(&d->vm, &vm)) && map_memory(d) && attach(d);
    if (good && !is_a(d, NET) && !is_a(d, BLOCK))
        printf("   this program has no driver for it\n");
    else
        good = good && drive(d);
    let_go(d);
    return good;
}

/* Returns how many there were, up to the first that fails. */
static unsigned demonstrate_all(demo *d)
{
    char path[VDPA_DEVICE_PATH];
    unsigned count = 0;
    while (vdpa_device_nth(count, path) == 0 && demonstrate(d, path))
        count++;
    return count;
}

/* ---- devices of our own ---------------------------------------------------------------------- */

typedef struct stock {
    bool net, blk;
    vdpa_disk disk;
} stock;

static bool make_devices(demo *d, stock *made)
{
    char path[VDPA_DEVICE_PATH];
    const char *mac = "mac 02:00:00:00:00:09 mtu 1500";
    made->net = vdpa_device_add("demo_net", "vdpasim_net", mac, path) == 0;
    made->blk = vdpa_device_add("demo_blk", "vdpasim_blk", "", path) == 0;
    bool served = vdpa_disk_open(&made->disk, "demo_vduse", 16 * MIB, MOST_QUEUES) == 0;
    return made->net || made->blk || served || FAIL("no vDPA device could be made");
}

static void remove_devices(stock *made)
{
    if (made->net)
        (void)vdpa_device_remove("demo_net");
    if (made->blk)
        (void)vdpa_device_remove("demo_blk");
    vdpa_disk_close(&made->disk);
}

/* ---- the whole of it ------------------------------------------------------------------------- */

/* choice: a path; "kernel": make devices if there are none; or empty. Returns false if there is
   nothing to be done. */
static bool run_all(demo *d, const char *choice, unsigned *count)
{
    char path[VDPA_DEVICE_PATH];
    stock made = {0};
    bool any = vdpa_device_nth(0, path) == 0, make = strcmp(choice, "kernel") == 0;
    if (choice[0] != '\0' && !make)
        *count = demonstrate(d, choice);
    else if (any || (make && make_devices(d, &made)))
        *count = demonstrate_all(d);
    remove_devices(&made);
    return any || choice[0] != '\0';
}

int main(int argc, char **argv)
{
    static demo the_demo; /* fixed address: vhost.h never moves its objects, nor may we */
    demo *d = &the_demo;
    struct utsname system;
    unsigned count = 0;
    d->report.program = "vhost_vdpa";
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (!run_all(d, argc > 1 ? argv[1] : "", &count)) {
        printf("vhost_vdpa: no /dev/vhost-vdpa-* here; make demo-vm runs this in a virtual "
               "machine\n");
        return 0;
    }
    return report_end(&d->report, "devices: %u, Linux %s", count,
                      uname(&system) == 0 ? system.release : "of unknown version");
}
