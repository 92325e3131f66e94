#define _GNU_SOURCE
#include "scsi_machine.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static const char vhost_scsi[] = "/dev/vhost-scsi";

/* ---- what the library tells ---- */

static void on_message(vhost_level level, const vhost_error *what, const vhost_device *device,
                       void *user)
{
    scsi_machine *m = user;
    (void)what;
    (void)device;
    m->errors += level == VHOST_LEVEL_ERROR;
}

static void on_trace(const vhost_trace *trace, void *user)
{
    scsi_machine *m = user;
    if (trace->event == VHOST_TRACE_OP) {
        m->ops[trace->op]++;
    }
}

static void on_broken(vhost_device *device, void *user)
{
    scsi_machine *m = user;
    (void)device;
    m->broken++;
}

static void on_queue_error(vhost_device *device, uint32_t queue, void *user)
{
    scsi_machine *m = user;
    (void)device;
    m->queue_errors[queue < SCSI_QUEUES ? queue : 0]++;
}

/* ---- arranging ---- */

static int open_memory(scsi_machine *m)
{
    m->ram = mmap(NULL, SCSI_END, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (m->ram == MAP_FAILED) {
        m->ram = NULL;
        return -errno;
    }
    m->disk = calloc(1, SCSI_DISK);
    vhost_backing_init(&m->backing, m->ram, SCSI_END, -1, 0);
    vhost_section_init(&m->low, 0, SCSI_RAM, &m->backing, 0);
    vhost_section_init(&m->plug, SCSI_PLUG, SCSI_PLUG_SIZE, &m->backing, SCSI_PLUG);
    return m->disk ? vhost_vm_init(&m->vm, &m->vm_options) : -ENOMEM;
}

int scsi_machine_map_sections(scsi_machine *m, const vhost_section *sections, unsigned count)
{
    int result = vhost_memory_begin(&m->vm);
    for (unsigned i = 0; i < count && result >= 0; i++) {
        result = vhost_memory_add(&m->vm, &sections[i]);
    }
    return result < 0 ? result : vhost_memory_commit(&m->vm);
}

int scsi_machine_map(scsi_machine *m, bool plugged)
{
    const vhost_section both[2] = {m->low, m->plug};
    return scsi_machine_map_sections(m, both, plugged ? 2 : 1);
}

void scsi_machine_fill_queues(scsi_machine *m)
{
    for (int i = 0; i < m->queues; i++) {
        const scsi_queue *from = &m->driver.queues[i];
        vhost_queue *queue = &m->queue[i];
        queue->ready = true;
        queue->size = from->ring.size;
        queue->desc = from->ring.descriptors_gpa;
        queue->avail = from->ring.available_gpa;
        queue->used = from->ring.used_gpa;
        queue->kick_fd = from->kick;
        queue->call_fd = from->call;
    }
}

int scsi_machine_open_driver(scsi_machine *m)
{
    int result = scsi_driver_open(&m->driver, m->ram, 0, m->queues, m->depth);
    if (result >= 0) {
        scsi_machine_fill_queues(m);
    }
    return result;
}

void scsi_machine_close_driver(scsi_machine *m)
{
    scsi_driver_close(&m->driver);
    memset(&m->driver, 0, sizeof m->driver);
}

int scsi_machine_prepared(scsi_machine *m)
{
    int result = open_memory(m);
    if (result >= 0) {
        result = lio_target_open(&m->target, 0, SCSI_DISK);
    }
    if (result >= 0) {
        result = scsi_machine_open_driver(m);
    }
    return result < 0 ? result : scsi_machine_map(m, false);
}

static int open_scsi(scsi_machine *m)
{
    if (!m->pass_fd) {
        return vhost_kernel_scsi_open(&m->scsi, vhost_scsi, m->target.wwpn, &m->kernel_options);
    }
    int fd = open(vhost_scsi, O_RDWR | O_CLOEXEC);
    return fd < 0 ? -errno
                  : vhost_kernel_scsi_open_fd(&m->scsi, fd, m->target.wwpn, &m->kernel_options);
}

int scsi_machine_attach(scsi_machine *m)
{
    int result = vhost_device_init(&m->device, &m->vm, vhost_kernel_ops(&m->scsi), &m->scsi,
                                   m->queue, (uint32_t)m->queues, &m->device_options);
    return result < 0 ? result : vhost_device_ack(&m->device, m->accepted);
}

int scsi_machine_stopped(scsi_machine *m)
{
    int result = scsi_machine_prepared(m);
    if (result >= 0) {
        result = open_scsi(m);
    }
    return result < 0 ? result : scsi_machine_attach(m);
}

int scsi_machine_running(scsi_machine *m)
{
    int result = scsi_machine_stopped(m);
    return result < 0 ? result : vhost_device_start(&m->device);
}

int scsi_machine_open_other(scsi_machine *m, const char *wwpn)
{
    scsi_other *other = &m->other;
    for (int i = 0; i < m->queues; i++) {
        const vhost_queue *from = &m->queue[i];
        vhost_queue *queue = &other->queue[i];
        vhost_queue_init(queue);
        queue->ready = true;
        queue->size = from->size;
        queue->desc = from->desc;
        queue->avail = from->avail;
        queue->used = from->used;
        queue->kick_fd = from->kick_fd;
        queue->call_fd = from->call_fd;
        queue->position = from->position;
    }
    int result = vhost_kernel_scsi_open(&other->scsi, vhost_scsi, wwpn, &m->kernel_options);
    if (result >= 0) {
        result = vhost_device_init(&other->device, &m->vm, vhost_kernel_ops(&other->scsi),
                                   &other->scsi, other->queue, (uint32_t)m->queues, NULL);
    }
    return result < 0 ? result : vhost_device_ack(&other->device, m->accepted);
}

void scsi_machine_close_other(scsi_machine *m)
{
    vhost_device_cleanup(&m->other.device);
    vhost_kernel_close(&m->other.scsi);
    memset(&m->other, 0, sizeof m->other);
}

static void set_defaults(scsi_machine *m)
{
    memset(m, 0, sizeof *m);
    m->queues = SCSI_FIRST + 2;
    m->depth = 4;
    for (int i = 0; i < SCSI_QUEUES; i++) {
        vhost_queue_init(&m->queue[i]);
    }
    m->vm_options.user = m->device_options.user = m->kernel_options.user = m;
    m->vm_options.on_message = on_message;
    m->vm_options.on_trace = on_trace;
    m->device_options.on_broken = on_broken;
    m->device_options.on_queue_error = on_queue_error;
    vhost_features_set(&m->accepted, VHOST_FEATURE_VERSION_1);
}

/* The target is last: while a device has it, it cannot be taken down. */
static int take_down(scsi_machine *m)
{
    scsi_machine_close_other(m);
    vhost_device_cleanup(&m->device);
    vhost_kernel_close(&m->scsi);
    (void)vhost_vm_cleanup(&m->vm);
    scsi_driver_close(&m->driver);
    if (m->ram) {
        munmap(m->ram, SCSI_END);
    }
    free(m->disk);
    return lio_target_close(&m->target);
}

static enum greatest_test_res judge(scsi_machine *m, enum greatest_test_res result)
{
    if (m->driver.fault) {
        printf("driver: %s\n", m->driver.fault);
        greatest_info.msg = m->driver.fault;
        result = GREATEST_TEST_RES_FAIL;
    }
    if (result != GREATEST_TEST_RES_PASS) {
        printf("vm: %s\ndevice: %s\nkernel: %s\ntarget: %s\n", m->vm.last_error.text,
               m->device.last_error.text, m->scsi.last_error.text,
               m->target.failed ? m->target.failed : "good");
    }
    return result;
}

enum greatest_test_res scsi_machine_run(scsi_machine_test *test)
{
    static scsi_machine the_machine;
    scsi_machine *m = &the_machine;
    unsigned fds = machine_fds();
    set_defaults(m);
    enum greatest_test_res result = judge(m, test(m));
    int left = take_down(m);
    if (result == GREATEST_TEST_RES_PASS) {
        ASSERT_OK(left);
        ASSERT_UINT(fds, machine_fds());
        ASSERT_UINT(0, scsi_machine_threads(0));
    }
    return result;
}

/* ---- waiting ---- */

bool scsi_machine_waits(scsi_machine *m, int fd, int milliseconds)
{
    enum {
        SERVED = SCSI_QUEUES + 4
    };
    int fds[SERVED];
    struct pollfd polled[1 + SERVED] = {{.fd = fd, .events = POLLIN}};
    for (;;) {
        uint32_t count = vhost_device_poll_fds(&m->device, fds, SERVED);
        count = count < SERVED ? count : SERVED;
        for (uint32_t i = 0; i < count; i++) {
            polled[1 + i] = (struct pollfd){.fd = fds[i], .events = POLLIN};
        }
        int ready = poll(polled, 1 + count, milliseconds);
        if (ready <= 0 || polled[0].revents != 0) {
            return ready > 0;
        }
        (void)vhost_device_process(&m->device);
    }
}

const scsi_request *scsi_machine_await(scsi_machine *m, int queue)
{
    const scsi_request *done;
    scsi_driver_kick(&m->driver);
    while ((done = scsi_driver_collect(&m->driver, queue)) == NULL) {
        if (m->driver.fault ||
            !scsi_machine_waits(m, m->driver.queues[queue].call, SCSI_PATIENCE)) {
            return NULL;
        }
        (void)scsi_driver_called(&m->driver, queue);
    }
    return done;
}

/* ---- pieces of the disk ---- */

static uint8_t *piece_of(const scsi_machine *m, uint32_t piece)
{
    return m->disk + (uint64_t)piece * SCSI_PIECE;
}

static void make_pattern(scsi_machine *m, uint8_t *bytes)
{
    uint64_t state = ++m->patterns;
    for (int i = 0; i < SCSI_PIECE; i++) {
        state = state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
        bytes[i] = (uint8_t)(state >> 56);
    }
}

/* The data of a request is at one place for each piece, or in the request's own buffer. */
static uint8_t *place_data(const scsi_machine *m, scsi_request *request, uint32_t piece)
{
    if (m->data == 0) {
        return request->data;
    }
    request->gpa = m->data + (uint64_t)piece % 64 * SCSI_PIECE;
    return m->ram + request->gpa;
}

bool scsi_machine_puts(scsi_machine *m, int queue, uint32_t piece)
{
    scsi_request *request = scsi_driver_idle(&m->driver, queue);
    if (!request) {
        return false;
    }
    scsi_write(request, (uint64_t)piece * SCSI_PIECE, SCSI_PIECE);
    make_pattern(m, piece_of(m, piece));
    memcpy(place_data(m, request, piece), piece_of(m, piece), SCSI_PIECE);
    scsi_driver_submit(&m->driver, queue, request);
    return true;
}

bool scsi_machine_gets(scsi_machine *m, int queue, uint32_t piece)
{
    scsi_request *request = scsi_driver_idle(&m->driver, queue);
    if (!request) {
        return false;
    }
    scsi_read(request, (uint64_t)piece * SCSI_PIECE, SCSI_PIECE);
    memset(place_data(m, request, piece), 0xee, SCSI_PIECE);
    scsi_driver_submit(&m->driver, queue, request);
    return true;
}

static enum greatest_test_res is_right(const scsi_machine *m, const scsi_request *done)
{
    uint32_t first = (uint32_t)done->command[3] << 16 | (uint32_t)done->command[4] << 8 |
                     (uint32_t)done->command[5];
    uint32_t piece = first / (SCSI_PIECE / SCSI_BLOCK);
    ASSERT_UINT(0, done->response);
    ASSERT_UINT(0, done->sense * done->status);
    ASSERT_UINT(0, done->status);
    if (done->flow == SCSI_FROM_DEVICE) {
        ASSERT_MEM_EQ(piece_of(m, piece), m->ram + done->gpa, SCSI_PIECE);
    }
    PASS();
}

static enum greatest_test_res takes(scsi_machine *m, int queue)
{
    const scsi_request *done;
    (void)scsi_driver_called(&m->driver, queue);
    while ((done = scsi_driver_collect(&m->driver, queue)) != NULL) {
        CHECK_CALL(is_right(m, done));
    }
    ASSERT_FALSE(m->driver.fault);
    PASS();
}

enum greatest_test_res scsi_machine_finishes(scsi_machine *m)
{
    scsi_driver_kick(&m->driver);
    for (int i = SCSI_FIRST; i < m->queues; i++) {
        const scsi_queue *queue = &m->driver.queues[i];
        CHECK_CALL(takes(m, i));
        while (queue->in_flight > 0) {
            ASSERT(scsi_machine_waits(m, queue->call, SCSI_PATIENCE));
            CHECK_CALL(takes(m, i));
        }
    }
    PASS();
}

/* One way, as deep as it goes. shift: of the queues. */
static enum greatest_test_res all_go(scsi_machine *m, uint32_t count, int shift,
                                     bool (*post)(scsi_machine *, int, uint32_t))
{
    int queues = m->queues - SCSI_FIRST;
    for (uint32_t piece = 0; piece < count; piece++) {
        int queue = SCSI_FIRST + ((int)piece + shift) % queues;
        if (!post(m, queue, piece)) {
            CHECK_CALL(scsi_machine_finishes(m));
            ASSERT(post(m, queue, piece));
        }
    }
    return scsi_machine_finishes(m);
}

enum greatest_test_res scsi_machine_flows(scsi_machine *m, uint32_t count)
{
    CHECK_CALL(all_go(m, count, 0, scsi_machine_puts));
    return all_go(m, count, 1, scsi_machine_gets);
}

enum greatest_test_res scsi_machine_file_is_right(scsi_machine *m)
{
    ASSERT(lio_target_has(&m->target, 0, m->disk, SCSI_DISK));
    PASS();
}

enum greatest_test_res scsi_machine_is_ready(scsi_machine *m, unsigned at_most_told)
{
    for (unsigned told = 0; told <= at_most_told; told++) {
        scsi_request *request = scsi_driver_idle(&m->driver, SCSI_FIRST);
        scsi_test_unit_ready(request);
        scsi_driver_submit(&m->driver, SCSI_FIRST, request);
        ASSERT(scsi_machine_await(m, SCSI_FIRST));
        if (scsi_good(request)) {
            PASS();
        }
        ASSERT_UINT(6, request->sense);
    }
    FAILm("the disk is not ready");
}

/* ---- threads ---- */

static bool is_vhost(const char *folder, const char *task)
{
    char path[64], name[32] = "";
    snprintf(path, sizeof path, "%s/%d/comm", folder, (int)strtol(task, NULL, 10));
    FILE *file = fopen(path, "r");
    bool read = file && fgets(name, sizeof name, file);
    if (file) {
        fclose(file);
    }
    return read && strncmp(name, "vhost-", 6) == 0;
}

static unsigned count_vhost(const char *folder)
{
    unsigned count = 0;
    const struct dirent *entry;
    DIR *tasks = opendir(folder);
    while (tasks && (entry = readdir(tasks)) != NULL) {
        count += isdigit((unsigned char)entry->d_name[0]) && is_vhost(folder, entry->d_name);
    }
    if (tasks) {
        closedir(tasks);
    }
    return count;
}

static unsigned count_threads(void)
{
    return count_vhost("/proc/self/task") + count_vhost("/proc");
}

unsigned scsi_machine_threads(unsigned expected)
{
    unsigned count = count_threads();
    for (int ms = 0; count != expected && ms < SCSI_PATIENCE; ms++) {
        (void)usleep(1000);
        count = count_threads();
    }
    return count;
}
