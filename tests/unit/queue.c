/* Rings: mapping, single start and stop, positions, masks: >>queue. */
#include "fixture.h"

#include <errno.h>
#include <string.h>

#define BIT(n) (UINT64_C(1) << (n))
#define PAGE   VHOST_PAGE

static const uint64_t low_end = FIXTURE_PAGES / 2 * VHOST_PAGE; /* of the section `low` */

/* A stopped device that acknowledged these features besides VERSION_1. */
static int stopped_with(fixture *f, uint64_t features)
{
    f->accepted = fixture_features(BIT(VHOST_FEATURE_VERSION_1) | features, 0);
    return fixture_stopped_device(f);
}

static int legacy_stopped(fixture *f)
{
    f->accepted = fixture_features(0, 0);
    return fixture_stopped_device(f);
}

static const uint64_t packed = BIT(VHOST_FEATURE_RING_PACKED);
static const uint64_t in_order = BIT(VHOST_FEATURE_IN_ORDER);
static const uint64_t event_idx = BIT(VHOST_FEATURE_EVENT_IDX);

/* Start refuses queue 1, and nothing of the device changes. */
static enum greatest_test_res start_refused(fixture *f, int code, vhost_why why)
{
    ASSERT_FAILS(f, vhost_device_start(&f->device[0]), &f->device[0].last_error, code, why);
    CHECK_CALL(fixture_names(&f->device[0].last_error, VHOST_OP_NONE, 1));
    ASSERT_INT(VHOST_STATE_STOPPED, f->device[0].state);
    return fixture_check(f);
}

static enum greatest_test_res start_and_stop(fixture *f)
{
    ASSERT_OK(vhost_device_start(&f->device[0]));
    CHECK_CALL(fixture_check(f));
    ASSERT_OK(vhost_device_stop(&f->device[0]));
    return fixture_check(f);
}

static enum greatest_test_res position_is(const vhost_position *position,
                                          vhost_position_state state, uint16_t avail)
{
    ASSERT_INT(state, position->state);
    ASSERT_UINT(avail, position->avail);
    PASS();
}

/* ---- what a ring must be ---- */

TEST queue_init_fills_in_everything(void)
{
    vhost_queue queue;
    memset(&queue, 0xff, sizeof queue);
    vhost_queue_init(&queue);
    ASSERT_INT(-1, queue.kick_fd);
    ASSERT_INT(-1, queue.call_fd);
    ASSERT_FALSE(queue.ready);
    ASSERT_FALSE(queue.started);
    ASSERT_FALSE(queue.masked);
    ASSERT_UINT(0, queue.size);
    ASSERT_INT(VHOST_POSITION_INITIAL, queue.position.state);
    PASS();
}

TEST split_rings_have_a_power_of_two_of_descriptors(fixture *f)
{
    static const uint32_t wrong[] = {0, 3, 100, 255, 32769, 65536, UINT32_C(0x80000000)};
    ASSERT_OK(stopped_with(f, 0));
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        f->queue[0][1].size = wrong[i];
        CHECK_CALL(start_refused(f, -EINVAL, VHOST_WHY_RING_SIZE));
    }
    f->queue[0][1].size = 1;
    return start_and_stop(f);
}

TEST packed_rings_have_any_number_of_descriptors(fixture *f)
{
    static const uint32_t wrong[] = {0, 32769, UINT32_C(0xffffffff)};
    ASSERT_OK(stopped_with(f, packed));
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        f->queue[0][1].size = wrong[i];
        CHECK_CALL(start_refused(f, -EINVAL, VHOST_WHY_RING_SIZE));
    }
    f->queue[0][1].size = 3;
    return start_and_stop(f);
}

TEST a_ring_of_the_largest_size(fixture *f)
{
    vhost_section whole = fixture_section(f, 0, FIXTURE_PAGES, 0);
    ASSERT_OK(stopped_with(f, 0));
    ASSERT_OK(fixture_map(f, &whole, 1));
    f->queue[0][0].ready = false;
    f->queue[0][2].ready = false;
    f->queue[0][1].size = 32768;
    f->queue[0][1].desc = 0;
    f->queue[0][1].avail = UINT64_C(16) * 32768;
    f->queue[0][1].used = f->queue[0][1].avail + PAGE * 17;
    return start_and_stop(f);
}

static uint64_t *ring_part(vhost_queue *queue, int part)
{
    uint64_t *const parts[3] = {&queue->desc, &queue->avail, &queue->used};
    return parts[part];
}

/* Each part is fine at its alignment, and refused at half of it. */
static enum greatest_test_res check_alignment(fixture *f, const uint64_t align[3])
{
    for (int part = 0; part < 3; part++) {
        uint64_t *address = ring_part(&f->queue[0][1], part);
        uint64_t before = *address;
        *address = before + align[part] / 2;
        CHECK_CALL(start_refused(f, -EINVAL, VHOST_WHY_RING_UNALIGNED));
        *address = before + align[part];
        CHECK_CALL(start_and_stop(f));
        *address = before;
    }
    PASS();
}

TEST parts_of_split_rings_are_aligned(fixture *f)
{
    static const uint64_t align[3] = {16, 2, 4};
    ASSERT_OK(stopped_with(f, 0));
    f->queue[0][1].size = 64;
    return check_alignment(f, align);
}

TEST parts_of_packed_rings_are_aligned(fixture *f)
{
    static const uint64_t align[3] = {16, 4, 4};
    ASSERT_OK(stopped_with(f, packed));
    f->queue[0][1].size = 64;
    return check_alignment(f, align);
}

/* Each part fits when it ends with the memory, and does not when it is `align` further up. */
static enum greatest_test_res check_sizes(fixture *f, const uint64_t sizes[3],
                                          const uint64_t align[3])
{
    for (int part = 0; part < 3; part++) {
        uint64_t *address = ring_part(&f->queue[0][1], part);
        uint64_t before = *address;
        *address = low_end - sizes[part];
        CHECK_CALL(start_and_stop(f));
        const mock_call *call = mock_last(&f->mock[0], VHOST_OP_SET_RING_ADDRESSES, 1);
        ASSERT_U64(sizes[part], call->addresses.part[part].size);
        *address += align[part];
        CHECK_CALL(start_refused(f, -EFAULT, VHOST_WHY_RING_UNMAPPED));
        *address = before;
    }
    PASS();
}

TEST split_rings_end_with_memory(fixture *f)
{
    static const uint64_t sizes[3] = {16 * 64, 4 + 2 * 64, 4 + 8 * 64};
    static const uint64_t align[3] = {16, 2, 4};
    ASSERT_OK(stopped_with(f, 0));
    f->queue[0][1].size = 64;
    return check_sizes(f, sizes, align);
}

TEST split_rings_with_event_idx_are_longer(fixture *f)
{
    static const uint64_t sizes[2] = {4 + 2 * 64 + 2, 4 + 8 * 64 + 2};
    ASSERT_OK(stopped_with(f, event_idx));
    f->queue[0][1].size = 64;
    f->queue[0][1].avail = low_end - sizes[0];
    CHECK_CALL(start_and_stop(f));
    f->queue[0][1].avail = low_end - sizes[0] + 2;
    CHECK_CALL(start_refused(f, -EFAULT, VHOST_WHY_RING_UNMAPPED));
    f->queue[0][1].avail = 9 * PAGE;
    f->queue[0][1].used = low_end - 8 * 64 - 4;
    return start_refused(f, -EFAULT, VHOST_WHY_RING_UNMAPPED);
}

TEST packed_rings_end_with_memory(fixture *f)
{
    static const uint64_t sizes[3] = {16 * 65, 4, 4};
    static const uint64_t align[3] = {16, 4, 4};
    ASSERT_OK(stopped_with(f, packed));
    f->queue[0][1].size = 65;
    return check_sizes(f, sizes, align);
}

TEST rings_over_the_end_of_the_address_space(fixture *f)
{
    ASSERT_OK(stopped_with(f, 0));
    f->queue[0][1].used = ~UINT64_C(0) - 15;
    CHECK_CALL(start_refused(f, -EOVERFLOW, VHOST_WHY_RING_WRAPS));
    f->queue[0][1].used = UINT64_C(0) - (4 + 8 * FIXTURE_RING_SIZE);
    return start_refused(f, -EFAULT, VHOST_WHY_RING_UNMAPPED);
}

TEST rings_that_are_not_in_memory(fixture *f)
{
    ASSERT_OK(stopped_with(f, 0));
    for (int part = 0; part < 3; part++) {
        uint64_t *address = ring_part(&f->queue[0][1], part);
        uint64_t before = *address;
        *address = FIXTURE_REMOTE;
        CHECK_CALL(start_refused(f, -EFAULT, VHOST_WHY_RING_UNMAPPED));
        *address = before;
    }
    PASS();
}

