/* vhost_user.h: what is sent in which order, and that each call waits once, whatever its size. */
#include "user_calls.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define NO_INFLIGHT (~PEER_BIT(12))

/* ---- the orders ---- */

TEST connecting_says_this(peer_bench *b)
{
    ASSERT_OK(peer_stopped(b, 2));
    HEARD(b, "3 1 0", "1 1 0", "15 1 0", "16 1 8 Q1b27f", "17 1 0", "36 1 0", "21 9 0 +0");
    ASSERT_UINT(3, b->peer.waits);
    PASS();
}

TEST start_says_this(peer_bench *b)
{
    ASSERT_OK(peer_stopped(b, 2));
    peer_forget(&b->peer);
    ASSERT_OK(vhost_device_start(&b->device));
    HEARD(b, "2 9 8 Q140000000", "39 9 8 Qb", "40 1 0", "37 9 40 Q0 Q0 Q80000 Q0 Q0 +9000",
          "37 9 40 Q0 Q100000000 Q80000 Q100000000 Q80000 +9000", /* then ring 0, */
          "13 9 8 Q0 +6000", "14 9 8 Q0 +20003", "8 9 8 D0 D10", "10 9 8 D0 D0",
          "9 9 40 D0 D0 Q8000 Q8200 Q8100 Q8200", /* ring 1, */
          "13 9 8 Q1 +6001", "14 9 8 Q1 +20007", "8 9 8 D1 D10", "10 9 8 D1 D0",
          "9 9 40 D1 D0 Q8400 Q8600 Q8500 Q8600", /* and both */
          "31 1 24 Z16 W2 W10 Z4", "18 9 8 D0 D1", "12 9 8 Q0 +5000", "18 9 8 D1 D1",
          "12 9 8 Q1 +5001", "39 9 8 Qf");
    PASS();
}

/* Buffers may wait in a ring that was handed over, and their driver kicks no more. */
TEST every_ring_that_starts_is_kicked_once(peer_bench *b)
{
    ASSERT_OK(peer_stopped(b, 3));
    b->queue[1].ready = false;
    ASSERT_OK(vhost_device_start(&b->device));
    ASSERT_UINT(1, b->peer.kicks[0]);
    ASSERT_UINT(0, b->peer.kicks[1]);
    ASSERT_UINT(1, b->peer.kicks[2]);
    ASSERT_OK(vhost_queue_mask(&b->device, 0));
    b->queue[1].ready = true;
    ASSERT_OK(vhost_queue_start(&b->device, 1));
    ASSERT_UINT(1, b->peer.kicks[0]);
    ASSERT_UINT(1, b->peer.kicks[1]);
    PASS();
}

TEST stop_says_this(peer_bench *b)
{
    ASSERT_OK(peer_running(b, 2));
    b->peer.base[0] = 7;
    b->peer.base[1] = 65535;
    fixture_put_used(&b->f->vm, &b->queue[1], 65530);
    ASSERT_OK(vhost_device_stop(&b->device));
    HEARD(b, "11 1 8 D1 D0", "11 1 8 D0 D0");
    ASSERT_INT(VHOST_POSITION_CERTAIN, b->queue[0].position.state);
    ASSERT_UINT(7, b->queue[0].position.avail);
    ASSERT_UINT(65535, b->queue[1].position.avail);
    ASSERT_UINT(0, b->peer.kicks[0] + b->peer.kicks[1]);
    PASS();
}

/* What the back-end has already is not said again: its table, its status. */
TEST a_second_start_says_no_more_than_it_must(peer_bench *b)
{
    ASSERT_OK(peer_running(b, 1));
    b->peer.base[0] = 0x1234;
    fixture_put_used(&b->f->vm, &b->queue[0], 0x1234);
    ASSERT_OK(vhost_device_stop(&b->device));
    peer_forget(&b->peer);
    ASSERT_OK(vhost_device_start(&b->device));
    HEARD(b, "2 9 8 Q140000000", "13 9 8 Q0 +6000", "14 9 8 Q0 +20003", "8 9 8 D0 D10",
          "10 9 8 D0 D1234", "9 9 40 D0 D0 Q8000 Q8200 Q8100 Q8200", "31 1 24 Z16 W1 W10 Z4",
          "18 9 8 D0 D1", "12 9 8 Q0 +5000");
    PASS();
}

