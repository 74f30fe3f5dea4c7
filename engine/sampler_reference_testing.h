/*
 * sampler_reference: the sampler written naively, in long double, for the tests to compare with. It sorts everything at
 * every filter. Where rounding could decide (a border as near as the weights' resolution) it says so instead of insisting.
 */
#ifndef PERCH_ENGINE_SAMPLER_REFERENCE_H
#define PERCH_ENGINE_SAMPLER_REFERENCE_H

#include "engine/sampler.h"
#include "tests/support/check.h"

typedef struct reference_token {
    int32_t id;
    double logit;
    long double p;
    long double key; /* of the filter at work */
} reference_token;

typedef struct reference_set {
    reference_token *tokens; /* [n] by id; the caller's to free */
    size_t n;
    bool ambiguous;
    long double margin; /* by how much rounding of weights to 2^-44 of the likeliest may move a sum of p */
} reference_set;

/* Everything before the draw. n is 0 where no token is left. Temperature 0 leaves one. */
reference_set reference_choose(const sampler_input *in, uint32_t vocab_size);

/* The filters alone, on tokens sorted by id. */
void reference_filter(reference_set *set, double temperature, int32_t top_k, double typical_p, double top_p,
                      double min_p);

/* Fills logits[n] with one of several kinds of rows: bell-shaped, flat, with many ties, ascending, far apart. */
void reference_row(test_rng *rng, float *logits, uint32_t n);

/* Random parameters, each filter on about every second time. */
perch_sampling reference_sampling(test_rng *rng, uint32_t vocab_size);

#endif
