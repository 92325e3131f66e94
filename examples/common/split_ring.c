/* split_ring.c - the driver's half of a split virtqueue, written to be read
   SPDX-License-Identifier: MIT OR Unlicense */
#define _DEFAULT_SOURCE
#include "split_ring.h"

#include <assert.h>
#include <endian.h>

/* The tables follow one another; each begins at a multiple of the alignment that virtio asks for:
   16 for descriptors, 2 for the available ring, 4 for the used ring. The two extra bytes at the end
   of both rings belong to a feature that this driver does not use. */
static size_t available_offset(uint16_t size)
{
    return size * sizeof(ring_descriptor);
}

static size_t used_offset(uint16_t size)
{
    size_t end = available_offset(size) + sizeof(ring_available) + (size + 1u) * sizeof(uint16_t);
    return (end + 3) / 4 * 4;
}

size_t split_ring_bytes(uint16_t size)
{
    return used_offset(size) + sizeof(ring_used) + size * sizeof(ring_used_entry) + 2;
}

void split_ring_init(split_ring *ring, uint16_t size, void *memory, uint64_t gpa)
{
    assert(size > 0 && size <= SPLIT_RING_MAX && (size & (size - 1)) == 0);
    unsigned char *bytes = memory;
    *ring = (split_ring){0};
    ring->size = size;
    ring->descriptors_gpa = gpa;
    ring->available_gpa = gpa + available_offset(size);
    ring->used_gpa = gpa + used_offset(size);
    ring->descriptors = memory;
    ring->available = (void *)(bytes + available_offset(size));
    ring->used = (void *)(bytes + used_offset(size));

    ring->free_count = size;
    for (uint16_t i = 0; i < size; i++) {
        ring->descriptors[i].next = htole16((uint16_t)(i + 1));
        ring->tags[i] = SPLIT_RING_NO_TAG;
    }
}

bool split_ring_add(split_ring *ring, const ring_piece *pieces, uint16_t count, uint16_t tag)
{
    if (count == 0 || count > ring->free_count)
        return false;
    uint16_t head = ring->first_free;
    for (uint16_t i = 0; i < count; i++) {
        ring_descriptor *descriptor = &ring->descriptors[ring->first_free];
        unsigned flags =
            (pieces[i].device_writes ? RING_DEVICE_WRITES : 0u) | (i + 1 < count ? RING_NEXT : 0u);
        descriptor->address = htole64(pieces[i].gpa);
        descriptor->length = htole32(pieces[i].length);
        descriptor->flags = htole16((uint16_t)flags);
        ring->first_free = le16toh(descriptor->next); /* free ones are linked: so is the chain */
    }
    ring->free_count = (uint16_t)(ring->free_count - count);
    ring->tags[head] = tag;
    ring->available->entries[ring->added % ring->size] = htole16(head);
    ring->added++;
    /* The new index is the signal: all that was written above must be seen before it. */
    __atomic_store_n(&ring->available->index, htole16(ring->added), __ATOMIC_RELEASE);
    return true;
}

bool split_ring_wants_kick(const split_ring *ring)
{
    /* Our index must be seen before we look whether anybody is looking at it. */
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    return (le16toh(__atomic_load_n(&ring->used->flags, __ATOMIC_RELAXED)) & RING_NO_KICK) == 0;
}

uint16_t split_ring_done(const split_ring *ring)
{
    return le16toh(__atomic_load_n(&ring->used->index, __ATOMIC_ACQUIRE));
}

/* Puts the whole chain to the front of the free list. */
static void release(split_ring *ring, uint16_t head)
{
    uint16_t last = head;
    uint16_t count = 1;
    while ((le16toh(ring->descriptors[last].flags) & RING_NEXT) != 0) {
        last = le16toh(ring->descriptors[last].next);
        count++;
    }
    ring->descriptors[last].next = htole16(ring->first_free);
    ring->first_free = head;
    ring->free_count = (uint16_t)(ring->free_count + count);
}

bool split_ring_collect(split_ring *ring, uint16_t *tag, uint32_t *length)
{
    if (ring->broken || ring->collected == split_ring_done(ring))
        return false;
    const ring_used_entry *entry = &ring->used->entries[ring->collected % ring->size];
    uint32_t head = le32toh(entry->head);
    if (head >= ring->size || ring->tags[head] == SPLIT_RING_NO_TAG) {
        ring->broken = true;
        return false;
    }
    ring->collected++;
    *length = le32toh(entry->length);
    *tag = ring->tags[head];
    ring->tags[head] = SPLIT_RING_NO_TAG;
    release(ring, (uint16_t)head);
    return true;
}
