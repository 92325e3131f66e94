/* vhost_net.c - a virtio-net device on vhost-net, without a guest
   SPDX-License-Identifier: MIT OR Unlicense

   shows     All of vhost.h that a network card needs. This program is the hypervisor, and plays the
             guest too: a driver with its own rings in its own memory. Frames go both ways, and each
             byte of each is checked, also across a stop and a restart. The log of dirty pages is
             compared with memory itself.
   build     make build/examples/vhost_net, or by hand:
             cc -O2 -I. examples/vhost_net.c examples/memory_backend.c examples/common/?*.c
   run       make demo: with /dev/vhost-net and /dev/net/tun, as root or with access to both, on the
             real thing; else on a simulated back-end, examples/memory_backend.c.
             make demo-vm: on real kernels, in virtual machines.
             vhost_net kernel, vhost_net simulated: on this and nothing else.
   expected  Eight numbered steps, each with what was found, and as the last line
             vhost_net: ok (/dev/vhost-net, Linux 6.12.117)
             Exit status 0 only if all of it held; else 1, and vhost_net: FAILED (what).

   The VM of make demo-vm loads    vm-modules: vhost_net tun */
#define _GNU_SOURCE
#define VHOST_IMPLEMENTATION
#include "vhost_kernel.h"

#include "common/clock.h"
#include "common/frames.h"
#include "common/net_driver.h"
#include "common/page_map.h"
#include "common/report.h"
#include "common/tap.h"
#include "memory_backend.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/utsname.h>
#include <unistd.h>

/* ---- the stage ------------------------------------------------------------------------------- */

typedef struct side { /* the guest or the host, each at one end of the cable */
    station me;
    struct side *peer;
    bool answers;      /* to ARP and to ICMP echo; the real host's kernel does it without us */
    frame awaited;     /* the answer that must come, */
    bool came;         /* and whether it has */
    uint32_t sent;     /* numbered frames */
    uint32_t received; /* numbered frames of the peer: all from 1 to here, each once, in order */
} side;

enum {
    RAM, /* what guest memory is made of */
    DISPLAY,
    ROM,
    BACKINGS,
    SECTIONS = 5 /* into which it is laid out */
};

typedef struct demo {
    /* The hypervisor's. */
    vhost_vm vm;
    vhost_backing backings[BACKINGS];
    vhost_device device;
    vhost_queue queues[2];
    /* The back-end: one of two, and the host's end of its cable. */
    bool simulated;
    vhost_kernel kernel;
    tap tap;
    memory_backend memory;
    int wire[2];
    int host_socket;
    /* The guest's. */
    net_driver driver;
    /* Both ends of the cable. */
    side guest, host;
    /* What vhost.h told us in on_trace. */
    vhost_trace_event verdicts[SECTIONS];
    int64_t told_base[2]; /* where the back-end was told to begin */
    bool tracing;         /* calls into the back-end are shown: */
    int traced_queue;     /* the last one, */
    int column;           /* and where its line ends */

    report report;
} demo;

#define FAIL(...) report_fail(&d->report, __VA_ARGS__)
#define TRY(call) REPORT_TRY(&d->report, call)

/* 1234567 as 1,234,567. */
static const char *number(uint64_t value, char text[32])
{
    char *at = text + 31;
    *at = '\0';
    for (int digits = 0; value != 0 || digits == 0; digits++) {
        if (digits != 0 && digits % 3 == 0)
            *--at = ',';
        *--at = (char)('0' + value % 10);
        value /= 10;
    }
    return at;
}

/* ---- what vhost.h tells us ------------------------------------------------------------------- */

static void on_message(vhost_level level, const vhost_error *what, const vhost_device *device,
                       void *user)
{
    demo *d = user;
    (void)device;
    if (level == VHOST_LEVEL_ERROR)
        snprintf(d->report.message, sizeof d->report.message, "%s", what->text);
    fprintf(stderr, "vhost.h, %s: %s\n", level == VHOST_LEVEL_ERROR ? "error" : "note", what->text);
}

static void on_queue_error(vhost_device *device, uint32_t queue, void *user)
{
    demo *d = user;
    (void)device;
    FAIL("the back-end found queue %u broken", (unsigned)queue);
}

static void on_broken(vhost_device *device, void *user)
{
    demo *d = user;
    FAIL("the device broke: %s", device->last_error.text);
}

/* ---- 1. guest memory ------------------------------------------------------------------------- */

