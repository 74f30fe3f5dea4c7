/*
 * perch bench: measures what an INI file's [bench] section describes.
 */
#include "args.h"
#include "bench_report.h"
#include "bench_work.h"
#include "commands.h"
#include "interrupt.h"

#include <errno.h>
#include <libgen.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

struct bench {
    struct tool tool;
    const char *plot;
    struct trace trace;
    perch_options options;  /* the base's */
    perch_plan *plans;      /* [n_variants] */
    struct bench_run *runs; /* [n_runs], variant by variant; the first n_done complete */
    size_t n_variants, n_runs, n_done;
};

static size_t count_runs(const struct bench_config *config) {
    switch (config->workload) {
    case BENCH_GRID:
        return bench_grid_n_runs(config);
    case BENCH_CHURN:
        return bench_churn_n_runs(config);
    case BENCH_SESSIONS:
        return bench_sessions_n_runs(config);
    default:
        return bench_trace_n_runs(config);
    }
}

static perch_status read_trace(struct bench *bench, perch_error *err) {
    const struct bench_config *config = &bench->tool.bench;
    if (config->workload != BENCH_TRACE) {
        return PERCH_OK;
    }
    size_t n = config->max_requests == 0 ? 0 : (size_t)config->max_requests + config->warmup;
    perch_status status =
        trace_read(&bench->trace, config->trace, (enum bench_trace_format)config->trace_format, n, err);
    return status != PERCH_OK ? status : trace_lengthen(&bench->trace, config->laps, n, err);
}

/* Finds out before the run what would keep its results from being written after it. */
static int check_target(const struct tool *tool, const char *flag, const char *path) {
    struct stat info;
    errno = 0;
    if (stat(path, &info) == 0) {
        errno = S_ISDIR(info.st_mode) ? EISDIR : access(path, W_OK) == 0 ? 0 : errno;
    } else if (errno == ENOENT) {
        char folder[PERCH_PATH_CAP];
        if (snprintf(folder, sizeof(folder), "%s", path) >= (int)sizeof(folder)) {
            errno = ENAMETOOLONG;
        } else {
            errno = 0;
            (void)access(dirname(folder), W_OK | X_OK);
        }
    }
    return errno == 0 ? EXIT_DONE
                      : tool_fail(tool, EXIT_USAGE, "--%s: cannot write %s: %s", flag, path, strerror(errno));
}

/* What can be wrong with the words of the command line alone. */
static int check_words(const struct bench *bench) {
    const struct tool *tool = &bench->tool;
    int code = EXIT_DONE;
    if (tool->bench.was_set == 0 && tool->config_file == NULL) {
        return tool_fail(tool, EXIT_USAGE, "FILE.ini is missing: what is to be measured? (see perch bench --help)");
    }
    if (tool->bench.was_set == 0) {
        return tool_fail(tool, EXIT_USAGE, "%s has no [bench] section", tool->config_file);
    }
    if (tool->json_file != NULL && strcmp(tool->json_file, "-") != 0) {
        code = check_target(tool, "json", tool->json_file);
    }
    if (code == EXIT_DONE && bench->plot != NULL) {
        size_t length = strlen(bench->plot);
        if (length < 5 || strcmp(bench->plot + length - 4, ".svg") != 0) {
            return tool_fail(tool, EXIT_USAGE, "--plot: %s does not end in .svg", bench->plot);
        }
        code = check_target(tool, "plot", bench->plot);
    }
    if (code == EXIT_DONE && bench->plot != NULL && tool->bench.vary.n_keys > 0 &&
        tool->bench.executor != BENCH_SIMULATE) {
        return tool_fail(tool, EXIT_USAGE, "--plot: the picture has no place for the variants of bench.vary");
    }
    if (code == EXIT_DONE && tool->options.trace_file[0] != '\0' && tool->bench.vary.n_keys > 0) {
        return tool_fail(tool, EXIT_USAGE, "engine.trace_file: one file has no place for the variants of bench.vary");
    }
    return code;
}

