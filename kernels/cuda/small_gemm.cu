/*
 * small_gemm: y = x wᵀ for up to 16 rows of x, where the weights are read once and memory's bandwidth is all there is to win.
 *
 * Order of addition. K is cut into chunks of 64; chunk c belongs to slice c % 8. A slice adds its chunks in ascending order, in
 * steps of 32 by two mma.m16n8k16 each; slice 0, 1, … 7 are then added up in this order. All of it follows from n_in; how many rows of
 * w a block takes, and how many columns of tokens, changes none of it: columns and rows of an mma do not touch each other.
 *
 * A block is eight warps, one a slice, that share GROUPS groups of eight rows of w. Within a step a lane reads k = 8 (lane % 4)... + 8
 * of the rows and of the tokens lane / 4 (+ 8), 16 bytes each: as the order of k within a step is free while both operands agree on it,
 * these are its fragments of both mma as they lie in memory. So nothing is exchanged between lanes, and each lane has a queue of
 * its own in shared memory, filled by cp.async several steps ahead: bytes in flight cost neither registers nor barriers.
 * The queues take 96 KiB: two blocks an SM on sm_90, one on those that have 100 KiB.
 */
#include "kernels/cuda/device_math.cuh"
#include "kernels/cuda/ptx.cuh"

using namespace device_math;

