/* sampler_reference: see the header. Written to be evidently right, not fast. */
#include "engine/sampler_reference_testing.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>

/* A border that is nearer than this may be on either side of it. */
static long double doubt(const reference_set *set) { return 1e-12L + set->margin; }

static int by_id(const void *a, const void *b) {
    const reference_token *x = a, *y = b;
    return (x->id > y->id) - (x->id < y->id);
}

static int by_key(const void *a, const void *b) {
    const reference_token *x = a, *y = b;
    return x->key < y->key ? -1 : x->key > y->key ? 1 : by_id(a, b);
}

static void normalise(reference_set *set) {
    long double total = 0;
    for (size_t i = 0; i < set->n; i++) {
        total += set->tokens[i].p;
    }
    for (size_t i = 0; i < set->n; i++) {
        set->tokens[i].p /= total;
    }
    set->margin /= total;
}

/* Keeps the front, in the order of the keys, that reaches mass. */
static void keep_mass(reference_set *set, long double mass) {
    qsort(set->tokens, set->n, sizeof *set->tokens, by_key);
    long double reached = 0;
    size_t kept = 0;
    while (kept < set->n && reached < mass) {
        if (kept > 0 && set->tokens[kept].logit != set->tokens[kept - 1].logit &&
            fabsl(set->tokens[kept].key - set->tokens[kept - 1].key) <
                50 * doubt(set)) { /* 33 is the largest distance */
            set->ambiguous = true;
        }
        reached += set->tokens[kept++].p;
        set->ambiguous = set->ambiguous || fabsl(reached - mass) < doubt(set);
    }
    set->n = kept;
    qsort(set->tokens, set->n, sizeof *set->tokens, by_id);
    normalise(set);
}

static void filter_top_k(reference_set *set, int32_t k) {
    for (size_t i = 0; i < set->n; i++) {
        set->tokens[i].key = -(long double)set->tokens[i].logit;
    }
    qsort(set->tokens, set->n, sizeof *set->tokens, by_key);
    set->n = (size_t)k < set->n ? (size_t)k : set->n;
    qsort(set->tokens, set->n, sizeof *set->tokens, by_id);
}

static void find_probabilities(reference_set *set, double temperature) {
    double best = -INFINITY;
    for (size_t i = 0; i < set->n; i++) {
        best = fmax(best, set->tokens[i].logit);
    }
    for (size_t i = 0; i < set->n; i++) {
        double logit = set->tokens[i].logit;
        set->tokens[i].p =
            logit == best ? 1 : expl(((long double)logit - (long double)best) / (long double)temperature);
    }
    set->margin = (long double)set->n * 0x1p-45L;
    normalise(set);
}

static void filter_typical(reference_set *set, double mass) {
    long double entropy = 0;
    for (size_t i = 0; i < set->n; i++) {
        entropy -= set->tokens[i].p > 0 ? set->tokens[i].p * logl(set->tokens[i].p) : 0;
    }
    for (size_t i = 0; i < set->n; i++) {
        set->tokens[i].key = fabsl(-logl(set->tokens[i].p) - entropy);
    }
    keep_mass(set, (long double)mass);
}

static void filter_top_p(reference_set *set, double mass) {
    for (size_t i = 0; i < set->n; i++) {
        set->tokens[i].key = -(long double)set->tokens[i].logit;
    }
    qsort(set->tokens, set->n, sizeof *set->tokens, by_key);
    for (size_t i = 0; i < set->n; i++) {
        set->tokens[i].key = (long double)i; /* neighbours in logit aren't doubtful here: the order is exact */
    }
    keep_mass(set, (long double)mass);
}

static void filter_min_p(reference_set *set, double ratio) {
    long double best = 0;
    size_t kept = 0;
    for (size_t i = 0; i < set->n; i++) {
        best = fmaxl(best, set->tokens[i].p);
    }
    for (size_t i = 0; i < set->n; i++) {
        set->ambiguous = set->ambiguous || fabsl(set->tokens[i].p / best - (long double)ratio) < doubt(set) / best;
        if (set->tokens[i].p >= (long double)ratio * best) {
            set->tokens[kept++] = set->tokens[i];
        }
    }
    set->n = kept;
    normalise(set);
}

