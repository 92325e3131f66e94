/* vhost_user.h: the record of requests in flight. It is kept over a break and a stop, saved for
   migration, and tells where rings stood. What the back-end may do to it does no harm. */
#define _POSIX_C_SOURCE 200809L

#include "user_calls.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum {
    RECORD = 512, /* bytes of a queue */
    HEAD = 24     /* of what is saved */
};

static uint8_t record[3 * RECORD];

/* Of a split ring, or a packed one, that has begun. */
static void make_record(peer_bench *b)
{
    memset(record, 0, sizeof record);
    for (int q = 0; q < 2; q++) {
        uint16_t version = 1;
        memcpy(record + q * RECORD + 8, &version, 2);
        record[q * RECORD + 100] = (uint8_t)(0x40 + q);
    }
    b->peer.record = record;
    b->peer.record_size = RECORD;
}

static int running_with_record(peer_bench *b)
{
    make_record(b);
    return peer_running(b, 2);
}

static int break_it(peer_bench *b)
{
    peer_leave(&b->peer);
    return vhost_user_process(&b->user);
}

/* ---- asking and handing over ---- */

TEST a_first_start_asks_and_hands_over(peer_bench *b)
{
    make_record(b);
    ASSERT_OK(peer_stopped(b, 2));
    peer_forget(&b->peer);
    ASSERT_OK(vhost_device_start(&b->device));
    HEARD(b, "2 9 8 Q140000000", "39 9 8 Qb", "40 1 0", "37 9 40 Q0 Q0 Q80000 Q0 Q0 +9000",
          "37 9 40 Q0 Q100000000 Q80000 Q100000000 Q80000 +9000", "13 9 8 Q0 +6000",
          "14 9 8 Q0 +20003", "8 9 8 D0 D10", "10 9 8 D0 D0",
          "9 9 40 D0 D0 Q8000 Q8200 Q8100 Q8200", "13 9 8 Q1 +6001", "14 9 8 Q1 +20007",
          "8 9 8 D1 D10", "10 9 8 D1 D0", "9 9 40 D1 D0 Q8400 Q8600 Q8500 Q8600",
          "31 1 24 Z16 W2 W10 Z4", "32 9 24 Q400 Q0 W2 W10 Z4 +1024", "18 9 8 D0 D1",
          "12 9 8 Q0 +5000", "18 9 8 D1 D1", "12 9 8 Q1 +5001", "39 9 8 Qf");
    PASS();
}

TEST the_record_stays_over_a_stop_and_goes_with_a_reset(peer_bench *b)
{
    ASSERT_OK(running_with_record(b));
    ASSERT_OK(vhost_device_stop(&b->device));
    ASSERT_OK(vhost_device_start(&b->device));
    ASSERT_UINT(0, peer_count(&b->peer, PEER_GET_INFLIGHT_FD));
    ASSERT_UINT(1, peer_count(&b->peer, PEER_SET_INFLIGHT_FD));
    ASSERT_OK(vhost_device_stop(&b->device));
    ASSERT_OK(vhost_device_reset(&b->device));
    ASSERT_U64(0, vhost_user_inflight_size(&b->user));
    peer_fill(b);
    ASSERT_OK(vhost_device_ack(&b->device, b->accepted));
    ASSERT_OK(vhost_device_start(&b->device));
    ASSERT_UINT(1, peer_count(&b->peer, PEER_GET_INFLIGHT_FD));
    PASS();
}

/* Where all queues begin anew, what was in flight in a former life of the guest is not. */
TEST an_old_record_is_none_of_a_new_life(peer_bench *b)
{
    ASSERT_OK(running_with_record(b));
    ASSERT_OK(vhost_device_stop(&b->device));
    b->queue[0].position.state = b->queue[1].position.state = VHOST_POSITION_INITIAL;
    ASSERT_OK(vhost_device_start(&b->device));
    ASSERT_UINT(1, peer_count(&b->peer, PEER_GET_INFLIGHT_FD));
    PASS();
}

/* The object stays, its device comes again with fewer queues. */
TEST a_record_of_other_queues_is_not_handed_over(peer_bench *b)
{
    ASSERT_OK(running_with_record(b));
    ASSERT_OK(vhost_device_stop(&b->device));
    vhost_position at = b->queue[0].position;
    vhost_device_cleanup(&b->device);
    ASSERT_OK(vhost_user_reopen(&b->user, peer_connect(&b->peer)));
    ASSERT_OK(peer_attach(b, 1));
    peer_fill(b);
    b->queue[0].position = at;
    ASSERT_LOST(b, vhost_device_start(&b->device), -EINVAL, VHOST_WHY_USER_INFLIGHT);
    PASS();
}

