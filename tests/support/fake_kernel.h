/* The vhost devices of Linux behind vhost_kernel_calls. They refuse what the kernel refuses, with
   the same errno, and complain of what a library that works never does. They know the interface by
   numbers and offsets, and nothing of the structs of vhost_kernel.h.

   Which device it is, the path says that is opened, or the kind that is passed:

      net     2 rings, each with its tap
      vsock   2 rings, a CID, and SET_RUNNING; 6.1 keeps an IOTLB that it had: EFAULT
      scsi    8 rings; one target, `target`, which one endpoint may have; ENODEV if it is in use
      vdpa    one device, `vdpa`, open once at a time. Its status, rings, groups, config space and
              maps are there to be read; what it is, and what it does not take, to be set
      other   8 rings, and TEST_RUN (that of drivers/vhost/test.c)

   An IOTLB message that a vDPA device refuses is EFAULT, whatever the reason, as measured. Eight
   bytes written to an fd that is none of ours are a kick.

   What the kernel does not know goes the way of the ioctls of a ring: EPERM without an owner, then
   ENOBUFS if the first number of the argument is no ring, then ENOTTY.

   The complaints, besides those about values and order on every fd: rings that are set up or whose
   base is asked for while they run; a start before all is there, or twice (SET_ENDPOINT); of a vDPA
   device also status bits taken back, features without ACCESS_PLATFORM, DRIVER_OK with a ring that
   is not mapped, batches in batches, back-end features that were not acknowledged, memory
   that goes and comes back while the device runs (a new sequence of messages begins with a batch,
   any other call, or fake_kernel_forget), and what would disturb a suspended device. */
#ifndef TEST_FAKE_KERNEL_H
#define TEST_FAKE_KERNEL_H

#include "fault.h"
#include "vhost_kernel.h"

#define FAKE_PATH       "/dev/fake-vhost-net"
#define FAKE_VSOCK_PATH "/dev/fake-vhost-vsock"
#define FAKE_SCSI_PATH  "/dev/fake-vhost-scsi"
#define FAKE_VDPA_PATH  "/dev/fake-vhost-vdpa-0"
#define FAKE_OTHER_PATH "/dev/fake-vhost-other"
#define FAKE_TARGET     "naa.600140554cf3a18e"

enum {
    FAKE_FD = 9000,      /* the first vhost fd ever opened; no number comes twice */
    FAKE_FILE_FD = 8999, /* max_mem_regions, while it is open */
    FAKE_FDS = 192,
    FAKE_CALLS = 2048,
    FAKE_BYTES = 264, /* kept of an argument: the whole config space, or a table of eight regions */
    FAKE_RINGS = 8,   /* of one fd, at most */
    FAKE_MESSAGE = 72, /* bytes of a message about the IOTLB */
    FAKE_MAPS = 128,
    FAKE_GROUPS = 4,
    FAKE_SPACES = 4,
    FAKE_CONFIG = 256
};

typedef enum fake_kind {
    FAKE_NET,
    FAKE_VSOCK,
    FAKE_SCSI,
    FAKE_VDPA,
    FAKE_OTHER,
    FAKE_KINDS
} fake_kind;

/* What the library may call; ioctls by their names in <linux/vhost.h>, without VHOST_. */
typedef enum fake_op {
    FAKE_OPEN,
    FAKE_CLOSE,
    FAKE_READ,
    FAKE_WRITE,
    FAKE_MAP,   /* of a doorbell: offset and size are the bytes */
    FAKE_UNMAP, /* fd is -1 */
    FAKE_FIONBIO,
    FAKE_GET_FEATURES,
    FAKE_SET_FEATURES,
    FAKE_SET_OWNER,
    FAKE_RESET_OWNER,
    FAKE_SET_MEM_TABLE,
    FAKE_SET_LOG_BASE,
    FAKE_SET_LOG_FD,
    FAKE_NEW_WORKER,
    FAKE_FREE_WORKER,
    FAKE_SET_VRING_NUM,
    FAKE_SET_VRING_ADDR,
    FAKE_SET_VRING_BASE,
    FAKE_GET_VRING_BASE,
    FAKE_SET_VRING_ENDIAN,
    FAKE_ATTACH_VRING_WORKER,
    FAKE_SET_VRING_KICK,
    FAKE_SET_VRING_CALL,
    FAKE_SET_VRING_ERR,
    FAKE_SET_VRING_BUSYLOOP_TIMEOUT,
    FAKE_SET_BACKEND_FEATURES,
    FAKE_GET_BACKEND_FEATURES,
    FAKE_NET_SET_BACKEND,
    FAKE_SCSI_SET_ENDPOINT,
    FAKE_SCSI_CLEAR_ENDPOINT,
    FAKE_SCSI_GET_ABI_VERSION,
    FAKE_SCSI_SET_EVENTS_MISSED,
    FAKE_SCSI_GET_EVENTS_MISSED,
    FAKE_VSOCK_SET_GUEST_CID,
    FAKE_VSOCK_SET_RUNNING,
    FAKE_TEST_RUN,
    FAKE_VDPA_GET_DEVICE_ID,
    FAKE_VDPA_GET_STATUS,
    FAKE_VDPA_SET_STATUS,
    FAKE_VDPA_GET_CONFIG,
    FAKE_VDPA_SET_CONFIG,
    FAKE_VDPA_SET_VRING_ENABLE,
    FAKE_VDPA_GET_VRING_NUM,
    FAKE_VDPA_SET_CONFIG_CALL,
    FAKE_VDPA_GET_IOVA_RANGE,
    FAKE_VDPA_GET_CONFIG_SIZE,
    FAKE_VDPA_GET_AS_NUM,
    FAKE_VDPA_GET_VRING_GROUP,
    FAKE_VDPA_SET_GROUP_ASID,
    FAKE_VDPA_SUSPEND,
    FAKE_VDPA_RESUME,
    FAKE_VDPA_GET_VQS_COUNT,
    FAKE_VDPA_GET_GROUP_NUM,
    FAKE_VDPA_GET_VRING_SIZE,
    FAKE_GET_FEATURES_ARRAY,
    FAKE_SET_FEATURES_ARRAY,
    FAKE_SET_FORK_FROM_OWNER,
    FAKE_OP_COUNT,
    FAKE_NO_OP = FAKE_OP_COUNT
} fake_op;

