/* Behind a vIOMMU: rings, misses, what is forgotten, and what the vIOMMU is asked: >>iotlb. */
#include "exhaust.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define PAGE   VHOST_PAGE
#define RINGS  UINT64_C(0x7f1200000000) /* IOVA of the rings: 64 KiB for each queue */
#define BUFFER UINT64_C(0x550000000000) /* IOVA of whatever else a test maps */
#define MIB    UINT64_C(0x100000)
#define GIB    UINT64_C(0x40000000)

enum {
    RO = VHOST_PERMIT_READ,
    WO = VHOST_PERMIT_WRITE,
    RW = VHOST_PERMIT_READ | VHOST_PERMIT_WRITE,
    MAPPINGS = 64,
    RING_PAGES = 6, /* two for each part: each begins in one and ends in the other */
    LOW_PAGES = FIXTURE_PAGES / 2
};

static const uint64_t low_size = LOW_PAGES * VHOST_PAGE;

/* ---- the vIOMMU: a list of mappings, and books ---- */

typedef struct viommu {
    fixture *f;
    vhost_translation map[MAPPINGS];
    unsigned count;
    const vhost_translation *lie; /* the answer for all but rings */
    bool careless;                /* answers whatever the access */
    int refusal;                  /* of watch(on) */
    unsigned translations;
    unsigned watches; /* calls */
    int watching;     /* devices */
    char misuse[80];  /* the first; empty: none */
} viommu;

static viommu the;

static void misused(const char *how)
{
    if (the.misuse[0] == '\0') {
        (void)snprintf(the.misuse, sizeof the.misuse, "%s", how);
    }
}

static int translate(vhost_device *device, uint64_t iova, bool write, vhost_translation *entry,
                     void *user)
{
    fixture *f = (fixture *)user;
    uint8_t wanted = write ? WO : RO;
    the.translations++;
    if (device->options.memory->watch != NULL && the.watching == 0) {
        misused("a translation that is not watched");
    }
    if (fault_strikes(&f->fault, FAULT_MAPPING, VHOST_OP_NONE, -1)) {
        return -EFAULT;
    }
    if (the.lie && (iova < RINGS || iova - RINGS >= MIB)) {
        *entry = *the.lie;
        return 0;
    }
    for (unsigned i = 0; i < the.count; i++) {
        const vhost_translation *one = &the.map[i];
        bool holds = iova >= one->iova && iova - one->iova < one->size;
        if (holds && (the.careless || (one->permit & wanted))) {
            *entry = *one;
            return 0;
        }
    }
    return -EFAULT;
}

static int watch(vhost_device *device, bool on, void *user)
{
    fixture *f = (fixture *)user;
    the.watches++;
    if (!on) {
        if (the.watching-- == 0) {
            misused("off without on");
        }
        if (mock_runs(&f->mock[device - f->device])) {
            misused("off while a ring runs");
        }
        return 0;
    }
    if (fault_strikes(&f->fault, FAULT_NOTIFIER, VHOST_OP_NONE, -1)) {
        return -EMFILE;
    }
    the.watching += the.refusal == 0;
    return the.refusal;
}

static const vhost_memory_ops viommu_ops = {NULL, NULL, translate, watch};
static const vhost_memory_ops unwatched_ops = {NULL, NULL, translate, NULL};

static void map_iova(uint64_t iova, uint64_t size, uint64_t gpa, uint8_t permit)
{
    vhost_translation *entry = &the.map[the.count++];
    entry->iova = iova;
    entry->size = size;
    entry->gpa = gpa;
    entry->permit = permit;
}

/* ---- rings, each over six pages that lie scattered in the guest ---- */

static uint64_t window(unsigned q)
{
    return RINGS + UINT64_C(0x10000) * q;
}

static unsigned life; /* of the guest: another one has its rings elsewhere */

static uint64_t gpa_of(unsigned q, unsigned page)
{
    static const unsigned scatter[RING_PAGES] = {5, 0, 3, 1, 4, 2};
    uint64_t place = 8 + 40 * life + RING_PAGES * q + scatter[page];
    return (page % 2 ? FIXTURE_HIGH : 0) + place * PAGE;
}

static uint8_t permit_of(unsigned page)
{
    return page < 4 ? RO : RW;
}

static void map_scattered(void)
{
    the.count = 0;
    for (unsigned q = 0; q < FIXTURE_QUEUES; q++) {
        for (unsigned page = 0; page < RING_PAGES; page++) {
            map_iova(window(q) + page * PAGE, PAGE, gpa_of(q, page), permit_of(page));
        }
    }
}

static void place_rings(fixture *f)
{
    fixture_fill(f, 0);
    for (unsigned q = 0; q < FIXTURE_QUEUES; q++) {
        f->queue[0][q].desc = window(q) + 0x800;
        f->queue[0][q].avail = window(q) + 0x2f00;
        f->queue[0][q].used = window(q) + 0x4c00;
    }
}

static unsigned char *host_of(const fixture *f, uint64_t gpa)
{
    vhost_extent extent;
    return vhost_memory_find(&f->vm, gpa, &extent) == 0 ? (unsigned char *)extent.host : NULL;
}

static void set_used(fixture *f, unsigned q, uint16_t index)
{
    unsigned char *used = host_of(f, gpa_of(q, 4) + 0xc00);
    used[2] = (unsigned char)index;
    used[3] = (unsigned char)(index >> 8);
}

/* ---- arranging ---- */

static int set_log(void *backend, const vhost_log_memory *memory)
{
    (void)backend;
    return memory->base != NULL ? 0 : -EINVAL;
}

/* Anew, also after fixture_renew: all devices can work behind the vIOMMU, and can log. */
static void arrange(fixture *f)
{
    memset(&the, 0, sizeof the);
    the.f = f;
    life = 0;
    f->device_options.memory = &viommu_ops;
    vhost_features_set(&f->accepted, VHOST_FEATURE_ACCESS_PLATFORM);
    for (unsigned d = 0; d < FIXTURE_DEVICES; d++) {
        mock_backend *mock = &f->mock[d];
        mock_add_iotlb(mock);
        vhost_features_set(&mock->facts.offered, VHOST_FEATURE_ACCESS_PLATFORM);
        vhost_features_set(&mock->facts.offered, VHOST_FEATURE_LOG_ALL);
        mock->facts.log_kind = VHOST_DIRTY_PRIVATE;
        if (!mock->ops.set_log) {
            mock->ops.set_log = set_log;
        }
    }
    map_scattered();
}

static int stopped(fixture *f)
{
    int result = fixture_stopped_device(f);
    place_rings(f);
    return result;
}

static int running(fixture *f)
{
    int result = stopped(f);
    return result < 0 ? result : vhost_device_start(&f->device[0]);
}

static int running_anew(fixture *f)
{
    int result = running(f);
    mock_forget(&f->mock[0]);
    the.translations = 0;
    return result;
}

static int map_three(fixture *f)
{
    vhost_section sections[3];
    sections[0] = f->low;
    sections[1] = f->high;
    sections[2] = fixture_section(f, FIXTURE_REMOTE, 4, 60);
    return fixture_map(f, sections, 3);
}

/* ---- checking ---- */

/* The state of every device; and the vIOMMU watched for just those that run behind it. */
static enum greatest_test_res check(fixture *f)
{
    int behind = 0;
    CHECK_CALL(fixture_check(f));
    ASSERT_STR_EQ("", the.misuse);
    for (unsigned d = 0; d < FIXTURE_DEVICES; d++) {
        const mock_backend *mock = &f->mock[d];
        bool runs = f->device[d].state == VHOST_STATE_RUNNING;
        behind += runs && vhost_features_test(&mock->features, VHOST_FEATURE_ACCESS_PLATFORM);
        ASSERT(!runs || mock_iotlb_is_sound(mock));
    }
    if (f->device_options.memory == &viommu_ops) {
        ASSERT_INT(behind, the.watching);
    }
    PASS();
}

static enum greatest_test_res rings_are_reachable(const fixture *f)
{
    for (uint32_t q = 0; q < FIXTURE_QUEUES; q++) {
        ASSERT(!f->queue[0][q].started || mock_reaches_ring(&f->mock[0], q));
    }
    PASS();
}

static const mock_call *call_at(const fixture *f, int place)
{
    const mock_calls *calls = &f->mock[0].calls;
    return place >= 0 && (size_t)place < calls->count ? &calls->at[place] : NULL;
}

/* The call at *next is this message; goes on to the next one. */
static enum greatest_test_res sends(const fixture *f, int *next, vhost_iotlb_type type,
                                    uint64_t iova, uint64_t size)
{
    const mock_call *call = call_at(f, (*next)++);
    ASSERT(call != NULL);
    ASSERT_STR_EQ(vhost_op_name(VHOST_OP_IOTLB_SEND), vhost_op_name(call->op));
    ASSERT_INT(type, call->entry.type);
    ASSERT_U64(iova, call->entry.iova);
    ASSERT_U64(size, call->entry.size);
    PASS();
}

static enum greatest_test_res forgets_all(const fixture *f, int *next)
{
    return sends(f, next, VHOST_TLB_UNMAP, 0, UINT64_MAX);
}

static enum greatest_test_res leads_to(const fixture *f, const vhost_iotlb *entry, uint64_t gpa,
                                       uint8_t permit)
{
    ASSERT_U64(gpa, entry->gpa);
    ASSERT_PTR(host_of(f, gpa), entry->host);
    ASSERT_UINT(permit, entry->permit);
    PASS();
}

/* From *next on: each of the pages of the ring by itself, in order. */
static enum greatest_test_res maps_ring(const fixture *f, unsigned q, int *next)
{
    for (unsigned page = 0; page < RING_PAGES; page++) {
        int place = *next;
        CHECK_CALL(sends(f, next, VHOST_TLB_MAP, window(q) + page * PAGE, PAGE));
        CHECK_CALL(leads_to(f, &call_at(f, place)->entry, gpa_of(q, page), permit_of(page)));
    }
    PASS();
}

/* From *next on: all is forgotten, and then all rings are mapped. */
static enum greatest_test_res begins_anew(const fixture *f, int *next)
{
    CHECK_CALL(forgets_all(f, next));
    for (unsigned q = 0; q < FIXTURE_QUEUES; q++) {
        CHECK_CALL(maps_ring(f, q, next));
    }
    return rings_are_reachable(f);
}

static unsigned sent(const fixture *f)
{
    return mock_count(&f->mock[0], VHOST_OP_IOTLB_SEND, -1);
}

static enum greatest_test_res start_fails(fixture *f, int code, vhost_why why)
{
    mock_forget(&f->mock[0]);
    ASSERT_FAILS(f, vhost_device_start(&f->device[0]), &f->device[0].last_error, code, why);
    ASSERT_INT(VHOST_STATE_STOPPED, f->device[0].state);
    return check(f);
}

static enum greatest_test_res start_and_stop(fixture *f)
{
    ASSERT_OK(vhost_device_start(&f->device[0]));
    CHECK_CALL(check(f));
    CHECK_CALL(rings_are_reachable(f));
    ASSERT_OK(vhost_device_stop(&f->device[0]));
    return check(f);
}

