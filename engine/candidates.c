/*
 * candidates: filters on the set of tokens that may be chosen. Top-k, typical and top-p all keep the front of some
 * order until a measure (a count, or a probability) is reached. Nothing is sorted for that: where the front ends is
 * found by radix selection, in linear time for a peaked distribution and a flat one alike.
 */
#include "engine/candidates.h"

#include "base/sampling_math.h"

#include <math.h>
#include <string.h>

/* Drops what isn't marked. */
static void keep_marked(candidates *c) {
    uint32_t kept = 0;
    for (uint32_t i = 0; i < c->n; i++) {
        c->id[kept] = c->id[i];
        c->logit[kept] = c->logit[i];
        c->weight[kept] = c->weight[i];
        kept += c->keep[i];
    }
    c->n = kept;
}

static uint64_t sum(const uint64_t *values, size_t n) {
    uint64_t total = 0;
    for (size_t i = 0; i < n; i++) {
        total += values[i];
    }
    return total;
}

static float largest(const float *values, size_t n) {
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

/* log weight; the largest logit is 0 even where it is infinite. */
static double log_weight(float logit, float best, double inverse_temperature) {
    return logit == best ? 0.0 : ((double)logit - (double)best) * inverse_temperature;
}

/* How many of a key's bits order the set, from the lowest on. */
enum { LOGIT_BITS = 32, DISTANCE_BITS = 64 };

static void order_by_logit(candidates *c) {
    for (uint32_t i = 0; i < c->n; i++) {
        c->key[i] = UINT32_MAX - sampling_key(c->logit[i]);
    }
}

/* Bits that sort as these numbers do: none is negative or NaN. */
static uint64_t distance_key(double value) {
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

/* One round of the selection: the buckets that the next few bits of the keys make. */
typedef struct radix {
    unsigned shift;
    uint64_t mask;
} radix;

/*
 * Measures the buckets of the undecided ones (order: NULL = all) and finds the one in which taken reaches target; taken becomes
 * what lies before it.
 */
static uint64_t find_bucket(candidates *c, bool weighted, const uint32_t *order, uint32_t n, radix r, uint64_t *taken,
                            uint64_t target) {
    uint64_t bucket = 0;
    memset(c->measure, 0, (size_t)(r.mask + 1) * sizeof *c->measure);
    for (uint32_t i = 0; i < n; i++) {
        uint32_t at = order ? order[i] : i;
        c->measure[c->key[at] >> r.shift & r.mask] += weighted ? c->weight[at] : 1;
    }
    while (*taken + c->measure[bucket] < target) {
        *taken += c->measure[bucket++];
    }
    return bucket;
}

/*
 * Keeps, in the order of key, then index, the shortest front whose weights (unweighted: one each) add up to target, which is
 * more than nothing and not above what all of them add up to.
 */
static void keep_front(candidates *c, bool weighted, unsigned key_bits, uint64_t target) {
    const uint32_t *order = NULL;
    uint32_t n = c->n;
    uint64_t taken = 0;
    for (unsigned left = key_bits; left > 0 && (n > 1 || !order);) {
        unsigned width = left < 11 ? left : 11;
        radix r = {left -= width, (UINT64_C(1) << width) - 1};
        uint64_t border = find_bucket(c, weighted, order, n, r, &taken, target);
        uint32_t undecided = 0;
        for (uint32_t i = 0; i < n; i++) {
            uint32_t at = order ? order[i] : i;
            uint64_t bucket = c->key[at] >> r.shift & r.mask;
            c->keep[at] = bucket < border;
            c->order[undecided] = at;
            undecided += bucket == border;
        }
        n = undecided;
        order = c->order;
    }
    /* What is left has one and the same key. */
    for (uint32_t i = 0; i < n && taken < target; i++) {
        c->keep[order[i]] = 1;
        taken += weighted ? c->weight[order[i]] : 1;
    }
    keep_marked(c);
}

void candidates_top_k(candidates *c, uint32_t k) {
    if (k >= c->n) {
        return;
    }
    /* Of k blocks each has a token no worse than the worst of the blocks' best: what is below that is out at once. */
    uint32_t block = c->n / k, kept = 0;
    float least = INFINITY;
    for (uint32_t i = 0; i < k; i++) {
        least = fminf(least, largest(c->logit + (size_t)i * block, block));
    }
    for (uint32_t i = 0; i < c->n; i++) {
        if (c->logit[i] >= least) {
            c->id[kept] = c->id[i];
            c->logit[kept++] = c->logit[i];
        }
    }
    c->n = kept;
    if (k < c->n) {
        order_by_logit(c);
        keep_front(c, false, LOGIT_BITS, k);
    }
}

void candidates_weigh(candidates *c, double inverse_temperature) {
    const sampling_scale scale = sampling_scale_of(largest(c->logit, c->n), inverse_temperature);
    for (uint32_t i = 0; i < c->n; i++) {
        c->weight[i] = sampling_weight(c->logit[i], scale) >> c->shift;
    }
}

void candidates_typical(candidates *c, double inverse_temperature, double p) {
    if (p >= 1) {
        return;
    }
    const float best = largest(c->logit, c->n);
    uint64_t total = sum(c->weight, c->n);
    double moment = 0;
    for (uint32_t i = 0; i < c->n; i++) {
        if (c->weight[i] > 0) {
            moment += (double)c->weight[i] * log_weight(c->logit[i], best, inverse_temperature);
        }
    }
    /* -log p = log total - log weight and H = log total - moment / total: the difference needs no logarithm. */
    double mean = moment / (double)total;
    for (uint32_t i = 0; i < c->n; i++) {
        c->key[i] = distance_key(fabs(mean - log_weight(c->logit[i], best, inverse_temperature)));
    }
    keep_front(c, true, DISTANCE_BITS, sampling_portion(sampling_share(p), total));
}

void candidates_top_p(candidates *c, double p) {
    if (p >= 1) {
        return;
    }
    order_by_logit(c);
    keep_front(c, true, LOGIT_BITS, sampling_portion(sampling_share(p), sum(c->weight, c->n)));
}

void candidates_min_p(candidates *c, double p) {
    if (p <= 0) {
        return;
    }
    uint64_t best = 0;
    for (uint32_t i = 0; i < c->n; i++) {
        best = c->weight[i] > best ? c->weight[i] : best;
    }
    uint64_t least = sampling_portion(sampling_share(p), best);
    for (uint32_t i = 0; i < c->n; i++) {
        c->keep[i] = c->weight[i] >= least;
    }
    keep_marked(c);
}

uint32_t candidates_draw(const candidates *c, uint64_t random) {
    uint64_t point = sampling_point(random, sum(c->weight, c->n));
    uint32_t i = 0;
    for (uint64_t reached = c->weight[0]; reached <= point; reached += c->weight[++i]) {}
    return i;
}