TEST rings_may_lie_high(fixture *f)
{
    ASSERT_OK(stopped_with(f, 0));
    f->queue[0][1].used = FIXTURE_HIGH;
    CHECK_CALL(start_and_stop(f));
    const mock_call *call = mock_last(&f->mock[0], VHOST_OP_SET_RING_ADDRESSES, 1);
    const vhost_mapping *used = &call->addresses.part[VHOST_USED];
    ASSERT_U64(FIXTURE_HIGH, used->address);
    ASSERT_U64(FIXTURE_HIGH, used->gpa);
    ASSERT_PTR(f->host + low_end, used->host);
    ASSERT_FALSE(call->addresses.iova);
    ASSERT_FALSE(call->addresses.log);
    PASS();
}

/* Maps `ram` in two sections that meet in the middle of the used ring of queue 1; above them is
   memory for back-ends, so that a log would reach as far. */
static int map_in_two(fixture *f, uint64_t second_page, uint32_t second_flags)
{
    vhost_section sections[3];
    sections[0] = fixture_section(f, 0, 32, 0);
    sections[1] = fixture_section(f, 32 * PAGE, 32, second_page);
    sections[1].flags = second_flags;
    sections[2] = fixture_section(f, 128 * PAGE, 1, 128);
    f->queue[0][1].used = 32 * PAGE - 1024;
    return fixture_map(f, sections, 3);
}

TEST a_ring_over_two_sections_with_contiguous_memory_is_fine(fixture *f)
{
    ASSERT_OK(stopped_with(f, 0));
    ASSERT_OK(map_in_two(f, 32, VHOST_SECTION_UNMERGEABLE));
    CHECK_CALL(start_and_stop(f));
    ASSERT_OK(map_in_two(f, 32, VHOST_SECTION_DIRTY_TRACKED));
    return start_and_stop(f);
}

TEST a_ring_over_two_sections_without_contiguous_memory_is_not(fixture *f)
{
    ASSERT_OK(stopped_with(f, 0));
    ASSERT_OK(map_in_two(f, 40, 0));
    return start_refused(f, -EFAULT, VHOST_WHY_RING_UNMAPPED);
}

TEST a_ring_that_ends_in_rom_is_not_fine(fixture *f)
{
    ASSERT_OK(stopped_with(f, 0));
    ASSERT_OK(map_in_two(f, 32, VHOST_SECTION_ROM));
    ASSERT_INT(-EFAULT, vhost_device_start(&f->device[0]));
    ASSERT_INT(VHOST_STATE_STOPPED, f->device[0].state);
    PASS();
}

/* Maps the ROM at the high addresses. */
static int map_rom(fixture *f)
{
    vhost_section sections[2];
    sections[0] = f->low;
    sections[1] = f->high;
    sections[1].flags = VHOST_SECTION_ROM;
    return fixture_map(f, sections, 2);
}

TEST only_what_the_device_does_not_write_may_be_in_rom(fixture *f)
{
    ASSERT_OK(stopped_with(f, 0));
    ASSERT_OK(map_rom(f));
    f->queue[0][1].desc = FIXTURE_HIGH;
    f->queue[0][1].avail = FIXTURE_HIGH + PAGE;
    CHECK_CALL(start_and_stop(f));
    f->queue[0][1].used = FIXTURE_HIGH + 2 * PAGE;
    return start_refused(f, -EFAULT, VHOST_WHY_RING_READ_ONLY);
}

TEST packed_descriptors_are_written(fixture *f)
{
    ASSERT_OK(stopped_with(f, packed));
    ASSERT_OK(map_rom(f));
    f->queue[0][1].avail = FIXTURE_HIGH;
    CHECK_CALL(start_and_stop(f));
    f->queue[0][1].desc = FIXTURE_HIGH + PAGE;
    return start_refused(f, -EFAULT, VHOST_WHY_RING_READ_ONLY);
}

TEST rings_may_stand_in_memory_that_back_ends_do_not_get(fixture *f)
{
    vhost_section sections[2] = {f->low, f->high};
    sections[0].flags = VHOST_SECTION_DIRTY_TRACKED;
    ASSERT_OK(stopped_with(f, 0));
    ASSERT_OK(fixture_map(f, sections, 2));
    CHECK_CALL(start_and_stop(f));
    ASSERT_UINT(1, f->mock[0].table_count);
    PASS();
}

TEST rings_that_the_device_writes_lie_where_a_log_can_reach(fixture *f)
{
    vhost_section sections[2] = {f->low, f->high};
    sections[1].flags = VHOST_SECTION_DIRTY_TRACKED;
    ASSERT_OK(stopped_with(f, 0));
    ASSERT_OK(fixture_map(f, sections, 2));
    f->queue[0][1].desc = FIXTURE_HIGH;
    CHECK_CALL(start_and_stop(f));
    f->queue[0][1].used = FIXTURE_HIGH + PAGE;
    return start_refused(f, -EFAULT, VHOST_WHY_RING_UNMAPPED);
}

/* ---- what a ring is told ---- */

TEST each_ring_gets_its_own_values(fixture *f)
{
    ASSERT_OK(stopped_with(f, 0));
    f->queue[0][1].size = 64;
    f->queue[0][2].busy_loop_us = 50;
    ASSERT_OK(vhost_device_start(&f->device[0]));
    const mock_ring *rings = f->mock[0].rings;
    for (int q = 0; q < FIXTURE_QUEUES; q++) {
        ASSERT_INT(FIXTURE_KICK_FD + q, rings[q].kick_fd);
        ASSERT_INT(FIXTURE_CALL_FD + q, rings[q].call_fd);
        ASSERT(rings[q].error_fd >= FIXTURE_EVENT_FD);
        ASSERT_UINT(q == 1 ? 64 : FIXTURE_RING_SIZE, rings[q].size);
        ASSERT_UINT(q == 2 ? 50 : 0, rings[q].busy_loop_us);
    }
    ASSERT(rings[0].error_fd != rings[1].error_fd);
    PASS();
}

TEST rings_without_vector_or_kick_get_minus_one(fixture *f)
{
    ASSERT_OK(stopped_with(f, 0));
    f->queue[0][1].kick_fd = -1;
    f->queue[0][1].call_fd = -1;
    ASSERT_OK(vhost_device_start(&f->device[0]));
    ASSERT_UINT(1, mock_count(&f->mock[0], VHOST_OP_SET_RING_KICK, 1));
    ASSERT_INT(-1, f->mock[0].rings[1].kick_fd);
    ASSERT_INT(-1, f->mock[0].rings[1].call_fd);
    PASS();
}

TEST fd_zero_is_a_file_descriptor(fixture *f)
{
    ASSERT_OK(stopped_with(f, 0));
    f->queue[0][1].kick_fd = 0;
    f->queue[0][1].call_fd = 0;
    ASSERT_OK(vhost_device_start(&f->device[0]));
    ASSERT_INT(0, f->mock[0].rings[1].kick_fd);
    ASSERT_INT(0, f->mock[0].rings[1].call_fd);
    PASS();
}

TEST a_busy_loop_is_taken_back(fixture *f)
{
    ASSERT_OK(stopped_with(f, 0));
    f->queue[0][1].busy_loop_us = 50;
    CHECK_CALL(start_and_stop(f));
    ASSERT_UINT(50, f->mock[0].rings[1].busy_loop_us);
    f->queue[0][1].busy_loop_us = 0;
    ASSERT_OK(vhost_device_start(&f->device[0]));
    ASSERT_UINT(0, f->mock[0].rings[1].busy_loop_us);
    PASS();
}

TEST a_busy_loop_that_is_not_supported_can_be_given_up(fixture *f)
{
    f->mock[0].ops.set_ring_busy_loop = NULL;
    ASSERT_OK(stopped_with(f, 0));
    f->queue[0][1].busy_loop_us = 50;
    ASSERT_FAILS(f, vhost_device_start(&f->device[0]), &f->device[0].last_error, -ENOTSUP,
                 VHOST_WHY_NOT_SUPPORTED);
    CHECK_CALL(fixture_names(&f->device[0].last_error, VHOST_OP_SET_RING_BUSY_LOOP, 1));
    f->queue[0][1].busy_loop_us = 0;
    return start_and_stop(f);
}

static const vhost_error *old_words(void *backend)
{
    static const vhost_error old = {-ENOTSUP, VHOST_WHY_NOT_SUPPORTED, VHOST_OP_NONE, -1, 1, "OLD"};
    (void)backend;
    return &old;
}

/* A back-end has no words for what it was never asked; what it said of something else is not it. */
TEST what_a_back_end_lacks_is_not_told_in_its_words(fixture *f)
{
    f->mock[0].ops.set_ring_busy_loop = NULL;
    f->mock[0].ops.last_error = old_words;
    ASSERT_OK(stopped_with(f, 0));
    f->queue[0][1].busy_loop_us = 50;
    ASSERT_INT(-ENOTSUP, vhost_device_start(&f->device[0]));
    ASSERT_FALSE(strstr(f->device[0].last_error.text, "OLD"));
    f->queue[0][1].busy_loop_us = 0;
    mock_refuse(&f->mock[0], VHOST_OP_SET_RING_BASE, -1, -ENOTSUP);
    ASSERT_INT(-ENOTSUP, vhost_device_start(&f->device[0]));
    ASSERT(strstr(f->device[0].last_error.text, "OLD"));
    PASS();
}

