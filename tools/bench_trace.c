/*
 * bench_trace: replays recorded requests by their arrival times, or as fast as possible.
 *
 * A trace has no text: the tokens of a block are drawn from its id, so that equal ids are equal tokens. With reuse = fork
 * the host remembers which conversation has which block, and a prompt that begins as an earlier one did is forked from
 * it behind the last block that they share: what a host does whose user goes on, or begins anew from some point. A fork
 * costs no memory until it is written to, and what was evicted meanwhile is computed again.
 */
#include "bench_work.h"

#include "interrupt.h"
#include "text.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#define NOBODY UINT32_MAX

/* Where a block was seen: the request whose conversation has it. An open-addressed table by id. */
struct block_place {
    uint64_t id;
    uint32_t request; /* NOBODY = free */
};

struct replay {
    struct bench_run *run;
    const struct bench_model *model;
    const struct trace *trace;
    uint32_t block_tokens;        /* scaled */
    perch_sequence_id *sequences; /* [trace.n]; 0 = not open */
    struct block_place *places;   /* [n_places], a power of two */
    size_t n_places;
    struct tokens tokens;
};

size_t bench_trace_n_runs(const struct bench_config *config) { return config->concurrency.n; }

/* A length of the trace, scaled; never less than one token. */
static uint32_t scaled(const struct replay *replay, uint32_t n_tokens) {
    double n = floor((double)n_tokens * replay->run->tool->bench.scale_tokens + 0.5);
    return n < 1.0 ? 1 : (uint32_t)n;
}

/* ------------------------------------------------------------------ reuse -- */

static struct block_place *find_place(const struct replay *replay, uint64_t id) {
    struct rng hash = {id};
    size_t at = (size_t)rng_next(&hash) & (replay->n_places - 1);
    while (replay->places[at].request != NOBODY && replay->places[at].id != id) {
        at = (at + 1) & (replay->n_places - 1);
    }
    return &replay->places[at];
}

/* The request's leading blocks that some finished conversation has, and whose that is. */
static uint32_t shared_blocks(const struct replay *replay, const struct trace_request *request, uint32_t *owner) {
    uint32_t n = 0;
    for (uint32_t i = 0; i < request->n_blocks; i++) {
        const struct block_place *place = find_place(replay, replay->trace->blocks[request->first_block + i]);
        if (place->request == NOBODY) {
            break;
        }
        n = i + 1;
        *owner = place->request;
    }
    return n;
}

/* Only whole blocks can be gone on from. */
static void remember_blocks(struct replay *replay, uint32_t index) {
    const struct trace_request *request = &replay->trace->requests[index];
    uint32_t n_whole = scaled(replay, request->prompt_tokens) / replay->block_tokens;
    for (uint32_t i = 0; i < request->n_blocks && i < n_whole; i++) {
        uint64_t id = replay->trace->blocks[request->first_block + i];
        *find_place(replay, id) = (struct block_place){id, index};
    }
}

static perch_status make_places(struct replay *replay, perch_error *err) {
    size_t n = 1024;
    while (n < 2 * replay->trace->n_blocks) {
        n *= 2;
    }
    replay->places = malloc(n * sizeof(*replay->places));
    replay->n_places = n;
    if (replay->places == NULL) {
        return tool_nomem(err);
    }
    for (size_t i = 0; i < n; i++) {
        replay->places[i].request = NOBODY;
    }
    return PERCH_OK;
}

/* --------------------------------------------------------------- requests -- */

/* The prompt's n tokens: block by block from their ids, or all of them from the request's number. */
static perch_status make_prompt(struct replay *replay, uint32_t index, uint32_t n, perch_error *err) {
    const struct trace_request *request = &replay->trace->requests[index];
    uint64_t seed = replay->run->tool->bench.seed << 32;
    void *ids = replay->tokens.ids;
    perch_status status = grow(&ids, &replay->tokens.cap, n, sizeof(*replay->tokens.ids), err);
    replay->tokens.ids = ids;
    if (status != PERCH_OK) {
        return status;
    }
    replay->tokens.n = n;
    if (request->n_blocks == 0) {
        struct rng rng = {seed + index};
        bench_random_tokens(&rng, replay->model, replay->tokens.ids, n);
        return PERCH_OK;
    }
    for (uint32_t at = 0, block = 0; at < n; block++) {
        uint32_t left = n - at;
        uint32_t length = block + 1 < request->n_blocks && replay->block_tokens < left ? replay->block_tokens : left;
        struct rng rng = {seed + replay->trace->blocks[request->first_block + block]};
        bench_random_tokens(&rng, replay->model, replay->tokens.ids + at, length);
        at += length;
    }
    return PERCH_OK;
}

