/* A hostile vhost-user back-end, at every point of every operation. It answers wrongly, late, twice
   or not at all, asks for things on its channel, sends fds, stops reading, floods, closes; the
   system's calls are short, interrupted, or fail; and the VMM calls what it likes in any order.

   Whatever happens: no call takes longer than its deadlines, or asks for much memory; what fails
   says why; and in the end nothing is left over. */
#define _POSIX_C_SOURCE 200809L

#include "fuzz.h"
#include "user_calls.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum {
    STEPS = 40,
    TIMEOUT = 1000,            /* ms */
    LONGEST = 20 * TIMEOUT,    /* all deadlines of one call, one after the other */
    LARGEST = 4 * 1024 * 1024, /* bytes that are asked for at once, at most */
    TEXT = 2000
};

static dice *the_chance;
static size_t largest;
static unsigned the_call; /* that act made last */

static uint64_t roll(uint64_t sides)
{
    return dice_roll(the_chance, sides);
}

static uint64_t number(void)
{
    return fuzz_number(the_chance);
}

static bool now_and_then(void)
{
    return roll(8) == 7;
}

/* ---- what it says ---- */

static int put_token(char *text, size_t room)
{
    static const char kinds[] = {'Q', 'Q', 'D', 'D', 'W', 'B'};
    uint64_t kind = roll(sizeof kinds + 1);
    if (kind == sizeof kinds) {
        return snprintf(text, room, " Z%u", (unsigned)roll(256));
    }
    uint64_t value = number();
    value = kinds[kind] == 'Q' ? value : value & 0xffffffff;
    return snprintf(text, room, " %c%llx", kinds[kind], (unsigned long long)value);
}

/* As peer_parse reads it. */
static const char *made_up_message(uint32_t id, unsigned flags, unsigned size, unsigned tokens)
{
    static char text[TEXT];
    size_t at = (size_t)snprintf(text, sizeof text, "%u %x %u", id, flags, size);
    for (unsigned i = 0; i < tokens; i++) {
        at += (size_t)put_token(text + at, sizeof text - at);
    }
    for (uint64_t fds = now_and_then() ? roll(12) : 0; fds > 0; fds--) {
        at += (size_t)snprintf(text + at, sizeof text - at, " +%u", (unsigned)roll(100000));
    }
    return text;
}

static const char *an_answer(uint32_t asked)
{
    uint32_t id = now_and_then() ? (uint32_t)roll(256) : asked;
    unsigned flags = now_and_then() ? (unsigned)roll(256) : 5;
    unsigned tokens = (unsigned)roll(8);
    return made_up_message(id, flags, (unsigned)(now_and_then() ? number() : 8 * tokens), tokens);
}

/* A request that makes sense, as far as its size goes; or one that does not. */
static const char *a_request(void)
{
    static const unsigned sizes[] = {0, 40, 0, 24, 8, 8, 16, 16, 16, 40, 40};
    static char text[TEXT];
    uint64_t id = roll(sizeof sizes / sizeof sizes[0]);
    if (now_and_then()) {
        return made_up_message((uint32_t)roll(16), (unsigned)roll(16), (unsigned)roll(80),
                               (unsigned)roll(8));
    }
    size_t at = (size_t)snprintf(text, sizeof text, "%u %x %u", (unsigned)id,
                                 now_and_then() ? 1u : 9u, sizes[id]);
    for (unsigned i = 0; i < sizes[id]; i += 8) {
        at += (size_t)snprintf(text + at, sizeof text - at, " Q%llx", (unsigned long long)number());
    }
    for (uint64_t fds = roll(3); fds > 0; fds--) {
        at += (size_t)snprintf(text + at, sizeof text - at, " +%u", (unsigned)roll(100000));
    }
    return text;
}

static void decide(peer *self, const peer_bytes *asked)
{
    peer_obey(self);
    if (roll(4) != 3) {
        return;
    }
    peer_action action = (peer_action)(1 + roll(PEER_DEAF));
    if (action == PEER_MORE_FDS || action == PEER_CLOSE || action == PEER_SHORT) {
        peer_add_rule(self, 0, 0, action, roll(16))->text = "";
        return;
    }
    peer_rule *rule = peer_add_rule(self, 0, 0, action, action == PEER_ASK ? roll(3) : number());
    rule->value = action == PEER_LONG ? rule->value % 300 : rule->value;
    rule->at = 4 * (uint32_t)roll(6);
    rule->text = action == PEER_ASK   ? a_request()
                 : action == PEER_SAY ? an_answer(peer_id(asked))
                                      : "";
}

/* ---- the world around ---- */

static int say_yes_or_no(void)
{
    return now_and_then() ? -13 : 0;
}

static int on_host_notifier(vhost_user *self, uint32_t queue, int fd, uint64_t offset,
                            uint64_t size, void *user)
{
    (void)self, (void)queue, (void)fd, (void)offset, (void)size, (void)user;
    return say_yes_or_no();
}