/* ---- byte order ---- */

static bool host_is_big_endian(void)
{
    const uint16_t one = 1;
    return *(const unsigned char *)&one == 0;
}

TEST only_foreign_rings_are_told_their_byte_order(fixture *f)
{
    ASSERT_OK(legacy_stopped(f));
    f->queue[0][0].big_endian = host_is_big_endian();
    f->queue[0][1].big_endian = !host_is_big_endian();
    f->queue[0][2].big_endian = host_is_big_endian();
    ASSERT_OK(vhost_device_start(&f->device[0]));
    ASSERT_UINT(0, mock_count(&f->mock[0], VHOST_OP_SET_RING_ENDIAN, 0));
    ASSERT_UINT(1, mock_count(&f->mock[0], VHOST_OP_SET_RING_ENDIAN, 1));
    ASSERT_UINT(0, mock_count(&f->mock[0], VHOST_OP_SET_RING_ENDIAN, 2));
    ASSERT_INT(!host_is_big_endian(), f->mock[0].rings[1].big_endian);
    PASS();
}

TEST modern_rings_are_never_told_their_byte_order(fixture *f)
{
    ASSERT_OK(stopped_with(f, 0));
    f->queue[0][0].big_endian = true;
    ASSERT_OK(vhost_device_start(&f->device[0]));
    ASSERT_UINT(0, mock_count(&f->mock[0], VHOST_OP_SET_RING_ENDIAN, -1));
    PASS();
}

TEST a_foreign_ring_is_set_back_for_the_next_driver(fixture *f)
{
    ASSERT_OK(legacy_stopped(f));
    f->queue[0][1].big_endian = !host_is_big_endian();
    CHECK_CALL(start_and_stop(f));
    f->queue[0][1].big_endian = host_is_big_endian();
    ASSERT_OK(vhost_device_start(&f->device[0]));
    ASSERT_INT(host_is_big_endian(), f->mock[0].rings[1].big_endian);
    PASS();
}

/* big_endian is not read with VERSION_1, and may say anything. */
TEST a_foreign_ring_is_set_back_for_a_modern_driver(fixture *f)
{
    ASSERT_OK(legacy_stopped(f));
    f->queue[0][1].big_endian = !host_is_big_endian();
    CHECK_CALL(start_and_stop(f));
    ASSERT_OK(vhost_device_ack(&f->device[0], fixture_features(BIT(VHOST_FEATURE_VERSION_1), 0)));
    ASSERT_OK(vhost_device_start(&f->device[0]));
    ASSERT_INT(host_is_big_endian(), f->mock[0].rings[1].big_endian);
    PASS();
}

TEST a_byte_order_that_is_not_supported_can_be_given_up(fixture *f)
{
    f->mock[0].ops.set_ring_endian = NULL;
    ASSERT_OK(legacy_stopped(f));
    f->queue[0][0].big_endian = host_is_big_endian();
    f->queue[0][1].big_endian = !host_is_big_endian();
    f->queue[0][2].big_endian = host_is_big_endian();
    ASSERT_FAILS(f, vhost_device_start(&f->device[0]), &f->device[0].last_error, -ENOTSUP,
                 VHOST_WHY_NOT_SUPPORTED);
    CHECK_CALL(fixture_names(&f->device[0].last_error, VHOST_OP_SET_RING_ENDIAN, 1));
    ASSERT_INT(VHOST_STATE_STOPPED, f->device[0].state);
    f->queue[0][1].big_endian = host_is_big_endian();
    return start_and_stop(f);
}

TEST the_used_index_is_read_in_the_byte_order_of_the_ring(fixture *f)
{
    ASSERT_OK(legacy_stopped(f));
    f->queue[0][1].big_endian = true;
    ASSERT_OK(vhost_device_start(&f->device[0]));
    mock_advance(&f->mock[0], 0, 0x102);
    mock_advance(&f->mock[0], 1, 0x304);
    ASSERT_INT(3, f->host[f->queue[0][1].used + 2]);
    mock_die(&f->mock[0]);
    ASSERT_INT(-ECONNRESET, vhost_device_stop(&f->device[0]));
    ASSERT_UINT(0x102, f->queue[0][0].position.avail);
    ASSERT_UINT(0x304, f->queue[0][1].position.avail);
    PASS();
}

/* ---- positions ---- */

TEST an_initial_split_ring_begins_at_zero(fixture *f)
{
    ASSERT_OK(stopped_with(f, 0));
    f->queue[0][1].position.avail = 77; /* not read */
    ASSERT_OK(vhost_device_start(&f->device[0]));
    ASSERT_UINT(0, f->mock[0].rings[1].position);
    PASS();
}

TEST an_initial_packed_ring_begins_with_both_wrap_counters_set(fixture *f)
{
    ASSERT_OK(stopped_with(f, packed));
    ASSERT_OK(vhost_device_start(&f->device[0]));
    ASSERT_UINT(0x80008000, f->mock[0].rings[1].position);
    PASS();
}

TEST a_certain_split_ring_begins_at_avail(fixture *f)
{
    ASSERT_OK(stopped_with(f, 0));
    f->queue[0][1].position.state = VHOST_POSITION_CERTAIN;
    f->queue[0][1].position.avail = 0xfffe;
    f->queue[0][1].position.used = 0x1234; /* not read */
    ASSERT_OK(vhost_device_start(&f->device[0]));
    ASSERT_UINT(0xfffe, f->mock[0].rings[1].position);
    PASS();
}

TEST a_certain_packed_ring_begins_at_avail_and_used(fixture *f)
{
    ASSERT_OK(stopped_with(f, packed));
    f->queue[0][1].position.state = VHOST_POSITION_CERTAIN;
    f->queue[0][1].position.avail = 0x8012;
    f->queue[0][1].position.used = 0x0034;
    ASSERT_OK(vhost_device_start(&f->device[0]));
    ASSERT_UINT(0x00348012, f->mock[0].rings[1].position);
    PASS();
}

TEST a_guessed_position_is_refused(fixture *f)
{
    ASSERT_OK(stopped_with(f, 0));
    f->queue[0][1].position.state = VHOST_POSITION_GUESSED;
    CHECK_CALL(start_refused(f, -EINVAL, VHOST_WHY_POSITION_GUESSED));
    f->queue[0][1].position.state = VHOST_POSITION_CERTAIN;
    return start_and_stop(f);
}

TEST a_guessed_position_of_a_queue_that_is_not_ready_is_no_matter(fixture *f)
{
    ASSERT_OK(stopped_with(f, 0));
    f->queue[0][1].position.state = VHOST_POSITION_GUESSED;
    f->queue[0][1].ready = false;
    return start_and_stop(f);
}

TEST stop_finds_the_used_index(fixture *f)
{
    ASSERT_OK(stopped_with(f, 0));
    ASSERT_OK(vhost_device_start(&f->device[0]));
    mock_advance(&f->mock[0], 1, 9);
    fixture_set_used(f, 0, 1, 4); /* five are still on their way */
    ASSERT_OK(vhost_device_stop(&f->device[0]));
    CHECK_CALL(position_is(&f->queue[0][1].position, VHOST_POSITION_CERTAIN, 9));
    ASSERT_UINT(4, f->queue[0][1].position.used);
    ASSERT_FALSE(f->queue[0][1].position.used_certain);
    ASSERT_OK(vhost_device_start(&f->device[0]));
    fixture_set_used(f, 0, 1, 9);
    ASSERT_OK(vhost_device_stop(&f->device[0]));
    ASSERT(f->queue[0][1].position.used_certain);
    PASS();
}

TEST a_device_settles_after_its_stop(fixture *f)
{
    vhost_position *position = &f->queue[0][1].position;
    ASSERT_OK(stopped_with(f, 0));
    ASSERT_INT(1, vhost_device_settled(&f->device[0]));
    ASSERT_OK(vhost_device_start(&f->device[0]));
    mock_advance(&f->mock[0], 1, 9);
    fixture_set_used(f, 0, 1, 4);
    ASSERT_OK(vhost_device_stop(&f->device[0]));
    ASSERT_OK(vhost_device_stop(&f->device[0])); /* changes nothing */
    ASSERT_INT(0, vhost_device_settled(&f->device[0]));
    fixture_set_used(f, 0, 1, 8);
    ASSERT_INT(0, vhost_device_settled(&f->device[0]));
    ASSERT_UINT(8, position->used);
    ASSERT_FALSE(position->used_certain);
    fixture_set_used(f, 0, 1, 9);
    ASSERT_INT(1, vhost_device_settled(&f->device[0]));
    CHECK_CALL(position_is(position, VHOST_POSITION_CERTAIN, 9));
    ASSERT_UINT(9, position->used);
    ASSERT(position->used_certain);
    fixture_set_used(f, 0, 1, 3); /* whatever the driver does now */
    ASSERT_INT(1, vhost_device_settled(&f->device[0]));
    ASSERT_UINT(9, position->used);
    PASS();
}

