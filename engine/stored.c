/* stored: sequences by name, and as bytes: what a host asks of the store. These calls wait for it, without the engine's lock. */
#include "engine/impl.h"
#include "engine/store/record.h"

#include <stdlib.h>
#include <string.h>

#define ALL_FLAGS (PERCH_SEQUENCE_RETAIN | PERCH_SEQUENCE_EXISTING)

perch_status perch_sequence_options_init(perch_sequence_options *options, size_t struct_size) {
    if (!options || struct_size != sizeof *options) {
        return PERCH_E_INVALID;
    }
    *options = (perch_sequence_options){.struct_size = sizeof *options};
    return PERCH_OK;
}

static perch_status check_options(const perch_sequence_options *o, perch_error *err) {
    if (o->struct_size != sizeof *o) {
        return err_set(err, PERCH_E_INVALID,
                       "options.struct_size: %zu is not %zu; fill it in by "
                       "perch_sequence_options_init",
                       o->struct_size, sizeof *o);
    }
    if (o->flags & ~(uint32_t)ALL_FLAGS) {
        return err_set(err, PERCH_E_INVALID, "flags: 0x%x has unknown bits", o->flags);
    }
    if (!o->key && o->flags & PERCH_SEQUENCE_EXISTING) {
        return err_set(err, PERCH_E_INVALID, "key: NULL, with PERCH_SEQUENCE_EXISTING");
    }
    perch_status status = o->hints ? sequence_check_hints(o->hints, err) : PERCH_OK;
    return !status && o->key ? store_check_key(o->key, err) : status;
}

static void lock_in(perch_engine *e) {
    pthread_mutex_lock(&e->lock);
    e->n_inside++;
}

static void unlock_out(perch_engine *e) {
    engine_leave(e);
    pthread_mutex_unlock(&e->lock);
}

/* --------------------------------------------------------------------- opening -- */

/* A key that the store has given to this engine, and what it had of it. */
typedef struct opened {
    persist *p;
    int32_t *tokens; /* [n_tokens] owned */
    uint64_t n_tokens;
} opened;

static perch_status check_found(const perch_engine *e, const opened *o, const char *of, perch_error *err) {
    if (*of) {
        perch_status status = fingerprint_check(e, of, err);
        if (status) {
            return status;
        }
    }
    if (o->n_tokens > e->session_len) {
        return err_set(err, PERCH_E_TOO_LONG, "the stored sequence has %llu tokens, session_len is %u",
                       (unsigned long long)o->n_tokens, e->session_len);
    }
    perch_status status = check_tokens(e, o->tokens, (size_t)o->n_tokens, err);
    return status ? err_prefix(err, PERCH_E_FORMAT, "the stored sequence") : PERCH_OK;
}

/* Gives the key back to the store as it was. Without the lock. */
static void give_back(perch_engine *e, opened *o) {
    if (o->p->op.fence) {
        o->p->op.kind = STORE_RELEASE;
        store_call(e->store, &o->p->op, NULL);
    }
    free(o->tokens);
    pthread_mutex_lock(&e->lock);
    persist_destroy(o->p);
    pthread_mutex_unlock(&e->lock);
}

/* Takes the key from the store. Without the lock. */
static perch_status take_key(perch_engine *e, const perch_sequence_options *options, opened *out, perch_error *err) {
    char found_model[STORE_MODEL_CAP] = "";
    pthread_mutex_lock(&e->lock);
    perch_status status = persist_create(e, options->key, options->flags, &out->p, err);
    pthread_mutex_unlock(&e->lock);
    if (status) {
        return status;
    }
    persist *p = out->p;
    p->op.kind = STORE_OPEN;
    p->op.existing = (options->flags & PERCH_SEQUENCE_EXISTING) != 0;
    p->op.found_model = found_model;
    status = store_call(e->store, &p->op, err);
    p->meta.model = e->model_text;
    p->op.found_model = NULL;
    if (!status) {
        p->op.fence = p->op.drawn;
        out->tokens = p->op.found;
        out->n_tokens = p->n_in_store = p->meta.n_tokens;
        p->n_kept = (uint32_t)p->meta.n_tokens;
        p->meta.created_ms = p->meta.created_ms ? p->meta.created_ms : store_now_ms();
        status = check_found(e, out, found_model, err);
    }
    if (status) {
        give_back(e, out);
    }
    return status;
}

/* A sequence of tokens[n_tokens], with that persist. Under the lock. */
static perch_status enter(perch_engine *e, const perch_sequence_options *options, persist *p, const void *tokens,
                          size_t n_tokens, perch_sequence_id *out, perch_error *err) {
    sequence *s;
    perch_status status = sequence_create(e, options ? options->cache_namespace : 0, n_tokens, &s, err);
    if (status) {
        return status;
    }
    s->n_tokens = (uint32_t)n_tokens;
    if (options && options->hints && (status = sequence_hint(e, s, options->hints, err))) {
        sequence_free(e, s);
        return status;
    }
    if (n_tokens) {
        memcpy(s->tokens, tokens, n_tokens * sizeof *s->tokens);
    }
    s->persist = p;
    *out = s->id;
    return PERCH_OK;
}

