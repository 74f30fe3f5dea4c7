/*
 * observe: what the engine tells about itself beside perch_stats' plain counters: the trace, the statistics file, how old what
 * is evicted was, how long first tokens take, what tokens that need no computing spare. The engine's other files call it where things happen, a line each
 * (impl.h); nothing that the engine does depends on it.
 */
#ifndef PERCH_ENGINE_OBSERVE_H
#define PERCH_ENGINE_OBSERVE_H

#include "engine/stats_file.h"
#include "engine/times.h"
#include "engine/trace.h"

typedef struct observer {
    trace *trace; /* or NULL */
    uint64_t n_spans;
    bool has_sent[TRACE_N_ROUTES];
    uint64_t arrived[TRACE_N_ROUTES]; /* the last ticket of each */

    stats_file *stats_file; /* or NULL */
    uint64_t written_us;

    /* the engine's counters when the last step was told */
    uint64_t prefill_tokens, decode_tokens;

    double saved_us;
    times evicted; /* how long what was evicted had been idle */
    times ttft;
} observer;

#endif
