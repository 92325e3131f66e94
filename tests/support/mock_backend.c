#include "mock_backend.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifdef __GNUC__
__attribute__((format(printf, 2, 3)))
#endif
static void
complain(mock_backend *mock, const char *format, ...)
{
    /* What comes behind a failure in the same batch cannot know of it. */
    if (mock->complaint[0] == '\0' && !mock->failed) {
        va_list arguments;
        va_start(arguments, format);
        vsnprintf(mock->complaint, sizeof mock->complaint, format, arguments);
        va_end(arguments);
    }
}

/* ---- the record ---- */

static void free_regions(mock_call *call)
{
    free(call->to);
    free(call->from);
    call->to = NULL;
    call->from = NULL;
}

static mock_call *record(mock_backend *mock, const mock_call *call)
{
    mock_calls *calls = &mock->calls;
    if (calls->count == calls->capacity) {
        calls->capacity = calls->capacity ? 2 * calls->capacity : 64;
        mock_call *larger = (mock_call *)realloc(calls->at, calls->capacity * sizeof *larger);
        if (!larger) {
            abort();
        }
        calls->at = larger;
    }
    calls->at[calls->count] = *call;
    return &calls->at[calls->count++];
}

void mock_forget(mock_backend *mock)
{
    if (mock_is_pending(mock)) {
        complain(mock, "something still awaits its fence");
    }
    for (size_t i = 0; i < mock->calls.count; i++) {
        free_regions(&mock->calls.at[i]);
    }
    mock->calls.count = 0;
    mock->fenced = 0;
}

static bool matches(const mock_call *call, vhost_op op, int queue)
{
    return call->op == op && (queue == -1 || call->queue == queue);
}

int mock_find(const mock_backend *mock, vhost_op op, int queue, int start)
{
    for (size_t i = (size_t)start; i < mock->calls.count; i++) {
        if (matches(&mock->calls.at[i], op, queue)) {
            return (int)i;
        }
    }
    return -1;
}

unsigned mock_count(const mock_backend *mock, vhost_op op, int queue)
{
    unsigned count = 0;
    for (size_t i = 0; i < mock->calls.count; i++) {
        count += matches(&mock->calls.at[i], op, queue);
    }
    return count;
}

const mock_call *mock_last(const mock_backend *mock, vhost_op op, int queue)
{
    const mock_call *last = NULL;
    for (size_t i = 0; i < mock->calls.count; i++) {
        if (matches(&mock->calls.at[i], op, queue)) {
            last = &mock->calls.at[i];
        }
    }
    return last;
}

bool mock_is_pending(const mock_backend *mock)
{
    for (size_t i = mock->fenced; i < mock->calls.count; i++) {
        if (mock->calls.at[i].result >= 0) {
            return true;
        }
    }
    return false;
}

/* ---- rings ---- */

bool mock_ring_runs(const mock_backend *mock, uint32_t queue)
{
    const mock_ring *ring = &mock->rings[queue];
    return mock->opened && !mock->severed && !mock->dead && ring->kick_set &&
           (ring->enabled || !mock->ops.enable_ring) && (mock->running || !mock->ops.set_running);
}

bool mock_runs(const mock_backend *mock)
{
    for (uint32_t queue = 0; queue < MOCK_QUEUES; queue++) {
        if (mock_ring_runs(mock, queue)) {
            return true;
        }
    }
    return false;
}

static bool has_feature(const mock_backend *mock, unsigned bit)
{
    return mock->features.word[bit / 64] >> (bit % 64) & 1;
}

static bool host_is_big_endian(void)
{
    const uint16_t one = 1;
    unsigned char first;
    memcpy(&first, &one, 1);
    return first == 0;
}

static bool ring_is_big_endian(const mock_backend *mock, const mock_ring *ring)
{
    return ring->big_endian && !has_feature(mock, VHOST_FEATURE_VERSION_1);
}

/* ---- the dirty log ---- */

bool mock_logs(const mock_backend *mock)
{
    return mock->opened && !mock->severed && mock->log.size &&
           has_feature(mock, VHOST_FEATURE_LOG_ALL);
}

bool mock_log_covers_table(const mock_backend *mock)
{
    const vhost_region *last = mock->table_count ? &mock->table[mock->table_count - 1] : NULL;
    return !last || (last->gpa + (last->size - 1)) / VHOST_PAGE / 8 < mock->log.size;
}

static void set_bit(const mock_backend *mock, uint64_t page)
{
    if (mock->facts.log_kind == VHOST_DIRTY_SHARED) {
        unsigned char *byte = (unsigned char *)mock->log.base + page / 8;
        __atomic_fetch_or(byte, (unsigned char)(1u << page % 8), __ATOMIC_SEQ_CST);
    } else {
        const uint64_t bits = 8 * sizeof(unsigned long);
        unsigned long *word = (unsigned long *)mock->log.base + page / bits;
        __atomic_fetch_or(word, 1ul << page % bits, __ATOMIC_SEQ_CST);
    }
}

