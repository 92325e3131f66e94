/* vhost_user.h: postcopy from its beginning to its end, and what becomes of it if the device is
   stopped, reset, given other memory, or lost on the way. */
#include "user_calls.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PAGEFAULT PEER_BIT(8)
#define SLOTS     PEER_BIT(15)
#define BASE      UINT64_C(0x7f0000000000)

/* ---- where the back-ends say that they have memory ---- */

typedef struct place {
    const vhost_user *of;
    uint64_t gpa, size, base;
} place;

static place places[16];
static unsigned told;

static int on_region(vhost_user *self, uint64_t gpa, uint64_t size, uint64_t base, void *user)
{
    (void)user;
    if (told < 16) {
        places[told] = (place){self, gpa, size, base};
    }
    told++;
    return 0;
}

static bool is_place(unsigned index, const vhost_user *of, uint64_t gpa, uint64_t size)
{
    const place *p = &places[index];
    return index < told && p->of == of && p->gpa == gpa && p->size == size && p->base == BASE + gpa;
}

static int refuse_region(vhost_user *self, uint64_t gpa, uint64_t size, uint64_t base, void *user)
{
    return on_region(self, gpa, size, base, user) < 0 || told < 2 ? 0 : -ENOSPC;
}

/* ---- up to the moment in which it listens ---- */

static void want_postcopy(peer_bench *b, uint64_t avoid)
{
    told = 0;
    b->options.want |= PAGEFAULT;
    b->options.avoid = avoid | PEER_BIT(12); /* no record of requests in flight */
    b->options.on_postcopy_region = on_region;
    b->peer.postcopy_base = BASE;
}

static int listen_now(peer_bench *b)
{
    int fd = -1, result = vhost_user_postcopy_advise(&b->user, &fd);
    close(fd);
    return result < 0 ? result : vhost_user_postcopy_listen(&b->user);
}

static int listening(peer_bench *b, uint64_t avoid)
{
    want_postcopy(b, avoid);
    int result = peer_stopped(b, 1);
    result = result < 0 ? result : listen_now(b);
    peer_forget(&b->peer);
    return result;
}

static int running(peer_bench *b, uint64_t avoid)
{
    int result = listening(b, avoid);
    result = result < 0 ? result : vhost_device_start(&b->device);
    peer_forget(&b->peer);
    return result;
}

/* ---- all goes well ---- */

/* Each region is answered, and that is acknowledged, before there is anything that could be
   touched. What was told stays told: over a stop, and after the end. */
TEST a_whole_life_with_slots_says_this(peer_bench *b)
{
    int fd;
    want_postcopy(b, 0);
    ASSERT_OK(peer_stopped(b, 1));
    peer_forget(&b->peer);
    ASSERT_OK(vhost_user_postcopy_advise(&b->user, &fd));
    ASSERT_OK(vhost_user_postcopy_listen(&b->user));
    HEARD(b, "28 1 0", "29 9 0");
    ASSERT_UINT(0, told);
    ASSERT_OK(vhost_device_start(&b->device));
    HEARD(b, "2 9 8 Q140000000", "39 9 8 Qb", "40 1 0", "37 1 40 Q0 Q0 Q80000 Q0 Q0 +9000",
          "37 1 8 Q0", "37 1 40 Q0 Q100000000 Q80000 Q100000000 Q80000 +9000", "37 1 8 Q0",
          "13 9 8 Q0 +6000", "14 9 8 Q0 +20003", "8 9 8 D0 D10", "10 9 8 D0 D0",
          "9 9 40 D0 D0 Q8000 Q8200 Q8100 Q8200", "18 9 8 D0 D1", "12 9 8 Q0 +5000", "39 9 8 Qf");
    ASSERT_UINT(2, told);
    ASSERT(is_place(0, &b->user, 0, 0x80000));
    ASSERT(is_place(1, &b->user, UINT64_C(0x100000000), 0x80000));
    ASSERT_OK(vhost_device_stop(&b->device));
    HEARD(b, "11 1 8 D0 D0");
    ASSERT_OK(vhost_device_start(&b->device));
    ASSERT_UINT(0, peer_count(&b->peer, PEER_ADD_MEM_REG));
    peer_forget(&b->peer);
    ASSERT_OK(user_change_map(b, 3));
    HEARD(b, "37 1 40 Q0 Q200000000 Q1000 Q200000000 Q0 +9000", "37 1 8 Q0", "1 1 0");
    ASSERT_UINT(3, told);
    ASSERT(is_place(2, &b->user, UINT64_C(0x200000000), 0x1000));
    ASSERT_OK(user_change_map(b, 2));
    HEARD(b, "38 9 40 Q0 Q200000000 Q1000 Q200000000 Q0");
    ASSERT_OK(vhost_user_postcopy_end(&b->user));
    HEARD(b, "30 1 0");
    ASSERT_OK(user_change_map(b, 3));
    HEARD(b, "37 9 40 Q0 Q200000000 Q1000 Q200000000 Q0 +9000");
    ASSERT_UINT(3, told);
    ASSERT_OK(vhost_device_stop(&b->device));
    close(fd);
    PASS();
}

