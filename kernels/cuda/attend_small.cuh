/*
 * attend_small: attention of the few queries of a decoding row and KV head, 16 at most. All four warps work on one block of 64 positions
 * at a time: each scores 16 keys, then, when the weights lie in shared memory, each gathers its share of V's columns. So the
 * output takes few registers, and what counts, K and V on their way, has the shared memory: a ring of tiles, K and V in turn.
 */
#ifndef PERCH_KERNELS_CUDA_ATTEND_SMALL_CUH
#define PERCH_KERNELS_CUDA_ATTEND_SMALL_CUH

#include "kernels/cuda/attention.cuh"

namespace attention {

template <int DP> struct small {
    static constexpr uint32_t THREADS = 128;
    static constexpr uint32_t RING = DP <= 128 ? 4 : 2; /* tiles */
    static constexpr uint32_t CTAS = DP <= 128 ? 3 : 2; /* at once on a processor with Hopper's shared memory */
    static constexpr int PAIRS = (DP / 16 + 3) / 4;     /* of 8 columns, a warp; fewer for the last ones */
    static_assert(PAIRS <= 2 || DP % 64 == 0, "");

    /* Shared memory, in this order. */
    static constexpr size_t RING_BYTES = size_t(RING) * tile<DP>::KEYS * 2;
    static constexpr size_t QUERIES_BYTES = 16 * tile<DP>::STRIDE * 2;
    static constexpr size_t WEIGHTS_BYTES = 16 * tile<BLOCK>::STRIDE * 2;
    static constexpr size_t MAXIMA_BYTES = 4 * 16 * sizeof(float);   /* [warp][query] */
    static constexpr size_t SUMS_BYTES = 4 * 16 * 4 * sizeof(float); /* [warp][query][lane of four] */
    static constexpr size_t BYTES =
        RING_BYTES + QUERIES_BYTES + WEIGHTS_BYTES + MAXIMA_BYTES + SUMS_BYTES + sizeof(piece) + sizeof(drawing);
};

/* One CTA's view of its shared memory. */
template <class T, int DP> struct small_shared {
    T *ring, *queries, *weights;
    float *maxima, *sums;
    piece *work;
    drawing *next;

    __device__ __forceinline__ explicit small_shared(unsigned char *memory) {
        using S = small<DP>;
        ring = reinterpret_cast<T *>(memory);
        queries = reinterpret_cast<T *>(memory += S::RING_BYTES);
        weights = reinterpret_cast<T *>(memory += S::QUERIES_BYTES);
        maxima = reinterpret_cast<float *>(memory += S::WEIGHTS_BYTES);
        sums = reinterpret_cast<float *>(memory += S::MAXIMA_BYTES);
        work = reinterpret_cast<piece *>(memory + S::SUMS_BYTES);
        next = reinterpret_cast<drawing *>(work + 1);
    }
    __device__ __forceinline__ T *slot(uint32_t unit) const { return ring + unit % small<DP>::RING * tile<DP>::KEYS; }
};

/* Unit u of a piece: K (even) or V (odd) of its block u / 2. An empty group of copies stands for a unit that there is not. */
template <class T, int DP>
__device__ __forceinline__ void load_unit(const small_shared<T, DP> &sh, const params &p, uint32_t u) {
    const piece &w = *sh.work;
    const uint32_t block = w.first_block + u / 2, warp = threadIdx.x / 32;
    if (block < w.end_block) {
        const uint32_t group = block * (BLOCK / KV_GROUP_TOKENS) + warp; /* a group's rows for each warp */
        const unsigned char *const from = group_at(p, w, group) + (u % 2 != 0 ? KV_GROUP_TOKENS * 2 * p.head_dim : 0);
        load_rows<T, DP, KV_GROUP_TOKENS>(sh.slot(u), warp * KV_GROUP_TOKENS, from, p, w, group * KV_GROUP_TOKENS);
    }
    ptx::cp_async_commit();
}

/* Waits for unit u, and begins to load another one in the place of the one before it. */
template <class T, int DP>
__device__ __forceinline__ void next_unit(const small_shared<T, DP> &sh, const params &p, uint32_t u) {
    ptx::cp_async_wait<int(small<DP>::RING) - 2>();
    __syncthreads();
    load_unit<T, DP>(sh, p, u + small<DP>::RING - 1);
}

/* The ends of what this lane's queries see, lane / 4 and lane / 4 + 8, and the first and the last one. */
struct small_ends {
    uint32_t mine[2], first, last;
    __device__ __forceinline__ bool part_of(const params &p, uint32_t first_key) const {
        return first < first_key + BLOCK || seen_until(p, last).begin > first_key;
    }
};
__device__ __forceinline__ small_ends small_ends_of(const params &p, const piece &w) {
    const uint32_t row = threadIdx.x % 32 / 4;
    return {{end_of(p, w, row), end_of(p, w, row + 8)}, end_of(p, w, 0), end_of(p, w, w.n_queries - 1)};
}

/* Scores of this warp's 16 keys; -inf where a query doesn't see the key. */
template <class T, int DP>
__device__ __forceinline__ void small_scores(float (&s)[2][4], const uint32_t (&queries)[DP / 16][4], const T *keys,
                                             const params &p, const small_ends &ends, uint32_t first_key) {
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const uint32_t at = ptx::opaque(tile<DP>::k_lane() + warp * 16 * tile<DP>::STRIDE);
#pragma unroll
    for (int e = 0; e < 4; e++) {
        s[0][e] = s[1][e] = 0.0f;
    }
#pragma unroll
    for (uint32_t i = 0; i < DP / 16; i++) {
        uint32_t b[4];
        ptx::ldmatrix_x4(b, keys + tile<DP>::column(at, i));
        ptx::mma<T>(s[0], queries[i], b[0], b[1]);
        ptx::mma<T>(s[1], queries[i], b[2], b[3]);
    }
    if (!ends.part_of(p, first_key)) {
        return;
    }
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const relative seen(seen_until(p, ends.mine[h]), first_key + warp * 16 + lane % 4 * 2);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float *const score = &s[i / 2][2 * h + i % 2];
            *score = seen.sees(uint32_t(i / 2 * 8 + i % 2)) ? *score : -CUDART_INF_F;
        }
    }
}

