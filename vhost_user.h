/* vhost_user.h - v0.1.0 - vhost-user: another process as a back-end for vhost.h
   SPDX-License-Identifier: MIT OR Unlicense (full text at the end of vhost.h)

   Speaks the front-end's side of vhost-user over a UNIX socket, for a vhost_device of vhost.h. */

/*
CONTENTS (grep -n '>>[a-z]' vhost_user.h is the index)

   >>manual      how to use it, what is negotiated, reconnecting, threads
   >>types       options, system calls, the back-end object
   >>api         the functions
   >>wire        numbers, names and layouts of the protocol
   >>calls       sockets, the clock, memory; errors
   >>submit      messages that wait to be sent
   >>receive     bytes and fds of the back-end, and what they answer
   >>channel     requests of the back-end
   >>fence       sending, receiving and waiting, with a deadline
   >>open        connecting, and what both sides can
   >>whole       features, memory, log, IOTLB
   >>rings       operations on one queue
   >>inflight    the record of requests in flight
   >>state       the back-end's own state, for migration
   >>services    what only vhost-user has
   >>reconnect   the policy
   >>ops         the table of functions

>>manual

1. USE

      #define VHOST_IMPLEMENTATION             in one .c file
      #include "vhost_user.h"                  includes vhost.h

      vhost_user disk;
      vhost_user_connect(&disk, "/run/disk.sock", NULL);
      vhost_device_init(&dev, &vm, vhost_user_ops(), &disk, queues, 4, NULL);
      ...
      vhost_device_cleanup(&dev);
      vhost_user_close(&disk);

   One vhost_user serves one vhost_device. Guest memory must be shared: each vhost_backing has an fd
   (a memfd, or a file), mapped MAP_SHARED; sections without are not given to the back-end.
   vhost_device_init connects (or waits for the back-end to connect, if vhost_user_listen was called
   instead) and negotiates: three waits, or only one if the back-end has no protocol features. It
   fails at once if nobody is there, and may be called again with the same objects. How many queues
   there are is in queue_number after it; most back-ends want VERSION_1 to be accepted.
   After that each call of vhost.h waits once, whatever the number of queues and regions: messages
   go out in one stream, and their answers are collected at its end. (More often: a first start with
   a record of requests in flight, a start that loads state, postcopy; a commit that replaces a
   memory slot under running queues.) After vhost_device_cleanup, call vhost_user_close.

   Your event loop polls vhost_user_poll_fds, at most for vhost_user_timeout milliseconds, and then
   calls vhost_user_process. That is all: no thread, no signal, no sleep.

2. WHAT IS NEGOTIATED

   virtio features: those of the back-end are its own to offer, all of them. A device of which the
   VMM does a part itself (virtio-net: its control queue, its MAC) says in
   vhost_device_options.its_bits which bits are the back-end's. The bit that opens the protocol
   features (30) is the library's own, and never seen.

   Protocol features, by default: MQ, LOG_SHMFD, RARP, REPLY_ACK, MTU, BACKEND_REQ, CROSS_ENDIAN,
   CONFIG, INFLIGHT, RESET, SLOTS and STATUS; with its callback: HOST_NOTIFIER, SHARED_OBJECT, SHMEM
   (and with these FD_REQ). Only if options.want has its bit: CRYPTO, PAGEFAULT, INBAND, XEN, STATE,
   INFLIGHT_BASE, GPA, SKIP_DRAIN. options.avoid has bits that are not wanted. A bit whose
   companions are missing (INBAND needs REPLY_ACK and BACKEND_REQ) is not asked for.

   Without REPLY_ACK a refusal cannot be told: a back-end can only close the connection then.
   Without LOG_SHMFD the device cannot log (vhost_log_blocker). Without bit 30 there are eight
   memory regions and nothing of the above, and that works too.

3. TIME, AND ERRORS

   A call waits for the back-end until options.timeout_ms have passed since its first message; while
   it waits, requests of the back-end are served. Only the back-end's own state may take longer:
   each 4,096 bytes of it have that time. A back-end that is silent, dead, or lies, is cut off: the
   connection is closed, and the device BROKEN. vhost_user.last_error says which message of which
   queue it was, and whether the back-end closed (VHOST_WHY_USER_EOF), the socket failed (_SOCKET),
   the time was up (_TIMEOUT), the back-end refused (_REFUSED), or what it said makes no sense
   (_HEADER, _SIZE, _FDS, _VALUE, _UNASKED, _REQUEST). A mere refusal (-EIO) cuts nothing off.

4. WHEN THE BACK-END DIES

   With options.retry_ms, vhost_user_process connects again after that pause, then at intervals that
   double up to retry_max_ms, for as long as the options say: everything is sent again, the record
   of requests in flight is handed back, the queues continue without another kick, logging goes on,
   and the device is RUNNING. Meanwhile it is BROKEN: the driver's buffers wait in the rings. A
   back-end that dies in the middle is just tried again. One that lacks something it had before is
   refused.
   Where the queues continue is certain with INFLIGHT, or if the driver uses buffers in order. If it
   is not (QEMU's disk 7.2, for one, has no INFLIGHT), vhost_user_process returns -EINVAL once, with
   VHOST_WHY_POSITION_GUESSED, and waits: reset the device; or, knowing the device, have buffers
   done twice, or lost, by taking the guess, in on_broken or before the next vhost_user_process:

      for (i = 0; i < device->queue_count; i++)
          if (device->queues[i].position.state == VHOST_POSITION_GUESSED)
              device->queues[i].position.state = VHOST_POSITION_CERTAIN;

   A connection that was passed as an fd needs another one: vhost_user_reopen.

5. MIGRATION

   vhost.h, chapter 9, has the order of all calls. Between the stop on one side and the start on the
   other, a vhost-user device has more to tell, if its back-end has the protocol feature:

      source, after vhost_device_stop   destination, before _start   protocol feature
      vhost_user_save_inflight          vhost_user_load_inflight     INFLIGHT
      vhost_user_save_state             vhost_user_load_state        STATE
      vhost_device_get_config           vhost_user_restore_config    CONFIG
      -                                 vhost_user_send_rarp (net, after the start)     RARP

   The record of requests in flight belongs to the positions of the queues, and goes with them. With
   SKIP_DRAIN (vhost_user_set_skip_drain) a stop waits for no request: they are done on the other
   side. Restore of the config space only what the driver can have written there: a back-end may die
   of the rest (QEMU's disk 7.2 does). If one of these fails on the destination, nothing has
   started: go on at the source.

   Postcopy. Memory may follow when the guest runs already. On the destination:

      vhost_device_init                 options.want has PAGEFAULT
      vhost_user_postcopy_advise        *userfaultfd: its faults are yours to answer
      discard what is old               pages that are there are not asked for
      vhost_user_postcopy_listen
      vhost_device_start                on_postcopy_region says where the back-end has each region;
                                        from here on it waits for the pages that it touches
      fetch pages, wake who waits       from a thread that calls nothing of this library: calls look
                                        at rings, too, and no deadline holds for a page
      vhost_user_postcopy_end           when all memory is there

   (examples/migrate/page_faults.c is such a thread.) Devices of the kernel need none of this, they
   fault in this process. A device without PAGEFAULT must not start before all memory is there: what
   it touches becomes zeros, for everybody. So a back-end that is lost on the way is given no memory
   (-EBUSY, and each try to connect again fails) before _end, or an advise and listen anew, which
   need a reset of the device. Change no memory under running rings in between: there is a moment in
   which it is gone. QEMU's disk 7.2 offers PAGEFAULT and cannot do it; DPDK 22.11 can.

6. OWNERSHIP

   a connected socket   yours until vhost_user_open succeeded, then ours
   memory, notifiers    their fds are sent, and stay yours
   fds that callbacks   ours again when the callback returns: dup what you keep
   are given
   fds handed out       yours (userfaultfd, shared objects)

7. SECRETS

   The back-end sees the memory it was given, for as long as it likes, and no address of this
   process: its "user addresses" are guest addresses, plus options.address_bias. Keys of crypto
   sessions are wiped once they are sent. Nobody's payload is put into messages.
   What it sends back is checked; its fds are read, and never mapped.

8. SYSTEM CALLS (for seccomp)

   socket, connect, bind, listen, accept, socketpair, unlink, fcntl, close, sendmsg, recvmsg, poll,
   clock_gettime, write (notifiers); vhost_user_listen: stat; INFLIGHT: fstat, lseek, read;
   vhost_user_load_inflight: memfd_create, write, lseek.
*/

#include "vhost.h" /* outside of every guard: it has its own, and may have more to say this time */

#ifndef VHOST_USER_H_INCLUDED
#define VHOST_USER_H_INCLUDED

#ifdef __cplusplus
extern "C" {
#endif

/* >>types ------------------------------------------------------------------------------------- */

typedef struct vhost_user vhost_user;

/* Protocol features. */
#define VHOST_USER_BIT_LIST(X)                                                                     \
    X(VHOST_USER_BIT_MQ, 0, "MQ")                                                                  \
    X(VHOST_USER_BIT_LOG_SHMFD, 1, "LOG_SHMFD")                                                    \
    X(VHOST_USER_BIT_RARP, 2, "RARP")                                                              \
    X(VHOST_USER_BIT_REPLY_ACK, 3, "REPLY_ACK")                                                    \
    X(VHOST_USER_BIT_MTU, 4, "MTU")                                                                \
    X(VHOST_USER_BIT_BACKEND_REQ, 5, "BACKEND_REQ")                                                \
    X(VHOST_USER_BIT_CROSS_ENDIAN, 6, "CROSS_ENDIAN")                                              \
    X(VHOST_USER_BIT_CRYPTO, 7, "CRYPTO_SESSION")                                                  \
    X(VHOST_USER_BIT_PAGEFAULT, 8, "PAGEFAULT")                                                    \
    X(VHOST_USER_BIT_CONFIG, 9, "CONFIG")                                                          \
    X(VHOST_USER_BIT_FD_REQ, 10, "BACKEND_SEND_FD")                                                \
    X(VHOST_USER_BIT_HOST_NOTIFIER, 11, "HOST_NOTIFIER")                                           \
    X(VHOST_USER_BIT_INFLIGHT, 12, "INFLIGHT_SHMFD")                                               \
    X(VHOST_USER_BIT_RESET, 13, "RESET_DEVICE")                                                    \
    X(VHOST_USER_BIT_INBAND, 14, "INBAND_NOTIFICATIONS")                                           \
    X(VHOST_USER_BIT_SLOTS, 15, "CONFIGURE_MEM_SLOTS")                                             \
    X(VHOST_USER_BIT_STATUS, 16, "STATUS")                                                         \
    X(VHOST_USER_BIT_XEN, 17, "XEN_MMAP")                                                          \
    X(VHOST_USER_BIT_SHARED_OBJECT, 18, "SHARED_OBJECT")                                           \
    X(VHOST_USER_BIT_STATE, 19, "DEVICE_STATE")                                                    \
    X(VHOST_USER_BIT_INFLIGHT_BASE, 20, "GET_VRING_BASE_INFLIGHT")                                 \
    X(VHOST_USER_BIT_GPA, 21, "GPA_ADDRESSES")                                                     \
    X(VHOST_USER_BIT_SHMEM, 22, "SHMEM")                                                           \
    X(VHOST_USER_BIT_SKIP_DRAIN, 23, "GET_VRING_BASE_SKIP_DRAIN")

#define VHOST_USER_BIT_ENUM(name, bit, text) name = bit,
enum {
    VHOST_USER_BIT_LIST(VHOST_USER_BIT_ENUM) VHOST_USER_BIT_COUNT
};

enum {
    VHOST_USER_SHMEM_COUNT = 256,
    VHOST_USER_UUID_SIZE = 16
};

/* What the back-end wants done with a shared object, such as a dma-buf. */
typedef enum vhost_user_object {
    VHOST_USER_OBJECT_ADD = 1, /* from now on it is the back-end's to give out */
    VHOST_USER_OBJECT_REMOVE = 2,
    VHOST_USER_OBJECT_LOOK_UP = 3 /* of somebody else: *fd shall become it; borrowed until return */
} vhost_user_object;

/* A piece of a shared memory region of the device (not of guest RAM). */
typedef struct vhost_user_window {
    uint8_t region; /* shmid */
    bool writable;
    uint64_t offset;    /* in the region, bytes */
    uint64_t size;      /* bytes */
    uint64_t fd_offset; /* in the fd; 0 to unmap */
} vhost_user_window;

typedef struct vhost_user_poll {
    int fd;
    bool output; /* wait until it can be written to; else until it can be read */
    bool ready;  /* out */
} vhost_user_poll;

/* The system calls, replaceable for tests and jails. Each returns >= 0, or a negative errno.
   Sockets and fds made here are close-on-exec and do not block, but for ends[1] of a pair. */
typedef struct vhost_user_calls {
    int (*connect)(const char *path, void *user);
    int (*listen)(const char *path, void *user); /* takes the place of a dead socket there */
    int (*accept)(int fd, void *user);           /* -EAGAIN: nobody is there */
    int (*socket_pair)(int ends[2], void *user);
    int (*unblock)(int fd, void *user);
    int (*close)(int fd, void *user);
    int (*unlink)(const char *path, void *user);
    ptrdiff_t (*send)(int fd, const void *bytes, size_t size, const int *fds, uint32_t fd_count,
                      void *user);
    /* *fd_count comes in as room in fds, and goes out as how many there are. An fd for which there
       was no room was closed, and is an error: -EMSGSIZE. 0: the other side closed. */
    ptrdiff_t (*receive)(int fd, void *bytes, size_t size, int *fds, uint32_t *fd_count,
                         void *user);
    /* -1: for ever. Returns how many are ready. */
    int (*wait)(vhost_user_poll *fds, uint32_t count, int timeout_ms, void *user);
    uint64_t (*now)(void *user);              /* milliseconds; never jumps */
    int (*memory)(uint64_t size, void *user); /* an fd: shared, zeroed, sealed */
    int64_t (*size_of)(int fd, void *user);   /* bytes of a file */
    ptrdiff_t (*read)(int fd, void *bytes, size_t size, void *user);
    ptrdiff_t (*write)(int fd, const void *bytes, size_t size, void *user);
    int (*seek)(int fd, uint64_t offset, void *user);
} vhost_user_calls;

/* Pieces of a device's state: `take` gets them in order; `give` fills in up to `size` bytes, and
   returns how many, 0 at the end. A negative errno ends the transfer. */
typedef int (*vhost_user_take)(const void *bytes, size_t size, void *user);
typedef ptrdiff_t (*vhost_user_give)(void *bytes, size_t size, void *user);

typedef struct vhost_user_options { /* zero is the default of each; copied */
    void *user;                     /* passed to every function below and of `calls` */
    uint64_t want, avoid;           /* protocol features: manual, chapter 2 */
    uint32_t timeout_ms;            /* how long a call waits for the back-end; 0: 10,000 */
    uint32_t retry_ms;              /* the first pause before connecting again; 0: never again */
    uint32_t retry_max_ms;          /* pauses double up to it; 0: all are retry_ms */
    uint32_t retry_for_ms;          /* give up so long after the break; 0: for ever */
    bool counts_pairs;              /* virtio-net: its number of queues is one of pairs */
    uint64_t address_bias;          /* user addresses are guest addresses plus this */
    uint32_t xen_flags, xen_domain; /* of all memory; with VHOST_USER_BIT_XEN */

    /* What the back-end asks for: in process, and in every call that waits for it. They return 0,
       or a negative errno, which the back-end is told as a refusal. An fd is borrowed. */

    /* Map the doorbell of a queue, `size` bytes, into the guest; fd -1: unmap it. */
    int (*on_host_notifier)(vhost_user *self, uint32_t queue, int fd, uint64_t offset,
                            uint64_t size, void *user);
    int (*on_object)(vhost_user *self, vhost_user_object what,
                     const uint8_t uuid[VHOST_USER_UUID_SIZE], int *fd, void *user);
    /* Map a piece of the fd into a free part of a shared memory region; fd -1: unmap it. All go
       with the connection, and with a reset of the device. */
    int (*on_window)(vhost_user *self, const vhost_user_window *window, int fd, void *user);
    /* Postcopy: the back-end has the region at `gpa` at `base` of its address space. A refusal cuts
       it off: nobody could answer its faults. */
    int (*on_postcopy_region)(vhost_user *self, uint64_t gpa, uint64_t size, uint64_t base,
                              void *user);

    void *(*allocate)(void *memory, size_t size, void *user); /* as realloc; size 0 frees */
    const vhost_user_calls *calls; /* default: the system's; borrowed until close */
} vhost_user_options;

struct vhosti_user_request;

typedef struct vhosti_user_input { /* private: of one socket */
    int fd;                        /* -1: none */
    uint32_t size;                 /* bytes of a message that are there */
    uint32_t fd_count;
    int fds[8];
    uint8_t bytes[4352];
} vhosti_user_input;

typedef struct vhosti_user_inflight {
    int fd;          /* -1: none */
    uint64_t offset; /* of the record in it */
    uint64_t size;
    uint16_t queues;
    uint16_t queue_size;
    bool loaded; /* by the VMM, and not yet handed over */
} vhosti_user_inflight;

struct vhost_user {
    /* Read only; of the connection there is, or the last one. */
    vhost_error last_error;
    uint64_t features;         /* virtio features 0 to 63 that the back-end has, bit 30 included */
    uint64_t protocol_offered; /* protocol features that it has, */
    uint64_t protocol;         /* and those that are in use */
    uint64_t queue_number;     /* that it has, by its own account; 0: it did not say */
    uint64_t slots;            /* memory regions */

    /* Private. */
    vhost_user_options options;
    vhost_device *device;
    char path[108]; /* empty: an fd was passed */
    bool listens;
    int listener;  /* or -1 */
    int passed_fd; /* for the next connection; or -1 */
    int dead;      /* the connection is gone, by this code; 0: it is not */
    vhosti_user_input main, channel;
    int channel_end; /* the back-end's end of the channel, until it is sent; or -1 */
    uint8_t *out;    /* bytes of messages to be sent */
    uint32_t out_size, out_capacity, out_sent;
    struct vhosti_user_request *requests; /* from `first` on: sent or not, and not yet answered */
    uint32_t request_first, request_count, request_capacity, requests_sent;
    uint64_t taken;                /* requests that are done with, ever */
    uint64_t deadline;             /* of what was submitted */
    bool submitted;                /* something, since the last fence */
    bool settling;                 /* all that is submitted is being waited for */
    bool kicked;                   /* rings, since the last fence: they may run */
    bool hung_up;                  /* the back-end has closed its channel */
    int blocked;                   /* why nothing can be sent now */
    vhost_fence failure;           /* the first one since the last fence */
    uint8_t status;                /* virtio device status, as told */
    struct vhosti_user_slot *told; /* the regions that the back-end was told of */
    uint32_t told_count, told_capacity;
    bool table_told;   /* and not forgotten by a reset */
    bool table_unsure; /* a part of it was refused */
    uint64_t log_id;   /* that was told last; 0: none */
    uint32_t mtu;
    int log_fd; /* or -1 */
    bool skips_drain;
    int postcopy;  /* how far it is, in this connection */
    bool arriving; /* from listen to end, whatever becomes of the connection */
    vhosti_user_inflight inflight;
    bool config_changed;            /* and nobody was told */
    int config_call;                /* notifiers to signal for the back-end; or -1 */
    struct vhosti_user_ring *rings; /* one for each queue */
    uint32_t ring_count;
    vhost_user_give give; /* the state to be loaded by the next start; NULL: none */
    void *give_from;
    uint64_t shmem[VHOST_USER_SHMEM_COUNT]; /* sizes of shared memory regions */
    vhost_user_window *windows;
    uint32_t window_count, window_capacity;
    uint64_t broken_at, retry_at; /* when it broke; when it is tried again */
    uint32_t pause;
    bool lost, given_up, guess_told;
};

/* >>api ----------------------------------------------------------------------------------------

   Threads: process, as vhost_device_recover when the device is BROKEN, else as
   vhost_device_process; the services, as vhost_device_get_config; the others, as vhost_device_init.
   What talks to the back-end waits for it, needs a device that is STOPPED or RUNNING (-EBUSY), and
   says -ENOTSUP if the protocol feature it needs is not in use, or what went wrong, as last_error
   says. If the connection is lost there, the next vhost_user_process finds the device BROKEN. */

/* The back-end operations for vhost_device_init, whose `backend` is then a vhost_user. */
VHOST_API const vhost_backend_ops *vhost_user_ops(void);

/* Static text; NULL: unknown. */
VHOST_API const char *vhost_user_protocol_name(unsigned bit);
VHOST_API const char *vhost_user_message_name(uint32_t id);

/* ---- connecting ---- */

/* Prepares a connection; vhost_device_init makes it. options may be NULL. fd: a connected socket,
   ours on success. path: shorter than 108 bytes, copied. listen binds `path` at once, and gives it
   up in close. -EINVAL: the path is too long; or what the system said. */
VHOST_API int vhost_user_open(vhost_user *self, int fd, const vhost_user_options *options);
VHOST_API int vhost_user_connect(vhost_user *self, const char *path,
                                 const vhost_user_options *options);
VHOST_API int vhost_user_listen(vhost_user *self, const char *path,
                                const vhost_user_options *options);

/* Gives another connected socket, ours on success, for vhost_device_reset or the next try to
   connect again, which is due at once. -EBUSY: the object is closed; or what the system said. */
VHOST_API int vhost_user_reopen(vhost_user *self, int fd);

/* Lets go of everything. After vhost_device_cleanup; may be repeated, and does nothing to a zeroed
   object. */
VHOST_API void vhost_user_close(vhost_user *self);

/* ---- events ---- */

/* What to poll for input: all of vhost_device_poll_fds, or the socket on which the back-end is
   awaited. Returns how many there are, which may be more than capacity. The set changes whenever
   the device breaks, comes back, or is reset. */
VHOST_API uint32_t vhost_user_poll_fds(const vhost_user *self, int *fds, uint32_t capacity);

/* In how many milliseconds process is to be called, input or not; -1: no need. */
VHOST_API int vhost_user_timeout(const vhost_user *self);

/* vhost_device_process, and connecting again (manual, chapter 4). Returns 1 when the device came
   back, 0, or, once, why it is BROKEN and will not be tried again. What a single try runs into is
   in last_error, and no failure. */
VHOST_API int vhost_user_process(vhost_user *self);

/* ---- services ---- */

/* virtio-net: has the network learn where the MAC address is now (RARP); the MTU in bytes (MTU),
   sent when the driver accepts VIRTIO_NET_F_MTU, and again after connecting again. */
VHOST_API int vhost_user_send_rarp(vhost_user *self, const uint8_t mac[6]);
VHOST_API int vhost_user_set_mtu(vhost_user *self, uint16_t mtu);

/* INBAND: kicks a queue that has no kick_fd. */
VHOST_API int vhost_user_kick(vhost_user *self, uint32_t queue);

/* Has an eventfd (borrowed until close) signalled at each write to the dirty log; -1: none. */
VHOST_API int vhost_user_set_log_fd(vhost_user *self, int fd);

/* virtio-gpu: the socket on which the back-end talks to the display; borrowed. */
VHOST_API int vhost_user_set_gpu_socket(vhost_user *self, int fd);

/* CONFIG: as vhost_device_set_config, for a device that was migrated: fields that the driver cannot
   write, too. */
VHOST_API int vhost_user_restore_config(vhost_user *self, uint32_t offset, const void *bytes,
                                        uint32_t size);

/* CRYPTO: session holds the request, `size` bytes (at most 4096) as the specification lays it out,
   and then the answer of the back-end. */
VHOST_API int vhost_user_create_crypto(vhost_user *self, void *session, uint32_t size);
VHOST_API int vhost_user_close_crypto(vhost_user *self, uint64_t session);

/* SHARED_OBJECT: the object that the back-end added; *fd is yours then. -ENOENT: it has none. */
VHOST_API int vhost_user_get_object(vhost_user *self, const uint8_t uuid[VHOST_USER_UUID_SIZE],
                                    int *fd);

/* SHMEM: the size of a shared memory region of the device, bytes; 0: it has none. */
VHOST_API uint64_t vhost_user_shmem_size(const vhost_user *self, uint8_t region);

/* PAGEFAULT (postcopy; manual, chapter 5), in this order. The userfaultfd is yours. -EBUSY: out of
   order; listen: the device was started before. When the connection is lost, end tells nobody, and
   is the VMM's word that all memory is there. */
VHOST_API int vhost_user_postcopy_advise(vhost_user *self, int *userfaultfd);
VHOST_API int vhost_user_postcopy_listen(vhost_user *self);
VHOST_API int vhost_user_postcopy_end(vhost_user *self);

/* ---- requests in flight (X2, X3) ---- */

/* SKIP_DRAIN: whether stops leave requests in the record of requests in flight, instead of waiting
   for them. (With INFLIGHT_BASE, the back-end may do so at any stop.) */
VHOST_API int vhost_user_set_skip_drain(vhost_user *self, bool on);

/* Bytes that save needs; 0: there is no record. */
VHOST_API size_t vhost_user_inflight_size(const vhost_user *self);

/* Writes the record, for another vhost_user to load; the device is STOPPED or BROKEN. -ENOSPC: it
   is larger than `size`; -ENOENT: there is none. */
VHOST_API int vhost_user_save_inflight(vhost_user *self, void *bytes, size_t size);

/* Takes a saved record, for the next start. The device is STOPPED. -EINVAL: it is not one, or not
   whole, as last_error says. */
VHOST_API int vhost_user_load_inflight(vhost_user *self, const void *bytes, size_t size);

/* ---- the back-end's own state (STATE) ---- */

/* Saves it, at most `limit` bytes of it (-EFBIG), while the device is STOPPED. */
VHOST_API int vhost_user_save_state(vhost_user *self, vhost_user_take take, void *from,
                                    uint64_t limit);

/* Has the next start load it, when all is set up and nothing runs; if that fails, the one after it,
   and so on. give NULL: not any more. */
VHOST_API int vhost_user_load_state(vhost_user *self, vhost_user_give give, void *from);

/* The same without a copy: the back-end writes its state into fd, or (load) reads it from there.
   The device is STOPPED; *theirs is an fd to use in its place, yours, or -1. When all of it was
   moved (to the end of file), check says whether the back-end thinks so, too. */
VHOST_API int vhost_user_move_state(vhost_user *self, bool load, int fd, int *theirs);
VHOST_API int vhost_user_check_state(vhost_user *self);

#ifdef __cplusplus
}
#endif
#endif /* VHOST_USER_H_INCLUDED: stop here if you only want the API */

