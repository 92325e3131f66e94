/* vhost_user.h: connecting, and what is negotiated. */
#define _POSIX_C_SOURCE 200809L

#include "user_calls.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define BIT PEER_BIT

static int no_notifier(vhost_user *self, uint32_t queue, int fd, uint64_t offset, uint64_t size,
                       void *user)
{
    (void)self;
    (void)queue;
    (void)fd;
    (void)offset;
    (void)size;
    (void)user;
    return 0;
}

static int no_object(vhost_user *self, vhost_user_object what,
                     const uint8_t uuid[VHOST_USER_UUID_SIZE], int *fd, void *user)
{
    (void)self;
    (void)what;
    (void)uuid;
    (void)fd;
    (void)user;
    return 0;
}

static int no_window(vhost_user *self, const vhost_user_window *window, int fd, void *user)
{
    (void)self;
    (void)window;
    (void)fd;
    (void)user;
    return 0;
}

/* What is in use when the peer has `offered`; UINT64_MAX: it did not open. */
static uint64_t negotiate(peer_bench *b, uint64_t offered)
{
    b->peer.protocol = offered;
    if (peer_stopped(b, 1) < 0) {
        return UINT64_MAX;
    }
    uint64_t sent = peer_number(peer_find(&b->peer, PEER_SET_PROTOCOL_FEATURES, 0), 0, 8);
    return sent == b->user.protocol ? sent : UINT64_MAX;
}

TEST each_protocol_feature_by_itself(peer_bench *b)
{
    static const uint64_t usual = UINT64_C(0x1b27f);
    for (int bit = 0; bit < 64; bit++) {
        ASSERT_U64(usual & BIT(bit), negotiate(b, BIT(bit)));
        ASSERT_U64(BIT(bit), b->user.protocol_offered);
        CHECK_CALL(peer_renew(b));
    }
    PASS();
}

/* By default, with everything wished for, with every callback; always of what both can. */
TEST what_is_asked_for(peer_bench *b)
{
    static const struct {
        uint64_t offered, want, avoid, expected;
        bool callbacks;
    } table[] = {
        {UINT64_MAX, 0, 0, 0x1b27f, false},
        {UINT64_MAX, 0, 0, 0x45be7f, true},            /* and 10, 11, 18, 22 */
        {UINT64_MAX, UINT64_MAX, 0, 0xbbf7ff, false},  /* all, but what needs a callback */
        {UINT64_MAX, UINT64_MAX, 0, 0xffffff, true},   /* all that there are */
        {UINT64_MAX, UINT64_MAX, UINT64_MAX, 0, true}, /* none */
        {UINT64_MAX, 0, 0x8, 0x1b277, false},
        {0xffffff & ~UINT64_C(0x20), UINT64_MAX, 0, 0xbbb3df, true},   /* without a channel */
        {0xffffff & ~UINT64_C(0x8), UINT64_MAX, 0, 0xffbff7, true},    /* INBAND needs REPLY_ACK */
        {0xffffff & ~UINT64_C(0x400), UINT64_MAX, 0, 0xbff3ff, true},  /* fds on the channel */
        {0xffffff & ~UINT64_C(0x1000), UINT64_MAX, 0, 0x6fefff, true}, /* INFLIGHT */
        {0xffffff, 0, 0x20, 0x1b25f, true},
        {0, UINT64_MAX, 0, 0, true},
    };
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++) {
        b->options.want = table[i].want;
        b->options.avoid = table[i].avoid;
        if (table[i].callbacks) {
            b->options.on_host_notifier = no_notifier;
            b->options.on_object = no_object;
            b->options.on_window = no_window;
        }
        ASSERT_U64(table[i].expected, negotiate(b, table[i].offered));
        CHECK_CALL(peer_renew(b));
    }
    PASS();
}

TEST everything_together_takes_three_waits(peer_bench *b)
{
    b->options.want = UINT64_MAX;
    b->options.on_host_notifier = no_notifier;
    b->options.on_object = no_object;
    b->options.on_window = no_window;
    ASSERT_OK(peer_stopped(b, 1));
    HEARD(b, "3 1 0", "1 1 0", "15 1 0", "16 1 8 Qffffff", "17 1 0", "36 1 0", "44 1 0",
          "21 9 0 +0");
    ASSERT_UINT(3, b->peer.waits);
    PASS();
}

