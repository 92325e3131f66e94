/* virtio_names.h - features of virtio devices by name, and fields of their config space
   SPDX-License-Identifier: MIT OR Unlicense */
#ifndef VIRTIO_NAMES_H_INCLUDED
#define VIRTIO_NAMES_H_INCLUDED

#include <stddef.h>
#include <stdint.h>

typedef struct virtio_field { /* of a config space; little-endian */
    const char *name;
    unsigned offset;
    unsigned size;  /* bytes of an element */
    unsigned count; /* elements; more than one are bytes to be shown as they stand */
} virtio_field;

typedef struct virtio_type { /* a kind of device */
    const char *name;
    const char *const *features; /* names of bits 0 to 23 and from 50 on; NULL: none */
    const virtio_field *fields;
    unsigned field_count;
} virtio_type;

/* NULL: no such type. names: all there are, with a bar between them. */
const virtio_type *virtio_type_find(const char *name);
extern const char virtio_type_names[];

/* type: NULL if it is not known. NULL: the bit has no name. */
const char *virtio_feature_name(const virtio_type *type, unsigned bit);

uint64_t virtio_field_value(const virtio_field *field, const uint8_t *config);

#endif
