/* vhost_user.h: a back-end that dies, and comes back: when it is tried again, what it is told, and
   what it may not lack. */
#include "user_calls.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

static int running_by_path(peer_bench *b, uint32_t queues, uint32_t retry_ms)
{
    b->options.retry_ms = retry_ms;
    b->accepted = fixture_features(PEER_BIT(32) | PEER_BIT(35), 0);
    int result = vhost_user_connect(&b->user, "/somewhere", &b->options);
    if (result == 0) {
        result = peer_attach(b, queues);
    }
    if (result == 0) {
        result = vhost_device_start(&b->device);
    }
    peer_forget(&b->peer);
    return result;
}

/* The back-end dies, and that is noticed. */
static int die(peer_bench *b)
{
    peer_leave(&b->peer);
    return vhost_user_process(&b->user);
}

static void pass_time(peer_bench *b, uint64_t ms)
{
    b->peer.now += ms;
}

TEST it_is_tried_again_after_a_pause(peer_bench *b)
{
    ASSERT_OK(running_by_path(b, 2, 100));
    ASSERT_INT(-1, vhost_user_timeout(&b->user));
    ASSERT_OK(die(b));
    ASSERT_INT(VHOST_STATE_BROKEN, b->device.state);
    ASSERT_UINT(1, b->broken);
    ASSERT_INT(100, vhost_user_timeout(&b->user));
    pass_time(b, 99);
    ASSERT_INT(1, vhost_user_timeout(&b->user));
    ASSERT_OK(vhost_user_process(&b->user));
    ASSERT_UINT(1, b->peer.connections);
    pass_time(b, 1);
    ASSERT_INT(0, vhost_user_timeout(&b->user));
    ASSERT_INT(1, vhost_user_process(&b->user));
    ASSERT_UINT(2, b->peer.connections);
    ASSERT_INT(VHOST_STATE_RUNNING, b->device.state);
    ASSERT_INT(-1, vhost_user_timeout(&b->user));
    ASSERT_UINT(1, b->broken);
    ASSERT_UINT(1, b->peer.kicks[0]);
    ASSERT_UINT(1, b->peer.kicks[1]);
    PASS();
}

/* U14: features, table, positions, log, MTU: all of it. */
TEST everything_is_said_again(peer_bench *b)
{
    ASSERT_OK(running_by_path(b, 1, 10));
    ASSERT_OK(vhost_log_start(&b->f->vm));
    b->f->host[b->queue[0].used + 2] = 0x21;
    b->f->host[b->queue[0].used + 3] = 0x43;
    peer_forget(&b->peer);
    ASSERT_OK(die(b));
    pass_time(b, 10);
    ASSERT_INT(1, vhost_user_process(&b->user));
    HEARD(b, "3 1 0", "1 1 0", "15 1 0", "16 1 8 Q1b27f", "17 1 0", "36 1 0", "21 9 0 +0",
          "2 9 8 Q944000000", "39 9 8 Qb", "40 1 0", "37 9 40 Q0 Q0 Q80000 Q0 Q0 +9000",
          "37 9 40 Q0 Q100000000 Q80000 Q100000000 Q80000 +9000", "6 1 16 Q20010 Q0 +8000",
          "13 9 8 Q0 +6000", "14 9 8 Q0 +20003", "8 9 8 D0 D10", "10 9 8 D0 D4321",
          "9 9 40 D0 D1 Q8000 Q8200 Q8100 Q8200", "31 1 24 Z16 W1 W10 Z4", "18 9 8 D0 D1",
          "12 9 8 Q0 +5000", "39 9 8 Qf");
    PASS();
}

TEST the_record_is_handed_back(peer_bench *b)
{
    static uint8_t record[1024];
    memset(record, 0, sizeof record);
    record[8] = 1;
    b->peer.record = record;
    b->peer.record_size = 1024;
    b->options.retry_ms = 10;
    ASSERT_OK(vhost_user_connect(&b->user, "/somewhere", &b->options));
    ASSERT_OK(peer_attach(b, 1)); /* without IN_ORDER: only the record makes it certain */
    ASSERT_OK(vhost_device_start(&b->device));
    peer_forget(&b->peer);
    ASSERT_OK(die(b));
    ASSERT_INT(VHOST_POSITION_CERTAIN, b->queue[0].position.state);
    pass_time(b, 10);
    ASSERT_INT(1, vhost_user_process(&b->user));
    ASSERT_UINT(0, peer_count(&b->peer, PEER_GET_INFLIGHT_FD));
    ASSERT_UINT(1, peer_count(&b->peer, PEER_SET_INFLIGHT_FD));
    PASS();
}