#define KIB      UINT64_C(1024)
#define MIB      (1024 * KIB)
#define RAM_SIZE (16 * MIB)

/* A small PC. RAM stands in its backing as it stands in the guest, with a hole for the rest. */
static const struct {
    const char *what;
    uint64_t gpa, size, offset;
    int backing;
    uint32_t flags;
} layout[SECTIONS] = {
    {"RAM", 0, 640 * KIB, 0, RAM, 0},
    {"display", 640 * KIB, 128 * KIB, 0, DISPLAY, VHOST_SECTION_DIRTY_TRACKED},
    {"ROM", 768 * KIB, 256 * KIB, 0, ROM, VHOST_SECTION_ROM},
    {"RAM", 1 * MIB, 7 * MIB, 1 * MIB, RAM, 0},
    {"RAM (2nd bank)", 8 * MIB, 8 * MIB, 8 * MIB, RAM, 0},
};

static bool allocate_memory(demo *d)
{
    static const uint64_t sizes[BACKINGS] = {RAM_SIZE, 128 * KIB, 256 * KIB};
    for (int i = 0; i < BACKINGS; i++) {
        void *host = NULL;
        if (posix_memalign(&host, 4096, (size_t)sizes[i]) != 0)
            return FAIL("no memory for a guest");
        memset(host, 0, (size_t)sizes[i]);
        vhost_backing_init(&d->backings[i], host, sizes[i], -1, 0);
    }
    return true;
}

static bool map_memory(demo *d)
{
    bool good = allocate_memory(d) && TRY(vhost_memory_begin(&d->vm));
    for (int i = 0; good && i < SECTIONS; i++) {
        vhost_section section;
        vhost_section_init(&section, layout[i].gpa, layout[i].size, &d->backings[layout[i].backing],
                           layout[i].offset);
        section.flags = layout[i].flags;
        good = TRY(vhost_memory_add(&d->vm, &section));
    }
    return good && TRY(vhost_memory_commit(&d->vm));
}

static void note_verdict(demo *d, const vhost_trace *trace)
{
    for (int i = 0; i < SECTIONS; i++)
        if (layout[i].gpa == trace->gpa)
            d->verdicts[i] = trace->event;
}

/* The table of the back-end is made for the first device, so it comes after vhost_device_init. */
static bool show_memory(demo *d)
{
    int regions = 0;
    report_step(&d->report, "guest memory, and what of it the back-end gets");
    for (int i = 0; i < SECTIONS; i++) {
        uint64_t last = layout[i].gpa + layout[i].size - 1;
        vhost_extent extent = {0};
        TRY(vhost_memory_find(&d->vm, layout[i].gpa, &extent));
        printf("   %08llx-%08llx %5llu KiB  %-14s  ", (unsigned long long)layout[i].gpa,
               (unsigned long long)last, (unsigned long long)(layout[i].size / KIB),
               layout[i].what);
        if (d->verdicts[i] == VHOST_TRACE_SECTION_ACCEPTED)
            printf("region %d, at %p\n", regions++, extent.host);
        else if (d->verdicts[i] == VHOST_TRACE_SECTION_MERGED)
            printf("region %d, continued\n", regions - 1);
        else if ((layout[i].flags & VHOST_SECTION_ROM) != 0)
            printf("none: nothing may write it\n");
        else
            printf("none: its writes are watched\n");
    }
    return regions == 2 || FAIL("the memory table has %d regions, not 2", regions);
}

/* ---- 2. features ----------------------------------------------------------------------------- */

static const struct feature {
    unsigned bit;
    const char *name;
    bool wanted; /* by the VMM: it would offer it */
    bool known;  /* by the driver: it takes it if offered; ours is a plain one */
} features[] = {
    {5, "MAC", true, true},
    {15, "MRG_RXBUF", false, false},
    {24, "NOTIFY_ON_EMPTY", false, false},
    {VHOST_FEATURE_LOG_ALL, "LOG_ALL", false, false},
    {27, "VIRTIO_NET_HDR", false, false},
    {28, "RING_INDIRECT_DESC", true, false},
    {VHOST_FEATURE_EVENT_IDX, "RING_EVENT_IDX", true, false},
    {VHOST_FEATURE_VERSION_1, "VERSION_1", true, true},
    {VHOST_FEATURE_ACCESS_PLATFORM, "ACCESS_PLATFORM", false, false},
    {VHOST_FEATURE_RING_PACKED, "RING_PACKED", true, false},
    {VHOST_FEATURE_IN_ORDER, "IN_ORDER", false, false},
    {40, "RING_RESET", false, false},
};

