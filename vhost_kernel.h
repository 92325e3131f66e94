/* vhost_kernel.h - v0.1.0 - the kernel's vhost drivers as a back-end for vhost.h (Linux)
   SPDX-License-Identifier: MIT OR Unlicense (full text at the end of vhost.h)

   Opens /dev/vhost-net, and drives it by ioctls for a vhost_device of vhost.h. */

/*
CONTENTS (grep -n '>>[a-z]' vhost_kernel.h is the index)

   >>manual      how to use it, fds, seccomp
   >>types       the back-end object, its options, system calls
   >>api         the functions
   >>uapi        the numbers and structs of the kernel's interface
   >>calls       system calls, and what is done on every fd
   >>open        fds, owners, facts
   >>whole       operations on all fds: features, memory table, log
   >>rings       operations on one queue, and its tap
   >>iotlb       messages behind a vIOMMU
   >>ops         the table of functions, init and close

>>manual

1. USE

      #define VHOST_IMPLEMENTATION             in one .c file
      #include "vhost_kernel.h"                includes vhost.h

      vhost_kernel net;
      vhost_kernel_net_open(&net, "/dev/vhost-net", &tap, 1, NULL);
      vhost_device_init(&dev, &vm, vhost_kernel_ops(), &net, queues, 2, NULL);
      ...
      vhost_device_cleanup(&dev);
      vhost_kernel_close(&net);

   One vhost_kernel serves one vhost_device. A vhost-net fd serves one pair of queues (0 receives,
   1 transmits), so several pairs take several fds: they are opened, configured and rolled back as
   one. The control queue of virtio-net is the VMM's own, and no queue of the vhost_device.

   The tap: open /dev/net/tun with IFF_TAP | IFF_NO_PI | IFF_VNET_HDR (and IFF_MULTI_QUEUE, one fd
   per pair); TUNSETVNETHDRSZ 12, or 10 for a legacy driver without MRG_RXBUF; TUNSETOFFLOAD as the
   driver accepted. A tap moves nothing while its link is down.

   Feature bit 27 (VHOST_NET_F_VIRTIO_NET_HDR) asks vhost-net to make the net header itself, for a
   tap without IFF_VNET_HDR. It is hidden unless options.makes_net_header is set.
   Feature bits 15 (MRG_RXBUF) and 24 to 41 (rings and transport) are the kernel's to offer, bits
   64 and up too; all others (MAC, offloads, ...) are the VMM's and its tap's.

2. FDS

   taps           yours, borrowed until another is attached or the back-end is closed
   vhost fds      opened by path: by vhost_device_init, closed by vhost_device_cleanup.
                  Passed to vhost_kernel_net_open_fds: ours after success, still yours on failure;
                  made non-blocking by vhost_device_init, closed by vhost_kernel_close.
                  Either kind is closed when the device breaks.

   A device that broke needs its fds opened anew: vhost_device_reset does it if they were opened by
   path; else it fails, and last_error of the vhost_kernel says VHOST_WHY_KERNEL_SEVERED. Reasons of
   the kernel are always there: device.last_error names the operation, this one the ioctl.

3. OLD KERNELS

   What a kernel does not know is not supported, not a failure: no back-end features, no features
   above bit 63, no worker or kind of thread of one's choice. Any vhost-net since Linux 2.6.34 will
   do.

4. SYSTEM CALLS (for seccomp)

      call                       makes
      vhost_kernel_net_open      -
      vhost_kernel_net_open_fds  -
      vhost_device_init          openat(path; /sys/module/vhost/parameters/max_mem_regions), read,
                                 close; ioctl FIONBIO, SET_FORK_FROM_OWNER, SET_OWNER,
                                 GET_FEATURES_ARRAY, GET_FEATURES, GET_BACKEND_FEATURES, NEW_WORKER,
                                 ATTACH_VRING_WORKER; eventfd2
      vhost_device_start         ioctl SET_FEATURES or SET_FEATURES_ARRAY, SET_BACKEND_FEATURES,
                                 SET_MEM_TABLE, SET_LOG_BASE, SET_VRING_CALL, _ERR, _NUM, _BASE,
                                 _ENDIAN, _ADDR, _BUSYLOOP_TIMEOUT, _KICK,
                                 NET_SET_BACKEND; behind a vIOMMU: write; if the driver gave
                                 ACCESS_PLATFORM back, RESET_OWNER and what init makes to own an
                                 fd; if it fails, what stop makes
      vhost_device_stop          ioctl NET_SET_BACKEND, GET_VRING_BASE; close, if it fails
      vhost_device_reset         of a broken device: as vhost_device_init, and SET_LOG_FD; read
      vhost_device_cleanup       as stop; close
      vhost_queue_start, _stop   the ring ioctls of start and stop; close, if the device breaks
      vhost_queue_mask, _unmask  ioctl SET_VRING_CALL; _unmask and _pending: read
      vhost_device_process       read; behind a vIOMMU: write
      vhost_device_unmapped      write
      vhost_log_start, _stop     ioctl SET_LOG_BASE, SET_FEATURES or SET_FEATURES_ARRAY,
                                 SET_BACKEND_FEATURES, SET_VRING_ADDR; behind a vIOMMU: write, as
                                 in vhost_queue_start and vhost_memory_commit
      any that breaks a device   what stop makes, and close
      vhost_memory_commit        ioctl SET_MEM_TABLE, SET_LOG_BASE; what stop does, and close, if a
                                 device breaks
      vhost_kernel_net_attach    ioctl NET_SET_BACKEND
      vhost_kernel_set_log_fd    ioctl SET_LOG_FD
      vhost_kernel_close         close
*/

#include "vhost.h" /* outside of every guard: it has its own, and may have more to say this time */

#ifndef VHOST_KERNEL_H_INCLUDED
#define VHOST_KERNEL_H_INCLUDED

