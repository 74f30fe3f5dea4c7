/*
 * memory: the store of an engine that keeps nothing beyond its own life. Names stand in a search tree; those that nobody has
 * open also in a list, the least recently used first, and the marks of retired ones in another.
 */
#include "engine/store/store.h"

#include <search.h>
#include <stdlib.h>
#include <string.h>

typedef struct list list;

typedef struct kept {
    store_meta meta;
    int32_t *tokens; /* [meta.n_tokens] */
    uint64_t fence;  /* 0 = nobody has it open */
    bool retired;    /* a mark; touched_ms says when */
    list *in;
    struct kept *prev, *next;
    char model[STORE_MODEL_CAP];
    const char *key;
    char name[]; /* key, but for one that is only searched by */
} kept;

struct list {
    kept *head, *tail;
};

typedef struct memory {
    void *tree; /* of entries, by key */
    list idle, marks;
    uint64_t n_fences, n_bytes;
    uint64_t max_bytes, ttl_ms;
} memory;

/* -------------------------------------------------------------- tree, lists -- */

static int by_key(const void *a, const void *b) { return strcmp(((const kept *)a)->key, ((const kept *)b)->key); }

static kept *find(const memory *m, const char *key) {
    kept searched = {.key = key};
    kept **node = tfind(&searched, &m->tree, by_key);
    return node ? *node : NULL;
}

/* For a search that never finds: the least one behind the one that is searched for. */
static _Thread_local kept *behind;

static int note_behind(const void *searched, const void *node) {
    bool is_behind = by_key(node, searched) > 0;
    if (is_behind) {
        behind = (kept *)(uintptr_t)node;
    }
    return is_behind ? -1 : 1;
}

static kept *find_behind(const memory *m, const char *key) {
    kept searched = {.key = key};
    behind = NULL;
    tfind(&searched, &m->tree, note_behind);
    return behind;
}

static void list_remove(kept *e) {
    list *l = e->in;
    if (l) {
        *(e->prev ? &e->prev->next : &l->head) = e->next;
        *(e->next ? &e->next->prev : &l->tail) = e->prev;
        e->in = NULL;
    }
}

static void list_append(list *l, kept *e) {
    list_remove(e);
    e->in = l;
    e->prev = l->tail;
    e->next = NULL;
    *(l->tail ? &l->tail->next : &l->head) = e;
    l->tail = e;
}

static kept *kept_create(memory *m, const char *key) {
    size_t n = strlen(key) + 1;
    kept *e = calloc(1, sizeof *e + n);
    if (e) {
        e->key = memcpy(e->name, key, n);
        e->meta.hash = store_hash(NULL, 0);
        e->meta.created_ms = e->meta.touched_ms = store_now_ms();
    }
    if (e && !tsearch(e, &m->tree, by_key)) {
        free(e);
        return NULL;
    }
    m->n_bytes += e ? store_bytes(0) : 0;
    return e;
}

static void kept_destroy(memory *m, kept *e) {
    m->n_bytes -= e->retired ? 0 : store_bytes(e->meta.n_tokens);
    list_remove(e);
    tdelete(e, &m->tree, by_key);
    free(e->tokens);
    free(e);
}

/* -------------------------------------------------------------- the backend -- */

static perch_status memory_open(const store_config *config, void **out, perch_error *err) {
    memory *m = calloc(1, sizeof *m);
    if (!m) {
        return err_nomem(err, "the sequence store");
    }
    m->max_bytes = config->max_bytes;
    m->ttl_ms = config->ttl_ms;
    *out = m;
    return PERCH_OK;
}

static void memory_close(void *state) {
    memory *m = state;
    while (m->tree) {
        kept_destroy(m, *(kept **)m->tree);
    }
    free(m);
}

static perch_status memory_acquire(void *state, store_op *op, perch_error *err) {
    memory *m = state;
    kept *e = find(m, op->key);
    if (e && e->retired) {
        return PERCH_E_RETIRED;
    }
    if (!e && op->existing) {
        return PERCH_E_NOT_FOUND;
    }
    size_t n_bytes = e ? e->meta.n_tokens * sizeof *e->tokens : 0;
    op->found = malloc(n_bytes + 1);
    if (!op->found) {
        return err_nomem(err, "a sequence's tokens");
    }
    if (!e && !(e = kept_create(m, op->key))) {
        free(op->found);
        op->found = NULL;
        return err_nomem(err, "a sequence's name");
    }
    if (n_bytes) {
        memcpy(op->found, e->tokens, n_bytes);
    }
    *op->meta = e->meta;
    memcpy(op->found_model, e->model, sizeof e->model);
    e->fence = op->drawn = ++m->n_fences;
    list_remove(e);
    return PERCH_OK;
}

