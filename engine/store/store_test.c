/* What every kind of store has to do alike: in memory, in LMDB, in Redis. */
#include "engine/store/testing.h"

#include <semaphore.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* The store under test. */
typedef struct fixture {
    char folder[64];
    testing_redis redis;
    store_config config;
    store *s;
} fixture;

static bool begin(fixture *f, perch_store kind) {
    snprintf(f->folder, sizeof f->folder, "%s", testing_folder());
    bool ready = kind != PERCH_STORE_REDIS || testing_redis_start(&f->redis, f->folder);
    f->config = testing_config(kind, f->folder, kind == PERCH_STORE_REDIS ? &f->redis : NULL);
    f->s = ready ? testing_open(&f->config) : NULL;
    if (!f->s) {
        testing_remove_folder(f->folder);
    }
    return f->s != NULL;
}

static void end(fixture *f) {
    store_close(f->s);
    if (f->config.kind == PERCH_STORE_REDIS) {
        testing_redis_kill(&f->redis);
    }
    testing_remove_folder(f->folder);
}

static void again(fixture *f) {
    store_close(f->s);
    f->s = testing_open(&f->config);
}

static void is(perch_status got, perch_status want, const perch_error *err) {
    CHECK_MSG(got == want, "%s instead of %s: %s", perch_status_name(got), perch_status_name(want),
              got ? err->message : "");
    CHECK_MSG(got == PERCH_OK || (err->status == got && err->message[0]), "the message of %s is \"%s\", of status %s",
              perch_status_name(got), err->message, perch_status_name(err->status));
}

static bool same(const testing_sequence *a, const testing_sequence *b) {
    return a->n_tokens == b->n_tokens && !memcmp(a->tokens, b->tokens, a->n_tokens * sizeof *a->tokens) &&
           a->meta.n_turns == b->meta.n_turns && a->meta.created_ms == b->meta.created_ms;
}

/* -------------------------------------------------------------------- sequences -- */

static void what_was_put_is_what_is_opened(perch_store kind) {
    fixture f;
    test_rng rng = {test_seed(11)};
    static testing_sequence q[8], found;
    if (!begin(&f, kind)) {
        return;
    }
    memset(q, 0, sizeof q);
    for (int i = 0; i < 8; i++) {
        snprintf(q[i].key, sizeof q[i].key, "sequence %d", i);
        q[i].meta.created_ms = (uint64_t)i + 1;
    }
    uint64_t n_rounds = test_scaled(200);
    for (uint64_t round = 0; round < n_rounds; round++) {
        testing_sequence *one = &q[test_rng_below(&rng, 8)];
        perch_error err;
        uint64_t keep = test_rng_below(&rng, 3) ? one->n_tokens : test_rng_below(&rng, one->n_tokens + 1);
        uint64_t what = test_rng_below(&rng, 8);
        if (what < 6) {
            one->n_tokens = keep;
            testing_grow(one, test_rng_below(&rng, 40), &rng);
            is(testing_put(f.s, one, keep, what == 5, &err), PERCH_OK, &err);
        }
        if (what == 6 && one->fence) {
            is(testing_simple(f.s, STORE_RELEASE, one->key, one->fence, &err), PERCH_OK, &err);
        } else if (what == 7 && f.config.kind != PERCH_STORE_MEMORY && round % 4 == 0) {
            again(&f);
            for (int i = 0; i < 8; i++) {
                q[i].fence = q[i].meta.n_turns ? UINT64_MAX : 0;
            }
        }
        if (what >= 5 && one->meta.n_turns) {
            is(testing_take(f.s, &found, one->key, true, &err), PERCH_OK, &err);
            CHECK_MSG(same(one, &found), "round %llu: %s has other tokens", (unsigned long long)round, one->key);
            one->fence = found.fence;
        }
        for (int i = 0; i < 8; i++) {
            if (q[i].fence == UINT64_MAX) {
                is(testing_take(f.s, &found, q[i].key, true, &err), PERCH_OK, &err);
                CHECK_MSG(same(&q[i], &found), "round %llu: %s has other tokens after a restart",
                          (unsigned long long)round, q[i].key);
                q[i].fence = found.fence;
            }
        }
    }
    end(&f);
}

