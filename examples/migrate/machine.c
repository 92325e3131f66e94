/* machine.c - a small VMM: guest memory, and devices on real back-ends
   SPDX-License-Identifier: MIT OR Unlicense */
#define _GNU_SOURCE
#include "machine.h"

#include "examples/common/clock.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define MIB UINT64_C(0x100000)

#define MODULE_GPA  (1024 * MIB) /* so far that the dirty logs are made anew */
#define MODULE_SIZE (2 * MIB)

enum {
    PROGRAM = 8, /* MiB: memory that the guest uses by itself; then come windows of drivers */
    PLUGGED = 1  /* MiB that are plugged in, besides what drivers use of it */
};

#define FAIL(...) report_fail(self->report, __VA_ARGS__)
#define TRY(call) REPORT_TRY(self->report, call)

/* ---- memory ---------------------------------------------------------------------------------- */

static uint64_t round_up(uint64_t size)
{
    return (size + GUEST_RAM_PAGE - 1) / GUEST_RAM_PAGE * GUEST_RAM_PAGE;
}

/* What is there at first ends in the middle of what one word of a dirty log is about, as memory
   may. */
uint64_t machine_size(const machine_world *world, bool all)
{
    uint64_t size = PROGRAM * MIB, plugged = 0;
    for (int i = 0; i < MACHINE_KINDS; i++)
        if (world->has[i]) {
            size += round_up(device_kinds[i].driver->window);
            plugged += device_kinds[i].driver->cache;
        }
    return size + (all ? plugged + PLUGGED * MIB : 0);
}

/* Of `end` bytes, those from `begin` on; none, if there are none. */
static bool add_section(machine *self, const vhost_backing *backing, uint64_t gpa, uint64_t begin,
                        uint64_t end)
{
    vhost_section section;
    if (begin >= end)
        return true;
    vhost_section_init(&section, gpa, end - begin, backing, begin);
    return TRY(vhost_memory_add(&self->vm, &section));
}

/* What was there at first, what was plugged in, and the module. */
static bool map_memory(machine *self)
{
    uint64_t first = machine_size(self->world, false);
    return TRY(vhost_memory_begin(&self->vm)) && add_section(self, &self->backing, 0, 0, first) &&
           add_section(self, &self->backing, first, first, self->size) &&
           add_section(self, &self->module, MODULE_GPA, 0, self->module.size) &&
           TRY(vhost_memory_commit(&self->vm));
}

bool machine_plug(machine *self, uint64_t size)
{
    self->size = size;
    return map_memory(self);
}

