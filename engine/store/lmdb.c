/*
 * lmdb: the store in a folder, by LMDB. A commit is on the disk when it returns, whatever becomes of the process or the machine.
 * One engine at a time has the folder: a lock on the file perch.lock, which ends with the process. What was open when an
 * engine ended is let go of when the next one comes.
 *
 * Tables, all numbers little-endian but in keys, where they are big-endian so that their order is that of the bytes:
 *   meta    name                  → record
 *   tokens  serial, first position → token IDs: one value for each put
 *   open    serial                → fence, name      those that somebody has open,
 *   idle    touched_ms, serial    → name             those that nobody has,
 *   marks   retired_ms, serial    → name             and those that were retired: each name stands in one of the three
 *   state   "format", "serial", "bytes"
 */
#include "engine/store/lmdb_store.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#define FORMAT 1u
#define FIRST_MAP_BYTES ((size_t)64 << 20)
#define RETIRE_AT_ONCE 64u

/* -------------------------------------------------------------- transactions -- */

static perch_status lmdb_error(const lmdb *m, int rc, perch_error *err) {
    return err_set(err, PERCH_E_STORE, "LMDB in %s: %s", m->path, mdb_strerror(rc));
}

typedef int (*body_fn)(lmdb *m, void *arg);

/* Runs body in a transaction, again with twice the room if that was too little. The room is of addresses, not of the disk. */
static int transact(lmdb *m, body_fn body, void *arg) {
    for (;;) {
        m->now = m->committed;
        int rc = mdb_txn_begin(m->env, NULL, 0, &m->txn);
        if (!rc && !(rc = body(m, arg))) {
            rc = mdb_txn_commit(m->txn);
            m->txn = NULL;
        }
        if (m->txn) {
            mdb_txn_abort(m->txn);
            m->txn = NULL;
        }
        if (rc == MDB_MAP_FULL && !mdb_env_set_mapsize(m->env, m->map_bytes * 2)) {
            m->map_bytes *= 2;
            continue;
        }
        if (!rc) {
            m->committed = m->now;
        }
        return rc;
    }
}

/* ----------------------------------------------------------------- open, close -- */

static int get_number(lmdb *m, const char *name, uint64_t *out) {
    MDB_val key = {strlen(name), (void *)(uintptr_t)name}, value;
    int rc = mdb_get(m->txn, m->state, &key, &value);
    if (!rc && value.mv_size == sizeof *out) {
        memcpy(out, value.mv_data, sizeof *out);
    }
    return rc == MDB_NOTFOUND ? 0 : rc;
}

static int put_number(lmdb *m, const char *name, uint64_t number) {
    MDB_val key = {strlen(name), (void *)(uintptr_t)name}, value = {sizeof number, &number};
    return mdb_put(m->txn, m->state, &key, &value, 0);
}

static int put_state(lmdb *m) {
    int rc = put_number(m, "serial", m->now.serial);
    return rc ? rc : put_number(m, "bytes", m->now.n_bytes);
}

/* Whoever was open when the last engine ended is idle now. */
static int recover(lmdb *m) {
    MDB_cursor *cursor;
    MDB_val key, value;
    int rc = mdb_cursor_open(m->txn, m->open, &cursor);
    if (rc) {
        return rc;
    }
    while (!rc && !(rc = mdb_cursor_get(cursor, &key, &value, MDB_FIRST))) {
        char name[PERCH_KEY_CAP];
        lmdb_record r;
        size_t n = value.mv_size - sizeof(uint64_t);
        if (value.mv_size <= sizeof(uint64_t) || n >= sizeof name) {
            rc = MDB_CORRUPTED;
            break;
        }
        memcpy(name, (char *)value.mv_data + sizeof(uint64_t), n);
        name[n] = 0;
        rc = lmdb_record_get(m, name, &r);
        rc = rc == MDB_NOTFOUND ? MDB_CORRUPTED : rc;
        rc = rc ? rc : lmdb_index_put(m, m->idle, r.fixed.touched_ms, r.fixed.serial, name);
        rc = rc ? rc : mdb_cursor_del(cursor, 0);
    }
    mdb_cursor_close(cursor);
    return rc == MDB_NOTFOUND ? 0 : rc;
}

static int prepare(lmdb *m, void *arg) {
    uint64_t *format = arg;
    const struct {
        const char *name;
        MDB_dbi *dbi;
    } tables[] = {{"meta", &m->meta}, {"tokens", &m->tokens}, {"open", &m->open},
                  {"idle", &m->idle}, {"marks", &m->marks},   {"state", &m->state}};
    int rc = 0;
    for (size_t i = 0; i < sizeof tables / sizeof *tables && !rc; i++) {
        rc = mdb_dbi_open(m->txn, tables[i].name, MDB_CREATE, tables[i].dbi);
    }
    rc = rc ? rc : get_number(m, "format", format);
    if (rc || *format > FORMAT) {
        return rc;
    }
    rc = get_number(m, "serial", &m->now.serial);
    rc = rc ? rc : get_number(m, "bytes", &m->now.n_bytes);
    rc = rc ? rc : put_number(m, "format", FORMAT);
    return rc ? rc : recover(m);
}

