/* arrival.h - postcopy: memory that follows the guest, and is fetched when it is touched
   SPDX-License-Identifier: MIT OR Unlicense

   A thread takes the pages as they come, and says by the same stream which are wanted first. */
#ifndef ARRIVAL_H_INCLUDED
#define ARRIVAL_H_INCLUDED

#include "machine.h"
#include "page_faults.h"
#include "pages.h"

typedef struct arrival {
    int stream;
    page_faults faults;
    pthread_t thread;
    bool runs;
    int code;                   /* of the thread: 0 or a negative errno */
    int peers[MACHINE_DEVICES]; /* userfaultfds of back-ends; or -1 */
} arrival;

/* From now on these pages are absent, and are fetched. No device has started yet: their back-ends
   are told to wait for memory, too. */
bool arrival_begin(arrival *self, machine *to, int stream, pages *absent);

/* Waits until all of them are there; all is as usual again. */
bool arrival_end(arrival *self, machine *to);

/* For vhost_user_options.on_postcopy_region of a machine_device. */
int arrival_on_region(vhost_user *user, uint64_t gpa, uint64_t size, uint64_t base, void *device);

#endif
