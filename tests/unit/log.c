/* The dirty log: its memory, who is told of it and when, what ends up in a sink: >>log, >>sync. */
#include "fixture.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PAGE VHOST_PAGE

/* Where the second and the third section begin. NEAR is within the slack of a log, FAR is not. */
#define NEAR (512 * PAGE)
#define FAR  (UINT64_C(100000) * PAGE)

/* Any gpa. */
#define EVERYTHING (UINT64_MAX - (PAGE - 1))

enum {
    SLACK = 4096, /* bytes */
    RANGES = 512
};

/* ---- arranging ---- */

static void can_log(fixture *f, unsigned d, vhost_log_kind kind)
{
    f->mock[d].facts.log_kind = kind;
    vhost_features_set(&f->mock[d].facts.offered, VHOST_FEATURE_LOG_ALL);
}

static void all_can_log(fixture *f)
{
    for (unsigned d = 0; d < FIXTURE_DEVICES; d++) {
        can_log(f, d, VHOST_DIRTY_PRIVATE);
    }
}

/* The first `count` of: low memory with all rings, memory near it, memory far away. */
static int map_some(fixture *f, size_t count)
{
    vhost_section sections[3];
    sections[0] = f->low;
    sections[1] = fixture_section(f, NEAR, 64, 128);
    sections[2] = fixture_section(f, FAR, 64, 192);
    return fixture_map(f, sections, count);
}

static int attach_and_start(fixture *f, unsigned d)
{
    int result = fixture_attach(f, d);
    return result < 0 ? result : fixture_start(f, d);
}

/* Device 0 runs in low and near memory, and can log. */
static int running_device(fixture *f)
{
    all_can_log(f);
    int result = map_some(f, 2);
    return result < 0 ? result : attach_and_start(f, 0);
}

static int logging_device(fixture *f)
{
    int result = running_device(f);
    return result < 0 ? result : vhost_log_start(&f->vm);
}

static int running_devices(fixture *f)
{
    int result = running_device(f);
    for (unsigned d = 1; d < FIXTURE_DEVICES && result == 0; d++) {
        result = attach_and_start(f, d);
    }
    return result;
}

static int logging_devices(fixture *f)
{
    int result = running_devices(f);
    return result < 0 ? result : vhost_log_start(&f->vm);
}

static void forget_all(fixture *f)
{
    for (unsigned d = 0; d < FIXTURE_DEVICES; d++) {
        mock_forget(&f->mock[d]);
    }
}

/* ---- sinks ---- */

typedef struct ranges {
    struct {
        uint64_t gpa, size;
    } at[RANGES];
    unsigned count;
    bool in_order; /* ascending, and with a page between any two */
    vhost_log_sink sink;
} ranges;

static void on_range(uint64_t gpa, uint64_t size, void *user)
{
    ranges *taken = (ranges *)user;
    if (taken->count == RANGES) {
        abort();
    }
    if (taken->count > 0) {
        unsigned last = taken->count - 1;
        taken->in_order &= gpa > taken->at[last].gpa + taken->at[last].size;
    }
    taken->at[taken->count].gpa = gpa;
    taken->at[taken->count].size = size;
    taken->count++;
}

static int take(fixture *f, uint64_t gpa, uint64_t size, ranges *taken)
{
    memset(taken, 0, sizeof *taken);
    taken->in_order = true;
    taken->sink.range = on_range;
    taken->sink.user = taken;
    return vhost_log_sync(&f->vm, gpa, size, &taken->sink);
}

static bool is_taken(const ranges *taken, uint64_t gpa)
{
    for (unsigned i = 0; i < taken->count; i++) {
        if (gpa - taken->at[i].gpa < taken->at[i].size) {
            return true;
        }
    }
    return false;
}

/* What a sync of everything hands over is this one range; size 0: nothing. */
static enum greatest_test_res takes_just(fixture *f, uint64_t gpa, uint64_t size)
{
    ranges taken;
    ASSERT_OK(take(f, 0, EVERYTHING, &taken));
    ASSERT_UINT(size > 0, taken.count);
    if (size > 0) {
        ASSERT_U64(gpa, taken.at[0].gpa);
        ASSERT_U64(size, taken.at[0].size);
    }
    ASSERT_U64(size / PAGE, taken.sink.pages_dirty);
    ASSERT_U64(0, taken.sink.pages_dropped);
    PASS();
}

/* ---- what back-ends know ---- */

static bool knows(const fixture *f, const vhost_log_memory *log)
{
    for (unsigned i = 0; i < FIXTURE_LOGS; i++) {
        const vhost_log_memory *ours = &f->logs[i];
        if (ours->size && ours->base == log->base) {
            return ours->size == log->size && ours->fd == log->fd;
        }
    }
    return false;
}

/* Whether a running device logs all it writes, or nothing, to memory that is there. */
static enum greatest_test_res device_logs(const fixture *f, unsigned d, bool logs)
{
    const mock_backend *mock = &f->mock[d];
    ASSERT_INT(logs, mock_logs(mock) && mock->log.size);
    ASSERT_INT(logs, vhost_features_test(&mock->features, VHOST_FEATURE_LOG_ALL));
    if (logs) {
        ASSERT(knows(f, &mock->log));
        ASSERT_INT(mock->facts.log_kind == VHOST_DIRTY_SHARED, mock->log.fd != -1);
        ASSERT(mock_log_covers_table(mock));
    }
    for (unsigned q = 0; q < FIXTURE_QUEUES; q++) {
        const vhost_ring_addresses *addresses = &mock->rings[q].addresses;
        if (f->queue[d][q].started) {
            ASSERT_INT(logs, addresses->log);
            ASSERT_U64(f->queue[d][q].used, addresses->part[VHOST_USED].gpa);
        }
    }
    PASS();
}

static enum greatest_test_res all_log(const fixture *f, bool log)
{
    for (unsigned d = 0; d < FIXTURE_DEVICES; d++) {
        if (f->device[d].state == VHOST_STATE_RUNNING && !f->mock[d].dead) {
            CHECK_CALL(device_logs(f, d, log));
        }
    }
    if (!log) {
        ASSERT_UINT(0, fixture_logs_alive(f));
    }
    return fixture_check(f);
}

/* Whether the calls were just these, in this order. */
static enum greatest_test_res calls_are(const mock_backend *mock, const vhost_op *ops, size_t count)
{
    for (size_t i = 0; i < count && i < mock->calls.count; i++) {
        ASSERT_STR_EQ(vhost_op_name(ops[i]), vhost_op_name(mock->calls.at[i].op));
    }
    ASSERT_UINT(count, mock->calls.count);
    PASS();
}

/* ---- its memory (L1, L2, C7, D5, D9, D32) ---- */

static uint64_t bytes_up_to(uint64_t page)
{
    return (page / (8 * sizeof(unsigned long)) + 1) * sizeof(unsigned long);
}

TEST the_log_has_a_bit_for_every_page_up_to_the_last(fixture *f)
{
    static const uint64_t last_pages[] = {0, 1, 31, 32, 63, 64, 127, 128, 100000, 1048576};
    all_can_log(f);
    ASSERT_OK(attach_and_start(f, 0) == -EFAULT ? 0 : -1);
    for (size_t i = 0; i < sizeof last_pages / sizeof *last_pages; i++) {
        vhost_section section = fixture_section(f, last_pages[i] * PAGE, 1, 0);
        ASSERT_OK(fixture_map(f, &section, 1));
        ASSERT_OK(vhost_log_start(&f->vm));
        ASSERT_UINT(1, fixture_logs_alive(f));
        ASSERT_U64(bytes_up_to(last_pages[i]), f->logs[0].size);
        ASSERT_OK(vhost_log_stop(&f->vm));
    }
    PASS();
}

/* Or else a guest could have a log as large as it likes, by moving a BAR. */
TEST sections_above_all_that_back_ends_get_do_not_count(fixture *f)
{
    vhost_section sections[3];
    sections[0] = f->low;
    sections[1] = fixture_section(f, UINT64_C(1) << 52, 1, 128);
    sections[1].flags = VHOST_SECTION_DIRTY_TRACKED;
    sections[2] = fixture_section(f, UINT64_C(1) << 53, 1, 129);
    sections[2].flags = VHOST_SECTION_ROM;
    all_can_log(f);
    ASSERT_OK(fixture_attach(f, 0));
    ASSERT_OK(fixture_map(f, sections, 3));
    ASSERT_OK(vhost_log_start(&f->vm));
    ASSERT_U64(bytes_up_to((f->low.size - 1) / PAGE), f->logs[0].size);
    PASS();
}

/* By fd a region may end behind the last section: by the pages of the host, whatever the gpa. */
TEST the_log_reaches_to_the_end_of_a_rounded_region(fixture *f)
{
    const uint64_t large = 512 * PAGE;
    for (uint64_t page = 512; page < 1024; page += 73) {
        vhost_backing backing;
        vhost_section section;
        vhost_backing_init(&backing, (void *)(uintptr_t)(64 * large), 2 * large, 0, 0);
        backing.page_size = large;
        vhost_section_init(&section, page * PAGE, PAGE, &backing, large);
        all_can_log(f);
        f->mock[0].facts.profile = VHOST_PROFILE_BY_FD;
        ASSERT_OK(fixture_map(f, &section, 1));
        ASSERT_OK(fixture_attach(f, 0));
        ASSERT_OK(vhost_device_start(&f->device[0]));
        ASSERT_OK(vhost_log_start(&f->vm));
        ASSERT_U64(large, f->mock[0].table[0].size);
        ASSERT_U64(bytes_up_to(page + 511), f->logs[0].size);
        CHECK_CALL(all_log(f, true));
        CHECK_CALL(fixture_renew(f));
    }
    PASS();
}

