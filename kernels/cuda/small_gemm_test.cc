/*
 * small_gemm: exact on whole numbers, near on others, and a row's result its own to the bit.
 */
#include "kernels/cuda/kernel_testing.hh"

#include <algorithm>

struct small_product {
    kernels_dtype dtype;
    uint32_t n_out, n_in, n_tokens;
    std::vector<uint16_t> w, x;
};

static small_product random_product(test_rng *rng, kernels_dtype dtype, uint32_t n_out, uint32_t n_in,
                                    uint32_t n_tokens) {
    const size_t size = static_cast<size_t>(n_out) * n_in;
    return {dtype,
            n_out,
            n_in,
            n_tokens,
            random_acts(rng, dtype, size, 1),
            random_acts(rng, dtype, static_cast<size_t>(n_tokens) * n_in, 1)};
}

/* Plain, into f32. What lies behind x and y is neither read nor written. */
static std::vector<float> multiply(const small_product &p) {
    const size_t n = static_cast<size_t>(p.n_tokens) * p.n_out;
    const std::vector<float> canary(64, -0x1.234p5f);
    std::vector<float> got(n, NAN);
    got.insert(got.end(), canary.begin(), canary.end());
    device_array<uint16_t> w(p.w), x(p.x);
    device_array<float> y(got);
    CHECK_CUDA(cuda_small_gemm(nullptr, p.dtype, w.p, p.n_out, p.n_in, x.p, p.n_tokens, nullptr, false, y.p, true));
    got = y.get();
    CHECK_MSG(std::equal(canary.begin(), canary.end(), got.end() - 64), "behind %u rows of %u", p.n_tokens, p.n_out);
    got.resize(n);
    return got;
}

static const uint16_t *row_of(const std::vector<uint16_t> &matrix, uint32_t row, uint32_t n_in) {
    return &matrix[static_cast<size_t>(row) * n_in];
}

/* The sum, and that of the products' absolute values. */
static double dot(const small_product &p, uint32_t token, uint32_t out, double *scale) {
    const uint16_t *w = row_of(p.w, out, p.n_in), *x = row_of(p.x, token, p.n_in);
    double sum = 0;
    *scale = 0;
    for (uint32_t i = 0; i < p.n_in; i++) {
        const double product = act_value(p.dtype, w[i]) * act_value(p.dtype, x[i]);
        sum += product;
        *scale += fabs(product);
    }
    return sum;
}

struct shape {
    uint32_t n_out, n_in, n_tokens;
};

/* Of each cut (how many rows a block takes follows from n_out and n_tokens), with and without parts of tiles, steps and chunks. */
static const shape shapes[] = {
    {1, 8, 1},       {7, 40, 3},   {8, 64, 8},    {17, 200, 9},   {33, 1000, 16}, {64, 512, 4},
    {100, 2056, 13}, {9, 4160, 2}, {2033, 24, 1}, {2040, 72, 16}, {4065, 24, 5},  {4072, 16, 12},
};

/* Whole numbers whose sums f32 holds exactly: every order of addition gives the same, and one product left out shows. */
static void whole_numbers_are_exact(void) {
    test_rng rng = {test_seed(41)};
    for_each_act([&](kernels_dtype dtype) {
        for (const shape &s : shapes) {
            small_product p = {dtype, s.n_out, s.n_in, s.n_tokens, {}, {}};
            p.w.resize(static_cast<size_t>(s.n_out) * s.n_in);
            p.x.resize(static_cast<size_t>(s.n_tokens) * s.n_in);
            for (uint16_t &v : p.w) {
                v = act_bits(dtype, static_cast<double>(1 + test_rng_below(&rng, 15)) - 17);
            }
            for (uint16_t &v : p.x) {
                v = act_bits(dtype, static_cast<double>(1 + test_rng_below(&rng, 15)));
            }
            const std::vector<float> got = s.n_out > 1000 ? multiply(p) : in_each_order([&] { return multiply(p); });
            size_t wrong = 0;
            double scale = 0;
            for (uint32_t i = 0; i < got.size(); i++) {
                wrong += static_cast<double>(got[i]) != dot(p, i / s.n_out, i % s.n_out, &scale);
            }
            CHECK_MSG(wrong == 0, "%s, %u x %u, %u rows: %zu wrong", act_name(dtype), s.n_out, s.n_in, s.n_tokens,
                      wrong);
        }
    });
}

/*
 * A product passes through n_in / 8 + 64 additions at most (its slice, padded to a chunk, and the slices), each of which errs by 2^-24
 * of what has been added up so far, or by 2^-22 where a tensor core cuts off instead of rounding.
 */
