/* vhost.h - v0.1.0 - the hypervisor's half of vhost, in one header file
   SPDX-License-Identifier: MIT OR Unlicense (full text at the end of this file)

   vhost moves the data path of a virtio device out of the hypervisor (VMM): into the kernel, or
   into another process. This is the part that stays behind. You describe guest memory and
   virtqueues; it drives the back-end that moves the data. Before 1.0 the API may still change. */

/*
CONTENTS (grep -n '>>[a-z]' vhost.h is the index)

   >>manual      what it is, how to use it, the rules
   >>config      macros you may define
   >>types       enums, structs, tables of functions
   >>api         the functions, in life-cycle order
   >>base        arithmetic, allocation, errors, trace
   >>posix       the default notifiers, and memory to share: eventfd and memfd, or pipe and shm
   >>memory      sections, spans, tables of regions
   >>log         memory of dirty bits, and when it is replaced
   >>submit      calls into a back-end, and their fence
   >>features    what is offered, acknowledged and sent
   >>queue       rings: mapping, start, stop, positions, masks
   >>iotlb       rings and misses behind a vIOMMU
   >>device      init, start, stop, reset, config, events
   >>commit      the VM: a new memory map, and the devices running on it
   >>sync        dirty pages, from the log to their sink

*/
/*
>>manual

1. WHAT IT IS, AND IS NOT

   It is the front-end core of vhost: guest memory becomes the back-end's memory table; features are
   negotiated; virtqueues are handed over, started and stopped; a dirty log is kept for migration;
   a vIOMMU is served; a back-end that dies is survived. It never touches the data path, makes no
   thread, takes no lock, has no global, and needs nothing but libc.
   It is not a back-end, not a virtio transport, and not a driver of rings: buffers are none of its
   business. vhost.h knows no ioctl and no socket: a back-end is a table of functions. The tables
   come in vhost_kernel.h (Linux: /dev/vhost-net ...) and vhost_user.h (another process), or you
   write one (examples/memory_backend.c is one in less than 300 lines, half of them its rings).

2. QUICK START

   In exactly one .c file:

      #define VHOST_IMPLEMENTATION
      #include "vhost_kernel.h"           (includes vhost.h)

   and then, with guest RAM at `host` and a tap device at `tap`:

      vhost_vm vm;
      vhost_vm_init(&vm, NULL);

      vhost_backing ram;
      vhost_backing_init(&ram, host, ram_size, -1, 0);
      vhost_section low;
      vhost_section_init(&low, 0, ram_size, &ram, 0);
      vhost_memory_begin(&vm);
      vhost_memory_add(&vm, &low);
      vhost_memory_commit(&vm);

      vhost_kernel net;
      vhost_kernel_net_open(&net, "/dev/vhost-net", &tap, 1, NULL);

      vhost_queue queues[2];
      vhost_queue_init(&queues[0]);
      vhost_queue_init(&queues[1]);
      vhost_device dev;
      vhost_device_init(&dev, &vm, vhost_kernel_ops(&net), &net, queues, 2, NULL);

      vhost_features offer = vhost_device_offer(&dev, mine);     show these to the driver
      vhost_device_ack(&dev, accepted);                          what the driver took
      ... fill queues[i]: ready, size, desc, avail, used, kick_fd, call_fd ...
      vhost_device_start(&dev);                                  packets flow
      vhost_device_stop(&dev);                                   queues[i].position is current
      vhost_device_cleanup(&dev);
      vhost_kernel_close(&net);
      vhost_vm_cleanup(&vm);

   Every call returns a negative errno on failure. examples/vhost_net.c is the whole of it, running.

3. WORDS

   back-end    what moves the data: a kernel driver, or another process
   backing     a piece of host memory that guest RAM is made of
   section     where (part of) a backing stands in guest physical address space
   region      what sections become, merged, in the memory table of a back-end
   slot        room for one region in a back-end; there is a limit
   queue       a virtqueue; its three ring parts are desc, avail and used
               (packed rings: descriptor ring, driver area, device area)
   kick, call  the notifier from driver to device, and from device to driver
   gpa, IOVA   guest physical address; the address a driver uses behind a vIOMMU
   position    where in a ring a back-end stands (the "vring base")
   submit      hand an operation to a back-end, which may queue it
   fence       wait until everything submitted is done, and learn how it went

4. HOW THE PARTS FIT

        VMM: sections          VMM: virtio registers, ring addresses, kick and call fds
            |                      |
       +----v----------------------v-----------------------------------------------+
       |  vhost_vm  ------------ vhost_device ---- vhost_queue ---- vhost_queue     |
       |  map, tables, log       features, state   position, masked notifier       |
       +---------------------------|-----------------------------------------------+
                                   | vhost_backend_ops: submit ... submit, fence
                   +---------------+---------------------+
         vhost_kernel.h   vhost_user.h   your own table of functions
               | ioctl        | socket               |
             kernel     another process          anything

   One vhost_vm per guest address space. One vhost_device per virtio device, however many queues
   and back-end fds it has. Two vhost_vm share nothing.

5. LIFE CYCLE

   A device is in one of these states; `device.state` may be read at any time.

      CLOSED   before init, after cleanup
      STOPPED  initialised; the back-end touches nothing of the guest
      RUNNING  the back-end owns the started queues
      BROKEN   the back-end was cut off (severed): it touches nothing, and nothing of the guest is
               held. When on_broken is called, device.last_error says why.

      call                       allowed in         leaves in            if it fails
      vhost_device_init          CLOSED             STOPPED              CLOSED
      vhost_device_ack           STOPPED            same                 same
      vhost_device_start         STOPPED            RUNNING              STOPPED, or BROKEN (note 1)
      vhost_device_stop          any                STOPPED (note 2)     BROKEN
      vhost_device_reset         STOPPED, BROKEN    STOPPED              BROKEN
      vhost_device_recover       BROKEN             RUNNING, STOPPED     BROKEN
      vhost_queue_start, _stop   RUNNING            RUNNING              RUNNING, or BROKEN (note 1)
      vhost_queue_mask, _unmask  all but CLOSED     same                 same
      vhost_device_process       any                same                 same, or BROKEN
      vhost_device_get_config    STOPPED, RUNNING   same                 same
      vhost_memory_commit        any                same                 note 3
      vhost_device_cleanup       any                CLOSED               cannot fail

      1. A call that fails undoes what it did, in reverse order. Only where the back-end refuses to
         be undone is the device BROKEN. A back-end that goes on after something it refused may have
         run rings wrongly: their positions are then guesses (chapter 8).
      2. Stop always completes, and is harmless when repeated. It hands back the positions of the
         queues (chapter 8). Of a BROKEN device it returns the error that broke it, and leaves it
         BROKEN; of a CLOSED one it returns 0.
      3. A commit fails only for mistakes of the caller, before any back-end is told, and then the
         old map stays. A device whose ring lost its memory, or whose back-end refuses the new
         table, becomes BROKEN; the commit succeeds. When it returns, no device uses memory that
         was left out. (A vhost-user peer keeps its own mapping of shared memory until it lets go:
         nobody can revoke that.)

   A VMM answers BROKEN by setting NEEDS_RESET in the virtio status; when the driver then resets the
   device, vhost_device_reset opens the back-end again, where it can be opened again. Or it hides
   the break from the driver: vhost_device_recover opens the back-end and goes on where the device
   was, if all positions are known.

   Wiring it to the virtio status byte and registers:

      driver writes               VMM calls
      status = 0                  vhost_device_stop, vhost_device_reset
      FEATURES_OK                 vhost_device_ack; if it fails, leave FEATURES_OK clear
      DRIVER_OK                   fill the queues, bind kick notifiers, vhost_device_start;
                                  if it fails, set NEEDS_RESET
      queue_reset = 1             vhost_queue_stop, then unbind its kick notifier (but not where
                                  facts.queues_together: offer no VIRTIO_F_RING_RESET there)
      queue_enable = 1 (running)  fill the queue, bind its kick notifier, vhost_queue_start
      MSI-X vector masked         vhost_queue_mask; unmasked: vhost_queue_unmask
      (VM paused, resumed)        vhost_device_stop, vhost_device_start

6. GUEST MEMORY

   The map is given whole, in a transaction: begin, add every section in ascending order of gpa,
   commit. What is not added is gone. gpa, size, offset and the host address of the backing are
   multiples of 4 KiB.
   Every backing is borrowed, unchanged, from add until the commit that leaves it out returns.
   Not every section goes to back-ends: ROM does not, nor a read-only backing (nothing may write
   them), nor a section with VHOST_SECTION_DIRTY_TRACKED (somebody else, such as a display, must
   see every write to it).
   Rings may stand in any section all the same, but used rings not in ROM, nor, by a single byte,
   above the memory that goes to back-ends. (Behind a vIOMMU they stand in it, like all the rest.)
   Neighbours that continue one another in one backing become one region. VHOST_SECTION_UNMERGEABLE
   keeps a section by itself, for memory that comes and goes in pieces.

   A back-end in another process maps memory itself, by the fd of its backing. So it gets only what
   has an fd and is not private, and a ring part must lie in one region of its table. A process can
   map whole pages only: if backing.page_size is above 4 KiB, regions are rounded to it, over gpas
   where there is nothing else, and as far as the backing reaches. Where that is not possible (a PC
   has ROM in its first MiB) the exact edge goes out, and the back-end has to cope. Back-ends with
   memory slots get each section as a region of its own, so that growth takes one slot; where a
   region changes, their rings are stopped for the moment in which it is gone. vDPA devices, which
   see guest physical addresses, get each section as a map of its own (vhost_kernel.h, chapter 5).

   A section that overlaps the one before it is an error, unless it is the same memory at the same
   place: then both are one. After a failed add the transaction can only be aborted: a commit fails,
   so that no hole is left in silence.

   Order beside the hypervisor's own mapper (KVM memory slots): to add memory, map it there first,
   then commit here; to remove memory, commit here first, then unmap it there.
   Bind all kick notifiers (KVM ioeventfds) of a device in one transaction before its start, and
   unbind them after its stop, while the fds are still open.

7. OWNERSHIP

      what                              who closes or frees it, and when
      vhost_vm, _device, _queue         yours; fixed address from init to cleanup, never copied;
                                        zero if state or cleanup may be used before init
      vhost_backing                     yours; borrowed from add to the commit that leaves it out
      section, options                  yours; copied by the call
      tables of functions               yours; borrowed as long as the object they were given to
      kick_fd, call_fd                  yours; borrowed from start (or unmask) to stop
      masked, error, config notifiers   the library's; made at init, destroyed at cleanup
      back-end object                   yours; borrowed from device init to device cleanup
      memory of maps, tables, logs      the library's, by options.allocate

8. QUEUES AND POSITIONS

   You fill the public fields of vhost_queue while the queue is stopped. A queue that is not `ready`
   is passed over. position.state tells where the ring begins:

      VHOST_POSITION_INITIAL   (0) at its beginning, split or packed
      VHOST_POSITION_CERTAIN   at position.avail (and .used, if packed): resume, or migrate in
      VHOST_POSITION_GUESSED   refused by start

   After stop it is CERTAIN if the back-end said it. If it did not, or the ring belies it, it is
   still CERTAIN by what the back-end's requests in flight left on record, if there is a record, or,
   in a split ring, by its used index, if all that was available is used or if buffers are used in
   order (VIRTIO_F_IN_ORDER); any other is GUESSED: buffers may be lost, or be done twice. (The
   guess is the used index: all that was available and not yet used is done again.) Then reset the
   device, or, knowing the device, take the guess by setting CERTAIN. The driver's view of what was
   signalled (signalled_used, of event indexes) is void after any stop: recompute it.
   Without used_certain, buffers between position.used and position.avail are still in flight,
   though the back-end should have waited for them (QEMU's disk 7.2, for one, does not always): only
   this back-end, or a record of requests in flight, can finish them. Do not migrate, nor take its
   memory away, before vhost_device_settled says that they are used.
   Packed positions: bits 0-14 index, bit 15 wrap counter, as in virtio.
   call_fd -1 is a queue without an interrupt vector. kick_fd -1 is a back-end that polls.
   While a queue is masked its calls go to a notifier of the library: vhost_queue_pending tests it,
   and vhost_queue_unmask returns 1 if a call came while masked, so none is lost.

9. MIGRATING

   Memory is copied while the guest runs, in rounds, each with what was written in the one before;
   then all stops, and the rest follows. The guest's own writes are in the dirty log of the
   hypervisor, those of devices are here. examples/migrate.c shows it.

      source                        and if it fails
      vhost_log_blocker             names a device that cannot log, and why: no migration, unless
                                    the device is unplugged
      vhost_log_start               no device logs; all goes on as before
      each round, for each piece    (only for mistakes of the caller)
      of memory: vhost_log_sync
      vhost_memory_commit           as ever: memory may come and go on the way. Tell the other side,
                                    and sync before memory goes
      -- the virtual processors stop --
      vhost_device_stop, all        goes on to the end. Certain positions may be sent, whatever it
                                    returned. A GUESSED one not: start here again, or (BROKEN) what
                                    chapter 8 says of guesses
      vhost_device_settled          0: wait a little, and ask again. Without a record of requests in
                                    flight nobody else can finish them (note)
      vhost_log_sync, once more     used rings are dirty since the stop
      send, of each device          device.acked; of each queue: ready, size, desc, avail, used, and
                                    position.avail and .used; what it has to tell on its own
                                    (vhost_user.h, chapter 5); config space, if it is the back-end's
      vhost_log_stop                a device that does not stop logging is BROKEN

      destination                   and if it fails
      vhost_device_init             before the source stops, as it takes time: the same kind of
                                    back-end, the same number of queues
      vhost_memory_commit           the same memory at the same gpas; the source's order of events
      vhost_device_ack              -EINVAL: this back-end lacks a feature that the driver has in
                                    use: go on at the source
      fill the queues               position = {VHOST_POSITION_CERTAIN, avail, used}; kick_fd and
                                    call_fd are new
      vhost_device_start            go on at the source, or try again
      signal each call_fd           an interrupt may have been on its way, and one too many is
                                    harmless; kicks need no repetition, start looks into the rings.
                                    The interrupt controller must have its state before the start:
                                    what comes earlier is overwritten by it

   Note: a disk whose back-end keeps no such record is best stopped when its rings are idle. The
   processors stand still, so wait a moment until vhost_device_settled says so, and stop it then:
   QEMU's 7.2 does not wait for its requests in the stop, and may even die of them.
   Until a device was started on the other side, the source has all that is needed: there
   vhost_device_start goes on, and so does the log. From then on it must not: close it.
   A device that breaks on the way is no obstacle: what it has written is in the log, also after it
   has gone. It may be recovered meanwhile (it logs again), or be sent as it is.

   The log. vhost_log_start makes all devices of the VM log the pages they write, or none. While the
   VM logs, a device that cannot log is refused at init, and those that start log from the start.
   vhost_log_sync takes and clears the bits of a range, in one pass for all devices, and hands them
   to a sink: ranges of dirty pages, or your own bitmap, OR-ed into. Bits leave the log by sync or
   log_stop only: not when a device stops, breaks, or is cleaned up, nor when memory comes or goes.
   It has one bit per 4 KiB from gpa 0 to the end of what back-ends may write; it grows before the
   back-ends' tables do, and shrinks after them, once it is clean there. What a sync finds outside
   of every section is dropped, and counted. The devices of one kind share one log, so that a
   process that is a back-end could clear the bits of another, unless one of the two has
   vhost_device_options.own_log. A log of its own costs as much memory again, and a pass of each
   sync.

10. BEHIND A vIOMMU

   Give the device memory ops with `translate` (`watch` may be NULL, and `map` is not used). If the
   driver accepts ACCESS_PLATFORM, the addresses of rings are IOVAs: start looks all ring parts up
   and tells the back-end where they are before it enables a ring; the back-end asks for everything
   else, and vhost_device_process answers. (Without `translate`, ACCESS_PLATFORM is a matter between
   driver and VMM, and ring addresses are gpas.) Call
   vhost_device_unmapped for whatever the vIOMMU unmaps, from watch(on) to watch(off). A miss
   without a translation is not answered, so that its ring waits; on_message says so. Entries lead
   to memory that is in the back-end's table; when a commit takes memory away, the back-end is told
   to forget all entries.

11. CALLBACKS

   Whatever is called, when, and in which thread: on the thread of the call that causes it, before
   that call returns. None may call back into the library but for reading (`vhost_memory_find`,
   public fields), unless it says so.

      on_message       one line for people: each failing call once, and notes. A guest can cause
                       some (features it was not offered, IOVAs without memory): limit their rate
      on_trace         each step, as numbers, for tools and tests; not formatted
      on_broken        a device became BROKEN, whatever the call; device.last_error says why. It
                       may change the positions of the queues
      on_queue_error   the back-end found a queue's ring to be broken; in process
      on_config        the device's config space changed; in process

12. THREADS

   Readers and one writer. vhost_vm_*, vhost_memory_begin/add/commit/abort, vhost_log_*,
   vhost_device_init/cleanup/ack/start/stop/settled/reset/recover need the VM to themselves: no
   other call on the VM or any of its devices at the same time. vhost_queue_*, vhost_device_process,
   _poll_fds, _table, _get_config, _set_config, _unmapped and vhost_iotlb_message need their device
   to themselves: one thread per device. vhost_memory_find, vhost_memory_free_slots and
   vhost_device_offer may run beside those. A readers-writer lock of the VMM says exactly this.
   Callbacks of different devices can run side by side.

13. ERRORS

   Negative errno, and never errno itself: -EINVAL an argument, -EBUSY the wrong state, -EIO a
   broken device, -ENOTSUP the back-end cannot, -ENOSPC no slot, -EOVERFLOW addresses wrap,
   -EFAULT an address not in memory, -ENOMEM, -EPROTO an answer without sense, else what the
   back-end returned.
   vm.last_error and device.last_error hold the last failure of a call on that object: the code, the
   reason (VHOST_WHY_*), the operation and queue if any, and a text. Calls on a device, and commits
   that break it, write device.last_error; other calls on the VM write vm.last_error.

14. MEMORY USE

   The section list, the tables and the log are allocated, and behind a vIOMMU a list of what each
   ring is made of; nothing else is. After warm-up, a commit that changes nothing, stop, start,
   mask, unmask, sync and a miss allocate nothing. All memory of a VM comes from options.allocate,
   the dirty log from options.log. Calls on different devices may allocate at the same time.

15. LIMITS

   A ring has at most 32,768 descriptors. Sections: 2^31. An operation of a kernel back-end has no
   deadline: an ioctl takes as long as it takes.

16. IF YOU KNOW QEMU

      there                                     here
      MemoryListener begin/region_add/commit    vhost_memory_begin, _add, _commit
      memory_global_dirty_log_start, log_sync   vhost_log_start, vhost_log_sync
      vhost_device_iotlb_miss, IOMMU notifier   vhost_device_process, vhost_device_unmapped
      vhost_dev_init, _cleanup                  vhost_device_init, _cleanup
      vhost_dev_start, _stop                    vhost_device_start, _stop (enable rings themselves)
      vhost_get_features, vhost_ack_features    vhost_device_offer, _ack (ack sets, it does not OR)
      vhost_virtqueue_start, _stop              vhost_queue_start, _stop
      vhost_virtqueue_mask, _pending            vhost_queue_mask, _unmask, _pending
      vhost_net_set_backend                     inside vhost_kernel.h (the tap of a pair)
      one vhost_dev per queue pair              one vhost_device per virtio device
      VHostOps                                  vhost_backend_ops: submit, then fence
      virtio_queue_get_addr and the like        fields of vhost_queue, filled in before start
      vhost_has_free_slot                       vhost_memory_free_slots
      migration blockers                        vhost_log_blocker
      abort()                                   an error, and at worst a BROKEN device
*/
#ifndef VHOST_H_INCLUDED
#define VHOST_H_INCLUDED

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define VHOST_VERSION_STRING "0.1.0"
#define VHOST_VERSION_MAJOR  0
#define VHOST_VERSION_MINOR  1
#define VHOST_VERSION_PATCH  0

/* >>config --------------------------------------------------------------------------------------

   All optional. None changes a public struct or prototype.

   macro                     default              define it where
   VHOST_IMPLEMENTATION      off                  in one file, before the include
   VHOST_STATIC              off                  with it, never alone: all functions are static
   VHOST_REALLOC, _CALLOC,   realloc, calloc,     implementation file; all three or none
   _FREE                     free
   VHOST_VSNPRINTF           vsnprintf            implementation file
   VHOST_LOAD_ACQUIRE16(p)   __atomic_load_n      implementation file; *(const uint16_t *)p
   VHOST_LOAD, _EXCHANGE,    __atomic_*, relaxed  implementation file; of an unsigned long in
   _FETCH_AND, _FETCH_OR                          memory that a back-end writes; all four or none
   VHOST_NO_POSIX            off                  implementation file; then options.events is needed
   VHOST_KERNEL_IMPLEMENTATION, VHOST_USER_IMPLEMENTATION
                             as the first one     in one file, before the include of that header:
                                                  it alone, where vhost.h is implemented elsewhere
   --------------------------------------------------------------------------------------------- */

#if defined(VHOST_STATIC) && defined(__GNUC__)
#define VHOST_API static __attribute__((unused))
#elif defined(VHOST_STATIC)
#define VHOST_API static
#else
#define VHOST_API extern
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* >>types ------------------------------------------------------------------------------------- */

typedef struct vhost_vm vhost_vm;
typedef struct vhost_device vhost_device;
typedef struct vhost_queue vhost_queue;

/* Why a call failed: one code per reason, for programs and tests; vhost_why_text has the words. */
#define VHOST_WHY_LIST(X)                                                                          \
    X(VHOST_WHY_NONE, "no error")                                                                  \
    X(VHOST_WHY_ARGUMENT, "an argument is missing or out of range")                                \
    X(VHOST_WHY_STATE, "not allowed in this state")                                                \
    X(VHOST_WHY_MEMORY, "out of memory")                                                           \
    X(VHOST_WHY_EVENT, "a notifier failed")                                                        \
    X(VHOST_WHY_NOT_SUPPORTED, "the back-end has no such operation")                               \
    X(VHOST_WHY_SECTION_EMPTY, "the section has no size")                                          \
    X(VHOST_WHY_SECTION_UNALIGNED, "gpa, size or host address is not a multiple of 4 KiB")         \
    X(VHOST_WHY_SECTION_WRAPS, "the section runs over the end of the address space")               \
    X(VHOST_WHY_SECTION_OUTSIDE, "the section is not inside its backing")                          \
    X(VHOST_WHY_SECTION_ORDER, "the section begins before the one added before it")                \
    X(VHOST_WHY_SECTION_OVERLAP, "the section overlaps other memory")                              \
    X(VHOST_WHY_SECTION_LOST, "a section was refused in this transaction")                         \
    X(VHOST_WHY_TOO_MANY_REGIONS, "more regions than the back-end has slots")                      \
    X(VHOST_WHY_TOO_MANY_QUEUES, "more queues than the back-end has")                              \
    X(VHOST_WHY_BACKEND_INCOMPLETE, "the back-end lacks an operation that is required")            \
    X(VHOST_WHY_BACKEND_REFUSED, "the back-end refused")                                           \
    X(VHOST_WHY_BACKEND_LOST, "the back-end is gone")                                              \
    X(VHOST_WHY_BACKEND_LESS, "the back-end has less than before")                                 \
    X(VHOST_WHY_DEVICE_BROKEN, "the device is broken")                                             \
    X(VHOST_WHY_FEATURE_NOT_OFFERED, "a feature was accepted that the back-end does not have")     \
    X(VHOST_WHY_QUEUE_NOT_READY, "the queue is not ready")                                         \
    X(VHOST_WHY_RING_SIZE, "not a possible ring size")                                             \
    X(VHOST_WHY_RING_UNALIGNED, "a ring part is not aligned")                                      \
    X(VHOST_WHY_RING_WRAPS, "a ring part runs over the end of the address space")                  \
    X(VHOST_WHY_RING_UNMAPPED, "a ring part is not, or not wholly, in guest memory")               \
    X(VHOST_WHY_RING_READ_ONLY, "a ring part that the device writes is in ROM")                    \
    X(VHOST_WHY_RING_MOVED, "the memory under a running ring was moved")                           \
    X(VHOST_WHY_RING_ERROR, "the back-end found an error in a ring")                               \
    X(VHOST_WHY_POSITION_GUESSED, "the queue's position is only a guess")                          \
    X(VHOST_WHY_LOG_UNSUPPORTED, "the back-end cannot log what it writes")                         \
    X(VHOST_WHY_LOG_PARTIAL, "the back-end logs some of what it writes, but not all")              \
    X(VHOST_WHY_LOG_MEMORY, "no memory for the dirty log")                                         \
    X(VHOST_WHY_IOTLB_UNSUPPORTED, "the back-end cannot work behind a vIOMMU")                     \
    X(VHOST_WHY_IOTLB_UNMAPPED, "an IOVA leads to no memory of the back-end")                      \
    X(VHOST_WHY_IOTLB_MESSAGE, "an IOTLB message that a back-end may not send")                    \
    X(VHOST_WHY_KERNEL_OPEN, "the vhost character device could not be opened")                     \
    X(VHOST_WHY_KERNEL_OWNER, "the vhost fd has an owner already")                                 \
    X(VHOST_WHY_KERNEL_SEVERED, "the vhost fd was closed when the device broke")                   \
    X(VHOST_WHY_KERNEL_STUCK, "the vhost fd keeps its IOTLB until it is closed")                   \
    X(VHOST_WHY_KERNEL_CID, "another vhost-vsock device has this guest CID")                       \
    X(VHOST_WHY_KERNEL_TARGET, "no such SCSI target, or without a nexus, or in use")               \
    X(VHOST_WHY_KERNEL_STATUS, "the vDPA device did not take this step")                           \
    X(VHOST_WHY_KERNEL_MEMLOCK, "the kernel could not map or lock it (see RLIMIT_MEMLOCK)")        \
    X(VHOST_WHY_KERNEL_IOVA, "guest memory that the vDPA device cannot address")                   \
    X(VHOST_WHY_KERNEL_REMAP, "memory changed in place, and the vDPA device cannot pause")         \
    X(VHOST_WHY_USER_CONNECT, "no connection to the vhost-user back-end")                          \
    X(VHOST_WHY_USER_EOF, "the back-end closed the connection")                                    \
    X(VHOST_WHY_USER_SOCKET, "the socket failed")                                                  \
    X(VHOST_WHY_USER_TIMEOUT, "the back-end did not answer in time")                               \
    X(VHOST_WHY_USER_REFUSED, "the back-end answered that it failed")                              \
    X(VHOST_WHY_USER_HEADER, "an answer with wrong flags, or to another message")                  \
    X(VHOST_WHY_USER_SIZE, "an answer of a wrong size")                                            \
    X(VHOST_WHY_USER_FDS, "too few or too many fds in an answer")                                  \
    X(VHOST_WHY_USER_VALUE, "a value in an answer that cannot be")                                 \
    X(VHOST_WHY_USER_UNASKED, "an answer that nobody asked for")                                   \
    X(VHOST_WHY_USER_REQUEST, "a request of the back-end that makes no sense")                     \
    X(VHOST_WHY_USER_INFLIGHT, "the record of requests in flight cannot be used")

#define VHOST_WHY_ENUM(name, text) name,
typedef enum vhost_why {
    VHOST_WHY_LIST(VHOST_WHY_ENUM) VHOST_WHY_COUNT
} vhost_why;

