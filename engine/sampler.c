/*
 * sampler: logits in, one token out. Adjusts a copy of the logits (bias, bans, penalties), narrows the candidates down,
 * draws, and reports log-probabilities of the model's own distribution. Scratch memory is made once; a call allocates
 * nothing and clears nothing of the vocabulary's size: what is known of a token is void unless its stamp is the call's.
 */
#include "engine/sampler.h"

#include "base/sampling_math.h"
#include "engine/candidates.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

struct sampler {
    uint32_t vocab_size;
    uint64_t stamp;   /* the current pass over the tokens; a token was met in it if stamps[token] is this */
    uint64_t *stamps; /* [vocab_size]; 64 bits, so no pass is ever mistaken for an old one */
    uint32_t *counts; /* [vocab_size] occurrences, valid under the stamp */
    candidates set;   /* set.logit is indexed by token until unfit tokens are dropped */
};

/* Bytes of all arrays, in the order of their alignment: largest first. */
static uint64_t scratch_bytes(uint32_t vocab_size) {
    const uint64_t each =
        3 * sizeof(uint64_t) + sizeof(float) + sizeof(int32_t) + 2 * sizeof(uint32_t) + sizeof(uint8_t);
    return CANDIDATES_BUCKETS * sizeof(uint64_t) + each * vocab_size;
}

uint64_t sampler_bytes(uint32_t vocab_size) { return sizeof(sampler) + scratch_bytes(vocab_size); }

perch_status sampler_create(uint32_t vocab_size, sampler **out, perch_error *err) {
    *out = NULL;
    if (vocab_size == 0 || vocab_size > INT32_MAX) {
        return err_set(err, PERCH_E_INVALID, "vocab_size: %u is out of range 1..%d", vocab_size, INT32_MAX);
    }
    /* calloc: stamps begin as 0, which no pass has. */
    sampler *s = calloc(1, sizeof *s);
    char *scratch = calloc(1, (size_t)scratch_bytes(vocab_size));
    if (!s || !scratch) {
        free(s);
        free(scratch);
        return err_nomem(err, "the sampler");
    }
    s->vocab_size = vocab_size;
    s->set.shift = sampling_shift(vocab_size);
    s->set.measure = (uint64_t *)(void *)scratch;
    s->set.weight = s->set.measure + CANDIDATES_BUCKETS;
    s->set.key = s->set.weight + vocab_size;
    s->stamps = s->set.key + vocab_size;
    s->set.logit = (float *)(void *)(s->stamps + vocab_size);
    s->set.id = (int32_t *)(void *)(s->set.logit + vocab_size);
    s->set.order = (uint32_t *)(void *)(s->set.id + vocab_size);
    s->counts = s->set.order + vocab_size;
    s->set.keep = (uint8_t *)(void *)(s->counts + vocab_size);
    *out = s;
    return PERCH_OK;
}

void sampler_destroy(sampler *s) {
    if (s) {
        free(s->set.measure);
        free(s);
    }
}

static bool in_vocab(const sampler *s, int32_t token) { return token >= 0 && (uint32_t)token < s->vocab_size; }

static void apply_bias_and_bans(float *logit, const sampler_input *in) {
    const perch_sampling *p = in->sampling;
    for (size_t i = 0; i < p->n_logit_bias; i++) {
        logit[p->logit_bias[i].token] += p->logit_bias[i].bias;
    }
    for (size_t i = 0; i < p->n_banned_tokens; i++) {
        logit[p->banned_tokens[i]] = -INFINITY;
    }
    for (size_t i = 0; i < in->n_suppressed; i++) {
        logit[in->suppressed[i]] = -INFINITY;
    }
}

