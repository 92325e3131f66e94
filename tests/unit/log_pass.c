/* How often a sync looks at the log, and what comes in between. This file has an implementation of
   its own, that counts, and whose private parts can be reached. */
#include <stddef.h>

static size_t loads, takes, gives;
static void (*in_between)(void); /* between two looks at a word a back-end may write to it */

static void write_in_between(void)
{
    if (in_between != NULL) {
        in_between();
    }
}

static unsigned long counted_load(const unsigned long *word)
{
    loads++;
    unsigned long bits = __atomic_load_n(word, __ATOMIC_RELAXED);
    write_in_between();
    return bits;
}

static unsigned long counted_exchange(unsigned long *word, unsigned long bits)
{
    takes++;
    unsigned long before = __atomic_exchange_n(word, bits, __ATOMIC_ACQUIRE);
    write_in_between();
    return before;
}

static unsigned long counted_and(unsigned long *word, unsigned long bits)
{
    takes++;
    unsigned long before = __atomic_fetch_and(word, bits, __ATOMIC_ACQUIRE);
    write_in_between();
    return before;
}

#define VHOST_IMPLEMENTATION
#define VHOST_STATIC
#define VHOST_LOAD(word)            counted_load(word)
#define VHOST_EXCHANGE(word, bits)  counted_exchange(word, bits)
#define VHOST_FETCH_AND(word, bits) counted_and(word, bits)
#define VHOST_FETCH_OR(word, bits)  (gives++, __atomic_fetch_or(word, bits, __ATOMIC_RELAXED))
#include "vhost.h"

#include "greatest.h"
#include "mock_backend.h"

#include <string.h>

#define PAGE VHOST_PAGE

enum {
    DEVICES = 40,
    SECTIONS = 1000,
    WORD_PAGES = 8 * (int)sizeof(long)
};

typedef struct machine {
    vhost_vm vm;
    vhost_backing ram;
    vhost_device device[DEVICES];
    vhost_queue queue[DEVICES];
    mock_backend mock[DEVICES];
    unsigned devices;
} machine;

/* `count` sections of one page each, every other page; or one section as long as all of them. */
static int map(machine *m, uint64_t count)
{
    static unsigned char nothing[4096] __attribute__((aligned(4096)));
    vhost_backing_init(&m->ram, nothing, 2 * SECTIONS * PAGE, -1, 0);
    int result = vhost_memory_begin(&m->vm);
    for (uint64_t i = 0; i < count && result == 0; i++) {
        vhost_section section;
        uint64_t size = count == 1 ? 2 * SECTIONS - 1 : 1;
        vhost_section_init(&section, 2 * i * PAGE, size * PAGE, &m->ram, 0);
        result = vhost_memory_add(&m->vm, &section);
    }
    return result < 0 ? result : vhost_memory_commit(&m->vm);
}

static int attach(machine *m, vhost_log_kind kind)
{
    unsigned d = m->devices++;
    mock_backend *mock = &m->mock[d];
    mock_init(mock, MOCK_SYNCHRONOUS, NULL);
    mock->facts.log_kind = kind;
    mock->facts.offered.word[0] = UINT64_C(1) << VHOST_FEATURE_LOG_ALL;
    vhost_queue_init(&m->queue[d]);
    int result = vhost_device_init(&m->device[d], &m->vm, &mock->ops, mock, &m->queue[d], 1, NULL);
    return result < 0 ? result : vhost_device_start(&m->device[d]);
}

static int begin(machine *m, unsigned devices, uint64_t sections)
{
    memset(m, 0, sizeof *m);
    int result = vhost_vm_init(&m->vm, NULL);
    result = result < 0 ? result : map(m, sections);
    for (unsigned d = 0; d < devices && result == 0; d++) {
        result = attach(m, VHOST_DIRTY_PRIVATE);
    }
    return result < 0 ? result : vhost_log_start(&m->vm);
}

static void end(machine *m)
{
    for (unsigned d = 0; d < m->devices; d++) {
        vhost_device_cleanup(&m->device[d]);
        mock_free(&m->mock[d]);
    }
    (void)vhost_vm_cleanup(&m->vm);
}

