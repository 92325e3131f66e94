/* glue.h - a VMM's devices on vhost back-ends; all that touches vhost.h is in glue.c
   SPDX-License-Identifier: MIT OR Unlicense

   All under machine.lock. What fails says so itself. */
#ifndef KVM_GLUE_H_INCLUDED
#define KVM_GLUE_H_INCLUDED

#include "virtio.h"

typedef struct glue_vm glue_vm;
typedef struct glue_device glue_device;

enum {
    GLUE_POLLS = 32 /* more than there are */
};

/* NULL: no memory. */
glue_vm *glue_open(kvm_machine *machine);
void glue_close(glue_vm *self);

/* Guest memory is now as in the machine. */
bool glue_map(glue_vm *self);

/* ---- devices; arriving: the guest will come by a migration ----------------------------------- */

bool glue_add_net(glue_vm *self); /* on machine.tap */
bool glue_add_vsock(glue_vm *self, uint64_t cid, bool arriving);
bool glue_add_disk(glue_vm *self, const char *socket);
bool glue_add_user_net(glue_vm *self, const char *socket);

/* ---- what a transport needs ------------------------------------------------------------------ */

bool glue_accept(glue_device *self, uint64_t features);
bool glue_start(glue_device *self);
void glue_reset(glue_device *self);
bool glue_run_queue(glue_device *self, uint32_t queue, bool on);

/* ---- events: poll for these, so many milliseconds (-1: for ever), then process --------------- */

uint32_t glue_polls(const glue_vm *self, int fds[GLUE_POLLS], int *timeout);
void glue_process(glue_vm *self);

/* ---- migration ------------------------------------------------------------------------------- */

/* While it is on, devices log the pages that they write. Those that cannot stand still. */
bool glue_log(glue_vm *self, bool on);

/* ORs what devices wrote into bits, as machine_dirty does. */
bool glue_dirty(glue_vm *self, const machine_ram *ram, uint64_t *bits);

/* Stops a device: its registers then say where it stood. False: it cannot be moved. And starts it
   where its registers say, here or elsewhere; harmless if it runs. */
bool glue_pause(glue_device *self);
bool glue_resume(glue_device *self);

#endif