enum {
    FEATURES = sizeof features / sizeof features[0]
};

static const char *feature_name(unsigned bit)
{
    for (int i = 0; i < FEATURES; i++)
        if (features[i].bit == bit)
            return features[i].name;
    return "(a newer one)";
}

static void show_features(const vhost_features *has, const vhost_features *mine,
                          const vhost_features *offer, const vhost_features *accepted)
{
    printf("   bit  name                 back-end has  VMM wants  offered  driver takes\n");
    for (unsigned bit = 0; bit < 128; bit++) {
        if (!vhost_features_test(has, bit) && !vhost_features_test(mine, bit))
            continue;
        printf("   %3u  %-19s       %-11s %-9s %-10s %s\n", bit, feature_name(bit),
               vhost_features_test(has, bit) ? "yes" : "-",
               vhost_features_test(mine, bit) ? "yes" : "-",
               vhost_features_test(offer, bit) ? "yes" : "-",
               vhost_features_test(accepted, bit) ? "yes" : "-");
    }
}

static bool agree_on_features(demo *d)
{
    vhost_features mine = {{0, 0}}, accepted = {{0, 0}};
    for (int i = 0; i < FEATURES; i++)
        if (features[i].wanted)
            vhost_features_set(&mine, features[i].bit);
    vhost_features offer = vhost_device_offer(&d->device, mine);
    for (int i = 0; i < FEATURES; i++)
        if (features[i].known && vhost_features_test(&offer, features[i].bit))
            vhost_features_set(&accepted, features[i].bit);

    report_step(&d->report, "features");
    show_features(&d->device.facts.offered, &mine, &offer, &accepted);
    if (!vhost_features_test(&accepted, VHOST_FEATURE_VERSION_1))
        return FAIL("VERSION_1 is not offered");
    return TRY(vhost_device_ack(&d->device, accepted));
}

/* ---- 3. start -------------------------------------------------------------------------------- */

/* Prints the calls into the back-end, a line for each queue. */
static void show_call(demo *d, const vhost_trace *trace)
{
    const char *name = vhost_op_name(trace->op);
    bool same = trace->queue == d->traced_queue;
    if (!same || d->column + (int)strlen(name) > 78) {
        char who[24] = "device:";
        if (trace->queue >= 0)
            snprintf(who, sizeof who, "queue %d:", trace->queue);
        d->column = printf("%s   %-9s", d->column != 0 ? "\n" : "", same ? "" : who);
        d->traced_queue = trace->queue;
    }
    d->column += printf(" %s", name);
}

static void show_calls(demo *d, bool on)
{
    d->tracing = on;
    d->traced_queue = -2; /* none yet */
    if (d->column != 0)
        printf("\n");
    d->column = 0;
}

static void on_trace(const vhost_trace *trace, void *user)
{
    demo *d = user;
    switch (trace->event) {
    case VHOST_TRACE_SECTION_ACCEPTED:
    case VHOST_TRACE_SECTION_MERGED:
    case VHOST_TRACE_SECTION_REJECTED:
        note_verdict(d, trace);
        break;
    case VHOST_TRACE_OP:
        if (trace->op == VHOST_OP_SET_RING_BASE)
            d->told_base[trace->queue] = trace->value;
        if (d->tracing)
            show_call(d, trace);
        break;
    case VHOST_TRACE_COMMIT:
    case VHOST_TRACE_FENCE:
    case VHOST_TRACE_STATE:
    case VHOST_TRACE_LOG:
    case VHOST_TRACE_MISS:
    case VHOST_TRACE_SECTION_UNROUNDED:
        break;
    }
}

/* The rings in two banks of memory; the receive buffers across both sections of the second region,
   which is one for the back-end. */
static bool load_driver(demo *d)
{
    static const net_layout where = {
        .ring = {64 * KIB, 1 * MIB},
        .buffers = {8 * MIB - 256 * KIB, 2 * MIB},
        .header = 4 * KIB,
    };
    return TRY(net_driver_open(&d->driver, d->backings[RAM].host, &where));
}

