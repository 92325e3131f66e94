#define _POSIX_C_SOURCE 200809L

#include "fixture.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- books ---- */

/* Every block moves when it grows, so that whoever keeps a stale pointer is found out. */
typedef union block {
    size_t size;
    uint64_t align[2];
} block;

static void *allocate(void *memory, size_t size, void *user)
{
    fixture *f = (fixture *)user;
    block *old = memory ? (block *)memory - 1 : NULL;
    block *fresh = NULL;
    if (size) {
        f->allocation_calls++;
        if (fault_strikes(&f->fault, FAULT_ALLOCATION, VHOST_OP_NONE, -1)) {
            return NULL;
        }
        fresh = (block *)malloc(sizeof *fresh + size);
        if (!fresh) {
            return NULL;
        }
        memset(fresh + 1, 0xa5, size);
        fresh->size = size;
        f->allocations++;
    }
    if (old && fresh) {
        memcpy(fresh + 1, memory, old->size < size ? old->size : size);
    }
    if (old) {
        free(old);
        f->allocations--;
    }
    return fresh ? fresh + 1 : NULL;
}

static int create_event(vhost_event *event, void *user)
{
    fixture *f = (fixture *)user;
    if (fault_strikes(&f->fault, FAULT_NOTIFIER, VHOST_OP_NONE, -1)) {
        return -EMFILE;
    }
    for (int i = 0; i < FIXTURE_EVENTS; i++) {
        if (!f->events[i].alive) {
            f->events[i].alive = true;
            f->events[i].signalled = false;
            f->event_count++;
            event->wait_fd = FIXTURE_EVENT_FD + 2 * i;
            event->signal_fd = FIXTURE_EVENT_FD + 2 * i + 1;
            return 0;
        }
    }
    return -ENFILE;
}

static fixture_event *event_by_fd(fixture *f, int fd)
{
    int index = (fd - FIXTURE_EVENT_FD) / 2;
    if (fd < FIXTURE_EVENT_FD || index >= FIXTURE_EVENTS || !f->events[index].alive) {
        abort(); /* not a notifier of ours, or destroyed already */
    }
    return &f->events[index];
}

static void destroy_event(vhost_event *event, void *user)
{
    event_by_fd((fixture *)user, event->wait_fd)->alive = false;
}

static int test_and_clear_event(const vhost_event *event, void *user)
{
    fixture *f = (fixture *)user;
    fixture_event *found = event_by_fd(f, event->wait_fd);
    if (fault_strikes(&f->fault, FAULT_NOTIFIER, VHOST_OP_NONE, -1)) {
        return -EMFILE;
    }
    int signalled = found->signalled;
    found->signalled = false;
    return signalled;
}

const vhost_event_ops fixture_event_ops = {create_event, destroy_event, test_and_clear_event};

static int map_log(vhost_log_memory *memory, bool shared, void *user)
{
    fixture *f = (fixture *)user;
    if (fault_strikes(&f->fault, FAULT_ALLOCATION, VHOST_OP_SET_LOG, -1)) {
        return -EDQUOT;
    }
    for (int i = 0; i < FIXTURE_LOGS; i++) {
        if (!f->logs[i].size) {
            memory->base = calloc(1, (size_t)memory->size);
            memory->fd = shared ? FIXTURE_LOG_FD + i : -1;
            f->logs[i] = *memory;
            f->log_maps++;
            return memory->base ? 0 : -ENOMEM;
        }
    }
    return -ENFILE;
}

static void unmap_log(vhost_log_memory *memory, void *user)
{
    fixture *f = (fixture *)user;
    for (int i = 0; i < FIXTURE_LOGS; i++) {
        vhost_log_memory *log = &f->logs[i];
        if (log->size && log->base == memory->base) {
            if (log->size != memory->size || log->fd != memory->fd) {
                abort(); /* not as it was given */
            }
            log->size = 0;
            free(memory->base);
            return;
        }
    }
    abort(); /* no log of ours, or given back already */
}

const vhost_log_ops fixture_log_ops = {map_log, unmap_log};

unsigned fixture_logs_alive(const fixture *f)
{
    unsigned alive = 0;
    for (int i = 0; i < FIXTURE_LOGS; i++) {
        alive += f->logs[i].size > 0;
    }
    return alive;
}

