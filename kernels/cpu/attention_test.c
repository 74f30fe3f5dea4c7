/*
 * Rotary embedding, the KV cache and attention against the reference in double: sequences that grow by chunks over what is
 * cached, many rows a step, all classes of head size, groups of heads, windows, and both mappings of KV memory.
 */
#include "kernels/cpu/pair_testing.h"

#include "kernels/cpu/convert.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define U 0x1p-24
#define COUNT(a) (sizeof(a) / sizeof(a)[0])
#define MAX_ROWS 4u
#define MAX_LENGTH 200u

typedef enum memory { VMM, TABLE, HEAP, N_MEMORIES } memory; /* HEAP: each group is a piece of its own */

static const char *const memory_names[] = {"vmm", "table", "heap"};

typedef struct shape {
    kernels_attention attention;
    uint32_t n_rows;
    uint32_t lengths[MAX_ROWS];
    memory memory;
    bool rotated;    /* by real angles; else by 0, so that K is exactly what was put in */
    float amplitude; /* of q and k */
} shape;

/* One backend's KV memory of the sequences. */
typedef struct cache {
    side s;
    memory memory;
    uint8_t **blocks[MAX_ROWS]; /* HEAP: [n_groups] */
    kv_view views[MAX_ROWS];
} cache;

static uint32_t n_groups(uint32_t length) { return (length + KV_GROUP_TOKENS - 1) / KV_GROUP_TOKENS; }

/* Slots get the pages that their groups reach into and no more: what lies behind is not mapped. Pages in random order. */
static void cache_open_slots(cache *c, const shape *sh, test_rng *rng) {
    uint64_t group_bytes = sh->attention.layout.group_bytes, slot_bytes = n_groups(MAX_LENGTH) * group_bytes;
    uint64_t granularity = c->memory == TABLE ? group_bytes : c->s.b->kv_page_granularity(c->s.d);
    uint64_t page_bytes = granularity * (1 + test_rng_below(rng, 3));
    uint32_t pages_per_slot = (uint32_t)((slot_bytes + page_bytes - 1) / page_bytes);
    uint32_t n_pages = pages_per_slot * sh->n_rows, n = 0;
    const kernels_kv kv = {.mapping = c->memory == TABLE ? KERNELS_TABLE : KERNELS_VMM,
                           .page_bytes = page_bytes,
                           .group_bytes = group_bytes,
                           .n_pages = n_pages,
                           .n_slots = sh->n_rows,
                           .pages_per_slot = pages_per_slot};
    CHECK_OK(c->s.b->kv_open(c->s.d, &kv, ERR));
    uint32_t *order = test_alloc(n_pages * sizeof *order);
    for (uint32_t i = 0; i < n_pages; i++) {
        uint32_t at = (uint32_t)test_rng_below(rng, i + 1);
        order[i] = order[at];
        order[at] = i;
    }
    for (uint32_t r = 0; r < sh->n_rows; r++) {
        uint64_t bytes = n_groups(sh->lengths[r]) * group_bytes;
        for (uint32_t i = 0; i < (bytes + page_bytes - 1) / page_bytes; i++) {
            kv_command map = {.op = KV_MAP, .slot = r, .index = i, .page = order[n++]};
            CHECK_OK(c->s.b->kv_execute(c->s.d, &map, 1, ERR));
        }
        c->views[r] = c->s.b->kv_slot(c->s.d, r);
        for (uint32_t g = 0; g < n_groups(sh->lengths[r]); g++) { /* NaN: what a page that was used before may hold */
            uint8_t *group = c->views[r].blocks ? c->views[r].blocks[g] : c->views[r].base + g * group_bytes;
            memset(group, 0xff, group_bytes);
        }
    }
    free(order);
}

static void cache_open_heap(cache *c, const shape *sh) {
    for (uint32_t r = 0; r < sh->n_rows; r++) {
        uint32_t n = n_groups(sh->lengths[r]);
        c->blocks[r] = test_alloc(n * sizeof *c->blocks[r]);
        for (uint32_t g = 0; g < n; g++) {
            c->blocks[r][g] = test_alloc(sh->attention.layout.group_bytes);
            memset(c->blocks[r][g], 0xff, sh->attention.layout.group_bytes);
        }
        c->views[r].blocks = c->blocks[r];
    }
}

