/* Postcopy with real back-ends: a device starts where its memory is not yet, rings and all, and
   each page comes when somebody touches it. DPDK's testpmd can do all of it, and QEMU's storage
   daemon 7.2 nearly all.

   backends: blk net */
#define _GNU_SOURCE
#include "blk_work.h"
#include "clock.h"
#include "examples/migrate/page_faults.h"
#include "net_driver.h"
#include "user_machine.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define KIB    UINT64_C(1024)
#define MIB    (1024 * KIB)
#define LOWER  (4 * MIB) /* that the device has at first */
#define MEMORY (6 * MIB)
#define PART   ((size_t)BLK_DEPTH * BLK_BUFFER) /* of the disk: a request of each slot of a queue */
#define DISK   (2 * PART)
#define NOBODY UINT64_MAX /* wants a page: the sender ends */

enum {
    WRITES = 0, /* queues of the disk, by what they have in flight */
    READS = 1,
    FRAMES = 64,
    TIME_LIMIT = 60 /* seconds for a test: who waits for a page waits for ever */
};

/* ---- the source, which has all of memory ---- */

typedef struct way { /* from there to here */
    guest_ram ram;
    vhost_backing backing;
    page_faults faults;
    uint8_t *source; /* memory, as it was there */
    pthread_t sender;
    int asks[2];      /* a pipe: gpas of pages that are wanted */
    int peer;         /* userfaultfd of the device */
    unsigned regions; /* that it told of */
    bool travels;

    pthread_mutex_t lock;           /* of the rest */
    bool (*withheld)(uint64_t gpa); /* such pages are not sent when they are wanted; or NULL */
    unsigned missed;                /* so often were they wanted */
    pid_t victim;                   /* killed when a page is wanted; or 0 */
    int late;                       /* ms that the next page takes */
} way;

static way w;

static void want(uint64_t gpa, void *user)
{
    (void)user;
    pthread_mutex_lock(&w.lock);
    if (w.victim != 0) {
        kill(w.victim, SIGKILL);
    }
    w.victim = 0;
    pthread_mutex_unlock(&w.lock);
    (void)!write(w.asks[1], &gpa, sizeof gpa);
}

static void withhold(bool (*which)(uint64_t gpa))
{
    pthread_mutex_lock(&w.lock);
    w.withheld = which;
    pthread_mutex_unlock(&w.lock);
}

static void kill_at_next_page(pid_t pid)
{
    pthread_mutex_lock(&w.lock);
    w.victim = pid;
    pthread_mutex_unlock(&w.lock);
}

static unsigned missed(void)
{
    pthread_mutex_lock(&w.lock);
    unsigned count = w.missed;
    pthread_mutex_unlock(&w.lock);
    return count;
}

static bool is_withheld(uint64_t gpa)
{
    pthread_mutex_lock(&w.lock);
    bool is = w.withheld != NULL && w.withheld(gpa);
    w.missed += is;
    pthread_mutex_unlock(&w.lock);
    return is;
}

/* Milliseconds: for one page only. */
static int lateness(void)
{
    pthread_mutex_lock(&w.lock);
    int late = w.late;
    w.late = 0;
    pthread_mutex_unlock(&w.lock);
    return late;
}

static int send_page(uint64_t gpa)
{
    return page_faults_place(&w.faults, gpa, w.source + gpa);
}

static void *send_wanted(void *unused)
{
    uint64_t gpa = 0;
    while (read(w.asks[0], &gpa, sizeof gpa) == sizeof gpa && gpa != NOBODY) {
        poll(NULL, 0, lateness());
        if (!is_withheld(gpa)) {
            (void)send_page(gpa);
        }
    }
    return unused;
}

/* What memory is now is left behind, and nothing of it is here. */
static enum greatest_test_res leaves(void)
{
    w.source = malloc(MEMORY);
    memcpy(w.source, w.ram.host, MEMORY);
    w.faults.want = want;
    ASSERT_INT(0, page_faults_open(&w.faults, &w.ram));
    ASSERT_INT(0, page_faults_discard(&w.faults, 0, MEMORY));
    ASSERT_INT(0, pipe2(w.asks, O_CLOEXEC));
    ASSERT_INT(0, pthread_create(&w.sender, NULL, send_wanted, NULL));
    w.travels = true;
    PASS();
}

/* All that has not come yet; and once more what has, to no effect. */
static enum greatest_test_res all_arrives(void)
{
    for (uint64_t gpa = 0; gpa < MEMORY; gpa += GUEST_RAM_PAGE) {
        ASSERT_OK(send_page(gpa));
    }
    PASS();
}

