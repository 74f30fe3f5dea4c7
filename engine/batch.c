/*
 * batch: a step's plan as a packed batch and a flight, its launch and landing, and commit of what came out. On a device that
 * chooses tokens itself (kernels_async) a row's token may still be *pending* when the row after it is built: it is taken from
 * the flight before then, by the number of its choice.
 */
#include "engine/impl.h"

#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* -------------------------------------------------------------------- build -- */

/* Ids of the row's tokens: those that the sequence has, then the pending one, if the row reaches that far. */
static void build_tokens(perch_engine *e, const sched_row *row, uint32_t at) {
    const completion *c = (const completion *)row->item;
    uint32_t end = row->first_position + row->n_tokens;
    uint32_t n_known = c->seq->n_tokens < end ? c->seq->n_tokens : end;
    assert(row->first_position <= n_known && end <= n_known + (c->n_pending > 0));
    for (uint32_t position = row->first_position; position < end; position++, at++) {
        bool known = position < n_known;
        e->batch_tokens[at] = known ? c->seq->tokens[position] : 0;
        e->batch_token_from[at] = known ? KERNELS_GIVEN : c->last_choice;
    }
}

static kernels_choice choice_of(const completion *c, const sched_row *row, uint32_t logit_row) {
    const request *r = c->req;
    bool suppress = c->n_generated + c->n_pending < r->min_tokens;
    return (kernels_choice){.logit_row = logit_row,
                            .slot = cache_entry_slot(row->item->entry),
                            .completion = c->index,
                            .n_prompt = c->n_prompt,
                            .n_tokens = row->first_position + row->n_tokens,
                            .sampling = r->sampling,
                            .suppressed = r->stop_ids,
                            .n_suppressed = suppress ? (uint32_t)r->n_stop_ids : 0,
                            .want_logprob = c->logprobs != NULL};
}

/* The planned row as one of the flight; n_logits: logits rows of those before it. */
static void build_row(perch_engine *e, const sched_row *row, flight *f, flight_row *out) {
    const kernels_async *async = e->backend->async;
    completion *c = (completion *)row->item;
    out->c = c;
    out->first_position = row->first_position;
    out->n_tokens = row->n_tokens;
    out->n_logits = row->n_logits;
    out->recomputed_from = c->recomputed_from;
    out->is_last = row->first_position + row->n_tokens == row->item->n_tokens;
    out->is_sampled = out->is_last && c->req->max_tokens > 0;
    out->on_device = false;
    out->status = PERCH_OK;
    f->n_logits += row->n_logits;
    if (out->is_sampled && async) {
        kernels_choice choice = choice_of(c, row, f->n_logits - 1);
        out->on_device = async->can_choose(e->device, &choice);
        out->choice = f->n_choices;
        f->choices[f->n_choices] = choice;
        f->n_choices += out->on_device;
    }
    bool reads_prompt = c->prompt_logprobs && row->first_position + row->n_tokens - row->n_logits + 1 < c->n_prompt;
    bool host_reads = (out->is_sampled && !out->on_device) || (reads_prompt && row->n_logits);
    f->host_chose |= host_reads;
    f->needs_logits |= host_reads || (e->tap && row->n_logits);
}

void batch_build(perch_engine *e, const sched_plan *plan, flight *f, kernels_batch *batch) {
    uint32_t at = 0;
    f->host_chose = f->needs_logits = false;
    f->n_rows = plan->n_rows;
    f->n_logits = f->n_choices = 0;
    for (uint32_t r = 0; r < plan->n_rows; r++) {
        const sched_row *row = &plan->rows[r];
        uint32_t slot = cache_entry_slot(row->item->entry), n_logits = f->n_logits;
        build_tokens(e, row, at);
        for (uint32_t i = 0; i < row->n_tokens; i++) {
            e->batch_positions[at + i] = row->first_position + i;
            e->batch_token_row[at + i] = r;
        }
        for (uint32_t i = row->n_tokens - row->n_logits; i < row->n_tokens; i++) {
            e->logit_tokens[n_logits++] = at + i;
        }
        e->batch_rows[r] = (kernels_row){.kv = e->backend->kv_slot(e->device, slot),
                                         .first_token = at,
                                         .n_tokens = row->n_tokens,
                                         .first_position = row->first_position,
                                         .slot = slot};
        build_row(e, row, f, &f->rows[r]);
        at += row->n_tokens;
    }
    *batch = (kernels_batch){.n_tokens = at,
                             .n_rows = plan->n_rows,
                             .n_logits = f->n_logits,
                             .tokens = e->batch_tokens,
                             .positions = e->batch_positions,
                             .token_row = e->batch_token_row,
                             .rows = e->batch_rows,
                             .logit_tokens = e->logit_tokens,
                             .token_from = e->backend->async ? e->batch_token_from : NULL};
}