/* A disk that keeps no record of its requests is stopped when there are none. */
TEST a_running_device_has_settled_when_all_that_is_available_is_used(fixture *f)
{
    ASSERT_OK(stopped_with(f, 0));
    ASSERT_OK(vhost_device_start(&f->device[0]));
    ASSERT_INT(1, vhost_device_settled(&f->device[0]));
    for (unsigned queue = 0; queue < 2; queue++) {
        fixture_put_available(&f->vm, &f->queue[0][queue], 9);
        ASSERT_INT(0, vhost_device_settled(&f->device[0]));
        fixture_set_used(f, 0, queue, 8);
        ASSERT_INT(0, vhost_device_settled(&f->device[0]));
        fixture_set_used(f, 0, queue, 9);
        ASSERT_INT(1, vhost_device_settled(&f->device[0]));
    }
    ASSERT_UINT(0, f->errors);
    PASS();
}

TEST nobody_sees_whether_a_packed_ring_has_settled(fixture *f)
{
    ASSERT_OK(stopped_with(f, packed));
    ASSERT_OK(vhost_device_start(&f->device[0]));
    ASSERT_INT(0, vhost_device_settled(&f->device[0]));
    PASS();
}

TEST a_queue_that_was_stopped_alone_settles_too(fixture *f)
{
    ASSERT_OK(stopped_with(f, 0));
    ASSERT_OK(vhost_device_start(&f->device[0]));
    mock_advance(&f->mock[0], 1, 9);
    fixture_set_used(f, 0, 1, 4);
    ASSERT_OK(vhost_queue_stop(&f->device[0], 1));
    ASSERT_OK(vhost_device_stop(&f->device[0]));
    ASSERT_INT(0, vhost_device_settled(&f->device[0]));
    fixture_set_used(f, 0, 1, 9);
    ASSERT_INT(1, vhost_device_settled(&f->device[0]));
    PASS();
}

/* Who starts again, or resets, does not wait any more. */
TEST a_device_that_starts_again_is_settled_by_its_next_stop(fixture *f)
{
    ASSERT_OK(stopped_with(f, 0));
    ASSERT_OK(vhost_device_start(&f->device[0]));
    mock_advance(&f->mock[0], 1, 9);
    fixture_set_used(f, 0, 1, 4);
    ASSERT_OK(vhost_device_stop(&f->device[0]));
    ASSERT_OK(vhost_device_reset(&f->device[0]));
    ASSERT_INT(1, vhost_device_settled(&f->device[0]));
    PASS();
}

/* ---- a device that is stopped, but not settled, loses its back-end ---- */

static int lost_in_flight(fixture *f, uint16_t used)
{
    int result = vhost_device_start(&f->device[0]);
    mock_advance(&f->mock[0], 1, 9);
    fixture_set_used(f, 0, 1, 4);
    result = result < 0 ? result : vhost_device_stop(&f->device[0]);
    fixture_set_used(f, 0, 1, used);
    mock_die(&f->mock[0]);
    return result < 0 ? result : vhost_device_start(&f->device[0]);
}

TEST what_was_in_flight_is_lost_with_its_back_end(fixture *f)
{
    ASSERT_OK(stopped_with(f, 0));
    ASSERT_INT(-ECONNRESET, lost_in_flight(f, 6));
    ASSERT_INT(VHOST_STATE_BROKEN, f->device[0].state);
    CHECK_CALL(position_is(&f->queue[0][1].position, VHOST_POSITION_GUESSED, 6));
    ASSERT_INT(-ECONNRESET, vhost_device_settled(&f->device[0]));
    PASS();
}

TEST what_was_used_before_its_back_end_was_lost_is_not_in_flight(fixture *f)
{
    ASSERT_OK(stopped_with(f, 0));
    ASSERT_INT(-ECONNRESET, lost_in_flight(f, 9));
    ASSERT_INT(VHOST_STATE_BROKEN, f->device[0].state);
    return position_is(&f->queue[0][1].position, VHOST_POSITION_CERTAIN, 9);
}

TEST what_was_in_flight_is_on_record(fixture *f)
{
    ASSERT_OK(stopped_with(f, 0));
    f->mock[0].recall_result = 1;
    f->mock[0].recalled = 9;
    ASSERT_INT(-ECONNRESET, lost_in_flight(f, 6));
    ASSERT_INT(VHOST_STATE_BROKEN, f->device[0].state);
    ASSERT_UINT(6, f->mock[0].recall_given);
    return position_is(&f->queue[0][1].position, VHOST_POSITION_CERTAIN, 9);
}

/* Less taken than given back, or more than the ring holds: the ring knows better. */
TEST a_position_that_the_ring_belies_is_a_guess(fixture *f)
{
    static const uint16_t used[] = {10, UINT16_MAX - FIXTURE_RING_SIZE + 9}; /* it says 9 */
    for (unsigned i = 0; i < 2; i++) {
        ASSERT_OK(stopped_with(f, 0));
        ASSERT_OK(vhost_device_start(&f->device[0]));
        mock_advance(&f->mock[0], 1, 9);
        fixture_set_used(f, 0, 1, used[i]);
        ASSERT_OK(vhost_device_stop(&f->device[0]));
        ASSERT_INT(VHOST_POSITION_GUESSED, f->queue[0][1].position.state);
        ASSERT_UINT(used[i], f->queue[0][1].position.avail);
        CHECK_CALL(fixture_renew(f));
    }
    PASS();
}

TEST stop_of_a_packed_ring_gives_both_positions(fixture *f)
{
    ASSERT_OK(stopped_with(f, packed));
    ASSERT_OK(vhost_device_start(&f->device[0]));
    f->mock[0].rings[1].position = 0x80100011;
    ASSERT_OK(vhost_device_stop(&f->device[0]));
    CHECK_CALL(position_is(&f->queue[0][1].position, VHOST_POSITION_CERTAIN, 0x0011));
    ASSERT_UINT(0x8010, f->queue[0][1].position.used);
    ASSERT_OK(vhost_device_start(&f->device[0]));
    ASSERT_UINT(0x80100011, f->mock[0].rings[1].position);
    PASS();
}

/* A hostile answer is no better than none, and people are told. */
static enum greatest_test_res nonsense_is_a_guess(fixture *f, uint32_t base)
{
    ASSERT_OK(vhost_device_start(&f->device[0]));
    f->mock[0].rings[1].position = base;
    fixture_put_available(&f->vm, &f->queue[0][1], 1);
    unsigned notes = f->notes;
    ASSERT_OK(vhost_device_stop(&f->device[0]));
    ASSERT_INT(VHOST_POSITION_GUESSED, f->queue[0][1].position.state);
    ASSERT_UINT(notes + 1, f->notes);
    ASSERT_INT(VHOST_WHY_POSITION_GUESSED, f->last_note.why);
    ASSERT_INT(1, f->last_note.queue);
    PASS();
}

TEST a_split_position_of_more_than_16_bits_is_a_guess(fixture *f)
{
    ASSERT_OK(stopped_with(f, 0));
    return nonsense_is_a_guess(f, 0x10000);
}

/* All that was available is used: there is nothing that the back-end can have taken and lost. */
TEST an_idle_split_ring_tells_its_position_itself(fixture *f)
{
    ASSERT_OK(stopped_with(f, 0));
    ASSERT_OK(vhost_device_start(&f->device[0]));
    f->mock[0].rings[1].position = 0x10000; /* no answer */
    fixture_put_available(&f->vm, &f->queue[0][1], 0xfffe);
    fixture_put_used(&f->vm, &f->queue[0][1], 0xfffe);
    unsigned notes = f->notes;
    ASSERT_OK(vhost_device_stop(&f->device[0]));
    CHECK_CALL(position_is(&f->queue[0][1].position, VHOST_POSITION_CERTAIN, 0xfffe));
    ASSERT(f->queue[0][1].position.used_certain);
    ASSERT_UINT(notes, f->notes);
    PASS();
}

TEST a_packed_position_outside_of_the_ring_is_a_guess(fixture *f)
{
    ASSERT_OK(stopped_with(f, packed));
    return nonsense_is_a_guess(f, 0x80000000u | f->queue[0][1].size);
}