/* The driver has written the addresses of its rings to the device's registers. */
static void fill_queues(demo *d)
{
    for (int i = 0; i < 2; i++) {
        vhost_queue *queue = &d->queues[i];
        queue->ready = true;
        queue->size = d->driver.ring[i].size;
        queue->desc = d->driver.ring[i].descriptors_gpa;
        queue->avail = d->driver.ring[i].available_gpa;
        queue->used = d->driver.ring[i].used_gpa;
        queue->kick_fd = d->driver.kick[i];
        queue->call_fd = d->driver.call[i];
    }
}

static bool start(demo *d)
{
    if (!load_driver(d))
        return false;
    fill_queues(d);
    report_step(&d->report, "start: what the back-end is told");
    show_calls(d, true);
    bool good = TRY(vhost_device_start(&d->device));
    show_calls(d, false);
    return good;
}

/* ---- frames come and go ---------------------------------------------------------------------- */

/* Returns false if there is no room at the moment. */
static bool send_frame(demo *d, const side *from, const frame *sent)
{
    if (from == &d->guest)
        return net_driver_send(&d->driver, sent);
    return send(d->host_socket, sent->bytes, sent->size, MSG_DONTWAIT) == (ssize_t)sent->size;
}

static bool send_next_number(demo *d, side *from, size_t size)
{
    frame next;
    frame_numbered(&next, &from->me, &from->peer->me, from->sent + 1, size);
    if (!send_frame(d, from, &next))
        return false;
    from->sent++;
    return true;
}

static void take_numbered(demo *d, side *at, const frame *got, uint32_t found)
{
    frame expected;
    frame_numbered(&expected, &at->peer->me, &at->me, found, got->size);
    if (!frame_equal(got, &expected))
        FAIL("frame %u came damaged", (unsigned)found);
    else if (found != at->received + 1)
        FAIL("frame %u came after frame %u", (unsigned)found, (unsigned)at->received);
    else
        at->received++;
}

/* Frames of others may come too, such as what a kernel sends when a network card appears. */
static void take_frame(demo *d, side *at, const frame *got)
{
    frame answer;
    uint32_t found;
    if (frame_is_from(got, &at->me))
        return;
    if (at->answers && frame_answer(&answer, got, &at->me))
        (void)send_frame(d, at, &answer);
    else if (frame_number(got, &found))
        take_numbered(d, at, got, found);
    else if (frame_equal(got, &at->awaited))
        at->came = true;
}

static void guest_interrupt(demo *d, int queue)
{
    frame got;
    if (!net_driver_called(&d->driver, queue))
        return;
    if (queue == NET_TRANSMIT)
        net_driver_reclaim(&d->driver);
    while (queue == NET_RECEIVE && net_driver_receive(&d->driver, &got))
        take_frame(d, &d->guest, &got);
    if (d->driver.fault != NULL)
        FAIL("%s", d->driver.fault);
}

static void host_receive(demo *d)
{
    frame got;
    ssize_t size;
    while ((size = recv(d->host_socket, got.bytes, sizeof got.bytes, MSG_DONTWAIT)) > 0) {
        got.size = (size_t)size;
        take_frame(d, &d->host, &got);
    }
}

/* The event loop of this hypervisor, once around. The guest looks at its rings only when it is
   called, so an interrupt that is lost would not go unnoticed. */
static bool turn(demo *d, int milliseconds)
{
    enum {
        HOST = 2, /* after the two queues of the guest */
        DEVICE = 3,
        ALL = 16
    };
    struct pollfd polled[ALL] = {{.fd = d->driver.call[NET_RECEIVE], .events = POLLIN},
                                 {.fd = d->driver.call[NET_TRANSMIT], .events = POLLIN},
                                 {.fd = d->host_socket, .events = POLLIN}};
    int fds[ALL - DEVICE];
    uint32_t count = vhost_device_poll_fds(&d->device, fds, ALL - DEVICE);
    if (count > ALL - DEVICE)
        return FAIL("%u fds to poll", (unsigned)count);
    for (uint32_t i = 0; i < count; i++)
        polled[DEVICE + i] = (struct pollfd){.fd = fds[i], .events = POLLIN};
    net_driver_kick(&d->driver);
    if (d->simulated) /* it has no thread: while we wait, it does nothing */
        milliseconds = memory_backend_poll(&d->memory) > 0 ? 0 : 1;
    (void)poll(polled, DEVICE + count, milliseconds);
    for (int i = 0; i < HOST; i++)
        if (polled[i].revents != 0)
            guest_interrupt(d, i);
    if (polled[HOST].revents != 0)
        host_receive(d);
    for (uint32_t i = 0; i < count; i++)
        if (polled[DEVICE + i].revents != 0)
            TRY(vhost_device_process(&d->device));
    return d->report.failure[0] == '\0';
}

