/* Whatever happens to a back-end, at whatever moment, no request is lost, none is done wrongly, no
   dirty page is missed, and the VM goes on.

   Each run is the life of a device in a VM that migrates: it connects, starts, works, logs, gets
   and loses memory, stops, and starts again, while every byte of its requests is checked. At one of
   the system calls of the library on its sockets something happens to the back-end: which call, and
   what, follow from the seed of the run. VHOST_CHAOS_RUNS says how many runs there are of each
   kind, VHOST_CHAOS_SEED with which seed they begin.

   backends: blk */
#define _GNU_SOURCE
#include "clock.h"
#include "disk_load.h"
#include "user_backend.h"
#include "user_machine.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define LOW    UINT64_C(0x280000)  /* bytes: two queues, and the lower area */
#define PLUG   UINT64_C(0x1800000) /* gpa of memory that comes and goes */
#define AREA   (8 * (uint64_t)DISK_LOAD_BLOCK)
#define LOWER  (LOW - AREA) /* gpa of the lower area */
#define BLOCKS 64u
#define BIT(n) (UINT64_C(1) << (n))

enum {
    QUEUES = 2,
    DEPTH = 8,
    RUNS = 200,        /* of each kind of back-end */
    PATIENCE_MS = 100, /* for an answer of a back-end that is stopped */
    LOST = 5,          /* seconds until what has not come is lost */
    STATE_SIZE = 20000
};

/* ---- what may happen ---- */

typedef enum mishap {
    MISHAP_KILL,  /* the process dies */
    MISHAP_STOP,  /* it stands still, until it is killed */
    MISHAP_PAUSE, /* it stands still for a moment */
    MISHAP_CLOSE, /* its socket is closed */
    MISHAP_HALF,  /* it says the half of something, and closes */
    MISHAPS
} mishap;

static const char *const mishap_names[MISHAPS] = {"killed", "stopped", "paused", "closed", "half"};

typedef struct injector {
    const vhost_user_calls *base;
    unsigned calls; /* so far */
    unsigned at;    /* the one at which it happens; 0: never */
    mishap what;
    bool happened;
    bool half;   /* the next answer will be one */
    int ended;   /* an fd of which no more will be read; or -1 */
    int current; /* the fd of the last call */
} injector;

/* ---- a life ---- */

typedef struct chaos {
    user_machine *m;
    bool own; /* the back-end is ours; else the storage daemon */
    user_backend *backend;
    char disk[80];
    uint32_t seed, random;
    injector injector;
    bool still; /* the back-end stands still */

    blk_driver driver;
    disk_load load;
    uint8_t shadow[USER_RAM]; /* what a migration would have copied */
    bool plugged;
    uint32_t next_read;
    bool wants_to_run; /* the driver has set DRIVER_OK */

    unsigned certain, guessed, breaks, in_flight; /* over all runs */
    uint64_t done;
    unsigned happened[MISHAPS];
    char failure[240]; /* the first one */
} chaos;

static chaos c;

__attribute__((format(printf, 1, 2))) static bool fail(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    if (c.failure[0] == '\0') {
        vsnprintf(c.failure, sizeof c.failure, format, arguments);
    }
    va_end(arguments);
    return false;
}

static uint32_t next_random(uint32_t below)
{
    c.random = c.random * 1664525u + 1013904223u;
    return (c.random >> 8) % below;
}

/* ---- the back-end ---- */

static bool start_backend(void)
{
    if (!c.own) {
        char options[128];
        snprintf(options, sizeof options, "queues=%d file=%s", QUEUES, c.disk);
        return real_backend_start(&c.m->peer, "blk", options) || fail("the daemon does not start");
    }
    user_backend_options options = user_backend_defaults(USER_BACKEND_DISK);
    options.listen_path = c.m->peer.socket;
    options.queues = QUEUES;
    options.forks = true;
    options.disk_path = c.disk;
    c.backend = user_backend_start(&options);
    if (c.backend != NULL) {
        user_backend_hold(c.backend, 3, 1);
    }
    return c.backend != NULL || fail("our back-end does not start");
}

static bool backend_lives(void)
{
    return c.own ? c.backend != NULL : real_backend_runs(&c.m->peer);
}

static void kill_backend(void)
{
    c.still = false;
    if (!backend_lives()) {
        return;
    }
    if (!c.own) {
        real_backend_end(&c.m->peer, SIGKILL);
        return;
    }
    user_backend_kill(c.backend);
    user_backend_stop(c.backend);
    c.backend = NULL;
}