static void cache_open(cache *c, const shape *sh, test_rng *rng) {
    if (c->memory == HEAP) {
        cache_open_heap(c, sh);
    } else {
        cache_open_slots(c, sh, rng);
    }
}

static void cache_close(cache *c, const shape *sh) {
    for (uint32_t r = 0; r < sh->n_rows && c->memory == HEAP; r++) {
        for (uint32_t g = 0; g < n_groups(sh->lengths[r]); g++) {
            free(c->blocks[r][g]);
        }
        free(c->blocks[r]);
    }
    c->s.b->kv_close(c->s.d);
}

/* cos and sin of Llama's angles, or of 0. */
static float *rotation_table(const shape *sh) {
    uint32_t half = sh->attention.layout.head_dim / 2;
    float *table = test_alloc((size_t)MAX_LENGTH * half * 2 * sizeof *table);
    for (uint32_t p = 0; p < MAX_LENGTH; p++) {
        for (uint32_t i = 0; i < half; i++) {
            double angle = sh->rotated ? p * pow(10000, -(double)i / half) : 0;
            table[((size_t)p * half + i) * 2] = (float)cos(angle);
            table[((size_t)p * half + i) * 2 + 1] = (float)sin(angle);
        }
    }
    return table;
}

typedef struct step {
    kernels_batch batch;
    kernels_row rows[MAX_ROWS];
    uint32_t positions[MAX_ROWS * MAX_LENGTH];
    uint32_t token_row[MAX_ROWS * MAX_LENGTH];
} step;

/* A random chunk of some of the sequences; done[r] tokens are cached. */
static void step_plan(step *st, const shape *sh, uint32_t *done, test_rng *rng) {
    uint32_t n = 0, n_rows = 0;
    uint32_t at_most = test_rng_below(rng, 2) ? 1 : 1 + (uint32_t)test_rng_below(rng, 130);
    for (uint32_t r = 0; r < sh->n_rows; r++) {
        uint32_t left = sh->lengths[r] - done[r];
        if (left == 0 || (n_rows > 0 && test_rng_below(rng, 3) == 0)) {
            continue;
        }
        uint32_t take = 1 + (uint32_t)test_rng_below(rng, at_most);
        take = take < left ? take : left;
        st->rows[n_rows] = (kernels_row){.first_token = n, .n_tokens = take, .first_position = done[r]};
        st->rows[n_rows].kv.base = (uint8_t *)(uintptr_t)r; /* the sequence; a side puts its view there */
        for (uint32_t i = 0; i < take; i++) {
            st->positions[n] = done[r] + i;
            st->token_row[n++] = n_rows;
        }
        done[r] += take;
        n_rows++;
    }
    st->batch = (kernels_batch){
        .n_tokens = n, .n_rows = n_rows, .positions = st->positions, .token_row = st->token_row, .rows = st->rows};
}

/* Runs one side's step. qkv as it was put in; *out gets [n_tokens][n_heads * D]. */
static void step_run(const step *st, const cache *c, const shape *sh, const float *table, const float *qkv,
                     double *out) {
    uint32_t head_dim = sh->attention.layout.head_dim, n_heads = sh->attention.n_heads;
    uint32_t n = st->batch.n_tokens, stride = (n_heads + 2 * sh->attention.layout.n_kv_heads) * head_dim;
    kernels_row rows[MAX_ROWS];
    kernels_batch batch = st->batch;
    for (uint32_t r = 0; r < batch.n_rows; r++) {
        rows[r] = st->rows[r];
        rows[r].kv = c->views[(uintptr_t)st->rows[r].kv.base];
    }
    batch.rows = rows;
    side s = c->s;
    void *in = side_activations(s, qkv, (size_t)n * stride);
    void *result = side_activations(s, NULL, (size_t)n * n_heads * head_dim);
    float *angles = side_floats(s, table, (size_t)MAX_LENGTH * head_dim);
    CHECK_OK(s.b->rope_write(s.d, &batch, &sh->attention, angles, in, ERR));
    CHECK_OK(s.b->attention(s.d, &batch, &sh->attention, in, result, ERR));
    side_read(s, result, (size_t)n * n_heads * head_dim, out);
    s.b->free(s.d, in);
    s.b->free(s.d, result);
    s.b->free(s.d, angles);
}