/* The last bytes of it, too: a back-end would write beyond the memory of the log. */
TEST a_ring_ends_where_a_log_would_end(fixture *f)
{
    vhost_section sections[2];
    sections[0] = fixture_section(f, 0, 64, 0);
    sections[1] = fixture_section(f, 64 * PAGE, 64, 64);
    sections[1].flags = VHOST_SECTION_DIRTY_TRACKED;
    all_can_log(f);
    ASSERT_OK(fixture_map(f, sections, 2));
    ASSERT_OK(fixture_attach(f, 0));
    fixture_fill(f, 0);
    f->queue[0][1].desc = 63 * PAGE + 2048; /* is only read */
    f->queue[0][1].used = 63 * PAGE + 2048;
    ASSERT_FAILS(f, vhost_device_start(&f->device[0]), &f->device[0].last_error, -EFAULT,
                 VHOST_WHY_RING_UNMAPPED);
    f->queue[0][1].used -= 16;
    ASSERT_OK(vhost_device_start(&f->device[0]));
    ASSERT_OK(vhost_log_start(&f->vm));
    return all_log(f, true);
}

TEST without_memory_the_log_is_one_word(fixture *f)
{
    ranges taken;
    all_can_log(f);
    ASSERT_OK(fixture_attach(f, 0));
    ASSERT_OK(vhost_device_start(&f->device[0]));
    ASSERT_OK(vhost_log_start(&f->vm));
    ASSERT_U64(sizeof(long), f->logs[0].size);
    mock_dirty(&f->mock[0], 0);
    ASSERT_OK(take(f, 0, EVERYTHING, &taken));
    ASSERT_UINT(0, taken.count);
    ASSERT_U64(1, taken.sink.pages_dropped);
    PASS();
}

static uint64_t huge_size;

static int refuse_huge_log(vhost_log_memory *memory, bool shared, void *user)
{
    (void)shared;
    (void)user;
    huge_size = memory->size;
    return -ENOMEM;
}

/* One page at the end of the address space: the log would be of half a petabyte. */
TEST a_log_larger_than_memory_is_refused(fixture *f)
{
    static const vhost_log_ops refusing = {refuse_huge_log, NULL};
    vhost_section sections[2];
    vhost_vm_options options = fixture_vm_options(f);
    options.log = &refusing;
    ASSERT_OK(vhost_vm_init(&f->vm, &options));
    sections[0] = f->low;
    sections[1] = fixture_section(f, UINT64_MAX - (PAGE - 1), 1, 200);
    all_can_log(f);
    ASSERT_OK(fixture_map(f, sections, 2));
    ASSERT_OK(attach_and_start(f, 0));
    forget_all(f);
    huge_size = 0;
    ASSERT_FAILS(f, vhost_log_start(&f->vm), &f->vm.last_error, -ENOMEM, VHOST_WHY_LOG_MEMORY);
    ASSERT_U64(sizeof(size_t) < 8 ? 0 : bytes_up_to(UINT64_MAX / PAGE), huge_size);
    ASSERT_UINT(0, f->mock[0].calls.count);
    PASS();
}

TEST devices_of_one_kind_share_one_log(fixture *f)
{
    ASSERT_OK(logging_devices(f));
    ASSERT_UINT(1, f->log_maps);
    ASSERT_PTR(f->mock[0].log.base, f->mock[1].log.base);
    ASSERT_PTR(f->mock[0].log.base, f->mock[2].log.base);
    return all_log(f, true);
}

TEST each_kind_has_a_log_of_its_own(fixture *f)
{
    ASSERT_OK(running_device(f));
    can_log(f, 1, VHOST_DIRTY_SHARED);
    ASSERT_OK(attach_and_start(f, 1));
    ASSERT_OK(attach_and_start(f, 2));
    ASSERT_OK(vhost_log_start(&f->vm));
    ASSERT_UINT(2, fixture_logs_alive(f));
    ASSERT_PTR(f->mock[0].log.base, f->mock[2].log.base);
    ASSERT(f->mock[0].log.base != f->mock[1].log.base);
    ASSERT_INT(-1, f->mock[0].log.fd);
    ASSERT(f->mock[1].log.fd >= FIXTURE_LOG_FD);
    return all_log(f, true);
}

TEST kinds_that_no_device_has_get_no_log(fixture *f)
{
    all_can_log(f);
    ASSERT_OK(vhost_log_start(&f->vm));
    ASSERT_UINT(0, f->log_maps);
    return takes_just(f, 0, 0);
}

/* Without options.log: private logs from the heap, shared ones from >>posix. */
TEST default_logs_are_made_and_replaced(fixture *f)
{
    for (unsigned d = 0; d < 2; d++) {
        vhost_vm_options options = fixture_vm_options(f);
        options.log = NULL;
        ASSERT_OK(vhost_vm_init(&f->vm, &options));
        can_log(f, 1, VHOST_DIRTY_SHARED);
        ASSERT_OK(map_some(f, 2));
        can_log(f, d, d == 0 ? VHOST_DIRTY_PRIVATE : VHOST_DIRTY_SHARED);
        ASSERT_OK(attach_and_start(f, d));
        ASSERT_OK(vhost_log_start(&f->vm));
        ASSERT_INT(d == 1, f->mock[d].log.fd >= 0);
        mock_dirty(&f->mock[d], NEAR);
        CHECK_CALL(takes_just(f, NEAR, PAGE));
        ASSERT_OK(map_some(f, 3));
        mock_dirty(&f->mock[d], FAR);
        CHECK_CALL(takes_just(f, FAR, PAGE));
        ASSERT_OK(vhost_log_stop(&f->vm));
        CHECK_CALL(all_log(f, false));
        CHECK_CALL(fixture_renew(f));
    }
    PASS();
}

/* The log that a back-end was told of last is there when that takes effect, and ever after. */
static void log_is_alive(mock_backend *mock, bool begins, void *user)
{
    const fixture *f = (const fixture *)user;
    bool alive = begins || mock->log.size == 0;
    for (unsigned i = 0; i < FIXTURE_LOGS; i++) {
        alive = alive || (f->logs[i].size == mock->log.size && f->logs[i].base == mock->log.base);
    }
    if (!alive && mock->complaint[0] == '\0') {
        snprintf(mock->complaint, sizeof mock->complaint, "the log is gone before the fence");
    }
}

TEST a_log_stays_until_the_fence(fixture *f)
{
    f->mock[0].around = log_is_alive;
    ASSERT_OK(running_device(f));
    for (int i = 0; i < 2; i++) {
        ASSERT_OK(vhost_log_start(&f->vm));
        ASSERT_OK(map_some(f, 3));
        ASSERT_OK(map_some(f, 2));
        ASSERT_OK(vhost_log_stop(&f->vm));
        f->mock[0].log.size = 0; /* not used without LOG_ALL */
    }
    ASSERT_UINT(0, fixture_logs_alive(f));
    PASS();
}

/* After these errors a connection is closed, so they are no refusals. */
TEST a_back_end_that_says_nothing_or_nonsense_is_lost(fixture *f)
{
    const int codes[] = {-ETIMEDOUT, -EPROTO, -ECONNRESET, -EPIPE, -ENODEV};
    for (unsigned i = 0; i < sizeof codes / sizeof *codes; i++) {
        ASSERT_OK(running_device(f));
        mock_refuse(&f->mock[0], VHOST_OP_SET_LOG, -1, codes[i]);
        ASSERT_OK(vhost_log_start(&f->vm)); /* it is no obstacle */
        ASSERT_INT(VHOST_STATE_BROKEN, f->device[0].state);
        ASSERT_INT(VHOST_WHY_BACKEND_LOST, f->device[0].last_error.why);
        CHECK_CALL(fixture_renew(f));
    }
    PASS();
}

TEST no_two_logs_have_the_same_id(fixture *f)
{
    ASSERT_OK(running_device(f));
    can_log(f, 1, VHOST_DIRTY_SHARED);
    ASSERT_OK(attach_and_start(f, 1));
    ASSERT_OK(vhost_log_start(&f->vm));
    uint64_t ids[4] = {f->mock[0].log.id, f->mock[1].log.id};
    ASSERT_OK(map_some(f, 3));
    ids[2] = f->mock[0].log.id;
    ids[3] = f->mock[1].log.id;
    for (unsigned i = 0; i < 4; i++) {
        for (unsigned k = 0; k < i; k++) {
            ASSERT(ids[i] != ids[k]);
        }
    }
    PASS();
}

TEST without_memory_for_a_log_nobody_is_told(fixture *f)
{
    ASSERT_OK(running_device(f));
    can_log(f, 1, VHOST_DIRTY_SHARED);
    ASSERT_OK(attach_and_start(f, 1));
    forget_all(f);
    for (unsigned nth = 1; nth <= 4; nth++) { /* of each kind, the log and its memory */
        int code = nth % 2 ? -ENOMEM : -EDQUOT;
        fault_arm(&f->fault, FAULT_ONCE, nth, 0);
        ASSERT_FAILS(f, vhost_log_start(&f->vm), &f->vm.last_error, code, VHOST_WHY_LOG_MEMORY);
        fault_disarm(&f->fault);
        ASSERT_UINT(0, f->mock[0].calls.count + f->mock[1].calls.count);
        CHECK_CALL(all_log(f, false));
    }
    ASSERT_OK(vhost_log_start(&f->vm));
    return all_log(f, true);
}

TEST a_vm_may_be_cleaned_up_while_it_logs(fixture *f)
{
    ASSERT_OK(logging_device(f));
    vhost_device_cleanup(&f->device[0]);
    ASSERT_UINT(1, fixture_logs_alive(f));
    ASSERT_OK(vhost_vm_cleanup(&f->vm));
    ASSERT_UINT(0, fixture_logs_alive(f));
    PASS();
}

/* ---- blockers (B2) ---- */

