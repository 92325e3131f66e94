/* Random section lists and random dirty pages, against a model that is kept page by page and knows
   nothing of lists, spans, tables and words. What is accepted, refused, merged, found, logged and
   handed over must be the same. */
#ifndef TEST_MODEL_H
#define TEST_MODEL_H

#include "dice.h"
#include "fixture.h"

/* What was done at all; the least of it is checked, so that a test cannot go empty. */
typedef struct model_tally {
    uint64_t commits, too_many, refused, resizes, pages, dropped, left;
} model_tally;

/* So many maps in a fresh fixture, one after the other, or until the dice end. */
enum greatest_test_res model_run(fixture *f, dice *chance, unsigned runs, model_tally *done);

#endif
