/* net_load.h - a station that sends numbered requests, and compares every answer byte by byte
   SPDX-License-Identifier: MIT OR Unlicense

   Each request has one answer. What is not answered in time is sent again, as every protocol does
   that is worth its name: that is counted, so that a network that loses nothing can be held to it.
   Time is the station's own: it stands while the station is not called, so that nothing is late
   only because a guest was stopped, or moved.
   All of it may stand in guest memory: nothing is allocated, and it goes on wherever that memory
   is, at the same address. */
#ifndef NET_LOAD_H_INCLUDED
#define NET_LOAD_H_INCLUDED

#include "net_driver.h"

enum {
    NET_LOAD_WINDOW = 64 /* requests without an answer, at most; a divisor of 65,536 */
};

typedef enum net_answer {
    NET_ANSWER_PING, /* ICMP echo, of a host that was asked by ARP first */
    NET_ANSWER_SWAP  /* the same frame, its MAC addresses swapped */
} net_answer;

typedef struct net_request {
    bool waits;  /* for its answer */
    double sent; /* when, the last time (net_load.time) */
} net_request;

typedef struct net_load {
    net_driver *driver;
    net_answer answer;
    station me, other; /* other.mac: learned by ARP, for a ping */
    uint32_t window;   /* at most NET_LOAD_WINDOW */
    double time;       /* seconds at work, */
    double seen;       /* counted until then (clock_now) */
    bool resolved;     /* other.mac is known */
    bool asked;        /* for it: */
    double asked_at;   /* the last time (time) */
    uint32_t next;     /* number of the next request */
    uint64_t answered; /* requests */
    uint64_t resent;   /* requests, each time */
    uint64_t doubled;  /* answers to what was answered before. If a request was sent again, there
                          may be two */
    const char *fault; /* what was wrong first, or NULL; see also driver->fault */
    net_request requests[NET_LOAD_WINDOW]; /* number n is at n modulo the size */
} net_load;

/* other->mac is of no account for a ping. */
void net_load_init(net_load *self, net_driver *driver, net_answer answer, const station *me,
                   const station *other, uint32_t window);

/* Sends up to `most` requests, and again what has waited too long, and kicks. To be called often:
   no more than some milliseconds count between two calls. */
void net_load_feed(net_load *self, uint32_t most);

/* Takes what has come, and the buffers of what was sent. Requests of others are answered: the next
   feed kicks for that. */
void net_load_take(net_load *self);

/* Requests without an answer. */
uint32_t net_load_waiting(const net_load *self);

#endif
