/*
 * attention_plan: pieces of attention work for a batch. The unit of cost is a chunk of 256 positions for one tile of queries,
 * which takes about as long in a small piece, where it is a matter of memory, as in a tall one.
 *
 * The queries of a row and KV head are one tile where they are few (small), else they are cut into tiles that K and V are read
 * for at once. CTAs take pieces in the order of the plan, so a tile is cut along its chunks as well where it would keep one CTA
 * busy when the others have nothing left: into pieces of at most a CTA's share of the work that is left then (guided
 * self-scheduling: Polychronopoulos & Kuck 1987). Long pieces come first and are whole where there is much to do; the last ones
 * are short. Each chunk of a tile that is cut leaves a partial result for each query; their number is limited.
 */
#include "kernels/cuda/attention_plan.h"

/* CTAs that work at once on a processor: small ones share it, for the sake of the bytes that are on their way. */
#define SMALL_CTAS 3u
#define TALL_CTAS 1u

/* Pieces need not get shorter than this part of a CTA's share of all work. */
#define SHORTEST_PART 16u

/* By cutting along chunks there come at most so many more pieces than CTAs work at once. */
#define MORE_PIECES 4u

#define MAX_PARTIAL_BYTES ((uint64_t)128 << 20)
#define LEAST_TILE_QUERIES 32u

/* The pieces of one kind while a plan is made. */
typedef struct kind {
    uint32_t n_ctas;
    uint32_t tile_tokens; /* of a tile, at most; 0: a row's tokens are one tile */
    uint64_t total, left; /* chunks of all tiles, and of those not planned yet */
    uint32_t room;        /* for pieces beyond one a tile */
} kind;

typedef struct planner {
    const kernels_batch *batch;
    uint32_t n_kv_heads;
    uint32_t n_group;
    cuda_attend_work *attend;
    cuda_merge_work *merge;
    uint32_t n_attend;
    uint32_t n_merge, max_merge;
    uint32_t n_partial, max_partial;
} planner;

static uint64_t min_u64(uint64_t a, uint64_t b) { return a < b ? a : b; }

static uint64_t max_u64(uint64_t a, uint64_t b) { return a > b ? a : b; }

static uint64_t divide_up(uint64_t a, uint64_t b) { return (a + b - 1) / b; }

static uint32_t chunks_of(uint64_t n_tokens) { return (uint32_t)divide_up(n_tokens, CUDA_CHUNK_TOKENS); }

/* Tokens that make n queries, or one token. */
static uint32_t tokens_of(uint32_t n, uint32_t n_group) { return n / n_group > 1 ? n / n_group : 1; }

/* ---------------------------------------------------------------- sizes */

static uint32_t n_group_of(const kernels_limits *limits) { return limits->n_heads / limits->layout.n_kv_heads; }

static uint64_t max_partials(const kernels_limits *limits) {
    uint32_t n_chunks = chunks_of(limits->session_len);
    uint64_t all = n_chunks < 2 ? 0 : (uint64_t)limits->max_step_tokens * limits->n_heads * n_chunks;
    return min_u64(all, MAX_PARTIAL_BYTES / (CUDA_PARTIAL_FLOATS(limits->layout.head_dim) * sizeof(float)));
}

static uint32_t max_more_pieces(const kernels_limits *limits, uint32_t n_ctas) {
    return chunks_of(limits->session_len) < 2 ? 0 : MORE_PIECES * n_ctas;
}

/* A tile that is cut becomes two pieces or more, and leaves so many merges. */
static uint32_t max_merges(const kernels_limits *limits, uint32_t n_processors) {
    uint32_t n_group = n_group_of(limits);
    uint32_t of_tile = (uint32_t)divide_up(tokens_of(CUDA_TALL_QUERIES(limits->layout.head_dim), n_group),
                                           tokens_of(CUDA_SMALL_QUERIES, n_group));
    return max_more_pieces(limits, SMALL_CTAS * n_processors) +
           max_more_pieces(limits, TALL_CTAS * n_processors) * of_tile;
}

