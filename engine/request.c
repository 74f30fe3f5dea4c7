/* request: turns from submit to their last event. Checked, copied and given all their memory here, by the host's thread. */
#include "engine/impl.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define ALL_FLAGS                                                                                                      \
    (PERCH_REQUEST_IGNORE_EOS | PERCH_REQUEST_LOGPROBS | PERCH_REQUEST_PROMPT_LOGPROBS | PERCH_REQUEST_NO_TEXT)
#define MAX_STOP_TOKENS 1024u
#define MAX_STOP_STRINGS 64u
#define MAX_COMPLETIONS 256u

perch_status perch_request_init(const perch_engine *e, perch_request *q, size_t struct_size) {
    if (!e || !q || struct_size != sizeof *q) {
        return PERCH_E_INVALID;
    }
    memset(q, 0, sizeof *q);
    q->struct_size = sizeof *q;
    q->max_tokens = 16;
    q->n_completions = 1;
    q->sampling = e->default_sampling;
    return PERCH_OK;
}

/* ------------------------------------------------------------------- checks -- */

perch_status check_tokens(const perch_engine *e, const int32_t *tokens, size_t n, perch_error *err) {
    for (size_t i = 0; i < n; i++) {
        if (tokens[i] < 0 || (uint32_t)tokens[i] >= e->config.vocab_size) {
            return err_set(err, PERCH_E_INVALID, "tokens[%zu]: %d is not in 0..%u", i, tokens[i],
                           e->config.vocab_size - 1);
        }
    }
    return PERCH_OK;
}

static perch_status check_array(const void *array, size_t n, size_t most, const char *name, perch_error *err) {
    if (n > most) {
        return err_set(err, PERCH_E_INVALID, "n_%s: %zu is more than %zu", name, n, most);
    }
    return n && !array ? err_set(err, PERCH_E_INVALID, "%s: NULL, but n_%s is %zu", name, name, n) : PERCH_OK;
}

/* U+FFFD stands for bytes that are no text, so a stop string that has one could never be told from them. */
static bool has_replacement_character(const char *text) { return strstr(text, "\xEF\xBF\xBD") != NULL; }

static perch_status check_stops(const perch_engine *e, const perch_request *q, perch_error *err) {
    for (size_t i = 0; i < q->n_stop_tokens; i++) {
        if (q->stop_tokens[i] < 0 || (uint32_t)q->stop_tokens[i] >= e->config.vocab_size) {
            return err_set(err, PERCH_E_INVALID, "stop_tokens[%zu]: %d is not in 0..%u", i, q->stop_tokens[i],
                           e->config.vocab_size - 1);
        }
    }
    for (size_t i = 0; i < q->n_stop_strings; i++) {
        if (!q->stop_strings[i] || has_replacement_character(q->stop_strings[i])) {
            return err_set(err, PERCH_E_INVALID, "stop_strings[%zu]: NULL, or holds U+FFFD", i);
        }
    }
    return q->n_stop_strings && !e->tokenizer
               ? err_set(err, PERCH_E_INVALID, "stop_strings: the model has no tokenizer")
               : PERCH_OK;
}

static perch_status check_request(const perch_engine *e, const perch_request *q, perch_error *err) {
    perch_status status;
    if ((status = check_array(q->tokens, q->n_tokens, UINT32_MAX, "tokens", err)) ||
        (status = check_array(q->stop_tokens, q->n_stop_tokens, MAX_STOP_TOKENS, "stop_tokens", err)) ||
        (status = check_array(q->stop_strings, q->n_stop_strings, MAX_STOP_STRINGS, "stop_strings", err))) {
        return status;
    }
    if (q->n_tokens > e->session_len) {
        return err_set(err, PERCH_E_TOO_LONG, "n_tokens: %zu is more than session_len = %u", q->n_tokens,
                       e->session_len);
    }
    if (q->n_completions < 1 || q->n_completions > MAX_COMPLETIONS) {
        return err_set(err, PERCH_E_INVALID, "n_completions: %u is not in 1..%u", q->n_completions, MAX_COMPLETIONS);
    }
    if (q->priority < SCHED_MIN_PRIORITY || q->priority > SCHED_MAX_PRIORITY) {
        return err_set(err, PERCH_E_INVALID, "priority: %d is not in %d..%d", q->priority, SCHED_MIN_PRIORITY,
                       SCHED_MAX_PRIORITY);
    }
    if (q->min_tokens > q->max_tokens) {
        return err_set(err, PERCH_E_INVALID, "min_tokens: %u is more than max_tokens = %u", q->min_tokens,
                       q->max_tokens);
    }
    if (q->flags & ~(uint32_t)ALL_FLAGS) {
        return err_set(err, PERCH_E_INVALID, "flags: 0x%x has unknown bits", q->flags);
    }
    if (q->n_completions > 1 && q->max_tokens == 0) {
        return err_set(err, PERCH_E_INVALID, "n_completions: %u of max_tokens = 0", q->n_completions);
    }
    if ((status = sampling_check(&q->sampling, e->config.vocab_size, err)) ||
        (status = check_tokens(e, q->tokens, q->n_tokens, err))) {
        return status;
    }
    return check_stops(e, q, err);
}

