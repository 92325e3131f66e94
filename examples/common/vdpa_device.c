/* vdpa_device.c - vDPA devices to try things on: the kernel's own, and disks of qemu-storage-daemon
   SPDX-License-Identifier: MIT OR Unlicense */
#define _DEFAULT_SOURCE
#include "vdpa_device.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char node[] = "vhost-vdpa-";

static bool is_node(const char *name)
{
    return strncmp(name, node, sizeof node - 1) == 0;
}

static unsigned long number_of(const char *name)
{
    return strtoul(name + sizeof node - 1, NULL, 10);
}

static void name_path(unsigned long number, char path[VDPA_DEVICE_PATH])
{
    snprintf(path, VDPA_DEVICE_PATH, "/dev/%s%lu", node, number);
}

int vdpa_device_find(const char *name, char path[VDPA_DEVICE_PATH])
{
    char folder[96];
    const struct dirent *entry;
    snprintf(folder, sizeof folder, "/sys/bus/vdpa/devices/%s", name);
    DIR *entries = opendir(folder);
    if (entries == NULL)
        return -errno;
    while ((entry = readdir(entries)) != NULL && !is_node(entry->d_name)) {
    }
    if (entry != NULL)
        name_path(number_of(entry->d_name), path);
    closedir(entries);
    return entry != NULL ? 0 : -ENOENT;
}

/* The smallest number in /dev that is at least this; ULONG_MAX: there is none. */
static unsigned long next_number(unsigned long least)
{
    unsigned long best = ULONG_MAX;
    const struct dirent *entry;
    DIR *entries = opendir("/dev");
    while (entries != NULL && (entry = readdir(entries)) != NULL)
        if (is_node(entry->d_name) && number_of(entry->d_name) >= least &&
            number_of(entry->d_name) < best)
            best = number_of(entry->d_name);
    if (entries != NULL)
        closedir(entries);
    return best;
}

int vdpa_device_nth(unsigned n, char path[VDPA_DEVICE_PATH])
{
    unsigned long number = next_number(0);
    while (n-- > 0 && number != ULONG_MAX)
        number = next_number(number + 1);
    if (number == ULONG_MAX)
        return -ENOENT;
    name_path(number, path);
    return 0;
}

/* ---- the program vdpa ---- */

/* What goes wrong, the program says itself. */
static int run(const char *command)
{
    return system(command) == 0 ? 0 : -EIO;
}

int vdpa_device_add(const char *name, const char *maker, const char *more,
                    char path[VDPA_DEVICE_PATH])
{
    char command[200];
    snprintf(command, sizeof command, "PATH=$PATH:/usr/sbin vdpa dev add name %s mgmtdev %s %s",
             name, maker, more);
    int code = run(command);
    return code < 0 ? code : vdpa_device_find(name, path);
}

int vdpa_device_remove(const char *name)
{
    char command[100];
    snprintf(command, sizeof command, "PATH=$PATH:/usr/sbin vdpa dev del %s", name);
    return run(command);
}

/* ---- a disk of qemu-storage-daemon ---- */

static int make_file(const vdpa_disk *disk, uint64_t size)
{
    int fd = open(disk->file, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    int code = fd < 0 || ftruncate(fd, (off_t)size) != 0 ? -errno : 0;
    if (fd >= 0)
        close(fd);
    return code;
}

/* It is in the background once it serves. */
static int start_daemon(const vdpa_disk *disk, unsigned queues)
{
    char command[400];
    snprintf(command, sizeof command,
             "qemu-storage-daemon --blockdev driver=file,node-name=disk,filename=%s "
             "--export type=vduse-blk,id=%s,node-name=disk,name=%s,num-queues=%u,writable=on "
             "--daemonize --pidfile %s",
             disk->file, disk->name, disk->name, queues, disk->pidfile);
    return run(command);
}

static pid_t daemon_of(const vdpa_disk *disk)
{
    char text[16] = "";
    int fd = open(disk->pidfile, O_RDONLY | O_CLOEXEC);
    if (fd >= 0 && read(fd, text, sizeof text - 1) < 0)
        text[0] = '\0';
    if (fd >= 0)
        close(fd);
    return (pid_t)strtol(text, NULL, 10);
}

static void end_daemon(const vdpa_disk *disk)
{
    pid_t pid = daemon_of(disk);
    for (int ms = 0; pid > 0 && ms < 2000 && kill(pid, SIGTERM) == 0; ms += 5)
        (void)usleep(5000);
    if (pid > 0 && kill(pid, 0) == 0)
        (void)kill(pid, SIGKILL);
}

int vdpa_disk_open(vdpa_disk *disk, const char *name, uint64_t size, unsigned queues)
{
    memset(disk, 0, sizeof *disk);
    snprintf(disk->name, sizeof disk->name, "%s", name);
    snprintf(disk->file, sizeof disk->file, "/tmp/%.24s.img", disk->name);
    snprintf(disk->pidfile, sizeof disk->pidfile, "/tmp/%.24s.pid", disk->name);
    int code = make_file(disk, size);
    if (code == 0)
        code = start_daemon(disk, queues);
    if (code == 0)
        code = vdpa_device_add(name, "vduse", "", disk->path);
    if (code < 0)
        vdpa_disk_close(disk);
    return code;
}

bool vdpa_disk_has(const vdpa_disk *disk, uint64_t place, const void *bytes, uint64_t size)
{
    int fd = open(disk->file, O_RDONLY | O_CLOEXEC);
    void *found = malloc((size_t)size);
    bool same = fd >= 0 && found != NULL &&
                pread(fd, found, (size_t)size, (off_t)place) == (ssize_t)size &&
                memcmp(found, bytes, (size_t)size) == 0;
    free(found);
    if (fd >= 0)
        close(fd);
    return same;
}

void vdpa_disk_close(vdpa_disk *disk)
{
    if (disk->name[0] == '\0')
        return;
    if (disk->path[0] != '\0')
        (void)vdpa_device_remove(disk->name);
    end_daemon(disk);
    unlink(disk->pidfile);
    unlink(disk->file);
    disk->name[0] = '\0';
}
