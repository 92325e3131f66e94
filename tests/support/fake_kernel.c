#include "fake_vdpa.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define get32    fake_get32
#define get64    fake_get64
#define put32    fake_put32
#define put64    fake_put64
#define complain fake_complain
#define ring_of  fake_ring_of
#define no_ring  fake_no_ring

/* ---- numbers in arguments ---- */

uint64_t fake_kernel_number(const unsigned char *bytes, size_t size)
{
    uint32_t narrow;
    uint64_t wide;
    if (size == sizeof narrow) {
        memcpy(&narrow, bytes, sizeof narrow);
        return narrow;
    }
    memcpy(&wide, bytes, sizeof wide);
    return wide;
}

uint32_t fake_get32(const unsigned char *bytes, size_t at)
{
    return (uint32_t)fake_kernel_number(bytes + at, 4);
}

uint64_t fake_get64(const unsigned char *bytes, size_t at)
{
    return fake_kernel_number(bytes + at, 8);
}

void fake_put32(unsigned char *bytes, size_t at, uint32_t number)
{
    memcpy(bytes + at, &number, sizeof number);
}

void fake_put64(unsigned char *bytes, size_t at, uint64_t number)
{
    memcpy(bytes + at, &number, sizeof number);
}

int fake_complain(fake_kernel *self, fake_op op, const char *what, int error)
{
    if (self->complaint[0] == '\0') {
        (void)snprintf(self->complaint, sizeof self->complaint, "%s: %s", fake_kernel_name(op),
                       what);
    }
    return error;
}

/* ---- kinds of devices ---- */

static const char *const paths[FAKE_KINDS] = {FAKE_PATH, FAKE_VSOCK_PATH, FAKE_SCSI_PATH,
                                              FAKE_VDPA_PATH, FAKE_OTHER_PATH};

static uint32_t rings_of(const fake_kernel *self, const fake_fd *fd)
{
    const uint32_t counts[FAKE_KINDS] = {2, 2, 8, self->vdpa.rings, 8};
    return counts[fd->kind];
}

static bool ring_runs(const fake_fd *fd, const fake_ring *ring)
{
    return fd->running || ring->tap >= 0;
}

bool fake_kernel_runs(const fake_fd *fd)
{
    bool runs = fd->running;
    for (int ring = 0; ring < FAKE_RINGS; ring++) {
        runs |= fd->ring[ring].tap >= 0;
    }
    return runs;
}

/* ---- what each ioctl does: on one fd, which is open, and owned where that is needed ---- */

static int set_owner(fake_kernel *self, fake_fd *fd, unsigned char *argument)
{
    (void)self;
    (void)argument;
    if (fd->owned) {
        return -EBUSY;
    }
    fd->owned = true;
    fd->workers = 1;
    return 0;
}

void fake_reset_ring(fake_ring *ring)
{
    memset(ring, 0, sizeof *ring);
    ring->tap = ring->kick = ring->call = ring->error = -1;
}

static void reset_fd(fake_fd *fd)
{
    bool open = fd->open, patient = fd->patient;
    fake_kind kind = fd->kind;
    memset(fd, 0, sizeof *fd);
    fd->open = open;
    fd->patient = patient;
    fd->kind = kind;
    for (int ring = 0; ring < FAKE_RINGS; ring++) {
        fake_reset_ring(&fd->ring[ring]);
    }
}

static int set_patient(fake_kernel *self, fake_fd *fd, unsigned char *argument)
{
    (void)self;
    fd->patient = get32(argument, 0) != 0;
    return 0;
}

static int reset_owner(fake_kernel *self, fake_fd *fd, unsigned char *argument)
{
    (void)argument;
    if (fake_kernel_runs(fd)) {
        return complain(self, FAKE_RESET_OWNER, "a ring runs", -EBUSY);
    }
    reset_fd(fd);
    return 0;
}

static uint64_t offered(const fake_kernel *self, const fake_fd *fd)
{
    uint64_t all = fd->kind == FAKE_NET ? self->features[0] : self->offers[fd->kind].features;
    return all & ~self->lacks[fd - self->fds];
}

static uint64_t backend_offered(const fake_kernel *self, const fake_fd *fd)
{
    if (fd->kind == FAKE_VDPA) {
        return fake_vdpa_backend_features(self);
    }
    return fd->kind == FAKE_NET ? self->backend_features : self->offers[fd->kind].backend_features;
}

static int get_features(fake_kernel *self, fake_fd *fd, unsigned char *argument)
{
    put64(argument, 0, offered(self, fd));
    return 0;
}

static int get_features_array(fake_kernel *self, fake_fd *fd, unsigned char *argument)
{
    uint64_t count = get64(argument, 0);
    for (uint64_t i = 0; i < count; i++) {
        put64(argument, 8 + 8 * (size_t)i,
              i == 0   ? offered(self, fd)
              : i == 1 ? self->features[1]
                       : 0);
    }
    return 0;
}

static int accept_features(fake_kernel *self, fake_fd *fd, uint64_t low, uint64_t high)
{
    if (fd->kind == FAKE_VDPA) {
        return fake_vdpa_set_features(self, fd, low, offered(self, fd));
    }
    bool has_iotlb = fd->sticks || (fd->features[0] & ACCESS_PLATFORM) != 0;
    if ((low & ~offered(self, fd)) != 0 || (high & ~self->features[1]) != 0) {
        return -EOPNOTSUPP;
    }
    fd->tlb_maps = 0;
    fd->sticks = has_iotlb && (low & ACCESS_PLATFORM) == 0 && self->release <= FAKE_LINUX_6_1;
    fd->features[0] = low;
    fd->features[1] = high;
    fd->features_set = true;
    return 0;
}