/* The operations of a back-end, in the order in which start submits them. */
#define VHOST_OP_LIST(X)                                                                           \
    X(VHOST_OP_NONE, "none")                                                                       \
    X(VHOST_OP_OPEN, "open")                                                                       \
    X(VHOST_OP_SET_FEATURES, "set_features")                                                       \
    X(VHOST_OP_SET_TABLE, "set_table")                                                             \
    X(VHOST_OP_SET_LOG, "set_log")                                                                 \
    X(VHOST_OP_IOTLB_SEND, "iotlb_send")                                                           \
    X(VHOST_OP_SET_RING_CALL, "set_ring_call")                                                     \
    X(VHOST_OP_SET_RING_ERROR, "set_ring_error")                                                   \
    X(VHOST_OP_SET_RING_SIZE, "set_ring_size")                                                     \
    X(VHOST_OP_SET_RING_BASE, "set_ring_base")                                                     \
    X(VHOST_OP_SET_RING_ENDIAN, "set_ring_endian")                                                 \
    X(VHOST_OP_SET_RING_ADDRESSES, "set_ring_addresses")                                           \
    X(VHOST_OP_SET_RING_BUSY_LOOP, "set_ring_busy_loop")                                           \
    X(VHOST_OP_SET_INFLIGHT, "set_inflight")                                                       \
    X(VHOST_OP_SET_RING_KICK, "set_ring_kick")                                                     \
    X(VHOST_OP_SET_CONFIG_CALL, "set_config_call")                                                 \
    X(VHOST_OP_ENABLE_RING, "enable_ring")                                                         \
    X(VHOST_OP_SET_RUNNING, "set_running")                                                         \
    X(VHOST_OP_GET_RING_BASE, "get_ring_base")                                                     \
    X(VHOST_OP_RESET, "reset")                                                                     \
    X(VHOST_OP_GET_CONFIG, "get_config")                                                           \
    X(VHOST_OP_SET_CONFIG, "set_config")                                                           \
    X(VHOST_OP_PROCESS, "process")                                                                 \
    X(VHOST_OP_SEVER, "sever")

#define VHOST_OP_ENUM(name, text) name,
typedef enum vhost_op {
    VHOST_OP_LIST(VHOST_OP_ENUM) VHOST_OP_COUNT
} vhost_op;

/* The last failure of an object. Valid until the next failing call on it; copy it to keep it. */
typedef struct vhost_error {
    int code;       /* negative errno; 0: none yet, or (in on_message) a mere note */
    vhost_why why;  /* the reason */
    vhost_op op;    /* the back-end operation that failed, or VHOST_OP_NONE */
    int queue;      /* the queue concerned, or -1 */
    uint32_t line;  /* in the header that reports it */
    char text[200]; /* for people, without newline, cut if too long */
} vhost_error;

/* ---- features: virtio feature bits 0 to 127 ---- */

typedef struct vhost_features {
    uint64_t word[2]; /* bit n is word[n / 64] >> (n % 64) & 1 */
} vhost_features;

enum {
    VHOST_FEATURE_LOG_ALL = 26, /* the library's own: never offered to a driver */
    VHOST_FEATURE_INDIRECT_DESC = 28,
    VHOST_FEATURE_EVENT_IDX = 29,
    VHOST_FEATURE_VERSION_1 = 32,
    VHOST_FEATURE_ACCESS_PLATFORM = 33,
    VHOST_FEATURE_RING_PACKED = 34,
    VHOST_FEATURE_IN_ORDER = 35,
    VHOST_FEATURE_RING_RESET = 40
};

/* ---- guest memory ---- */

#define VHOST_PAGE UINT64_C(4096) /* the unit of sections and of the dirty log, in bytes */

enum {                                /* vhost_backing.flags */
    VHOST_BACKING_PRIVATE = 1u << 0,  /* mapped MAP_PRIVATE: an fd would show a peer other pages */
    VHOST_BACKING_READ_ONLY = 1u << 1 /* mapped without PROT_WRITE */
};

/* What a piece of guest RAM is made of. Its address is its identity: see manual, chapter 6. */
typedef struct vhost_backing {
    void *host;         /* where it is mapped in this process */
    uint64_t size;      /* bytes */
    int fd;             /* what a peer may map, or -1; borrowed */
    uint64_t fd_offset; /* of `host` in fd, bytes */
    uint64_t page_size; /* of the mapping, bytes: 4096, or that of hugepages */
    uint32_t flags;     /* VHOST_BACKING_* */
} vhost_backing;

enum {                                     /* vhost_section.flags */
    VHOST_SECTION_ROM = 1u << 0,           /* the guest cannot write it */
    VHOST_SECTION_DIRTY_TRACKED = 1u << 1, /* someone besides migration must see every write */
    VHOST_SECTION_UNMERGEABLE = 1u << 2    /* never one region with a neighbour */
};

/* Where (part of) a backing stands in the guest. */
typedef struct vhost_section {
    uint64_t gpa;                 /* first byte, multiple of 4 KiB */
    uint64_t size;                /* bytes, multiple of 4 KiB, not 0 */
    const vhost_backing *backing; /* the memory */
    uint64_t offset;              /* of the section in the backing, bytes */
    uint32_t flags;               /* VHOST_SECTION_* */
} vhost_section;

/* The answer of vhost_memory_find. */
typedef struct vhost_extent {
    void *host;    /* host address of the gpa asked for */
    uint64_t size; /* bytes from there that are contiguous in guest and host memory */
    bool writable; /* false: ROM, or mapped read-only */
} vhost_extent;

/* ---- the memory table of a back-end ---- */

typedef enum vhost_profile {   /* how a kind of back-end wants its table */
    VHOST_PROFILE_BY_HOST = 0, /* host addresses: the vhost drivers of the kernel */
    VHOST_PROFILE_BY_FD = 1,   /* by shared fd, a whole table: vhost-user */
    VHOST_PROFILE_SLOTS = 2,   /* by shared fd, region by region */
    VHOST_PROFILE_MAPS = 3,    /* a map from IOVA for each section: vDPA */
    VHOST_PROFILE_COUNT
} vhost_profile;

typedef struct vhost_region {
    uint64_t gpa;                 /* first byte */
    uint64_t size;                /* bytes */
    void *host;                   /* where the region begins in this process */
    const vhost_backing *backing; /* in `removed` and `from` only an identity: it may be gone */
    uint64_t serial;              /* tells memory apart that was replaced at the same place */
} vhost_region;

typedef struct vhost_table {
    uint32_t count;
    const vhost_region *regions; /* ascending, disjoint */
} vhost_table;

/* From the table that a back-end acknowledged last to the one it shall have. */
typedef struct vhost_table_change {
    const vhost_table *from; /* NULL: it has none, or it is not known */
    const vhost_table *to;
    const vhost_region *removed; /* in `from`, not in `to` */
    const vhost_region *added;   /* in `to`, not in `from` */
    uint32_t removed_count;
    uint32_t added_count;
    bool in_place; /* something in `added` overlaps something in `removed` */
} vhost_table_change;

/* ---- the dirty log ---- */

typedef enum vhost_log_kind {
    VHOST_DIRTY_NONE = 0,    /* cannot log */
    VHOST_DIRTY_PRIVATE = 1, /* memory of this process; native unsigned longs */
    VHOST_DIRTY_SHARED = 2,  /* memory behind an fd; a map of bytes (page / 8, bit page % 8) */
    VHOST_DIRTY_KIND_COUNT
} vhost_log_kind;

/* Memory of a log: one bit per 4 KiB page of guest memory, from gpa 0. */
typedef struct vhost_log_memory {
    void *base;
    uint64_t size; /* bytes */
    int fd;        /* SHARED: what the back-end maps; else -1 */
    uint64_t id;   /* no two logs of a VM have the same */
} vhost_log_memory;

typedef struct vhost_log_ops {
    /* Gives ZEROED memory of `memory->size` bytes; shared: with an fd, which no peer can shrink
       (by default: a sealed memfd). Returns 0 or -errno. */
    int (*map)(vhost_log_memory *memory, bool shared, void *user);
    void (*unmap)(vhost_log_memory *memory, void *user);
} vhost_log_ops;

/* Where dirty pages go. Exactly one of `range` and `bits` is set. */
typedef struct vhost_log_sink {
    void (*range)(uint64_t gpa, uint64_t size, void *user); /* coalesced, ascending */
    void *user;
    uint64_t *bits;         /* OR-ed into: bit 0 of bits[0] is the page at bits_gpa */
    uint64_t bits_gpa;      /* multiple of 4 KiB */
    uint64_t bits_count;    /* pages that fit */
    uint64_t pages_dirty;   /* out: added to, pages handed over */
    uint64_t pages_dropped; /* out: added to, pages outside of every section */
} vhost_log_sink;

/* ---- notifiers ---- */

typedef struct vhost_event {
    int wait_fd;   /* becomes readable when signalled */
    int signal_fd; /* given to whoever signals; equal to wait_fd for an eventfd */
} vhost_event;

/* How notifiers are made. All return 0 (test_and_clear: 1 if it was signalled) or -errno. */
typedef struct vhost_event_ops {
    int (*create)(vhost_event *event, void *user); /* not signalled, close-on-exec, non-blocking */
    void (*destroy)(vhost_event *event, void *user);
    int (*test_and_clear)(const vhost_event *event, void *user);
} vhost_event_ops;

/* ---- rings ---- */

typedef enum vhost_part {
    VHOST_DESC = 0,
    VHOST_AVAIL = 1,
    VHOST_USED = 2
} vhost_part;

typedef enum vhost_position_state {
    VHOST_POSITION_INITIAL = 0,
    VHOST_POSITION_CERTAIN = 1,
    VHOST_POSITION_GUESSED = 2
} vhost_position_state;

/* Where a back-end stands in a ring; see manual, chapter 8. */
typedef struct vhost_position {
    vhost_position_state state; /* of `avail`, and if packed of `used` */
    uint16_t avail;             /* next available entry it takes */
    uint16_t used;              /* next used entry it writes; after a stop, as found */
    bool used_certain;          /* after a stop: `used` is final, nothing is in flight */
} vhost_position;

/* One ring part as mapped. */
typedef struct vhost_mapping {
    uint64_t address; /* as the driver gave it: gpa, or IOVA */
    uint64_t gpa;     /* where it is in guest memory */
    uint64_t size;    /* bytes */
    void *host;       /* host address */
} vhost_mapping;

typedef struct vhost_ring_addresses {
    vhost_mapping part[3]; /* by vhost_part */
    bool log;              /* log writes to the used ring, at part[VHOST_USED].gpa */
    bool iova;             /* behind a vIOMMU: use .address */
} vhost_ring_addresses;

/* The answer to get_ring_base, by its encoding in vhost and vhost-user:
   split: index of the next available entry; packed: avail in bits 0-15, used in bits 16-31. */
typedef struct vhost_ring_base {
    uint32_t value;
    bool answered; /* set by the back-end at the latest in fence, even in a fence that fails */
} vhost_ring_base;

struct vhost_queue {
    /* Yours: fill in while the queue is stopped (start from vhost_queue_init). */
    bool ready;              /* the driver has set the queue up */
    bool big_endian;         /* byte order of a legacy ring; not read with VERSION_1 */
    uint32_t size;           /* descriptors; split: a power of two */
    uint64_t desc;           /* addresses as the driver gave them: gpa, or IOVA */
    uint64_t avail;          /* packed: driver area */
    uint64_t used;           /* packed: device area */
    int kick_fd;             /* borrowed from start to stop; -1: the back-end polls */
    int call_fd;             /* borrowed from start to stop; -1: no interrupt vector */
    uint32_t busy_loop_us;   /* how long the back-end may poll before it waits, microseconds */
    vhost_position position; /* yours while stopped; current after stop */

    /* Read only. */
    bool started; /* the back-end owns the ring */
    bool masked;

    /* Private. */
    vhost_ring_addresses rings;
    vhost_ring_base base;
    vhost_event masked_event;
    vhost_event error_event;
    bool unsettled;              /* it was stopped with buffers in flight */
    bool misled;                 /* it may have run with other parameters than it was to have */
    bool paused;                 /* in a commit: stopped, and to go on with the new table */
    bool swapped;                /* SET_VRING_ENDIAN was sent */
    bool busy_looping;           /* a busy-loop time was sent */
    struct vhosti_piece *pieces; /* behind a vIOMMU: what the parts are made of */
    uint32_t piece_count, piece_capacity;
};

/* ---- vIOMMU ---- */

enum {
    VHOST_PERMIT_READ = 1,
    VHOST_PERMIT_WRITE = 2
}; /* as on the wire */

typedef enum vhost_iotlb_type {
    VHOST_TLB_MISS = 1,
    VHOST_TLB_MAP = 2,
    VHOST_TLB_UNMAP = 3,
    VHOST_TLB_FAIL = 4
} vhost_iotlb_type;

typedef struct vhost_iotlb {
    vhost_iotlb_type type;
    uint8_t permit; /* VHOST_PERMIT_* */
    uint64_t iova;
    uint64_t size; /* bytes */
    uint64_t gpa;  /* MAP: where iova leads, in guest memory */
    void *host;    /* and in this process */
} vhost_iotlb;

typedef struct vhost_translation {
    uint64_t iova; /* first byte of the entry that holds the address, multiple of 4 KiB */
    uint64_t size; /* of the entry, bytes, 4 KiB or more */
    uint64_t gpa;  /* where the entry leads, multiple of 4 KiB */
    uint8_t permit;
} vhost_translation;

/* How a device reaches memory. NULL members: by guest physical address, in the VM's map. */
typedef struct vhost_memory_ops {
    /* Maps mapping->size bytes at mapping->address of the device's DMA address space: fills in host
       and gpa, and lowers size if less is contiguous. The memory stays readable until unmap, and is
       what the VM's map has at gpa. Returns 0 or -errno. */
    int (*map)(vhost_device *device, vhost_mapping *mapping, bool write, void *user);
    void (*unmap)(vhost_device *device, const vhost_mapping *mapping, bool written, void *user);
    /* A vIOMMU: looks an IOVA up. Returns 0, or -EFAULT if nothing is mapped for this access. */
    int (*translate)(vhost_device *device, uint64_t iova, bool write, vhost_translation *entry,
                     void *user);
    /* From on to off, every unmapped IOVA range is told by vhost_device_unmapped. */
    int (*watch)(vhost_device *device, bool on, void *user);
} vhost_memory_ops;

/* ---- back-ends ---- */

/* What a back-end says of itself when it is opened. */
typedef struct vhost_facts {
    const char *name; /* for messages; static */
    vhost_profile profile;
    vhost_log_kind log_kind;
    uint32_t max_regions;    /* memory slots; 0: no limit */
    uint32_t max_queues;     /* 0: no limit known */
    vhost_features offered;  /* feature bits it has */
    vhost_features its_bits; /* the bits that are its to offer; others are the VMM's own */
    bool queues_together;    /* it cannot start or stop one queue while others run */
    vhost_why log_obstacle;  /* why it cannot log though it offers LOG_ALL; 0: it can */
} vhost_facts;

/* How a fence went. */
typedef struct vhost_fence {
    int error;       /* 0, or the negative errno of the first operation that failed */
    vhost_op op;     /* which it was */
    int queue;       /* of which queue, or -1 */
    bool later_done; /* what was submitted after it was done all the same; false: not done */
} vhost_fence;

/* A back-end. NULL member = not supported; (R) = required.
   A submitted operation returns >= 0 (done, or queued), or a negative errno: refused, nothing of it
   happened; what was submitted before still needs its fence. Operations are done in the order in
   which they were submitted. Arguments are valid during the call only, but fds until the fence;
   results (a base, config bytes) are in place when the fence returns. After sever comes nothing but
   close, and maybe open. Queues count from 0 over the whole device.
   open takes ownership and fills in the facts, which are zero before; if it fails, close is not
   called. A table may be empty. UNMAP of 0 and UINT64_MAX bytes means everything; the pages of
   rings are sent again after it. poll_fds may return more than capacity.
   The memory of a log stays until the next set_log, a set_features without LOG_ALL, or the stop of
   the last ring is done.
   A ring runs from the last of set_ring_kick, enable_ring(on) and set_running(on) that the back-end
   has, and is to be looked at then without a kick: buffers may wait in it. It stops at the first of
   set_running(off), enable_ring(off) and get_ring_base that can stop it.
   A back-end in this process that waits for kicks itself learns their fds from set_ring_kick, and
   not through poll_fds, whose set is fixed from open to sever. */
typedef struct vhost_backend_ops {
    /* Immediate. */
    int (*open)(void *backend, vhost_device *device, vhost_facts *facts); /* (R) */
    void (*close)(void *backend); /* the device lets go; once after each open, sever or not */
    void (*sever)(void *backend); /* (R) cut off for good: when it returns, nothing is touched */
    int (*poll_fds)(void *backend, int *fds, uint32_t capacity); /* returns how many there are */
    int (*process)(void *backend);                               /* what those fds announce */
    /* After sever, or a stop that gave no position: where the ring stands by what is recorded of
       requests in flight. base->value comes in as the used index (split) or 0, and goes out as the
       position. Returns 1: it is certain, 0: nothing is recorded. */
    int (*recall_base)(void *backend, uint32_t queue, vhost_ring_base *base);
    /* Submitted. */
    int (*set_features)(void *backend, const vhost_features *features); /* (R) */
    int (*set_table)(void *backend, const vhost_table_change *change);  /* (R) */
    int (*set_log)(void *backend, const vhost_log_memory *memory);      /* NULL: none */
    int (*iotlb_send)(void *backend, const vhost_iotlb *message);       /* MAP, or UNMAP */
    int (*set_ring_call)(void *backend, uint32_t queue, int fd);        /* (R) -1: none */
    int (*set_ring_error)(void *backend, uint32_t queue, int fd);
    int (*set_ring_size)(void *backend, uint32_t queue, uint32_t size); /* (R) */
    int (*set_ring_base)(void *backend, uint32_t queue, uint32_t base); /* (R) */
    int (*set_ring_endian)(void *backend, uint32_t queue, bool big);
    int (*set_ring_addresses)(void *backend, uint32_t queue,
                              const vhost_ring_addresses *addresses); /* (R) */
    int (*set_ring_busy_loop)(void *backend, uint32_t queue, uint32_t microseconds);
    /* Rings are set up and none runs: hand over what remembers requests in flight. */
    int (*set_inflight)(void *backend);
    int (*set_ring_kick)(void *backend, uint32_t queue, int fd); /* (R) -1: poll */
    int (*set_config_call)(void *backend, int fd);               /* -1: none */
    int (*enable_ring)(void *backend, uint32_t queue, bool on);
    int (*set_running)(void *backend, bool on);
    int (*get_ring_base)(void *backend, uint32_t queue, vhost_ring_base *base); /* (R) */
    int (*reset)(void *backend);
    int (*get_config)(void *backend, uint32_t offset, void *bytes, uint32_t size);
    int (*set_config)(void *backend, uint32_t offset, const void *bytes, uint32_t size);
    /* Waits for all of the above. NULL: nothing is ever queued. */
    void (*fence)(void *backend, vhost_fence *result);
    /* What failed last, in the back-end's own words; NULL: it has none. Only its text is read. */
    const vhost_error *(*last_error)(void *backend);
    /* What was submitted may be on its way before the fence, which will come when others were
       waited for; NULL: it is, or can wait. */
    void (*push)(void *backend);
} vhost_backend_ops;

/* ---- news and traces ---- */

typedef enum vhost_level {
    VHOST_LEVEL_ERROR = 1,
    VHOST_LEVEL_NOTE = 2
} vhost_level;

typedef enum vhost_trace_event {
    VHOST_TRACE_SECTION_ACCEPTED = 1, /* gpa, size: a region begins with it */
    VHOST_TRACE_SECTION_MERGED = 2,   /* gpa, size: it continues the region before it */
    VHOST_TRACE_SECTION_REJECTED = 3, /* gpa, size; value: its flags */
    VHOST_TRACE_COMMIT = 4,           /* value: number of sections; result: 1 changed, 0 not */
    VHOST_TRACE_OP = 5,    /* op, queue, value (fd, size, base, on); result: its return */
    VHOST_TRACE_FENCE = 6, /* op, queue: what failed; result */
    VHOST_TRACE_STATE = 7, /* value: the vhost_state entered */
    VHOST_TRACE_LOG = 8,   /* a log was made or replaced; value: its kind; size: bytes */
    VHOST_TRACE_MISS = 9,  /* gpa: the IOVA; value: what for; result: 0, or a negative errno */
    /* gpa, size: of a section in large pages; value: 0 its begin, 1 its end is within a page */
    VHOST_TRACE_SECTION_UNROUNDED = 10
} vhost_trace_event;

typedef struct vhost_trace {
    vhost_trace_event event;
    const vhost_device *device; /* NULL: the memory map */
    vhost_op op;
    int queue; /* or -1 */
    int result;
    uint64_t gpa;
    uint64_t size;
    int64_t value;
} vhost_trace;

/* ---- the VM ---- */

typedef struct vhost_vm_options { /* zero is the default of each */
    void *user;                   /* passed to every function below */
    void (*on_message)(vhost_level level, const vhost_error *what, const vhost_device *device,
                       void *user); /* device: NULL if it is about the VM */
    void (*on_trace)(const vhost_trace *trace, void *user);
    void *(*allocate)(void *memory, size_t size, void *user); /* as realloc; size 0 frees */
    const vhost_event_ops *events;                            /* default: >>posix */
    const vhost_log_ops *log; /* default: >>posix; without it, no log is shared */
} vhost_vm_options;

struct vhosti_log;
struct vhosti_table;

typedef struct vhosti_map { /* private: a list of sections, and what is derived from it */
    struct vhosti_section *sections;
    struct vhosti_span *spans;
    uint32_t count, capacity;
    uint32_t span_count, span_capacity;
} vhosti_map;

struct vhost_vm {
    vhost_error last_error; /* read only */

    /* Private. */
    vhost_vm_options options;
    vhosti_map maps[2];
    int current; /* index of the map in force; the other one is the transaction's */
    bool in_transaction;
    int transaction_error;
    vhost_device *devices;
    struct vhosti_table *tables[VHOST_PROFILE_COUNT]; /* NULL: profile not in use */
    bool logging;
    struct vhosti_log *logs;  /* while logging: a list */
    vhost_region *difference; /* room for removed, then added */
    uint32_t difference_capacity;
    vhost_table_change change; /* found last, for the next device; `to` is NULL: none */
    uint64_t last_serial;      /* given to a section */
    uint64_t last_log;         /* id given to a log */
};

/* ---- the device ---- */

typedef enum vhost_state {
    VHOST_STATE_CLOSED = 0,
    VHOST_STATE_STOPPED = 1,
    VHOST_STATE_RUNNING = 2,
    VHOST_STATE_BROKEN = 3
} vhost_state;

typedef struct vhost_device_options { /* zero is the default of each */
    void *user;                       /* passed to every function below and in `memory` */
    const vhost_memory_ops *memory;   /* default: guest physical addresses */
    const vhost_features *its_bits;   /* default: facts.its_bits; borrowed until cleanup */
    bool own_log; /* a dirty log of its own, so that its back-end cannot clear the bits of others */
    void (*on_broken)(vhost_device *device, void *user); /* device->last_error says why */
    void (*on_queue_error)(vhost_device *device, uint32_t queue, void *user);
    void (*on_config)(vhost_device *device, void *user);
} vhost_device_options;

typedef struct vhosti_batch { /* private: what was submitted since the last fence */
    int error;                /* of the first submit that was refused */
    vhost_op op;
    int queue;
    bool later_done; /* as in vhost_fence */
    bool pending;    /* something awaits its fence */
} vhosti_batch;

struct vhost_device {
    /* Read only. */
    vhost_state state;
    vhost_error last_error;
    vhost_facts facts;
    vhost_features acked; /* by vhost_device_ack */
    vhost_vm *vm;
    vhost_queue *queues;
    uint32_t queue_count;
    vhost_device_options options; /* as given to init */

    /* Private. */
    const vhost_backend_ops *ops;
    void *backend;
    vhosti_batch batch;
    vhost_event config_event;
    struct vhosti_table *table; /* that the back-end acknowledged last; counted */
    struct vhosti_log *log;     /* that the back-end logs to; counted */
    bool opened;                /* and not yet closed */
    bool told_running;          /* set_running(on), */
    bool told_config_call;      /* or a set_config_call was accepted: to be undone */
    bool behind_viommu;         /* since start: addresses of rings are IOVAs */
    bool fencing;               /* in ops->fence, */
    bool answered;              /* and a miss was answered there: it came after all the rest */
    int broken_by;              /* the error code that made it BROKEN */
    bool ran;                   /* it was RUNNING then */
    bool doomed;                /* in a commit: to be cut off, */
    bool pausing;               /* or its rings are being stopped before it has the new table */
    vhost_device *next;
};

/* >>api ----------------------------------------------------------------------------------------

   Errors, threads and states: manual, chapters 5, 12 and 13. What is said there is not repeated.
   Pointers are not NULL unless it is said. Letters with numbers, such as D27, are the rules of
   tests/rules.txt. */

/* ---- words ---- */

VHOST_API const char *vhost_why_text(vhost_why why); /* static text; never NULL */
VHOST_API const char *vhost_op_name(vhost_op op);    /* static text; never NULL */

/* ---- features (F1, F2) ---- */

VHOST_API bool vhost_features_test(const vhost_features *features, unsigned bit);
VHOST_API void vhost_features_set(vhost_features *features, unsigned bit);
VHOST_API void vhost_features_clear(vhost_features *features, unsigned bit);

/* ---- the VM ---- */

/* Makes an address space without memory and devices. options may be NULL, and is copied.
   -EINVAL: options.events is missing and VHOST_NO_POSIX is defined. */
VHOST_API int vhost_vm_init(vhost_vm *vm, const vhost_vm_options *options);

/* Frees all of it. -EBUSY: a device is still attached, nothing was freed. May be repeated. */
VHOST_API int vhost_vm_cleanup(vhost_vm *vm);

/* ---- guest memory (M1 to M10, C1 to C8) ---- */

/* Fills in a backing of `size` bytes at `host`, with pages of 4 KiB and no flags. fd: what a peer
   process may map to see it, from fd_offset on, or -1. */
VHOST_API void vhost_backing_init(vhost_backing *backing, void *host, uint64_t size, int fd,
                                  uint64_t fd_offset);

/* Fills in a section without flags. */
VHOST_API void vhost_section_init(vhost_section *section, uint64_t gpa, uint64_t size,
                                  const vhost_backing *backing, uint64_t offset);

/* Opens a transaction with an empty list. -EBUSY: one is open. */
VHOST_API int vhost_memory_begin(vhost_vm *vm);

/* Adds the next section, in ascending order. The section is copied; its backing is borrowed.
   -EINVAL, -EOVERFLOW, -ENOMEM: refused with its reason and, where there are two, both sections
   named; now the transaction can only be aborted (or committed, which fails). */
VHOST_API int vhost_memory_add(vhost_vm *vm, const vhost_section *section);

/* Puts the list in force, and ends the transaction in any case. On failure the old map stays:
   -EINVAL: an add failed; -ENOSPC: more regions than a device has slots (vm->last_error names it);
   -ENOMEM; or what the memory of the log said. Devices that cannot go along become BROKEN, and the
   commit succeeds. */
VHOST_API int vhost_memory_commit(vhost_vm *vm);

/* Ends the transaction; the map stays as it is. */
VHOST_API void vhost_memory_abort(vhost_vm *vm);

/* How many more regions fit into the back-end with the fewest free slots; UINT32_MAX: no limit. */
VHOST_API uint32_t vhost_memory_free_slots(const vhost_vm *vm);

/* Looks up a guest physical address, ROM included. O(log sections). 0, or -EFAULT if there is no
   memory (no message: this may be a hot path). Valid until the next commit. */
VHOST_API int vhost_memory_find(const vhost_vm *vm, uint64_t gpa, vhost_extent *extent);

/* ---- devices (B1 to B7, F1 to F3, S1 to S7) ---- */

/* Attaches a device with `count` queues to the VM and to a back-end: opens the back-end, makes the
   notifiers. Nothing is sent but what opening needs. queues: initialised by vhost_queue_init,
   borrowed until cleanup; their public fields are kept over cleanup (D27).
   -EINVAL: an operation is missing, or more queues than the back-end has; -ENOSPC: too few memory
   slots for the map as it is (B3); -EBUSY: the VM has a transaction open, or the device, its queues
   or its back-end are attached already; or what open returned. */
VHOST_API int vhost_device_init(vhost_device *device, vhost_vm *vm, const vhost_backend_ops *ops,
                                void *backend, vhost_queue *queues, uint32_t count,
                                const vhost_device_options *options);

/* Stops the device if need be, and lets go of everything. May be repeated, and called after a
   failed init. The back-end object is not closed: that is yours. */
VHOST_API void vhost_device_cleanup(vhost_device *device);

/* What to offer to the driver, of `mine`, the bits that the VMM wants: bits that are the back-end's
   to offer only if it has them, other bits unchanged, LOG_ALL never. */
