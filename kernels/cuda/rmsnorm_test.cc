/*
 * norm: RMSNorm of rows and heads against a reference in double, and to the bit whatever lies beside a row.
 */
#include "kernels/cuda/kernel_testing.hh"

static const uint32_t widths[] = {1, 7, 8, 31, 64, 200, 1000, 2048, 8200, 9001};

/* x / sqrt(mean(x²) + eps) * gain */
static std::vector<double> reference(const std::vector<double> &x, const float *gain, float eps) {
    double squares = 0;
    for (double v : x) {
        squares += v * v;
    }
    const double scale = 1 / sqrt(squares / static_cast<double>(x.size()) + static_cast<double>(eps));
    std::vector<double> y(x.size());
    for (size_t i = 0; i < x.size(); i++) {
        y[i] = x[i] * scale * static_cast<double>(gain[i]);
    }
    return y;
}

/*
 * One rounding to act. In f32: each of at most 40 additions along a thread and 10 along a block errs by 2^-24 of a sum of
 * squares, whose root has half of that; then some roundings of their own: 2^-18 is more than all of it.
 */
static size_t count_wrong(kernels_dtype dtype, const uint16_t *got, const std::vector<double> &want) {
    size_t wrong = 0;
    for (size_t i = 0; i < want.size(); i++) {
        const double v = act_value(dtype, got[i]);
        const bool near = fabs(v - want[i]) <= fabs(want[i]) * (act_unit(dtype) + 0x1p-18) + act_tiny(dtype);
        wrong += std::isnan(want[i]) ? !std::isnan(v) : !near;
    }
    return wrong;
}

static std::vector<uint16_t> rmsnorm(kernels_dtype dtype, const std::vector<float> &x, const std::vector<float> &gain,
                                     float eps) {
    const uint32_t width = static_cast<uint32_t>(gain.size()), n = static_cast<uint32_t>(x.size() / width);
    device_array<float> from(x), device_gain(gain);
    device_array<uint16_t> to(x.size());
    return in_each_order([&] {
        CHECK_CUDA(cudaMemset(to.p, 0x5a, to.n * sizeof *to.p));
        CHECK_CUDA(cuda_rmsnorm(nullptr, dtype, from.p, device_gain.p, eps, n, width, to.p));
        return to.get();
    });
}

static void rows_are_near(void) {
    test_rng rng = {test_seed(21)};
    for_each_act([&](kernels_dtype dtype) {
        for (uint32_t width : widths) {
            const uint32_t n = random_count(&rng, width > 2048 ? 2 : 5);
            const double amplitude = width % 2 == 0 ? 3 : 1e-3; /* eps tells there */
            const std::vector<float> x = random_floats(&rng, static_cast<size_t>(n) * width, amplitude);
            const std::vector<float> gain = random_floats(&rng, width, 2);
            const std::vector<uint16_t> got = rmsnorm(dtype, x, gain, 1e-5f);
            for (uint32_t t = 0; t < n; t++) {
                const float *row = &x[static_cast<size_t>(t) * width];
                const std::vector<double> want = reference(std::vector<double>(row, row + width), gain.data(), 1e-5f);
                const size_t wrong = count_wrong(dtype, &got[static_cast<size_t>(t) * width], want);
                CHECK_MSG(wrong == 0, "%s, row %u of %u, %u wide: %zu wrong", act_name(dtype), t, n, width, wrong);
            }
        }
    });
}

/* A row of many is the row alone, NaN and infinity beside it or not; and a row of zeros gives zeros. */
static void rows_stand_alone(void) {
    test_rng rng = {test_seed(22)};
    for_each_act([&](kernels_dtype dtype) {
        for (uint32_t width : {9u, 64u, 1000u, 2056u}) {
            const uint32_t n = 6;
            std::vector<float> x = random_floats(&rng, static_cast<size_t>(n) * width, 2);
            const std::vector<float> gain = random_floats(&rng, width, 2);
            x[1 * width + width / 2] = std::numeric_limits<float>::quiet_NaN();
            x[3 * width] = std::numeric_limits<float>::infinity();
            std::fill_n(&x[4 * width], width, 0.0f);
            const std::vector<uint16_t> together = rmsnorm(dtype, x, gain, 1e-6f);
            for (uint32_t t = 0; t < n; t++) {
                const auto row = x.begin() + static_cast<ptrdiff_t>(t) * width;
                const std::vector<uint16_t> alone = rmsnorm(dtype, std::vector<float>(row, row + width), gain, 1e-6f);
                CHECK_MSG(memcmp(alone.data(), &together[t * width], width * sizeof alone[0]) == 0, "row %u, %u wide",
                          t, width);
                for (uint32_t i = 0; i < width; i++) {
                    const double v = act_value(dtype, alone[i]);
                    const bool expected = t == 1   ? std::isnan(v)
                                          : t == 3 ? (i == 0 ? std::isnan(v) : v == 0)
                                          : t == 4 ? v == 0
                                                   : std::isfinite(v);
                    CHECK_MSG(expected, "row %u, element %u of %u: %g", t, i, width, v);
                }
            }
        }
    });
}