static void names_are_listed_in_pages(perch_store kind) {
    fixture f;
    testing_sequence q = {.n_tokens = 0};
    perch_error err;
    perch_sequence_entry page[7];
    char after[PERCH_KEY_CAP] = "";
    if (!begin(&f, kind)) {
        return;
    }
    for (int i = 0; i < 40; i++) {
        char key[32];
        snprintf(key, sizeof key, "\xc3\xa9 %02d", i * 7 % 40);
        is(testing_take(f.s, &q, key, false, &err), PERCH_OK, &err);
        q.n_tokens = 0;
        testing_grow(&q, (uint64_t)i, &(test_rng){1});
        q.meta.n_turns = 0;
        is(testing_put(f.s, &q, 0, i % 2, &err), PERCH_OK, &err);
    }
    uint32_t n = 0;
    store_list list = {page, 7, 7};
    while (list.n == 7) {
        store_op op = {.kind = STORE_LIST, .key = after, .list = &list};
        memset(page, 0, sizeof page);
        is(store_call(f.s, &op, &err), PERCH_OK, &err);
        for (size_t i = 0; i < list.n; i++, n++) {
            char key[32];
            uint64_t made = n * 23 % 40; /* the inverse of 7 modulo 40 */
            snprintf(key, sizeof key, "\xc3\xa9 %02u", n);
            CU_ASSERT_STRING_EQUAL(page[i].key, key);
            CU_ASSERT_EQUAL(page[i].n_tokens, made);
            CU_ASSERT_EQUAL(page[i].n_turns, 1);
            CU_ASSERT_EQUAL(page[i].is_open, made % 2 == 0);
            CU_ASSERT(page[i].created_ms && page[i].touched_ms >= page[i].created_ms);
            memcpy(after, page[i].key, sizeof after);
        }
    }
    CU_ASSERT_EQUAL(n, 40);
    end(&f);
}

static void what_is_not_there_is_said_to_be_not_there(perch_store kind) {
    fixture f;
    testing_sequence q = {.n_tokens = 0};
    perch_error err;
    if (!begin(&f, kind)) {
        return;
    }
    is(testing_take(f.s, &q, "nobody", true, &err), PERCH_E_NOT_FOUND, &err);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.message, "'nobody'"));
    is(testing_simple(f.s, STORE_REMOVE, "nobody", 0, &err), PERCH_E_NOT_FOUND, &err);
    is(testing_take(f.s, &q, "somebody", false, &err), PERCH_OK, &err);
    is(testing_simple(f.s, STORE_REMOVE, "somebody", 0, &err), PERCH_E_BUSY, &err);
    is(testing_simple(f.s, STORE_RELEASE, "somebody", q.fence, &err), PERCH_OK, &err);
    is(testing_simple(f.s, STORE_REMOVE, "somebody", 0, &err), PERCH_OK, &err);
    is(testing_take(f.s, &q, "somebody", true, &err), PERCH_E_NOT_FOUND, &err);
    is(testing_take(f.s, &q, "somebody", false, &err), PERCH_OK, &err);
    is(testing_simple(f.s, STORE_REMOVE, "somebody", q.fence, &err), PERCH_OK, &err);
    is(testing_take(f.s, &q, "somebody", true, &err), PERCH_E_NOT_FOUND, &err);
    end(&f);
}

static void a_stale_fence_is_refused(perch_store kind) {
    fixture f;
    testing_sequence first = {.n_tokens = 0}, second = {.n_tokens = 0}, found;
    test_rng rng = {3};
    perch_error err;
    if (!begin(&f, kind)) {
        return;
    }
    is(testing_take(f.s, &first, "k", false, &err), PERCH_OK, &err);
    testing_grow(&first, 10, &rng);
    is(testing_put(f.s, &first, 0, false, &err), PERCH_OK, &err);
    is(testing_take(f.s, &second, "k", true, &err), PERCH_OK, &err); /* the engine has made a new start with it */
    CU_ASSERT(second.fence > first.fence);
    testing_grow(&first, 5, &rng);
    is(testing_put(f.s, &first, 10, false, &err), PERCH_E_LEASED, &err);
    is(testing_simple(f.s, STORE_RELEASE, "k", first.fence, &err), PERCH_E_LEASED, &err);
    is(testing_simple(f.s, STORE_REMOVE, "k", first.fence, &err), PERCH_E_LEASED, &err);
    testing_grow(&second, 3, &rng);
    is(testing_put(f.s, &second, 10, true, &err), PERCH_OK, &err);
    is(testing_put(f.s, &second, 13, false, &err), PERCH_E_LEASED, &err); /* it was let go of */
    second.meta.n_turns--;
    is(testing_take(f.s, &found, "k", true, &err), PERCH_OK, &err);
    CU_ASSERT(same(&second, &found));
    end(&f);
}

