/*
 * Every row and matrix operation against the reference in double, on random shapes. u = 2^-24 is f32's rounding error. Where a
 * bound is statistical it says so; the others hold for any input.
 */
#include "kernels/cpu/convert.h"
#include "kernels/cpu/pair_testing.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define U 0x1p-24
#define COUNT(a) (sizeof(a) / sizeof(a)[0])

static const size_t odd_widths[] = {1, 2, 3, 15, 16, 17, 31, 33, 63, 64, 65, 100, 172, 511, 513, 1024, 1027, 2100};
static const size_t token_counts[] = {1, 1, 2, 3, 5, 6, 7, 13, 95, 96, 97, 200};

/* Σ|w||x| + |bias| + |y|, what an output's rounding errors are in proportion to. */
static void product_scale(const float *w, const float *x, const float *bias, const float *y, size_t n_tokens,
                          size_t n_out, size_t n_in, double *scale) {
    for (size_t t = 0; t < n_tokens; t++) {
        for (size_t o = 0; o < n_out; o++) {
            double sum = fabs((double)bias[o]) + fabs((double)y[t * n_out + o]);
            for (size_t i = 0; i < n_in; i++) {
                sum += fabs((double)w[o * n_in + i] * (double)x[t * n_in + i]);
            }
            scale[t * n_out + o] = sum + 1e-30;
        }
    }
}

/*
 * One output is a chain of up to 2 n_in roundings, each at most u of a partial sum, which is at most Σ|w||x|. They are as good
 * as independent, so that they add up to about the square root of their number. Tighter than 1 / n_in: a missing or
 * doubled term shows.
 */
static double product_tolerance(size_t n_in) { return (4 + 2 * sqrt((double)n_in)) * U; }

typedef struct linear_case {
    size_t n_tokens, n_out, n_in;
    float *w, *x, *y, *bias;
    double *scale, *got, *want;
} linear_case;

static linear_case linear_case_make(test_rng *rng, size_t n_tokens, size_t n_out, size_t n_in, int spread) {
    linear_case c = {.n_tokens = n_tokens, .n_out = n_out, .n_in = n_in};
    c.w = test_alloc(n_out * n_in * sizeof *c.w);
    c.x = test_alloc(n_tokens * n_in * sizeof *c.x);
    c.y = test_alloc(n_tokens * n_out * sizeof *c.y);
    c.bias = test_alloc(n_out * sizeof *c.bias);
    c.scale = test_alloc(n_tokens * n_out * sizeof *c.scale);
    c.got = test_alloc(n_tokens * n_out * sizeof *c.got);
    c.want = test_alloc(n_tokens * n_out * sizeof *c.want);
    random_spread(rng, c.w, n_out * n_in, spread);
    random_spread(rng, c.x, n_tokens * n_in, spread);
    random_floats(rng, c.y, n_tokens * n_out);
    random_floats(rng, c.bias, n_out);
    product_scale(c.w, c.x, c.bias, c.y, n_tokens, n_out, n_in, c.scale);
    return c;
}

static void linear_case_free(linear_case *c) {
    free(c->w);
    free(c->x);
    free(c->y);
    free(c->bias);
    free(c->scale);
    free(c->got);
    free(c->want);
}

static void linear_run(side s, const linear_case *c, bool bias, bool accumulate, double *out) {
    kernels_weight *weight = side_weight(s, (uint32_t)c->n_out, (uint32_t)c->n_in, c->w);
    void *x = side_activations(s, c->x, c->n_tokens * c->n_in);
    size_t n_y = c->n_tokens * c->n_out;
    void *y = accumulate ? side_floats(s, c->y, n_y) : side_activations(s, c->y, n_y);
    float *b = side_floats(s, c->bias, c->n_out);
    CHECK_OK(s.b->linear(s.d, weight, bias ? b : NULL, x, (uint32_t)c->n_tokens, y, accumulate, ERR));
    if (accumulate) {
        side_read_floats(s, y, n_y, out);
    } else {
        side_read(s, y, n_y, out);
    }
    s.b->free(s.d, x);
    s.b->free(s.d, y);
    s.b->free(s.d, b);
    s.b->weight_destroy(s.d, weight);
}

