/* A guest with a vDPA device: a driver with its rings in shared memory, and a device on the real
   vhost-vdpa. It keeps the books of what must be on a disk, and of what the kernel was told.

   Each test gets a fresh one, for each kind of device that it is run on, and fails if anything is
   left over. */
#ifndef TEST_VDPA_MACHINE_H
#define TEST_VDPA_MACHINE_H

#include "blk_work.h"
#include "net_machine.h" /* for what it asserts and counts */
#include "vdpa_device.h"
#include "vduse_device.h"

#define VDPA_RAM       UINT64_C(0x400000) /* bytes, from gpa 0 on */
#define VDPA_SPARE     UINT64_C(0x300000) /* gpa in it: from here on, no driver uses it, */
#define VDPA_DATA      UINT64_C(0x310000) /* and from here on, nobody */
#define VDPA_PLUG      UINT64_C(0x800000) /* gpa of memory that comes and goes, */
#define VDPA_PLUG_SIZE UINT64_C(0x100000) /* and its bytes */
#define VDPA_END       (VDPA_PLUG + VDPA_PLUG_SIZE)
#define VDPA_AREA      UINT64_C(0x40000) /* bytes: the part of a disk that is used */

enum {
    VDPA_QUEUES = 4,
    VDPA_BLOCK = 16 * 1024, /* bytes: the disk is read and written in blocks */
    VDPA_PATIENCE = 5000    /* ms: what takes longer was lost */
};

typedef enum vdpa_kind { /* of device */
    VDPA_SIM_NET,        /* a card that the kernel simulates: what is sent to it comes back */
    VDPA_SIM_BLK,        /* a disk that the kernel simulates */
    VDPA_STORAGE,        /* a disk of qemu-storage-daemon */
    VDPA_VDUSE           /* a disk of the tests' own, each time a new one */
} vdpa_kind;

typedef struct vdpa_calls { /* that were made, whether they succeeded or not */
    unsigned maps, unmaps;
    unsigned batches; /* begun */
    unsigned suspends, resumes;
    unsigned bases_read; /* GET_VRING_BASE */
} vdpa_calls;

typedef struct vdpa_machine {
    /* A test may set these before vdpa_machine_prepared. */
    vhost_kernel_options kernel_options; /* its calls are counted */
    vhost_device_options device_options;
    vhost_features accepted;            /* VERSION_1 */
    vduse_device_options vduse_options; /* an answer within 1 second */
    uint32_t queues;                    /* 2 of a card, 1 of a disk */
    bool pass_fd;                       /* the vhost fd is opened here, and passed */
    uint64_t hidden;                    /* back-end features that the kernel shall not have */

    vdpa_kind kind;
    char path[VDPA_DEVICE_PATH];
    vduse_device vduse;
    uint8_t *ram; /* shared; gpa g is ram[g] */
    int ram_fd;
    vhost_vm vm;
    vhost_backing backing;
    vhost_section low, plug;
    vhost_kernel vdpa;
    vhost_device device;
    vhost_queue queue[VDPA_QUEUES];
    blk_driver disk;
    blk_work work;
    uint8_t *image; /* what must be on the disk, VDPA_AREA bytes */
    net_driver card;
    station me;              /* who has the card */
    uint32_t sent, received; /* numbers of the next frames */

    /* The books. */
    unsigned broken;  /* told */
    unsigned configs; /* changes of the config space that were told */
    vdpa_calls calls;
} vdpa_machine;

typedef enum greatest_test_res vdpa_machine_test(vdpa_machine *m);

/* Runs a test on all kinds of devices from the first to the last. */
void vdpa_machine_run(vdpa_machine_test *test, const char *name, vdpa_kind first, vdpa_kind last);

