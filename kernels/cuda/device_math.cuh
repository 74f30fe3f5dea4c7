/*
 * device_math: what the row-wise kernels share: pieces of eight elements, loaded and stored at once where they are whole and
 * aligned, and sums over lanes and threads in a fixed order.
 *
 * A row is cut into pieces of eight in the same way whether its accesses are wide or not: only the instructions differ, never
 * which thread has an element or when it is added.
 */
#ifndef PERCH_KERNELS_CUDA_DEVICE_MATH_CUH
#define PERCH_KERNELS_CUDA_DEVICE_MATH_CUH

#include "kernels/cuda/launch.h"
#include "kernels/cuda/simt.cuh"

namespace device_math {

constexpr uint32_t PIECE = 8; /* 16 bytes of activations */

template <class To, class From> __device__ __forceinline__ To bits(const From &from) {
    static_assert(sizeof(To) == sizeof(From), "");
    To to;
    memcpy(static_cast<void *>(&to), &from, sizeof to);
    return to;
}

__device__ __forceinline__ float to_float(float v) { return v; }
__device__ __forceinline__ float to_float(__nv_bfloat16 v) { return __bfloat162float(v); }
__device__ __forceinline__ float to_float(__half v) { return __half2float(v); }

/* To nearest, ties to even; a NaN stays one. */
template <class T> __device__ __forceinline__ T from_float(float v);
template <> __device__ __forceinline__ float from_float<float>(float v) { return v; }
template <> __device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float v) {
    return __float2bfloat16_rn(v);
}
template <> __device__ __forceinline__ __half from_float<__half>(float v) { return __float2half_rn(v); }

/* Two elements as they lie in a word. */
template <class T> __device__ __forceinline__ float2 unpack(uint32_t word);
template <> __device__ __forceinline__ float2 unpack<__nv_bfloat16>(uint32_t word) {
    return make_float2(__uint_as_float(word << 16), __uint_as_float(word & 0xffff0000u));
}
template <> __device__ __forceinline__ float2 unpack<__half>(uint32_t word) {
    return __half22float2(bits<__half2>(word));
}

template <class T> __device__ __forceinline__ uint32_t pack(float low, float high);
template <> __device__ __forceinline__ uint32_t pack<__nv_bfloat16>(float low, float high) {
    return bits<uint32_t>(__floats2bfloat162_rn(low, high));
}
template <> __device__ __forceinline__ uint32_t pack<__half>(float low, float high) {
    return bits<uint32_t>(__floats2half2_rn(low, high));
}

