/*
 * Attention, for one instruction set; one routine for prefill and decode. Each query, a (token, head), keeps a running
 * softmax over blocks of 64 positions counted from position 0 (online softmax: Milakov & Gimelshein 2018; in blocks:
 * Dao et al. 2022). A block is left out where the query sees none of it; within a block a query adds up the values of the
 * positions that it sees, in their order. So what a query computes is fixed by its own position and window. Queries are
 * taken several at a time only to read a tile of K and V once for all of them.
 */
#include "kernels/cpu/convert.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/simd.h"

#define BLOCK_GROUPS (CPU_KV_BLOCK / KV_GROUP_TOKENS)

/* Queries [first, first + n) of one row and KV head; query i is token i / n_group, head i % n_group. */
typedef struct queries {
    const cpu_attention *in;
    const kernels_row *row;
    uint32_t kv_head;
    size_t first_token; /* of query 0, in the batch */
    size_t first;
    size_t n;
    size_t n_group; /* query heads that share a KV head */
    size_t n_words; /* of one query */
    cpu_scratch *scratch;
    float max[CPU_QUERIES];
    float sum[CPU_QUERIES];
    size_t begin[CPU_QUERIES]; /* positions [begin, end) are seen; both grow with the query */
    size_t end[CPU_QUERIES];
} queries;

static size_t min_size(size_t a, size_t b) { return a < b ? a : b; }

static size_t max_size(size_t a, size_t b) { return a > b ? a : b; }

static size_t query_token(const queries *q, size_t i) { return q->first_token + (q->first + i) / q->n_group; }

static size_t query_head(const queries *q, size_t i) { return q->kv_head * q->n_group + (q->first + i) % q->n_group; }

static void queries_load(queries *q) {
    const cpu_attention *in = q->in;
    size_t head_dim = in->shape->layout.head_dim;
    q->n_words = in->bf16 ? head_dim / 2 : head_dim;
    for (size_t i = 0; i < q->n; i++) {
        size_t token = query_token(q, i);
        size_t position = q->row->first_position + (token - q->row->first_token);
        q->end[i] = position + 1;
        q->begin[i] = in->shape->window != 0 && q->end[i] > in->shape->window ? q->end[i] - in->shape->window : 0;
        q->max[i] = -FLT_MAX; /* not -inf: a score of -inf then has weight 0 instead of NaN */
        q->sum[i] = 0.0f;
        const float *from = in->qkv + token * in->qkv_stride + query_head(q, i) * head_dim;
        uint32_t *to = q->scratch->queries + i * CPU_MAX_HEAD_DIM;
        if (in->bf16) {
            isa_round_bf16(from, head_dim, to);
        } else {
            memcpy(to, from, head_dim * sizeof *to);
        }
        memset(q->scratch->outputs + i * CPU_MAX_HEAD_DIM, 0, CPU_MAX_HEAD_DIM * sizeof(float));
    }
}

/*
 * scores[i][0..63] = q_i · K for queries [i0, i1). tiles: the block's K; those behind the last one seen repeat it, since there
 * may be no memory: what comes of them is not used.
 */
static void block_scores(const queries *q, size_t i0, size_t i1, const uint8_t *const *tiles) {
    for (size_t i = i0; i < i1; i += TILE_M) {
        size_t n_m = min_size(i1 - i, TILE_M), n_v = TILE_VECTORS(n_m);
        for (size_t p = 0; p < CPU_KV_BLOCK; p += n_v * VL) {
            tile_at at = {.sums = q->scratch->scores + i * CPU_KV_BLOCK + p,
                          .sums_stride = CPU_KV_BLOCK,
                          .fresh = true,
                          .x = q->scratch->queries + i * CPU_MAX_HEAD_DIM,
                          .x_stride = CPU_MAX_HEAD_DIM,
                          .n_words = q->n_words};
            for (size_t v = 0; v < n_v; v++) {
                size_t position = p + v * VL;
                const void *tile_of_v = tiles[position / KV_GROUP_TOKENS];
                at.b[v] = (const uint32_t *)tile_of_v + position % KV_GROUP_TOKENS;
            }
            tile(n_m, q->in->bf16, KV_GROUP_TOKENS, &at);
        }
    }
}

/*
 * Turns query i's scores of places [begin, end) of a block into weights relative to the new maximum, 0 elsewhere, and
 * brings its sum and its outputs to that maximum.
 */
