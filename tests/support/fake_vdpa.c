/* vhost-vdpa for fake_kernel.c: see the head of fake_kernel.h. */
#include "fake_vdpa.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#define get32    fake_get32
#define get64    fake_get64
#define put32    fake_put32
#define put64    fake_put64
#define complain fake_complain

enum { /* back-end features */
    MSG_V2 = 1 << 1,
    BATCH = 1 << 2,
    ASID = 1 << 3,
    SUSPEND = 1 << 4,
    RESUME = 1 << 5,
    PERSIST = 1 << 8
};

enum { /* status */
    DRIVER = 2,
    DRIVER_OK = 4,
    FEATURES_OK = 8
};

enum { /* types of messages */
    UPDATE = 2,
    INVALIDATE = 3,
    BATCH_BEGIN = 5,
    BATCH_END = 6
};

enum {
    KERNEL_ENOTSUPP = 524 /* leaks out of the kernel */
};

/* ---- what it is ---- */

void fake_vdpa_init(fake_kernel *self)
{
    fake_vdpa *vdpa = &self->vdpa;
    self->offers[FAKE_VDPA].features = UINT64_C(0x731006644); /* a disk; with packed rings */
    self->offers[FAKE_VDPA].backend_features =
        MSG_V2 | BATCH | ASID | SUSPEND | RESUME | 1 << 6 | PERSIST;
    vdpa->device_id = 2;
    vdpa->rings = 3;
    vdpa->groups = 1;
    vdpa->spaces = 1;
    vdpa->config_size = 96;
    vdpa->ring_max = 256;
    vdpa->iova_last = UINT64_MAX;
    vdpa->doorbells = true;
    vdpa->config_call = -1;
}

/* Those that this release has a name for. */
uint64_t fake_vdpa_backend_features(const fake_kernel *self)
{
    uint64_t known = MSG_V2 | BATCH;
    if (self->release >= FAKE_LINUX_5_19) {
        known |= ASID;
    }
    if (self->release >= FAKE_LINUX_6_1) {
        known |= SUSPEND;
    }
    if (self->release >= FAKE_LINUX_6_3) {
        known |= RESUME;
    }
    if (self->release >= FAKE_LINUX_6_7) {
        known |= 1 << 6 | PERSIST;
    }
    return self->offers[FAKE_VDPA].backend_features & known;
}

/* ---- open, reset, close ---- */

bool fake_vdpa_open(fake_kernel *self)
{
    bool taken = self->vdpa.taken;
    for (unsigned i = 0; i < self->opened; i++) {
        taken |= self->fds[i].open && self->fds[i].kind == FAKE_VDPA;
    }
    return !taken;
}

static void reset(fake_kernel *self, fake_fd *fd)
{
    fake_vdpa *vdpa = &self->vdpa;
    bool persist = (fd->backend_features & PERSIST) != 0;
    vdpa->status = 0;
    vdpa->suspended = fd->running = fd->features_set = false;
    fd->features[0] = 0;
    for (int i = 0; i < FAKE_MAPS; i++) {
        vdpa->maps[i].lost |= !persist;
    }
    for (int i = 0; i < FAKE_RINGS; i++) {
        fake_reset_ring(&fd->ring[i]);
    }
    memset(vdpa->space_of, 0, sizeof vdpa->space_of);
}

void fake_vdpa_close(fake_kernel *self, fake_fd *fd)
{
    fake_vdpa *vdpa = &self->vdpa;
    if (fake_vdpa_doorbells(self) != 0) {
        (void)complain(self, FAKE_CLOSE, "a doorbell is mapped", 0);
    }
    reset(self, fd);
    memset(vdpa->maps, 0, sizeof vdpa->maps);
    memset(vdpa->known, 0, sizeof vdpa->known);
    vdpa->config_call = -1;
    vdpa->in_batch = false;
}

/* ---- maps ---- */

static bool meets(const fake_map *map, uint32_t space, uint64_t first, uint64_t last)
{
    return map->there && map->space == space && map->iova <= last &&
           map->iova + (map->size - 1) >= first;
}

