/*
 * bench_run: requests under way, and what is measured of them and of the engine. Everything happens on one thread, so that
 * times are of one clock and in one order.
 */
#include "bench_run.h"

#include "interrupt.h"
#include "text.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define SAMPLE_US 5000u

static uint64_t clock_us(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000u + (uint64_t)now.tv_nsec / 1000u;
}

uint64_t bench_run_now(const struct bench_run *run) {
    return (run->is_simulated ? run->simulated_us : clock_us()) - run->origin_us;
}

uint64_t bench_run_capacity(const struct bench_run *run) {
    return run->plan->pool_bytes + run->plan->host_tier_bytes + run->plan->disk_tier_bytes;
}

const char *bench_class_name(enum bench_class class) {
    static const char *const names[N_CLASSES] = {"first turn", "hit", "partial hit", "miss"};
    return names[class];
}

perch_status bench_run_begin(struct bench_run *run, struct tool *tool, perch_error *err) {
    *run = (struct bench_run){.tool = tool, .is_simulated = tool->bench.executor == BENCH_SIMULATE};
    double limit = tool->bench.max_seconds;
    run->limit_us = (uint64_t)ceil(limit * 1e6);
    if (perch_event_init(&run->event, sizeof(run->event)) != PERCH_OK) {
        return tool_error(err, PERCH_E_INVALID, "perch.h and libperch do not match");
    }
    perch_status status = PERCH_OK;
    if (run->is_simulated) {
        status = perch_simulation_advance(tool->engine, 0, &run->simulated_us, err);
    }
    run->origin_us = bench_run_now(run);
    return status;
}

void bench_run_free(struct bench_run *run) {
    free(run->records);
    samples_free(&run->gaps_ms);
    samples_free(&run->ttft_ms);
    samples_free(&run->prefill_rates);
    bench_full_free(&run->full);
    for (size_t i = 0; i < N_CLASSES; i++) {
        samples_free(&run->class_ttft_ms[i]);
    }
    perch_event_clear(&run->event);
}

bool bench_run_over(const struct bench_run *run) {
    bool limited = run->limit_us != 0 && run->n > 0 && run->records[run->n - 1].measured;
    return interrupt_came() || (limited && bench_run_now(run) > run->measure_us + run->limit_us);
}

/* ------------------------------------------------------------- the engine -- */

static perch_status get_stats(struct bench_run *run, perch_stats *stats, perch_error *err) {
    memset(stats, 0, sizeof(*stats));
    stats->struct_size = sizeof(*stats);
    return perch_engine_stats(run->tool->engine, stats, err);
}

/* The gauges as they stand, counted for the time since they were last looked at. */
static perch_status sample_gauges(struct bench_run *run, perch_error *err) {
    uint64_t now = bench_run_now(run);
    perch_stats stats;
    if (!run->measuring || now - run->last_sample_us < SAMPLE_US) {
        return PERCH_OK;
    }
    perch_status status = get_stats(run, &stats, err);
    double passed = (double)(now - run->last_sample_us);
    run->last_sample_us = now;
    run->sampled_us += passed;
    run->rows_us += passed * (double)stats.rows_running;
    run->pages_live_us += passed * (double)stats.pages_live;
    run->pages_cached_us += passed * (double)stats.pages_cached;
    return status;
}

perch_status bench_run_measure(struct bench_run *run, perch_error *err) {
    perch_status status = get_stats(run, &run->before, err);
    run->measuring = true;
    run->measure_us = bench_run_now(run);
    run->last_sample_us = run->measure_us;
    return status;
}

static bool is_measured(const struct bench_record *record) {
    return record->measured && record->finish != PERCH_FINISH_NONE;
}

size_t bench_run_n_measured(const struct bench_run *run) {
    size_t n = 0;
    for (size_t i = 0; i < run->n; i++) {
        n += is_measured(&run->records[i]) ? 1 : 0;
    }
    return n;
}

perch_status bench_run_end(struct bench_run *run, perch_error *err) {
    run->end_us = bench_run_now(run);
    perch_status status = get_stats(run, &run->after, err);
    for (size_t i = 0; status == PERCH_OK && i < run->n; i++) {
        const struct bench_record *record = &run->records[i];
        if (!is_measured(record) || record->first_us == 0) {
            continue;
        }
        double ttft_ms = (double)(record->first_us - record->arrival_us) / 1000.0;
        status = samples_add(&run->ttft_ms, ttft_ms, err);
        if (status == PERCH_OK) {
            status = samples_add(&run->class_ttft_ms[record->class], ttft_ms, err);
        }
        run->class_prompt_tokens[record->class] += record->prompt_tokens;
        run->class_computed_tokens[record->class] += record->prompt_tokens - record->cached_tokens;
    }
    return status;
}

/* --------------------------------------------------------------- requests -- */

static perch_status add_record(struct bench_run *run, struct bench_record record, perch_error *err) {
    void *records = run->records;
    perch_status status = grow(&records, &run->cap, run->n + 1, sizeof(*run->records), err);
    run->records = records;
    if (status == PERCH_OK) {
        run->records[run->n++] = record;
    }
    return status;
}