VHOST_API vhost_features vhost_device_offer(const vhost_device *device, vhost_features mine);

/* Sets (does not OR) what the driver accepted. -EINVAL: a bit that is the back-end's to offer, and
   that it does not have; nothing is changed. */
VHOST_API int vhost_device_ack(vhost_device *device, vhost_features accepted);

/* Hands the ready queues to the back-end, features and memory table first, and lets it run. Every
   ring is mapped and checked before the back-end is told anything of it. -EINVAL: a queue's size,
   alignment or position; -EFAULT: a ring is not in memory; -ENOTSUP; or what the back-end said. */
VHOST_API int vhost_device_start(vhost_device *device);

/* Takes the queues back. Always completes, returns the first error; see manual, chapter 5. */
VHOST_API int vhost_device_stop(vhost_device *device);

/* Whether nothing is in flight. A STOPPED device: whether it has used all buffers that it had
   taken; looks at its rings once more, and updates position.used and used_certain. One that is
   RUNNING: whether it has used all that the driver made available (rings that receive never come to
   that). Returns 1, or 0 if it has not, or if nobody can see it (packed rings, and behind a
   vIOMMU): do not wait for ever, and call vhost_device_process meanwhile, as the back-end may die.
   -EBUSY: it is CLOSED; BROKEN: as stop. Threads: as stop. */
VHOST_API int vhost_device_settled(vhost_device *device);

/* Virtio device reset: resets the back-end (if it can), and clears the features acknowledged and,
   of each queue, ready, addresses and position. kick_fd, call_fd, size, busy_loop_us and the mask
   are kept. Opens a BROKEN device's back-end again. */
VHOST_API int vhost_device_reset(vhost_device *device);

/* Opens the back-end of a BROKEN device again and puts everything back as it was: features
   acknowledged, and if the device was RUNNING when it broke, the queues that are ready are started
   at their positions. The VMM may correct positions first; a position that is only GUESSED is
   refused (-EINVAL). -EINVAL: the back-end now lacks features that were accepted, or its kind of
   table or log is another; -ENOSPC: memory slots (fewer than before, although enough: also
   refused); or what open or start said. On failure BROKEN, on_broken is not called again, and it
   may be tried again. */
VHOST_API int vhost_device_recover(vhost_device *device);

/* Reads or writes `size` bytes of the device's config space. -ENOTSUP: the back-end has none, the
   config space is the VMM's; -EINVAL: size is 0, or offset + size wraps. Stopped or running. */
VHOST_API int vhost_device_get_config(vhost_device *device, uint32_t offset, void *bytes,
                                      uint32_t size);
VHOST_API int vhost_device_set_config(vhost_device *device, uint32_t offset, const void *bytes,
                                      uint32_t size);

/* The fds to poll for input, up to `capacity` of them into fds; returns how many there are, which
   may be more than capacity. The set changes with init, cleanup and reset, and when the device
   becomes BROKEN. (A thread that waits in poll keeps an fd open that another one closes: behind a
   vIOMMU, see that none waits when a vhost-vsock or -scsi device is reset or cleaned up.) */
VHOST_API uint32_t vhost_device_poll_fds(const vhost_device *device, int *fds, uint32_t capacity);

/* Handles whatever those fds announce; harmless if nothing does. A negative errno from the back-end
   breaks the device and is returned. */
VHOST_API int vhost_device_process(vhost_device *device);

/* The regions that the back-end of this device has, or will have when it starts: for people and
   tools. NULL: the device is closed. Valid until the next commit. */
VHOST_API const vhost_table *vhost_device_table(const vhost_device *device);

/* ---- queues (V1 to V6, K1) ---- */

/* Zeroes the queue; kick_fd and call_fd are -1. Before vhost_device_init. */
VHOST_API void vhost_queue_init(vhost_queue *queue);

/* Starts or stops one queue of a running device (VIRTIO_F_RING_RESET). -EBUSY: it is started, or
   the device does not run; -EINVAL: not ready; -ENOTSUP: the back-end's queues start and stop only
   together (facts.queues_together); else as device start. To stop a queue that is not
   started, of a device that runs, is no failure. */
VHOST_API int vhost_queue_start(vhost_device *device, uint32_t queue);
VHOST_API int vhost_queue_stop(vhost_device *device, uint32_t queue);

/* Sends the queue's calls to a notifier of the library, or back to call_fd (which may have been
   changed meanwhile). unmask returns 1 if a call came while the queue was masked: deliver it. When
   either fails, calls may go to either notifier, the queue counts as masked, and none is lost. */
VHOST_API int vhost_queue_mask(vhost_device *device, uint32_t queue);
VHOST_API int vhost_queue_unmask(vhost_device *device, uint32_t queue);

/* 1 if a call came while the queue was masked, 0 if none, and forgets it. */
VHOST_API int vhost_queue_pending(vhost_device *device, uint32_t queue);

/* ---- the dirty log (L, Y, G) ---- */

/* Makes every device log what it writes, or none: -ENOTSUP: one cannot (vhost_log_blocker);
   -ENOMEM; or what a back-end, or the memory of the log said. A device that is found dead becomes
   BROKEN, and no obstacle. Harmless when repeated. */
VHOST_API int vhost_log_start(vhost_vm *vm);

/* Ends logging; bits not yet synced are gone. Always completes, returns the first error: a device
   that does not stop logging becomes BROKEN. Harmless when repeated. */
VHOST_API int vhost_log_stop(vhost_vm *vm);

/* Takes and clears the dirty bits of [gpa, gpa + size), multiples of 4 KiB, and hands them to the
   sink. What lies beyond the last section is clean. Back-ends go on logging meanwhile. -EBUSY: the
   VM does not log; -EINVAL: the range, or sink->bits has no room for all of it. */
VHOST_API int vhost_log_sync(vhost_vm *vm, uint64_t gpa, uint64_t size, vhost_log_sink *sink);

/* The first device after `after` (NULL: of all) that stands in the way of vhost_log_start, and its
   reason; NULL: none. */
VHOST_API const vhost_device *vhost_log_blocker(const vhost_vm *vm, const vhost_device *after,
                                                vhost_why *why);

/* ---- vIOMMU (I) ---- */

/* For back-ends, from `process`, or from `fence`, also while the device starts or stops: the
   back-end of this device sent a message. A miss is answered by iotlb_send before this returns; in
   a fence, that fence waits for it as well. -EFAULT: no translation, not answered; -ENOTSUP,
   -EINVAL: not a miss; -EBUSY, -EIO: the device does not run; or what iotlb_send said. None of them
   breaks the device. */
VHOST_API int vhost_iotlb_message(vhost_device *device, const vhost_iotlb *message);

/* For the VMM: the vIOMMU unmapped [iova, iova + size). On return the back-end has let go of it; if
   it does not, the device is BROKEN. Nothing to do, and 0, unless the device runs behind one. */
VHOST_API int vhost_device_unmapped(vhost_device *device, uint64_t iova, uint64_t size);

#ifdef __cplusplus
}
#endif
#endif /* VHOST_H_INCLUDED: stop here if you only want the API */

/* ==============================================================================================
   Implementation
   ============================================================================================== */

#if defined(VHOST_IMPLEMENTATION) && !defined(VHOST_IMPLEMENTATION_DONE)
#define VHOST_IMPLEMENTATION_DONE

#if defined(VHOST_STATIC)
#define VHOST_DEF static
#else
#define VHOST_DEF
#endif

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#if defined(VHOST_REALLOC) != defined(VHOST_FREE) || defined(VHOST_REALLOC) != defined(VHOST_CALLOC)
#error "define all of VHOST_REALLOC, VHOST_CALLOC and VHOST_FREE, or none"
#endif
#if !defined(VHOST_REALLOC)
#include <stdlib.h>
#define VHOST_REALLOC(memory, size) realloc(memory, size)
#define VHOST_CALLOC(count, size)   calloc(count, size)
#define VHOST_FREE(memory)          free(memory)
#endif

#if !defined(VHOST_VSNPRINTF)
#define VHOST_VSNPRINTF vsnprintf
#endif
#if !defined(VHOST_LOAD_ACQUIRE16)
#define VHOST_LOAD_ACQUIRE16(pointer) __atomic_load_n(pointer, __ATOMIC_ACQUIRE)
#endif

#if defined(VHOST_LOAD) != defined(VHOST_EXCHANGE) ||                                              \
    defined(VHOST_LOAD) != defined(VHOST_FETCH_AND) ||                                             \
    defined(VHOST_LOAD) != defined(VHOST_FETCH_OR)
#error "define all of VHOST_LOAD, VHOST_EXCHANGE, VHOST_FETCH_AND and VHOST_FETCH_OR, or none"
#endif
#if !defined(VHOST_LOAD)
#define VHOST_LOAD(word)            __atomic_load_n(word, __ATOMIC_RELAXED)
#define VHOST_EXCHANGE(word, bits)  __atomic_exchange_n(word, bits, __ATOMIC_ACQUIRE)
#define VHOST_FETCH_AND(word, bits) __atomic_fetch_and(word, bits, __ATOMIC_ACQUIRE)
#define VHOST_FETCH_OR(word, bits)  __atomic_fetch_or(word, bits, __ATOMIC_RELAXED)
#define VHOSTI_LOADS_ARE_PLAIN      1 /* and may be several words at once */
#endif

#if !defined(VHOST_NO_POSIX)
#include <fcntl.h>
#include <sys/mman.h>
#include <poll.h>
#include <unistd.h>
#if defined(__linux__)
#include <sys/eventfd.h>
#endif
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* >>base -------------------------------------------------------------------------------------- */

#if defined(__GNUC__)
#define VHOSTI_PRINTF(text, first) __attribute__((format(printf, text, first)))
#else
#define VHOSTI_PRINTF(text, first)
#endif

typedef unsigned long long vhosti_ull; /* what %llx takes */

#define VHOSTI_TEXT(name, text) text,

VHOST_DEF const char *vhost_why_text(vhost_why why)
{
    static const char *const texts[] = {VHOST_WHY_LIST(VHOSTI_TEXT)};
    return (unsigned)why < VHOST_WHY_COUNT ? texts[why] : "unknown reason";
}

VHOST_DEF const char *vhost_op_name(vhost_op op)
{
    static const char *const names[] = {VHOST_OP_LIST(VHOSTI_TEXT)};
    return (unsigned)op < VHOST_OP_COUNT ? names[op] : "unknown operation";
}

static bool vhosti_host_is_big(void)
{
    const uint16_t one = 1;
    unsigned char first;
    memcpy(&first, &one, 1);
    return first == 0;
}

static void *vhosti_default_allocate(void *memory, size_t size, void *user)
{
    (void)user;
    if (size == 0) {
        VHOST_FREE(memory);
        return NULL;
    }
    return VHOST_REALLOC(memory, size);
}

static void *vhosti_allocate(vhost_vm *vm, void *memory, size_t size)
{
    return vm->options.allocate(memory, size, vm->options.user);
}

static void vhosti_free(vhost_vm *vm, void *memory)
{
    if (memory != NULL)
        (void)vhosti_allocate(vm, memory, 0);
}

/* Gives `array` room for `need` elements. NULL: out of memory, and the array is as it was. */
static void *vhosti_grow(vhost_vm *vm, void *array, uint32_t *capacity, uint32_t need, size_t size)
{
    uint32_t roomy = *capacity < 16 ? 16 : *capacity;
    void *grown;
    if (array != NULL && need <= *capacity)
        return array;
    if (need > UINT32_MAX / 2 + 1) /* no doubling gets there */
        return NULL;
    while (roomy < need)
        roomy *= 2;
    if ((uint64_t)roomy * size > SIZE_MAX)
        return NULL;
    grown = vhosti_allocate(vm, array, roomy * size);
    if (grown != NULL)
        *capacity = roomy;
    return grown;
}

VHOSTI_PRINTF(3, 0)
static void vhosti_append_text(char *text, size_t size, const char *format, va_list arguments)
{
    size_t used = strlen(text);
    (void)VHOST_VSNPRINTF(text + used, size - used, format, arguments);
}

VHOSTI_PRINTF(2, 3)
static void vhosti_write_text(vhost_error *error, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vhosti_append_text(error->text, sizeof error->text, format, arguments);
    va_end(arguments);
}

static void vhosti_begin_error(vhost_error *error, const vhost_device *device, vhost_why why,
                               int queue)
{
    memset(error, 0, sizeof *error);
    error->why = why;
    error->queue = queue;
    if (device != NULL && device->facts.name != NULL)
        vhosti_write_text(error, "%s: ", device->facts.name);
    vhosti_write_text(error, "%s: ", vhost_why_text(why));
}

static void vhosti_tell(vhost_vm *vm, vhost_level level, const vhost_error *what,
                        const vhost_device *device)
{
    if (vm->options.on_message != NULL)
        vm->options.on_message(level, what, device, vm->options.user);
}

/* Records a failure where its caller can find it, and says it once, if there is a VM to say it to.
   Returns the code. */
VHOSTI_PRINTF(8, 9)
static int vhosti_fail(vhost_vm *vm, vhost_device *device, int code, vhost_why why, vhost_op op,
                       int queue, uint32_t line, const char *format, ...)
{
    vhost_error *error = device != NULL ? &device->last_error : &vm->last_error;
    va_list arguments;
    vhosti_begin_error(error, device, why, queue);
    error->code = code;
    error->op = op;
    error->line = line;
    va_start(arguments, format);
    vhosti_append_text(error->text, sizeof error->text, format, arguments);
    va_end(arguments);
    if (vm != NULL)
        vhosti_tell(vm, VHOST_LEVEL_ERROR, error, device);
    return code;
}

/* Says something that is no failure of any call. */
VHOSTI_PRINTF(4, 5)
static void vhosti_note(const vhost_device *device, vhost_why why, int queue, const char *format,
                        ...)
{
    vhost_error note;
    va_list arguments;
    vhosti_begin_error(&note, device, why, queue);
    va_start(arguments, format);
    vhosti_append_text(note.text, sizeof note.text, format, arguments);
    va_end(arguments);
    vhosti_tell(device->vm, VHOST_LEVEL_NOTE, &note, device);
}

#define VHOSTI_FAIL_VM(vm, code, why, ...)                                                         \
    vhosti_fail((vm), NULL, (code), (why), VHOST_OP_NONE, -1, __LINE__, __VA_ARGS__)
#define VHOSTI_FAIL(device, code, why, op, queue, ...)                                             \
    vhosti_fail((device)->vm, (device), (code), (why), (op), (queue), __LINE__, __VA_ARGS__)

static void vhosti_trace(vhost_vm *vm, const vhost_trace *trace)
{
    if (vm->options.on_trace != NULL)
        vm->options.on_trace(trace, vm->options.user);
}

static vhost_trace vhosti_make_trace(vhost_trace_event event, const vhost_device *device)
{
    vhost_trace trace;
    memset(&trace, 0, sizeof trace);
    trace.event = event;
    trace.device = device;
    trace.queue = -1;
    return trace;
}

static void vhosti_trace_section(vhost_vm *vm, vhost_trace_event event, uint64_t gpa, uint64_t size,
                                 int64_t value)
{
    vhost_trace trace;
    if (vm->options.on_trace == NULL)
        return;
    trace = vhosti_make_trace(event, NULL);
    trace.gpa = gpa;
    trace.size = size;
    trace.value = value;
    vhosti_trace(vm, &trace);
}

static void vhosti_enter(vhost_device *device, vhost_state state)
{
    vhost_trace trace = vhosti_make_trace(VHOST_TRACE_STATE, device);
    device->state = state;
    trace.value = state;
    vhosti_trace(device->vm, &trace);
}

/* >>posix ------------------------------------------------------------------------------------- */

#if !defined(VHOST_NO_POSIX)

#if defined(__linux__)

static int vhosti_event_create(vhost_event *event, void *user)
{
    (void)user;
    event->wait_fd = event->signal_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    return event->wait_fd < 0 ? -errno : 0;
}

#else

static int vhosti_event_create(vhost_event *event, void *user)
{
    int ends[2], i;
    (void)user;
    if (pipe(ends) < 0)
        return -errno;
    for (i = 0; i < 2; i++) {
        (void)fcntl(ends[i], F_SETFD, FD_CLOEXEC);
        (void)fcntl(ends[i], F_SETFL, O_NONBLOCK);
    }
    event->wait_fd = ends[0];
    event->signal_fd = ends[1];
    return 0;
}

#endif

static void vhosti_event_destroy(vhost_event *event, void *user)
{
    (void)user;
    if (event->signal_fd != event->wait_fd)
        (void)close(event->signal_fd);
    (void)close(event->wait_fd);
}

static int vhosti_event_test_and_clear(const vhost_event *event, void *user)
{
    char bytes[64]; /* an eventfd gives 8 of them, a pipe as many as there were signals */
    struct pollfd polled;
    ptrdiff_t count;
    bool signalled = false;
    (void)user;
    polled.fd = event->wait_fd;
    polled.events = POLLIN;
    /* Whoever signals may have made it block: there must be something before it is read. */
    do {
        count = poll(&polled, 1, 0);
        if (count > 0)
            count = read(event->wait_fd, bytes, sizeof bytes);
        signalled |= count > 0;
    } while (count > 0 || (count < 0 && errno == EINTR));
    return count < 0 && errno != EAGAIN ? -errno : signalled;
}

static const vhost_event_ops vhosti_posix_events = {vhosti_event_create, vhosti_event_destroy,
                                                    vhosti_event_test_and_clear};

#if defined(__linux__)

enum { /* as in the kernel; the names are hidden from strict C */
    VHOSTI_MFD_CLOEXEC = 1,
    VHOSTI_MFD_ALLOW_SEALING = 2,
    VHOSTI_F_ADD_SEALS = 1033,
    VHOSTI_SEALS = 1 | 2 | 4 /* F_SEAL_SEAL, _SHRINK and _GROW */
};

extern int vhosti_memfd_create(const char *name, unsigned flags) __asm__("memfd_create");

static int vhosti_open_memory(void)
{
    return vhosti_memfd_create("vhost", VHOSTI_MFD_CLOEXEC | VHOSTI_MFD_ALLOW_SEALING);
}

/* A peer that could shrink it would have us touch memory that is gone. */
static int vhosti_seal_memory(int fd)
{
    return fcntl(fd, VHOSTI_F_ADD_SEALS, VHOSTI_SEALS);
}

#else

static int vhosti_open_memory(void)
{
    char name[32]; /* for the moment only that it takes to open it */
    int fd = -1, i;
    for (i = 0; i < 1000 && fd < 0 && (i == 0 || errno == EEXIST); i++) {
        name[0] = '\0';
        (void)snprintf(name, sizeof name, "/vhost-%ld-%d", (long)getpid(), i);
        fd = shm_open(name, O_RDWR | O_CREAT | O_EXCL, 0600);
    }
    if (fd >= 0)
        (void)shm_unlink(name);
    return fd;
}

static int vhosti_seal_memory(int fd)
{
    return fcntl(fd, F_SETFD, FD_CLOEXEC);
}

#endif

/* Gives an fd of `size` zero bytes that another process may map. */
static int vhosti_shared_memory(uint64_t size, int *fd)
{
    off_t last = (off_t)(size - 1);
    int code = 0;
    if (last < 0 || (uint64_t)last != size - 1)
        return -EOVERFLOW;
    *fd = vhosti_open_memory();
    if (*fd < 0)
        return -errno;
    if (lseek(*fd, last, SEEK_SET) < 0 || write(*fd, "", 1) != 1 || vhosti_seal_memory(*fd) < 0)
        code = -errno;
    if (code < 0)
        (void)close(*fd);
    return code;
}

static int vhosti_map_shared(vhost_log_memory *memory)
{
    int code = vhosti_shared_memory(memory->size, &memory->fd);
    if (code < 0)
        return code;
    memory->base =
        mmap(NULL, (size_t)memory->size, PROT_READ | PROT_WRITE, MAP_SHARED, memory->fd, 0);
    if (memory->base != MAP_FAILED)
        return 0;
    code = -errno;
    (void)close(memory->fd);
    return code;
}

static void vhosti_unmap_shared(vhost_log_memory *memory)
{
    (void)munmap(memory->base, (size_t)memory->size);
    (void)close(memory->fd);
}

#else

static int vhosti_map_shared(vhost_log_memory *memory)
{
    (void)memory;
    return -ENOTSUP;
}

static void vhosti_unmap_shared(vhost_log_memory *memory)
{
    (void)memory;
}

#endif /* VHOST_NO_POSIX */

/* >>memory ------------------------------------------------------------------------------------ */

struct vhosti_section { /* as added, but for coherent overlaps, which are one */
    uint64_t gpa;
    uint64_t size;
    const vhost_backing *backing;
    unsigned char *host;
    uint32_t flags;
    int fd; /* of the backing, which may be another one at the same address by now */
    uint64_t fd_offset;
    uint64_t serial; /* as in vhost_region */
};

struct vhosti_span { /* contiguous in guest and host memory, whatever it is made of */
    uint64_t gpa;
    uint64_t last;
    unsigned char *host;
    bool writable;
};

struct vhosti_table { /* shared by all who were told of it */
    uint32_t users;
    vhost_table table;
    vhost_region regions[1]; /* as many as there are */
};

static vhosti_map *vhosti_current(vhost_vm *vm)
{
    return &vm->maps[vm->current];
}

static vhosti_map *vhosti_scratch(vhost_vm *vm)
{
    return &vm->maps[!vm->current];
}

static uint64_t vhosti_last(const struct vhosti_section *section)
{
    return section->gpa + (section->size - 1);
}

VHOST_DEF void vhost_backing_init(vhost_backing *backing, void *host, uint64_t size, int fd,
                                  uint64_t fd_offset)
{
    memset(backing, 0, sizeof *backing);
    backing->host = host;
    backing->size = size;
    backing->fd = fd;
    backing->fd_offset = fd_offset;
    backing->page_size = VHOST_PAGE;
}

VHOST_DEF void vhost_section_init(vhost_section *section, uint64_t gpa, uint64_t size,
                                  const vhost_backing *backing, uint64_t offset)
{
    memset(section, 0, sizeof *section);
    section->gpa = gpa;
    section->size = size;
    section->backing = backing;
    section->offset = offset;
}

/* ---- the list (M1, M2, M9) ---- */

VHOST_DEF int vhost_memory_begin(vhost_vm *vm)
{
    if (vm->in_transaction)
        return VHOSTI_FAIL_VM(vm, -EBUSY, VHOST_WHY_STATE, "a transaction is open");
    vm->in_transaction = true;
    vm->transaction_error = 0;
    vhosti_scratch(vm)->count = 0;
    return 0;
}

VHOST_DEF void vhost_memory_abort(vhost_vm *vm)
{
    vm->in_transaction = false;
}

static int vhosti_check_section(vhost_vm *vm, const vhost_section *section)
{
    const vhost_backing *backing = section->backing;
    vhosti_ull gpa = section->gpa, size = section->size, offset = section->offset;
    if (backing == NULL || backing->host == NULL)
        return VHOSTI_FAIL_VM(vm, -EINVAL, VHOST_WHY_ARGUMENT, "section 0x%llx+0x%llx: no memory",
                              gpa, size);
    if (backing->page_size < VHOST_PAGE || (backing->page_size & (backing->page_size - 1)) != 0)
        return VHOSTI_FAIL_VM(vm, -EINVAL, VHOST_WHY_ARGUMENT,
                              "section 0x%llx+0x%llx: pages of 0x%llx bytes", gpa, size,
                              (vhosti_ull)backing->page_size);
    if (size == 0)
        return VHOSTI_FAIL_VM(vm, -EINVAL, VHOST_WHY_SECTION_EMPTY, "at 0x%llx", gpa);
    if ((gpa | size | (uintptr_t)backing->host | offset) % VHOST_PAGE != 0)
        return VHOSTI_FAIL_VM(vm, -EINVAL, VHOST_WHY_SECTION_UNALIGNED,
                              "0x%llx+0x%llx, at 0x%llx of a backing at %p", gpa, size, offset,
                              backing->host);
    if (gpa + (size - 1) < gpa)
        return VHOSTI_FAIL_VM(vm, -EOVERFLOW, VHOST_WHY_SECTION_WRAPS, "0x%llx+0x%llx", gpa, size);
    if (backing->size - 1 > UINTPTR_MAX - (uintptr_t)backing->host)
        return VHOSTI_FAIL_VM(vm, -EOVERFLOW, VHOST_WHY_SECTION_WRAPS,
                              "a backing of 0x%llx bytes at %p", (vhosti_ull)backing->size,
                              backing->host);
    if (offset > backing->size || size > backing->size - offset)
        return VHOSTI_FAIL_VM(vm, -EINVAL, VHOST_WHY_SECTION_OUTSIDE,
                              "0x%llx+0x%llx, at 0x%llx of 0x%llx bytes", gpa, size, offset,
                              (vhosti_ull)backing->size);
    return 0;
}

static struct vhosti_section vhosti_make_section(const vhost_section *section)
{
    struct vhosti_section made;
    memset(&made, 0, sizeof made);
    made.gpa = section->gpa;
    made.size = section->size;
    made.backing = section->backing;
    made.host = (unsigned char *)section->backing->host + section->offset;
    made.flags = section->flags;
    made.fd = section->backing->fd;
    made.fd_offset = section->backing->fd_offset;
    return made;
}

/* Whether `next`, which begins inside of `before`, shows the same memory in the same way. */
static bool vhosti_is_coherent(const struct vhosti_section *before,
                               const struct vhosti_section *next)
{
    return next->backing == before->backing && next->flags == before->flags &&
           (next->flags & VHOST_SECTION_UNMERGEABLE) == 0 &&
           next->host == before->host + (next->gpa - before->gpa);
}

static int vhosti_append_section(vhost_vm *vm, const struct vhosti_section *next)
{
    vhosti_map *map = vhosti_scratch(vm);
    struct vhosti_section *grown = (struct vhosti_section *)vhosti_grow(
        vm, map->sections, &map->capacity, map->count + 1, sizeof *grown);
    if (grown == NULL)
        return VHOSTI_FAIL_VM(vm, -ENOMEM, VHOST_WHY_MEMORY, "%lu sections",
                              (unsigned long)map->count + 1);
    map->sections = grown;
    map->sections[map->count++] = *next;
    return 0;
}

/* Sections ascend; only the last one need be looked at (M2). */
static int vhosti_place_section(vhost_vm *vm, const struct vhosti_section *next)
{
    vhosti_map *map = vhosti_scratch(vm);
    struct vhosti_section *before = map->count > 0 ? &map->sections[map->count - 1] : NULL;
    if (before == NULL || next->gpa > vhosti_last(before))
        return vhosti_append_section(vm, next);
    if (next->gpa < before->gpa || !vhosti_is_coherent(before, next))
        return VHOSTI_FAIL_VM(
            vm, -EINVAL,
            next->gpa < before->gpa ? VHOST_WHY_SECTION_ORDER : VHOST_WHY_SECTION_OVERLAP,
            "0x%llx+0x%llx after 0x%llx+0x%llx", (vhosti_ull)next->gpa, (vhosti_ull)next->size,
            (vhosti_ull)before->gpa, (vhosti_ull)before->size);
    if (vhosti_last(next) > vhosti_last(before))
        before->size = next->gpa - before->gpa + next->size;
    return 0;
}

VHOST_DEF int vhost_memory_add(vhost_vm *vm, const vhost_section *section)
{
    int code;
    if (!vm->in_transaction)
        return VHOSTI_FAIL_VM(vm, -EBUSY, VHOST_WHY_STATE, "no transaction is open");
    code = vhosti_check_section(vm, section);
    if (code == 0) {
        struct vhosti_section made = vhosti_make_section(section);
        code = vhosti_place_section(vm, &made);
    }
    if (code < 0)
        vm->transaction_error = code;
    return code;
}

static bool vhosti_same_section(const struct vhosti_section *a, const struct vhosti_section *b)
{
    return a->gpa == b->gpa && a->size == b->size && a->backing == b->backing &&
           a->host == b->host && a->flags == b->flags && a->fd == b->fd &&
           a->fd_offset == b->fd_offset;
}

static bool vhosti_same_sections(const vhosti_map *a, const vhosti_map *b)
{
    uint32_t i;
    if (a->count != b->count)
        return false;
    for (i = 0; i < a->count; i++)
        if (!vhosti_same_section(&a->sections[i], &b->sections[i]))
            return false;
    return true;
}

