/*
 * Batch invariance, to the bit: what a token gives is the same alone, one token at a time on one thread, and in any company:
 * other sequences, other cuts into chunks, other numbers of threads, another mapping, and memory full of NaN.
 *
 * The subject is a whole layer with everything that a model has, from embedding to logits.
 */
#include "kernels/cpu/pair_testing.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define COUNT(a) (sizeof(a) / sizeof(a)[0])
#define N_SEQUENCES 5u
#define MAX_LENGTH 150u
#define MAX_TOKENS (N_SEQUENCES * MAX_LENGTH)

typedef struct spec {
    kernels_weight_format format;
    uint32_t vocab, hidden, n_heads, n_kv_heads, head_dim, ffn, window;
    uint32_t lengths[N_SEQUENCES];
    int32_t tokens[N_SEQUENCES][MAX_LENGTH];
    float *embedding, *qkv, *bias, *out, *gate_up, *down, *gains, *table; /* as the names say, row-major */
} spec;

static float *random_array(test_rng *rng, size_t n, float amplitude) {
    float *values = test_alloc(n * sizeof *values);
    random_spread(rng, values, n, 6);
    for (size_t i = 0; i < n; i++) {
        values[i] *= amplitude;
    }
    return values;
}

static uint32_t qkv_width(const spec *sp) { return (sp->n_heads + 2 * sp->n_kv_heads) * sp->head_dim; }

static void spec_make(spec *sp, test_rng *rng) {
    static const size_t head_dims[] = {8, 16, 20, 64, 80, 128};
    *sp = (spec){.vocab = 1 + (uint32_t)test_rng_below(rng, 150), .hidden = 1 + (uint32_t)test_rng_below(rng, 200)};
    sp->n_kv_heads = 1 + (uint32_t)test_rng_below(rng, 3);
    sp->n_heads = sp->n_kv_heads * (1 + (uint32_t)test_rng_below(rng, 5));
    sp->head_dim = (uint32_t)random_from(rng, head_dims, COUNT(head_dims));
    sp->ffn = 1 + (uint32_t)test_rng_below(rng, 300);
    sp->window = test_rng_below(rng, 2) ? 1 + (uint32_t)test_rng_below(rng, 100) : 0;
    for (size_t s = 0; s < N_SEQUENCES; s++) {
        sp->lengths[s] = 1 + (uint32_t)test_rng_below(rng, MAX_LENGTH);
        for (size_t t = 0; t < sp->lengths[s]; t++) {
            sp->tokens[s][t] = (int32_t)test_rng_below(rng, sp->vocab);
        }
    }
    sp->embedding = random_array(rng, (size_t)sp->vocab * sp->hidden, 2);
    sp->qkv = random_array(rng, (size_t)qkv_width(sp) * sp->hidden, 1);
    sp->bias = random_array(rng, qkv_width(sp), 1);
    sp->out = random_array(rng, (size_t)sp->hidden * sp->n_heads * sp->head_dim, 1);
    sp->gate_up = random_array(rng, (size_t)2 * sp->ffn * sp->hidden, 1);
    sp->down = random_array(rng, (size_t)sp->hidden * sp->ffn, 1);
    sp->gains = random_array(rng, sp->hidden > sp->head_dim ? sp->hidden : sp->head_dim, 2);
    sp->table = random_array(rng, (size_t)MAX_LENGTH * sp->head_dim, 1);
}

static void spec_free(spec *sp) {
    float *arrays[] = {sp->embedding, sp->qkv, sp->bias, sp->out, sp->gate_up, sp->down, sp->gains, sp->table};
    for (size_t i = 0; i < COUNT(arrays); i++) {
        free(arrays[i]);
    }
}

/* The layer on a device, with KV for all sequences. */
typedef struct layer {
    side s;
    const spec *sp;
    kernels_weight *embedding, *qkv, *out, *gate_up, *down;
    float *bias, *gains, *table, *logits, *x;
    void *normed, *wide, *heads, *picked;
    kernels_attention attention;
} layer;