static int set_features(fake_kernel *self, fake_fd *fd, unsigned char *argument)
{
    return accept_features(self, fd, get64(argument, 0), 0);
}

static int set_features_array(fake_kernel *self, fake_fd *fd, unsigned char *argument)
{
    if (get64(argument, 0) != 2) {
        return complain(self, FAKE_SET_FEATURES_ARRAY, "not two words", -EINVAL);
    }
    return accept_features(self, fd, get64(argument, 8), get64(argument, 16));
}

static int get_backend_features(fake_kernel *self, fake_fd *fd, unsigned char *argument)
{
    put64(argument, 0, self->lacks[fd - self->fds] != 0 ? 0 : backend_offered(self, fd));
    return 0;
}

static int set_backend_features(fake_kernel *self, fake_fd *fd, unsigned char *argument)
{
    uint64_t bits = get64(argument, 0);
    if ((bits & ~backend_offered(self, fd)) != 0) {
        return complain(self, FAKE_SET_BACKEND_FEATURES, "bits it does not have", -EOPNOTSUPP);
    }
    fd->backend_features = bits;
    return 0;
}

static int set_mem_table(fake_kernel *self, fake_fd *fd, unsigned char *argument)
{
    uint32_t count = get32(argument, 0);
    if (get32(argument, 4) != 0) {
        return complain(self, FAKE_SET_MEM_TABLE, "padding is not zero", -EOPNOTSUPP);
    }
    if (count > self->slots) {
        return -E2BIG;
    }
    for (uint32_t i = 0; i < count; i++) {
        const unsigned char *region = argument + 8 + 32 * (size_t)i;
        if (get64(region, 24) != 0) {
            return complain(self, FAKE_SET_MEM_TABLE, "flags of a region", -EINVAL);
        }
        if (get64(region, 8) == 0 ||
            (get64(region, 0) | get64(region, 8) | get64(region, 16)) % 4096 != 0) {
            return complain(self, FAKE_SET_MEM_TABLE, "a region of odd bytes", -EINVAL);
        }
    }
    fd->table_set = true;
    return 0;
}

static int accept_anything(fake_kernel *self, fake_fd *fd, unsigned char *argument)
{
    (void)self;
    (void)fd;
    (void)argument;
    return 0;
}

static int set_fork(fake_kernel *self, fake_fd *fd, unsigned char *argument)
{
    (void)self;
    if (fd->owned) {
        return -EBUSY;
    }
    return argument[0] > 1 ? -EINVAL : 0;
}

static int new_worker(fake_kernel *self, fake_fd *fd, unsigned char *argument)
{
    (void)self;
    put32(argument, 0, 100 + fd->workers++);
    return 0;
}

static int free_worker(fake_kernel *self, fake_fd *fd, unsigned char *argument)
{
    uint32_t worker = get32(argument, 0);
    for (int ring = 0; ring < FAKE_RINGS; ring++) {
        if (fd->ring[ring].worker == worker) {
            return complain(self, FAKE_FREE_WORKER, "a ring has it", -EBUSY);
        }
    }
    fd->workers--;
    return 0;
}

/* ---- rings; their number is the first 4 bytes of each argument ---- */

fake_ring *fake_ring_of(const fake_kernel *self, fake_fd *fd, const unsigned char *argument)
{
    uint32_t index = get32(argument, 0);
    return index < rings_of(self, fd) ? &fd->ring[index] : NULL;
}

int fake_no_ring(fake_kernel *self, fake_op op)
{
    return complain(self, op, "no such ring", -ENOBUFS);
}

static int attach_worker(fake_kernel *self, fake_fd *fd, unsigned char *argument)
{
    fake_ring *ring = ring_of(self, fd, argument);
    uint32_t worker = get32(argument, 4);
    if (!ring) {
        return no_ring(self, FAKE_ATTACH_VRING_WORKER);
    }
    if (worker < 101 || worker >= 100 + fd->workers) {
        return complain(self, FAKE_ATTACH_VRING_WORKER, "no such worker", -ENODEV);
    }
    ring->worker = worker;
    return 0;
}

static int set_num(fake_kernel *self, fake_fd *fd, unsigned char *argument)
{
    fake_ring *ring = ring_of(self, fd, argument);
    uint32_t size = get32(argument, 4);
    if (!ring) {
        return no_ring(self, FAKE_SET_VRING_NUM);
    }
    if (ring_runs(fd, ring)) {
        return complain(self, FAKE_SET_VRING_NUM, "the ring runs", -EBUSY);
    }
    if (size == 0 || size > 0xffff || (size & (size - 1)) != 0 ||
        (fd->kind == FAKE_VDPA && size > self->vdpa.ring_max)) {
        return -EINVAL;
    }
    ring->sized = true;
    ring->size = size;
    return 0;
}

static int set_base(fake_kernel *self, fake_fd *fd, unsigned char *argument)
{
    fake_ring *ring = ring_of(self, fd, argument);
    if (!ring) {
        return no_ring(self, FAKE_SET_VRING_BASE);
    }
    if (ring_runs(fd, ring)) {
        return complain(self, FAKE_SET_VRING_BASE, "the ring runs", -EBUSY);
    }
    if (get32(argument, 4) > 0xffff && (fd->features[0] & RING_PACKED) == 0) {
        return -EINVAL;
    }
    ring->base = get32(argument, 4);
    return 0;
}

