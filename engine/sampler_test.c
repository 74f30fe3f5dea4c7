/* sampler: choices against a naive sampler, draws against exact probabilities, log-probabilities in long double. */
#include "engine/sampler.h"

#include "base/sampling_math.h"
#include "engine/sampler_reference_testing.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const perch_sampling greedy = {
    .struct_size = sizeof greedy, .top_p = 1, .typical_p = 1, .repetition_penalty = 1};

static sampler *make(uint32_t vocab_size) {
    sampler *s;
    perch_error err;
    return CHECK_MSG(sampler_create(vocab_size, &s, &err) == PERCH_OK, "%s", err.message) ? s : NULL;
}

/* The documented draw, on the naive sampler's set: -1 where rounding decides. */
static int32_t reference_draw(const reference_set *set, const sampler_input *in) {
    const uint32_t counter[4] = {(uint32_t)in->n_tokens, (uint32_t)(in->n_tokens >> 32), in->completion, 0};
    const uint32_t key[2] = {(uint32_t)in->sampling->seed, (uint32_t)(in->sampling->seed >> 32)};
    uint32_t word[4];
    sampling_philox(counter, key, word);
    long double unit = (long double)((uint64_t)word[0] << 32 | word[1]) * 0x1p-64L, reached = 0;
    for (size_t i = 0; i < set->n; i++) {
        reached += set->tokens[i].p;
        if (fabsl(reached - unit) < 1e-12L + set->margin && reached < 0.9999999L) {
            return -1;
        }
        if (reached > unit) {
            return set->tokens[i].id;
        }
    }
    return set->n > 0 ? set->tokens[set->n - 1].id : -1;
}

static void spoil(test_rng *rng, float *logits, uint32_t n) {
    static const float odd[] = {NAN, -INFINITY, INFINITY, -NAN, 3.4e38f, -3.4e38f};
    uint64_t kinds = test_rng_below(rng, 8) ? 2 : sizeof odd / sizeof odd[0];
    for (uint64_t i = test_rng_below(rng, 4); i-- > 0;) {
        logits[test_rng_below(rng, n)] = odd[test_rng_below(rng, kinds)];
    }
}

static int32_t random_token(test_rng *rng, uint32_t n) { return (int32_t)test_rng_below(rng, n); }

static void test_random_inputs(void) {
    enum { MAX_VOCAB = 120, MAX_TOKENS = 60 };
    uint64_t first = test_seed(1000), rows = test_scaled(20000), sure = 0;
    float logits[MAX_VOCAB];
    int32_t tokens[MAX_TOKENS], banned[4], suppressed[3];
    perch_logit_bias bias[5];
    sampler *samplers[MAX_VOCAB + 1] = {NULL}; /* used again and again: nothing of a call may stay behind */
    for (uint64_t row = 0; row < rows; row++) {
        test_rng rng = {first + row};
        uint32_t n = (uint32_t)(1 + test_rng_below(&rng, MAX_VOCAB));
        reference_row(&rng, logits, n);
        spoil(&rng, logits, n);
        perch_sampling p = reference_sampling(&rng, n);
        p.logit_bias = bias;
        p.n_logit_bias = test_rng_below(&rng, 6);
        for (size_t i = 0; i < p.n_logit_bias; i++) {
            bias[i] = (perch_logit_bias){random_token(&rng, n), (float)(test_rng_unit(&rng) * 20 - 10)};
        }
        p.banned_tokens = banned;
        p.n_banned_tokens = test_rng_below(&rng, 5);
        sampler_input in = {.logits = logits, .sampling = &p, .tokens = tokens, .suppressed = suppressed};
        in.n_suppressed = test_rng_below(&rng, 4);
        in.n_tokens = test_rng_below(&rng, MAX_TOKENS + 1);
        in.n_prompt = test_rng_below(&rng, in.n_tokens + 1);
        in.completion = (uint32_t)test_rng_below(&rng, 3);
        for (int i = 0; i < 4; i++) {
            banned[i] = random_token(&rng, n);
            suppressed[i % 3] = random_token(&rng, n);
        }
        for (uint64_t i = 0; i < in.n_tokens; i++) {
            tokens[i] = random_token(&rng, n);
            if (test_rng_below(&rng, 20) == 0) {
                tokens[i] += test_rng_below(&rng, 2) ? (int32_t)n : -(int32_t)n; /* of another vocabulary: ignored */
            }
        }
        if (!samplers[n]) {
            samplers[n] = make(n);
        }
        reference_set set = reference_choose(&in, n);
        sampler_output out = {.token = -2};
        perch_status status = sampler_sample(samplers[n], &in, &out, NULL);
        if (set.n == 0) {
            CHECK_MSG(status == PERCH_E_INVALID, "seed %llu: no token is left", (unsigned long long)(first + row));
        } else {
            int32_t expected = set.ambiguous ? -1 : p.temperature == 0 ? set.tokens[0].id : reference_draw(&set, &in);
            sure += expected >= 0;
            CHECK_MSG(status == PERCH_OK && (expected < 0 || out.token == expected), "seed %llu: %d, should be %d",
                      (unsigned long long)(first + row), out.token, expected);
        }
        free(set.tokens);
    }
    for (uint32_t n = 0; n <= MAX_VOCAB; n++) {
        sampler_destroy(samplers[n]);
    }
    CHECK_MSG(sure * 10 >= rows * 8, "only %llu of %llu rows were decided", (unsigned long long)sure,
              (unsigned long long)rows);
}

