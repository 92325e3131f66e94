/* storage_daemon.h - a real vhost-user back-end to try things on: qemu-storage-daemon
   SPDX-License-Identifier: MIT OR Unlicense

   It has a folder of its own, for its socket and, mostly, for the file that is its disk. All of it
   is gone after close. */
#ifndef STORAGE_DAEMON_H_INCLUDED
#define STORAGE_DAEMON_H_INCLUDED

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

typedef struct storage_daemon {
    pid_t pid;       /* 0: it does not run */
    int queues;      /* that it offers */
    char folder[64]; /* empty: there is none */
    char disk[80];   /* the file; */
    bool owns_disk;  /* it is in the folder */
    char socket[80]; /* where it listens */
    char ready[80];  /* a file that is there when it listens */
} storage_daemon;

/* What to say where it is not installed. */
extern const char storage_daemon_remedy[];

/* Makes a disk of `size` bytes, all zeros, and starts the daemon on it. Returns when it listens: 0;
   -ENOENT: it is not installed; -ECHILD: it ended, having said why; or another negative errno. */
int storage_daemon_open(storage_daemon *daemon, uint64_t size, int queues);

/* The same on a file that is there, and that others may use as well: they are to take turns. */
int storage_daemon_open_on(storage_daemon *daemon, const char *disk, int queues);

/* Starts it again, on the same disk. */
int storage_daemon_start(storage_daemon *daemon);

/* Whether its disk has these bytes at that place: by a look into the file. */
bool storage_daemon_has(const storage_daemon *daemon, uint64_t place, const void *bytes,
                        uint64_t size);

/* Ends it at once: it has no time to say goodbye. */
void storage_daemon_kill(storage_daemon *daemon);

/* Harmless for an object of zeros. */
void storage_daemon_close(storage_daemon *daemon);

#endif
