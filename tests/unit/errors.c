/* Codes and texts, and a provocation of every reason that the core can give: >>base. */
#include "fixture.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define PAGE VHOST_PAGE

/* ---- texts ---- */

TEST every_reason_has_a_text_of_its_own(void)
{
    for (int why = 0; why < VHOST_WHY_COUNT; why++) {
        const char *text = vhost_why_text((vhost_why)why);
        ASSERT(text && text[0] != '\0');
        for (int other = 0; other < why; other++) {
            ASSERT(strcmp(text, vhost_why_text((vhost_why)other)) != 0);
        }
    }
    PASS();
}

TEST every_operation_has_a_name_of_its_own(void)
{
    ASSERT_STR_EQ("none", vhost_op_name(VHOST_OP_NONE));
    for (int op = 0; op < VHOST_OP_COUNT; op++) {
        const char *name = vhost_op_name((vhost_op)op);
        ASSERT(name && name[0] != '\0');
        for (int other = 0; other < op; other++) {
            ASSERT(strcmp(name, vhost_op_name((vhost_op)other)) != 0);
        }
    }
    PASS();
}

TEST numbers_that_mean_nothing_have_a_text_too(void)
{
    ASSERT(vhost_why_text(VHOST_WHY_COUNT));
    ASSERT(vhost_op_name(VHOST_OP_COUNT));
    PASS();
}

/* ---- one provocation for each reason; returns where the failure is told ---- */

typedef const vhost_error *provocation(fixture *f);

static const vhost_error *add(fixture *f, vhost_section section)
{
    (void)fixture_map(f, &section, 1);
    return &f->vm.last_error;
}

static const vhost_error *add_after_low(fixture *f, vhost_section section)
{
    vhost_section sections[2];
    sections[0] = fixture_section(f, 0x40000, 4, 0);
    sections[1] = section;
    (void)fixture_map(f, sections, 2);
    return &f->vm.last_error;
}

static const vhost_error *empty(fixture *f)
{
    return add(f, fixture_section(f, 0, 0, 0));
}

static const vhost_error *unaligned(fixture *f)
{
    return add(f, fixture_section(f, 8, 1, 0));
}

static const vhost_error *wraps(fixture *f)
{
    return add(f, fixture_section(f, ~UINT64_C(0) - PAGE + 1, 2, 0));
}

static const vhost_error *outside(fixture *f)
{
    return add(f, fixture_section(f, 0, FIXTURE_PAGES + 1, 0));
}

static const vhost_error *order(fixture *f)
{
    return add_after_low(f, fixture_section(f, 0, 1, 0));
}

static const vhost_error *overlap(fixture *f)
{
    return add_after_low(f, fixture_section(f, 0x41000, 1, 7));
}

static const vhost_error *lost_section(fixture *f)
{
    vhost_section section = fixture_section(f, 0, 0, 0);
    (void)vhost_memory_begin(&f->vm);
    (void)vhost_memory_add(&f->vm, &section);
    (void)vhost_memory_commit(&f->vm);
    return &f->vm.last_error;
}

static const vhost_error *no_transaction(fixture *f)
{
    (void)vhost_memory_commit(&f->vm);
    return &f->vm.last_error;
}

static const vhost_error *no_memory(fixture *f)
{
    fault_arm(&f->fault, FAULT_ONCE, 1, 0);
    return add(f, f->low);
}

static const vhost_error *no_notifier(fixture *f)
{
    (void)fixture_running_device(f);
    fault_arm(&f->fault, FAULT_ONCE, 1, 0);
    (void)vhost_queue_pending(&f->device[0], 0);
    return &f->device[0].last_error;
}

static const vhost_error *too_many_regions(fixture *f)
{
    f->mock[0].facts.max_regions = 1;
    (void)fixture_stopped_device(f);
    return &f->device[0].last_error;
}