static enum greatest_test_res is_broken(fixture *f, int code, vhost_why why)
{
    ASSERT_INT(VHOST_STATE_BROKEN, f->device[0].state);
    ASSERT_UINT(1, f->broken[0]);
    ASSERT_INT(code, f->device[0].last_error.code);
    ASSERT_INT(why, f->device[0].last_error.why);
    ASSERT_INT(0, the.watching);
    return check(f);
}

static int send_message(fixture *f, vhost_iotlb_type type, uint64_t iova, uint8_t permit)
{
    vhost_iotlb message;
    memset(&message, 0, sizeof message);
    message.type = type;
    message.iova = iova;
    message.permit = permit;
    return vhost_iotlb_message(&f->device[0], &message);
}

static int miss(fixture *f, uint64_t iova, uint8_t permit)
{
    return send_message(f, VHOST_TLB_MISS, iova, permit);
}

/* ---- who is behind a vIOMMU ---- */

static bool sent_platform(const fixture *f)
{
    return vhost_features_test(&f->mock[0].features, VHOST_FEATURE_ACCESS_PLATFORM);
}

TEST access_platform_is_sent_if_accepted_behind_a_viommu(fixture *f)
{
    ASSERT_OK(running(f));
    ASSERT(sent_platform(f));
    PASS();
}

TEST a_driver_that_does_not_accept_it_works_as_without_a_viommu(fixture *f)
{
    static vhost_memory_ops ops;
    ops = viommu_ops;
    ops.map = fixture_memory_ops.map;
    ops.unmap = fixture_memory_ops.unmap;
    f->device_options.memory = &ops;
    vhost_features_clear(&f->accepted, VHOST_FEATURE_ACCESS_PLATFORM);
    ASSERT_OK(fixture_running_device(f));
    ASSERT_FALSE(sent_platform(f));
    ASSERT_FALSE(f->mock[0].rings[1].addresses.iova);
    ASSERT_UINT(3 * FIXTURE_QUEUES, f->maps);
    ASSERT_OK(map_three(f));
    ASSERT_OK(fixture_map_default(f));
    ASSERT_OK(vhost_device_unmapped(&f->device[0], 0, PAGE));
    ASSERT_OK(vhost_device_stop(&f->device[0]));
    ASSERT_UINT(0, sent(f));
    ASSERT_UINT(0, the.translations);
    ASSERT_UINT(0, the.watches);
    PASS();
}

TEST it_is_not_sent_where_there_is_no_viommu(fixture *f)
{
    f->device_options.memory = NULL;
    ASSERT_OK(fixture_running_device(f));
    ASSERT_FALSE(sent_platform(f));
    ASSERT_UINT(0, sent(f));
    PASS();
}

TEST memory_ops_without_translation_are_no_viommu(fixture *f)
{
    f->device_options.memory = &fixture_memory_ops;
    ASSERT_OK(fixture_running_device(f));
    ASSERT_FALSE(sent_platform(f));
    ASSERT_UINT(3 * FIXTURE_QUEUES, f->maps);
    ASSERT_UINT(0, sent(f));
    PASS();
}

TEST behind_a_viommu_rings_are_translated_and_not_mapped(fixture *f)
{
    static vhost_memory_ops ops;
    ops = viommu_ops;
    ops.map = fixture_memory_ops.map;
    ops.unmap = fixture_memory_ops.unmap;
    f->device_options.memory = &ops;
    ASSERT_OK(running(f));
    CHECK_CALL(rings_are_reachable(f));
    ASSERT_OK(vhost_device_stop(&f->device[0]));
    ASSERT_UINT(0, f->maps);
    ASSERT_UINT(0, f->written[VHOST_USED]);
    PASS();
}

TEST a_back_end_without_an_iotlb_cannot_work_behind_a_viommu(fixture *f)
{
    f->mock[0].ops.iotlb_send = NULL;
    ASSERT_OK(stopped(f));
    CHECK_CALL(start_fails(f, -ENOTSUP, VHOST_WHY_IOTLB_UNSUPPORTED));
    ASSERT_UINT(0, f->mock[0].calls.count);
    ASSERT_UINT(0, the.watches);
    PASS();
}

/* The VMM offers the bit by itself, the driver takes it, and the back-end does not know it. */
TEST a_back_end_without_the_feature_cannot_work_behind_a_viommu(fixture *f)
{
    vhost_features_clear(&f->mock[0].facts.offered, VHOST_FEATURE_ACCESS_PLATFORM);
    vhost_features_clear(&f->mock[0].facts.its_bits, VHOST_FEATURE_ACCESS_PLATFORM);
    ASSERT_OK(stopped(f));
    CHECK_CALL(start_fails(f, -ENOTSUP, VHOST_WHY_IOTLB_UNSUPPORTED));
    ASSERT_UINT(0, f->mock[0].calls.count);
    PASS();
}

TEST a_viommu_that_needs_no_watch_has_none(fixture *f)
{
    f->device_options.memory = &unwatched_ops;
    ASSERT_OK(stopped(f));
    CHECK_CALL(start_and_stop(f));
    return start_and_stop(f);
}

/* ---- start ---- */

TEST rings_are_mapped_before_any_of_them_is_set_up(fixture *f)
{
    const mock_backend *mock = &f->mock[0];
    ASSERT_OK(running(f));
    int next = mock_find(mock, VHOST_OP_IOTLB_SEND, -1, 0);
    ASSERT(mock_find(mock, VHOST_OP_SET_FEATURES, -1, 0) < next);
    ASSERT(mock_find(mock, VHOST_OP_SET_TABLE, -1, 0) < next);
    CHECK_CALL(begins_anew(f, &next));
    ASSERT_INT(next, mock_find(mock, VHOST_OP_SET_RING_CALL, -1, 0));
    ASSERT_INT(-1, mock_find(mock, VHOST_OP_IOTLB_SEND, -1, next));
    ASSERT_UINT(FIXTURE_QUEUES * RING_PAGES, the.translations);
    PASS();
}

TEST rings_are_told_by_iova(fixture *f)
{
    ASSERT_OK(running(f));
    for (unsigned q = 0; q < FIXTURE_QUEUES; q++) {
        const vhost_ring_addresses *ring = &f->mock[0].rings[q].addresses;
        ASSERT(ring->iova);
        ASSERT_U64(window(q) + 0x4c00, ring->part[VHOST_USED].address);
        ASSERT_U64(gpa_of(q, 4) + 0xc00, ring->part[VHOST_USED].gpa);
        ASSERT_PTR(host_of(f, gpa_of(q, 4) + 0xc00), ring->part[VHOST_USED].host);
        ASSERT_PTR(host_of(f, gpa_of(q, 0) + 0x800), ring->part[VHOST_DESC].host);
        ASSERT_U64(4 + 8 * FIXTURE_RING_SIZE, ring->part[VHOST_USED].size);
    }
    PASS();
}

TEST behind_a_viommu_nobody_sees_whether_a_device_has_settled(fixture *f)
{
    ASSERT_OK(running(f));
    ASSERT_INT(0, vhost_device_settled(&f->device[0]));
    PASS();
}

TEST queues_that_are_not_ready_are_not_translated(fixture *f)
{
    ASSERT_OK(stopped(f));
    f->queue[0][1].ready = false;
    ASSERT_OK(vhost_device_start(&f->device[0]));
    ASSERT_UINT(1 + 2 * RING_PAGES, sent(f));
    ASSERT_UINT(2 * RING_PAGES, the.translations);
    PASS();
}

TEST the_watch_lasts_from_before_the_first_translation_to_the_end(fixture *f)
{
    ASSERT_OK(stopped(f));
    ASSERT_UINT(0, the.watches);
    ASSERT_OK(vhost_device_start(&f->device[0]));
    ASSERT_INT(1, the.watching);
    ASSERT_OK(vhost_queue_stop(&f->device[0], 0));
    ASSERT_OK(vhost_queue_stop(&f->device[0], 1));
    ASSERT_OK(vhost_queue_stop(&f->device[0], 2));
    ASSERT_INT(1, the.watching);
    ASSERT_OK(vhost_device_stop(&f->device[0]));
    ASSERT_OK(vhost_device_stop(&f->device[0]));
    ASSERT_INT(0, the.watching);
    ASSERT_UINT(2, the.watches);
    PASS();
}

TEST a_watch_that_is_refused_refuses_the_start(fixture *f)
{
    ASSERT_OK(stopped(f));
    the.refusal = -EMFILE;
    CHECK_CALL(start_fails(f, -EMFILE, VHOST_WHY_IOTLB_UNSUPPORTED));
    ASSERT_UINT(1, the.watches);
    ASSERT_UINT(0, the.translations);
    ASSERT_UINT(0, f->mock[0].calls.count);
    the.refusal = 0;
    return start_and_stop(f);
}

/* What was never watched is not given up when the device breaks later. */
TEST a_break_after_a_refused_watch_ends_no_watch(fixture *f)
{
    ASSERT_OK(stopped(f));
    the.refusal = -EMFILE;
    CHECK_CALL(start_fails(f, -EMFILE, VHOST_WHY_IOTLB_UNSUPPORTED));
    fixture_break(f, 0);
    ASSERT_INT(VHOST_STATE_BROKEN, f->device[0].state);
    ASSERT_INT(0, the.watching);
    return check(f);
}

/* Each of these sizes holds all rings; what is sent are the pages of the parts and no more. */
TEST large_entries_are_clipped_to_the_pages_of_a_ring(fixture *f)
{
    static const uint64_t sizes[] = {0x27000, 0x70000, 2 * MIB, GIB};
    ASSERT_OK(stopped(f));
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        the.count = 0;
        map_iova(RINGS, sizes[i], 0x1000, RW);
        mock_forget(&f->mock[0]);
        CHECK_CALL(start_and_stop(f));
        int next = mock_find(&f->mock[0], VHOST_OP_IOTLB_SEND, -1, 0) + 1;
        for (unsigned q = 0; q < FIXTURE_QUEUES; q++) {
            for (unsigned page = 0; page < RING_PAGES; page += 2) {
                uint64_t iova = window(q) + page * PAGE;
                CHECK_CALL(sends(f, &next, VHOST_TLB_MAP, iova, 2 * PAGE));
                CHECK_CALL(leads_to(f, &call_at(f, next - 1)->entry, iova - RINGS + 0x1000, RW));
            }
        }
    }
    PASS();
}

TEST an_entry_that_begins_outside_of_memory_may_hold_a_ring(fixture *f)
{
    the.count = 0;
    map_iova(RINGS - GIB / 2, GIB, FIXTURE_HIGH - GIB / 2, RW);
    ASSERT_OK(running(f));
    const vhost_mapping *used = &f->mock[0].rings[1].addresses.part[VHOST_USED];
    ASSERT_U64(FIXTURE_HIGH + 0x14c00, used->gpa);
    ASSERT_PTR(host_of(f, used->gpa), used->host);
    int next = mock_find(&f->mock[0], VHOST_OP_IOTLB_SEND, -1, 0) + 1;
    CHECK_CALL(sends(f, &next, VHOST_TLB_MAP, RINGS, 2 * PAGE));
    return rings_are_reachable(f);
}