void cuda_attention_sizes_get(const kernels_limits *limits, uint32_t n_processors, cuda_attention_sizes *out) {
    uint32_t small = SMALL_CTAS * n_processors, tall = TALL_CTAS * n_processors;
    /* A tile for each row, and another one for each tile's worth of tokens; lower tiles are made where they are few. */
    uint64_t n_tiles =
        (uint64_t)limits->max_batch_size +
        limits->max_step_tokens / tokens_of(CUDA_TALL_QUERIES(limits->layout.head_dim), n_group_of(limits));
    out->max_attend = (uint32_t)(n_tiles * limits->layout.n_kv_heads) + tall + max_more_pieces(limits, small) +
                      max_more_pieces(limits, tall);
    out->max_merge = max_merges(limits, n_processors);
    out->partial_bytes = (size_t)(max_partials(limits) * CUDA_PARTIAL_FLOATS(limits->layout.head_dim) * sizeof(float));
}

/* ---------------------------------------------------------------- plan */

/* Merges of a tile's queries; `partial`: of its first chunk and KV head, the heads' results lie one behind the other. */
static void add_merges(planner *pl, uint32_t row, uint32_t first_token, uint32_t n_tokens, uint32_t n_chunks,
                       uint32_t partial) {
    uint32_t n_queries = n_tokens * pl->n_group, most = tokens_of(CUDA_SMALL_QUERIES, pl->n_group);
    for (uint32_t head = 0; head < pl->n_kv_heads; head++) {
        for (uint32_t t = 0; t < n_tokens; t += most) {
            pl->merge[pl->n_merge++] =
                (cuda_merge_work){.row = row,
                                  .kv_head = head,
                                  .first_token = first_token + t,
                                  .n_tokens = (uint32_t)min_u64(most, n_tokens - t),
                                  .partial = partial + head * n_chunks * n_queries + t * pl->n_group,
                                  .stride = n_queries};
        }
    }
}

static void plan_tile(planner *pl, kind *k, uint32_t row, uint32_t first_token, uint32_t n_tokens) {
    const kernels_row *r = &pl->batch->rows[row];
    uint32_t n_chunks = chunks_of((uint64_t)r->first_position + first_token + n_tokens);
    uint64_t share = max_u64(divide_up(k->left, k->n_ctas), divide_up(k->total, (uint64_t)SHORTEST_PART * k->n_ctas));
    uint32_t n_pieces = (uint32_t)min_u64(divide_up(n_chunks, share), 1 + k->room / pl->n_kv_heads);
    uint32_t n_queries = n_tokens * pl->n_group;
    uint64_t n_partial = (uint64_t)n_queries * n_chunks * pl->n_kv_heads;
    uint64_t n_merge = divide_up(n_tokens, tokens_of(CUDA_SMALL_QUERIES, pl->n_group)) * pl->n_kv_heads;
    if (n_partial > pl->max_partial - pl->n_partial || n_merge > pl->max_merge - pl->n_merge) {
        n_pieces = 1;
    }
    for (uint32_t i = 0; i < n_pieces; i++) {
        uint32_t first_chunk = (uint32_t)((uint64_t)n_chunks * i / n_pieces);
        uint32_t end_chunk = (uint32_t)((uint64_t)n_chunks * (i + 1) / n_pieces);
        for (uint32_t head = 0; head < pl->n_kv_heads; head++) {
            uint32_t partial = pl->n_partial + (head * n_chunks + first_chunk) * n_queries;
            pl->attend[pl->n_attend++] = (cuda_attend_work){.row = row,
                                                            .kv_head = head,
                                                            .first_token = first_token,
                                                            .n_tokens = n_tokens,
                                                            .first_chunk = first_chunk,
                                                            .n_chunks = end_chunk - first_chunk,
                                                            .partial = n_pieces > 1 ? partial : CUDA_NO_PARTIAL};
        }
    }
    if (n_pieces > 1) {
        add_merges(pl, row, first_token, n_tokens, n_chunks, pl->n_partial);
        pl->n_partial += (uint32_t)n_partial;
        k->room -= (n_pieces - 1) * pl->n_kv_heads;
    }
    k->left -= (uint64_t)n_chunks * pl->n_kv_heads;
}