/* Makes device d unable to log, in one of three ways. */
static void cannot_log(fixture *f, unsigned d, unsigned way)
{
    if (way == 0) {
        f->mock[d].facts.log_kind = VHOST_DIRTY_NONE;
    } else if (way == 1) {
        f->mock[d].ops.set_log = NULL;
    } else {
        vhost_features_clear(&f->mock[d].facts.offered, VHOST_FEATURE_LOG_ALL);
    }
}

TEST a_device_that_cannot_log_stands_in_the_way(fixture *f)
{
    for (unsigned way = 0; way < 3; way++) {
        vhost_why why = VHOST_WHY_COUNT;
        CHECK_CALL(fixture_renew(f));
        all_can_log(f);
        cannot_log(f, 1, way);
        ASSERT_OK(map_some(f, 2));
        ASSERT_OK(attach_and_start(f, 0));
        ASSERT_PTR(NULL, vhost_log_blocker(&f->vm, NULL, &why));
        ASSERT_INT(VHOST_WHY_NONE, why);
        ASSERT_OK(attach_and_start(f, 1));
        ASSERT_PTR(&f->device[1], vhost_log_blocker(&f->vm, NULL, &why));
        ASSERT_INT(VHOST_WHY_LOG_UNSUPPORTED, why);
        forget_all(f);
        ASSERT_FAILS(f, vhost_log_start(&f->vm), &f->vm.last_error, -ENOTSUP,
                     VHOST_WHY_LOG_UNSUPPORTED);
        ASSERT_UINT(0, f->mock[0].calls.count + f->mock[1].calls.count);
        CHECK_CALL(all_log(f, false));
        vhost_device_cleanup(&f->device[1]);
        ASSERT_OK(vhost_log_start(&f->vm));
        CHECK_CALL(all_log(f, true));
    }
    PASS();
}

TEST every_blocker_is_found_with_its_reason(fixture *f)
{
    const vhost_device *blocker = NULL;
    unsigned found = 0;
    vhost_why why = VHOST_WHY_NONE;
    all_can_log(f);
    cannot_log(f, 0, 0);
    cannot_log(f, 2, 2);
    for (unsigned d = 0; d < FIXTURE_DEVICES; d++) {
        ASSERT_OK(fixture_attach(f, d));
    }
    while ((blocker = vhost_log_blocker(&f->vm, blocker, &why)) != NULL) {
        ASSERT_INT(VHOST_WHY_LOG_UNSUPPORTED, why);
        found |= 1u << (blocker - f->device);
    }
    ASSERT_UINT(5, found);
    ASSERT_UINT(0, f->errors);
    PASS();
}

TEST while_the_vm_logs_who_cannot_is_refused(fixture *f)
{
    for (unsigned way = 0; way < 3; way++) {
        CHECK_CALL(fixture_renew(f));
        ASSERT_OK(logging_device(f));
        cannot_log(f, 1, way);
        ASSERT_FAILS(f, fixture_attach(f, 1), &f->device[1].last_error, -ENOTSUP,
                     VHOST_WHY_LOG_UNSUPPORTED);
        ASSERT_INT(VHOST_STATE_CLOSED, f->device[1].state);
        CHECK_CALL(all_log(f, true));
        ASSERT_OK(vhost_log_stop(&f->vm));
        ASSERT_OK(attach_and_start(f, 1));
    }
    PASS();
}

TEST a_broken_device_that_cannot_log_any_more_stays_broken(fixture *f)
{
    ASSERT_OK(logging_device(f));
    fixture_break(f, 0);
    mock_revive(&f->mock[0]);
    cannot_log(f, 0, 2);
    ASSERT_FAILS(f, vhost_device_reset(&f->device[0]), &f->device[0].last_error, -ENOTSUP,
                 VHOST_WHY_LOG_UNSUPPORTED);
    ASSERT_INT(VHOST_STATE_BROKEN, f->device[0].state);
    can_log(f, 0, VHOST_DIRTY_SHARED); /* another back-end at the same place */
    ASSERT_OK(vhost_device_reset(&f->device[0]));
    ASSERT_OK(vhost_device_ack(&f->device[0], f->accepted));
    ASSERT_OK(fixture_start(f, 0));
    return all_log(f, true);
}

/* ---- on and off (G1 to G6, D22, S7) ---- */

TEST log_start_sends_base_features_and_addresses(fixture *f)
{
    static const vhost_op expected[] = {VHOST_OP_SET_LOG, VHOST_OP_SET_FEATURES,
                                        VHOST_OP_SET_RING_ADDRESSES, VHOST_OP_SET_RING_ADDRESSES,
                                        VHOST_OP_SET_RING_ADDRESSES};
    ASSERT_OK(running_device(f));
    forget_all(f);
    unsigned fences = f->mock[0].fences;
    ASSERT_OK(vhost_log_start(&f->vm));
    CHECK_CALL(calls_are(&f->mock[0], expected, 5));
    ASSERT_UINT(fences + (f->mode != MOCK_SYNCHRONOUS), f->mock[0].fences);
    for (int q = 0; q < FIXTURE_QUEUES; q++) {
        ASSERT_INT(q, f->mock[0].calls.at[2 + q].queue);
    }
    return all_log(f, true);
}

TEST log_stop_sends_addresses_and_features(fixture *f)
{
    static const vhost_op expected[] = {VHOST_OP_SET_RING_ADDRESSES, VHOST_OP_SET_RING_ADDRESSES,
                                        VHOST_OP_SET_RING_ADDRESSES, VHOST_OP_SET_FEATURES};
    ASSERT_OK(logging_device(f));
    forget_all(f);
    ASSERT_OK(vhost_log_stop(&f->vm));
    CHECK_CALL(calls_are(&f->mock[0], expected, 4));
    return all_log(f, false);
}

TEST only_rings_that_run_are_told_to_log(fixture *f)
{
    all_can_log(f);
    ASSERT_OK(map_some(f, 2));
    ASSERT_OK(fixture_attach(f, 0));
    fixture_fill(f, 0);
    f->queue[0][0].ready = false;
    ASSERT_OK(vhost_device_start(&f->device[0]));
    ASSERT_OK(vhost_queue_stop(&f->device[0], 2));
    forget_all(f);
    ASSERT_OK(vhost_log_start(&f->vm));
    ASSERT_UINT(1, mock_count(&f->mock[0], VHOST_OP_SET_RING_ADDRESSES, -1));
    ASSERT_UINT(1, mock_count(&f->mock[0], VHOST_OP_SET_RING_ADDRESSES, 1));
    CHECK_CALL(all_log(f, true));
    ASSERT_OK(vhost_queue_start(&f->device[0], 2));
    CHECK_CALL(all_log(f, true));
    forget_all(f);
    ASSERT_OK(vhost_log_stop(&f->vm));
    ASSERT_UINT(2, mock_count(&f->mock[0], VHOST_OP_SET_RING_ADDRESSES, -1));
    return all_log(f, false);
}

TEST stopped_and_broken_devices_are_not_told(fixture *f)
{
    ASSERT_OK(running_devices(f));
    ASSERT_OK(vhost_device_stop(&f->device[1]));
    fixture_break(f, 2);
    forget_all(f);
    ASSERT_OK(vhost_log_start(&f->vm));
    ASSERT_OK(vhost_log_stop(&f->vm));
    ASSERT(f->mock[0].calls.count > 0);
    ASSERT_UINT(0, f->mock[1].calls.count + f->mock[2].calls.count);
    ASSERT_UINT(0, f->errors);
    PASS();
}

TEST a_device_that_starts_while_the_vm_logs_logs(fixture *f)
{
    ASSERT_OK(logging_device(f));
    ASSERT_OK(attach_and_start(f, 1));
    ASSERT_OK(vhost_device_stop(&f->device[0]));
    ASSERT_OK(fixture_start(f, 0));
    return all_log(f, true);
}

/* The table may be used from the first ring on, so the log must be there before that. */
TEST at_start_the_log_comes_right_after_the_table(fixture *f)
{
    ASSERT_OK(logging_device(f));
    ASSERT_OK(attach_and_start(f, 1));
    const mock_backend *mock = &f->mock[1];
    int table = mock_find(mock, VHOST_OP_SET_TABLE, -1, 0);
    ASSERT_INT(table - 1, mock_find(mock, VHOST_OP_SET_FEATURES, -1, 0));
    ASSERT_INT(table + 1, mock_find(mock, VHOST_OP_SET_LOG, -1, 0));
    ASSERT_INT(table + 2, mock_find(mock, VHOST_OP_SET_RING_CALL, -1, 0));
    ASSERT_UINT(1, mock_count(mock, VHOST_OP_SET_FEATURES, -1));
    PASS();
}

TEST without_a_log_no_back_end_hears_of_one(fixture *f)
{
    ASSERT_OK(running_device(f));
    ASSERT_UINT(0, mock_count(&f->mock[0], VHOST_OP_SET_LOG, -1));
    CHECK_CALL(all_log(f, false));
    ASSERT_OK(vhost_log_start(&f->vm));
    ASSERT_OK(vhost_device_stop(&f->device[0]));
    ASSERT_OK(vhost_log_stop(&f->vm));
    forget_all(f);
    ASSERT_OK(fixture_start(f, 0));
    ASSERT_UINT(0, mock_count(&f->mock[0], VHOST_OP_SET_LOG, -1));
    PASS();
}

TEST log_start_and_log_stop_may_be_repeated(fixture *f)
{
    ASSERT_OK(running_device(f));
    forget_all(f);
    ASSERT_OK(vhost_log_stop(&f->vm));
    ASSERT_UINT(0, f->mock[0].calls.count);
    ASSERT_OK(vhost_log_start(&f->vm));
    mock_dirty(&f->mock[0], NEAR);
    forget_all(f);
    ASSERT_OK(vhost_log_start(&f->vm));
    ASSERT_UINT(0, f->mock[0].calls.count);
    CHECK_CALL(takes_just(f, NEAR, PAGE));
    ASSERT_OK(vhost_log_stop(&f->vm));
    forget_all(f);
    ASSERT_OK(vhost_log_stop(&f->vm));
    ASSERT_UINT(0, f->mock[0].calls.count);
    PASS();
}