static void a_put_that_leaves_a_gap_is_refused_alone(perch_store kind) {
    fixture f;
    testing_sequence q = {.n_tokens = 0}, found;
    test_rng rng = {3};
    perch_error err;
    if (!begin(&f, kind)) {
        return;
    }
    is(testing_take(f.s, &q, "k", false, &err), PERCH_OK, &err);
    testing_grow(&q, 10, &rng);
    is(testing_put(f.s, &q, 4, false, &err), PERCH_E_INVALID, &err);
    is(testing_put(f.s, &q, 0, false, &err), PERCH_OK, &err);
    testing_grow(&q, 10, &rng);
    is(testing_put(f.s, &q, 11, true, &err), PERCH_E_INVALID, &err);
    is(testing_put(f.s, &q, 10, true, &err), PERCH_OK, &err);
    is(testing_take(f.s, &found, "k", true, &err), PERCH_OK, &err);
    CU_ASSERT(same(&q, &found));
    end(&f);
}

/* -------------------------------------------------------------------- the queue -- */

typedef struct counted {
    store_op op;
    testing_sequence q;
    uint32_t place;
} counted;

static uint32_t n_done;
static sem_t last_done;

static void count_done(store_op *op, const perch_error *why) {
    counted *c = (counted *)op;
    (void)why;
    c->place = n_done++;
    if (n_done == 600) {
        sem_post(&last_done);
    }
}

static void ops_end_in_the_order_they_were_sent(perch_store kind) {
    fixture f;
    perch_error err;
    if (!begin(&f, kind)) {
        return;
    }
    counted *c = calloc(600, sizeof *c);
    CU_ASSERT_PTR_NOT_NULL_FATAL(c);
    sem_init(&last_done, 0, 0);
    n_done = 0;
    CU_ASSERT_EQUAL(store_start(f.s, &err), PERCH_OK);
    for (uint32_t i = 0; i < 600; i++) { /* more than a group */
        snprintf(c[i].q.key, sizeof c[i].q.key, "%03u", i);
        testing_grow(&c[i].q, i, &(test_rng){i});
        c[i].q.meta.n_tokens = i;
        c[i].q.meta.model = "a model";
        c[i].op = (store_op){.kind = STORE_PUT, .key = c[i].q.key, .tokens = c[i].q.tokens, .meta = &c[i].q.meta};
        c[i].op.done = count_done;
        store_send(f.s, &c[i].op);
    }
    store_drain(f.s);
    sem_wait(&last_done);
    for (uint32_t i = 0; i < 600; i++) {
        CU_ASSERT_EQUAL(c[i].op.status, PERCH_OK);
        CU_ASSERT_EQUAL(c[i].place, i);
        CU_ASSERT_EQUAL(c[i].q.meta.hash, store_hash(c[i].q.tokens, i));
    }
    store_counts counts;
    store_counts_get(f.s, &counts);
    CU_ASSERT_EQUAL(counts.n_commits, 600);
    CU_ASSERT_EQUAL(counts.n_failures, 0);
    free(c);
    end(&f);
}

/* ------------------------------------------------------------------- retiring -- */

static uint64_t n_retired(fixture *f) {
    store_counts counts;
    store_counts_get(f->s, &counts);
    return counts.n_retired;
}

static void wait_for_retired(fixture *f, uint64_t n) {
    for (int i = 0; i < 6000 && n_retired(f) < n; i++) {
        usleep(10000);
    }
    CU_ASSERT_EQUAL(n_retired(f), n);
}

