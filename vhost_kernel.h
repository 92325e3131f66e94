/* vhost_kernel.h - v0.1.0 - the kernel's vhost drivers as a back-end for vhost.h (Linux)
   SPDX-License-Identifier: MIT OR Unlicense (full text at the end of vhost.h)

   Opens /dev/vhost-net, -vsock, -scsi, -vdpa-N or any other, and drives it by ioctls for a
   vhost_device of vhost.h. */

/*
CONTENTS (grep -n '>>[a-z]' vhost_kernel.h is the index)

   >>manual      how to use each kind of device, fds, the dirty log, seccomp
   >>types       the back-end object, its options, system calls
   >>api         the functions
   >>uapi        the numbers and structs of the kernel's interface
   >>calls       system calls, and what is done on every fd
   >>open        fds, owners, facts
   >>setup       operations on all fds: features, memory table, log
   >>rings       operations on one queue
   >>net         taps
   >>whole       devices of which all queues start together: vsock, scsi, any other
   >>iotlb       messages behind a vIOMMU
   >>vdpa        vDPA devices
   >>ops         the tables of functions, init and close

>>manual

1. USE

      #define VHOST_IMPLEMENTATION             in one .c file
      #include "vhost_kernel.h"                includes vhost.h

      vhost_kernel net;
      vhost_kernel_net_open(&net, "/dev/vhost-net", &tap, 1, NULL);
      vhost_device_init(&dev, &vm, vhost_kernel_ops(&net), &net, queues, 2, NULL);
      ...
      vhost_device_cleanup(&dev);
      vhost_kernel_close(&net);

   One vhost_kernel serves one vhost_device. A path is opened by vhost_device_init, and that is when
   a wrong one is found (a vDPA device is opened at once). Only the line that opens it differs from
   one kind to another:

      vhost_kernel_vsock_open(&vsock, "/dev/vhost-vsock", cid, NULL);
      vhost_kernel_scsi_open(&scsi, "/dev/vhost-scsi", "naa.6001405000000001", NULL);
      vhost_kernel_vdpa_open(&vdpa, "/dev/vhost-vdpa-0", NULL);   vdpa.vdpa says how many queues

      kind   its queues of the vhost_device      what remains the VMM's own
      net    pairs: receive, transmit            control queue, config space, most feature bits
      vsock  receive, transmit                   event queue, config space
      scsi   control, event, requests            config space
      vdpa   all                                 nothing: see chapter 5
      other  as many as you say                  what the driver in the kernel does not do

   Feature bits are the device's to offer, of vhost-net only those that it implements itself (15,
   24 to 41, 64 and up). But for vhost-net, all queues start and stop together: vhost_queue_start
   and _stop are not supported. examples/ has a program for each kind.

2. VHOST-NET

   A vhost-net fd serves one pair of queues (0 receives, 1 transmits), so several pairs take several
   fds: they are opened, configured and rolled back as one.

   The tap: open /dev/net/tun with IFF_TAP | IFF_NO_PI | IFF_VNET_HDR (and IFF_MULTI_QUEUE, one fd
   per pair); TUNSETVNETHDRSZ 12, or 10 for a legacy driver without MRG_RXBUF; TUNSETOFFLOAD as the
   driver accepted. A tap moves nothing while its link is down.

   Feature bit 27 (VHOST_NET_F_VIRTIO_NET_HDR) asks vhost-net to make the net header itself, for a
   tap without IFF_VNET_HDR. It is hidden unless options.makes_net_header is set.

3. VHOST-VSOCK

   The guest's CID belongs to the fd from vhost_device_init on. Both queues must be ready at start.
   A stop leaves the connections as they are; what the host sends meanwhile comes after the next
   start. They end with the fd: when the device breaks, at vhost_kernel_close, and, if it was opened
   by path, at cleanup and vhost_device_reset. (For that moment another process can take the CID;
   then reset fails.)
   To change the CID: cleanup, close, open with the new one, init and ack again. In a migration on
   one host, the source lets go of the CID (cleanup; close, of a passed fd) before the destination's
   init.
   After a migration the host has no connections of this guest: put a buffer with event id 0
   (VIRTIO_VSOCK_EVENT_TRANSPORT_RESET) into the event queue, so that the driver drops its own.

4. VHOST-SCSI

   Make the target first, in configfs: a backstore, a vhost target with LUNs, and a nexus.

      cd /sys/kernel/config/target
      mkdir -p core/fileio_0/disk vhost/naa.6001405000000001/tpgt_1/lun/lun_0
      echo fd_dev_name=/path/disk.img,fd_dev_size=1073741824 >core/fileio_0/disk/control
      echo 1 >core/fileio_0/disk/enable
      echo naa.6001405000000002 >vhost/naa.6001405000000001/tpgt_1/nexus
      ln -s $PWD/core/fileio_0/disk vhost/naa.6001405000000001/tpgt_1/lun/lun_0/disk

   The driver finds it as target 1, the number of tpgt_1: so max_target of the config space.
   A start points the device at the target, which takes from 2 to 500 ms, by number and size of the
   queues; a stop ends that, and waits until requests in flight are done. A target serves one device
   at a time; to the kernel one that is in use is one that is not there.

5. VHOST-VDPA

   A vDPA device is a whole virtio device, data path and control queue: show the driver its device
   id, its features, its config space (vhost_device_get_config, _set_config, options.on_config of
   the vhost_device) and as many queues as it has, of at most vdpa.ring_max descriptors.
   vhost_kernel_vdpa_open opens it at once, since all this has to be known before there are queues.

   It has no memory table. Each section is mapped for it, at its guest physical address or where
   options.iova_of says (then the driver has to use those addresses); commits send differences only,
   as one batch if it can. Where a section takes another's place while the device runs, it is
   suspended for that moment; a device that cannot be suspended and resumed becomes BROKEN
   (VHOST_WHY_KERNEL_REMAP), so give memory that comes and goes as sections of its own.
   Some devices, VDUSE and the simulator among them, reach only memory that is mapped MAP_SHARED
   from a file, and the kernel passes over any other in silence: use a memfd. Others lock what is
   mapped, all of it: RLIMIT_MEMLOCK counts, also for root. VDUSE devices may fail requests in
   flight when memory comes or goes, and of several maps at once the kernel does not tell that one
   was refused.

   It cannot log what it writes, so it stands in the way of vhost_log_start. It takes no vIOMMU of
   the VMM: ACCESS_PLATFORM is sent to it whenever it has it, for the IOMMU of the host.
   After a stop, positions are certain if it could be suspended. Else it is reset, and they are
   certain only for queues in which nothing was left to be done (vhost.h, chapter 8). Each start
   begins with a reset of the device: what the driver told it by a control queue (the number of
   queue pairs, MAC and VLAN filters) is gone, also over a pause of the VM, and is the VMM's to say
   again. A path that leads to another device than before is refused (VHOST_WHY_BACKEND_LESS).
   The ioctls of a VDUSE device wait for its process: if that dies, for 30 s, or what
   /sys/class/vduse/NAME/msg_timeout says. After that the device is of no use any more.

6. ANY OTHER

   vhost_kernel_open takes a vhost device that this header does not know. What it does beyond the
   ioctls that all have, you send by vhost_kernel_ioctl; what starts and stops it, from
   options.set_running:

      static int run(vhost_kernel *kernel, bool on, void *user)
      {
          int value = on;
          return vhost_kernel_ioctl(kernel, "FOO_SET_RUNNING", FOO_SET_RUNNING, &value);
      }

7. WHAT THE DIRTY LOG HAS

   All offer LOG_ALL, but some log the used rings only, and not the buffers that they write. A VM
   that migrates with such a device loses pages. As measured, on Linux 6.1 and 6.12:

      kind           logs                                   vhost_log_start
      net            all that it writes                     works
      vsock, scsi    used rings only                        refuses: VHOST_WHY_LOG_PARTIAL
      other          not known                              refuses: VHOST_WHY_LOG_PARTIAL
      vdpa           nothing                                refuses: VHOST_WHY_LOG_UNSUPPORTED

   options.logs overrides it, for a kernel that does better or worse.

8. FDS

   taps           yours, borrowed until another is attached or the back-end is closed
   vhost fds      opened by path: by vhost_device_init (vdpa: by open), closed by
                  vhost_device_cleanup.
                  Passed to an ..._open_fd: ours after success, still yours on failure; closed by
                  vhost_kernel_close.
                  Either kind is closed when the device breaks.

   A device that broke needs its fds opened anew: vhost_device_reset does it if they were opened by
   path; else it fails, and last_error of the vhost_kernel says VHOST_WHY_KERNEL_SEVERED. Reasons of
   the kernel are always there: device.last_error names the operation (if its op is not NONE), this
   one the ioctl.

   Of vsock, scsi and others the kernel runs every ring that an fd ever heard of. So
   vhost_device_reset opens a path again, and on a passed fd a start fails that leaves out a queue
   that an earlier one had (VHOST_WHY_QUEUE_NOT_READY).

9. OLD KERNELS

   What a kernel does not know is not supported, not a failure: no back-end features, no features
   above bit 63, no worker or kind of thread of one's choice, no groups. Any vhost-net since Linux
   2.6.34 will do, and any vhost-vdpa since 5.7.

10. SYSTEM CALLS (for seccomp)

      call                       makes
      vhost_kernel_..._open      none; vdpa: openat, close if it fails, ioctl VDPA_GET_DEVICE_ID,
                                 _GET_VRING_NUM, _GET_VQS_COUNT, _GET_CONFIG_SIZE, _GET_GROUP_NUM,
                                 _GET_AS_NUM, _GET_IOVA_RANGE
      vhost_device_init          openat(path; /sys/module/vhost/parameters/max_mem_regions), read,
                                 close; ioctl FIONBIO, SET_FORK_FROM_OWNER, SET_OWNER,
                                 GET_FEATURES_ARRAY, GET_FEATURES, GET_BACKEND_FEATURES, NEW_WORKER,
                                 ATTACH_VRING_WORKER, FREE_WORKER; eventfd2; vsock:
                                 VSOCK_SET_GUEST_CID; scsi: SCSI_GET_ABI_VERSION; vdpa:
                                 SET_BACKEND_FEATURES
      vhost_device_start         ioctl SET_FEATURES or SET_FEATURES_ARRAY, SET_BACKEND_FEATURES,
                                 SET_MEM_TABLE, SET_LOG_BASE, SET_VRING_CALL, _ERR, _NUM, _BASE,
                                 _ENDIAN, _ADDR, _BUSYLOOP_TIMEOUT, _KICK; behind a vIOMMU: write;
                                 net: NET_SET_BACKEND, and if the driver gave ACCESS_PLATFORM back,
                                 RESET_OWNER and what init makes to own an fd; vsock:
                                 VSOCK_SET_RUNNING, write; scsi: SCSI_SET_ENDPOINT, write; other:
                                 what options.set_running makes, write; vdpa: VDPA_SET_STATUS,
                                 _GET_STATUS, _SET_GROUP_ASID, _GET_VRING_SIZE, _SET_CONFIG_CALL,
                                 _SET_VRING_ENABLE, write; if it fails, what stop makes
      vhost_device_stop          ioctl GET_VRING_BASE; close, if it fails; net: NET_SET_BACKEND;
                                 vsock: VSOCK_SET_RUNNING; scsi: SCSI_CLEAR_ENDPOINT; vdpa:
                                 VDPA_SUSPEND, VDPA_SET_STATUS, VDPA_SET_CONFIG_CALL
      vhost_device_reset         of a broken device: as vhost_device_init, and SET_LOG_FD; read;
                                 vsock, scsi, other: close, and what init makes to own an fd; vdpa:
                                 VDPA_SET_STATUS
      vhost_device_cleanup       as stop; close; vdpa: VDPA_SET_STATUS, write
      vhost_device_get_config,   vdpa: VDPA_GET_CONFIG, VDPA_SET_CONFIG
      _set_config
      vhost_queue_start, _stop   the ring ioctls of start and stop; close, if the device breaks
      vhost_queue_mask, _unmask  ioctl SET_VRING_CALL; _unmask and _pending: read
      vhost_device_process       read; behind a vIOMMU: write
      vhost_device_unmapped      write
      vhost_log_start, _stop     ioctl SET_LOG_BASE, SET_FEATURES or SET_FEATURES_ARRAY,
                                 SET_BACKEND_FEATURES, SET_VRING_ADDR; behind a vIOMMU: write, as
                                 in vhost_queue_start and vhost_memory_commit
      any that breaks a device   what stop makes, and close
      vhost_memory_commit        ioctl SET_MEM_TABLE, SET_LOG_BASE; vdpa: write, VDPA_SUSPEND,
                                 VDPA_RESUME; what stop does, and close, if a device breaks
      vhost_kernel_net_attach    ioctl NET_SET_BACKEND
      vhost_kernel_set_log_fd    ioctl SET_LOG_FD
      vhost_kernel_ioctl         that ioctl
      vhost_kernel_scsi_...      ioctl SCSI_GET_EVENTS_MISSED, SCSI_SET_EVENTS_MISSED
      vhost_kernel_vdpa_...      ioctl VDPA_GET_VRING_GROUP; write; mmap, munmap
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
    int (*map)(int fd, uint64_t offset, size_t size, void **at, void *user); /* shared, to write */
    int (*unmap)(void *at, size_t size, void *user);
} vhost_kernel_calls;

