/*
 * job_line: a line of JSON to a job, and a finished job to a line.
 */
#ifndef PERCH_TOOLS_JOB_LINE_H
#define PERCH_TOOLS_JOB_LINE_H

#include "jobs.h"

/* The sessions by their names. {0} is empty. */
struct job_sessions {
    json_t *index; /* name → place in items */
    struct job_session **items;
    size_t n;
    size_t cap;
};

void job_sessions_free(struct job_sessions *sessions);

/* Reads line[n_bytes] into a fresh job. The message says what is wrong, without the line's number. */
perch_status job_read(struct job *job, const struct job_kind *kind, struct job_sessions *sessions, const char *line,
                      size_t n_bytes, perch_error *err);

/*
 * Adds the text of job->messages to chat, in the job's format or else in `format` (NULL = the model's own); first_turn:
 * they open the conversation.
 */
perch_status job_render(const struct job *job, const char *format, const perch_tokenizer *tokenizer, bool first_turn,
                        struct text *chat, perch_error *err);

/* The output of a finished job, a new reference; NULL: out of memory. */
json_t *job_line(const struct job *job, const struct job_kind *kind);

#endif
