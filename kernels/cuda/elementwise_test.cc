/*
 * elementwise: tokens fed, rows picked, SiLU, bias and conversion against references in double; most are exact.
 */
#include "kernels/cuda/kernel_testing.hh"

#include <algorithm>
#include <numeric>

static const double NOT_A_NUMBER = std::numeric_limits<double>::quiet_NaN();
static const double INFINITE = std::numeric_limits<double>::infinity();

static const uint32_t widths[] = {1, 7, 8, 24, 33, 200, 2056, 4100};

/* ---------------------------------------------------------------- tokens */

static void tokens_are_fed(void) {
    test_rng rng = {test_seed(11)};
    for (uint64_t round = 0; round < test_scaled(12); round++) {
        const uint32_t n = random_count(&rng, round % 3 == 0 ? 600 : 20), launched = n + random_count(&rng, 40) - 1;
        const uint32_t n_slots = 5, session_len = 700;
        test_batch b;
        b.counts.n_tokens = n;
        b.counts.n_rows = n_slots;
        std::vector<kernels_chosen> chosen(7);
        for (kernels_chosen &c : chosen) {
            c = {};
            c.token = static_cast<int32_t>(test_rng_below(&rng, 1000)) - 1;
        }
        chosen[3].token = -1;
        std::vector<uint32_t> slots(n_slots);
        std::iota(slots.begin(), slots.end(), 0u);
        for (uint32_t i = n_slots - 1; i > 0; i--) {
            std::swap(slots[i], slots[test_rng_below(&rng, i + 1)]);
        }
        for (uint32_t slot : slots) {
            kernels_row row = {};
            row.slot = slot;
            b.rows.push_back(row);
            b.row_slot.push_back(slot);
        }
        std::vector<int32_t> history(static_cast<size_t>(n_slots) * session_len, -7);
        std::vector<int32_t> want_history = history, want;
        for (uint32_t t = 0; t < launched; t++) { /* what lies beyond n would be found */
            b.tokens.push_back(static_cast<int32_t>(test_rng_below(&rng, 1000)));
            b.token_from.push_back(test_rng_below(&rng, 2) != 0 ? KERNELS_GIVEN
                                                                : static_cast<uint32_t>(test_rng_below(&rng, 7)));
            b.positions.push_back(t);
            b.token_row.push_back(static_cast<uint32_t>(test_rng_below(&rng, n_slots)));
            want.push_back(b.tokens[t]);
            if (t < n) {
                want[t] = b.token_from[t] == KERNELS_GIVEN ? want[t] : std::max(chosen[b.token_from[t]].token, 0);
                want_history[static_cast<size_t>(slots[b.token_row[t]]) * session_len + t] = want[t];
            }
        }
        b.logit_tokens.push_back(0);
        device_batch on_device(b);
        device_array<kernels_chosen> device_chosen(chosen);
        device_array<int32_t> device_history(history);
        const cuda_batch view = on_device.view();
        CHECK_CUDA(cuda_feed(nullptr, &view, launched, device_chosen.p, device_history.p, session_len));
        CHECK_MSG(same_bits(on_device.tokens.get(), want), "%u of %u tokens", n, launched);
        CHECK_MSG(same_bits(device_history.get(), want_history), "%u of %u tokens", n, launched);
    }
}

/* A batch of `n` tokens and n logit rows, `launched` in its arrays. */
static test_batch batch_of(test_rng *rng, uint32_t n, uint32_t launched, uint32_t vocab) {
    test_batch b;
    b.counts.n_tokens = b.counts.n_logits = n;
    for (uint32_t i = 0; i < launched; i++) {
        b.tokens.push_back(static_cast<int32_t>(test_rng_below(rng, vocab)));
        b.logit_tokens.push_back(static_cast<uint32_t>(test_rng_below(rng, vocab)));
    }
    b.token_from = b.positions = b.token_row = b.row_slot = {0};
    b.rows = {kernels_row{}};
    return b;
}

static void embeddings_are_exact(void) {
    test_rng rng = {test_seed(12)};
    for_each_act([&](kernels_dtype dtype) {
        for (uint32_t width : widths) {
            const uint32_t n = random_count(&rng, 9), launched = n + random_count(&rng, 4), vocab = 50;
            const test_batch b = batch_of(&rng, n, launched, vocab);
            const std::vector<uint16_t> weight = random_acts(&rng, dtype, static_cast<size_t>(vocab) * width, 4);
            std::vector<float> want(static_cast<size_t>(launched) * width, -123);
            const std::vector<float> before = want;
            for (size_t i = 0; i < static_cast<size_t>(n) * width; i++) {
                const size_t token = static_cast<size_t>(b.tokens[i / width]);
                want[i] = static_cast<float>(act_value(dtype, weight[token * width + i % width]));
            }
            device_batch on_device(b);
            const cuda_batch view = on_device.view();
            device_array<uint16_t> w(weight);
            device_array<float> x(before);
            CHECK_CUDA(cuda_embed(nullptr, dtype, &view, launched, w.p, width, x.p));
            CHECK_MSG(same_bits(x.get(), want), "%s, %u of %u rows of %u", act_name(dtype), n, launched, width);
        }
    });
}