static void block_softmax(queries *q, size_t i, size_t begin, size_t end) {
    float *s = q->scratch->scores + i * CPU_KV_BLOCK;
    for (size_t j = 0; j < CPU_KV_BLOCK; j += VL) {
        vf_store(s + j, vf_mul(vf_load(s + j), vf_set1(q->in->shape->scale)));
    }
    for (size_t j = 0; j < begin; j++) {
        s[j] = -INFINITY;
    }
    for (size_t j = end; j < CPU_KV_BLOCK; j++) {
        s[j] = -INFINITY;
    }
    vf top = vf_set1(q->max[i]);
    for (size_t j = 0; j < CPU_KV_BLOCK; j += VL) {
        top = vf_max(vf_load(s + j), top);
    }
    float max = vf_max_lane(top);
    vf total = vf_set1(0.0f);
    for (size_t j = 0; j < CPU_KV_BLOCK; j += VL) {
        vf weight = vf_exp(vf_sub(vf_load(s + j), vf_set1(max)));
        vf_store(s + j, weight);
        total = vf_add(total, weight);
    }
    float lanes[VL];
    vf_store(lanes, vf_exp(vf_set1(q->max[i] - max)));
    vf correction = vf_set1(lanes[0]);
    q->sum[i] = q->sum[i] * lanes[0] + vf_sum(total);
    q->max[i] = max;
    float *out = q->scratch->outputs + i * CPU_MAX_HEAD_DIM;
    for (size_t d = 0; d < q->in->shape->layout.head_dim; d += VL) { /* whole vectors: rows are padded */
        vf_store(out + d, vf_mul(vf_load(out + d), correction));
    }
}

/* outputs[i][d..] += Σ_j weight[i][j] V[j][d..] for n_m queries from i, places j0..j1-1, n_v vectors or the `lanes` last. */
ALWAYS_INLINE void values_body(const size_t n_m, const size_t n_v, const bool bf16, const queries *q, size_t i,
                               size_t d, size_t lanes, const uint8_t *const *tiles, size_t j0, size_t j1) {
    size_t head_dim = q->in->shape->layout.head_dim;
    const float *weights = q->scratch->scores + i * CPU_KV_BLOCK;
    float *out = q->scratch->outputs + i * CPU_MAX_HEAD_DIM + d;
    vf sum[TILE_M][TILE_N];
    for (size_t m = 0; m < n_m; m++) {
        for (size_t v = 0; v < n_v; v++) {
            sum[m][v] = vf_load(out + m * CPU_MAX_HEAD_DIM + v * VL);
        }
    }
    for (size_t j = j0; j < j1; j++) {
        size_t element = (KV_GROUP_TOKENS + j % KV_GROUP_TOKENS) * head_dim + d;
        const uint8_t *tile_of_j = tiles[j / KV_GROUP_TOKENS];
        vf value[TILE_N];
        for (size_t v = 0; v < n_v; v++) {
            if (bf16) {
                const uint16_t *from = (const uint16_t *)(const void *)tile_of_j + element + v * VL;
                value[v] = lanes == VL ? vf_load_bf16(from) : vf_load_bf16_n(from, lanes);
            } else {
                const float *from = (const float *)(const void *)tile_of_j + element + v * VL;
                value[v] = lanes == VL ? vf_load(from) : vf_load_n(from, lanes);
            }
        }
        for (size_t m = 0; m < n_m; m++) {
            vf weight = vf_set1(weights[m * CPU_KV_BLOCK + j]);
            for (size_t v = 0; v < n_v; v++) {
                sum[m][v] = vf_fma(weight, value[v], sum[m][v]);
            }
        }
    }
    for (size_t m = 0; m < n_m; m++) {
        for (size_t v = 0; v < n_v; v++) {
            vf_store(out + m * CPU_MAX_HEAD_DIM + v * VL, sum[m][v]);
        }
    }
}

#define VALUES_CASE(n)                                                                                                 \
    case n:                                                                                                            \
        for (; d + TILE_VECTORS(n) * VL <= head_dim; d += TILE_VECTORS(n) * VL) {                                      \
            values_body(n, TILE_VECTORS(n), bf16, q, i, d, VL, tiles, j0, j1);                                         \
        }                                                                                                              \
        for (; d + VL <= head_dim; d += VL) {                                                                          \
            values_body(n, 1, bf16, q, i, d, VL, tiles, j0, j1);                                                       \
        }                                                                                                              \
        if (d < head_dim) {                                                                                            \
            values_body(n, 1, bf16, q, i, d, head_dim - d, tiles, j0, j1);                                             \
        }                                                                                                              \
        break

ALWAYS_INLINE void values_sized(size_t n_m, const bool bf16, const queries *q, size_t i, const uint8_t *const *tiles,
                                size_t j0, size_t j1) {
    size_t head_dim = q->in->shape->layout.head_dim;
    size_t d = 0;
    switch (n_m) {
        VALUES_CASE(1);
        VALUES_CASE(2);
#if TILE_M > 2
        VALUES_CASE(3);
        VALUES_CASE(4);
        VALUES_CASE(5);
        VALUES_CASE(6);
#endif
    default:
        break;
    }
}

static void values(size_t n_m, const queries *q, size_t i, const uint8_t *const *tiles, size_t j0, size_t j1) {
    if (j0 >= j1) {
        return;
    }
    if (q->in->bf16) {
        values_sized(n_m, true, q, i, tiles, j0, j1);
    } else {
        values_sized(n_m, false, q, i, tiles, j0, j1);
    }
}

/*
 * Adds the values of a block to the outputs of queries [i, i + n). Together only over the places that all of them see: a
 * weight of 0 would not keep out a NaN in a value that a query must not see.
 */