/* Values that bf16 holds exactly, so that both sides start from the same. */
static void random_qkv(test_rng *rng, const shape *sh, bool bf16, float *qkv, size_t n_tokens) {
    size_t head_dim = sh->attention.layout.head_dim, n_kv = sh->attention.layout.n_kv_heads;
    size_t n_rotated = (sh->attention.n_heads + n_kv) * head_dim, stride = n_rotated + n_kv * head_dim;
    random_floats(rng, qkv, n_tokens * stride);
    for (size_t i = 0; i < n_tokens * stride; i++) {
        qkv[i] *= i % stride < n_rotated ? sh->amplitude : 1;
        qkv[i] = bf16 ? bf16_to_f32(f32_to_bf16(qkv[i])) : qkv[i];
    }
}

/*
 * The values are averages of numbers of at most 1. A score is a sum of D products of at most amplitude² with a rounding
 * each, times scale: an error δ there is a relative error δ of the weight. The exponential, the sums over up to 200
 * positions and the division add some ten roundings more, growing as the square root. With real angles in bf16 K and q are
 * rounded from sides that differ in the last bit of f32, so that now and then one of them goes to the other neighbour:
 * 2^-8 relative in one of D elements.
 */
static double attention_tolerance(const shape *sh, bool bf16) {
    double head_dim = sh->attention.layout.head_dim;
    double score = fabs((double)sh->attention.scale) * (double)sh->amplitude * (double)sh->amplitude;
    double tolerance = (40 + 4 * score * head_dim * sqrt(head_dim)) * U;
    return bf16 && sh->rotated ? tolerance + score * 4 * 0x1p-8 : tolerance;
}

/* Two sides go through the same steps, each with its own memory. */
static void sequences_grow(const pair *p, cache *caches, const shape *sh, double tolerance, test_rng *rng) {
    size_t width = (size_t)sh->attention.n_heads * sh->attention.layout.head_dim;
    size_t stride = width + (size_t)2 * sh->attention.layout.n_kv_heads * sh->attention.layout.head_dim;
    size_t n_most = MAX_ROWS * 130;
    float *table = rotation_table(sh), *qkv = test_alloc(n_most * stride * sizeof *qkv);
    double *results[2] = {test_alloc(n_most * width * sizeof(double)), test_alloc(n_most * width * sizeof(double))};
    step *st = test_alloc(sizeof *st);
    uint32_t done[MAX_ROWS] = {0};
    for (size_t k = 0; k < 2; k++) {
        cache_open(&caches[k], sh, rng);
    }
    for (bool more = true; more;) {
        step_plan(st, sh, done, rng);
        more = st->batch.n_tokens > 0;
        random_qkv(rng, sh, p->bf16, qkv, st->batch.n_tokens);
        for (size_t k = 0; k < 2 && more; k++) {
            step_run(st, &caches[k], sh, table, qkv, results[k]);
        }
        double error = worst_error(results[0], results[1], NULL, st->batch.n_tokens * width);
        CHECK_MSG(
            error <= tolerance,
            "%s bf16=%d, %u heads over %u, D %u, window %u, %s and %s, rotated %d, amplitude %g, %u tokens: %g > %g",
            p->isa, p->bf16, sh->attention.n_heads, sh->attention.layout.n_kv_heads, sh->attention.layout.head_dim,
            sh->attention.window, memory_names[caches[0].memory], memory_names[caches[1].memory], sh->rotated,
            (double)sh->amplitude, st->batch.n_tokens, error, tolerance);
        for (size_t i = 0; i < MAX_ROWS; i++) {
            more = more || (i < sh->n_rows && done[i] < sh->lengths[i]);
        }
    }
    for (size_t k = 0; k < 2; k++) {
        cache_close(&caches[k], sh);
        free(results[k]);
    }
    free(st);
    free(table);
    free(qkv);
}

