/*
 * Every call of LMDB fails in turn, in opening a store, writing, opening, listing, removing and retiring sequences, with errors
 * of the disk, of memory and of the map. Each time a status comes back, nothing leaks, and what was committed before is
 * there in the next store. And what lies on the disk may have been damaged.
 */
#include "engine/store/testing.h"

#include <errno.h>
#include <lmdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ------------------------------------------------------------- the interposition -- */

static _Atomic long countdown; /* the call that makes it 0 fails */
static _Atomic int fails_with;
static _Atomic long n_failed, n_env, n_txn, n_cursor;

static int failing(void) {
    if (countdown > 0 && --countdown == 0) {
        n_failed++;
        return fails_with;
    }
    return 0;
}

/* Calls that only fail. */
#define WRAP(name, parameters, arguments)                                                                              \
    int __real_##name parameters;                                                                                      \
    int __wrap_##name parameters;                                                                                      \
    int __wrap_##name parameters {                                                                                     \
        int rc = failing();                                                                                            \
        return rc ? rc : __real_##name arguments;                                                                      \
    }

WRAP(mdb_env_set_maxdbs, (MDB_env * env, MDB_dbi n), (env, n))
WRAP(mdb_env_set_mapsize, (MDB_env * env, size_t n), (env, n))
WRAP(mdb_env_open, (MDB_env * env, const char *path, unsigned flags, mdb_mode_t mode), (env, path, flags, mode))
WRAP(mdb_env_info, (MDB_env * env, MDB_envinfo *info), (env, info))
WRAP(mdb_dbi_open, (MDB_txn * txn, const char *name, unsigned flags, MDB_dbi *dbi), (txn, name, flags, dbi))
WRAP(mdb_get, (MDB_txn * txn, MDB_dbi dbi, MDB_val *key, MDB_val *value), (txn, dbi, key, value))
WRAP(mdb_put, (MDB_txn * txn, MDB_dbi dbi, MDB_val *key, MDB_val *value, unsigned flags), (txn, dbi, key, value, flags))
WRAP(mdb_del, (MDB_txn * txn, MDB_dbi dbi, MDB_val *key, MDB_val *value), (txn, dbi, key, value))
WRAP(mdb_cursor_get, (MDB_cursor * cursor, MDB_val *key, MDB_val *value, MDB_cursor_op op), (cursor, key, value, op))
WRAP(mdb_cursor_del, (MDB_cursor * cursor, unsigned flags), (cursor, flags))

/* Calls that give and take something, which has to be even in the end. */
int __real_mdb_env_create(MDB_env **env);
int __wrap_mdb_env_create(MDB_env **env);
int __wrap_mdb_env_create(MDB_env **env) {
    int rc = failing();
    rc = rc ? rc : __real_mdb_env_create(env);
    n_env += !rc;
    return rc;
}

void __real_mdb_env_close(MDB_env *env);
void __wrap_mdb_env_close(MDB_env *env);
void __wrap_mdb_env_close(MDB_env *env) {
    n_env--;
    __real_mdb_env_close(env);
}

int __real_mdb_txn_begin(MDB_env *env, MDB_txn *parent, unsigned flags, MDB_txn **txn);
int __wrap_mdb_txn_begin(MDB_env *env, MDB_txn *parent, unsigned flags, MDB_txn **txn);
int __wrap_mdb_txn_begin(MDB_env *env, MDB_txn *parent, unsigned flags, MDB_txn **txn) {
    int rc = failing();
    rc = rc ? rc : __real_mdb_txn_begin(env, parent, flags, txn);
    n_txn += !rc;
    return rc;
}

void __real_mdb_txn_abort(MDB_txn *txn);
void __wrap_mdb_txn_abort(MDB_txn *txn);
void __wrap_mdb_txn_abort(MDB_txn *txn) {
    n_txn--;
    __real_mdb_txn_abort(txn);
}

/* A commit that fails has ended the transaction all the same. */
int __real_mdb_txn_commit(MDB_txn *txn);
int __wrap_mdb_txn_commit(MDB_txn *txn);
int __wrap_mdb_txn_commit(MDB_txn *txn) {
    int rc = failing();
    n_txn--;
    if (rc) {
        __real_mdb_txn_abort(txn);
    }
    return rc ? rc : __real_mdb_txn_commit(txn);
}