static void block_values(const queries *q, size_t i, size_t n, size_t block, const uint8_t *const *tiles) {
    size_t first = max_size(q->begin[i + n - 1], block);
    size_t last = min_size(q->end[i], block + CPU_KV_BLOCK);
    bool shared = first < last;
    for (size_t m = i; m < i + n; m++) {
        size_t begin = max_size(q->begin[m], block);
        size_t end = min_size(q->end[m], block + CPU_KV_BLOCK);
        values(1, q, m, tiles, begin - block, (shared ? first : end) - block);
    }
    if (!shared) {
        return;
    }
    values(n, q, i, tiles, first - block, last - block);
    for (size_t m = i; m < i + n; m++) {
        values(1, q, m, tiles, last - block, min_size(q->end[m], block + CPU_KV_BLOCK) - block);
    }
}

/*
 * A head's tiles lie a group apart, each on pages of its own. One line of each page is asked for ahead, so that the walk
 * through the page tables is done when its turn comes; within the page the processor looks ahead by itself, and more
 * requests would only be in its way (measured: 15 % faster than none, all lines 30 % slower).
 */
static void prefetch_block(const queries *q, size_t block) {
    const kernels_attention *shape = q->in->shape;
    size_t tile_bytes = (size_t)2 * KV_GROUP_TOKENS * shape->layout.head_dim * shape->layout.element_bytes;
    size_t end = min_size(q->end[q->n - 1], block + CPU_KV_BLOCK);
    for (size_t position = block; position < end; position += KV_GROUP_TOKENS) {
        const uint8_t *from =
            cpu_kv_tile(&q->row->kv, &shape->layout, shape->layer, q->kv_head, position / KV_GROUP_TOKENS);
        for (size_t i = 0; i < tile_bytes; i += 4096) {
            __builtin_prefetch(from + i);
        }
    }
}

static void queries_block(queries *q, size_t block) {
    size_t i0 = 0;
    size_t i1 = q->n;
    while (i0 < q->n && q->end[i0] <= block) {
        i0++;
    }
    while (i1 > i0 && q->begin[i1 - 1] >= block + CPU_KV_BLOCK) {
        i1--;
    }
    if (i0 == i1) {
        return;
    }
    const kernels_attention *shape = q->in->shape;
    size_t seen_first = max_size(q->begin[i0], block);
    size_t seen_last = min_size(q->end[i1 - 1], block + CPU_KV_BLOCK) - 1;
    const uint8_t *tiles[BLOCK_GROUPS];
    for (size_t g = 0; g < BLOCK_GROUPS; g++) {
        size_t group = block / KV_GROUP_TOKENS + g;
        group = max_size(group, seen_first / KV_GROUP_TOKENS);
        group = min_size(group, seen_last / KV_GROUP_TOKENS);
        tiles[g] = cpu_kv_tile(&q->row->kv, &shape->layout, shape->layer, q->kv_head, group);
    }
    prefetch_block(q, block + CPU_KV_BLOCK);
    block_scores(q, i0, i1, tiles);
    for (size_t i = i0; i < i1; i++) {
        block_softmax(q, i, max_size(q->begin[i], block) - block, min_size(q->end[i], block + CPU_KV_BLOCK) - block);
    }
    for (size_t i = i0; i < i1; i += TILE_M) {
        block_values(q, i, min_size(i1 - i, TILE_M), block, tiles);
    }
}

static void queries_store(const queries *q) {
    const cpu_attention *in = q->in;
    size_t head_dim = in->shape->layout.head_dim;
    for (size_t i = 0; i < q->n; i++) {
        const float *from = q->scratch->outputs + i * CPU_MAX_HEAD_DIM;
        float *to = in->out + (query_token(q, i) * in->shape->n_heads + query_head(q, i)) * head_dim;
        vf scale = vf_set1(1.0f / q->sum[i]);
        size_t d = 0;
        for (; d + VL <= head_dim; d += VL) {
            vf_store(to + d, vf_mul(vf_load(from + d), scale));
        }
        if (d < head_dim) {
            vf_store_n(to + d, vf_mul(vf_load(from + d), scale), head_dim - d);
        }
    }
}

static void isa_attention(const cpu_attention *attention, uint32_t kv_head, size_t t0, size_t t1,
                          cpu_scratch *scratch) {
    size_t n_group = attention->shape->n_heads / attention->shape->layout.n_kv_heads;
    for (size_t t = t0; t < t1;) {
        const kernels_row *row = &attention->batch->rows[attention->batch->token_row[t]];
        size_t n_tokens = min_size(t1, (size_t)row->first_token + row->n_tokens) - t;
        for (size_t first = 0; first < n_tokens * n_group; first += CPU_QUERIES) {
            queries q = {.in = attention,
                         .row = row,
                         .kv_head = kv_head,
                         .first_token = t,
                         .first = first,
                         .n = min_size(n_tokens * n_group - first, CPU_QUERIES),
                         .n_group = n_group,
                         .scratch = scratch};
            queries_load(&q);
            for (size_t block = q.begin[0] / CPU_KV_BLOCK * CPU_KV_BLOCK; block < q.end[q.n - 1];
                 block += CPU_KV_BLOCK) {
                queries_block(&q, block);
            }
            queries_store(&q);
        }
        t += n_tokens;
    }
}