static void random_numbers_are_near(void) {
    test_rng rng = {test_seed(42)};
    for_each_act([&](kernels_dtype dtype) {
        for (uint64_t round = 0; round < test_scaled(8); round++) {
            const small_product p = random_product(&rng, dtype, random_count(&rng, 60), 8 * random_count(&rng, 200),
                                                   random_count(&rng, 16));
            const std::vector<float> got = in_each_order([&] { return multiply(p); });
            double worst = 0;
            for (uint32_t i = 0; i < got.size(); i++) {
                double scale = 0;
                const double want = dot(p, i / p.n_out, i % p.n_out, &scale);
                worst = std::max(worst, fabs(static_cast<double>(got[i]) - want) / scale);
            }
            CHECK_MSG(worst <= (p.n_in / 8 + 64) * 0x1p-22, "%s, %u x %u, %u rows: %g", act_name(dtype), p.n_out,
                      p.n_in, p.n_tokens, worst);
        }
    });
}

/* Whatever the other rows, their number and its place among them; and whatever the other rows of the weights. */
static void rows_stand_alone(void) {
    test_rng rng = {test_seed(43)};
    /* Parts of {4070 x 136, 16}: with one and two columns of tokens, and 8, 16 and 32 rows a block. */
    const shape parts[] = {{43, 136, 1}, {2040, 136, 2}, {4066, 136, 7}, {51, 136, 8}, {2033, 136, 9}, {60, 136, 15}};
    for_each_act([&](kernels_dtype dtype) {
        const small_product all = random_product(&rng, dtype, 4070, 136, 16);
        const std::vector<float> together = multiply(all);
        for (const shape &s : parts) {
            small_product part = all;
            part.n_out = s.n_out;
            part.n_tokens = s.n_tokens;
            uint32_t from[16];
            for (uint32_t t = 0; t < s.n_tokens; t++) {
                from[t] = static_cast<uint32_t>(test_rng_below(&rng, 16));
                std::copy_n(row_of(all.x, from[t], s.n_in), s.n_in, &part.x[static_cast<size_t>(t) * s.n_in]);
            }
            const std::vector<float> got = multiply(part);
            size_t wrong = 0;
            for (uint32_t i = 0; i < got.size(); i++) {
                const size_t at = static_cast<size_t>(from[i / s.n_out]) * all.n_out + i % s.n_out;
                wrong += f32_bits(got[i]) != f32_bits(together[at]);
            }
            CHECK_MSG(wrong == 0, "%s, %u of 4070 x %u, %u of 16 rows: %zu differ", act_name(dtype), s.n_out, s.n_in,
                      s.n_tokens, wrong);
        }
    });
}

static uint16_t act_of(kernels_dtype dtype, float v) { return act_bits(dtype, static_cast<double>(v)); }

/* y + (sum + bias), each rounded once, and that rounded to act where y is. */
static void bias_and_accumulation_are_exact(void) {
    test_rng rng = {test_seed(44)};
    for_each_act([&](kernels_dtype dtype) {
        for (uint32_t n_tokens : {1u, 11u}) {
            const small_product p = random_product(&rng, dtype, 37, 328, n_tokens);
            const std::vector<float> sums = multiply(p), bias = random_floats(&rng, p.n_out, 4);
            const std::vector<float> before = random_floats(&rng, sums.size(), 4);
            const std::vector<uint16_t> acts_before = random_acts(&rng, dtype, sums.size(), 4);
            device_array<uint16_t> w(p.w), x(p.x), acts(sums.size());
            device_array<float> b(bias), y(sums.size());
            for (uint32_t way = 0; way < 4; way++) {
                const bool accumulate = way % 2 != 0;
                const float *with_bias = way / 2 != 0 ? b.p : nullptr;
                y.put(before);
                acts.put(acts_before);
                CHECK_CUDA(cuda_small_gemm(nullptr, dtype, w.p, p.n_out, p.n_in, x.p, n_tokens, with_bias, accumulate,
                                           y.p, true));
                CHECK_CUDA(cuda_small_gemm(nullptr, dtype, w.p, p.n_out, p.n_in, x.p, n_tokens, with_bias, accumulate,
                                           acts.p, false));
                const std::vector<float> got = y.get();
                const std::vector<uint16_t> got_acts = acts.get();
                size_t wrong = 0;
                for (size_t i = 0; i < sums.size(); i++) {
                    const float sum = with_bias != nullptr ? sums[i] + bias[i % p.n_out] : sums[i];
                    const float act_before = static_cast<float>(act_value(dtype, acts_before[i]));
                    wrong += got[i] != (accumulate ? before[i] + sum : sum);
                    wrong += got_acts[i] != act_of(dtype, accumulate ? act_before + sum : sum);
                }
                CHECK_MSG(wrong == 0, "%s, bias %d, accumulate %d: %zu wrong", act_name(dtype), with_bias != nullptr,
                          accumulate, wrong);
            }
        }
    });
}

