/*
 * bench_report: what runs measured, as tables.
 */
#include "bench_report.h"

#include "bench_bound.h"
#include "sim_report.h"
#include "table.h"

#include <math.h>

static double ratio(double a, double b) { return b > 0.0 ? a / b : (double)NAN; }

void bench_summarize(struct bench_run *run, struct bench_summary *summary) {
    static const double percentiles[3] = {50, 90, 99};
    const perch_stats *before = &run->before;
    const perch_stats *after = &run->after;
    double steps = (double)(after->steps - before->steps);
    double step_us = (double)(after->step_us - before->step_us);
    double decoded = (double)(after->decode_tokens - before->decode_tokens);
    *summary = (struct bench_summary){.seconds = (double)(run->end_us - run->measure_us) / 1e6};
    summary->n_requests = bench_run_n_measured(run);
    for (size_t i = 0; i < 3; i++) {
        summary->ttft_ms[i] = samples_percentile(&run->ttft_ms, percentiles[i]);
        summary->gap_ms[i] = samples_percentile(&run->gaps_ms, percentiles[i]);
    }
    if (run->tool->bench.workload == BENCH_GRID) {
        summary->prefill_rate = ratio((double)run->prefill_phase_tokens * 1e6, (double)run->prefill_phase_us);
        summary->decode_rate = ratio((double)run->decode_phase_tokens * 1e6, (double)run->decode_phase_us);
    } else {
        double prefilled = (double)(after->prefill_tokens - before->prefill_tokens);
        summary->prefill_rate = ratio(prefilled, summary->seconds);
        summary->decode_rate = ratio(decoded, summary->seconds);
    }
    summary->step_ms = ratio(step_us / 1000.0, steps);
    summary->host_share = ratio((double)(after->host_us - before->host_us), step_us);
    summary->decode_rows = ratio(decoded, steps);
    summary->rows = ratio(run->rows_us, run->sampled_us);
    summary->row_share = ratio(summary->rows, (double)after->slots_total);
    summary->kv_live_share = ratio(run->pages_live_us, run->sampled_us * (double)after->pages_total);
    summary->kv_cached_share = ratio(run->pages_cached_us, run->sampled_us * (double)after->pages_total);
}

/* ----------------------------------------------------------------- tables -- */

static perch_status add_text(struct table *table, perch_status status, const char *text) {
    return status != PERCH_OK ? status : table_cell(table, NULL, "%s", text);
}

/* A number with `digits` behind the point, or "-" where there is none. */
static perch_status add_number(struct table *table, perch_status status, double value, int digits) {
    if (status != PERCH_OK) {
        return status;
    }
    return isfinite(value) ? table_cell(table, NULL, "%.*f", digits, value) : table_cell(table, NULL, "-");
}

static perch_status add_heading(struct table *table, const char *const *names, size_t n) {
    perch_status status = PERCH_OK;
    table_init(table, n);
    for (size_t i = 0; i < n; i++) {
        status = add_text(table, status, names[i]);
    }
    return status;
}

static perch_status print_and_free(struct table *table, perch_status status) {
    if (status == PERCH_OK) {
        table_print(table, stdout);
    }
    table_free(table);
    return status;
}

static perch_status print_times(struct bench_run *runs, size_t n) {
    static const char *const names[] = {"run", "requests", "s",          "prefill tok/s", "decode tok/s", "TTFT ms p50",
                                        "p90", "p99",      "TBT ms p50", "p90",           "p99"};
    struct table table;
    perch_status status = add_heading(&table, names, sizeof(names) / sizeof(names[0]));
    for (size_t i = 0; i < n; i++) {
        struct bench_summary summary;
        bench_summarize(&runs[i], &summary);
        status = add_text(&table, status, runs[i].name);
        status = add_number(&table, status, (double)summary.n_requests, 0);
        status = add_number(&table, status, summary.seconds, 2);
        status = add_number(&table, status, summary.prefill_rate, 0);
        status = add_number(&table, status, summary.decode_rate, 0);
        for (size_t k = 0; k < 3; k++) {
            status = add_number(&table, status, summary.ttft_ms[k], 1);
        }
        for (size_t k = 0; k < 3; k++) {
            status = add_number(&table, status, summary.gap_ms[k], 2);
        }
    }
    return print_and_free(&table, status);
}