static void linear_on(const pair *p, test_rng *rng) {
    for (uint64_t i = 0; i < test_scaled(40); i++) {
        size_t n_in = random_from(rng, odd_widths, COUNT(odd_widths));
        size_t n_out = random_from(rng, odd_widths, 14);
        size_t n_tokens = random_from(rng, token_counts, COUNT(token_counts));
        linear_case c = linear_case_make(rng, n_tokens, n_out, n_in, 12);
        bool bias = test_rng_below(rng, 2), accumulate = test_rng_below(rng, 2);
        linear_run(p->cpu, &c, bias, accumulate, c.got);
        linear_run(p->reference, &c, bias, accumulate, c.want);
        double error = worst_error(c.got, c.want, c.scale, n_tokens * n_out);
        CHECK_MSG(error <= product_tolerance(n_in), "%s bf16=%d: %zu tokens, %zu x %zu, bias %d, accumulate %d: %g",
                  p->isa, p->bf16, n_tokens, n_out, n_in, bias, accumulate, error);
        linear_case_free(&c);
    }
}

static void linear_agrees_with_the_reference(void) { pair_each(2, linear_on); }

static void linear_f32_on(const pair *p, test_rng *rng) {
    linear_case c = linear_case_make(rng, 7, 130, 65, 4);
    for (size_t i = 0; i < c.n_tokens * c.n_out; i++) {
        c.scale[i] += 1;
    }
    const side sides[] = {p->cpu, p->reference};
    float results[2][7 * 130];
    for (size_t i = 0; i < 2; i++) {
        side s = sides[i];
        kernels_weight *weight = side_weight(s, 130, 65, c.w);
        void *x = side_activations(s, c.x, 7 * 65);
        float *y = side_floats(s, NULL, 7 * 130);
        CHECK_OK(s.b->linear_f32(s.d, weight, x, 7, y, ERR));
        CHECK_OK(s.b->download(s.d, results[i], y, sizeof results[i], ERR));
    }
    for (size_t i = 0; i < c.n_tokens * c.n_out; i++) {
        c.got[i] = (double)results[0][i];
        c.want[i] = (double)results[1][i];
    }
    double error = worst_error(c.got, c.want, c.scale, c.n_tokens * c.n_out);
    CHECK_MSG(error <= product_tolerance(65), "%s bf16=%d: %g", p->isa, p->bf16, error);
    linear_case_free(&c);
}

static void logits_agree_with_the_reference(void) { pair_each(2, linear_f32_on); }

/* Inputs that are wider than what is rounded at once (16 MiB): the pieces must join. */
static void linear_takes_wide_inputs_in_pieces(void) {
    enum { N_IN = 40000, N_TOKENS = 215 };
    test_rng rng = {test_seed(7)};
    side s = side_open_cpu(NULL, true, 2);
    linear_case c = linear_case_make(&rng, N_TOKENS, 3, N_IN, 4);
    linear_run(s, &c, true, true, c.got);
    for (size_t t = 0; t < N_TOKENS; t++) {
        linear_case one = c;
        double alone[3];
        one.n_tokens = 1;
        one.x = c.x + t * N_IN;
        one.y = c.y + t * 3;
        if (t % 53 == 0 || t == N_TOKENS - 1) {
            linear_run(s, &one, true, true, alone);
            CHECK_MSG(memcmp(alone, c.got + t * 3, sizeof alone) == 0, "token %zu", t);
        }
    }
    linear_case_free(&c);
    s.b->close(s.d);
}

/*
 * f32 with inputs from denormal to huge: a product of two denormals vanishes in f32 as it should (absolute error of one
 * smallest denormal a term), and nothing turns into an infinity that isn't one.
 */
