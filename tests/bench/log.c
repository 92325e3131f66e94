/* Section 1: how fast dirty pages come out of the log, with log and sink out of the caches. */
#define _GNU_SOURCE
#include "bench.h"
#include "guest.h"
#include "reference.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    MANY = 8, /* devices */
    WORD_PAGES = 8 * sizeof(unsigned long),
    BLOCK = 512,     /* words that the limit reads before it takes their dirty ones */
    AHEAD = 16,      /* dirty words by which it reads the sink beforehand */
    RUN_PAGES = 256, /* of the pattern in runs */
    CACHE = 64 << 20 /* bytes, more than any cache here */
};

typedef enum pattern {
    CLEAN,
    PERMILLE,
    PERCENT,
    RUNS,
    FULL,
    PATTERNS
} pattern;

static const char *const pattern_names[PATTERNS] = {"clean", "0.1% random", "1% random",
                                                    "10% in runs", "100%"};

/* One guest, one pattern, and one sink for all ways: where in memory it is makes a difference. */
typedef struct scene {
    guest guest;
    uint64_t words;
    unsigned long *log;    /* where back-ends write */
    unsigned long *master; /* the pattern */
    uint64_t *sink;
    uint32_t *dirty; /* words of the pattern that are not 0, ascending */
    uint32_t dirty_count;
    uint64_t pages;
    reference_device devices[MANY];
    reference_range *ranges, rings[MANY][2];
} scene;

static unsigned char *cache;

/* ---- scenes ---- */

static uint64_t random_number(void)
{
    static uint64_t state = 88172645463325252u;
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
}

static bool in_a_section(const scene *self, uint64_t page)
{
    return page * VHOST_PAGE % self->guest.stride < self->guest.sections[0].size;
}

static void mark(scene *self, uint64_t page, uint64_t count)
{
    for (; count > 0 && page < self->words * WORD_PAGES; page++, count--) {
        if (in_a_section(self, page)) {
            self->master[page / WORD_PAGES] |= 1ul << (page % WORD_PAGES);
        }
    }
}

static void draw(scene *self, pattern what)
{
    uint64_t pages = self->words * WORD_PAGES;
    memset(self->master, 0, self->words * sizeof *self->master);
    switch (what) {
    case PERMILLE:
    case PERCENT:
        for (uint64_t i = 0; i < pages / (what == PERCENT ? 100 : 1000); i++) {
            mark(self, random_number() % pages, 1);
        }
        break;
    case RUNS:
        for (uint64_t i = 0; i < pages / 10 / RUN_PAGES; i++) {
            mark(self, random_number() % pages, RUN_PAGES);
        }
        break;
    case FULL:
        mark(self, 0, pages);
        break;
    case CLEAN:
    case PATTERNS:
        break;
    }
    self->dirty_count = 0;
    self->pages = 0;
    for (uint64_t i = 0; i < self->words; i++) {
        if (self->master[i] != 0) {
            self->dirty[self->dirty_count++] = (uint32_t)i;
            self->pages += (unsigned)__builtin_popcountl(self->master[i]);
        }
    }
}

static void describe_reference(scene *self)
{
    guest *g = &self->guest;
    self->ranges = calloc(g->section_count, sizeof *self->ranges);
    for (uint32_t i = 0; i < g->section_count; i++) {
        self->ranges[i] = (reference_range){g->sections[i].gpa, g->sections[i].size};
    }
    for (unsigned d = 0; d < g->device_count; d++) {
        for (unsigned i = 0; i < 2; i++) {
            const vhost_mapping *used = &g->queue[d][i].rings.part[VHOST_USED];
            self->rings[d][i] = (reference_range){used->gpa, used->size};
        }
        self->devices[d] = (reference_device){self->ranges, g->section_count, self->rings[d], 2};
    }
}

