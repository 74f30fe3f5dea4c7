/* lmdb_store: the records of the store in LMDB, and what is done to them within a transaction. See lmdb.c for the tables. */
#ifndef PERCH_ENGINE_STORE_LMDB_STORE_H
#define PERCH_ENGINE_STORE_LMDB_STORE_H

#include "engine/store/store.h"

#include <lmdb.h>

typedef struct lmdb {
    MDB_env *env;
    MDB_txn *txn; /* the one that is running, or NULL */
    MDB_dbi meta, tokens, open, idle, marks, state;
    size_t map_bytes;
    uint64_t n_fences;
    struct lmdb_state {
        uint64_t serial;  /* of the last sequence */
        uint64_t n_bytes; /* of all that are not retired */
    } now, committed;     /* as the running transaction sees it; as it was before */
    uint64_t max_bytes, ttl_ms;
    int lock_fd;
    char path[PERCH_PATH_CAP];
} lmdb;

/* A value of `meta`: the fixed part as it lies here, then the model's text without its 0. */
typedef struct lmdb_record {
    struct lmdb_fixed {
        uint64_t serial;
        uint64_t n_tokens, n_turns, created_ms;
        uint64_t touched_ms; /* its place in `idle` while nobody has it open, in `marks` once it is retired */
        uint64_t hash;
        uint64_t retired;
    } fixed;
    char model[STORE_MODEL_CAP];
} lmdb_record;

/* All of these return LMDB's codes: 0, MDB_NOTFOUND; MDB_CORRUPTED where what is read cannot be. */
int lmdb_record_read(const MDB_val *key, const MDB_val *value, lmdb_record *out);
int lmdb_record_get(lmdb *m, const char *name, lmdb_record *out);
int lmdb_record_put(lmdb *m, const char *name, const lmdb_record *r);
/* A new one, without tokens; in no index yet. */
int lmdb_record_create(lmdb *m, const char *name, lmdb_record *out);
/* With its tokens, and from whichever index it stands in. */
int lmdb_record_remove(lmdb *m, const char *name, const lmdb_record *r);

/* *out: [r->fixed.n_tokens], to be freed. ENOMEM. */
int lmdb_tokens_get(lmdb *m, const lmdb_record *r, int32_t **out);
/* From r's tokens to tokens[n], of which the first `keep` are there. */
int lmdb_tokens_put(lmdb *m, const lmdb_record *r, uint64_t keep, const int32_t *tokens, uint64_t n);

int lmdb_open_put(lmdb *m, uint64_t serial, uint64_t fence, const char *name);
int lmdb_open_del(lmdb *m, uint64_t serial);
/* *fence = 0: nobody has it open. */
int lmdb_open_get(lmdb *m, uint64_t serial, uint64_t *fence);

int lmdb_index_put(lmdb *m, MDB_dbi index, uint64_t at_ms, uint64_t serial, const char *name);
int lmdb_index_del(lmdb *m, MDB_dbi index, uint64_t at_ms, uint64_t serial);
int lmdb_index_first(lmdb *m, MDB_dbi index, uint64_t *at_ms, char name[PERCH_KEY_CAP]);

#endif
