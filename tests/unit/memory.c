/* Sections, transactions, merging and look-up: >>memory. */
#include "fixture.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#define PAGE VHOST_PAGE

/* A host address that nobody may touch. */
static void *untouchable(uint64_t page)
{
    return (void *)(uintptr_t)(UINT64_C(0x20000000) + page * PAGE);
}

static vhost_section section_of(const vhost_backing *backing, uint64_t first_gpa_page,
                                uint64_t pages, uint64_t first_page)
{
    vhost_section section;
    vhost_section_init(&section, first_gpa_page * PAGE, pages * PAGE, backing, first_page * PAGE);
    return section;
}

static vhost_section flagged(vhost_section section, uint32_t flags)
{
    section.flags = flags;
    return section;
}

/* A device that runs without a ring: it shows which table a back-end is given. */
static int observer(fixture *f)
{
    int result = fixture_attach(f, 0);
    return result < 0 ? result : vhost_device_start(&f->device[0]);
}

static enum greatest_test_res table_is(const fixture *f, const vhost_section *regions,
                                       uint32_t count)
{
    const mock_backend *mock = &f->mock[0];
    ASSERT_UINT(count, mock->table_count);
    for (uint32_t i = 0; i < count; i++) {
        ASSERT_U64(regions[i].gpa, mock->table[i].gpa);
        ASSERT_U64(regions[i].size, mock->table[i].size);
        ASSERT_PTR((char *)regions[i].backing->host + regions[i].offset, mock->table[i].host);
        ASSERT_PTR(regions[i].backing, mock->table[i].backing);
    }
    PASS();
}

/* Puts `sections` in force, and expects `regions` in the table. */
static enum greatest_test_res becomes(fixture *f, const vhost_section *sections, size_t count,
                                      const vhost_section *regions, uint32_t region_count)
{
    ASSERT_OK(observer(f));
    ASSERT_OK(fixture_map(f, sections, count));
    return table_is(f, regions, region_count);
}

/* ---- the helpers that fill in ---- */

TEST backing_init_fills_in_everything(fixture *f)
{
    vhost_backing backing;
    memset(&backing, 0xff, sizeof backing);
    vhost_backing_init(&backing, f->host, 8 * PAGE, 0, 3 * PAGE);
    ASSERT_PTR(f->host, backing.host);
    ASSERT_U64(8 * PAGE, backing.size);
    ASSERT_INT(0, backing.fd);
    ASSERT_U64(3 * PAGE, backing.fd_offset);
    ASSERT_U64(4096, backing.page_size);
    ASSERT_UINT(0, backing.flags);
    PASS();
}

TEST section_init_fills_in_everything(fixture *f)
{
    vhost_section section;
    memset(&section, 0xff, sizeof section);
    vhost_section_init(&section, 5 * PAGE, 2 * PAGE, &f->ram, PAGE);
    ASSERT_U64(5 * PAGE, section.gpa);
    ASSERT_U64(2 * PAGE, section.size);
    ASSERT_PTR(&f->ram, section.backing);
    ASSERT_U64(PAGE, section.offset);
    ASSERT_UINT(0, section.flags);
    PASS();
}

/* ---- transactions ---- */

TEST begin_in_a_transaction_is_refused(fixture *f)
{
    ASSERT_OK(vhost_memory_begin(&f->vm));
    ASSERT_FAILS(f, vhost_memory_begin(&f->vm), &f->vm.last_error, -EBUSY, VHOST_WHY_STATE);
    ASSERT_OK(vhost_memory_commit(&f->vm));
    PASS();
}

TEST add_and_commit_need_a_transaction(fixture *f)
{
    ASSERT_FAILS(f, vhost_memory_add(&f->vm, &f->low), &f->vm.last_error, -EBUSY, VHOST_WHY_STATE);
    ASSERT_FAILS(f, vhost_memory_commit(&f->vm), &f->vm.last_error, -EBUSY, VHOST_WHY_STATE);
    PASS();
}

TEST abort_leaves_the_map_as_it_is(fixture *f)
{
    vhost_extent extent;
    ASSERT_OK(fixture_map_default(f));
    ASSERT_OK(vhost_memory_begin(&f->vm));
    vhost_section other = fixture_section(f, FIXTURE_REMOTE, 1, 0);
    ASSERT_OK(vhost_memory_add(&f->vm, &other));
    vhost_memory_abort(&f->vm);
    ASSERT_OK(vhost_memory_find(&f->vm, FIXTURE_HIGH, &extent));
    ASSERT_INT(-EFAULT, vhost_memory_find(&f->vm, FIXTURE_REMOTE, &extent));
    ASSERT_OK(vhost_memory_begin(&f->vm));
    vhost_memory_abort(&f->vm);
    PASS();
}

