/* stream.c - what one VMM sends to another: records, each with some bytes
   SPDX-License-Identifier: MIT OR Unlicense */
#define _GNU_SOURCE
#include "stream.h"

#include <errno.h>
#include <sys/socket.h>
#include <sys/uio.h>

static int send_all(int fd, struct iovec *pieces, size_t count)
{
    for (size_t i = 0; i < count;) {
        struct msghdr message = {.msg_iov = pieces + i, .msg_iovlen = count - i};
        ssize_t sent = sendmsg(fd, &message, MSG_NOSIGNAL);
        if (sent < 0 && errno != EINTR)
            return -errno;
        for (; i < count && sent >= (ssize_t)pieces[i].iov_len; i++)
            sent -= (ssize_t)pieces[i].iov_len;
        if (i < count && sent > 0) {
            pieces[i].iov_base = (char *)pieces[i].iov_base + sent;
            pieces[i].iov_len -= (size_t)sent;
        }
    }
    return 0;
}

static int receive_all(int fd, void *bytes, size_t size)
{
    for (size_t got = 0; got < size;) {
        ssize_t more = recv(fd, (char *)bytes + got, size - got, 0);
        if (more == 0)
            return -EPIPE;
        if (more < 0 && errno != EINTR)
            return -errno;
        got += more > 0 ? (size_t)more : 0;
    }
    return 0;
}

int stream_send(int fd, stream_kind kind, uint64_t place, const void *bytes, size_t size)
{
    stream_record record = {(uint32_t)kind, (uint32_t)size, place};
    struct iovec pieces[2] = {{&record, sizeof record}, {(void *)(uintptr_t)bytes, size}};
    return send_all(fd, pieces, size > 0 ? 2 : 1);
}

int stream_receive(int fd, stream_record *record, void *bytes, size_t room)
{
    int code = receive_all(fd, record, sizeof *record);
    if (code == 0 && (record->kind == 0 || record->kind >= STREAM_KINDS || record->size > room))
        code = -EPROTO;
    return code == 0 ? receive_all(fd, bytes, record->size) : code;
}
