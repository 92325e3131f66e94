/* pages.h - sets of pages of guest memory, and what is in them
   SPDX-License-Identifier: MIT OR Unlicense */
#ifndef PAGES_H_INCLUDED
#define PAGES_H_INCLUDED

#include "guest_ram.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PAGES_END UINT64_MAX

typedef struct pages { /* page n is at gpa n * GUEST_RAM_PAGE */
    uint64_t count;    /* that it has room for */
    uint64_t *bits;    /* bit n % 64 of bits[n / 64] */
} pages;

/* An empty set with room for `size` bytes of memory. false: out of memory. */
bool pages_open(pages *self, uint64_t size);

/* Harmless for a set of zeros. */
void pages_close(pages *self);

/* Puts the pages of [from, to) in; gpas. */
void pages_add(pages *self, uint64_t from, uint64_t to);

/* How large its bits are, bytes. */
size_t pages_bytes(const pages *self);

uint64_t pages_in(const pages *self);

bool pages_has(const pages *self, uint64_t page);

/* Takes the first page out that is not before this one; PAGES_END: there is none. */
uint64_t pages_take(pages *self, uint64_t from);

/* Takes this page out. Returns whether it was in. */
bool pages_take_one(pages *self, uint64_t page);

/* A hash of each page of [0, size). */
void pages_hash(const uint8_t *memory, uint64_t size, uint64_t *hashes);

#endif