template <class T> __device__ __forceinline__ void unpack8(const uint4 &words, float (&v)[PIECE]) {
    const uint32_t word[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
    for (uint32_t i = 0; i < 4; i++) {
        float2 two = unpack<T>(word[i]);
        v[2 * i] = two.x;
        v[2 * i + 1] = two.y;
    }
}
template <class T> __device__ __forceinline__ uint4 pack8(const float (&v)[PIECE]) {
    return make_uint4(pack<T>(v[0], v[1]), pack<T>(v[2], v[3]), pack<T>(v[4], v[5]), pack<T>(v[6], v[7]));
}

/* Eight elements aligned to 16 bytes. */
__device__ __forceinline__ void load_whole(const float *from, float (&v)[PIECE]) {
    float4 low = *reinterpret_cast<const float4 *>(from);
    float4 high = *reinterpret_cast<const float4 *>(from + 4);
    v[0] = low.x, v[1] = low.y, v[2] = low.z, v[3] = low.w;
    v[4] = high.x, v[5] = high.y, v[6] = high.z, v[7] = high.w;
}
template <class T> __device__ __forceinline__ void load_whole(const T *from, float (&v)[PIECE]) {
    unpack8<T>(*reinterpret_cast<const uint4 *>(from), v);
}
__device__ __forceinline__ void store_whole(float *to, const float (&v)[PIECE]) {
    *reinterpret_cast<float4 *>(to) = make_float4(v[0], v[1], v[2], v[3]);
    *reinterpret_cast<float4 *>(to + 4) = make_float4(v[4], v[5], v[6], v[7]);
}
template <class T> __device__ __forceinline__ void store_whole(T *to, const float (&v)[PIECE]) {
    *reinterpret_cast<uint4 *>(to) = pack8<T>(v);
}

/* The piece at `from`, of which n elements are left; zeros beyond them. wide: every piece is whole and aligned to 16 bytes. */
template <bool wide, class T> __device__ __forceinline__ void load8(const T *from, uint32_t n, float (&v)[PIECE]) {
    if constexpr (wide) {
        load_whole(from, v);
    } else {
#pragma unroll
        for (uint32_t i = 0; i < PIECE; i++) {
            v[i] = i < n ? to_float(from[i]) : 0.0f;
        }
    }
}
template <bool wide, class T> __device__ __forceinline__ void store8(T *to, uint32_t n, const float (&v)[PIECE]) {
    if constexpr (wide) {
        store_whole(to, v);
    } else {
#pragma unroll
        for (uint32_t i = 0; i < PIECE; i++) {
            if (i < n) {
                to[i] = from_float<T>(v[i]);
            }
        }
    }
}

/* The sum over `lanes` neighbours (a power of two), the same in each of them; all lanes of the warp take part. */
__device__ __forceinline__ float warp_sum(float v, uint32_t lanes) {
    for (uint32_t distance = lanes / 2; distance > 0; distance /= 2) {
        v = __fadd_rn(v, __shfl_xor_sync(~0u, v, static_cast<int>(distance)));
    }
    return v;
}

/* The sum over a block of whole warps, the same in each thread. One barrier: `sums` is not for use a second time. */
__device__ __forceinline__ float block_sum(float v, float (&sums)[32]) {
    const uint32_t lane = threadIdx.x % 32, n_warps = blockDim.x / 32;
    v = warp_sum(v, 32);
    if (lane == 0) {
        sums[threadIdx.x / 32] = v;
    }
    __syncthreads();
    return warp_sum(lane < n_warps ? sums[lane] : 0.0f, 32);
}

/* ------------------------------------------------------------- host side of a launch */

/* n / by, rounded up. */
inline uint64_t ceil_div(uint64_t n, uint64_t by) { return n / by + (n % by != 0); }

inline uint64_t pieces(uint64_t n) { return ceil_div(n, PIECE); }

/* What launch.h promises of every pointer. */
inline bool usable(const void *pointer) { return pointer != nullptr && reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

/* f(T{}) with the type that dtype names. */
template <class F> cudaError_t with_act(kernels_dtype dtype, F f) {
    switch (dtype) {
    case KERNELS_BF16:
        return f(__nv_bfloat16{});
    case KERNELS_F16:
        return f(__half{});
    default:
        return cudaErrorInvalidValue;
    }
}

/* The same, and whether its accesses can be wide, as a type: f(T{}, std::true_type{}). */
template <class F> cudaError_t with_act(kernels_dtype dtype, bool wide, F f) {
    return with_act(dtype, [&](auto act) { return wide ? f(act, std::true_type{}) : f(act, std::false_type{}); });
}

/* Threads of a block that takes one row: a piece each, up to a full block. */
inline dim3 row_block(uint32_t width) {
    uint64_t threads = ceil_div(pieces(width), 32) * 32;
    return dim3(static_cast<unsigned>(threads < 1024 ? threads : 1024));
}

/*
 * Blocks of `threads` for `units` of work in each of n_tokens rows: x is the row, which may be many, y a part of the row. False where
 * there are more than a grid holds.
 */
inline bool row_grid(uint32_t n_tokens, uint64_t units, uint32_t threads, dim3 *grid) {
    uint64_t parts = ceil_div(units, threads);
    *grid = dim3(n_tokens, static_cast<unsigned>(parts));
    return n_tokens <= INT32_MAX && parts > 0 && parts <= 65535;
}

} // namespace device_math
#endif