typedef enum fake_release {
    FAKE_LINUX_2_6_34, /* no back-end features, no endian, no busy loop */
    FAKE_LINUX_4_19,
    FAKE_LINUX_5_7, /* the first vhost-vdpa; it has no back-end features */
    FAKE_LINUX_5_10,
    FAKE_LINUX_5_18,
    FAKE_LINUX_5_19, /* groups and address spaces */
    FAKE_LINUX_6_1,  /* no workers, no choice of thread; keeps its IOTLB; SUSPEND (since 6.0) */
    FAKE_LINUX_6_3,  /* RESUME */
    FAKE_LINUX_6_7,  /* IOTLB_PERSIST */
    FAKE_LINUX_6_9,
    FAKE_LINUX_6_12, /* as Debian's: no workers for vhost-net, but a choice of thread */
    FAKE_LINUX_6_17  /* everything */
} fake_release;

typedef struct fake_call {
    fake_op op;
    int fd; /* OPEN: the new one */
    unsigned long request;
    size_t size;                     /* of the argument, as the kernel reads it */
    unsigned char bytes[FAKE_BYTES]; /* its beginning, as handed over; OPEN: the path; WRITE too */
    int result;
} fake_call;

typedef struct fake_ring {
    bool sized, addressed, called, kicked;
    uint32_t size;
    uint32_t base; /* moved on by a test: what the kernel took */
    int tap;       /* of vhost-net, or -1: not running */
    int kick, call, error;
    uint32_t worker;
    uint64_t desc, used, avail, log; /* addresses as told */
    bool logs;
    bool enabled; /* of a vDPA device */
} fake_ring;

typedef struct fake_fd {
    fake_kind kind;
    bool open, owned;
    bool running;      /* all rings of it, but of vhost-net */
    uint64_t cid;      /* vsock; 0: none */
    uint32_t missed;   /* scsi: events */
    unsigned tlb_maps; /* UPDATEs since the IOTLB was empty */
    bool patient;      /* a read does not wait */
    bool sticks;       /* has an IOTLB that nobody needs, and refuses rings */
    bool table_set, features_set;
    uint64_t features[2], backend_features;
    uint32_t workers;
    fake_ring ring[FAKE_RINGS];
} fake_fd;

/* What a kind of device has; vhost-net has `features` and `backend_features` of the fake_kernel. */
typedef struct fake_offer {
    uint64_t features, backend_features;
} fake_offer;

typedef struct fake_map {
    bool there;
    bool lost; /* on the kernel's list, but a reset made the device forget it */
    uint32_t space;
    uint64_t iova, size, host;
    uint8_t permit;
} fake_map;

typedef struct fake_range {
    uint32_t space;
    uint64_t first, last;
} fake_range;

