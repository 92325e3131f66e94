/* lio_target.c - a SCSI target of the Linux kernel, for vhost-scsi: its disk is a file in /tmp
   SPDX-License-Identifier: MIT OR Unlicense */
#define _DEFAULT_SOURCE
#include "lio_target.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define CONFIGFS "/sys/kernel/config"
#define CORE     CONFIGFS "/target/core/fileio_%u" /* with the id of the target */
#define DISK     CORE "/disk"
#define FABRIC   CONFIGFS "/target/vhost"
#define TARGET   FABRIC "/%s" /* with its wwpn */
#define GROUP    TARGET "/tpgt_1"
#define LUN      GROUP "/lun/lun_%u"

typedef struct path {
    char text[160];
} path;

__attribute__((format(printf, 1, 2))) static path path_of(const char *format, ...)
{
    path made;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(made.text, sizeof made.text, format, arguments);
    va_end(arguments);
    return made;
}

static int failed(lio_target *target, const char *what)
{
    target->failed = what;
    return -errno;
}

static bool make_folder(path folder)
{
    return mkdir(folder.text, 0755) == 0;
}

static bool remove_folder(path folder)
{
    return rmdir(folder.text) == 0;
}

static bool make_link(path link, path target)
{
    return symlink(target.text, link.text) == 0;
}

static bool remove_link(path link)
{
    return unlink(link.text) == 0;
}

static bool write_to(path file, const char *text)
{
    int fd = open(file.text, O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        return false;
    bool good = write(fd, text, strlen(text)) == (ssize_t)strlen(text);
    int reason = errno;
    close(fd);
    errno = reason;
    return good;
}

bool lio_target_possible(void)
{
    return access("/dev/vhost-scsi", R_OK | W_OK) == 0 &&
           access(CONFIGFS "/target/core", W_OK) == 0;
}

/* ---- the disk -------------------------------------------------------------------------------- */

static int make_disk(lio_target *target, uint64_t size)
{
    char settings[80];
    int fd = open(target->file, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0)
        return failed(target, "a file in /tmp");
    int result = ftruncate(fd, (off_t)size) != 0 ? failed(target, "the size of a file") : 0;
    close(fd);
    if (result < 0)
        return result;
    if (!make_folder(path_of(CORE, target->id)) || !make_folder(path_of(DISK, target->id)))
        return failed(target, "a disk (target_core_file)");
    snprintf(settings, sizeof settings, "fd_dev_name=%s,fd_dev_size=%llu", target->file,
             (unsigned long long)size);
    if (!write_to(path_of(DISK "/control", target->id), settings) ||
        !write_to(path_of(DISK "/enable", target->id), "1"))
        return failed(target, "the settings of a disk");
    return 0;
}

/* ---- the target ------------------------------------------------------------------------------ */

/* The nexus stands for the guest, which has to have a name, too. */
static int make_group(lio_target *target)
{
    if (!make_folder(path_of(FABRIC)) && errno != EEXIST)
        return failed(target, "the fabric vhost (vhost_scsi)");
    if (!make_folder(path_of(TARGET, target->wwpn)) || !make_folder(path_of(GROUP, target->wwpn)))
        return failed(target, "a target");
    if (!write_to(path_of(GROUP "/nexus", target->wwpn), target->wwpn))
        return failed(target, "a nexus");
    return 0;
}

int lio_target_plug(lio_target *target, unsigned lun)
{
    if (!make_folder(path_of(LUN, target->wwpn, lun)) ||
        !make_link(path_of(LUN "/disk", target->wwpn, lun), path_of(DISK, target->id)))
        return failed(target, "a LUN");
    return 0;
}

int lio_target_unplug(lio_target *target, unsigned lun)
{
    if (!remove_link(path_of(LUN "/disk", target->wwpn, lun)) ||
        !remove_folder(path_of(LUN, target->wwpn, lun)))
        return failed(target, "a LUN");
    return 0;
}

int lio_target_open(lio_target *target, unsigned number, uint64_t size)
{
    *target = (lio_target){.id = (unsigned)getpid() * 16 + number};
    snprintf(target->wwpn, sizeof target->wwpn, "naa.6001405%09x", target->id);
    snprintf(target->file, sizeof target->file, "/tmp/vhost_disk.%u", target->id);
    int result = make_disk(target, size);
    if (result == 0)
        result = make_group(target);
    if (result == 0)
        result = lio_target_plug(target, 0);
    if (result != 0) {
        const char *what = target->failed;
        (void)lio_target_close(target);
        target->failed = what;
    }
    return result;
}

/* ---- after it is made ------------------------------------------------------------------------ */

bool lio_target_has(const lio_target *target, uint64_t place, const void *bytes, uint64_t size)
{
    const unsigned char *expected = bytes;
    unsigned char found[4096];
    int fd = open(target->file, O_RDONLY | O_CLOEXEC);
    bool same = fd >= 0;
    for (uint64_t at = 0; same && at < size; at += sizeof found) {
        size_t count = size - at < sizeof found ? (size_t)(size - at) : sizeof found;
        same = pread(fd, found, count, (off_t)(place + at)) == (ssize_t)count &&
               memcmp(found, expected + at, count) == 0;
    }
    if (fd >= 0)
        close(fd);
    return same;
}

/* What is not there need not be taken down. */
static void keep_failure(lio_target *target, int *result, bool good, const char *what)
{
    if (!good && errno != ENOENT && errno != ENODEV && *result == 0)
        *result = failed(target, what);
}

/* The folder of the fabric stays if there are targets of others in it. */
int lio_target_close(lio_target *target)
{
    int result = 0;
    if (target->id == 0)
        return 0;
    for (unsigned lun = 0; lun < LIO_LUNS; lun++)
        keep_failure(target, &result, lio_target_unplug(target, lun) == 0, "a LUN");
    keep_failure(target, &result, write_to(path_of(GROUP "/nexus", target->wwpn), "NULL"),
                 "the nexus, which is in use");
    keep_failure(target, &result, remove_folder(path_of(GROUP, target->wwpn)), "the group");
    keep_failure(target, &result, remove_folder(path_of(TARGET, target->wwpn)), "the target");
    (void)rmdir(FABRIC);
    keep_failure(target, &result, remove_folder(path_of(DISK, target->id)), "the disk");
    keep_failure(target, &result, remove_folder(path_of(CORE, target->id)), "the disk");
    if (result == 0) {
        (void)unlink(target->file);
        *target = (lio_target){0};
    }
    return result;
}
