/*
 * candidates: filters on the set of tokens that may be chosen. None sorts the vocabulary: top-k runs it past a heap of k;
 * the filters by mass take tokens off a heap until the mass is reached.
 */
#include "engine/candidates.h"

#include <math.h>
#include <string.h>

/* The heap has the smallest key at its root, of equal keys the smallest index. */
static bool rank_less(candidate_rank a, candidate_rank b) { return a.key < b.key || (a.key == b.key && a.at < b.at); }

static void heap_sift_down(candidate_rank *heap, size_t n, size_t at) {
    candidate_rank moved = heap[at];
    for (;;) {
        size_t child = 2 * at + 1;
        if (child >= n) {
            break;
        }
        if (child + 1 < n && rank_less(heap[child + 1], heap[child])) {
            child++;
        }
        if (!rank_less(heap[child], moved)) {
            break;
        }
        heap[at] = heap[child];
        at = child;
    }
    heap[at] = moved;
}

static void heap_make(candidate_rank *heap, size_t n) {
    for (size_t at = n / 2; at-- > 0;) {
        heap_sift_down(heap, n, at);
    }
}

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
    double best = -INFINITY;
    for (size_t i = 0; i < n; i++) {
        best = values[i] > best ? values[i] : best;
    }
    return best;
}

/* log weight; the largest logit is 0 even where it is infinite. */
static double log_weight(double logit, double best, double temperature) {
    return logit == best ? 0.0 : (logit - best) / temperature;
}

void candidates_top_k(candidates *c, uint32_t k) {
    if (k >= c->n) {
        return;
    }
    /* The root is the worst of the k best so far. Complemented indices make the later of two equals the worse one. */
    candidate_rank *heap = c->heap;
    for (uint32_t i = 0; i < k; i++) {
        heap[i] = (candidate_rank){c->logit[i], ~i};
    }
    heap_make(heap, k);
    for (uint32_t i = k; i < c->n; i++) {
        if (c->logit[i] > heap[0].key) {
            heap[0] = (candidate_rank){c->logit[i], ~i};
            heap_sift_down(heap, k, 0);
        }
    }
    memset(c->keep, 0, c->n);
    for (uint32_t i = 0; i < k; i++) {
        c->keep[~heap[i].at] = 1;
    }
    keep_marked(c);
}

void candidates_weigh(candidates *c, double temperature) {
    double best = largest(c->logit, c->n);
    for (uint32_t i = 0; i < c->n; i++) {
        c->weight[i] = exp(log_weight(c->logit[i], best, temperature));
    }
}

/* Marks tokens in the order of heap[n] until their weight, added to taken, reaches target. Returns what it reached. */
static double mark_until(candidates *c, size_t n, double taken, double target) {
    heap_make(c->heap, n);
    while (n > 0 && taken < target) {
        taken += c->weight[c->heap[0].at];
        c->keep[c->heap[0].at] = 1;
        c->heap[0] = c->heap[--n];
        heap_sift_down(c->heap, n, 0);
    }
    return taken;
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
        c->heap[i] = (candidate_rank){fabs(mean - log_weight(c->logit[i], best, temperature)), i};
    }
    memset(c->keep, 0, c->n);
    mark_until(c, c->n, 0, p * total);
    keep_marked(c);
}

/* Fills the heap with the tokens whose weight is in [from, to), the likeliest first. */
static size_t heap_by_weight(candidates *c, double from, double to) {
    size_t n = 0;
    for (uint32_t i = 0; i < c->n; i++) {
        if (c->weight[i] >= from && c->weight[i] < to) {
            c->heap[n++] = (candidate_rank){-c->logit[i], i};
        }
    }
    return n;
}

void candidates_top_p(candidates *c, double p) {
    if (p >= 1) {
        return;
    }
    /*
     * All tokens lighter than rest / n together weigh less than what may be left out, so the front ends before them and
     * they needn't be ordered. Only where rounding decides are they looked at after all.
     */
    double total = sum(c->weight, c->n), target = p * total, light = (1 - p) * total / c->n;
    memset(c->keep, 0, c->n);
    double taken = mark_until(c, heap_by_weight(c, light, INFINITY), 0, target);
    if (taken < target) {
        mark_until(c, heap_by_weight(c, 0, light), taken, target);
    }
    keep_marked(c);
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