#ifdef __cplusplus
extern "C" {
#endif

/* >>types ------------------------------------------------------------------------------------- */

/* The system calls, replaceable for tests and jails. Each returns >= 0, or a negative errno. */
typedef struct vhost_kernel_calls {
    int (*open)(const char *path, bool writable, void *user); /* close-on-exec */
    int (*close)(int fd, void *user);
    int (*ioctl)(int fd, unsigned long request, void *argument, void *user);
    ptrdiff_t (*read)(int fd, void *bytes, size_t size, void *user);
    ptrdiff_t (*write)(int fd, const void *bytes, size_t size, void *user);
} vhost_kernel_calls;

typedef enum vhost_kernel_thread {   /* what runs the queues (Linux 6.17 and later) */
    VHOST_KERNEL_THREAD_DEFAULT = 0, /* as the kernel's module parameter says */
    VHOST_KERNEL_THREAD_KTHREAD = 1, /* a kernel thread */
    VHOST_KERNEL_THREAD_OF_OWNER = 2 /* a thread of this process */
} vhost_kernel_thread;

typedef struct vhost_kernel_options { /* zero is the default of each; copied */
    void *user;                       /* passed to `allocate` and to every function of `calls` */
    const vhost_kernel_calls *calls;  /* default: the system's; borrowed until close */
    void *(*allocate)(void *memory, size_t size, void *user); /* as realloc; size 0 frees */
    bool makes_net_header;                                    /* see manual, chapter 1 */
    bool worker_per_queue; /* a thread per queue, where the kernel has it */
    vhost_kernel_thread thread;
} vhost_kernel_options;

/* One fd and what belongs to it. */
typedef struct vhosti_kernel_fd {
    int fd;         /* -1: not open */
    int tap;        /* or -1 */
    bool owned;     /* SET_OWNER was done */
    bool furnished; /* and what goes with it */
    bool hired;     /* of that: NEW_WORKER gave `worker` */
    uint32_t worker;
    bool sticks;     /* it had ACCESS_PLATFORM since */
    bool enabled[2]; /* queues with the tap behind them */
} vhosti_kernel_fd;

typedef struct vhost_kernel {
    vhost_error last_error; /* read only: what the kernel refused last, and in which ioctl */

    /* Private. */
    vhost_kernel_options options;
    char path[64]; /* empty: fds were passed */
    vhosti_kernel_fd *fds;
    uint32_t fd_count;
    int64_t missed;            /* the fd whose miss is being answered, or -1 */
    vhost_device *device;      /* to tell of misses */
    vhost_features features;   /* in force on every fd */
    uint64_t backend_features; /* that every fd has */
    uint64_t log_base;         /* in force on every fd; 0: none */
    int32_t log_fd;            /* or -1; on every fd that is owned */
    bool translates;           /* it has an IOTLB, so its fds can be read */
    void *table;               /* room for the argument of SET_MEM_TABLE */
    size_t table_size;
} vhost_kernel;

/* >>api ----------------------------------------------------------------------------------------

   Threads: attach is like vhost_queue_start, all others are like vhost_device_init. */

/* The back-end operations for vhost_device_init, whose `backend` is then a vhost_kernel. */
VHOST_API const vhost_backend_ops *vhost_kernel_ops(void);

/* Prepares vhost-net with `pairs` queue pairs. The device at `path` (shorter than 64 bytes) is
   opened once per pair by vhost_device_init. taps: one fd per pair (-1: attach it later); options
   may be NULL. -EINVAL: no pairs, or path too long; -ENOMEM. */
VHOST_API int vhost_kernel_net_open(vhost_kernel *kernel, const char *path, const int *taps,
                                    uint32_t pairs, const vhost_kernel_options *options);

/* The same with vhost-net fds opened by somebody else; nobody may have set their owner. */
VHOST_API int vhost_kernel_net_open_fds(vhost_kernel *kernel, const int *fds, const int *taps,
                                        uint32_t pairs, const vhost_kernel_options *options);

/* Puts another tap, or none (-1), behind a queue pair: at once if its queues run, else from the
   next start on. The old tap may be closed on return. -EINVAL: no such pair; or what the kernel
   said: then the old tap is still behind the pair. */
VHOST_API int vhost_kernel_net_attach(vhost_kernel *kernel, uint32_t pair, int tap);

/* Has an eventfd (borrowed until close) signalled at each write to the dirty log; -1: none. The
   device is initialised. If the kernel refuses, the one before stays. */
VHOST_API int vhost_kernel_set_log_fd(vhost_kernel *kernel, int fd);

/* Closes all fds that are ours. After vhost_device_cleanup; may be repeated, and does nothing to a
   zeroed object. */
VHOST_API void vhost_kernel_close(vhost_kernel *kernel);

#ifdef __cplusplus
}
#endif
#endif /* VHOST_KERNEL_H_INCLUDED: stop here if you only want the API */

/* ==============================================================================================
   Implementation
   ============================================================================================== */

#if defined(VHOST_IMPLEMENTATION) && !defined(VHOST_KERNEL_IMPLEMENTATION)
#define VHOST_KERNEL_IMPLEMENTATION
#endif
#if defined(VHOST_KERNEL_IMPLEMENTATION) && !defined(VHOST_KERNEL_IMPLEMENTATION_DONE)
#define VHOST_KERNEL_IMPLEMENTATION_DONE

#if defined(VHOST_STATIC)
#define VHOST_KERNEL_DEF static
#else
#define VHOST_KERNEL_DEF
#endif

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <unistd.h>