static void open_scene(scene *self, uint64_t size, uint32_t sections, unsigned devices)
{
    memset(self, 0, sizeof *self);
    guest_open(&self->guest, size, sections, devices, 2);
    guest_must(vhost_log_start(&self->guest.vm), "log start");
    self->log = guest_log();
    self->words = size / VHOST_PAGE / WORD_PAGES;
    self->master = calloc(self->words, sizeof *self->master);
    self->sink = calloc(self->words, sizeof *self->sink);
    self->dirty = calloc(self->words, sizeof *self->dirty);
    describe_reference(self);
}

static void close_scene(scene *self)
{
    guest_must(vhost_log_stop(&self->guest.vm), "log stop");
    guest_close(&self->guest);
    free(self->master);
    free(self->sink);
    free(self->dirty);
    free(self->ranges);
}

/* ---- the ways ---- */

static void dirty_log(void *user)
{
    scene *self = user;
    volatile unsigned char taken = 0;
    if (self->dirty_count > 0) {
        memcpy(self->log, self->master, self->words * sizeof *self->log);
    }
    for (size_t i = 0; i < CACHE; i += 64) {
        taken = (unsigned char)(taken + cache[i]);
    }
}

static void sync_bits(void *user)
{
    scene *self = user;
    vhost_log_sink sink = {.bits = self->sink, .bits_count = self->words * WORD_PAGES};
    guest_must(vhost_log_sync(&self->guest.vm, 0, self->words * WORD_PAGES * VHOST_PAGE, &sink),
               "sync");
}

static void set_range(uint64_t gpa, uint64_t size, void *user)
{
    uint64_t *bits = user, page = gpa / VHOST_PAGE, last = page + size / VHOST_PAGE - 1;
    uint64_t from = UINT64_MAX << (page % 64), to = UINT64_MAX >> (63 - last % 64);
    if (page / 64 == last / 64) {
        bits[page / 64] |= from & to;
        return;
    }
    bits[page / 64] |= from;
    for (page = page / 64 + 1; page < last / 64; page++) {
        bits[page] = UINT64_MAX;
    }
    bits[page] |= to;
}

static void sync_ranges(void *user)
{
    scene *self = user;
    vhost_log_sink sink = {.range = set_range, .user = self->sink};
    guest_must(vhost_log_sync(&self->guest.vm, 0, self->words * WORD_PAGES * VHOST_PAGE, &sink),
               "sync");
}

static void set_page(uint64_t gpa, void *user)
{
    uint64_t *bits = user, page = gpa / VHOST_PAGE;
    bits[page / 64] |= UINT64_C(1) << (page % 64);
}

static void sync_reference(void *user)
{
    scene *self = user;
    reference_sync(self->devices, self->guest.device_count, self->ranges, self->guest.section_count,
                   self->log, set_page, self->sink);
}

/* Reads the log, and takes out the dirty words, which it knows beforehand. */
static void sync_least(void *user)
{
    scene *self = user;
    const uint32_t *dirty = self->dirty, *end = dirty + self->dirty_count;
    volatile unsigned long kept;
    for (uint64_t block = 0; block < self->words; block += BLOCK) {
        unsigned long sum = 0;
        for (uint64_t i = block; i < block + BLOCK; i += 8) {
            const unsigned long *line = self->log + i;
            sum |= line[0] | line[1] | line[2] | line[3] | line[4] | line[5] | line[6] | line[7];
        }
        kept = sum;
        for (; dirty < end && *dirty < block + BLOCK; dirty++) {
            __builtin_prefetch(&self->sink[dirty + AHEAD < end ? dirty[AHEAD] : 0], 1);
            self->sink[*dirty] |= __atomic_exchange_n(&self->log[*dirty], 0, __ATOMIC_ACQUIRE);
        }
    }
    (void)kept;
}

/* ---- rows ---- */

static const char *size_name(uint64_t size)
{
    return size == UINT64_C(1) << 40 ? "1 TiB" : size == UINT64_C(1) << 38 ? "256 GiB" : "16 GiB";
}

