/* lio_target.h - a SCSI target of the Linux kernel, for vhost-scsi: its disk is a file in /tmp
   SPDX-License-Identifier: MIT OR Unlicense

   The kernel's SCSI target is called LIO, and is set up by folders and links in configfs: a disk
   under core, and a target under the fabric that leads to it, which is here vhost. What a guest
   sees on its virtio-scsi device is one target with up to 16 LUNs, and each is the disk. */
#ifndef LIO_TARGET_H_INCLUDED
#define LIO_TARGET_H_INCLUDED

#include <stdbool.h>
#include <stdint.h>

enum {
    LIO_GROUP = 1,     /* the number by which the guest calls the target */
    LIO_LUNS = 16,     /* 0 to 15 */
    LIO_WWPN_SIZE = 24 /* bytes, with the zero at the end */
};

typedef struct lio_target {
    unsigned id;              /* of the process and the target in it; 0: there is none */
    char wwpn[LIO_WWPN_SIZE]; /* its name */
    char file[40];            /* what the disk is made of */
    const char *failed;       /* what could not be done, after a failure */
} lio_target;

/* Whether vhost-scsi is to be had, and configfs with the kernel's target in it. */
bool lio_target_possible(void);

/* Makes a target with an empty disk of `size` bytes as LUN 0. number: 0 to 15, and no two targets
   of a process have the same. Returns 0 or a negative errno. */
int lio_target_open(lio_target *target, unsigned number, uint64_t size);

/* Makes the disk a LUN, or no LUN any more; also while a guest uses the target. */
int lio_target_plug(lio_target *target, unsigned lun);
int lio_target_unplug(lio_target *target, unsigned lun);

/* Whether the file has these bytes at that place. */
bool lio_target_has(const lio_target *target, uint64_t place, const void *bytes, uint64_t size);

/* Takes all down again. Returns the first failure; it fails while a device uses the target, and may
   be repeated. Harmless for a target of zeros. */
int lio_target_close(lio_target *target);

#endif