static void against_the_reference(const pair *p, const shape *sh, test_rng *rng) {
    cache caches[2] = {{.s = p->cpu, .memory = sh->memory}, {.s = p->reference, .memory = sh->memory}};
    sequences_grow(p, caches, sh, attention_tolerance(sh, p->bf16), rng);
}

static shape random_shape(test_rng *rng, uint32_t head_dim, bool bf16) {
    static const size_t windows[] = {0, 0, 0, 1, 7, 16, 63, 64, 65, 100, 1000};
    shape sh = {.n_rows = 1 + (uint32_t)test_rng_below(rng, MAX_ROWS),
                .memory = (memory)test_rng_below(rng, N_MEMORIES)};
    sh.rotated = test_rng_below(rng, 2);
    sh.amplitude = test_rng_below(rng, 3) == 0 ? 8 : 1;
    for (uint32_t r = 0; r < sh.n_rows; r++) {
        sh.lengths[r] = 1 + (uint32_t)test_rng_below(rng, test_rng_below(rng, 2) ? MAX_LENGTH : 80);
    }
    kv_layout *layout = &sh.attention.layout;
    layout->n_layers = 1 + (uint32_t)test_rng_below(rng, 3);
    layout->n_kv_heads = 1 + (uint32_t)test_rng_below(rng, 3);
    layout->head_dim = head_dim;
    layout->element_bytes = bf16 ? 2 : 4;
    layout->group_bytes =
        (uint64_t)layout->n_layers * layout->n_kv_heads * 2 * KV_GROUP_TOKENS * head_dim * layout->element_bytes;
    sh.attention.layer = (uint32_t)test_rng_below(rng, layout->n_layers);
    sh.attention.n_heads = layout->n_kv_heads * (1 + (uint32_t)test_rng_below(rng, 8));
    sh.attention.window = (uint32_t)random_from(rng, windows, COUNT(windows));
    sh.attention.scale = (float)(1 / sqrt(head_dim));
    return sh;
}

static void attention_on(const pair *p, test_rng *rng) {
    static const uint32_t head_dims[] = {2, 8, 16, 20, 32, 48, 64, 80, 96, 128, 160, 256};
    for (size_t i = 0; i < COUNT(head_dims); i++) {
        for (uint64_t k = 0; k < test_scaled(1); k++) {
            shape sh = random_shape(rng, head_dims[i], p->bf16);
            against_the_reference(p, &sh, rng);
        }
    }
}

static void attention_agrees_with_the_reference(void) { pair_each(2, attention_on); }

/* More query heads to a KV head than are taken at once. */
static void wide_groups_on(const pair *p, test_rng *rng) {
    shape sh = random_shape(rng, 32, p->bf16);
    sh.attention.n_heads = 29 * sh.attention.layout.n_kv_heads;
    against_the_reference(p, &sh, rng);
}

static void attention_takes_many_heads_to_a_kv_head(void) { pair_each(2, wide_groups_on); }

/* The same steps on a second device of the kind, with the other mapping: no bit differs. */
static void mappings_on(const pair *p, test_rng *rng) {
    static const uint32_t head_dims[] = {8, 20, 64, 128};
    for (size_t i = 0; i < COUNT(head_dims); i++) {
        shape sh = random_shape(rng, head_dims[i], p->bf16);
        cache caches[2] = {{.s = p->cpu, .memory = VMM}, {.s = side_open_cpu(p->isa, p->bf16, 3), .memory = TABLE}};
        sequences_grow(p, caches, &sh, 0, rng);
        caches[1].s.b->close(caches[1].s.d);
    }
}

static void both_mappings_give_the_same_bits(void) { pair_each(2, mappings_on); }

