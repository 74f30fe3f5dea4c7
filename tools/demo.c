/*
 * demo: many conversations in the memory of a few, and the same conversations again in memory for all of them.
 *
 * Every conversation tells the model things and asks for them many turns later. An answer is right only if all KV that
 * the model looks back at is right, so wrong re-prefill shows at once. The transcripts of both runs have to be the same.
 */
#include "demo_report.h"
#include "demo_screen.h"
#include "interrupt.h"
#include "tool.h"

#include <errno.h>
#include <getopt.h>
#include <locale.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DEFAULT_CONVERSATIONS 12u

struct demo {
    const char *config;
    const char *data_file;
    const char *transcript_file; /* NULL = not written */
    size_t n;                    /* 0 = not given */
    perch_options options;
    struct demo_data data;
    struct demo_screen screen;
    struct demo_run evicting, full;
};

static const char usage[] =
    "usage: perch-demo [FLAGS] [section.key=value]...\n\n"
    "Runs conversations side by side in memory for a few of them: each is evicted to its token IDs and computed\n"
    "again, over and over. Checks every answer, then runs the same in memory for all of them and compares.\n\n"
    "  --conversations N   take the first N of the file (12)\n"
    "  --data FILE         conversations and right answers, JSON lines (tools/demo-data/conversations.jsonl)\n"
    "  --config FILE       model and memory, an INI file (configs/demo.ini)\n"
    "  --transcript FILE   write the first run's transcript to FILE\n"
    "  --help              print this and end\n"
    "  section.key=value   a key of the configuration; perch --keys lists them all\n\n"
    "Exit code: 0 = all is right, 1 = it is not, 2 = a wrong flag, file, key or value, 130 = interrupted.\n";