TEST reset_says_this(peer_bench *b)
{
    ASSERT_OK(peer_running(b, 1));
    ASSERT_OK(vhost_device_stop(&b->device));
    peer_forget(&b->peer);
    ASSERT_OK(vhost_device_reset(&b->device));
    HEARD(b, "34 9 0");
    PASS();
}

TEST reset_without_reset_device_clears_the_status(peer_bench *b)
{
    b->options.avoid = PEER_BIT(13);
    ASSERT_OK(peer_running(b, 1));
    ASSERT_OK(vhost_device_stop(&b->device));
    peer_forget(&b->peer);
    ASSERT_OK(vhost_device_reset(&b->device));
    HEARD(b, "39 9 8 Q0");
    peer_fill(b);
    ASSERT_OK(vhost_device_ack(&b->device, b->accepted));
    ASSERT_OK(vhost_device_start(&b->device));
    ASSERT_UINT(2, peer_count(&b->peer, PEER_SET_STATUS)); /* from the beginning */
    PASS();
}

TEST reset_with_neither_says_nothing(peer_bench *b)
{
    b->options.avoid = PEER_BIT(13) | PEER_BIT(16);
    ASSERT_OK(peer_stopped(b, 1));
    peer_forget(&b->peer);
    ASSERT_OK(vhost_device_reset(&b->device));
    HEARD_NOTHING(b);
    ASSERT_UINT(0, peer_count(&b->peer, 4)); /* RESET_OWNER, ever */
    PASS();
}

TEST without_status_there_is_none(peer_bench *b)
{
    b->options.avoid = PEER_BIT(16);
    ASSERT_OK(peer_stopped(b, 1));
    ASSERT_OK(vhost_device_start(&b->device));
    ASSERT_OK(vhost_device_stop(&b->device));
    ASSERT_OK(vhost_device_reset(&b->device));
    ASSERT_UINT(0, peer_count(&b->peer, PEER_SET_STATUS));
    ASSERT_UINT(0, peer_count(&b->peer, PEER_GET_STATUS));
    PASS();
}

/* A back-end without bit 30 has rings that are enabled, and knows nothing of any of this. */
TEST without_protocol_features_start_and_stop_say_this(peer_bench *b)
{
    b->peer.features &= ~PEER_BIT(30);
    ASSERT_OK(peer_stopped(b, 1));
    HEARD(b, "3 1 0", "1 1 0");
    ASSERT_UINT(1, b->peer.waits);
    ASSERT_OK(vhost_device_start(&b->device));
    HEARD(b, "2 1 8 Q100000000",
          "5 1 72 D2 D0 Q0 Q80000 Q0 Q0 Q100000000 Q80000 Q100000000 Q80000 +9000 +9000",
          "13 1 8 Q0 +6000", "14 1 8 Q0 +20003", "8 1 8 D0 D10", "10 1 8 D0 D0",
          "9 1 40 D0 D0 Q8000 Q8200 Q8100 Q8200", "12 1 8 Q0 +5000", "1 1 0");
    ASSERT_UINT(1, b->peer.kicks[0]);
    ASSERT_OK(vhost_device_stop(&b->device));
    HEARD(b, "11 1 8 D0 D0");
    ASSERT_UINT(3, b->peer.waits);
    PASS();
}