static void linear_f32_takes_denormal_and_huge_inputs(void) {
    enum { N_IN = 67, N_OUT = 70, N_TOKENS = 5 };
    for (const char *const *isa = pair_isas(); *isa != NULL; isa++) {
        test_rng rng = {test_seed(11)};
        side s = side_open_cpu(*isa, false, 2);
        linear_case c = linear_case_make(&rng, N_TOKENS, N_OUT, N_IN, 0);
        random_spread(&rng, c.w, N_OUT * N_IN, 148); /* down to 2^-149 */
        for (size_t i = 0; i < N_TOKENS * N_IN; i++) {
            c.x[i] = ldexpf(c.x[i], (int)test_rng_below(&rng, 240) - 120);
        }
        product_scale(c.w, c.x, c.bias, c.y, N_TOKENS, N_OUT, N_IN, c.scale);
        linear_run(s, &c, false, false, c.got);
        double worst = 0;
        for (size_t t = 0; t < N_TOKENS; t++) {
            for (size_t o = 0; o < N_OUT; o++) {
                double want = 0;
                for (size_t i = 0; i < N_IN; i++) {
                    want += (double)c.w[o * N_IN + i] * (double)c.x[t * N_IN + i];
                }
                double bound = product_tolerance(N_IN) * c.scale[t * N_OUT + o] + N_IN * 0x1p-149;
                worst = fmax(worst, fabs(c.got[t * N_OUT + o] - want) / bound);
            }
        }
        CHECK_MSG(worst <= 1, "%s: %g of the bound", *isa, worst);
        linear_case_free(&c);
        s.b->close(s.d);
    }
}

static const kernels_weight_format formats[] = {KERNELS_WEIGHT_BF16, KERNELS_WEIGHT_INT8, KERNELS_WEIGHT_INT4};

/* All rows of a weight as numbers, by embedding them. */
static float *read_weight(side s, const kernels_weight *weight, size_t n_out, size_t n_in) {
    int32_t *ids = test_alloc(n_out * sizeof *ids);
    float *values = test_alloc(n_out * n_in * sizeof *values), *y = side_floats(s, NULL, n_out * n_in);
    for (size_t o = 0; o < n_out; o++) {
        ids[o] = (int32_t)o;
    }
    const kernels_batch batch = {.n_tokens = (uint32_t)n_out, .tokens = ids};
    CHECK_OK(s.b->embed(s.d, weight, &batch, (uint32_t)n_out, y, ERR));
    CHECK_OK(s.b->download(s.d, values, y, n_out * n_in * sizeof *y, ERR));
    s.b->free(s.d, y);
    free(ids);
    return values;
}

/* Products by a quantized weight are those by the numbers that embedding it gives, in double. */
static void quantized_linear_on(const pair *p, test_rng *rng) {
    for (uint64_t i = 0; i < test_scaled(30); i++) {
        kernels_weight_format format = formats[i % COUNT(formats)];
        size_t n_in = random_from(rng, odd_widths, COUNT(odd_widths));
        size_t n_out = random_from(rng, odd_widths, 14);
        size_t n_tokens = random_from(rng, token_counts, COUNT(token_counts));
        linear_case c = linear_case_make(rng, n_tokens, n_out, n_in, 12);
        side s = p->cpu;
        kernels_weight *weight = side_weight_in(s, (uint32_t)n_out, (uint32_t)n_in, format, c.w);
        float *stored = read_weight(s, weight, n_out, n_in), *bias = side_floats(s, c.bias, n_out);
        float *x = side_floats(s, c.x, n_tokens * n_in), *y = side_floats(s, c.y, n_tokens * n_out);
        bool accumulate = test_rng_below(rng, 2);
        CHECK_OK(s.b->linear(s.d, weight, bias, x, (uint32_t)n_tokens, y, accumulate, ERR));
        side_read_floats(s, y, n_tokens * n_out, c.got);
        for (size_t v = 0; p->bf16 && v < n_tokens * n_in; v++) {
            c.x[v] = bf16_to_f32(f32_to_bf16(c.x[v]));
        }
        product_scale(stored, c.x, c.bias, c.y, n_tokens, n_out, n_in, c.scale);
        for (size_t t = 0; t < n_tokens; t++) {
            for (size_t o = 0; o < n_out; o++) {
                double sum = (double)c.bias[o] + (accumulate ? (double)c.y[t * n_out + o] : 0);
                for (size_t k = 0; k < n_in; k++) {
                    sum += (double)stored[o * n_in + k] * (double)c.x[t * n_in + k];
                }
                c.want[t * n_out + o] = sum;
            }
        }
        double error = worst_error(c.got, c.want, c.scale, n_tokens * n_out);
        CHECK_MSG(error <= product_tolerance(n_in), "%s bf16=%d, format %d: %zu tokens, %zu x %zu, accumulate %d: %g",
                  p->isa, p->bf16, (int)format, n_tokens, n_out, n_in, accumulate, error);
        s.b->free(s.d, x);
        s.b->free(s.d, y);
        s.b->free(s.d, bias);
        s.b->weight_destroy(s.d, weight);
        free(stored);
        linear_case_free(&c);
    }
}

