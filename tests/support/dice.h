/* Where tests get their chances from: a seed, or bytes that a fuzzer made up. */
#ifndef TEST_DICE_H
#define TEST_DICE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct dice {
    uint64_t random;      /* of a seed; 0: it has bytes */
    const uint8_t *bytes; /* those that are left */
    size_t size;
} dice;

void dice_seed(dice *self, uint64_t seed);
void dice_read(dice *self, const uint8_t *bytes, size_t size);

/* From 0 to sides - 1. When the bytes are used up: 0. */
uint64_t dice_roll(dice *self, uint64_t sides);

/* Whether there are no bytes left; dice with a seed never end. */
bool dice_ended(const dice *self);

#endif
