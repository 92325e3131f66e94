/* vhost_user.h: the bytes of every message that is not part of a start or stop, what it needs, and
   in which states. (Those of start and stop are in user_order.c, of memory in user_memory.c.) */
#include "user_calls.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static const uint8_t uuid[16] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16};

static const user_call *call_named(const char *name)
{
    for (size_t i = 0; i < user_call_count; i++) {
        if (strcmp(user_calls[i].name, name) == 0) {
            return &user_calls[i];
        }
    }
    return NULL;
}

/* Calls it once, and looks at the one message that comes of it. */
static enum greatest_test_res says(peer_bench *b, const char *name, const char *text)
{
    const user_call *call = call_named(name);
    ASSERT(call != NULL);
    ASSERT_OK(user_arrange(b, call));
    ASSERT_OK(call->act(b));
    ASSERT_UINT(1, b->peer.waits);
    HEARD(b, text);
    return peer_renew(b);
}

TEST services_say_this(peer_bench *b)
{
    static const char *const table[][2] = {
        {"rarp", "19 9 8 B52 B54 B0 B1 B2 B3 Z2"},
        {"mtu", "20 9 8 Q5dc"},
        {"kick", "35 9 8 D0 D0"},
        {"log fd", "7 9 0 +8800"},
        {"gpu", "33 9 0 +8801"},
        {"crypto", "26 1 40 B1 B2 B3 Z37"},
        {"close crypto", "27 9 8 Q4d"},
        {"object", "41 1 16 B1 B2 B3 B4 B5 B6 B7 B8 B9 Ba Bb Bc Bd Be Bf B10"}, /* U4 */
        {"advise", "28 1 0"},
        {"listen", "29 9 0"},
        {"end", "30 1 0"},
        {"check", "43 1 0"},
        {"move", "42 1 8 D1 D0 +0"},
        {"mask", "13 9 8 Q0 +20001"},
        {"get config", "24 1 20 D0 D8 D0 Z8"},
        {"set config", "25 9 15 D6 D3 D0 B1 B2 B3"},
        {"restore config", "25 9 15 D6 D3 D1 B1 B2 B3"},
        {"reset", "34 9 0"},
        {"reset by status", "39 9 8 Q0"},
        {"queue stop", "11 1 8 D0 D0"},
        {"stop", "11 1 8 D0 D0"},
        {"stop without draining", "45 1 8 D0 D0"},
        {"unmapped", "22 9 32 Q10000000 Q1000 Q0 B0 B3 Z6"},
    };
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++) {
        CHECK_CALL(says(b, table[i][0], table[i][1]));
    }
    PASS();
}

/* What a service gives back is what the back-end said. */
TEST a_crypto_session_is_answered_in_place(peer_bench *b)
{
    uint8_t session[4096];
    memset(session, 0xab, sizeof session);
    b->options.want = PEER_BIT(7);
    ASSERT_OK(peer_running(b, 1));
    ASSERT_INT(-EINVAL, vhost_user_create_crypto(&b->user, session, 0));
    ASSERT_INT(-EINVAL, vhost_user_create_crypto(&b->user, session, 4097));
    HEARD_NOTHING(b);
    ASSERT_OK(vhost_user_create_crypto(&b->user, session, sizeof session));
    ASSERT_UINT(0xab, session[4094]);
    ASSERT_UINT(0x4d, session[4095]);
    PASS();
}

static bool has_run_of(const void *bytes, size_t size, uint8_t value, size_t length)
{
    size_t run = 0;
    for (size_t i = 0; i < size; i++) {
        run = ((const uint8_t *)bytes)[i] == value ? run + 1 : 0;
        if (run == length) {
            return true;
        }
    }
    return false;
}

/* Class 10: whatever came of it. */
TEST keys_do_not_stay_anywhere(peer_bench *b)
{
    static const peer_action actions[] = {PEER_HOOK, PEER_CLOSE, PEER_SHORT, PEER_STOP};
    for (size_t i = 0; i < sizeof actions / sizeof actions[0]; i++) {
        uint8_t session[64];
        memset(session, 0x77, sizeof session);
        b->options.want = PEER_BIT(7);
        ASSERT_OK(peer_running(b, 1));
        if (actions[i] != PEER_HOOK) {
            peer_add_rule(&b->peer, PEER_CREATE_CRYPTO_SESSION, 1, actions[i], 30);
        }
        (void)vhost_user_create_crypto(&b->user, session, sizeof session);
        ASSERT_FALSE(has_run_of(&b->user, sizeof b->user, 0x77, 4));
        ASSERT_FALSE(has_run_of(b->user.out, b->user.out_capacity, 0x77, 4));
        CHECK_CALL(peer_renew(b));
    }
    PASS();
}