TEST abort_without_a_transaction_is_harmless(fixture *f)
{
    ASSERT_OK(fixture_map_default(f));
    vhost_memory_abort(&f->vm);
    vhost_extent extent;
    ASSERT_OK(vhost_memory_find(&f->vm, 0, &extent));
    PASS();
}

TEST what_is_not_added_is_gone(fixture *f)
{
    vhost_extent extent;
    ASSERT_OK(fixture_map_default(f));
    ASSERT_OK(fixture_map(f, &f->high, 1));
    ASSERT_INT(-EFAULT, vhost_memory_find(&f->vm, 0, &extent));
    ASSERT_OK(vhost_memory_find(&f->vm, FIXTURE_HIGH, &extent));
    ASSERT_OK(fixture_map(f, NULL, 0));
    ASSERT_INT(-EFAULT, vhost_memory_find(&f->vm, FIXTURE_HIGH, &extent));
    PASS();
}

TEST sections_are_not_seen_before_the_commit(fixture *f)
{
    vhost_extent extent;
    ASSERT_OK(vhost_memory_begin(&f->vm));
    ASSERT_OK(vhost_memory_add(&f->vm, &f->low));
    ASSERT_INT(-EFAULT, vhost_memory_find(&f->vm, 0, &extent));
    ASSERT_OK(vhost_memory_commit(&f->vm));
    ASSERT_OK(vhost_memory_find(&f->vm, 0, &extent));
    PASS();
}

TEST the_section_is_copied(fixture *f)
{
    vhost_extent extent;
    vhost_section section = f->low;
    ASSERT_OK(vhost_memory_begin(&f->vm));
    ASSERT_OK(vhost_memory_add(&f->vm, &section));
    memset(&section, 0xff, sizeof section);
    ASSERT_OK(vhost_memory_commit(&f->vm));
    ASSERT_OK(vhost_memory_find(&f->vm, 0, &extent));
    ASSERT_PTR(f->host, extent.host);
    PASS();
}

TEST a_failed_add_poisons_the_transaction(fixture *f)
{
    vhost_extent extent;
    vhost_section bad = fixture_section(f, FIXTURE_REMOTE, 0, 0);
    ASSERT_OK(fixture_map(f, &f->low, 1));
    ASSERT_OK(vhost_memory_begin(&f->vm));
    ASSERT_FAILS(f, vhost_memory_add(&f->vm, &bad), &f->vm.last_error, -EINVAL,
                 VHOST_WHY_SECTION_EMPTY);
    ASSERT_FAILS(f, vhost_memory_commit(&f->vm), &f->vm.last_error, -EINVAL,
                 VHOST_WHY_SECTION_LOST);
    ASSERT_OK(vhost_memory_find(&f->vm, 0, &extent));
    ASSERT_OK(fixture_map_default(f));
    PASS();
}

TEST a_failed_add_is_not_mended_by_a_good_one(fixture *f)
{
    vhost_section bad = fixture_section(f, 0, 0, 0);
    ASSERT_OK(vhost_memory_begin(&f->vm));
    ASSERT_INT(-EINVAL, vhost_memory_add(&f->vm, &bad));
    (void)vhost_memory_add(&f->vm, &f->low);
    ASSERT_INT(-EINVAL, vhost_memory_commit(&f->vm));
    vhost_extent extent;
    ASSERT_INT(-EFAULT, vhost_memory_find(&f->vm, 0, &extent));
    PASS();
}

TEST a_failed_commit_ends_the_transaction(fixture *f)
{
    vhost_section bad = fixture_section(f, 0, 0, 0);
    ASSERT_OK(vhost_memory_begin(&f->vm));
    ASSERT_INT(-EINVAL, vhost_memory_add(&f->vm, &bad));
    ASSERT_INT(-EINVAL, vhost_memory_commit(&f->vm));
    ASSERT_INT(-EBUSY, vhost_memory_commit(&f->vm));
    ASSERT_OK(vhost_memory_begin(&f->vm));
    vhost_memory_abort(&f->vm);
    PASS();
}

/* ---- what a section must be ---- */

static enum greatest_test_res refused(fixture *f, const vhost_section *section, int code,
                                      vhost_why why)
{
    ASSERT_OK(vhost_memory_begin(&f->vm));
    ASSERT_FAILS(f, vhost_memory_add(&f->vm, section), &f->vm.last_error, code, why);
    vhost_memory_abort(&f->vm);
    PASS();
}

