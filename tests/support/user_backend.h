/* A small vhost-user back-end: the peer of a front-end under test, and the disk of a demo.

      user_backend_options options = user_backend_defaults(USER_BACKEND_DISK);
      options.listen_path = path;                       or .fd, a connected socket, or .connect_path
      user_backend *backend = user_backend_start(&options);
      ...                                               the front-end works
      user_backend_count(backend, USER_BACKEND_RECEIVED + 5);
      user_backend_stop(backend);

   It runs in a thread of its own, or in a process (options.forks) which may be killed. It believes
   nothing: a message that is malformed, or not negotiated, is refused, by a negative answer where
   there can be one, else by closing the connection; user_backend_complaint says why. With a path it
   then serves the next connection, and remembers nothing of the last one but its disk, its
   config space and its counts. */
#ifndef TEST_USER_BACKEND_H
#define TEST_USER_BACKEND_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

enum {
    USER_BACKEND_QUEUES = 256,
    USER_BACKEND_CONFIG = 256,    /* most bytes of config space */
    USER_BACKEND_STATE = 1 << 18, /* most bytes of its state */
    USER_BACKEND_SHMEM = 4,
    USER_BACKEND_BLOCK = 512
};

/* Protocol features that it can have: all but XEN_MMAP. */
#define USER_BACKEND_PROTOCOL UINT64_C(0xfdffff)

typedef enum user_backend_device {
    USER_BACKEND_NONE, /* takes requests, and hands them to options.handle */
    USER_BACKEND_LOOP, /* net: what queue 2k + 1 sends is received by queue 2k */
    USER_BACKEND_DISK  /* blk: read, write, flush, get id */
} user_backend_device;

/* One request of the driver; the memory is the guest's. */
typedef struct user_backend_request {
    unsigned queue;
    struct iovec *readable, *writable;
    unsigned readable_count, writable_count;
} user_backend_request;

typedef struct user_backend_options {
    int fd;                   /* a connected socket, which becomes the back-end's; or -1 */
    const char *listen_path;  /* or NULL */
    const char *connect_path; /* or NULL: it tries until somebody listens there */
    bool forks;               /* a process, not a thread */

    uint64_t features; /* virtio features 0 to 63; without bit 30 there are no protocol features */
    uint64_t protocol; /* protocol features */
    unsigned queues;
    unsigned slots;                     /* memory slots */
    unsigned config_size;               /* a disk fills in its capacity */
    int log_answer;                     /* bytes of the answer to SET_LOG_BASE: 0, 8 or 16 */
    unsigned linger_ms;                 /* see USER_BACKEND_WAITS */
    uint64_t shmem[USER_BACKEND_SHMEM]; /* sizes of shared memory regions */
    uint8_t object[16];                 /* UUID of the one shared object that it has */
    bool own_state_fd;                  /* answers SET_DEVICE_STATE_FD with an fd of its own */

    user_backend_device device;
    uint32_t (*handle)(const user_backend_request *request, void *user); /* returns bytes written */
    void *user;
    void *disk; /* memory, yours; shared, if it forks. NULL: it makes its own */
    uint64_t disk_size;
    const char *disk_path; /* or this file, as large as it is */
} user_backend_options;

typedef struct user_backend user_backend;

/* All protocol features, 8 queues, 32 slots, 64 config bytes, a disk of 1 MiB; VERSION_1, LOG_ALL,
   indirect descriptors, event indices. */
user_backend_options user_backend_defaults(user_backend_device device);

/* NULL: the system said no. What options point to is yours, and stays until stop. */
user_backend *user_backend_start(const user_backend_options *options);

/* Ends it however it is, waits until it has, and frees everything. */
void user_backend_stop(user_backend *self);

/* Cuts the connection at once, with requests in flight; a process is killed for good. Returns when
   that is done. */
void user_backend_kill(user_backend *self);

/* ---- what it counts ---- */

