/* A guest with shared memory, and the event loop of its VMM, for a device in another process: a
   real back-end.

   user_machine_run gives a test a fresh one, and fails it if anything is left over. gpa g is at
   ram[g], whatever it is made of. */
#ifndef TEST_USER_MACHINE_H
#define TEST_USER_MACHINE_H

#include "greatest.h"
#include "real_backend.h"
#include "vhost_user.h"

#define USER_RAM UINT64_C(0x2000000) /* bytes of gpas; memory may be anywhere in it */

enum {
    USER_QUEUES = 16,
    USER_PIECES = 16,
    USER_PATIENCE = 5000 /* ms: what takes longer was lost */
};

typedef struct user_piece { /* of memory: a memfd of its own */
    uint64_t gpa;
    vhost_backing backing; /* size 0: it is not there */
    vhost_backing former;  /* what it was, until it is left out of the map */
} user_piece;

typedef struct user_machine {
    /* A test may set these before user_machine_attach. */
    vhost_user_options user_options; /* at first: time-outs of USER_PATIENCE, no retries */
    vhost_device_options device_options;
    vhost_features wanted; /* features, if they are offered; at first: VERSION_1 */

    real_backend peer;
    uint8_t *ram;
    user_piece pieces[USER_PIECES];
    vhost_vm vm;
    vhost_user link;
    vhost_device device;
    vhost_queue queue[USER_QUEUES];

    /* The books. */
    unsigned ops[VHOST_OP_COUNT]; /* submitted */
    unsigned errors, broken;      /* told */
    unsigned returns;             /* vhost_user_process said that the device is back */
    int refused;                  /* what it returned last that was negative */
    unsigned refusals;            /* and how often */
} user_machine;

typedef enum greatest_test_res user_machine_test(user_machine *m);

enum greatest_test_res user_machine_run(user_machine_test *test);

#define RUN_USER(TEST_NAME)                                                                        \
    do {                                                                                           \
        if (greatest_test_pre(#TEST_NAME) == 1) {                                                  \
            greatest_test_post(user_machine_run(TEST_NAME));                                       \
        }                                                                                          \
    } while (0)

#define ASSERT_INT(EXPECTED, GOT)  ASSERT_EQ_FMT((int)(EXPECTED), (int)(GOT), "%d")
#define ASSERT_UINT(EXPECTED, GOT) ASSERT_EQ_FMT((unsigned)(EXPECTED), (unsigned)(GOT), "%u")
#define ASSERT_OK(CALL)            ASSERT_INT(0, (CALL))

/* ---- memory: 0 or a negative errno ---- */

/* Adds a piece of zeros, or puts new memory into the place of one, and tells the VM. */
int user_machine_plug(user_machine *m, unsigned piece, uint64_t gpa, uint64_t size);
int user_machine_unplug(user_machine *m, unsigned piece);

/* ---- the device: 0 or a negative errno ---- */

/* Connects to the back-end, which listens, and accepts the wanted features. */
int user_machine_attach(user_machine *m, uint32_t queues);
void user_machine_detach(user_machine *m);

/* The event loop, once around: waits for the device, or for a call of one of its queues, for so
   many milliseconds at most, and does what vhost_user.h says is to be done. */
void user_machine_turn(user_machine *m, int milliseconds);

/* ---- what a process has ---- */

unsigned user_machine_fds(pid_t pid);      /* open */
unsigned user_machine_mappings(pid_t pid); /* of this machine's memory */
long user_machine_resident(pid_t pid);     /* KiB, but for shared memory */

#endif
