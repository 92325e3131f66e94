/* destination.c - the VMM that a guest comes to
   SPDX-License-Identifier: MIT OR Unlicense */
#define _GNU_SOURCE
#include "arrival.h"
#include "move.h"
#include "pages.h"
#include "saved.h"
#include "stream.h"

#include "examples/common/clock.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct destination {
    const machine_world *world;
    const move_options *options;
    int stream;
    report report;
    machine machine;
    pages absent; /* postcopy: not here yet */
    arrival arrival;
    uint8_t bytes[STREAM_MOST]; /* of a record */
    double told;                /* ms of the downtime that the source has told of */
    double stopped;             /* when the source did */
    double checked;             /* ms, of the downtime, that are the checker's */
    uint64_t done_before;
    move_outcome outcome;
} destination;

#define FAIL(...) report_fail(&d->report, __VA_ARGS__)
#define TRY(call) REPORT_TRY(&d->report, call)

static double ms_since(double begin)
{
    return (clock_now() - begin) * 1e3;
}

/* ---- what the source sends ------------------------------------------------------------------- */

static bool take_page(destination *d, const stream_record *record)
{
    if (record->size != GUEST_RAM_PAGE || record->place > d->machine.ram.size - GUEST_RAM_PAGE)
        return FAIL("a page that cannot be");
    memcpy(d->machine.ram.host + record->place, d->bytes, GUEST_RAM_PAGE);
    return true;
}

static bool take_absent(destination *d, const stream_record *record)
{
    if (!pages_open(&d->absent, d->machine.ram.size))
        return FAIL("no memory");
    if (record->size != pages_bytes(&d->absent))
        return FAIL("a set of pages of another size");
    memcpy(d->absent.bits, d->bytes, record->size);
    return true;
}

/* The checker: all of memory is here, and as it was when the source stopped. */
static bool compare_memory(destination *d, const stream_record *record)
{
    double begin = clock_now();
    uint64_t count = d->machine.size / GUEST_RAM_PAGE, wrong = 0, first = 0;
    const uint64_t *theirs = (const uint64_t *)(void *)d->bytes;
    uint64_t *ours = malloc(count * sizeof *ours);
    if (ours == NULL || record->size != count * sizeof *ours) {
        free(ours);
        return FAIL("other memory than the source has");
    }
    pages_hash(d->machine.ram.host, d->machine.size, ours);
    for (uint64_t page = count; page-- > 0;)
        if (ours[page] != theirs[page] && !pages_has(&d->absent, page)) {
            wrong++;
            first = page;
        }
    free(ours);
    d->checked += ms_since(begin) + (double)record->place / 1e3;
    return wrong == 0 || FAIL("%" PRIu64 " pages are not as they were, the first one at 0x%" PRIx64,
                              wrong, first * GUEST_RAM_PAGE);
}

static bool take(destination *d, const stream_record *record)
{
    switch (record->kind) {
    case STREAM_PAGE:
        return take_page(d, record);
    case STREAM_PLUG:
        return machine_plug(&d->machine, record->place);
    case STREAM_ABSENT:
        return take_absent(d, record);
    case STREAM_HASHES:
        return compare_memory(d, record);
    case STREAM_STOPPED:
        memcpy(&d->stopped, d->bytes, sizeof d->stopped);
        return true;
    case STREAM_DEVICE:
    case STREAM_RECORD:
    case STREAM_STATE:
        return record->place < d->machine.count
                   ? TRY(saved_take(record, d->bytes, &d->machine.devices[record->place]))
                   : FAIL("a device that is not here");
    default:
        return FAIL("record %u makes no sense here", (unsigned)record->kind);
    }
}

static bool receive(destination *d)
{
    stream_record record;
    for (;;) {
        if (!TRY(stream_receive(d->stream, &record, d->bytes, sizeof d->bytes)))
            return false;
        if (record.kind == STREAM_GO) {
            d->told = (double)record.place / 1e3;
            return true;
        }
        if (!take(d, &record))
            return false;
    }
}

/* ---- the guest goes on ----------------------------------------------------------------------- */

/* An interrupt may have been on its way when the source stopped. */
static void interrupt(const machine_device *device)
{
    static const uint64_t one = 1;
    for (uint32_t i = 0; i < device->device.queue_count; i++)
        (void)!write(device->queues[i].call_fd, &one, sizeof one);
}

