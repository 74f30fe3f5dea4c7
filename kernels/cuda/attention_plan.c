/*
 * attention_plan: pieces of attention work for a batch. The unit of cost is a chunk of 256 positions for one tile of queries,
 * which takes about as long in a small piece, where it is a matter of memory, as in a tall one.
 *
 * The queries of a row and KV head are one tile where they are few (small), else they are cut into tiles that K and V are read
 * for at once. CTAs draw pieces in the order of the plan, long ones first. What they will be busy with is followed along, and a
 * tile that would end later than an even share of all work is cut along its chunks as well, so that its pieces fill the gaps.
 * Each chunk of such a tile leaves a partial result for each query; their number is limited. All KV heads are cut alike:
 * as many CTAs as there are heads count as one group. With a sliding window a tile's chunks begin where its first token sees
 * something.
 */
#include "kernels/cuda/attention_plan.h"

#include <string.h>

/* CTAs that work at once on a processor: small ones share it, for the sake of the bytes that are on their way. */
#define SMALL_CTAS 3u
#define TALL_CTAS 1u

#define MAX_GROUPS 1024u

/* Pieces get no shorter than this part of an even share, and a tile may end this part later. */
#define SHORTEST_PART 16u

/* By cutting along chunks there come at most so many more pieces than CTAs work at once. */
#define MORE_PIECES 4u

#define MAX_PARTIAL_BYTES ((uint64_t)128 << 20)
#define LEAST_TILE_QUERIES 32u

/* The pieces of one kind while a plan is made. */
typedef struct kind {
    bool small;
    uint32_t tile_tokens; /* of a tile, at most; small: a row's tokens are one tile */
    uint32_t room;        /* for pieces beyond one a tile */
    uint64_t total;       /* chunks of all tiles, for one KV head */
    uint64_t even;        /* a group's share of them */
    uint64_t lengths;     /* bit i: there are rows of [2^i, 2^(i+1)) chunks */
    uint32_t n_groups;
    uint64_t busy[MAX_GROUPS]; /* until when each group is; a heap, the least first */
} kind;

typedef struct planner {
    const kernels_batch *batch;
    uint32_t n_kv_heads;
    uint32_t n_group;
    uint32_t window;
    cuda_attend_work *attend;
    cuda_merge_work *merge;
    uint32_t n_attend;
    uint32_t n_merge, max_merge;
    uint32_t n_partial, max_partial;
} planner;

static uint64_t min_u64(uint64_t a, uint64_t b) { return a < b ? a : b; }

static uint64_t divide_up(uint64_t a, uint64_t b) { return (a + b - 1) / b; }

static uint32_t chunks_of(uint64_t n_tokens) { return (uint32_t)divide_up(n_tokens, CUDA_CHUNK_TOKENS); }

/* Tokens that make n queries, or one token. */
static uint32_t tokens_of(uint32_t n, uint32_t n_group) { return n / n_group > 1 ? n / n_group : 1; }

/* ---------------------------------------------------------------- sizes */

static uint32_t n_group_of(const kernels_limits *limits) { return limits->n_heads / limits->layout.n_kv_heads; }

/* The most chunks that a tile sees something of. */
static uint32_t max_chunks(const kernels_limits *limits) {
    uint32_t all = chunks_of(limits->session_len);
    uint64_t n_tokens =
        min_u64(tokens_of(CUDA_TALL_QUERIES(limits->layout.head_dim), n_group_of(limits)), limits->max_step_tokens);
    uint64_t n_seen = limits->window + n_tokens - 1; /* which may begin at the end of a chunk */
    return limits->window == 0 ? all : (uint32_t)min_u64(all, divide_up(n_seen - 1, CUDA_CHUNK_TOKENS) + 1);
}

static uint64_t max_partials(const kernels_limits *limits) {
    uint32_t n_chunks = max_chunks(limits);
    uint64_t all = n_chunks < 2 ? 0 : (uint64_t)limits->max_step_tokens * limits->n_heads * n_chunks;
    return min_u64(all, MAX_PARTIAL_BYTES / (CUDA_PARTIAL_FLOATS(limits->layout.head_dim) * sizeof(float)));
}

