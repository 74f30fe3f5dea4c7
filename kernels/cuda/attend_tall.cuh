/*
 * attend_tall: attention of many queries of one row and KV head (prefill). A warp has 16 queries and reads each block of K and V from
 * shared memory for itself (FlashAttention-2: Dao 2023), so nothing passes between warps; a chunk's output and the whole one
 * stay in registers, the queries in shared memory. With head dims above 128 two warps share 16 queries: both score, each
 * gathers half of V's columns.
 *
 * Up to 128, shared memory holds the K and V of two blocks, and all of the next block is on its way while one is computed.
 * Above, it holds one K and one V: each comes while the other is used. In both cases it is less than 99 KB, which every
 * processor since Ampere has.
 */
#ifndef PERCH_KERNELS_CUDA_ATTEND_TALL_CUH
#define PERCH_KERNELS_CUDA_ATTEND_TALL_CUH

#include "kernels/cuda/attention.cuh"

namespace attention {

/* The ends of what the first and the last of a warp's 16 queries see. */
struct tall_ends {
    uint32_t first, last; /* last 0: the warp has no queries */
    __device__ __forceinline__ bool see(const params &p, uint32_t first_key) const {
        return last > first_key && seen_until(p, first).begin < first_key + BLOCK;
    }
    __device__ __forceinline__ bool see_all_of(const params &p, uint32_t first_key) const {
        return first >= first_key + BLOCK && seen_until(p, last).begin <= first_key;
    }
};

template <int DP> struct tall {
    static constexpr uint32_t THREADS = 256;
    static constexpr bool WHOLE = DP <= 128; /* a warp has all columns */
    static constexpr uint32_t QUERIES = CUDA_TALL_QUERIES(DP);
    static constexpr int TILES = DP / (WHOLE ? 8 : 16); /* of 8 columns, a warp */
    static constexpr size_t TILES_BYTES = (QUERIES * tile<DP>::STRIDE + (WHOLE ? 4 : 2) * tile<DP>::KEYS) * 2;
    static constexpr size_t BYTES = TILES_BYTES + sizeof(piece) + sizeof(drawing) + THREADS / 32 * sizeof(tall_ends);
    static_assert(QUERIES / 16 * (WHOLE ? 1 : 2) == THREADS / 32, "");
    static_assert(BYTES <= 99 * 1024, "");
};

/* A CTA's view of its shared memory. */
template <class T, int DP> struct tall_shared {
    T *queries, *keys_values;
    piece *work;
    drawing *next;
    tall_ends *ends; /* of this warp's queries */

    __device__ __forceinline__ explicit tall_shared(unsigned char *memory) {
        queries = reinterpret_cast<T *>(memory);
        keys_values = queries + tall<DP>::QUERIES * tile<DP>::STRIDE;
        work = reinterpret_cast<piece *>(memory + tall<DP>::TILES_BYTES);
        next = reinterpret_cast<drawing *>(work + 1);
        ends = reinterpret_cast<tall_ends *>(next + 1) + threadIdx.x / 32;
    }
    /* A block's K or V. */
    __device__ __forceinline__ T *slot(uint32_t block, bool values) const {
        return keys_values + ((tall<DP>::WHOLE ? block % 2 * 2 : 0) + values) * tile<DP>::KEYS;
    }
};

/* The first query of this warp's 16. */
template <int DP> __device__ __forceinline__ uint32_t warp_query(const piece &w) {
    return w.first_query + threadIdx.x / 32 % (tall<DP>::QUERIES / 16) * 16;
}

/* Those of this lane's queries, lane / 4 and lane / 4 + 8; the warp's go to shared memory. */
struct my_ends {
    uint32_t of[2];
};
template <int DP> __device__ __forceinline__ my_ends tall_ends_of(const params &p, const piece &w, tall_ends *warps) {
    const uint32_t row = threadIdx.x % 32 / 4, query = warp_query<DP>(w);
    if (threadIdx.x % 32 == 0) {
        *warps = {end_of(p, w, query), query < w.n_queries ? end_of(p, w, query + 15) : 0};
    }
    return {{end_of(p, w, query + row), end_of(p, w, query + row + 8)}};
}

/* A lane's place in the warp's queries, in K and in the warp's columns of V: opaque, so that only these stay in registers. */
struct tall_places {
    uint32_t q, k, v;
};
template <int DP> __device__ __forceinline__ tall_places tall_places_of() {
    const uint32_t warp = threadIdx.x / 32, strips = tall<DP>::QUERIES / 16;
    const uint32_t half = warp / strips; /* which columns; 0 where a warp has them all */
    return {ptx::opaque(tile<DP>::a_lane() + warp % strips * 16 * tile<DP>::STRIDE), ptx::opaque(tile<DP>::k_lane()),
            ptx::opaque(tile<DP>::column(tile<DP>::a_lane(), half * (DP / 32)))};
}

/* s = Q K^T for the warp's queries and the 64 keys. */
template <class T, int DP>
__device__ __forceinline__ void tall_scores(float (&s)[8][4], const T *queries, const T *keys, const tall_places &at) {
    const uint32_t q_at = ptx::opaque(at.q), k_at = ptx::opaque(at.k);
#pragma unroll
    for (int n = 0; n < 8; n++) {
#pragma unroll
        for (int e = 0; e < 4; e++) {
            s[n][e] = 0.0f;
        }
    }
#pragma unroll 8
    for (uint32_t i = 0; i < DP / 16; i++) {
        uint32_t q[4];
        ptx::ldmatrix_x4(q, queries + tile<DP>::column(q_at, i));
#pragma unroll
        for (uint32_t n = 0; n < 4; n++) {
            uint32_t b[4];
            ptx::ldmatrix_x4(b, keys + tile<DP>::column(k_at, i) + n * 16 * tile<DP>::STRIDE);
            ptx::mma<T>(s[2 * n], q, b[0], b[1]);
            ptx::mma<T>(s[2 * n + 1], q, b[2], b[3]);
        }
    }
}

/* A warp's output, of one chunk or of all. */
template <int DP> struct tall_output {
    state s[2];
    float o[tall<DP>::TILES][4];
    __device__ __forceinline__ void clear() {
        s[0] = s[1] = nothing();
#pragma unroll
        for (int n = 0; n < tall<DP>::TILES; n++) {
#pragma unroll
            for (int e = 0; e < 4; e++) {
                o[n][e] = 0.0f;
            }
        }
    }
};

/* Two columns of query h of a lane's two. */
__device__ __forceinline__ void merge_columns(float (&to)[4], const float (&added)[4], int h, const factors &f) {
    to[2 * h] = merged(to[2 * h], added[2 * h], f);
    to[2 * h + 1] = merged(to[2 * h + 1], added[2 * h + 1], f);
}

/* What is left of a block's scores once its sum and maximum are merged: the weights, and how the outputs are to be merged. */
struct tall_weights {
    uint32_t w[4][4];
    factors f[2];
    bool sees[2]; /* whether the query sees anything of the block */
};

/* PART: some query doesn't see some key. */
template <class T, int DP, bool PART>
__device__ __forceinline__ void weigh(tall_weights *to, tall_output<DP> *chunk, float (&s)[8][4], const params &p,
                                      const my_ends &ends, uint32_t first_key) {
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const range seen = seen_until(p, ends.of[h]);
        const relative keys(seen, first_key + threadIdx.x % 4 * 2);
        float max = -CUDART_INF_F;
#pragma unroll
        for (int n = 0; n < 8; n++) {
#pragma unroll
            for (int e = 2 * h; e < 2 * h + 2; e++) {
                s[n][e] = !PART || keys.sees(uint32_t(n * 8 + e % 2)) ? s[n][e] : -CUDART_INF_F;
                max = fmaxf(max, s[n][e]);
            }
        }
        max = __fmul_rn(max_lanes(max), p.scale_log2);
        const float base = max == -CUDART_INF_F ? 0.0f : max; /* a query that sees nothing of the block */
        float sums[4];
#pragma unroll
        for (int n = 0; n < 4; n++) {
#pragma unroll
            for (int e = 2 * h; e < 2 * h + 2; e++) {
                s[2 * n][e] = weight(s[2 * n][e], p.scale_log2, base);
                s[2 * n + 1][e] = weight(s[2 * n + 1][e], p.scale_log2, base);
            }
            sums[n] = add_16(s[2 * n][2 * h], s[2 * n][2 * h + 1], s[2 * n + 1][2 * h], s[2 * n + 1][2 * h + 1]);
            to->w[n][h] = device_math::pack<T>(s[2 * n][2 * h], s[2 * n][2 * h + 1]);
            to->w[n][h + 2] = device_math::pack<T>(s[2 * n + 1][2 * h], s[2 * n + 1][2 * h + 1]);
        }
        const float sum = add_lanes(sums[0], sums[1], sums[2], sums[3]);
        to->sees[h] = !PART || (seen.begin < first_key + BLOCK && seen.end > first_key);
        if (to->sees[h]) {
            to->f[h] = merge(&chunk->s[h], {max, sum});
        }
    }
}