static perch_status put(memory *m, kept *e, store_op *op, perch_error *err) {
    const store_meta *meta = op->meta;
    int32_t *tokens = realloc(e->tokens, meta->n_tokens * sizeof *tokens + 1);
    if (!tokens) {
        return err_nomem(err, "a sequence's tokens");
    }
    e->tokens = tokens;
    if (meta->n_tokens > op->keep) {
        memcpy(tokens + op->keep, op->tokens + op->keep, (size_t)(meta->n_tokens - op->keep) * sizeof *tokens);
    }
    m->n_bytes += store_bytes(meta->n_tokens) - store_bytes(e->meta.n_tokens);
    e->meta = *meta;
    memcpy(e->model, meta->model, strlen(meta->model) + 1);
    e->meta.model = NULL;
    return PERCH_OK;
}

static perch_status write_one(memory *m, store_op *op, perch_error *err) {
    kept *e = find(m, op->key);
    perch_status status = PERCH_OK;
    bool created = !e && op->kind == STORE_PUT && !op->fence;
    if (op->kind == STORE_REMOVE && !op->fence) {
        status = !e ? PERCH_E_NOT_FOUND : e->fence ? PERCH_E_BUSY : PERCH_OK;
    } else if (!created && (!e || e->fence != op->fence)) {
        status = PERCH_E_LEASED;
    } else if (op->kind == STORE_PUT && op->keep > (e ? e->meta.n_tokens : 0)) {
        status = PERCH_E_INVALID;
    }
    if (status) {
        return status;
    }
    if (created) {
        e = kept_create(m, op->key);
        if (!e) {
            return err_nomem(err, "a sequence's name");
        }
        op->drawn = e->fence = ++m->n_fences;
    }
    if (op->kind == STORE_REMOVE) {
        kept_destroy(m, e);
        return PERCH_OK;
    }
    if (op->kind == STORE_PUT) {
        status = put(m, e, op, err);
        if (status && created) {
            kept_destroy(m, e);
        }
    }
    if (!status && (op->kind == STORE_RELEASE || op->release)) {
        e->fence = 0;
        e->meta.touched_ms = store_now_ms();
        list_append(&m->idle, e);
    }
    return status;
}

static void memory_write(void *state, store_op *const *ops, size_t n, perch_error *err) {
    for (size_t i = 0; i < n; i++) {
        ops[i]->status = write_one(state, ops[i], err);
    }
}

static perch_status memory_list(void *state, store_op *op, perch_error *err) {
    (void)err;
    const memory *m = state;
    store_list *page = op->list;
    const kept *e = find_behind(m, op->key);
    for (page->n = 0; e && page->n < page->cap; e = find_behind(m, e->key)) {
        if (!e->retired) {
            perch_sequence_entry *out = &page->entries[page->n++];
            memcpy(out->key, e->key, strlen(e->key) + 1);
            out->n_tokens = e->meta.n_tokens;
            out->n_turns = e->meta.n_turns;
            out->created_ms = e->meta.created_ms;
            out->touched_ms = e->meta.touched_ms;
            out->is_open = e->fence != 0;
        }
    }
    return PERCH_OK;
}

static void retire(memory *m, kept *e, uint64_t now_ms) {
    m->n_bytes -= store_bytes(e->meta.n_tokens);
    free(e->tokens);
    e->tokens = NULL;
    e->retired = true;
    e->meta.touched_ms = now_ms;
    list_append(&m->marks, e);
}

static perch_status memory_tend(void *state, uint64_t now_ms, uint64_t *n_retired, perch_error *err) {
    (void)err;
    memory *m = state;
    while (m->idle.head && ((m->max_bytes && m->n_bytes > m->max_bytes) ||
                            (m->ttl_ms && now_ms >= m->idle.head->meta.touched_ms + m->ttl_ms))) {
        retire(m, m->idle.head, now_ms);
        ++*n_retired;
    }
    while (m->marks.head && now_ms >= m->marks.head->meta.touched_ms + STORE_MARK_MS) {
        kept_destroy(m, m->marks.head);
    }
    return PERCH_OK;
}

const store_backend store_memory = {
    .open = memory_open,
    .close = memory_close,
    .acquire = memory_acquire,
    .write = memory_write,
    .list = memory_list,
    .tend = memory_tend,
};
