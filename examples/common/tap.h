/* tap.h - a tap device, and a socket on the host's side of it (Linux)
   SPDX-License-Identifier: MIT OR Unlicense

   A tap is a network card whose cable ends in a file: what the kernel's network stack sends comes
   out of `fd`, what is written to `fd` comes in from the cable. */
#ifndef TAP_H_INCLUDED
#define TAP_H_INCLUDED

#include "frames.h"

typedef struct tap {
    int fd;             /* the end of the cable, for a back-end */
    int socket;         /* a packet socket: sends frames as the host, sees all that come in */
    char name[16];      /* of the network card */
    station host;       /* its addresses: the kernel answers ARP and ICMP echo for them */
    const char *failed; /* what could not be done, after a failure */
} tap;

/* Makes a tap with that address (of a /24 network) and net headers of `header_size` bytes, and
   switches it on. It lives in a network of its own, where the kernel lets us have one: nothing of
   the machine's own network is touched, and all of it is gone with the process.
   Returns 0 or a negative errno. */
int tap_open(tap *made, const uint8_t ip[4], int header_size);

void tap_close(tap *made);

#endif