/* ------------------------------------------------------------------- launch -- */

static void prompt_logprobs(const perch_engine *e, completion *c, const flight_row *row, const float *logits) {
    uint32_t first = row->first_position + row->n_tokens - row->n_logits;
    for (uint32_t i = 0; i < row->n_logits; i++) {
        uint32_t next = first + i + 1; /* the token that these logits predict */
        if (next >= c->n_turn_start && next < c->n_prompt) {
            c->prompt_logprobs[next - c->n_turn_start] =
                sampler_logprob(logits + (size_t)i * e->config.vocab_size, e->config.vocab_size, c->seq->tokens[next]);
        }
    }
}

static void keep_message(completion *c, const perch_error *err) {
    snprintf(c->message, sizeof c->message, "%.*s", (int)sizeof c->message - 1, err->message);
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
        keep_message(c, &err);
    }
    return status;
}

/* For a test's tap, which is shown the rows when the tokens before them are known. */
static perch_status keep_logits(perch_engine *e, flight *f, const float *logits, perch_error *err) {
    size_t n_bytes = (size_t)f->n_logits * e->config.vocab_size * sizeof *logits;
    f->kept_logits = malloc(n_bytes + 1);
    if (!f->kept_logits) {
        return err_nomem(err, "the tap's logits");
    }
    memcpy(f->kept_logits, logits, n_bytes);
    return PERCH_OK;
}

static void tap_logits(perch_engine *e, flight *f) {
    const float *logits = f->kept_logits;
    for (uint32_t r = 0; logits && r < f->n_rows; r++) {
        const flight_row *row = &f->rows[r];
        if (row->c && row->n_logits) {
            e->tap(e->tap_user, row->c->seq->tokens, row->first_position + row->n_tokens - row->n_logits, row->n_logits,
                   logits);
        }
        logits += row->n_logits * (size_t)e->config.vocab_size;
    }
    free(f->kept_logits);
    f->kept_logits = NULL;
}

/* What the host does with logits: prompts get their log-probabilities, and tokens are chosen. */
static void read_logits(perch_engine *e, flight *f, const float *logits) {
    size_t vocab = e->config.vocab_size;
    for (uint32_t r = 0; r < f->n_rows; r++) {
        flight_row *row = &f->rows[r];
        if (row->c->prompt_logprobs) {
            prompt_logprobs(e, row->c, row, logits);
        }
        if (row->is_sampled && !row->on_device) {
            row->status = sample_row(e, row->c, logits + (row->n_logits - 1) * vocab, &row->sample);
        }
        logits += row->n_logits * vocab;
    }
}

static bool reads_history(const perch_sampling *s) {
    return s->repetition_penalty != 1 || s->frequency_penalty != 0 || s->presence_penalty != 0;
}

/* Tokens whose KV was there when a row was admitted, or was loaded, went through no batch: its choice may want to know them. */
static perch_status send_histories(perch_engine *e, const flight *f, perch_error *err) {
    perch_status status = PERCH_OK;
    for (uint32_t r = 0; r < f->n_rows && !status; r++) {
        const flight_row *row = &f->rows[r];
        completion *c = row->c;
        if (c->n_history < row->first_position && reads_history(c->req->sampling)) {
            status = e->backend->async->history(e->device, e->batch_rows[r].slot, c->n_history,
                                                row->first_position - c->n_history, c->seq->tokens + c->n_history, err);
        }
        c->n_history = row->first_position + row->n_tokens;
    }
    return status;
}

perch_status batch_launch(perch_engine *e, flight *f, const kernels_batch *batch, perch_error *err) {
    const kernels_async *async = e->backend->async;
    const float *logits;
    uint64_t begin_us = time_us();
    perch_status status = model_forward(e->model, e->lane, batch, err);
    if (!status && async) {
        status = send_histories(e, f, err);
    }
    if (!status && async) {
        status = async->choose(e->device, e->lane, model_logits(e->model), f->choices, f->n_choices, err);
    }
    uint64_t queued_us = time_us();
    f->host_us += async ? queued_us - begin_us : 0;
    f->forward_us = async ? 0 : queued_us;
    if (!status && f->needs_logits) {
        status = model_fetch_logits(e->model, f->n_logits, &logits, err);
        uint64_t fetched_us = time_us();
        if (!status) {
            read_logits(e, f, logits);
            status = e->tap ? keep_logits(e, f, logits, err) : PERCH_OK;
        }
        f->host_us += time_us() - fetched_us;
    }
    return status;
}