typedef enum vhost_kernel_thread {   /* what runs the queues (Linux 6.17 and later) */
    VHOST_KERNEL_THREAD_DEFAULT = 0, /* as the kernel's module parameter says */
    VHOST_KERNEL_THREAD_KTHREAD = 1, /* a kernel thread */
    VHOST_KERNEL_THREAD_OF_OWNER = 2 /* a thread of this process */
} vhost_kernel_thread;

typedef enum vhost_kernel_logs {     /* which writes of the device its dirty log has */
    VHOST_KERNEL_LOGS_AS_KNOWN = 0,  /* see manual, chapter 7 */
    VHOST_KERNEL_LOGS_ALL = 1,       /* all: its LOG_ALL is to be trusted */
    VHOST_KERNEL_LOGS_INCOMPLETE = 2 /* not all: a VM that has it is not migrated */
} vhost_kernel_logs;

typedef struct vhost_kernel vhost_kernel;

typedef struct vhost_kernel_options { /* zero is the default of each; copied */
    void *user;                       /* passed to `allocate` and to every function of `calls` */
    const vhost_kernel_calls *calls;  /* default: the system's; borrowed until close */
    void *(*allocate)(void *memory, size_t size, void *user); /* as realloc; size 0 frees */
    bool makes_net_header;                                    /* see manual, chapter 2 */
    bool worker_per_queue; /* a thread per queue that moves data, where the kernel has it */
    vhost_kernel_thread thread;
    vhost_kernel_logs logs;
    /* Of vhost_kernel_open: the last step of a start, and the first of a stop. Returns 0, or a
       negative errno: then nothing runs. NULL: there is none. */
    int (*set_running)(vhost_kernel *kernel, bool on, void *user);
    /* vdpa: the address of guest memory for the device, where that is not its gpa; over a section
       it goes on like the gpa, and it stays the same as long as the section does. */
    uint64_t (*iova_of)(uint64_t gpa, void *user);
} vhost_kernel_options;

typedef struct vhost_kernel_vdpa { /* what a vDPA device says of itself */
    uint32_t device_id;            /* of virtio: 1 is a network card, 2 a disk */
    uint32_t queue_count;          /* 0: not known (before Linux 5.18) */
    uint32_t ring_max;             /* descriptors of its largest ring */
    uint32_t config_size;          /* bytes; 0: not known (before Linux 5.18) */
    uint32_t group_count;          /* groups of queues that share an address space */
    uint32_t space_count;          /* address spaces */
    uint64_t iova_first;           /* what it can address, */
    uint64_t iova_last;            /* both included */
} vhost_kernel_vdpa;

/* One fd and what belongs to it. */
typedef struct vhosti_kernel_fd {
    int fd;           /* -1: not open */
    int tap;          /* or -1 */
    bool owned;       /* SET_OWNER was done */
    bool furnished;   /* and what goes with it */
    uint32_t workers; /* of that: threads besides the owner's */
    bool sticks;      /* it had ACCESS_PLATFORM since */
    bool enabled[2];  /* queues with the tap behind them */
} vhosti_kernel_fd;

/* One queue of a device of which all start together. */
typedef struct vhosti_kernel_queue {
    bool known;    /* the fd has heard of it, and would run it */
    bool wanted;   /* in this start */
    int kick;      /* or -1 */
    uint32_t base; /* vdpa: as told */
} vhosti_kernel_queue;

typedef enum vhosti_kernel_phase { /* of a vDPA device, since its last start began */
    VHOSTI_KERNEL_FRESH = 0,       /* it did not run yet */
    VHOSTI_KERNEL_RUNNING = 1,
    VHOSTI_KERNEL_SUSPENDED = 2, /* it ran, and still has the positions of its rings, */
    VHOSTI_KERNEL_HALTED = 3     /* or was reset, and has none */
} vhosti_kernel_phase;

struct vhosti_kernel_kind;

struct vhost_kernel {
    vhost_error last_error; /* read only: what the kernel refused last, and in which ioctl */
    vhost_kernel_vdpa vdpa; /* read only, from vhost_kernel_vdpa_open on */

    /* Private. */
    const struct vhosti_kernel_kind *kind;
    vhost_kernel_options options;
    char path[64]; /* empty: fds were passed */
    vhosti_kernel_fd *fds;
    uint32_t fd_count;
    uint32_t rings;              /* that the device has; 0: not known */
    vhosti_kernel_queue *queues; /* NULL: they start one by one */
    uint32_t queue_count;
    bool running;              /* all of them */
    int64_t missed;            /* the fd whose miss is being answered, or -1 */
    vhost_device *device;      /* to tell of misses */
    vhost_features features;   /* in force on every fd */
    uint64_t backend_features; /* that every fd has */
    uint64_t log_base;         /* in force on every fd; 0: none */
    int32_t log_fd;            /* or -1; on every fd that is owned */
    bool translates;           /* its fds are to be read: it may ask for IOVAs */
    void *room;                /* for arguments of any size */
    size_t room_size;
    uint64_t cid;   /* vsock */
    char wwpn[224]; /* scsi */
    vhosti_kernel_phase phase;
    uint8_t status;    /* vdpa: of the virtio device, as told */
    bool mapped;       /* vdpa: anything of the VM's memory was, since the fd is open */
    bool maps_unknown; /* vdpa: what is mapped of it may not be what was */
    uint32_t *spaces;  /* vdpa: by group */
};

/* >>api ----------------------------------------------------------------------------------------

   Threads: attach is like vhost_queue_start, ioctl, the events missed and the doorbells are like
   vhost_device_get_config, all others are like vhost_device_init. Pointers are not NULL, options
   may be. A path is shorter than 64 bytes. Each open fails with -EINVAL for an argument, -ENOMEM,
   and as it says; then there is nothing to close. An object that is open is to be closed before it
   is opened again. VHOST_WHY_KERNEL_... stand in kernel->last_error.why. */

/* The back-end operations for vhost_device_init, whose `backend` is then this vhost_kernel. (One
   that could not be opened is refused there.) */
VHOST_API const vhost_backend_ops *vhost_kernel_ops(const vhost_kernel *kernel);

/* ---- vhost-net ---- */

/* Prepares vhost-net with `pairs` queue pairs. The device at `path` is opened once per pair by
   vhost_device_init. taps: one fd per pair (-1: attach it later). */
VHOST_API int vhost_kernel_net_open(vhost_kernel *kernel, const char *path, const int *taps,
                                    uint32_t pairs, const vhost_kernel_options *options);

/* The same with vhost-net fds opened by somebody else; nobody may have set their owner. */
VHOST_API int vhost_kernel_net_open_fds(vhost_kernel *kernel, const int *fds, const int *taps,
                                        uint32_t pairs, const vhost_kernel_options *options);

/* Puts another tap, or none (-1), behind a queue pair: at once if its queues run, else from the
   next start on. The old tap may be closed on return. -EINVAL: no such pair; or what the kernel
   said: then the old tap is still behind the pair. */
VHOST_API int vhost_kernel_net_attach(vhost_kernel *kernel, uint32_t pair, int tap);

/* ---- vhost-vsock ---- */

/* Prepares vhost-vsock for a guest with this CID, 3 to 0xfffffffe. vhost_device_init opens it, and
   fails with -EADDRINUSE (VHOST_WHY_KERNEL_CID) if another device has the CID. */
VHOST_API int vhost_kernel_vsock_open(vhost_kernel *kernel, const char *path, uint64_t cid,
                                      const vhost_kernel_options *options);
VHOST_API int vhost_kernel_vsock_open_fd(vhost_kernel *kernel, int fd, uint64_t cid,
                                         const vhost_kernel_options *options);

/* ---- vhost-scsi ---- */

/* Prepares vhost-scsi for the target of this name in configfs (1 to 223 bytes, such as
   "naa.600140554cf3a18e"). vhost_device_start fails with -ENXIO (VHOST_WHY_KERNEL_TARGET) if there
   is none, it has no nexus, or another device has it. */
VHOST_API int vhost_kernel_scsi_open(vhost_kernel *kernel, const char *path, const char *wwpn,
                                     const vhost_kernel_options *options);
VHOST_API int vhost_kernel_scsi_open_fd(vhost_kernel *kernel, int fd, const char *wwpn,
                                        const vhost_kernel_options *options);

/* Whether events (LUNs plugged and unplugged) were lost for want of buffers: read it on the source
   of a migration, after stop, and set it on the destination, after init. */
VHOST_API int vhost_kernel_scsi_get_events_missed(vhost_kernel *kernel, bool *missed);
VHOST_API int vhost_kernel_scsi_set_events_missed(vhost_kernel *kernel, bool missed);

/* ---- vhost-vdpa ---- */

/* Opens a vDPA device and learns what it is: kernel->vdpa, of which no number is absurd (-EPROTO).
   -EBUSY: somebody has it open; or what the kernel said (last_error). */
VHOST_API int vhost_kernel_vdpa_open(vhost_kernel *kernel, const char *path,
                                     const vhost_kernel_options *options);
VHOST_API int vhost_kernel_vdpa_open_fd(vhost_kernel *kernel, int fd,
                                        const vhost_kernel_options *options);

/* The group that a queue is in, from init to cleanup. -ENOTSUP: the device has one group, or the
   kernel knows none (before Linux 5.19). */
VHOST_API int vhost_kernel_vdpa_get_group(vhost_kernel *kernel, uint32_t queue, uint32_t *group);

/* From the next start on, this group of queues lives in this address space. The memory of the VM is
   in space 0 alone; what is in others is yours, but that the rings themselves stand in guest memory
   all the same: map it to be found at its gpa. -EINVAL: no such group or space; -EBUSY: the device
   runs. */
VHOST_API int vhost_kernel_vdpa_set_space(vhost_kernel *kernel, uint32_t group, uint32_t space);

/* Maps memory into an address space other than 0, from init to cleanup; permit: VHOST_PERMIT_*.
   Sizes and addresses are multiples of 4 KiB. -EINVAL: no such space; -EFAULT or -ENOMEM
   (VHOST_WHY_KERNEL_MEMLOCK): something is mapped there, or more memory than may be locked. Without
   back-end feature IOTLB_PERSIST (Linux 6.7) each start may lose maps: unmap, and map again. Unmap
   takes away, whole, every map that it meets. Of a passed fd, unmap before cleanup. */
VHOST_API int vhost_kernel_vdpa_map(vhost_kernel *kernel, uint32_t space, uint64_t iova,
                                    uint64_t size, void *host, uint8_t permit);
VHOST_API int vhost_kernel_vdpa_unmap(vhost_kernel *kernel, uint32_t space, uint64_t iova,
                                      uint64_t size);

/* Maps the page in which a write kicks a queue in hardware: for the guest, instead of its kick fd.
   Unmap it before close. -ENOTSUP: the device has none. */
VHOST_API int vhost_kernel_vdpa_map_doorbell(vhost_kernel *kernel, uint32_t queue, void **page);
VHOST_API int vhost_kernel_vdpa_unmap_doorbell(vhost_kernel *kernel, void *page);

/* ---- any ---- */

/* Prepares another vhost character device with up to `queues` queues. What it needs besides the
   ioctls that all have is passed through by vhost_kernel_ioctl, in options.set_running or whenever
   the VMM likes. */
VHOST_API int vhost_kernel_open(vhost_kernel *kernel, const char *path, uint32_t queues,
                                const vhost_kernel_options *options);
VHOST_API int vhost_kernel_open_fd(vhost_kernel *kernel, int fd, uint32_t queues,
                                   const vhost_kernel_options *options);

/* An ioctl on the (first) fd, from init to cleanup; `name` is for messages. Returns what the kernel
   did: >= 0, or a negative errno (-ENOTSUP: it does not know it). */
VHOST_API int vhost_kernel_ioctl(vhost_kernel *kernel, const char *name, unsigned long request,
                                 void *argument);

/* Has an eventfd (borrowed until close) signalled at each write to the dirty log; -1: none. The
   device is initialised. If the kernel refuses, the one before stays. */
VHOST_API int vhost_kernel_set_log_fd(vhost_kernel *kernel, int fd);

/* Closes all fds that are ours. After vhost_device_cleanup, which needs them; may be repeated, and
   does nothing to a zeroed object. */
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
#include <sys/mman.h>
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

typedef struct vhosti_kernel_target {
    int32_t abi_version; /* VHOSTI_KERNEL_SCSI_ABI */
    char wwpn[224];
    uint16_t tag; /* the kernel takes the target's */
    uint16_t reserved;
} vhosti_kernel_target;

typedef struct vhosti_kernel_config { /* the bytes follow */
    uint32_t offset;
    uint32_t size;
} vhosti_kernel_config;

