/* vsock_echo.c - for the demonstration: says back what it hears, in the guest; and asks for it, on
   the host
   SPDX-License-Identifier: MIT OR Unlicense

   usage     vsock_echo               in the guest: for ever
             vsock_echo CID TEXT      exit status 0 if it was said back */
#define _GNU_SOURCE
#include <linux/vm_sockets.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

enum {
    PORT = 7
};

static int listen_for_ever(int fd, const struct sockaddr *address, socklen_t size)
{
    char bytes[256];
    ssize_t count;
    if (bind(fd, address, size) != 0 || listen(fd, 8) != 0) {
        perror("vsock_echo");
        return 1;
    }
    for (;;) {
        int caller = accept(fd, NULL, NULL);
        while ((count = read(caller, bytes, sizeof bytes)) > 0)
            (void)!write(caller, bytes, (size_t)count);
        close(caller);
    }
}

static int ask(int fd, const struct sockaddr *address, socklen_t size, const char *text)
{
    char bytes[256];
    struct timeval patience = {.tv_sec = 5};
    (void)setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    if (connect(fd, address, size) != 0 || write(fd, text, strlen(text)) < 0) {
        perror("vsock_echo");
        return 1;
    }
    ssize_t count = recv(fd, bytes, strlen(text), MSG_WAITALL);
    return count == (ssize_t)strlen(text) && memcmp(bytes, text, (size_t)count) == 0 ? 0 : 1;
}

int main(int argc, char **argv)
{
    int fd = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_vm address = {
        .svm_family = AF_VSOCK, .svm_port = PORT, .svm_cid = VMADDR_CID_ANY};
    if (argc < 3)
        return listen_for_ever(fd, (struct sockaddr *)&address, sizeof address);
    address.svm_cid = (unsigned)atoi(argv[1]);
    return ask(fd, (struct sockaddr *)&address, sizeof address, argv[2]);
}
