/* glue.c - a VMM's devices on vhost back-ends: README.md, "Drop it into your VMM", goes through it
   SPDX-License-Identifier: MIT OR Unlicense */
#define _GNU_SOURCE
#define VHOST_IMPLEMENTATION
#include "vhost_kernel.h"
#include "vhost_user.h"
#include "glue.h"

#include <linux/virtio_blk.h>
#include <linux/virtio_net.h>

#define BIT(number) (UINT64_C(1) << (number))
#define RING_BITS                                                                                  \
    (BIT(VHOST_FEATURE_VERSION_1) | BIT(VHOST_FEATURE_INDIRECT_DESC) |                             \
     BIT(VHOST_FEATURE_EVENT_IDX) | BIT(VHOST_FEATURE_RING_RESET))
#define NET_BITS (RING_BITS | BIT(VIRTIO_NET_F_MAC) | BIT(VIRTIO_NET_F_MRG_RXBUF))
#define DISK_BITS                                                                                  \
    (RING_BITS | BIT(VIRTIO_BLK_F_SEG_MAX) | BIT(VIRTIO_BLK_F_BLK_SIZE) | BIT(VIRTIO_BLK_F_FLUSH))

#define DISK_CONFIG  60   /* bytes */
#define DISK_IDLE_MS 2000 /* how long it may take to finish what it was asked for */

struct glue_device {
    glue_vm *vm;
    virtio_device *virtio;
    bool is_user; /* which of these two is open */
    vhost_kernel kernel;
    vhost_user user;
    vhost_device_options options;
    vhost_device vhost;
    vhost_queue queues[2]; /* the third one of a vsock is the VMM's own */
};

struct glue_vm {
    kvm_machine *machine;
    vhost_vm vhost;
    vhost_backing backings[MACHINE_PIECES];
    glue_device devices[MACHINE_DEVICES];
    uint32_t count;
};

static void on_message(vhost_level level, const vhost_error *what, const vhost_device *device,
                       void *user)
{
    (void)device;
    (void)user;
    fprintf(stderr, "vmm: %s%s\n", level == VHOST_LEVEL_NOTE ? "note: " : "", what->text);
}

glue_vm *glue_open(kvm_machine *machine)
{
    const vhost_vm_options options = {.on_message = on_message};
    glue_vm *self = calloc(1, sizeof *self);
    if (self == NULL || vhost_vm_init(&self->vhost, &options) < 0)
        return NULL;
    self->machine = machine;
    return self;
}

bool glue_map(glue_vm *self)
{
    (void)vhost_memory_begin(&self->vhost);
    for (uint32_t i = 0; i < self->machine->ram_count; i++) {
        const machine_ram *ram = &self->machine->ram[i];
        const vhost_section section = {ram->gpa, ram->size, &self->backings[i], 0, 0};
        vhost_backing_init(&self->backings[i], ram->host, ram->size, ram->fd, 0);
        (void)vhost_memory_add(&self->vhost, &section); /* if not: nor does the commit */
    }
    return vhost_memory_commit(&self->vhost) == 0;
}

/* ---- devices --------------------------------------------------------------------------------- */

/* Where a back-end without a record of its requests stood when it died is a guess. One that is
   asked for one thing at a time loses nothing by it: what is not used is done again. */
static void on_broken(vhost_device *device, void *user)
{
    (void)user;
    for (uint32_t i = 0; i < device->queue_count; i++)
        device->queues[i].position.state = VHOST_POSITION_CERTAIN;
}

static void on_config(vhost_device *device, void *user)
{
    virtio_device *virtio = ((glue_device *)user)->virtio;
    if (vhost_device_get_config(device, 0, virtio->registers.config, DISK_CONFIG) == 0)
        virtio_changed(virtio);
}

static bool attach(glue_device *self)
{
    const vhost_backend_ops *ops =
        self->is_user ? vhost_user_ops() : vhost_kernel_ops(&self->kernel);
    void *backend = self->is_user ? (void *)&self->user : (void *)&self->kernel;
    vhost_features wanted = {{self->virtio->offered, 0}};
    if (vhost_device_init(&self->vhost, &self->vm->vhost, ops, backend, self->queues,
                          self->virtio->id == VIRTIO_ID_DISK ? 1 : 2, &self->options) < 0)
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
    *device = (glue_device){.vm = self, .virtio = virtio, .options = {.user = device}};
    virtio->glue = device;
    virtio->offered = wanted;
    for (uint32_t i = 0; i < 2; i++) {
        vhost_queue_init(&device->queues[i]);
        device->queues[i].kick_fd = virtio->kick[i];
        device->queues[i].call_fd = virtio->call[i];
    }
    return device;
}

bool glue_add_net(glue_vm *self)
{
    glue_device *device = add(self, VIRTIO_ID_NET, 2, NET_BITS);
    return device != NULL &&
           vhost_kernel_net_open(&device->kernel, "/dev/vhost-net", &self->machine->tap, 1, NULL) ==
               0 &&
           attach(device);
}

/* The CID of a guest that arrives is the source's until it has come: glue_resume attaches it. */
bool glue_add_vsock(glue_vm *self, uint64_t cid, bool arriving)
{
    glue_device *device = add(self, VIRTIO_ID_VSOCK, 3, RING_BITS);
    if (device != NULL)
        memcpy(device->virtio->registers.config, &cid, sizeof cid);
    return device != NULL &&
           vhost_kernel_vsock_open(&device->kernel, "/dev/vhost-vsock", cid, NULL) == 0 &&
           (arriving || attach(device));
}

