/* batch: a step's plan as a packed batch for the model, sampling of its rows, and commit of what came out. */
#include "engine/impl.h"

#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

/* -------------------------------------------------------------------- build -- */

void batch_build(perch_engine *e, const sched_plan *plan, kernels_batch *batch) {
    uint32_t at = 0, n_logits = 0;
    for (uint32_t r = 0; r < plan->n_rows; r++) {
        const sched_row *row = &plan->rows[r];
        const completion *c = (const completion *)row->item;
        memcpy(e->batch_tokens + at, c->seq->tokens + row->first_position, row->n_tokens * sizeof *e->batch_tokens);
        for (uint32_t i = 0; i < row->n_tokens; i++) {
            e->batch_positions[at + i] = row->first_position + i;
            e->batch_token_row[at + i] = r;
        }
        for (uint32_t i = row->n_tokens - row->n_logits; i < row->n_tokens; i++) {
            e->logit_rows[n_logits++] = at + i;
        }
        e->batch_rows[r] = (kernels_row){
            .kv = {.base = e->backend->kv_slot_base(e->device, cache_entry_slot(row->item->entry)), .blocks = NULL},
            .first_token = at,
            .n_tokens = row->n_tokens,
            .first_position = row->first_position};
        at += row->n_tokens;
    }
    *batch = (kernels_batch){.n_tokens = at,
                             .n_rows = plan->n_rows,
                             .tokens = e->batch_tokens,
                             .positions = e->batch_positions,
                             .token_row = e->batch_token_row,
                             .rows = e->batch_rows};
}

/* ------------------------------------------------------------------- sample -- */

/* Whether the row's last token is the sequence's last, behind which a token is to be chosen. */
static bool wants_sample(const sched_row *row) {
    const completion *c = (const completion *)row->item;
    return c->req->max_tokens > 0 && row->first_position + row->n_tokens == row->item->n_tokens;
}

static void prompt_logprobs(const perch_engine *e, completion *c, const sched_row *row, const float *logits) {
    uint32_t first = row->first_position + row->n_tokens - row->n_logits;
    for (uint32_t i = 0; i < row->n_logits; i++) {
        uint32_t next = first + i + 1; /* the token that these logits predict */
        if (next >= c->n_turn_start && next < c->n_prompt) {
            c->prompt_logprobs[next - c->n_turn_start] =
                sampler_logprob(logits + (size_t)i * e->config.vocab_size, e->config.vocab_size, c->seq->tokens[next]);
        }
    }
}

static perch_status sample_row(perch_engine *e, completion *c, const float *logits, sampler_output *out) {
    perch_error err;
    const request *r = c->req;
    sampler_input in = {.logits = logits,
                        .sampling = r->sampling,
                        .tokens = c->seq->tokens,
                        .n_tokens = c->seq->n_tokens,
                        .n_prompt = c->n_prompt,
                        .completion = c->index,
                        .suppressed = r->stop_ids,
                        .n_suppressed = c->n_generated < r->min_tokens ? r->n_stop_ids : 0,
                        .want_logprob = c->logprobs != NULL};
    perch_status status = sampler_sample(e->sampler, &in, out, &err);
    if (status) {
        snprintf(c->message, sizeof c->message, "%.*s", (int)sizeof c->message - 1, err.message);
    }
    return status;
}

void batch_sample(perch_engine *e, const sched_plan *plan) {
    const float *logits = e->logits;
    size_t vocab = e->config.vocab_size;
    for (uint32_t r = 0; r < plan->n_rows; r++) {
        const sched_row *row = &plan->rows[r];
        completion *c = (completion *)row->item;
        if (e->tap && row->n_logits) {
            e->tap(e->tap_user, c->seq->tokens, row->first_position + row->n_tokens - row->n_logits, row->n_logits,
                   logits);
        }
        if (c->prompt_logprobs) {
            prompt_logprobs(e, c, row, logits);
        }
        if (wants_sample(row)) {
            e->sample_status[r] = sample_row(e, c, logits + (row->n_logits - 1) * vocab, &e->samples[r]);
        }
        logits += row->n_logits * vocab;
    }
}

/* ------------------------------------------------------------------- commit -- */