TEST a_whole_life_with_tables_says_this(peer_bench *b)
{
    ASSERT_OK(listening(b, SLOTS));
    ASSERT_OK(vhost_device_start(&b->device));
    HEARD(b, "2 9 8 Q140000000", "39 9 8 Qb", "40 1 0",
          "5 1 72 D2 D0 Q0 Q80000 Q0 Q0 Q100000000 Q80000 Q100000000 Q80000 +9000 +9000",
          "5 1 8 Q0", "13 9 8 Q0 +6000", "14 9 8 Q0 +20003", "8 9 8 D0 D10", "10 9 8 D0 D0",
          "9 9 40 D0 D0 Q8000 Q8200 Q8100 Q8200", "18 9 8 D0 D1", "12 9 8 Q0 +5000", "39 9 8 Qf");
    ASSERT_UINT(2, told);
    ASSERT_OK(user_change_map(b, 3)); /* a table is new as a whole */
    ASSERT_UINT(2, peer_count(&b->peer, PEER_SET_MEM_TABLE));
    ASSERT_UINT(5, told);
    ASSERT(is_place(2, &b->user, 0, 0x80000));
    ASSERT(is_place(3, &b->user, UINT64_C(0x100000000), 0x80000));
    ASSERT(is_place(4, &b->user, UINT64_C(0x200000000), 0x1000));
    ASSERT_OK(vhost_user_postcopy_end(&b->user));
    ASSERT_OK(user_change_map(b, 2));
    ASSERT_UINT(5, told);
    PASS();
}

/* Each answer is waited for, and so is the end of each call: no more than that. */
TEST a_start_waits_once_for_each_region(peer_bench *b)
{
    ASSERT_OK(listening(b, 0));
    ASSERT_OK(vhost_device_start(&b->device));
    ASSERT_UINT(3, b->peer.waits);
    CHECK_CALL(peer_renew(b));
    ASSERT_OK(listening(b, SLOTS));
    ASSERT_OK(vhost_device_start(&b->device));
    ASSERT_UINT(2, b->peer.waits);
    PASS();
}

/* What it says is an address of its own, whatever ours are. */
TEST a_bias_is_ours_alone(peer_bench *b)
{
    b->options.address_bias = UINT64_C(0x550000000000);
    ASSERT_OK(listening(b, 0));
    ASSERT_OK(vhost_device_start(&b->device));
    ASSERT_UINT(2, told);
    ASSERT(is_place(0, &b->user, 0, 0x80000));
    ASSERT(is_place(1, &b->user, UINT64_C(0x100000000), 0x80000));
    PASS();
}

