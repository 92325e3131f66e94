/* vhost_user.h: each message that a back-end can refuse, refused. A refusal is no reason to give
   the connection up: all other answers are collected, what was begun is undone, and it may be tried
   again. */
#include "user_calls.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

static bool is_call(const user_message *message, const char *name)
{
    return strcmp(message->call->name, name) == 0;
}

static bool is_table(uint32_t id)
{
    return id == PEER_SET_MEM_TABLE || id == PEER_ADD_MEM_REG || id == PEER_REM_MEM_REG;
}

/* What becomes of a device whose back-end refuses this. */
static vhost_state state_after(const user_message *message)
{
    static const char *const fatal[] = {"reset",          "reset by status",   "commit of more",
                                        "commit of less", "commit of a table", "log stop",
                                        "unmapped"};
    for (size_t i = 0; i < sizeof fatal / sizeof fatal[0]; i++) {
        if (is_call(message, fatal[i])) {
            return VHOST_STATE_BROKEN;
        }
    }
    if (is_call(message, "open")) {
        return VHOST_STATE_CLOSED;
    }
    return VHOST_STATE_STOPPED; /* or RUNNING, if it was */
}

static enum greatest_test_res check_after(peer_bench *b, const user_message *message,
                                          vhost_state before)
{
    vhost_state expected = state_after(message);
    if (expected == VHOST_STATE_STOPPED) {
        expected = before;
    }
    ASSERT_INT(expected, b->device.state);
    ASSERT_UINT(expected == VHOST_STATE_BROKEN, b->broken);
    if (expected == VHOST_STATE_RUNNING || expected == VHOST_STATE_STOPPED) {
        ASSERT_UINT(b->user.request_first, b->user.request_count); /* nothing is outstanding */
        ASSERT_OK(vhost_user_process(&b->user));
        ASSERT_INT(expected == VHOST_STATE_RUNNING, b->queue[0].started);
    }
    PASS();
}

/* The rings that may have run are stopped, and asked where they stand. */
static enum greatest_test_res check_start_again(peer_bench *b, const user_message *message)
{
    ASSERT_UINT(peer_count(&b->peer, PEER_SET_VRING_KICK),
                peer_count(&b->peer, PEER_GET_VRING_BASE));
    bool slots = b->user.protocol >> 15 & 1;
    if (is_table(message->id) && slots) {
        /* Which memory it has, nobody knows. */
        ASSERT_INT(-ECONNRESET, vhost_device_start(&b->device));
        (void)vhost_user_process(&b->user);
        ASSERT_INT(VHOST_STATE_BROKEN, b->device.state);
        PASS();
    }
    b->queue[0].position.state = VHOST_POSITION_CERTAIN;
    ASSERT_OK(vhost_device_start(&b->device));
    ASSERT_OK(vhost_device_stop(&b->device));
    PASS();
}

static enum greatest_test_res refuse(peer_bench *b, const user_message *message, uint64_t verdict)
{
    ASSERT_OK(user_arrange(b, message->call));
    vhost_state before = b->device.state;
    peer_rule *rule = peer_add_rule(&b->peer, message->id, message->nth, PEER_REFUSE, verdict);
    ASSERT_LOST(b, message->call->act(b), -EIO, VHOST_WHY_USER_REFUSED);
    ASSERT(rule->hit);
    ASSERT(strstr(b->user.last_error.text, vhost_user_message_name(message->id)) != NULL);
    CHECK_CALL(check_after(b, message, before));
    peer_obey(&b->peer);
    if (message->call->starts) {
        CHECK_CALL(check_start_again(b, message));
    } else if (message->call->serves) {
        ASSERT_OK(message->call->act(b));
    }
    return peer_renew(b);
}

static enum greatest_test_res refuse_all(peer_bench *b, uint64_t verdict)
{
    for (size_t i = 0; i < user_message_count; i++) {
        const user_message *message = &user_messages[i];
        bool kind = message->kind == USER_ACK || message->kind == USER_VERDICT;
        if (!kind && message->kind != USER_STATE) {
            continue;
        }
        enum greatest_test_res result = refuse(b, message, verdict);
        if (result != GREATEST_TEST_RES_PASS) {
            fprintf(stderr, "%s, %s no. %u: %s\n", message->call->name,
                    vhost_user_message_name(message->id), message->nth, b->user.last_error.text);
            return result;
        }
    }
    PASS();
}

TEST each_message_refused(peer_bench *b)
{
    return refuse_all(b, 1);
}

TEST any_number_but_zero_refuses(peer_bench *b)
{
    return refuse_all(b, UINT64_MAX);
}

