/* testing: what the tests of the stores have in common: a folder, a private redis-server, and ops in one line. */
#ifndef PERCH_ENGINE_STORE_TESTING_H
#define PERCH_ENGINE_STORE_TESTING_H

#include "engine/store/store.h"
#include "tests/support/check.h"

#include <sys/types.h>

/* A temporary folder. Static buffer. remove_folder deletes it with what is in it. */
const char *testing_folder(void);
void testing_remove_folder(const char *folder);

/* A redis-server of ours, on a socket in a folder. False after test_skip where there is none. It dies with the test. */
typedef struct testing_redis {
    pid_t pid;
    char folder[64];
    char address[PERCH_PATH_CAP];
} testing_redis;
bool testing_redis_start(testing_redis *r, const char *folder);
void testing_redis_kill(testing_redis *r);

/* The configuration of a store in that folder, or at that address; nothing is limited. */
store_config testing_config(perch_store kind, const char *folder, const testing_redis *r);

store *testing_open(const store_config *config);

/* A sequence as the engine sees one. */
typedef struct testing_sequence {
    char key[PERCH_KEY_CAP];
    uint64_t fence;
    int32_t tokens[1024];
    uint64_t n_tokens;
    store_meta meta;
} testing_sequence;

perch_status testing_take(store *s, testing_sequence *q, const char *key, bool existing, perch_error *err);
perch_status testing_put(store *s, testing_sequence *q, uint64_t keep, bool release, perch_error *err);
perch_status testing_simple(store *s, store_kind kind, const char *key, uint64_t fence, perch_error *err);

/* Appends n random tokens. */
void testing_grow(testing_sequence *q, uint64_t n, test_rng *rng);

#endif
