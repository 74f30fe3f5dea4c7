/*
 * cost: what it takes to have the KV of some tokens: by computing them, or by loading it from a tier below the device.
 *
 * Theory of operation. Two regressions, fed with what the engine does anyway. A step that computes prompt tokens takes
 *
 *     fixed + prefill tokens + their positions + decode rows + their positions
 *
 * each times a rate; a load is done after a latency and the time that its bytes, and those queued before it, take. Both are least
 * squares of the relative error in which what is older counts less and less, with rates that are never negative; what lies far
 * from what was expected counts as a step towards it only, since other processes use the machine as well. What the data leave
 * open is decided by how much arithmetic attention is beside the rest of the model: few steps at short contexts tell nothing about
 * long ones.
 *
 * A plain struct without a clock: whoever calls says what time it is. Not thread-safe; under the engine's lock.
 */
#ifndef PERCH_ENGINE_COST_H
#define PERCH_ENGINE_COST_H

#include "cache/cache.h"

#define COST_TERMS 5u
#define COST_UNDER_WAY 64u

/* What a step computed, and the time it took. A decode row is one of a single token. */
typedef struct cost_step {
    uint32_t n_prefill;         /* tokens of the other rows, */
    uint64_t prefill_positions; /* and the sum of their positions */
    uint32_t n_decode;
    uint64_t decode_positions;
    double us;
} cost_step;

typedef struct cost_sent {
    uint64_t ticket;
    uint64_t n_bytes;    /* its own, */
    uint64_t load_bytes; /* and with what was under way when it was sent */
    uint64_t sent_us;
} cost_sent;

/* Loads from one tier: us = latency + bytes * us_per_byte, from sums that fade. */
typedef struct cost_link {
    double weight, bytes, bytes_bytes, us, bytes_us; /* sums of w, w x, w x², w y, w x y */
    double latency_us, us_per_byte;
    uint64_t n_loads;
    cost_sent sent[COST_UNDER_WAY];
    uint32_t n_sent;
    uint64_t under_way_bytes;
} cost_link;

typedef struct cost_model {
    uint64_t page_bytes;
    uint32_t max_step_tokens;
    double attention_share; /* of what a token takes at position 0, added by each 1,024 positions before it */
    double normal[COST_TERMS][COST_TERMS], right[COST_TERMS];
    double rate[COST_TERMS];
    double tokens;   /* prefill tokens, faded: the weight of the means below */
    double token_us; /* time of the step that a prefill token finds itself in, for each of its tokens; */
    double usual_rows, usual_positions; /* decode rows in it, and their positions in 1,024 */
    uint64_t n_steps;
    cost_link links[CACHE_N_TIERS];
} cost_model;

/* token_flops: arithmetic for a token without attention; position_flops: what each position before it adds. */
void cost_init(cost_model *m, uint64_t page_bytes, uint32_t max_step_tokens, double token_flops, double position_flops);

/* A step has ended. True: enough has come in for cost_get to be asked again. O(1), a microsecond. */
bool cost_add_step(cost_model *m, const cost_step *step);

/* n_bytes are on their way to the device under this ticket; tickets of a tier count up. */
void cost_load_sent(cost_model *m, cache_tier tier, uint64_t ticket, uint64_t n_bytes, uint64_t now_us);
/* All up to that ticket were found done at this time. */
void cost_loads_done(cost_model *m, cache_tier tier, uint64_t ticket, uint64_t now_us);
/* A load that was timed by itself. */
void cost_add_load(cost_model *m, cache_tier tier, uint64_t n_bytes, double us);

/*
 * What is known: all zero until prefill was seen; a tier that nothing was loaded from is zero. A token costs its part of a full
 * step with as many decode rows as are usual: for that long whoever waits for its KV waits.
 */
void cost_get(const cost_model *m, cache_costs *out);

/* Microseconds to compute tokens [0, n_tokens), and to load as much in pages. */
double cost_compute_us(const cache_costs *costs, uint64_t n_tokens);
double cost_load_us(const cache_costs *costs, cache_tier tier, uint64_t n_pages);

/*
 * The least n, a multiple of 16, such that loading n tokens of KV and all counts beyond, up to session_len, is quicker than
 * computing them; 0: there is none, or the rates are not known.
 */
uint32_t cost_break_even(const cache_costs *costs, cache_tier tier, uint64_t page_bytes, uint64_t group_bytes,
                         uint32_t session_len);

#endif