TEST without_any_protocol_feature_there_is_still_a_barrier(peer_bench *b)
{
    ASSERT_U64(0, negotiate(b, 0));
    HEARD(b, "3 1 0", "1 1 0", "15 1 0", "16 1 8 Q0", "1 1 0");
    ASSERT_U64(0, vhost_device_offer(&b->device, fixture_features(UINT64_MAX, UINT64_MAX)).word[0] &
                      BIT(30));
    PASS();
}

/* U3: an old back-end has eight regions, and works. */
TEST without_bit_30_there_are_eight_regions(peer_bench *b)
{
    b->peer.features &= ~BIT(30);
    ASSERT_OK(peer_stopped(b, 1));
    HEARD(b, "3 1 0", "1 1 0");
    ASSERT_UINT(8, b->device.facts.max_regions);
    ASSERT_INT(VHOST_PROFILE_BY_FD, b->device.facts.profile);
    ASSERT_INT(VHOST_DIRTY_NONE, b->device.facts.log_kind);
    ASSERT_OK(vhost_device_start(&b->device));
    ASSERT_OK(vhost_device_stop(&b->device));
    PASS();
}

TEST slots_as_many_as_it_says(peer_bench *b)
{
    static const uint64_t slots[] = {1, 2, 509, 512, 513, 600, UINT64_C(1) << 32, UINT64_MAX};
    static const uint32_t used[] = {1, 2, 509, 512, 512, 512, 512, 512};
    for (size_t i = 0; i < sizeof slots / sizeof slots[0]; i++) {
        b->peer.slots = slots[i];
        ASSERT_INT(i == 0 ? -ENOSPC : 0, peer_stopped(b, 1)); /* the map has two sections */
        if (i > 0) {
            ASSERT_UINT(used[i], b->device.facts.max_regions);
            ASSERT_INT(VHOST_PROFILE_SLOTS, b->device.facts.profile);
        }
        CHECK_CALL(peer_renew(b));
    }
    PASS();
}

TEST no_slots_at_all_make_no_sense(peer_bench *b)
{
    b->peer.slots = 0;
    ASSERT_LOST(b, peer_stopped(b, 1), -EPROTO, VHOST_WHY_USER_VALUE);
    ASSERT_INT(VHOST_STATE_CLOSED, b->device.state);
    ASSERT_INT(-1, b->user.main.fd);
    PASS();
}

TEST queues_as_many_as_it_says(peer_bench *b)
{
    static const struct {
        uint64_t number;
        bool pairs;
        uint32_t most;
    } table[] = {{0, false, 256},
                 {1, false, 1},
                 {1, true, 2},
                 {255, false, 255},
                 {128, true, 256},
                 {200, true, 256},
                 {256, false, 256},
                 {257, false, 256},
                 {UINT64_C(1) << 32, false, 256},
                 {UINT64_C(1) << 63, true, 256},
                 {UINT64_MAX, true, 256}};
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++) {
        b->peer.queue_number = table[i].number;
        b->options.counts_pairs = table[i].pairs;
        ASSERT_OK(peer_stopped(b, 1));
        ASSERT_UINT(table[i].most, b->device.facts.max_queues);
        ASSERT_U64(table[i].number, b->user.queue_number);
        CHECK_CALL(peer_renew(b));
    }
    b->peer.queue_number = 3;
    ASSERT_INT(-EINVAL, peer_stopped(b, 4));
    ASSERT_INT(VHOST_WHY_TOO_MANY_QUEUES, b->device.last_error.why);
    ASSERT_INT(-1, b->user.main.fd);
    PASS();
}

TEST features_are_offered_as_they_are(peer_bench *b)
{
    b->peer.features = UINT64_C(0x123456789abcdef0) | BIT(30) | BIT(33) | BIT(26);
    b->accepted = fixture_features(0, 0);
    ASSERT_OK(peer_stopped(b, 1));
    vhost_features offer = vhost_device_offer(&b->device, fixture_features(UINT64_MAX, UINT64_MAX));
    ASSERT_U64(b->peer.features & ~BIT(30) & ~BIT(26), offer.word[0]);
    ASSERT_U64(0, offer.word[1]);
    PASS();
}