static void quantized_linear_agrees_with_the_stored_numbers(void) { pair_each(2, quantized_linear_on); }

/* The largest value of the group of 32 inputs that input k is in. */
static double group_largest(const float *row, size_t n_in, size_t k) {
    double largest = 0;
    for (size_t i = k / 32 * 32; i < n_in && i < k / 32 * 32 + 32; i++) {
        largest = fmax(largest, fabs((double)row[i]));
    }
    return largest;
}

/*
 * INT8: a step is the group's largest value / 127, up to 1/128 more since scales are bf16; half of it is the worst error. INT4:
 * a step is at most a seventh of the largest; the least squares may move a value by more than half a step, never by one.
 */
static void quantized_weights_are_as_close_as_their_steps(void) {
    enum { N_OUT = 70, N_IN = 173 };
    static const double steps[] = {0, 0x1p-8, 0.5 / 126, 1.0 / 7};
    for (int bf16 = 0; bf16 < 2; bf16++) {
        test_rng rng = {test_seed(0x4b17)};
        side s = side_open_cpu(NULL, bf16, 1);
        float *w = test_alloc((size_t)N_OUT * N_IN * sizeof *w);
        random_spread(&rng, w, (size_t)N_OUT * N_IN, 6);
        for (size_t i = 0; i < COUNT(formats); i++) {
            kernels_weight_format format = formats[i];
            kernels_weight *weight = side_weight_in(s, N_OUT, N_IN, format, w);
            float *stored = read_weight(s, weight, N_OUT, N_IN);
            double worst = 0;
            for (size_t v = 0; v < (size_t)N_OUT * N_IN; v++) {
                double largest = group_largest(w + v / N_IN * N_IN, N_IN, v % N_IN);
                worst = fmax(worst, fabs((double)stored[v] - (double)w[v]) / (largest + 1e-30));
            }
            CHECK_MSG(worst > 0 && worst <= steps[format], "bf16=%d, format %d: %g", bf16, (int)format, worst);
            free(stored);
        }
        free(w);
        s.b->close(s.d);
    }
}

/* Zeros stay zeros, what is too small to scale becomes one, and NaN and infinity show in their group alone. */
static void quantization_takes_any_number(void) {
    enum { N_IN = 70 };
    static const float specials[] = {NAN, INFINITY, -INFINITY, 0x1p126F, 1e-42F};
    side s = side_open_cpu(NULL, false, 1);
    for (size_t i = 1; i < COUNT(formats); i++) {
        for (size_t k = 0; k < COUNT(specials); k++) {
            float w[N_IN] = {0};
            w[3] = 1;
            w[40] = specials[k];
            kernels_weight *weight = side_weight_in(s, 1, N_IN, formats[i], w);
            float *stored = read_weight(s, weight, 1, N_IN);
            double want = k < 3 ? (double)NAN : k == 3 ? 0x1p126 : 0.0;
            CHECK_MSG(isnan(want) ? isnan(stored[40]) && isnan(stored[32])
                                  : fabs((double)stored[40] / (want + 1) - want / (want + 1)) < 0.08,
                      "format %d: %g became %g", (int)formats[i], (double)specials[k], (double)stored[40]);
            CHECK_MSG(fabsf(stored[3] - 1) < 0.008F && stored[4] == 0 && stored[69] == 0, "format %d: 1 became %g",
                      (int)formats[i], (double)stored[3]);
            free(stored);
        }
    }
    s.b->close(s.d);
}