/* Ours is stopped from within: at the next message. */
static void stop_backend(void)
{
    c.still = true;
    if (c.own) {
        user_backend_arm(c.backend, USER_BACKEND_STALL, 1, 0);
    } else {
        kill(c.m->peer.pid, SIGSTOP);
    }
}

static void pause_backend(void)
{
    if (!c.own) {
        kill(c.m->peer.pid, SIGSTOP);
        poll(NULL, 0, 5);
        kill(c.m->peer.pid, SIGCONT);
    }
}

/* ---- the system calls of the library ---- */

static void strike(int fd)
{
    injector *i = &c.injector;
    i->current = fd;
    if (++i->calls != i->at || !backend_lives()) {
        return;
    }
    i->happened = true;
    c.happened[i->what]++;
    switch (i->what) {
    case MISHAP_KILL:
        kill_backend();
        break;
    case MISHAP_STOP:
        stop_backend();
        break;
    case MISHAP_PAUSE:
        pause_backend();
        break;
    case MISHAP_CLOSE:
        shutdown(fd, SHUT_RDWR);
        break;
    case MISHAP_HALF:
        i->half = true;
        break;
    case MISHAPS:
        break;
    }
}

static ptrdiff_t chaos_send(int fd, const void *bytes, size_t size, const int *fds, uint32_t count,
                            void *user)
{
    strike(fd);
    return c.injector.base->send(fd, bytes, size, fds, count, user);
}

static ptrdiff_t chaos_receive(int fd, void *bytes, size_t size, int *fds, uint32_t *count,
                               void *user)
{
    strike(fd);
    if (c.injector.ended == fd) {
        *count = 0;
        return 0;
    }
    ptrdiff_t got = c.injector.base->receive(fd, bytes, size, fds, count, user);
    if (c.injector.half && fds != NULL && got > 1) { /* NULL: the state, no message */
        c.injector.half = false;
        c.injector.ended = fd;
        got /= 2;
    }
    return got;
}

static int chaos_wait(vhost_user_poll *fds, uint32_t count, int timeout_ms, void *user)
{
    strike(count > 0 ? fds[0].fd : -1);
    for (uint32_t i = 0; i < count; i++) {
        if (fds[i].fd == c.injector.ended && !fds[i].output) {
            fds[i].ready = true;
            return 1;
        }
    }
    return c.injector.base->wait(fds, count, timeout_ms, user);
}

static int chaos_close(int fd, void *user)
{
    if (c.injector.ended == fd) {
        c.injector.ended = -1;
        shutdown(fd, SHUT_RDWR); /* as the back-end has, that said but the half */
    }
    return c.injector.base->close(fd, user);
}

static const vhost_user_calls *chaos_calls(void)
{
    static vhost_user_calls calls;
    vhost_user prepared;
    (void)vhost_user_connect(&prepared, "/nowhere", NULL); /* not yet: it has the default ones */
    c.injector.base = prepared.options.calls;
    calls = *prepared.options.calls;
    vhost_user_close(&prepared);
    calls.send = chaos_send;
    calls.receive = chaos_receive;
    calls.wait = chaos_wait;
    calls.close = chaos_close;
    return &calls;
}

/* ---- the driver ---- */

static bool driver_is_well(void)
{
    const char *fault = c.load.fault != NULL ? c.load.fault : c.driver.fault;
    return fault == NULL || fail("%s", fault);
}

static void fill_queues(void)
{
    for (unsigned i = 0; i < QUEUES; i++) {
        const blk_queue *from = &c.driver.queues[i];
        vhost_queue *queue = &c.m->queue[i];
        queue->ready = true;
        queue->size = from->ring.size;
        queue->desc = from->ring.descriptors_gpa;
        queue->avail = from->ring.available_gpa;
        queue->used = from->ring.used_gpa;
        queue->kick_fd = from->kick;
        queue->call_fd = from->call;
    }
}

/* Into memory that only the device writes. */
static void read_ahead(void)
{
    uint64_t gpa = (c.plugged ? PLUG : LOWER) + c.next_read % 8 * DISK_LOAD_BLOCK;
    unsigned queue = c.next_read % QUEUES;
    c.next_read += disk_load_read(&c.load, (int)queue, c.m->ram + gpa, gpa);
}

/* ---- what a VMM does when its device broke ---- */

