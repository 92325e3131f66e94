/* vhost_user.h: requests of the back-end, which come when they like: between calls, and in the
   middle of them. */
#include "user_calls.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* ---- callbacks that keep books ---- */

static struct {
    unsigned notifiers, objects, windows;
    uint32_t queue;
    uint64_t offset, size;
    bool had_fd;
    vhost_user_object what;
    uint8_t uuid[16];
    vhost_user_window window;
    int give;   /* an fd to look up; or -1 */
    int result; /* of each */
} seen;

static int on_host_notifier(vhost_user *self, uint32_t queue, int fd, uint64_t offset,
                            uint64_t size, void *user)
{
    (void)self;
    (void)user;
    seen.notifiers++;
    seen.queue = queue;
    seen.had_fd = fd >= 0;
    seen.offset = offset;
    seen.size = size;
    return seen.result;
}

static int on_object(vhost_user *self, vhost_user_object what,
                     const uint8_t uuid[VHOST_USER_UUID_SIZE], int *fd, void *user)
{
    (void)self;
    (void)user;
    seen.objects++;
    seen.what = what;
    memcpy(seen.uuid, uuid, sizeof seen.uuid);
    if (what == VHOST_USER_OBJECT_LOOK_UP) {
        *fd = seen.give;
    }
    return seen.result;
}

static int on_window(vhost_user *self, const vhost_user_window *window, int fd, void *user)
{
    (void)self;
    (void)user;
    seen.windows++;
    seen.window = *window;
    seen.had_fd = fd >= 0;
    return seen.result;
}

static void listen_for_all(peer_bench *b)
{
    memset(&seen, 0, sizeof seen);
    seen.give = -1;
    b->options.on_host_notifier = on_host_notifier;
    b->options.on_object = on_object;
    b->options.on_window = on_window;
    b->options.want = PEER_BIT(14);
    b->peer.shmem[0] = 0x10000;
    b->peer.shmem[3] = 0x2000;
}

static int running_with_all(peer_bench *b, uint32_t queues)
{
    listen_for_all(b);
    return peer_running(b, queues);
}

static int ask(peer_bench *b, const char *text)
{
    peer_ask(&b->peer, text);
    return vhost_user_process(&b->user);
}

/* ---- each request ---- */

TEST a_config_change_is_told(peer_bench *b)
{
    ASSERT_OK(peer_running(b, 1));
    ASSERT_OK(ask(b, "2 1 0"));
    ASSERT_UINT(1, b->configs);
    TOLD_NOTHING(b);
    ASSERT_OK(ask(b, "2 9 0"));
    ASSERT_UINT(2, b->configs);
    TOLD(b, "2 5 8 Q0");
    PASS();
}

TEST a_config_change_before_start_is_nothing(peer_bench *b)
{
    ASSERT_OK(peer_stopped(b, 1));
    ASSERT_OK(ask(b, "2 9 0"));
    ASSERT_UINT(0, b->configs);
    TOLD(b, "2 5 8 Q0");
    PASS();
}

TEST without_acks_no_request_is_answered(peer_bench *b)
{
    b->peer.protocol &= ~PEER_ACK;
    ASSERT_OK(peer_running(b, 1));
    ASSERT_OK(ask(b, "2 9 0"));
    ASSERT_UINT(1, b->configs);
    TOLD_NOTHING(b);
    PASS();
}

TEST calls_and_errors_in_band(peer_bench *b)
{
    ASSERT_OK(running_with_all(b, 2));
    ASSERT_OK(ask(b, "4 9 8 D1 D0"));
    ASSERT_UINT(1, b->peer.calls[1]);
    ASSERT_OK(ask(b, "5 9 8 D0 D0"));
    ASSERT_UINT(1, b->queue_errors[0]);
    TOLD(b, "4 5 8 Q0", "5 5 8 Q0");
    ASSERT_OK(ask(b, "4 9 8 D2 D0"));
    ASSERT_OK(ask(b, "5 9 8 Dffffffff D0"));
    TOLD(b, "4 5 8 Q1", "5 5 8 Q1");
    PASS();
}

TEST a_call_in_band_goes_to_the_mask(peer_bench *b)
{
    ASSERT_OK(running_with_all(b, 1));
    ASSERT_OK(vhost_queue_mask(&b->device, 0));
    ASSERT_OK(ask(b, "4 1 8 D0 D0"));
    ASSERT_UINT(0, b->peer.calls[0]);
    ASSERT_INT(1, vhost_queue_unmask(&b->device, 0));
    PASS();
}