TEST each_logging_begins_clean(fixture *f)
{
    ASSERT_OK(logging_device(f));
    mock_dirty(&f->mock[0], NEAR);
    ASSERT_OK(vhost_log_stop(&f->vm));
    ASSERT_OK(vhost_log_start(&f->vm));
    return takes_just(f, 0, 0);
}

TEST not_in_a_transaction(fixture *f)
{
    ASSERT_OK(running_device(f));
    ASSERT_OK(vhost_memory_begin(&f->vm));
    ASSERT_FAILS(f, vhost_log_start(&f->vm), &f->vm.last_error, -EBUSY, VHOST_WHY_STATE);
    vhost_memory_abort(&f->vm);
    ASSERT_OK(vhost_log_start(&f->vm));
    ASSERT_OK(vhost_memory_begin(&f->vm));
    ASSERT_FAILS(f, vhost_log_stop(&f->vm), &f->vm.last_error, -EBUSY, VHOST_WHY_STATE);
    mock_dirty(&f->mock[0], NEAR);
    CHECK_CALL(takes_just(f, NEAR, PAGE)); /* by the map in force */
    vhost_memory_abort(&f->vm);
    return all_log(f, true);
}

TEST making_and_replacing_a_log_is_traced(fixture *f)
{
    ASSERT_OK(logging_device(f));
    ASSERT_OK(map_some(f, 3));
    unsigned logs = 0;
    for (unsigned i = 0; i < FIXTURE_TRACES; i++) {
        const vhost_trace *trace = &f->traces[i];
        if (trace->event == VHOST_TRACE_LOG) {
            ASSERT_INT(VHOST_DIRTY_PRIVATE, trace->value);
            ASSERT_PTR(NULL, trace->device);
            logs++;
        }
    }
    ASSERT_UINT(2, logs);
    PASS();
}

/* ---- who refuses, who dies (G4, G5, D3) ---- */

TEST if_one_refuses_to_log_none_logs(fixture *f)
{
    static const vhost_op ops[] = {VHOST_OP_SET_LOG, VHOST_OP_SET_FEATURES,
                                   VHOST_OP_SET_RING_ADDRESSES};
    for (unsigned i = 0; i < 9; i++) {
        CHECK_CALL(fixture_renew(f));
        ASSERT_OK(running_devices(f));
        fault_arm_operation(&f->fault, i < 3 ? i + 1 : 5 * (i / 3) + i % 3 + 1);
        ASSERT_INT(-EPERM, vhost_log_start(&f->vm));
        fault_disarm(&f->fault);
        ASSERT_INT(-EPERM, f->vm.last_error.code);
        ASSERT_INT(VHOST_WHY_BACKEND_REFUSED, f->vm.last_error.why);
        CHECK_CALL(fixture_names(&f->vm.last_error, ops[i % 3], i % 3 == 2 ? 0 : -1));
        ASSERT_UINT(1, f->errors); /* said once, of the device */
        ASSERT(f->last_message.device != NULL);
        for (unsigned d = 0; d < FIXTURE_DEVICES; d++) {
            ASSERT_INT(VHOST_STATE_RUNNING, f->device[d].state);
        }
        CHECK_CALL(all_log(f, false));
        ASSERT_OK(vhost_log_start(&f->vm));
        CHECK_CALL(all_log(f, true));
    }
    PASS();
}

TEST who_will_not_be_rolled_back_is_broken(fixture *f)
{
    ASSERT_OK(running_devices(f));
    mock_refuse(&f->mock[1], VHOST_OP_SET_RING_ADDRESSES, 1, -EPERM);
    ASSERT_INT(-EPERM, vhost_log_start(&f->vm));
    ASSERT_INT(-EPERM, f->vm.last_error.code);
    ASSERT_INT(VHOST_STATE_RUNNING, f->device[0].state);
    ASSERT_INT(VHOST_STATE_BROKEN, f->device[1].state);
    ASSERT_INT(VHOST_STATE_RUNNING, f->device[2].state);
    return all_log(f, false);
}

TEST a_device_found_dead_is_no_obstacle_to_log_start(fixture *f)
{
    ASSERT_OK(running_devices(f));
    mock_die(&f->mock[1]);
    ASSERT_OK(vhost_log_start(&f->vm));
    ASSERT_INT(VHOST_STATE_BROKEN, f->device[1].state);
    ASSERT_INT(VHOST_WHY_BACKEND_LOST, f->device[1].last_error.why);
    ASSERT_UINT(1, f->errors);
    ASSERT_UINT(1, f->broken[1]);
    return all_log(f, true);
}

TEST a_device_found_dead_at_log_stop_is_broken_and_told(fixture *f)
{
    ASSERT_OK(logging_devices(f));
    mock_die(&f->mock[1]);
    ASSERT_INT(-ECONNRESET, vhost_log_stop(&f->vm));
    ASSERT_INT(-ECONNRESET, f->vm.last_error.code);
    ASSERT_INT(VHOST_STATE_BROKEN, f->device[1].state);
    ASSERT_UINT(1, f->errors);
    ASSERT_UINT(1, f->broken[1]);
    return all_log(f, false);
}

TEST who_does_not_stop_logging_is_cut_off(fixture *f)
{
    ASSERT_OK(logging_devices(f));
    mock_refuse(&f->mock[0], VHOST_OP_SET_FEATURES, -1, -EPERM);
    mock_refuse(&f->mock[2], VHOST_OP_SET_RING_ADDRESSES, 2, -EBADF);
    ASSERT_INT(-EBADF, vhost_log_stop(&f->vm)); /* devices are asked from the newest on */
    ASSERT_INT(VHOST_STATE_BROKEN, f->device[0].state);
    ASSERT_INT(-EPERM, f->device[0].last_error.code);
    ASSERT_INT(VHOST_STATE_RUNNING, f->device[1].state);
    ASSERT_INT(VHOST_STATE_BROKEN, f->device[2].state);
    ASSERT_UINT(2, f->errors);
    return all_log(f, false);
}

/* ---- the log goes with the map (L3, C5 to C8, D6, D7, D8, D11) ---- */

TEST the_log_grows_before_the_table(fixture *f)
{
    static const vhost_op expected[] = {VHOST_OP_SET_LOG, VHOST_OP_SET_TABLE};
    ASSERT_OK(logging_device(f));
    forget_all(f);
    unsigned fences = f->mock[0].fences;
    ASSERT_OK(map_some(f, 3));
    CHECK_CALL(calls_are(&f->mock[0], expected, 2));
    ASSERT_UINT(fences + (f->mode != MOCK_SYNCHRONOUS), f->mock[0].fences);
    ASSERT_U64(bytes_up_to(FAR / PAGE + 63) + SLACK, f->mock[0].log.size);
    return all_log(f, true);
}

TEST the_log_shrinks_after_the_table(fixture *f)
{
    static const vhost_op expected[] = {VHOST_OP_SET_TABLE, VHOST_OP_SET_LOG};
    ASSERT_OK(logging_device(f));
    ASSERT_OK(map_some(f, 3));
    forget_all(f);
    ASSERT_OK(map_some(f, 2));
    CHECK_CALL(calls_are(&f->mock[0], expected, 2));
    ASSERT_U64(bytes_up_to(NEAR / PAGE + 63), f->mock[0].log.size);
    return all_log(f, true);
}

/* Memory that ends at this page, above the low section. */
static int map_up_to(fixture *f, uint64_t last_page)
{
    vhost_section sections[2];
    sections[0] = f->low;
    sections[1] = fixture_section(f, last_page * PAGE, 1, 128);
    return fixture_map(f, sections, 2);
}

TEST the_slack_is_four_kilobytes_of_log(fixture *f)
{
    const uint64_t pages = SLACK * 8, word = 8 * sizeof(long);
    ASSERT_OK(running_device(f));
    ASSERT_OK(map_up_to(f, 1000));
    ASSERT_OK(vhost_log_start(&f->vm));
    ASSERT_U64(bytes_up_to(1000), f->mock[0].log.size);
    uint64_t grown = 1000 / word * word + word; /* one more than fits */
    ASSERT_OK(map_up_to(f, grown));
    ASSERT_U64(bytes_up_to(grown) + SLACK, f->mock[0].log.size);
    ASSERT_OK(map_up_to(f, grown + pages)); /* fits into the slack */
    ASSERT_UINT(2, f->log_maps);
    ASSERT_OK(map_up_to(f, grown)); /* not more than the slack too large */
    ASSERT_UINT(2, f->log_maps);
    ASSERT_OK(map_up_to(f, grown - 1)); /* more */
    ASSERT_UINT(3, f->log_maps);
    ASSERT_U64(bytes_up_to(grown - 1), f->mock[0].log.size);
    return all_log(f, true);
}

TEST a_log_that_fits_is_kept(fixture *f)
{
    ASSERT_OK(logging_device(f));
    forget_all(f);
    ASSERT_OK(map_some(f, 1));
    ASSERT_UINT(1, f->mock[0].calls.count);
    ASSERT_UINT(0, mock_count(&f->mock[0], VHOST_OP_SET_LOG, -1));
    ASSERT_UINT(1, f->log_maps);
    PASS();
}

TEST replaced_logs_are_given_back(fixture *f)
{
    ASSERT_OK(running_devices(f));
    can_log(f, 2, VHOST_DIRTY_SHARED);
    vhost_device_cleanup(&f->device[2]);
    ASSERT_OK(attach_and_start(f, 2));
    ASSERT_OK(vhost_log_start(&f->vm));
    for (unsigned i = 0; i < 10; i++) {
        ASSERT_OK(map_some(f, 3));
        ASSERT_UINT(2, fixture_logs_alive(f));
        ASSERT_OK(map_some(f, 2));
        ASSERT_UINT(2, fixture_logs_alive(f));
        CHECK_CALL(all_log(f, true));
    }
    ASSERT_UINT(42, f->log_maps);
    PASS();
}