static perch_status lock_folder(lmdb *m, perch_error *err) {
    char name[PERCH_PATH_CAP + 16];
    if (mkdir(m->path, 0700) && errno != EEXIST) {
        return err_set(err, PERCH_E_STORE, "%s: %s", m->path, strerror(errno));
    }
    snprintf(name, sizeof name, "%s/perch.lock", m->path);
    m->lock_fd = open(name, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (m->lock_fd < 0) {
        return err_set(err, PERCH_E_STORE, "%s: %s", name, strerror(errno));
    }
    if (flock(m->lock_fd, LOCK_EX | LOCK_NB)) {
        return err_set(err, PERCH_E_STORE, "%s: %s", m->path,
                       errno == EWOULDBLOCK ? "another engine has this store" : strerror(errno));
    }
    return PERCH_OK;
}

static void lmdb_close(void *state) {
    lmdb *m = state;
    if (m->env) {
        mdb_env_close(m->env);
    }
    if (m->lock_fd >= 0) {
        close(m->lock_fd);
    }
    free(m);
}

static perch_status open_env(lmdb *m, perch_error *err) {
    uint64_t format = FORMAT;
    int rc = mdb_env_create(&m->env);
    if (rc) {
        m->env = NULL;
    }
    rc = rc ? rc : mdb_env_set_maxdbs(m->env, 8);
    rc = rc ? rc : mdb_env_set_mapsize(m->env, m->map_bytes);
    rc = rc ? rc : mdb_env_open(m->env, m->path, MDB_NORDAHEAD, 0600);
    if (!rc) {
        MDB_envinfo info;
        rc = mdb_env_info(m->env, &info); /* the file may be larger already */
        m->map_bytes = rc ? m->map_bytes : info.me_mapsize;
    }
    rc = rc ? rc : transact(m, prepare, &format);
    if (rc) {
        return lmdb_error(m, rc, err);
    }
    return format <= FORMAT ? PERCH_OK
                            : err_set(err, PERCH_E_STORE, "%s: the store's format is %llu, this perch knows 1..%u",
                                      m->path, (unsigned long long)format, FORMAT);
}

static perch_status lmdb_open(const store_config *config, void **out, perch_error *err) {
    lmdb *m = calloc(1, sizeof *m);
    if (!m) {
        return err_nomem(err, "the sequence store");
    }
    m->lock_fd = -1;
    m->map_bytes = FIRST_MAP_BYTES;
    m->max_bytes = config->max_bytes;
    m->ttl_ms = config->ttl_ms;
    snprintf(m->path, sizeof m->path, "%s", config->path);
    perch_status status = lock_folder(m, err);
    if (!status) {
        status = open_env(m, err);
    }
    if (status) {
        lmdb_close(m);
        return status;
    }
    *out = m;
    return PERCH_OK;
}

/* -------------------------------------------------------------------- acquire -- */

typedef struct acquiring {
    store_op *op;
    perch_status status;
} acquiring;

static int acquire(lmdb *m, void *arg) {
    acquiring *a = arg;
    store_op *op = a->op;
    lmdb_record r;
    int rc = lmdb_record_get(m, op->key, &r);
    free(op->found);
    op->found = NULL;
    a->status = PERCH_OK;
    if (!rc && r.fixed.retired) {
        a->status = PERCH_E_RETIRED;
        return 0;
    }
    if (rc == MDB_NOTFOUND && op->existing) {
        a->status = PERCH_E_NOT_FOUND;
        return 0;
    }
    if (rc == MDB_NOTFOUND) {
        rc = lmdb_record_create(m, op->key, &r);
    } else if (!rc) {
        rc = lmdb_index_del(m, m->idle, r.fixed.touched_ms, r.fixed.serial);
        rc = rc == MDB_NOTFOUND ? 0 : rc;
    }
    op->drawn = ++m->n_fences;
    rc = rc ? rc : lmdb_open_put(m, r.fixed.serial, op->drawn, op->key);
    rc = rc ? rc : lmdb_tokens_get(m, &r, &op->found);
    rc = rc ? rc : put_state(m);
    *op->meta = (store_meta){.n_tokens = r.fixed.n_tokens,
                             .n_turns = r.fixed.n_turns,
                             .created_ms = r.fixed.created_ms,
                             .touched_ms = r.fixed.touched_ms,
                             .hash = r.fixed.hash};
    memcpy(op->found_model, r.model, sizeof r.model);
    return rc;
}

static perch_status lmdb_acquire(void *state, store_op *op, perch_error *err) {
    acquiring a = {op, PERCH_OK};
    op->found = NULL;
    int rc = transact(state, acquire, &a);
    if (rc || a.status) {
        free(op->found);
        op->found = NULL;
        op->drawn = 0;
    }
    if (rc == MDB_CORRUPTED) {
        return err_set(err, PERCH_E_FORMAT, "the stored tokens of '%s' are damaged", op->key);
    }
    return rc ? lmdb_error(state, rc, err) : a.status;
}

/* ---------------------------------------------------------------------- write -- */

typedef struct group {
    store_op *const *ops;
    size_t n;
} group;

static int put(lmdb *m, store_op *op, lmdb_record *r) {
    const store_meta *meta = op->meta;
    int rc = lmdb_tokens_put(m, r, op->keep, op->tokens, meta->n_tokens);
    m->now.n_bytes += store_bytes(meta->n_tokens) - store_bytes(r->fixed.n_tokens);
    r->fixed.n_tokens = meta->n_tokens;
    r->fixed.n_turns = meta->n_turns;
    r->fixed.created_ms = meta->created_ms;
    r->fixed.touched_ms = meta->touched_ms;
    r->fixed.hash = meta->hash;
    snprintf(r->model, sizeof r->model, "%s", meta->model);
    return rc ? rc : lmdb_record_put(m, op->key, r);
}

static int release(lmdb *m, const store_op *op, lmdb_record *r) {
    r->fixed.touched_ms = store_now_ms();
    int rc = lmdb_open_del(m, r->fixed.serial);
    rc = rc ? rc : lmdb_index_put(m, m->idle, r->fixed.touched_ms, r->fixed.serial, op->key);
    return rc ? rc : lmdb_record_put(m, op->key, r);
}

/* What the op finds, and whether it may: op->status. */
static int look_up(lmdb *m, store_op *op, lmdb_record *r) {
    uint64_t fence = 0;
    int rc = lmdb_record_get(m, op->key, r);
    bool there = !rc;
    if (rc && rc != MDB_NOTFOUND) {
        return rc;
    }
    rc = there ? lmdb_open_get(m, r->fixed.serial, &fence) : 0;
    if (op->kind == STORE_PUT && !op->fence) {
        op->status = there ? PERCH_E_LEASED : PERCH_OK;
    } else if (op->kind == STORE_REMOVE && !op->fence) {
        op->status = !there ? PERCH_E_NOT_FOUND : fence ? PERCH_E_BUSY : PERCH_OK;
    } else {
        op->status = !there || fence != op->fence ? PERCH_E_LEASED : PERCH_OK;
    }
    if (!op->status && op->kind == STORE_PUT && op->keep > (there ? r->fixed.n_tokens : 0)) {
        op->status = PERCH_E_INVALID;
    }
    return rc;
}

static int write_one(lmdb *m, store_op *op) {
    lmdb_record r;
    int rc = look_up(m, op, &r);
    if (rc || op->status) {
        return rc;
    }
    if (op->kind == STORE_REMOVE) {
        return lmdb_record_remove(m, op->key, &r);
    }
    if (op->kind == STORE_PUT && !op->fence) {
        op->drawn = ++m->n_fences;
        rc = lmdb_record_create(m, op->key, &r);
        rc = rc ? rc : lmdb_open_put(m, r.fixed.serial, op->drawn, op->key);
    }
    if (!rc && op->kind == STORE_PUT) {
        rc = put(m, op, &r);
    }
    return rc || (op->kind == STORE_PUT && !op->release) ? rc : release(m, op, &r);
}

static int write_group(lmdb *m, void *arg) {
    const group *g = arg;
    int rc = 0;
    for (size_t i = 0; i < g->n && !rc; i++) {
        rc = write_one(m, g->ops[i]);
    }
    return rc ? rc : put_state(m);
}

static void lmdb_write(void *state, store_op *const *ops, size_t n, perch_error *err) {
    group g = {ops, n};
    int rc = transact(state, write_group, &g);
    for (size_t i = 0; i < n && rc; i++) {
        ops[i]->status = lmdb_error(state, rc, err);
    }
}

/* ----------------------------------------------------------------- list, tend -- */

static perch_status lmdb_list(void *state, store_op *op, perch_error *err) {
    lmdb *m = state;
    MDB_cursor *cursor = NULL;
    MDB_val key = {strlen(op->key), (void *)(uintptr_t)op->key}, value;
    store_list *page = op->list;
    page->n = 0;
    int rc = mdb_txn_begin(m->env, NULL, MDB_RDONLY, &m->txn);
    if (rc) {
        m->txn = NULL;
        return lmdb_error(m, rc, err);
    }
    rc = mdb_cursor_open(m->txn, m->meta, &cursor);
    cursor = rc ? NULL : cursor;
    rc = rc ? rc : mdb_cursor_get(cursor, &key, &value, key.mv_size ? MDB_SET_RANGE : MDB_FIRST);
    for (; !rc && page->n < page->cap; rc = mdb_cursor_get(cursor, &key, &value, MDB_NEXT)) {
        perch_sequence_entry *out = &page->entries[page->n];
        lmdb_record r;
        uint64_t fence;
        if ((rc = lmdb_record_read(&key, &value, &r)) || (rc = lmdb_open_get(m, r.fixed.serial, &fence))) {
            break;
        }
        memcpy(out->key, key.mv_data, key.mv_size);
        out->key[key.mv_size] = 0;
        if (!r.fixed.retired && strcmp(out->key, op->key) != 0) {
            out->n_tokens = r.fixed.n_tokens;
            out->n_turns = r.fixed.n_turns;
            out->created_ms = r.fixed.created_ms;
            out->touched_ms = r.fixed.touched_ms;
            out->is_open = fence != 0;
            page->n++;
        }
    }
    if (cursor) {
        mdb_cursor_close(cursor);
    }
    mdb_txn_abort(m->txn);
    m->txn = NULL;
    return rc && rc != MDB_NOTFOUND ? lmdb_error(m, rc, err) : PERCH_OK;
}

typedef struct tending {
    uint64_t now_ms, n_retired;
} tending;

/* The first of an index, if it is from before `until`. */
static int first_before(lmdb *m, MDB_dbi index, uint64_t until, char name[PERCH_KEY_CAP], lmdb_record *r) {
    uint64_t at_ms;
    int rc = lmdb_index_first(m, index, &at_ms, name);
    if (rc) {
        return rc;
    }
    return at_ms >= until ? MDB_NOTFOUND : lmdb_record_get(m, name, r);
}

static int retire(lmdb *m, const char *name, lmdb_record *r, uint64_t now_ms) {
    int rc = lmdb_index_del(m, m->idle, r->fixed.touched_ms, r->fixed.serial);
    rc = rc ? rc : lmdb_tokens_put(m, r, 0, NULL, 0);
    m->now.n_bytes -= store_bytes(r->fixed.n_tokens);
    r->fixed.n_tokens = 0;
    r->fixed.retired = 1;
    r->fixed.touched_ms = now_ms;
    r->model[0] = 0;
    rc = rc ? rc : lmdb_record_put(m, name, r);
    return rc ? rc : lmdb_index_put(m, m->marks, now_ms, r->fixed.serial, name);
}

static int tend(lmdb *m, void *arg) {
    tending *t = arg;
    char name[PERCH_KEY_CAP];
    lmdb_record r;
    int rc = 0;
    t->n_retired = 0;
    while (!rc && t->n_retired < RETIRE_AT_ONCE) {
        bool over = m->max_bytes && m->now.n_bytes > m->max_bytes;
        uint64_t until = over ? UINT64_MAX : m->ttl_ms && t->now_ms > m->ttl_ms ? t->now_ms - m->ttl_ms + 1 : 0;
        rc = first_before(m, m->idle, until, name, &r);
        if (!rc && !(rc = retire(m, name, &r, t->now_ms))) {
            t->n_retired++;
        }
    }
    uint64_t until = t->now_ms > STORE_MARK_MS ? t->now_ms - STORE_MARK_MS + 1 : 0;
    rc = rc == MDB_NOTFOUND ? 0 : rc;
    for (unsigned i = 0; !rc && i < RETIRE_AT_ONCE; i++) {
        rc = first_before(m, m->marks, until, name, &r);
        rc = rc ? rc : lmdb_record_remove(m, name, &r);
    }
    rc = rc == MDB_NOTFOUND ? 0 : rc;
    return rc || !t->n_retired ? rc : put_state(m);
}

static perch_status lmdb_tend(void *state, uint64_t now_ms, uint64_t *n_retired, perch_error *err) {
    tending t = {now_ms, 0};
    int rc = transact(state, tend, &t);
    *n_retired += rc ? 0 : t.n_retired;
    return rc ? lmdb_error(state, rc, err) : PERCH_OK;
}

const store_backend store_lmdb = {
    .durable = true,
    .open = lmdb_open,
    .close = lmdb_close,
    .acquire = lmdb_acquire,
    .write = lmdb_write,
    .list = lmdb_list,
    .tend = lmdb_tend,
};