/* Adds a block's values to the chunk's output. */
template <class T, int DP, bool PART>
__device__ __forceinline__ void gather(tall_output<DP> *chunk, const tall_weights &by, const T *values, uint32_t place,
                                       const params &p, const my_ends &ends, uint32_t first_key) {
    const uint32_t at = ptx::opaque(place);
    const auto take = [&](int n, int h, const float(&o)[4]) {
        if (!PART || by.sees[h]) {
            merge_columns(chunk->o[n], o, h, by.f[h]);
        }
    };
    constexpr int COLUMNS = tall<DP>::TILES / 2, STEP = COLUMNS % 2 == 0 && !PART ? 2 : 1; /* of 16; at a time */
    uint32_t apart = 0;
#pragma unroll
    for (int n = 0; n < COLUMNS; n += STEP) {
        float o[STEP][2][4];
        add_values<T, DP>(o, by.w, values, tile<DP>::column(at, uint32_t(n)));
#pragma unroll
        for (int i = 0; i < STEP; i++) {
            if (PART && any_not_finite(o[i])) {
                apart |= 1u << (n + i);
                continue;
            }
#pragma unroll
            for (int t = 0; t < 4; t++) {
                take((n + i) * 2 + t / 2, t % 2, o[i][t / 2]);
            }
        }
    }
    if (PART && apart != 0) {
        const range seen[2] = {seen_until(p, ends.of[0]), seen_until(p, ends.of[1])};
        add_values_apart<T, DP, COLUMNS>(apart, by.w, values, at, first_key, seen, take);
    }
}