/* KV memory for all sequences. Full of NaN, or of 0: a page that another sequence had may hold anything. */
static void layer_open_kv(layer *l, kernels_mapping mapping, bool nan) {
    side s = l->s;
    uint64_t group_bytes = l->attention.layout.group_bytes;
    uint32_t groups = (MAX_LENGTH + KV_GROUP_TOKENS - 1) / KV_GROUP_TOKENS;
    uint64_t page_bytes = mapping == KERNELS_TABLE ? 3 * group_bytes : s.b->kv_page_granularity(s.d);
    uint32_t pages = (uint32_t)((groups * group_bytes + page_bytes - 1) / page_bytes);
    const kernels_kv kv = {.mapping = mapping,
                           .page_bytes = page_bytes,
                           .group_bytes = group_bytes,
                           .n_pages = N_SEQUENCES * pages,
                           .n_slots = N_SEQUENCES,
                           .pages_per_slot = pages};
    CHECK_OK(s.b->kv_open(s.d, &kv, ERR));
    for (uint32_t i = 0; i < N_SEQUENCES * pages; i++) { /* neighbours in a slot are no run in memory */
        kv_command map = {.op = KV_MAP, .slot = i / pages, .index = i % pages, .page = N_SEQUENCES * pages - 1 - i};
        CHECK_OK(s.b->kv_execute(s.d, &map, 1, ERR));
    }
    for (uint32_t i = 0; i < N_SEQUENCES * groups; i++) {
        kv_view view = s.b->kv_slot(s.d, i / groups);
        uint32_t g = i % groups;
        memset(view.blocks != NULL ? view.blocks[g] : view.base + g * group_bytes, nan ? 0xff : 0, group_bytes);
    }
}

static void layer_open(layer *l, const spec *sp, const char *isa, bool bf16, uint32_t n_threads,
                       kernels_mapping mapping) {
    *l = (layer){.s = side_open_cpu(isa, bf16, n_threads), .sp = sp};
    side s = l->s;
    uint32_t qkv = qkv_width(sp), heads = sp->n_heads * sp->head_dim;
    l->embedding = side_weight_in(s, sp->vocab, sp->hidden, sp->format, sp->embedding);
    l->qkv = side_weight_in(s, qkv, sp->hidden, sp->format, sp->qkv);
    l->out = side_weight_in(s, sp->hidden, heads, sp->format, sp->out);
    l->gate_up = side_weight_in(s, 2 * sp->ffn, sp->hidden, sp->format, sp->gate_up);
    l->down = side_weight_in(s, sp->hidden, sp->ffn, sp->format, sp->down);
    l->bias = side_floats(s, sp->bias, qkv);
    l->gains = side_floats(s, sp->gains, sp->hidden > sp->head_dim ? sp->hidden : sp->head_dim);
    l->table = side_floats(s, sp->table, (size_t)MAX_LENGTH * sp->head_dim);
    l->logits = side_floats(s, NULL, (size_t)MAX_TOKENS * sp->vocab);
    l->x = side_floats(s, NULL, (size_t)MAX_TOKENS * sp->hidden);
    l->normed = side_activations(s, NULL, (size_t)MAX_TOKENS * sp->hidden);
    l->picked = side_activations(s, NULL, (size_t)MAX_TOKENS * sp->hidden);
    l->wide = side_activations(s, NULL, (size_t)MAX_TOKENS * (qkv > 2 * sp->ffn ? qkv : 2 * sp->ffn));
    l->heads = side_activations(s, NULL, (size_t)MAX_TOKENS * (heads > sp->ffn ? heads : sp->ffn));
    kv_layout *layout = &l->attention.layout;
    *layout = (kv_layout){1, sp->n_kv_heads, sp->head_dim, bf16 ? 2 : 4, 0};
    layout->group_bytes = (uint64_t)sp->n_kv_heads * 2 * KV_GROUP_TOKENS * sp->head_dim * layout->element_bytes;
    l->attention.n_heads = sp->n_heads;
    l->attention.window = sp->window;
    l->attention.scale = (float)(1 / sqrt(sp->head_dim));
    layer_open_kv(l, mapping, n_threads > 1);
}

