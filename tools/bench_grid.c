/*
 * bench_grid: every prompt length with every completion length at every concurrency. A round submits as many fresh
 * conversations at once as the concurrency says, and waits for all of them.
 */
#include "bench_work.h"

#include <stdio.h>
#include <stdlib.h>

perch_status bench_check_length(const struct bench_model *model, uint64_t n, const char *what, perch_error *err) {
    if (n > model->session_len) {
        return tool_error(err, PERCH_E_CONFIG, "[bench] %s: %llu tokens do not fit session_len = %u", what,
                          (unsigned long long)n, model->session_len);
    }
    return PERCH_OK;
}

void bench_random_tokens(struct rng *rng, const struct bench_model *model, int32_t *tokens, size_t n) {
    for (size_t i = 0; i < n; i++) {
        tokens[i] = (int32_t)rng_below(rng, model->vocab_size);
    }
}

size_t bench_grid_n_runs(const struct bench_config *config) {
    return (size_t)config->prompt_tokens.n * config->completion_tokens.n * config->concurrency.n;
}

struct round {
    struct bench_run *run;
    const struct bench_model *model;
    struct rng rng;
    int32_t *tokens;              /* [prompt_tokens] */
    perch_sequence_id *sequences; /* [concurrency]; 0 = not open */
};

static void close_sequences(struct round *round) {
    for (uint32_t i = 0; i < round->run->concurrency; i++) {
        if (round->sequences[i] != 0) {
            perch_sequence_close(round->run->tool->engine, round->sequences[i], NULL);
            round->sequences[i] = 0;
        }
    }
}

static perch_status submit_all(struct round *round, uint64_t start_us, perch_error *err) {
    struct bench_run *run = round->run;
    perch_status status = PERCH_OK;
    for (uint32_t i = 0; status == PERCH_OK && i < run->concurrency; i++) {
        status = perch_sequence_open(run->tool->engine, &round->sequences[i], err);
        bench_random_tokens(&round->rng, round->model, round->tokens, run->prompt_tokens);
        if (status == PERCH_OK) {
            status = bench_run_submit(run, round->sequences[i], round->tokens, run->prompt_tokens,
                                      run->completion_tokens, start_us, i, err);
        }
    }
    return status;
}

/* Tokens after the last first token belong to the phase that only decodes. */
static perch_status count_phases(struct bench_run *run, size_t first_record, uint64_t start_us, perch_error *err) {
    uint64_t all_first_us = start_us;
    uint64_t end_us = start_us;
    for (size_t i = first_record; i < run->n; i++) {
        all_first_us = run->records[i].first_us > all_first_us ? run->records[i].first_us : all_first_us;
        end_us = run->records[i].last_us > end_us ? run->records[i].last_us : end_us;
    }
    uint64_t n_tokens = (uint64_t)run->concurrency * run->prompt_tokens;
    uint64_t prefill_us = all_first_us - start_us;
    run->prefill_phase_us += prefill_us;
    run->decode_phase_us += end_us - all_first_us;
    run->prefill_phase_tokens += n_tokens;
    return prefill_us > 0 ? samples_add(&run->prefill_rates, (double)n_tokens * 1e6 / (double)prefill_us, err)
                          : PERCH_OK;
}

static perch_status play_round(struct round *round, perch_error *err) {
    struct bench_run *run = round->run;
    size_t first_record = run->n;
    uint64_t start_us = bench_run_now(run);
    perch_status status = run->measuring ? bench_full_begin(&run->full, run->tool->engine, err) : PERCH_OK;
    status = status != PERCH_OK ? status : submit_all(round, start_us, err);
    status = status != PERCH_OK ? status : bench_run_drain(run, err);
    if (status == PERCH_OK && run->measuring) {
        status = count_phases(run, first_record, start_us, err);
    }
    close_sequences(round);
    return status;
}

static perch_status play(struct round *round, perch_error *err) {
    const struct bench_config *config = &round->run->tool->bench;
    perch_status status = PERCH_OK;
    for (uint32_t i = 0; status == PERCH_OK && i < config->warmup; i++) {
        status = play_round(round, err);
    }
    status = status != PERCH_OK ? status : bench_run_measure(round->run, err);
    for (uint32_t i = 0; status == PERCH_OK && i < config->repeats && !bench_run_over(round->run); i++) {
        status = play_round(round, err);
    }
    return status != PERCH_OK ? status : bench_run_end(round->run, err);
}

perch_status bench_grid(struct bench_run *run, const struct bench_model *model, size_t index, perch_error *err) {
    const struct bench_config *config = &run->tool->bench;
    size_t cell = index / config->concurrency.n;
    run->concurrency = config->concurrency.values[index % config->concurrency.n];
    run->completion_tokens = config->completion_tokens.values[cell % config->completion_tokens.n];
    run->prompt_tokens = config->prompt_tokens.values[cell / config->completion_tokens.n];
    snprintf(run->name, sizeof(run->name), "%u + %u tokens, %u at once", run->prompt_tokens, run->completion_tokens,
             run->concurrency);
    perch_status status = bench_check_length(model, (uint64_t)run->prompt_tokens + run->completion_tokens,
                                             "prompt_tokens + completion_tokens", err);
    if (status != PERCH_OK) {
        return status;
    }
    struct round round = {.run = run, .model = model, .rng = {config->seed + index}};
    round.tokens = calloc(run->prompt_tokens, sizeof(*round.tokens));
    round.sequences = calloc(run->concurrency, sizeof(*round.sequences));
    status = round.tokens == NULL || round.sequences == NULL ? tool_nomem(err) : play(&round, err);
    free(round.tokens);
    free(round.sequences);
    return status;
}
