/*
 * attention_plan: on random batches every token meets every chunk once, partial results have places of their own and what was
 * promised is never exceeded; typical batches are shared out evenly.
 */
#include "kernels/cuda/attention_plan.h"
#include "tests/support/check.h"

#include <stdlib.h>
#include <string.h>

#define GUARD 0xa5
#define MAX_ROWS 300u

typedef struct plan {
    kernels_limits limits;
    cuda_attention_sizes sizes;
    cuda_attend_work *attend; /* a piece of guard behind each */
    cuda_merge_work *merge;
    uint32_t n_attend, n_merge;
    uint32_t n_group;
    uint32_t max_partials;
} plan;

static uint32_t min_u32(uint32_t a, uint32_t b) { return a < b ? a : b; }

static uint32_t chunks_of(uint32_t n_tokens) { return (n_tokens + CUDA_CHUNK_TOKENS - 1) / CUDA_CHUNK_TOKENS; }

static kernels_limits limits_of(uint32_t n_heads, uint32_t n_kv_heads, uint32_t head_dim, uint32_t max_step_tokens,
                                uint32_t max_batch_size, uint32_t session_len) {
    return (kernels_limits){.max_step_tokens = max_step_tokens,
                            .max_batch_size = max_batch_size,
                            .session_len = session_len,
                            .n_heads = n_heads,
                            .layout = {.n_kv_heads = n_kv_heads, .head_dim = head_dim}};
}

static void *allocate(size_t bytes) {
    void *p = malloc(bytes);
    CU_ASSERT_FATAL(p != NULL);
    memset(p, GUARD, bytes);
    return p;
}

static bool is_guard(const void *p, size_t bytes) {
    for (size_t i = 0; i < bytes; i++) {
        if (((const uint8_t *)p)[i] != GUARD) {
            return false;
        }
    }
    return true;
}

static void plan_make(plan *p, const kernels_limits *limits, uint32_t n_processors, const kernels_batch *batch) {
    p->limits = *limits;
    p->n_group = limits->n_heads / limits->layout.n_kv_heads;
    cuda_attention_sizes_get(limits, n_processors, &p->sizes);
    size_t result_bytes = CUDA_PARTIAL_FLOATS(limits->layout.head_dim) * sizeof(float);
    p->max_partials = (uint32_t)(p->sizes.partial_bytes / result_bytes);
    p->attend = allocate((p->sizes.max_attend + 1) * sizeof *p->attend);
    p->merge = allocate((p->sizes.max_merge + 1) * sizeof *p->merge);
    cuda_attention_plan(limits, n_processors, batch, p->attend, &p->n_attend, p->merge, &p->n_merge);
    CHECK_MSG(p->n_attend <= p->sizes.max_attend && p->n_merge <= p->sizes.max_merge,
              "%u of %u pieces, %u of %u merges", p->n_attend, p->sizes.max_attend, p->n_merge, p->sizes.max_merge);
    CU_ASSERT(is_guard(&p->attend[p->n_attend], sizeof *p->attend));
    CU_ASSERT(is_guard(&p->merge[p->n_merge], sizeof *p->merge));
}

static void plan_free(plan *p) {
    free(p->attend);
    free(p->merge);
}

/* rows' first tokens follow from their lengths. */
static kernels_batch batch_of(kernels_row *rows, uint32_t n_rows) {
    uint32_t n = 0;
    for (uint32_t i = 0; i < n_rows; i++) {
        rows[i].first_token = n;
        n += rows[i].n_tokens;
    }
    return (kernels_batch){.n_tokens = n, .n_rows = n_rows, .rows = rows};
}

/* ---------------------------------------------------------------- coverage */

/* What is known of a (token, KV head): its tile's chunks, those so far, and where the first's partial result of its first query lies. */
typedef struct seat {
    uint32_t n_chunks, first_chunk, tile_chunks;
    uint64_t chunk_sum; /* of the chunks' numbers: with disjoint ranges and their count it says which */
    int64_t partial;    /* -1: it has none */
    uint32_t n_merges;
} seat;

static int by_begin(const void *a, const void *b) {
    const uint32_t *x = a, *y = b;
    return x[0] < y[0] ? -1 : x[0] > y[0];
}