static int get_base(fake_kernel *self, fake_fd *fd, unsigned char *argument)
{
    fake_ring *ring = ring_of(self, fd, argument);
    if (!ring) {
        return no_ring(self, FAKE_GET_VRING_BASE);
    }
    if (ring_runs(fd, ring)) {
        return complain(self, FAKE_GET_VRING_BASE, "the ring runs: it moves on", -EBUSY);
    }
    put32(argument, 4, ring->base);
    return 0;
}

static int set_endian(fake_kernel *self, fake_fd *fd, unsigned char *argument)
{
    fake_ring *ring = ring_of(self, fd, argument);
    if (!ring) {
        return no_ring(self, FAKE_SET_VRING_ENDIAN);
    }
    return ring_runs(fd, ring) ? -EBUSY : get32(argument, 4) > 1 ? -EINVAL : 0;
}

static int set_addr(fake_kernel *self, fake_fd *fd, unsigned char *argument)
{
    fake_ring *ring = ring_of(self, fd, argument);
    if (!ring) {
        return no_ring(self, FAKE_SET_VRING_ADDR);
    }
    if ((get32(argument, 4) & ~1u) != 0) {
        return -EOPNOTSUPP;
    }
    if (get64(argument, 8) % 16 != 0 || get64(argument, 16) % 4 != 0 ||
        get64(argument, 24) % 2 != 0) {
        return complain(self, FAKE_SET_VRING_ADDR, "not aligned", -EINVAL);
    }
    if (!ring->sized) {
        return complain(self, FAKE_SET_VRING_ADDR, "before the size", -EINVAL);
    }
    if (fd->kind == FAKE_VDPA && fd->running) {
        return complain(self, FAKE_SET_VRING_ADDR, "the device runs", -EINVAL);
    }
    ring->addressed = true;
    ring->logs = get32(argument, 4) != 0;
    ring->desc = get64(argument, 8);
    ring->used = get64(argument, 16);
    ring->avail = get64(argument, 24);
    ring->log = get64(argument, 32);
    return 0;
}

static int set_busy_loop(fake_kernel *self, fake_fd *fd, unsigned char *argument)
{
    return ring_of(self, fd, argument) ? 0 : no_ring(self, FAKE_SET_VRING_BUSYLOOP_TIMEOUT);
}

static int set_kick(fake_kernel *self, fake_fd *fd, unsigned char *argument)
{
    fake_ring *ring = ring_of(self, fd, argument);
    if (!ring) {
        return no_ring(self, FAKE_SET_VRING_KICK);
    }
    ring->kick = (int)get32(argument, 4);
    ring->kicked = true;
    return 0;
}

static int set_call(fake_kernel *self, fake_fd *fd, unsigned char *argument)
{
    fake_ring *ring = ring_of(self, fd, argument);
    if (!ring) {
        return no_ring(self, FAKE_SET_VRING_CALL);
    }
    ring->call = (int)get32(argument, 4);
    ring->called = true;
    return 0;
}

static int set_err(fake_kernel *self, fake_fd *fd, unsigned char *argument)
{
    fake_ring *ring = ring_of(self, fd, argument);
    if (!ring) {
        return no_ring(self, FAKE_SET_VRING_ERR);
    }
    ring->error = (int)get32(argument, 4);
    return 0;
}

static int set_backend(fake_kernel *self, fake_fd *fd, unsigned char *argument)
{
    fake_ring *ring = ring_of(self, fd, argument);
    int tap;
    if (!ring) {
        return no_ring(self, FAKE_NET_SET_BACKEND);
    }
    tap = (int)get32(argument, 4);
    if (!ring->addressed) {
        return -EFAULT;
    }
    if (tap >= 0 && fd->sticks) {
        return -EFAULT;
    }
    if (tap >= 0 && !(fd->features_set && fd->table_set && ring->called && ring->kicked)) {
        return complain(self, FAKE_NET_SET_BACKEND, "before all is there", -EFAULT);
    }
    ring->tap = tap < 0 ? -1 : tap;
    return 0;
}

/* ---- devices of which all rings start and stop together ---- */

/* How many rings are set up; a complaint about one that has an address, but is not ready to run. */
static int count_set_up(fake_kernel *self, const fake_fd *fd, fake_op op)
{
    int count = 0;
    for (uint32_t i = 0; i < rings_of(self, fd); i++) {
        const fake_ring *ring = &fd->ring[i];
        if (ring->addressed && !(ring->called && ring->kicked)) {
            (void)complain(self, op, "a ring without kick or call", 0);
        }
        count += ring->addressed;
    }
    return count;
}

/* Whether the rings may run: 0, or what the kernel says. */
static int may_run(fake_kernel *self, const fake_fd *fd, fake_op op)
{
    int count = count_set_up(self, fd, op);
    if (count == 0 || !fd->features_set || !fd->table_set) {
        return complain(self, op, "before all is there", -EFAULT);
    }
    if (fd->sticks || ((fd->features[0] & ACCESS_PLATFORM) != 0 && fd->tlb_maps == 0)) {
        return -EFAULT;
    }
    return fd->kind == FAKE_VSOCK && count < 2 ? -EFAULT : 0;
}

static int set_guest_cid(fake_kernel *self, fake_fd *fd, unsigned char *argument)
{
    uint64_t cid = get64(argument, 0);
    if (cid <= 2 || cid >= 0xffffffff) {
        return complain(self, FAKE_VSOCK_SET_GUEST_CID, "not a CID of a guest", -EINVAL);
    }
    for (unsigned i = 0; i < self->opened; i++) {
        const fake_fd *other = &self->fds[i];
        if (other != fd && other->open && other->cid == cid) {
            return -EADDRINUSE;
        }
    }
    if (cid == self->taken_cid) {
        return -EADDRINUSE;
    }
    fd->cid = cid;
    return 0;
}