static bool make_module(machine *self)
{
    int fd = memfd_create("module", MFD_CLOEXEC);
    void *host = MAP_FAILED;
    if (fd >= 0 && ftruncate(fd, (off_t)MODULE_SIZE) == 0)
        host = mmap(NULL, MODULE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (host != MAP_FAILED)
        vhost_backing_init(&self->module, host, MODULE_SIZE, fd, 0);
    else if (fd >= 0)
        close(fd);
    return host != MAP_FAILED || FAIL("no memory: %s", strerror(errno));
}

/* When a commit has left it out, nobody uses it. */
static void drop_module(const vhost_backing *module)
{
    if (module->size != 0) {
        (void)munmap(module->host, module->size);
        close(module->fd);
    }
}

bool machine_module(machine *self, bool there)
{
    vhost_backing before = self->module;
    if (there)
        return make_module(self) && map_memory(self);
    self->module.size = 0;
    if (!map_memory(self))
        return false;
    drop_module(&before);
    return true;
}

static bool open_memory(machine *self)
{
    self->size = machine_size(self->world, false);
    if (!TRY(guest_ram_open(&self->ram, machine_size(self->world, true))))
        return false;
    vhost_backing_init(&self->backing, self->ram.host, self->ram.size, self->ram.fd, 0);
    return map_memory(self);
}

/* ---- devices --------------------------------------------------------------------------------- */

static void on_message(vhost_level level, const vhost_error *what, const vhost_device *device,
                       void *user)
{
    machine *self = user;
    (void)device;
    if (level == VHOST_LEVEL_ERROR)
        snprintf(self->report->message, sizeof self->report->message, "%s", what->text);
}

static void on_broken(vhost_device *device, void *user)
{
    machine_device *broken = user;
    report_fail(broken->machine->report, "%s (%s) broke: %s", broken->kind->name,
                broken->kind->backend, device->last_error.text);
}

static void on_queue_error(vhost_device *device, uint32_t queue, void *user)
{
    machine_device *of = user;
    (void)device;
    report_fail(of->machine->report, "%s (%s) found queue %u broken", of->kind->name,
                of->kind->backend, (unsigned)queue);
}

bool machine_leaves_in_flight(const machine_device *device)
{
    return (device->user.protocol >> VHOST_USER_BIT_SKIP_DRAIN & 1) != 0;
}

/* Where it can, no stop waits for requests. */
static bool leave_in_flight(machine_device *device)
{
    machine *self = device->machine;
    return !machine_leaves_in_flight(device) || TRY(vhost_user_set_skip_drain(&device->user, true));
}

static bool attach(machine_device *device)
{
    machine *self = device->machine;
    vhost_device_options options = {
        .user = device, .on_broken = on_broken, .on_queue_error = on_queue_error};
    bool user = device->kind->user;
    const vhost_backend_ops *ops = user ? vhost_user_ops() : vhost_kernel_ops(&device->kernel);
    void *backend = user ? (void *)&device->user : (void *)&device->kernel;
    for (uint32_t i = 0; i < device->kind->driver->queues; i++)
        vhost_queue_init(&device->queues[i]);
    return TRY(vhost_device_init(&device->device, &self->vm, ops, backend, device->queues,
                                 device->kind->driver->queues, &options)) &&
           leave_in_flight(device);
}

static bool open_device(machine *self, machine_kind kind, uint64_t gpa)
{
    machine_device *device = &self->devices[self->count++];
    *device =
        (machine_device){.number = kind, .kind = &device_kinds[kind], .machine = self, .gpa = gpa};
    device->state = malloc(MACHINE_STATE);
    int code = device->state == NULL ? -ENOMEM : device->kind->open(device, self->world);
    if (code < 0)
        return FAIL("%s did not start: %s", device->kind->backend, strerror(-code));
    return attach(device);
}

static bool open_devices(machine *self)
{
    uint64_t gpa = PROGRAM * MIB;
    for (int i = 0; i < MACHINE_KINDS; i++) {
        if (!self->world->has[i])
            continue;
        if (!open_device(self, (machine_kind)i, gpa))
            return false;
        gpa += round_up(device_kinds[i].driver->window);
    }
    return true;
}

bool machine_open(machine *self, const machine_world *world, report *to)
{
    *self = (machine){.world = world, .report = to};
    vhost_vm_options options = {.user = self, .on_message = on_message};
    return TRY(vhost_vm_init(&self->vm, &options)) && open_memory(self) && open_devices(self);
}

static void close_device(machine_device *device)
{
    vhost_device_cleanup(&device->device);
    device->kind->close(device);
    free(device->state);
    for (uint32_t i = 0; i < device->kind->driver->queues; i++) {
        if (device->queues[i].kick_fd >= 0)
            close(device->queues[i].kick_fd);
        if (device->queues[i].call_fd >= 0)
            close(device->queues[i].call_fd);
    }
}

void machine_close(machine *self)
{
    for (uint32_t i = 0; i < self->count; i++)
        close_device(&self->devices[i]);
    self->count = 0;
    (void)vhost_vm_cleanup(&self->vm);
    drop_module(&self->module);
    guest_ram_close(&self->ram);
}

bool machine_start(machine_device *device)
{
    machine *self = device->machine;
    return TRY(vhost_device_ack(&device->device, device->accepted)) &&
           TRY(vhost_device_start(&device->device));
}

/* ---- the guest ------------------------------------------------------------------------------- */

void *machine_driver(const machine_device *device)
{
    return device->machine->ram.view + device->gpa;
}

/* The guest's own program: it fills memory, and then goes on writing here and there. */
static void fill_program(machine *self)
{
    uint64_t *words = (uint64_t *)(void *)self->ram.view, state = self->world->seed;
    for (uint64_t i = 0; i < PROGRAM * MIB / sizeof *words; i++) {
        state = state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
        words[i] = state;
    }
}

static void run_program(machine *self)
{
    uint64_t page = self->turns * 7 % (PROGRAM * MIB / GUEST_RAM_PAGE / 8);
    uint64_t *word = (uint64_t *)(void *)(self->ram.view + page * GUEST_RAM_PAGE);
    *word += self->turns;
}

/* The driver sets itself up, and accepts what it knows. */
static bool boot_driver(machine_device *device)
{
    machine *self = device->machine;
    const guest_driver *driver = device->kind->driver;
    guest_place place = {&self->ram, device->gpa, self->world->seed, &self->world->cable.host};
    vhost_features known = {{0, 0}};
    vhost_features_set(&known, VHOST_FEATURE_VERSION_1);
    device->accepted = vhost_device_offer(&device->device, known);
    if (!TRY(driver->boot(&place)))
        return false;
    for (uint32_t i = 0; i < driver->queues; i++)
        driver->describe(machine_driver(device), i, &device->queues[i]);
    return true;
}

bool machine_boot(machine *self)
{
    fill_program(self);
    for (uint32_t i = 0; i < self->count; i++) {
        machine_device *device = &self->devices[i];
        if (!boot_driver(device) || !machine_start(device))
            return false;
        if (device->kind->fill_state != NULL)
            device->kind->fill_state(device);
    }
    return true;
}

void machine_use_plugged(machine *self)
{
    uint64_t gpa = machine_size(self->world, false);
    for (uint32_t i = 0; i < self->count; i++) {
        const machine_device *device = &self->devices[i];
        const guest_driver *driver = device->kind->driver;
        if (driver->use_plugged != NULL)
            driver->use_plugged(machine_driver(device), self->ram.view + gpa, gpa);
        gpa += driver->cache;
    }
}

uint64_t machine_done(const machine_device *device)
{
    return device->kind->driver->done(machine_driver(device));
}

uint32_t machine_waiting(const machine *self)
{
    uint32_t waiting = 0;
    for (uint32_t i = 0; i < self->count; i++)
        waiting += self->devices[i].kind->driver->waiting(machine_driver(&self->devices[i]));
    return waiting;
}

/* ---- the event loop -------------------------------------------------------------------------- */

static bool work(machine *self, uint32_t most)
{
    run_program(self);
    for (uint32_t i = 0; i < self->count; i++) {
        machine_device *device = &self->devices[i];
        const guest_driver *driver = device->kind->driver;
        driver->work(machine_driver(device), most);
        const char *fault = driver->fault(machine_driver(device));
        if (fault != NULL)
            return FAIL("%s (%s): %s", device->kind->name, device->kind->backend, fault);
    }
    return true;
}

/* On failure, on_broken has said so. */
static void process(machine_device *device)
{
    if (device->kind->user)
        (void)vhost_user_process(&device->user);
    else
        (void)vhost_device_process(&device->device);
}

bool machine_turn(machine *self, uint32_t most)
{
    enum {
        ROOM = 64
    };
    struct pollfd polled[ROOM];
    int fds[ROOM];
    uint32_t count = 0;
    self->turns++;
    if (!work(self, most))
        return false;
    for (uint32_t i = 0; i < self->count; i++) {
        machine_device *device = &self->devices[i];
        uint32_t more = vhost_device_poll_fds(&device->device, fds + count, ROOM - count);
        if (more + MACHINE_QUEUES > ROOM - count)
            return FAIL("too many fds to poll");
        count += more;
        for (uint32_t k = 0; k < device->kind->driver->queues; k++)
            fds[count++] = device->queues[k].call_fd;
    }
    for (uint32_t i = 0; i < count; i++)
        polled[i] = (struct pollfd){.fd = fds[i], .events = POLLIN};
    (void)poll(polled, count, 1);
    for (uint32_t i = 0; i < self->count; i++)
        process(&self->devices[i]);
    return self->report->failure[0] == '\0';
}

bool machine_is_idle(const machine_device *device)
{
    const uint8_t *memory = device->machine->ram.host;
    for (uint32_t i = 0; i < device->device.queue_count; i++) {
        const vhost_queue *queue = &device->queues[i];
        const ring_available *available = (const void *)(memory + queue->avail);
        const ring_used *used = (const void *)(memory + queue->used);
        if (__atomic_load_n(&used->index, __ATOMIC_ACQUIRE) != available->index)
            return false;
    }
    return true;
}

static bool all_have_done(const machine *self, const uint64_t *goals)
{
    for (uint32_t i = 0; i < self->count; i++)
        if (machine_done(&self->devices[i]) < goals[i])
            return false;
    return true;
}

bool machine_run(machine *self, uint64_t more, uint32_t most)
{
    double end = clock_now() + MACHINE_PATIENCE;
    uint64_t goals[MACHINE_DEVICES];
    for (uint32_t i = 0; i < self->count; i++)
        goals[i] = machine_done(&self->devices[i]) + more;
    while (!all_have_done(self, goals)) {
        if (!machine_turn(self, most))
            return false;
        if (clock_now() > end)
            return FAIL("requests were lost: %u wait", (unsigned)machine_waiting(self));
    }
    return true;
}