/* Whether counts[n] of total draws fit the set's probabilities; rare tokens are taken together. */
static void check_chi_square(const char *name, const uint64_t *counts, uint32_t n, const reference_set *set,
                             uint64_t total) {
    double expected[256] = {0}, statistic = 0, rare_expected = 0, rare_seen = 0;
    int cells = 0;
    for (size_t i = 0; i < set->n; i++) {
        expected[set->tokens[i].id] = (double)set->tokens[i].p * (double)total;
    }
    for (uint32_t i = 0; i < n; i++) {
        if (expected[i] == 0) {
            CHECK_MSG(counts[i] == 0, "%s: %u was filtered out, but drawn %llu times", name, i,
                      (unsigned long long)counts[i]);
        } else if (expected[i] < 10) {
            rare_expected += expected[i];
            rare_seen += (double)counts[i];
        } else {
            statistic += ((double)counts[i] - expected[i]) * ((double)counts[i] - expected[i]) / expected[i];
            cells++;
        }
    }
    if (rare_expected > 5) {
        statistic += (rare_seen - rare_expected) * (rare_seen - rare_expected) / rare_expected;
        cells++;
    }
    /* Wilson-Hilferty: the cube root of chi-square over its degrees of freedom is nearly normal. */
    double freedom = cells - 1, spread = 2 / (9 * freedom);
    double z = (cbrt(statistic / freedom) - (1 - spread)) / sqrt(spread);
    CHECK_MSG(cells > 1 && z < 4.5, "%s: chi-square %g with %g degrees of freedom, z = %g", name, statistic, freedom,
              z);
}