static fake_map *find(fake_kernel *self, uint32_t space, uint64_t first, uint64_t last)
{
    for (int i = 0; i < FAKE_MAPS; i++) {
        if (meets(&self->vdpa.maps[i], space, first, last)) {
            return &self->vdpa.maps[i];
        }
    }
    return NULL;
}

const fake_map *fake_vdpa_find(const fake_kernel *self, uint32_t space, uint64_t iova)
{
    for (int i = 0; i < FAKE_MAPS; i++) {
        if (meets(&self->vdpa.maps[i], space, iova, iova)) {
            return &self->vdpa.maps[i];
        }
    }
    return NULL;
}

unsigned fake_vdpa_maps(const fake_kernel *self, uint32_t space)
{
    unsigned count = 0;
    for (int i = 0; i < FAKE_MAPS; i++) {
        count += meets(&self->vdpa.maps[i], space, 0, UINT64_MAX);
    }
    return count;
}

bool fake_vdpa_has_table(const fake_kernel *self, const vhost_table *table)
{
    for (uint32_t i = 0; i < table->count; i++) {
        const vhost_region *region = &table->regions[i];
        const fake_map *map = fake_vdpa_find(self, 0, region->gpa);
        if (!map || map->lost || map->iova != region->gpa || map->size != region->size ||
            map->host != (uintptr_t)region->host || map->permit != 3) {
            return false;
        }
    }
    return fake_vdpa_maps(self, 0) == table->count;
}

static uint64_t mapped_bytes(const fake_kernel *self)
{
    uint64_t bytes = 0;
    for (int i = 0; i < FAKE_MAPS; i++) {
        bytes += self->vdpa.maps[i].there ? self->vdpa.maps[i].size : 0;
    }
    return bytes;
}

/* Memory that a running device finds gone for a moment. */
static void look_for_gaps(fake_kernel *self, const fake_map *map)
{
    fake_vdpa *vdpa = &self->vdpa;
    for (unsigned i = 0; i < vdpa->gone_count; i++) {
        const fake_range *gone = &vdpa->gone[i];
        if (meets(map, gone->space, gone->first, gone->last)) {
            (void)complain(self, FAKE_WRITE, "memory went and came back under a running device", 0);
        }
    }
}

static int add_map(fake_kernel *self, const fake_map *map)
{
    const fake_vdpa *vdpa = &self->vdpa;
    uint64_t last = map->iova + (map->size - 1);
    if (map->size == 0 || last < map->iova || map->iova < vdpa->iova_first ||
        last > vdpa->iova_last) {
        return -EINVAL;
    }
    if (map->permit == 0 || map->permit > 3 || (map->iova | map->size | map->host) % 4096 != 0) {
        return complain(self, FAKE_WRITE, "permission or alignment of a map", -EINVAL);
    }
    if (find(self, map->space, map->iova, last)) {
        return -EEXIST;
    }
    if (vdpa->lock_limit != 0 && mapped_bytes(self) + map->size > vdpa->lock_limit) {
        return -ENOMEM;
    }
    look_for_gaps(self, map);
    for (int i = 0; i < FAKE_MAPS; i++) {
        if (!vdpa->maps[i].there) {
            self->vdpa.maps[i] = *map;
            return 0;
        }
    }
    return complain(self, FAKE_WRITE, "too many maps to remember", -ENOMEM);
}

static void note_gap(fake_kernel *self, const fake_fd *fd, const fake_map *map)
{
    fake_vdpa *vdpa = &self->vdpa;
    if (fd->running && vdpa->gone_count < FAKE_MAPS) {
        fake_range *gone = &vdpa->gone[vdpa->gone_count++];
        gone->space = map->space;
        gone->first = map->iova;
        gone->last = map->iova + (map->size - 1);
    }
}

/* Removes, whole, every map that the range meets. */
static int remove_maps(fake_kernel *self, const fake_fd *fd, const fake_map *range)
{
    uint64_t last = range->iova + (range->size - 1);
    fake_map *map;
    if (range->size == 0 || last < range->iova) {
        return complain(self, FAKE_WRITE, "an empty range", -EINVAL);
    }
    while ((map = find(self, range->space, range->iova, last)) != NULL) {
        note_gap(self, fd, map);
        map->there = false;
    }
    return 0;
}

