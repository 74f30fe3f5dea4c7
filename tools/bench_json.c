/*
 * bench_json: what runs measured, as JSON: hardware, commit, effective configuration, figures and the raw numbers that
 * they come from.
 */
#include "bench_bound.h"
#include "bench_report.h"
#include "commit.h"
#include "config.h"
#include "hardware.h"
#include "json_out.h"
#include "sim_report.h"

#include <errno.h>
#include <math.h>
#include <string.h>
#include <time.h>

/* JSON has no NaN. */
static json_t *number(double value) { return isfinite(value) ? json_real(value) : json_null(); }

/* What the counters grew by. Gauges are left as they stood at the end. */
static json_t *stats_delta(const perch_stats *before, const perch_stats *after) {
    static const char *const gauges[] = {
        "status",       "rows_running",     "requests_waiting",    "sequences_open",   "sequences_resident",
        "slots_total",  "slots_active",     "pages_total",         "pages_free",       "pages_live",
        "pages_cached", "page_bytes",       "evicted_idle_p50_us", "ttft_p50_us",      "ttft_p90_us",
        "ttft_p99_us",  "host_pages_total", "host_pages_used",     "disk_pages_total", "disk_pages_used"};
    json_t *from = json_stats(before);
    json_t *delta = json_stats(after);
    const char *key;
    json_t *value;
    if (from == NULL || delta == NULL) {
        json_decref(from);
        json_decref(delta);
        return NULL;
    }
    json_object_foreach(from, key, value) {
        bool is_gauge = false;
        for (size_t i = 0; i < sizeof(gauges) / sizeof(gauges[0]); i++) {
            is_gauge = is_gauge || strcmp(key, gauges[i]) == 0;
        }
        if (!is_gauge) {
            json_t *end = json_object_get(delta, key);
            json_integer_set(end, json_integer_value(end) - json_integer_value(value));
        }
    }
    json_decref(from);
    return delta;
}

static json_t *classes_json(struct bench_run *run) {
    json_t *classes = json_object();
    for (int i = 0; classes != NULL && i < N_CLASSES; i++) {
        json_t *class = json_pack("{s:o, s:I, s:I}", "ttft_ms", samples_json(&run->class_ttft_ms[i]), "prompt_tokens",
                                  (json_int_t)run->class_prompt_tokens[i], "computed_tokens",
                                  (json_int_t)run->class_computed_tokens[i]);
        if (json_object_set_new(classes, bench_class_name((enum bench_class)i), class) != 0) {
            json_decref(classes);
            classes = NULL;
        }
    }
    return classes;
}

/* One row a request, one array of all times between tokens. */
static json_t *raw_json(const struct bench_run *run) {
    json_t *requests = json_array();
    json_t *gaps = json_array();
    bool failed = requests == NULL || gaps == NULL;
    for (size_t i = 0; !failed && i < run->n; i++) {
        const struct bench_record *record = &run->records[i];
        json_t *row =
            json_pack("[I, I, I, I, I, I, I, I, I, s, s, b]", (json_int_t)record->arrival_us,
                      (json_int_t)record->submit_us, (json_int_t)record->first_us, (json_int_t)record->last_us,
                      (json_int_t)record->queue_us, (json_int_t)record->prompt_tokens, (json_int_t)record->known_tokens,
                      (json_int_t)record->cached_tokens, (json_int_t)record->completion_tokens,
                      bench_class_name(record->class), perch_finish_name(record->finish), record->measured ? 1 : 0);
        failed = json_array_append_new(requests, row) != 0;
    }
    /* A simulation is repeated by its configuration, to the last digit. */
    for (size_t i = 0; !failed && !run->is_simulated && i < run->gaps_ms.n; i++) {
        failed = json_array_append_new(gaps, json_real(run->gaps_ms.values[i])) != 0;
    }
    if (failed) {
        json_decref(requests);
        json_decref(gaps);
        return NULL;
    }
    return json_pack("{s:[s, s, s, s, s, s, s, s, s, s, s, s], s:o, s:o}", "columns", "arrival_us", "submit_us",
                     "first_token_us", "last_token_us", "queue_us", "prompt_tokens", "known_tokens", "cached_tokens",
                     "completion_tokens", "class", "finish_reason", "measured", "requests", requests,
                     "between_tokens_ms", gaps);
}

static json_t *values_json(const struct samples *samples) {
    json_t *values = json_array();
    for (size_t i = 0; values != NULL && i < samples->n; i++) {
        if (json_array_append_new(values, number(samples->values[i])) != 0) {
            json_decref(values);
            values = NULL;
        }
    }
    return values;
}