static perch_status print_steps(struct bench_run *runs, size_t n) {
    static const char *const names[] = {"run",  "step ms", "host %",    "decoding rows",
                                        "rows", "rows %",  "KV live %", "KV cached %"};
    struct table table;
    perch_status status = add_heading(&table, names, sizeof(names) / sizeof(names[0]));
    for (size_t i = 0; i < n; i++) {
        struct bench_summary summary;
        bench_summarize(&runs[i], &summary);
        status = add_text(&table, status, runs[i].name);
        status = add_number(&table, status, summary.step_ms, 2);
        status = add_number(&table, status, 100.0 * summary.host_share, 1);
        status = add_number(&table, status, summary.decode_rows, 1);
        status = add_number(&table, status, summary.rows, 1);
        status = add_number(&table, status, 100.0 * summary.row_share, 0);
        status = add_number(&table, status, 100.0 * summary.kv_live_share, 0);
        status = add_number(&table, status, 100.0 * summary.kv_cached_share, 0);
    }
    return print_and_free(&table, status);
}

/* One row: turns of a class, or of all. prompt and computed: their tokens. */
static perch_status add_class(struct table *table, perch_status status, const struct bench_run *run, const char *name,
                              struct samples *ttft, uint64_t prompt, uint64_t computed) {
    double turns = (double)ttft->n;
    status = add_text(table, status, run->name);
    status = add_text(table, status, name);
    status = add_number(table, status, turns, 0);
    status = add_number(table, status, 100.0 * ratio(turns, (double)run->ttft_ms.n), 1);
    status = add_number(table, status, samples_percentile(ttft, 50), 1);
    status = add_number(table, status, samples_percentile(ttft, 90), 1);
    status = add_number(table, status, samples_percentile(ttft, 99), 1);
    status = add_number(table, status, (double)prompt, 0);
    status = add_number(table, status, (double)(prompt - computed), 0);
    return add_number(table, status, 100.0 * ratio((double)(prompt - computed), (double)prompt), 1);
}

/* Turns are counted by what they found of their earlier KV; the last columns say what that was worth in tokens. */
static perch_status print_classes(struct bench_run *runs, size_t n) {
    static const char *const names[] = {
        "run", "turns by KV found", "turns",         "% of turns",        "TTFT ms p50", "p90",
        "p99", "prompt tokens",     "cached tokens", "cached % of tokens"};
    struct table table;
    perch_status status = add_heading(&table, names, sizeof(names) / sizeof(names[0]));
    for (size_t i = 0; i < n; i++) {
        uint64_t prompt = 0;
        uint64_t computed = 0;
        for (int class = 0; class < N_CLASSES; class ++) {
            prompt += runs[i].class_prompt_tokens[class];
            computed += runs[i].class_computed_tokens[class];
            status = add_class(&table, status, &runs[i], bench_class_name((enum bench_class) class),
                               &runs[i].class_ttft_ms[class], runs[i].class_prompt_tokens[class],
                               runs[i].class_computed_tokens[class]);
        }
        status = add_class(&table, status, &runs[i], "all", &runs[i].ttft_ms, prompt, computed);
    }
    return print_and_free(&table, status);
}

static perch_status print_cache(struct bench_run *runs, size_t n) {
    static const char *const names[] = {"run",       "prefilled",     "re-prefilled", "%",
                                        "evictions", "evicted pages", "preemptions",  "copied pages"};
    struct table table;
    perch_status status = add_heading(&table, names, sizeof(names) / sizeof(names[0]));
    for (size_t i = 0; i < n; i++) {
        const perch_stats *before = &runs[i].before;
        const perch_stats *after = &runs[i].after;
        double prefilled = (double)(after->prefill_tokens - before->prefill_tokens);
        double again = (double)(after->reprefill_tokens - before->reprefill_tokens);
        status = add_text(&table, status, runs[i].name);
        status = add_number(&table, status, prefilled, 0);
        status = add_number(&table, status, again, 0);
        status = add_number(&table, status, 100.0 * ratio(again, prefilled), 1);
        status = add_number(&table, status, (double)(after->evictions - before->evictions), 0);
        status = add_number(&table, status, (double)(after->evicted_pages - before->evicted_pages), 0);
        status = add_number(&table, status, (double)(after->preemptions - before->preemptions), 0);
        status = add_number(&table, status, (double)(after->copied_pages - before->copied_pages), 0);
    }
    return print_and_free(&table, status);
}

/* ----------------------------------------------------- rounds and variants -- */

/* The median with the least and the most. */
static perch_status add_median(struct table *table, perch_status status, struct samples *samples) {
    status = add_number(table, status, samples_percentile(samples, 50), 0);
    status = add_number(table, status, samples_percentile(samples, 0), 0);
    return add_number(table, status, samples_percentile(samples, 100), 0);
}

