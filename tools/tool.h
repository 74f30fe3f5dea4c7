/*
 * tool: what every command of perch shares: exit codes, one-line errors, standard output, the engine.
 *
 * A function here and in the commands that returns int returns an exit code, 0 = go on. Whatever can fail below them
 * returns a perch_status with a perch_error, as the library does.
 */
#ifndef PERCH_TOOLS_TOOL_H
#define PERCH_TOOLS_TOOL_H

#include "bench_config.h"

#include "perch/perch.h"

#include <jansson.h>
#include <stdbool.h>

enum {
    EXIT_DONE = 0,
    EXIT_RUN = 1,          /* it could have worked, but did not */
    EXIT_USAGE = 2,        /* a wrong flag, file, key or value: it can never work as asked */
    EXIT_INTERRUPTED = 130 /* Ctrl-C, as a shell counts it */
};

struct tool {
    const char *command; /* "generate" */
    perch_options options;
    struct bench_config bench;
    const char *config_file; /* --config, or the INI file of perch bench; NULL = none */
    bool json;               /* --json, where it is a switch */
    const char *json_file;   /* --json OUT, where it takes a file */
    bool show_stats;         /* --stats */
    perch_engine *engine;
    const perch_tokenizer *tokenizer; /* the engine's; NULL if the model has none */
};

perch_status tool_init(struct tool *tool, const char *command, perch_error *err);

/* Destroys the engine. */
void tool_end(struct tool *tool);

/* Creates tool->engine by tool->options, with a progress bar if stderr is a terminal. An error was printed. */
int tool_open_engine(struct tool *tool);

/* As tool_open_engine, and fails if the model has no tokenizer. */
int tool_open_engine_with_text(struct tool *tool);

/* Prints "perch COMMAND: message" as one line on stderr and returns code. */
int tool_fail(const struct tool *tool, int code, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* The same for a status from the library: EXIT_USAGE where the input can never work, else EXIT_RUN. */
int tool_fail_status(const struct tool *tool, const perch_error *err);

/* Fills err (may be NULL) and returns status. */
perch_status tool_error(perch_error *err, perch_status status, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
perch_status tool_nomem(perch_error *err);

/* What went wrong with a completion that ended with PERCH_FINISH_ERROR; borrowed from the event. */
const char *tool_event_error(const perch_event *event);

/*
 * Writes to stdout; at once where flush. A reader that went away (EPIPE) is EXIT_RUN without a message, any other failure
 * with one.
 */
int tool_write(const struct tool *tool, const char *data, size_t n_bytes, bool flush);
int tool_flush(const struct tool *tool);

/* Writes json (consumed; NULL = out of memory) as one line, or indented over several. */
int tool_write_json(const struct tool *tool, json_t *json, bool indented);

/* Prints the engine's statistics to stderr, as a table or (--json) as one JSON object, if --stats asks for it. */
int tool_print_stats(struct tool *tool);

#endif