/* What a back-end's signal does: it reaches a notifier of the library, or the VMM's call fd. */
static void signal_fd(int fd, void *user)
{
    fixture *f = (fixture *)user;
    if (fd >= FIXTURE_EVENT_FD) {
        if (fd % 2 == 0) {
            abort(); /* the back-end was given the end to wait on */
        }
        event_by_fd(f, fd)->signalled = true;
    } else if (fd >= FIXTURE_CALL_FD) {
        int index = fd - FIXTURE_CALL_FD;
        f->calls[index / FIXTURE_QUEUES][index % FIXTURE_QUEUES]++;
    }
}

static int map(vhost_device *device, vhost_mapping *mapping, bool write, void *user)
{
    fixture *f = (fixture *)user;
    vhost_extent extent;
    (void)write;
    if (fault_strikes(&f->fault, FAULT_MAPPING, VHOST_OP_NONE, -1)) {
        return -EACCES;
    }
    if (vhost_memory_find(device->vm, mapping->address, &extent) < 0) {
        return -EFAULT;
    }
    mapping->gpa = mapping->address;
    mapping->host = extent.host;
    if (mapping->size > extent.size) {
        mapping->size = extent.size;
    }
    if (f->shorten && mapping->size > f->shorten) {
        mapping->size = f->shorten;
    }
    f->mappings++;
    f->maps++;
    return 0;
}

static void unmap(vhost_device *device, const vhost_mapping *mapping, bool written, void *user)
{
    fixture *f = (fixture *)user;
    for (uint32_t q = 0; q < device->queue_count && written; q++) {
        const vhost_queue *queue = &device->queues[q];
        f->written[VHOST_DESC] += mapping->address == queue->desc;
        f->written[VHOST_AVAIL] += mapping->address == queue->avail;
        f->written[VHOST_USED] += mapping->address == queue->used;
    }
    f->mappings--;
}

const vhost_memory_ops fixture_memory_ops = {map, unmap, NULL, NULL};

static int find_nothing(vhost_device *device, uint64_t iova, bool write, vhost_translation *entry,
                        void *user)
{
    (void)device;
    (void)iova;
    (void)write;
    (void)entry;
    (void)user;
    return -EFAULT;
}

const vhost_memory_ops fixture_empty_viommu = {NULL, NULL, find_nothing, NULL};

/* ---- news ---- */

static void on_message(vhost_level level, const vhost_error *what, const vhost_device *device,
                       void *user)
{
    fixture *f = (fixture *)user;
    if (level != VHOST_LEVEL_ERROR) {
        f->notes++;
        f->last_note = *what;
        return;
    }
    f->errors++;
    f->last_message.level = level;
    f->last_message.what = *what;
    f->last_message.device = device;
}

static void on_trace(const vhost_trace *trace, void *user)
{
    fixture *f = (fixture *)user;
    f->traces[f->trace_count++ % FIXTURE_TRACES] = *trace;
}

static void on_broken(vhost_device *device, void *user)
{
    fixture *f = (fixture *)user;
    f->broken[device - f->device] +=
        device->state == VHOST_STATE_BROKEN && device->last_error.code < 0;
}

static void on_queue_error(vhost_device *device, uint32_t queue, void *user)
{
    fixture *f = (fixture *)user;
    (void)device;
    f->queue_errors[queue]++;
}

static void on_config(vhost_device *device, void *user)
{
    fixture *f = (fixture *)user;
    (void)device;
    f->configs++;
}

/* ---- making and taking down ---- */

vhost_features fixture_features(uint64_t low, uint64_t high)
{
    vhost_features features;
    features.word[0] = low;
    features.word[1] = high;
    return features;
}

vhost_vm_options fixture_vm_options(fixture *f)
{
    vhost_vm_options options;
    memset(&options, 0, sizeof options);
    options.user = f;
    options.on_message = on_message;
    options.on_trace = on_trace;
    options.allocate = allocate;
    options.events = &fixture_event_ops;
    options.log = &fixture_log_ops;
    return options;
}

