/*
 * Conversions between number types, exhaustively where there are 65,536 values, and what the exponential gives everywhere that
 * attention and SiLU use it.
 */
#include "kernels/cpu/convert.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/pair_testing.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static void f16_to_f32_is_exact_for_every_value(void) {
    size_t wrong = 0;
    for (uint32_t h = 0; h < 65536; h++) {
        uint32_t exponent = h >> 10 & 31, fraction = h & 1023;
        double want = exponent == 0 ? ldexp(fraction, -24) : ldexp(fraction + 1024, (int)exponent - 25);
        float got = f16_to_f32((uint16_t)h);
        if (exponent == 31) {
            wrong += fraction != 0 ? !(isnan(got) && (f32_bits(got) >> 13 & 1023) == (fraction | 512)) : !isinf(got);
        } else {
            wrong += (double)fabsf(got) != want;
        }
        wrong += (f32_bits(got) >> 31) != h >> 15;
    }
    CHECK_MSG(wrong == 0, "%zu values", wrong);
}

static void bf16_survives_the_way_to_f32_and_back(void) {
    size_t wrong = 0;
    for (uint32_t h = 0; h < 65536; h++) {
        float wide = bf16_to_f32((uint16_t)h);
        bool nan = (h & 0x7fff) > 0x7f80;
        wrong += f32_bits(wide) != h << 16;
        wrong += f32_to_bf16(wide) != (nan ? (h | 0x40) : h); /* a NaN becomes quiet and keeps the rest */
    }
    CHECK_MSG(wrong == 0, "%zu values", wrong);
}

/* The nearest of the two neighbours by distance in double, the even one at a tie. */
static uint16_t nearest_bf16(float x) {
    uint16_t low = (uint16_t)(f32_bits(x) >> 16), high = (uint16_t)(low + 1); /* in magnitude */
    double down = fabs((double)x - (double)bf16_to_f32(low));
    double up =
        (high & 0x7fff) == 0x7f80 ? fabs(0x1p128 - fabs((double)x)) : fabs((double)bf16_to_f32(high) - (double)x);
    return down < up || (down == up && low % 2 == 0) ? low : high;
}

static void f32_to_bf16_rounds_to_nearest_even(void) {
    test_rng rng = {test_seed(16)};
    size_t wrong = 0;
    for (uint64_t i = 0; i < test_scaled(2000000); i++) {
        uint32_t bits = (uint32_t)test_rng_next(&rng);
        if (i % 4 == 0) { /* at a tie, or beside one */
            bits = (bits & 0xffff0000u) + 0x8000u + (uint32_t)(i / 4 % 3) - 1;
        }
        float x = f32_from_bits(bits);
        uint16_t got = f32_to_bf16(x);
        if (isnan(x)) {
            wrong += (got & 0x7fff) <= 0x7f80 || got >> 15 != bits >> 31;
        } else if (isinf(x)) {
            wrong += got != bits >> 16;
        } else {
            wrong += got != nearest_bf16(x);
        }
    }
    CHECK_MSG(wrong == 0, "%zu values", wrong);
    const uint32_t special[][2] = {
        {0x00000000, 0x0000}, {0x80000000, 0x8000}, {0x00000001, 0x0000}, {0x00008000, 0x0000}, {0x00008001, 0x0001},
        {0x00018000, 0x0002}, {0x3f808000, 0x3f80}, {0x3f818000, 0x3f82}, {0x7f7fffff, 0x7f80}, {0xff7fffff, 0xff80},
        {0x7f7f7fff, 0x7f7f}, {0x7f800000, 0x7f80}, {0xff800000, 0xff80}, {0x7f800001, 0x7fc0}, {0xffffffff, 0xffff},
    };
    for (size_t i = 0; i < sizeof special / sizeof special[0]; i++) {
        uint16_t got = f32_to_bf16(f32_from_bits(special[i][0]));
        CHECK_MSG(got == special[i][1], "%08x became %04x", special[i][0], got);
    }
}

/* Each instruction set rounds rows as the scalar function does, odd lengths with a 0 behind. */
static void rows_are_rounded_alike_by_every_isa(void) {
    enum { MAX = 70 };
    test_rng rng = {test_seed(17)};
    for (const char *const *name = pair_isas(); *name != NULL; name++) {
        const cpu_isa *isa = NULL;
        CHECK_OK(cpu_isa_find(*name, true, &isa, ERR));
        size_t wrong = 0;
        for (size_t round = 0; isa != NULL && round < 5000; round++) {
            size_t n = 1 + round % MAX;
            float x[MAX];
            uint32_t words[MAX / 2 + 1], guard = 0xdeadbeef;
            for (size_t i = 0; i < n; i++) {
                x[i] = f32_from_bits((uint32_t)test_rng_next(&rng) & (i % 3 ? UINT32_MAX : 0xffff8000u));
            }
            words[(n + 1) / 2] = guard;
            isa->round_bf16(x, n, words);
            for (size_t i = 0; i < (n + 1) / 2; i++) {
                uint32_t high = 2 * i + 1 < n ? f32_to_bf16(x[2 * i + 1]) : 0;
                wrong += words[i] != (f32_to_bf16(x[2 * i]) | high << 16);
            }
            wrong += words[(n + 1) / 2] != guard;
        }
        CHECK_MSG(wrong == 0, "%s: %zu words", *name, wrong);
    }
}