/* Ranges [begin, end) don't meet, and end within what there is. */
static void check_disjoint(uint32_t (*ranges)[2], size_t n, uint32_t most) {
    qsort(ranges, n, sizeof *ranges, by_begin);
    for (size_t i = 0; i < n; i++) {
        CHECK_MSG(ranges[i][0] < ranges[i][1] && ranges[i][1] <= (i + 1 < n ? ranges[i + 1][0] : most),
                  "[%u, %u) of %u, then %u", ranges[i][0], ranges[i][1], most, i + 1 < n ? ranges[i + 1][0] : most);
    }
}

/* The first chunk of which the row's token sees something. */
static uint32_t first_of(const plan *p, const kernels_row *row, uint32_t token) {
    uint32_t end = row->first_position + token + 1;
    return p->limits.window != 0 && end > p->limits.window ? (end - p->limits.window) / CUDA_CHUNK_TOKENS : 0;
}

static void take_piece(const plan *p, const kernels_batch *batch, uint32_t i, uint32_t n_small, seat *seats) {
    const cuda_attend_work *w = &p->attend[i];
    const kernels_row *row = &batch->rows[w->row];
    uint32_t n_kv_heads = p->limits.layout.n_kv_heads;
    bool small = row->n_tokens * p->n_group <= CUDA_SMALL_QUERIES;
    CHECK_MSG(small == (i < n_small), "piece %u of row %u, %u small ones", i, w->row, n_small);
    CU_ASSERT(i == 0 || w->n_small == 0);
    CU_ASSERT(small ? w->n_tokens == row->n_tokens
                    : w->n_tokens == 1 || w->n_tokens * p->n_group <= CUDA_TALL_QUERIES(p->limits.layout.head_dim));
    CU_ASSERT_FATAL(w->row < batch->n_rows && w->kv_head < n_kv_heads && w->first_token + w->n_tokens <= row->n_tokens);
    uint32_t first = first_of(p, row, w->first_token);
    uint32_t n_chunks = chunks_of(row->first_position + w->first_token + w->n_tokens) - first;
    CHECK_MSG(w->n_chunks >= 1 && w->first_chunk >= first && w->first_chunk + w->n_chunks <= first + n_chunks,
              "chunks %u + %u of %u + %u", w->first_chunk, w->n_chunks, first, n_chunks);
    CU_ASSERT(w->partial != CUDA_NO_PARTIAL || w->n_chunks == n_chunks);
    for (uint32_t t = 0; t < w->n_tokens; t++) {
        seat *s = &seats[(row->first_token + w->first_token + t) * n_kv_heads + w->kv_head];
        int64_t partial =
            w->partial == CUDA_NO_PARTIAL
                ? -1
                : (int64_t)w->partial + t * p->n_group - (int64_t)(w->first_chunk - first) * w->n_tokens * p->n_group;
        CU_ASSERT(s->n_chunks == 0 || (s->partial == partial && s->tile_chunks == n_chunks));
        s->partial = partial;
        s->first_chunk = first;
        s->tile_chunks = n_chunks;
        s->n_chunks += w->n_chunks;
        s->chunk_sum += (uint64_t)w->n_chunks * (2 * (uint64_t)(w->first_chunk - first) + w->n_chunks - 1) / 2;
    }
}

static void take_merge(const plan *p, const kernels_batch *batch, const cuda_merge_work *w, seat *seats) {
    const kernels_row *row = &batch->rows[w->row];
    uint32_t n_kv_heads = p->limits.layout.n_kv_heads;
    CU_ASSERT(w->n_tokens == 1 || w->n_tokens * p->n_group <= CUDA_SMALL_QUERIES);
    CU_ASSERT_FATAL(w->row < batch->n_rows && w->kv_head < n_kv_heads && w->first_token + w->n_tokens <= row->n_tokens);
    for (uint32_t t = 0; t < w->n_tokens; t++) {
        seat *s = &seats[(row->first_token + w->first_token + t) * n_kv_heads + w->kv_head];
        CU_ASSERT(s->partial == (int64_t)w->partial + t * p->n_group && s->first_chunk == w->first_chunk);
        s->n_merges++;
    }
}

