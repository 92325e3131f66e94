/* source.c - the VMM that a guest leaves
   SPDX-License-Identifier: MIT OR Unlicense */
#define _GNU_SOURCE
#include "move.h"
#include "pages.h"
#include "saved.h"
#include "stream.h"

#include "examples/common/clock.h"

#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

enum {
    RATE = 25000,   /* pages per second that a round sends: no wire is endless */
    TOGETHER = 32,  /* pages, at most, between two turns of the machine */
    PUSH_EVERY = 3, /* ms: a page that nobody has asked for, in postcopy */
    ROUNDS = 6,
    BAR = 60 /* characters of all of memory */
};

typedef struct source {
    const machine_world *world;
    const move_options *options;
    int stream;
    report *report;
    machine machine;
    pages dirty; /* to be sent */
    /* Of the last sync. */
    uint64_t by_devices;
    double sync_ms;
    double parts_ms; /* of the downtime, so far */
    move_outcome outcome;
} source;

#define FAIL(...) report_fail(s->report, __VA_ARGS__)
#define TRY(call) REPORT_TRY(s->report, call)

static double ms_since(double begin)
{
    return (clock_now() - begin) * 1e3;
}

/* ---- 1. it runs ------------------------------------------------------------------------------ */

static bool run(source *s)
{
    report_step(s->report, "the source runs");
    if (!machine_open(&s->machine, s->world, s->report) || !machine_boot(&s->machine) ||
        !machine_run(&s->machine, MOVE_REQUESTS, MOVE_RUSH))
        return false;
    for (uint32_t i = 0; i < s->machine.count; i++) {
        const machine_device *device = &s->machine.devices[i];
        printf("   %-15s on %-20s %6" PRIu64 " requests done\n", device->kind->name,
               device->kind->backend, machine_done(device));
    }
    return true;
}

/* ---- 2. its memory is copied ----------------------------------------------------------------- */

static bool begin_log(source *s)
{
    vhost_why why;
    const vhost_device *blocker = vhost_log_blocker(&s->machine.vm, NULL, &why);
    if (blocker != NULL)
        return FAIL("%s cannot log: %s", blocker->facts.name, vhost_why_text(why));
    if (!pages_open(&s->dirty, s->machine.ram.size))
        return FAIL("no memory");
    pages_add(&s->dirty, 0, s->machine.size);
    return TRY(guest_ram_track(&s->machine.ram, true)) && TRY(vhost_log_start(&s->machine.vm));
}

static bool sync_piece(source *s, uint64_t gpa, uint64_t size)
{
    vhost_log_sink sink = {.bits = s->dirty.bits, .bits_count = s->dirty.count};
    if (size == 0)
        return true;
    (void)guest_ram_sync(&s->machine.ram, gpa, size, s->dirty.bits);
    if (!TRY(vhost_log_sync(&s->machine.vm, gpa, size, &sink)))
        return false;
    s->by_devices += sink.pages_dirty;
    return sink.pages_dropped == 0 ||
           FAIL("%" PRIu64 " pages are dirty where there is no memory", sink.pages_dropped);
}

/* Both dirty logs, the hypervisor's and vhost's, one piece of memory after the other. */
static bool sync_log(source *s)
{
    uint64_t first = machine_size(s->world, false);
    double begin = clock_now();
    s->by_devices = 0;
    if (!sync_piece(s, 0, first) || !sync_piece(s, first, s->machine.size - first))
        return false;
    s->sync_ms = ms_since(begin);
    return true;
}

static bool send_page(source *s, uint64_t page)
{
    uint64_t gpa = page * GUEST_RAM_PAGE;
    return TRY(stream_send(s->stream, STREAM_PAGE, gpa, s->machine.ram.host + gpa, GUEST_RAM_PAGE));
}

/* What is dirty, no faster than the wire is; the guest runs on meanwhile. */
static bool send_round(source *s, uint32_t most)
{
    double begin = clock_now();
    uint64_t sent = 0;
    for (uint64_t page = 0; (page = pages_take(&s->dirty, page)) != PAGES_END; page++) {
        if (!send_page(s, page))
            return false;
        bool due = ++sent % TOGETHER == 0; /* also if this machine is slower than the wire */
        for (; due || (double)sent > (clock_now() - begin) * RATE; due = false)
            if (!machine_turn(&s->machine, most))
                return false;
    }
    return true;
}

