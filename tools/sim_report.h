/*
 * sim_report: what simulated runs come to beside what their cache could have found: a table, JSON, and curves over the size of
 * the pool.
 */
#ifndef PERCH_TOOLS_SIM_REPORT_H
#define PERCH_TOOLS_SIM_REPORT_H

#include "bench_run.h"

struct svg_chart;

/* Of the prompts that were measured. Shares are NaN where the trace has no blocks. */
struct sim_summary {
    double capacity_gib;  /* of KV: the pool, and the tiers below it */
    double token_share;   /* tokens found at admission, of the prompts' */
    double block_share;   /* blocks found whole, likewise; of a prompt's last one, which is never quite, what can be */
    double optimum_share; /* tokens that Belady's MIN finds in the same memory */
    double endless_share; /* and in endless memory; in blocks: */
    double endless_block_share;
    double ttft_mean_ms, queue_mean_ms;
};

void sim_summarize(const struct bench_run *run, struct sim_summary *summary);

/* Prints a table of runs[n]. */
perch_status sim_print(const struct bench_run *runs, size_t n);

/* A new reference; NULL: out of memory. */
json_t *sim_json(const struct bench_run *run);

/* charts[2]: what is found, and the mean time to first token, over the capacity; a line for every way to set the other keys. */
perch_status sim_plot(struct svg_chart *charts, const struct bench_vary *vary, struct bench_run *runs, size_t n,
                      perch_error *err);

#endif