TEST host_notifiers_come_and_go(peer_bench *b)
{
    ASSERT_OK(running_with_all(b, 2));
    ASSERT_OK(ask(b, "3 9 24 Q1 Q1000 Q3000 +4096"));
    ASSERT_UINT(1, seen.notifiers);
    ASSERT_UINT(1, seen.queue);
    ASSERT(seen.had_fd);
    ASSERT_U64(0x1000, seen.size);
    ASSERT_U64(0x3000, seen.offset);
    ASSERT_OK(ask(b, "3 9 24 Q101 Q0 Q0"));
    ASSERT_UINT(2, seen.notifiers);
    ASSERT_FALSE(seen.had_fd);
    TOLD(b, "3 5 8 Q0", "3 5 8 Q0");
    PASS();
}

TEST host_notifiers_that_make_no_sense_are_refused(peer_bench *b)
{
    static const char *const bad[] = {
        "3 9 24 Q2 Q1000 Q0 +4096",  /* no such queue */
        "3 9 24 Q1 Q2000 Q0 +4096",  /* more than a page */
        "3 9 24 Q1 Q0 Q0 +4096",     /* nothing */
        "3 9 24 Q1 Q1000 Q10 +4096", /* within a page */
        "3 9 24 Q1 Q1000 Q0",        /* no fd */
        "3 9 24 Q101 Q0 Q0 +4096"    /* an fd to remove */
    };
    ASSERT_OK(running_with_all(b, 2));
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        ASSERT_OK(ask(b, bad[i]));
        TOLD(b, "3 5 8 Q1");
    }
    ASSERT_UINT(0, seen.notifiers);
    PASS();
}

TEST objects_come_and_go(peer_bench *b)
{
    static const char uuid[] = "Q0807060504030201 Q100f0e0d0c0b0a09";
    char text[80];
    ASSERT_OK(running_with_all(b, 1));
    (void)snprintf(text, sizeof text, "6 9 16 %s", uuid);
    ASSERT_OK(ask(b, text));
    ASSERT_INT(VHOST_USER_OBJECT_ADD, seen.what);
    (void)snprintf(text, sizeof text, "7 9 16 %s", uuid);
    ASSERT_OK(ask(b, text));
    ASSERT_INT(VHOST_USER_OBJECT_REMOVE, seen.what);
    ASSERT_UINT(2, seen.objects);
    for (int i = 0; i < 16; i++) {
        uint64_t half = i < 8 ? UINT64_C(0x0807060504030201) : UINT64_C(0x100f0e0d0c0b0a09);
        uint8_t bytes[8];
        memcpy(bytes, &half, 8);
        ASSERT_UINT(bytes[i % 8], seen.uuid[i]);
    }
    seen.result = -EEXIST;
    ASSERT_OK(ask(b, text));
    TOLD(b, "6 5 8 Q0", "7 5 8 Q0", "7 5 8 Q1");
    PASS();
}

/* Answered in any case, on the channel, and the fd comes along. */
TEST objects_are_looked_up(peer_bench *b)
{
    ASSERT_OK(running_with_all(b, 1));
    seen.give = peer_file(777);
    ASSERT_OK(ask(b, "8 1 16 Z16"));
    TOLD(b, "8 5 8 Q0 +777");
    close(seen.give);
    seen.give = -1;
    ASSERT_OK(ask(b, "8 1 16 Z16"));
    TOLD(b, "8 5 8 Q1");
    seen.give = peer_file(777);
    seen.result = -ENOENT;
    ASSERT_OK(ask(b, "8 9 16 Z16"));
    close(seen.give);
    TOLD(b, "8 5 8 Q1");
    HEARD_NOTHING(b);
    PASS();
}

TEST windows_come_and_go(peer_bench *b)
{
    ASSERT_OK(running_with_all(b, 1));
    ASSERT_U64(0x10000, vhost_user_shmem_size(&b->user, 0));
    ASSERT_U64(0, vhost_user_shmem_size(&b->user, 1));
    ASSERT_U64(0x2000, vhost_user_shmem_size(&b->user, 3));
    ASSERT_OK(ask(b, "9 9 40 B3 Z7 Q5000 Q1000 Q1000 Q1 +24576"));
    ASSERT_UINT(1, seen.windows);
    ASSERT(seen.had_fd);
    ASSERT_UINT(3, seen.window.region);
    ASSERT(seen.window.writable);
    ASSERT_U64(0x5000, seen.window.fd_offset);
    ASSERT_U64(0x1000, seen.window.offset);
    ASSERT_U64(0x1000, seen.window.size);
    ASSERT_OK(ask(b, "10 9 40 B3 Z7 Q0 Q1000 Q1000 Q0"));
    ASSERT_UINT(2, seen.windows);
    ASSERT_FALSE(seen.had_fd);
    ASSERT_OK(ask(b, "10 9 40 B3 Z7 Q0 Q1000 Q1000 Q0")); /* there is none any more */
    ASSERT_UINT(2, seen.windows);
    TOLD(b, "9 5 8 Q0", "10 5 8 Q0", "10 5 8 Q1");
    PASS();
}