TEST pauses_grow_up_to_their_limit(peer_bench *b)
{
    static const int pauses[] = {100, 200, 400, 500, 500, 500};
    b->options.retry_max_ms = 500;
    ASSERT_OK(running_by_path(b, 1, 100));
    b->peer.refusals = 5;
    ASSERT_OK(die(b));
    for (int i = 0; i < 6; i++) {
        int pause = i == 0 ? 100 : pauses[i - 1];
        ASSERT_INT(pause, vhost_user_timeout(&b->user));
        pass_time(b, (uint64_t)pause);
        ASSERT_INT(i == 5, vhost_user_process(&b->user));
    }
    PASS();
}

TEST pauses_without_a_limit_stay(peer_bench *b)
{
    ASSERT_OK(running_by_path(b, 1, 70));
    b->peer.refusals = 4;
    ASSERT_OK(die(b));
    for (int i = 0; i < 5; i++) {
        ASSERT_INT(70, vhost_user_timeout(&b->user));
        pass_time(b, 70);
        ASSERT_INT(i == 4, vhost_user_process(&b->user));
    }
    PASS();
}

/* A pause begins anew with the next break. */
TEST a_break_after_a_recovery_begins_anew(peer_bench *b)
{
    b->options.retry_max_ms = 1000;
    ASSERT_OK(running_by_path(b, 1, 100));
    for (int i = 0; i < 3; i++) {
        b->peer.refusals = 1;
        ASSERT_OK(die(b));
        ASSERT_INT(100, vhost_user_timeout(&b->user));
        pass_time(b, 100);
        ASSERT_OK(vhost_user_process(&b->user));
        pass_time(b, 1000);
        ASSERT_INT(1, vhost_user_process(&b->user));
    }
    ASSERT_UINT(3, b->broken);
    PASS();
}

TEST it_is_given_up_after_so_long(peer_bench *b)
{
    b->options.retry_for_ms = 250;
    ASSERT_OK(running_by_path(b, 1, 100));
    b->peer.refusals = 100;
    ASSERT_OK(die(b));
    pass_time(b, 100);
    ASSERT_OK(vhost_user_process(&b->user));
    pass_time(b, 100);
    ASSERT(vhost_user_process(&b->user) < 0); /* the next one would be too late */
    ASSERT_INT(-1, vhost_user_timeout(&b->user));
    pass_time(b, 100000);
    ASSERT_OK(vhost_user_process(&b->user));
    ASSERT_UINT(98, b->peer.refusals);
    b->peer.refusals = 0;
    ASSERT_OK(vhost_device_reset(&b->device)); /* the VMM may still */
    PASS();
}

TEST without_a_policy_nobody_tries(peer_bench *b)
{
    ASSERT_OK(running_by_path(b, 1, 0));
    ASSERT_INT(-ECONNRESET, die(b));
    ASSERT_INT(-1, vhost_user_timeout(&b->user));
    pass_time(b, 100000);
    ASSERT_OK(vhost_user_process(&b->user));
    ASSERT_UINT(1, b->peer.connections);
    PASS();
}

TEST another_socket_is_tried_at_once(peer_bench *b)
{
    b->accepted = fixture_features(PEER_BIT(32) | PEER_BIT(35), 0);
    ASSERT_OK(peer_running(b, 1));
    ASSERT_INT(-ECONNRESET, die(b));
    vhost_user_reopen(&b->user, peer_connect(&b->peer));
    ASSERT_INT(0, vhost_user_timeout(&b->user));
    ASSERT_INT(1, vhost_user_process(&b->user));
    ASSERT_INT(VHOST_STATE_RUNNING, b->device.state);
    PASS();
}

