/*
 * candidates: filters on the set of tokens that may be chosen. Top-k, typical and top-p all keep the front of some
 * order until a measure (a count, or a probability) is reached. Nothing is sorted for that: where the front ends is
 * found by radix selection, in linear time for a peaked distribution and a flat one alike.
 */
#include "engine/candidates.h"

#include <math.h>
#include <string.h>

/* Drops what isn't marked. */
static void keep_marked(candidates *c) {
    uint32_t kept = 0;
    for (uint32_t i = 0; i < c->n; i++) {
        if (c->keep[i]) {
            c->id[kept] = c->id[i];
            c->logit[kept] = c->logit[i];
            c->weight[kept] = c->weight[i];
            kept++;
        }
    }
    c->n = kept;
}

static double sum(const double *values, size_t n) {
    double total = 0;
    for (size_t i = 0; i < n; i++) {
        total += values[i];
    }
    return total;
}

static double largest(const double *values, size_t n) {
    /* Eight at a time don't wait for each other, and a vector unit takes them at once. */
    double lane[8];
    for (size_t j = 0; j < 8; j++) {
        lane[j] = -INFINITY;
    }
    for (; n >= 8; values += 8, n -= 8) {
        for (size_t j = 0; j < 8; j++) {
            lane[j] = values[j] > lane[j] ? values[j] : lane[j];
        }
    }
    for (size_t j = 0; j < n; j++) {
        lane[j] = values[j] > lane[j] ? values[j] : lane[j];
    }
    for (size_t j = 1; j < 8; j++) {
        lane[0] = lane[j] > lane[0] ? lane[j] : lane[0];
    }
    return lane[0];
}

/* log weight; the largest logit is 0 even where it is infinite. */
static double log_weight(double logit, double best, double temperature) {
    return logit == best ? 0.0 : (logit - best) / temperature;
}

/* Bits that sort as the numbers do. Adding 0 makes one zero of both; NaN doesn't occur. */
static uint64_t sort_key(double value) {
    uint64_t bits;
    value += 0.0;
    memcpy(&bits, &value, sizeof bits);
    return bits >> 63 ? ~bits : bits | UINT64_C(1) << 63;
}

/* One round of the selection: the buckets that the next few bits of the keys make. */
typedef struct radix {
    unsigned shift;
    uint64_t mask;
} radix;

/*
 * Measures the buckets of the undecided ones and finds the one in which taken reaches target; taken becomes what lies
 * before it. Returns its number, or CANDIDATES_BUCKETS where all of them together don't reach it.
 */
static uint64_t find_bucket(candidates *c, bool weighted, uint32_t n, radix r, double *taken, double target) {
    memset(c->measure, 0, (size_t)(r.mask + 1) * sizeof *c->measure);
    for (uint32_t i = 0; i < n; i++) {
        uint32_t at = c->order[i];
        c->measure[c->key[at] >> r.shift & r.mask] += weighted ? c->weight[at] : 1.0;
    }
    for (uint64_t bucket = 0; bucket <= r.mask; bucket++) {
        if (c->measure[bucket] > 0 && *taken + c->measure[bucket] >= target) {
            return bucket;
        }
        *taken += c->measure[bucket];
    }
    return CANDIDATES_BUCKETS;
}

/*
 * Keeps, in the order of key, then index, the shortest front whose weights (unweighted: one each) add up to target,
 * which is not above what all of them add up to, but for rounding. Sums run by bucket, and in a bucket by index.
 */
static void keep_front(candidates *c, bool weighted, double target) {
    static const radix rounds[] = {{52, 0xFFF}, {41, 0x7FF}, {30, 0x7FF}, {19, 0x7FF}, {8, 0x7FF}, {0, 0xFF}};
    uint32_t n = c->n;
    double taken = 0;
    memset(c->keep, 0, n);
    for (uint32_t i = 0; i < n; i++) {
        c->order[i] = i;
    }
    for (size_t round = 0; round < sizeof rounds / sizeof rounds[0] && n > 1; round++) {
        radix r = rounds[round];
        uint64_t border = find_bucket(c, weighted, n, r, &taken, target);
        uint32_t undecided = 0;
        for (uint32_t i = 0; i < n; i++) {
            uint32_t at = c->order[i];
            uint64_t bucket = c->key[at] >> r.shift & r.mask;
            c->keep[at] = bucket < border;
            c->order[undecided] = at;
            undecided += bucket == border;
        }
        n = undecided;
    }
    /* What is left has one and the same key. */
    for (uint32_t i = 0; i < n && (i == 0 || taken < target); i++) {
        c->keep[c->order[i]] = 1;
        taken += weighted ? c->weight[c->order[i]] : 1.0;
    }
    keep_marked(c);
}

void candidates_top_k(candidates *c, uint32_t k) {
    if (k >= c->n) {
        return;
    }
    /* Of k blocks each has a token no worse than the worst of the blocks' best: what is below that is out at once. */
    uint32_t block = c->n / k, kept = 0;
    double least = INFINITY;
    for (uint32_t i = 0; i < k; i++) {
        least = fmin(least, largest(c->logit + (size_t)i * block, block));
    }
    for (uint32_t i = 0; i < c->n; i++) {
        if (c->logit[i] >= least) {
            c->id[kept] = c->id[i];
            c->logit[kept++] = c->logit[i];
        }
    }
    c->n = kept;
    if (k < c->n) {
        for (uint32_t i = 0; i < c->n; i++) {
            c->key[i] = sort_key(-c->logit[i]);
        }
        keep_front(c, false, k);
    }
}

void candidates_weigh(candidates *c, double temperature) {
    double best = largest(c->logit, c->n);
    for (uint32_t i = 0; i < c->n; i++) {
        c->weight[i] = exp(log_weight(c->logit[i], best, temperature));
    }
}

void candidates_typical(candidates *c, double temperature, double p) {
    if (p >= 1) {
        return;
    }
    double best = largest(c->logit, c->n), total = sum(c->weight, c->n), moment = 0;
    for (uint32_t i = 0; i < c->n; i++) {
        if (c->weight[i] > 0) {
            moment += c->weight[i] * log_weight(c->logit[i], best, temperature);
        }
    }
    /* -log p = log total - log weight and H = log total - moment / total: the difference needs no logarithm. */
    double mean = moment / total;
    for (uint32_t i = 0; i < c->n; i++) {
        c->key[i] = sort_key(fabs(mean - log_weight(c->logit[i], best, temperature)));
    }
    keep_front(c, true, p * total);
}

void candidates_top_p(candidates *c, double p) {
    if (p >= 1) {
        return;
    }
    for (uint32_t i = 0; i < c->n; i++) {
        c->key[i] = sort_key(-c->logit[i]);
    }
    keep_front(c, true, p * sum(c->weight, c->n));
}

void candidates_min_p(candidates *c, double p) {
    if (p <= 0) {
        return;
    }
    double least = p * largest(c->weight, c->n);
    for (uint32_t i = 0; i < c->n; i++) {
        c->keep[i] = c->weight[i] >= least;
    }
    keep_marked(c);
}

uint32_t candidates_draw(const candidates *c, double unit) {
    double target = unit * sum(c->weight, c->n), reached = 0;
    uint32_t last = 0;
    for (uint32_t i = 0; i < c->n; i++) {
        reached += c->weight[i];
        last = c->weight[i] > 0 ? i : last;
        if (reached > target) {
            break;
        }
    }
    return last;
}