/* Its regions are longer. */
TEST under_xen_it_is_told_as_well(peer_bench *b)
{
    static const uint64_t avoid[] = {0, SLOTS};
    for (int i = 0; i < 2; i++) {
        b->options.want = PEER_BIT(17);
        ASSERT_OK(listening(b, avoid[i]));
        ASSERT(b->user.protocol & PEER_BIT(17));
        ASSERT_OK(vhost_device_start(&b->device));
        ASSERT_UINT(2, told);
        ASSERT(is_place(0, &b->user, 0, 0x80000));
        ASSERT(is_place(1, &b->user, UINT64_C(0x100000000), 0x80000));
        CHECK_CALL(peer_renew(b));
    }
    PASS();
}

TEST nobody_needs_to_be_told(peer_bench *b)
{
    want_postcopy(b, 0);
    b->options.on_postcopy_region = NULL;
    ASSERT_OK(peer_stopped(b, 1));
    ASSERT_OK(listen_now(b));
    ASSERT_OK(vhost_device_start(&b->device));
    ASSERT_OK(vhost_user_postcopy_end(&b->user));
    PASS();
}

/* ---- whose the userfaultfd is ---- */

static bool is_open(int fd)
{
    return fcntl(fd, F_GETFD) >= 0;
}

/* It outlives whatever becomes of the device. */
TEST the_userfaultfd_is_the_callers(peer_bench *b)
{
    int fd;
    want_postcopy(b, 0);
    ASSERT_OK(peer_stopped(b, 1));
    ASSERT_OK(vhost_user_postcopy_advise(&b->user, &fd));
    ASSERT_INT(FD_CLOEXEC, fcntl(fd, F_GETFD));
    ASSERT_OK(vhost_user_postcopy_listen(&b->user));
    ASSERT_OK(vhost_device_start(&b->device));
    ASSERT_OK(vhost_user_postcopy_end(&b->user));
    ASSERT(is_open(fd));
    peer_leave(&b->peer);
    ASSERT_INT(-ECONNRESET, vhost_user_process(&b->user));
    ASSERT(is_open(fd));
    vhost_device_cleanup(&b->device);
    vhost_user_close(&b->user);
    ASSERT(is_open(fd));
    close(fd);
    PASS();
}

/* Whoever asks again has two. */
TEST it_can_be_advised_again(peer_bench *b)
{
    int first, second;
    want_postcopy(b, 0);
    ASSERT_OK(peer_stopped(b, 1));
    ASSERT_OK(vhost_user_postcopy_advise(&b->user, &first));
    ASSERT_OK(vhost_user_postcopy_advise(&b->user, &second));
    ASSERT(first != second && is_open(first) && is_open(second));
    ASSERT_OK(vhost_user_postcopy_listen(&b->user));
    close(first);
    close(second);
    PASS();
}

/* ---- out of order ---- */

TEST it_is_advised_and_listens_before_it_has_memory(peer_bench *b)
{
    int fd = -1;
    ASSERT_OK(running(b, 0));
    ASSERT_INT(-EBUSY, vhost_user_postcopy_advise(&b->user, &fd));
    ASSERT_INT(-1, fd);
    ASSERT_OK(vhost_user_postcopy_end(&b->user));
    peer_forget(&b->peer);
    ASSERT_OK(vhost_user_postcopy_advise(&b->user, &fd));
    close(fd);
    HEARD(b, "28 1 0");
    ASSERT_INT(-EBUSY, vhost_user_postcopy_listen(&b->user));
    HEARD_NOTHING(b);
    PASS();
}

/* ---- a refusal ---- */

static int refused(peer_bench *b, uint32_t id, int (*call)(vhost_user *self))
{
    peer_add_rule(&b->peer, id, 0, PEER_REFUSE, 1);
    int result = call(&b->user);
    peer_obey(&b->peer);
    return result;
}