static int set_running(fake_kernel *self, fake_fd *fd, unsigned char *argument)
{
    uint32_t on = get32(argument, 0);
    int result = on != 0 ? may_run(self, fd, FAKE_VSOCK_SET_RUNNING) : 0;
    if (on > 1 || (on == 1 && fd->cid == 0)) {
        return complain(self, FAKE_VSOCK_SET_RUNNING, "a value, or without a CID", -EINVAL);
    }
    if (result == 0) {
        fd->running = on != 0;
    }
    return result;
}

static int test_run(fake_kernel *self, fake_fd *fd, unsigned char *argument)
{
    uint32_t on = get32(argument, 0);
    int result = on != 0 ? may_run(self, fd, FAKE_TEST_RUN) : 0;
    if (result == 0) {
        fd->running = on != 0;
    }
    return result;
}

/* ---- scsi: abi_version, wwpn[224], tag, reserved ---- */

static bool target_in_use(const fake_kernel *self)
{
    bool used = false;
    for (unsigned i = 0; i < self->opened; i++) {
        const fake_fd *fd = &self->fds[i];
        used |= fd->open && fd->kind == FAKE_SCSI && fd->running;
    }
    return used;
}

static bool is_target(const fake_kernel *self, const unsigned char *argument)
{
    return self->target && strncmp((const char *)argument + 4, self->target, 224) == 0;
}

static int check_target(fake_kernel *self, const fake_fd *fd, fake_op op,
                        const unsigned char *argument)
{
    if (!fd->owned) {
        return complain(self, op, "nobody owns the fd", -EFAULT);
    }
    if (get32(argument, 228) >> 16 != 0) {
        return complain(self, op, "reserved bytes", -EOPNOTSUPP);
    }
    if (get32(argument, 0) != 1 || argument[4] == 0 || argument[227] != 0) {
        return complain(self, op, "ABI version or wwpn", -EINVAL);
    }
    return 0;
}

static int set_endpoint(fake_kernel *self, fake_fd *fd, unsigned char *argument)
{
    int result = check_target(self, fd, FAKE_SCSI_SET_ENDPOINT, argument);
    if (result == 0) {
        result = may_run(self, fd, FAKE_SCSI_SET_ENDPOINT);
    }
    if (result < 0) {
        return result;
    }
    if (fd->running) {
        return complain(self, FAKE_SCSI_SET_ENDPOINT, "it is set", -EEXIST);
    }
    if (!is_target(self, argument) || target_in_use(self)) {
        return -ENODEV;
    }
    fd->running = true;
    return 0;
}

static int clear_endpoint(fake_kernel *self, fake_fd *fd, unsigned char *argument)
{
    int result = check_target(self, fd, FAKE_SCSI_CLEAR_ENDPOINT, argument);
    if (result < 0 || !fd->running) {
        return result;
    }
    if (!is_target(self, argument)) {
        return complain(self, FAKE_SCSI_CLEAR_ENDPOINT, "of another target", -EINVAL);
    }
    fd->running = false;
    return 0;
}

static int get_abi_version(fake_kernel *self, fake_fd *fd, unsigned char *argument)
{
    (void)fd;
    put32(argument, 0, self->scsi_abi);
    return 0;
}

static int set_events_missed(fake_kernel *self, fake_fd *fd, unsigned char *argument)
{
    (void)self;
    fd->missed = get32(argument, 0) != 0;
    return 0;
}

static int get_events_missed(fake_kernel *self, fake_fd *fd, unsigned char *argument)
{
    (void)self;
    put32(argument, 0, fd->missed);
    return 0;
}

/* ---- the table of ioctls ---- */

enum { /* who knows them */
    NET = 1 << FAKE_NET,
    VSOCK = 1 << FAKE_VSOCK,
    SCSI = 1 << FAKE_SCSI,
    VDPA = 1 << FAKE_VDPA,
    OTHER = 1 << FAKE_OTHER,
    HOST = NET | VSOCK | SCSI | OTHER, /* those that go by host addresses */
    ALL = HOST | VDPA,
    WORKERS = NET | SCSI | OTHER,
    MODERN = ALL & ~SCSI
};

typedef struct entry {
    const char *name;
    unsigned long request; /* as on x86, Arm, RISC-V and s390 */
    size_t size;           /* of the argument, without what follows it */
    fake_release since;
    int kinds;
    bool for_all; /* no owner is needed */
    fake_handler *handle;
} entry;

