/*
 * samples: measured numbers, their percentiles, and the random numbers that benchmarks are made of.
 */
#ifndef PERCH_TOOLS_SAMPLES_H
#define PERCH_TOOLS_SAMPLES_H

#include "perch/perch.h"

#include <jansson.h>
#include <stdbool.h>

/* values[n], owned; freed by samples_free. {0} is empty. */
struct samples {
    double *values;
    size_t n;
    size_t cap;
    bool sorted;
};

perch_status samples_add(struct samples *samples, double value, perch_error *err);
void samples_free(struct samples *samples);

/* The p-th percentile (0..100), between neighbours by straight line; NaN of nothing. Sorts. */
double samples_percentile(struct samples *samples, double p);
double samples_mean(const struct samples *samples);

/* {"n", "mean", "p50", "p90", "p99", "max"}, null where there is nothing; a new reference, NULL: out of memory. */
json_t *samples_json(struct samples *samples);

/* splitmix64: the same numbers from the same seed everywhere. */
struct rng {
    uint64_t state;
};
uint64_t rng_next(struct rng *rng);
uint32_t rng_below(struct rng *rng, uint32_t n); /* 0..n-1 */
double rng_unit(struct rng *rng);                /* [0, 1) */

/* Draws 0..n-1 with probabilities 1 / (k+1)^exponent, by bisection in their sums. */
struct zipf {
    double *sums; /* [n], owned */
    uint32_t n;
};
perch_status zipf_create(struct zipf *zipf, uint32_t n, double exponent, perch_error *err);
void zipf_free(struct zipf *zipf);
uint32_t zipf_draw(const struct zipf *zipf, struct rng *rng);

#endif
