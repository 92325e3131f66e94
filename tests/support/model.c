#include "model.h"

#include <errno.h>
#include <string.h>

#define PAGE VHOST_PAGE

enum {
    ISLANDS = 4,
    SLOTS = 160,
    SECTIONS = 40,
    BACKINGS = 3,
    BACKING_PAGES = 24,
    BACKING_FIRST =
        0x20000,     /* the page of the host where the backings begin; nobody may touch it */
    SLOT_LIMIT = 14, /* memory slots of the back-ends */
    KINDS = 2,       /* of logs: private of device 0, shared of device 1 */
    LEFT = KINDS,    /* what is dirty in own logs of devices that are gone */
    LEFT_LOGS = 4,   /* so many of them */
    SLACK = 4096,    /* bytes */
    WINDOW_WORDS = 100200 / 64 + 2
};

/* The address space: slots are the pages of these islands, one after the other. */
static const struct {
    uint64_t page, count;
} islands[ISLANDS] = {{0, 40}, {90, 50}, {40000, 30}, {100000, 40}};

typedef struct model_page {
    bool used, writable, to_backends, alone, begins;
    const vhost_backing *backing;
    const char *host;
} model_page;

typedef struct model {
    model_page pages[SLOTS];
    uint64_t last_gpa, last_end; /* of the last section; in pages */
    const vhost_backing *last_backing;
    uint64_t last_offset;
    uint32_t last_flags;
    unsigned count; /* of sections */
} model;

/* All that lasts from run to run. */
typedef struct world {
    fixture *f;
    dice *dice;
    vhost_backing backings[BACKINGS];
    uint64_t pages[SLOTS]; /* which page a slot is */
    model fresh, in_force;
    bool logging;
    uint64_t log_bytes[KINDS]; /* 0: no log of this kind */
    bool own;                  /* the log of device 1 is its own */
    unsigned left_logs;
    bool dirty[KINDS + 1][SLOTS];
    bool seen[SLOTS]; /* handed over to a range sink */
    uint64_t seen_end;
    unsigned seen_count, seen_wrong;
    uint64_t window[WINDOW_WORDS];
    model_tally *tally;
} world;

static uint64_t roll(world *w, uint64_t sides)
{
    return dice_roll(w->dice, sides);
}

/* The slot of a page, or of the first one behind it; SLOTS: there is none. */
static uint64_t slot_from(uint64_t page)
{
    uint64_t slot = 0;
    for (unsigned i = 0; i < ISLANDS; i++) {
        if (page < islands[i].page) {
            return slot;
        }
        if (page - islands[i].page < islands[i].count) {
            return slot + page - islands[i].page;
        }
        slot += islands[i].count;
    }
    return SLOTS;
}

static bool is_slot(const world *w, uint64_t page)
{
    uint64_t slot = slot_from(page);
    return slot < SLOTS && w->pages[slot] == page;
}

/* ---- sections ---- */

/* One in eight is ROM, one tracked by others, one unmergeable. */
static uint32_t random_flags(world *w)
{
    static const uint32_t flags[8] = {VHOST_SECTION_ROM, VHOST_SECTION_DIRTY_TRACKED,
                                      VHOST_SECTION_UNMERGEABLE};
    return flags[roll(w, 8)];
}

/* Where the next section begins: mostly at the end of the last one, now and then inside of it. */
static uint64_t random_start(world *w, const model *m)
{
    uint64_t start = m->last_end + (roll(w, 3) ? 0 : roll(w, 6));
    if (m->count > 0 && start > 3 && roll(w, 60) == 0) {
        return start - 1 - roll(w, 3);
    }
    uint64_t slot = slot_from(start);
    if (slot < SLOTS && roll(w, 10) == 0) {
        slot = slot + 20 < SLOTS ? slot + roll(w, 20) : slot;
    }
    return slot < SLOTS ? w->pages[slot] : UINT64_MAX;
}

static uint64_t pages_left(uint64_t page)
{
    for (unsigned i = 0; i < ISLANDS; i++) {
        if (page - islands[i].page < islands[i].count) {
            return islands[i].count - (page - islands[i].page);
        }
    }
    return 0;
}