TEST a_record_somewhere_in_its_file(peer_bench *b)
{
    b->peer.record_offset = 0x3000;
    ASSERT_OK(running_with_record(b));
    ASSERT_OK(vhost_device_stop(&b->device));
    ASSERT_OK(vhost_device_start(&b->device));
    const peer_bytes *set = peer_find(&b->peer, PEER_SET_INFLIGHT_FD, 0);
    ASSERT_U64(0x400, peer_number(set, 0, 8));
    ASSERT_U64(0x3000, peer_number(set, 8, 8));
    PASS();
}

TEST a_back_end_without_a_record_has_none(peer_bench *b)
{
    uint8_t bytes[64];
    ASSERT_OK(peer_running(b, 1));
    ASSERT_OK(vhost_device_stop(&b->device));
    ASSERT_U64(0, vhost_user_inflight_size(&b->user));
    ASSERT_LOST(b, vhost_user_save_inflight(&b->user, bytes, sizeof bytes), -ENOENT,
                VHOST_WHY_USER_INFLIGHT);
    PASS();
}

TEST without_inflight_nobody_asks(peer_bench *b)
{
    b->peer.protocol &= ~PEER_BIT(12);
    ASSERT_OK(peer_stopped(b, 1));
    ASSERT_OK(vhost_device_start(&b->device));
    ASSERT_UINT(0, peer_count(&b->peer, PEER_GET_INFLIGHT_FD));
    PASS();
}

TEST the_largest_ring_counts(peer_bench *b)
{
    make_record(b);
    ASSERT_OK(peer_stopped(b, 3));
    b->queue[1].size = 8;
    b->queue[2].ready = false;
    b->queue[2].size = 32768;
    ASSERT_OK(vhost_device_start(&b->device));
    const peer_bytes *get = peer_find(&b->peer, PEER_GET_INFLIGHT_FD, 0);
    ASSERT_U64(3, peer_number(get, 16, 2));
    ASSERT_U64(16, peer_number(get, 18, 2));
    PASS();
}

/* CVE-2022-0669: nothing is left of a record that was replaced. */
TEST a_thousand_records_leave_nothing(peer_bench *b)
{
    make_record(b);
    ASSERT_OK(peer_stopped(b, 2));
    int fds = -1;
    for (int i = 0; i < 1000; i++) {
        ASSERT_OK(vhost_device_start(&b->device));
        ASSERT_OK(vhost_device_stop(&b->device));
        ASSERT_OK(vhost_device_reset(&b->device));
        peer_fill(b);
        ASSERT_OK(vhost_device_ack(&b->device, b->accepted));
        fds = fds < 0 ? fixture_open_fds() : fds;
        ASSERT_INT(fds, fixture_open_fds());
        peer_forget(&b->peer);
    }
    PASS();
}

/* ---- saving and loading (X2) ---- */

static enum greatest_test_res save(peer_bench *b, uint8_t *saved)
{
    ASSERT_OK(running_with_record(b));
    ASSERT_INT(-EBUSY, vhost_user_save_inflight(&b->user, saved, HEAD + 2 * RECORD));
    ASSERT_OK(vhost_device_stop(&b->device));
    ASSERT_U64(HEAD + 2 * RECORD, vhost_user_inflight_size(&b->user));
    ASSERT_INT(-ENOSPC, vhost_user_save_inflight(&b->user, saved, HEAD + 2 * RECORD - 1));
    ASSERT_OK(vhost_user_save_inflight(&b->user, saved, HEAD + 2 * RECORD));
    PASS();
}

TEST what_is_saved_is_this(peer_bench *b)
{
    static const uint8_t head[HEAD] = {'v', 'h', 'o', 's', 't', 'i', 'n', 'f', 1, 0, 0, 0,
                                       2,   0,   16,  0,   0,   4,   0,   0,   0, 0, 0, 0};
    uint8_t saved[HEAD + 2 * RECORD];
    CHECK_CALL(save(b, saved));
    ASSERT_MEM_EQ(head, saved, HEAD);
    ASSERT_MEM_EQ(record, saved + HEAD, 2 * RECORD);
    PASS();
}

