/* machine.h - a virtual machine on KVM: memory, one processor, interrupts, and what they are
   plugged into
   SPDX-License-Identifier: MIT OR Unlicense

   Two threads: the processor's, and that of the event loop. Whoever looks at devices or changes
   memory holds `lock`. */
#ifndef KVM_MACHINE_H_INCLUDED
#define KVM_MACHINE_H_INCLUDED

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#define MACHINE_PAGE       UINT64_C(4096)
#define MACHINE_DIMM_GPA   UINT64_C(0x100000000)
#define MACHINE_DIMM_SIZE  UINT64_C(0x8000000) /* the least that Linux takes */
#define MACHINE_VIRTIO_GPA UINT64_C(0xd0000000)

enum {
    MACHINE_PIECES = 2, /* of memory: what is there at first, and what is plugged in */
    MACHINE_DEVICES = 4,
    MACHINE_VIRTIO_STRIDE = 0x1000,

    MACHINE_COM1_GSI = 4, /* interrupts */
    MACHINE_DIMM_GSI = 9,
    MACHINE_VIRTIO_GSI = 16,

    MACHINE_COM1_PORT = 0x3f8, /* ports */
    MACHINE_DIMM_PORT = 0x600,
    MACHINE_SLEEP_PORT = 0x601,
    MACHINE_RESET_PORT = 0x602
};

/* Memory of the guest: a memfd, so that another process can have it. */
typedef struct machine_ram {
    uint64_t gpa, size; /* bytes */
    uint8_t *host;
    int fd;
} machine_ram;

struct virtio_device;

/* All that KVM knows of a processor and of the interrupt controllers: what a migration sends, and
   what a reset goes back to. */
typedef struct machine_state machine_state;

typedef struct kvm_machine {
    pthread_mutex_t lock;
    machine_ram ram[MACHINE_PIECES];
    uint32_t ram_count;
    struct virtio_device *devices[MACHINE_DEVICES]; /* NULL: none */
    const char *kernel, *initrd, *arguments;        /* of the guest: files, and its command line */
    int tap;                                        /* of its network card; -1: none */
    int ended; /* an eventfd: it switched itself off, or died */

    /* Private. */
    int kvm, vm, cpu;
    struct kvm_run *run;
    pthread_t thread;
    pthread_cond_t changed;
    bool pause, paused;
    bool reset; /* the guest wants to be, before it goes on */
    machine_state *power_on;
    uint8_t com1[8];
} kvm_machine;

/* Makes a machine with so many bytes of memory, or says why not. */
bool machine_open(kvm_machine *self, uint64_t ram_size);

/* Plugs the DIMM in for KVM; the guest is told by machine_tell_dimm, when devices have it, too. */
bool machine_add_dimm(kvm_machine *self);
void machine_tell_dimm(kvm_machine *self);

/* Makes a write of `value` to `gpa` signal `kick`, and `call` interrupt the guest. KVM does both by
   itself: kicks and interrupts never come by here. */
bool machine_bind_kick(kvm_machine *self, uint64_t gpa, uint32_t value, int kick);
bool machine_bind_call(kvm_machine *self, int call, uint32_t gsi);

/* Interrupts the guest, once. */
void machine_interrupt(kvm_machine *self, uint32_t gsi);

/* Has the processor begin with the guest's kernel, or where it was, by a state of so many bytes.
   Interrupts come after it. */
bool machine_boot(kvm_machine *self);
bool machine_load(kvm_machine *self, const machine_state *state, uint64_t size);

/* Starts the processor's thread. */
bool machine_start(kvm_machine *self);

/* Until machine_continue, the processor executes nothing. Not under the lock. */
void machine_pause(kvm_machine *self);
void machine_continue(kvm_machine *self);

/* Of a machine that is paused. */
machine_state *machine_save(const kvm_machine *self, uint32_t *size);

/* Where guest memory is in this process; NULL: not all of it is memory. */
void *machine_host(const kvm_machine *self, uint64_t gpa, uint64_t size);

/* KVM's log of the pages that the processor dirties: bit 0 of bits[0] is the first page of the
   piece. It is OR-ed into bits, and cleared. */
bool machine_log(kvm_machine *self, bool on);
bool machine_dirty(const kvm_machine *self, const machine_ram *piece, uint64_t *bits);

/* Says what went wrong, with errno. Returns false. */
__attribute__((format(printf, 1, 2))) bool machine_failed(const char *format, ...);

#endif
