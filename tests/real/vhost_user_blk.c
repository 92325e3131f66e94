/* A real disk in another process: QEMU's storage daemon, compared with the file that it serves.

   backends: blk */
#define _GNU_SOURCE
#include "blk_work.h"
#include "clock.h"
#include "user_machine.h"
#include "wire_count.h"

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define DISK  (4u << 20) /* bytes */
#define BLOCK (16u << 10)

enum { /* features, and places in config space */
    READ_ONLY = 5,
    WRITEBACK_CONFIG = 11,
    CAPACITY_AT = 0,
    WRITEBACK_AT = 32,
    QUEUES_AT = 34
};

enum {
    LOWER = BLK_QUEUE_BYTES / 2 + 4096, /* bytes: the ring of a queue, and half of its buffers */
    LOWER_DEPTH = BLK_DEPTH / 2,        /* requests that need no more than these */
    ROUNDS = 100                        /* of what must not grow */
};

/* ---- a disk, its driver, and the file ---- */

static blk_driver driver;
static blk_work work;
static bool written[USER_RAM / VHOST_PAGE]; /* what the device may write, page by page */
static uint8_t *image, *file;               /* what shall be on the disk; the file */

static bool make_file(const user_machine *m)
{
    char path[64];
    snprintf(path, sizeof path, "%s/disk.raw", m->peer.folder);
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0 || ftruncate(fd, DISK) != 0) {
        return false;
    }
    file = mmap(NULL, DISK, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    return file != MAP_FAILED;
}

static bool serve(user_machine *m, unsigned queues)
{
    char options[32];
    snprintf(options, sizeof options, "queues=%u", queues);
    return real_backend_start(&m->peer, "blk", options);
}

/* The first half of each queue's memory, and the second half: memory that comes and goes. */
static int plug_lower(user_machine *m, unsigned queue)
{
    return user_machine_plug(m, 2 * queue, (uint64_t)queue * BLK_QUEUE_BYTES, LOWER);
}

static int plug_upper(user_machine *m, unsigned queue)
{
    return user_machine_plug(m, 2 * queue + 1, (uint64_t)queue * BLK_QUEUE_BYTES + LOWER,
                             BLK_QUEUE_BYTES - LOWER);
}

static void fill_queue(user_machine *m, unsigned index)
{
    const blk_queue *from = &driver.queues[index];
    vhost_queue *queue = &m->queue[index];
    queue->ready = true;
    queue->size = from->ring.size;
    queue->desc = from->ring.descriptors_gpa;
    queue->avail = from->ring.available_gpa;
    queue->used = from->ring.used_gpa;
    queue->kick_fd = from->kick;
    queue->call_fd = from->call;
}

static int open_driver(user_machine *m, unsigned queues)
{
    int result = blk_driver_open(&driver, m->ram, 0, (int)queues);
    work = (blk_work){.driver = &driver, .size = DISK};
    for (unsigned i = 0; i < queues; i++) {
        fill_queue(m, i);
    }
    return result;
}

/* The device runs. */
static enum greatest_test_res running(user_machine *m, unsigned queues)
{
    ASSERT(make_file(m));
    ASSERT(serve(m, queues));
    ASSERT_OK(user_machine_plug(m, 0, 0, (uint64_t)queues * BLK_QUEUE_BYTES));
    ASSERT_OK(user_machine_attach(m, queues));
    ASSERT_OK(open_driver(m, queues));
    ASSERT_OK(vhost_device_start(&m->device));
    PASS();
}

static user_machine_test *current_test;

static enum greatest_test_res run_on_disk(user_machine *m)
{
    enum greatest_test_res result = current_test(m);
    user_machine_detach(m); /* before its fds are closed */
    blk_driver_close(&driver);
    memset(&driver, 0, sizeof driver);
    if (file != NULL && file != MAP_FAILED) {
        munmap(file, DISK);
    }
    file = NULL;
    return result;
}

static enum greatest_test_res run_disk(user_machine_test *test)
{
    current_test = test;
    image = malloc(DISK);
    blk_work_pattern(image, DISK);
    enum greatest_test_res result = user_machine_run(run_on_disk);
    free(image);
    return result;
}

