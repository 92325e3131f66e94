/* virtio_names.c - features of virtio devices by name, and fields of their config space
   SPDX-License-Identifier: MIT OR Unlicense */
#include "virtio_names.h"

#include <string.h>

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

enum { /* bits 24 to 41 mean the same for all devices */
    GENERIC = 24,
    GENERIC_END = 42,
    ALL = 64
};

static const char *const generic[GENERIC_END] = {
    [24] = "NOTIFY_ON_EMPTY",   [26] = "LOG_ALL",           [27] = "ANY_LAYOUT",
    [28] = "INDIRECT_DESC",     [29] = "EVENT_IDX",         [30] = "PROTOCOL_FEATURES",
    [32] = "VERSION_1",         [33] = "ACCESS_PLATFORM",   [34] = "RING_PACKED",
    [35] = "IN_ORDER",          [36] = "ORDER_PLATFORM",    [37] = "SR_IOV",
    [38] = "NOTIFICATION_DATA", [39] = "NOTIF_CONFIG_DATA", [40] = "RING_RESET",
    [41] = "ADMIN_VQ",
};

static const char *const net[ALL] = {
    [0] = "CSUM",
    [1] = "GUEST_CSUM",
    [2] = "CTRL_GUEST_OFFLOADS",
    [3] = "MTU",
    [5] = "MAC",
    [6] = "GSO",
    [7] = "GUEST_TSO4",
    [8] = "GUEST_TSO6",
    [9] = "GUEST_ECN",
    [10] = "GUEST_UFO",
    [11] = "HOST_TSO4",
    [12] = "HOST_TSO6",
    [13] = "HOST_ECN",
    [14] = "HOST_UFO",
    [15] = "MRG_RXBUF",
    [16] = "STATUS",
    [17] = "CTRL_VQ",
    [18] = "CTRL_RX",
    [19] = "CTRL_VLAN",
    [20] = "CTRL_RX_EXTRA",
    [21] = "GUEST_ANNOUNCE",
    [22] = "MQ",
    [23] = "CTRL_MAC_ADDR",
    [50] = "DEVICE_STATS",
    [51] = "HASH_TUNNEL",
    [52] = "VQ_NOTF_COAL",
    [53] = "NOTF_COAL",
    [54] = "GUEST_USO4",
    [55] = "GUEST_USO6",
    [56] = "HOST_USO",
    [57] = "HASH_REPORT",
    [59] = "GUEST_HDRLEN",
    [60] = "RSS",
    [61] = "RSC_EXT",
    [62] = "STANDBY",
    [63] = "SPEED_DUPLEX",
};

static const virtio_field net_fields[] = {
    {"mac", 0, 1, 6},
    {"status", 6, 2, 1},
    {"max_virtqueue_pairs", 8, 2, 1},
    {"mtu", 10, 2, 1},
    {"speed", 12, 4, 1},
    {"duplex", 16, 1, 1},
    {"rss_max_key_size", 17, 1, 1},
    {"rss_max_indirection_table_length", 18, 2, 1},
    {"supported_hash_types", 20, 4, 1},
};

static const char *const blk[ALL] = {
    [0] = "BARRIER",       [1] = "SIZE_MAX",  [2] = "SEG_MAX",
    [4] = "GEOMETRY",      [5] = "RO",        [6] = "BLK_SIZE",
    [7] = "SCSI",          [9] = "FLUSH",     [10] = "TOPOLOGY",
    [11] = "CONFIG_WCE",   [12] = "MQ",       [13] = "DISCARD",
    [14] = "WRITE_ZEROES", [15] = "LIFETIME", [16] = "SECURE_ERASE",
    [17] = "ZONED",
};

static const virtio_field blk_fields[] = {
    {"capacity", 0, 8, 1},
    {"size_max", 8, 4, 1},
    {"seg_max", 12, 4, 1},
    {"cylinders", 16, 2, 1},
    {"heads", 18, 1, 1},
    {"sectors", 19, 1, 1},
    {"blk_size", 20, 4, 1},
    {"physical_block_exp", 24, 1, 1},
    {"alignment_offset", 25, 1, 1},
    {"min_io_size", 26, 2, 1},
    {"opt_io_size", 28, 4, 1},
    {"writeback", 32, 1, 1},
    {"num_queues", 34, 2, 1},
    {"max_discard_sectors", 36, 4, 1},
    {"max_discard_seg", 40, 4, 1},
    {"discard_sector_alignment", 44, 4, 1},
    {"max_write_zeroes_sectors", 48, 4, 1},
    {"max_write_zeroes_seg", 52, 4, 1},
    {"write_zeroes_may_unmap", 56, 1, 1},
    {"max_secure_erase_sectors", 60, 4, 1},
    {"max_secure_erase_seg", 64, 4, 1},
    {"secure_erase_sector_alignment", 68, 4, 1},
};

static const char *const scsi[ALL] = {
    [0] = "INOUT",
    [1] = "HOTPLUG",
    [2] = "CHANGE",
    [3] = "T10_PI",
};

static const char *const fs[ALL] = {
    [0] = "NOTIFICATION",
};

static const char *const gpu[ALL] = {
    [0] = "VIRGL", [1] = "EDID", [2] = "RESOURCE_UUID", [3] = "RESOURCE_BLOB", [4] = "CONTEXT_INIT",
};

static const char *const vsock[ALL] = {
    [0] = "STREAM",
    [1] = "SEQPACKET",
    [2] = "NO_IMPLIED_STREAM",
};

static const char *const crypto[ALL] = {
    [0] = "REVISION_1",         [1] = "CIPHER_STATELESS_MODE", [2] = "HASH_STATELESS_MODE",
    [3] = "MAC_STATELESS_MODE", [4] = "AEAD_STATELESS_MODE",   [5] = "AKCIPHER_STATELESS_MODE",
};

static const virtio_type types[] = {
    {"net", net, net_fields, COUNT(net_fields)},
    {"blk", blk, blk_fields, COUNT(blk_fields)},
    {"scsi", scsi, NULL, 0},
    {"fs", fs, NULL, 0},
    {"gpu", gpu, NULL, 0},
    {"vsock", vsock, NULL, 0},
    {"crypto", crypto, NULL, 0},
};

const char virtio_type_names[] = "net|blk|scsi|fs|gpu|vsock|crypto";

const virtio_type *virtio_type_find(const char *name)
{
    for (size_t i = 0; i < COUNT(types); i++)
        if (strcmp(types[i].name, name) == 0)
            return &types[i];
    return NULL;
}

const char *virtio_feature_name(const virtio_type *type, unsigned bit)
{
    if (bit >= GENERIC && bit < GENERIC_END)
        return generic[bit];
    return type != NULL && bit < ALL ? type->features[bit] : NULL;
}

uint64_t virtio_field_value(const virtio_field *field, const uint8_t *config)
{
    uint64_t value = 0;
    for (unsigned i = field->size; i > 0; i--)
        value = value << 8 | config[field->offset + i - 1];
    return value;
}