static perch_status open_sequence(struct replay *replay, uint32_t index, uint32_t n_prompt, uint32_t *n_shared,
                                  perch_error *err) {
    const struct trace_request *request = &replay->trace->requests[index];
    perch_engine *engine = replay->run->tool->engine;
    uint32_t owner = NOBODY;
    uint32_t n_blocks = 0;
    if (replay->run->tool->bench.reuse == BENCH_REUSE_FORK) {
        n_blocks = shared_blocks(replay, request, &owner);
    }
    *n_shared = n_blocks * replay->block_tokens;
    if (*n_shared >= n_prompt) {
        *n_shared = n_prompt - 1; /* something has to be appended */
    }
    if (n_blocks == 0) {
        return perch_sequence_open(engine, &replay->sequences[index], err);
    }
    return perch_sequence_fork(engine, replay->sequences[owner], *n_shared, &replay->sequences[index], err);
}

static perch_status submit(struct replay *replay, uint32_t index, uint64_t arrival_us, perch_error *err) {
    const struct trace_request *request = &replay->trace->requests[index];
    uint32_t n_prompt = scaled(replay, request->prompt_tokens);
    uint32_t n_completion = scaled(replay, request->completion_tokens);
    uint32_t n_shared = 0;
    if (replay->run->is_simulated && n_prompt + (uint64_t)n_completion > replay->model->session_len) {
        replay->run->n_skipped++;
        return PERCH_OK;
    }
    perch_status status = bench_check_length(replay->model, (uint64_t)n_prompt + n_completion,
                                             "trace (a smaller scale_tokens helps)", err);
    status = status != PERCH_OK ? status : make_prompt(replay, index, n_prompt, err);
    status = status != PERCH_OK ? status : open_sequence(replay, index, n_prompt, &n_shared, err);
    if (status != PERCH_OK) {
        return status;
    }
    return bench_run_submit(replay->run, replay->sequences[index], replay->tokens.ids + n_shared, n_prompt - n_shared,
                            n_completion, arrival_us, index, err);
}

/* A conversation that nobody can go on from is over. */
static void finish(struct replay *replay, const struct bench_record *record) {
    uint32_t index = record->owner;
    if (replay->run->tool->bench.reuse == BENCH_REUSE_FORK && replay->trace->requests[index].n_blocks > 0) {
        remember_blocks(replay, index);
    } else {
        perch_sequence_close(replay->run->tool->engine, replay->sequences[index], NULL);
        replay->sequences[index] = 0;
    }
}

/* Microseconds until a request is due, a second at most; 0 = it is. */
static int64_t due_in_us(const struct replay *replay, uint64_t arrival_us) {
    uint64_t now = bench_run_now(replay->run);
    uint64_t left = arrival_us > now ? arrival_us - now : 0;
    return left > 1000000 ? 1000000 : (int64_t)left;
}

/*
 * What could have been found of the prompts that were measured, in the memory that there was and in endless one. n: requests that
 * were submitted or skipped.
 */