void mock_dirty(mock_backend *mock, uint64_t gpa)
{
    if (!mock_logs(mock)) {
        complain(mock, "the test dirties a page, but nothing is logged");
    } else if (gpa / VHOST_PAGE / 8 >= mock->log.size) {
        complain(mock, "the log has no bit for 0x%llx", (unsigned long long)gpa);
    } else {
        set_bit(mock, gpa / VHOST_PAGE);
    }
}

/* What may be written must be logged somewhere, from each operation on that can change that. */
static void check_log(mock_backend *mock, const mock_call *call)
{
    bool begins =
        call->op == VHOST_OP_SET_RING_KICK ||
        (call->value && (call->op == VHOST_OP_ENABLE_RING || call->op == VHOST_OP_SET_RUNNING));
    bool changes = call->op == VHOST_OP_SET_FEATURES || call->op == VHOST_OP_SET_TABLE ||
                   call->op == VHOST_OP_SET_LOG;
    if (!(begins || changes) || !mock_runs(mock) || !has_feature(mock, VHOST_FEATURE_LOG_ALL)) {
        return;
    }
    if (!mock->log.size) {
        complain(mock, "a ring runs with LOG_ALL and without a log");
    } else if (!mock_log_covers_table(mock)) {
        complain(mock, "the log is shorter than the table");
    }
}

static void write_used_index(const mock_backend *mock, const mock_ring *ring)
{
    unsigned char *used = (unsigned char *)ring->addresses.part[VHOST_USED].host;
    if (used) {
        bool big = ring_is_big_endian(mock, ring);
        used[big ? 2 : 3] = (unsigned char)(ring->position >> 8);
        used[big ? 3 : 2] = (unsigned char)ring->position;
    }
}

static uint32_t packed_advanced(uint32_t position, uint32_t size, unsigned count)
{
    uint32_t index = (position & 0x7fff) + count;
    uint32_t wrap = position & 0x8000;
    if (index >= size) {
        index -= size;
        wrap ^= 0x8000;
    }
    return index | wrap | (index | wrap) << 16;
}

void mock_advance(mock_backend *mock, uint32_t queue, unsigned count)
{
    mock_ring *ring = &mock->rings[queue];
    if (!mock_ring_runs(mock, queue)) {
        complain(mock, "the test advances ring %u, which does not run", (unsigned)queue);
        return;
    }
    mock->used_up[queue] += count;
    if (mock_logs(mock) && ring->addresses.log) {
        mock_dirty(mock, ring->addresses.part[VHOST_USED].gpa);
    }
    if (has_feature(mock, VHOST_FEATURE_RING_PACKED)) {
        ring->position = packed_advanced(ring->position, ring->size, count);
    } else {
        ring->position = (ring->position + count) & 0xffff;
        write_used_index(mock, ring);
    }
}

static void clear_ring(mock_ring *ring)
{
    memset(ring, 0, sizeof *ring);
    ring->big_endian = host_is_big_endian(); /* until told otherwise */
    ring->kick_fd = -1;
    ring->call_fd = -1;
    ring->error_fd = -1;
}

static void clear_rings(mock_backend *mock)
{
    for (unsigned i = 0; i < MOCK_QUEUES; i++) {
        clear_ring(&mock->rings[i]);
    }
    mock->running = false;
}

static void send_signal(const mock_backend *mock, int fd)
{
    if (fd >= 0 && mock->signal) {
        mock->signal(fd, mock->user);
    }
}

void mock_interrupt(mock_backend *mock, uint32_t queue)
{
    if (!mock_ring_runs(mock, queue)) {
        complain(mock, "the test calls from ring %u, which does not run", (unsigned)queue);
    }
    send_signal(mock, mock->rings[queue].call_fd);
}

void mock_ring_error(mock_backend *mock, uint32_t queue)
{
    send_signal(mock, mock->rings[queue].error_fd);
}

void mock_config_change(mock_backend *mock)
{
    send_signal(mock, mock->config_fd);
}

/* ---- the IOTLB ---- */

static bool has_iotlb(const mock_backend *mock)
{
    return has_feature(mock, VHOST_FEATURE_ACCESS_PLATFORM);
}

static const vhost_iotlb *find_entry(const mock_backend *mock, uint64_t iova, uint8_t permit)
{
    for (unsigned i = 0; i < mock->iotlb_count; i++) {
        const vhost_iotlb *entry = &mock->iotlb[i];
        if (iova >= entry->iova && iova - entry->iova < entry->size && (entry->permit & permit)) {
            return entry;
        }
    }
    return NULL;
}

bool mock_reaches(const mock_backend *mock, uint64_t iova, uint64_t size, uint8_t permit)
{
    while (size) {
        const vhost_iotlb *entry = find_entry(mock, iova, permit);
        if (!entry) {
            return false;
        }
        uint64_t left = entry->size - (iova - entry->iova);
        uint64_t step = left < size ? left : size;
        iova += step;
        size -= step;
    }
    return true;
}