static int open_memory(void)
{
    memset(&w, 0, sizeof w);
    pthread_mutex_init(&w.lock, NULL);
    int result = guest_ram_open(&w.ram, MEMORY);
    vhost_backing_init(&w.backing, w.ram.host, MEMORY, w.ram.fd, 0);
    return result;
}

static void close_memory(void)
{
    uint64_t nobody = NOBODY;
    if (w.travels) {
        (void)!write(w.asks[1], &nobody, sizeof nobody);
        pthread_join(w.sender, NULL);
        close(w.asks[0]);
        close(w.asks[1]);
    }
    page_faults_close(&w.faults);
    guest_ram_close(&w.ram);
    pthread_mutex_destroy(&w.lock);
    free(w.source);
}

/* ---- the device, before its memory ---- */

static int add_memory(user_machine *m, uint64_t gpa, uint64_t size)
{
    vhost_section section;
    vhost_section_init(&section, gpa, size, &w.backing, gpa);
    section.flags = VHOST_SECTION_UNMERGEABLE;
    return vhost_memory_add(&m->vm, &section);
}

static enum greatest_test_res given(user_machine *m, uint64_t size)
{
    ASSERT_OK(vhost_memory_begin(&m->vm));
    ASSERT_OK(add_memory(m, 0, LOWER));
    if (size > LOWER) {
        ASSERT_OK(add_memory(m, LOWER, size - LOWER));
    }
    ASSERT_OK(vhost_memory_commit(&m->vm));
    PASS();
}

static int on_region(vhost_user *self, uint64_t gpa, uint64_t size, uint64_t base, void *user)
{
    (void)self;
    (void)user;
    w.regions += page_faults_add_region(&w.faults, w.peer, gpa, size, base) == 0;
    return 0;
}

/* ---- the storage daemon 7.2, which does not say where it has memory ---- */

/* Its answer is what it was sent, and so it is refused. It can do the rest: so we look where it has
   its new mapping, which it may not touch yet, and put that into its answer. */
static uint64_t find_mapping(pid_t pid, uint64_t offset)
{
    char line[256], path[32];
    uint64_t base = 0, at = 0, found = 0;
    snprintf(path, sizeof path, "/proc/%d/maps", (int)pid);
    FILE *maps = fopen(path, "r");
    while (maps != NULL && found == 0 && fgets(line, sizeof line, maps) != NULL) {
        bool is_new = strstr(line, "/memfd:guest") != NULL && strstr(line, " ---s ") != NULL &&
                      sscanf(line, "%" SCNx64 "-%*x %*s %" SCNx64, &base, &at) == 2;
        found = is_new && at == offset ? base : 0;
    }
    if (maps != NULL) {
        fclose(maps);
    }
    return found;
}

static void mend_table(uint8_t *payload, uint32_t size, pid_t pid)
{
    for (uint32_t at = 8; at + 32 <= size; at += 32) {
        uint64_t gpa, base;
        memcpy(&gpa, payload + at, sizeof gpa);
        memcpy(&base, payload + at + 16, sizeof base);
        base = base != gpa ? base : find_mapping(pid, gpa);
        memcpy(payload + at + 16, &base, sizeof base);
    }
}

static vhost_user_calls usual_calls;
static ptrdiff_t payload; /* bytes to come of the answer that has begun */

static bool is_table(const uint8_t *header, uint32_t size)
{
    return header[0] == 5 && header[4] == 5 && size >= 8 + 32;
}

/* It sends each header, 12 bytes, and each payload as a whole. */
static void mend(uint8_t *bytes, ptrdiff_t count, pid_t pid)
{
    static bool table;
    for (ptrdiff_t at = 0; at < count;) {
        if (payload > 0 && table) {
            mend_table(bytes + at, (uint32_t)payload, pid);
        }
        at += payload;
        payload = 0;
        if (at < count) {
            uint32_t size;
            memcpy(&size, bytes + at + 8, sizeof size);
            table = is_table(bytes + at, size);
            payload = size;
            at += 12;
        }
    }
}

static ptrdiff_t receive_mended(int fd, void *bytes, size_t size, int *fds, uint32_t *fd_count,
                                void *user)
{
    const user_machine *m = user;
    ptrdiff_t count = usual_calls.receive(fd, bytes, size, fds, fd_count, user);
    if (count > 0 && fd == m->link.main.fd) {
        mend(bytes, count, m->peer.pid);
    }
    return count;
}

