/* What is offered, acknowledged and sent: >>features. */
#include "fixture.h"

#include <errno.h>
#include <string.h>

#define BIT(n) (UINT64_C(1) << (n))

enum {
    THEIRS = 5,          /* the back-end's to offer, and it does */
    THEIRS_MISSING = 6,  /* the back-end's to offer, and it does not */
    OURS = 40,           /* the VMM's own; the back-end does not know it */
    OURS_OFFERED = 41,   /* the VMM's own, although the back-end has it */
    THEIRS_HIGH = 64 + 7 /* as THEIRS, in the second word */
};

static const uint64_t all = ~UINT64_C(0);

static void set_facts(fixture *f)
{
    f->mock[0].facts.its_bits =
        fixture_features(BIT(THEIRS) | BIT(THEIRS_MISSING) | BIT(VHOST_FEATURE_LOG_ALL) |
                             BIT(VHOST_FEATURE_VERSION_1) | BIT(VHOST_FEATURE_ACCESS_PLATFORM),
                         all);
    f->mock[0].facts.offered =
        fixture_features(BIT(THEIRS) | BIT(OURS_OFFERED) | BIT(VHOST_FEATURE_LOG_ALL) |
                             BIT(VHOST_FEATURE_VERSION_1) | BIT(VHOST_FEATURE_ACCESS_PLATFORM),
                         BIT(THEIRS_HIGH - 64));
    f->accepted = fixture_features(0, 0);
}

static int attach(fixture *f)
{
    set_facts(f);
    return fixture_attach(f, 0);
}

static enum greatest_test_res sent_is(const fixture *f, uint64_t low, uint64_t high)
{
    const mock_call *call = mock_last(&f->mock[0], VHOST_OP_SET_FEATURES, -1);
    ASSERT(call);
    ASSERT_U64(low, call->features.word[0]);
    ASSERT_U64(high, call->features.word[1]);
    PASS();
}

static enum greatest_test_res acked_is(const fixture *f, uint64_t low, uint64_t high)
{
    ASSERT_U64(low, f->device[0].acked.word[0]);
    ASSERT_U64(high, f->device[0].acked.word[1]);
    PASS();
}

TEST each_bit_is_set_tested_and_cleared_alone(void)
{
    for (unsigned bit = 0; bit < 128; bit++) {
        vhost_features features = {{0, 0}};
        vhost_features_set(&features, bit);
        ASSERT_U64(bit < 64 ? BIT(bit) : 0, features.word[0]);
        ASSERT_U64(bit < 64 ? 0 : BIT(bit - 64), features.word[1]);
        ASSERT(vhost_features_test(&features, bit));
        ASSERT_FALSE(vhost_features_test(&features, bit ^ 64));
        features = fixture_features(all, all);
        vhost_features_clear(&features, bit);
        ASSERT_FALSE(vhost_features_test(&features, bit));
        ASSERT_U64(bit < 64 ? ~BIT(bit) : all, features.word[0]);
        ASSERT_U64(bit < 64 ? all : ~BIT(bit - 64), features.word[1]);
    }
    PASS();
}

TEST bits_that_do_not_exist_are_never_set(void)
{
    vhost_features features = {{0, 0}};
    vhost_features_set(&features, 128);
    vhost_features_set(&features, UINT32_MAX);
    ASSERT_U64(0, features.word[0] | features.word[1]);
    features = fixture_features(all, all);
    vhost_features_clear(&features, 128);
    ASSERT_U64(all, features.word[0] & features.word[1]);
    ASSERT_FALSE(vhost_features_test(&features, 128));
    PASS();
}

TEST bits_of_the_back_end_are_offered_only_if_it_has_them(fixture *f)
{
    ASSERT_OK(attach(f));
    vhost_features mine = fixture_features(BIT(THEIRS) | BIT(THEIRS_MISSING), all);
    vhost_features offer = vhost_device_offer(&f->device[0], mine);
    ASSERT_U64(BIT(THEIRS), offer.word[0]);
    ASSERT_U64(BIT(THEIRS_HIGH - 64), offer.word[1]);
    PASS();
}

TEST other_bits_are_offered_unchanged(fixture *f)
{
    ASSERT_OK(attach(f));
    vhost_features offer = vhost_device_offer(&f->device[0], fixture_features(BIT(OURS), 0));
    ASSERT_U64(BIT(OURS), offer.word[0]);
    PASS();
}

TEST nothing_is_offered_that_the_vmm_does_not_want(fixture *f)
{
    ASSERT_OK(attach(f));
    vhost_features offer = vhost_device_offer(&f->device[0], fixture_features(0, 0));
    ASSERT_U64(0, offer.word[0]);
    ASSERT_U64(0, offer.word[1]);
    PASS();
}

TEST log_all_is_never_offered(fixture *f)
{
    ASSERT_OK(attach(f));
    vhost_features offer = vhost_device_offer(&f->device[0], fixture_features(all, all));
    ASSERT_FALSE(vhost_features_test(&offer, VHOST_FEATURE_LOG_ALL));
    PASS();
}

TEST the_vmm_may_say_which_bits_are_the_back_ends(fixture *f)
{
    vhost_features its = fixture_features(BIT(OURS), 0);
    f->device_options.its_bits = &its;
    ASSERT_OK(attach(f));
    vhost_features mine = fixture_features(BIT(OURS) | BIT(THEIRS_MISSING), 0);
    vhost_features offer = vhost_device_offer(&f->device[0], mine);
    ASSERT_U64(BIT(THEIRS_MISSING), offer.word[0]);
    ASSERT_INT(-EINVAL, vhost_device_ack(&f->device[0], fixture_features(BIT(OURS), 0)));
    vhost_device_cleanup(&f->device[0]);
    PASS();
}

