/*
 * bench_full: the full part of a grid's round. Tokens and steps are the engine's own counts, which it makes for whole steps:
 * events arrive one by one.
 */
#include "bench_full.h"

static perch_status get_stats(perch_engine *engine, perch_stats *stats, perch_error *err) {
    *stats = (perch_stats){.struct_size = sizeof(*stats)};
    return perch_engine_stats(engine, stats, err);
}

perch_status bench_full_begin(struct bench_full *full, perch_engine *engine, perch_error *err) {
    full->stage = FULL_AHEAD;
    return get_stats(engine, &full->begin, err);
}

perch_status bench_full_open(struct bench_full *full, perch_engine *engine, uint64_t now_us, perch_error *err) {
    if (full->stage != FULL_AHEAD) {
        return PERCH_OK;
    }
    full->stage = FULL_OPEN;
    full->from_us = now_us;
    return get_stats(engine, &full->from, err);
}

perch_status bench_full_close(struct bench_full *full, perch_engine *engine, uint64_t now_us, uint32_t n,
                              uint32_t n_prompt, perch_error *err) {
    enum bench_full_stage stage = full->stage;
    perch_stats to;
    full->stage = FULL_NONE;
    if (stage != FULL_OPEN) {
        return PERCH_OK;
    }
    perch_status status = get_stats(engine, &to, err);
    double seconds = (double)(now_us - full->from_us) / 1e6;
    double tokens = (double)(to.decode_tokens - full->from.decode_tokens);
    double steps = (double)(to.steps - full->from.steps);
    if (status != PERCH_OK || seconds <= 0.0 || tokens <= 0.0 || steps <= 0.0) {
        return status;
    }
    /* It grows evenly: in the middle of the part it has its mean length. */
    double generated = (double)(full->from.decode_tokens - full->begin.decode_tokens) + tokens / 2.0;
    status = samples_add(&full->decode_rates, tokens / seconds, err);
    if (status == PERCH_OK) {
        status = samples_add(&full->host_us, (double)(to.host_us - full->from.host_us) / steps, err);
    }
    return status != PERCH_OK ? status : samples_add(&full->contexts, n_prompt + generated / n, err);
}

void bench_full_free(struct bench_full *full) {
    samples_free(&full->decode_rates);
    samples_free(&full->host_us);
    samples_free(&full->contexts);
}