vhost_section fixture_section(const fixture *f, uint64_t gpa, uint64_t pages, uint64_t first_page)
{
    vhost_section section;
    vhost_section_init(&section, gpa, pages * VHOST_PAGE, &f->ram, first_page * VHOST_PAGE);
    return section;
}

static void make_ram(fixture *f)
{
    f->memory = calloc(FIXTURE_PAGES + 1, VHOST_PAGE);
    if (!f->memory) {
        abort();
    }
    uintptr_t start = (uintptr_t)f->memory;
    f->host = (unsigned char *)f->memory + (VHOST_PAGE - start % VHOST_PAGE) % VHOST_PAGE;
    vhost_backing_init(&f->ram, f->host, FIXTURE_PAGES * VHOST_PAGE, -1, 0);
    f->low = fixture_section(f, 0, FIXTURE_PAGES / 2, 0);
    f->high = fixture_section(f, FIXTURE_HIGH, FIXTURE_PAGES / 2, FIXTURE_PAGES / 2);
}

static void make_mock(fixture *f, mock_backend *mock)
{
    mock_init(mock, f->mode, &f->fault);
    mock->signal = signal_fd;
    mock->user = f;
    mock->facts.its_bits = fixture_features(~UINT64_C(0), 0);
    mock->facts.offered = fixture_features(
        UINT64_C(1) << VHOST_FEATURE_VERSION_1 | UINT64_C(1) << VHOST_FEATURE_EVENT_IDX |
            UINT64_C(1) << VHOST_FEATURE_RING_PACKED | UINT64_C(1) << VHOST_FEATURE_IN_ORDER,
        0);
}

static int open_fixture(fixture *f, mock_mode mode)
{
    memset(f, 0, sizeof *f);
    f->mode = mode;
    make_ram(f);
    for (int d = 0; d < FIXTURE_DEVICES; d++) {
        make_mock(f, &f->mock[d]);
        for (int q = 0; q < FIXTURE_QUEUES; q++) {
            vhost_queue_init(&f->queue[d][q]);
        }
    }
    f->accepted = fixture_features(UINT64_C(1) << VHOST_FEATURE_VERSION_1, 0);
    f->device_options.user = f;
    f->device_options.on_broken = on_broken;
    f->device_options.on_queue_error = on_queue_error;
    f->device_options.on_config = on_config;
    vhost_vm_options options = fixture_vm_options(f);
    return vhost_vm_init(&f->vm, &options);
}

/* Also after a failed test, so that what comes next starts clean. Returns what cleanup said. */
static int take_down(fixture *f)
{
    fault_disarm(&f->fault);
    for (int d = 0; d < FIXTURE_DEVICES; d++) {
        vhost_device_cleanup(&f->device[d]);
    }
    return vhost_vm_cleanup(&f->vm);
}

static void free_fixture(fixture *f)
{
    for (int d = 0; d < FIXTURE_DEVICES; d++) {
        mock_free(&f->mock[d]);
    }
    free(f->memory);
    f->memory = NULL;
}

size_t fixture_events_alive(const fixture *f)
{
    size_t alive = 0;
    for (int i = 0; i < FIXTURE_EVENTS; i++) {
        alive += f->events[i].alive;
    }
    return alive;
}

static enum greatest_test_res check_books(const fixture *f)
{
    ASSERT_UINT(0, f->allocations);
    ASSERT_UINT(0, fixture_events_alive(f));
    ASSERT_UINT(0, fixture_logs_alive(f));
    ASSERT_INT(0, f->mappings);
    for (int d = 0; d < FIXTURE_DEVICES; d++) {
        ASSERT_STR_EQ("", f->mock[d].complaint);
        ASSERT_FALSE(f->mock[d].opened);
        ASSERT_UINT(f->mock[d].opens, f->mock[d].closes);
    }
    PASS();
}

enum greatest_test_res fixture_renew(fixture *f)
{
    mock_mode mode = f->mode;
    int cleanup = take_down(f);
    enum greatest_test_res books = check_books(f);
    free_fixture(f);
    int opened = open_fixture(f, mode);
    ASSERT_OK(cleanup);
    CHECK_CALL(books);
    ASSERT_OK(opened);
    PASS();
}