/* What needs the sequence: that it is idle, and that everything fits its session. Under the lock. */
static perch_status check_fit(const perch_engine *e, const sequence *s, const perch_request *q, perch_error *err) {
    uint64_t n_prompt = s->n_tokens + (uint64_t)q->n_tokens;
    if (n_prompt == 0) {
        return err_set(err, PERCH_E_INVALID, "tokens: none, and the sequence is empty");
    }
    if (n_prompt + q->max_tokens > e->session_len) {
        return err_set(err, PERCH_E_TOO_LONG,
                       "%u tokens of the sequence + %zu appended + max_tokens = %u are more than session_len = %u",
                       s->n_tokens, q->n_tokens, q->max_tokens, e->session_len);
    }
    return PERCH_OK;
}

/* ------------------------------------------------------------------ creation -- */

static void completion_fini(completion *c) {
    free(c->tokens);
    free(c->logprobs);
    free(c->top);
    free(c->prompt_logprobs);
    perch_tokenizer_stream_destroy(c->stop_stream);
    stop_matcher_destroy(c->stops);
    perch_tokenizer_stream_destroy(c->stream);
    free(c->text);
}

void request_free(perch_engine *e, request *r) {
    for (uint32_t i = 0; r->completions && i < r->n_completions; i++) {
        completion *c = &r->completions[i];
        if (c->seq && (i > 0 || c->seq->closed)) {
            sequence_free(e, c->seq);
        }
        completion_fini(c);
    }
    idtable_remove(&e->requests, r->id);
    free(r->completions);
    free(r->sampling);
    free(r->stop_ids);
    free(r);
}

static perch_status copy_stop_ids(const perch_engine *e, const perch_request *q, request *r, perch_error *err) {
    r->n_eos = q->flags & PERCH_REQUEST_IGNORE_EOS ? 0 : e->config.n_eos;
    r->n_stop_ids = r->n_eos + q->n_stop_tokens;
    r->stop_ids = malloc((r->n_stop_ids + 1) * sizeof *r->stop_ids);
    if (!r->stop_ids) {
        return err_nomem(err, "stop tokens");
    }
    if (r->n_eos) {
        memcpy(r->stop_ids, e->config.eos, r->n_eos * sizeof *r->stop_ids);
    }
    if (q->n_stop_tokens) {
        memcpy(r->stop_ids + r->n_eos, q->stop_tokens, q->n_stop_tokens * sizeof *r->stop_ids);
    }
    return PERCH_OK;
}