TEST a_shared_object_comes_as_an_fd(peer_bench *b)
{
    int fd;
    ASSERT_OK(user_arrange(b, call_named("object")));
    ASSERT_OK(vhost_user_get_object(&b->user, uuid, &fd));
    ASSERT(fd >= 0);
    ASSERT_INT(41, (int)lseek(fd, 0, SEEK_END));
    close(fd);
    peer_add_rule(&b->peer, PEER_GET_SHARED_OBJECT, 1, PEER_NO_FDS, 0);
    ASSERT_LOST(b, vhost_user_get_object(&b->user, uuid, &fd), -ENOENT, VHOST_WHY_ARGUMENT);
    ASSERT_INT(-1, fd);
    ASSERT_INT(VHOST_STATE_RUNNING, b->device.state);
    PASS();
}

TEST config_space_is_read_and_written_in_pieces(peer_bench *b)
{
    uint8_t bytes[600], from[5];
    for (int i = 0; i < 256; i++) {
        b->peer.config[i] = (uint8_t)(i ^ 0x5a);
    }
    ASSERT_OK(peer_stopped(b, 1));
    peer_forget(&b->peer);
    ASSERT_OK(vhost_device_get_config(&b->device, 0, bytes, sizeof bytes));
    ASSERT_UINT(1, b->peer.waits);
    ASSERT_UINT(3, peer_count(&b->peer, PEER_GET_CONFIG));
    ASSERT_MEM_EQ(b->peer.config, bytes, 256);
    ASSERT_OK(vhost_device_get_config(&b->device, 100, from, sizeof from));
    ASSERT_MEM_EQ(b->peer.config + 100, from, 5);
    ASSERT_OK(vhost_device_get_config(&b->device, 251, from, sizeof from));
    ASSERT_MEM_EQ(b->peer.config + 251, from, 5);
    peer_forget(&b->peer);
    ASSERT_OK(vhost_device_set_config(&b->device, 16, bytes, sizeof bytes));
    const peer_bytes *first = peer_find(&b->peer, PEER_SET_CONFIG, 0);
    ASSERT_UINT(3, peer_count(&b->peer, PEER_SET_CONFIG));
    ASSERT_U64(16, peer_number(first, 0, 4));
    ASSERT_U64(256, peer_number(first, 4, 4));
    ASSERT_U64(272, peer_number(first + 1, 0, 4));
    ASSERT_U64(528, peer_number(first + 2, 0, 4));
    ASSERT_U64(88, peer_number(first + 2, 4, 4));
    ASSERT_INT(-EINVAL, vhost_user_restore_config(&b->user, 0, bytes, 0));
    ASSERT_INT(-EINVAL, vhost_user_restore_config(&b->user, UINT32_MAX, bytes, 2));
    PASS();
}

/* It is sent when the driver accepted the feature, and at each start from then on. */
TEST the_mtu_is_sent_when_it_matters(peer_bench *b)
{
    ASSERT_OK(peer_stopped(b, 1));
    peer_forget(&b->peer);
    ASSERT_OK(vhost_user_set_mtu(&b->user, 1500));
    HEARD_NOTHING(b);
    ASSERT_OK(vhost_device_start(&b->device));
    ASSERT_UINT(0, peer_count(&b->peer, PEER_NET_SET_MTU));
    ASSERT_OK(vhost_device_stop(&b->device));
    ASSERT_OK(vhost_device_ack(&b->device, fixture_features(PEER_BIT(32) | PEER_BIT(3), 0)));
    ASSERT_OK(vhost_device_start(&b->device));
    ASSERT_UINT(1, peer_count(&b->peer, PEER_NET_SET_MTU));
    ASSERT_U64(1500, peer_number(peer_find(&b->peer, PEER_NET_SET_MTU, 0), 0, 8));
    PASS();
}

