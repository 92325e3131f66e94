/* vhost_user.h: every answer, in every way in which it can be wrong, late or missing. The
   connection is cut at once, the message is named, and nothing is left behind. */
#include "user_calls.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

typedef struct lie {
    peer_action action;
    uint64_t value;
    uint32_t at;
    int code;
    vhost_why why;
} lie;

static const char *last_words;

static enum greatest_test_res complain_of(const user_message *message, const lie *l,
                                          enum greatest_test_res result)
{
    if (result != GREATEST_TEST_RES_PASS) {
        fprintf(stderr, "%s: %s no. %u, lie %d with 0x%llx at %u\n", message->call->name,
                vhost_user_message_name(message->id), message->nth, (int)l->action,
                (unsigned long long)l->value, l->at);
        fprintf(stderr, "it says: %s\n", last_words);
    }
    return result;
}

/* Neither side has the connection, and the device is BROKEN, at the latest when it is looked at. */
static enum greatest_test_res check_cut(peer_bench *b)
{
    ASSERT_INT(-1, b->user.main.fd);
    ASSERT_INT(-1, b->user.channel.fd);
    ASSERT_UINT(0, b->user.main.fd_count);
    ASSERT_UINT(0, b->user.channel.fd_count);
    if (b->device.state != VHOST_STATE_CLOSED) {
        (void)vhost_user_process(&b->user);
        ASSERT_INT(VHOST_STATE_BROKEN, b->device.state);
        ASSERT_UINT(1, b->broken);
        ASSERT(vhost_device_start(&b->device) < 0);
        ASSERT_INT(-EBUSY, vhost_user_set_gpu_socket(&b->user, 0));
    }
    PASS();
}

static enum greatest_test_res check_lie(peer_bench *b, const user_message *message, const lie *l)
{
    int fds = fixture_open_fds();
    ASSERT_OK(user_arrange(b, message->call));
    uint64_t before = b->peer.now;
    peer_rule *rule = peer_add_rule(&b->peer, message->id, message->nth, l->action, l->value);
    rule->at = l->at;
    int code = message->call->act(b);
    ASSERT(rule->hit);
    ASSERT_INT(l->code, code);
    ASSERT_STR_EQ(vhost_why_text(l->why), vhost_why_text(b->user.last_error.why));
    /* A kernel may hand fds over with bytes before theirs; an end may show on the channel first. */
    if (l->why != VHOST_WHY_USER_FDS && l->action != PEER_CLOSE) {
        ASSERT(strstr(b->user.last_error.text, vhost_user_message_name(message->id)) != NULL);
    }
    if (l->why == VHOST_WHY_USER_TIMEOUT) {
        ASSERT_U64(before + 1000, b->peer.now);
    }
    CHECK_CALL(check_cut(b));
    CHECK_CALL(peer_renew(b));
    ASSERT_INT(fds, fixture_open_fds());
    PASS();
}

static enum greatest_test_res tell(peer_bench *b, const user_message *message, const lie *l)
{
    last_words = b->user.last_error.text;
    return complain_of(message, l, check_lie(b, message, l));
}

/* Tells one lie about all messages of some kinds. */
static enum greatest_test_res tell_of(peer_bench *b, unsigned kinds, const lie *l)
{
    for (size_t i = 0; i < user_message_count; i++) {
        if (kinds & 1u << user_messages[i].kind) {
            CHECK_CALL(tell(b, &user_messages[i], l));
        }
    }
    PASS();
}

#define KIND(name) (1u << USER_##name)
#define ALL        (~0u)
/* Those that may have few bytes, or many. */
#define LOOSE  (KIND(LOG) | KIND(ADVISE) | KIND(OBJECT))
#define NO_FDS (ALL & ~(KIND(ADVISE) | KIND(OBJECT) | KIND(RECORD) | KIND(STATE)))

TEST short_answers(peer_bench *b)
{
    static const lie short_by[] = {{PEER_SHORT, 1, 0, -EPROTO, VHOST_WHY_USER_SIZE},
                                   {PEER_SHORT, 8, 0, -EPROTO, VHOST_WHY_USER_SIZE}};
    CHECK_CALL(tell_of(b, ALL & ~LOOSE, &short_by[0]));
    return tell_of(b, ALL & ~LOOSE & ~KIND(CONFIG), &short_by[1]);
}

