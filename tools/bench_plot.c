/*
 * bench_plot: the picture of a benchmark. The grid: throughput and time to first token over concurrency, a line for each
 * cell. Churn and traces: how the times are distributed. A simulation's variants: what is found, over the memory for it.
 */
#include "bench_report.h"
#include "sim_report.h"
#include "svg.h"

#include <stdio.h>
#include <string.h>

#define N_QUANTILES 200

static perch_status plot_grid(struct svg_chart *charts, struct bench_run *runs, size_t n, perch_error *err) {
    charts[0] = (struct svg_chart){
        .title = "decoding", .x_label = "conversations at once", .y_label = "tokens/s", .marks = true};
    charts[1] = (struct svg_chart){
        .title = "median time to first token", .x_label = "conversations at once", .y_label = "ms", .marks = true};
    perch_status status = PERCH_OK;
    for (size_t i = 0; status == PERCH_OK && i < n; i++) {
        struct bench_summary summary;
        bench_summarize(&runs[i], &summary);
        /* Runs that differ in concurrency alone follow each other. */
        bool new_cell = i == 0 || runs[i].prompt_tokens != runs[i - 1].prompt_tokens ||
                        runs[i].completion_tokens != runs[i - 1].completion_tokens;
        const double values[2] = {summary.decode_rate, summary.ttft_ms[0]};
        char name[48];
        snprintf(name, sizeof(name), "%u + %u tokens", runs[i].prompt_tokens, runs[i].completion_tokens);
        for (size_t k = 0; status == PERCH_OK && k < 2; k++) {
            unsigned cell = (unsigned)charts[k].n_series;
            status = new_cell ? svg_add_series(&charts[k], name, cell, cell / 7, err) : PERCH_OK;
            if (status == PERCH_OK) {
                status = svg_add_point(&charts[k], (double)runs[i].concurrency, values[k], err);
            }
        }
    }
    return status;
}

static perch_status add_distribution(struct svg_chart *chart, const char *name, struct samples *samples,
                                     unsigned colour, unsigned dash, perch_error *err) {
    if (samples->n == 0) {
        return PERCH_OK;
    }
    perch_status status = svg_add_series(chart, name, colour, dash, err);
    for (int i = 0; status == PERCH_OK && i <= N_QUANTILES; i++) {
        double p = 100.0 * i / N_QUANTILES;
        status = svg_add_point(chart, samples_percentile(samples, p), p, err);
    }
    return status;
}

static perch_status plot_distributions(struct svg_chart *charts, struct bench_run *runs, size_t n, perch_error *err) {
    charts[0] = (struct svg_chart){
        .title = "time to first token", .x_label = "ms", .y_label = "% of turns within it", .x_log = true};
    charts[1] = (struct svg_chart){
        .title = "time between tokens", .x_label = "ms", .y_label = "% of tokens within it", .x_log = true};
    perch_status status = PERCH_OK;
    for (size_t i = 0; status == PERCH_OK && i < n; i++) {
        char name[48];
        for (int class = 0; status == PERCH_OK && class < N_CLASSES; class ++) {
            snprintf(name, sizeof(name), "%u at once: %s", runs[i].concurrency,
                     bench_class_name((enum bench_class) class));
            status =
                add_distribution(&charts[0], name, &runs[i].class_ttft_ms[class], (unsigned)class, (unsigned)i, err);
        }
        snprintf(name, sizeof(name), "%u at once", runs[i].concurrency);
        if (status == PERCH_OK) {
            status = add_distribution(&charts[1], name, &runs[i].gaps_ms, 0, (unsigned)i, err);
        }
    }
    return status;
}

int bench_write_plot(const struct tool *tool, struct bench_run *runs, size_t n, const char *path) {
    struct svg_chart charts[2] = {{.n_series = 0}, {.n_series = 0}};
    perch_error err = {.status = PERCH_OK};
    char heading[160];
    const char *model = strrchr(tool->options.path, '/');
    snprintf(heading, sizeof(heading), "perch %s: %s, %.80s", perch_version(),
             bench_workload_name(tool->bench.workload),
             model != NULL && model[1] != '\0' ? model + 1 : tool->options.path);
    perch_status status = tool->bench.vary.n_keys > 0          ? sim_plot(charts, &tool->bench.vary, runs, n, &err)
                          : tool->bench.workload == BENCH_GRID ? plot_grid(charts, runs, n, &err)
                                                               : plot_distributions(charts, runs, n, &err);
    status = status != PERCH_OK ? status : svg_write(path, heading, charts, 2, &err);
    svg_free(&charts[0]);
    svg_free(&charts[1]);
    return status == PERCH_OK ? EXIT_DONE : tool_fail(tool, EXIT_RUN, "%s", err.message);
}
