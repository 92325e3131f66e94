/* A VM with memory, mock back-ends, and books kept on everything the library takes and gives back.

   fixture_run gives a test a fresh fixture, and fails it if anything is left over, if a back-end
   complained, or if an object is not in the state that it claims. */
#ifndef TEST_FIXTURE_H
#define TEST_FIXTURE_H

#include "fault.h"
#include "greatest.h"
#include "mock_backend.h"

enum {
    FIXTURE_DEVICES = 3,
    FIXTURE_QUEUES = 3,
    FIXTURE_EVENTS = 64,
    FIXTURE_TRACES = 64,
    FIXTURE_LOGS = 64,
    FIXTURE_RING_SIZE = 256,
    FIXTURE_PAGES = 256, /* of the backing `ram` */
    FIXTURE_KICK_FD = 5000,
    FIXTURE_CALL_FD = 6000,
    FIXTURE_EVENT_FD = 7000,
    FIXTURE_LOG_FD = 8000
};

#define FIXTURE_HIGH   UINT64_C(0x100000000) /* gpa of the second half of `ram` */
#define FIXTURE_REMOTE UINT64_C(0x200000000) /* gpa where nothing is, free for tests */

typedef struct fixture_event {
    bool alive, signalled;
} fixture_event;

typedef struct fixture_message {
    vhost_level level;
    vhost_error what;
    const vhost_device *device;
} fixture_message;

typedef struct fixture {
    mock_mode mode;
    fault fault; /* armed by a test: strikes allocations, notifiers, mappings and operations */

    vhost_vm vm;
    vhost_device device[FIXTURE_DEVICES];
    vhost_queue queue[FIXTURE_DEVICES][FIXTURE_QUEUES];
    mock_backend mock[FIXTURE_DEVICES];
    vhost_device_options device_options; /* of the next fixture_attach */
    vhost_features accepted;             /* acknowledged by the next fixture_attach */

    void *memory;
    unsigned char *host; /* where `ram` is */
    vhost_backing ram;
    vhost_section low, high; /* the default map */

    /* The books. */
    size_t allocations;      /* alive */
    size_t allocation_calls; /* that asked for memory */
    fixture_event events[FIXTURE_EVENTS];
    unsigned event_count;                /* ever made */
    vhost_log_memory logs[FIXTURE_LOGS]; /* alive: those with a size */
    unsigned log_maps;                   /* by fixture_log_ops, ever */
    int mappings;                        /* by fixture_memory_ops, alive */
    unsigned maps;                       /* by fixture_memory_ops, ever */
    unsigned written[3];                 /* by fixture_memory_ops: parts given back as written */
    uint64_t shorten;                    /* fixture_memory_ops: no mapping is longer; 0: no limit */
    unsigned errors, notes;              /* messages */
    fixture_message last_message;        /* of those that tell of a failure */
    vhost_error last_note;
    unsigned broken[FIXTURE_DEVICES]; /* calls of on_broken */
    unsigned configs;                 /* calls of on_config */
    unsigned queue_errors[FIXTURE_QUEUES];
    unsigned calls[FIXTURE_DEVICES][FIXTURE_QUEUES]; /* of call_fd */
    unsigned trace_count;
    vhost_trace traces[FIXTURE_TRACES]; /* the last of them, a ring */
} fixture;

typedef enum greatest_test_res fixture_test(fixture *f);

enum greatest_test_res fixture_run(fixture_test *test, mock_mode mode);

/* Whether a ring of the other byte order than this machine's is big-endian. */
#define FIXTURE_FOREIGN (__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__)

