/* A vhost-user back-end on the other end of a socket, in the same thread: it takes its turn when
   the library waits, so a test is deterministic, and the number of waits is the number of round
   trips. Time is its own: a wait for nothing takes no time, and moves its clock on.

   It answers every message as the specification says, keeps what it heard, and breaks whatever rule
   a test tells it to break. Messages are written by hand, as text:

      "2 9 8 Q140000000 +5000"    message 2, flags 0x9, 8 bytes; then hexadecimal numbers of 8 (Q),
                                  4 (D), 2 (W) and 1 (B) bytes, Z and a number of zero bytes;
                                  + and the size of the file behind an fd

   Fds that are not real (those of the fixture) are sent as files of so many bytes, so that a test
   sees which one arrived. */
#ifndef TEST_PEER_H
#define TEST_PEER_H

#include "fixture.h"
#include "vhost_user.h"

enum {
    PEER_QUEUES = 256,
    PEER_RULES = 8,
    PEER_FDS = 16,
    PEER_MESSAGE = 4400, /* bytes of the largest message */
    PEER_STATE = 20000,  /* bytes of state that it may have */
    PEER_EVENTS = 2 * PEER_QUEUES + 1,
    PEER_FAKE_FD = 5000, /* from here on, no fd is real */
    PEER_RAM_FD = 9000,
    PEER_EVENT_FD = 20000
};

/* Messages of the front-end, by the specification. */
enum {
    PEER_GET_FEATURES = 1,
    PEER_SET_FEATURES = 2,
    PEER_SET_OWNER = 3,
    PEER_SET_MEM_TABLE = 5,
    PEER_SET_LOG_BASE = 6,
    PEER_SET_LOG_FD = 7,
    PEER_SET_VRING_NUM = 8,
    PEER_SET_VRING_ADDR = 9,
    PEER_SET_VRING_BASE = 10,
    PEER_GET_VRING_BASE = 11,
    PEER_SET_VRING_KICK = 12,
    PEER_SET_VRING_CALL = 13,
    PEER_SET_VRING_ERR = 14,
    PEER_GET_PROTOCOL_FEATURES = 15,
    PEER_SET_PROTOCOL_FEATURES = 16,
    PEER_GET_QUEUE_NUM = 17,
    PEER_SET_VRING_ENABLE = 18,
    PEER_SEND_RARP = 19,
    PEER_NET_SET_MTU = 20,
    PEER_SET_BACKEND_REQ_FD = 21,
    PEER_IOTLB_MSG = 22,
    PEER_SET_VRING_ENDIAN = 23,
    PEER_GET_CONFIG = 24,
    PEER_SET_CONFIG = 25,
    PEER_CREATE_CRYPTO_SESSION = 26,
    PEER_CLOSE_CRYPTO_SESSION = 27,
    PEER_POSTCOPY_ADVISE = 28,
    PEER_POSTCOPY_LISTEN = 29,
    PEER_POSTCOPY_END = 30,
    PEER_GET_INFLIGHT_FD = 31,
    PEER_SET_INFLIGHT_FD = 32,
    PEER_GPU_SET_SOCKET = 33,
    PEER_RESET_DEVICE = 34,
    PEER_VRING_KICK = 35,
    PEER_GET_MAX_MEM_SLOTS = 36,
    PEER_ADD_MEM_REG = 37,
    PEER_REM_MEM_REG = 38,
    PEER_SET_STATUS = 39,
    PEER_GET_STATUS = 40,
    PEER_GET_SHARED_OBJECT = 41,
    PEER_SET_DEVICE_STATE_FD = 42,
    PEER_CHECK_DEVICE_STATE = 43,
    PEER_GET_SHMEM_CONFIG = 44,
    PEER_GET_VRING_BASE_SKIP_DRAIN = 45
};

#define PEER_BIT(number) (UINT64_C(1) << (number))

/* Protocol features that are in use if the peer has all of them, and nothing is asked for. */
#define PEER_USUAL UINT64_C(0x1b27f)
#define PEER_ACK   UINT64_C(0x8)

typedef struct peer_bytes { /* one message */
    uint8_t bytes[PEER_MESSAGE];
    size_t size;
    uint64_t fds[PEER_FDS]; /* sizes of the files behind them */
    unsigned fd_count;
} peer_bytes;

typedef struct peer_list { /* messages */
    peer_bytes *at;
    size_t count, capacity;
} peer_list;

