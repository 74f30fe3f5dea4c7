/* sequence: conversations as the host sees them. All of it happens under the engine's lock; nothing here waits for a step. */
#include "engine/impl.h"

#include <stdlib.h>
#include <string.h>

/* Room for at least cap tokens. Host calls only. */
static perch_status reserve_tokens(sequence *s, size_t cap, perch_error *err) {
    if (cap <= s->cap) {
        return PERCH_OK;
    }
    return array_reserve((void **)&s->tokens, &s->cap, cap, sizeof *s->tokens, err);
}

perch_status sequence_create(perch_engine *e, uint64_t cache_namespace, size_t token_cap, sequence **out,
                             perch_error *err) {
    sequence *s = calloc(1, sizeof *s);
    perch_status status = s ? PERCH_OK : err_nomem(err, "a sequence");
    if (!status) {
        status = reserve_tokens(s, token_cap, err);
    }
    if (!status) {
        status = cache_entry_create(e->kv, cache_namespace, &s->entry, err);
    }
    if (!status) {
        status = idtable_reserve(&e->sequences, 1, err);
    }
    if (status) {
        if (s && s->entry) {
            cache_entry_destroy(e->kv, s->entry);
        }
        if (s) {
            free(s->tokens);
        }
        free(s);
        return status;
    }
    s->id = idtable_add(&e->sequences, s);
    *out = s;
    return PERCH_OK;
}

void sequence_free(perch_engine *e, sequence *s) {
    idtable_remove(&e->sequences, s->id);
    persist_let_go(e, s);
    cache_entry_close(e->kv, s->entry);
    free(s->tokens);
    free(s);
}

perch_status sequence_get(perch_engine *e, perch_sequence_id id, bool idle, sequence **out, perch_error *err) {
    sequence *s = idtable_get(&e->sequences, id);
    *out = s;
    if (!s) {
        return err_set(err, PERCH_E_NOT_FOUND, "no sequence has the id %llu", (unsigned long long)id);
    }
    if (idle && s->busy) {
        return err_set(err, PERCH_E_BUSY, "sequence %llu has a request in flight", (unsigned long long)id);
    }
    return idle ? persist_check(s->persist, err) : PERCH_OK;
}

perch_status sequence_open(perch_engine *e, uint64_t cache_namespace, size_t token_cap, uint32_t flags, sequence **out,
                           perch_error *err) {
    perch_status status = sequence_create(e, cache_namespace, token_cap, out, err);
    if (!status && (status = persist_create_unnamed(e, flags, &(*out)->persist, err))) {
        sequence_free(e, *out);
    }
    return status;
}

static perch_status check_engine(const perch_engine *e, const void *other, const char *function, perch_error *err) {
    return e && other ? PERCH_OK : err_set(err, PERCH_E_INVALID, "%s: an argument is NULL", function);
}

perch_status perch_sequence_close(perch_engine *e, perch_sequence_id id, perch_error *err) {
    perch_status status = check_engine(e, e, "perch_sequence_close", err);
    if (status) {
        return status;
    }
    pthread_mutex_lock(&e->lock);
    sequence *s;
    status = sequence_get(e, id, false, &s, err);
    if (status) {
        pthread_mutex_unlock(&e->lock);
        return status;
    }
    if (!s->busy && !(s->persist && s->persist->syncing)) {
        sequence_free(e, s);
    } else {
        idtable_remove(&e->sequences, id);
        s->closed = true;
        for (uint32_t i = 0; s->busy && i < s->busy->n_completions; i++) {
            if (!s->fork_of || s->fork_of == &s->busy->completions[i]) {
                completion_cancel(e, &s->busy->completions[i]);
            }
        }
    }
    pthread_mutex_unlock(&e->lock);
    return status;
}

static perch_status append(perch_engine *e, sequence *s, const int32_t *tokens, size_t n, perch_error *err) {
    if (n > e->session_len - s->n_tokens) {
        return err_set(err, PERCH_E_TOO_LONG, "%u tokens + %zu appended are more than session_len = %u", s->n_tokens, n,
                       e->session_len);
    }
    perch_status status = check_tokens(e, tokens, n, err);
    if (!status) {
        status = reserve_tokens(s, s->n_tokens + n, err);
    }
    if (!status && n) {
        memcpy(s->tokens + s->n_tokens, tokens, n * sizeof *tokens);
        s->n_tokens += (uint32_t)n;
    }
    return status;
}