static perch_status find_optimum(struct replay *replay, uint32_t n, perch_error *err) {
    struct bench_run *run = replay->run;
    const struct bench_config *config = &run->tool->bench;
    struct belady_request *requests = calloc((size_t)n + 1, sizeof(*requests));
    size_t n_requests = 0;
    size_t first = 0;
    if (requests == NULL) {
        return tool_nomem(err);
    }
    for (uint32_t i = 0; i < n; i++) {
        const struct trace_request *request = &replay->trace->requests[i];
        uint32_t n_prompt = scaled(replay, request->prompt_tokens);
        uint64_t n_all = n_prompt + (uint64_t)scaled(replay, request->completion_tokens);
        uint32_t n_blocks = (n_prompt + replay->block_tokens - 1) / replay->block_tokens;
        first = i == config->warmup ? n_requests : first;
        if (n_all <= replay->model->session_len) {
            requests[n_requests++] = (struct belady_request){
                .blocks = replay->trace->blocks + request->first_block,
                .n_blocks = n_blocks < request->n_blocks ? n_blocks : request->n_blocks,
                .block_tokens = replay->block_tokens,
                .n_tokens = n_prompt,
            };
        }
    }
    uint64_t capacity = bench_run_capacity(run) / run->plan->kv_bytes_per_token;
    perch_status status = belady(requests, n_requests, first, capacity, &run->optimum, err);
    status = status != PERCH_OK ? status : belady(requests, n_requests, first, UINT64_MAX, &run->endless, err);
    free(requests);
    return status;
}

static perch_status play(struct replay *replay, perch_error *err) {
    struct bench_run *run = replay->run;
    const struct bench_config *config = &run->tool->bench;
    uint32_t limit = run->concurrency < replay->model->queue_size ? run->concurrency : replay->model->queue_size;
    perch_status status = config->warmup == 0 ? bench_run_measure(run, err) : PERCH_OK;
    uint32_t next = 0;
    while (status == PERCH_OK && next < replay->trace->n && !bench_run_over(run)) {
        uint64_t arrival_us = bench_run_now(run);
        if (config->speed > 0.0) {
            arrival_us = (uint64_t)(replay->trace->requests[next].arrival_s / config->speed * 1e6);
        }
        int64_t wait_us = run->n_in_flight >= limit ? -1 : due_in_us(replay, arrival_us);
        if (wait_us != 0) {
            struct bench_record *done;
            status = bench_run_next(run, wait_us, &done, err);
            if (done != NULL) {
                finish(replay, done);
            }
            continue;
        }
        status = submit(replay, next++, arrival_us, err);
        if (status == PERCH_OK && next == config->warmup) {
            status = bench_run_measure(run, err);
        }
    }
    if (status == PERCH_OK && !run->measuring && !interrupt_came()) {
        status = tool_error(err, PERCH_E_CONFIG, "[bench] warmup: the trace has only %zu requests",
                            (size_t)replay->trace->n);
    }
    status = status != PERCH_OK ? status : bench_run_drain(run, err);
    if (status == PERCH_OK && run->block_tokens > 0 && config->belady) {
        status = find_optimum(replay, next, err);
    }
    return status != PERCH_OK ? status : bench_run_end(run, err);
}

perch_status bench_trace(struct bench_run *run, const struct bench_model *model, const struct trace *trace,
                         size_t index, perch_error *err) {
    const struct bench_config *config = &run->tool->bench;
    run->concurrency = config->concurrency.values[index];
    struct replay replay = {.run = run, .model = model, .trace = trace, .block_tokens = 1};
    if (trace->block_tokens != 0) {
        replay.block_tokens = scaled(&replay, trace->block_tokens);
        run->block_tokens = run->is_simulated ? replay.block_tokens : 0;
    }
    char pace[32] = "as fast as possible";
    if (config->speed > 0.0) {
        snprintf(pace, sizeof(pace), "%g times as fast", config->speed);
    }
    snprintf(run->name, sizeof(run->name), "%s, %u at once", pace, run->concurrency);
    replay.sequences = calloc(trace->n, sizeof(*replay.sequences));
    if (replay.sequences == NULL) {
        return tool_nomem(err);
    }
    perch_status status = make_places(&replay, err);
    status = status != PERCH_OK ? status : play(&replay, err);
    for (size_t i = 0; i < trace->n; i++) {
        if (replay.sequences[i] != 0) {
            perch_sequence_close(run->tool->engine, replay.sequences[i], NULL);
        }
    }
    tokens_free(&replay.tokens);
    free(replay.sequences);
    free(replay.places);
    return status;
}