TEST what_was_saved_is_handed_to_another_back_end(peer_bench *b)
{
    uint8_t saved[HEAD + 2 * RECORD], again[HEAD + 2 * RECORD];
    CHECK_CALL(save(b, saved));
    CHECK_CALL(peer_renew(b));
    ASSERT_OK(peer_stopped(b, 2));
    ASSERT_OK(vhost_user_load_inflight(&b->user, saved, sizeof saved));
    ASSERT_OK(vhost_user_load_inflight(&b->user, saved, sizeof saved)); /* twice: the last counts */
    for (int q = 0; q < 2; q++) {
        b->queue[q].position.state = VHOST_POSITION_CERTAIN;
    }
    peer_forget(&b->peer);
    ASSERT_OK(vhost_device_start(&b->device));
    ASSERT_UINT(0, peer_count(&b->peer, PEER_GET_INFLIGHT_FD));
    const peer_bytes *set = peer_find(&b->peer, PEER_SET_INFLIGHT_FD, 0);
    ASSERT(set != NULL);
    ASSERT_U64(0x400, peer_number(set, 0, 8));
    ASSERT_U64(0, peer_number(set, 8, 8));
    ASSERT_INT(2 * RECORD, (int)pread(b->peer.record_fd, again, sizeof again, 0));
    ASSERT_MEM_EQ(record, again, 2 * RECORD);
    ASSERT_INT(-1, ftruncate(b->peer.record_fd, 0)); /* class 7: sealed */
    ASSERT_INT(-EBUSY, vhost_user_load_inflight(&b->user, saved, sizeof saved));
    ASSERT_OK(vhost_device_stop(&b->device));
    ASSERT_OK(vhost_user_save_inflight(&b->user, again, sizeof again));
    ASSERT_MEM_EQ(saved, again, sizeof saved);
    PASS();
}

/* D28: a stream from elsewhere is not trusted. */
TEST what_was_not_saved_is_not_loaded(peer_bench *b)
{
    static const struct {
        size_t at;
        uint8_t value;
    } wrong[] = {{0, 'V'}, {7, 'x'},   {8, 2},  {8, 0},  {11, 1}, {12, 1},    {12, 3},    {13, 1},
                 {14, 0},  {15, 0x80}, {16, 1}, {17, 5}, {17, 3}, {23, 0x80}, {23, 0xff}, {20, 1}};
    uint8_t saved[HEAD + 2 * RECORD], bad[HEAD + 2 * RECORD + 1];
    int fds;
    CHECK_CALL(save(b, saved));
    fds = fixture_open_fds();
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        memcpy(bad, saved, sizeof saved);
        bad[wrong[i].at] = wrong[i].value;
        ASSERT_LOST(b, vhost_user_load_inflight(&b->user, bad, sizeof saved), -EINVAL,
                    VHOST_WHY_USER_INFLIGHT);
    }
    memcpy(bad, saved, sizeof saved);
    for (size_t size = 0; size < sizeof saved; size++) {
        ASSERT_INT(-EINVAL, vhost_user_load_inflight(&b->user, bad, size));
    }
    ASSERT_INT(-EINVAL, vhost_user_load_inflight(&b->user, bad, sizeof saved + 1));
    ASSERT_INT(fds, fixture_open_fds());
    ASSERT_OK(vhost_device_start(&b->device)); /* with the old one */
    PASS();
}

/* As large as no back-end needs it: so much memory is not made for a stranger. */
TEST a_saved_record_has_a_limit(peer_bench *b)
{
    static uint8_t saved[HEAD + 20000];
    CHECK_CALL(save(b, saved));
    memset(saved + HEAD, 0, sizeof saved - HEAD);
    saved[16] = (uint8_t)((sizeof saved - HEAD) & 0xff);
    saved[17] = (uint8_t)((sizeof saved - HEAD) >> 8 & 0xff);
    ASSERT_INT(-EINVAL, vhost_user_load_inflight(&b->user, saved, sizeof saved));
    PASS();
}

TEST a_record_for_other_rings_is_not_handed_over(peer_bench *b)
{
    uint8_t saved[HEAD + 2 * RECORD];
    CHECK_CALL(save(b, saved));
    b->queue[1].size = 32; /* larger than it was made for */
    b->queue[1].used = b->queue[1].desc + 0x300;
    ASSERT_LOST(b, vhost_device_start(&b->device), -EINVAL, VHOST_WHY_USER_INFLIGHT);
    ASSERT_INT(VHOST_STATE_STOPPED, b->device.state);
    b->queue[1].size = 16;
    ASSERT_OK(vhost_device_start(&b->device));
    PASS();
}

TEST a_loaded_record_needs_inflight(peer_bench *b)
{
    uint8_t saved[HEAD + 2 * RECORD];
    CHECK_CALL(save(b, saved));
    CHECK_CALL(peer_renew(b));
    b->options.avoid = PEER_BIT(12);
    ASSERT_OK(peer_stopped(b, 2));
    int code = vhost_user_load_inflight(&b->user, saved, sizeof saved);
    if (code == 0) {
        b->queue[0].position.state = b->queue[1].position.state = VHOST_POSITION_CERTAIN;
        code = vhost_device_start(&b->device);
    }
    ASSERT_INT(-ENOTSUP, code);
    PASS();
}

