/*
 * norm: RMSNorm of a token's row and of each of its heads. y = x / sqrt(mean(x²) + eps) * gain (Zhang & Sennrich 2019). How a row is
 * cut up among threads, and with it the order of the sum, follows from its width alone.
 */
#include "kernels/cuda/device_math.cuh"

using namespace device_math;

namespace {

__device__ __forceinline__ float add_squares(float sum, const float (&v)[PIECE]) {
#pragma unroll
    for (uint32_t i = 0; i < PIECE; i++) {
        sum = __fmaf_rn(v[i], v[i], sum);
    }
    return sum;
}

__device__ __forceinline__ float norm_scale(float squares, uint32_t width, float eps) {
    return __fdiv_rn(1.0f, __fsqrt_rn(__fadd_rn(__fdiv_rn(squares, static_cast<float>(width)), eps)));
}

template <bool wide, class T>
__device__ __forceinline__ void store_normed(const float (&v)[PIECE], float scale, const float *gain, uint32_t n,
                                             T *to) {
    float g[PIECE];
    load8<wide>(gain, n, g);
#pragma unroll
    for (uint32_t i = 0; i < PIECE; i++) {
        g[i] *= v[i] * scale;
    }
    store8<wide>(to, n, g);
}

/* A block a row. A piece that is the thread's only one is read once. */
template <class T, bool wide>
__global__ void __launch_bounds__(1024) rmsnorm_kernel(const float *__restrict__ x, const float *__restrict__ gain,
                                                       float eps, uint32_t width, T *__restrict__ y) {
    SHARED(float, sums, [32]);
    const float *from = x + static_cast<size_t>(blockIdx.x) * width;
    T *to = y + static_cast<size_t>(blockIdx.x) * width;
    const uint32_t first = threadIdx.x * PIECE, stride = blockDim.x * PIECE;
    float v[PIECE], sum = 0.0f;
    for (uint32_t i = first; i < width; i += stride) {
        load8<wide>(from + i, width - i, v);
        sum = add_squares(sum, v);
    }
    const float scale = norm_scale(block_sum(sum, sums), width, eps);
    for (uint32_t i = first; i < width; i += stride) {
        if (width > stride) {
            load8<wide>(from + i, width - i, v);
        }
        store_normed<wide>(v, scale, gain + i, width - i, to + i);
    }
}

constexpr uint32_t HEAD_THREADS = 256;

struct head_shape {
    uint32_t total; /* heads of all tokens */
    uint32_t n_heads, head_dim;
    uint32_t stride, offset;
    uint32_t lanes; /* that share a head, a power of two */
};

/* As many lanes a head as it has pieces, so that a warp normalizes several small ones. */
template <class T, bool wide>
__global__ void __launch_bounds__(HEAD_THREADS)
    head_norm_kernel(T *x, head_shape shape, const float *__restrict__ gain, float eps) {
    const uint32_t h = (blockIdx.x * blockDim.x + threadIdx.x) / shape.lanes;
    const uint32_t width = h < shape.total ? shape.head_dim : 0; /* a lane without a head goes along for the sum */
    T *head = x + static_cast<size_t>(h / shape.n_heads) * shape.stride + shape.offset +
              static_cast<size_t>(h % shape.n_heads) * shape.head_dim;
    const uint32_t first = threadIdx.x % shape.lanes * PIECE, stride = shape.lanes * PIECE;
    float v[PIECE], sum = 0.0f;
    for (uint32_t i = first; i < width; i += stride) {
        load8<wide>(head + i, width - i, v);
        sum = add_squares(sum, v);
    }
    const float scale = norm_scale(warp_sum(sum, shape.lanes), shape.head_dim, eps);
    for (uint32_t i = first; i < width; i += stride) {
        if (width > stride) {
            load8<wide>(head + i, width - i, v);
        }
        store_normed<wide>(v, scale, gain + i, width - i, head + i);
    }
}

} // namespace

extern "C" {

cudaError_t cuda_rmsnorm(cudaStream_t stream, kernels_dtype dtype, const float *x, const float *gain, float eps,
                         uint32_t n_tokens, uint32_t width, void *y) {
    if (n_tokens == 0) {
        return cudaSuccess;
    }
    if (n_tokens > INT32_MAX || width == 0 || width > INT32_MAX || !usable(x) || !usable(gain) || !usable(y)) {
        return cudaErrorInvalidValue;
    }
    return with_act(dtype, width % PIECE == 0, [&](auto act, auto wide) {
        using T = decltype(act);
        return simt::launch(rmsnorm_kernel<T, decltype(wide)::value>, dim3(n_tokens), row_block(width), 0, stream, x,
                            gain, eps, width, static_cast<T *>(y));
    });
}

cudaError_t cuda_head_norm(cudaStream_t stream, kernels_dtype dtype, void *x, uint32_t n_tokens, uint32_t stride,
                           uint32_t offset, uint32_t n_heads, uint32_t head_dim, const float *gain, float eps) {
    if (n_tokens == 0 || n_heads == 0) {
        return cudaSuccess;
    }
    const uint64_t total = static_cast<uint64_t>(n_tokens) * n_heads;
    const uint64_t row_end = offset + static_cast<uint64_t>(n_heads) * head_dim;
    if (head_dim == 0 || row_end > stride || total > INT32_MAX || !usable(x) || !usable(gain)) {
        return cudaErrorInvalidValue;
    }
    head_shape shape = {static_cast<uint32_t>(total), n_heads, head_dim, stride, offset, 1};
    while (shape.lanes < 32 && shape.lanes < pieces(head_dim)) {
        shape.lanes *= 2;
    }
    const dim3 grid(static_cast<unsigned>(ceil_div(total, HEAD_THREADS / shape.lanes)));
    const bool whole = stride % PIECE == 0 && offset % PIECE == 0 && head_dim % PIECE == 0;
    return with_act(dtype, whole, [&](auto act, auto wide) {
        using T = decltype(act);
        return simt::launch(head_norm_kernel<T, decltype(wide)::value>, grid, dim3(HEAD_THREADS), 0, stream,
                            static_cast<T *>(x), shape, gain, eps);
    });
}

} // extern "C"
