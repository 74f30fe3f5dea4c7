/*
 * samples: measured numbers, their percentiles, and the random numbers that benchmarks are made of.
 */
#include "samples.h"

#include "text.h"
#include "tool.h"

#include <math.h>
#include <stdlib.h>

perch_status samples_add(struct samples *samples, double value, perch_error *err) {
    void *values = samples->values;
    perch_status status = grow(&values, &samples->cap, samples->n + 1, sizeof(*samples->values), err);
    samples->values = values;
    if (status == PERCH_OK) {
        samples->values[samples->n++] = value;
        samples->sorted = false;
    }
    return status;
}

void samples_free(struct samples *samples) {
    free(samples->values);
    *samples = (struct samples){0};
}

static int compare(const void *a, const void *b) {
    double x = *(const double *)a;
    double y = *(const double *)b;
    return (x > y) - (x < y);
}

double samples_percentile(struct samples *samples, double p) {
    if (samples->n == 0) {
        return (double)NAN;
    }
    if (!samples->sorted) {
        qsort(samples->values, samples->n, sizeof(*samples->values), compare);
        samples->sorted = true;
    }
    double place = p / 100.0 * (double)(samples->n - 1);
    size_t below = (size_t)place;
    if (below + 1 >= samples->n) {
        return samples->values[samples->n - 1];
    }
    double part = place - (double)below;
    return samples->values[below] * (1.0 - part) + samples->values[below + 1] * part;
}

double samples_mean(const struct samples *samples) {
    double sum = 0.0;
    for (size_t i = 0; i < samples->n; i++) {
        sum += samples->values[i];
    }
    return samples->n == 0 ? (double)NAN : sum / (double)samples->n;
}

json_t *samples_json(struct samples *samples) {
    if (samples->n == 0) {
        return json_pack("{s:i, s:n, s:n, s:n, s:n, s:n}", "n", 0, "mean", "p50", "p90", "p99", "max");
    }
    return json_pack("{s:I, s:f, s:f, s:f, s:f, s:f}", "n", (json_int_t)samples->n, "mean", samples_mean(samples),
                     "p50", samples_percentile(samples, 50), "p90", samples_percentile(samples, 90), "p99",
                     samples_percentile(samples, 99), "max", samples_percentile(samples, 100));
}

/* ---------------------------------------------------------------- random -- */

uint64_t rng_next(struct rng *rng) {
    uint64_t z = rng->state += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

uint32_t rng_below(struct rng *rng, uint32_t n) { return (uint32_t)(((rng_next(rng) >> 32) * n) >> 32); }

double rng_unit(struct rng *rng) { return (double)(rng_next(rng) >> 11) * 0x1p-53; }

perch_status zipf_create(struct zipf *zipf, uint32_t n, double exponent, perch_error *err) {
    *zipf = (struct zipf){.n = n};
    zipf->sums = malloc(n * sizeof(*zipf->sums));
    if (zipf->sums == NULL) {
        return tool_nomem(err);
    }
    double sum = 0.0;
    for (uint32_t k = 0; k < n; k++) {
        sum += pow((double)k + 1.0, -exponent);
        zipf->sums[k] = sum;
    }
    return PERCH_OK;
}

void zipf_free(struct zipf *zipf) {
    free(zipf->sums);
    *zipf = (struct zipf){0};
}

uint32_t zipf_draw(const struct zipf *zipf, struct rng *rng) {
    double at = rng_unit(rng) * zipf->sums[zipf->n - 1];
    uint32_t low = 0;
    uint32_t high = zipf->n - 1;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (zipf->sums[middle] > at) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    return low;
}