/* Adds the chunk's output to that of all. */
template <int DP> __device__ __forceinline__ void tall_merge(tall_output<DP> *all, const tall_output<DP> &chunk) {
#pragma unroll
    for (int h = 0; h < 2; h++) {
        if (chunk.s[h].sum == 0.0f) {
            continue;
        }
        const factors f = merge(&all->s[h], chunk.s[h]);
#pragma unroll
        for (int n = 0; n < tall<DP>::TILES; n++) {
            merge_columns(all->o[n], chunk.o[n], h, f);
        }
    }
}

/* Stores a chunk's result, or (`chunk` of no meaning) the output of all. */
template <class T, int DP>
__device__ __forceinline__ void tall_store(const params &p, const piece &w, const tall_output<DP> &from, uint32_t chunk,
                                           bool partial) {
    const uint32_t lane = ptx::opaque(threadIdx.x) % 32, half = threadIdx.x / 32 / (tall<DP>::QUERIES / 16);
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const uint32_t query = warp_query<DP>(w) + lane / 4 + uint32_t(8 * h);
        if (query >= w.n_queries) {
            continue;
        }
        float *const to = partial ? partial_at(p, w, chunk, query) : nullptr;
        const float inverse = partial ? 0.0f : inverse_of(from.s[h]);
#pragma unroll
        for (int n = 0; n < tall<DP>::TILES; n++) {
            const uint32_t column = half * (DP / 2) + uint32_t(n * 8) + lane % 4 * 2;
            const float a = from.o[n][2 * h], b = from.o[n][2 * h + 1];
            if (column >= p.head_dim) {
                continue;
            }
            if (partial) {
                *reinterpret_cast<float2 *>(to + column) = make_float2(a, b);
            } else {
                store_output<T>(p, w, query, column, a, b, inverse);
            }
        }
        if (partial && half == 0 && lane % 4 == 0) {
            *reinterpret_cast<float2 *>(to + p.head_dim) = make_float2(from.s[h].max, from.s[h].sum);
        }
    }
}