/* A row's tiles are of like size, and the last one, which sees the most, comes first. */
static uint32_t tokens_of_tile(const kind *k, uint32_t n_tokens) {
    return k->tile_tokens == 0 ? n_tokens : (uint32_t)divide_up(n_tokens, divide_up(n_tokens, k->tile_tokens));
}

static bool is_small(const planner *pl, const kernels_row *row) {
    return (uint64_t)row->n_tokens * pl->n_group <= CUDA_SMALL_QUERIES;
}

static void plan_kind(planner *pl, kind *k, bool small) {
    for (uint32_t i = 0; i < pl->batch->n_rows; i++) {
        const kernels_row *row = &pl->batch->rows[i];
        if (is_small(pl, row) != small) {
            continue;
        }
        uint32_t n_tokens = tokens_of_tile(k, row->n_tokens);
        for (uint32_t t = (row->n_tokens - 1) / n_tokens * n_tokens;; t -= n_tokens) {
            plan_tile(pl, k, i, t, (uint32_t)min_u64(n_tokens, row->n_tokens - t));
            if (t == 0) {
                break;
            }
        }
    }
}

static void count_chunks(const planner *pl, kind *k, bool small) {
    k->total = 0;
    for (uint32_t i = 0; i < pl->batch->n_rows; i++) {
        const kernels_row *row = &pl->batch->rows[i];
        if (is_small(pl, row) != small) {
            continue;
        }
        uint32_t n_tokens = tokens_of_tile(k, row->n_tokens);
        for (uint32_t t = 0; t < row->n_tokens; t += n_tokens) {
            uint64_t end = min_u64((uint64_t)t + n_tokens, row->n_tokens);
            k->total += (uint64_t)chunks_of(row->first_position + end) * pl->n_kv_heads;
        }
    }
    k->left = k->total;
}

void cuda_attention_plan(const kernels_limits *limits, uint32_t n_processors, const kernels_batch *batch,
                         cuda_attend_work *attend, uint32_t *n_attend, cuda_merge_work *merge, uint32_t *n_merge) {
    planner pl = {.batch = batch,
                  .n_kv_heads = limits->layout.n_kv_heads,
                  .n_group = n_group_of(limits),
                  .attend = attend,
                  .merge = merge,
                  .max_merge = max_merges(limits, n_processors),
                  .max_partial = (uint32_t)max_partials(limits)};
    kind small = {.n_ctas = SMALL_CTAS * n_processors};
    kind tall = {.n_ctas = TALL_CTAS * n_processors};
    small.room = max_more_pieces(limits, small.n_ctas);
    tall.room = max_more_pieces(limits, tall.n_ctas);
    count_chunks(&pl, &small, true);
    plan_kind(&pl, &small, true);
    uint32_t n_small = pl.n_attend;
    uint32_t n_queries = CUDA_TALL_QUERIES(limits->layout.head_dim);
    tall.tile_tokens = tokens_of(n_queries, pl.n_group);
    count_chunks(&pl, &tall, false);
    /* Where all chunks together would not keep the CTAs busy, lower tiles will: they cost nothing but more loads. */
    while (tall.total * 2 <= tall.n_ctas && n_queries > LEAST_TILE_QUERIES) {
        n_queries /= 2;
        tall.tile_tokens = tokens_of(n_queries, pl.n_group);
        count_chunks(&pl, &tall, false);
    }
    plan_kind(&pl, &tall, false);
    if (pl.n_attend > 0) {
        attend[0].n_small = n_small;
    }
    *n_attend = pl.n_attend;
    *n_merge = pl.n_merge;
}
