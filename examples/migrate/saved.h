/* saved.h - a stopped device, as it goes from one VMM to another
   SPDX-License-Identifier: MIT OR Unlicense

   What belongs to a device of vhost.h: the features that the driver has accepted; of each queue the
   driver's registers and where the back-end stands in it; of a vhost-user back-end, if it has them,
   the record of its requests in flight, and its own state. */
#ifndef SAVED_H_INCLUDED
#define SAVED_H_INCLUDED

#include "machine.h"
#include "stream.h"

/* Sends it. The device is stopped. Returns 0 or a negative errno; -EINVAL: where it stands in a
   queue is only a guess. */
int saved_send(int stream, uint32_t place, machine_device *device);

/* Takes a record of it, STREAM_DEVICE, _RECORD or _STATE, for the next start of the same device. */
int saved_take(const stream_record *record, const void *bytes, machine_device *device);

#endif