TEST one_that_connects_itself_is_taken_when_it_does(peer_bench *b)
{
    int fds[8];
    b->options.retry_ms = 100;
    b->accepted = fixture_features(PEER_BIT(32) | PEER_BIT(35), 0);
    ASSERT_OK(vhost_user_listen(&b->user, "/somewhere", &b->options));
    b->peer.knocks = true;
    ASSERT_OK(peer_attach(b, 1));
    ASSERT_OK(vhost_device_start(&b->device));
    ASSERT_OK(die(b));
    ASSERT_OK(vhost_user_process(&b->user)); /* nobody yet */
    uint32_t count = vhost_user_poll_fds(&b->user, fds, 8);
    ASSERT_INT(b->user.listener, fds[count - 1]);
    b->peer.knocks = true;
    peer_turn(&b->peer);
    ASSERT_INT(1, vhost_user_process(&b->user));
    PASS();
}

/* Neither sockets nor the listener are polled in vain. */
TEST what_is_polled(peer_bench *b)
{
    int fds[8];
    ASSERT_OK(running_by_path(b, 1, 100));
    ASSERT_UINT(4, vhost_user_poll_fds(&b->user, fds, 8)); /* with an error and a config event */
    ASSERT_INT(b->user.main.fd, fds[0]);
    ASSERT_INT(b->user.channel.fd, fds[1]);
    ASSERT_UINT(4, vhost_user_poll_fds(&b->user, fds, 1));
    ASSERT_OK(die(b));
    ASSERT_UINT(2, vhost_user_poll_fds(&b->user, fds, 8));
    PASS();
}

/* ---- guesses ---- */

TEST a_guess_is_told_once_and_waits_for_word(peer_bench *b)
{
    b->options.retry_ms = 100;
    ASSERT_OK(vhost_user_connect(&b->user, "/somewhere", &b->options));
    ASSERT_OK(peer_attach(b, 1)); /* without IN_ORDER, and without a record */
    ASSERT_OK(vhost_device_start(&b->device));
    fixture_put_available(&b->f->vm, &b->queue[0], 1);
    ASSERT_LOST(b, die(b), -EINVAL, VHOST_WHY_POSITION_GUESSED);
    ASSERT_INT(-1, vhost_user_timeout(&b->user));
    pass_time(b, 1000);
    ASSERT_OK(vhost_user_process(&b->user));
    ASSERT_UINT(1, b->peer.connections);
    b->queue[0].position.state = VHOST_POSITION_CERTAIN;
    ASSERT_INT(0, vhost_user_timeout(&b->user));
    ASSERT_INT(1, vhost_user_process(&b->user));
    ASSERT_INT(VHOST_STATE_RUNNING, b->device.state);
    PASS();
}

static void take_the_guess(vhost_device *device, void *user)
{
    peer_bench *b = (peer_bench *)user;
    b->broken++;
    device->queues[0].position.state = VHOST_POSITION_CERTAIN;
}

TEST on_broken_may_take_the_guess(peer_bench *b)
{
    b->options.retry_ms = 100;
    b->device_options.on_broken = take_the_guess;
    ASSERT_OK(vhost_user_connect(&b->user, "/somewhere", &b->options));
    ASSERT_OK(peer_attach(b, 1));
    ASSERT_OK(vhost_device_start(&b->device));
    ASSERT_OK(die(b));
    pass_time(b, 100);
    ASSERT_INT(1, vhost_user_process(&b->user));
    PASS();
}

/* ---- what it may not lack ---- */

TEST with_less_than_before_it_is_refused(peer_bench *b)
{
    static const struct {
        uint64_t features, protocol, slots;
    } lost[] = {{PEER_BIT(35), 0, 0},
                {0, 0, 1},
                {0, PEER_BIT(15), 0},
                {0, PEER_BIT(1), 0},
                {PEER_BIT(30), 0, 0}};
    for (size_t i = 0; i < sizeof lost / sizeof lost[0]; i++) {
        ASSERT_OK(running_by_path(b, 1, 100));
        uint64_t features = b->peer.features, protocol = b->peer.protocol, slots = b->peer.slots;
        b->peer.features &= ~lost[i].features;
        b->peer.protocol &= ~lost[i].protocol;
        b->peer.slots -= lost[i].slots;
        ASSERT_OK(die(b));
        pass_time(b, 100);
        ASSERT_OK(vhost_user_process(&b->user));
        ASSERT_INT(VHOST_STATE_BROKEN, b->device.state);
        ASSERT_INT(VHOST_WHY_BACKEND_LESS, b->device.last_error.why);
        ASSERT_INT(-1, b->user.main.fd);
        b->peer.features = features;
        b->peer.protocol = protocol;
        b->peer.slots = slots;
        pass_time(b, 100);
        ASSERT_INT(1, vhost_user_process(&b->user)); /* the next one is as it was */
        CHECK_CALL(peer_renew(b));
    }
    PASS();
}