static void count_range(uint64_t gpa, uint64_t size, void *user)
{
    (void)gpa;
    *(uint64_t *)user += size / PAGE;
}

/* Every device dirties every 16th page. */
static enum greatest_test_res sync_all(machine *m)
{
    const size_t words = (2 * SECTIONS - 2) / WORD_PAGES + 1;
    uint64_t pages = 0;
    vhost_log_sink sink;
    memset(&sink, 0, sizeof sink);
    sink.range = count_range;
    sink.user = &pages;
    for (unsigned d = 0; d < m->devices; d++) {
        for (uint64_t page = 0; page < 2 * SECTIONS; page += 16) {
            mock_dirty(&m->mock[d], page * PAGE);
        }
    }
    loads = takes = 0;
    ASSERT_EQ(0, vhost_log_sync(&m->vm, 0, 2 * SECTIONS * PAGE, &sink));
    ASSERT_EQ(SECTIONS / 8, pages);
    ASSERT(loads <= 2 * words); /* to find a line that is dirty, and its words */
    ASSERT_EQ(words, takes);
    loads = takes = 0;
    ASSERT_EQ(0, vhost_log_sync(&m->vm, 0, 2 * SECTIONS * PAGE, &sink));
    ASSERT_EQ(words, loads);
    ASSERT_EQ(0, takes); /* clean words are only looked at */
    PASS();
}

TEST one_pass_whatever_the_number_of_devices_and_sections(void)
{
    static machine m;
    for (unsigned devices = 1; devices <= DEVICES; devices += 13) {
        for (uint64_t sections = 1; sections <= SECTIONS; sections += SECTIONS - 1) {
            ASSERT_EQ(0, begin(&m, devices, sections));
            CHECK_CALL(sync_all(&m));
            end(&m);
        }
    }
    PASS();
}

TEST only_words_of_the_range_are_looked_at(void)
{
    static machine m;
    uint64_t pages = 0;
    vhost_log_sink sink;
    ASSERT_EQ(0, begin(&m, 3, 1));
    memset(&sink, 0, sizeof sink);
    sink.range = count_range;
    sink.user = &pages;
    loads = 0;
    ASSERT_EQ(0, vhost_log_sync(&m.vm, WORD_PAGES * PAGE, 2 * WORD_PAGES * PAGE, &sink));
    ASSERT_EQ(2, loads);
    loads = 0;
    ASSERT_EQ(0, vhost_log_sync(&m.vm, (WORD_PAGES - 1) * PAGE, 2 * PAGE, &sink));
    ASSERT_EQ(2, loads);
    end(&m);
    PASS();
}

/* The first span is made to reach over everything: a sync of a range above it does not see it. */
TEST only_spans_of_the_range_are_looked_at(void)
{
    static machine m;
    uint64_t pages = 0, hole = 2 * SECTIONS - 3;
    vhost_log_sink sink;
    ASSERT_EQ(0, begin(&m, 1, SECTIONS));
    memset(&sink, 0, sizeof sink);
    sink.range = count_range;
    sink.user = &pages;
    vhosti_current(&m.vm)->spans[0].last = UINT64_MAX;
    mock_dirty(&m.mock[0], hole * PAGE);
    mock_dirty(&m.mock[0], (hole - 1) * PAGE);
    ASSERT_EQ(0, vhost_log_sync(&m.vm, (hole - 1) * PAGE, 2 * PAGE, &sink));
    ASSERT_EQ(1, sink.pages_dirty);
    ASSERT_EQ(1, sink.pages_dropped);
    end(&m);
    PASS();
}

TEST nothing_grows_beyond_what_can_be_counted(void)
{
    vhost_vm vm;
    uint32_t capacity = 16;
    ASSERT_EQ(0, vhost_vm_init(&vm, NULL));
    ASSERT_EQ(NULL, vhosti_grow(&vm, NULL, &capacity, UINT32_MAX / 2 + 2, 1));
    ASSERT_EQ(16, capacity);
    ASSERT_EQ(0, vhost_vm_cleanup(&vm));
    PASS();
}