/* Runs a test on a fresh fixture; in the synchronous and the queued mode; in every mode. */
#define RUN_FIXTURE(TEST_NAME, MODE)                                                               \
    do {                                                                                           \
        greatest_set_test_suffix(mock_mode_name(MODE));                                            \
        if (greatest_test_pre(#TEST_NAME) == 1) {                                                  \
            greatest_test_post(fixture_run(TEST_NAME, MODE));                                      \
        }                                                                                          \
    } while (0)
#define RUN_PLAIN(TEST_NAME) RUN_FIXTURE(TEST_NAME, MOCK_SYNCHRONOUS)
#define RUN_BOTH(TEST_NAME)                                                                        \
    do {                                                                                           \
        RUN_FIXTURE(TEST_NAME, MOCK_SYNCHRONOUS);                                                  \
        RUN_FIXTURE(TEST_NAME, MOCK_QUEUED);                                                       \
    } while (0)
#define RUN_ALL(TEST_NAME)                                                                         \
    do {                                                                                           \
        RUN_BOTH(TEST_NAME);                                                                       \
        RUN_FIXTURE(TEST_NAME, MOCK_QUEUED_STUBBORN);                                              \
        RUN_FIXTURE(TEST_NAME, MOCK_QUEUED_REFUSING);                                              \
    } while (0)

/* In a suite: counts a test, or all of them, as one that cannot run here. */
#define SKIP_HERE(NAME, REASON)                                                                    \
    do {                                                                                           \
        printf("SKIP %s: %s\n", NAME, REASON);                                                     \
        greatest_info.suite.skipped++;                                                             \
    } while (0)

/* Compare, and print both on failure; what they compare is evaluated once. */
#define ASSERT_AS(TYPE, FORMAT, EXPECTED, GOT)                                                     \
    do {                                                                                           \
        TYPE as_expected = (TYPE)(EXPECTED);                                                       \
        TYPE as_got = (TYPE)(GOT);                                                                 \
        ASSERT_EQ_FMTm(#GOT " is not " #EXPECTED, as_expected, as_got, FORMAT);                    \
    } while (0)
#define ASSERT_INT(EXPECTED, GOT)  ASSERT_AS(int, "%d", EXPECTED, GOT)
#define ASSERT_UINT(EXPECTED, GOT) ASSERT_AS(unsigned, "%u", EXPECTED, GOT)
#define ASSERT_U64(EXPECTED, GOT)  ASSERT_AS(unsigned long long, "0x%llx", EXPECTED, GOT)
#define ASSERT_PTR(EXPECTED, GOT)  ASSERT_AS(const void *, "%p", EXPECTED, GOT)
#define ASSERT_OK(CALL)            ASSERT_INT(0, (CALL))

/* CALL fails with CODE for the reason WHY, tells it in ERROR, and in one message. */
#define ASSERT_FAILS(F, CALL, ERROR, CODE, WHY)                                                    \
    do {                                                                                           \
        unsigned errors_before = (F)->errors;                                                      \
        ASSERT_INT(CODE, (CALL));                                                                  \
        CHECK_CALL(fixture_failed((F), errors_before, (ERROR), (CODE), (WHY)));                    \
    } while (0)

/* Whether just now one failure was told: in `error`, and in one message since `errors_before`. */
enum greatest_test_res fixture_failed(const fixture *f, unsigned errors_before,
                                      const vhost_error *error, int code, vhost_why why);

/* Whether `error` names this operation and this queue. */
enum greatest_test_res fixture_names(const vhost_error *error, vhost_op op, int queue);

/* Cleans everything up, finds leaks and complaints, and starts anew. */
enum greatest_test_res fixture_renew(fixture *f);

/* Whether every device is in the state that it claims, and its back-end with it. */
enum greatest_test_res fixture_check(const fixture *f);

/* Puts `count` sections, or the default map, in force. Returns what the first failing call did. */
int fixture_map(fixture *f, const vhost_section *sections, size_t count);
int fixture_map_default(fixture *f);

/* A section of `ram`. */
vhost_section fixture_section(const fixture *f, uint64_t gpa, uint64_t pages, uint64_t first_page);

/* Initialises device `d` and acknowledges f->accepted; fills its queues in as ready; starts it. */
int fixture_attach(fixture *f, unsigned d);
void fixture_fill(fixture *f, unsigned d);
int fixture_start(fixture *f, unsigned d);

/* The whole: default map, device 0 attached, filled in, (running). */
int fixture_stopped_device(fixture *f);
int fixture_running_device(fixture *f);

/* Makes device d BROKEN, and forgets what was told of it. */
void fixture_break(fixture *f, unsigned d);

/* The guest's used index, of a little-endian split ring; _set_used: of one in the section `low`. */
void fixture_put_used(vhost_vm *vm, const vhost_queue *queue, uint16_t index);
void fixture_put_available(vhost_vm *vm, const vhost_queue *queue, uint16_t index);
void fixture_set_used(fixture *f, unsigned d, unsigned queue, uint16_t index);

/* Maps by the VM's map, keeps books, and may fail or map short. */
extern const vhost_memory_ops fixture_memory_ops;

/* A vIOMMU in which nothing is mapped. */
extern const vhost_memory_ops fixture_empty_viommu;
extern const vhost_event_ops fixture_event_ops;
extern const vhost_log_ops fixture_log_ops; /* memory of a log fails as an allocation */

vhost_vm_options fixture_vm_options(fixture *f);
vhost_features fixture_features(uint64_t low, uint64_t high);
size_t fixture_events_alive(const fixture *f);
unsigned fixture_logs_alive(const fixture *f);
int fixture_open_fds(void); /* of this process; 0 where that cannot be told */

#endif