/* No size: there is no room any more. */
static vhost_section random_section(world *w, const model *m)
{
    vhost_section section;
    uint64_t page = random_start(w, m), room = page == UINT64_MAX ? 0 : pages_left(page);
    uint64_t size = 1 + roll(w, 10);
    vhost_section_init(&section, page * PAGE, (size < room ? size : room) * PAGE,
                       &w->backings[roll(w, BACKINGS)], roll(w, BACKING_PAGES) * PAGE);
    section.flags = random_flags(w);
    uint64_t on = m->last_offset + (page - m->last_gpa) * PAGE;
    if (m->count > 0 && roll(w, 2) && (on < BACKING_PAGES * PAGE || roll(w, 30) == 0)) {
        section.backing = m->last_backing; /* the last one's memory goes on */
        section.offset = on;
        section.flags = roll(w, 2) ? m->last_flags : section.flags;
    }
    if (section.offset < BACKING_PAGES * PAGE && roll(w, 60)) { /* mostly not out of its backing */
        uint64_t inside = BACKING_PAGES * PAGE - section.offset;
        section.size = section.size < inside ? section.size : inside;
    }
    return section;
}

static void spoil(world *w, vhost_section *section)
{
    if (roll(w, 200) == 0) {
        section->size = roll(w, 2) ? 0 : section->size - 512;
    } else if (roll(w, 200) == 0) {
        section->gpa += 2048;
    }
}

static const char *host_of(const vhost_section *section, uint64_t page)
{
    return (const char *)section->backing->host + section->offset + page * PAGE;
}

/* Whether the page already is just this memory, in the same way. */
static bool same_page(const model_page *page, const vhost_section *section, uint64_t index)
{
    bool rom = section->flags & VHOST_SECTION_ROM;
    bool tracked = section->flags & VHOST_SECTION_DIRTY_TRACKED;
    bool alone = section->flags & VHOST_SECTION_UNMERGEABLE;
    return page->backing == section->backing && page->host == host_of(section, index) &&
           page->writable == !rom && page->to_backends == (!rom && !tracked) && !alone &&
           !page->alone;
}

static bool collides(const model *m, const vhost_section *section)
{
    uint64_t slot = slot_from(section->gpa / PAGE);
    for (uint64_t i = 0; i < section->size / PAGE; i++) {
        if (m->pages[slot + i].used && !same_page(&m->pages[slot + i], section, i)) {
            return true;
        }
    }
    return false;
}

/* The reason for which the section is refused, or NONE. */
static vhost_why expected_why(const model *m, const vhost_section *section)
{
    uint64_t room = BACKING_PAGES * PAGE;
    if (section->size == 0) {
        return VHOST_WHY_SECTION_EMPTY;
    }
    if ((section->gpa | section->size | section->offset) % PAGE) {
        return VHOST_WHY_SECTION_UNALIGNED;
    }
    if (section->offset > room || section->size > room - section->offset) {
        return VHOST_WHY_SECTION_OUTSIDE;
    }
    if (m->count > 0 && section->gpa / PAGE < m->last_gpa) {
        return VHOST_WHY_SECTION_ORDER;
    }
    return collides(m, section) ? VHOST_WHY_SECTION_OVERLAP : VHOST_WHY_NONE;
}

static void keep(model *m, const vhost_section *section)
{
    uint64_t page = section->gpa / PAGE, slot = slot_from(page), end = page + section->size / PAGE;
    bool joins = m->count > 0 && page < m->last_end;
    for (uint64_t i = 0; i < section->size / PAGE; i++) {
        model_page *here = &m->pages[slot + i];
        here->begins |= i == 0 && !joins;
        here->used = true;
        here->backing = section->backing;
        here->host = host_of(section, i);
        here->writable = !(section->flags & VHOST_SECTION_ROM);
        here->to_backends = !(section->flags & (VHOST_SECTION_ROM | VHOST_SECTION_DIRTY_TRACKED));
        here->alone = section->flags & VHOST_SECTION_UNMERGEABLE;
    }
    if (joins) { /* both are one, which begins where the first did */
        m->last_end = end > m->last_end ? end : m->last_end;
        return;
    }
    m->last_gpa = page;
    m->last_end = end;
    m->last_backing = section->backing;
    m->last_offset = section->offset;
    m->last_flags = section->flags;
    m->count++;
}

