/* machine.c - a virtual machine on KVM
   SPDX-License-Identifier: MIT OR Unlicense */
#define _GNU_SOURCE
#include "machine.h"

#include "boot.h"
#include "virtio.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

enum {
    MSRS = 256,       /* more than KVM saves */
    CPUID = 128,      /* more entries than there are */
    DIMM_IS_HERE = 15 /* as _STA of ACPI has it */
};

struct machine_state {
    struct kvm_regs regs;
    struct kvm_sregs sregs;
    struct kvm_xsave xsave;
    struct kvm_xcrs xcrs;
    struct kvm_debugregs debug;
    struct kvm_lapic_state lapic;
    struct kvm_vcpu_events events;
    struct kvm_mp_state mp;
    struct kvm_irqchip chips[3];
    struct kvm_clock_data clock;
    struct {
        struct kvm_msrs head;
        struct kvm_msr_entry entries[MSRS];
    } msrs;
    uint8_t com1[8];
};

bool machine_failed(const char *format, ...)
{
    int number = errno;
    va_list arguments;
    va_start(arguments, format);
    fprintf(stderr, "vmm: ");
    vfprintf(stderr, format, arguments);
    fprintf(stderr, ": %s\n", strerror(number));
    va_end(arguments);
    return false;
}

static bool control(int fd, unsigned long request, const char *name, const void *argument)
{
    return ioctl(fd, request, argument) >= 0 || machine_failed("%s", name);
}

#define CALL(fd, request, argument) control(fd, request, #request, argument)

/* ---- memory ---------------------------------------------------------------------------------- */

static bool set_slot(const kvm_machine *self, uint32_t piece, uint32_t flags)
{
    const machine_ram *ram = &self->ram[piece];
    struct kvm_userspace_memory_region slot = {.slot = piece,
                                               .flags = flags,
                                               .guest_phys_addr = ram->gpa,
                                               .memory_size = ram->size,
                                               .userspace_addr = (uintptr_t)ram->host};
    return CALL(self->vm, KVM_SET_USER_MEMORY_REGION, &slot);
}

static bool add_ram(kvm_machine *self, uint64_t gpa, uint64_t size)
{
    machine_ram *ram = &self->ram[self->ram_count];
    *ram = (machine_ram){gpa, size, MAP_FAILED, memfd_create("guest", MFD_CLOEXEC)};
    if (ram->fd >= 0 && ftruncate(ram->fd, (off_t)size) == 0)
        ram->host = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, ram->fd, 0);
    if (ram->host == MAP_FAILED)
        return machine_failed("memory of the guest");
    return set_slot(self, self->ram_count++, 0);
}

bool machine_add_dimm(kvm_machine *self)
{
    return self->ram_count < MACHINE_PIECES && add_ram(self, MACHINE_DIMM_GPA, MACHINE_DIMM_SIZE);
}

void machine_tell_dimm(kvm_machine *self)
{
    machine_interrupt(self, MACHINE_DIMM_GSI);
}

void *machine_host(const kvm_machine *self, uint64_t gpa, uint64_t size)
{
    for (uint32_t i = 0; i < self->ram_count; i++) {
        const machine_ram *ram = &self->ram[i];
        if (gpa >= ram->gpa && gpa - ram->gpa < ram->size && size <= ram->size - (gpa - ram->gpa))
            return ram->host + (gpa - ram->gpa);
    }
    return NULL;
}

bool machine_log(kvm_machine *self, bool on)
{
    bool good = true;
    for (uint32_t i = 0; i < self->ram_count; i++)
        good = set_slot(self, i, on ? KVM_MEM_LOG_DIRTY_PAGES : 0) && good;
    return good;
}

