/* Threads: back-ends that write and log at any time, and callers as chapter 12 of the manual has
   them, readers and one writer. The thread sanitizer watches; without it, lost pages, lost calls
   and leaks are found all the same. */
#define _POSIX_C_SOURCE 200809L

#include "greatest.h"
#include "mock_backend.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#define PAGE VHOST_PAGE
#define NEAR (512 * PAGE)
#define FAR  (UINT64_C(100000) * PAGE) /* beyond the slack of a log that ends at NEAR */

enum {
    DEVICES = 3,
    QUEUES = 3,
    LOW_PAGES = 64, /* of the backing, for each of the three sections */
    PAGES = 3 * LOW_PAGES,
    DIRTIERS = 5, /* threads that write for a back-end */
    ROUNDS = 1500
};

typedef struct machine machine;

/* A back-end whose own threads look at its state only when the gate is open. */
typedef struct backend {
    mock_backend mock;
    machine *machine;
    pthread_rwlock_t gate;
} backend;

struct machine {
    vhost_vm vm;
    vhost_backing ram;
    void *memory;
    bool far;
    backend backend[DEVICES];
    vhost_device device[DEVICES];
    vhost_queue queue[DEVICES][QUEUES];
    pthread_rwlock_t lock; /* of the VMM: writers need the VM, readers a device of their own */
    uint32_t data[PAGES];  /* what back-ends write; atomic */
    uint32_t copy[PAGES];  /* what a migration sent */
    long allocations;      /* atomic */
    int done;              /* atomic */
    int wrong;             /* atomic: the line where a thread found something wrong */
};

typedef struct worker {
    machine *m;
    unsigned d;
    uint64_t random;
    bool owed[QUEUES]; /* a call came while masked */
    uint64_t steps;
} worker;

static uint64_t roll(uint64_t *random, uint64_t sides)
{
    *random ^= *random << 13;
    *random ^= *random >> 7;
    *random ^= *random << 17;
    return (*random >> 11) % sides;
}

/* For threads, which cannot fail a test themselves. */
#define EXPECT(M, CONDITION) expect((M), (CONDITION), __LINE__)

static void expect(machine *m, bool condition, int line)
{
    if (!condition) {
        __atomic_store_n(&m->wrong, line, __ATOMIC_SEQ_CST);
    }
}

static bool is_done(machine *m)
{
    return __atomic_load_n(&m->done, __ATOMIC_SEQ_CST);
}

static void rest(void)
{
    const struct timespec while_others_run = {0, 20000};
    nanosleep(&while_others_run, NULL);
}

/* ---- the machine ---- */

/* Calls on different devices may allocate at the same time. */
static void *allocate(void *memory, size_t size, void *user)
{
    machine *m = (machine *)user;
    if (memory == NULL) {
        __atomic_fetch_add(&m->allocations, 1, __ATOMIC_SEQ_CST);
    }
    if (size == 0) {
        __atomic_fetch_sub(&m->allocations, 1, __ATOMIC_SEQ_CST);
        free(memory);
        return NULL;
    }
    return realloc(memory, size);
}

static void send_signal(int fd, void *user)
{
    const uint64_t one = 1;
    (void)user;
    if (write(fd, &one, sizeof one) != sizeof one) {
        abort();
    }
}

static void around(mock_backend *mock, bool begins, void *user)
{
    backend *b = (backend *)user;
    (void)mock;
    if (begins) {
        pthread_rwlock_wrlock(&b->gate);
    } else {
        pthread_rwlock_unlock(&b->gate);
    }
}

/* The place of a page in `data`. */
static uint64_t index_of(uint64_t gpa)
{
    uint64_t start = gpa >= FAR ? FAR : gpa >= NEAR ? NEAR : 0;
    return (gpa - start) / PAGE + (gpa >= FAR ? 2u : gpa >= NEAR ? 1u : 0u) * LOW_PAGES;
}

static int map(machine *m, bool far)
{
    static const uint64_t starts[3] = {0, NEAR, FAR};
    int result = vhost_memory_begin(&m->vm);
    for (uint64_t i = 0; i < (far ? 3u : 2u) && result == 0; i++) {
        vhost_section section;
        vhost_section_init(&section, starts[i], LOW_PAGES * PAGE, &m->ram, i * LOW_PAGES * PAGE);
        result = vhost_memory_add(&m->vm, &section);
    }
    m->far = far;
    return result < 0 ? result : vhost_memory_commit(&m->vm);
}