static perch_status open_key(perch_engine *e, const perch_sequence_options *options, perch_sequence_id *out,
                             perch_error *err) {
    opened o = {NULL, NULL, 0};
    perch_status status = take_key(e, options, &o, err);
    if (status) {
        return status;
    }
    pthread_mutex_lock(&e->lock);
    status = enter(e, options, o.p, o.tokens, (size_t)o.n_tokens, out, err);
    pthread_mutex_unlock(&e->lock);
    if (status) {
        give_back(e, &o);
    } else {
        free(o.tokens);
    }
    return status;
}

perch_status perch_sequence_open(perch_engine *e, perch_sequence_id *out, perch_error *err) {
    return perch_sequence_open_with(e, NULL, out, err);
}

perch_status perch_sequence_open_with(perch_engine *e, const perch_sequence_options *options, perch_sequence_id *out,
                                      perch_error *err) {
    if (!e || !out) {
        return err_set(err, PERCH_E_INVALID, "perch_sequence_open_with: an argument is NULL");
    }
    *out = 0;
    perch_status status = options ? check_options(options, err) : PERCH_OK;
    if (status) {
        return status;
    }
    lock_in(e);
    if (options && options->key) {
        pthread_mutex_unlock(&e->lock);
        status = open_key(e, options, out, err);
        pthread_mutex_lock(&e->lock);
    } else {
        sequence *s;
        status = sequence_open(e, options ? options->cache_namespace : 0, 0, options ? options->flags : 0, &s, err);
        if (!status && options && options->hints && (status = sequence_hint(e, s, options->hints, err))) {
            sequence_free(e, s);
        }
        *out = status ? 0 : s->id;
    }
    unlock_out(e);
    return status;
}

/* --------------------------------------------------------------------- by name -- */

perch_status perch_sequence_key(perch_engine *e, perch_sequence_id id, char *key, size_t cap, perch_error *err) {
    sequence *s;
    if (!e || !key) {
        return err_set(err, PERCH_E_INVALID, "perch_sequence_key: an argument is NULL");
    }
    pthread_mutex_lock(&e->lock);
    perch_status status = sequence_get(e, id, false, &s, err);
    if (!status && !s->persist) {
        status = err_set(err, PERCH_E_NOT_FOUND, "sequence %llu was opened without a key", (unsigned long long)id);
    }
    size_t n = status ? 0 : strlen(s->persist->key) + 1;
    if (n > cap) {
        status = err_set(err, PERCH_E_BUFFER, "the key takes %zu bytes, the buffer has %zu", n, cap);
    } else if (n) {
        memcpy(key, s->persist->key, n);
    }
    pthread_mutex_unlock(&e->lock);
    return status;
}

perch_status perch_sequence_sync(perch_engine *e, perch_sequence_id id, perch_error *err) {
    sequence *s;
    if (!e) {
        return err_set(err, PERCH_E_INVALID, "perch_sequence_sync: no engine");
    }
    pthread_mutex_lock(&e->lock);
    perch_status status = sequence_get(e, id, true, &s, err);
    if (!status) {
        status = persist_sync(e, s, err);
    }
    pthread_mutex_unlock(&e->lock);
    return status;
}

/* An op of a host's, from beginning to end. */
static perch_status call(perch_engine *e, store_op *op, perch_error *err) {
    lock_in(e);
    pthread_mutex_unlock(&e->lock);
    perch_status status = store_call(e->store, op, err);
    pthread_mutex_lock(&e->lock);
    unlock_out(e);
    return status;
}

perch_status perch_sequence_remove(perch_engine *e, const char *key, perch_error *err) {
    if (!e) {
        return err_set(err, PERCH_E_INVALID, "perch_sequence_remove: no engine");
    }
    perch_status status = store_check_key(key, err);
    store_op op = {.kind = STORE_REMOVE, .key = key};
    return status ? status : call(e, &op, err);
}

perch_status perch_sequence_list(perch_engine *e, const char *after, perch_sequence_entry *entries, size_t cap,
                                 size_t entry_bytes, size_t *n, perch_error *err) {
    if (!e || !n || (cap && !entries) || entry_bytes != sizeof *entries) {
        return err_set(err, PERCH_E_INVALID,
                       "perch_sequence_list: engine, entries, n and the size of an entry must be given");
    }
    *n = 0;
    perch_status status = after ? store_check_key(after, err) : PERCH_OK;
    if (status || !cap) {
        return status;
    }
    memset(entries, 0, cap * sizeof *entries);
    store_list page = {entries, cap, 0};
    store_op op = {.kind = STORE_LIST, .key = after ? after : "", .list = &page};
    status = call(e, &op, err);
    *n = status ? 0 : page.n;
    return status;
}

/* ---------------------------------------------------------------- as bytes -- */

