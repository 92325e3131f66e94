/* vhost_user.h: what a back-end is told of guest memory and of the dirty log. */
#include "user_calls.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

/* ---- one table ---- */

TEST a_table_is_sent_whole(peer_bench *b)
{
    b->options.avoid = PEER_BIT(15);
    ASSERT_OK(peer_running(b, 1));
    ASSERT_OK(user_change_map(b, 3));
    HEARD(b, "5 9 104 D3 D0 Q0 Q80000 Q0 Q0 Q100000000 Q80000 Q100000000 Q80000 "
             "Q200000000 Q1000 Q200000000 Q0 +9000 +9000 +9000");
    ASSERT_OK(user_change_map(b, 2));
    HEARD(b, "5 9 72 D2 D0 Q0 Q80000 Q0 Q0 Q100000000 Q80000 Q100000000 Q80000 +9000 +9000");
    ASSERT_OK(user_change_map(b, 2));
    HEARD_NOTHING(b);
    PASS();
}

/* Eight regions, eight fds, in their order; the ninth does not fit. */
TEST eight_regions_and_no_more(peer_bench *b)
{
    vhost_backing backings[9];
    vhost_section sections[9];
    peer_bytes expected;
    for (int i = 0; i < 9; i++) {
        vhost_backing_init(&backings[i], b->f->host, FIXTURE_PAGES * VHOST_PAGE, 9100 + i,
                           0x100000);
        vhost_section_init(&sections[i], 0x100000 * (uint64_t)i, 0x80000, &backings[i], 0x1000);
    }
    sections[0].offset = 0;
    b->options.avoid = PEER_BIT(15);
    ASSERT_OK(peer_running(b, 1));
    ASSERT_OK(vhost_device_stop(&b->device));
    ASSERT_OK(fixture_map(b->f, sections, 8));
    peer_forget(&b->peer);
    ASSERT_OK(vhost_device_start(&b->device));
    expected = *peer_find(&b->peer, PEER_SET_MEM_TABLE, 0);
    ASSERT_UINT(8, expected.fd_count);
    for (unsigned i = 0; i < 8; i++) {
        ASSERT_U64(9100 + i, expected.fds[i]);
        ASSERT_U64(0x100000 * i, peer_number(&expected, 8 + 32 * i, 8));
        ASSERT_U64(i ? 0x101000 : 0x100000, peer_number(&expected, 8 + 32 * i + 24, 8));
    }
    ASSERT_INT(-ENOSPC, fixture_map(b->f, sections, 9));
    ASSERT_INT(VHOST_STATE_RUNNING, b->device.state);
    ASSERT_OK(vhost_device_stop(&b->device));
    ASSERT_OK(fixture_map_default(b->f)); /* before the backings go */
    PASS();
}

TEST memory_without_an_fd_stays_here(peer_bench *b)
{
    vhost_backing own;
    vhost_section sections[2];
    vhost_backing_init(&own, b->f->host + 128 * VHOST_PAGE, 128 * VHOST_PAGE, -1, 0);
    ASSERT_OK(peer_stopped(b, 1));
    sections[0] = b->f->low;
    vhost_section_init(&sections[1], FIXTURE_HIGH, 128 * VHOST_PAGE, &own, 0);
    ASSERT_OK(fixture_map(b->f, sections, 2));
    peer_forget(&b->peer);
    ASSERT_OK(vhost_device_start(&b->device));
    ASSERT_UINT(1, peer_count(&b->peer, PEER_ADD_MEM_REG));
    ASSERT_OK(vhost_device_stop(&b->device));
    ASSERT_OK(fixture_map_default(b->f));
    PASS();
}

/* ---- slots ---- */