typedef struct fake_vdpa {
    /* For the test to set. */
    bool taken; /* somebody else has it open */
    uint32_t device_id, rings, groups, spaces, config_size;
    uint16_t ring_max;
    uint32_t ring_limit[FAKE_RINGS]; /* GET_VRING_SIZE; 0: the device has no such thing */
    bool groupless;                  /* it does not say which group a ring is in, as VDUSE */
    uint32_t group_of[FAKE_RINGS];
    uint64_t iova_first, iova_last;
    uint64_t lock_limit; /* bytes that may be mapped; 0: any number */
    uint8_t refuses;     /* status bits that it does not take */
    bool doorbells;      /* of its queues */
    unsigned char config[FAKE_CONFIG];

    /* For the test to read. */
    uint8_t status;
    bool suspended;
    uint32_t space_of[FAKE_GROUPS];
    int config_call; /* or -1 */
    bool in_batch;
    uint32_t batch_space;
    unsigned batches;        /* ended, ever */
    bool known[FAKE_SPACES]; /* something was mapped there, ever */
    fake_map maps[FAKE_MAPS];
    fake_range gone[FAKE_MAPS]; /* unmapped in this sequence, while it ran */
    unsigned gone_count;
    unsigned char doorbell[FAKE_RINGS]; /* 1: mapped; its address is the page */
} fake_vdpa;

typedef struct fake_kernel {
    /* For the test to set. */
    fake_release release;
    uint64_t features[2]; /* that vhost-net has */
    uint64_t backend_features;
    fake_offer offers[FAKE_KINDS];
    const char *target; /* that is in configfs; NULL: none */
    uint32_t scsi_abi;
    uint64_t taken_cid; /* of a vsock device elsewhere; 0: none */
    fake_vdpa vdpa;
    uint64_t lacks[FAKE_FDS];    /* of features[0], by order of opening */
    const char *max_mem_regions; /* what stands in the file; NULL: there is none */
    uint32_t slots;              /* more regions are refused */
    bool interrupts;             /* each call but open, read and close is interrupted once */
    bool has_owner;              /* fds are opened with an owner */
    fault *fault;                /* strikes system calls */
    void *(*allocate)(void *memory, size_t size, void *user); /* for the library */
    void *user;                                               /* of `allocate` */
    fake_op refused;  /* this call is refused; NO_OP: none is */
    int refused_fd;   /* only on this fd; -1: on any */
    int refused_skip; /* so many times it is not, first */
    bool refused_once;
    int refusal;
    unsigned char message[FAKE_MESSAGE]; /* what the next read of a vhost fd gives */
    size_t message_size;                 /* 0: nothing */
    int message_fd;

    /* For the test to read. */
    char complaint[160]; /* the first; empty: none */
    fake_fd fds[FAKE_FDS];
    unsigned opened; /* vhost fds, ever */
    bool file_open;
    bool interrupted;
    unsigned count;
    fake_call calls[FAKE_CALLS];
} fake_kernel;

extern const vhost_kernel_calls fake_kernel_calls;

/* The newest release, 64 slots, nothing refused. */
void fake_kernel_init(fake_kernel *self);

/* Options for the library: these calls, `allocate`, and `self` as their user. */
vhost_kernel_options fake_kernel_options(fake_kernel *self);

/* Opens an fd that somebody passes on: of vhost-net, or of any kind. */
int fake_kernel_pass(fake_kernel *self);
int fake_kernel_pass_kind(fake_kernel *self, fake_kind kind);

/* Refuses a call after it was let through `skip` times; on fd, or (-1) on any. */
void fake_kernel_refuse(fake_kernel *self, fake_op op, int fd, int skip, int error);
void fake_kernel_refuse_once(fake_kernel *self, fake_op op, int fd, int skip, int error);
void fake_kernel_relent(fake_kernel *self);

/* Forgets the calls, not the state. */
void fake_kernel_forget(fake_kernel *self);

/* How many such calls there were on an fd, or (-1) on any. */
unsigned fake_kernel_count(const fake_kernel *self, fake_op op, int fd);
const fake_call *fake_kernel_last(const fake_kernel *self, fake_op op, int fd);

/* Which calls there were: bit n is fake_op n. */
uint64_t fake_kernel_set(const fake_kernel *self);

unsigned fake_kernel_open_fds(const fake_kernel *self);

/* Whether a ring of this fd runs. */
bool fake_kernel_runs(const fake_fd *fd);

/* Whether the vDPA device has, in space 0, exactly these regions to read and write. */
bool fake_vdpa_has_table(const fake_kernel *self, const vhost_table *table);

/* The map that the kernel has of an address, lost by the device or not; NULL: none. */
const fake_map *fake_vdpa_find(const fake_kernel *self, uint32_t space, uint64_t iova);

/* How many maps the kernel has of a space, and how many doorbells are mapped. */
unsigned fake_vdpa_maps(const fake_kernel *self, uint32_t space);
unsigned fake_vdpa_doorbells(const fake_kernel *self);
const char *fake_kernel_name(fake_op op);

/* An unsigned number of 4 or 8 bytes in the host's byte order. */
uint64_t fake_kernel_number(const unsigned char *bytes, size_t size);

#endif