static bool start(destination *d)
{
    double begin = clock_now();
    if (d->options->postcopy && !arrival_begin(&d->arrival, &d->machine, d->stream, &d->absent))
        return false;
    for (uint32_t i = 0; i < d->machine.count; i++) {
        if (!machine_start(&d->machine.devices[i]))
            return false;
        interrupt(&d->machine.devices[i]);
    }
    double here = ms_since(begin);
    d->outcome.downtime = ms_since(d->stopped) - d->checked;
    printf("   %-28s %8.3f ms\n", "until all of it is there", d->outcome.downtime - d->told - here);
    printf("   %-28s %8.3f ms\n", "start the devices there", here);
    printf("   %-28s %8.3f ms (and %.3f for the checker)\n", "downtime", d->outcome.downtime,
           d->checked);
    return true;
}

static bool run(destination *d)
{
    uint64_t before[MACHINE_DEVICES];
    report_step(&d->report, "the destination runs");
    for (uint32_t i = 0; i < d->machine.count; i++)
        before[i] = machine_done(&d->machine.devices[i]);
    if (!machine_run(&d->machine, MOVE_REQUESTS, MOVE_RUSH) ||
        (d->options->postcopy && !arrival_end(&d->arrival, &d->machine)))
        return false;
    for (uint32_t i = 0; i < d->machine.count; i++) {
        const machine_device *device = &d->machine.devices[i];
        printf("   %-15s on %-20s %6" PRIu64 " + %" PRIu64 " requests done\n", device->kind->name,
               device->kind->backend, before[i], machine_done(device) - before[i]);
    }
    return true;
}

/* ---- the checker, of what came out of it ----------------------------------------------------- */

/* Nothing new is begun: what was is done, each request of it. */
static bool finish(destination *d)
{
    double end = clock_now() + MACHINE_PATIENCE;
    while (machine_waiting(&d->machine) > 0)
        if (!machine_turn(&d->machine, 0))
            return false;
        else if (clock_now() > end)
            return FAIL("%u requests were lost", (unsigned)machine_waiting(&d->machine));
    for (uint32_t i = 0; i < d->machine.count; i++)
        if (!TRY(vhost_device_stop(&d->machine.devices[i].device)))
            return false;
    return true;
}

static bool check_disk(destination *d, const machine_device *device)
{
    const guest_disk *disk = machine_driver(device);
    int wrong = disk_load_wrong_blocks(&disk->load, d->world->disk[device->number]);
    return wrong == 0 || FAIL("%s: %d blocks of its disk are wrong", device->kind->backend, wrong);
}

/* The kernel and a tap lose nothing; a process that is stopped may have had frames in hand. */
static bool check_card(destination *d, const machine_device *device)
{
    const guest_card *card = machine_driver(device);
    d->outcome.resent += card->load.resent;
    return device->number != MACHINE_TAP || card->load.resent + card->load.doubled == 0 ||
           FAIL("%s: %" PRIu64 " frames were lost, %" PRIu64 " came twice", device->kind->name,
                card->load.resent, card->load.doubled);
}

static bool check(destination *d)
{
    for (uint32_t i = 0; i < d->machine.count; i++) {
        const machine_device *device = &d->machine.devices[i];
        bool disk = device->kind->driver == &guest_disk_driver;
        d->outcome.done += machine_done(device);
        if (!(disk ? check_disk(d, device) : check_card(d, device)))
            return false;
        if (device->kind->has_state != NULL && !device->kind->has_state(device))
            return FAIL("%s: its state is another one", device->kind->backend);
    }
    d->outcome.pages = d->machine.size / GUEST_RAM_PAGE;
    printf("   memory, disks and frames: every byte is right\n");
    return true;
}

bool move_destination(const machine_world *world, const move_options *options, int stream)
{
    static destination the_destination; /* fixed address, as in the source */
    destination *d = &the_destination;
    d->world = world;
    d->options = options;
    d->stream = stream;
    d->report.step = 3; /* the source has told three */
    bool good = machine_open(&d->machine, world, &d->report) && receive(d) && start(d) && run(d) &&
                finish(d) && check(d);
    memcpy(d->outcome.failure, d->report.failure, sizeof d->outcome.failure);
    fflush(stdout); /* the source goes on telling */
    (void)stream_send(stream, STREAM_DONE, 0, &d->outcome, sizeof d->outcome);
    machine_close(&d->machine);
    pages_close(&d->absent);
    return good;
}
