/* A guest whose sockets lead to the real host: a driver with its rings in memory, a device on the
   real vhost-vsock, and two streams, one opened from each side. It keeps the books of what the
   device has written.

   vsock_machine_run gives a test a fresh machine, and fails it if anything is left over. */
#ifndef TEST_VSOCK_MACHINE_H
#define TEST_VSOCK_MACHINE_H

#include "clock.h"
#include "net_machine.h" /* its memory and its books of the process */
#include "vsock_driver.h"

#define VSOCK_MACHINE_DRIVER UINT64_C(0x100000) /* bytes of memory for the driver */

enum {
    VSOCK_MACHINE_CID = 30042,
    VSOCK_MACHINE_HOST_PORT = 1024,
    VSOCK_MACHINE_GUEST_PORT = 2048
};

typedef struct vsock_pair { /* a stream, seen from both of its ends */
    int host;
    vsock_stream *guest;
    /* Bytes ever sent and received; both sides shall have sent and received `goal`. */
    uint32_t goal, host_sent, host_got, guest_sent, guest_got;
    bool reset; /* said the host's socket */
} vsock_pair;

typedef struct vsock_machine vsock_machine;

struct vsock_machine {
    /* A test may set these before vsock_machine_stopped. */
    vhost_vm_options vm_options;
    vhost_kernel_options kernel_options;
    vhost_device_options device_options;
    vhost_features accepted;
    uint64_t cid;
    const char *path;
    int passed_fd;                                 /* or -1: the device is opened by its path */
    uint8_t *view;                                 /* the driver's memory; NULL: ram */
    uint64_t base;                                 /* where in it the driver begins */
    uint64_t (*gpa_of)(vsock_machine *, uint64_t); /* of an address of the driver; NULL: the same */
    uint64_t transmits_from;                       /* the buffers; 0: the usual place */

    int ram_fd;   /* guest memory, shared, */
    uint8_t *ram; /* and as the back-end sees it: gpa g is ram[g] */
    vhost_vm vm;
    vhost_backing backing;
    vhost_section low, plug;
    vhost_kernel kernel;
    vhost_device device;
    vhost_queue queue[2];
    vsock_driver driver;
    uint16_t events; /* put into the event queue */
    int listener;
    vsock_pair pair[2]; /* opened by the guest, and by the host */
    const char *damage; /* of a byte; NULL: none */

    /* The books. */
    unsigned ops[VHOST_OP_COUNT];         /* submitted */
    unsigned answered, unanswered;        /* misses */
    unsigned errors, broken;              /* told, */
    unsigned queue_errors[2];             /* and of each queue */
    unsigned calls[2];                    /* by queue */
    unsigned char written[MACHINE_PAGES]; /* by the device: used rings, */
    unsigned char filled[MACHINE_PAGES];  /* and buffers */
};

typedef enum greatest_test_res vsock_machine_test(vsock_machine *m);

enum greatest_test_res vsock_machine_run(vsock_machine_test *test);

#define RUN_VSOCK(TEST_NAME)                                                                       \
    do {                                                                                           \
        if (greatest_test_pre(#TEST_NAME) == 1) {                                                  \
            greatest_test_post(vsock_machine_run(TEST_NAME));                                      \
        }                                                                                          \
    } while (0)

/* ---- arranging: 0 or a negative errno ---- */

int vsock_machine_open_memory(vsock_machine *m); /* vsock_machine_stopped does it, if need be */
int vsock_machine_prepared(vsock_machine *m);    /* all there but the device */
int vsock_machine_stopped(vsock_machine *m);     /* all there, the device attached */
int vsock_machine_running(vsock_machine *m);     /* and started */
int vsock_machine_attach(vsock_machine *m);      /* after vsock_machine_detach: once more */
void vsock_machine_detach(vsock_machine *m);
int vsock_machine_open_driver(vsock_machine *m); /* anew, with empty rings */
void vsock_machine_close_driver(vsock_machine *m);
void vsock_machine_fill_queues(vsock_machine *m);
int vsock_machine_map(vsock_machine *m, bool plugged);
int vsock_machine_map_sections(vsock_machine *m, const vhost_section *sections, unsigned count);
bool vsock_machine_put_event(vsock_machine *m, uint32_t id); /* into the guest's event queue */

/* ---- streams ---- */

enum greatest_test_res vsock_machine_connects(vsock_machine *m); /* both */
enum greatest_test_res vsock_machine_closes(vsock_machine *m);   /* each by who opened it */

/* Waits until both ends of both streams know that they are gone. */
enum greatest_test_res vsock_machine_is_cut(vsock_machine *m);

int vsock_machine_host_connects(vsock_machine *m); /* begins to: 0 or a negative errno */
enum greatest_test_res vsock_machine_accepts(vsock_machine *m); /* waits until both are open */

/* Sends `size` more bytes each way in both streams: as much as can be at once, the rest in
   vsock_machine_arrives, which waits for all of them. */
void vsock_machine_posts(vsock_machine *m, uint32_t size);
enum greatest_test_res vsock_machine_arrives(vsock_machine *m);
enum greatest_test_res vsock_machine_talks(vsock_machine *m, uint32_t size); /* both of it */

/* Serves device and driver once, waiting for something to do. */
void vsock_machine_turn(vsock_machine *m);

/* Does that, too. false: whoever waits since then (clock_now) has lost something. */
bool vsock_machine_waits(vsock_machine *m, double since);

void vsock_machine_kick(vsock_machine *m, int queue); /* whether it wants it or not */

/* ---- books ---- */

void vsock_machine_forget_written(vsock_machine *m);
void vsock_machine_note_used_ring(vsock_machine *m, uint32_t queue); /* the whole of it */

/* Takes the dirty log, and adds it to `dirty`, a mark for each page. */
enum greatest_test_res vsock_machine_take_log(vsock_machine *m, unsigned char *dirty);

unsigned vsock_machine_threads(void); /* of this process, and of vhost in the kernel */

#endif