/* `second` is refused when it comes after `first`, and both are named. */
static enum greatest_test_res refused_after(fixture *f, const vhost_section *first,
                                            const vhost_section *second, vhost_why why)
{
    char name[32];
    ASSERT_OK(vhost_memory_begin(&f->vm));
    ASSERT_OK(vhost_memory_add(&f->vm, first));
    ASSERT_FAILS(f, vhost_memory_add(&f->vm, second), &f->vm.last_error, -EINVAL, why);
    snprintf(name, sizeof name, "%llx", (unsigned long long)first->gpa);
    ASSERT(strstr(f->vm.last_error.text, name));
    snprintf(name, sizeof name, "%llx", (unsigned long long)second->gpa);
    ASSERT(strstr(f->vm.last_error.text, name));
    vhost_memory_abort(&f->vm);
    PASS();
}

TEST an_empty_section_is_refused(fixture *f)
{
    vhost_section section = fixture_section(f, PAGE, 0, 0);
    return refused(f, &section, -EINVAL, VHOST_WHY_SECTION_EMPTY);
}

TEST an_unaligned_section_is_refused(fixture *f)
{
    vhost_section gpa = fixture_section(f, PAGE + 2048, 1, 0);
    vhost_section size = fixture_section(f, PAGE, 1, 0);
    vhost_section host = fixture_section(f, PAGE, 1, 0);
    size.size -= 1;
    host.offset = 16;
    CHECK_CALL(refused(f, &gpa, -EINVAL, VHOST_WHY_SECTION_UNALIGNED));
    CHECK_CALL(refused(f, &size, -EINVAL, VHOST_WHY_SECTION_UNALIGNED));
    return refused(f, &host, -EINVAL, VHOST_WHY_SECTION_UNALIGNED);
}

TEST a_section_over_the_end_of_the_address_space_is_refused(fixture *f)
{
    vhost_section section = fixture_section(f, ~UINT64_C(0) - PAGE + 1, 2, 0);
    return refused(f, &section, -EOVERFLOW, VHOST_WHY_SECTION_WRAPS);
}

TEST a_backing_over_the_end_of_the_address_space_is_refused(fixture *f)
{
    vhost_backing endless;
    vhost_section section;
    vhost_backing_init(&endless, f->host, UINT64_MAX - PAGE + 1, -1, 0);
    vhost_section_init(&section, PAGE, PAGE, &endless, 0);
    return refused(f, &section, -EOVERFLOW, VHOST_WHY_SECTION_WRAPS);
}

TEST a_section_up_to_the_end_of_the_address_space_is_fine(fixture *f)
{
    const uint64_t last = ~UINT64_C(0) - PAGE + 1;
    vhost_section section = fixture_section(f, last, 1, 0);
    vhost_extent extent;
    CHECK_CALL(becomes(f, &section, 1, &section, 1));
    ASSERT_OK(vhost_memory_find(&f->vm, ~UINT64_C(0), &extent));
    ASSERT_U64(1, extent.size);
    ASSERT_PTR(f->host + PAGE - 1, extent.host);
    ASSERT_INT(-EFAULT, vhost_memory_find(&f->vm, last - 1, &extent));
    PASS();
}

TEST neighbours_merge_up_to_the_end_of_the_address_space(fixture *f)
{
    const uint64_t gpa = ~UINT64_C(0) - 2 * PAGE + 1;
    vhost_section sections[2];
    sections[0] = fixture_section(f, gpa, 1, 0);
    sections[1] = fixture_section(f, gpa + PAGE, 1, 1);
    vhost_section whole = fixture_section(f, gpa, 2, 0);
    return becomes(f, sections, 2, &whole, 1);
}

TEST nothing_overlaps_or_follows_the_last_page(fixture *f)
{
    const uint64_t gpa = ~UINT64_C(0) - 2 * PAGE + 1;
    vhost_section both = fixture_section(f, gpa, 2, 0);
    vhost_section last = fixture_section(f, gpa + PAGE, 1, 8);
    return refused_after(f, &both, &last, VHOST_WHY_SECTION_OVERLAP);
}