static void fill(machine *m, unsigned d)
{
    for (unsigned q = 0; q < QUEUES; q++) {
        vhost_queue *queue = &m->queue[d][q];
        uint64_t area = 3 * (d * QUEUES + q) * PAGE;
        queue->ready = true;
        queue->size = 64;
        queue->desc = area;
        queue->avail = area + PAGE;
        queue->used = area + 2 * PAGE;
        queue->kick_fd = 5000; /* the mock does not look */
    }
}

static void make_backend(machine *m, unsigned d, mock_mode mode)
{
    backend *b = &m->backend[d];
    b->machine = m;
    pthread_rwlock_init(&b->gate, NULL);
    mock_init(&b->mock, mode, NULL);
    b->mock.around = around;
    b->mock.signal = send_signal;
    b->mock.user = b;
    b->mock.facts.log_kind = d == 1 ? VHOST_DIRTY_SHARED : VHOST_DIRTY_PRIVATE;
    b->mock.facts.offered.word[0] =
        UINT64_C(1) << VHOST_FEATURE_LOG_ALL | UINT64_C(1) << VHOST_FEATURE_VERSION_1;
}

static int attach(machine *m, unsigned d)
{
    const vhost_features accepted = {{UINT64_C(1) << VHOST_FEATURE_VERSION_1, 0}};
    int result = vhost_device_init(&m->device[d], &m->vm, &m->backend[d].mock.ops,
                                   &m->backend[d].mock, m->queue[d], QUEUES, NULL);
    result = result < 0 ? result : vhost_device_ack(&m->device[d], accepted);
    fill(m, d);
    return result < 0 ? result : vhost_device_start(&m->device[d]);
}

/* Shared logs are memory of this process too: the mock stands in it. */
static int map_log(vhost_log_memory *memory, bool shared, void *user)
{
    machine *m = (machine *)user;
    (void)shared;
    memory->base = calloc(1, (size_t)memory->size);
    __atomic_fetch_add(&m->allocations, 1, __ATOMIC_SEQ_CST);
    return memory->base ? 0 : -ENOMEM;
}

static void unmap_log(vhost_log_memory *memory, void *user)
{
    machine *m = (machine *)user;
    __atomic_fetch_sub(&m->allocations, 1, __ATOMIC_SEQ_CST);
    free(memory->base);
}

static int begin(machine *m, mock_mode mode)
{
    static const vhost_log_ops logs = {map_log, unmap_log};
    vhost_vm_options options;
    memset(m, 0, sizeof *m);
    memset(&options, 0, sizeof options);
    options.user = m;
    options.allocate = allocate;
    options.log = &logs;
    pthread_rwlock_init(&m->lock, NULL);
    if (posix_memalign(&m->memory, PAGE, PAGES * PAGE) != 0) {
        return -ENOMEM;
    }
    memset(m->memory, 0, PAGES * PAGE);
    vhost_backing_init(&m->ram, m->memory, PAGES * PAGE, -1, 0);
    int result = vhost_vm_init(&m->vm, &options);
    result = result < 0 ? result : map(m, false);
    for (unsigned d = 0; d < DEVICES && result == 0; d++) {
        make_backend(m, d, mode);
        for (unsigned q = 0; q < QUEUES; q++) {
            vhost_queue_init(&m->queue[d][q]);
            m->queue[d][q].call_fd = eventfd(0, EFD_NONBLOCK);
        }
        result = attach(m, d);
    }
    return result;
}

static enum greatest_test_res end(machine *m)
{
    for (unsigned d = 0; d < DEVICES; d++) {
        vhost_device_cleanup(&m->device[d]);
        ASSERT_STR_EQ("", m->backend[d].mock.complaint);
        mock_free(&m->backend[d].mock);
        pthread_rwlock_destroy(&m->backend[d].gate);
        for (unsigned q = 0; q < QUEUES; q++) {
            close(m->queue[d][q].call_fd);
        }
    }
    ASSERT_EQ(0, vhost_vm_cleanup(&m->vm));
    ASSERT_EQ_FMT(0l, m->allocations, "%ld");
    ASSERT_EQ_FMT(0, m->wrong, "line %d");
    pthread_rwlock_destroy(&m->lock);
    free(m->memory);
    PASS();
}