/* K and V in the cache, and q, after rope_write: rotated as the formula says, in the head's own tile, and no other touched. */
static void rope_on(const pair *p, test_rng *rng) {
    shape sh = random_shape(rng, 20, p->bf16);
    sh.n_rows = 1;
    sh.lengths[0] = 1;
    sh.rotated = true;
    sh.attention.n_heads = 2;
    sh.attention.layout.n_kv_heads = 1;
    sh.attention.layout.n_layers = 3;
    sh.attention.layer = 1;
    size_t element = sh.attention.layout.element_bytes, tile = 2 * KV_GROUP_TOKENS * 20 * element;
    sh.attention.layout.group_bytes = 3 * tile;
    float qkv[80], *table = rotation_table(&sh);
    random_floats(rng, qkv, 80);
    cache c = {.s = p->cpu, .memory = HEAP};
    cache_open(&c, &sh, rng);
    uint32_t position = 7, row_of_token = 0;
    uint8_t *block = c.blocks[0][0], *other = test_alloc(sh.attention.layout.group_bytes);
    memset(other, 0xff, sh.attention.layout.group_bytes);
    kernels_row row = {.kv = c.views[0], .n_tokens = 1, .first_position = position};
    kernels_batch batch = {
        .n_tokens = 1, .n_rows = 1, .positions = &position, .token_row = &row_of_token, .rows = &row};
    void *in = side_activations(c.s, qkv, 80);
    double got[80];
    CHECK_OK(c.s.b->rope_write(c.s.d, &batch, &sh.attention, side_floats(c.s, table, MAX_LENGTH * 20), in, ERR));
    side_read(c.s, in, 80, got);
    size_t wrong = 0;
    for (size_t i = 0; i < 40; i++) { /* two heads of q */
        size_t d = i % 20, pair_of = d < 10 ? i + 10 : i - 10;
        double cosine = (double)table[(7 * 10 + d % 10) * 2], sine = (double)table[(7 * 10 + d % 10) * 2 + 1];
        double want = (double)qkv[i] * cosine + (double)qkv[pair_of] * (d < 10 ? -sine : sine);
        wrong += fabs(got[i] - want) > 4 * U; /* two products and a sum of numbers below 1 */
    }
    CHECK_MSG(wrong == 0, "%s: %zu values of q", p->isa, wrong);
    CHECK_MSG(memcmp(block, other, tile) == 0 && memcmp(block + 2 * tile, other, tile) == 0, "%s: another layer",
              p->isa);
    size_t written = 0;
    for (size_t i = 0; i < tile / element; i++) {
        written += memcmp(block + tile + i * element, other, element) != 0;
    }
    CHECK_MSG(written == 40, "%s: %zu elements written", p->isa, written);
    for (size_t d = 0; d < 20; d++) { /* v as it is, in its token's row */
        const uint8_t *at = block + tile + ((KV_GROUP_TOKENS + 7) * 20 + d) * element;
        uint16_t half = f32_to_bf16(qkv[60 + d]);
        wrong += memcmp(at, p->bf16 ? (const void *)&half : (const void *)&qkv[60 + d], element) != 0;
    }
    CHECK_MSG(wrong == 0, "%s: %zu values of v", p->isa, wrong);
    cache_close(&c, &sh);
    free(other);
    free(table);
}

static void rope_rotates_and_writes_its_own_place_only(void) { pair_each(1, rope_on); }

/* Which of n keys has the largest product with q, if by so much that nothing is left for the others: e^-12500 is 0. */
static bool clear_maximum(const float *q, const float *keys, size_t stride, size_t n, size_t *best) {
    double top = -1e30, second = -1e30;
    for (size_t t = 0; t < n; t++) {
        double score = 0;
        for (size_t d = 0; d < 64; d++) {
            score += (double)q[d] * (double)keys[t * stride + d];
        }
        second = score > top ? top : score > second ? score : second;
        *best = score > top ? t : *best;
        top = score > top ? score : top;
    }
    return top - second > 1e5;
}