bool machine_dirty(const kvm_machine *self, const machine_ram *piece, uint64_t *bits)
{
    uint64_t words = piece->size / MACHINE_PAGE / 64;
    uint64_t *found = malloc(words * sizeof *found);
    struct kvm_dirty_log log = {.slot = (uint32_t)(piece - self->ram), .dirty_bitmap = found};
    bool good = found != NULL && CALL(self->vm, KVM_GET_DIRTY_LOG, &log);
    for (uint64_t i = 0; good && i < words; i++)
        bits[i] |= found[i];
    free(found);
    return good;
}

/* ---- kicks and interrupts -------------------------------------------------------------------- */

bool machine_bind_kick(kvm_machine *self, uint64_t gpa, uint32_t value, int kick)
{
    struct kvm_ioeventfd binding = {.datamatch = value,
                                    .addr = gpa,
                                    .len = sizeof value,
                                    .fd = kick,
                                    .flags = KVM_IOEVENTFD_FLAG_DATAMATCH};
    return CALL(self->vm, KVM_IOEVENTFD, &binding);
}

bool machine_bind_call(kvm_machine *self, int call, uint32_t gsi)
{
    struct kvm_irqfd binding = {.fd = (uint32_t)call, .gsi = gsi};
    return CALL(self->vm, KVM_IRQFD, &binding);
}

void machine_interrupt(kvm_machine *self, uint32_t gsi)
{
    struct kvm_irq_level line = {.irq = gsi, .level = 1};
    (void)CALL(self->vm, KVM_IRQ_LINE, &line);
    line.level = 0;
    (void)CALL(self->vm, KVM_IRQ_LINE, &line);
}

/* ---- state ----------------------------------------------------------------------------------- */

/* What there is to save, in the order in which it is set: the local APIC's address is in sregs. */
static const struct part {
    unsigned long get, set;
    size_t at;
    bool of_vm;
} parts[] = {
    {KVM_GET_CLOCK, KVM_SET_CLOCK, offsetof(machine_state, clock), true},
    {KVM_GET_IRQCHIP, KVM_SET_IRQCHIP, offsetof(machine_state, chips[0]), true},
    {KVM_GET_IRQCHIP, KVM_SET_IRQCHIP, offsetof(machine_state, chips[1]), true},
    {KVM_GET_IRQCHIP, KVM_SET_IRQCHIP, offsetof(machine_state, chips[2]), true},
    {KVM_GET_SREGS, KVM_SET_SREGS, offsetof(machine_state, sregs), false},
    {KVM_GET_XCRS, KVM_SET_XCRS, offsetof(machine_state, xcrs), false},
    {KVM_GET_XSAVE, KVM_SET_XSAVE, offsetof(machine_state, xsave), false},
    {KVM_GET_LAPIC, KVM_SET_LAPIC, offsetof(machine_state, lapic), false},
    {KVM_GET_DEBUGREGS, KVM_SET_DEBUGREGS, offsetof(machine_state, debug), false},
    {KVM_GET_REGS, KVM_SET_REGS, offsetof(machine_state, regs), false},
    {KVM_GET_MP_STATE, KVM_SET_MP_STATE, offsetof(machine_state, mp), false},
    {KVM_GET_VCPU_EVENTS, KVM_SET_VCPU_EVENTS, offsetof(machine_state, events), false},
};

enum {
    PARTS = sizeof parts / sizeof parts[0]
};

/* Those of KVM's list that can be read. */
static void get_msrs(const kvm_machine *self, machine_state *state)
{
    struct {
        struct kvm_msr_list head;
        uint32_t indices[MSRS];
    } list = {.head = {.nmsrs = MSRS}};
    uint32_t count = 0;
    if (!CALL(self->kvm, KVM_GET_MSR_INDEX_LIST, &list))
        return;
    for (uint32_t i = 0; i < list.head.nmsrs; i++) {
        struct {
            struct kvm_msrs head;
            struct kvm_msr_entry entry;
        } one = {.head = {.nmsrs = 1}, .entry = {.index = list.indices[i]}};
        if (ioctl(self->cpu, KVM_GET_MSRS, &one) == 1)
            state->msrs.entries[count++] = one.entry;
    }
    state->msrs.head.nmsrs = count;
}