static void weight_rows_on(const pair *p, test_rng *rng) {
    enum { N_OUT = 150, N_IN = 37 };
    static const kernels_dtype types[] = {KERNELS_F32, KERNELS_F16, KERNELS_BF16};
    float *values = test_alloc(N_OUT * N_IN * sizeof *values);
    double *got = test_alloc(N_OUT * N_IN * sizeof *got), *want = test_alloc(N_OUT * N_IN * sizeof *want);
    for (size_t i = 0; i < 3; i++) {
        kernels_weight *weights[2];
        const side sides[] = {p->cpu, p->reference};
        for (size_t k = 0; k < 2; k++) {
            CHECK_OK(sides[k].b->weight_create(sides[k].d, N_OUT, N_IN, KERNELS_WEIGHT_DTYPE, &weights[k], ERR));
        }
        uint32_t order[] = {2, 0, 3, 1}, bounds[] = {0, 1, 60, 133, N_OUT}; /* in any order, across panels */
        for (size_t j = 0; j < 4; j++) {
            uint32_t first = bounds[order[j]], n = bounds[order[j] + 1] - first;
            uint16_t halves[N_OUT * N_IN];
            random_spread(rng, values, N_OUT * N_IN, 20);
            for (size_t v = 0; v < N_OUT * N_IN; v++) {
                halves[v] = (uint16_t)test_rng_below(rng, 0x7c00); /* finite as f16 and as bf16 */
            }
            const void *rows = types[i] == KERNELS_F32 ? (const void *)values : (const void *)halves;
            for (size_t k = 0; k < 2; k++) {
                CHECK_OK(sides[k].b->weight_set_rows(sides[k].d, weights[k], first, n, types[i], rows, ERR));
            }
        }
        int32_t ids[N_OUT];
        for (int32_t v = 0; v < N_OUT; v++) {
            ids[v] = (v * 77 + 3) % N_OUT;
        }
        for (size_t k = 0; k < 2; k++) {
            const kernels_batch batch = {.n_tokens = N_OUT, .tokens = ids};
            float *y = side_floats(sides[k], NULL, N_OUT * N_IN);
            CHECK_OK(sides[k].b->embed(sides[k].d, weights[k], &batch, N_OUT, y, ERR));
            side_read_floats(sides[k], y, N_OUT * N_IN, k == 0 ? got : want);
        }
        CHECK_MSG(memcmp(got, want, N_OUT * N_IN * sizeof *got) == 0, "%s bf16=%d, rows of type %zu", p->isa, p->bf16,
                  i);
    }
    free(values);
    free(got);
    free(want);
}

/* Also that embed reads what linear multiplies by: tied embeddings are stored once. */
static void weight_rows_are_stored_and_embedded_exactly(void) { pair_each(2, weight_rows_on); }

static void weight_rows_out_of_range_are_refused(void) {
    side s = side_open_cpu(NULL, false, 1);
    kernels_weight *weight = NULL;
    float rows[8] = {0};
    perch_error err = {0};
    CHECK_OK(s.b->weight_create(s.d, 3, 2, KERNELS_WEIGHT_DTYPE, &weight, ERR));
    CU_ASSERT(s.b->weight_set_rows(s.d, weight, 1, 3, KERNELS_F32, rows, &err) == PERCH_E_INVALID);
    CU_ASSERT(s.b->weight_set_rows(s.d, weight, 4, 0, KERNELS_F32, rows, &err) == PERCH_E_INVALID);
    CU_ASSERT(s.b->weight_set_rows(s.d, weight, UINT32_MAX, UINT32_MAX, KERNELS_F32, rows, &err) == PERCH_E_INVALID);
    CHECK_MSG(strstr(err.message, "4294967295") != NULL, "%s", err.message);
    s.b->close(s.d);
}

/*
 * RMSNorm: Σx² has at most width/16 + 8 roundings a chain, mean, root, quotient and two products five more; relative, since
 * all terms are positive.
 */
static double norm_tolerance(size_t width) { return (16 + (double)width / 8) * U; }