TEST windows_lie_in_their_region_and_nowhere_else(peer_bench *b)
{
    static const char *const bad[] = {
        "9 9 40 B0 Z7 Q0 Q10000 Q1000 Q1 +4096",            /* begins behind the region */
        "9 9 40 B0 Z7 Q0 Qf000 Q2000 Q1 +4096",             /* ends behind it */
        "9 9 40 B0 Z7 Q0 Qfffffffffffff000 Q2000 Q1 +4096", /* wraps */
        "9 9 40 B0 Z7 Q0 Q1000 Qfffffffffffff000 Q1 +4096", /* wraps */
        "9 9 40 B0 Z7 Q0 Q0 Q0 Q1 +4096",                   /* is empty */
        "9 9 40 B0 Z7 Q0 Q800 Q1000 Q1 +4096",              /* is within pages */
        "9 9 40 B1 Z7 Q0 Q0 Q1000 Q1 +4096",                /* no such region */
        "9 9 40 Bff Z7 Q0 Q0 Q1000 Q1 +4096",
        "9 9 40 B0 Z7 Q0 Q0 Q1000 Q1" /* no fd */
    };
    ASSERT_OK(running_with_all(b, 1));
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        ASSERT_OK(ask(b, bad[i]));
        TOLD(b, "9 5 8 Q1");
    }
    ASSERT_UINT(0, seen.windows);
    PASS();
}

TEST windows_do_not_overlap_and_go_as_a_whole(peer_bench *b)
{
    ASSERT_OK(running_with_all(b, 1));
    ASSERT_OK(ask(b, "9 9 40 B0 Z7 Q0 Q2000 Q2000 Q1 +4096"));
    ASSERT_OK(ask(b, "9 9 40 B0 Z7 Q0 Q3000 Q2000 Q1 +4096")); /* overlaps the end, */
    ASSERT_OK(ask(b, "9 9 40 B0 Z7 Q0 Q1000 Q2000 Q1 +4096")); /* the beginning, */
    ASSERT_OK(ask(b, "9 9 40 B0 Z7 Q0 Q0 Q10000 Q1 +4096"));   /* all of it */
    ASSERT_OK(ask(b, "9 9 40 B0 Z7 Q0 Q4000 Q1000 Q1 +4096")); /* is its neighbour */
    ASSERT_OK(ask(b, "10 9 40 B0 Z7 Q0 Q2000 Q1000 Q0"));      /* a part of it */
    ASSERT_OK(ask(b, "10 9 40 B0 Z7 Q0 Q2000 Q3000 Q0"));      /* two */
    TOLD(b, "9 5 8 Q0", "9 5 8 Q1", "9 5 8 Q1", "9 5 8 Q1", "9 5 8 Q0", "10 5 8 Q1", "10 5 8 Q1");
    ASSERT_UINT(2, seen.windows);
    seen.result = -ENOMEM; /* what the VMM does not do did not happen */
    ASSERT_OK(ask(b, "10 9 40 B0 Z7 Q0 Q2000 Q2000 Q0"));
    ASSERT_OK(ask(b, "9 9 40 B0 Z7 Q0 Q5000 Q1000 Q1 +4096"));
    seen.result = 0;
    ASSERT_OK(ask(b, "10 9 40 B0 Z7 Q0 Q2000 Q2000 Q0"));
    ASSERT_OK(ask(b, "9 9 40 B0 Z7 Q0 Q5000 Q1000 Q1 +4096"));
    TOLD(b, "10 5 8 Q1", "9 5 8 Q1", "10 5 8 Q0", "9 5 8 Q0");
    PASS();
}

TEST windows_go_with_a_reset(peer_bench *b)
{
    listen_for_all(b);
    ASSERT_OK(peer_stopped(b, 1));
    ASSERT_OK(ask(b, "9 9 40 B0 Z7 Q0 Q2000 Q2000 Q1 +4096"));
    ASSERT_OK(vhost_device_reset(&b->device));
    ASSERT_OK(ask(b, "9 9 40 B0 Z7 Q0 Q2000 Q2000 Q1 +4096"));
    TOLD(b, "9 5 8 Q0", "9 5 8 Q0");
    PASS();
}

TEST windows_have_a_limit(peer_bench *b)
{
    char text[80];
    listen_for_all(b);
    b->peer.shmem[0] = 0x1000000;
    ASSERT_OK(peer_stopped(b, 1));
    for (unsigned i = 0; i <= 1024; i++) {
        (void)snprintf(text, sizeof text, "9 1 40 B0 Z7 Q0 Q%x000 Q1000 Q1 +4096", i);
        ASSERT_OK(ask(b, text));
    }
    ASSERT_UINT(1024, seen.windows);
    PASS();
}