/* ---- 4. and 5. questions and answers --------------------------------------------------------- */

#define PATIENCE 10 /* seconds until what has not come is lost */

/* Sends a question, and waits for an answer that is right in every byte. */
static bool ask(demo *d, side *from, const frame *question, const char *what)
{
    double end = clock_now() + PATIENCE;
    from->came = false;
    if (!frame_answer(&from->awaited, question, &from->peer->me) || !send_frame(d, from, question))
        return FAIL("%s could not be asked", what);
    while (!from->came && clock_now() < end && turn(d, 20)) {
    }
    return from->came || FAIL("no right answer to %s", what);
}

static void show_mac(const uint8_t mac[6])
{
    printf("%02x:%02x:%02x:%02x:%02x:%02x", mac[0], mac[1], mac[2], mac[3], mac[4], mac[5]);
}

static bool ask_all(demo *d, side *from)
{
    static const uint16_t payloads[] = {0, 1, 56, 1000, 1472};
    const uint8_t *ip = from->peer->me.ip;
    frame question;
    frame_arp_request(&question, &from->me, ip);
    if (!ask(d, from, &question, "an ARP request"))
        return false;
    printf("   who has %d.%d.%d.%d? ", ip[0], ip[1], ip[2], ip[3]);
    show_mac(from->peer->me.mac);
    printf("; all %zu bytes of the answer are right\n   ping with", from->awaited.size);
    for (uint16_t i = 0; i < sizeof payloads / sizeof payloads[0]; i++) {
        frame_echo_request(&question, &from->me, &from->peer->me, (uint16_t)(i + 1), payloads[i]);
        if (!ask(d, from, &question, "an ICMP echo request"))
            return false;
        printf("%s %u", i != 0 ? "," : "", payloads[i]);
    }
    printf(" bytes: every byte came back\n");
    return true;
}

static bool guest_asks(demo *d)
{
    report_step(&d->report, "the guest asks, the host's %s answers",
                d->simulated ? "stand-in" : "own kernel");
    return ask_all(d, &d->guest);
}

static bool host_asks(demo *d)
{
    report_step(&d->report, "the host asks, the guest answers");
    return ask_all(d, &d->host);
}

/* ---- 6. speed -------------------------------------------------------------------------------- */

#define IN_FLIGHT 128 /* frames on their way at a time */

/* Waits until all numbered frames have come to both. */
static bool settle(demo *d)
{
    double end = clock_now() + PATIENCE;
    while (d->guest.received != d->host.sent || d->host.received != d->guest.sent) {
        if (!turn(d, 20))
            return false;
        if (clock_now() > end) {
            return FAIL("lost: guest %u of %u frames, host %u of %u", d->guest.received,
                        d->host.sent, d->host.received, d->guest.sent);
        }
    }
    return true;
}

static void count_from_zero(demo *d)
{
    d->guest.sent = d->guest.received = d->host.sent = d->host.received = 0;
    d->driver.kicks = d->driver.calls = 0;
}

/* Frames of full size for a second, one way. */
static bool flood(demo *d, side *from)
{
    char texts[4][32];
    double begin = clock_now(), time;
    count_from_zero(d);
    while ((time = clock_now() - begin) < 1.0) {
        while (from->sent - from->peer->received < IN_FLIGHT &&
               send_next_number(d, from, FRAME_MAX)) {
        }
        if (!turn(d, 20))
            return false;
    }
    if (!settle(d))
        return false;
    time = clock_now() - begin;
    double rate = from->sent / time;
    printf("   %s %9s packets/s %13s bytes/s  %s kicks, %s calls\n",
           from == &d->guest ? "guest to host" : "host to guest", number((uint64_t)rate, texts[0]),
           number((uint64_t)(rate * FRAME_MAX), texts[1]), number(d->driver.kicks, texts[2]),
           number(d->driver.calls, texts[3]));
    return true;
}

static bool measure(demo *d)
{
    report_step(&d->report, "a second each way, in frames of %d bytes; every byte is checked",
                FRAME_MAX);
    return flood(d, &d->guest) && flood(d, &d->host);
}