static const entry entries[FAKE_OP_COUNT] = {
    {"open", 0, 0, FAKE_LINUX_2_6_34, ALL, true, NULL},
    {"close", 0, 0, FAKE_LINUX_2_6_34, ALL, true, NULL},
    {"read", 0, 0, FAKE_LINUX_2_6_34, ALL, true, NULL},
    {"write", 0, 0, FAKE_LINUX_2_6_34, ALL, true, NULL},
    {"map", 0, 0, FAKE_LINUX_2_6_34, ALL, true, NULL},
    {"unmap", 0, 0, FAKE_LINUX_2_6_34, ALL, true, NULL},
    {"FIONBIO", 0x5421ul, 4, FAKE_LINUX_2_6_34, ALL, true, set_patient},
    {"GET_FEATURES", 0x8008af00ul, 8, FAKE_LINUX_2_6_34, ALL, true, get_features},
    {"SET_FEATURES", 0x4008af00ul, 8, FAKE_LINUX_2_6_34, ALL, true, set_features},
    {"SET_OWNER", 0xaf01ul, 0, FAKE_LINUX_2_6_34, ALL, true, set_owner},
    {"RESET_OWNER", 0xaf02ul, 0, FAKE_LINUX_2_6_34, NET, false, reset_owner},
    {"SET_MEM_TABLE", 0x4008af03ul, 8, FAKE_LINUX_2_6_34, HOST, false, set_mem_table},
    {"SET_LOG_BASE", 0x4008af04ul, 8, FAKE_LINUX_2_6_34, HOST, false, accept_anything},
    {"SET_LOG_FD", 0x4004af07ul, 4, FAKE_LINUX_2_6_34, HOST, false, accept_anything},
    {"NEW_WORKER", 0x8004af08ul, 4, FAKE_LINUX_6_12, WORKERS, false, new_worker},
    {"FREE_WORKER", 0x4004af09ul, 4, FAKE_LINUX_6_12, WORKERS, false, free_worker},
    {"SET_VRING_NUM", 0x4008af10ul, 8, FAKE_LINUX_2_6_34, ALL, false, set_num},
    {"SET_VRING_ADDR", 0x4028af11ul, 40, FAKE_LINUX_2_6_34, ALL, false, set_addr},
    {"SET_VRING_BASE", 0x4008af12ul, 8, FAKE_LINUX_2_6_34, ALL, false, set_base},
    {"GET_VRING_BASE", 0xc008af12ul, 8, FAKE_LINUX_2_6_34, ALL, false, get_base},
    {"SET_VRING_ENDIAN", 0x4008af13ul, 8, FAKE_LINUX_6_17, HOST, false, set_endian},
    {"ATTACH_VRING_WORKER", 0x4008af15ul, 8, FAKE_LINUX_6_12, WORKERS, false, attach_worker},
    {"SET_VRING_KICK", 0x4008af20ul, 8, FAKE_LINUX_2_6_34, ALL, false, set_kick},
    {"SET_VRING_CALL", 0x4008af21ul, 8, FAKE_LINUX_2_6_34, ALL, false, set_call},
    {"SET_VRING_ERR", 0x4008af22ul, 8, FAKE_LINUX_2_6_34, ALL, false, set_err},
    {"SET_VRING_BUSYLOOP_TIMEOUT", 0x4008af23ul, 8, FAKE_LINUX_4_19, HOST, false, set_busy_loop},
    {"SET_BACKEND_FEATURES", 0x4008af25ul, 8, FAKE_LINUX_4_19, MODERN, true, set_backend_features},
    {"GET_BACKEND_FEATURES", 0x8008af26ul, 8, FAKE_LINUX_4_19, MODERN, true, get_backend_features},
    {"NET_SET_BACKEND", 0x4008af30ul, 8, FAKE_LINUX_2_6_34, NET, false, set_backend},
    {"SCSI_SET_ENDPOINT", 0x40e8af40ul, 232, FAKE_LINUX_2_6_34, SCSI, true, set_endpoint},
    {"SCSI_CLEAR_ENDPOINT", 0x40e8af41ul, 232, FAKE_LINUX_2_6_34, SCSI, true, clear_endpoint},
    {"SCSI_GET_ABI_VERSION", 0x4004af42ul, 4, FAKE_LINUX_2_6_34, SCSI, true, get_abi_version},
    {"SCSI_SET_EVENTS_MISSED", 0x4004af43ul, 4, FAKE_LINUX_2_6_34, SCSI, true, set_events_missed},
    {"SCSI_GET_EVENTS_MISSED", 0x4004af44ul, 4, FAKE_LINUX_2_6_34, SCSI, true, get_events_missed},
    {"VSOCK_SET_GUEST_CID", 0x4008af60ul, 8, FAKE_LINUX_4_19, VSOCK, true, set_guest_cid},
    {"VSOCK_SET_RUNNING", 0x4004af61ul, 4, FAKE_LINUX_4_19, VSOCK, false, set_running},
    {"TEST_RUN", 0x4004af00ul, 4, FAKE_LINUX_2_6_34, OTHER, false, test_run},
    {"VDPA_GET_DEVICE_ID", 0x8004af70ul, 4, FAKE_LINUX_5_7, VDPA, true, fake_vdpa_get_device_id},
    {"VDPA_GET_STATUS", 0x8001af71ul, 1, FAKE_LINUX_5_7, VDPA, true, fake_vdpa_get_status},
    {"VDPA_SET_STATUS", 0x4001af72ul, 1, FAKE_LINUX_5_7, VDPA, true, fake_vdpa_set_status},
    {"VDPA_GET_CONFIG", 0x8008af73ul, 8, FAKE_LINUX_5_7, VDPA, true, fake_vdpa_get_config},
    {"VDPA_SET_CONFIG", 0x4008af74ul, 8, FAKE_LINUX_5_7, VDPA, true, fake_vdpa_set_config},
    {"VDPA_SET_VRING_ENABLE", 0x4008af75ul, 8, FAKE_LINUX_5_7, VDPA, false, fake_vdpa_enable},
    {"VDPA_GET_VRING_NUM", 0x8002af76ul, 2, FAKE_LINUX_5_7, VDPA, true, fake_vdpa_get_vring_num},
    {"VDPA_SET_CONFIG_CALL", 0x4004af77ul, 4, FAKE_LINUX_5_10, VDPA, true, fake_vdpa_config_call},
    {"VDPA_GET_IOVA_RANGE", 0x8010af78ul, 16, FAKE_LINUX_5_10, VDPA, true, fake_vdpa_get_range},
    {"VDPA_GET_CONFIG_SIZE", 0x8004af79ul, 4, FAKE_LINUX_5_18, VDPA, true,
     fake_vdpa_get_config_size},
    {"VDPA_GET_AS_NUM", 0x8004af7aul, 4, FAKE_LINUX_5_19, VDPA, true, fake_vdpa_get_spaces},
    {"VDPA_GET_VRING_GROUP", 0xc008af7bul, 8, FAKE_LINUX_5_19, VDPA, false, fake_vdpa_get_group},
    {"VDPA_SET_GROUP_ASID", 0x4008af7cul, 8, FAKE_LINUX_5_19, VDPA, false, fake_vdpa_set_space},
    {"VDPA_SUSPEND", 0xaf7dul, 0, FAKE_LINUX_6_1, VDPA, true, fake_vdpa_suspend},
    {"VDPA_RESUME", 0xaf7eul, 0, FAKE_LINUX_6_3, VDPA, true, fake_vdpa_resume},
    {"VDPA_GET_VQS_COUNT", 0x8004af80ul, 4, FAKE_LINUX_5_18, VDPA, true, fake_vdpa_get_rings},
    {"VDPA_GET_GROUP_NUM", 0x8004af81ul, 4, FAKE_LINUX_5_19, VDPA, true, fake_vdpa_get_groups},
    {"VDPA_GET_VRING_SIZE", 0xc008af82ul, 8, FAKE_LINUX_6_9, VDPA, false, fake_vdpa_get_limit},
    {"GET_FEATURES_ARRAY", 0x8008af83ul, 24, FAKE_LINUX_6_17, NET, true, get_features_array},
    {"SET_FEATURES_ARRAY", 0x4008af83ul, 24, FAKE_LINUX_6_17, NET, true, set_features_array},
    {"SET_FORK_FROM_OWNER", 0x4001af84ul, 1, FAKE_LINUX_6_12, ALL, true, set_fork},
};