/* ==============================================================================================
   Implementation
   ============================================================================================== */

#if defined(VHOST_IMPLEMENTATION) && !defined(VHOST_USER_IMPLEMENTATION)
#define VHOST_USER_IMPLEMENTATION
#endif
#if defined(VHOST_USER_IMPLEMENTATION) && !defined(VHOST_USER_IMPLEMENTATION_DONE)
#define VHOST_USER_IMPLEMENTATION_DONE

#if defined(VHOST_STATIC)
#define VHOST_USER_DEF static
#else
#define VHOST_USER_DEF
#endif

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/times.h>
#include <sys/un.h>
#include <unistd.h>

#ifdef __cplusplus
extern "C" {
#endif

/* >>wire --------------------------------------------------------------------------------------- */

#define VHOSTI_USER_MESSAGE_LIST(X)                                                                \
    X(GET_FEATURES, 1)                                                                             \
    X(SET_FEATURES, 2)                                                                             \
    X(SET_OWNER, 3)                                                                                \
    X(SET_MEM_TABLE, 5)                                                                            \
    X(SET_LOG_BASE, 6)                                                                             \
    X(SET_LOG_FD, 7)                                                                               \
    X(SET_VRING_NUM, 8)                                                                            \
    X(SET_VRING_ADDR, 9)                                                                           \
    X(SET_VRING_BASE, 10)                                                                          \
    X(GET_VRING_BASE, 11)                                                                          \
    X(SET_VRING_KICK, 12)                                                                          \
    X(SET_VRING_CALL, 13)                                                                          \
    X(SET_VRING_ERR, 14)                                                                           \
    X(GET_PROTOCOL_FEATURES, 15)                                                                   \
    X(SET_PROTOCOL_FEATURES, 16)                                                                   \
    X(GET_QUEUE_NUM, 17)                                                                           \
    X(SET_VRING_ENABLE, 18)                                                                        \
    X(SEND_RARP, 19)                                                                               \
    X(NET_SET_MTU, 20)                                                                             \
    X(SET_BACKEND_REQ_FD, 21)                                                                      \
    X(IOTLB_MSG, 22)                                                                               \
    X(SET_VRING_ENDIAN, 23)                                                                        \
    X(GET_CONFIG, 24)                                                                              \
    X(SET_CONFIG, 25)                                                                              \
    X(CREATE_CRYPTO_SESSION, 26)                                                                   \
    X(CLOSE_CRYPTO_SESSION, 27)                                                                    \
    X(POSTCOPY_ADVISE, 28)                                                                         \
    X(POSTCOPY_LISTEN, 29)                                                                         \
    X(POSTCOPY_END, 30)                                                                            \
    X(GET_INFLIGHT_FD, 31)                                                                         \
    X(SET_INFLIGHT_FD, 32)                                                                         \
    X(GPU_SET_SOCKET, 33)                                                                          \
    X(RESET_DEVICE, 34)                                                                            \
    X(VRING_KICK, 35)                                                                              \
    X(GET_MAX_MEM_SLOTS, 36)                                                                       \
    X(ADD_MEM_REG, 37)                                                                             \
    X(REM_MEM_REG, 38)                                                                             \
    X(SET_STATUS, 39)                                                                              \
    X(GET_STATUS, 40)                                                                              \
    X(GET_SHARED_OBJECT, 41)                                                                       \
    X(SET_DEVICE_STATE_FD, 42)                                                                     \
    X(CHECK_DEVICE_STATE, 43)                                                                      \
    X(GET_SHMEM_CONFIG, 44)                                                                        \
    X(GET_VRING_BASE_SKIP_DRAIN, 45)

#define VHOSTI_USER_MESSAGE_ENUM(name, id) VHOSTI_USER_##name = id,
enum {
    VHOSTI_USER_MESSAGE_LIST(VHOSTI_USER_MESSAGE_ENUM) VHOSTI_USER_MESSAGE_COUNT
};

enum { /* requests of the back-end */
    VHOSTI_USER_REQUEST_IOTLB = 1,
    VHOSTI_USER_REQUEST_CONFIG_CHANGE = 2,
    VHOSTI_USER_REQUEST_HOST_NOTIFIER = 3,
    VHOSTI_USER_REQUEST_CALL = 4,
    VHOSTI_USER_REQUEST_ERROR = 5,
    VHOSTI_USER_REQUEST_OBJECT_ADD = 6,
    VHOSTI_USER_REQUEST_OBJECT_REMOVE = 7,
    VHOSTI_USER_REQUEST_OBJECT_LOOK_UP = 8,
    VHOSTI_USER_REQUEST_MAP = 9,
    VHOSTI_USER_REQUEST_UNMAP = 10,
    VHOSTI_USER_REQUEST_COUNT
};

enum {
    VHOSTI_USER_HEADER = 12, /* bytes: message, flags, size of what follows */
    VHOSTI_USER_VERSION = 1,
    VHOSTI_USER_REPLY = 1 << 2,
    VHOSTI_USER_NEED_REPLY = 1 << 3,
    VHOSTI_USER_NO_FD = 1 << 8, /* beside the index of a queue */
    VHOSTI_USER_FDS = 8,        /* of one message, at most */
    VHOSTI_USER_QUEUES = 256,   /* that have an index in messages with a notifier */
    VHOSTI_USER_TABLE = 8,      /* regions of a whole table, at most */
    VHOSTI_USER_SLOTS = 512,    /* more are not used */
    VHOSTI_USER_CONFIG = 256,   /* bytes of config space in one message */
    VHOSTI_USER_PAYLOAD = 4096,
    VHOSTI_USER_FEATURES_BIT = 30,   /* virtio feature: there are protocol features */
    VHOSTI_USER_MTU_BIT = 3,         /* virtio feature of virtio-net */
    VHOSTI_USER_STATUS_READY = 0x0b, /* ACKNOWLEDGE, DRIVER, FEATURES_OK */
    VHOSTI_USER_STATUS_FEATURES_OK = 0x08,
    VHOSTI_USER_STATUS_RUNNING = 0x0f, /* and DRIVER_OK */
    VHOSTI_USER_CONFIG_MIGRATION = 1, /* flag of SET_CONFIG: of what the driver cannot write, too */
    VHOSTI_USER_BATCH = 32,           /* requests of the back-end served by one `process` */
    VHOSTI_USER_REQUEST_MOST = 64,    /* bytes of a request that we do not know */
    VHOSTI_USER_WINDOWS_MOST = 1024,
    VHOSTI_USER_FDS_PAUSE_MS = 10,
    VHOSTI_USER_MEMORY_MOST = 8 + 8 * 40 /* bytes of a table */
};

enum {
    VHOSTI_USER_PRECOPY,
    VHOSTI_USER_POSTCOPY_ADVISED,
    VHOSTI_USER_POSTCOPY_LISTENING
};

enum {
    VHOSTI_USER_FREE,
    VHOSTI_USER_BLOCKED_BY_BYTES,
    VHOSTI_USER_BLOCKED_BY_FDS
};

#define VHOSTI_USER_TIMEOUT_MS   10000
#define VHOSTI_USER_RECORD_BASE  UINT64_C(4096) /* bytes that the record of a queue may need, */
#define VHOSTI_USER_RECORD_ENTRY UINT64_C(64)   /* and those of an entry of it */

/* Protocol features without which another one is of no use, and what they are asked for by. */
typedef struct vhosti_user_need {
    int bit;
    uint64_t needs;
} vhosti_user_need;

#define VHOSTI_USER_BIT(name) (UINT64_C(1) << VHOST_USER_BIT_##name)
#define VHOSTI_USER_USUAL                                                                          \
    (VHOSTI_USER_BIT(MQ) | VHOSTI_USER_BIT(LOG_SHMFD) | VHOSTI_USER_BIT(RARP) |                    \
     VHOSTI_USER_BIT(REPLY_ACK) | VHOSTI_USER_BIT(MTU) | VHOSTI_USER_BIT(BACKEND_REQ) |            \
     VHOSTI_USER_BIT(CROSS_ENDIAN) | VHOSTI_USER_BIT(CONFIG) | VHOSTI_USER_BIT(INFLIGHT) |         \
     VHOSTI_USER_BIT(RESET) | VHOSTI_USER_BIT(SLOTS) | VHOSTI_USER_BIT(STATUS))

#define VHOSTI_USER_BY_CALLBACK                                                                    \
    (VHOSTI_USER_BIT(HOST_NOTIFIER) | VHOSTI_USER_BIT(SHMEM) | VHOSTI_USER_BIT(SHARED_OBJECT))

static const vhosti_user_need vhosti_user_needs[] = {
    {VHOST_USER_BIT_FD_REQ, VHOSTI_USER_BIT(BACKEND_REQ)},
    {VHOST_USER_BIT_HOST_NOTIFIER, VHOSTI_USER_BIT(BACKEND_REQ) | VHOSTI_USER_BIT(FD_REQ)},
    {VHOST_USER_BIT_SHMEM, VHOSTI_USER_BIT(BACKEND_REQ) | VHOSTI_USER_BIT(FD_REQ)},
    {VHOST_USER_BIT_SHARED_OBJECT, VHOSTI_USER_BIT(BACKEND_REQ)},
    {VHOST_USER_BIT_INBAND, VHOSTI_USER_BIT(BACKEND_REQ) | VHOSTI_USER_BIT(REPLY_ACK)},
    {VHOST_USER_BIT_INFLIGHT_BASE, VHOSTI_USER_BIT(INFLIGHT)},
    {VHOST_USER_BIT_SKIP_DRAIN, VHOSTI_USER_BIT(INFLIGHT)}};

enum {
    VHOSTI_USER_NEED_COUNT = sizeof vhosti_user_needs / sizeof vhosti_user_needs[0]
};

/* What answers a message. */
typedef enum vhosti_user_answer {
    VHOSTI_USER_NOTHING, /* */
    VHOSTI_USER_ACK,     /* a verdict, 0 or not, if REPLY_ACK is in use; else nothing */
    VHOSTI_USER_VERDICT, /* a verdict in any case */
    VHOSTI_USER_NUMBER,  /* a u64 */
    VHOSTI_USER_BARRIER, /* a u64 that does not matter */
    VHOSTI_USER_STATUS,  /* device status */
    VHOSTI_USER_BASE,    /* position of a ring */
    VHOSTI_USER_BYTES,   /* of config space; none of them is a refusal */
    VHOSTI_USER_LOG,     /* something: back-ends differ */
    VHOSTI_USER_FD,      /* an fd, or none */
    VHOSTI_USER_RECORD,  /* of requests in flight */
    VHOSTI_USER_STATE,   /* verdict on an fd, and maybe another fd */
    VHOSTI_USER_WINDOWS, /* sizes of shared memory regions */
    VHOSTI_USER_ECHO,    /* as many bytes as were sent */
    VHOSTI_USER_ANSWER_COUNT
} vhosti_user_answer;

typedef struct vhosti_user_shape { /* of an answer */
    uint32_t least, most;          /* bytes; 0, 0 may be of a size that the request tells */
    uint32_t fds;                  /* at most */
    bool by_request;               /* least and most are those of the request's result, too */
} vhosti_user_shape;

static const vhosti_user_shape vhosti_user_shapes[VHOSTI_USER_ANSWER_COUNT] = {
    {0, 0, 0, false},       {8, 8, 0, false},  {8, 8, 0, false},   {8, 8, 0, false},
    {8, 8, 0, false},       {8, 8, 0, false},  {8, 8, 0, false},   {0, 12, 0, true},
    {0, 16, 0, false},      {0, 16, 1, false}, {24, 24, 1, false}, {8, 8, 1, false},
    {2056, 2056, 0, false}, {0, 0, 0, true}};

/* A message before it is queued. */
typedef struct vhosti_user_message {
    uint32_t id;
    vhost_op op; /* on behalf of which */
    int queue;   /* or -1 */
    vhosti_user_answer answer;
    void *result;         /* where the answer goes */
    uint32_t result_size; /* bytes of the answer, of BYTES and ECHO */
    uint32_t skipped;     /* of them, at the beginning */
    uint32_t fd_count;
    int fds[VHOSTI_USER_FDS];
    uint32_t size;
    uint8_t bytes[VHOSTI_USER_HEADER + VHOSTI_USER_PAYLOAD];
} vhosti_user_message;

/* A message that is queued, or sent and not answered. */
typedef struct vhosti_user_request {
    uint32_t id;
    vhost_op op;
    int queue;
    vhosti_user_answer answer;
    void *result;
    uint32_t result_size;
    uint32_t skipped;
    uint32_t offset; /* of BYTES */
    uint32_t end;    /* of its bytes in `out` */
    uint32_t fd_count;
    int fds[VHOSTI_USER_FDS];
} vhosti_user_request;

typedef struct vhosti_user_ring {
    int kick, call, error; /* or -1 */
    bool awaits_kick;      /* it runs when the fence is over: buffers may wait in it */
} vhosti_user_ring;

typedef struct vhosti_user_slot { /* a region that the back-end has */
    uint64_t gpa;
    uint64_t size;
    uint64_t serial;
} vhosti_user_slot;

/* All numbers are in the byte order of the host. */
static void vhosti_user_put(vhosti_user_message *message, const void *bytes, uint32_t size)
{
    memcpy(message->bytes + message->size, bytes, size);
    message->size += size;
}

static void vhosti_user_put_zeros(vhosti_user_message *message, uint32_t size)
{
    memset(message->bytes + message->size, 0, size);
    message->size += size;
}

static void vhosti_user_put32(vhosti_user_message *message, uint32_t value)
{
    vhosti_user_put(message, &value, 4);
}

static void vhosti_user_put64(vhosti_user_message *message, uint64_t value)
{
    vhosti_user_put(message, &value, 8);
}

static uint16_t vhosti_user_get16(const uint8_t *bytes)
{
    uint16_t value;
    memcpy(&value, bytes, sizeof value);
    return value;
}

static uint32_t vhosti_user_get32(const uint8_t *bytes)
{
    uint32_t value;
    memcpy(&value, bytes, sizeof value);
    return value;
}

static uint64_t vhosti_user_get64(const uint8_t *bytes)
{
    uint64_t value;
    memcpy(&value, bytes, sizeof value);
    return value;
}

static void vhosti_user_compose(vhosti_user_message *message, uint32_t id, vhost_op op, int queue,
                                vhosti_user_answer answer)
{
    message->id = id;
    message->op = op;
    message->queue = queue;
    message->answer = answer;
    message->result = NULL;
    message->result_size = message->skipped = 0;
    message->fd_count = 0;
    message->size = VHOSTI_USER_HEADER;
}

static void vhosti_user_attach_fd(vhosti_user_message *message, int fd)
{
    message->fds[message->fd_count++] = fd;
}

#define VHOSTI_USER_NAME_CASE(name, id)                                                            \
    case id:                                                                                       \
        return #name;
#define VHOSTI_USER_BIT_CASE(name, bit, text)                                                      \
    case bit:                                                                                      \
        return text;

VHOST_USER_DEF const char *vhost_user_message_name(uint32_t id)
{
    switch (id) {
        VHOSTI_USER_MESSAGE_LIST(VHOSTI_USER_NAME_CASE)
    default:
        return NULL;
    }
}

VHOST_USER_DEF const char *vhost_user_protocol_name(unsigned bit)
{
    switch (bit) {
        VHOST_USER_BIT_LIST(VHOSTI_USER_BIT_CASE)
    default:
        return NULL;
    }
}

/* >>calls -------------------------------------------------------------------------------------- */

static int vhosti_user_sys_unblock(int fd, void *user)
{
    int flags = fcntl(fd, F_GETFL);
    (void)user;
    return flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0 ? -errno : 0;
}

static int vhosti_user_sys_close(int fd, void *user)
{
    (void)user;
    return close(fd) < 0 ? -errno : 0;
}

static int vhosti_user_sys_unlink(const char *path, void *user)
{
    (void)user;
    return unlink(path) < 0 ? -errno : 0;
}

/* Ours alone, and not blocking; or closed, and the error. */
static int vhosti_user_sys_tame(int fd, bool blocks)
{
    int code = fcntl(fd, F_SETFD, FD_CLOEXEC) < 0 ? -errno : 0;
    if (code == 0 && !blocks)
        code = vhosti_user_sys_unblock(fd, NULL);
    if (code == 0)
        return fd;
    (void)close(fd);
    return code;
}

static int vhosti_user_sys_socket(const char *path, struct sockaddr_un *address)
{
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    memset(address, 0, sizeof *address);
    address->sun_family = AF_UNIX;
    if (strlen(path) >= sizeof address->sun_path) {
        if (fd >= 0)
            (void)close(fd);
        return -ENAMETOOLONG;
    }
    memcpy(address->sun_path, path, strlen(path));
    return fd < 0 ? -errno : vhosti_user_sys_tame(fd, false);
}

static int vhosti_user_sys_connect(const char *path, void *user)
{
    struct sockaddr_un address;
    int code, fd = vhosti_user_sys_socket(path, &address);
    (void)user;
    if (fd < 0 || connect(fd, (const struct sockaddr *)&address, sizeof address) == 0)
        return fd;
    code = -errno;
    (void)close(fd);
    return code;
}

static int vhosti_user_sys_bind(const char *path)
{
    struct sockaddr_un address;
    int code, fd = vhosti_user_sys_socket(path, &address);
    if (fd < 0)
        return fd;
    if (bind(fd, (const struct sockaddr *)&address, sizeof address) == 0 && listen(fd, 1) == 0)
        return fd;
    code = -errno;
    (void)close(fd);
    return code;
}

static bool vhosti_user_sys_is_socket(const char *path)
{
    enum {
        TYPE = 0170000,
        SOCKET = 0140000
    }; /* which strict C99 does not show */
    struct stat about;
    return stat(path, &about) == 0 && (about.st_mode & TYPE) == SOCKET;
}

static int vhosti_user_sys_listen(const char *path, void *user)
{
    int fd = vhosti_user_sys_bind(path), other;
    if (fd != -EADDRINUSE)
        return fd;
    other = vhosti_user_sys_connect(path, user);
    if (other >= 0)
        (void)close(other);
    if (other != -ECONNREFUSED || !vhosti_user_sys_is_socket(path)) /* not a dead one */
        return -EADDRINUSE;
    (void)unlink(path);
    return vhosti_user_sys_bind(path);
}

static int vhosti_user_sys_accept(int fd, void *user)
{
    int accepted = accept(fd, NULL, NULL);
    (void)user;
    return accepted < 0 ? -errno : vhosti_user_sys_tame(accepted, false);
}

static int vhosti_user_sys_ends(int ends[2])
{
    ends[0] = vhosti_user_sys_tame(ends[0], false);
    ends[1] = vhosti_user_sys_tame(ends[1], true);
    if (ends[0] >= 0 && ends[1] >= 0)
        return 0;
    if (ends[0] >= 0 || ends[1] >= 0)
        (void)close(ends[0] >= 0 ? ends[0] : ends[1]);
    return ends[0] < 0 ? ends[0] : ends[1];
}

static int vhosti_user_sys_socket_pair(int ends[2], void *user)
{
    (void)user;
    return socketpair(AF_UNIX, SOCK_STREAM, 0, ends) < 0 ? -errno : vhosti_user_sys_ends(ends);
}

typedef union vhosti_user_control { /* aligned as a cmsghdr has to be */
    struct cmsghdr align;
    unsigned char bytes[CMSG_SPACE(sizeof(int) * VHOSTI_USER_FDS)];
} vhosti_user_control;

static ptrdiff_t vhosti_user_sys_send(int fd, const void *bytes, size_t size, const int *fds,
                                      uint32_t fd_count, void *user)
{
    vhosti_user_control control;
    struct msghdr header;
    struct iovec piece;
    ptrdiff_t sent;
    (void)user;
    memset(&header, 0, sizeof header);
    memset(&control, 0, sizeof control);
    memcpy(&piece.iov_base, &bytes, sizeof bytes); /* it is not written to */
    piece.iov_len = size;
    header.msg_iov = &piece;
    header.msg_iovlen = 1;
    if (fd_count > 0) {
        control.align.cmsg_level = SOL_SOCKET;
        control.align.cmsg_type = SCM_RIGHTS;
        control.align.cmsg_len = (socklen_t)CMSG_LEN(fd_count * sizeof(int));
        memcpy(CMSG_DATA(&control.align), fds, fd_count * sizeof(int));
        header.msg_control = control.bytes;
        header.msg_controllen = (socklen_t)CMSG_SPACE(fd_count * sizeof(int));
    }
    sent = sendmsg(fd, &header, MSG_NOSIGNAL);
    return sent < 0 ? -errno : sent;
}

/* Those for which there is room; the others are closed. */
static bool vhosti_user_sys_take_fds(struct cmsghdr *control, int *fds, uint32_t room,
                                     uint32_t *count)
{
    size_t i, there = (control->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    bool fits = true;
    for (i = 0; i < there; i++) {
        int fd;
        memcpy(&fd, CMSG_DATA(control) + i * sizeof fd, sizeof fd);
        if (*count < room) {
            fds[(*count)++] = fd;
        } else {
            (void)close(fd);
            fits = false;
        }
    }
    return fits;
}

#if defined(MSG_CMSG_CLOEXEC)
#define VHOSTI_USER_RECEIVE MSG_CMSG_CLOEXEC
#else
#define VHOSTI_USER_RECEIVE 0
#endif

static ptrdiff_t vhosti_user_sys_receive(int fd, void *bytes, size_t size, int *fds,
                                         uint32_t *fd_count, void *user)
{
    vhosti_user_control control;
    struct msghdr header;
    struct iovec piece;
    struct cmsghdr *one;
    uint32_t room = *fd_count;
    ptrdiff_t received;
    bool fits = true;
    (void)user;
    memset(&header, 0, sizeof header);
    piece.iov_base = bytes;
    piece.iov_len = size;
    header.msg_iov = &piece;
    header.msg_iovlen = 1;
    header.msg_control = control.bytes;
    header.msg_controllen = sizeof control.bytes;
    *fd_count = 0;
    received = recvmsg(fd, &header, VHOSTI_USER_RECEIVE);
    if (received < 0)
        return -errno;
    for (one = CMSG_FIRSTHDR(&header); one != NULL; one = CMSG_NXTHDR(&header, one))
        if (one->cmsg_level == SOL_SOCKET && one->cmsg_type == SCM_RIGHTS)
            fits &= vhosti_user_sys_take_fds(one, fds, room, fd_count);
    return fits && (header.msg_flags & MSG_CTRUNC) == 0 ? received : -EMSGSIZE;
}

enum {
    VHOSTI_USER_POLLS = 4
};

static int vhosti_user_sys_wait(vhost_user_poll *fds, uint32_t count, int timeout_ms, void *user)
{
    struct pollfd polled[VHOSTI_USER_POLLS];
    uint32_t i;
    int ready;
    (void)user;
    for (i = 0; i < count; i++) {
        polled[i].fd = fds[i].fd;
        polled[i].events = fds[i].output ? POLLOUT : POLLIN;
        polled[i].revents = 0;
    }
    ready = poll(polled, count, timeout_ms);
    for (i = 0; i < count; i++)
        fds[i].ready = ready > 0 && polled[i].revents != 0;
    return ready < 0 ? -errno : ready;
}

#if defined(__linux__)

/* Hidden from strict C99 programs, and so is its struct. Where seconds have two words, and the
   second is 0, time goes on once a second. (times() wraps after five minutes, where words are of
   32 bits.) */
extern int vhosti_user_clock_gettime(int clock, long *time) __asm__("clock_gettime");

static uint64_t vhosti_user_sys_now(void *user)
{
    enum {
        MONOTONIC = 1
    };
    long time[4] = {0, 0, 0, 0};
    (void)user;
    (void)vhosti_user_clock_gettime(MONOTONIC, time);
    return (uint64_t)time[0] * 1000 + (uint64_t)time[1] / 1000000;
}

#else

static uint64_t vhosti_user_sys_now(void *user)
{
    struct tms unused;
    (void)user;
    return (uint64_t)(unsigned long)times(&unused) * 1000 / (uint64_t)sysconf(_SC_CLK_TCK);
}

#endif

static ptrdiff_t vhosti_user_sys_read(int fd, void *bytes, size_t size, void *user)
{
    ptrdiff_t count = read(fd, bytes, size);
    (void)user;
    return count < 0 ? -errno : count;
}

static ptrdiff_t vhosti_user_sys_write(int fd, const void *bytes, size_t size, void *user)
{
    ptrdiff_t count = write(fd, bytes, size);
    (void)user;
    return count < 0 ? -errno : count;
}

static int vhosti_user_sys_seek(int fd, uint64_t offset, void *user)
{
    (void)user;
    return lseek(fd, (off_t)offset, SEEK_SET) < 0 ? -errno : 0;
}

enum {
    VHOSTI_USER_GET_SEALS = 1034
}; /* hidden from strict C99 */

static int64_t vhosti_user_sys_size_of(int fd, void *user)
{
    struct stat about;
    (void)user;
#if defined(__linux__)
    if (fcntl(fd, VHOSTI_USER_GET_SEALS) < 0) /* of a file system that may never answer */
        return -errno;
#endif
    return fstat(fd, &about) < 0 ? -errno : (int64_t)about.st_size;
}

#if defined(__linux__)

/* Hidden from strict C99 programs, though it is there. */
extern int vhosti_user_memfd_create(const char *name, unsigned flags) __asm__("memfd_create");

enum {
    VHOSTI_USER_MEMFD_CLOEXEC = 1,
    VHOSTI_USER_MEMFD_SEALABLE = 2,
    VHOSTI_USER_ADD_SEALS = 1033,
    VHOSTI_USER_SEALS = 1 | 2 | 4 /* no more seals; it neither shrinks nor grows */
};

static int vhosti_user_sys_memory(uint64_t size, void *user)
{
    int fd = vhosti_user_memfd_create("vhost inflight",
                                      VHOSTI_USER_MEMFD_CLOEXEC | VHOSTI_USER_MEMFD_SEALABLE);
    int code;
    if (fd < 0)
        return -errno;
    code = vhosti_user_sys_seek(fd, size - 1, user);
    if (code == 0 && write(fd, "", 1) != 1)
        code = -errno;
    if (code == 0 && fcntl(fd, VHOSTI_USER_ADD_SEALS, VHOSTI_USER_SEALS) < 0)
        code = -errno;
    if (code == 0)
        return fd;
    (void)close(fd);
    return code;
}

#else

static int vhosti_user_sys_memory(uint64_t size, void *user)
{
    char name[32];
    int fd, i;
    for (i = 0; i < 100; i++) {
        (void)snprintf(name, sizeof name, "/vhost-inflight-%ld-%d", (long)getpid(), i);
        fd = shm_open(name, O_RDWR | O_CREAT | O_EXCL, 0600);
        if (fd >= 0 || errno != EEXIST)
            break;
    }
    if (fd < 0)
        return -errno;
    (void)shm_unlink(name);
    if (vhosti_user_sys_seek(fd, size - 1, user) == 0 && write(fd, "", 1) == 1)
        return fd;
    i = -errno;
    (void)close(fd);
    return i;
}

#endif

static const vhost_user_calls vhosti_user_system = {
    vhosti_user_sys_connect,     vhosti_user_sys_listen,  vhosti_user_sys_accept,
    vhosti_user_sys_socket_pair, vhosti_user_sys_unblock, vhosti_user_sys_close,
    vhosti_user_sys_unlink,      vhosti_user_sys_send,    vhosti_user_sys_receive,
    vhosti_user_sys_wait,        vhosti_user_sys_now,     vhosti_user_sys_memory,
    vhosti_user_sys_size_of,     vhosti_user_sys_read,    vhosti_user_sys_write,
    vhosti_user_sys_seek};

static void *vhosti_user_sys_allocate(void *memory, size_t size, void *user)
{
    (void)user;
    if (size == 0) {
        free(memory);
        return NULL;
    }
    return realloc(memory, size);
}

static uint64_t vhosti_user_now(const vhost_user *self)
{
    return self->options.calls->now(self->options.user);
}

/* Not zeroed: in a zeroed object every fd is 0, which is somebody else's. */
static bool vhosti_user_is_open(const vhost_user *self)
{
    return self->options.calls != NULL;
}

static void vhosti_user_close_fd(vhost_user *self, int *fd)
{
    if (*fd >= 0)
        (void)self->options.calls->close(*fd, self->options.user);
    *fd = -1;
}

static void *vhosti_user_allocate(vhost_user *self, void *memory, size_t size)
{
    return self->options.allocate(memory, size, self->options.user);
}

static void vhosti_user_free(vhost_user *self, void *memory)
{
    if (memory != NULL)
        (void)vhosti_user_allocate(self, memory, 0);
}

/* Gives `array` room for `need` elements. NULL: out of memory, and the array is as it was. */
static void *vhosti_user_grow(vhost_user *self, void *array, uint32_t *capacity, uint32_t need,
                              size_t size)
{
    uint32_t roomy = *capacity < 16 ? 16 : *capacity;
    void *grown;
    if (array != NULL && need <= *capacity)
        return array;
    if (need > UINT32_MAX / 2)
        return NULL;
    while (roomy < need)
        roomy *= 2;
    grown = vhosti_user_allocate(self, array, roomy * size);
    if (grown != NULL)
        *capacity = roomy;
    return grown;
}

#if defined(__GNUC__)
#define VHOSTI_USER_PRINTF(text, first) __attribute__((format(printf, text, first)))
#else
#define VHOSTI_USER_PRINTF(text, first)
#endif

/* Records what went wrong, for people; the core reports it, with the operation. */
VHOSTI_USER_PRINTF(7, 8)
static int vhosti_user_fail(vhost_user *self, int code, vhost_why why, uint32_t id, int queue,
                            uint32_t line, const char *format, ...)
{
    vhost_error *error = &self->last_error;
    const char *name = vhost_user_message_name(id);
    size_t used;
    va_list arguments;
    error->code = code;
    error->why = why;
    error->op = VHOST_OP_NONE;
    error->queue = queue;
    error->line = line;
    error->text[0] = '\0';
    if (name != NULL && queue >= 0)
        (void)snprintf(error->text, sizeof error->text, "%s of queue %d: ", name, queue);
    else if (name != NULL)
        (void)snprintf(error->text, sizeof error->text, "%s: ", name);
    used = strlen(error->text);
    va_start(arguments, format);
    (void)vsnprintf(error->text + used, sizeof error->text - used, format, arguments);
    va_end(arguments);
    used = strlen(error->text);
    (void)snprintf(error->text + used, sizeof error->text - used, " (%s)", vhost_why_text(why));
    return code;
}

#define VHOSTI_USER_FAIL(self, code, why, id, queue, ...)                                          \
    vhosti_user_fail((self), (code), (why), (id), (queue), __LINE__, __VA_ARGS__)

/* ---- the end of a connection ---- */

static void vhosti_user_close_input(vhost_user *self, vhosti_user_input *input)
{
    while (input->fd_count > 0)
        vhosti_user_close_fd(self, &input->fds[--input->fd_count]);
    input->size = 0;
    vhosti_user_close_fd(self, &input->fd);
}

static void vhosti_user_cut(vhost_user *self)
{
    uint32_t i;
    for (i = 0; i < self->ring_count; i++)
        self->rings[i].kick = self->rings[i].call = self->rings[i].error = -1;
    vhosti_user_close_input(self, &self->main);
    vhosti_user_close_input(self, &self->channel);
    vhosti_user_close_fd(self, &self->channel_end);
    if (self->dead == 0)
        self->dead = -ECONNRESET;
}

/* The connection cannot be trusted any more: what comes next on it may mean anything. */
static void vhosti_user_poison(vhost_user *self, int code)
{
    self->dead = code;
    vhosti_user_cut(self);
}

#define VHOSTI_USER_POISON(self, code, why, id, queue, ...)                                        \
    vhosti_user_poison((self), VHOSTI_USER_FAIL(self, code, why, id, queue, __VA_ARGS__))

/* >>submit -------------------------------------------------------------------------------------

   Messages are put into one stream of bytes, and sent by the fence. The requests beside it say what
   answers them, in order. Pointers into either do not outlive a submit: both may move. */

static bool vhosti_user_uses(const vhost_user *self, int bit)
{
    return (self->protocol >> bit & 1) != 0;
}

static bool vhosti_user_has_protocol(const vhost_user *self)
{
    return (self->features >> VHOSTI_USER_FEATURES_BIT & 1) != 0;
}

/* Drops what is done with. There is always more to come only from a back-end that asks without end,
   but that must not eat memory. */
static void vhosti_user_compact(vhost_user *self)
{
    uint32_t i, first = self->request_first, sent = self->out_sent;
    if (first == 0)
        return;
    self->request_count -= first;
    self->requests_sent -= first;
    self->request_first = 0;
    self->out_size -= sent;
    self->out_sent = 0;
    memmove(self->out, self->out + sent, self->out_size);
    memmove(self->requests, self->requests + first, self->request_count * sizeof *self->requests);
    for (i = 0; i < self->request_count; i++)
        self->requests[i].end -= self->requests[i].end < sent ? self->requests[i].end : sent;
}

static bool vhosti_user_reserve(vhost_user *self, uint32_t bytes)
{
    vhosti_user_request *requests;
    uint8_t *out;
    if (self->request_count == self->request_capacity)
        vhosti_user_compact(self);
    out = (uint8_t *)vhosti_user_grow(self, self->out, &self->out_capacity, self->out_size + bytes,
                                      1);
    if (out == NULL)
        return false;
    self->out = out;
    requests = (vhosti_user_request *)vhosti_user_grow(
        self, self->requests, &self->request_capacity, self->request_count + 1, sizeof *requests);
    if (requests == NULL)
        return false;
    self->requests = requests;
    return true;
}

static vhosti_user_request vhosti_user_make_request(const vhost_user *self,
                                                    const vhosti_user_message *message)
{
    vhosti_user_request request;
    request.id = message->id;
    request.op = message->op;
    request.queue = message->queue;
    request.answer = message->answer;
    if (request.answer == VHOSTI_USER_ACK && !vhosti_user_uses(self, VHOST_USER_BIT_REPLY_ACK))
        request.answer = VHOSTI_USER_NOTHING;
    request.result = message->result;
    request.result_size = message->result_size;
    request.skipped = message->skipped;
    request.offset = 0;
    if (request.answer == VHOSTI_USER_BYTES)
        request.offset = vhosti_user_get32(message->bytes + VHOSTI_USER_HEADER);
    request.end = self->out_size + message->size;
    request.fd_count = message->fd_count;
    memcpy(request.fds, message->fds, sizeof request.fds);
    return request;
}

/* Queues a message. On failure nothing of it happened. */
static int vhosti_user_submit(vhost_user *self, vhosti_user_message *message)
{
    vhosti_user_request request;
    uint32_t header[3];
    if (self->dead < 0)
        return self->dead;
    if (!vhosti_user_reserve(self, message->size))
        return VHOSTI_USER_FAIL(self, -ENOMEM, VHOST_WHY_MEMORY, message->id, message->queue,
                                "%lu bytes", (unsigned long)message->size);
    request = vhosti_user_make_request(self, message);
    header[0] = message->id;
    header[1] = VHOSTI_USER_VERSION;
    if (request.answer == VHOSTI_USER_ACK)
        header[1] |= VHOSTI_USER_NEED_REPLY;
    header[2] = message->size - VHOSTI_USER_HEADER;
    memcpy(message->bytes, header, sizeof header);
    memcpy(self->out + self->out_size, message->bytes, message->size);
    self->out_size += message->size;
    self->requests[self->request_count++] = request;
    if (!self->submitted)
        self->deadline = vhosti_user_now(self) + self->options.timeout_ms;
    self->submitted = true;
    return 0;
}

/* Where the stream ends, to go back to when an operation of several messages does not fit. */
typedef struct vhosti_user_mark {
    uint32_t bytes, requests; /* not yet sent, and not yet done with */
    bool submitted;
    uint8_t status;
} vhosti_user_mark;

static vhosti_user_mark vhosti_user_set_mark(const vhost_user *self)
{
    vhosti_user_mark mark;
    mark.bytes = self->out_size - self->out_sent;
    mark.requests = self->request_count - self->request_first;
    mark.submitted = self->submitted;
    mark.status = self->status;
    return mark;
}

static int vhosti_user_all_or_nothing(vhost_user *self, const vhosti_user_mark *mark, int code)
{
    if (code >= 0 || self->dead < 0)
        return code;
    self->out_size = self->out_sent + mark->bytes;
    self->request_count = self->request_first + mark->requests;
    self->submitted = mark->submitted;
    self->status = mark->status;
    return code;
}

/* The most common kinds. */
static int vhosti_user_submit_number(vhost_user *self, uint32_t id, vhost_op op, uint64_t number)
{
    vhosti_user_message message;
    vhosti_user_compose(&message, id, op, -1, VHOSTI_USER_ACK);
    vhosti_user_put64(&message, number);
    return vhosti_user_submit(self, &message);
}

static int vhosti_user_submit_bare(vhost_user *self, uint32_t id, vhost_op op,
                                   vhosti_user_answer answer, void *result)
{
    vhosti_user_message message;
    vhosti_user_compose(&message, id, op, -1, answer);
    message.result = result;
    return vhosti_user_submit(self, &message);
}

static int vhosti_user_submit_fd(vhost_user *self, uint32_t id, vhost_op op, int fd)
{
    vhosti_user_message message;
    vhosti_user_compose(&message, id, op, -1, VHOSTI_USER_ACK);
    vhosti_user_attach_fd(&message, fd);
    return vhosti_user_submit(self, &message);
}

/* >>receive ------------------------------------------------------------------------------------ */

/* Takes the first request off, which was sent, and needs no answer or has it. */
static void vhosti_user_retire(vhost_user *self)
{
    self->request_first++;
    self->taken++;
    if (self->request_first < self->request_count)
        return;
    self->request_first = self->request_count = self->requests_sent = 0;
    self->out_size = self->out_sent = 0;
}

static void vhosti_user_retire_unanswered(vhost_user *self)
{
    while (self->request_first < self->requests_sent &&
           self->requests[self->request_first].answer == VHOSTI_USER_NOTHING)
        vhosti_user_retire(self);
}

/* The first failure since the last fence is the one that counts. */
static void vhosti_user_note_failure(vhost_user *self, int code, vhost_op op, int queue)
{
    if (self->failure.error < 0)
        return;
    self->failure.error = code;
    self->failure.op = op;
    self->failure.queue = queue;
    self->failure.later_done = true; /* at least, it may be */
}

/* Of a lost connection: what was sent before may be done; rings may run once they are kicked. */
static void vhosti_user_note_loss(vhost_user *self, vhost_op op, int queue)
{
    if (self->failure.error < 0)
        return;
    vhosti_user_note_failure(self, self->dead, op, queue);
    self->failure.later_done = self->kicked;
}

static void vhosti_user_refused(vhost_user *self, const vhosti_user_request *request,
                                uint64_t verdict)
{
    if (request->op == VHOST_OP_SET_TABLE)
        self->table_unsure = true;
    if (self->failure.error == 0)
        (void)VHOSTI_USER_FAIL(self, -EIO, VHOST_WHY_USER_REFUSED, request->id, request->queue,
                               "0x%llx", (unsigned long long)verdict);
    vhosti_user_note_failure(self, -EIO, request->op, request->queue);
}

static void vhosti_user_absurd(vhost_user *self, const vhosti_user_request *request, uint64_t value)
{
    VHOSTI_USER_POISON(self, -EPROTO, VHOST_WHY_USER_VALUE, request->id, request->queue, "0x%llx",
                       (unsigned long long)value);
}

/* Whoever takes an fd clears it in the input, where all others are closed. */
static int vhosti_user_take_fd(vhosti_user_input *input)
{
    return input->fd_count > 0 ? input->fds[--input->fd_count] : -1;
}

/* Of a packed ring, some back-ends (DPDK's) say only where they take: they have waited for all that
   was in flight, so that they give back at the same place. */
static uint32_t vhosti_user_whole_base(const vhost_user *self, uint32_t id, uint32_t value)
{
    bool packed = vhost_features_test(&self->device->acked, VHOST_FEATURE_RING_PACKED);
    bool waited =
        id == VHOSTI_USER_GET_VRING_BASE && !vhosti_user_uses(self, VHOST_USER_BIT_INFLIGHT_BASE);
    return packed && waited && value >> 16 == 0 ? value | value << 16 : value;
}

static void vhosti_user_take_base(vhost_user *self, const vhosti_user_request *request,
                                  const uint8_t *payload)
{
    vhost_ring_base *base = (vhost_ring_base *)request->result;
    if (vhosti_user_get32(payload) != (uint32_t)request->queue) {
        vhosti_user_absurd(self, request, vhosti_user_get32(payload));
        return;
    }
    self->rings[request->queue].call = self->rings[request->queue].kick =
        -1; /* not ours any more */
    base->value = vhosti_user_whole_base(self, request->id, vhosti_user_get32(payload + 4));
    base->answered = true;
}

static void vhosti_user_take_bytes(vhost_user *self, const vhosti_user_request *request,
                                   const uint8_t *payload, uint32_t size)
{
    if (size == 0)
        vhosti_user_refused(self, request, 0);
    else if (vhosti_user_get32(payload) != request->offset ||
             vhosti_user_get32(payload + 4) != request->result_size)
        vhosti_user_absurd(self, request, vhosti_user_get32(payload));
    else
        memcpy(request->result, payload + 12 + request->skipped,
               request->result_size - request->skipped);
}

/* The record is the back-end's, and this process never maps it: its fd may be cut short at any
   time. What is read of it is checked then. */
static void vhosti_user_take_record(vhost_user *self, const vhosti_user_request *request,
                                    const uint8_t *payload)
{
    vhosti_user_inflight *record = (vhosti_user_inflight *)request->result;
    uint64_t size = vhosti_user_get64(payload), offset = vhosti_user_get64(payload + 8);
    uint64_t most = (uint64_t)record->queues *
                    (VHOSTI_USER_RECORD_BASE + VHOSTI_USER_RECORD_ENTRY * record->queue_size);
    bool alike = vhosti_user_get16(payload + 16) == record->queues &&
                 vhosti_user_get16(payload + 18) == record->queue_size;
    int64_t there;
    if (size == 0)
        return;
    if (!alike || size > most || offset > (uint64_t)INT64_MAX - size) {
        vhosti_user_absurd(self, request, alike ? size : vhosti_user_get16(payload + 16));
        return;
    }
    if (self->main.fd_count == 0) {
        VHOSTI_USER_POISON(self, -EPROTO, VHOST_WHY_USER_FDS, request->id, -1, "none");
        return;
    }
    there = self->options.calls->size_of(self->main.fds[0], self->options.user);
    if (there < 0 || (uint64_t)there < offset + size) {
        vhosti_user_absurd(self, request, offset + size);
        return;
    }
    record->fd = vhosti_user_take_fd(&self->main);
    record->size = size;
    record->offset = offset;
}

static void vhosti_user_take_state(vhost_user *self, const vhosti_user_request *request,
                                   const uint8_t *payload)
{
    uint64_t verdict = vhosti_user_get64(payload);
    bool no_fd = (verdict & VHOSTI_USER_NO_FD) != 0;
    if ((verdict & 0xff) != 0)
        vhosti_user_refused(self, request, verdict);
    else if (no_fd != (self->main.fd_count == 0))
        VHOSTI_USER_POISON(self, -EPROTO, VHOST_WHY_USER_FDS, request->id, -1, "%lu",
                           (unsigned long)self->main.fd_count);
    else
        *(int *)request->result = vhosti_user_take_fd(&self->main);
}

static void vhosti_user_take_windows(vhost_user *self, const uint8_t *payload)
{
    uint32_t i;
    for (i = 0; i < VHOST_USER_SHMEM_COUNT; i++)
        self->shmem[i] = vhosti_user_get64(payload + 8 + 8 * (size_t)i);
}

static void vhosti_user_take_status(vhost_user *self, const vhosti_user_request *request,
                                    uint64_t status)
{
    if ((status & VHOSTI_USER_STATUS_FEATURES_OK) != 0)
        return;
    self->status = 0;
    vhosti_user_refused(self, request, status);
}

static void vhosti_user_take_answer(vhost_user *self, const vhosti_user_request *request,
                                    const uint8_t *payload, uint32_t size)
{
    switch (request->answer) {
    case VHOSTI_USER_ACK:
    case VHOSTI_USER_VERDICT:
        if (vhosti_user_get64(payload) != 0)
            vhosti_user_refused(self, request, vhosti_user_get64(payload));
        break;
    case VHOSTI_USER_NUMBER:
        *(uint64_t *)request->result = vhosti_user_get64(payload);
        break;
    case VHOSTI_USER_STATUS:
        vhosti_user_take_status(self, request, vhosti_user_get64(payload));
        break;
    case VHOSTI_USER_BASE:
        vhosti_user_take_base(self, request, payload);
        break;
    case VHOSTI_USER_BYTES:
        vhosti_user_take_bytes(self, request, payload, size);
        break;
    case VHOSTI_USER_FD:
        *(int *)request->result = vhosti_user_take_fd(&self->main);
        break;
    case VHOSTI_USER_RECORD:
        vhosti_user_take_record(self, request, payload);
        break;
    case VHOSTI_USER_STATE:
        vhosti_user_take_state(self, request, payload);
        break;
    case VHOSTI_USER_WINDOWS:
        vhosti_user_take_windows(self, payload);
        break;
    case VHOSTI_USER_ECHO:
        memcpy(request->result, payload, size);
        break;
    case VHOSTI_USER_NOTHING:
    case VHOSTI_USER_BARRIER:
    case VHOSTI_USER_LOG:
    case VHOSTI_USER_ANSWER_COUNT:
        break;
    }
}

/* ---- bytes ---- */

static uint32_t vhosti_user_input_size(const vhosti_user_input *input)
{
    return VHOSTI_USER_HEADER + vhosti_user_get32(input->bytes + 8);
}

/* Lets go of the message in front, and of the fds that came with it and that nobody took. */
static void vhosti_user_consume(vhost_user *self, vhosti_user_input *input, uint32_t size)
{
    if (input->fd < 0) /* the connection was cut meanwhile */
        return;
    while (input->fd_count > 0)
        vhosti_user_close_fd(self, &input->fds[--input->fd_count]);
    input->size -= size;
    memmove(input->bytes, input->bytes + size, input->size);
}

static bool vhosti_user_is_size(const vhosti_user_request *request, uint32_t size)
{
    const vhosti_user_shape *shape = &vhosti_user_shapes[request->answer];
    uint32_t least = shape->least, most = shape->most;
    if (request->answer == VHOSTI_USER_BYTES)
        return size == 0 || size == most + request->result_size;
    if (shape->by_request)
        least = most = request->result_size;
    return size >= least && size <= most;
}

/* Whether an answer can be this one, by its header alone. */
static bool vhosti_user_check_header(vhost_user *self, const vhosti_user_request *request)
{
    const uint8_t *header = self->main.bytes;
    uint32_t id = vhosti_user_get32(header), flags = vhosti_user_get32(header + 4);
    uint32_t size = vhosti_user_get32(header + 8);
    if (id != request->id)
        VHOSTI_USER_POISON(self, -EPROTO, VHOST_WHY_USER_HEADER, request->id, request->queue,
                           "answer to message %lu", (unsigned long)id);
    else if ((flags & ~(uint32_t)VHOSTI_USER_NEED_REPLY) !=
             (VHOSTI_USER_VERSION | VHOSTI_USER_REPLY))
        VHOSTI_USER_POISON(self, -EPROTO, VHOST_WHY_USER_HEADER, request->id, request->queue,
                           "flags 0x%lx", (unsigned long)flags);
    else if (!vhosti_user_is_size(request, size))
        VHOSTI_USER_POISON(self, -EPROTO, VHOST_WHY_USER_SIZE, request->id, request->queue,
                           "%lu bytes", (unsigned long)size);
    return self->dead == 0;
}

/* Takes one answer out of the input, if there is a whole one. */
static bool vhosti_user_take(vhost_user *self)
{
    vhosti_user_input *input = &self->main;
    vhosti_user_request request;
    uint32_t size;
    vhosti_user_retire_unanswered(self);
    if (input->size > 0 && self->request_first == self->requests_sent) {
        VHOSTI_USER_POISON(self, -EPROTO, VHOST_WHY_USER_UNASKED, 0, -1, "%lu bytes",
                           (unsigned long)input->size);
        return false;
    }
    if (input->size < VHOSTI_USER_HEADER)
        return false;
    request = self->requests[self->request_first];
    if (!vhosti_user_check_header(self, &request))
        return false;
    size = vhosti_user_input_size(input);
    if (input->size < size)
        return false;
    if (input->fd_count > vhosti_user_shapes[request.answer].fds) {
        VHOSTI_USER_POISON(self, -EPROTO, VHOST_WHY_USER_FDS, request.id, request.queue, "%lu",
                           (unsigned long)input->fd_count);
        return false;
    }
    vhosti_user_take_answer(self, &request, input->bytes + VHOSTI_USER_HEADER,
                            size - VHOSTI_USER_HEADER);
    if (self->dead < 0) /* the request stands as the one that failed */
        return false;
    vhosti_user_retire(self);
    vhosti_user_consume(self, input, size);
    return true;
}

/* What the back-end owes us an answer to; if nothing, a request of no message. */
static vhosti_user_request vhosti_user_awaited(const vhost_user *self)
{
    vhosti_user_request none;
    if (self->request_first < self->request_count)
        return self->requests[self->request_first];
    memset(&none, 0, sizeof none);
    none.op = VHOST_OP_NONE;
    none.queue = -1;
    return none;
}

static void vhosti_user_hang_up(vhost_user *self)
{
    vhosti_user_request awaited = vhosti_user_awaited(self);
    VHOSTI_USER_POISON(self, -ECONNRESET, VHOST_WHY_USER_EOF, awaited.id, awaited.queue, "%s",
                       self->main.size > 0 ? "in the middle of an answer"
                       : awaited.id != 0   ? "no answer"
                                           : "while idle");
}

/* Reads what is there into an input, at most `room` bytes. Returns whether there was something. */
static bool vhosti_user_read(vhost_user *self, vhosti_user_input *input, uint32_t room)
{
    uint32_t fds = VHOSTI_USER_FDS - input->fd_count;
    vhosti_user_request awaited = vhosti_user_awaited(self);
    ptrdiff_t count =
        self->options.calls->receive(input->fd, input->bytes + input->size, room,
                                     input->fds + input->fd_count, &fds, self->options.user);
    input->fd_count += fds;
    if (count > 0) {
        input->size += (uint32_t)count;
        return true;
    }
    if (count == -EINTR)
        return true;
    if ((count == 0 || count == -ECONNRESET) && input == &self->channel) {
        vhosti_user_close_input(self, input); /* answers may still be on the main socket */
        self->hung_up = true;
        return true;
    }
    if (count == -EMSGSIZE)
        VHOSTI_USER_POISON(self, -EPROTO, VHOST_WHY_USER_FDS, awaited.id, awaited.queue,
                           "more than there is room for");
    else if (count == 0 || count == -ECONNRESET)
        vhosti_user_hang_up(self);
    else if (count != -EAGAIN && count != -EWOULDBLOCK)
        VHOSTI_USER_POISON(self, (int)count, VHOST_WHY_USER_SOCKET, awaited.id, awaited.queue,
                           "receive, errno %d", (int)-count);
    return false;
}

/* An answer with an fd is read by itself: bytes tell which fd is whose only at their beginning. */
static uint32_t vhosti_user_room(const vhost_user *self)
{
    const vhosti_user_input *input = &self->main;
    uint32_t i, fds = 0;
    for (i = self->request_first; i < self->requests_sent; i++)
        fds |= vhosti_user_shapes[self->requests[i].answer].fds;
    if (fds == 0)
        return (uint32_t)sizeof input->bytes - input->size;
    if (input->size < VHOSTI_USER_HEADER)
        return VHOSTI_USER_HEADER - input->size;
    return vhosti_user_input_size(input) - input->size;
}

static bool vhosti_user_receive(vhost_user *self)
{
    bool moved = self->dead == 0 && vhosti_user_read(self, &self->main, vhosti_user_room(self));
    while (self->dead == 0 && vhosti_user_take(self)) {
    }
    return moved;
}

/* ---- and out ---- */

/* Bytes that one call may send: a message with fds begins a call of its own, as they ride on its
   first byte. */
static uint32_t vhosti_user_sendable(const vhost_user *self)
{
    uint32_t i = self->requests_sent;
    uint32_t end = self->requests[i].end;
    for (i++; i < self->request_count && self->requests[i].fd_count == 0; i++)
        end = self->requests[i].end;
    return end - self->out_sent;
}

static void vhosti_user_was_sent(vhost_user *self, uint32_t count)
{
    self->out_sent += count;
    self->requests[self->requests_sent].fd_count = 0;
    while (self->requests_sent < self->request_count &&
           self->requests[self->requests_sent].end <= self->out_sent)
        self->kicked |= self->requests[self->requests_sent++].id == VHOSTI_USER_SET_VRING_KICK;
}

/* Sends what the socket takes. Returns whether it took something. */
static bool vhosti_user_send(vhost_user *self)
{
    const vhosti_user_request *request;
    ptrdiff_t count;
    self->blocked = VHOSTI_USER_FREE;
    if (self->dead < 0 || self->requests_sent == self->request_count)
        return false;
    request = &self->requests[self->requests_sent];
    count = self->options.calls->send(self->main.fd, self->out + self->out_sent,
                                      vhosti_user_sendable(self), request->fds, request->fd_count,
                                      self->options.user);
    if (count > 0) {
        vhosti_user_was_sent(self, (uint32_t)count);
        if (!self->submitted) /* left over: it has the time from now on */
            self->deadline = vhosti_user_now(self) + self->options.timeout_ms;
        vhosti_user_retire_unanswered(self);
        return true;
    }
    if (count == -EINTR)
        return true;
    self->blocked =
        count == -ETOOMANYREFS ? VHOSTI_USER_BLOCKED_BY_FDS : VHOSTI_USER_BLOCKED_BY_BYTES;
    if (count == -EPIPE || count == -ECONNRESET)
        VHOSTI_USER_POISON(self, -ECONNRESET, VHOST_WHY_USER_EOF, request->id, request->queue,
                           "not sent");
    else if (count != -EAGAIN && count != -EWOULDBLOCK && count != -ETOOMANYREFS)
        VHOSTI_USER_POISON(self, count < 0 ? (int)count : -EPIPE, VHOST_WHY_USER_SOCKET,
                           request->id, request->queue, "send, errno %d", (int)-count);
    if (self->dead < 0) /* it is this one, and not the first that awaits an answer */
        vhosti_user_note_loss(self, request->op, request->queue);
    return false;
}

/* >>channel ------------------------------------------------------------------------------------

   Requests come when they like: while another call waits, too. Nothing calls back into the core but
   an IOTLB miss, which the core expects: it answers, and waits if nobody else does. */

typedef int (*vhosti_user_serve)(vhost_user *self, uint32_t id, const uint8_t *payload, int *fd);

static int vhosti_user_signal(vhost_user *self, int fd)
{
    const uint64_t one = 1;
    vhost_user_poll room;
    ptrdiff_t count;
    if (fd < 0)
        return -ENOTSUP;
    memset(&room, 0, sizeof room);
    room.fd = fd;
    room.output = true;
    if (self->options.calls->wait(&room, 1, 0, self->options.user) != 1)
        return 0; /* full, so signalled; and the back-end may have made it one that blocks */
    do {
        count = self->options.calls->write(fd, &one, sizeof one, self->options.user);
    } while (count == -EINTR);
    return 0;
}

static int vhosti_user_serve_iotlb(vhost_user *self, uint32_t id, const uint8_t *payload, int *fd)
{
    vhost_iotlb message;
    (void)id;
    (void)fd;
    memset(&message, 0, sizeof message);
    message.iova = vhosti_user_get64(payload);
    message.size = vhosti_user_get64(payload + 8);
    message.permit = payload[24];
    message.type = (vhost_iotlb_type)payload[25];
    return vhost_iotlb_message(self->device, &message);
}

static int vhosti_user_serve_config(vhost_user *self, uint32_t id, const uint8_t *payload, int *fd)
{
    (void)id;
    (void)payload;
    (void)fd;
    self->config_changed = self->config_call < 0; /* told at the next start */
    (void)vhosti_user_signal(self, self->config_call);
    return 0;
}

static int vhosti_user_serve_host_notifier(vhost_user *self, uint32_t id, const uint8_t *payload,
                                           int *fd)
{
    const vhost_user_options *options = &self->options;
    uint64_t value = vhosti_user_get64(payload);
    uint32_t queue = (uint32_t)(value & 0xff);
    bool remove = (value & VHOSTI_USER_NO_FD) != 0;
    uint64_t size = vhosti_user_get64(payload + 8), offset = vhosti_user_get64(payload + 16);
    (void)id;
    if (queue >= self->device->queue_count || remove != (*fd < 0) ||
        (!remove && (size != (uint64_t)sysconf(_SC_PAGESIZE) || offset % size != 0)))
        return -EINVAL;
    return options->on_host_notifier(self, queue, *fd, offset, size, options->user);
}

static int vhosti_user_serve_notifier(vhost_user *self, uint32_t id, const uint8_t *payload,
                                      int *fd)
{
    uint32_t queue = vhosti_user_get32(payload);
    const vhosti_user_ring *ring;
    (void)fd;
    if (queue >= self->device->queue_count)
        return -EINVAL;
    ring = &self->rings[queue];
    return vhosti_user_signal(self, id == VHOSTI_USER_REQUEST_CALL ? ring->call : ring->error);
}

static int vhosti_user_serve_object(vhost_user *self, uint32_t id, const uint8_t *payload, int *fd)
{
    vhost_user_object what = id == VHOSTI_USER_REQUEST_OBJECT_ADD      ? VHOST_USER_OBJECT_ADD
                             : id == VHOSTI_USER_REQUEST_OBJECT_REMOVE ? VHOST_USER_OBJECT_REMOVE
                                                                       : VHOST_USER_OBJECT_LOOK_UP;
    return self->options.on_object(self, what, payload, fd, self->options.user);
}

static vhost_user_window vhosti_user_get_window(const uint8_t *payload)
{
    vhost_user_window window;
    window.region = payload[0];
    window.fd_offset = vhosti_user_get64(payload + 8);
    window.offset = vhosti_user_get64(payload + 16);
    window.size = vhosti_user_get64(payload + 24);
    window.writable = (vhosti_user_get64(payload + 32) & 1) != 0;
    return window;
}

static bool vhosti_user_is_window(const vhost_user *self, const vhost_user_window *window)
{
    uint64_t region = self->shmem[window->region];
    return window->size > 0 && window->size <= region && window->offset <= region - window->size &&
           (window->size | window->offset | window->fd_offset) % VHOST_PAGE == 0;
}

static bool vhosti_user_overlap(const vhost_user_window *a, const vhost_user_window *b)
{
    return a->region == b->region && a->offset < b->offset + b->size &&
           b->offset < a->offset + a->size;
}

/* Only into a free part of the region. */
static int vhosti_user_serve_map(vhost_user *self, uint32_t id, const uint8_t *payload, int *fd)
{
    vhost_user_window window = vhosti_user_get_window(payload), *grown;
    uint32_t i;
    int code;
    (void)id;
    if (*fd < 0 || !vhosti_user_is_window(self, &window))
        return -EINVAL;
    for (i = 0; i < self->window_count; i++)
        if (vhosti_user_overlap(&self->windows[i], &window))
            return -EEXIST;
    if (self->window_count == VHOSTI_USER_WINDOWS_MOST)
        return -ENOSPC;
    grown = (vhost_user_window *)vhosti_user_grow(self, self->windows, &self->window_capacity,
                                                  self->window_count + 1, sizeof *grown);
    if (grown == NULL)
        return -ENOMEM;
    self->windows = grown;
    code = self->options.on_window(self, &window, *fd, self->options.user);
    if (code >= 0)
        self->windows[self->window_count++] = window;
    return code;
}

/* Only what was mapped as one. */
static int vhosti_user_serve_unmap(vhost_user *self, uint32_t id, const uint8_t *payload, int *fd)
{
    vhost_user_window window = vhosti_user_get_window(payload);
    uint32_t i;
    int code;
    (void)id;
    (void)fd;
    for (i = 0; i < self->window_count; i++)
        if (self->windows[i].region == window.region && self->windows[i].offset == window.offset &&
            self->windows[i].size == window.size)
            break;
    if (i == self->window_count)
        return -EINVAL;
    code = self->options.on_window(self, &window, -1, self->options.user);
    if (code >= 0)
        self->windows[i] = self->windows[--self->window_count];
    return code;
}

typedef struct vhosti_user_service {
    int bit; /* the protocol feature it belongs to; -1: that of the channel */
    uint32_t size;
    uint32_t fds;  /* at most */
    bool gives_fd; /* with the answer, which always comes */
    vhosti_user_serve serve;
} vhosti_user_service;

static const vhosti_user_service *vhosti_user_find_service(uint32_t id)
{
    static const vhosti_user_service services[VHOSTI_USER_REQUEST_COUNT] = {
        {-1, 0, 0, false, NULL},
        {-1, 32, 0, false, vhosti_user_serve_iotlb},
        {VHOST_USER_BIT_CONFIG, 0, 0, false, vhosti_user_serve_config},
        {VHOST_USER_BIT_HOST_NOTIFIER, 24, 1, false, vhosti_user_serve_host_notifier},
        {VHOST_USER_BIT_INBAND, 8, 0, false, vhosti_user_serve_notifier},
        {VHOST_USER_BIT_INBAND, 8, 0, false, vhosti_user_serve_notifier},
        {VHOST_USER_BIT_SHARED_OBJECT, 16, 0, false, vhosti_user_serve_object},
        {VHOST_USER_BIT_SHARED_OBJECT, 16, 0, false, vhosti_user_serve_object},
        {VHOST_USER_BIT_SHARED_OBJECT, 16, 0, true, vhosti_user_serve_object},
        {VHOST_USER_BIT_SHMEM, 40, 1, false, vhosti_user_serve_map},
        {VHOST_USER_BIT_SHMEM, 40, 0, false, vhosti_user_serve_unmap}};
    return id < VHOSTI_USER_REQUEST_COUNT && services[id].serve != NULL ? &services[id] : NULL;
}

/* A back-end that does not even read its answers is no peer. */
static void vhosti_user_answer_request(vhost_user *self, uint32_t id, int code, int fd)
{
    uint8_t bytes[VHOSTI_USER_HEADER + 8];
    uint32_t header[3] = {0, VHOSTI_USER_VERSION | VHOSTI_USER_REPLY, 8};
    uint64_t verdict = code < 0;
    ptrdiff_t count;
    header[0] = id;
    memcpy(bytes, header, sizeof header);
    memcpy(bytes + sizeof header, &verdict, sizeof verdict);
    do {
        count = self->options.calls->send(self->channel.fd, bytes, sizeof bytes, &fd,
                                          fd >= 0 ? 1 : 0, self->options.user);
    } while (count == -EINTR);
    if (count != (ptrdiff_t)sizeof bytes)
        VHOSTI_USER_POISON(self, -EPIPE, VHOST_WHY_USER_SOCKET, 0, -1,
                           "answer to request %lu, errno %d", (unsigned long)id,
                           count < 0 ? (int)-count : 0);
}

static void vhosti_user_serve_request(vhost_user *self, const vhosti_user_service *service,
                                      const uint8_t *message, int fd)
{
    uint32_t id = vhosti_user_get32(message), flags = vhosti_user_get32(message + 4);
    bool asked =
        (flags & VHOSTI_USER_NEED_REPLY) != 0 && vhosti_user_uses(self, VHOST_USER_BIT_REPLY_ACK);
    bool gives = service != NULL && service->gives_fd;
    int given = fd, code = -ENOTSUP;
    if (service != NULL && (service->bit < 0 || vhosti_user_uses(self, service->bit)))
        code = service->serve(self, id, message + VHOSTI_USER_HEADER, &given);
    if (self->dead == 0 && (asked || gives))
        vhosti_user_answer_request(self, id, gives && given < 0 && code >= 0 ? -ENOENT : code,
                                   gives && code >= 0 ? given : -1);
    vhosti_user_close_fd(self, &fd);
}

static bool vhosti_user_check_request(vhost_user *self, const vhosti_user_service *service)
{
    const vhosti_user_input *input = &self->channel;
    uint32_t id = vhosti_user_get32(input->bytes), flags = vhosti_user_get32(input->bytes + 4);
    uint32_t size = vhosti_user_get32(input->bytes + 8);
    bool possible = service != NULL ? size == service->size && input->fd_count <= service->fds
                                    : size <= VHOSTI_USER_REQUEST_MOST && input->fd_count == 0;
    if (possible && (flags & ~(uint32_t)VHOSTI_USER_NEED_REPLY) == VHOSTI_USER_VERSION)
        return true;
    VHOSTI_USER_POISON(self, -EPROTO, VHOST_WHY_USER_REQUEST, 0, -1,
                       "request %lu, flags 0x%lx, %lu bytes, %lu fds", (unsigned long)id,
                       (unsigned long)flags, (unsigned long)size, (unsigned long)input->fd_count);
    return false;
}

/* Serves one request, or reads a part of it. Returns whether there was something. */
static bool vhosti_user_listen_to(vhost_user *self)
{
    uint8_t message[VHOSTI_USER_HEADER + VHOSTI_USER_REQUEST_MOST];
    vhosti_user_input *input = &self->channel;
    const vhosti_user_service *service;
    uint32_t room = VHOSTI_USER_HEADER;
    int fd;
    if (self->dead < 0 || input->fd < 0)
        return false;
    if (input->size >= VHOSTI_USER_HEADER)
        room = vhosti_user_input_size(input);
    if (input->size < room && !vhosti_user_read(self, input, room - input->size))
        return false;
    if (input->size < VHOSTI_USER_HEADER)
        return true;
    service = vhosti_user_find_service(vhosti_user_get32(input->bytes));
    if (!vhosti_user_check_request(self, service))
        return false;
    room = vhosti_user_input_size(input);
    if (input->size < room)
        return true;
    memcpy(message, input->bytes, room);
    fd = vhosti_user_take_fd(input);
    vhosti_user_consume(self, input, room); /* first: to serve it may mean to wait, and listen */
    vhosti_user_serve_request(self, service, message, fd);
    return true;
}

/* >>fence -------------------------------------------------------------------------------------- */

/* Moves what can be moved. Returns whether something was. */
static bool vhosti_user_step(vhost_user *self)
{
    bool moved = vhosti_user_receive(self);
    moved |= vhosti_user_send(self);
    moved |= vhosti_user_listen_to(self);
    if (!moved && self->dead == 0 && self->hung_up)
        vhosti_user_hang_up(self);
    return moved;
}

static void vhosti_user_time_out(vhost_user *self)
{
    vhosti_user_request awaited = vhosti_user_awaited(self);
    VHOSTI_USER_POISON(self, -ETIMEDOUT, VHOST_WHY_USER_TIMEOUT, awaited.id, awaited.queue,
                       "%lu ms", (unsigned long)self->options.timeout_ms);
}

/* Until one of the sockets, or `other`, has something; at most until the deadline. patient: false
   to just look. */
static void vhosti_user_wait(vhost_user *self, vhost_user_poll *other, bool patient)
{
    vhost_user_poll polled[VHOSTI_USER_POLLS];
    uint64_t now = vhosti_user_now(self);
    uint32_t count = 0;
    uint64_t time = self->deadline > now ? self->deadline - now : 0;
    int left = time < INT32_MAX ? (int)time : INT32_MAX;
    if (left == 0) {
        vhosti_user_time_out(self);
        return;
    }
    memset(polled, 0, sizeof polled);
    if (other != NULL)
        polled[count++] = *other;
    if (self->main.fd >= 0)
        polled[count++].fd = self->main.fd;
    if (self->channel.fd >= 0)
        polled[count++].fd = self->channel.fd;
    if (self->blocked == VHOSTI_USER_BLOCKED_BY_BYTES) {
        polled[count].fd = self->main.fd;
        polled[count++].output = true;
    }
    if (self->blocked == VHOSTI_USER_BLOCKED_BY_FDS && left > VHOSTI_USER_FDS_PAUSE_MS)
        left = VHOSTI_USER_FDS_PAUSE_MS; /* nothing shows when the other side took some */
    left = self->options.calls->wait(polled, count, patient ? left : 0, self->options.user);
    if (left < 0 && left != -EINTR)
        VHOSTI_USER_POISON(self, left, VHOST_WHY_USER_SOCKET, 0, -1, "wait, errno %d", -left);
    if (other != NULL)
        other->ready = polled[0].ready;
}

/* So that the end of what was submitted shows. */
static void vhosti_user_end_with_answer(vhost_user *self)
{
    uint32_t count = self->request_count;
    bool shows =
        count == self->request_first || self->requests[count - 1].answer != VHOSTI_USER_NOTHING;
    if (self->dead < 0 || !self->submitted || shows)
        return;
    if (vhosti_user_submit_bare(self, VHOSTI_USER_GET_FEATURES, VHOST_OP_NONE, VHOSTI_USER_BARRIER,
                                NULL) < 0)
        VHOSTI_USER_POISON(self, -ENOMEM, VHOST_WHY_MEMORY, VHOSTI_USER_GET_FEATURES, -1,
                           "to know when it is done");
}

/* Sends everything, and waits for all answers to what was submitted before. Returns the first
   failure. What requests of the back-end make us submit meanwhile may be left for later. */
static int vhosti_user_settle(vhost_user *self)
{
    uint64_t goal;
    if (!self->submitted)
        self->deadline = vhosti_user_now(self) + self->options.timeout_ms;
    self->settling = true;
    vhosti_user_end_with_answer(self);
    goal = self->taken + (self->request_count - self->request_first);
    while (self->dead == 0 && self->taken < goal) {
        uint64_t before = self->taken;
        bool moved = vhosti_user_step(self);
        if (self->dead < 0 || self->taken != before) /* whatever the time, this one answers */
            continue;
        if (!moved)
            vhosti_user_wait(self, NULL, true);
        else if (vhosti_user_now(self) >= self->deadline)
            vhosti_user_time_out(self);
    }
    self->submitted = self->settling = false;
    self->deadline = vhosti_user_now(self) + self->options.timeout_ms; /* of what is left over */
    if (self->dead < 0) {
        vhosti_user_request awaited = vhosti_user_awaited(self);
        vhosti_user_note_loss(self, awaited.op, awaited.queue);
    }
    return self->failure.error;
}

static void vhosti_user_clear_failure(vhost_user *self)
{
    memset(&self->failure, 0, sizeof self->failure);
    self->kicked = false;
    self->failure.op = VHOST_OP_NONE;
    self->failure.queue = -1;
}

/* Buffers may wait in the rings that run now, and no driver kicks for those again. */
static void vhosti_user_kick_rings(vhost_user *self)
{
    uint32_t i;
    for (i = 0; i < self->device->queue_count; i++) {
        if (self->rings[i].awaits_kick)
            (void)vhosti_user_signal(self, self->rings[i].kick);
        self->rings[i].awaits_kick = false;
    }
}

/* So that it works while others are waited for. */
static void vhosti_user_push(void *backend)
{
    vhost_user *self = (vhost_user *)backend;
    vhosti_user_end_with_answer(self);
    while (vhosti_user_send(self)) {
    }
}

static void vhosti_user_fence(void *backend, vhost_fence *result)
{
    vhost_user *self = (vhost_user *)backend;
    if (self->settling) /* a miss, found by a service of ours: what waits there waits for it, too */
        return;
    if (vhosti_user_settle(self) == 0)
        vhosti_user_kick_rings(self);
    *result = self->failure;
    vhosti_user_clear_failure(self);
}

/* >>open --------------------------------------------------------------------------------------- */

/* What belongs to a connection, and goes with it. */
static void vhosti_user_forget(vhost_user *self)
{
    self->features = self->protocol_offered = self->protocol = 0;
    self->queue_number = self->slots = 0;
    self->request_first = self->request_count = self->requests_sent = 0;
    self->out_size = self->out_sent = 0;
    self->submitted = self->hung_up = false;
    vhosti_user_clear_failure(self);
    self->status = 0;
    self->told_count = 0;
    self->table_told = self->table_unsure = false;
    self->log_id = 0;
    self->postcopy = VHOSTI_USER_PRECOPY;
    self->config_call = -1;
    self->window_count = 0;
    memset(self->shmem, 0, sizeof self->shmem);
}

/* A back-end that is awaited has the deadline of the call to come. */
static int vhosti_user_accept(vhost_user *self)
{
    const vhost_user_calls *calls = self->options.calls;
    uint64_t now = vhosti_user_now(self), end = now + self->options.timeout_ms;
    int fd = calls->accept(self->listener, self->options.user);
    while ((fd == -EAGAIN || fd == -EWOULDBLOCK || fd == -EINTR) && now < end) {
        vhost_user_poll polled;
        memset(&polled, 0, sizeof polled);
        polled.fd = self->listener;
        (void)calls->wait(&polled, 1, (int)(end - now), self->options.user);
        fd = calls->accept(self->listener, self->options.user);
        now = vhosti_user_now(self);
    }
    return fd;
}

static int vhosti_user_make_connection(vhost_user *self)
{
    int fd = -ENOTCONN;
    if (self->passed_fd >= 0) {
        fd = self->passed_fd;
        self->passed_fd = -1;
    } else if (self->listens) {
        fd = vhosti_user_accept(self);
    } else if (self->path[0] != '\0') {
        fd = self->options.calls->connect(self->path, self->options.user);
    }
    if (fd < 0)
        return VHOSTI_USER_FAIL(self, fd, VHOST_WHY_USER_CONNECT, 0, -1, "%s, errno %d",
                                self->path[0] != '\0' ? self->path : "the socket is used up", -fd);
    self->main.fd = fd;
    self->dead = 0;
    return 0;
}

/* What comes with its callback, and only so. */
static uint64_t vhosti_user_wanted_by_callback(const vhost_user_options *options)
{
    uint64_t wanted = 0;
    if (options->on_host_notifier != NULL)
        wanted |= VHOSTI_USER_BIT(HOST_NOTIFIER) | VHOSTI_USER_BIT(FD_REQ);
    if (options->on_window != NULL)
        wanted |= VHOSTI_USER_BIT(SHMEM) | VHOSTI_USER_BIT(FD_REQ);
    if (options->on_object != NULL)
        wanted |= VHOSTI_USER_BIT(SHARED_OBJECT);
    return wanted;
}

static uint64_t vhosti_user_wanted(const vhost_user *self)
{
    const vhost_user_options *options = &self->options;
    uint64_t known = (UINT64_C(1) << VHOST_USER_BIT_COUNT) - 1;
    uint64_t wanted = VHOSTI_USER_USUAL | (options->want & ~VHOSTI_USER_BY_CALLBACK) |
                      vhosti_user_wanted_by_callback(options);
    int i;
    wanted &= known & ~options->avoid & self->protocol_offered;
    for (i = 0; i < VHOSTI_USER_NEED_COUNT; i++)
        if ((vhosti_user_needs[i].needs & ~wanted) != 0)
            wanted &= ~(UINT64_C(1) << vhosti_user_needs[i].bit);
    return wanted;
}

static int vhosti_user_submit_channel(vhost_user *self)
{
    int ends[2], code = self->options.calls->socket_pair(ends, self->options.user);
    if (code < 0)
        return VHOSTI_USER_FAIL(self, code, VHOST_WHY_USER_SOCKET, VHOSTI_USER_SET_BACKEND_REQ_FD,
                                -1, "socket pair, errno %d", -code);
    self->channel.fd = ends[0];
    self->channel_end = ends[1];
    return vhosti_user_submit_fd(self, VHOSTI_USER_SET_BACKEND_REQ_FD, VHOST_OP_OPEN, ends[1]);
}

/* What the third round asks; each is part of it only if it is in use. */
static int vhosti_user_submit_negotiation(vhost_user *self)
{
    uint64_t wanted = vhosti_user_wanted(self);
    int code =
        vhosti_user_submit_number(self, VHOSTI_USER_SET_PROTOCOL_FEATURES, VHOST_OP_OPEN, wanted);
    self->protocol = wanted; /* from here on: the message itself needs no ack yet */
    if (code == 0 && vhosti_user_uses(self, VHOST_USER_BIT_MQ))
        code = vhosti_user_submit_bare(self, VHOSTI_USER_GET_QUEUE_NUM, VHOST_OP_OPEN,
                                       VHOSTI_USER_NUMBER, &self->queue_number);
    if (code == 0 && vhosti_user_uses(self, VHOST_USER_BIT_SLOTS))
        code = vhosti_user_submit_bare(self, VHOSTI_USER_GET_MAX_MEM_SLOTS, VHOST_OP_OPEN,
                                       VHOSTI_USER_NUMBER, &self->slots);
    if (code == 0 && vhosti_user_uses(self, VHOST_USER_BIT_SHMEM))
        code = vhosti_user_submit_bare(self, VHOSTI_USER_GET_SHMEM_CONFIG, VHOST_OP_OPEN,
                                       VHOSTI_USER_WINDOWS, NULL);
    if (code == 0 && vhosti_user_uses(self, VHOST_USER_BIT_BACKEND_REQ))
        code = vhosti_user_submit_channel(self);
    return code;
}

/* Each round needs the answers of the one before. */
static int vhosti_user_negotiate(vhost_user *self)
{
    int code =
        vhosti_user_submit_bare(self, VHOSTI_USER_SET_OWNER, VHOST_OP_OPEN, VHOSTI_USER_ACK, NULL);
    self->slots = VHOSTI_USER_TABLE;
    if (code == 0)
        code = vhosti_user_submit_bare(self, VHOSTI_USER_GET_FEATURES, VHOST_OP_OPEN,
                                       VHOSTI_USER_NUMBER, &self->features);
    if (code == 0)
        code = vhosti_user_settle(self);
    if (code < 0 || !vhosti_user_has_protocol(self))
        return code;
    code = vhosti_user_submit_bare(self, VHOSTI_USER_GET_PROTOCOL_FEATURES, VHOST_OP_OPEN,
                                   VHOSTI_USER_NUMBER, &self->protocol_offered);
    if (code == 0)
        code = vhosti_user_settle(self);
    if (code == 0)
        code = vhosti_user_submit_negotiation(self);
    if (code == 0)
        code = vhosti_user_settle(self);
    vhosti_user_close_fd(self, &self->channel_end);
    if (code == 0 && self->slots == 0)
        code = VHOSTI_USER_FAIL(self, -EPROTO, VHOST_WHY_USER_VALUE, VHOSTI_USER_GET_MAX_MEM_SLOTS,
                                -1, "0");
    return code;
}

static uint32_t vhosti_user_max_queues(const vhost_user *self)
{
    uint64_t queues = self->queue_number;
    if (self->options.counts_pairs && queues < VHOSTI_USER_QUEUES)
        queues *= 2;
    return queues != 0 && queues < VHOSTI_USER_QUEUES ? (uint32_t)queues
                                                      : (uint32_t)VHOSTI_USER_QUEUES;
}

static void vhosti_user_fill_in_facts(const vhost_user *self, vhost_facts *facts)
{
    bool slots = vhosti_user_uses(self, VHOST_USER_BIT_SLOTS);
    bool logs = vhosti_user_uses(self, VHOST_USER_BIT_LOG_SHMFD);
    uint64_t iommu = VHOSTI_USER_BIT(REPLY_ACK) | VHOSTI_USER_BIT(BACKEND_REQ);
    facts->name = "vhost-user";
    facts->profile = slots ? VHOST_PROFILE_SLOTS : VHOST_PROFILE_BY_FD;
    facts->log_kind = logs ? VHOST_DIRTY_SHARED : VHOST_DIRTY_NONE;
    facts->max_regions =
        self->slots < VHOSTI_USER_SLOTS ? (uint32_t)self->slots : (uint32_t)VHOSTI_USER_SLOTS;
    facts->max_queues = vhosti_user_max_queues(self);
    facts->offered.word[0] = self->features & ~(UINT64_C(1) << VHOSTI_USER_FEATURES_BIT);
    if ((self->protocol & iommu) != iommu) /* nobody could ask for an address */
        vhost_features_clear(&facts->offered, VHOST_FEATURE_ACCESS_PLATFORM);
    facts->its_bits.word[0] = facts->its_bits.word[1] = UINT64_MAX;
}

static int vhosti_user_make_rings(vhost_user *self)
{
    uint32_t i, count = self->device->queue_count;
    vhosti_user_ring *rings =
        (vhosti_user_ring *)vhosti_user_allocate(self, self->rings, count * sizeof *rings);
    if (rings == NULL)
        return VHOSTI_USER_FAIL(self, -ENOMEM, VHOST_WHY_MEMORY, 0, -1, "queues");
    for (i = 0; i < count; i++) {
        rings[i].kick = rings[i].call = rings[i].error = -1;
        rings[i].awaits_kick = false;
    }
    self->rings = rings;
    self->ring_count = count;
    return 0;
}

static int vhosti_user_begin(vhost_user *self)
{
    int code = vhosti_user_make_rings(self);
    if (code == 0)
        code = vhosti_user_make_connection(self);
    if (code < 0)
        return code;
    code = vhosti_user_negotiate(self);
    if (code < 0)
        vhosti_user_poison(self, code);
    return code;
}

static int vhosti_user_be_open(void *backend, vhost_device *device, vhost_facts *facts)
{
    vhost_user *self = (vhost_user *)backend;
    int code;
    if (self->options.calls == NULL)
        return -EBUSY; /* closed: there are not even words for it */
    self->device = device;
    vhosti_user_forget(self);
    code = vhosti_user_begin(self);
    if (code == 0)
        vhosti_user_fill_in_facts(self, facts);
    else if (device->state == VHOST_STATE_CLOSED) /* it never was ours */
        self->device = NULL;
    return code;
}

static void vhosti_user_sever(void *backend)
{
    vhosti_user_cut((vhost_user *)backend);
}

static int vhosti_user_fds(void *backend, int *fds, uint32_t capacity)
{
    const vhost_user *self = (const vhost_user *)backend;
    int count = 0;
    if (self->main.fd >= 0 && (uint32_t)count++ < capacity)
        fds[count - 1] = self->main.fd;
    if (self->channel.fd >= 0 && (uint32_t)count++ < capacity)
        fds[count - 1] = self->channel.fd;
    return count;
}

/* A few requests at a time: the back-end may have more than anybody wants to hear. */
static int vhosti_user_process_sockets(void *backend)
{
    vhost_user *self = (vhost_user *)backend;
    int i;
    for (i = 0; i < VHOSTI_USER_BATCH && vhosti_user_step(self); i++) {
    }
    if (self->dead == 0 && self->request_first < self->request_count &&
        vhosti_user_now(self) >= self->deadline)
        vhosti_user_time_out(self);
    if (self->dead == 0 && self->failure.error < 0) {
        int code = self->failure.error;
        vhosti_user_clear_failure(self);
        return code;
    }
    return self->dead;
}

/* >>whole -------------------------------------------------------------------------------------- */

static int vhosti_user_set_mtu_again(vhost_user *self, uint64_t features)
{
    if (self->mtu == 0 || !vhosti_user_uses(self, VHOST_USER_BIT_MTU) ||
        (features >> VHOSTI_USER_MTU_BIT & 1) == 0)
        return 0;
    return vhosti_user_submit_number(self, VHOSTI_USER_NET_SET_MTU, VHOST_OP_SET_FEATURES,
                                     self->mtu);
}

static int vhosti_user_submit_status(vhost_user *self, vhost_op op, uint8_t status)
{
    self->status = status;
    return vhosti_user_submit_number(self, VHOSTI_USER_SET_STATUS, op, status);
}

/* The status follows the driver's: it only grows, up to a reset. */
static int vhosti_user_confirm_features(vhost_user *self)
{
    int code;
    if (!vhosti_user_uses(self, VHOST_USER_BIT_STATUS) || self->status != 0)
        return 0;
    code = vhosti_user_submit_status(self, VHOST_OP_SET_FEATURES, VHOSTI_USER_STATUS_READY);
    if (code < 0)
        return code;
    return vhosti_user_submit_bare(self, VHOSTI_USER_GET_STATUS, VHOST_OP_SET_FEATURES,
                                   VHOSTI_USER_STATUS, NULL);
}

static int vhosti_user_set_features(void *backend, const vhost_features *features)
{
    vhost_user *self = (vhost_user *)backend;
    vhosti_user_mark mark = vhosti_user_set_mark(self);
    uint64_t sent = features->word[0];
    int code;
    if (vhosti_user_has_protocol(self))
        sent |= UINT64_C(1) << VHOSTI_USER_FEATURES_BIT;
    code = vhosti_user_submit_number(self, VHOSTI_USER_SET_FEATURES, VHOST_OP_SET_FEATURES, sent);
    if (code == 0)
        code = vhosti_user_set_mtu_again(self, sent);
    if (code == 0)
        code = vhosti_user_confirm_features(self);
    return vhosti_user_all_or_nothing(self, &mark, code);
}

static int vhosti_user_set_running(void *backend, bool on)
{
    vhost_user *self = (vhost_user *)backend;
    if (!on || !vhosti_user_uses(self, VHOST_USER_BIT_STATUS) ||
        self->status == VHOSTI_USER_STATUS_RUNNING)
        return 0;
    return vhosti_user_submit_status(self, VHOST_OP_SET_RUNNING, VHOSTI_USER_STATUS_RUNNING);
}

static int vhosti_user_reset(void *backend)
{
    vhost_user *self = (vhost_user *)backend;
    int code = 0;
    if (vhosti_user_uses(self, VHOST_USER_BIT_RESET))
        code = vhosti_user_submit_bare(self, VHOSTI_USER_RESET_DEVICE, VHOST_OP_RESET,
                                       VHOSTI_USER_ACK, NULL);
    else if (vhosti_user_uses(self, VHOST_USER_BIT_STATUS))
        code = vhosti_user_submit_status(self, VHOST_OP_RESET, 0);
    if (code < 0)
        return code;
    self->status = 0;
    self->window_count = 0;
    self->log_id = 0;
    vhosti_user_close_fd(self, &self->inflight.fd);
    if (!vhosti_user_uses(self, VHOST_USER_BIT_SLOTS))
        self->table_told = false; /* it may be gone; to tell it again does no harm */
    return 0;
}

/* ---- memory ---- */

/* What the back-end sees in place of an address of this process. */
static uint64_t vhosti_user_address(const vhost_user *self, uint64_t gpa)
{
    return vhosti_user_uses(self, VHOST_USER_BIT_GPA) ? gpa : gpa + self->options.address_bias;
}

static void vhosti_user_put_region(vhosti_user_message *message, const vhost_user *self,
                                   uint64_t gpa, uint64_t size, uint64_t offset)
{
    vhosti_user_put64(message, gpa);
    vhosti_user_put64(message, size);
    vhosti_user_put64(message, vhosti_user_address(self, gpa));
    vhosti_user_put64(message, offset);
    if (vhosti_user_uses(self, VHOST_USER_BIT_XEN)) {
        vhosti_user_put32(message, self->options.xen_flags);
        vhosti_user_put32(message, self->options.xen_domain);
    }
}

static void vhosti_user_put_live_region(vhosti_user_message *message, const vhost_user *self,
                                        const vhost_region *region)
{
    const vhost_backing *backing = region->backing;
    uint64_t inside = (uint64_t)((uintptr_t)region->host - (uintptr_t)backing->host);
    vhosti_user_put_region(message, self, region->gpa, region->size, backing->fd_offset + inside);
    vhosti_user_attach_fd(message, backing->fd);
}

static bool vhosti_user_same_region(const vhosti_user_slot *slot, const vhost_region *region)
{
    return slot->gpa == region->gpa && slot->size == region->size && slot->serial == region->serial;
}

static bool vhosti_user_has_table(const vhost_user *self, const vhost_table *table)
{
    uint32_t i;
    if (!self->table_told || self->told_count != table->count)
        return false;
    for (i = 0; i < table->count; i++)
        if (!vhosti_user_same_region(&self->told[i], &table->regions[i]))
            return false;
    return true;
}

/* What the back-end answers has to be the same region, at another address: its own. */
static int vhosti_user_check_region(vhost_user *self, uint32_t id, const uint8_t *asked,
                                    const uint8_t *answer)
{
    unsigned long long gpa = (unsigned long long)vhosti_user_get64(asked);
    if (memcmp(asked, answer, 16) != 0)
        VHOSTI_USER_POISON(self, -EPROTO, VHOST_WHY_USER_VALUE, id, -1,
                           "another region than the one at 0x%llx", gpa);
    else if (vhosti_user_get64(asked + 16) == vhosti_user_get64(answer + 16))
        VHOSTI_USER_POISON(self, -EPROTO, VHOST_WHY_USER_VALUE, id, -1,
                           "it does not say where it has the region at 0x%llx", gpa);
    return self->dead;
}

/* The VMM is told; where it cannot answer faults, the back-end would wait for ever. */
static void vhosti_user_tell_region(vhost_user *self, uint32_t id, const uint8_t *answer)
{
    const vhost_user_options *options = &self->options;
    uint64_t gpa = vhosti_user_get64(answer);
    int code = 0;
    if (options->on_postcopy_region != NULL)
        code = options->on_postcopy_region(self, gpa, vhosti_user_get64(answer + 8),
                                           vhosti_user_get64(answer + 16), options->user);
    if (code < 0)
        VHOSTI_USER_POISON(self, -ECONNRESET, VHOST_WHY_ARGUMENT, id, -1,
                           "on_postcopy_region refused the region at 0x%llx, errno %d",
                           (unsigned long long)gpa, -code);
}

/* Postcopy: the back-end answers with the same regions, at its own addresses. */
static int vhosti_user_tell_regions(vhost_user *self, uint32_t id, const uint8_t *asked,
                                    const uint8_t *answer, uint32_t size)
{
    uint32_t at, step = vhosti_user_uses(self, VHOST_USER_BIT_XEN) ? 40 : 32;
    for (at = 8; at < size; at += step)
        if (vhosti_user_check_region(self, id, asked + at, answer + at) < 0)
            return self->dead;
    for (at = 8; at < size && self->dead == 0; at += step)
        vhosti_user_tell_region(self, id, answer + at);
    return self->dead;
}

/* In postcopy a back-end goes on with the memory when it is told to, after its answer. */
static int vhosti_user_submit_memory(vhost_user *self, vhosti_user_message *message)
{
    uint8_t answer[VHOSTI_USER_MEMORY_MOST];
    uint32_t size = message->size - VHOSTI_USER_HEADER;
    int code;
    if (self->postcopy != VHOSTI_USER_POSTCOPY_LISTENING)
        return vhosti_user_submit(self, message);
    message->answer = VHOSTI_USER_ECHO;
    message->result = answer;
    message->result_size = size;
    code = vhosti_user_submit(self, message);
    if (code < 0)
        return code;
    (void)vhosti_user_settle(self); /* what failed before is the fence's to tell */
    if (self->dead == 0)
        (void)vhosti_user_tell_regions(self, message->id, message->bytes + VHOSTI_USER_HEADER,
                                       answer, size);
    if (self->dead < 0)
        return self->dead;
    vhosti_user_compose(message, message->id, message->op, -1, VHOSTI_USER_NOTHING);
    vhosti_user_put64(message, 0);
    return vhosti_user_submit(self, message);
}

static int vhosti_user_submit_table(vhost_user *self, const vhost_table *table)
{
    vhosti_user_message message;
    uint32_t i;
    if (table->count == 0 && !self->table_told)
        return 0;
    vhosti_user_compose(&message, VHOSTI_USER_SET_MEM_TABLE, VHOST_OP_SET_TABLE, -1,
                        VHOSTI_USER_ACK);
    vhosti_user_put32(&message, table->count);
    vhosti_user_put32(&message, 0);
    for (i = 0; i < table->count; i++)
        vhosti_user_put_live_region(&message, self, &table->regions[i]);
    return vhosti_user_submit_memory(self, &message);
}

static int vhosti_user_submit_add(vhost_user *self, const vhost_region *region)
{
    vhosti_user_message message;
    vhosti_user_compose(&message, VHOSTI_USER_ADD_MEM_REG, VHOST_OP_SET_TABLE, -1, VHOSTI_USER_ACK);
    vhosti_user_put64(&message, 0);
    vhosti_user_put_live_region(&message, self, region);
    return vhosti_user_submit_memory(self, &message);
}

static int vhosti_user_submit_remove(vhost_user *self, const vhosti_user_slot *slot)
{
    vhosti_user_message message;
    vhosti_user_compose(&message, VHOSTI_USER_REM_MEM_REG, VHOST_OP_SET_TABLE, -1, VHOSTI_USER_ACK);
    vhosti_user_put64(&message, 0);
    vhosti_user_put_region(&message, self, slot->gpa, slot->size, 0);
    return vhosti_user_submit(self, &message);
}

/* Both ascend. First all that go, so that there are slots, and room, for those that come. */
static int vhosti_user_submit_slots(vhost_user *self, const vhost_table *table)
{
    uint32_t i, k = 0;
    int code = 0;
    for (i = 0; i < self->told_count && code == 0; i++) {
        while (k < table->count && table->regions[k].gpa < self->told[i].gpa)
            k++;
        if (k == table->count || !vhosti_user_same_region(&self->told[i], &table->regions[k]))
            code = vhosti_user_submit_remove(self, &self->told[i]);
    }
    for (i = k = 0; i < table->count && code == 0; i++) {
        while (k < self->told_count && self->told[k].gpa < table->regions[i].gpa)
            k++;
        if (k == self->told_count || !vhosti_user_same_region(&self->told[k], &table->regions[i]))
            code = vhosti_user_submit_add(self, &table->regions[i]);
    }
    return code;
}

static int vhosti_user_reserve_slots(vhost_user *self, uint32_t count)
{
    vhosti_user_slot *slot = (vhosti_user_slot *)vhosti_user_grow(
        self, self->told, &self->told_capacity, count, sizeof *slot);
    if (slot == NULL)
        return VHOSTI_USER_FAIL(self, -ENOMEM, VHOST_WHY_MEMORY, 0, -1, "%lu regions",
                                (unsigned long)count);
    self->told = slot;
    return 0;
}

static void vhosti_user_remember_table(vhost_user *self, const vhost_table *table)
{
    uint32_t i;
    for (i = 0; i < table->count; i++) {
        self->told[i].gpa = table->regions[i].gpa;
        self->told[i].size = table->regions[i].size;
        self->told[i].serial = table->regions[i].serial;
    }
    self->told_count = table->count;
    self->table_told = true;
}

/* What the connection has counts here, and not what the core thinks it has: after a start that
   failed half-way the back-end has a table that the core does not rely on. */
static int vhosti_user_set_table(void *backend, const vhost_table_change *change)
{
    vhost_user *self = (vhost_user *)backend;
    vhosti_user_mark mark = vhosti_user_set_mark(self);
    bool slots = vhosti_user_uses(self, VHOST_USER_BIT_SLOTS);
    const vhost_table *table = change->to;
    int code;
    if (self->dead == 0 && self->table_unsure && slots)
        VHOSTI_USER_POISON(self, -ECONNRESET, VHOST_WHY_USER_REFUSED, VHOSTI_USER_ADD_MEM_REG, -1,
                           "which memory it has is not known");
    if (self->dead < 0)
        return self->dead;
    if (self->arriving && self->postcopy != VHOSTI_USER_POSTCOPY_LISTENING)
        return VHOSTI_USER_FAIL(self, -EBUSY, VHOST_WHY_STATE, VHOSTI_USER_SET_MEM_TABLE, -1,
                                "memory is arriving, and this connection does not wait for it");
    if (!self->table_unsure && vhosti_user_has_table(self, table))
        return 0;
    code = vhosti_user_reserve_slots(self, table->count);
    if (code < 0)
        return code;
    if (table->count > (slots ? VHOSTI_USER_SLOTS : VHOSTI_USER_TABLE))
        return VHOSTI_USER_FAIL(self, -ENOSPC, VHOST_WHY_TOO_MANY_REGIONS, 0, -1, "%lu",
                                (unsigned long)table->count);
    code = slots ? vhosti_user_submit_slots(self, table) : vhosti_user_submit_table(self, table);
    if (code < 0) {
        self->table_unsure |=
            self->postcopy == VHOSTI_USER_POSTCOPY_LISTENING; /* a part was sent */
        return vhosti_user_all_or_nothing(self, &mark, code);
    }
    self->table_unsure = false;
    vhosti_user_remember_table(self, table);
    return 0;
}

/* A log that is mapped twice may be unmapped twice, so each is sent once (U13). */
static int vhosti_user_set_log(void *backend, const vhost_log_memory *memory)
{
    vhost_user *self = (vhost_user *)backend;
    vhosti_user_mark mark = vhosti_user_set_mark(self);
    vhosti_user_message message;
    int code;
    if (self->dead == 0 && memory->id == self->log_id)
        return 0;
    vhosti_user_compose(&message, VHOSTI_USER_SET_LOG_BASE, VHOST_OP_SET_LOG, -1, VHOSTI_USER_LOG);
    vhosti_user_put64(&message, memory->size);
    vhosti_user_put64(&message, 0);
    vhosti_user_attach_fd(&message, memory->fd);
    code = vhosti_user_submit(self, &message);
    if (code == 0 && self->log_fd >= 0)
        code = vhosti_user_submit_fd(self, VHOSTI_USER_SET_LOG_FD, VHOST_OP_SET_LOG, self->log_fd);
    if (code == 0)
        self->log_id = memory->id;
    return vhosti_user_all_or_nothing(self, &mark, code);
}

static int vhosti_user_iotlb_send(void *backend, const vhost_iotlb *entry)
{
    vhost_user *self = (vhost_user *)backend;
    vhosti_user_message message;
    uint8_t rest[8] = {0};
    bool map = entry->type == VHOST_TLB_MAP;
    rest[0] = entry->permit;
    rest[1] = (uint8_t)entry->type;
    vhosti_user_compose(&message, VHOSTI_USER_IOTLB_MSG, VHOST_OP_IOTLB_SEND, -1, VHOSTI_USER_ACK);
    vhosti_user_put64(&message, entry->iova);
    vhosti_user_put64(&message, entry->size);
    vhosti_user_put64(&message, map ? vhosti_user_address(self, entry->gpa) : 0);
    vhosti_user_put(&message, rest, sizeof rest);
    return vhosti_user_submit(self, &message);
}

/* ---- config space ---- */

/* Some back-ends take no heed of the offset when they are asked, and answer from 0 on: what can be
   is asked for from 0 on, and the beginning left out. */
static void vhosti_user_put_config(vhosti_user_message *message, bool write, uint32_t offset,
                                   uint8_t *bytes, uint32_t size, uint32_t flags)
{
    bool whole = !write && offset + size <= VHOSTI_USER_CONFIG;
    vhosti_user_put32(message, whole ? 0 : offset);
    vhosti_user_put32(message, whole ? offset + size : size);
    vhosti_user_put32(message, flags);
    if (whole)
        vhosti_user_put_zeros(message, offset);
    vhosti_user_put(message, bytes, size);
    message->result = bytes;
    message->result_size = whole ? offset + size : size;
    message->skipped = whole ? offset : 0;
}

/* In pieces that every back-end takes. */
static int vhosti_user_move_config(vhost_user *self, bool write, uint32_t offset, uint8_t *bytes,
                                   uint32_t size, uint32_t flags)
{
    uint32_t id = write ? VHOSTI_USER_SET_CONFIG : VHOSTI_USER_GET_CONFIG;
    vhost_op op = write ? VHOST_OP_SET_CONFIG : VHOST_OP_GET_CONFIG;
    vhosti_user_mark mark = vhosti_user_set_mark(self);
    uint32_t done, most = VHOSTI_USER_CONFIG;
    if (self->dead == 0 && !vhosti_user_uses(self, VHOST_USER_BIT_CONFIG))
        return VHOSTI_USER_FAIL(self, -ENOTSUP, VHOST_WHY_NOT_SUPPORTED, id, -1, "no CONFIG");
    for (done = 0; done < size; done += most) {
        uint32_t piece = size - done < most ? size - done : most;
        vhosti_user_message message;
        int code;
        vhosti_user_compose(&message, id, op, -1, write ? VHOSTI_USER_ACK : VHOSTI_USER_BYTES);
        vhosti_user_put_config(&message, write, offset + done, bytes + done, piece, flags);
        code = vhosti_user_submit(self, &message);
        if (code < 0)
            return vhosti_user_all_or_nothing(self, &mark, code);
    }
    return 0;
}

static int vhosti_user_get_config(void *backend, uint32_t offset, void *bytes, uint32_t size)
{
    memset(bytes, 0, size);
    return vhosti_user_move_config((vhost_user *)backend, false, offset, (uint8_t *)bytes, size, 0);
}

static int vhosti_user_set_config(void *backend, uint32_t offset, const void *bytes, uint32_t size)
{
    uint8_t *same;
    memcpy(&same, &bytes, sizeof bytes); /* read only, when written to the back-end */
    return vhosti_user_move_config((vhost_user *)backend, true, offset, same, size, 0);
}

/* The core's notifier takes the place of a message: it is polled, and looked at in process. */
static int vhosti_user_set_config_call(void *backend, int fd)
{
    vhost_user *self = (vhost_user *)backend;
    self->config_call = fd;
    if (fd >= 0 && self->config_changed)
        (void)vhosti_user_signal(self, fd);
    self->config_changed &= fd < 0;
    return 0;
}

/* >>rings -------------------------------------------------------------------------------------- */

static int vhosti_user_submit_ring(vhost_user *self, uint32_t id, vhost_op op, uint32_t queue,
                                   uint32_t number)
{
    vhosti_user_message message;
    vhosti_user_compose(&message, id, op, (int)queue, VHOSTI_USER_ACK);
    vhosti_user_put32(&message, queue);
    vhosti_user_put32(&message, number);
    return vhosti_user_submit(self, &message);
}

static int vhosti_user_submit_notifier(vhost_user *self, uint32_t id, vhost_op op, uint32_t queue,
                                       int fd)
{
    vhosti_user_message message;
    vhosti_user_compose(&message, id, op, (int)queue, VHOSTI_USER_ACK);
    vhosti_user_put64(&message, fd < 0 ? queue | VHOSTI_USER_NO_FD : queue);
    if (fd >= 0)
        vhosti_user_attach_fd(&message, fd);
    return vhosti_user_submit(self, &message);
}

static int vhosti_user_set_ring_call(void *backend, uint32_t queue, int fd)
{
    vhost_user *self = (vhost_user *)backend;
    int code = vhosti_user_submit_notifier(self, VHOSTI_USER_SET_VRING_CALL, VHOST_OP_SET_RING_CALL,
                                           queue, fd);
    if (code == 0)
        self->rings[queue].call = fd;
    return code;
}

static int vhosti_user_set_ring_error(void *backend, uint32_t queue, int fd)
{
    vhost_user *self = (vhost_user *)backend;
    int code = vhosti_user_submit_notifier(self, VHOSTI_USER_SET_VRING_ERR, VHOST_OP_SET_RING_ERROR,
                                           queue, fd);
    if (code == 0)
        self->rings[queue].error = fd;
    return code;
}

static int vhosti_user_set_ring_size(void *backend, uint32_t queue, uint32_t size)
{
    return vhosti_user_submit_ring((vhost_user *)backend, VHOSTI_USER_SET_VRING_NUM,
                                   VHOST_OP_SET_RING_SIZE, queue, size);
}

static int vhosti_user_set_ring_base(void *backend, uint32_t queue, uint32_t base)
{
    return vhosti_user_submit_ring((vhost_user *)backend, VHOSTI_USER_SET_VRING_BASE,
                                   VHOST_OP_SET_RING_BASE, queue, base);
}

static int vhosti_user_set_ring_endian(void *backend, uint32_t queue, bool big)
{
    vhost_user *self = (vhost_user *)backend;
    if (self->dead == 0 && !vhosti_user_uses(self, VHOST_USER_BIT_CROSS_ENDIAN))
        return VHOSTI_USER_FAIL(self, -ENOTSUP, VHOST_WHY_NOT_SUPPORTED,
                                VHOSTI_USER_SET_VRING_ENDIAN, (int)queue, "no CROSS_ENDIAN");
    return vhosti_user_submit_ring(self, VHOSTI_USER_SET_VRING_ENDIAN, VHOST_OP_SET_RING_ENDIAN,
                                   queue, big);
}

static uint64_t vhosti_user_part(const vhost_user *self, const vhost_ring_addresses *addresses,
                                 int part)
{
    return addresses->iova ? addresses->part[part].address
                           : vhosti_user_address(self, addresses->part[part].gpa);
}

/* Where writes that give buffers back are logged: of a packed ring, in its descriptors. */
static uint64_t vhosti_user_log_address(const vhost_user *self,
                                        const vhost_ring_addresses *addresses)
{
    bool packed = vhost_features_test(&self->device->acked, VHOST_FEATURE_RING_PACKED);
    const vhost_mapping *part = &addresses->part[packed ? VHOST_DESC : VHOST_USED];
    return addresses->iova ? part->address : part->gpa;
}

static int vhosti_user_set_ring_addresses(void *backend, uint32_t queue,
                                          const vhost_ring_addresses *addresses)
{
    vhost_user *self = (vhost_user *)backend;
    vhosti_user_message message;
    vhosti_user_compose(&message, VHOSTI_USER_SET_VRING_ADDR, VHOST_OP_SET_RING_ADDRESSES,
                        (int)queue, VHOSTI_USER_ACK);
    vhosti_user_put32(&message, queue);
    vhosti_user_put32(&message, addresses->log ? 1 : 0);
    vhosti_user_put64(&message, vhosti_user_part(self, addresses, VHOST_DESC));
    vhosti_user_put64(&message, vhosti_user_part(self, addresses, VHOST_USED));
    vhosti_user_put64(&message, vhosti_user_part(self, addresses, VHOST_AVAIL));
    vhosti_user_put64(&message, vhosti_user_log_address(self, addresses));
    return vhosti_user_submit(self, &message);
}

/* With protocol features a ring has to be enabled before its notifier is there: a back-end that
   sees a kick before throws the buffers of a disabled ring away (specification, "Ring states"). */
static int vhosti_user_set_ring_kick(void *backend, uint32_t queue, int fd)
{
    vhost_user *self = (vhost_user *)backend;
    int code = self->dead;
    if (code == 0 && self->inflight.fd >= 0 &&
        self->device->queues[queue].size > self->inflight.queue_size)
        return VHOSTI_USER_FAIL(self, -EINVAL, VHOST_WHY_USER_INFLIGHT, VHOSTI_USER_SET_VRING_KICK,
                                (int)queue, "a ring larger than %u", self->inflight.queue_size);
    if (!vhosti_user_has_protocol(self))
        code = vhosti_user_submit_notifier(self, VHOSTI_USER_SET_VRING_KICK, VHOST_OP_SET_RING_KICK,
                                           queue, fd);
    if (code < 0)
        return code;
    self->rings[queue].kick = fd;
    self->rings[queue].awaits_kick = true;
    return 0;
}

static int vhosti_user_submit_enable(vhost_user *self, uint32_t queue)
{
    vhosti_user_mark mark = vhosti_user_set_mark(self);
    int fd = self->rings[queue].kick;
    int code =
        vhosti_user_submit_ring(self, VHOSTI_USER_SET_VRING_ENABLE, VHOST_OP_ENABLE_RING, queue, 1);
    if (code == 0)
        code = vhosti_user_submit_notifier(self, VHOSTI_USER_SET_VRING_KICK, VHOST_OP_ENABLE_RING,
                                           queue, fd);
    if (code == 0 && fd < 0 && vhosti_user_uses(self, VHOST_USER_BIT_INBAND))
        code =
            vhosti_user_submit_ring(self, VHOSTI_USER_VRING_KICK, VHOST_OP_ENABLE_RING, queue, 0);
    return vhosti_user_all_or_nothing(self, &mark, code);
}

/* A ring is not disabled when it stops: until it did, it would throw buffers away. */
static int vhosti_user_enable_ring(void *backend, uint32_t queue, bool on)
{
    vhost_user *self = (vhost_user *)backend;
    self->rings[queue].awaits_kick &= on;
    return on && vhosti_user_has_protocol(self) ? vhosti_user_submit_enable(self, queue)
                                                : self->dead;
}

static int vhosti_user_get_ring_base(void *backend, uint32_t queue, vhost_ring_base *base)
{
    vhost_user *self = (vhost_user *)backend;
    bool skips = self->skips_drain && vhosti_user_uses(self, VHOST_USER_BIT_SKIP_DRAIN);
    vhosti_user_message message;
    vhosti_user_compose(&message,
                        skips ? VHOSTI_USER_GET_VRING_BASE_SKIP_DRAIN : VHOSTI_USER_GET_VRING_BASE,
                        VHOST_OP_GET_RING_BASE, (int)queue, VHOSTI_USER_BASE);
    vhosti_user_put32(&message, queue);
    vhosti_user_put32(&message, 0);
    message.result = base;
    return vhosti_user_submit(self, &message);
}

/* >>inflight -----------------------------------------------------------------------------------

   The record of requests in flight is memory of the back-end. We keep its fd, hand it back, copy it
   for migration, and look into it (by read) for one thing: where a ring stood. */

static bool vhosti_user_has_record(const vhost_user *self)
{
    return vhosti_user_is_open(self) && self->inflight.fd >= 0;
}

/* Of a former life of the guest, when all queues begin anew. */
static bool vhosti_user_begins(const vhost_user *self)
{
    uint32_t i;
    for (i = 0; i < self->device->queue_count; i++)
        if (self->device->queues[i].ready &&
            self->device->queues[i].position.state != VHOST_POSITION_INITIAL)
            return false;
    return true;
}

static uint16_t vhosti_user_largest_ring(const vhost_user *self)
{
    uint32_t i, largest = 0;
    for (i = 0; i < self->device->queue_count; i++)
        if (self->device->queues[i].ready && self->device->queues[i].size > largest)
            largest = self->device->queues[i].size;
    return (uint16_t)largest;
}

static void vhosti_user_put_record(vhosti_user_message *message, const vhosti_user_inflight *record)
{
    vhosti_user_put64(message, record->size);
    vhosti_user_put64(message, record->offset);
    vhosti_user_put(message, &record->queues, 2);
    vhosti_user_put(message, &record->queue_size, 2);
    vhosti_user_put32(message, 0);
}

/* It makes a record, so its fd has to come before it can go back. */
static int vhosti_user_ask_record(vhost_user *self)
{
    vhosti_user_inflight *record = &self->inflight;
    vhosti_user_message message;
    int code;
    vhosti_user_compose(&message, VHOSTI_USER_GET_INFLIGHT_FD, VHOST_OP_SET_INFLIGHT, -1,
                        VHOSTI_USER_RECORD);
    record->size = record->offset = 0;
    record->queues = (uint16_t)self->device->queue_count;
    record->queue_size = vhosti_user_largest_ring(self);
    vhosti_user_put_record(&message, record);
    message.result = record;
    code = vhosti_user_submit(self, &message);
    return code < 0 ? code : vhosti_user_settle(self);
}

static int vhosti_user_hand_record(vhost_user *self)
{
    vhosti_user_message message;
    if (!vhosti_user_has_record(self))
        return 0;
    if (!vhosti_user_uses(self, VHOST_USER_BIT_INFLIGHT))
        return VHOSTI_USER_FAIL(self, -ENOTSUP, VHOST_WHY_BACKEND_LESS, VHOSTI_USER_SET_INFLIGHT_FD,
                                -1, "no INFLIGHT");
    if (self->inflight.queues != self->device->queue_count)
        return VHOSTI_USER_FAIL(self, -EINVAL, VHOST_WHY_USER_INFLIGHT, VHOSTI_USER_SET_INFLIGHT_FD,
                                -1, "%u queues", self->inflight.queues);
    vhosti_user_compose(&message, VHOSTI_USER_SET_INFLIGHT_FD, VHOST_OP_SET_INFLIGHT, -1,
                        VHOSTI_USER_ACK);
    vhosti_user_put_record(&message, &self->inflight);
    vhosti_user_attach_fd(&message, self->inflight.fd);
    return vhosti_user_submit(self, &message);
}

/* ---- where a ring stood ---- */

enum { /* of the record of one queue: offsets, bytes */
    VHOSTI_USER_RECORD_VERSION = 8,
    VHOSTI_USER_RECORD_PACKED_USED = 16, /* used_idx, old_used_idx: u16; their wrap counters: u8 */
    VHOSTI_USER_RECORD_HEAD = 32
};

static bool vhosti_user_read_at(vhost_user *self, int fd, uint64_t offset, uint8_t *bytes,
                                size_t size)
{
    const vhost_user_calls *calls = self->options.calls;
    size_t done = 0;
    if (calls->seek(fd, offset, self->options.user) < 0)
        return false;
    while (done < size) {
        ptrdiff_t count = calls->read(fd, bytes + done, size - done, self->options.user);
        if (count == -EINTR)
            continue;
        if (count <= 0)
            return false;
        done += (size_t)count;
    }
    return true;
}

/* Whether a packed ring's descriptor was given back to the driver. Its used flag alone tells: the
   driver may have made it available again since. */
static bool vhosti_user_was_used(const vhost_user *self, uint32_t queue, uint32_t index, bool wrap)
{
    const vhost_queue *ring = &self->device->queues[queue];
    vhost_extent extent;
    if (vhost_memory_find(self->device->vm, ring->desc + 16 * (uint64_t)index, &extent) < 0 ||
        extent.size < 16)
        return false;
    return (((const uint8_t *)extent.host)[15] >> 7 != 0) ==
           wrap; /* bit 15 of the last two bytes */
}

/* The back-end writes old_used_idx when the driver has been given what used_idx counts. If it died
   between the two, the ring tells. */
static int vhosti_user_recall_packed(const vhost_user *self, uint32_t queue, const uint8_t *head,
                                     vhost_ring_base *base)
{
    const uint8_t *used = head + VHOSTI_USER_RECORD_PACKED_USED;
    uint32_t fresh = vhosti_user_get16(used), old = vhosti_user_get16(used + 2), position;
    uint32_t size = self->device->queues[queue].size;
    bool done;
    if (fresh >= size || old >= size ||
        vhost_features_test(&self->device->acked, VHOST_FEATURE_ACCESS_PLATFORM))
        return 0; /* absurd; or the ring stands at an address that nobody translates any more */
    done = vhosti_user_was_used(self, queue, old, used[5] != 0);
    position = done ? fresh | (uint32_t)(used[4] != 0) << 15 : old | (uint32_t)(used[5] != 0) << 15;
    base->value = position | position << 16;
    return 1;
}

/* The used index of a split ring is where it stood: what lies before was given back, and what lies
   behind and was taken is in the record. */
static int vhosti_user_recall_base(void *backend, uint32_t queue, vhost_ring_base *base)
{
    vhost_user *self = (vhost_user *)backend;
    const vhosti_user_inflight *record = &self->inflight;
    uint8_t head[VHOSTI_USER_RECORD_HEAD];
    uint64_t stride;
    if (!vhosti_user_has_record(self) || queue >= record->queues)
        return 0;
    stride = record->size / record->queues;
    if (stride < sizeof head ||
        !vhosti_user_read_at(self, record->fd, record->offset + queue * stride, head,
                             sizeof head) ||
        vhosti_user_get16(head + VHOSTI_USER_RECORD_VERSION) == 0)
        return 0;
    if (vhost_features_test(&self->device->acked, VHOST_FEATURE_RING_PACKED))
        return vhosti_user_recall_packed(self, queue, head, base);
    return 1;
}

/* ---- saved ----

   "vhostinf", version u32, queues u16, queue size u16, size u64, then the record; little-endian. */

enum {
    VHOSTI_USER_SAVED_HEAD = 24,
    VHOSTI_USER_SAVED_VERSION = 1
};

static void vhosti_user_put_little(uint8_t *bytes, uint64_t value, int size)
{
    int i;
    for (i = 0; i < size; i++)
        bytes[i] = (uint8_t)(value >> (8 * i) & 0xff);
}

static uint64_t vhosti_user_get_little(const uint8_t *bytes, int size)
{
    uint64_t value = 0;
    int i;
    for (i = 0; i < size; i++)
        value |= (uint64_t)bytes[i] << (8 * i);
    return value;
}

VHOST_USER_DEF size_t vhost_user_inflight_size(const vhost_user *self)
{
    return vhosti_user_has_record(self) ? VHOSTI_USER_SAVED_HEAD + (size_t)self->inflight.size : 0;
}

VHOST_USER_DEF int vhost_user_save_inflight(vhost_user *self, void *bytes, size_t size)
{
    const vhosti_user_inflight *record = &self->inflight;
    uint8_t *saved = (uint8_t *)bytes;
    if (self->device != NULL && self->device->state == VHOST_STATE_RUNNING)
        return VHOSTI_USER_FAIL(self, -EBUSY, VHOST_WHY_STATE, 0, -1, "save while running");
    if (!vhosti_user_has_record(self))
        return VHOSTI_USER_FAIL(self, -ENOENT, VHOST_WHY_USER_INFLIGHT, 0, -1, "there is none");
    if (size < vhost_user_inflight_size(self))
        return VHOSTI_USER_FAIL(self, -ENOSPC, VHOST_WHY_ARGUMENT, 0, -1, "%lu bytes",
                                (unsigned long)size);
    memcpy(saved, "vhostinf", 8);
    vhosti_user_put_little(saved + 8, VHOSTI_USER_SAVED_VERSION, 4);
    vhosti_user_put_little(saved + 12, record->queues, 2);
    vhosti_user_put_little(saved + 14, record->queue_size, 2);
    vhosti_user_put_little(saved + 16, record->size, 8);
    if (vhosti_user_read_at(self, record->fd, record->offset, saved + VHOSTI_USER_SAVED_HEAD,
                            (size_t)record->size))
        return 0;
    return VHOSTI_USER_FAIL(self, -EIO, VHOST_WHY_USER_INFLIGHT, 0, -1,
                            "the back-end has cut it short");
}

static bool vhosti_user_is_saved(const vhost_user *self, const uint8_t *saved, size_t size)
{
    uint64_t queues, queue_size, record;
    if (size <= VHOSTI_USER_SAVED_HEAD || memcmp(saved, "vhostinf", 8) != 0 ||
        vhosti_user_get_little(saved + 8, 4) != VHOSTI_USER_SAVED_VERSION)
        return false;
    queues = vhosti_user_get_little(saved + 12, 2);
    queue_size = vhosti_user_get_little(saved + 14, 2);
    record = vhosti_user_get_little(saved + 16, 8);
    return queues == self->device->queue_count && queue_size > 0 && queue_size <= 32768 &&
           record == size - VHOSTI_USER_SAVED_HEAD &&
           record <= queues * (VHOSTI_USER_RECORD_BASE + VHOSTI_USER_RECORD_ENTRY * queue_size);
}

static int vhosti_user_write_all(vhost_user *self, int fd, const uint8_t *bytes, size_t size)
{
    const vhost_user_calls *calls = self->options.calls;
    size_t done = 0;
    int code = calls->seek(fd, 0, self->options.user);
    while (done < size && code >= 0) {
        ptrdiff_t count = calls->write(fd, bytes + done, size - done, self->options.user);
        if (count > 0)
            done += (size_t)count;
        else if (count != -EINTR)
            code = count < 0 ? (int)count : -EIO;
    }
    return code < 0 ? code : 0;
}

VHOST_USER_DEF int vhost_user_load_inflight(vhost_user *self, const void *bytes, size_t size)
{
    const uint8_t *saved = (const uint8_t *)bytes;
    int fd, code;
    if (self->device == NULL || self->device->state != VHOST_STATE_STOPPED)
        return VHOSTI_USER_FAIL(self, -EBUSY, VHOST_WHY_STATE, 0, -1, "load while not stopped");
    if (!vhosti_user_is_saved(self, saved, size))
        return VHOSTI_USER_FAIL(self, -EINVAL, VHOST_WHY_USER_INFLIGHT, 0, -1,
                                "%lu bytes that are none for %lu queues", (unsigned long)size,
                                (unsigned long)self->device->queue_count);
    fd = self->options.calls->memory(size - VHOSTI_USER_SAVED_HEAD, self->options.user);
    code = fd < 0 ? fd : 0;
    if (code == 0)
        code = vhosti_user_write_all(self, fd, saved + VHOSTI_USER_SAVED_HEAD,
                                     size - VHOSTI_USER_SAVED_HEAD);
    if (code < 0) {
        vhosti_user_close_fd(self, &fd);
        return VHOSTI_USER_FAIL(self, code, VHOST_WHY_MEMORY, 0, -1, "errno %d", -code);
    }
    vhosti_user_close_fd(self, &self->inflight.fd);
    self->inflight.fd = fd;
    self->inflight.loaded = true;
    self->inflight.offset = 0;
    self->inflight.size = size - VHOSTI_USER_SAVED_HEAD;
    self->inflight.queues = (uint16_t)vhosti_user_get_little(saved + 12, 2);
    self->inflight.queue_size = (uint16_t)vhosti_user_get_little(saved + 14, 2);
    return 0;
}

/* >>state -------------------------------------------------------------------------------------- */

enum {
    VHOSTI_USER_LOAD = 1, /* direction; 0: save */
    VHOSTI_USER_PIECE = 4096
};

static int vhosti_user_submit_state(vhost_user *self, bool load, int fd, int *theirs)
{
    vhosti_user_message message;
    *theirs = -1;
    vhosti_user_compose(&message, VHOSTI_USER_SET_DEVICE_STATE_FD, VHOST_OP_NONE, -1,
                        VHOSTI_USER_STATE);
    vhosti_user_put32(&message, load ? VHOSTI_USER_LOAD : 0);
    vhosti_user_put32(&message, 0); /* phase: stopped */
    vhosti_user_attach_fd(&message, fd);
    message.result = theirs;
    return vhosti_user_submit(self, &message);
}

static int vhosti_user_submit_check(vhost_user *self)
{
    return vhosti_user_submit_bare(self, VHOSTI_USER_CHECK_DEVICE_STATE, VHOST_OP_NONE,
                                   VHOSTI_USER_VERDICT, NULL);
}

static int vhosti_user_fail_way(vhost_user *self, int code, const char *what)
{
    return VHOSTI_USER_FAIL(self, code, VHOST_WHY_USER_SOCKET, VHOSTI_USER_SET_DEVICE_STATE_FD, -1,
                            "%s, errno %d", what, -code);
}

/* A way for bytes to or from the back-end: *fd is our end, which does not block. A pair of sockets,
   as a pipe without a reader kills the writer. */
static int vhosti_user_open_way(vhost_user *self, bool load, int *fd)
{
    int ends[2], theirs, code = self->options.calls->socket_pair(ends, self->options.user);
    *fd = -1;
    if (code < 0)
        return vhosti_user_fail_way(self, code, "socket pair");
    code = vhosti_user_submit_state(self, load, ends[1], &theirs);
    if (code == 0)
        code = vhosti_user_settle(self);
    vhosti_user_close_fd(self, &ends[1]);
    if (theirs >= 0) {
        vhosti_user_close_fd(self, &ends[0]);
        ends[0] = theirs;
        if (code == 0 && self->options.calls->unblock(theirs, self->options.user) < 0)
            code = vhosti_user_fail_way(self, -EBADF, "the back-end's own fd");
    }
    if (code < 0)
        vhosti_user_close_fd(self, &ends[0]);
    *fd = ends[0];
    return code;
}

/* A state may be large: each piece has its own time, but not each byte. */
static void vhosti_user_begin_piece(vhost_user *self)
{
    self->deadline = vhosti_user_now(self) + self->options.timeout_ms;
}

/* Waits for the other end of a way. */
static int vhosti_user_await_way(vhost_user *self, int fd, bool output)
{
    vhost_user_poll way;
    memset(&way, 0, sizeof way);
    way.fd = fd;
    way.output = output;
    self->settling = true;
    while (self->dead == 0 && !way.ready) { /* though the channel may never fall silent */
        bool moved = vhosti_user_step(self);
        if (self->dead == 0)
            vhosti_user_wait(self, &way, !moved);
    }
    self->settling = false;
    return self->dead;
}

/* Returns its size; less than the whole at the end only. */
static ptrdiff_t vhosti_user_take_piece(vhost_user *self, int fd, uint8_t *bytes)
{
    size_t size = 0;
    vhosti_user_begin_piece(self);
    while (size < VHOSTI_USER_PIECE) {
        uint32_t no_fds = 0;
        int code = vhosti_user_await_way(self, fd, false);
        ptrdiff_t count =
            code < 0 ? code
                     : self->options.calls->receive(fd, bytes + size, VHOSTI_USER_PIECE - size,
                                                    NULL, &no_fds, self->options.user);
        if (count == 0)
            break;
        if (count == -EINTR || count == -EAGAIN || count == -EWOULDBLOCK)
            continue;
        if (count < 0)
            return code < 0 ? code : vhosti_user_fail_way(self, (int)count, "receive");
        size += (size_t)count;
    }
    return (ptrdiff_t)size;
}

static int vhosti_user_take_all(vhost_user *self, int fd, vhost_user_take take, void *from,
                                uint64_t limit)
{
    uint8_t bytes[VHOSTI_USER_PIECE];
    uint64_t total = 0;
    ptrdiff_t count = vhosti_user_take_piece(self, fd, bytes);
    while (count > 0) {
        int code;
        if ((uint64_t)count > limit - total)
            return VHOSTI_USER_FAIL(self, -EFBIG, VHOST_WHY_ARGUMENT, 0, -1,
                                    "more than %llu bytes of state", (unsigned long long)limit);
        total += (uint64_t)count;
        code = take(bytes, (size_t)count, from);
        if (code < 0)
            return code;
        count = vhosti_user_take_piece(self, fd, bytes);
    }
    return (int)count;
}

static int vhosti_user_give_piece(vhost_user *self, int fd, const uint8_t *bytes, size_t size)
{
    size_t done = 0;
    vhosti_user_begin_piece(self);
    while (done < size) {
        ptrdiff_t count =
            self->options.calls->send(fd, bytes + done, size - done, NULL, 0, self->options.user);
        int code = count < 0 ? (int)count : 0;
        if (code == -EAGAIN || code == -EWOULDBLOCK)
            code = vhosti_user_await_way(self, fd, true);
        else if (code == 0)
            done += (size_t)count;
        else if (code != -EINTR)
            code = vhosti_user_fail_way(self, code, "write");
        if (code < 0 && code != -EINTR)
            return code;
    }
    return 0;
}

static int vhosti_user_give_all(vhost_user *self, int fd)
{
    uint8_t bytes[VHOSTI_USER_PIECE];
    for (;;) {
        ptrdiff_t count = self->give(bytes, sizeof bytes, self->give_from);
        int code = count < 0 ? (int)count : 0;
        if (count == 0)
            return 0;
        if (code == 0)
            code = vhosti_user_give_piece(self, fd, bytes, (size_t)count);
        if (code < 0)
            return code;
    }
}

/* In the middle of a start. No start goes on without a state that it was to load. */
static int vhosti_user_load_now(vhost_user *self)
{
    int fd, code = vhosti_user_open_way(self, true, &fd);
    if (code == 0)
        code = vhosti_user_give_all(self, fd);
    vhosti_user_close_fd(self, &fd);
    if (code == 0)
        code = vhosti_user_submit_check(self);
    if (code == 0)
        code = vhosti_user_settle(self);
    if (code == 0)
        self->give = NULL;
    return code;
}

/* ---- before rings run: the record, and the state ---- */

static int vhosti_user_set_inflight(void *backend)
{
    vhost_user *self = (vhost_user *)backend;
    int code = self->dead;
    if (code == 0 && !self->inflight.loaded && vhosti_user_begins(self))
        vhosti_user_close_fd(self, &self->inflight.fd);
    if (code == 0 && !vhosti_user_has_record(self) && vhosti_user_largest_ring(self) > 0 &&
        vhosti_user_uses(self, VHOST_USER_BIT_INFLIGHT))
        code = vhosti_user_ask_record(self);
    if (code == 0)
        code = vhosti_user_hand_record(self);
    if (code == 0)
        self->inflight.loaded = false;
    if (code == 0 && self->give != NULL)
        code = vhosti_user_load_now(self);
    return code;
}

/* >>services ----------------------------------------------------------------------------------- */

/* Whether the back-end can be asked for something now; bit: the protocol feature, or -1. */
static int vhosti_user_check_service(vhost_user *self, uint32_t id, int bit, bool stopped)
{
    const vhost_device *device = self->device;
    if (device == NULL ||
        (device->state != VHOST_STATE_STOPPED && (stopped || device->state != VHOST_STATE_RUNNING)))
        return VHOSTI_USER_FAIL(self, -EBUSY, VHOST_WHY_STATE, id, -1, "the device is %s",
                                device == NULL ? "closed" : "running or broken");
    if (self->dead < 0)
        return self->dead;
    if (bit >= 0 && !vhosti_user_uses(self, bit))
        return VHOSTI_USER_FAIL(self, -ENOTSUP, VHOST_WHY_NOT_SUPPORTED, id, -1, "no %s",
                                vhost_user_protocol_name((unsigned)bit));
    return 0;
}

/* Waits for what a service submitted, if that went well. */
static int vhosti_user_run(vhost_user *self, int code)
{
    if (code < 0)
        return code;
    code = vhosti_user_settle(self);
    vhosti_user_clear_failure(self);
    return code;
}

static int vhosti_user_ask_number(vhost_user *self, uint32_t id, int bit, uint64_t number)
{
    int code = vhosti_user_check_service(self, id, bit, false);
    if (code == 0)
        code = vhosti_user_submit_number(self, id, VHOST_OP_NONE, number);
    return vhosti_user_run(self, code);
}

static int vhosti_user_ask_bare(vhost_user *self, uint32_t id, int bit, vhosti_user_answer answer,
                                void *result)
{
    int code = vhosti_user_check_service(self, id, bit, false);
    if (code == 0)
        code = vhosti_user_submit_bare(self, id, VHOST_OP_NONE, answer, result);
    return vhosti_user_run(self, code);
}

static int vhosti_user_ask_fd(vhost_user *self, uint32_t id, int fd)
{
    int code = vhosti_user_check_service(self, id, -1, false);
    if (code == 0)
        code = vhosti_user_submit_fd(self, id, VHOST_OP_NONE, fd);
    return vhosti_user_run(self, code);
}

VHOST_USER_DEF int vhost_user_send_rarp(vhost_user *self, const uint8_t mac[6])
{
    uint64_t number = 0;
    memcpy(&number, mac, 6);
    return vhosti_user_ask_number(self, VHOSTI_USER_SEND_RARP, VHOST_USER_BIT_RARP, number);
}

VHOST_USER_DEF int vhost_user_set_mtu(vhost_user *self, uint16_t mtu)
{
    int code = vhosti_user_check_service(self, VHOSTI_USER_NET_SET_MTU, VHOST_USER_BIT_MTU, false);
    if (code < 0)
        return code;
    self->mtu = mtu;
    if (self->device->state == VHOST_STATE_RUNNING)
        code = vhosti_user_set_mtu_again(self, self->device->acked.word[0]);
    return vhosti_user_run(self, code);
}

VHOST_USER_DEF int vhost_user_kick(vhost_user *self, uint32_t queue)
{
    int code =
        vhosti_user_check_service(self, VHOSTI_USER_VRING_KICK, VHOST_USER_BIT_INBAND, false);
    if (code == 0 && queue >= self->device->queue_count)
        code = VHOSTI_USER_FAIL(self, -EINVAL, VHOST_WHY_ARGUMENT, VHOSTI_USER_VRING_KICK, -1,
                                "queue %lu", (unsigned long)queue);
    if (code == 0)
        code = vhosti_user_submit_ring(self, VHOSTI_USER_VRING_KICK, VHOST_OP_NONE, queue, 0);
    return vhosti_user_run(self, code);
}

VHOST_USER_DEF int vhost_user_set_log_fd(vhost_user *self, int fd)
{
    int code = fd >= 0 ? vhosti_user_ask_fd(self, VHOSTI_USER_SET_LOG_FD, fd) : 0;
    if (code == 0)
        self->log_fd = fd;
    return code;
}

VHOST_USER_DEF int vhost_user_set_gpu_socket(vhost_user *self, int fd)
{
    return vhosti_user_ask_fd(self, VHOSTI_USER_GPU_SET_SOCKET, fd);
}

VHOST_USER_DEF int vhost_user_restore_config(vhost_user *self, uint32_t offset, const void *bytes,
                                             uint32_t size)
{
    uint8_t *same;
    int code =
        vhosti_user_check_service(self, VHOSTI_USER_SET_CONFIG, VHOST_USER_BIT_CONFIG, false);
    memcpy(&same, &bytes, sizeof bytes);
    if (code == 0 && (size == 0 || offset + size < size))
        code = VHOSTI_USER_FAIL(self, -EINVAL, VHOST_WHY_ARGUMENT, VHOSTI_USER_SET_CONFIG, -1,
                                "%lu+%lu", (unsigned long)offset, (unsigned long)size);
    if (code == 0)
        code =
            vhosti_user_move_config(self, true, offset, same, size, VHOSTI_USER_CONFIG_MIGRATION);
    return vhosti_user_run(self, code);
}

/* Keys do not stay where they passed through. */
static void vhosti_user_wipe(void *bytes, size_t size)
{
    volatile uint8_t *byte = (volatile uint8_t *)bytes;
    while (size-- > 0)
        *byte++ = 0;
}

VHOST_USER_DEF int vhost_user_create_crypto(vhost_user *self, void *session, uint32_t size)
{
    vhosti_user_message message;
    int code = vhosti_user_check_service(self, VHOSTI_USER_CREATE_CRYPTO_SESSION,
                                         VHOST_USER_BIT_CRYPTO, false);
    if (code == 0 && (size == 0 || size > VHOSTI_USER_PAYLOAD))
        code =
            VHOSTI_USER_FAIL(self, -EINVAL, VHOST_WHY_ARGUMENT, VHOSTI_USER_CREATE_CRYPTO_SESSION,
                             -1, "%lu bytes", (unsigned long)size);
    if (code < 0)
        return code;
    vhosti_user_compose(&message, VHOSTI_USER_CREATE_CRYPTO_SESSION, VHOST_OP_NONE, -1,
                        VHOSTI_USER_ECHO);
    vhosti_user_put(&message, session, size);
    message.result = session;
    message.result_size = size;
    code = vhosti_user_run(self, vhosti_user_submit(self, &message));
    vhosti_user_wipe(message.bytes, message.size);
    vhosti_user_wipe(self->out, self->request_count == 0 ? self->out_capacity : self->out_sent);
    vhosti_user_wipe(self->main.bytes, sizeof self->main.bytes);
    return code;
}

VHOST_USER_DEF int vhost_user_close_crypto(vhost_user *self, uint64_t session)
{
    return vhosti_user_ask_number(self, VHOSTI_USER_CLOSE_CRYPTO_SESSION, VHOST_USER_BIT_CRYPTO,
                                  session);
}

VHOST_USER_DEF int vhost_user_get_object(vhost_user *self, const uint8_t uuid[VHOST_USER_UUID_SIZE],
                                         int *fd)
{
    vhosti_user_message message;
    int code = vhosti_user_check_service(self, VHOSTI_USER_GET_SHARED_OBJECT,
                                         VHOST_USER_BIT_SHARED_OBJECT, false);
    *fd = -1;
    vhosti_user_compose(&message, VHOSTI_USER_GET_SHARED_OBJECT, VHOST_OP_NONE, -1, VHOSTI_USER_FD);
    vhosti_user_put(&message, uuid, VHOST_USER_UUID_SIZE);
    message.result = fd;
    if (code == 0)
        code = vhosti_user_submit(self, &message);
    code = vhosti_user_run(self, code);
    if (code < 0)
        vhosti_user_close_fd(self, fd);
    if (code == 0 && *fd < 0)
        code = VHOSTI_USER_FAIL(self, -ENOENT, VHOST_WHY_ARGUMENT, VHOSTI_USER_GET_SHARED_OBJECT,
                                -1, "the back-end has no such object");
    return code;
}

VHOST_USER_DEF uint64_t vhost_user_shmem_size(const vhost_user *self, uint8_t region)
{
    return self->shmem[region];
}

VHOST_USER_DEF int vhost_user_postcopy_advise(vhost_user *self, int *userfaultfd)
{
    int code;
    *userfaultfd = -1;
    if (self->postcopy == VHOSTI_USER_POSTCOPY_LISTENING)
        return VHOSTI_USER_FAIL(self, -EBUSY, VHOST_WHY_STATE, VHOSTI_USER_POSTCOPY_ADVISE, -1,
                                "after listen");
    code = vhosti_user_ask_bare(self, VHOSTI_USER_POSTCOPY_ADVISE, VHOST_USER_BIT_PAGEFAULT,
                                VHOSTI_USER_FD, userfaultfd);
    if (code == 0 && *userfaultfd < 0)
        code = VHOSTI_USER_FAIL(self, -EIO, VHOST_WHY_USER_FDS, VHOSTI_USER_POSTCOPY_ADVISE, -1,
                                "no userfaultfd");
    if (code == 0)
        self->postcopy = VHOSTI_USER_POSTCOPY_ADVISED;
    return code;
}

VHOST_USER_DEF int vhost_user_postcopy_listen(vhost_user *self)
{
    int code;
    if (self->postcopy != VHOSTI_USER_POSTCOPY_ADVISED || self->table_told)
        return VHOSTI_USER_FAIL(self, -EBUSY, VHOST_WHY_STATE, VHOSTI_USER_POSTCOPY_LISTEN, -1,
                                self->table_told ? "after a start" : "not after advise");
    code = vhosti_user_ask_bare(self, VHOSTI_USER_POSTCOPY_LISTEN, VHOST_USER_BIT_PAGEFAULT,
                                VHOSTI_USER_ACK, NULL);
    if (code == 0) {
        self->postcopy = VHOSTI_USER_POSTCOPY_LISTENING;
        self->arriving = true;
    }
    return code;
}

/* A connection that is lost, or came later, is not told: it does not know of it. */
VHOST_USER_DEF int vhost_user_postcopy_end(vhost_user *self)
{
    int code = 0;
    if (!self->arriving)
        return VHOSTI_USER_FAIL(self, -EBUSY, VHOST_WHY_STATE, VHOSTI_USER_POSTCOPY_END, -1,
                                "not after listen");
    if (self->postcopy == VHOSTI_USER_POSTCOPY_LISTENING && self->dead == 0)
        code = vhosti_user_ask_bare(self, VHOSTI_USER_POSTCOPY_END, VHOST_USER_BIT_PAGEFAULT,
                                    VHOSTI_USER_VERDICT, NULL);
    if (code < 0)
        return code;
    self->postcopy = VHOSTI_USER_PRECOPY;
    self->arriving = false;
    return 0;
}

VHOST_USER_DEF int vhost_user_set_skip_drain(vhost_user *self, bool on)
{
    int code = vhosti_user_check_service(self, VHOSTI_USER_GET_VRING_BASE_SKIP_DRAIN,
                                         VHOST_USER_BIT_SKIP_DRAIN, false);
    if (code == 0)
        self->skips_drain = on;
    return code;
}

VHOST_USER_DEF int vhost_user_move_state(vhost_user *self, bool load, int fd, int *theirs)
{
    int code = vhosti_user_check_service(self, VHOSTI_USER_SET_DEVICE_STATE_FD,
                                         VHOST_USER_BIT_STATE, true);
    *theirs = -1;
    if (code == 0)
        code = vhosti_user_submit_state(self, load, fd, theirs);
    return vhosti_user_run(self, code);
}

VHOST_USER_DEF int vhost_user_check_state(vhost_user *self)
{
    int code =
        vhosti_user_check_service(self, VHOSTI_USER_CHECK_DEVICE_STATE, VHOST_USER_BIT_STATE, true);
    if (code == 0)
        code = vhosti_user_submit_check(self);
    return vhosti_user_run(self, code);
}

VHOST_USER_DEF int vhost_user_save_state(vhost_user *self, vhost_user_take take, void *from,
                                         uint64_t limit)
{
    int fd, code = vhosti_user_check_service(self, VHOSTI_USER_SET_DEVICE_STATE_FD,
                                             VHOST_USER_BIT_STATE, true);
    if (code < 0)
        return code;
    code = vhosti_user_open_way(self, false, &fd);
    if (code == 0)
        code = vhosti_user_take_all(self, fd, take, from, limit);
    vhosti_user_close_fd(self, &fd);
    vhosti_user_clear_failure(self);
    return code < 0 ? code : vhost_user_check_state(self);
}

VHOST_USER_DEF int vhost_user_load_state(vhost_user *self, vhost_user_give give, void *from)
{
    int code = vhosti_user_check_service(self, VHOSTI_USER_SET_DEVICE_STATE_FD,
                                         VHOST_USER_BIT_STATE, true);
    if (code < 0)
        return code;
    self->give = give;
    self->give_from = from;
    return 0;
}

/* >>reconnect ---------------------------------------------------------------------------------- */

static bool vhosti_user_is_broken(const vhost_user *self)
{
    return self->device != NULL && self->device->state == VHOST_STATE_BROKEN;
}

/* A queue that cannot go on by itself, or -1. */
static int vhosti_user_find_guess(const vhost_user *self)
{
    uint32_t i;
    for (i = 0; i < self->device->queue_count; i++)
        if (self->device->queues[i].ready &&
            self->device->queues[i].position.state == VHOST_POSITION_GUESSED)
            return (int)i;
    return -1;
}

static void vhosti_user_begin_loss(vhost_user *self)
{
    self->lost = true;
    self->broken_at = vhosti_user_now(self);
    self->pause = self->options.retry_ms;
    self->retry_at = self->broken_at + self->pause;
    self->given_up = self->pause == 0 && self->passed_fd < 0;
}

/* Longer and longer, up to a limit; not for ever, if the policy says so. */
static void vhosti_user_put_off(vhost_user *self)
{
    const vhost_user_options *options = &self->options;
    uint32_t most =
        options->retry_max_ms > options->retry_ms ? options->retry_max_ms : options->retry_ms;
    self->retry_at = vhosti_user_now(self) + self->pause;
    self->pause = self->pause > most / 2 ? most : 2 * self->pause;
    self->given_up =
        options->retry_ms == 0 ||
        (options->retry_for_ms != 0 && self->retry_at - self->broken_at > options->retry_for_ms);
}

/* A socket for the next connection, if one can be had now. */
static bool vhosti_user_get_socket(vhost_user *self)
{
    const vhost_user_calls *calls = self->options.calls;
    int fd = -EAGAIN;
    if (self->passed_fd >= 0)
        return true;
    if (self->listens)
        fd = calls->accept(self->listener, self->options.user);
    else if (self->path[0] != '\0')
        fd = calls->connect(self->path, self->options.user);
    if (fd >= 0)
        self->passed_fd = fd;
    else
        (void)VHOSTI_USER_FAIL(self, fd, VHOST_WHY_USER_CONNECT, 0, -1, "%s, errno %d", self->path,
                               -fd);
    return fd >= 0;
}

/* One try. Returns 1: it is back; 0: not yet; or the error with which it was given up. */
static int vhosti_user_try(vhost_user *self)
{
    int code = -ENOTCONN;
    vhost_device *device = self->device;
    if (vhosti_user_get_socket(self))
        code = vhost_device_recover(device);
    else if (self->listens && vhosti_user_now(self) < self->retry_at)
        return 0; /* nobody came: that was no try */
    self->device = device;
    if (code == 0) {
        self->lost = false;
        return 1;
    }
    vhosti_user_put_off(self);
    return self->given_up ? code : 0;
}

static bool vhosti_user_is_due(const vhost_user *self)
{
    return self->listens || self->passed_fd >= 0 || vhosti_user_now(self) >= self->retry_at;
}

/* Whether it waits for the VMM to say what a guessed position is worth. */
static bool vhosti_user_awaits_word(const vhost_user *self)
{
    return self->guess_told && vhosti_user_find_guess(self) >= 0;
}

static int vhosti_user_tell_guess(vhost_user *self)
{
    int queue = vhosti_user_find_guess(self);
    if (queue < 0 || vhosti_user_awaits_word(self))
        return 0;
    self->guess_told = true;
    return VHOSTI_USER_FAIL(self, -EINVAL, VHOST_WHY_POSITION_GUESSED, 0, queue,
                            "queue %d, so that it does not go on by itself", queue);
}

VHOST_USER_DEF int vhost_user_process(vhost_user *self)
{
    int code = self->device != NULL ? vhost_device_process(self->device) : 0;
    if (!vhosti_user_is_broken(self)) {
        self->lost = self->guess_told = false;
        return code;
    }
    if (!self->lost) {
        vhosti_user_begin_loss(self);
        return self->given_up ? self->dead : vhosti_user_tell_guess(self);
    }
    if (self->given_up || vhosti_user_find_guess(self) >= 0 || !vhosti_user_is_due(self))
        return self->given_up ? 0 : vhosti_user_tell_guess(self);
    self->guess_told = false;
    return vhosti_user_try(self);
}

/* Until when what is left over between two calls may wait; nothing shows when it can be sent. */
static uint64_t vhosti_user_next(const vhost_user *self, uint64_t now)
{
    if (self->dead < 0 || self->hung_up)
        return now;
    if (self->request_first == self->request_count)
        return UINT64_MAX;
    if (self->requests_sent == self->request_count)
        return self->deadline;
    return self->blocked == VHOSTI_USER_FREE ? now : now + VHOSTI_USER_FDS_PAUSE_MS;
}

static uint64_t vhosti_user_next_try(const vhost_user *self, uint64_t now)
{
    if (!self->lost)
        return now;
    return self->given_up || vhosti_user_awaits_word(self) ? UINT64_MAX : self->retry_at;
}

VHOST_USER_DEF int vhost_user_timeout(const vhost_user *self)
{
    uint64_t now, at;
    if (self->device == NULL || self->device->state == VHOST_STATE_CLOSED)
        return -1;
    now = vhosti_user_now(self);
    at =
        vhosti_user_is_broken(self) ? vhosti_user_next_try(self, now) : vhosti_user_next(self, now);
    if (at == UINT64_MAX)
        return -1;
    return at > now ? (int)(at - now) : 0;
}

VHOST_USER_DEF uint32_t vhost_user_poll_fds(const vhost_user *self, int *fds, uint32_t capacity)
{
    uint32_t count = self->device != NULL ? vhost_device_poll_fds(self->device, fds, capacity) : 0;
    bool awaits = self->listens && self->listener >= 0 &&
                  (self->device == NULL || self->device->state == VHOST_STATE_CLOSED ||
                   vhosti_user_is_broken(self));
    if (awaits && count++ < capacity)
        fds[count - 1] = self->listener;
    return count;
}

/* >>ops ---------------------------------------------------------------------------------------- */

/* The device lets go: what it was told of goes, but for the record of requests in flight, which the
   next connection may be handed. */
static void vhosti_user_be_close(void *backend)
{
    vhost_user *self = (vhost_user *)backend;
    vhosti_user_cut(self);
    self->device = NULL;
}

static const vhost_error *vhosti_user_last_error(void *backend)
{
    return &((const vhost_user *)backend)->last_error;
}

static const vhost_backend_ops vhosti_user_operations = {vhosti_user_be_open,
                                                         vhosti_user_be_close,
                                                         vhosti_user_sever,
                                                         vhosti_user_fds,
                                                         vhosti_user_process_sockets,
                                                         vhosti_user_recall_base,
                                                         vhosti_user_set_features,
                                                         vhosti_user_set_table,
                                                         vhosti_user_set_log,
                                                         vhosti_user_iotlb_send,
                                                         vhosti_user_set_ring_call,
                                                         vhosti_user_set_ring_error,
                                                         vhosti_user_set_ring_size,
                                                         vhosti_user_set_ring_base,
                                                         vhosti_user_set_ring_endian,
                                                         vhosti_user_set_ring_addresses,
                                                         NULL, /* no busy loop */
                                                         vhosti_user_set_inflight,
                                                         vhosti_user_set_ring_kick,
                                                         vhosti_user_set_config_call,
                                                         vhosti_user_enable_ring,
                                                         vhosti_user_set_running,
                                                         vhosti_user_get_ring_base,
                                                         vhosti_user_reset,
                                                         vhosti_user_get_config,
                                                         vhosti_user_set_config,
                                                         vhosti_user_fence,
                                                         vhosti_user_last_error,
                                                         vhosti_user_push};

VHOST_USER_DEF const vhost_backend_ops *vhost_user_ops(void)
{
    return &vhosti_user_operations;
}

static void vhosti_user_init(vhost_user *self, const vhost_user_options *options)
{
    memset(self, 0, sizeof *self);
    if (options != NULL)
        self->options = *options;
    if (self->options.calls == NULL)
        self->options.calls = &vhosti_user_system;
    if (self->options.allocate == NULL)
        self->options.allocate = vhosti_user_sys_allocate;
    if (self->options.timeout_ms == 0)
        self->options.timeout_ms = VHOSTI_USER_TIMEOUT_MS;
    self->listener = self->passed_fd = self->channel_end = -1;
    self->main.fd = self->channel.fd = -1;
    self->inflight.fd = self->log_fd = self->config_call = -1;
    self->dead = -ENOTCONN;
}

static int vhosti_user_set_path(vhost_user *self, const char *path)
{
    if (strlen(path) >= sizeof self->path)
        return VHOSTI_USER_FAIL(self, -EINVAL, VHOST_WHY_ARGUMENT, 0, -1, "a path of %lu bytes",
                                (unsigned long)strlen(path));
    memcpy(self->path, path, strlen(path) + 1);
    return 0;
}

/* A socket that blocked would take no deadline. */
static int vhosti_user_pass_socket(vhost_user *self, int fd)
{
    int code = self->options.calls->unblock(fd, self->options.user);
    if (code < 0)
        return VHOSTI_USER_FAIL(self, code, VHOST_WHY_USER_CONNECT, 0, -1, "fd %d, errno %d", fd,
                                -code);
    vhosti_user_close_fd(self, &self->passed_fd);
    self->passed_fd = fd;
    return 0;
}

VHOST_USER_DEF int vhost_user_open(vhost_user *self, int fd, const vhost_user_options *options)
{
    vhosti_user_init(self, options);
    return vhosti_user_pass_socket(self, fd);
}

VHOST_USER_DEF int vhost_user_connect(vhost_user *self, const char *path,
                                      const vhost_user_options *options)
{
    vhosti_user_init(self, options);
    return vhosti_user_set_path(self, path);
}

VHOST_USER_DEF int vhost_user_listen(vhost_user *self, const char *path,
                                     const vhost_user_options *options)
{
    int code;
    vhosti_user_init(self, options);
    code = vhosti_user_set_path(self, path);
    if (code < 0)
        return code;
    self->listens = true;
    self->listener = self->options.calls->listen(path, self->options.user);
    if (self->listener >= 0)
        return 0;
    return VHOSTI_USER_FAIL(self, self->listener, VHOST_WHY_USER_CONNECT, 0, -1, "%s, errno %d",
                            path, -self->listener);
}

VHOST_USER_DEF int vhost_user_reopen(vhost_user *self, int fd)
{
    int code;
    if (!vhosti_user_is_open(self))
        return VHOSTI_USER_FAIL(self, -EBUSY, VHOST_WHY_STATE, 0, -1, "reopen while closed");
    code = vhosti_user_pass_socket(self, fd);
    if (code == 0)
        self->given_up = false;
    return code;
}

VHOST_USER_DEF void vhost_user_close(vhost_user *self)
{
    if (!vhosti_user_is_open(self))
        return;
    vhosti_user_cut(self);
    if (self->listener >= 0)
        (void)self->options.calls->unlink(self->path, self->options.user);
    vhosti_user_close_fd(self, &self->listener);
    vhosti_user_close_fd(self, &self->passed_fd);
    vhosti_user_close_fd(self, &self->inflight.fd);
    vhosti_user_free(self, self->out);
    vhosti_user_free(self, self->requests);
    vhosti_user_free(self, self->rings);
    vhosti_user_free(self, self->told);
    vhosti_user_free(self, self->windows);
    memset(self, 0, sizeof *self);
}

#ifdef __cplusplus
}
#endif
#endif /* VHOST_USER_IMPLEMENTATION */

/* This software is available under 2 licenses, MIT or Unlicense: see the end of vhost.h. */