/* Turns scores to weights in shared memory, once all warps know a block's maxima. Returns the maxima, times c. */
template <class T, int DP>
__device__ __forceinline__ void small_weights(float (&max)[2], float (&s)[2][4], const small_shared<T, DP> &sh,
                                              float scale_log2) {
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const float mine = max_lanes(fmaxf(fmaxf(s[0][2 * h], s[0][2 * h + 1]), fmaxf(s[1][2 * h], s[1][2 * h + 1])));
        if (lane % 4 == 0) {
            sh.maxima[warp * 16 + lane / 4 + uint32_t(8 * h)] = mine;
        }
    }
    __syncthreads();
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const uint32_t row = lane / 4 + uint32_t(8 * h);
        const float *const m = sh.maxima + row;
        max[h] = __fmul_rn(fmaxf(fmaxf(m[0], m[16]), fmaxf(m[32], m[48])), scale_log2);
        const float base = max[h] == -CUDART_INF_F ? 0.0f : max[h]; /* a query that sees nothing of the block */
#pragma unroll
        for (int n = 0; n < 2; n++) {
            const float a = weight(s[n][2 * h], scale_log2, base), b = weight(s[n][2 * h + 1], scale_log2, base);
            s[n][2 * h] = a;
            s[n][2 * h + 1] = b;
            T *const to = sh.weights + tile<BLOCK>::at(row, warp * 2 + uint32_t(n)) + lane % 4 * 2;
            *reinterpret_cast<uint32_t *>(to) = device_math::pack<T>(a, b);
        }
        sh.sums[(warp * 16 + row) * 4 + lane % 4] = add_16(s[0][2 * h], s[0][2 * h + 1], s[1][2 * h], s[1][2 * h + 1]);
    }
}

