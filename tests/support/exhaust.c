#include "exhaust.h"

#include <stdio.h>

static enum greatest_test_res exhaust_one(fixture *f, const exhaust_trial *trial, size_t operation,
                                          fault_plan plan, unsigned distance)
{
    unsigned nth = 0;
    do {
        nth++;
        if (trial->round(f, operation, plan, nth, distance) != GREATEST_TEST_RES_PASS) {
            fprintf(stderr, "%s, %s: call %u fails (%s of queue %d, kind %d), plan %d+%u\n",
                    mock_mode_name(f->mode), trial->name(operation), nth,
                    vhost_op_name(f->fault.op), f->fault.queue, (int)f->fault.kind, (int)plan,
                    distance);
            return GREATEST_TEST_RES_FAIL;
        }
        ASSERT(nth < 1000);
    } while (f->fault.hit);
    ASSERT(nth > 1 || plan == FAULT_DEATH); /* or there was nothing to fail */
    PASS();
}

static enum greatest_test_res exhaust_all(fixture *f, const exhaust_trial *trial, fault_plan plan,
                                          unsigned distance)
{
    enum greatest_test_res result = GREATEST_TEST_RES_PASS;
    for (size_t i = 0; i < trial->count; i++) {
        if (exhaust_one(f, trial, i, plan, distance) != GREATEST_TEST_RES_PASS) {
            result = GREATEST_TEST_RES_FAIL;
        }
    }
    return result;
}

enum greatest_test_res exhaust(fixture *f, const exhaust_trial *trial, fault_plan plan)
{
    return exhaust_all(f, trial, plan, 0);
}

enum greatest_test_res exhaust_pairs(fixture *f, const exhaust_trial *trial, unsigned furthest)
{
    for (unsigned distance = 1; distance <= furthest; distance++) {
        if (exhaust_all(f, trial, FAULT_TWICE, distance) != GREATEST_TEST_RES_PASS) {
            return GREATEST_TEST_RES_FAIL;
        }
    }
    PASS();
}