static perch_status perform_workload(struct bench *bench, struct bench_run *run, size_t index, perch_error *err) {
    const struct tool *tool = &bench->tool;
    const struct bench_model model = {run->plan->vocab_size, run->plan->session_len, tool->options.queue_size};
    switch (bench->tool.bench.workload) {
    case BENCH_GRID:
        return bench_grid(run, &model, index, err);
    case BENCH_CHURN:
        return bench_churn(run, &model, index, err);
    case BENCH_SESSIONS:
        return bench_sessions(run, &model, index, err);
    default:
        return bench_trace(run, &model, &bench->trace, index, err);
    }
}

/* The base needs no name but the cell's. */
static void name_variant(const struct bench *bench, struct bench_run *run) {
    size_t length = strlen(run->name);
    if (run->variant > 0 || bench->tool.bench.vary.all) {
        char name[2 * BENCH_VARY_CAP];
        bench_vary_name(&bench->tool.bench.vary, run->variant, name, sizeof(name));
        snprintf(run->name + length, sizeof(run->name) - length, ", %s", name);
    }
}

/* Of a run that Ctrl-C ended what there is counts, except in the grid, whose rounds are whole. */
static perch_status perform(struct bench *bench, size_t variant, size_t index, perch_error *err) {
    struct bench_run *run = &bench->runs[bench->n_done];
    perch_status status = bench_run_begin(run, &bench->tool, err);
    if (status != PERCH_OK) {
        return status;
    }
    run->plan = &bench->plans[variant];
    run->variant = variant;
    status = perform_workload(bench, run, index, err);
    name_variant(bench, run);
    size_t n = bench_run_n_measured(run);
    if (status == PERCH_E_SHUTDOWN && run->measuring && n > 0 && bench->tool.bench.workload != BENCH_GRID) {
        status = bench_run_end(run, err);
    }
    if (status != PERCH_OK || n > 0) {
        return status;
    }
    return interrupt_came() ? tool_error(err, PERCH_E_SHUTDOWN, "interrupted")
                            : tool_error(err, PERCH_E_NOT_FOUND,
                                         "%s: no request was measured: the trace ends with the warm-up", run->name);
}

static int open_engine(struct tool *tool) {
    if (tool->bench.executor != BENCH_SIMULATE) {
        return tool_open_engine(tool);
    }
    perch_hardware hardware = tool->bench.hardware;
    perch_error err = {.status = PERCH_OK};
    hardware.memory_bytes = (uint64_t)(tool->bench.memory_gib * (double)(1 << 30));
    return perch_simulation_create(&tool->options, &hardware, &tool->engine, &err) == PERCH_OK
               ? EXIT_DONE
               : tool_fail_status(tool, &err);
}

/* Opens the variant's engine in place of the one before it. */
static int open_variant(struct bench *bench, size_t variant) {
    struct tool *tool = &bench->tool;
    perch_plan *plan = &bench->plans[variant];
    perch_error err = {.status = PERCH_OK};
    tool_end(tool);
    tool->options = bench->options;
    if (bench_vary_apply(&tool->bench.vary, variant, &tool->options, &err) != PERCH_OK) {
        return tool_fail_status(tool, &err);
    }
    int code = open_engine(tool);
    plan->struct_size = sizeof(*plan);
    if (code == EXIT_DONE && perch_engine_plan(tool->engine, plan, &err) != PERCH_OK) {
        code = tool_fail_status(tool, &err);
    }
    return code;
}

static int perform_variant(struct bench *bench, size_t variant) {
    bool on_terminal = isatty(STDERR_FILENO) != 0;
    perch_error err = {.status = PERCH_OK};
    size_t n = bench->n_runs / bench->n_variants;
    perch_status status = PERCH_OK;
    for (size_t i = 0; status == PERCH_OK && i < n; i++) {
        if (on_terminal) {
            fprintf(stderr, "\r\033[Krun %zu of %zu", bench->n_done + 1, bench->n_runs);
        }
        status = perform(bench, variant, i, &err);
        bench->n_done += status == PERCH_OK ? 1 : 0;
        if (status == PERCH_OK && interrupt_came()) {
            status = PERCH_E_SHUTDOWN;
        }
    }
    if (on_terminal) {
        fputs("\r\033[K", stderr);
    }
    if (status == PERCH_E_SHUTDOWN) {
        return EXIT_INTERRUPTED;
    }
    return status == PERCH_OK ? EXIT_DONE : tool_fail_status(&bench->tool, &err);
}