/* Some cannot be written, where that feature of the processor is not in use. */
static void set_msrs(const kvm_machine *self, const machine_state *state)
{
    for (uint32_t i = 0; i < state->msrs.head.nmsrs; i++) {
        struct {
            struct kvm_msrs head;
            struct kvm_msr_entry entry;
        } one = {.head = {.nmsrs = 1}, .entry = state->msrs.entries[i]};
        (void)ioctl(self->cpu, KVM_SET_MSRS, &one);
    }
}

machine_state *machine_save(const kvm_machine *self, uint32_t *size)
{
    machine_state *state = calloc(1, sizeof *state);
    bool good = state != NULL;
    for (uint32_t i = 0; good && i < 3; i++)
        state->chips[i].chip_id = i;
    for (uint32_t i = 0; good && i < PARTS; i++)
        good = control(parts[i].of_vm ? self->vm : self->cpu, parts[i].get, "reading a state",
                       (uint8_t *)state + parts[i].at);
    if (!good) {
        free(state);
        return NULL;
    }
    get_msrs(self, state);
    memcpy(state->com1, self->com1, sizeof state->com1);
    *size = sizeof *state;
    return state;
}

bool machine_load(kvm_machine *self, const machine_state *state, uint64_t size)
{
    if (size != sizeof *state || state->msrs.head.nmsrs > MSRS)
        return false;
    machine_state copy = *state;
    bool good = true;
    copy.clock.flags = 0;
    for (uint32_t i = 0; good && i < PARTS; i++)
        good = control(parts[i].of_vm ? self->vm : self->cpu, parts[i].set, "setting a state",
                       (uint8_t *)&copy + parts[i].at);
    set_msrs(self, state);
    memcpy(self->com1, state->com1, sizeof self->com1);
    return good;
}

/* ---- ports ----------------------------------------------------------------------------------- */

enum { /* registers of a 8250 */
    COM1_DATA = 0,
    COM1_INTERRUPTS = 1,
    COM1_CAUSE = 2,
    COM1_LINE = 3,
    COM1_STATUS = 5,
    COM1_SENDS = 2, /* in COM1_INTERRUPTS, and as a cause */
    COM1_DIVISOR = 0x80,
    COM1_EMPTY = 0x60
};

/* It sends at once, and says so when it is asked to. */
static void write_com1(kvm_machine *self, uint32_t at, uint8_t value)
{
    bool divisor = (self->com1[COM1_LINE] & COM1_DIVISOR) != 0;
    if (at == COM1_DATA && !divisor)
        (void)!write(STDOUT_FILENO, &value, 1);
    else if (at > COM1_INTERRUPTS || !divisor)
        self->com1[at] = value;
    if (at <= COM1_INTERRUPTS && !divisor && (self->com1[COM1_INTERRUPTS] & COM1_SENDS) != 0)
        machine_interrupt(self, MACHINE_COM1_GSI);
}

static uint8_t read_com1(const kvm_machine *self, uint32_t at)
{
    switch (at) {
    case COM1_CAUSE:
        return (self->com1[COM1_INTERRUPTS] & COM1_SENDS) != 0 ? COM1_SENDS : 1;
    case COM1_STATUS:
        return COM1_EMPTY;
    default:
        return self->com1[at];
    }
}

static void end(kvm_machine *self)
{
    (void)eventfd_write(self->ended, 1);
    self->pause = true;
    self->run->immediate_exit = 1;
}

static void reset(kvm_machine *self)
{
    self->reset = true;
    self->run->immediate_exit = 1;
}

static void write_port(kvm_machine *self, uint32_t port, uint8_t value)
{
    if (port - MACHINE_COM1_PORT < 8)
        write_com1(self, port - MACHINE_COM1_PORT, value);
    else if (port == MACHINE_SLEEP_PORT)
        end(self);
    else if (port == MACHINE_RESET_PORT)
        reset(self);
}

