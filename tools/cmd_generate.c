/*
 * perch generate: continues one prompt and streams the completion, and nothing else, to stdout.
 */
#include "args.h"
#include "commands.h"
#include "completion.h"
#include "interrupt.h"
#include "json_out.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct generate {
    struct tool tool;
    struct request_spec spec;
    const char *prompt;
    const char *prompt_file;
    struct text text; /* of the prompt */
    struct tokens tokens;
    perch_event event;
    perch_sequence_id sequence; /* 0 = none is open */
    perch_request_id request;
    struct completion *completions;
    size_t n_completions;
    size_t n_done;
    bool cancelled;
    bool ends_line; /* what was streamed ends with a newline */
};

/* Before the model is loaded, which takes longer than to see that there is no prompt. */
static int read_prompt(struct generate *run) {
    struct tool *tool = &run->tool;
    perch_error err = {.status = PERCH_OK};
    if ((run->prompt == NULL) == (run->prompt_file == NULL)) {
        return tool_fail(tool, EXIT_USAGE, "exactly one of --prompt and --prompt-file is needed");
    }
    perch_status status = PERCH_OK;
    if (run->prompt != NULL) {
        status = text_add(&run->text, run->prompt, strlen(run->prompt), &err);
    } else if (strcmp(run->prompt_file, "-") == 0) {
        status = text_read(&run->text, stdin, "stdin", &err);
    } else {
        FILE *file = fopen(run->prompt_file, "rb");
        if (file == NULL) {
            return tool_fail(tool, EXIT_USAGE, "cannot open %s: %s", run->prompt_file, strerror(errno));
        }
        status = text_read(&run->text, file, run->prompt_file, &err);
        fclose(file);
    }
    return status == PERCH_OK ? EXIT_DONE : tool_fail_status(tool, &err);
}

static perch_status submit(struct generate *run, perch_error *err) {
    struct tool *tool = &run->tool;
    perch_request request;
    perch_status status = perch_request_init(tool->engine, &request, sizeof(request));
    if (status != PERCH_OK) {
        return tool_error(err, status, "perch.h and libperch do not match");
    }
    perch_plan plan = {.struct_size = sizeof(plan)};
    status = perch_engine_plan(tool->engine, &plan, err);
    if (status != PERCH_OK) {
        return status;
    }
    uint32_t flags = PERCH_ENCODE_BOS | (run->spec.special ? PERCH_ENCODE_SPECIAL : 0u);
    status = tokens_encode(&run->tokens, tool->tokenizer, run->text.data, run->text.n_bytes, flags, err);
    status = status != PERCH_OK ? status : perch_sequence_open(tool->engine, &run->sequence, err);
    if (status != PERCH_OK) {
        return status;
    }
    spec_apply(&run->spec, &request);
    request.sequence = run->sequence;
    request.tokens = run->tokens.ids;
    request.n_tokens = run->tokens.n;
    request.max_tokens = spec_max_tokens(&run->spec, plan.session_len, 0, run->tokens.n);
    status = spec_check_length("prompt", plan.session_len, 0, run->tokens.n, request.max_tokens, err);
    status = status != PERCH_OK ? status : perch_submit(tool->engine, &request, &run->request, err);
    if (status != PERCH_OK) {
        return status;
    }
    if (request.n_completions > 1 && request.sampling.temperature <= 0.0) {
        fprintf(stderr, "perch generate: note: at temperature 0 all %u completions are equal\n", request.n_completions);
    }
    run->n_completions = request.n_completions;
    run->completions = calloc(run->n_completions, sizeof(*run->completions));
    return run->completions != NULL ? PERCH_OK : tool_nomem(err);
}

/* One completion is streamed; several are kept and printed one after another. */
static int take_event(struct generate *run) {
    const perch_event *event = &run->event;
    struct tool *tool = &run->tool;
    perch_error err = {.status = PERCH_OK};
    if (event->completion >= run->n_completions) {
        return tool_fail(tool, EXIT_RUN, "an event of completion %u, which was not asked for", event->completion);
    }
    if (completion_add(&run->completions[event->completion], event, &err) != PERCH_OK) {
        return tool_fail_status(tool, &err);
    }
    run->n_done += event->type == PERCH_EVENT_DONE ? 1 : 0;
    if (tool->json || run->n_completions > 1 || event->text_bytes == 0) {
        return EXIT_DONE;
    }
    run->ends_line = event->text[event->text_bytes - 1] == '\n';
    return tool_write(tool, event->text, event->text_bytes, true);
}

static int collect(struct generate *run) {
    struct tool *tool = &run->tool;
    perch_error err = {.status = PERCH_OK};
    int code = EXIT_DONE;
    while (code == EXIT_DONE && run->n_done < run->n_completions) {
        interrupt_wait(tool->engine, -1, -1);
        if (interrupt_came() && !run->cancelled) {
            run->cancelled = true;
            interrupt_clear();
            /* E_NOT_FOUND: it ended by itself, and its last event is on its way. */
            perch_cancel(tool->engine, run->request, NULL);
        }
        perch_status status = perch_next(tool->engine, &run->event, 0, &err);
        if (status == PERCH_OK) {
            code = take_event(run);
        } else if (status != PERCH_E_TIMEOUT) {
            code = tool_fail_status(tool, &err);
        }
    }
    return code;
}

