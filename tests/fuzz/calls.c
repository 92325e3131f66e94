/* Any calls of vhost.h in any order, on three devices of any kinds, while anything may fail:
   memory, notifiers, mappings, translations, operations of back-ends, back-ends altogether.

   After each call every object is in the state that it claims, and what failed says why; no page
   that was dirtied while the VM logs is lost; and in the end nothing is left over. */
#include "fixture.h"
#include "fuzz.h"

#include <string.h>

enum {
    STEPS = 60,
    HALF = FIXTURE_PAGES / 2, /* pages: low memory, and high */
    WORDS = HALF / 64
};

#define IOVA UINT64_C(0x7f0000000000) /* behind the vIOMMU, the guest's memory is here as well */

static dice *the_chance;
static bool viommu;               /* this guest has one */
static bool dirty[FIXTURE_PAGES]; /* not synced yet; low memory, then high */

static uint64_t roll(uint64_t sides)
{
    return dice_roll(the_chance, sides);
}

static bool now_and_then(void)
{
    return roll(8) == 7;
}

static uint64_t gpa_of(uint64_t page)
{
    return page < HALF ? page * VHOST_PAGE : FIXTURE_HIGH + (page - HALF) * VHOST_PAGE;
}

/* ---- the vIOMMU ---- */

static int translate(vhost_device *device, uint64_t iova, bool write, vhost_translation *entry,
                     void *user)
{
    uint64_t page = iova & ~(uint64_t)(VHOST_PAGE - 1);
    fixture *f = (fixture *)user;
    (void)device;
    if (now_and_then() || fault_strikes(&f->fault, FAULT_MAPPING, VHOST_OP_NONE, -1)) {
        return -14;
    }
    entry->iova = now_and_then() ? fuzz_number(the_chance) : page;
    entry->gpa = entry->iova - IOVA; /* it never contradicts itself */
    entry->size = now_and_then() ? fuzz_number(the_chance) : VHOST_PAGE << roll(6);
    entry->permit = now_and_then() ? (uint8_t)roll(4) : write ? 3 : 1;
    return 0;
}

static int watch(vhost_device *device, bool on, void *user)
{
    (void)device, (void)user;
    return on && now_and_then() ? -16 : 0;
}

static const vhost_memory_ops viommu_ops = {NULL, NULL, translate, watch};

/* ---- memory ---- */

static void forget_pages(fixture *f, bool all)
{
    for (uint64_t page = 0; page < FIXTURE_PAGES; page++) {
        vhost_extent extent;
        if (all || vhost_memory_find(&f->vm, gpa_of(page), &extent) < 0) {
            dirty[page] = false;
        }
    }
}

static int change_map(fixture *f, unsigned d)
{
    vhost_section sections[4];
    unsigned count = 0;
    (void)d;
    if (!now_and_then()) {
        sections[count++] = f->low;
    }
    if (roll(2)) {
        sections[count++] = f->high;
    }
    if (roll(2)) {
        sections[count++] = fixture_section(f, FIXTURE_REMOTE << roll(4), 1 + roll(4), 60);
    }
    if (now_and_then()) {
        sections[count++] = fixture_section(f, roll(4) * VHOST_PAGE, roll(4), 0);
    }
    int result = fixture_map(f, sections, count);
    if (result < 0) {
        vhost_memory_abort(&f->vm);
    }
    forget_pages(f, false);
    return result;
}

/* ---- the log ---- */

static bool is_in_table(const mock_backend *mock, uint64_t gpa)
{
    for (uint32_t i = 0; i < mock->table_count; i++) {
        if (gpa - mock->table[i].gpa < mock->table[i].size) {
            return true;
        }
    }
    return false;
}

static int write_pages(fixture *f, unsigned d)
{
    mock_backend *mock = &f->mock[d];
    for (uint64_t count = roll(8); count > 0; count--) {
        uint64_t page = roll(FIXTURE_PAGES), gpa = gpa_of(page);
        if (mock_runs(mock) && mock_logs(mock) && is_in_table(mock, gpa)) {
            dirty[page] = true;
            mock_dirty(mock, gpa);
        }
    }
    return 0;
}

static bool lost_a_page; /* in sync_log: told to step */

static int sync_half(fixture *f, uint64_t first)
{
    uint64_t bits[WORDS];
    vhost_log_sink sink;
    memset(bits, 0, sizeof bits);
    memset(&sink, 0, sizeof sink);
    sink.bits = bits;
    sink.bits_gpa = gpa_of(first);
    sink.bits_count = HALF;
    int result = vhost_log_sync(&f->vm, sink.bits_gpa, HALF * VHOST_PAGE, &sink);
    for (uint64_t i = 0; i < HALF; i++) {
        bool seen = bits[i / 64] >> i % 64 & 1;
        lost_a_page = lost_a_page || (result == 0 && dirty[first + i] && !seen);
        dirty[first + i] = dirty[first + i] && !seen;
    }
    return result;
}