static bool connect_user(glue_device *self, const char *socket, const vhost_features *its_bits)
{
    if (self == NULL)
        return false;
    const vhost_user_options options = {.retry_ms = 50,
                                        .counts_pairs = self->virtio->id == VIRTIO_ID_NET};
    self->is_user = true;
    self->options.its_bits = its_bits;
    self->options.on_broken = on_broken;
    self->options.on_config = on_config;
    return vhost_user_connect(&self->user, socket, &options) == 0 && attach(self);
}

bool glue_add_disk(glue_vm *self, const char *socket)
{
    glue_device *device = add(self, VIRTIO_ID_DISK, 1, DISK_BITS);
    if (!connect_user(device, socket, NULL))
        return false;
    on_config(&device->vhost, device);
    return true;
}

bool glue_add_user_net(glue_vm *self, const char *socket)
{
    static const vhost_features its_bits = {{~BIT(VIRTIO_NET_F_MAC), 0}}; /* that one is ours */
    return connect_user(add(self, VIRTIO_ID_NET, 2, NET_BITS), socket, &its_bits);
}

void glue_close(glue_vm *self)
{
    for (uint32_t i = 0; i < self->count; i++) {
        vhost_device_cleanup(&self->devices[i].vhost);
        vhost_kernel_close(&self->devices[i].kernel);
        vhost_user_close(&self->devices[i].user);
    }
    (void)vhost_vm_cleanup(&self->vhost);
    free(self);
}

/* ---- what a transport and an event loop need ------------------------------------------------- */

bool glue_accept(glue_device *self, uint64_t features)
{
    return vhost_device_ack(&self->vhost, (vhost_features){{features, 0}}) == 0;
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
    return glue_accept(self, self->virtio->registers.accepted) &&
           vhost_device_start(&self->vhost) == 0;
}

void glue_reset(glue_device *self)
{
    (void)vhost_device_stop(&self->vhost);
    (void)vhost_device_reset(&self->vhost);
}

bool glue_run_queue(glue_device *self, uint32_t queue, bool on)
{
    if (!on)
        return vhost_queue_stop(&self->vhost, queue) == 0;
    fill_queue(self, queue);
    return vhost_queue_start(&self->vhost, queue) == 0;
}

uint32_t glue_polls(const glue_vm *self, int fds[GLUE_POLLS], int *timeout)
{
    uint32_t count = 0;
    *timeout = -1;
    for (uint32_t i = 0; i < self->count; i++) {
        const glue_device *at = &self->devices[i];
        int due = vhost_user_timeout(&at->user), *room = fds + count;
        count += at->is_user ? vhost_user_poll_fds(&at->user, room, GLUE_POLLS - count)
                             : vhost_device_poll_fds(&at->vhost, room, GLUE_POLLS - count);
        if (due >= 0 && (*timeout < 0 || due < *timeout))
            *timeout = due;
    }
    return count;
}

void glue_process(glue_vm *self)
{
    for (uint32_t i = 0; i < self->count; i++)
        (void)(self->devices[i].is_user ? vhost_user_process(&self->devices[i].user)
                                        : vhost_device_process(&self->devices[i].vhost));
}

/* ---- migration ------------------------------------------------------------------------------- */

/* A disk that keeps no record of its requests is stopped when there are none. */
bool glue_pause(glue_device *self)
{
    bool certain = true, waits = self->virtio->id == VIRTIO_ID_DISK;
    for (int i = 0; waits && i < DISK_IDLE_MS && vhost_device_settled(&self->vhost) == 0; i++)
        (void)poll(NULL, 0, 1);
    (void)vhost_device_stop(&self->vhost);
    for (uint32_t i = 0; i < self->vhost.queue_count; i++) {
        const vhost_position *position = &self->queues[i].position;
        self->virtio->registers.queues[i].next_avail = position->avail;
        self->virtio->registers.queues[i].next_used = position->used;
        certain = certain && position->state != VHOST_POSITION_GUESSED;
    }
    return certain;
}

bool glue_resume(glue_device *self)
{
    const virtio_queue *from = self->virtio->registers.queues;
    bool fresh = self->vhost.state == VHOST_STATE_CLOSED;
    if (fresh && !attach(self))
        return false;
    if (self->vhost.state != VHOST_STATE_STOPPED || !virtio_runs(self->virtio))
        return true;
    if (!self->is_user && self->virtio->id == VIRTIO_ID_NET)
        (void)vhost_kernel_net_attach(&self->kernel, 0, self->vm->machine->tap);
    for (uint32_t i = 0; i < self->vhost.queue_count; i++)
        self->queues[i].position = (vhost_position){.state = VHOST_POSITION_CERTAIN,
                                                    .avail = from[i].next_avail,
                                                    .used = from[i].next_used};
    if (!glue_start(self))
        return false;
    virtio_resumed(self->virtio, fresh);
    return true;
}

/* A device whose writes nobody would know of is taken out: what is asked of it waits in its rings,
   until glue_resume puts it back. */
bool glue_log(glue_vm *self, bool on)
{
    const vhost_device *blocker;
    vhost_why why;
    while (on && (blocker = vhost_log_blocker(&self->vhost, NULL, &why)) != NULL) {
        glue_device *device = blocker->options.user;
        if (!glue_pause(device))
            return false;
        vhost_device_cleanup(&device->vhost);
    }
    return (on ? vhost_log_start(&self->vhost) : vhost_log_stop(&self->vhost)) == 0;
}

bool glue_dirty(glue_vm *self, const machine_ram *ram, uint64_t *bits)
{
    vhost_log_sink sink = {
        .bits = bits, .bits_gpa = ram->gpa, .bits_count = ram->size / VHOST_PAGE};
    return vhost_log_sync(&self->vhost, ram->gpa, ram->size, &sink) == 0;
}