static void test_draws_follow_the_probabilities(void) {
    enum { VOCAB = 60 };
    static const struct {
        const char *name;
        double temperature, typical_p, top_p, min_p, repetition, frequency, presence;
        int32_t top_k;
    } cases[] = {
        {"temperature 1", 1, 1, 1, 0, 1, 0, 0, 0},
        {"temperature 0.5", 0.5, 1, 1, 0, 1, 0, 0, 0},
        {"temperature 3", 3, 1, 1, 0, 1, 0, 0, 0},
        {"top-k", 1, 1, 1, 0, 1, 0, 0, 7},
        {"top-p", 1, 1, 0.8, 0, 1, 0, 0, 0},
        {"min-p", 1, 1, 1, 0.1, 1, 0, 0, 0},
        {"typical", 1, 0.7, 1, 0, 1, 0, 0, 0},
        {"top-k, top-p", 0.8, 1, 0.9, 0, 1, 0, 0, 20},
        {"top-k, typical", 1.2, 0.8, 1, 0, 1, 0, 0, 30},
        {"top-p, min-p", 1.5, 1, 0.95, 0.05, 1, 0, 0, 0},
        {"typical, top-p", 1, 0.9, 0.9, 0, 1, 0, 0, 0},
        {"all filters", 1.3, 0.95, 0.9, 0.02, 1, 0, 0, 40},
        {"all penalties", 1, 1, 1, 0, 1.3, 0.5, 0.4, 0},
        {"all", 0.9, 0.9, 0.95, 0.01, 1.2, -0.3, 0.7, 30},
    };
    uint64_t draws = test_scaled(40000), seed = test_seed(5);
    float logits[VOCAB];
    int32_t prefix[24];
    test_rng rng = {seed};
    for (uint32_t i = 0; i < VOCAB; i++) {
        logits[i] = (float)(test_rng_unit(&rng) * 5 - 2.5);
    }
    for (size_t i = 0; i < 24; i++) {
        prefix[i] = random_token(&rng, VOCAB / 2);
    }
    sampler *s = make(VOCAB);
    for (size_t i = 0; s && i < sizeof cases / sizeof cases[0]; i++) {
        perch_sampling p = greedy;
        p.temperature = cases[i].temperature;
        p.typical_p = cases[i].typical_p;
        p.top_p = cases[i].top_p;
        p.min_p = cases[i].min_p;
        p.top_k = cases[i].top_k;
        p.repetition_penalty = cases[i].repetition;
        p.frequency_penalty = cases[i].frequency;
        p.presence_penalty = cases[i].presence;
        uint64_t counts[VOCAB] = {0};
        sampler_input in = {.logits = logits, .sampling = &p, .tokens = prefix, .n_tokens = 24, .n_prompt = 8};
        reference_set set = reference_choose(&in, VOCAB);
        /* The penalties see the same prefix each time: completion and seed make the draws differ. */
        for (uint64_t draw = 0; draw < draws; draw++) {
            sampler_output out;
            in.completion = (uint32_t)(draw % 16);
            p.seed = seed + draw / 16;
            CU_ASSERT_EQUAL_FATAL(sampler_sample(s, &in, &out, NULL), PERCH_OK);
            counts[out.token]++;
        }
        check_chi_square(cases[i].name, counts, VOCAB, &set, draws);
        free(set.tokens);
    }
    sampler_destroy(s);
}

static void test_positions_are_independent(void) {
    /* Pairs of draws at neighbouring positions, completions and seeds fall evenly on all pairs of tokens. */
    enum { VOCAB = 8 };
    const float logits[VOCAB] = {0};
    int32_t *tokens = calloc(200001, sizeof *tokens);
    perch_sampling p = greedy;
    p.temperature = 1;
    p.seed = test_seed(99);
    sampler *s = make(VOCAB);
    static const char *const names[] = {"positions", "completions", "seeds"};
    for (int way = 0; s && tokens && way < 3; way++) {
        uint64_t pairs[VOCAB * VOCAB] = {0};
        reference_set even = {calloc(VOCAB * VOCAB, sizeof *even.tokens), VOCAB * VOCAB, false, 0};
        int32_t before = 0;
        for (uint64_t i = 0; i <= 200000; i++) {
            sampler_output out;
            sampler_input in = {.logits = logits, .sampling = &p, .tokens = tokens, .n_tokens = way == 0 ? i : 7};
            in.n_prompt = in.n_tokens;
            in.completion = way == 1 ? (uint32_t)i : 0;
            p.seed = way == 2 ? i : test_seed(99);
            CU_ASSERT_EQUAL_FATAL(sampler_sample(s, &in, &out, NULL), PERCH_OK);
            pairs[before * VOCAB + out.token] += i > 0;
            before = out.token;
        }
        for (int32_t i = 0; i < VOCAB * VOCAB; i++) {
            even.tokens[i] = (reference_token){i, 0, 1.0L / (VOCAB * VOCAB), 0};
        }
        check_chi_square(names[way], pairs, VOCAB * VOCAB, &even, 200000);
        free(even.tokens);
    }
    free(tokens);
    sampler_destroy(s);
}