/* ---- messages: version, space, iova, size, host, permit, type ---- */

static int begin_batch(fake_kernel *self, const fake_fd *fd, uint32_t space)
{
    fake_vdpa *vdpa = &self->vdpa;
    if (vdpa->in_batch || (fd->backend_features & BATCH) == 0) {
        (void)complain(self, FAKE_WRITE, "a batch in a batch, or without its back-end feature", 0);
    }
    vdpa->in_batch = true;
    vdpa->batch_space = space;
    vdpa->gone_count = 0;
    return 0;
}

static int end_batch(fake_kernel *self)
{
    if (!self->vdpa.in_batch) {
        (void)complain(self, FAKE_WRITE, "the end of no batch", 0);
    }
    self->vdpa.in_batch = false;
    self->vdpa.batches++;
    return 0;
}

/* Before the spaces came, there was one, and it was always there. */
static bool has_space(fake_kernel *self, uint32_t space, uint8_t type)
{
    fake_vdpa *vdpa = &self->vdpa;
    uint32_t count = vdpa->spaces < FAKE_SPACES ? vdpa->spaces : FAKE_SPACES;
    if (self->release < FAKE_LINUX_5_19) {
        return space == 0;
    }
    if (space >= count) {
        return false;
    }
    vdpa->known[space] |= type == UPDATE || type == BATCH_BEGIN;
    return vdpa->known[space];
}

static int do_message(fake_kernel *self, const fake_fd *fd, const fake_map *map, uint8_t type)
{
    const fake_vdpa *vdpa = &self->vdpa;
    if (!has_space(self, map->space, type) || (vdpa->in_batch && vdpa->batch_space != map->space)) {
        return -EINVAL;
    }
    switch (type) {
    case UPDATE:
        return add_map(self, map);
    case INVALIDATE:
        return remove_maps(self, fd, map);
    case BATCH_BEGIN:
        return begin_batch(self, fd, map->space);
    case BATCH_END:
        return end_batch(self);
    default:
        return complain(self, FAKE_WRITE, "no such message", -EINVAL);
    }
}

bool fake_vdpa_ends_batch(const unsigned char *message)
{
    return message[33] == BATCH_END;
}

/* The kernel says EFAULT, whatever stood in the way. */
int fake_vdpa_message(fake_kernel *self, const fake_fd *fd, const unsigned char *message)
{
    uint32_t version = get32(message, 0);
    fake_map map;
    memset(&map, 0, sizeof map);
    map.there = true;
    map.space = get32(message, 4);
    map.iova = get64(message, 8);
    map.size = get64(message, 16);
    map.host = get64(message, 24);
    map.permit = message[32];
    if (!fd->owned) {
        return complain(self, FAKE_WRITE, "nobody owns the fd", -EPERM);
    }
    if (version != ((fd->backend_features & MSG_V2) != 0 ? 2u : 1u)) {
        return complain(self, FAKE_WRITE, "not the version that was agreed on", -EINVAL);
    }
    if (map.space != 0 && (fd->backend_features & ASID) == 0) {
        return complain(self, FAKE_WRITE, "a space without its back-end feature", -EINVAL);
    }
    if (message[33] == UPDATE && map.size == 0) {
        return complain(self, FAKE_WRITE, "an empty map", -EINVAL);
    }
    return do_message(self, fd, &map, message[33]) < 0 ? -EFAULT : 0;
}

/* ---- status and features ---- */

int fake_vdpa_get_status(fake_kernel *self, fake_fd *fd, unsigned char *argument)
{
    (void)fd;
    argument[0] = self->vdpa.status;
    return 0;
}

