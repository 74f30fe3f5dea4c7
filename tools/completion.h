/*
 * completion: what the events of one completion add up to.
 */
#ifndef PERCH_TOOLS_COMPLETION_H
#define PERCH_TOOLS_COMPLETION_H

#include "text.h"

#include "perch/perch.h"

#include <jansson.h>
#include <stdbool.h>

struct completion {
    struct tokens tokens;
    struct text text;
    json_t *logprobs; /* an array, or NULL if none came */
    perch_finish finish;
    struct text error; /* finish is PERCH_FINISH_ERROR: what went wrong */
    bool done;
    uint64_t prompt_tokens, cached_tokens, completion_tokens;
    uint64_t queue_us, prefill_us, decode_us;
};

void completion_free(struct completion *completion);

/* Adds what an event brings. */
perch_status completion_add(struct completion *completion, const perch_event *event, perch_error *err);

/* {"tokens", "text", "finish_reason", "logprobs"?}, a new reference; NULL: out of memory. */
json_t *completion_json(const struct completion *completion);

/* {"prompt_tokens", "cached_tokens", "completion_tokens"} of completions[n] of one request. */
json_t *completion_usage(const struct completion *completions, size_t n);

#endif