void batch_departed(perch_engine *e, flight *f) {
    sched_commit(&e->sched);
    f->busy = true;
    for (uint32_t r = 0; r < f->n_rows; r++) {
        flight_row *row = &f->rows[r];
        completion *c = row->c;
        c->rows[e->lane] = row;
        if (row->on_device) {
            c->n_pending++;
            c->last_choice = row->choice;
            if (c->n_generated + c->n_pending < c->req->max_tokens) { /* else nothing comes behind it */
                c->item.n_tokens++;
                c->item.logits_from = c->item.n_tokens - 1;
            }
        }
    }
}

/* --------------------------------------------------------------------- land -- */

perch_status batch_land(perch_engine *e, flight *f, perch_error *err) {
    const kernels_async *async = e->backend->async;
    const kernels_chosen *chosen = NULL;
    if (!async) {
        return PERCH_OK;
    }
    perch_status status = async->wait(e->device, (uint32_t)(f - e->flights), &chosen, err);
    uint64_t begin_us = time_us();
    for (uint32_t r = 0; r < f->n_rows && !status; r++) {
        flight_row *row = &f->rows[r];
        if (row->c && row->on_device) {
            perch_error why;
            row->status = sampler_report(&chosen[row->choice], row->first_position + row->n_tokens, &row->sample, &why);
            if (row->status) {
                keep_message(row->c, &why);
            }
        }
    }
    f->host_us += time_us() - begin_us;
    return status;
}

/* ------------------------------------------------------------------- commit -- */

/* Puts the new token into the sequence and the output. There is room: submit saw to it. */
static void append_token(completion *c, const sampler_output *sample) {
    sequence *s = c->seq;
    uint32_t n_top = c->req->sampling->n_logprobs;
    assert(s->n_tokens < s->cap && c->n_generated < c->req->max_tokens);
    s->tokens[s->n_tokens++] = sample->token;
    c->item.n_known = s->n_tokens;
    c->tokens[c->n_generated] = sample->token;
    if (c->logprobs) {
        c->logprobs[c->n_generated] = sample->logprob;
    }
    for (uint32_t i = 0; c->top && i < n_top; i++) {
        c->top[(size_t)c->n_generated * n_top + i] =
            i < sample->n_top ? sample->top[i] : (perch_logprob){.token = -1, .logprob = -INFINITY};
    }
    c->n_generated++;
    if (c->item.n_tokens < s->n_tokens) { /* it wasn't counted when it was pending */
        c->item.n_tokens = s->n_tokens;
        c->item.logits_from = s->n_tokens - 1;
    }
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
        c->first_token_us = engine_now(e);
        observe_first_token(e, c);
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

static void count_row(perch_engine *e, const completion *c, const flight_row *row) {
    uint32_t end = row->first_position + row->n_tokens;
    uint32_t before = c->seq->n_computed < end ? c->seq->n_computed : end;
    before = before < row->recomputed_from ? before : row->recomputed_from;
    if (before > row->first_position) {
        e->stats.reprefill_tokens += before - row->first_position;
    }
    bool decode = row->n_tokens == 1 && row->first_position >= c->n_prompt && before <= row->first_position;
    e->stats.prefill_tokens += decode ? 0 : row->n_tokens;
}

static void commit_row(perch_engine *e, completion *c, const flight_row *row) {
    uint32_t end = row->first_position + row->n_tokens;
    count_row(e, c, row);
    c->n_pending -= row->on_device;
    if (end > c->seq->n_computed) {
        c->seq->n_computed = end;
    }
    cache_publish(e->kv, c->seq->entry, c->seq->tokens, end);
    if (c->item.logits_from < end && end < c->n_prompt) {
        c->item.logits_from = end; /* these prompt log-probabilities are done, also if it is preempted */
    }
    if (end == c->n_prompt && c->req->n_completions > 1 && c->index == 0 && !c->forks_started) {
        completion_start_forks(e, c->req);
    }
    if (row->is_sampled) {
        if (row->status) {
            completion_fail(e, c, row->status, c->message);
        } else {
            commit_sample(e, c, &row->sample);
        }
    } else if (row->is_last && c->req->max_tokens == 0) {
        completion_finish(e, c, PERCH_FINISH_LENGTH);
    }
}

void batch_commit(perch_engine *e, flight *f) {
    const kernels_async *async = e->backend->async;
    uint32_t lane = (uint32_t)(f - e->flights);
    f->busy = false;
    e->stats.failed_graphs = async && async->failed_graphs ? async->failed_graphs(e->device) : 0;
    tap_logits(e, f);
    for (uint32_t r = 0; r < f->n_rows; r++) {
        completion *c = f->rows[r].c;
        if (c) {
            c->rows[lane] = NULL;
            commit_row(e, c, &f->rows[r]);
        }
    }
}
