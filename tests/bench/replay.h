/* What a vhost-user front-end of this process sends, written down and said again: once as
   front-ends in use do, which wait message by message, and once all at a go, which is as fast as
   the back-end can listen. */
#ifndef TEST_BENCH_REPLAY_H
#define TEST_BENCH_REPLAY_H

#include <stdbool.h>

enum {
    REPLAY_PHASES = 8
};

typedef struct replay replay;

/* Until the end, what this thread sends on UNIX sockets is kept, with copies of its fds. */
replay *replay_begin(void);
void replay_next_phase(replay *self);
void replay_end(replay *self);
void replay_free(replay *self);

typedef enum replay_order {
    REPLAY_SYNCHRONOUS, /* memory, ring addresses, kick and call fds are acknowledged one by one */
    REPLAY_AT_ONCE      /* as it was sent */
} replay_order;

/* Returns how often it waited, or -1: the connection failed. */
int replay_play(const replay *self, int fd, unsigned phase, replay_order order);

#endif