bool mock_reaches_ring(const mock_backend *mock, uint32_t queue)
{
    const vhost_mapping *part = mock->rings[queue].addresses.part;
    return mock_reaches(mock, part[VHOST_DESC].address, part[VHOST_DESC].size, VHOST_PERMIT_READ) &&
           mock_reaches(mock, part[VHOST_AVAIL].address, part[VHOST_AVAIL].size,
                        VHOST_PERMIT_READ) &&
           mock_reaches(mock, part[VHOST_USED].address, part[VHOST_USED].size, VHOST_PERMIT_WRITE);
}

static bool is_page_in_table(const mock_backend *mock, uint64_t gpa, const unsigned char *host)
{
    for (uint32_t i = 0; i < mock->table_count; i++) {
        const vhost_region *region = &mock->table[i];
        if (gpa >= region->gpa && gpa - region->gpa < region->size) {
            return host == (unsigned char *)region->host + (gpa - region->gpa);
        }
    }
    return false;
}

static bool is_in_table(const mock_backend *mock, const vhost_iotlb *entry)
{
    for (uint64_t at = 0; at < entry->size; at += VHOST_PAGE) {
        if (!is_page_in_table(mock, entry->gpa + at, (unsigned char *)entry->host + at)) {
            return false;
        }
    }
    return true;
}

bool mock_iotlb_is_sound(const mock_backend *mock)
{
    for (unsigned i = 0; i < mock->iotlb_count; i++) {
        if (!is_in_table(mock, &mock->iotlb[i])) {
            return false;
        }
    }
    return true;
}

static void forget_entries(mock_backend *mock, uint64_t iova, uint64_t last)
{
    unsigned kept = 0;
    for (unsigned i = 0; i < mock->iotlb_count; i++) {
        const vhost_iotlb *entry = &mock->iotlb[i];
        if (entry->iova > last || entry->iova + (entry->size - 1) < iova) {
            mock->iotlb[kept++] = *entry;
        }
    }
    mock->iotlb_count = kept;
}

static void add_entry(mock_backend *mock, const vhost_iotlb *entry)
{
    const vhost_iotlb *old = find_entry(mock, entry->iova, 3);
    if (entry->permit < 1 || entry->permit > 3 || !is_in_table(mock, entry)) {
        complain(mock, "an entry leads nowhere, or out of the table");
    }
    if (old && old->gpa + (entry->iova - old->iova) != entry->gpa) {
        complain(mock, "an entry contradicts another that was not unmapped");
    }
    if (mock->iotlb_count == MOCK_ENTRIES) {
        abort();
    }
    mock->iotlb[mock->iotlb_count++] = *entry;
}

static void do_iotlb_send(mock_backend *mock, const mock_call *call)
{
    const vhost_iotlb *entry = &call->entry;
    uint64_t last = entry->iova + (entry->size - 1);
    if (!has_iotlb(mock) || entry->size == 0 || last < entry->iova) {
        complain(mock, "an IOTLB message without IOTLB, or an impossible one");
    } else if (entry->type == VHOST_TLB_UNMAP) {
        forget_entries(mock, entry->iova, last);
    } else if (entry->type == VHOST_TLB_MAP) {
        add_entry(mock, entry);
    } else {
        complain(mock, "an IOTLB message of type %d", (int)entry->type);
    }
}

/* ---- what a strict back-end checks ---- */

static bool same_region(const vhost_region *a, const vhost_region *b)
{
    return a->gpa == b->gpa && a->size == b->size && a->host == b->host &&
           a->backing == b->backing && a->serial == b->serial;
}

static bool same_addresses(const vhost_ring_addresses *a, const vhost_ring_addresses *b)
{
    for (int part = 0; part < 3; part++) {
        if (a->part[part].host != b->part[part].host ||
            a->part[part].address != b->part[part].address ||
            a->part[part].size != b->part[part].size) {
            return false;
        }
    }
    return true;
}

static void check_regions(mock_backend *mock, const vhost_region *regions, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        if (regions[i].size == 0 || (regions[i].gpa | regions[i].size) % VHOST_PAGE) {
            complain(mock, "region %u is empty or not aligned", (unsigned)i);
        }
        if (i > 0 && regions[i].gpa - regions[i - 1].gpa < regions[i - 1].size) {
            complain(mock, "region %u overlaps the one before", (unsigned)i);
        }
        if (i > 0 && regions[i].gpa <= regions[i - 1].gpa) {
            complain(mock, "region %u is not in ascending order", (unsigned)i);
        }
    }
    if (mock->facts.max_regions && count > mock->facts.max_regions) {
        complain(mock, "%u regions are too many", (unsigned)count);
    }
}

/* Whether `removed` and `added` are just what is between `from` and `to`, in ascending order. */
static bool is_difference(const vhost_table_change *change)
{
    uint32_t from_count = change->from ? change->from->count : 0;
    uint32_t i = 0, j = 0, removed = 0, added = 0;
    while (i < from_count || j < change->to->count) {
        const vhost_region *old = i < from_count ? &change->from->regions[i] : NULL;
        const vhost_region *fresh = j < change->to->count ? &change->to->regions[j] : NULL;
        if (old && fresh && same_region(old, fresh)) {
            i++;
            j++;
        } else if (old && (!fresh || old->gpa <= fresh->gpa)) {
            if (removed == change->removed_count || !same_region(&change->removed[removed], old)) {
                return false;
            }
            removed++;
            i++;
        } else {
            if (added == change->added_count || !same_region(&change->added[added], fresh)) {
                return false;
            }
            added++;
            j++;
        }
    }
    return removed == change->removed_count && added == change->added_count;
}

