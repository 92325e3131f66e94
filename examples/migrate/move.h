/* move.h - the two sides of a migration
   SPDX-License-Identifier: MIT OR Unlicense

   Each runs in a process of its own, and tells what it does on the standard output. They share a
   world and a stream, and nothing else. */
#ifndef MOVE_H_INCLUDED
#define MOVE_H_INCLUDED

#include "machine.h"

enum {
    MOVE_REQUESTS = 300, /* that each device does before, and after */
    MOVE_RUSH = 8        /* requests that a driver begins at a time, when nothing holds it back */
};

typedef struct move_options {
    bool postcopy; /* memory follows when it is touched */
    bool quick;
} move_options;

typedef struct move_outcome { /* what the destination says */
    char failure[480];        /* empty: none */
    uint64_t done;            /* requests, before and after */
    uint64_t resent;          /* frames, where a back-end may lose some */
    uint64_t pages;           /* of memory */
    double downtime;          /* ms */
} move_outcome;

/* Returns what the destination said, or whatever failed here. */
move_outcome move_source(const machine_world *world, const move_options *options, int stream,
                         report *to);

/* Returns whether it went well. */
bool move_destination(const machine_world *world, const move_options *options, int stream);

#endif