/* ---- tables and look-up ---- */

static bool is_adjacent(const world *w, uint64_t slot)
{
    return slot > 0 && w->pages[slot] == w->pages[slot - 1] + 1;
}

/* Whether this page is in the region of the page before it. */
static bool goes_on(const world *w, const model *m, uint64_t slot)
{
    const model_page *here = &m->pages[slot];
    if (!is_adjacent(w, slot) || !here->to_backends || !here[-1].to_backends) {
        return false;
    }
    bool alone = (here->alone || here[-1].alone) && here->begins;
    return !alone && here->backing == here[-1].backing && here->host == here[-1].host + PAGE;
}

static unsigned count_regions(const world *w, const model *m)
{
    unsigned count = 0;
    for (uint64_t slot = 0; slot < SLOTS; slot++) {
        count += m->pages[slot].to_backends && !goes_on(w, m, slot);
    }
    return count;
}

static enum greatest_test_res table_matches(const world *w, const mock_backend *mock)
{
    const model *m = &w->in_force;
    uint32_t region = 0;
    for (uint64_t slot = 0; slot < SLOTS; slot++) {
        if (!m->pages[slot].to_backends || goes_on(w, m, slot)) {
            continue;
        }
        uint64_t end = slot + 1;
        while (end < SLOTS && goes_on(w, m, end)) {
            end++;
        }
        ASSERT(region < mock->table_count);
        ASSERT_U64(w->pages[slot] * PAGE, mock->table[region].gpa);
        ASSERT_U64((end - slot) * PAGE, mock->table[region].size);
        ASSERT_PTR(m->pages[slot].host, mock->table[region].host);
        ASSERT_PTR(m->pages[slot].backing, mock->table[region].backing);
        region++;
    }
    ASSERT_UINT(region, mock->table_count);
    PASS();
}

/* From the last slot to the first, how many pages are contiguous from each on. */
static void measure(const world *w, const model *m, uint64_t *lengths)
{
    for (uint64_t slot = SLOTS; slot-- > 0;) {
        const model_page *here = &m->pages[slot];
        bool on = slot + 1 < SLOTS && is_adjacent(w, slot + 1) && here->used && here[1].used &&
                  here[1].host == here->host + PAGE && here[1].writable == here->writable;
        lengths[slot] = on ? lengths[slot + 1] + 1 : 1;
    }
}

static enum greatest_test_res find_matches(const world *w, uint64_t within)
{
    const model *m = &w->in_force;
    uint64_t lengths[SLOTS];
    vhost_extent extent;
    measure(w, m, lengths);
    for (uint64_t slot = 0; slot < SLOTS; slot++) {
        const model_page *here = &m->pages[slot];
        int result = vhost_memory_find(&w->f->vm, w->pages[slot] * PAGE + within, &extent);
        ASSERT_INT(here->used ? 0 : -EFAULT, result);
        if (here->used) {
            ASSERT_PTR(here->host + within, extent.host);
            ASSERT_U64(lengths[slot] * PAGE - within, extent.size);
            ASSERT_INT(here->writable, extent.writable);
        }
    }
    PASS();
}

/* ---- the log ---- */

static uint64_t bytes_needed(const world *w)
{
    uint64_t last = 0;
    for (uint64_t slot = 0; slot < SLOTS; slot++) {
        last = w->in_force.pages[slot].to_backends ? w->pages[slot] : last;
    }
    return (last / (8 * sizeof(unsigned long)) + 1) * sizeof(unsigned long);
}

static bool is_clean_from(const world *w, int kind, uint64_t page)
{
    for (uint64_t slot = 0; slot < SLOTS; slot++) {
        if (w->dirty[kind][slot] && w->pages[slot] >= page) {
            return false;
        }
    }
    return true;
}

