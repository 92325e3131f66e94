#define _GNU_SOURCE
#include "user_machine.h"

#include "clock.h"

#include <dirent.h>
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* ---- what is told ---- */

static void on_message(vhost_level level, const vhost_error *what, const vhost_device *device,
                       void *user)
{
    user_machine *m = user;
    (void)device;
    if (greatest_get_verbosity() > 1) {
        printf("%s\n", what->text);
    }
    m->errors += level == VHOST_LEVEL_ERROR;
}

static void on_trace(const vhost_trace *trace, void *user)
{
    user_machine *m = user;
    if (trace->event == VHOST_TRACE_OP) {
        m->ops[trace->op]++;
    } else if (trace->event == VHOST_TRACE_STATE) {
        m->broken += trace->value == VHOST_STATE_BROKEN;
    }
}

/* ---- memory ---- */

static int make_piece(user_machine *m, user_piece *piece, uint64_t size)
{
    int fd = memfd_create("guest", MFD_CLOEXEC);
    if (fd < 0 || ftruncate(fd, (off_t)size) != 0) {
        return -errno;
    }
    void *host =
        mmap(m->ram + piece->gpa, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0);
    vhost_backing_init(&piece->backing, host, size, fd, 0);
    return host == MAP_FAILED ? -errno : 0;
}

/* Of what is there, in the order of gpas. */
static int commit(user_machine *m)
{
    bool added[USER_PIECES] = {false};
    int result = vhost_memory_begin(&m->vm);
    for (;;) {
        unsigned next = USER_PIECES;
        for (unsigned i = 0; i < USER_PIECES; i++) {
            if (m->pieces[i].backing.size > 0 && !added[i] &&
                (next == USER_PIECES || m->pieces[i].gpa < m->pieces[next].gpa)) {
                next = i;
            }
        }
        if (next == USER_PIECES || result < 0) {
            break;
        }
        vhost_section section;
        const user_piece *piece = &m->pieces[next];
        vhost_section_init(&section, piece->gpa, piece->backing.size, &piece->backing, 0);
        result = vhost_memory_add(&m->vm, &section);
        added[next] = true;
    }
    return result < 0 ? result : vhost_memory_commit(&m->vm);
}

static void forget_former(user_piece *piece)
{
    if (piece->former.size > 0) {
        close(piece->former.fd);
        piece->former.size = 0;
    }
}

int user_machine_plug(user_machine *m, unsigned index, uint64_t gpa, uint64_t size)
{
    user_piece *piece = &m->pieces[index];
    piece->former = piece->backing;
    piece->gpa = gpa;
    int result = make_piece(m, piece, size);
    result = result < 0 ? result : commit(m);
    forget_former(piece);
    return result;
}

