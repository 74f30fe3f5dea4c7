/*
 * perch top: what engines on this machine do at the moment, drawn again and again.
 *
 * Nothing but statistics files is read: the engines don't notice.
 */
#include "args.h"
#include "commands.h"
#include "interrupt.h"
#include "json_out.h"
#include "top_data.h"
#include "top_screen.h"

#include <errno.h>
#include <locale.h>
#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <termios.h>
#include <unistd.h>

struct top {
    struct tool tool;
    const char *word; /* FILE or PID, or NULL */
    const char *interval;
    bool once;
    int interval_ms;
    struct top_engines engines;
    struct screen screen;
    bool has_keys; /* stdin is a terminal that gives keys as they are pressed; then: */
    struct termios keys_before;
};

static int parse_interval(struct top *top) {
    char *end = NULL;
    double seconds = top->interval != NULL ? strtod(top->interval, &end) : 1.0;
    if (top->interval != NULL && (end == top->interval || *end != '\0' || !(seconds >= 0.05 && seconds <= 3600.0))) {
        return tool_fail(&top->tool, EXIT_USAGE, "--interval: '%s' is no number of seconds in 0.05..3600",
                         top->interval);
    }
    top->interval_ms = (int)(seconds * 1e3 + 0.5);
    return EXIT_DONE;
}

/* -------------------------------------------------------------------- JSON -- */

static json_t *number(double value) { return isfinite(value) ? json_real(value) : json_null(); }

static json_t *rates_json(const struct top_rates *rates) {
    json_t *out = json_object();
    bool failed = out == NULL;
#define RATE(field) failed = failed || json_object_set_new(out, #field, number(rates->field)) != 0
    RATE(prefill_tokens);
    RATE(decode_tokens);
    RATE(requests);
    RATE(evictions);
    RATE(evicted_pages);
    RATE(to_host_bytes);
    RATE(to_device_bytes);
    RATE(to_disk_bytes);
    RATE(from_disk_bytes);
    RATE(step_ms);
    RATE(host_share);
    RATE(hit_ratio);
    RATE(cached_share);
#undef RATE
    if (failed) {
        json_decref(out);
        return NULL;
    }
    return out;
}

static json_t *engine_json(const struct top_engine *engine) {
    const perch_snapshot *now = &engine->now;
    struct top_rates rates = top_engine_rates(engine);
    return json_pack("{s:o, s:I, s:b, s:o, s:o, s:o, s:I, s:I, s:I, s:o, s:o}", "file",
                     json_text(engine->file, strlen(engine->file)), "pid", (json_int_t)now->pid, "running",
                     now->running != 0, "model", json_text(now->model, strlen(now->model)), "backend",
                     json_text(now->backend, strlen(now->backend)), "version",
                     json_text(now->version, strlen(now->version)), "session_len", (json_int_t)now->session_len,
                     "age_us", (json_int_t)now->age_us, "uptime_us", (json_int_t)now->uptime_us, "stats",
                     json_stats(&now->stats), "rates", rates_json(&rates));
}

static int print_json(const struct top *top) {
    json_t *array = json_array();
    for (size_t i = 0; array != NULL && i < top->engines.n; i++) {
        if (json_array_append_new(array, engine_json(&top->engines.engines[i])) != 0) {
            json_decref(array);
            array = NULL;
        }
    }
    return tool_write_json(&top->tool, array, false);
}

/* ---------------------------------------------------------------- terminal -- */

/* For its effect on a wait: the frame is drawn anew at once. */
static void on_resize(int number_of_signal) { (void)number_of_signal; }

/* Without line editing and echo, nor stopping by Ctrl-Z, which would leave the screen as it is. */
static void take_keys(struct top *top) {
    struct termios raw;
    if (!isatty(STDIN_FILENO) || tcgetattr(STDIN_FILENO, &top->keys_before) != 0) {
        return;
    }
    raw = top->keys_before;
    raw.c_lflag &= ~(tcflag_t)(ICANON | ECHO);
    raw.c_cc[VMIN] = 0;
    raw.c_cc[VTIME] = 0;
    raw.c_cc[VSUSP] = _POSIX_VDISABLE;
    top->has_keys = tcsetattr(STDIN_FILENO, TCSADRAIN, &raw) == 0;
}