TEST a_log_fd_follows_each_log(peer_bench *b)
{
    ASSERT_OK(peer_running(b, 1));
    ASSERT_OK(vhost_user_set_log_fd(&b->user, 8800));
    peer_forget(&b->peer);
    ASSERT_OK(vhost_log_start(&b->f->vm));
    HEARD(b, "6 1 16 Q20010 Q0 +8000", "7 9 0 +8800", "2 9 8 Q144000000",
          "9 9 40 D0 D1 Q8000 Q8200 Q8100 Q8200");
    ASSERT_OK(vhost_log_stop(&b->f->vm));
    ASSERT_OK(vhost_user_set_log_fd(&b->user, -1));
    peer_forget(&b->peer);
    ASSERT_OK(vhost_log_start(&b->f->vm));
    ASSERT_UINT(0, peer_count(&b->peer, PEER_SET_LOG_FD));
    PASS();
}

TEST a_queue_without_kick_is_kicked_in_band(peer_bench *b)
{
    b->options.want = PEER_BIT(14);
    ASSERT_OK(peer_stopped(b, 2));
    b->queue[1].kick_fd = -1;
    ASSERT_OK(vhost_device_start(&b->device));
    ASSERT_UINT(1, peer_count(&b->peer, PEER_VRING_KICK));
    ASSERT_U64(1, peer_number(peer_find(&b->peer, PEER_VRING_KICK, 0), 0, 4));
    peer_forget(&b->peer);
    ASSERT_OK(vhost_user_kick(&b->user, 1));
    HEARD(b, "35 9 8 D1 D0");
    ASSERT_INT(-EINVAL, vhost_user_kick(&b->user, 2));
    PASS();
}

/* ---- what each needs ---- */

static int call_service(peer_bench *b, int service)
{
    uint8_t bytes[16] = {1};
    uint8_t state[16] = {0};
    int fd = -1, result = 0;
    switch (service) {
    case 0:
        return vhost_user_send_rarp(&b->user, bytes);
    case 1:
        return vhost_user_set_mtu(&b->user, 1500);
    case 2:
        return vhost_user_kick(&b->user, 0);
    case 3:
        return vhost_user_restore_config(&b->user, 0, bytes, 4);
    case 4:
        return vhost_user_create_crypto(&b->user, bytes, 16);
    case 5:
        return vhost_user_close_crypto(&b->user, 1);
    case 6:
        return vhost_user_get_object(&b->user, bytes, &fd);
    case 7:
        return vhost_user_postcopy_advise(&b->user, &fd);
    case 8:
        return vhost_user_set_skip_drain(&b->user, true);
    case 9:
        return vhost_user_check_state(&b->user);
    case 10:
        return vhost_user_move_state(&b->user, true, 8802, &result);
    case 11:
        return vhost_user_load_state(&b->user, NULL, NULL);
    case 12:
        return vhost_user_save_state(&b->user, NULL, NULL, 0);
    case 13:
        return vhost_device_get_config(&b->device, 0, state, sizeof state);
    default:
        return vhost_device_set_config(&b->device, 0, state, sizeof state);
    }
}

/* An operation of several messages is queued as a whole, or not at all: nothing is answered into
   memory that its caller has back. */
TEST what_does_not_fit_leaves_nothing_behind(peer_bench *b)
{
    static uint8_t bytes[8192];
    unsigned nth = 0;
    int code = -ENOMEM;
    ASSERT_OK(peer_stopped(b, 1));
    for (nth = 1; code == -ENOMEM; nth++) { /* memory is asked for before anything is sent */
        fault_arm(&b->f->fault, FAULT_ONCE, nth, 0);
        code = vhost_device_get_config(&b->device, 0, bytes, sizeof bytes);
        fault_disarm(&b->f->fault);
        if (code == -ENOMEM) {
            ASSERT_UINT(b->user.request_first, b->user.request_count);
            ASSERT_UINT(0, peer_count(&b->peer, PEER_GET_CONFIG));
        }
    }
    ASSERT(nth > 3);
    PASS();
}

TEST services_need_their_feature(peer_bench *b)
{
    static const int bits[] = {2, 4, 14, 9, 7, 7, 18, 8, 23, 19, 19, 19, 19, 9, 9};
    for (int i = 0; i < (int)(sizeof bits / sizeof bits[0]); i++) {
        b->peer.protocol &= ~PEER_BIT(bits[i]);
        b->options.want = UINT64_MAX;
        ASSERT_OK(peer_stopped(b, 1));
        peer_forget(&b->peer);
        ASSERT_INT(-ENOTSUP, call_service(b, i));
        HEARD_NOTHING(b);
        ASSERT_STR_EQ(vhost_why_text(VHOST_WHY_NOT_SUPPORTED),
                      vhost_why_text(b->user.last_error.why));
        ASSERT_OK(vhost_device_start(&b->device));
        CHECK_CALL(peer_renew(b));
    }
    PASS();
}

