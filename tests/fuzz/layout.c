/* Section lists against the model of maps and logs; and queues, laid out anywhere in a random map,
   against a model of the map page by page: a start accepts what is contiguous, aligned and writable
   where it must be, and nothing else. */
#include "fuzz.h"
#include "model.h"

#include <string.h>

enum {
    MAPS = 20,        /* of one run */
    PAGES = 64,       /* of the address space in which queues lie */
    SECTION_MOST = 16 /* pages */
};

typedef struct page {
    const unsigned char *host; /* NULL: nothing is there */
    bool writable;
} page;

static dice *the_chance;
static page pages[PAGES];

static uint64_t roll(uint64_t sides)
{
    return dice_roll(the_chance, sides);
}

/* ---- a map ---- */

static void put_section(fixture *f, uint64_t first, uint64_t count, uint64_t of_ram, bool rom)
{
    for (uint64_t i = 0; i < count; i++) {
        pages[first + i].host = f->host + (of_ram + i) * VHOST_PAGE;
        pages[first + i].writable = !rom;
    }
}

/* Half of the sections begin where the one before ends, in the guest, in the host, or in both. */
static int put_map(fixture *f)
{
    vhost_section sections[PAGES];
    size_t count = 0;
    uint64_t first = 0, of_ram = 0;
    memset(pages, 0, sizeof pages);
    while (first < PAGES) {
        uint64_t size = 1 + roll(SECTION_MOST);
        size = size < PAGES - first ? size : PAGES - first;
        of_ram = roll(2) ? roll(FIXTURE_PAGES - SECTION_MOST) : of_ram;
        of_ram = of_ram + size <= FIXTURE_PAGES ? of_ram : 0;
        sections[count] = fixture_section(f, first * VHOST_PAGE, size, of_ram);
        sections[count].flags = roll(8) == 7 ? VHOST_SECTION_ROM : 0;
        put_section(f, first, size, of_ram, sections[count].flags != 0);
        count++;
        of_ram += size;
        first += size + (roll(2) ? roll(4) : 0);
    }
    return fixture_map(f, sections, count);
}

/* Where it is in the host, if all of it is in one piece there, and of one kind; or NULL. */
static const unsigned char *find(uint64_t gpa, uint64_t size, bool write)
{
    uint64_t first = gpa / VHOST_PAGE, last = (gpa + size - 1) / VHOST_PAGE;
    if (gpa + size < gpa || last >= PAGES || !pages[first].host) {
        return NULL;
    }
    for (uint64_t i = first; i <= last; i++) {
        if (pages[i].host != pages[first].host + (i - first) * VHOST_PAGE ||
            pages[i].writable != pages[first].writable || (write && !pages[i].writable)) {
            return NULL;
        }
    }
    return pages[first].host + gpa % VHOST_PAGE;
}

/* ---- queues in it ---- */

static uint64_t address(void)
{
    uint64_t near = roll(PAGES) * VHOST_PAGE;
    switch (roll(4)) {
    case 0:
        return near + roll(VHOST_PAGE);
    case 1:
        return fuzz_number(the_chance);
    default:
        return near + 16 * roll(256);
    }
}

static void lay_out(vhost_queue *queue)
{
    queue->ready = roll(8) != 7;
    queue->size = (uint32_t)(roll(8) == 7 ? fuzz_number(the_chance) : UINT64_C(1) << roll(16));
    queue->desc = address();
    queue->avail = address();
    queue->used = address();
}

static bool part_fits(uint64_t gpa, uint64_t size, uint64_t align, bool write)
{
    return gpa % align == 0 && find(gpa, size, write) != NULL;
}

static bool split_fits(const vhost_queue *queue, uint64_t event)
{
    uint64_t n = queue->size;
    return (n & (n - 1)) == 0 && part_fits(queue->desc, 16 * n, 16, false) &&
           part_fits(queue->avail, 4 + 2 * n + event, 2, false) &&
           part_fits(queue->used, 4 + 8 * n + event, 4, true);
}

static bool packed_fits(const vhost_queue *queue)
{
    return part_fits(queue->desc, 16 * (uint64_t)queue->size, 16, true) &&
           part_fits(queue->avail, 4, 4, false) && part_fits(queue->used, 4, 4, true);
}

static bool fits(const fixture *f, const vhost_queue *queue)
{
    bool packed = vhost_features_test(&f->accepted, VHOST_FEATURE_RING_PACKED);
    bool event = vhost_features_test(&f->accepted, VHOST_FEATURE_EVENT_IDX);
    return queue->size > 0 && queue->size <= 32768 &&
           (packed ? packed_fits(queue) : split_fits(queue, event ? 2 : 0));
}

static enum greatest_test_res check_hosts(const vhost_queue *queue)
{
    const uint64_t asked[] = {queue->desc, queue->avail, queue->used};
    for (int part = 0; part < 3; part++) {
        const vhost_mapping *mapping = &queue->rings.part[part];
        ASSERT_U64(asked[part], mapping->gpa);
        ASSERT_PTR(find(mapping->gpa, mapping->size, false), mapping->host);
    }
    PASS();
}

static enum greatest_test_res start_anywhere(fixture *f)
{
    bool all = true;
    fixture_fill(f, 0);
    for (int q = 0; q < FIXTURE_QUEUES; q++) {
        lay_out(&f->queue[0][q]);
        all = all && (!f->queue[0][q].ready || fits(f, &f->queue[0][q]));
    }
    int code = vhost_device_start(&f->device[0]);
    ASSERT(all ? code == 0 : code < 0);
    for (int q = 0; q < FIXTURE_QUEUES && all; q++) {
        CHECK_CALL(f->queue[0][q].ready ? check_hosts(&f->queue[0][q]) : GREATEST_TEST_RES_PASS);
    }
    CHECK_CALL(fixture_check(f));
    ASSERT_OK(vhost_device_stop(&f->device[0]));
    PASS();
}

static enum greatest_test_res run_queues(fixture *f)
{
    uint64_t optional = roll(2) << VHOST_FEATURE_EVENT_IDX | roll(2) << VHOST_FEATURE_RING_PACKED;
    f->accepted.word[0] |= optional;
    f->mock[0].facts.offered.word[0] |= f->accepted.word[0];
    ASSERT_OK(put_map(f));
    ASSERT_OK(fixture_attach(f, 0));
    while (!dice_ended(the_chance)) {
        CHECK_CALL(start_anywhere(f));
        CHECK_CALL(fixture_check(f));
    }
    PASS();
}

/* ---- the whole ---- */

static enum greatest_test_res run_sections(fixture *f)
{
    model_tally done;
    memset(&done, 0, sizeof done);
    return model_run(f, the_chance, MAPS, &done);
}

enum greatest_test_res fuzz_once(dice *chance)
{
    the_chance = chance;
    mock_mode mode = roll(2) ? MOCK_QUEUED : MOCK_SYNCHRONOUS;
    return fixture_run(roll(2) ? run_queues : run_sections, mode);
}