static int32_t sample(sampler *s, const float *logits, const perch_sampling *p, perch_status expected) {
    sampler_input in = {.logits = logits, .sampling = p};
    sampler_output out = {.token = -1};
    perch_error err = {PERCH_OK, ""};
    perch_status status = sampler_sample(s, &in, &out, &err);
    CHECK_MSG(status == expected, "%d: %s", status, err.message);
    return out.token;
}

static void test_greedy_takes_the_lowest_of_equals(void) {
    enum { VOCAB = 300 };
    float logits[VOCAB];
    const perch_logit_bias none = {5, 0};
    sampler *s = make(VOCAB);
    for (int32_t at = 0; at < VOCAB; at += 7) {
        for (int32_t i = 0; i < VOCAB; i++) {
            logits[i] = i >= at ? 2.5f : i % 3 ? -1.0f : NAN;
        }
        perch_sampling p = greedy;
        CU_ASSERT_EQUAL(sample(s, logits, &p, PERCH_OK), at);
        p.top_k = 40; /* filters change nothing */
        p.top_p = 0.5;
        p.logit_bias = &none; /* nor does the other way through the code */
        p.n_logit_bias = 1;
        CU_ASSERT_EQUAL(sample(s, logits, &p, PERCH_OK), at);
    }
    sampler_destroy(s);
}

static void test_unfit_tokens_are_never_chosen(void) {
    const float logits[] = {NAN, -INFINITY, -5, NAN, -INFINITY};
    const float none[] = {NAN, -INFINITY, -INFINITY, NAN, -INFINITY};
    const float infinite[] = {1, INFINITY, 5, INFINITY, NAN};
    const int32_t ban[] = {2}, ban_infinite[] = {1, 3};
    sampler *s = make(5);
    perch_sampling p = greedy;
    for (int hot = 0; hot < 2; hot++) {
        p.temperature = hot ? 100 : 0;
        p.banned_tokens = ban;
        for (p.seed = 0; p.seed < 50; p.seed++) {
            p.n_banned_tokens = 0;
            CU_ASSERT_EQUAL(sample(s, logits, &p, PERCH_OK), 2);
            int32_t token = sample(s, infinite, &p, PERCH_OK);
            CU_ASSERT_TRUE(token == 1 || (token == 3 && hot));
            sample(s, none, &p, PERCH_E_INVALID);
            p.n_banned_tokens = 1;
            sample(s, logits, &p, PERCH_E_INVALID);
        }
        p.banned_tokens = ban_infinite;
        p.n_banned_tokens = 2;
        int32_t token = sample(s, infinite, &p, PERCH_OK);
        CU_ASSERT_TRUE(token == 2 || (token == 0 && hot));
    }
    sampler_destroy(s);
}

static void test_each_adjustment_alone(void) {
    const float logits[] = {3, 2, 1};
    const perch_logit_bias bias = {2, 2.5f};
    const int32_t first = 0, first_two[] = {0, 1}, expected[] = {0, 2, 1, 2};
    sampler *s = make(3);
    for (int way = 0; way < 4; way++) {
        perch_sampling p = greedy;
        sampler_input in = {.logits = logits, .sampling = &p};
        sampler_output out = {.token = -1};
        p.logit_bias = &bias;
        p.n_logit_bias = way == 1;
        p.banned_tokens = &first;
        p.n_banned_tokens = way == 2;
        in.suppressed = first_two;
        in.n_suppressed = way == 3 ? 2 : 0;
        CU_ASSERT_EQUAL(sampler_sample(s, &in, &out, NULL), PERCH_OK);
        CU_ASSERT_EQUAL(out.token, expected[way]);
    }
    sampler_destroy(s);
}

