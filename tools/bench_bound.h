/*
 * bench_bound: how fast a grid's run could be at most, by what the device copies and multiplies in a second.
 */
#ifndef PERCH_TOOLS_BENCH_BOUND_H
#define PERCH_TOOLS_BENCH_BOUND_H

#include "bench_run.h"

/* Tokens a second; NaN where the limit is not known. */
struct bench_bound {
    double prefill_by_matrix;
    double decode_by_copy;
    double decode_by_matrix;
    double prefill_share; /* that the median round reached */
    double decode_share;  /* of the lower bound; NaN without copy_gbps */
};

/*
 * Counted is what has to be done: each token is multiplied with all of the model's weights (but for the output's matrix,
 * which only a prompt's last one meets) and with the keys and values before it; a step of decoding reads the weights once, and
 * the keys and values of every conversation.
 */
void bench_bound_compute(struct bench_run *run, struct bench_bound *bound);

#endif
