/* vhost-net of Linux behind vhost_kernel_calls. It refuses what the kernel refuses, with the same
   errno, and complains of what a library that works never does. It knows the interface by numbers
   and offsets, and nothing of the structs of vhost_kernel.h. */
#ifndef TEST_FAKE_KERNEL_H
#define TEST_FAKE_KERNEL_H

#include "fault.h"
#include "vhost_kernel.h"

#define FAKE_PATH "/dev/fake-vhost-net"

enum {
    FAKE_FD = 9000,      /* the first vhost fd ever opened; no number comes twice */
    FAKE_FILE_FD = 8999, /* max_mem_regions, while it is open */
    FAKE_FDS = 64,
    FAKE_CALLS = 2048,
    FAKE_BYTES = 136, /* kept of an argument: a table of four regions */
    FAKE_RINGS = 2,   /* of one fd */
    FAKE_MESSAGE = 72 /* bytes of a message about the IOTLB */
};

/* What the library may call; ioctls by their names in <linux/vhost.h>, without VHOST_. */
typedef enum fake_op {
    FAKE_OPEN,
    FAKE_CLOSE,
    FAKE_READ,
    FAKE_WRITE,
    FAKE_FIONBIO,
    FAKE_GET_FEATURES,
    FAKE_SET_FEATURES,
    FAKE_SET_OWNER,
    FAKE_RESET_OWNER,
    FAKE_SET_MEM_TABLE,
    FAKE_SET_LOG_BASE,
    FAKE_SET_LOG_FD,
    FAKE_NEW_WORKER,
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
    FAKE_GET_FEATURES_ARRAY,
    FAKE_SET_FEATURES_ARRAY,
    FAKE_SET_FORK_FROM_OWNER,
    FAKE_OP_COUNT,
    FAKE_NO_OP = FAKE_OP_COUNT
} fake_op;

typedef enum fake_release {
    FAKE_LINUX_2_6_34, /* no back-end features, no endian, no busy loop */
    FAKE_LINUX_6_1,    /* no workers, no choice of thread; keeps its IOTLB */
    FAKE_LINUX_6_12,   /* as Debian's: no workers for vhost-net, but a choice of thread */
    FAKE_LINUX_6_17    /* everything */
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
    int tap;       /* or -1: not running */
    int kick, call, error;
    uint32_t worker;
} fake_ring;

typedef struct fake_fd {
    bool open, owned;
    bool patient; /* a read does not wait */
    bool sticks;  /* has an IOTLB that nobody needs, and refuses rings */
    bool table_set, features_set;
    uint64_t features[2], backend_features;
    uint32_t workers;
    fake_ring ring[FAKE_RINGS];
} fake_fd;

typedef struct fake_kernel {
    /* For the test to set. */
    fake_release release;
    uint64_t features[2]; /* that it has */
    uint64_t backend_features;
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

/* Opens an fd that somebody passes on. */
int fake_kernel_pass(fake_kernel *self);

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
const char *fake_kernel_name(fake_op op);

/* An unsigned number of 4 or 8 bytes in the host's byte order. */
uint64_t fake_kernel_number(const unsigned char *bytes, size_t size);

#endif