static void with_limits(fixture *f, uint64_t max_bytes, uint64_t ttl_ms) {
    store_close(f->s);
    f->config.max_bytes = max_bytes;
    f->config.ttl_ms = ttl_ms;
    f->s = testing_open(&f->config);
}

static void put_named(fixture *f, testing_sequence *q, const char *key, uint64_t n_tokens, bool release) {
    perch_error err;
    memset(q, 0, sizeof *q);
    is(testing_take(f->s, q, key, false, &err), PERCH_OK, &err);
    testing_grow(q, n_tokens, &(test_rng){5});
    is(testing_put(f->s, q, 0, release, &err), PERCH_OK, &err);
}

static void the_least_recently_used_are_retired_by_room(perch_store kind) {
    fixture f;
    testing_sequence held, q;
    perch_error err;
    if (!begin(&f, kind)) {
        return;
    }
    with_limits(&f, 3 * store_bytes(100) + 1, 0);
    put_named(&f, &held, "held", 100, false);
    put_named(&f, &q, "a", 100, true);
    usleep(3000);
    put_named(&f, &q, "b", 100, true);
    usleep(3000);
    is(testing_take(f.s, &q, "a", true, &err), PERCH_OK, &err); /* now b is older */
    is(testing_simple(f.s, STORE_RELEASE, "a", q.fence, &err), PERCH_OK, &err);
    put_named(&f, &q, "c", 100, true);
    wait_for_retired(&f, 1);
    is(testing_take(f.s, &q, "b", false, &err), PERCH_E_RETIRED, &err);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.message, "'b'"));
    is(testing_take(f.s, &q, "a", true, &err), PERCH_OK, &err);
    testing_grow(&held, 200, &(test_rng){6}); /* alone it is too much: it stays, since it is open */
    is(testing_put(f.s, &held, 100, false, &err), PERCH_OK, &err);
    wait_for_retired(&f, 2);
    is(testing_take(f.s, &q, "c", false, &err), PERCH_E_RETIRED, &err);
    is(testing_simple(f.s, STORE_REMOVE, "c", 0, &err), PERCH_OK, &err); /* the mark */
    is(testing_take(f.s, &q, "c", false, &err), PERCH_OK, &err);
    CU_ASSERT_EQUAL(q.n_tokens, 0);
    end(&f);
}

static void what_nobody_uses_is_retired_by_time(perch_store kind) {
    fixture f;
    testing_sequence held, q;
    perch_error err;
    if (!begin(&f, kind)) {
        return;
    }
    with_limits(&f, 0, 200);
    put_named(&f, &held, "held", 10, false);
    put_named(&f, &q, "gone", 10, true);
    wait_for_retired(&f, 1);
    is(testing_take(f.s, &q, "gone", true, &err), PERCH_E_RETIRED, &err);
    testing_grow(&held, 1, &(test_rng){6});
    is(testing_put(f.s, &held, 10, false, &err), PERCH_OK, &err);
    perch_sequence_entry page[4];
    store_list list = {page, 4, 0};
    store_op op = {.kind = STORE_LIST, .key = "", .list = &list};
    is(store_call(f.s, &op, &err), PERCH_OK, &err);
    CU_ASSERT_EQUAL(list.n, 1); /* the retired is not listed */
    end(&f);
}