struct heads {
    uint32_t n_tokens, stride, offset, n_heads, head_dim;
};

static std::vector<uint16_t> head_norm(kernels_dtype dtype, const heads &h, const std::vector<uint16_t> &x,
                                       const std::vector<float> &gain) {
    device_array<uint16_t> values(x.size());
    device_array<float> device_gain(gain);
    return in_each_order([&] {
        values.put(x);
        CHECK_CUDA(cuda_head_norm(nullptr, dtype, values.p, h.n_tokens, h.stride, h.offset, h.n_heads, h.head_dim,
                                  device_gain.p, 1e-6f));
        return values.get();
    });
}

static void heads_are_near(void) {
    test_rng rng = {test_seed(23)};
    for_each_act([&](kernels_dtype dtype) {
        for (uint32_t head_dim : {1u, 2u, 8u, 20u, 64u, 80u, 128u, 256u, 300u, 520u}) {
            heads h = {random_count(&rng, 7), 0, 0, random_count(&rng, 9), head_dim};
            const uint32_t grain = head_dim % 8 == 0 && test_rng_below(&rng, 2) != 0 ? 8 : 1;
            h.offset = (random_count(&rng, 9) - 1) * grain;
            h.stride = h.offset + h.n_heads * head_dim + (random_count(&rng, 9) - 1) * grain;
            const std::vector<uint16_t> x = random_acts(&rng, dtype, static_cast<size_t>(h.n_tokens) * h.stride, 3);
            const std::vector<float> gain = random_floats(&rng, head_dim, 2);
            const std::vector<uint16_t> got = head_norm(dtype, h, x, gain);
            std::vector<uint16_t> rest = got; /* with the heads as they were */
            size_t wrong = 0;
            for (uint32_t i = 0; i < h.n_tokens * h.n_heads; i++) {
                const size_t at = static_cast<size_t>(i / h.n_heads) * h.stride + h.offset + i % h.n_heads * head_dim;
                std::vector<double> head(head_dim);
                for (uint32_t j = 0; j < head_dim; j++) {
                    head[j] = act_value(dtype, x[at + j]);
                    rest[at + j] = x[at + j];
                }
                wrong += count_wrong(dtype, &got[at], reference(head, gain.data(), 1e-6f));
            }
            CHECK_MSG(wrong == 0, "%s, %u tokens, stride %u, offset %u, %u heads of %u: %zu wrong", act_name(dtype),
                      h.n_tokens, h.stride, h.offset, h.n_heads, head_dim, wrong);
            CHECK_MSG(same_bits(rest, x), "beside %u heads of %u", h.n_heads, head_dim);
        }
    });
}