/* A warp's part in loading a block's K and V; or, where two warps share a group's rows, one of them (`values`). */
template <class T, int DP>
__device__ __forceinline__ void load_block(const tall_shared<T, DP> &sh, const params &p, uint32_t block, bool values) {
    const uint32_t warp = threadIdx.x / 32;
    const uint32_t g = tall<DP>::WHOLE ? warp % 4 : warp / 2, row = tall<DP>::WHOLE ? 0 : warp % 2 * 8;
    const uint32_t group = block * (BLOCK / KV_GROUP_TOKENS) + g;
    values = tall<DP>::WHOLE ? warp >= 4 : values;
    const unsigned char *const from =
        group_at(p, *sh.work, group) + (row + (values ? KV_GROUP_TOKENS : 0)) * p.head_dim * 2;
    load_rows<T, DP, tall<DP>::WHOLE ? 16 : 8>(sh.slot(block, values), g * KV_GROUP_TOKENS + row, from, p, *sh.work,
                                               group * KV_GROUP_TOKENS + row);
}

/* A piece's queries from first_query on, QUERIES at most. */
template <class T, int DP>
__device__ __forceinline__ void attend_tall_tile(const tall_shared<T, DP> &sh, const params &p) {
    using S = tall<DP>;
    const piece &w = *sh.work;
    load_queries<T, DP, S::QUERIES, S::THREADS>(sh.queries, p, w);
    load_block(sh, p, w.first_block, false);
    ptx::cp_async_commit();
    if (threadIdx.x == 0 && w.first_query == 0) {
        sh.next->draw();
    }
    const my_ends ends = tall_ends_of<DP>(p, w, sh.ends);
    const tall_places at = tall_places_of<DP>();
    tall_output<DP> all;
    all.clear();
    for (uint32_t block = w.first_block; block < w.end_block;) {
        const uint32_t chunk_index = block / BLOCKS_PER_CHUNK;
        const uint32_t chunk_end = min(w.end_block, (chunk_index + 1) * BLOCKS_PER_CHUNK);
        tall_output<DP> chunk;
        chunk.clear();
        for (; block < chunk_end; block++) {
            const uint32_t first_key = block * BLOCK;
            const bool more = block + 1 < w.end_block;
            ptx::cp_async_wait<0>();
            __syncthreads();
            if (S::WHOLE && more) {
                load_block(sh, p, block + 1, false);
            } else if (!S::WHOLE) {
                load_block(sh, p, block, true);
            }
            ptx::cp_async_commit();
            const bool compute = sh.ends->see(p, first_key), part = !sh.ends->see_all_of(p, first_key);
            tall_weights weights = {};
            if (compute) {
                float s[8][4];
                tall_scores<T, DP>(s, sh.queries, sh.slot(block, false), at);
                if (part) {
                    weigh<T, DP, true>(&weights, &chunk, s, p, ends, first_key);
                } else {
                    weigh<T, DP, false>(&weights, &chunk, s, p, ends, first_key);
                }
            }
            if (!S::WHOLE) {
                ptx::cp_async_wait<0>();
                __syncthreads();
                if (more) {
                    load_block(sh, p, block + 1, false);
                }
                ptx::cp_async_commit();
            }
            if (compute && part) {
                gather<T, DP, true>(&chunk, weights, sh.slot(block, true), at.v, p, ends, first_key);
            } else if (compute) {
                gather<T, DP, false>(&chunk, weights, sh.slot(block, true), at.v, p, ends, first_key);
            }
        }
        if (w.partial != CUDA_NO_PARTIAL) {
            tall_store<T, DP>(p, w, chunk, chunk_index, true);
        } else {
            tall_merge<DP>(&all, chunk);
        }
    }
    if (w.partial == CUDA_NO_PARTIAL) {
        tall_store<T, DP>(p, w, all, 0, false);
    }
}

template <class T, int DP> __global__ void __launch_bounds__(tall<DP>::THREADS, 1) attend_tall(const params p) {
    DYN_SHARED(unsigned char, memory);
    const tall_shared<T, DP> sh(memory);
    const uint32_t n = p.counts->n_attend, n_small = n != 0 ? p.attend[0].n_small : 0;
    take_pieces(p, &p.counts->tickets[1], n_small, n, sh.next, sh.work, [&] {
        if (sh.work->first_block == sh.work->end_block) { /* the window is past these chunks */
            if (threadIdx.x == 0) {
                sh.next->draw();
            }
            return;
        }
        for (;;) {
            attend_tall_tile<T, DP>(sh, p);
            if (sh.work->first_query + tall<DP>::QUERIES >= sh.work->n_queries) {
                return;
            }
            __syncthreads();
            if (threadIdx.x == 0) {
                sh.work->first_query += tall<DP>::QUERIES;
            }
            __syncthreads();
        }
    });
}

} // namespace attention

#endif