/*
 * The exponential shows through SiLU: silu(x) / x = 1 / (1 + e^-x), for x < 0 e^x / (1 + e^x). Compared in relative error: e^x
 * with 2 ulp, three more roundings.
 */
static void the_exponential_is_right_to_the_last_bits(void) {
    const float one = 1;
    for (const char *const *name = pair_isas(); *name != NULL; name++) {
        const cpu_isa *isa = NULL;
        CHECK_OK(cpu_isa_find(*name, true, &isa, ERR));
        double worst = 0;
        float worst_at = 0;
        for (float x = -86.9f; isa != NULL && x < 0; x += 0.00037f) {
            float y;
            isa->silu_mul(&x, &one, 1, &y);
            double want = (double)x * exp((double)x) / (1 + exp((double)x));
            double error = fabs((double)y - want) / fabs(want);
            if (error > worst) {
                worst = error;
                worst_at = x;
            }
        }
        CHECK_MSG(worst <= 7 * 0x1p-24, "%s: %g at %g", *name, worst * 0x1p24, (double)worst_at);
        const float special[] = {0, -0.0f, INFINITY, -88, -1000, NAN};
        const float wanted[] = {0, -0.0f, INFINITY, -0.0f, -0.0f, NAN};
        for (size_t i = 0; isa != NULL && i < 6; i++) {
            float y;
            isa->silu_mul(&special[i], &one, 1, &y);
            CHECK_MSG(isnan(wanted[i]) ? isnan(y) : f32_bits(y) == f32_bits(wanted[i]), "%s: silu(%g) = %g", *name,
                      (double)special[i], (double)y);
        }
    }
}

static void unknown_instruction_sets_are_refused(void) {
    kernels_device *device = (kernels_device *)1;
    perch_error err = {0};
    kernels_config config = {.dtype = KERNELS_BF16, .n_threads = 1, .isa = "avx9000"};
    CU_ASSERT(kernels_cpu()->open(&config, &device, &err) == PERCH_E_UNSUPPORTED && device == NULL);
    CHECK_MSG(strstr(err.message, "'avx9000'") != NULL && strstr(err.message, "scalar") != NULL, "%s", err.message);
    config = (kernels_config){.dtype = KERNELS_F16, .n_threads = 1};
    CU_ASSERT(kernels_cpu()->open(&config, &device, &err) == PERCH_E_UNSUPPORTED && device == NULL);
    CHECK_MSG(strstr(err.message, "f32 or bf16") != NULL, "%s", err.message);
    config = (kernels_config){.dtype = KERNELS_F32, .n_threads = 100000};
    CU_ASSERT(kernels_cpu()->open(&config, &device, &err) == PERCH_E_INVALID && device == NULL);
}

/* f32 needs no bf16 instructions: the same isa is described wherever there is AVX-512, so that results compare. */
static void the_device_says_what_it_runs_on(void) {
    for (const char *const *name = pair_isas(); *name != NULL; name++) {
        side s = side_open_cpu(*name, true, 2);
        const char *text = s.b->describe(s.d);
        CHECK_MSG(strncmp(text, "cpu ", 4) == 0 && strstr(text, *name) != NULL && strstr(text, ", 2 threads") != NULL,
                  "%s", text);
        CU_ASSERT(s.b->act_bytes(s.d) == 4);
        s.b->close(s.d);
    }
    side s = side_open_cpu(NULL, false, 1);
    CHECK_MSG(strstr(s.b->describe(s.d), "bf16") == NULL && strstr(s.b->describe(s.d), ", 1 thread") != NULL, "%s",
              s.b->describe(s.d));
    s.b->close(s.d);
    kernels_cpu()->close(NULL);
}

int main(int argc, char **argv) {
    static const test_case tests[] = {
        {"f16_to_f32_is_exact_for_every_value", f16_to_f32_is_exact_for_every_value},
        {"bf16_survives_the_way_to_f32_and_back", bf16_survives_the_way_to_f32_and_back},
        {"f32_to_bf16_rounds_to_nearest_even", f32_to_bf16_rounds_to_nearest_even},
        {"rows_are_rounded_alike_by_every_isa", rows_are_rounded_alike_by_every_isa},
        {"the_exponential_is_right_to_the_last_bits", the_exponential_is_right_to_the_last_bits},
        {"unknown_instruction_sets_are_refused", unknown_instruction_sets_are_refused},
        {"the_device_says_what_it_runs_on", the_device_says_what_it_runs_on},
    };
    return test_main("cpu_convert_test", tests, sizeof tests / sizeof tests[0], argc, argv);
}