int fake_vdpa_set_features(fake_kernel *self, fake_fd *fd, uint64_t bits, uint64_t offered)
{
    if ((self->vdpa.status & FEATURES_OK) != 0) {
        return complain(self, FAKE_SET_FEATURES, "after FEATURES_OK", -EBUSY);
    }
    if ((self->vdpa.status & DRIVER) == 0) {
        (void)complain(self, FAKE_SET_FEATURES, "before DRIVER", 0);
    }
    if ((bits & ~offered) != 0) {
        return -EINVAL;
    }
    if ((offered & ~bits & ACCESS_PLATFORM) != 0) {
        return complain(self, FAKE_SET_FEATURES, "without ACCESS_PLATFORM", -EINVAL);
    }
    fd->features[0] = bits;
    fd->features_set = true;
    return 0;
}

static bool reaches(const fake_kernel *self, uint32_t space, uint64_t address)
{
    const fake_map *map = fake_vdpa_find(self, space, address);
    return map && !map->lost;
}

static bool ring_is_mapped(const fake_kernel *self, const fake_fd *fd, int index)
{
    const fake_ring *ring = &fd->ring[index];
    uint32_t space = self->vdpa.space_of[self->vdpa.group_of[index] % FAKE_GROUPS];
    return reaches(self, space, ring->desc) && reaches(self, space, ring->avail) &&
           reaches(self, space, ring->used);
}

static void check_rings(fake_kernel *self, const fake_fd *fd)
{
    const char *what = "no ring is enabled";
    for (int i = 0; i < FAKE_RINGS; i++) {
        const fake_ring *ring = &fd->ring[i];
        if (!ring->enabled) {
            continue;
        }
        what = NULL;
        if (!ring->sized || !ring->addressed || !ring->kicked || !ring->called) {
            (void)complain(self, FAKE_VDPA_SET_STATUS, "DRIVER_OK before a ring is set up", 0);
        } else if (self->vdpa.space_of[self->vdpa.group_of[i] % FAKE_GROUPS] == 0 &&
                   !ring_is_mapped(self, fd, i)) {
            (void)complain(self, FAKE_VDPA_SET_STATUS, "DRIVER_OK with a ring not mapped", 0);
        }
    }
    if (what) {
        (void)complain(self, FAKE_VDPA_SET_STATUS, what, 0);
    }
}

static int advance(fake_kernel *self, fake_fd *fd, uint8_t status)
{
    fake_vdpa *vdpa = &self->vdpa;
    uint8_t added = status & (uint8_t)~vdpa->status;
    if ((vdpa->status & ~status) != 0) {
        return complain(self, FAKE_VDPA_SET_STATUS, "bits taken back", -EINVAL);
    }
    if ((added & FEATURES_OK) != 0 && !fd->features_set) {
        (void)complain(self, FAKE_VDPA_SET_STATUS, "FEATURES_OK before the features", 0);
    }
    if ((added & DRIVER_OK) != 0) {
        if ((vdpa->status & FEATURES_OK) == 0 || vdpa->in_batch) {
            (void)complain(self, FAKE_VDPA_SET_STATUS, "DRIVER_OK too early", 0);
        }
        check_rings(self, fd);
    }
    vdpa->status = status & (uint8_t)~vdpa->refuses;
    fd->running = (vdpa->status & DRIVER_OK) != 0 && !vdpa->suspended;
    return 0;
}

int fake_vdpa_set_status(fake_kernel *self, fake_fd *fd, unsigned char *argument)
{
    if (argument[0] == 0) {
        reset(self, fd);
        return 0;
    }
    return advance(self, fd, argument[0]);
}

/* Without a back-end feature the ioctl is there all the same. */
static int pause_or_resume(fake_kernel *self, fake_fd *fd, fake_op op, int feature, bool suspended)
{
    fake_vdpa *vdpa = &self->vdpa;
    if ((vdpa->status & DRIVER_OK) == 0) {
        return complain(self, op, "it does not run", 0);
    }
    if ((fake_vdpa_backend_features(self) & (uint64_t)feature) == 0) {
        return complain(self, op, "it cannot", -EOPNOTSUPP);
    }
    if ((fd->backend_features & (uint64_t)feature) == 0) {
        return complain(self, op, "without its back-end feature", -EOPNOTSUPP);
    }
    vdpa->suspended = suspended;
    fd->running = !suspended;
    return 0;
}

