/* The numbers and structs of vhost_kernel.h are our own copies. Where the kernel's header is there,
   the compiler proves them equal; newer numbers than the header has are left out. */
#define VHOST_IMPLEMENTATION
#include "vhost_kernel.h"

#include <linux/vhost.h>

#define SAME(ours, theirs)      typedef char same_##theirs[(ours) == (theirs) ? 1 : -1]
#define SAME_SIZE(ours, theirs) typedef char size_##theirs[sizeof(ours) == sizeof(theirs) ? 1 : -1]
#define SAME_PLACE(ours, our_field, theirs, field)                                                 \
    typedef char                                                                                   \
        place_##theirs##_##field[offsetof(ours, our_field) == offsetof(struct theirs, field) &&    \
                                         sizeof(((ours *)0)->our_field) ==                         \
                                             sizeof(((struct theirs *)0)->field)                   \
                                     ? 1                                                           \
                                     : -1]

SAME(VHOSTI_KERNEL_GET_FEATURES, VHOST_GET_FEATURES);
SAME(VHOSTI_KERNEL_SET_FEATURES, VHOST_SET_FEATURES);
SAME(VHOSTI_KERNEL_SET_OWNER, VHOST_SET_OWNER);
SAME(VHOSTI_KERNEL_RESET_OWNER, VHOST_RESET_OWNER);
SAME(VHOSTI_KERNEL_SET_MEM_TABLE, VHOST_SET_MEM_TABLE);
SAME(VHOSTI_KERNEL_SET_LOG_BASE, VHOST_SET_LOG_BASE);
SAME(VHOSTI_KERNEL_SET_LOG_FD, VHOST_SET_LOG_FD);
SAME(VHOSTI_KERNEL_SET_VRING_NUM, VHOST_SET_VRING_NUM);
SAME(VHOSTI_KERNEL_SET_VRING_ADDR, VHOST_SET_VRING_ADDR);
SAME(VHOSTI_KERNEL_SET_VRING_BASE, VHOST_SET_VRING_BASE);
SAME(VHOSTI_KERNEL_GET_VRING_BASE, VHOST_GET_VRING_BASE);
SAME(VHOSTI_KERNEL_SET_VRING_ENDIAN, VHOST_SET_VRING_ENDIAN);
SAME(VHOSTI_KERNEL_SET_VRING_KICK, VHOST_SET_VRING_KICK);
SAME(VHOSTI_KERNEL_SET_VRING_CALL, VHOST_SET_VRING_CALL);
SAME(VHOSTI_KERNEL_SET_VRING_ERR, VHOST_SET_VRING_ERR);
SAME(VHOSTI_KERNEL_SET_VRING_BUSYLOOP, VHOST_SET_VRING_BUSYLOOP_TIMEOUT);
SAME(VHOSTI_KERNEL_SET_BACKEND_FEATURES, VHOST_SET_BACKEND_FEATURES);
SAME(VHOSTI_KERNEL_GET_BACKEND_FEATURES, VHOST_GET_BACKEND_FEATURES);
SAME(VHOSTI_KERNEL_NET_SET_BACKEND, VHOST_NET_SET_BACKEND);
#if defined(VHOST_NEW_WORKER)
SAME(VHOSTI_KERNEL_NEW_WORKER, VHOST_NEW_WORKER);
SAME(VHOSTI_KERNEL_ATTACH_VRING_WORKER, VHOST_ATTACH_VRING_WORKER);
#endif
#if defined(VHOST_GET_FEATURES_ARRAY)
SAME(VHOSTI_KERNEL_GET_FEATURES_ARRAY, VHOST_GET_FEATURES_ARRAY);
SAME(VHOSTI_KERNEL_SET_FEATURES_ARRAY, VHOST_SET_FEATURES_ARRAY);
#endif
#if defined(VHOST_SET_FORK_FROM_OWNER)
SAME(VHOSTI_KERNEL_SET_FORK_FROM_OWNER, VHOST_SET_FORK_FROM_OWNER);
#endif
SAME(VHOSTI_KERNEL_NET_HEADER, VHOST_NET_F_VIRTIO_NET_HDR);
SAME(VHOST_FEATURE_LOG_ALL, VHOST_F_LOG_ALL);

