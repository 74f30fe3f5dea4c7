/*
 * perch score: the log-likelihood of texts under the model, JSON lines in, JSON lines out.
 */
#include "args.h"
#include "commands.h"
#include "jobs.h"

#include <math.h>

static void prepare(perch_request *request) {
    request->max_tokens = 0;
    request->flags |= PERCH_REQUEST_PROMPT_LOGPROBS | PERCH_REQUEST_NO_TEXT;
}

/* The first token (BOS, where there is one) has nothing before it and is not scored. */
static perch_status take(struct job *job, const perch_event *event, perch_error *err) {
    if (event->type != PERCH_EVENT_DONE || event->finish == PERCH_FINISH_ERROR) {
        return PERCH_OK;
    }
    if (event->finish == PERCH_FINISH_CANCELLED || event->finish == PERCH_FINISH_TIMEOUT) {
        return tool_error(err, PERCH_E_SHUTDOWN, "%s", perch_finish_name(event->finish));
    }
    for (size_t i = 1; i < event->n_prompt_logprobs; i++) {
        if (isnan(event->prompt_logprobs[i])) {
            return tool_error(err, PERCH_E_DEVICE, "token %zu has no probability", i);
        }
        job->nll -= (double)event->prompt_logprobs[i];
        job->n_scored++;
    }
    return PERCH_OK;
}

static perch_status result(const struct job *job, json_t *line) {
    /* JSON has no infinity: a text that can't be is null. */
    json_t *nll = isfinite(job->nll) ? json_real(job->nll) : json_null();
    bool failed = json_object_set_new(line, "n_tokens", json_integer((json_int_t)job->n_scored)) != 0;
    failed = json_object_set_new(line, "nll", nll) != 0 || failed;
    return failed ? PERCH_E_NOMEM : PERCH_OK;
}

int cmd_score(int argc, char **argv) {
    static const struct job_kind kind = {
        .text_name = "text",
        .prepare = prepare,
        .take = take,
        .result = result,
    };
    const struct command_args args = {
        .usage = "--model DIR [FLAGS] [section.key=value]... < IN.jsonl > OUT.jsonl",
        .summary = "Scores one text a line, {\"text\"} or {\"tokens\"} (and an \"id\", which comes back), and prints "
                   "{\"n_tokens\",\n"
                   "\"nll\"} in input order: the summed negative log-likelihood in nats of all tokens after the first. "
                   "A text\n"
                   "is encoded as a prompt is, BOS first; tokens are taken as they are. A wrong line gives "
                   "{\"error\"}, and the\n"
                   "exit code is 1.",
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
        code = code != EXIT_DONE ? code : jobs_run(&tool, &kind);
        int stats_code = tool.engine != NULL ? tool_print_stats(&tool) : EXIT_DONE;
        code = code != EXIT_DONE ? code : stats_code;
    }
    tool_end(&tool);
    return code;
}