/* Nothing has changed, and it may be tried again. */
TEST a_refusal_changes_nothing(peer_bench *b)
{
    int fd;
    want_postcopy(b, 0);
    ASSERT_OK(peer_stopped(b, 1));
    ASSERT_OK(vhost_user_postcopy_advise(&b->user, &fd));
    close(fd);
    ASSERT_INT(-EIO, refused(b, PEER_POSTCOPY_LISTEN, vhost_user_postcopy_listen));
    ASSERT(strstr(b->user.last_error.text, "POSTCOPY_LISTEN") != NULL);
    ASSERT_INT(-EBUSY, vhost_user_postcopy_end(&b->user));
    b->peer.listening = false;
    ASSERT_OK(vhost_user_postcopy_listen(&b->user));
    ASSERT_OK(vhost_device_start(&b->device));
    ASSERT_INT(-EIO, refused(b, PEER_POSTCOPY_END, vhost_user_postcopy_end));
    ASSERT(strstr(b->user.last_error.text, "POSTCOPY_END") != NULL);
    b->peer.listening = true;
    ASSERT_OK(user_change_map(b, 3));
    ASSERT_UINT(3, told);
    ASSERT_OK(vhost_user_postcopy_end(&b->user));
    ASSERT_INT(VHOST_STATE_RUNNING, b->device.state);
    ASSERT_UINT(0, b->broken);
    PASS();
}

/* ---- lies about a region that is not the first ---- */

typedef struct lie {
    peer_action action;
    uint64_t value;
    uint32_t at; /* byte of the answer */
    int code;
    vhost_why why;
} lie;

static const lie lies[] = {
    {PEER_SILENT, 0, 0, -ETIMEDOUT, VHOST_WHY_USER_TIMEOUT},
    {PEER_STOP, 0, 0, -ETIMEDOUT, VHOST_WHY_USER_TIMEOUT},
    {PEER_CLOSE, 0, 0, -ECONNRESET, VHOST_WHY_USER_EOF},
    {PEER_CLOSE, 30, 0, -ECONNRESET, VHOST_WHY_USER_EOF},
    {PEER_SHORT, 8, 0, -EPROTO, VHOST_WHY_USER_SIZE},
    {PEER_LONG, 32, 0, -EPROTO, VHOST_WHY_USER_SIZE},
    {PEER_SIZE, 4097, 0, -EPROTO, VHOST_WHY_USER_SIZE},
    {PEER_ID, 1, 0, -EPROTO, VHOST_WHY_USER_HEADER},
    {PEER_FLAGS, 1, 0, -EPROTO, VHOST_WHY_USER_HEADER},
    {PEER_MORE_FDS, 1, 0, -EPROTO, VHOST_WHY_USER_FDS},
    {PEER_REFUSE, 1, 0, -EPROTO, VHOST_WHY_USER_SIZE}, /* an answer to something else */
    {PEER_WORD, 0x1000, 8, -EPROTO, VHOST_WHY_USER_VALUE},
    {PEER_WORD, 1, 12, -EPROTO, VHOST_WHY_USER_VALUE},
    {PEER_WORD, 0x1000, 16, -EPROTO, VHOST_WHY_USER_VALUE},
};

static enum greatest_test_res name_lie(const peer_bench *b, size_t index,
                                       enum greatest_test_res result)
{
    if (result != GREATEST_TEST_RES_PASS) {
        fprintf(stderr, "lie %u: %s\n", (unsigned)index, b->user.last_error.text);
    }
    return result;
}

static void tell_lie(peer_bench *b, unsigned nth, const lie *l)
{
    peer_add_rule(&b->peer, PEER_ADD_MEM_REG, nth, l->action, l->value)->at = l->at;
}

static enum greatest_test_res is_cut_off(const peer_bench *b, const lie *l)
{
    ASSERT_STR_EQ(vhost_why_text(l->why), vhost_why_text(b->user.last_error.why));
    ASSERT(strstr(b->user.last_error.text, "ADD_MEM_REG") != NULL);
    ASSERT_INT(VHOST_STATE_BROKEN, b->device.state);
    ASSERT_INT(l->code, b->user.last_error.code);
    ASSERT_UINT(1, b->broken);
    ASSERT_INT(-1, b->user.main.fd);
    ASSERT_INT(-1, b->user.channel.fd);
    PASS();
}