static perch_status make_output(const perch_engine *e, const perch_request *q, completion *c, perch_error *err) {
    size_t n = q->max_tokens + (size_t)1;
    c->tokens = malloc(n * sizeof *c->tokens);
    if (!c->tokens) {
        return err_nomem(err, "a completion's tokens");
    }
    if (q->flags & PERCH_REQUEST_LOGPROBS || q->sampling.n_logprobs) {
        c->logprobs = malloc(n * sizeof *c->logprobs);
        c->top = q->sampling.n_logprobs ? malloc(n * q->sampling.n_logprobs * sizeof *c->top) : NULL;
        if (!c->logprobs || (q->sampling.n_logprobs && !c->top)) {
            return err_nomem(err, "a completion's log-probabilities");
        }
    }
    if (q->flags & PERCH_REQUEST_PROMPT_LOGPROBS && c->index == 0) {
        c->prompt_logprobs = malloc((q->n_tokens + 1) * sizeof *c->prompt_logprobs);
        if (!c->prompt_logprobs) {
            return err_nomem(err, "prompt log-probabilities");
        }
        for (size_t i = 0; i <= q->n_tokens; i++) {
            c->prompt_logprobs[i] = NAN;
        }
    }
    perch_status status = PERCH_OK;
    if (e->tokenizer && !(q->flags & PERCH_REQUEST_NO_TEXT)) {
        status = perch_tokenizer_stream_create(e->tokenizer, PERCH_DECODE_CONTINUE, &c->stream, err);
    }
    if (!status && q->n_stop_strings) {
        status = perch_tokenizer_stream_create(e->tokenizer, PERCH_DECODE_CONTINUE, &c->stop_stream, err);
        if (!status) {
            status = stop_matcher_create(q->stop_strings, q->n_stop_strings, &c->stops, err);
        }
    }
    return status;
}

/* The sequence of a further completion: empty until the prompt is computed, with all the memory it will need. */
static perch_status make_fork(perch_engine *e, const sequence *s, completion *c, size_t n_room, perch_error *err) {
    perch_status status = sequence_create(e, cache_entry_namespace(s->entry), n_room, &c->seq, err);
    return status ? status : cache_entry_reserve(e->kv, c->seq->entry, err);
}

/* Everything a request will need, allocated; nothing of the engine but the id tables' room is touched. Under the lock. */
static perch_status request_create(perch_engine *e, const perch_request *q, sequence *s, request **out,
                                   perch_error *err) {
    size_t n_prompt = s->n_tokens + q->n_tokens, n_room = n_prompt + q->max_tokens;
    request *r = calloc(1, sizeof *r);
    perch_status status = r ? PERCH_OK : err_nomem(err, "a request");
    if (status) {
        return status;
    }
    r->user_data = q->user_data;
    r->flags = q->flags;
    r->max_tokens = q->max_tokens;
    r->min_tokens = q->min_tokens;
    r->priority = q->priority;
    r->n_completions = r->n_unfinished = r->n_left = q->n_completions;
    r->sampling = sampling_copy(&q->sampling);
    r->completions = calloc(q->n_completions, sizeof *r->completions);
    if (!r->sampling || !r->completions) {
        status = err_nomem(err, "a request");
    }
    if (!status) {
        status = copy_stop_ids(e, q, r, err);
    }
    for (uint32_t i = 0; !status && i < q->n_completions; i++) {
        completion *c = &r->completions[i];
        c->req = r;
        c->index = i;
        c->n_turn_start = s->n_tokens;
        c->n_prompt = (uint32_t)n_prompt;
        status = make_output(e, q, c, err);
        if (!status && i > 0) {
            status = make_fork(e, s, c, n_room, err);
        }
    }
    if (!status) {
        status = array_reserve((void **)&s->tokens, &s->cap, n_room, sizeof *s->tokens, err);
    }
    if (!status) {
        status = idtable_reserve(&e->requests, 1, err);
    }
    if (!status && q->timeout_ms) {
        status = deadlines_reserve(&e->deadlines, q->n_completions, err);
    }
    if (!status) {
        status = cache_entry_reserve(e->kv, s->entry, err);
    }
    if (status) {
        request_free(e, r);
        return status;
    }
    *out = r;
    return PERCH_OK;
}

/* From here on nothing can fail: the turn's tokens join the sequence and the first completion the queue. */
static void request_enter(perch_engine *e, request *r, sequence *s, const perch_request *q) {
    completion *first = &r->completions[0];
    r->id = idtable_add(&e->requests, r);
    if (q->n_tokens) {
        memcpy(s->tokens + s->n_tokens, q->tokens, q->n_tokens * sizeof *s->tokens);
        s->n_tokens += (uint32_t)q->n_tokens;
    }
    first->seq = s;
    for (uint32_t i = 0; i < r->n_completions; i++) {
        completion *c = &r->completions[i];
        c->seq_id = c->seq->id;
        c->seq->busy = r;
        c->seq->fork_of = i > 0 ? c : NULL;
        c->item.entry = c->seq->entry;
        c->item.priority = r->priority;
        c->item.n_tokens = c->n_prompt;
        c->item.tokens = c->seq->tokens; /* they stay where they are until the request ends */
        c->item.n_known = i > 0 ? 0 : c->n_prompt;
        c->item.logits_from = r->max_tokens ? c->n_prompt - 1 : SCHED_NO_LOGITS;
        if (r->deadline_us) {
            c->due.at_us = r->deadline_us;
            deadlines_add(&e->deadlines, &c->due);
        }
    }
    if (first->prompt_logprobs) {
        first->item.logits_from = first->n_turn_start ? first->n_turn_start - 1 : 0;
    }
    observe_submitted(e, r);
    r->counted = true;
    e->n_queued++;
    e->stats.requests_submitted++;
    sched_add(&e->sched, &first->item);
    pthread_cond_signal(&e->work);
}