/* Certain, though nobody has a record: then all that was taken is used. */
static bool claims_are_true(bool recorded)
{
    for (unsigned i = 0; i < QUEUES; i++) {
        const vhost_position *position = &c.m->queue[i].position;
        uint16_t used = split_ring_done(&c.driver.queues[i].ring);
        if (position->state == VHOST_POSITION_CERTAIN && !recorded && position->avail != used) {
            return fail("queue %u: certain at %u, but %u are used", i, position->avail, used);
        }
    }
    return true;
}

/* Before a back-end has begun its record, there is none. */
static bool any_guess(bool recorded)
{
    bool any = false;
    for (unsigned i = 0; i < QUEUES; i++) {
        bool guess = c.m->queue[i].position.state == VHOST_POSITION_GUESSED;
        if (guess && recorded && split_ring_done(&c.driver.queues[i].ring) > 0) {
            (void)fail("queue %u: a guess, in spite of the record", i);
        }
        any |= guess;
    }
    return any;
}

/* The driver has it reset, and gives it all again that has not come back. */
static int reset(void)
{
    vhost_features accepted = c.m->device.acked;
    int code = vhost_device_reset(&c.m->device);
    if (code < 0) {
        return code;
    }
    blk_driver_again(&c.driver);
    fill_queues();
    code = vhost_device_ack(&c.m->device, accepted);
    return code < 0 || !c.wants_to_run ? code : vhost_device_start(&c.m->device);
}

static bool repair_broken(void)
{
    bool recorded = vhost_user_inflight_size(&c.m->link) > 0;
    c.breaks++;
    disk_load_take(&c.load);
    if (!driver_is_well() || !claims_are_true(recorded)) {
        return false;
    }
    c.in_flight += disk_load_in_flight(&c.load);
    bool guess = any_guess(recorded);
    c.guessed += guess;
    c.certain += !guess;
    for (int tries = 0; c.m->device.state == VHOST_STATE_BROKEN; tries++) {
        if (c.failure[0] != '\0') {
            return false;
        }
        if (!backend_lives() && !start_backend()) {
            return false;
        }
        int code = guess ? reset() : vhost_device_recover(&c.m->device);
        if (code < 0 && tries == 5) {
            return fail("it does not come back: %s", c.m->device.last_error.text);
        }
        if (code < 0) {
            kill_backend(); /* one that hangs */
        }
    }
    return true;
}

/* All is as it should be after this: only a device that failed to open is still closed. */
static bool repair(void)
{
    if (c.still) {
        kill_backend();
    }
    if (!backend_lives() && !start_backend()) {
        return false;
    }
    if (c.m->device.state != VHOST_STATE_CLOSED) {
        (void)vhost_user_process(&c.m->link); /* it may be lost, and nobody knows yet */
    }
    if (c.m->device.state == VHOST_STATE_BROKEN && !repair_broken()) {
        return false;
    }
    if (c.wants_to_run && c.m->device.state == VHOST_STATE_STOPPED) {
        (void)vhost_device_start(&c.m->device); /* if not, the next step finds out */
    }
    return true;
}

/* ---- work ---- */

static int turn(void)
{
    blk_driver_kick(&c.driver);
    user_machine_turn(c.m, 5);
    disk_load_take(&c.load);
    return c.m->device.state == VHOST_STATE_RUNNING ? 0 : -EIO;
}

/* So many requests more; 0: none is begun, and all that were are awaited. */
static int work(uint64_t more)
{
    double begin = clock_now();
    uint64_t goal = c.load.done + more;
    while (more > 0 ? c.load.done < goal : disk_load_in_flight(&c.load) > 0) {
        if (more > 0) {
            read_ahead();
            disk_load_feed(&c.load, 2);
        }
        int code = turn();
        if (code < 0 || !driver_is_well()) {
            return -EIO;
        }
        if (c.still && clock_now() > begin + 0.03) {
            kill_backend(); /* nobody else would notice */
        }
        if (clock_now() > begin + LOST) {
            (void)fail("%u requests were lost", (unsigned)disk_load_in_flight(&c.load));
            return -EIO;
        }
    }
    return 0;
}

/* ---- the dirty log ---- */

static void copy_range(uint64_t gpa, uint64_t size, void *user)
{
    (void)user;
    memcpy(c.shadow + gpa, c.m->ram + gpa, size);
}

