/* A real vhost-user back-end as a child process: tests/support/real_backend.sh knows the programs
   and their options. It dies with the thread that started it, however that ends.

      real_backend disk;
      real_backend_open(&disk);
      real_backend_start(&disk, "blk", "queues=4");    connect to disk.socket
      real_backend_end(&disk, SIGKILL);                it may be started again, on the same socket
      real_backend_close(&disk);

   A program that uses this names its back-ends in a comment, as in "backends: blk net" (see the
   Makefile), and runs in the top folder of the project. */
#ifndef TEST_REAL_BACKEND_H
#define TEST_REAL_BACKEND_H

#include <stdbool.h>
#include <sys/types.h>

typedef struct real_backend {
    char folder[48]; /* fresh, and its own */
    char socket[64]; /* there: where it listens (with client=1: where the test does) */
    pid_t pid;       /* or 0: none runs */
    int input;       /* the other end of its standard input: testpmd ends when this is closed */
} real_backend;

/* Makes the folder. */
bool real_backend_open(real_backend *self);

/* Returns when the back-end listens (with client=1: at once). If it ends instead, what it said goes
   to the standard error. */
bool real_backend_start(real_backend *self, const char *name, const char *options);

/* It has not ended by itself. */
bool real_backend_runs(const real_backend *self);

/* Sends the signal, and SIGKILL to what does not end by it. */
void real_backend_end(real_backend *self, int signal);

/* Ends it with SIGTERM if it runs, and removes the folder with all that is in it. */
void real_backend_close(real_backend *self);

#endif