/* Nobody could ask for an address. */
TEST access_platform_needs_acks_and_a_channel(peer_bench *b)
{
    static const uint64_t lost[] = {0, 0x8, 0x20};
    for (int i = 0; i < 3; i++) {
        b->peer.protocol &= ~lost[i];
        ASSERT_OK(peer_stopped(b, 1));
        vhost_features all = fixture_features(UINT64_MAX, UINT64_MAX);
        ASSERT_INT(lost[i] == 0, (vhost_device_offer(&b->device, all).word[0] & BIT(33)) != 0);
        CHECK_CALL(peer_renew(b));
    }
    PASS();
}

TEST without_log_shmfd_a_device_does_not_log(peer_bench *b)
{
    vhost_why why;
    b->peer.protocol &= ~BIT(1);
    ASSERT_OK(peer_stopped(b, 1));
    ASSERT_PTR(&b->device, vhost_log_blocker(&b->f->vm, NULL, &why));
    ASSERT_INT(VHOST_WHY_LOG_UNSUPPORTED, why);
    PASS();
}

/* ---- sockets ---- */

TEST a_path_is_connected_to_at_init(peer_bench *b)
{
    ASSERT_OK(vhost_user_connect(&b->user, "/somewhere", &b->options));
    ASSERT_UINT(0, b->peer.connections);
    ASSERT_OK(peer_attach(b, 1));
    ASSERT_UINT(1, b->peer.connections);
    ASSERT_OK(vhost_device_start(&b->device));
    PASS();
}

TEST nobody_to_connect_to(peer_bench *b)
{
    b->peer.refusals = 1;
    ASSERT_OK(vhost_user_connect(&b->user, "/somewhere", &b->options));
    ASSERT_LOST(b, peer_attach(b, 1), -ECONNREFUSED, VHOST_WHY_USER_CONNECT);
    ASSERT_INT(VHOST_STATE_CLOSED, b->device.state);
    ASSERT_OK(peer_attach(b, 1)); /* it may be tried again */
    PASS();
}

TEST a_back_end_that_is_awaited(peer_bench *b)
{
    int fds[4];
    ASSERT_OK(vhost_user_listen(&b->user, "/somewhere", &b->options));
    ASSERT_UINT(1, vhost_user_poll_fds(&b->user, fds, 4));
    b->peer.knocks = true;
    ASSERT_OK(peer_attach(b, 1));
    ASSERT_OK(vhost_device_start(&b->device));
    PASS();
}

TEST nobody_is_awaited_for_ever(peer_bench *b)
{
    ASSERT_OK(vhost_user_listen(&b->user, "/somewhere", &b->options));
    uint64_t before = b->peer.now;
    ASSERT(peer_attach(b, 1) < 0);
    ASSERT_INT(VHOST_WHY_USER_CONNECT, b->user.last_error.why);
    ASSERT_U64(before + 1000, b->peer.now);
    PASS();
}

TEST a_socket_is_used_once(peer_bench *b)
{
    ASSERT_OK(peer_stopped(b, 1));
    vhost_device_cleanup(&b->device);
    ASSERT_LOST(b, peer_attach(b, 1), -ENOTCONN, VHOST_WHY_USER_CONNECT);
    ASSERT_OK(vhost_user_reopen(&b->user, peer_connect(&b->peer)));
    ASSERT_OK(peer_attach(b, 1));
    PASS();
}

/* It would be waited for without any deadline. */
TEST a_socket_that_stays_blocking_is_refused(peer_bench *b)
{
    int fd = peer_connect(&b->peer);
    fault_arm(&b->f->fault, FAULT_EVER_AFTER, 1, 1);
    ASSERT(vhost_user_open(&b->user, fd, &b->options) < 0);
    ASSERT(vhost_user_reopen(&b->user, fd) < 0);
    fault_disarm(&b->f->fault);
    ASSERT_OK(vhost_user_reopen(&b->user, fd)); /* it was left to its owner */
    ASSERT_OK(peer_attach(b, 1));
    PASS();
}

TEST paths_that_are_too_long(peer_bench *b)
{
    char path[120];
    memset(path, 'a', sizeof path);
    path[108] = '\0';
    ASSERT_INT(-EINVAL, vhost_user_connect(&b->user, path, &b->options));
    ASSERT_INT(-EINVAL, vhost_user_listen(&b->user, path, &b->options));
    ASSERT_INT(VHOST_WHY_ARGUMENT, b->user.last_error.why);
    vhost_user_close(&b->user);
    path[107] = '\0';
    ASSERT_OK(vhost_user_connect(&b->user, path, &b->options));
    PASS();
}