/* Scores far apart: all weight goes to one position, exactly, and nothing overflows. */
static void huge_scores_on(const pair *p, test_rng *rng) {
    shape sh = random_shape(rng, 64, p->bf16);
    sh.rotated = false;
    sh.n_rows = 1;
    sh.lengths[0] = 150;
    sh.attention.window = 0;
    sh.amplitude = 1000; /* scores of up to 8e6, of either sign */
    cache c = {.s = p->cpu, .memory = HEAP};
    cache_open(&c, &sh, rng);
    step *st = test_alloc(sizeof *st);
    uint32_t width = sh.attention.n_heads * 64, stride = width + 2 * sh.attention.layout.n_kv_heads * 64;
    float *table = rotation_table(&sh), *qkv = test_alloc((size_t)150 * stride * sizeof *qkv);
    double *out = test_alloc((size_t)150 * width * sizeof *out);
    random_qkv(rng, &sh, true, qkv, 150);
    for (uint32_t t = 0; t < 150; t++) {
        st->positions[t] = t;
    }
    st->rows[0] = (kernels_row){.n_tokens = 150};
    st->batch = (kernels_batch){
        .n_tokens = 150, .n_rows = 1, .positions = st->positions, .token_row = st->token_row, .rows = st->rows};
    step_run(st, &c, &sh, table, qkv, out);
    size_t wrong = 0, checked = 0;
    for (size_t i = 0; i < (size_t)150 * sh.attention.n_heads; i++) {
        size_t t = i / sh.attention.n_heads, head = i % sh.attention.n_heads, best = 0;
        size_t kv_head = head / (sh.attention.n_heads / sh.attention.layout.n_kv_heads);
        if (!clear_maximum(qkv + t * stride + head * 64, qkv + width + kv_head * 64, stride, t + 1, &best)) {
            continue;
        }
        checked++;
        for (size_t d = 0; d < 64; d++) {
            float v = qkv[best * stride + (size_t)width + (sh.attention.layout.n_kv_heads + kv_head) * 64 + d];
            wrong += out[i * 64 + d] != (double)v;
        }
    }
    CHECK_MSG(checked > (size_t)75 * sh.attention.n_heads, "only %zu queries have a clear maximum", checked);
    CHECK_MSG(wrong == 0, "%s bf16=%d: %zu values", p->isa, p->bf16, wrong);
    cache_close(&c, &sh);
    free(st);
    free(table);
    free(qkv);
    free(out);
}

static void attention_takes_huge_scores(void) { pair_each(2, huge_scores_on); }

static void head_sizes_out_of_range_are_refused(void) {
    static const uint32_t head_dims[] = {0, 3, 258};
    side s = side_open_cpu(NULL, false, 1);
    for (size_t i = 0; i < COUNT(head_dims); i++) {
        kernels_attention attention = {.layout = {1, 1, head_dims[i], 4, 0}, .n_heads = 1, .scale = 1};
        kernels_batch batch = {0};
        perch_error err = {0};
        CU_ASSERT(s.b->rope_write(s.d, &batch, &attention, NULL, NULL, &err) == PERCH_E_UNSUPPORTED);
        CU_ASSERT(s.b->attention(s.d, &batch, &attention, NULL, NULL, &err) == PERCH_E_UNSUPPORTED);
        CHECK_MSG(strstr(err.message, "head_dim") != NULL, "%s", err.message);
    }
    s.b->close(s.d);
}

int main(int argc, char **argv) {
    static const test_case tests[] = {
        {"attention_agrees_with_the_reference", attention_agrees_with_the_reference},
        {"attention_takes_many_heads_to_a_kv_head", attention_takes_many_heads_to_a_kv_head},
        {"both_mappings_give_the_same_bits", both_mappings_give_the_same_bits},
        {"rope_rotates_and_writes_its_own_place_only", rope_rotates_and_writes_its_own_place_only},
        {"attention_takes_huge_scores", attention_takes_huge_scores},
        {"head_sizes_out_of_range_are_refused", head_sizes_out_of_range_are_refused},
    };
    return test_main("cpu_attention_test", tests, COUNT(tests), argc, argv);
}