const char *fake_kernel_name(fake_op op)
{
    return (int)op < FAKE_OP_COUNT ? entries[op].name : "nothing";
}

static fake_op op_of(unsigned long request)
{
    for (int op = FAKE_FIONBIO; op < FAKE_OP_COUNT; op++) {
        if (entries[op].request == request) {
            return (fake_op)op;
        }
    }
    return FAKE_NO_OP;
}

static size_t argument_size(fake_op op, const unsigned char *argument)
{
    size_t size = entries[op].size;
    if (op == FAKE_VDPA_GET_CONFIG || op == FAKE_VDPA_SET_CONFIG) {
        return size + get32(argument, 4);
    }
    return op == FAKE_SET_MEM_TABLE ? size + 32 * (size_t)get32(argument, 0) : size;
}

/* What the kernel does not know goes the way of the ioctls of a ring: first comes the owner, then
   the number of the ring. */
static int unknown(const fake_kernel *self, const fake_fd *fd, const unsigned char *argument)
{
    if (!fd->owned) {
        return -EPERM;
    }
    if (!argument) {
        return -EFAULT;
    }
    return get32(argument, 0) >= rings_of(self, fd) ? -ENOBUFS : -ENOTTY;
}

/* vhost-net got workers later than others, and vDPA back-end features. */
static bool knows(const fake_kernel *self, const fake_fd *fd, fake_op op)
{
    fake_release since = entries[op].since;
    if (fd->kind == FAKE_NET && entries[op].kinds == WORKERS) {
        since = FAKE_LINUX_6_17;
    }
    if (fd->kind == FAKE_VDPA && entries[op].kinds == MODERN) {
        since = FAKE_LINUX_5_10;
    }
    return self->release >= since && (entries[op].kinds & 1 << fd->kind) != 0;
}

/* ---- the calls ---- */

static fake_call *record(fake_kernel *self, fake_op op, int fd)
{
    static fake_call spill;
    fake_call *call = &spill;
    if (self->count < FAKE_CALLS) {
        call = &self->calls[self->count++];
    } else {
        (void)complain(self, op, "too many calls to remember", 0);
    }
    memset(call, 0, sizeof *call);
    call->op = op;
    call->fd = fd;
    return call;
}

static bool refuses(fake_kernel *self, fake_op op, int fd)
{
    if (self->refused != op || (self->refused_fd >= 0 && self->refused_fd != fd)) {
        return false;
    }
    if (self->refused_skip-- > 0) {
        return false;
    }
    if (self->refused_once) {
        self->refused = FAKE_NO_OP;
    }
    return true;
}

/* Whether this call fails for the test's sake: a negative errno, else 0. */
static int fails(fake_kernel *self, fake_op op, int fd)
{
    if (self->fault && fault_strikes(self->fault, FAULT_OPERATION, VHOST_OP_NONE, (int)op)) {
        return -EIO;
    }
    return refuses(self, op, fd) ? self->refusal : 0;
}

static fake_fd *fd_of(fake_kernel *self, int number)
{
    int index = number - FAKE_FD;
    bool known = index >= 0 && index < (int)self->opened;
    return known && self->fds[index].open ? &self->fds[index] : NULL;
}

int fake_kernel_pass(fake_kernel *self)
{
    return fake_kernel_pass_kind(self, FAKE_NET);
}

int fake_kernel_pass_kind(fake_kernel *self, fake_kind kind)
{
    fake_fd *fd = &self->fds[self->opened];
    if (self->opened == FAKE_FDS) {
        return complain(self, FAKE_OPEN, "too many fds to remember", -EMFILE);
    }
    if (kind == FAKE_VDPA && !fake_vdpa_open(self)) {
        return -EBUSY;
    }
    fd->open = true;
    fd->kind = kind;
    reset_fd(fd);
    fd->owned = self->has_owner;
    return FAKE_FD + (int)self->opened++;
}