static void rows_are_gathered(void) {
    test_rng rng = {test_seed(13)};
    for (size_t row_bytes : {1, 2, 6, 16, 34, 48, 4096, 4110, 8208}) {
        const uint32_t n = random_count(&rng, 9), launched = n + random_count(&rng, 4), n_rows = 30;
        const test_batch b = batch_of(&rng, n, launched, n_rows);
        std::vector<uint8_t> x(n_rows * row_bytes), before(launched * row_bytes, 0x5a);
        for (uint8_t &v : x) {
            v = static_cast<uint8_t>(test_rng_below(&rng, 256));
        }
        std::vector<uint8_t> want = before;
        for (size_t j = 0; j < n; j++) {
            memcpy(&want[j * row_bytes], &x[b.logit_tokens[j] * row_bytes], row_bytes);
        }
        device_batch on_device(b);
        const cuda_batch view = on_device.view();
        device_array<uint8_t> from(x), to(before);
        CHECK_CUDA(cuda_gather(nullptr, &view, launched, from.p, row_bytes, to.p));
        CHECK_MSG(same_bits(to.get(), want), "%u of %u rows of %zu bytes", n, launched, row_bytes);
    }
}

/* ------------------------------------------------------------------ SiLU */

static double silu_mul(double gate, double up) {
    const double e = exp(-fabs(gate));
    return gate * ((gate < 0 ? e : 1) / (1 + e)) * up;
}

/* One rounding to act, and 2^-20 for e^x, the quotient and two products in f32. */
static bool silu_near(kernels_dtype dtype, double got, double want) {
    if (std::isnan(want) || std::isinf(want)) {
        return std::isnan(want) ? std::isnan(got) : got == want;
    }
    const double largest = dtype == KERNELS_BF16 ? 0x1.fep127 : 65504.0;
    if (std::isinf(got)) {
        return fabs(want) * (1 + 0x1p-20) >= largest * (1 + act_unit(dtype) / 2) && (got > 0) == (want > 0);
    }
    return fabs(got - want) <= fabs(want) * (act_unit(dtype) + 0x1p-20) + act_tiny(dtype) + 0x1p-125;
}

static void check_silu(kernels_dtype dtype, uint32_t n, uint32_t width, const std::vector<uint16_t> &gate_up) {
    device_array<uint16_t> from(gate_up), to(static_cast<size_t>(n) * width);
    CHECK_CUDA(cuda_silu_mul(nullptr, dtype, from.p, n, width, to.p));
    const std::vector<uint16_t> got = to.get();
    size_t wrong = 0;
    for (size_t i = 0; i < got.size(); i++) {
        const size_t at = i / width * 2 * width + i % width;
        const double gate = act_value(dtype, gate_up[at]), up = act_value(dtype, gate_up[at + width]);
        if (gate < -87 && std::isinf(up)) {
            continue; /* e^gate is 0 or nearly so in f32, and their product anything */
        }
        wrong += !silu_near(dtype, act_value(dtype, got[i]), silu_mul(gate, up));
    }
    CHECK_MSG(wrong == 0, "%s, %u rows of %u: %zu wrong", act_name(dtype), n, width, wrong);
}

static void silu_is_near(void) {
    test_rng rng = {test_seed(14)};
    for_each_act([&](kernels_dtype dtype) {
        for (uint32_t width : widths) {
            const uint32_t n = width % 2 == 0 ? 1 : 1 + random_count(&rng, 5);
            check_silu(dtype, n, width, random_acts(&rng, dtype, static_cast<size_t>(n) * 2 * width, 12));
        }
        /* Each special value with each. */
        const double special[] = {0.0, -0.0, INFINITE, -INFINITE, NOT_A_NUMBER, 1,    -1,     20,
                                  -20, 88,   -88,      -104,      3e4,          -3e4, 0x1p-24};
        const uint32_t n = sizeof special / sizeof *special;
        std::vector<uint16_t> gate_up(static_cast<size_t>(2) * n * n);
        for (uint32_t i = 0; i < n * n; i++) {
            gate_up[i] = act_bits(dtype, special[i / n]);
            gate_up[n * n + i] = act_bits(dtype, special[i % n]);
        }
        check_silu(dtype, 1, n * n, gate_up);
    });
}