/* A value for each round, and the bounds by what the device copies and multiplies. */
static json_t *rounds_json(struct bench_run *run) {
    struct bench_bound bound;
    bench_bound_compute(run, &bound);
    return json_pack(
        "{s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o}", "prefill_tokens_per_s",
        values_json(&run->prefill_rates), "prefill_p50", number(samples_percentile(&run->prefill_rates, 50)),
        "all_decoding_tokens_per_s", values_json(&run->full.decode_rates), "all_decoding_p50",
        number(samples_percentile(&run->full.decode_rates, 50)), "host_us_per_step",
        number(samples_percentile(&run->full.host_us, 50)), "context",
        number(samples_percentile(&run->full.contexts, 50)), "bound_prefill_by_matrix", number(bound.prefill_by_matrix),
        "bound_decode_by_copy", number(bound.decode_by_copy), "bound_decode_by_matrix", number(bound.decode_by_matrix),
        "prefill_share", number(bound.prefill_share), "all_decoding_share", number(bound.decode_share));
}

static json_t *run_json(struct bench_run *run) {
    struct bench_summary summary;
    bench_summarize(run, &summary);
    return json_pack(
        "{s:s, s:I, s:o, s:I, s:I, s:I, s:I, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, "
        "s:o, s:o}",
        "name", run->name, "variant", (json_int_t)run->variant, "rounds", rounds_json(run), "prompt_tokens",
        (json_int_t)run->prompt_tokens, "completion_tokens", (json_int_t)run->completion_tokens, "concurrency",
        (json_int_t)run->concurrency, "requests", (json_int_t)summary.n_requests, "seconds", number(summary.seconds),
        "prefill_tokens_per_s", number(summary.prefill_rate), "decode_tokens_per_s", number(summary.decode_rate),
        "ttft_ms", samples_json(&run->ttft_ms), "between_tokens_ms", samples_json(&run->gaps_ms), "step_ms",
        number(summary.step_ms), "host_share", number(summary.host_share), "decode_rows", number(summary.decode_rows),
        "rows", number(summary.rows), "row_share", number(summary.row_share), "kv_live_share",
        number(summary.kv_live_share), "kv_cached_share", number(summary.kv_cached_share), "classes", classes_json(run),
        "stats", stats_delta(&run->before, &run->after), "simulation", run->is_simulated ? sim_json(run) : json_null(),
        "raw", raw_json(run));
}

/* What each variant sets and the plan that it ran by; runs[n] are variant by variant. */
static json_t *variants_json(const struct tool *tool, const struct bench_run *runs, size_t n) {
    json_t *variants = json_array();
    for (size_t i = 0; variants != NULL && i < n; i++) {
        char name[BENCH_VARY_TEXT_CAP];
        if (i > 0 && runs[i].variant == runs[i - 1].variant) {
            continue;
        }
        bench_vary_name(&tool->bench.vary, runs[i].variant, name, sizeof(name));
        if (json_array_append_new(variants, json_pack("{s:s, s:o}", "name", name, "plan", json_plan(runs[i].plan))) !=
            0) {
            json_decref(variants);
            variants = NULL;
        }
    }
    return variants;
}

static json_t *report_json(struct tool *tool, struct bench_run *runs, size_t n) {
    char date[32];
    time_t now = time(NULL);
    struct tm utc;
    strftime(date, sizeof(date), "%Y-%m-%dT%H:%M:%SZ", gmtime_r(&now, &utc));
    json_t *array = json_array();
    for (size_t i = 0; array != NULL && i < n; i++) {
        if (json_array_append_new(array, run_json(&runs[i])) != 0) {
            json_decref(array);
            array = NULL;
        }
    }
    return json_pack("{s:s, s:s, s:s, s:o, s:o, s:o, s:o, s:o}", "version", perch_version(), "commit", tool_commit,
                     "date", date, "hardware", hardware_json(), "config", config_json(tool, true), "plan",
                     json_plan(runs[0].plan), "variants", variants_json(tool, runs, n), "runs", array);
}

int bench_write_json(struct tool *tool, struct bench_run *runs, size_t n) {
    json_t *json = report_json(tool, runs, n);
    if (json == NULL) {
        return tool_fail(tool, EXIT_RUN, "out of memory");
    }
    if (strcmp(tool->json_file, "-") == 0) {
        return tool_write_json(tool, json, false);
    }
    errno = 0;
    int failed = json_dump_file(json, tool->json_file, JSON_REAL_PRECISION(10));
    json_decref(json);
    return failed == 0 ? EXIT_DONE : tool_fail(tool, EXIT_RUN, "cannot write %s: %s", tool->json_file, strerror(errno));
}
