/* arrival.c - postcopy: memory that follows the guest, and is fetched when it is touched
   SPDX-License-Identifier: MIT OR Unlicense */
#define _GNU_SOURCE
#include "arrival.h"
#include "stream.h"

#include <inttypes.h>
#include <stdio.h>

#define TRY(call) REPORT_TRY(to->report, call)

static void want(uint64_t gpa, void *user)
{
    const arrival *self = user;
    (void)stream_send(self->stream, STREAM_WANT, gpa, NULL, 0); /* if not, no page comes, too */
}

static void *take_pages(void *user)
{
    arrival *self = user;
    uint8_t page[GUEST_RAM_PAGE];
    stream_record record = {0, 0, 0};
    while (self->code == 0) {
        self->code = stream_receive(self->stream, &record, page, sizeof page);
        if (self->code == 0 && record.kind == STREAM_GO)
            break;
        if (self->code == 0)
            self->code = page_faults_place(&self->faults, record.place, page);
    }
    return NULL;
}

int arrival_on_region(vhost_user *user, uint64_t gpa, uint64_t size, uint64_t base, void *device)
{
    const machine_device *of = device;
    arrival *self = of->machine->arrival;
    (void)user;
    return page_faults_add_region(&self->faults, self->peers[of - of->machine->devices], gpa, size,
                                  base);
}

/* The kernel's devices need no telling: they run in this process's memory. */
static bool advise(arrival *self, machine *to, uint32_t index)
{
    machine_device *device = &to->devices[index];
    if (!device->kind->user)
        return true;
    return TRY(vhost_user_postcopy_advise(&device->user, &self->peers[index])) &&
           TRY(page_faults_add_peer(&self->faults, self->peers[index])) &&
           TRY(vhost_user_postcopy_listen(&device->user));
}

static bool discard(arrival *self, machine *to, pages *absent)
{
    for (uint64_t page = 0; (page = pages_take(absent, page)) != PAGES_END; page++)
        if (!TRY(page_faults_discard(&self->faults, page * GUEST_RAM_PAGE, GUEST_RAM_PAGE)))
            return false;
    return true;
}

bool arrival_begin(arrival *self, machine *to, int stream, pages *absent)
{
    *self = (arrival){.stream = stream, .faults = {.want = want, .user = self}};
    to->arrival = self;
    if (!TRY(page_faults_open(&self->faults, &to->ram)) || !discard(self, to, absent))
        return false;
    for (uint32_t i = 0; i < to->count; i++)
        if (!advise(self, to, i))
            return false;
    self->runs = pthread_create(&self->thread, NULL, take_pages, self) == 0;
    return self->runs || report_fail(to->report, "no thread");
}

bool arrival_end(arrival *self, machine *to)
{
    if (self->runs)
        (void)pthread_join(self->thread, NULL);
    self->runs = false;
    for (uint32_t i = 0; i < to->count; i++)
        if (to->devices[i].kind->user && TRY(self->code))
            (void)TRY(vhost_user_postcopy_end(&to->devices[i].user));
    printf("   %" PRIu64 " pages were fetched when they were touched, %" PRIu64 " by back-ends\n",
           self->faults.faults, self->faults.theirs);
    page_faults_close(&self->faults);
    return to->report->failure[0] == '\0';
}