TEST services_need_a_device_that_is_there(peer_bench *b)
{
    b->options.want = UINT64_MAX;
    ASSERT_OK(peer_open(b));
    for (int i = 0; i < 13; i++) {
        ASSERT_INT(-EBUSY, call_service(b, i));
        ASSERT_STR_EQ(vhost_why_text(VHOST_WHY_STATE), vhost_why_text(b->user.last_error.why));
    }
    ASSERT_OK(peer_attach(b, 1));
    ASSERT_OK(vhost_device_start(&b->device));
    peer_forget(&b->peer);
    for (int i = 9; i < 13; i++) { /* with one that is stopped */
        ASSERT_INT(-EBUSY, call_service(b, i));
    }
    HEARD_NOTHING(b);
    peer_leave(&b->peer);
    ASSERT_INT(-ECONNRESET, vhost_user_process(&b->user));
    for (int i = 0; i < 13; i++) {
        ASSERT_INT(-EBUSY, call_service(b, i));
    }
    PASS();
}

TEST postcopy_goes_in_its_order(peer_bench *b)
{
    int fd;
    b->options.want = PEER_BIT(8);
    ASSERT_OK(peer_stopped(b, 1));
    peer_forget(&b->peer);
    ASSERT_INT(-EBUSY, vhost_user_postcopy_listen(&b->user));
    ASSERT_INT(-EBUSY, vhost_user_postcopy_end(&b->user));
    HEARD_NOTHING(b);
    ASSERT_OK(vhost_user_postcopy_advise(&b->user, &fd));
    ASSERT_INT(28, (int)lseek(fd, 0, SEEK_END));
    close(fd);
    ASSERT_INT(-EBUSY, vhost_user_postcopy_end(&b->user));
    ASSERT_OK(vhost_user_postcopy_listen(&b->user));
    ASSERT_OK(vhost_user_postcopy_end(&b->user));
    HEARD(b, "28 1 0", "29 9 0", "30 1 0");
    ASSERT_INT(-EBUSY, vhost_user_postcopy_end(&b->user));
    PASS();
}

TEST names_are_those_of_the_specification(peer_bench *b)
{
    (void)b;
    ASSERT_STR_EQ("GET_FEATURES", vhost_user_message_name(1));
    ASSERT_STR_EQ("GET_VRING_BASE_SKIP_DRAIN", vhost_user_message_name(45));
    ASSERT(vhost_user_message_name(4) == NULL); /* RESET_OWNER: never sent */
    ASSERT(vhost_user_message_name(0) == NULL);
    ASSERT(vhost_user_message_name(46) == NULL);
    for (unsigned bit = 0; bit < VHOST_USER_BIT_COUNT; bit++) {
        ASSERT(vhost_user_protocol_name(bit) != NULL);
    }
    ASSERT_STR_EQ("MQ", vhost_user_protocol_name(0));
    ASSERT_STR_EQ("GET_VRING_BASE_SKIP_DRAIN", vhost_user_protocol_name(23));
    ASSERT(vhost_user_protocol_name(24) == NULL);
    for (size_t i = 0; i < user_message_count; i++) {
        ASSERT(vhost_user_message_name(user_messages[i].id) != NULL);
    }
    PASS();
}

SUITE(user_messages_suite)
{
    RUN_USER(services_say_this);
    RUN_USER(a_crypto_session_is_answered_in_place);
    RUN_USER(keys_do_not_stay_anywhere);
    RUN_USER(a_shared_object_comes_as_an_fd);
    RUN_USER(config_space_is_read_and_written_in_pieces);
    RUN_USER(the_mtu_is_sent_when_it_matters);
    RUN_USER(a_log_fd_follows_each_log);
    RUN_USER(a_queue_without_kick_is_kicked_in_band);
    RUN_USER(what_does_not_fit_leaves_nothing_behind);
    RUN_USER(services_need_their_feature);
    RUN_USER(services_need_a_device_that_is_there);
    RUN_USER(postcopy_goes_in_its_order);
    RUN_USER(names_are_those_of_the_specification);
}