perch_status bench_run_submit(struct bench_run *run, perch_sequence_id sequence, const int32_t *tokens, size_t n_tokens,
                              uint32_t max_tokens, uint64_t arrival_us, uint32_t owner, perch_error *err) {
    perch_engine *engine = run->tool->engine;
    perch_sequence_info info = {.struct_size = sizeof(info)};
    perch_request request;
    perch_status status = perch_request_init(engine, &request, sizeof(request));
    if (status != PERCH_OK) {
        return tool_error(err, status, "perch.h and libperch do not match");
    }
    status = perch_sequence_state(engine, sequence, &info, err);
    if (status != PERCH_OK) {
        return status;
    }
    /* The last token of the prompt is computed in any case, so its KV is not there to be missed. */
    uint64_t useful = info.n_tokens + n_tokens - 1;
    struct bench_record record = {
        .arrival_us = arrival_us,
        .submit_us = bench_run_now(run),
        .known_tokens = info.n_kv_computed < useful ? info.n_kv_computed : useful,
        .measured = run->measuring,
        .owner = owner,
    };
    request.sequence = sequence;
    request.tokens = tokens;
    request.n_tokens = n_tokens;
    request.max_tokens = max_tokens;
    request.flags = PERCH_REQUEST_IGNORE_EOS | PERCH_REQUEST_NO_TEXT;
    request.user_data = run->n;
    request.sampling.temperature = 0.0;
    status = add_record(run, record, err);
    if (status == PERCH_OK) {
        status = perch_submit(engine, &request, NULL, err);
    }
    run->n_in_flight += status == PERCH_OK ? 1 : 0;
    run->n_without_first += status == PERCH_OK ? 1 : 0;
    return status;
}

static enum bench_class classify(const struct bench_record *record) {
    if (record->known_tokens == 0) {
        return CLASS_FIRST;
    }
    if (record->cached_tokens >= record->known_tokens) {
        return CLASS_HIT;
    }
    return record->cached_tokens > 0 ? CLASS_PARTIAL : CLASS_MISS;
}

/* Tokens that came together share the time that they took. */
static perch_status take_tokens(struct bench_run *run, struct bench_record *record, size_t n, perch_error *err) {
    uint64_t now = bench_run_now(run);
    perch_status status = PERCH_OK;
    if (record->first_us == 0 && n > 0) {
        record->first_us = now;
        record->last_us = now;
        run->n_without_first--;
        n--;
    }
    if (run->measuring && run->n_without_first == 0) {
        run->decode_phase_tokens += n;
    }
    double gap_ms = (double)(now - record->last_us) / 1000.0 / (double)(n > 0 ? n : 1);
    for (size_t i = 0; status == PERCH_OK && i < n && record->measured; i++) {
        status = samples_add(&run->gaps_ms, gap_ms, err);
    }
    record->last_us = now;
    return status;
}

static perch_status take_event(struct bench_run *run, struct bench_record **done, perch_error *err) {
    const perch_event *event = &run->event;
    struct bench_record *record = &run->records[event->user_data];
    perch_engine *engine = run->tool->engine;
    perch_status status = take_tokens(run, record, event->n_tokens, err);
    if (status == PERCH_OK && run->n_without_first == 0) {
        status = bench_full_open(&run->full, engine, bench_run_now(run), err);
    }
    if (event->type != PERCH_EVENT_DONE) {
        return status;
    }
    if (status == PERCH_OK) {
        status = bench_full_close(&run->full, engine, bench_run_now(run), run->concurrency, run->prompt_tokens, err);
    }
    record->prompt_tokens = event->prompt_tokens;
    record->cached_tokens = event->cached_tokens;
    record->completion_tokens = event->completion_tokens;
    record->queue_us = event->queue_us;
    record->finish = event->finish;
    record->class = classify(record);
    run->n_in_flight--;
    run->n_without_first -= record->first_us == 0 ? 1 : 0;
    *done = record;
    if (event->finish == PERCH_FINISH_ERROR) {
        return tool_error(err, event->status, "a request failed: %s", tool_event_error(event));
    }
    return status;
}

/* Until there is an event, or for timeout_us (negative = for ever). */
static perch_status wait(struct bench_run *run, int64_t timeout_us, perch_error *err) {
    if (!run->is_simulated) {
        interrupt_wait(run->tool->engine, -1, timeout_us < 0 ? -1 : (int)((timeout_us + 999) / 1000));
        return PERCH_OK;
    }
    if (interrupt_came()) {
        return PERCH_OK;
    }
    uint64_t until_us = timeout_us < 0 ? UINT64_MAX : run->simulated_us + (uint64_t)timeout_us;
    return perch_simulation_advance(run->tool->engine, until_us, &run->simulated_us, err);
}

perch_status bench_run_next(struct bench_run *run, int64_t timeout_us, struct bench_record **done, perch_error *err) {
    perch_engine *engine = run->tool->engine;
    *done = NULL;
    perch_status status = sample_gauges(run, err);
    if (status != PERCH_OK) {
        return status;
    }
    status = perch_next(engine, &run->event, 0, err);
    if (status == PERCH_E_TIMEOUT && timeout_us != 0) {
        status = wait(run, timeout_us, err);
        status = status != PERCH_OK ? status : perch_next(engine, &run->event, 0, err);
    }
    if (status == PERCH_E_TIMEOUT) {
        return interrupt_came() ? tool_error(err, PERCH_E_SHUTDOWN, "interrupted") : PERCH_OK;
    }
    return status == PERCH_OK ? take_event(run, done, err) : status;
}

perch_status bench_run_drain(struct bench_run *run, perch_error *err) {
    perch_status status = PERCH_OK;
    while (status == PERCH_OK && run->n_in_flight > 0) {
        struct bench_record *done;
        status = bench_run_next(run, -1, &done, err);
    }
    return status;
}