/* Two regions that are neighbours in the guest and not in the host, under one entry. */
TEST a_ring_over_two_regions_is_made_of_two_pieces(fixture *f)
{
    vhost_section sections[2];
    sections[0] = fixture_section(f, 0, 5, 0);
    sections[1] = fixture_section(f, 5 * PAGE, 64, 100);
    the.count = 0;
    map_iova(RINGS, 2 * MIB, 0, RW);
    ASSERT_OK(stopped(f));
    ASSERT_OK(fixture_map(f, sections, 2));
    CHECK_CALL(start_and_stop(f));
    int next = mock_find(&f->mock[0], VHOST_OP_IOTLB_SEND, -1, 0) + 3;
    CHECK_CALL(sends(f, &next, VHOST_TLB_MAP, RINGS + 4 * PAGE, PAGE));
    ASSERT_PTR(f->host + 4 * PAGE, call_at(f, next - 1)->entry.host);
    CHECK_CALL(sends(f, &next, VHOST_TLB_MAP, RINGS + 5 * PAGE, PAGE));
    ASSERT_PTR(f->host + 100 * PAGE, call_at(f, next - 1)->entry.host);
    PASS();
}

TEST a_ring_may_end_with_the_address_space(fixture *f)
{
    uint64_t last = UINT64_C(0) - PAGE;
    ASSERT_OK(stopped(f));
    map_iova(last, PAGE, 0x3000, RW);
    f->queue[0][1].size = 64;
    f->queue[0][1].avail = UINT64_C(0) - (4 + 2 * 64);
    CHECK_CALL(start_and_stop(f));
    f->queue[0][1].avail += 2;
    return start_fails(f, -EOVERFLOW, VHOST_WHY_RING_WRAPS);
}

/* Permission is checked here too: not every vIOMMU does. */
TEST rings_need_the_permissions_for_what_is_done_to_them(fixture *f)
{
    static const uint8_t refused[RING_PAGES] = {WO, WO, WO, WO, RO, RO};
    ASSERT_OK(stopped(f));
    for (int careless = 0; careless < 2; careless++) {
        the.careless = careless != 0;
        for (unsigned page = 0; page < RING_PAGES; page++) {
            the.map[RING_PAGES + page].permit = refused[page];
            CHECK_CALL(start_fails(f, -EFAULT, VHOST_WHY_IOTLB_UNMAPPED));
            CHECK_CALL(fixture_names(&f->device[0].last_error, VHOST_OP_NONE, 1));
            ASSERT_UINT(0, f->mock[0].calls.count);
            the.map[RING_PAGES + page].permit = permit_of(page);
        }
    }
    return start_and_stop(f);
}

TEST the_used_ring_needs_no_permission_to_be_read(fixture *f)
{
    ASSERT_OK(stopped(f));
    the.map[4].permit = the.map[5].permit = WO;
    CHECK_CALL(start_and_stop(f));
    ASSERT_UINT(WO,
                call_at(f, mock_find(&f->mock[0], VHOST_OP_IOTLB_SEND, -1, 0) + 5)->entry.permit);
    PASS();
}

TEST descriptors_of_a_packed_ring_are_written(fixture *f)
{
    vhost_features_set(&f->accepted, VHOST_FEATURE_RING_PACKED);
    ASSERT_OK(stopped(f));
    CHECK_CALL(start_fails(f, -EFAULT, VHOST_WHY_IOTLB_UNMAPPED));
    for (unsigned q = 0; q < FIXTURE_QUEUES; q++) {
        the.map[RING_PAGES * q].permit = the.map[RING_PAGES * q + 1].permit = RW;
    }
    return start_and_stop(f);
}

TEST each_page_of_a_ring_must_be_mapped(fixture *f)
{
    ASSERT_OK(stopped(f));
    for (unsigned i = 0; i < FIXTURE_QUEUES * RING_PAGES; i++) {
        uint64_t size = the.map[i].size;
        the.map[i].size = 0;
        CHECK_CALL(start_fails(f, -EFAULT, VHOST_WHY_IOTLB_UNMAPPED));
        CHECK_CALL(fixture_names(&f->device[0].last_error, VHOST_OP_NONE, (int)(i / RING_PAGES)));
        ASSERT_UINT(0, f->mock[0].calls.count);
        the.map[i].size = size;
    }
    return start_and_stop(f);
}

TEST rings_lead_to_memory_of_the_table(fixture *f)
{
    ASSERT_OK(stopped(f));
    f->high.flags = VHOST_SECTION_DIRTY_TRACKED;
    ASSERT_OK(fixture_map_default(f));
    CHECK_CALL(start_fails(f, -EFAULT, VHOST_WHY_IOTLB_UNMAPPED));
    f->high.flags = 0;
    ASSERT_OK(fixture_map_default(f));
    return start_and_stop(f);
}

/* ---- translations that make no sense ---- */

static const vhost_translation lies[] = {
    {0, 0, 0, 0},
    {BUFFER, 0, 0x3000, RW},
    {BUFFER, PAGE, 0x3000, 0},
    {BUFFER + PAGE, PAGE, 0x3000, RW},
    {BUFFER - PAGE, PAGE, 0x3000, RW},
    {BUFFER, PAGE, FIXTURE_REMOTE, RW},
    {BUFFER, PAGE, LOW_PAGES *VHOST_PAGE, RW},
    {BUFFER, PAGE, UINT64_C(0) - PAGE, RW},
    {BUFFER - 2 * PAGE, 4 * PAGE, UINT64_C(0) - 2 * PAGE, RW}, /* wraps around to gpa 0 */
    {BUFFER - GIB, UINT64_MAX, UINT64_C(0) - GIB + PAGE, RW},
    {BUFFER, UINT64_C(0) - BUFFER + PAGE, 0x3000, RW}, /* over the end of the IOVAs */
    {UINT64_MAX, UINT64_MAX, 0x3000, RW},
};

TEST absurd_translations_are_no_answer_to_a_miss(fixture *f)
{
    ASSERT_OK(running_anew(f));
    for (size_t i = 0; i < sizeof lies / sizeof *lies; i++) {
        the.lie = &lies[i];
        ASSERT_FAILS(f, miss(f, BUFFER, RO), &f->device[0].last_error, -EFAULT,
                     VHOST_WHY_IOTLB_UNMAPPED);
        ASSERT_UINT(0, sent(f));
    }
    the.lie = NULL;
    return check(f);
}

TEST an_entry_without_size_is_no_answer(fixture *f)
{
    static const vhost_translation empty = {0, 0, 0, RW};
    ASSERT_OK(running_anew(f));
    the.lie = &empty;
    for (uint64_t iova = 0; iova < 4 * PAGE; iova += PAGE) {
        ASSERT_INT(-EFAULT, miss(f, iova, RO));
    }
    the.lie = NULL;
    ASSERT_UINT(0, sent(f));
    return check(f);
}

TEST absurd_translations_hold_no_ring(fixture *f)
{
    ASSERT_OK(stopped(f));
    f->queue[0][1].ready = false;
    f->queue[0][2].ready = false;
    f->queue[0][0].desc = BUFFER;
    for (size_t i = 0; i < sizeof lies / sizeof *lies; i++) {
        the.lie = &lies[i];
        CHECK_CALL(start_fails(f, -EFAULT, VHOST_WHY_IOTLB_UNMAPPED));
        ASSERT_UINT(0, f->mock[0].calls.count);
    }
    the.lie = NULL;
    PASS();
}

/* Whatever the answer to an entry of no whole pages is, it leads to memory of the region. */
TEST entries_that_begin_within_a_page_do_not_lead_out_of_memory(fixture *f)
{
    static const vhost_translation odd = {BUFFER, 0x3000, FIXTURE_HIGH - 0x800, RW};
    ASSERT_OK(running_anew(f));
    the.lie = &odd;
    int result = miss(f, BUFFER + 0x900, RO);
    the.lie = NULL;
    ASSERT(result == -EFAULT || result == 0);
    ASSERT(result < 0 || mock_reaches(&f->mock[0], BUFFER + 0x900, 1, RO));
    return check(f);
}

TEST entries_of_less_than_a_page_hold_no_ring(fixture *f)
{
    ASSERT_OK(stopped(f));
    f->queue[0][1].ready = false;
    f->queue[0][2].ready = false;
    f->queue[0][0].size = 1;
    f->queue[0][0].desc = BUFFER;
    for (unsigned i = 0; i < 16; i++) {
        map_iova(BUFFER + i, 1, 0x3000 + i, RW);
    }
    return start_fails(f, -EFAULT, VHOST_WHY_IOTLB_UNMAPPED);
}

/* ---- misses ---- */

typedef struct answer {
    vhost_translation entry;
    uint64_t miss;
    uint64_t iova, size, gpa; /* of the answer */
} answer;

static const answer answers[] = {
    {{BUFFER, PAGE, 0x3000, RW}, BUFFER + 0x123, BUFFER, PAGE, 0x3000},
    {{BUFFER, 0x10000, 0x20000, RW}, BUFFER + 0x8765, BUFFER, 0x10000, 0x20000},
    {{BUFFER, 0x10000, 0x20000, RW}, BUFFER + 0xffff, BUFFER, 0x10000, 0x20000},
    /* cut at the end of the region */
    {{BUFFER, 2 * MIB, 0, RW}, BUFFER + 0x2345, BUFFER, 0x80000, 0},
    {{BUFFER, GIB, 0x1000, RW}, BUFFER, BUFFER, 0x7f000, 0x1000},
    {{BUFFER + PAGE, 3 * PAGE, 0x7d000, RO}, BUFFER + PAGE, BUFFER + PAGE, 0x3000, 0x7d000},
    {{BUFFER, 5 * PAGE, 0x7e000, RO}, BUFFER + 0x1fff, BUFFER, 0x2000, 0x7e000},
    {{0, UINT64_MAX, 0, RW}, 0x12345, 0, 0x80000, 0},
    {{UINT64_C(0) - PAGE, PAGE, 0x3000, RW}, UINT64_MAX, UINT64_C(0) - PAGE, PAGE, 0x3000},
    /* and at its begin */
    {{BUFFER, GIB, FIXTURE_HIGH - GIB / 2, RW},
     BUFFER + GIB / 2 + 0x5678,
     BUFFER + GIB / 2,
     0x80000,
     FIXTURE_HIGH},
    {{BUFFER, GIB / 2 + 3 * PAGE, FIXTURE_HIGH - GIB / 2, RW},
     BUFFER + GIB / 2 + 0x1fff,
     BUFFER + GIB / 2,
     3 * PAGE,
     FIXTURE_HIGH},
};

TEST a_miss_is_answered_with_its_entry_cut_to_the_region(fixture *f)
{
    ASSERT_OK(running_anew(f));
    for (size_t i = 0; i < sizeof answers / sizeof *answers; i++) {
        const answer *a = &answers[i];
        the.lie = &a->entry;
        the.translations = 0;
        mock_forget(&f->mock[0]);
        ASSERT_OK(vhost_device_unmapped(&f->device[0], 0, UINT64_MAX));
        ASSERT_OK(miss(f, a->miss, RO));
        int next = 1;
        CHECK_CALL(sends(f, &next, VHOST_TLB_MAP, a->iova, a->size));
        CHECK_CALL(leads_to(f, &call_at(f, 1)->entry, a->gpa, a->entry.permit));
        ASSERT_UINT(2, f->mock[0].calls.count);
        ASSERT_UINT(1, the.translations);
        CHECK_CALL(check(f));
    }
    the.lie = NULL;
    PASS();
}