/* ---- back-ends write to any page, while the VMM migrates ---- */

/* Writes to a page, then logs it: in this order, as every back-end must. */
static void dirty_one(worker *self)
{
    machine *m = self->m;
    backend *b = &m->backend[self->d];
    pthread_rwlock_rdlock(&b->gate);
    if (mock_runs(&b->mock)) {
        const vhost_region *region = &b->mock.table[roll(&self->random, b->mock.table_count)];
        uint64_t gpa = region->gpa + roll(&self->random, region->size / PAGE) * PAGE;
        __atomic_fetch_add(&m->data[index_of(gpa)], 1, __ATOMIC_RELAXED);
        if (mock_logs(&b->mock)) {
            mock_dirty(&b->mock, gpa);
        }
        self->steps++;
    }
    pthread_rwlock_unlock(&b->gate);
}

static void *dirty_on(void *user)
{
    worker *self = (worker *)user;
    while (!is_done(self->m)) {
        dirty_one(self);
        if (roll(&self->random, 16) == 0) {
            rest();
        }
    }
    return NULL;
}

static void send_page(machine *m, uint64_t index)
{
    m->copy[index] = __atomic_load_n(&m->data[index], __ATOMIC_RELAXED);
}

static void send_range(uint64_t gpa, uint64_t size, void *user)
{
    for (uint64_t done = 0; done < size; done += PAGE) {
        send_page((machine *)user, index_of(gpa + done));
    }
}

static int sync_range(machine *m, uint64_t gpa, uint64_t size)
{
    vhost_log_sink sink;
    memset(&sink, 0, sizeof sink);
    sink.range = send_range;
    sink.user = m;
    return vhost_log_sync(&m->vm, gpa, size, &sink);
}

/* Any part of near memory, by a bitmap that begins anywhere. */
static int sync_bits(machine *m, uint64_t *random)
{
    uint64_t from = roll(random, LOW_PAGES), count = 1 + roll(random, LOW_PAGES - from);
    uint64_t before = roll(random, 100), bits[4] = {0};
    vhost_log_sink sink;
    memset(&sink, 0, sizeof sink);
    sink.bits = bits;
    sink.bits_gpa = NEAR + (from - before) * PAGE;
    sink.bits_count = before + count;
    int result = vhost_log_sync(&m->vm, NEAR + from * PAGE, count * PAGE, &sink);
    for (uint64_t bit = before; bit < before + count; bit++) {
        if (bits[bit / 64] >> bit % 64 & 1) {
            send_page(m, LOW_PAGES + from + bit - before);
        }
    }
    return result;
}

/* Memory that comes is sent whole. */
static int hotplug(machine *m)
{
    for (uint64_t i = 2 * LOW_PAGES; i < PAGES && !m->far; i++) {
        send_page(m, i);
    }
    return map(m, !m->far);
}

static int restart(machine *m, unsigned d)
{
    vhost_device *device = &m->device[d];
    if (device->state == VHOST_STATE_RUNNING) {
        return vhost_device_stop(device);
    }
    return vhost_device_start(device);
}

static int migrate_once(machine *m, uint64_t *random)
{
    switch (roll(random, 8)) {
    case 0:
        return hotplug(m);
    case 1:
        return restart(m, (unsigned)roll(random, DEVICES));
    case 2:
    case 3:
        return sync_bits(m, random);
    default:
        return sync_range(m, 0, UINT64_MAX - (PAGE - 1));
    }
}

/* Logs are switched on and off too; each time, memory is sent whole first. */
static int begin_migration(machine *m)
{
    int result = vhost_log_stop(&m->vm);
    result = result < 0 ? result : vhost_log_start(&m->vm);
    for (uint64_t i = 0; i < PAGES; i++) {
        send_page(m, i);
    }
    return result;
}

static enum greatest_test_res migrate(machine *m)
{
    uint64_t random = 12345;
    for (unsigned round = 0; round < ROUNDS; round++) {
        if (round % (ROUNDS / 4) == 0) {
            ASSERT_EQ(0, begin_migration(m));
        }
        ASSERT_EQ_FMT(0, migrate_once(m, &random), "%d");
        rest();
    }
    for (unsigned d = 0; d < DEVICES; d++) {
        ASSERT_EQ(0, vhost_device_stop(&m->device[d]));
    }
    ASSERT_EQ(0, sync_range(m, 0, UINT64_MAX - (PAGE - 1)));
    PASS();
}