static json_t *result_json(const struct generate *run) {
    const struct completion *first = &run->completions[0];
    json_t *completions = json_array();
    for (size_t i = 0; completions != NULL && i < run->n_completions; i++) {
        if (json_array_append_new(completions, completion_json(&run->completions[i])) != 0) {
            json_decref(completions);
            completions = NULL;
        }
    }
    return json_pack("{s:o, s:o, s:o, s:{s:I, s:I, s:I}}", "prompt_tokens", json_tokens(run->tokens.ids, run->tokens.n),
                     "completions", completions, "usage", completion_usage(run->completions, run->n_completions),
                     "time", "queue_us", (json_int_t)first->queue_us, "prefill_us", (json_int_t)first->prefill_us,
                     "decode_us", (json_int_t)first->decode_us);
}

static int print_several(const struct generate *run) {
    int code = EXIT_DONE;
    for (size_t i = 0; code == EXIT_DONE && i < run->n_completions; i++) {
        const struct completion *completion = &run->completions[i];
        char head[64];
        int n = snprintf(head, sizeof(head), "--- %zu of %zu (%s)\n", i + 1, run->n_completions,
                         perch_finish_name(completion->finish));
        code = tool_write(&run->tool, head, (size_t)n, false);
        if (code == EXIT_DONE && completion->text.n_bytes > 0) {
            code = tool_write(&run->tool, completion->text.data, completion->text.n_bytes, false);
        }
        code = code == EXIT_DONE ? tool_write(&run->tool, "\n", 1, true) : code;
    }
    return code;
}

static int print_results(struct generate *run) {
    int code = EXIT_DONE;
    if (run->tool.json) {
        code = tool_write_json(&run->tool, result_json(run), false);
    } else if (run->n_completions > 1) {
        code = print_several(run);
    } else if (isatty(STDOUT_FILENO) && !run->ends_line) {
        code = tool_write(&run->tool, "\n", 1, true);
    }
    for (size_t i = 0; code == EXIT_DONE && i < run->n_completions; i++) {
        if (run->completions[i].finish == PERCH_FINISH_ERROR) {
            code = tool_fail(&run->tool, EXIT_RUN, "%s", run->completions[i].error.data);
        }
    }
    return code;
}

static int generate(struct generate *run) {
    struct tool *tool = &run->tool;
    perch_error err = {.status = PERCH_OK};
    if (run->spec.logprobs != SPEC_UNSET && !tool->json) {
        return tool_fail(tool, EXIT_USAGE, "--logprobs needs --json");
    }
    int code = read_prompt(run);
    code = code != EXIT_DONE ? code : tool_open_engine_with_text(tool);
    if (code != EXIT_DONE) {
        return code;
    }
    if (perch_event_init(&run->event, sizeof(run->event)) != PERCH_OK || interrupt_install(false, &err) != PERCH_OK ||
        submit(run, &err) != PERCH_OK) {
        return tool_fail_status(tool, &err);
    }
    code = collect(run);
    code = code != EXIT_DONE ? code : print_results(run);
    code = code != EXIT_DONE ? code : tool_print_stats(tool);
    return code == EXIT_DONE && run->cancelled ? EXIT_INTERRUPTED : code;
}

int cmd_generate(int argc, char **argv) {
    struct generate run = {0};
    perch_error err = {.status = PERCH_OK};
    int code = EXIT_DONE;
    spec_init(&run.spec);
    if (tool_init(&run.tool, argv[0], &err) != PERCH_OK) {
        return tool_fail_status(&run.tool, &err);
    }
    const struct flag flags[] = {
        {"prompt", FLAG_TEXT, &run.prompt, "TEXT", "what to continue"},
        {"prompt-file", FLAG_TEXT, &run.prompt_file, "FILE", "the same from a file (- = stdin)"},
    };
    const struct command_args args = {
        .usage = "--model DIR --prompt TEXT [FLAGS] [section.key=value]...",
        .summary =
            "Continues a prompt. The completion alone is streamed to stdout, byte by byte as it is: special tokens "
            "are\n"
            "not printed, and a last newline is added only on a terminal. Sampling is greedy unless a flag, the\n"
            "[sampling] section or the model's generation_config.json says otherwise. Ctrl-C ends it early.",
        .flags = flags,
        .n_flags = sizeof(flags) / sizeof(flags[0]),
        .spec = &run.spec,
        .runs_engine = true,
    };
    if (args_parse(&run.tool, argc, argv, &args, &code)) {
        code = generate(&run);
    }
    for (size_t i = 0; i < run.n_completions && run.completions != NULL; i++) {
        completion_free(&run.completions[i]);
    }
    free(run.completions);
    if (run.sequence != 0) {
        perch_sequence_close(run.tool.engine, run.sequence, NULL); /* else it would stay in a [store] */
    }
    perch_event_clear(&run.event);
    tokens_free(&run.tokens);
    text_free(&run.text);
    spec_free(&run.spec);
    tool_end(&run.tool);
    return code;
}
