/*
 * completion: what the events of one completion add up to.
 */
#include "completion.h"

#include "json_out.h"
#include "tool.h"

#include <math.h>

void completion_free(struct completion *completion) {
    tokens_free(&completion->tokens);
    text_free(&completion->text);
    text_free(&completion->error);
    json_decref(completion->logprobs);
    *completion = (struct completion){0};
}

/* JSON has no infinity: a token that could not be drawn has null. */
static json_t *json_logprob(float logprob) { return isfinite(logprob) ? json_real((double)logprob) : json_null(); }

static json_t *token_logprobs(const perch_event *event, size_t i) {
    json_t *token =
        json_pack("{s:i, s:o}", "token", (int)event->tokens[i], "logprob", json_logprob(event->logprobs[i]));
    if (token == NULL || event->n_top == 0) {
        return token;
    }
    json_t *top = json_array();
    bool failed = json_object_set_new(token, "top", top) != 0;
    for (uint32_t k = 0; !failed && k < event->n_top; k++) {
        const perch_logprob *entry = &event->top_logprobs[i * event->n_top + k];
        failed = json_array_append_new(top, json_pack("{s:i, s:o}", "token", (int)entry->token, "logprob",
                                                      json_logprob(entry->logprob))) != 0;
    }
    if (failed) {
        json_decref(token);
        return NULL;
    }
    return token;
}

static perch_status add_logprobs(struct completion *completion, const perch_event *event, perch_error *err) {
    if (completion->logprobs == NULL && (completion->logprobs = json_array()) == NULL) {
        return tool_nomem(err);
    }
    for (size_t i = 0; i < event->n_tokens; i++) {
        if (json_array_append_new(completion->logprobs, token_logprobs(event, i)) != 0) {
            return tool_nomem(err);
        }
    }
    return PERCH_OK;
}

perch_status completion_add(struct completion *completion, const perch_event *event, perch_error *err) {
    perch_status status = tokens_add(&completion->tokens, event->tokens, event->n_tokens, err);
    if (status == PERCH_OK) {
        status = text_add(&completion->text, event->text, event->text_bytes, err);
    }
    if (status == PERCH_OK && event->logprobs != NULL) {
        status = add_logprobs(completion, event, err);
    }
    if (status == PERCH_OK && event->finish == PERCH_FINISH_ERROR) {
        status = text_addf(&completion->error, err, "%s", tool_event_error(event));
    }
    if (status == PERCH_OK && event->type == PERCH_EVENT_DONE) {
        completion->done = true;
        completion->finish = event->finish;
        completion->prompt_tokens = event->prompt_tokens;
        completion->cached_tokens = event->cached_tokens;
        completion->completion_tokens = event->completion_tokens;
        completion->queue_us = event->queue_us;
        completion->prefill_us = event->prefill_us;
        completion->decode_us = event->decode_us;
    }
    return status;
}

json_t *completion_json(const struct completion *completion) {
    json_t *json = json_pack("{s:o, s:o, s:s}", "tokens", json_tokens(completion->tokens.ids, completion->tokens.n),
                             "text", json_text(completion->text.data, completion->text.n_bytes), "finish_reason",
                             perch_finish_name(completion->finish));
    if (json != NULL && completion->logprobs != NULL && json_object_set(json, "logprobs", completion->logprobs) != 0) {
        json_decref(json);
        return NULL;
    }
    return json;
}

json_t *completion_usage(const struct completion *completions, size_t n) {
    uint64_t n_generated = 0;
    for (size_t i = 0; i < n; i++) {
        n_generated += completions[i].completion_tokens;
    }
    return json_pack("{s:I, s:I, s:I}", "prompt_tokens", (json_int_t)completions[0].prompt_tokens, "cached_tokens",
                     (json_int_t)completions[0].cached_tokens, "completion_tokens", (json_int_t)n_generated);
}