TEST a_section_outside_its_backing_is_refused(fixture *f)
{
    vhost_section over = fixture_section(f, 0, 2, FIXTURE_PAGES - 1);
    vhost_section beyond = fixture_section(f, 0, 1, FIXTURE_PAGES);
    vhost_section wrapping = fixture_section(f, 0, 2, 0);
    wrapping.offset = ~UINT64_C(0) - PAGE + 1;
    CHECK_CALL(refused(f, &over, -EINVAL, VHOST_WHY_SECTION_OUTSIDE));
    CHECK_CALL(refused(f, &beyond, -EINVAL, VHOST_WHY_SECTION_OUTSIDE));
    return refused(f, &wrapping, -EINVAL, VHOST_WHY_SECTION_OUTSIDE);
}

TEST a_section_without_backing_is_refused(fixture *f)
{
    vhost_section section = fixture_section(f, 0, 1, 0);
    vhost_backing nowhere = f->ram;
    section.backing = NULL;
    CHECK_CALL(refused(f, &section, -EINVAL, VHOST_WHY_ARGUMENT));
    nowhere.host = NULL;
    section.backing = &nowhere;
    return refused(f, &section, -EINVAL, VHOST_WHY_ARGUMENT);
}

TEST a_section_before_the_last_is_refused(fixture *f)
{
    vhost_section first = fixture_section(f, 0x40000, 4, 0);
    vhost_section second = fixture_section(f, 0x30000, 4, 8);
    return refused_after(f, &first, &second, VHOST_WHY_SECTION_ORDER);
}

TEST overlap_of_different_memory_is_refused(fixture *f)
{
    vhost_section first = fixture_section(f, 0x40000, 4, 0);
    vhost_section shifted = fixture_section(f, 0x43000, 4, 8);
    CHECK_CALL(refused_after(f, &first, &shifted, VHOST_WHY_SECTION_OVERLAP));

    vhost_backing alias;
    vhost_backing_init(&alias, f->host, 16 * PAGE, -1, 0);
    vhost_section other = section_of(&alias, 0x43, 1, 3);
    return refused_after(f, &first, &other, VHOST_WHY_SECTION_OVERLAP);
}

TEST overlap_with_a_section_before_the_last_is_refused(fixture *f)
{
    vhost_section wide = fixture_section(f, 0x40000, 8, 0);
    vhost_section inner = fixture_section(f, 0x42000, 1, 2);
    vhost_section other = fixture_section(f, 0x45000, 1, 16);
    ASSERT_OK(vhost_memory_begin(&f->vm));
    ASSERT_OK(vhost_memory_add(&f->vm, &wide));
    ASSERT_OK(vhost_memory_add(&f->vm, &inner));
    ASSERT_FAILS(f, vhost_memory_add(&f->vm, &other), &f->vm.last_error, -EINVAL,
                 VHOST_WHY_SECTION_OVERLAP);
    vhost_memory_abort(&f->vm);
    PASS();
}

TEST the_same_memory_with_other_flags_is_not_the_same(fixture *f)
{
    vhost_section ram = fixture_section(f, 0x40000, 4, 0);
    vhost_section rom = flagged(fixture_section(f, 0x42000, 4, 2), VHOST_SECTION_ROM);
    return refused_after(f, &ram, &rom, VHOST_WHY_SECTION_OVERLAP);
}

TEST overlap_of_the_same_memory_is_one(fixture *f)
{
    vhost_section sections[3];
    sections[0] = fixture_section(f, 0x40000, 4, 0);
    sections[1] = fixture_section(f, 0x42000, 4, 2);
    sections[2] = fixture_section(f, 0x43000, 1, 3);
    vhost_section whole = fixture_section(f, 0x40000, 6, 0);
    CHECK_CALL(becomes(f, sections, 3, &whole, 1));
    vhost_extent extent;
    ASSERT_OK(vhost_memory_find(&f->vm, 0x45fff, &extent));
    ASSERT_INT(-EFAULT, vhost_memory_find(&f->vm, 0x46000, &extent));
    PASS();
}

/* ---- merging ---- */

TEST neighbours_of_one_backing_become_one_region(fixture *f)
{
    vhost_section sections[3];
    sections[0] = fixture_section(f, 0, 4, 0);
    sections[1] = fixture_section(f, 4 * PAGE, 4, 4);
    sections[2] = fixture_section(f, 8 * PAGE, 1, 8);
    vhost_section whole = fixture_section(f, 0, 9, 0);
    return becomes(f, sections, 3, &whole, 1);
}

TEST neighbours_of_which_the_memory_does_not_continue_stay_two(fixture *f)
{
    vhost_section sections[2];
    sections[0] = fixture_section(f, 0, 4, 0);
    sections[1] = fixture_section(f, 4 * PAGE, 4, 5);
    return becomes(f, sections, 2, sections, 2);
}

