/* candidates: the filters keep exactly what sorting everything would keep, ties included. */
#include "engine/candidates.h"

#include "base/sampling_math.h"
#include "engine/sampler_reference_testing.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static candidates set_create(const float *logits, uint32_t n) {
    candidates c = {.n = n,
                    .id = calloc(n, sizeof *c.id),
                    .logit = calloc(n, sizeof *c.logit),
                    .weight = calloc(n, sizeof *c.weight),
                    .key = calloc(n, sizeof *c.key),
                    .order = calloc(n, sizeof *c.order),
                    .keep = calloc(n, sizeof *c.keep),
                    .measure = calloc(CANDIDATES_BUCKETS, sizeof *c.measure)};
    for (uint32_t i = 0; i < n; i++) {
        c.id[i] = (int32_t)(3 * i + 1); /* ids have gaps: what a filter keeps is not told by its index */
        c.logit[i] = logits[i];
    }
    return c;
}

static void set_free(candidates *c) {
    free(c->id);
    free(c->logit);
    free(c->weight);
    free(c->key);
    free(c->order);
    free(c->keep);
    free(c->measure);
}

static bool same(const candidates *c, const reference_set *r) {
    if (c->n != r->n) {
        return false;
    }
    uint64_t total = 0;
    for (uint32_t i = 0; i < c->n; i++) {
        total += c->weight[i];
    }
    for (uint32_t i = 0; i < c->n; i++) {
        long double p = (long double)c->weight[i] / (long double)total;
        if (c->id[i] != r->tokens[i].id || fabsl(p - r->tokens[i].p) > 1e-12L + r->margin) {
            return false;
        }
    }
    return true;
}

/* One row through the filters of both. Returns whether the reference was sure. */
static bool compare(const float *logits, uint32_t n, const perch_sampling *p, uint64_t seed) {
    candidates c = set_create(logits, n);
    reference_set r = {calloc(n, sizeof *r.tokens), n, false, 0};
    double inverse_temperature = sampling_inverse_temperature(p->temperature);
    for (uint32_t i = 0; i < n; i++) {
        r.tokens[i] = (reference_token){c.id[i], (double)c.logit[i], 0, 0};
    }
    reference_filter(&r, p->temperature, p->top_k, p->typical_p, p->top_p, p->min_p);
    if (p->top_k > 0) {
        candidates_top_k(&c, (uint32_t)p->top_k);
    }
    candidates_weigh(&c, inverse_temperature);
    candidates_typical(&c, inverse_temperature, p->typical_p);
    candidates_top_p(&c, p->top_p);
    candidates_min_p(&c, p->min_p);
    if (!r.ambiguous) {
        CHECK_MSG(same(&c, &r), "seed %llu: kept %u of %u, should be %zu (T %g k %d typical %g p %g min %g)",
                  (unsigned long long)seed, c.n, n, r.n, p->temperature, p->top_k, p->typical_p, p->top_p, p->min_p);
    }
    free(r.tokens);
    set_free(&c);
    return !r.ambiguous;
}

static void test_random_rows(void) {
    enum { MAX_N = 300 };
    uint64_t first = test_seed(1), rows = test_scaled(20000), sure = 0;
    float logits[MAX_N];
    for (uint64_t row = 0; row < rows; row++) {
        test_rng rng = {first + row};
        uint32_t n = (uint32_t)(1 + test_rng_below(&rng, test_rng_below(&rng, 4) ? 40 : MAX_N));
        reference_row(&rng, logits, n);
        perch_sampling p = reference_sampling(&rng, n);
        p.temperature = p.temperature > 0 ? p.temperature : 1;
        for (uint64_t i = test_rng_below(&rng, 3); i-- > 0 && test_rng_below(&rng, 10) == 0;) {
            logits[test_rng_below(&rng, n)] = INFINITY;
        }
        sure += compare(logits, n, &p, first + row);
    }
    CHECK_MSG(sure * 10 >= rows * 9, "only %llu of %llu rows were decided", (unsigned long long)sure,
              (unsigned long long)rows);
}

static void test_large_vocabulary(void) {
    enum { N = 50000 };
    float *logits = calloc(N, sizeof *logits);
    for (uint64_t row = 0; row < 6; row++) {
        test_rng rng = {test_seed(77) + row};
        reference_row(&rng, logits, N);
        perch_sampling p = {.temperature = 0.5 + (double)row,
                            .top_p = 0.9,
                            .typical_p = row % 2 ? 0.95 : 1,
                            .top_k = row % 3 ? 0 : 20000,
                            .min_p = row == 5 ? 0.01 : 0};
        compare(logits, N, &p, rng.state);
    }
    free(logits);
}

/* Expects exactly these ids. */
static void expect_ids(const candidates *c, const int32_t *ids, uint32_t n, const char *what) {
    CHECK_MSG(c->n == n && memcmp(c->id, ids, n * sizeof *ids) == 0, "%s: %u kept, first %d, last %d", what, c->n,
              c->id[0], c->id[c->n - 1]);
}

static void test_ties_go_to_the_lower_id(void) {
    const float logits[] = {1, 2, 2, 0, 2, 2, 1};
    candidates c = set_create(logits, 7);
    candidates_top_k(&c, 3);
    expect_ids(&c, (const int32_t[]){4, 7, 13}, 3, "top-k");
    set_free(&c);

    const float zeros[] = {0.0f, -0.0f, 0.0f, -0.0f};
    c = set_create(zeros, 4);
    candidates_top_k(&c, 2);
    expect_ids(&c, (const int32_t[]){1, 4}, 2, "zeros of both signs are equal");
    set_free(&c);

    c = set_create(zeros, 4);
    candidates_weigh(&c, 1);
    candidates_top_p(&c, 0.5); /* two of four equals reach one half exactly */
    expect_ids(&c, (const int32_t[]){1, 4}, 2, "top-p");
    candidates_typical(&c, 1, 0.25);
    expect_ids(&c, (const int32_t[]){1}, 1, "typical");
    set_free(&c);
}