/* What the entry permits, and not just what was asked: less would be refused, not missed, next. */
TEST an_answer_has_the_permissions_of_its_entry(fixture *f)
{
    static const uint8_t permits[] = {RO, WO, RW};
    ASSERT_OK(running_anew(f));
    the.careless = true;
    map_iova(BUFFER, PAGE, 0x3000, 0);
    for (uint8_t asked = RO; asked <= RW; asked++) {
        for (size_t i = 0; i < sizeof permits / sizeof *permits; i++) {
            uint8_t needed = asked == RO ? RO : WO;
            the.map[the.count - 1].permit = permits[i];
            mock_forget(&f->mock[0]);
            if ((permits[i] & needed) == 0) {
                ASSERT_INT(-EFAULT, miss(f, BUFFER, asked));
                ASSERT_UINT(0, sent(f));
                continue;
            }
            ASSERT_OK(miss(f, BUFFER, asked));
            ASSERT_UINT(permits[i], call_at(f, 0)->entry.permit);
        }
    }
    PASS();
}

TEST a_write_to_a_read_only_entry_is_not_answered(fixture *f)
{
    ASSERT_OK(running_anew(f));
    map_iova(BUFFER, PAGE, 0x3000, RO);
    ASSERT_FAILS(f, miss(f, BUFFER, WO), &f->device[0].last_error, -EFAULT,
                 VHOST_WHY_IOTLB_UNMAPPED);
    ASSERT_UINT(0, sent(f));
    ASSERT_OK(miss(f, BUFFER, RO));
    PASS();
}

static const vhost_trace *last_trace(const fixture *f)
{
    return &f->traces[(f->trace_count - 1) % FIXTURE_TRACES];
}

TEST a_miss_without_translation_is_told_and_not_answered(fixture *f)
{
    ASSERT_OK(running_anew(f));
    ASSERT_FAILS(f, miss(f, BUFFER + 7, WO), &f->device[0].last_error, -EFAULT,
                 VHOST_WHY_IOTLB_UNMAPPED);
    ASSERT(strstr(f->device[0].last_error.text, "0x550000000007") != NULL);
    ASSERT_UINT(0, f->mock[0].calls.count);
    ASSERT_INT(VHOST_STATE_RUNNING, f->device[0].state);
    ASSERT_INT(VHOST_TRACE_MISS, last_trace(f)->event);
    ASSERT_U64(BUFFER + 7, last_trace(f)->gpa);
    ASSERT_INT(-EFAULT, last_trace(f)->result);
    CHECK_CALL(check(f));
    map_iova(BUFFER, PAGE, 0x3000, RW);
    ASSERT_OK(miss(f, BUFFER + 7, WO));
    ASSERT_INT(VHOST_TRACE_MISS, last_trace(f)->event);
    ASSERT_INT(0, last_trace(f)->result);
    ASSERT_INT(WO, (int)last_trace(f)->value);
    return check(f);
}

TEST other_messages_than_misses_are_refused(fixture *f)
{
    vhost_error *error = &f->device[0].last_error;
    ASSERT_OK(running_anew(f));
    ASSERT_FAILS(f, send_message(f, VHOST_TLB_FAIL, window(0), RW), error, -ENOTSUP,
                 VHOST_WHY_IOTLB_MESSAGE);
    for (int type = 0; type < 8; type++) {
        if (type == VHOST_TLB_MISS || type == VHOST_TLB_FAIL) {
            continue;
        }
        ASSERT_FAILS(f, send_message(f, (vhost_iotlb_type)type, window(0), RW), error, -EINVAL,
                     VHOST_WHY_IOTLB_MESSAGE);
    }
    ASSERT_UINT(0, f->mock[0].calls.count);
    ASSERT_INT(VHOST_STATE_RUNNING, f->device[0].state);
    return check(f);
}

TEST misses_of_a_device_that_does_not_run_are_refused(fixture *f)
{
    ASSERT_INT(-EBUSY, miss(f, window(0), RO));
    ASSERT_OK(stopped(f));
    ASSERT_FAILS(f, miss(f, window(0), RO), &f->device[0].last_error, -EBUSY, VHOST_WHY_STATE);
    ASSERT_OK(vhost_device_start(&f->device[0]));
    ASSERT_OK(miss(f, window(0), RO));
    ASSERT_OK(vhost_device_stop(&f->device[0]));
    mock_forget(&f->mock[0]);
    ASSERT_INT(-EBUSY, miss(f, window(0), RO));
    fixture_break(f, 0);
    ASSERT_INT(-EIO, miss(f, window(0), RO));
    ASSERT_UINT(0, sent(f));
    PASS();
}

/* ---- misses in a fence ---- */

static unsigned asks;
static int answered; /* to the last one */

static void ask(mock_backend *mock, void *user)
{
    vhost_iotlb message;
    (void)user;
    memset(&message, 0, sizeof message);
    message.type = VHOST_TLB_MISS;
    message.iova = BUFFER;
    message.permit = RO;
    asks++;
    answered = vhost_iotlb_message(mock->device, &message);
}

static void ask_once_and_refuse(mock_backend *mock, void *user)
{
    mock->in_fence = NULL;
    mock_refuse(mock, VHOST_OP_IOTLB_SEND, -1, -EPERM);
    ask(mock, user);
    mock_revive(mock);
}

TEST a_miss_in_the_fence_of_a_start_is_answered(fixture *f)
{
    ASSERT_OK(stopped(f));
    map_iova(BUFFER, PAGE, 70 * PAGE, RO);
    unsigned before = f->mock[0].fences;
    f->mock[0].in_fence = ask;
    asks = 0;
    ASSERT_OK(vhost_device_start(&f->device[0]));
    ASSERT_UINT(1, asks);
    ASSERT_OK(answered);
    ASSERT_UINT(before + 1, f->mock[0].fences);
    ASSERT(mock_reaches(&f->mock[0], BUFFER, PAGE, RO));
    return check(f);
}

TEST a_miss_in_the_fence_of_a_recovery_is_answered(fixture *f)
{
    vhost_features_set(&f->accepted, VHOST_FEATURE_IN_ORDER);
    ASSERT_OK(running(f));
    map_iova(BUFFER, PAGE, 70 * PAGE, RO);
    fixture_break(f, 0);
    mock_revive(&f->mock[0]);
    ask(&f->mock[0], f);
    ASSERT_INT(-EIO, answered); /* still broken */
    f->mock[0].in_fence = ask;
    ASSERT_OK(vhost_device_recover(&f->device[0]));
    ASSERT_OK(answered);
    ASSERT(mock_reaches(&f->mock[0], BUFFER, PAGE, RO));
    return check(f);
}

TEST a_miss_in_the_fence_of_a_stop_is_answered(fixture *f)
{
    ASSERT_OK(running(f));
    map_iova(BUFFER, PAGE, 70 * PAGE, RO);
    f->mock[0].in_fence = ask;
    ASSERT_OK(vhost_device_stop(&f->device[0]));
    ASSERT_OK(answered);
    ASSERT(mock_reaches(&f->mock[0], BUFFER, PAGE, RO));
    ASSERT_INT(VHOST_POSITION_CERTAIN, f->queue[0][0].position.state);
    return check(f);
}

TEST a_miss_in_the_fence_of_a_commit_leads_to_the_new_memory(fixture *f)
{
    ASSERT_OK(running(f));
    map_iova(BUFFER, PAGE, FIXTURE_REMOTE, RO);
    f->mock[0].in_fence = ask;
    ASSERT_OK(map_three(f));
    ASSERT_OK(answered);
    ASSERT(mock_reaches(&f->mock[0], BUFFER, PAGE, RO));
    CHECK_CALL(check(f));
    ASSERT_OK(fixture_map_default(f)); /* takes it away */
    ASSERT_INT(-EFAULT, answered);
    ASSERT_INT(VHOST_STATE_RUNNING, f->device[0].state);
    return check(f);
}

TEST a_miss_of_a_device_that_a_commit_cuts_off_leads_to_no_new_memory(fixture *f)
{
    vhost_section sections[2];
    sections[0] = f->low; /* without the high half of the rings */
    sections[1] = fixture_section(f, FIXTURE_REMOTE, 4, 60);
    ASSERT_OK(running(f));
    map_iova(BUFFER, PAGE, FIXTURE_REMOTE, RO);
    f->mock[0].in_fence = ask;
    ASSERT_OK(fixture_map(f, sections, 2));
    ASSERT_INT(-EFAULT, answered);
    CHECK_CALL(is_broken(f, -EFAULT, VHOST_WHY_RING_UNMAPPED));
    return check(f);
}

/* Only in slots: the rings are stopped, the region changes, and they go on, reachable. */
static int first_answer;

static void ask_and_keep_the_first(mock_backend *mock, void *user)
{
    ask(mock, user);
    first_answer = asks == 1 ? answered : first_answer;
}

TEST rings_behind_a_viommu_go_on_after_a_change_of_slots(fixture *f)
{
    vhost_section sections[3];
    f->mock[0].facts.profile = VHOST_PROFILE_SLOTS;
    f->ram.fd = 5;
    ASSERT_OK(map_three(f));
    ASSERT_OK(fixture_attach(f, 0));
    place_rings(f);
    ASSERT_OK(vhost_device_start(&f->device[0]));
    map_iova(BUFFER, PAGE, FIXTURE_REMOTE + 4 * PAGE, RO); /* in what is to come */
    mock_forget(&f->mock[0]);
    f->mock[0].in_fence = ask_and_keep_the_first;
    asks = 0;
    sections[0] = f->low;
    sections[1] = f->high;
    sections[2] = fixture_section(f, FIXTURE_REMOTE, 5, 60);
    ASSERT_OK(fixture_map(f, sections, 3));
    ASSERT_INT(VHOST_STATE_RUNNING, f->device[0].state);
    ASSERT_UINT(1, mock_count(&f->mock[0], VHOST_OP_GET_RING_BASE, 1));
    ASSERT_UINT(2, asks);
    ASSERT_INT(-EFAULT, first_answer); /* it had the old table */
    ASSERT_OK(answered);
    CHECK_CALL(rings_are_reachable(f));
    return check(f);
}

TEST a_miss_in_a_fence_leaves_the_batch_as_it_was(fixture *f)
{
    ASSERT_OK(stopped(f));
    map_iova(BUFFER, PAGE, 70 * PAGE, RO);
    f->mock[0].in_fence = ask;
    mock_refuse_unless(&f->mock[0], VHOST_OP_SET_RUNNING, -1, 0, -EPERM);
    ASSERT_FAILS(f, vhost_device_start(&f->device[0]), &f->device[0].last_error, -EPERM,
                 VHOST_WHY_BACKEND_REFUSED);
    ASSERT_OK(answered);
    CHECK_CALL(fixture_names(&f->device[0].last_error, VHOST_OP_SET_RUNNING, -1));
    return check(f);
}

/* Refused at once, it is told at once, and changes nothing; later, it is the fence that fails. */
TEST an_answer_in_a_fence_that_fails_is_told_once(fixture *f)
{
    ASSERT_OK(stopped(f));
    map_iova(BUFFER, PAGE, 70 * PAGE, RO);
    f->mock[0].in_fence = ask_once_and_refuse;
    bool at_once = f->mode == MOCK_QUEUED_REFUSING;
    ASSERT_INT(at_once ? 0 : -EPERM, vhost_device_start(&f->device[0]));
    ASSERT_INT(at_once ? -EPERM : 0, answered);
    ASSERT_UINT(1, f->errors);
    ASSERT_INT(VHOST_OP_IOTLB_SEND, f->last_message.what.op);
    return check(f);
}