#define RUN_DISK(TEST_NAME)                                                                        \
    do {                                                                                           \
        if (greatest_test_pre(#TEST_NAME) == 1) {                                                  \
            greatest_test_post(run_disk(TEST_NAME));                                               \
        }                                                                                          \
    } while (0)

/* ---- requests ---- */

static void begin(blk_task task, int queues, int depth, bool forever)
{
    static int shift; /* through other queues each time */
    blk_job job = {task, image, BLOCK, queues, shift++, depth, forever ? clock_now() + 1e6 : 0};
    blk_work_begin(&work, &job);
}

static void note_page(const user_machine *m, const uint8_t *byte)
{
    written[(uint64_t)(byte - m->ram) / VHOST_PAGE] = true;
}

/* Data that is read; the status of a request is in the first page of a queue. */
static void note_written(const user_machine *m)
{
    for (int q = 0; q < driver.count; q++) {
        const blk_queue *queue = &driver.queues[q];
        for (int i = 0; i < BLK_DEPTH; i++) {
            const blk_request *request = &queue->requests[i];
            for (uint32_t at = 0; request->in_flight && at < request->size; at += VHOST_PAGE) {
                note_page(m, request->verb == BLK_READ ? request->data + at : queue->memory);
            }
        }
        if (queue->in_flight > 0) {
            note_page(m, queue->memory);
            note_page(m, (const uint8_t *)queue->ring.used);
        }
    }
}

/* The event loop, once around. */
static void step(user_machine *m)
{
    note_written(m);
    blk_driver_kick(&driver);
    user_machine_turn(m, 100);
    for (int i = 0; i < driver.count; i++) {
        blk_work_take(&work, i);
    }
}

static enum greatest_test_res keep_working(user_machine *m, unsigned requests)
{
    double end = clock_now() + USER_PATIENCE / 1e3;
    for (uint64_t done = work.done; work.done < done + requests;) {
        ASSERT(blk_work_feed(&work));
        step(m);
        ASSERT_EQm(driver.fault, NULL, driver.fault);
        ASSERTm("a request was lost", clock_now() < end);
    }
    PASS();
}

/* What was begun, or what is in flight of what had no end. */
static enum greatest_test_res finish(user_machine *m)
{
    double end = clock_now() + USER_PATIENCE / 1e3;
    work.job.until = work.job.until > 0 ? clock_now() : 0;
    while (blk_work_feed(&work)) {
        step(m);
        ASSERT_EQm(driver.fault, NULL, driver.fault);
        ASSERTm("a request was lost", clock_now() < end);
    }
    PASS();
}

static enum greatest_test_res do_all(user_machine *m, blk_task task, int depth)
{
    begin(task, driver.count, depth, false);
    return finish(m);
}

/* Writes something new, and reads it; the file has it, too. */
static enum greatest_test_res disk_works(user_machine *m)
{
    blk_work_pattern(image, DISK);
    CHECK_CALL(do_all(m, BLK_PUT, BLK_DEPTH));
    ASSERT_EQ(0, memcmp(image, file, DISK));
    return do_all(m, BLK_COMPARE, BLK_DEPTH);
}

/* Each queue stopped where its driver is: nothing is lost, and nothing will be done twice. A queue
   in which nothing is left to be done is certain in any case. */
static enum greatest_test_res positions_are(const user_machine *m, vhost_position_state state)
{
    for (int i = 0; i < driver.count; i++) {
        const split_ring *ring = &driver.queues[i].ring;
        bool idle = split_ring_done(ring) == ring->added;
        bool certain = idle || state == VHOST_POSITION_CERTAIN;
        ASSERT_INT(certain ? VHOST_POSITION_CERTAIN : state, m->queue[i].position.state);
        ASSERT_UINT(split_ring_done(ring), m->queue[i].position.avail);
        ASSERT_UINT(split_ring_done(ring), m->queue[i].position.used);
        ASSERT_INT(certain, m->queue[i].position.used_certain);
    }
    PASS();
}

/* A reset, and a new driver. */
static enum greatest_test_res starts_over(user_machine *m, unsigned queues)
{
    ASSERT_OK(vhost_device_reset(&m->device));
    ASSERT_INT(VHOST_STATE_STOPPED, m->device.state);
    blk_driver_close(&driver);
    ASSERT_OK(open_driver(m, queues));
    vhost_features accepted = vhost_device_offer(&m->device, m->wanted);
    ASSERT_OK(vhost_device_ack(&m->device, accepted));
    ASSERT_OK(vhost_device_start(&m->device));
    return disk_works(m);
}

/* ---- reading and writing ---- */

static enum greatest_test_res reads_and_writes(user_machine *m, unsigned queues)
{
    CHECK_CALL(running(m, queues));
    CHECK_CALL(disk_works(m));
    blk_work_pattern(image, DISK);
    memcpy(file, image, DISK); /* behind its back */
    CHECK_CALL(do_all(m, BLK_COMPARE, 1));
    ASSERT_UINT(0, m->errors);
    ASSERT_OK(vhost_device_stop(&m->device));
    for (unsigned i = 0; i < queues; i++) {
        ASSERT(driver.queues[i].ring.added > 0);
        ASSERT_UINT(driver.queues[i].ring.added, m->queue[i].position.avail);
    }
    return positions_are(m, VHOST_POSITION_CERTAIN);
}

TEST one_queue_reads_and_writes_the_file(user_machine *m)
{
    return reads_and_writes(m, 1);
}

TEST eight_queues_read_and_write_the_file(user_machine *m)
{
    return reads_and_writes(m, 8);
}

TEST config_space_tells_about_the_disk(user_machine *m)
{
    uint64_t capacity;
    uint16_t queues;
    uint8_t writeback = 1, was;
    vhost_features_set(&m->wanted, WRITEBACK_CONFIG);
    CHECK_CALL(running(m, 3));
    ASSERT_OK(vhost_device_get_config(&m->device, CAPACITY_AT, &capacity, sizeof capacity));
    ASSERT_UINT(DISK / BLK_SECTOR, le64toh(capacity));
    ASSERT_OK(vhost_device_get_config(&m->device, QUEUES_AT, &queues, sizeof queues));
    ASSERT_UINT(3, le16toh(queues));
    ASSERT_OK(vhost_device_get_config(&m->device, WRITEBACK_AT, &was, 1));
    ASSERT_OK(vhost_device_set_config(&m->device, WRITEBACK_AT, &writeback, 1));
    ASSERT_OK(vhost_device_get_config(&m->device, WRITEBACK_AT, &writeback, 1));
    ASSERT_UINT(0, was);
    ASSERT_UINT(1, writeback);
    return disk_works(m);
}

TEST a_read_only_disk_is_not_written(user_machine *m)
{
    vhost_features_set(&m->wanted, READ_ONLY);
    ASSERT(make_file(m));
    memcpy(file, image, DISK);
    ASSERT(real_backend_start(&m->peer, "blk", "writable=off"));
    ASSERT_OK(user_machine_plug(m, 0, 0, BLK_QUEUE_BYTES));
    ASSERT_OK(user_machine_attach(m, 1));
    ASSERT(vhost_features_test(&m->device.acked, READ_ONLY));
    ASSERT_OK(open_driver(m, 1));
    ASSERT_OK(vhost_device_start(&m->device));
    CHECK_CALL(do_all(m, BLK_COMPARE, BLK_DEPTH));
    image[0] ^= 0xff;
    begin(BLK_PUT, 1, 1, false);
    ASSERT(blk_work_feed(&work));
    double end = clock_now() + USER_PATIENCE / 1e3;
    while (driver.fault == NULL && clock_now() < end) {
        step(m);
    }
    ASSERT_STR_EQ("the device could not read or write", driver.fault);
    image[0] ^= 0xff;
    ASSERT_EQ(0, memcmp(image, file, DISK));
    PASS();
}

/* ---- start and stop ---- */

/* The driver will not kick this queue for what is in it now. */
static void silence(int queue)
{
    driver.queues[queue].kicked = driver.queues[queue].ring.added;
}

/* Work goes on where it was, without a kick. (This back-end answers a stop before the requests that
   it has are done, and then does them all the same: it is not stopped before they are.) */
static enum greatest_test_res stop_and_start(user_machine *m, unsigned times)
{
    for (unsigned i = 0; i < times; i++) {
        CHECK_CALL(keep_working(m, 5));
        CHECK_CALL(finish(m));
        begin(BLK_COMPARE, driver.count, BLK_DEPTH, true);
        ASSERT(blk_work_feed(&work));
        for (int q = 0; q < driver.count; q++) {
            silence(q);
        }
        ASSERT_OK(vhost_device_stop(&m->device));
        CHECK_CALL(positions_are(m, VHOST_POSITION_CERTAIN));
        ASSERT_OK(vhost_device_start(&m->device));
    }
    PASS();
}

static enum greatest_test_res stops_and_starts(user_machine *m, unsigned queues)
{
    CHECK_CALL(running(m, queues));
    CHECK_CALL(disk_works(m));
    begin(BLK_COMPARE, driver.count, BLK_DEPTH, true);
    CHECK_CALL(stop_and_start(m, 10));
    unsigned fds = user_machine_fds(getpid()), its_fds = user_machine_fds(m->peer.pid);
    long resident = user_machine_resident(getpid());
    long its_resident = user_machine_resident(m->peer.pid);
    CHECK_CALL(stop_and_start(m, ROUNDS));
    ASSERT_UINT(fds, user_machine_fds(getpid()));
    ASSERT_UINT(its_fds, user_machine_fds(m->peer.pid));
    ASSERT(resident > 0 && user_machine_resident(getpid()) - resident < 64);
    ASSERT(its_resident > 0 && user_machine_resident(m->peer.pid) - its_resident < 2048);
    ASSERT_UINT(0, m->errors);
    CHECK_CALL(finish(m));
    return disk_works(m);
}

TEST one_queue_stops_and_starts_100_times(user_machine *m)
{
    return stops_and_starts(m, 1);
}

TEST eight_queues_stop_and_start_100_times(user_machine *m)
{
    return stops_and_starts(m, 8);
}

TEST a_queue_stops_and_starts_while_others_work(user_machine *m)
{
    CHECK_CALL(running(m, 4));
    for (unsigned i = 0; i < 40; i++) {
        CHECK_CALL(disk_works(m)); /* in each queue */
        begin(BLK_COMPARE, 3, BLK_DEPTH, true);
        CHECK_CALL(keep_working(m, 10));
        ASSERT_OK(vhost_queue_stop(&m->device, 3));
        ASSERT_INT(VHOST_POSITION_CERTAIN, m->queue[3].position.state);
        ASSERT_UINT(driver.queues[3].ring.added, m->queue[3].position.avail);
        CHECK_CALL(keep_working(m, 10));
        ASSERT_OK(vhost_queue_start(&m->device, 3));
        CHECK_CALL(finish(m));
    }
    ASSERT_UINT(0, m->errors);
    PASS();
}

TEST a_queue_that_starts_does_what_waits(user_machine *m)
{
    CHECK_CALL(running(m, 2));
    for (unsigned i = 0; i < 20; i++) {
        CHECK_CALL(disk_works(m));
        blk_work_pattern(image, DISK);
        begin(BLK_PUT, 2, BLK_DEPTH, false);
        ASSERT_OK(vhost_queue_stop(&m->device, 1));
        ASSERT(blk_work_feed(&work));
        silence(1);
        ASSERT_UINT(split_ring_done(&driver.queues[1].ring), m->queue[1].position.avail);
        ASSERT_UINT(BLK_DEPTH, driver.queues[1].in_flight);
        ASSERT_OK(vhost_queue_start(&m->device, 1));
        CHECK_CALL(finish(m));
        ASSERT_EQ(0, memcmp(image, file, DISK));
    }
    PASS();
}

/* A stop with requests in flight. Returns whether all of them were done, and it can go on: it may
   break afterwards, and then it has no more to say. */
static enum greatest_test_res stop_tells(user_machine *m, bool *goes_on)
{
    const vhost_position *position = &m->queue[0].position;
    begin(BLK_COMPARE, 1, BLK_DEPTH, true);
    CHECK_CALL(keep_working(m, 5));
    ASSERT(blk_work_feed(&work));
    blk_driver_kick(&driver);
    uint16_t collected = driver.queues[0].ring.collected;
    int code = vhost_device_stop(&m->device);
    uint16_t taken = (uint16_t)(position->avail - collected);
    ASSERT_INT(code == 0 ? VHOST_POSITION_CERTAIN : VHOST_POSITION_GUESSED, position->state);
    ASSERT_EQ(code == 0 && position->used == position->avail, position->used_certain);
    ASSERT((uint16_t)(position->used - collected) <= taken && taken <= BLK_DEPTH);
    *goes_on = position->used_certain && vhost_device_start(&m->device) == 0;
    PASS();
}

/* That it does not wait is found out. */
TEST a_stop_tells_what_is_still_in_flight(user_machine *m)
{
    CHECK_CALL(running(m, 1));
    for (unsigned life = 0; life < 10; life++) {
        bool goes_on = true;
        CHECK_CALL(disk_works(m));
        for (unsigned i = 0; i < 100 && goes_on; i++) {
            CHECK_CALL(stop_tells(m, &goes_on));
        }
        user_machine_detach(m);
        blk_driver_close(&driver);
        real_backend_end(&m->peer, SIGKILL);
        ASSERT(serve(m, 1));
        ASSERT_OK(user_machine_attach(m, 1));
        ASSERT_OK(open_driver(m, 1));
        ASSERT_OK(vhost_device_start(&m->device));
    }
    return disk_works(m);
}

/* ---- memory ---- */

/* Four queues, each with its ring and half of its buffers in one memfd, and the rest in another. */
static enum greatest_test_res running_in_pieces(user_machine *m)
{
    ASSERT(make_file(m));
    ASSERT(serve(m, 4));
    for (unsigned i = 0; i < 4; i++) {
        ASSERT_OK(plug_lower(m, i));
    }
    ASSERT_OK(plug_upper(m, 1));
    ASSERT_OK(user_machine_attach(m, 4));
    ASSERT_INT(VHOST_PROFILE_SLOTS, m->device.facts.profile);
    ASSERT_UINT(5, vhost_device_table(&m->device)->count);
    ASSERT_OK(open_driver(m, 4));
    ASSERT_OK(vhost_device_start(&m->device));
    PASS();
}

/* Reads and writes keep to the lower halves. */
static enum greatest_test_res works_in_the_lower_halves(user_machine *m, blk_task task)
{
    CHECK_CALL(finish(m));
    begin(task, 4, LOWER_DEPTH, true);
    return keep_working(m, 30);
}

TEST memory_comes_and_goes_under_load(user_machine *m)
{
    CHECK_CALL(running_in_pieces(m));
    unsigned its_fds = user_machine_fds(m->peer.pid);
    for (unsigned round = 0; round < 20; round++) {
        blk_work_pattern(image, DISK);
        CHECK_CALL(do_all(m, BLK_PUT, LOWER_DEPTH));
        CHECK_CALL(works_in_the_lower_halves(m, round % 2 == 0 ? BLK_PUT : BLK_COMPARE));
        ASSERT_OK(user_machine_unplug(m, 3)); /* with requests in flight elsewhere */
        ASSERT_UINT(4, user_machine_mappings(m->peer.pid));
        CHECK_CALL(keep_working(m, 10));
        for (unsigned i = 0; i < 4; i++) {
            ASSERT_OK(plug_upper(m, i));
            CHECK_CALL(keep_working(m, 3));
        }
        ASSERT_UINT(8, user_machine_mappings(m->peer.pid));
        CHECK_CALL(finish(m));
        CHECK_CALL(do_all(m, BLK_COMPARE, BLK_DEPTH)); /* everywhere */
        for (unsigned i = 0; i < 4; i++) {
            CHECK_CALL(works_in_the_lower_halves(m, BLK_COMPARE));
            ASSERT_OK(i == 1 ? 0 : user_machine_unplug(m, 2 * i + 1));
        }
        CHECK_CALL(finish(m));
    }
    ASSERT_UINT(its_fds, user_machine_fds(m->peer.pid));
    ASSERT_UINT(0, m->errors);
    return do_all(m, BLK_COMPARE, LOWER_DEPTH);
}

/* The same gpas lead to other memory: no answer may go to the old one. The rings are stopped for
   that, and started again with what waits in them. (When this back-end stops, nothing may be in
   flight.) */
TEST memory_is_replaced_under_running_rings(user_machine *m)
{
    CHECK_CALL(running_in_pieces(m));
    for (unsigned i = 0; i < 4; i++) {
        ASSERT_OK(plug_upper(m, i));
    }
    for (unsigned round = 0; round < 20; round++) {
        CHECK_CALL(disk_works(m));
        begin(BLK_COMPARE, 4, LOWER_DEPTH, false);
        ASSERT(blk_work_feed(&work));
        for (int q = 0; q < 4; q++) {
            silence(q);
        }
        ASSERT_OK(plug_upper(m, round % 4)); /* zeros */
        ASSERT_UINT(8, user_machine_mappings(m->peer.pid));
        CHECK_CALL(finish(m));
        CHECK_CALL(do_all(m, BLK_COMPARE, BLK_DEPTH));
    }
    ASSERT_UINT(0, m->errors);
    return disk_works(m);
}

/* ---- the dirty log ---- */

static bool dirty[USER_RAM / VHOST_PAGE];

static enum greatest_test_res take_log(user_machine *m)
{
    static uint64_t bits[USER_RAM / VHOST_PAGE / 64];
    vhost_log_sink sink = {.bits = bits, .bits_count = USER_RAM / VHOST_PAGE};
    memset(bits, 0, sizeof bits);
    ASSERT_OK(vhost_log_sync(&m->vm, 0, USER_RAM, &sink));
    ASSERT_UINT(0, sink.pages_dropped);
    for (size_t i = 0; i < USER_RAM / VHOST_PAGE; i++) {
        dirty[i] |= bits[i / 64] >> i % 64 & 1;
    }
    PASS();
}

/* While nothing is in flight: books and log begin anew. */
static enum greatest_test_res exactly_written_is_dirty(user_machine *m)
{
    CHECK_CALL(take_log(m));
    for (size_t i = 0; i < USER_RAM / VHOST_PAGE; i++) {
        if (written[i] != dirty[i]) {
            printf("page %#zx: written %d, dirty %d\n", i, written[i], dirty[i]);
        }
    }
    ASSERT_EQ(0, memcmp(written, dirty, sizeof dirty));
    memset(written, 0, sizeof written);
    memset(dirty, 0, sizeof dirty);
    PASS();
}

static enum greatest_test_res begin_log(user_machine *m)
{
    vhost_why why;
    ASSERT_EQ(NULL, vhost_log_blocker(&m->vm, NULL, &why));
    ASSERT_OK(vhost_log_start(&m->vm));
    memset(written, 0, sizeof written);
    return exactly_written_is_dirty(m);
}

static enum greatest_test_res logs_what_it_writes(user_machine *m, unsigned queues)
{
    CHECK_CALL(running(m, queues));
    CHECK_CALL(disk_works(m));
    CHECK_CALL(begin_log(m));
    for (int round = 1; round <= 5; round++) {
        CHECK_CALL(do_all(m, BLK_PUT, round));
        ASSERT_UINT(queues, (unsigned)(memchr(written, 1, sizeof written) != NULL) * queues);
        CHECK_CALL(exactly_written_is_dirty(m));
        CHECK_CALL(do_all(m, BLK_COMPARE, round));
        CHECK_CALL(exactly_written_is_dirty(m));
        CHECK_CALL(exactly_written_is_dirty(m)); /* and nothing is left */
    }
    ASSERT_OK(vhost_device_stop(&m->device));
    for (unsigned i = 0; i < queues; i++) {
        note_page(m, (const uint8_t *)driver.queues[i].ring.used);
    }
    return exactly_written_is_dirty(m);
}

TEST one_queue_logs_what_it_writes(user_machine *m)
{
    return logs_what_it_writes(m, 1);
}

TEST eight_queues_log_what_they_write(user_machine *m)
{
    return logs_what_it_writes(m, 8);
}

TEST no_page_is_lost_under_load(user_machine *m)
{
    CHECK_CALL(running_in_pieces(m));
    ASSERT_OK(plug_upper(m, 0));
    ASSERT_OK(plug_upper(m, 2));
    CHECK_CALL(do_all(m, BLK_PUT, LOWER_DEPTH));
    CHECK_CALL(begin_log(m));
    for (unsigned round = 0; round < 20; round++) {
        begin(BLK_COMPARE, 4, LOWER_DEPTH, true);
        CHECK_CALL(keep_working(m, 10));
        ASSERT_OK(plug_upper(m, 3)); /* the log grows, */
        work.job.depth = BLK_DEPTH;
        CHECK_CALL(keep_working(m, 30));
        CHECK_CALL(take_log(m));
        CHECK_CALL(keep_working(m, 30));
        CHECK_CALL(finish(m));
        CHECK_CALL(take_log(m)); /* what is not taken goes with its memory */
        begin(BLK_COMPARE, 4, LOWER_DEPTH, true);
        CHECK_CALL(keep_working(m, 10));
        ASSERT_OK(user_machine_unplug(m, 7)); /* and shrinks */
        CHECK_CALL(keep_working(m, 10));
        CHECK_CALL(finish(m));
        CHECK_CALL(exactly_written_is_dirty(m));
    }
    PASS();
}

TEST the_log_goes_on_and_off_under_load(user_machine *m)
{
    unsigned fds = 0;
    CHECK_CALL(running(m, 4));
    CHECK_CALL(disk_works(m));
    for (unsigned round = 0; round <= ROUNDS / 2; round++) {
        begin(BLK_COMPARE, 4, BLK_DEPTH, true);
        CHECK_CALL(keep_working(m, 5));
        ASSERT_OK(vhost_log_start(&m->vm));
        CHECK_CALL(keep_working(m, 5));
        ASSERT_OK(vhost_log_stop(&m->vm));
        CHECK_CALL(keep_working(m, 5));
        CHECK_CALL(finish(m));
        if (round == 0) {
            fds = user_machine_fds(getpid()) + user_machine_fds(m->peer.pid);
        }
    }
    ASSERT_UINT(fds, user_machine_fds(getpid()) + user_machine_fds(m->peer.pid));
    CHECK_CALL(begin_log(m));
    CHECK_CALL(do_all(m, BLK_COMPARE, BLK_DEPTH));
    ASSERT_UINT(0, m->errors);
    return exactly_written_is_dirty(m);
}

TEST a_device_that_starts_while_logging_logs(user_machine *m)
{
    CHECK_CALL(running(m, 2));
    CHECK_CALL(disk_works(m));
    ASSERT_OK(vhost_device_stop(&m->device));
    CHECK_CALL(begin_log(m));
    ASSERT_OK(vhost_device_start(&m->device));
    CHECK_CALL(do_all(m, BLK_COMPARE, BLK_DEPTH));
    return exactly_written_is_dirty(m);
}

/* ---- the back-end dies ---- */

static enum greatest_test_res turn_until(user_machine *m, const unsigned *count, unsigned wanted)
{
    double end = clock_now() + USER_PATIENCE / 1e3;
    while (*count < wanted) {
        user_machine_turn(m, 100);
        ASSERTm("it did not happen", clock_now() < end);
    }
    ASSERT_UINT(wanted, *count);
    PASS();
}

/* What came back although the driver did not wait for it. Takes all that is there. */
static unsigned collect_twice_done(void)
{
    unsigned twice = 0;
    for (int i = 0; i < driver.count; i++) {
        split_ring *ring = &driver.queues[i].ring;
        while (ring->collected != split_ring_done(ring)) {
            if (blk_driver_collect(&driver, i) == NULL) {
                twice++;
                ring->broken = false;
                ring->collected++;
                driver.fault = NULL;
            }
        }
    }
    return twice;
}

static unsigned count_lost(void)
{
    unsigned lost = 0;
    for (int i = 0; i < driver.count; i++) {
        lost += driver.queues[i].in_flight;
    }
    return lost;
}

static bool all_is_used(void)
{
    bool used = true;
    for (int i = 0; i < driver.count; i++) {
        used &= split_ring_done(&driver.queues[i].ring) == driver.queues[i].ring.added;
    }
    return used;
}

/* Writes that came back are in the file. */
static enum greatest_test_res completed_is_written(const uint64_t *first)
{
    static bool lost[DISK / BLOCK];
    memset(lost, 0, sizeof lost);
    for (int q = 0; q < driver.count; q++) {
        for (int i = 0; i < BLK_DEPTH; i++) {
            const blk_request *request = &driver.queues[q].requests[i];
            lost[request->sector * BLK_SECTOR / BLOCK] |= request->in_flight;
        }
    }
    for (int q = 0; q < driver.count; q++) {
        for (uint64_t block = first[q]; block < work.next[q]; block += (uint64_t)driver.count) {
            size_t at = (size_t)block * BLOCK % DISK; /* it may have begun again */
            ASSERT(lost[at / BLOCK] || memcmp(image + at, file + at, BLOCK) == 0);
        }
    }
    PASS();
}

/* Nothing is known of what was in flight, and nothing is claimed. */
static enum greatest_test_res dies_and_tells(user_machine *m, unsigned requests)
{
    CHECK_CALL(keep_working(m, requests));
    ASSERT_INT(0, kill(m->peer.pid, SIGSTOP)); /* so that it cannot get done with all */
    ASSERT(blk_work_feed(&work));
    blk_driver_kick(&driver);
    real_backend_end(&m->peer, SIGKILL);
    m->refusals = m->broken = m->returns = 0;
    CHECK_CALL(turn_until(m, &m->refusals, 1));
    ASSERT_INT(-EINVAL, m->refused);
    ASSERT_INT(VHOST_STATE_BROKEN, m->device.state);
    ASSERT_INT(VHOST_WHY_POSITION_GUESSED, m->link.last_error.why);
    ASSERT_INT(VHOST_WHY_BACKEND_LOST, m->device.last_error.why);
    ASSERT(strstr(m->device.last_error.text, "closed the connection") != NULL);
    ASSERT_UINT(1, m->broken);
    return positions_are(m, VHOST_POSITION_GUESSED);
}

/* It is not asked again, and it is not for the library to decide. */
static enum greatest_test_res waits_for_a_decision(user_machine *m)
{
    ASSERT(real_backend_start(&m->peer, "blk", "queues=4"));
    ASSERT_INT(-1, vhost_user_timeout(&m->link));
    for (int i = 0; i < 5; i++) {
        user_machine_turn(m, 5);
        ASSERT_INT(0, vhost_user_process(&m->link));
    }
    ASSERT_UINT(1, m->refusals);
    ASSERT_UINT(0, m->returns);
    CHECK_CALL(positions_are(m, VHOST_POSITION_GUESSED));
    ASSERT_INT(VHOST_STATE_BROKEN, m->device.state);
    PASS();
}

static enum greatest_test_res goes_on_by_the_guess(user_machine *m)
{
    double end = clock_now() + USER_PATIENCE / 1e3;
    for (int i = 0; i < driver.count; i++) {
        m->queue[i].position.state = VHOST_POSITION_CERTAIN;
    }
    ASSERT_INT(1, vhost_user_process(&m->link));
    ASSERT_INT(VHOST_STATE_RUNNING, m->device.state);
    while (!all_is_used()) {
        user_machine_turn(m, 10);
        ASSERTm("a request that waited was not done", clock_now() < end);
    }
    PASS();
}

/* The used index tells how many buffers are done, and not which: each that was done too early is
   done again, for one that is lost. */
TEST killed_under_load_without_a_record(user_machine *m)
{
    unsigned all_lost = 0, again = 0;
    m->user_options.retry_ms = 5;
    CHECK_CALL(running(m, 4));
    ASSERT_FALSE(vhost_features_test(&m->device.facts.offered, VHOST_FEATURE_IN_ORDER));
    ASSERT_UINT(0, m->link.protocol >> VHOST_USER_BIT_INFLIGHT & 1);
    for (unsigned round = 0; round < 20; round++) {
        uint64_t first[BLK_QUEUES];
        CHECK_CALL(disk_works(m));
        blk_work_pattern(image, DISK);
        begin(BLK_PUT, 4, BLK_DEPTH, true);
        memcpy(first, work.next, sizeof first);
        CHECK_CALL(dies_and_tells(m, 5 * round));
        unsigned before = collect_twice_done();
        ASSERT_UINT(0, before);
        unsigned waited = count_lost();
        CHECK_CALL(waits_for_a_decision(m));
        CHECK_CALL(goes_on_by_the_guess(m));
        unsigned twice = collect_twice_done(), lost = count_lost();
        ASSERT_UINT(lost, twice);
        CHECK_CALL(completed_is_written(first));
        all_lost += lost;
        again += waited - lost;
        ASSERT_OK(vhost_device_stop(&m->device));
        CHECK_CALL(positions_are(m, VHOST_POSITION_CERTAIN));
        CHECK_CALL(starts_over(m, 4));
    }
    printf("20 deaths, and the guess taken: %u requests were done after it, %u were lost\n", again,
           all_lost);
    ASSERT(again > 0);
    PASS();
}

/* Nothing was in flight, and the rings show it. */
TEST killed_while_idle_it_comes_back(user_machine *m)
{
    unsigned fds = 0;
    m->user_options.retry_ms = 5;
    m->user_options.retry_max_ms = 10;
    CHECK_CALL(running(m, 4));
    for (unsigned round = 1; round <= 10; round++) {
        CHECK_CALL(disk_works(m));
        real_backend_end(&m->peer, SIGKILL);
        CHECK_CALL(turn_until(m, &m->broken, round));
        user_machine_turn(m, 20); /* nobody is there */
        begin(BLK_COMPARE, 4, BLK_DEPTH, false);
        ASSERT(blk_work_feed(&work)); /* requests wait */
        blk_driver_kick(&driver);
        ASSERT(real_backend_start(&m->peer, "blk", "queues=4"));
        CHECK_CALL(turn_until(m, &m->returns, round));
        CHECK_CALL(finish(m));
        ASSERT_UINT(0, m->refusals);
        if (round == 1) {
            fds = user_machine_fds(getpid());
        }
    }
    ASSERT_UINT(fds, user_machine_fds(getpid()));
    return disk_works(m);
}

/* ---- the back-end hangs ---- */

enum {
    HANGS = 300 /* ms: longer than it is waited for */
};

static enum greatest_test_res hangs(user_machine *m, int code, double begin, const char *message)
{
    double waited = (clock_now() - begin) * 1e3;
    ASSERT_INT(-ETIMEDOUT, code);
    ASSERT_INT(VHOST_WHY_USER_TIMEOUT, m->link.last_error.why);
    ASSERT(strstr(m->link.last_error.text, message) != NULL);
    ASSERT(waited > HANGS - 15 && waited < 8 * HANGS); /* and not for each queue */
    user_machine_turn(m, 0);
    ASSERT_INT(VHOST_STATE_BROKEN, m->device.state);
    ASSERT(strstr(m->device.last_error.text, message) != NULL);
    ASSERT_UINT(1, m->broken);
    m->broken = 0;
    ASSERT_INT(0, kill(m->peer.pid, SIGCONT));
    return starts_over(m, 8);
}

TEST a_back_end_that_hangs_is_cut_off(user_machine *m)
{
    uint8_t byte;
    m->user_options.timeout_ms = HANGS;
    CHECK_CALL(running(m, 8));
    CHECK_CALL(disk_works(m));
    double begin = clock_now();
    ASSERT_INT(0, kill(m->peer.pid, SIGSTOP));
    CHECK_CALL(hangs(m, vhost_device_get_config(&m->device, 0, &byte, 1), begin, "GET_CONFIG"));
    begin = clock_now();
    ASSERT_INT(0, kill(m->peer.pid, SIGSTOP));
    CHECK_CALL(hangs(m, vhost_device_stop(&m->device), begin, "GET_VRING_BASE"));
    begin = clock_now();
    ASSERT_INT(0, kill(m->peer.pid, SIGSTOP));
    CHECK_CALL(hangs(m, vhost_log_start(&m->vm) == 0 ? -ETIMEDOUT : 0, begin, "SET_LOG_BASE"));
    return disk_works(m);
}

/* ---- messages and waits, as counted by the shim ---- */

/* This runs in a process into which the shim was loaded. */
TEST a_life_is_counted(user_machine *m)
{
    unsigned queues = wire_queues();
    unsetenv("LD_PRELOAD"); /* not into the back-end */
    ASSERT(make_file(m));
    ASSERT(serve(m, queues));
    ASSERT_OK(user_machine_plug(m, 0, 0, (uint64_t)queues * BLK_QUEUE_BYTES));
    ASSERT_OK(user_machine_attach(m, queues));
    ASSERT_OK(open_driver(m, queues));
    ASSERT(wire_end_phase("connect"));
    ASSERT_OK(vhost_device_start(&m->device));
    ASSERT(wire_end_phase("start"));
    CHECK_CALL(disk_works(m));
    ASSERT(wire_end_phase("work"));
    ASSERT_OK(vhost_device_stop(&m->device));
    ASSERT(wire_end_phase("stop"));
    PASS();
}

/* Those of others were measured once, with the same shim. */
static enum greatest_test_res waits_little(unsigned queues, const char *others)
{
    wire_count counts[4] = {{"connect", 0, 0}, {"start", 0, 0}, {"work", 0, 0}, {"stop", 0, 0}};
    const char *fault = wire_count_life(queues, NULL, counts, 4);
    ASSERT_EQm(fault, NULL, fault);
    printf("%u queue%s, messages/waits: connect %u/%u, start %u/%u, stop %u/%u; %s\n", queues,
           queues > 1 ? "s" : "", counts[0].messages, counts[0].waits, counts[1].messages,
           counts[1].waits, counts[3].messages, counts[3].waits, others);
    ASSERT_UINT(3, counts[0].waits);
    ASSERT_UINT(1, counts[1].waits);
    ASSERT_UINT(0, counts[2].messages);
    ASSERT_UINT(1, counts[3].waits);
    PASS();
}

TEST one_queue_waits_three_times_to_connect_and_once_to_start(void)
{
    return waits_little(1, "QEMU 7.2: 11/7, 10/1, 1/1; DPDK virtio_user, a pair, to run: 22/7; "
                           "UML 6.1, all: 29/28");
}

TEST eight_queues_wait_three_times_to_connect_and_once_to_start(void)
{
    return waits_little(8, "QEMU 7.2: 25/7, 58/1, 8/8; DPDK virtio_user, four pairs, to run: 66/7");
}

SUITE(counted)
{
    RUN_DISK(a_life_is_counted);
}

SUITE(wire)
{
    RUN_TEST(one_queue_waits_three_times_to_connect_and_once_to_start);
    RUN_TEST(eight_queues_wait_three_times_to_connect_and_once_to_start);
}

SUITE(reading_and_writing)
{
    RUN_DISK(one_queue_reads_and_writes_the_file);
    RUN_DISK(eight_queues_read_and_write_the_file);
    RUN_DISK(config_space_tells_about_the_disk);
    RUN_DISK(a_read_only_disk_is_not_written);
}

SUITE(start_and_stop)
{
    RUN_DISK(one_queue_stops_and_starts_100_times);
    RUN_DISK(eight_queues_stop_and_start_100_times);
    RUN_DISK(a_queue_stops_and_starts_while_others_work);
    RUN_DISK(a_queue_that_starts_does_what_waits);
    RUN_DISK(a_stop_tells_what_is_still_in_flight);
}

SUITE(memory)
{
    RUN_DISK(memory_comes_and_goes_under_load);
    RUN_DISK(memory_is_replaced_under_running_rings);
}

SUITE(dirty_log)
{
    RUN_DISK(one_queue_logs_what_it_writes);
    RUN_DISK(eight_queues_log_what_they_write);
    RUN_DISK(no_page_is_lost_under_load);
    RUN_DISK(the_log_goes_on_and_off_under_load);
    RUN_DISK(a_device_that_starts_while_logging_logs);
}

SUITE(death)
{
    RUN_DISK(killed_under_load_without_a_record);
    RUN_DISK(killed_while_idle_it_comes_back);
    RUN_DISK(a_back_end_that_hangs_is_cut_off);
}

GREATEST_MAIN_DEFS();

int main(int argc, char **argv)
{
    GREATEST_MAIN_BEGIN();
    if (wire_queues() > 0) {
        RUN_SUITE(counted);
        GREATEST_MAIN_END();
    }
    RUN_SUITE(reading_and_writing);
    RUN_SUITE(start_and_stop);
    RUN_SUITE(memory);
    RUN_SUITE(dirty_log);
    RUN_SUITE(death);
    RUN_SUITE(wire);
    GREATEST_MAIN_END();
}