/* Bits come into the log before, during and after each step of a switch. */
static uint64_t next_bit;

static void dirty_more(mock_backend *mock, bool begins, void *user)
{
    (void)begins;
    (void)user;
    if (mock_runs(mock) && mock_logs(mock)) {
        mock_dirty(mock, NEAR + next_bit++ * PAGE);
    }
}

TEST no_bit_is_lost_when_the_log_is_replaced(fixture *f)
{
    ASSERT_OK(logging_devices(f));
    for (unsigned sections = 3; sections >= 2; sections--) {
        next_bit = 0;
        for (unsigned d = 0; d < FIXTURE_DEVICES; d++) {
            f->mock[d].around = dirty_more;
        }
        ASSERT_OK(map_some(f, sections));
        ASSERT_U64(12, next_bit); /* two operations of each device, before and after */
        CHECK_CALL(takes_just(f, NEAR, next_bit * PAGE));
        CHECK_CALL(takes_just(f, 0, 0));
    }
    PASS();
}

TEST no_bit_is_lost_at_log_start(fixture *f)
{
    ASSERT_OK(running_devices(f));
    next_bit = 0;
    for (unsigned d = 0; d < FIXTURE_DEVICES; d++) {
        f->mock[d].around = dirty_more;
    }
    ASSERT_OK(vhost_log_start(&f->vm));
    ASSERT(next_bit > 0);
    return takes_just(f, NEAR, next_bit * PAGE);
}

TEST after_a_switch_the_new_log_is_synced(fixture *f)
{
    ASSERT_OK(logging_devices(f));
    ASSERT_OK(map_some(f, 3));
    mock_dirty(&f->mock[2], FAR + PAGE);
    CHECK_CALL(takes_just(f, FAR + PAGE, PAGE));
    ASSERT_OK(map_some(f, 2));
    mock_dirty(&f->mock[0], NEAR + PAGE);
    CHECK_CALL(takes_just(f, NEAR + PAGE, PAGE));
    PASS();
}

TEST bits_of_memory_that_goes_and_comes_back_stay(fixture *f)
{
    ASSERT_OK(logging_device(f));
    ASSERT_OK(map_some(f, 3));
    mock_dirty(&f->mock[0], FAR);
    ASSERT_OK(map_some(f, 2));
    ASSERT_OK(map_some(f, 3));
    return takes_just(f, FAR, PAGE);
}

TEST bits_of_memory_that_is_away_are_dropped_and_counted(fixture *f)
{
    ranges taken;
    ASSERT_OK(logging_device(f));
    ASSERT_OK(map_some(f, 3));
    mock_dirty(&f->mock[0], FAR);
    ASSERT_OK(map_some(f, 2));
    ASSERT_OK(take(f, 0, EVERYTHING, &taken));
    ASSERT_UINT(0, taken.count);
    ASSERT_U64(1, taken.sink.pages_dropped);
    ASSERT_OK(map_some(f, 3));
    return takes_just(f, 0, 0);
}

/* Or what was dirty beyond the top of memory would be lost. */
TEST a_log_shrinks_only_where_it_is_clean(fixture *f)
{
    ranges taken;
    ASSERT_OK(logging_device(f));
    ASSERT_OK(map_some(f, 3));
    uint64_t large = f->mock[0].log.size;
    mock_dirty(&f->mock[0], FAR);
    ASSERT_OK(map_some(f, 2));
    ASSERT_U64(large, f->mock[0].log.size);
    ASSERT_OK(take(f, 0, EVERYTHING, &taken));
    ASSERT_OK(map_some(f, 1));
    ASSERT(f->mock[0].log.size < large);
    PASS();
}

TEST devices_of_different_ages_have_one_log(fixture *f)
{
    ASSERT_OK(logging_device(f));
    ASSERT_OK(map_some(f, 3));
    ASSERT_OK(attach_and_start(f, 1));
    ASSERT_PTR(f->mock[0].log.base, f->mock[1].log.base);
    ASSERT_OK(map_some(f, 2));
    ASSERT_OK(attach_and_start(f, 2));
    ASSERT_PTR(f->mock[0].log.base, f->mock[1].log.base);
    ASSERT_PTR(f->mock[0].log.base, f->mock[2].log.base);
    ASSERT_UINT(1, fixture_logs_alive(f));
    mock_dirty(&f->mock[0], NEAR);
    mock_dirty(&f->mock[1], NEAR + PAGE);
    mock_dirty(&f->mock[2], NEAR + 2 * PAGE);
    return takes_just(f, NEAR, 3 * PAGE);
}

TEST a_stopped_device_gets_the_new_log_when_it_starts(fixture *f)
{
    ASSERT_OK(logging_devices(f));
    ASSERT_OK(vhost_device_stop(&f->device[1]));
    mock_forget(&f->mock[1]);
    ASSERT_OK(map_some(f, 3));
    ASSERT_UINT(0, f->mock[1].calls.count);
    ASSERT_OK(fixture_start(f, 1));
    ASSERT_PTR(f->mock[0].log.base, f->mock[1].log.base);
    ASSERT_UINT(1, fixture_logs_alive(f));
    return all_log(f, true);
}

TEST who_refuses_the_new_log_breaks_and_its_bits_stay(fixture *f)
{
    for (unsigned sections = 3; sections >= 2; sections--) {
        CHECK_CALL(fixture_renew(f));
        ranges taken;
        ASSERT_OK(logging_devices(f));
        ASSERT_OK(sections == 2 ? map_some(f, 3) : 0);
        mock_dirty(&f->mock[1], NEAR);
        mock_refuse(&f->mock[1], VHOST_OP_SET_LOG, -1, -ENOMEM);
        ASSERT_OK(map_some(f, sections));
        ASSERT_INT(VHOST_STATE_BROKEN, f->device[1].state);
        CHECK_CALL(fixture_names(&f->device[1].last_error, VHOST_OP_SET_LOG, -1));
        ASSERT_UINT(1, f->errors);
        CHECK_CALL(all_log(f, true));
        ASSERT_OK(take(f, 0, EVERYTHING, &taken));
        ASSERT(is_taken(&taken, NEAR));
        for (unsigned q = 0; q < FIXTURE_QUEUES; q++) {
            ASSERT(is_taken(&taken, f->queue[1][q].used));
            ASSERT_FALSE(is_taken(&taken, f->queue[0][q].used));
        }
    }
    PASS();
}

/* Another process that was cut off goes on until it notices, whatever becomes of other logs. */
TEST a_straggler_writes_to_a_replaced_log_and_is_heard(fixture *f)
{
    for (unsigned sections = 3; sections >= 2; sections--) {
        ranges taken;
        CHECK_CALL(fixture_renew(f));
        all_can_log(f);
        can_log(f, 1, VHOST_DIRTY_SHARED);
        ASSERT_OK(map_some(f, 5 - sections));
        ASSERT_OK(attach_and_start(f, 0));
        ASSERT_OK(attach_and_start(f, 1));
        ASSERT_OK(vhost_log_start(&f->vm));
        unsigned char *replaced = (unsigned char *)f->mock[1].log.base + NEAR / PAGE / 8;
        mock_refuse(&f->mock[1], VHOST_OP_SET_LOG, -1, -ENOMEM);
        ASSERT_OK(map_some(f, sections));
        ASSERT_INT(VHOST_STATE_BROKEN, f->device[1].state);
        ASSERT_OK(take(f, 0, EVERYTHING, &taken));
        *replaced = 1;
        CHECK_CALL(takes_just(f, NEAR, PAGE));
        mock_revive(&f->mock[1]);
        ASSERT_OK(vhost_device_reset(&f->device[1]));
        ASSERT_OK(map_some(f, 1));
        for (unsigned other = 2; other <= 3; other++) {
            ASSERT_OK(map_some(f, other));
            *replaced = 1;
            CHECK_CALL(takes_just(f, NEAR, PAGE));
        }
        ASSERT_OK(vhost_log_stop(&f->vm));
    }
    PASS();
}

TEST without_memory_for_the_new_log_the_old_map_stays(fixture *f)
{
    vhost_extent extent;
    unsigned failures = 0;
    ASSERT_OK(logging_device(f));
    ASSERT_OK(map_some(f, 3));
    ASSERT_OK(map_some(f, 2));
    mock_dirty(&f->mock[0], NEAR);
    forget_all(f);
    for (unsigned nth = 1; failures < 2; nth++) {
        fault_arm(&f->fault, FAULT_ONCE, nth, 0);
        ASSERT_INT(failures == 1 ? -EDQUOT : -ENOMEM, map_some(f, 3));
        fault_disarm(&f->fault);
        failures += f->vm.last_error.why == VHOST_WHY_LOG_MEMORY;
        ASSERT_INT(-EFAULT, vhost_memory_find(&f->vm, FAR, &extent));
        ASSERT_UINT(0, f->mock[0].calls.count);
        ASSERT_UINT(1, fixture_logs_alive(f));
    }
    CHECK_CALL(all_log(f, true));
    return takes_just(f, NEAR, PAGE);
}

/* ---- bits of devices that go (V5, D4, D23, D33) ---- */

/* Rings over two pages each: descriptors, and what the device writes. */
static void straddle(fixture *f, unsigned q)
{
    f->queue[0][q].desc = NEAR + (8 * q + 1) * PAGE - 512;
    f->queue[0][q].used = NEAR + (8 * q + 5) * PAGE - 512;
}

static int logging_straddler(fixture *f)
{
    all_can_log(f);
    int result = map_some(f, 2);
    result = result < 0 ? result : fixture_attach(f, 0);
    fixture_fill(f, 0);
    straddle(f, 1);
    result = result < 0 ? result : vhost_device_start(&f->device[0]);
    return result < 0 ? result : vhost_log_start(&f->vm);
}

