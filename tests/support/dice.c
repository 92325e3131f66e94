#include "dice.h"

void dice_seed(dice *self, uint64_t seed)
{
    self->random = seed * UINT64_C(0x9e3779b97f4a7c15) + 1;
    self->bytes = NULL;
    self->size = 0;
}

void dice_read(dice *self, const uint8_t *bytes, size_t size)
{
    self->random = 0;
    self->bytes = bytes;
    self->size = size;
}

static uint64_t next_random(dice *self)
{
    self->random ^= self->random << 13;
    self->random ^= self->random >> 7;
    self->random ^= self->random << 17;
    return self->random >> 11;
}

/* Takes no more bytes than such a number may need. */
static uint64_t next_bytes(dice *self, uint64_t most)
{
    uint64_t number = 0;
    for (; most > 0 && self->size > 0; most >>= 8) {
        number = number << 8 | *self->bytes;
        self->bytes++;
        self->size--;
    }
    return number;
}

uint64_t dice_roll(dice *self, uint64_t sides)
{
    uint64_t number = self->random ? next_random(self) : next_bytes(self, sides - 1);
    return number % sides;
}

bool dice_ended(const dice *self)
{
    return self->random == 0 && self->size == 0;
}