/* Alone or among others, and whether its address allows wide accesses or not. */
static void heads_stand_alone(void) {
    test_rng rng = {test_seed(24)};
    for_each_act([&](kernels_dtype dtype) {
        for (uint32_t head_dim : {8u, 24u, 128u, 264u}) {
            const heads many = {3, 5 * head_dim, head_dim, 4, head_dim}, one = {1, head_dim, 0, 1, head_dim},
                        odd = {1, head_dim + 3, 3, 1, head_dim};
            const std::vector<uint16_t> x = random_acts(&rng, dtype, static_cast<size_t>(3) * many.stride, 3);
            const std::vector<float> gain = random_floats(&rng, head_dim, 2);
            const std::vector<uint16_t> together = head_norm(dtype, many, x, gain);
            for (uint32_t i = 0; i < 12; i++) {
                const size_t at = static_cast<size_t>(i / 4) * many.stride + head_dim + i % 4 * head_dim;
                std::vector<uint16_t> shifted(x.begin() + static_cast<ptrdiff_t>(at) - 3,
                                              x.begin() + static_cast<ptrdiff_t>(at) + head_dim);
                const std::vector<uint16_t> alone =
                    head_norm(dtype, one, std::vector<uint16_t>(shifted.begin() + 3, shifted.end()), gain);
                const std::vector<uint16_t> askew = head_norm(dtype, odd, shifted, gain);
                const size_t bytes = head_dim * sizeof x[0];
                CHECK_MSG(memcmp(&together[at], alone.data(), bytes) == 0, "head %u of %u alone", i, head_dim);
                CHECK_MSG(memcmp(&together[at], &askew[3], bytes) == 0, "head %u of %u askew", i, head_dim);
            }
        }
    });
}

static void refusals(void) {
    device_array<float> memory(64);
    float *p = memory.p, *odd = p + 1;
    const cudaError_t no = cudaErrorInvalidValue;
    CU_ASSERT_EQUAL(cuda_rmsnorm(nullptr, KERNELS_F32, p, p, 0, 1, 8, p), no);
    CU_ASSERT_EQUAL(cuda_rmsnorm(nullptr, KERNELS_F16, p, p, 0, 1, 0, p), no);
    CU_ASSERT_EQUAL(cuda_rmsnorm(nullptr, KERNELS_F16, p, p, 0, UINT32_MAX, 8, p), no);
    CU_ASSERT_EQUAL(cuda_rmsnorm(nullptr, KERNELS_F16, p, p, 0, 1, UINT32_MAX, p), no);
    CU_ASSERT_EQUAL(cuda_rmsnorm(nullptr, KERNELS_F16, odd, p, 0, 1, 8, p), no);
    CU_ASSERT_EQUAL(cuda_rmsnorm(nullptr, KERNELS_F16, p, odd, 0, 1, 8, p), no);
    CU_ASSERT_EQUAL(cuda_rmsnorm(nullptr, KERNELS_F16, p, p, 0, 1, 8, odd), no);
    CU_ASSERT_EQUAL(cuda_head_norm(nullptr, KERNELS_F32, p, 1, 8, 0, 1, 8, p, 0), no);
    CU_ASSERT_EQUAL(cuda_head_norm(nullptr, KERNELS_F16, p, 1, 8, 0, 1, 0, p, 0), no);
    CU_ASSERT_EQUAL(cuda_head_norm(nullptr, KERNELS_F16, p, 1, 15, 0, 2, 8, p, 0), no);
    CU_ASSERT_EQUAL(cuda_head_norm(nullptr, KERNELS_F16, p, 1, 16, 1, 2, 8, p, 0), no);
    CU_ASSERT_EQUAL(cuda_head_norm(nullptr, KERNELS_F16, p, UINT32_MAX, 64, 0, 8, 8, p, 0), no);
    CU_ASSERT_EQUAL(cuda_head_norm(nullptr, KERNELS_F16, odd, 1, 8, 0, 1, 8, p, 0), no);
    CU_ASSERT_EQUAL(cuda_head_norm(nullptr, KERNELS_F16, p, 1, 8, 0, 1, 8, odd, 0), no);
    CHECK_CUDA(cuda_rmsnorm(nullptr, KERNELS_F16, nullptr, nullptr, 0, 0, 8, nullptr));
    CHECK_CUDA(cuda_head_norm(nullptr, KERNELS_F16, nullptr, 0, 8, 0, 1, 8, nullptr, 0));
    CHECK_CUDA(cuda_head_norm(nullptr, KERNELS_F16, nullptr, 1, 8, 0, 0, 8, nullptr, 0));
}

int main(int argc, char **argv) {
    static const test_case tests[] = {
        {"rows are within one rounding", rows_are_near},
        {"a row is the same among others, to the bit", rows_stand_alone},
        {"heads are within one rounding, and nothing beside them changes", heads_are_near},
        {"a head is the same among others and at any address, to the bit", heads_stand_alone},
        {"what cannot be is refused; nothing is no work", refusals},
    };
    return test_main("rmsnorm_test", tests, sizeof tests / sizeof *tests, argc, argv);
}