/* What was not negotiated, or is unknown, is refused, and no reason to give up. */
TEST requests_that_were_not_negotiated_are_refused(peer_bench *b)
{
    static const char *const texts[] = {"4 9 8 D0 D0", "3 9 24 Q1 Q1000 Q0 +4096",
                                        "6 9 16 Z16",  "9 9 40 Z40 +1",
                                        "11 9 0",      "12345 9 64 Z64"};
    static const unsigned ids[] = {4, 3, 6, 9, 11, 12345};
    ASSERT_OK(peer_running(b, 1));
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        char expected[32];
        (void)snprintf(expected, sizeof expected, "%u 5 8 Q1", ids[i]);
        ASSERT_OK(ask(b, texts[i]));
        TOLD(b, expected);
    }
    ASSERT_INT(VHOST_STATE_RUNNING, b->device.state);
    PASS();
}

/* ---- what poisons ---- */

TEST requests_that_are_malformed_cut_the_connection(peer_bench *b)
{
    static const char *const bad[] = {"2 1 8 Q0",
                                      "2 1 0 +1",
                                      "2 5 0",
                                      "2 2 0",
                                      "2 0 0",
                                      "2 11 0",
                                      "1 1 31 Z31",
                                      "1 1 33 Z33",
                                      "1 1 32 Z32 +1",
                                      "3 1 23 Z23 +1",
                                      "3 1 24 Z24 +1 +2",
                                      "4 1 9 Z9",
                                      "4 1 8 Z8 +1",
                                      "6 1 15 Z15",
                                      "8 1 16 Z16 +1",
                                      "9 1 39 Z39 +1",
                                      "9 1 40 Z40 +1 +2",
                                      "10 1 40 Z40 +1",
                                      "77 1 65 Z65",
                                      "77 1 0 +1",
                                      "2 1 4294967295",
                                      "1 1 4294967284",
                                      "3 1 2147483648",
                                      "0 1 65",
                                      "2 1 0 +1 +2 +3 +4 +5 +6 +7 +8 +9"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        ASSERT_OK(running_with_all(b, 1));
        int code = ask(b, bad[i]);
        if (code != -EPROTO) {
            fprintf(stderr, "not refused: %s\n", bad[i]);
        }
        ASSERT_INT(-EPROTO, code);
        ASSERT(b->user.last_error.why == VHOST_WHY_USER_REQUEST ||
               b->user.last_error.why == VHOST_WHY_USER_FDS);
        ASSERT_INT(VHOST_STATE_BROKEN, b->device.state);
        ASSERT_INT(-1, b->user.main.fd);
        ASSERT_INT(-1, b->user.channel.fd);
        ASSERT_UINT(0, seen.notifiers + seen.objects + seen.windows);
        CHECK_CALL(peer_renew(b));
    }
    PASS();
}

TEST the_end_of_the_channel_at_each_byte(peer_bench *b)
{
    for (size_t size = 0; size < 44; size++) {
        ASSERT_OK(running_with_all(b, 1));
        peer_bytes message = peer_parse("1 1 32 Z32");
        if (size > 0) {
            ASSERT_INT((int)size, (int)send(b->peer.channel, message.bytes, size, 0));
        }
        peer_leave(&b->peer);
        ASSERT_LOST(b, vhost_user_process(&b->user), -ECONNRESET, VHOST_WHY_USER_EOF);
        ASSERT_INT(VHOST_STATE_BROKEN, b->device.state);
        CHECK_CALL(peer_renew(b));
    }
    PASS();
}

TEST requests_that_come_byte_by_byte(peer_bench *b)
{
    ASSERT_OK(running_with_all(b, 2));
    b->peer.receive_most = 1;
    peer_ask(&b->peer, "3 9 24 Q1 Q1000 Q3000 +4096");
    for (int i = 0; i < 36; i++) {
        ASSERT_OK(vhost_user_process(&b->user));
    }
    ASSERT_UINT(1, seen.notifiers);
    ASSERT(seen.had_fd);
    TOLD(b, "3 5 8 Q0");
    PASS();
}

/* One that asks and does not read the answers is no peer. */
TEST a_back_end_that_does_not_read_answers_is_cut_off(peer_bench *b)
{
    ASSERT_OK(peer_running(b, 1));
    b->peer.lazy = true;
    int code = 0;
    for (int i = 0; i < 100000 && code == 0; i++) {
        peer_ask(&b->peer, "2 9 0");
        code = vhost_user_process(&b->user);
    }
    ASSERT_LOST(b, code, -EPIPE, VHOST_WHY_USER_SOCKET);
    ASSERT_INT(VHOST_STATE_BROKEN, b->device.state);
    PASS();
}

