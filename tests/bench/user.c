/* Section 3: the life of a vhost-user device, phase by phase: how long each takes, how often it
   waits, and how many system calls it makes; beside the same messages in two other orders. */
#define _GNU_SOURCE
#include "bench.h"
#include "guest.h"
#include "real_backend.h"
#include "replay.h"
#include "user_backend.h"
#include "vhost_user.h"

#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

enum {
    QUEUES = 256,
    RING_SIZE = 64,
    RING_BYTES = 4096,
    PIECES = 7,         /* of memory, plugged in at once: with what is there, 8 regions */
    PIECE = 2 << 20,    /* bytes */
    LOW = QUEUES * 4096 /* bytes of memory that is always there, full of rings */
};

typedef enum phase {
    CONNECT,
    START,
    PLUG,
    LOG_ON,
    LOG_OFF,
    STOP,
    PHASES
} phase;

static const char *const phase_names[PHASES] = {"connect", "start",   "7 regions come",
                                                "log on",  "log off", "stop"};

typedef struct life {
    const char *socket;
    unsigned queues;
    bool pairs, logs;
    vhost_vm vm;
    vhost_backing ram;
    vhost_user link;
    vhost_device device;
    vhost_queue queue[QUEUES];
    int kick[QUEUES], call[QUEUES];
} life;

/* ---- a front-end ---- */

static void make_memory(life *self)
{
    uint64_t size = LOW + (uint64_t)PIECES * 2 * PIECE;
    int fd = memfd_create("guest", MFD_CLOEXEC);
    if (fd < 0 || ftruncate(fd, (off_t)size) != 0) {
        guest_must(-1, "memory of the guest");
    }
    void *host = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    vhost_backing_init(&self->ram, host, size, fd, 0);
}

/* The first PIECE that could touch its neighbour does not: each is a region. */
static void map_memory(life *self, unsigned pieces)
{
    vhost_section section;
    vhost_section_init(&section, 0, LOW, &self->ram, 0);
    guest_must(vhost_memory_begin(&self->vm), "begin");
    guest_must(vhost_memory_add(&self->vm, &section), "add");
    for (unsigned i = 0; i < pieces; i++) {
        uint64_t gpa = LOW + PIECE + (uint64_t)i * 2 * PIECE;
        vhost_section_init(&section, gpa, PIECE, &self->ram, gpa - PIECE);
        guest_must(vhost_memory_add(&self->vm, &section), "add");
    }
    guest_must(vhost_memory_commit(&self->vm), "commit");
}

static void lay_out_queues(life *self)
{
    for (unsigned i = 0; i < self->queues; i++) {
        vhost_queue *queue = &self->queue[i];
        vhost_queue_init(queue);
        queue->ready = true;
        queue->size = RING_SIZE;
        queue->desc = (uint64_t)i * RING_BYTES;
        queue->avail = queue->desc + 1024;
        queue->used = queue->desc + 2048;
        queue->kick_fd = self->kick[i];
        queue->call_fd = self->call[i];
    }
}

static void prepare(life *self)
{
    guest_must(vhost_vm_init(&self->vm, NULL), "vm init");
    make_memory(self);
    map_memory(self, 0);
    lay_out_queues(self);
}

static void clear_away(life *self)
{
    vhost_device_cleanup(&self->device);
    vhost_user_close(&self->link);
    guest_must(vhost_vm_cleanup(&self->vm), "vm cleanup");
    munmap(self->ram.host, self->ram.size);
    close(self->ram.fd);
}

/* No channel and no record of requests in flight: their fds are of one connection only. */
static void connect_device(life *self)
{
    vhost_user_options options = {.avoid = 1u << 5 | 1u << 12, .counts_pairs = self->pairs};
    vhost_features mine = {{UINT64_C(1) << VHOST_FEATURE_VERSION_1, 0}};
    guest_must(vhost_user_connect(&self->link, self->socket, &options), "connect");
    guest_must(vhost_device_init(&self->device, &self->vm, vhost_user_ops(), &self->link,
                                 self->queue, self->queues, NULL),
               "device init");
    guest_must(vhost_device_ack(&self->device, vhost_device_offer(&self->device, mine)), "ack");
}