TEST misses_without_a_viommu_are_refused(fixture *f)
{
    f->device_options.memory = NULL;
    ASSERT_OK(fixture_running_device(f));
    ASSERT_FAILS(f, miss(f, 0x3000, RO), &f->device[0].last_error, -EINVAL,
                 VHOST_WHY_IOTLB_MESSAGE);
    ASSERT_UINT(0, sent(f));
    ASSERT_INT(VHOST_STATE_RUNNING, f->device[0].state);
    return check(f);
}

TEST an_answer_that_is_refused_leaves_the_device_running(fixture *f)
{
    ASSERT_OK(running_anew(f));
    mock_refuse(&f->mock[0], VHOST_OP_IOTLB_SEND, -1, -ENOSPC);
    ASSERT_FAILS(f, miss(f, window(0), RO), &f->device[0].last_error, -ENOSPC,
                 VHOST_WHY_BACKEND_REFUSED);
    CHECK_CALL(fixture_names(&f->device[0].last_error, VHOST_OP_IOTLB_SEND, -1));
    ASSERT_INT(VHOST_STATE_RUNNING, f->device[0].state);
    mock_revive(&f->mock[0]);
    ASSERT_OK(miss(f, window(0), RO));
    return check(f);
}

/* ---- what the vIOMMU unmaps ---- */

TEST just_what_was_unmapped_is_forgotten(fixture *f)
{
    static const uint64_t ranges[][2] = {
        {RINGS, PAGE},   {BUFFER, 3 * PAGE},         {BUFFER + 0x10, 0x20},
        {0, UINT64_MAX}, {UINT64_C(0) - PAGE, PAGE}, {UINT64_MAX, 1}};
    ASSERT_OK(running_anew(f));
    for (size_t i = 0; i < sizeof ranges / sizeof *ranges; i++) {
        int next = (int)i;
        ASSERT_OK(vhost_device_unmapped(&f->device[0], ranges[i][0], ranges[i][1]));
        CHECK_CALL(sends(f, &next, VHOST_TLB_UNMAP, ranges[i][0], ranges[i][1]));
        ASSERT_UINT(i + 1, f->mock[0].calls.count);
        ASSERT_FALSE(mock_is_pending(&f->mock[0]));
    }
    ASSERT_UINT(0, the.translations);
    return check(f);
}

TEST unmapped_ranges_that_are_none_are_refused(fixture *f)
{
    static const uint64_t ranges[][2] = {
        {BUFFER, 0}, {0, 0}, {UINT64_MAX, 2}, {2, UINT64_MAX}, {UINT64_C(0) - PAGE, PAGE + 1}};
    ASSERT_OK(running_anew(f));
    for (size_t i = 0; i < sizeof ranges / sizeof *ranges; i++) {
        ASSERT_FAILS(f, vhost_device_unmapped(&f->device[0], ranges[i][0], ranges[i][1]),
                     &f->device[0].last_error, -EINVAL, VHOST_WHY_ARGUMENT);
    }
    ASSERT_UINT(0, sent(f));
    ASSERT_INT(VHOST_STATE_RUNNING, f->device[0].state);
    return check(f);
}

TEST unmapping_concerns_only_who_runs_behind_a_viommu(fixture *f)
{
    vhost_device *device = &f->device[0];
    ASSERT_OK(vhost_device_unmapped(device, RINGS, PAGE));
    ASSERT_OK(stopped(f));
    ASSERT_OK(vhost_device_unmapped(device, RINGS, PAGE));
    ASSERT_OK(vhost_device_start(device));
    ASSERT_OK(vhost_device_stop(device));
    mock_forget(&f->mock[0]);
    ASSERT_OK(vhost_device_unmapped(device, RINGS, PAGE));
    ASSERT_OK(vhost_device_unmapped(device, RINGS, 0));
    fixture_break(f, 0);
    ASSERT_OK(vhost_device_unmapped(device, RINGS, PAGE));
    ASSERT_UINT(0, sent(f));
    ASSERT_UINT(0, f->errors);
    return check(f);
}

TEST a_back_end_that_does_not_forget_is_cut_off(fixture *f)
{
    ASSERT_OK(running(f));
    mock_refuse(&f->mock[0], VHOST_OP_IOTLB_SEND, -1, -EPERM);
    ASSERT_INT(-EPERM, vhost_device_unmapped(&f->device[0], BUFFER, PAGE));
    CHECK_CALL(is_broken(f, -EPERM, VHOST_WHY_BACKEND_REFUSED));
    CHECK_CALL(fixture_names(&f->device[0].last_error, VHOST_OP_IOTLB_SEND, -1));
    ASSERT_UINT(1, f->errors);
    PASS();
}

/* No entry that was sent since touches the page of the ring that was unmapped. */
static enum greatest_test_res stays_unmapped(const fixture *f, unsigned page)
{
    ASSERT_FALSE(mock_reaches(&f->mock[0], window(1) + page * PAGE, 1, RW));
    for (size_t i = 0; i < f->mock[0].calls.count; i++) {
        const mock_call *call = &f->mock[0].calls.at[i];
        ASSERT(call->op != VHOST_OP_IOTLB_SEND || call->entry.type != VHOST_TLB_MAP ||
               call->entry.iova != window(1) + page * PAGE);
    }
    PASS();
}

TEST what_was_unmapped_is_not_mapped_again_unasked(fixture *f)
{
    for (unsigned page = 0; page < RING_PAGES; page++) {
        CHECK_CALL(fixture_renew(f));
        arrange(f);
        ASSERT_OK(running(f));
        ASSERT_OK(map_three(f));
        mock_forget(&f->mock[0]);
        ASSERT_OK(vhost_device_unmapped(&f->device[0], window(1) + page * PAGE, PAGE));
        ASSERT_OK(fixture_map_default(f)); /* takes memory away */
        CHECK_CALL(stays_unmapped(f, page));
        ASSERT_OK(vhost_log_start(&f->vm));
        CHECK_CALL(stays_unmapped(f, page));
        ASSERT_OK(vhost_log_stop(&f->vm));
        CHECK_CALL(stays_unmapped(f, page));
        ASSERT_OK(miss(f, window(1) + page * PAGE, page < 4 ? RO : WO));
        CHECK_CALL(rings_are_reachable(f));
        CHECK_CALL(check(f));
    }
    PASS();
}

/* ---- a new map ---- */

TEST a_commit_that_takes_memory_away_makes_the_back_end_forget(fixture *f)
{
    ASSERT_OK(running(f));
    ASSERT_OK(map_three(f));
    map_iova(BUFFER, PAGE, FIXTURE_REMOTE, RW);
    ASSERT_OK(miss(f, BUFFER, WO));
    mock_forget(&f->mock[0]);
    the.translations = 0;
    ASSERT_OK(fixture_map_default(f));
    ASSERT_STR_EQ("set_table", vhost_op_name(call_at(f, 0)->op));
    int next = 1;
    CHECK_CALL(begins_anew(f, &next));
    ASSERT_UINT((unsigned)next, f->mock[0].calls.count);
    ASSERT_UINT(FIXTURE_QUEUES * RING_PAGES, f->mock[0].iotlb_count);
    ASSERT_UINT(0, the.translations);
    ASSERT_INT(-EFAULT, miss(f, BUFFER, WO));
    return check(f);
}

TEST a_commit_that_adds_memory_makes_nobody_forget(fixture *f)
{
    ASSERT_OK(running_anew(f));
    ASSERT_OK(map_three(f));
    ASSERT_UINT(1, mock_count(&f->mock[0], VHOST_OP_SET_TABLE, -1));
    ASSERT_UINT(0, sent(f));
    map_iova(BUFFER, PAGE, FIXTURE_REMOTE, RW);
    ASSERT_OK(miss(f, BUFFER, WO));
    return check(f);
}

/* For the back-end's table it is another region, but no page of it went away. */
TEST a_region_that_grows_makes_nobody_forget(fixture *f)
{
    vhost_section sections[2];
    ASSERT_OK(running_anew(f));
    sections[0] = f->low;
    sections[0].size += PAGE;
    sections[1] = f->high;
    ASSERT_OK(fixture_map(f, sections, 2));
    ASSERT_UINT(1, mock_count(&f->mock[0], VHOST_OP_SET_TABLE, -1));
    ASSERT_UINT(0, sent(f));
    return check(f);
}

TEST a_queue_that_was_stopped_is_not_mapped_again(fixture *f)
{
    ASSERT_OK(running(f));
    ASSERT_OK(map_three(f));
    ASSERT_OK(vhost_queue_stop(&f->device[0], 1));
    mock_forget(&f->mock[0]);
    ASSERT_OK(fixture_map_default(f));
    int next = 1;
    CHECK_CALL(forgets_all(f, &next));
    CHECK_CALL(maps_ring(f, 0, &next));
    CHECK_CALL(maps_ring(f, 2, &next));
    ASSERT_UINT((unsigned)next, f->mock[0].calls.count);
    return check(f);
}

/* The default map without one page. */
static int map_without(fixture *f, uint64_t gpa)
{
    vhost_section sections[3];
    unsigned count = 0;
    for (unsigned half = 0; half < 2; half++) {
        uint64_t start = half ? FIXTURE_HIGH : 0;
        uint64_t first = half ? LOW_PAGES : 0, hole = (gpa - start) / PAGE;
        if (gpa < start || hole >= LOW_PAGES) {
            sections[count++] = half ? f->high : f->low;
            continue;
        }
        sections[count++] = fixture_section(f, start, hole, first);
        sections[count++] =
            fixture_section(f, start + (hole + 1) * PAGE, LOW_PAGES - hole - 1, first + hole + 1);
    }
    return fixture_map(f, sections, count);
}

TEST a_page_of_a_ring_that_vanishes_breaks_its_device(fixture *f)
{
    for (unsigned page = 0; page < RING_PAGES; page++) {
        CHECK_CALL(fixture_renew(f));
        arrange(f);
        ASSERT_OK(running(f));
        mock_advance(&f->mock[0], 1, 5);
        the.translations = 0;
        ASSERT_OK(map_without(f, gpa_of(1, page)));
        CHECK_CALL(is_broken(f, -EFAULT, VHOST_WHY_RING_UNMAPPED));
        CHECK_CALL(fixture_names(&f->device[0].last_error, VHOST_OP_NONE, 1));
        ASSERT_UINT(0, the.translations);
        ASSERT_UINT(5, f->queue[0][1].position.avail);
        ASSERT_INT(VHOST_POSITION_CERTAIN, f->queue[0][1].position.state);
    }
    PASS();
}

/* The pages beside those of the rings may come and go. */
TEST a_page_of_no_ring_may_vanish(fixture *f)
{
    ASSERT_OK(running(f));
    ASSERT_OK(map_without(f, 7 * PAGE));
    CHECK_CALL(rings_are_reachable(f));
    ASSERT_OK(map_without(f, FIXTURE_HIGH + 100 * PAGE));
    CHECK_CALL(rings_are_reachable(f));
    ASSERT_INT(VHOST_STATE_RUNNING, f->device[0].state);
    return check(f);
}