TEST one_process_serves_a_few_requests(peer_bench *b)
{
    ASSERT_OK(peer_running(b, 1));
    b->peer.floods = true;
    b->peer.flood = "2 1 0";
    ASSERT_OK(vhost_user_process(&b->user)); /* and returns */
    ASSERT_UINT(1, b->configs);
    ASSERT(b->peer.flooded < 200);
    PASS();
}

/* ---- in the middle of calls ---- */

TEST requests_are_served_while_every_call_waits(peer_bench *b)
{
    for (size_t i = 0; i < user_call_count; i++) {
        const user_call *call = &user_calls[i];
        if (strncmp(call->name, "open", 4) == 0) {
            continue;
        }
        ASSERT_OK(user_arrange(b, call));
        peer_add_rule(&b->peer, 0, 1, PEER_ASK, 2)->text = "2 9 0";
        int code = call->act(b);
        if (code < 0) {
            fprintf(stderr, "%s: %s\n", call->name, b->user.last_error.text);
        }
        ASSERT_OK(code);
        ASSERT_OK(vhost_user_process(&b->user)); /* what came with the last answer */
        TOLD(b, "2 5 8 Q0", "2 5 8 Q0", "2 5 8 Q0");
        CHECK_CALL(peer_renew(b));
    }
    PASS();
}

/* It asks on and on, and does not answer: that is no way to keep a call waiting. */
TEST a_flood_of_requests_does_not_stop_the_clock(peer_bench *b)
{
    ASSERT_OK(peer_running(b, 1));
    b->peer.floods = true;
    b->peer.flood = "2 1 0";
    b->peer.tick = 1;
    peer_add_rule(&b->peer, PEER_GET_VRING_BASE, 1, PEER_SILENT, 0);
    ASSERT_LOST(b, vhost_device_stop(&b->device), -ETIMEDOUT, VHOST_WHY_USER_TIMEOUT);
    ASSERT(b->peer.flooded < 5000);
    PASS();
}

static int take_none(const void *bytes, size_t size, void *user)
{
    (void)bytes;
    (void)size;
    (void)user;
    return 0;
}

static void begin_to_flood(peer *self, const peer_bytes *message)
{
    (void)message;
    self->floods = true;
}

TEST a_flood_of_requests_does_not_stop_the_clock_of_a_transfer(peer_bench *b)
{
    b->options.want = PEER_BIT(19);
    ASSERT_OK(peer_stopped(b, 1));
    b->peer.state_size = 100;
    b->peer.keeps_state = true;
    b->peer.flood = "2 1 0";
    b->peer.tick = 1;
    b->peer.hook = begin_to_flood;
    peer_add_rule(&b->peer, PEER_SET_DEVICE_STATE_FD, 1, PEER_HOOK, 0);
    ASSERT_LOST(b, vhost_user_save_state(&b->user, take_none, NULL, 1000), -ETIMEDOUT,
                VHOST_WHY_USER_TIMEOUT);
    ASSERT(b->peer.flooded < 5000);
    PASS();
}

/* ---- behind a vIOMMU ---- */

static const user_call *call_named(const char *name)
{
    for (size_t i = 0; i < user_call_count; i++) {
        if (strcmp(user_calls[i].name, name) == 0) {
            return &user_calls[i];
        }
    }
    return NULL;
}

static int running_behind_viommu(peer_bench *b)
{
    return user_arrange(b, call_named("unmapped"));
}

TEST a_start_behind_a_viommu_maps_its_rings_first(peer_bench *b)
{
    ASSERT_OK(user_arrange(b, call_named("start behind a vIOMMU")));
    ASSERT_OK(vhost_device_start(&b->device));
    HEARD(b, "2 9 8 Q340000000", "39 9 8 Qb", "40 1 0", "37 9 40 Q0 Q0 Q80000 Q0 Q0 +9000",
          "37 9 40 Q0 Q100000000 Q80000 Q100000000 Q80000 +9000",
          "22 9 32 Q0 Qffffffffffffffff Q0 B0 B3 Z6", "22 9 32 Q10008000 Q1000 Q8000 B3 B2 Z6",
          "22 9 32 Q10008000 Q1000 Q8000 B3 B2 Z6", "22 9 32 Q10008000 Q1000 Q8000 B3 B2 Z6",
          "13 9 8 Q0 +6000", "14 9 8 Q0 +20003", "8 9 8 D0 D10", "10 9 8 D0 D0",
          "9 9 40 D0 D0 Q10008000 Q10008200 Q10008100 Q10008200", "31 1 24 Z16 W1 W10 Z4",
          "18 9 8 D0 D1", "12 9 8 Q0 +5000", "39 9 8 Qf");
    PASS();
}

