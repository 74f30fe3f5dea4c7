/*
 * candidates: the tokens that may still be chosen, and the filters that narrow them down: top-k, typical, top-p, min-p.
 * The set stays in ascending order of token id whatever a filter removes, so ties are broken by id by breaking them by index,
 * and the draw that follows needs no sorting. Weights are integers (base/sampling_math.h): what a filter keeps does not depend on
 * an order of addition, and a device that adds in another keeps the same. Every filter takes O(n).
 */
#ifndef PERCH_ENGINE_CANDIDATES_H
#define PERCH_ENGINE_CANDIDATES_H

#include "base/base.h"

/* Buckets of one round of selection. */
#define CANDIDATES_BUCKETS 2048u

/* All arrays are the sampler's scratch, [vocab_size] but for one, of which the set uses the first n. n is never 0. */
typedef struct candidates {
    uint32_t n;
    uint32_t shift;    /* of weights, as the vocabulary's size has it (sampling_shift) */
    int32_t *id;       /* ascending */
    float *logit;      /* finite or +inf, never NaN */
    uint64_t *weight;  /* what candidates_weigh made of the logits */
    uint64_t *key;     /* a filter's order: smaller first */
    uint32_t *order;   /* a filter's undecided indices, ascending */
    uint8_t *keep;     /* a filter's marks */
    uint64_t *measure; /* [CANDIDATES_BUCKETS] */
} candidates;

/* Keeps the k largest logits. Needs no weights; 0 < k. */
void candidates_top_k(candidates *c, uint32_t k);

/* weight = sampling_weight >> shift: the largest weighs SAMPLING_ONE >> shift. */
void candidates_weigh(candidates *c, double inverse_temperature);

/*
 * Locally typical sampling (Meister et al., 2022): of the tokens ordered by |-log p - H|, H the entropy, keeps the
 * shortest front whose probability reaches p. Temperature is the one that the weights were made with. 0 < p <= 1.
 */
void candidates_typical(candidates *c, double inverse_temperature, double p);

/* Nucleus sampling: of the tokens ordered by probability keeps the shortest front that reaches p. 0 < p <= 1. */
void candidates_top_p(candidates *c, double p);

/* Keeps the tokens at least p times as likely as the likeliest. 0 <= p < 1. */
void candidates_min_p(candidates *c, double p);

/* The index whose share of the whole weight, laid out in order of id, holds `random` of 2^64. */
uint32_t candidates_draw(const candidates *c, uint64_t random);

#endif