static int sync_all(void)
{
    vhost_log_sink sink = {.range = copy_range};
    if (!c.m->vm.logging) {
        return 0;
    }
    int code = vhost_log_sync(&c.m->vm, 0, LOW, &sink);
    return code < 0 || !c.plugged ? code : vhost_log_sync(&c.m->vm, PLUG, AREA, &sink);
}

/* A back-end that was cut off before it logs may not know it yet: it must be gone before the first
   copy is made. */
static int begin_log(void)
{
    int code = vhost_log_start(&c.m->vm);
    if (code < 0) {
        return code;
    }
    if (c.m->device.state == VHOST_STATE_BROKEN) {
        kill_backend();
    }
    copy_range(0, LOW, NULL);
    return 0;
}

static bool is_copied(uint64_t gpa, uint64_t size, const char *what)
{
    return memcmp(c.shadow + gpa, c.m->ram + gpa, size) == 0 ||
           fail("%s: a page was written that is not in the log", what);
}

/* Nothing is in flight: all that the device alone writes was copied. */
static bool nothing_was_missed(void)
{
    bool good = sync_all() == 0 && is_copied(LOWER, AREA, "data");
    for (unsigned i = 0; i < QUEUES && good; i++) {
        good = is_copied(c.driver.queues[i].ring.used_gpa, VHOST_PAGE, "a used ring");
    }
    return good && (!c.plugged || is_copied(PLUG, AREA, "data in new memory"));
}

/* ---- the steps of a life: 0, or a negative errno, and then the step is taken again ---- */

static int connect_it(void)
{
    if (c.m->device.state != VHOST_STATE_CLOSED) {
        return 0;
    }
    vhost_user_close(&c.m->link);
    return user_machine_attach(c.m, QUEUES);
}

static int start_it(void)
{
    if (!c.wants_to_run) {
        fill_queues();
    }
    c.wants_to_run = true;
    return c.m->device.state == VHOST_STATE_RUNNING ? 0 : vhost_device_start(&c.m->device);
}

static int stop_it(void)
{
    int code = vhost_device_stop(&c.m->device);
    c.wants_to_run = c.m->device.state != VHOST_STATE_STOPPED;
    return code;
}

static int work_a_while(void)
{
    return work(24);
}

static int work_and_sync(void)
{
    int code = work(12);
    return code < 0 ? code : sync_all();
}

static int finish_work(void)
{
    return work(0);
}

/* What is dirty is copied before. */
static int stop_log(void)
{
    return nothing_was_missed() ? vhost_log_stop(&c.m->vm) : -EIO;
}

static int plug(void)
{
    if (c.plugged) {
        return 0;
    }
    int code = user_machine_plug(c.m, 1, PLUG, AREA);
    c.plugged = code == 0;
    if (c.plugged) {
        memset(c.shadow + PLUG, 0, AREA);
    }
    return code;
}

/* Nothing is in flight to it. */
static int unplug(void)
{
    int code = work(0);
    if (code < 0 || !c.plugged) {
        return code;
    }
    if (!nothing_was_missed()) {
        return -EIO;
    }
    c.plugged = false;
    return user_machine_unplug(c.m, 1);
}

static int restart_queue(void)
{
    if (c.m->queue[1].started) {
        int code = vhost_queue_stop(&c.m->device, 1);
        if (code < 0) {
            return code;
        }
    }
    while (c.m->device.state == VHOST_STATE_STOPPED) {
        return -EIO;
    }
    return vhost_queue_start(&c.m->device, 1);
}

static int mask(void)
{
    int code = vhost_queue_mask(&c.m->device, 0);
    if (code == 0) {
        code = work(6);
    }
    int unmasked = vhost_queue_unmask(&c.m->device, 0);
    return code < 0 ? code : unmasked < 0 ? unmasked : 0;
}

/* ---- moving to another back-end, with all that belongs to it ---- */

typedef struct saved {
    uint8_t state[2 * STATE_SIZE], record[1 << 17];
    size_t state_size, state_given, record_size;
} saved;

static saved s;

static int take_state(const void *bytes, size_t size, void *user)
{
    (void)user;
    if (size > sizeof s.state - s.state_size) {
        return -EFBIG;
    }
    memcpy(s.state + s.state_size, bytes, size);
    s.state_size += size;
    return 0;
}

static ptrdiff_t give_state(void *bytes, size_t size, void *user)
{
    (void)user;
    size = size < s.state_size - s.state_given ? size : s.state_size - s.state_given;
    memcpy(bytes, s.state + s.state_given, size);
    s.state_given += size;
    return (ptrdiff_t)size;
}

