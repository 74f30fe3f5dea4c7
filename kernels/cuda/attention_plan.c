/*
 * attention_plan: pieces and their balance. The unit of work is a chunk of 256 positions, for all queries of a piece. A piece has
 * all chunks that its queries see unless that makes it much longer than the others: then its chunks are shared out among several, and
 * each chunk's result is kept until all are there to be merged in order.
 */
#include "kernels/cuda/attention_plan.h"

#include <assert.h>
#include <string.h>

/* Pieces for each multiprocessor that the work is shared out for: as many as run at once, and a few for balance. */
#define SMALL_PIECES 4u
#define TALL_PIECES 2u

/* Partial results are kept in about this much memory; one full-length row has room in any case. */
#define PARTIAL_BYTES ((size_t)64 << 20)

typedef struct shape {
    uint32_t n_kv_heads;
    uint32_t n_group;      /* query heads of a KV head */
    uint32_t tall_tokens;  /* of a tall piece, at most */
    uint32_t merge_tokens; /* of a merge, at most */
    uint32_t max_chunks;   /* of a row */
} shape;

static uint32_t ceil_div(uint32_t a, uint32_t b) { return a / b + (a % b != 0); }

static uint32_t max_u32(uint32_t a, uint32_t b) { return a > b ? a : b; }

static uint64_t min_u64(uint64_t a, uint64_t b) { return a < b ? a : b; }

static shape shape_of(const kernels_limits *limits) {
    uint32_t n_group = limits->n_heads / limits->layout.n_kv_heads;
    return (shape){.n_kv_heads = limits->layout.n_kv_heads,
                   .n_group = n_group,
                   .tall_tokens = max_u32(1, CUDA_TALL_QUERIES(limits->layout.head_dim) / n_group),
                   .merge_tokens = max_u32(1, CUDA_SMALL_QUERIES / n_group),
                   .max_chunks = ceil_div(limits->session_len, CUDA_CHUNK_TOKENS)};
}

/* (Row or part of one, KV head) pairs that a batch has at most. */
static uint64_t max_pairs(const kernels_limits *limits, const shape *s) {
    return ((uint64_t)limits->max_batch_size + limits->max_step_tokens / s->tall_tokens) * s->n_kv_heads;
}

static uint64_t max_results(const kernels_limits *limits, const shape *s) {
    uint64_t queries = (uint64_t)max_u32(CUDA_SMALL_QUERIES, s->n_group) * s->n_kv_heads * s->max_chunks; /* one row */
    uint64_t kept = PARTIAL_BYTES / (CUDA_PARTIAL_FLOATS(limits->layout.head_dim) * sizeof(float));
    uint64_t all = (uint64_t)limits->max_step_tokens * limits->n_heads * s->max_chunks;
    uint64_t results = min_u64(queries > kept ? queries : kept, all);
    return min_u64(results, CUDA_NO_PARTIAL);
}

void cuda_attention_sizes_get(const kernels_limits *limits, uint32_t n_processors, cuda_attention_sizes *out) {
    shape s = shape_of(limits);
    uint64_t pairs = max_pairs(limits, &s);
    /* Pieces of equal parts: at most one more for each pair than the parts that all the work is shared out to. */
    uint64_t attend = 2 * pairs + (uint64_t)(SMALL_PIECES + TALL_PIECES) * n_processors;
    uint64_t merge = pairs + (uint64_t)limits->max_step_tokens / s.merge_tokens * s.n_kv_heads;
    *out = (cuda_attention_sizes){
        .max_attend = (uint32_t)min_u64(attend, UINT32_MAX),
        .max_merge = (uint32_t)min_u64(merge, UINT32_MAX),
        .partial_bytes = (size_t)max_results(limits, &s) * CUDA_PARTIAL_FLOATS(limits->layout.head_dim) * sizeof(float),
    };
}

/* What a plan is made with. */
typedef struct planner {
    shape s;
    cuda_attend_work *attend;
    cuda_merge_work *merge;
    uint32_t n_attend, n_merge;
    uint32_t max_attend, max_merge;
    uint64_t n_results, max_results;
    uint64_t pairs_left; /* that are not planned yet: each has room for a piece at least */
} planner;

/* Some tokens of a row, and the chunks up to the last of them. */
typedef struct part {
    uint32_t row, first_token, n_tokens, n_chunks;
} part;

static part part_of(const kernels_row *row, uint32_t index, uint32_t first_token, uint32_t n_tokens) {
    return (part){index, first_token, n_tokens,
                  ceil_div(row->first_position + first_token + n_tokens, CUDA_CHUNK_TOKENS)};
}

static void add_merges(planner *p, const part *t, uint32_t kv_head, uint32_t partial) {
    for (uint32_t token = 0; token < t->n_tokens; token += p->s.merge_tokens) {
        uint32_t left = t->n_tokens - token;
        p->merge[p->n_merge++] = (cuda_merge_work){.row = t->row,
                                                   .kv_head = kv_head,
                                                   .first_token = t->first_token + token,
                                                   .n_tokens = left < p->s.merge_tokens ? left : p->s.merge_tokens,
                                                   .partial = partial + token * p->s.n_group,
                                                   .stride = t->n_tokens * p->s.n_group};
    }
}

