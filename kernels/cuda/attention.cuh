/*
 * attention: what the kernels for small and for tall pieces share: the arithmetic of a block of 64 positions and of a merge, in
 * an order that is the same to the bit wherever a token's query is computed; tiles of K and V in shared memory; and how a
 * CTA gets its pieces. Online softmax: Milakov & Gimelshein 2018; in blocks: Dao et al. 2022.
 *
 * Within a block, for one query: scores s = Σ q k along D in steps of 16 (mma); m = max s · c, c = scale · log2 e;
 * weights p = 2^(s c - m), one fma; l = Σ p: lane t of four adds the keys whose number has t in bits 1 and 2, 16 keys at a time
 * (add_16), then the four 16s pairwise (add_lanes), then lanes by xor 1, xor 2; o = Σ p V, p rounded to V's type, in steps of 16
 * keys (mma). A tensor core's result is a function of its row of queries and column of keys alone.
 */
#ifndef PERCH_KERNELS_CUDA_ATTENTION_CUH
#define PERCH_KERNELS_CUDA_ATTENTION_CUH

#include "kernels/cuda/attention_plan.h"
#include "kernels/cuda/device_math.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ptx.cuh"

namespace attention {

constexpr uint32_t BLOCK = CUDA_BLOCK_TOKENS;
constexpr uint32_t BLOCKS_PER_CHUNK = CUDA_CHUNK_TOKENS / CUDA_BLOCK_TOKENS;
constexpr unsigned ALL_LANES = 0xffffffffu;

struct params {
    cuda_counts *counts;
    const kernels_row *rows;
    const cuda_attend_work *attend;
    const cuda_merge_work *merge;
    const void *qkv;
    void *out;
    float *partials;
    uint64_t group_bytes;
    uint64_t layer_offset; /* of the layer's first head in a group */
    uint32_t head_dim;
    uint32_t n_group; /* heads that share a KV head */
    uint32_t n_heads;
    uint32_t qkv_stride; /* elements */
    uint32_t window;
    float scale_log2;
};

/* What the host part asks of the kernels for one head dim; see attention.cu. */
struct launch {
    params p;
    kernels_dtype dtype;
    cudaStream_t stream;
    bool small, tall; /* whether there can be pieces of the kind */
    uint32_t max_attend;
    uint32_t n_processors;
    uint32_t shared_bytes; /* that a CTA can have; a processor has 1 KB more, and takes so much for each CTA */
};

/* ------------------------------------------------------------------------ tiles in shared memory */

/*
 * Rows of DP elements, such that the eight rows of 16 bytes which ldmatrix reads at once lie in eight different groups of banks:
 * with piece c of 16 bytes in place c ^ (row mod 8) where a row is a multiple of 128 bytes (of 64: accordingly), else with 16
 * bytes of padding, which make a row an odd number of pieces. In steps of 16 rows or 16 elements a lane's address then changes
 * by constants: see `column`.
 */
template <int DP> struct tile {
    static_assert(DP % 16 == 0, "");
    static constexpr bool PADDED = DP % 64 != 0 && DP != 32;
    static constexpr uint32_t PIECES = DP / 8;               /* of 16 bytes, a row */
    static constexpr uint32_t STRIDE = PADDED ? DP + 8 : DP; /* elements */
    static constexpr uint32_t KEYS = BLOCK * STRIDE;         /* elements of a block's K or V */

    /* Which piece a row has in place 0. */
    static constexpr __device__ __forceinline__ uint32_t swizzle(uint32_t row) {
        return PADDED ? 0 : DP == 32 ? row / 2 % 4 : row % 8;
    }
    /* Element 0 of a row's piece. */
    static __device__ __forceinline__ uint32_t at(uint32_t row, uint32_t piece) {
        return row * STRIDE + (piece ^ swizzle(row)) * 8;
    }
    /* A lane's place in column i of 16 elements, given that in column 0, or in one whose number has none of i's bits. */
    static __device__ __forceinline__ uint32_t column(uint32_t at, uint32_t i) {
        return PADDED ? at + i * 16 : at ^ (i * 16);
    }
    /* A lane's place for ldmatrix: 16x16 queries or weights, and V transposed: d[0], d[1] belong to its first eight elements. */
    static __device__ __forceinline__ uint32_t a_lane() {
        const uint32_t lane = threadIdx.x % 32;
        return at(lane % 16, lane / 16);
    }
    /* 16 keys x 16 elements of K: d[0], d[1] belong to the first eight keys. */
    static __device__ __forceinline__ uint32_t k_lane() {
        const uint32_t lane = threadIdx.x % 32;
        return at(lane % 8 + lane / 16 * 8, lane / 8 % 2);
    }
};

/* ------------------------------------------------------------------------ pieces */

/* Positions [begin, end). */
struct range {
    uint32_t begin, end;
};

/* A piece of work. It lies in shared memory: registers are for what every block of keys needs. */
struct piece {
    const unsigned char *base; /* as kv_view */
    unsigned char *const *groups;
    uint64_t offset;                 /* of this layer and head in a group */
    range seen;                      /* the keys that any token of the piece sees */
    uint32_t first_block, end_block; /* of the piece's chunks, those that are seen */
    uint32_t first_chunk;
    uint32_t partial;
    uint32_t n_queries;      /* 0: no piece */
    uint32_t first_token;    /* in the batch */
    uint32_t first_position; /* of that token */
    uint32_t first_head;
    uint32_t first_query; /* of those that the CTA is at; more than one tile of them are rare */
};

/* What the token at position end - 1 sees. */
__device__ __forceinline__ range seen_until(const params &p, uint32_t end) {
    return {p.window != 0 && end > p.window ? end - p.window : 0, end};
}

__device__ __forceinline__ void get_piece(const params &p, uint32_t i, piece *w) {
    const cuda_attend_work work = p.attend[i];
    const kernels_row row = p.rows[work.row];
    const uint32_t position = row.first_position + work.first_token;
    const range seen = {seen_until(p, position + 1).begin, position + work.n_tokens};
    const uint32_t begin = max(seen.begin, work.first_chunk * CUDA_CHUNK_TOKENS);
    const uint32_t end = min(seen.end, (work.first_chunk + work.n_chunks) * CUDA_CHUNK_TOKENS);
    w->base = row.kv.base;
    w->groups = row.kv.blocks;
    w->offset = p.layer_offset + uint64_t(work.kv_head) * (2 * KV_GROUP_TOKENS * 2) * p.head_dim;
    w->seen = seen;
    w->first_block = begin / BLOCK;
    w->end_block = begin < end ? (end + BLOCK - 1) / BLOCK : begin / BLOCK;
    w->first_chunk = work.first_chunk;
    w->partial = work.partial;
    w->n_queries = work.n_tokens * p.n_group;
    w->first_token = row.first_token + work.first_token;
    w->first_position = position;
    w->first_head = work.kv_head * p.n_group;
    w->first_query = 0;
}

/*
 * The pieces [first, end) of a plan: a CTA has the one of its own number first and then draws one at a time until all are taken.
 * Who gets which changes nothing but the time.
 */
struct drawing {
    uint32_t *tickets;
    uint32_t first, end;
    uint32_t next;
    __device__ __forceinline__ void draw() { next = first + gridDim.x + atomicAdd(tickets, 1u); }
};

/*
 * Gets pieces into *w, which with *d lies in shared memory, and calls attend() for each; attend() draws the next one when its
 * first loads are on their way.
 */
template <class F>
__device__ __forceinline__ void take_pieces(const params &p, uint32_t *tickets, uint32_t first, uint32_t end,
                                            drawing *d, piece *w, const F &attend) {
    if (threadIdx.x == 0) {
        *d = {tickets, first, end, first + blockIdx.x};
    }
    for (;;) {
        if (threadIdx.x == 0) {
            w->n_queries = 0;
            if (d->next < d->end) {
                get_piece(p, d->next, w);
            }
        }
        __syncthreads();
        if (w->n_queries == 0) {
            return;
        }
        attend();
        __syncthreads(); /* all are done with the piece and the tiles */
    }
}

/* The end of what query i sees; queries behind the last one are taken for the last one: they are never stored. */
__device__ __forceinline__ uint32_t end_of(const params &p, const piece &w, uint32_t i) {
    return w.first_position + min(i, w.n_queries - 1) / p.n_group + 1;
}

/* Element 0 of query i's head in an array of tokens that are `stride` elements apart. */
__device__ __forceinline__ size_t query_at(const params &p, const piece &w, uint32_t i, uint32_t stride) {
    const size_t token = w.first_token + i / p.n_group;
    return token * stride + size_t(w.first_head + i % p.n_group) * p.head_dim;
}

/* ROWS queries of a piece from first_query on to shared memory, zeros behind the last one and behind head_dim. */
template <class T, int DP, uint32_t ROWS, uint32_t THREADS>
__device__ __forceinline__ void load_queries(T *to, const params &p, const piece &w) {
    constexpr uint32_t PIECES = tile<DP>::PIECES;
    const T *const qkv = static_cast<const T *>(p.qkv);
#pragma unroll 1
    for (uint32_t i = threadIdx.x; i < ROWS * PIECES; i += THREADS) {
        const uint32_t row = i / PIECES, c = i % PIECES;
        const bool valid = w.first_query + row < w.n_queries && c * 8 < p.head_dim;
        const T *const from = valid ? qkv + query_at(p, w, w.first_query + row, p.qkv_stride) + c * 8 : qkv;
        ptx::cp_async16(to + tile<DP>::at(row, c), from, valid);
    }
}

/* Where a group has this layer's and head's K, V behind it; for a group that isn't seen, which may not be there, another one. */
__device__ __forceinline__ const unsigned char *group_at(const params &p, const piece &w, uint32_t group) {
    const uint32_t mapped = min(max(group, w.seen.begin / KV_GROUP_TOKENS), (w.seen.end - 1) / KV_GROUP_TOKENS);
    return (w.groups != nullptr ? w.groups[mapped] : w.base + mapped * p.group_bytes) + w.offset;
}

/*
 * A warp's part in loading a block: ROWS rows of K or V to shared memory, from row first_row of a tile on, the first one of `position`. Zeros where no token of the
 * piece sees the position: what is there may be NaN, which a weight of 0 would not keep out.
 */
template <class T, int DP, uint32_t ROWS>
__device__ __forceinline__ void load_rows(T *to, uint32_t first_row, const unsigned char *from, const params &p,
                                          const piece &w, uint32_t position) {
    using S = tile<DP>;
    static_assert(ROWS * S::PIECES % 32 == 0, "");
    constexpr bool EVEN = 32 % S::PIECES == 0; /* the warp takes whole rows: a lane's piece is the same in each step */
    const range seen = w.seen;
    const uint32_t lane = ptx::opaque(threadIdx.x) % 32, first = lane / S::PIECES, piece = lane % S::PIECES;
    const uint32_t first_at = S::at(first_row + first, piece);
#pragma unroll(DP <= 128 ? 8 : 2)
    for (uint32_t k = 0; k < ROWS * S::PIECES; k += 32) {
        uint32_t row = first + k / S::PIECES, c = piece;
        uint32_t at = (first_at ^ S::swizzle(k / S::PIECES) * 8) + k / S::PIECES * S::STRIDE;
        if (!EVEN) {
            row = (k + lane) / S::PIECES;
            c = (k + lane) % S::PIECES;
            at = S::at(first_row + row, c);
        }
        const bool valid = position + row - seen.begin < seen.end - seen.begin && c * 8 < p.head_dim;
        ptx::cp_async16(to + at, from + (row * p.head_dim + c * 8) * 2, valid);
    }
}

/* ------------------------------------------------------------------------ arithmetic */

/* What a query has of the positions so far but the output: maximum (times c) and sum. */
struct state {
    float max, sum;
};
__device__ __forceinline__ state nothing() { return {-CUDART_INF_F, 0.0f}; }

/* The factors by which a merge multiplies the outputs before (`old`) and those that come to them (`added`). */
struct factors {
    float old, added;
};
__device__ __forceinline__ factors merge(state *s, const state &with) {
    const float max = fmaxf(s->max, with.max);
    const factors f = {ptx::ex2(__fadd_rn(s->max, -max)), ptx::ex2(__fadd_rn(with.max, -max))};
    s->max = max;
    s->sum = __fmaf_rn(with.sum, f.added, __fmul_rn(s->sum, f.old));
    return f;
}
__device__ __forceinline__ float merged(float old, float added, const factors &f) {
    return __fmaf_rn(added, f.added, __fmul_rn(old, f.old));
}

__device__ __forceinline__ float weight(float score, float scale_log2, float max) {
    return ptx::ex2(__fmaf_rn(score, scale_log2, -max));
}

/* One lane's weights of one query among 16 keys. */
__device__ __forceinline__ float add_16(float a, float b, float c, float d) {
    return __fadd_rn(__fadd_rn(a, b), __fadd_rn(c, d));
}
/* Those of four times 16 keys, and then of the four lanes: the sum of the block. */
__device__ __forceinline__ float add_lanes(float a, float b, float c, float d) {
    float sum = add_16(a, b, c, d);
    sum = __fadd_rn(sum, __shfl_xor_sync(ALL_LANES, sum, 1));
    return __fadd_rn(sum, __shfl_xor_sync(ALL_LANES, sum, 2));
}
__device__ __forceinline__ float max_lanes(float max) {
    max = fmaxf(max, __shfl_xor_sync(ALL_LANES, max, 1));
    return fmaxf(max, __shfl_xor_sync(ALL_LANES, max, 2));
}

/* Keys relative to the first one that a query sees; it sees those below n. */
struct relative {
    uint32_t first, n;
    __device__ __forceinline__ relative(const range &seen, uint32_t first_key)
        : first(first_key - seen.begin), n(seen.end - seen.begin) {}
    __device__ __forceinline__ bool sees(uint32_t i) const { return first + i < n; } /* key first_key + i */
};

/* The outputs of a block, N times 16 columns: o = weights V. at: a lane's place in V's column of 16 where they begin. */
template <class T, int DP, int N>
__device__ __forceinline__ void add_values(float (&o)[N][2][4], const uint32_t (&weights)[4][4], const T *values,
                                           uint32_t at) {
#pragma unroll
    for (int n = 0; n < N; n++) {
#pragma unroll
        for (int e = 0; e < 4; e++) {
            o[n][0][e] = o[n][1][e] = 0.0f;
        }
    }
#pragma unroll
    for (uint32_t k = 0; k < 4; k++) {
#pragma unroll
        for (uint32_t n = 0; n < N; n++) {
            uint32_t b[4];
            ptx::ldmatrix_x4_trans(b, values + tile<DP>::column(at, n) + k * 16 * tile<DP>::STRIDE);
            ptx::mma<T>(o[n][0], weights[k], b[0], b[1]);
            ptx::mma<T>(o[n][1], weights[k], b[2], b[3]);
        }
    }
}

/*
 * Whether an output of a warp is NaN or infinite: it is where a value is, since every key has a weight, if 0. Such a value would
 * reach queries that must not see it: they are then dealt with by add_values_apart.
 */
__device__ __forceinline__ bool any_not_finite(const float (&o)[2][4]) {
    float zero = 0.0f;
#pragma unroll
    for (int e = 0; e < 8; e++) {
        zero = __fmaf_rn(o[e / 4][e % 4], 0.0f, zero);
    }
    return __any_sync(ALL_LANES, zero != 0.0f) != 0;
}

/*
 * As add_values for the columns of 16 whose bits are set in `which`, with zeros in place of the values that a query doesn't see:
 * each of the 16 queries by itself. Calls take(n, h, o) in the lanes that have the query, as their h-th of two, for each
 * n of the columns of 8. seen: what those two see.
 */
template <class T, int DP, int N, class F>
__device__ __forceinline__ void add_values_apart(uint32_t which, const uint32_t (&weights)[4][4], const T *values,
                                                 uint32_t at, uint32_t first_key, const range (&seen)[2],
                                                 const F &take) {
    const uint32_t lane = threadIdx.x % 32;
#pragma unroll 1
    for (uint32_t query = 0; query < 16; query++) {
        const range mine = query < 8 ? seen[0] : seen[1];
        const range q = {__shfl_sync(ALL_LANES, mine.begin, int(query % 8 * 4)),
                         __shfl_sync(ALL_LANES, mine.end, int(query % 8 * 4))};
        const relative keys(q, first_key + lane % 4 * 2);
#pragma unroll
        for (uint32_t n = 0; n < 2 * N; n++) {
            if ((which >> n / 2 & 1) == 0) {
                continue;
            }
            float o[4] = {};
#pragma unroll
            for (uint32_t k = 0; k < 4; k++) {
                uint32_t b[4];
                ptx::ldmatrix_x4_trans(b, values + tile<DP>::column(at, n / 2) + k * 16 * tile<DP>::STRIDE);
#pragma unroll
                for (uint32_t i = 0; i < 2; i++) {
                    const uint32_t key = k * 16 + i * 8; /* and the next one: a word has both */
                    b[n % 2 * 2 + i] &= (keys.sees(key) ? 0xffffu : 0) | (keys.sees(key + 1) ? 0xffff0000u : 0);
                }
                ptx::mma<T>(o, weights[k], b[n % 2 * 2], b[n % 2 * 2 + 1]);
            }
#pragma unroll
            for (int h = 0; h < 2; h++) {
                if (query == lane / 4 + uint32_t(8 * h)) {
                    take(int(n), h, o);
                }
            }
        }
    }
}

/* ------------------------------------------------------------------------ results */

/* Two columns of query i's output, divided by the sum. */
template <class T>
__device__ __forceinline__ void store_output(const params &p, const piece &w, uint32_t i, uint32_t column, float a,
                                             float b, float inverse) {
    T *const to = static_cast<T *>(p.out) + query_at(p, w, i, p.n_heads * p.head_dim) + column;
    *reinterpret_cast<uint32_t *>(to) = device_math::pack<T>(__fmul_rn(a, inverse), __fmul_rn(b, inverse));
}
__device__ __forceinline__ float inverse_of(const state &s) { return __fdiv_rn(1.0f, s.sum); }

__device__ __forceinline__ float *partial_at(const params &p, const piece &w, uint32_t chunk, uint32_t i) {
    const size_t result = w.partial + size_t(chunk - w.first_chunk) * w.n_queries + i;
    return p.partials + result * CUDA_PARTIAL_FLOATS(p.head_dim);
}

} // namespace attention

#endif