/* Whether both are at the same distance from guest to host: what lies between may be anything. */
static bool vhosti_same_distance(const struct vhosti_section *a, const struct vhosti_section *b)
{
    return (uintptr_t)a->host - a->gpa == (uintptr_t)b->host - b->gpa;
}

static bool vhosti_same_memory(const struct vhosti_section *a, const struct vhosti_section *b)
{
    return a->backing == b->backing && a->fd == b->fd && a->fd_offset == b->fd_offset &&
           vhosti_same_distance(a, b);
}

/* The greatest serial of what the sections of `map` from k on say that a section was, or 0: not
   all of it was there. However the same memory is split, the greatest of its serials stays. */
static uint64_t vhosti_find_serial(const vhosti_map *map, uint32_t k,
                                   const struct vhosti_section *section)
{
    uint64_t serial = 0, gpa = section->gpa;
    for (; k < map->count; k++) {
        const struct vhosti_section *before = &map->sections[k];
        if (before->gpa > gpa || !vhosti_same_memory(before, section))
            return 0;
        if (before->serial > serial)
            serial = before->serial;
        if (vhosti_last(before) >= vhosti_last(section))
            return serial;
        gpa = vhosti_last(before) + 1;
    }
    return 0;
}

/* Memory that the map in force has as well keeps its serial. Both lists ascend. */
static void vhosti_number_sections(vhost_vm *vm)
{
    const vhosti_map *before = vhosti_current(vm);
    vhosti_map *fresh = vhosti_scratch(vm);
    uint32_t i, k = 0;
    for (i = 0; i < fresh->count; i++) {
        struct vhosti_section *section = &fresh->sections[i];
        while (k < before->count && vhosti_last(&before->sections[k]) < section->gpa)
            k++;
        section->serial = vhosti_find_serial(before, k, section);
        if (section->serial == 0)
            section->serial = ++vm->last_serial;
    }
}

/* ---- spans: look-up by guest physical address ---- */

static bool vhosti_is_writable(const struct vhosti_section *section)
{
    return (section->flags & VHOST_SECTION_ROM) == 0 &&
           (section->backing->flags & VHOST_BACKING_READ_ONLY) == 0;
}

static bool vhosti_extend_span(struct vhosti_span *span, const struct vhosti_section *section)
{
    if (section->gpa != span->last + 1 || vhosti_is_writable(section) != span->writable ||
        section->host != span->host + (section->gpa - span->gpa))
        return false;
    span->last = vhosti_last(section);
    return true;
}

static int vhosti_build_spans(vhost_vm *vm, vhosti_map *map)
{
    struct vhosti_span *spans = (struct vhosti_span *)vhosti_grow(
        vm, map->spans, &map->span_capacity, map->count, sizeof *spans);
    uint32_t i, count = 0;
    if (spans == NULL)
        return VHOSTI_FAIL_VM(vm, -ENOMEM, VHOST_WHY_MEMORY, "%lu spans",
                              (unsigned long)map->count);
    map->spans = spans;
    for (i = 0; i < map->count; i++) {
        const struct vhosti_section *section = &map->sections[i];
        if (count > 0 && vhosti_extend_span(&spans[count - 1], section))
            continue;
        spans[count].gpa = section->gpa;
        spans[count].last = vhosti_last(section);
        spans[count].host = section->host;
        spans[count].writable = vhosti_is_writable(section);
        count++;
    }
    map->span_count = count;
    return 0;
}

/* How many spans begin at or before gpa. */
static uint32_t vhosti_count_spans(const vhosti_map *map, uint64_t gpa)
{
    const struct vhosti_span *span = map->spans;
    uint32_t left = map->span_count;
    if (left == 0 || gpa < span->gpa)
        return 0;
    while (left > 1) { /* span->gpa <= gpa holds throughout */
        uint32_t half = left / 2;
        span += span[half].gpa <= gpa ? half : 0;
        left -= half;
    }
    return (uint32_t)(span - map->spans) + 1;
}

VHOST_DEF int vhost_memory_find(const vhost_vm *vm, uint64_t gpa, vhost_extent *extent)
{
    const vhosti_map *map = &vm->maps[vm->current];
    uint32_t count = vhosti_count_spans(map, gpa);
    const struct vhosti_span *span;
    if (count == 0)
        return -EFAULT;
    span = &map->spans[count - 1];
    if (gpa > span->last)
        return -EFAULT;
    extent->host = span->host + (gpa - span->gpa);
    extent->size = span->last - gpa + 1;
    extent->writable = span->writable;
    return 0;
}

/* ---- tables: what back-ends are told (M3, M7, C2) ---- */

/* By fd a peer maps each region by itself, wherever it likes. */
static bool vhosti_is_by_fd(vhost_profile profile)
{
    return profile == VHOST_PROFILE_BY_FD || profile == VHOST_PROFILE_SLOTS;
}

static bool vhosti_is_for_backends(const struct vhosti_section *section)
{
    return vhosti_is_writable(section) && (section->flags & VHOST_SECTION_DIRTY_TRACKED) == 0;
}

/* D30: through the fd of private memory a peer would see other pages. */
static bool vhosti_is_for(const struct vhosti_section *section, vhost_profile profile)
{
    bool shared =
        section->backing->fd >= 0 && (section->backing->flags & VHOST_BACKING_PRIVATE) == 0;
    return vhosti_is_for_backends(section) && (shared || !vhosti_is_by_fd(profile));
}

/* How much of a page of the backing lies before the section, and behind it (M5): a peer can map
   whole pages only. */
static uint64_t vhosti_page_before(const struct vhosti_section *section)
{
    return (uintptr_t)section->host & (section->backing->page_size - 1);
}

static uint64_t vhosti_page_behind(const struct vhosti_section *section)
{
    uint64_t end = (uintptr_t)section->host + section->size;
    return (0 - end) & (section->backing->page_size - 1);
}

/* Growth is one more slot, or map: what is there stays as it is. */
static bool vhosti_keeps_apart(vhost_profile profile)
{
    return profile == VHOST_PROFILE_SLOTS || profile == VHOST_PROFILE_MAPS;
}

/* Whether the region of section i goes on with the next one (M7, M8). By fd, a hole may be between
   the two if rounding closes it: nothing else is there. */
static bool vhosti_goes_on(const vhosti_map *map, uint32_t i, vhost_profile profile)
{
    const struct vhosti_section *before = &map->sections[i], *next = before + 1;
    uint64_t hole;
    if (i + 1 == map->count || !vhosti_is_for(next, profile))
        return false;
    hole = next->gpa - vhosti_last(before) - 1;
    if (((before->flags | next->flags) & VHOST_SECTION_UNMERGEABLE) != 0 ||
        vhosti_keeps_apart(profile) || next->backing != before->backing ||
        !vhosti_same_distance(before, next))
        return false;
    return hole == 0 || (profile == VHOST_PROFILE_BY_FD &&
                         vhosti_page_behind(before) + vhosti_page_before(next) >= hole);
}

/* A region may grow to a whole page where this stays in its backing and meets nothing else (D16).
   `room` is how much of the guest is free on this side. */
static bool vhosti_may_round(vhost_vm *vm, const struct vhosti_section *section, bool end,
                             uint64_t by, uint64_t room)
{
    uint64_t offset = (uint64_t)(section->host - (unsigned char *)section->backing->host);
    uint64_t inside = end ? section->backing->size - offset - section->size : offset;
    if (by <= room && by <= inside)
        return true;
    vhosti_trace_section(vm, VHOST_TRACE_SECTION_UNROUNDED, section->gpa, section->size, end);
    return false;
}

/* Begins the region at `region` with section i; the regions before it end at `floor`. */
static void vhosti_begin_region(vhost_vm *vm, const vhosti_map *map, uint32_t i,
                                vhost_profile profile, vhost_region *region, uint64_t floor)
{
    const struct vhosti_section *section = &map->sections[i];
    uint64_t by = vhosti_is_by_fd(profile) ? vhosti_page_before(section) : 0;
    if (i > 0 && vhosti_last(section - 1) >= floor)
        floor = vhosti_last(section - 1) + 1;
    if (!vhosti_may_round(vm, section, false, by, section->gpa - floor))
        by = 0;
    region->gpa = section->gpa - by;
    region->host = section->host - by;
    region->backing = section->backing;
    region->serial = 0;
}

/* Section i is in the region, and is its last one if that does not go on. */
static void vhosti_extend_region(vhost_vm *vm, const vhosti_map *map, uint32_t i,
                                 vhost_profile profile, vhost_region *region, bool goes_on)
{
    const struct vhosti_section *section = &map->sections[i];
    uint64_t by = vhosti_is_by_fd(profile) ? vhosti_page_behind(section) : 0;
    uint64_t room = (i + 1 < map->count ? section[1].gpa - 1 : UINT64_MAX) - vhosti_last(section);
    region->size = vhosti_last(section) - region->gpa + 1;
    if (section->serial > region->serial)
        region->serial = section->serial;
    if (!goes_on && vhosti_may_round(vm, section, true, by, room))
        region->size += by;
}

/* Writes the regions of a map, and traces what became of each section. */
static uint32_t vhosti_write_regions(vhost_vm *vm, const vhosti_map *map, vhost_profile profile,
                                     vhost_region *regions)
{
    uint32_t i, count = 0;
    bool merged, goes_on = false;
    for (i = 0; i < map->count; i++) {
        const struct vhosti_section *section = &map->sections[i];
        vhost_trace_event event = VHOST_TRACE_SECTION_REJECTED;
        if (vhosti_is_for(section, profile)) {
            uint64_t floor = count > 0 ? regions[count - 1].gpa + regions[count - 1].size : 0;
            merged = goes_on;
            goes_on = vhosti_goes_on(map, i, profile);
            event = merged ? VHOST_TRACE_SECTION_MERGED : VHOST_TRACE_SECTION_ACCEPTED;
            if (!merged)
                vhosti_begin_region(vm, map, i, profile, &regions[count++], floor);
            vhosti_extend_region(vm, map, i, profile, &regions[count - 1], goes_on);
        }
        vhosti_trace_section(vm, event, section->gpa, section->size, section->flags);
    }
    return count;
}

static struct vhosti_table *vhosti_build_table(vhost_vm *vm, const vhosti_map *map,
                                               vhost_profile profile)
{
    size_t size = sizeof(struct vhosti_table) + map->count * sizeof(vhost_region);
    struct vhosti_table *built = (struct vhosti_table *)vhosti_allocate(vm, NULL, size);
    if (built == NULL)
        return NULL;
    built->users = 1;
    built->table.regions = built->regions;
    built->table.count = vhosti_write_regions(vm, map, profile, built->regions);
    return built;
}

static struct vhosti_table *vhosti_keep_table(struct vhosti_table *table)
{
    table->users++;
    return table;
}

static void vhosti_drop_table(vhost_vm *vm, struct vhosti_table **table)
{
    if (*table != NULL && --(*table)->users == 0)
        vhosti_free(vm, *table);
    *table = NULL;
}

static bool vhosti_same_region(const vhost_region *a, const vhost_region *b)
{
    return a->gpa == b->gpa && a->size == b->size && a->host == b->host &&
           a->backing == b->backing && a->serial == b->serial;
}

static bool vhosti_same_table(const vhost_table *a, const vhost_table *b)
{
    uint32_t i;
    if (a->count != b->count)
        return false;
    for (i = 0; i < a->count; i++)
        if (!vhosti_same_region(&a->regions[i], &b->regions[i]))
            return false;
    return true;
}

/* Makes room for the difference between two tables, before anybody is told of it. */
static bool vhosti_reserve_difference(vhost_vm *vm, const struct vhosti_table *from,
                                      const struct vhosti_table *to)
{
    uint32_t need = to->table.count + (from != NULL ? from->table.count : 0);
    vhost_region *grown = (vhost_region *)vhosti_grow(vm, vm->difference, &vm->difference_capacity,
                                                      need, sizeof *grown);
    vm->change.to = NULL;
    if (grown != NULL)
        vm->difference = grown;
    return grown != NULL;
}

/* Both lists ascend. */
static bool vhosti_overlaps(const vhost_table_change *change)
{
    uint32_t i = 0, k = 0;
    while (i < change->removed_count && k < change->added_count) {
        const vhost_region *gone = &change->removed[i], *come = &change->added[k];
        if (gone->gpa + (gone->size - 1) < come->gpa)
            i++;
        else if (come->gpa + (come->size - 1) < gone->gpa)
            k++;
        else
            return true;
    }
    return false;
}

/* Both tables ascend, so one walk over both finds what was removed and added. The room was
   reserved before; `removed` grows from its front, `added` behind all that can be removed. */
static vhost_table_change vhosti_compare_tables(vhost_vm *vm, const vhost_table *from,
                                                const vhost_table *to)
{
    static const vhost_table none = {0, NULL};
    const vhost_table *old = from != NULL ? from : &none;
    vhost_region *removed = vm->difference, *added = removed + old->count;
    vhost_table_change change;
    uint32_t i = 0, k = 0;
    memset(&change, 0, sizeof change);
    change.from = from;
    change.to = to;
    change.removed = removed;
    change.added = added;
    while (i < old->count || k < to->count) {
        const vhost_region *gone = i < old->count ? &old->regions[i] : NULL;
        const vhost_region *come = k < to->count ? &to->regions[k] : NULL;
        if (gone != NULL && come != NULL && vhosti_same_region(gone, come)) {
            i++;
            k++;
        } else if (come == NULL || (gone != NULL && gone->gpa <= come->gpa)) {
            removed[change.removed_count++] = *gone;
            i++;
        } else {
            added[change.added_count++] = *come;
            k++;
        }
    }
    change.in_place = vhosti_overlaps(&change);
    return change;
}

/* All devices of a kind go the same way in a commit. */
static const vhost_table_change *vhosti_find_change(vhost_vm *vm, const struct vhosti_table *from,
                                                    const struct vhosti_table *to)
{
    const vhost_table *old = from != NULL ? &from->table : NULL;
    if (vm->change.to != &to->table || vm->change.from != old)
        vm->change = vhosti_compare_tables(vm, old, &to->table);
    return &vm->change;
}

static const vhost_region *vhosti_find_region(const vhost_table *table, uint64_t gpa)
{
    const vhost_region *region = table->regions;
    uint32_t left = table->count;
    while (left > 1) { /* if a region has it, it is one of `left` from here on */
        uint32_t half = left / 2;
        region += region[half].gpa <= gpa ? half : 0;
        left -= half;
    }
    return left == 1 && gpa >= region->gpa && gpa - region->gpa < region->size ? region : NULL;
}

/* Whether a table has [gpa, gpa + size) at `host`: by fd in one region, as a peer maps each of them
   somewhere else. */
static vhost_why vhosti_check_regions(const vhost_table *table, vhost_profile profile, uint64_t gpa,
                                      uint64_t size, const void *host)
{
    uint64_t done = 0;
    while (done < size) {
        const vhost_region *region = vhosti_find_region(table, gpa + done);
        uint64_t offset = region != NULL ? gpa + done - region->gpa : 0;
        if (region == NULL || (size - done > region->size - offset && vhosti_is_by_fd(profile)))
            return VHOST_WHY_RING_UNMAPPED;
        if ((unsigned char *)region->host + offset != (const unsigned char *)host + done)
            return VHOST_WHY_RING_MOVED;
        done += region->size - offset;
    }
    return VHOST_WHY_NONE;
}

/* A region that was merged into a larger one, or cut in two, is removed, but not lost. */
static bool vhosti_loses_memory(const vhost_table_change *change, vhost_profile profile)
{
    uint32_t i;
    for (i = 0; i < change->removed_count; i++) {
        const vhost_region *gone = &change->removed[i];
        if (vhosti_check_regions(change->to, profile, gone->gpa, gone->size, gone->host) !=
            VHOST_WHY_NONE)
            return true;
    }
    return false;
}

/* The last byte that back-ends may write: where their memory ends, rounded as a table by fd may
   round it. (What lies beyond, such as a BAR that the guest moves, must not make the log any
   longer.) */
static uint64_t vhosti_last_written(const vhosti_map *map)
{
    uint32_t i = map->count;
    uint64_t last, rounding;
    while (i > 0 && !vhosti_is_for_backends(&map->sections[i - 1]))
        i--;
    if (i == 0)
        return 0;
    last = vhosti_last(&map->sections[i - 1]);
    rounding = vhosti_page_behind(&map->sections[i - 1]);
    return rounding < UINT64_MAX - last ? last + rounding : UINT64_MAX;
}

/* ---- memory slots (B3, B7) ---- */

static bool vhosti_fits(const vhost_device *device, const struct vhosti_table *table)
{
    uint32_t slots = device->facts.max_regions;
    return slots == 0 || table->table.count <= slots;
}

VHOST_DEF uint32_t vhost_memory_free_slots(const vhost_vm *vm)
{
    uint32_t least = UINT32_MAX;
    const vhost_device *device;
    for (device = vm->devices; device != NULL; device = device->next) {
        uint32_t used = vm->tables[device->facts.profile]->table.count;
        uint32_t limit = device->facts.max_regions;
        if (limit != 0 && limit - used < least)
            least = limit - used;
    }
    return least;
}

/* >>log ---------------------------------------------------------------------------------------

   One log per kind, shared by the devices of that kind, and one for each device with own_log. The
   VM holds them from vhost_log_start to vhost_log_stop, so that the bits of a device that stops,
   breaks or is cleaned up stay; a device holds the log that its back-end was told of. A log is
   replaced when the top of memory moves: the back-ends are moved to its successor, then what they
   left in the old one is added to that (L3, C6). */

typedef unsigned long vhosti_word; /* what the kernel writes (native), and the CPU can exchange */

#define VHOSTI_WORD_PAGES (8 * (uint64_t)sizeof(vhosti_word))
#define VHOSTI_WORD_ALL   (~(vhosti_word)0)
#define VHOSTI_LOG_SLACK  UINT64_C(4096) /* bytes of log: 128 MiB of guest memory (C7) */
#define VHOSTI_LINE       8              /* words that are looked at together */

struct vhosti_log {
    uint32_t users;
    vhost_log_kind kind;
    const void *owner; /* its device; the VM: devices share it; NULL: its device was cleaned up */
    vhost_log_memory memory;
    struct vhosti_log *successor; /* in a commit: what will replace it, or NULL */
    struct vhosti_log *next;
};

static int vhosti_default_log_map(vhost_log_memory *memory, bool shared, void *user)
{
    (void)user;
    if (shared)
        return vhosti_map_shared(memory);
    memory->base = VHOST_CALLOC(1, (size_t)memory->size);
    return memory->base != NULL ? 0 : -ENOMEM;
}

static void vhosti_default_log_unmap(vhost_log_memory *memory, void *user)
{
    (void)user;
    if (memory->fd >= 0) {
        vhosti_unmap_shared(memory);
    } else {
        VHOST_FREE(memory->base);
    }
}

static const vhost_log_ops vhosti_default_log = {vhosti_default_log_map, vhosti_default_log_unmap};

static bool vhosti_can_share_logs(const vhost_vm *vm)
{
#if defined(VHOST_NO_POSIX)
    return vm->options.log != &vhosti_default_log;
#else
    (void)vm;
    return true;
#endif
}

/* Bytes of log for all that back-ends may write, whole words; an IOVA does not count. */
static uint64_t vhosti_log_size(const vhosti_map *map)
{
    uint64_t last = vhosti_last_written(map);
    return (last / VHOST_PAGE / VHOSTI_WORD_PAGES + 1) * sizeof(vhosti_word);
}

static int vhosti_make_log(vhost_vm *vm, vhost_log_kind kind, const void *owner, uint64_t size,
                           struct vhosti_log **made)
{
    struct vhosti_log *log = (struct vhosti_log *)vhosti_allocate(vm, NULL, sizeof *log);
    int code = -ENOMEM;
    if (log == NULL)
        return code;
    memset(log, 0, sizeof *log);
    log->users = 1;
    log->kind = kind;
    log->owner = owner;
    log->memory.size = size;
    log->memory.fd = -1;
    log->memory.id = ++vm->last_log;
    if (size <= SIZE_MAX)
        code = vm->options.log->map(&log->memory, kind == VHOST_DIRTY_SHARED, vm->options.user);
    if (code < 0) {
        vhosti_free(vm, log);
        return code;
    }
    vhosti_trace_section(vm, VHOST_TRACE_LOG, 0, size, kind);
    *made = log;
    return 0;
}

static struct vhosti_log *vhosti_keep_log(struct vhosti_log *log)
{
    if (log != NULL)
        log->users++;
    return log;
}

static void vhosti_drop_log(vhost_vm *vm, struct vhosti_log **log)
{
    if (*log != NULL && --(*log)->users == 0) {
        vm->options.log->unmap(&(*log)->memory, vm->options.user);
        vhosti_free(vm, *log);
    }
    *log = NULL;
}

static void vhosti_drop_logs(vhost_vm *vm)
{
    vhost_device *device;
    for (device = vm->devices; device != NULL; device = device->next)
        vhosti_drop_log(vm, &device->log);
    while (vm->logs != NULL) {
        struct vhosti_log *log = vm->logs;
        vm->logs = log->next;
        vhosti_drop_log(vm, &log);
    }
}

static const void *vhosti_log_owner(const vhost_device *device)
{
    return device->options.own_log ? (const void *)device : (const void *)device->vm;
}

/* What a device is to log to, in a commit already the successor; NULL: it is not to log. */
static struct vhosti_log *vhosti_log_of(const vhost_device *device)
{
    struct vhosti_log *log = device->vm->logs;
    while (log != NULL &&
           (log->kind != device->facts.log_kind || log->owner != vhosti_log_owner(device)))
        log = log->next;
    return log != NULL && log->successor != NULL ? log->successor : log;
}

/* A log is made when its first device comes, or logging begins. */
static int vhosti_need_log(const vhost_device *device)
{
    vhost_vm *vm = device->vm;
    struct vhosti_log *log;
    int code;
    if (vhosti_log_of(device) != NULL)
        return 0;
    code = vhosti_make_log(vm, device->facts.log_kind, vhosti_log_owner(device),
                           vhosti_log_size(vhosti_current(vm)), &log);
    if (code < 0)
        return code;
    log->next = vm->logs;
    vm->logs = log;
    return 0;
}

/* Its bits stay; a device that comes later, at the same address, gets another. */
static void vhosti_disown_logs(const vhost_device *device)
{
    struct vhosti_log *log;
    for (log = device->vm->logs; log != NULL; log = log->next)
        if (log->owner == device)
            log->owner = NULL;
}

static vhosti_word *vhosti_log_words(const struct vhosti_log *log)
{
    return (vhosti_word *)log->memory.base;
}

static uint64_t vhosti_log_count(const struct vhosti_log *log)
{
    return log->memory.size / sizeof(vhosti_word);
}

/* Between a word in memory and one whose bit n is page n; its own inverse. */
static vhosti_word vhosti_log_order(const struct vhosti_log *log, vhosti_word raw)
{
    unsigned char bytes[sizeof raw];
    vhosti_word ordered = 0;
    size_t i;
    if (log->kind != VHOST_DIRTY_SHARED || !vhosti_host_is_big())
        return raw;
    memcpy(bytes, &raw, sizeof raw);
    for (i = 0; i < sizeof raw; i++)
        ordered |= (vhosti_word)bytes[i] << (8 * i);
    return ordered;
}

/* Bits `from` to `to`, both included. */
static vhosti_word vhosti_bits(uint64_t from, uint64_t to)
{
    return (VHOSTI_WORD_ALL << from) & (VHOSTI_WORD_ALL >> (VHOSTI_WORD_PAGES - 1 - to));
}

static unsigned vhosti_lowest_bit(vhosti_word word) /* of a word that is not 0 */
{
#if defined(__GNUC__)
    return (unsigned)__builtin_ctzl(word);
#else
    unsigned bit = 0;
    while ((word >> bit & 1) == 0)
        bit++;
    return bit;
#endif
}

/* Takes the bits of `mask` out of a word, and leaves the others alone (D17). */
static vhosti_word vhosti_log_take(const struct vhosti_log *log, uint64_t index, vhosti_word mask)
{
    vhosti_word *word = vhosti_log_words(log) + index;
    if (mask == VHOSTI_WORD_ALL)
        return vhosti_log_order(log, VHOST_EXCHANGE(word, 0));
    return vhosti_log_order(log, VHOST_FETCH_AND(word, ~vhosti_log_order(log, mask))) & mask;
}

static void vhosti_log_give(const struct vhosti_log *log, uint64_t index, vhosti_word bits)
{
    if (bits != 0)
        (void)VHOST_FETCH_OR(vhosti_log_words(log) + index, vhosti_log_order(log, bits));
}

/* Marks [gpa, gpa + size) dirty, as far as the log goes. */
static void vhosti_log_mark(const struct vhosti_log *log, uint64_t gpa, uint64_t size)
{
    uint64_t page = gpa / VHOST_PAGE, last = (gpa + (size - 1)) / VHOST_PAGE;
    uint64_t index = page / VHOSTI_WORD_PAGES;
    for (; index <= last / VHOSTI_WORD_PAGES && index < vhosti_log_count(log); index++) {
        uint64_t first = index * VHOSTI_WORD_PAGES, end = first + VHOSTI_WORD_PAGES - 1;
        vhosti_log_give(
            log, index,
            vhosti_bits(page > first ? page - first : 0, last < end ? last - first : end - first));
    }
}

/* A look ahead of the exchange that decides, so it need not be atomic; by vectors it is a fifth
   faster. */
#if defined(VHOSTI_LOADS_ARE_PLAIN)
typedef vhosti_word vhosti_pair
    __attribute__((vector_size(2 * sizeof(vhosti_word)), may_alias, aligned(sizeof(vhosti_word))));

__attribute__((no_sanitize_thread)) static bool vhosti_line_is_clean(const vhosti_word *line)
{
    const vhosti_pair *pair = (const vhosti_pair *)line;
    vhosti_pair any = pair[0] | pair[1] | pair[2] | pair[3];
    return (any[0] | any[1]) == 0;
}
#else
static bool vhosti_line_is_clean(const vhosti_word *line)
{
    return (VHOST_LOAD(line) | VHOST_LOAD(line + 1) | VHOST_LOAD(line + 2) | VHOST_LOAD(line + 3) |
            VHOST_LOAD(line + 4) | VHOST_LOAD(line + 5) | VHOST_LOAD(line + 6) |
            VHOST_LOAD(line + 7)) == 0;
}
#endif

#define VHOSTI_IS_DIRTY(line, i) ((unsigned)(VHOST_LOAD((line) + (i)) != 0) << (i))

/* Which of VHOSTI_LINE words are not 0: bit i for line[i]. */
static vhosti_word vhosti_find_in_line(const vhosti_word *line)
{
    return VHOSTI_IS_DIRTY(line, 0) | VHOSTI_IS_DIRTY(line, 1) | VHOSTI_IS_DIRTY(line, 2) |
           VHOSTI_IS_DIRTY(line, 3) | VHOSTI_IS_DIRTY(line, 4) | VHOSTI_IS_DIRTY(line, 5) |
           VHOSTI_IS_DIRTY(line, 6) | VHOSTI_IS_DIRTY(line, 7);
}

/* Which of at most a word full of words are not 0: bit i for that at index + i, as far as the log
   goes. Mostly none is, and then this is as fast as memory is read. */
static vhosti_word vhosti_log_find(const struct vhosti_log *log, uint64_t index, uint64_t count)
{
    const vhosti_word *words = vhosti_log_words(log) + index;
    uint64_t i, left = vhosti_log_count(log) > index ? vhosti_log_count(log) - index : 0;
    vhosti_word dirty = 0;
    if (count > left)
        count = left;
    for (i = 0; i + VHOSTI_LINE <= count; i += VHOSTI_LINE)
        if (!vhosti_line_is_clean(words + i))
            dirty |= vhosti_find_in_line(words + i) << i;
    for (; i < count; i++)
        dirty |= (vhosti_word)(VHOST_LOAD(words + i) != 0) << i;
    return dirty;
}

/* Whether no page is dirty from a word on. */
static bool vhosti_log_is_clean(const struct vhosti_log *log, uint64_t index)
{
    while (index < vhosti_log_count(log) && vhosti_log_find(log, index, VHOSTI_WORD_PAGES) == 0)
        index += VHOSTI_WORD_PAGES;
    return index >= vhosti_log_count(log);
}