static int perform_all(struct bench *bench) {
    struct tool *tool = &bench->tool;
    perch_error err = {.status = PERCH_OK};
    if (bench_vary_apply(&tool->bench.vary, 0, &tool->options, &err) != PERCH_OK) {
        return tool_fail_status(tool, &err);
    }
    bench->options = tool->options;
    bench->n_variants = bench_vary_n_variants(&tool->bench.vary);
    bench->n_runs = bench->n_variants * count_runs(&tool->bench);
    bench->plans = calloc(bench->n_variants, sizeof(*bench->plans));
    bench->runs = calloc(bench->n_runs, sizeof(*bench->runs));
    if (bench->plans == NULL || bench->runs == NULL) {
        return tool_fail(tool, EXIT_RUN, "out of memory");
    }
    int code = EXIT_DONE;
    for (size_t i = 0; code == EXIT_DONE && i < bench->n_variants; i++) {
        code = open_variant(bench, i);
        if (code == EXIT_DONE && i == 0 && interrupt_install(false, &err) != PERCH_OK) {
            code = tool_fail_status(tool, &err);
        }
        if (code == EXIT_DONE) {
            code = interrupt_came() ? EXIT_INTERRUPTED : perform_variant(bench, i);
        }
    }
    tool->options = bench->options;
    return code;
}

/* What was measured is reported even if Ctrl-C ended it. */
static int report(struct bench *bench) {
    struct tool *tool = &bench->tool;
    int code = EXIT_DONE;
    if (bench->n_done == 0) {
        return tool_fail(tool, EXIT_INTERRUPTED, "interrupted before anything was measured");
    }
    if (tool->json_file == NULL || strcmp(tool->json_file, "-") != 0) {
        code = bench_print(tool, bench->runs, bench->n_done);
    }
    if (code == EXIT_DONE && tool->json_file != NULL) {
        code = bench_write_json(tool, bench->runs, bench->n_done);
    }
    if (code == EXIT_DONE && bench->plot != NULL) {
        code = bench_write_plot(tool, bench->runs, bench->n_done, bench->plot);
    }
    return code != EXIT_DONE ? code : tool_print_stats(tool);
}

static int measure(struct bench *bench) {
    struct tool *tool = &bench->tool;
    perch_error err = {.status = PERCH_OK};
    int code = check_words(bench);
    if (code != EXIT_DONE) {
        return code;
    }
    if (bench_config_check(&tool->bench, &err) != PERCH_OK || read_trace(bench, &err) != PERCH_OK) {
        return tool_fail_status(tool, &err);
    }
    code = perform_all(bench);
    if (code != EXIT_DONE && code != EXIT_INTERRUPTED) {
        return code;
    }
    int report_code = report(bench);
    return report_code != EXIT_DONE ? report_code : code;
}

int cmd_bench(int argc, char **argv) {
    struct bench bench = {0};
    perch_error err = {.status = PERCH_OK};
    int code = EXIT_DONE;
    if (tool_init(&bench.tool, argv[0], &err) != PERCH_OK) {
        return tool_fail_status(&bench.tool, &err);
    }
    const struct flag flags[] = {
        {"plot", FLAG_TEXT, &bench.plot, "FILE.svg", "draw the results"},
    };
    const struct command_args args = {
        .usage = "FILE.ini [--json OUT] [--plot FILE.svg] [section.key=value]...",
        .summary =
            "Measures what the [bench] section of an INI file describes: a grid of prompt and completion lengths and\n"
            "concurrencies, conversations that churn through too little memory, or a recorded trace. Prints tables.",
        .flags = flags,
        .n_flags = sizeof(flags) / sizeof(flags[0]),
        .runs_engine = true,
        .is_bench = true,
    };
    if (args_parse(&bench.tool, argc, argv, &args, &code)) {
        code = measure(&bench);
    }
    for (size_t i = 0; bench.runs != NULL && i < bench.n_runs; i++) {
        bench_run_free(&bench.runs[i]);
    }
    free(bench.runs);
    free(bench.plans);
    trace_free(&bench.trace);
    tool_end(&bench.tool);
    return code;
}