TEST long_answers(peer_bench *b)
{
    static const lie long_by[] = {{PEER_LONG, 1, 0, -EPROTO, VHOST_WHY_USER_SIZE},
                                  {PEER_LONG, 17, 0, -EPROTO, VHOST_WHY_USER_SIZE},
                                  {PEER_LONG, 2048, 0, -EPROTO, VHOST_WHY_USER_SIZE}};
    CHECK_CALL(tell_of(b, ALL & ~LOOSE, &long_by[0]));
    CHECK_CALL(tell_of(b, ALL, &long_by[1]));
    return tell_of(b, ALL, &long_by[2]);
}

TEST answers_that_say_a_wrong_size(peer_bench *b)
{
    static const lie sizes[] = {{PEER_SIZE, 0xffffffff, 0, -EPROTO, VHOST_WHY_USER_SIZE},
                                {PEER_SIZE, 0xfffffff4, 0, -EPROTO, VHOST_WHY_USER_SIZE},
                                {PEER_SIZE, 0x80000000, 0, -EPROTO, VHOST_WHY_USER_SIZE},
                                {PEER_SIZE, 4097, 0, -EPROTO, VHOST_WHY_USER_SIZE}};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        CHECK_CALL(tell_of(b, ALL, &sizes[i]));
    }
    PASS();
}

TEST answers_to_other_messages(peer_bench *b)
{
    static const lie other = {PEER_ID, 100, 0, -EPROTO, VHOST_WHY_USER_HEADER};
    return tell_of(b, ALL, &other);
}

TEST answers_with_wrong_flags(peer_bench *b)
{
    static const uint64_t flags[] = {
        0x1 /* no answer */, 0x9, 0x4 /* of version 0 */, 0x6, 0x7, 0x15 /* a bit too many */,
        0x80000005,          0};
    for (size_t i = 0; i < sizeof flags / sizeof flags[0]; i++) {
        const lie l = {PEER_FLAGS, flags[i], 0, -EPROTO, VHOST_WHY_USER_HEADER};
        CHECK_CALL(tell_of(b, ALL, &l));
    }
    PASS();
}

TEST answers_for_another_queue_or_place(peer_bench *b)
{
    static const lie index = {PEER_WORD, 1, 0, -EPROTO, VHOST_WHY_USER_VALUE};
    static const lie far = {PEER_WORD, 0x10000, 0, -EPROTO, VHOST_WHY_USER_VALUE};
    static const lie size = {PEER_WORD, 1, 4, -EPROTO, VHOST_WHY_USER_VALUE};
    CHECK_CALL(tell_of(b, KIND(BASE) | KIND(CONFIG), &index));
    CHECK_CALL(tell_of(b, KIND(BASE) | KIND(CONFIG), &far));
    return tell_of(b, KIND(CONFIG), &size);
}

/* The words of a number of 64 bits. */
#define LOW(at)  ((at) + (FIXTURE_FOREIGN ? 0 : 4))
#define HIGH(at) ((at) + (FIXTURE_FOREIGN ? 4 : 0))

TEST records_that_cannot_be(peer_bench *b)
{
    static const lie lies[] = {
        {PEER_WORD, 1, 16, -EPROTO, VHOST_WHY_USER_VALUE},       /* a queue more */
        {PEER_WORD, 0x10000, 16, -EPROTO, VHOST_WHY_USER_VALUE}, /* another size of them */
        {PEER_WORD, 1, LOW(0), -EPROTO, VHOST_WHY_USER_VALUE},   /* a byte more than there is */
        {PEER_WORD, 1, LOW(8), -EPROTO, VHOST_WHY_USER_VALUE},   /* begins a byte later */
        {PEER_WORD, 0x7fffffff, HIGH(0), -EPROTO, VHOST_WHY_USER_VALUE}, /* is huge */
        {PEER_WORD, 0xffffffff, HIGH(0), -EPROTO, VHOST_WHY_USER_VALUE}, /* and wraps */
        {PEER_WORD, 0x7fffffff, HIGH(8), -EPROTO, VHOST_WHY_USER_VALUE}, /* far away */
        {PEER_WORD, 0xffffffff, HIGH(8), -EPROTO, VHOST_WHY_USER_VALUE}};
    for (size_t i = 0; i < sizeof lies / sizeof lies[0]; i++) {
        CHECK_CALL(tell_of(b, KIND(RECORD), &lies[i]));
    }
    PASS();
}