typedef enum user_backend_counter {
    USER_BACKEND_MESSAGES, /* received, over all connections */
    USER_BACKEND_ANSWERS,  /* sent, acks included */
    USER_BACKEND_ACKS,     /* sent because of need_reply, with 0 */
    USER_BACKEND_NACKS,    /* the same, with another value */
    /* How often the front-end waited: after an answer (one or many) the back-end found nothing more
       to read for linger_ms. It looks before it answers, so that the front-end cannot be quicker;
       with linger_ms above what a front-end takes between two sends, the count is exact. */
    USER_BACKEND_WAITS,
    USER_BACKEND_CONNECTIONS, /* begun */
    USER_BACKEND_ENDED,       /* connections that ended, whoever ended them */
    USER_BACKEND_TAKEN,       /* requests taken from rings */
    USER_BACKEND_COMPLETED,
    USER_BACKEND_HELD,
    USER_BACKEND_RESUBMITTED, /* from the record of requests in flight */
    USER_BACKEND_FAILED,      /* completed with nothing written, as their memory was gone */
    USER_BACKEND_CALLS,       /* sent to the driver */
    USER_BACKEND_RING_ERRORS,
    USER_BACKEND_MISSES,          /* sent */
    USER_BACKEND_CHANNEL_ANSWERS, /* on its own requests */
    USER_BACKEND_CHANNEL_VALUE,   /* the last of them, low 32 bits */
    USER_BACKEND_CHANNEL_FDS,     /* received with them */
    USER_BACKEND_STALLED,         /* by a trap */
    USER_BACKEND_MTU,             /* as told by the front-end */
    USER_BACKEND_RARPS,
    USER_BACKEND_RESETS,   /* of the device, by message or by status 0 */
    USER_BACKEND_STATUS,   /* now */
    USER_BACKEND_RECEIVED, /* + id: messages of this id; the last one */
    USER_BACKEND_COUNTERS = USER_BACKEND_RECEIVED + 64
} user_backend_counter;

uint32_t user_backend_count(const user_backend *self, unsigned counter);

/* Waits until the counter is at least this; false: it was not within 10 seconds. */
bool user_backend_await(const user_backend *self, unsigned counter, uint32_t at_least);

/* The first thing that was wrong with the front-end; empty: nothing was. */
const char *user_backend_complaint(const user_backend *self);

/* The memory of its disk, its config space, and its state (as saved, or as loaded). */
unsigned char *user_backend_disk(const user_backend *self);
unsigned char *user_backend_config(const user_backend *self);
unsigned char *user_backend_state(const user_backend *self, uint32_t **size);

/* ---- what it can be made to do ---- */

typedef enum user_backend_trap {
    USER_BACKEND_DIE,       /* instead of handling the message */
    USER_BACKEND_DIE_AFTER, /* once it is handled and answered */
    USER_BACKEND_STALL,     /* instead; it does nothing at all until it is released */
    USER_BACKEND_NACK,      /* instead: refuses it, as if it had failed */
    USER_BACKEND_TRAPS
} user_backend_trap;

/* At the nth message from now on (1: the next; 0: never), of this id or (0) any. Dying is closing
   the connection, or in a process _exit. A trap snaps once. */
void user_backend_arm(user_backend *self, user_backend_trap trap, unsigned nth, unsigned id);
void user_backend_release(user_backend *self);

/* Every kth request (0: none) that it takes is held for so long, while others overtake it (unless
   IN_ORDER is negotiated). */
void user_backend_hold(user_backend *self, unsigned every, unsigned ms);

typedef enum user_backend_way {
    USER_BACKEND_ON_CHANNEL = 1,    /* else on the main socket, if only to upset the front-end */
    USER_BACKEND_WITH_FD = 2,       /* of a new file of 64 KiB */
    USER_BACKEND_NEED_REPLY = 4,    /* sets the flag */
    USER_BACKEND_WITHOUT_HEADER = 8 /* sends just the payload's bytes */
} user_backend_way;

/* Has it send a message of at most 4096 bytes, such as a request on the back-end channel, and waits
   until that is sent. Answers are counted. */
bool user_backend_say(user_backend *self, uint32_t id, const void *payload, uint32_t size,
                      unsigned way);

#endif