static void vhosti_log_add_words(const struct vhosti_log *to, const struct vhosti_log *from,
                                 uint64_t index, uint64_t count)
{
    vhosti_word dirty = vhosti_log_find(from, index, count);
    for (; dirty != 0; dirty &= dirty - 1) {
        uint64_t place = index + vhosti_lowest_bit(dirty);
        vhosti_log_give(to, place, vhosti_log_take(from, place, VHOSTI_WORD_ALL));
    }
}

/* What is dirty beyond the end of `to`, where nothing should be, stays. */
static void vhosti_log_add(const struct vhosti_log *to, const struct vhosti_log *from)
{
    uint64_t index, count = vhosti_log_count(from);
    if (count > vhosti_log_count(to))
        count = vhosti_log_count(to);
    for (index = 0; index < count; index += VHOSTI_WORD_PAGES)
        vhosti_log_add_words(to, from, index,
                             count - index < VHOSTI_WORD_PAGES ? count - index : VHOSTI_WORD_PAGES);
}

/* Why a device cannot log, or VHOST_WHY_NONE (B2). */
static vhost_why vhosti_log_obstacle(const vhost_device *device)
{
    bool logs = device->facts.log_kind != VHOST_DIRTY_NONE && device->ops->set_log != NULL &&
                vhost_features_test(&device->facts.offered, VHOST_FEATURE_LOG_ALL);
    if (logs && device->facts.log_obstacle != VHOST_WHY_NONE)
        return device->facts.log_obstacle;
    if (logs && device->facts.log_kind == VHOST_DIRTY_SHARED && !vhosti_can_share_logs(device->vm))
        return VHOST_WHY_LOG_MEMORY;
    return logs ? VHOST_WHY_NONE : VHOST_WHY_LOG_UNSUPPORTED;
}

VHOST_DEF const vhost_device *vhost_log_blocker(const vhost_vm *vm, const vhost_device *after,
                                                vhost_why *why)
{
    const vhost_device *device = after != NULL ? after->next : vm->devices;
    for (; device != NULL; device = device->next) {
        *why = vhosti_log_obstacle(device);
        if (*why != VHOST_WHY_NONE)
            return device;
    }
    *why = VHOST_WHY_NONE;
    return NULL;
}

/* >>submit ------------------------------------------------------------------------------------

   A batch is what is submitted between vhosti_begin and vhosti_fence. It keeps its first error, and
   after that VHOSTI_SUBMIT does nothing more, so that a sequence of submits needs no checks in
   between. VHOSTI_TRY submits all the same: for stopping, which must try everything. */

static void vhosti_begin(vhost_device *device)
{
    memset(&device->batch, 0, sizeof device->batch);
    device->batch.queue = -1;
}

static void vhosti_note_failure(vhost_device *device, int error, vhost_op op, int queue)
{
    device->batch.error = error;
    device->batch.op = op;
    device->batch.queue = queue;
}

static int vhosti_submitted(vhost_device *device, vhost_op op, int queue, int64_t value, int result)
{
    vhost_trace trace = vhosti_make_trace(VHOST_TRACE_OP, device);
    trace.op = op;
    trace.queue = queue;
    trace.value = value;
    trace.result = result;
    vhosti_trace(device->vm, &trace);
    if (result >= 0)
        device->batch.pending = true;
    else if (device->batch.error == 0)
        vhosti_note_failure(device, result, op, queue);
    return result;
}

#define VHOSTI_TRY(device, op, queue, value, call)                                                 \
    vhosti_submitted((device), (op), (int)(queue), (int64_t)(value), (call))
#define VHOSTI_SUBMIT(device, op, queue, value, call)                                              \
    ((device)->batch.error < 0 ? (device)->batch.error : VHOSTI_TRY(device, op, queue, value, call))

/* Before another device is waited for. */
static void vhosti_push(vhost_device *device)
{
    if (device->batch.pending && device->ops->push != NULL)
        device->ops->push(device->backend);
}

/* Ends the batch: 0, or the error of the first operation that failed. */
static int vhosti_fence(vhost_device *device)
{
    vhost_fence result = {0, VHOST_OP_NONE, -1, false};
    if (device->batch.pending && device->ops->fence != NULL) {
        vhost_trace trace = vhosti_make_trace(VHOST_TRACE_FENCE, device);
        vhost_error last = device->last_error; /* why it breaks, maybe: no miss may hide that */
        device->fencing = true;
        device->answered = false;
        device->ops->fence(device->backend, &result);
        device->fencing = false;
        device->last_error = last;
        result.later_done |= device->answered && result.op == VHOST_OP_IOTLB_SEND;
        trace.op = result.op;
        trace.queue = result.queue;
        trace.result = result.error;
        vhosti_trace(device->vm, &trace);
    }
    if (result.error < 0) /* what was submitted came before what was refused */
        vhosti_note_failure(device, result.error, result.op, result.queue);
    device->batch.later_done = result.error < 0 && result.later_done;
    device->batch.pending = false;
    return device->batch.error;
}

static vhost_why vhosti_why_of(int error)
{
    switch (error) {
    case -ENOTSUP:
        return VHOST_WHY_NOT_SUPPORTED;
    case -ECONNRESET:
    case -EPIPE:
    case -ENODEV:
    case -ETIMEDOUT: /* after these two, nobody knows what an answer would belong to */
    case -EPROTO:
        return VHOST_WHY_BACKEND_LOST;
    default:
        return VHOST_WHY_BACKEND_REFUSED;
    }
}

/* Of the operations that are submitted whether the back-end has them or not. */
static bool vhosti_lacks(const vhost_backend_ops *ops, vhost_op op)
{
    return (op == VHOST_OP_SET_RING_ENDIAN && ops->set_ring_endian == NULL) ||
           (op == VHOST_OP_SET_RING_BUSY_LOOP && ops->set_ring_busy_loop == NULL);
}

/* What the back-end itself has to say of a failure, as the end of a sentence. */
static const char *vhosti_words(const vhost_device *device, vhost_op op, int error)
{
    const vhost_error *last = device->ops->last_error != NULL && !vhosti_lacks(device->ops, op)
                                  ? device->ops->last_error(device->backend)
                                  : NULL;
    return last != NULL && last->code == error ? last->text : "no more is known";
}

/* Says which operation of the batch failed; returns its error. */
static int vhosti_report_batch(vhost_device *device)
{
    const vhosti_batch *batch = &device->batch;
    const char *words = vhosti_words(device, batch->op, batch->error);
    if (batch->queue >= 0)
        return VHOSTI_FAIL(device, batch->error, vhosti_why_of(batch->error), batch->op,
                           batch->queue, "%s of queue %d, errno %d: %s", vhost_op_name(batch->op),
                           batch->queue, -batch->error, words);
    return VHOSTI_FAIL(device, batch->error, vhosti_why_of(batch->error), batch->op, -1,
                       "%s, errno %d: %s", vhost_op_name(batch->op), -batch->error, words);
}

/* >>features ---------------------------------------------------------------------------------- */

VHOST_DEF bool vhost_features_test(const vhost_features *features, unsigned bit)
{
    return bit < 128 && (features->word[bit / 64] >> (bit % 64) & 1) != 0;
}

VHOST_DEF void vhost_features_set(vhost_features *features, unsigned bit)
{
    if (bit < 128)
        features->word[bit / 64] |= UINT64_C(1) << (bit % 64);
}

VHOST_DEF void vhost_features_clear(vhost_features *features, unsigned bit)
{
    if (bit < 128)
        features->word[bit / 64] &= ~(UINT64_C(1) << (bit % 64));
}

static const vhost_features *vhosti_its_bits(const vhost_device *device)
{
    return device->options.its_bits != NULL ? device->options.its_bits : &device->facts.its_bits;
}

VHOST_DEF vhost_features vhost_device_offer(const vhost_device *device, vhost_features mine)
{
    const vhost_features *its = vhosti_its_bits(device), *offered = &device->facts.offered;
    int i;
    for (i = 0; i < 2; i++)
        mine.word[i] &= offered->word[i] | ~its->word[i];
    vhost_features_clear(&mine, VHOST_FEATURE_LOG_ALL);
    return mine;
}

/* Features that a driver accepted though nobody can have offered them. */
static vhost_features vhosti_impossible(const vhost_device *device, const vhost_features *accepted)
{
    vhost_features possible = vhost_device_offer(device, *accepted), impossible;
    int i;
    for (i = 0; i < 2; i++)
        impossible.word[i] = accepted->word[i] & ~possible.word[i];
    return impossible;
}

static int vhosti_wrong_state(vhost_device *device, const char *call)
{
    static const char *const names[] = {"closed", "stopped", "running"};
    /* Before init there is no VM; after cleanup it may be gone. */
    vhost_vm *vm = device->state == VHOST_STATE_CLOSED ? NULL : device->vm;
    if (device->state == VHOST_STATE_BROKEN)
        return VHOSTI_FAIL(device, -EIO, VHOST_WHY_DEVICE_BROKEN, VHOST_OP_NONE, -1,
                           "%s (broken by errno %d)", call, -device->broken_by);
    return vhosti_fail(vm, device, -EBUSY, VHOST_WHY_STATE, VHOST_OP_NONE, -1, __LINE__,
                       "%s while %s", call, names[device->state]);
}

VHOST_DEF int vhost_device_ack(vhost_device *device, vhost_features accepted)
{
    vhost_features impossible;
    if (device->state != VHOST_STATE_STOPPED)
        return vhosti_wrong_state(device, "ack");
    impossible = vhosti_impossible(device, &accepted);
    if ((impossible.word[0] | impossible.word[1]) != 0)
        return VHOSTI_FAIL(device, -EINVAL, VHOST_WHY_FEATURE_NOT_OFFERED, VHOST_OP_NONE, -1,
                           "bits 0x%016llx%016llx", (vhosti_ull)impossible.word[1],
                           (vhosti_ull)impossible.word[0]);
    device->acked = accepted;
    return 0;
}

static bool vhosti_has_viommu(const vhost_device *device)
{
    return device->options.memory != NULL && device->options.memory->translate != NULL;
}

/* What goes to the back-end (F1). */
static vhost_features vhosti_sent_features(const vhost_device *device)
{
    vhost_features sent;
    int i;
    for (i = 0; i < 2; i++)
        sent.word[i] = device->acked.word[i] & device->facts.offered.word[i];
    if (!vhosti_has_viommu(device)) /* the bit turns a back-end's IOTLB on */
        vhost_features_clear(&sent, VHOST_FEATURE_ACCESS_PLATFORM);
    if (device->vm->logging)
        vhost_features_set(&sent, VHOST_FEATURE_LOG_ALL);
    return sent;
}

static bool vhosti_has(const vhost_device *device, unsigned bit)
{
    return vhost_features_test(&device->acked, bit);
}

/* >>queue ------------------------------------------------------------------------------------- */

enum {
    VHOSTI_RING_SIZE_MAX = 32768,
    VHOSTI_PART_COUNT = 3
};

#define VHOSTI_WRAP UINT16_C(0x8000) /* of a packed position: the wrap counter */

VHOST_DEF void vhost_queue_init(vhost_queue *queue)
{
    memset(queue, 0, sizeof *queue);
    queue->kick_fd = -1;
    queue->call_fd = -1;
}

static bool vhosti_is_packed(const vhost_device *device)
{
    return vhosti_has(device, VHOST_FEATURE_RING_PACKED);
}

/* ---- byte order (V3) ---- */

static bool vhosti_ring_is_big(const vhost_device *device, const vhost_queue *queue)
{
    return queue->big_endian && !vhosti_has(device, VHOST_FEATURE_VERSION_1);
}

/* Only a legacy ring can be foreign to the host in a way that the back-end cannot know. */
static bool vhosti_is_foreign(const vhost_device *device, const vhost_queue *queue)
{
    return !vhosti_has(device, VHOST_FEATURE_VERSION_1) &&
           queue->big_endian != vhosti_host_is_big();
}

/* Of a split ring: how many buffers were ever made available, or used. */
static uint16_t vhosti_ring_index(const vhost_device *device, const vhost_queue *queue,
                                  vhost_part part)
{
    const void *index = (const unsigned char *)queue->rings.part[part].host + 2;
    uint16_t raw = VHOST_LOAD_ACQUIRE16((const uint16_t *)index);
    unsigned char bytes[2];
    memcpy(bytes, &raw, sizeof bytes);
    return vhosti_ring_is_big(device, queue) ? (uint16_t)(bytes[0] << 8 | bytes[1])
                                             : (uint16_t)(bytes[1] << 8 | bytes[0]);
}

/* ---- mapping (V2, V6, R1, R2) ---- */

static bool vhosti_is_written(const vhost_device *device, int part)
{
    return part == VHOST_USED || (part == VHOST_DESC && vhosti_is_packed(device));
}

static void vhosti_set_part(vhost_mapping *mapping, uint64_t address, uint64_t size)
{
    memset(mapping, 0, sizeof *mapping);
    mapping->address = address;
    mapping->size = size;
}

/* Where the driver says the parts are, not yet looked up. */
static void vhosti_lay_out_ring(const vhost_device *device, vhost_queue *queue)
{
    vhost_mapping *part = queue->rings.part;
    uint64_t n = queue->size, event = vhosti_has(device, VHOST_FEATURE_EVENT_IDX) ? 2 : 0;
    bool packed = vhosti_is_packed(device);
    vhosti_set_part(&part[VHOST_DESC], queue->desc, 16 * n);
    vhosti_set_part(&part[VHOST_AVAIL], queue->avail, packed ? 4 : 4 + 2 * n + event);
    vhosti_set_part(&part[VHOST_USED], queue->used, packed ? 4 : 4 + 8 * n + event);
    queue->rings.log = device->vm->logging;
    queue->rings.iova = device->behind_viommu;
}

static const char *vhosti_part_name(int part)
{
    static const char *const names[] = {"desc", "avail", "used"};
    return names[part];
}

static int vhosti_fail_part(vhost_device *device, int code, vhost_why why, uint32_t index, int part)
{
    const vhost_mapping *mapping = &device->queues[index].rings.part[part];
    return VHOSTI_FAIL(device, code, why, VHOST_OP_NONE, (int)index,
                       "%s of queue %lu, 0x%llx+0x%llx", vhosti_part_name(part),
                       (unsigned long)index, (vhosti_ull)mapping->address,
                       (vhosti_ull)mapping->size);
}

/* Looks a part up in the VM's map. Returns VHOST_WHY_NONE, or what is wrong. */
static vhost_why vhosti_look_up_part(vhost_device *device, uint64_t gpa, uint64_t size, bool write,
                                     void **host)
{
    vhost_extent extent;
    if (vhost_memory_find(device->vm, gpa, &extent) < 0 || extent.size < size)
        return VHOST_WHY_RING_UNMAPPED;
    if (write && !extent.writable)
        return VHOST_WHY_RING_READ_ONLY;
    if (write && gpa + (size - 1) > vhosti_last_written(vhosti_current(device->vm)))
        return VHOST_WHY_RING_UNMAPPED; /* no log reaches so far */
    *host = extent.host;
    return VHOST_WHY_NONE;
}

/* Whether mapped memory is what the VM's map has at its gpa: for rings that others mapped, and for
   rings that were mapped before a commit. */
static vhost_why vhosti_check_place(vhost_device *device, const vhost_mapping *mapping, bool write)
{
    void *host = NULL;
    vhost_why why = vhosti_look_up_part(device, mapping->gpa, mapping->size, write, &host);
    return why == VHOST_WHY_NONE && host != mapping->host ? VHOST_WHY_RING_MOVED : why;
}

/* Whether a back-end that does not go by host addresses has a ring part in its table; by fd, in one
   piece. */
static vhost_why vhosti_check_reach(const vhost_device *device, const vhost_table *table,
                                    const vhost_mapping *mapping)
{
    if (device->facts.profile == VHOST_PROFILE_BY_HOST)
        return VHOST_WHY_NONE;
    return vhosti_check_regions(table, device->facts.profile, mapping->gpa, mapping->size,
                                mapping->host);
}

static void vhosti_unmap_part(vhost_device *device, vhost_mapping *mapping, bool written)
{
    const vhost_memory_ops *memory = device->options.memory;
    if (mapping->host != NULL && !device->behind_viommu && memory != NULL && memory->unmap != NULL)
        memory->unmap(device, mapping, written, device->options.user);
    mapping->host = NULL;
}

static vhost_why vhosti_map_part(vhost_device *device, vhost_mapping *mapping, bool write)
{
    const vhost_memory_ops *memory = device->options.memory;
    uint64_t size = mapping->size;
    vhost_why why;
    mapping->gpa = mapping->address;
    if (memory == NULL || memory->map == NULL)
        return vhosti_look_up_part(device, mapping->gpa, size, write, &mapping->host);
    if (memory->map(device, mapping, write, device->options.user) < 0) {
        mapping->host = NULL;
    } else if (mapping->size < size) { /* D31: what is too short is given back */
        vhosti_unmap_part(device, mapping, false);
    }
    mapping->size = size;
    if (mapping->host == NULL)
        return VHOST_WHY_RING_UNMAPPED;
    why = vhosti_check_place(device, mapping, write);
    if (why != VHOST_WHY_NONE)
        vhosti_unmap_part(device, mapping, false);
    return why;
}

/* ---- mapping behind a vIOMMU: a ring part is made of pieces (I1, D33) ---- */

struct vhosti_piece { /* of a ring part: contiguous as IOVA, in the guest and in the host */
    int part;
    bool unmapped; /* by the vIOMMU, since: not sent again unasked */
    vhost_iotlb entry;
};

static bool vhosti_add_piece(vhost_device *device, vhost_queue *queue, int part,
                             const vhost_iotlb *entry)
{
    struct vhosti_piece *pieces = (struct vhosti_piece *)vhosti_grow(
        device->vm, queue->pieces, &queue->piece_capacity, queue->piece_count + 1, sizeof *pieces);
    if (pieces == NULL)
        return false;
    pieces[queue->piece_count].part = part;
    pieces[queue->piece_count].unmapped = false;
    pieces[queue->piece_count].entry = *entry;
    queue->pieces = pieces;
    queue->piece_count++;
    return true;
}

/* Whether a vIOMMU's answer makes sense: it comes from outside. */
static bool vhosti_is_translation(const vhost_translation *found, uint64_t iova)
{
    uint64_t last = found->size - 1;
    return (found->iova | found->gpa) % VHOST_PAGE == 0 && found->size >= VHOST_PAGE &&
           found->iova + last >= found->iova && found->gpa + last >= found->gpa &&
           iova >= found->iova && iova - found->iova <= last;
}

/* The part of an entry that leads to one region of the back-end's table, that of `iova` (I5). */
static bool vhosti_cut_entry(const vhost_device *device, const vhost_translation *found,
                             uint64_t iova, vhost_iotlb *entry)
{
    const vhost_table *table = &device->vm->tables[device->facts.profile]->table;
    const vhost_region *region = vhosti_find_region(table, found->gpa + (iova - found->iova));
    uint64_t skipped, offset;
    if (region == NULL)
        return false;
    skipped = region->gpa > found->gpa ? region->gpa - found->gpa : 0;
    offset = found->gpa + skipped - region->gpa;
    memset(entry, 0, sizeof *entry);
    entry->type = VHOST_TLB_MAP;
    entry->permit = found->permit;
    entry->iova = found->iova + skipped;
    entry->gpa = found->gpa + skipped;
    entry->host = (unsigned char *)region->host + offset;
    entry->size = found->size - skipped;
    if (entry->size > region->size - offset)
        entry->size = region->size - offset;
    return true;
}

static vhost_why vhosti_translate(vhost_device *device, uint64_t iova, bool write,
                                  vhost_iotlb *entry)
{
    const vhost_memory_ops *memory = device->options.memory;
    uint8_t wanted = write ? VHOST_PERMIT_WRITE : VHOST_PERMIT_READ;
    vhost_translation found;
    memset(&found, 0, sizeof found);
    if (memory->translate(device, iova, write, &found, device->options.user) < 0 ||
        !vhosti_is_translation(&found, iova) || (found.permit & wanted) == 0 ||
        !vhosti_cut_entry(device, &found, iova, entry))
        return VHOST_WHY_IOTLB_UNMAPPED;
    return VHOST_WHY_NONE;
}

/* To the pages of a ring part: what else an entry leads to may be unplugged before the ring is. */
static void vhosti_clip_entry(vhost_iotlb *entry, uint64_t address, uint64_t size)
{
    uint64_t first = address - address % VHOST_PAGE;
    uint64_t last = (address + (size - 1)) | (VHOST_PAGE - 1);
    if (entry->iova < first) {
        uint64_t skipped = first - entry->iova;
        entry->iova += skipped;
        entry->gpa += skipped;
        entry->host = (unsigned char *)entry->host + skipped;
        entry->size -= skipped;
    }
    if (entry->size - 1 > last - entry->iova)
        entry->size = last - entry->iova + 1;
}

static vhost_why vhosti_translate_part(vhost_device *device, vhost_queue *queue, int part,
                                       bool write)
{
    vhost_mapping *mapping = &queue->rings.part[part];
    uint64_t done = 0;
    while (done < mapping->size) {
        vhost_iotlb entry;
        vhost_why why = vhosti_translate(device, mapping->address + done, write, &entry);
        uint64_t inside;
        if (why != VHOST_WHY_NONE)
            return why;
        vhosti_clip_entry(&entry, mapping->address, mapping->size);
        if (!vhosti_add_piece(device, queue, part, &entry))
            return VHOST_WHY_MEMORY;
        inside = mapping->address + done - entry.iova;
        if (done == 0) {
            mapping->gpa = entry.gpa + inside;
            mapping->host = (unsigned char *)entry.host + inside;
        }
        done += entry.size - inside;
    }
    return VHOST_WHY_NONE;
}

static void vhosti_unmap_ring(vhost_device *device, vhost_queue *queue, bool used)
{
    int part;
    queue->piece_count = 0;
    for (part = VHOSTI_PART_COUNT - 1; part >= 0; part--)
        vhosti_unmap_part(device, &queue->rings.part[part],
                          used && vhosti_is_written(device, part));
}

static int vhosti_check_part(vhost_device *device, uint32_t index, int part)
{
    static const uint64_t split[] = {16, 2, 4}, packed[] = {16, 4, 4};
    const vhost_mapping *mapping = &device->queues[index].rings.part[part];
    uint64_t align = (vhosti_is_packed(device) ? packed : split)[part];
    if (mapping->address % align != 0)
        return vhosti_fail_part(device, -EINVAL, VHOST_WHY_RING_UNALIGNED, index, part);
    if (mapping->address + (mapping->size - 1) < mapping->address)
        return vhosti_fail_part(device, -EOVERFLOW, VHOST_WHY_RING_WRAPS, index, part);
    return 0;
}

static uint32_t vhosti_encode_position(const vhost_device *device, const vhost_position *position)
{
    bool packed = vhosti_is_packed(device);
    if (position->state == VHOST_POSITION_INITIAL)
        return packed ? VHOSTI_WRAP | (uint32_t)VHOSTI_WRAP << 16 : 0;
    return packed ? position->avail | (uint32_t)position->used << 16 : position->avail;
}

/* Whether a back-end's answer, or a migrated number, can be a position at all. */
static bool vhosti_is_position(const vhost_device *device, const vhost_queue *queue, uint32_t value)
{
    uint32_t avail = value & 0x7fff, used = value >> 16 & 0x7fff;
    if (vhosti_is_packed(device))
        return avail < queue->size && used < queue->size;
    return value <= UINT16_MAX;
}

static int vhosti_check_queue(vhost_device *device, uint32_t index)
{
    const vhost_queue *queue = &device->queues[index];
    bool power = (queue->size & (queue->size - 1)) == 0;
    if (queue->size == 0 || queue->size > VHOSTI_RING_SIZE_MAX ||
        (!power && !vhosti_is_packed(device)))
        return VHOSTI_FAIL(device, -EINVAL, VHOST_WHY_RING_SIZE, VHOST_OP_NONE, (int)index,
                           "%lu descriptors in queue %lu", (unsigned long)queue->size,
                           (unsigned long)index);
    if ((unsigned)queue->position.state > VHOST_POSITION_GUESSED ||
        !vhosti_is_position(device, queue, vhosti_encode_position(device, &queue->position)))
        return VHOSTI_FAIL(device, -EINVAL, VHOST_WHY_ARGUMENT, VHOST_OP_NONE, (int)index,
                           "position 0x%x, 0x%x, state %d of queue %lu", queue->position.avail,
                           queue->position.used, (int)queue->position.state, (unsigned long)index);
    if (queue->position.state == VHOST_POSITION_GUESSED)
        return VHOSTI_FAIL(device, -EINVAL, VHOST_WHY_POSITION_GUESSED, VHOST_OP_NONE, (int)index,
                           "queue %lu", (unsigned long)index);
    return 0;
}

/* Checks and maps all parts of a ring, or none. */
static int vhosti_map_ring(vhost_device *device, uint32_t index)
{
    vhost_queue *queue = &device->queues[index];
    int part, code = vhosti_check_queue(device, index);
    if (code < 0)
        return code;
    vhosti_lay_out_ring(device, queue);
    for (part = 0; part < VHOSTI_PART_COUNT && code == 0; part++)
        code = vhosti_check_part(device, index, part);
    queue->piece_count = 0;
    for (part = 0; part < VHOSTI_PART_COUNT && code == 0; part++) {
        bool write = vhosti_is_written(device, part);
        vhost_mapping *mapping = &queue->rings.part[part];
        vhost_why why = device->behind_viommu ? vhosti_translate_part(device, queue, part, write)
                                              : vhosti_map_part(device, mapping, write);
        if (why == VHOST_WHY_NONE && !device->behind_viommu)
            why = vhosti_check_reach(device, vhost_device_table(device), mapping);
        if (why != VHOST_WHY_NONE)
            code = vhosti_fail_part(device, why == VHOST_WHY_MEMORY ? -ENOMEM : -EFAULT, why, index,
                                    part);
    }
    if (code < 0)
        vhosti_unmap_ring(device, queue, false);
    return code;
}

/* ---- positions (V5) ---- */

static void vhosti_take_answer(const vhost_device *device, vhost_queue *queue)
{
    vhost_position *position = &queue->position;
    position->state = VHOST_POSITION_CERTAIN;
    position->avail = (uint16_t)(queue->base.value & 0xffff);
    position->used = vhosti_is_packed(device) ? (uint16_t)(queue->base.value >> 16)
                                              : vhosti_ring_index(device, queue, VHOST_USED);
    position->used_certain = position->used == position->avail;
}

/* Whether the back-end has a record of where the ring stood. That of a misled one is wrong. */
static bool vhosti_recall_position(const vhost_device *device, vhost_queue *queue)
{
    uint32_t index = (uint32_t)(queue - device->queues);
    if (device->ops->recall_base == NULL || queue->misled)
        return false;
    queue->base.value = vhosti_is_packed(device) ? 0 : vhosti_ring_index(device, queue, VHOST_USED);
    return device->ops->recall_base(device->backend, index, &queue->base) == 1 &&
           vhosti_is_position(device, queue, queue->base.value);
}

/* Whether a back-end that stopped can have said the truth: in a split ring, it cannot have given
   back what it did not take, nor have taken more than there is. */
static bool vhosti_is_answer(const vhost_device *device, const vhost_queue *queue)
{
    uint32_t value = queue->base.value;
    if (!vhosti_is_position(device, queue, value))
        return false;
    return vhosti_is_packed(device) ||
           (uint16_t)(value - vhosti_ring_index(device, queue, VHOST_USED)) <= queue->size;
}

/* The back-end did not say where it stands. In a split ring all that was used was taken before; the
   converse holds only where buffers are used in order, or if nothing is left to be used. */
static void vhosti_guess_split(const vhost_device *device, vhost_queue *queue)
{
    vhost_position *position = &queue->position;
    uint16_t used = vhosti_ring_index(device, queue, VHOST_USED);
    bool idle = !queue->misled && used == vhosti_ring_index(device, queue, VHOST_AVAIL);
    bool certain = idle || vhosti_has(device, VHOST_FEATURE_IN_ORDER);
    position->avail = position->used = used;
    position->state = certain ? VHOST_POSITION_CERTAIN : VHOST_POSITION_GUESSED;
    position->used_certain = idle;
}

