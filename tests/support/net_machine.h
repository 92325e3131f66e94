/* A guest on a cable to a host: drivers with their rings in memory, a device on the real vhost-net,
   and a tap. It keeps the books of what the device has written.

   machine_run gives a test a fresh machine, and fails it if anything is left over. */
#ifndef TEST_NET_MACHINE_H
#define TEST_NET_MACHINE_H

#include "greatest.h"
#include "net_driver.h"
#include "tap.h"
#include "vhost_kernel.h"

#define MACHINE_RAM       UINT64_C(0x1000000) /* bytes, from gpa 0 on */
#define MACHINE_PLUG      UINT64_C(0x4000000) /* gpa of memory that comes and goes, */
#define MACHINE_PLUG_SIZE UINT64_C(0x200000)  /* its bytes, */
#define MACHINE_END       (MACHINE_PLUG + MACHINE_PLUG_SIZE)
#define MACHINE_PAIR      UINT64_C(0x200000) /* bytes of memory for the driver of one pair */

enum {
    MACHINE_PAIRS = 4,
    MACHINE_QUEUES = 2 * MACHINE_PAIRS,
    MACHINE_PAGES = (int)(MACHINE_END / VHOST_PAGE),
    MACHINE_PATIENCE = 3000, /* ms: whoever waits longer has lost a frame */
    MACHINE_BURST = 100      /* frames: no more fit into the transmit ring, two descriptors each */
};

typedef struct machine machine;

struct machine {
    /* A test may set these before machine_stopped. */
    vhost_vm_options vm_options;
    vhost_kernel_options kernel_options;
    vhost_device_options device_options;
    vhost_features accepted;
    bool pass_fds;                           /* the vhost fds are opened here, and passed */
    uint8_t *view;                           /* the drivers' memory; NULL: ram */
    uint64_t base;                           /* where in it the first driver begins */
    uint64_t (*gpa_of)(machine *, uint64_t); /* of an address of the drivers; NULL: the same */
    uint64_t buffers[2];                     /* of the first driver; 0: the usual place */
    bool logs_whole_buffers;                 /* the kernel does, whatever the size of the frame */

    int ram_fd;   /* guest memory, shared, */
    uint8_t *ram; /* and as the back-end sees it: gpa g is ram[g] */
    vhost_vm vm;
    vhost_backing backing;
    vhost_section low, plug;
    tap cable;
    int taps[MACHINE_PAIRS];
    uint32_t pairs;
    vhost_kernel net;
    vhost_device device;
    vhost_queue queue[MACHINE_QUEUES];
    net_driver driver[MACHINE_PAIRS];
    uint32_t sent, received; /* numbers of the next frames, out and in */

    /* The books. */
    unsigned ops[VHOST_OP_COUNT];          /* submitted */
    unsigned logs;                         /* made */
    unsigned answered, unanswered;         /* misses */
    unsigned errors, broken;               /* told, */
    unsigned queue_errors[MACHINE_QUEUES]; /* and of each queue */
    unsigned char written[MACHINE_PAGES];  /* by the device, as the drivers found out */
};

typedef enum greatest_test_res machine_test(machine *m);

enum greatest_test_res machine_run(machine_test *test);

