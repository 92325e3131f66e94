/* vhost_user_blk.c - a disk in another process, without a guest
   SPDX-License-Identifier: MIT OR Unlicense

   shows     All of vhost_user.h that a disk needs: guest memory that is shared, several queues, the
             config space, the event loop, and a back-end that dies and comes back while requests
             wait. This program is the hypervisor, and plays the guest's driver, too.
   build     make build/examples/vhost_user_blk, or by hand:
             cc -O2 -I. examples/vhost_user_blk.c examples/common/?*.c
   run       vhost_user_blk SOCKET
             on any vhost-user-blk back-end. It WRITES to the last 4 MiB of that disk. Their content
             is read first, and written back at the end; but if it cannot get so far, it is lost.
             vhost_user_blk [--serve]
             on a new, empty disk of a qemu-storage-daemon, which it starts and kills.
             Both take --queues N, if it shall not be as many as there are (16 at most), or 4.
   expected  Seven numbered steps (six with SOCKET: that back-end is not killed), and the last line
             vhost_user_blk: ok (queues: 4, requests: 98765)
             Exit status 0 only if all of it held; 77 where there is no qemu-storage-daemon, else 1
             and vhost_user_blk: FAILED (what). */
#define _GNU_SOURCE
#define VHOST_IMPLEMENTATION
#include "vhost_user.h"

#include "common/blk_work.h"
#include "common/clock.h"
#include "common/report.h"
#include "common/storage_daemon.h"

#include <endian.h>
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define KIB       UINT64_C(1024)
#define MIB       (1024 * KIB)
#define RAM_SIZE  (32 * MIB)
#define AREA_SIZE (4 * MIB) /* of the disk: what we work on */
#define PATIENCE  10.0      /* seconds until a request that does not come back is lost */

typedef struct demo {
    /* The hypervisor's. */
    vhost_vm vm;
    vhost_backing ram;
    vhost_device device;
    vhost_queue queues[BLK_QUEUES];
    vhost_user disk;
    uint64_t most_queues;  /* not more of them, even if the back-end has */
    storage_daemon daemon; /* if it is ours */
    /* The guest's. */
    blk_driver driver;
    blk_work work;
    uint8_t *original; /* what was on the disk before */
    uint8_t *pattern;  /* what we write */
    double progress;   /* when a request came back last */

    int breaks;  /* of the back-end, */
    int returns; /* and how often it came back */
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
    fprintf(stderr, "   vhost.h: %s\n", what->text);
}

/* Without a record of requests in flight, positions are guesses after a break. But we know better:
   where nothing was in flight, all that was available is used, and the guess is right. */
static void on_broken(vhost_device *device, void *user)
{
    demo *d = user;
    d->breaks++;
    for (uint32_t i = 0; i < device->queue_count; i++)
        if (d->driver.queues[i].in_flight == 0)
            device->queues[i].position.state = VHOST_POSITION_CERTAIN;
}

/* ---- 1. connect ------------------------------------------------------------------------------ */