static const vhost_user_calls *mended_calls(void)
{
    static vhost_user_calls calls;
    vhost_user probe;
    (void)vhost_user_connect(&probe, "nowhere", NULL); /* only to see the usual ones */
    usual_calls = calls = *probe.options.calls;
    vhost_user_close(&probe);
    calls.receive = receive_mended;
    payload = 0;
    return &calls;
}

/* ---- a disk: half of it is being written, the other half read ---- */

static blk_driver disk;
static uint8_t image[DISK], *file; /* what shall be on it; what is on it */

static bool make_file(const user_machine *m)
{
    char path[64];
    snprintf(path, sizeof path, "%s/disk.raw", m->peer.folder);
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0 || ftruncate(fd, (off_t)DISK) != 0) {
        return false;
    }
    file = mmap(NULL, DISK, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    return file != MAP_FAILED;
}

static void submit(int queue, blk_verb verb, unsigned slot)
{
    blk_request *request = blk_driver_idle(&disk, queue);
    size_t place = (size_t)queue * PART + (size_t)slot * BLK_BUFFER;
    request->verb = verb;
    request->sector = place / BLK_SECTOR;
    request->size = BLK_BUFFER;
    if (verb == BLK_WRITE) {
        memcpy(request->data, image + place, BLK_BUFFER);
    }
    blk_driver_submit(&disk, queue, request);
}

static bool open_disk(user_machine *m)
{
    blk_work_pattern(image, DISK);
    if (!make_file(m) || blk_driver_open(&disk, w.ram.host, 0, 2) != 0) {
        return false;
    }
    memcpy(file + PART, image + PART, PART);
    for (unsigned i = 0; i < BLK_DEPTH; i++) {
        submit(WRITES, BLK_WRITE, i);
        submit(READS, BLK_READ, i);
    }
    return true;
}

static void close_disk(void)
{
    blk_driver_close(&disk);
    memset(&disk, 0, sizeof disk);
    if (file != NULL && file != MAP_FAILED) {
        munmap(file, DISK);
    }
    file = NULL;
}

static const char *take_requests(void)
{
    for (int i = 0; i < disk.count; i++) {
        while (blk_driver_collect(&disk, i) != NULL) {
        }
    }
    return disk.fault;
}

static bool is_disk_data(uint64_t gpa)
{
    return gpa % BLK_QUEUE_BYTES >= BLK_QUEUE_BYTES - PART;
}

static bool disk_is_idle(void)
{
    return disk.queues[WRITES].in_flight == 0 && disk.queues[READS].in_flight == 0;
}

/* What was on the way on arrival, byte by byte. */
static bool disk_is_right(void)
{
    const uint8_t *read = w.ram.view + BLK_QUEUE_BYTES + (BLK_QUEUE_BYTES - PART);
    return memcmp(file, image, DISK) == 0 && memcmp(read, image + PART, PART) == 0;
}

static enum greatest_test_res do_all(user_machine *m, blk_task task)
{
    blk_work work = {.driver = &disk, .size = DISK};
    blk_job job = {task, image, BLK_BUFFER, 2, 0, BLK_DEPTH, 0};
    double end = clock_now() + USER_PATIENCE / 1e3;
    blk_work_begin(&work, &job);
    while (blk_work_feed(&work)) {
        blk_driver_kick(&disk);
        user_machine_turn(m, 10);
        blk_work_take(&work, WRITES);
        blk_work_take(&work, READS);
        ASSERT_EQm(disk.fault, NULL, disk.fault);
        ASSERTm("a request was lost", clock_now() < end);
    }
    PASS();
}

static enum greatest_test_res disk_works(user_machine *m)
{
    blk_work_pattern(image, DISK);
    CHECK_CALL(do_all(m, BLK_PUT));
    ASSERT_EQ(0, memcmp(file, image, DISK));
    return do_all(m, BLK_COMPARE);
}

static const split_ring *ring_of_disk(unsigned index, int *kick, int *call)
{
    *kick = disk.queues[index].kick;
    *call = disk.queues[index].call;
    return &disk.queues[index].ring;
}

/* ---- a network card: frames are on their way ---- */

static net_driver card;
static uint32_t sent, returned, lost; /* numbered frames */

static const station guest = {{2, 0, 0, 0, 0, 1}, {10, 0, 0, 1}};
static const station other = {{2, 0, 0, 0, 0, 99}, {10, 0, 0, 99}};

static void send_frame(void)
{
    frame next;
    frame_numbered(&next, &guest, &other, sent + 1, 60 + sent * 37 % (FRAME_MAX - 59));
    sent += net_driver_send(&card, &next);
}

