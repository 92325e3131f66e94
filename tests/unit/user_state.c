/* vhost_user.h: the back-end's own state, saved and loaded. */
#define _POSIX_C_SOURCE 200809L

#include "user_calls.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static struct {
    uint8_t bytes[PEER_STATE];
    size_t size;    /* taken; or to be given */
    size_t given;   /* so far, */
    size_t piece;   /* at most so much in one call */
    size_t fail_at; /* bytes after which it fails; 0: never */
    int code;       /* with this */
} moved;

static int take(const void *bytes, size_t size, void *user)
{
    (void)user;
    if (moved.fail_at && moved.size + size > moved.fail_at) {
        return moved.code;
    }
    memcpy(moved.bytes + moved.size, bytes, size);
    moved.size += size;
    return 0;
}

static ptrdiff_t give(void *bytes, size_t size, void *user)
{
    size_t left = moved.size - moved.given;
    (void)user;
    if (moved.fail_at && moved.given >= moved.fail_at) {
        return moved.code;
    }
    size = left < size ? left : size;
    size = moved.piece && moved.piece < size ? moved.piece : size;
    memcpy(bytes, moved.bytes + moved.given, size);
    moved.given += size;
    return (ptrdiff_t)size;
}

static void fill_bytes(uint8_t *bytes, size_t size)
{
    for (size_t i = 0; i < size; i++) {
        bytes[i] = (uint8_t)(i * 7 + i / 256);
    }
}

static int stopped_with_state(peer_bench *b, size_t size)
{
    memset(&moved, 0, sizeof moved);
    b->options.want = PEER_BIT(19);
    b->peer.state_size = size;
    fill_bytes(b->peer.state, size);
    int result = peer_stopped(b, 1);
    peer_forget(&b->peer);
    return result;
}

TEST states_of_all_sizes_are_saved(peer_bench *b)
{
    static const size_t sizes[] = {0, 1, 4095, 4096, 4097, 20000};
    static const size_t pieces[] = {0, 1, 1000};
    for (int i = 0; i < 18; i++) {
        size_t size = sizes[i / 3], piece = pieces[i % 3];
        b->peer.own_state_fd = i % 2;
        ASSERT_OK(stopped_with_state(b, size));
        b->peer.state_piece = piece;
        if (piece == 1 && size > 5000) {
            b->peer.state_piece = 100;
        }
        ASSERT_OK(vhost_user_save_state(&b->user, take, NULL, PEER_STATE));
        ASSERT_UINT(size, moved.size);
        ASSERT_MEM_EQ(b->peer.state, moved.bytes, size);
        HEARD(b, "42 1 8 D0 D0 +0", "43 1 0");
        CHECK_CALL(peer_renew(b));
    }
    PASS();
}

TEST a_state_has_the_limit_of_its_caller(peer_bench *b)
{
    ASSERT_OK(stopped_with_state(b, 5000));
    ASSERT_LOST(b, vhost_user_save_state(&b->user, take, NULL, 4999), -EFBIG, VHOST_WHY_ARGUMENT);
    ASSERT(moved.size <= 4999);
    ASSERT_OK(vhost_user_process(&b->user));
    ASSERT_OK(vhost_device_start(&b->device)); /* no harm done */
    ASSERT_OK(vhost_device_stop(&b->device));
    memset(&moved, 0, sizeof moved);
    ASSERT_OK(vhost_user_save_state(&b->user, take, NULL, 5000));
    ASSERT_UINT(5000, moved.size);
    PASS();
}

TEST who_does_not_take_it_ends_the_save(peer_bench *b)
{
    ASSERT_OK(stopped_with_state(b, 9000));
    moved.fail_at = 5000;
    moved.code = -ENOSPC;
    ASSERT_INT(-ENOSPC, vhost_user_save_state(&b->user, take, NULL, PEER_STATE));
    ASSERT_OK(vhost_user_process(&b->user));
    ASSERT_INT(VHOST_STATE_STOPPED, b->device.state);
    PASS();
}

TEST a_transfer_that_does_not_move_is_cut_off(peer_bench *b)
{
    ASSERT_OK(stopped_with_state(b, 100));
    b->peer.keeps_state = true;
    uint64_t before = b->peer.now;
    ASSERT_LOST(b, vhost_user_save_state(&b->user, take, NULL, 1000), -ETIMEDOUT,
                VHOST_WHY_USER_TIMEOUT);
    ASSERT_U64(before + 1000, b->peer.now);
    ASSERT(vhost_user_process(&b->user) < 0);
    ASSERT_INT(VHOST_STATE_BROKEN, b->device.state);
    PASS();
}