TEST neighbours_of_two_backings_stay_two_even_if_contiguous(fixture *f)
{
    vhost_backing next;
    vhost_backing_init(&next, f->host + 4 * PAGE, 4 * PAGE, -1, 0);
    vhost_section sections[2];
    sections[0] = fixture_section(f, 0, 4, 0);
    sections[1] = section_of(&next, 4, 4, 0);
    CHECK_CALL(becomes(f, sections, 2, sections, 2));
    ASSERT_OK(fixture_map(f, NULL, 0));
    PASS();
}

TEST sections_with_a_hole_between_stay_two(fixture *f)
{
    vhost_section sections[2];
    sections[0] = fixture_section(f, 0, 4, 0);
    sections[1] = fixture_section(f, 5 * PAGE, 4, 5);
    return becomes(f, sections, 2, sections, 2);
}

TEST unmergeable_sections_stay_by_themselves(fixture *f)
{
    vhost_section sections[4];
    for (uint64_t i = 0; i < 4; i++) {
        sections[i] = fixture_section(f, i * PAGE, 1, i);
    }
    sections[1].flags = VHOST_SECTION_UNMERGEABLE;
    sections[2].flags = VHOST_SECTION_UNMERGEABLE;
    return becomes(f, sections, 4, sections, 4);
}

/* ---- the filter ---- */

TEST rom_is_kept_from_back_ends(fixture *f)
{
    vhost_section sections[3];
    sections[0] = fixture_section(f, 0, 4, 0);
    sections[1] = flagged(fixture_section(f, 4 * PAGE, 4, 4), VHOST_SECTION_ROM);
    sections[2] = fixture_section(f, 8 * PAGE, 4, 8);
    vhost_section regions[2];
    regions[0] = sections[0];
    regions[1] = sections[2];
    return becomes(f, sections, 3, regions, 2);
}

TEST memory_mapped_read_only_is_kept_from_back_ends(fixture *f)
{
    vhost_backing fixed = f->ram;
    fixed.flags = VHOST_BACKING_READ_ONLY;
    vhost_section sections[2];
    sections[0] = section_of(&fixed, 0, 4, 0);
    sections[1] = fixture_section(f, 4 * PAGE, 4, 4);
    CHECK_CALL(becomes(f, sections, 2, &sections[1], 1));
    ASSERT_OK(fixture_map(f, NULL, 0));
    PASS();
}

TEST memory_that_others_track_is_kept_from_back_ends(fixture *f)
{
    vhost_section sections[2];
    sections[0] = flagged(fixture_section(f, 0, 4, 0), VHOST_SECTION_DIRTY_TRACKED);
    sections[1] = fixture_section(f, 4 * PAGE, 4, 4);
    return becomes(f, sections, 2, &sections[1], 1);
}

TEST filtered_sections_still_collide(fixture *f)
{
    vhost_section rom = flagged(fixture_section(f, 0x40000, 4, 0), VHOST_SECTION_ROM);
    vhost_section ram = fixture_section(f, 0x42000, 4, 16);
    return refused_after(f, &rom, &ram, VHOST_WHY_SECTION_OVERLAP);
}

TEST each_section_is_traced(fixture *f)
{
    static const vhost_trace_event events[3] = {
        VHOST_TRACE_SECTION_ACCEPTED, VHOST_TRACE_SECTION_MERGED, VHOST_TRACE_SECTION_REJECTED};
    vhost_section sections[3];
    sections[0] = fixture_section(f, 0, 1, 0);
    sections[1] = fixture_section(f, PAGE, 2, 1);
    sections[2] = flagged(fixture_section(f, 3 * PAGE, 1, 3), VHOST_SECTION_ROM);
    ASSERT_OK(observer(f));
    unsigned first = f->trace_count;
    ASSERT_OK(fixture_map(f, sections, 3));
    for (unsigned i = 0; i < 3; i++) {
        const vhost_trace *trace = &f->traces[(first + i) % FIXTURE_TRACES];
        ASSERT_INT(events[i], trace->event);
        ASSERT_PTR(NULL, trace->device);
        ASSERT_U64(sections[i].gpa, trace->gpa);
        ASSERT_U64(sections[i].size, trace->size);
        ASSERT(i < 2 || trace->value == VHOST_SECTION_ROM);
    }
    PASS();
}

/* ---- look-up ---- */

TEST find_in_an_empty_map(fixture *f)
{
    vhost_extent extent;
    ASSERT_INT(-EFAULT, vhost_memory_find(&f->vm, 0, &extent));
    ASSERT_INT(-EFAULT, vhost_memory_find(&f->vm, ~UINT64_C(0), &extent));
    PASS();
}