static void check_change(mock_backend *mock, const vhost_table_change *change)
{
    check_regions(mock, change->to->regions, change->to->count);
    if (!is_difference(change)) {
        complain(mock, "removed and added are not the difference of the tables");
    }
}

/* Checked when the change takes effect: `from` must be what is there. */
static void check_from(mock_backend *mock, const mock_call *call)
{
    bool same = mock->table_set && call->from_count == mock->table_count;
    for (uint32_t i = 0; same && i < call->from_count; i++) {
        same = same_region(&call->from[i], &mock->table[i]);
    }
    if (call->from_known && !same) {
        complain(mock, "the change is not from the table in force");
    }
}

/* Whether a ring can begin. */
static bool check_ready(mock_backend *mock, const mock_call *call)
{
    const mock_ring *ring = &mock->rings[call->queue];
    bool ready = mock->features_set && mock->table_set && ring->size_set && ring->base_set &&
                 ring->addresses_set && ring->call_set;
    if (!ready) {
        complain(mock, "ring %d begins before it is set up", call->queue);
    }
    if (has_iotlb(mock) && !mock_reaches_ring(mock, (uint32_t)call->queue)) {
        complain(mock, "ring %d begins before it is mapped", call->queue);
        ready = false;
    }
    return ready;
}

static void check_addresses(mock_backend *mock, const mock_call *call)
{
    const mock_ring *ring = &mock->rings[call->queue];
    if (!mock->features_set || !mock->table_set || !ring->size_set) {
        complain(mock, "addresses of ring %d before features, table and size", call->queue);
    }
    if (mock_ring_runs(mock, (uint32_t)call->queue) &&
        !same_addresses(&call->addresses, &ring->addresses)) {
        complain(mock, "addresses of ring %d change while it runs", call->queue);
    }
    if (call->addresses.iova != has_iotlb(mock)) {
        complain(mock, "addresses of ring %d are of the wrong kind", call->queue);
    }
    for (int part = 0; part < 3; part++) {
        if (!call->addresses.part[part].size || !call->addresses.part[part].host) {
            complain(mock, "ring %d is not mapped", call->queue);
        }
    }
}

static void check_features(mock_backend *mock, const vhost_features *features)
{
    uint64_t log = UINT64_C(1) << VHOST_FEATURE_LOG_ALL;
    if ((features->word[0] & ~mock->facts.offered.word[0]) ||
        (features->word[1] & ~mock->facts.offered.word[1])) {
        complain(mock, "features are set that were not offered");
    }
    if (mock_runs(mock) && (((features->word[0] ^ mock->features.word[0]) & ~log) ||
                            features->word[1] != mock->features.word[1])) {
        complain(mock, "features other than LOG_ALL change while a ring runs");
    }
}

static void check_stopped(mock_backend *mock, const mock_call *call)
{
    if (mock_ring_runs(mock, (uint32_t)call->queue)) {
        complain(mock, "%s of ring %d while it runs", vhost_op_name(call->op), call->queue);
    }
}

static void check_call(mock_backend *mock, const mock_call *call)
{
    if (!mock->opened || mock->severed) {
        complain(mock, "%s of a back-end that is %s", vhost_op_name(call->op),
                 mock->severed ? "severed" : "not open");
    }
    if (call->queue >= MOCK_QUEUES ||
        (mock->facts.max_queues && call->queue >= (int)mock->facts.max_queues)) {
        complain(mock, "%s of ring %d, which is not there", vhost_op_name(call->op), call->queue);
    }
}

/* ---- what the operations do ---- */

static void do_set_features(mock_backend *mock, const mock_call *call)
{
    check_features(mock, &call->features);
    mock->features = call->features;
    mock->features_set = true;
    mock->iotlb_count = 0;
}

static void do_set_table(mock_backend *mock, const mock_call *call)
{
    check_from(mock, call);
    size_t size = call->to_count * sizeof *mock->table;
    free(mock->table);
    mock->table = (vhost_region *)malloc(size + 1);
    if (!mock->table) {
        abort();
    }
    if (size) {
        memcpy(mock->table, call->to, size);
    }
    mock->table_count = call->to_count;
    mock->table_set = true;
}

static void do_set_ring_call(mock_backend *mock, const mock_call *call)
{
    mock_ring *ring = &mock->rings[call->queue];
    if (mock->calls_late && mock_ring_runs(mock, (uint32_t)call->queue)) {
        send_signal(mock, ring->call_fd);
    }
    ring->call_fd = (int)call->value;
    ring->call_set = true;
}

static void do_set_ring_addresses(mock_backend *mock, const mock_call *call)
{
    check_addresses(mock, call);
    mock->rings[call->queue].addresses = call->addresses;
    mock->rings[call->queue].addresses_set = true;
}

