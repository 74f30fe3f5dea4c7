/*
 * bench_full: the full part of a grid's round: all of its conversations decode, from the last first token until the first of
 * them ends. What is measured there is of one batch size, without the steps in which the batch fills and empties.
 */
#ifndef PERCH_TOOLS_BENCH_FULL_H
#define PERCH_TOOLS_BENCH_FULL_H

#include "samples.h"

enum bench_full_stage { FULL_NONE, FULL_AHEAD, FULL_OPEN };

/* {0} is empty. A value for each round that had a full part. */
struct bench_full {
    struct samples decode_rates; /* tokens a second */
    struct samples host_us;      /* of a step: scheduling, sampling and commit */
    struct samples contexts;     /* mean length of a conversation */
    /* the round that runs */
    enum bench_full_stage stage;
    perch_stats begin, from; /* at the beginning of the round, of its full part */
    uint64_t from_us;
};

/* A round begins. */
perch_status bench_full_begin(struct bench_full *full, perch_engine *engine, perch_error *err);

/* Every conversation of the round has its first token. */
perch_status bench_full_open(struct bench_full *full, perch_engine *engine, uint64_t now_us, perch_error *err);

/* A conversation ended; the round has n of them, whose prompts have n_prompt tokens. */
perch_status bench_full_close(struct bench_full *full, perch_engine *engine, uint64_t now_us, uint32_t n,
                              uint32_t n_prompt, perch_error *err);

void bench_full_free(struct bench_full *full);

#endif