static void open_screen(struct top *top) {
    const struct sigaction resized = {.sa_handler = on_resize};
    screen_init(&top->screen);
    if (!top->once && !top->tool.json && screen_possible()) {
        sigaction(SIGWINCH, &resized, NULL);
        screen_open(&top->screen);
        take_keys(top);
    }
}

static void close_screen(struct top *top) {
    if (top->has_keys) {
        tcsetattr(STDIN_FILENO, TCSAFLUSH, &top->keys_before);
        top->has_keys = false;
    }
    screen_close(&top->screen);
}

/* Until the next look; true: `q` was pressed. */
static bool wait_for_quit(struct top *top) {
    char key = 0;
    if (!interrupt_wait(NULL, top->has_keys ? STDIN_FILENO : -1, top->interval_ms)) {
        return false;
    }
    return read(STDIN_FILENO, &key, 1) <= 0 || key == 'q' || key == 'Q'; /* or the terminal is gone */
}

static int show(struct top *top) {
    if (top->tool.json) {
        return print_json(top);
    }
    if (top_screen_draw(&top->screen, &top->engines)) {
        return EXIT_DONE;
    }
    return errno == EPIPE ? EXIT_RUN : tool_fail(&top->tool, EXIT_RUN, "cannot write to stdout: %s", strerror(errno));
}

/* The engines that were watched are gone: that is how it ends, and no failure. */
static int ended(struct top *top, const perch_error *err) {
    close_screen(top);
    if (err->status != PERCH_E_NOT_FOUND) {
        return tool_fail_status(&top->tool, err);
    }
    fprintf(stderr, "perch top: no engine is left\n");
    return EXIT_DONE;
}

static int watch(struct top *top) {
    perch_error err = {.status = PERCH_OK};
    if (top_engines_init(&top->engines, top->word, &top->tool.options, &err) != PERCH_OK ||
        top_engines_look(&top->engines, &err) != PERCH_OK || interrupt_install(false, &err) != PERCH_OK) {
        return tool_fail_status(&top->tool, &err);
    }
    open_screen(top);
    int code = top->once ? EXIT_DONE : show(top);
    while (code == EXIT_DONE) {
        if (wait_for_quit(top)) {
            return EXIT_DONE;
        }
        if (interrupt_came()) {
            return EXIT_INTERRUPTED;
        }
        if (top_engines_look(&top->engines, &err) != PERCH_OK) {
            return ended(top, &err);
        }
        code = show(top);
        if (top->once) {
            return code;
        }
    }
    return code;
}

int cmd_top(int argc, char **argv) {
    struct top top = {0};
    perch_error err = {.status = PERCH_OK};
    int code = EXIT_DONE;
    setlocale(LC_CTYPE, "");
    if (tool_init(&top.tool, argv[0], &err) != PERCH_OK) {
        return tool_fail_status(&top.tool, &err);
    }
    const struct flag flags[] = {
        {"interval", FLAG_TEXT, &top.interval, "SECONDS", "between two looks, 0.05..3600; default 1"},
        {"once", FLAG_SWITCH, &top.once, NULL, "one look, after an interval that rates are measured in, and end"},
    };
    const struct command_args args = {
        .usage = "[PROCESS|FILE] [--interval SECONDS] [--once] [--json]",
        .summary =
            "Shows what engines on this machine do: rows, sequences, pages, tokens a second, hits, evictions, copies.\n"
            "An engine can be seen if it runs with engine.stats_file=auto, or =FILE. Without an argument all those of\n"
            "this user with auto. q ends it. Where stdout is no terminal it prints a frame for each look.",
        .flags = flags,
        .n_flags = sizeof(flags) / sizeof(flags[0]),
        .word = &top.word,
    };
    if (args_parse(&top.tool, argc, argv, &args, &code)) {
        code = parse_interval(&top);
        code = code != EXIT_DONE ? code : watch(&top);
    }
    close_screen(&top);
    top_engines_free(&top.engines);
    tool_end(&top.tool);
    return code;
}