static const vhost_error *too_many_queues(fixture *f)
{
    f->mock[0].facts.max_queues = 1;
    (void)fixture_attach(f, 0);
    return &f->device[0].last_error;
}

static const vhost_error *incomplete(fixture *f)
{
    f->mock[0].ops.set_table = NULL;
    (void)fixture_attach(f, 0);
    return &f->device[0].last_error;
}

static const vhost_error *no_config_space(fixture *f)
{
    char byte;
    f->mock[0].ops.get_config = NULL;
    (void)fixture_stopped_device(f);
    (void)vhost_device_get_config(&f->device[0], 0, &byte, 1);
    return &f->device[0].last_error;
}

static const vhost_error *refusing(fixture *f)
{
    mock_refuse(&f->mock[0], VHOST_OP_SET_RING_BASE, 1, -EINVAL);
    (void)fixture_running_device(f);
    return &f->device[0].last_error;
}

static const vhost_error *dying(fixture *f)
{
    (void)fixture_running_device(f);
    fixture_break(f, 0);
    return &f->device[0].last_error;
}

static const vhost_error *broken(fixture *f)
{
    (void)dying(f);
    (void)vhost_device_start(&f->device[0]);
    return &f->device[0].last_error;
}

static const vhost_error *not_offered(fixture *f)
{
    f->accepted = fixture_features(1, 0);
    (void)fixture_attach(f, 0);
    return &f->device[0].last_error;
}

static const vhost_error *no_such_queue(fixture *f)
{
    (void)fixture_stopped_device(f);
    (void)vhost_queue_mask(&f->device[0], FIXTURE_QUEUES);
    return &f->device[0].last_error;
}

static const vhost_error *not_ready(fixture *f)
{
    (void)fixture_stopped_device(f);
    f->queue[0][0].ready = false;
    (void)vhost_device_start(&f->device[0]);
    (void)vhost_queue_start(&f->device[0], 0);
    return &f->device[0].last_error;
}

/* Starts with queue 0 as given. */
static const vhost_error *start_with(fixture *f, uint32_t size, uint64_t used,
                                     vhost_position_state state)
{
    (void)fixture_stopped_device(f);
    f->queue[0][0].size = size;
    f->queue[0][0].used = used;
    f->queue[0][0].position.state = state;
    (void)vhost_device_start(&f->device[0]);
    return &f->device[0].last_error;
}

static const vhost_error *ring_size(fixture *f)
{
    return start_with(f, 3, 10 * PAGE, VHOST_POSITION_INITIAL);
}

static const vhost_error *ring_unaligned(fixture *f)
{
    return start_with(f, 256, 10 * PAGE + 2, VHOST_POSITION_INITIAL);
}

static const vhost_error *ring_wraps(fixture *f)
{
    return start_with(f, 256, ~UINT64_C(0) - 255, VHOST_POSITION_INITIAL);
}

static const vhost_error *ring_unmapped(fixture *f)
{
    return start_with(f, 256, FIXTURE_REMOTE, VHOST_POSITION_INITIAL);
}

static const vhost_error *less(fixture *f)
{
    (void)fixture_stopped_device(f);
    fixture_break(f, 0);
    mock_revive(&f->mock[0]);
    f->mock[0].facts.max_regions = 3;
    (void)vhost_device_recover(&f->device[0]);
    return &f->device[0].last_error;
}

static const vhost_error *guessed(fixture *f)
{
    return start_with(f, 256, 10 * PAGE, VHOST_POSITION_GUESSED);
}

static const vhost_error *change_low(fixture *f, uint64_t first_page, uint32_t flags)
{
    vhost_section section = fixture_section(f, 0, 100, first_page);
    section.flags = flags;
    (void)fixture_running_device(f);
    (void)fixture_map(f, &section, 1);
    return &f->device[0].last_error;
}

static const vhost_error *ring_in_rom(fixture *f)
{
    return change_low(f, 0, VHOST_SECTION_ROM);
}

static const vhost_error *ring_moved(fixture *f)
{
    return change_low(f, 100, 0);
}