SAME_PLACE(vhosti_kernel_state, index, vhost_vring_state, index);
SAME_PLACE(vhosti_kernel_state, number, vhost_vring_state, num);
SAME_PLACE(vhosti_kernel_file, index, vhost_vring_file, index);
SAME_PLACE(vhosti_kernel_file, fd, vhost_vring_file, fd);
SAME_PLACE(vhosti_kernel_address, index, vhost_vring_addr, index);
SAME_PLACE(vhosti_kernel_address, flags, vhost_vring_addr, flags);
SAME_PLACE(vhosti_kernel_address, desc, vhost_vring_addr, desc_user_addr);
SAME_PLACE(vhosti_kernel_address, used, vhost_vring_addr, used_user_addr);
SAME_PLACE(vhosti_kernel_address, avail, vhost_vring_addr, avail_user_addr);
SAME_PLACE(vhosti_kernel_address, log, vhost_vring_addr, log_guest_addr);
SAME_PLACE(vhosti_kernel_memory, count, vhost_memory, nregions);
SAME_PLACE(vhosti_kernel_memory, padding, vhost_memory, padding);
SAME_PLACE(vhosti_kernel_region, gpa, vhost_memory_region, guest_phys_addr);
SAME_PLACE(vhosti_kernel_region, size, vhost_memory_region, memory_size);
SAME_PLACE(vhosti_kernel_region, host, vhost_memory_region, userspace_addr);
SAME_PLACE(vhosti_kernel_region, flags, vhost_memory_region, flags_padding);

SAME_PLACE(vhosti_kernel_entry, iova, vhost_iotlb_msg, iova);
SAME_PLACE(vhosti_kernel_entry, size, vhost_iotlb_msg, size);
SAME_PLACE(vhosti_kernel_entry, host, vhost_iotlb_msg, uaddr);
SAME_PLACE(vhosti_kernel_entry, permit, vhost_iotlb_msg, perm);
SAME_PLACE(vhosti_kernel_entry, type, vhost_iotlb_msg, type);
SAME_PLACE(vhosti_kernel_message_v2, version, vhost_msg_v2, type);
SAME_PLACE(vhosti_kernel_message_v2, asid, vhost_msg_v2, asid);
SAME_PLACE(vhosti_kernel_message_v2, body, vhost_msg_v2, padding);
SAME_PLACE(vhosti_kernel_message, version, vhost_msg, type);
SAME_PLACE(vhosti_kernel_message, body, vhost_msg, padding);
SAME(VHOST_TLB_MISS, VHOST_IOTLB_MISS);
SAME(VHOST_TLB_MAP, VHOST_IOTLB_UPDATE);
SAME(VHOST_TLB_UNMAP, VHOST_IOTLB_INVALIDATE);
SAME(VHOST_TLB_FAIL, VHOST_IOTLB_ACCESS_FAIL);
SAME(VHOST_PERMIT_READ, VHOST_ACCESS_RO);
SAME(VHOST_PERMIT_WRITE, VHOST_ACCESS_WO);

typedef struct vhost_vring_state their_state;
typedef struct vhost_vring_file their_file;
typedef struct vhost_vring_addr their_address;
typedef struct vhost_memory their_memory;
typedef struct vhost_memory_region their_region;
typedef struct vhost_iotlb_msg their_entry;
typedef struct vhost_msg their_message;
typedef struct vhost_msg_v2 their_message_v2;
SAME_SIZE(vhosti_kernel_state, their_state);
SAME_SIZE(vhosti_kernel_file, their_file);
SAME_SIZE(vhosti_kernel_address, their_address);
SAME_SIZE(vhosti_kernel_memory, their_memory);
SAME_SIZE(vhosti_kernel_region, their_region);
SAME_SIZE(vhosti_kernel_entry, their_entry);
SAME_SIZE(vhosti_kernel_message, their_message);
SAME_SIZE(vhosti_kernel_message_v2, their_message_v2);