/* Each token of the sequence that a penalty concerns once, by how often this request generated it. */
static void apply_penalties(sampler *s, const sampler_input *in) {
    const perch_sampling *p = in->sampling;
    const sampling_penalties penalties = {p->repetition_penalty, p->frequency_penalty, p->presence_penalty};
    bool counts = penalties.frequency != 0 || penalties.presence != 0;
    uint64_t first = penalties.repetition != 1 ? 0 : counts ? in->n_prompt : in->n_tokens;
    s->stamp++;
    for (uint64_t i = first; i < in->n_tokens; i++) {
        int32_t token = in->tokens[i];
        if (in_vocab(s, token)) {
            uint32_t before = s->stamps[token] == s->stamp ? s->counts[token] : 0;
            s->counts[token] = before + (i >= in->n_prompt);
            s->stamps[token] = s->stamp;
        }
    }
    for (uint64_t i = first; i < in->n_tokens; i++) {
        int32_t token = in->tokens[i];
        if (in_vocab(s, token) && s->stamps[token] == s->stamp) {
            s->stamps[token] = s->stamp - 1;
            s->set.logit[token] = sampling_penalize(s->set.logit[token], true, s->counts[token], penalties);
        }
    }
}

/* Makes the set of all tokens that may be chosen. False where there is none. */
static bool drop_unfit(candidates *set, uint32_t vocab_size) {
    uint32_t n = 0;
    for (uint32_t token = 0; token < vocab_size; token++) {
        float logit = set->logit[token];
        set->logit[n] = logit;
        set->id[n] = (int32_t)token;
        n += logit > -INFINITY; /* false for NaN too */
    }
    set->n = n;
    return n > 0;
}

/* NaN is never the largest. */
static float row_largest(const float *values, size_t n) {
    /* Sixteen at a time don't wait for each other, and a vector unit takes them at once. */
    float lane[16];
    for (size_t j = 0; j < 16; j++) {
        lane[j] = -INFINITY;
    }
    for (; n >= 16; values += 16, n -= 16) {
        for (size_t j = 0; j < 16; j++) {
            lane[j] = values[j] > lane[j] ? values[j] : lane[j];
        }
    }
    for (size_t j = 0; j < n; j++) {
        lane[j] = values[j] > lane[j] ? values[j] : lane[j];
    }
    for (size_t j = 1; j < 16; j++) {
        lane[0] = lane[j] > lane[0] ? lane[j] : lane[0];
    }
    return lane[0];
}

/* The lowest token among equals, or -1 where each is NaN or -inf. For logits that nothing adjusts: most calls. */
static int32_t row_argmax(const float *logits, uint32_t n) {
    float best = row_largest(logits, n);
    uint32_t at = 0;
    if (best == -INFINITY) {
        return -1;
    }
    while (logits[at] != best) {
        at++;
    }
    return (int32_t)at;
}

static bool adjusts(const sampler_input *in) {
    const perch_sampling *p = in->sampling;
    return p->n_logit_bias > 0 || p->n_banned_tokens > 0 || in->n_suppressed > 0 || p->repetition_penalty != 1 ||
           p->frequency_penalty != 0 || p->presence_penalty != 0;
}

/* -1 where no token may be chosen. */
static int32_t choose(sampler *s, const sampler_input *in) {
    const perch_sampling *p = in->sampling;
    candidates *set = &s->set;
    if (p->temperature == 0 && !adjusts(in)) {
        return row_argmax(in->logits, s->vocab_size);
    }
    memcpy(set->logit, in->logits, s->vocab_size * sizeof *set->logit);
    apply_bias_and_bans(set->logit, in);
    apply_penalties(s, in);
    if (!drop_unfit(set, s->vocab_size)) {
        return -1;
    }
    if (p->temperature == 0) {
        candidates_top_k(set, 1);
        return set->id[0];
    }
    /* Dividing by the temperature keeps the order, so top-k comes first and spares the others' exponentials. */
    if (p->top_k > 0) {
        candidates_top_k(set, (uint32_t)p->top_k);
    }
    const double inverse_temperature = sampling_inverse_temperature(p->temperature);
    candidates_weigh(set, inverse_temperature);
    candidates_typical(set, inverse_temperature, p->typical_p);
    candidates_top_p(set, p->top_p);
    candidates_min_p(set, p->min_p);
    return set->id[candidates_draw(set, sampling_random(p->seed, in->n_tokens, in->completion))];
}

