#include "fault.h"

#include <string.h>

void fault_arm(fault *self, fault_plan plan, unsigned nth, unsigned distance)
{
    memset(self, 0, sizeof *self);
    self->armed = true;
    self->plan = plan;
    self->nth = nth;
    self->distance = distance;
    self->only_operations = plan == FAULT_DEATH;
}

void fault_arm_operation(fault *self, unsigned nth)
{
    fault_arm(self, FAULT_ONCE, nth, 0);
    self->only_operations = true;
}

void fault_disarm(fault *self)
{
    self->armed = false;
}

static bool due(const fault *self)
{
    switch (self->plan) {
    case FAULT_ONCE:
    case FAULT_DEATH:
        return self->calls == self->nth;
    case FAULT_TWICE:
        return self->calls == self->nth || self->calls == self->nth + self->distance;
    case FAULT_EVER_AFTER:
        return self->calls >= self->nth;
    }
    return false;
}

bool fault_strikes(fault *self, fault_kind kind, vhost_op op, int queue)
{
    if (!self->armed || (self->only_operations && kind != FAULT_OPERATION)) {
        return false;
    }
    self->calls++;
    if (!due(self)) {
        return false;
    }
    if (!self->hit) {
        self->hit = true;
        self->kind = kind;
        self->op = op;
        self->queue = queue;
    }
    return true;
}
