/* sim_report: see sim_report.h. */
#include "sim_report.h"

#include "svg.h"
#include "table.h"

#include <math.h>
#include <string.h>

#define GROUP_TOKENS 16u /* what prefixes are found in */

static double ratio(double a, double b) { return b > 0.0 ? a / b : (double)NAN; }

/*
 * Blocks of a prompt that were found. Its last token is computed in any case, and what is found are whole groups: the last block counts
 * if all groups of it were found that can be.
 */
static uint64_t found_blocks(const struct bench_record *record, uint64_t n_blocks, uint32_t block_tokens) {
    uint64_t most = (record->prompt_tokens - 1) / GROUP_TOKENS * GROUP_TOKENS;
    bool has_last = record->cached_tokens >= most && most > (n_blocks - 1) * block_tokens;
    return has_last ? n_blocks : record->cached_tokens / block_tokens;
}

void sim_summarize(const struct bench_run *run, struct sim_summary *summary) {
    double n_tokens = 0.0;
    double n_cached = 0.0;
    double n_blocks = 0.0;
    double n_found = 0.0;
    double queue_us = 0.0;
    double n = 0.0;
    for (size_t i = 0; i < run->n; i++) {
        const struct bench_record *record = &run->records[i];
        if (!record->measured || record->finish == PERCH_FINISH_NONE) {
            continue;
        }
        n += 1.0;
        n_tokens += (double)record->prompt_tokens;
        n_cached += (double)record->cached_tokens;
        queue_us += (double)record->queue_us;
        if (run->block_tokens > 0) {
            uint64_t n_whole = (record->prompt_tokens + run->block_tokens - 1) / run->block_tokens;
            n_blocks += (double)n_whole;
            n_found += (double)found_blocks(record, n_whole, run->block_tokens);
        }
    }
    const struct belady_found *optimum = &run->optimum;
    const struct belady_found *endless = &run->endless;
    *summary = (struct sim_summary){
        .capacity_gib = (double)bench_run_capacity(run) / (double)(1 << 30),
        .token_share = ratio(n_cached, n_tokens),
        .block_share = ratio(n_found, n_blocks),
        .optimum_share = ratio((double)optimum->n_found_tokens, (double)optimum->n_tokens),
        .endless_share = ratio((double)endless->n_found_tokens, (double)endless->n_tokens),
        .endless_block_share = ratio((double)endless->n_found_blocks, (double)endless->n_blocks),
        .ttft_mean_ms = samples_mean(&run->ttft_ms),
        .queue_mean_ms = ratio(queue_us / 1000.0, n),
    };
}

static perch_status add(struct table *table, perch_status status, double value, int digits) {
    if (status != PERCH_OK) {
        return status;
    }
    return isfinite(value) ? table_cell(table, NULL, "%.*f", digits, value) : table_cell(table, NULL, "-");
}

perch_status sim_print(const struct bench_run *runs, size_t n) {
    static const char *const names[] = {"simulated",    "skipped",       "KV GiB",          "found %",
                                        "optimum %",    "endless %",     "blocks %",        "endless %",
                                        "TTFT ms mean", "queue ms mean", "restored tokens", "fetched tokens",
                                        "prefilled",    "host us a step"};
    struct table table;
    perch_status status = PERCH_OK;
    table_init(&table, sizeof(names) / sizeof(names[0]));
    for (size_t i = 0; status == PERCH_OK && i < sizeof(names) / sizeof(names[0]); i++) {
        status = table_cell(&table, NULL, "%s", names[i]);
    }
    for (size_t i = 0; i < n; i++) {
        const perch_stats *before = &runs[i].before;
        const perch_stats *after = &runs[i].after;
        struct sim_summary summary;
        sim_summarize(&runs[i], &summary);
        status = status != PERCH_OK ? status : table_cell(&table, NULL, "%s", runs[i].name);
        status = add(&table, status, (double)runs[i].n_skipped, 0);
        status = add(&table, status, summary.capacity_gib, 1);
        status = add(&table, status, 100.0 * summary.token_share, 2);
        status = add(&table, status, 100.0 * summary.optimum_share, 2);
        status = add(&table, status, 100.0 * summary.endless_share, 2);
        status = add(&table, status, 100.0 * summary.block_share, 2);
        status = add(&table, status, 100.0 * summary.endless_block_share, 2);
        status = add(&table, status, summary.ttft_mean_ms, 1);
        status = add(&table, status, summary.queue_mean_ms, 1);
        status = add(&table, status, (double)(after->restored_tokens - before->restored_tokens), 0);
        status = add(&table, status, (double)(after->fetched_tokens - before->fetched_tokens), 0);
        status = add(&table, status, (double)(after->prefill_tokens - before->prefill_tokens), 0);
        status = add(&table, status,
                     ratio((double)(after->host_us - before->host_us), (double)(after->steps - before->steps)), 1);
    }
    if (status == PERCH_OK) {
        table_print(&table, stdout);
    }
    table_free(&table);
    return status;
}