TEST fds_that_are_too_many(peer_bench *b)
{
    static const lie one = {PEER_MORE_FDS, 1, 0, -EPROTO, VHOST_WHY_USER_FDS};
    static const lie two = {PEER_MORE_FDS, 2, 0, -EPROTO, VHOST_WHY_USER_FDS};
    static const lie eight = {PEER_MORE_FDS, 8, 0, -EPROTO, VHOST_WHY_USER_FDS};
    static const lie nine = {PEER_MORE_FDS, 9, 0, -EPROTO, VHOST_WHY_USER_FDS};
    CHECK_CALL(tell_of(b, ALL & ~KIND(STATE), &one));
    CHECK_CALL(tell_of(b, ALL, &two));
    CHECK_CALL(tell_of(b, ALL, &eight));
    return tell_of(b, ALL, &nine);
}

TEST fds_that_are_missing(peer_bench *b)
{
    static const lie none = {PEER_NO_FDS, 0, 0, -EPROTO, VHOST_WHY_USER_FDS};
    return tell_of(b, KIND(RECORD), &none);
}

TEST no_userfaultfd_is_a_refusal(peer_bench *b)
{
    int fd;
    b->options.want = PEER_BIT(8);
    ASSERT_OK(peer_stopped(b, 1));
    peer_add_rule(&b->peer, PEER_POSTCOPY_ADVISE, 1, PEER_NO_FDS, 0);
    ASSERT_LOST(b, vhost_user_postcopy_advise(&b->user, &fd), -EIO, VHOST_WHY_USER_FDS);
    ASSERT_INT(-1, fd);
    ASSERT_INT(-EBUSY, vhost_user_postcopy_listen(&b->user));
    ASSERT_OK(vhost_user_process(&b->user));
    PASS();
}

/* Whatever else shows that it died: the channel, too, has an end then. */
TEST the_message_in_which_it_died_is_named(peer_bench *b)
{
    for (size_t i = 0; i < user_message_count; i++) {
        const user_message *message = &user_messages[i];
        const lie l = {PEER_CLOSE, 0, 0, -ECONNRESET, VHOST_WHY_USER_EOF};
        ASSERT_OK(user_arrange(b, message->call));
        peer_add_rule(&b->peer, message->id, message->nth, PEER_CLOSE, 0);
        ASSERT_INT(-ECONNRESET, message->call->act(b));
        const char *name = vhost_user_message_name(message->id);
        last_words = b->user.last_error.text;
        CHECK_CALL(complain_of(message, &l,
                               strstr(last_words, name) ? GREATEST_TEST_RES_PASS
                                                        : GREATEST_TEST_RES_FAIL));
        CHECK_CALL(peer_renew(b));
    }
    PASS();
}

/* The back-end dies before, in the middle of, and at the end of each answer. */
TEST the_end_at_each_byte(peer_bench *b)
{
    for (size_t i = 0; i < user_message_count; i++) {
        uint64_t size = user_messages[i].kind == USER_WINDOWS ? 2068 : 20;
        uint64_t step = user_messages[i].kind == USER_WINDOWS ? 411 : 1;
        size = user_messages[i].kind == USER_LOG || user_messages[i].kind == USER_ADVISE ||
                       user_messages[i].kind == USER_OBJECT
                   ? 12
                   : size;
        for (uint64_t at = 0; at < size; at += step) {
            const lie l = {PEER_CLOSE, at, 0, -ECONNRESET, VHOST_WHY_USER_EOF};
            CHECK_CALL(tell(b, &user_messages[i], &l));
        }
    }
    PASS();
}

TEST answers_that_never_come(peer_bench *b)
{
    static const lie never = {PEER_STOP, 0, 0, -ETIMEDOUT, VHOST_WHY_USER_TIMEOUT};
    return tell_of(b, ALL, &never);
}

