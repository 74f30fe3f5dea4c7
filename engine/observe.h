/*
 * observe: what the engine tells about itself beside perch_stats' plain counters: the trace, how old what is evicted was,
 * what a token that needs no computing spares. The engine's other files call it where things happen, a line each
 * (impl.h); nothing that the engine does depends on it.
 */
#ifndef PERCH_ENGINE_OBSERVE_H
#define PERCH_ENGINE_OBSERVE_H

#include "engine/trace.h"

/* Ages of evictions: by powers of two of microseconds, each in four; the last are 2^40 us, 12 days, and more. */
#define OBSERVE_AGE_PARTS 4u
#define OBSERVE_AGE_CELLS (40u * OBSERVE_AGE_PARTS)

typedef struct observer {
    trace *trace; /* or NULL */
    uint64_t n_spans;
    uint64_t arrived[TRACE_N_ROUTES]; /* the last ticket of each */

    /* the engine's counters when the last step was told */
    uint64_t prefill_tokens, decode_tokens;

    /* of steps that were prefill for the most part, the older the less */
    double prefill_us, prefill_step_tokens;
    double saved_us;

    uint64_t n_ages;
    uint64_t ages[OBSERVE_AGE_CELLS];
    uint64_t age_us; /* their sum */
} observer;

/* Into which cell an age belongs, and the age in the middle of a cell. */
uint32_t observe_age_cell(uint64_t us);
uint64_t observe_age_of(uint32_t cell);

#endif