static int open_any(fake_kernel *self, const char *path, bool writable)
{
    if (strcmp(path, "/sys/module/vhost/parameters/max_mem_regions") == 0) {
        if (writable || self->file_open) {
            return complain(self, FAKE_OPEN, "max_mem_regions", -EACCES);
        }
        self->file_open = self->max_mem_regions != NULL;
        return self->file_open ? FAKE_FILE_FD : -ENOENT;
    }
    for (int kind = 0; kind < FAKE_KINDS; kind++) {
        if (strcmp(path, paths[kind]) == 0) {
            return writable ? fake_kernel_pass_kind(self, (fake_kind)kind)
                            : complain(self, FAKE_OPEN, "read only", -EACCES);
        }
    }
    return -ENOENT;
}

static int do_open(const char *path, bool writable, void *user)
{
    fake_kernel *self = (fake_kernel *)user;
    fake_call *call = record(self, FAKE_OPEN, -1);
    size_t length = strlen(path);
    memcpy(call->bytes, path, length < FAKE_BYTES ? length : FAKE_BYTES - 1);
    call->result = fails(self, FAKE_OPEN, -1);
    if (call->result == 0) {
        call->result = call->fd = open_any(self, path, writable);
    }
    return call->result;
}

/* Also a close that fails closes. */
static int do_close(int number, void *user)
{
    fake_kernel *self = (fake_kernel *)user;
    fake_fd *fd = fd_of(self, number);
    fake_call *call = record(self, FAKE_CLOSE, number);
    call->result = fails(self, FAKE_CLOSE, number);
    if (number == FAKE_FILE_FD && self->file_open) {
        self->file_open = false;
    } else if (fd) {
        if (fd->kind == FAKE_VDPA) {
            fake_vdpa_close(self, fd);
        }
        fd->open = false;
        reset_fd(fd);
    } else {
        call->result = complain(self, FAKE_CLOSE, "the fd is not open", -EBADF);
    }
    return call->result;
}

static int do_ioctl(int number, unsigned long request, void *argument, void *user)
{
    fake_kernel *self = (fake_kernel *)user;
    fake_fd *fd = fd_of(self, number);
    fake_op op = op_of(request);
    fake_call *call;
    if (op == FAKE_NO_OP || !fd) {
        return complain(self, op, fd ? "no such request" : "the fd is not open", -EBADF);
    }
    if (self->interrupts) {
        self->interrupted = !self->interrupted;
        if (self->interrupted) {
            return -EINTR;
        }
    }
    call = record(self, op, number);
    call->request = request;
    if (argument) {
        call->size = argument_size(op, (unsigned char *)argument);
        memcpy(call->bytes, argument, call->size < FAKE_BYTES ? call->size : FAKE_BYTES);
    }
    call->result = fails(self, op, number);
    if (call->result < 0) {
        return call->result;
    }
    self->vdpa.gone_count = 0;
    if (fd->kind == FAKE_VDPA) {
        fake_vdpa_watch(self, op);
    }
    if (!knows(self, fd, op)) {
        call->result = unknown(self, fd, (unsigned char *)argument);
    } else if (!entries[op].for_all && !fd->owned) {
        call->result = complain(self, op, "nobody owns the fd", -EPERM);
    } else {
        call->result = entries[op].handle(self, fd, (unsigned char *)argument);
    }
    return call->result;
}

static ptrdiff_t give(const void *from, size_t length, void *bytes, size_t size)
{
    size_t count = length < size ? length : size;
    memcpy(bytes, from, count);
    return (ptrdiff_t)count;
}

static ptrdiff_t read_message(fake_kernel *self, const fake_fd *fd, void *bytes, size_t size)
{
    if (fd->kind == FAKE_VDPA) {
        return complain(self, FAKE_READ, "a vDPA device has nothing to say", -EINVAL);
    }
    if (!fd->patient) {
        return complain(self, FAKE_READ, "it would wait", -EINTR);
    }
    if (self->message_size == 0 || &self->fds[self->message_fd - FAKE_FD] != fd) {
        return -EAGAIN;
    }
    size_t length = self->message_size;
    self->message_size = 0;
    return give(self->message, length, bytes, size);
}

static ptrdiff_t do_read(int number, void *bytes, size_t size, void *user)
{
    fake_kernel *self = (fake_kernel *)user;
    const fake_fd *fd = fd_of(self, number);
    fake_call *call = record(self, FAKE_READ, number);
    call->result = fails(self, FAKE_READ, number);
    if (call->result < 0) {
        return call->result;
    }
    if (fd) {
        return read_message(self, fd, bytes, size);
    }
    if (number != FAKE_FILE_FD || !self->file_open) {
        return complain(self, FAKE_READ, "the fd is not open", -EBADF);
    }
    return give(self->max_mem_regions, strlen(self->max_mem_regions), bytes, size);
}

/* Of a device that goes by host addresses. */
static int take_message(fake_fd *fd, const unsigned char *message)
{
    if (message[33] == 2) {
        fd->tlb_maps++;
    }
    if (message[33] == 3 && get64(message, 16) == UINT64_MAX) {
        fd->tlb_maps = 0;
    }
    return 0;
}