typedef struct chunk {
    uint32_t sequence, first, n;
} chunk;

/* One step; logits[sequence] + position * vocab gets each token's. */
static void layer_step(layer *l, const chunk *chunks, uint32_t n_chunks, float *const *logits) {
    const spec *sp = l->sp;
    side s = l->s;
    static int32_t tokens[MAX_TOKENS];
    static uint32_t positions[MAX_TOKENS], token_row[MAX_TOKENS], logit_tokens[MAX_TOKENS];
    kernels_row rows[N_SEQUENCES];
    uint32_t n = 0;
    for (uint32_t c = 0; c < n_chunks; c++) {
        rows[c] = (kernels_row){.kv = s.b->kv_slot(s.d, chunks[c].sequence),
                                .slot = chunks[c].sequence,
                                .first_token = n,
                                .n_tokens = chunks[c].n,
                                .first_position = chunks[c].first};
        for (uint32_t i = 0; i < chunks[c].n; i++, n++) {
            tokens[n] = sp->tokens[chunks[c].sequence][chunks[c].first + i];
            positions[n] = chunks[c].first + i;
            token_row[n] = c;
        }
    }
    kernels_batch batch = {.n_tokens = n,
                           .n_rows = n_chunks,
                           .tokens = tokens,
                           .positions = positions,
                           .token_row = token_row,
                           .rows = rows,
                           .logit_tokens = logit_tokens};
    uint32_t width = qkv_width(sp);
    CHECK_OK(s.b->embed(s.d, l->embedding, &batch, n, l->x, ERR));
    CHECK_OK(s.b->rmsnorm(s.d, l->x, l->gains, 1e-5f, n, sp->hidden, l->normed, ERR));
    CHECK_OK(s.b->linear(s.d, l->qkv, l->bias, l->normed, n, l->wide, false, ERR));
    CHECK_OK(s.b->head_norm(s.d, l->wide, n, width, 0, sp->n_heads, sp->head_dim, l->gains, 1e-6f, ERR));
    CHECK_OK(s.b->rope_write(s.d, &batch, &l->attention, l->table, l->wide, ERR));
    CHECK_OK(s.b->attention(s.d, &batch, &l->attention, l->wide, l->heads, ERR));
    CHECK_OK(s.b->linear(s.d, l->out, NULL, l->heads, n, l->x, true, ERR));
    CHECK_OK(s.b->rmsnorm(s.d, l->x, l->gains, 1e-5f, n, sp->hidden, l->normed, ERR));
    CHECK_OK(s.b->linear(s.d, l->gate_up, NULL, l->normed, n, l->wide, false, ERR));
    CHECK_OK(s.b->silu_mul(s.d, l->wide, n, sp->ffn, l->heads, ERR));
    CHECK_OK(s.b->linear(s.d, l->down, NULL, l->heads, n, l->x, true, ERR));
    for (uint32_t odd = 0; odd < 2; odd++) { /* logits of every second token, then of the others */
        batch.n_logits = 0;
        for (uint32_t i = odd; i < n; i += 2) {
            logit_tokens[batch.n_logits++] = i;
        }
        CHECK_OK(s.b->gather(s.d, &batch, batch.n_logits, l->x, sp->hidden * sizeof *l->x, l->picked, ERR));
        CHECK_OK(s.b->linear_f32(s.d, l->embedding, l->picked, batch.n_logits, l->logits, ERR));
        for (uint32_t j = 0; j < batch.n_logits; j++) {
            uint32_t i = logit_tokens[j];
            float *to = logits[chunks[token_row[i]].sequence] + (size_t)positions[i] * sp->vocab;
            CHECK_OK(s.b->download(s.d, to, l->logits + (size_t)j * sp->vocab, sp->vocab * sizeof *to, ERR));
        }
    }
}