static mock_backend *late;
static uint64_t late_page;

static void write_late(void)
{
    mock_dirty(late, late_page * PAGE);
    late_page++;
}

/* Page 0 is dirty already; the others get dirty while the sync is at their word. */
static enum greatest_test_res late_writes(machine *m, uint64_t pages)
{
    uint64_t found = 0;
    vhost_log_sink sink;
    memset(&sink, 0, sizeof sink);
    sink.range = count_range;
    sink.user = &found;
    mock_dirty(late, 0);
    late_page = 1;
    in_between = write_late;
    int result = vhost_log_sync(&m->vm, 0, pages * PAGE, &sink);
    in_between = NULL;
    ASSERT_EQ(0, result);
    ASSERT(late_page > 2); /* it was looked at, and taken */
    ASSERT_EQ(0, vhost_log_sync(&m->vm, 0, 2 * SECTIONS * PAGE, &sink));
    ASSERT_EQ(late_page, found);
    PASS();
}

TEST what_a_back_end_logs_during_a_sync_is_not_lost(void)
{
    static machine m;
    ASSERT_EQ(0, begin(&m, 1, 1));
    late = &m.mock[0];
    CHECK_CALL(late_writes(&m, WORD_PAGES));
    CHECK_CALL(late_writes(&m, WORD_PAGES - 1));
    end(&m);
    PASS();
}

/* Whoever logs to the other one could clear them there. */
TEST bits_of_one_log_never_stand_in_another(void)
{
    static machine m;
    uint64_t pages = 0;
    vhost_log_sink sink;
    ASSERT_EQ(0, begin(&m, 1, 1));
    ASSERT_EQ(0, attach(&m, VHOST_DIRTY_SHARED));
    for (uint64_t page = 0; page < 3 * WORD_PAGES; page += 5) {
        mock_dirty(&m.mock[page % 2], page * PAGE);
        mock_dirty(&m.mock[0], page * PAGE);
    }
    memset(&sink, 0, sizeof sink);
    sink.range = count_range;
    sink.user = &pages;
    gives = 0;
    ASSERT_EQ(0, vhost_log_sync(&m.vm, PAGE, 3 * WORD_PAGES * PAGE, &sink));
    ASSERT_EQ((3 * WORD_PAGES - 1) / 5, pages);
    ASSERT_EQ(0, gives);
    end(&m);
    PASS();
}

/* A back-end that was cut off may still write beyond the end of the log that replaces its own. */
TEST a_log_gives_nothing_beyond_the_end_of_its_successor(void)
{
    unsigned long from_words[70] = {0}, to_words[68] = {0};
    struct vhosti_log from, to;
    memset(&from, 0, sizeof from);
    memset(&to, 0, sizeof to);
    from.memory.base = from_words;
    from.memory.size = sizeof from_words;
    to.memory.base = to_words;
    to.memory.size = 66 * sizeof to_words[0];
    from_words[0] = from_words[65] = from_words[66] = from_words[69] = 1;
    vhosti_log_add(&to, &from);
    ASSERT_EQ(1, to_words[0]);
    ASSERT_EQ(1, to_words[65]);
    ASSERT_EQ(0, to_words[66]);
    ASSERT_EQ(0, from_words[65]);
    ASSERT_EQ(1, from_words[66]);
    ASSERT_EQ(1, from_words[69]);
    PASS();
}

SUITE(log_pass_suite)
{
    RUN_TEST(a_log_gives_nothing_beyond_the_end_of_its_successor);
    RUN_TEST(bits_of_one_log_never_stand_in_another);
    RUN_TEST(one_pass_whatever_the_number_of_devices_and_sections);
    RUN_TEST(only_words_of_the_range_are_looked_at);
    RUN_TEST(only_spans_of_the_range_are_looked_at);
    RUN_TEST(nothing_grows_beyond_what_can_be_counted);
    RUN_TEST(what_a_back_end_logs_during_a_sync_is_not_lost);
}