namespace {

constexpr uint32_t SLICES = 8, THREADS = 32 * SLICES;
constexpr uint32_t STEP = 32, CHUNK_STEPS = 2, CHUNK = STEP * CHUNK_STEPS; /* 128 bytes of a row, a cache line */
constexpr uint32_t TILE = 8;                                               /* rows or tokens */
constexpr uint32_t QUEUE_BYTES = 96 * 1024;

struct product {
    const float *bias; /* or NULL */
    uint32_t n_out, n_in, n_tokens;
    bool accumulate, y_is_float, unused[2]; /* no padding: the emulation looks for addresses of the host in all of it */
};

/* What a lane waits for in a step, and the queue of such. */
template <uint32_t groups, uint32_t columns> struct step_shape {
    static constexpr uint32_t slots = groups + columns; /* of 16 bytes: rows, then tokens */
    static constexpr uint32_t depth = QUEUE_BYTES / (slots * THREADS * 16);
    static constexpr uint32_t tiles = (groups + 1) / 2; /* of 16 rows */
    static constexpr uint32_t shared_bytes = depth * slots * THREADS * 16;
    static_assert(depth >= 2 && tiles * columns <= slots, "");
};

template <class Y> __device__ __forceinline__ void put(const product &p, Y *to, float sum) {
    *to = from_float<Y>(p.accumulate ? __fadd_rn(to_float(*to), sum) : sum);
}

template <class T>
__device__ __forceinline__ void put(const product &p, void *y, uint32_t token, uint32_t out, float sum) {
    if (token >= p.n_tokens || out >= p.n_out) {
        return;
    }
    if (p.bias != nullptr) {
        sum = __fadd_rn(sum, p.bias[out]);
    }
    const size_t at = static_cast<size_t>(token) * p.n_out + out;
    if (p.y_is_float) {
        put(p, static_cast<float *>(y) + at, sum);
    } else {
        put(p, static_cast<T *>(y) + at, sum);
    }
}

template <class T, uint32_t groups, uint32_t columns>
__global__ void __launch_bounds__(THREADS, 2)
    small_gemm_kernel(product p, const T *__restrict__ w, const T *__restrict__ x, void *y) {
    using shape = step_shape<groups, columns>;
    DYN_SHARED(uint4, queue); /* [depth][slots][THREADS] */
    const uint32_t slice = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    const uint32_t first_row = blockIdx.x * groups * TILE;
    const uint32_t n_chunks = (p.n_in + CHUNK - 1) / CHUNK;
    const uint32_t n_steps = slice < n_chunks ? ((n_chunks - slice - 1) / SLICES + 1) * CHUNK_STEPS : 0;
    const uint64_t once = ptx::evict_first_policy();

    /* What does not exist is read as zeros, from an address that does. */
    bool row_exists[groups], token_exists[columns];
    const T *row[groups], *token[columns];
#pragma unroll
    for (uint32_t i = 0; i < groups; i++) {
        const uint32_t r = first_row + i * TILE + g;
        row_exists[i] = r < p.n_out;
        row[i] = w + static_cast<size_t>(row_exists[i] ? r : 0) * p.n_in;
    }
#pragma unroll
    for (uint32_t i = 0; i < columns; i++) {
        token_exists[i] = i * TILE + g < p.n_tokens;
        token[i] = x + static_cast<size_t>(token_exists[i] ? i * TILE + g : 0) * p.n_in;
    }

    auto fetch = [&](uint32_t step) {
        if (step < n_steps) {
            const uint32_t k = (step / CHUNK_STEPS * SLICES + slice) * CHUNK + step % CHUNK_STEPS * STEP + t * PIECE;
            const uint32_t from = k < p.n_in ? k : 0;
            uint4 *to = queue + step % shape::depth * shape::slots * THREADS + threadIdx.x;
#pragma unroll
            for (uint32_t i = 0; i < groups; i++) {
                ptx::cp_async16_once(to + i * THREADS, row[i] + from, row_exists[i] && k < p.n_in, once);
            }
#pragma unroll
            for (uint32_t i = 0; i < columns; i++) {
                ptx::cp_async16(to + (groups + i) * THREADS, token[i] + from, token_exists[i] && k < p.n_in);
            }
        }
        ptx::cp_async_commit(); /* an empty group too: waiting counts groups */
    };

    float sums[shape::tiles][columns][4] = {};
#pragma unroll
    for (uint32_t step = 0; step < shape::depth - 1; step++) {
        fetch(step);
    }
    for (uint32_t step = 0; step < n_steps; step++) {
        ptx::cp_async_wait<shape::depth - 2>();
        fetch(step + shape::depth - 1); /* into the slots of the step before */
        const uint4 *from = queue + step % shape::depth * shape::slots * THREADS + threadIdx.x;
        uint4 a[2 * shape::tiles], b[columns];
#pragma unroll
        for (uint32_t i = 0; i < 2 * shape::tiles; i++) {
            a[i] = i < groups ? from[i * THREADS] : make_uint4(0, 0, 0, 0);
        }
#pragma unroll
        for (uint32_t i = 0; i < columns; i++) {
            b[i] = from[(groups + i) * THREADS];
        }
#pragma unroll
        for (uint32_t tile = 0; tile < shape::tiles; tile++) {
            const uint4 &low = a[2 * tile], &high = a[2 * tile + 1];
            const uint32_t first[4] = {low.x, high.x, low.y, high.y}, second[4] = {low.z, high.z, low.w, high.w};
#pragma unroll
            for (uint32_t i = 0; i < columns; i++) {
                ptx::mma<T>(sums[tile][i], first, b[i].x, b[i].y);
                ptx::mma<T>(sums[tile][i], second, b[i].z, b[i].w);
            }
        }
    }

    /*
     * The slices meet: [tiles * columns][THREADS] over the queues, where each lane still writes to slots of its own. No copy is under
     * way any more: each step's were waited for.
     */
    float4 *parts = reinterpret_cast<float4 *>(queue);
#pragma unroll
    for (uint32_t i = 0; i < shape::tiles * columns; i++) {
        const float *c = sums[i / columns][i % columns];
        parts[i * THREADS + threadIdx.x] = make_float4(c[0], c[1], c[2], c[3]);
    }
    __syncthreads();
    const uint32_t i = threadIdx.x / 32; /* a warp adds up one tile and column */
    if (i >= shape::tiles * columns) {
        return;
    }
    float4 sum = parts[i * THREADS + threadIdx.x % 32];
#pragma unroll
    for (uint32_t s = 1; s < SLICES; s++) {
        const float4 part = parts[i * THREADS + s * 32 + threadIdx.x % 32];
        sum.x = __fadd_rn(sum.x, part.x);
        sum.y = __fadd_rn(sum.y, part.y);
        sum.z = __fadd_rn(sum.z, part.z);
        sum.w = __fadd_rn(sum.w, part.w);
    }
    const uint32_t out = first_row + i / columns * 2 * TILE + g, of_token = i % columns * TILE + 2 * t;
    put<T>(p, y, of_token, out, sum.x);
    put<T>(p, y, of_token + 1, out, sum.y);
    if (groups > 1) {
        put<T>(p, y, of_token, out + TILE, sum.z);
        put<T>(p, y, of_token + 1, out + TILE, sum.w);
    }
}

template <class T, uint32_t groups, uint32_t columns>
cudaError_t multiply(cudaStream_t stream, const product &p, const void *w, const void *x, void *y) {
    const unsigned n_blocks = static_cast<unsigned>(ceil_div(p.n_out, groups * TILE));
    return simt::launch(small_gemm_kernel<T, groups, columns>, dim3(n_blocks), dim3(THREADS),
                        step_shape<groups, columns>::shared_bytes, stream, p, static_cast<const T *>(w),
                        static_cast<const T *>(x), y);
}

/*
 * Rows a block: as many as leave a block for each SM of a large GPU (an H200 has 132). More than 16 only where there are tokens enough:
 * each block reads all of x, which with 8 tokens and 16 rows is half as much again as its weights, from L2.
 */
template <class T, uint32_t columns>
cudaError_t cut(cudaStream_t stream, const product &p, const void *w, const void *x, void *y) {
    const uint32_t enough_blocks = 128;
    if (p.n_tokens > 4 && p.n_out > (enough_blocks - 1) * 4 * TILE) {
        return multiply<T, 4, columns>(stream, p, w, x, y);
    }
    return p.n_out > (enough_blocks - 1) * 2 * TILE ? multiply<T, 2, columns>(stream, p, w, x, y)
                                                    : multiply<T, 1, columns>(stream, p, w, x, y);
}

} // namespace

extern "C" cudaError_t cuda_small_gemm(cudaStream_t stream, kernels_dtype dtype, const void *w, uint32_t n_out,
                                       uint32_t n_in, const void *x, uint32_t n_tokens, const float *bias,
                                       bool accumulate, void *y, bool y_is_float) {
    if (n_tokens == 0 || n_out == 0) {
        return cudaSuccess;
    }
    if (n_tokens > CUDA_SMALL_GEMM_ROWS || n_in == 0 || n_in % PIECE != 0 || n_in > INT32_MAX || n_out > INT32_MAX ||
        !usable(w) || !usable(x) || !usable(y)) {
        return cudaErrorInvalidValue;
    }
    const product p = {bias, n_out, n_in, n_tokens, accumulate, y_is_float, {}};
    return with_act(dtype, [&](auto act) {
        using T = decltype(act);
        return n_tokens <= TILE ? cut<T, 1>(stream, p, w, x, y) : cut<T, 2>(stream, p, w, x, y);
    });
}
