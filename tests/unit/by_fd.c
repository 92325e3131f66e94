/* Tables for back-ends in other processes, which map memory by its fd: what they are given, how it
   is rounded to large pages, and how replaced memory is told apart. */
#include "fixture.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define PAGE VHOST_PAGE
#define MIB  UINT64_C(0x100000)
#define GIB  UINT64_C(0x40000000)

enum {
    SECTIONS = 12,
    BACKINGS = 3,
    LARGE_PAGES = 3
};

static const uint64_t page_sizes[LARGE_PAGES] = {4096, 2 * MIB, GIB};

/* Host addresses that nobody may touch, and that any page size divides. */
#if UINTPTR_MAX > UINT32_MAX
#define APART               (64 * GIB)
#define RUN_WIDE(TEST_NAME) RUN_PLAIN(TEST_NAME)
#else
#define APART GIB
#define RUN_WIDE(TEST_NAME)                                                                        \
    do {                                                                                           \
        (void)TEST_NAME;                                                                           \
        SKIP_HERE(#TEST_NAME, "more memory than 32 bits address");                                 \
    } while (0)
#endif

static vhost_backing backing_of(unsigned number, uint64_t size, uint64_t page_size)
{
    vhost_backing backing;
    vhost_backing_init(&backing, (void *)(uintptr_t)((number + 1) * APART), size,
                       (int)number /* 0 is an fd */, 0);
    backing.page_size = page_size;
    return backing;
}

static vhost_section section_of(const vhost_backing *backing, uint64_t gpa, uint64_t size,
                                uint64_t offset)
{
    vhost_section section;
    vhost_section_init(&section, gpa, size, backing, offset);
    return section;
}

/* Device 0, which never starts: for its table. */
static int attach(fixture *f, vhost_profile profile)
{
    f->mock[0].facts.profile = profile;
    return fixture_attach(f, 0);
}

static unsigned count_traces(const fixture *f, vhost_trace_event event)
{
    unsigned count = 0;
    for (unsigned i = 0; i < f->trace_count && i < FIXTURE_TRACES; i++) {
        count += f->traces[i].event == event;
    }
    return count;
}

typedef struct expected_region {
    uint64_t gpa, size, offset;
} expected_region;

static enum greatest_test_res table_is(const fixture *f, const expected_region *regions,
                                       uint32_t count)
{
    const vhost_table *table = vhost_device_table(&f->device[0]);
    ASSERT_UINT(count, table->count);
    for (uint32_t i = 0; i < count; i++) {
        const vhost_region *region = &table->regions[i];
        ASSERT_U64(regions[i].gpa, region->gpa);
        ASSERT_U64(regions[i].size, region->size);
        ASSERT_PTR((char *)region->backing->host + regions[i].offset, region->host);
    }
    PASS();
}

/* ---- what goes out at all ---- */

TEST memory_without_an_fd_is_kept_from_other_processes(fixture *f)
{
    for (int profile = VHOST_PROFILE_BY_HOST; profile < VHOST_PROFILE_COUNT; profile++) {
        vhost_backing shared = backing_of(0, MIB, 4096), nameless = backing_of(1, MIB, 4096);
        nameless.fd = -1;
        vhost_section sections[2] = {section_of(&shared, 0, MIB, 0),
                                     section_of(&nameless, MIB, MIB, 0)};
        ASSERT_OK(attach(f, (vhost_profile)profile));
        f->trace_count = 0;
        ASSERT_OK(fixture_map(f, sections, 2));
        bool by_fd = profile == VHOST_PROFILE_BY_FD || profile == VHOST_PROFILE_SLOTS;
        ASSERT_UINT(by_fd ? 1 : 2, vhost_device_table(&f->device[0])->count);
        ASSERT_UINT(by_fd ? 1 : 0, count_traces(f, VHOST_TRACE_SECTION_REJECTED));
        CHECK_CALL(fixture_renew(f));
    }
    PASS();
}

TEST private_memory_is_kept_from_other_processes(fixture *f)
{
    for (int profile = VHOST_PROFILE_BY_HOST; profile < VHOST_PROFILE_COUNT; profile++) {
        vhost_backing own = backing_of(0, MIB, 4096);
        own.flags = VHOST_BACKING_PRIVATE;
        vhost_section section = section_of(&own, 0, MIB, 0);
        ASSERT_OK(attach(f, (vhost_profile)profile));
        ASSERT_OK(fixture_map(f, &section, 1));
        bool by_fd = profile == VHOST_PROFILE_BY_FD || profile == VHOST_PROFILE_SLOTS;
        ASSERT_UINT(by_fd ? 0 : 1, vhost_device_table(&f->device[0])->count);
        CHECK_CALL(fixture_renew(f));
    }
    PASS();
}

TEST a_page_size_that_is_none_is_refused(fixture *f)
{
    const uint64_t wrong[] = {0, 1, 2048, 4097, 12288, UINT64_MAX};
    for (unsigned i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        vhost_backing backing = backing_of(0, MIB, wrong[i]);
        vhost_section section = section_of(&backing, 0, MIB, 0);
        ASSERT_OK(vhost_memory_begin(&f->vm));
        ASSERT_FAILS(f, vhost_memory_add(&f->vm, &section), &f->vm.last_error, -EINVAL,
                     VHOST_WHY_ARGUMENT);
        vhost_memory_abort(&f->vm);
    }
    PASS();
}

TEST neighbours_of_one_fd_become_one_region_but_slots_stay_apart(fixture *f)
{
    vhost_backing backing = backing_of(0, 4 * MIB, 4096);
    vhost_section sections[2] = {section_of(&backing, 0, MIB, 0),
                                 section_of(&backing, MIB, MIB, MIB)};
    const expected_region one[] = {{0, 2 * MIB, 0}};
    const expected_region two[] = {{0, MIB, 0}, {MIB, MIB, MIB}};
    ASSERT_OK(attach(f, VHOST_PROFILE_BY_FD));
    ASSERT_OK(fixture_map(f, sections, 2));
    CHECK_CALL(table_is(f, one, 1));
    CHECK_CALL(fixture_renew(f));
    ASSERT_OK(attach(f, VHOST_PROFILE_SLOTS));
    ASSERT_OK(fixture_map(f, sections, 2));
    CHECK_CALL(table_is(f, two, 2));
    PASS();
}

TEST each_profile_has_a_table_of_its_own(fixture *f)
{
    f->ram.fd = 5;
    f->mock[1].facts.profile = VHOST_PROFILE_BY_FD;
    f->mock[2].facts.profile = VHOST_PROFILE_SLOTS;
    vhost_section sections[2] = {fixture_section(f, 0, 64, 0),
                                 fixture_section(f, 64 * PAGE, 192, 64)};
    ASSERT_OK(fixture_map(f, sections, 2));
    for (unsigned d = 0; d < FIXTURE_DEVICES; d++) {
        ASSERT_OK(fixture_attach(f, d));
        ASSERT_OK(fixture_start(f, d));
        ASSERT_UINT(d < 2 ? 1 : 2, f->mock[d].table_count);
    }
    ASSERT_OK(fixture_map(f, sections, 1));
    for (unsigned d = 0; d < FIXTURE_DEVICES; d++) {
        ASSERT_UINT(1, f->mock[d].table_count);
    }
    PASS();
}

/* ---- rings ---- */

TEST a_ring_in_two_regions_by_fd_is_refused(fixture *f)
{
    vhost_section sections[2] = {fixture_section(f, 0, 9, 0), fixture_section(f, 9 * PAGE, 247, 9)};
    f->ram.fd = 5;
    ASSERT_OK(fixture_map(f, sections, 2));
    ASSERT_OK(attach(f, VHOST_PROFILE_SLOTS));
    fixture_fill(f, 0);
    ASSERT_OK(vhost_device_start(&f->device[0])); /* no part lies on the seam */
    ASSERT_OK(vhost_device_stop(&f->device[0]));
    f->queue[0][0].desc += 16;
    ASSERT_FAILS(f, vhost_device_start(&f->device[0]), &f->device[0].last_error, -EFAULT,
                 VHOST_WHY_RING_UNMAPPED);
    PASS();
}

TEST a_ring_in_private_memory_is_refused_by_fd(fixture *f)
{
    ASSERT_OK(fixture_map_default(f));
    ASSERT_OK(attach(f, VHOST_PROFILE_BY_FD));
    fixture_fill(f, 0);
    ASSERT_FAILS(f, vhost_device_start(&f->device[0]), &f->device[0].last_error, -EFAULT,
                 VHOST_WHY_RING_UNMAPPED);
    PASS();
}

TEST a_running_ring_that_comes_to_lie_in_two_slots_breaks_its_device(fixture *f)
{
    f->ram.fd = 5;
    ASSERT_OK(fixture_map_default(f));
    ASSERT_OK(attach(f, VHOST_PROFILE_SLOTS));
    fixture_fill(f, 0);
    f->queue[0][0].desc += 16;
    ASSERT_OK(vhost_device_start(&f->device[0]));
    vhost_section sections[2] = {fixture_section(f, 0, 9, 0), fixture_section(f, 9 * PAGE, 119, 9)};
    ASSERT_OK(fixture_map(f, sections, 2));
    ASSERT_INT(VHOST_STATE_BROKEN, f->device[0].state);
    ASSERT_INT(VHOST_WHY_RING_UNMAPPED, f->device[0].last_error.why);
    PASS();
}

/* ---- memory that is replaced ---- */

/* The whole map in `ram`, as it stands behind `fd`. */
static int map_ram(fixture *f, int fd)
{
    f->ram.fd = fd;
    return fixture_map_default(f);
}

TEST memory_replaced_while_stopped_is_sent_anew(fixture *f)
{
    for (int profile = VHOST_PROFILE_BY_FD; profile <= VHOST_PROFILE_SLOTS; profile++) {
        ASSERT_OK(map_ram(f, 5));
        ASSERT_OK(attach(f, (vhost_profile)profile));
        ASSERT_OK(fixture_start(f, 0));
        ASSERT_OK(vhost_device_stop(&f->device[0]));
        mock_forget(&f->mock[0]);
        ASSERT_OK(fixture_map(f, NULL, 0));
        ASSERT_OK(map_ram(f, 5)); /* the very same, as far as one can see */
        ASSERT_OK(vhost_device_start(&f->device[0]));
        const mock_call *call = mock_last(&f->mock[0], VHOST_OP_SET_TABLE, -1);
        ASSERT_UINT(2, call->removed_count);
        ASSERT_UINT(2, call->added_count);
        CHECK_CALL(fixture_renew(f));
    }
    PASS();
}

TEST memory_that_stays_is_not_sent_anew(fixture *f)
{
    ASSERT_OK(map_ram(f, 5));
    ASSERT_OK(attach(f, VHOST_PROFILE_SLOTS));
    ASSERT_OK(fixture_start(f, 0));
    ASSERT_OK(fixture_map(f, &f->low, 1));
    ASSERT_OK(fixture_map_default(f)); /* only the high half went away and came */
    const mock_call *call = mock_last(&f->mock[0], VHOST_OP_SET_TABLE, -1);
    ASSERT_UINT(0, call->removed_count);
    ASSERT_UINT(1, call->added_count);
    PASS();
}

TEST another_backing_struct_at_the_same_address_is_a_change(fixture *f)
{
    ASSERT_OK(map_ram(f, 5));
    ASSERT_OK(attach(f, VHOST_PROFILE_BY_FD));
    uint64_t before = vhost_device_table(&f->device[0])->regions[0].serial;
    ASSERT_OK(map_ram(f, 6));
    uint64_t after = vhost_device_table(&f->device[0])->regions[0].serial;
    ASSERT(after > before);
    f->ram.fd_offset = PAGE;
    ASSERT_OK(map_ram(f, 6));
    ASSERT(vhost_device_table(&f->device[0])->regions[0].serial > after);
    PASS();
}

/* ---- rounding: a PC (M5, D16) ---- */

/* 640 KiB, ROM, RAM from 1 MiB to `low_end`, a hole, the rest from 4 GiB on. */
static void lay_out_pc(vhost_section *sections, const vhost_backing *ram, const vhost_backing *rom,
                       uint64_t low_end)
{
    sections[0] = section_of(ram, 0, 640 * 1024, 0);
    sections[1] = section_of(rom, 0xc0000, 256 * 1024, 0);
    sections[1].flags = VHOST_SECTION_ROM;
    sections[2] = section_of(ram, MIB, low_end - MIB, MIB);
    sections[3] = section_of(ram, 4 * GIB, 8 * GIB - low_end, low_end);
}

TEST a_pc_with_large_pages_goes_out_as_exact_as_it_must(fixture *f)
{
    for (int profile = VHOST_PROFILE_BY_FD; profile <= VHOST_PROFILE_SLOTS; profile++) {
        for (unsigned i = 0; i < LARGE_PAGES; i++) {
            vhost_backing ram = backing_of(0, 8 * GIB, page_sizes[i]);
            vhost_backing rom = backing_of(1, 256 * 1024, 4096);
            vhost_section sections[4];
            lay_out_pc(sections, &ram, &rom, 3 * GIB);
            const expected_region regions[] = {
                {0, 640 * 1024, 0}, {MIB, 3 * GIB - MIB, MIB}, {4 * GIB, 5 * GIB, 3 * GIB}};
            ASSERT_OK(attach(f, (vhost_profile)profile));
            f->trace_count = 0;
            ASSERT_OK(fixture_map(f, sections, 4));
            CHECK_CALL(table_is(f, regions, 3));
            ASSERT_UINT(i == 0 ? 0 : 2, count_traces(f, VHOST_TRACE_SECTION_UNROUNDED));
            CHECK_CALL(fixture_renew(f));
        }
    }
    PASS();
}

TEST the_first_to_reach_a_hole_is_rounded_into_it(fixture *f)
{
    vhost_backing ram = backing_of(0, 8 * GIB, GIB), rom = backing_of(1, 256 * 1024, 4096);
    vhost_section sections[4];
    lay_out_pc(sections, &ram, &rom, 3 * GIB + 256 * MIB);
    const expected_region regions[] = {{0, 640 * 1024, 0},
                                       {MIB, 4 * GIB - MIB, MIB},
                                       {4 * GIB, 5 * GIB - 256 * MIB, 3 * GIB + 256 * MIB}};
    ASSERT_OK(attach(f, VHOST_PROFILE_BY_FD));
    f->trace_count = 0;
    ASSERT_OK(fixture_map(f, sections, 4));
    CHECK_CALL(table_is(f, regions, 3));
    ASSERT_UINT(3, count_traces(f, VHOST_TRACE_SECTION_UNROUNDED));
    PASS();
}

TEST a_pc_of_several_backings_is_not_rounded_over_their_ends(fixture *f)
{
    vhost_backing below = backing_of(0, 640 * 1024, 2 * MIB);
    vhost_backing low = backing_of(1, 3 * GIB - MIB, 2 * MIB), high = backing_of(2, GIB, GIB);
    vhost_section sections[3] = {section_of(&below, 0, 640 * 1024, 0),
                                 section_of(&low, MIB, 3 * GIB - MIB, 0),
                                 section_of(&high, 4 * GIB, GIB, 0)};
    const expected_region regions[] = {
        {0, 640 * 1024, 0}, {MIB, 3 * GIB - MIB, 0}, {4 * GIB, GIB, 0}};
    ASSERT_OK(attach(f, VHOST_PROFILE_BY_FD));
    ASSERT_OK(fixture_map(f, sections, 3));
    CHECK_CALL(table_is(f, regions, 3));
    PASS();
}

TEST a_hole_that_rounding_closes_goes_out_by_fd(fixture *f)
{
    vhost_backing ram = backing_of(0, 8 * MIB, 2 * MIB);
    vhost_section sections[2] = {section_of(&ram, 0, 640 * 1024, 0),
                                 section_of(&ram, MIB, 2 * MIB, MIB)};
    const expected_region one[] = {{0, 4 * MIB, 0}};
    const expected_region two[] = {{0, 640 * 1024, 0}, {MIB, 3 * MIB, MIB}};
    ASSERT_OK(attach(f, VHOST_PROFILE_BY_FD));
    ASSERT_OK(fixture_map(f, sections, 2));
    CHECK_CALL(table_is(f, one, 1));
    CHECK_CALL(fixture_renew(f));
    ASSERT_OK(attach(f, VHOST_PROFILE_SLOTS));
    ASSERT_OK(fixture_map(f, sections, 2));
    CHECK_CALL(table_is(f, two, 2));
    PASS();
}

TEST rounding_does_not_leave_the_address_space(fixture *f)
{
    vhost_backing ram = backing_of(0, 8 * MIB, 2 * MIB);
    uint64_t top = UINT64_MAX - MIB + 1;
    vhost_section sections[2] = {section_of(&ram, 0, MIB, 3 * MIB),
                                 section_of(&ram, top, MIB, 4 * MIB)};
    const expected_region regions[] = {{0, MIB, 3 * MIB}, {top, MIB, 4 * MIB}};
    ASSERT_OK(attach(f, VHOST_PROFILE_BY_FD));
    ASSERT_OK(fixture_map(f, sections, 2));
    return table_is(f, regions, 2);
}

/* ---- rounding: anything ---- */

typedef struct layout {
    uint64_t random;
    vhost_backing backings[BACKINGS];
    vhost_section sections[SECTIONS];
    uint32_t count;
} layout;

static uint64_t roll(layout *l, uint64_t sides)
{
    l->random ^= l->random << 13;
    l->random ^= l->random >> 7;
    l->random ^= l->random << 17;
    return (l->random >> 11) % sides;
}

/* Sections of half pages, mostly: neighbours, near neighbours, with memory that continues or not.
   Page sizes differ from backing to backing. */
static void lay_out(layout *l)
{
    static const uint64_t steps[] = {4096, 64 * 1024, MIB, 512 * MIB};
    static const uint32_t flags[8] = {VHOST_SECTION_ROM, VHOST_SECTION_DIRTY_TRACKED,
                                      VHOST_SECTION_UNMERGEABLE};
    uint64_t gpa = roll(l, 3) * steps[roll(l, 4)], moved = 0;
    for (unsigned i = 0; i < BACKINGS; i++) {
        l->backings[i] = backing_of(i, 8 * GIB, page_sizes[roll(l, LARGE_PAGES)]);
        l->backings[i].fd = roll(l, 6) ? (int)i : -1;
    }
    l->count = 1 + (uint32_t)roll(l, SECTIONS);
    for (uint32_t i = 0; i < l->count; i++) {
        uint64_t size = (1 + roll(l, 3)) * steps[roll(l, 4)];
        const vhost_backing *backing = &l->backings[roll(l, 2) ? 0 : roll(l, BACKINGS)];
        moved = roll(l, 3) ? moved : roll(l, 3) * steps[roll(l, 4)];
        uint64_t offset = (gpa + moved) % (8 * GIB);
        size = size < 8 * GIB - offset ? size : 8 * GIB - offset;
        l->sections[i] = section_of(backing, gpa, size, offset);
        l->sections[i].flags = flags[roll(l, 8)];
        gpa += size + (roll(l, 2) ? 0 : roll(l, 3) * steps[roll(l, 4)]);
    }
}

static bool goes_out(const vhost_section *section)
{
    return section->backing->fd >= 0 &&
           !(section->flags & (VHOST_SECTION_ROM | VHOST_SECTION_DIRTY_TRACKED));
}

static const char *host_of(const vhost_section *section)
{
    return (const char *)section->backing->host + section->offset;
}

/* Whether a region has just this memory where the section is, or, `out`, anything else there. */
static bool region_has(const vhost_region *region, const vhost_section *section, bool *collides)
{
    bool apart = region->gpa + (region->size - 1) < section->gpa ||
                 section->gpa + (section->size - 1) < region->gpa;
    bool whole =
        region->gpa <= section->gpa && section->gpa - region->gpa + section->size <= region->size;
    bool same = whole && goes_out(section) && region->backing == section->backing &&
                (const char *)region->host + (section->gpa - region->gpa) == host_of(section);
    *collides |= !apart && !same;
    return same;
}

static bool is_inside_backing(const vhost_region *region)
{
    const char *host = (const char *)region->host, *begin = (const char *)region->backing->host;
    return host >= begin && (uint64_t)(host - begin) + region->size <= region->backing->size;
}

static enum greatest_test_res check_layout(const layout *l, const vhost_table *table)
{
    bool collides = false;
    for (uint32_t r = 0; r < table->count; r++) {
        const vhost_region *region = &table->regions[r];
        ASSERT(is_inside_backing(region));
        ASSERT(r == 0 || region->gpa - region[-1].gpa >= region[-1].size);
        ASSERT(r == 0 || region->gpa > region[-1].gpa);
    }
    for (uint32_t s = 0; s < l->count; s++) {
        unsigned found = 0;
        for (uint32_t r = 0; r < table->count; r++) {
            found += region_has(&table->regions[r], &l->sections[s], &collides);
        }
        ASSERT_UINT(goes_out(&l->sections[s]), found);
    }
    ASSERT_FALSE(collides);
    PASS();
}

TEST random_layouts_are_covered_and_nothing_else(fixture *f)
{
    static layout l;
    const char *runs_text = getenv("VHOST_MODEL_RUNS");
    uint64_t runs = runs_text ? strtoull(runs_text, NULL, 10) : 20000;
    uint64_t rounded = 0;
    for (int profile = VHOST_PROFILE_BY_FD; profile <= VHOST_PROFILE_SLOTS; profile++) {
        l.random = UINT64_C(0x9e3779b97f4a7c15);
        ASSERT_OK(attach(f, (vhost_profile)profile));
        for (uint64_t run = 0; run < runs; run++) {
            lay_out(&l);
            ASSERT_OK(fixture_map(f, l.sections, l.count));
            const vhost_table *table = vhost_device_table(&f->device[0]);
            CHECK_CALL(check_layout(&l, table));
            for (uint32_t r = 0; r < table->count; r++) {
                rounded += table->regions[r].size % (2 * MIB) == 0;
            }
        }
        CHECK_CALL(fixture_renew(f));
    }
    ASSERT(rounded > runs / 4);
    PASS();
}

SUITE(by_fd_suite)
{
    RUN_PLAIN(memory_without_an_fd_is_kept_from_other_processes);
    RUN_PLAIN(private_memory_is_kept_from_other_processes);
    RUN_PLAIN(a_page_size_that_is_none_is_refused);
    RUN_PLAIN(neighbours_of_one_fd_become_one_region_but_slots_stay_apart);
    RUN_BOTH(each_profile_has_a_table_of_its_own);
    RUN_PLAIN(a_ring_in_two_regions_by_fd_is_refused);
    RUN_PLAIN(a_ring_in_private_memory_is_refused_by_fd);
    RUN_BOTH(a_running_ring_that_comes_to_lie_in_two_slots_breaks_its_device);
    RUN_BOTH(memory_replaced_while_stopped_is_sent_anew);
    RUN_BOTH(memory_that_stays_is_not_sent_anew);
    RUN_PLAIN(another_backing_struct_at_the_same_address_is_a_change);
    RUN_WIDE(a_pc_with_large_pages_goes_out_as_exact_as_it_must);
    RUN_WIDE(the_first_to_reach_a_hole_is_rounded_into_it);
    RUN_WIDE(a_pc_of_several_backings_is_not_rounded_over_their_ends);
    RUN_PLAIN(a_hole_that_rounding_closes_goes_out_by_fd);
    RUN_PLAIN(rounding_does_not_leave_the_address_space);
    RUN_WIDE(random_layouts_are_covered_and_nothing_else);
}