static void marks_of_the_retired_end_some_day(perch_store kind) {
    fixture f;
    testing_sequence q;
    perch_error err;
    static const store_backend *const backends[] = {&store_memory, &store_lmdb};
    void *state;
    if (!begin(&f, kind)) {
        return;
    }
    store_close(f.s); /* the backend by itself, whose clock is the caller's */
    f.config.ttl_ms = 1000;
    CU_ASSERT_EQUAL_FATAL(backends[kind]->open(&f.config, &state, &err), PERCH_OK);
    char of[STORE_MODEL_CAP];
    store_op op = {.kind = STORE_OPEN, .key = "k", .meta = &q.meta, .found_model = of};
    CU_ASSERT_EQUAL(backends[kind]->acquire(state, &op, &err), PERCH_OK);
    free(op.found);
    store_op letting_go = {.kind = STORE_RELEASE, .key = "k", .fence = op.drawn}, *ops[] = {&letting_go};
    backends[kind]->write(state, ops, 1, &err);
    CU_ASSERT_EQUAL(letting_go.status, PERCH_OK);
    uint64_t n = 0, now = store_now_ms() + 2000;
    CU_ASSERT_EQUAL(backends[kind]->tend(state, now, &n, &err), PERCH_OK);
    CU_ASSERT_EQUAL(n, 1);
    CU_ASSERT_EQUAL(backends[kind]->acquire(state, &op, &err), PERCH_E_RETIRED);
    CU_ASSERT_EQUAL(backends[kind]->tend(state, now + STORE_MARK_MS - 1, &n, &err), PERCH_OK);
    CU_ASSERT_EQUAL(backends[kind]->acquire(state, &op, &err), PERCH_E_RETIRED);
    CU_ASSERT_EQUAL(backends[kind]->tend(state, now + STORE_MARK_MS, &n, &err), PERCH_OK);
    CU_ASSERT_EQUAL(backends[kind]->acquire(state, &op, &err), PERCH_OK);
    free(op.found);
    backends[kind]->close(state);
    f.s = testing_open(&f.config);
    end(&f);
}

/* ------------------------------------------------------------------------- keys -- */

static void keys_are_checked_and_made(void) {
    char longest[PERCH_KEY_CAP + 1], a[PERCH_KEY_CAP], b[PERCH_KEY_CAP];
    perch_error err;
    memset(longest, 'x', sizeof longest);
    longest[PERCH_KEY_CAP - 1] = 0;
    is(store_check_key(NULL, &err), PERCH_E_INVALID, &err);
    is(store_check_key("", &err), PERCH_E_INVALID, &err);
    is(store_check_key(longest, &err), PERCH_OK, &err);
    longest[PERCH_KEY_CAP - 1] = 'x';
    longest[PERCH_KEY_CAP] = 0;
    is(store_check_key(longest, &err), PERCH_E_INVALID, &err);
    is(store_make_key(a, &err), PERCH_OK, &err);
    is(store_make_key(b, &err), PERCH_OK, &err);
    CU_ASSERT_EQUAL(strlen(a), 32);
    CU_ASSERT_STRING_NOT_EQUAL(a, b);
}

#define ALL(X)                                                                                                         \
    X(what_was_put_is_what_is_opened)                                                                                  \
    X(names_are_listed_in_pages)                                                                                       \
    X(what_is_not_there_is_said_to_be_not_there)                                                                       \
    X(a_stale_fence_is_refused)                                                                                        \
    X(a_put_that_leaves_a_gap_is_refused_alone)                                                                        \
    X(ops_end_in_the_order_they_were_sent)                                                                             \
    X(the_least_recently_used_are_retired_by_room)                                                                     \
    X(what_nobody_uses_is_retired_by_time)

#define DEFINE(name)                                                                                                   \
    static void memory_##name(void) { name(PERCH_STORE_MEMORY); }                                                      \
    static void lmdb_##name(void) { name(PERCH_STORE_LMDB); }                                                          \
    static void redis_##name(void) { name(PERCH_STORE_REDIS); }
ALL(DEFINE)

/* Not in Redis, which has the clock to itself. */
static void memory_marks(void) { marks_of_the_retired_end_some_day(PERCH_STORE_MEMORY); }
static void lmdb_marks(void) { marks_of_the_retired_end_some_day(PERCH_STORE_LMDB); }

int main(int argc, char **argv) {
#define LIST(name) {"memory: " #name, memory_##name}, {"lmdb: " #name, lmdb_##name}, {"redis: " #name, redis_##name},
    static const test_case tests[] = {ALL(LIST){"memory: marks_of_the_retired_end_some_day", memory_marks},
                                      {"lmdb: marks_of_the_retired_end_some_day", lmdb_marks},
                                      {"keys_are_checked_and_made", keys_are_checked_and_made}};
    return test_main("store_test", tests, sizeof tests / sizeof *tests, argc, argv);
}