/* Puts the new token into the sequence and the output. There is room: submit saw to it. */
static void append_token(completion *c, const sampler_output *sample) {
    sequence *s = c->seq;
    uint32_t n_top = c->req->sampling->n_logprobs;
    assert(s->n_tokens < s->cap && c->n_generated < c->req->max_tokens);
    s->tokens[s->n_tokens++] = sample->token;
    c->tokens[c->n_generated] = sample->token;
    if (c->logprobs) {
        c->logprobs[c->n_generated] = sample->logprob;
    }
    for (uint32_t i = 0; c->top && i < n_top; i++) {
        c->top[(size_t)c->n_generated * n_top + i] =
            i < sample->n_top ? sample->top[i] : (perch_logprob){.token = -1, .logprob = -INFINITY};
    }
    c->n_generated++;
    c->item.n_tokens = s->n_tokens;
    c->item.logits_from = s->n_tokens - 1;
}

/* The text that the token adds goes past the stop strings. True: one is complete. */
static perch_status match_stop_strings(completion *c, bool *matched) {
    const char *text;
    size_t n_bytes;
    *matched = false;
    perch_status status = stream_token(c->stop_stream, c->tokens[c->n_generated - 1], &text, &n_bytes, NULL);
    if (status) {
        return status;
    }
    if (c->n_generated <= c->req->min_tokens) {
        c->stop_base += n_bytes;
        c->safe_bytes = c->stop_base;
        return PERCH_OK;
    }
    *matched = stop_matcher_push(c->stops, text, n_bytes);
    c->safe_bytes = c->stop_base + stop_matcher_safe(c->stops);
    return PERCH_OK;
}

/* PERCH_FINISH_NONE while the completion goes on. */
static perch_finish ends_with(completion *c, perch_status *status) {
    const request *r = c->req;
    int32_t token = c->tokens[c->n_generated - 1];
    for (size_t i = 0; i < r->n_stop_ids; i++) {
        if (r->stop_ids[i] == token) {
            return i < r->n_eos ? PERCH_FINISH_EOS : PERCH_FINISH_STOP_TOKEN;
        }
    }
    if (c->stops) {
        bool matched;
        *status = match_stop_strings(c, &matched);
        if (*status || matched) {
            return *status ? PERCH_FINISH_ERROR : PERCH_FINISH_STOP_STRING;
        }
    }
    return c->n_generated == r->max_tokens ? PERCH_FINISH_LENGTH : PERCH_FINISH_NONE;
}

static void commit_sample(perch_engine *e, completion *c, const sampler_output *sample) {
    perch_status status = PERCH_OK;
    if (c->n_generated == 0) {
        c->first_token_us = time_us();
    }
    append_token(c, sample);
    e->stats.decode_tokens++;
    perch_finish finish = ends_with(c, &status);
    if (status) {
        completion_fail(e, c, status, "the text that stop strings are looked for in");
    } else if (finish) {
        completion_finish(e, c, finish);
    } else {
        outbox_push(e, c);
    }
}

static void count_row(perch_engine *e, const completion *c, const sched_row *row) {
    uint32_t end = row->first_position + row->n_tokens;
    uint32_t before = c->seq->n_computed < end ? c->seq->n_computed : end;
    before = before < c->recomputed_from ? before : c->recomputed_from;
    if (before > row->first_position) {
        e->stats.reprefill_tokens += before - row->first_position;
    }
    bool decode = row->n_tokens == 1 && row->first_position >= c->n_prompt && before <= row->first_position;
    e->stats.prefill_tokens += decode ? 0 : row->n_tokens;
}

void batch_commit(perch_engine *e, const sched_plan *plan) {
    sched_commit(&e->sched);
    for (uint32_t r = 0; r < plan->n_rows; r++) {
        const sched_row *row = &plan->rows[r];
        completion *c = (completion *)row->item;
        uint32_t end = row->first_position + row->n_tokens;
        bool sampled = wants_sample(row);
        count_row(e, c, row);
        if (end > c->seq->n_computed) {
            c->seq->n_computed = end;
        }
        if (c->item.logits_from < end && end < c->n_prompt) {
            c->item.logits_from = end; /* these prompt log-probabilities are done, also if it is preempted */
        }
        if (end == c->n_prompt && c->req->n_completions > 1 && c->index == 0 && !c->forks_started) {
            completion_start_forks(e, c->req);
        }
        if (sampled) {
            if (e->sample_status[r]) {
                completion_fail(e, c, e->sample_status[r], c->message);
            } else {
                commit_sample(e, c, &e->samples[r]);
            }
        } else if (c->req->max_tokens == 0 && end == c->item.n_tokens) {
            completion_finish(e, c, PERCH_FINISH_LENGTH);
        }
    }
}
