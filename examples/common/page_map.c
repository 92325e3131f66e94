/* page_map.c - which pages of guest memory are dirty, which have changed, and a picture of it
   SPDX-License-Identifier: MIT OR Unlicense */
#include "page_map.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    TOGETHER = 16, /* pages in one character */
    LINE = 64      /* characters */
};

bool page_map_open(page_map *map, const void *memory, size_t size)
{
    *map = (page_map){.memory = memory, .count = size / PAGE_MAP_PAGE};
    memset(map->kind, '.', sizeof map->kind);
    map->before = map->count <= PAGE_MAP_MAX ? malloc(size) : NULL;
    return map->before != NULL;
}

void page_map_close(page_map *map)
{
    free(map->before);
    map->before = NULL;
}

void page_map_name(page_map *map, uint64_t gpa, uint64_t size, char kind)
{
    for (uint64_t page = gpa / PAGE_MAP_PAGE; page <= (gpa + size - 1) / PAGE_MAP_PAGE; page++)
        map->kind[page] = kind;
}

void page_map_snapshot(page_map *map)
{
    memcpy(map->before, map->memory, map->count * PAGE_MAP_PAGE);
    memset(map->dirty, 0, sizeof map->dirty);
}

void page_map_add(page_map *map, uint64_t gpa, uint64_t size)
{
    for (uint64_t page = gpa / PAGE_MAP_PAGE; page < (gpa + size) / PAGE_MAP_PAGE; page++)
        map->dirty[page] = true;
}

bool page_map_changed(const page_map *map, size_t page)
{
    size_t at = page * PAGE_MAP_PAGE;
    return memcmp(map->memory + at, map->before + at, PAGE_MAP_PAGE) != 0;
}

static char character(const page_map *map, size_t first)
{
    for (size_t page = first; page < first + TOGETHER && page < map->count; page++)
        if (map->dirty[page])
            return map->kind[page];
    return '.';
}

void page_map_show(const page_map *map)
{
    for (size_t page = 0; page < map->count; page += TOGETHER) {
        if (page % (TOGETHER * LINE) == 0)
            printf("   %08zx ", page * PAGE_MAP_PAGE);
        putchar(character(map, page));
        if (page % (TOGETHER * LINE) == TOGETHER * (LINE - 1))
            putchar('\n');
    }
}
