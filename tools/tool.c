/*
 * tool: exit codes, errors, standard output and the engine of a command.
 */
#include "tool.h"

#include "json_out.h"
#include "progress.h"
#include "table.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

perch_status tool_init(struct tool *tool, const char *command, perch_error *err) {
    memset(tool, 0, sizeof(*tool));
    tool->command = command;
    bench_config_init(&tool->bench);
    perch_status status = perch_options_init(&tool->options, sizeof(tool->options));
    return status == PERCH_OK ? PERCH_OK : tool_error(err, status, "perch.h and libperch do not match");
}

void tool_end(struct tool *tool) {
    perch_engine_destroy(tool->engine);
    tool->engine = NULL;
    tool->tokenizer = NULL;
}

int tool_open_engine(struct tool *tool) {
    struct progress progress;
    progress_start(&progress, &tool->options);
    perch_error err = {.status = PERCH_OK};
    perch_status status = perch_engine_create(&tool->options, &tool->engine, &err);
    progress_end(&progress, &tool->options);
    if (status != PERCH_OK) {
        return tool_fail_status(tool, &err);
    }
    tool->tokenizer = perch_engine_tokenizer(tool->engine);
    perch_plan plan = {.struct_size = sizeof(plan)};
    if (perch_engine_plan(tool->engine, &plan, &err) == PERCH_OK && plan.gpu_status != PERCH_OK &&
        plan.gpu_status != PERCH_E_UNSUPPORTED) { /* a GPU is there, but */
        fprintf(stderr, "perch: the CPU is used, since %s\n", plan.note);
    }
    return EXIT_DONE;
}

int tool_open_engine_with_text(struct tool *tool) {
    int code = tool_open_engine(tool);
    if (code == EXIT_DONE && tool->tokenizer == NULL) {
        code = tool_fail(tool, EXIT_USAGE,
                         "the model has no tokenizer: there is no tokenizer.json in %s (set "
                         "model.tokenizer_path)",
                         tool->options.path);
    }
    return code;
}

int tool_fail(const struct tool *tool, int code, const char *format, ...) {
    char message[1024];
    va_list args;
    va_start(args, format);
    vsnprintf(message, sizeof(message), format, args);
    va_end(args);
    for (char *c = message; *c != '\0'; c++) {
        if (*c == '\n' || *c == '\r') {
            *c = ' ';
        }
    }
    fflush(stdout);
    fprintf(stderr, "perch%s%s: %s\n", tool->command[0] != '\0' ? " " : "", tool->command, message);
    return code;
}

int tool_fail_status(const struct tool *tool, const perch_error *err) {
    int code = EXIT_RUN;
    switch (err->status) {
    case PERCH_E_INVALID:
    case PERCH_E_IO:
    case PERCH_E_FORMAT:
    case PERCH_E_UNSUPPORTED:
    case PERCH_E_CONFIG:
    case PERCH_E_TOO_LONG:
        code = EXIT_USAGE;
        break;
    default:
        break;
    }
    return tool_fail(tool, code, "%s", err->message[0] != '\0' ? err->message : perch_status_text(err->status));
}

perch_status tool_error(perch_error *err, perch_status status, const char *format, ...) {
    if (err != NULL) {
        err->status = status;
        va_list args;
        va_start(args, format);
        vsnprintf(err->message, sizeof(err->message), format, args);
        va_end(args);
    }
    return status;
}

perch_status tool_nomem(perch_error *err) { return tool_error(err, PERCH_E_NOMEM, "out of memory"); }

const char *tool_event_error(const perch_event *event) {
    bool says_why = event->message != NULL && event->message[0] != '\0';
    return says_why ? event->message : perch_status_text(event->status);
}

static int write_failed(const struct tool *tool) {
    return errno == EPIPE ? EXIT_RUN : tool_fail(tool, EXIT_RUN, "cannot write to stdout: %s", strerror(errno));
}

int tool_write(const struct tool *tool, const char *data, size_t n_bytes, bool flush) {
    errno = 0;
    if (fwrite(data, 1, n_bytes, stdout) != n_bytes || (flush && fflush(stdout) != 0)) {
        return write_failed(tool);
    }
    return EXIT_DONE;
}

int tool_flush(const struct tool *tool) {
    errno = 0;
    return fflush(stdout) != 0 || ferror(stdout) != 0 ? write_failed(tool) : EXIT_DONE;
}

int tool_write_json(const struct tool *tool, json_t *json, bool indented) {
    char *text = json != NULL ? json_dumps(json, indented ? JSON_INDENT(2) : 0) : NULL;
    json_decref(json);
    if (text == NULL) {
        return tool_fail(tool, EXIT_RUN, "out of memory");
    }
    int code = tool_write(tool, text, strlen(text), false);
    free(text);
    return code != EXIT_DONE ? code : tool_write(tool, "\n", 1, true);
}

int tool_print_stats(struct tool *tool) {
    if (!tool->show_stats) {
        return EXIT_DONE;
    }
    perch_stats stats = {.struct_size = sizeof(stats)};
    perch_error err = {.status = PERCH_OK};
    if (perch_engine_stats(tool->engine, &stats, &err) != PERCH_OK) {
        return tool_fail_status(tool, &err);
    }
    json_t *json = json_stats(&stats);
    if (json == NULL) {
        return tool_fail(tool, EXIT_RUN, "out of memory");
    }
    fflush(stdout);
    if (tool->json) {
        json_dumpf(json, stderr, 0);
        fputc('\n', stderr);
    } else {
        table_print_pairs(stderr, json);
    }
    json_decref(json);
    return EXIT_DONE;
}
