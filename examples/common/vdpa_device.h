/* vdpa_device.h - vDPA devices to try things on: the kernel's own, and disks of qemu-storage-daemon
   SPDX-License-Identifier: MIT OR Unlicense

   Needs root, the kernel modules vhost_vdpa and those of the devices, and the program vdpa. What a
   device is called is unique in the system. Calls return 0 or a negative errno. */
#ifndef VDPA_DEVICE_H_INCLUDED
#define VDPA_DEVICE_H_INCLUDED

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

enum {
    VDPA_DEVICE_PATH = 64 /* bytes, such as of /dev/vhost-vdpa-0 */
};

/* Has `maker` make a device: vdpasim_net, vdpasim_blk (both simulated by the kernel) or vduse (by a
   process that has made its half). more: further words for the program vdpa, or "". */
int vdpa_device_add(const char *name, const char *maker, const char *more,
                    char path[VDPA_DEVICE_PATH]);
int vdpa_device_remove(const char *name);

/* Where a device is that exists already. */
int vdpa_device_find(const char *name, char path[VDPA_DEVICE_PATH]);

/* The nth of all devices (0: the first) in /dev. -ENOENT: there are not so many. */
int vdpa_device_nth(unsigned n, char path[VDPA_DEVICE_PATH]);

/* ---- a disk that is a file, served by qemu-storage-daemon over VDUSE ---- */

typedef struct vdpa_disk {
    char name[32];
    char path[VDPA_DEVICE_PATH];
    char file[48];    /* what is on the disk */
    char pidfile[48]; /* of the daemon */
} vdpa_disk;

/* size: bytes, all zeros. If it fails, nothing is left of it. */
int vdpa_disk_open(vdpa_disk *disk, const char *name, uint64_t size, unsigned queues);

/* Whether it has these bytes at that place: by a look into the file. */
bool vdpa_disk_has(const vdpa_disk *disk, uint64_t place, const void *bytes, uint64_t size);

/* The device is open nowhere. Harmless for a disk of zeros. */
void vdpa_disk_close(vdpa_disk *disk);

#endif