TEST slots_come_and_go_one_by_one(peer_bench *b)
{
    ASSERT_OK(peer_running(b, 1));
    ASSERT_OK(user_change_map(b, 3));
    HEARD(b, "37 9 40 Q0 Q200000000 Q1000 Q200000000 Q0 +9000");
    ASSERT_OK(user_change_map(b, 2));
    HEARD(b, "38 9 40 Q0 Q200000000 Q1000 Q200000000 Q0");
    ASSERT_OK(user_change_map(b, 1)); /* the rings are in the first */
    HEARD(b, "38 9 40 Q0 Q100000000 Q80000 Q100000000 Q0");
    ASSERT_OK(user_change_map(b, 3));
    HEARD(b, "37 9 40 Q0 Q100000000 Q80000 Q100000000 Q80000 +9000",
          "37 9 40 Q0 Q200000000 Q1000 Q200000000 Q0 +9000");
    ASSERT_UINT(4, b->peer.waits);
    PASS();
}

/* All that go are gone before the first one comes: there is room, and a free slot. */
TEST slots_go_before_others_come(peer_bench *b)
{
    vhost_section sections[2];
    b->peer.slots = 2;
    ASSERT_OK(peer_stopped(b, 1));
    ASSERT_OK(vhost_device_start(&b->device));
    ASSERT_OK(vhost_device_stop(&b->device));
    sections[0] = b->f->low;
    sections[1] = fixture_section(b->f, FIXTURE_HIGH + 0x1000, 64, 128); /* overlaps the old one */
    ASSERT_OK(fixture_map(b->f, sections, 2));
    peer_forget(&b->peer);
    ASSERT_OK(vhost_device_start(&b->device));
    const peer_bytes *gone = peer_find(&b->peer, PEER_REM_MEM_REG, 0);
    const peer_bytes *came = peer_find(&b->peer, PEER_ADD_MEM_REG, 0);
    ASSERT(gone != NULL && came == gone + 1);
    ASSERT_U64(UINT64_C(0x100000000), peer_number(gone, 8, 8));
    ASSERT_U64(UINT64_C(0x100001000), peer_number(came, 8, 8));
    ASSERT_UINT(1, peer_count(&b->peer, PEER_REM_MEM_REG));
    ASSERT_UINT(1, peer_count(&b->peer, PEER_ADD_MEM_REG));
    PASS();
}

/* The same place, other memory: U5 compares what is there, not only where. */
TEST memory_that_is_replaced_in_place_is_another_slot(peer_bench *b)
{
    vhost_backing other = b->f->ram;
    vhost_section sections[2];
    other.fd = 9001;
    ASSERT_OK(peer_running(b, 1));
    sections[0] = b->f->low;
    sections[1] = b->f->high;
    sections[1].backing = &other;
    ASSERT_OK(fixture_map(b->f, sections, 2));
    const peer_bytes *gone = peer_find(&b->peer, PEER_REM_MEM_REG, 0);
    const peer_bytes *came = peer_find(&b->peer, PEER_ADD_MEM_REG, 0);
    ASSERT(gone != NULL && came > gone);
    ASSERT_U64(9001, came->fds[0]);
    ASSERT_INT(VHOST_STATE_RUNNING, b->device.state);
    ASSERT_OK(vhost_device_stop(&b->device));
    ASSERT_OK(fixture_map_default(b->f));
    PASS();
}

TEST many_slots_are_one_wait(peer_bench *b)
{
    static vhost_section sections[512];
    b->peer.slots = 512;
    ASSERT_OK(peer_running(b, 1));
    sections[0] = b->f->low;
    sections[1] = b->f->high;
    for (unsigned i = 2; i < 512; i++) {
        sections[i] = fixture_section(b->f, FIXTURE_HIGH + 0x100000 * (uint64_t)i, 1, 0);
    }
    ASSERT_OK(fixture_map(b->f, sections, 512));
    ASSERT_UINT(510, peer_count(&b->peer, PEER_ADD_MEM_REG));
    ASSERT_UINT(1, b->peer.waits);
    ASSERT_OK(vhost_device_stop(&b->device));
    PASS();
}

/* ---- addresses ---- */