static int sync_log(fixture *f, unsigned d)
{
    (void)d;
    return sync_half(f, roll(2) * HALF);
}

static int start_log(fixture *f, unsigned d)
{
    (void)d;
    int result = vhost_log_start(&f->vm);
    if (!f->vm.logging) {
        forget_pages(f, true);
    }
    return result;
}

static int stop_log(fixture *f, unsigned d)
{
    (void)d;
    int result = vhost_log_stop(&f->vm);
    forget_pages(f, true);
    return result;
}

/* ---- devices ---- */

static void shape_device(fixture *f, unsigned d)
{
    static const unsigned bits[] = {VHOST_FEATURE_LOG_ALL, VHOST_FEATURE_ACCESS_PLATFORM,
                                    VHOST_FEATURE_EVENT_IDX, VHOST_FEATURE_RING_RESET};
    mock_backend *mock = &f->mock[d];
    mock->facts.log_kind = (vhost_log_kind)roll(3);
    mock->facts.profile = (vhost_profile)roll(VHOST_PROFILE_COUNT);
    mock->facts.max_regions = now_and_then() ? 1 + (uint32_t)roll(3) : 0;
    mock->facts.queues_together = now_and_then();
    for (unsigned i = 0; i < sizeof bits / sizeof *bits; i++) {
        if (!now_and_then()) {
            vhost_features_set(&mock->facts.offered, bits[i]);
        }
    }
    f->device_options.own_log = roll(2);
    f->device_options.memory = viommu ? &viommu_ops : roll(2) ? &fixture_memory_ops : NULL;
}

static int attach(fixture *f, unsigned d)
{
    if (f->device[d].state != VHOST_STATE_CLOSED) {
        return 0;
    }
    shape_device(f, d);
    return fixture_attach(f, d);
}

static int fill(fixture *f, unsigned d)
{
    if (f->device[d].state == VHOST_STATE_RUNNING) {
        return 0;
    }
    fixture_fill(f, d);
    for (unsigned q = 0; q < FIXTURE_QUEUES; q++) {
        vhost_queue *queue = &f->queue[d][q];
        queue->desc += viommu ? IOVA : 0;
        queue->avail += viommu ? IOVA : 0;
        queue->used += viommu ? IOVA : 0;
        queue->ready = !now_and_then();
        queue->busy_loop_us = now_and_then() ? 50 : 0;
        queue->position.state = (vhost_position_state)roll(3);
        queue->position.avail = (uint16_t)roll(65536);
    }
    return 0;
}

static int start(fixture *f, unsigned d)
{
    return vhost_device_start(&f->device[d]);
}

static int stop(fixture *f, unsigned d)
{
    return vhost_device_stop(&f->device[d]);
}

static int reset(fixture *f, unsigned d)
{
    return vhost_device_reset(&f->device[d]);
}

static int recover(fixture *f, unsigned d)
{
    return vhost_device_recover(&f->device[d]);
}

static int cleanup(fixture *f, unsigned d)
{
    vhost_device_cleanup(&f->device[d]);
    return 0;
}

static int ack(fixture *f, unsigned d)
{
    uint64_t version = UINT64_C(1) << VHOST_FEATURE_VERSION_1;
    return vhost_device_ack(&f->device[d],
                            fixture_features(roll(2) ? version : fuzz_number(the_chance), 0));
}

static int start_queue(fixture *f, unsigned d)
{
    return vhost_queue_start(&f->device[d], (uint32_t)roll(4));
}

static int stop_queue(fixture *f, unsigned d)
{
    return vhost_queue_stop(&f->device[d], (uint32_t)roll(4));
}

static int mask(fixture *f, unsigned d)
{
    return vhost_queue_mask(&f->device[d], (uint32_t)roll(4));
}

static int unmask(fixture *f, unsigned d)
{
    return vhost_queue_unmask(&f->device[d], (uint32_t)roll(4));
}

static int pending(fixture *f, unsigned d)
{
    return vhost_queue_pending(&f->device[d], (uint32_t)roll(4));
}

static int process(fixture *f, unsigned d)
{
    return vhost_device_process(&f->device[d]);
}

static int settled(fixture *f, unsigned d)
{
    return vhost_device_settled(&f->device[d]);
}

static int get_config(fixture *f, unsigned d)
{
    uint8_t bytes[MOCK_CONFIG_SIZE];
    return vhost_device_get_config(&f->device[d], 0, bytes, (uint32_t)roll(sizeof bytes));
}

static int set_config(fixture *f, unsigned d)
{
    uint8_t bytes[MOCK_CONFIG_SIZE] = {0};
    return vhost_device_set_config(&f->device[d], 0, bytes, (uint32_t)roll(sizeof bytes));
}

static int unmapped(fixture *f, unsigned d)
{
    return vhost_device_unmapped(&f->device[d], IOVA + gpa_of(roll(FIXTURE_PAGES)),
                                 now_and_then() ? fuzz_number(the_chance) : VHOST_PAGE);
}