/* As if it had the memory where we say that we have it: it has not said anything. */
TEST an_echo_is_no_place(peer_bench *b)
{
    static const uint64_t avoid[] = {0, SLOTS};
    static const char *const names[] = {"ADD_MEM_REG", "SET_MEM_TABLE"};
    for (int i = 0; i < 2; i++) {
        ASSERT_OK(listening(b, avoid[i]));
        b->peer.postcopy_base = 0;
        ASSERT_LOST(b, vhost_device_start(&b->device), -EPROTO, VHOST_WHY_USER_VALUE);
        ASSERT(strstr(b->user.last_error.text, names[i]) != NULL);
        ASSERT_UINT(0, told);
        CHECK_CALL(peer_renew(b));
    }
    PASS();
}

static enum greatest_test_res start_with_lie(peer_bench *b, const lie *l)
{
    ASSERT_OK(listening(b, 0));
    tell_lie(b, 3, l); /* after a region, and its acknowledgement */
    ASSERT_INT(l->code, vhost_device_start(&b->device));
    CHECK_CALL(is_cut_off(b, l));
    ASSERT_UINT(1, told);
    PASS();
}

static enum greatest_test_res commit_with_lie(peer_bench *b, const lie *l)
{
    ASSERT_OK(running(b, 0));
    tell_lie(b, 1, l);
    ASSERT_OK(user_change_map(b, 3)); /* it succeeds without the device */
    CHECK_CALL(is_cut_off(b, l));
    ASSERT_UINT(2, told);
    PASS();
}

TEST lies_about_the_second_region(peer_bench *b)
{
    for (size_t i = 0; i < sizeof lies / sizeof lies[0]; i++) {
        CHECK_CALL(name_lie(b, i, start_with_lie(b, &lies[i])));
        CHECK_CALL(peer_renew(b));
    }
    PASS();
}

TEST lies_about_a_region_that_comes_later(peer_bench *b)
{
    for (size_t i = 0; i < sizeof lies / sizeof lies[0]; i++) {
        CHECK_CALL(name_lie(b, i, commit_with_lie(b, &lies[i])));
        CHECK_CALL(peer_renew(b));
    }
    PASS();
}

/* ---- reset, and death ---- */

/* A reset is one of the device, and not of its memory. */
TEST a_reset_leaves_it_listening(peer_bench *b)
{
    ASSERT_OK(running(b, 0));
    ASSERT_OK(vhost_device_stop(&b->device));
    peer_forget(&b->peer);
    ASSERT_OK(vhost_device_reset(&b->device));
    HEARD(b, "34 9 0");
    peer_fill(b);
    ASSERT_OK(vhost_device_ack(&b->device, b->accepted));
    ASSERT_OK(vhost_device_start(&b->device));
    ASSERT_UINT(0, peer_count(&b->peer, PEER_ADD_MEM_REG));
    ASSERT_UINT(2, told);
    ASSERT_OK(user_change_map(b, 3));
    ASSERT_UINT(3, told);
    ASSERT_OK(vhost_user_postcopy_end(&b->user));
    PASS();
}

static int lost_by_path(peer_bench *b)
{
    want_postcopy(b, 0);
    b->options.retry_ms = 10;
    b->accepted = fixture_features(PEER_BIT(32) | PEER_BIT(35), 0); /* positions stay certain */
    int result = vhost_user_connect(&b->user, "/somewhere", &b->options);
    result = result < 0 ? result : peer_attach(b, 1);
    result = result < 0 ? result : listen_now(b);
    result = result < 0 ? result : vhost_device_start(&b->device);
    peer_leave(&b->peer);
    b->peer.listening = false;
    result = result < 0 ? result : vhost_user_process(&b->user);
    peer_forget(&b->peer);
    return result;
}

static int try_again(peer_bench *b)
{
    b->peer.now += 10;
    return vhost_user_process(&b->user);
}