static void test_failure_says_why(void) {
    const float logits[] = {NAN, NAN};
    sampler *s = make(2);
    sampler_input in = {.logits = logits, .sampling = &greedy, .n_tokens = 41};
    sampler_output out;
    perch_error err = {PERCH_OK, ""};
    CU_ASSERT_EQUAL(sampler_sample(s, &in, &out, &err), PERCH_E_INVALID);
    CU_ASSERT_STRING_EQUAL(err.message,
                           "no token is left at position 41: each is banned, or its logit is -inf or not a number");
    sampler_destroy(s);
}

static void test_extreme_parameters_stay_in_range(void) {
    /* A logit that a penalty drives beyond all floats is still one to choose: only bans and -inf aren't. */
    static const float rows[2][4] = {{3e38f, -3e38f, 1, 2}, {-3e38f, -1e38f, -2e38f, -3e38f}};
    static const double extremes[] = {1e-308, 1e308, 5e-324};
    const int32_t tokens[] = {0, 1, 2, 3};
    sampler *s = make(4);
    for (int i = 0; i < 18; i++) {
        perch_sampling p = greedy;
        double extreme = extremes[i / 2 % 3];
        p.temperature = extremes[i / 6];
        p.repetition_penalty = extreme;
        p.typical_p = p.top_p = extreme < 1 ? extreme : 1;
        sampler_input in = {.logits = rows[i % 2], .sampling = &p, .tokens = tokens, .n_tokens = 4, .n_prompt = 1};
        sampler_output out = {.token = -1};
        CU_ASSERT_EQUAL(sampler_sample(s, &in, &out, NULL), PERCH_OK);
        CU_ASSERT_TRUE(out.token >= 0 && out.token < 4);
    }
    sampler_destroy(s);
}

static void test_penalties_by_hand(void) {
    /* prompt: 0 0 1; generated: 2 2 3. */
    const int32_t tokens[] = {0, 0, 1, 2, 2, 3};
    const float logits[] = {4.0f, 3.9f, 3.8f, 3.7f, 3.0f};
    sampler *s = make(5);
    perch_sampling p = greedy;
    sampler_input in = {.logits = logits, .sampling = &p, .tokens = tokens, .n_tokens = 6, .n_prompt = 3};
    sampler_output out;
    const struct {
        double repetition, frequency, presence;
        int32_t token;
    } cases[] = {
        {1, 0, 0, 0},      /* nothing */
        {1.01, 0, 0, 0},   /* all but 4 shrink alike, also the two that stand there twice */
        {1.5, 0, 0, 4},    /* the only one not there: 3.0 against 4.0 / 1.5 */
        {1, -0.06, 0, 0},  /* 2 gains 0.12 only */
        {1, -0.11, 0, 2},  /* 2 gains 0.22 and passes 0 */
        {1, 0, -0.31, 2},  /* 2 and 3 gain 0.31 once: 4.11 and 4.01 */
        {1, 0.5, -0.9, 3}, /* 2: -1.0 + 0.9 = 3.7; 3: -0.5 + 0.9 = 4.1 */
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        p.repetition_penalty = cases[i].repetition;
        p.frequency_penalty = cases[i].frequency;
        p.presence_penalty = cases[i].presence;
        CU_ASSERT_EQUAL(sampler_sample(s, &in, &out, NULL), PERCH_OK);
        CHECK_MSG(out.token == cases[i].token, "case %zu: %d", i, out.token);
    }
    sampler_destroy(s);
}