/* ---- 7. dirty pages -------------------------------------------------------------------------- */

#define VOLLEY      40  /* frames */
#define VOLLEY_SIZE 200 /* bytes of each */

static bool send_volley(demo *d)
{
    bool good = true;
    for (int i = 0; i < VOLLEY && good; i++)
        good = send_next_number(d, &d->guest, VOLLEY_SIZE) &&
               send_next_number(d, &d->host, VOLLEY_SIZE);
    return good;
}

/* Goes on for a while: what should not come has time to come. */
static bool linger(demo *d)
{
    double end = clock_now() + 0.05;
    while (clock_now() < end)
        if (!turn(d, 10))
            return false;
    return true;
}

/* How far the device is in both rings. */
static uint32_t progress(const demo *d)
{
    return (uint32_t)split_ring_done(&d->driver.ring[0]) << 16 |
           split_ring_done(&d->driver.ring[1]);
}

/* What stands in the pages of the driver: U and R are written by the device, G by the guest alone.
   (Its available rings, too, but they share their pages with used rings.) */
static void name_pages(const demo *d, page_map *map)
{
    const net_driver *driver = &d->driver;
    page_map_name(map, driver->layout.buffers[NET_RECEIVE], NET_RING_SIZE * NET_BUFFER, 'R');
    page_map_name(map, driver->layout.buffers[NET_TRANSMIT], NET_RING_SIZE * NET_BUFFER, 'G');
    for (int i = 0; i < 2; i++) {
        const split_ring *ring = &driver->ring[i];
        page_map_name(map, ring->descriptors_gpa, split_ring_bytes(ring->size), 'G');
        page_map_name(map, ring->used_gpa, ring->size * sizeof(ring_used_entry), 'U');
    }
}

typedef struct page_counts {
    unsigned used, receive, guest; /* pages */
} page_counts;

/* The log says what the device has written, memory itself shows what was written by whomever.
   Returns NULL, or what is wrong. */
static const char *compare(const page_map *map, page_counts *counts)
{
    *counts = (page_counts){0, 0, 0};
    for (size_t page = 0; page < map->count; page++) {
        bool dirty = map->dirty[page], changed = page_map_changed(map, page);
        char kind = map->kind[page];
        if (dirty && kind != 'U' && kind != 'R')
            return "a page is dirty that the device has no business in";
        if (dirty && !changed)
            return "a page is dirty that nobody has written";
        if (changed && !dirty && kind != 'G')
            return "a page was written that is not dirty";
        counts->used += dirty && kind == 'U';
        counts->receive += dirty && kind == 'R';
        counts->guest += changed && kind == 'G';
    }
    return NULL;
}

static void take_dirty(uint64_t gpa, uint64_t size, void *user)
{
    page_map_add(user, gpa, size);
}

/* Takes the log, and holds it against memory. A frame of somebody else may come in between: then
   once more, with what it dirtied added. */
static bool take_log(demo *d, page_map *map, page_counts *counts)
{
    vhost_log_sink sink = {.range = take_dirty, .user = map};
    const char *wrong;
    uint32_t before;
    do {
        before = progress(d);
        if (!linger(d) || !TRY(vhost_log_sync(&d->vm, 0, RAM_SIZE, &sink)))
            return false;
        wrong = compare(map, counts);
    } while (progress(d) != before);
    return wrong == NULL || FAIL("%s", wrong);
}

static bool log_traffic(demo *d, page_map *map)
{
    page_counts counts;
    page_map_snapshot(map);
    printf("   %d frames each way; all guest memory, 16 pages a character:\n", 3 * VOLLEY);
    for (int i = 0; i < 3; i++) {
        if (!send_volley(d))
            return FAIL("no room for a volley of frames");
        if (!settle(d))
            return false;
    }
    if (!take_log(d, map, &counts))
        return false;
    page_map_show(map);
    printf("   U: a used ring is dirty, R: receive buffers are, a dot: nothing is\n");
    printf("   %u pages dirty: %u of used rings, %u of receive buffers; exactly those that were "
           "written\n",
           counts.used + counts.receive, counts.used, counts.receive);
    printf("   (%u more were written by the guest: the hypervisor's own log has those)\n",
           counts.guest);
    return (counts.used == 2 && counts.receive > 0) || FAIL("pages are missing in the log");
}

