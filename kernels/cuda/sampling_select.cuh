/*
 * sampling_select: sums over a block of 256 threads, and the selection by radix that finds how far a front of a set reaches. All
 * on integers: which thread adds what, and when, makes no difference.
 */
#ifndef PERCH_KERNELS_CUDA_SAMPLING_SELECT_CUH
#define PERCH_KERNELS_CUDA_SAMPLING_SELECT_CUH

#include "kernels/cuda/simt.cuh"

#include <stdint.h>

namespace sampling_select {

constexpr uint32_t THREADS = 256, WARPS = THREADS / 32;
constexpr uint32_t DIGITS = 256;

/* ---------------------------------------------------------------- sums of a block */

/* A sum in shared memory: 32-bit additions are the hardware's own there, 64-bit ones are not. */
struct wide_sum {
    uint32_t low, high;
};
__device__ __forceinline__ void add(wide_sum *to, uint64_t value) {
    uint32_t low = static_cast<uint32_t>(value), before = atomicAdd(&to->low, low);
    uint32_t high = static_cast<uint32_t>(value >> 32) + (before + low < low);
    if (high > 0) {
        atomicAdd(&to->high, high);
    }
}
__device__ __forceinline__ uint64_t value_of(const wide_sum &sum) {
    return static_cast<uint64_t>(sum.high) << 32 | sum.low;
}

struct adding {
    template <class T> __device__ T operator()(T a, T b) const { return a + b; }
};
struct smaller {
    template <class T> __device__ T operator()(T a, T b) const { return b < a ? b : a; }
};
struct larger {
    template <class T> __device__ T operator()(T a, T b) const { return a < b ? b : a; }
};

template <class T, class Op> __device__ __forceinline__ T warp_reduce(T value, Op op) {
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) {
        value = op(value, __shfl_xor_sync(~0u, value, distance));
    }
    return value;
}

/* The same in each thread. by_warp [WARPS] is free again behind the next barrier. */
template <class T, class Op> __device__ __forceinline__ T block_reduce(T value, Op op, T *by_warp) {
    value = warp_reduce(value, op);
    if (threadIdx.x % 32 == 0) {
        by_warp[threadIdx.x / 32] = value;
    }
    __syncthreads();
    value = by_warp[0];
#pragma unroll
    for (uint32_t w = 1; w < WARPS; w++) {
        value = op(value, by_warp[w]);
    }
    return value;
}

/* The sum over the threads before this one; *total: over all. by_warp as above. */
__device__ __forceinline__ uint64_t block_sum_before(uint64_t value, uint64_t *by_warp, uint64_t *total) {
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    uint64_t sum = value;
#pragma unroll
    for (uint32_t distance = 1; distance < 32; distance *= 2) {
        uint64_t other = __shfl_up_sync(~0u, sum, distance);
        sum += lane >= distance ? other : 0;
    }
    if (lane == 31) {
        by_warp[warp] = sum;
    }
    __syncthreads();
    uint64_t before = 0, all = 0;
#pragma unroll
    for (uint32_t w = 0; w < WARPS; w++) {
        before += w < warp ? by_warp[w] : 0;
        all += by_warp[w];
    }
    *total = all;
    return before + sum - value;
}

/* ------------------------------------------------------------------- selection */

struct selection_memory {
    wide_sum sum[DIGITS];
    uint32_t count[DIGITS];
    uint64_t by_warp[WARPS];
    uint64_t prefix, reached, border;
    uint32_t n_left;
};

/*
 * By one warp: the digit at which the sum, so far `reached`, reaches goal; the rank's digits are extended by it.
 */
__device__ __forceinline__ void pick_digit(selection_memory &m, uint64_t goal) {
    constexpr uint32_t EACH = DIGITS / 32;
    const uint32_t lane = threadIdx.x % 32;
    uint64_t own = 0, before;
    for (uint32_t i = 0; i < EACH; i++) {
        own += value_of(m.sum[lane * EACH + i]);
    }
    before = own;
#pragma unroll
    for (uint32_t distance = 1; distance < 32; distance *= 2) {
        uint64_t other = __shfl_up_sync(~0u, before, distance);
        before += lane >= distance ? other : 0;
    }
    before += m.reached - own;
    __syncwarp(); /* each has read `reached` */
    if (before < goal && before + own >= goal) {
        uint32_t digit = lane * EACH;
        while (before + value_of(m.sum[digit]) < goal) {
            before += value_of(m.sum[digit++]);
        }
        m.prefix = m.prefix << 8 | digit;
        m.reached = before;
        m.n_left = m.count[digit];
    }
}

/*
 * By a block: the smallest rank of a set up to which the weights (unweighted: one each) add up to goal; 0 < goal, which is not
 * more than all of them. each(f) calls f(rank, weight) for the elements of the thread; ranks differ.
 */
template <class Each> __device__ uint64_t find_border(selection_memory &m, bool weighted, uint64_t goal, Each each) {
    __syncthreads();
    if (threadIdx.x == 0) {
        m.prefix = m.reached = 0;
    }
    for (uint32_t shift = 56;; shift -= 8) {
        for (uint32_t i = threadIdx.x; i < DIGITS; i += THREADS) {
            m.sum[i] = {0, 0};
            m.count[i] = 0;
        }
        __syncthreads();
        const uint64_t prefix = m.prefix;
        each([&](uint64_t rank, uint64_t weight) {
            if (shift == 56 || rank >> (shift + 8) == prefix) {
                const uint32_t digit = static_cast<uint32_t>(rank >> shift) % DIGITS;
                add(&m.sum[digit], weighted ? weight : 1);
                atomicAdd(&m.count[digit], 1u);
            }
        });
        __syncthreads();
        if (threadIdx.x < 32) {
            pick_digit(m, goal);
        }
        __syncthreads();
        if (shift == 0 || m.n_left == 1) {
            const uint64_t found = m.prefix;
            each([&](uint64_t rank, uint64_t) {
                if (rank >> shift == found) {
                    m.border = rank;
                }
            });
            __syncthreads();
            return m.border;
        }
    }
}

} // namespace sampling_select
#endif