static void rmsnorm_on(const pair *p, test_rng *rng) {
    for (uint64_t i = 0; i < test_scaled(30); i++) {
        size_t width = random_from(rng, odd_widths, COUNT(odd_widths));
        size_t n = random_from(rng, token_counts, COUNT(token_counts)), total = n * width;
        float *x = test_alloc(total * sizeof *x), *gain = test_alloc(width * sizeof *gain);
        double *got = test_alloc(total * sizeof *got), *want = test_alloc(total * sizeof *want);
        double *scale = test_alloc(total * sizeof *scale);
        random_spread(rng, x, total, 10);
        random_floats(rng, gain, width);
        const side sides[] = {p->cpu, p->reference};
        for (size_t k = 0; k < 2; k++) {
            float *in = side_floats(sides[k], x, total), *g = side_floats(sides[k], gain, width);
            void *out = side_activations(sides[k], NULL, total);
            CHECK_OK(sides[k].b->rmsnorm(sides[k].d, in, g, 1e-5f, (uint32_t)n, (uint32_t)width, out, ERR));
            side_read(sides[k], out, total, k == 0 ? got : want);
        }
        for (size_t v = 0; v < total; v++) {
            scale[v] = fabs(want[v]) + 1e-30;
        }
        double error = worst_error(got, want, scale, total);
        CHECK_MSG(error <= norm_tolerance(width), "%s: %zu x %zu: %g", p->isa, n, width, error);
        free(x);
        free(gain);
        free(got);
        free(want);
        free(scale);
    }
}

static void rmsnorm_agrees_with_the_reference(void) { pair_each(2, rmsnorm_on); }

static void head_norm_on(const pair *p, test_rng *rng) {
    static const size_t dims[] = {2, 8, 20, 64, 80, 128};
    for (size_t i = 0; i < COUNT(dims); i++) {
        size_t head_dim = dims[i], n_heads = 1 + test_rng_below(rng, 5), offset = test_rng_below(rng, 40);
        size_t stride = offset + n_heads * head_dim + test_rng_below(rng, 40), n = 1 + test_rng_below(rng, 40);
        size_t total = n * stride;
        float *x = test_alloc(total * sizeof *x), gain[128];
        double *got = test_alloc(total * sizeof *got), *want = test_alloc(total * sizeof *want);
        random_floats(rng, x, total);
        random_floats(rng, gain, head_dim);
        const side sides[] = {p->cpu, p->reference};
        for (size_t k = 0; k < 2; k++) {
            void *in = side_activations(sides[k], x, total);
            float *g = side_floats(sides[k], gain, head_dim);
            CHECK_OK(sides[k].b->head_norm(sides[k].d, in, (uint32_t)n, (uint32_t)stride, (uint32_t)offset,
                                           (uint32_t)n_heads, (uint32_t)head_dim, g, 1e-6f, ERR));
            side_read(sides[k], in, total, k == 0 ? got : want);
        }
        /* |results| < sqrt(D); what lies outside of the heads must be untouched, which is equal to the bit */
        double error = worst_error(got, want, NULL, total);
        CHECK_MSG(error <= sqrt((double)head_dim) * norm_tolerance(head_dim), "%s: %zu heads of %zu: %g", p->isa,
                  n_heads, head_dim, error);
        for (size_t t = 0; t < n; t++) {
            CU_ASSERT(offset == 0 || got[t * stride + offset - 1] == (double)x[t * stride + offset - 1]);
        }
        free(x);
        free(got);
        free(want);
    }
}

static void head_norm_agrees_with_the_reference(void) { pair_each(2, head_norm_on); }

static void silu_on(const pair *p, test_rng *rng) {
    for (uint64_t i = 0; i < test_scaled(20); i++) {
        size_t width = random_from(rng, odd_widths, COUNT(odd_widths)), n = 1 + test_rng_below(rng, 20);
        size_t total = n * width;
        float *x = test_alloc(2 * total * sizeof *x);
        double *got = test_alloc(total * sizeof *got), *want = test_alloc(total * sizeof *want);
        double *scale = test_alloc(total * sizeof *scale);
        for (size_t v = 0; v < 2 * total; v++) {
            x[v] = (float)((test_rng_unit(rng) * 2 - 1) * (v % 7 == 0 ? 120 : 8));
        }
        const side sides[] = {p->cpu, p->reference};
        for (size_t k = 0; k < 2; k++) {
            void *in = side_activations(sides[k], x, 2 * total);
            void *out = side_activations(sides[k], NULL, total);
            CHECK_OK(sides[k].b->silu_mul(sides[k].d, in, (uint32_t)n, (uint32_t)width, out, ERR));
            side_read(sides[k], out, total, k == 0 ? got : want);
        }
        /* e^-|x| within 3 roundings, sum, quotient and two products; below -87 it is 0: 120² e^-87 < u * 1e-25 */
        for (size_t v = 0; v < total; v++) {
            scale[v] = fabs(want[v]) + 1e-25;
        }
        double error = worst_error(got, want, scale, total);
        CHECK_MSG(error <= 12 * U, "%s: %zu x %zu: %g u", p->isa, n, width, error / U);
        free(x);
        free(got);
        free(want);
        free(scale);
    }
}

