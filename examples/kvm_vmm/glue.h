/* glue.h - a VMM's devices on vhost back-ends; all that touches vhost.h is in glue.c
   SPDX-License-Identifier: MIT OR Unlicense

   All under machine.lock. What fails says so itself. */
#ifndef KVM_GLUE_H_INCLUDED
#define KVM_GLUE_H_INCLUDED

#include "virtio.h"

#include <poll.h>

typedef struct glue_vm glue_vm;
typedef struct glue_device glue_device;

enum {
    GLUE_POLLS = 16
};

/* arriving: the guest will come by a migration. NULL: no memory. */
glue_vm *glue_open(kvm_machine *machine, bool arriving);
void glue_close(glue_vm *self);

/* Guest memory has changed; it is as in the machine now. */
bool glue_map(glue_vm *self);

/* ---- devices ---- */

bool glue_add_net(glue_vm *self, int tap); /* -1: it comes with glue_set_tap */
bool glue_add_vsock(glue_vm *self, uint32_t cid);
bool glue_add_disk(glue_vm *self, const char *socket);
bool glue_add_user_net(glue_vm *self, const char *socket);

/* The tap is borrowed until the glue is closed. */
int glue_tap(const glue_vm *self); /* -1: there is none */
bool glue_set_tap(glue_vm *self, int tap);

/* ---- what a transport needs ---- */

bool glue_accept(glue_device *self, uint64_t features);
bool glue_start(glue_device *self);
void glue_reset(glue_device *self);
bool glue_start_queue(glue_device *self, uint32_t queue);
void glue_stop_queue(glue_device *self, uint32_t queue);

/* ---- events ---- */

/* Fills in up to GLUE_POLLS of what is to be polled for, and for how many milliseconds (-1: for
   ever). Then, whatever came: glue_process. */
uint32_t glue_polls(const glue_vm *self, struct pollfd *polls, int *timeout);
void glue_process(glue_vm *self);

/* ---- migration ---- */

/* From start to stop, devices log the pages that they write. Those that cannot stand still. */
bool glue_log_start(glue_vm *self);
void glue_log_stop(glue_vm *self);

/* ORs what devices wrote into bits, as machine_dirty does. */
bool glue_dirty(glue_vm *self, const machine_ram *piece, uint64_t *bits);

/* Stops all devices: their registers then say where they stood. False: one of them cannot be
   moved. And starts them where their registers say, here or elsewhere. */
bool glue_pause(glue_vm *self);
bool glue_resume(glue_vm *self);

#endif