/* A packed ring does not tell at all: its position stays that of the start. */
static void vhosti_guess_packed(const vhost_device *device, vhost_queue *queue)
{
    vhost_position *position = &queue->position;
    uint32_t start = vhosti_encode_position(device, position);
    position->avail = (uint16_t)(start & 0xffff);
    position->used = (uint16_t)(start >> 16);
    position->state = VHOST_POSITION_GUESSED;
    position->used_certain = false;
}

static void vhosti_guess_position(const vhost_device *device, vhost_queue *queue)
{
    if (vhosti_is_packed(device))
        vhosti_guess_packed(device, queue);
    else
        vhosti_guess_split(device, queue);
}

/* ---- start and stop of one ring: all submits (V1, V2, V5) ---- */

static int vhosti_call_fd(const vhost_queue *queue)
{
    return queue->masked ? queue->masked_event.signal_fd : queue->call_fd;
}

/* Of a foreign ring, or of one that was foreign before and is native now. */
static void vhosti_submit_endian(vhost_device *device, uint32_t i)
{
    const vhost_backend_ops *ops = device->ops;
    bool big = vhosti_is_foreign(device, &device->queues[i]) != vhosti_host_is_big();
    VHOSTI_SUBMIT(device, VHOST_OP_SET_RING_ENDIAN, i, big,
                  ops->set_ring_endian != NULL ? ops->set_ring_endian(device->backend, i, big)
                                               : -ENOTSUP);
    device->queues[i].swapped |= device->batch.error == 0;
}

static void vhosti_submit_busy_loop(vhost_device *device, uint32_t i)
{
    const vhost_backend_ops *ops = device->ops;
    uint32_t us = device->queues[i].busy_loop_us;
    VHOSTI_SUBMIT(device, VHOST_OP_SET_RING_BUSY_LOOP, i, us,
                  ops->set_ring_busy_loop != NULL ? ops->set_ring_busy_loop(device->backend, i, us)
                                                  : -ENOTSUP);
    device->queues[i].busy_looping |= device->batch.error == 0;
}

/* Call first; the kick comes later, as it makes some back-ends begin. */
static void vhosti_submit_ring(vhost_device *device, uint32_t i)
{
    const vhost_backend_ops *ops = device->ops;
    void *backend = device->backend;
    vhost_queue *queue = &device->queues[i];
    uint32_t base = vhosti_encode_position(device, &queue->position);
    int call = vhosti_call_fd(queue), error = queue->error_event.signal_fd;
    VHOSTI_SUBMIT(device, VHOST_OP_SET_RING_CALL, i, call, ops->set_ring_call(backend, i, call));
    if (ops->set_ring_error != NULL)
        VHOSTI_SUBMIT(device, VHOST_OP_SET_RING_ERROR, i, error,
                      ops->set_ring_error(backend, i, error));
    VHOSTI_SUBMIT(device, VHOST_OP_SET_RING_SIZE, i, queue->size,
                  ops->set_ring_size(backend, i, queue->size));
    VHOSTI_SUBMIT(device, VHOST_OP_SET_RING_BASE, i, base, ops->set_ring_base(backend, i, base));
    if (vhosti_is_foreign(device, queue) || queue->swapped)
        vhosti_submit_endian(device, i);
    VHOSTI_SUBMIT(device, VHOST_OP_SET_RING_ADDRESSES, i, queue->used,
                  ops->set_ring_addresses(backend, i, &queue->rings));
    if (queue->busy_loop_us != 0 || queue->busy_looping)
        vhosti_submit_busy_loop(device, i);
}

/* From here on the back-end may run the ring. */
static void vhosti_submit_kick(vhost_device *device, uint32_t i)
{
    vhost_queue *queue = &device->queues[i];
    if (device->batch.error == 0) {
        queue->base.answered = false;
        queue->misled = false;
        queue->started = true;
    }
    VHOSTI_SUBMIT(device, VHOST_OP_SET_RING_KICK, i, queue->kick_fd,
                  device->ops->set_ring_kick(device->backend, i, queue->kick_fd));
}

static void vhosti_submit_enable(vhost_device *device, uint32_t i)
{
    if (device->ops->enable_ring != NULL)
        VHOSTI_SUBMIT(device, VHOST_OP_ENABLE_RING, i, true,
                      device->ops->enable_ring(device->backend, i, true));
}

/* A ring that the back-end refuses to disable is not asked for its position: it would move on. */
static void vhosti_submit_ring_stop(vhost_device *device, uint32_t i)
{
    const vhost_backend_ops *ops = device->ops;
    void *backend = device->backend;
    vhost_queue *queue = &device->queues[i];
    if (ops->enable_ring != NULL &&
        VHOSTI_TRY(device, VHOST_OP_ENABLE_RING, i, false, ops->enable_ring(backend, i, false)) < 0)
        return;
    VHOSTI_TRY(device, VHOST_OP_GET_RING_BASE, i, 0, ops->get_ring_base(backend, i, &queue->base));
}

/* What the back-end may have written to the ring is dirty, whatever it logged (V5, D33). */
static void vhosti_mark_ring(const vhost_device *device, const vhost_queue *queue)
{
    const struct vhosti_log *log = vhosti_log_of(device);
    uint32_t i;
    int part;
    for (i = 0; i < queue->piece_count; i++)
        if (vhosti_is_written(device, queue->pieces[i].part))
            vhosti_log_mark(log, queue->pieces[i].entry.gpa, queue->pieces[i].entry.size);
    for (part = 0; part < VHOSTI_PART_COUNT && !device->behind_viommu; part++)
        if (vhosti_is_written(device, part))
            vhosti_log_mark(log, queue->rings.part[part].gpa, queue->rings.part[part].size);
}

/* Whether all that comes before the kick of a ring was done when the start failed. */
static bool vhosti_was_set_up(const vhosti_batch *batch, uint32_t i)
{
    return batch->op > VHOST_OP_SET_RING_KICK ||
           (batch->op >= VHOST_OP_SET_RING_CALL && (int)i < batch->queue);
}

static bool vhosti_was_kicked(const vhosti_batch *batch, uint32_t i)
{
    return batch->later_done || batch->op > VHOST_OP_SET_RING_KICK ||
           (batch->op == VHOST_OP_SET_RING_KICK && (int)i < batch->queue);
}

/* After a start that failed: a ring that was not kicked is where it was. One that ran although
   something before it was refused has a position that means nothing; a back-end that is gone has
   refused nothing. */
static void vhosti_judge_ring(vhost_device *device, uint32_t i)
{
    vhost_queue *queue = &device->queues[i];
    bool gone = vhosti_why_of(device->batch.error) == VHOST_WHY_BACKEND_LOST;
    queue->started = queue->started && vhosti_was_kicked(&device->batch, i);
    queue->misled = !gone && !vhosti_was_set_up(&device->batch, i);
}

static void vhosti_note_guess(vhost_device *device, const vhost_queue *queue)
{
    long index = (long)(queue - device->queues);
    vhosti_note(device, VHOST_WHY_POSITION_GUESSED, (int)index, "%u in queue %ld",
                queue->position.avail, index);
}

/* After the fence, or the cut: takes the ring back. */
static void vhosti_take_ring_back(vhost_device *device, vhost_queue *queue)
{
    bool held = queue->started || queue->paused;
    bool answered =
        queue->started && queue->base.answered && !queue->misled && vhosti_is_answer(device, queue);
    if (queue->started && (answered || vhosti_recall_position(device, queue)))
        vhosti_take_answer(device, queue);
    else if (queue->started)
        vhosti_guess_position(device, queue);
    if (queue->started && queue->position.state == VHOST_POSITION_GUESSED)
        vhosti_note_guess(device, queue);
    if (queue->started)
        queue->unsettled = answered && !queue->position.used_certain;
    if (held && device->vm->logging)
        vhosti_mark_ring(device, queue);
    vhosti_unmap_ring(device, queue, held);
    queue->started = queue->paused = false;
}

/* A back-end that did not wait for its buffers may have used them by now. */
static void vhosti_look_again(vhost_device *device, vhost_queue *queue)
{
    vhost_mapping *ring = &queue->rings.part[VHOST_USED];
    vhost_position *position = &queue->position;
    if (!queue->unsettled || vhosti_is_packed(device) || device->behind_viommu ||
        vhosti_map_part(device, ring, false) != VHOST_WHY_NONE)
        return;
    position->used = vhosti_ring_index(device, queue, VHOST_USED);
    position->used_certain = position->used == position->avail;
    queue->unsettled = !position->used_certain;
    if (device->vm->logging)
        vhosti_mark_ring(device, queue);
    vhosti_unmap_part(device, ring, false);
}

/* The back-end is cut off: what it had in flight is done by nobody, unless it is on record. */
static void vhosti_give_up(vhost_device *device, vhost_queue *queue)
{
    vhost_position *position = &queue->position;
    uint32_t index = (uint32_t)(queue - device->queues);
    bool recorded;
    vhosti_look_again(device, queue);
    if (!queue->unsettled)
        return;
    queue->base.value = vhosti_is_packed(device) ? 0 : position->used;
    recorded = device->ops->recall_base != NULL &&
               device->ops->recall_base(device->backend, index, &queue->base) == 1;
    queue->unsettled = false;
    if (recorded)
        return;
    position->state = VHOST_POSITION_GUESSED;
    if (!vhosti_is_packed(device))
        position->avail = position->used;
    vhosti_note_guess(device, queue);
}

/* ---- masks (K1) ---- */

static int vhosti_create_event(vhost_device *device, vhost_event *event)
{
    vhost_vm *vm = device->vm;
    int code = vm->options.events->create(event, vm->options.user);
    if (code == 0)
        return 0;
    event->wait_fd = event->signal_fd = -1;
    return VHOSTI_FAIL(device, code, VHOST_WHY_EVENT, VHOST_OP_NONE, -1, "errno %d", -code);
}

static void vhosti_discard_event(vhost_device *device, vhost_event *event)
{
    if (event->wait_fd >= 0)
        device->vm->options.events->destroy(event, device->vm->options.user);
    event->wait_fd = event->signal_fd = -1;
}

static int vhosti_test_event(vhost_device *device, const vhost_event *event, int queue)
{
    vhost_vm *vm = device->vm;
    int code = event->wait_fd < 0 ? 0 : vm->options.events->test_and_clear(event, vm->options.user);
    if (code >= 0)
        return code;
    return VHOSTI_FAIL(device, code, VHOST_WHY_EVENT, VHOST_OP_NONE, queue, "errno %d", -code);
}

static int vhosti_check_call(vhost_device *device, uint32_t index, const char *call)
{
    if (device->state == VHOST_STATE_CLOSED)
        return vhosti_wrong_state(device, call);
    if (index < device->queue_count)
        return 0;
    return VHOSTI_FAIL(device, -EINVAL, VHOST_WHY_ARGUMENT, VHOST_OP_NONE, -1,
                       "%s of queue %lu of %lu", call, (unsigned long)index,
                       (unsigned long)device->queue_count);
}

static int vhosti_route_calls(vhost_device *device, uint32_t i, bool masked)
{
    vhost_queue *queue = &device->queues[i];
    int call;
    queue->masked = masked;
    if (!queue->started)
        return 0;
    call = vhosti_call_fd(queue);
    vhosti_begin(device);
    VHOSTI_SUBMIT(device, VHOST_OP_SET_RING_CALL, i, call,
                  device->ops->set_ring_call(device->backend, i, call));
    if (vhosti_fence(device) == 0)
        return 0;
    queue->masked = true; /* so that pending looks at the notifier */
    return vhosti_report_batch(device);
}

VHOST_DEF int vhost_queue_mask(vhost_device *device, uint32_t queue)
{
    int code = vhosti_check_call(device, queue, "mask");
    return code < 0 ? code : vhosti_route_calls(device, queue, true);
}

VHOST_DEF int vhost_queue_pending(vhost_device *device, uint32_t queue)
{
    int code = vhosti_check_call(device, queue, "pending");
    if (code < 0)
        return code;
    return vhosti_test_event(device, &device->queues[queue].masked_event, (int)queue);
}

/* The notifier is looked at after the switch: no call can come between the two. */
VHOST_DEF int vhost_queue_unmask(vhost_device *device, uint32_t queue)
{
    int code = vhosti_check_call(device, queue, "unmask");
    if (code == 0)
        code = vhosti_route_calls(device, queue, false);
    if (code < 0)
        return code;
    code = vhost_queue_pending(device, queue);
    if (code < 0)
        device->queues[queue].masked = true;
    return code;
}

/* >>iotlb -------------------------------------------------------------------------------------- */

static void vhosti_submit_entry(vhost_device *device, const vhost_iotlb *entry)
{
    VHOSTI_SUBMIT(device, VHOST_OP_IOTLB_SEND, -1, entry->iova,
                  device->ops->iotlb_send(device->backend, entry));
}

/* A back-end checks that it can reach a ring before it runs it, so its pieces go first. */
static void vhosti_submit_pieces(vhost_device *device, const vhost_queue *queue)
{
    uint32_t i;
    for (i = 0; i < queue->piece_count; i++)
        if (!queue->pieces[i].unmapped)
            vhosti_submit_entry(device, &queue->pieces[i].entry);
}

static void vhosti_submit_forget(vhost_device *device, uint64_t iova, uint64_t size)
{
    vhost_iotlb entry;
    memset(&entry, 0, sizeof entry);
    entry.type = VHOST_TLB_UNMAP;
    entry.iova = iova;
    entry.size = size;
    vhosti_submit_entry(device, &entry);
}

/* All entries are forgotten, and those of rings renewed: at start, when memory went away that
   entries may lead to, and when features were sent (vhost-net then has an empty IOTLB). */
static void vhosti_submit_iotlb_anew(vhost_device *device)
{
    uint32_t i;
    if (!device->behind_viommu)
        return;
    vhosti_submit_forget(device, 0, UINT64_MAX);
    for (i = 0; i < device->queue_count; i++)
        vhosti_submit_pieces(device, &device->queues[i]);
}

static int vhosti_watch(vhost_device *device, bool on)
{
    const vhost_memory_ops *memory = device->options.memory;
    return memory->watch != NULL ? memory->watch(device, on, device->options.user) : 0;
}

/* Turns the vIOMMU on for this start, if the driver wants it and the back-end can (I1, I2). */
static int vhosti_begin_viommu(vhost_device *device)
{
    vhost_features sent = vhosti_sent_features(device);
    int code;
    if (!vhosti_has_viommu(device) || !vhosti_has(device, VHOST_FEATURE_ACCESS_PLATFORM))
        return 0;
    if (device->ops->iotlb_send == NULL ||
        !vhost_features_test(&sent, VHOST_FEATURE_ACCESS_PLATFORM))
        return VHOSTI_FAIL(device, -ENOTSUP, VHOST_WHY_IOTLB_UNSUPPORTED, VHOST_OP_NONE, -1,
                           "and the driver accepted ACCESS_PLATFORM");
    device->behind_viommu = true;
    code = vhosti_watch(device, true);
    if (code >= 0)
        return 0;
    device->behind_viommu = false;
    return VHOSTI_FAIL(device, code, VHOST_WHY_IOTLB_UNSUPPORTED, VHOST_OP_NONE, -1,
                       "watch, errno %d", -code);
}

static void vhosti_end_viommu(vhost_device *device)
{
    if (device->behind_viommu)
        (void)vhosti_watch(device, false);
    device->behind_viommu = false;
}

static int vhosti_check_message(vhost_device *device, const vhost_iotlb *message)
{
    if (device->state != VHOST_STATE_RUNNING && !device->behind_viommu)
        return vhosti_wrong_state(device, "IOTLB message");
    if (device->behind_viommu && message->type == VHOST_TLB_MISS)
        return 0;
    return VHOSTI_FAIL(device, message->type == VHOST_TLB_FAIL ? -ENOTSUP : -EINVAL,
                       VHOST_WHY_IOTLB_MESSAGE, VHOST_OP_NONE, -1, "type %d for 0x%llx",
                       (int)message->type, (vhosti_ull)message->iova);
}

/* Sends one entry. In a fence it joins what that fence waits for: a failure is found there. */
static int vhosti_send_entry(vhost_device *device, const vhost_iotlb *entry)
{
    vhosti_batch outer = device->batch;
    int code = 0;
    vhosti_begin(device);
    vhosti_submit_entry(device, entry);
    if ((device->fencing ? device->batch.error : vhosti_fence(device)) < 0)
        code = vhosti_report_batch(device);
    device->answered = true;
    device->batch = outer;
    return code;
}

static int vhosti_answer_miss(vhost_device *device, const vhost_iotlb *message)
{
    bool write = message->permit != VHOST_PERMIT_READ;
    vhost_iotlb entry;
    vhost_why why = vhosti_translate(device, message->iova, write, &entry);
    if (why == VHOST_WHY_NONE && (device->doomed || device->pausing) && /* it has the old table */
        vhosti_check_regions(&device->table->table, device->facts.profile, entry.gpa, entry.size,
                             entry.host) != VHOST_WHY_NONE)
        why = VHOST_WHY_IOTLB_UNMAPPED;
    if (why != VHOST_WHY_NONE)
        return VHOSTI_FAIL(device, -EFAULT, why, VHOST_OP_NONE, -1, "0x%llx, to %s it",
                           (vhosti_ull)message->iova, write ? "write" : "read");
    return vhosti_send_entry(device, &entry);
}

VHOST_DEF int vhost_iotlb_message(vhost_device *device, const vhost_iotlb *message)
{
    int code = vhosti_check_message(device, message);
    vhost_trace trace;
    if (code < 0)
        return code;
    code = vhosti_answer_miss(device, message);
    trace = vhosti_make_trace(VHOST_TRACE_MISS, device);
    trace.gpa = message->iova;
    trace.value = message->permit;
    trace.result = code;
    vhosti_trace(device->vm, &trace);
    return code;
}

/* >>device ------------------------------------------------------------------------------------ */

/* ---- init, cleanup (B1 to B5) ---- */

static int vhosti_check_ops(vhost_device *device, const vhost_backend_ops *ops)
{
    bool complete = ops->open != NULL && ops->sever != NULL && ops->set_features != NULL &&
                    ops->set_table != NULL && ops->set_ring_call != NULL &&
                    ops->set_ring_size != NULL && ops->set_ring_base != NULL &&
                    ops->set_ring_addresses != NULL && ops->set_ring_kick != NULL &&
                    ops->get_ring_base != NULL;
    if (complete)
        return 0;
    return VHOSTI_FAIL(device, -EINVAL, VHOST_WHY_BACKEND_INCOMPLETE, VHOST_OP_NONE, -1,
                       "an operation marked (R) is NULL");
}

static int vhosti_create_events(vhost_device *device)
{
    uint32_t i;
    int code = 0;
    for (i = 0; i < device->queue_count && code == 0; i++) {
        vhost_queue *queue = &device->queues[i];
        code = vhosti_create_event(device, &queue->masked_event);
        if (code == 0 && device->ops->set_ring_error != NULL)
            code = vhosti_create_event(device, &queue->error_event);
    }
    if (code == 0 && device->ops->set_config_call != NULL)
        code = vhosti_create_event(device, &device->config_event);
    return code;
}

static void vhosti_discard_events(vhost_device *device)
{
    uint32_t i;
    for (i = 0; i < device->queue_count; i++) {
        vhosti_discard_event(device, &device->queues[i].masked_event);
        vhosti_discard_event(device, &device->queues[i].error_event);
    }
    vhosti_discard_event(device, &device->config_event);
}

/* The table of a profile is built when its first device comes. */
static int vhosti_need_table(vhost_device *device)
{
    struct vhosti_table **table = &device->vm->tables[device->facts.profile];
    if (*table == NULL)
        *table = vhosti_build_table(device->vm, vhosti_current(device->vm), device->facts.profile);
    if (*table == NULL)
        return VHOSTI_FAIL(device, -ENOMEM, VHOST_WHY_MEMORY, VHOST_OP_NONE, -1, "memory table");
    if (!vhosti_fits(device, *table))
        return VHOSTI_FAIL(device, -ENOSPC, VHOST_WHY_TOO_MANY_REGIONS, VHOST_OP_NONE, -1,
                           "%lu regions, %lu slots", (unsigned long)(*table)->table.count,
                           (unsigned long)device->facts.max_regions);
    return 0;
}

/* The tables of profiles that no device has any more. */
static void vhosti_drop_unused_tables(vhost_vm *vm)
{
    bool in_use[VHOST_PROFILE_COUNT] = {false};
    const vhost_device *device;
    int profile;
    for (device = vm->devices; device != NULL; device = device->next)
        in_use[device->facts.profile] = true;
    for (profile = 0; profile < VHOST_PROFILE_COUNT; profile++)
        if (!in_use[profile])
            vhosti_drop_table(vm, &vm->tables[profile]);
}

static int vhosti_check_facts(vhost_device *device)
{
    const vhost_facts *facts = &device->facts;
    if ((unsigned)facts->profile >= VHOST_PROFILE_COUNT ||
        (unsigned)facts->log_kind >= VHOST_DIRTY_KIND_COUNT)
        return VHOSTI_FAIL(device, -ENOTSUP, VHOST_WHY_NOT_SUPPORTED, VHOST_OP_OPEN, -1,
                           "memory table of kind %d, log of kind %d", (int)facts->profile,
                           (int)facts->log_kind);
    if (facts->max_queues != 0 && device->queue_count > facts->max_queues)
        return VHOSTI_FAIL(device, -EINVAL, VHOST_WHY_TOO_MANY_QUEUES, VHOST_OP_OPEN, -1,
                           "%lu, and it has %lu", (unsigned long)device->queue_count,
                           (unsigned long)facts->max_queues);
    if (device->vm->logging && vhosti_log_obstacle(device) != VHOST_WHY_NONE)
        return VHOSTI_FAIL(device, -ENOTSUP, vhosti_log_obstacle(device), VHOST_OP_OPEN, -1,
                           "and the VM logs");
    return vhosti_need_table(device);
}

/* The last thing that may fail: a log that nobody came to use would stay. */
static int vhosti_join_log(vhost_device *device)
{
    int code = device->vm->logging ? vhosti_need_log(device) : 0;
    if (code == 0)
        return 0;
    return VHOSTI_FAIL(device, code, VHOST_WHY_LOG_MEMORY, VHOST_OP_NONE, -1,
                       "the VM logs; errno %d", -code);
}

static void vhosti_close(vhost_device *device)
{
    if (device->opened && device->ops->close != NULL)
        device->ops->close(device->backend);
    device->opened = false;
}

/* Opens the back-end, at init and again after a break. On failure it is closed. */
static int vhosti_open(vhost_device *device)
{
    vhost_facts before = device->facts, facts;
    int code;
    memset(&facts, 0, sizeof facts);
    code = device->ops->open(device->backend, device, &facts);
    if (code < 0)
        return VHOSTI_FAIL(device, code, vhosti_why_of(code), VHOST_OP_OPEN, -1,
                           "open, errno %d: %s", -code, vhosti_words(device, VHOST_OP_OPEN, code));
    if (facts.name == NULL)
        facts.name = "back-end";
    device->opened = true;
    device->facts = facts;
    code = vhosti_check_facts(device);
    if (code == 0)
        return 0;
    vhosti_close(device);
    device->facts = before;
    return code;
}

static bool vhosti_is_attached(const vhost_vm *vm, const vhost_device *device)
{
    const vhost_device *other = vm->devices;
    while (other != NULL && other != device)
        other = other->next;
    return other != NULL;
}

static bool vhosti_shares_queues(const vhost_device *a, const vhost_device *b)
{
    return (uintptr_t)a->queues < (uintptr_t)(b->queues + b->queue_count) &&
           (uintptr_t)b->queues < (uintptr_t)(a->queues + a->queue_count);
}

/* Whether another device has one of these queues or the same back-end object. */
static bool vhosti_is_shared(const vhost_device *device)
{
    const vhost_device *other = device->vm->devices;
    while (other != NULL && !vhosti_shares_queues(other, device) &&
           (other->backend != device->backend || device->backend == NULL))
        other = other->next;
    return other != NULL;
}

static int vhosti_check_init(vhost_device *device)
{
    if (vhosti_is_shared(device))
        return VHOSTI_FAIL(device, -EBUSY, VHOST_WHY_STATE, VHOST_OP_NONE, -1,
                           "another device has these queues or this back-end");
    if (device->vm->in_transaction)
        return VHOSTI_FAIL(device, -EBUSY, VHOST_WHY_STATE, VHOST_OP_NONE, -1,
                           "init while the VM has a transaction open");
    if (device->queues == NULL || device->queue_count == 0)
        return VHOSTI_FAIL(device, -EINVAL, VHOST_WHY_ARGUMENT, VHOST_OP_NONE, -1, "no queues");
    return vhosti_check_ops(device, device->ops);
}

/* D27: what is the VMM's in a queue stays. */
static void vhosti_adopt_queue(vhost_queue *queue)
{
    memset(&queue->rings, 0, sizeof queue->rings);
    queue->paused = false;
    queue->started = queue->masked = queue->swapped = queue->busy_looping = false;
    queue->base.answered = false;
    queue->pieces = NULL;
    queue->piece_count = queue->piece_capacity = 0;
    queue->masked_event.wait_fd = queue->masked_event.signal_fd = -1;
    queue->error_event.wait_fd = queue->error_event.signal_fd = -1;
}

static void vhosti_link(vhost_device *device)
{
    device->next = device->vm->devices;
    device->vm->devices = device;
}

static void vhosti_unlink(vhost_device *device)
{
    vhost_device **link = &device->vm->devices;
    while (*link != device)
        link = &(*link)->next;
    *link = device->next;
}

VHOST_DEF int vhost_device_init(vhost_device *device, vhost_vm *vm, const vhost_backend_ops *ops,
                                void *backend, vhost_queue *queues, uint32_t count,
                                const vhost_device_options *options)
{
    uint32_t i;
    int code;
    if (vhosti_is_attached(vm, device))
        return VHOSTI_FAIL(device, -EBUSY, VHOST_WHY_STATE, VHOST_OP_NONE, -1,
                           "init of a device that is attached");
    memset(device, 0, sizeof *device);
    device->vm = vm;
    device->ops = ops;
    device->backend = backend;
    device->queues = queues;
    device->queue_count = count;
    if (options != NULL)
        device->options = *options;
    device->config_event.wait_fd = device->config_event.signal_fd = -1;
    code = vhosti_check_init(device);
    if (code < 0)
        return code;
    for (i = 0; i < count; i++)
        vhosti_adopt_queue(&queues[i]);
    code = vhosti_open(device);
    if (code == 0) {
        code = vhosti_create_events(device);
        if (code == 0)
            code = vhosti_join_log(device);
        if (code == 0) {
            vhosti_link(device);
            vhosti_enter(device, VHOST_STATE_STOPPED);
            return 0;
        }
        vhosti_discard_events(device);
        vhosti_close(device);
    }
    vhosti_drop_unused_tables(vm);
    return code;
}

static void vhosti_free_pieces(vhost_device *device)
{
    uint32_t i;
    for (i = 0; i < device->queue_count; i++) {
        vhosti_free(device->vm, device->queues[i].pieces);
        device->queues[i].pieces = NULL;
        device->queues[i].piece_capacity = 0;
    }
}

VHOST_DEF void vhost_device_cleanup(vhost_device *device)
{
    if (device->state == VHOST_STATE_CLOSED)
        return;
    (void)vhost_device_stop(device);
    vhosti_close(device);
    vhosti_discard_events(device);
    vhosti_free_pieces(device);
    vhosti_unlink(device);
    vhosti_drop_table(device->vm, &device->table);
    vhosti_disown_logs(device);
    vhosti_drop_log(device->vm, &device->log);
    vhosti_drop_unused_tables(device->vm);
    vhosti_enter(device, VHOST_STATE_CLOSED);
    device->facts.name = NULL; /* it was the back-end's */
}

VHOST_DEF const vhost_table *vhost_device_table(const vhost_device *device)
{
    if (device->state == VHOST_STATE_CLOSED)
        return NULL;
    return &device->vm->tables[device->facts.profile]->table;
}

/* ---- start, stop (S1 to S7) ---- */

/* Maps the rings of all ready queues, or of none. */
static int vhosti_map_rings(vhost_device *device)
{
    uint32_t i, k;
    int code = 0;
    for (i = 0; i < device->queue_count && code == 0; i++)
        if (device->queues[i].ready)
            code = vhosti_map_ring(device, i);
    for (k = 0; k < i && code < 0; k++)
        vhosti_unmap_ring(device, &device->queues[k], false);
    return code;
}