static ptrdiff_t do_write(int number, const void *bytes, size_t size, void *user)
{
    fake_kernel *self = (fake_kernel *)user;
    fake_fd *fd = fd_of(self, number);
    fake_call *call = record(self, FAKE_WRITE, number);
    if (!fd && size == 8) { /* a kick */
        call->size = size;
        memcpy(call->bytes, bytes, size);
        call->result = fails(self, FAKE_WRITE, number);
        return call->result < 0 ? call->result : (ptrdiff_t)size;
    }
    if (!fd || size != FAKE_MESSAGE) {
        return complain(self, FAKE_WRITE, "no message, or not to a vhost fd", -EINVAL);
    }
    call->size = size;
    memcpy(call->bytes, bytes, size);
    call->result = fails(self, FAKE_WRITE, number);
    if (call->result == 0) {
        call->result = fd->kind == FAKE_VDPA ? fake_vdpa_message(self, fd, call->bytes)
                                             : take_message(fd, call->bytes);
    } else if (fake_vdpa_ends_batch(call->bytes)) {
        self->vdpa.in_batch = false; /* a refused end is no reason to complain of the next begin */
    }
    return call->result < 0 ? call->result : (ptrdiff_t)size;
}

/* ---- doorbells ---- */

static int do_map(int number, uint64_t offset, size_t size, void **at, void *user)
{
    fake_kernel *self = (fake_kernel *)user;
    const fake_fd *fd = fd_of(self, number);
    fake_call *call = record(self, FAKE_MAP, number);
    put64(call->bytes, 0, offset);
    put64(call->bytes, 8, size);
    call->size = 16;
    call->result = fails(self, FAKE_MAP, number);
    if (call->result == 0 && !fd) {
        call->result = complain(self, FAKE_MAP, "the fd is not open", -EBADF);
    } else if (call->result == 0) {
        call->result =
            fd->kind == FAKE_VDPA ? fake_vdpa_map_doorbell(self, offset, size, at) : -ENODEV;
    }
    return call->result;
}

static int do_unmap(void *at, size_t size, void *user)
{
    fake_kernel *self = (fake_kernel *)user;
    fake_call *call = record(self, FAKE_UNMAP, -1);
    call->result = fails(self, FAKE_UNMAP, -1);
    if (call->result == 0) {
        call->result = fake_vdpa_unmap_doorbell(self, at, size);
    }
    return call->result;
}

const vhost_kernel_calls fake_kernel_calls = {do_open,  do_close, do_ioctl, do_read,
                                              do_write, do_map,   do_unmap};

static void *allocate(void *memory, size_t size, void *user)
{
    fake_kernel *self = (fake_kernel *)user;
    return self->allocate(memory, size, self->user);
}

/* ---- for the test ---- */

void fake_kernel_init(fake_kernel *self)
{
    memset(self, 0, sizeof *self);
    self->release = FAKE_LINUX_6_17;
    /* 15 MRG_RXBUF, 24 NOTIFY_ON_EMPTY, 26 LOG_ALL, 27 net header, 28 INDIRECT, 29 EVENT_IDX,
       32 VERSION_1, 33 ACCESS_PLATFORM, 40 RING_RESET; 65 a tunnel */
    self->features[0] = UINT64_C(0x1033d008000);
    self->features[1] = 2;
    self->backend_features = 2;
    self->max_mem_regions = "64\n";
    self->slots = 64;
    self->refused = FAKE_NO_OP;
    /* As measured on Linux 6.12: vsock SEQPACKET; scsi HOTPLUG and T10_PI, and no IOTLB. */
    self->offers[FAKE_VSOCK].features = UINT64_C(0x33d000002);
    self->offers[FAKE_VSOCK].backend_features = 2;
    self->offers[FAKE_SCSI].features = UINT64_C(0x13d00000a);
    self->offers[FAKE_OTHER].features = UINT64_C(0x33d000000);
    self->offers[FAKE_OTHER].backend_features = 2;
    self->target = FAKE_TARGET;
    self->scsi_abi = 1;
    fake_vdpa_init(self);
}

vhost_kernel_options fake_kernel_options(fake_kernel *self)
{
    vhost_kernel_options options;
    memset(&options, 0, sizeof options);
    options.user = self;
    options.calls = &fake_kernel_calls;
    if (self->allocate) {
        options.allocate = allocate;
    }
    return options;
}

void fake_kernel_refuse(fake_kernel *self, fake_op op, int fd, int skip, int error)
{
    self->refused = op;
    self->refused_fd = fd;
    self->refused_skip = skip;
    self->refusal = error;
    self->refused_once = false;
}

void fake_kernel_refuse_once(fake_kernel *self, fake_op op, int fd, int skip, int error)
{
    fake_kernel_refuse(self, op, fd, skip, error);
    self->refused_once = true;
}

void fake_kernel_relent(fake_kernel *self)
{
    self->refused = FAKE_NO_OP;
}

void fake_kernel_forget(fake_kernel *self)
{
    self->count = 0;
    self->vdpa.gone_count = 0;
}

unsigned fake_kernel_count(const fake_kernel *self, fake_op op, int fd)
{
    unsigned count = 0;
    for (unsigned i = 0; i < self->count; i++) {
        count += self->calls[i].op == op && (fd < 0 || self->calls[i].fd == fd);
    }
    return count;
}

const fake_call *fake_kernel_last(const fake_kernel *self, fake_op op, int fd)
{
    const fake_call *last = NULL;
    for (unsigned i = 0; i < self->count; i++) {
        if (self->calls[i].op == op && (fd < 0 || self->calls[i].fd == fd)) {
            last = &self->calls[i];
        }
    }
    return last;
}

uint64_t fake_kernel_set(const fake_kernel *self)
{
    uint64_t set = 0;
    for (unsigned i = 0; i < self->count; i++) {
        set |= UINT64_C(1) << self->calls[i].op;
    }
    return set;
}

unsigned fake_kernel_open_fds(const fake_kernel *self)
{
    unsigned count = self->file_open;
    for (unsigned i = 0; i < self->opened; i++) {
        count += self->fds[i].open;
    }
    return count;
}
