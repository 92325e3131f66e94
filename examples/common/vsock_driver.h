/* vsock_driver.h - the driver of a virtio-vsock device, in user space: streams over split rings
   SPDX-License-Identifier: MIT OR Unlicense

   All streams of a guest go through two rings, as packets: a header of 44 bytes and, in some, data.
   Each side tells the other in every header how much room it has for the stream, and how much of
   what it got was taken out by its reader (its credit): so neither sends what the other has no room
   for. A third ring brings events: after a migration, that the other ends are gone. */
#ifndef VSOCK_DRIVER_H_INCLUDED
#define VSOCK_DRIVER_H_INCLUDED

#include "split_ring.h"

enum {
    VSOCK_RECEIVE = 0, /* queues of virtio-vsock */
    VSOCK_TRANSMIT = 1,
    VSOCK_EVENT = 2,
    VSOCK_QUEUES = 3,
    VSOCK_RING_SIZE = 64, /* descriptors, and buffers of a queue */
    VSOCK_BUFFER = 4096,  /* bytes: the header and up to */
    VSOCK_HEADER = 44,
    VSOCK_DATA = VSOCK_BUFFER - VSOCK_HEADER,
    VSOCK_EVENT_SIZE = 4,
    VSOCK_STREAMS = 4, /* at a time */
    VSOCK_ROOM = 65536 /* bytes that a stream can hold until they are read */
};

typedef enum vsock_op {
    VSOCK_OP_REQUEST = 1,
    VSOCK_OP_RESPONSE = 2,
    VSOCK_OP_RST = 3,
    VSOCK_OP_SHUTDOWN = 4,
    VSOCK_OP_RW = 5,
    VSOCK_OP_CREDIT_UPDATE = 6,
    VSOCK_OP_CREDIT_REQUEST = 7
} vsock_op;

typedef struct vsock_header {
    uint64_t source_cid, target_cid;
    uint32_t source_port, target_port;
    uint32_t length; /* of the data that follows */
    uint16_t type;   /* 1: stream */
    uint16_t op;
    uint32_t flags; /* of SHUTDOWN: 1 no more is received, 2 no more is sent */
    uint32_t room;  /* of the sender, for data of this stream: in all, */
    uint32_t taken; /* and how much was ever taken out of it */
} vsock_header;

typedef enum vsock_state {
    VSOCK_FREE = 0,
    VSOCK_ASKING, /* for a connection */
    VSOCK_OPEN,
    VSOCK_ENDING, /* closed by us; the peer did not confirm it yet */
    VSOCK_ENDED   /* what came before may still be read */
} vsock_state;

typedef struct vsock_stream {
    vsock_state state;
    bool cut;   /* it ended, and nobody had closed it */
    bool fresh; /* opened by the peer, and not yet accepted */
    uint32_t port, peer_port;
    /* Bytes of this stream, ever, modulo 2^32. */
    uint32_t sent;
    uint32_t peer_taken, peer_room; /* as the peer said last */
    uint32_t received;
    uint32_t taken; /* of it, by vsock_read, */
    uint32_t told;  /* and what the peer knows of that */
    uint8_t bytes[VSOCK_ROOM];
} vsock_stream;

typedef struct vsock_layout { /* where in guest memory things shall stand; gpa */
    uint64_t ring[VSOCK_QUEUES];
    uint64_t buffers[VSOCK_QUEUES]; /* VSOCK_RING_SIZE * VSOCK_BUFFER bytes each */
} vsock_layout;

typedef struct vsock_driver {
    split_ring ring[VSOCK_QUEUES];
    int kick[VSOCK_QUEUES];        /* eventfds: written by the driver */
    int call[VSOCK_QUEUES];        /* eventfds: readable when the device has something to say */
    uint16_t kicked[VSOCK_QUEUES]; /* chains given to it at the last kick of a ring */
    uint8_t *memory;               /* guest memory, from gpa 0 on */
    vsock_layout layout;
    uint64_t cid;
    uint32_t listens; /* the port that the peer can connect to; 0: none */
    uint32_t next_port;
    uint16_t idle[VSOCK_RING_SIZE]; /* transmit buffers not in use */
    uint16_t idle_count;
    vsock_stream stream[VSOCK_STREAMS];
    unsigned packets[2];       /* received, and sent */
    unsigned transport_resets; /* events */
    const char *fault;         /* what the device did that no device may do, or NULL */
} vsock_driver;

/* Lays out the rings, and fills those that the device writes to. Returns 0 or a negative errno. */
int vsock_driver_open(vsock_driver *driver, void *memory, const vsock_layout *layout, uint64_t cid);

/* Harmless for a driver of zeros. */
void vsock_driver_close(vsock_driver *driver);

/* Kicks the device for all that it was given since the last time, if it wants to be kicked. */
void vsock_driver_kick(vsock_driver *driver);

/* The interrupt handler: takes all that is in the rings, if there was a call. */
void vsock_driver_serve(vsock_driver *driver);

/* Its parts: whether a queue called; one packet, false: there is none, or no buffer to answer from;
   the buffers of sent packets; events. */
bool vsock_driver_called(vsock_driver *driver, int queue);
bool vsock_driver_receive(vsock_driver *driver);
void vsock_driver_reclaim(vsock_driver *driver);
void vsock_driver_take_events(vsock_driver *driver);

/* A stream to a port of the host; it is OPEN when the host has answered. NULL: too many streams. */
vsock_stream *vsock_connect(vsock_driver *driver, uint32_t port);

/* The next stream that the host has opened to the port `listens`, or NULL. */
vsock_stream *vsock_accept(vsock_driver *driver);

/* Return how much was sent or read: as much as there is credit and buffers, or data, for now. A
   read also gives the peer credit for what was read before. */
size_t vsock_write(vsock_driver *driver, vsock_stream *stream, const void *bytes, size_t size);
size_t vsock_read(vsock_driver *driver, vsock_stream *stream, void *bytes, size_t size);

/* Sends SHUTDOWN. Returns false if there is no buffer for it at the moment. */
bool vsock_shutdown(vsock_driver *driver, vsock_stream *stream);

/* Forgets a stream that has ended. */
void vsock_release(vsock_stream *stream);

#endif