TEST find_on_boundaries(fixture *f)
{
    vhost_extent extent;
    vhost_section section = fixture_section(f, 0x40000, 4, 2);
    ASSERT_OK(fixture_map(f, &section, 1));
    ASSERT_INT(-EFAULT, vhost_memory_find(&f->vm, 0x3ffff, &extent));
    ASSERT_OK(vhost_memory_find(&f->vm, 0x40000, &extent));
    ASSERT_PTR(f->host + 2 * PAGE, extent.host);
    ASSERT_U64(4 * PAGE, extent.size);
    ASSERT(extent.writable);
    ASSERT_OK(vhost_memory_find(&f->vm, 0x43fff, &extent));
    ASSERT_PTR(f->host + 6 * PAGE - 1, extent.host);
    ASSERT_U64(1, extent.size);
    ASSERT_INT(-EFAULT, vhost_memory_find(&f->vm, 0x44000, &extent));
    PASS();
}

TEST find_gives_no_message(fixture *f)
{
    vhost_extent extent;
    ASSERT_INT(-EFAULT, vhost_memory_find(&f->vm, 0, &extent));
    ASSERT_UINT(0, f->errors);
    ASSERT_INT(0, f->vm.last_error.code);
    PASS();
}

TEST find_goes_on_through_contiguous_sections(fixture *f)
{
    vhost_backing next;
    vhost_backing_init(&next, f->host + 6 * PAGE, 4 * PAGE, -1, 0);
    vhost_section sections[3];
    sections[0] = flagged(fixture_section(f, 0, 2, 2), VHOST_SECTION_UNMERGEABLE);
    sections[1] = flagged(fixture_section(f, 2 * PAGE, 2, 4), VHOST_SECTION_DIRTY_TRACKED);
    sections[2] = section_of(&next, 4, 2, 0);
    ASSERT_OK(fixture_map(f, sections, 3));
    vhost_extent extent;
    ASSERT_OK(vhost_memory_find(&f->vm, PAGE, &extent));
    ASSERT_U64(5 * PAGE, extent.size);
    ASSERT_OK(fixture_map(f, NULL, 0));
    PASS();
}

TEST find_ends_where_the_memory_does_not_continue(fixture *f)
{
    vhost_section sections[2];
    sections[0] = fixture_section(f, 0, 2, 2);
    sections[1] = fixture_section(f, 2 * PAGE, 2, 8);
    ASSERT_OK(fixture_map(f, sections, 2));
    vhost_extent extent;
    ASSERT_OK(vhost_memory_find(&f->vm, 0, &extent));
    ASSERT_U64(2 * PAGE, extent.size);
    PASS();
}

TEST find_tells_what_is_not_writable(fixture *f)
{
    vhost_backing fixed;
    vhost_backing_init(&fixed, f->host + 4 * PAGE, 4 * PAGE, -1, 0);
    fixed.flags = VHOST_BACKING_READ_ONLY;
    vhost_section sections[3];
    sections[0] = fixture_section(f, 0, 2, 0);
    sections[1] = flagged(fixture_section(f, 2 * PAGE, 2, 2), VHOST_SECTION_ROM);
    sections[2] = section_of(&fixed, 8, 2, 0);
    ASSERT_OK(fixture_map(f, sections, 3));
    vhost_extent extent;
    ASSERT_OK(vhost_memory_find(&f->vm, 0, &extent));
    ASSERT(extent.writable);
    ASSERT_U64(2 * PAGE, extent.size);
    ASSERT_OK(vhost_memory_find(&f->vm, 2 * PAGE, &extent));
    ASSERT_FALSE(extent.writable);
    ASSERT_OK(vhost_memory_find(&f->vm, 8 * PAGE, &extent));
    ASSERT_FALSE(extent.writable);
    ASSERT_OK(fixture_map(f, NULL, 0));
    PASS();
}

/* ---- slots ---- */

TEST slots_without_a_limit(fixture *f)
{
    ASSERT_UINT(UINT32_MAX, vhost_memory_free_slots(&f->vm));
    ASSERT_OK(fixture_map_default(f));
    ASSERT_OK(fixture_attach(f, 0));
    ASSERT_UINT(UINT32_MAX, vhost_memory_free_slots(&f->vm));
    PASS();
}