static bool open_card(user_machine *m)
{
    static const net_layout layout = {{0, 64 * KIB}, {512 * KIB, 1024 * KIB}, 128 * KIB};
    (void)m;
    sent = returned = lost = 0;
    if (net_driver_open(&card, w.ram.host, &layout) != 0) {
        return false;
    }
    while (sent < FRAMES) {
        send_frame();
    }
    return true;
}

static void close_card(void)
{
    net_driver_close(&card);
    memset(&card, 0, sizeof card);
}

/* Its MAC addresses swapped, and nothing else. */
static bool is_echo(const frame *got, uint32_t number)
{
    frame expected;
    frame_numbered(&expected, &other, &guest, number, 60 + (number - 1) * 37 % (FRAME_MAX - 59));
    return frame_equal(got, &expected);
}

/* In the order in which they were sent; frames get lost when the card is stopped. */
static const char *take_frames(void)
{
    frame got;
    uint32_t number = 0;
    while (net_driver_receive(&card, &got)) {
        if (!frame_number(&got, &number) || number <= returned || !is_echo(&got, number)) {
            return "a frame came back damaged, or out of order";
        }
        lost += number - returned - 1;
        returned = number;
    }
    net_driver_reclaim(&card);
    return card.fault;
}

static bool is_card_data(uint64_t gpa)
{
    return gpa >= card.layout.buffers[NET_RECEIVE];
}

static bool card_is_idle(void)
{
    return returned == sent;
}

static bool card_is_right(void)
{
    return lost == 0; /* and each was compared as it came */
}

static enum greatest_test_res card_works(user_machine *m)
{
    double end = clock_now() + USER_PATIENCE / 1e3;
    for (uint32_t last = sent + 3 * NET_RING_SIZE; returned < last;) {
        while (card.idle_count > NET_RING_SIZE - FRAMES) {
            send_frame();
        }
        net_driver_kick(&card);
        user_machine_turn(m, 10);
        const char *fault = take_frames();
        ASSERT_EQm(fault, NULL, fault);
        ASSERTm("a frame was lost", clock_now() < end);
    }
    PASS();
}

static const split_ring *ring_of_card(unsigned index, int *kick, int *call)
{
    *kick = card.kick[index];
    *call = card.call[index];
    return &card.ring[index];
}

/* ---- both alike ---- */

typedef struct device_kind {
    const char *backend, *options;
    uint64_t avoid; /* protocol features */
    bool is_mended;
    bool pairs;      /* its number of queues is one of pairs */
    bool is_patient; /* it can be stopped, and be given memory, while it waits for a page */
    bool (*is_data)(uint64_t gpa);
    bool (*open)(user_machine *m);
    void (*close)(void);
    const char *(*take)(void); /* what is back; a fault, or NULL */
    bool (*is_idle)(void);
    bool (*is_right)(void);
    enum greatest_test_res (*works)(user_machine *m);
    const split_ring *(*ring)(unsigned index, int *kick, int *call);
} device_kind;

#define NO_SLOTS (UINT64_C(1) << VHOST_USER_BIT_SLOTS)

/* The storage daemon 7.2 does not wait, in a stop, for requests that wait for a page; and between a
   new memory table and the next message it goes on with its rings, in memory that it may not touch.
   Either is its death. */
static const device_kind disk_kind = {
    .avoid = NO_SLOTS,
    .is_mended = true,
    .backend = "blk",
    .options = "queues=2",
    .is_data = is_disk_data,
    .open = open_disk,
    .close = close_disk,
    .take = take_requests,
    .is_idle = disk_is_idle,
    .is_right = disk_is_right,
    .works = disk_works,
    .ring = ring_of_disk,
};

static const device_kind card_kind = {
    .backend = "net",
    .options = "postcopy=1",
    .pairs = true,
    .is_patient = true,
    .is_data = is_card_data,
    .open = open_card,
    .close = close_card,
    .take = take_frames,
    .is_idle = card_is_idle,
    .is_right = card_is_right,
    .works = card_works,
    .ring = ring_of_card,
};

static const device_kind *kind;

static void fill_queues(user_machine *m)
{
    for (unsigned i = 0; i < 2; i++) {
        vhost_queue *queue = &m->queue[i];
        const split_ring *ring = kind->ring(i, &queue->kick_fd, &queue->call_fd);
        queue->ready = true;
        queue->size = ring->size;
        queue->desc = ring->descriptors_gpa;
        queue->avail = ring->available_gpa;
        queue->used = ring->used_gpa;
    }
}