/* Whoever is connected next would see zeros where pages have yet to come. */
TEST another_connection_gets_no_memory_before_the_end(peer_bench *b)
{
    ASSERT_OK(lost_by_path(b));
    for (int i = 0; i < 3; i++) {
        ASSERT_OK(try_again(b));
        ASSERT_INT(VHOST_STATE_BROKEN, b->device.state);
        ASSERT_STR_EQ(vhost_why_text(VHOST_WHY_STATE), vhost_why_text(b->user.last_error.why));
        ASSERT(strstr(b->user.last_error.text, "memory is arriving") != NULL);
    }
    ASSERT_UINT(4, b->peer.connections);
    ASSERT_UINT(0, peer_count(&b->peer, PEER_ADD_MEM_REG));
    peer_forget(&b->peer);
    ASSERT_OK(vhost_user_postcopy_end(&b->user));
    ASSERT_INT(-EBUSY, vhost_user_postcopy_end(&b->user));
    HEARD_NOTHING(b);
    ASSERT_INT(1, try_again(b));
    ASSERT_INT(VHOST_STATE_RUNNING, b->device.state);
    ASSERT_UINT(2, peer_count(&b->peer, PEER_ADD_MEM_REG));
    ASSERT_UINT(8 + 1, peer_flags(peer_find(&b->peer, PEER_ADD_MEM_REG, 0))); /* as usual */
    ASSERT_UINT(2, told);
    PASS();
}

/* It is no better off than one that is tried again. */
TEST to_recover_is_refused_as_well(peer_bench *b)
{
    ASSERT_OK(lost_by_path(b));
    ASSERT_INT(-EBUSY, vhost_device_recover(&b->device));
    ASSERT_INT(VHOST_STATE_BROKEN, b->device.state);
    ASSERT_UINT(0, peer_count(&b->peer, PEER_ADD_MEM_REG));
    ASSERT_OK(vhost_user_postcopy_end(&b->user));
    ASSERT_OK(vhost_device_recover(&b->device));
    ASSERT_INT(VHOST_STATE_RUNNING, b->device.state);
    PASS();
}

TEST a_broken_device_is_neither_advised_nor_listens(peer_bench *b)
{
    int fd;
    ASSERT_OK(running(b, 0));
    peer_leave(&b->peer);
    ASSERT_INT(-ECONNRESET, vhost_user_process(&b->user));
    ASSERT_INT(-EBUSY, vhost_user_postcopy_advise(&b->user, &fd));
    ASSERT_INT(-1, fd);
    ASSERT_INT(-EBUSY, vhost_user_postcopy_listen(&b->user));
    PASS();
}

/* Another connection hears all of it again, and says where the memory is now. */
TEST with_another_connection_it_begins_anew(peer_bench *b)
{
    ASSERT_OK(running(b, 0));
    peer_leave(&b->peer);
    b->peer.listening = false;
    ASSERT_INT(-ECONNRESET, vhost_user_process(&b->user));
    vhost_user_reopen(&b->user, peer_connect(&b->peer));
    ASSERT_OK(vhost_device_reset(&b->device));
    ASSERT_INT(VHOST_STATE_STOPPED, b->device.state);
    ASSERT_INT(-EBUSY, vhost_user_postcopy_listen(&b->user));
    told = 0;
    peer_fill(b);
    ASSERT_OK(vhost_device_ack(&b->device, b->accepted));
    ASSERT_INT(-EBUSY, vhost_device_start(&b->device));
    ASSERT_INT(VHOST_STATE_STOPPED, b->device.state);
    ASSERT_OK(listen_now(b));
    ASSERT_OK(vhost_device_start(&b->device));
    ASSERT_UINT(2, told);
    ASSERT(is_place(0, &b->user, 0, 0x80000));
    ASSERT(is_place(1, &b->user, UINT64_C(0x100000000), 0x80000));
    ASSERT_OK(vhost_user_postcopy_end(&b->user));
    PASS();
}

/* ---- two devices ---- */

static peer_bench second;

static int open_second(const peer_bench *b)
{
    second = *b; /* nothing is open yet */
    second.options.user = second.device_options.user = &second;
    want_postcopy(&second, 0);
    second.peer.postcopy_base = 2 * BASE;
    int result = peer_stopped(&second, 1);
    return result < 0 ? result : listen_now(&second);
}

