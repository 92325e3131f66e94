/* Section 2: commits of a map that changed in nothing, in one place, or all over; and look-ups. */
#define _GNU_SOURCE
#include "bench.h"
#include "guest.h"
#include "reference.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    LOOKUPS = 100000,
    SECTION = 1 << 20 /* bytes */
};

typedef enum change {
    NOTHING,
    ONE,
    ALL,
    CHANGES
} change;

static const char *const change_names[CHANGES] = {"nothing changes", "one changes", "all change"};

typedef struct scene {
    guest guest;
    change change;
    reference_map maps[GUEST_DEVICES]; /* of each device */
    reference_ring rings[GUEST_DEVICES][GUEST_QUEUES * 3];
    uint64_t *places; /* gpas to look up */
    uintptr_t sum;    /* of what was found */
} scene;

/* A section that changes loses its last page, or has it back: no ring is there. */
static void change_section(vhost_section *section)
{
    section->size ^= VHOST_PAGE;
}

static void change_map(void *user)
{
    scene *self = user;
    guest *g = &self->guest;
    if (self->change == ONE) {
        change_section(&g->sections[g->section_count / 2]);
    } else if (self->change == ALL) {
        for (uint32_t i = 0; i < g->section_count; i++) {
            change_section(&g->sections[i]);
        }
    }
}

static void commit(void *user)
{
    scene *self = user;
    guest_commit(&self->guest);
}

static void commit_reference(void *user)
{
    scene *self = user;
    const guest *g = &self->guest;
    for (unsigned d = 0; d < g->device_count; d++) {
        for (uint32_t i = 0; i < g->section_count; i++) {
            const vhost_section *section = &g->sections[i];
            reference_section added = {section->gpa, section->size, section->backing,
                                       (unsigned char *)section->backing->host + section->offset};
            reference_add(&self->maps[d], &added);
        }
        if (!reference_commit(&self->maps[d])) {
            guest_must(-1, "the reference lost a ring");
        }
    }
}

static void describe_rings(scene *self, unsigned d, unsigned queues)
{
    for (unsigned i = 0; i < queues * 3; i++) {
        const vhost_mapping *part = &self->guest.queue[d][i / 3].rings.part[i % 3];
        self->rings[d][i] = (reference_ring){part->gpa, part->size, part->host};
    }
    self->maps[d].rings = self->rings[d];
    self->maps[d].ring_count = queues * 3;
}

static void open_scene(scene *self, uint32_t sections, unsigned devices, unsigned queues)
{
    memset(self, 0, sizeof *self);
    guest_open(&self->guest, (uint64_t)sections * SECTION, sections, devices, queues);
    for (unsigned d = 0; d < devices; d++) {
        describe_rings(self, d, queues);
    }
    commit_reference(self);
}

static void close_scene(scene *self)
{
    for (unsigned d = 0; d < self->guest.device_count; d++) {
        reference_free(&self->maps[d]);
    }
    guest_close(&self->guest);
}

/* ---- commits ---- */

static void set_bar(bench_row *row, uint32_t sections, change what)
{
    if (what == NOTHING && sections >= 64) {
        row->least_ratio = 3;
    } else if (what == ONE && sections == 512) {
        row->least_ratio = 30;
    }
}

static void race_commits(uint32_t sections, unsigned devices, change what)
{
    static scene self;
    bench_row row = {.unit = BENCH_TIME};
    bench_way ways[] = {{change_map, commit, &self, 0}, {NULL, commit_reference, &self, 0}};
    open_scene(&self, sections, devices, GUEST_QUEUES / devices);
    self.change = what;
    for (int i = 0; i < 3; i++) { /* warm, as is a VMM that runs */
        self.guest.allocations = 0;
        change_map(&self);
        commit(&self);
        commit_reference(&self);
    }
    unsigned allocations = self.guest.allocations;
    bench_race(ways, 2);
    snprintf(row.name, sizeof row.name, "%u sections, %u device%s, %s", sections, devices,
             devices > 1 ? "s" : "", change_names[what]);
    row.ours = ways[0].best;
    row.reference = ways[1].best;
    set_bar(&row, sections, what);
    bench_print(&row);
    if (allocations > (what == NOTHING ? 0 : 1)) {
        bench_note("%u allocations", allocations);
    }
    close_scene(&self);
}

/* ---- look-ups ---- */

static void look_up(void *user)
{
    scene *self = user;
    for (unsigned i = 0; i < LOOKUPS; i++) {
        vhost_extent extent;
        if (vhost_memory_find(&self->guest.vm, self->places[i], &extent) == 0) {
            self->sum += (uintptr_t)extent.host;
        }
    }
}

static void look_up_reference(void *user)
{
    scene *self = user;
    for (unsigned i = 0; i < LOOKUPS / 100; i++) {
        self->sum += (uintptr_t)reference_find(&self->maps[0], self->places[i]);
    }
}

typedef enum order {
    RANDOM,
    HOT,
    SEQUENTIAL,
    ORDERS
} order;

static const char *const order_names[ORDERS] = {"random", "hot", "sequential"};

static void choose_places(scene *self, order what)
{
    uint64_t state = 1, page = SECTION / VHOST_PAGE * (self->guest.section_count / 2);
    for (unsigned i = 0; i < LOOKUPS; i++) {
        state = state * UINT64_C(6364136223846793005) + 1442695040888963407u;
        uint32_t section = (uint32_t)(state >> 33) % self->guest.section_count;
        if (what == RANDOM) {
            page = section * (uint64_t)(SECTION / VHOST_PAGE) + (state >> 20) % 200;
        } else if (what == SEQUENTIAL) {
            page = (page + 1) % (self->guest.section_count * (uint64_t)(SECTION / VHOST_PAGE));
        }
        self->places[i] = page * VHOST_PAGE + (state >> 50) % VHOST_PAGE;
    }
}

static void race_lookups(uint32_t sections, order what)
{
    static scene self;
    bench_row row = {.unit = BENCH_TIME};
    bench_way ways[] = {{NULL, look_up, &self, 0}, {NULL, look_up_reference, &self, 0}};
    open_scene(&self, sections, 1, 1);
    self.places = calloc(LOOKUPS, sizeof *self.places);
    choose_places(&self, what);
    bench_race(ways, 2);
    snprintf(row.name, sizeof row.name, "look-up in %u sections, %s", sections, order_names[what]);
    row.ours = ways[0].best / LOOKUPS;
    row.reference = ways[1].best / (LOOKUPS / 100);
    if (what == RANDOM && (sections == 512 || sections == 32768)) {
        row.most = sections == 512 ? 15 : 50;
    }
    bench_print(&row);
    free(self.places);
    close_scene(&self);
}

void bench_memory(void)
{
    static const uint32_t counts[] = {8, 64, 512, 4096, 32768};
    bench_title(
        "2. The memory map: begin, add every section, commit; devices have 64 queues in all",
        "each device has an array that grows by one section, is compared, copied and, for\n"
        "    each section, checked against each ring; look-up: from the first section on",
        NULL);
    for (unsigned i = 0; i < sizeof counts / sizeof counts[0]; i++) {
        for (int what = NOTHING; what < CHANGES; what++) {
            race_commits(counts[i], 1, (change)what);
            race_commits(counts[i], GUEST_DEVICES, (change)what);
        }
    }
    for (unsigned i = 0; i < sizeof counts / sizeof counts[0]; i += 2) {
        for (int what = RANDOM; what < ORDERS; what++) {
            race_lookups(counts[i], (order)what);
        }
    }
}
