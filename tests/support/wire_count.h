/* How many messages a program of ours sends to its back-end, and how often it waits: it runs itself
   once more, into which build/shim/wire_shim.so is loaded. See its head for what is counted.

      in main            if (wire_queues() > 0) { live a life with so many queues, alone }
      in that life       wire_end_phase("connect") ...
      in the test        wire_count counts[] = {{"connect", 0, 0}, ...};
                         fault = wire_count_life(8, NULL, counts, 4); */
#ifndef TEST_WIRE_COUNT_H
#define TEST_WIRE_COUNT_H

#include <stdbool.h>

typedef struct wire_count {
    const char *phase;
    unsigned messages, waits;
} wire_count;

/* What the life is told: its number of queues, and the socket of its back-end or NULL. Fills in the
   counts of its phases, which are in order. Returns NULL, or what is wrong. */
const char *wire_count_life(unsigned queues, const char *socket, wire_count *counts,
                            unsigned phases);

/* What it was told; without a life 0. */
unsigned wire_queues(void);
const char *wire_socket(void);

/* Returns false if nobody counts. */
bool wire_end_phase(const char *name);

#endif
