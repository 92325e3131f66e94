/* A back-end that records what it is told, and complains of whatever a strict back-end would not
   stand: the complaint is kept for the test to find. Synchronous, or with a queue and a fence. */
#ifndef TEST_MOCK_BACKEND_H
#define TEST_MOCK_BACKEND_H

#include "fault.h"

typedef enum mock_mode {
    MOCK_SYNCHRONOUS,     /* no fence: each operation is done when it returns */
    MOCK_QUEUED,          /* done by the fence; after one failed, the others are not done */
    MOCK_QUEUED_STUBBORN, /* done by the fence; after one failed, the others are done */
    MOCK_QUEUED_REFUSING, /* done by the fence, but a failure shows at the submit already */
    MOCK_MODE_COUNT
} mock_mode;

#define MOCK_NO_VALUE INT64_MIN

enum {
    MOCK_QUEUES = 4,
    MOCK_CONFIG_SIZE = 64,
    MOCK_FDS = 4,
    MOCK_ENTRIES = 256
};

/* An operation, as it was submitted. */
typedef struct mock_call {
    vhost_op op;
    int queue;     /* or -1 */
    int64_t value; /* fd, size, base, on, microseconds, offset */
    vhost_features features;
    vhost_ring_addresses addresses;
    vhost_iotlb entry;     /* of an IOTLB message */
    vhost_ring_base *base; /* where the answer goes */
    void *bytes;           /* where config bytes go */
    uint32_t size;         /* of config bytes */
    unsigned char config[MOCK_CONFIG_SIZE];
    vhost_log_memory log;
    vhost_region *to; /* of a table; the record's own copies */
    vhost_region *from;
    uint32_t to_count, from_count, removed_count, added_count;
    bool from_known;
    int result;  /* of the submit */
    int verdict; /* what the fence will say of it */
    bool done;   /* it took effect */
} mock_call;

typedef struct mock_calls {
    mock_call *at;
    size_t count, capacity;
} mock_calls;

typedef struct mock_ring {
    bool size_set, base_set, addresses_set, kick_set, call_set;
    bool enabled;
    uint32_t size;
    uint32_t position; /* encoded as in vhost_ring_base */
    bool big_endian;
    uint32_t busy_loop_us;
    int kick_fd, call_fd, error_fd;
    vhost_ring_addresses addresses;
} mock_ring;

typedef struct mock_backend {
    /* For the test to set. */
    vhost_backend_ops ops; /* members may be set to NULL before the device is initialised */
    vhost_facts facts;
    mock_mode mode;
    fault *fault;          /* or NULL */
    vhost_op refused;      /* this operation is refused, with refusal; NONE: none is */
    int refused_queue;     /* only of this queue; -1: of any */
    int64_t allowed_value; /* unless it has this value; NO_VALUE: whatever its value */
    int refusal;
    vhost_op lost;     /* this operation is accepted and never done */
    int success;       /* what a submit returns when it is well: 0 or more */
    bool dead;         /* every operation fails with -ECONNRESET */
    bool no_reopening; /* a second open is refused */
    unsigned eager;    /* buffers that a ring uses up the moment it begins to run */
    bool calls_late;   /* a switch of the call fd is preceded by one more call to the old one */
    int process_result;
    int recall_result; /* of recall_base, which then gives recalled */
    uint32_t recalled;
    int fds[MOCK_FDS];
    int fd_count;
    void (*signal)(int fd, void *user); /* what a call or an error does */
    /* Called before (begins) and after an operation takes effect, or the cut. */
    void (*around)(struct mock_backend *mock, bool begins, void *user);
    void (*in_fence)(struct mock_backend *mock, void *user); /* before anything is done there */
    void *user;
    unsigned char config[MOCK_CONFIG_SIZE];

    /* For the test to read. */
    char complaint[200]; /* the first; empty: none */
    mock_calls calls;    /* everything that was submitted */
    unsigned opens, closes, severs, fences, processed, recalls;
    uint32_t recall_given; /* the value that recall_base was given last */
    bool inflight_set;
    vhost_device *device;
    bool opened, severed, running;
    bool features_set, table_set;
    vhost_features features;
    vhost_region *table;
    uint32_t table_count;
    vhost_log_memory log; /* size 0: was not told of one */
    int config_fd;
    vhost_iotlb iotlb[MOCK_ENTRIES];
    unsigned iotlb_count;
    mock_ring rings[MOCK_QUEUES];
    unsigned used_up[MOCK_QUEUES]; /* buffers, over all starts */
    size_t fenced;                 /* so many of the calls are behind a fence */
    bool failed;                   /* in a fence: an operation failed already */
} mock_backend;

const char *mock_mode_name(mock_mode mode);

void mock_init(mock_backend *mock, mock_mode mode, fault *faults);
void mock_free(mock_backend *mock);

void mock_refuse(mock_backend *mock, vhost_op op, int queue, int error);
void mock_refuse_unless(mock_backend *mock, vhost_op op, int queue, int64_t value, int error);
void mock_die(mock_backend *mock);
void mock_revive(mock_backend *mock); /* nothing refuses, is lost or dead any more */

/* Gives it an IOTLB: operation iotlb_send. Like that of vhost-net it is emptied by features, an
   UNMAP takes every entry that it touches, and a ring does not begin before it is reachable. */
void mock_add_iotlb(mock_backend *mock);

/* Whether entries with `permit` cover all of this; the parts of a ring. */
bool mock_reaches(const mock_backend *mock, uint64_t iova, uint64_t size, uint8_t permit);
bool mock_reaches_ring(const mock_backend *mock, uint32_t queue);

/* Whether every entry leads to memory that is in the table. */
bool mock_iotlb_is_sound(const mock_backend *mock);

/* Forgets the calls, not the state. */
void mock_forget(mock_backend *mock);

/* The place of the first such call at or after `start`, or -1. queue -1: of any. */
int mock_find(const mock_backend *mock, vhost_op op, int queue, int start);
unsigned mock_count(const mock_backend *mock, vhost_op op, int queue);

/* The last such call; NULL: none. */
const mock_call *mock_last(const mock_backend *mock, vhost_op op, int queue);

/* Whether something was submitted and awaits its fence. */
bool mock_is_pending(const mock_backend *mock);

/* Whether the back-end may touch the ring right now; any ring. */
bool mock_ring_runs(const mock_backend *mock, uint32_t queue);
bool mock_runs(const mock_backend *mock);

/* The back-end uses up `count` buffers of a ring that runs, in order. */
void mock_advance(mock_backend *mock, uint32_t queue, unsigned count);

/* Whether the back-end logs what it writes. */
bool mock_logs(const mock_backend *mock);

/* The back-end, which logs, writes to the page of gpa; so do several threads at once. */
void mock_dirty(mock_backend *mock, uint64_t gpa);

/* Whether the log has a bit for the last page of every region in the table. */
bool mock_log_covers_table(const mock_backend *mock);

/* The back-end calls the driver; the back-end reports a broken ring; a config change. */
void mock_interrupt(mock_backend *mock, uint32_t queue);
void mock_ring_error(mock_backend *mock, uint32_t queue);
void mock_config_change(mock_backend *mock);

#endif