/* ------------------------------------------------------------------ bias */

static void bias_is_exact(void) {
    test_rng rng = {test_seed(15)};
    for_each_act([&](kernels_dtype dtype) {
        for (uint32_t width : widths) {
            const uint32_t n = random_count(&rng, 5);
            const size_t size = static_cast<size_t>(n) * width;
            const std::vector<float> bias = random_floats(&rng, width, 1), y = random_floats(&rng, size, 3);
            const std::vector<uint16_t> acts = random_acts(&rng, dtype, size, 3);
            std::vector<float> want(size);
            std::vector<uint16_t> want_acts(size);
            for (size_t i = 0; i < size; i++) {
                want[i] = y[i] + bias[i % width];
                const float sum = static_cast<float>(act_value(dtype, acts[i])) + bias[i % width];
                want_acts[i] = act_bits(dtype, static_cast<double>(sum));
            }
            device_array<float> b(bias), to(y);
            device_array<uint16_t> to_acts(acts);
            CHECK_CUDA(cuda_add_bias(nullptr, dtype, b.p, n, width, to.p, true));
            CHECK_CUDA(cuda_add_bias(nullptr, dtype, b.p, n, width, to_acts.p, false));
            CHECK_MSG(same_bits(to.get(), want), "f32, %u rows of %u", n, width);
            CHECK_MSG(same_bits(to_acts.get(), want_acts), "%s, %u rows of %u", act_name(dtype), n, width);
        }
    });
}

/* ------------------------------------------------------------ conversion */

/* A NaN may be any other; all else is exact. */
static void check_converted(kernels_dtype dtype, const std::vector<uint16_t> &got, const std::vector<double> &values) {
    size_t wrong = 0;
    for (size_t i = 0; i < values.size(); i++) {
        wrong += std::isnan(values[i]) ? !std::isnan(act_value(dtype, got[i])) : got[i] != act_bits(dtype, values[i]);
    }
    CHECK_MSG(wrong == 0, "to %s: %zu of %zu wrong", act_name(dtype), wrong, values.size());
}

static void every_act_converts(void) {
    for_each_act([&](kernels_dtype from_dtype) {
        std::vector<uint16_t> from(65536);
        std::vector<double> values(65536);
        for (uint32_t i = 0; i < 65536; i++) {
            from[i] = static_cast<uint16_t>(i);
            values[i] = act_value(from_dtype, from[i]);
        }
        device_array<uint16_t> source(from), to(from.size());
        for_each_act([&](kernels_dtype dtype) {
            CHECK_CUDA(cuda_convert(nullptr, from_dtype, source.p, dtype, from.size(), to.p));
            check_converted(dtype, to.get(), values);
        });
    });
}

/* Random bits, and halves between neighbours with what lies next to them, where rounding is decided. */
static void floats_convert(void) {
    test_rng rng = {test_seed(16)};
    for (size_t n : {1u, 7u, 8u, 9u, 2047u, 30001u}) {
        for_each_act([&](kernels_dtype dtype) {
            std::vector<float> from(n);
            std::vector<double> values(n);
            for (size_t i = 0; i < n; i++) {
                const uint64_t random = test_rng_next(&rng);
                from[i] = f32_from_bits(static_cast<uint32_t>(random));
                if (random >> 40 & 1) {
                    const uint16_t act = static_cast<uint16_t>(random & 0x7bff);
                    const double low = act_value(dtype, act), high = act_value(dtype, static_cast<uint16_t>(act + 1));
                    from[i] = static_cast<float>((low + high) / 2) * (random >> 41 & 1 ? 1.0f : -1.0f);
                    from[i] = f32_from_bits(f32_bits(from[i]) + static_cast<uint32_t>(random >> 42) % 3 - 1);
                }
                values[i] = static_cast<double>(from[i]);
            }
            device_array<float> source(from);
            device_array<uint16_t> to(std::vector<uint16_t>(n + 9, 0x1234));
            CHECK_CUDA(cuda_convert(nullptr, KERNELS_F32, source.p, dtype, n, to.p));
            const std::vector<uint16_t> got = to.get();
            check_converted(dtype, got, values);
            CHECK_MSG(std::count(got.begin() + static_cast<ptrdiff_t>(n), got.end(), 0x1234) == 9, "beyond %zu", n);
        });
    }
}

/* -------------------------------------------------------------- refusals */

