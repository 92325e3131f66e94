/* The real vhost-net behind a vIOMMU: a device that sees guest memory through a translation of this
   test, which is not the identity, has entries of several sizes, and changes under traffic.

   vm-modules: vhost_net tun */
#define _GNU_SOURCE
#include "net_machine.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#define MIB    UINT64_C(0x100000)
#define WINDOW UINT64_C(0x123400000) /* the first IOVA, far above all memory */
#define HOME   (8 * MIB)             /* from the one place of an entry to its other one */

enum {
    ENTRIES = (int)(2 * MACHINE_PAIR / VHOST_PAGE) /* for two pairs */
};

/* ---- system calls, counted and made to fail ---- */

#define RESET_OWNER          0xaf02ul /* the kernel's numbers, not those of the library */
#define SET_OWNER            0xaf01ul
#define GET_BACKEND_FEATURES 0x8008af26ul
#define MSG_V2               UINT64_C(2)

typedef struct kernel_books {
    bool old;             /* hide that it knows messages of version 2 */
    unsigned long refuse; /* this request, once */
    unsigned owner_resets;
    unsigned messages[3]; /* by version, both ways */
} kernel_books;

static kernel_books books;

static int call_open(const char *path, bool writable, void *user)
{
    int fd = open(path, (writable ? O_RDWR : O_RDONLY) | O_CLOEXEC);
    (void)user;
    return fd < 0 ? -errno : fd;
}

static int call_close(int fd, void *user)
{
    (void)user;
    return close(fd) < 0 ? -errno : 0;
}

static int call_ioctl(int fd, unsigned long request, void *argument, void *user)
{
    (void)user;
    if (request == books.refuse) {
        books.refuse = 0;
        return -ENOMEM;
    }
    int result = ioctl(fd, request, argument);
    books.owner_resets += request == RESET_OWNER && result == 0;
    if (request == GET_BACKEND_FEATURES && books.old) {
        *(uint64_t *)argument &= ~MSG_V2;
    }
    return result < 0 ? -errno : result;
}

static void count_message(const void *bytes, ptrdiff_t size)
{
    uint32_t version = 0;
    memcpy(&version, bytes, sizeof version);
    if (size == 72 && version < 3) {
        books.messages[version]++;
    }
}

static ptrdiff_t call_read(int fd, void *bytes, size_t size, void *user)
{
    ptrdiff_t count = read(fd, bytes, size);
    (void)user;
    if (count > 0) {
        count_message(bytes, count);
    }
    return count < 0 ? -errno : count;
}

static ptrdiff_t call_write(int fd, const void *bytes, size_t size, void *user)
{
    ptrdiff_t count = write(fd, bytes, size);
    (void)user;
    count_message(bytes, count);
    return count < 0 ? -errno : count;
}

static const vhost_kernel_calls calls = {call_open,  call_close, call_ioctl, call_read,
                                         call_write, NULL,       NULL};

/* ---- the vIOMMU ----

   The drivers see IOVAs in `view`, which maps the pages of guest memory that the entries lead to.
   Whatever no entry leads to is zeros, and has to stay so. */

typedef struct iommu {
    uint8_t *view;
    vhost_translation entry[ENTRIES]; /* of the page; size 0: none */
    int watching;
} iommu;

static iommu unit;

static vhost_translation *entry_of(uint64_t iova)
{
    uint64_t page = (iova - WINDOW) / VHOST_PAGE;
    return iova >= WINDOW && page < ENTRIES ? &unit.entry[page] : NULL;
}

static int translate(vhost_device *device, uint64_t iova, bool write, vhost_translation *found,
                     void *user)
{
    const vhost_translation *entry = entry_of(iova);
    uint8_t wanted = write ? VHOST_PERMIT_WRITE : VHOST_PERMIT_READ;
    (void)device;
    (void)user;
    if (!entry || entry->size == 0 || (entry->permit & wanted) == 0) {
        return -EFAULT;
    }
    *found = *entry;
    return 0;
}

static int watch(vhost_device *device, bool on, void *user)
{
    (void)device;
    (void)user;
    unit.watching += on ? 1 : -1;
    return 0;
}

static const vhost_memory_ops behind_iommu = {NULL, NULL, translate, watch};

