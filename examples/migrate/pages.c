/* pages.c - sets of pages of guest memory, and what is in them
   SPDX-License-Identifier: MIT OR Unlicense */
#include "pages.h"

#include <stdlib.h>

static uint64_t words_of(uint64_t count)
{
    return (count + 63) / 64;
}

static uint64_t bit_of(uint64_t page)
{
    return UINT64_C(1) << (page % 64);
}

bool pages_open(pages *self, uint64_t size)
{
    self->count = size / GUEST_RAM_PAGE;
    self->bits = calloc(words_of(self->count), sizeof *self->bits);
    return self->bits != NULL;
}

void pages_close(pages *self)
{
    free(self->bits);
    *self = (pages){0, NULL};
}

void pages_add(pages *self, uint64_t from, uint64_t to)
{
    for (uint64_t page = from / GUEST_RAM_PAGE; page < to / GUEST_RAM_PAGE; page++)
        self->bits[page / 64] |= bit_of(page);
}

size_t pages_bytes(const pages *self)
{
    return words_of(self->count) * sizeof *self->bits;
}

uint64_t pages_in(const pages *self)
{
    uint64_t count = 0;
    for (uint64_t i = 0; i < words_of(self->count); i++)
        count += (uint64_t)__builtin_popcountll(self->bits[i]);
    return count;
}

bool pages_has(const pages *self, uint64_t page)
{
    return page < self->count && (self->bits[page / 64] & bit_of(page)) != 0;
}

uint64_t pages_take(pages *self, uint64_t from)
{
    for (uint64_t page = from; page < self->count; page++)
        if (pages_take_one(self, page))
            return page;
    return PAGES_END;
}

bool pages_take_one(pages *self, uint64_t page)
{
    bool in = pages_has(self, page);
    if (in)
        self->bits[page / 64] &= ~bit_of(page);
    return in;
}

static uint64_t hash_of(const uint64_t *words)
{
    uint64_t hash = UINT64_C(0xcbf29ce484222325);
    for (uint64_t i = 0; i < GUEST_RAM_PAGE / sizeof *words; i++) {
        hash = (hash ^ words[i]) * UINT64_C(0x9e3779b97f4a7c15);
        hash ^= hash >> 29;
    }
    return hash;
}

void pages_hash(const uint8_t *memory, uint64_t size, uint64_t *hashes)
{
    for (uint64_t page = 0; page < size / GUEST_RAM_PAGE; page++)
        hashes[page] = hash_of((const uint64_t *)(const void *)(memory + page * GUEST_RAM_PAGE));
}