TEST what_is_unmapped_is_invalidated(peer_bench *b)
{
    ASSERT_OK(running_behind_viommu(b));
    ASSERT_OK(vhost_device_unmapped(&b->device, USER_IOVA + 0x5000, 0x2000));
    HEARD(b, "22 9 32 Q10005000 Q2000 Q0 B0 B3 Z6");
    PASS();
}

TEST a_miss_found_by_process_is_answered_once(peer_bench *b)
{
    ASSERT_OK(running_behind_viommu(b));
    ASSERT_OK(ask(b, "1 9 32 Q10003123 Q0 Q0 B1 B1 Z6"));
    HEARD(b, "22 9 32 Q10003000 Q1000 Q3000 B3 B2 Z6");
    ASSERT_OK(vhost_user_process(&b->user));
    TOLD(b, "1 5 8 Q0");
    ASSERT_INT(VHOST_STATE_RUNNING, b->device.state);
    ASSERT_OK(vhost_device_stop(&b->device));
    PASS();
}

TEST misses_follow_each_other(peer_bench *b)
{
    ASSERT_OK(running_behind_viommu(b));
    peer_ask(&b->peer, "1 1 32 Q10003123 Q0 Q0 B1 B1 Z6");
    peer_ask(&b->peer, "1 1 32 Q10004000 Q0 Q0 B2 B1 Z6");
    peer_ask(&b->peer, "1 1 32 Q10005fff Q0 Q0 B3 B1 Z6");
    ASSERT_OK(vhost_user_process(&b->user));
    ASSERT_OK(vhost_user_process(&b->user));
    HEARD(b, "22 9 32 Q10003000 Q1000 Q3000 B3 B2 Z6", "22 9 32 Q10004000 Q1000 Q4000 B3 B2 Z6",
          "22 9 32 Q10005000 Q1000 Q5000 B3 B2 Z6");
    ASSERT_OK(vhost_user_process(&b->user));
    ASSERT_OK(vhost_device_stop(&b->device));
    PASS();
}

/* What is answered makes room for what is not yet: a peer that asks for ever eats no memory. */
TEST misses_that_never_end_take_the_room_of_those_before(peer_bench *b)
{
    static const char miss[] = "1 1 32 Q10003123 Q0 Q0 B1 B1 Z6";
    ASSERT_OK(running_behind_viommu(b));
    peer_add_rule(&b->peer, PEER_SET_VRING_CALL, 1, PEER_ASK, 12)->text = miss;
    peer_add_rule(&b->peer, PEER_IOTLB_MSG, 0, PEER_ASK, 0)->text = miss;
    ASSERT_OK(vhost_queue_mask(&b->device, 0));
    b->peer.receive_most = 20; /* bytes: an answer at a time, and half a miss */
    b->peer.send_most = 30;    /* and not even a whole message out */
    b->peer.again_every = 2;
    for (int i = 0; i < 20; i++) {
        ASSERT_OK(vhost_user_process(&b->user));
        ASSERT(b->user.request_capacity <= 32);
    }
    ASSERT(peer_count(&b->peer, PEER_IOTLB_MSG) > 100);
    peer_obey(&b->peer);
    ASSERT_OK(vhost_device_stop(&b->device));
    PASS();
}

/* The call that it came in has returned: it is `process` that finds out. */
TEST an_answer_to_a_miss_that_never_comes_is_missed(peer_bench *b)
{
    ASSERT_OK(running_behind_viommu(b));
    peer_add_rule(&b->peer, PEER_SET_VRING_CALL, 1, PEER_ASK, 0)->text =
        "1 1 32 Q10003000 Q0 Q0 B1 B1 Z6";
    peer_add_rule(&b->peer, PEER_SET_VRING_CALL, 1, PEER_LATE, 0);
    peer_add_rule(&b->peer, PEER_IOTLB_MSG, 1, PEER_SILENT, 0);
    ASSERT_OK(vhost_queue_mask(&b->device, 0));
    ASSERT_OK(vhost_user_process(&b->user));
    b->peer.now += 1001;
    ASSERT_INT(-ETIMEDOUT, vhost_user_process(&b->user));
    ASSERT_INT(VHOST_STATE_BROKEN, b->device.state);
    PASS();
}

TEST a_miss_in_a_call_of_the_core_is_answered_there(peer_bench *b)
{
    ASSERT_OK(running_behind_viommu(b));
    peer_add_rule(&b->peer, PEER_SET_VRING_CALL, 1, PEER_ASK, 0)->text =
        "1 1 32 Q10003000 Q0 Q0 B1 B1 Z6";
    peer_add_rule(&b->peer, PEER_SET_VRING_CALL, 1, PEER_LATE, 0);
    ASSERT_OK(vhost_queue_mask(&b->device, 0));
    ASSERT_OK(vhost_user_process(&b->user));
    HEARD(b, "13 9 8 Q0 +20001", "22 9 32 Q10003000 Q1000 Q3000 B3 B2 Z6");
    ASSERT_OK(vhost_user_process(&b->user));
    ASSERT_OK(vhost_device_stop(&b->device));
    PASS();
}