/* Everything that can be told of a request while it does not run. Under the lock. */
static perch_status check_submit(perch_engine *e, const perch_request *q, sequence **out, perch_error *err) {
    perch_status dead = e->dead;
    if (dead) {
        err_set(err, dead, "the engine is dead: %s", e->dead_reason.message);
        return dead;
    }
    if (e->stopping) {
        err_set(err, PERCH_E_SHUTDOWN, "the engine is shutting down");
        return PERCH_E_SHUTDOWN;
    }
    perch_status status = sequence_get(e, q->sequence, true, out, err);
    return status ? status : check_fit(e, *out, q, err);
}

/* Until the queue has room, the engine ends, or the time is up. Under the lock. */
static perch_status wait_for_room(perch_engine *e, uint64_t deadline_us, perch_error *err) {
    const struct timespec until = {.tv_sec = (time_t)(deadline_us / 1000000),
                                   .tv_nsec = (long)(deadline_us % 1000000) * 1000};
    if (e->n_queued >= e->options.queue_size && e->options.queue_full == PERCH_QUEUE_REFUSE) {
        return err_set(err, PERCH_E_QUEUE_FULL, "%u requests wait already (queue_size)", e->n_queued);
    }
    e->n_inside++;
    perch_status status = PERCH_OK;
    while (!status && e->n_queued >= e->options.queue_size && !e->stopping && !e->dead) {
        if (!deadline_us) {
            pthread_cond_wait(&e->space, &e->lock);
        } else if (pthread_cond_timedwait(&e->space, &e->lock, &until) == ETIMEDOUT &&
                   e->n_queued >= e->options.queue_size) {
            status = err_set(err, PERCH_E_TIMEOUT, "the queue stayed full (queue_size = %u)", e->options.queue_size);
        }
    }
    engine_leave(e);
    return status;
}

/* Checked before the wait, so that what can never run is refused at once, and after it, since things may have changed. */
static perch_status submit(perch_engine *e, const perch_request *q, uint64_t now_us, perch_request_id *out,
                           perch_error *err) {
    request *r = NULL;
    sequence *s = NULL;
    uint64_t deadline_us = q->timeout_ms ? now_us + (uint64_t)q->timeout_ms * 1000 : 0;
    perch_status status = check_submit(e, q, &s, err);
    if (status) {
        return status;
    }
    status = wait_for_room(e, deadline_us, err);
    if (!status) {
        status = check_submit(e, q, &s, err);
    }
    if (!status) {
        status = request_create(e, q, s, &r, err);
    }
    if (status) {
        pthread_cond_signal(&e->space); /* whoever waits behind may have the place */
        return status;
    }
    r->submitted_us = now_us;
    r->deadline_us = deadline_us;
    request_enter(e, r, s, q);
    *out = r->id;
    return PERCH_OK;
}

perch_status perch_submit(perch_engine *e, const perch_request *q, perch_request_id *out, perch_error *err) {
    perch_request_id id = 0;
    if (!e || !q || q->struct_size != sizeof *q || q->sampling.struct_size != sizeof q->sampling) {
        return err_set(err, PERCH_E_INVALID, "perch_submit: a request from perch_request_init must be given");
    }
    perch_status status = check_request(e, q, err);
    if (!status) {
        uint64_t now_us = engine_now(e);
        pthread_mutex_lock(&e->lock);
        status = submit(e, q, now_us, &id, err);
        pthread_mutex_unlock(&e->lock);
    }
    if (out) {
        *out = id;
    }
    return status;
}
