/* A guest with a SCSI disk: a driver with its rings in memory, a device on the real vhost-scsi, and
   a target of the kernel. It keeps the books of what must be on the disk.

   scsi_machine_run gives a test a fresh one, and fails it if anything is left over. */
#ifndef TEST_SCSI_MACHINE_H
#define TEST_SCSI_MACHINE_H

#include "lio_target.h"
#include "net_machine.h" /* for what it asserts and counts */
#include "scsi_driver.h"

#define SCSI_RAM       UINT64_C(0x800000)  /* bytes, from gpa 0 on */
#define SCSI_PLUG      UINT64_C(0x4000000) /* gpa of memory that comes and goes, */
#define SCSI_PLUG_SIZE UINT64_C(0x400000)  /* and its bytes */
#define SCSI_END       (SCSI_PLUG + SCSI_PLUG_SIZE)
#define SCSI_DISK      UINT64_C(0x400000) /* bytes */

enum {
    SCSI_PIECE = 16 * 1024, /* bytes: the disk is read and written in pieces, which have numbers */
    SCSI_PIECES = (int)(SCSI_DISK / SCSI_PIECE),
    SCSI_PAGES = (int)(SCSI_END / VHOST_PAGE),
    SCSI_PATIENCE = 5000 /* ms: what takes longer was lost */
};

typedef struct scsi_other { /* another device, with the rings of the machine's own */
    vhost_kernel scsi;
    vhost_device device;
    vhost_queue queue[SCSI_QUEUES];
} scsi_other;

typedef struct scsi_machine {
    /* A test may set these before scsi_machine_prepared. */
    vhost_vm_options vm_options;
    vhost_kernel_options kernel_options;
    vhost_device_options device_options;
    vhost_features accepted; /* VERSION_1 */
    bool pass_fd;            /* the vhost fd is opened here, and passed */
    int queues;              /* of all kinds: 4 */
    int depth;               /* requests in flight in each: 4 */
    uint64_t data;           /* gpa, if data shall be somewhere else than the driver has it */

    lio_target target;
    uint8_t *disk; /* what must be on it when all is done */
    uint8_t *ram;  /* gpa g is ram[g] */
    vhost_vm vm;
    vhost_backing backing;
    vhost_section low, plug;
    vhost_kernel scsi;
    vhost_device device;
    vhost_queue queue[SCSI_QUEUES];
    scsi_driver driver;
    scsi_other other;
    uint32_t patterns; /* that were written; each is another one */

    /* The books. */
    unsigned ops[VHOST_OP_COUNT];       /* submitted */
    unsigned errors, broken;            /* told, */
    unsigned queue_errors[SCSI_QUEUES]; /* and of each queue */
} scsi_machine;

typedef enum greatest_test_res scsi_machine_test(scsi_machine *m);

enum greatest_test_res scsi_machine_run(scsi_machine_test *test);

#define RUN_SCSI(TEST_NAME)                                                                        \
    do {                                                                                           \
        if (greatest_test_pre(#TEST_NAME) == 1) {                                                  \
            greatest_test_post(scsi_machine_run(TEST_NAME));                                       \
        }                                                                                          \
    } while (0)

/* ---- arranging: 0 or a negative errno ---- */

int scsi_machine_prepared(scsi_machine *m);    /* all there but the vhost fd and the device */
int scsi_machine_stopped(scsi_machine *m);     /* all there, the device attached */
int scsi_machine_running(scsi_machine *m);     /* and started */
int scsi_machine_attach(scsi_machine *m);      /* after vhost_device_cleanup: once more */
int scsi_machine_open_driver(scsi_machine *m); /* anew, with empty rings */
void scsi_machine_close_driver(scsi_machine *m);
void scsi_machine_fill_queues(scsi_machine *m);
int scsi_machine_map(scsi_machine *m, bool plugged); /* RAM alone, or with what comes and goes */
int scsi_machine_map_sections(scsi_machine *m, const vhost_section *sections, unsigned count);

/* Another device for a target, stopped, where the machine's own device stopped. */
int scsi_machine_open_other(scsi_machine *m, const char *wwpn);
void scsi_machine_close_other(scsi_machine *m);

/* ---- pieces of the disk ---- */

/* Submits a request, and does not wait. false: as many as there can be are in flight. */
bool scsi_machine_puts(scsi_machine *m, int queue, uint32_t piece);
bool scsi_machine_gets(scsi_machine *m, int queue, uint32_t piece);

/* Waits until nothing is in flight. All of it was good, and what was read is right. */
enum greatest_test_res scsi_machine_finishes(scsi_machine *m);

/* Writes `count` pieces through all request queues, and reads each through another one. */
enum greatest_test_res scsi_machine_flows(scsi_machine *m, uint32_t count);

/* What must be on the disk is in the file. */
enum greatest_test_res scsi_machine_file_is_right(scsi_machine *m);

/* One request, submitted by the caller, the only one in its queue; NULL: it is lost. */
const scsi_request *scsi_machine_await(scsi_machine *m, int queue);

/* The disk is asked whether it is ready. A disk says once of each thing that happened to it. */
enum greatest_test_res scsi_machine_is_ready(scsi_machine *m, unsigned at_most_told);

/* Waits for a descriptor, serving the device. false: nothing came in time. */
bool scsi_machine_waits(scsi_machine *m, int fd, int milliseconds);

/* How many threads of vhost there are, of this process and of the kernel. They go a bit later than
   who had them: it waits for `expected`. */
unsigned scsi_machine_threads(unsigned expected);

#endif