static void set_bars(bench_row *row, const scene *self, pattern what, bool ranges)
{
    static const double bits_bar[PATTERNS] = {1.3, 2, 3.5, 15, 50};
    static const double ranges_bar[PATTERNS] = {1.3, 1, 1.6, 1, 55};
    row->least_ratio = ranges ? ranges_bar[what] : bits_bar[what];
    if (what == CLEAN) {
        row->least_share = 0.8;
        if (self->guest.device_count > 1) {
            row->least_ratio = 10;
        }
    }
}

/* Whoever takes the pages out of the log, it is all of them. */
static void check(scene *self, const bench_way *way)
{
    size_t size = self->words * sizeof *self->sink;
    memset(self->sink, 0, size);
    way->prepare(self);
    way->run(self);
    if (memcmp(self->sink, self->master, size) != 0) {
        guest_must(-1, "a sync gave other pages than were dirty");
    }
}

static void race(scene *self, uint64_t size, pattern what, bool ranges)
{
    bench_row row = {.unit = BENCH_TIME};
    bench_way ways[] = {{dirty_log, ranges ? sync_ranges : sync_bits, self, 0},
                        {dirty_log, sync_reference, self, 0},
                        {dirty_log, sync_least, self, 0}};
    for (unsigned i = 0; i < 3; i++) {
        check(self, &ways[i]);
    }
    bench_race(ways, 3);
    snprintf(row.name, sizeof row.name, "%s, %u section%s, %u device%s, %s, %s", size_name(size),
             self->guest.section_count, self->guest.section_count > 1 ? "s" : "",
             self->guest.device_count, self->guest.device_count > 1 ? "s" : "", pattern_names[what],
             ranges ? "ranges" : "bits");
    row.ours = ways[0].best;
    row.reference = ways[1].best;
    row.limit = ways[2].best;
    set_bars(&row, self, what, ranges);
    bench_print(&row);
}

static void race_all(uint64_t size, uint32_t sections, unsigned devices)
{
    scene self;
    open_scene(&self, size, sections, devices);
    for (int what = CLEAN; what < PATTERNS; what++) {
        draw(&self, (pattern)what);
        race(&self, size, (pattern)what, false);
        race(&self, size, (pattern)what, true);
    }
    close_scene(&self);
}

/* What one pass over the log buys: neither devices nor sections make it longer. */
static void race_growth(uint64_t size, pattern what)
{
    static scene plain, devices, sections;
    bench_row row = {.unit = BENCH_TIME};
    bench_way ways[] = {{dirty_log, sync_bits, &plain, 0},
                        {dirty_log, sync_bits, &devices, 0},
                        {dirty_log, sync_bits, &sections, 0}};
    open_scene(&plain, size, 1, 1);
    open_scene(&devices, size, 1, MANY);
    devices.log = guest_log();
    open_scene(&sections, size, 512, 1);
    draw(&plain, what);
    draw(&devices, what);
    draw(&sections, what);
    bench_race(ways, 3);
    snprintf(row.name, sizeof row.name, "%s, %s: 8 devices; limit: 1 device", size_name(size),
             pattern_names[what]);
    row.ours = ways[1].best;
    row.limit = ways[0].best;
    row.least_share = 0.9;
    bench_print(&row);
    snprintf(row.name, sizeof row.name, "%s, %s: 512 sections; limit: 1 section", size_name(size),
             pattern_names[what]);
    row.ours = ways[2].best;
    row.least_share = 1 / 1.15;
    bench_print(&row);
    close_scene(&plain);
    close_scene(&devices);
    close_scene(&sections);
}

/* ---- while somebody writes ---- */

typedef struct writer {
    unsigned long *log;
    uint64_t pages, set; /* set: bits that were 0 before */
    bool stop;
} writer;