TEST stop_leaves_used_rings_dirty(fixture *f)
{
    ranges taken;
    ASSERT_OK(logging_straddler(f));
    ASSERT_OK(vhost_device_stop(&f->device[0]));
    ASSERT_OK(take(f, 0, EVERYTHING, &taken));
    ASSERT_U64(4, taken.sink.pages_dirty);
    ASSERT(is_taken(&taken, f->queue[0][0].used));
    ASSERT(is_taken(&taken, NEAR + 12 * PAGE));
    ASSERT(is_taken(&taken, NEAR + 13 * PAGE));
    ASSERT(is_taken(&taken, f->queue[0][2].used));
    return takes_just(f, 0, 0);
}

TEST stop_leaves_packed_rings_dirty(fixture *f)
{
    ranges taken;
    vhost_features_set(&f->accepted, VHOST_FEATURE_RING_PACKED);
    all_can_log(f);
    ASSERT_OK(map_some(f, 2));
    ASSERT_OK(fixture_attach(f, 0));
    fixture_fill(f, 0);
    straddle(f, 1);
    f->queue[0][1].used = NEAR + 13 * PAGE - 4; /* four bytes only, of one page */
    ASSERT_OK(vhost_device_start(&f->device[0]));
    ASSERT_OK(vhost_log_start(&f->vm));
    ASSERT_OK(vhost_queue_stop(&f->device[0], 1));
    ASSERT_OK(take(f, 0, EVERYTHING, &taken));
    ASSERT_U64(3, taken.sink.pages_dirty);
    ASSERT(is_taken(&taken, NEAR + 8 * PAGE));
    ASSERT(is_taken(&taken, NEAR + 9 * PAGE));
    ASSERT(is_taken(&taken, NEAR + 12 * PAGE));
    PASS();
}

TEST a_queue_that_stops_leaves_its_used_ring_dirty(fixture *f)
{
    ASSERT_OK(logging_straddler(f));
    ASSERT_OK(vhost_queue_stop(&f->device[0], 1));
    CHECK_CALL(takes_just(f, NEAR + 12 * PAGE, 2 * PAGE));
    ASSERT_OK(vhost_queue_stop(&f->device[0], 1));
    return takes_just(f, 0, 0);
}

TEST without_a_log_stop_marks_nothing(fixture *f)
{
    ASSERT_OK(running_device(f));
    ASSERT_OK(vhost_device_stop(&f->device[0]));
    ASSERT_OK(vhost_log_start(&f->vm));
    return takes_just(f, 0, 0);
}

TEST bits_outlive_the_device_that_set_them(fixture *f)
{
    for (unsigned how = 0; how < 4; how++) {
        ranges taken;
        CHECK_CALL(fixture_renew(f));
        ASSERT_OK(logging_device(f));
        mock_dirty(&f->mock[0], NEAR + PAGE);
        if (how == 0) {
            ASSERT_OK(vhost_device_stop(&f->device[0]));
        } else if (how == 1) {
            fixture_break(f, 0);
        } else if (how == 2) {
            vhost_device_cleanup(&f->device[0]);
        } else {
            ASSERT_OK(fixture_map(f, NULL, 0)); /* breaks it, and puts an empty map in force */
            ASSERT_OK(map_some(f, 2));
        }
        ASSERT_OK(take(f, 0, EVERYTHING, &taken));
        ASSERT(is_taken(&taken, NEAR + PAGE));
        for (unsigned q = 0; q < FIXTURE_QUEUES; q++) {
            ASSERT(is_taken(&taken, f->queue[0][q].used));
        }
        ASSERT_U64(4, taken.sink.pages_dirty);
    }
    PASS();
}

TEST bits_outlive_reset_and_restart(fixture *f)
{
    ranges taken;
    ASSERT_OK(logging_device(f));
    mock_dirty(&f->mock[0], NEAR);
    fixture_break(f, 0);
    mock_revive(&f->mock[0]);
    ASSERT_OK(map_some(f, 3));
    ASSERT_OK(vhost_device_reset(&f->device[0]));
    ASSERT_OK(vhost_device_ack(&f->device[0], f->accepted));
    ASSERT_OK(fixture_start(f, 0));
    mock_dirty(&f->mock[0], FAR);
    ASSERT_OK(take(f, 0, EVERYTHING, &taken));
    ASSERT(is_taken(&taken, NEAR));
    ASSERT(is_taken(&taken, FAR));
    PASS();
}

TEST used_rings_in_filtered_memory_are_logged(fixture *f)
{
    vhost_section sections[3];
    sections[0] = f->low;
    sections[1] = fixture_section(f, FAR, 64, 128);
    sections[1].flags = VHOST_SECTION_DIRTY_TRACKED;
    sections[2] = fixture_section(f, FAR + 64 * PAGE, 64, 192);
    all_can_log(f);
    ASSERT_OK(fixture_map(f, sections, 3));
    ASSERT_OK(fixture_attach(f, 0));
    fixture_fill(f, 0);
    f->queue[0][1].used = FAR + 63 * PAGE;
    ASSERT_OK(vhost_device_start(&f->device[0]));
    ASSERT_OK(vhost_log_start(&f->vm));
    mock_advance(&f->mock[0], 1, 1);
    CHECK_CALL(takes_just(f, FAR + 63 * PAGE, PAGE));
    ASSERT_OK(vhost_queue_stop(&f->device[0], 1));
    return takes_just(f, FAR + 63 * PAGE, PAGE);
}

/* ---- what a sync takes (Y1 to Y5, D4, D10, D17) ---- */

TEST sync_takes_and_clears(fixture *f)
{
    ASSERT_OK(logging_device(f));
    mock_dirty(&f->mock[0], NEAR + 5 * PAGE + 17);
    CHECK_CALL(takes_just(f, NEAR + 5 * PAGE, PAGE));
    CHECK_CALL(takes_just(f, 0, 0));
    mock_dirty(&f->mock[0], NEAR + 5 * PAGE);
    return takes_just(f, NEAR + 5 * PAGE, PAGE);
}

TEST a_page_dirtied_by_many_is_handed_over_once(fixture *f)
{
    ASSERT_OK(running_devices(f));
    vhost_device_cleanup(&f->device[1]);
    can_log(f, 1, VHOST_DIRTY_SHARED);
    ASSERT_OK(attach_and_start(f, 1));
    ASSERT_OK(vhost_log_start(&f->vm));
    for (unsigned d = 0; d < FIXTURE_DEVICES; d++) {
        mock_dirty(&f->mock[d], NEAR + 7 * PAGE);
        mock_dirty(&f->mock[d], NEAR + (8 + d) * PAGE);
    }
    CHECK_CALL(takes_just(f, NEAR + 7 * PAGE, 4 * PAGE));
    return takes_just(f, 0, 0);
}

TEST ranges_are_coalesced_and_ascend(fixture *f)
{
    static const uint64_t pages[] = {0, 1, 3, 62, 63, 64, 65, 127};
    ranges taken;
    ASSERT_OK(logging_device(f));
    for (size_t i = 0; i < sizeof pages / sizeof *pages; i++) {
        mock_dirty(&f->mock[0], pages[i] * PAGE);
    }
    ASSERT_OK(take(f, 0, EVERYTHING, &taken));
    static const uint64_t expected[][2] = {{0, 2}, {3, 1}, {62, 4}, {127, 1}};
    ASSERT_UINT(4, taken.count);
    ASSERT(taken.in_order);
    for (unsigned i = 0; i < 4; i++) {
        ASSERT_U64(expected[i][0] * PAGE, taken.at[i].gpa);
        ASSERT_U64(expected[i][1] * PAGE, taken.at[i].size);
    }
    ASSERT_U64(8, taken.sink.pages_dirty);
    PASS();
}

/* Two sections of different memory, next to each other, in the middle of a word. */
TEST ranges_go_on_over_section_borders(fixture *f)
{
    vhost_section sections[3];
    sections[0] = f->low;
    sections[1] = fixture_section(f, NEAR, 10, 200);
    sections[2] = fixture_section(f, NEAR + 10 * PAGE, 200 - 128, 128);
    all_can_log(f);
    ASSERT_OK(fixture_map(f, sections, 3));
    ASSERT_OK(attach_and_start(f, 0));
    ASSERT_OK(vhost_log_start(&f->vm));
    for (uint64_t page = 0; page < 82; page++) {
        mock_dirty(&f->mock[0], NEAR + page * PAGE);
    }
    return takes_just(f, NEAR, 82 * PAGE);
}

TEST a_sync_takes_its_own_pages_only(fixture *f)
{
    ranges taken;
    ASSERT_OK(logging_device(f));
    for (uint64_t page = 0; page < 128; page++) {
        mock_dirty(&f->mock[0], page * PAGE);
    }
    ASSERT_OK(take(f, 20 * PAGE, PAGE, &taken));
    ASSERT_U64(1, taken.sink.pages_dirty);
    ASSERT_OK(take(f, 60 * PAGE, 8 * PAGE, &taken));
    ASSERT_UINT(1, taken.count);
    ASSERT_U64(60 * PAGE, taken.at[0].gpa);
    ASSERT_U64(8 * PAGE, taken.at[0].size);
    ASSERT_OK(take(f, 0, EVERYTHING, &taken));
    ASSERT_UINT(3, taken.count);
    ASSERT_U64(128 - 9, taken.sink.pages_dirty);
    ASSERT_FALSE(is_taken(&taken, 20 * PAGE));
    ASSERT_U64(68 * PAGE, taken.at[2].gpa);
    PASS();
}