TEST what_else_a_large_entry_leads_to_may_vanish(fixture *f)
{
    the.count = 0;
    map_iova(RINGS, 2 * MIB, 0x1000, RW);
    ASSERT_OK(running(f));
    ASSERT_OK(map_without(f, 0x70000));
    ASSERT_INT(VHOST_STATE_RUNNING, f->device[0].state);
    CHECK_CALL(rings_are_reachable(f));
    CHECK_CALL(check(f));
    ASSERT_OK(map_without(f, 0x1000 + 0x25000)); /* the end of the last used ring */
    return is_broken(f, -EFAULT, VHOST_WHY_RING_UNMAPPED);
}

/* A ring runs in low memory, then low memory is cut in two in the middle of a descriptor table; the
   second part shows the backing from `moved` pages further on. */
static int run_and_cut(fixture *f, uint64_t moved)
{
    const uint64_t cut = 0x42; /* in pages */
    vhost_section sections[3];
    the.count = 0;
    map_iova(RINGS, 2 * MIB, 0x1000, RW);
    int result = stopped(f);
    f->queue[0][1].size = 1024;
    f->queue[0][1].desc = RINGS + 0x40000;
    result = result < 0 ? result : vhost_device_start(&f->device[0]);
    mock_forget(&f->mock[0]);
    sections[0] = fixture_section(f, 0, cut, 0);
    sections[1] = fixture_section(f, cut * PAGE, LOW_PAGES - cut, cut + moved);
    sections[1].flags = VHOST_SECTION_UNMERGEABLE;
    sections[2] = f->high;
    return result < 0 ? result : fixture_map(f, sections, 3);
}

/* The same memory at the same place, in two regions: nothing moved. */
TEST a_ring_of_which_the_region_is_cut_in_two_goes_on(fixture *f)
{
    ASSERT_OK(run_and_cut(f, 0));
    ASSERT_INT(VHOST_STATE_RUNNING, f->device[0].state);
    ASSERT_UINT(3, f->mock[0].table_count);
    ASSERT_UINT(0, sent(f));
    return check(f);
}

TEST a_ring_of_which_the_second_half_moves_breaks_its_device(fixture *f)
{
    ASSERT_OK(run_and_cut(f, 1));
    return is_broken(f, -EFAULT, VHOST_WHY_RING_MOVED);
}

/* Another process maps each region somewhere else. */
TEST a_ring_of_which_the_region_by_fd_is_cut_in_two_breaks_its_device(fixture *f)
{
    for (int profile = VHOST_PROFILE_BY_FD; profile <= VHOST_PROFILE_SLOTS; profile++) {
        CHECK_CALL(fixture_renew(f));
        arrange(f);
        f->ram.fd = 0;
        f->mock[0].facts.profile = (vhost_profile)profile;
        ASSERT_OK(run_and_cut(f, 0));
        CHECK_CALL(is_broken(f, -EFAULT, VHOST_WHY_RING_UNMAPPED));
    }
    PASS();
}

TEST a_ring_of_which_the_memory_is_replaced_breaks_its_device(fixture *f)
{
    ASSERT_OK(running(f));
    vhost_section sections[2];
    sections[0] = f->low;
    sections[1] = fixture_section(f, FIXTURE_HIGH, 64, 60);
    ASSERT_OK(fixture_map(f, sections, 2));
    return is_broken(f, -EFAULT, VHOST_WHY_RING_MOVED);
}

TEST a_used_ring_that_becomes_rom_breaks_its_device(fixture *f)
{
    ASSERT_OK(running(f));
    f->high.flags = VHOST_SECTION_ROM;
    ASSERT_OK(fixture_map_default(f));
    ASSERT_INT(VHOST_STATE_BROKEN, f->device[0].state);
    return check(f);
}

/* Whatever becomes of the device: no entry leads to memory that the back-end does not have. */
TEST no_entry_is_left_to_memory_that_back_ends_lose(fixture *f)
{
    ASSERT_OK(running(f));
    f->high.flags = VHOST_SECTION_DIRTY_TRACKED;
    ASSERT_OK(fixture_map_default(f));
    CHECK_CALL(check(f));
    ASSERT_STR_EQ("", f->mock[0].complaint);
    PASS();
}

TEST a_stopped_device_forgets_at_its_next_start(fixture *f)
{
    ASSERT_OK(running(f));
    ASSERT_OK(map_three(f));
    ASSERT_OK(vhost_device_stop(&f->device[0]));
    mock_forget(&f->mock[0]);
    ASSERT_OK(fixture_map_default(f));
    ASSERT_UINT(0, f->mock[0].calls.count);
    ASSERT_OK(vhost_device_start(&f->device[0]));
    int next = mock_find(&f->mock[0], VHOST_OP_IOTLB_SEND, -1, 0);
    CHECK_CALL(begins_anew(f, &next));
    return check(f);
}

TEST a_commit_whose_messages_are_refused_breaks_the_device(fixture *f)
{
    ASSERT_OK(running(f));
    ASSERT_OK(map_three(f));
    mock_refuse(&f->mock[0], VHOST_OP_IOTLB_SEND, -1, -EPERM);
    ASSERT_OK(fixture_map_default(f));
    CHECK_CALL(is_broken(f, -EPERM, VHOST_WHY_BACKEND_REFUSED));
    return fixture_names(&f->device[0].last_error, VHOST_OP_IOTLB_SEND, -1);
}

/* ---- one queue ---- */

TEST one_queue_comes_and_goes_behind_a_viommu(fixture *f)
{
    const mock_backend *mock = &f->mock[0];
    ASSERT_OK(running(f));
    mock_advance(&f->mock[0], 1, 3);
    mock_forget(&f->mock[0]);
    ASSERT_OK(vhost_queue_stop(&f->device[0], 1));
    ASSERT_UINT(0, sent(f));
    ASSERT_UINT(3, f->queue[0][1].position.avail);
    CHECK_CALL(check(f));
    ASSERT_OK(vhost_queue_start(&f->device[0], 1));
    int next = mock_find(mock, VHOST_OP_IOTLB_SEND, -1, 0);
    CHECK_CALL(maps_ring(f, 1, &next));
    ASSERT_INT(next, mock_find(mock, VHOST_OP_SET_RING_CALL, 1, 0));
    ASSERT_UINT(RING_PAGES, sent(f));
    CHECK_CALL(rings_are_reachable(f));
    return check(f);
}

TEST a_queue_may_come_back_elsewhere(fixture *f)
{
    ASSERT_OK(running(f));
    ASSERT_OK(vhost_queue_stop(&f->device[0], 1));
    ASSERT_OK(vhost_device_unmapped(&f->device[0], window(1), RING_PAGES * PAGE));
    the.map[RING_PAGES + 4].gpa = 0x60000;
    mock_forget(&f->mock[0]);
    ASSERT_OK(vhost_queue_start(&f->device[0], 1));
    ASSERT_U64(0x60c00, f->mock[0].rings[1].addresses.part[VHOST_USED].gpa);
    CHECK_CALL(rings_are_reachable(f));
    ASSERT_OK(map_without(f, gpa_of(1, 4)));
    ASSERT_INT(VHOST_STATE_RUNNING, f->device[0].state);
    return check(f);
}

TEST a_queue_without_translation_does_not_start(fixture *f)
{
    ASSERT_OK(running(f));
    ASSERT_OK(vhost_queue_stop(&f->device[0], 1));
    mock_forget(&f->mock[0]);
    the.map[RING_PAGES + 5].size = 0;
    ASSERT_FAILS(f, vhost_queue_start(&f->device[0], 1), &f->device[0].last_error, -EFAULT,
                 VHOST_WHY_IOTLB_UNMAPPED);
    ASSERT_UINT(0, f->mock[0].calls.count);
    ASSERT_OK(map_without(f, gpa_of(1, 0))); /* which it does not hold any more */
    ASSERT_INT(VHOST_STATE_RUNNING, f->device[0].state);
    return check(f);
}

/* ---- the guest begins a new life ---- */

static enum greatest_test_res reborn(fixture *f)
{
    vhost_device *device = &f->device[0];
    ASSERT_OK(vhost_device_stop(device));
    ASSERT_OK(vhost_device_reset(device));
    ASSERT_OK(vhost_device_ack(device, f->accepted));
    life = 1;
    map_scattered();
    place_rings(f);
    mock_forget(&f->mock[0]);
    ASSERT_OK(vhost_device_start(device));
    PASS();
}

TEST after_a_reset_nothing_is_left_of_old_translations(fixture *f)
{
    ASSERT_OK(running(f));
    uint64_t old = gpa_of(1, 4);
    CHECK_CALL(reborn(f));
    int next = mock_find(&f->mock[0], VHOST_OP_IOTLB_SEND, -1, 0);
    CHECK_CALL(begins_anew(f, &next));
    for (unsigned i = 0; i < f->mock[0].iotlb_count; i++) {
        ASSERT(f->mock[0].iotlb[i].gpa % FIXTURE_HIGH >= 48 * PAGE);
    }
    ASSERT_OK(map_without(f, old));
    ASSERT_INT(VHOST_STATE_RUNNING, f->device[0].state);
    CHECK_CALL(rings_are_reachable(f));
    return check(f);
}

/* Firmware that does not know the vIOMMU comes first after a reboot. */
TEST after_a_reset_a_driver_may_do_without_the_viommu(fixture *f)
{
    vhost_device *device = &f->device[0];
    ASSERT_OK(running(f));
    ASSERT_OK(vhost_device_stop(device));
    ASSERT_OK(vhost_device_reset(device));
    vhost_features_clear(&f->accepted, VHOST_FEATURE_ACCESS_PLATFORM);
    ASSERT_OK(vhost_device_ack(device, f->accepted));
    the.translations = the.watches = 0;
    mock_forget(&f->mock[0]);
    ASSERT_OK(fixture_start(f, 0));
    ASSERT_FALSE(sent_platform(f));
    ASSERT_UINT(0, sent(f));
    ASSERT_OK(vhost_device_stop(device));
    ASSERT_UINT(0, the.translations);
    ASSERT_UINT(0, the.watches);
    return check(f);
}

/* ---- the dirty log ---- */

typedef struct pages {
    uint64_t gpa[64];
    unsigned count;
} pages;

static void note_pages(uint64_t gpa, uint64_t size, void *user)
{
    pages *dirty = (pages *)user;
    for (; size; gpa += PAGE, size -= PAGE) {
        if (dirty->count < 64) {
            dirty->gpa[dirty->count] = gpa;
        }
        dirty->count++;
    }
}

static int sync_all(fixture *f, pages *dirty)
{
    vhost_log_sink sink;
    memset(dirty, 0, sizeof *dirty);
    memset(&sink, 0, sizeof sink);
    sink.range = note_pages;
    sink.user = dirty;
    return vhost_log_sync(&f->vm, 0, FIXTURE_HIGH + low_size, &sink);
}

static bool has_page(const pages *dirty, uint64_t gpa)
{
    for (unsigned i = 0; i < dirty->count && i < 64; i++) {
        if (dirty->gpa[i] == gpa) {
            return true;
        }
    }
    return false;
}