TEST user_addresses_have_a_bias(peer_bench *b)
{
    b->options.address_bias = UINT64_C(0x7f0000000000);
    ASSERT_OK(peer_stopped(b, 1));
    peer_forget(&b->peer);
    ASSERT_OK(vhost_device_start(&b->device));
    HEARD(b, "2 9 8 Q140000000", "39 9 8 Qb", "40 1 0",
          "37 9 40 Q0 Q0 Q80000 Q7f0000000000 Q0 +9000",
          "37 9 40 Q0 Q100000000 Q80000 Q7f0100000000 Q80000 +9000", "13 9 8 Q0 +6000",
          "14 9 8 Q0 +20003", "8 9 8 D0 D10", "10 9 8 D0 D0",
          "9 9 40 D0 D0 Q7f0000008000 Q7f0000008200 Q7f0000008100 Q8200", "31 1 24 Z16 W1 W10 Z4",
          "18 9 8 D0 D1", "12 9 8 Q0 +5000", "39 9 8 Qf");
    ASSERT_OK(user_change_map(b, 1));
    HEARD(b, "38 9 40 Q0 Q100000000 Q80000 Q7f0100000000 Q0");
    PASS();
}

/* U18, CH #7190: no address of this process goes out. */
TEST no_address_of_this_process_is_told(peer_bench *b)
{
    ASSERT_OK(peer_stopped(b, 2));
    ASSERT_OK(vhost_device_start(&b->device));
    uint64_t host = (uintptr_t)b->f->host >> 20;
    for (size_t i = 0; i < b->peer.heard.count; i++) {
        const peer_bytes *message = &b->peer.heard.at[i];
        for (size_t at = 12; at + 8 <= message->size; at += 4) {
            ASSERT(peer_number(message, at - 12, 8) >> 20 != host);
        }
    }
    PASS();
}

TEST with_gpa_addresses_there_is_no_bias(peer_bench *b)
{
    b->options.want = PEER_BIT(21);
    b->options.address_bias = UINT64_C(0x7f0000000000);
    ASSERT_OK(peer_stopped(b, 1));
    ASSERT_OK(vhost_device_start(&b->device));
    ASSERT_U64(0, peer_number(peer_find(&b->peer, PEER_ADD_MEM_REG, 0), 24, 8));
    ASSERT_U64(0x8000, peer_number(peer_find(&b->peer, PEER_SET_VRING_ADDR, 0), 8, 8));
    PASS();
}

TEST xen_regions_are_longer(peer_bench *b)
{
    b->options.want = PEER_BIT(17);
    b->options.xen_flags = 2;
    b->options.xen_domain = 77;
    ASSERT_OK(peer_running(b, 1));
    ASSERT_OK(user_change_map(b, 3));
    HEARD(b, "37 9 48 Q0 Q200000000 Q1000 Q200000000 Q0 D2 D4d +9000");
    ASSERT_OK(user_change_map(b, 2));
    HEARD(b, "38 9 48 Q0 Q200000000 Q1000 Q200000000 Q0 D2 D4d");
    CHECK_CALL(peer_renew(b));
    b->options.want = PEER_BIT(17);
    b->options.avoid = PEER_BIT(15);
    b->options.xen_flags = 2;
    b->options.xen_domain = 77;
    ASSERT_OK(peer_running(b, 1));
    ASSERT_OK(user_change_map(b, 1));
    HEARD(b, "5 9 48 D1 D0 Q0 Q80000 Q0 Q0 D2 D4d +9000");
    PASS();
}

/* ---- postcopy ---- */

static uint64_t told_gpa[4], told_size[4], told_base[4];
static unsigned told;

static int on_region(vhost_user *self, uint64_t gpa, uint64_t size, uint64_t base, void *user)
{
    (void)self;
    (void)user;
    if (told < 4) {
        told_gpa[told] = gpa;
        told_size[told] = size;
        told_base[told] = base;
    }
    told++;
    return 0;
}

