/* A real network card in another process: DPDK's testpmd, which sends each frame back with its MAC
   addresses swapped.

   backends: net */
#define _GNU_SOURCE
#include "clock.h"
#include "net_driver.h"
#include "packed_ring.h"
#include "user_machine.h"
#include "wire_count.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#define KIB        UINT64_C(1024)
#define MIB        (1024 * KIB)
#define PAIR_BYTES (2 * MIB) /* guest memory of a pair */
#define RECEIVE_AT (512 * KIB)
#define SEND_AT    (1024 * KIB)

enum {
    PAIRS = 4,
    ON_THE_WAY = 64,   /* frames at a time */
    NET_F_MTU = 3,     /* features */
    NET_F_MAC = 5,     /* */
    NET_F_STATUS = 16, /* */
    NET_F_MQ = 22,     /* */
    NET_F_HASH_REPORT = 57
};

/* ---- a card for all tests that need no special one: it takes a second to answer first ---- */

static real_backend card;

static void plug_card(const char *options)
{
    if (!real_backend_open(&card) || !real_backend_start(&card, "net", options)) {
        printf("testpmd did not start\n"); /* whoever wants to connect to it will fail */
    }
}

static void pull_card(void)
{
    real_backend_end(&card, SIGKILL);
    real_backend_close(&card);
}

static void use_card(user_machine *m)
{
    memcpy(m->peer.socket, card.socket, sizeof card.socket);
}

/* ---- the drivers of its pairs ---- */

typedef struct net_pair {
    net_driver driver;
    uint32_t sent, returned; /* numbered frames */
    const char *fault;
} net_pair;

static net_pair pairs[PAIRS];
static unsigned pair_count;

static net_layout layout_at(uint64_t address)
{
    net_layout layout = {{address, address + 64 * KIB},
                         {address + RECEIVE_AT, address + SEND_AT},
                         address + 128 * KIB};
    return layout;
}

static void fill_queues(user_machine *m, unsigned pair)
{
    for (unsigned i = 0; i < 2; i++) {
        const net_driver *driver = &pairs[pair].driver;
        vhost_queue *queue = &m->queue[2 * pair + i];
        queue->ready = true;
        queue->size = driver->ring[i].size;
        queue->desc = driver->ring[i].descriptors_gpa;
        queue->avail = driver->ring[i].available_gpa;
        queue->used = driver->ring[i].used_gpa;
        queue->kick_fd = driver->kick[i];
        queue->call_fd = driver->call[i];
    }
}

/* In memory of zeros, which the device has at `address`. */
static int open_drivers(user_machine *m, uint8_t *memory, uint64_t address, unsigned count)
{
    for (pair_count = 0; pair_count < count; pair_count++) {
        net_layout layout = layout_at(address + pair_count * PAIR_BYTES);
        int result = net_driver_open(&pairs[pair_count].driver, memory, &layout);
        if (result < 0) {
            return result;
        }
        fill_queues(m, pair_count);
    }
    return 0;
}

static enum greatest_test_res attached(user_machine *m, unsigned count)
{
    m->user_options.counts_pairs = true;
    if (count > 1) {
        vhost_features_set(&m->wanted, NET_F_MQ); /* or only the first pair is sure to live */
    }
    ASSERT_OK(user_machine_plug(m, 0, 0, PAIRS * PAIR_BYTES));
    ASSERT_OK(user_machine_attach(m, 2 * count));
    PASS();
}

/* The device runs. */
static enum greatest_test_res running(user_machine *m, unsigned count)
{
    CHECK_CALL(attached(m, count));
    ASSERT_OK(open_drivers(m, m->ram, 0, count));
    ASSERT_OK(vhost_device_start(&m->device));
    PASS();
}

static user_machine_test *current_test;

static enum greatest_test_res run_with_drivers(user_machine *m)
{
    enum greatest_test_res result = current_test(m);
    user_machine_detach(m); /* before its fds are closed */
    for (unsigned i = 0; i < PAIRS; i++) {
        net_driver_close(&pairs[i].driver);
    }
    memset(pairs, 0, sizeof pairs);
    pair_count = 0;
    return result;
}

static enum greatest_test_res run_net(user_machine_test *test)
{
    current_test = test;
    return user_machine_run(run_with_drivers);
}

