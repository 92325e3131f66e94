/* storage_daemon.c - a real vhost-user back-end to try things on: qemu-storage-daemon
   SPDX-License-Identifier: MIT OR Unlicense */
#define _GNU_SOURCE
#include "storage_daemon.h"

#include "clock.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define PATIENCE 5.0 /* seconds until a daemon that does not listen is given up */

const char storage_daemon_remedy[] = "no qemu-storage-daemon: apt-get install qemu-system-common";

/* In the child. Returns only if there is no such program. */
static void become_daemon(const storage_daemon *daemon)
{
    char disk[160], export[240];
    snprintf(disk, sizeof disk, "driver=file,locking=off,node-name=disk,filename=%s", daemon->disk);
    snprintf(export, sizeof export,
             "type=vhost-user-blk,id=export,node-name=disk,writable=on,num-queues=%d,"
             "addr.type=unix,addr.path=%s",
             daemon->queues, daemon->socket);
    (void)prctl(PR_SET_PDEATHSIG, SIGKILL); /* whatever becomes of us: it does not outlive us */
    execlp("qemu-storage-daemon", "qemu-storage-daemon", "--blockdev", disk, "--export", export,
           "--pidfile", daemon->ready, (char *)NULL);
}

/* The daemon writes its pidfile when its sockets listen. */
static int wait_until_ready(storage_daemon *daemon)
{
    double end = clock_now() + PATIENCE;
    struct stat found;
    int status;
    while (stat(daemon->ready, &found) != 0 || found.st_size == 0) {
        if (waitpid(daemon->pid, &status, WNOHANG) == daemon->pid) {
            daemon->pid = 0;
            return WIFEXITED(status) && WEXITSTATUS(status) == 127 ? -ENOENT : -ECHILD;
        }
        if (clock_now() > end)
            return -ETIMEDOUT;
        (void)poll(NULL, 0, 2);
    }
    return 0;
}

int storage_daemon_start(storage_daemon *daemon)
{
    (void)unlink(daemon->ready); /* of one that was killed */
    daemon->pid = fork();
    if (daemon->pid == 0) {
        become_daemon(daemon);
        _exit(127);
    }
    if (daemon->pid < 0) {
        daemon->pid = 0;
        return -errno;
    }
    return wait_until_ready(daemon);
}

static int make_disk(const storage_daemon *daemon, uint64_t size)
{
    int fd = open(daemon->disk, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    int code = fd < 0 || ftruncate(fd, (off_t)size) != 0 ? -errno : 0;
    if (fd >= 0)
        close(fd);
    return code;
}

static int make_folder(storage_daemon *daemon)
{
    char folder[] = "/tmp/vhost-user-XXXXXX";
    if (mkdtemp(folder) == NULL)
        return -errno;
    snprintf(daemon->folder, sizeof daemon->folder, "%s", folder);
    snprintf(daemon->socket, sizeof daemon->socket, "%s/socket", folder);
    snprintf(daemon->ready, sizeof daemon->ready, "%s/ready", folder);
    return 0;
}

static int open_on(storage_daemon *daemon)
{
    int code = storage_daemon_start(daemon);
    if (code < 0)
        storage_daemon_close(daemon);
    return code;
}

int storage_daemon_open(storage_daemon *daemon, uint64_t size, int queues)
{
    *daemon = (storage_daemon){.queues = queues, .owns_disk = true};
    int code = make_folder(daemon);
    if (code < 0)
        return code;
    snprintf(daemon->disk, sizeof daemon->disk, "%s/disk", daemon->folder);
    code = make_disk(daemon, size);
    if (code < 0) {
        storage_daemon_close(daemon);
        return code;
    }
    return open_on(daemon);
}

int storage_daemon_open_on(storage_daemon *daemon, const char *disk, int queues)
{
    *daemon = (storage_daemon){.queues = queues};
    int code = make_folder(daemon);
    if (code < 0)
        return code;
    snprintf(daemon->disk, sizeof daemon->disk, "%s", disk);
    return open_on(daemon);
}

bool storage_daemon_has(const storage_daemon *daemon, uint64_t place, const void *bytes,
                        uint64_t size)
{
    int fd = open(daemon->disk, O_RDONLY | O_CLOEXEC);
    void *file = mmap(NULL, size, PROT_READ, MAP_SHARED, fd, (off_t)place);
    bool has = file != MAP_FAILED && memcmp(file, bytes, size) == 0;
    if (file != MAP_FAILED)
        (void)munmap(file, size);
    if (fd >= 0)
        close(fd);
    return has;
}

void storage_daemon_kill(storage_daemon *daemon)
{
    if (daemon->pid == 0)
        return;
    (void)kill(daemon->pid, SIGKILL);
    (void)waitpid(daemon->pid, NULL, 0);
    daemon->pid = 0;
}

void storage_daemon_close(storage_daemon *daemon)
{
    storage_daemon_kill(daemon);
    if (daemon->folder[0] == '\0')
        return;
    if (daemon->owns_disk)
        (void)unlink(daemon->disk);
    (void)unlink(daemon->socket);
    (void)unlink(daemon->ready);
    (void)rmdir(daemon->folder);
    daemon->folder[0] = '\0';
}