static void live_phase(life *self, phase what)
{
    switch (what) {
    case CONNECT:
        connect_device(self);
        break;
    case START:
        guest_must(vhost_device_start(&self->device), "start");
        break;
    case PLUG:
        map_memory(self, PIECES);
        break;
    case LOG_ON:
        if (self->logs) {
            guest_must(vhost_log_start(&self->vm), "log start");
        }
        break;
    case LOG_OFF:
        guest_must(vhost_log_stop(&self->vm), "log stop");
        break;
    case STOP:
        guest_must(vhost_device_stop(&self->device), "stop");
        break;
    case PHASES:
        break;
    }
}

/* ---- lives, ours and replayed ---- */

typedef struct way {
    life *life;
    const replay *replay; /* or NULL: it is ours */
    replay_order order;
    double best[PHASES];
    int waits[PHASES];
    unsigned calls[PHASES]; /* of the system */
    bool refused;           /* the back-end closed the connection of a replay */
} way;

static int connect_socket(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    snprintf(address.sun_path, sizeof address.sun_path, "%s", path);
    guest_must(connect(fd, (struct sockaddr *)&address, sizeof address), "connect");
    return fd;
}

/* One life; `ended` is told of each phase. */
static void live(way *self, void (*begins)(way *, phase), void (*ended)(way *, phase))
{
    int fd = -1;
    if (self->replay == NULL) {
        prepare(self->life);
    } else {
        fd = connect_socket(self->life->socket);
    }
    for (int i = CONNECT; i < PHASES && !self->refused; i++) {
        begins(self, (phase)i);
        if (self->replay == NULL) {
            live_phase(self->life, (phase)i);
        } else {
            self->waits[i] = replay_play(self->replay, fd, (unsigned)i, self->order);
            self->refused = self->waits[i] < 0;
        }
        if (!self->refused) {
            ended(self, (phase)i);
        }
    }
    if (self->replay == NULL) {
        clear_away(self->life);
    } else {
        close(fd);
    }
}

/* The back-end has time to finish what nobody waited for. */
static void pause_a_little(way *self, phase what)
{
    (void)self;
    (void)what;
    usleep(2000);
}

static double clock_at;

static void start_clock(way *self, phase what)
{
    pause_a_little(self, what);
    clock_at = bench_now();
}

static void stop_clock(way *self, phase what)
{
    double time = bench_now() - clock_at;
    if (self->best[what] == 0 || time < self->best[what]) {
        self->best[what] = time;
    }
}

/* ---- recording ---- */

static replay *current;

static void begin_nothing(way *self, phase what)
{
    (void)self;
    (void)what;
}

static void next_phase(way *self, phase what)
{
    (void)self;
    (void)what;
    replay_next_phase(current);
}

static replay *record(life *of)
{
    way ours = {.life = of};
    current = replay_begin();
    live(&ours, begin_nothing, next_phase);
    replay_end(current);
    return current;
}

/* ---- counting waits: the fake back-end does ---- */

static const user_backend *counting;

static void begin_waits(way *self, phase what)
{
    pause_a_little(self, what);
    self->waits[what] = -(int)user_backend_count(counting, USER_BACKEND_WAITS);
}

static void end_waits(way *self, phase what)
{
    usleep(100000);
    self->waits[what] += (int)user_backend_count(counting, USER_BACKEND_WAITS);
}

/* ---- counting system calls: a child is traced, which marks the phases by getppid ---- */

static void mark(way *self, phase what)
{
    (void)self;
    (void)what;
    (void)syscall(SYS_getppid);
}

static void mark_begin(way *self, phase what)
{
    pause_a_little(self, what);
    mark(self, what);
}

