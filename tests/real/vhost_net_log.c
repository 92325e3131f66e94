/* The dirty log of the real vhost-net: exactly the pages that it wrote, whatever happens meanwhile.

   vm-modules: vhost_net tun */
#define _GNU_SOURCE
#include "net_machine.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

enum {
    LOGS = 256 /* made in one test */
};

/* ---- logs that are kept after their end, to see whether anybody still writes to them ---- */

typedef struct kept_log {
    unsigned long *words;
    unsigned long *at_end; /* what was in it when it was given back; NULL: in use */
    size_t size;
} kept_log;

static kept_log logs[LOGS];
static unsigned log_count;

static int keep_map(vhost_log_memory *memory, bool shared, void *user)
{
    kept_log *log = &logs[log_count];
    (void)user;
    if (shared || log_count == LOGS) {
        return -ENOTSUP;
    }
    log->size = (size_t)memory->size;
    log->words = calloc(1, log->size);
    log->at_end = NULL;
    memory->base = log->words;
    log_count++;
    return log->words ? 0 : -ENOMEM;
}

static void keep_unmap(vhost_log_memory *memory, void *user)
{
    (void)user;
    for (unsigned i = 0; i < log_count; i++) {
        if (logs[i].words == memory->base) {
            logs[i].at_end = malloc(logs[i].size);
            memcpy(logs[i].at_end, logs[i].words, logs[i].size);
        }
    }
}

static const vhost_log_ops kept_logs = {keep_map, keep_unmap};

/* Frees them all; false: one was written after it was given back, or never was given back. */
static bool logs_ended_well(void)
{
    bool good = true;
    for (unsigned i = 0; i < log_count; i++) {
        good &= logs[i].at_end && memcmp(logs[i].words, logs[i].at_end, logs[i].size) == 0;
        free(logs[i].words);
        free(logs[i].at_end);
    }
    log_count = 0;
    return good;
}

static machine_test *current_test;

static enum greatest_test_res run_and_stop_logging(machine *m)
{
    m->vm_options.log = &kept_logs;
    CHECK_CALL(current_test(m));
    ASSERT_OK(vhost_log_stop(&m->vm));
    CHECK_CALL(machine_frames_flow(m, m->device.state == VHOST_STATE_RUNNING ? 10 : 0));
    PASS();
}

static enum greatest_test_res run_with_kept_logs(machine_test *test)
{
    current_test = test;
    enum greatest_test_res result = machine_run(run_and_stop_logging);
    bool good = logs_ended_well();
    if (result == GREATEST_TEST_RES_PASS) {
        ASSERTm("a log was written to after it was given back", good);
    }
    return result;
}