static uint32_t max_more_pieces(const kernels_limits *limits, uint32_t n_ctas) {
    return max_chunks(limits) < 2 ? 0 : MORE_PIECES * n_ctas;
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

/* The chunks that the tokens of a tile see something of. */
typedef struct span {
    uint32_t first, n;
} span;

static span seen_by(const planner *pl, const kernels_row *row, uint32_t first_token, uint32_t n_tokens) {
    uint64_t position = (uint64_t)row->first_position + first_token;
    uint64_t first = pl->window != 0 && position + 1 > pl->window ? (position + 1 - pl->window) / CUDA_CHUNK_TOKENS : 0;
    return (span){(uint32_t)first, chunks_of(position + n_tokens) - (uint32_t)first};
}

/* Merges of a tile's queries; `partial`: of its first chunk and KV head, the heads' results lie one behind the other. */
static void add_merges(planner *pl, uint32_t row, uint32_t first_token, uint32_t n_tokens, span seen,
                       uint32_t partial) {
    uint32_t n_queries = n_tokens * pl->n_group, most = tokens_of(CUDA_SMALL_QUERIES, pl->n_group);
    for (uint32_t head = 0; head < pl->n_kv_heads; head++) {
        for (uint32_t t = 0; t < n_tokens; t += most) {
            pl->merge[pl->n_merge++] =
                (cuda_merge_work){.row = row,
                                  .kv_head = head,
                                  .first_token = first_token + t,
                                  .n_tokens = (uint32_t)min_u64(most, n_tokens - t),
                                  .partial = partial + head * seen.n * n_queries + t * pl->n_group,
                                  .stride = n_queries,
                                  .first_chunk = seen.first};
        }
    }
}

/* The group that is free first takes a piece. */
static void occupy(kind *k, uint64_t n_chunks) {
    uint64_t until = k->busy[0] + n_chunks;
    uint32_t i = 0;
    for (uint32_t child = 1; child < k->n_groups; child = 2 * i + 1) {
        child += child + 1 < k->n_groups && k->busy[child + 1] < k->busy[child];
        if (k->busy[child] >= until) {
            break;
        }
        k->busy[i] = k->busy[child];
        i = child;
    }
    k->busy[i] = until;
}

/* Into how many pieces a tile is cut, of n_chunks for n_tokens. */
static uint32_t pieces_of(const planner *pl, const kind *k, uint32_t n_tokens, uint32_t n_chunks) {
    uint64_t shortest = divide_up(k->even, SHORTEST_PART), free_at = k->busy[0];
    uint64_t n_partial = (uint64_t)n_tokens * pl->n_group * n_chunks * pl->n_kv_heads;
    uint64_t n_merge = divide_up(n_tokens, tokens_of(CUDA_SMALL_QUERIES, pl->n_group)) * pl->n_kv_heads;
    if (free_at + n_chunks <= k->even + shortest || n_partial > pl->max_partial - pl->n_partial ||
        n_merge > pl->max_merge - pl->n_merge) {
        return 1;
    }
    uint64_t gap = k->even > free_at ? k->even - free_at : 0;
    return (uint32_t)min_u64(divide_up(n_chunks, gap > shortest ? gap : shortest), 1 + k->room / pl->n_kv_heads);
}

static void plan_tile(planner *pl, kind *k, uint32_t row, uint32_t first_token, uint32_t n_tokens) {
    const span seen = seen_by(pl, &pl->batch->rows[row], first_token, n_tokens);
    uint32_t n_pieces = pieces_of(pl, k, n_tokens, seen.n), n_queries = n_tokens * pl->n_group;
    for (uint32_t i = 0; i < n_pieces; i++) {
        uint32_t begin = (uint32_t)((uint64_t)seen.n * i / n_pieces); /* of what is seen */
        uint32_t end = (uint32_t)((uint64_t)seen.n * (i + 1) / n_pieces);
        occupy(k, end - begin);
        for (uint32_t head = 0; head < pl->n_kv_heads; head++) {
            uint32_t partial = pl->n_partial + (head * seen.n + begin) * n_queries;
            pl->attend[pl->n_attend++] = (cuda_attend_work){.row = row,
                                                            .kv_head = head,
                                                            .first_token = first_token,
                                                            .n_tokens = n_tokens,
                                                            .first_chunk = seen.first + begin,
                                                            .n_chunks = end - begin,
                                                            .partial = n_pieces > 1 ? partial : CUDA_NO_PARTIAL};
        }
    }
    if (n_pieces > 1) {
        add_merges(pl, row, first_token, n_tokens, seen, pl->n_partial);
        pl->n_partial += n_queries * seen.n * pl->n_kv_heads;
        k->room -= (n_pieces - 1) * pl->n_kv_heads;
    }
}

/* A row's tiles are of like size. */
static uint32_t tokens_of_tile(const kind *k, uint32_t n_tokens) {
    return k->small ? n_tokens : (uint32_t)divide_up(n_tokens, divide_up(n_tokens, k->tile_tokens));
}

static bool is_of(const planner *pl, const kind *k, const kernels_row *row) {
    return k->small == ((uint64_t)row->n_tokens * pl->n_group <= CUDA_SMALL_QUERIES);
}

/* The logarithm of what a tile at the row's end sees. */
static uint32_t length_of(const planner *pl, const kind *k, const kernels_row *row) {
    uint32_t n_tokens = tokens_of_tile(k, row->n_tokens);
    uint32_t n = seen_by(pl, row, row->n_tokens - n_tokens, n_tokens).n, i = 0;
    while (n >>= 1) {
        i++;
    }
    return i;
}

static void count_chunks(const planner *pl, kind *k) {
    k->total = k->lengths = 0;
    for (uint32_t i = 0; i < pl->batch->n_rows; i++) {
        const kernels_row *row = &pl->batch->rows[i];
        if (!is_of(pl, k, row)) {
            continue;
        }
        uint32_t n_tokens = tokens_of_tile(k, row->n_tokens);
        for (uint32_t t = 0; t < row->n_tokens; t += n_tokens) {
            k->total += seen_by(pl, row, t, (uint32_t)min_u64(n_tokens, row->n_tokens - t)).n;
        }
        k->lengths |= (uint64_t)1 << length_of(pl, k, row);
    }
    k->even = divide_up(k->total, k->n_groups);
}

/* Rows of like length after longer ones; of a row, the tokens that see the most first. */
static void plan_kind(planner *pl, kind *k) {
    memset(k->busy, 0, k->n_groups * sizeof k->busy[0]);
    for (uint32_t length = 32; length-- > 0;) {
        for (uint32_t i = 0; (k->lengths >> length & 1) != 0 && i < pl->batch->n_rows; i++) {
            const kernels_row *row = &pl->batch->rows[i];
            if (!is_of(pl, k, row) || length_of(pl, k, row) != length) {
                continue;
            }
            uint32_t n_tokens = tokens_of_tile(k, row->n_tokens);
            for (uint32_t tile = (uint32_t)divide_up(row->n_tokens, n_tokens); tile-- > 0;) {
                uint32_t t = tile * n_tokens;
                plan_tile(pl, k, i, t, (uint32_t)min_u64(n_tokens, row->n_tokens - t));
            }
        }
    }
}

/* Where all chunks together would not keep the CTAs busy, lower tiles will: they cost nothing but more loads. */
static void lower_tiles(const planner *pl, kind *k, uint32_t n_queries) {
    uint32_t before = k->tile_tokens;
    while (k->total <= k->n_groups && n_queries > LEAST_TILE_QUERIES) {
        n_queries /= 2;
        before = k->tile_tokens;
        k->tile_tokens = tokens_of(n_queries, pl->n_group);
        count_chunks(pl, k);
    }
    if (k->total > k->n_groups) {
        k->tile_tokens = before;
        count_chunks(pl, k);
    }
}

static kind kind_of(const kernels_limits *limits, bool small, uint32_t n_ctas) {
    uint64_t n_groups = min_u64(n_ctas / limits->layout.n_kv_heads, MAX_GROUPS);
    return (kind){.small = small,
                  .tile_tokens = tokens_of(CUDA_TALL_QUERIES(limits->layout.head_dim), n_group_of(limits)),
                  .room = max_more_pieces(limits, n_ctas),
                  .n_groups = n_groups > 0 ? (uint32_t)n_groups : 1};
}

void cuda_attention_plan(const kernels_limits *limits, uint32_t n_processors, const kernels_batch *batch,
                         cuda_attend_work *attend, uint32_t *n_attend, cuda_merge_work *merge, uint32_t *n_merge) {
    planner pl = {.batch = batch,
                  .n_kv_heads = limits->layout.n_kv_heads,
                  .n_group = n_group_of(limits),
                  .window = limits->window,
                  .attend = attend,
                  .merge = merge,
                  .max_merge = max_merges(limits, n_processors),
                  .max_partial = (uint32_t)max_partials(limits)};
    kind k = kind_of(limits, true, SMALL_CTAS * n_processors);
    count_chunks(&pl, &k);
    plan_kind(&pl, &k);
    uint32_t n_small = pl.n_attend;
    k = kind_of(limits, false, TALL_CTAS * n_processors);
    count_chunks(&pl, &k);
    lower_tiles(&pl, &k, CUDA_TALL_QUERIES(limits->layout.head_dim));
    plan_kind(&pl, &k);
    if (pl.n_attend > 0) {
        attend[0].n_small = n_small;
    }
    *n_attend = pl.n_attend;
    *n_merge = pl.n_merge;
}