static uint8_t read_port(const kvm_machine *self, uint32_t port)
{
    if (port - MACHINE_COM1_PORT < 8)
        return read_com1(self, port - MACHINE_COM1_PORT);
    if (port == MACHINE_DIMM_PORT)
        return self->ram_count > 1 ? DIMM_IS_HERE : 0;
    return 0;
}

static void do_port(kvm_machine *self)
{
    const struct kvm_run *run = self->run;
    uint8_t *bytes = (uint8_t *)self->run + run->io.data_offset;
    for (uint32_t i = 0; i < run->io.count * run->io.size; i++)
        if (run->io.direction == KVM_EXIT_IO_OUT)
            write_port(self, run->io.port + i % run->io.size, bytes[i]);
        else
            bytes[i] = read_port(self, run->io.port + i % run->io.size);
}

/* ---- virtio registers ------------------------------------------------------------------------ */

static void do_mmio(kvm_machine *self)
{
    uint64_t at = self->run->mmio.phys_addr - MACHINE_VIRTIO_GPA;
    uint32_t value, size = self->run->mmio.len, offset = at % MACHINE_VIRTIO_STRIDE;
    uint64_t place = at / MACHINE_VIRTIO_STRIDE;
    virtio_device *device = place < MACHINE_DEVICES ? self->devices[place] : NULL;
    if (device == NULL || size > sizeof value) {
        memset(self->run->mmio.data, 0, sizeof self->run->mmio.data);
    } else if (self->run->mmio.is_write) {
        memcpy(&value, self->run->mmio.data, sizeof value);
        virtio_write(device, offset, value);
    } else {
        value = virtio_read(device, offset, size);
        memcpy(self->run->mmio.data, &value, size);
    }
}

/* ---- the processor --------------------------------------------------------------------------- */

/* In 32-bit protected mode without paging, as PVH wants it. */
static bool set_entry(kvm_machine *self, uint32_t entry)
{
    struct kvm_segment code = {
        .limit = 0xffffffff, .type = 11, .present = 1, .db = 1, .s = 1, .g = 1, .selector = 8};
    struct kvm_segment data = code, task = {.limit = 0x67, .type = 11, .present = 1};
    struct kvm_regs regs = {.rip = entry, .rbx = BOOT_START_INFO, .rflags = 2};
    struct kvm_sregs sregs = self->power_on->sregs;
    data.type = 3;
    data.selector = 16;
    sregs.cs = code;
    sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = data;
    sregs.tr = task;
    sregs.cr0 = 1;
    return CALL(self->cpu, KVM_SET_SREGS, &sregs) && CALL(self->cpu, KVM_SET_REGS, &regs);
}

/* Memory keeps what is in it, as with any reset, where the kernel is not loaded again. */
bool machine_boot(kvm_machine *self)
{
    uint32_t entry;
    for (int i = 0; i < MACHINE_DEVICES; i++)
        if (self->devices[i] != NULL)
            virtio_reset(self->devices[i]);
    return machine_load(self, self->power_on, sizeof *self->power_on) && boot_load(self, &entry) &&
           set_entry(self, entry);
}

/* An exit is finished by the next KVM_RUN, so only one that was interrupted leaves all in order. */
static void rest(kvm_machine *self)
{
    self->run->immediate_exit = 0;
    if (self->reset) {
        self->reset = false;
        if (!machine_boot(self))
            end(self);
    }
    self->paused = self->pause;
    (void)pthread_cond_broadcast(&self->changed);
    while (self->pause)
        (void)pthread_cond_wait(&self->changed, &self->lock);
    self->paused = false;
}