/* As long as so many pages are, of all. */
static void bar(const source *s, char letter, uint64_t count)
{
    for (uint64_t i = 0; i < (count * BAR + s->dirty.count - 1) / s->dirty.count; i++)
        putchar(letter);
}

static void show_round(const source *s, int round, uint64_t sent, double ms)
{
    uint64_t dirty = pages_in(&s->dirty);
    uint64_t devices = s->by_devices < dirty ? s->by_devices : dirty;
    printf("   %5d  %5" PRIu64 " in %6.1f ms   %6.1f us   %5" PRIu64 "  ", round, sent, ms,
           s->sync_ms * 1e3, dirty);
    bar(s, 'g', dirty - devices);
    bar(s, 'd', devices);
    putchar('\n');
}

/* Devices write between a sync and what comes next. */
static bool go_on(source *s)
{
    double end = clock_now() + 0.01;
    while (clock_now() < end)
        if (!machine_turn(&s->machine, 1))
            return false;
    return true;
}

/* Devices write there at once. */
static bool plug(source *s)
{
    uint64_t before = s->machine.size, size = machine_size(s->world, true);
    if (!machine_plug(&s->machine, size) ||
        !TRY(stream_send(s->stream, STREAM_PLUG, size, NULL, 0)))
        return false;
    pages_add(&s->dirty, before, size);
    machine_use_plugged(&s->machine);
    printf("          memory is plugged in: %" PRIu64 " pages more\n",
           (size - before) / GUEST_RAM_PAGE);
    return true;
}

/* Memory also comes and goes that nobody uses: the dirty logs follow. */
static bool change_memory(source *s, int round)
{
    switch (round) {
    case 1:
        return plug(s);
    case 2:
        return machine_module(&s->machine, true);
    case 3:
        return machine_module(&s->machine, false);
    default:
        return true;
    }
}

/* A guest that is faster than the wire is slowed down, a little more each round. */
static bool copy(source *s)
{
    int rounds = s->options->quick || s->options->postcopy ? 3 : ROUNDS;
    report_step(s->report, "memory is copied while it is written");
    printf("   round  pages sent          sync     dirty (g: the guest, d: devices wrote them)\n");
    if (!begin_log(s))
        return false;
    for (int i = 1; i <= rounds; i++) {
        uint64_t sent = pages_in(&s->dirty);
        double begin = clock_now();
        uint32_t most = MOVE_RUSH >> (i - 1) != 0 ? MOVE_RUSH >> (i - 1) : 1;
        if (!send_round(s, most) || !sync_log(s))
            return false;
        show_round(s, i, sent, ms_since(begin));
        if (!go_on(s) || !change_memory(s, i) || !go_on(s))
            return false;
    }
    return true;
}

/* ---- 3. switch-over -------------------------------------------------------------------------- */

/* Waits until a device has done what it has, as the guest stands still: a moment. */
static bool drain(source *s, machine_device *device)
{
    double end = clock_now() + MACHINE_PATIENCE;
    while (!machine_is_idle(device)) {
        if (clock_now() > end)
            return FAIL("%s does not end its requests", device->kind->backend);
        (void)poll(NULL, 0, 1);
    }
    return true;
}

static bool stop(source *s, machine_device *device)
{
    if (!machine_leaves_in_flight(device) && device->kind->drains && !drain(s, device))
        return false;
    if (!TRY(vhost_device_stop(&device->device)))
        return false;
    return machine_leaves_in_flight(device) || vhost_device_settled(&device->device) == 1 ||
           FAIL("%s stopped, but has not ended its requests", device->kind->backend);
}

static bool stop_devices(source *s)
{
    bool good = true;
    for (uint32_t i = 0; i < s->machine.count; i++)
        good = stop(s, &s->machine.devices[i]) && good;
    return good;
}

/* In postcopy only which they are. */
static bool send_rest(source *s)
{
    if (s->options->postcopy)
        return TRY(stream_send(s->stream, STREAM_ABSENT, 0, s->dirty.bits, pages_bytes(&s->dirty)));
    for (uint64_t page = 0; (page = pages_take(&s->dirty, page)) != PAGES_END; page++)
        if (!send_page(s, page))
            return false;
    return true;
}