/* Told in a note: no call failed. */
static const vhost_error *ring_error(fixture *f)
{
    (void)fixture_running_device(f);
    mock_ring_error(&f->mock[0], 0);
    (void)vhost_device_process(&f->device[0]);
    return &f->last_note;
}

static int translate(vhost_device *device, uint64_t iova, bool write, vhost_translation *entry,
                     void *user)
{
    (void)device, (void)iova, (void)write, (void)entry, (void)user;
    return -EFAULT;
}

/* The mock has no iotlb_send. */
static const vhost_error *no_iotlb(fixture *f)
{
    static const vhost_memory_ops ops = {NULL, NULL, translate, NULL};
    f->device_options.memory = &ops;
    vhost_features_set(&f->mock[0].facts.offered, VHOST_FEATURE_ACCESS_PLATFORM);
    vhost_features_set(&f->accepted, VHOST_FEATURE_ACCESS_PLATFORM);
    (void)fixture_running_device(f);
    return &f->device[0].last_error;
}

typedef struct reason {
    vhost_why why;
    provocation *provoke;
} reason;

static const reason reasons[] = {{VHOST_WHY_ARGUMENT, no_such_queue},
                                 {VHOST_WHY_STATE, no_transaction},
                                 {VHOST_WHY_MEMORY, no_memory},
                                 {VHOST_WHY_EVENT, no_notifier},
                                 {VHOST_WHY_NOT_SUPPORTED, no_config_space},
                                 {VHOST_WHY_SECTION_EMPTY, empty},
                                 {VHOST_WHY_SECTION_UNALIGNED, unaligned},
                                 {VHOST_WHY_SECTION_WRAPS, wraps},
                                 {VHOST_WHY_SECTION_OUTSIDE, outside},
                                 {VHOST_WHY_SECTION_ORDER, order},
                                 {VHOST_WHY_SECTION_OVERLAP, overlap},
                                 {VHOST_WHY_SECTION_LOST, lost_section},
                                 {VHOST_WHY_TOO_MANY_REGIONS, too_many_regions},
                                 {VHOST_WHY_TOO_MANY_QUEUES, too_many_queues},
                                 {VHOST_WHY_BACKEND_INCOMPLETE, incomplete},
                                 {VHOST_WHY_BACKEND_REFUSED, refusing},
                                 {VHOST_WHY_BACKEND_LOST, dying},
                                 {VHOST_WHY_BACKEND_LESS, less},
                                 {VHOST_WHY_DEVICE_BROKEN, broken},
                                 {VHOST_WHY_FEATURE_NOT_OFFERED, not_offered},
                                 {VHOST_WHY_QUEUE_NOT_READY, not_ready},
                                 {VHOST_WHY_RING_SIZE, ring_size},
                                 {VHOST_WHY_RING_UNALIGNED, ring_unaligned},
                                 {VHOST_WHY_RING_WRAPS, ring_wraps},
                                 {VHOST_WHY_RING_UNMAPPED, ring_unmapped},
                                 {VHOST_WHY_RING_READ_ONLY, ring_in_rom},
                                 {VHOST_WHY_RING_MOVED, ring_moved},
                                 {VHOST_WHY_RING_ERROR, ring_error},
                                 {VHOST_WHY_POSITION_GUESSED, guessed},
                                 {VHOST_WHY_IOTLB_UNSUPPORTED, no_iotlb}};

enum {
    REASONS = sizeof reasons / sizeof *reasons
};

TEST every_reason_is_given_when_provoked(fixture *f)
{
    for (int i = 0; i < REASONS; i++) {
        CHECK_CALL(fixture_renew(f));
        const vhost_error *error = reasons[i].provoke(f);
        ASSERT_STR_EQ(vhost_why_text(reasons[i].why), vhost_why_text(error->why));
        if (reasons[i].why == VHOST_WHY_RING_ERROR) {
            ASSERT_UINT(1, f->notes);
            ASSERT_INT(0, error->code);
        } else {
            ASSERT(error->code < 0);
            ASSERT_INT(error->why, f->last_message.what.why);
        }
    }
    PASS();
}