static void *run(void *argument)
{
    kvm_machine *self = argument;
    for (;;) {
        int code = ioctl(self->cpu, KVM_RUN, NULL);
        int number = errno;
        (void)pthread_mutex_lock(&self->lock);
        if (code < 0 && (number == EINTR || number == EAGAIN)) {
            rest(self);
        } else if (code == 0 && self->run->exit_reason == KVM_EXIT_IO) {
            do_port(self);
        } else if (code == 0 && self->run->exit_reason == KVM_EXIT_MMIO) {
            do_mmio(self);
        } else if (code == 0 && self->run->exit_reason == KVM_EXIT_SHUTDOWN) {
            reset(self);
        } else {
            errno = number;
            machine_failed("KVM_RUN: exit %u", self->run->exit_reason);
            end(self);
            rest(self);
        }
        (void)pthread_mutex_unlock(&self->lock);
    }
    return NULL;
}

bool machine_start(kvm_machine *self)
{
    return pthread_create(&self->thread, NULL, run, self) == 0 || machine_failed("a thread");
}

void machine_pause(kvm_machine *self)
{
    (void)pthread_mutex_lock(&self->lock);
    self->pause = true;
    self->run->immediate_exit = 1;
    (void)pthread_kill(self->thread, SIGUSR1);
    while (!self->paused)
        (void)pthread_cond_wait(&self->changed, &self->lock);
    (void)pthread_mutex_unlock(&self->lock);
}

void machine_continue(kvm_machine *self)
{
    (void)pthread_mutex_lock(&self->lock);
    self->pause = false;
    (void)pthread_cond_broadcast(&self->changed);
    (void)pthread_mutex_unlock(&self->lock);
}

/* ---- making one ------------------------------------------------------------------------------ */

static bool set_cpuid(kvm_machine *self)
{
    struct {
        struct kvm_cpuid2 head;
        struct kvm_cpuid_entry2 entries[CPUID];
    } cpuid = {.head = {.nent = CPUID}};
    if (!CALL(self->kvm, KVM_GET_SUPPORTED_CPUID, &cpuid))
        return false;
    for (uint32_t i = 0; i < cpuid.head.nent; i++)
        if (cpuid.entries[i].function == 1)
            cpuid.entries[i].ecx |= UINT32_C(1) << 31 | UINT32_C(1) << 24; /* KVM; TSC deadline */
    return CALL(self->cpu, KVM_SET_CPUID2, &cpuid);
}

static bool make_cpu(kvm_machine *self)
{
    self->cpu = ioctl(self->vm, KVM_CREATE_VCPU, 0);
    int size = ioctl(self->kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
    if (self->cpu < 0 || size < 0)
        return machine_failed("a processor");
    self->run = mmap(NULL, (size_t)size, PROT_READ | PROT_WRITE, MAP_SHARED, self->cpu, 0);
    return (self->run != MAP_FAILED || machine_failed("a processor")) && set_cpuid(self);
}

static void on_signal(int number)
{
    (void)number;
}

bool machine_open(kvm_machine *self, uint64_t ram_size)
{
    struct sigaction wake = {.sa_handler = on_signal};
    uint32_t size;
    *self = (kvm_machine){.tap = -1, .ended = eventfd(0, EFD_CLOEXEC)};
    (void)pthread_mutex_init(&self->lock, NULL);
    (void)pthread_cond_init(&self->changed, NULL);
    (void)sigaction(SIGUSR1, &wake, NULL);
    self->kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    if (self->kvm < 0)
        return machine_failed("/dev/kvm");
    self->vm = ioctl(self->kvm, KVM_CREATE_VM, 0);
    if (self->vm < 0)
        return machine_failed("KVM_CREATE_VM");
    if (!CALL(self->vm, KVM_SET_TSS_ADDR, (const void *)0xfffbd000) ||
        !CALL(self->vm, KVM_CREATE_IRQCHIP, NULL) || !make_cpu(self) || !add_ram(self, 0, ram_size))
        return false;
    self->power_on = machine_save(self, &size);
    return self->power_on != NULL;
}