/* What to do instead of answering as the specification says. */
typedef enum peer_action {
    PEER_REFUSE = 1, /* a verdict of `value` */
    PEER_SAY,        /* `text`, in place of the answer */
    PEER_SILENT,     /* no answer */
    PEER_STOP,       /* no answer, nor anything else, ever again */
    PEER_CLOSE,      /* the connection, after `value` bytes of the answer */
    PEER_SHORT,      /* the answer lacks its last `value` bytes, and says so */
    PEER_LONG,       /* it has `value` zero bytes more, and says so */
    PEER_ID,         /* its message number is `value` more */
    PEER_FLAGS,      /* its flags are `value` */
    PEER_SIZE,       /* it says that `value` bytes follow */
    PEER_WORD,       /* `value` is added to the 32-bit word at `at` of its payload */
    PEER_MORE_FDS,   /* `value` more fds */
    PEER_NO_FDS,
    PEER_TWICE, /* the answer comes twice */
    PEER_LATE,  /* it comes in the next turn */
    PEER_ASK,   /* `text` on the channel first, `value` times and once */
    PEER_DEAF,  /* from now on it does not read any more */
    PEER_HOOK   /* calls self->hook, then answers */
} peer_action;

typedef struct peer_rule {
    uint32_t id;  /* the message; 0: any */
    unsigned nth; /* from 1: only the nth such message; 0: all */
    peer_action action;
    uint64_t value;
    const char *text;
    uint32_t at;
    unsigned seen; /* such messages */
    bool hit;
} peer_rule;

typedef struct peer {
    /* For a test to set; peer_init gives what everything can. */
    uint64_t features, protocol, queue_number, slots;
    uint64_t shmem[4];
    uint32_t log_answer;                 /* bytes of the answer to SET_LOG_BASE: 0, 8 or 16 */
    uint64_t status_lost;                /* bits that GET_STATUS does not give back */
    uint32_t base[PEER_QUEUES];          /* where rings stop */
    uint8_t config[256];                 /* config space */
    uint64_t record_size, record_offset; /* of requests in flight, for each queue */
    uint64_t record_file;                /* bytes of the file; 0: as many as are needed */
    const uint8_t *record;               /* what is in it; NULL: zeroes */
    uint64_t postcopy_base;              /* added to a gpa: where it has a region */
    uint8_t state[PEER_STATE];           /* of its own: given, and taken */
    size_t state_size, state_piece;      /* of it; of what it moves in one turn */
    bool own_state_fd;                   /* it answers SET_DEVICE_STATE_FD with an fd */
    bool keeps_state;                    /* it neither reads nor writes its state */
    peer_rule rules[PEER_RULES];
    void (*hook)(struct peer *self, const peer_bytes *message);
    /* Called with each message before it is answered: may change the rules. */
    void (*before)(struct peer *self, const peer_bytes *message);
    unsigned refusals; /* so many times nobody is there to connect to */
    bool knocks;       /* it connects, if it is awaited */
    bool away;         /* it does nothing */

    /* System calls that do less than they could. */
    size_t send_most, receive_most; /* bytes; 0: no limit */
    unsigned again_every;           /* each so many sends, -EAGAIN */
    unsigned interrupt_every;       /* each so many calls, -EINTR */
    unsigned too_many;              /* so many times, -ETOOMANYREFS */
    bool lazy;                      /* it reads in its turn only: sockets fill up */
    bool floods;                    /* there is always one more request on the channel */
    const char *flood;              /* this one */
    unsigned tick;                  /* milliseconds that pass with each look at the clock */

    /* For a test to read. */
    peer_list heard; /* on the main socket */
    peer_list told;  /* on the channel: answers to its requests */
    unsigned waits;  /* in which nothing was ready before the peer took its turn */
    unsigned connections;
    unsigned kicks[PEER_QUEUES], calls[PEER_QUEUES], errors[PEER_QUEUES];
    size_t state_got; /* bytes of state that came, */
    bool state_ended; /* and all of it */
    uint64_t now;     /* milliseconds */
    unsigned flooded; /* requests, by `floods` */
    int last_wait;    /* the time limit of the last wait */
    char complaint[160];

    /* Private. */
    fixture *f;
    vhost_user_calls base_calls;
    int fd, channel, listener, state_fd, record_fd; /* or -1 */
    uint8_t status_set;
    uint64_t protocol_set;
    bool listening, unacked, deaf, knocked;
    bool saves;
    size_t state_at;
    peer_bytes in, in_channel;
    int in_fd[PEER_FDS], in_channel_fd[PEER_FDS];
    uint8_t *out;
    size_t out_size, out_sent, out_capacity, answered;
    peer_bytes late;
    int close_after; /* the answers that are on their way */
    unsigned send_calls, all_calls;
    bool event_alive[PEER_EVENTS], event_set[PEER_EVENTS];
} peer;

