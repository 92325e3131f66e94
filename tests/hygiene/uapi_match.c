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
SAME(VHOSTI_KERNEL_SCSI_SET_ENDPOINT, VHOST_SCSI_SET_ENDPOINT);
SAME(VHOSTI_KERNEL_SCSI_CLEAR_ENDPOINT, VHOST_SCSI_CLEAR_ENDPOINT);
SAME(VHOSTI_KERNEL_SCSI_GET_ABI, VHOST_SCSI_GET_ABI_VERSION);
SAME(VHOSTI_KERNEL_SCSI_SET_MISSED, VHOST_SCSI_SET_EVENTS_MISSED);
SAME(VHOSTI_KERNEL_SCSI_GET_MISSED, VHOST_SCSI_GET_EVENTS_MISSED);
SAME(VHOSTI_KERNEL_SCSI_ABI, VHOST_SCSI_ABI_VERSION);
SAME(VHOSTI_KERNEL_VSOCK_SET_CID, VHOST_VSOCK_SET_GUEST_CID);
SAME(VHOSTI_KERNEL_VSOCK_SET_RUNNING, VHOST_VSOCK_SET_RUNNING);
SAME(VHOSTI_KERNEL_VDPA_GET_DEVICE_ID, VHOST_VDPA_GET_DEVICE_ID);
SAME(VHOSTI_KERNEL_VDPA_GET_STATUS, VHOST_VDPA_GET_STATUS);
SAME(VHOSTI_KERNEL_VDPA_SET_STATUS, VHOST_VDPA_SET_STATUS);
SAME(VHOSTI_KERNEL_VDPA_GET_CONFIG, VHOST_VDPA_GET_CONFIG);
SAME(VHOSTI_KERNEL_VDPA_SET_CONFIG, VHOST_VDPA_SET_CONFIG);
SAME(VHOSTI_KERNEL_VDPA_ENABLE, VHOST_VDPA_SET_VRING_ENABLE);
SAME(VHOSTI_KERNEL_VDPA_GET_VRING_NUM, VHOST_VDPA_GET_VRING_NUM);
SAME(VHOSTI_KERNEL_VDPA_CONFIG_CALL, VHOST_VDPA_SET_CONFIG_CALL);
SAME(VHOSTI_KERNEL_VDPA_GET_IOVA_RANGE, VHOST_VDPA_GET_IOVA_RANGE);
SAME(VHOSTI_KERNEL_VDPA_GET_CONFIG_SIZE, VHOST_VDPA_GET_CONFIG_SIZE);
SAME(VHOSTI_KERNEL_VDPA_GET_SPACES, VHOST_VDPA_GET_AS_NUM);
SAME(VHOSTI_KERNEL_VDPA_GET_GROUP, VHOST_VDPA_GET_VRING_GROUP);
SAME(VHOSTI_KERNEL_VDPA_SET_SPACE, VHOST_VDPA_SET_GROUP_ASID);
SAME(VHOSTI_KERNEL_VDPA_SUSPEND, VHOST_VDPA_SUSPEND);
SAME(VHOSTI_KERNEL_VDPA_GET_QUEUES, VHOST_VDPA_GET_VQS_COUNT);
SAME(VHOSTI_KERNEL_VDPA_GET_GROUPS, VHOST_VDPA_GET_GROUP_NUM);
#if defined(VHOST_VDPA_RESUME)
SAME(VHOSTI_KERNEL_VDPA_RESUME, VHOST_VDPA_RESUME);
#endif
#if defined(VHOST_VDPA_GET_VRING_SIZE)
SAME(VHOSTI_KERNEL_VDPA_GET_RING_SIZE, VHOST_VDPA_GET_VRING_SIZE);
#endif
#if defined(VHOST_NEW_WORKER)
SAME(VHOSTI_KERNEL_NEW_WORKER, VHOST_NEW_WORKER);
SAME(VHOSTI_KERNEL_FREE_WORKER, VHOST_FREE_WORKER);
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

SAME_PLACE(vhosti_kernel_target, abi_version, vhost_scsi_target, abi_version);
SAME_PLACE(vhosti_kernel_target, wwpn, vhost_scsi_target, vhost_wwpn);
SAME_PLACE(vhosti_kernel_target, tag, vhost_scsi_target, vhost_tpgt);
SAME_PLACE(vhosti_kernel_target, reserved, vhost_scsi_target, reserved);
SAME_PLACE(vhosti_kernel_config, offset, vhost_vdpa_config, off);
SAME_PLACE(vhosti_kernel_config, size, vhost_vdpa_config, len);
SAME_PLACE(vhosti_kernel_range, first, vhost_vdpa_iova_range, first);
SAME_PLACE(vhosti_kernel_range, last, vhost_vdpa_iova_range, last);

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
SAME(VHOSTI_KERNEL_BATCH_BEGIN, VHOST_IOTLB_BATCH_BEGIN);
SAME(VHOSTI_KERNEL_BATCH_END, VHOST_IOTLB_BATCH_END);
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