static int on_object(vhost_user *self, vhost_user_object what,
                     const uint8_t uuid[VHOST_USER_UUID_SIZE], int *fd, void *user)
{
    peer_bench *b = (peer_bench *)user;
    (void)self, (void)uuid;
    if (what == VHOST_USER_OBJECT_LOOK_UP) {
        *fd = b->peer.record_fd;
    }
    return say_yes_or_no();
}

static int on_window(vhost_user *self, const vhost_user_window *window, int fd, void *user)
{
    (void)self, (void)window, (void)fd, (void)user;
    return say_yes_or_no();
}

static int on_postcopy_region(vhost_user *self, uint64_t gpa, uint64_t size, uint64_t base,
                              void *user)
{
    (void)self, (void)gpa, (void)size, (void)base, (void)user;
    return say_yes_or_no();
}

static void *allocate(void *memory, size_t size, void *user)
{
    fixture *f = ((peer_bench *)user)->f;
    largest = size > largest ? size : largest;
    return f->vm.options.allocate(memory, size, f);
}

static void shape_options(peer_bench *b)
{
    b->options.allocate = allocate;
    b->options.timeout_ms = TIMEOUT;
    b->options.retry_ms = roll(2) ? 50 : 0;
    b->options.retry_max_ms = (uint32_t)roll(1000);
    b->options.retry_for_ms = (uint32_t)roll(10000);
    b->options.counts_pairs = roll(2);
    b->options.on_host_notifier = roll(4) == 3 ? NULL : on_host_notifier;
    b->options.on_object = roll(4) == 3 ? NULL : on_object;
    b->options.on_window = roll(4) == 3 ? NULL : on_window;
    b->options.on_postcopy_region = roll(4) == 3 ? NULL : on_postcopy_region;
}

static void shape_peer(peer *self)
{
    self->tick = 1; /* or what never works would be tried for ever */
    self->features ^= now_and_then() ? number() : 0;
    self->protocol ^= now_and_then() ? number() : 0;
    self->queue_number = now_and_then() ? number() : PEER_QUEUES;
    self->slots = now_and_then() ? number() : 32;
    self->log_answer = 8 * (uint32_t)roll(3);
    self->record_size = now_and_then() ? number() % 100000 : 256;
    self->state_size = (size_t)roll(PEER_STATE);
    self->state_piece = (size_t)roll(1000);
    self->own_state_fd = roll(2);
    self->shmem[roll(4)] = number();
}

/* What the system does from now on, and the peer, unasked. */
static void shape_calls(peer *self)
{
    switch (roll(14)) {
    case 0:
        self->away = !self->away;
        break;
    case 1:
        self->send_most = (size_t)roll(64);
        break;
    case 2:
        self->receive_most = (size_t)roll(64);
        break;
    case 3:
        self->again_every = (unsigned)roll(5);
        break;
    case 4:
        self->interrupt_every = (unsigned)(roll(2) ? 2 + roll(5) : 0);
        break;
    case 5:
        self->too_many = (unsigned)roll(4);
        break;
    case 6:
        self->lazy = !self->lazy;
        break;
    case 7:
        self->tick = 1 + (unsigned)roll(200);
        break;
    case 8:
        self->refusals = (unsigned)roll(4);
        break;
    case 9:
        peer_leave(self);
        break;
    case 10:
        peer_say(self, an_answer((uint32_t)roll(46)));
        break;
    case 11:
        self->base[roll(3)] = (uint32_t)number();
        break;
    case 12:
        self->now += roll(20000);
        break;
    default:
        peer_ask(self, a_request());
        break;
    }
}

/* ---- what the VMM does ---- */

static int start_anew(peer_bench *b)
{
    vhost_device_cleanup(&b->device);
    vhost_user_close(&b->user);
    if (roll(2)) {
        return peer_stopped(b, b->queues);
    }
    b->peer.knocks = true;
    int result = roll(2) ? vhost_user_listen(&b->user, "there", &b->options)
                         : vhost_user_connect(&b->user, "there", &b->options);
    return result < 0 ? result : peer_attach(b, b->queues);
}

static int give_socket(peer_bench *b)
{
    int fd = peer_connect(&b->peer);
    int result = vhost_user_reopen(&b->user, fd);
    if (result < 0) {
        close(fd);
    }
    return roll(2) ? vhost_device_reset(&b->device) : result;
}

static int save_and_load(peer_bench *b)
{
    static uint8_t record[65536];
    size_t size = vhost_user_inflight_size(&b->user);
    if (size > sizeof record || vhost_user_save_inflight(&b->user, record, sizeof record) < 0) {
        return 0;
    }
    if (now_and_then()) {
        record[roll(64)] ^= (uint8_t)roll(256);
    }
    return vhost_user_load_inflight(&b->user, record, size);
}

