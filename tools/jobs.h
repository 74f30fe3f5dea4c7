/*
 * jobs: JSON lines on stdin, each a request; JSON lines on stdout, in the same order.
 *
 * Lines are read as they come and submitted at once, until as many are held as the engine's queue has room for. A line
 * that is wrong gets a line that says so, and the others go on. Lines of one session are turns of one sequence: each is
 * submitted when the one before it is done; everything else runs side by side.
 */
#ifndef PERCH_TOOLS_JOBS_H
#define PERCH_TOOLS_JOBS_H

#include "completion.h"
#include "request_spec.h"
#include "tool.h"

struct job_session {
    perch_sequence_id sequence; /* 0 = not yet open */
    bool busy;
    struct job *first, *last; /* turns that wait for the one before them */
};

struct job {
    size_t line;
    uint64_t number; /* of the job: its place in the output */
    json_t *input;   /* the line; what follows may point into it */
    struct request_spec spec;
    const json_t *text;     /* a string to be encoded, or NULL */
    const json_t *messages; /* a chat to be rendered and encoded, or NULL */
    const char *format;     /* of the messages; NULL = the command's */
    bool has_tokens;
    struct tokens tokens;
    struct job_session *session; /* NULL = a sequence of its own */
    bool has_hints;
    perch_hints hints; /* of its sequence, from now on */
    struct job *next;  /* in the list that it waits in */
    perch_sequence_id sequence;
    perch_request_id request;
    bool in_flight;
    bool finished;
    perch_error error;              /* finished with it, unless PERCH_OK */
    struct completion *completions; /* [n_completions] */
    size_t n_completions, n_done;
    double nll;
    size_t n_scored;
};

/* What a command makes of a line. */
struct job_kind {
    bool has_sessions;
    bool has_messages;
    bool has_spec;         /* every field of a request may be given, else only "special" */
    const char *format;    /* of messages that don't name theirs; NULL = the model's own */
    const char *text_name; /* "prompt", "text" */
    /* Completes a request that has everything a line can say; NULL = nothing to add. */
    void (*prepare)(perch_request *request);
    /* Takes an event. */
    perch_status (*take)(struct job *job, const perch_event *event, perch_error *err);
    /* Adds the results to {"id": …}; E_NOMEM. */
    perch_status (*result)(const struct job *job, json_t *line);
};

/* Runs until stdin ends. EXIT_RUN if any line had an error. The engine is open. */
int jobs_run(struct tool *tool, const struct job_kind *kind);

#endif
