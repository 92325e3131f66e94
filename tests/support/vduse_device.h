/* A small disk on VDUSE, for the kernel's vhost-vdpa. Tests use it as root, in a virtual machine
   with the modules vduse and vhost_vdpa, and the program vdpa.

      vduse_device_options options = vduse_device_defaults();
      vduse_device disk;
      vduse_device_start(&disk, &options);             open disk.path: /dev/vhost-vdpa-N
      vduse_device_refuse(&disk, VDUSE_DEVICE_FEATURES_OK, VDUSE_DEVICE_FAIL, 1, 1);
      ...
      vduse_device_stop(&disk);                        close disk.path before

   It runs in a process of its own, which sees no memory of the test but what is mapped for the
   device, and dies with the test. Its rings are split, without indirect descriptors and event
   indices; of a packed ring it serves nothing, but gives back the position that it was given.
   Calls return 0 or a negative errno, and none waits for longer than 15 seconds. */
#ifndef TEST_VDUSE_DEVICE_H
#define TEST_VDUSE_DEVICE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

enum {
    VDUSE_DEVICE_QUEUES = 16,
    VDUSE_DEVICE_CONFIG = 256, /* most bytes of config space */
    VDUSE_DEVICE_HELD = 256    /* most requests that it holds; it completes the others */
};

typedef struct vduse_device_options {
    const char *name;  /* no two at a time have the same */
    uint64_t features; /* without ACCESS_PLATFORM, the kernel takes no device */
    unsigned queues;
    uint16_t max_size;  /* of a ring */
    const void *config; /* or NULL: a disk's, with its capacity and number of queues */
    unsigned config_size;
    uint64_t disk_size;  /* bytes */
    unsigned patience_s; /* of the kernel, for an answer; 0: for ever */
} vduse_device_options;

typedef struct vduse_device {
    char name[64];
    char path[64]; /* of its vhost-vdpa device */

    /* Private. */
    int socket; /* or -1 */
    pid_t pid;  /* or 0 */
} vduse_device;

/* A disk of 1 MiB: VERSION_1, ACCESS_PLATFORM, FLUSH and MQ; 2 queues of 256; 30 seconds. */
vduse_device_options vduse_device_defaults(void);

/* If it fails, nothing is left of it. */
int vduse_device_start(vduse_device *self, const vduse_device_options *options);

/* Forgets what it was told to do, ends it, and frees everything. Says what failed first, but goes
   on: -ETIMEDOUT is a vhost-vdpa device that somebody has open; close it, and stop again. Harmless
   for one of zeros. */
int vduse_device_stop(vduse_device *self);

/* Its process is killed; stop comes after. */
int vduse_device_kill(vduse_device *self);

/* ---- what it counts ---- */

typedef enum vduse_device_counter {
    /* Messages of the kernel, by what they ask for: */
    VDUSE_DEVICE_RESET,       /* status 0 */
    VDUSE_DEVICE_STATUS,      /* one without the following bits, or with none that is new */
    VDUSE_DEVICE_FEATURES_OK, /* this bit is new */
    VDUSE_DEVICE_DRIVER_OK,   /* this bit is new */
    VDUSE_DEVICE_VQ_STATE,
    VDUSE_DEVICE_IOTLB,
    VDUSE_DEVICE_STEPS,

    VDUSE_DEVICE_TAKEN = VDUSE_DEVICE_STEPS, /* requests */
    VDUSE_DEVICE_COMPLETED,
    VDUSE_DEVICE_HELD_NOW,
    VDUSE_DEVICE_CALLS,      /* interrupts sent */
    VDUSE_DEVICE_MAPS,       /* of guest memory, made */
    VDUSE_DEVICE_FAULTS,     /* rings and requests whose memory was not there */
    VDUSE_DEVICE_BROKEN,     /* 1: the kernel has given it up */
    VDUSE_DEVICE_LAST_STATE, /* index that it answered to VQ_STATE */
    VDUSE_DEVICE_COUNTERS
} vduse_device_counter;

/* Returns a count, or a negative errno. */
int vduse_device_count(vduse_device *self, vduse_device_counter counter);

/* Waits until the counter is at least this; false: it was not within 10 seconds. */
bool vduse_device_await(vduse_device *self, vduse_device_counter counter, int at_least);

/* ---- what it can be made to do ---- */

typedef enum vduse_device_way {
    VDUSE_DEVICE_FAIL,  /* a negative answer; nothing is done */
    VDUSE_DEVICE_SILENT /* nothing is done, and no answer comes */
} vduse_device_way;

/* From the nth message of this step from now on (1: the next), so many times. Replaces what was
   told before about this step. */
int vduse_device_refuse(vduse_device *self, vduse_device_counter step, vduse_device_way way,
                        unsigned nth, unsigned times);

/* Whether it holds the requests that it takes from now on; when it does not, it completes those it
   has held. A reset forgets them. */
int vduse_device_hold(vduse_device *self, bool holds);

/* Completes one of them: 0 is the oldest. -ENOENT: there is none. */
int vduse_device_release(vduse_device *self, unsigned nth);

/* Changes its config space, and tells the driver. */
int vduse_device_set_config(vduse_device *self, unsigned offset, const void *bytes, unsigned size);

#endif
