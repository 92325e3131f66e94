/* scsi_driver.h - the driver of a virtio-scsi device, in user space, with many request queues
   SPDX-License-Identifier: MIT OR Unlicense

   A virtio-scsi device has a control queue, an event queue, and after them as many queues for
   requests as one likes. A request is a chain of two or three pieces: a header with the LUN and the
   SCSI command, data for the device if there is any, a response, and data from the device if there
   is any. Each queue has memory of its own in the guest, with a buffer for each request. */
#ifndef SCSI_DRIVER_H_INCLUDED
#define SCSI_DRIVER_H_INCLUDED

#include "split_ring.h"

enum {
    SCSI_CONTROL = 0, /* queues */
    SCSI_EVENT = 1,
    SCSI_FIRST = 2, /* of those for requests */
    SCSI_QUEUES = 6,
    SCSI_DEPTH = 16,         /* requests in flight in each queue, at most */
    SCSI_BUFFER = 64 * 1024, /* bytes of data in a request, at most */
    SCSI_BUFFERS = 0x3000,   /* where the first one is in the memory of a queue */
    SCSI_RESPONSES = 0x2000, /* and the responses: below the buffers */
    SCSI_QUEUE_BYTES = SCSI_BUFFERS + SCSI_DEPTH * SCSI_BUFFER,
    SCSI_BLOCK = 512 /* bytes on the disk */
};

enum { /* features of virtio-scsi */
    SCSI_FEATURE_HOTPLUG = 1
};

typedef enum scsi_flow { /* of the data of a request */
    SCSI_NO_DATA,
    SCSI_TO_DEVICE,
    SCSI_FROM_DEVICE
} scsi_flow;

typedef struct scsi_request {
    /* To be filled in; the functions for commands do it. */
    uint8_t target, lun;
    uint8_t command[32];
    scsi_flow flow;
    uint32_t size; /* bytes of data */
    uint64_t gpa;  /* of the data: its own buffer, if it is not set to another place */

    /* How it went, when it is collected. */
    uint8_t response; /* of virtio: 0 is good, 3 is a target that is not there */
    uint8_t status;   /* of SCSI: 0 is good, 2 comes with sense */
    uint8_t sense;    /* key of the sense; 5: the request is nonsense, 6: something has happened */

    /* Read only. */
    uint8_t *data; /* its own buffer: SCSI_BUFFER bytes in guest memory */
    bool in_flight;
} scsi_request;

typedef struct scsi_queue {
    split_ring ring;
    int kick;           /* eventfd: written by the driver */
    int call;           /* eventfd: readable when the device has something to say */
    uint16_t kicked;    /* chains that the device has when it was kicked last */
    uint16_t in_flight; /* requests that the device has */
    uint64_t gpa;       /* of this queue's memory */
    uint8_t *memory;
    scsi_request requests[SCSI_DEPTH];
} scsi_queue;

typedef struct scsi_event { /* what happened, as in the virtio specification */
    uint32_t event;         /* 1: a LUN came or went; its highest bit: others were missed */
    uint8_t lun;
    uint32_t reason; /* 1: it came, 2: it went */
} scsi_event;

typedef struct scsi_driver {
    int count; /* queues, all kinds */
    int depth; /* requests in flight in each queue */
    scsi_queue queues[SCSI_QUEUES];
    uint64_t done;     /* requests that came back, ever */
    const char *fault; /* what the device did that no device may do, or NULL */
} scsi_driver;

/* Lays out `count` queues in guest memory, at `gpa`: SCSI_QUEUE_BYTES each. memory: where gpa 0 is.
   depth: a power of two; a ring has four descriptors for each request. The event queue is empty.
   Returns 0 or a negative errno. */
int scsi_driver_open(scsi_driver *driver, void *memory, uint64_t gpa, int count, int depth);

/* Harmless for a driver of zeros. */
void scsi_driver_close(scsi_driver *driver);

/* ---- requests ---- */

/* A request to LUN 0 that is not in flight, to be filled in and then submitted; NULL: all are. */
scsi_request *scsi_driver_idle(scsi_driver *driver, int queue);

void scsi_inquiry(scsi_request *request, uint32_t size);
void scsi_test_unit_ready(scsi_request *request);
void scsi_read_capacity(scsi_request *request);
void scsi_read(scsi_request *request, uint64_t place, uint32_t size); /* bytes, of whole blocks */
void scsi_write(scsi_request *request, uint64_t place, uint32_t size);

void scsi_driver_submit(scsi_driver *driver, int queue, scsi_request *request);

/* Kicks the device for all that was submitted since the last time, where it wants to be kicked. */
void scsi_driver_kick(scsi_driver *driver);

/* The interrupt handler of a queue: returns whether there was a call, and forgets it. Then all that
   is done has to be taken. */
bool scsi_driver_called(scsi_driver *driver, int queue);

/* A request that is done, until the next one is submitted; NULL: none. */
scsi_request *scsi_driver_collect(scsi_driver *driver, int queue);

bool scsi_good(const scsi_request *request);
uint64_t scsi_capacity(const scsi_request *request); /* bytes, from what scsi_read_capacity got */

/* ---- the other two queues ---- */

/* Asks for a reset of a LUN. The answer of the device: 10 is yes, 11 is no; one at a time. */
void scsi_driver_reset_lun(scsi_driver *driver, uint8_t lun);
bool scsi_driver_answer(scsi_driver *driver, uint8_t *answer);

/* Gives the device room for `count` events. Then: takes one; its room is not given back. */
void scsi_driver_expect(scsi_driver *driver, int count);
bool scsi_driver_event(scsi_driver *driver, scsi_event *event);

#endif