/* JSON has no NaN. */
static json_t *number(double value) { return isfinite(value) ? json_real(value) : json_null(); }

json_t *sim_json(const struct bench_run *run) {
    struct sim_summary summary;
    sim_summarize(run, &summary);
    return json_pack("{s:I, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o}", "skipped", (json_int_t)run->n_skipped,
                     "capacity_gib", number(summary.capacity_gib), "found_token_share", number(summary.token_share),
                     "optimum_token_share", number(summary.optimum_share), "endless_token_share",
                     number(summary.endless_share), "found_block_share", number(summary.block_share),
                     "endless_block_share", number(summary.endless_block_share), "ttft_mean_ms",
                     number(summary.ttft_mean_ms), "queue_mean_ms", number(summary.queue_mean_ms));
}

/* ------------------------------------------------------------------ curves -- */

/* The run's variant without what sets the capacity: what its line is called. */
static void name_line(const struct bench_vary *vary, const struct bench_run *run, char *out, size_t cap) {
    char whole[BENCH_VARY_TEXT_CAP];
    size_t n = 0;
    bench_vary_name(vary, run->variant, whole, sizeof(whole));
    out[0] = '\0';
    for (char *rest = whole, *word; (word = strtok_r(rest, " ", &rest)) != NULL && n < cap;) {
        if (strncmp(word, "cache.cache_bytes=", 18) != 0 && strncmp(word, "cache.host_bytes=", 17) != 0 &&
            strncmp(word, "cache.disk_bytes=", 17) != 0) {
            n += (size_t)snprintf(out + n, cap - n, "%s%s", n > 0 ? " " : "", word);
        }
    }
    if (n == 0) {
        snprintf(out, cap, "perch");
    }
}

static perch_status add_line(struct svg_chart *chart, const char *name, unsigned colour, unsigned dash,
                             struct bench_run *const *line, size_t n, double (*value)(const struct sim_summary *),
                             perch_error *err) {
    perch_status status = svg_add_series(chart, name, colour, dash, err);
    for (size_t i = 0; status == PERCH_OK && i < n; i++) {
        struct sim_summary summary;
        sim_summarize(line[i], &summary);
        status = svg_add_point(chart, summary.capacity_gib, value(&summary), err);
    }
    return status;
}

static double found(const struct sim_summary *summary) { return 100.0 * summary->token_share; }
static double optimum(const struct sim_summary *summary) { return 100.0 * summary->optimum_share; }
static double endless(const struct sim_summary *summary) { return 100.0 * summary->endless_share; }
static double ttft(const struct sim_summary *summary) { return summary->ttft_mean_ms; }

perch_status sim_plot(struct svg_chart *charts, const struct bench_vary *vary, struct bench_run *runs, size_t n,
                      perch_error *err) {
    charts[0] = (struct svg_chart){.title = "prompt tokens found in the cache",
                                   .x_label = "GiB of KV",
                                   .y_label = "%",
                                   .x_log = true,
                                   .marks = true};
    charts[1] = (struct svg_chart){
        .title = "mean time to first token", .x_label = "GiB of KV", .y_label = "ms", .x_log = true, .marks = true};
    perch_status status = PERCH_OK;
    unsigned n_lines = 0;
    for (size_t i = 0; status == PERCH_OK && i < n; i++) {
        struct bench_run *line[BENCH_MAX_VARY_VALUES * BENCH_MAX_VARY_VALUES];
        char name[BENCH_VARY_TEXT_CAP];
        char other[BENCH_VARY_TEXT_CAP];
        size_t n_points = 0;
        bool is_first = true;
        name_line(vary, &runs[i], name, sizeof(name));
        for (size_t k = 0; k < n && n_points < sizeof(line) / sizeof(line[0]); k++) {
            name_line(vary, &runs[k], other, sizeof(other));
            if (strcmp(name, other) == 0) {
                is_first = is_first && k >= i;
                line[n_points++] = &runs[k];
            }
        }
        if (!is_first) {
            continue;
        }
        status = add_line(&charts[0], name, n_lines, 0, line, n_points, found, err);
        status = status != PERCH_OK ? status : add_line(&charts[1], name, n_lines, 0, line, n_points, ttft, err);
        if (status == PERCH_OK && n_lines == 0 && runs[i].optimum.n_tokens > 0) {
            status = add_line(&charts[0], "Belady's optimum", 5, 1, line, n_points, optimum, err);
            status = status != PERCH_OK ? status
                                        : add_line(&charts[0], "endless memory", 6, 2, line, n_points, endless, err);
        }
        n_lines++;
    }
    return status;
}