perch_status perch_sequence_append(perch_engine *e, perch_sequence_id id, const int32_t *tokens, size_t n,
                                   perch_error *err) {
    perch_status status = check_engine(e, n ? (const void *)tokens : e, "perch_sequence_append", err);
    if (status) {
        return status;
    }
    pthread_mutex_lock(&e->lock);
    sequence *s;
    status = sequence_get(e, id, true, &s, err);
    if (!status) {
        status = append(e, s, tokens, n, err);
    }
    pthread_mutex_unlock(&e->lock);
    return status;
}

static perch_status fork_at(perch_engine *e, sequence *s, uint64_t n_tokens, perch_sequence_id *out, perch_error *err) {
    sequence *child;
    if (n_tokens > s->n_tokens) {
        return err_set(err, PERCH_E_INVALID, "n_tokens: %llu of a sequence of %u", (unsigned long long)n_tokens,
                       s->n_tokens);
    }
    uint32_t flags = s->persist && s->persist->retain ? PERCH_SEQUENCE_RETAIN : 0;
    perch_status status = sequence_open(e, cache_entry_namespace(s->entry), (size_t)n_tokens, flags, &child, err);
    if (status) {
        return status;
    }
    status = cache_fork(e->kv, s->entry, child->entry, (uint32_t)n_tokens, err);
    if (status) {
        sequence_free(e, child);
        return status;
    }
    if (n_tokens) {
        memcpy(child->tokens, s->tokens, (size_t)n_tokens * sizeof *s->tokens);
    }
    child->n_tokens = (uint32_t)n_tokens;
    child->n_computed = s->n_computed < child->n_tokens ? s->n_computed : child->n_tokens;
    *out = child->id;
    return PERCH_OK;
}

perch_status perch_sequence_fork(perch_engine *e, perch_sequence_id id, uint64_t n_tokens, perch_sequence_id *out,
                                 perch_error *err) {
    perch_status status = check_engine(e, out, "perch_sequence_fork", err);
    if (status) {
        return status;
    }
    *out = 0;
    pthread_mutex_lock(&e->lock);
    sequence *s;
    status = sequence_get(e, id, true, &s, err);
    if (!status) {
        status = fork_at(e, s, n_tokens, out, err);
    }
    pthread_mutex_unlock(&e->lock);
    return status;
}

perch_status perch_sequence_rewind(perch_engine *e, perch_sequence_id id, uint64_t n_tokens, perch_error *err) {
    perch_status status = check_engine(e, e, "perch_sequence_rewind", err);
    if (status) {
        return status;
    }
    pthread_mutex_lock(&e->lock);
    sequence *s;
    status = sequence_get(e, id, true, &s, err);
    if (!status && n_tokens > s->n_tokens) {
        status = err_set(err, PERCH_E_INVALID, "n_tokens: %llu of a sequence of %u", (unsigned long long)n_tokens,
                         s->n_tokens);
    } else if (!status) {
        s->n_tokens = (uint32_t)n_tokens;
        s->n_computed = s->n_computed < s->n_tokens ? s->n_computed : s->n_tokens;
        cache_truncate(e->kv, s->entry, s->n_tokens);
        persist_rewound(s->persist, s->n_tokens);
    }
    pthread_mutex_unlock(&e->lock);
    return status;
}

perch_status perch_sequence_tokens(perch_engine *e, perch_sequence_id id, int32_t *tokens, size_t cap, size_t *n_tokens,
                                   perch_error *err) {
    perch_status status = check_engine(e, cap && !tokens ? NULL : n_tokens, "perch_sequence_tokens", err);
    if (status) {
        return status;
    }
    pthread_mutex_lock(&e->lock);
    sequence *s;
    status = sequence_get(e, id, false, &s, err);
    if (!status) {
        size_t n = s->n_tokens < cap ? s->n_tokens : cap;
        if (n) {
            memcpy(tokens, s->tokens, n * sizeof *tokens);
        }
        *n_tokens = s->n_tokens;
        if (s->n_tokens > cap) {
            status = err_set(err, PERCH_E_BUFFER, "%u tokens, room for %zu", s->n_tokens, cap);
        }
    }
    pthread_mutex_unlock(&e->lock);
    return status;
}

