#include "reference.h"

#include <stdlib.h>
#include <string.h>

enum {
    PAGE = 4096,
    WORD_PAGES = 8 * sizeof(unsigned long)
};

/* ---- the dirty log ---- */

typedef struct sink {
    void (*page)(uint64_t gpa, void *user);
    void *user;
} sink;

/* All dirty pages of the words that have some of [first, last], bytes. */
static void sync_overlap(unsigned long *log, uint64_t first, uint64_t last, const sink *to)
{
    uint64_t index = first / PAGE / WORD_PAGES, end = last / PAGE / WORD_PAGES;
    for (; index <= end; index++) {
        if (__atomic_load_n(&log[index], __ATOMIC_RELAXED) == 0) {
            continue;
        }
        unsigned long bits = __atomic_exchange_n(&log[index], 0, __ATOMIC_SEQ_CST);
        while (bits != 0) {
            unsigned bit = (unsigned)__builtin_ctzl(bits);
            to->page((index * WORD_PAGES + bit) * PAGE, to->user);
            bits &= bits - 1;
        }
    }
}

static void sync_range(unsigned long *log, const reference_range *section,
                       const reference_range *range, const sink *to)
{
    uint64_t first = section->gpa > range->gpa ? section->gpa : range->gpa;
    uint64_t a = section->gpa + section->size - 1, b = range->gpa + range->size - 1;
    uint64_t last = a < b ? a : b;
    if (first <= last) {
        sync_overlap(log, first, last, to);
    }
}

void reference_sync(const reference_device *devices, unsigned device_count,
                    const reference_range *sections, uint32_t section_count, unsigned long *log,
                    void (*page)(uint64_t gpa, void *user), void *user)
{
    const sink to = {page, user};
    for (unsigned d = 0; d < device_count; d++) {
        const reference_device *device = &devices[d];
        for (uint32_t s = 0; s < section_count; s++) {
            for (uint32_t i = 0; i < device->region_count; i++) {
                sync_range(log, &sections[s], &device->regions[i], &to);
            }
            for (uint32_t i = 0; i < device->ring_count; i++) {
                sync_range(log, &sections[s], &device->used_rings[i], &to);
            }
        }
    }
}

/* ---- the memory map ---- */

static bool extends(const reference_section *before, const reference_section *next)
{
    return before->backing == next->backing && before->gpa + before->size == next->gpa &&
           before->host + before->size == next->host;
}

void reference_add(reference_map *self, const reference_section *section)
{
    reference_section *last = self->fresh + self->fresh_count - 1;
    if (self->fresh_count > 0 && extends(last, section)) {
        last->size += section->size;
        return;
    }
    self->fresh = realloc(self->fresh, (self->fresh_count + 1) * sizeof *self->fresh);
    self->fresh[self->fresh_count++] = *section;
}

/* Every section is looked at for every ring. */
static bool rings_stay(const reference_map *self)
{
    for (uint32_t s = 0; s < self->section_count; s++) {
        const reference_section *section = &self->sections[s];
        for (uint32_t i = 0; i < self->ring_count; i++) {
            const reference_ring *ring = &self->rings[i];
            if (ring->gpa >= section->gpa + section->size ||
                section->gpa >= ring->gpa + ring->size) {
                continue;
            }
            if (ring->gpa < section->gpa || ring->gpa + ring->size > section->gpa + section->size ||
                section->host + (ring->gpa - section->gpa) != ring->host) {
                return false;
            }
        }
    }
    return true;
}

bool reference_commit(reference_map *self)
{
    uint32_t count = self->fresh_count;
    bool same = count == self->section_count &&
                memcmp(self->fresh, self->sections, count * sizeof *self->fresh) == 0;
    free(self->sections);
    self->sections = self->fresh;
    self->section_count = count;
    self->fresh = NULL;
    self->fresh_count = 0;
    if (same) {
        return true;
    }
    self->regions = realloc(self->regions, count * sizeof *self->regions);
    memcpy(self->regions, self->sections, count * sizeof *self->regions);
    self->region_count = count;
    return rings_stay(self);
}

const unsigned char *reference_find(const reference_map *self, uint64_t gpa)
{
    for (uint32_t i = 0; i < self->region_count; i++) {
        const reference_section *region = &self->regions[i];
        if (gpa >= region->gpa && gpa - region->gpa < region->size) {
            return region->host + (gpa - region->gpa);
        }
    }
    return NULL;
}

void reference_free(reference_map *self)
{
    free(self->sections);
    free(self->fresh);
    free(self->regions);
}
