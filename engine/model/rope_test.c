/* rope: each way of scaling at its ends and borders; a row of the table is a function of its position alone. */
#include "engine/model/rope.h"
#include "tests/support/check.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define D 16u
#define HALF (D / 2)
#define N 200u

static const rope_config kinds[] = {
    {.kind = ROPE_NONE, .theta = 10000, .factor = 1, .attention_factor = 1},
    {.kind = ROPE_LINEAR, .theta = 10000, .factor = 4, .attention_factor = 1},
    {.kind = ROPE_DYNAMIC, .theta = 10000, .factor = 4, .attention_factor = 1, .original_max_positions = 50},
    {.kind = ROPE_LLAMA3,
     .theta = 10000,
     .factor = 8,
     .attention_factor = 1,
     .low_freq_factor = 1,
     .high_freq_factor = 4,
     .original_max_positions = 64},
    {.kind = ROPE_YARN,
     .theta = 10000,
     .factor = 4,
     .attention_factor = 1.25,
     .beta_fast = 32,
     .beta_slow = 1,
     .truncate = true,
     .original_max_positions = 64},
};

static bool near(double a, double b) { return fabs(a - b) <= 1e-13 * fabs(b); }

static double plain(uint32_t i) { return pow(10000, -2.0 * i / D); }

static void a_row_is_a_function_of_its_position(void) {
    static float whole[N][D], piece[N][D];
    double scratch[HALF];
    test_rng rng = {test_seed(5)};
    for (size_t k = 0; k < sizeof kinds / sizeof kinds[0]; k++) {
        rope_table(&kinds[k], D, 0, N, scratch, whole[0]);
        for (int i = 0; i < 50; i++) {
            uint32_t first = (uint32_t)test_rng_below(&rng, N), n = 1 + (uint32_t)test_rng_below(&rng, N - first);
            rope_table(&kinds[k], D, first, n, scratch, piece[0]);
            CHECK_MSG(memcmp(piece, whole[first], n * sizeof piece[0]) == 0, "kind %d, %u rows from %u",
                      (int)kinds[k].kind, n, first);
        }
        for (uint32_t p = 0; p < N; p++) {
            rope_inv_freq(&kinds[k], D, p, scratch);
            for (uint32_t i = 0; i < HALF; i++) {
                double a = kinds[k].attention_factor, angle = p * scratch[i];
                CU_ASSERT_DOUBLE_EQUAL((double)whole[p][2 * i], a * cos(angle), 1e-7);
                CU_ASSERT_DOUBLE_EQUAL((double)whole[p][2 * i + 1], a * sin(angle), 1e-7);
            }
        }
    }
}

static void plain_and_linear_frequencies(void) {
    double f[HALF];
    rope_inv_freq(&kinds[0], D, 7, f);
    CU_ASSERT_TRUE(near(f[0], 1) && near(f[4], 0.01));
    rope_inv_freq(&kinds[1], D, 7, f);
    CU_ASSERT_TRUE(near(f[0], 0.25) && near(f[4], 0.0025));
}

static void dynamic_begins_beyond_the_trained_length(void) {
    double f[HALF];
    rope_inv_freq(&kinds[2], D, 49, f);
    CU_ASSERT_TRUE(near(f[5], plain(5)));
    /* the formula gives the same at the border, and a theta that grows with the position behind it */
    for (uint32_t p = 50; p < N; p += 7) {
        double theta = 10000 * pow(4 * (p + 1.0) / 50 - 3, D / (D - 2.0));
        rope_inv_freq(&kinds[2], D, p, f);
        CU_ASSERT_TRUE(near(f[0], 1));
        CU_ASSERT_TRUE(near(f[5], pow(theta, -10.0 / D)));
        CU_ASSERT_TRUE(f[5] < plain(5));
    }
}

static void llama3_keeps_fast_and_stretches_slow(void) {
    double f[HALF];
    rope_inv_freq(&kinds[3], D, 0, f);
    for (uint32_t i = 0; i < HALF; i++) {
        double turns = 64 * plain(i) / (2 * acos(-1)), kept = (turns - 1) / 3;
        double want = turns > 4 ? 1 : turns < 1 ? 1.0 / 8 : kept + (1 - kept) / 8;
        CU_ASSERT_TRUE(near(f[i], plain(i) * want));
    }
    CU_ASSERT_TRUE(near(f[0], 1) && near(f[7], plain(7) / 8));
    CU_ASSERT_TRUE(f[1] < plain(1) && f[1] > plain(1) / 8); /* one lies on the ramp */
}

static void yarn_keeps_fast_and_stretches_slow(void) {
    double f[HALF];
    rope_config r = kinds[4];
    rope_inv_freq(&r, D, 0, f);
    /* pairs that turn 32 times and once in 64 positions have the indices -0.99 (so 0) and 2.02 (so 3) */
    for (uint32_t i = 0; i < HALF; i++) {
        double stretched = i < 3 ? i / 3.0 : 1;
        CU_ASSERT_TRUE(near(f[i], plain(i) * (stretched / 4 + 1 - stretched)));
    }
    r.truncate = false;
    rope_inv_freq(&r, D, 0, f);
    double high = D * log(64 / (2 * acos(-1))) / (2 * log(10000));
    CU_ASSERT_TRUE(near(f[2], plain(2) * (2 / high / 4 + 1 - 2 / high)));
    /* a ramp without width is a step */
    r.beta_fast = r.beta_slow = 1;
    rope_inv_freq(&r, D, 0, f);
    CU_ASSERT_TRUE(near(f[2], plain(2)) && near(f[3], plain(3) / 4));
}

int main(int argc, char **argv) {
    static const test_case tests[] = {
        {"a row is a function of its position", a_row_is_a_function_of_its_position},
        {"plain and linear frequencies", plain_and_linear_frequencies},
        {"dynamic begins beyond the trained length", dynamic_begins_beyond_the_trained_length},
        {"llama3 keeps fast and stretches slow", llama3_keeps_fast_and_stretches_slow},
        {"yarn keeps fast and stretches slow", yarn_keeps_fast_and_stretches_slow},
    };
    return test_main("rope", tests, sizeof tests / sizeof tests[0], argc, argv);
}