static enum greatest_test_res run_migration(mock_mode mode)
{
    static machine m;
    worker workers[DIRTIERS];
    pthread_t threads[DIRTIERS];
    ASSERT_EQ(0, begin(&m, mode));
    for (unsigned i = 0; i < DIRTIERS; i++) {
        memset(&workers[i], 0, sizeof workers[i]);
        workers[i].m = &m;
        workers[i].d = i % DEVICES;
        workers[i].random = i + 1;
        ASSERT_EQ(0, pthread_create(&threads[i], NULL, dirty_on, &workers[i]));
    }
    enum greatest_test_res result = migrate(&m);
    __atomic_store_n(&m.done, 1, __ATOMIC_SEQ_CST);
    for (unsigned i = 0; i < DIRTIERS; i++) {
        pthread_join(threads[i], NULL);
        ASSERT(workers[i].steps > 0);
    }
    CHECK_CALL(result);
    for (unsigned i = 0; i < (m.far ? 3 : 2) * LOW_PAGES; i++) {
        ASSERT_EQ_FMT(m.data[i], m.copy[i], "%u");
    }
    return end(&m);
}

TEST no_page_is_lost_while_back_ends_write(void)
{
    return run_migration(MOCK_SYNCHRONOUS);
}

TEST no_page_is_lost_while_queued_back_ends_write(void)
{
    return run_migration(MOCK_QUEUED);
}

/* ---- readers, each with a device of its own, and one writer ---- */

static void interrupt_one(worker *self, unsigned q)
{
    const vhost_queue *queue = &self->m->queue[self->d][q];
    if (queue->started) {
        mock_interrupt(&self->m->backend[self->d].mock, q);
        self->owed[q] |= queue->masked;
    }
}

/* A call that came while the queue was masked is told by pending or unmask, once. */
static void collect(worker *self, unsigned q, int result)
{
    EXPECT(self->m, result == self->owed[q]);
    self->owed[q] = false;
}

static void switch_queue(worker *self, vhost_device *device, uint32_t q)
{
    if (device->state == VHOST_STATE_RUNNING) {
        bool started = self->m->queue[self->d][q].started;
        EXPECT(self->m,
               (started ? vhost_queue_stop(device, q) : vhost_queue_start(device, q)) == 0);
    }
}

static void read_and_write_config(worker *self, vhost_device *device)
{
    char byte = (char)self->steps, found = 0;
    EXPECT(self->m, vhost_device_set_config(device, 7, &byte, 1) == 0);
    EXPECT(self->m, vhost_device_get_config(device, 7, &found, 1) == 0);
    EXPECT(self->m, byte == found);
}

static void look_around(worker *self, const vhost_device *device)
{
    vhost_extent extent;
    vhost_features mine = {{~UINT64_C(0), 0}};
    EXPECT(self->m, vhost_memory_find(&self->m->vm, NEAR, &extent) == 0);
    EXPECT(self->m, extent.size == LOW_PAGES * PAGE);
    mine = vhost_device_offer(device, mine);
    EXPECT(self->m, vhost_features_test(&mine, VHOST_FEATURE_VERSION_1));
    EXPECT(self->m, vhost_device_table(device)->count == (self->m->far ? 3u : 2u));
}

static void read_once(worker *self)
{
    vhost_device *device = &self->m->device[self->d];
    unsigned q = (unsigned)roll(&self->random, QUEUES);
    switch (roll(&self->random, 8)) {
    case 0:
        EXPECT(self->m, vhost_queue_mask(device, q) == 0);
        break;
    case 1:
        collect(self, q, vhost_queue_unmask(device, q));
        break;
    case 2:
        collect(self, q, vhost_queue_pending(device, q));
        break;
    case 3:
        switch_queue(self, device, q);
        break;
    case 4:
        EXPECT(self->m, vhost_device_process(device) == 0);
        break;
    case 5:
        read_and_write_config(self, device);
        break;
    case 6:
        look_around(self, device);
        break;
    default:
        interrupt_one(self, q);
    }
    self->steps++;
}

