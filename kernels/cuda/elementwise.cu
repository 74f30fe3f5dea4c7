/*
 * elementwise: what is done to one element at a time: tokens put into a batch, rows picked, SiLU, bias, conversion. All are bound
 * by memory: a thread has one piece of eight elements (device_math.cuh).
 */
#include "kernels/cuda/device_math.cuh"

using namespace device_math;

namespace {

constexpr uint32_t THREADS = 256;

/* The piece of a row that a thread of a row_grid has. */
__device__ __forceinline__ uint32_t grid_unit() { return blockIdx.y * blockDim.x + threadIdx.x; }

/* -------------------------------------------------------------------- feed */

__global__ void __launch_bounds__(THREADS)
    feed_kernel(cuda_batch batch, const kernels_chosen *chosen, int32_t *history, uint32_t session_len) {
    const uint32_t t = blockIdx.x * blockDim.x + threadIdx.x;
    if (t >= batch.counts->n_tokens) {
        return;
    }
    int32_t token = batch.tokens[t];
    const uint32_t from = batch.token_from[t];
    if (from != KERNELS_GIVEN) {
        token = max(chosen[from].token, 0);
        batch.tokens[t] = token;
    }
    const uint32_t slot = batch.rows[batch.token_row[t]].slot;
    history[static_cast<size_t>(slot) * session_len + batch.positions[t]] = token;
}

/* ------------------------------------------------------------------- embed */

template <class T, bool wide>
__global__ void __launch_bounds__(THREADS)
    embed_kernel(cuda_batch batch, const T *__restrict__ weight, uint32_t width, float *__restrict__ x) {
    const uint32_t t = blockIdx.x, i = grid_unit() * PIECE;
    if (t >= batch.counts->n_tokens || i >= width) {
        return;
    }
    float v[PIECE];
    load8<wide>(weight + static_cast<size_t>(batch.tokens[t]) * width + i, width - i, v);
    store8<wide>(x + static_cast<size_t>(t) * width + i, width - i, v);
}

/* ------------------------------------------------------------------ gather */

template <class unit>
__global__ void __launch_bounds__(THREADS)
    gather_kernel(cuda_batch batch, const unit *__restrict__ x, size_t row_units, unit *__restrict__ y) {
    const uint32_t j = blockIdx.x;
    const size_t i = static_cast<size_t>(blockIdx.y) * blockDim.x + threadIdx.x;
    if (j < batch.counts->n_logits && i < row_units) {
        y[j * row_units + i] = x[batch.logit_tokens[j] * row_units + i];
    }
}

template <class unit>
cudaError_t gather(cudaStream_t stream, const cuda_batch *batch, uint32_t n, const void *x, size_t row_bytes, void *y) {
    const size_t row_units = row_bytes / sizeof(unit);
    dim3 grid;
    if (!row_grid(n, row_units, THREADS, &grid)) {
        return cudaErrorInvalidValue;
    }
    return simt::launch(gather_kernel<unit>, grid, dim3(THREADS), 0, stream, *batch, static_cast<const unit *>(x),
                        row_units, static_cast<unit *>(y));
}

/* -------------------------------------------------------------------- SiLU */

/* gate * sigmoid(gate) * up, sigmoid by e^-|gate|, which can't overflow. Within 2^-20: far less than act's rounding. */
__device__ __forceinline__ float silu_mul(float gate, float up) {
    const float e = __expf(-fabsf(gate));
    const float inverse = __fdividef(1.0f, __fadd_rn(1.0f, e));
    return gate * (gate < 0.0f ? e * inverse : inverse) * up;
}

template <class T, bool wide>
__global__ void __launch_bounds__(THREADS)
    silu_mul_kernel(const T *__restrict__ gate_up, uint32_t width, T *__restrict__ y) {
    const uint32_t i = grid_unit() * PIECE;
    if (i >= width) {
        return;
    }
    const T *gate_row = gate_up + static_cast<size_t>(blockIdx.x) * 2 * width;
    float gate[PIECE], up[PIECE];
    load8<wide>(gate_row + i, width - i, gate);
    load8<wide>(gate_row + width + i, width - i, up);
#pragma unroll
    for (uint32_t j = 0; j < PIECE; j++) {
        gate[j] = silu_mul(gate[j], up[j]);
    }
    store8<wide>(y + static_cast<size_t>(blockIdx.x) * width + i, width - i, gate);
}

/* -------------------------------------------------------------------- bias */

template <class Y, bool wide>
__global__ void __launch_bounds__(THREADS)
    add_bias_kernel(const float *__restrict__ bias, uint32_t width, Y *__restrict__ y) {
    const uint32_t i = grid_unit() * PIECE;
    if (i >= width) {
        return;
    }
    Y *to = y + static_cast<size_t>(blockIdx.x) * width + i;
    float v[PIECE], b[PIECE];
    load8<wide>(to, width - i, v);
    load8<wide>(bias + i, width - i, b);
#pragma unroll
    for (uint32_t j = 0; j < PIECE; j++) {
        v[j] = __fadd_rn(v[j], b[j]);
    }
    store8<wide>(to, width - i, v);
}

template <class Y>
cudaError_t add_bias(cudaStream_t stream, const float *bias, uint32_t n_tokens, uint32_t width, void *y) {
    dim3 grid;
    if (!row_grid(n_tokens, pieces(width), THREADS, &grid)) {
        return cudaErrorInvalidValue;
    }
    auto kernel = width % PIECE == 0 ? add_bias_kernel<Y, true> : add_bias_kernel<Y, false>;
    return simt::launch(kernel, grid, dim3(THREADS), 0, stream, bias, width, static_cast<Y *>(y));
}

/* -------------------------------------------------------------- conversion */

template <class From, class To>
__global__ void __launch_bounds__(THREADS)
    convert_kernel(const From *__restrict__ from, size_t n, To *__restrict__ to) {
    const size_t i = (static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x) * PIECE;
    if (i >= n) {
        return;
    }
    const size_t left = n - i;
    float v[PIECE];
    if (left >= PIECE) {
        load8<true>(from + i, PIECE, v);
        store8<true>(to + i, PIECE, v);
    } else {
        load8<false>(from + i, static_cast<uint32_t>(left), v);
        store8<false>(to + i, static_cast<uint32_t>(left), v);
    }
}

template <class From>
cudaError_t convert(cudaStream_t stream, const void *from, kernels_dtype dtype, size_t n, void *to) {
    const uint64_t n_blocks = ceil_div(pieces(n), THREADS);
    if (n_blocks > INT32_MAX) {
        return cudaErrorInvalidValue;
    }
    return with_act(dtype, [&](auto act) {
        using To = decltype(act);
        return simt::launch(convert_kernel<From, To>, dim3(static_cast<unsigned>(n_blocks)), dim3(THREADS), 0, stream,
                            static_cast<const From *>(from), n, static_cast<To *>(to));
    });
}

} // namespace

