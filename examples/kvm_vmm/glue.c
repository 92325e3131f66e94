/* glue.c - a VMM's devices on vhost back-ends: all that it takes
   SPDX-License-Identifier: MIT OR Unlicense

   README.md, "Drop it into your VMM", goes through it step by step. */
#define _GNU_SOURCE
#define VHOST_IMPLEMENTATION
#include "vhost_kernel.h"
#include "vhost_user.h"

#include "glue.h"

#include <stdlib.h>
#include <sys/eventfd.h>

#define BIT(number) (UINT64_C(1) << (number))

enum {
    BACKEND_QUEUES = 2, /* at most; a vsock has a third one, for events, which is the VMM's own */
    RETRY_MS = 50,      /* the first pause before a back-end that died is looked for again */
    RETRY_MAX_MS = 1000,
    IDLE_MS = 2000, /* how long a disk may take to finish what it has to do */
    DISK_CONFIG = 60,

    NET_MAC = 5, /* feature bits */
    NET_MRG_RXBUF = 15,
    DISK_SEG_MAX = 2,
    DISK_BLK_SIZE = 6,
    DISK_FLUSH = 9,
    DISK_TOPOLOGY = 10
};

#define RING_BITS                                                                                  \
    (BIT(VHOST_FEATURE_VERSION_1) | BIT(VHOST_FEATURE_INDIRECT_DESC) |                             \
     BIT(VHOST_FEATURE_EVENT_IDX) | BIT(VHOST_FEATURE_RING_RESET))
#define NET_BITS (RING_BITS | BIT(NET_MAC) | BIT(NET_MRG_RXBUF))
#define DISK_BITS                                                                                  \
    (RING_BITS | BIT(DISK_SEG_MAX) | BIT(DISK_BLK_SIZE) | BIT(DISK_FLUSH) | BIT(DISK_TOPOLOGY))

struct glue_device {
    glue_vm *glue;
    virtio_device *virtio;
    vhost_device vhost;
    vhost_queue queues[BACKEND_QUEUES];
    vhost_kernel kernel; /* one of these two is open */
    vhost_user user;
    const vhost_backend_ops *ops;
    void *backend;
    vhost_device_options options;
    uint64_t wanted; /* feature bits */
};

struct glue_vm {
    kvm_machine *machine;
    vhost_vm vm;
    vhost_backing backings[MACHINE_PIECES];
    glue_device devices[MACHINE_DEVICES];
    uint32_t count;
    bool arriving;
    int tap;
};

/* ---- memory ---------------------------------------------------------------------------------- */

static void on_message(vhost_level level, const vhost_error *what, const vhost_device *device,
                       void *user)
{
    (void)device;
    (void)user;
    fprintf(stderr, "vmm: %s%s\n", level == VHOST_LEVEL_NOTE ? "note: " : "", what->text);
}

glue_vm *glue_open(kvm_machine *machine, bool arriving)
{
    glue_vm *self = calloc(1, sizeof *self);
    vhost_vm_options options = {.on_message = on_message};
    if (self == NULL || vhost_vm_init(&self->vm, &options) < 0)
        return NULL;
    self->machine = machine;
    self->arriving = arriving;
    self->tap = -1;
    return self;
}

static bool add_section(glue_vm *self, uint32_t piece)
{
    const machine_ram *ram = &self->machine->ram[piece];
    vhost_section section;
    vhost_backing_init(&self->backings[piece], ram->host, ram->size, ram->fd, 0);
    vhost_section_init(&section, ram->gpa, ram->size, &self->backings[piece], 0);
    return vhost_memory_add(&self->vm, &section) == 0;
}

bool glue_map(glue_vm *self)
{
    bool good = vhost_memory_begin(&self->vm) == 0;
    for (uint32_t i = 0; good && i < self->machine->ram_count; i++)
        good = add_section(self, i);
    return vhost_memory_commit(&self->vm) == 0 && good;
}