static void be_traced(way *self)
{
    if (ptrace(PTRACE_TRACEME, 0, NULL, NULL) != 0) {
        _exit(1);
    }
    raise(SIGSTOP);
    live(self, mark_begin, mark);
    _exit(0);
}

/* Its calls go to the phase whose begin was marked, and not yet its end. */
static bool count_calls(way *self)
{
    unsigned marks = 0;
    int status;
    pid_t child = fork();
    if (child == 0) {
        be_traced(self);
    }
    memset(self->calls, 0, sizeof self->calls);
    if (waitpid(child, &status, 0) != child || !WIFSTOPPED(status) ||
        ptrace(PTRACE_SETOPTIONS, child, NULL, PTRACE_O_TRACESYSGOOD | PTRACE_O_EXITKILL) != 0) {
        return false;
    }
    while (ptrace(PTRACE_SYSCALL, child, NULL, NULL) == 0 && waitpid(child, &status, 0) == child &&
           !WIFEXITED(status)) {
        struct __ptrace_syscall_info info;
        if (!WIFSTOPPED(status) || WSTOPSIG(status) != (SIGTRAP | 0x80) ||
            ptrace(PTRACE_GET_SYSCALL_INFO, child, sizeof info, &info) <= 0 ||
            info.op != PTRACE_SYSCALL_INFO_ENTRY) {
            continue;
        }
        if (info.entry.nr == SYS_getppid) {
            marks++;
        } else if (marks % 2 == 1 && marks / 2 < PHASES) {
            self->calls[marks / 2]++;
        }
    }
    return WIFEXITED(status) && WEXITSTATUS(status) == 0 && marks == 2 * PHASES;
}

/* ---- rows ---- */

static void name_row(bench_row *row, const char *backend, unsigned queues, phase what,
                     const char *of)
{
    snprintf(row->name, sizeof row->name, "%s, %u queue%s, %s: %s", backend, queues,
             queues > 1 ? "s" : "", phase_names[what], of);
}

static void print_phase(const char *backend, const way *ours, const way *synchronous,
                        const way *at_once, phase what, bool has_waits)
{
    unsigned queues = ours->life->queues;
    bench_row time = {.unit = BENCH_TIME}, count = {.unit = BENCH_COUNT};
    name_row(&time, backend, queues, what, "time");
    time.ours = ours->best[what];
    time.reference = synchronous->best[what];
    time.limit = at_once->best[what];
    if (queues >= 8 && (what == START || what == STOP)) {
        time.least_ratio = what == START ? 5 : 8;
        time.least_share = what == START ? 0.8 : 0;
    }
    bench_print(&time);
    if (has_waits) {
        name_row(&count, backend, queues, what, "waits");
        count.ours = ours->waits[what];
        count.reference = synchronous->waits[what];
        count.most = what == CONNECT ? 3 : 1;
        bench_print(&count);
    }
    if (ours->calls[what] > 0) {
        name_row(&count, backend, queues, what, "system calls");
        count.ours = ours->calls[what];
        count.reference = synchronous->calls[what];
        count.most = 0;
        bench_print(&count);
    }
}

static void race_lives(life *self, const char *backend, bool has_waits, int *waits)
{
    const double enough = bench_quick ? 0.3e9 : 2e9;
    replay *recorded = record(self);
    way ours = {.life = self},
        synchronous = {.life = self, .replay = recorded, .order = REPLAY_SYNCHRONOUS},
        at_once = {.life = self, .replay = recorded, .order = REPLAY_AT_ONCE};
    double start = bench_now();
    for (unsigned pass = 0; pass < 5 || (pass < 50 && bench_now() - start < enough); pass++) {
        live(&ours, start_clock, stop_clock);
        live(&synchronous, start_clock, stop_clock);
        live(&at_once, start_clock, stop_clock);
    }
    memcpy(ours.waits, waits, sizeof ours.waits);
    if (synchronous.refused || at_once.refused) {
        bench_note("%s, %u queues: it closed the connection of a replay", backend, self->queues);
    }
    if (!count_calls(&ours) || !count_calls(&synchronous)) {
        bench_note("%s, %u queues: no system calls counted, by ptrace", backend, self->queues);
    }
    for (int i = CONNECT; i < PHASES; i++) {
        if (self->logs || (i != LOG_ON && i != LOG_OFF)) {
            print_phase(backend, &ours, &synchronous, &at_once, (phase)i, has_waits);
        }
    }
    replay_free(recorded);
}

