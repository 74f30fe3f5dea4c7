/*
 * jobs: the loop of batch and score: lines in, requests, events, lines out.
 */
#include "jobs.h"

#include "interrupt.h"
#include "job_line.h"
#include "lines.h"

#include <stdlib.h>
#include <unistd.h>

#define MAX_WINDOW 65536

struct jobs {
    struct tool *tool;
    const struct job_kind *kind;
    uint32_t session_len;
    struct lines lines;
    struct job **window; /* [n_window]: job i is at i % n_window from reading to writing */
    size_t n_window;
    uint64_t n_read;    /* jobs so far */
    uint64_t n_written; /* of which are done and gone */
    size_t n_in_flight;
    struct job *first_ready, *last_ready; /* to be submitted, in order */
    struct job_sessions sessions;
    perch_event event;
    bool any_error;
    bool interrupted;
};

/* ------------------------------------------------------------ one job -- */

static void job_destroy(struct job *job) {
    if (job == NULL) {
        return;
    }
    for (size_t i = 0; job->completions != NULL && i < job->n_completions; i++) {
        completion_free(&job->completions[i]);
    }
    free(job->completions);
    tokens_free(&job->tokens);
    spec_free(&job->spec);
    json_decref(job->input);
    free(job);
}

static void list_add(struct job **first, struct job **last, struct job *job) {
    job->next = NULL;
    if (*first == NULL) {
        *first = job;
    } else {
        (*last)->next = job;
    }
    *last = job;
}

static struct job *list_take(struct job **first) {
    struct job *job = *first;
    *first = job->next;
    job->next = NULL;
    return job;
}

/* Hands the session on to its next turn; a sequence of the job's own is closed. */
static void job_finish(struct jobs *jobs, struct job *job) {
    job->finished = true;
    if (job->error.status != PERCH_OK) {
        jobs->any_error = true;
    }
    struct job_session *session = job->session;
    if (session == NULL) {
        if (job->sequence != 0) {
            perch_sequence_close(jobs->tool->engine, job->sequence, NULL);
        }
        return;
    }
    session->busy = false;
    if (session->first != NULL) {
        session->busy = true;
        list_add(&jobs->first_ready, &jobs->last_ready, list_take(&session->first));
    }
}

/* ------------------------------------------------------------- submit -- */

static perch_status encode(const struct jobs *jobs, struct job *job, bool first_turn, perch_error *err) {
    if (job->has_tokens) {
        return PERCH_OK;
    }
    const perch_tokenizer *tokenizer = jobs->tool->tokenizer;
    if (tokenizer == NULL) {
        return tool_error(err, PERCH_E_INVALID, "the model has no tokenizer: give tokens");
    }
    uint32_t flags = first_turn ? PERCH_ENCODE_BOS : 0u;
    if (job->messages == NULL) {
        flags |= job->spec.special ? PERCH_ENCODE_SPECIAL : 0u;
        return tokens_encode(&job->tokens, tokenizer, json_string_value(job->text), json_string_length(job->text),
                             flags, err);
    }
    struct text chat = {0};
    perch_status status = job_render(job, jobs->kind->format, tokenizer, first_turn, &chat, err);
    if (status == PERCH_OK) {
        status = tokens_encode(&job->tokens, tokenizer, chat.data, chat.n_bytes, flags | PERCH_ENCODE_SPECIAL, err);
    }
    text_free(&chat);
    return status;
}

/* Finds the job's sequence, opening it if it is the first of its session, and the tokens that it holds. */
static perch_status find_sequence(const struct jobs *jobs, struct job *job, uint64_t *n_before, perch_error *err) {
    perch_engine *engine = jobs->tool->engine;
    *n_before = 0;
    if (job->sequence != 0) {
        return PERCH_OK;
    }
    if (job->session == NULL || job->session->sequence == 0) {
        perch_status status = perch_sequence_open(engine, &job->sequence, err);
        if (status == PERCH_OK && job->session != NULL) {
            job->session->sequence = job->sequence;
        }
        return status;
    }
    job->sequence = job->session->sequence;
    perch_sequence_info info = {.struct_size = sizeof(info)};
    perch_status status = perch_sequence_state(engine, job->sequence, &info, err);
    *n_before = info.n_tokens;
    return status;
}

