/* Makes the Nth fallible call fail: allocations, notifiers, mappings, back-end operations. */
#ifndef TEST_FAULT_H
#define TEST_FAULT_H

#include "vhost.h"

typedef enum fault_kind {
    FAULT_ALLOCATION,
    FAULT_NOTIFIER,
    FAULT_MAPPING,
    FAULT_OPERATION /* of a back-end, open included */
} fault_kind;

typedef enum fault_plan {
    FAULT_ONCE,       /* the Nth call fails */
    FAULT_TWICE,      /* the Nth, and one more after it */
    FAULT_EVER_AFTER, /* the Nth, and all after it */
    FAULT_DEATH       /* the back-end dies in its Nth operation; nothing else fails */
} fault_plan;

typedef struct fault {
    bool armed;
    fault_plan plan;
    unsigned nth;         /* from 1 */
    unsigned distance;    /* TWICE: from the first to the second */
    bool only_operations; /* the others neither count nor fail */
    unsigned calls;       /* since it was armed */
    bool hit;

    /* The first that failed. */
    fault_kind kind;
    vhost_op op;
    int queue;
} fault;

void fault_arm(fault *self, fault_plan plan, unsigned nth, unsigned distance);
void fault_arm_operation(fault *self, unsigned nth); /* ONCE; counts operations only */
void fault_disarm(fault *self);

/* Every fallible call asks: shall I fail? */
bool fault_strikes(fault *self, fault_kind kind, vhost_op op, int queue);

#endif