TEST a_position_in_no_known_state_is_refused(fixture *f)
{
    ASSERT_OK(stopped_with(f, 0));
    f->queue[0][1].position.state = (vhost_position_state)3;
    CHECK_CALL(start_refused(f, -EINVAL, VHOST_WHY_ARGUMENT));
    f->queue[0][1].position.state = VHOST_POSITION_CERTAIN;
    return start_and_stop(f);
}

/* Positions of a migration come from outside. */
TEST a_packed_position_outside_of_the_ring_is_refused(fixture *f)
{
    ASSERT_OK(stopped_with(f, packed));
    vhost_queue *queue = &f->queue[0][1];
    queue->position.state = VHOST_POSITION_CERTAIN;
    queue->position.avail = (uint16_t)(0x8000 | queue->size);
    queue->position.used = 0x8000;
    CHECK_CALL(start_refused(f, -EINVAL, VHOST_WHY_ARGUMENT));
    queue->position.used = queue->position.avail;
    queue->position.avail = 0x8000;
    CHECK_CALL(start_refused(f, -EINVAL, VHOST_WHY_ARGUMENT));
    queue->position.avail = queue->position.used = (uint16_t)(queue->size - 1);
    return start_and_stop(f);
}

TEST a_packed_ring_wraps(fixture *f)
{
    ASSERT_OK(stopped_with(f, packed));
    f->queue[0][1].size = 100;
    ASSERT_OK(vhost_device_start(&f->device[0]));
    mock_advance(&f->mock[0], 1, 99);
    mock_advance(&f->mock[0], 1, 2);
    ASSERT_OK(vhost_device_stop(&f->device[0]));
    return position_is(&f->queue[0][1].position, VHOST_POSITION_CERTAIN, 1);
}

/* Runs, uses up 6 buffers of queue 1, dies, and is stopped. */
static int die_after_six(fixture *f)
{
    int result = vhost_device_start(&f->device[0]);
    if (result == 0) {
        mock_advance(&f->mock[0], 1, 6);
        mock_die(&f->mock[0]);
        result = vhost_device_stop(&f->device[0]);
    }
    return result;
}

TEST the_position_of_a_dead_back_end_is_guessed(fixture *f)
{
    ASSERT_OK(stopped_with(f, 0));
    ASSERT_INT(-ECONNRESET, die_after_six(f));
    CHECK_CALL(position_is(&f->queue[0][1].position, VHOST_POSITION_GUESSED, 6));
    ASSERT_UINT(6, f->queue[0][1].position.used);
    ASSERT_FALSE(f->queue[0][1].position.used_certain);
    PASS();
}

TEST the_position_of_a_dead_back_end_in_order_is_certain(fixture *f)
{
    ASSERT_OK(stopped_with(f, in_order));
    ASSERT_INT(-ECONNRESET, die_after_six(f));
    return position_is(&f->queue[0][1].position, VHOST_POSITION_CERTAIN, 6);
}

TEST in_order_counts_only_if_the_driver_took_it(fixture *f)
{
    ASSERT_OK(stopped_with(f, 0));
    ASSERT(vhost_features_test(&f->device[0].facts.offered, VHOST_FEATURE_IN_ORDER));
    ASSERT_INT(-ECONNRESET, die_after_six(f));
    return position_is(&f->queue[0][1].position, VHOST_POSITION_GUESSED, 6);
}

TEST the_position_of_a_dead_packed_back_end_is_guessed(fixture *f)
{
    ASSERT_OK(stopped_with(f, packed | in_order));
    f->queue[0][1].position.state = VHOST_POSITION_CERTAIN;
    f->queue[0][1].position.avail = 0x8005;
    f->queue[0][1].position.used = 0x8003;
    ASSERT_INT(-ECONNRESET, die_after_six(f));
    ASSERT_INT(VHOST_POSITION_GUESSED, f->queue[0][1].position.state);
    ASSERT_INT(VHOST_POSITION_GUESSED, f->queue[0][0].position.state);
    PASS();
}

/* ---- what requests in flight left on record ---- */

TEST a_record_makes_the_position_of_a_dead_back_end_certain(fixture *f)
{
    ASSERT_OK(stopped_with(f, 0));
    f->mock[0].recall_result = 1;
    f->mock[0].recalled = 5;
    ASSERT_INT(-ECONNRESET, die_after_six(f));
    ASSERT_UINT(FIXTURE_QUEUES, f->mock[0].recalls);
    CHECK_CALL(position_is(&f->queue[0][1].position, VHOST_POSITION_CERTAIN, 5));
    ASSERT_UINT(6, f->queue[0][1].position.used);
    PASS();
}

TEST a_record_is_looked_at_with_the_used_index_at_hand(fixture *f)
{
    ASSERT_OK(stopped_with(f, 0));
    f->queue[0][0].ready = f->queue[0][2].ready = false;
    ASSERT_INT(-ECONNRESET, die_after_six(f));
    ASSERT_UINT(1, f->mock[0].recalls);
    ASSERT_UINT(6, f->mock[0].recall_given);
    return position_is(&f->queue[0][1].position, VHOST_POSITION_GUESSED, 6);
}

TEST a_record_of_a_packed_ring_gives_both_positions(fixture *f)
{
    ASSERT_OK(stopped_with(f, packed));
    f->mock[0].recall_result = 1;
    f->mock[0].recalled = 0x80048006;
    ASSERT_INT(-ECONNRESET, die_after_six(f));
    ASSERT_UINT(0, f->mock[0].recall_given);
    ASSERT_UINT(0x8004, f->queue[0][1].position.used);
    return position_is(&f->queue[0][1].position, VHOST_POSITION_CERTAIN, 0x8006);
}

TEST a_record_that_is_nonsense_is_none(fixture *f)
{
    ASSERT_OK(stopped_with(f, 0));
    f->mock[0].recall_result = 1;
    f->mock[0].recalled = 0x10000;
    ASSERT_INT(-ECONNRESET, die_after_six(f));
    return position_is(&f->queue[0][1].position, VHOST_POSITION_GUESSED, 6);
}

TEST a_record_that_cannot_be_read_is_none(fixture *f)
{
    ASSERT_OK(stopped_with(f, 0));
    f->mock[0].recall_result = -EIO;
    f->mock[0].recalled = 5;
    ASSERT_INT(-ECONNRESET, die_after_six(f));
    return position_is(&f->queue[0][1].position, VHOST_POSITION_GUESSED, 6);
}

TEST an_answer_needs_no_record(fixture *f)
{
    ASSERT_OK(stopped_with(f, 0));
    f->mock[0].recall_result = 1;
    f->mock[0].recalled = 5;
    CHECK_CALL(start_and_stop(f));
    ASSERT_UINT(0, f->mock[0].recalls);
    ASSERT_UINT(0, f->queue[0][1].position.avail);
    PASS();
}

/* A ring that runs though what remembers its requests was refused has no record to trust. */
TEST a_start_without_its_record_recalls_nothing(fixture *f)
{
    ASSERT_OK(stopped_with(f, 0));
    mock_refuse(&f->mock[0], VHOST_OP_SET_INFLIGHT, -1, -EPERM);
    f->mock[0].recall_result = 1;
    ASSERT_FAILS(f, vhost_device_start(&f->device[0]), &f->device[0].last_error, -EPERM,
                 VHOST_WHY_BACKEND_REFUSED);
    CHECK_CALL(fixture_names(&f->device[0].last_error, VHOST_OP_SET_INFLIGHT, -1));
    ASSERT_UINT(0, f->mock[0].recalls);
    vhost_position_state expected =
        f->mode == MOCK_QUEUED_STUBBORN ? VHOST_POSITION_GUESSED : VHOST_POSITION_INITIAL;
    ASSERT_INT(expected, f->queue[0][1].position.state);
    f->mock[0].complaint[0] = '\0'; /* stubborn, it ran without */
    PASS();
}

TEST one_queue_is_started_without_set_inflight(fixture *f)
{
    ASSERT_OK(fixture_running_device(f));
    ASSERT_OK(vhost_queue_stop(&f->device[0], 1));
    mock_forget(&f->mock[0]);
    ASSERT_OK(vhost_queue_start(&f->device[0], 1));
    ASSERT_UINT(0, mock_count(&f->mock[0], VHOST_OP_SET_INFLIGHT, -1));
    ASSERT(mock_find(&f->mock[0], VHOST_OP_SET_RING_KICK, 1, 0) >
           mock_find(&f->mock[0], VHOST_OP_SET_RING_ADDRESSES, 1, 0));
    PASS();
}

TEST a_base_that_is_never_answered_is_guessed(fixture *f)
{
    ASSERT_OK(stopped_with(f, 0));
    ASSERT_OK(vhost_device_start(&f->device[0]));
    mock_advance(&f->mock[0], 1, 6);
    f->mock[0].lost = VHOST_OP_GET_RING_BASE;
    (void)vhost_device_stop(&f->device[0]);
    CHECK_CALL(position_is(&f->queue[0][1].position, VHOST_POSITION_GUESSED, 6));
    mock_revive(&f->mock[0]);
    f->mock[0].rings[0].kick_set = false; /* it had let go of them all the same */
    f->mock[0].rings[1].kick_set = false;
    f->mock[0].rings[2].kick_set = false;
    PASS();
}