/* ---- what a back-end does to it: class 2a ---- */

TEST a_record_that_was_cut_short_is_not_saved(peer_bench *b)
{
    uint8_t saved[HEAD + 2 * RECORD];
    ASSERT_OK(running_with_record(b));
    ASSERT_OK(vhost_device_stop(&b->device));
    ASSERT_OK(ftruncate(b->peer.record_fd, 2 * RECORD - 1));
    ASSERT_LOST(b, vhost_user_save_inflight(&b->user, saved, sizeof saved), -EIO,
                VHOST_WHY_USER_INFLIGHT);
    ASSERT_OK(ftruncate(b->peer.record_fd, 0));
    ASSERT_LOST(b, vhost_user_save_inflight(&b->user, saved, sizeof saved), -EIO,
                VHOST_WHY_USER_INFLIGHT);
    PASS();
}

TEST a_record_that_was_cut_short_tells_no_position(peer_bench *b)
{
    ASSERT_OK(running_with_record(b));
    ASSERT_OK(ftruncate(b->peer.record_fd, RECORD + 31));
    fixture_put_available(&b->f->vm, &b->queue[1], 1);
    (void)break_it(b);
    ASSERT_INT(VHOST_POSITION_CERTAIN, b->queue[0].position.state);
    ASSERT_INT(VHOST_POSITION_GUESSED, b->queue[1].position.state);
    PASS();
}

TEST a_file_that_is_too_short_from_the_beginning(peer_bench *b)
{
    make_record(b);
    b->peer.record = NULL;
    b->peer.record_file = 2 * RECORD - 1;
    ASSERT_LOST(b, peer_running(b, 2), -EPROTO, VHOST_WHY_USER_VALUE);
    PASS();
}

/* Larger than any layout needs it, whatever its file holds. */
TEST a_record_has_a_limit(peer_bench *b)
{
    b->peer.record_size = 4096 + 64 * 16;
    ASSERT_OK(peer_running(b, 1));
    CHECK_CALL(peer_renew(b));
    b->peer.record_size = 4096 + 64 * 16 + 1;
    ASSERT_LOST(b, peer_running(b, 1), -EPROTO, VHOST_WHY_USER_VALUE);
    PASS();
}

/* ---- where rings stood ---- */

static void set_used(peer_bench *b, int queue, uint16_t index)
{
    uint8_t *used = b->f->host + b->queue[queue].used;
    used[2] = (uint8_t)(index & 0xff);
    used[3] = (uint8_t)(index >> 8);
}

TEST a_split_ring_goes_on_at_its_used_index(peer_bench *b)
{
    ASSERT_OK(running_with_record(b));
    set_used(b, 0, 0x1234);
    set_used(b, 1, 0xffff);
    (void)break_it(b);
    ASSERT_INT(VHOST_POSITION_CERTAIN, b->queue[0].position.state);
    ASSERT_UINT(0x1234, b->queue[0].position.avail);
    ASSERT_UINT(0xffff, b->queue[1].position.avail);
    PASS();
}

TEST a_record_of_version_0_says_nothing(peer_bench *b)
{
    make_record(b);
    record[8] = record[9] = 0;
    ASSERT_OK(peer_running(b, 2));
    fixture_put_available(&b->f->vm, &b->queue[0], 1);
    (void)break_it(b);
    ASSERT_INT(VHOST_POSITION_GUESSED, b->queue[0].position.state);
    ASSERT_INT(VHOST_POSITION_CERTAIN, b->queue[1].position.state);
    PASS();
}

static void put16(uint8_t *bytes, uint16_t value)
{
    memcpy(bytes, &value, 2);
}