TEST a_connection_that_stalls_while_it_negotiates(peer_bench *b)
{
    static const uint32_t ids[] = {PEER_GET_FEATURES, PEER_GET_PROTOCOL_FEATURES,
                                   PEER_GET_MAX_MEM_SLOTS};
    for (int i = 0; i < 3; i++) {
        uint64_t before = b->peer.now;
        peer_add_rule(&b->peer, ids[i], 1, PEER_STOP, 0);
        ASSERT_LOST(b, peer_stopped(b, 1), -ETIMEDOUT, VHOST_WHY_USER_TIMEOUT);
        ASSERT_U64(before + 1000, b->peer.now);
        ASSERT_INT(VHOST_STATE_CLOSED, b->device.state);
        CHECK_CALL(peer_renew(b));
    }
    PASS();
}

/* U7: neither end of the channel stays, whatever fails. */
TEST a_channel_that_is_refused_leaks_nothing(peer_bench *b)
{
    int fds = fixture_open_fds();
    peer_add_rule(&b->peer, PEER_SET_BACKEND_REQ_FD, 1, PEER_REFUSE, 1);
    ASSERT_LOST(b, peer_stopped(b, 1), -EIO, VHOST_WHY_USER_REFUSED);
    peer_leave(&b->peer);
    ASSERT_INT(fds, fixture_open_fds());
    PASS();
}

/* U1: 0 is an fd like any other. */
TEST fd_zero_is_an_fd(peer_bench *b)
{
    int saved = dup(0), fd = peer_file(4321);
    ASSERT_INT(0, dup2(fd, 0));
    close(fd);
    ASSERT_OK(peer_stopped(b, 1));
    b->queue[0].call_fd = 0;
    b->queue[0].kick_fd = 0;
    b->f->ram.fd = 0;
    int result = vhost_device_start(&b->device);
    uint64_t call = peer_find(&b->peer, PEER_SET_VRING_CALL, 0)->fds[0];
    uint64_t kick = peer_find(&b->peer, PEER_SET_VRING_KICK, 0)->fds[0];
    uint64_t ram = peer_find(&b->peer, PEER_ADD_MEM_REG, 0)->fds[0];
    uint64_t bits = peer_number(peer_find(&b->peer, PEER_SET_VRING_KICK, 0), 0, 8);
    (void)dup2(saved, 0);
    close(saved);
    ASSERT_OK(result);
    ASSERT_U64(4321, call);
    ASSERT(kick == 4321 || kick == 4329); /* or signalled once already */
    ASSERT_U64(4321, ram);
    ASSERT_U64(0, bits);
    PASS();
}

/* ---- the system's own calls ---- */

/* The system's, but for the wait: the peer is in this thread. */
static const vhost_user_calls *use_real(peer_bench *b)
{
    static vhost_user_calls calls;
    calls = b->peer.base_calls;
    calls.wait = peer_calls.wait;
    calls.now = peer_calls.now;
    calls.write = peer_calls.write;
    calls.send = peer_calls.send;
    b->options.calls = &calls;
    return &calls;
}

static char *make_path(char *path, size_t size)
{
    const char *folder = getenv("TMPDIR");
    (void)snprintf(path, size, "%s/vhost-user-test-%ld", folder ? folder : "/tmp", (long)getpid());
    return path;
}

TEST a_real_socket_is_listened_on_and_given_up(peer_bench *b)
{
    const vhost_user_calls *calls = use_real(b);
    vhost_user other;
    char path[100];
    make_path(path, sizeof path);
    ASSERT_OK(vhost_user_listen(&b->user, path, &b->options));
    ASSERT_OK(access(path, F_OK));
    b->peer.fd = calls->connect(path, NULL);
    ASSERT(b->peer.fd >= 0);
    ASSERT_OK(peer_attach(b, 1));
    ASSERT_OK(vhost_device_start(&b->device));
    ASSERT_INT(-EADDRINUSE, vhost_user_listen(&other, path, &b->options)); /* somebody listens */
    vhost_user_close(&other);
    ASSERT_OK(access(path, F_OK));
    vhost_device_cleanup(&b->device);
    vhost_user_close(&b->user);
    ASSERT_INT(-1, access(path, F_OK));
    PASS();
}