static uint64_t gpa_of(machine *m, uint64_t iova)
{
    const vhost_translation *entry = entry_of(iova);
    (void)m;
    return entry ? entry->gpa + (iova - entry->iova) : iova;
}

static void enter(const vhost_translation *entry, const vhost_translation *value)
{
    for (uint64_t at = 0; at < entry->size; at += VHOST_PAGE) {
        *entry_of(entry->iova + at) = *value;
    }
}

/* Maps [iova, iova + size) as one entry. */
static void iommu_map(machine *m, uint64_t iova, uint64_t size, uint64_t gpa, uint8_t permit)
{
    vhost_translation entry = {iova, size, gpa, permit};
    enter(&entry, &entry);
    if (mmap(unit.view + iova, (size_t)size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED,
             m->ram_fd, (off_t)gpa) == MAP_FAILED) {
        abort();
    }
}

static struct {
    vhost_translation entry;
    uint8_t contents[MACHINE_PAIR];
} parked; /* what was unmapped last */

/* Takes the entry at `iova` away, and tells the device. What was there is gone. */
static int iommu_unmap(machine *m, uint64_t iova)
{
    static const vhost_translation none = {0, 0, 0, 0};
    parked.entry = *entry_of(iova);
    enter(&parked.entry, &none);
    int result = vhost_device_unmapped(&m->device, parked.entry.iova, parked.entry.size);
    memcpy(parked.contents, m->ram + parked.entry.gpa, (size_t)parked.entry.size);
    memset(m->ram + parked.entry.gpa, 0, (size_t)parked.entry.size);
    return result;
}

/* Maps what was unmapped last again: elsewhere, contents and all. */
static int iommu_restore(machine *m, uint64_t gpa)
{
    const vhost_translation *entry = &parked.entry;
    memcpy(m->ram + gpa, parked.contents, (size_t)entry->size);
    iommu_map(m, entry->iova, entry->size, gpa, entry->permit);
    return 0;
}

/* Moves what is behind the entry at `iova`. */
static int iommu_move(machine *m, uint64_t iova, uint64_t gpa)
{
    int result = iommu_unmap(m, iova);
    return result < 0 ? result : iommu_restore(m, gpa);
}

/* From the one home of a page to the other. */
static int iommu_move_home(machine *m, uint64_t iova)
{
    return iommu_move(m, iova, entry_of(iova)->gpa ^ HOME);
}

/* Single pages, scattered over 6 to 8 MiB; a piece of 256 KiB; and 2 MiB for the second pair. The
   first 2 MiB of memory are for a driver without vIOMMU. */
static void iommu_fill(machine *m)
{
    const uint8_t both = VHOST_PERMIT_READ | VHOST_PERMIT_WRITE;
    for (uint64_t i = 0; i < MACHINE_PAIR / VHOST_PAGE; i++) {
        iommu_map(m, WINDOW + i * VHOST_PAGE, VHOST_PAGE, 6 * MIB + i * 413 % 512 * VHOST_PAGE,
                  both);
    }
    iommu_map(m, WINDOW + 0xc0000, 0x40000, 5 * MIB, both);
    iommu_map(m, WINDOW + MACHINE_PAIR, MACHINE_PAIR, 2 * MIB, both);
}