#define RUN_NET(TEST_NAME)                                                                         \
    do {                                                                                           \
        if (greatest_test_pre(#TEST_NAME) == 1) {                                                  \
            greatest_test_post(run_net(TEST_NAME));                                                \
        }                                                                                          \
    } while (0)

/* ---- frames ---- */

static const station other = {{2, 0, 0, 0, 0, 99}, {10, 0, 0, 99}};

static void make_frame(frame *made, unsigned pair, uint32_t number)
{
    station guest = {{2, 0, 0, 0, 0, 1}, {10, 0, 0, 1}};
    guest.mac[4] = (uint8_t)pair;
    frame_numbered(made, &guest, &other, number, 60 + number * 37 % (FRAME_MAX - 59));
}

/* As it was sent by this pair, with its MAC addresses swapped. */
static bool is_echo(const frame *got, unsigned pair, uint32_t number)
{
    frame sent, swapped;
    make_frame(&sent, pair, number);
    swapped = sent;
    memcpy(swapped.bytes, sent.bytes + 6, 6);
    memcpy(swapped.bytes + 6, sent.bytes, 6);
    return frame_equal(got, &swapped);
}

/* Each once, and in the order in which they were sent. */
static void take_frame(unsigned index, const frame *got)
{
    net_pair *pair = &pairs[index];
    uint32_t number = 0;
    if (!frame_number(got, &number) || !is_echo(got, index, number)) {
        pair->fault = "a frame came back damaged";
    } else if (number != pair->returned + 1) {
        pair->fault = "a frame came back out of order";
    }
    pair->returned++;
}

static void take_frames(unsigned index)
{
    frame got;
    while (net_driver_receive(&pairs[index].driver, &got)) {
        take_frame(index, &got);
    }
    net_driver_reclaim(&pairs[index].driver);
    if (pairs[index].driver.fault != NULL) {
        pairs[index].fault = pairs[index].driver.fault;
    }
}

static void send_frames(unsigned index, uint32_t until)
{
    net_pair *pair = &pairs[index];
    while (pair->sent < until && pair->sent - pair->returned < ON_THE_WAY) {
        frame next;
        make_frame(&next, index, pair->sent + 1);
        if (!net_driver_send(&pair->driver, &next)) {
            break;
        }
        pair->sent++;
    }
    net_driver_kick(&pair->driver);
}

/* Sends up to a number, and goes on until so many are back. */
static enum greatest_test_res frames_return(user_machine *m, uint32_t sent, uint32_t returned)
{
    double end = clock_now() + USER_PATIENCE / 1e3;
    for (unsigned i = 0; i < pair_count; i++) {
        while (pairs[i].returned < returned) {
            for (unsigned j = 0; j < pair_count; j++) {
                send_frames(j, sent);
            }
            user_machine_turn(m, 10);
            for (unsigned j = 0; j < pair_count; j++) {
                take_frames(j);
                ASSERT_EQm(pairs[j].fault, NULL, pairs[j].fault);
            }
            ASSERTm("a frame was lost", clock_now() < end);
        }
    }
    PASS();
}

/* All that is under way comes back, and so many more. */
static enum greatest_test_res echo(user_machine *m, uint32_t count)
{
    uint32_t most = 0;
    for (unsigned i = 0; i < pair_count; i++) {
        most = pairs[i].sent > most ? pairs[i].sent : most;
    }
    return frames_return(m, most + count, most + count);
}

/* There are frames under way when this returns. */
static enum greatest_test_res keep_echoing(user_machine *m, uint32_t count)
{
    uint32_t returned = pairs[0].returned + count;
    CHECK_CALL(frames_return(m, returned + ON_THE_WAY / 2, returned));
    send_frames(0, returned + ON_THE_WAY / 2);
    PASS();
}

/* Each queue stopped where its driver is. */
static enum greatest_test_res stops_where_the_drivers_are(user_machine *m)
{
    ASSERT_OK(vhost_device_stop(&m->device));
    for (unsigned i = 0; i < 2 * pair_count; i++) {
        const split_ring *ring = &pairs[i / 2].driver.ring[i % 2];
        ASSERT_INT(VHOST_POSITION_CERTAIN, m->queue[i].position.state);
        ASSERT_UINT(split_ring_done(ring), m->queue[i].position.avail);
    }
    ASSERT_UINT(0, m->errors);
    PASS();
}

/* ---- through and back ---- */

TEST one_pair_sends_and_receives(user_machine *m)
{
    use_card(m);
    CHECK_CALL(running(m, 1));
    CHECK_CALL(echo(m, 20000));
    return stops_where_the_drivers_are(m);
}

TEST four_pairs_send_and_receive(user_machine *m)
{
    use_card(m);
    CHECK_CALL(running(m, 4));
    CHECK_CALL(echo(m, 2000));
    return stops_where_the_drivers_are(m);
}

/* It says how many pairs it has, and that are twice as many queues. */
TEST its_number_of_queues_is_one_of_pairs(user_machine *m)
{
    use_card(m);
    CHECK_CALL(running(m, 1));
    ASSERT(m->link.queue_number >= PAIRS);
    ASSERT_UINT(2 * m->link.queue_number, m->device.facts.max_queues);
    return echo(m, 100);
}

/* What it says of itself: the virtio features that it was told last. */
static uint64_t features_told(void)
{
    static const char words[] = "negotiated Virtio features: ";
    char path[64], line[256];
    uint64_t features = 0;
    snprintf(path, sizeof path, "%s/log", card.folder);
    FILE *log = fopen(path, "r");
    while (log != NULL && fgets(line, sizeof line, log) != NULL) {
        const char *at = strstr(line, words);
        features = at != NULL ? strtoull(at + sizeof words - 1, NULL, 16) : features;
    }
    if (log != NULL) {
        fclose(log);
    }
    return features;
}

/* MAC and link status are in config space, which is the VMM's. */
TEST features_of_the_vmm_are_offered_and_not_told(user_machine *m)
{
    vhost_features mine = m->wanted, its = {{UINT64_MAX, UINT64_MAX}};
    use_card(m);
    vhost_features_set(&mine, NET_F_MAC);
    vhost_features_set(&mine, NET_F_STATUS);
    CHECK_CALL(attached(m, 1));
    ASSERT_INT(-EINVAL, vhost_device_ack(&m->device, mine)); /* all are its to offer */
    ASSERT_INT(VHOST_WHY_FEATURE_NOT_OFFERED, m->device.last_error.why);
    user_machine_detach(m);
    vhost_features_clear(&its, NET_F_MAC);
    vhost_features_clear(&its, NET_F_STATUS);
    m->device_options.its_bits = &its;
    ASSERT_OK(user_machine_attach(m, 2));
    vhost_features_set(&mine, NET_F_HASH_REPORT); /* its to offer, and it does not */
    vhost_features offer = vhost_device_offer(&m->device, mine);
    vhost_features_clear(&mine, NET_F_HASH_REPORT);
    ASSERT_EQ(mine.word[0], offer.word[0]);
    ASSERT_OK(vhost_device_ack(&m->device, offer));
    ASSERT_OK(open_drivers(m, m->ram, 0, 1));
    ASSERT_OK(vhost_device_start(&m->device));
    CHECK_CALL(echo(m, 100));
    ASSERT_EQ(m->wanted.word[0], features_told() & ~(UINT64_C(1) << 30));
    user_machine_detach(m);
    PASS();
}

/* It says who it is to everybody, here to itself: this comes back as any frame. */
static enum greatest_test_res is_announced(user_machine *m, const uint8_t mac[6])
{
    static const uint8_t type[2] = {0x80, 0x35}; /* RARP */
    double end = clock_now() + USER_PATIENCE / 1e3;
    frame got;
    while (!net_driver_receive(&pairs[0].driver, &got)) {
        user_machine_turn(m, 10);
        ASSERTm("nothing was announced", clock_now() < end);
    }
    ASSERT_EQ(0, memcmp(got.bytes, mac, 6));
    ASSERT_EQ(0, memcmp(got.bytes + 12, type, 2));
    PASS();
}

TEST it_is_told_the_mtu_and_to_announce_itself(user_machine *m)
{
    static const uint8_t mac[6] = {2, 0, 0, 0, 0, 1};
    use_card(m);
    vhost_features_set(&m->wanted, NET_F_MTU);
    CHECK_CALL(running(m, 1));
    ASSERT(vhost_features_test(&m->device.acked, NET_F_MTU));
    CHECK_CALL(keep_echoing(m, 100));
    ASSERT_OK(vhost_user_set_mtu(&m->link, 1500));
    CHECK_CALL(keep_echoing(m, 100));
    CHECK_CALL(echo(m, 0));
    ASSERT_OK(vhost_user_send_rarp(&m->link, mac));
    ASSERT_UINT(0, m->errors);
    return is_announced(m, mac);
}

/* ---- the dirty log ---- */

static bool dirty[USER_RAM / VHOST_PAGE], written[USER_RAM / VHOST_PAGE];

static enum greatest_test_res take_log(user_machine *m)
{
    static uint64_t bits[USER_RAM / VHOST_PAGE / 64];
    vhost_log_sink sink = {.bits = bits, .bits_count = USER_RAM / VHOST_PAGE};
    memset(bits, 0, sizeof bits);
    ASSERT_OK(vhost_log_sync(&m->vm, 0, USER_RAM, &sink));
    ASSERT_UINT(0, sink.pages_dropped);
    for (size_t i = 0; i < USER_RAM / VHOST_PAGE; i++) {
        dirty[i] = bits[i / 64] >> i % 64 & 1;
    }
    PASS();
}

static void note_range(const user_machine *m, const uint8_t *before, uint64_t gpa, uint64_t size)
{
    for (uint64_t end = gpa + size; gpa < end; gpa++) {
        written[gpa / VHOST_PAGE] |= m->ram[gpa] != before[gpa];
    }
}

/* The used rings, and the receive buffers: what else changed, the driver changed. */
static void note_changes(const user_machine *m, const uint8_t *before)
{
    memset(written, 0, sizeof written);
    for (unsigned i = 0; i < 2 * pair_count; i++) {
        const net_driver *driver = &pairs[i / 2].driver;
        const split_ring *ring = &driver->ring[i % 2];
        note_range(m, before, ring->used_gpa,
                   sizeof(ring_used) + ring->size * sizeof(ring_used_entry));
        note_range(m, before, driver->layout.buffers[NET_RECEIVE], NET_RING_SIZE * NET_BUFFER);
    }
}

static unsigned count_pages(const bool *pages)
{
    unsigned count = 0;
    for (size_t i = 0; i < USER_RAM / VHOST_PAGE; i++) {
        count += pages[i];
    }
    return count;
}

static enum greatest_test_res exactly_noted_is_dirty(user_machine *m)
{
    CHECK_CALL(take_log(m));
    for (size_t i = 0; i < USER_RAM / VHOST_PAGE; i++) {
        if (written[i] != dirty[i]) {
            printf("page %#zx: written %d, dirty %d\n", i, written[i], dirty[i]);
        }
    }
    ASSERT_EQ(0, memcmp(written, dirty, sizeof dirty));
    PASS();
}

static enum greatest_test_res exactly_written_is_dirty(user_machine *m, const uint8_t *before)
{
    note_changes(m, before);
    return exactly_noted_is_dirty(m);
}

/* Every frame is another one, so that whatever is received changes its buffer. */
static enum greatest_test_res logs_rounds(user_machine *m, uint8_t *before)
{
    for (uint32_t frames = 1; frames <= 4 * NET_RING_SIZE; frames *= 2) {
        memcpy(before, m->ram, PAIRS * PAIR_BYTES);
        CHECK_CALL(echo(m, frames));
        CHECK_CALL(exactly_written_is_dirty(m, before));
        ASSERT(count_pages(written) > 2 * pair_count);
    }
    PASS();
}

static enum greatest_test_res logs_what_it_writes(user_machine *m, unsigned count)
{
    use_card(m);
    CHECK_CALL(running(m, count));
    CHECK_CALL(keep_echoing(m, 1000));
    ASSERT_OK(vhost_log_start(&m->vm)); /* under load */
    CHECK_CALL(echo(m, 0));
    CHECK_CALL(take_log(m));
    uint8_t *before = malloc(PAIRS * PAIR_BYTES);
    enum greatest_test_res result = logs_rounds(m, before);
    free(before);
    CHECK_CALL(result);
    CHECK_CALL(keep_echoing(m, 100));
    ASSERT_OK(vhost_log_stop(&m->vm));
    CHECK_CALL(echo(m, 100));
    return stops_where_the_drivers_are(m);
}

TEST one_pair_logs_what_it_writes(user_machine *m)
{
    return logs_what_it_writes(m, 1);
}

TEST four_pairs_log_what_they_write(user_machine *m)
{
    return logs_what_it_writes(m, 4);
}

/* A stop leaves them so, every page of them. */
static enum greatest_test_res only_used_rings_are_dirty(user_machine *m)
{
    memset(written, 0, sizeof written);
    for (unsigned i = 0; i < 2 * pair_count; i++) {
        const split_ring *ring = &pairs[i / 2].driver.ring[i % 2];
        uint64_t size = sizeof(ring_used) + ring->size * sizeof(ring_used_entry);
        for (uint64_t gpa = ring->used_gpa; gpa < ring->used_gpa + size; gpa++) {
            written[gpa / VHOST_PAGE] = true;
        }
    }
    return exactly_noted_is_dirty(m);
}

/* ---- memory ---- */

/* From now on, frames are sent from there. */
static void send_from(uint64_t gpa)
{
    pairs[0].driver.layout.buffers[NET_TRANSMIT] = gpa;
}

TEST memory_comes_and_goes_while_frames_pass(user_machine *m)
{
    const uint64_t more = 16 * MIB;
    use_card(m);
    CHECK_CALL(running(m, 1));
    ASSERT_INT(VHOST_PROFILE_BY_FD, m->device.facts.profile);
    for (unsigned round = 0; round < 20; round++) {
        CHECK_CALL(keep_echoing(m, 100));
        ASSERT_OK(user_machine_plug(m, 1, more, 2 * MIB));
        CHECK_CALL(keep_echoing(m, 100));
        ASSERT_OK(user_machine_plug(m, 2, more + (2 + round % 3) * MIB, MIB));
        send_from(more + MIB);
        CHECK_CALL(keep_echoing(m, 200));
        ASSERT_UINT(3, user_machine_mappings(card.pid));
        send_from(SEND_AT);
        CHECK_CALL(echo(m, 0)); /* nothing is under way in memory that goes, */
        CHECK_CALL(keep_echoing(m, 10));
        ASSERT_OK(user_machine_unplug(m, 1)); /* but elsewhere */
        CHECK_CALL(keep_echoing(m, 10));
        ASSERT_OK(user_machine_unplug(m, 2));
        ASSERT_UINT(1, user_machine_mappings(card.pid));
    }
    CHECK_CALL(echo(m, 100));
    return stops_where_the_drivers_are(m);
}

/* Few enough frames, so that a page that was lost is not dirty by another one. */
static enum greatest_test_res log_resizes(user_machine *m, unsigned round, uint8_t *before)
{
    memcpy(before, m->ram, PAIRS * PAIR_BYTES);
    CHECK_CALL(keep_echoing(m, 10));
    ASSERT_OK(round % 2 == 0 ? user_machine_plug(m, 1, (16 + round % 8) * MIB, MIB)
                             : user_machine_unplug(m, 1));
    CHECK_CALL(keep_echoing(m, 10));
    CHECK_CALL(echo(m, 0));
    return exactly_written_is_dirty(m, before);
}

static enum greatest_test_res log_resizes_often(user_machine *m, uint8_t *before)
{
    for (unsigned round = 0; round < 40; round++) {
        CHECK_CALL(log_resizes(m, round, before));
    }
    PASS();
}

TEST no_page_is_lost_as_the_log_grows_and_shrinks(user_machine *m)
{
    use_card(m);
    CHECK_CALL(running(m, 1));
    CHECK_CALL(keep_echoing(m, 1000));
    ASSERT_OK(vhost_log_start(&m->vm));
    CHECK_CALL(echo(m, 0));
    CHECK_CALL(take_log(m));
    uint8_t *before = malloc(PAIRS * PAIR_BYTES);
    enum greatest_test_res result = log_resizes_often(m, before);
    free(before);
    CHECK_CALL(result);
    CHECK_CALL(stops_where_the_drivers_are(m));
    return only_used_rings_are_dirty(m);
}

/* ---- frames that may be lost ---- */

/* Takes what comes of those that are under way, in any order, until the device has taken them, and
   they are all back or nothing has come for so many seconds. Then none is under way. */
static enum greatest_test_res settle(user_machine *m, double silence, uint32_t *came)
{
    net_pair *pair = &pairs[0];
    const split_ring *ring = &pair->driver.ring[NET_TRANSMIT];
    double quiet = clock_now() + silence, end = clock_now() + USER_PATIENCE / 1e3;
    *came = 0;
    while (ring->collected != ring->added ||
           (*came < pair->sent - pair->returned && clock_now() < quiet)) {
        frame got;
        uint32_t number;
        quiet = ring->collected != ring->added ? clock_now() + silence : quiet;
        user_machine_turn(m, 5);
        while (net_driver_receive(&pair->driver, &got)) {
            ASSERT(frame_number(&got, &number) && is_echo(&got, 0, number));
            *came += number > pair->returned;
            quiet = clock_now() + silence;
        }
        net_driver_reclaim(&pair->driver);
        ASSERT_EQm(pair->driver.fault, NULL, pair->driver.fault);
        ASSERTm("a frame was not taken", clock_now() < end);
    }
    pair->returned = pair->sent;
    PASS();
}

/* ---- packed rings ---- */

enum {
    PACKED_BUFFERS = 2 * ON_THE_WAY
};

typedef struct packed_pair {
    packed_ring ring[2];
    int kick[2], call[2];
    bool busy[PACKED_BUFFERS]; /* buffers to send from */
    uint32_t sent, returned;
} packed_pair;

static packed_pair packed;

static void packed_post(uint16_t buffer)
{
    ring_piece piece = {RECEIVE_AT + (uint64_t)buffer * NET_BUFFER, NET_BUFFER, true};
    (void)packed_ring_add(&packed.ring[NET_RECEIVE], &piece, 1, buffer);
}

/* Sizes that are no powers of two, so that the ends are met at other places each time around; and
   the device areas elsewhere: they are not what is logged. */
static bool open_packed(user_machine *m)
{
    static const uint16_t size[2] = {PACKED_BUFFERS + 1, 2 * PACKED_BUFFERS - 3};
    memset(&packed, 0, sizeof packed);
    for (uint16_t i = 0; i < 2; i++) {
        uint64_t gpa = (i + 3u) * 64 * KIB;
        packed_ring *ring = &packed.ring[i];
        packed_ring_init(ring, size[i], m->ram + gpa, gpa);
        ring->device_gpa = gpa + 32 * KIB;
        ring->device = (packed_event *)(void *)(m->ram + ring->device_gpa);
        packed.kick[i] = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
        packed.call[i] = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
        m->queue[i].ready = true;
        m->queue[i].size = ring->size;
        m->queue[i].desc = ring->descriptors_gpa;
        m->queue[i].avail = ring->driver_gpa;
        m->queue[i].used = ring->device_gpa;
        m->queue[i].kick_fd = packed.kick[i];
        m->queue[i].call_fd = packed.call[i];
    }
    for (uint16_t i = 0; i < PACKED_BUFFERS; i++) {
        packed_post(i);
    }
    return packed.kick[1] >= 0 && packed.call[1] >= 0;
}

static void close_packed(void)
{
    for (unsigned i = 0; i < 2; i++) {
        close(packed.kick[i]);
        close(packed.call[i]);
    }
}

static bool packed_send(user_machine *m)
{
    frame next;
    uint16_t buffer = packed.sent % PACKED_BUFFERS;
    uint64_t gpa = SEND_AT + (uint64_t)buffer * NET_BUFFER;
    make_frame(&next, 0, packed.sent + 1);
    ring_piece pieces[2] = {{128 * KIB, NET_HEADER, false}, {gpa, (uint32_t)next.size, false}};
    if (packed.busy[buffer]) {
        return false;
    }
    memcpy(m->ram + gpa, next.bytes, next.size);
    if (!packed_ring_add(&packed.ring[NET_TRANSMIT], pieces, 2, buffer)) {
        return false;
    }
    packed.busy[buffer] = true;
    packed.sent++;
    return true;
}

static void packed_kick(void)
{
    static const uint64_t one = 1;
    for (unsigned i = 0; i < 2; i++) {
        if (packed_ring_wants_kick(&packed.ring[i])) {
            (void)!write(packed.kick[i], &one, sizeof one);
        }
    }
}

static enum greatest_test_res packed_take(user_machine *m)
{
    uint16_t buffer;
    uint32_t length;
    while (packed_ring_collect(&packed.ring[NET_RECEIVE], &buffer, &length)) {
        frame got = {.size = length - NET_HEADER};
        ASSERT(length > NET_HEADER && got.size <= FRAME_MAX);
        memcpy(got.bytes, m->ram + RECEIVE_AT + (uint64_t)buffer * NET_BUFFER + NET_HEADER,
               got.size);
        ASSERT(is_echo(&got, 0, ++packed.returned));
        packed_post(buffer);
    }
    while (packed_ring_collect(&packed.ring[NET_TRANSMIT], &buffer, &length)) {
        packed.busy[buffer] = false;
    }
    ASSERT_FALSE(packed.ring[0].broken || packed.ring[1].broken);
    PASS();
}

static enum greatest_test_res packed_echo(user_machine *m, uint32_t count)
{
    uint32_t until = packed.returned + count;
    double end = clock_now() + USER_PATIENCE / 1e3;
    while (packed.returned < until) {
        while (packed.sent < until && packed.sent - packed.returned < ON_THE_WAY &&
               packed_send(m)) {
        }
        packed_kick();
        user_machine_turn(m, 10);
        CHECK_CALL(packed_take(m));
        ASSERTm("a frame was lost", clock_now() < end);
    }
    PASS();
}

/* Buffers to receive into are not taken before there is a frame. */
static enum greatest_test_res packed_stop(user_machine *m)
{
    ASSERT_OK(vhost_device_stop(&m->device));
    CHECK_CALL(packed_take(m));
    for (unsigned i = 0; i < 2; i++) {
        ASSERT_INT(VHOST_POSITION_CERTAIN, m->queue[i].position.state);
        ASSERT_UINT(packed.ring[i].used, m->queue[i].position.avail);
        ASSERT_UINT(packed.ring[i].used, m->queue[i].position.used);
    }
    PASS();
}

static enum greatest_test_res packed_runs(user_machine *m)
{
    ASSERT_OK(vhost_device_start(&m->device));
    for (uint32_t round = 0; round < 20; round++) {
        CHECK_CALL(packed_echo(m, 100 + 7 * round));
        CHECK_CALL(packed_stop(m));
        ASSERT_OK(vhost_device_start(&m->device));
    }
    ASSERT_UINT(0, m->errors);
    return packed_stop(m);
}

/* Used buffers are written into the descriptors. */
static enum greatest_test_res packed_logs_round(user_machine *m, uint32_t frames, uint8_t *before)
{
    memcpy(before, m->ram, PAIRS * PAIR_BYTES);
    CHECK_CALL(packed_echo(m, frames));
    memset(written, 0, sizeof written);
    for (unsigned i = 0; i < 2; i++) {
        const packed_ring *ring = &packed.ring[i];
        note_range(m, before, ring->descriptors_gpa, ring->size * sizeof(packed_descriptor));
    }
    note_range(m, before, RECEIVE_AT, PACKED_BUFFERS * NET_BUFFER);
    return exactly_noted_is_dirty(m);
}

static enum greatest_test_res packed_logs(user_machine *m)
{
    enum greatest_test_res result = GREATEST_TEST_RES_PASS;
    ASSERT_OK(vhost_device_start(&m->device));
    CHECK_CALL(packed_echo(m, 100));
    ASSERT_OK(vhost_log_start(&m->vm));
    uint8_t *before = malloc(PAIRS * PAIR_BYTES);
    for (uint32_t n = 1; n <= 4 * PACKED_BUFFERS && result == GREATEST_TEST_RES_PASS; n *= 2) {
        result = packed_logs_round(m, n, before);
    }
    free(before);
    CHECK_CALL(result);
    ASSERT_OK(vhost_log_stop(&m->vm));
    return packed_stop(m);
}

static enum greatest_test_res with_packed_rings(user_machine *m, user_machine_test *test)
{
    use_card(m);
    vhost_features_set(&m->wanted, VHOST_FEATURE_RING_PACKED);
    CHECK_CALL(attached(m, 1));
    ASSERT(vhost_features_test(&m->device.acked, VHOST_FEATURE_RING_PACKED));
    ASSERT(open_packed(m));
    enum greatest_test_res result = test(m);
    user_machine_detach(m);
    close_packed();
    return result;
}

TEST packed_rings_go_on_where_they_stopped(user_machine *m)
{
    return with_packed_rings(m, packed_runs);
}

TEST packed_rings_log_what_they_write(user_machine *m)
{
    return with_packed_rings(m, packed_logs);
}

/* ---- behind a vIOMMU ----

   The driver has IOVAs, and sees memory in `view` as they lead to it: block by block, from the last
   one to the first, in one of two homes. What no entry leads to is garbage, and has to stay so. */

#define WINDOW UINT64_C(0x40000000) /* the first IOVA, far above all memory */
#define BLOCK  (16 * KIB)
#define HOME   (4 * MIB)   /* from the one home to the other one */
#define DATA   (128 * KIB) /* behind the rings: this back-end never asks again for a receive ring */

enum {
    BLOCKS = (int)(PAIR_BYTES / BLOCK),
    GARBAGE = 0xa5
};

static struct iommu {
    uint8_t *view;
    uint64_t gpa[BLOCKS];
    unsigned misses; /* looked up, to be exact: rings are, by each start */
    int watching;
} unit;

static int translate(vhost_device *device, uint64_t iova, bool write, vhost_translation *entry,
                     void *user)
{
    (void)device;
    (void)write;
    (void)user;
    if (iova < WINDOW || iova >= WINDOW + PAIR_BYTES) {
        return -EFAULT;
    }
    entry->iova = iova / BLOCK * BLOCK;
    entry->size = BLOCK;
    entry->gpa = unit.gpa[(iova - WINDOW) / BLOCK];
    entry->permit = VHOST_PERMIT_READ | VHOST_PERMIT_WRITE;
    unit.misses++;
    return 0;
}

static int watch(vhost_device *device, bool on, void *user)
{
    (void)device;
    (void)user;
    unit.watching += on ? 1 : -1;
    return 0;
}

static const vhost_memory_ops behind_iommu = {NULL, NULL, translate, watch};

static bool see(const user_machine *m, unsigned block)
{
    return mmap(unit.view + WINDOW + block * BLOCK, BLOCK, PROT_READ | PROT_WRITE,
                MAP_SHARED | MAP_FIXED, m->pieces[0].backing.fd,
                (off_t)unit.gpa[block]) != MAP_FAILED;
}

static bool open_iommu(const user_machine *m)
{
    bool good = true;
    memset(&unit, 0, sizeof unit);
    unit.view = mmap(NULL, WINDOW + PAIR_BYTES, PROT_NONE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    memset(m->ram, GARBAGE, PAIRS * PAIR_BYTES);
    for (unsigned i = 0; i < BLOCKS && good; i++) {
        unit.gpa[i] = (BLOCKS - 1 - i) * BLOCK;
        memset(m->ram + unit.gpa[i], 0, BLOCK);
        good = see(m, i);
    }
    return good;
}

static enum greatest_test_res running_behind_iommu(user_machine *m)
{
    use_card(m);
    m->device_options.memory = &behind_iommu;
    vhost_features_set(&m->wanted, VHOST_FEATURE_ACCESS_PLATFORM);
    CHECK_CALL(attached(m, 1));
    ASSERT(vhost_features_test(&m->device.acked, VHOST_FEATURE_ACCESS_PLATFORM));
    ASSERT(open_iommu(m));
    ASSERT_OK(open_drivers(m, unit.view, WINDOW, 1));
    ASSERT_OK(vhost_device_start(&m->device));
    ASSERT_INT(1, unit.watching);
    PASS();
}

static enum greatest_test_res leaves_iommu(user_machine *m)
{
    CHECK_CALL(stops_where_the_drivers_are(m));
    ASSERT_INT(0, unit.watching);
    ASSERT_INT(0, munmap(unit.view, WINDOW + PAIR_BYTES));
    PASS();
}

/* testpmd drops a frame if it has to wait for a translation. This goes on until it knows them all:
   frames came back through each buffer. */
static enum greatest_test_res learn(user_machine *m)
{
    double end = clock_now() + USER_PATIENCE / 1e3;
    for (uint32_t in_a_row = 0; in_a_row < 2 * NET_RING_SIZE;) {
        uint32_t came, sent = ON_THE_WAY;
        send_frames(0, pairs[0].sent + sent);
        CHECK_CALL(settle(m, 0.02, &came));
        in_a_row = came < sent ? 0 : in_a_row + came;
        ASSERTm("it does not learn", clock_now() < end);
    }
    PASS();
}

TEST what_it_does_not_know_it_asks_for_once(user_machine *m)
{
    CHECK_CALL(running_behind_iommu(m));
    CHECK_CALL(learn(m));
    unsigned misses = unit.misses;
    ASSERT(misses > NET_RING_SIZE * NET_BUFFER / BLOCK);
    CHECK_CALL(echo(m, 5000));
    ASSERT_UINT(misses, unit.misses);
    return leaves_iommu(m);
}

/* The event loop does not run: nobody else can have answered. */
TEST misses_are_served_while_another_call_waits(user_machine *m)
{
    const split_ring *ring = &pairs[0].driver.ring[NET_RECEIVE];
    vhost_features_set(&m->wanted, NET_F_MTU); /* without, nobody is told of it */
    CHECK_CALL(running_behind_iommu(m));
    for (unsigned round = 0; round < 6; round++) {
        uint32_t came;
        double end = clock_now() + USER_PATIENCE / 1e3;
        CHECK_CALL(learn(m));
        ASSERT_OK(vhost_device_unmapped(&m->device, WINDOW + DATA, PAIR_BYTES - DATA));
        unsigned misses = unit.misses;
        while (split_ring_done(ring) == ring->collected) {
            net_driver_reclaim(&pairs[0].driver);
            pairs[0].returned = pairs[0].sent;
            send_frames(0, pairs[0].sent + 1);
            ASSERT_OK(vhost_user_set_mtu(&m->link, 1500));
            ASSERTm("no frame came back", clock_now() < end);
        }
        ASSERT(unit.misses > misses);
        CHECK_CALL(settle(m, 0.02, &came));
    }
    return leaves_iommu(m);
}

/* To its other home, while nothing is under way. */
static enum greatest_test_res move_block(user_machine *m, unsigned block)
{
    uint64_t from = unit.gpa[block], to = from < HOME ? from + HOME : from - HOME;
    memcpy(m->ram + to, m->ram + from, BLOCK);
    unit.gpa[block] = to;
    ASSERT(see(m, block));
    ASSERT_OK(vhost_device_unmapped(&m->device, WINDOW + block * BLOCK, BLOCK));
    memset(m->ram + from, GARBAGE, BLOCK);
    PASS();
}

static enum greatest_test_res former_homes_are_untouched(const user_machine *m)
{
    for (unsigned i = 0; i < BLOCKS; i++) {
        uint64_t former = unit.gpa[i] < HOME ? unit.gpa[i] + HOME : unit.gpa[i] - HOME;
        const uint8_t *bytes = m->ram + former;
        ASSERT_UINT(GARBAGE, bytes[0]);
        ASSERT_EQ(0, memcmp(bytes, bytes + 1, BLOCK - 1)); /* and all others are the same */
    }
    PASS();
}

TEST what_is_unmapped_is_not_used_any_more(user_machine *m)
{
    CHECK_CALL(running_behind_iommu(m));
    for (unsigned round = 0; round < 6; round++) {
        CHECK_CALL(learn(m));
        for (unsigned i = DATA / BLOCK + round % 3; i < BLOCKS; i += 1 + round % 3) {
            CHECK_CALL(move_block(m, i));
        }
        unsigned misses = unit.misses;
        CHECK_CALL(learn(m));
        ASSERT(unit.misses > misses);
        CHECK_CALL(former_homes_are_untouched(m));
    }
    return leaves_iommu(m);
}

/* ---- it dies, and it connects to us ---- */

static enum greatest_test_res turn_until(user_machine *m, const unsigned *count, unsigned wanted)
{
    double end = clock_now() + USER_PATIENCE / 1e3;
    while (*count < wanted) {
        user_machine_turn(m, 100);
        ASSERTm("it did not happen", clock_now() < end);
    }
    ASSERT_UINT(wanted, *count);
    PASS();
}

TEST killed_under_load_it_goes_on_by_the_guess(user_machine *m)
{
    uint32_t came;
    m->user_options.retry_ms = 5;
    ASSERT(real_backend_start(&m->peer, "net", "queues=1"));
    CHECK_CALL(running(m, 1));
    CHECK_CALL(keep_echoing(m, 1000));
    real_backend_end(&m->peer, SIGKILL);
    CHECK_CALL(turn_until(m, &m->refusals, 1));
    ASSERT_INT(-EINVAL, m->refused);
    ASSERT_INT(VHOST_STATE_BROKEN, m->device.state);
    ASSERT_INT(VHOST_WHY_POSITION_GUESSED, m->link.last_error.why);
    send_frames(0, pairs[0].sent + ON_THE_WAY / 2);
    unsigned waiting = pairs[0].sent - pairs[0].returned;
    for (unsigned i = 0; i < 2; i++) {
        const split_ring *ring = &pairs[0].driver.ring[i];
        ASSERT(i == 1 || m->queue[i].position.state == VHOST_POSITION_GUESSED); /* 1 may be idle */
        ASSERT_UINT(split_ring_done(ring), m->queue[i].position.avail);
        m->queue[i].position.state = VHOST_POSITION_CERTAIN;
    }
    ASSERT(real_backend_start(&m->peer, "net", "queues=1"));
    CHECK_CALL(turn_until(m, &m->returns, 1));
    ASSERT_INT(VHOST_STATE_RUNNING, m->device.state);
    CHECK_CALL(settle(m, 1, &came));
    printf("a death, and the guess taken: of %u frames under way %u came back\n", waiting, came);
    ASSERT(came > 0);
    m->errors = 0;
    CHECK_CALL(echo(m, 5000));
    return stops_where_the_drivers_are(m);
}

/* Nothing was under way: the VMM knows that the guess is right. */
static void trust_positions(vhost_device *device, void *user)
{
    (void)user;
    for (uint32_t i = 0; i < device->queue_count; i++) {
        device->queues[i].position.state = VHOST_POSITION_CERTAIN;
    }
}

static enum greatest_test_res attach_listening(user_machine *m)
{
    ASSERT_OK(vhost_user_listen(&m->link, m->peer.socket, &m->user_options));
    ASSERT(real_backend_start(&m->peer, "net", "client=1"));
    for (unsigned i = 0; i < 2; i++) {
        vhost_queue_init(&m->queue[i]);
    }
    ASSERT_OK(vhost_device_init(&m->device, &m->vm, vhost_user_ops(), &m->link, m->queue, 2,
                                &m->device_options));
    ASSERT_OK(vhost_device_ack(&m->device, m->wanted));
    PASS();
}

TEST a_card_that_connects_may_die_and_connect_again(user_machine *m)
{
    m->user_options.retry_ms = 5;
    m->user_options.retry_max_ms = 50;
    m->user_options.counts_pairs = true;
    m->device_options.on_broken = trust_positions;
    ASSERT_OK(user_machine_plug(m, 0, 0, PAIR_BYTES));
    CHECK_CALL(attach_listening(m));
    ASSERT_OK(open_drivers(m, m->ram, 0, 1));
    ASSERT_OK(vhost_device_start(&m->device));
    CHECK_CALL(echo(m, 1000));
    real_backend_end(&m->peer, SIGKILL);
    CHECK_CALL(turn_until(m, &m->broken, 1));
    user_machine_turn(m, 20); /* nobody is there */
    send_frames(0, pairs[0].sent + ON_THE_WAY);
    ASSERT(real_backend_start(&m->peer, "net", "client=1"));
    CHECK_CALL(turn_until(m, &m->returns, 1));
    ASSERT_UINT(0, m->refusals);
    CHECK_CALL(echo(m, 1000)); /* with those that waited: each once, in order */
    ASSERT_OK(vhost_device_stop(&m->device));
    PASS();
}

/* ---- messages and waits, as counted by the shim ---- */

/* This runs in a process into which the shim was loaded. */
TEST a_life_is_counted(user_machine *m)
{
    unsigned count = wire_queues() / 2;
    snprintf(m->peer.socket, sizeof m->peer.socket, "%s", wire_socket());
    CHECK_CALL(attached(m, count));
    ASSERT_OK(open_drivers(m, m->ram, 0, count));
    ASSERT(wire_end_phase("connect"));
    ASSERT_OK(vhost_device_start(&m->device));
    ASSERT(wire_end_phase("start"));
    CHECK_CALL(echo(m, 100));
    ASSERT(wire_end_phase("work"));
    ASSERT_OK(vhost_device_stop(&m->device));
    ASSERT(wire_end_phase("stop"));
    PASS();
}

/* Those of others were measured once, with the same shim. */
static enum greatest_test_res waits_little(unsigned count, const char *others)
{
    wire_count counts[4] = {{"connect", 0, 0}, {"start", 0, 0}, {"work", 0, 0}, {"stop", 0, 0}};
    const char *fault = wire_count_life(2 * count, card.socket, counts, 4);
    ASSERT_EQm(fault, NULL, fault);
    printf("%u pair%s, messages/waits from connect to running: %u/%u (connect %u/%u, start %u/%u, "
           "stop %u/%u); %s\n",
           count, count > 1 ? "s" : "", counts[0].messages + counts[1].messages,
           counts[0].waits + counts[1].waits, counts[0].messages, counts[0].waits,
           counts[1].messages, counts[1].waits, counts[3].messages, counts[3].waits, others);
    ASSERT_UINT(3, counts[0].waits);
    ASSERT_UINT(1, counts[1].waits);
    ASSERT_UINT(0, counts[2].messages);
    ASSERT_UINT(1, counts[3].waits);
    PASS();
}

TEST one_pair_waits_three_times_to_connect_and_once_to_start(void)
{
    return waits_little(1, "QEMU 7.2: 28/8 (and 10 ENABLE); DPDK virtio_user, all its life: 26/9");
}

TEST four_pairs_wait_three_times_to_connect_and_once_to_start(void)
{
    return waits_little(4, "QEMU 7.2: 95/20 (and 34 ENABLE); virtio_user, all its life: 74/15");
}

SUITE(counted)
{
    RUN_NET(a_life_is_counted);
}

SUITE(four_pairs)
{
    plug_card("queues=4");
    RUN_NET(one_pair_sends_and_receives);
    RUN_NET(four_pairs_send_and_receive);
    RUN_NET(its_number_of_queues_is_one_of_pairs);
    RUN_NET(features_of_the_vmm_are_offered_and_not_told);
    RUN_NET(it_is_told_the_mtu_and_to_announce_itself);
    RUN_NET(one_pair_logs_what_it_writes);
    RUN_NET(four_pairs_log_what_they_write);
    RUN_NET(memory_comes_and_goes_while_frames_pass);
    RUN_NET(no_page_is_lost_as_the_log_grows_and_shrinks);
    RUN_NET(packed_rings_go_on_where_they_stopped);
    RUN_NET(packed_rings_log_what_they_write);
    RUN_TEST(one_pair_waits_three_times_to_connect_and_once_to_start);
    RUN_TEST(four_pairs_wait_three_times_to_connect_and_once_to_start);
    pull_card();
}

SUITE(behind_a_viommu)
{
    plug_card("iommu=1");
    RUN_NET(what_it_does_not_know_it_asks_for_once);
    RUN_NET(misses_are_served_while_another_call_waits);
    RUN_NET(what_is_unmapped_is_not_used_any_more);
    pull_card();
}

SUITE(death)
{
    RUN_NET(killed_under_load_it_goes_on_by_the_guess);
    RUN_NET(a_card_that_connects_may_die_and_connect_again);
}

GREATEST_MAIN_DEFS();

int main(int argc, char **argv)
{
    GREATEST_MAIN_BEGIN();
    if (wire_queues() > 0) {
        RUN_SUITE(counted);
        GREATEST_MAIN_END();
    }
    RUN_SUITE(four_pairs);
    RUN_SUITE(behind_a_viommu);
    RUN_SUITE(death);
    GREATEST_MAIN_END();
}