TEST with_a_record_it_may_not_lack_inflight(peer_bench *b)
{
    b->peer.record_size = 1024;
    ASSERT_OK(running_by_path(b, 1, 100));
    b->peer.protocol &= ~PEER_BIT(12);
    ASSERT_OK(die(b));
    pass_time(b, 100);
    ASSERT_OK(vhost_user_process(&b->user));
    ASSERT_INT(VHOST_STATE_BROKEN, b->device.state);
    ASSERT_INT(VHOST_WHY_BACKEND_LESS, b->user.last_error.why);
    ASSERT_UINT(0, peer_count(&b->peer, PEER_SET_VRING_KICK));
    b->peer.protocol |= PEER_BIT(12);
    pass_time(b, 100);
    ASSERT_INT(1, vhost_user_process(&b->user));
    PASS();
}

TEST with_more_than_before_it_is_welcome(peer_bench *b)
{
    b->peer.features &= ~PEER_BIT(34);
    b->peer.protocol = PEER_USUAL & ~PEER_BIT(2);
    ASSERT_OK(running_by_path(b, 1, 100));
    b->peer.features |= PEER_BIT(34);
    b->peer.protocol = PEER_USUAL;
    b->peer.slots = 500;
    ASSERT_OK(die(b));
    pass_time(b, 100);
    ASSERT_INT(1, vhost_user_process(&b->user));
    PASS();
}

/* ---- it dies again ---- */

/* At each message of the replay; and each time it is just tried again. */
TEST it_may_die_in_each_message_of_the_replay(peer_bench *b)
{
    unsigned nth = 0;
    int code = 0;
    while (code == 0 && nth < 100) {
        nth++;
        ASSERT_OK(running_by_path(b, 2, 100));
        ASSERT_OK(die(b));
        peer_rule *rule = peer_add_rule(&b->peer, 0, nth, PEER_CLOSE, 0);
        pass_time(b, 100);
        code = vhost_user_process(&b->user);
        ASSERT_INT(!rule->hit, code);
        if (code == 0) {
            ASSERT_INT(VHOST_STATE_BROKEN, b->device.state);
            ASSERT_INT(-1, b->user.main.fd);
            peer_obey(&b->peer);
            pass_time(b, 100);
            ASSERT_INT(1, vhost_user_process(&b->user));
        }
        ASSERT_INT(VHOST_STATE_RUNNING, b->device.state);
        CHECK_CALL(peer_renew(b));
    }
    ASSERT(nth > 25);
    PASS();
}

TEST it_may_be_silent_or_refuse_in_each_message_of_the_replay(peer_bench *b)
{
    static const peer_action actions[] = {PEER_STOP, PEER_REFUSE};
    for (int i = 0; i < 2; i++) {
        for (unsigned nth = 1; nth < 40; nth++) {
            ASSERT_OK(running_by_path(b, 2, 100));
            ASSERT_OK(die(b));
            peer_add_rule(&b->peer, 0, nth, actions[i], 1);
            pass_time(b, 100);
            int code = vhost_user_process(&b->user);
            ASSERT(code == 0 || code == 1);
            peer_obey(&b->peer);
            b->peer.away = false;
            pass_time(b, 2000);
            if (code == 0) {
                ASSERT_INT(VHOST_STATE_BROKEN, b->device.state);
                code = vhost_user_process(&b->user);
            }
            ASSERT_INT(1, code);
            CHECK_CALL(peer_renew(b));
        }
    }
    PASS();
}

/* A death in the middle of a call, of which the core knows; and of a service, of which it does
   not. */