/* ---- devices --------------------------------------------------------------------------------- */

/* A back-end that died is looked for until it is back: the driver's requests wait meanwhile. Where
   it stood is a guess if it keeps no record of its requests. One that is asked for one thing at a
   time, as here, loses nothing by it: what it has not used is done again. */
static void on_broken(vhost_device *device, void *user)
{
    (void)user;
    for (uint32_t i = 0; i < device->queue_count; i++)
        if (device->queues[i].position.state == VHOST_POSITION_GUESSED)
            device->queues[i].position.state = VHOST_POSITION_CERTAIN;
}

static void on_config(vhost_device *device, void *user)
{
    glue_device *self = user;
    if (vhost_device_get_config(device, 0, self->virtio->registers.config, DISK_CONFIG) == 0)
        virtio_changed(self->virtio);
}

static bool attach(glue_device *self)
{
    vhost_features wanted = {{self->wanted, 0}};
    uint32_t count = self->virtio->queue_count;
    if (count > BACKEND_QUEUES)
        count = BACKEND_QUEUES;
    if (vhost_device_init(&self->vhost, &self->glue->vm, self->ops, self->backend, self->queues,
                          count, &self->options) < 0)
        return false;
    self->virtio->offered = vhost_device_offer(&self->vhost, wanted).word[0];
    return true;
}

static glue_device *add(glue_vm *self, uint32_t id, uint32_t queues, uint64_t wanted)
{
    virtio_device *virtio = virtio_plug(self->machine, id, queues);
    if (virtio == NULL)
        return NULL;
    glue_device *device = &self->devices[self->count++];
    device->glue = self;
    device->virtio = virtio;
    device->wanted = wanted;
    device->options.user = device;
    virtio->glue = device;
    for (uint32_t i = 0; i < BACKEND_QUEUES; i++) {
        vhost_queue_init(&device->queues[i]);
        device->queues[i].kick_fd = virtio->kick[i];
        device->queues[i].call_fd = virtio->call[i];
    }
    return device;
}

/* The last step. A CID belongs to the source of a migration until the guest has left it. */
static bool finish(glue_device *self, const vhost_backend_ops *ops, void *backend)
{
    self->ops = ops;
    self->backend = backend;
    return (self->glue->arriving && self->virtio->id == VIRTIO_ID_VSOCK) || attach(self);
}

static void set_mac(virtio_device *virtio, uint8_t last)
{
    const uint8_t mac[6] = {0x52, 0x54, 0, 0, 0, last};
    memcpy(virtio->registers.config, mac, sizeof mac);
}

bool glue_add_net(glue_vm *self, int tap)
{
    glue_device *device = add(self, VIRTIO_ID_NET, 2, NET_BITS);
    if (device == NULL ||
        vhost_kernel_net_open(&device->kernel, "/dev/vhost-net", &tap, 1, NULL) < 0)
        return false;
    self->tap = tap;
    set_mac(device->virtio, 1);
    return finish(device, vhost_kernel_ops(&device->kernel), &device->kernel);
}

bool glue_add_vsock(glue_vm *self, uint32_t cid)
{
    uint64_t guest_cid = cid;
    glue_device *device = add(self, VIRTIO_ID_VSOCK, 3, RING_BITS);
    if (device == NULL ||
        vhost_kernel_vsock_open(&device->kernel, "/dev/vhost-vsock", cid, NULL) < 0)
        return false;
    memcpy(device->virtio->registers.config, &guest_cid, sizeof guest_cid);
    return finish(device, vhost_kernel_ops(&device->kernel), &device->kernel);
}

bool glue_add_disk(glue_vm *self, const char *socket)
{
    vhost_user_options options = {.retry_ms = RETRY_MS, .retry_max_ms = RETRY_MAX_MS};
    glue_device *device = add(self, VIRTIO_ID_DISK, 1, DISK_BITS);
    if (device == NULL || vhost_user_connect(&device->user, socket, &options) < 0)
        return false;
    device->options.on_config = on_config;
    device->options.on_broken = on_broken;
    return finish(device, vhost_user_ops(), &device->user) &&
           vhost_device_get_config(&device->vhost, 0, device->virtio->registers.config,
                                   DISK_CONFIG) == 0;
}

