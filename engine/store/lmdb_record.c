/* lmdb_record: sequences as keys and values of LMDB. See lmdb_store.h. */
#include "engine/store/lmdb_store.h"

#include <endian.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* Two numbers as a key whose bytes order as they do. */
typedef struct number_key {
    uint64_t first, second;
} number_key;

static MDB_val named(const char *name) { return (MDB_val){strlen(name), (void *)(uintptr_t)name}; }

static number_key numbers(uint64_t first, uint64_t second) { return (number_key){htobe64(first), htobe64(second)}; }

/* ------------------------------------------------------------------- records -- */

int lmdb_record_read(const MDB_val *key, const MDB_val *value, lmdb_record *out) {
    size_t n = value->mv_size - sizeof out->fixed;
    if (value->mv_size < sizeof out->fixed || n >= sizeof out->model || key->mv_size >= PERCH_KEY_CAP) {
        return MDB_CORRUPTED;
    }
    memcpy(&out->fixed, value->mv_data, sizeof out->fixed);
    memcpy(out->model, (const char *)value->mv_data + sizeof out->fixed, n);
    out->model[n] = 0;
    return out->fixed.n_tokens > UINT32_MAX ? MDB_CORRUPTED : 0;
}

int lmdb_record_get(lmdb *m, const char *name, lmdb_record *out) {
    MDB_val key = named(name), value;
    int rc = mdb_get(m->txn, m->meta, &key, &value);
    return rc ? rc : lmdb_record_read(&key, &value, out);
}

int lmdb_record_put(lmdb *m, const char *name, const lmdb_record *r) {
    char bytes[sizeof *r];
    size_t n = strlen(r->model);
    MDB_val key = named(name), value = {sizeof r->fixed + n, bytes};
    memcpy(bytes, &r->fixed, sizeof r->fixed);
    memcpy(bytes + sizeof r->fixed, r->model, n);
    return mdb_put(m->txn, m->meta, &key, &value, 0);
}

int lmdb_record_create(lmdb *m, const char *name, lmdb_record *out) {
    uint64_t now_ms = store_now_ms();
    memset(out, 0, sizeof *out);
    out->fixed.serial = ++m->now.serial;
    out->fixed.created_ms = out->fixed.touched_ms = now_ms;
    out->fixed.hash = store_hash(NULL, 0);
    m->now.n_bytes += store_bytes(0);
    return lmdb_record_put(m, name, out);
}

static int without_not_found(int rc) { return rc == MDB_NOTFOUND ? 0 : rc; }

int lmdb_record_remove(lmdb *m, const char *name, const lmdb_record *r) {
    MDB_val key = named(name);
    m->now.n_bytes -= r->fixed.retired ? 0 : store_bytes(r->fixed.n_tokens);
    int rc = lmdb_tokens_put(m, r, 0, NULL, 0);
    rc = rc ? rc : without_not_found(lmdb_open_del(m, r->fixed.serial));
    rc = rc ? rc : without_not_found(lmdb_index_del(m, m->idle, r->fixed.touched_ms, r->fixed.serial));
    rc = rc ? rc : without_not_found(lmdb_index_del(m, m->marks, r->fixed.touched_ms, r->fixed.serial));
    return rc ? rc : mdb_del(m->txn, m->meta, &key, NULL);
}

/* -------------------------------------------------------------------- tokens -- */

/* Whether the cursor's key is of this sequence; where its value begins, and its tokens. */
static bool is_chunk(const MDB_val *key, const MDB_val *value, uint64_t serial, uint64_t *first, uint64_t *n) {
    number_key k;
    if (key->mv_size != sizeof k) {
        return false;
    }
    memcpy(&k, key->mv_data, sizeof k);
    *first = be64toh(k.second);
    *n = value->mv_size / sizeof(int32_t);
    return be64toh(k.first) == serial;
}

int lmdb_tokens_get(lmdb *m, const lmdb_record *r, int32_t **out) {
    MDB_cursor *cursor;
    number_key k = numbers(r->fixed.serial, 0);
    MDB_val key = {sizeof k, &k}, value;
    uint64_t n_found = 0, first, n;
    int32_t *tokens = malloc(r->fixed.n_tokens * sizeof *tokens + 1);
    int rc = tokens ? mdb_cursor_open(m->txn, m->tokens, &cursor) : ENOMEM;
    if (rc) {
        free(tokens);
        return rc;
    }
    rc = mdb_cursor_get(cursor, &key, &value, MDB_SET_RANGE);
    while (!rc && is_chunk(&key, &value, r->fixed.serial, &first, &n)) {
        if (first != n_found || n > r->fixed.n_tokens - n_found) {
            rc = MDB_CORRUPTED;
            break;
        }
        memcpy(tokens + n_found, value.mv_data, n * sizeof *tokens);
        n_found += n;
        rc = mdb_cursor_get(cursor, &key, &value, MDB_NEXT);
    }
    mdb_cursor_close(cursor);
    rc = without_not_found(rc);
    rc = rc || n_found == r->fixed.n_tokens ? rc : MDB_CORRUPTED;
    if (rc) {
        free(tokens);
    } else {
        *out = tokens;
    }
    return rc;
}