int __real_mdb_cursor_open(MDB_txn *txn, MDB_dbi dbi, MDB_cursor **cursor);
int __wrap_mdb_cursor_open(MDB_txn *txn, MDB_dbi dbi, MDB_cursor **cursor);
int __wrap_mdb_cursor_open(MDB_txn *txn, MDB_dbi dbi, MDB_cursor **cursor) {
    int rc = failing();
    rc = rc ? rc : __real_mdb_cursor_open(txn, dbi, cursor);
    n_cursor += !rc;
    return rc;
}

void __real_mdb_cursor_close(MDB_cursor *cursor);
void __wrap_mdb_cursor_close(MDB_cursor *cursor);
void __wrap_mdb_cursor_close(MDB_cursor *cursor) {
    n_cursor--;
    __real_mdb_cursor_close(cursor);
}

/* ------------------------------------------------------------------ the scenario -- */

static bool expected(perch_status status) {
    return status == PERCH_OK || status == PERCH_E_STORE || status == PERCH_E_FORMAT || status == PERCH_E_NOMEM;
}

/* A put; what is to be found afterwards: `now`, or, where it failed, what was there before. */
static void put(store *s, testing_sequence *now, testing_sequence *before, uint64_t keep, uint64_t n) {
    perch_error err = {PERCH_OK, ""};
    testing_sequence next = *now;
    next.n_tokens = keep;
    testing_grow(&next, n, &(test_rng){next.n_tokens * 31 + n});
    perch_status status = testing_put(s, &next, keep, false, &err);
    CHECK_MSG(expected(status) && (!status || err.message[0]), "a put: %s, \"%s\"", perch_status_name(status),
              err.message);
    if (!status) {
        *now = *before = next;
    }
}

/* What a host does with one folder; everything may fail, and is gone on with. */
static void scenario(const store_config *config, testing_sequence *kept) {
    perch_error err = {PERCH_OK, ""};
    store *s = NULL;
    static testing_sequence q, other;
    perch_status status = store_open(config, &s, &err);
    CHECK_MSG(expected(status), "store_open: %s", perch_status_name(status));
    if (status) {
        CU_ASSERT_PTR_NULL(s);
        return;
    }
    status = testing_take(s, &q, "kept", false, &err);
    CHECK_MSG(expected(status), "taking: %s, %s", perch_status_name(status), err.message);
    if (!status) {
        put(s, &q, kept, q.n_tokens, 30);
        put(s, &q, kept, q.n_tokens, 3);
        put(s, &q, kept, q.n_tokens / 2 + 1, 5);
        testing_simple(s, STORE_RELEASE, "kept", q.fence, &err);
    }
    memset(&other, 0, sizeof other);
    if (!testing_take(s, &other, "other", false, &err)) {
        put(s, &other, &other, other.n_tokens, 20);
        testing_simple(s, STORE_REMOVE, "other", other.fence, &err);
    }
    perch_sequence_entry page[2];
    store_list list = {page, 2, 0};
    store_op op = {.kind = STORE_LIST, .key = "", .list = &list};
    status = store_call(s, &op, &err);
    CHECK_MSG(expected(status) && (status || list.n <= 2), "listing: %s", perch_status_name(status));
    if (!testing_take(s, &other, "older", false, &err)) {
        testing_simple(s, STORE_RELEASE, "older", other.fence, &err);
    }
    store_close(s);
}

static bool is_kept(const store_config *config, const testing_sequence *kept) {
    testing_sequence found = {.n_tokens = 0};
    perch_error err;
    store *s = testing_open(config);
    if (!s) {
        return false;
    }
    perch_status status = testing_take(s, &found, "kept", false, &err);
    store_close(s);
    return CHECK_MSG(status == PERCH_OK, "%s: %s", perch_status_name(status), status ? err.message : "") &&
           found.n_tokens == kept->n_tokens && !memcmp(found.tokens, kept->tokens, 4 * found.n_tokens);
}

static void every_call_fails_with(int rc, long stride) {
    char folder[64];
    testing_sequence kept = {.n_tokens = 0};
    snprintf(folder, sizeof folder, "%s", testing_folder());
    const store_config config = testing_config(PERCH_STORE_LMDB, folder, NULL);
    long n = 0;
    do {
        n += stride;
        n_failed = 0;
        fails_with = rc;
        countdown = n;
        scenario(&config, &kept);
        countdown = 0;
        CHECK_MSG(n_env == 0 && n_txn == 0 && n_cursor == 0, "call %ld: %ld, %ld, %ld are left", n, n_env, n_txn,
                  n_cursor);
        CHECK_MSG(is_kept(&config, &kept), "call %ld: what was committed is not there", n);
    } while (n_failed && CU_get_number_of_failures() == 0);
    printf("  %ld calls failed in turn: %s\n", n / stride, mdb_strerror(rc));
    CU_ASSERT(n > 100);
    testing_remove_folder(folder);
}

