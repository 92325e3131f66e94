/* stream.h - what one VMM sends to another: records, each with some bytes
   SPDX-License-Identifier: MIT OR Unlicense */
#ifndef STREAM_H_INCLUDED
#define STREAM_H_INCLUDED

#include <stddef.h>
#include <stdint.h>

typedef enum stream_kind {
    STREAM_PAGE = 1, /* place: its gpa; one page */
    STREAM_PLUG,     /* place: bytes of memory that there are now */
    STREAM_STOPPED,  /* the source has: when (clock_now, the same for both) */
    STREAM_ABSENT,   /* postcopy: a set of pages that are old, and will come again */
    STREAM_DEVICE,   /* place: which; what is saved of it */
    STREAM_RECORD,   /* place: which; the record of its requests in flight */
    STREAM_STATE,    /* place: which; the back-end's own state */
    STREAM_HASHES,   /* of all pages, for the checker; place: microseconds that it took */
    STREAM_GO,       /* that was all: run; place: microseconds that the source has told of */
    STREAM_WANT,     /* backwards; postcopy: place: gpa of a page that is needed now */
    STREAM_DONE,     /* backwards: how it went */
    STREAM_KINDS
} stream_kind;

enum {
    STREAM_MOST = 1 << 20 /* bytes of a record */
};

typedef struct stream_record {
    uint32_t kind; /* stream_kind */
    uint32_t size; /* bytes that follow */
    uint64_t place;
} stream_record;

/* Both wait until all is sent, or is there. They return 0, or a negative errno; -EPIPE: the other
   side is gone; -EPROTO: no such record, or it has more bytes than there is room for. */
int stream_send(int fd, stream_kind kind, uint64_t place, const void *bytes, size_t size);
int stream_receive(int fd, stream_record *record, void *bytes, size_t room);

#endif