/* Between the set-up of all rings that will run, and their kicks. */
static void do_set_inflight(mock_backend *mock)
{
    for (unsigned i = 0; i < MOCK_QUEUES; i++) {
        if (mock->rings[i].kick_set) {
            complain(mock, "set_inflight after the kick of ring %u", i);
        }
    }
    mock->inflight_set = true;
}

static void do_set_ring_kick(mock_backend *mock, const mock_call *call)
{
    check_stopped(mock, call);
    if (mock->ops.set_inflight && !mock->inflight_set) {
        complain(mock, "ring %d is kicked before set_inflight", call->queue);
    }
    if (!mock->ops.enable_ring && !mock->ops.set_running && !check_ready(mock, call)) {
        return;
    }
    mock->rings[call->queue].kick_fd = (int)call->value;
    mock->rings[call->queue].kick_set = true;
}

static void do_enable_ring(mock_backend *mock, const mock_call *call)
{
    mock_ring *ring = &mock->rings[call->queue];
    if (call->value && !ring->kick_set) {
        complain(mock, "ring %d is enabled without a kick", call->queue);
    }
    ring->enabled = call->value && ring->kick_set && check_ready(mock, call);
}

static void do_set_running(mock_backend *mock, const mock_call *call)
{
    if (call->value && (!mock->features_set || !mock->table_set)) {
        complain(mock, "runs before features and table");
    }
    mock->running = call->value != 0;
}

static void do_get_ring_base(mock_backend *mock, const mock_call *call)
{
    mock_ring *ring = &mock->rings[call->queue];
    if (ring->enabled) {
        complain(mock, "ring %d is asked for its base while enabled", call->queue);
    }
    call->base->value = ring->position;
    call->base->answered = true;
    ring->size_set = false;
    ring->base_set = false;
    ring->addresses_set = false;
    ring->kick_set = false;
    ring->enabled = false;
}

static void do_reset(mock_backend *mock)
{
    if (mock_runs(mock)) {
        complain(mock, "reset while a ring runs");
    }
    clear_rings(mock);
    mock->features_set = false;
}

static void do_ring_value(mock_backend *mock, const mock_call *call)
{
    mock_ring *ring = &mock->rings[call->queue];
    check_stopped(mock, call);
    if (call->op == VHOST_OP_SET_RING_SIZE) {
        ring->size = (uint32_t)call->value;
        ring->size_set = true;
    } else if (call->op == VHOST_OP_SET_RING_BASE) {
        ring->position = (uint32_t)call->value;
        ring->base_set = true;
    } else if (call->op == VHOST_OP_SET_RING_ENDIAN) {
        ring->big_endian = call->value != 0;
    } else {
        ring->busy_loop_us = (uint32_t)call->value;
    }
}

static void do_call(mock_backend *mock, const mock_call *call)
{
    static const vhost_op ring_values[] = {VHOST_OP_SET_RING_SIZE, VHOST_OP_SET_RING_BASE,
                                           VHOST_OP_SET_RING_ENDIAN, VHOST_OP_SET_RING_BUSY_LOOP};
    for (size_t i = 0; i < sizeof ring_values / sizeof *ring_values; i++) {
        if (call->op == ring_values[i]) {
            do_ring_value(mock, call);
        }
    }
    if (call->op == VHOST_OP_SET_FEATURES) {
        do_set_features(mock, call);
    } else if (call->op == VHOST_OP_SET_TABLE) {
        do_set_table(mock, call);
    } else if (call->op == VHOST_OP_SET_LOG) {
        mock->log = call->log;
    } else if (call->op == VHOST_OP_IOTLB_SEND) {
        do_iotlb_send(mock, call);
    } else if (call->op == VHOST_OP_SET_RING_CALL) {
        do_set_ring_call(mock, call);
    } else if (call->op == VHOST_OP_SET_RING_ERROR) {
        mock->rings[call->queue].error_fd = (int)call->value;
    } else if (call->op == VHOST_OP_SET_RING_ADDRESSES) {
        do_set_ring_addresses(mock, call);
    } else if (call->op == VHOST_OP_SET_INFLIGHT) {
        do_set_inflight(mock);
    } else if (call->op == VHOST_OP_SET_RING_KICK) {
        do_set_ring_kick(mock, call);
    } else if (call->op == VHOST_OP_SET_CONFIG_CALL) {
        mock->config_fd = (int)call->value;
    } else if (call->op == VHOST_OP_ENABLE_RING) {
        do_enable_ring(mock, call);
    } else if (call->op == VHOST_OP_SET_RUNNING) {
        do_set_running(mock, call);
    } else if (call->op == VHOST_OP_GET_RING_BASE) {
        do_get_ring_base(mock, call);
    } else if (call->op == VHOST_OP_RESET) {
        do_reset(mock);
    } else if (call->op == VHOST_OP_GET_CONFIG) {
        memcpy(call->bytes, mock->config + call->value, call->size);
    } else if (call->op == VHOST_OP_SET_CONFIG) {
        memcpy(mock->config + call->value, call->config, call->size);
    }
}