static void fill_state(void)
{
    uint32_t *size;
    unsigned char *state = user_backend_state(c.backend, &size);
    memset(state, (int)(c.seed & 0xff), STATE_SIZE);
    *size = STATE_SIZE;
}

static bool state_is(const unsigned char *state, size_t size)
{
    bool same = size == STATE_SIZE;
    for (size_t i = 0; i < size && same; i++) {
        same = state[i] == (unsigned char)c.seed;
    }
    return same;
}

/* It is stopped, maybe with requests in flight. */
static int save(void)
{
    if (!c.own) {
        return 0;
    }
    if (c.m->device.state != VHOST_STATE_STOPPED || !backend_lives()) {
        return -EIO;
    }
    fill_state();
    s.state_size = 0;
    int code = vhost_user_save_state(&c.m->link, take_state, NULL, sizeof s.state);
    if (code < 0) {
        return code;
    }
    if (!state_is(s.state, s.state_size)) {
        (void)fail("another state was saved: %zu bytes", s.state_size);
        return -EIO;
    }
    s.record_size = vhost_user_inflight_size(&c.m->link);
    return s.record_size <= sizeof s.record
               ? vhost_user_save_inflight(&c.m->link, s.record, s.record_size)
               : -EFBIG;
}

static int load(void)
{
    if (!c.own) {
        return 0;
    }
    vhost_position positions[QUEUES];
    int code = 0;
    if (s.record_size > 0) {
        for (unsigned i = 0; i < QUEUES; i++) {
            positions[i] = c.m->queue[i].position;
        }
        user_machine_detach(c.m);
        kill_backend();
        if (!start_backend()) {
            return -EIO;
        }
        while ((code = connect_it()) < 0) {
            if (!repair()) {
                return -EIO;
            }
        }
        fill_queues();
        for (unsigned i = 0; i < QUEUES; i++) {
            c.m->queue[i].position = positions[i];
        }
        code = vhost_user_load_inflight(&c.m->link, s.record, s.record_size);
        s.record_size = 0;
        s.state_given = 0;
        if (code == 0) {
            code = vhost_user_load_state(&c.m->link, give_state, NULL);
        }
    }
    return code;
}

/* ---- a life ---- */

typedef struct step {
    const char *name;
    int (*take)(void);
} step;

static const step steps[] = {
    {"connect", connect_it},
    {"start", start_it},
    {"work", work_a_while},
    {"log on", begin_log},
    {"work and sync", work_and_sync},
    {"plug", plug},
    {"work and sync", work_and_sync},
    {"mask", mask},
    {"unplug", unplug},
    {"work and sync", work_and_sync},
    {"restart a queue", restart_queue},
    {"work and sync", work_and_sync},
    {"finish", finish_work},
    {"log off", stop_log},
    {"work", work_a_while},
    {"log on", begin_log},
    {"plug", plug},
    {"work and sync", work_and_sync},
    {"stop", stop_it},
    {"save", save},
    {"load", load},
    {"start again", start_it},
    {"work and sync", work_and_sync},
    {"finish", finish_work},
    {"log off", stop_log},
    {"stop", stop_it},
};

/* The daemon has its own ways to die, and on a machine that is busy anybody may be late. */
static bool may_fail(void)
{
    return c.injector.happened || !c.own || c.m->link.last_error.why == VHOST_WHY_USER_TIMEOUT;
}

static bool take_step(const step *next)
{
    for (int tries = 0; tries < 8; tries++) {
        int code = next->take();
        if (c.failure[0] != '\0') {
            return false;
        }
        if (code >= 0) {
            return true;
        }
        if (!may_fail()) {
            return fail("it failed by itself: %s: %s", strerror(-code),
                        c.m->device.last_error.text);
        }
        if (!repair()) {
            return false;
        }
    }
    return fail("it does not get any further: %s", c.m->device.last_error.text);
}

static bool begin_life(uint32_t seed)
{
    user_machine *m = c.m;
    c.seed = seed;
    c.random = seed * 2654435761u;
    c.still = c.plugged = c.wants_to_run = false;
    c.next_read = 0;
    c.injector = (injector){.base = c.injector.base, .ended = -1, .current = -1};
    if (truncate(c.disk, 0) != 0 || truncate(c.disk, BLOCKS * DISK_LOAD_BLOCK) != 0) {
        return fail("no disk");
    }
    memset(m->ram, 0, LOW);
    if (blk_driver_open(&c.driver, m->ram, 0, QUEUES) != 0) {
        return fail("no fds");
    }
    disk_load_init(&c.load, &c.driver, seed, BLOCKS, DEPTH);
    return backend_lives() || start_backend();
}

