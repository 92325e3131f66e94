/* page_map.h - which pages of guest memory are dirty, which have changed, and a picture of it
   SPDX-License-Identifier: MIT OR Unlicense */
#ifndef PAGE_MAP_H_INCLUDED
#define PAGE_MAP_H_INCLUDED

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    PAGE_MAP_PAGE = 4096, /* bytes */
    PAGE_MAP_MAX = 4096   /* pages: 16 MiB */
};

typedef struct page_map {
    const uint8_t *memory; /* of the guest, from gpa 0 on */
    uint8_t *before;       /* a copy, as it was at the snapshot */
    size_t count;          /* pages */
    char kind[PAGE_MAP_MAX];
    bool dirty[PAGE_MAP_MAX];
} page_map;

/* All pages are of kind '.', and clean. Returns false if there is no memory for a copy. */
bool page_map_open(page_map *map, const void *memory, size_t size);

/* Harmless for a map of zeros. */
void page_map_close(page_map *map);

/* Says what the pages of [gpa, gpa + size) are: a letter. */
void page_map_name(page_map *map, uint64_t gpa, uint64_t size, char kind);

/* Copies memory, and calls all pages clean. */
void page_map_snapshot(page_map *map);

/* Calls the pages of [gpa, gpa + size) dirty. */
void page_map_add(page_map *map, uint64_t gpa, uint64_t size);

/* Whether a page is not as it was at the snapshot. */
bool page_map_changed(const page_map *map, size_t page);

/* Prints a character for every 16 pages, 64 of them a line: the kind of the first dirty page, or a
   dot. Four lines at most. */
void page_map_show(const page_map *map);

#endif
