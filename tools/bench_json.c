/*
 * bench_json: what runs measured, as JSON: hardware, commit, effective configuration, figures and the raw numbers that
 * they come from.
 */
#include "bench_report.h"
#include "commit.h"
#include "config.h"
#include "hardware.h"
#include "json_out.h"

#include <errno.h>
#include <math.h>
#include <string.h>
#include <time.h>

/* JSON has no NaN. */
static json_t *number(double value) { return isfinite(value) ? json_real(value) : json_null(); }

/* What the counters grew by. Gauges are left as they stood at the end. */
static json_t *stats_delta(const perch_stats *before, const perch_stats *after) {
    static const char *const gauges[] = {
        "status",       "rows_running", "requests_waiting", "sequences_open", "sequences_resident", "slots_total",
        "slots_active", "pages_total",  "pages_free",       "pages_live",     "pages_cached"};
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
    for (size_t i = 0; !failed && i < run->gaps_ms.n; i++) {
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

static json_t *run_json(struct bench_run *run) {
    struct bench_summary summary;
    bench_summarize(run, &summary);
    return json_pack(
        "{s:s, s:I, s:I, s:I, s:I, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o}", "name",
        run->name, "prompt_tokens", (json_int_t)run->prompt_tokens, "completion_tokens",
        (json_int_t)run->completion_tokens, "concurrency", (json_int_t)run->concurrency, "requests",
        (json_int_t)summary.n_requests, "seconds", number(summary.seconds), "prefill_tokens_per_s",
        number(summary.prefill_rate), "decode_tokens_per_s", number(summary.decode_rate), "ttft_ms",
        samples_json(&run->ttft_ms), "between_tokens_ms", samples_json(&run->gaps_ms), "step_ms",
        number(summary.step_ms), "host_share", number(summary.host_share), "decode_rows", number(summary.decode_rows),
        "rows", number(summary.rows), "row_share", number(summary.row_share), "kv_live_share",
        number(summary.kv_live_share), "kv_cached_share", number(summary.kv_cached_share), "classes", classes_json(run),
        "stats", stats_delta(&run->before, &run->after), "raw", raw_json(run));
}

static json_t *report_json(struct tool *tool, struct bench_run *runs, size_t n) {
    char date[32];
    time_t now = time(NULL);
    struct tm utc;
    strftime(date, sizeof(date), "%Y-%m-%dT%H:%M:%SZ", gmtime_r(&now, &utc));
    perch_plan plan = {.struct_size = sizeof(plan)};
    if (perch_engine_plan(tool->engine, &plan, NULL) != PERCH_OK) {
        return NULL;
    }
    json_t *array = json_array();
    for (size_t i = 0; array != NULL && i < n; i++) {
        if (json_array_append_new(array, run_json(&runs[i])) != 0) {
            json_decref(array);
            array = NULL;
        }
    }
    return json_pack("{s:s, s:s, s:s, s:o, s:o, s:o, s:o}", "version", perch_version(), "commit", tool_commit, "date",
                     date, "hardware", hardware_json(), "config", config_json(tool, true), "plan", json_plan(&plan),
                     "runs", array);
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
    int failed = json_dump_file(json, tool->json_file, 0);
    json_decref(json);
    return failed == 0 ? EXIT_DONE : tool_fail(tool, EXIT_RUN, "cannot write %s: %s", tool->json_file, strerror(errno));
}