/* Without a look at the rings. */
static void kick(const user_machine *m)
{
    uint64_t one = 1;
    for (unsigned i = 0; i < 2; i++) {
        (void)!write(m->queue[i].kick_fd, &one, sizeof one);
    }
}

static enum greatest_test_res all_comes_back(user_machine *m)
{
    double end = clock_now() + USER_PATIENCE / 1e3;
    while (!kind->is_idle()) {
        user_machine_turn(m, 10);
        const char *fault = kind->take();
        ASSERT_EQm(fault, NULL, fault);
        ASSERTm("it was lost on the way", clock_now() < end);
    }
    PASS();
}

static enum greatest_test_res attached(user_machine *m)
{
    m->user_options.want = UINT64_C(1) << VHOST_USER_BIT_PAGEFAULT;
    m->user_options.avoid = kind->avoid;
    m->user_options.calls = kind->is_mended ? mended_calls() : NULL;
    m->user_options.on_postcopy_region = on_region;
    m->user_options.counts_pairs = kind->pairs;
    ASSERT_OK(user_machine_attach(m, 2));
    ASSERT(m->link.protocol >> VHOST_USER_BIT_PAGEFAULT & 1);
    PASS();
}

static enum greatest_test_res listens(user_machine *m)
{
    ASSERT_OK(vhost_user_postcopy_advise(&m->link, &w.peer));
    ASSERT_INT(0, page_faults_add_peer(&w.faults, w.peer));
    ASSERT_OK(vhost_user_postcopy_listen(&m->link));
    PASS();
}

/* Nothing of its memory is here, and much is to be done. */
static enum greatest_test_res arrives(user_machine *m)
{
    ASSERT(kind->open(m));
    CHECK_CALL(leaves());
    ASSERT(real_backend_start(&m->peer, kind->backend, kind->options));
    CHECK_CALL(given(m, LOWER));
    CHECK_CALL(attached(m));
    CHECK_CALL(listens(m));
    fill_queues(m);
    PASS();
}

static user_machine_test *current_test;

static enum greatest_test_res run_with_memory(user_machine *m)
{
    enum greatest_test_res result = open_memory() == 0 ? current_test(m) : GREATEST_TEST_RES_FAIL;
    user_machine_detach(m); /* before its fds are closed */
    kind->close();
    vhost_memory_begin(&m->vm); /* before its memory is gone */
    vhost_memory_commit(&m->vm);
    close_memory();
    return result;
}

static enum greatest_test_res run_arrival(user_machine_test *test)
{
    current_test = test;
    alarm(TIME_LIMIT);
    enum greatest_test_res result = user_machine_run(run_with_memory);
    alarm(0);
    return result;
}