static long stride(void) {
    uint64_t scaled = test_scaled(10);
    return scaled >= 10 ? 1 : 11 - (long)scaled;
}

static void a_failing_disk_is_a_status(void) { every_call_fails_with(EIO, stride()); }
static void a_full_disk_is_a_status(void) { every_call_fails_with(ENOSPC, stride() * 3); }
static void too_little_memory_is_a_status(void) { every_call_fails_with(ENOMEM, stride() * 3); }
static void a_full_map_grows(void) { every_call_fails_with(MDB_MAP_FULL, stride() * 3); }

/* More than the first map holds: it grows, and everything is there. */
static void the_map_grows_with_what_is_stored(void) {
    char folder[64];
    snprintf(folder, sizeof folder, "%s", testing_folder());
    const store_config config = testing_config(PERCH_STORE_LMDB, folder, NULL);
    const uint64_t n_tokens = 6000000; /* 24 MB, four times: the first map has 64 */
    store *s = testing_open(&config);
    int32_t *tokens = malloc(n_tokens * sizeof *tokens);
    CU_ASSERT_FATAL(s && tokens);
    for (uint64_t i = 0; i < n_tokens; i++) {
        tokens[i] = (int32_t)i;
    }
    for (int i = 0; i < 4; i++) {
        char key[2] = {(char)('a' + i), 0};
        store_meta meta = {.n_tokens = n_tokens, .model = "a model"};
        store_op op = {.kind = STORE_PUT, .key = key, .tokens = tokens, .meta = &meta, .release = true};
        CU_ASSERT_EQUAL(store_call(s, &op, NULL), PERCH_OK);
    }
    store_close(s);
    s = testing_open(&config);
    CU_ASSERT_PTR_NOT_NULL_FATAL(s);
    char of[STORE_MODEL_CAP];
    store_meta meta;
    store_op op = {.kind = STORE_OPEN, .key = "d", .meta = &meta, .found_model = of};
    CU_ASSERT_EQUAL(store_call(s, &op, NULL), PERCH_OK);
    CU_ASSERT(meta.n_tokens == n_tokens && !memcmp(op.found, tokens, n_tokens * sizeof *tokens));
    free(op.found);
    free(tokens);
    store_close(s);
    testing_remove_folder(folder);
}

/* -------------------------------------------------------------------- damage -- */

/* Changes, behind the store's back, the first value of a table whose key begins with nothing in particular. */
static void damage(const char *folder, const char *table, size_t at, long change_size) {
    MDB_env *env;
    MDB_txn *txn;
    MDB_dbi dbi;
    MDB_cursor *cursor;
    MDB_val key, value;
    static char bytes[1 << 16];
    CU_ASSERT_EQUAL_FATAL(mdb_env_create(&env), 0);
    mdb_env_set_maxdbs(env, 8);
    CU_ASSERT_EQUAL_FATAL(mdb_env_open(env, folder, 0, 0600), 0);
    CU_ASSERT_EQUAL_FATAL(mdb_txn_begin(env, NULL, 0, &txn), 0);
    CU_ASSERT_EQUAL_FATAL(mdb_dbi_open(txn, table, 0, &dbi), 0);
    CU_ASSERT_EQUAL_FATAL(mdb_cursor_open(txn, dbi, &cursor), 0);
    CU_ASSERT_EQUAL_FATAL(mdb_cursor_get(cursor, &key, &value, MDB_FIRST), 0);
    memcpy(bytes, value.mv_data, value.mv_size);
    bytes[at] ^= 4;
    MDB_val changed = {(size_t)((long)value.mv_size + change_size), bytes};
    CU_ASSERT_EQUAL_FATAL(mdb_cursor_put(cursor, &key, &changed, MDB_CURRENT), 0);
    mdb_cursor_close(cursor);
    CU_ASSERT_EQUAL_FATAL(mdb_txn_commit(txn), 0);
    mdb_env_close(env);
}