#define RUN_MACHINE(TEST_NAME)                                                                     \
    do {                                                                                           \
        if (greatest_test_pre(#TEST_NAME) == 1) {                                                  \
            greatest_test_post(machine_run(TEST_NAME));                                            \
        }                                                                                          \
    } while (0)

#define ASSERT_INT(EXPECTED, GOT)  ASSERT_EQ_FMT((int)(EXPECTED), (int)(GOT), "%d")
#define ASSERT_UINT(EXPECTED, GOT) ASSERT_EQ_FMT((unsigned)(EXPECTED), (unsigned)(GOT), "%u")
#define ASSERT_OK(CALL)            ASSERT_INT(0, (CALL))

/* ---- arranging: 0 or a negative errno ---- */

int machine_open_memory(machine *m);              /* machine_stopped does it, if need be */
int machine_prepared(machine *m, uint32_t pairs); /* all there but the vhost fds and the device */
int machine_stopped(machine *m, uint32_t pairs);  /* all there, the device attached */
int machine_running(machine *m, uint32_t pairs);  /* and started */
int machine_attach(machine *m);                   /* after vhost_device_cleanup: once more */
int machine_open_drivers(machine *m);             /* anew, with empty rings */
void machine_close_drivers(machine *m);
void machine_fill_queues(machine *m);
int machine_map(machine *m, bool plugged); /* RAM alone, or with the memory that comes and goes */
int machine_map_sections(machine *m, const vhost_section *sections, unsigned count);

/* ---- frames: numbered, so that none is lost, doubled or overtaken in silence ---- */

void machine_outgoing(const machine *m, uint32_t number, frame *made);
void machine_incoming(const machine *m, uint32_t number, frame *made);
enum greatest_test_res machine_guest_posts(machine *m, unsigned count); /* and does not wait */
enum greatest_test_res machine_host_gets(machine *m, unsigned count);   /* what was posted */
bool machine_host_sends(const machine *m, uint32_t number);
enum greatest_test_res machine_host_posts(machine *m, unsigned count);
enum greatest_test_res machine_guest_gets(machine *m, unsigned count);
enum greatest_test_res machine_frames_go_out(machine *m, unsigned count);
enum greatest_test_res machine_frames_come_in(machine *m, unsigned count);
enum greatest_test_res machine_frames_flow(machine *m, unsigned count); /* out, then in */

/* A ping goes out on a pair. The tap remembers where it came from: the answer comes in there. */
enum greatest_test_res machine_pair_talks(machine *m, uint32_t pair, uint16_t sequence);

/* All pairs in turn, `count` times. */
enum greatest_test_res machine_pairs_talk(machine *m, uint16_t first, uint16_t count);

void machine_kick(machine *m, int queue); /* of the first driver, whether it wants it or not */

/* Waits for a descriptor, serving the device. false: nothing came in time. */
bool machine_waits(machine *m, int fd, int milliseconds);
bool machine_host_has_more(machine *m);
bool machine_settles(machine *m); /* all that was sent is given back, and nothing moves any more */

/* ---- books and the dirty log ---- */

void machine_forget_written(machine *m);
void machine_note_written(machine *m, uint64_t address, uint64_t size);
void machine_note_used_ring(machine *m, uint32_t queue); /* the whole of it */
void machine_note_used_rings(machine *m);                /* of all queues: as after a stop */

/* Books and log begin together, while nothing moves. */
enum greatest_test_res machine_begin_log(machine *m);

/* Takes the dirty log, as ranges, and adds it to `dirty`, a mark for each page. */
enum greatest_test_res machine_take_log(machine *m, unsigned char *dirty);

/* Takes it when all has settled. What the device wrote since the books were begun is dirty, or was
   taken into `dirty` before, and nothing else is. Begins new books. */
enum greatest_test_res machine_written_is_dirty(machine *m, unsigned char *dirty);
enum greatest_test_res machine_exactly_written(machine *m); /* nothing was taken before */
enum greatest_test_res machine_nothing_is_dirty(machine *m);

/* Memory comes and goes while frames are on their way. Takes the log meanwhile, too. */
enum greatest_test_res machine_resizes_lose_no_page(machine *m);

/* The log goes on and off while four times `count` frames go out, and twice as many come in. */
enum greatest_test_res machine_log_switches_lose_no_frame(machine *m, unsigned count);

enum greatest_test_res machine_same_pages(const unsigned char *written, const unsigned char *dirty);
unsigned machine_count_pages(const unsigned char *marks);
unsigned char *machine_no_pages(void); /* room for marks, all 0; the same at each call */

unsigned machine_fds(void);  /* open in this process */
long machine_resident(void); /* KiB of this process */

#endif
