/* kvm_vmm.c - a small hypervisor whose devices are vhost.h's
   SPDX-License-Identifier: MIT OR Unlicense

   shows     What it takes to drop vhost.h into a VMM. It boots Debian's own kernel on KVM, with any
             mix of vhost-net, vhost-vsock, vhost-user-blk and vhost-user-net behind virtio-mmio;
             guests reboot, memory is plugged in, back-ends die and come back, and the guest moves
             to another process while it works. All that touches vhost.h is in kvm_vmm/glue.c.
   build     make build/examples/kvm_vmm
   run       make demo-guest
             kvm_vmm kernel=VMLINUX initrd=FILE [ram=MIB] [arguments=TEXT] [tap=NAME] [vsock=CID]
                     [disk=SOCKET] [net=SOCKET] [incoming=SOCKET]
             kernel: an ELF file (tests/support/guest.sh makes it of Debian's vmlinuz). incoming:
             another kvm_vmm sends the guest here. On its standard input it understands
                plug             128 MiB of memory
                migrate SOCKET   to the kvm_vmm that was started with incoming=SOCKET
   expected  What the guest prints; the exit status is 0 when it switches itself off, or has moved.
   read      kvm_vmm/glue.c, then virtio.c, machine.c, migrate.c

   It needs /dev/kvm on a processor that has virtualization, and the back-ends it is given. */
#define _GNU_SOURCE
#include "kvm_vmm/migrate.h"

#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define MIB UINT64_C(0x100000)

enum {
    NET_HEADER = 12, /* bytes: virtio 1 */
    LINE = 200
};

typedef struct options {
    const char *kernel, *initrd, *ram, *arguments, *tap, *vsock, *disk, *net, *incoming;
} options;

typedef struct vmm {
    options options;
    kvm_machine machine;
    glue_vm *glue;
    char line[LINE]; /* of the standard input, as far as it came */
    size_t line_size;
    bool moved;
} vmm;

/* ---- options --------------------------------------------------------------------------------- */

static bool take_option(options *to, const char *argument)
{
    const struct {
        const char *name;
        const char **value;
    } known[] = {
        {"kernel=", &to->kernel},       {"initrd=", &to->initrd}, {"ram=", &to->ram},
        {"arguments=", &to->arguments}, {"tap=", &to->tap},       {"vsock=", &to->vsock},
        {"disk=", &to->disk},           {"net=", &to->net},       {"incoming=", &to->incoming}};
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
        size_t size = strlen(known[i].name);
        if (strncmp(argument, known[i].name, size) == 0) {
            *known[i].value = argument + size;
            return true;
        }
    }
    return false;
}

/* ---- devices --------------------------------------------------------------------------------- */

static int open_tap(const char *name)
{
    struct ifreq request = {.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR};
    int header = NET_HEADER, fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK);
    (void)snprintf(request.ifr_name, sizeof request.ifr_name, "%s", name);
    if (fd < 0 || ioctl(fd, TUNSETIFF, &request) != 0 || ioctl(fd, TUNSETVNETHDRSZ, &header) != 0 ||
        ioctl(fd, TUNSETOFFLOAD, 0UL) != 0) {
        machine_failed("tap %s", name);
        if (fd >= 0)
            close(fd);
        return -1;
    }
    return fd;
}

static bool add_devices(vmm *self)
{
    const options *o = &self->options;
    bool arriving = o->incoming != NULL;
    if (o->tap != NULL && !arriving) { /* the tap of a guest that moves in comes with it */
        self->machine.tap = open_tap(o->tap);
        if (self->machine.tap < 0)
            return false;
    }
    return (o->tap == NULL || glue_add_net(self->glue)) &&
           (o->vsock == NULL || glue_add_vsock(self->glue, (uint64_t)atoi(o->vsock), arriving)) &&
           (o->disk == NULL || glue_add_disk(self->glue, o->disk)) &&
           (o->net == NULL || glue_add_user_net(self->glue, o->net));
}