static void refusals(void) {
    test_rng rng = {1};
    device_batch on_device(batch_of(&rng, 1, 1, 1));
    const cuda_batch b = on_device.view();
    device_array<float> memory(64);
    float *p = memory.p, *odd = p + 1;
    const cudaError_t no = cudaErrorInvalidValue;
    CU_ASSERT_EQUAL(cuda_feed(nullptr, &b, 1, nullptr, nullptr, 4), no);
    CU_ASSERT_EQUAL(cuda_feed(nullptr, &b, 1, nullptr, reinterpret_cast<int32_t *>(p), 0), no);
    CU_ASSERT_EQUAL(cuda_embed(nullptr, KERNELS_F32, &b, 1, p, 8, p), no);
    CU_ASSERT_EQUAL(cuda_embed(nullptr, KERNELS_F16, &b, 1, p, 0, p), no);
    CU_ASSERT_EQUAL(cuda_embed(nullptr, KERNELS_F16, &b, 1, odd, 8, p), no);
    CU_ASSERT_EQUAL(cuda_embed(nullptr, KERNELS_F16, &b, 1, p, 8, odd), no);
    CU_ASSERT_EQUAL(cuda_embed(nullptr, KERNELS_F16, &b, UINT32_MAX, p, 8, p), no);
    CU_ASSERT_EQUAL(cuda_gather(nullptr, &b, 1, p, 0, p), no);
    CU_ASSERT_EQUAL(cuda_gather(nullptr, &b, 1, odd, 16, p), no);
    CU_ASSERT_EQUAL(cuda_gather(nullptr, &b, 1, p, 16, nullptr), no);
    CU_ASSERT_EQUAL(cuda_gather(nullptr, &b, 1, p, SIZE_MAX, p), no);
    CU_ASSERT_EQUAL(cuda_silu_mul(nullptr, KERNELS_F32, p, 1, 8, p), no);
    CU_ASSERT_EQUAL(cuda_silu_mul(nullptr, KERNELS_BF16, p, 1, 0, p), no);
    CU_ASSERT_EQUAL(cuda_silu_mul(nullptr, KERNELS_BF16, odd, 1, 8, p), no);
    CU_ASSERT_EQUAL(cuda_silu_mul(nullptr, KERNELS_BF16, p, 1, UINT32_MAX, p), no);
    CU_ASSERT_EQUAL(cuda_add_bias(nullptr, KERNELS_F32, p, 1, 8, p, true), no);
    CU_ASSERT_EQUAL(cuda_add_bias(nullptr, KERNELS_BF16, odd, 1, 8, p, true), no);
    CU_ASSERT_EQUAL(cuda_add_bias(nullptr, KERNELS_BF16, p, 1, 0, p, false), no);
    CU_ASSERT_EQUAL(cuda_convert(nullptr, KERNELS_F32, p, KERNELS_F32, 8, p), no);
    CU_ASSERT_EQUAL(cuda_convert(nullptr, static_cast<kernels_dtype>(3), p, KERNELS_F16, 8, p), no);
    CU_ASSERT_EQUAL(cuda_convert(nullptr, KERNELS_F32, odd, KERNELS_F16, 8, p), no);
    CU_ASSERT_EQUAL(cuda_convert(nullptr, KERNELS_F32, p, KERNELS_F16, SIZE_MAX, p), no);
}

static void nothing_is_fine(void) {
    CHECK_CUDA(cuda_feed(nullptr, nullptr, 0, nullptr, nullptr, 0));
    CHECK_CUDA(cuda_embed(nullptr, KERNELS_F16, nullptr, 0, nullptr, 8, nullptr));
    CHECK_CUDA(cuda_gather(nullptr, nullptr, 0, nullptr, 16, nullptr));
    CHECK_CUDA(cuda_silu_mul(nullptr, KERNELS_F16, nullptr, 0, 8, nullptr));
    CHECK_CUDA(cuda_add_bias(nullptr, KERNELS_F16, nullptr, 0, 8, nullptr, false));
    CHECK_CUDA(cuda_convert(nullptr, KERNELS_F32, nullptr, KERNELS_F16, 0, nullptr));
}

int main(int argc, char **argv) {
    static const test_case tests[] = {
        {"tokens are fed from the host and from choices, and remembered", tokens_are_fed},
        {"embeddings are exact, and end with the batch", embeddings_are_exact},
        {"rows of any size are gathered, as many as the batch asks for", rows_are_gathered},
        {"SiLU is within one rounding, special values included", silu_is_near},
        {"a bias is added with one rounding in f32 and one to the type", bias_is_exact},
        {"every f16 and bf16 number converts to either", every_act_converts},
        {"f32 numbers are rounded to nearest even", floats_convert},
        {"what cannot be is refused", refusals},
        {"no tokens are no work", nothing_is_fine},
    };
    return test_main("elementwise_test", tests, sizeof tests / sizeof *tests, argc, argv);
}
