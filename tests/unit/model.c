/* Random maps and logs against the model (model.h).

   VHOST_SEED is the first seed, VHOST_MODEL_RUNS is how many maps there are. */
#include "model.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define RUNS 20000
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define RUNS 20000
#endif
#endif
#ifndef RUNS
#define RUNS 1000000
#endif

static uint64_t number_from(const char *variable, uint64_t otherwise)
{
    const char *given = getenv(variable);
    return given ? strtoull(given, NULL, 0) : otherwise;
}

/* The model of one run is the world of the next, so that a failure is found again only from the
   seed with which its world began: every hundred runs, all begins anew. */
static enum greatest_test_res run_hundred(fixture *f, uint64_t seed, model_tally *done)
{
    dice chance;
    dice_seed(&chance, 2 * seed + (f->mode == MOCK_QUEUED));
    CHECK_CALL(fixture_renew(f));
    return model_run(f, &chance, 100, done);
}

static enum greatest_test_res did_much(const model_tally *done, uint64_t worlds)
{
    ASSERT(done->commits > 50 * worlds);
    ASSERT(done->refused > 5 * worlds);
    ASSERT(done->too_many > worlds);
    ASSERT(done->resizes > worlds);
    ASSERT(done->pages > 20 * worlds);
    ASSERT(done->dropped > 20 * worlds);
    ASSERT(done->left > worlds / 8);
    PASS();
}

TEST random_maps_and_logs_agree_with_a_model(fixture *f)
{
    uint64_t first = number_from("VHOST_SEED", 1);
    uint64_t worlds = number_from("VHOST_MODEL_RUNS", RUNS) / 200 + 1; /* in each of two modes */
    model_tally done;
    memset(&done, 0, sizeof done);
    for (uint64_t seed = first; seed < first + worlds; seed++) {
        if (run_hundred(f, seed, &done) != GREATEST_TEST_RES_PASS) {
            fprintf(stderr, "VHOST_SEED=%llu\n", (unsigned long long)seed);
            return GREATEST_TEST_RES_FAIL;
        }
    }
    return worlds < 10 ? GREATEST_TEST_RES_PASS : did_much(&done, worlds);
}

SUITE(model_suite)
{
    RUN_BOTH(random_maps_and_logs_agree_with_a_model);
}