static void go_around(mock_backend *mock, bool begins)
{
    if (mock->around) {
        mock->around(mock, begins, mock->user);
    }
}

/* An eager back-end uses up buffers as soon as a ring runs. */
static void take_effect(mock_backend *mock, mock_call *call)
{
    bool ran[MOCK_QUEUES];
    for (uint32_t i = 0; i < MOCK_QUEUES; i++) {
        ran[i] = mock_ring_runs(mock, i);
    }
    go_around(mock, true);
    if (call->op != mock->lost) {
        do_call(mock, call);
    }
    call->done = true;
    check_log(mock, call);
    go_around(mock, false);
    for (uint32_t i = 0; mock->eager && i < MOCK_QUEUES; i++) {
        if (!ran[i] && mock_ring_runs(mock, i)) {
            mock_advance(mock, i, mock->eager);
        }
    }
}

/* ---- submit and fence ---- */

static int verdict(mock_backend *mock, const mock_call *call)
{
    bool strikes =
        mock->fault && fault_strikes(mock->fault, FAULT_OPERATION, call->op, call->queue);
    if (strikes && mock->fault->plan == FAULT_DEATH) {
        mock->dead = true;
    }
    if (mock->dead) {
        return -ECONNRESET;
    }
    if (mock->refused == call->op && mock->allowed_value != call->value &&
        (mock->refused_queue == -1 || mock->refused_queue == call->queue)) {
        return mock->refusal;
    }
    if ((call->op == VHOST_OP_GET_CONFIG || call->op == VHOST_OP_SET_CONFIG) &&
        (uint64_t)call->value + call->size > MOCK_CONFIG_SIZE) {
        return -EINVAL;
    }
    return strikes ? -EPERM : 0;
}

static int submit(mock_backend *mock, const mock_call *call)
{
    bool queued = mock->mode != MOCK_SYNCHRONOUS;
    check_call(mock, call);
    mock_call *kept = record(mock, call);
    kept->verdict = verdict(mock, call);
    kept->result = mock->success;
    if (kept->verdict < 0 && (!queued || mock->mode == MOCK_QUEUED_REFUSING)) {
        kept->result = kept->verdict;
    } else if (!queued) {
        take_effect(mock, kept);
    }
    if (!queued) {
        mock->fenced = mock->calls.count;
    }
    return kept->result;
}

static void mock_fence(void *backend, vhost_fence *result)
{
    mock_backend *mock = (mock_backend *)backend;
    if (!mock->opened || mock->severed) {
        complain(mock, "fence of a back-end that is severed or not open");
    }
    mock->fences++;
    if (mock->in_fence) {
        mock->in_fence(mock, mock->user);
    }
    result->error = 0;
    result->op = VHOST_OP_NONE;
    result->queue = -1;
    for (; mock->fenced < mock->calls.count; mock->fenced++) {
        mock_call *call = &mock->calls.at[mock->fenced];
        bool given_up = mock->failed && mock->mode != MOCK_QUEUED_STUBBORN;
        if (call->result < 0) {
            continue;
        }
        if (call->verdict == 0 && !given_up) {
            take_effect(mock, call);
        } else if (!mock->failed) {
            mock->failed = true;
            result->error = call->verdict;
            result->op = call->op;
            result->queue = call->queue;
            result->later_done = mock->mode == MOCK_QUEUED_STUBBORN;
        }
    }
    mock->failed = false;
}

/* ---- the operations ---- */

static mock_call make_call(vhost_op op, int queue, int64_t value)
{
    mock_call call;
    memset(&call, 0, sizeof call);
    call.op = op;
    call.queue = queue;
    call.value = value;
    return call;
}

static int submit_value(void *backend, vhost_op op, int queue, int64_t value)
{
    mock_call call = make_call(op, queue, value);
    return submit((mock_backend *)backend, &call);
}

static int mock_open(void *backend, vhost_device *device, vhost_facts *facts)
{
    mock_backend *mock = (mock_backend *)backend;
    bool strikes = mock->fault && fault_strikes(mock->fault, FAULT_OPERATION, VHOST_OP_OPEN, -1);
    if (mock->opened) {
        complain(mock, "opened before it was closed");
    }
    if (strikes && mock->fault->plan == FAULT_DEATH) {
        mock->dead = true;
    }
    if (mock->dead) {
        return -ECONNRESET;
    }
    if (mock->refused == VHOST_OP_OPEN) {
        return mock->refusal;
    }
    if (strikes || (mock->no_reopening && mock->opens)) {
        return -EPERM;
    }
    mock->opens++;
    mock->opened = true;
    mock->severed = false;
    mock->features_set = false;
    mock->table_set = false;
    mock->log.size = 0;
    mock->config_fd = -1;
    mock->iotlb_count = 0;
    clear_rings(mock);
    mock->inflight_set = false;
    mock->device = device;
    *facts = mock->facts;
    return mock->success;
}