/* What a ring said at an earlier stop is no answer to a later one. */
TEST an_old_answer_is_not_taken_for_a_new_one(fixture *f)
{
    ASSERT_OK(stopped_with(f, 0));
    ASSERT_OK(vhost_device_start(&f->device[0]));
    mock_advance(&f->mock[0], 1, 2);
    ASSERT_OK(vhost_device_stop(&f->device[0]));
    ASSERT_INT(-ECONNRESET, die_after_six(f));
    return position_is(&f->queue[0][1].position, VHOST_POSITION_GUESSED, 8);
}

/* ---- one queue of a running device ---- */

TEST one_queue_is_stopped_and_started(fixture *f)
{
    ASSERT_OK(fixture_running_device(f));
    mock_advance(&f->mock[0], 0, 2);
    mock_advance(&f->mock[0], 1, 5);
    ASSERT_OK(vhost_queue_stop(&f->device[0], 1));
    ASSERT_FALSE(f->queue[0][1].started);
    CHECK_CALL(position_is(&f->queue[0][1].position, VHOST_POSITION_CERTAIN, 5));
    CHECK_CALL(fixture_check(f));
    mock_advance(&f->mock[0], 0, 2);
    f->queue[0][1].size = 128;
    ASSERT_OK(vhost_queue_start(&f->device[0], 1));
    CHECK_CALL(fixture_check(f));
    ASSERT_UINT(128, f->mock[0].rings[1].size);
    ASSERT_UINT(5, f->mock[0].rings[1].position);
    ASSERT_OK(vhost_device_stop(&f->device[0]));
    return position_is(&f->queue[0][0].position, VHOST_POSITION_CERTAIN, 4);
}

TEST one_queue_tells_the_others_nothing(fixture *f)
{
    ASSERT_OK(fixture_running_device(f));
    mock_forget(&f->mock[0]);
    ASSERT_OK(vhost_queue_stop(&f->device[0], 1));
    ASSERT_OK(vhost_queue_start(&f->device[0], 1));
    for (size_t i = 0; i < f->mock[0].calls.count; i++) {
        ASSERT_INT(1, f->mock[0].calls.at[i].queue);
    }
    ASSERT(mock_find(&f->mock[0], VHOST_OP_ENABLE_RING, 1, 0) <
           mock_find(&f->mock[0], VHOST_OP_GET_RING_BASE, 1, 0));
    PASS();
}

TEST a_started_queue_is_not_started_again(fixture *f)
{
    ASSERT_OK(fixture_running_device(f));
    ASSERT_FAILS(f, vhost_queue_start(&f->device[0], 1), &f->device[0].last_error, -EBUSY,
                 VHOST_WHY_STATE);
    ASSERT(mock_ring_runs(&f->mock[0], 1));
    PASS();
}

TEST a_queue_that_is_not_ready_is_not_started(fixture *f)
{
    ASSERT_OK(fixture_running_device(f));
    ASSERT_OK(vhost_queue_stop(&f->device[0], 1));
    f->queue[0][1].ready = false;
    ASSERT_FAILS(f, vhost_queue_start(&f->device[0], 1), &f->device[0].last_error, -EINVAL,
                 VHOST_WHY_QUEUE_NOT_READY);
    CHECK_CALL(fixture_names(&f->device[0].last_error, VHOST_OP_NONE, 1));
    PASS();
}

TEST a_stopped_queue_may_be_stopped(fixture *f)
{
    ASSERT_OK(fixture_running_device(f));
    ASSERT_OK(vhost_queue_stop(&f->device[0], 1));
    mock_forget(&f->mock[0]);
    ASSERT_OK(vhost_queue_stop(&f->device[0], 1));
    ASSERT_UINT(0, f->mock[0].calls.count);
    PASS();
}

TEST a_queue_with_a_bad_ring_is_not_started(fixture *f)
{
    ASSERT_OK(fixture_running_device(f));
    ASSERT_OK(vhost_queue_stop(&f->device[0], 1));
    mock_forget(&f->mock[0]);
    f->queue[0][1].avail = FIXTURE_REMOTE;
    ASSERT_FAILS(f, vhost_queue_start(&f->device[0], 1), &f->device[0].last_error, -EFAULT,
                 VHOST_WHY_RING_UNMAPPED);
    ASSERT_INT(VHOST_STATE_RUNNING, f->device[0].state);
    ASSERT_UINT(0, f->mock[0].calls.count);
    PASS();
}

TEST queues_that_do_not_exist(fixture *f)
{
    static int (*const calls[])(vhost_device *, uint32_t) = {vhost_queue_start, vhost_queue_stop,
                                                             vhost_queue_mask, vhost_queue_unmask,
                                                             vhost_queue_pending};
    ASSERT_OK(fixture_running_device(f));
    for (size_t i = 0; i < sizeof calls / sizeof *calls; i++) {
        ASSERT_FAILS(f, calls[i](&f->device[0], FIXTURE_QUEUES), &f->device[0].last_error, -EINVAL,
                     VHOST_WHY_ARGUMENT);
        ASSERT_FAILS(f, calls[i](&f->device[0], UINT32_MAX), &f->device[0].last_error, -EINVAL,
                     VHOST_WHY_ARGUMENT);
    }
    PASS();
}

TEST a_queue_that_cannot_be_stopped_breaks_the_device(fixture *f)
{
    ASSERT_OK(fixture_running_device(f));
    mock_refuse(&f->mock[0], VHOST_OP_ENABLE_RING, 1, -EIO);
    ASSERT_FAILS(f, vhost_queue_stop(&f->device[0], 1), &f->device[0].last_error, -EIO,
                 VHOST_WHY_BACKEND_REFUSED);
    CHECK_CALL(fixture_names(&f->device[0].last_error, VHOST_OP_ENABLE_RING, 1));
    ASSERT_INT(VHOST_STATE_BROKEN, f->device[0].state);
    ASSERT_UINT(1, f->broken[0]);
    PASS();
}

/* ---- masks ---- */

static unsigned delivered(const fixture *f)
{
    return f->calls[0][1];
}

TEST an_unmasked_queue_calls_the_vmm(fixture *f)
{
    ASSERT_OK(fixture_running_device(f));
    mock_interrupt(&f->mock[0], 1);
    ASSERT_UINT(1, delivered(f));
    ASSERT_INT(0, vhost_queue_pending(&f->device[0], 1));
    PASS();
}

TEST a_masked_queue_keeps_its_calls(fixture *f)
{
    ASSERT_OK(fixture_running_device(f));
    ASSERT_OK(vhost_queue_mask(&f->device[0], 1));
    ASSERT(f->queue[0][1].masked);
    ASSERT_INT(0, vhost_queue_pending(&f->device[0], 1));
    mock_interrupt(&f->mock[0], 1);
    mock_interrupt(&f->mock[0], 1);
    ASSERT_UINT(0, delivered(f));
    ASSERT_INT(1, vhost_queue_pending(&f->device[0], 1));
    ASSERT_INT(0, vhost_queue_pending(&f->device[0], 1));
    ASSERT_INT(0, vhost_queue_pending(&f->device[0], 0));
    PASS();
}

TEST unmask_tells_of_a_call_that_came_meanwhile(fixture *f)
{
    ASSERT_OK(fixture_running_device(f));
    ASSERT_OK(vhost_queue_mask(&f->device[0], 1));
    mock_interrupt(&f->mock[0], 1);
    ASSERT_INT(1, vhost_queue_unmask(&f->device[0], 1));
    ASSERT_FALSE(f->queue[0][1].masked);
    ASSERT_UINT(0, delivered(f));
    mock_interrupt(&f->mock[0], 1);
    ASSERT_UINT(1, delivered(f));
    ASSERT_INT(0, vhost_queue_unmask(&f->device[0], 1));
    PASS();
}

/* One call comes just before the back-end switches to the other notifier. */
TEST no_call_is_lost_in_the_switch(fixture *f)
{
    ASSERT_OK(fixture_running_device(f));
    f->mock[0].calls_late = true;
    ASSERT_OK(vhost_queue_mask(&f->device[0], 1));
    ASSERT_UINT(1, delivered(f));
    ASSERT_INT(1, vhost_queue_unmask(&f->device[0], 1));
    PASS();
}

TEST unmask_takes_the_call_fd_as_it_is_now(fixture *f)
{
    ASSERT_OK(fixture_running_device(f));
    ASSERT_OK(vhost_queue_mask(&f->device[0], 1));
    f->queue[0][1].call_fd = 4242;
    ASSERT_OK(vhost_queue_unmask(&f->device[0], 1));
    ASSERT_INT(4242, f->mock[0].rings[1].call_fd);
    ASSERT_OK(vhost_queue_mask(&f->device[0], 1));
    f->queue[0][1].call_fd = -1;
    ASSERT_OK(vhost_queue_unmask(&f->device[0], 1));
    ASSERT_INT(-1, f->mock[0].rings[1].call_fd);
    PASS();
}