static bool positions_are_right(void)
{
    for (unsigned i = 0; i < QUEUES; i++) {
        const vhost_position *position = &c.m->queue[i].position;
        if (position->state != VHOST_POSITION_CERTAIN ||
            position->avail != c.driver.queues[i].ring.added) {
            return fail("queue %u did not stop where its driver is", i);
        }
    }
    return true;
}

static bool end_life(bool good)
{
    if (c.plugged) {
        (void)user_machine_unplug(c.m, 1);
    }
    good = good && positions_are_right();
    user_machine_detach(c.m);
    (void)vhost_log_stop(&c.m->vm);
    blk_driver_close(&c.driver);
    int wrong = good ? disk_load_wrong_blocks(&c.load, c.disk) : 0;
    c.done += c.load.done;
    if (c.still) {
        kill_backend();
    }
    return wrong == 0 ? good : fail("%d blocks of the disk are wrong", wrong);
}

/* Something happens at the `at`th call; 0: nothing does. */
static bool live(uint32_t seed, unsigned at, mishap what)
{
    const char *name = "begin";
    bool good = begin_life(seed);
    c.injector.at = at;
    c.injector.what = what;
    for (size_t i = 0; i < sizeof steps / sizeof *steps && good; i++) {
        name = steps[i].name;
        good = take_step(&steps[i]);
    }
    unsigned calls = c.injector.calls;
    good = end_life(good);
    c.injector.calls = calls;
    if (!good) {
        printf("seed %u, %s at call %u of %u, in step \"%s\": %s\n", (unsigned)seed,
               mishap_names[what], at, calls, name, c.failure);
    }
    return good;
}

static uint32_t number(const char *name, uint32_t otherwise)
{
    const char *text = getenv(name);
    return text == NULL ? otherwise : (uint32_t)strtoul(text, NULL, 0);
}

static enum greatest_test_res lives(user_machine *m, bool own)
{
    uint32_t runs = number("VHOST_CHAOS_RUNS", RUNS), first = number("VHOST_CHAOS_SEED", 1);
    memset(&c, 0, sizeof c);
    c.m = m;
    c.own = own;
    m->user_options.calls = chaos_calls();
    m->user_options.timeout_ms = 5000;
    if (own) {
        m->user_options.want = BIT(VHOST_USER_BIT_STATE);
    }
    snprintf(c.disk, sizeof c.disk, "%s/disk", m->peer.folder);
    close(open(c.disk, O_RDWR | O_CREAT | O_CLOEXEC, 0600));
    ASSERT_OK(user_machine_plug(m, 0, 0, LOW));
    ASSERT(live(first, 0, MISHAP_KILL)); /* how many calls there are */
    unsigned calls = c.injector.calls, fds = 0;
    m->user_options.timeout_ms = PATIENCE_MS;
    for (uint32_t run = 0; run < runs; run++) {
        c.random = (first + run) * 40503u;
        unsigned at = 1 + next_random(calls);
        mishap what = (mishap)next_random(MISHAPS);
        ASSERT(live(first + run, at, what));
        kill_backend();
        if (run == 0) {
            fds = user_machine_fds(getpid());
        }
        ASSERT_UINT(fds, user_machine_fds(getpid()));
    }
    kill_backend();
    printf("%u lives of some %u calls each, from seed %u on:", (unsigned)runs, calls,
           (unsigned)first);
    for (int i = 0; i < MISHAPS; i++) {
        printf(" %s %u,", mishap_names[i], c.happened[i]);
    }
    printf("\n%u breaks (certain %u, guessed %u), %u requests in flight at them, %llu done\n",
           c.breaks, c.certain, c.guessed, c.in_flight, (unsigned long long)c.done);
    PASS();
}

TEST the_storage_daemon(user_machine *m)
{
    return lives(m, false);
}

TEST our_own_back_end(user_machine *m)
{
    return lives(m, true);
}

SUITE(chaos_suite)
{
    RUN_USER(our_own_back_end);
    RUN_USER(the_storage_daemon);
}

GREATEST_MAIN_DEFS();

int main(int argc, char **argv)
{
    GREATEST_MAIN_BEGIN();
    RUN_SUITE(chaos_suite);
    GREATEST_MAIN_END();
}
