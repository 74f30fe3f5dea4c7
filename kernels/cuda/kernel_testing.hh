/*
 * kernel_testing: what the kernels' tests share: device arrays, activations on the host, repeated launches. The same source runs
 * emulated, where each launch is repeated with other orders of threads, and on a GPU.
 */
#ifndef PERCH_KERNELS_CUDA_KERNEL_TESTING_HH
#define PERCH_KERNELS_CUDA_KERNEL_TESTING_HH

#include "kernels/cpu/convert.h"
#include "kernels/cuda/launch.h"
#include "tests/support/check.h"

#include <cmath>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <vector>

#define CHECK_CUDA(call)                                                                                               \
    do {                                                                                                               \
        cudaError_t check_status = call;                                                                               \
        CHECK_MSG(check_status == cudaSuccess, "%s: %s", #call, cudaGetErrorString(check_status));                     \
    } while (0)

/* n elements on the device. */
template <class T> class device_array {
  public:
    explicit device_array(size_t n_elements) : n(n_elements) {
        void *memory = nullptr;
        CHECK_CUDA(cudaMalloc(&memory, n * sizeof(T)));
        p = static_cast<T *>(memory);
    }
    explicit device_array(const std::vector<T> &values) : device_array(values.size()) { put(values); }
    ~device_array() { CHECK_CUDA(cudaFree(p)); }
    device_array(const device_array &) = delete;
    device_array &operator=(const device_array &) = delete;

    void put(const std::vector<T> &values) {
        CHECK_CUDA(cudaMemcpy(p, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice));
    }
    std::vector<T> get() const {
        std::vector<T> values(n);
        CHECK_CUDA(cudaDeviceSynchronize());
        CHECK_CUDA(cudaMemcpy(values.data(), p, n * sizeof(T), cudaMemcpyDeviceToHost));
        return values;
    }

    T *p = nullptr;
    size_t n;
};

template <class T> bool same_bits(const std::vector<T> &a, const std::vector<T> &b) {
    return a.size() == b.size() && (a.empty() || memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

/* What `run` returns, which must be the same bits with each order of threads. run() starts from its inputs each time. */
template <class F> auto in_each_order(F run) -> decltype(run()) {
    auto first = run();
#ifdef SIMT_EMULATE
    for (unsigned order : {1u, 2u, 3u}) {
        simt::options().order = order;
        auto again = run();
        CHECK_MSG(same_bits(first, again), "other bits with thread order %u", order);
    }
    simt::options().order = 0;
#endif
    return first;
}

/* ------------------------------------------------------------- activations, as 16 bits */

inline const char *act_name(kernels_dtype dtype) { return dtype == KERNELS_BF16 ? "bf16" : "f16"; }

/* Half of the distance between numbers next to 1, the largest relative error of one rounding; and of the smallest numbers. */
inline double act_unit(kernels_dtype dtype) { return dtype == KERNELS_BF16 ? 0x1p-8 : 0x1p-11; }
inline double act_tiny(kernels_dtype dtype) { return dtype == KERNELS_BF16 ? 0x1p-133 : 0x1p-25; }

inline double act_value(kernels_dtype dtype, uint16_t bits) {
    return static_cast<double>(dtype == KERNELS_BF16 ? bf16_to_f32(bits) : f16_to_f32(bits));
}

/* To nearest, ties to even, straight from double; any NaN gives one. */
inline uint16_t act_bits(kernels_dtype dtype, double v) {
    const int digits = dtype == KERNELS_BF16 ? 7 : 10, bias = dtype == KERNELS_BF16 ? 127 : 15;
    const unsigned sign = std::signbit(v) ? 0x8000u : 0u, infinite = ((1u << (15 - digits)) - 1) << digits;
    if (std::isnan(v)) {
        return static_cast<uint16_t>(sign | infinite | 1u << (digits - 1));
    }
    int exponent = 0;
    frexp(v, &exponent);         /* |v| < 2^exponent */
    const int lowest = 2 - bias; /* of normal numbers, in frexp's count */
    exponent = v == 0 || std::isinf(v) || exponent < lowest ? lowest : exponent;
    if (std::isinf(v) || exponent > bias + 2) {
        return static_cast<uint16_t>(sign | infinite);
    }
    /* In units of the last digit; a carry out of them moves on to the exponent by itself. */
    const double units = nearbyint(ldexp(fabs(v), digits + 1 - exponent));
    const unsigned bits = static_cast<unsigned>((exponent - lowest) << digits) + static_cast<unsigned>(units);
    return static_cast<uint16_t>(sign | (bits < infinite ? bits : infinite));
}

/* f(dtype) for both. */
template <class F> void for_each_act(F f) {
    f(KERNELS_BF16);
    f(KERNELS_F16);
}

/* ------------------------------------------------------------- random numbers */

/* 1 + up to n - 1 */
inline uint32_t random_count(test_rng *rng, uint32_t n) { return 1 + static_cast<uint32_t>(test_rng_below(rng, n)); }

inline double random_value(test_rng *rng) { return 2 * test_rng_unit(rng) - 1; }

inline std::vector<float> random_floats(test_rng *rng, size_t n, double amplitude) {
    std::vector<float> values(n);
    for (float &v : values) {
        v = static_cast<float>(amplitude * random_value(rng));
    }
    return values;
}

inline std::vector<uint16_t> random_acts(test_rng *rng, kernels_dtype dtype, size_t n, double amplitude) {
    std::vector<uint16_t> values(n);
    for (uint16_t &v : values) {
        v = act_bits(dtype, amplitude * random_value(rng));
    }
    return values;
}

/* ------------------------------------------------------------- batches */

/* A cuda_batch of device arrays that a test fills on the host. */
struct test_batch {
    cuda_counts counts = {};
    std::vector<int32_t> tokens;
    std::vector<uint32_t> token_from, positions, token_row, row_slot, logit_tokens;
    std::vector<kernels_row> rows;
};

class device_batch {
  public:
    explicit device_batch(const test_batch &b)
        : counts(std::vector<cuda_counts>{b.counts}), tokens(b.tokens), token_from(b.token_from),
          positions(b.positions), token_row(b.token_row), row_slot(b.row_slot), logit_tokens(b.logit_tokens),
          rows(b.rows) {}
    cuda_batch view() const {
        cuda_batch v = {};
        v.counts = counts.p;
        v.tokens = tokens.p;
        v.token_from = token_from.p;
        v.positions = positions.p;
        v.token_row = token_row.p;
        v.rows = rows.p;
        v.row_slot = row_slot.p;
        v.logit_tokens = logit_tokens.p;
        return v;
    }

    device_array<cuda_counts> counts;
    device_array<int32_t> tokens;
    device_array<uint32_t> token_from, positions, token_row, row_slot, logit_tokens;
    device_array<kernels_row> rows;
};

#endif