/* Every token alone, one sequence after the other. */
static void run_alone(layer *l, float *const *logits) {
    for (uint32_t s = 0; s < N_SEQUENCES; s++) {
        for (uint32_t t = 0; t < l->sp->lengths[s]; t++) {
            layer_step(l, &(chunk){s, t, 1}, 1, logits);
        }
    }
}

/* Random sequences together, in random order, random chunks. */
static void run_mixed(layer *l, test_rng *rng, float *const *logits) {
    uint32_t done[N_SEQUENCES] = {0};
    for (bool more = true; more;) {
        chunk chunks[N_SEQUENCES];
        uint32_t n = 0, start = (uint32_t)test_rng_below(rng, N_SEQUENCES);
        uint32_t at_most = test_rng_below(rng, 3) == 0 ? 1 : 1 + (uint32_t)test_rng_below(rng, MAX_LENGTH);
        more = false;
        for (uint32_t i = 0; i < N_SEQUENCES; i++) {
            uint32_t s = (start + i) % N_SEQUENCES, left = l->sp->lengths[s] - done[s];
            more = more || left > 0;
            if (left == 0 || test_rng_below(rng, 4) == 0) {
                continue;
            }
            uint32_t take = 1 + (uint32_t)test_rng_below(rng, at_most);
            chunks[n] = (chunk){s, done[s], take < left ? take : left};
            done[s] += chunks[n++].n;
        }
        if (n > 0) {
            layer_step(l, chunks, n, logits);
        }
    }
}

static void logits_alloc(const spec *sp, float **logits) {
    for (size_t s = 0; s < N_SEQUENCES; s++) {
        logits[s] = test_alloc((size_t)sp->lengths[s] * sp->vocab * sizeof(float));
    }
}

static void logits_free(float **logits) {
    for (size_t s = 0; s < N_SEQUENCES; s++) {
        free(logits[s]);
    }
}

/* Tokens of sequence s whose logits differ in a bit, among the first n. */
static size_t n_different(const spec *sp, float *const *a, float *const *b, size_t s, size_t n) {
    size_t different = 0;
    for (size_t t = 0; t < n; t++) {
        different += memcmp(a[s] + t * sp->vocab, b[s] + t * sp->vocab, sp->vocab * sizeof(float)) != 0;
    }
    return different;
}

static void layers_are_invariant(bool bf16) {
    uint64_t seed = test_seed(0x1de);
    static const uint32_t thread_counts[] = {1, 2, 3, 5};
    for (const char *const *isa = pair_isas(); *isa != NULL; isa++) {
        for (uint64_t i = 0; i < test_scaled(4); i++) {
            test_rng rng = {seed + i};
            spec sp;
            spec_make(&sp, &rng);
            sp.format = (kernels_weight_format)(i % 4);
            float *alone[N_SEQUENCES], *mixed[N_SEQUENCES];
            logits_alloc(&sp, alone);
            logits_alloc(&sp, mixed);
            layer l;
            layer_open(&l, &sp, *isa, bf16, 1, KERNELS_VMM);
            run_alone(&l, alone);
            l.s.b->close(l.s.d);
            for (size_t k = 0; k < COUNT(thread_counts); k++) {
                kernels_mapping mapping = k % 2 ? KERNELS_VMM : KERNELS_TABLE;
                layer_open(&l, &sp, *isa, bf16, thread_counts[k], mapping);
                run_mixed(&l, &rng, mixed);
                l.s.b->close(l.s.d);
                for (size_t s = 0; s < N_SEQUENCES; s++) {
                    size_t different = n_different(&sp, alone, mixed, s, sp.lengths[s]);
                    CHECK_MSG(
                        different == 0,
                        "%s bf16=%d format %d, seed %llu, %u threads, mapping %d: %zu of %u tokens of sequence %zu",
                        *isa, bf16, (int)sp.format, (unsigned long long)(seed + i), thread_counts[k], (int)mapping,
                        different, sp.lengths[s], s);
                }
            }
            CHECK_MSG(isfinite(alone[0][0]), "%s bf16=%d: the layer computes %g", *isa, bf16, (double)alone[0][0]);
            logits_free(alone);
            logits_free(mixed);
            spec_free(&sp);
        }
    }
}