static void vhosti_take_rings_back(vhost_device *device)
{
    uint32_t i;
    for (i = 0; i < device->queue_count; i++)
        vhosti_take_ring_back(device, &device->queues[i]);
    vhosti_end_viommu(device);
}

static void vhosti_hold_table(vhost_device *device, struct vhosti_table *table)
{
    struct vhosti_table *held = vhosti_keep_table(table); /* first: it may be the same one */
    vhosti_drop_table(device->vm, &device->table);
    device->table = held;
}

static void vhosti_hold_log(vhost_device *device, struct vhosti_log *log)
{
    struct vhosti_log *held = vhosti_keep_log(log);
    vhosti_drop_log(device->vm, &device->log);
    device->log = held;
}

static void vhosti_submit_log(vhost_device *device, struct vhosti_log *log)
{
    VHOSTI_SUBMIT(device, VHOST_OP_SET_LOG, -1, log->memory.size,
                  device->ops->set_log(device->backend, &log->memory));
}

/* Returns whether the back-end loses memory by it. */
static bool vhosti_submit_table(vhost_device *device, struct vhosti_table *to)
{
    vhost_table_change change = *vhosti_find_change(device->vm, device->table, to);
    VHOSTI_SUBMIT(device, VHOST_OP_SET_TABLE, -1, to->table.count,
                  device->ops->set_table(device->backend, &change));
    return device->behind_viommu && vhosti_loses_memory(&change, device->facts.profile);
}

static void vhosti_submit_config_call(vhost_device *device)
{
    int fd = device->config_event.signal_fd;
    if (device->ops->set_config_call == NULL)
        return;
    VHOSTI_SUBMIT(device, VHOST_OP_SET_CONFIG_CALL, -1, fd,
                  device->ops->set_config_call(device->backend, fd));
    device->told_config_call = device->batch.error == 0;
}

static void vhosti_submit_running(vhost_device *device)
{
    if (device->ops->set_running == NULL)
        return;
    VHOSTI_SUBMIT(device, VHOST_OP_SET_RUNNING, -1, true,
                  device->ops->set_running(device->backend, true));
    device->told_running = device->batch.error == 0;
}

/* Features fix how all the rest is read; rings need the table, and a log before they are written;
   nothing runs before all is there. */
static void vhosti_submit_start(vhost_device *device)
{
    vhost_features sent = vhosti_sent_features(device);
    uint32_t i;
    VHOSTI_SUBMIT(device, VHOST_OP_SET_FEATURES, -1, sent.word[0],
                  device->ops->set_features(device->backend, &sent));
    (void)vhosti_submit_table(device, device->vm->tables[device->facts.profile]);
    if (device->vm->logging)
        vhosti_submit_log(device, vhosti_log_of(device));
    vhosti_submit_iotlb_anew(device);
    for (i = 0; i < device->queue_count; i++)
        if (device->queues[i].ready)
            vhosti_submit_ring(device, i);
    if (device->ops->set_inflight != NULL)
        VHOSTI_SUBMIT(device, VHOST_OP_SET_INFLIGHT, -1, 0,
                      device->ops->set_inflight(device->backend));
    for (i = 0; i < device->queue_count; i++)
        if (device->queues[i].ready)
            vhosti_submit_kick(device, i);
    vhosti_submit_config_call(device);
    for (i = 0; i < device->queue_count; i++)
        if (device->queues[i].ready)
            vhosti_submit_enable(device, i);
    vhosti_submit_running(device);
}

static void vhosti_submit_ring_stops(vhost_device *device)
{
    uint32_t i;
    for (i = device->queue_count; i-- > 0;)
        if (device->queues[i].started)
            vhosti_submit_ring_stop(device, i);
}

/* Start backwards, as far as it came; whatever fails, all is tried. */
static void vhosti_submit_stop(vhost_device *device)
{
    if (device->told_running)
        VHOSTI_TRY(device, VHOST_OP_SET_RUNNING, -1, false,
                   device->ops->set_running(device->backend, false));
    vhosti_submit_ring_stops(device);
    if (device->told_config_call)
        VHOSTI_TRY(device, VHOST_OP_SET_CONFIG_CALL, -1, -1,
                   device->ops->set_config_call(device->backend, -1));
    device->told_running = device->told_config_call = false;
}

/* The end of every device that cannot be trusted to have stopped. Devices may break side by side,
   so what they share is let go of later, when the VM is at rest: at reset or cleanup. A device that
   was BROKEN before did not recover: that is no news. */
static void vhosti_sever(vhost_device *device, int code)
{
    uint32_t i;
    device->ops->sever(device->backend);
    VHOSTI_TRY(device, VHOST_OP_SEVER, -1, 0, 0);
    vhosti_take_rings_back(device);
    for (i = 0; i < device->queue_count; i++)
        vhosti_give_up(device, &device->queues[i]);
    if (device->state == VHOST_STATE_BROKEN)
        return;
    device->broken_by = code;
    device->ran = device->state == VHOST_STATE_RUNNING;
    vhosti_enter(device, VHOST_STATE_BROKEN);
    if (device->options.on_broken != NULL)
        device->options.on_broken(device, device->options.user);
}

/* Stops what can still be stopped, for the positions, and cuts the device off. Returns the code. */
static int vhosti_break(vhost_device *device, int code)
{
    vhosti_begin(device);
    vhosti_submit_stop(device);
    (void)vhosti_fence(device);
    vhosti_sever(device, code);
    return code;
}

static void vhosti_unmap_pieces(vhost_queue *queue, uint64_t iova, uint64_t last)
{
    uint32_t i;
    for (i = 0; i < queue->piece_count; i++) {
        const vhost_iotlb *entry = &queue->pieces[i].entry;
        if (entry->iova <= last && entry->iova + (entry->size - 1) >= iova)
            queue->pieces[i].unmapped = true;
    }
}

VHOST_DEF int vhost_device_unmapped(vhost_device *device, uint64_t iova, uint64_t size)
{
    uint32_t i;
    if (device->state != VHOST_STATE_RUNNING || !device->behind_viommu)
        return 0;
    if (size == 0 || iova + (size - 1) < iova)
        return VHOSTI_FAIL(device, -EINVAL, VHOST_WHY_ARGUMENT, VHOST_OP_NONE, -1,
                           "unmapped 0x%llx+0x%llx", (vhosti_ull)iova, (vhosti_ull)size);
    for (i = 0; i < device->queue_count; i++)
        vhosti_unmap_pieces(&device->queues[i], iova, iova + (size - 1));
    vhosti_begin(device);
    vhosti_submit_forget(device, iova, size);
    if (vhosti_fence(device) < 0)
        return vhosti_break(device, vhosti_report_batch(device));
    return 0;
}

/* Of a start that failed: whether an operation that was accepted was carried out. */
static bool vhosti_was_done(const vhosti_batch *batch, vhost_op op)
{
    return batch->later_done ? batch->op != op : batch->op > op;
}

/* Of a start that failed: says why, and undoes it. */
static int vhosti_undo_start(vhost_device *device)
{
    int code = vhosti_report_batch(device);
    uint32_t i;
    device->told_config_call &= vhosti_was_done(&device->batch, VHOST_OP_SET_CONFIG_CALL);
    device->told_running &= vhosti_was_done(&device->batch, VHOST_OP_SET_RUNNING);
    for (i = 0; i < device->queue_count; i++)
        vhosti_judge_ring(device, i);
    if (device->batch.op <= VHOST_OP_SET_TABLE) /* whatever it has now */
        vhosti_drop_table(device->vm, &device->table);
    else
        vhosti_hold_table(device, device->vm->tables[device->facts.profile]);
    vhosti_begin(device);
    vhosti_submit_stop(device);
    if (vhosti_fence(device) < 0 || vhosti_why_of(code) == VHOST_WHY_BACKEND_LOST)
        vhosti_sever(device, code);
    else
        vhosti_take_rings_back(device);
    return code;
}

/* Makes the back-end run, or undoes it; the state is the caller's. */
static int vhosti_run(vhost_device *device)
{
    struct vhosti_table *table = device->vm->tables[device->facts.profile];
    int code;
    if (!vhosti_reserve_difference(device->vm, device->table, table))
        return VHOSTI_FAIL(device, -ENOMEM, VHOST_WHY_MEMORY, VHOST_OP_NONE, -1, "memory table");
    code = vhosti_begin_viommu(device);
    if (code < 0)
        return code;
    code = vhosti_map_rings(device);
    if (code < 0) {
        vhosti_end_viommu(device);
        return code;
    }
    vhosti_begin(device);
    vhosti_submit_start(device);
    if (vhosti_fence(device) < 0)
        return vhosti_undo_start(device);
    vhosti_hold_table(device, table);
    vhosti_hold_log(device, vhosti_log_of(device));
    return 0;
}

VHOST_DEF int vhost_device_start(vhost_device *device)
{
    int code;
    if (device->state != VHOST_STATE_STOPPED)
        return vhosti_wrong_state(device, "start");
    code = vhosti_run(device);
    if (code == 0)
        vhosti_enter(device, VHOST_STATE_RUNNING);
    return code;
}

VHOST_DEF int vhost_device_stop(vhost_device *device)
{
    int code;
    if (device->state == VHOST_STATE_BROKEN)
        return device->broken_by;
    if (device->state != VHOST_STATE_RUNNING)
        return 0;
    vhosti_begin(device);
    vhosti_submit_stop(device);
    code = vhosti_fence(device);
    if (code < 0) {
        (void)vhosti_report_batch(device);
        vhosti_sever(device, code);
        return code;
    }
    vhosti_take_rings_back(device);
    vhosti_enter(device, VHOST_STATE_STOPPED);
    return 0;
}

static bool vhosti_is_settled(vhost_device *device, vhost_queue *queue)
{
    if (queue->started)
        return !vhosti_is_packed(device) && !device->behind_viommu &&
               vhosti_ring_index(device, queue, VHOST_AVAIL) ==
                   vhosti_ring_index(device, queue, VHOST_USED);
    vhosti_look_again(device, queue);
    return !queue->unsettled;
}

VHOST_DEF int vhost_device_settled(vhost_device *device)
{
    uint32_t i;
    int settled = 1;
    if (device->state == VHOST_STATE_CLOSED)
        return vhosti_wrong_state(device, "settled");
    if (device->state == VHOST_STATE_BROKEN)
        return device->broken_by;
    for (i = 0; i < device->queue_count; i++)
        if (!vhosti_is_settled(device, &device->queues[i]))
            settled = 0;
    return settled;
}

/* ---- one queue of a running device (VIRTIO_F_RING_RESET) ---- */

static int vhosti_check_queue_call(vhost_device *device, uint32_t index, const char *call)
{
    if (device->state != VHOST_STATE_RUNNING)
        return vhosti_wrong_state(device, call);
    if (device->facts.queues_together)
        return VHOSTI_FAIL(device, -ENOTSUP, VHOST_WHY_NOT_SUPPORTED, VHOST_OP_NONE, (int)index,
                           "%s: all queues of %s start and stop together", call,
                           device->facts.name);
    return vhosti_check_call(device, index, call);
}

/* Takes one ring back; if the back-end does not let go of it, the device breaks by `code`. */
static int vhosti_stop_ring(vhost_device *device, uint32_t index, int code)
{
    vhost_queue *queue = &device->queues[index];
    vhosti_begin(device);
    if (queue->started)
        vhosti_submit_ring_stop(device, index);
    if (vhosti_fence(device) < 0)
        return vhosti_break(device, code < 0 ? code : vhosti_report_batch(device));
    vhosti_take_ring_back(device, queue);
    return code;
}

VHOST_DEF int vhost_queue_start(vhost_device *device, uint32_t queue)
{
    int code = vhosti_check_queue_call(device, queue, "queue start");
    if (code < 0)
        return code;
    if (device->queues[queue].started)
        return VHOSTI_FAIL(device, -EBUSY, VHOST_WHY_STATE, VHOST_OP_NONE, (int)queue,
                           "queue %lu is started", (unsigned long)queue);
    if (!device->queues[queue].ready)
        return VHOSTI_FAIL(device, -EINVAL, VHOST_WHY_QUEUE_NOT_READY, VHOST_OP_NONE, (int)queue,
                           "queue %lu", (unsigned long)queue);
    code = vhosti_map_ring(device, queue);
    if (code < 0)
        return code;
    vhosti_begin(device);
    vhosti_submit_pieces(device, &device->queues[queue]);
    vhosti_submit_ring(device, queue);
    vhosti_submit_kick(device, queue);
    vhosti_submit_enable(device, queue);
    if (vhosti_fence(device) == 0)
        return 0;
    vhosti_judge_ring(device, queue);
    return vhosti_stop_ring(device, queue, vhosti_report_batch(device));
}

VHOST_DEF int vhost_queue_stop(vhost_device *device, uint32_t queue)
{
    int code = vhosti_check_queue_call(device, queue, "queue stop");
    return code < 0 ? code : vhosti_stop_ring(device, queue, 0);
}

/* ---- reset ---- */

static void vhosti_forget_event(vhost_device *device, const vhost_event *event)
{
    if (event->wait_fd >= 0)
        (void)device->vm->options.events->test_and_clear(event, device->vm->options.user);
}

/* D19: nothing of a former life of the guest is left in a queue. */
static void vhosti_reset_queue(vhost_device *device, vhost_queue *queue)
{
    queue->ready = false;
    queue->desc = queue->avail = queue->used = 0;
    memset(&queue->position, 0, sizeof queue->position);
    queue->unsettled = false;
    vhosti_forget_event(device, &queue->masked_event);
    vhosti_forget_event(device, &queue->error_event);
}

static int vhosti_reset_backend(vhost_device *device)
{
    if (device->ops->reset == NULL)
        return 0;
    vhosti_begin(device);
    VHOSTI_TRY(device, VHOST_OP_RESET, -1, 0, device->ops->reset(device->backend));
    if (vhosti_fence(device) == 0)
        return 0;
    (void)vhosti_report_batch(device);
    return vhosti_break(device, device->last_error.code);
}

static int vhosti_reopen(vhost_device *device)
{
    int code;
    vhosti_close(device);
    vhosti_drop_table(device->vm, &device->table);
    vhosti_drop_log(device->vm, &device->log);
    code = vhosti_open(device);
    if (code == 0)
        code = vhosti_join_log(device);
    if (code < 0)
        vhosti_close(device);
    return code;
}

VHOST_DEF int vhost_device_reset(vhost_device *device)
{
    uint32_t i;
    int code;
    if (device->state != VHOST_STATE_STOPPED && device->state != VHOST_STATE_BROKEN)
        return vhosti_wrong_state(device, "reset");
    if (device->state == VHOST_STATE_BROKEN) {
        code = vhosti_reopen(device);
    } else {
        code = vhosti_reset_backend(device);
    }
    if (code < 0)
        return code;
    memset(&device->acked, 0, sizeof device->acked);
    for (i = 0; i < device->queue_count; i++)
        vhosti_reset_queue(device, &device->queues[i]);
    vhosti_forget_event(device, &device->config_event);
    vhosti_enter(device, VHOST_STATE_STOPPED);
    return 0;
}

/* ---- recovery: as if nothing had been ---- */

/* Whether every ring can go on: known before the back-end is opened. */
static int vhosti_check_positions(vhost_device *device)
{
    uint32_t i;
    int code = 0;
    for (i = 0; i < device->queue_count && code == 0; i++)
        if (device->ran && device->queues[i].ready)
            code = vhosti_check_queue(device, i);
    return code;
}

/* What the guest, or the map, was promised before must hold. */
static int vhosti_check_less(vhost_device *device, const vhost_facts *before)
{
    const vhost_facts *now = &device->facts;
    vhost_features lost = vhosti_impossible(device, &device->acked);
    int i;
    for (i = 0; i < 2; i++)
        lost.word[i] |= device->acked.word[i] & before->offered.word[i] & ~now->offered.word[i];
    if ((lost.word[0] | lost.word[1]) != 0)
        return VHOSTI_FAIL(device, -EINVAL, VHOST_WHY_BACKEND_LESS, VHOST_OP_OPEN, -1,
                           "without features 0x%016llx%016llx", (vhosti_ull)lost.word[1],
                           (vhosti_ull)lost.word[0]);
    if (now->max_regions != 0 &&
        (before->max_regions == 0 || now->max_regions < before->max_regions))
        return VHOSTI_FAIL(device, -ENOSPC, VHOST_WHY_BACKEND_LESS, VHOST_OP_OPEN, -1,
                           "%lu slots, %lu before (0: no limit)", (unsigned long)now->max_regions,
                           (unsigned long)before->max_regions);
    if (now->profile == before->profile && now->log_kind == before->log_kind)
        return 0;
    return VHOSTI_FAIL(device, -EINVAL, VHOST_WHY_BACKEND_LESS, VHOST_OP_OPEN, -1,
                       "table of kind %d, log of kind %d", (int)now->profile, (int)now->log_kind);
}

VHOST_DEF int vhost_device_recover(vhost_device *device)
{
    vhost_facts before = device->facts;
    int code;
    if (device->state != VHOST_STATE_BROKEN)
        return vhosti_wrong_state(device, "recover");
    code = vhosti_check_positions(device);
    if (code == 0)
        code = vhosti_reopen(device);
    if (code == 0)
        code = vhosti_check_less(device, &before);
    if (code == 0 && device->ran)
        code = vhosti_run(device);
    if (code == 0) {
        vhosti_enter(device, device->ran ? VHOST_STATE_RUNNING : VHOST_STATE_STOPPED);
        return 0;
    }
    vhosti_close(device);
    device->facts = before;
    vhosti_drop_unused_tables(device->vm);
    return code;
}

/* ---- config space (X1) ---- */

static int vhosti_check_config(vhost_device *device, vhost_op op, uint32_t offset, uint32_t size)
{
    const vhost_backend_ops *ops = device->ops;
    if (device->state != VHOST_STATE_STOPPED && device->state != VHOST_STATE_RUNNING)
        return vhosti_wrong_state(device, vhost_op_name(op));
    if (op == VHOST_OP_GET_CONFIG ? ops->get_config == NULL : ops->set_config == NULL)
        return VHOSTI_FAIL(device, -ENOTSUP, VHOST_WHY_NOT_SUPPORTED, op, -1, "%s",
                           vhost_op_name(op));
    if (size == 0 || offset + size < size)
        return VHOSTI_FAIL(device, -EINVAL, VHOST_WHY_ARGUMENT, VHOST_OP_NONE, -1,
                           "config bytes %lu+%lu", (unsigned long)offset, (unsigned long)size);
    return 0;
}

VHOST_DEF int vhost_device_get_config(vhost_device *device, uint32_t offset, void *bytes,
                                      uint32_t size)
{
    int code = vhosti_check_config(device, VHOST_OP_GET_CONFIG, offset, size);
    if (code < 0)
        return code;
    vhosti_begin(device);
    VHOSTI_TRY(device, VHOST_OP_GET_CONFIG, -1, offset,
               device->ops->get_config(device->backend, offset, bytes, size));
    return vhosti_fence(device) < 0 ? vhosti_report_batch(device) : 0;
}

VHOST_DEF int vhost_device_set_config(vhost_device *device, uint32_t offset, const void *bytes,
                                      uint32_t size)
{
    int code = vhosti_check_config(device, VHOST_OP_SET_CONFIG, offset, size);
    if (code < 0)
        return code;
    vhosti_begin(device);
    VHOSTI_TRY(device, VHOST_OP_SET_CONFIG, -1, offset,
               device->ops->set_config(device->backend, offset, bytes, size));
    return vhosti_fence(device) < 0 ? vhosti_report_batch(device) : 0;
}

/* ---- events (B6) ---- */

static void vhosti_put_fd(int fd, int *fds, uint32_t capacity, uint32_t *count)
{
    if (fd < 0)
        return;
    if (*count < capacity)
        fds[*count] = fd;
    ++*count;
}

VHOST_DEF uint32_t vhost_device_poll_fds(const vhost_device *device, int *fds, uint32_t capacity)
{
    uint32_t i, count = 0;
    if (device->state == VHOST_STATE_CLOSED)
        return 0;
    if (device->state != VHOST_STATE_BROKEN && device->ops->poll_fds != NULL) {
        int backend = device->ops->poll_fds(device->backend, fds, capacity);
        count = backend > 0 ? (uint32_t)backend : 0;
    }
    for (i = 0; i < device->queue_count; i++)
        vhosti_put_fd(device->queues[i].error_event.wait_fd, fds, capacity, &count);
    vhosti_put_fd(device->config_event.wait_fd, fds, capacity, &count);
    return count;
}

static int vhosti_process_backend(vhost_device *device)
{
    int code;
    if (device->state == VHOST_STATE_BROKEN || device->ops->process == NULL)
        return 0;
    code = device->ops->process(device->backend);
    if (code >= 0)
        return 0;
    (void)VHOSTI_FAIL(device, code, vhosti_why_of(code), VHOST_OP_PROCESS, -1,
                      "process, errno %d: %s", -code, vhosti_words(device, VHOST_OP_PROCESS, code));
    return vhosti_break(device, code);
}

static int vhosti_process_queue(vhost_device *device, uint32_t i)
{
    int code = vhosti_test_event(device, &device->queues[i].error_event, (int)i);
    if (code <= 0)
        return code;
    vhosti_note(device, VHOST_WHY_RING_ERROR, (int)i, "queue %lu", (unsigned long)i);
    if (device->options.on_queue_error != NULL)
        device->options.on_queue_error(device, i, device->options.user);
    return 0;
}

static int vhosti_process_config(vhost_device *device)
{
    int code = vhosti_test_event(device, &device->config_event, -1);
    if (code > 0 && device->options.on_config != NULL)
        device->options.on_config(device, device->options.user);
    return code < 0 ? code : 0;
}

VHOST_DEF int vhost_device_process(vhost_device *device)
{
    uint32_t i;
    int code;
    if (device->state == VHOST_STATE_CLOSED)
        return 0;
    code = vhosti_process_backend(device);
    for (i = 0; i < device->queue_count && code == 0; i++)
        code = vhosti_process_queue(device, i);
    return code < 0 ? code : vhosti_process_config(device);
}

/* >>commit ------------------------------------------------------------------------------------ */

VHOST_DEF int vhost_vm_init(vhost_vm *vm, const vhost_vm_options *options)
{
    memset(vm, 0, sizeof *vm);
    if (options != NULL)
        vm->options = *options;
    if (vm->options.allocate == NULL)
        vm->options.allocate = vhosti_default_allocate;
    if (vm->options.log == NULL)
        vm->options.log = &vhosti_default_log;
#if !defined(VHOST_NO_POSIX)
    if (vm->options.events == NULL)
        vm->options.events = &vhosti_posix_events;
#endif
    if (vm->options.events == NULL)
        return VHOSTI_FAIL_VM(vm, -EINVAL, VHOST_WHY_ARGUMENT, "options.events is missing");
    return 0;
}

VHOST_DEF int vhost_vm_cleanup(vhost_vm *vm)
{
    int i;
    if (vm->devices != NULL)
        return VHOSTI_FAIL_VM(vm, -EBUSY, VHOST_WHY_STATE, "cleanup with devices attached");
    for (i = 0; i < 2; i++) {
        vhosti_free(vm, vm->maps[i].sections);
        vhosti_free(vm, vm->maps[i].spans);
        memset(&vm->maps[i], 0, sizeof vm->maps[i]);
    }
    vhosti_drop_logs(vm);
    vm->logging = false;
    vhosti_free(vm, vm->difference);
    vm->difference = NULL;
    vm->difference_capacity = 0;
    vm->in_transaction = false;
    return 0;
}

/* ---- before any back-end is told: whatever may fail ---- */

typedef struct vhosti_commit { /* what will be in force, tables: or was; NULL: not in use */
    struct vhosti_table *tables[VHOST_PROFILE_COUNT];
} vhosti_commit;

static int vhosti_check_table(vhost_device *device, const struct vhosti_table *fresh)
{
    vhost_vm *vm = device->vm;
    if (!vhosti_fits(device, fresh))
        return VHOSTI_FAIL_VM(vm, -ENOSPC, VHOST_WHY_TOO_MANY_REGIONS, "%lu, and %s has %lu slots",
                              (unsigned long)fresh->table.count, device->facts.name,
                              (unsigned long)device->facts.max_regions);
    if (!vhosti_reserve_difference(vm, device->table, fresh))
        return VHOSTI_FAIL_VM(vm, -ENOMEM, VHOST_WHY_MEMORY, "a difference of tables");
    return 0;
}

/* A table for each profile in use, the old one where nothing changes for it. */
static int vhosti_build_tables(vhost_vm *vm, vhosti_commit *commit)
{
    int profile;
    for (profile = 0; profile < VHOST_PROFILE_COUNT; profile++) {
        struct vhosti_table *old = vm->tables[profile], *built;
        if (old == NULL)
            continue;
        built = vhosti_build_table(vm, vhosti_scratch(vm), (vhost_profile)profile);
        if (built == NULL)
            return VHOSTI_FAIL_VM(vm, -ENOMEM, VHOST_WHY_MEMORY, "a table of %lu regions",
                                  (unsigned long)vhosti_scratch(vm)->count);
        if (vhosti_same_table(&old->table, &built->table)) {
            vhosti_drop_table(vm, &built);
            built = vhosti_keep_table(old);
        }
        commit->tables[profile] = built;
    }
    return 0;
}

/* A successor for each log that is too small for what may be written. */
static int vhosti_grow_logs(vhost_vm *vm)
{
    uint64_t need = vhosti_log_size(vhosti_scratch(vm)), roomy = need + VHOSTI_LOG_SLACK;
    struct vhosti_log *log;
    for (log = vm->logs; log != NULL; log = log->next) {
        int code = 0;
        if (log->memory.size < need && log->owner != NULL)
            code = vhosti_make_log(vm, log->kind, log->owner, roomy, &log->successor);
        if (code < 0)
            return VHOSTI_FAIL_VM(vm, code, VHOST_WHY_LOG_MEMORY, "0x%llx bytes, errno %d",
                                  (vhosti_ull)roomy, -code);
    }
    return 0;
}

static void vhosti_drop_commit(vhost_vm *vm, vhosti_commit *commit)
{
    struct vhosti_log *log;
    int i;
    for (i = 0; i < VHOST_PROFILE_COUNT; i++)
        vhosti_drop_table(vm, &commit->tables[i]);
    for (log = vm->logs; log != NULL; log = log->next)
        vhosti_drop_log(vm, &log->successor);
}

static int vhosti_prepare_commit(vhost_vm *vm, vhosti_commit *commit)
{
    vhost_device *device;
    int code = vhosti_build_spans(vm, vhosti_scratch(vm));
    vhosti_number_sections(vm);
    if (code == 0)
        code = vhosti_build_tables(vm, commit);
    if (code == 0)
        code = vhosti_grow_logs(vm);
    for (device = vm->devices; device != NULL && code == 0; device = device->next)
        code = vhosti_check_table(device, commit->tables[device->facts.profile]);
    if (code < 0)
        vhosti_drop_commit(vm, commit);
    return code;
}

/* ---- from here on nothing fails but devices ---- */

/* Whether all parts of a running ring are where they were; reports the first that is not. */
static int vhosti_check_ring_stays(vhost_device *device, uint32_t index, const vhost_table *table)
{
    const vhost_queue *queue = &device->queues[index];
    vhost_why why = VHOST_WHY_NONE;
    uint32_t i;
    int part = 0;
    for (i = 0; i < queue->piece_count && why == VHOST_WHY_NONE; i++) {
        const vhost_iotlb *entry = &queue->pieces[i].entry;
        part = queue->pieces[i].part;
        why = vhosti_check_regions(table, device->facts.profile, entry->gpa, entry->size,
                                   entry->host);
    }
    if (why != VHOST_WHY_NONE)
        return vhosti_fail_part(device, -EFAULT, why, index, part);
    for (part = 0; part < VHOSTI_PART_COUNT && !device->behind_viommu; part++) {
        const vhost_mapping *mapping = &queue->rings.part[part];
        why = vhosti_check_place(device, mapping, vhosti_is_written(device, part));
        if (why == VHOST_WHY_NONE)
            why = vhosti_check_reach(device, table, mapping);
        if (why != VHOST_WHY_NONE)
            return vhosti_fail_part(device, -EFAULT, why, index, part);
    }
    return 0;
}