TEST a_miss_in_a_service_is_answered_there(peer_bench *b)
{
    static const uint8_t mac[6] = {0};
    ASSERT_OK(running_behind_viommu(b));
    peer_add_rule(&b->peer, PEER_SEND_RARP, 1, PEER_ASK, 0)->text =
        "1 1 32 Q10003000 Q0 Q0 B1 B1 Z6";
    peer_add_rule(&b->peer, PEER_SEND_RARP, 1, PEER_LATE, 0);
    ASSERT_OK(vhost_user_send_rarp(&b->user, mac));
    ASSERT_OK(vhost_user_process(&b->user));
    HEARD(b, "19 9 8 Q0", "22 9 32 Q10003000 Q1000 Q3000 B3 B2 Z6");
    ASSERT_OK(vhost_user_process(&b->user));
    ASSERT_OK(vhost_device_stop(&b->device));
    PASS();
}

static void pass_time(peer_bench *b, uint64_t ms)
{
    b->peer.now += ms;
}

static void close_channel(peer *self, const peer_bytes *message)
{
    (void)message;
    close(self->channel);
    self->channel = -1;
}

TEST a_miss_hides_no_refusal(peer_bench *b)
{
    static const uint8_t mac[6] = {0};
    ASSERT_OK(running_behind_viommu(b));
    peer_add_rule(&b->peer, PEER_SEND_RARP, 1, PEER_ASK, 0)->text =
        "1 1 32 Q10003000 Q0 Q0 B1 B1 Z6";
    peer_add_rule(&b->peer, PEER_SEND_RARP, 1, PEER_REFUSE, 1);
    peer_add_rule(&b->peer, PEER_SEND_RARP, 1, PEER_LATE, 0);
    ASSERT_INT(-EIO, vhost_user_send_rarp(&b->user, mac));
    ASSERT_OK(vhost_user_process(&b->user));
    ASSERT_INT(VHOST_STATE_RUNNING, b->device.state);
    PASS();
}

/* The miss is read to its end in the same step as the last answer: nobody waits any more, and yet
   the back-end does. */
TEST an_answer_to_a_miss_does_not_wait_for_the_next_call(peer_bench *b)
{
    static const uint8_t bytes[512] = {0};
    ASSERT_OK(running_behind_viommu(b));
    b->peer.receive_most = 12;
    peer_add_rule(&b->peer, PEER_SET_CONFIG, 1, PEER_ASK, 0)->text =
        "1 1 32 Q10003000 Q0 Q0 B1 B1 Z6";
    ASSERT_OK(vhost_device_set_config(&b->device, 0, bytes, sizeof bytes));
    peer_turn(&b->peer);
    if (peer_count(&b->peer, PEER_IOTLB_MSG) == 0) {
        ASSERT_INT(0, vhost_user_timeout(&b->user));
    }
    b->peer.receive_most = 0;
    pass_time(b, 5000); /* it is not held to the deadline of the call */
    ASSERT_OK(vhost_user_process(&b->user));
    peer_turn(&b->peer);
    ASSERT_UINT(1, peer_count(&b->peer, PEER_IOTLB_MSG));
    ASSERT_OK(vhost_user_process(&b->user));
    ASSERT_OK(vhost_device_stop(&b->device));
    PASS();
}

/* Nothing is left to be polled that would tell. */
TEST a_channel_that_ends_in_a_call_is_not_forgotten(peer_bench *b)
{
    ASSERT_OK(peer_running(b, 1));
    b->peer.hook = close_channel;
    peer_add_rule(&b->peer, PEER_SET_VRING_CALL, 1, PEER_HOOK, 0);
    int code = vhost_queue_mask(&b->device, 0);
    if (code == 0) {
        ASSERT(b->user.channel.fd >= 0 || vhost_user_timeout(&b->user) == 0);
        code = vhost_user_process(&b->user);
    }
    ASSERT_LOST(b, code, -ECONNRESET, VHOST_WHY_USER_EOF);
    PASS();
}

/* A back-end may not start its rings before it has the pages it misses. */
TEST a_miss_in_a_start_is_answered_there(peer_bench *b)
{
    ASSERT_OK(user_arrange(b, call_named("start behind a vIOMMU")));
    peer_add_rule(&b->peer, PEER_SET_VRING_KICK, 1, PEER_ASK, 0)->text =
        "1 9 32 Q10003000 Q0 Q0 B1 B1 Z6";
    ASSERT_OK(vhost_device_start(&b->device));
    ASSERT_OK(vhost_user_process(&b->user));
    ASSERT_UINT(5, peer_count(&b->peer, PEER_IOTLB_MSG));
    ASSERT_OK(vhost_device_stop(&b->device));
    TOLD(b, "1 5 8 Q0");
    PASS();
}

