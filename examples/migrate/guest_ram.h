/* guest_ram.h - the memory of a guest, and which pages the guest itself has written
   SPDX-License-Identifier: MIT OR Unlicense

   It is mapped twice. `host` is the VMM's mapping, the one that vhost is told of. `view` is what
   the guest sees: it stands at the same address in every process, as it would by the guest's own
   page tables, so that what a guest keeps there, pointers and all, is whole on another machine as
   soon as its bytes are there.
   While tracking is on, the first write to each page of the view is noticed: this stands for the
   hypervisor's own dirty log (of KVM). What devices write goes through other mappings, and is not
   noticed: for that there is vhost_log_sync. A system call that writes to a clean page of the view
   is no guest, and fails with EFAULT. */
#ifndef GUEST_RAM_H_INCLUDED
#define GUEST_RAM_H_INCLUDED

#include <stdbool.h>
#include <stdint.h>

#define GUEST_RAM_PAGE UINT64_C(4096) /* bytes */
#define GUEST_RAM_VIEW UINT64_C(0x200000000000)

typedef struct guest_ram {
    uint64_t size; /* bytes, from gpa 0 on */
    int fd;        /* a memfd */
    uint8_t *host;
    uint8_t *view; /* at GUEST_RAM_VIEW */
    bool *dirty;   /* for each page: the guest has written it */
    bool tracks;
} guest_ram;

/* Zeros. One at a time in a process. Returns 0 or a negative errno. */
int guest_ram_open(guest_ram *self, uint64_t size);

/* Harmless for an object of zeros. */
void guest_ram_close(guest_ram *self);

/* From now on, writes are noticed, by one thread; off: not any more. What was noticed before is
   forgotten when it is switched on. Returns 0 or a negative errno. */
int guest_ram_track(guest_ram *self, bool on);

/* Sets the bits of the pages of [gpa, gpa + size) that the guest has written since the last time.
   Bit 0 of bits[0] is the page at gpa 0. Returns how many there were. */
uint64_t guest_ram_sync(guest_ram *self, uint64_t gpa, uint64_t size, uint64_t *bits);

#endif