/* ---- back-ends ---- */

static void open_life(life *self, const char *socket, unsigned queues)
{
    memset(self, 0, sizeof *self);
    self->socket = socket;
    self->queues = queues;
    for (unsigned i = 0; i < queues; i++) {
        self->kick[i] = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        self->call[i] = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    }
}

static void close_life(life *self)
{
    for (unsigned i = 0; i < self->queues; i++) {
        close(self->kick[i]);
        close(self->call[i]);
    }
}

static void run_on(unsigned cpu)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    (void)sched_setaffinity(0, sizeof set, &set);
}

/* A process on the other CPU, if there is one. */
static user_backend *start_fake(const char *socket, unsigned queues, unsigned linger)
{
    user_backend_options options = user_backend_defaults(USER_BACKEND_NONE);
    options.listen_path = socket;
    options.forks = true;
    options.queues = queues;
    options.linger_ms = linger;
    run_on(1);
    user_backend *backend = user_backend_start(&options);
    run_on(0);
    if (backend == NULL) {
        guest_must(-1, "the fake back-end");
    }
    return backend;
}

static void bench_fake(unsigned queues)
{
    static const char socket[] = "/tmp/vhost-bench.sock";
    static life self;
    way counted = {.life = &self};
    open_life(&self, socket, queues);
    self.logs = true;
    user_backend *backend = start_fake(socket, queues, 20);
    counting = backend;
    live(&counted, begin_waits, end_waits);
    user_backend_stop(backend);
    backend = start_fake(socket, queues, 0);
    race_lives(&self, "fake", true, counted.waits);
    user_backend_stop(backend);
    close_life(&self);
}

static void bench_real(const char *name, const char *title, unsigned queues, unsigned per_queue,
                       bool logs)
{
    static life self;
    real_backend backend;
    char option[32];
    int none[PHASES] = {0};
    snprintf(option, sizeof option, "queues=%u", queues / per_queue);
    if (!real_backend_open(&backend)) {
        bench_skip(title, "no folder in /tmp");
        return;
    }
    if (!real_backend_start(&backend, name, option)) {
        bench_skip(title, "it cannot be run here");
    } else {
        open_life(&self, backend.socket, queues);
        self.pairs = per_queue == 2;
        self.logs = logs;
        race_lives(&self, title, false, none);
        close_life(&self);
    }
    real_backend_close(&backend);
}

void bench_user(void)
{
    static const unsigned queues[] = {1, 8, 64, QUEUES};
    struct rlimit files;
    cpu_set_t all;
    sched_getaffinity(0, sizeof all, &all);
    if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
        files.rlim_cur = files.rlim_max;
        setrlimit(RLIMIT_NOFILE, &files);
    }
    bench_title(
        "3. A vhost-user device: what a call costs, back-end on the other CPU",
        "the same messages, waiting for each answer, and for the acknowledgement of memory,\n"
        "    ring addresses, kick and call fds",
        "the same messages, sent at once");
    for (unsigned i = 0; i < 4; i++) {
        if (!bench_quick || queues[i] == 1 || queues[i] == 64) {
            bench_fake(queues[i]);
        }
    }
    sched_setaffinity(0, sizeof all, &all);
    for (unsigned i = 0; i < 3 && !bench_quick; i++) {
        bench_real("net", "testpmd", queues[i] * 2, 2, true);
        bench_real("blk", "storage daemon", queues[i], 1, false);
    }
}