static int fail(int code, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Prints a line on stderr and returns code. */
static int fail(int code, const char *format, ...) {
    char message[1024];
    va_list args;
    va_start(args, format);
    vsnprintf(message, sizeof(message), format, args);
    va_end(args);
    fflush(stdout);
    fprintf(stderr, "perch-demo: %s\n", message);
    return code;
}

static int fail_status(const perch_error *err) {
    switch (err->status) {
    case PERCH_E_SHUTDOWN:
        return fail(EXIT_INTERRUPTED, "%s", err->message);
    case PERCH_E_NOMEM:
    case PERCH_E_NO_ROOM:
    case PERCH_E_DEVICE:
        return fail(EXIT_RUN, "%s", err->message);
    default:
        return fail(EXIT_USAGE, "%s", err->message);
    }
}

/* ------------------------------------------------------------ command line -- */

static int parse_count(struct demo *demo, const char *text) {
    char *end = NULL;
    errno = 0;
    unsigned long n = strtoul(text, &end, 10);
    if (text[0] < '0' || text[0] > '9' || *end != '\0' || errno != 0 || n == 0) {
        return fail(EXIT_USAGE, "--conversations must be a number from 1 on, not %s", text);
    }
    demo->n = n;
    return EXIT_DONE;
}

static int set_key(struct demo *demo, const char *word) {
    char key[128];
    const char *equals = strchr(word, '=');
    perch_error err = {.status = PERCH_OK};
    if (equals == NULL || (size_t)(equals - word) >= sizeof(key)) {
        return fail(EXIT_USAGE, "unexpected argument '%s' (see perch-demo --help)", word);
    }
    memcpy(key, word, (size_t)(equals - word));
    key[equals - word] = '\0';
    return perch_options_set(&demo->options, key, equals + 1, &err) == PERCH_OK ? EXIT_DONE : fail_status(&err);
}

/* Flags first, then the INI file, then the keys that stand over it. *go_on: there is something to run. */
static int parse(struct demo *demo, int argc, char **argv, bool *go_on) {
    static const struct option flags[] = {
        {"conversations", required_argument, NULL, 'n'},
        {"data", required_argument, NULL, 'd'},
        {"config", required_argument, NULL, 'c'},
        {"transcript", required_argument, NULL, 't'},
        {"help", no_argument, NULL, 'h'},
        {NULL, 0, NULL, 0},
    };
    int code = EXIT_DONE;
    int flag;
    opterr = 0;
    while (code == EXIT_DONE && (flag = getopt_long(argc, argv, ":h", flags, NULL)) != -1) {
        switch (flag) {
        case 'n':
            code = parse_count(demo, optarg);
            break;
        case 'd':
            demo->data_file = optarg;
            break;
        case 'c':
            demo->config = optarg;
            break;
        case 't':
            demo->transcript_file = optarg;
            break;
        case 'h':
            fputs(usage, stdout);
            return EXIT_DONE;
        default:
            return fail(EXIT_USAGE, flag == ':' ? "%s needs a value" : "wrong flag '%s' (see perch-demo --help)",
                        argv[optind - 1]);
        }
    }
    perch_error err = {.status = PERCH_OK};
    if (code == EXIT_DONE && perch_options_load_ini(&demo->options, demo->config, NULL, &err) != PERCH_OK) {
        code = fail_status(&err);
    }
    for (int i = optind; code == EXIT_DONE && i < argc; i++) {
        code = set_key(demo, argv[i]);
    }
    *go_on = code == EXIT_DONE;
    return code;
}

static int load(struct demo *demo) {
    perch_error err = {.status = PERCH_OK};
    if (demo_data_load(&demo->data, demo->data_file, &err) != PERCH_OK) {
        return fail_status(&err);
    }
    if (demo->n > demo->data.n) {
        return fail(EXIT_USAGE, "--conversations %zu: %s has only %zu", demo->n, demo->data_file, demo->data.n);
    }
    if (demo->n == 0) {
        demo->n = demo->data.n < DEFAULT_CONVERSATIONS ? demo->data.n : DEFAULT_CONVERSATIONS;
    }
    return interrupt_install(false, &err) == PERCH_OK ? EXIT_DONE : fail_status(&err);
}

/* ----------------------------------------------------------------- the runs -- */

/* Runs all conversations in one engine; whoever looks on is told. */
static int run(struct demo *demo, struct demo_run *run, const perch_options *options, const char *name,
               const struct demo_watch *watch) {
    perch_error err = {.status = PERCH_OK};
    perch_status status = demo_run_begin(run, options, &demo->data, demo->n, &err);
    if (status == PERCH_OK && demo->screen.out.is_open) {
        demo_screen_begin(&demo->screen, run);
    } else if (status == PERCH_OK) {
        demo_log_begin(run, name);
    }
    if (status == PERCH_OK) {
        status = demo_run_go(run, watch, &err);
    }
    if (status != PERCH_OK) {
        screen_close(&demo->screen.out);
    }
    demo_run_end(run);
    return status == PERCH_OK ? EXIT_DONE : fail_status(&err);
}

static int run_both(struct demo *demo) {
    const struct demo_watch show = {demo_screen_answered, demo_screen_frame, &demo->screen};
    const struct demo_watch log = {demo_log_answered, NULL, NULL};
    const struct demo_watch nothing = {NULL, NULL, NULL};
    perch_options roomy = demo->options;
    roomy.cache_bytes = 0;
    roomy.cache_max_entry_count = (double)demo->n;
    if (screen_possible()) {
        screen_open(&demo->screen.out);
    }
    bool shown = demo->screen.out.is_open;
    int code = run(demo, &demo->evicting, &demo->options, "evicting", shown ? &show : &log);
    if (code == EXIT_DONE) {
        code = run(demo, &demo->full, &roomy, "all in memory", shown ? &show : &nothing);
    }
    screen_close(&demo->screen.out);
    return code;
}

/* ------------------------------------------------------------------ results -- */

static int write_transcript(const struct demo *demo) {
    const struct text *text = &demo->evicting.transcript;
    FILE *file = fopen(demo->transcript_file, "wb");
    bool written = file != NULL && fwrite(text->data, 1, text->n_bytes, file) == text->n_bytes;
    if (file != NULL && fclose(file) != 0) {
        written = false;
    }
    return written ? EXIT_DONE : fail(EXIT_RUN, "cannot write %s: %s", demo->transcript_file, strerror(errno));
}

static int report(const struct demo *demo) {
    perch_error err = {.status = PERCH_OK};
    if (demo->transcript_file != NULL && write_transcript(demo) != EXIT_DONE) {
        return EXIT_RUN;
    }
    if (demo_report_figures(&demo->evicting, &demo->full, &err) != PERCH_OK) {
        return fail_status(&err);
    }
    demo_report_example(&demo->evicting);
    bool right = demo_report_verdict(&demo->evicting, &demo->full, demo->screen.out.colour);
    if (fflush(stdout) != 0 || ferror(stdout) != 0) {
        return fail(EXIT_RUN, "cannot write to stdout: %s", strerror(errno));
    }
    return right ? EXIT_DONE : EXIT_RUN;
}

int main(int argc, char **argv) {
    struct demo demo = {.config = "configs/demo.ini", .data_file = "tools/demo-data/conversations.jsonl"};
    bool go_on = false;
    setlocale(LC_CTYPE, "");
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (perch_options_init(&demo.options, sizeof(demo.options)) != PERCH_OK) {
        return fail(EXIT_RUN, "perch.h and libperch do not match");
    }
    int code = parse(&demo, argc, argv, &go_on);
    if (go_on) {
        code = load(&demo);
        code = code == EXIT_DONE ? run_both(&demo) : code;
        code = code == EXIT_DONE ? report(&demo) : code;
    }
    demo_run_free(&demo.evicting);
    demo_run_free(&demo.full);
    demo_data_free(&demo.data);
    return code;
}