/* Of the model's own distribution: as if at temperature 1. */
static uint64_t row_total(const float *logits, uint32_t n, float best) {
    const sampling_scale scale = sampling_scale_of(best, 1);
    const uint32_t shift = sampling_shift(n);
    uint64_t total = 0;
    for (uint32_t i = 0; i < n; i++) {
        total += sampling_weight(logits[i], scale) >> shift;
    }
    return total;
}

/* log p(token) = (logit - best) - log(total); equals of an infinite best are certain together. */
static float row_logprob(float logit, float best, uint64_t total, uint32_t shift) {
    const uint64_t one = SAMPLING_ONE >> shift;
    if (isnan(logit) || logit == -INFINITY) {
        return -INFINITY;
    }
    /* total is at least the best one's weight. What is beyond it is small where a row is peaked, and then matters. */
    double log_total = log1p((double)(total - one) / (double)one);
    return (float)((logit == best ? 0.0 : (double)logit - (double)best) - log_total);
}

float sampler_logprob(const float *logits, uint32_t vocab_size, int32_t token) {
    float best = row_largest(logits, vocab_size);
    uint64_t total = best > -INFINITY ? row_total(logits, vocab_size, best) : 0;
    return row_logprob(logits[token], best, total, sampling_shift(vocab_size));
}

/* The n best of the row by insertion into a sorted list: n is at most 20; nearly all tokens fail the first test. */
static void top_logits(const float *logits, uint32_t vocab_size, uint32_t n, kernels_chosen *out) {
    uint32_t have = 0;
    n = n > vocab_size ? vocab_size : n;
    for (uint32_t token = 0; token < vocab_size; token++) {
        float logit = isnan(logits[token]) ? -INFINITY : logits[token];
        if (have == n && !(logit > out->top_logit[n - 1])) {
            continue;
        }
        uint32_t at = have < n ? have++ : n - 1;
        for (; at > 0 && logit > out->top_logit[at - 1]; at--) {
            out->top_logit[at] = out->top_logit[at - 1];
            out->top_token[at] = out->top_token[at - 1];
        }
        out->top_logit[at] = logit;
        out->top_token[at] = (int32_t)token;
    }
    out->n_top = n;
}

/* shift: of the total. */
static perch_status report(const kernels_chosen *chosen, uint64_t position, uint32_t shift, sampler_output *out,
                           perch_error *err) {
    static_assert(SAMPLER_MAX_LOGPROBS == KERNELS_MAX_TOP, "what a choice tells is what a request may ask");
    if (chosen->token < 0) {
        return err_set(err, PERCH_E_INVALID,
                       "no token is left at position %llu: each is banned, or its logit is -inf or not a number",
                       (unsigned long long)position);
    }
    out->token = chosen->token;
    out->logprob = chosen->total > 0 ? row_logprob(chosen->logit, chosen->best, chosen->total, shift) : 0;
    out->n_top = chosen->n_top;
    for (uint32_t i = 0; i < chosen->n_top; i++) {
        out->top[i].token = chosen->top_token[i];
        out->top[i].logprob = row_logprob(chosen->top_logit[i], chosen->best, chosen->total, shift);
    }
    return PERCH_OK;
}

perch_status sampler_report(const kernels_chosen *chosen, uint64_t position, sampler_output *out, perch_error *err) {
    return report(chosen, position, 0, out, err);
}

void sampler_choose(sampler *s, const sampler_input *in, kernels_chosen *out) {
    uint32_t n_top = in->sampling->n_logprobs;
    *out = (kernels_chosen){.token = choose(s, in)};
    if (out->token >= 0 && (in->want_logprob || n_top > 0)) {
        out->logit = in->logits[out->token];
        out->best = row_largest(in->logits, s->vocab_size);
        out->total = row_total(in->logits, s->vocab_size, out->best);
        if (n_top > 0) {
            top_logits(in->logits, s->vocab_size, n_top, out);
        }
    }
}

perch_status sampler_sample(sampler *s, const sampler_input *in, sampler_output *out, perch_error *err) {
    kernels_chosen chosen;
    sampler_choose(s, in, &chosen);
    return report(&chosen, in->n_tokens, s->set.shift, out, err);
}