static int iommu_open(machine *m)
{
    memset(&unit, 0, sizeof unit);
    unit.view = mmap(NULL, WINDOW + ENTRIES * VHOST_PAGE, PROT_NONE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (unit.view == MAP_FAILED) {
        unit.view = NULL;
        return -errno;
    }
    m->view = unit.view;
    m->base = WINDOW;
    m->gpa_of = gpa_of;
    m->logs_whole_buffers = true;
    m->device_options.memory = &behind_iommu;
    m->kernel_options.calls = &calls;
    vhost_features_set(&m->accepted, VHOST_FEATURE_ACCESS_PLATFORM);
    int result = machine_open_memory(m);
    if (result >= 0) {
        iommu_fill(m);
    }
    return result;
}

static bool is_led_to(uint64_t gpa)
{
    for (unsigned i = 0; i < ENTRIES; i++) {
        const vhost_translation *entry = &unit.entry[i];
        if (entry->size != 0 && gpa >= entry->gpa && gpa < entry->gpa + entry->size) {
            return true;
        }
    }
    return false;
}

/* Whatever no entry leads to is untouched. */
static enum greatest_test_res nothing_is_elsewhere(const machine *m)
{
    static const uint8_t zeros[VHOST_PAGE];
    off_t at = (off_t)MACHINE_PAIR;
    while ((at = lseek(m->ram_fd, at, SEEK_DATA)) >= 0) { /* most of it was never touched */
        if (memcmp(m->ram + at, zeros, VHOST_PAGE) != 0 && !is_led_to((uint64_t)at)) {
            printf("page 0x%lx was written\n", (long)at / (long)VHOST_PAGE);
            FAIL();
        }
        at += (off_t)VHOST_PAGE;
    }
    PASS();
}

/* ---- running tests ---- */

static machine_test *current_test;

static enum greatest_test_res run_behind_iommu(machine *m)
{
    ASSERT_OK(iommu_open(m));
    CHECK_CALL(current_test(m));
    vhost_device_cleanup(&m->device);
    ASSERT_INT(0, unit.watching);
    for (int q = 0; q < MACHINE_QUEUES; q++) {
        ASSERT_UINT(0, m->queue_errors[q]);
    }
    return nothing_is_elsewhere(m);
}

static enum greatest_test_res run(machine_test *test, bool old)
{
    memset(&books, 0, sizeof books);
    books.old = old;
    current_test = test;
    enum greatest_test_res result = machine_run(run_behind_iommu);
    if (unit.view) {
        munmap(unit.view, WINDOW + ENTRIES * VHOST_PAGE);
        unit.view = NULL;
    }
    if (result == GREATEST_TEST_RES_PASS) {
        ASSERT_UINT(0, books.messages[old ? 2 : 1]);
    }
    return result;
}

#define RUN_AS(TEST_NAME, OLD)                                                                     \
    do {                                                                                           \
        if (greatest_test_pre(#TEST_NAME) == 1) {                                                  \
            greatest_test_post(run(TEST_NAME, OLD));                                               \
        }                                                                                          \
    } while (0)
#define RUN_IOMMU(TEST_NAME) RUN_AS(TEST_NAME, false)
#define RUN_BOTH_VERSIONS(TEST_NAME)                                                               \
    do {                                                                                           \
        greatest_set_test_suffix("messages_v1");                                                   \
        RUN_AS(TEST_NAME, true);                                                                   \
        greatest_set_test_suffix("messages_v2");                                                   \
        RUN_AS(TEST_NAME, false);                                                                  \
    } while (0)

/* ---- the pages of the first driver ---- */

static uint64_t buffers(const machine *m, int queue)
{
    return m->driver[0].layout.buffers[queue] / VHOST_PAGE * VHOST_PAGE;
}

/* The page of the buffer that is received into next. */
static uint64_t next_page(const machine *m)
{
    const split_ring *ring = &m->driver[0].ring[NET_RECEIVE];
    uint16_t head = ring->available->entries[split_ring_done(ring) % ring->size];
    uint64_t buffer = m->driver[0].layout.buffers[NET_RECEIVE] + ring->tags[head] * NET_BUFFER;
    return buffer / VHOST_PAGE * VHOST_PAGE;
}

/* The page that the next frame is sent from. */
static uint64_t next_page_sent(const machine *m)
{
    const net_driver *driver = &m->driver[0];
    uint64_t buffer = driver->idle[driver->idle_count - 1];
    return (driver->layout.buffers[NET_TRANSMIT] + buffer * NET_BUFFER) / VHOST_PAGE * VHOST_PAGE;
}

/* ---- frames ---- */

TEST frames_find_their_way(machine *m)
{
    ASSERT_OK(machine_running(m, 1));
    ASSERT_INT(1, unit.watching);
    for (int round = 0; round < 3; round++) {
        CHECK_CALL(machine_frames_flow(m, MACHINE_BURST));
    }
    unsigned answered = m->answered;
    ASSERT(answered >= 128); /* one for each page to receive into */
    ASSERT(books.messages[books.old ? 1 : 2] > 2 * answered);
    for (int round = 0; round < 3; round++) {
        CHECK_CALL(machine_frames_flow(m, MACHINE_BURST));
    }
    ASSERT_UINT(answered, m->answered); /* it knows all entries by now */
    ASSERT_UINT(0, m->errors);
    PASS();
}

TEST two_pairs_are_answered_each_on_its_own_fd(machine *m)
{
    ASSERT_OK(machine_running(m, 2));
    CHECK_CALL(machine_pairs_talk(m, 0, 10));
    ASSERT_OK(iommu_move_home(m, WINDOW + MACHINE_PAIR - VHOST_PAGE));
    CHECK_CALL(machine_pairs_talk(m, 10, 10));
    ASSERT_OK(machine_map(m, true));
    ASSERT_OK(machine_map(m, false));
    CHECK_CALL(machine_pairs_talk(m, 20, 10));
    ASSERT_OK(vhost_device_stop(&m->device));
    ASSERT_OK(iommu_move_home(m, WINDOW + MACHINE_PAIR)); /* rings and all of the second pair */
    ASSERT_OK(vhost_device_start(&m->device));
    CHECK_CALL(machine_pairs_talk(m, 30, 10));
    ASSERT_UINT(0, m->errors);
    PASS();
}

TEST stops_and_starts_lose_nothing(machine *m)
{
    ASSERT_OK(machine_running(m, 1));
    CHECK_CALL(machine_frames_flow(m, MACHINE_BURST));
    unsigned fds = machine_fds();
    long before = machine_resident();
    for (int round = 0; round < 100; round++) {
        CHECK_CALL(machine_guest_posts(m, 20));
        CHECK_CALL(machine_host_posts(m, 10));
        ASSERT_OK(vhost_device_stop(&m->device));
        ASSERT_INT(0, unit.watching);
        ASSERT_INT(VHOST_POSITION_CERTAIN, m->queue[1].position.state);
        ASSERT_OK(vhost_device_start(&m->device));
        CHECK_CALL(machine_guest_gets(m, 10));
        CHECK_CALL(machine_host_gets(m, 20));
        ASSERT(machine_settles(m));
    }
    ASSERT_UINT(fds, machine_fds());
    ASSERT(before > 0 && machine_resident() - before < 64);
    PASS();
}

/* ---- entries that go, and come elsewhere ---- */

static enum greatest_test_res pages_move(machine *m, unsigned first, unsigned count)
{
    for (unsigned i = first; i < first + count; i++) {
        uint64_t page = i * 31 % 128 * VHOST_PAGE;
        ASSERT_OK(iommu_move_home(m, buffers(m, NET_RECEIVE) + page));
        ASSERT_OK(iommu_move_home(m, buffers(m, NET_TRANSMIT) + page));
    }
    PASS();
}

TEST pages_move_under_traffic(machine *m)
{
    ASSERT_OK(machine_running(m, 1));
    for (unsigned round = 0; round < 10; round++) {
        CHECK_CALL(machine_guest_posts(m, 60));
        CHECK_CALL(machine_host_posts(m, 30));
        CHECK_CALL(pages_move(m, round * 10, 10));
        CHECK_CALL(machine_guest_gets(m, 10));
        CHECK_CALL(pages_move(m, round * 10 + 5, 10));
        CHECK_CALL(machine_guest_gets(m, 20));
        CHECK_CALL(machine_host_gets(m, 60));
        ASSERT(machine_settles(m));
    }
    ASSERT_UINT(0, m->errors);
    PASS();
}

/* No driver should, but what is not in the translation any more may not come back by itself. */
TEST a_page_of_a_ring_moves_under_way(machine *m)
{
    ASSERT_OK(machine_running(m, 1));
    for (int round = 0; round < 3; round++) {
        CHECK_CALL(machine_frames_flow(m, 10));
        for (int q = 0; q < 2; q++) {
            ASSERT_OK(iommu_move_home(m, m->queue[q].used / VHOST_PAGE * VHOST_PAGE));
        }
        CHECK_CALL(machine_frames_flow(m, 10));
        ASSERT_OK(machine_map(m, true));
        ASSERT_OK(machine_map(m, false)); /* the device forgets all entries */
        CHECK_CALL(machine_frames_flow(m, 10));
        ASSERT_OK(vhost_log_start(&m->vm)); /* and again */
        CHECK_CALL(machine_frames_flow(m, 10));
        CHECK_CALL(nothing_is_elsewhere(m));
        ASSERT_OK(vhost_log_stop(&m->vm));
    }
    ASSERT_UINT(0, m->errors);
    PASS();
}

TEST a_frame_in_an_unmapped_page_is_not_sent(machine *m)
{
    frame made;
    ASSERT_OK(machine_running(m, 1));
    CHECK_CALL(machine_frames_flow(m, MACHINE_BURST));
    uint64_t page = next_page_sent(m);
    machine_outgoing(m, m->sent, &made);
    ASSERT(net_driver_send(&m->driver[0], &made));
    ASSERT_OK(iommu_unmap(m, page));
    net_driver_kick(&m->driver[0]);
    ASSERT_FALSE(machine_host_has_more(m));
    ASSERT(m->unanswered > 0);
    ASSERT_UINT(m->unanswered, m->errors);
    ASSERT_INT(VHOST_WHY_IOTLB_UNMAPPED, m->device.last_error.why);
    CHECK_CALL(machine_frames_come_in(m, MACHINE_BURST)); /* the other ring does not wait */
    ASSERT_FALSE(machine_host_has_more(m));
    ASSERT_OK(iommu_restore(m, parked.entry.gpa ^ HOME));
    machine_kick(m, NET_TRANSMIT);
    CHECK_CALL(machine_host_gets(m, 1));
    ASSERT(machine_settles(m));
    return machine_frames_flow(m, MACHINE_BURST);
}

/* A miss that nobody has looked at. */
TEST a_stop_forgets_what_was_asked(machine *m)
{
    frame made;
    ASSERT_OK(machine_running(m, 1));
    CHECK_CALL(machine_frames_flow(m, MACHINE_BURST));
    machine_outgoing(m, m->sent, &made);
    ASSERT_OK(iommu_unmap(m, next_page_sent(m)));
    parked.entry.permit = VHOST_PERMIT_READ;
    ASSERT_OK(iommu_restore(m, parked.entry.gpa ^ HOME));
    ASSERT(net_driver_send(&m->driver[0], &made));
    net_driver_kick(&m->driver[0]);
    (void)usleep(20000);
    ASSERT_OK(vhost_device_stop(&m->device));
    ASSERT_OK(vhost_device_process(&m->device));
    ASSERT_UINT(0, m->errors);
    ASSERT_OK(vhost_device_start(&m->device));
    return machine_host_gets(m, 1);
}

/* What comes for a page to receive into waits until `mend` has undone what `harm` did to it. */
static enum greatest_test_res receiving_waits(machine *m, int (*harm)(machine *, uint64_t),
                                              int (*mend)(machine *, uint64_t))
{
    uint64_t page = next_page(m), gpa = entry_of(page)->gpa;
    uint16_t done = split_ring_done(&m->driver[0].ring[NET_RECEIVE]);
    ASSERT_OK(harm(m, page));
    CHECK_CALL(machine_host_posts(m, 5));
    ASSERT_FALSE(machine_waits(m, m->driver[0].call[NET_RECEIVE], 20));
    ASSERT_UINT(done, split_ring_done(&m->driver[0].ring[NET_RECEIVE]));
    ASSERT(m->unanswered > 0);
    ASSERT_INT(VHOST_STATE_RUNNING, m->device.state);
    CHECK_CALL(machine_frames_go_out(m, MACHINE_BURST)); /* the other ring does not wait */
    ASSERT_OK(mend(m, gpa));
    machine_kick(m, NET_RECEIVE);
    CHECK_CALL(machine_guest_gets(m, 5));
    return machine_frames_flow(m, MACHINE_BURST);
}

TEST an_unmapped_page_receives_nothing(machine *m)
{
    ASSERT_OK(machine_running(m, 1));
    for (int round = 0; round < 3; round++) {
        CHECK_CALL(machine_frames_flow(m, MACHINE_BURST));
        (void)net_driver_called(&m->driver[0], NET_RECEIVE);
        CHECK_CALL(receiving_waits(m, iommu_unmap, iommu_restore));
    }
    PASS();
}

static int make_read_only(machine *m, uint64_t iova)
{
    vhost_translation entry = *entry_of(iova);
    int result = iommu_move(m, iova, entry.gpa);
    entry.permit = VHOST_PERMIT_READ;
    enter(&entry, &entry);
    return result;
}

TEST a_read_only_page_receives_nothing(machine *m)
{
    ASSERT_OK(machine_running(m, 1));
    CHECK_CALL(machine_frames_flow(m, MACHINE_BURST));
    (void)net_driver_called(&m->driver[0], NET_RECEIVE);
    return receiving_waits(m, make_read_only, iommu_restore);
}

/* ---- memory that comes and goes ---- */

TEST memory_comes_and_goes_under_traffic(machine *m)
{
    ASSERT_OK(machine_running(m, 1));
    for (int round = 0; round < 20; round++) {
        CHECK_CALL(machine_guest_posts(m, 60));
        CHECK_CALL(machine_host_posts(m, 30));
        ASSERT_OK(machine_map(m, true));
        CHECK_CALL(machine_guest_gets(m, 15));
        unsigned before = m->answered;
        ASSERT_OK(machine_map(m, false));
        CHECK_CALL(machine_guest_gets(m, 15));
        CHECK_CALL(machine_host_gets(m, 60));
        ASSERT(machine_settles(m));
        CHECK_CALL(machine_frames_flow(m, 5));
        ASSERT(m->answered > before); /* it had to forget */
    }
    ASSERT_UINT(0, m->errors);
    PASS();
}

/* Puts all pages to receive into where memory comes and goes, or back. */
static enum greatest_test_res receive_in_plug(machine *m, bool plugged)
{
    for (uint64_t i = 0; i < 129; i++) {
        uint64_t iova = buffers(m, NET_RECEIVE) + i * VHOST_PAGE;
        ASSERT_OK(iommu_move(m, iova, (plugged ? MACHINE_PLUG : 12 * MIB) + i * VHOST_PAGE));
    }
    PASS();
}

/* As vhost_memory_commit returns, nobody has it any more. */
static int unplug(machine *m)
{
    int result = machine_map(m, false);
    memset(m->ram + MACHINE_PLUG, 0, MACHINE_PLUG_SIZE);
    return result;
}

TEST memory_that_went_is_out_of_reach(machine *m)
{
    ASSERT_OK(machine_running(m, 1));
    for (int round = 0; round < 3; round++) {
        ASSERT_OK(machine_map(m, true));
        CHECK_CALL(receive_in_plug(m, true));
        CHECK_CALL(machine_frames_flow(m, MACHINE_BURST));
        (void)net_driver_called(&m->driver[0], NET_RECEIVE);
        unsigned unanswered = m->unanswered;
        ASSERT_OK(unplug(m));
        CHECK_CALL(machine_host_posts(m, 5));
        ASSERT_FALSE(machine_waits(m, m->driver[0].call[NET_RECEIVE], 20));
        ASSERT(m->unanswered > unanswered);
        CHECK_CALL(machine_frames_go_out(m, 10));
        CHECK_CALL(receive_in_plug(m, false));
        machine_kick(m, NET_RECEIVE);
        CHECK_CALL(machine_guest_gets(m, 5));
        CHECK_CALL(machine_frames_flow(m, MACHINE_BURST));
        CHECK_CALL(nothing_is_elsewhere(m));
    }
    PASS();
}

/* All pages, those of the rings too, are elsewhere after a stop: nobody is told, for nobody
   watches. Some were in memory that is gone. */
TEST nothing_stale_is_left_at_a_start(machine *m)
{
    ASSERT_OK(machine_running(m, 1));
    for (int round = 0; round < 5; round++) {
        ASSERT_OK(machine_map(m, true));
        CHECK_CALL(receive_in_plug(m, true));
        CHECK_CALL(machine_frames_flow(m, MACHINE_BURST));
        ASSERT_OK(vhost_device_stop(&m->device));
        CHECK_CALL(receive_in_plug(m, false));
        ASSERT_OK(unplug(m));
        for (uint64_t i = 0; i < 0x11; i++) { /* rings and header */
            ASSERT_OK(iommu_move_home(m, WINDOW + i * VHOST_PAGE));
        }
        CHECK_CALL(machine_host_posts(m, 5));
        ASSERT_OK(vhost_device_start(&m->device));
        CHECK_CALL(machine_guest_gets(m, 5));
        CHECK_CALL(machine_frames_flow(m, MACHINE_BURST));
        CHECK_CALL(nothing_is_elsewhere(m));
    }
    ASSERT_UINT(0, m->errors);
    PASS();
}

TEST a_ring_in_memory_that_went_does_not_start(machine *m)
{
    uint64_t used = WINDOW + 0x3000; /* the second page of the used ring of queue 0 */
    ASSERT_OK(machine_stopped(m, 1));
    ASSERT_OK(machine_map(m, true));
    ASSERT_OK(iommu_move(m, used, MACHINE_PLUG + VHOST_PAGE));
    ASSERT_OK(vhost_device_start(&m->device));
    CHECK_CALL(machine_frames_flow(m, 10));
    ASSERT_OK(vhost_device_stop(&m->device));
    ASSERT_OK(machine_map(m, false));
    ASSERT_INT(-EFAULT, vhost_device_start(&m->device));
    ASSERT_INT(VHOST_WHY_IOTLB_UNMAPPED, m->device.last_error.why);
    ASSERT_INT(VHOST_STATE_STOPPED, m->device.state);
    ASSERT_INT(0, unit.watching);
    ASSERT_OK(machine_map(m, true));
    ASSERT_OK(vhost_device_start(&m->device));
    CHECK_CALL(machine_frames_flow(m, 10));
    ASSERT_OK(machine_map(m, false));
    ASSERT_INT(VHOST_STATE_BROKEN, m->device.state);
    ASSERT_INT(0, unit.watching);
    PASS();
}

/* ---- the dirty log ---- */

TEST the_log_has_guest_physical_pages(machine *m)
{
    ASSERT_OK(machine_running(m, 1));
    CHECK_CALL(machine_begin_log(m));
    for (unsigned round = 0; round < 5; round++) {
        CHECK_CALL(machine_frames_flow(m, MACHINE_BURST));
        CHECK_CALL(machine_exactly_written(m));
        CHECK_CALL(pages_move(m, round * 20, 20));
    }
    ASSERT_OK(vhost_device_stop(&m->device));
    machine_note_used_rings(m);
    ASSERT_UINT(4, machine_count_pages(m->written));
    CHECK_CALL(machine_exactly_written(m));
    ASSERT_OK(vhost_device_start(&m->device));
    for (int q = 0; q < 2; q++) {
        machine_note_written(m, m->queue[q].used, 4);
    }
    CHECK_CALL(machine_frames_flow(m, MACHINE_BURST));
    CHECK_CALL(machine_exactly_written(m));
    ASSERT_UINT(0, m->errors);
    PASS();
}

TEST no_page_is_lost_while_memory_comes_and_goes(machine *m)
{
    ASSERT_OK(machine_running(m, 1));
    CHECK_CALL(machine_begin_log(m));
    for (unsigned round = 0; round < 10; round++) {
        CHECK_CALL(machine_resizes_lose_no_page(m));
    }
    ASSERT(m->logs >= 21);
    PASS();
}

TEST the_log_is_switched_on_and_off_under_traffic(machine *m)
{
    ASSERT_OK(machine_running(m, 1));
    for (unsigned round = 0; round < 50; round++) {
        CHECK_CALL(machine_log_switches_lose_no_frame(m, 5));
    }
    ASSERT_UINT(0, m->errors);
    CHECK_CALL(machine_begin_log(m));
    CHECK_CALL(machine_frames_flow(m, MACHINE_BURST));
    return machine_exactly_written(m);
}

/* ---- a driver that gives ACCESS_PLATFORM back ---- */

/* The guest boots something else: with a vIOMMU, or without. */
static int reboot(machine *m, bool with)
{
    int result = vhost_device_stop(&m->device);
    if (result >= 0) {
        result = vhost_device_reset(&m->device);
    }
    if (with) {
        vhost_features_set(&m->accepted, VHOST_FEATURE_ACCESS_PLATFORM);
    } else {
        vhost_features_clear(&m->accepted, VHOST_FEATURE_ACCESS_PLATFORM);
    }
    if (result >= 0) {
        result = vhost_device_ack(&m->device, m->accepted);
    }
    machine_close_drivers(m);
    m->view = with ? unit.view : m->ram;
    m->base = with ? WINDOW : 0;
    return result < 0 ? result : machine_open_drivers(m);
}

static enum greatest_test_res boots_in_turn(machine *m)
{
    ASSERT_OK(machine_running(m, 1));
    CHECK_CALL(machine_frames_flow(m, 10));
    unsigned fds = machine_fds();
    for (unsigned round = 1; round <= 20; round++) {
        for (int with = 0; with < 2; with++) {
            ASSERT_OK(reboot(m, with));
            ASSERT_OK(vhost_device_start(&m->device));
            ASSERT_INT(with, unit.watching);
            unsigned answered = m->answered;
            CHECK_CALL(machine_frames_flow(m, 10));
            ASSERT_EQ(with == 1, m->answered > answered);
        }
        ASSERT_UINT(round, books.owner_resets);
    }
    ASSERT_UINT(fds, machine_fds());
    ASSERT_UINT(0, m->errors);
    PASS();
}

TEST access_platform_is_given_back_20_times(machine *m)
{
    return boots_in_turn(m);
}

TEST access_platform_is_given_back_with_a_passed_fd(machine *m)
{
    m->pass_fds = true;
    return boots_in_turn(m);
}

/* The kernel takes the owner's place away, and does not give it back at once. */
TEST giving_access_platform_back_can_be_tried_again(machine *m)
{
    ASSERT_OK(machine_running(m, 1));
    CHECK_CALL(machine_frames_flow(m, 10));
    for (int round = 0; round < 3; round++) {
        ASSERT_OK(reboot(m, false));
        books.refuse = SET_OWNER;
        ASSERT_INT(-ENOMEM, vhost_device_start(&m->device));
        ASSERT_INT(VHOST_STATE_STOPPED, m->device.state);
        ASSERT_OK(vhost_device_start(&m->device));
        CHECK_CALL(machine_frames_flow(m, 10));
        ASSERT_OK(reboot(m, true));
        ASSERT_OK(vhost_device_start(&m->device));
        CHECK_CALL(machine_frames_flow(m, 10));
    }
    PASS();
}

SUITE(frames)
{
    RUN_BOTH_VERSIONS(frames_find_their_way);
    RUN_IOMMU(two_pairs_are_answered_each_on_its_own_fd);
    RUN_IOMMU(stops_and_starts_lose_nothing);
}

SUITE(entries)
{
    RUN_BOTH_VERSIONS(pages_move_under_traffic);
    RUN_IOMMU(a_page_of_a_ring_moves_under_way);
    RUN_IOMMU(a_stop_forgets_what_was_asked);
    RUN_BOTH_VERSIONS(a_frame_in_an_unmapped_page_is_not_sent);
    RUN_IOMMU(an_unmapped_page_receives_nothing);
    RUN_IOMMU(a_read_only_page_receives_nothing);
}

SUITE(memory)
{
    RUN_IOMMU(memory_comes_and_goes_under_traffic);
    RUN_BOTH_VERSIONS(memory_that_went_is_out_of_reach);
    RUN_IOMMU(nothing_stale_is_left_at_a_start);
    RUN_IOMMU(a_ring_in_memory_that_went_does_not_start);
}

SUITE(dirty_log)
{
    RUN_IOMMU(the_log_has_guest_physical_pages);
    RUN_IOMMU(no_page_is_lost_while_memory_comes_and_goes);
    RUN_IOMMU(the_log_is_switched_on_and_off_under_traffic);
}

SUITE(access_platform)
{
    RUN_IOMMU(access_platform_is_given_back_20_times);
    RUN_IOMMU(access_platform_is_given_back_with_a_passed_fd);
    RUN_IOMMU(giving_access_platform_back_can_be_tried_again);
}

GREATEST_MAIN_DEFS();

int main(int argc, char **argv)
{
    GREATEST_MAIN_BEGIN();
    RUN_SUITE(frames);
    RUN_SUITE(entries);
    RUN_SUITE(memory);
    RUN_SUITE(dirty_log);
    RUN_SUITE(access_platform);
    GREATEST_MAIN_END();
}