bool glue_add_user_net(glue_vm *self, const char *socket)
{
    static const vhost_features its_bits = {{~BIT(NET_MAC), 0}};
    vhost_user_options options = {
        .retry_ms = RETRY_MS, .retry_max_ms = RETRY_MAX_MS, .counts_pairs = true};
    glue_device *device = add(self, VIRTIO_ID_NET, 2, NET_BITS);
    if (device == NULL || vhost_user_connect(&device->user, socket, &options) < 0)
        return false;
    device->options.its_bits = &its_bits;
    device->options.on_broken = on_broken;
    set_mac(device->virtio, 2);
    return finish(device, vhost_user_ops(), &device->user);
}

static bool is_kernel(const glue_device *self)
{
    return self->backend == &self->kernel;
}

int glue_tap(const glue_vm *self)
{
    return self->tap;
}

bool glue_set_tap(glue_vm *self, int tap)
{
    self->tap = tap;
    for (uint32_t i = 0; i < self->count; i++)
        if (self->devices[i].virtio->id == VIRTIO_ID_NET && is_kernel(&self->devices[i]))
            return vhost_kernel_net_attach(&self->devices[i].kernel, 0, tap) == 0;
    return false;
}

void glue_close(glue_vm *self)
{
    for (uint32_t i = 0; i < self->count; i++) {
        vhost_device_cleanup(&self->devices[i].vhost);
        vhost_kernel_close(&self->devices[i].kernel);
        vhost_user_close(&self->devices[i].user);
    }
    (void)vhost_vm_cleanup(&self->vm);
    free(self);
}

/* ---- what a transport needs ------------------------------------------------------------------ */

bool glue_accept(glue_device *self, uint64_t features)
{
    vhost_features accepted = {{features, 0}};
    return vhost_device_ack(&self->vhost, accepted) == 0;
}

static void fill_queue(glue_device *self, uint32_t number)
{
    const virtio_queue *from = &self->virtio->registers.queues[number];
    vhost_queue *to = &self->queues[number];
    to->ready = from->ready != 0;
    to->size = from->size;
    to->desc = from->desc;
    to->avail = from->avail;
    to->used = from->used;
}

bool glue_start(glue_device *self)
{
    for (uint32_t i = 0; i < self->vhost.queue_count; i++)
        fill_queue(self, i);
    return vhost_device_start(&self->vhost) == 0;
}

void glue_reset(glue_device *self)
{
    (void)vhost_device_stop(&self->vhost);
    (void)vhost_device_reset(&self->vhost);
}

bool glue_start_queue(glue_device *self, uint32_t queue)
{
    fill_queue(self, queue);
    return vhost_queue_start(&self->vhost, queue) == 0;
}

void glue_stop_queue(glue_device *self, uint32_t queue)
{
    (void)vhost_queue_stop(&self->vhost, queue);
}

/* ---- events ---------------------------------------------------------------------------------- */

uint32_t glue_polls(const glue_vm *self, struct pollfd *polls, int *timeout)
{
    int fds[GLUE_POLLS];
    uint32_t count = 0;
    *timeout = -1;
    for (uint32_t i = 0; i < self->count; i++) {
        const glue_device *device = &self->devices[i];
        int due = is_kernel(device) ? -1 : vhost_user_timeout(&device->user);
        count += is_kernel(device)
                     ? vhost_device_poll_fds(&device->vhost, fds + count, GLUE_POLLS - count)
                     : vhost_user_poll_fds(&device->user, fds + count, GLUE_POLLS - count);
        if (due >= 0 && (*timeout < 0 || due < *timeout))
            *timeout = due;
    }
    for (uint32_t i = 0; i < count; i++)
        polls[i] = (struct pollfd){.fd = fds[i], .events = POLLIN};
    return count;
}