/* A part's pieces for one KV head, of about `chunks` chunks each. */
static void add_part(planner *p, const part *t, uint32_t kv_head, uint32_t chunks) {
    uint32_t n_pieces = ceil_div(t->n_chunks, chunks), n_queries = t->n_tokens * p->s.n_group;
    uint64_t n_results = (uint64_t)t->n_chunks * n_queries;
    p->pairs_left--;
    if (p->n_attend + n_pieces + p->pairs_left > p->max_attend || p->n_results + n_results > p->max_results ||
        p->n_merge + ceil_div(t->n_tokens, p->s.merge_tokens) > p->max_merge) {
        n_pieces = 1;
    }
    uint32_t partial = n_pieces > 1 ? (uint32_t)p->n_results : CUDA_NO_PARTIAL;
    for (uint32_t i = 0, first = 0; i < n_pieces; i++) {
        uint32_t n = t->n_chunks / n_pieces + (i < t->n_chunks % n_pieces);
        p->attend[p->n_attend++] = (cuda_attend_work){.row = t->row,
                                                      .kv_head = kv_head,
                                                      .first_token = t->first_token,
                                                      .n_tokens = t->n_tokens,
                                                      .first_chunk = first,
                                                      .n_chunks = n,
                                                      .partial = n_pieces > 1 ? partial + first * n_queries : partial};
        first += n;
    }
    if (n_pieces > 1) {
        p->n_results += n_results;
        add_merges(p, t, kv_head, partial);
    }
}

static bool is_small(const shape *s, const kernels_row *row) {
    return (uint64_t)row->n_tokens * s->n_group <= CUDA_SMALL_QUERIES;
}

/* Calls for each part of a kind; the last tokens of a row, which see the most, first. */
typedef struct walk {
    const kernels_batch *batch;
    bool small;
    uint32_t row, left; /* tokens of the row that are not walked yet */
} walk;

static bool walk_next(walk *w, const shape *s, part *out) {
    for (; w->row < w->batch->n_rows; w->row++, w->left = UINT32_MAX) {
        const kernels_row *row = &w->batch->rows[w->row];
        if (is_small(s, row) != w->small) {
            continue;
        }
        w->left = w->left == UINT32_MAX ? row->n_tokens : w->left;
        if (w->left > 0) {
            uint32_t first = w->small ? 0 : (w->left - 1) / s->tall_tokens * s->tall_tokens;
            *out = part_of(row, w->row, first, w->left - first);
            w->left = first;
            return true;
        }
    }
    return false;
}

/* The pieces of one kind, shared out for n_pieces that are alike. */
static void add_kind(planner *p, const kernels_batch *batch, bool small, uint32_t n_pieces) {
    uint64_t n_chunks = 0;
    part t;
    for (walk w = {batch, small, 0, UINT32_MAX}; walk_next(&w, &p->s, &t);) {
        n_chunks += (uint64_t)t.n_chunks * p->s.n_kv_heads;
    }
    uint64_t chunks = n_chunks / n_pieces + (n_chunks % n_pieces != 0);
    for (walk w = {batch, small, 0, UINT32_MAX}; walk_next(&w, &p->s, &t);) {
        for (uint32_t kv_head = 0; kv_head < p->s.n_kv_heads; kv_head++) {
            add_part(p, &t, kv_head, (uint32_t)min_u64(max_u32(1, (uint32_t)chunks), UINT32_MAX));
        }
    }
}

void cuda_attention_plan(const kernels_limits *limits, uint32_t n_processors, const kernels_batch *batch,
                         cuda_attend_work *attend, uint32_t *n_attend, cuda_merge_work *merge, uint32_t *n_merge) {
    cuda_attention_sizes sizes;
    cuda_attention_sizes_get(limits, n_processors, &sizes);
    planner p = {.s = shape_of(limits),
                 .attend = attend,
                 .merge = merge,
                 .max_attend = sizes.max_attend,
                 .max_merge = sizes.max_merge};
    p.max_results = max_results(limits, &p.s);
    part t;
    for (int small = 0; small < 2; small++) {
        for (walk w = {batch, small, 0, UINT32_MAX}; walk_next(&w, &p.s, &t);) {
            p.pairs_left += p.s.n_kv_heads;
        }
    }
    add_kind(&p, batch, true, SMALL_PIECES * n_processors);
    uint32_t n_small = p.n_attend;
    add_kind(&p, batch, false, TALL_PIECES * n_processors);
    assert(p.n_attend <= p.max_attend && p.n_merge <= p.max_merge);
    if (p.n_attend > 0) {
        attend[0].n_small = n_small;
    }
    *n_attend = p.n_attend;
    *n_merge = p.n_merge;
}
