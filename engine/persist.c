/* persist: see persist.h. */
#include "engine/impl.h"

#include <assert.h>
#include <search.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ------------------------------------------------------------------------ life -- */

static int by_key(const void *a, const void *b) { return strcmp(((const persist *)a)->key, ((const persist *)b)->key); }

perch_status persist_create(perch_engine *e, const char *key, uint32_t flags, persist **out, perch_error *err) {
    char made_up[PERCH_KEY_CAP];
    perch_status status = key ? PERCH_OK : store_make_key(made_up, err);
    if (status) {
        return status;
    }
    key = key ? key : made_up;
    size_t n = strlen(key) + 1;
    persist *p = calloc(1, sizeof *p + n);
    if (!p) {
        return err_nomem(err, "a sequence's key");
    }
    memcpy(p->key, key, n);
    p->engine = e;
    p->retain = (flags & PERCH_SEQUENCE_RETAIN) != 0;
    p->op.key = p->key;
    p->op.meta = &p->meta;
    p->meta.created_ms = store_now_ms();
    p->meta.model = e->model_text;
    persist **node = tsearch(p, &e->keys, by_key);
    if (!node || *node != p) {
        free(p);
        return node ? err_set(err, PERCH_E_BUSY, "key: the sequence '%s' is open already", key)
                    : err_nomem(err, "a sequence's key");
    }
    *out = p;
    return PERCH_OK;
}

static void give_up_key(persist *p) { tdelete(p, &p->engine->keys, by_key); }

void persist_destroy(persist *p) {
    if (p) {
        give_up_key(p);
        free(p);
    }
}

perch_status persist_create_unnamed(perch_engine *e, uint32_t flags, persist **out, perch_error *err) {
    *out = NULL;
    return store_is_durable(e->store) ? persist_create(e, NULL, flags, out, err) : PERCH_OK;
}

/* -------------------------------------------------------------------- what to put -- */

static bool is_dirty(const persist *p, const sequence *s) {
    return !p->op.fence || p->n_kept != s->n_tokens || p->n_in_store != s->n_tokens;
}

/* The op that makes the store have what the sequence has. */
static void make_put(persist *p, const int32_t *tokens, uint32_t n_tokens) {
    p->op.kind = STORE_PUT;
    p->op.release = false;
    p->op.keep = p->op.fence ? p->n_kept : 0;
    p->op.tokens = tokens;
    p->meta.n_tokens = n_tokens;
    p->meta.touched_ms = store_now_ms();
}

/* A put has come back. */
static void settle(persist *p) {
    perch_status status = p->op.status;
    if (!status) {
        p->op.fence = p->op.fence ? p->op.fence : p->op.drawn;
        p->n_kept = (uint32_t)p->meta.n_tokens;
        p->n_in_store = p->meta.n_tokens;
        return;
    }
    p->n_in_store = UINT64_MAX; /* it may have arrived all the same */
    if (status == PERCH_E_LEASED || status == PERCH_E_NOT_FOUND || status == PERCH_E_RETIRED) {
        p->lost = PERCH_E_LEASED;
    } else if (status == PERCH_E_INVALID) {
        p->n_kept = 0; /* the store went back in time: all of it, then */
    }
}

static perch_status lost(const persist *p, perch_error *err) {
    return err_set(err, p->lost, "the sequence '%s' was taken over by another engine, or removed", p->key);
}

perch_status persist_check(const persist *p, perch_error *err) {
    if (p && p->lost) {
        return lost(p, err);
    }
    return p && p->syncing ? err_set(err, PERCH_E_BUSY, "the sequence '%s' is on its way to the store", p->key)
                           : PERCH_OK;
}

void persist_rewound(persist *p, uint32_t n_tokens) {
    if (p && p->n_kept > n_tokens) {
        p->n_kept = n_tokens;
    }
}

/* ---------------------------------------------------------------------- turns -- */

/* What becomes of the DONE event of a turn that is not in the store. A turn that failed has its own reason to tell. */
static void tell_failure(completion *c, perch_status status, const perch_error *why) {
    if (status && c->finish != PERCH_FINISH_ERROR) {
        c->status = status == PERCH_E_NOT_FOUND || status == PERCH_E_RETIRED ? PERCH_E_LEASED : status;
        snprintf(c->message, sizeof c->message, "%.*s", (int)sizeof c->message - 1, why->message);
    }
}

static void turn_done(store_op *op, const perch_error *why) {
    persist *p = (persist *)op;
    perch_engine *e = p->engine;
    pthread_mutex_lock(&e->lock);
    completion *c = p->turn;
    p->turn = NULL;
    settle(p);
    tell_failure(c, op->status, why);
    e->n_committing--;
    c->committing = false;
    completion_end(e, c);
    pthread_mutex_unlock(&e->lock);
}

bool persist_commit(perch_engine *e, completion *c) {
    sequence *s = c->seq;
    persist *p = s->persist;
    if (!p || !store_is_durable(e->store) || (s->closed && !p->retain)) {
        return false;
    }
    if (p->lost) {
        perch_error why;
        tell_failure(c, lost(p, &why), &why);
        return false;
    }
    p->meta.n_turns++;
    make_put(p, s->tokens, s->n_tokens);
    p->turn = c;
    p->op.done = turn_done;
    c->committing = true;
    e->n_committing++;
    store_send(e->store, &p->op);
    return true;
}

/* -------------------------------------------------------------------- letting go -- */

static void gone(store_op *op, const perch_error *why) {
    persist *p = (persist *)op;
    (void)why;
    free(p->tokens);
    free(p);
}

/* put: what the store has not is sent as well, if the sequence is to stay there. */
static void let_go(perch_engine *e, sequence *s, bool put) {
    persist *p = s->persist;
    assert(!p->turn && !p->syncing);
    give_up_key(p);
    s->persist = NULL;
    put = put && p->retain && is_dirty(p, s);
    if (p->lost || (!put && !p->op.fence)) {
        free(p);
        return;
    }
    if (put) {
        make_put(p, s->tokens, s->n_tokens);
        p->op.release = true;
        p->tokens = s->tokens;
        s->tokens = NULL;
    } else {
        p->op.kind = p->retain ? STORE_RELEASE : STORE_REMOVE;
    }
    p->op.done = gone;
    store_send(e->store, &p->op);
}

void persist_let_go(perch_engine *e, sequence *s) {
    if (s->persist) {
        let_go(e, s, true);
    }
}

void persist_let_go_all(perch_engine *e) {
    for (size_t i = 0; i < e->sequences.n_places; i++) {
        sequence *s = e->sequences.places[i].object;
        if (s && s->persist && store_is_durable(e->store)) {
            s->persist->retain = true;
            let_go(e, s, !s->busy);
        } else if (s) {
            persist_destroy(s->persist);
            s->persist = NULL;
        }
    }
}

/* ------------------------------------------------------------------------ sync -- */

perch_status persist_sync(perch_engine *e, sequence *s, perch_error *err) {
    persist *p = s->persist;
    if (!p || !store_is_durable(e->store) || !is_dirty(p, s)) {
        return PERCH_OK;
    }
    make_put(p, s->tokens, s->n_tokens);
    p->syncing = true;
    e->n_inside++;
    pthread_mutex_unlock(&e->lock);
    perch_status status = store_call(e->store, &p->op, err);
    pthread_mutex_lock(&e->lock);
    p->syncing = false;
    settle(p);
    status = p->lost ? lost(p, err) : status == PERCH_E_INVALID ? PERCH_E_STORE : status;
    if (s->closed) {
        sequence_free(e, s);
    }
    engine_leave(e);
    return status;
}
