/*
 * bench_report: what runs measured, as tables, as JSON, and as a picture.
 */
#ifndef PERCH_TOOLS_BENCH_REPORT_H
#define PERCH_TOOLS_BENCH_REPORT_H

#include "bench_run.h"

/* What a run comes to. Rates are tokens a second: in the grid those of its two phases, else over the whole run. */
struct bench_summary {
    size_t n_requests;
    double seconds;
    double prefill_rate, decode_rate;
    double ttft_ms[3]; /* p50, p90, p99; NaN where there is nothing */
    double gap_ms[3];
    double step_ms;     /* mean time of a step */
    double host_share;  /* of it spent on scheduling, sampling and commit */
    double decode_rows; /* rows that decoded, mean over steps */
    double rows;        /* rows of the batch in use, mean over time; and as a share */
    double row_share;
    double kv_live_share;   /* pages of running conversations, mean over time */
    double kv_cached_share; /* pages of idle ones */
};

void bench_summarize(struct bench_run *run, struct bench_summary *summary);

/* Prints runs[n] to stdout. */
int bench_print(const struct tool *tool, struct bench_run *runs, size_t n);

/* Writes everything, raw numbers included, to tool->json_file. */
int bench_write_json(struct tool *tool, struct bench_run *runs, size_t n);

/* Writes the picture. */
int bench_write_plot(const struct tool *tool, struct bench_run *runs, size_t n, const char *path);

#endif