TEST of_many_refusals_the_first_is_told(peer_bench *b)
{
    b->options.avoid = PEER_BIT(12);
    ASSERT_OK(peer_stopped(b, 8));
    peer_add_rule(&b->peer, PEER_SET_VRING_BASE, 0, PEER_REFUSE, 7);
    peer_add_rule(&b->peer, PEER_SET_VRING_ADDR, 0, PEER_REFUSE, 8);
    peer_add_rule(&b->peer, PEER_SET_VRING_ENABLE, 0, PEER_REFUSE, 9);
    ASSERT_LOST(b, vhost_device_start(&b->device), -EIO, VHOST_WHY_USER_REFUSED);
    ASSERT(strstr(b->user.last_error.text, "SET_VRING_BASE of queue 0: 0x7") != NULL);
    ASSERT_UINT(8, peer_count(&b->peer, PEER_SET_VRING_KICK)); /* the others went out, */
    ASSERT_UINT(8, peer_count(&b->peer, PEER_GET_VRING_BASE)); /* and were taken back */
    ASSERT_INT(VHOST_STATE_STOPPED, b->device.state);
    for (int q = 0; q < 8; q++) {
        ASSERT_INT(VHOST_POSITION_GUESSED, b->queue[q].position.state); /* of a misled ring */
    }
    PASS();
}

/* A record of requests in flight is a wait in the middle: nothing runs before it is there. */
TEST with_a_record_no_ring_is_misled(peer_bench *b)
{
    ASSERT_OK(peer_stopped(b, 8));
    peer_add_rule(&b->peer, PEER_SET_VRING_BASE, 5, PEER_REFUSE, 7);
    ASSERT_LOST(b, vhost_device_start(&b->device), -EIO, VHOST_WHY_USER_REFUSED);
    ASSERT_UINT(0, peer_count(&b->peer, PEER_SET_VRING_KICK));
    ASSERT_UINT(0, peer_count(&b->peer, PEER_GET_VRING_BASE));
    ASSERT_OK(vhost_device_start(&b->device));
    PASS();
}

TEST features_that_are_not_ok_are_a_refusal(peer_bench *b)
{
    ASSERT_OK(peer_stopped(b, 1));
    b->peer.status_lost = 8;
    ASSERT_LOST(b, vhost_device_start(&b->device), -EIO, VHOST_WHY_USER_REFUSED);
    ASSERT_INT(VHOST_STATE_STOPPED, b->device.state);
    b->peer.status_lost = 0;
    peer_forget(&b->peer);
    ASSERT_OK(vhost_device_start(&b->device));
    ASSERT_UINT(1, peer_count(&b->peer, PEER_GET_STATUS)); /* asked again */
    PASS();
}

TEST config_space_without_bytes_is_a_refusal(peer_bench *b)
{
    uint8_t bytes[4];
    ASSERT_OK(peer_running(b, 1));
    peer_add_rule(&b->peer, PEER_GET_CONFIG, 1, PEER_SAY, 0)->text = "24 5 0";
    ASSERT_LOST(b, vhost_device_get_config(&b->device, 0, bytes, 4), -EIO, VHOST_WHY_USER_REFUSED);
    ASSERT_OK(vhost_device_get_config(&b->device, 0, bytes, 4));
    ASSERT_INT(VHOST_STATE_RUNNING, b->device.state);
    PASS();
}

/* Which ring it was, and what the core makes of it. */
TEST the_queue_that_was_refused_is_told(peer_bench *b)
{
    b->options.avoid = PEER_BIT(12);
    ASSERT_OK(peer_stopped(b, 4));
    peer_add_rule(&b->peer, PEER_SET_VRING_NUM, 3, PEER_REFUSE, 1);
    unsigned errors = b->f->errors;
    ASSERT_INT(-EIO, vhost_device_start(&b->device));
    ASSERT_INT(2, b->user.last_error.queue);
    CHECK_CALL(
        fixture_failed(b->f, errors, &b->device.last_error, -EIO, VHOST_WHY_BACKEND_REFUSED));
    CHECK_CALL(fixture_names(&b->device.last_error, VHOST_OP_SET_RING_SIZE, 2));
    ASSERT(strstr(b->device.last_error.text, "SET_VRING_NUM of queue 2") != NULL);
    ASSERT_UINT(4, peer_count(&b->peer, PEER_GET_VRING_BASE));
    PASS();
}

TEST without_acks_nothing_can_be_refused(peer_bench *b)
{
    b->peer.protocol &= ~PEER_ACK;
    ASSERT_OK(peer_running(b, 2));
    ASSERT_OK(vhost_queue_mask(&b->device, 0));
    ASSERT_OK(vhost_device_stop(&b->device));
    PASS();
}

SUITE(user_refusals_suite)
{
    RUN_USER(each_message_refused);
    RUN_USER(any_number_but_zero_refuses);
    RUN_USER(of_many_refusals_the_first_is_told);
    RUN_USER(with_a_record_no_ring_is_misled);
    RUN_USER(features_that_are_not_ok_are_a_refusal);
    RUN_USER(config_space_without_bytes_is_a_refusal);
    RUN_USER(the_queue_that_was_refused_is_told);
    RUN_USER(without_acks_nothing_can_be_refused);
}