/* Without REPLY_ACK the end of a batch shows by an answer to something else. */
TEST without_acks_a_barrier_ends_what_has_no_answer(peer_bench *b)
{
    b->peer.protocol &= ~PEER_ACK;
    ASSERT_OK(peer_stopped(b, 1));
    HEARD(b, "3 1 0", "1 1 0", "15 1 0", "16 1 8 Q1b277", "17 1 0", "36 1 0", "21 1 0 +0", "1 1 0");
    ASSERT_OK(vhost_device_start(&b->device));
    peer_forget(&b->peer);
    b->peer.features = 0; /* the value of a barrier does not matter */
    ASSERT_OK(vhost_queue_mask(&b->device, 0));
    HEARD(b, "13 1 8 Q0 +20001", "1 1 0");
    ASSERT_OK(vhost_device_stop(&b->device));
    HEARD(b, "11 1 8 D0 D0");
    ASSERT_U64(PEER_BIT(30), b->user.features & PEER_BIT(30));
    PASS();
}

TEST queues_are_masked_started_and_stopped_like_this(peer_bench *b)
{
    ASSERT_OK(peer_running(b, 2));
    ASSERT_OK(vhost_queue_mask(&b->device, 1));
    HEARD(b, "13 9 8 Q1 +20005");
    b->peer.event_set[2] = true; /* a call came there */
    ASSERT_INT(1, vhost_queue_unmask(&b->device, 1));
    HEARD(b, "13 9 8 Q1 +6001");
    ASSERT_OK(vhost_queue_stop(&b->device, 1));
    HEARD(b, "11 1 8 D1 D0");
    ASSERT_OK(vhost_queue_start(&b->device, 1));
    HEARD(b, "13 9 8 Q1 +6001", "14 9 8 Q1 +20007", "8 9 8 D1 D10", "10 9 8 D1 D0",
          "9 9 40 D1 D0 Q8400 Q8600 Q8500 Q8600", "18 9 8 D1 D1", "12 9 8 Q1 +5001");
    ASSERT_UINT(4, b->peer.waits);
    PASS();
}

TEST queues_without_kick_and_call_say_so(peer_bench *b)
{
    ASSERT_OK(peer_stopped(b, 2));
    b->queue[1].kick_fd = b->queue[1].call_fd = -1;
    ASSERT_OK(vhost_device_start(&b->device));
    const peer_bytes *kick = peer_last(&b->peer, PEER_SET_VRING_KICK);
    const peer_bytes *call = peer_last(&b->peer, PEER_SET_VRING_CALL);
    ASSERT_U64(0x101, peer_number(kick, 0, 8));
    ASSERT_UINT(0, kick->fd_count);
    ASSERT_U64(0x101, peer_number(call, 0, 8));
    ASSERT_UINT(0, call->fd_count);
    ASSERT_UINT(1, b->peer.kicks[0]);
    PASS();
}

TEST packed_rings_begin_with_both_wrap_counters_set(peer_bench *b)
{
    b->accepted = fixture_features(PEER_BIT(32) | PEER_BIT(34), 0);
    ASSERT_OK(peer_stopped(b, 1));
    ASSERT_OK(vhost_device_start(&b->device));
    ASSERT_U64(0x80008000, peer_number(peer_find(&b->peer, PEER_SET_VRING_BASE, 0), 4, 4));
    b->peer.base[0] = 0x00038007;
    ASSERT_OK(vhost_device_stop(&b->device));
    ASSERT_UINT(0x8007, b->queue[0].position.avail);
    ASSERT_UINT(3, b->queue[0].position.used);
    PASS();
}

TEST foreign_rings_are_told_their_byte_order_before_their_addresses(peer_bench *b)
{
    b->accepted = fixture_features(0, 0);
    ASSERT_OK(peer_stopped(b, 1));
    b->queue[0].big_endian = FIXTURE_FOREIGN;
    peer_forget(&b->peer);
    ASSERT_OK(vhost_device_start(&b->device));
    const peer_bytes *endian = peer_find(&b->peer, PEER_SET_VRING_ENDIAN, 0);
    ASSERT(endian != NULL);
    ASSERT_UINT(PEER_SET_VRING_BASE, peer_id(endian - 1));
    ASSERT_UINT(PEER_SET_VRING_ADDR, peer_id(endian + 1));
    ASSERT_U64(0, peer_number(endian, 0, 4));
    ASSERT_U64(FIXTURE_FOREIGN, peer_number(endian, 4, 4));
    PASS();
}