static int listening(peer_bench *b, uint64_t avoid)
{
    told = 0;
    b->options.on_postcopy_region = on_region;
    b->peer.postcopy_base = UINT64_C(0x550000000000);
    for (size_t i = 0; i < user_call_count; i++) {
        if (strcmp(user_calls[i].name, "start in postcopy") == 0) {
            user_call call = user_calls[i];
            call.avoid = avoid;
            return user_arrange(b, &call);
        }
    }
    return -ENOENT;
}

/* The front-end says that it knows, and nobody answers that (U6: under the same message). */
TEST in_postcopy_slots_are_answered_with_their_bases(peer_bench *b)
{
    ASSERT_OK(listening(b, 0));
    ASSERT_OK(vhost_device_start(&b->device));
    const peer_bytes *add = peer_find(&b->peer, PEER_ADD_MEM_REG, 0);
    ASSERT_U64(0x1, peer_number(add, 0, 8) | peer_flags(add)); /* without need_reply */
    const peer_bytes ack = peer_parse("37 1 8 Q0");
    ASSERT_MEM_EQ(ack.bytes, add[1].bytes, 20);
    ASSERT_UINT(20, add[1].size);
    ASSERT_UINT(4, peer_count(&b->peer, PEER_ADD_MEM_REG));
    ASSERT_UINT(2, told);
    ASSERT_U64(0, told_gpa[0]);
    ASSERT_U64(0x80000, told_size[0]);
    ASSERT_U64(UINT64_C(0x550000000000), told_base[0]);
    ASSERT_U64(UINT64_C(0x100000000), told_gpa[1]);
    ASSERT_U64(UINT64_C(0x550100000000), told_base[1]);
    ASSERT_OK(vhost_user_postcopy_end(&b->user));
    peer_forget(&b->peer);
    ASSERT_OK(user_change_map(b, 3));
    HEARD(b, "37 9 40 Q0 Q200000000 Q1000 Q200000000 Q0 +9000");
    PASS();
}

TEST in_postcopy_a_table_is_answered_with_its_bases(peer_bench *b)
{
    ASSERT_OK(listening(b, PEER_BIT(15)));
    ASSERT_OK(vhost_device_start(&b->device));
    const peer_bytes *table = peer_find(&b->peer, PEER_SET_MEM_TABLE, 0);
    const peer_bytes ack = peer_parse("5 1 8 Q0");
    ASSERT_UINT(1, peer_flags(table));
    ASSERT_MEM_EQ(ack.bytes, table[1].bytes, 20);
    ASSERT_UINT(2, told);
    ASSERT_U64(UINT64_C(0x550100000000), told_base[1]);
    PASS();
}

/* What is told to the VMM is where its own regions are, and not what a back-end makes up. */
TEST in_postcopy_other_regions_are_no_answer(peer_bench *b)
{
    static const uint32_t at[] = {8, 12, 16};
    for (int i = 0; i < 3; i++) {
        ASSERT_OK(listening(b, 0));
        peer_add_rule(&b->peer, PEER_ADD_MEM_REG, 1, PEER_WORD, 0x1000)->at = at[i];
        ASSERT_LOST(b, vhost_device_start(&b->device), -EPROTO, VHOST_WHY_USER_VALUE);
        ASSERT_UINT(0, told);
        CHECK_CALL(peer_renew(b));
    }
    PASS();
}

/* ---- the log ---- */