/* R1, R2, D1, D2 */
static int vhosti_check_rings_stay(vhost_device *device, const vhost_table *table)
{
    uint32_t i;
    int code = 0;
    for (i = 0; i < device->queue_count && code == 0; i++)
        if (device->queues[i].started)
            code = vhosti_check_ring_stays(device, i, table);
    return code;
}

/* Region by region, memory that changes is gone for a moment: no ring may run then (U5). */
static bool vhosti_must_pause(vhost_device *device)
{
    struct vhosti_table *table = device->vm->tables[device->facts.profile];
    return device->facts.profile == VHOST_PROFILE_SLOTS && device->table != table &&
           vhosti_find_change(device->vm, device->table, table)->in_place;
}

/* Of all rings, where they go on; a ring that does not say it cannot. */
static int vhosti_check_pause(vhost_device *device)
{
    uint32_t i;
    if (vhosti_fence(device) < 0)
        return vhosti_report_batch(device);
    for (i = 0; i < device->queue_count; i++) {
        const vhost_queue *queue = &device->queues[i];
        if (queue->started && (!queue->base.answered || !vhosti_is_answer(device, queue)))
            return VHOSTI_FAIL(device, -EPROTO, VHOST_WHY_POSITION_GUESSED, VHOST_OP_GET_RING_BASE,
                               (int)i, "queue %lu, stopped for a commit", (unsigned long)i);
    }
    return 0;
}

static void vhosti_finish_pause(vhost_device *device)
{
    int code = vhosti_check_pause(device);
    uint32_t i;
    if (code < 0) {
        device->pausing = false;
        (void)vhosti_break(device, code);
        return;
    }
    for (i = 0; i < device->queue_count; i++) {
        vhost_queue *queue = &device->queues[i];
        if (!queue->started)
            continue;
        vhosti_take_answer(device, queue);
        queue->started = false;
        queue->paused = true;
    }
}

/* The paused rings again, in the order of a start. */
static void vhosti_submit_resume(vhost_device *device)
{
    uint32_t i;
    for (i = 0; i < device->queue_count; i++)
        if (device->queues[i].paused)
            vhosti_submit_ring(device, i);
    for (i = 0; i < device->queue_count; i++)
        if (device->queues[i].paused)
            vhosti_submit_kick(device, i);
    for (i = 0; i < device->queue_count; i++)
        if (device->queues[i].paused)
            vhosti_submit_enable(device, i);
}

/* After the fence: a ring that goes on is paused no more; of a device that breaks, it is known
   which rings went on. */
static void vhosti_finish_resume(vhost_device *device, bool resumed)
{
    uint32_t i;
    for (i = 0; i < device->queue_count; i++) {
        if (device->queues[i].paused && !resumed)
            vhosti_judge_ring(device, i);
        if (resumed)
            device->queues[i].paused = false;
    }
}

/* At each instant the log covers every region that the back-end has: it grows before the table does
   (C6). */
static void vhosti_submit_change(vhost_device *device)
{
    struct vhosti_table *table = device->vm->tables[device->facts.profile];
    struct vhosti_log *log = vhosti_log_of(device);
    if (device->log != log)
        vhosti_submit_log(device, log);
    if (device->table != table && (vhosti_submit_table(device, table) || device->pausing))
        vhosti_submit_iotlb_anew(device);
    device->pausing = false;
    vhosti_submit_resume(device);
}

static void vhosti_submit_commit(vhost_device *device)
{
    vhosti_begin(device);
    if (device->doomed)
        vhosti_submit_stop(device);
    else
        vhosti_submit_change(device);
}

static void vhosti_finish_commit(vhost_device *device)
{
    int code = vhosti_fence(device);
    vhosti_finish_resume(device, code == 0);
    if (device->doomed) {
        vhosti_sever(device, device->last_error.code);
    } else if (code < 0) {
        (void)vhosti_break(device, vhosti_report_batch(device));
    } else {
        vhosti_hold_table(device, device->vm->tables[device->facts.profile]);
        vhosti_hold_log(device, vhosti_log_of(device));
    }
    device->doomed = false;
}

/* Finds out which devices cannot go along, and stops the rings of those that can only so. */
static void vhosti_pause_devices(vhost_vm *vm)
{
    vhost_device *device;
    for (device = vm->devices; device != NULL; device = device->next) {
        const vhost_table *table = vhost_device_table(device);
        if (device->state != VHOST_STATE_RUNNING)
            continue;
        device->doomed = vhosti_check_rings_stay(device, table) < 0;
        device->pausing = !device->doomed && vhosti_must_pause(device);
        if (!device->pausing)
            continue;
        vhosti_begin(device);
        vhosti_submit_ring_stops(device);
        vhosti_push(device);
    }
    for (device = vm->devices; device != NULL; device = device->next)
        if (device->pausing)
            vhosti_finish_pause(device);
}

/* Submits to all before it waits for any, so that waits do not add up. */
static void vhosti_tell_devices(vhost_vm *vm)
{
    vhost_device *device;
    vhosti_pause_devices(vm);
    for (device = vm->devices; device != NULL; device = device->next)
        if (device->state == VHOST_STATE_RUNNING) {
            vhosti_submit_commit(device);
            vhosti_push(device);
        }
    for (device = vm->devices; device != NULL; device = device->next)
        if (device->state == VHOST_STATE_RUNNING)
            vhosti_finish_commit(device);
}

/* Another process that was cut off, and may not know it yet. */
static bool vhosti_has_straggler(const vhost_vm *vm, const struct vhosti_log *log)
{
    const vhost_device *device = vm->devices;
    while (device != NULL && (device->state != VHOST_STATE_BROKEN || device->log != log))
        device = device->next;
    return device != NULL && log->kind == VHOST_DIRTY_SHARED;
}

/* What is left in an old log goes on in the new one (L3). Back-ends do not write to the old one any
   more; one that may stays in the list, as if its device had been cleaned up. */
static void vhosti_replace_logs(vhost_vm *vm)
{
    struct vhosti_log **link;
    for (link = &vm->logs; *link != NULL; link = &(*link)->next) {
        struct vhosti_log *old = *link, *successor = old->successor;
        if (successor == NULL)
            continue;
        vhosti_log_add(successor, old);
        successor->next = old->next;
        *link = successor;
        if (vhosti_has_straggler(vm, old)) {
            old->owner = NULL;
            old->successor = NULL;
            successor->next = old;
        } else {
            vhosti_drop_log(vm, &old);
        }
    }
}

/* Before anybody is told, so that a miss in a fence finds what is to come. */
static void vhosti_enforce_map(vhost_vm *vm, vhosti_commit *commit)
{
    int i;
    vm->current = !vm->current;
    for (i = 0; i < VHOST_PROFILE_COUNT; i++) {
        struct vhosti_table *old = vm->tables[i];
        vm->tables[i] = commit->tables[i];
        commit->tables[i] = old;
    }
}

/* When all were told. */
static void vhosti_finish_map(vhost_vm *vm, vhosti_commit *commit)
{
    int i;
    for (i = 0; i < VHOST_PROFILE_COUNT; i++)
        vhosti_drop_table(vm, &commit->tables[i]);
    vhosti_replace_logs(vm);
}

/* ---- then the logs may shrink (C6) ---- */

/* Moves the running devices to the successors of their logs. One that does not move is cut off. */
static void vhosti_move_to_logs(vhost_vm *vm)
{
    vhost_device *device;
    for (device = vm->devices; device != NULL; device = device->next)
        if (device->state == VHOST_STATE_RUNNING && device->log != vhosti_log_of(device)) {
            vhosti_begin(device);
            vhosti_submit_log(device, vhosti_log_of(device));
            vhosti_push(device);
        }
    for (device = vm->devices; device != NULL; device = device->next) {
        if (device->state != VHOST_STATE_RUNNING || device->log == vhosti_log_of(device))
            continue;
        if (vhosti_fence(device) < 0)
            (void)vhosti_break(device, vhosti_report_batch(device));
        else
            vhosti_hold_log(device, vhosti_log_of(device));
    }
}

/* No back-end has memory beyond the top any more, so nothing is added there. What is there already
   stays until it was synced: that memory may come back. Without memory for it, nothing shrinks. */
static void vhosti_shrink_logs(vhost_vm *vm)
{
    uint64_t need = vhosti_log_size(vhosti_current(vm));
    struct vhosti_log *log;
    for (log = vm->logs; log != NULL; log = log->next)
        if (log->memory.size > need + VHOSTI_LOG_SLACK && log->owner != NULL &&
            vhosti_log_is_clean(log, need / sizeof(vhosti_word)))
            (void)vhosti_make_log(vm, log->kind, log->owner, need, &log->successor);
    vhosti_move_to_logs(vm);
    vhosti_replace_logs(vm);
}

static void vhosti_trace_commit(vhost_vm *vm, bool changed)
{
    vhost_trace trace = vhosti_make_trace(VHOST_TRACE_COMMIT, NULL);
    trace.value = vhosti_current(vm)->count;
    trace.result = changed;
    vhosti_trace(vm, &trace);
}

VHOST_DEF int vhost_memory_commit(vhost_vm *vm)
{
    vhosti_commit commit;
    bool changed;
    int code;
    if (!vm->in_transaction)
        return VHOSTI_FAIL_VM(vm, -EBUSY, VHOST_WHY_STATE, "no transaction is open");
    vm->in_transaction = false;
    if (vm->transaction_error < 0)
        return VHOSTI_FAIL_VM(vm, -EINVAL, VHOST_WHY_SECTION_LOST, "commit refused");
    changed = !vhosti_same_sections(vhosti_current(vm), vhosti_scratch(vm));
    if (changed) {
        memset(&commit, 0, sizeof commit);
        code = vhosti_prepare_commit(vm, &commit);
        if (code < 0)
            return code;
        vhosti_enforce_map(vm, &commit);
        vhosti_tell_devices(vm);
        vhosti_finish_map(vm, &commit);
        vhosti_shrink_logs(vm);
    }
    vhosti_trace_commit(vm, changed);
    return 0;
}

/* >>sync -------------------------------------------------------------------------------------- */

/* ---- logging on and off, on all devices or on none (G1 to G6) ---- */

static int vhosti_need_logs(vhost_vm *vm)
{
    const vhost_device *device;
    int code = 0;
    for (device = vm->devices; device != NULL && code == 0; device = device->next)
        code = vhosti_need_log(device);
    return code;
}

/* The base exists before anything is logged to it (G2). */
static void vhosti_submit_log_on(vhost_device *device)
{
    vhost_features sent = vhosti_sent_features(device);
    uint32_t i;
    vhosti_submit_log(device, vhosti_log_of(device));
    VHOSTI_SUBMIT(device, VHOST_OP_SET_FEATURES, -1, sent.word[0],
                  device->ops->set_features(device->backend, &sent));
    vhosti_submit_iotlb_anew(device);
    for (i = 0; i < device->queue_count; i++) {
        vhost_queue *queue = &device->queues[i];
        if (!queue->started)
            continue;
        queue->rings.log = true;
        VHOSTI_SUBMIT(device, VHOST_OP_SET_RING_ADDRESSES, i, queue->used,
                      device->ops->set_ring_addresses(device->backend, i, &queue->rings));
    }
}

/* Log on backwards, and whatever fails: all is tried. */
static void vhosti_submit_log_off(vhost_device *device)
{
    vhost_features sent = vhosti_sent_features(device);
    uint32_t i;
    for (i = device->queue_count; i-- > 0;) {
        vhost_queue *queue = &device->queues[i];
        if (!queue->started)
            continue;
        queue->rings.log = false;
        VHOSTI_TRY(device, VHOST_OP_SET_RING_ADDRESSES, i, queue->used,
                   device->ops->set_ring_addresses(device->backend, i, &queue->rings));
    }
    VHOSTI_TRY(device, VHOST_OP_SET_FEATURES, -1, sent.word[0],
               device->ops->set_features(device->backend, &sent));
    vhosti_submit_iotlb_anew(device);
}

/* A device that dies now is broken, and no obstacle (G4, D3); one that refuses is. */
static int vhosti_finish_log_on(vhost_device *device)
{
    int code = vhosti_fence(device);
    if (code == 0) {
        vhosti_hold_log(device, vhosti_log_of(device));
        return 0;
    }
    (void)vhosti_report_batch(device);
    if (vhosti_why_of(code) != VHOST_WHY_BACKEND_LOST)
        return code;
    (void)vhosti_break(device, code);
    return 0;
}

static int vhosti_switch_log_on(vhost_vm *vm)
{
    vhost_device *device;
    int first = 0;
    vm->logging = true;
    for (device = vm->devices; device != NULL; device = device->next)
        if (device->state == VHOST_STATE_RUNNING) {
            vhosti_begin(device);
            vhosti_submit_log_on(device);
            vhosti_push(device);
        }
    for (device = vm->devices; device != NULL; device = device->next) {
        int code = device->state == VHOST_STATE_RUNNING ? vhosti_finish_log_on(device) : 0;
        if (code < 0 && first == 0) {
            vm->last_error = device->last_error; /* said already */
            first = code;
        }
    }
    return first;
}

/* Returns the first error; a device that does not stop logging is cut off (D3). */
static int vhosti_switch_log_off(vhost_vm *vm)
{
    vhost_device *device;
    int first = 0;
    vm->logging = false;
    for (device = vm->devices; device != NULL; device = device->next)
        if (device->state == VHOST_STATE_RUNNING) {
            vhosti_begin(device);
            vhosti_submit_log_off(device);
            vhosti_push(device);
        }
    for (device = vm->devices; device != NULL; device = device->next) {
        int code = device->state == VHOST_STATE_RUNNING ? vhosti_fence(device) : 0;
        if (code == 0)
            continue;
        (void)vhosti_break(device, vhosti_report_batch(device));
        if (first == 0)
            vm->last_error = device->last_error;
        first = first < 0 ? first : code;
    }
    vhosti_drop_logs(vm);
    return first;
}

VHOST_DEF int vhost_log_start(vhost_vm *vm)
{
    const vhost_device *blocker;
    vhost_error error;
    vhost_why why;
    int code;
    if (vm->in_transaction)
        return VHOSTI_FAIL_VM(vm, -EBUSY, VHOST_WHY_STATE, "log start in a transaction");
    if (vm->logging)
        return 0;
    blocker = vhost_log_blocker(vm, NULL, &why);
    if (blocker != NULL)
        return VHOSTI_FAIL_VM(vm, -ENOTSUP, why, "%s", blocker->facts.name);
    code = vhosti_need_logs(vm);
    if (code < 0) {
        vhosti_drop_logs(vm);
        return VHOSTI_FAIL_VM(vm, code, VHOST_WHY_LOG_MEMORY, "0x%llx bytes, errno %d",
                              (vhosti_ull)vhosti_log_size(vhosti_current(vm)), -code);
    }
    code = vhosti_switch_log_on(vm);
    if (code == 0)
        return 0;
    error = vm->last_error;
    (void)vhosti_switch_log_off(vm);
    vm->last_error = error;
    return code;
}

VHOST_DEF int vhost_log_stop(vhost_vm *vm)
{
    if (vm->in_transaction)
        return VHOSTI_FAIL_VM(vm, -EBUSY, VHOST_WHY_STATE, "log stop in a transaction");
    return vm->logging ? vhosti_switch_log_off(vm) : 0;
}

/* ---- one pass over the log, whatever the number of devices and sections (Y1 to Y5) ----

   An exchange waits for all that was begun before it, and what comes after it waits for it. So the
   loop over dirty words has in variables of its own what it can. */

#define VHOSTI_LINE_PAGES (VHOSTI_LINE * VHOSTI_WORD_PAGES)
#define VHOSTI_AHEAD      (16 * VHOSTI_LINE_PAGES)

#if defined(__GNUC__)
#define VHOSTI_PREFETCH(pointer) __builtin_prefetch((pointer), 1)
#else
#define VHOSTI_PREFETCH(pointer) ((void)(pointer))
#endif

typedef struct vhosti_walk {
    const vhost_vm *vm;
    vhost_log_sink *sink;
    const struct vhosti_log *log;     /* the longest: it has the words of all others */
    uint32_t span;                    /* none before it reaches the current word */
    uint64_t known_first, known_last; /* pages of that span, or the one before it */
    uint64_t run_page;                /* range sink: the run of dirty pages not yet handed over */
    uint64_t run_count;               /* its pages */
    vhosti_word others;               /* bit i: other logs had bits in the word at index + i, */
    vhosti_word taken[VHOSTI_WORD_PAGES]; /* these */
} vhosti_walk;

/* Sums of 2, then 4, then 8 bits side by side, then all of those in the highest byte. */
static unsigned vhosti_count_bits(vhosti_word word)
{
    word -= word >> 1 & VHOSTI_WORD_ALL / 3;
    word = (word & VHOSTI_WORD_ALL / 5) + (word >> 2 & VHOSTI_WORD_ALL / 5);
    word = (word + (word >> 4)) & VHOSTI_WORD_ALL / 17;
    return (unsigned)(word * (VHOSTI_WORD_ALL / 255) >> (VHOSTI_WORD_PAGES - 8));
}

/* Which of the pages from `first` on, a word full, are in some section. Ascending calls. */
static vhosti_word vhosti_known_pages(vhosti_walk *walk, uint64_t first)
{
    const vhosti_map *map = &walk->vm->maps[walk->vm->current];
    uint64_t last = first + VHOSTI_WORD_PAGES - 1;
    vhosti_word known = 0;
    uint32_t i;
    while (walk->span < map->span_count && map->spans[walk->span].last / VHOST_PAGE < first)
        walk->span++;
    for (i = walk->span; i < map->span_count; i++) {
        uint64_t begin = map->spans[i].gpa / VHOST_PAGE, end = map->spans[i].last / VHOST_PAGE;
        if (begin > last)
            break;
        walk->known_first = begin;
        walk->known_last = end;
        known |=
            vhosti_bits(begin > first ? begin - first : 0, end < last ? end - first : last - first);
    }
    return known;
}

static vhosti_word vhosti_drop_unknown(vhosti_walk *walk, uint64_t first, vhosti_word bits)
{
    vhosti_word known = bits & vhosti_known_pages(walk, first);
    walk->sink->pages_dropped += vhosti_count_bits(bits & ~known);
    return known;
}

static void vhosti_end_run(vhosti_walk *walk)
{
    if (walk->run_count > 0)
        walk->sink->range(walk->run_page * VHOST_PAGE, walk->run_count * VHOST_PAGE,
                          walk->sink->user);
    walk->run_count = 0;
}

static void vhosti_add_run(vhosti_walk *walk, uint64_t page, uint64_t count)
{
    if (walk->run_count > 0 && walk->run_page + walk->run_count == page) {
        walk->run_count += count;
        return;
    }
    vhosti_end_run(walk);
    walk->run_page = page;
    walk->run_count = count;
}

static void vhosti_sink_ranges(vhosti_walk *walk, uint64_t first, vhosti_word bits)
{
    while (bits != 0) {
        unsigned from = vhosti_lowest_bit(bits);
        vhosti_word gaps = ~(bits >> from);
        unsigned count = gaps != 0 ? vhosti_lowest_bit(gaps) : (unsigned)VHOSTI_WORD_PAGES;
        vhosti_add_run(walk, first + from, count);
        bits &= from + count < VHOSTI_WORD_PAGES ? VHOSTI_WORD_ALL << (from + count) : 0;
    }
}

/* `place` is where the first page of `bits` is in the window, and 64. The window holds every page
   of the sync: what would fall out of it has no bit. */
static void vhosti_sink_bits(uint64_t *window, uint64_t place, vhosti_word bits)
{
    uint64_t low = (uint64_t)bits << (place % 64);
    uint64_t high = (uint64_t)bits >> 1 >> (63 - place % 64);
    if (low != 0)
        window[place / 64 - 1] |= low;
    if (high != 0)
        window[place / 64] |= high;
}

/* Takes what other logs have. (It does not go through the log that is walked: a back-end could
   clear there what is not its own.) */
static void vhosti_take_others(vhosti_walk *walk, uint64_t index, uint64_t count, vhosti_word mask)
{
    const struct vhosti_log *log;
    vhosti_word dirty;
    walk->others = 0;
    for (log = walk->vm->logs; log != NULL; log = log->next) {
        dirty = log != walk->log ? vhosti_log_find(log, index, count) : 0;
        for (; dirty != 0; dirty &= dirty - 1) {
            unsigned i = vhosti_lowest_bit(dirty);
            vhosti_word bits = vhosti_log_take(log, index + i, mask);
            walk->taken[i] = (walk->others >> i & 1) != 0 ? walk->taken[i] | bits : bits;
            walk->others |= (vhosti_word)1 << i;
        }
    }
}

/* Takes the pages of `mask` out of the words of `dirty`: bit i for that at index + i. */
static void vhosti_take_words(vhosti_walk *walk, uint64_t index, vhosti_word dirty,
                              vhosti_word mask)
{
    uint64_t *window = walk->sink->bits;
    uint64_t place = index * VHOSTI_WORD_PAGES + 64 - walk->sink->bits_gpa / VHOST_PAGE, pages = 0;
    vhosti_word others = walk->others;
    for (; dirty != 0; dirty &= dirty - 1) {
        unsigned i = vhosti_lowest_bit(dirty);
        uint64_t first = (index + i) * VHOSTI_WORD_PAGES;
        vhosti_word bits = vhosti_log_take(walk->log, index + i, mask);
        if ((others >> i & 1) != 0)
            bits |= walk->taken[i];
        if (first < walk->known_first || first + (VHOSTI_WORD_PAGES - 1) > walk->known_last)
            bits = vhosti_drop_unknown(walk, first, bits);
        pages += vhosti_count_bits(bits);
        if (window != NULL)
            vhosti_sink_bits(window, place + i * VHOSTI_WORD_PAGES, bits);
        else
            vhosti_sink_ranges(walk, first, bits);
    }
    walk->sink->pages_dirty += pages;
}

/* At most a word full of words. Where some are dirty, so are some further on, for which the window
   is not in the cache yet. */
static void vhosti_sync_words(vhosti_walk *walk, uint64_t index, uint64_t count, vhosti_word mask)
{
    const vhost_log_sink *sink = walk->sink;
    uint64_t ahead = index * VHOSTI_WORD_PAGES - sink->bits_gpa / VHOST_PAGE + VHOSTI_AHEAD;
    vhosti_word dirty;
    vhosti_take_others(walk, index, count, mask);
    dirty = vhosti_log_find(walk->log, index, count) | walk->others;
    if (dirty == 0)
        return;
    for (; sink->bits != NULL && count > 0 && ahead < sink->bits_count;
         ahead += VHOSTI_LINE_PAGES) {
        VHOSTI_PREFETCH(sink->bits + ahead / 64);
        count -= count < VHOSTI_LINE ? count : VHOSTI_LINE;
    }
    vhosti_take_words(walk, index, dirty, mask);
}

static const struct vhosti_log *vhosti_longest_log(const vhost_vm *vm)
{
    const struct vhosti_log *log, *longest = vm->logs;
    for (log = vm->logs; log != NULL; log = log->next)
        if (vhosti_log_count(log) > vhosti_log_count(longest))
            longest = log;
    return longest;
}

/* [page, end), whose words at either end may belong to it in part. */
static void vhosti_sync_pages(vhosti_walk *walk, uint64_t page, uint64_t end)
{
    while (page < end) {
        uint64_t index = page / VHOSTI_WORD_PAGES, count = end / VHOSTI_WORD_PAGES - index;
        uint64_t from = page % VHOSTI_WORD_PAGES;
        if (from != 0 || count == 0) {
            uint64_t to = count == 0 ? end % VHOSTI_WORD_PAGES : VHOSTI_WORD_PAGES;
            vhosti_sync_words(walk, index, 1, vhosti_bits(from, to - 1));
            page += to - from;
        } else {
            count = count < VHOSTI_WORD_PAGES ? count : VHOSTI_WORD_PAGES;
            vhosti_sync_words(walk, index, count, VHOSTI_WORD_ALL);
            page += count * VHOSTI_WORD_PAGES;
        }
    }
    vhosti_end_run(walk);
}

static int vhosti_check_sync(vhost_vm *vm, uint64_t gpa, uint64_t size, const vhost_log_sink *sink)
{
    uint64_t before; /* pages of the window that lie before gpa, in bytes */
    if (!vm->logging)
        return VHOSTI_FAIL_VM(vm, -EBUSY, VHOST_WHY_STATE, "log sync without log start");
    before = gpa - sink->bits_gpa;
    if (size == 0 || (gpa | size) % VHOST_PAGE != 0 || gpa + (size - 1) < gpa)
        return VHOSTI_FAIL_VM(vm, -EINVAL, VHOST_WHY_ARGUMENT, "log sync of 0x%llx+0x%llx",
                              (vhosti_ull)gpa, (vhosti_ull)size);
    if ((sink->range == NULL) == (sink->bits == NULL))
        return VHOSTI_FAIL_VM(vm, -EINVAL, VHOST_WHY_ARGUMENT, "one of sink.range and sink.bits");
    if (sink->bits != NULL && (sink->bits_gpa % VHOST_PAGE != 0 || gpa < sink->bits_gpa ||
                               before / VHOST_PAGE > sink->bits_count ||
                               size / VHOST_PAGE > sink->bits_count - before / VHOST_PAGE))
        return VHOSTI_FAIL_VM(vm, -EINVAL, VHOST_WHY_ARGUMENT,
                              "sink.bits, from 0x%llx on, has no room for 0x%llx+0x%llx",
                              (vhosti_ull)sink->bits_gpa, (vhosti_ull)gpa, (vhosti_ull)size);
    return 0;
}

VHOST_DEF int vhost_log_sync(vhost_vm *vm, uint64_t gpa, uint64_t size, vhost_log_sink *sink)
{
    vhosti_walk walk;
    uint64_t page, end;
    int code = vhosti_check_sync(vm, gpa, size, sink);
    if (code < 0)
        return code;
    memset(&walk, 0, sizeof walk);
    walk.vm = vm;
    walk.sink = sink;
    walk.log = vhosti_longest_log(vm);
    if (walk.log == NULL)
        return 0;
    page = gpa / VHOST_PAGE;
    end = page + size / VHOST_PAGE;
    if (end > vhosti_log_count(walk.log) * VHOSTI_WORD_PAGES)
        end = vhosti_log_count(walk.log) * VHOSTI_WORD_PAGES;
    walk.span = vhosti_count_spans(vhosti_current(vm), gpa);
    walk.span -= walk.span > 0; /* it may reach into the range */
    vhosti_sync_pages(&walk, page, end);
    return 0;
}

#ifdef __cplusplus
}
#endif
#endif /* VHOST_IMPLEMENTATION */

/*
   This software is available under 2 licenses -- choose whichever you prefer.
   ------------------------------------------------------------------------------------------------
   ALTERNATIVE A - MIT License
   Copyright (c) 2026 The vhost.h authors
   Permission is hereby granted, free of charge, to any person obtaining a copy of this software and
   associated documentation files (the "Software"), to deal in the Software without restriction,
   including without limitation the rights to use, copy, modify, merge, publish, distribute,
   sublicense, and/or sell copies of the Software, and to permit persons to whom the Software is
   furnished to do so, subject to the following conditions:
   The above copyright notice and this permission notice shall be included in all copies or
   substantial portions of the Software.
   THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT
   NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND
   NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM,
   DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM,
   OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
   ------------------------------------------------------------------------------------------------
   ALTERNATIVE B - Public Domain (www.unlicense.org)
   This is free and unencumbered software released into the public domain.
   Anyone is free to copy, modify, publish, use, compile, sell, or distribute this software, either
   in source code form or as a compiled binary, for any purpose, commercial or non-commercial, and
   by any means.
   In jurisdictions that recognize copyright laws, the author or authors of this software dedicate
   any and all copyright interest in the software to the public domain. We make this dedication for
   the benefit of the public at large and to the detriment of our heirs and successors. We intend
   this dedication to be an overt act of relinquishment in perpetuity of all present and future
   rights to this software under copyright law.
   THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT
   NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND
   NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER
   LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM, OUT OF OR IN
   CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
   ------------------------------------------------------------------------------------------------
*/