/* Both pages of these used rings are dirty, and nothing else. */
static enum greatest_test_res used_rings_are_dirty(fixture *f, unsigned from, unsigned to)
{
    pages dirty;
    ASSERT_OK(sync_all(f, &dirty));
    ASSERT_UINT(2 * (to - from), dirty.count);
    for (unsigned q = from; q < to; q++) {
        ASSERT(has_page(&dirty, gpa_of(q, 4)));
        ASSERT(has_page(&dirty, gpa_of(q, 5)));
    }
    PASS();
}

/* The guest tore the vIOMMU down before: nothing may depend on it any more. */
static void tear_down(void)
{
    the.count = 0;
    the.translations = 0;
}

TEST stop_leaves_used_rings_dirty_without_any_translation(fixture *f)
{
    ASSERT_OK(running(f));
    ASSERT_OK(vhost_log_start(&f->vm));
    CHECK_CALL(used_rings_are_dirty(f, 0, 0));
    tear_down();
    ASSERT_OK(vhost_queue_stop(&f->device[0], 0));
    CHECK_CALL(used_rings_are_dirty(f, 0, 1));
    ASSERT_OK(vhost_device_unmapped(&f->device[0], 0, UINT64_MAX));
    ASSERT_OK(vhost_device_stop(&f->device[0]));
    CHECK_CALL(used_rings_are_dirty(f, 1, 3));
    ASSERT_UINT(0, the.translations);
    ASSERT_OK(vhost_log_stop(&f->vm));
    return check(f);
}

TEST a_break_leaves_used_rings_dirty_too(fixture *f)
{
    ASSERT_OK(running(f));
    ASSERT_OK(vhost_log_start(&f->vm));
    tear_down();
    fixture_break(f, 0);
    CHECK_CALL(used_rings_are_dirty(f, 0, 3));
    ASSERT_UINT(0, the.translations);
    return check(f);
}

TEST a_commit_that_breaks_leaves_used_rings_dirty_too(fixture *f)
{
    ASSERT_OK(running(f));
    ASSERT_OK(vhost_log_start(&f->vm));
    tear_down();
    ASSERT_OK(map_without(f, gpa_of(1, 0)));
    CHECK_CALL(is_broken(f, -EFAULT, VHOST_WHY_RING_UNMAPPED));
    return used_rings_are_dirty(f, 0, 3);
}

TEST packed_rings_are_dirty_in_two_parts(fixture *f)
{
    pages dirty;
    vhost_features_set(&f->accepted, VHOST_FEATURE_RING_PACKED);
    ASSERT_OK(stopped(f));
    for (unsigned i = 0; i < the.count; i++) {
        the.map[i].permit = RW;
    }
    ASSERT_OK(vhost_log_start(&f->vm));
    ASSERT_OK(vhost_device_start(&f->device[0]));
    tear_down();
    ASSERT_OK(vhost_device_stop(&f->device[0]));
    ASSERT_OK(sync_all(f, &dirty));
    ASSERT_UINT(3 * FIXTURE_QUEUES, dirty.count);
    for (unsigned q = 0; q < FIXTURE_QUEUES; q++) {
        ASSERT(has_page(&dirty, gpa_of(q, 0)));
        ASSERT(has_page(&dirty, gpa_of(q, 1)));
        ASSERT(has_page(&dirty, gpa_of(q, 4)));
    }
    PASS();
}

TEST features_of_the_log_empty_the_iotlb_so_rings_are_mapped_again(fixture *f)
{
    const mock_backend *mock = &f->mock[0];
    ASSERT_OK(running_anew(f));
    ASSERT_OK(vhost_log_start(&f->vm));
    int next = mock_find(mock, VHOST_OP_SET_FEATURES, -1, 0) + 1;
    CHECK_CALL(begins_anew(f, &next));
    ASSERT_INT(next, mock_find(mock, VHOST_OP_SET_RING_ADDRESSES, 0, 0));
    CHECK_CALL(check(f));
    mock_forget(&f->mock[0]);
    ASSERT_OK(vhost_log_stop(&f->vm));
    next = mock_find(mock, VHOST_OP_SET_FEATURES, -1, 0) + 1;
    CHECK_CALL(begins_anew(f, &next));
    ASSERT_UINT(0, the.translations);
    return check(f);
}

TEST a_start_while_the_vm_logs_logs_behind_a_viommu(fixture *f)
{
    ASSERT_OK(stopped(f));
    ASSERT_OK(vhost_log_start(&f->vm));
    ASSERT_OK(vhost_device_start(&f->device[0]));
    ASSERT(f->mock[0].rings[1].addresses.log);
    ASSERT_U64(gpa_of(1, 4) + 0xc00, f->mock[0].rings[1].addresses.part[VHOST_USED].gpa);
    CHECK_CALL(rings_are_reachable(f));
    ASSERT_OK(vhost_device_stop(&f->device[0]));
    return used_rings_are_dirty(f, 0, 3);
}

/* ---- positions ---- */

TEST the_position_of_a_dead_back_end_stands_in_the_first_page_of_its_used_ring(fixture *f)
{
    vhost_features_set(&f->accepted, VHOST_FEATURE_IN_ORDER);
    ASSERT_OK(running(f));
    tear_down();
    for (unsigned q = 0; q < FIXTURE_QUEUES; q++) {
        set_used(f, q, (uint16_t)(0x1234 + q));
    }
    fixture_break(f, 0);
    for (unsigned q = 0; q < FIXTURE_QUEUES; q++) {
        ASSERT_INT(VHOST_POSITION_CERTAIN, f->queue[0][q].position.state);
        ASSERT_UINT(0x1234 + q, f->queue[0][q].position.avail);
    }
    ASSERT_UINT(0, the.translations);
    return check(f);
}

TEST stop_behind_a_viommu_hands_back_the_positions(fixture *f)
{
    ASSERT_OK(running(f));
    mock_advance(&f->mock[0], 0, 7);
    mock_advance(&f->mock[0], 2, 9);
    tear_down();
    ASSERT_OK(vhost_device_stop(&f->device[0]));
    ASSERT_UINT(7, f->queue[0][0].position.avail);
    ASSERT_UINT(0, f->queue[0][1].position.avail);
    ASSERT_UINT(9, f->queue[0][2].position.used);
    ASSERT_UINT(0, the.translations);
    return check(f);
}

/* ---- steady state ---- */

static enum greatest_test_res one_round(fixture *f)
{
    vhost_device *device = &f->device[0];
    ASSERT_OK(vhost_device_start(device));
    ASSERT_OK(miss(f, BUFFER, WO));
    ASSERT_OK(vhost_device_unmapped(device, BUFFER, PAGE));
    ASSERT_OK(vhost_queue_stop(device, 1));
    ASSERT_OK(vhost_queue_start(device, 1));
    ASSERT_OK(vhost_device_stop(device));
    PASS();
}

TEST a_steady_state_behind_a_viommu_allocates_nothing(fixture *f)
{
    ASSERT_OK(stopped(f));
    map_iova(BUFFER, PAGE, 0x3000, RW);
    CHECK_CALL(one_round(f));
    size_t before = f->allocation_calls;
    for (int i = 0; i < 5; i++) {
        CHECK_CALL(one_round(f));
    }
    ASSERT_UINT(before, f->allocation_calls);
    return check(f);
}

/* ---- two devices ---- */

TEST each_device_has_its_own_translations(fixture *f)
{
    ASSERT_OK(running(f));
    f->device_options.memory = NULL;
    vhost_features_clear(&f->accepted, VHOST_FEATURE_ACCESS_PLATFORM);
    ASSERT_OK(fixture_attach(f, 1));
    ASSERT_OK(fixture_start(f, 1));
    ASSERT_OK(map_three(f));
    ASSERT_OK(fixture_map_default(f));
    ASSERT_UINT(0, mock_count(&f->mock[1], VHOST_OP_IOTLB_SEND, -1));
    f->device_options.memory = &viommu_ops;
    CHECK_CALL(check(f));
    vhost_device_cleanup(&f->device[1]);
    return check(f);
}

/* ---- every call fails once ---- */

typedef struct operation {
    const char *name;
    int (*arrange)(fixture *f);
    int (*act)(fixture *f);
    bool of_vm;    /* tells its failures in vm.last_error */
    bool succeeds; /* also where a device breaks */
} operation;

static int started_before(fixture *f)
{
    int result = running(f);
    return result < 0 ? result : vhost_device_stop(&f->device[0]);
}

static int queue_stopped(fixture *f)
{
    int result = running(f);
    return result < 0 ? result : vhost_queue_stop(&f->device[0], 1);
}

static int with_more_memory(fixture *f)
{
    int result = running(f);
    return result < 0 ? result : map_three(f);
}

static int logging(fixture *f)
{
    int result = running(f);
    return result < 0 ? result : vhost_log_start(&f->vm);
}

static int act_start(fixture *f)
{
    return vhost_device_start(&f->device[0]);
}

static int act_stop(fixture *f)
{
    return vhost_device_stop(&f->device[0]);
}

static int act_queue_start(fixture *f)
{
    return vhost_queue_start(&f->device[0], 1);
}

static int act_queue_stop(fixture *f)
{
    return vhost_queue_stop(&f->device[0], 1);
}

static int act_miss(fixture *f)
{
    return miss(f, window(1), RO);
}

static int act_unmapped(fixture *f)
{
    return vhost_device_unmapped(&f->device[0], BUFFER, PAGE);
}

static int act_log_start(fixture *f)
{
    return vhost_log_start(&f->vm);
}

static int act_log_stop(fixture *f)
{
    return vhost_log_stop(&f->vm);
}

static const operation operations[] = {
    {"start", stopped, act_start, false, false},
    {"start again", started_before, act_start, false, false},
    {"stop", running, act_stop, false, false},
    {"stop of a device that logs", logging, act_stop, false, false},
    {"queue_start", queue_stopped, act_queue_start, false, false},
    {"queue_stop", running, act_queue_stop, false, false},
    {"miss", running, act_miss, false, false},
    {"unmapped", running, act_unmapped, false, false},
    {"commit", with_more_memory, fixture_map_default, true, true},
    {"log_start", running, act_log_start, true, true},
    {"log_stop", logging, act_log_stop, true, false}};

static int expected_code(const fault *failed)
{
    switch (failed->kind) {
    case FAULT_ALLOCATION:
        return failed->op == VHOST_OP_SET_LOG ? -EDQUOT : -ENOMEM;
    case FAULT_NOTIFIER:
        return -EMFILE;
    case FAULT_MAPPING:
        return -EFAULT;
    case FAULT_OPERATION:
        return failed->plan == FAULT_DEATH ? -ECONNRESET : -EPERM;
    }
    return 0;
}

static enum greatest_test_res judge(fixture *f, const operation *what, vhost_state before,
                                    int result)
{
    vhost_state state = f->device[0].state;
    const vhost_error *error = what->of_vm ? &f->vm.last_error : &f->device[0].last_error;
    ASSERT(state == before || state == VHOST_STATE_BROKEN ||
           (what->act == act_stop && state == VHOST_STATE_STOPPED));
    if (result < 0) {
        ASSERT_INT(expected_code(&f->fault), result);
        ASSERT_INT(result, error->code);
        ASSERT(f->errors >= 1);
    } else if (state == VHOST_STATE_BROKEN) {
        ASSERT(what->succeeds);
    }
    ASSERT_UINT(state == VHOST_STATE_BROKEN, f->broken[0]);
    return check(f);
}