static bool open_vmm(vmm *self)
{
    const options *o = &self->options;
    if (!machine_open(&self->machine, (uint64_t)(o->ram ? atoi(o->ram) : 256) * MIB))
        return false;
    self->machine.kernel = o->kernel;
    self->machine.initrd = o->initrd;
    self->machine.arguments = o->arguments ? o->arguments : "console=ttyS0";
    self->glue = glue_open(&self->machine);
    if (self->glue == NULL || !glue_map(self->glue) || !add_devices(self))
        return machine_failed("a device could not be added");
    return o->incoming ? migrate_receive(&self->machine, self->glue, o->incoming)
                       : machine_boot(&self->machine) && machine_start(&self->machine);
}

/* ---- events ---------------------------------------------------------------------------------- */

/* KVM has it first, then the back-ends, and then the guest may use it. */
static void plug(vmm *self)
{
    (void)pthread_mutex_lock(&self->machine.lock);
    if (machine_add_dimm(&self->machine) && glue_map(self->glue))
        machine_tell_dimm(&self->machine);
    (void)pthread_mutex_unlock(&self->machine.lock);
}

static void obey(vmm *self, const char *line)
{
    if (strcmp(line, "plug") == 0)
        plug(self);
    else if (strncmp(line, "migrate ", 8) == 0)
        self->moved = migrate_send(&self->machine, self->glue, line + 8);
    else
        fprintf(stderr, "vmm: %s?\n", line);
}

/* Returns false at its end. */
static bool read_line(vmm *self)
{
    char *end;
    ssize_t size = read(STDIN_FILENO, self->line + self->line_size, LINE - 1 - self->line_size);
    if (size <= 0)
        return false;
    self->line_size += (size_t)size;
    self->line[self->line_size] = '\0';
    while ((end = strchr(self->line, '\n')) != NULL) {
        *end = '\0';
        obey(self, self->line);
        self->line_size -= (size_t)(end + 1 - self->line);
        memmove(self->line, end + 1, self->line_size + 1);
    }
    return self->line_size < LINE - 1;
}

static void process(vmm *self)
{
    (void)pthread_mutex_lock(&self->machine.lock);
    glue_process(self->glue);
    (void)pthread_mutex_unlock(&self->machine.lock);
}

static uint32_t collect(vmm *self, struct pollfd *polls, int *timeout)
{
    int fds[GLUE_POLLS];
    (void)pthread_mutex_lock(&self->machine.lock);
    uint32_t count = glue_polls(self->glue, fds, timeout);
    (void)pthread_mutex_unlock(&self->machine.lock);
    for (uint32_t i = 0; i < count; i++)
        polls[i] = (struct pollfd){.fd = fds[i], .events = POLLIN};
    return count;
}

/* Until the guest is gone. */
static void serve(vmm *self)
{
    struct pollfd polls[GLUE_POLLS + 2];
    int input = STDIN_FILENO, timeout;
    while (!self->moved) {
        uint32_t count = collect(self, polls, &timeout);
        polls[count] = (struct pollfd){.fd = self->machine.ended, .events = POLLIN};
        polls[count + 1] = (struct pollfd){.fd = input, .events = POLLIN};
        (void)poll(polls, count + 2, timeout);
        process(self);
        if (polls[count].revents != 0)
            return;
        if (polls[count + 1].revents != 0 && !read_line(self))
            input = -1;
    }
}

int main(int argc, char **argv)
{
    static vmm self;
    for (int i = 1; i < argc; i++)
        if (!take_option(&self.options, argv[i])) {
            fprintf(stderr, "vmm: %s?\n", argv[i]);
            return 2;
        }
    if (self.options.kernel == NULL || self.options.initrd == NULL) {
        fprintf(stderr, "usage: kvm_vmm kernel=VMLINUX initrd=FILE ...\n");
        return 2;
    }
    if (!open_vmm(&self))
        return 1;
    serve(&self);
    (void)pthread_mutex_lock(&self.machine.lock); /* its processor stands still */
    glue_close(self.glue);
    return 0;
}