static long double exact_logprob(const float *logits, uint32_t n, int32_t token) {
    long double best = -INFINITY, total = 0;
    for (uint32_t i = 0; i < n; i++) {
        best = !isnan(logits[i]) && (long double)logits[i] > best ? (long double)logits[i] : best;
    }
    for (uint32_t i = 0; i < n; i++) {
        total += isnan(logits[i]) ? 0 : expl((long double)logits[i] - best);
    }
    return (long double)logits[token] - best - logl(total);
}

static int by_logprob(const void *a, const void *b) {
    const perch_logprob *x = a, *y = b;
    return x->logprob > y->logprob ? -1 : x->logprob < y->logprob ? 1 : x->token - y->token;
}

static void test_logprobs(void) {
    enum { MAX_VOCAB = 400 };
    uint64_t first = test_seed(3000), rows = test_scaled(3000);
    float logits[MAX_VOCAB];
    perch_logprob sorted[MAX_VOCAB];
    for (uint64_t row = 0; row < rows; row++) {
        test_rng rng = {first + row};
        uint32_t n = (uint32_t)(1 + test_rng_below(&rng, MAX_VOCAB));
        reference_row(&rng, logits, n);
        logits[test_rng_below(&rng, n)] = 1;
        if (n > 3 && row % 4 == 0) {
            logits[0] = row % 8 ? NAN : -INFINITY;
            logits[n - 1] = 2;
        }
        for (uint32_t i = 0; i < n; i++) {
            sorted[i] = (perch_logprob){(int32_t)i, isnan(logits[i]) ? -INFINITY : logits[i]};
        }
        qsort(sorted, n, sizeof *sorted, by_logprob);
        /* The penalties and the ban change the choice, not what the model's distribution is. */
        const perch_logit_bias bias = {random_token(&rng, n), 5};
        perch_sampling p = reference_sampling(&rng, n);
        p.n_logprobs = (uint32_t)test_rng_below(&rng, SAMPLER_MAX_LOGPROBS + 1);
        p.logit_bias = &bias;
        p.n_logit_bias = 1;
        sampler *s = make(n);
        sampler_input in = {.logits = logits, .sampling = &p, .want_logprob = true};
        sampler_output out;
        CU_ASSERT_EQUAL(sampler_sample(s, &in, &out, NULL), PERCH_OK);
        long double expected = exact_logprob(logits, n, out.token);
        CHECK_MSG(fabsl((long double)out.logprob - expected) <= 1e-10L + 1e-7L * fabsl(expected),
                  "seed %llu: %.9g, should be %.9Lg", (unsigned long long)(first + row), (double)out.logprob, expected);
        CU_ASSERT_EQUAL(out.logprob, sampler_logprob(logits, n, out.token));
        CU_ASSERT_EQUAL(out.n_top, p.n_logprobs < n ? p.n_logprobs : n);
        for (uint32_t i = 0; i < out.n_top; i++) {
            CHECK_MSG(out.top[i].token == sorted[i].token &&
                          out.top[i].logprob == sampler_logprob(logits, n, sorted[i].token),
                      "seed %llu: the %u-th is %d, should be %d", (unsigned long long)(first + row), i,
                      out.top[i].token, sorted[i].token);
        }
        sampler_destroy(s);
    }
}