/* Its addresses lead nowhere then: whoever touches them dies. */
int user_machine_unplug(user_machine *m, unsigned index)
{
    user_piece *piece = &m->pieces[index];
    piece->former = piece->backing;
    piece->backing.size = 0;
    int result = commit(m);
    mmap(piece->former.host, piece->former.size, PROT_NONE,
         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
    forget_former(piece);
    return result;
}

/* ---- the device ---- */

int user_machine_attach(user_machine *m, uint32_t queues)
{
    int result = vhost_user_connect(&m->link, m->peer.socket, &m->user_options);
    for (uint32_t i = 0; i < queues; i++) {
        vhost_queue_init(&m->queue[i]);
    }
    if (result == 0) {
        result = vhost_device_init(&m->device, &m->vm, vhost_user_ops(), &m->link, m->queue, queues,
                                   &m->device_options);
    }
    if (result < 0) {
        return result;
    }
    vhost_features accepted = m->wanted;
    for (int i = 0; i < 2; i++) {
        accepted.word[i] &= m->device.facts.offered.word[i];
    }
    return vhost_device_ack(&m->device, accepted);
}

void user_machine_detach(user_machine *m)
{
    vhost_device_cleanup(&m->device);
    vhost_user_close(&m->link);
}

/* Calls are for the driver, which looks at its rings anyway. */
static void take_call(int fd)
{
    uint64_t count;
    (void)!read(fd, &count, sizeof count);
}

static void process(user_machine *m)
{
    int result = vhost_user_process(&m->link);
    m->returns += result == 1;
    if (result < 0) {
        m->refused = result;
        m->refusals++;
    }
}

void user_machine_turn(user_machine *m, int milliseconds)
{
    enum {
        ROOM = USER_QUEUES + 8 /* of the device: errors of its queues, and sockets */
    };
    struct pollfd polled[USER_QUEUES + ROOM];
    int fds[ROOM], timeout = vhost_user_timeout(&m->link);
    nfds_t queues = m->device.queue_count, count = vhost_user_poll_fds(&m->link, fds, ROOM);
    for (nfds_t i = 0; i < queues + count; i++) {
        polled[i].fd = i < queues ? m->queue[i].call_fd : fds[i - queues];
        polled[i].events = POLLIN;
    }
    double at = clock_now() + timeout / 1e3;
    poll(polled, queues + count, timeout < 0 || milliseconds < timeout ? milliseconds : timeout);
    bool due = timeout >= 0 && clock_now() >= at;
    for (nfds_t i = 0; i < queues + count; i++) {
        if (i >= queues) {
            due |= polled[i].revents != 0;
        } else if (polled[i].revents != 0) {
            take_call(polled[i].fd);
        }
    }
    if (due) {
        process(m);
    }
}

/* ---- what a process has ---- */

unsigned user_machine_fds(pid_t pid)
{
    char path[32];
    unsigned count = 0;
    snprintf(path, sizeof path, "/proc/%d/fd", (int)pid);
    DIR *folder = opendir(path);
    if (folder == NULL) {
        return 0;
    }
    while (readdir(folder) != NULL) {
        count++;
    }
    closedir(folder);
    return count - 2; /* the folder itself, and the one above */
}

static FILE *open_of(pid_t pid, const char *name)
{
    char path[32];
    snprintf(path, sizeof path, "/proc/%d/%s", (int)pid, name);
    return fopen(path, "r");
}

unsigned user_machine_mappings(pid_t pid)
{
    char line[256];
    unsigned count = 0;
    FILE *maps = open_of(pid, "maps");
    while (maps != NULL && fgets(line, sizeof line, maps) != NULL) {
        count += strstr(line, "/memfd:guest") != NULL;
    }
    if (maps != NULL) {
        fclose(maps);
    }
    return count;
}

long user_machine_resident(pid_t pid)
{
    char line[256];
    long size = 0;
    FILE *status = open_of(pid, "status");
    while (status != NULL && fgets(line, sizeof line, status) != NULL) {
        (void)sscanf(line, "RssAnon: %ld", &size);
    }
    if (status != NULL) {
        fclose(status);
    }
    return size;
}

/* ---- one test ---- */

static void set_up(user_machine *m)
{
    vhost_vm_options options = {.user = m, .on_message = on_message, .on_trace = on_trace};
    memset(m, 0, sizeof *m);
    m->device_options.user = m;
    m->user_options.user = m;
    m->user_options.timeout_ms = USER_PATIENCE;
    vhost_features_set(&m->wanted, VHOST_FEATURE_VERSION_1);
    m->ram = mmap(NULL, USER_RAM, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    vhost_vm_init(&m->vm, &options);
}

static void tear_down(user_machine *m)
{
    user_machine_detach(m);
    vhost_vm_cleanup(&m->vm);
    for (unsigned i = 0; i < USER_PIECES; i++) {
        if (m->pieces[i].backing.size > 0) {
            close(m->pieces[i].backing.fd);
        }
    }
    munmap(m->ram, USER_RAM);
    real_backend_close(&m->peer);
}

/* The end of its log, which may be long. */
static void tell_what_it_said(const char *path)
{
    enum {
        LINES = 8
    };
    char lines[LINES][256];
    unsigned count = 0;
    FILE *log = fopen(path, "r");
    while (log != NULL && fgets(lines[count % LINES], sizeof lines[0], log) != NULL) {
        count++;
    }
    for (unsigned i = count > LINES ? count - LINES : 0; i < count; i++) {
        printf("the back-end said: %s", lines[i % LINES]);
    }
    if (log != NULL) {
        fclose(log);
    }
}

static void tell_what_happened(const user_machine *m)
{
    char path[64];
    snprintf(path, sizeof path, "%s/log", m->peer.folder);
    tell_what_it_said(path);
    if (m->device.last_error.code != 0) {
        printf("the device said last: %s\n", m->device.last_error.text);
    }
}

enum greatest_test_res user_machine_run(user_machine_test *test)
{
    static user_machine machine;
    unsigned fds = user_machine_fds(getpid());
    set_up(&machine);
    enum greatest_test_res result =
        real_backend_open(&machine.peer) ? test(&machine) : GREATEST_TEST_RES_FAIL;
    if (result != GREATEST_TEST_RES_PASS) {
        tell_what_happened(&machine);
    }
    tear_down(&machine);
    if (result == GREATEST_TEST_RES_PASS) {
        ASSERT_UINT(fds, user_machine_fds(getpid()));
    }
    return result;
}
