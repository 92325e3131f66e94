/* devices.c - the kinds of devices: which back-end each has, and how it is opened
   SPDX-License-Identifier: MIT OR Unlicense */
#define _GNU_SOURCE
#include "arrival.h"
#include "machine.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define BIT(number) (UINT64_C(1) << (number))

enum {
    TIMEOUT = 20000 /* ms: a process that starts, under emulation, takes its time */
};

/* Of a back-end in another process, once its socket is there. */
static int connect_user(machine_device *self, const char *path, int fd)
{
    vhost_user_options options = {
        .user = self,
        .want = self->kind->want,
        .timeout_ms = TIMEOUT,
        .on_postcopy_region = arrival_on_region,
        .counts_pairs = self->kind->driver->queues == 2,
    };
    return path != NULL ? vhost_user_connect(&self->user, path, &options)
                        : vhost_user_open(&self->user, fd, &options);
}

/* ---- vhost-net ------------------------------------------------------------------------------- */

static int open_tap(machine_device *self, const machine_world *world)
{
    return vhost_kernel_net_open(&self->kernel, "/dev/vhost-net", &world->cable.fd, 1, NULL);
}

static void close_tap(machine_device *self)
{
    vhost_kernel_close(&self->kernel);
}

/* ---- dpdk-testpmd ---------------------------------------------------------------------------- */

static int open_loop(machine_device *self, const machine_world *world)
{
    (void)world;
    if (!real_backend_open(&self->loop) || !real_backend_start(&self->loop, "net", "postcopy=1"))
        return -ECHILD;
    return connect_user(self, self->loop.socket, -1);
}

static void close_loop(machine_device *self)
{
    vhost_user_close(&self->user);
    real_backend_close(&self->loop);
}

/* ---- qemu-storage-daemon --------------------------------------------------------------------- */

static int open_disk(machine_device *self, const machine_world *world)
{
    int code = storage_daemon_open_on(&self->daemon, world->disk[MACHINE_DISK], 1);
    return code < 0 ? code : connect_user(self, self->daemon.socket, -1);
}

static void close_disk(machine_device *self)
{
    vhost_user_close(&self->user);
    storage_daemon_close(&self->daemon);
}

/* ---- a disk of our own ----------------------------------------------------------------------- */

enum {
    HELD_EVERY = 3, /* requests: one of so many takes its time, */
    HELD_MS = 5     /* so that some are in flight whenever it stops */
};

static int open_own_disk(machine_device *self, const machine_world *world)
{
    int ends[2];
    user_backend_options options = user_backend_defaults(USER_BACKEND_DISK);
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0)
        return -errno;
    options.fd = ends[1];
    options.forks = true;
    options.disk_path = world->disk[MACHINE_OWN_DISK];
    self->own = user_backend_start(&options);
    if (self->own == NULL) {
        close(ends[0]);
        return -ECHILD;
    }
    user_backend_hold(self->own, HELD_EVERY, HELD_MS);
    return connect_user(self, NULL, ends[0]);
}

static void close_own_disk(machine_device *self)
{
    vhost_user_close(&self->user);
    if (self->own != NULL)
        user_backend_stop(self->own);
    self->own = NULL;
}

enum {
    STATE_SIZE = 100000 /* bytes: more than one message has, and no round number */
};

static uint8_t state_byte(uint32_t seed, uint32_t place)
{
    return (uint8_t)((seed + place) * UINT32_C(2654435761) >> 24);
}

static void fill_own_state(const machine_device *self)
{
    uint32_t *size;
    uint8_t *state = user_backend_state(self->own, &size);
    for (uint32_t i = 0; i < STATE_SIZE; i++)
        state[i] = state_byte(self->machine->world->seed, i);
    *size = STATE_SIZE;
}

static bool has_own_state(const machine_device *self)
{
    uint32_t *size;
    const uint8_t *state = user_backend_state(self->own, &size);
    bool same = *size == STATE_SIZE;
    for (uint32_t i = 0; i < STATE_SIZE && same; i++)
        same = state[i] == state_byte(self->machine->world->seed, i);
    return same;
}

const device_kind device_kinds[MACHINE_KINDS] = {
    [MACHINE_TAP] = {.name = "vhost-net",
                     .needs = "tap: no /dev/vhost-net",
                     .backend = "the kernel",
                     .driver = &guest_ping_driver,
                     .postcopy = true,
                     .open = open_tap,
                     .close = close_tap},
    [MACHINE_LOOP] = {.name = "vhost-user-net",
                      .needs = "loop: no dpdk-testpmd",
                      .backend = "dpdk-testpmd",
                      .driver = &guest_swap_driver,
                      .user = true,
                      .want = BIT(VHOST_USER_BIT_PAGEFAULT),
                      .postcopy = true,
                      .open = open_loop,
                      .close = close_loop},
    [MACHINE_DISK] = {.name = "vhost-user-blk",
                      .needs = "disk: no qemu-storage-daemon",
                      .drains = true,
                      .backend = "qemu-storage-daemon",
                      .driver = &guest_disk_driver,
                      .user = true,
                      .open = open_disk,
                      .close = close_disk},
    [MACHINE_OWN_DISK] = {.name = "vhost-user-blk",
                          .drains = true,
                          .backend = "our own",
                          .driver = &guest_disk_driver,
                          .user = true,
                          .want = BIT(VHOST_USER_BIT_STATE) | BIT(VHOST_USER_BIT_SKIP_DRAIN),
                          .open = open_own_disk,
                          .close = close_own_disk,
                          .fill_state = fill_own_state,
                          .has_state = has_own_state},
};