static void silu_mul_agrees_with_the_reference(void) { pair_each(2, silu_on); }

static void gather_on(const pair *p, test_rng *rng) {
    enum { N = 400, ROW = 77 * 6 }; /* rows of any number of bytes, also of activations of two bytes */
    uint8_t x[N * ROW], got[N * ROW];
    uint32_t logit_tokens[N], n = 0;
    for (size_t i = 0; i < sizeof x; i++) {
        x[i] = (uint8_t)test_rng_next(rng);
    }
    for (uint32_t t = 0; t < N; t++) {
        if (test_rng_below(rng, 3) > 0) {
            logit_tokens[n++] = t;
        }
    }
    const side sides[] = {p->cpu, p->reference};
    for (size_t k = 0; k < 2; k++) {
        side s = sides[k];
        const kernels_batch batch = {.n_tokens = N, .n_logits = n, .logit_tokens = logit_tokens};
        void *in = NULL, *out = NULL;
        CHECK_OK(s.b->alloc(s.d, sizeof x, &in, ERR));
        CHECK_OK(s.b->alloc(s.d, sizeof x, &out, ERR));
        CHECK_OK(s.b->upload(s.d, in, x, sizeof x, ERR));
        CHECK_OK(s.b->gather(s.d, &batch, n, in, ROW, out, ERR));
        CHECK_OK(s.b->download(s.d, got, out, sizeof got, ERR));
        size_t wrong = 0;
        for (size_t j = 0; j < n; j++) {
            wrong += memcmp(got + j * ROW, x + (size_t)logit_tokens[j] * ROW, ROW) != 0;
        }
        for (size_t i = (size_t)n * ROW; i < sizeof got; i++) {
            wrong += got[i] != 0;
        }
        CHECK_MSG(wrong == 0, "%s: %zu rows, or bytes behind them", s.b->name, wrong);
    }
}

static void gather_takes_the_rows_asked_for(void) { pair_each(2, gather_on); }

int main(int argc, char **argv) {
    static const test_case tests[] = {
        {"linear_agrees_with_the_reference", linear_agrees_with_the_reference},
        {"logits_agree_with_the_reference", logits_agree_with_the_reference},
        {"linear_takes_wide_inputs_in_pieces", linear_takes_wide_inputs_in_pieces},
        {"linear_f32_takes_denormal_and_huge_inputs", linear_f32_takes_denormal_and_huge_inputs},
        {"weight_rows_are_stored_and_embedded_exactly", weight_rows_are_stored_and_embedded_exactly},
        {"quantized_linear_agrees_with_the_stored_numbers", quantized_linear_agrees_with_the_stored_numbers},
        {"quantized_weights_are_as_close_as_their_steps", quantized_weights_are_as_close_as_their_steps},
        {"quantization_takes_any_number", quantization_takes_any_number},
        {"weight_rows_out_of_range_are_refused", weight_rows_out_of_range_are_refused},
        {"rmsnorm_agrees_with_the_reference", rmsnorm_agrees_with_the_reference},
        {"head_norm_agrees_with_the_reference", head_norm_agrees_with_the_reference},
        {"silu_mul_agrees_with_the_reference", silu_mul_agrees_with_the_reference},
        {"gather_takes_the_rows_asked_for", gather_takes_the_rows_asked_for},
    };
    return test_main("cpu_math_test", tests, COUNT(tests), argc, argv);
}