/* The value that holds position keep - 1 and goes on behind it ends there. */
static int cut_chunk(lmdb *m, uint64_t serial, uint64_t first, const MDB_val *value, uint64_t keep) {
    number_key k = numbers(serial, first);
    size_t n_bytes = (size_t)(keep - first) * sizeof(int32_t);
    void *kept = malloc(n_bytes); /* what LMDB lent may move when it is written */
    if (!kept) {
        return ENOMEM;
    }
    memcpy(kept, value->mv_data, n_bytes);
    MDB_val key = {sizeof k, &k}, cut = {n_bytes, kept};
    int rc = mdb_put(m->txn, m->tokens, &key, &cut, 0);
    free(kept);
    return rc;
}

/* Deletes from the end what lies behind `keep`. */
static int truncate_to(lmdb *m, uint64_t serial, uint64_t keep) {
    MDB_cursor *cursor;
    MDB_val key, value;
    uint64_t first, n;
    int rc = mdb_cursor_open(m->txn, m->tokens, &cursor);
    if (rc) {
        return rc;
    }
    for (;;) {
        number_key behind = numbers(serial + 1, 0);
        key = (MDB_val){sizeof behind, &behind};
        rc = mdb_cursor_get(cursor, &key, &value, MDB_SET_RANGE);
        rc = mdb_cursor_get(cursor, &key, &value, rc ? MDB_LAST : MDB_PREV);
        if (rc || !is_chunk(&key, &value, serial, &first, &n) || first + n <= keep) {
            break;
        }
        if (first < keep) {
            rc = cut_chunk(m, serial, first, &value, keep);
            break;
        }
        rc = mdb_cursor_del(cursor, 0);
        if (rc) {
            break;
        }
    }
    mdb_cursor_close(cursor);
    return without_not_found(rc);
}

int lmdb_tokens_put(lmdb *m, const lmdb_record *r, uint64_t keep, const int32_t *tokens, uint64_t n) {
    int rc = keep < r->fixed.n_tokens ? truncate_to(m, r->fixed.serial, keep) : 0;
    if (!rc && n > keep) {
        number_key k = numbers(r->fixed.serial, keep);
        MDB_val key = {sizeof k, &k};
        MDB_val value = {(size_t)(n - keep) * sizeof *tokens, (void *)(uintptr_t)(tokens + keep)};
        rc = mdb_put(m->txn, m->tokens, &key, &value, 0);
    }
    return rc;
}

/* ------------------------------------------------------------------- indexes -- */

int lmdb_open_put(lmdb *m, uint64_t serial, uint64_t fence, const char *name) {
    char bytes[sizeof fence + PERCH_KEY_CAP];
    number_key k = numbers(serial, 0);
    size_t n = strlen(name);
    MDB_val key = {sizeof k, &k}, value = {sizeof fence + n, bytes};
    memcpy(bytes, &fence, sizeof fence);
    memcpy(bytes + sizeof fence, name, n);
    return mdb_put(m->txn, m->open, &key, &value, 0);
}

int lmdb_open_del(lmdb *m, uint64_t serial) {
    number_key k = numbers(serial, 0);
    MDB_val key = {sizeof k, &k};
    return mdb_del(m->txn, m->open, &key, NULL);
}

int lmdb_open_get(lmdb *m, uint64_t serial, uint64_t *fence) {
    number_key k = numbers(serial, 0);
    MDB_val key = {sizeof k, &k}, value;
    *fence = 0;
    int rc = mdb_get(m->txn, m->open, &key, &value);
    if (!rc && value.mv_size < sizeof *fence) {
        return MDB_CORRUPTED;
    }
    if (!rc) {
        memcpy(fence, value.mv_data, sizeof *fence);
    }
    return without_not_found(rc);
}

int lmdb_index_put(lmdb *m, MDB_dbi index, uint64_t at_ms, uint64_t serial, const char *name) {
    number_key k = numbers(at_ms, serial);
    MDB_val key = {sizeof k, &k}, value = named(name);
    return mdb_put(m->txn, index, &key, &value, 0);
}

int lmdb_index_del(lmdb *m, MDB_dbi index, uint64_t at_ms, uint64_t serial) {
    number_key k = numbers(at_ms, serial);
    MDB_val key = {sizeof k, &k};
    return mdb_del(m->txn, index, &key, NULL);
}

int lmdb_index_first(lmdb *m, MDB_dbi index, uint64_t *at_ms, char name[PERCH_KEY_CAP]) {
    MDB_cursor *cursor;
    MDB_val key, value;
    number_key k;
    int rc = mdb_cursor_open(m->txn, index, &cursor);
    if (rc) {
        return rc;
    }
    rc = mdb_cursor_get(cursor, &key, &value, MDB_FIRST);
    mdb_cursor_close(cursor);
    if (!rc && (key.mv_size != sizeof k || value.mv_size >= PERCH_KEY_CAP)) {
        rc = MDB_CORRUPTED;
    }
    if (!rc) {
        memcpy(&k, key.mv_data, sizeof k);
        *at_ms = be64toh(k.first);
        memcpy(name, value.mv_data, value.mv_size);
        name[value.mv_size] = 0;
    }
    return rc;
}