TEST misses_without_an_answer_are_refused(peer_bench *b)
{
    ASSERT_OK(running_behind_viommu(b));
    ASSERT_OK(ask(b, "1 9 32 Q3000 Q0 Q0 B1 B1 Z6"));     /* mapped nowhere */
    ASSERT_OK(ask(b, "1 9 32 Q10003000 Q0 Q0 B1 B4 Z6")); /* an access that failed */
    ASSERT_OK(ask(b, "1 9 32 Q10003000 Q0 Q0 B1 B2 Z6")); /* that is ours to say */
    ASSERT_OK(ask(b, "1 9 32 Q10003000 Q0 Q0 B1 Bff Z6"));
    TOLD(b, "1 5 8 Q1", "1 5 8 Q1", "1 5 8 Q1", "1 5 8 Q1");
    HEARD_NOTHING(b);
    ASSERT_INT(VHOST_STATE_RUNNING, b->device.state);
    PASS();
}

TEST misses_of_a_device_without_a_viommu_are_refused(peer_bench *b)
{
    ASSERT_OK(peer_running(b, 1));
    ASSERT_OK(ask(b, "1 9 32 Q3000 Q0 Q0 B1 B1 Z6"));
    TOLD(b, "1 5 8 Q1");
    PASS();
}

/* U16: the channel is there before the device runs. */
TEST requests_before_the_first_start(peer_bench *b)
{
    listen_for_all(b);
    ASSERT_OK(peer_stopped(b, 1));
    ASSERT_OK(ask(b, "1 9 32 Q10003000 Q0 Q0 B1 B1 Z6"));
    ASSERT_OK(ask(b, "4 9 8 D0 D0"));
    ASSERT_OK(ask(b, "9 9 40 B0 Z7 Q0 Q2000 Q2000 Q1 +4096"));
    TOLD(b, "1 5 8 Q1", "4 5 8 Q1", "9 5 8 Q0");
    PASS();
}

SUITE(user_channel_suite)
{
    RUN_USER(a_config_change_is_told);
    RUN_USER(a_config_change_before_start_is_nothing);
    RUN_USER(without_acks_no_request_is_answered);
    RUN_USER(calls_and_errors_in_band);
    RUN_USER(a_call_in_band_goes_to_the_mask);
    RUN_USER(host_notifiers_come_and_go);
    RUN_USER(host_notifiers_that_make_no_sense_are_refused);
    RUN_USER(objects_come_and_go);
    RUN_USER(objects_are_looked_up);
    RUN_USER(windows_come_and_go);
    RUN_USER(windows_lie_in_their_region_and_nowhere_else);
    RUN_USER(windows_do_not_overlap_and_go_as_a_whole);
    RUN_USER(windows_go_with_a_reset);
    RUN_USER(windows_have_a_limit);
    RUN_USER(requests_that_were_not_negotiated_are_refused);
    RUN_USER_NATIVE(requests_that_are_malformed_cut_the_connection);
    RUN_USER(the_end_of_the_channel_at_each_byte);
    RUN_USER(requests_that_come_byte_by_byte);
    RUN_USER(a_back_end_that_does_not_read_answers_is_cut_off);
    RUN_USER(one_process_serves_a_few_requests);
    RUN_USER(requests_are_served_while_every_call_waits);
    RUN_USER(a_flood_of_requests_does_not_stop_the_clock);
    RUN_USER(a_flood_of_requests_does_not_stop_the_clock_of_a_transfer);
    RUN_USER(a_start_behind_a_viommu_maps_its_rings_first);
    RUN_USER(what_is_unmapped_is_invalidated);
    RUN_USER(a_miss_found_by_process_is_answered_once);
    RUN_USER(misses_follow_each_other);
    RUN_USER(misses_that_never_end_take_the_room_of_those_before);
    RUN_USER(an_answer_to_a_miss_that_never_comes_is_missed);
    RUN_USER(a_miss_in_a_call_of_the_core_is_answered_there);
    RUN_USER(a_miss_in_a_service_is_answered_there);
    RUN_USER(a_miss_hides_no_refusal);
    RUN_USER(an_answer_to_a_miss_does_not_wait_for_the_next_call);
    RUN_USER(a_channel_that_ends_in_a_call_is_not_forgotten);
    RUN_USER(a_miss_in_a_start_is_answered_there);
    RUN_USER(misses_without_an_answer_are_refused);
    RUN_USER(misses_of_a_device_without_a_viommu_are_refused);
    RUN_USER(requests_before_the_first_start);
}
