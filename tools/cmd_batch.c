/*
 * perch batch: many requests at once, JSON lines in, JSON lines out.
 */
#include "args.h"
#include "commands.h"
#include "jobs.h"

static perch_status take(struct job *job, const perch_event *event, perch_error *err) {
    return completion_add(&job->completions[event->completion], event, err);
}

/* The first completion's results stand in the line itself; where there are more, "completions" has all. */
static perch_status result(const struct job *job, json_t *line) {
    json_t *first = completion_json(&job->completions[0]);
    bool failed = first == NULL || json_object_update(line, first) != 0;
    json_decref(first);
    if (!failed && job->n_completions > 1) {
        json_t *all = json_array();
        for (size_t i = 0; all != NULL && i < job->n_completions; i++) {
            failed = failed || json_array_append_new(all, completion_json(&job->completions[i])) != 0;
        }
        failed = json_object_set_new(line, "completions", all) != 0 || failed;
    }
    failed = failed || json_object_set_new(line, "usage", completion_usage(job->completions, job->n_completions)) != 0;
    return failed ? PERCH_E_NOMEM : PERCH_OK;
}

/* A format that isn't known is better found before the first line than at each. */
static int check_format(const struct tool *tool, const char *format) {
    const perch_chat_message message = {"user", ""};
    struct text text = {0};
    perch_error err = {.status = PERCH_OK};
    if (format == NULL || tool->tokenizer == NULL) {
        return EXIT_DONE;
    }
    perch_status status = text_chat(&text, tool->tokenizer, format, &message, 1, 1, &err);
    text_free(&text);
    return status == PERCH_OK ? EXIT_DONE : tool_fail_status(tool, &err);
}

int cmd_batch(int argc, char **argv) {
    struct job_kind kind = {
        .has_sessions = true,
        .has_messages = true,
        .has_spec = true,
        .text_name = "prompt",
        .take = take,
        .result = result,
    };
    const struct flag flags[] = {
        {"format", FLAG_TEXT, &kind.format, "NAME",
         "of messages: chatml, llama2, llama3, mistral, plain; default: the model's own"},
    };
    const struct command_args args = {
        .usage = "--model DIR [FLAGS] [section.key=value]... < IN.jsonl > OUT.jsonl",
        .summary = "Runs one request a line: {\"id\", \"prompt\" or \"tokens\" or \"messages\", \"session\"?, "
                   "\"max_tokens\"?,\n"
                   "\"temperature\"?, ...}, with every parameter that perch generate has as a flag, '_' for '-'. "
                   "Prints {\"id\",\n"
                   "\"tokens\", \"text\", \"finish_reason\", \"usage\"} in input order. Lines with the same session "
                   "are turns of one\n"
                   "conversation, each appended to what is there. A wrong line gives {\"id\", \"error\"}, and the exit "
                   "code is 1.",
        .flags = flags,
        .n_flags = sizeof(flags) / sizeof(flags[0]),
        .runs_engine = true,
    };
    struct tool tool;
    perch_error err = {.status = PERCH_OK};
    int code = EXIT_DONE;
    if (tool_init(&tool, argv[0], &err) != PERCH_OK) {
        return tool_fail_status(&tool, &err);
    }
    if (args_parse(&tool, argc, argv, &args, &code)) {
        code = tool_open_engine(&tool);
        code = code != EXIT_DONE ? code : check_format(&tool, kind.format);
        code = code != EXIT_DONE ? code : jobs_run(&tool, &kind);
        int stats_code = tool.engine != NULL ? tool_print_stats(&tool) : EXIT_DONE;
        code = code != EXIT_DONE ? code : stats_code;
    }
    tool_end(&tool);
    return code;
}