static void resize_logs(world *w)
{
    uint64_t need = bytes_needed(w);
    for (int kind = 0; kind < KINDS; kind++) {
        uint64_t *bytes = &w->log_bytes[kind];
        if (*bytes == 0) {
            continue;
        }
        uint64_t before = *bytes;
        if (*bytes < need) {
            *bytes = need + SLACK;
        } else if (*bytes > need + SLACK && is_clean_from(w, kind, 8 * need)) {
            *bytes = need;
        }
        w->tally->resizes += *bytes != before;
        for (uint64_t slot = 0; slot < SLOTS; slot++) {
            w->dirty[kind][slot] &= w->pages[slot] < 8 * *bytes;
        }
    }
}

static enum greatest_test_res logs_match(const world *w)
{
    unsigned alive = w->left_logs;
    for (int kind = 0; kind < KINDS; kind++) {
        const mock_backend *mock = &w->f->mock[kind];
        bool runs = w->f->device[kind].state == VHOST_STATE_RUNNING;
        alive += w->log_bytes[kind] > 0;
        ASSERT_INT(runs && w->logging, mock_logs(mock));
        if (mock_logs(mock)) {
            ASSERT_U64(w->log_bytes[kind], mock->log.size);
            ASSERT(mock_log_covers_table(mock));
        }
    }
    ASSERT_UINT(alive, fixture_logs_alive(w->f));
    PASS();
}

static enum greatest_test_res switch_log(world *w)
{
    w->logging = !w->logging;
    for (int kind = 0; kind < KINDS; kind++) {
        bool there = w->f->device[kind].state == VHOST_STATE_RUNNING;
        w->log_bytes[kind] = w->logging && there ? bytes_needed(w) : 0;
    }
    w->left_logs = 0;
    memset(w->dirty, 0, sizeof w->dirty);
    ASSERT_OK(w->logging ? vhost_log_start(&w->f->vm) : vhost_log_stop(&w->f->vm));
    return logs_match(w);
}

/* The log stays behind: nobody has it any more. */
static void leave_log(world *w)
{
    for (uint64_t slot = 0; slot < SLOTS; slot++) {
        w->dirty[LEFT][slot] |= w->dirty[1][slot];
        w->dirty[1][slot] = false;
    }
    w->log_bytes[1] = 0;
    w->left_logs++;
    w->tally->left++;
}

/* Device 1 comes and goes; without rings, so that its stop marks nothing. */
static enum greatest_test_res plug(world *w)
{
    vhost_device *device = &w->f->device[1];
    if (device->state == VHOST_STATE_RUNNING) {
        vhost_device_cleanup(device);
        if (w->own && w->logging) {
            leave_log(w);
        }
        return logs_match(w);
    }
    int result = fixture_attach(w->f, 1);
    bool fits = count_regions(w, &w->in_force) <= SLOT_LIMIT;
    ASSERT_INT(fits ? 0 : -ENOSPC, result);
    if (w->logging && w->log_bytes[1] == 0 && fits) {
        w->log_bytes[1] = bytes_needed(w);
    }
    ASSERT_OK(fits ? vhost_device_start(device) : 0);
    return logs_match(w);
}

static void dirty_some(world *w)
{
    uint64_t count = roll(w, 24), from = roll(w, SLOTS);
    for (uint64_t i = 0; i < count; i++) {
        uint64_t kind = roll(w, KINDS), slot = roll(w, 3) ? (from + i) % SLOTS : roll(w, SLOTS);
        if (mock_logs(&w->f->mock[kind]) && w->pages[slot] < 8 * w->log_bytes[kind]) {
            mock_dirty(&w->f->mock[kind], w->pages[slot] * PAGE + roll(w, PAGE));
            w->dirty[kind][slot] = true;
        }
    }
}

/* ---- syncs ---- */

static void on_range(uint64_t gpa, uint64_t size, void *user)
{
    world *w = (world *)user;
    bool first = w->seen_count == 0;
    w->seen_wrong += size == 0 || (gpa | size) % PAGE || (!first && gpa <= w->seen_end);
    w->seen_end = gpa + size;
    w->seen_count++;
    for (uint64_t page = gpa / PAGE; page < (gpa + size) / PAGE; page++) {
        bool known = is_slot(w, page);
        w->seen_wrong += !known;
        if (known) {
            w->seen[slot_from(page)] = true;
        }
    }
}