/* What a test works with: a VM, a back-end object, a device with queues, and the peer. */
typedef struct peer_bench {
    fixture *f;
    peer peer;
    vhost_user_options options;
    vhost_user user;
    vhost_device device;
    vhost_device_options device_options;
    vhost_queue queue[PEER_QUEUES];
    uint32_t queues;
    vhost_features accepted;
    unsigned broken, configs;
    unsigned queue_errors[PEER_QUEUES];
} peer_bench;

typedef enum greatest_test_res peer_test(peer_bench *b);

enum greatest_test_res peer_run(peer_test *test);

/* Not under qemu-user: it loses fds for which there is no room. */
#define RUN_USER_NATIVE(TEST_NAME)                                                                 \
    do {                                                                                           \
        if (getenv("VHOST_EMULATED")) {                                                            \
            printf("SKIP %s: qemu-user loses fds for which there is no room\n", #TEST_NAME);       \
            greatest_info.suite.skipped++;                                                         \
        } else {                                                                                   \
            RUN_USER(TEST_NAME);                                                                   \
        }                                                                                          \
    } while (0)
#define RUN_USER(TEST_NAME)                                                                        \
    do {                                                                                           \
        if (greatest_test_pre(#TEST_NAME) == 1) {                                                  \
            greatest_test_post(peer_run(TEST_NAME));                                               \
        }                                                                                          \
    } while (0)

extern const vhost_user_calls peer_calls; /* their `user` is a peer_bench */

/* Cleans all up, finds leaks, and begins anew: for tests with many rounds. */
enum greatest_test_res peer_renew(peer_bench *b);

/* Whether the back-end object and the queues are as the state of the device has it. */
enum greatest_test_res peer_check_state(const peer_bench *b);

/* Opens the back-end object on a socket of the peer. */
int peer_open(peer_bench *b);

/* With `queues` queues: the default map, opened, initialised, b->accepted acknowledged; running. */
int peer_stopped(peer_bench *b, uint32_t queues);
int peer_running(peer_bench *b, uint32_t queues);
int peer_attach(peer_bench *b, uint32_t queues); /* stopped, without peer_open */
void peer_fill(peer_bench *b);

/* A socket to the peer, which leaves the old one. */
int peer_connect(peer *self);
void peer_leave(peer *self);

/* It takes its turn now. */
void peer_turn(peer *self);

/* Sends a message, or bytes without sense, now: on the main socket; on the channel. */
void peer_say(peer *self, const char *text);
void peer_ask(peer *self, const char *text);

/* Adds a rule; forgets all rules. */
peer_rule *peer_add_rule(peer *self, uint32_t id, unsigned nth, peer_action action, uint64_t value);
void peer_obey(peer *self);

/* Forgets what it heard and counted. */
void peer_forget(peer *self);

/* How many of the messages that it heard are of this kind; the first of them from `start` on. */
unsigned peer_count(const peer *self, uint32_t id);
const peer_bytes *peer_find(const peer *self, uint32_t id, size_t start);
const peer_bytes *peer_last(const peer *self, uint32_t id);
uint32_t peer_id(const peer_bytes *message);
uint32_t peer_flags(const peer_bytes *message);
uint64_t peer_number(const peer_bytes *message, size_t at, size_t width); /* of the payload */

/* Reads a message that is written by hand. */
peer_bytes peer_parse(const char *text);

/* Whether this, and nothing else, was heard (told) since the last time; then it is forgotten. */
enum greatest_test_res peer_check(peer_list *list, const char *const *texts);
#define HEARD(B, ...)                                                                              \
    CHECK_CALL(peer_check(&(B)->peer.heard, (const char *const[]){__VA_ARGS__, NULL}))
#define HEARD_NOTHING(B) CHECK_CALL(peer_check(&(B)->peer.heard, (const char *const[]){NULL}))
#define TOLD(B, ...)                                                                               \
    CHECK_CALL(peer_check(&(B)->peer.told, (const char *const[]){__VA_ARGS__, NULL}))
#define TOLD_NOTHING(B) CHECK_CALL(peer_check(&(B)->peer.told, (const char *const[]){NULL}))

/* CALL on the device fails with CODE, and the back-end object says WHY. */
#define ASSERT_LOST(B, CALL, CODE, WHY)                                                            \
    do {                                                                                           \
        ASSERT_INT(CODE, (CALL));                                                                  \
        ASSERT_STR_EQ(vhost_why_text(WHY), vhost_why_text((B)->user.last_error.why));              \
    } while (0)

/* A file of `size` zero bytes. */
int peer_file(uint64_t size);

#endif