/* From whatever state it is in, the device can be brought to run behind the vIOMMU again. */
static enum greatest_test_res runs_again(fixture *f)
{
    vhost_device *device = &f->device[0];
    mock_revive(&f->mock[0]);
    ASSERT_OK(vhost_log_stop(&f->vm));
    if (device->state == VHOST_STATE_BROKEN) {
        ASSERT_OK(vhost_device_reset(device));
        ASSERT_OK(vhost_device_ack(device, f->accepted));
    }
    ASSERT_OK(fixture_map_default(f));
    if (device->state == VHOST_STATE_STOPPED) {
        place_rings(f);
        f->queue[0][0].position.state = VHOST_POSITION_INITIAL;
        f->queue[0][1].position.state = VHOST_POSITION_INITIAL;
        f->queue[0][2].position.state = VHOST_POSITION_INITIAL;
        ASSERT_OK(vhost_device_start(device));
    }
    CHECK_CALL(rings_are_reachable(f));
    CHECK_CALL(check(f));
    ASSERT_OK(vhost_device_stop(device));
    return check(f);
}

static enum greatest_test_res let_fail(fixture *f, size_t number, fault_plan plan, unsigned nth,
                                       unsigned distance)
{
    const operation *what = &operations[number];
    CHECK_CALL(fixture_renew(f));
    arrange(f);
    ASSERT_OK(what->arrange(f));
    vhost_state before = f->device[0].state;
    fault_arm(&f->fault, plan, nth, distance);
    int result = what->act(f);
    fault_disarm(&f->fault);
    if (!f->fault.hit) {
        ASSERT_OK(result);
        PASS();
    }
    CHECK_CALL(judge(f, what, before, result));
    return runs_again(f);
}

static const char *name_of(size_t number)
{
    return operations[number].name;
}

static const exhaust_trial trial = {sizeof operations / sizeof *operations, name_of, let_fail};

TEST each_call_behind_a_viommu_fails_once(fixture *f)
{
    return exhaust(f, &trial, FAULT_ONCE);
}

TEST each_call_behind_a_viommu_fails_and_all_after_it(fixture *f)
{
    return exhaust(f, &trial, FAULT_EVER_AFTER);
}

TEST each_call_behind_a_viommu_fails_and_one_after_it(fixture *f)
{
    return exhaust_pairs(f, &trial, 8);
}

TEST the_back_end_dies_behind_a_viommu(fixture *f)
{
    return exhaust(f, &trial, FAULT_DEATH);
}

/* ---- the suite ---- */

static fixture_test *test_of_now;

static enum greatest_test_res run_behind(fixture *f)
{
    arrange(f);
    CHECK_CALL(test_of_now(f));
    CHECK_CALL(check(f));
    for (unsigned d = 0; d < FIXTURE_DEVICES; d++) {
        vhost_device_cleanup(&f->device[d]);
    }
    ASSERT_STR_EQ("", the.misuse);
    ASSERT_INT(0, the.watching);
    PASS();
}

#define RUN_FROM(TEST_NAME, MODE)                                                                  \
    do {                                                                                           \
        test_of_now = TEST_NAME;                                                                   \
        for (int mode = MODE; mode < MOCK_MODE_COUNT; mode++) {                                    \
            greatest_set_test_suffix(mock_mode_name((mock_mode)mode));                             \
            if (greatest_test_pre(#TEST_NAME) == 1) {                                              \
                greatest_test_post(fixture_run(run_behind, (mock_mode)mode));                      \
            }                                                                                      \
        }                                                                                          \
    } while (0)

#define RUN_BEHIND(TEST_NAME) RUN_FROM(TEST_NAME, MOCK_SYNCHRONOUS)
#define RUN_QUEUED(TEST_NAME) RUN_FROM(TEST_NAME, MOCK_QUEUED)

static void run_fences(void)
{
    RUN_QUEUED(a_miss_in_the_fence_of_a_start_is_answered);
    RUN_QUEUED(a_miss_in_the_fence_of_a_recovery_is_answered);
    RUN_QUEUED(a_miss_in_the_fence_of_a_stop_is_answered);
    RUN_QUEUED(a_miss_in_the_fence_of_a_commit_leads_to_the_new_memory);
    RUN_QUEUED(a_miss_of_a_device_that_a_commit_cuts_off_leads_to_no_new_memory);
    RUN_QUEUED(rings_behind_a_viommu_go_on_after_a_change_of_slots);
    RUN_QUEUED(a_miss_in_a_fence_leaves_the_batch_as_it_was);
    RUN_QUEUED(an_answer_in_a_fence_that_fails_is_told_once);
}

SUITE(iotlb_suite)
{
    run_fences();
    RUN_BEHIND(access_platform_is_sent_if_accepted_behind_a_viommu);
    RUN_BEHIND(a_driver_that_does_not_accept_it_works_as_without_a_viommu);
    RUN_BEHIND(it_is_not_sent_where_there_is_no_viommu);
    RUN_BEHIND(memory_ops_without_translation_are_no_viommu);
    RUN_BEHIND(behind_a_viommu_rings_are_translated_and_not_mapped);
    RUN_BEHIND(a_back_end_without_an_iotlb_cannot_work_behind_a_viommu);
    RUN_BEHIND(a_back_end_without_the_feature_cannot_work_behind_a_viommu);
    RUN_BEHIND(a_viommu_that_needs_no_watch_has_none);
    RUN_BEHIND(rings_are_mapped_before_any_of_them_is_set_up);
    RUN_BEHIND(rings_are_told_by_iova);
    RUN_BEHIND(behind_a_viommu_nobody_sees_whether_a_device_has_settled);
    RUN_BEHIND(queues_that_are_not_ready_are_not_translated);
    RUN_BEHIND(the_watch_lasts_from_before_the_first_translation_to_the_end);
    RUN_BEHIND(a_watch_that_is_refused_refuses_the_start);
    RUN_BEHIND(a_break_after_a_refused_watch_ends_no_watch);
    RUN_BEHIND(large_entries_are_clipped_to_the_pages_of_a_ring);
    RUN_BEHIND(an_entry_that_begins_outside_of_memory_may_hold_a_ring);
    RUN_BEHIND(a_ring_over_two_regions_is_made_of_two_pieces);
    RUN_BEHIND(a_ring_may_end_with_the_address_space);
    RUN_BEHIND(rings_need_the_permissions_for_what_is_done_to_them);
    RUN_BEHIND(the_used_ring_needs_no_permission_to_be_read);
    RUN_BEHIND(descriptors_of_a_packed_ring_are_written);
    RUN_BEHIND(each_page_of_a_ring_must_be_mapped);
    RUN_BEHIND(rings_lead_to_memory_of_the_table);
    RUN_BEHIND(absurd_translations_are_no_answer_to_a_miss);
    RUN_BEHIND(an_entry_without_size_is_no_answer);
    RUN_BEHIND(absurd_translations_hold_no_ring);
    RUN_BEHIND(entries_that_begin_within_a_page_do_not_lead_out_of_memory);
    RUN_BEHIND(entries_of_less_than_a_page_hold_no_ring);
    RUN_BEHIND(a_miss_is_answered_with_its_entry_cut_to_the_region);
    RUN_BEHIND(an_answer_has_the_permissions_of_its_entry);
    RUN_BEHIND(a_write_to_a_read_only_entry_is_not_answered);
    RUN_BEHIND(a_miss_without_translation_is_told_and_not_answered);
    RUN_BEHIND(other_messages_than_misses_are_refused);
    RUN_BEHIND(misses_of_a_device_that_does_not_run_are_refused);
    RUN_BEHIND(misses_without_a_viommu_are_refused);
    RUN_BEHIND(an_answer_that_is_refused_leaves_the_device_running);
    RUN_BEHIND(just_what_was_unmapped_is_forgotten);
    RUN_BEHIND(unmapped_ranges_that_are_none_are_refused);
    RUN_BEHIND(unmapping_concerns_only_who_runs_behind_a_viommu);
    RUN_BEHIND(a_back_end_that_does_not_forget_is_cut_off);
    RUN_BEHIND(what_was_unmapped_is_not_mapped_again_unasked);
    RUN_BEHIND(a_commit_that_takes_memory_away_makes_the_back_end_forget);
    RUN_BEHIND(a_commit_that_adds_memory_makes_nobody_forget);
    RUN_BEHIND(a_region_that_grows_makes_nobody_forget);
    RUN_BEHIND(a_queue_that_was_stopped_is_not_mapped_again);
    RUN_BEHIND(a_page_of_a_ring_that_vanishes_breaks_its_device);
    RUN_BEHIND(a_page_of_no_ring_may_vanish);
    RUN_BEHIND(what_else_a_large_entry_leads_to_may_vanish);
    RUN_BEHIND(a_ring_of_which_the_region_is_cut_in_two_goes_on);
    RUN_BEHIND(a_ring_of_which_the_second_half_moves_breaks_its_device);
    RUN_BEHIND(a_ring_of_which_the_region_by_fd_is_cut_in_two_breaks_its_device);
    RUN_BEHIND(a_ring_of_which_the_memory_is_replaced_breaks_its_device);
    RUN_BEHIND(a_used_ring_that_becomes_rom_breaks_its_device);
    RUN_BEHIND(no_entry_is_left_to_memory_that_back_ends_lose);
    RUN_BEHIND(a_stopped_device_forgets_at_its_next_start);
    RUN_BEHIND(a_commit_whose_messages_are_refused_breaks_the_device);
    RUN_BEHIND(one_queue_comes_and_goes_behind_a_viommu);
    RUN_BEHIND(a_queue_may_come_back_elsewhere);
    RUN_BEHIND(a_queue_without_translation_does_not_start);
    RUN_BEHIND(after_a_reset_nothing_is_left_of_old_translations);
    RUN_BEHIND(after_a_reset_a_driver_may_do_without_the_viommu);
    RUN_BEHIND(stop_leaves_used_rings_dirty_without_any_translation);
    RUN_BEHIND(a_break_leaves_used_rings_dirty_too);
    RUN_BEHIND(a_commit_that_breaks_leaves_used_rings_dirty_too);
    RUN_BEHIND(packed_rings_are_dirty_in_two_parts);
    RUN_BEHIND(features_of_the_log_empty_the_iotlb_so_rings_are_mapped_again);
    RUN_BEHIND(a_start_while_the_vm_logs_logs_behind_a_viommu);
    RUN_BEHIND(the_position_of_a_dead_back_end_stands_in_the_first_page_of_its_used_ring);
    RUN_BEHIND(stop_behind_a_viommu_hands_back_the_positions);
    RUN_BEHIND(a_steady_state_behind_a_viommu_allocates_nothing);
    RUN_BEHIND(each_device_has_its_own_translations);
    RUN_BEHIND(each_call_behind_a_viommu_fails_once);
    RUN_BEHIND(each_call_behind_a_viommu_fails_and_all_after_it);
    RUN_BEHIND(each_call_behind_a_viommu_fails_and_one_after_it);
    RUN_BEHIND(the_back_end_dies_behind_a_viommu);
}