static perch_status submit(struct jobs *jobs, struct job *job, perch_error *err) {
    perch_engine *engine = jobs->tool->engine;
    perch_request request;
    uint64_t n_before = 0;
    perch_status status = perch_request_init(engine, &request, sizeof(request));
    if (status != PERCH_OK) {
        return tool_error(err, status, "perch.h and libperch do not match");
    }
    status = find_sequence(jobs, job, &n_before, err);
    if (status == PERCH_OK && job->tokens.n == 0) {
        status = encode(jobs, job, n_before == 0, err);
    }
    if (status != PERCH_OK) {
        return status;
    }
    if (job->has_hints && (status = perch_sequence_hint(engine, job->sequence, &job->hints, err)) != PERCH_OK) {
        return status;
    }
    spec_apply(&job->spec, &request);
    request.sequence = job->sequence;
    request.tokens = job->tokens.ids;
    request.n_tokens = job->tokens.n;
    request.max_tokens = spec_max_tokens(&job->spec, jobs->session_len, n_before, job->tokens.n);
    request.user_data = job->number;
    if (jobs->kind->prepare != NULL) {
        jobs->kind->prepare(&request);
    }
    status =
        spec_check_length(jobs->kind->text_name, jobs->session_len, n_before, job->tokens.n, request.max_tokens, err);
    if (status != PERCH_OK) {
        return status;
    }
    if (job->completions == NULL) {
        job->completions = calloc(request.n_completions, sizeof(*job->completions));
        job->n_completions = request.n_completions;
    }
    if (job->completions == NULL) {
        return tool_nomem(err);
    }
    return perch_submit(engine, &request, &job->request, err);
}

/* Submits what is ready, until the queue is full. */
static void submit_ready(struct jobs *jobs) {
    while (jobs->first_ready != NULL) {
        struct job *job = jobs->first_ready;
        perch_error err = {.status = PERCH_OK};
        perch_status status = submit(jobs, job, &err);
        if (status == PERCH_E_QUEUE_FULL && jobs->n_in_flight > 0) {
            return;
        }
        list_take(&jobs->first_ready);
        if (status == PERCH_OK) {
            job->in_flight = true;
            jobs->n_in_flight++;
        } else {
            job->error = err;
            job_finish(jobs, job);
        }
    }
}

/* --------------------------------------------------------- in and out -- */

static bool is_blank(const char *line, size_t n_bytes) {
    size_t i = 0;
    while (i < n_bytes && (line[i] == ' ' || line[i] == '\t' || line[i] == '\r')) {
        i++;
    }
    return i == n_bytes;
}

static perch_status add_line(struct jobs *jobs, const char *line, size_t n_bytes, perch_error *err) {
    if (is_blank(line, n_bytes)) {
        return PERCH_OK;
    }
    struct job *job = calloc(1, sizeof(*job));
    if (job == NULL) {
        return tool_nomem(err);
    }
    spec_init(&job->spec);
    job->line = jobs->lines.n_taken;
    job->number = jobs->n_read++;
    jobs->window[job->number % jobs->n_window] = job;
    perch_status status = job_read(job, jobs->kind, &jobs->sessions, line, n_bytes, &job->error);
    struct job_session *session = job->session;
    if (status != PERCH_OK) {
        job->session = NULL;
        job_finish(jobs, job);
    } else if (session != NULL && session->busy) {
        list_add(&session->first, &session->last, job);
    } else {
        if (session != NULL) {
            session->busy = true;
        }
        list_add(&jobs->first_ready, &jobs->last_ready, job);
    }
    return PERCH_OK;
}

static bool has_room(const struct jobs *jobs) {
    return jobs->n_read - jobs->n_written < jobs->n_window && !jobs->interrupted;
}

static int take_lines(struct jobs *jobs) {
    const char *line = NULL;
    size_t n_bytes = 0;
    perch_error err = {.status = PERCH_OK};
    while (has_room(jobs) && lines_take(&jobs->lines, &line, &n_bytes)) {
        if (add_line(jobs, line, n_bytes, &err) != PERCH_OK) {
            return tool_fail_status(jobs->tool, &err);
        }
    }
    return EXIT_DONE;
}

static int write_done(struct jobs *jobs) {
    int code = EXIT_DONE;
    while (code == EXIT_DONE && jobs->n_written < jobs->n_read) {
        struct job **place = &jobs->window[jobs->n_written % jobs->n_window];
        if (!(*place)->finished) {
            break;
        }
        code = tool_write_json(jobs->tool, job_line(*place, jobs->kind), false);
        job_destroy(*place);
        *place = NULL;
        jobs->n_written++;
    }
    return code;
}

/* ------------------------------------------------------------- events -- */

static void take_event(struct jobs *jobs) {
    const perch_event *event = &jobs->event;
    struct job *job = jobs->window[event->user_data % jobs->n_window];
    perch_error err = {.status = PERCH_OK};
    if (job == NULL || job->number != event->user_data || event->completion >= job->n_completions) {
        return;
    }
    if (jobs->kind->take(job, event, &err) != PERCH_OK && job->error.status == PERCH_OK) {
        job->error = err;
    }
    if (event->type != PERCH_EVENT_DONE) {
        return;
    }
    if (event->finish == PERCH_FINISH_ERROR && job->error.status == PERCH_OK) {
        tool_error(&job->error, event->status, "%s", tool_event_error(event));
    }
    job->n_done++;
    if (job->n_done == job->n_completions) {
        job->in_flight = false;
        jobs->n_in_flight--;
        job_finish(jobs, job);
    }
}