static void tokens_do_not_depend_on_their_company_in_f32(void) { layers_are_invariant(false); }

static void tokens_do_not_depend_on_their_company_in_bf16(void) { layers_are_invariant(true); }

/* Whether the poisoned position is among what a token at position t sees. */
static bool sees(const spec *sp, uint32_t t, uint32_t poisoned) {
    return t >= poisoned && (sp->window == 0 || t - poisoned < sp->window);
}

/* Gives every second sequence one token 0, and no other: its embedding is NaN. poisoned[s] is where, or the length. */
static void spec_poison(spec *sp, test_rng *rng, uint32_t *poisoned) {
    for (size_t s = 0; s < N_SEQUENCES; s++) {
        poisoned[s] = s % 2 ? sp->lengths[s] : (uint32_t)test_rng_below(rng, sp->lengths[s]);
        if (poisoned[s] < sp->lengths[s]) {
            sp->tokens[s][poisoned[s]] = 0;
        }
    }
}

static void spec_make_poisonable(spec *sp, test_rng *rng) {
    do {
        spec_make(sp, rng);
        if (sp->vocab < 2) {
            spec_free(sp);
        }
    } while (sp->vocab < 2);
    for (size_t i = 0; i < sp->hidden; i++) {
        sp->embedding[i] = NAN;
    }
    for (size_t s = 0; s < N_SEQUENCES; s++) {
        for (size_t t = 0; t < sp->lengths[s]; t++) {
            sp->tokens[s][t] = 1 + (int32_t)test_rng_below(rng, sp->vocab - 1);
        }
    }
}

static void nan_stays_on(const char *isa, bool bf16, uint64_t seed) {
    test_rng rng = {seed};
    spec sp;
    spec_make_poisonable(&sp, &rng);
    sp.format = (kernels_weight_format)(seed / 2 % 4);
    float *clean[N_SEQUENCES], *mixed[N_SEQUENCES];
    uint32_t poisoned[N_SEQUENCES];
    logits_alloc(&sp, clean);
    logits_alloc(&sp, mixed);
    layer l;
    layer_open(&l, &sp, isa, bf16, 1, KERNELS_VMM);
    run_alone(&l, clean);
    spec_poison(&sp, &rng, poisoned);
    run_mixed(&l, &rng, mixed);
    l.s.b->close(l.s.d);
    size_t hidden = 0, caught = 0;
    for (size_t s = 0; s < N_SEQUENCES; s++) {
        for (uint32_t t = 0; t < sp.lengths[s]; t++) {
            /* logit 0 is NaN for everybody, since the embedding is the output's weight too */
            const float *got = mixed[s] + (size_t)t * sp.vocab + 1, *want = clean[s] + (size_t)t * sp.vocab + 1;
            if (sees(&sp, t, poisoned[s])) {
                hidden += isnan(got[0]) ? 0 : 1;
            } else {
                caught += memcmp(got, want, (sp.vocab - 1) * sizeof *got) != 0;
            }
        }
    }
    CHECK_MSG(hidden == 0 && caught == 0,
              "%s bf16=%d, seed %llu: %zu tokens do not show the NaN that they see, %zu caught one", isa, bf16,
              (unsigned long long)seed, hidden, caught);
    logits_free(clean);
    logits_free(mixed);
    spec_free(&sp);
}