perch_status perch_sequence_state(perch_engine *e, perch_sequence_id id, perch_sequence_info *info, perch_error *err) {
    perch_status status = check_engine(e, info, "perch_sequence_state", err);
    if (status) {
        return status;
    }
    if (info->struct_size != sizeof *info) {
        return err_set(err, PERCH_E_INVALID, "perch_sequence_state: info.struct_size is not set");
    }
    pthread_mutex_lock(&e->lock);
    sequence *s;
    status = sequence_get(e, id, false, &s, err);
    if (!status) {
        const cache_saved saved = cache_entry_saved(e->kv, s->entry);
        info->residency = cache_entry_pinned(s->entry)    ? PERCH_SEQ_ACTIVE
                          : cache_entry_n_pages(s->entry) ? PERCH_SEQ_RESIDENT
                          : saved.n_host                  ? PERCH_SEQ_HOST
                          : saved.n_disk                  ? PERCH_SEQ_DISK
                                                          : PERCH_SEQ_TOKENS;
        info->n_host_tokens = saved.n_host;
        info->n_disk_tokens = saved.n_disk;
        info->in_flight = s->busy != NULL;
        info->n_tokens = s->n_tokens;
        info->n_kv_tokens = cache_entry_n_valid(s->entry);
        info->n_kv_computed = s->n_computed;
        info->n_evictions = cache_entry_n_evictions(s->entry);
        info->n_stored = s->persist ? s->persist->n_kept : 0;
    }
    pthread_mutex_unlock(&e->lock);
    return status;
}

/* --------------------------------------------------------------------- hints -- */

#define MAX_HINT_MS (UINT64_C(1) << 40) /* 34 years */

perch_status perch_hints_init(perch_hints *hints, size_t struct_size) {
    if (!hints || struct_size != sizeof *hints) {
        return PERCH_E_INVALID;
    }
    *hints = (perch_hints){.struct_size = sizeof *hints};
    return PERCH_OK;
}

perch_status sequence_check_hints(const perch_hints *h, perch_error *err) {
    if (h->struct_size != sizeof *h) {
        return err_set(err, PERCH_E_INVALID, "hints.struct_size: %zu is not %zu; fill it in by perch_hints_init",
                       h->struct_size, sizeof *h);
    }
    if (h->pin > 1) {
        return err_set(err, PERCH_E_INVALID, "pin: %u is neither 0 nor 1", h->pin);
    }
    if (h->priority < CACHE_MIN_PRIORITY || h->priority > CACHE_MAX_PRIORITY) {
        return err_set(err, PERCH_E_INVALID, "priority: %d is not in %d..%d", h->priority, CACHE_MIN_PRIORITY,
                       CACHE_MAX_PRIORITY);
    }
    if (h->expect_return_ms > MAX_HINT_MS || h->ttl_ms > MAX_HINT_MS) {
        return err_set(err, PERCH_E_INVALID, "%s: more than %llu",
                       h->ttl_ms > MAX_HINT_MS ? "ttl_ms" : "expect_return_ms", (unsigned long long)MAX_HINT_MS);
    }
    return PERCH_OK;
}

perch_status sequence_hint(perch_engine *e, sequence *s, const perch_hints *h, perch_error *err) {
    const cache_hints hints = {.priority = h->priority,
                               .keep = h->pin == 1,
                               .expect_us = h->expect_return_ms * 1000,
                               .ttl_us = h->ttl_ms * 1000};
    cache_set_time(e->kv, engine_now(e));
    return cache_entry_hint(e->kv, s->entry, &hints, s->n_tokens, err);
}

perch_status perch_sequence_hint(perch_engine *e, perch_sequence_id id, const perch_hints *hints, perch_error *err) {
    perch_status status = check_engine(e, hints, "perch_sequence_hint", err);
    if (status || (status = sequence_check_hints(hints, err))) {
        return status;
    }
    pthread_mutex_lock(&e->lock);
    sequence *s;
    status = sequence_get(e, id, false, &s, err);
    if (!status) {
        status = sequence_hint(e, s, hints, err);
    }
    pthread_mutex_unlock(&e->lock);
    return status;
}
