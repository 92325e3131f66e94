/* machine.h - a small VMM: guest memory, and devices on real back-ends
   SPDX-License-Identifier: MIT OR Unlicense

   The same code is the source and the destination of a migration. What the two share - the network
   that they are plugged into, and the files behind their disks - is a world. */
#ifndef MACHINE_H_INCLUDED
#define MACHINE_H_INCLUDED

#include "guest.h"
#include "guest_ram.h"
#include "examples/common/report.h"
#include "examples/common/storage_daemon.h"
#include "examples/common/tap.h"
#include "tests/support/real_backend.h"
#include "tests/support/user_backend.h"
#include "vhost_kernel.h"
#include "vhost_user.h"

#define MACHINE_PATIENCE 20.0 /* seconds until what has not come is lost */

enum {
    MACHINE_DEVICES = 4,
    MACHINE_QUEUES = 2,
    MACHINE_STATE = 1 << 18 /* bytes of a back-end's own state, at most */
};

typedef enum machine_kind {
    MACHINE_TAP,      /* vhost-net, on a tap */
    MACHINE_LOOP,     /* vhost-user-net, on dpdk-testpmd */
    MACHINE_DISK,     /* vhost-user-blk, on qemu-storage-daemon */
    MACHINE_OWN_DISK, /* vhost-user-blk, on tests/support/user_backend.c: it leaves requests in
                         flight when it stops, and has a state of its own */
    MACHINE_KINDS
} machine_kind;

typedef struct machine_world {
    uint32_t seed;
    bool has[MACHINE_KINDS]; /* devices of this kind */
    tap cable;
    char folder[48];
    char disk[MACHINE_KINDS][80]; /* files; empty: none */
} machine_world;

typedef struct device_kind device_kind;

typedef struct machine_device {
    machine_kind number;
    const device_kind *kind;
    struct machine *machine;
    vhost_device device; /* CLOSED until machine_open */
    vhost_queue queues[MACHINE_QUEUES];
    uint64_t gpa;            /* of its driver's window */
    vhost_features accepted; /* by the driver */
    uint8_t *state;          /* of the back-end, to be loaded by the next start */
    size_t state_size, state_given;
    /* The back-end: one of these. */
    vhost_kernel kernel;
    vhost_user user;
    storage_daemon daemon;
    real_backend loop;
    user_backend *own;
} machine_device;

struct device_kind {
    const char *name;
    const char *backend;
    const guest_driver *driver;
    bool user;     /* vhost-user; else the kernel's */
    uint64_t want; /* protocol features of vhost-user */
    bool postcopy; /* it can wait for memory */
    bool drains;   /* all that it has is done in a moment: a disk */
    const char *needs;
    int (*open)(machine_device *self, const machine_world *world); /* 0 or a negative errno */
    void (*close)(machine_device *self);
    /* Gives the back-end a state of its own, or sees whether it has it; NULL: it has none. */
    void (*fill_state)(const machine_device *self);
    bool (*has_state)(const machine_device *self);
};

extern const device_kind device_kinds[MACHINE_KINDS];

typedef struct machine {
    const machine_world *world;
    report *report;
    guest_ram ram;
    uint64_t size; /* bytes of memory that the guest has now; the rest is not plugged in */
    vhost_vm vm;
    vhost_backing backing;
    vhost_backing module; /* far from the other memory; size 0: it is not there */
    machine_device devices[MACHINE_DEVICES];
    uint32_t count;
    uint64_t turns;
    struct arrival *arrival; /* postcopy */
} machine;

/* Memory, and devices that are connected, and do not run. Returns whether it went well: else the
   report has the reason. (The same is true of all that returns bool here.) */
bool machine_open(machine *self, const machine_world *world, report *to);

/* Harmless for an object of zeros. */
void machine_close(machine *self);

/* Boots the guest: its drivers lay out their rings. */
bool machine_boot(machine *self);

/* Starts a device with its queues and accepted features as they are. */
bool machine_start(machine_device *device);

/* Plugs memory in, up to so many bytes. */
bool machine_plug(machine *self, uint64_t size);

/* A module of memory, far away from the rest, comes or goes. The guest never uses it. */
bool machine_module(machine *self, bool there);

/* Has the guest use what was plugged in. */
void machine_use_plugged(machine *self);

/* The event loop, once around: the guest works, then the VMM waits, for a millisecond at most, for
   devices and interrupts. `most`: requests that each driver may begin. */
bool machine_turn(machine *self, uint32_t most);

/* Turns until each device has done so many requests more. */
bool machine_run(machine *self, uint64_t more, uint32_t most);

/* The guest's view of a device's driver. */
void *machine_driver(const machine_device *device);

/* What is done of a device's requests; what is not yet, of all devices. */
uint64_t machine_done(const machine_device *device);
uint32_t machine_waiting(const machine *self);

/* Whether a device has used all that is available, in all queues: a look into its split rings. */
bool machine_is_idle(const machine_device *device);

/* Whether a stop leaves requests in flight, on record. */
bool machine_leaves_in_flight(const machine_device *device);

/* Bytes of memory of a world's machines: at first, and when all is plugged in. */
uint64_t machine_size(const machine_world *world, bool all);

#endif