static void damaged_tokens_are_told(void) {
    static const struct {
        const char *table;
        size_t at;
        long change_size;
    } cases[] = {{"tokens", 0, 0}, {"tokens", 35, 0}, {"tokens", 0, -4}, {"tokens", 0, 4},
                 {"meta", 8, 0},   {"meta", 14, 0},   {"meta", 40, 0},   {"meta", 0, -60}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char folder[64];
        perch_error err;
        static testing_sequence q;
        memset(&q, 0, sizeof q);
        snprintf(folder, sizeof folder, "%s", testing_folder());
        const store_config config = testing_config(PERCH_STORE_LMDB, folder, NULL);
        store *s = testing_open(&config);
        CU_ASSERT_PTR_NOT_NULL_FATAL(s);
        CU_ASSERT_EQUAL(testing_take(s, &q, "k", false, &err), PERCH_OK);
        testing_grow(&q, 20, &(test_rng){1});
        CU_ASSERT_EQUAL(testing_put(s, &q, 0, true, &err), PERCH_OK);
        store_close(s);
        damage(folder, cases[i].table, cases[i].at, cases[i].change_size);
        s = testing_open(&config);
        perch_status status = s ? testing_take(s, &q, "k", true, &err) : PERCH_OK;
        CHECK_MSG(status == PERCH_E_FORMAT && strstr(err.message, "'k' are damaged"), "case %zu: %s", i,
                  perch_status_name(status));
        CU_ASSERT_EQUAL(testing_take(s, &q, "another", false, &err), PERCH_OK);
        status = testing_simple(s, STORE_REMOVE, "k", 0, &err);
        CHECK_MSG(status == PERCH_OK || status == PERCH_E_STORE, "case %zu: removing: %s", i,
                  perch_status_name(status));
        CU_ASSERT(status == PERCH_OK || cases[i].table[0] == 'm');
        store_close(s);
        testing_remove_folder(folder);
    }
}

static void a_later_format_is_refused(void) {
    char folder[64];
    perch_error err;
    snprintf(folder, sizeof folder, "%s", testing_folder());
    const store_config config = testing_config(PERCH_STORE_LMDB, folder, NULL);
    store *s = testing_open(&config);
    store_close(s);
    MDB_env *env;
    MDB_txn *txn;
    MDB_dbi dbi;
    uint64_t format = 2;
    MDB_val key = {6, "format"}, value = {sizeof format, &format};
    CU_ASSERT_EQUAL_FATAL(mdb_env_create(&env), 0);
    mdb_env_set_maxdbs(env, 8);
    CU_ASSERT_EQUAL_FATAL(mdb_env_open(env, folder, 0, 0600), 0);
    CU_ASSERT_EQUAL_FATAL(mdb_txn_begin(env, NULL, 0, &txn), 0);
    CU_ASSERT_EQUAL_FATAL(mdb_dbi_open(txn, "state", 0, &dbi), 0);
    CU_ASSERT_EQUAL_FATAL(mdb_put(txn, dbi, &key, &value, 0), 0);
    CU_ASSERT_EQUAL_FATAL(mdb_txn_commit(txn), 0);
    mdb_env_close(env);
    CU_ASSERT_EQUAL(store_open(&config, &s, &err), PERCH_E_STORE);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.message, "format is 2"));
    testing_remove_folder(folder);
}

static void a_folder_that_cannot_be_is_named(void) {
    perch_error err;
    store *s = NULL;
    store_config config = testing_config(PERCH_STORE_LMDB, "/nowhere/store", NULL);
    CU_ASSERT_EQUAL(store_open(&config, &s, &err), PERCH_E_STORE);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.message, "/nowhere/store: No such file"));
    config.path = "/dev/null";
    CU_ASSERT_EQUAL(store_open(&config, &s, &err), PERCH_E_STORE);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.message, "/dev/null"));
}

int main(int argc, char **argv) {
    static const test_case tests[] = {
#define TEST(name) {#name, name}
        TEST(a_failing_disk_is_a_status), TEST(a_full_disk_is_a_status),           TEST(too_little_memory_is_a_status),
        TEST(a_full_map_grows),           TEST(the_map_grows_with_what_is_stored), TEST(damaged_tokens_are_told),
        TEST(a_later_format_is_refused),  TEST(a_folder_that_cannot_be_is_named),
    };
    return test_main("lmdb_fault_test", tests, sizeof tests / sizeof *tests, argc, argv);
}
