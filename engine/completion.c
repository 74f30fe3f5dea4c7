/* completion: from admission to the end, whatever ends it. All under the engine's lock. */
#include "engine/impl.h"

#include <assert.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

static uint32_t min_u32(uint32_t a, uint32_t b) { return a < b ? a : b; }

/* The request leaves the queue: it was admitted, or ended before it could be. */
static void leave_queue(perch_engine *e, request *r) {
    if (r->counted) {
        r->counted = false;
        e->n_queued--;
        pthread_cond_signal(&e->space);
    }
}

/*
 * Hit, partial hit or miss: how much of what was computed for the sequence in earlier turns is still there. What this turn is
 * bound to compute in any case does not count as missing.
 */
static trace_class count_hit(perch_engine *e, const completion *c, uint32_t n_valid) {
    uint32_t n_useful = min_u32(c->seq->n_computed, c->recomputed_from);
    e->stats.cached_tokens += n_valid;
    if (n_useful == 0) {
        e->stats.first_turns++;
        return TRACE_FIRST_TURN;
    }
    if (n_valid >= n_useful) {
        e->stats.hits++;
        return TRACE_HIT;
    }
    *(n_valid > 0 ? &e->stats.partial_hits : &e->stats.misses) += 1;
    return n_valid > 0 ? TRACE_PARTIAL_HIT : TRACE_MISS;
}

void completion_admitted(void *engine, sched_item *item, uint32_t n_valid) {
    perch_engine *e = engine;
    completion *c = (completion *)item;
    c->recomputed_from = min_u32(item->logits_from, item->n_tokens - 1);
    c->n_history = 0;
    trace_class found = TRACE_FORK;
    if (!item->was_admitted) {
        c->n_cached = n_valid;
        c->admitted_us = engine_now(e);
        if (c->index == 0) {
            found = count_hit(e, c, n_valid);
            e->stats.restored_hits += n_valid > cache_entry_n_valid(item->entry);
            leave_queue(e, c->req);
        }
    }
    observe_admitted(e, c, found, n_valid);
}

void completion_start_forks(perch_engine *e, request *r) {
    completion *first = &r->completions[0];
    first->forks_started = true;
    for (uint32_t i = 1; i < r->n_completions; i++) {
        completion *c = &r->completions[i];
        if (c->finished) {
            continue;
        }
        /* All but the last token: its logits are what the fork begins with. The page array was reserved at submit. */
        perch_status status = cache_fork(e->kv, first->seq->entry, c->seq->entry, first->n_prompt - 1, NULL);
        if (status) {
            completion_fail(e, c, status, "the fork");
            continue;
        }
        memcpy(c->seq->tokens, first->seq->tokens, first->n_prompt * sizeof *c->seq->tokens);
        c->seq->n_tokens = c->item.n_known = first->n_prompt;
        c->seq->n_computed = first->n_prompt - 1;
        sched_add(&e->sched, &c->item);
    }
}

static void cancelled_remove(perch_engine *e, completion *c) {
    completion **at = &e->cancelled;
    while (*at && *at != c) {
        at = &(*at)->next_cancelled;
    }
    if (*at) {
        *at = c->next_cancelled;
    }
}

/* The request is over: its sequence can have the next. */
static void let_go_of_sequence(perch_engine *e, request *r) {
    sequence *s = r->completions[0].seq;
    r->completions[0].seq = NULL;
    s->busy = NULL;
    if (s->closed) {
        sequence_free(e, s);
    }
}

/* Forks that never began end as the first did. */
static void finish_unstarted(perch_engine *e, const completion *first) {
    request *r = first->req;
    for (uint32_t i = 1; !first->forks_started && i < r->n_completions; i++) {
        completion *c = &r->completions[i];
        if (!c->finished) {
            memcpy(c->message, first->message, sizeof c->message);
            c->status = first->status;
            completion_finish(e, c, first->finish);
        }
    }
}

/* Rows that are in flight go on without it. No KV is left of tokens that the sequence never got. */
static void leave_flights(perch_engine *e, completion *c) {
    for (uint32_t lane = 0; lane < KERNELS_LANES; lane++) {
        if (c->rows[lane]) {
            c->rows[lane]->c = NULL;
            c->rows[lane] = NULL;
        }
    }
    if (cache_entry_n_valid(c->seq->entry) > c->seq->n_tokens) {
        cache_truncate(e->kv, c->seq->entry, c->seq->n_tokens);
    }
    cache_truncate_copies(e->kv, c->seq->entry, c->seq->n_tokens); /* it may have lost that KV already */
    uint32_t n_valid = cache_entry_n_valid(c->seq->entry);
    c->seq->n_computed = c->seq->n_computed > n_valid ? c->seq->n_computed : n_valid;
}

