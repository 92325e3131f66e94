/* migrate.h - a running guest goes to another process
   SPDX-License-Identifier: MIT OR Unlicense

   Over a UNIX socket, since the tap goes along. Not under machine.lock. */
#ifndef KVM_MIGRATE_H_INCLUDED
#define KVM_MIGRATE_H_INCLUDED

#include "glue.h"

/* True: the guest runs there now. False: it goes on here, if it can. */
bool migrate_send(kvm_machine *machine, glue_vm *glue, const char *path);

/* Waits at `path` for a guest, and starts it. */
bool migrate_receive(kvm_machine *machine, glue_vm *glue, const char *path);

#endif