TEST a_dead_socket_is_taken_over_and_a_file_is_not(peer_bench *b)
{
    const vhost_user_calls *calls = use_real(b);
    char path[100];
    make_path(path, sizeof path);
    int dead = calls->listen(path, NULL);
    ASSERT(dead >= 0);
    close(dead);
    ASSERT_OK(access(path, F_OK));
    ASSERT_OK(vhost_user_listen(&b->user, path, &b->options));
    vhost_user_close(&b->user);
    FILE *file = fopen(path, "w");
    ASSERT(file != NULL);
    fclose(file);
    int result = vhost_user_listen(&b->user, path, &b->options);
    int there = access(path, F_OK);
    remove(path);
    ASSERT_INT(-EADDRINUSE, result);
    ASSERT_INT(0, there);
    PASS();
}

TEST a_real_socket_is_connected_to(peer_bench *b)
{
    const vhost_user_calls *calls = use_real(b);
    char path[100];
    make_path(path, sizeof path);
    ASSERT_OK(vhost_user_connect(&b->user, path, &b->options));
    ASSERT_LOST(b, peer_attach(b, 1), -ENOENT, VHOST_WHY_USER_CONNECT);
    int listener = calls->listen(path, NULL), fd = calls->connect(path, NULL);
    b->peer.fd = calls->accept(listener, NULL);
    int nobody = calls->accept(listener, NULL);
    close(listener);
    remove(path);
    ASSERT_INT(-EAGAIN, nobody);
    vhost_user_reopen(&b->user, fd);
    ASSERT_OK(peer_attach(b, 1));
    ASSERT_OK(vhost_device_start(&b->device));
    PASS();
}

TEST the_systems_calls_do_what_they_say(peer_bench *b)
{
    const vhost_user_calls *c = &b->peer.base_calls;
    vhost_user_poll polled[1] = {{0, false, false}};
    int ends[2], fd = c->memory(5000, NULL);
    char byte = 0;
    ASSERT(fd >= 0);
    ASSERT_U64(5000, c->size_of(fd, NULL));
    ASSERT_OK(c->seek(fd, 4999, NULL));
    ASSERT_INT(1, (int)c->write(fd, "x", 1, NULL));
    ASSERT(c->write(fd, "x", 1, NULL) < 0); /* sealed: it does not grow */
    ASSERT_INT(-1, ftruncate(fd, 10));      /* nor shrink */
    ASSERT_OK(c->seek(fd, 4999, NULL));
    ASSERT_INT(1, (int)c->read(fd, &byte, 1, NULL));
    ASSERT_INT('x', byte);
    ASSERT_OK(c->close(fd, NULL));
    ASSERT_INT(-EBADF, c->close(fd, NULL));
    ASSERT_INT(-EBADF, c->unblock(fd, NULL));
    ASSERT_OK(c->socket_pair(ends, NULL));
    polled[0].fd = ends[0];
    ASSERT_INT(0, c->wait(polled, 1, 0, NULL));
    ASSERT_FALSE(polled[0].ready);
    ASSERT_INT(-EAGAIN, (int)c->read(ends[0], &byte, 1, NULL));
    ASSERT_INT(1, (int)c->write(ends[1], "y", 1, NULL));
    ASSERT_INT(1, c->wait(polled, 1, -1, NULL));
    ASSERT(polled[0].ready);
    polled[0].output = true;
    ASSERT_INT(1, c->wait(polled, 1, -1, NULL));
    ASSERT_OK(c->close(ends[0], NULL));
    ASSERT_INT(-EPIPE, (int)c->send(ends[1], "z", 1, NULL, 0, NULL)); /* and no signal */
    ASSERT_OK(c->close(ends[1], NULL));
    ASSERT(c->now(NULL) <= c->now(NULL));
    PASS();
}