extern "C" {

cudaError_t cuda_feed(cudaStream_t stream, const cuda_batch *batch, uint32_t n_tokens, const kernels_chosen *chosen,
                      int32_t *history, uint32_t session_len) {
    if (n_tokens == 0) {
        return cudaSuccess;
    }
    if (n_tokens > INT32_MAX || session_len == 0 || history == nullptr) {
        return cudaErrorInvalidValue;
    }
    return simt::launch(feed_kernel, dim3(static_cast<unsigned>(ceil_div(n_tokens, THREADS))), dim3(THREADS), 0, stream,
                        *batch, chosen, history, session_len);
}

cudaError_t cuda_embed(cudaStream_t stream, kernels_dtype dtype, const cuda_batch *batch, uint32_t n_tokens,
                       const void *weight, uint32_t width, float *x) {
    if (n_tokens == 0) {
        return cudaSuccess;
    }
    dim3 grid;
    if (!row_grid(n_tokens, pieces(width), THREADS, &grid) || !usable(weight) || !usable(x)) {
        return cudaErrorInvalidValue;
    }
    return with_act(dtype, width % PIECE == 0, [&](auto act, auto wide) {
        using T = decltype(act);
        return simt::launch(embed_kernel<T, decltype(wide)::value>, grid, dim3(THREADS), 0, stream, *batch,
                            static_cast<const T *>(weight), width, x);
    });
}

cudaError_t cuda_gather(cudaStream_t stream, const cuda_batch *batch, uint32_t n, const void *x, size_t row_bytes,
                        void *y) {
    if (n == 0) {
        return cudaSuccess;
    }
    if (!usable(x) || !usable(y)) {
        return cudaErrorInvalidValue;
    }
    return row_bytes % sizeof(uint4) == 0 ? gather<uint4>(stream, batch, n, x, row_bytes, y)
                                          : gather<uint8_t>(stream, batch, n, x, row_bytes, y);
}

cudaError_t cuda_silu_mul(cudaStream_t stream, kernels_dtype dtype, const void *gate_up, uint32_t n_tokens,
                          uint32_t width, void *y) {
    if (n_tokens == 0) {
        return cudaSuccess;
    }
    dim3 grid;
    if (!row_grid(n_tokens, pieces(width), THREADS, &grid) || !usable(gate_up) || !usable(y)) {
        return cudaErrorInvalidValue;
    }
    return with_act(dtype, width % PIECE == 0, [&](auto act, auto wide) {
        using T = decltype(act);
        return simt::launch(silu_mul_kernel<T, decltype(wide)::value>, grid, dim3(THREADS), 0, stream,
                            static_cast<const T *>(gate_up), width, static_cast<T *>(y));
    });
}

cudaError_t cuda_add_bias(cudaStream_t stream, kernels_dtype dtype, const float *bias, uint32_t n_tokens,
                          uint32_t width, void *y, bool y_is_float) {
    if (n_tokens == 0) {
        return cudaSuccess;
    }
    if (!usable(bias) || !usable(y)) {
        return cudaErrorInvalidValue;
    }
    return with_act(dtype, [&](auto act) {
        return y_is_float ? add_bias<float>(stream, bias, n_tokens, width, y)
                          : add_bias<decltype(act)>(stream, bias, n_tokens, width, y);
    });
}

cudaError_t cuda_convert(cudaStream_t stream, kernels_dtype from_dtype, const void *from, kernels_dtype dtype, size_t n,
                         void *to) {
    if (n == 0) {
        return cudaSuccess;
    }
    if (!usable(from) || !usable(to)) {
        return cudaErrorInvalidValue;
    }
    if (from_dtype == KERNELS_F32) {
        return convert<float>(stream, from, dtype, n, to);
    }
    return with_act(from_dtype, [&](auto act) { return convert<decltype(act)>(stream, from, dtype, n, to); });
}

} // extern "C"