#ifdef __cplusplus
extern "C" {
#endif

/* >>uapi --------------------------------------------------------------------------------------

   Our own copies: the kernel's headers are not C++, and not on every system. A test compares them
   (tests/hygiene/uapi_match.c). */

typedef struct vhosti_kernel_state {
    uint32_t index;
    uint32_t number;
} vhosti_kernel_state;

typedef struct vhosti_kernel_file {
    uint32_t index;
    int32_t fd;
} vhosti_kernel_file;

typedef struct vhosti_kernel_address {
    uint32_t index;
    uint32_t flags; /* bit 0: log writes to the used ring */
    uint64_t desc;
    uint64_t used;
    uint64_t avail;
    uint64_t log; /* gpa of the used ring */
} vhosti_kernel_address;

typedef struct vhosti_kernel_region {
    uint64_t gpa;
    uint64_t size;
    uint64_t host;
    uint64_t flags;
} vhosti_kernel_region;

typedef struct vhosti_kernel_memory { /* the regions follow */
    uint32_t count;
    uint32_t padding;
} vhosti_kernel_memory;

typedef struct vhosti_kernel_entry {
    uint64_t iova;
    uint64_t size;
    uint64_t host;
    uint8_t permit;
    uint8_t type;
} vhosti_kernel_entry;

typedef union vhosti_kernel_body {
    vhosti_kernel_entry entry;
    uint8_t padding[64];
} vhosti_kernel_body;

typedef struct vhosti_kernel_message {
    int32_t version; /* 1 */
    vhosti_kernel_body body;
} vhosti_kernel_message;

typedef struct vhosti_kernel_message_v2 {
    uint32_t version; /* 2 */
    uint32_t asid;
    vhosti_kernel_body body;
} vhosti_kernel_message_v2;

typedef struct vhosti_kernel_words { /* of the features array: the words follow */
    uint64_t count;
} vhosti_kernel_words;

#define VHOSTI_KERNEL_IO(number)             _IO(0xAF, number)
#define VHOSTI_KERNEL_IOR(number, argument)  _IOR(0xAF, number, argument)
#define VHOSTI_KERNEL_IOW(number, argument)  _IOW(0xAF, number, argument)
#define VHOSTI_KERNEL_IOWR(number, argument) _IOWR(0xAF, number, argument)

#define VHOSTI_KERNEL_GET_FEATURES         VHOSTI_KERNEL_IOR(0x00, uint64_t)
#define VHOSTI_KERNEL_SET_FEATURES         VHOSTI_KERNEL_IOW(0x00, uint64_t)
#define VHOSTI_KERNEL_SET_OWNER            VHOSTI_KERNEL_IO(0x01)
#define VHOSTI_KERNEL_RESET_OWNER          VHOSTI_KERNEL_IO(0x02)
#define VHOSTI_KERNEL_SET_MEM_TABLE        VHOSTI_KERNEL_IOW(0x03, vhosti_kernel_memory)
#define VHOSTI_KERNEL_SET_LOG_BASE         VHOSTI_KERNEL_IOW(0x04, uint64_t)
#define VHOSTI_KERNEL_SET_LOG_FD           VHOSTI_KERNEL_IOW(0x07, int32_t)
#define VHOSTI_KERNEL_NEW_WORKER           VHOSTI_KERNEL_IOR(0x08, uint32_t)
#define VHOSTI_KERNEL_SET_VRING_NUM        VHOSTI_KERNEL_IOW(0x10, vhosti_kernel_state)
#define VHOSTI_KERNEL_SET_VRING_ADDR       VHOSTI_KERNEL_IOW(0x11, vhosti_kernel_address)
#define VHOSTI_KERNEL_SET_VRING_BASE       VHOSTI_KERNEL_IOW(0x12, vhosti_kernel_state)
#define VHOSTI_KERNEL_GET_VRING_BASE       VHOSTI_KERNEL_IOWR(0x12, vhosti_kernel_state)
#define VHOSTI_KERNEL_SET_VRING_ENDIAN     VHOSTI_KERNEL_IOW(0x13, vhosti_kernel_state)
#define VHOSTI_KERNEL_ATTACH_VRING_WORKER  VHOSTI_KERNEL_IOW(0x15, vhosti_kernel_state)
#define VHOSTI_KERNEL_SET_VRING_KICK       VHOSTI_KERNEL_IOW(0x20, vhosti_kernel_file)
#define VHOSTI_KERNEL_SET_VRING_CALL       VHOSTI_KERNEL_IOW(0x21, vhosti_kernel_file)
#define VHOSTI_KERNEL_SET_VRING_ERR        VHOSTI_KERNEL_IOW(0x22, vhosti_kernel_file)
#define VHOSTI_KERNEL_SET_VRING_BUSYLOOP   VHOSTI_KERNEL_IOW(0x23, vhosti_kernel_state)
#define VHOSTI_KERNEL_SET_BACKEND_FEATURES VHOSTI_KERNEL_IOW(0x25, uint64_t)
#define VHOSTI_KERNEL_GET_BACKEND_FEATURES VHOSTI_KERNEL_IOR(0x26, uint64_t)
#define VHOSTI_KERNEL_NET_SET_BACKEND      VHOSTI_KERNEL_IOW(0x30, vhosti_kernel_file)
#define VHOSTI_KERNEL_GET_FEATURES_ARRAY   VHOSTI_KERNEL_IOR(0x83, vhosti_kernel_words)
#define VHOSTI_KERNEL_SET_FEATURES_ARRAY   VHOSTI_KERNEL_IOW(0x83, vhosti_kernel_words)
#define VHOSTI_KERNEL_SET_FORK_FROM_OWNER  VHOSTI_KERNEL_IOW(0x84, uint8_t)

#define VHOSTI_KERNEL_NET_RINGS       2u /* of one vhost-net fd */
#define VHOSTI_KERNEL_DEFAULT_REGIONS 64 /* of the module parameter */

#define VHOSTI_KERNEL_NET_HEADER   27            /* feature bit */
#define VHOSTI_KERNEL_IOTLB_MSG_V2 UINT64_C(0x2) /* back-end feature */

/* Feature bits that vhost-net itself implements: MRG_RXBUF, and 24 to 41; then word 1. */
#define VHOSTI_KERNEL_NET_BITS (UINT64_C(1) << 15 | UINT64_C(0x3ffff000000))

/* >>calls ------------------------------------------------------------------------------------- */

#define VHOSTI_KERNEL_CLOEXEC EFD_CLOEXEC /* is O_CLOEXEC, which <fcntl.h> hides in strict C99 */

static int vhosti_kernel_sys_open(const char *path, bool writable, void *user)
{
    int fd = open(path, (writable ? O_RDWR : O_RDONLY) | VHOSTI_KERNEL_CLOEXEC);
    (void)user;
    return fd < 0 ? -errno : fd;
}

static int vhosti_kernel_sys_close(int fd, void *user)
{
    (void)user;
    return close(fd) < 0 ? -errno : 0;
}

static int vhosti_kernel_sys_ioctl(int fd, unsigned long request, void *argument, void *user)
{
    int result = ioctl(fd, request, argument);
    (void)user;
    return result < 0 ? -errno : result;
}

static ptrdiff_t vhosti_kernel_sys_read(int fd, void *bytes, size_t size, void *user)
{
    ptrdiff_t count = read(fd, bytes, size);
    (void)user;
    return count < 0 ? -errno : count;
}

static ptrdiff_t vhosti_kernel_sys_write(int fd, const void *bytes, size_t size, void *user)
{
    ptrdiff_t count = write(fd, bytes, size);
    (void)user;
    return count < 0 ? -errno : count;
}

static const vhost_kernel_calls vhosti_kernel_system = {
    vhosti_kernel_sys_open, vhosti_kernel_sys_close, vhosti_kernel_sys_ioctl,
    vhosti_kernel_sys_read, vhosti_kernel_sys_write};

static void *vhosti_kernel_sys_allocate(void *memory, size_t size, void *user)
{
    (void)user;
    if (size == 0) {
        free(memory);
        return NULL;
    }
    return realloc(memory, size);
}

/* Records what failed, for people; the core reports it, with the operation and the queue. */
static int vhosti_kernel_fail(vhost_kernel *kernel, int code, vhost_why why, uint32_t line,
                              const char *what, int64_t pair)
{
    vhost_error *error = &kernel->last_error;
    error->code = code;
    error->why = why;
    error->op = VHOST_OP_NONE;
    error->queue = -1;
    error->line = line;
    if (pair >= 0)
        (void)snprintf(error->text, sizeof error->text, "%s of pair %ld (%s)", what, (long)pair,
                       vhost_why_text(why));
    else
        (void)snprintf(error->text, sizeof error->text, "%s (%s)", what, vhost_why_text(why));
    return code;
}

#define VHOSTI_KERNEL_FAIL(kernel, code, why, what, pair)                                          \
    vhosti_kernel_fail((kernel), (code), (why), __LINE__, (what), (int64_t)(pair))

/* One ioctl on one fd. What the kernel does not know is -ENOTSUP. */
static int vhosti_kernel_ioctl(vhost_kernel *kernel, uint32_t i, const char *name,
                               unsigned long request, void *argument)
{
    const vhost_kernel_options *options = &kernel->options;
    int fd = kernel->fds[i].fd, code;
    if (fd < 0)
        return VHOSTI_KERNEL_FAIL(kernel, -ENODEV, VHOST_WHY_KERNEL_SEVERED, name, i);
    do {
        code = options->calls->ioctl(fd, request, argument, options->user);
    } while (code == -EINTR);
    if (code >= 0)
        return code;
    if (code == -ENOTTY)
        return VHOSTI_KERNEL_FAIL(kernel, -ENOTSUP, VHOST_WHY_NOT_SUPPORTED, name, i);
    return VHOSTI_KERNEL_FAIL(kernel, code, VHOST_WHY_BACKEND_REFUSED, name, i);
}

/* An ioctl that an old kernel may not know. Unknown ones end up in code that takes the argument for
   that of a ring, so what comes back may also be "no such ring". */
static int vhosti_kernel_ask(vhost_kernel *kernel, uint32_t i, const char *name,
                             unsigned long request, void *argument)
{
    vhost_error before = kernel->last_error; /* to be unknown is no failure */
    int code = vhosti_kernel_ioctl(kernel, i, name, request, argument);
    if (code != -ENOBUFS && code != -ENOTSUP)
        return code;
    kernel->last_error = before;
    return -ENOTSUP;
}

typedef int (*vhosti_kernel_step)(vhost_kernel *kernel, uint32_t i, const void *value);

/* Does a step on every fd with `wanted`, or, if one refuses, on those before it with `before`
   (NULL: there is no way back, and none is needed). */
static int vhosti_kernel_on_all(vhost_kernel *kernel, vhosti_kernel_step step, const void *wanted,
                                const void *before)
{
    uint32_t i;
    for (i = 0; i < kernel->fd_count; i++) {
        int code = step(kernel, i, wanted);
        if (code < 0) {
            vhost_error first = kernel->last_error;
            while (i-- > 0 && before != NULL)
                (void)step(kernel, i, before);
            kernel->last_error = first;
            return code;
        }
    }
    return 0;
}

/* >>open -------------------------------------------------------------------------------------- */

static bool vhosti_kernel_has_path(const vhost_kernel *kernel)
{
    return kernel->path[0] != '\0';
}

/* Whatever was in force went with the fds. */
static void vhosti_kernel_forget(vhost_kernel *kernel)
{
    memset(&kernel->features, 0, sizeof kernel->features);
    kernel->log_base = 0;
}

static void vhosti_kernel_close_fd(vhost_kernel *kernel, vhosti_kernel_fd *one)
{
    if (one->fd >= 0)
        (void)kernel->options.calls->close(one->fd, kernel->options.user);
    one->fd = -1;
    one->owned = one->furnished = one->hired = one->sticks = false;
    one->enabled[0] = one->enabled[1] = false;
}

static void vhosti_kernel_close_fds(vhost_kernel *kernel)
{
    uint32_t i;
    for (i = 0; i < kernel->fd_count; i++)
        vhosti_kernel_close_fd(kernel, &kernel->fds[i]);
    vhosti_kernel_forget(kernel);
}

static int vhosti_kernel_open_path(vhost_kernel *kernel, const char *path, bool writable)
{
    int fd;
    do {
        fd = kernel->options.calls->open(path, writable, kernel->options.user);
    } while (fd == -EINTR);
    return fd;
}

static int vhosti_kernel_open_fd(vhost_kernel *kernel, uint32_t i)
{
    vhosti_kernel_fd *one = &kernel->fds[i];
    int fd;
    if (one->fd >= 0)
        return 0;
    if (!vhosti_kernel_has_path(kernel))
        return VHOSTI_KERNEL_FAIL(kernel, -ENODEV, VHOST_WHY_KERNEL_SEVERED, "a passed fd", i);
    fd = vhosti_kernel_open_path(kernel, kernel->path, true);
    if (fd < 0)
        return VHOSTI_KERNEL_FAIL(kernel, fd, VHOST_WHY_KERNEL_OPEN, kernel->path, i);
    one->fd = fd;
    return 0;
}

static int vhosti_kernel_choose_thread(vhost_kernel *kernel, uint32_t i)
{
    uint8_t of_owner[4] = {0, 0, 0, 0}; /* one byte counts; old kernels read four */
    vhost_error before = kernel->last_error;
    int code;
    if (kernel->options.thread == VHOST_KERNEL_THREAD_DEFAULT)
        return 0;
    of_owner[0] = kernel->options.thread == VHOST_KERNEL_THREAD_OF_OWNER;
    code = vhosti_kernel_ask(kernel, i, "SET_FORK_FROM_OWNER", VHOSTI_KERNEL_SET_FORK_FROM_OWNER,
                             of_owner);
    /* An old kernel has one kind of thread only; it says EPERM to anything before the owner. */
    if (code != -ENOTSUP && code != -EPERM)
        return code;
    kernel->last_error = before;
    return 0;
}

/* So that `process` can read until there is nothing left. */
static int vhosti_kernel_unblock(vhost_kernel *kernel, uint32_t i)
{
    int on = 1;
    return vhosti_kernel_ioctl(kernel, i, "FIONBIO", FIONBIO, &on);
}

/* A thread for the second ring; the first keeps the one that SET_OWNER made. */
static int vhosti_kernel_add_worker(vhost_kernel *kernel, uint32_t i)
{
    vhosti_kernel_fd *one = &kernel->fds[i];
    vhosti_kernel_state worker;
    int code = 0;
    if (!kernel->options.worker_per_queue)
        return 0;
    if (!one->hired) { /* else by an attempt that failed later */
        code = vhosti_kernel_ask(kernel, i, "NEW_WORKER", VHOSTI_KERNEL_NEW_WORKER, &one->worker);
        one->hired = code >= 0;
    }
    worker.index = 1;
    worker.number = one->worker;
    if (code >= 0)
        code = vhosti_kernel_ioctl(kernel, i, "ATTACH_VRING_WORKER",
                                   VHOSTI_KERNEL_ATTACH_VRING_WORKER, &worker);
    return code == -ENOTSUP ? 0 : code;
}

static int vhosti_kernel_step_log_fd(vhost_kernel *kernel, uint32_t i, const void *value)
{
    int32_t fd = *(const int32_t *)value;
    return vhosti_kernel_ioctl(kernel, i, "SET_LOG_FD", VHOSTI_KERNEL_SET_LOG_FD, &fd);
}

/* What goes with an owner, and comes with the next one again. */
static int vhosti_kernel_furnish_fd(vhost_kernel *kernel, uint32_t i)
{
    int code;
    if (kernel->fds[i].furnished)
        return 0;
    code = vhosti_kernel_add_worker(kernel, i);
    if (code >= 0 && kernel->log_fd >= 0)
        code = vhosti_kernel_step_log_fd(kernel, i, &kernel->log_fd);
    kernel->fds[i].furnished = code >= 0;
    return code;
}

static int vhosti_kernel_set_owner(vhost_kernel *kernel, uint32_t i)
{
    int code;
    if (kernel->fds[i].owned)
        return 0;
    code = vhosti_kernel_unblock(kernel, i);
    if (code >= 0)
        code = vhosti_kernel_choose_thread(kernel, i);
    if (code >= 0)
        code = vhosti_kernel_ioctl(kernel, i, "SET_OWNER", VHOSTI_KERNEL_SET_OWNER, NULL);
    if (code == -EBUSY)
        return VHOSTI_KERNEL_FAIL(kernel, code, VHOST_WHY_KERNEL_OWNER, "SET_OWNER", i);
    kernel->fds[i].owned = code >= 0;
    return code;
}

static int vhosti_kernel_own_fd(vhost_kernel *kernel, uint32_t i)
{
    int code = vhosti_kernel_set_owner(kernel, i);
    return code < 0 ? code : vhosti_kernel_furnish_fd(kernel, i);
}

/* All 128 bits where the kernel has them, else 64. */
static int vhosti_kernel_get_features(vhost_kernel *kernel, uint32_t i, vhost_features *features)
{
    struct {
        vhosti_kernel_words head;
        uint64_t words[2];
    } array = {{2}, {0, 0}};
    int code = vhosti_kernel_ask(kernel, i, "GET_FEATURES_ARRAY", VHOSTI_KERNEL_GET_FEATURES_ARRAY,
                                 &array);
    if (code == -ENOTSUP)
        code = vhosti_kernel_ioctl(kernel, i, "GET_FEATURES", VHOSTI_KERNEL_GET_FEATURES,
                                   &array.words[0]);
    features->word[0] = array.words[0];
    features->word[1] = array.words[1];
    return code;
}

static int vhosti_kernel_get_backend_features(vhost_kernel *kernel, uint32_t i, uint64_t *bits)
{
    int code = vhosti_kernel_ask(kernel, i, "GET_BACKEND_FEATURES",
                                 VHOSTI_KERNEL_GET_BACKEND_FEATURES, bits);
    if (code != -ENOTSUP)
        return code;
    *bits = 0;
    return 0;
}

/* Opens and owns one fd, and leaves in `common` what it and the ones before have. */
static int vhosti_kernel_prepare_fd(vhost_kernel *kernel, uint32_t i, vhost_features *common)
{
    vhost_features features;
    uint64_t backend_features = 0;
    int code = vhosti_kernel_open_fd(kernel, i);
    if (code == 0)
        code = vhosti_kernel_own_fd(kernel, i);
    if (code >= 0)
        code = vhosti_kernel_get_features(kernel, i, &features);
    if (code >= 0)
        code = vhosti_kernel_get_backend_features(kernel, i, &backend_features);
    if (code < 0)
        return code;
    common->word[0] &= features.word[0];
    common->word[1] &= features.word[1];
    kernel->backend_features &= backend_features;
    return 0;
}

static uint32_t vhosti_kernel_read_max_regions(vhost_kernel *kernel)
{
    const vhost_kernel_options *options = &kernel->options;
    char digits[16];
    ptrdiff_t count;
    long value;
    int fd = vhosti_kernel_open_path(kernel, "/sys/module/vhost/parameters/max_mem_regions", false);
    if (fd < 0)
        return VHOSTI_KERNEL_DEFAULT_REGIONS;
    do {
        count = options->calls->read(fd, digits, sizeof digits - 1, options->user);
    } while (count == -EINTR);
    (void)options->calls->close(fd, options->user);
    digits[count > 0 ? count : 0] = '\0';
    value = strtol(digits, NULL, 10);
    return (uint32_t)(value > 0 && value <= UINT16_MAX ? value : VHOSTI_KERNEL_DEFAULT_REGIONS);
}

static void vhosti_kernel_close_path(vhost_kernel *kernel)
{
    if (vhosti_kernel_has_path(kernel))
        vhosti_kernel_close_fds(kernel);
}

static int vhosti_kernel_op_open(void *backend, vhost_device *device, vhost_facts *facts)
{
    vhost_kernel *kernel = (vhost_kernel *)backend;
    uint32_t i;
    if (kernel->fd_count == 0)
        return VHOSTI_KERNEL_FAIL(kernel, -EINVAL, VHOST_WHY_ARGUMENT, "not opened", -1);
    kernel->device = device;
    facts->offered.word[0] = facts->offered.word[1] = UINT64_MAX;
    kernel->backend_features = UINT64_MAX;
    for (i = 0; i < kernel->fd_count; i++) {
        int code = vhosti_kernel_prepare_fd(kernel, i, &facts->offered);
        if (code < 0) {
            vhosti_kernel_close_path(kernel);
            return code;
        }
    }
    if (!kernel->options.makes_net_header)
        vhost_features_clear(&facts->offered, VHOSTI_KERNEL_NET_HEADER);
    kernel->translates = vhost_features_test(&facts->offered, VHOST_FEATURE_ACCESS_PLATFORM);
    facts->name = "vhost-net";
    facts->profile = VHOST_PROFILE_BY_HOST;
    facts->log_kind = VHOST_DIRTY_PRIVATE;
    facts->max_regions = vhosti_kernel_read_max_regions(kernel);
    facts->max_queues = kernel->fd_count * VHOSTI_KERNEL_NET_RINGS;
    facts->its_bits.word[0] = VHOSTI_KERNEL_NET_BITS;
    facts->its_bits.word[1] = UINT64_MAX;
    return 0;
}

static void vhosti_kernel_op_close(void *backend)
{
    vhosti_kernel_close_path((vhost_kernel *)backend);
}

/* >>whole ------------------------------------------------------------------------------------- */

/* Linux 6.1 keeps its IOTLB when ACCESS_PLATFORM goes, and then refuses every ring until the owner
   is reset. What the owner's reset takes with it, start sends anew. */
static int vhosti_kernel_unstick(vhost_kernel *kernel, const vhost_features *features)
{
    uint32_t i;
    int code = 0;
    if (vhost_features_test(features, VHOST_FEATURE_ACCESS_PLATFORM))
        return 0;
    for (i = 0; i < kernel->fd_count && code >= 0; i++) {
        vhosti_kernel_fd *one = &kernel->fds[i];
        if (!one->sticks)
            continue;
        code = vhosti_kernel_ioctl(kernel, i, "RESET_OWNER", VHOSTI_KERNEL_RESET_OWNER, NULL);
        if (code >= 0)
            one->owned = one->furnished = one->hired = one->sticks = false;
    }
    return code;
}

/* Owns again what an unsticking, now or in an earlier attempt, left without an owner. */
static int vhosti_kernel_own_fds(vhost_kernel *kernel)
{
    uint32_t i;
    int code = 0;
    for (i = 0; i < kernel->fd_count && code >= 0; i++)
        code = vhosti_kernel_own_fd(kernel, i);
    return code;
}

static int vhosti_kernel_step_features(vhost_kernel *kernel, uint32_t i, const void *value)
{
    const vhost_features *features = (const vhost_features *)value;
    struct {
        vhosti_kernel_words head;
        uint64_t words[2];
    } array = {{2}, {0, 0}};
    int code;
    array.words[0] = features->word[0];
    array.words[1] = features->word[1];
    if (features->word[1] == 0)
        code = vhosti_kernel_ioctl(kernel, i, "SET_FEATURES", VHOSTI_KERNEL_SET_FEATURES,
                                   &array.words[0]);
    else
        code = vhosti_kernel_ioctl(kernel, i, "SET_FEATURES_ARRAY",
                                   VHOSTI_KERNEL_SET_FEATURES_ARRAY, &array);
    if (code >= 0 && vhost_features_test(features, VHOST_FEATURE_ACCESS_PLATFORM))
        kernel->fds[i].sticks = true;
    return code;
}

static int vhosti_kernel_step_backend_features(vhost_kernel *kernel, uint32_t i, const void *value)
{
    uint64_t bits = *(const uint64_t *)value;
    return vhosti_kernel_ioctl(kernel, i, "SET_BACKEND_FEATURES",
                               VHOSTI_KERNEL_SET_BACKEND_FEATURES, &bits);
}

static int vhosti_kernel_set_backend_features(vhost_kernel *kernel)
{
    uint64_t bits = kernel->backend_features & VHOSTI_KERNEL_IOTLB_MSG_V2;
    if (bits == 0)
        return 0;
    return vhosti_kernel_on_all(kernel, vhosti_kernel_step_backend_features, &bits, &bits);
}

static int vhosti_kernel_op_set_features(void *backend, const vhost_features *features)
{
    vhost_kernel *kernel = (vhost_kernel *)backend;
    int code = vhosti_kernel_unstick(kernel, features);
    if (code >= 0)
        code = vhosti_kernel_own_fds(kernel);
    if (code >= 0)
        code =
            vhosti_kernel_on_all(kernel, vhosti_kernel_step_features, features, &kernel->features);
    if (code < 0)
        return code;
    kernel->features = *features;
    if (!vhost_features_test(features, VHOST_FEATURE_LOG_ALL))
        kernel->log_base = 0; /* its memory may go now */
    return vhosti_kernel_set_backend_features(kernel);
}

static int vhosti_kernel_step_table(vhost_kernel *kernel, uint32_t i, const void *value)
{
    const vhost_table *table = (const vhost_table *)value;
    vhosti_kernel_memory *head = (vhosti_kernel_memory *)kernel->table;
    vhosti_kernel_region *regions = (vhosti_kernel_region *)(void *)(head + 1);
    uint32_t k;
    head->count = table->count;
    head->padding = 0;
    for (k = 0; k < table->count; k++) {
        regions[k].gpa = table->regions[k].gpa;
        regions[k].size = table->regions[k].size;
        regions[k].host = (uintptr_t)table->regions[k].host;
        regions[k].flags = 0;
    }
    return vhosti_kernel_ioctl(kernel, i, "SET_MEM_TABLE", VHOSTI_KERNEL_SET_MEM_TABLE, head);
}

/* Room for the larger of the two tables of a change; it stays for the next one. */
static int vhosti_kernel_reserve_table(vhost_kernel *kernel, const vhost_table_change *change)
{
    uint32_t old = change->from != NULL ? change->from->count : 0;
    uint32_t count = change->to->count > old ? change->to->count : old;
    size_t size = sizeof(vhosti_kernel_memory) + count * sizeof(vhosti_kernel_region);
    void *grown;
    if (size <= kernel->table_size)
        return 0;
    grown = kernel->options.allocate(kernel->table, size, kernel->options.user);
    if (grown == NULL)
        return VHOSTI_KERNEL_FAIL(kernel, -ENOMEM, VHOST_WHY_MEMORY, "SET_MEM_TABLE", -1);
    kernel->table = grown;
    kernel->table_size = size;
    return 0;
}

static int vhosti_kernel_op_set_table(void *backend, const vhost_table_change *change)
{
    vhost_kernel *kernel = (vhost_kernel *)backend;
    int code = vhosti_kernel_reserve_table(kernel, change);
    if (code < 0)
        return code;
    return vhosti_kernel_on_all(kernel, vhosti_kernel_step_table, change->to, change->from);
}

static int vhosti_kernel_step_log(vhost_kernel *kernel, uint32_t i, const void *value)
{
    uint64_t base = *(const uint64_t *)value;
    return vhosti_kernel_ioctl(kernel, i, "SET_LOG_BASE", VHOSTI_KERNEL_SET_LOG_BASE, &base);
}

static int vhosti_kernel_op_set_log(void *backend, const vhost_log_memory *memory)
{
    vhost_kernel *kernel = (vhost_kernel *)backend;
    uint64_t base = (uintptr_t)memory->base;
    int code = vhosti_kernel_on_all(kernel, vhosti_kernel_step_log, &base,
                                    kernel->log_base != 0 ? &kernel->log_base : NULL);
    if (code == 0)
        kernel->log_base = base;
    return code;
}

VHOST_KERNEL_DEF int vhost_kernel_set_log_fd(vhost_kernel *kernel, int fd)
{
    const int32_t wanted = fd;
    int code = vhosti_kernel_on_all(kernel, vhosti_kernel_step_log_fd, &wanted, &kernel->log_fd);
    if (code >= 0)
        kernel->log_fd = fd;
    return code;
}

/* >>rings ------------------------------------------------------------------------------------- */

static uint32_t vhosti_kernel_pair(uint32_t queue)
{
    return queue / VHOSTI_KERNEL_NET_RINGS;
}

static uint32_t vhosti_kernel_ring(uint32_t queue)
{
    return queue % VHOSTI_KERNEL_NET_RINGS;
}

static int vhosti_kernel_set_state(void *backend, uint32_t queue, const char *name,
                                   unsigned long request, uint32_t number)
{
    vhosti_kernel_state state;
    state.index = vhosti_kernel_ring(queue);
    state.number = number;
    return vhosti_kernel_ioctl((vhost_kernel *)backend, vhosti_kernel_pair(queue), name, request,
                               &state);
}

static int vhosti_kernel_set_file(void *backend, uint32_t queue, const char *name,
                                  unsigned long request, int fd)
{
    vhosti_kernel_file file;
    file.index = vhosti_kernel_ring(queue);
    file.fd = fd;
    return vhosti_kernel_ioctl((vhost_kernel *)backend, vhosti_kernel_pair(queue), name, request,
                               &file);
}

static int vhosti_kernel_op_set_ring_call(void *backend, uint32_t queue, int fd)
{
    return vhosti_kernel_set_file(backend, queue, "SET_VRING_CALL", VHOSTI_KERNEL_SET_VRING_CALL,
                                  fd);
}

static int vhosti_kernel_op_set_ring_error(void *backend, uint32_t queue, int fd)
{
    return vhosti_kernel_set_file(backend, queue, "SET_VRING_ERR", VHOSTI_KERNEL_SET_VRING_ERR, fd);
}

static int vhosti_kernel_op_set_ring_kick(void *backend, uint32_t queue, int fd)
{
    return vhosti_kernel_set_file(backend, queue, "SET_VRING_KICK", VHOSTI_KERNEL_SET_VRING_KICK,
                                  fd);
}

static int vhosti_kernel_op_set_ring_size(void *backend, uint32_t queue, uint32_t size)
{
    return vhosti_kernel_set_state(backend, queue, "SET_VRING_NUM", VHOSTI_KERNEL_SET_VRING_NUM,
                                   size);
}

static int vhosti_kernel_op_set_ring_base(void *backend, uint32_t queue, uint32_t base)
{
    return vhosti_kernel_set_state(backend, queue, "SET_VRING_BASE", VHOSTI_KERNEL_SET_VRING_BASE,
                                   base);
}

static int vhosti_kernel_op_set_ring_endian(void *backend, uint32_t queue, bool big)
{
    return vhosti_kernel_set_state(backend, queue, "SET_VRING_ENDIAN",
                                   VHOSTI_KERNEL_SET_VRING_ENDIAN, big);
}

static int vhosti_kernel_op_set_ring_busy_loop(void *backend, uint32_t queue, uint32_t us)
{
    return vhosti_kernel_set_state(backend, queue, "SET_VRING_BUSYLOOP_TIMEOUT",
                                   VHOSTI_KERNEL_SET_VRING_BUSYLOOP, us);
}

static uint64_t vhosti_kernel_part(const vhost_ring_addresses *addresses, vhost_part part)
{
    const vhost_mapping *mapping = &addresses->part[part];
    return addresses->iova ? mapping->address : (uintptr_t)mapping->host;
}

static int vhosti_kernel_op_set_ring_addresses(void *backend, uint32_t queue,
                                               const vhost_ring_addresses *addresses)
{
    vhosti_kernel_address address;
    address.index = vhosti_kernel_ring(queue);
    address.flags = addresses->log;
    address.desc = vhosti_kernel_part(addresses, VHOST_DESC);
    address.used = vhosti_kernel_part(addresses, VHOST_USED);
    address.avail = vhosti_kernel_part(addresses, VHOST_AVAIL);
    address.log = addresses->part[VHOST_USED].gpa;
    return vhosti_kernel_ioctl((vhost_kernel *)backend, vhosti_kernel_pair(queue), "SET_VRING_ADDR",
                               VHOSTI_KERNEL_SET_VRING_ADDR, &address);
}

static int vhosti_kernel_op_get_ring_base(void *backend, uint32_t queue, vhost_ring_base *base)
{
    vhosti_kernel_state state = {0, 0};
    int code;
    state.index = vhosti_kernel_ring(queue);
    code = vhosti_kernel_ioctl((vhost_kernel *)backend, vhosti_kernel_pair(queue), "GET_VRING_BASE",
                               VHOSTI_KERNEL_GET_VRING_BASE, &state);
    base->answered = code >= 0;
    base->value = state.number;
    return code;
}

/* ---- the tap ---- */

static int vhosti_kernel_put_tap(vhost_kernel *kernel, uint32_t queue, int tap)
{
    return vhosti_kernel_set_file(kernel, queue, "NET_SET_BACKEND", VHOSTI_KERNEL_NET_SET_BACKEND,
                                  tap);
}

static int vhosti_kernel_op_enable_ring(void *backend, uint32_t queue, bool on)
{
    vhost_kernel *kernel = (vhost_kernel *)backend;
    vhosti_kernel_fd *one = &kernel->fds[vhosti_kernel_pair(queue)];
    int code = vhosti_kernel_put_tap(kernel, queue, on ? one->tap : -1);
    if (code >= 0)
        one->enabled[vhosti_kernel_ring(queue)] = on;
    return code;
}

VHOST_KERNEL_DEF int vhost_kernel_net_attach(vhost_kernel *kernel, uint32_t pair, int tap)
{
    vhosti_kernel_fd *one;
    uint32_t ring, first = pair * VHOSTI_KERNEL_NET_RINGS;
    if (pair >= kernel->fd_count)
        return VHOSTI_KERNEL_FAIL(kernel, -EINVAL, VHOST_WHY_ARGUMENT, "attach", pair);
    one = &kernel->fds[pair];
    for (ring = 0; ring < VHOSTI_KERNEL_NET_RINGS; ring++) {
        int code = one->enabled[ring] ? vhosti_kernel_put_tap(kernel, first + ring, tap) : 0;
        if (code < 0) {
            vhost_error failure = kernel->last_error;
            while (ring-- > 0)
                if (one->enabled[ring])
                    (void)vhosti_kernel_put_tap(kernel, first + ring, one->tap);
            kernel->last_error = failure;
            return code;
        }
    }
    one->tap = tap;
    return 0;
}

/* Others may hold the same fd open, so closing it is not enough: the taps go first. */
static void vhosti_kernel_op_sever(void *backend)
{
    vhost_kernel *kernel = (vhost_kernel *)backend;
    uint32_t queue;
    for (queue = 0; queue < kernel->fd_count * VHOSTI_KERNEL_NET_RINGS; queue++)
        (void)vhosti_kernel_op_enable_ring(kernel, queue, false);
    vhosti_kernel_close_fds(kernel);
}

/* >>iotlb -------------------------------------------------------------------------------------- */

#define VHOSTI_KERNEL_MISSES 256 /* answered in one call: a guest must not keep us here */

/* Where the body of a message is. Version 1 has no asid, and so no gap on 32-bit x86. */
static size_t vhosti_kernel_body_place(const vhost_kernel *kernel)
{
    return (kernel->backend_features & VHOSTI_KERNEL_IOTLB_MSG_V2) != 0
               ? offsetof(vhosti_kernel_message_v2, body)
               : offsetof(vhosti_kernel_message, body);
}

static uint32_t vhosti_kernel_version(const vhost_kernel *kernel)
{
    return (kernel->backend_features & VHOSTI_KERNEL_IOTLB_MSG_V2) != 0 ? 2 : 1;
}

static int vhosti_kernel_step_entry(vhost_kernel *kernel, uint32_t i, const void *value)
{
    const vhost_kernel_options *options = &kernel->options;
    unsigned char message[sizeof(vhosti_kernel_message_v2)];
    size_t place = vhosti_kernel_body_place(kernel), size = place + sizeof(vhosti_kernel_body);
    uint32_t version = vhosti_kernel_version(kernel);
    ptrdiff_t count;
    if (kernel->fds[i].fd < 0)
        return VHOSTI_KERNEL_FAIL(kernel, -ENODEV, VHOST_WHY_KERNEL_SEVERED, "IOTLB message", i);
    memset(message, 0, sizeof message);
    memcpy(message, &version, sizeof version);
    memcpy(message + place, value, sizeof(vhosti_kernel_entry));
    do {
        count = options->calls->write(kernel->fds[i].fd, message, size, options->user);
    } while (count == -EINTR);
    if (count == (ptrdiff_t)size)
        return 0;
    return VHOSTI_KERNEL_FAIL(kernel, count < 0 ? (int)count : -EIO, VHOST_WHY_BACKEND_REFUSED,
                              "IOTLB message", i);
}

/* The answer to a miss goes to the fd that missed; everything else to all. */
static int vhosti_kernel_op_iotlb_send(void *backend, const vhost_iotlb *message)
{
    vhost_kernel *kernel = (vhost_kernel *)backend;
    vhosti_kernel_entry entry;
    memset(&entry, 0, sizeof entry);
    entry.iova = message->iova;
    entry.size = message->size;
    entry.host = (uintptr_t)message->host;
    entry.permit = message->permit;
    entry.type = (uint8_t)message->type;
    if (kernel->missed >= 0)
        return vhosti_kernel_step_entry(kernel, (uint32_t)kernel->missed, &entry);
    return vhosti_kernel_on_all(kernel, vhosti_kernel_step_entry, &entry, NULL);
}

static void vhosti_kernel_hand_over(vhost_kernel *kernel, uint32_t i, const void *body)
{
    vhosti_kernel_entry entry;
    vhost_iotlb message;
    memcpy(&entry, body, sizeof entry);
    memset(&message, 0, sizeof message);
    message.type = (vhost_iotlb_type)entry.type;
    message.permit = entry.permit;
    message.iova = entry.iova;
    message.size = entry.size;
    kernel->missed = i;
    (void)vhost_iotlb_message(kernel->device,
                              &message); /* it has said what is wrong, if anything */
    kernel->missed = -1;
}

/* Reads one message of an fd. 1: there was one; 0: there is none. */
static int vhosti_kernel_read_message(vhost_kernel *kernel, uint32_t i)
{
    const vhost_kernel_options *options = &kernel->options;
    unsigned char message[sizeof(vhosti_kernel_message_v2)];
    size_t place = vhosti_kernel_body_place(kernel), size = place + sizeof(vhosti_kernel_body);
    uint32_t version = 0;
    ptrdiff_t count;
    do {
        count = options->calls->read(kernel->fds[i].fd, message, size, options->user);
    } while (count == -EINTR);
    if (count == -EAGAIN)
        return 0;
    if (count < 0)
        return VHOSTI_KERNEL_FAIL(kernel, (int)count, VHOST_WHY_BACKEND_REFUSED, "read", i);
    memcpy(&version, message, sizeof version);
    if (count != (ptrdiff_t)size || version != vhosti_kernel_version(kernel))
        return VHOSTI_KERNEL_FAIL(kernel, -EPROTO, VHOST_WHY_IOTLB_MESSAGE, "size or version", i);
    vhosti_kernel_hand_over(kernel, i, message + place);
    return 1;
}

static int vhosti_kernel_op_process(void *backend)
{
    vhost_kernel *kernel = (vhost_kernel *)backend;
    uint32_t i;
    int left, code = 1;
    if (!kernel->translates) /* an old kernel has nothing to say, and cannot be read */
        return 0;
    for (i = 0; i < kernel->fd_count; i++) {
        for (left = VHOSTI_KERNEL_MISSES; left > 0 && code > 0; left--)
            code = kernel->fds[i].fd >= 0 ? vhosti_kernel_read_message(kernel, i) : 0;
        if (code < 0)
            return code;
        code = 1;
    }
    return 0;
}

static int vhosti_kernel_op_poll_fds(void *backend, int *fds, uint32_t capacity)
{
    const vhost_kernel *kernel = (const vhost_kernel *)backend;
    uint32_t i;
    int count = 0;
    for (i = 0; i < kernel->fd_count; i++) {
        if (kernel->fds[i].fd < 0 || !kernel->translates)
            continue;
        if ((uint32_t)count < capacity)
            fds[count] = kernel->fds[i].fd;
        count++;
    }
    return count;
}

static const vhost_error *vhosti_kernel_op_last_error(void *backend)
{
    return &((const vhost_kernel *)backend)->last_error;
}

/* >>ops --------------------------------------------------------------------------------------- */

VHOST_KERNEL_DEF const vhost_backend_ops *vhost_kernel_ops(void)
{
    static const vhost_backend_ops ops = {
        vhosti_kernel_op_open,
        vhosti_kernel_op_close,
        vhosti_kernel_op_sever,
        vhosti_kernel_op_poll_fds,
        vhosti_kernel_op_process,
        NULL, /* recall_base: nothing is left on record */
        vhosti_kernel_op_set_features,
        vhosti_kernel_op_set_table,
        vhosti_kernel_op_set_log,
        vhosti_kernel_op_iotlb_send,
        vhosti_kernel_op_set_ring_call,
        vhosti_kernel_op_set_ring_error,
        vhosti_kernel_op_set_ring_size,
        vhosti_kernel_op_set_ring_base,
        vhosti_kernel_op_set_ring_endian,
        vhosti_kernel_op_set_ring_addresses,
        vhosti_kernel_op_set_ring_busy_loop,
        NULL, /* set_inflight */
        vhosti_kernel_op_set_ring_kick,
        NULL, /* set_config_call */
        vhosti_kernel_op_enable_ring,
        NULL, /* set_running */
        vhosti_kernel_op_get_ring_base,
        NULL, /* reset: start sends everything anew */
        NULL, /* get_config: the VMM's own */
        NULL, /* set_config */
        NULL, /* fence: an ioctl is done when it returns */
        vhosti_kernel_op_last_error,
        NULL, /* push */
    };
    return &ops;
}

static void vhosti_kernel_resolve_options(vhost_kernel *kernel, const vhost_kernel_options *options)
{
    if (options != NULL)
        kernel->options = *options;
    if (kernel->options.calls == NULL)
        kernel->options.calls = &vhosti_kernel_system;
    if (kernel->options.allocate == NULL)
        kernel->options.allocate = vhosti_kernel_sys_allocate;
}

static int vhosti_kernel_net_init(vhost_kernel *kernel, const int *fds, const int *taps,
                                  uint32_t pairs, const vhost_kernel_options *options)
{
    uint32_t i;
    memset(kernel, 0, sizeof *kernel);
    vhosti_kernel_resolve_options(kernel, options);
    if (pairs == 0 || pairs > UINT16_MAX)
        return VHOSTI_KERNEL_FAIL(kernel, -EINVAL, VHOST_WHY_ARGUMENT, "number of pairs", -1);
    kernel->fds = (vhosti_kernel_fd *)kernel->options.allocate(NULL, pairs * sizeof *kernel->fds,
                                                               kernel->options.user);
    if (kernel->fds == NULL)
        return VHOSTI_KERNEL_FAIL(kernel, -ENOMEM, VHOST_WHY_MEMORY, "pairs", -1);
    memset(kernel->fds, 0, pairs * sizeof *kernel->fds);
    kernel->fd_count = pairs;
    kernel->log_fd = -1;
    kernel->missed = -1;
    for (i = 0; i < pairs; i++) {
        kernel->fds[i].fd = fds != NULL ? fds[i] : -1;
        kernel->fds[i].tap = taps != NULL ? taps[i] : -1;
    }
    return 0;
}

VHOST_KERNEL_DEF int vhost_kernel_net_open(vhost_kernel *kernel, const char *path, const int *taps,
                                           uint32_t pairs, const vhost_kernel_options *options)
{
    size_t length = strlen(path);
    int code = vhosti_kernel_net_init(kernel, NULL, taps, pairs, options);
    if (code < 0)
        return code;
    if (length == 0 || length >= sizeof kernel->path) {
        vhost_kernel_close(kernel);
        return VHOSTI_KERNEL_FAIL(kernel, -EINVAL, VHOST_WHY_ARGUMENT, "length of path", -1);
    }
    memcpy(kernel->path, path, length + 1);
    return 0;
}

VHOST_KERNEL_DEF int vhost_kernel_net_open_fds(vhost_kernel *kernel, const int *fds,
                                               const int *taps, uint32_t pairs,
                                               const vhost_kernel_options *options)
{
    return vhosti_kernel_net_init(kernel, fds, taps, pairs, options);
}

VHOST_KERNEL_DEF void vhost_kernel_close(vhost_kernel *kernel)
{
    vhosti_kernel_close_fds(kernel);
    if (kernel->fds != NULL)
        (void)kernel->options.allocate(kernel->fds, 0, kernel->options.user);
    if (kernel->table != NULL)
        (void)kernel->options.allocate(kernel->table, 0, kernel->options.user);
    kernel->fds = NULL;
    kernel->fd_count = 0;
    kernel->table = NULL;
    kernel->table_size = 0;
}

#ifdef __cplusplus
}
#endif
#endif /* VHOST_KERNEL_IMPLEMENTATION */