static void check_plan(const plan *p, const kernels_batch *batch) {
    uint32_t n_kv_heads = p->limits.layout.n_kv_heads, n_small = p->n_attend == 0 ? 0 : p->attend[0].n_small;
    seat *seats = calloc((size_t)batch->n_tokens * n_kv_heads, sizeof *seats);
    uint32_t(*ranges)[2] = calloc(p->n_attend + 1, sizeof *ranges);
    uint32_t(*chunks)[2] = calloc(p->n_attend + 1, sizeof *chunks);
    CU_ASSERT_FATAL(seats != NULL && ranges != NULL && chunks != NULL);
    size_t n_ranges = 0;
    for (uint32_t i = 0; i < p->n_attend; i++) {
        const cuda_attend_work *w = &p->attend[i];
        take_piece(p, batch, i, n_small, seats);
        if (w->partial != CUDA_NO_PARTIAL) {
            ranges[n_ranges][0] = w->partial;
            ranges[n_ranges++][1] = w->partial + w->n_chunks * w->n_tokens * p->n_group;
        }
        /* A tile's pieces follow one another, a head in each place: their chunks don't meet. */
        size_t n_chunks = 0;
        uint32_t first = first_of(p, &batch->rows[w->row], w->first_token);
        for (uint32_t j = i; w->first_chunk == first && j < p->n_attend && p->attend[j].row == w->row &&
                             p->attend[j].first_token == w->first_token;
             j += n_kv_heads) {
            CU_ASSERT(p->attend[j].kv_head == w->kv_head);
            chunks[n_chunks][0] = p->attend[j].first_chunk;
            chunks[n_chunks++][1] = p->attend[j].first_chunk + p->attend[j].n_chunks;
        }
        check_disjoint(chunks, n_chunks, UINT32_MAX);
    }
    check_disjoint(ranges, n_ranges, p->max_partials);
    for (uint32_t i = 0; i < p->n_merge; i++) {
        take_merge(p, batch, &p->merge[i], seats);
    }
    for (uint32_t t = 0; t < batch->n_tokens * n_kv_heads; t++) {
        const seat *s = &seats[t];
        CU_ASSERT(s->n_chunks != 0 && s->n_chunks == s->tile_chunks);
        CU_ASSERT(s->chunk_sum == (uint64_t)s->n_chunks * (s->n_chunks - 1) / 2);
        CU_ASSERT(s->n_merges == (s->partial >= 0));
    }
    free(seats);
    free(ranges);
    free(chunks);
}

static void every_token_meets_every_chunk_once(void) {
    static const uint32_t head_dims[] = {8, 64, 128, 256};
    test_rng rng = {test_seed(31)};
    for (uint64_t round = 0; round < test_scaled(400); round++) {
        uint32_t n_kv_heads = 1 + (uint32_t)test_rng_below(&rng, 9);
        uint32_t n_group = 1 + (uint32_t)test_rng_below(&rng, round % 8 == 0 ? 200 : 20);
        uint32_t max_step_tokens = 1 + (uint32_t)test_rng_below(&rng, round % 3 == 0 ? 3000 : 60);
        uint32_t max_rows = min_u32(1 + (uint32_t)test_rng_below(&rng, 40), max_step_tokens);
        uint32_t session_len = 1 + (uint32_t)test_rng_below(&rng, round % 5 == 0 ? 200000 : 4000);
        kernels_limits limits = limits_of(n_kv_heads * n_group, n_kv_heads, head_dims[test_rng_below(&rng, 4)],
                                          max_step_tokens, max_rows, session_len);
        limits.window = test_rng_below(&rng, 2) == 0 ? 0 : 1 + (uint32_t)test_rng_below(&rng, 2 * session_len);
        kernels_row rows[MAX_ROWS] = {{.n_tokens = 0}};
        uint32_t n_rows = 0, left = max_step_tokens;
        while (n_rows < max_rows && left > 0 && (n_rows == 0 || test_rng_below(&rng, 30) != 0)) {
            uint32_t most = min_u32(left, session_len);
            kernels_row *row = &rows[n_rows++];
            row->n_tokens = test_rng_below(&rng, 2) == 0 ? 1 : 1 + (uint32_t)test_rng_below(&rng, most);
            row->first_position = (uint32_t)test_rng_below(&rng, session_len - row->n_tokens + 1);
            left -= row->n_tokens;
        }
        kernels_batch batch = batch_of(rows, n_rows);
        plan p;
        plan_make(&p, &limits, 1 + (uint32_t)test_rng_below(&rng, 150), &batch);
        check_plan(&p, &batch);
        plan_free(&p);
    }
}