/* A byte at a time is as good as all at once. */
TEST answers_that_come_byte_by_byte(peer_bench *b)
{
    for (size_t i = 0; i < user_call_count; i++) {
        b->peer.receive_most = 1;
        b->peer.send_most = 1;
        b->peer.again_every = 3;
        b->peer.interrupt_every = 5;
        b->peer.too_many = 2;
        int code = user_arrange(b, &user_calls[i]);
        if (code == 0) {
            code = user_calls[i].act(b);
        }
        if (code != 0) {
            fprintf(stderr, "%s: %s\n", user_calls[i].name, b->user.last_error.text);
        }
        ASSERT_OK(code);
        CHECK_CALL(peer_renew(b));
    }
    PASS();
}

TEST an_answer_twice_is_one_too_many(peer_bench *b)
{
    for (size_t i = 0; i < user_message_count; i++) {
        const user_message *message = &user_messages[i];
        const lie l = {PEER_TWICE, 0, 0, 0, VHOST_WHY_NONE};
        if (message->kind == USER_ADVISE || message->kind == USER_OBJECT ||
            message->kind == USER_RECORD || message->kind == USER_STATE) {
            continue; /* an fd comes only once */
        }
        CHECK_CALL(complain_of(message, &l,
                               user_arrange(b, message->call) == 0 ? GREATEST_TEST_RES_PASS
                                                                   : GREATEST_TEST_RES_FAIL));
        peer_add_rule(&b->peer, message->id, message->nth, PEER_TWICE, 0);
        (void)message->call->act(b);
        (void)vhost_user_process(&b->user);
        vhost_why why = b->user.last_error.why;
        last_words = b->user.last_error.text;
        CHECK_CALL(complain_of(message, &l, check_cut(b)));
        ASSERT(why == VHOST_WHY_USER_HEADER || why == VHOST_WHY_USER_UNASKED);
        CHECK_CALL(peer_renew(b));
    }
    PASS();
}

TEST bytes_that_nobody_asked_for(peer_bench *b)
{
    ASSERT_OK(peer_running(b, 1));
    peer_say(&b->peer, "1 5 8 Q0");
    ASSERT_LOST(b, vhost_user_process(&b->user), -EPROTO, VHOST_WHY_USER_UNASKED);
    CHECK_CALL(check_cut(b));
    PASS();
}

TEST fds_that_nobody_asked_for_are_closed(peer_bench *b)
{
    ASSERT_OK(peer_running(b, 1));
    peer_say(&b->peer, "1 5 8 Q0 +1 +2 +3 +4 +5 +6 +7 +8 +9 +10 +11");
    ASSERT(vhost_user_process(&b->user) < 0);
    CHECK_CALL(check_cut(b));
    PASS();
}

TEST the_end_between_calls_is_found_by_process(peer_bench *b)
{
    ASSERT_OK(peer_running(b, 1));
    peer_leave(&b->peer);
    ASSERT_LOST(b, vhost_user_process(&b->user), -ECONNRESET, VHOST_WHY_USER_EOF);
    CHECK_CALL(check_cut(b));
    PASS();
}

TEST a_position_that_cannot_be_is_a_guess(peer_bench *b)
{
    ASSERT_OK(peer_running(b, 1));
    b->peer.base[0] = 0x10000;
    fixture_put_available(&b->f->vm, &b->queue[0], 1);
    ASSERT_OK(vhost_device_stop(&b->device));
    ASSERT_INT(VHOST_POSITION_GUESSED, b->queue[0].position.state);
    PASS();
}

SUITE(user_replies_suite)
{
    RUN_USER(short_answers);
    RUN_USER(long_answers);
    RUN_USER(answers_that_say_a_wrong_size);
    RUN_USER(answers_to_other_messages);
    RUN_USER(answers_with_wrong_flags);
    RUN_USER(answers_for_another_queue_or_place);
    RUN_USER(records_that_cannot_be);
    RUN_USER_NATIVE(fds_that_are_too_many);
    RUN_USER(fds_that_are_missing);
    RUN_USER(no_userfaultfd_is_a_refusal);
    RUN_USER(the_message_in_which_it_died_is_named);
    RUN_USER(the_end_at_each_byte);
    RUN_USER(answers_that_never_come);
    RUN_USER(answers_that_come_byte_by_byte);
    RUN_USER(an_answer_twice_is_one_too_many);
    RUN_USER(bytes_that_nobody_asked_for);
    RUN_USER_NATIVE(fds_that_nobody_asked_for_are_closed);
    RUN_USER(the_end_between_calls_is_found_by_process);
    RUN_USER(a_position_that_cannot_be_is_a_guess);
}