TEST what_lies_beyond_the_last_section_is_clean(fixture *f)
{
    ranges taken;
    ASSERT_OK(logging_device(f));
    ASSERT_OK(take(f, FAR, 64 * PAGE, &taken));
    ASSERT_OK(take(f, UINT64_MAX - (PAGE - 1), PAGE, &taken));
    ASSERT_UINT(0, taken.count);
    PASS();
}

TEST pages_outside_of_every_section_are_dropped_and_counted(fixture *f)
{
    ranges taken;
    ASSERT_OK(logging_device(f));
    mock_dirty(&f->mock[0], 127 * PAGE);
    mock_dirty(&f->mock[0], 128 * PAGE);
    mock_dirty(&f->mock[0], NEAR - PAGE);
    mock_dirty(&f->mock[0], NEAR);
    ASSERT_OK(take(f, 0, EVERYTHING, &taken));
    ASSERT_UINT(2, taken.count);
    ASSERT_U64(2, taken.sink.pages_dirty);
    ASSERT_U64(2, taken.sink.pages_dropped);
    ASSERT_OK(take(f, 0, EVERYTHING, &taken)); /* dropped for good */
    ASSERT_U64(0, taken.sink.pages_dropped);
    PASS();
}

TEST rom_and_tracked_memory_are_inside(fixture *f)
{
    vhost_section sections[4];
    sections[0] = f->low;
    sections[1] = fixture_section(f, NEAR, 2, 128);
    sections[1].flags = VHOST_SECTION_ROM;
    sections[2] = fixture_section(f, NEAR + 2 * PAGE, 2, 140);
    sections[2].flags = VHOST_SECTION_DIRTY_TRACKED;
    sections[3] = f->high;
    all_can_log(f);
    ASSERT_OK(fixture_map(f, sections, 4));
    ASSERT_OK(attach_and_start(f, 0));
    ASSERT_OK(vhost_log_start(&f->vm));
    mock_dirty(&f->mock[0], NEAR + PAGE);
    mock_dirty(&f->mock[0], NEAR + 2 * PAGE);
    return takes_just(f, NEAR + PAGE, 2 * PAGE);
}

TEST counts_of_a_sink_add_up(fixture *f)
{
    ranges taken;
    ASSERT_OK(logging_device(f));
    ASSERT_OK(take(f, 0, EVERYTHING, &taken));
    for (unsigned i = 1; i <= 3; i++) {
        mock_dirty(&f->mock[0], NEAR);
        mock_dirty(&f->mock[0], NEAR - PAGE);
        ASSERT_OK(vhost_log_sync(&f->vm, 0, EVERYTHING, &taken.sink));
        ASSERT_U64(i, taken.sink.pages_dirty);
        ASSERT_U64(i, taken.sink.pages_dropped);
    }
    PASS();
}

/* Bytes are bytes, whatever the host: page n is bit n % 8 of byte n / 8. */
TEST a_shared_log_is_a_map_of_bytes(fixture *f)
{
    ASSERT_OK(running_device(f));
    vhost_device_cleanup(&f->device[0]);
    can_log(f, 0, VHOST_DIRTY_SHARED);
    ASSERT_OK(attach_and_start(f, 0));
    ASSERT_OK(vhost_log_start(&f->vm));
    unsigned char *bytes = (unsigned char *)f->mock[0].log.base;
    for (uint64_t page = 0; page < 128; page++) {
        bytes[page / 8] = (unsigned char)(1u << page % 8);
        CHECK_CALL(takes_just(f, page * PAGE, PAGE));
        ASSERT_INT(0, bytes[page / 8]);
    }
    ASSERT_OK(vhost_device_stop(&f->device[0]));
    for (unsigned q = 0; q < FIXTURE_QUEUES; q++) {
        uint64_t page = f->queue[0][q].used / PAGE;
        ASSERT(bytes[page / 8] & 1u << page % 8);
    }
    PASS();
}

TEST a_private_log_is_native_words(fixture *f)
{
    const unsigned bits = 8 * sizeof(long);
    ASSERT_OK(logging_device(f));
    unsigned long *words = (unsigned long *)f->mock[0].log.base;
    for (unsigned page = 0; page < 128; page++) {
        words[page / bits] = 1ul << page % bits;
        CHECK_CALL(takes_just(f, page * PAGE, PAGE));
        ASSERT_U64(0, words[page / bits]);
    }
    PASS();
}

/* ---- the bitmap sink ---- */

static uint64_t dice(uint64_t *random, uint64_t sides)
{
    *random ^= *random << 13;
    *random ^= *random >> 7;
    *random ^= *random << 17;
    return (*random >> 11) % sides;
}

static bool has_bit(const uint64_t *bits, uint64_t bit)
{
    return bits[bit / 64] >> bit % 64 & 1;
}

enum {
    WINDOW_WORDS = 6,
    WINDOW_PAGES = 64 * WINDOW_WORDS
};

/* One random window over [0, 128), one random range in it; half of the pages are dirty. */
static enum greatest_test_res random_window(fixture *f, uint64_t *random)
{
    bool dirty[128];
    uint64_t bits[WINDOW_WORDS + 1] = {0};
    uint64_t begin = dice(random, 128), from = begin + dice(random, 128 - begin);
    uint64_t count = 1 + dice(random, 128 - from), old = dice(random, WINDOW_PAGES);
    vhost_log_sink sink;
    memset(&sink, 0, sizeof sink);
    sink.bits = bits;
    sink.bits_gpa = begin * PAGE;
    sink.bits_count = from - begin + count + dice(random, 2) * 64;
    bits[old / 64] |= UINT64_C(1) << old % 64; /* somebody else's */
    for (uint64_t page = 0; page < 128; page++) {
        dirty[page] = dice(random, 2);
        if (dirty[page]) {
            mock_dirty(&f->mock[0], page * PAGE);
        }
    }
    ASSERT_OK(vhost_log_sync(&f->vm, from * PAGE, count * PAGE, &sink));
    for (uint64_t bit = 0; bit < WINDOW_PAGES + 64; bit++) {
        uint64_t page = begin + bit;
        bool expected = bit == old || (page >= from && page < from + count && dirty[page]);
        ASSERT_INT(expected, has_bit(bits, bit));
    }
    ranges rest;
    ASSERT_OK(take(f, 0, EVERYTHING, &rest));
    for (uint64_t page = 0; page < 128; page++) {
        bool expected = dirty[page] && (page < from || page >= from + count);
        ASSERT_INT(expected, is_taken(&rest, page * PAGE));
    }
    PASS();
}

TEST a_bitmap_may_begin_at_any_page(fixture *f)
{
    ASSERT_OK(logging_device(f));
    for (uint64_t seed = 1; seed <= 3000; seed++) {
        uint64_t random = seed * UINT64_C(0x9e3779b97f4a7c15);
        if (random_window(f, &random) != GREATEST_TEST_RES_PASS) {
            fprintf(stderr, "seed %llu\n", (unsigned long long)seed);
            return GREATEST_TEST_RES_FAIL;
        }
    }
    PASS();
}

/* Just the words that are needed: beyond them the sanitizers watch. */
TEST nothing_is_written_beyond_a_bitmap(fixture *f)
{
    ASSERT_OK(logging_device(f));
    for (uint64_t begin = 0; begin < 64; begin++) {
        for (uint64_t count = 1; count <= 128 - begin; count += 21) {
            size_t words = (size_t)(count + 63) / 64;
            uint64_t *bits = (uint64_t *)calloc(words, sizeof *bits);
            vhost_log_sink sink;
            ASSERT(bits);
            memset(&sink, 0, sizeof sink);
            sink.bits = bits;
            sink.bits_gpa = begin * PAGE;
            sink.bits_count = count;
            for (uint64_t page = 0; page < 128; page++) {
                mock_dirty(&f->mock[0], page * PAGE);
            }
            int result = vhost_log_sync(&f->vm, begin * PAGE, count * PAGE, &sink);
            bool last = has_bit(bits, count - 1);
            free(bits);
            ASSERT_OK(result);
            ASSERT(last);
            ASSERT_U64(count, sink.pages_dirty);
        }
    }
    PASS();
}

/* All pages are dirty, so that every bit of every word has to come over, however it is shifted. */
TEST whole_words_arrive_with_any_shift(fixture *f)
{
    ASSERT_OK(logging_device(f));
    for (uint64_t begin = 0; begin < 128; begin++) {
        uint64_t bits[2] = {0};
        vhost_log_sink sink;
        memset(&sink, 0, sizeof sink);
        sink.bits = bits;
        sink.bits_gpa = begin * PAGE;
        sink.bits_count = 128 - begin;
        for (uint64_t page = 0; page < 128; page++) {
            mock_dirty(&f->mock[0], page * PAGE);
        }
        ASSERT_OK(vhost_log_sync(&f->vm, begin * PAGE, (128 - begin) * PAGE, &sink));
        for (uint64_t bit = 0; bit < 128; bit++) {
            ASSERT_INT(bit < 128 - begin, has_bit(bits, bit));
        }
    }
    PASS();
}

/* ---- mistakes ---- */

static enum greatest_test_res sync_refused(fixture *f, uint64_t gpa, uint64_t size,
                                           vhost_log_sink *sink)
{
    ASSERT_FAILS(f, vhost_log_sync(&f->vm, gpa, size, sink), &f->vm.last_error, -EINVAL,
                 VHOST_WHY_ARGUMENT);
    ASSERT_U64(0, sink->pages_dirty + sink->pages_dropped);
    PASS();
}

TEST a_sync_of_an_impossible_range_is_refused(fixture *f)
{
    ranges taken;
    ASSERT_OK(logging_device(f));
    ASSERT_OK(take(f, 0, EVERYTHING, &taken));
    mock_dirty(&f->mock[0], NEAR);
    CHECK_CALL(sync_refused(f, NEAR, 0, &taken.sink));
    CHECK_CALL(sync_refused(f, NEAR + 512, PAGE, &taken.sink));
    CHECK_CALL(sync_refused(f, NEAR, PAGE + 1, &taken.sink));
    CHECK_CALL(sync_refused(f, NEAR, EVERYTHING, &taken.sink));
    CHECK_CALL(sync_refused(f, UINT64_MAX - (PAGE - 1), 2 * PAGE, &taken.sink));
    return takes_just(f, NEAR, PAGE);
}