static int sync_log(peer_bench *b)
{
    static uint64_t bits[64];
    vhost_log_sink sink;
    memset(&sink, 0, sizeof sink);
    sink.bits = bits;
    sink.bits_count = 64 * 64;
    return vhost_log_sync(&b->f->vm, 0, 64 * 64 * VHOST_PAGE, &sink);
}

static int fill_anew(peer_bench *b)
{
    peer_fill(b);
    for (uint32_t q = 0; q < b->queues && b->device.state != VHOST_STATE_RUNNING; q++) {
        vhost_queue *queue = &b->queue[q];
        queue->ready = roll(8) != 7;
        queue->size = now_and_then() ? (uint32_t)number() : 16;
        queue->desc = now_and_then() ? number() : queue->desc;
        queue->used = now_and_then() ? number() : queue->used;
        queue->kick_fd = now_and_then() ? -1 : queue->kick_fd;
        queue->position.state = (vhost_position_state)roll(3);
        queue->position.avail = (uint16_t)roll(65536);
    }
    return 0;
}

static int take_guesses(peer_bench *b)
{
    for (uint32_t q = 0; q < b->queues; q++) {
        if (b->queue[q].position.state == VHOST_POSITION_GUESSED) {
            b->queue[q].position.state = VHOST_POSITION_CERTAIN;
        }
    }
    return 0;
}

static int poll_all(peer_bench *b)
{
    int fds[64];
    (void)vhost_user_poll_fds(&b->user, fds, (uint32_t)roll(64));
    return vhost_user_timeout(&b->user) < -1;
}

/* Any call of vhost.h and vhost_user.h. */
static int act(peer_bench *b)
{
    uint32_t queue = (uint32_t)roll(4);
    the_call = (unsigned)roll(24);
    switch (the_call) {
    case 0:
        return vhost_device_start(&b->device);
    case 1:
        return vhost_user_process(&b->user);
    case 2:
        return vhost_device_stop(&b->device);
    case 3:
        return give_socket(b);
    case 4:
        return vhost_device_recover(&b->device);
    case 5:
        return start_anew(b);
    case 6:
        return vhost_device_ack(&b->device, fixture_features(number(), 0));
    case 7:
        return vhost_queue_start(&b->device, queue);
    case 8:
        return vhost_queue_stop(&b->device, queue);
    case 9:
        return vhost_queue_mask(&b->device, queue);
    case 10:
        return vhost_queue_unmask(&b->device, queue);
    case 11:
        return vhost_log_start(&b->f->vm);
    case 12:
        return vhost_log_stop(&b->f->vm);
    case 13:
        return sync_log(b);
    case 14:
        return user_change_map(b, 1 + (unsigned)roll(3));
    case 15:
        return save_and_load(b);
    case 16:
        return fill_anew(b);
    case 17:
        return take_guesses(b);
    case 18:
        return poll_all(b);
    case 19:
        return vhost_device_process(&b->device);
    case 20:
        return vhost_device_settled(&b->device);
    case 21:
        return vhost_queue_pending(&b->device, queue);
    default: /* the first two open the device, which is done here */
        return b->device.state == VHOST_STATE_CLOSED
                   ? start_anew(b)
                   : user_calls[2 + roll(user_call_count - 2)].act(b);
    }
}

static void forget_errors(peer_bench *b)
{
    b->user.last_error.code = b->device.last_error.code = b->f->vm.last_error.code = 0;
}

/* A device that is BROKEN may say again what broke it; a connection that is lost, what lost it. */
static bool is_told(const peer_bench *b, int code)
{
    return b->user.last_error.code == code || b->device.last_error.code == code ||
           b->f->vm.last_error.code == code || b->device.state == VHOST_STATE_BROKEN ||
           code == b->user.dead;
}

static enum greatest_test_res step(peer_bench *b)
{
    uint64_t before = b->peer.now;
    if (roll(16) == 15) {
        fault_arm(&b->f->fault, (fault_plan)roll(3), 1 + (unsigned)roll(16), 1);
    }
    forget_errors(b);
    int code = act(b);
    fault_disarm(&b->f->fault);
    fuzz_note("call %u, %llu ms: %d\n", the_call, (unsigned long long)(b->peer.now - before), code);
    ASSERT(b->peer.now - before <= LONGEST);
    ASSERT(largest <= LARGEST);
    ASSERT(code >= 0 || is_told(b, code));
    return peer_check_state(b);
}

static enum greatest_test_res run(peer_bench *b)
{
    shape_options(b);
    shape_peer(&b->peer);
    if (roll(2)) {
        b->peer.before = decide;
    }
    (void)user_arrange(b, &user_calls[roll(user_call_count)]);
    b->queues = b->queues ? b->queues : 1;
    b->peer.before = decide;
    for (int i = 0; i < STEPS && !dice_ended(the_chance); i++) {
        while (roll(4) == 3) {
            shape_calls(&b->peer);
        }
        CHECK_CALL(step(b));
    }
    PASS();
}

enum greatest_test_res fuzz_once(dice *chance)
{
    the_chance = chance;
    largest = 0;
    return peer_run(run);
}