static uint64_t count_bits(const uint64_t *words, uint64_t count)
{
    uint64_t bits = 0;
    for (uint64_t i = 0; i < count; i++) {
        for (uint64_t word = words[i]; word != 0; word &= word - 1) {
            bits++;
        }
    }
    return bits;
}

static bool was_handed_over(const world *w, const vhost_log_sink *sink, uint64_t slot)
{
    if (sink->bits == NULL) {
        return w->seen[slot];
    }
    uint64_t bit = w->pages[slot] - sink->bits_gpa / PAGE;
    return w->window[bit / 64] >> bit % 64 & 1;
}

/* Compares with the pages of [from, from + count), and takes them out of the model. */
static enum greatest_test_res sync_matches(world *w, const vhost_log_sink *sink, uint64_t from,
                                           uint64_t count)
{
    uint64_t dirty = 0, dropped = 0;
    for (uint64_t slot = slot_from(from); slot < SLOTS && w->pages[slot] < from + count; slot++) {
        bool is_dirty = w->dirty[0][slot] || w->dirty[1][slot] || w->dirty[LEFT][slot];
        bool inside = w->in_force.pages[slot].used;
        w->dirty[0][slot] = w->dirty[1][slot] = w->dirty[LEFT][slot] = false;
        dirty += is_dirty && inside;
        dropped += is_dirty && !inside;
        ASSERT_INT(is_dirty && inside, was_handed_over(w, sink, slot));
    }
    w->tally->pages += dirty;
    w->tally->dropped += dropped;
    ASSERT_U64(dirty, sink->pages_dirty);
    ASSERT_U64(dropped, sink->pages_dropped);
    ASSERT_UINT(0, w->seen_wrong);
    PASS();
}

static enum greatest_test_res sync_some(world *w)
{
    uint64_t a = w->pages[roll(w, SLOTS)], b = w->pages[roll(w, SLOTS)];
    uint64_t from = a < b ? a : b, count = (a < b ? b : a) - from + 1 + roll(w, 3);
    uint64_t before = roll(w, 130);
    vhost_log_sink sink;
    memset(&sink, 0, sizeof sink);
    if (roll(w, 2)) {
        memset(w->seen, 0, sizeof w->seen);
        w->seen_count = w->seen_wrong = 0;
        sink.range = on_range;
        sink.user = w;
        ASSERT_OK(vhost_log_sync(&w->f->vm, from * PAGE, count * PAGE, &sink));
        return sync_matches(w, &sink, from, count);
    }
    before = before < from ? before : from;
    uint64_t words = (before + count + 63) / 64;
    sink.bits = w->window;
    sink.bits_gpa = (from - before) * PAGE;
    sink.bits_count = before + count;
    memset(w->window, 0, words * sizeof *w->window);
    ASSERT_OK(vhost_log_sync(&w->f->vm, from * PAGE, count * PAGE, &sink));
    ASSERT_U64(sink.pages_dirty, count_bits(w->window, words));
    return sync_matches(w, &sink, from, count);
}

/* ---- transactions ---- */

/* Adds random sections. *lost: one was refused. */
static enum greatest_test_res add_sections(world *w, bool *lost)
{
    model *m = &w->fresh;
    uint64_t wanted = 1 + roll(w, SECTIONS / (1 + roll(w, 3)));
    *lost = false;
    memset(m, 0, sizeof *m);
    while (m->count < wanted && !*lost) {
        vhost_section section = random_section(w, m);
        if (section.size == 0) {
            break;
        }
        spoil(w, &section);
        vhost_why why = expected_why(m, &section);
        if (why == VHOST_WHY_NONE) {
            ASSERT_OK(vhost_memory_add(&w->f->vm, &section));
            keep(m, &section);
        } else {
            ASSERT_FAILS(w->f, vhost_memory_add(&w->f->vm, &section), &w->f->vm.last_error, -EINVAL,
                         why);
            *lost = true;
        }
    }
    PASS();
}