static perch_status print_rounds(struct bench_run *runs, size_t n) {
    static const char *const names[] = {
        "run", "rounds", "prefill tok/s p50", "min",     "max",           "% of bound", "all decoding tok/s p50",
        "min", "max",    "% of bound",        "context", "host us a step"};
    struct table table;
    perch_status status = add_heading(&table, names, sizeof(names) / sizeof(names[0]));
    for (size_t i = 0; i < n; i++) {
        struct bench_full *full = &runs[i].full;
        struct bench_bound bound;
        bench_bound_compute(&runs[i], &bound);
        status = add_text(&table, status, runs[i].name);
        status = add_number(&table, status, (double)runs[i].prefill_rates.n, 0);
        status = add_median(&table, status, &runs[i].prefill_rates);
        status = add_number(&table, status, 100.0 * bound.prefill_share, 1);
        status = add_median(&table, status, &full->decode_rates);
        status = add_number(&table, status, 100.0 * bound.decode_share, 1);
        status = add_number(&table, status, samples_percentile(&full->contexts, 50), 0);
        status = add_number(&table, status, samples_percentile(&full->host_us, 50), 1);
    }
    return print_and_free(&table, status);
}

/* What a variant is compared by: the medians of a grid's rounds, else what the run came to. */
static void get_variant_rates(struct bench_run *run, double *prefill, double *decode, double *host_us) {
    struct bench_summary summary;
    bench_summarize(run, &summary);
    bool has_rounds = run->full.decode_rates.n > 0;
    *prefill = run->prefill_rates.n > 0 ? samples_percentile(&run->prefill_rates, 50) : summary.prefill_rate;
    *decode = has_rounds ? samples_percentile(&run->full.decode_rates, 50) : summary.decode_rate;
    *host_us = has_rounds ? samples_percentile(&run->full.host_us, 50) : summary.step_ms * summary.host_share * 1000.0;
}

/* The variants of a run one below the other, beside what they are of the base, which comes first. */
static perch_status print_variants(const struct tool *tool, struct bench_run *runs, size_t n) {
    static const char *const names[] = {"run",          "variant", "prefill tok/s",  "x base",
                                        "decode tok/s", "x base",  "host us a step", "TTFT ms p50"};
    const struct bench_vary *vary = &tool->bench.vary;
    size_t n_cells = 0;
    struct table table;
    perch_status status = add_heading(&table, names, sizeof(names) / sizeof(names[0]));
    while (n_cells < n && runs[n_cells].variant == 0) {
        n_cells++;
    }
    for (size_t cell = 0; cell < n_cells; cell++) {
        double base_prefill = 0.0;
        double base_decode = 0.0;
        for (size_t i = cell; i < n; i += n_cells) {
            char name[BENCH_VARY_TEXT_CAP];
            double prefill;
            double decode;
            double host_us;
            get_variant_rates(&runs[i], &prefill, &decode, &host_us);
            base_prefill = i == cell ? prefill : base_prefill;
            base_decode = i == cell ? decode : base_decode;
            bench_vary_name(vary, runs[i].variant, name, sizeof(name));
            status = add_text(&table, status, i == cell ? runs[i].name : "");
            status = add_text(&table, status, name);
            status = add_number(&table, status, prefill, 0);
            status = add_number(&table, status, ratio(prefill, base_prefill), 2);
            status = add_number(&table, status, decode, 0);
            status = add_number(&table, status, ratio(decode, base_decode), 2);
            status = add_number(&table, status, host_us, 1);
            status = add_number(&table, status, samples_percentile(&runs[i].ttft_ms, 50), 1);
        }
    }
    return print_and_free(&table, status);
}

int bench_print(const struct tool *tool, struct bench_run *runs, size_t n) {
    bool is_grid = tool->bench.workload == BENCH_GRID;
    perch_status status = print_times(runs, n);
    printf("\n");
    status = status != PERCH_OK ? status : print_steps(runs, n);
    if (status == PERCH_OK && is_grid) {
        printf("\n");
        status = print_rounds(runs, n);
    }
    if (status == PERCH_OK && !is_grid) {
        printf("\n");
        status = print_classes(runs, n);
    }
    if (status == PERCH_OK && !is_grid) {
        printf("\n");
        status = print_cache(runs, n);
    }
    if (status == PERCH_OK && tool->bench.executor == BENCH_SIMULATE) {
        printf("\n");
        status = sim_print(runs, n);
    }
    if (status == PERCH_OK && tool->bench.vary.n_keys > 0) {
        printf("\n");
        status = print_variants(tool, runs, n);
    }
    return status == PERCH_OK ? tool_flush(tool) : tool_fail(tool, EXIT_RUN, "out of memory");
}