TEST a_break_in_any_call_is_recovered_from(peer_bench *b)
{
    for (size_t i = 0; i < user_message_count; i++) {
        const user_message *message = &user_messages[i];
        if (strncmp(message->call->name, "open", 4) == 0) {
            continue;
        }
        ASSERT_OK(user_arrange(b, message->call));
        peer_add_rule(&b->peer, message->id, message->nth, PEER_CLOSE, 0);
        ASSERT_INT(-ECONNRESET, message->call->act(b));
        (void)vhost_user_process(&b->user);
        ASSERT_INT(VHOST_STATE_BROKEN, b->device.state);
        ASSERT_UINT(1, b->broken);
        b->queue[0].position.state = VHOST_POSITION_CERTAIN;
        peer_obey(&b->peer);
        vhost_user_reopen(&b->user, peer_connect(&b->peer));
        int code = vhost_user_process(&b->user);
        if (code != 1) {
            fprintf(stderr, "%s: %d, %s, %s\n", message->call->name, code, b->user.last_error.text,
                    b->device.last_error.text);
        }
        ASSERT_INT(1, code);
        CHECK_CALL(peer_renew(b));
    }
    PASS();
}

TEST memory_that_changed_meanwhile_is_told(peer_bench *b)
{
    ASSERT_OK(running_by_path(b, 1, 100));
    ASSERT_OK(die(b));
    ASSERT_OK(user_change_map(b, 3));
    pass_time(b, 100);
    peer_forget(&b->peer);
    ASSERT_INT(1, vhost_user_process(&b->user));
    ASSERT_UINT(3, peer_count(&b->peer, PEER_ADD_MEM_REG));
    PASS();
}

TEST a_device_that_was_stopped_is_stopped_again(peer_bench *b)
{
    ASSERT_OK(running_by_path(b, 1, 100));
    ASSERT_OK(vhost_device_stop(&b->device));
    ASSERT_OK(die(b));
    pass_time(b, 100);
    peer_forget(&b->peer);
    ASSERT_INT(1, vhost_user_process(&b->user));
    ASSERT_INT(VHOST_STATE_STOPPED, b->device.state);
    ASSERT_UINT(0, peer_count(&b->peer, PEER_SET_FEATURES));
    ASSERT_OK(vhost_device_start(&b->device));
    PASS();
}

TEST a_thousand_deaths_leave_nothing(peer_bench *b)
{
    ASSERT_OK(running_by_path(b, 2, 1));
    int fds = fixture_open_fds();
    size_t allocations = b->f->allocations;
    for (int i = 0; i < 1000; i++) {
        ASSERT_OK(die(b));
        pass_time(b, 1);
        ASSERT_INT(1, vhost_user_process(&b->user));
        peer_forget(&b->peer);
    }
    ASSERT_INT(fds, fixture_open_fds());
    ASSERT_UINT(allocations, b->f->allocations);
    PASS();
}

SUITE(user_reconnect_suite)
{
    RUN_USER(it_is_tried_again_after_a_pause);
    RUN_USER(everything_is_said_again);
    RUN_USER(the_record_is_handed_back);
    RUN_USER(pauses_grow_up_to_their_limit);
    RUN_USER(pauses_without_a_limit_stay);
    RUN_USER(a_break_after_a_recovery_begins_anew);
    RUN_USER(it_is_given_up_after_so_long);
    RUN_USER(without_a_policy_nobody_tries);
    RUN_USER(another_socket_is_tried_at_once);
    RUN_USER(one_that_connects_itself_is_taken_when_it_does);
    RUN_USER(what_is_polled);
    RUN_USER(a_guess_is_told_once_and_waits_for_word);
    RUN_USER(on_broken_may_take_the_guess);
    RUN_USER(with_less_than_before_it_is_refused);
    RUN_USER(with_a_record_it_may_not_lack_inflight);
    RUN_USER(with_more_than_before_it_is_welcome);
    RUN_USER(it_may_die_in_each_message_of_the_replay);
    RUN_USER(it_may_be_silent_or_refuse_in_each_message_of_the_replay);
    RUN_USER(a_break_in_any_call_is_recovered_from);
    RUN_USER(memory_that_changed_meanwhile_is_told);
    RUN_USER(a_device_that_was_stopped_is_stopped_again);
    RUN_USER(a_thousand_deaths_leave_nothing);
}
