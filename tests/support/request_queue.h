/* The driver of a queue for requests, one at a time: bytes for the device, and room for its answer.
   For devices that are not about speed. */
#ifndef TEST_REQUEST_QUEUE_H
#define TEST_REQUEST_QUEUE_H

#include "split_ring.h"
#include "user_machine.h"

enum {
    REQUEST_SIZE = 8192,                       /* bytes, at most, of a request */
    REQUEST_QUEUE_BYTES = 4096 + REQUEST_SIZE, /* of guest memory: the ring, and the request */
    REQUEST_RING_SIZE = 16                     /* descriptors */
};

typedef struct request_queue {
    split_ring ring;
    uint8_t *memory; /* of the guest, from gpa 0 on */
    uint64_t gpa;
    int kick, call;
} request_queue;

/* Lays it out at `gpa`, a page, in memory that is there, and describes it to the device, which does
   not run. Returns 0 or a negative errno. */
int request_queue_open(request_queue *self, user_machine *m, unsigned index, uint64_t gpa);

/* Harmless for a queue of zeros. The device has let go of it. */
void request_queue_close(request_queue *self);

/* Sends a request, which is in guest memory, and turns the machine until the device has done it.
   Returns how many bytes it wrote; -1: it did not do it, or cannot have written that many. */
int64_t request_queue_send(request_queue *self, user_machine *m, const ring_piece *pieces,
                           uint16_t count);

/* The same for a request from elsewhere, in one piece, to be answered at `answer`, `room` bytes. */
int64_t request_queue_ask(request_queue *self, user_machine *m, const void *request, uint32_t size,
                          uint64_t answer, uint32_t room);

#endif
