/*
 * sampler: logits in, one token out. Adjusts a copy of the logits (bias, bans, penalties), narrows the candidates down,
 * draws, and reports log-probabilities of the model's own distribution. Scratch memory is made once; a call allocates
 * nothing and clears nothing of the vocabulary's size: what is known of a token is void unless its stamp is the call's.
 */
#include "engine/sampler.h"

#include "engine/candidates.h"

#include <float.h>
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
        2 * sizeof(double) + 2 * sizeof(uint64_t) + sizeof(int32_t) + 2 * sizeof(uint32_t) + sizeof(uint8_t);
    return CANDIDATES_BUCKETS * sizeof(double) + each * vocab_size;
}

uint64_t sampler_bytes(uint32_t vocab_size) { return sizeof(sampler) + scratch_bytes(vocab_size); }

perch_status sampler_create(uint32_t vocab_size, sampler **out, perch_error *err) {
    *out = NULL;
    if (vocab_size == 0 || vocab_size > INT32_MAX || sampler_bytes(vocab_size) > SIZE_MAX) {
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
    s->set.measure = (double *)(void *)scratch;
    s->set.logit = s->set.measure + CANDIDATES_BUCKETS;
    s->set.weight = s->set.logit + vocab_size;
    s->set.key = (uint64_t *)(void *)(s->set.weight + vocab_size);
    s->stamps = s->set.key + vocab_size;
    s->set.id = (int32_t *)(void *)(s->stamps + vocab_size);
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

/* A finite logit stays finite however extreme the parameters; only bans make -inf. NaN and infinities pass through. */
static double within_range(double adjusted) {
    return adjusted > DBL_MAX ? DBL_MAX : adjusted < -DBL_MAX ? -DBL_MAX : adjusted;
}

static void apply_bias_and_bans(double *logit, const sampler_input *in) {
    const perch_sampling *p = in->sampling;
    for (size_t i = 0; i < p->n_logit_bias; i++) {
        logit[p->logit_bias[i].token] += (double)p->logit_bias[i].bias;
    }
    for (size_t i = 0; i < p->n_banned_tokens; i++) {
        logit[p->banned_tokens[i]] = -INFINITY;
    }
    for (size_t i = 0; i < in->n_suppressed; i++) {
        logit[in->suppressed[i]] = -INFINITY;
    }
}

/* Once for each token of the sequence, however often it stands there. */
static void apply_repetition_penalty(sampler *s, const sampler_input *in) {
    double penalty = in->sampling->repetition_penalty;
    if (penalty == 1) {
        return;
    }
    s->stamp++;
    for (uint64_t i = 0; i < in->n_tokens; i++) {
        int32_t token = in->tokens[i];
        if (in_vocab(s, token) && s->stamps[token] != s->stamp) {
            double *logit = &s->set.logit[token];
            s->stamps[token] = s->stamp;
            if (isfinite(*logit)) {
                *logit = within_range(*logit > 0 ? *logit / penalty : *logit * penalty);
            }
        }
    }
}

/* By how often this request generated a token: frequency times the count, presence once. */
static void apply_count_penalties(sampler *s, const sampler_input *in) {
    double frequency = in->sampling->frequency_penalty, presence = in->sampling->presence_penalty;
    if (frequency == 0 && presence == 0) {
        return;
    }
    s->stamp++;
    for (uint64_t i = in->n_prompt; i < in->n_tokens; i++) {
        int32_t token = in->tokens[i];
        if (in_vocab(s, token)) {
            s->counts[token] = s->stamps[token] == s->stamp ? s->counts[token] + 1 : 1;
            s->stamps[token] = s->stamp;
        }
    }
    for (uint64_t i = in->n_prompt; i < in->n_tokens; i++) {
        int32_t token = in->tokens[i];
        if (in_vocab(s, token) && s->stamps[token] == s->stamp) {
            double *logit = &s->set.logit[token];
            s->stamps[token] = s->stamp - 1;
            if (isfinite(*logit)) {
                *logit = within_range(*logit - (frequency * s->counts[token] + presence));
            }
        }
    }
}

/* Makes the set of all tokens that may be chosen. False where there is none. */
static bool drop_unfit(candidates *set, uint32_t vocab_size) {
    uint32_t n = 0;
    for (uint32_t token = 0; token < vocab_size; token++) {
        double logit = set->logit[token];
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

/* [0, 1) with 53 bits, of seed, position and completion alone. */
static double draw_unit(const sampler_input *in) {
    uint64_t position = in->n_tokens, seed = in->sampling->seed;
    const uint32_t counter[4] = {(uint32_t)position, (uint32_t)(position >> 32), in->completion, 0};
    const uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
    uint32_t word[4];
    philox4x32(counter, key, word);
    return (double)(((uint64_t)word[0] << 32 | word[1]) >> 11) * 0x1p-53;
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
    for (uint32_t token = 0; token < s->vocab_size; token++) {
        set->logit[token] = (double)in->logits[token];
    }
    apply_bias_and_bans(set->logit, in);
    apply_repetition_penalty(s, in);
    apply_count_penalties(s, in);
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
    candidates_weigh(set, p->temperature);
    candidates_typical(set, p->temperature, p->typical_p);
    candidates_top_p(set, p->top_p);
    candidates_min_p(set, p->min_p);
    return set->id[candidates_draw(set, draw_unit(in))];
}

/* Log softmax of one row: log p(token) = (logit - best) - log_total. NaN counts as -inf. */
typedef struct row_softmax {
    double best, log_total;
} row_softmax;

static row_softmax row_softmax_of(const float *logits, uint32_t n) {
    float best = row_largest(logits, n);
    double total = 0;
    for (uint32_t i = 0; i < n; i++) {
        /* Equals of an infinite best are certain together: each weighs 1. */
        total += logits[i] == best ? 1.0 : logits[i] < best ? exp((double)logits[i] - (double)best) : 0.0;
    }
    return (row_softmax){(double)best, total > 0 ? log(total) : 0}; /* no total: all NaN, each -inf whatever it is */
}

static float row_logprob(row_softmax row, float logit) {
    double value = (double)logit;
    if (isnan(value) || value == -INFINITY) {
        return -INFINITY;
    }
    return (float)((value == row.best ? 0.0 : value - row.best) - row.log_total);
}

float sampler_logprob(const float *logits, uint32_t vocab_size, int32_t token) {
    return row_logprob(row_softmax_of(logits, vocab_size), logits[token]);
}

/* The n best of the row by insertion into a sorted list: n is at most 20; nearly all tokens fail the first test. */
static void top_logprobs(const float *logits, uint32_t vocab_size, row_softmax row, uint32_t n, sampler_output *out) {
    float best[SAMPLER_MAX_LOGPROBS] = {0};
    uint32_t have = 0;
    n = n > vocab_size ? vocab_size : n;
    for (uint32_t token = 0; token < vocab_size; token++) {
        float logit = isnan(logits[token]) ? -INFINITY : logits[token];
        if (have == n && !(logit > best[n - 1])) {
            continue;
        }
        uint32_t at = have < n ? have++ : n - 1;
        for (; at > 0 && logit > best[at - 1]; at--) {
            best[at] = best[at - 1];
            out->top[at] = out->top[at - 1];
        }
        best[at] = logit;
        out->top[at].token = (int32_t)token;
    }
    for (uint32_t i = 0; i < n; i++) {
        out->top[i].logprob = row_logprob(row, best[i]);
    }
    out->n_top = n;
}

perch_status sampler_sample(sampler *s, const sampler_input *in, sampler_output *out, perch_error *err) {
    int32_t token = choose(s, in);
    if (token < 0) {
        return err_set(err, PERCH_E_INVALID,
                       "no token is left at position %llu: each is banned, or its logit is -inf or not a number",
                       (unsigned long long)in->n_tokens);
    }
    out->token = token;
    out->logprob = 0;
    out->n_top = 0;
    if (in->want_logprob || in->sampling->n_logprobs > 0) {
        row_softmax row = row_softmax_of(in->logits, s->vocab_size);
        out->logprob = row_logprob(row, in->logits[token]);
        if (in->sampling->n_logprobs > 0) {
            top_logprobs(in->logits, s->vocab_size, row, in->sampling->n_logprobs, out);
        }
    }
    return PERCH_OK;
}