/* Guest memory has an fd, for the back-end to map. */
static bool map_memory(demo *d)
{
    int fd = memfd_create("guest", MFD_CLOEXEC);
    void *host = MAP_FAILED;
    if (fd >= 0 && ftruncate(fd, (off_t)RAM_SIZE) == 0)
        host = mmap(NULL, RAM_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    vhost_backing_init(&d->ram, host, RAM_SIZE, fd, 0);
    if (host == MAP_FAILED)
        return FAIL("no memory for a guest: %s", strerror(errno));
    vhost_section section;
    vhost_section_init(&section, 0, RAM_SIZE, &d->ram, 0);
    return TRY(vhost_memory_begin(&d->vm)) && TRY(vhost_memory_add(&d->vm, &section)) &&
           TRY(vhost_memory_commit(&d->vm));
}

static bool attach(demo *d, const char *path, int queues)
{
    vhost_user_options user = {.timeout_ms = 5000, /* for an answer */
                               .retry_ms = 10,     /* then 20, 40, 80 ... */
                               .retry_max_ms = 1000,
                               .retry_for_ms = 5000};
    vhost_device_options device = {.user = d, .on_broken = on_broken};
    for (int i = 0; i < queues; i++)
        vhost_queue_init(&d->queues[i]);
    int code = vhost_user_connect(&d->disk, path, &user);
    if (code == 0)
        code = vhost_device_init(&d->device, &d->vm, vhost_user_ops(), &d->disk, d->queues,
                                 (uint32_t)queues, &device);
    return report_code(&d->report, code, "connect");
}

static void detach(demo *d)
{
    vhost_device_cleanup(&d->device);
    vhost_user_close(&d->disk);
}

/* How many queues there are is for the back-end to say: it is asked with one, then with all. */
static bool attach_all(demo *d, const char *path)
{
    if (!attach(d, path, 1))
        return false;
    uint64_t queues = d->disk.queue_number; /* 0: it did not say */
    if (queues > d->most_queues)
        queues = d->most_queues;
    if (queues <= 1)
        return true;
    detach(d);
    return attach(d, path, (int)queues);
}

static bool connect_disk(demo *d, const char *path)
{
    uint64_t capacity;
    report_step(&d->report, "connect to %s", path);
    if (!attach_all(d, path) ||
        !TRY(vhost_device_get_config(&d->device, 0, &capacity, sizeof capacity)))
        return false;
    capacity = le64toh(capacity) * BLK_SECTOR;
    printf("   disk: %llu KiB, queues: %u, memory slots: %llu\n   in use:",
           (unsigned long long)(capacity / KIB), (unsigned)d->device.queue_count,
           (unsigned long long)d->disk.slots);
    for (unsigned bit = 0; bit < VHOST_USER_BIT_COUNT; bit++)
        if ((d->disk.protocol >> bit & 1) != 0)
            printf(" %s", vhost_user_protocol_name(bit));
    printf("\n");
    if (capacity < AREA_SIZE)
        return FAIL("the disk is too small");
    d->work = (blk_work){.driver = &d->driver,
                         .place = (capacity - AREA_SIZE) / BLK_BUFFER * BLK_BUFFER,
                         .size = AREA_SIZE};
    return true;
}

/* ---- 2. start -------------------------------------------------------------------------------- */

static bool agree_on_features(demo *d)
{
    enum {
        READ_ONLY = 5 /* a feature that no driver can decline */
    };
    vhost_features mine = {{0, 0}};
    if (vhost_features_test(&d->device.facts.offered, READ_ONLY))
        return FAIL("the disk is read-only");
    vhost_features_set(&mine, VHOST_FEATURE_VERSION_1);
    return TRY(vhost_device_ack(&d->device, vhost_device_offer(&d->device, mine)));
}

static bool start(demo *d)
{
    if (!agree_on_features(d) ||
        !TRY(blk_driver_open(&d->driver, d->ram.host, 0, (int)d->device.queue_count)))
        return false;
    for (int i = 0; i < d->driver.count; i++) {
        const blk_queue *from = &d->driver.queues[i];
        vhost_queue *queue = &d->queues[i];
        queue->ready = true;
        queue->size = from->ring.size;
        queue->desc = from->ring.descriptors_gpa;
        queue->avail = from->ring.available_gpa;
        queue->used = from->ring.used_gpa;
        queue->kick_fd = from->kick;
        queue->call_fd = from->call;
    }
    double begin = clock_now();
    if (!TRY(vhost_device_start(&d->device)))
        return false;
    report_step(&d->report, "start: the queues run after %.2f ms", (clock_now() - begin) * 1e3);
    return true;
}

/* ---- requests come and go -------------------------------------------------------------------- */

static void interrupt(demo *d, int queue)
{
    if (blk_driver_called(&d->driver, queue))
        blk_work_take(&d->work, queue);
    if (d->driver.fault != NULL)
        FAIL("queue %d: %s", queue, d->driver.fault);
    d->progress = clock_now();
}

/* Returns 1 if the back-end came back. That it broke is no failure while it is tried again. */
static int process(demo *d)
{
    int code = vhost_user_process(&d->disk);
    if (code < 0 && vhost_user_timeout(&d->disk) < 0)
        FAIL("%s; given up (%s)", d->device.last_error.text, strerror(-code));
    return code;
}

/* The event loop of this hypervisor, once around. */
static bool turn(demo *d)
{
    enum {
        DEVICE = BLK_QUEUES, /* after the queues of the guest */
        ROOM = 32,
        LONGEST = 100 /* milliseconds */
    };
    struct pollfd polled[DEVICE + ROOM];
    int fds[ROOM], timeout = vhost_user_timeout(&d->disk);
    uint32_t count = vhost_user_poll_fds(&d->disk, fds, ROOM);
    if (count > ROOM)
        return FAIL("%u fds to poll", (unsigned)count);
    for (int i = 0; i < DEVICE; i++)
        polled[i].fd = i < d->driver.count ? d->driver.queues[i].call : -1; /* -1: passed over */
    for (uint32_t i = 0; i < count; i++)
        polled[DEVICE + i].fd = fds[i];
    for (uint32_t i = 0; i < DEVICE + count; i++)
        polled[i].events = POLLIN;

    blk_driver_kick(&d->driver);
    timeout = timeout >= 0 && timeout < LONGEST ? timeout : LONGEST;
    bool due = poll(polled, DEVICE + count, timeout) == 0;
    for (uint32_t i = 0; i < count; i++)
        due = due || polled[DEVICE + i].revents != 0;
    if (due && process(d) == 1)
        d->returns++;
    for (int i = 0; i < d->driver.count; i++)
        if (polled[i].revents != 0)
            interrupt(d, i);
    if (clock_now() > d->progress + PATIENCE)
        FAIL("nothing has happened for %.0f seconds", PATIENCE);
    return d->report.failure[0] == '\0';
}

static bool run(demo *d, const blk_job *job)
{
    blk_work_begin(&d->work, job);
    d->progress = clock_now();
    while (blk_work_feed(&d->work))
        if (!turn(d))
            return false;
    return true;
}

/* All of the area, through all queues. */
static bool run_all(demo *d, blk_task task, uint8_t *image, int shift)
{
    blk_job job = {task, image, BLK_BUFFER, d->driver.count, shift, BLK_DEPTH, 0};
    return run(d, &job);
}

/* ---- 3. and 4. a pattern --------------------------------------------------------------------- */

static bool save(demo *d)
{
    d->original = malloc(AREA_SIZE);
    d->pattern = malloc(AREA_SIZE);
    if (d->original == NULL || d->pattern == NULL)
        return FAIL("no memory");
    blk_work_pattern(d->pattern, AREA_SIZE);
    report_step(&d->report, "save what is there: %llu KiB from byte %llu on",
                (unsigned long long)(AREA_SIZE / KIB), (unsigned long long)d->work.place);
    return run_all(d, BLK_SAVE, d->original, 0);
}

static bool write_and_read(demo *d)
{
    report_step(&d->report, "write a pattern, and read it back");
    if (!run_all(d, BLK_PUT, d->pattern, 0) || !run_all(d, BLK_COMPARE, d->pattern, 1))
        return false;
    printf("   every byte is right");
    if (d->driver.count > 1)
        printf("; each block was read through another queue than it was written");
    if (d->daemon.pid != 0) {
        if (!storage_daemon_has(&d->daemon, d->work.place, d->pattern, AREA_SIZE))
            return FAIL("the file does not have what was written");
        printf("\n   the file has the same");
    }
    printf("\n");
    return true;
}

/* ---- 5. speed -------------------------------------------------------------------------------- */

/* Requests per second. */
static double measure(demo *d, blk_task task, uint32_t block, int queues, int depth)
{
    double begin = clock_now();
    uint64_t before = d->work.done;
    blk_job job = {task, d->pattern, block, queues, 0, depth, begin + 0.25};
    (void)run(d, &job);
    return (double)(d->work.done - before) / (clock_now() - begin);
}

static bool measure_all(demo *d)
{
    static const uint32_t blocks[] = {4096, 4096, 65536, 65536};
    static const blk_task tasks[] = {BLK_PUT, BLK_COMPARE, BLK_PUT, BLK_COMPARE};
    report_step(&d->report, "speed; every byte that is read is compared");
    printf("                   one at a time           in each queue %d at a time\n", BLK_DEPTH);
    for (int i = 0; i < 4 && d->report.failure[0] == '\0'; i++) {
        double alone = measure(d, tasks[i], blocks[i], 1, 1);
        double all = measure(d, tasks[i], blocks[i], d->driver.count, BLK_DEPTH);
        printf("   %-5s %2u KiB    %8.1f microseconds   %8.0f MiB/s   %8.0f requests/s\n",
               tasks[i] == BLK_PUT ? "write" : "read", (unsigned)(blocks[i] / KIB), 1e6 / alone,
               all * blocks[i] / (double)MIB, all);
    }
    return d->report.failure[0] == '\0';
}

/* ---- 6. the back-end dies -------------------------------------------------------------------- */

static bool survive(demo *d)
{
    blk_job job = {BLK_COMPARE, d->pattern, BLK_BUFFER, d->driver.count, 0, 1, 0};
    report_step(&d->report, "the back-end is killed, and started again");
    storage_daemon_kill(&d->daemon);
    d->progress = clock_now();
    while (d->breaks == 0)
        if (!turn(d))
            return false;
    printf("   broken: %s\n", d->device.last_error.text);

    blk_work_begin(&d->work, &job);
    (void)blk_work_feed(&d->work); /* a request in each queue, and nobody there to take it */
    if (!turn(d) || !TRY(storage_daemon_start(&d->daemon)))
        return false;
    double begin = clock_now();
    while (d->returns == 0)
        if (!turn(d))
            return false;
    printf("   %.1f ms after it listens again, the queues run, from where they were\n",
           (clock_now() - begin) * 1e3);
    if (!run(d, &job))
        return false;
    d->report.message[0] = '\0';
    printf("   the requests that waited are done, and every byte is still right\n");
    return true;
}

/* ---- 7. restore, and stop -------------------------------------------------------------------- */

static bool restore(demo *d)
{
    report_step(&d->report, "write back what was there, and stop");
    if (!run_all(d, BLK_PUT, d->original, 0) || !run_all(d, BLK_COMPARE, d->original, 1) ||
        !TRY(vhost_device_stop(&d->device)))
        return false;
    for (int i = 0; i < d->driver.count; i++)
        if (d->queues[i].position.state != VHOST_POSITION_CERTAIN ||
            d->queues[i].position.avail != d->driver.queues[i].ring.added)
            return FAIL("queue %d did not stop where the driver is", i);
    printf("   the disk is as it was; each queue stopped where its driver is\n");
    return true;
}

/* ---- the whole of it ------------------------------------------------------------------------- */

static void demonstrate(demo *d, const char *path)
{
    vhost_vm_options vm = {.user = d, .on_message = on_message};
    bool good = TRY(vhost_vm_init(&d->vm, &vm)) && map_memory(d) && connect_disk(d, path) &&
                start(d) && save(d) && write_and_read(d) && measure_all(d) &&
                (d->daemon.pid == 0 || survive(d)) && restore(d);
    (void)good; /* the first failure is kept in d->failure */
}

/* On a back-end of our own. Returns false where there is none to be had. */
static bool serve(demo *d, int queues)
{
    int code = storage_daemon_open(&d->daemon, 64 * MIB, queues);
    if (code == -ENOENT)
        return false;
    if (code == 0)
        demonstrate(d, d->daemon.socket);
    else
        FAIL("qemu-storage-daemon did not start: %s", strerror(-code));
    return true;
}

/* Harmless for whatever was not set up. */
static void tear_down(demo *d)
{
    detach(d);
    (void)vhost_vm_cleanup(&d->vm);
    storage_daemon_close(&d->daemon);
    blk_driver_close(&d->driver);
    if (d->ram.size != 0) {
        munmap(d->ram.host, RAM_SIZE);
        close(d->ram.fd);
    }
    free(d->original);
    free(d->pattern);
}

int main(int argc, char **argv)
{
    static demo the_demo; /* fixed address: vhost.h never moves its objects, nor may we */
    demo *d = &the_demo;
    const char *path = NULL;
    int queues = 0; /* not said */
    d->report.program = "vhost_user_blk";
    setvbuf(stdout, NULL, _IOLBF, 0);
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--queues") == 0 && i + 1 < argc)
            queues = atoi(argv[++i]);
        else if (argv[i][0] != '-')
            path = argv[i];
        else if (strcmp(argv[i], "--serve") != 0) {
            printf("usage: vhost_user_blk SOCKET | [--serve]   [--queues N]\n");
            return 2;
        }
    }
    d->most_queues = queues > 0 && queues < BLK_QUEUES ? (uint64_t)queues : BLK_QUEUES;
    if (path != NULL)
        demonstrate(d, path);
    else if (!serve(d, queues > 0 ? queues : 4))
        return report_skip(&d->report, storage_daemon_remedy);
    tear_down(d);
    return report_end(&d->report, "queues: %d, requests: %llu", d->driver.count,
                      (unsigned long long)d->work.done);
}