/* A NaN or infinity of a token or a row of the weights goes there and nowhere else, and infinity stays what it is. */
static void what_is_not_finite_stays_in_its_row(void) {
    test_rng rng = {test_seed(45)};
    const double infinite = std::numeric_limits<double>::infinity();
    for_each_act([&](kernels_dtype dtype) {
        for (uint32_t n_tokens : {5u, 16u}) {
            small_product p = random_product(&rng, dtype, 41, 168, n_tokens);
            const std::vector<float> finite = multiply(p);
            const uint32_t bad_token = n_tokens - 2, bad_row = 40, infinite_token = 1, infinite_row = 3;
            p.x[bad_token * p.n_in + 167] = act_bits(dtype, std::numeric_limits<double>::quiet_NaN());
            p.w[bad_row * p.n_in] = act_bits(dtype, std::numeric_limits<double>::quiet_NaN());
            p.x[infinite_token * p.n_in] =
                act_bits(dtype, infinite); /* at the start, which must not be read for the end */
            p.w[infinite_row * p.n_in] = act_bits(dtype, -infinite);
            const std::vector<float> got = multiply(p);
            for (uint32_t i = 0; i < got.size(); i++) {
                const uint32_t token = i / p.n_out, row = i % p.n_out;
                const double v = static_cast<double>(got[i]);
                bool expected = f32_bits(got[i]) == f32_bits(finite[i]);
                if (token == bad_token || row == bad_row) {
                    expected = std::isnan(v);
                } else if (token == infinite_token || row == infinite_row) {
                    expected = v == act_value(dtype, p.w[row * p.n_in]) * act_value(dtype, p.x[token * p.n_in]);
                }
                CHECK_MSG(expected, "%s, row %u, token %u: %g", act_name(dtype), row, token, v);
            }
        }
    });
}

static void refusals(void) {
    device_array<float> memory(256);
    float *p = memory.p, *odd = p + 1;
    auto answer = [&](kernels_dtype dtype, const void *w, uint32_t n_in, const void *x, uint32_t n_tokens, void *y) {
        return cuda_small_gemm(nullptr, dtype, w, 1, n_in, x, n_tokens, nullptr, false, y, true);
    };
    const cudaError_t no = cudaErrorInvalidValue;
    CU_ASSERT_EQUAL(answer(KERNELS_F32, p, 8, p, 1, p), no);
    CU_ASSERT_EQUAL(answer(KERNELS_BF16, p, 8, p, CUDA_SMALL_GEMM_ROWS + 1, p), no);
    CU_ASSERT_EQUAL(answer(KERNELS_BF16, p, 0, p, 1, p), no);
    CU_ASSERT_EQUAL(answer(KERNELS_BF16, p, 12, p, 1, p), no);
    CU_ASSERT_EQUAL(answer(KERNELS_BF16, p, UINT32_MAX - 7, p, 1, p), no);
    CU_ASSERT_EQUAL(answer(KERNELS_BF16, odd, 8, p, 1, p), no);
    CU_ASSERT_EQUAL(answer(KERNELS_BF16, p, 8, odd, 1, p), no);
    CU_ASSERT_EQUAL(answer(KERNELS_BF16, p, 8, p, 1, odd), no);
    CU_ASSERT_EQUAL(answer(KERNELS_BF16, nullptr, 8, p, 1, p), no);
    CU_ASSERT_EQUAL(cuda_small_gemm(nullptr, KERNELS_BF16, p, UINT32_MAX, 8, p, 1, nullptr, false, p, true), no);
    CHECK_CUDA(answer(KERNELS_BF16, nullptr, 8, nullptr, 0, nullptr));
    CHECK_CUDA(cuda_small_gemm(nullptr, KERNELS_BF16, nullptr, 0, 8, p, 1, nullptr, false, p, true));
}

int main(int argc, char **argv) {
    static const test_case tests[] = {
        {"whole numbers are exact in every shape", whole_numbers_are_exact},
        {"random numbers are near", random_numbers_are_near},
        {"a row is the same in any company, to the bit", rows_stand_alone},
        {"bias and accumulation round once each", bias_and_accumulation_are_exact},
        {"NaN and infinity stay in their row", what_is_not_finite_stays_in_its_row},
        {"what cannot be is refused; nothing is no work", refusals},
    };
    return test_main("small_gemm_test", tests, sizeof tests / sizeof *tests, argc, argv);
}