static bool log_silence(demo *d, page_map *map)
{
    page_counts counts;
    uint32_t before = progress(d);
    page_map_snapshot(map);
    if (!take_log(d, map, &counts))
        return false;
    printf("   after that, no frames: %u pages dirty%s\n", counts.used + counts.receive,
           progress(d) != before ? ", by frames of others" : "");
    return progress(d) != before || counts.used + counts.receive == 0 ||
           FAIL("pages are dirty without a frame");
}

static bool log_dirty_pages(demo *d)
{
    static page_map map;
    report_step(&d->report, "dirty pages, as a migration needs them: what the back-end is told");
    if (!page_map_open(&map, d->backings[RAM].host, RAM_SIZE))
        return FAIL("no memory for a copy of memory");
    name_pages(d, &map);
    show_calls(d, true);
    bool good = TRY(vhost_log_start(&d->vm));
    show_calls(d, false);
    good = good && log_traffic(d, &map) && log_silence(d, &map);
    page_map_close(&map);
    return TRY(vhost_log_stop(&d->vm)) && good;
}

/* ---- 8. stop, and start where it was --------------------------------------------------------- */

/* Sends a volley each way, and does not wait for it. */
static bool volley(demo *d, const char *when)
{
    if (!send_volley(d))
        return FAIL("no room for a volley of frames %s", when);
    printf("   frames %u to %u sent each way, %s\n", d->guest.sent - VOLLEY + 1, d->guest.sent,
           when);
    return true;
}

static bool show_positions(demo *d)
{
    static const char *const names_of[2] = {"receive", "transmit"};
    for (int i = 0; i < 2; i++) {
        const vhost_position *position = &d->queues[i].position;
        uint16_t waiting = (uint16_t)(d->driver.ring[i].added - position->avail);
        printf("   queue %d (%s) is at position %u, %u buffers wait in its ring\n", i, names_of[i],
               position->avail, waiting);
        if (position->state != VHOST_POSITION_CERTAIN)
            return FAIL("the position of queue %d is not certain", i);
    }
    return true;
}

/* Nobody may touch the rings now. */
static bool stays_still(demo *d)
{
    uint16_t before[2] = {split_ring_done(&d->driver.ring[0]), split_ring_done(&d->driver.ring[1])};
    if (!linger(d))
        return false;
    for (int i = 0; i < 2; i++)
        if (split_ring_done(&d->driver.ring[i]) != before[i] ||
            before[i] != d->queues[i].position.avail)
            return FAIL("queue %d moved after the stop", i);
    printf("   nothing moves: the guest has %u of %u, the host %u of %u\n", d->guest.received,
           d->host.sent, d->host.received, d->guest.sent);
    return true;
}

static bool restart(demo *d)
{
    uint16_t saved[2] = {d->queues[0].position.avail, d->queues[1].position.avail};
    if (!TRY(vhost_device_start(&d->device)))
        return false;
    printf("   started again; the back-end was told to go on at %lld and at %lld\n",
           (long long)d->told_base[0], (long long)d->told_base[1]);
    return (d->told_base[0] == saved[0] && d->told_base[1] == saved[1]) ||
           FAIL("started from other positions than those saved");
}

static bool stop_and_start(demo *d)
{
    report_step(&d->report, "stop, and start from the saved positions");
    count_from_zero(d);
    bool good = volley(d, "and stopped at once") && turn(d, 0) &&
                TRY(vhost_device_stop(&d->device)) && show_positions(d) &&
                volley(d, "with nobody to take them") && stays_still(d) && restart(d) &&
                volley(d, "as before") && settle(d) && linger(d);
    if (good) {
        printf("   all %u came, each way, each once, in order: no packet was lost\n",
               d->guest.sent);
    }
    return good;
}

/* ---- the back-end ---------------------------------------------------------------------------- */

/* vhost-net and a tap. Returns false, with a reason, where one of them cannot be had. */
static bool find_kernel(demo *d, const char *path, char *reason, size_t size)
{
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0) {
        snprintf(reason, size, "%s: %s", path, strerror(errno));
        return false;
    }
    close(fd);
    int code = tap_open(&d->tap, d->host.me.ip, NET_HEADER);
    if (code < 0)
        snprintf(reason, size, "%s: %s", d->tap.failed, strerror(-code));
    return code >= 0;
}

static bool open_kernel(demo *d, const char *path)
{
    d->host.me = d->tap.host;
    d->host_socket = d->tap.socket;
    return TRY(vhost_kernel_net_open(&d->kernel, path, &d->tap.fd, 1, NULL));
}