static void close_second(void)
{
    vhost_device_cleanup(&second.device);
    vhost_user_close(&second.user);
    peer_leave(&second.peer);
    free(second.peer.heard.at);
    free(second.peer.told.at);
    free(second.peer.out);
}

static unsigned told_of(const peer_bench *b)
{
    unsigned count = 0;
    for (unsigned i = 0; i < told && i < 16; i++) {
        count +=
            places[i].of == &b->user && places[i].base == places[i].gpa + b->peer.postcopy_base;
    }
    return count;
}

static enum greatest_test_res lead_two_lives(peer_bench *b)
{
    ASSERT_OK(listening(b, 0));
    ASSERT_OK(vhost_device_start(&b->device));
    ASSERT_OK(vhost_device_start(&second.device));
    ASSERT_UINT(2, told_of(b));
    ASSERT_UINT(2, told_of(&second));
    ASSERT_OK(user_change_map(b, 3));
    ASSERT_UINT(3, told_of(b));
    ASSERT_UINT(3, told_of(&second));
    ASSERT_OK(vhost_user_postcopy_end(&b->user)); /* that one has all of it */
    ASSERT_OK(user_change_map(b, 2));
    ASSERT_OK(user_change_map(b, 3));
    ASSERT_UINT(3, told_of(b));
    ASSERT_UINT(4, told_of(&second));
    peer_leave(&b->peer); /* and dies of something else */
    ASSERT_INT(-ECONNRESET, vhost_user_process(&b->user));
    ASSERT_INT(VHOST_STATE_RUNNING, second.device.state);
    ASSERT_OK(vhost_user_postcopy_end(&second.user));
    ASSERT_UINT(7, told);
    PASS();
}

TEST each_device_has_a_postcopy_of_its_own(peer_bench *b)
{
    ASSERT_OK(open_second(b));
    enum greatest_test_res result = lead_two_lives(b);
    close_second();
    return result;
}

TEST a_vmm_that_cannot_answer_faults_says_so(peer_bench *b)
{
    for (int slots = 0; slots < 2; slots++) {
        CHECK_CALL(peer_renew(b));
        want_postcopy(b, slots ? 0 : SLOTS);
        b->options.on_postcopy_region = refuse_region;
        ASSERT_OK(peer_stopped(b, 1));
        ASSERT_OK(listen_now(b));
        ASSERT_INT(-ECONNRESET, vhost_device_start(&b->device));
        ASSERT_INT(VHOST_STATE_BROKEN, b->device.state);
        ASSERT_UINT(2, told);
        ASSERT_INT(VHOST_WHY_ARGUMENT, b->user.last_error.why);
        ASSERT(strstr(b->user.last_error.text, "0x100000000") != NULL);
    }
    PASS();
}

SUITE(user_postcopy_suite)
{
    RUN_USER(a_whole_life_with_slots_says_this);
    RUN_USER(a_whole_life_with_tables_says_this);
    RUN_USER(a_start_waits_once_for_each_region);
    RUN_USER(a_bias_is_ours_alone);
    RUN_USER(under_xen_it_is_told_as_well);
    RUN_USER(nobody_needs_to_be_told);
    RUN_USER(the_userfaultfd_is_the_callers);
    RUN_USER(it_can_be_advised_again);
    RUN_USER(it_is_advised_and_listens_before_it_has_memory);
    RUN_USER(a_refusal_changes_nothing);
    RUN_USER(an_echo_is_no_place);
    RUN_USER(lies_about_the_second_region);
    RUN_USER(lies_about_a_region_that_comes_later);
    RUN_USER(a_vmm_that_cannot_answer_faults_says_so);
    RUN_USER(a_reset_leaves_it_listening);
    RUN_USER(another_connection_gets_no_memory_before_the_end);
    RUN_USER(to_recover_is_refused_as_well);
    RUN_USER(a_broken_device_is_neither_advised_nor_listens);
    RUN_USER(with_another_connection_it_begins_anew);
    RUN_USER(each_device_has_a_postcopy_of_its_own);
}