/* A token whose embedding is NaN ruins those that see it, and nobody else, to the bit. */
static void nan_stays_where_it_is(void) {
    uint64_t seed = test_seed(0xbad);
    for (const char *const *isa = pair_isas(); *isa != NULL; isa++) {
        for (uint64_t i = 0; i < test_scaled(4); i++) {
            nan_stays_on(*isa, false, seed++);
            nan_stays_on(*isa, true, seed++);
        }
    }
}

/* Rows of a matrix at any place, alignment and number give the same; inputs from denormal to huge and infinite. */
static void linear_is_invariant_in(kernels_weight_format format) {
    enum { N_IN = 1061, N_OUT = 197, N = 130 };
    static const size_t counts[] = {1, 2, 3, 4, 5, 6, 7, 11, 12, 97, 130};
    for (const char *const *isa = pair_isas(); *isa != NULL; isa++) {
        for (int bf16 = 0; bf16 < 2; bf16++) {
            test_rng rng = {test_seed(0xeed)};
            side s = side_open_cpu(*isa, bf16, 3);
            float *w = random_array(&rng, (size_t)N_OUT * N_IN, 1), *x = test_alloc((size_t)N * N_IN * sizeof *x);
            for (size_t i = 0; i < (size_t)N * N_IN; i++) {
                x[i] = (float)ldexp(test_rng_unit(&rng) * 2 - 1, (int)test_rng_below(&rng, 270) - 149);
                x[i] = test_rng_below(&rng, 20000) == 0 ? INFINITY : x[i];
            }
            kernels_weight *weight = side_weight_in(s, N_OUT, N_IN, format, w);
            float *in = side_floats(s, x, (size_t)N * N_IN), *out = side_floats(s, NULL, (size_t)N * N_OUT + 16);
            float *alone = test_alloc((size_t)N * N_OUT * sizeof *alone);
            for (size_t t = 0; t < N; t++) {
                CHECK_OK(s.b->linear(s.d, weight, NULL, in + t * N_IN, 1, alone + t * N_OUT, false, ERR));
            }
            for (size_t i = 0; i < COUNT(counts); i++) {
                size_t first = test_rng_below(&rng, (size_t)N - counts[i] + 1);
                float *to = out + test_rng_below(&rng, 16); /* any alignment of four bytes */
                CHECK_OK(s.b->linear(s.d, weight, NULL, in + first * N_IN, (uint32_t)counts[i], to, false, ERR));
                CHECK_MSG(memcmp(to, alone + first * N_OUT, counts[i] * (size_t)N_OUT * sizeof *to) == 0,
                          "%s bf16=%d format %d: %zu tokens from %zu", *isa, bf16, (int)format, counts[i], first);
            }
            free(w);
            free(x);
            free(alone);
            s.b->close(s.d);
        }
    }
}

static void linear_is_invariant_on_extreme_inputs(void) { linear_is_invariant_in(KERNELS_WEIGHT_DTYPE); }

static void quantized_linear_is_invariant_on_extreme_inputs(void) {
    linear_is_invariant_in(KERNELS_WEIGHT_BF16);
    linear_is_invariant_in(KERNELS_WEIGHT_INT8);
    linear_is_invariant_in(KERNELS_WEIGHT_INT4);
}

int main(int argc, char **argv) {
    static const test_case tests[] = {
        {"tokens_do_not_depend_on_their_company_in_f32", tokens_do_not_depend_on_their_company_in_f32},
        {"tokens_do_not_depend_on_their_company_in_bf16", tokens_do_not_depend_on_their_company_in_bf16},
        {"nan_stays_where_it_is", nan_stays_where_it_is},
        {"linear_is_invariant_on_extreme_inputs", linear_is_invariant_on_extreme_inputs},
        {"quantized_linear_is_invariant_on_extreme_inputs", quantized_linear_is_invariant_on_extreme_inputs},
    };
    return test_main("cpu_invariance_test", tests, COUNT(tests), argc, argv);
}
