/* sampling_math: each function against long double, or against its definition written out. */
#include "base/sampling_math.h"
#include "tests/support/check.h"

#include <math.h>
#include <stdio.h>

static float random_float(test_rng *rng) {
    uint32_t bits = (uint32_t)test_rng_next(rng);
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static void test_exp_errs_by_about_an_ulp(void) {
    test_rng rng = {test_seed(11)};
    uint64_t n = test_scaled(2000000);
    double worst = 0;
    for (uint64_t i = 0; i < n; i++) {
        double x = i % 3 ? -test_rng_unit(&rng) * 33
                         : (test_rng_unit(&rng) - 0.5) * exp2(-(double)test_rng_below(&rng, 60)) * 100;
        uint32_t scale = i % 2 ? 44 : 0;
        long double exact = expl((long double)x) * exp2l((long double)scale);
        double found = sampling_exp(x, scale), ulp = nextafter((double)exact, INFINITY) - (double)exact;
        double error = fabs((double)((long double)found - exact)) / ulp;
        worst = error > worst ? error : worst;
    }
    CHECK_MSG(worst < 1.1, "%g ulp", worst);
    CU_ASSERT_EQUAL(sampling_exp(0, 0), 1);
    CU_ASSERT_EQUAL(sampling_exp(0, 44), (double)SAMPLING_ONE);
}

static void test_weights_are_rounded_exponentials(void) {
    static const double temperatures[] = {1, 0.7, 2, 1e-3, 1e3, 1e-300, 1e300, 5e-324, 1.7e308};
    test_rng rng = {test_seed(12)};
    for (uint64_t i = 0; i < test_scaled(300000); i++) {
        double temperature = temperatures[test_rng_below(&rng, 9)];
        float best = random_float(&rng), logit = random_float(&rng);
        if (i % 4) {
            best = (float)(test_rng_unit(&rng) * 40 - 20);
            logit = (float)((double)best - test_rng_unit(&rng) * 40 * (temperature > 1e30 ? 1e30 : temperature));
        }
        if (isnan(best) || best == -INFINITY || logit > best) {
            continue;
        }
        double inverse = sampling_inverse_temperature(temperature);
        uint64_t weight = sampling_weight(logit, sampling_scale_of(best, inverse));
        long double exact = expl(((long double)logit - (long double)best) / (long double)temperature) * 0x1p44L;
        exact = isnan(logit) ? 0 : logit == best ? 0x1p44L : best == INFINITY && temperature < 1e300 ? 0 : exact;
        if (best < INFINITY || temperature < 1e300) {
            CHECK_MSG(fabsl((long double)weight - exact) <= 0.5L + exact * 0x1p-48L,
                      "%.9g, best %.9g, at %g: %llu, not %Lg", (double)logit, (double)best, temperature,
                      (unsigned long long)weight, exact);
        }
        CU_ASSERT_TRUE(weight <= SAMPLING_ONE);
    }
}

static void test_the_ends_of_weights(void) {
    sampling_scale one = sampling_scale_of(0, 1), infinite = sampling_scale_of(INFINITY, 1);
    CU_ASSERT_EQUAL(sampling_weight(0, one), SAMPLING_ONE);
    CU_ASSERT_EQUAL(sampling_weight(-0.0f, one), SAMPLING_ONE);
    CU_ASSERT_EQUAL(sampling_weight(-31.19f, one), 1);
    CU_ASSERT_EQUAL(sampling_weight(-31.2f, one), 0); /* 2^-45 is at -31.192 */
    CU_ASSERT_EQUAL(sampling_weight(-33.5f, one), 0);
    CU_ASSERT_EQUAL(sampling_weight(-INFINITY, one), 0);
    CU_ASSERT_EQUAL(sampling_weight(NAN, one), 0);
    CU_ASSERT_EQUAL(sampling_weight(-NAN, one), 0);
    CU_ASSERT_EQUAL(sampling_weight(INFINITY, infinite), SAMPLING_ONE);
    CU_ASSERT_EQUAL(sampling_weight(FLT_MAX, infinite), 0);
    CU_ASSERT_EQUAL(sampling_weight(NAN, infinite), 0);
    sampling_scale coldest = sampling_scale_of(1, sampling_inverse_temperature(5e-324));
    CU_ASSERT_EQUAL(sampling_weight(1, coldest), SAMPLING_ONE);
    CU_ASSERT_EQUAL(sampling_weight(1 - 0x1p-24f, coldest), 0);
    sampling_scale hottest = sampling_scale_of(FLT_MAX, sampling_inverse_temperature(DBL_MAX));
    CU_ASSERT_EQUAL(sampling_weight(-FLT_MAX, hottest), SAMPLING_ONE);
    CU_ASSERT_EQUAL(sampling_weight(-INFINITY, hottest), 0);
    CU_ASSERT_TRUE(SAMPLING_ONE * SAMPLING_MAX_VOCAB == UINT64_C(1) << 63);
    CU_ASSERT_TRUE(sampling_shift(1) == 0 && sampling_shift(SAMPLING_MAX_VOCAB) == 0);
    CU_ASSERT_TRUE(sampling_shift(SAMPLING_MAX_VOCAB + 1) == 1 && sampling_shift(1u << 24) == 5);
    CU_ASSERT_TRUE(sampling_shift(UINT32_MAX) == 13);
}

static void test_shares(void) {
    CU_ASSERT_EQUAL(sampling_share(0), 0);
    CU_ASSERT_EQUAL(sampling_share(5e-324), 1);
    CU_ASSERT_EQUAL(sampling_share(0.5), UINT64_C(1) << 63);
    CU_ASSERT_EQUAL(sampling_share(1 - 0x1p-53), UINT64_MAX - 2047);
    CU_ASSERT_EQUAL(sampling_share(1), UINT64_MAX);
    CU_ASSERT_EQUAL(sampling_portion(0, 1000), 0);
    CU_ASSERT_EQUAL(sampling_portion(1, 1), 1);
    CU_ASSERT_EQUAL(sampling_portion(sampling_share(0.5), 7), 4);
    CU_ASSERT_EQUAL(sampling_portion(sampling_share(0.5), 8), 4);
    test_rng rng = {test_seed(13)};
    for (uint64_t i = 0; i < test_scaled(200000); i++) {
        uint64_t total = 1 + (test_rng_next(&rng) >> (1 + test_rng_below(&rng, 62)));
        double p = test_rng_unit(&rng);
        CU_ASSERT_EQUAL(sampling_portion(UINT64_MAX, total), total);
        /* p and total in integers of 2^-53: their product, of at most 116 bits, in four parts of 32 and 64 */
        uint64_t share = sampling_share(p), low = total & UINT32_MAX, high = total >> 32;
        uint64_t mid = (share & UINT32_MAX) * low, a = (share >> 32) * low, b = (share & UINT32_MAX) * high;
        uint64_t carry = (mid >> 32) + (a & UINT32_MAX) + (b & UINT32_MAX);
        uint64_t whole = (share >> 32) * high + (a >> 32) + (b >> 32) + (carry >> 32);
        bool rest = (carry & UINT32_MAX) != 0 || (mid & UINT32_MAX) != 0;
        CU_ASSERT_EQUAL(sampling_portion(share, total), whole + rest);
        CU_ASSERT_EQUAL(sampling_point(share, total), whole);
        CU_ASSERT_EQUAL((double)share, p * 0x1p64);
    }
}

static void test_philox_known_answers(void) {
    /* Random123's published vectors: zeros, ones, digits of pi */
    static const struct {
        uint32_t counter[4], key[2], out[4];
    } vectors[] = {
        {{0, 0, 0, 0}, {0, 0}, {0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8}},
        {{0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF},
         {0xFFFFFFFF, 0xFFFFFFFF},
         {0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD}},
        {{0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344},
         {0xA4093822, 0x299F31D0},
         {0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1}},
    };
    for (size_t i = 0; i < sizeof vectors / sizeof vectors[0]; i++) {
        uint32_t out[4];
        sampling_philox(vectors[i].counter, vectors[i].key, out);
        CHECK_MSG(memcmp(out, vectors[i].out, sizeof out) == 0, "vector %zu: %08x %08x %08x %08x", i, out[0], out[1],
                  out[2], out[3]);
    }
    /* digits of pi: counter and key are where seed, position and completion go */
    CU_ASSERT_EQUAL(sampling_random(0, 0, 0), UINT64_C(0x6627E8D5E169C58D));
    const uint32_t counter[4] = {0x89ABCDEF, 0x01234567, 77, 0}, key[2] = {0x76543210, 0xFEDCBA98};
    uint32_t out[4];
    sampling_philox(counter, key, out);
    CU_ASSERT_EQUAL(sampling_random(UINT64_C(0xFEDCBA9876543210), UINT64_C(0x0123456789ABCDEF), 77),
                    (uint64_t)out[0] << 32 | out[1]);
}

static void test_penalties(void) {
    sampling_penalties none = {1, 0, 0}, all = {1.5, 0.25, 0.5}, extreme = {5e-324, 2, 2}, other = {1e308, -2, -2};
    CU_ASSERT_EQUAL(sampling_penalize(3, true, 7, none), 3);
    CU_ASSERT_EQUAL(sampling_penalize(3, true, 0, all), 2);
    CU_ASSERT_EQUAL(sampling_penalize(3, false, 0, all), 3);
    CU_ASSERT_EQUAL(sampling_penalize(-3, true, 0, all), -4.5f);
    CU_ASSERT_EQUAL(sampling_penalize(3, true, 2, all), 1); /* 3 / 1.5 - (2 * 0.25 + 0.5) */
    CU_ASSERT_EQUAL(sampling_penalize(1, true, 0, extreme), FLT_MAX);
    CU_ASSERT_EQUAL(sampling_penalize(-1, true, 0, extreme), 0);
    CU_ASSERT_EQUAL(sampling_penalize(-1, true, 3, other), -FLT_MAX);
    CU_ASSERT_EQUAL(sampling_penalize(-FLT_MAX, true, 1000, extreme), -2002);
    CU_ASSERT_EQUAL(sampling_penalize(-FLT_MAX, false, 1000, all), -FLT_MAX);
    CU_ASSERT_EQUAL(sampling_penalize(INFINITY, true, 3, all), INFINITY);
    CU_ASSERT_EQUAL(sampling_penalize(-INFINITY, true, 3, extreme), -INFINITY);
    CU_ASSERT_TRUE(isnan(sampling_penalize(NAN, true, 3, all)));
}

static void test_keys_sort_as_logits(void) {
    static const float ascending[] = {-INFINITY, -FLT_MAX, -1, -1e-45f, 0, 1e-45f, 1, FLT_MAX, INFINITY};
    for (size_t i = 0; i < 9; i++) {
        CU_ASSERT_EQUAL(sampling_logit(sampling_key(ascending[i])), ascending[i]);
        for (size_t j = 0; j < 9; j++) {
            CU_ASSERT_EQUAL(sampling_key(ascending[i]) < sampling_key(ascending[j]), i < j);
        }
    }
    CU_ASSERT_EQUAL(sampling_key(-0.0f), sampling_key(0.0f));
    CU_ASSERT_EQUAL(sampling_key(NAN), sampling_key(-INFINITY));
    CU_ASSERT_EQUAL(sampling_key(-NAN), sampling_key(-INFINITY));
    CU_ASSERT_TRUE(sampling_key(-INFINITY) > 0);
    test_rng rng = {test_seed(14)};
    for (uint64_t i = 0; i < test_scaled(200000); i++) {
        float a = random_float(&rng), b = random_float(&rng);
        if (!isnan(a) && !isnan(b)) {
            CU_ASSERT_EQUAL(sampling_key(a) < sampling_key(b), a < b);
            CU_ASSERT_EQUAL(sampling_logit(sampling_key(a)), a);
        }
    }
}

int main(int argc, char **argv) {
    const test_case tests[] = {
        {"exp_errs_by_about_an_ulp", test_exp_errs_by_about_an_ulp},
        {"weights_are_rounded_exponentials", test_weights_are_rounded_exponentials},
        {"the_ends_of_weights", test_the_ends_of_weights},
        {"shares", test_shares},
        {"philox_known_answers", test_philox_known_answers},
        {"penalties", test_penalties},
        {"keys_sort_as_logits", test_keys_sort_as_logits},
    };
    return test_main("sampling_math", tests, sizeof tests / sizeof tests[0], argc, argv);
}
