/*
 * bench_run: one run of a benchmark: requests under way, and what is measured of them and of the engine.
 *
 * A workload opens a run, submits, waits, and calls bench_run_measure when its warm-up is over; bench_run_end closes it. With
 * executor = simulate the clock is the simulation's, which stands still but for the waits.
 */
#ifndef PERCH_TOOLS_BENCH_RUN_H
#define PERCH_TOOLS_BENCH_RUN_H

#include "bench_full.h"
#include "sim_belady.h"
#include "tool.h"

/* At admission: was there KV of the sequence to be found, and how much of it was? */
enum bench_class { CLASS_FIRST, CLASS_HIT, CLASS_PARTIAL, CLASS_MISS, N_CLASSES };

/* Times are microseconds since the run began. */
struct bench_record {
    uint64_t arrival_us; /* when it was due */
    uint64_t submit_us;
    uint64_t first_us;     /* its first token */
    uint64_t last_us;      /* its latest token */
    uint64_t known_tokens; /* whose KV had been computed before */
    uint64_t prompt_tokens, cached_tokens, completion_tokens;
    uint64_t queue_us;
    enum bench_class class;
    perch_finish finish;
    bool measured;  /* submitted after the warm-up */
    uint32_t owner; /* the workload's */
};

struct bench_run {
    struct tool *tool;
    const perch_plan *plan;                    /* of the engine that it runs on; borrowed */
    size_t variant;                            /* of bench.vary */
    char name[192];                            /* "128 + 32 tokens, 4 at once" */
    uint32_t prompt_tokens, completion_tokens; /* the grid's cell, else 0 */
    uint32_t concurrency;
    struct bench_record *records; /* [n], owned; freed by bench_run_free */
    size_t n, cap;
    size_t n_skipped; /* requests that don't fit session_len, in a simulation */
    size_t n_in_flight;
    size_t n_without_first; /* of them: have no token yet */
    perch_event event;
    bool is_simulated;
    uint64_t simulated_us;       /* the simulation's clock */
    uint64_t origin_us;          /* the clock at the run's beginning */
    uint64_t measure_us, end_us; /* since then */
    uint64_t limit_us;           /* no submission this long after measure_us; 0 = no limit */
    bool measuring;
    perch_stats before, after;
    struct samples gaps_ms; /* time between tokens */
    struct samples ttft_ms; /* all classes; filled by bench_run_end */
    struct samples class_ttft_ms[N_CLASSES];
    uint64_t class_prompt_tokens[N_CLASSES], class_computed_tokens[N_CLASSES];
    /* the grid's phases: until every prompt has its first token, and from then on */
    uint64_t prefill_phase_us, decode_phase_us, prefill_phase_tokens, decode_phase_tokens;
    struct samples prefill_rates; /* the first phase's tokens a second, a value for each round */
    struct bench_full full;
    /* a trace's, in a simulation: tokens of a block, 0 = it has none; what could be found in as much memory, and in endless */
    uint32_t block_tokens;
    struct belady_found optimum, endless;
    /* integrals over time of the engine's gauges */
    uint64_t last_sample_us;
    double sampled_us, rows_us, pages_live_us, pages_cached_us;
};

perch_status bench_run_begin(struct bench_run *run, struct tool *tool, perch_error *err);
void bench_run_free(struct bench_run *run);

/* Ends the warm-up: what is submitted from here on counts. */
perch_status bench_run_measure(struct bench_run *run, perch_error *err);
perch_status bench_run_end(struct bench_run *run, perch_error *err);

/* Requests that were submitted after the warm-up and ended. */
size_t bench_run_n_measured(const struct bench_run *run);

/* Bytes of KV that there is room for, on the device and below it. */
uint64_t bench_run_capacity(const struct bench_run *run);

uint64_t bench_run_now(const struct bench_run *run);

/* True: time is up, which it never is before something to be measured was submitted, or Ctrl-C came. */
bool bench_run_over(const struct bench_run *run);

/* Submits a turn that generates exactly max_tokens, greedily. arrival_us: when it was due. */
perch_status bench_run_submit(struct bench_run *run, perch_sequence_id sequence, const int32_t *tokens, size_t n_tokens,
                              uint32_t max_tokens, uint64_t arrival_us, uint32_t owner, perch_error *err);

/*
 * Waits up to timeout_us (negative = for ever) and takes one event. *done gets the record of a request that ended with it,
 * or NULL; borrowed until the next submit. A request that failed is an error.
 */
perch_status bench_run_next(struct bench_run *run, int64_t timeout_us, struct bench_record **done, perch_error *err);

/* Waits until nothing is under way. */
perch_status bench_run_drain(struct bench_run *run, perch_error *err);

const char *bench_class_name(enum bench_class class);

#endif