static enum greatest_test_res run_and_check(fixture_test *test, fixture *f)
{
    CHECK_CALL(test(f));
    CHECK_CALL(fixture_check(f));
    ASSERT_OK(take_down(f));
    return check_books(f);
}

enum greatest_test_res fixture_run(fixture_test *test, mock_mode mode)
{
    static fixture f;
    int fds = fixture_open_fds();
    if (open_fixture(&f, mode) < 0) {
        FAILm("vhost_vm_init failed");
    }
    enum greatest_test_res result = run_and_check(test, &f);
    if (result == GREATEST_TEST_RES_FAIL) {
        const char *message = greatest_info.msg;
        take_down(&f);
        greatest_info.msg = message;
    }
    free_fixture(&f);
    if (result == GREATEST_TEST_RES_PASS) {
        ASSERT_INT(fds, fixture_open_fds());
    }
    return result;
}

/* ---- arranging ---- */

int fixture_map(fixture *f, const vhost_section *sections, size_t count)
{
    int result = vhost_memory_begin(&f->vm);
    for (size_t i = 0; i < count && result >= 0; i++) {
        result = vhost_memory_add(&f->vm, &sections[i]);
        if (result < 0) {
            vhost_memory_abort(&f->vm);
        }
    }
    return result < 0 ? result : vhost_memory_commit(&f->vm);
}

int fixture_map_default(fixture *f)
{
    vhost_section sections[2];
    sections[0] = f->low;
    sections[1] = f->high;
    return fixture_map(f, sections, 2);
}

int fixture_attach(fixture *f, unsigned d)
{
    int result = vhost_device_init(&f->device[d], &f->vm, &f->mock[d].ops, &f->mock[d], f->queue[d],
                                   FIXTURE_QUEUES, &f->device_options);
    return result < 0 ? result : vhost_device_ack(&f->device[d], f->accepted);
}

void fixture_fill(fixture *f, unsigned d)
{
    for (unsigned q = 0; q < FIXTURE_QUEUES; q++) {
        vhost_queue *queue = &f->queue[d][q];
        uint64_t area = VHOST_PAGE * (8 + 4 * (d * FIXTURE_QUEUES + q));
        queue->ready = true;
        queue->size = FIXTURE_RING_SIZE;
        queue->desc = area;
        queue->avail = area + VHOST_PAGE;
        queue->used = area + 2 * VHOST_PAGE;
        queue->kick_fd = (int)(FIXTURE_KICK_FD + d * FIXTURE_QUEUES + q);
        queue->call_fd = (int)(FIXTURE_CALL_FD + d * FIXTURE_QUEUES + q);
    }
}

int fixture_start(fixture *f, unsigned d)
{
    fixture_fill(f, d);
    return vhost_device_start(&f->device[d]);
}

int fixture_stopped_device(fixture *f)
{
    int result = fixture_map_default(f);
    if (result >= 0) {
        result = fixture_attach(f, 0);
    }
    fixture_fill(f, 0);
    return result;
}

int fixture_running_device(fixture *f)
{
    int result = fixture_stopped_device(f);
    return result < 0 ? result : vhost_device_start(&f->device[0]);
}

void fixture_break(fixture *f, unsigned d)
{
    mock_die(&f->mock[d]);
    vhost_device_process(&f->device[d]);
    f->errors = 0;
    f->broken[d] = 0;
}

static void put_index(vhost_vm *vm, uint64_t part, uint16_t index)
{
    vhost_extent extent = {0};
    if (vhost_memory_find(vm, part, &extent) == 0) {
        ((unsigned char *)extent.host)[2] = (unsigned char)index;
        ((unsigned char *)extent.host)[3] = (unsigned char)(index >> 8);
    }
}

void fixture_put_used(vhost_vm *vm, const vhost_queue *queue, uint16_t index)
{
    put_index(vm, queue->used, index);
}

void fixture_put_available(vhost_vm *vm, const vhost_queue *queue, uint16_t index)
{
    put_index(vm, queue->avail, index);
}

void fixture_set_used(fixture *f, unsigned d, unsigned queue, uint16_t index)
{
    unsigned char *used = f->host + f->queue[d][queue].used;
    used[2] = (unsigned char)index;
    used[3] = (unsigned char)(index >> 8);
}