TEST the_fewest_free_slots_of_all_devices_count(fixture *f)
{
    f->mock[0].facts.max_regions = 64;
    f->mock[1].facts.max_regions = 8;
    ASSERT_OK(fixture_map_default(f));
    for (unsigned d = 0; d < 3; d++) {
        ASSERT_OK(fixture_attach(f, d));
    }
    ASSERT_UINT(6, vhost_memory_free_slots(&f->vm));
    vhost_device_cleanup(&f->device[1]);
    ASSERT_UINT(62, vhost_memory_free_slots(&f->vm));
    vhost_device_cleanup(&f->device[2]);
    ASSERT_UINT(62, vhost_memory_free_slots(&f->vm));
    PASS();
}

TEST a_commit_of_too_many_regions_is_refused(fixture *f)
{
    vhost_section sections[3];
    vhost_extent extent;
    for (uint64_t i = 0; i < 3; i++) {
        sections[i] = fixture_section(f, 2 * i * PAGE, 1, 2 * i);
    }
    f->mock[1].facts.max_regions = 2;
    ASSERT_OK(fixture_map(f, sections, 2));
    ASSERT_OK(fixture_attach(f, 0));
    ASSERT_OK(fixture_attach(f, 1));
    ASSERT_UINT(0, vhost_memory_free_slots(&f->vm));
    ASSERT_FAILS(f, fixture_map(f, sections, 3), &f->vm.last_error, -ENOSPC,
                 VHOST_WHY_TOO_MANY_REGIONS);
    ASSERT_INT(-EFAULT, vhost_memory_find(&f->vm, 4 * PAGE, &extent));
    ASSERT_OK(vhost_memory_find(&f->vm, 2 * PAGE, &extent));
    ASSERT_UINT(0, vhost_memory_free_slots(&f->vm));
    ASSERT_OK(fixture_map(f, sections, 1));
    ASSERT_UINT(1, vhost_memory_free_slots(&f->vm));
    PASS();
}

TEST regions_count_against_slots_and_sections_do_not(fixture *f)
{
    vhost_section sections[4];
    for (uint64_t i = 0; i < 4; i++) {
        sections[i] = fixture_section(f, i * PAGE, 1, i);
    }
    sections[3].flags = VHOST_SECTION_ROM;
    f->mock[0].facts.max_regions = 1;
    ASSERT_OK(fixture_attach(f, 0));
    ASSERT_OK(fixture_map(f, sections, 4));
    ASSERT_UINT(0, vhost_memory_free_slots(&f->vm));
    PASS();
}

/* ---- size ---- */

/* `count` sections that cannot merge: neighbours in the guest, in reverse order in the host. */
static int map_many(fixture *f, const vhost_backing *backing, uint64_t count)
{
    int result = vhost_memory_begin(&f->vm);
    for (uint64_t i = 0; i < count && result >= 0; i++) {
        vhost_section section = section_of(backing, i, 1, count - 1 - i);
        result = vhost_memory_add(&f->vm, &section);
    }
    return result < 0 ? result : vhost_memory_commit(&f->vm);
}

static enum greatest_test_res many_sections(fixture *f, uint64_t count)
{
    vhost_backing large;
    vhost_extent extent;
    vhost_backing_init(&large, untouchable(0), count * PAGE, -1, 0);
    ASSERT_OK(observer(f));
    size_t calls_before = f->allocation_calls;
    clock_t start = clock();
    ASSERT_OK(map_many(f, &large, count));
    ASSERT(clock() - start < 2 * CLOCKS_PER_SEC);
    ASSERT(f->allocation_calls - calls_before < 64);
    ASSERT_UINT(count, f->mock[0].table_count);
    for (uint64_t i = 0; i < count; i++) {
        ASSERT_OK(vhost_memory_find(&f->vm, i * PAGE + 7, &extent));
        ASSERT_PTR((char *)untouchable(count - 1 - i) + 7, extent.host);
        ASSERT_U64(PAGE - 7, extent.size);
    }
    PASS();
}

TEST one_section(fixture *f)
{
    return many_sections(f, 1);
}

TEST sections_512(fixture *f)
{
    return many_sections(f, 512);
}

TEST sections_32768(fixture *f)
{
    return many_sections(f, 32768);
}

TEST allocations_grow_with_the_logarithm_of_sections(fixture *f)
{
    vhost_backing large;
    vhost_backing_init(&large, untouchable(0), 32768 * PAGE, -1, 0);
    ASSERT_OK(observer(f));
    size_t before = f->allocation_calls;
    ASSERT_OK(map_many(f, &large, 512));
    size_t small = f->allocation_calls - before;
    before = f->allocation_calls;
    ASSERT_OK(map_many(f, &large, 32768));
    size_t big = f->allocation_calls - before;
    ASSERT(big <= 2 * small + 32);
    PASS();
}