/* A back-end in this process, and a cable to a host that is no more than take_frame. */
static bool open_simulated(demo *d)
{
    static const uint8_t mac[6] = {0x02, 0, 0, 0, 0, 0x01};
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, d->wire) != 0)
        return FAIL("socketpair: %s", strerror(errno));
    memcpy(d->host.me.mac, mac, sizeof mac);
    d->host.answers = true;
    d->host_socket = d->wire[1];
    d->memory = (memory_backend){.wire = d->wire[0]};
    return true;
}

/* choice: "kernel", "simulated", or anything else: the kernel's, if it can be had. */
static bool open_backend(demo *d, const char *choice)
{
    static const char path[] = "/dev/vhost-net";
    char reason[200] = "as asked for";
    d->simulated = strcmp(choice, "simulated") == 0 || !find_kernel(d, path, reason, sizeof reason);
    if (d->simulated && strcmp(choice, "kernel") == 0)
        return FAIL("%s", reason);
    if (!d->simulated) {
        printf("vhost.h %s drives %s, which drives the tap %s.\n\n", VHOST_VERSION_STRING, path,
               d->tap.name);
        return open_kernel(d, path);
    }
    printf("Cannot use vhost-net (%s): the same steps on a simulated back-end.\n\n", reason);
    return open_simulated(d);
}

/* ---- the whole of it ------------------------------------------------------------------------- */

static bool set_up(demo *d, const char *choice)
{
    static const station guest = {{0x02, 0, 0, 0, 0, 0x02}, {192, 0, 2, 2}};
    static const uint8_t host_ip[4] = {192, 0, 2, 1}; /* addresses set aside for examples */
    d->guest = (side){.me = guest, .peer = &d->host, .answers = true};
    d->host = (side){.peer = &d->guest};
    memcpy(d->host.me.ip, host_ip, sizeof host_ip);
    d->tap = (tap){.fd = -1, .socket = -1};
    d->wire[0] = d->wire[1] = -1;

    vhost_vm_options vm = {.user = d, .on_message = on_message, .on_trace = on_trace};
    vhost_device_options device = {.on_queue_error = on_queue_error, .on_broken = on_broken};
    device.user = d;
    vhost_queue_init(&d->queues[0]);
    vhost_queue_init(&d->queues[1]);
    if (!TRY(vhost_vm_init(&d->vm, &vm)) || !map_memory(d) || !open_backend(d, choice))
        return false;
    const vhost_backend_ops *ops =
        d->simulated ? memory_backend_ops() : vhost_kernel_ops(&d->kernel);
    void *backend = d->simulated ? (void *)&d->memory : (void *)&d->kernel;
    return TRY(vhost_device_init(&d->device, &d->vm, ops, backend, d->queues, 2, &device));
}

/* Harmless for whatever was not set up. */
static void tear_down(demo *d)
{
    TRY(vhost_device_stop(&d->device));
    vhost_device_cleanup(&d->device);
    if (!d->simulated)
        vhost_kernel_close(&d->kernel);
    TRY(vhost_vm_cleanup(&d->vm));
    net_driver_close(&d->driver);
    tap_close(&d->tap);
    for (int i = 0; i < 2; i++)
        if (d->wire[i] >= 0)
            close(d->wire[i]);
    for (int i = 0; i < BACKINGS; i++)
        free(d->backings[i].host);
}

static int verdict(const demo *d)
{
    struct utsname system;
    if (d->simulated)
        return report_end(&d->report, "simulated back-end; make demo-vm runs it on a real kernel");
    return report_end(&d->report, "/dev/vhost-net, Linux %s",
                      uname(&system) == 0 ? system.release : "of unknown version");
}

int main(int argc, char **argv)
{
    static demo the_demo; /* fixed address: vhost.h never moves its objects, nor may we */
    demo *d = &the_demo;
    d->report.program = "vhost_net";
    setvbuf(stdout, NULL, _IOLBF, 0);
    bool good = set_up(d, argc > 1 ? argv[1] : "");
    good = good && show_memory(d) && agree_on_features(d) && start(d);
    good = good && guest_asks(d) && host_asks(d) && measure(d) && log_dirty_pages(d) &&
           stop_and_start(d);
    (void)good; /* the first failure is kept in the report */
    tear_down(d);
    return verdict(d);
}
