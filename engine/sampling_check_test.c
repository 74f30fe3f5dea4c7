/* sampling_check: every parameter is refused by its name just outside of its range, and taken just inside. */
#include "engine/sampler.h"
#include "tests/support/check.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define VOCAB 100u

static const perch_sampling neutral = {
    .struct_size = sizeof neutral, .top_p = 1, .typical_p = 1, .repetition_penalty = 1};

static void accepted(const perch_sampling *p, const char *what) {
    perch_error err = {PERCH_OK, ""};
    CHECK_MSG(sampling_check(p, VOCAB, &err) == PERCH_OK, "%s: %s", what, err.message);
}

static void refused(const perch_sampling *p, const char *message) {
    perch_error err = {PERCH_OK, ""};
    CHECK_MSG(sampling_check(p, VOCAB, &err) == PERCH_E_INVALID && err.status == PERCH_E_INVALID &&
                  strcmp(err.message, message) == 0,
              "'%s' instead of '%s'", err.message, message);
    CU_ASSERT_EQUAL(sampling_check(p, VOCAB, NULL), PERCH_E_INVALID);
}

static void test_reals(void) {
    static const struct {
        size_t offset;
        double good[3], bad[6];
        const char *name, *range;
    } cases[] = {
        {offsetof(perch_sampling, temperature),
         {0, 5e-324, 1e300},
         {-5e-324, -1, NAN, INFINITY, -INFINITY, NAN},
         "temperature",
         "0 <= temperature, finite"},
        {offsetof(perch_sampling, top_p),
         {1e-300, 0.5, 1},
         {0, -0.1, 1.0000001, NAN, INFINITY, -INFINITY},
         "top_p",
         "0 < top_p <= 1"},
        {offsetof(perch_sampling, min_p),
         {0, 0.5, 0.999},
         {-0.001, 1, 2, NAN, INFINITY, -INFINITY},
         "min_p",
         "0 <= min_p < 1"},
        {offsetof(perch_sampling, typical_p),
         {1e-300, 0.5, 1},
         {0, -0.1, 1.0000001, NAN, INFINITY, -INFINITY},
         "typical_p",
         "0 < typical_p <= 1"},
        {offsetof(perch_sampling, repetition_penalty),
         {1e-300, 1, 1e300},
         {0, -1, NAN, INFINITY, -INFINITY, -0.0},
         "repetition_penalty",
         "0 < repetition_penalty, finite"},
        {offsetof(perch_sampling, frequency_penalty),
         {-2, 0, 2},
         {-2.0001, 2.0001, NAN, INFINITY, -INFINITY, 3},
         "frequency_penalty",
         "-2..2"},
        {offsetof(perch_sampling, presence_penalty),
         {-2, 0, 2},
         {-2.0001, 2.0001, NAN, INFINITY, -INFINITY, 3},
         "presence_penalty",
         "-2..2"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        perch_sampling p = neutral;
        double *field = (double *)(void *)((char *)&p + cases[i].offset);
        for (size_t j = 0; j < 3; j++) {
            *field = cases[i].good[j];
            accepted(&p, cases[i].name);
        }
        for (size_t j = 0; j < 6; j++) {
            char message[200];
            *field = cases[i].bad[j];
            snprintf(message, sizeof message, "%s: %g is out of range: %s", cases[i].name, *field, cases[i].range);
            refused(&p, message);
        }
    }
}

static void test_integers(void) {
    perch_sampling p = neutral;
    p.top_k = INT32_MAX;
    p.n_logprobs = 20;
    accepted(&p, "the largest");
    p.top_k = -1;
    refused(&p, "top_k: -1 is out of range: 0 (off) or more");
    p.top_k = 0;
    p.n_logprobs = 21;
    refused(&p, "n_logprobs: 21 is out of range: 0..20");
    p = neutral;
    p.struct_size = 8;
    char message[200];
    snprintf(message, sizeof message, "sampling.struct_size: 8 is not %zu; fill it in by perch_request_init", sizeof p);
    refused(&p, message);
}

static void test_lists(void) {
    perch_logit_bias bias[] = {{0, -100}, {99, 100}};
    int32_t banned[] = {0, 99, 5};
    perch_sampling p = neutral;
    p.logit_bias = bias;
    p.n_logit_bias = 2;
    p.banned_tokens = banned;
    p.n_banned_tokens = 3;
    accepted(&p, "the ends of the ranges");
    bias[1].token = 100;
    refused(&p, "logit_bias[1].token: 100 is out of range: 0..99");
    bias[1].token = -1;
    refused(&p, "logit_bias[1].token: -1 is out of range: 0..99");
    bias[1] = (perch_logit_bias){1, 100.5f};
    refused(&p, "logit_bias[1].bias: 100.5 is out of range: -100..100");
    bias[1].bias = NAN;
    bias[0].bias = -101;
    refused(&p, "logit_bias[0].bias: -101 is out of range: -100..100");
    bias[0].bias = 0;
    refused(&p, "logit_bias[1].bias: nan is out of range: -100..100");
    bias[1].bias = 0;
    banned[2] = 100;
    refused(&p, "banned_tokens[2]: 100 is out of range: 0..99");
    banned[2] = -7;
    refused(&p, "banned_tokens[2]: -7 is out of range: 0..99");
    p.banned_tokens = NULL;
    refused(&p, "banned_tokens: NULL, but n_banned_tokens is 3");
    p.logit_bias = NULL;
    refused(&p, "logit_bias: NULL, but n_logit_bias is 2");
    p.n_logit_bias = p.n_banned_tokens = 0;
    accepted(&p, "empty lists");
}

static void test_copy(void) {
    perch_logit_bias bias[] = {{1, 2}, {3, 4}, {5, 6}};
    int32_t banned[] = {7, 8};
    perch_sampling p = neutral;
    p.seed = 99;
    p.logit_bias = bias;
    p.n_logit_bias = 3;
    p.banned_tokens = banned;
    p.n_banned_tokens = 2;
    perch_sampling *copy = sampling_copy(&p);
    memset(bias, 0, sizeof bias);
    memset(banned, 0, sizeof banned);
    CU_ASSERT_PTR_NOT_NULL_FATAL(copy);
    CU_ASSERT_EQUAL(copy->seed, 99);
    CU_ASSERT_EQUAL(copy->logit_bias[0].token, 1);
    CU_ASSERT_EQUAL(copy->logit_bias[2].token, 5);
    CU_ASSERT_EQUAL(copy->logit_bias[2].bias, 6);
    CU_ASSERT_EQUAL(copy->banned_tokens[0], 7);
    CU_ASSERT_EQUAL(copy->banned_tokens[1], 8);
    free(copy);

    copy = sampling_copy(&neutral);
    CU_ASSERT_PTR_NOT_NULL_FATAL(copy);
    CU_ASSERT_PTR_NULL(copy->logit_bias);
    CU_ASSERT_PTR_NULL(copy->banned_tokens);
    free(copy);

    p.n_banned_tokens = SIZE_MAX / 2;
    CU_ASSERT_PTR_NULL(sampling_copy(&p));
}

int main(int argc, char **argv) {
    const test_case tests[] = {
        {"reals_are_refused_outside_of_their_range", test_reals},
        {"integers_are_refused_outside_of_their_range", test_integers},
        {"list_entries_are_refused_by_index", test_lists},
        {"copy_is_deep", test_copy},
    };
    return test_main("sampling_check", tests, sizeof tests / sizeof tests[0], argc, argv);
}