TEST a_sink_is_either_ranges_or_bits(fixture *f)
{
    uint64_t bits = 0;
    ranges taken;
    ASSERT_OK(logging_device(f));
    ASSERT_OK(take(f, 0, EVERYTHING, &taken));
    mock_dirty(&f->mock[0], NEAR);
    taken.sink.bits = &bits;
    taken.sink.bits_count = 64;
    taken.sink.bits_gpa = NEAR;
    CHECK_CALL(sync_refused(f, NEAR, PAGE, &taken.sink));
    taken.sink.range = NULL;
    taken.sink.bits = NULL;
    CHECK_CALL(sync_refused(f, NEAR, PAGE, &taken.sink));
    return takes_just(f, NEAR, PAGE);
}

TEST a_window_without_room_is_refused(fixture *f)
{
    uint64_t bits = 0;
    vhost_log_sink sink;
    ASSERT_OK(logging_device(f));
    mock_dirty(&f->mock[0], NEAR);
    memset(&sink, 0, sizeof sink);
    sink.bits = &bits;
    sink.bits_gpa = NEAR;
    sink.bits_count = 10;
    CHECK_CALL(sync_refused(f, NEAR - PAGE, PAGE, &sink));
    CHECK_CALL(sync_refused(f, NEAR, 11 * PAGE, &sink));
    CHECK_CALL(sync_refused(f, NEAR + 10 * PAGE, PAGE, &sink));
    CHECK_CALL(sync_refused(f, NEAR + 11 * PAGE, PAGE, &sink));
    CHECK_CALL(sync_refused(f, NEAR + 9 * PAGE, 2 * PAGE, &sink));
    sink.bits_gpa = NEAR - 512;
    CHECK_CALL(sync_refused(f, NEAR, PAGE, &sink));
    sink.bits_gpa = NEAR;
    ASSERT_OK(vhost_log_sync(&f->vm, NEAR, 10 * PAGE, &sink));
    ASSERT_U64(1, bits);
    sink.bits_count = 0;
    ASSERT_INT(-EINVAL, vhost_log_sync(&f->vm, NEAR, PAGE, &sink));
    PASS();
}

TEST without_log_start_there_is_nothing_to_sync(fixture *f)
{
    ranges taken;
    ASSERT_OK(running_device(f));
    ASSERT_FAILS(f, take(f, 0, EVERYTHING, &taken), &f->vm.last_error, -EBUSY, VHOST_WHY_STATE);
    ASSERT_OK(vhost_log_start(&f->vm));
    ASSERT_OK(take(f, 0, EVERYTHING, &taken));
    ASSERT_OK(vhost_log_stop(&f->vm));
    ASSERT_FAILS(f, take(f, 0, EVERYTHING, &taken), &f->vm.last_error, -EBUSY, VHOST_WHY_STATE);
    PASS();
}

TEST syncs_stops_and_starts_allocate_nothing(fixture *f)
{
    ranges taken;
    size_t allocations = 0;
    ASSERT_OK(logging_devices(f));
    for (unsigned i = 0; i < 5; i++) {
        allocations = i == 1 ? f->allocation_calls : allocations; /* the first time is warm-up */
        mock_dirty(&f->mock[0], NEAR);
        ASSERT_OK(take(f, 0, EVERYTHING, &taken));
        ASSERT_OK(vhost_device_stop(&f->device[0]));
        ASSERT_OK(fixture_start(f, 0));
        ASSERT_OK(map_some(f, 2));
    }
    ASSERT_UINT(allocations, f->allocation_calls);
    ASSERT_UINT(1, f->log_maps);
    PASS();
}

/* ---- the suite ---- */

static void run_memory(void)
{
    RUN_PLAIN(the_log_has_a_bit_for_every_page_up_to_the_last);
    RUN_PLAIN(sections_above_all_that_back_ends_get_do_not_count);
    RUN_PLAIN(the_log_reaches_to_the_end_of_a_rounded_region);
    RUN_PLAIN(a_ring_ends_where_a_log_would_end);
    RUN_BOTH(without_memory_the_log_is_one_word);
    RUN_PLAIN(a_log_larger_than_memory_is_refused);
    RUN_BOTH(devices_of_one_kind_share_one_log);
    RUN_BOTH(each_kind_has_a_log_of_its_own);
    RUN_PLAIN(kinds_that_no_device_has_get_no_log);
    RUN_BOTH(default_logs_are_made_and_replaced);
    RUN_BOTH(a_log_stays_until_the_fence);
    RUN_BOTH(a_back_end_that_says_nothing_or_nonsense_is_lost);
    RUN_BOTH(no_two_logs_have_the_same_id);
    RUN_BOTH(without_memory_for_a_log_nobody_is_told);
    RUN_PLAIN(a_vm_may_be_cleaned_up_while_it_logs);
    RUN_PLAIN(a_device_that_cannot_log_stands_in_the_way);
    RUN_PLAIN(every_blocker_is_found_with_its_reason);
    RUN_BOTH(while_the_vm_logs_who_cannot_is_refused);
    RUN_PLAIN(a_broken_device_that_cannot_log_any_more_stays_broken);
}

static void run_on_and_off(void)
{
    RUN_BOTH(log_start_sends_base_features_and_addresses);
    RUN_BOTH(log_stop_sends_addresses_and_features);
    RUN_BOTH(only_rings_that_run_are_told_to_log);
    RUN_BOTH(stopped_and_broken_devices_are_not_told);
    RUN_BOTH(a_device_that_starts_while_the_vm_logs_logs);
    RUN_BOTH(at_start_the_log_comes_right_after_the_table);
    RUN_BOTH(without_a_log_no_back_end_hears_of_one);
    RUN_BOTH(log_start_and_log_stop_may_be_repeated);
    RUN_BOTH(each_logging_begins_clean);
    RUN_BOTH(not_in_a_transaction);
    RUN_PLAIN(making_and_replacing_a_log_is_traced);
    RUN_ALL(if_one_refuses_to_log_none_logs);
    RUN_ALL(who_will_not_be_rolled_back_is_broken);
    RUN_ALL(a_device_found_dead_is_no_obstacle_to_log_start);
    RUN_ALL(a_device_found_dead_at_log_stop_is_broken_and_told);
    RUN_ALL(who_does_not_stop_logging_is_cut_off);
}

static void run_commits(void)
{
    RUN_BOTH(the_log_grows_before_the_table);
    RUN_BOTH(the_log_shrinks_after_the_table);
    RUN_BOTH(the_slack_is_four_kilobytes_of_log);
    RUN_BOTH(a_log_that_fits_is_kept);
    RUN_BOTH(replaced_logs_are_given_back);
    RUN_BOTH(no_bit_is_lost_when_the_log_is_replaced);
    RUN_BOTH(no_bit_is_lost_at_log_start);
    RUN_BOTH(after_a_switch_the_new_log_is_synced);
    RUN_BOTH(bits_of_memory_that_goes_and_comes_back_stay);
    RUN_BOTH(bits_of_memory_that_is_away_are_dropped_and_counted);
    RUN_BOTH(a_log_shrinks_only_where_it_is_clean);
    RUN_BOTH(devices_of_different_ages_have_one_log);
    RUN_BOTH(a_stopped_device_gets_the_new_log_when_it_starts);
    RUN_ALL(who_refuses_the_new_log_breaks_and_its_bits_stay);
    RUN_ALL(a_straggler_writes_to_a_replaced_log_and_is_heard);
    RUN_BOTH(without_memory_for_the_new_log_the_old_map_stays);
}

static void run_devices(void)
{
    RUN_BOTH(stop_leaves_used_rings_dirty);
    RUN_BOTH(stop_leaves_packed_rings_dirty);
    RUN_BOTH(a_queue_that_stops_leaves_its_used_ring_dirty);
    RUN_BOTH(without_a_log_stop_marks_nothing);
    RUN_ALL(bits_outlive_the_device_that_set_them);
    RUN_BOTH(bits_outlive_reset_and_restart);
    RUN_BOTH(used_rings_in_filtered_memory_are_logged);
}

static void run_sync(void)
{
    RUN_PLAIN(sync_takes_and_clears);
    RUN_BOTH(a_page_dirtied_by_many_is_handed_over_once);
    RUN_PLAIN(ranges_are_coalesced_and_ascend);
    RUN_PLAIN(ranges_go_on_over_section_borders);
    RUN_PLAIN(a_sync_takes_its_own_pages_only);
    RUN_PLAIN(what_lies_beyond_the_last_section_is_clean);
    RUN_PLAIN(pages_outside_of_every_section_are_dropped_and_counted);
    RUN_PLAIN(rom_and_tracked_memory_are_inside);
    RUN_PLAIN(counts_of_a_sink_add_up);
    RUN_PLAIN(a_shared_log_is_a_map_of_bytes);
    RUN_PLAIN(a_private_log_is_native_words);
    RUN_PLAIN(a_bitmap_may_begin_at_any_page);
    RUN_PLAIN(nothing_is_written_beyond_a_bitmap);
    RUN_PLAIN(whole_words_arrive_with_any_shift);
    RUN_PLAIN(a_sync_of_an_impossible_range_is_refused);
    RUN_PLAIN(a_sink_is_either_ranges_or_bits);
    RUN_PLAIN(a_window_without_room_is_refused);
    RUN_PLAIN(without_log_start_there_is_nothing_to_sync);
    RUN_BOTH(syncs_stops_and_starts_allocate_nothing);
}

SUITE(log_suite)
{
    run_memory();
    run_on_and_off();
    run_commits();
    run_devices();
    run_sync();
}