static void *write_log(void *user)
{
    writer *self = user;
    uint64_t state = 1;
    while (!__atomic_load_n(&self->stop, __ATOMIC_RELAXED)) {
        state = state * UINT64_C(6364136223846793005) + 1442695040888963407u;
        uint64_t page = (state >> 20) % self->pages;
        unsigned long bit = 1ul << (page % WORD_PAGES);
        if ((__atomic_fetch_or(&self->log[page / WORD_PAGES], bit, __ATOMIC_RELAXED) & bit) == 0) {
            self->set++;
        }
    }
    return NULL;
}

/* Each bit that was set is handed over once: the sums are equal, or some were lost. */
static void race_writer(uint64_t size)
{
    scene self;
    vhost_log_sink sink = {.bits_count = size / VHOST_PAGE};
    bench_row row = {.unit = BENCH_TIME};
    pthread_t thread;
    unsigned syncs = 0;
    open_scene(&self, size, 1, 1);
    writer other = {self.log, self.words * WORD_PAGES, 0, false};
    sink.bits = self.sink;
    if (pthread_create(&thread, NULL, write_log, &other) != 0) {
        guest_must(-1, "a thread");
    }
    double start = bench_now();
    for (; syncs < 10 || bench_now() - start < 0.5e9; syncs++) {
        double begin = bench_now();
        guest_must(vhost_log_sync(&self.guest.vm, 0, size, &sink), "sync");
        double time = bench_now() - begin;
        row.ours = row.ours == 0 || time < row.ours ? time : row.ours;
    }
    __atomic_store_n(&other.stop, true, __ATOMIC_RELAXED);
    pthread_join(thread, NULL);
    guest_must(vhost_log_sync(&self.guest.vm, 0, size, &sink), "sync");
    snprintf(row.name, sizeof row.name, "%s, while a thread dirties it", size_name(size));
    bench_print(&row);
    bench_note("it set %llu bits in %u syncs; %lld were lost", (unsigned long long)other.set, syncs,
               (long long)(other.set - sink.pages_dirty));
    if (other.set != sink.pages_dirty) {
        guest_must(-1, "a dirty page was lost");
    }
    close_scene(&self);
}

/* ---- log start ---- */

static void start_log(void *user)
{
    guest *self = user;
    guest_must(vhost_log_start(&self->vm), "log start");
}

static void stop_log(void *user)
{
    guest *self = user;
    guest_must(vhost_log_stop(&self->vm), "log stop");
}

static void race_start(uint64_t size)
{
    guest self;
    bench_row row = {.unit = BENCH_TIME, .most = 100e3};
    bench_way way = {stop_log, start_log, &self, 0};
    guest_open(&self, size, 8, 1, 2);
    bench_race(&way, 1);
    stop_log(&self);
    snprintf(row.name, sizeof row.name, "%s: log start", size_name(size));
    row.ours = way.best;
    bench_print(&row);
    guest_close(&self);
}

void bench_log(void)
{
    static const uint64_t sizes[] = {UINT64_C(1) << 34, UINT64_C(1) << 38, UINT64_C(1) << 40};
    static const uint32_t sections[] = {1, 8, 64, 512};
    unsigned size_count = bench_quick ? 1 : 3, step = bench_quick ? 3 : 1;
    cache = calloc(1, CACHE);
    memset(cache, 1, CACHE);
    bench_title("1. Dirty pages out of the log: vhost_log_sync, log and sink out of the caches",
                "each device intersects each section with each of its regions and used rings,\n"
                "    walks the words of each overlap, and calls a sink for each dirty page",
                "one pass that reads the log, knows where the dirty words are,\n"
                "    and exchanges them");
    for (unsigned i = 0; i < size_count; i++) {
        for (unsigned k = 0; k < 4; k += step) {
            race_all(sizes[i], sections[k], 1);
            race_all(sizes[i], sections[k], MANY);
        }
    }
    for (unsigned i = 0; i < size_count; i++) {
        race_growth(sizes[i], CLEAN);
        race_growth(sizes[i], PERCENT);
        race_writer(sizes[i]);
        race_start(sizes[i]);
    }
    free(cache);
}