static int miss(fixture *f, unsigned d)
{
    vhost_iotlb message;
    memset(&message, 0, sizeof message);
    message.type = now_and_then() ? (vhost_iotlb_type)roll(8) : VHOST_TLB_MISS;
    message.iova = now_and_then() ? fuzz_number(the_chance) : IOVA + gpa_of(roll(FIXTURE_PAGES));
    message.permit = (uint8_t)roll(4);
    return vhost_iotlb_message(&f->device[d], &message);
}

/* ---- what befalls a back-end ---- */

static int refuse(fixture *f, unsigned d)
{
    mock_refuse(&f->mock[d], (vhost_op)roll(VHOST_OP_COUNT), (int)roll(4) - 1, -22);
    return 0;
}

static int die(fixture *f, unsigned d)
{
    mock_die(&f->mock[d]);
    return 0;
}

static int revive(fixture *f, unsigned d)
{
    mock_revive(&f->mock[d]);
    return 0;
}

static int work(fixture *f, unsigned d)
{
    uint32_t queue = (uint32_t)roll(FIXTURE_QUEUES);
    if (mock_ring_runs(&f->mock[d], queue)) {
        mock_interrupt(&f->mock[d], queue);
        mock_ring_error(&f->mock[d], queue);
    }
    return 0;
}

static const struct {
    const char *name;
    int (*act)(fixture *f, unsigned d);
} actions[] = {
    {"attach", attach},
    {"fill", fill},
    {"start", start},
    {"write pages", write_pages},
    {"log start", start_log},
    {"sync", sync_log},
    {"stop", stop},
    {"commit", change_map},
    {"cleanup", cleanup},
    {"reset", reset},
    {"recover", recover},
    {"log stop", stop_log},
    {"ack", ack},
    {"queue start", start_queue},
    {"queue stop", stop_queue},
    {"mask", mask},
    {"unmask", unmask},
    {"pending", pending},
    {"process", process},
    {"settled", settled},
    {"get config", get_config},
    {"set config", set_config},
    {"unmapped", unmapped},
    {"miss", miss},
    {"refuse", refuse},
    {"die", die},
    {"revive", revive},
    {"work", work},
};

static void forget_errors(fixture *f)
{
    f->vm.last_error.code = 0;
    for (unsigned d = 0; d < FIXTURE_DEVICES; d++) {
        f->device[d].last_error.code = 0;
    }
}

/* A device that is BROKEN may say again what broke it. */
static bool is_told(const fixture *f, unsigned d, int code)
{
    return f->vm.last_error.code == code || f->device[d].last_error.code == code ||
           f->device[d].state == VHOST_STATE_BROKEN;
}

static enum greatest_test_res step(fixture *f)
{
    unsigned d = (unsigned)roll(FIXTURE_DEVICES);
    uint64_t what = roll(sizeof actions / sizeof actions[0]);
    if (now_and_then()) {
        fault_arm(&f->fault, (fault_plan)roll(4), 1 + (unsigned)roll(24), 1 + (unsigned)roll(4));
    }
    forget_errors(f);
    int code = actions[what].act(f, d);
    fault_disarm(&f->fault);
    fuzz_note("%s of device %u: %d; %s\n", actions[what].name, d, code, f->mock[d].complaint);
    CHECK_CALL(fixture_check(f));
    ASSERT(code >= 0 || is_told(f, d, code));
    ASSERT_FALSE(lost_a_page);
    PASS();
}

/* Nothing that happened keeps the VM from working again. */
static enum greatest_test_res works_again(fixture *f)
{
    for (unsigned d = 0; d < FIXTURE_DEVICES; d++) {
        vhost_device_cleanup(&f->device[d]);
        mock_revive(&f->mock[d]);
    }
    ASSERT(!f->vm.logging || (sync_half(f, 0) == 0 && sync_half(f, HALF) == 0));
    ASSERT_FALSE(lost_a_page);
    int code = fixture_map_default(f);
    fuzz_note("the last commit: %d; %s\n", code, f->vm.last_error.text);
    ASSERT_OK(code);
    PASS();
}

static enum greatest_test_res run(fixture *f)
{
    viommu = roll(4) == 3;
    lost_a_page = false;
    memset(dirty, 0, sizeof dirty);
    if (viommu) {
        vhost_features_set(&f->accepted, VHOST_FEATURE_ACCESS_PLATFORM);
    }
    for (unsigned d = 0; d < FIXTURE_DEVICES; d++) {
        vhost_features_set(&f->mock[d].facts.offered, VHOST_FEATURE_VERSION_1);
        if (viommu) {
            mock_add_iotlb(&f->mock[d]);
        }
    }
    ASSERT_OK(fixture_map_default(f));
    for (int i = 0; i < STEPS && !dice_ended(the_chance); i++) {
        CHECK_CALL(step(f));
    }
    return works_again(f);
}

enum greatest_test_res fuzz_once(dice *chance)
{
    the_chance = chance;
    return fixture_run(run, (mock_mode)roll(MOCK_MODE_COUNT));
}