/* Class 2: those for which there is no room are closed. */
TEST fds_without_room_are_closed(peer_bench *b)
{
    const vhost_user_calls *c = &b->peer.base_calls;
    int before = fixture_open_fds(), fds[8], ends[2];
    uint32_t count = 2;
    char byte;
    ASSERT_OK(c->socket_pair(ends, NULL));
    for (int i = 0; i < 8; i++) {
        fds[i] = ends[0];
    }
    ASSERT_INT(1, (int)c->send(ends[0], "x", 1, fds, 8, NULL));
    ASSERT_INT(-EMSGSIZE, (int)c->receive(ends[1], &byte, 1, fds, &count, NULL));
    ASSERT_UINT(2, count);
    close(fds[0]);
    close(fds[1]);
    close(ends[0]);
    close(ends[1]);
    ASSERT_INT(before, fixture_open_fds());
    PASS();
}

TEST close_may_be_repeated(peer_bench *b)
{
    static vhost_user zeroed;
    vhost_user_close(&zeroed);
    ASSERT_OK(peer_open(b));
    vhost_user_close(&b->user);
    vhost_user_close(&b->user);
    ASSERT_INT(-EBUSY, peer_attach(b, 1));
    PASS();
}

/* Without options.allocate, memory is libc's. */
TEST memory_is_that_of_libc_unless_told(peer_bench *b)
{
    b->options.allocate = NULL;
    ASSERT_OK(peer_stopped(b, 2));
    ASSERT_OK(vhost_device_start(&b->device));
    ASSERT_OK(vhost_device_stop(&b->device));
    PASS();
}

/* All that a closed object is asked for is refused, and fd 0 is not taken for its own. */
TEST a_closed_object_refuses_everything(peer_bench *b)
{
    uint8_t record[64];
    int fd;
    ASSERT_OK(peer_open(b));
    ASSERT_OK(peer_attach(b, 1));
    vhost_device_cleanup(&b->device);
    vhost_user_close(&b->user);
    for (size_t i = 2; i < user_call_count; i++) { /* the first two open it */
        ASSERT(user_calls[i].act(b) < 0 || !user_calls[i].serves);
    }
    ASSERT_LOST(b, vhost_user_reopen(&b->user, 0), -EBUSY, VHOST_WHY_STATE);
    ASSERT_OK(vhost_user_process(&b->user));
    ASSERT_INT(-1, vhost_user_timeout(&b->user));
    ASSERT_UINT(0, vhost_user_poll_fds(&b->user, &fd, 1));
    ASSERT_UINT(0, vhost_user_inflight_size(&b->user));
    ASSERT_INT(-ENOENT, vhost_user_save_inflight(&b->user, record, sizeof record));
    ASSERT_INT(-EBUSY, vhost_user_load_inflight(&b->user, record, sizeof record));
    ASSERT_UINT(0, vhost_user_shmem_size(&b->user, 0));
    PASS();
}

SUITE(user_open_suite)
{
    RUN_USER(each_protocol_feature_by_itself);
    RUN_USER(what_is_asked_for);
    RUN_USER(everything_together_takes_three_waits);
    RUN_USER(without_any_protocol_feature_there_is_still_a_barrier);
    RUN_USER(without_bit_30_there_are_eight_regions);
    RUN_USER(slots_as_many_as_it_says);
    RUN_USER(no_slots_at_all_make_no_sense);
    RUN_USER(queues_as_many_as_it_says);
    RUN_USER(features_are_offered_as_they_are);
    RUN_USER(access_platform_needs_acks_and_a_channel);
    RUN_USER(without_log_shmfd_a_device_does_not_log);
    RUN_USER(a_path_is_connected_to_at_init);
    RUN_USER(nobody_to_connect_to);
    RUN_USER(a_back_end_that_is_awaited);
    RUN_USER(nobody_is_awaited_for_ever);
    RUN_USER(a_socket_is_used_once);
    RUN_USER(a_socket_that_stays_blocking_is_refused);
    RUN_USER(paths_that_are_too_long);
    RUN_USER(a_connection_that_stalls_while_it_negotiates);
    RUN_USER(a_channel_that_is_refused_leaks_nothing);
    RUN_USER(fd_zero_is_an_fd);
    RUN_USER(a_real_socket_is_listened_on_and_given_up);
    RUN_USER(a_dead_socket_is_taken_over_and_a_file_is_not);
    RUN_USER(a_real_socket_is_connected_to);
    RUN_USER(the_systems_calls_do_what_they_say);
    RUN_USER(fds_without_room_are_closed);
    RUN_USER(close_may_be_repeated);
    RUN_USER(a_closed_object_refuses_everything);
    RUN_USER(memory_is_that_of_libc_unless_told);
}