#define RUN_LOGGED(TEST_NAME)                                                                      \
    do {                                                                                           \
        if (greatest_test_pre(#TEST_NAME) == 1) {                                                  \
            greatest_test_post(run_with_kept_logs(TEST_NAME));                                     \
        }                                                                                          \
    } while (0)

/* ---- taking the log ---- */

/* Into a bitmap that begins a bit before the range, at a page that is no multiple of 64. */
static enum greatest_test_res take_bits(machine *m, uint64_t gpa, uint64_t size,
                                        unsigned char *dirty)
{
    static uint64_t bits[MACHINE_PAGES / 64 + 2];
    uint64_t first = gpa / VHOST_PAGE >= 5 ? gpa / VHOST_PAGE - 5 : 0;
    vhost_log_sink sink = {.bits = bits, .bits_gpa = first * VHOST_PAGE};
    unsigned marked = 0;
    sink.bits_count = (gpa + size) / VHOST_PAGE - first;
    memset(bits, 0, sizeof bits);
    ASSERT_OK(vhost_log_sync(&m->vm, gpa, size, &sink));
    for (uint64_t page = first; page < (gpa + size) / VHOST_PAGE; page++) {
        bool is_dirty = (bits[(page - first) / 64] >> ((page - first) % 64) & 1) != 0;
        ASSERT(!is_dirty || page >= gpa / VHOST_PAGE);
        dirty[page] |= is_dirty;
        marked += is_dirty;
    }
    ASSERT_UINT(marked, sink.pages_dirty);
    PASS();
}

/* ---- what is logged ---- */

TEST what_is_written_is_logged_and_nothing_else(machine *m)
{
    ASSERT_OK(machine_running(m, 1));
    CHECK_CALL(machine_begin_log(m));
    for (unsigned round = 1; round <= 5; round++) {
        CHECK_CALL(machine_frames_flow(m, 7 * round));
        CHECK_CALL(machine_exactly_written(m));
        CHECK_CALL(machine_nothing_is_dirty(m));
    }
    PASS();
}

/* Whether a driver writes to it: its descriptors, available rings, headers and frames. */
static bool is_of_the_driver(const machine *m, uint64_t gpa)
{
    const net_driver *driver = &m->driver[0];
    uint64_t frames = driver->layout.buffers[NET_TRANSMIT];
    for (int i = 0; i < 2; i++) {
        uint64_t ring = driver->ring[i].descriptors_gpa;
        if (gpa >= ring && gpa < ring + 2 * VHOST_PAGE) {
            return true;
        }
    }
    return gpa == driver->layout.header ||
           (gpa >= frames - frames % VHOST_PAGE && gpa < frames + NET_RING_SIZE * NET_BUFFER);
}

/* Not by our books, but by the memory itself. */
TEST every_page_that_changed_is_logged(machine *m)
{
    unsigned char *dirty = machine_no_pages();
    ASSERT_OK(machine_running(m, 1));
    CHECK_CALL(machine_begin_log(m));
    unsigned char *before = malloc(MACHINE_RAM);
    memcpy(before, m->ram, MACHINE_RAM);
    CHECK_CALL(machine_frames_flow(m, MACHINE_BURST));
    ASSERT(machine_settles(m));
    CHECK_CALL(machine_take_log(m, dirty));
    for (uint64_t gpa = 0; gpa < MACHINE_RAM; gpa += VHOST_PAGE) {
        bool changed = memcmp(before + gpa, m->ram + gpa, VHOST_PAGE) != 0;
        bool logged = dirty[gpa / VHOST_PAGE] != 0;
        ASSERT_EQ(changed && !is_of_the_driver(m, gpa), logged);
    }
    free(before);
    ASSERT(machine_count_pages(dirty) > 50);
    machine_forget_written(m);
    PASS();
}

TEST sending_dirties_the_used_ring_alone(machine *m)
{
    unsigned char *dirty = machine_no_pages();
    ASSERT_OK(machine_running(m, 1));
    CHECK_CALL(machine_begin_log(m));
    CHECK_CALL(machine_frames_go_out(m, MACHINE_BURST));
    CHECK_CALL(machine_frames_go_out(m, MACHINE_BURST));
    CHECK_CALL(machine_take_log(m, dirty));
    machine_forget_written(m);
    machine_note_used_ring(m, 1);
    ASSERT_UINT(2, machine_count_pages(m->written));
    return machine_same_pages(m->written, dirty);
}

TEST a_bitmap_says_the_same_as_ranges(machine *m)
{
    const uint64_t middle = 0x5b000; /* among the buffers to receive into */
    ASSERT_OK(machine_running(m, 1));
    CHECK_CALL(machine_begin_log(m));
    for (unsigned round = 0; round < 3; round++) {
        unsigned char *dirty = machine_no_pages();
        CHECK_CALL(machine_frames_flow(m, MACHINE_BURST));
        ASSERT(machine_settles(m));
        CHECK_CALL(take_bits(m, middle, MACHINE_END - middle, dirty));
        ASSERT(machine_count_pages(dirty) < machine_count_pages(m->written));
        CHECK_CALL(take_bits(m, 0, middle, dirty));
        CHECK_CALL(machine_same_pages(m->written, dirty));
        machine_forget_written(m);
        CHECK_CALL(machine_nothing_is_dirty(m));
    }
    PASS();
}

TEST a_log_fd_is_signalled(machine *m)
{
    int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    ASSERT_OK(machine_running(m, 1));
    ASSERT_OK(vhost_kernel_set_log_fd(&m->net, fd));
    CHECK_CALL(machine_begin_log(m));
    ASSERT_FALSE(machine_waits(m, fd, 0));
    CHECK_CALL(machine_frames_come_in(m, 1));
    ASSERT(machine_waits(m, fd, MACHINE_PATIENCE));
    ASSERT_OK(vhost_kernel_set_log_fd(&m->net, -1));
    close(fd);
    PASS();
}

/* ---- memory that comes and goes ---- */

TEST no_page_is_lost_while_memory_comes_and_goes(machine *m)
{
    ASSERT_OK(machine_running(m, 1));
    CHECK_CALL(machine_begin_log(m));
    for (unsigned round = 1; round <= 40; round++) {
        CHECK_CALL(machine_resizes_lose_no_page(m));
        ASSERT_UINT(1 + 2 * round, m->logs); /* larger, and small again */
    }
    PASS();
}

TEST memory_plugged_in_while_logging_is_logged(machine *m)
{
    m->buffers[NET_RECEIVE] = MACHINE_PLUG + 0x700;
    ASSERT_OK(machine_running(m, 1));
    ASSERT_OK(vhost_log_start(&m->vm));
    ASSERT_OK(machine_map(m, true));
    CHECK_CALL(machine_frames_come_in(m, MACHINE_BURST));
    CHECK_CALL(machine_exactly_written(m));
    CHECK_CALL(machine_frames_come_in(m, MACHINE_BURST));
    ASSERT(machine_settles(m));
    ASSERT_OK(vhost_device_stop(&m->device));
    ASSERT_OK(machine_map(m, false)); /* with pages in it that nobody took yet */
    ASSERT_OK(machine_map(m, true));
    machine_note_used_rings(m);
    return machine_exactly_written(m);
}

/* ---- start, stop ---- */

TEST a_stop_leaves_the_used_rings_dirty(machine *m)
{
    ASSERT_OK(machine_running(m, 1));
    CHECK_CALL(machine_begin_log(m));
    ASSERT_OK(vhost_queue_stop(&m->device, 1));
    machine_note_used_ring(m, 1);
    CHECK_CALL(machine_exactly_written(m));
    ASSERT_OK(vhost_queue_start(&m->device, 1));
    CHECK_CALL(machine_frames_flow(m, 10));
    ASSERT_OK(vhost_device_stop(&m->device));
    machine_note_used_rings(m);
    CHECK_CALL(machine_exactly_written(m));
    return machine_nothing_is_dirty(m);
}

TEST what_is_dirty_survives_its_device(machine *m)
{
    ASSERT_OK(machine_running(m, 1));
    CHECK_CALL(machine_begin_log(m));
    CHECK_CALL(machine_frames_flow(m, 50));
    vhost_device_cleanup(&m->device);
    machine_note_used_rings(m);
    CHECK_CALL(machine_exactly_written(m));
    ASSERT_OK(machine_attach(m));
    ASSERT_OK(vhost_device_start(&m->device));
    CHECK_CALL(machine_frames_flow(m, 50));
    return machine_exactly_written(m);
}

/* When it gets its tap, vhost-net writes to the flags of each used ring. */
TEST a_start_while_logging_logs(machine *m)
{
    ASSERT_OK(machine_stopped(m, 1));
    ASSERT_OK(vhost_log_start(&m->vm));
    CHECK_CALL(machine_nothing_is_dirty(m));
    for (unsigned round = 0; round < 5; round++) {
        ASSERT_OK(vhost_device_start(&m->device));
        for (int q = 0; q < 2; q++) {
            machine_note_written(m, m->queue[q].used, 4);
        }
        CHECK_CALL(machine_frames_flow(m, 20));
        CHECK_CALL(machine_exactly_written(m));
        ASSERT_OK(vhost_device_stop(&m->device));
        machine_note_used_rings(m);
        CHECK_CALL(machine_exactly_written(m));
    }
    PASS();
}

/* A stop in mid-traffic: what was written before is in the log after it. */
TEST no_page_is_lost_at_a_stop(machine *m)
{
    ASSERT_OK(machine_running(m, 1));
    CHECK_CALL(machine_begin_log(m));
    for (unsigned round = 0; round < 20; round++) {
        unsigned char *dirty = machine_no_pages();
        CHECK_CALL(machine_guest_posts(m, 60));
        CHECK_CALL(machine_host_posts(m, 20));
        ASSERT_OK(vhost_device_stop(&m->device));
        machine_note_used_rings(m);
        CHECK_CALL(machine_take_log(m, dirty));
        ASSERT_OK(vhost_device_start(&m->device));
        CHECK_CALL(machine_guest_gets(m, 20));
        CHECK_CALL(machine_host_gets(m, 60));
        CHECK_CALL(machine_written_is_dirty(m, dirty));
    }
    PASS();
}

/* ---- on and off ---- */

TEST nothing_is_logged_after_the_end(machine *m)
{
    uint64_t bits[MACHINE_PAGES / 64];
    vhost_log_sink sink = {.bits = bits, .bits_count = MACHINE_PAGES};
    ASSERT_OK(machine_running(m, 1));
    CHECK_CALL(machine_begin_log(m));
    CHECK_CALL(machine_frames_flow(m, 20));
    ASSERT_OK(vhost_log_stop(&m->vm));
    ASSERT_UINT(1, log_count); /* as it was then, says run_with_kept_logs */
    ASSERT(logs[0].at_end);
    ASSERT_INT(-EBUSY, vhost_log_sync(&m->vm, 0, MACHINE_END, &sink));
    CHECK_CALL(machine_frames_flow(m, MACHINE_BURST));
    ASSERT_OK(vhost_device_stop(&m->device));
    ASSERT_OK(vhost_device_start(&m->device));
    CHECK_CALL(machine_frames_flow(m, MACHINE_BURST));
    CHECK_CALL(machine_begin_log(m));
    CHECK_CALL(machine_frames_flow(m, 20));
    return machine_exactly_written(m);
}

TEST on_and_off_200_times_under_traffic(machine *m)
{
    ASSERT_OK(machine_running(m, 1));
    CHECK_CALL(machine_log_switches_lose_no_frame(m, 3));
    unsigned fds = machine_fds();
    long before = machine_resident();
    for (unsigned i = 0; i < 200; i++) {
        CHECK_CALL(machine_log_switches_lose_no_frame(m, 3));
    }
    ASSERT_UINT(fds, machine_fds());
    ASSERT(before > 0 && machine_resident() - before < 64);
    ASSERT_UINT(0, m->errors);
    ASSERT_INT(VHOST_STATE_RUNNING, m->device.state);
    PASS();
}

/* ---- two pairs ---- */

TEST two_pairs_share_one_log(machine *m)
{
    ASSERT_OK(machine_running(m, 2));
    CHECK_CALL(machine_pairs_talk(m, 0, 3));
    ASSERT(machine_settles(m));
    ASSERT_OK(vhost_log_start(&m->vm));
    ASSERT_UINT(1, m->logs);
    machine_forget_written(m);
    for (uint16_t round = 0; round < 5; round++) {
        CHECK_CALL(machine_pairs_talk(m, (uint16_t)(10 * round), 10));
        ASSERT(machine_settles(m));
        for (uint32_t q = 0; q < 4; q++) {
            ASSERT(m->written[m->queue[q].used / VHOST_PAGE]);
        }
        CHECK_CALL(machine_exactly_written(m));
        ASSERT_OK(machine_map(m, round % 2 == 0));
    }
    ASSERT_OK(vhost_device_stop(&m->device));
    machine_note_used_rings(m);
    ASSERT_UINT(8, machine_count_pages(m->written));
    return machine_exactly_written(m);
}

SUITE(what_is_logged)
{
    RUN_LOGGED(what_is_written_is_logged_and_nothing_else);
    RUN_LOGGED(every_page_that_changed_is_logged);
    RUN_LOGGED(sending_dirties_the_used_ring_alone);
    RUN_LOGGED(a_bitmap_says_the_same_as_ranges);
    RUN_LOGGED(a_log_fd_is_signalled);
}

SUITE(memory)
{
    RUN_LOGGED(no_page_is_lost_while_memory_comes_and_goes);
    RUN_LOGGED(memory_plugged_in_while_logging_is_logged);
}

SUITE(start_and_stop)
{
    RUN_LOGGED(a_stop_leaves_the_used_rings_dirty);
    RUN_LOGGED(what_is_dirty_survives_its_device);
    RUN_LOGGED(a_start_while_logging_logs);
    RUN_LOGGED(no_page_is_lost_at_a_stop);
}

SUITE(on_and_off)
{
    RUN_LOGGED(nothing_is_logged_after_the_end);
    RUN_MACHINE(on_and_off_200_times_under_traffic);
}

SUITE(pairs)
{
    RUN_LOGGED(two_pairs_share_one_log);
}

GREATEST_MAIN_DEFS();

int main(int argc, char **argv)
{
    GREATEST_MAIN_BEGIN();
    RUN_SUITE(what_is_logged);
    RUN_SUITE(memory);
    RUN_SUITE(start_and_stop);
    RUN_SUITE(on_and_off);
    RUN_SUITE(pairs);
    GREATEST_MAIN_END();
}
