/* The algorithms that ours are measured against: those of the front-ends that are in use, written
   anew from their description, and no worse than they need be. */
#ifndef TEST_BENCH_REFERENCE_H
#define TEST_BENCH_REFERENCE_H

#include <stdbool.h>
#include <stdint.h>

typedef struct reference_range {
    uint64_t gpa, size; /* bytes */
} reference_range;

/* ---- the dirty log: every device walks it, in every section, page by page ---- */

typedef struct reference_device {
    const reference_range *regions;
    uint32_t region_count;
    const reference_range *used_rings;
    uint32_t ring_count;
} reference_device;

void reference_sync(const reference_device *devices, unsigned device_count,
                    const reference_range *sections, uint32_t section_count, unsigned long *log,
                    void (*page)(uint64_t gpa, void *user), void *user);

/* ---- the memory map: an array that grows by one, and is rebuilt whole ---- */

typedef struct reference_section {
    uint64_t gpa, size;
    const void *backing;
    unsigned char *host;
} reference_section;

typedef struct reference_ring {
    uint64_t gpa, size;
    unsigned char *host;
} reference_ring;

typedef struct reference_map {
    reference_section *sections, *fresh;
    uint32_t section_count, fresh_count;
    reference_section *regions; /* the table of the back-end */
    uint32_t region_count;
    const reference_ring *rings;
    uint32_t ring_count;
} reference_map;

void reference_add(reference_map *self, const reference_section *section);
bool reference_commit(reference_map *self); /* false: a ring lost its memory */
const unsigned char *reference_find(const reference_map *self, uint64_t gpa);
void reference_free(reference_map *self);

#endif