void glue_process(glue_vm *self)
{
    for (uint32_t i = 0; i < self->count; i++) {
        glue_device *device = &self->devices[i];
        (void)(is_kernel(device) ? vhost_device_process(&device->vhost)
                                 : vhost_user_process(&device->user));
    }
}

/* ---- migration ------------------------------------------------------------------------------- */

/* Nothing that is asked of the disk is left undone in it: it keeps no record of it. */
static void wait_until_idle(glue_device *self)
{
    for (int i = 0; i < IDLE_MS && vhost_device_settled(&self->vhost) == 0; i++)
        (void)poll(NULL, 0, 1);
}

static bool pause_device(glue_device *self)
{
    virtio_queue *queues = self->virtio->registers.queues;
    bool certain = true;
    if (self->virtio->id == VIRTIO_ID_DISK)
        wait_until_idle(self);
    (void)vhost_device_stop(&self->vhost);
    for (uint32_t i = 0; i < self->vhost.queue_count; i++) {
        const vhost_position *position = &self->queues[i].position;
        queues[i].next_avail = position->avail;
        queues[i].next_used = position->used;
        certain = certain && position->state != VHOST_POSITION_GUESSED;
    }
    return certain;
}

bool glue_pause(glue_vm *self)
{
    bool good = true;
    for (uint32_t i = 0; i < self->count; i++)
        good = pause_device(&self->devices[i]) && good;
    return good;
}

static bool resume_device(glue_device *self)
{
    const virtio_registers *registers = &self->virtio->registers;
    bool fresh = self->vhost.state == VHOST_STATE_CLOSED;
    if (fresh && !attach(self))
        return false;
    if ((registers->status & VIRTIO_STATUS_DRIVER_OK) == 0 ||
        self->vhost.state != VHOST_STATE_STOPPED)
        return true;
    for (uint32_t i = 0; i < self->vhost.queue_count; i++)
        self->queues[i].position =
            (vhost_position){VHOST_POSITION_CERTAIN, registers->queues[i].next_avail,
                             registers->queues[i].next_used, false};
    if (!glue_accept(self, registers->accepted) || !glue_start(self))
        return false;
    for (uint32_t i = 0; i < self->vhost.queue_count; i++)
        (void)eventfd_write(self->virtio->call[i], 1); /* one may have been on its way */
    if (fresh && self->virtio->id == VIRTIO_ID_VSOCK)
        virtio_vsock_lost(self->virtio);
    return true;
}

bool glue_resume(glue_vm *self)
{
    bool good = true;
    for (uint32_t i = 0; i < self->count; i++)
        good = resume_device(&self->devices[i]) && good;
    return good;
}

/* One whose writes nobody would know of is taken out: the driver's buffers wait in its rings. */
static bool take_out(glue_vm *self, const vhost_device *blocker)
{
    for (uint32_t i = 0; i < self->count; i++)
        if (&self->devices[i].vhost == blocker) {
            bool certain = pause_device(&self->devices[i]);
            vhost_device_cleanup(&self->devices[i].vhost);
            return certain;
        }
    return false;
}

bool glue_log_start(glue_vm *self)
{
    const vhost_device *blocker;
    vhost_why why;
    bool good = true;
    while (good && (blocker = vhost_log_blocker(&self->vm, NULL, &why)) != NULL)
        good = take_out(self, blocker);
    return good && vhost_log_start(&self->vm) == 0;
}

void glue_log_stop(glue_vm *self)
{
    (void)vhost_log_stop(&self->vm);
}

bool glue_dirty(glue_vm *self, const machine_ram *piece, uint64_t *bits)
{
    vhost_log_sink sink = {
        .bits = bits, .bits_gpa = piece->gpa, .bits_count = piece->size / VHOST_PAGE};
    return vhost_log_sync(&self->vm, piece->gpa, piece->size, &sink) == 0;
}