static void test_hand_computed(void) {
    /* probabilities 1/2, 1/4, 1/8, 1/8 */
    const float logits[] = {(float)M_LN2, 0, (float)-M_LN2, (float)-M_LN2};
    candidates c = set_create(logits, 4);
    candidates_weigh(&c, 1);
    CU_ASSERT_EQUAL(c.weight[0], SAMPLING_ONE);
    CU_ASSERT_DOUBLE_EQUAL((double)c.weight[1] / (double)SAMPLING_ONE, 0.5, 1e-7);
    CU_ASSERT_DOUBLE_EQUAL((double)c.weight[3] / (double)SAMPLING_ONE, 0.25, 1e-7);
    candidates_top_p(&c, 0.7);
    expect_ids(&c, (const int32_t[]){1, 4}, 2, "top-p 0.7");
    candidates_min_p(&c, 0.4);
    expect_ids(&c, (const int32_t[]){1, 4}, 2, "min-p 0.4");
    candidates_min_p(&c, 0.6);
    expect_ids(&c, (const int32_t[]){1}, 1, "min-p 0.6");
    set_free(&c);

    /* H = 1.75 ln 2: the token of probability 1/4 is the most typical, the likeliest comes third */
    c = set_create(logits, 4);
    candidates_weigh(&c, 1);
    candidates_typical(&c, 1, 0.2);
    expect_ids(&c, (const int32_t[]){4}, 1, "typical 0.2");
    set_free(&c);
}

static void test_borders_are_exact(void) {
    /* as likely as it has to be, and by the least number less */
    const float logits[] = {1, 0, -1};
    for (int more = 0; more < 2; more++) {
        candidates c = set_create(logits, 3);
        candidates_weigh(&c, 1);
        candidates_min_p(&c, (double)(c.weight[1] + (uint64_t)more) / (double)SAMPLING_ONE);
        expect_ids(&c, (const int32_t[]){1, 4}, more ? 1 : 2, "min-p");
        set_free(&c);
    }

    /* a share of exactly the first two, and by the least number more */
    for (int more = 0; more < 2; more++) {
        candidates c = set_create(logits, 3);
        candidates_weigh(&c, 1);
        c.weight[0] = 5, c.weight[1] = 3, c.weight[2] = 8;
        candidates_top_p(&c, more ? 0.5 + 0x1p-53 : 0.5);
        expect_ids(&c, (const int32_t[]){1, 4, 7}, more ? 3 : 2, "top-p");
        set_free(&c);
    }

    /* neighbours among floats, in ascending order */
    const float ones[5] = {0};
    candidates c = set_create(ones, 5);
    for (int i = 0; i < 5; i++) {
        c.logit[i] = 1 + (float)i * 0x1p-23f;
    }
    candidates_top_k(&c, 2);
    expect_ids(&c, (const int32_t[]){10, 13}, 2, "neighbours");
    set_free(&c);

    /* a share so small that nothing of the weight is left leaves one token all the same */
    c = set_create(ones, 3);
    candidates_weigh(&c, 1);
    candidates_top_p(&c, 5e-324);
    expect_ids(&c, (const int32_t[]){1}, 1, "no share");
    set_free(&c);
}

static void test_infinite_logits_share_everything(void) {
    const float logits[] = {3, INFINITY, 1, INFINITY};
    candidates c = set_create(logits, 4);
    candidates_weigh(&c, 0.7);
    CU_ASSERT_EQUAL(c.weight[0], 0);
    CU_ASSERT_EQUAL(c.weight[1], SAMPLING_ONE);
    CU_ASSERT_EQUAL(c.weight[3], SAMPLING_ONE);
    candidates_typical(&c, 0.7, 0.9);
    expect_ids(&c, (const int32_t[]){4, 10}, 2, "typical");
    CU_ASSERT_EQUAL(candidates_draw(&c, UINT64_MAX / 2), 0);
    CU_ASSERT_EQUAL(candidates_draw(&c, UINT64_MAX / 2 + 1), 1);
    set_free(&c);
}

static void test_draw_at_the_ends(void) {
    const float logits[] = {-1e30f, 0, 0, -1e30f};
    candidates c = set_create(logits, 4);
    candidates_weigh(&c, 1);
    CU_ASSERT_EQUAL(candidates_draw(&c, 0), 1); /* never a token without weight */
    CU_ASSERT_EQUAL(candidates_draw(&c, UINT64_C(1) << 63), 2);
    CU_ASSERT_EQUAL(candidates_draw(&c, UINT64_MAX), 2);
    set_free(&c);
}

int main(int argc, char **argv) {
    const test_case tests[] = {
        {"random_rows_as_by_sorting", test_random_rows},
        {"large_vocabulary_as_by_sorting", test_large_vocabulary},
        {"ties_go_to_the_lower_id", test_ties_go_to_the_lower_id},
        {"hand_computed_sets", test_hand_computed},
        {"borders_are_exact", test_borders_are_exact},
        {"infinite_logits_share_everything", test_infinite_logits_share_everything},
        {"draw_at_the_ends", test_draw_at_the_ends},
    };
    return test_main("candidates", tests, sizeof tests / sizeof tests[0], argc, argv);
}
