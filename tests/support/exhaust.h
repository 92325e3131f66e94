/* Fail every call: an operation is tried again and again, and each time the next one of the calls
   that it makes fails, until it makes no more. */
#ifndef EXHAUST_H
#define EXHAUST_H

#include "fixture.h"

/* Operations, by their number, and how one round of one of them goes: it arms f->fault with the
   plan, calls the operation, disarms, and judges what came of it. f->fault.hit says whether the
   operation came to its nth call. */
typedef struct exhaust_trial {
    size_t count;
    const char *(*name)(size_t operation);
    enum greatest_test_res (*round)(fixture *f, size_t operation, fault_plan plan, unsigned nth,
                                    unsigned distance);
} exhaust_trial;

/* All operations; of those that fail, the operation and the call are told. */
enum greatest_test_res exhaust(fixture *f, const exhaust_trial *trial, fault_plan plan);

/* The same with two failing calls, at each distance from 1 to `furthest`. */
enum greatest_test_res exhaust_pairs(fixture *f, const exhaust_trial *trial, unsigned furthest);

#endif