/* ---------------------------------------------------------------- balance */

/* How long CTAs take that draw the plan's pieces of one kind in order, against an even share; chunks are the unit. */
static double imbalance(const plan *p, bool small, uint32_t n_ctas) {
    uint32_t n_small = p->n_attend == 0 ? 0 : p->attend[0].n_small, most = 0;
    uint32_t *busy = calloc(n_ctas, sizeof *busy);
    CU_ASSERT_FATAL(busy != NULL);
    uint64_t total = 0;
    for (uint32_t i = small ? 0 : n_small; i < (small ? n_small : p->n_attend); i++) {
        uint32_t first_free = 0;
        for (uint32_t c = 1; c < n_ctas; c++) {
            first_free = busy[c] < busy[first_free] ? c : first_free;
        }
        busy[first_free] += p->attend[i].n_chunks;
        most = busy[first_free] > most ? busy[first_free] : most;
        total += p->attend[i].n_chunks;
    }
    free(busy);
    return total == 0 ? 1 : most / (((double)total + n_ctas - 1) / n_ctas);
}

#define PROCESSORS 132u

/* Llama-3.1-8B's heads. */
static kernels_limits usual_limits(uint32_t session_len) { return limits_of(32, 8, 128, 8192, 256, session_len); }

static void check_balance(const char *what, kernels_row *rows, uint32_t n_rows, uint32_t session_len, double small_most,
                          double tall_most) {
    kernels_limits limits = usual_limits(session_len);
    kernels_batch batch = batch_of(rows, n_rows);
    plan p;
    plan_make(&p, &limits, PROCESSORS, &batch);
    check_plan(&p, &batch);
    double small = imbalance(&p, true, 3 * PROCESSORS), tall = imbalance(&p, false, PROCESSORS);
    CHECK_MSG(small <= small_most && tall <= tall_most, "%s: %.2f and %.2f times an even share", what, small, tall);
    plan_free(&p);
}

static void typical_batches_are_shared_out_evenly(void) {
    kernels_row rows[MAX_ROWS] = {{.n_tokens = 0}};
    test_rng rng = {test_seed(32)};
    for (uint32_t i = 0; i < 256; i++) {
        rows[i] = (kernels_row){.n_tokens = 1, .first_position = 1023};
    }
    check_balance("256 rows at 1k", rows, 256, 8192, 1.1, 1);
    check_balance("64 rows at 1k", rows, 64, 8192, 1.05, 1);
    for (uint32_t i = 0; i < 256; i++) {
        rows[i].first_position = (uint32_t)test_rng_below(&rng, 8000);
    }
    check_balance("256 rows anywhere below 8k", rows, 256, 8192, 1.1, 1);
    rows[0] = (kernels_row){.n_tokens = 1, .first_position = 131071};
    check_balance("1 row at 128k", rows, 1, 131072, 1.05, 1);
    rows[0] = (kernels_row){.n_tokens = 8192};
    check_balance("8k of prefill", rows, 1, 8192, 1, 1.05);
    rows[0] = (kernels_row){.n_tokens = 50, .first_position = 30000};
    check_balance("50 tokens at 30k", rows, 1, 131072, 1, 1.05);
    rows[0] = (kernels_row){.n_tokens = 560, .first_position = 7000};
    check_balance("560 tokens at 7k", rows, 1, 8192, 1, 1.05);
    for (uint32_t i = 0; i < 200; i++) {
        rows[i] = (kernels_row){.n_tokens = i % 10 == 0 ? 300 : 1, .first_position = 100 * (i % 70)};
    }
    check_balance("decode and prefill", rows, 200, 8192, 1.1, 1.05);
}

/*
 * With a window of 4,096 a token at a million costs what one at 4,096 does: rows of both are shared out as if they were alike, and
 * partial results take no more memory for a session of a million tokens than for one of 8,192.
 */