static void stop_in_the_middle(peer *self, const peer_bytes *message)
{
    (void)message;
    self->state_piece = 1000;
}

TEST a_back_end_that_dies_in_a_transfer(peer_bench *b)
{
    ASSERT_OK(stopped_with_state(b, 5000));
    b->peer.hook = stop_in_the_middle;
    peer_add_rule(&b->peer, PEER_SET_DEVICE_STATE_FD, 1, PEER_HOOK, 0);
    peer_add_rule(&b->peer, PEER_CHECK_DEVICE_STATE, 1, PEER_CLOSE, 0);
    ASSERT_LOST(b, vhost_user_save_state(&b->user, take, NULL, PEER_STATE), -ECONNRESET,
                VHOST_WHY_USER_EOF);
    PASS();
}

/* ---- loading ---- */

TEST states_of_all_sizes_are_loaded_before_anything_runs(peer_bench *b)
{
    static const size_t sizes[] = {0, 1, 4096, 19999};
    for (int i = 0; i < 8; i++) {
        size_t size = sizes[i / 2];
        b->peer.own_state_fd = i % 2;
        ASSERT_OK(stopped_with_state(b, 0));
        fill_bytes(moved.bytes, size);
        moved.size = size;
        moved.piece = 700;
        memset(b->peer.state, 0, sizeof b->peer.state);
        ASSERT_OK(vhost_user_load_state(&b->user, give, NULL));
        HEARD_NOTHING(b);
        ASSERT_OK(vhost_device_start(&b->device));
        ASSERT_UINT(size, b->peer.state_got);
        ASSERT_MEM_EQ(moved.bytes, b->peer.state, size);
        const peer_bytes *load = peer_find(&b->peer, PEER_SET_DEVICE_STATE_FD, 0);
        const peer_bytes *check = peer_find(&b->peer, PEER_CHECK_DEVICE_STATE, 0);
        ASSERT_U64(1, peer_number(load, 0, 4));
        ASSERT_U64(0, peer_number(load, 4, 4));
        ASSERT(load > peer_find(&b->peer, PEER_SET_VRING_ADDR, 0));
        ASSERT(check > load && check < peer_find(&b->peer, PEER_SET_VRING_ENABLE, 0));
        ASSERT_UINT(1, b->peer.kicks[0]);
        ASSERT_OK(vhost_device_stop(&b->device));
        ASSERT_OK(vhost_device_start(&b->device)); /* it is loaded once */
        ASSERT_UINT(1, peer_count(&b->peer, PEER_SET_DEVICE_STATE_FD));
        CHECK_CALL(peer_renew(b));
    }
    PASS();
}

TEST who_does_not_give_it_ends_the_start(peer_bench *b)
{
    ASSERT_OK(stopped_with_state(b, 0));
    moved.size = 5000;
    moved.piece = 1000;
    moved.fail_at = 2000;
    moved.code = -EBADMSG;
    ASSERT_OK(vhost_user_load_state(&b->user, give, NULL));
    ASSERT_INT(-EBADMSG, vhost_device_start(&b->device));
    ASSERT_INT(VHOST_STATE_STOPPED, b->device.state);
    ASSERT_UINT(0, peer_count(&b->peer, PEER_SET_VRING_KICK));
    ASSERT(vhost_device_start(&b->device) < 0); /* never without the state, unless it is told so */
    ASSERT_OK(vhost_user_load_state(&b->user, NULL, NULL));
    ASSERT_OK(vhost_device_start(&b->device));
    PASS();
}

TEST a_state_that_is_not_read_is_cut_off(peer_bench *b)
{
    ASSERT_OK(stopped_with_state(b, 0));
    static const size_t many = PEER_STATE;
    moved.size = many;
    b->peer.keeps_state = true;
    b->peer.send_most = 100; /* and so it fits into no socket, */
    b->peer.again_every = 2; /* which is full every other time */
    ASSERT_OK(vhost_user_load_state(&b->user, give, NULL));
    int code = vhost_device_start(&b->device);
    ASSERT(code < 0);
    PASS();
}