int fake_vdpa_suspend(fake_kernel *self, fake_fd *fd, unsigned char *argument)
{
    (void)argument;
    return pause_or_resume(self, fd, FAKE_VDPA_SUSPEND, SUSPEND, true);
}

int fake_vdpa_resume(fake_kernel *self, fake_fd *fd, unsigned char *argument)
{
    (void)argument;
    if (!self->vdpa.suspended) {
        (void)complain(self, FAKE_VDPA_RESUME, "it is not suspended", 0);
    }
    return pause_or_resume(self, fd, FAKE_VDPA_RESUME, RESUME, false);
}

void fake_vdpa_watch(fake_kernel *self, fake_op op)
{
    bool disturbs = op == FAKE_SET_FEATURES || op == FAKE_SET_VRING_NUM ||
                    op == FAKE_SET_VRING_ADDR || op == FAKE_SET_VRING_BASE ||
                    op == FAKE_VDPA_SET_VRING_ENABLE || op == FAKE_VDPA_SET_GROUP_ASID;
    if (self->vdpa.suspended && disturbs) {
        (void)complain(self, op, "disturbs a suspended device", 0);
    }
}

/* ---- config space: offset, size, bytes ---- */

static int check_config(fake_kernel *self, fake_op op, const unsigned char *argument)
{
    uint32_t offset = get32(argument, 0), size = get32(argument, 4);
    uint32_t whole = self->vdpa.config_size;
    if (size != 0 && offset <= whole && size <= whole - offset) {
        return 0;
    }
    if (self->release >= FAKE_LINUX_5_18) { /* or the library cannot know */
        (void)complain(self, op, "beyond the config space", 0);
    }
    return -EINVAL;
}

int fake_vdpa_get_config(fake_kernel *self, fake_fd *fd, unsigned char *argument)
{
    int result = check_config(self, FAKE_VDPA_GET_CONFIG, argument);
    (void)fd;
    if (result == 0) {
        memcpy(argument + 8, self->vdpa.config + get32(argument, 0), get32(argument, 4));
    }
    return result;
}

int fake_vdpa_set_config(fake_kernel *self, fake_fd *fd, unsigned char *argument)
{
    int result = check_config(self, FAKE_VDPA_SET_CONFIG, argument);
    (void)fd;
    if (result == 0) {
        memcpy(self->vdpa.config + get32(argument, 0), argument + 8, get32(argument, 4));
    }
    return result;
}

int fake_vdpa_config_call(fake_kernel *self, fake_fd *fd, unsigned char *argument)
{
    (void)fd;
    self->vdpa.config_call = (int)get32(argument, 0);
    return 0;
}

/* ---- numbers ---- */

int fake_vdpa_get_device_id(fake_kernel *self, fake_fd *fd, unsigned char *argument)
{
    (void)fd;
    put32(argument, 0, self->vdpa.device_id);
    return 0;
}

int fake_vdpa_get_vring_num(fake_kernel *self, fake_fd *fd, unsigned char *argument)
{
    (void)fd;
    memcpy(argument, &self->vdpa.ring_max, sizeof self->vdpa.ring_max);
    return 0;
}

int fake_vdpa_get_range(fake_kernel *self, fake_fd *fd, unsigned char *argument)
{
    (void)fd;
    put64(argument, 0, self->vdpa.iova_first);
    put64(argument, 8, self->vdpa.iova_last);
    return 0;
}

int fake_vdpa_get_config_size(fake_kernel *self, fake_fd *fd, unsigned char *argument)
{
    (void)fd;
    put32(argument, 0, self->vdpa.config_size);
    return 0;
}

int fake_vdpa_get_rings(fake_kernel *self, fake_fd *fd, unsigned char *argument)
{
    (void)fd;
    put32(argument, 0, self->vdpa.rings);
    return 0;
}

int fake_vdpa_get_groups(fake_kernel *self, fake_fd *fd, unsigned char *argument)
{
    (void)fd;
    put32(argument, 0, self->vdpa.groups);
    return 0;
}