typedef struct vhosti_kernel_range {
    uint64_t first;
    uint64_t last;
} vhosti_kernel_range;

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
#define VHOSTI_KERNEL_FREE_WORKER          VHOSTI_KERNEL_IOW(0x09, uint32_t)
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
#define VHOSTI_KERNEL_SCSI_SET_ENDPOINT    VHOSTI_KERNEL_IOW(0x40, vhosti_kernel_target)
#define VHOSTI_KERNEL_SCSI_CLEAR_ENDPOINT  VHOSTI_KERNEL_IOW(0x41, vhosti_kernel_target)
#define VHOSTI_KERNEL_SCSI_GET_ABI         VHOSTI_KERNEL_IOW(0x42, int32_t)
#define VHOSTI_KERNEL_SCSI_SET_MISSED      VHOSTI_KERNEL_IOW(0x43, uint32_t)
#define VHOSTI_KERNEL_SCSI_GET_MISSED      VHOSTI_KERNEL_IOW(0x44, uint32_t)
#define VHOSTI_KERNEL_VSOCK_SET_CID        VHOSTI_KERNEL_IOW(0x60, uint64_t)
#define VHOSTI_KERNEL_VSOCK_SET_RUNNING    VHOSTI_KERNEL_IOW(0x61, int32_t)
#define VHOSTI_KERNEL_VDPA_GET_DEVICE_ID   VHOSTI_KERNEL_IOR(0x70, uint32_t)
#define VHOSTI_KERNEL_VDPA_GET_STATUS      VHOSTI_KERNEL_IOR(0x71, uint8_t)
#define VHOSTI_KERNEL_VDPA_SET_STATUS      VHOSTI_KERNEL_IOW(0x72, uint8_t)
#define VHOSTI_KERNEL_VDPA_GET_CONFIG      VHOSTI_KERNEL_IOR(0x73, vhosti_kernel_config)
#define VHOSTI_KERNEL_VDPA_SET_CONFIG      VHOSTI_KERNEL_IOW(0x74, vhosti_kernel_config)
#define VHOSTI_KERNEL_VDPA_ENABLE          VHOSTI_KERNEL_IOW(0x75, vhosti_kernel_state)
#define VHOSTI_KERNEL_VDPA_GET_VRING_NUM   VHOSTI_KERNEL_IOR(0x76, uint16_t)
#define VHOSTI_KERNEL_VDPA_CONFIG_CALL     VHOSTI_KERNEL_IOW(0x77, int32_t)
#define VHOSTI_KERNEL_VDPA_GET_IOVA_RANGE  VHOSTI_KERNEL_IOR(0x78, vhosti_kernel_range)
#define VHOSTI_KERNEL_VDPA_GET_CONFIG_SIZE VHOSTI_KERNEL_IOR(0x79, uint32_t)
#define VHOSTI_KERNEL_VDPA_GET_SPACES      VHOSTI_KERNEL_IOR(0x7A, uint32_t)
#define VHOSTI_KERNEL_VDPA_GET_GROUP       VHOSTI_KERNEL_IOWR(0x7B, vhosti_kernel_state)
#define VHOSTI_KERNEL_VDPA_SET_SPACE       VHOSTI_KERNEL_IOW(0x7C, vhosti_kernel_state)
#define VHOSTI_KERNEL_VDPA_SUSPEND         VHOSTI_KERNEL_IO(0x7D)
#define VHOSTI_KERNEL_VDPA_RESUME          VHOSTI_KERNEL_IO(0x7E)
#define VHOSTI_KERNEL_VDPA_GET_QUEUES      VHOSTI_KERNEL_IOR(0x80, uint32_t)
#define VHOSTI_KERNEL_VDPA_GET_GROUPS      VHOSTI_KERNEL_IOR(0x81, uint32_t)
#define VHOSTI_KERNEL_VDPA_GET_RING_SIZE   VHOSTI_KERNEL_IOWR(0x82, vhosti_kernel_state)
#define VHOSTI_KERNEL_GET_FEATURES_ARRAY   VHOSTI_KERNEL_IOR(0x83, vhosti_kernel_words)
#define VHOSTI_KERNEL_SET_FEATURES_ARRAY   VHOSTI_KERNEL_IOW(0x83, vhosti_kernel_words)
#define VHOSTI_KERNEL_SET_FORK_FROM_OWNER  VHOSTI_KERNEL_IOW(0x84, uint8_t)

#define VHOSTI_KERNEL_NET_RINGS       2u /* of one vhost-net fd */
#define VHOSTI_KERNEL_VSOCK_RINGS     2u /* the event queue is not the kernel's */
#define VHOSTI_KERNEL_SCSI_RINGS      2u /* control, event; then come those of requests */
#define VHOSTI_KERNEL_DEFAULT_REGIONS 64 /* of the module parameter */
#define VHOSTI_KERNEL_SCSI_ABI        1
#define VHOSTI_KERNEL_VSOCK_FIRST_CID 3u

#define VHOSTI_KERNEL_NET_HEADER 27 /* feature bit */

enum { /* back-end features, bits */
    VHOSTI_KERNEL_IOTLB_MSG_V2 = 1u << 1,
    VHOSTI_KERNEL_IOTLB_BATCH = 1u << 2,
    VHOSTI_KERNEL_IOTLB_ASID = 1u << 3,
    VHOSTI_KERNEL_SUSPEND = 1u << 4,
    VHOSTI_KERNEL_RESUME = 1u << 5,
    VHOSTI_KERNEL_IOTLB_PERSIST = 1u << 8
};

enum { /* types of messages besides those of vhost_iotlb_type */
    VHOSTI_KERNEL_BATCH_BEGIN = 5,
    VHOSTI_KERNEL_BATCH_END = 6
};

enum {                                   /* virtio device status */
    VHOSTI_KERNEL_STATUS_DRIVER = 1 | 2, /* ACKNOWLEDGE, DRIVER */
    VHOSTI_KERNEL_STATUS_DRIVER_OK = 4,
    VHOSTI_KERNEL_STATUS_FEATURES_OK = 8
};

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

static int vhosti_kernel_sys_map(int fd, uint64_t offset, size_t size, void **at, void *user)
{
    (void)user;
    *at = mmap(NULL, size, PROT_WRITE, MAP_SHARED, fd, (off_t)offset);
    return *at == MAP_FAILED ? -errno : 0;
}

static int vhosti_kernel_sys_unmap(void *at, size_t size, void *user)
{
    (void)user;
    return munmap(at, size) < 0 ? -errno : 0;
}

static const vhost_kernel_calls vhosti_kernel_system = {
    vhosti_kernel_sys_open, vhosti_kernel_sys_close, vhosti_kernel_sys_ioctl,
    vhosti_kernel_sys_read, vhosti_kernel_sys_write, vhosti_kernel_sys_map,
    vhosti_kernel_sys_unmap};

static void *vhosti_kernel_sys_allocate(void *memory, size_t size, void *user)
{
    (void)user;
    if (size == 0) {
        free(memory);
        return NULL;
    }
    return realloc(memory, size);
}

/* What tells one kind of device from another. */
struct vhosti_kernel_kind {
    const char *name;
    const vhost_backend_ops *ops;
    vhost_profile profile;
    uint32_t fd_rings;     /* how many each fd has; 0: one fd has all */
    uint32_t first_worked; /* the first ring that gets a worker of its own; 0: none does */
    uint64_t its_bits;     /* feature bits that it implements, of the first 64 */
    uint64_t backend_bits; /* back-end features that are used if it has them */
    bool logs_all;         /* as far as is known */
    int (*furnish)(vhost_kernel *kernel, uint32_t i); /* what each fd needs; NULL: nothing */
    int (*run)(vhost_kernel *kernel, bool on);        /* all its queues; NULL: one by one */
};

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
    if (pair >= 0 && kernel->kind != NULL && kernel->kind->run == NULL)
        (void)snprintf(error->text, sizeof error->text, "%.99s of pair %ld (%s)", what, (long)pair,
                       vhost_why_text(why));
    else
        (void)snprintf(error->text, sizeof error->text, "%.99s (%s)", what, vhost_why_text(why));
    return code;
}

#define VHOSTI_KERNEL_FAIL(kernel, code, why, what, pair)                                          \
    vhosti_kernel_fail((kernel), (code), (why), __LINE__, (what), (int64_t)(pair))

/* -1: it is not open. */
static int vhosti_kernel_fd_number(const vhost_kernel *kernel, uint32_t i)
{
    return i < kernel->fd_count ? kernel->fds[i].fd : -1;
}

