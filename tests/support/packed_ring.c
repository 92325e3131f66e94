#define _DEFAULT_SOURCE
#include "packed_ring.h"

#include <assert.h>
#include <endian.h>

enum {
    WRAP = 1 << 15,
    INDEX = WRAP - 1
};

size_t packed_ring_bytes(uint16_t size)
{
    return size * sizeof(packed_descriptor) + 2 * sizeof(packed_event);
}

void packed_ring_init(packed_ring *ring, uint16_t size, void *memory, uint64_t gpa)
{
    assert(size > 0 && size <= PACKED_RING_MAX);
    uint64_t events = size * sizeof(packed_descriptor);
    *ring = (packed_ring){.size = size, .free_count = size, .next = WRAP, .used = WRAP};
    ring->descriptors_gpa = gpa;
    ring->driver_gpa = gpa + events;
    ring->device_gpa = gpa + events + sizeof(packed_event);
    ring->descriptors = memory;
    ring->driver = (void *)(ring->descriptors + size);
    ring->device = ring->driver + 1;
    for (uint16_t i = 0; i < size; i++) {
        ring->ids[i].next = (uint16_t)(i + 1);
    }
}

static packed_place advance(const packed_ring *ring, packed_place place, uint16_t count)
{
    uint16_t index = (uint16_t)((place & INDEX) + count);
    bool around = index >= ring->size;
    return (packed_place)((around ? index - ring->size : index) | ((place & WRAP) ^ around * WRAP));
}

/* Available: the first bit is the wrap counter, and the second is not. */
static uint16_t flags_of(packed_place place, const ring_piece *piece, bool last)
{
    return (uint16_t)(((place & WRAP) != 0 ? PACKED_RING_AVAILABLE : PACKED_RING_USED) |
                      (piece->device_writes ? RING_DEVICE_WRITES : 0) | (last ? 0 : RING_NEXT));
}

bool packed_ring_add(packed_ring *ring, const ring_piece *pieces, uint16_t count, uint16_t tag)
{
    if (count == 0 || count > ring->free_count) {
        return false;
    }
    uint16_t id = ring->first_free;
    packed_descriptor *head = &ring->descriptors[ring->next & INDEX];
    uint16_t head_flags = flags_of(ring->next, &pieces[0], count == 1);
    for (uint16_t i = 0; i < count; i++) {
        packed_descriptor *descriptor = &ring->descriptors[ring->next & INDEX];
        descriptor->address = htole64(pieces[i].gpa);
        descriptor->length = htole32(pieces[i].length);
        descriptor->id = htole16(id);
        if (i > 0) {
            descriptor->flags = htole16(flags_of(ring->next, &pieces[i], i + 1 == count));
        }
        ring->next = advance(ring, ring->next, 1);
    }
    ring->first_free = ring->ids[id].next;
    ring->ids[id].count = count;
    ring->ids[id].tag = tag;
    ring->free_count = (uint16_t)(ring->free_count - count);
    ring->added++;
    /* The flags of the first one are the signal: all that was written above must be seen before. */
    __atomic_store_n(&head->flags, htole16(head_flags), __ATOMIC_RELEASE);
    return true;
}

bool packed_ring_wants_kick(const packed_ring *ring)
{
    /* Our flags must be seen before we look whether anybody is looking at them. */
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    return le16toh(__atomic_load_n(&ring->device->flags, __ATOMIC_RELAXED)) != PACKED_RING_NO_EVENT;
}

/* Used: both bits are the wrap counter. */
static bool is_used(const packed_ring *ring)
{
    const packed_descriptor *descriptor = &ring->descriptors[ring->used & INDEX];
    unsigned flags = le16toh(__atomic_load_n(&descriptor->flags, __ATOMIC_ACQUIRE));
    bool wrap = (ring->used & WRAP) != 0;
    return ((flags & PACKED_RING_AVAILABLE) != 0) == wrap &&
           ((flags & PACKED_RING_USED) != 0) == wrap;
}

bool packed_ring_collect(packed_ring *ring, uint16_t *tag, uint32_t *length)
{
    if (ring->broken || !is_used(ring)) {
        return false;
    }
    const packed_descriptor *descriptor = &ring->descriptors[ring->used & INDEX];
    uint16_t id = le16toh(descriptor->id);
    if (id >= ring->size || ring->ids[id].count == 0) {
        ring->broken = true;
        return false;
    }
    *length = le32toh(descriptor->length);
    *tag = ring->ids[id].tag;
    ring->used = advance(ring, ring->used, ring->ids[id].count);
    ring->free_count = (uint16_t)(ring->free_count + ring->ids[id].count);
    ring->ids[id].count = 0;
    ring->ids[id].next = ring->first_free;
    ring->first_free = id;
    ring->collected++;
    return true;
}