static bool send_devices(source *s)
{
    for (uint32_t i = 0; i < s->machine.count; i++)
        if (!TRY(saved_send(s->stream, i, &s->machine.devices[i])))
            return false;
    return true;
}

/* For the checker. */
static bool send_hashes(source *s)
{
    size_t size = s->machine.size / GUEST_RAM_PAGE * sizeof(uint64_t);
    uint64_t *hashes = malloc(size);
    double begin = clock_now();
    if (hashes == NULL)
        return FAIL("no memory");
    pages_hash(s->machine.ram.host, s->machine.size, hashes);
    uint64_t taken = (uint64_t)(ms_since(begin) * 1e3);
    bool good = TRY(stream_send(s->stream, STREAM_HASHES, taken, hashes, size));
    free(hashes);
    return good;
}

/* One part of the downtime. */
static bool part(source *s, const char *name, bool (*act)(source *s))
{
    double begin = clock_now();
    bool good = act(s);
    s->parts_ms += ms_since(begin);
    printf("   %-28s %8.3f ms\n", name, ms_since(begin));
    return good;
}

static bool switch_over(source *s)
{
    char rest[40];
    report_step(s->report, "switch-over, with %u requests on their way",
                (unsigned)machine_waiting(&s->machine));
    double stopped = clock_now();
    if (!TRY(stream_send(s->stream, STREAM_STOPPED, 0, &stopped, sizeof stopped)) ||
        !part(s, "stop the devices", stop_devices) || !part(s, "the last sync", sync_log))
        return false;
    snprintf(rest, sizeof rest, "%s %" PRIu64 " pages", s->options->postcopy ? "name" : "send",
             pages_in(&s->dirty));
    if (!part(s, rest, send_rest) || !part(s, "save and send the devices", send_devices))
        return false;
    fflush(stdout); /* from here on, the destination tells */
    return send_hashes(s) &&
           TRY(stream_send(s->stream, STREAM_GO, (uint64_t)(s->parts_ms * 1e3), NULL, 0));
}

/* ---- what the destination says --------------------------------------------------------------- */

static bool hear(source *s, stream_record *record)
{
    return TRY(stream_receive(s->stream, record, &s->outcome, sizeof s->outcome));
}

static bool await_outcome(source *s)
{
    stream_record record = {0, 0, 0};
    while (record.kind != STREAM_DONE)
        if (!hear(s, &record))
            return false;
    return true;
}

/* When something went wrong here: it may have a better reason. */
static void ask_for_reason(source *s)
{
    (void)shutdown(s->stream, SHUT_WR); /* nothing more will come */
    (void)await_outcome(s);
}

/* Postcopy: what is wanted, or else, after a while, the next one. PAGES_END: nothing is left, or it
   went wrong. */
static uint64_t next_page(source *s)
{
    struct pollfd back = {.fd = s->stream, .events = POLLIN};
    stream_record record;
    while (poll(&back, 1, PUSH_EVERY) == 1) {
        if (!hear(s, &record) || record.kind == STREAM_DONE)
            return PAGES_END;
        if (pages_take_one(&s->dirty, record.place / GUEST_RAM_PAGE))
            return record.place / GUEST_RAM_PAGE;
    }
    return pages_take(&s->dirty, 0);
}

/* The rest is sent, what is wanted goes first. */
static bool serve(source *s)
{
    for (uint64_t page; (page = next_page(s)) != PAGES_END;) {
        if (!send_page(s, page))
            return false;
    }
    return s->outcome.failure[0] == '\0' && TRY(stream_send(s->stream, STREAM_GO, 0, NULL, 0));
}

/* ---- the whole of it ------------------------------------------------------------------------- */

move_outcome move_source(const machine_world *world, const move_options *options, int stream,
                         report *to)
{
    static source the_source; /* fixed address: vhost.h never moves its objects, nor may we */
    source *s = &the_source;
    *s = (source){.world = world, .options = options, .stream = stream, .report = to};
    bool good =
        run(s) && copy(s) && switch_over(s) && (!options->postcopy || serve(s)) && await_outcome(s);
    if (!good)
        ask_for_reason(s);
    machine_close(&s->machine);
    pages_close(&s->dirty);
    return s->outcome;
}