void completion_finish(perch_engine *e, completion *c, perch_finish finish) {
    request *r = c->req;
    assert(!c->finished);
    c->finished = true;
    c->finish = finish;
    c->finished_us = engine_now(e);
    observe_finished(e, c);
    sched_remove(&e->sched, &c->item);
    leave_flights(e, c);
    if (r->deadline_us) {
        deadlines_remove(&e->deadlines, &c->due);
    }
    if (c->cancel_requested) {
        cancelled_remove(e, c);
    }
    cache_entry_release(e->kv, c->seq->entry);
    if (c->index > 0) {
        sequence_free(e, c->seq);
        c->seq = NULL;
    } else {
        leave_queue(e, r);
        e->stats.requests_finished += finish != PERCH_FINISH_CANCELLED && finish != PERCH_FINISH_ERROR;
        e->stats.requests_cancelled += finish == PERCH_FINISH_CANCELLED;
        e->stats.requests_failed += finish == PERCH_FINISH_ERROR;
        finish_unstarted(e, c);
    }
    if (c->index > 0 || !persist_commit(e, c)) {
        completion_end(e, c);
    }
}

void completion_end(perch_engine *e, completion *c) {
    if (--c->req->n_unfinished == 0) {
        let_go_of_sequence(e, c->req);
    }
    outbox_push(e, c);
}

void completion_fail(perch_engine *e, completion *c, perch_status status, const char *message) {
    c->status = status;
    if (message != c->message) {
        snprintf(c->message, sizeof c->message, "%.*s", (int)sizeof c->message - 1, message);
    }
    completion_finish(e, c, PERCH_FINISH_ERROR);
}

void completion_cancel(perch_engine *e, completion *c) {
    if (!c->finished && !c->cancel_requested) {
        c->cancel_requested = true;
        c->next_cancelled = e->cancelled;
        e->cancelled = c;
        pthread_cond_signal(&e->work);
    }
}

perch_status perch_cancel(perch_engine *e, perch_request_id id, perch_error *err) {
    if (!e) {
        return err_set(err, PERCH_E_INVALID, "perch_cancel: no engine");
    }
    perch_status status = PERCH_OK;
    pthread_mutex_lock(&e->lock);
    request *r = idtable_get(&e->requests, id);
    if (!r) {
        status = err_set(err, PERCH_E_NOT_FOUND, "no request has the id %llu", (unsigned long long)id);
    }
    for (uint32_t i = 0; r && i < r->n_completions; i++) {
        completion_cancel(e, &r->completions[i]);
    }
    pthread_mutex_unlock(&e->lock);
    return status;
}

static completion *completion_due(deadline *due) {
    return (completion *)(void *)((char *)due - offsetof(completion, due));
}

void completions_end_due(perch_engine *e) {
    while (e->cancelled) {
        completion_finish(e, e->cancelled, PERCH_FINISH_CANCELLED);
    }
    deadline *first = deadlines_first(&e->deadlines);
    uint64_t now = first ? engine_now(e) : 0;
    while (first && first->at_us <= now) {
        completion_finish(e, completion_due(first), PERCH_FINISH_TIMEOUT);
        first = deadlines_first(&e->deadlines);
    }
}

void engine_poison(perch_engine *e, const perch_error *why) {
    e->dead = why->status;
    e->dead_reason = *why;
    e->flights[0].busy = e->flights[1].busy = false;
    for (size_t i = 0; i < e->requests.n_places; i++) {
        request *r = e->requests.places[i].object;
        for (uint32_t k = 0; r && k < r->n_completions; k++) {
            if (!r->completions[k].finished) {
                completion_fail(e, &r->completions[k], why->status, why->message);
            }
        }
    }
    pthread_cond_broadcast(&e->space);
    pthread_cond_broadcast(&e->event);
    if (!e->n_committing) { /* else there is an event yet to come, which signals itself */
        outbox_signal(e);
    }
}