#define RUN_ARRIVAL(TEST_NAME)                                                                     \
    do {                                                                                           \
        if (greatest_test_pre(#TEST_NAME) == 1) {                                                  \
            greatest_test_post(run_arrival(TEST_NAME));                                            \
        }                                                                                          \
    } while (0)

/* ---- without a device ---- */

/* Each page is another one. */
static void fill_memory(void)
{
    for (uint64_t gpa = 0; gpa < MEMORY; gpa += sizeof gpa) {
        memcpy(w.ram.host + gpa, &gpa, sizeof gpa);
    }
}

static bool is_page(const uint8_t *page, uint64_t gpa)
{
    uint64_t first, last;
    memcpy(&first, page, sizeof first);
    memcpy(&last, page + GUEST_RAM_PAGE - sizeof last, sizeof last);
    return first == gpa && last == gpa + GUEST_RAM_PAGE - sizeof last;
}

/* The kernel reads a page, and writes a part of another. */
static enum greatest_test_res pages_come_to_the_kernel(uint64_t from, uint64_t to)
{
    uint8_t page[GUEST_RAM_PAGE];
    int ends[2];
    ASSERT_INT(0, pipe2(ends, O_CLOEXEC));
    ASSERT_INT(sizeof page, (int)write(ends[1], w.ram.view + from, sizeof page));
    ASSERT_INT(sizeof page, (int)read(ends[0], page, sizeof page));
    ASSERT(is_page(page, from));
    ASSERT_INT(8, (int)write(ends[1], "written.", 8));
    ASSERT_INT(8, (int)read(ends[0], w.ram.host + to + 8, 8));
    ASSERT(is_page(w.ram.view + to, to));
    ASSERT_EQ(0, memcmp(w.ram.view + to + 8, "written.", 8));
    close(ends[0]);
    close(ends[1]);
    PASS();
}

TEST pages_come_to_whoever_touches_them(user_machine *m)
{
    (void)m;
    fill_memory();
    CHECK_CALL(leaves());
    ASSERT(is_page(w.ram.host, 0));
    ASSERT(is_page(w.ram.view + MIB, MIB));
    CHECK_CALL(pages_come_to_the_kernel(2 * MIB, 3 * MIB));
    ASSERT_UINT(4, w.faults.faults);
    ASSERT_UINT(0, w.faults.theirs);
    CHECK_CALL(all_arrives());
    CHECK_CALL(all_arrives());
    ASSERT_EQ(0, memcmp(w.ram.view + 3 * MIB + 8, "written.", 8));
    memcpy(w.ram.host + 3 * MIB + 8, w.source + 3 * MIB + 8, 8);
    ASSERT_EQ(0, memcmp(w.ram.view, w.source, MEMORY));
    ASSERT_UINT(4, w.faults.faults);
    PASS();
}

/* A back-end that does not wait makes an absent page one of zeros, for all. */
TEST who_does_not_wait_for_a_page_is_found_out(user_machine *m)
{
    (void)m;
    fill_memory();
    CHECK_CALL(leaves());
    uint8_t *unwatched = mmap(NULL, GUEST_RAM_PAGE, PROT_READ, MAP_SHARED, w.ram.fd, (off_t)MIB);
    ASSERT(unwatched != MAP_FAILED);
    ASSERT_INT(0, unwatched[8]);
    int result = send_page(MIB);
    ASSERT_INT(-EEXIST, result);
    munmap(unwatched, GUEST_RAM_PAGE);
    PASS();
}

static unsigned noticed(uint64_t bits[MEMORY / GUEST_RAM_PAGE / 64])
{
    memset(bits, 0, MEMORY / GUEST_RAM_PAGE / 8);
    return (unsigned)guest_ram_sync(&w.ram, 0, MEMORY, bits);
}

TEST what_the_guest_writes_is_noticed(user_machine *m)
{
    uint64_t bits[MEMORY / GUEST_RAM_PAGE / 64];
    (void)m;
    w.ram.view[0] = 1;
    ASSERT_INT(0, guest_ram_track(&w.ram, true));
    ASSERT_UINT(0, noticed(bits));
    ASSERT_INT(1, w.ram.view[0]);
    w.ram.host[GUEST_RAM_PAGE] = 1; /* that is not the guest */
    w.ram.view[2 * GUEST_RAM_PAGE] = 1;
    w.ram.view[3 * GUEST_RAM_PAGE - 1] = 1;
    w.ram.view[MEMORY - 1] = 1;
    ASSERT_UINT(2, noticed(bits));
    ASSERT_UINT(4, (unsigned)bits[0]);
    ASSERT(bits[MEMORY / GUEST_RAM_PAGE / 64 - 1] == UINT64_C(1) << 63);
    ASSERT_UINT(0, noticed(bits));
    w.ram.view[2 * GUEST_RAM_PAGE] = 2;
    ASSERT_INT(0, guest_ram_track(&w.ram, false));
    w.ram.view[0] = 2;
    ASSERT_UINT(1, noticed(bits)); /* of the time before */
    PASS();
}

/* ---- all goes well ---- */

/* Postcopy is over, and the device is one like any other. */
static enum greatest_test_res ends(user_machine *m)
{
    CHECK_CALL(all_arrives());
    ASSERT_OK(vhost_user_postcopy_end(&m->link));
    page_faults_remove_peer(&w.faults, w.peer);
    CHECK_CALL(kind->works(m));
    ASSERT_OK(vhost_device_stop(&m->device));
    ASSERT_OK(vhost_device_start(&m->device));
    CHECK_CALL(kind->works(m));
    ASSERT_UINT(0, m->broken);
    PASS();
}

TEST it_starts_before_its_memory_is_here(user_machine *m)
{
    CHECK_CALL(arrives(m));
    double start = clock_now();
    ASSERT_OK(vhost_device_start(&m->device));
    double started = clock_now();
    ASSERT_UINT(1, w.regions);
    kick(m);
    CHECK_CALL(all_comes_back(m));
    double end = clock_now();
    ASSERT(w.faults.theirs > 0);
    ASSERT(kind->is_right());
    printf("%s: started in %.1f ms, done in %.1f ms; pages it waited for: %u\n", kind->backend,
           (started - start) * 1e3, (end - started) * 1e3, (unsigned)w.faults.theirs);
    CHECK_CALL(all_arrives()); /* and that of what was written since is no longer of use */
    ASSERT(kind->is_right());
    CHECK_CALL(ends(m));
    CHECK_CALL(given(m, MEMORY));
    CHECK_CALL(kind->works(m));
    ASSERT_UINT(1, w.regions); /* told in postcopy only */
    PASS();
}

/* What it has not done yet it does the next time, but for frames that are lost. */
TEST it_stops_and_starts_while_pages_come(user_machine *m)
{
    CHECK_CALL(arrives(m));
    for (int i = 0; i < 5; i++) {
        ASSERT_OK(vhost_device_start(&m->device));
        kick(m);
        if (!kind->is_patient) {
            CHECK_CALL(all_comes_back(m));
        }
        ASSERT_OK(vhost_device_stop(&m->device));
        ASSERT_INT(VHOST_POSITION_CERTAIN, m->queue[0].position.state);
        ASSERT_INT(VHOST_POSITION_CERTAIN, m->queue[1].position.state);
    }
    ASSERT_OK(vhost_device_start(&m->device));
    kick(m);
    return ends(m);
}

/* The back-end says again where it has all of it, or what is new, and goes on with that. */
TEST memory_changes_while_pages_come(user_machine *m)
{
    CHECK_CALL(arrives(m));
    ASSERT_OK(vhost_device_start(&m->device));
    kick(m);
    if (!kind->is_patient) {
        CHECK_CALL(all_comes_back(m));
    }
    CHECK_CALL(given(m, MEMORY));
    ASSERT(w.regions >= 2);
    CHECK_CALL(all_comes_back(m));
    ASSERT(kind->is_right());
    return ends(m);
}

/* ---- what the storage daemon 7.2 says by itself ---- */

static enum greatest_test_res is_refused(user_machine *m, uint64_t avoid, vhost_why why)
{
    device_kind as_it_is = disk_kind;
    as_it_is.avoid = avoid;
    as_it_is.is_mended = false;
    kind = &as_it_is;
    enum greatest_test_res result = arrives(m);
    kind = &disk_kind;
    CHECK_CALL(result);
    ASSERT(vhost_device_start(&m->device) < 0);
    ASSERT_INT(VHOST_STATE_BROKEN, m->device.state);
    ASSERT_STR_EQ(vhost_why_text(why), vhost_why_text(m->link.last_error.why));
    printf("blk: %s\n", m->link.last_error.text);
    PASS();
}

TEST an_echo_is_no_place(user_machine *m)
{
    return is_refused(m, NO_SLOTS, VHOST_WHY_USER_VALUE);
}

TEST slots_are_no_better(user_machine *m)
{
    return is_refused(m, 0, VHOST_WHY_USER_VALUE);
}

/* ---- the device does not live to see it ---- */

/* A page is missing, and it cannot go on. */
static enum greatest_test_res waits_for_a_page(user_machine *m)
{
    double end = clock_now() + USER_PATIENCE / 1e3;
    withhold(kind->is_data);
    ASSERT_OK(vhost_device_start(&m->device));
    kick(m);
    while (missed() == 0) {
        user_machine_turn(m, 1);
        ASSERTm("it wants no page", clock_now() < end);
    }
    PASS();
}

/* Nothing was done, and the back-end did not live to say so. */
static enum greatest_test_res positions_are_guessed(const user_machine *m)
{
    for (unsigned i = 0; i < 2; i++) {
        ASSERT_INT(VHOST_POSITION_GUESSED, m->queue[i].position.state);
        ASSERT_UINT(0, m->queue[i].position.avail);
    }
    PASS();
}

/* With another one, which is told to do all of it: as nothing of it had come back, that is right
   also where it was done before. */
static enum greatest_test_res lives_again(user_machine *m)
{
    user_machine_detach(m);
    page_faults_remove_peer(&w.faults, w.peer);
    withhold(NULL);
    w.regions = 0;
    real_backend_end(&m->peer, SIGKILL);
    ASSERT(real_backend_start(&m->peer, kind->backend, kind->options));
    CHECK_CALL(attached(m));
    CHECK_CALL(listens(m));
    fill_queues(m);
    ASSERT_OK(vhost_device_start(&m->device));
    kick(m);
    CHECK_CALL(all_comes_back(m));
    ASSERT(kind->is_right());
    m->broken = 0;
    return ends(m);
}

TEST it_dies_while_it_waits_for_a_page(user_machine *m)
{
    CHECK_CALL(arrives(m));
    CHECK_CALL(waits_for_a_page(m));
    real_backend_end(&m->peer, SIGKILL);
    double end = clock_now() + USER_PATIENCE / 1e3;
    while (m->broken == 0) {
        user_machine_turn(m, 10);
        ASSERTm("nobody noticed", clock_now() < end);
    }
    printf("%s: %s\n", kind->backend, m->link.last_error.text);
    ASSERT_INT(VHOST_WHY_USER_EOF, m->link.last_error.why);
    CHECK_CALL(positions_are_guessed(m));
    CHECK_CALL(all_arrives()); /* also what the dead waited for */
    return lives_again(m);
}

TEST it_dies_at_the_first_page_it_wants(user_machine *m)
{
    CHECK_CALL(arrives(m));
    kill_at_next_page(m->peer.pid);
    int result = vhost_device_start(&m->device);
    ASSERT_INT(-ECONNRESET, result);
    printf("%s: %s\n", kind->backend, m->link.last_error.text);
    ASSERT_INT(VHOST_STATE_BROKEN, m->device.state);
    ASSERT_INT(VHOST_WHY_USER_EOF, m->link.last_error.why);
    ASSERT_UINT(1, m->broken);
    return lives_again(m);
}

/* The next one is given no memory before all of it is there: it would not wait for it. */
TEST another_one_comes_by_itself(user_machine *m)
{
    m->user_options.retry_ms = 5;
    CHECK_CALL(arrives(m));
    CHECK_CALL(waits_for_a_page(m));
    real_backend_end(&m->peer, SIGKILL);
    ASSERT(real_backend_start(&m->peer, kind->backend, kind->options));
    double end = clock_now() + USER_PATIENCE / 1e3;
    while (strstr(m->link.last_error.text, "memory is arriving") == NULL) {
        user_machine_turn(m, 10);
        m->queue[0].position.state = m->queue[1].position.state = VHOST_POSITION_CERTAIN;
        ASSERTm("it was not refused", clock_now() < end && m->returns == 0);
    }
    CHECK_CALL(all_arrives());
    ASSERT_OK(vhost_user_postcopy_end(&m->link));
    while (m->returns == 0) {
        user_machine_turn(m, 10);
        ASSERTm("it did not come back", clock_now() < end);
    }
    CHECK_CALL(all_comes_back(m));
    ASSERT(kind->is_right());
    return kind->works(m);
}

/* Also for the call itself, which looks how far the rings are before it returns: for that there is
   no time limit. */
TEST a_page_comes_too_late(user_machine *m)
{
    m->user_options.timeout_ms = 2000; /* testpmd takes more than a second to answer first */
    CHECK_CALL(arrives(m));
    w.late = 2500;
    double start = clock_now();
    int result = vhost_device_start(&m->device);
    ASSERT_INT(-ETIMEDOUT, result);
    ASSERT(clock_now() - start > 2.4);
    ASSERT_INT(VHOST_WHY_USER_TIMEOUT, m->link.last_error.why);
    ASSERT_INT(VHOST_STATE_BROKEN, m->device.state);
    ASSERT_UINT(1, m->broken);
    printf("%s: %s\n", kind->backend, m->link.last_error.text);
    return lives_again(m);
}

SUITE(memory)
{
    RUN_ARRIVAL(pages_come_to_whoever_touches_them);
    RUN_ARRIVAL(who_does_not_wait_for_a_page_is_found_out);
    RUN_ARRIVAL(what_the_guest_writes_is_noticed);
}

SUITE(arrival)
{
    RUN_ARRIVAL(it_starts_before_its_memory_is_here);
    RUN_ARRIVAL(it_stops_and_starts_while_pages_come);
    RUN_ARRIVAL(memory_changes_while_pages_come);
    RUN_ARRIVAL(it_dies_while_it_waits_for_a_page);
    RUN_ARRIVAL(it_dies_at_the_first_page_it_wants);
    RUN_ARRIVAL(another_one_comes_by_itself);
    RUN_ARRIVAL(a_page_comes_too_late);
}

SUITE(storage_daemon)
{
    RUN_ARRIVAL(an_echo_is_no_place);
    RUN_ARRIVAL(slots_are_no_better);
}

GREATEST_MAIN_DEFS();

int main(int argc, char **argv)
{
    GREATEST_MAIN_BEGIN();
    kind = &disk_kind;
    RUN_SUITE(memory);
    RUN_SUITE(arrival);
    RUN_SUITE(storage_daemon);
    kind = &card_kind;
    RUN_SUITE(arrival);
    GREATEST_MAIN_END();
}