TEST foreign_rings_need_cross_endian(peer_bench *b)
{
    b->options.avoid = PEER_BIT(6);
    b->accepted = fixture_features(0, 0);
    ASSERT_OK(peer_stopped(b, 1));
    b->queue[0].big_endian = FIXTURE_FOREIGN;
    ASSERT_INT(-ENOTSUP, vhost_device_start(&b->device));
    ASSERT_INT(VHOST_STATE_STOPPED, b->device.state);
    b->queue[0].big_endian = !FIXTURE_FOREIGN;
    ASSERT_OK(vhost_device_start(&b->device));
    PASS();
}

/* ---- the dirty log ---- */

TEST logging_says_this(peer_bench *b)
{
    ASSERT_OK(peer_running(b, 2));
    ASSERT_OK(vhost_log_start(&b->f->vm));
    HEARD(b, "6 1 16 Q20010 Q0 +8000", "2 9 8 Q144000000", "9 9 40 D0 D1 Q8000 Q8200 Q8100 Q8200",
          "9 9 40 D1 D1 Q8400 Q8600 Q8500 Q8600");
    ASSERT_OK(vhost_log_stop(&b->f->vm));
    HEARD(b, "9 9 40 D1 D0 Q8400 Q8600 Q8500 Q8600", "9 9 40 D0 D0 Q8000 Q8200 Q8100 Q8200",
          "2 9 8 Q140000000");
    ASSERT_UINT(2, b->peer.waits);
    PASS();
}

TEST a_start_while_the_vm_logs_sends_the_log_after_the_table(peer_bench *b)
{
    ASSERT_OK(peer_stopped(b, 1));
    ASSERT_OK(vhost_log_start(&b->f->vm));
    peer_forget(&b->peer);
    ASSERT_OK(vhost_device_start(&b->device));
    const peer_bytes *log = peer_find(&b->peer, PEER_SET_LOG_BASE, 0);
    ASSERT(log != NULL);
    ASSERT_UINT(PEER_ADD_MEM_REG, peer_id(log - 1));
    ASSERT_UINT(PEER_SET_VRING_CALL, peer_id(log + 1));
    ASSERT_U64(1, peer_number(peer_find(&b->peer, PEER_SET_VRING_ADDR, 0), 4, 4));
    PASS();
}

/* ---- one wait each ---- */

static enum greatest_test_res each_waits(peer_bench *b, uint32_t queues)
{
    peer *p = &b->peer;
    ASSERT_OK(peer_stopped(b, queues));
    ASSERT_UINT(p->features & PEER_BIT(30) ? 3 : 1, p->waits);
    peer_forget(p);
    ASSERT_OK(vhost_device_start(&b->device));
    ASSERT_UINT(1, p->waits);
    ASSERT_OK(user_change_map(b, 3));
    ASSERT_UINT(2, p->waits);
    if (p->features & PEER_BIT(30)) {
        ASSERT_OK(vhost_log_start(&b->f->vm));
        ASSERT_UINT(3, p->waits);
        ASSERT_OK(vhost_log_stop(&b->f->vm));
        ASSERT_UINT(4, p->waits);
    }
    peer_forget(p);
    ASSERT_OK(vhost_device_stop(&b->device));
    ASSERT_UINT(1, p->waits);
    ASSERT_OK(vhost_device_start(&b->device));
    ASSERT_UINT(2, p->waits);
    PASS();
}

static enum greatest_test_res each_waits_whatever_its_size(peer_bench *b, uint64_t features,
                                                           uint64_t protocol)
{
    static const uint32_t counts[] = {1, 8, 64, 256};
    for (size_t i = 0; i < sizeof counts / sizeof counts[0]; i++) {
        b->peer.features &= features;
        b->peer.protocol = protocol;
        CHECK_CALL(each_waits(b, counts[i]));
        CHECK_CALL(peer_renew(b));
    }
    PASS();
}