static void mock_close(void *backend)
{
    mock_backend *mock = (mock_backend *)backend;
    if (!mock->opened) {
        complain(mock, "closed while not open");
    }
    if (mock_runs(mock)) {
        complain(mock, "closed while a ring runs");
    }
    mock->fenced = mock->calls.count;
    mock->closes++;
    mock->opened = false;
}

static void mock_sever(void *backend)
{
    mock_backend *mock = (mock_backend *)backend;
    if (!mock->opened || mock->severed) {
        complain(mock, "severed twice, or while not open");
    }
    mock->fenced = mock->calls.count;
    mock->severs++;
    go_around(mock, true);
    mock->severed = true;
    mock->iotlb_count = 0;
    clear_rings(mock);
    go_around(mock, false);
}

static int mock_poll_fds(void *backend, int *fds, uint32_t capacity)
{
    const mock_backend *mock = (const mock_backend *)backend;
    for (int i = 0; i < mock->fd_count && i < (int)capacity; i++) {
        fds[i] = mock->fds[i];
    }
    return mock->fd_count;
}

static int mock_process(void *backend)
{
    mock_backend *mock = (mock_backend *)backend;
    bool strikes = mock->fault && fault_strikes(mock->fault, FAULT_OPERATION, VHOST_OP_PROCESS, -1);
    if (!mock->opened || mock->severed) {
        complain(mock, "process of a back-end that is severed or not open");
    }
    mock->processed++;
    if (mock->dead || (strikes && mock->fault->plan == FAULT_DEATH)) {
        mock->dead = true;
        return -ECONNRESET;
    }
    return strikes ? -EPERM : mock->process_result;
}

static int mock_set_features(void *backend, const vhost_features *features)
{
    mock_call call = make_call(VHOST_OP_SET_FEATURES, -1, 0);
    call.features = *features;
    return submit((mock_backend *)backend, &call);
}

static vhost_region *copy_of(const vhost_table *table)
{
    size_t size = table->count * sizeof(vhost_region);
    vhost_region *copy = (vhost_region *)malloc(size + 1);
    if (!copy) {
        abort();
    }
    if (size) {
        memcpy(copy, table->regions, size);
    }
    return copy;
}

static int mock_set_table(void *backend, const vhost_table_change *change)
{
    mock_call call = make_call(VHOST_OP_SET_TABLE, -1, 0);
    check_change((mock_backend *)backend, change);
    call.to = copy_of(change->to);
    call.to_count = change->to->count;
    if (change->from) {
        call.from = copy_of(change->from);
        call.from_count = change->from->count;
        call.from_known = true;
    }
    call.removed_count = change->removed_count;
    call.added_count = change->added_count;
    return submit((mock_backend *)backend, &call);
}

static int mock_set_log(void *backend, const vhost_log_memory *memory)
{
    mock_call call = make_call(VHOST_OP_SET_LOG, -1, (int64_t)memory->size);
    call.log = *memory;
    return submit((mock_backend *)backend, &call);
}

static int mock_iotlb_send(void *backend, const vhost_iotlb *message)
{
    mock_call call = make_call(VHOST_OP_IOTLB_SEND, -1, (int64_t)message->iova);
    call.entry = *message;
    return submit((mock_backend *)backend, &call);
}

void mock_add_iotlb(mock_backend *mock)
{
    mock->ops.iotlb_send = mock_iotlb_send;
}

static int mock_set_ring_call(void *backend, uint32_t queue, int fd)
{
    return submit_value(backend, VHOST_OP_SET_RING_CALL, (int)queue, fd);
}

static int mock_set_ring_error(void *backend, uint32_t queue, int fd)
{
    return submit_value(backend, VHOST_OP_SET_RING_ERROR, (int)queue, fd);
}

static int mock_set_ring_size(void *backend, uint32_t queue, uint32_t size)
{
    return submit_value(backend, VHOST_OP_SET_RING_SIZE, (int)queue, size);
}

static int mock_set_ring_base(void *backend, uint32_t queue, uint32_t base)
{
    return submit_value(backend, VHOST_OP_SET_RING_BASE, (int)queue, base);
}

static int mock_set_ring_endian(void *backend, uint32_t queue, bool big)
{
    return submit_value(backend, VHOST_OP_SET_RING_ENDIAN, (int)queue, big);
}

static int mock_set_ring_addresses(void *backend, uint32_t queue,
                                   const vhost_ring_addresses *addresses)
{
    mock_call call = make_call(VHOST_OP_SET_RING_ADDRESSES, (int)queue, 0);
    call.addresses = *addresses;
    return submit((mock_backend *)backend, &call);
}

static int mock_set_ring_busy_loop(void *backend, uint32_t queue, uint32_t microseconds)
{
    return submit_value(backend, VHOST_OP_SET_RING_BUSY_LOOP, (int)queue, microseconds);
}

static int mock_set_ring_kick(void *backend, uint32_t queue, int fd)
{
    return submit_value(backend, VHOST_OP_SET_RING_KICK, (int)queue, fd);
}

static int mock_set_inflight(void *backend)
{
    return submit_value(backend, VHOST_OP_SET_INFLIGHT, -1, 0);
}