/* ---- checking ---- */

enum greatest_test_res fixture_failed(const fixture *f, unsigned errors_before,
                                      const vhost_error *error, int code, vhost_why why)
{
    ASSERT_INT(code, error->code);
    ASSERT_STR_EQ(vhost_why_text(why), vhost_why_text(error->why));
    ASSERT_INT(why, error->why);
    ASSERT_UINT(errors_before + 1, f->errors);
    ASSERT_INT(code, f->last_message.what.code);
    ASSERT_INT(why, f->last_message.what.why);
    ASSERT_INT(error->op, f->last_message.what.op);
    ASSERT_INT(error->queue, f->last_message.what.queue);
    ASSERT(error->line > 0);
    ASSERT(error->text[0] != '\0');
    bool of_vm = error == &f->vm.last_error;
    ASSERT(of_vm == (f->last_message.device == NULL));
    PASS();
}

enum greatest_test_res fixture_names(const vhost_error *error, vhost_op op, int queue)
{
    ASSERT_STR_EQ(vhost_op_name(op), vhost_op_name(error->op));
    ASSERT_INT(queue, error->queue);
    PASS();
}

/* A ring must be where the guest's map has it: elsewhere, the back-end writes to strange memory. */
static enum greatest_test_res check_ring_memory(const fixture *f, const mock_ring *ring,
                                                const vhost_queue *queue)
{
    const uint64_t addresses[3] = {queue->desc, queue->avail, queue->used};
    for (int part = 0; part < 3; part++) {
        const vhost_mapping *mapping = &ring->addresses.part[part];
        vhost_extent extent;
        ASSERT_U64(addresses[part], mapping->address);
        ASSERT_OK(vhost_memory_find(&f->vm, mapping->gpa, &extent));
        ASSERT_PTR(extent.host, mapping->host);
        ASSERT(ring->addresses.iova || mapping->size <= extent.size);
    }
    PASS();
}

static enum greatest_test_res check_running(const fixture *f, int d)
{
    const mock_backend *mock = &f->mock[d];
    ASSERT(mock->opened && !mock->severed);
    for (uint32_t q = 0; q < FIXTURE_QUEUES; q++) {
        ASSERT_INT(f->queue[d][q].started,
                   mock->dead ? f->queue[d][q].started : mock_ring_runs(mock, q));
        if (f->queue[d][q].started) {
            CHECK_CALL(check_ring_memory(f, &mock->rings[q], &f->queue[d][q]));
        }
    }
    PASS();
}

static enum greatest_test_res check_resting(const fixture *f, int d)
{
    bool open = f->mock[d].opened && !f->mock[d].severed;
    ASSERT_INT(f->device[d].state == VHOST_STATE_STOPPED, open);
    ASSERT_FALSE(mock_runs(&f->mock[d]));
    for (uint32_t q = 0; q < FIXTURE_QUEUES; q++) {
        ASSERT_FALSE(f->queue[d][q].started);
    }
    PASS();
}

static enum greatest_test_res check_device(const fixture *f, int d)
{
    ASSERT_STR_EQ("", f->mock[d].complaint);
    ASSERT_FALSE(mock_is_pending(&f->mock[d]));
    switch (f->device[d].state) {
    case VHOST_STATE_CLOSED:
        ASSERT_FALSE(f->mock[d].opened);
        PASS();
    case VHOST_STATE_STOPPED:
    case VHOST_STATE_BROKEN:
        return check_resting(f, d);
    case VHOST_STATE_RUNNING:
        return check_running(f, d);
    }
    FAILm("the state is none of the four");
}

enum greatest_test_res fixture_check(const fixture *f)
{
    bool running = false;
    for (int d = 0; d < FIXTURE_DEVICES; d++) {
        CHECK_CALL(check_device(f, d));
        running = running || f->device[d].state == VHOST_STATE_RUNNING;
    }
    if (!running) {
        ASSERT_INT(0, f->mappings);
    }
    PASS();
}

int fixture_open_fds(void)
{
    int count = 0;
    DIR *folder = opendir("/proc/self/fd");
    if (folder) {
        while (readdir(folder)) {
            count++;
        }
        closedir(folder);
    }
    return count;
}