int fake_vdpa_get_spaces(fake_kernel *self, fake_fd *fd, unsigned char *argument)
{
    (void)fd;
    put32(argument, 0, self->vdpa.spaces);
    return 0;
}

/* ---- rings and groups; their number is the first 4 bytes of each argument ---- */

int fake_vdpa_enable(fake_kernel *self, fake_fd *fd, unsigned char *argument)
{
    fake_ring *ring = fake_ring_of(self, fd, argument);
    if (!ring) {
        return fake_no_ring(self, FAKE_VDPA_SET_VRING_ENABLE);
    }
    if ((self->vdpa.status & DRIVER_OK) != 0) {
        (void)complain(self, FAKE_VDPA_SET_VRING_ENABLE, "after DRIVER_OK", 0);
    }
    ring->enabled = get32(argument, 4) != 0;
    return 0;
}

int fake_vdpa_get_limit(fake_kernel *self, fake_fd *fd, unsigned char *argument)
{
    const fake_ring *ring = fake_ring_of(self, fd, argument);
    if (!ring) {
        return fake_no_ring(self, FAKE_VDPA_GET_VRING_SIZE);
    }
    if (self->vdpa.ring_limit[0] == 0) {
        return -EOPNOTSUPP;
    }
    put32(argument, 4, self->vdpa.ring_limit[ring - fd->ring]);
    return 0;
}

int fake_vdpa_get_group(fake_kernel *self, fake_fd *fd, unsigned char *argument)
{
    const fake_ring *ring = fake_ring_of(self, fd, argument);
    if (!ring) {
        return -ENOBUFS;
    }
    if (self->vdpa.groupless) {
        return -EOPNOTSUPP;
    }
    put32(argument, 4, self->vdpa.group_of[ring - fd->ring]);
    return 0;
}

/* Here the first number is a group, but it has to be one of a ring as well. */
int fake_vdpa_set_space(fake_kernel *self, fake_fd *fd, unsigned char *argument)
{
    fake_vdpa *vdpa = &self->vdpa;
    uint32_t group = get32(argument, 0), space = get32(argument, 4);
    (void)fd;
    if (group >= vdpa->rings || group >= FAKE_GROUPS) {
        return -ENOBUFS;
    }
    if (group >= vdpa->groups || space >= vdpa->spaces) {
        return complain(self, FAKE_VDPA_SET_GROUP_ASID, "no such group or space", -EINVAL);
    }
    if ((vdpa->status & DRIVER_OK) != 0) {
        (void)complain(self, FAKE_VDPA_SET_GROUP_ASID, "after DRIVER_OK", 0);
    }
    vdpa->space_of[group] = space;
    return 0;
}

/* ---- doorbells ---- */

unsigned fake_vdpa_doorbells(const fake_kernel *self)
{
    unsigned count = 0;
    for (int i = 0; i < FAKE_RINGS; i++) {
        count += self->vdpa.doorbell[i];
    }
    return count;
}

int fake_vdpa_map_doorbell(fake_kernel *self, uint64_t offset, size_t size, void **at)
{
    fake_vdpa *vdpa = &self->vdpa;
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
    if (size != page || offset % page != 0) {
        return complain(self, FAKE_MAP, "not a page", -EINVAL);
    }
    if (!vdpa->doorbells) {
        return -KERNEL_ENOTSUPP;
    }
    if (offset / page >= vdpa->rings) {
        return -EINVAL;
    }
    vdpa->doorbell[offset / page] = 1;
    *at = &vdpa->doorbell[offset / page];
    return 0;
}

int fake_vdpa_unmap_doorbell(fake_kernel *self, const void *at, size_t size)
{
    for (int i = 0; i < FAKE_RINGS; i++) {
        unsigned char *doorbell = &self->vdpa.doorbell[i];
        if (doorbell == at && *doorbell == 1 && size == (size_t)sysconf(_SC_PAGESIZE)) {
            *doorbell = 0;
            return 0;
        }
    }
    return complain(self, FAKE_UNMAP, "no doorbell is there", -EINVAL);
}