static int mock_recall_base(void *backend, uint32_t queue, vhost_ring_base *base)
{
    mock_backend *mock = (mock_backend *)backend;
    if (mock_ring_runs(mock, queue)) {
        complain(mock, "recall of ring %u while it runs", (unsigned)queue);
    }
    mock->recalls++;
    mock->recall_given = base->value;
    base->value = mock->recalled;
    return mock->recall_result;
}

static int mock_set_config_call(void *backend, int fd)
{
    return submit_value(backend, VHOST_OP_SET_CONFIG_CALL, -1, fd);
}

static int mock_enable_ring(void *backend, uint32_t queue, bool on)
{
    return submit_value(backend, VHOST_OP_ENABLE_RING, (int)queue, on);
}

static int mock_set_running(void *backend, bool on)
{
    return submit_value(backend, VHOST_OP_SET_RUNNING, -1, on);
}

static int mock_get_ring_base(void *backend, uint32_t queue, vhost_ring_base *base)
{
    mock_call call = make_call(VHOST_OP_GET_RING_BASE, (int)queue, 0);
    call.base = base;
    return submit((mock_backend *)backend, &call);
}

static int mock_reset(void *backend)
{
    return submit_value(backend, VHOST_OP_RESET, -1, 0);
}

static int mock_get_config(void *backend, uint32_t offset, void *bytes, uint32_t size)
{
    mock_call call = make_call(VHOST_OP_GET_CONFIG, -1, offset);
    call.bytes = bytes;
    call.size = size;
    return submit((mock_backend *)backend, &call);
}

static int mock_set_config(void *backend, uint32_t offset, const void *bytes, uint32_t size)
{
    mock_call call = make_call(VHOST_OP_SET_CONFIG, -1, offset);
    memcpy(call.config, bytes, size < MOCK_CONFIG_SIZE ? size : MOCK_CONFIG_SIZE);
    call.size = size;
    return submit((mock_backend *)backend, &call);
}

/* ---- life ---- */

const char *mock_mode_name(mock_mode mode)
{
    static const char *const names[MOCK_MODE_COUNT] = {"synchronous", "queued", "stubborn",
                                                       "refusing"};
    return names[mode];
}

static void fill_in_ops(vhost_backend_ops *ops, bool queued)
{
    ops->open = mock_open;
    ops->close = mock_close;
    ops->sever = mock_sever;
    ops->poll_fds = mock_poll_fds;
    ops->process = mock_process;
    ops->set_features = mock_set_features;
    ops->set_table = mock_set_table;
    ops->set_log = mock_set_log;
    ops->set_ring_call = mock_set_ring_call;
    ops->set_ring_error = mock_set_ring_error;
    ops->set_ring_size = mock_set_ring_size;
    ops->set_ring_base = mock_set_ring_base;
    ops->set_ring_endian = mock_set_ring_endian;
    ops->set_ring_addresses = mock_set_ring_addresses;
    ops->set_ring_busy_loop = mock_set_ring_busy_loop;
    ops->set_inflight = mock_set_inflight;
    ops->recall_base = mock_recall_base;
    ops->set_ring_kick = mock_set_ring_kick;
    ops->set_config_call = mock_set_config_call;
    ops->enable_ring = mock_enable_ring;
    ops->set_running = mock_set_running;
    ops->get_ring_base = mock_get_ring_base;
    ops->reset = mock_reset;
    ops->get_config = mock_get_config;
    ops->set_config = mock_set_config;
    ops->fence = queued ? mock_fence : NULL;
}

void mock_init(mock_backend *mock, mock_mode mode, fault *faults)
{
    memset(mock, 0, sizeof *mock);
    fill_in_ops(&mock->ops, mode != MOCK_SYNCHRONOUS);
    mock->mode = mode;
    mock->fault = faults;
    mock->refused_queue = -1;
    mock->allowed_value = MOCK_NO_VALUE;
    mock->config_fd = -1;
    mock->facts.name = "mock";
    mock->facts.profile = VHOST_PROFILE_BY_HOST;
    mock->facts.log_kind = VHOST_DIRTY_NONE;
    mock->facts.max_queues = MOCK_QUEUES;
}

void mock_free(mock_backend *mock)
{
    mock_forget(mock);
    free(mock->calls.at);
    mock->calls.at = NULL;
    mock->calls.capacity = 0;
    free(mock->table);
    mock->table = NULL;
}

void mock_refuse(mock_backend *mock, vhost_op op, int queue, int error)
{
    mock_refuse_unless(mock, op, queue, MOCK_NO_VALUE, error);
}

void mock_refuse_unless(mock_backend *mock, vhost_op op, int queue, int64_t value, int error)
{
    mock->refused = op;
    mock->refused_queue = queue;
    mock->allowed_value = value;
    mock->refusal = error;
}

void mock_die(mock_backend *mock)
{
    mock->dead = true;
}

void mock_revive(mock_backend *mock)
{
    mock->dead = false;
    mock->refused = VHOST_OP_NONE;
    mock->lost = VHOST_OP_NONE;
    mock->process_result = 0;
}