/* One ioctl on one fd. What the kernel does not know is -ENOTSUP. */
static int vhosti_kernel_ioctl(vhost_kernel *kernel, uint32_t i, const char *name,
                               unsigned long request, void *argument)
{
    const vhost_kernel_options *options = &kernel->options;
    int fd = vhosti_kernel_fd_number(kernel, i), code;
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

/* An ioctl that an old kernel may not know. Unknown ones end up in code that wants an owner first,
   and then takes the argument for that of a ring, so that there may be "no such ring". */
static int vhosti_kernel_ask(vhost_kernel *kernel, uint32_t i, const char *name,
                             unsigned long request, void *argument)
{
    vhost_error before = kernel->last_error; /* to be unknown is no failure */
    int code = vhosti_kernel_ioctl(kernel, i, name, request, argument);
    bool early = code == -EPERM && !kernel->fds[i].owned;
    if (code != -ENOBUFS && code != -ENOTSUP && !early)
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

static void vhosti_kernel_forget_queues(vhost_kernel *kernel)
{
    if (kernel->queues != NULL)
        memset(kernel->queues, 0, kernel->queue_count * sizeof *kernel->queues);
}

/* Whatever was in force went with the fds. */
static void vhosti_kernel_forget(vhost_kernel *kernel)
{
    vhosti_kernel_forget_queues(kernel);
    kernel->running = false;
    memset(&kernel->features, 0, sizeof kernel->features);
    kernel->log_base = 0;
    kernel->phase = VHOSTI_KERNEL_FRESH;
    kernel->status = 0;
    kernel->mapped = false;
    kernel->maps_unknown = true;
}

static void vhosti_kernel_close_fd(vhost_kernel *kernel, vhosti_kernel_fd *one)
{
    if (one->fd >= 0)
        (void)kernel->options.calls->close(one->fd, kernel->options.user);
    one->fd = -1;
    one->owned = one->furnished = one->sticks = false;
    one->workers = 0;
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
    int code;
    if (kernel->options.thread == VHOST_KERNEL_THREAD_DEFAULT)
        return 0;
    of_owner[0] = kernel->options.thread == VHOST_KERNEL_THREAD_OF_OWNER;
    code = vhosti_kernel_ask(kernel, i, "SET_FORK_FROM_OWNER", VHOSTI_KERNEL_SET_FORK_FROM_OWNER,
                             of_owner);
    return code == -ENOTSUP ? 0 : code; /* an old kernel has one kind of thread only */
}

/* So that `process` can read until there is nothing left. */
static int vhosti_kernel_unblock(vhost_kernel *kernel, uint32_t i)
{
    int on = 1;
    return vhosti_kernel_ioctl(kernel, i, "FIONBIO", FIONBIO, &on);
}

static int vhosti_kernel_add_worker(vhost_kernel *kernel, uint32_t i, uint32_t ring)
{
    vhosti_kernel_state worker;
    vhost_error why;
    int code;
    worker.index = ring;
    worker.number = 0;
    code = vhosti_kernel_ask(kernel, i, "NEW_WORKER", VHOSTI_KERNEL_NEW_WORKER, &worker.number);
    if (code < 0)
        return code;
    code = vhosti_kernel_ioctl(kernel, i, "ATTACH_VRING_WORKER", VHOSTI_KERNEL_ATTACH_VRING_WORKER,
                               &worker);
    if (code >= 0)
        return code;
    why = kernel->last_error;
    (void)vhosti_kernel_ioctl(kernel, i, "FREE_WORKER", VHOSTI_KERNEL_FREE_WORKER, &worker.number);
    kernel->last_error = why;
    return code;
}

/* Those before the first keep the one that SET_OWNER made; those that an earlier attempt hired
   stay. */
static int vhosti_kernel_add_workers(vhost_kernel *kernel, uint32_t i)
{
    vhosti_kernel_fd *one = &kernel->fds[i];
    uint32_t first = kernel->kind->first_worked, rings = kernel->kind->fd_rings;
    int code = 0;
    if (!kernel->options.worker_per_queue || first == 0)
        return 0;
    if (rings == 0)
        rings = kernel->device->queue_count;
    while (first + one->workers < rings && code >= 0) {
        code = vhosti_kernel_add_worker(kernel, i, first + one->workers);
        one->workers += code >= 0;
    }
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
    code = vhosti_kernel_add_workers(kernel, i);
    if (code >= 0 && kernel->log_fd >= 0)
        code = vhosti_kernel_step_log_fd(kernel, i, &kernel->log_fd);
    if (code >= 0 && kernel->kind->furnish != NULL)
        code = kernel->kind->furnish(kernel, i);
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

static bool vhosti_kernel_logs_all(const vhost_kernel *kernel)
{
    return kernel->options.logs == VHOST_KERNEL_LOGS_AS_KNOWN
               ? kernel->kind->logs_all
               : kernel->options.logs == VHOST_KERNEL_LOGS_ALL;
}

static void vhosti_kernel_state_facts(const vhost_kernel *kernel, vhost_facts *facts)
{
    const struct vhosti_kernel_kind *kind = kernel->kind;
    facts->name = kind->name;
    facts->profile = kind->profile;
    facts->max_queues = kernel->rings;
    facts->its_bits.word[0] = kind->its_bits;
    facts->its_bits.word[1] = UINT64_MAX;
    facts->queues_together = kind->run != NULL;
    if (kind->profile == VHOST_PROFILE_BY_HOST)
        facts->log_kind = VHOST_DIRTY_PRIVATE;
    if (!vhosti_kernel_logs_all(kernel))
        facts->log_obstacle = VHOST_WHY_LOG_PARTIAL;
}

/* What an fd that stays has heard of stays here as well. */
static int vhosti_kernel_reserve_queues(vhost_kernel *kernel, uint32_t count)
{
    uint32_t before = kernel->queue_count;
    vhosti_kernel_queue *queues;
    if (kernel->kind->run == NULL || count <= before)
        return 0;
    queues = (vhosti_kernel_queue *)kernel->options.allocate(kernel->queues, count * sizeof *queues,
                                                             kernel->options.user);
    if (queues == NULL)
        return VHOSTI_KERNEL_FAIL(kernel, -ENOMEM, VHOST_WHY_MEMORY, "queues", -1);
    memset(queues + before, 0, (count - before) * sizeof *queues);
    kernel->queues = queues;
    kernel->queue_count = count;
    return 0;
}

/* Whether misses may come. Else its fds are not polled either: a thread that waits for an fd keeps
   it open, and with it a CID or a target, whoever closes it meanwhile. */
static bool vhosti_kernel_may_translate(const vhost_device *device, const vhost_facts *facts)
{
    const vhost_memory_ops *memory = device->options.memory;
    return memory != NULL && memory->translate != NULL &&
           vhost_features_test(&facts->offered, VHOST_FEATURE_ACCESS_PLATFORM);
}

static int vhosti_kernel_op_open(void *backend, vhost_device *device, vhost_facts *facts)
{
    vhost_kernel *kernel = (vhost_kernel *)backend;
    uint32_t i;
    int code;
    if (kernel->fd_count == 0)
        return VHOSTI_KERNEL_FAIL(kernel, -EINVAL, VHOST_WHY_ARGUMENT, "an object not open", -1);
    code = vhosti_kernel_reserve_queues(kernel, device->queue_count);
    kernel->device = device;
    facts->offered.word[0] = facts->offered.word[1] = UINT64_MAX;
    kernel->backend_features = UINT64_MAX;
    for (i = 0; i < kernel->fd_count && code == 0; i++)
        code = vhosti_kernel_prepare_fd(kernel, i, &facts->offered);
    if (code < 0) {
        vhosti_kernel_close_path(kernel);
        return code;
    }
    kernel->backend_features &= kernel->kind->backend_bits;
    vhosti_kernel_state_facts(kernel, facts);
    if (facts->queues_together)
        vhost_features_clear(&facts->offered, VHOST_FEATURE_RING_RESET);
    if (kernel->kind->run == NULL && !kernel->options.makes_net_header)
        vhost_features_clear(&facts->offered, VHOSTI_KERNEL_NET_HEADER);
    if (kernel->kind->profile == VHOST_PROFILE_BY_HOST) {
        kernel->translates = vhosti_kernel_may_translate(device, facts);
        facts->max_regions = vhosti_kernel_read_max_regions(kernel);
    }
    return 0;
}

static void vhosti_kernel_op_close(void *backend)
{
    vhosti_kernel_close_path((vhost_kernel *)backend);
}

/* >>setup -------------------------------------------------------------------------------------- */

/* Linux 6.1 keeps its IOTLB when ACCESS_PLATFORM goes, and then refuses every ring until the owner
   is reset. What the owner's reset takes with it, start sends anew. Only vhost-net can be reset so:
   of the others, vhosti_kernel_op_reset opens the fd again. */
static int vhosti_kernel_unstick(vhost_kernel *kernel, const vhost_features *features)
{
    uint32_t i;
    int code = 0;
    if (vhost_features_test(features, VHOST_FEATURE_ACCESS_PLATFORM) || kernel->kind->run != NULL)
        return 0;
    for (i = 0; i < kernel->fd_count && code >= 0; i++) {
        vhosti_kernel_fd *one = &kernel->fds[i];
        if (!one->sticks)
            continue;
        code = vhosti_kernel_ioctl(kernel, i, "RESET_OWNER", VHOSTI_KERNEL_RESET_OWNER, NULL);
        if (code >= 0) {
            one->owned = one->furnished = one->sticks = false;
            one->workers = 0;
        }
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
    const uint64_t *bits = &kernel->backend_features;
    if (*bits == 0)
        return 0;
    return vhosti_kernel_on_all(kernel, vhosti_kernel_step_backend_features, bits, bits);
}

/* A start begins. */
static void vhosti_kernel_want_no_queue(vhost_kernel *kernel)
{
    uint32_t i;
    for (i = 0; i < kernel->queue_count; i++)
        kernel->queues[i].wanted = false;
}

static int vhosti_kernel_op_set_features(void *backend, const vhost_features *features)
{
    vhost_kernel *kernel = (vhost_kernel *)backend;
    int code = vhosti_kernel_unstick(kernel, features);
    if (!kernel->running)
        vhosti_kernel_want_no_queue(kernel);
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
    vhosti_kernel_memory *head = (vhosti_kernel_memory *)kernel->room;
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

/* Room for an argument; it stays for the next one. */
static int vhosti_kernel_reserve(vhost_kernel *kernel, size_t size, const char *what)
{
    void *grown;
    if (size <= kernel->room_size)
        return 0;
    grown = kernel->options.allocate(kernel->room, size, kernel->options.user);
    if (grown == NULL)
        return VHOSTI_KERNEL_FAIL(kernel, -ENOMEM, VHOST_WHY_MEMORY, what, -1);
    kernel->room = grown;
    kernel->room_size = size;
    return 0;
}

/* For the larger of the two tables of a change. */
static int vhosti_kernel_reserve_table(vhost_kernel *kernel, const vhost_table_change *change)
{
    uint32_t old = change->from != NULL ? change->from->count : 0;
    uint32_t count = change->to->count > old ? change->to->count : old;
    return vhosti_kernel_reserve(
        kernel, sizeof(vhosti_kernel_memory) + count * sizeof(vhosti_kernel_region),
        "SET_MEM_TABLE");
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

/* Where a queue of the device is (V4): on which fd, and which of its rings. */
static uint32_t vhosti_kernel_fd_of(const vhost_kernel *kernel, uint32_t queue)
{
    uint32_t rings = kernel->kind->fd_rings;
    return rings != 0 ? queue / rings : 0;
}

static uint32_t vhosti_kernel_ring_of(const vhost_kernel *kernel, uint32_t queue)
{
    uint32_t rings = kernel->kind->fd_rings;
    return rings != 0 ? queue % rings : queue;
}

static int vhosti_kernel_set_state(void *backend, uint32_t queue, const char *name,
                                   unsigned long request, uint32_t number)
{
    vhost_kernel *kernel = (vhost_kernel *)backend;
    vhosti_kernel_state state;
    state.index = vhosti_kernel_ring_of(kernel, queue);
    state.number = number;
    return vhosti_kernel_ioctl(kernel, vhosti_kernel_fd_of(kernel, queue), name, request, &state);
}

static int vhosti_kernel_set_file(void *backend, uint32_t queue, const char *name,
                                  unsigned long request, int fd)
{
    vhost_kernel *kernel = (vhost_kernel *)backend;
    vhosti_kernel_file file;
    file.index = vhosti_kernel_ring_of(kernel, queue);
    file.fd = fd;
    return vhosti_kernel_ioctl(kernel, vhosti_kernel_fd_of(kernel, queue), name, request, &file);
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
    vhost_kernel *kernel = (vhost_kernel *)backend;
    if (kernel->queues != NULL) {
        kernel->queues[queue].wanted = true;
        kernel->queues[queue].kick = fd;
    }
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

static int vhosti_kernel_send_addresses(vhost_kernel *kernel, uint32_t queue,
                                        vhosti_kernel_address *address)
{
    int code;
    address->index = vhosti_kernel_ring_of(kernel, queue);
    code = vhosti_kernel_ioctl(kernel, vhosti_kernel_fd_of(kernel, queue), "SET_VRING_ADDR",
                               VHOSTI_KERNEL_SET_VRING_ADDR, address);
    if (code >= 0 && kernel->queues != NULL)
        kernel->queues[queue].known = true;
    return code;
}

static int vhosti_kernel_op_set_ring_addresses(void *backend, uint32_t queue,
                                               const vhost_ring_addresses *addresses)
{
    vhosti_kernel_address address;
    address.flags = addresses->log;
    address.desc = vhosti_kernel_part(addresses, VHOST_DESC);
    address.used = vhosti_kernel_part(addresses, VHOST_USED);
    address.avail = vhosti_kernel_part(addresses, VHOST_AVAIL);
    address.log = addresses->part[VHOST_USED].gpa;
    return vhosti_kernel_send_addresses((vhost_kernel *)backend, queue, &address);
}

static int vhosti_kernel_op_get_ring_base(void *backend, uint32_t queue, vhost_ring_base *base)
{
    vhost_kernel *kernel = (vhost_kernel *)backend;
    vhosti_kernel_state state = {0, 0};
    int code;
    if (kernel->running || kernel->phase == VHOSTI_KERNEL_RUNNING)
        return -EIO; /* what it says would not last; last_error says what kept it from stopping */
    state.index = vhosti_kernel_ring_of(kernel, queue);
    code = vhosti_kernel_ioctl(kernel, vhosti_kernel_fd_of(kernel, queue), "GET_VRING_BASE",
                               VHOSTI_KERNEL_GET_VRING_BASE, &state);
    base->answered = code >= 0;
    base->value = state.number;
    return code;
}

/* >>net ---------------------------------------------------------------------------------------- */

static int vhosti_kernel_put_tap(vhost_kernel *kernel, uint32_t queue, int tap)
{
    return vhosti_kernel_set_file(kernel, queue, "NET_SET_BACKEND", VHOSTI_KERNEL_NET_SET_BACKEND,
                                  tap);
}

static int vhosti_kernel_net_enable(void *backend, uint32_t queue, bool on)
{
    vhost_kernel *kernel = (vhost_kernel *)backend;
    vhosti_kernel_fd *one = &kernel->fds[vhosti_kernel_fd_of(kernel, queue)];
    int code = vhosti_kernel_put_tap(kernel, queue, on ? one->tap : -1);
    if (code >= 0)
        one->enabled[vhosti_kernel_ring_of(kernel, queue)] = on;
    return code;
}

VHOST_KERNEL_DEF int vhost_kernel_net_attach(vhost_kernel *kernel, uint32_t pair, int tap)
{
    vhosti_kernel_fd *one;
    uint32_t ring, first = pair * VHOSTI_KERNEL_NET_RINGS;
    if (pair >= kernel->fd_count || kernel->kind->run != NULL)
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
static void vhosti_kernel_net_sever(void *backend)
{
    vhost_kernel *kernel = (vhost_kernel *)backend;
    vhost_error why = kernel->last_error;
    uint32_t queue;
    for (queue = 0; queue < kernel->rings; queue++)
        (void)vhosti_kernel_net_enable(kernel, queue, false);
    vhosti_kernel_close_fds(kernel);
    kernel->last_error = why;
}

/* >>whole --------------------------------------------------------------------------------------

   Devices of which all queues start and stop together: vsock, scsi, and any that we do not know.
   One fd has them all. */

/* The kernel runs every ring that an fd ever heard of: none of a former life of the guest may be
   among them. */
static int vhosti_kernel_check_queues(vhost_kernel *kernel)
{
    uint32_t i;
    for (i = 0; i < kernel->queue_count; i++)
        if (kernel->queues[i].known && !kernel->queues[i].wanted)
            return VHOSTI_KERNEL_FAIL(kernel, -EINVAL, VHOST_WHY_QUEUE_NOT_READY,
                                      "a queue that ran before, on the same fd", 0);
    return 0;
}

static void vhosti_kernel_kick(const vhost_kernel *kernel, int fd)
{
    const vhost_kernel_options *options = &kernel->options;
    const uint64_t one = 1;
    ptrdiff_t count;
    do {
        count = options->calls->write(fd, &one, sizeof one, options->user);
    } while (count == -EINTR);
}

/* These devices do not look into their rings when they begin to run. */
static void vhosti_kernel_kick_queues(const vhost_kernel *kernel)
{
    uint32_t i;
    for (i = 0; i < kernel->queue_count; i++)
        if (kernel->queues[i].wanted && kernel->queues[i].kick >= 0)
            vhosti_kernel_kick(kernel, kernel->queues[i].kick);
}

static int vhosti_kernel_run(vhost_kernel *kernel)
{
    bool viommu = vhost_features_test(&kernel->features, VHOST_FEATURE_ACCESS_PLATFORM);
    int code = vhosti_kernel_check_queues(kernel);
    if (code < 0)
        return code;
    code = kernel->kind->run(kernel, true);
    if (code == -EFAULT && kernel->kind->profile == VHOST_PROFILE_BY_HOST &&
        kernel->fds[0].sticks && !viommu) /* Linux 6.1 */
        return VHOSTI_KERNEL_FAIL(kernel, code, VHOST_WHY_KERNEL_STUCK, "start", 0);
    if (code < 0)
        return code;
    kernel->running = true;
    vhosti_kernel_kick_queues(kernel);
    return 0;
}

static int vhosti_kernel_op_set_running(void *backend, bool on)
{
    vhost_kernel *kernel = (vhost_kernel *)backend;
    int code;
    if (on == kernel->running)
        return 0;
    if (on)
        return vhosti_kernel_run(kernel);
    code = kernel->kind->run(kernel, false);
    kernel->running = code < 0;
    return code;
}

static void vhosti_kernel_op_sever(void *backend)
{
    vhost_kernel *kernel = (vhost_kernel *)backend;
    vhost_error why = kernel->last_error;
    if (vhosti_kernel_fd_number(kernel, 0) >= 0)
        (void)vhosti_kernel_op_set_running(kernel, false);
    vhosti_kernel_close_fds(kernel);
    kernel->last_error = why;
}

/* What an fd heard of rings, and on Linux 6.1 an IOTLB, it keeps until it is closed; a driver that
   comes next may not want them. */
static int vhosti_kernel_op_reset(void *backend)
{
    vhost_kernel *kernel = (vhost_kernel *)backend;
    int code;
    if (!vhosti_kernel_has_path(kernel))
        return 0;
    vhosti_kernel_close_fds(kernel);
    code = vhosti_kernel_open_fd(kernel, 0);
    return code < 0 ? code : vhosti_kernel_own_fd(kernel, 0);
}

/* ---- vsock ---- */

static int vhosti_kernel_vsock_furnish(vhost_kernel *kernel, uint32_t i)
{
    uint64_t cid = kernel->cid;
    char what[40];
    int code =
        vhosti_kernel_ioctl(kernel, i, "VSOCK_SET_GUEST_CID", VHOSTI_KERNEL_VSOCK_SET_CID, &cid);
    if (code == -EADDRINUSE) {
        (void)snprintf(what, sizeof what, "VSOCK_SET_GUEST_CID %lu", (unsigned long)cid);
        return VHOSTI_KERNEL_FAIL(kernel, code, VHOST_WHY_KERNEL_CID, what, i);
    }
    return code;
}

static int vhosti_kernel_vsock_run(vhost_kernel *kernel, bool on)
{
    int32_t running = on;
    bool both = kernel->queue_count >= VHOSTI_KERNEL_VSOCK_RINGS && kernel->queues[0].wanted &&
                kernel->queues[1].wanted;
    if (on && !both)
        return VHOSTI_KERNEL_FAIL(kernel, -EINVAL, VHOST_WHY_QUEUE_NOT_READY,
                                  "vhost-vsock runs both queues or none", 0);
    return vhosti_kernel_ioctl(kernel, 0, "VSOCK_SET_RUNNING", VHOSTI_KERNEL_VSOCK_SET_RUNNING,
                               &running);
}

/* ---- scsi ---- */

static int vhosti_kernel_scsi_furnish(vhost_kernel *kernel, uint32_t i)
{
    int32_t version = 0;
    int code = vhosti_kernel_ioctl(kernel, i, "SCSI_GET_ABI_VERSION", VHOSTI_KERNEL_SCSI_GET_ABI,
                                   &version);
    if (code >= 0 && version > VHOSTI_KERNEL_SCSI_ABI)
        return VHOSTI_KERNEL_FAIL(kernel, -ENOTSUP, VHOST_WHY_NOT_SUPPORTED,
                                  "an ABI of vhost-scsi that is newer than this library", i);
    return code;
}

static int vhosti_kernel_scsi_point(vhost_kernel *kernel, const char *name, unsigned long request)
{
    vhosti_kernel_target target;
    memset(&target, 0, sizeof target);
    target.abi_version = VHOSTI_KERNEL_SCSI_ABI;
    memcpy(target.wwpn, kernel->wwpn, sizeof target.wwpn);
    return vhosti_kernel_ioctl(kernel, 0, name, request, &target);
}

/* Never set twice without clearing it (CVE-2025-22083): op_set_running sees to that. */
static int vhosti_kernel_scsi_run(vhost_kernel *kernel, bool on)
{
    int code;
    if (!on)
        return vhosti_kernel_scsi_point(kernel, "SCSI_CLEAR_ENDPOINT",
                                        VHOSTI_KERNEL_SCSI_CLEAR_ENDPOINT);
    code = vhosti_kernel_scsi_point(kernel, "SCSI_SET_ENDPOINT", VHOSTI_KERNEL_SCSI_SET_ENDPOINT);
    if (code == -ENODEV && kernel->fds[0].fd >= 0)
        return VHOSTI_KERNEL_FAIL(kernel, -ENXIO, VHOST_WHY_KERNEL_TARGET, kernel->wwpn, 0);
    return code;
}

VHOST_KERNEL_DEF int vhost_kernel_scsi_get_events_missed(vhost_kernel *kernel, bool *missed)
{
    uint32_t value = 0;
    int code =
        vhost_kernel_ioctl(kernel, "SCSI_GET_EVENTS_MISSED", VHOSTI_KERNEL_SCSI_GET_MISSED, &value);
    if (code >= 0)
        *missed = value != 0;
    return code;
}

VHOST_KERNEL_DEF int vhost_kernel_scsi_set_events_missed(vhost_kernel *kernel, bool missed)
{
    uint32_t value = missed;
    return vhost_kernel_ioctl(kernel, "SCSI_SET_EVENTS_MISSED", VHOSTI_KERNEL_SCSI_SET_MISSED,
                              &value);
}

/* ---- any other ---- */

static int vhosti_kernel_other_run(vhost_kernel *kernel, bool on)
{
    const vhost_kernel_options *options = &kernel->options;
    return options->set_running != NULL ? options->set_running(kernel, on, options->user) : 0;
}

VHOST_KERNEL_DEF int vhost_kernel_ioctl(vhost_kernel *kernel, const char *name,
                                        unsigned long request, void *argument)
{
    if (kernel->fd_count == 0)
        return VHOSTI_KERNEL_FAIL(kernel, -EINVAL, VHOST_WHY_ARGUMENT, "an object not open", -1);
    return vhosti_kernel_ioctl(kernel, 0, name, request, argument);
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

typedef struct vhosti_kernel_order {
    uint32_t space; /* of a vDPA device; else 0 */
    vhosti_kernel_entry entry;
} vhosti_kernel_order;

static int vhosti_kernel_step_order(vhost_kernel *kernel, uint32_t i, const void *value)
{
    const vhosti_kernel_order *order = (const vhosti_kernel_order *)value;
    const vhost_kernel_options *options = &kernel->options;
    unsigned char message[sizeof(vhosti_kernel_message_v2)];
    size_t place = vhosti_kernel_body_place(kernel), size = place + sizeof(vhosti_kernel_body);
    uint32_t version = vhosti_kernel_version(kernel);
    ptrdiff_t count;
    if (vhosti_kernel_fd_number(kernel, i) < 0)
        return VHOSTI_KERNEL_FAIL(kernel, -ENODEV, VHOST_WHY_KERNEL_SEVERED, "IOTLB message", i);
    memset(message, 0, sizeof message);
    memcpy(message, &version, sizeof version);
    if (version == 2)
        memcpy(message + offsetof(vhosti_kernel_message_v2, asid), &order->space,
               sizeof order->space);
    memcpy(message + place, &order->entry, sizeof order->entry);
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
    vhosti_kernel_order order;
    memset(&order, 0, sizeof order);
    order.entry.iova = message->iova;
    order.entry.size = message->size;
    order.entry.host = (uintptr_t)message->host;
    order.entry.permit = message->permit;
    order.entry.type = (uint8_t)message->type;
    if (kernel->missed >= 0)
        return vhosti_kernel_step_order(kernel, (uint32_t)kernel->missed, &order);
    return vhosti_kernel_on_all(kernel, vhosti_kernel_step_order, &order, NULL);
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
    if (!kernel->translates) /* it has nothing to say, or cannot be read */
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

/* >>vdpa ---------------------------------------------------------------------------------------

   A vDPA device reads guest memory through maps that we make, from guest physical addresses. It is
   set up only once: from a stop to the next start it is suspended, if it can be, and then reset. */

/* What is used of its back-end features. */
#define VHOSTI_KERNEL_VDPA_WANTED                                                                  \
    (VHOSTI_KERNEL_IOTLB_MSG_V2 | VHOSTI_KERNEL_IOTLB_BATCH | VHOSTI_KERNEL_IOTLB_ASID |           \
     VHOSTI_KERNEL_SUSPEND | VHOSTI_KERNEL_RESUME | VHOSTI_KERNEL_IOTLB_PERSIST)

enum {
    VHOSTI_KERNEL_VDPA_MOST = 65536 /* queues, groups, bytes of config space */
};

static bool vhosti_kernel_vdpa_has(const vhost_kernel *kernel, uint64_t features)
{
    return (kernel->backend_features & features) == features;
}

/* ---- what it says of itself ---- */

/* A number that an old kernel may not know: then it is `usual`. */
static int vhosti_kernel_vdpa_ask(vhost_kernel *kernel, const char *name, unsigned long request,
                                  uint32_t usual, uint32_t *number)
{
    int code = vhosti_kernel_ask(kernel, 0, name, request, number);
    if (code == -ENOTSUP)
        *number = usual;
    return code == -ENOTSUP ? 0 : code;
}

static int vhosti_kernel_vdpa_ask_range(vhost_kernel *kernel)
{
    vhosti_kernel_range range = {0, UINT64_MAX};
    int code = vhosti_kernel_ask(kernel, 0, "VDPA_GET_IOVA_RANGE",
                                 VHOSTI_KERNEL_VDPA_GET_IOVA_RANGE, &range);
    kernel->vdpa.iova_first = range.first;
    kernel->vdpa.iova_last = range.last;
    return code == -ENOTSUP ? 0 : code;
}

/* What it says may come from another process (VDUSE), and memory is allocated by it. */
static int vhosti_kernel_vdpa_check(vhost_kernel *kernel)
{
    const vhost_kernel_vdpa *vdpa = &kernel->vdpa;
    if (vdpa->queue_count <= VHOSTI_KERNEL_VDPA_MOST &&
        vdpa->config_size <= VHOSTI_KERNEL_VDPA_MOST && vdpa->group_count > 0 &&
        vdpa->group_count <= VHOSTI_KERNEL_VDPA_MOST)
        return 0;
    return VHOSTI_KERNEL_FAIL(kernel, -EPROTO, VHOST_WHY_BACKEND_REFUSED,
                              "no groups, or more than 65536 of them, queues, or config bytes", 0);
}

static int vhosti_kernel_vdpa_identify(vhost_kernel *kernel)
{
    vhost_kernel_vdpa *vdpa = &kernel->vdpa;
    uint16_t ring_max = 0;
    int code = vhosti_kernel_ioctl(kernel, 0, "VDPA_GET_DEVICE_ID",
                                   VHOSTI_KERNEL_VDPA_GET_DEVICE_ID, &vdpa->device_id);
    if (code >= 0)
        code = vhosti_kernel_ioctl(kernel, 0, "VDPA_GET_VRING_NUM",
                                   VHOSTI_KERNEL_VDPA_GET_VRING_NUM, &ring_max);
    vdpa->ring_max = ring_max;
    if (code >= 0)
        code = vhosti_kernel_vdpa_ask(kernel, "VDPA_GET_VQS_COUNT", VHOSTI_KERNEL_VDPA_GET_QUEUES,
                                      0, &vdpa->queue_count);
    if (code >= 0)
        code = vhosti_kernel_vdpa_ask(kernel, "VDPA_GET_CONFIG_SIZE",
                                      VHOSTI_KERNEL_VDPA_GET_CONFIG_SIZE, 0, &vdpa->config_size);
    if (code >= 0)
        code = vhosti_kernel_vdpa_ask(kernel, "VDPA_GET_GROUP_NUM", VHOSTI_KERNEL_VDPA_GET_GROUPS,
                                      1, &vdpa->group_count);
    if (code >= 0)
        code = vhosti_kernel_vdpa_ask(kernel, "VDPA_GET_AS_NUM", VHOSTI_KERNEL_VDPA_GET_SPACES, 1,
                                      &vdpa->space_count);
    if (code >= 0)
        code = vhosti_kernel_vdpa_ask_range(kernel);
    kernel->rings = vdpa->queue_count;
    return code < 0 ? code : vhosti_kernel_vdpa_check(kernel);
}

/* ---- status ---- */

static int vhosti_kernel_vdpa_set_status(vhost_kernel *kernel, uint8_t status)
{
    uint8_t value = status;
    int code =
        vhosti_kernel_ioctl(kernel, 0, "VDPA_SET_STATUS", VHOSTI_KERNEL_VDPA_SET_STATUS, &value);
    if (code >= 0)
        kernel->status = status;
    return code;
}

/* It forgets everything, and may forget its maps; in those that are ours, what was is not to be
   relied on. */
static int vhosti_kernel_vdpa_reset(vhost_kernel *kernel)
{
    int code = vhosti_kernel_vdpa_set_status(kernel, 0);
    if (code < 0)
        return code;
    if (kernel->phase == VHOSTI_KERNEL_RUNNING)
        kernel->phase = VHOSTI_KERNEL_HALTED;
    if (!vhosti_kernel_vdpa_has(kernel, VHOSTI_KERNEL_IOTLB_PERSIST))
        kernel->maps_unknown = true;
    return 0;
}

static int vhosti_kernel_vdpa_op_reset(void *backend)
{
    return vhosti_kernel_vdpa_reset((vhost_kernel *)backend);
}

/* Adds a bit to the status, and looks whether the device took it. */
static int vhosti_kernel_vdpa_advance(vhost_kernel *kernel, uint8_t bit)
{
    uint8_t status = 0;
    int code = vhosti_kernel_vdpa_set_status(kernel, kernel->status | bit);
    if (code >= 0)
        code = vhosti_kernel_ioctl(kernel, 0, "VDPA_GET_STATUS", VHOSTI_KERNEL_VDPA_GET_STATUS,
                                   &status);
    if (code >= 0 && (status & bit) == 0)
        return VHOSTI_KERNEL_FAIL(
            kernel, -EINVAL, VHOST_WHY_KERNEL_STATUS,
            bit == VHOSTI_KERNEL_STATUS_FEATURES_OK ? "FEATURES_OK" : "DRIVER_OK", 0);
    return code;
}

/* ---- features, at each start ---- */

static int vhosti_kernel_vdpa_place_groups(vhost_kernel *kernel)
{
    uint32_t i;
    int code = 0;
    for (i = 0; i < kernel->vdpa.group_count && code >= 0; i++) {
        vhosti_kernel_state place;
        place.index = i;
        place.number = kernel->spaces[i];
        if (kernel->vdpa.space_count > 1)
            code = vhosti_kernel_ioctl(kernel, 0, "VDPA_SET_GROUP_ASID",
                                       VHOSTI_KERNEL_VDPA_SET_SPACE, &place);
    }
    return code;
}

/* The device is behind an IOMMU of the host, whatever the driver was told (F1). */
static int vhosti_kernel_vdpa_set_features(void *backend, const vhost_features *features)
{
    vhost_kernel *kernel = (vhost_kernel *)backend;
    vhost_features sent = *features;
    int code = kernel->status != 0 ? vhosti_kernel_vdpa_reset(kernel) : 0;
    kernel->phase = VHOSTI_KERNEL_FRESH;
    vhosti_kernel_forget_queues(kernel);
    if (vhost_features_test(&kernel->device->facts.offered, VHOST_FEATURE_ACCESS_PLATFORM))
        vhost_features_set(&sent, VHOST_FEATURE_ACCESS_PLATFORM);
    if (code >= 0)
        code = vhosti_kernel_vdpa_set_status(kernel, VHOSTI_KERNEL_STATUS_DRIVER);
    if (code >= 0)
        code = vhosti_kernel_step_features(kernel, 0, &sent);
    if (code >= 0)
        code = vhosti_kernel_vdpa_advance(kernel, VHOSTI_KERNEL_STATUS_FEATURES_OK);
    if (code >= 0)
        code = vhosti_kernel_vdpa_place_groups(kernel);
    return code;
}

/* ---- maps ---- */

static int vhosti_kernel_vdpa_order(vhost_kernel *kernel, uint8_t type, uint32_t space,
                                    uint64_t iova, uint64_t size)
{
    vhosti_kernel_order order;
    memset(&order, 0, sizeof order);
    order.space = space;
    order.entry.type = type;
    order.entry.iova = iova;
    order.entry.size = size;
    return vhosti_kernel_step_order(kernel, 0, &order);
}

static int vhosti_kernel_vdpa_do_map(vhost_kernel *kernel, uint32_t space, uint64_t iova,
                                     uint64_t size, const void *host, uint8_t permit)
{
    vhosti_kernel_order order;
    char what[64];
    int code;
    (void)snprintf(what, sizeof what, "IOTLB map of 0x%llx+0x%llx", (unsigned long long)iova,
                   (unsigned long long)size);
    if (iova < kernel->vdpa.iova_first || iova > kernel->vdpa.iova_last ||
        size - 1 > kernel->vdpa.iova_last - iova)
        return VHOSTI_KERNEL_FAIL(kernel, -EINVAL, VHOST_WHY_KERNEL_IOVA, what, 0);
    memset(&order, 0, sizeof order);
    order.space = space;
    order.entry.type = VHOST_TLB_MAP;
    order.entry.permit = permit;
    order.entry.iova = iova;
    order.entry.size = size;
    order.entry.host = (uintptr_t)host;
    code = vhosti_kernel_step_order(kernel, 0, &order);
    if (code >= 0)
        return 0;
    return VHOSTI_KERNEL_FAIL(kernel, code,
                              code == -ENOMEM || code == -EFAULT ? VHOST_WHY_KERNEL_MEMLOCK
                                                                 : VHOST_WHY_BACKEND_REFUSED,
                              what, 0);
}

/* Where nothing was ever mapped, the kernel would call this an error. */
static int vhosti_kernel_vdpa_unmap_all(vhost_kernel *kernel)
{
    int code =
        kernel->mapped ? vhosti_kernel_vdpa_order(kernel, VHOST_TLB_UNMAP, 0, 0, UINT64_MAX) : 0;
    if (code >= 0)
        kernel->mapped = false;
    kernel->maps_unknown = true;
    return code;
}

static uint64_t vhosti_kernel_vdpa_iova_of(const vhost_kernel *kernel, uint64_t gpa)
{
    const vhost_kernel_options *options = &kernel->options;
    return options->iova_of != NULL ? options->iova_of(gpa, options->user) : gpa;
}

static int vhosti_kernel_vdpa_unmap_regions(vhost_kernel *kernel, const vhost_region *regions,
                                            uint32_t count)
{
    uint32_t i;
    int code = 0;
    for (i = 0; i < count && code >= 0; i++) {
        uint64_t iova = vhosti_kernel_vdpa_iova_of(kernel, regions[i].gpa);
        code = vhosti_kernel_vdpa_order(kernel, VHOST_TLB_UNMAP, 0, iova, regions[i].size);
    }
    return code;
}

static int vhosti_kernel_vdpa_map_regions(vhost_kernel *kernel, const vhost_region *regions,
                                          uint32_t count)
{
    uint32_t i;
    int code = 0;
    for (i = 0; i < count && code >= 0; i++) {
        uint64_t iova = vhosti_kernel_vdpa_iova_of(kernel, regions[i].gpa);
        code = vhosti_kernel_vdpa_do_map(kernel, 0, iova, regions[i].size, regions[i].host,
                                         VHOST_PERMIT_READ | VHOST_PERMIT_WRITE);
        kernel->mapped |= code >= 0;
    }
    return code;
}

/* What has to go, then what has to come. */
static int vhosti_kernel_vdpa_remap(vhost_kernel *kernel, const vhost_table_change *change)
{
    bool anew = kernel->maps_unknown || change->from == NULL;
    const vhost_region *added = anew ? change->to->regions : change->added;
    uint32_t added_count = anew ? change->to->count : change->added_count;
    int code =
        anew ? vhosti_kernel_vdpa_unmap_all(kernel)
             : vhosti_kernel_vdpa_unmap_regions(kernel, change->removed, change->removed_count);
    return code < 0 ? code : vhosti_kernel_vdpa_map_regions(kernel, added, added_count);
}

static uint32_t vhosti_kernel_vdpa_count_orders(const vhost_kernel *kernel,
                                                const vhost_table_change *change)
{
    return kernel->maps_unknown || change->from == NULL
               ? change->to->count + (kernel->mapped ? 1 : 0)
               : change->removed_count + change->added_count;
}

/* As one batch, if the device can; it ends in any case. A lone message goes without, as the kernel
   does not tell what is refused in a batch of VDUSE. */
static int vhosti_kernel_vdpa_remap_batch(vhost_kernel *kernel, const vhost_table_change *change)
{
    vhost_error why;
    int code, end;
    if (!vhosti_kernel_vdpa_has(kernel, VHOSTI_KERNEL_IOTLB_BATCH) ||
        vhosti_kernel_vdpa_count_orders(kernel, change) < 2)
        return vhosti_kernel_vdpa_remap(kernel, change);
    code = vhosti_kernel_vdpa_order(kernel, VHOSTI_KERNEL_BATCH_BEGIN, 0, 0, 0);
    if (code < 0)
        return code;
    code = vhosti_kernel_vdpa_remap(kernel, change);
    why = kernel->last_error;
    end = vhosti_kernel_vdpa_order(kernel, VHOSTI_KERNEL_BATCH_END, 0, 0, 0);
    if (code >= 0)
        return end;
    kernel->last_error = why;
    return code;
}

static int vhosti_kernel_vdpa_suspend(vhost_kernel *kernel)
{
    int code = vhosti_kernel_ioctl(kernel, 0, "VDPA_SUSPEND", VHOSTI_KERNEL_VDPA_SUSPEND, NULL);
    if (code >= 0)
        kernel->phase = VHOSTI_KERNEL_SUSPENDED;
    return code;
}

static int vhosti_kernel_vdpa_resume(vhost_kernel *kernel)
{
    int code = vhosti_kernel_ioctl(kernel, 0, "VDPA_RESUME", VHOSTI_KERNEL_VDPA_RESUME, NULL);
    if (code < 0)
        return code;
    kernel->phase = VHOSTI_KERNEL_RUNNING;
    vhosti_kernel_kick_queues(kernel);
    return 0;
}

/* With the device suspended, as for a moment it would find nothing where memory changes (U5). */
static int vhosti_kernel_vdpa_remap_paused(vhost_kernel *kernel, const vhost_table_change *change)
{
    int code;
    if (!vhosti_kernel_vdpa_has(kernel, VHOSTI_KERNEL_SUSPEND | VHOSTI_KERNEL_RESUME))
        return VHOSTI_KERNEL_FAIL(kernel, -EBUSY, VHOST_WHY_KERNEL_REMAP, "IOTLB map", 0);
    code = vhosti_kernel_vdpa_suspend(kernel);
    if (code >= 0)
        code = vhosti_kernel_vdpa_remap_batch(kernel, change);
    return code < 0 ? code : vhosti_kernel_vdpa_resume(kernel);
}

static int vhosti_kernel_vdpa_set_table(void *backend, const vhost_table_change *change)
{
    vhost_kernel *kernel = (vhost_kernel *)backend;
    int code = kernel->phase == VHOSTI_KERNEL_RUNNING && change->in_place
                   ? vhosti_kernel_vdpa_remap_paused(kernel, change)
                   : vhosti_kernel_vdpa_remap_batch(kernel, change);
    kernel->maps_unknown = code < 0;
    return code;
}

/* ---- rings ---- */

/* Some devices have rings of different sizes (Linux 6.9). */
static int vhosti_kernel_vdpa_set_ring_size(void *backend, uint32_t queue, uint32_t size)
{
    vhost_kernel *kernel = (vhost_kernel *)backend;
    vhosti_kernel_state limit;
    int code;
    limit.index = queue;
    limit.number = 0;
    code = vhosti_kernel_ask(kernel, 0, "VDPA_GET_VRING_SIZE", VHOSTI_KERNEL_VDPA_GET_RING_SIZE,
                             &limit);
    if (code == -ENOTSUP)
        limit.number = kernel->vdpa.ring_max;
    else if (code < 0)
        return code;
    if (size > limit.number)
        return VHOSTI_KERNEL_FAIL(kernel, -EINVAL, VHOST_WHY_RING_SIZE,
                                  "SET_VRING_NUM: larger than the device takes", 0);
    return vhosti_kernel_op_set_ring_size(backend, queue, size);
}

static int vhosti_kernel_vdpa_set_ring_base(void *backend, uint32_t queue, uint32_t base)
{
    vhost_kernel *kernel = (vhost_kernel *)backend;
    vhosti_kernel_state state; /* of a packed ring, avail is the low half and used the high one */
    int code;
    state.index = queue;
    state.number = base;
    code = vhosti_kernel_ioctl(kernel, 0, "SET_VRING_BASE", VHOSTI_KERNEL_SET_VRING_BASE, &state);
    if (code >= 0)
        kernel->queues[queue].base = base;
    return code;
}

/* The device sees no host addresses (V6). */
static int vhosti_kernel_vdpa_set_ring_addresses(void *backend, uint32_t queue,
                                                 const vhost_ring_addresses *addresses)
{
    vhost_kernel *kernel = (vhost_kernel *)backend;
    vhosti_kernel_address address;
    memset(&address, 0, sizeof address);
    address.desc = vhosti_kernel_vdpa_iova_of(kernel, addresses->part[VHOST_DESC].gpa);
    address.used = vhosti_kernel_vdpa_iova_of(kernel, addresses->part[VHOST_USED].gpa);
    address.avail = vhosti_kernel_vdpa_iova_of(kernel, addresses->part[VHOST_AVAIL].gpa);
    return vhosti_kernel_send_addresses(kernel, queue, &address);
}

/* Before DRIVER_OK, as only some devices can later. Off goes the whole device. */
static int vhosti_kernel_vdpa_enable(void *backend, uint32_t queue, bool on)
{
    if (!on)
        return 0;
    return vhosti_kernel_set_state(backend, queue, "VDPA_SET_VRING_ENABLE",
                                   VHOSTI_KERNEL_VDPA_ENABLE, true);
}

/* If it may have run, it has no positions when it is reset; if it cannot be reset, it runs. */
static int vhosti_kernel_vdpa_go(vhost_kernel *kernel)
{
    int code = vhosti_kernel_vdpa_advance(kernel, VHOSTI_KERNEL_STATUS_DRIVER_OK);
    vhost_error why = kernel->last_error;
    bool told = (kernel->status & VHOSTI_KERNEL_STATUS_DRIVER_OK) != 0;
    if (code >= 0 || (told && why.why != VHOST_WHY_KERNEL_STATUS))
        kernel->phase = VHOSTI_KERNEL_RUNNING;
    if (code >= 0)
        return 0;
    if (vhosti_kernel_vdpa_reset(kernel) < 0)
        kernel->phase = VHOSTI_KERNEL_RUNNING;
    kernel->last_error = why;
    return code;
}

/* A device that cannot be suspended is reset: then it is still, but has no positions. */
static int vhosti_kernel_vdpa_run(vhost_kernel *kernel, bool on)
{
    if (on)
        return vhosti_kernel_vdpa_go(kernel);
    if (kernel->phase != VHOSTI_KERNEL_RUNNING ||
        (vhosti_kernel_vdpa_has(kernel, VHOSTI_KERNEL_SUSPEND) &&
         vhosti_kernel_vdpa_suspend(kernel) >= 0))
        return 0;
    return vhosti_kernel_vdpa_reset(kernel);
}

static int vhosti_kernel_vdpa_get_ring_base(void *backend, uint32_t queue, vhost_ring_base *base)
{
    vhost_kernel *kernel = (vhost_kernel *)backend;
    if (kernel->phase == VHOSTI_KERNEL_SUSPENDED || kernel->phase == VHOSTI_KERNEL_RUNNING)
        return vhosti_kernel_op_get_ring_base(backend, queue, base);
    base->answered = kernel->phase == VHOSTI_KERNEL_FRESH && queue < kernel->queue_count;
    if (base->answered)
        base->value = kernel->queues[queue].base;
    return 0;
}

/* ---- config space ---- */

/* Leaves the argument in kernel->room. */
static int vhosti_kernel_vdpa_lay_out_config(vhost_kernel *kernel, uint32_t offset, uint32_t size)
{
    vhosti_kernel_config head;
    int code;
    if (kernel->vdpa.config_size != 0 &&
        (offset > kernel->vdpa.config_size || size > kernel->vdpa.config_size - offset))
        return VHOSTI_KERNEL_FAIL(kernel, -EINVAL, VHOST_WHY_ARGUMENT,
                                  "bytes beyond the config space", 0);
    code = vhosti_kernel_reserve(kernel, sizeof head + size, "config space");
    if (code < 0)
        return code;
    head.offset = offset;
    head.size = size;
    memcpy(kernel->room, &head, sizeof head);
    return 0;
}

static int vhosti_kernel_vdpa_get_config(void *backend, uint32_t offset, void *bytes, uint32_t size)
{
    vhost_kernel *kernel = (vhost_kernel *)backend;
    int code = vhosti_kernel_vdpa_lay_out_config(kernel, offset, size);
    if (code >= 0)
        code = vhosti_kernel_ioctl(kernel, 0, "VDPA_GET_CONFIG", VHOSTI_KERNEL_VDPA_GET_CONFIG,
                                   kernel->room);
    if (code >= 0)
        memcpy(bytes, (char *)kernel->room + sizeof(vhosti_kernel_config), size);
    return code;
}

static int vhosti_kernel_vdpa_set_config(void *backend, uint32_t offset, const void *bytes,
                                         uint32_t size)
{
    vhost_kernel *kernel = (vhost_kernel *)backend;
    int code = vhosti_kernel_vdpa_lay_out_config(kernel, offset, size);
    if (code < 0)
        return code;
    memcpy((char *)kernel->room + sizeof(vhosti_kernel_config), bytes, size);
    return vhosti_kernel_ioctl(kernel, 0, "VDPA_SET_CONFIG", VHOSTI_KERNEL_VDPA_SET_CONFIG,
                               kernel->room);
}

static int vhosti_kernel_vdpa_set_config_call(void *backend, int fd)
{
    int32_t value = fd; /* Linux 5.7 never calls */
    int code = vhosti_kernel_ask((vhost_kernel *)backend, 0, "VDPA_SET_CONFIG_CALL",
                                 VHOSTI_KERNEL_VDPA_CONFIG_CALL, &value);
    return code == -ENOTSUP ? 0 : code;
}

/* ---- groups and address spaces ---- */

VHOST_KERNEL_DEF int vhost_kernel_vdpa_get_group(vhost_kernel *kernel, uint32_t queue,
                                                 uint32_t *group)
{
    vhosti_kernel_state state;
    int code;
    state.index = queue;
    state.number = 0;
    code = vhost_kernel_ioctl(kernel, "VDPA_GET_VRING_GROUP", VHOSTI_KERNEL_VDPA_GET_GROUP, &state);
    if (code >= 0)
        *group = state.number;
    return code;
}

VHOST_KERNEL_DEF int vhost_kernel_vdpa_set_space(vhost_kernel *kernel, uint32_t group,
                                                 uint32_t space)
{
    if (kernel->spaces == NULL || group >= kernel->vdpa.group_count ||
        space >= kernel->vdpa.space_count)
        return VHOSTI_KERNEL_FAIL(kernel, -EINVAL, VHOST_WHY_ARGUMENT, "group or address space", 0);
    if (kernel->phase == VHOSTI_KERNEL_RUNNING)
        return VHOSTI_KERNEL_FAIL(kernel, -EBUSY, VHOST_WHY_STATE, "address space of a group", 0);
    kernel->spaces[group] = space;
    return 0;
}

/* Space 0 is the VM's. */
static int vhosti_kernel_vdpa_check_space(vhost_kernel *kernel, uint32_t space, uint64_t iova,
                                          uint64_t size)
{
    if (kernel->fd_count == 0 || space == 0 || space >= kernel->vdpa.space_count)
        return VHOSTI_KERNEL_FAIL(kernel, -EINVAL, VHOST_WHY_ARGUMENT, "address space", 0);
    if (size == 0 || (iova | size) % VHOST_PAGE != 0 || iova + (size - 1) < iova)
        return VHOSTI_KERNEL_FAIL(kernel, -EINVAL, VHOST_WHY_ARGUMENT, "range of a map", 0);
    if (!kernel->fds[0].owned)
        return VHOSTI_KERNEL_FAIL(kernel, -EBUSY, VHOST_WHY_STATE, "map before init", 0);
    return 0;
}

VHOST_KERNEL_DEF int vhost_kernel_vdpa_map(vhost_kernel *kernel, uint32_t space, uint64_t iova,
                                           uint64_t size, void *host, uint8_t permit)
{
    int code = vhosti_kernel_vdpa_check_space(kernel, space, iova, size);
    return code < 0 ? code : vhosti_kernel_vdpa_do_map(kernel, space, iova, size, host, permit);
}

VHOST_KERNEL_DEF int vhost_kernel_vdpa_unmap(vhost_kernel *kernel, uint32_t space, uint64_t iova,
                                             uint64_t size)
{
    int code = vhosti_kernel_vdpa_check_space(kernel, space, iova, size);
    return code < 0 ? code : vhosti_kernel_vdpa_order(kernel, VHOST_TLB_UNMAP, space, iova, size);
}

/* ---- doorbells ---- */

VHOST_KERNEL_DEF int vhost_kernel_vdpa_map_doorbell(vhost_kernel *kernel, uint32_t queue,
                                                    void **page)
{
    const vhost_kernel_options *options = &kernel->options;
    size_t size = (size_t)sysconf(_SC_PAGESIZE);
    int code;
    if (vhosti_kernel_fd_number(kernel, 0) < 0 || (kernel->rings != 0 && queue >= kernel->rings))
        return VHOSTI_KERNEL_FAIL(kernel, -EINVAL, VHOST_WHY_ARGUMENT, "doorbell", 0);
    code =
        options->calls->map(kernel->fds[0].fd, queue * (uint64_t)size, size, page, options->user);
    if (code >= 0)
        return 0;
    if (code == -ENOMEM)
        return VHOSTI_KERNEL_FAIL(kernel, code, VHOST_WHY_MEMORY, "doorbell", 0);
    return VHOSTI_KERNEL_FAIL(kernel, -ENOTSUP, VHOST_WHY_NOT_SUPPORTED, "doorbell", 0);
}

VHOST_KERNEL_DEF int vhost_kernel_vdpa_unmap_doorbell(vhost_kernel *kernel, void *page)
{
    const vhost_kernel_options *options = &kernel->options;
    int code = -EINVAL;
    if (options->calls != NULL) /* a zeroed object has mapped nothing */
        code = options->calls->unmap(page, (size_t)sysconf(_SC_PAGESIZE), options->user);
    if (code >= 0)
        return 0;
    return VHOSTI_KERNEL_FAIL(kernel, code, VHOST_WHY_ARGUMENT, "unmapping a doorbell", 0);
}

/* ---- open, close ---- */

/* A path that is opened again may lead to another device by now. */
static int vhosti_kernel_vdpa_check_identity(vhost_kernel *kernel)
{
    vhost_kernel_vdpa before = kernel->vdpa;
    int code = vhosti_kernel_vdpa_identify(kernel);
    bool same = kernel->vdpa.device_id == before.device_id &&
                kernel->vdpa.queue_count == before.queue_count &&
                kernel->vdpa.config_size == before.config_size &&
                kernel->vdpa.group_count == before.group_count;
    if (code >= 0 && same)
        return 0;
    kernel->vdpa = before;
    kernel->rings = before.queue_count;
    return code < 0 ? code
                    : VHOSTI_KERNEL_FAIL(kernel, -ENODEV, VHOST_WHY_BACKEND_LESS,
                                         "another device than before", 0);
}

static int vhosti_kernel_vdpa_op_open(void *backend, vhost_device *device, vhost_facts *facts)
{
    vhost_kernel *kernel = (vhost_kernel *)backend;
    bool anew = vhosti_kernel_fd_number(kernel, 0) < 0;
    int code = vhosti_kernel_op_open(backend, device, facts);
    if (code >= 0 && anew)
        code = vhosti_kernel_vdpa_check_identity(kernel);
    if (code >= 0)
        code = vhosti_kernel_set_backend_features(kernel);
    if (code < 0)
        vhosti_kernel_close_path(kernel);
    return code;
}

/* Somebody else may hold the fd open: nothing of the guest's memory stays with it. */
static void vhosti_kernel_vdpa_let_go(vhost_kernel *kernel)
{
    vhost_error why = kernel->last_error;
    if (vhosti_kernel_fd_number(kernel, 0) < 0)
        return;
    (void)vhosti_kernel_vdpa_reset(kernel);
    (void)vhosti_kernel_vdpa_unmap_all(kernel);
    kernel->last_error = why;
}

static void vhosti_kernel_vdpa_op_close(void *backend)
{
    vhost_kernel *kernel = (vhost_kernel *)backend;
    vhosti_kernel_vdpa_let_go(kernel);
    vhosti_kernel_close_path(kernel);
}

static void vhosti_kernel_vdpa_op_sever(void *backend)
{
    vhost_kernel *kernel = (vhost_kernel *)backend;
    vhosti_kernel_vdpa_let_go(kernel);
    vhosti_kernel_close_fds(kernel);
}

/* >>ops --------------------------------------------------------------------------------------- */

static const vhost_backend_ops vhosti_kernel_net_operations = {
    vhosti_kernel_op_open,
    vhosti_kernel_op_close,
    vhosti_kernel_net_sever,
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
    vhosti_kernel_net_enable,
    NULL, /* set_running */
    vhosti_kernel_op_get_ring_base,
    NULL, /* reset: start sends everything anew */
    NULL, /* get_config: the VMM's own */
    NULL, /* set_config */
    NULL, /* fence: an ioctl is done when it returns */
    vhosti_kernel_op_last_error,
    NULL, /* push */
};

static const vhost_backend_ops vhosti_kernel_whole_operations = {
    vhosti_kernel_op_open,
    vhosti_kernel_op_close,
    vhosti_kernel_op_sever,
    vhosti_kernel_op_poll_fds,
    vhosti_kernel_op_process,
    NULL, /* recall_base */
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
    NULL, /* enable_ring: all together */
    vhosti_kernel_op_set_running,
    vhosti_kernel_op_get_ring_base,
    vhosti_kernel_op_reset,
    NULL, /* get_config */
    NULL, /* set_config */
    NULL, /* fence */
    vhosti_kernel_op_last_error,
    NULL, /* push */
};

static const vhost_backend_ops vhosti_kernel_vdpa_operations = {
    vhosti_kernel_vdpa_op_open,
    vhosti_kernel_vdpa_op_close,
    vhosti_kernel_vdpa_op_sever,
    NULL, /* poll_fds: it has nothing to say */
    NULL, /* process */
    NULL, /* recall_base */
    vhosti_kernel_vdpa_set_features,
    vhosti_kernel_vdpa_set_table,
    NULL, /* set_log: it cannot */
    NULL, /* iotlb_send: it never misses */
    vhosti_kernel_op_set_ring_call,
    vhosti_kernel_op_set_ring_error,
    vhosti_kernel_vdpa_set_ring_size,
    vhosti_kernel_vdpa_set_ring_base,
    NULL, /* set_ring_endian */
    vhosti_kernel_vdpa_set_ring_addresses,
    NULL, /* set_ring_busy_loop */
    NULL, /* set_inflight */
    vhosti_kernel_op_set_ring_kick,
    vhosti_kernel_vdpa_set_config_call,
    vhosti_kernel_vdpa_enable,
    vhosti_kernel_op_set_running,
    vhosti_kernel_vdpa_get_ring_base,
    vhosti_kernel_vdpa_op_reset,
    vhosti_kernel_vdpa_get_config,
    vhosti_kernel_vdpa_set_config,
    NULL, /* fence */
    vhosti_kernel_op_last_error,
    NULL, /* push */
};

/* ---- kinds ---- */

static const struct vhosti_kernel_kind vhosti_kernel_net = {
    "vhost-net",
    &vhosti_kernel_net_operations,
    VHOST_PROFILE_BY_HOST,
    VHOSTI_KERNEL_NET_RINGS,
    1, /* the transmit queue gets a worker of its own */
    VHOSTI_KERNEL_NET_BITS,
    VHOSTI_KERNEL_IOTLB_MSG_V2,
    true,
    NULL,
    NULL,
};

/* Linux 6.1 and 6.12 log the used rings of vsock and scsi, and no buffer. */
static const struct vhosti_kernel_kind vhosti_kernel_vsock = {
    "vhost-vsock",
    &vhosti_kernel_whole_operations,
    VHOST_PROFILE_BY_HOST,
    VHOSTI_KERNEL_VSOCK_RINGS,
    0,
    UINT64_MAX,
    VHOSTI_KERNEL_IOTLB_MSG_V2,
    false,
    vhosti_kernel_vsock_furnish,
    vhosti_kernel_vsock_run,
};

static const struct vhosti_kernel_kind vhosti_kernel_scsi = {
    "vhost-scsi",
    &vhosti_kernel_whole_operations,
    VHOST_PROFILE_BY_HOST,
    0,
    VHOSTI_KERNEL_SCSI_RINGS + 1, /* of requests, the first keeps the owner's */
    UINT64_MAX,
    VHOSTI_KERNEL_IOTLB_MSG_V2,
    false,
    vhosti_kernel_scsi_furnish,
    vhosti_kernel_scsi_run,
};

static const struct vhosti_kernel_kind vhosti_kernel_vdpa = {
    "vhost-vdpa",
    &vhosti_kernel_vdpa_operations,
    VHOST_PROFILE_MAPS,
    0,
    0,
    UINT64_MAX,
    VHOSTI_KERNEL_VDPA_WANTED,
    false,
    NULL,
    vhosti_kernel_vdpa_run,
};

static const struct vhosti_kernel_kind vhosti_kernel_other = {
    "vhost",
    &vhosti_kernel_whole_operations,
    VHOST_PROFILE_BY_HOST,
    0,
    1,
    UINT64_MAX,
    VHOSTI_KERNEL_IOTLB_MSG_V2,
    false, /* nobody knows */
    NULL,
    vhosti_kernel_other_run,
};

VHOST_KERNEL_DEF const vhost_backend_ops *vhost_kernel_ops(const vhost_kernel *kernel)
{
    return kernel->kind != NULL ? kernel->kind->ops : &vhosti_kernel_net_operations;
}

/* ---- open, close ---- */

static void vhosti_kernel_resolve_options(vhost_kernel *kernel, const vhost_kernel_options *options)
{
    if (options != NULL)
        kernel->options = *options;
    if (kernel->options.calls == NULL)
        kernel->options.calls = &vhosti_kernel_system;
    if (kernel->options.allocate == NULL)
        kernel->options.allocate = vhosti_kernel_sys_allocate;
}

static int vhosti_kernel_set_path(vhost_kernel *kernel, const char *path)
{
    size_t length = strlen(path);
    if (length == 0 || length >= sizeof kernel->path)
        return VHOSTI_KERNEL_FAIL(kernel, -EINVAL, VHOST_WHY_ARGUMENT,
                                  "length of path, which is 1 to 63", -1);
    memcpy(kernel->path, path, length + 1);
    return 0;
}

/* Either a path to be opened, or fds that are open. */
static int vhosti_kernel_init(vhost_kernel *kernel, const struct vhosti_kernel_kind *kind,
                              const char *path, const int *fds, uint32_t count,
                              const vhost_kernel_options *options)
{
    uint32_t i;
    int code;
    memset(kernel, 0, sizeof *kernel);
    kernel->kind = kind;
    kernel->log_fd = -1;
    kernel->missed = -1;
    kernel->maps_unknown = true;
    vhosti_kernel_resolve_options(kernel, options);
    code = path != NULL ? vhosti_kernel_set_path(kernel, path) : 0;
    for (i = 0; i < count && path == NULL && code == 0; i++)
        if (fds[i] < 0)
            code = VHOSTI_KERNEL_FAIL(kernel, -EINVAL, VHOST_WHY_ARGUMENT, "a passed fd", i);
    if (code < 0)
        return code;
    kernel->fds = (vhosti_kernel_fd *)kernel->options.allocate(NULL, count * sizeof *kernel->fds,
                                                               kernel->options.user);
    if (kernel->fds == NULL)
        return VHOSTI_KERNEL_FAIL(kernel, -ENOMEM, VHOST_WHY_MEMORY, "fds", -1);
    memset(kernel->fds, 0, count * sizeof *kernel->fds);
    kernel->fd_count = count;
    kernel->rings = count * kind->fd_rings;
    for (i = 0; i < count; i++) {
        kernel->fds[i].fd = path == NULL ? fds[i] : -1;
        kernel->fds[i].tap = -1;
    }
    return 0;
}

static int vhosti_kernel_refuse(vhost_kernel *kernel, const struct vhosti_kernel_kind *kind,
                                const char *what)
{
    memset(kernel, 0, sizeof *kernel);
    kernel->kind = kind;
    return VHOSTI_KERNEL_FAIL(kernel, -EINVAL, VHOST_WHY_ARGUMENT, what, -1);
}

static int vhosti_kernel_net_init(vhost_kernel *kernel, const char *path, const int *fds,
                                  const int *taps, uint32_t pairs,
                                  const vhost_kernel_options *options)
{
    uint32_t i;
    int code;
    if (pairs == 0 || pairs > UINT16_MAX)
        return vhosti_kernel_refuse(kernel, &vhosti_kernel_net, "number of pairs");
    code = vhosti_kernel_init(kernel, &vhosti_kernel_net, path, fds, pairs, options);
    for (i = 0; i < pairs && code == 0 && taps != NULL; i++)
        kernel->fds[i].tap = taps[i];
    return code;
}

VHOST_KERNEL_DEF int vhost_kernel_net_open(vhost_kernel *kernel, const char *path, const int *taps,
                                           uint32_t pairs, const vhost_kernel_options *options)
{
    return vhosti_kernel_net_init(kernel, path, NULL, taps, pairs, options);
}

VHOST_KERNEL_DEF int vhost_kernel_net_open_fds(vhost_kernel *kernel, const int *fds,
                                               const int *taps, uint32_t pairs,
                                               const vhost_kernel_options *options)
{
    return vhosti_kernel_net_init(kernel, NULL, fds, taps, pairs, options);
}

static int vhosti_kernel_vsock_init(vhost_kernel *kernel, const char *path, int fd, uint64_t cid,
                                    const vhost_kernel_options *options)
{
    int code;
    if (cid < VHOSTI_KERNEL_VSOCK_FIRST_CID || cid >= UINT32_MAX)
        return vhosti_kernel_refuse(kernel, &vhosti_kernel_vsock,
                                    "guest CID, which is 3 to 0xfffffffe");
    code = vhosti_kernel_init(kernel, &vhosti_kernel_vsock, path, &fd, 1, options);
    kernel->cid = cid;
    return code;
}

VHOST_KERNEL_DEF int vhost_kernel_vsock_open(vhost_kernel *kernel, const char *path, uint64_t cid,
                                             const vhost_kernel_options *options)
{
    return vhosti_kernel_vsock_init(kernel, path, -1, cid, options);
}

VHOST_KERNEL_DEF int vhost_kernel_vsock_open_fd(vhost_kernel *kernel, int fd, uint64_t cid,
                                                const vhost_kernel_options *options)
{
    return vhosti_kernel_vsock_init(kernel, NULL, fd, cid, options);
}

static int vhosti_kernel_scsi_init(vhost_kernel *kernel, const char *path, int fd, const char *wwpn,
                                   const vhost_kernel_options *options)
{
    size_t length = strlen(wwpn);
    int code;
    if (length == 0 || length >= sizeof kernel->wwpn)
        return vhosti_kernel_refuse(kernel, &vhosti_kernel_scsi,
                                    "length of wwpn, which is 1 to 223");
    code = vhosti_kernel_init(kernel, &vhosti_kernel_scsi, path, &fd, 1, options);
    memcpy(kernel->wwpn, wwpn, length + 1);
    return code;
}

VHOST_KERNEL_DEF int vhost_kernel_scsi_open(vhost_kernel *kernel, const char *path,
                                            const char *wwpn, const vhost_kernel_options *options)
{
    return vhosti_kernel_scsi_init(kernel, path, -1, wwpn, options);
}

VHOST_KERNEL_DEF int vhost_kernel_scsi_open_fd(vhost_kernel *kernel, int fd, const char *wwpn,
                                               const vhost_kernel_options *options)
{
    return vhosti_kernel_scsi_init(kernel, NULL, fd, wwpn, options);
}

/* It must be opened to be known. */
static int vhosti_kernel_vdpa_init(vhost_kernel *kernel, const char *path, int fd,
                                   const vhost_kernel_options *options)
{
    int code = vhosti_kernel_init(kernel, &vhosti_kernel_vdpa, path, &fd, 1, options);
    size_t size;
    if (code == 0)
        code = vhosti_kernel_open_fd(kernel, 0);
    if (code >= 0)
        code = vhosti_kernel_vdpa_identify(kernel);
    size = kernel->vdpa.group_count * sizeof *kernel->spaces;
    if (code >= 0) {
        kernel->spaces = (uint32_t *)kernel->options.allocate(NULL, size, kernel->options.user);
        if (kernel->spaces == NULL)
            code = VHOSTI_KERNEL_FAIL(kernel, -ENOMEM, VHOST_WHY_MEMORY, "groups", -1);
    }
    if (code >= 0) {
        memset(kernel->spaces, 0, size);
        return 0;
    }
    if (path == NULL && kernel->fd_count > 0)
        kernel->fds[0].fd = -1; /* it is still the caller's */
    vhost_kernel_close(kernel);
    return code;
}

VHOST_KERNEL_DEF int vhost_kernel_vdpa_open(vhost_kernel *kernel, const char *path,
                                            const vhost_kernel_options *options)
{
    return vhosti_kernel_vdpa_init(kernel, path, -1, options);
}

VHOST_KERNEL_DEF int vhost_kernel_vdpa_open_fd(vhost_kernel *kernel, int fd,
                                               const vhost_kernel_options *options)
{
    return vhosti_kernel_vdpa_init(kernel, NULL, fd, options);
}

static int vhosti_kernel_other_init(vhost_kernel *kernel, const char *path, int fd, uint32_t queues,
                                    const vhost_kernel_options *options)
{
    int code;
    if (queues == 0)
        return vhosti_kernel_refuse(kernel, &vhosti_kernel_other, "number of queues");
    code = vhosti_kernel_init(kernel, &vhosti_kernel_other, path, &fd, 1, options);
    kernel->rings = queues;
    return code;
}

VHOST_KERNEL_DEF int vhost_kernel_open(vhost_kernel *kernel, const char *path, uint32_t queues,
                                       const vhost_kernel_options *options)
{
    return vhosti_kernel_other_init(kernel, path, -1, queues, options);
}

VHOST_KERNEL_DEF int vhost_kernel_open_fd(vhost_kernel *kernel, int fd, uint32_t queues,
                                          const vhost_kernel_options *options)
{
    return vhosti_kernel_other_init(kernel, NULL, fd, queues, options);
}

static void vhosti_kernel_free(const vhost_kernel *kernel, void *memory)
{
    if (memory != NULL)
        (void)kernel->options.allocate(memory, 0, kernel->options.user);
}

VHOST_KERNEL_DEF void vhost_kernel_close(vhost_kernel *kernel)
{
    vhosti_kernel_close_fds(kernel);
    vhosti_kernel_free(kernel, kernel->fds);
    vhosti_kernel_free(kernel, kernel->room);
    vhosti_kernel_free(kernel, kernel->queues);
    vhosti_kernel_free(kernel, kernel->spaces);
    kernel->fds = NULL;
    kernel->fd_count = kernel->rings = 0;
    kernel->room = NULL;
    kernel->room_size = 0;
    kernel->queues = NULL;
    kernel->queue_count = 0;
    kernel->spaces = NULL;
}

#ifdef __cplusplus
}
#endif
#endif /* VHOST_KERNEL_IMPLEMENTATION */