/* A warp's columns of the output, of one chunk or of all; the states are the same in each warp. */
template <int DP> struct small_output {
    state s[2];
    float o[small<DP>::PAIRS][2][4];
    __device__ __forceinline__ void clear() {
        s[0] = s[1] = nothing();
#pragma unroll
        for (int n = 0; n < small<DP>::PAIRS; n++) {
#pragma unroll
            for (int e = 0; e < 4; e++) {
                o[n][0][e] = o[n][1][e] = 0.0f;
            }
        }
    }
    /* Query h of this lane's two. */
    __device__ __forceinline__ void add(int h, const state &with, const float (&added)[small<DP>::PAIRS][2][4]) {
        const factors f = merge(&s[h], with);
#pragma unroll
        for (int n = 0; n < small<DP>::PAIRS; n++) {
#pragma unroll
            for (int e = 0; e < 4; e++) {
                float *const to = &o[n][e / 2][2 * h + e % 2];
                *to = merged(*to, added[n][e / 2][2 * h + e % 2], f);
            }
        }
    }
};

/* Adds a block's values to the chunk's output. */
template <class T, int DP>
__device__ __forceinline__ void small_values(small_output<DP> *chunk, const float (&max)[2],
                                             const small_shared<T, DP> &sh, const T *values, const params &p,
                                             const small_ends &ends, uint32_t first_key) {
    constexpr int PAIRS = small<DP>::PAIRS;
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const uint32_t first_pair = warp * PAIRS;
    uint32_t weights[4][4];
#pragma unroll
    for (uint32_t k = 0; k < 4; k++) {
        ptx::ldmatrix_x4(weights[k], sh.weights + tile<BLOCK>::column(tile<BLOCK>::a_lane(), k));
    }
    const range seen[2] = {seen_until(p, ends.mine[0]), seen_until(p, ends.mine[1])};
    const bool check = ends.first != ends.last && ends.part_of(p, first_key);
    const uint32_t at = ptx::opaque(tile<DP>::column(tile<DP>::a_lane(), first_pair));
    float o[PAIRS][2][4] = {};
    if (first_pair + PAIRS <= DP / 16) {
        add_values<T, DP>(o, weights, values, at);
    } else if (first_pair < DP / 16) { /* the columns do not suffice for all warps */
        float one[1][2][4];
        add_values<T, DP>(one, weights, values, at);
#pragma unroll
        for (int e = 0; e < 8; e++) {
            o[0][e / 4][e % 4] = one[0][e / 4][e % 4];
        }
    }
    if (check) {
        uint32_t apart = 0;
#pragma unroll
        for (int n = 0; n < PAIRS; n++) {
            apart |= any_not_finite(o[n]) ? 1u << n : 0;
        }
        if (apart != 0) {
            add_values_apart<T, DP, PAIRS>(apart, weights, values, at, first_key, seen,
                                           [&](int n, int h, const float(&from)[4]) {
                                               o[n / 2][n % 2][2 * h] = from[2 * h];
                                               o[n / 2][n % 2][2 * h + 1] = from[2 * h + 1];
                                           });
        }
    }
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const float *const sums = sh.sums + (lane / 4 + uint32_t(8 * h)) * 4 + lane % 4;
        const float sum = add_lanes(sums[0], sums[64], sums[128], sums[192]);
        if (seen[h].begin < first_key + BLOCK && seen[h].end > first_key) {
            chunk->add(h, {max[h], sum}, o);
        }
    }
}