void reference_filter(reference_set *set, double temperature, int32_t top_k, double typical_p, double top_p,
                      double min_p) {
    if (top_k > 0) {
        filter_top_k(set, top_k);
    }
    find_probabilities(set, temperature);
    if (typical_p < 1) {
        filter_typical(set, typical_p);
    }
    if (top_p < 1) {
        filter_top_p(set, top_p);
    }
    if (min_p > 0) {
        filter_min_p(set, min_p);
    }
}

static double adjusted_logit(const sampler_input *in, int32_t token) {
    const perch_sampling *p = in->sampling;
    double logit = (double)in->logits[token];
    uint64_t seen = 0, generated = 0;
    for (size_t i = 0; i < p->n_logit_bias; i++) {
        logit = (double)(float)(logit + (p->logit_bias[i].token == token ? (double)p->logit_bias[i].bias : 0));
    }
    for (size_t i = 0; i < p->n_banned_tokens; i++) {
        logit = p->banned_tokens[i] == token ? -INFINITY : logit;
    }
    for (size_t i = 0; i < in->n_suppressed; i++) {
        logit = in->suppressed[i] == token ? -INFINITY : logit;
    }
    for (uint64_t i = 0; i < in->n_tokens; i++) {
        seen += in->tokens[i] == token;
        generated += in->tokens[i] == token && i >= in->n_prompt;
    }
    if (seen > 0 && isfinite(logit)) {
        logit = logit > 0 ? logit / p->repetition_penalty : logit * p->repetition_penalty;
        logit = fmax(-FLT_MAX, fmin(FLT_MAX, logit));
    }
    if (generated > 0) {
        logit -= p->frequency_penalty * (double)generated + p->presence_penalty;
    }
    return (double)(float)logit;
}

reference_set reference_choose(const sampler_input *in, uint32_t vocab_size) {
    reference_set set = {calloc(vocab_size, sizeof *set.tokens), 0, false, 0};
    for (uint32_t token = 0; token < vocab_size; token++) {
        double logit = adjusted_logit(in, (int32_t)token);
        if (!isnan(logit) && logit != -INFINITY) {
            set.tokens[set.n++] = (reference_token){(int32_t)token, logit, 0, 0};
        }
    }
    const perch_sampling *p = in->sampling;
    if (set.n > 0 && p->temperature == 0) {
        filter_top_k(&set, 1);
    } else if (set.n > 0) {
        reference_filter(&set, p->temperature, p->top_k, p->typical_p, p->top_p, p->min_p);
    }
    return set;
}

static float bell(test_rng *rng) {
    double sum = 0;
    for (int i = 0; i < 12; i++) {
        sum += test_rng_unit(rng);
    }
    return (float)(sum - 6);
}

void reference_row(test_rng *rng, float *logits, uint32_t n) {
    uint64_t kind = test_rng_below(rng, 7);
    float scale = (float)exp(test_rng_unit(rng) * 6 - 3);
    for (uint32_t i = 0; i < n; i++) {
        float value = bell(rng);
        logits[i] = kind == 0   ? value * scale
                    : kind == 1 ? value * 1e-3f
                    : kind == 2 ? roundf(value * 2) / 2
                    : kind == 3 ? 0.0f * value /* zeros of both signs */
                    : kind == 4 ? (float)i * scale
                    : kind == 5 ? value * 1e30f
                                : (test_rng_below(rng, 8) ? -12.0f : value);
    }
}

perch_sampling reference_sampling(test_rng *rng, uint32_t vocab_size) {
    perch_sampling p = {.struct_size = sizeof p, .top_p = 1, .typical_p = 1, .repetition_penalty = 1};
    p.temperature = test_rng_below(rng, 8) ? exp(test_rng_unit(rng) * 4 - 2) : 0;
    p.top_k = test_rng_below(rng, 2) ? (int32_t)(1 + test_rng_below(rng, vocab_size + 2)) : 0;
    p.typical_p = test_rng_below(rng, 2) ? 1 - test_rng_unit(rng) : 1;
    p.top_p = test_rng_below(rng, 2) ? 1 - test_rng_unit(rng) : 1;
    p.min_p = test_rng_below(rng, 2) ? test_rng_unit(rng) / 2 : 0;
    p.repetition_penalty = test_rng_below(rng, 2) ? 0.5 + test_rng_unit(rng) : 1;
    p.frequency_penalty = test_rng_below(rng, 2) ? test_rng_unit(rng) * 4 - 2 : 0;
    p.presence_penalty = test_rng_below(rng, 2) ? test_rng_unit(rng) * 4 - 2 : 0;
    p.seed = test_rng_next(rng);
    return p;
}