#define ON_ALL(TEST_NAME)       vdpa_machine_run(TEST_NAME, #TEST_NAME, VDPA_SIM_NET, VDPA_VDUSE)
#define ON_SIMULATED(TEST_NAME) vdpa_machine_run(TEST_NAME, #TEST_NAME, VDPA_SIM_NET, VDPA_SIM_BLK)
#define ON_DISKS(TEST_NAME)     vdpa_machine_run(TEST_NAME, #TEST_NAME, VDPA_SIM_BLK, VDPA_VDUSE)
#define ON_USER(TEST_NAME)      vdpa_machine_run(TEST_NAME, #TEST_NAME, VDPA_STORAGE, VDPA_VDUSE)
#define ON_CARD(TEST_NAME)      vdpa_machine_run(TEST_NAME, #TEST_NAME, VDPA_SIM_NET, VDPA_SIM_NET)
#define ON_VDUSE(TEST_NAME)     vdpa_machine_run(TEST_NAME, #TEST_NAME, VDPA_VDUSE, VDPA_VDUSE)

/* ---- the devices: 0 or a negative errno ---- */

/* Makes those that last for many tests, all but VDPA_VDUSE. */
int vdpa_machines_open(void);
void vdpa_machines_close(void);

/* Those that the kernel simulates go, and come back pinning guest memory. */
int vdpa_machines_pin(void);

/* Where a device is that lasts. */
const char *vdpa_machine_path(vdpa_kind kind);

/* That of VDPA_STORAGE, for a look into its file. */
const vdpa_disk *vdpa_machine_storage(void);

/* ---- arranging: 0 or a negative errno ---- */

int vdpa_machine_prepared(vdpa_machine *m);    /* all there but the vhost fd and the device */
int vdpa_machine_opened(vdpa_machine *m);      /* and the back-end is open */
int vdpa_machine_stopped(vdpa_machine *m);     /* and the device attached */
int vdpa_machine_running(vdpa_machine *m);     /* and started */
int vdpa_machine_open(vdpa_machine *m);        /* after vhost_kernel_close: once more */
int vdpa_machine_attach(vdpa_machine *m);      /* after vhost_device_cleanup: once more */
int vdpa_machine_open_driver(vdpa_machine *m); /* anew, with empty rings */
void vdpa_machine_close_driver(vdpa_machine *m);
void vdpa_machine_fill_queues(vdpa_machine *m);
int vdpa_machine_map(vdpa_machine *m, bool plugged); /* RAM alone, or with what comes and goes */
int vdpa_machine_map_sections(vdpa_machine *m, const vhost_section *sections, unsigned count);

/* Of a device that is not running: it is reset, the driver begins anew, and it is started. */
int vdpa_machine_restart(vdpa_machine *m);

/* Rings of the driver, whatever the device is. */
split_ring *vdpa_machine_ring(vdpa_machine *m, uint32_t queue);

/* ---- data ---- */

/* Moves some, and checks every byte: writes the area of a disk, and reads it; sends frames through
   a card, and receives them. */
enum greatest_test_res vdpa_machine_flows(vdpa_machine *m);

/* The same in halves; posts does not wait. */
enum greatest_test_res vdpa_machine_posts(vdpa_machine *m);
enum greatest_test_res vdpa_machine_finishes(vdpa_machine *m);

/* What is on the disk is what must be there. */
enum greatest_test_res vdpa_machine_compares(vdpa_machine *m);

/* After a stop: all that the device took it has given back, and there its queues stand. */
enum greatest_test_res vdpa_machine_positions_are_exact(const vdpa_machine *m);

/* One request of a disk, the only one, with its data in one piece at `gpa`: the first block of the
   area. false: no room in the ring. */
bool vdpa_machine_asks(vdpa_machine *m, blk_verb verb, uint64_t gpa);

/* Whether it is done within so many milliseconds. If it went wrong, the driver has a fault. */
bool vdpa_machine_transferred(vdpa_machine *m, int milliseconds);

/* Both. */
bool vdpa_machine_transfers(vdpa_machine *m, blk_verb verb, uint64_t gpa);

void vdpa_machine_kick(vdpa_machine *m, uint32_t queue);

/* Waits for a descriptor, serving the device. false: nothing came in time. */
bool vdpa_machine_waits(vdpa_machine *m, int fd, int milliseconds);

/* ---- what the process has ---- */

/* KiB of this field of /proc/self/status, such as VmLck; -1: there is no such field. */
long vdpa_machine_memory(const char *field);

#endif
