/*
 * bench_work: the workloads. Each performs the run with the index-th combination of its lists, which it names.
 */
#ifndef PERCH_TOOLS_BENCH_WORK_H
#define PERCH_TOOLS_BENCH_WORK_H

#include "bench_run.h"
#include "trace.h"

/* What the workloads know of the model. */
struct bench_model {
    uint32_t vocab_size;
    uint32_t session_len;
    uint32_t queue_size;
};

/* How many runs there are. */
size_t bench_grid_n_runs(const struct bench_config *config);
size_t bench_churn_n_runs(const struct bench_config *config);
size_t bench_trace_n_runs(const struct bench_config *config);
size_t bench_sessions_n_runs(const struct bench_config *config);

/* run is fresh from bench_run_begin. E_SHUTDOWN: Ctrl-C. */
perch_status bench_grid(struct bench_run *run, const struct bench_model *model, size_t index, perch_error *err);
perch_status bench_churn(struct bench_run *run, const struct bench_model *model, size_t index, perch_error *err);
perch_status bench_trace(struct bench_run *run, const struct bench_model *model, const struct trace *trace,
                         size_t index, perch_error *err);
perch_status bench_sessions(struct bench_run *run, const struct bench_model *model, size_t index, perch_error *err);

/* Fails unless a conversation of n tokens fits session_len. */
perch_status bench_check_length(const struct bench_model *model, uint64_t n, const char *what, perch_error *err);

/* The largest number of a list, and any of them. */
uint32_t bench_longest(const struct bench_list *list);
uint32_t bench_draw(const struct bench_list *list, struct rng *rng);

/* Writes n random token ids. */
void bench_random_tokens(struct rng *rng, const struct bench_model *model, int32_t *tokens, size_t n);

#endif