/* Stores a chunk's result, or (`chunk` of no meaning) the output of all. */
template <class T, int DP>
__device__ __forceinline__ void small_store(const params &p, const piece &w, const small_output<DP> &from,
                                            uint32_t chunk, bool partial) {
    const uint32_t lane = ptx::opaque(threadIdx.x) % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const uint32_t query = lane / 4 + uint32_t(8 * h);
        if (query >= w.n_queries) {
            continue;
        }
        float *const to = partial ? partial_at(p, w, chunk, query) : nullptr;
        const float inverse = partial ? 0.0f : inverse_of(from.s[h]);
#pragma unroll
        for (int n = 0; n < 2 * small<DP>::PAIRS; n++) {
            const uint32_t column = (warp * small<DP>::PAIRS * 2 + uint32_t(n)) * 8 + lane % 4 * 2;
            const float a = from.o[n / 2][n % 2][2 * h], b = from.o[n / 2][n % 2][2 * h + 1];
            if (column >= p.head_dim) {
                continue;
            }
            if (partial) {
                *reinterpret_cast<float2 *>(to + column) = make_float2(a, b);
            } else {
                store_output<T>(p, w, query, column, a, b, inverse);
            }
        }
        if (partial && warp == 0 && lane % 4 == 0) {
            *reinterpret_cast<float2 *>(to + p.head_dim) = make_float2(from.s[h].max, from.s[h].sum);
        }
    }
}

template <class T, int DP>
__device__ __forceinline__ void attend_small_piece(const small_shared<T, DP> &sh, const params &p) {
    const piece &w = *sh.work;
    load_queries<T, DP, 16, small<DP>::THREADS>(sh.queries, p, w);
#pragma unroll 1
    for (uint32_t u = 0; u + 1 < small<DP>::RING; u++) {
        load_unit<T, DP>(sh, p, u);
    }
    if (threadIdx.x == 0) {
        sh.next->draw();
    }
    const small_ends ends = small_ends_of(p, w);
    uint32_t queries[DP / 16][4] = {};
    small_output<DP> all;
    all.clear();
    for (uint32_t block = w.first_block; block < w.end_block;) {
        const uint32_t chunk_index = block / BLOCKS_PER_CHUNK;
        const uint32_t chunk_end = min(w.end_block, (chunk_index + 1) * BLOCKS_PER_CHUNK);
        small_output<DP> chunk;
        chunk.clear();
        for (; block < chunk_end; block++) {
            const uint32_t u = (block - w.first_block) * 2, first_key = block * BLOCK;
            next_unit<T, DP>(sh, p, u);
            if (u == 0) {
#pragma unroll
                for (uint32_t i = 0; i < DP / 16; i++) {
                    ptx::ldmatrix_x4(queries[i], sh.queries + tile<DP>::column(tile<DP>::a_lane(), i));
                }
            }
            float s[2][4], max[2];
            small_scores<T, DP>(s, queries, sh.slot(u), p, ends, first_key);
            small_weights<T, DP>(max, s, sh, p.scale_log2);
            next_unit<T, DP>(sh, p, u + 1);
            small_values<T, DP>(&chunk, max, sh, sh.slot(u + 1), p, ends, first_key);
        }
        if (w.partial != CUDA_NO_PARTIAL) {
            small_store<T, DP>(p, w, chunk, chunk_index, true);
            continue;
        }
#pragma unroll
        for (int h = 0; h < 2; h++) {
            if (chunk.s[h].sum != 0.0f) {
                all.add(h, chunk.s[h], chunk.o);
            }
        }
    }
    ptx::cp_async_wait<0>();
    if (w.partial == CUDA_NO_PARTIAL) {
        small_store<T, DP>(p, w, all, 0, false);
    }
}

template <class T, int DP>
__global__ void __launch_bounds__(small<DP>::THREADS, small<DP>::CTAS) attend_small(const params p) {
    DYN_SHARED(unsigned char, memory);
    const small_shared<T, DP> sh(memory);
    const uint32_t n = p.counts->n_attend != 0 ? p.attend[0].n_small : 0;
    take_pieces(p, &p.counts->tickets[0], 0, n, sh.next, sh.work, [&] { attend_small_piece<T, DP>(sh, p); });
}

} // namespace attention

#endif