/* That each byte moves something does not prolong the time of its piece. */
TEST a_state_that_is_read_byte_by_byte_is_cut_off(peer_bench *b)
{
    ASSERT_OK(stopped_with_state(b, 0));
    moved.size = PEER_STATE;
    ASSERT_OK(vhost_user_load_state(&b->user, give, NULL));
    b->peer.send_most = 1;
    b->peer.again_every = 2;
    b->peer.tick = 1;
    uint64_t before = b->peer.now;
    ASSERT_INT(-ETIMEDOUT, vhost_device_start(&b->device));
    ASSERT(b->peer.now - before < 2500); /* that of all messages, and that of one piece */
    PASS();
}

TEST a_state_that_comes_byte_by_byte_is_cut_off(peer_bench *b)
{
    ASSERT_OK(stopped_with_state(b, 4096));
    b->peer.receive_most = 1;
    b->peer.tick = 1;
    uint64_t before = b->peer.now;
    ASSERT_INT(-ETIMEDOUT, vhost_user_save_state(&b->user, take, NULL, PEER_STATE));
    ASSERT(b->peer.now - before < 2500);
    PASS();
}

TEST moving_without_a_copy(peer_bench *b)
{
    int theirs = -1, ours = peer_file(0);
    uint8_t bytes[100];
    ASSERT_OK(stopped_with_state(b, 100));
    int result = vhost_user_move_state(&b->user, false, ours, &theirs);
    close(ours);
    ASSERT_OK(result);
    ASSERT_INT(-1, theirs);
    b->peer.own_state_fd = true;
    ours = peer_file(0);
    result = vhost_user_move_state(&b->user, false, ours, &theirs);
    close(ours);
    ASSERT_OK(result);
    ASSERT(theirs >= 0);
    peer_turn(&b->peer);
    ASSERT_INT(100, (int)read(theirs, bytes, sizeof bytes));
    ASSERT_MEM_EQ(b->peer.state, bytes, 100);
    close(theirs);
    ASSERT_OK(vhost_user_check_state(&b->user));
    PASS();
}

/* Both an fd and the word that there is none; neither. */
TEST an_fd_and_no_fd_contradict_each_other(peer_bench *b)
{
    static const char *const bad[] = {"42 5 8 Q100 +1", "42 5 8 Q0"};
    for (int i = 0; i < 2; i++) {
        ASSERT_OK(stopped_with_state(b, 10));
        peer_add_rule(&b->peer, PEER_SET_DEVICE_STATE_FD, 1, PEER_SAY, 0)->text = bad[i];
        ASSERT_LOST(b, vhost_user_save_state(&b->user, take, NULL, 10), -EPROTO,
                    VHOST_WHY_USER_FDS);
        CHECK_CALL(peer_renew(b));
    }
    PASS();
}

/* A refusal may come with an fd, which is closed. */
TEST a_refused_transfer_leaves_no_fd(peer_bench *b)
{
    static const char *const refusals[] = {"42 5 8 Q1", "42 5 8 Q101", "42 5 8 Q1 +1"};
    for (int i = 0; i < 3; i++) {
        ASSERT_OK(stopped_with_state(b, 10));
        int fds = fixture_open_fds();
        b->peer.keeps_state = true;
        peer_add_rule(&b->peer, PEER_SET_DEVICE_STATE_FD, 1, PEER_SAY, 0)->text = refusals[i];
        ASSERT_LOST(b, vhost_user_save_state(&b->user, take, NULL, 10), -EIO,
                    VHOST_WHY_USER_REFUSED);
        ASSERT_INT(fds + (b->peer.state_fd >= 0), fixture_open_fds());
        ASSERT_OK(vhost_user_process(&b->user));
        ASSERT_INT(VHOST_STATE_STOPPED, b->device.state);
        CHECK_CALL(peer_renew(b));
    }
    PASS();
}

SUITE(user_state_suite)
{
    RUN_USER(states_of_all_sizes_are_saved);
    RUN_USER(a_state_has_the_limit_of_its_caller);
    RUN_USER(who_does_not_take_it_ends_the_save);
    RUN_USER(a_transfer_that_does_not_move_is_cut_off);
    RUN_USER(a_back_end_that_dies_in_a_transfer);
    RUN_USER(states_of_all_sizes_are_loaded_before_anything_runs);
    RUN_USER(who_does_not_give_it_ends_the_start);
    RUN_USER(a_state_that_is_not_read_is_cut_off);
    RUN_USER(a_state_that_is_read_byte_by_byte_is_cut_off);
    RUN_USER(a_state_that_comes_byte_by_byte_is_cut_off);
    RUN_USER(moving_without_a_copy);
    RUN_USER(an_fd_and_no_fd_contradict_each_other);
    RUN_USER(a_refused_transfer_leaves_no_fd);
}