TEST a_packed_ring_goes_on_where_its_record_says(peer_bench *b)
{
    static const struct {
        uint16_t fresh, old;
        uint8_t fresh_wrap, old_wrap, used_flag;
        unsigned expected; /* 0: a guess */
    } table[] = {
        {5, 5, 1, 1, 0, 0x8005},                           /* nothing between */
        {7, 5, 1, 1, 0, 0x8005},                           /* not yet given back: rolled back */
        {7, 5, 1, 1, 1, 0x8007},                           /* given back already: committed */
        {1, 15, 0, 1, 1, 0x0001},                          /* over the end of the ring */
        {1, 15, 0, 1, 0, 0x800f}, {9, 3, 0, 0, 0, 0x0009}, /* used means 0 in this lap */
        {9, 3, 0, 0, 1, 0x0003},  {16, 16, 1, 1, 0, 0},    /* no such descriptor */
        {65535, 5, 1, 1, 1, 0},   {32768, 5, 1, 1, 1, 0},  /* which looks like 0 */
    };
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++) {
        b->accepted = fixture_features(PEER_BIT(32) | PEER_BIT(34), 0);
        make_record(b);
        put16(record + 16, table[i].fresh);
        put16(record + 18, table[i].old);
        record[20] = table[i].fresh_wrap;
        record[21] = table[i].old_wrap;
        ASSERT_OK(peer_running(b, 2));
        uint8_t *desc = b->f->host + b->queue[0].desc + 16 * (table[i].old % 16);
        desc[15] = (uint8_t)(table[i].used_flag << 7);
        (void)break_it(b);
        if (table[i].expected == 0) {
            ASSERT_INT(VHOST_POSITION_GUESSED, b->queue[0].position.state);
        } else {
            ASSERT_INT(VHOST_POSITION_CERTAIN, b->queue[0].position.state);
            ASSERT_UINT(table[i].expected, b->queue[0].position.avail);
            ASSERT_UINT(table[i].expected, b->queue[0].position.used);
        }
        CHECK_CALL(peer_renew(b));
    }
    PASS();
}

/* A back-end that does not drain leaves requests in the record; the position is what it says. */
TEST skipping_the_drain_is_a_matter_of_each_stop(peer_bench *b)
{
    b->options.want = PEER_BIT(23);
    ASSERT_OK(running_with_record(b));
    ASSERT_OK(vhost_user_set_skip_drain(&b->user, true));
    b->peer.base[0] = 9;
    ASSERT_OK(vhost_device_stop(&b->device));
    HEARD(b, "45 1 8 D1 D0", "45 1 8 D0 D0");
    ASSERT_UINT(9, b->queue[0].position.avail);
    ASSERT_OK(vhost_user_set_skip_drain(&b->user, false));
    ASSERT_OK(vhost_device_start(&b->device));
    peer_forget(&b->peer);
    ASSERT_OK(vhost_device_stop(&b->device));
    HEARD(b, "11 1 8 D1 D0", "11 1 8 D0 D0");
    PASS();
}

/* A whole position is one of a ring that has nothing in flight; this one may have. */
TEST a_packed_position_with_requests_in_flight_is_as_it_is_said(peer_bench *b)
{
    b->options.want = PEER_BIT(23);
    b->accepted = fixture_features(PEER_BIT(32) | PEER_BIT(34), 0);
    ASSERT_OK(running_with_record(b));
    ASSERT_OK(vhost_user_set_skip_drain(&b->user, true));
    b->peer.base[0] = 0x00000005; /* takes at 5, and gives back at 0 of the same lap */
    ASSERT_OK(vhost_device_stop(&b->device));
    ASSERT_UINT(5, b->queue[0].position.avail);
    ASSERT_UINT(0, b->queue[0].position.used);
    PASS();
}

SUITE(user_inflight_suite)
{
    RUN_USER(a_first_start_asks_and_hands_over);
    RUN_USER(the_record_stays_over_a_stop_and_goes_with_a_reset);
    RUN_USER(an_old_record_is_none_of_a_new_life);
    RUN_USER(a_record_of_other_queues_is_not_handed_over);
    RUN_USER(a_record_somewhere_in_its_file);
    RUN_USER(a_back_end_without_a_record_has_none);
    RUN_USER(without_inflight_nobody_asks);
    RUN_USER(the_largest_ring_counts);
    RUN_USER(a_thousand_records_leave_nothing);
    RUN_USER(what_is_saved_is_this);
    RUN_USER(what_was_saved_is_handed_to_another_back_end);
    RUN_USER(what_was_not_saved_is_not_loaded);
    RUN_USER(a_saved_record_has_a_limit);
    RUN_USER(a_record_for_other_rings_is_not_handed_over);
    RUN_USER(a_loaded_record_needs_inflight);
    RUN_USER(a_record_that_was_cut_short_is_not_saved);
    RUN_USER(a_record_that_was_cut_short_tells_no_position);
    RUN_USER(a_file_that_is_too_short_from_the_beginning);
    RUN_USER(a_record_has_a_limit);
    RUN_USER(a_split_ring_goes_on_at_its_used_index);
    RUN_USER(a_record_of_version_0_says_nothing);
    RUN_USER(a_packed_ring_goes_on_where_its_record_says);
    RUN_USER(a_packed_position_with_requests_in_flight_is_as_it_is_said);
    RUN_USER(skipping_the_drain_is_a_matter_of_each_stop);
}