TEST each_call_waits_once_with_acks(peer_bench *b)
{
    return each_waits_whatever_its_size(b, UINT64_MAX, NO_INFLIGHT);
}

TEST each_call_waits_once_without_acks(peer_bench *b)
{
    return each_waits_whatever_its_size(b, UINT64_MAX, NO_INFLIGHT & ~PEER_ACK);
}

TEST each_call_waits_once_without_slots(peer_bench *b)
{
    return each_waits_whatever_its_size(b, UINT64_MAX, NO_INFLIGHT & ~PEER_BIT(15));
}

TEST each_call_waits_once_without_protocol_features(peer_bench *b)
{
    return each_waits_whatever_its_size(b, ~PEER_BIT(30), 0);
}

/* Class 4: sockets fill up on both sides, and neither side waits for the other for ever. */
TEST full_sockets_are_no_deadlock(peer_bench *b)
{
    static const uint64_t acks[] = {0, PEER_ACK};
    for (int i = 0; i < 2; i++) {
        b->peer.protocol &= ~acks[i];
        b->peer.lazy = true;
        ASSERT_OK(peer_stopped(b, 256));
        peer_forget(&b->peer);
        ASSERT_OK(vhost_device_start(&b->device));
        ASSERT(b->peer.waits > 1); /* or nothing was full */
        ASSERT_UINT(256, peer_count(&b->peer, PEER_SET_VRING_KICK));
        ASSERT_OK(vhost_device_stop(&b->device));
        CHECK_CALL(peer_renew(b));
    }
    PASS();
}

TEST only_a_first_start_with_a_record_waits_twice(peer_bench *b)
{
    b->peer.record_size = 100;
    ASSERT_OK(peer_stopped(b, 64));
    peer_forget(&b->peer);
    ASSERT_OK(vhost_device_start(&b->device));
    ASSERT_UINT(2, b->peer.waits);
    ASSERT_UINT(1, peer_count(&b->peer, PEER_GET_INFLIGHT_FD));
    ASSERT_UINT(1, peer_count(&b->peer, PEER_SET_INFLIGHT_FD));
    ASSERT_OK(vhost_device_stop(&b->device));
    ASSERT_OK(vhost_device_start(&b->device));
    ASSERT_UINT(4, b->peer.waits);
    ASSERT_UINT(1, peer_count(&b->peer, PEER_GET_INFLIGHT_FD));
    ASSERT_UINT(2, peer_count(&b->peer, PEER_SET_INFLIGHT_FD));
    PASS();
}

SUITE(user_order_suite)
{
    RUN_USER(connecting_says_this);
    RUN_USER(start_says_this);
    RUN_USER(every_ring_that_starts_is_kicked_once);
    RUN_USER(stop_says_this);
    RUN_USER(a_second_start_says_no_more_than_it_must);
    RUN_USER(reset_says_this);
    RUN_USER(reset_without_reset_device_clears_the_status);
    RUN_USER(reset_with_neither_says_nothing);
    RUN_USER(without_status_there_is_none);
    RUN_USER(without_protocol_features_start_and_stop_say_this);
    RUN_USER(without_acks_a_barrier_ends_what_has_no_answer);
    RUN_USER(queues_are_masked_started_and_stopped_like_this);
    RUN_USER(queues_without_kick_and_call_say_so);
    RUN_USER(packed_rings_begin_with_both_wrap_counters_set);
    RUN_USER(foreign_rings_are_told_their_byte_order_before_their_addresses);
    RUN_USER(foreign_rings_need_cross_endian);
    RUN_USER(logging_says_this);
    RUN_USER(a_start_while_the_vm_logs_sends_the_log_after_the_table);
    RUN_USER(each_call_waits_once_with_acks);
    RUN_USER(each_call_waits_once_without_acks);
    RUN_USER(each_call_waits_once_without_slots);
    RUN_USER(each_call_waits_once_without_protocol_features);
    RUN_USER(full_sockets_are_no_deadlock);
    RUN_USER(only_a_first_start_with_a_record_waits_twice);
}