static void test_logprobs_of_large_vocabularies(void) {
    enum { VOCAB = 150000 };
    /* how far a row's tokens are spread, and by how much one of them is above: flat, as models have them, and ever more peaked */
    static const double kinds[][2] = {{0, 0},    {1e-3, 0},  {0.5, 0}, {2.5, 0},  {2.5, 8},  {2.5, 14},
                                      {0.1, 20}, {0.01, 25}, {0, 28},  {1, 30.5}, {0, 31.5}, {5, 60}};
    float *logits = calloc(VOCAB, sizeof *logits);
    for (size_t k = 0; logits && k < sizeof kinds / sizeof kinds[0]; k++) {
        test_rng rng = {test_seed(40) + k};
        for (uint32_t i = 0; i < VOCAB; i++) {
            logits[i] =
                (float)((test_rng_unit(&rng) + test_rng_unit(&rng) + test_rng_unit(&rng) - 1.5) * 2 * kinds[k][0]);
        }
        logits[4321] += (float)kinds[k][1];
        long double best = exact_logprob(logits, VOCAB, 4321);
        for (int32_t token = 4000; token < 5000; token += 107) {
            long double expected = best + (long double)logits[token] - (long double)logits[4321];
            float found = sampler_logprob(logits, VOCAB, token);
            long double allowed =
                1e-8L + fabsl(expected) * 0x1p-24L; /* weights of nothing; what a float leaves of it */
            CHECK_MSG(fabsl((long double)found - expected) <= allowed, "row %zu, token %d: %.9g, should be %.12Lg", k,
                      token, (double)found, expected);
        }
        CHECK_MSG(fabsl((long double)sampler_logprob(logits, VOCAB, 4321) - best) <= 1e-8L + fabsl(best) * 0x1p-24L,
                  "row %zu, the best: should be %.12Lg", k, best);
    }
    free(logits);
}

static void test_logprobs_of_infinite_logits(void) {
    const float logits[] = {INFINITY, 0, NAN, INFINITY, -INFINITY};
    CU_ASSERT_DOUBLE_EQUAL((double)sampler_logprob(logits, 5, 0), -M_LN2, 1e-7);
    CU_ASSERT_DOUBLE_EQUAL((double)sampler_logprob(logits, 5, 3), -M_LN2, 1e-7);
    for (int32_t token = 1; token < 5; token += token == 2 ? 2 : 1) {
        CU_ASSERT_TRUE(sampler_logprob(logits, 5, token) == -INFINITY);
    }
}

static void test_a_choice_depends_on_its_inputs_alone(void) {
    enum { VOCAB = 500, TOKENS = 100 };
    float logits[2][VOCAB];
    int32_t tokens[TOKENS];
    test_rng rng = {test_seed(8)};
    for (uint32_t i = 0; i < VOCAB; i++) {
        logits[0][i] = (float)(test_rng_unit(&rng) * 4);
        logits[1][i] = (float)(test_rng_unit(&rng) * 4);
    }
    for (uint32_t i = 0; i < TOKENS; i++) {
        tokens[i] = random_token(&rng, VOCAB);
    }
    sampler *used = make(VOCAB);
    for (uint32_t i = 0; i < 300; i++) {
        perch_sampling p = reference_sampling(&rng, VOCAB), other = reference_sampling(&rng, VOCAB);
        p.n_logprobs = 5;
        sampler_input in = {
            .logits = logits[0], .sampling = &p, .tokens = tokens, .n_tokens = TOKENS - i % 7, .n_prompt = 40};
        sampler_input between = {.logits = logits[1], .sampling = &other, .tokens = tokens, .n_tokens = i % TOKENS};
        sampler_output fresh_out, used_out, between_out;
        memset(&fresh_out, 0, sizeof fresh_out);
        memset(&used_out, 0, sizeof used_out);
        sampler *fresh = make(VOCAB);
        CU_ASSERT_EQUAL(sampler_sample(fresh, &in, &fresh_out, NULL), PERCH_OK);
        CU_ASSERT_EQUAL(sampler_sample(used, &between, &between_out, NULL), PERCH_OK);
        CU_ASSERT_EQUAL(sampler_sample(used, &in, &used_out, NULL), PERCH_OK);
        CU_ASSERT_EQUAL(memcmp(&fresh_out, &used_out, sizeof used_out), 0);
        sampler_destroy(fresh);
    }
    sampler_destroy(used);
}