static perch_status export_to(const perch_engine *e, const sequence *s, void *bytes, size_t cap, size_t *n_bytes,
                              perch_error *err) {
    const persist *p = s->persist;
    uint64_t now_ms = store_now_ms();
    const record r = {.model = e->model_text,
                      .model_bytes = strlen(e->model_text),
                      .n_turns = p ? p->meta.n_turns : 0,
                      .created_ms = p ? p->meta.created_ms : now_ms,
                      .touched_ms = now_ms,
                      .tokens = s->tokens,
                      .n_tokens = s->n_tokens,
                      .key = p ? p->key : NULL,
                      .key_bytes = p ? strlen(p->key) : 0};
    *n_bytes = record_bytes(&r);
    if (*n_bytes > cap) {
        return err_set(err, PERCH_E_BUFFER, "the export takes %zu bytes, the buffer has %zu", *n_bytes, cap);
    }
    record_write(&r, bytes);
    return PERCH_OK;
}

perch_status perch_sequence_export(perch_engine *e, perch_sequence_id id, void *bytes, size_t cap, size_t *n_bytes,
                                   perch_error *err) {
    sequence *s;
    if (!e || !n_bytes || (cap && !bytes)) {
        return err_set(err, PERCH_E_INVALID, "perch_sequence_export: an argument is NULL");
    }
    pthread_mutex_lock(&e->lock);
    perch_status status = sequence_get(e, id, true, &s, err);
    if (!status) {
        status = export_to(e, s, bytes, cap, n_bytes, err);
    }
    pthread_mutex_unlock(&e->lock);
    return status;
}

/* Whether what was read fits this engine; *tokens gets a copy that is aligned. */
static perch_status check_record(const perch_engine *e, const record *r, int32_t **tokens, perch_error *err) {
    char of[STORE_MODEL_CAP];
    if (r->model_bytes >= sizeof of) {
        return err_set(err, PERCH_E_FORMAT, "the exported sequence: its MODEL section is too long");
    }
    memcpy(of, r->model, r->model_bytes);
    of[r->model_bytes] = 0;
    perch_status status = fingerprint_check(e, of, err);
    if (status) {
        return status;
    }
    if (r->n_tokens > e->session_len) {
        return err_set(err, PERCH_E_TOO_LONG, "the exported sequence has %zu tokens, session_len is %u", r->n_tokens,
                       e->session_len);
    }
    *tokens = malloc(r->n_tokens * sizeof **tokens + 1);
    if (!*tokens) {
        return err_nomem(err, "a sequence's tokens");
    }
    memcpy(*tokens, r->tokens, r->n_tokens * sizeof **tokens);
    status = check_tokens(e, *tokens, r->n_tokens, err);
    return status ? err_prefix(err, PERCH_E_FORMAT, "the exported sequence") : PERCH_OK;
}

/* The persist of a sequence that comes by import, NULL where the store is to know nothing of it. Without the lock. */
static perch_status import_persist(perch_engine *e, const perch_sequence_options *options, opened *o,
                                   perch_error *err) {
    if (!options || !options->key) {
        pthread_mutex_lock(&e->lock);
        perch_status status = persist_create_unnamed(e, options ? options->flags : 0, &o->p, err);
        pthread_mutex_unlock(&e->lock);
        return status;
    }
    perch_status status = take_key(e, options, o, err);
    if (!status && (o->n_tokens || o->p->meta.n_turns)) {
        status = err_set(err, PERCH_E_INVALID, "key: the store has a sequence '%s' already", options->key);
        give_back(e, o);
    }
    return status;
}

static perch_status import_record(perch_engine *e, const record *r, const perch_sequence_options *options,
                                  perch_sequence_id *out, perch_error *err) {
    opened o = {NULL, NULL, 0};
    int32_t *tokens = NULL;
    perch_status status = check_record(e, r, &tokens, err);
    if (!status) {
        status = import_persist(e, options, &o, err);
    }
    if (!status) {
        pthread_mutex_lock(&e->lock);
        status = enter(e, options, o.p, tokens, r->n_tokens, out, err);
        if (!status && o.p) {
            o.p->meta.n_turns = r->n_turns;
            o.p->meta.created_ms = r->created_ms;
        }
        pthread_mutex_unlock(&e->lock);
        if (status && o.p) {
            give_back(e, &o);
        } else {
            free(o.tokens);
        }
    }
    free(tokens);
    return status;
}

perch_status perch_sequence_import(perch_engine *e, const void *bytes, size_t n_bytes,
                                   const perch_sequence_options *options, perch_sequence_id *out, perch_error *err) {
    record r;
    if (!e || !bytes || !out) {
        return err_set(err, PERCH_E_INVALID, "perch_sequence_import: an argument is NULL");
    }
    *out = 0;
    perch_status status = options ? check_options(options, err) : PERCH_OK;
    if (!status && options && options->flags & PERCH_SEQUENCE_EXISTING) {
        status = err_set(err, PERCH_E_INVALID, "flags: PERCH_SEQUENCE_EXISTING has no meaning for an import");
    }
    if (status || (status = record_read(bytes, n_bytes, &r, err))) {
        return status;
    }
    lock_in(e);
    pthread_mutex_unlock(&e->lock);
    status = import_record(e, &r, options, out, err);
    pthread_mutex_lock(&e->lock);
    unlock_out(e);
    return status;
}