TEST masking_a_stopped_device_tells_nobody(fixture *f)
{
    ASSERT_OK(stopped_with(f, 0));
    ASSERT_OK(vhost_queue_mask(&f->device[0], 1));
    ASSERT_UINT(0, f->mock[0].calls.count);
    ASSERT_OK(vhost_device_start(&f->device[0]));
    mock_interrupt(&f->mock[0], 1);
    ASSERT_UINT(0, delivered(f));
    ASSERT_INT(1, vhost_queue_unmask(&f->device[0], 1));
    PASS();
}

TEST masking_a_stopped_queue_tells_nobody(fixture *f)
{
    ASSERT_OK(fixture_running_device(f));
    ASSERT_OK(vhost_queue_stop(&f->device[0], 1));
    mock_forget(&f->mock[0]);
    ASSERT_OK(vhost_queue_mask(&f->device[0], 1));
    ASSERT_UINT(0, f->mock[0].calls.count);
    ASSERT_OK(vhost_queue_start(&f->device[0], 1));
    ASSERT(f->mock[0].rings[1].call_fd >= FIXTURE_EVENT_FD);
    PASS();
}

TEST a_mask_outlives_stop_and_start(fixture *f)
{
    ASSERT_OK(fixture_running_device(f));
    ASSERT_OK(vhost_queue_mask(&f->device[0], 1));
    mock_interrupt(&f->mock[0], 1);
    ASSERT_OK(vhost_device_stop(&f->device[0]));
    ASSERT_OK(vhost_device_start(&f->device[0]));
    ASSERT(f->queue[0][1].masked);
    mock_interrupt(&f->mock[0], 1);
    ASSERT_UINT(0, delivered(f));
    ASSERT_INT(1, vhost_queue_unmask(&f->device[0], 1));
    PASS();
}

TEST a_call_of_a_former_driver_is_forgotten_by_reset(fixture *f)
{
    ASSERT_OK(fixture_running_device(f));
    ASSERT_OK(vhost_queue_mask(&f->device[0], 1));
    mock_interrupt(&f->mock[0], 1);
    ASSERT_OK(vhost_device_stop(&f->device[0]));
    ASSERT_OK(vhost_device_reset(&f->device[0]));
    ASSERT_INT(0, vhost_queue_pending(&f->device[0], 1));
    PASS();
}

TEST a_queue_is_not_masked_in_its_next_life(fixture *f)
{
    ASSERT_OK(fixture_running_device(f));
    ASSERT_OK(vhost_queue_mask(&f->device[0], 1));
    vhost_device_cleanup(&f->device[0]);
    ASSERT_OK(fixture_attach(f, 0));
    ASSERT_FALSE(f->queue[0][1].masked);
    ASSERT_OK(vhost_device_start(&f->device[0]));
    ASSERT_INT(FIXTURE_CALL_FD + 1, f->mock[0].rings[1].call_fd);
    PASS();
}

TEST a_failed_switch_counts_as_masked_and_loses_nothing(fixture *f)
{
    ASSERT_OK(fixture_running_device(f));
    ASSERT_OK(vhost_queue_mask(&f->device[0], 1));
    mock_refuse(&f->mock[0], VHOST_OP_SET_RING_CALL, 1, -EBADF);
    ASSERT_FAILS(f, vhost_queue_unmask(&f->device[0], 1), &f->device[0].last_error, -EBADF,
                 VHOST_WHY_BACKEND_REFUSED);
    CHECK_CALL(fixture_names(&f->device[0].last_error, VHOST_OP_SET_RING_CALL, 1));
    ASSERT(f->queue[0][1].masked);
    ASSERT_INT(VHOST_STATE_RUNNING, f->device[0].state);
    mock_interrupt(&f->mock[0], 1);
    mock_revive(&f->mock[0]);
    ASSERT_INT(1, vhost_queue_unmask(&f->device[0], 1));
    PASS();
}

TEST a_failed_mask_counts_as_masked(fixture *f)
{
    ASSERT_OK(fixture_running_device(f));
    mock_refuse(&f->mock[0], VHOST_OP_SET_RING_CALL, 1, -EBADF);
    ASSERT_INT(-EBADF, vhost_queue_mask(&f->device[0], 1));
    ASSERT(f->queue[0][1].masked);
    mock_interrupt(&f->mock[0], 1);
    ASSERT_UINT(1, delivered(f));
    PASS();
}

TEST an_unmask_that_cannot_look_at_its_notifier_counts_as_masked(fixture *f)
{
    ASSERT_OK(fixture_running_device(f));
    ASSERT_OK(vhost_queue_mask(&f->device[0], 1));
    mock_interrupt(&f->mock[0], 1);
    fault_arm(&f->fault, FAULT_ONCE, 2, 0);
    ASSERT_FAILS(f, vhost_queue_unmask(&f->device[0], 1), &f->device[0].last_error, -EMFILE,
                 VHOST_WHY_EVENT);
    ASSERT(f->queue[0][1].masked);
    ASSERT_INT(1, vhost_queue_unmask(&f->device[0], 1));
    PASS();
}

/* ---- memory of one's own ---- */

static int own_memory(fixture *f)
{
    f->device_options.memory = &fixture_memory_ops;
    return stopped_with(f, 0);
}

TEST rings_are_mapped_by_the_memory_ops_of_the_device(fixture *f)
{
    ASSERT_OK(own_memory(f));
    ASSERT_OK(vhost_device_start(&f->device[0]));
    ASSERT_INT(3 * FIXTURE_QUEUES, f->mappings);
    ASSERT_OK(vhost_queue_stop(&f->device[0], 1));
    ASSERT_INT(3 * (FIXTURE_QUEUES - 1), f->mappings);
    ASSERT_OK(vhost_device_stop(&f->device[0]));
    ASSERT_INT(0, f->mappings);
    ASSERT_UINT(3 * FIXTURE_QUEUES, f->maps);
    PASS();
}

static enum greatest_test_res check_written(const fixture *f, unsigned desc, unsigned used)
{
    ASSERT_UINT(desc, f->written[VHOST_DESC]);
    ASSERT_UINT(0, f->written[VHOST_AVAIL]);
    ASSERT_UINT(used, f->written[VHOST_USED]);
    PASS();
}

TEST parts_that_the_device_writes_are_given_back_as_written(fixture *f)
{
    f->device_options.memory = &fixture_memory_ops;
    ASSERT_OK(stopped_with(f, 0));
    CHECK_CALL(start_and_stop(f));
    CHECK_CALL(check_written(f, 0, FIXTURE_QUEUES));
    CHECK_CALL(fixture_renew(f));
    f->device_options.memory = &fixture_memory_ops;
    ASSERT_OK(stopped_with(f, packed));
    CHECK_CALL(start_and_stop(f));
    return check_written(f, FIXTURE_QUEUES, FIXTURE_QUEUES);
}

TEST rings_that_never_ran_are_given_back_as_they_were(fixture *f)
{
    ASSERT_OK(own_memory(f));
    f->queue[0][2].used = FIXTURE_REMOTE;
    ASSERT_INT(-EFAULT, vhost_device_start(&f->device[0]));
    return check_written(f, 0, 0);
}

/* NULL members: by guest physical address. */
TEST memory_ops_need_not_be_complete(fixture *f)
{
    static const vhost_memory_ops none = {NULL, NULL, NULL, NULL};
    vhost_memory_ops only_map = none;
    only_map.map = fixture_memory_ops.map;
    f->device_options.memory = &none;
    ASSERT_OK(stopped_with(f, 0));
    CHECK_CALL(start_and_stop(f));
    CHECK_CALL(fixture_renew(f));

    f->device_options.memory = &only_map;
    ASSERT_OK(stopped_with(f, 0));
    ASSERT_OK(vhost_device_start(&f->device[0]));
    ASSERT_UINT(3 * FIXTURE_QUEUES, f->maps);
    ASSERT_OK(vhost_device_stop(&f->device[0]));
    f->mappings = 0;
    vhost_device_cleanup(&f->device[0]);
    PASS();
}

TEST a_short_mapping_is_given_back(fixture *f)
{
    ASSERT_OK(own_memory(f));
    f->shorten = 1000;
    ASSERT_FAILS(f, vhost_device_start(&f->device[0]), &f->device[0].last_error, -EFAULT,
                 VHOST_WHY_RING_UNMAPPED);
    ASSERT_INT(0, f->mappings);
    ASSERT_UINT(1, f->maps);
    f->shorten = 0;
    return start_and_stop(f);
}