static void what_lies_before_a_window_costs_nothing(void) {
    kernels_row rows[64] = {{.n_tokens = 0}};
    kernels_limits limits = usual_limits(1u << 20);
    cuda_attention_sizes sizes, of_short;
    limits.window = 4096;
    limits.max_step_tokens = 64;
    plan p;
    for (uint32_t i = 0; i < 64; i++) {
        rows[i] = (kernels_row){.n_tokens = 1, .first_position = i % 2 == 0 ? 4095 : 999936 + 256 * i + 255};
    }
    kernels_batch batch = batch_of(rows, 64);
    plan_make(&p, &limits, PROCESSORS, &batch);
    check_plan(&p, &batch);
    uint64_t total = 0;
    for (uint32_t i = 0; i < p.n_attend; i++) {
        total += p.attend[i].n_chunks;
    }
    CHECK_MSG(total == (uint64_t)64 * 8 * 16, "%llu chunks", (unsigned long long)total);
    double small = imbalance(&p, true, 3 * PROCESSORS);
    CHECK_MSG(small <= 1.15, "%.2f times an even share", small);
    plan_free(&p);
    cuda_attention_sizes_get(&limits, PROCESSORS, &sizes);
    limits.session_len = 8192;
    limits.window = 0;
    cuda_attention_sizes_get(&limits, PROCESSORS, &of_short);
    CHECK_MSG(sizes.partial_bytes <= of_short.partial_bytes, "%zu bytes, %zu for short sessions", sizes.partial_bytes,
              of_short.partial_bytes);
    limits.session_len = 1u << 20;
    limits.window = 1;
    limits.max_step_tokens = 1;
    cuda_attention_sizes_get(&limits, PROCESSORS, &sizes);
    CU_ASSERT(sizes.partial_bytes == 0 && sizes.max_merge == 0);
}

static void lower_tiles_where_there_is_little(void) {
    kernels_row row = {.n_tokens = 256};
    kernels_limits limits = usual_limits(8192);
    kernels_batch batch = batch_of(&row, 1);
    plan p;
    plan_make(&p, &limits, PROCESSORS, &batch);
    check_plan(&p, &batch);
    CHECK_MSG(p.n_attend == 128 && p.n_merge == 0, "%u pieces, %u merges", p.n_attend, p.n_merge);
    plan_free(&p);
}

static void long_prefill_leaves_few_partial_results(void) {
    kernels_row row = {.n_tokens = 8192};
    kernels_limits limits = usual_limits(8192);
    kernels_batch batch = batch_of(&row, 1);
    plan p;
    plan_make(&p, &limits, PROCESSORS, &batch);
    CHECK_MSG(p.n_merge * CUDA_SMALL_QUERIES < batch.n_tokens * limits.n_heads / 8, "%u merges", p.n_merge);
    plan_free(&p);
}

static void partial_results_take_little_memory(void) {
    const size_t mib = (size_t)1 << 20;
    cuda_attention_sizes sizes;
    kernels_limits limits = usual_limits(8192);
    cuda_attention_sizes_get(&limits, PROCESSORS, &sizes);
    CHECK_MSG(sizes.partial_bytes <= 128 * mib && sizes.max_attend <= 8192 && sizes.max_merge <= 8192,
              "%zu bytes, %u pieces, %u merges", sizes.partial_bytes, sizes.max_attend, sizes.max_merge);
    limits = limits_of(256, 8, 256, 65536, 4096, 1u << 20);
    cuda_attention_sizes_get(&limits, PROCESSORS, &sizes);
    CHECK_MSG(sizes.partial_bytes <= 256 * mib, "%zu bytes", sizes.partial_bytes);
    limits = limits_of(4, 2, 16, 64, 4, 512);
    cuda_attention_sizes_get(&limits, PROCESSORS, &sizes);
    CHECK_MSG(sizes.partial_bytes <= mib, "%zu bytes", sizes.partial_bytes);
    limits.session_len = CUDA_CHUNK_TOKENS; /* there is nothing to merge */
    cuda_attention_sizes_get(&limits, PROCESSORS, &sizes);
    CU_ASSERT(sizes.partial_bytes == 0 && sizes.max_merge == 0);
}

static const test_case tests[] = {
    {"every token meets every chunk once", every_token_meets_every_chunk_once},
    {"typical batches are shared out evenly", typical_batches_are_shared_out_evenly},
    {"what lies before a window costs nothing", what_lies_before_a_window_costs_nothing},
    {"lower tiles where there is little", lower_tiles_where_there_is_little},
    {"long prefill leaves few partial results", long_prefill_leaves_few_partial_results},
    {"partial results take little memory", partial_results_take_little_memory},
};

int main(int argc, char **argv) {
    return test_main("attention_plan_test", tests, sizeof tests / sizeof tests[0], argc, argv);
}