static bool is_provoked(int why)
{
    for (int i = 0; i < REASONS; i++) {
        if ((int)reasons[i].why == why) {
            return true;
        }
    }
    return false;
}

/* Reasons of parts that have tests elsewhere, or are yet to come. */
static bool is_of_another_part(int why)
{
    static const char *const parts[] = {"log", "vIOMMU", "IOVA", "IOTLB"};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        if (strstr(vhost_why_text((vhost_why)why), parts[i])) {
            return true;
        }
    }
    return false;
}

TEST no_reason_of_the_core_is_without_a_provocation(void)
{
    for (int why = 1; why < VHOST_WHY_KERNEL_OPEN; why++) { /* then come those of the siblings */
        if (!is_provoked(why) && !is_of_another_part(why)) {
            fprintf(stderr, "not provoked: %s\n", vhost_why_text((vhost_why)why));
            FAIL();
        }
    }
    PASS();
}

/* ---- how failures are told ---- */

TEST last_error_stays_until_the_next_failure(fixture *f)
{
    ASSERT_OK(fixture_running_device(f));
    ASSERT_INT(0, f->device[0].last_error.code);
    ASSERT_INT(-EBUSY, vhost_device_start(&f->device[0]));
    ASSERT_OK(vhost_device_stop(&f->device[0]));
    ASSERT_OK(vhost_device_start(&f->device[0]));
    ASSERT_INT(-EBUSY, f->device[0].last_error.code);
    ASSERT_INT(0, f->vm.last_error.code);
    PASS();
}

TEST texts_are_terminated_however_long(fixture *f)
{
    static char name[300];
    memset(name, 'x', sizeof name - 1);
    f->mock[0].facts.name = name;
    ASSERT_OK(fixture_stopped_device(f));
    ASSERT_INT(-EINVAL, vhost_queue_mask(&f->device[0], 77));
    ASSERT(memchr(f->device[0].last_error.text, '\0', sizeof f->device[0].last_error.text));
    ASSERT_FALSE(strchr(f->device[0].last_error.text, '\n'));
    PASS();
}

TEST nobody_need_listen(fixture *f)
{
    vhost_vm vm;
    vhost_device device;
    vhost_queue queue;
    ASSERT_OK(vhost_vm_init(&vm, NULL));
    vhost_queue_init(&queue);
    ASSERT_OK(vhost_memory_begin(&vm));
    ASSERT_INT(-EBUSY, vhost_memory_begin(&vm));
    ASSERT_OK(vhost_memory_add(&vm, &f->low));
    ASSERT_OK(vhost_memory_commit(&vm));
    ASSERT_OK(vhost_device_init(&device, &vm, &f->mock[0].ops, &f->mock[0], &queue, 1, NULL));
    ASSERT_OK(vhost_device_start(&device));
    mock_die(&f->mock[0]);
    ASSERT_INT(-ECONNRESET, vhost_device_process(&device));
    ASSERT_INT(VHOST_STATE_BROKEN, device.state);
    vhost_device_cleanup(&device);
    ASSERT_OK(vhost_vm_cleanup(&vm));
    PASS();
}

SUITE(errors_suite)
{
    RUN_TEST(every_reason_has_a_text_of_its_own);
    RUN_TEST(every_operation_has_a_name_of_its_own);
    RUN_TEST(numbers_that_mean_nothing_have_a_text_too);
    RUN_BOTH(every_reason_is_given_when_provoked);
    RUN_TEST(no_reason_of_the_core_is_without_a_provocation);
    RUN_PLAIN(last_error_stays_until_the_next_failure);
    RUN_PLAIN(texts_are_terminated_however_long);
    RUN_BOTH(nobody_need_listen);
}