/* U13: a back-end that maps it twice may unmap it once too often. */
TEST each_log_is_sent_once(peer_bench *b)
{
    ASSERT_OK(peer_running(b, 1));
    ASSERT_OK(vhost_log_start(&b->f->vm));
    ASSERT_UINT(1, peer_count(&b->peer, PEER_SET_LOG_BASE));
    ASSERT_OK(vhost_device_stop(&b->device));
    ASSERT_OK(vhost_device_start(&b->device));
    ASSERT_UINT(1, peer_count(&b->peer, PEER_SET_LOG_BASE));
    ASSERT_OK(user_change_map(b, 3)); /* the log grows */
    ASSERT_UINT(2, peer_count(&b->peer, PEER_SET_LOG_BASE));
    ASSERT_OK(vhost_log_stop(&b->f->vm));
    ASSERT_OK(vhost_log_start(&b->f->vm)); /* another one, perhaps at the same place */
    ASSERT_UINT(3, peer_count(&b->peer, PEER_SET_LOG_BASE));
    ASSERT_OK(vhost_device_stop(&b->device));
    ASSERT_OK(vhost_device_reset(&b->device)); /* and it may have let go of it */
    peer_fill(b);
    ASSERT_OK(vhost_device_ack(&b->device, b->accepted));
    ASSERT_OK(vhost_device_start(&b->device));
    ASSERT_UINT(4, peer_count(&b->peer, PEER_SET_LOG_BASE));
    PASS();
}

TEST a_log_is_answered_in_three_sizes(peer_bench *b)
{
    static const uint32_t sizes[] = {0, 8, 16};
    for (int i = 0; i < 3; i++) {
        b->peer.log_answer = sizes[i];
        ASSERT_OK(peer_running(b, 2));
        ASSERT_OK(vhost_log_start(&b->f->vm));
        ASSERT_UINT(1, b->peer.waits);
        ASSERT_OK(vhost_log_stop(&b->f->vm));
        CHECK_CALL(peer_renew(b));
    }
    PASS();
}

/* The log covers used rings that the back-end has, and the table does not lie beyond it. */
TEST the_log_grows_before_the_table(peer_bench *b)
{
    ASSERT_OK(peer_running(b, 1));
    ASSERT_OK(vhost_log_start(&b->f->vm));
    peer_forget(&b->peer);
    ASSERT_OK(user_change_map(b, 3));
    ASSERT_UINT(PEER_SET_LOG_BASE, peer_id(&b->peer.heard.at[0]));
    ASSERT_UINT(PEER_ADD_MEM_REG, peer_id(&b->peer.heard.at[1]));
    ASSERT(peer_number(&b->peer.heard.at[0], 0, 8) >= UINT64_C(0x200001000) / 4096 / 8);
    ASSERT_UINT(1, b->peer.waits);
    PASS();
}

TEST with_a_bias_the_log_address_is_still_guest_physical(peer_bench *b)
{
    b->options.address_bias = UINT64_C(0x7f0000000000);
    ASSERT_OK(peer_running(b, 1));
    ASSERT_OK(vhost_log_start(&b->f->vm));
    ASSERT_U64(0x8200, peer_number(peer_find(&b->peer, PEER_SET_VRING_ADDR, 0), 32, 8));
    PASS();
}

SUITE(user_memory_suite)
{
    RUN_USER(a_table_is_sent_whole);
    RUN_USER(eight_regions_and_no_more);
    RUN_USER(memory_without_an_fd_stays_here);
    RUN_USER(slots_come_and_go_one_by_one);
    RUN_USER(slots_go_before_others_come);
    RUN_USER(memory_that_is_replaced_in_place_is_another_slot);
    RUN_USER(many_slots_are_one_wait);
    RUN_USER(user_addresses_have_a_bias);
    RUN_USER(no_address_of_this_process_is_told);
    RUN_USER(with_gpa_addresses_there_is_no_bias);
    RUN_USER(xen_regions_are_longer);
    RUN_USER(in_postcopy_slots_are_answered_with_their_bases);
    RUN_USER(in_postcopy_a_table_is_answered_with_its_bases);
    RUN_USER(in_postcopy_other_regions_are_no_answer);
    RUN_USER(each_log_is_sent_once);
    RUN_USER(a_log_is_answered_in_three_sizes);
    RUN_USER(the_log_grows_before_the_table);
    RUN_USER(with_a_bias_the_log_address_is_still_guest_physical);
}