static enum greatest_test_res commit(world *w, bool lost)
{
    vhost_vm *vm = &w->f->vm;
    bool fits =
        w->f->device[1].state == VHOST_STATE_CLOSED || count_regions(w, &w->fresh) <= SLOT_LIMIT;
    if (lost && roll(w, 2)) {
        vhost_memory_abort(vm);
        PASS();
    }
    ASSERT_INT(lost ? -EINVAL : fits ? 0 : -ENOSPC, vhost_memory_commit(vm));
    w->tally->refused += lost;
    w->tally->too_many += !lost && !fits;
    if (!lost && fits) {
        w->tally->commits++;
        bool same = memcmp(w->fresh.pages, w->in_force.pages, sizeof w->fresh.pages) == 0;
        w->in_force = w->fresh;
        if (!same) {
            resize_logs(w);
        }
    }
    PASS();
}

static enum greatest_test_res map_matches(world *w)
{
    unsigned regions = count_regions(w, &w->in_force);
    bool both = w->f->device[1].state == VHOST_STATE_RUNNING;
    ASSERT_UINT(both ? SLOT_LIMIT - regions : UINT32_MAX, vhost_memory_free_slots(&w->f->vm));
    CHECK_CALL(table_matches(w, &w->f->mock[0]));
    if (both) {
        CHECK_CALL(table_matches(w, &w->f->mock[1]));
    }
    CHECK_CALL(logs_match(w));
    return find_matches(w, roll(w, PAGE));
}

static enum greatest_test_res run_once(world *w)
{
    bool lost;
    ASSERT_OK(vhost_memory_begin(&w->f->vm));
    CHECK_CALL(add_sections(w, &lost));
    CHECK_CALL(commit(w, lost));
    CHECK_CALL(map_matches(w));
    if (roll(w, 32) == 0) {
        CHECK_CALL(switch_log(w));
    }
    if (roll(w, 16) == 0 && w->left_logs < LEFT_LOGS) {
        CHECK_CALL(plug(w));
    }
    dirty_some(w);
    return w->logging && roll(w, 3) ? sync_some(w) : GREATEST_TEST_RES_PASS;
}

/* ---- the whole ---- */

static int begin(world *w, fixture *f, dice *chance, model_tally *done)
{
    uint64_t slot = 0;
    memset(w, 0, sizeof *w);
    w->f = f;
    w->dice = chance;
    w->own = roll(w, 2);
    w->tally = done;
    for (unsigned i = 0; i < ISLANDS; i++) {
        for (uint64_t k = 0; k < islands[i].count; k++) {
            w->pages[slot++] = islands[i].page + k;
        }
    }
    for (uint64_t i = 0; i < BACKINGS; i++) { /* the first two are contiguous */
        uint64_t page = BACKING_FIRST + i * BACKING_PAGES + (i == 2);
        void *host = (void *)(uintptr_t)(page * PAGE);
        vhost_backing_init(&w->backings[i], host, BACKING_PAGES * PAGE, -1, 0);
    }
    for (unsigned d = 0; d < KINDS; d++) {
        f->mock[d].facts.log_kind = d == 0 ? VHOST_DIRTY_PRIVATE : VHOST_DIRTY_SHARED;
        vhost_features_set(&f->mock[d].facts.offered, VHOST_FEATURE_LOG_ALL);
    }
    f->mock[1].facts.max_regions = SLOT_LIMIT;
    int result = fixture_attach(f, 0);
    f->device_options.own_log = w->own;
    return result < 0 ? result : vhost_device_start(&f->device[0]);
}

enum greatest_test_res model_run(fixture *f, dice *chance, unsigned runs, model_tally *done)
{
    static world w;
    ASSERT_OK(begin(&w, f, chance, done));
    CHECK_CALL(switch_log(&w));
    for (unsigned i = 0; i < runs && !dice_ended(chance); i++) {
        CHECK_CALL(run_once(&w));
        ASSERT_STR_EQ("", f->mock[0].complaint);
        ASSERT_STR_EQ("", f->mock[1].complaint);
        mock_forget(&f->mock[0]);
        mock_forget(&f->mock[1]);
    }
    PASS();
}