/* More tokens than weights of full length would have room to add up: all alike, or a quarter of them likelier by e than the others. */
static void test_vocabularies_beyond_the_weights(void) {
    enum { VOCAB = 1 << 21, N = 64 };
    float *logits = malloc(VOCAB * sizeof *logits);
    sampler *s = NULL;
    CU_ASSERT_FATAL(logits && sampler_create(VOCAB, &s, NULL) == PERCH_OK);
    for (int kind = 0; kind < 2; kind++) {
        for (uint32_t i = 0; i < VOCAB; i++) {
            logits[i] = kind == 1 && i >= VOCAB / 2 && i < VOCAB / 4 * 3 ? 1 : 0;
        }
        double likelier = VOCAB / 4 * M_E, total = kind == 0 ? VOCAB : VOCAB / 4 * 3 + likelier;
        uint32_t n_last_half = 0, n_likelier = 0;
        CU_ASSERT_DOUBLE_EQUAL((double)sampler_logprob(logits, VOCAB, 7), -log(total), 1e-5);
        for (uint32_t i = 0; i < N; i++) {
            perch_sampling p = {.temperature = 1, .top_p = 1, .typical_p = 1, .repetition_penalty = 1, .seed = i};
            p.top_p = kind == 1 && i >= N / 2 ? likelier / total * 0.99 : 1;
            const sampler_input in = {.logits = logits, .sampling = &p, .n_tokens = i, .want_logprob = true};
            sampler_output out;
            CU_ASSERT_FATAL(sampler_sample(s, &in, &out, NULL) == PERCH_OK);
            n_last_half += out.token >= VOCAB / 2;
            n_likelier += logits[out.token] == 1;
            CU_ASSERT_TRUE(p.top_p == 1 || logits[out.token] == 1);
            CU_ASSERT_DOUBLE_EQUAL((double)out.logprob, (double)logits[out.token] - log(total), 1e-5);
        }
        CHECK_MSG(n_last_half > N / 4 && n_last_half < N, "kind %d: %u of %d in the last half, %u likelier", kind,
                  n_last_half, N, n_likelier);
    }
    sampler_destroy(s);
    free(logits);
}

static void test_create_refuses_no_vocabulary(void) {
    sampler *s;
    perch_error err;
    CU_ASSERT_EQUAL(sampler_create(0, &s, &err), PERCH_E_INVALID);
    CU_ASSERT_PTR_NULL(s);
    CU_ASSERT_STRING_EQUAL(err.message, "vocab_size: 0 is out of range 1..2147483647");
    CU_ASSERT_EQUAL(sampler_create((uint32_t)INT32_MAX + 1, &s, &err), PERCH_E_INVALID);
    CU_ASSERT_TRUE(sampler_bytes(128256) < 7u << 20);
    sampler_destroy(NULL);
}

int main(int argc, char **argv) {
    const test_case tests[] = {
        {"random_inputs_as_the_naive_sampler", test_random_inputs},
        {"draws_follow_the_probabilities", test_draws_follow_the_probabilities},
        {"positions_are_independent", test_positions_are_independent},
        {"greedy_takes_the_lowest_of_equals", test_greedy_takes_the_lowest_of_equals},
        {"unfit_tokens_are_never_chosen", test_unfit_tokens_are_never_chosen},
        {"each_adjustment_alone", test_each_adjustment_alone},
        {"failure_says_why", test_failure_says_why},
        {"extreme_parameters_stay_in_range", test_extreme_parameters_stay_in_range},
        {"penalties_by_hand", test_penalties_by_hand},
        {"logprobs_as_in_long_double", test_logprobs},
        {"logprobs_of_large_vocabularies", test_logprobs_of_large_vocabularies},
        {"logprobs_of_infinite_logits", test_logprobs_of_infinite_logits},
        {"a_choice_depends_on_its_inputs_alone", test_a_choice_depends_on_its_inputs_alone},
        {"vocabularies_beyond_the_weights", test_vocabularies_beyond_the_weights},
        {"create_refuses_no_vocabulary", test_create_refuses_no_vocabulary},
    };
    return test_main("sampler", tests, sizeof tests / sizeof tests[0], argc, argv);
}
