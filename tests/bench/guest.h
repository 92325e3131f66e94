/* A VM whose memory is only addresses, with devices on a back-end that does nothing at all: what is
   left to measure is the library. */
#ifndef TEST_BENCH_GUEST_H
#define TEST_BENCH_GUEST_H

#include "vhost.h"

enum {
    GUEST_DEVICES = 32,
    GUEST_QUEUES = 64 /* of one device */
};

typedef struct guest {
    vhost_vm vm;
    vhost_backing ram;
    vhost_section *sections; /* of one size, with a hole of some pages after each if many */
    uint32_t section_count;
    uint64_t stride; /* from one section to the next, bytes */
    vhost_device device[GUEST_DEVICES];
    vhost_queue queue[GUEST_DEVICES][GUEST_QUEUES];
    unsigned device_count;
    unsigned allocations; /* since someone put 0 here */
} guest;

/* All devices run. Ends the program if something fails: a bench has no use for errors. */
void guest_open(guest *self, uint64_t size, uint32_t sections, unsigned devices, unsigned queues);
void guest_close(guest *self);

/* Adds every section, and commits. */
void guest_commit(guest *self);

/* The words of the log that the back-ends write to. */
unsigned long *guest_log(void);

void guest_must(int code, const char *what);

#endif