static int take_events(struct jobs *jobs) {
    for (;;) {
        perch_error err = {.status = PERCH_OK};
        perch_status status = perch_next(jobs->tool->engine, &jobs->event, 0, &err);
        if (status == PERCH_E_TIMEOUT) {
            return EXIT_DONE;
        }
        if (status != PERCH_OK) {
            return tool_fail_status(jobs->tool, &err);
        }
        take_event(jobs);
    }
}

/* What runs is cancelled and gives what it has; what waits is an error. */
static void interrupt(struct jobs *jobs) {
    jobs->interrupted = true;
    interrupt_clear();
    for (uint64_t i = jobs->n_written; i < jobs->n_read; i++) {
        struct job *job = jobs->window[i % jobs->n_window];
        if (job->in_flight) {
            perch_cancel(jobs->tool->engine, job->request, NULL);
        }
    }
}

static void drop_ready(struct jobs *jobs) {
    while (jobs->first_ready != NULL) {
        struct job *job = list_take(&jobs->first_ready);
        tool_error(&job->error, PERCH_E_SHUTDOWN, "interrupted");
        job_finish(jobs, job);
    }
}

static int step(struct jobs *jobs) {
    int code = take_lines(jobs);
    if (interrupt_came() && !jobs->interrupted) {
        interrupt(jobs);
    }
    if (jobs->interrupted) {
        drop_ready(jobs);
    }
    submit_ready(jobs);
    return code != EXIT_DONE ? code : write_done(jobs);
}

static int loop(struct jobs *jobs) {
    perch_error err = {.status = PERCH_OK};
    for (;;) {
        int code = step(jobs);
        if (code != EXIT_DONE) {
            return code;
        }
        if (has_room(jobs) && lines_pending(&jobs->lines)) {
            continue; /* what was written made room for what had been read */
        }
        bool wants_lines = has_room(jobs) && !jobs->lines.at_end;
        if (jobs->n_written == jobs->n_read && !wants_lines) {
            return EXIT_DONE;
        }
        if (interrupt_wait(jobs->tool->engine, wants_lines ? jobs->lines.fd : -1, -1) &&
            lines_read(&jobs->lines, &err) != PERCH_OK) {
            return tool_fail_status(jobs->tool, &err);
        }
        code = take_events(jobs);
        if (code != EXIT_DONE) {
            return code;
        }
    }
}

int jobs_run(struct tool *tool, const struct job_kind *kind) {
    struct jobs jobs = {.tool = tool, .kind = kind};
    perch_plan plan = {.struct_size = sizeof(plan)};
    perch_options options;
    perch_error err = {.status = PERCH_OK};
    int code = EXIT_DONE;
    lines_init(&jobs.lines, STDIN_FILENO);
    perch_options_init(&options, sizeof(options));
    if (perch_engine_options(tool->engine, &options, &err) != PERCH_OK ||
        perch_engine_plan(tool->engine, &plan, &err) != PERCH_OK || interrupt_install(false, &err) != PERCH_OK) {
        return tool_fail_status(tool, &err);
    }
    jobs.session_len = plan.session_len;
    jobs.n_window = options.queue_size < 1 ? 1 : options.queue_size > MAX_WINDOW ? MAX_WINDOW : options.queue_size;
    jobs.window = calloc(jobs.n_window, sizeof(struct job *));
    if (jobs.window == NULL || perch_event_init(&jobs.event, sizeof(jobs.event)) != PERCH_OK) {
        code = tool_fail(tool, EXIT_RUN, "out of memory");
        goto end;
    }
    code = loop(&jobs);
    if (code == EXIT_DONE) {
        code = jobs.interrupted ? EXIT_INTERRUPTED : jobs.any_error ? EXIT_RUN : EXIT_DONE;
    }
end:
    for (size_t i = 0; jobs.window != NULL && i < jobs.n_window; i++) {
        job_destroy(jobs.window[i]);
    }
    free(jobs.window);
    for (size_t i = 0; i < jobs.sessions.n; i++) { /* else they would stay in a [store] */
        if (jobs.sessions.items[i]->sequence != 0) {
            perch_sequence_close(tool->engine, jobs.sessions.items[i]->sequence, NULL);
        }
    }
    job_sessions_free(&jobs.sessions);
    lines_free(&jobs.lines);
    perch_event_clear(&jobs.event);
    return code;
}