TEST a_broken_device_holds_no_mapping(fixture *f)
{
    ASSERT_OK(own_memory(f));
    ASSERT_OK(vhost_device_start(&f->device[0]));
    fixture_break(f, 0);
    ASSERT_INT(0, f->mappings);
    PASS();
}

/* ---- the suite ---- */

static void run_checks(void)
{
    RUN_TEST(queue_init_fills_in_everything);
    RUN_BOTH(split_rings_have_a_power_of_two_of_descriptors);
    RUN_BOTH(packed_rings_have_any_number_of_descriptors);
    RUN_PLAIN(a_ring_of_the_largest_size);
    RUN_PLAIN(parts_of_split_rings_are_aligned);
    RUN_PLAIN(parts_of_packed_rings_are_aligned);
    RUN_PLAIN(split_rings_end_with_memory);
    RUN_PLAIN(split_rings_with_event_idx_are_longer);
    RUN_PLAIN(packed_rings_end_with_memory);
    RUN_PLAIN(rings_over_the_end_of_the_address_space);
    RUN_PLAIN(rings_that_are_not_in_memory);
    RUN_BOTH(rings_may_lie_high);
    RUN_BOTH(a_ring_over_two_sections_with_contiguous_memory_is_fine);
    RUN_BOTH(a_ring_over_two_sections_without_contiguous_memory_is_not);
    RUN_BOTH(a_ring_that_ends_in_rom_is_not_fine);
    RUN_BOTH(only_what_the_device_does_not_write_may_be_in_rom);
    RUN_BOTH(packed_descriptors_are_written);
    RUN_BOTH(rings_may_stand_in_memory_that_back_ends_do_not_get);
    RUN_BOTH(rings_that_the_device_writes_lie_where_a_log_can_reach);
}

static void run_values(void)
{
    RUN_BOTH(each_ring_gets_its_own_values);
    RUN_BOTH(rings_without_vector_or_kick_get_minus_one);
    RUN_BOTH(fd_zero_is_a_file_descriptor);
    RUN_BOTH(a_busy_loop_is_taken_back);
    RUN_BOTH(a_busy_loop_that_is_not_supported_can_be_given_up);
    RUN_PLAIN(what_a_back_end_lacks_is_not_told_in_its_words);
    RUN_BOTH(only_foreign_rings_are_told_their_byte_order);
    RUN_BOTH(modern_rings_are_never_told_their_byte_order);
    RUN_BOTH(a_foreign_ring_is_set_back_for_the_next_driver);
    RUN_BOTH(a_foreign_ring_is_set_back_for_a_modern_driver);
    RUN_BOTH(a_byte_order_that_is_not_supported_can_be_given_up);
    RUN_BOTH(the_used_index_is_read_in_the_byte_order_of_the_ring);
}

static void run_positions(void)
{
    RUN_BOTH(an_initial_split_ring_begins_at_zero);
    RUN_BOTH(an_initial_packed_ring_begins_with_both_wrap_counters_set);
    RUN_BOTH(a_certain_split_ring_begins_at_avail);
    RUN_BOTH(a_certain_packed_ring_begins_at_avail_and_used);
    RUN_BOTH(a_guessed_position_is_refused);
    RUN_BOTH(a_guessed_position_of_a_queue_that_is_not_ready_is_no_matter);
    RUN_BOTH(stop_finds_the_used_index);
    RUN_BOTH(a_device_settles_after_its_stop);
    RUN_BOTH(a_queue_that_was_stopped_alone_settles_too);
    RUN_BOTH(a_device_that_starts_again_is_settled_by_its_next_stop);
    RUN_BOTH(a_running_device_has_settled_when_all_that_is_available_is_used);
    RUN_BOTH(nobody_sees_whether_a_packed_ring_has_settled);
    RUN_BOTH(what_was_in_flight_is_lost_with_its_back_end);
    RUN_BOTH(what_was_used_before_its_back_end_was_lost_is_not_in_flight);
    RUN_BOTH(what_was_in_flight_is_on_record);
    RUN_BOTH(a_position_that_the_ring_belies_is_a_guess);
    RUN_BOTH(stop_of_a_packed_ring_gives_both_positions);
    RUN_BOTH(a_split_position_of_more_than_16_bits_is_a_guess);
    RUN_BOTH(an_idle_split_ring_tells_its_position_itself);
    RUN_BOTH(a_packed_position_outside_of_the_ring_is_a_guess);
    RUN_BOTH(a_position_in_no_known_state_is_refused);
    RUN_BOTH(a_packed_position_outside_of_the_ring_is_refused);
    RUN_BOTH(a_packed_ring_wraps);
    RUN_BOTH(the_position_of_a_dead_back_end_is_guessed);
    RUN_BOTH(the_position_of_a_dead_back_end_in_order_is_certain);
    RUN_BOTH(in_order_counts_only_if_the_driver_took_it);
    RUN_BOTH(the_position_of_a_dead_packed_back_end_is_guessed);
    RUN_BOTH(a_record_makes_the_position_of_a_dead_back_end_certain);
    RUN_BOTH(a_record_is_looked_at_with_the_used_index_at_hand);
    RUN_BOTH(a_record_of_a_packed_ring_gives_both_positions);
    RUN_BOTH(a_record_that_is_nonsense_is_none);
    RUN_BOTH(a_record_that_cannot_be_read_is_none);
    RUN_BOTH(an_answer_needs_no_record);
    RUN_ALL(a_start_without_its_record_recalls_nothing);
    RUN_BOTH(one_queue_is_started_without_set_inflight);
    RUN_BOTH(a_base_that_is_never_answered_is_guessed);
    RUN_BOTH(an_old_answer_is_not_taken_for_a_new_one);
}

static void run_single_queues(void)
{
    RUN_BOTH(one_queue_is_stopped_and_started);
    RUN_BOTH(one_queue_tells_the_others_nothing);
    RUN_BOTH(a_started_queue_is_not_started_again);
    RUN_BOTH(a_queue_that_is_not_ready_is_not_started);
    RUN_BOTH(a_stopped_queue_may_be_stopped);
    RUN_BOTH(a_queue_with_a_bad_ring_is_not_started);
    RUN_PLAIN(queues_that_do_not_exist);
    RUN_ALL(a_queue_that_cannot_be_stopped_breaks_the_device);
}

static void run_masks(void)
{
    RUN_BOTH(an_unmasked_queue_calls_the_vmm);
    RUN_BOTH(a_masked_queue_keeps_its_calls);
    RUN_BOTH(unmask_tells_of_a_call_that_came_meanwhile);
    RUN_BOTH(no_call_is_lost_in_the_switch);
    RUN_BOTH(unmask_takes_the_call_fd_as_it_is_now);
    RUN_BOTH(masking_a_stopped_device_tells_nobody);
    RUN_BOTH(masking_a_stopped_queue_tells_nobody);
    RUN_BOTH(a_mask_outlives_stop_and_start);
    RUN_BOTH(a_call_of_a_former_driver_is_forgotten_by_reset);
    RUN_BOTH(a_queue_is_not_masked_in_its_next_life);
    RUN_ALL(a_failed_switch_counts_as_masked_and_loses_nothing);
    RUN_ALL(a_failed_mask_counts_as_masked);
    RUN_BOTH(an_unmask_that_cannot_look_at_its_notifier_counts_as_masked);
}

static int map_elsewhere(vhost_device *device, vhost_mapping *mapping, bool write, void *user)
{
    int result = fixture_memory_ops.map(device, mapping, write, user);
    mapping->gpa += VHOST_PAGE;
    return result;
}

/* A ring that is not where its gpa is would be logged where it is not. */
TEST a_mapping_to_elsewhere_is_refused_and_given_back(fixture *f)
{
    static vhost_memory_ops elsewhere;
    elsewhere = fixture_memory_ops;
    elsewhere.map = map_elsewhere;
    f->device_options.memory = &elsewhere;
    ASSERT_OK(fixture_stopped_device(f));
    ASSERT_PTR(NULL, vhost_device_table(&f->device[1])); /* it is closed */
    ASSERT_FAILS(f, vhost_device_start(&f->device[0]), &f->device[0].last_error, -EFAULT,
                 VHOST_WHY_RING_MOVED);
    ASSERT_INT(0, f->mappings);
    PASS();
}

SUITE(queue_suite)
{
    RUN_BOTH(a_mapping_to_elsewhere_is_refused_and_given_back);
    run_checks();
    run_values();
    run_positions();
    run_single_queues();
    run_masks();
    RUN_BOTH(rings_are_mapped_by_the_memory_ops_of_the_device);
    RUN_BOTH(parts_that_the_device_writes_are_given_back_as_written);
    RUN_BOTH(rings_that_never_ran_are_given_back_as_they_were);
    RUN_BOTH(memory_ops_need_not_be_complete);
    RUN_BOTH(a_short_mapping_is_given_back);
    RUN_BOTH(a_broken_device_holds_no_mapping);
}