static void *read_on(void *user)
{
    worker *self = (worker *)user;
    while (!is_done(self->m)) {
        pthread_rwlock_rdlock(&self->m->lock);
        read_once(self);
        pthread_rwlock_unlock(&self->m->lock);
        if (roll(&self->random, 16) == 0) {
            rest();
        }
    }
    return NULL;
}

static int write_once(machine *m, uint64_t *random)
{
    switch (roll(random, 6)) {
    case 0:
        return vhost_log_start(&m->vm);
    case 1:
        return vhost_log_stop(&m->vm);
    case 2:
        return restart(m, (unsigned)roll(random, DEVICES));
    case 3:
        return m->vm.logging ? sync_range(m, 0, UINT64_MAX - (PAGE - 1)) : 0;
    default:
        return map(m, roll(random, 2));
    }
}

TEST readers_and_one_writer_go_together(void)
{
    static machine m;
    worker workers[DEVICES];
    pthread_t threads[DEVICES];
    uint64_t random = 54321;
    int result = 0;
    ASSERT_EQ(0, begin(&m, MOCK_QUEUED));
    for (unsigned d = 0; d < DEVICES; d++) {
        memset(&workers[d], 0, sizeof workers[d]);
        workers[d].m = &m;
        workers[d].d = d;
        workers[d].random = d + 1;
        ASSERT_EQ(0, pthread_create(&threads[d], NULL, read_on, &workers[d]));
    }
    for (unsigned round = 0; round < ROUNDS && result == 0; round++) {
        pthread_rwlock_wrlock(&m.lock);
        result = write_once(&m, &random);
        pthread_rwlock_unlock(&m.lock);
        rest();
    }
    __atomic_store_n(&m.done, 1, __ATOMIC_SEQ_CST);
    for (unsigned d = 0; d < DEVICES; d++) {
        pthread_join(threads[d], NULL);
        ASSERT(workers[d].steps > 0);
    }
    ASSERT_EQ_FMT(0, result, "%d");
    return end(&m);
}

/* ---- devices that break side by side ---- */

static void *die(void *user)
{
    worker *self = (worker *)user;
    machine *m = self->m;
    while (!is_done(m)) { /* all at once */
    }
    pthread_rwlock_rdlock(&m->lock);
    mock_die(&m->backend[self->d].mock);
    EXPECT(m, vhost_device_process(&m->device[self->d]) == -ECONNRESET);
    pthread_rwlock_unlock(&m->lock);
    return NULL;
}

/* Every other time they are stopped, and hold a table and a log that the VM has no more. */
static enum greatest_test_res break_all(machine *m, bool stopped)
{
    worker workers[DEVICES];
    pthread_t threads[DEVICES];
    ASSERT_EQ(0, begin(m, MOCK_SYNCHRONOUS));
    ASSERT_EQ(0, vhost_log_start(&m->vm));
    for (unsigned d = 0; d < DEVICES && stopped; d++) {
        ASSERT_EQ(0, vhost_device_stop(&m->device[d]));
    }
    ASSERT_EQ(0, stopped ? map(m, true) : 0);
    for (unsigned d = 0; d < DEVICES; d++) {
        memset(&workers[d], 0, sizeof workers[d]);
        workers[d].m = m;
        workers[d].d = d;
        ASSERT_EQ(0, pthread_create(&threads[d], NULL, die, &workers[d]));
    }
    __atomic_store_n(&m->done, 1, __ATOMIC_SEQ_CST);
    for (unsigned d = 0; d < DEVICES; d++) {
        pthread_join(threads[d], NULL);
        ASSERT_EQ(VHOST_STATE_BROKEN, m->device[d].state);
    }
    return end(m);
}

TEST devices_break_side_by_side(void)
{
    static machine m;
    for (unsigned round = 0; round < 100; round++) {
        CHECK_CALL(break_all(&m, round % 2));
    }
    PASS();
}

SUITE(threads_suite)
{
    RUN_TEST(no_page_is_lost_while_back_ends_write);
    RUN_TEST(no_page_is_lost_while_queued_back_ends_write);
    RUN_TEST(readers_and_one_writer_go_together);
    RUN_TEST(devices_break_side_by_side);
}