TEST a_commit_that_changes_nothing_allocates_nothing(fixture *f)
{
    ASSERT_OK(fixture_running_device(f));
    ASSERT_OK(fixture_map_default(f));
    ASSERT_OK(fixture_map_default(f));
    mock_forget(&f->mock[0]);
    size_t before = f->allocation_calls;
    ASSERT_OK(fixture_map_default(f));
    ASSERT_UINT(before, f->allocation_calls);
    ASSERT_UINT(0, f->mock[0].calls.count);
    PASS();
}

/* ---- the suite ---- */

static void run_transactions(void)
{
    RUN_PLAIN(backing_init_fills_in_everything);
    RUN_PLAIN(section_init_fills_in_everything);
    RUN_PLAIN(begin_in_a_transaction_is_refused);
    RUN_PLAIN(add_and_commit_need_a_transaction);
    RUN_PLAIN(abort_leaves_the_map_as_it_is);
    RUN_PLAIN(abort_without_a_transaction_is_harmless);
    RUN_PLAIN(what_is_not_added_is_gone);
    RUN_PLAIN(sections_are_not_seen_before_the_commit);
    RUN_PLAIN(the_section_is_copied);
    RUN_PLAIN(a_failed_add_poisons_the_transaction);
    RUN_PLAIN(a_failed_add_is_not_mended_by_a_good_one);
    RUN_PLAIN(a_failed_commit_ends_the_transaction);
}

static void run_sections(void)
{
    RUN_PLAIN(an_empty_section_is_refused);
    RUN_PLAIN(an_unaligned_section_is_refused);
    RUN_PLAIN(a_section_over_the_end_of_the_address_space_is_refused);
    RUN_PLAIN(a_backing_over_the_end_of_the_address_space_is_refused);
    RUN_PLAIN(a_section_up_to_the_end_of_the_address_space_is_fine);
    RUN_PLAIN(neighbours_merge_up_to_the_end_of_the_address_space);
    RUN_PLAIN(nothing_overlaps_or_follows_the_last_page);
    RUN_PLAIN(a_section_outside_its_backing_is_refused);
    RUN_PLAIN(a_section_without_backing_is_refused);
    RUN_PLAIN(a_section_before_the_last_is_refused);
    RUN_PLAIN(overlap_of_different_memory_is_refused);
    RUN_PLAIN(overlap_with_a_section_before_the_last_is_refused);
    RUN_PLAIN(the_same_memory_with_other_flags_is_not_the_same);
    RUN_PLAIN(overlap_of_the_same_memory_is_one);
}

static void run_merging(void)
{
    RUN_BOTH(neighbours_of_one_backing_become_one_region);
    RUN_BOTH(neighbours_of_which_the_memory_does_not_continue_stay_two);
    RUN_BOTH(neighbours_of_two_backings_stay_two_even_if_contiguous);
    RUN_BOTH(sections_with_a_hole_between_stay_two);
    RUN_BOTH(unmergeable_sections_stay_by_themselves);
    RUN_BOTH(rom_is_kept_from_back_ends);
    RUN_BOTH(memory_mapped_read_only_is_kept_from_back_ends);
    RUN_BOTH(memory_that_others_track_is_kept_from_back_ends);
    RUN_PLAIN(filtered_sections_still_collide);
    RUN_PLAIN(each_section_is_traced);
}

static void run_find_and_slots(void)
{
    RUN_PLAIN(find_in_an_empty_map);
    RUN_PLAIN(find_on_boundaries);
    RUN_PLAIN(find_gives_no_message);
    RUN_PLAIN(find_goes_on_through_contiguous_sections);
    RUN_PLAIN(find_ends_where_the_memory_does_not_continue);
    RUN_PLAIN(find_tells_what_is_not_writable);
    RUN_PLAIN(slots_without_a_limit);
    RUN_PLAIN(the_fewest_free_slots_of_all_devices_count);
    RUN_PLAIN(a_commit_of_too_many_regions_is_refused);
    RUN_PLAIN(regions_count_against_slots_and_sections_do_not);
}

static void run_sizes(void)
{
    RUN_PLAIN(one_section);
    RUN_PLAIN(sections_512);
    RUN_BOTH(sections_32768);
    RUN_PLAIN(allocations_grow_with_the_logarithm_of_sections);
    RUN_BOTH(a_commit_that_changes_nothing_allocates_nothing);
}

SUITE(memory_suite)
{
    run_transactions();
    run_sections();
    run_merging();
    run_find_and_slots();
    run_sizes();
}
