/*
 * rope: rotates a token's queries in place and its keys into the KV cache, and copies its values there. A thread has up to eight
 * pairs (i, i + D/2) of one head: a piece of its lower half and the same piece of its upper half.
 */
#include "kernels/cuda/device_math.cuh"

using namespace device_math;

namespace {

constexpr uint32_t THREADS = 128;

struct rope_shape {
    uint32_t n_heads, n_kv_heads, head_dim;
    uint32_t first_run; /* of the layer: runs (K and V of a head) that lie before it in a group */
    uint64_t group_bytes;
};

/* Where the token at `position` has K of a head; its V lies a run of 16 x D further. */
template <class T>
__device__ __forceinline__ T *key_address(const kv_view &kv, const rope_shape &shape, uint32_t position,
                                          uint32_t kv_head) {
    const uint32_t group = position / KV_GROUP_TOKENS;
    uint8_t *start = kv.blocks != nullptr ? kv.blocks[group] : kv.base + group * shape.group_bytes;
    const size_t row =
        static_cast<size_t>(shape.first_run + kv_head) * 2 * KV_GROUP_TOKENS + position % KV_GROUP_TOKENS;
    return reinterpret_cast<T *>(start) + row * shape.head_dim;
}

/* Bit for bit. */
template <bool wide, class T> __device__ __forceinline__ void copy8(const T *from, uint32_t n, T *to) {
    if constexpr (wide) {
        *reinterpret_cast<uint4 *>(to) = *reinterpret_cast<const uint4 *>(from);
    } else {
        for (uint32_t i = 0; i < n && i < PIECE; i++) {
            to[i] = from[i];
        }
    }
}

template <class T, bool wide>
__global__ void __launch_bounds__(THREADS)
    rope_write_kernel(cuda_batch batch, rope_shape shape, const float *__restrict__ table, T *qkv) {
    const uint32_t t = blockIdx.x;
    if (t >= batch.counts->n_tokens) {
        return;
    }
    const uint32_t half = shape.head_dim / 2, head_pieces = (half + PIECE - 1) / PIECE;
    const uint32_t unit = blockIdx.y * blockDim.x + threadIdx.x;
    const uint32_t head = unit / head_pieces, i = unit % head_pieces * PIECE, n = half - i;
    const uint32_t n_rotated = shape.n_heads + shape.n_kv_heads, n_all = n_rotated + shape.n_kv_heads;
    if (head >= n_all) {
        return;
    }
    T *from = qkv + (static_cast<size_t>(t) * n_all + head) * shape.head_dim + i;
    const uint32_t position = batch.positions[t];
    const kv_view kv = batch.rows[batch.token_row[t]].kv;
    if (head >= n_rotated) {
        T *to = key_address<T>(kv, shape, position, head - n_rotated) + KV_GROUP_TOKENS * shape.head_dim + i;
        copy8<wide>(from, n, to);
        copy8<wide>(from + half, n, to + half);
        return;
    }
    T *to = head < shape.n_heads ? from : key_address<T>(kv, shape, position, head - shape.n_heads) + i;
    const float *turns = table + (static_cast<size_t>(position) * half + i) * 2;
    float a[PIECE], b[PIECE], turn[2][PIECE];
    load8<wide>(from, n, a);
    load8<wide>(from + half, n, b);
    load8<wide>(turns, 2 * n, turn[0]);
    load8<wide>(turns + PIECE, n > PIECE / 2 ? 2 * n - PIECE : 0, turn[1]);
#pragma unroll
    for (uint32_t j = 0; j < PIECE; j++) {
        const float cosine = turn[2 * j / PIECE][2 * j % PIECE], sine = turn[2 * j / PIECE][2 * j % PIECE + 1];
        const float low = __fmaf_rn(a[j], cosine, -__fmul_rn(b[j], sine));
        b[j] = __fmaf_rn(b[j], cosine, __fmul_rn(a[j], sine));
        a[j] = low;
    }
    store8<wide>(to, n, a);
    store8<wide>(to + half, n, b);
}

/* Whether the kernel's arithmetic holds all of it: no product overflows while no number is above 2^16. */
bool valid(const kernels_attention &attention) {
    const kv_layout &layout = attention.layout;
    const uint64_t most = 65536;
    const uint64_t run_bytes = 2ull * KV_GROUP_TOKENS * layout.head_dim * sizeof(uint16_t);
    return layout.head_dim > 0 && layout.head_dim % 2 == 0 && layout.head_dim <= most && attention.n_heads > 0 &&
           attention.n_heads <= most && layout.n_kv_heads > 0 && layout.n_kv_heads <= most && layout.n_layers <= most &&
           attention.layer < layout.n_layers && layout.element_bytes == sizeof(uint16_t) &&
           layout.group_bytes == run_bytes * layout.n_layers * layout.n_kv_heads;
}

} // namespace

extern "C" cudaError_t cuda_rope_write(cudaStream_t stream, kernels_dtype dtype, const cuda_batch *batch,
                                       uint32_t n_tokens, const kernels_attention *attention, const float *table,
                                       void *qkv) {
    if (n_tokens == 0) {
        return cudaSuccess;
    }
    if (!valid(*attention) || !usable(table) || !usable(qkv)) {
        return cudaErrorInvalidValue;
    }
    const kv_layout *layout = &attention->layout;
    const uint64_t units = pieces(layout->head_dim / 2) * (attention->n_heads + 2 * layout->n_kv_heads);
    dim3 grid;
    if (!row_grid(n_tokens, units, THREADS, &grid)) {
        return cudaErrorInvalidValue;
    }
    const rope_shape shape = {attention->n_heads, layout->n_kv_heads, layout->head_dim,
                              attention->layer * layout->n_kv_heads, layout->group_bytes};
    return with_act(dtype, layout->head_dim % (2 * PIECE) == 0, [&](auto act, auto wide) {
        using T = decltype(act);
        return simt::launch(rope_write_kernel<T, decltype(wide)::value>, grid, dim3(THREADS), 0, stream, *batch, shape,
                            table, static_cast<T *>(qkv));
    });
}