TEST ack_sets_and_does_not_or(fixture *f)
{
    ASSERT_OK(attach(f));
    ASSERT_OK(vhost_device_ack(&f->device[0], fixture_features(BIT(THEIRS), 0)));
    CHECK_CALL(acked_is(f, BIT(THEIRS), 0));
    ASSERT_OK(vhost_device_ack(&f->device[0], fixture_features(BIT(OURS), 0)));
    return acked_is(f, BIT(OURS), 0);
}

TEST ack_of_what_the_back_end_lacks_changes_nothing(fixture *f)
{
    ASSERT_OK(attach(f));
    ASSERT_OK(vhost_device_ack(&f->device[0], fixture_features(BIT(THEIRS), 0)));
    vhost_features more = fixture_features(BIT(OURS) | BIT(THEIRS_MISSING), 0);
    ASSERT_FAILS(f, vhost_device_ack(&f->device[0], more), &f->device[0].last_error, -EINVAL,
                 VHOST_WHY_FEATURE_NOT_OFFERED);
    CHECK_CALL(acked_is(f, BIT(THEIRS), 0));
    more = fixture_features(0, BIT(THEIRS_HIGH - 64 + 1));
    ASSERT_INT(-EINVAL, vhost_device_ack(&f->device[0], more));
    return acked_is(f, BIT(THEIRS), 0);
}

TEST ack_tells_the_back_end_nothing_yet(fixture *f)
{
    ASSERT_OK(attach(f));
    mock_forget(&f->mock[0]);
    ASSERT_OK(vhost_device_ack(&f->device[0], fixture_features(BIT(THEIRS), 0)));
    ASSERT_UINT(0, f->mock[0].calls.count);
    PASS();
}

/* Acknowledges, starts, and expects these bits to be sent. */
static enum greatest_test_res sends(fixture *f, vhost_features accepted, uint64_t low,
                                    uint64_t high)
{
    ASSERT_OK(attach(f));
    ASSERT_OK(vhost_device_ack(&f->device[0], accepted));
    ASSERT_OK(vhost_device_start(&f->device[0]));
    return sent_is(f, low, high);
}

TEST what_was_acknowledged_and_offered_is_sent(fixture *f)
{
    vhost_features accepted =
        fixture_features(BIT(THEIRS) | BIT(OURS_OFFERED), BIT(THEIRS_HIGH - 64));
    return sends(f, accepted, BIT(THEIRS) | BIT(OURS_OFFERED), BIT(THEIRS_HIGH - 64));
}

TEST bits_that_the_back_end_does_not_know_are_not_sent(fixture *f)
{
    return sends(f, fixture_features(BIT(THEIRS) | BIT(OURS), 0), BIT(THEIRS), 0);
}

TEST log_all_is_not_sent_without_a_log(fixture *f)
{
    vhost_features accepted = fixture_features(BIT(THEIRS) | BIT(VHOST_FEATURE_LOG_ALL), 0);
    ASSERT_OK(attach(f));
    (void)vhost_device_ack(&f->device[0], accepted);
    ASSERT_OK(vhost_device_start(&f->device[0]));
    const mock_call *call = mock_last(&f->mock[0], VHOST_OP_SET_FEATURES, -1);
    ASSERT_FALSE(vhost_features_test(&call->features, VHOST_FEATURE_LOG_ALL));
    PASS();
}

TEST access_platform_is_not_sent_without_a_viommu(fixture *f)
{
    vhost_features accepted =
        fixture_features(BIT(VHOST_FEATURE_VERSION_1) | BIT(VHOST_FEATURE_ACCESS_PLATFORM), 0);
    CHECK_CALL(sends(f, accepted, BIT(VHOST_FEATURE_VERSION_1), 0));
    ASSERT(vhost_features_test(&f->device[0].acked, VHOST_FEATURE_ACCESS_PLATFORM));
    PASS();
}

TEST features_are_sent_at_each_start(fixture *f)
{
    CHECK_CALL(sends(f, fixture_features(BIT(THEIRS), 0), BIT(THEIRS), 0));
    ASSERT_OK(vhost_device_stop(&f->device[0]));
    ASSERT_OK(vhost_device_ack(&f->device[0], fixture_features(0, 0)));
    mock_forget(&f->mock[0]);
    ASSERT_OK(vhost_device_start(&f->device[0]));
    return sent_is(f, 0, 0);
}

SUITE(features_suite)
{
    RUN_TEST(each_bit_is_set_tested_and_cleared_alone);
    RUN_TEST(bits_that_do_not_exist_are_never_set);
    RUN_PLAIN(bits_of_the_back_end_are_offered_only_if_it_has_them);
    RUN_PLAIN(other_bits_are_offered_unchanged);
    RUN_PLAIN(nothing_is_offered_that_the_vmm_does_not_want);
    RUN_PLAIN(log_all_is_never_offered);
    RUN_PLAIN(the_vmm_may_say_which_bits_are_the_back_ends);
    RUN_PLAIN(ack_sets_and_does_not_or);
    RUN_PLAIN(ack_of_what_the_back_end_lacks_changes_nothing);
    RUN_PLAIN(ack_tells_the_back_end_nothing_yet);
    RUN_BOTH(what_was_acknowledged_and_offered_is_sent);
    RUN_BOTH(bits_that_the_back_end_does_not_know_are_not_sent);
    RUN_BOTH(log_all_is_not_sent_without_a_log);
    RUN_BOTH(access_platform_is_not_sent_without_a_viommu);
    RUN_BOTH(features_are_sent_at_each_start);
}
