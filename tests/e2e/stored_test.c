/* Sequences that outlive their engine: by name in each kind of store, shared by two engines, and as bytes. */
#include "engine/impl.h"
#include "engine/store/testing.h"
#include "tests/e2e/host.h"

#include <semaphore.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---------------------------------------------------------------------- helpers -- */

typedef struct place {
    perch_store kind;
    char folder[64];
    testing_redis redis;
} place;

static bool begin(place *p, perch_store kind) {
    p->kind = kind;
    snprintf(p->folder, sizeof p->folder, "%s", testing_folder());
    if (kind == PERCH_STORE_REDIS && !testing_redis_start(&p->redis, p->folder)) {
        testing_remove_folder(p->folder);
        return false;
    }
    return true;
}

static void end(place *p) {
    if (p->kind == PERCH_STORE_REDIS) {
        testing_redis_kill(&p->redis);
    }
    testing_remove_folder(p->folder);
}

static perch_options options_of(const place *p, const char *model_name) {
    perch_options o = host_options(model_name);
    o.store_backend = p->kind;
    snprintf(o.store_path, sizeof o.store_path, "%s/store", p->folder);
    snprintf(o.store_address, sizeof o.store_address, "%s", p->redis.address);
    o.store_timeout_ms = 20000;
    o.store_lease_ms = 60000;
    return o;
}

static perch_engine *engine_of(const place *p) {
    perch_options o = options_of(p, "llama");
    perch_engine *e = host_engine(&o);
    CU_ASSERT_PTR_NOT_NULL_FATAL(e);
    return e;
}

static void is(perch_status got, perch_status want, const perch_error *err, const char *piece) {
    CHECK_MSG(got == want, "%s instead of %s: %s", perch_status_name(got), perch_status_name(want),
              got ? err->message : "");
    CHECK_MSG(got == PERCH_OK || (err->status == got && strstr(err->message, piece)), "message is \"%s\", not about %s",
              err->message, piece);
}

static perch_status open_key(perch_engine *e, const char *key, uint32_t flags, perch_sequence_id *id,
                             perch_error *err) {
    perch_sequence_options o;
    perch_sequence_options_init(&o, sizeof o);
    o.key = key;
    o.flags = flags;
    return perch_sequence_open_with(e, &o, id, err);
}

static perch_sequence_id must_open(perch_engine *e, const char *key, uint32_t flags) {
    perch_sequence_id id = 0;
    perch_error err;
    is(open_key(e, key, flags, &id, &err), PERCH_OK, &err, "");
    return id;
}

static perch_request turn_request(perch_engine *e, perch_sequence_id id, uint64_t seed, uint32_t max_tokens) {
    static int32_t prompt[8];
    host_tokens(seed, 96, prompt, 8);
    perch_request q = host_request(e, id, prompt, 8, max_tokens);
    q.flags = PERCH_REQUEST_IGNORE_EOS;
    q.sampling.temperature = 0.8;
    q.sampling.seed = seed;
    return q;
}

/* A turn; the status of its DONE. */
static perch_status turn(perch_engine *e, perch_sequence_id id, uint64_t seed) {
    host_result r;
    perch_request q = turn_request(e, id, seed, 10);
    CU_ASSERT_EQUAL(host_turn(e, &q, &r), PERCH_OK);
    CU_ASSERT_EQUAL(r.finish, PERCH_FINISH_LENGTH);
    perch_status status = r.status;
    host_result_free(&r);
    return status;
}

typedef struct tokens {
    int32_t of[256];
    size_t n;
} tokens;

static tokens tokens_of(perch_engine *e, perch_sequence_id id) {
    tokens t;
    CU_ASSERT_EQUAL(perch_sequence_tokens(e, id, t.of, 256, &t.n, NULL), PERCH_OK);
    return t;
}

static bool same(const tokens *a, const tokens *b) { return a->n == b->n && !memcmp(a->of, b->of, a->n * 4); }

/* What turns 1..n give in an engine of its own. */
static tokens unbroken(uint32_t n) {
    perch_options o = host_options("llama");
    perch_engine *e = host_engine(&o);
    perch_sequence_id id = 0;
    CU_ASSERT_PTR_NOT_NULL_FATAL(e);
    CU_ASSERT_EQUAL(perch_sequence_open(e, &id, NULL), PERCH_OK);
    for (uint32_t i = 1; i <= n; i++) {
        CU_ASSERT_EQUAL(turn(e, id, i), PERCH_OK);
    }
    tokens t = tokens_of(e, id);
    perch_engine_destroy(e);
    return t;
}

static perch_sequence_info info_of(perch_engine *e, perch_sequence_id id) {
    perch_sequence_info info = {.struct_size = sizeof info};
    CU_ASSERT_EQUAL(perch_sequence_state(e, id, &info, NULL), PERCH_OK);
    return info;
}

/* Holds a store's thread until it is let go on. */
typedef struct held {
    store_op op;
    sem_t reached, go;
} held;

static void hold_here(store_op *op, const perch_error *why) {
    held *h = (held *)op;
    (void)why;
    sem_post(&h->reached);
    sem_wait(&h->go);
}

static void hold(perch_engine *e, held *h) {
    memset(h, 0, sizeof *h);
    sem_init(&h->reached, 0, 0);
    sem_init(&h->go, 0, 0);
    h->op = (store_op){.kind = STORE_REMOVE, .key = "nobody has this key", .done = hold_here};
    store_send(e->store, &h->op);
    sem_wait(&h->reached);
}

static void go_on(held *h) { sem_post(&h->go); }

/* --------------------------------------------------------------------- by name -- */

static void a_sequence_goes_on_in_the_next_engine(perch_store kind) {
    place p;
    tokens want = unbroken(3), got;
    if (!begin(&p, kind)) {
        return;
    }
    perch_engine *e = engine_of(&p);
    perch_sequence_id id = must_open(e, "k", 0), fork = 0, unnamed = 0;
    char fork_key[PERCH_KEY_CAP], unnamed_key[PERCH_KEY_CAP];
    perch_error err;
    CU_ASSERT_EQUAL(turn(e, id, 1), PERCH_OK);
    CU_ASSERT_EQUAL(info_of(e, id).n_stored, 18);
    is(perch_sequence_fork(e, id, 5, &fork, &err), PERCH_OK, &err, "");
    is(perch_sequence_key(e, fork, fork_key, sizeof fork_key, &err), PERCH_OK, &err, "");
    CU_ASSERT_EQUAL(info_of(e, fork).n_stored, 0);
    is(perch_sequence_sync(e, fork, &err), PERCH_OK, &err, "");
    CU_ASSERT_EQUAL(info_of(e, fork).n_stored, 5);
    is(perch_sequence_open(e, &unnamed, &err), PERCH_OK, &err, "");
    is(perch_sequence_key(e, unnamed, unnamed_key, sizeof unnamed_key, &err), PERCH_OK, &err, "");
    CU_ASSERT_EQUAL(turn(e, unnamed, 1), PERCH_OK);
    perch_engine_destroy(e); /* without closing anything */

    e = engine_of(&p);
    id = must_open(e, "k", PERCH_SEQUENCE_EXISTING);
    CU_ASSERT_EQUAL(info_of(e, id).n_tokens, 18);
    CU_ASSERT_EQUAL(info_of(e, id).n_stored, 18);
    CU_ASSERT_EQUAL(info_of(e, id).n_kv_tokens, 0);
    got = tokens_of(e, must_open(e, fork_key, PERCH_SEQUENCE_EXISTING));
    CU_ASSERT(got.n == 5 && !memcmp(got.of, want.of, 20));
    got = tokens_of(e, must_open(e, unnamed_key, PERCH_SEQUENCE_EXISTING));
    CU_ASSERT(got.n == 18 && !memcmp(got.of, want.of, 72));
    CU_ASSERT_EQUAL(turn(e, id, 2), PERCH_OK);
    perch_engine_destroy(e);

    e = engine_of(&p);
    id = must_open(e, "k", PERCH_SEQUENCE_EXISTING);
    CU_ASSERT_EQUAL(turn(e, id, 3), PERCH_OK);
    got = tokens_of(e, id);
    CHECK_MSG(same(&got, &want), "%zu tokens instead of %zu, or others", got.n, want.n);
    perch_engine_destroy(e);
    end(&p);
}

static void closing_removes_or_retains(perch_store kind) {
    place p;
    perch_error err;
    perch_sequence_id id;
    perch_sequence_entry page[4];
    size_t n = 9;
    if (!begin(&p, kind)) {
        return;
    }
    perch_engine *e = engine_of(&p);
    perch_sequence_id kept = must_open(e, "kept", PERCH_SEQUENCE_RETAIN), gone = must_open(e, "gone", 0);
    CU_ASSERT_EQUAL(turn(e, kept, 1), PERCH_OK);
    CU_ASSERT_EQUAL(turn(e, gone, 1), PERCH_OK);
    is(open_key(e, "kept", 0, &id, &err), PERCH_E_BUSY, &err, "'kept'");
    is(perch_sequence_remove(e, "kept", &err), PERCH_E_BUSY, &err, "'kept'");
    int32_t more[3] = {5, 6, 7};
    is(perch_sequence_append(e, kept, more, 3, &err), PERCH_OK, &err, ""); /* is not committed; closing does that */
    tokens want = tokens_of(e, kept);
    is(perch_sequence_close(e, kept, &err), PERCH_OK, &err, "");
    is(perch_sequence_close(e, gone, &err), PERCH_OK, &err, "");
    is(open_key(e, "gone", PERCH_SEQUENCE_EXISTING, &id, &err), PERCH_E_NOT_FOUND, &err, "'gone'");
    is(perch_sequence_list(e, NULL, page, 4, sizeof page[0], &n, &err), PERCH_OK, &err, "");
    CU_ASSERT_EQUAL(n, 1);
    CU_ASSERT_STRING_EQUAL(page[0].key, "kept");
    CU_ASSERT_EQUAL(page[0].n_tokens, want.n);
    CU_ASSERT_EQUAL(page[0].is_open, 0);
    is(perch_sequence_list(e, "kept", page, 4, sizeof page[0], &n, &err), PERCH_OK, &err, "");
    CU_ASSERT_EQUAL(n, 0);
    kept = must_open(e, "kept", PERCH_SEQUENCE_EXISTING);
    tokens got = tokens_of(e, kept);
    CU_ASSERT(same(&got, &want));
    is(perch_sequence_close(e, kept, &err), PERCH_OK, &err, ""); /* this time without RETAIN */
    is(perch_sequence_remove(e, "kept", &err), PERCH_E_NOT_FOUND, &err, "'kept'");
    perch_engine_destroy(e);
    end(&p);
}

static void a_rewind_is_stored_as_well(perch_store kind) {
    place p;
    perch_error err;
    if (!begin(&p, kind)) {
        return;
    }
    perch_engine *e = engine_of(&p);
    perch_sequence_id id = must_open(e, "k", PERCH_SEQUENCE_RETAIN);
    CU_ASSERT_EQUAL(turn(e, id, 1), PERCH_OK);
    is(perch_sequence_rewind(e, id, 7, &err), PERCH_OK, &err, "");
    if (kind != PERCH_STORE_MEMORY) {
        CU_ASSERT_EQUAL(info_of(e, id).n_stored, 7);
    }
    CU_ASSERT_EQUAL(turn(e, id, 2), PERCH_OK);
    is(perch_sequence_rewind(e, id, 20, &err), PERCH_OK, &err, "");
    is(perch_sequence_sync(e, id, &err), PERCH_OK, &err, "");
    tokens want = tokens_of(e, id);
    is(perch_sequence_close(e, id, &err), PERCH_OK, &err, "");
    tokens got = tokens_of(e, must_open(e, "k", PERCH_SEQUENCE_EXISTING));
    CU_ASSERT(same(&got, &want));
    perch_engine_destroy(e);
    end(&p);
}

static void arguments_are_checked_by_name(void) {
    place p;
    perch_error err;
    perch_sequence_id id = 7;
    char key[40], long_key[PERCH_KEY_CAP + 1];
    perch_sequence_options o;
    size_t n;
    if (!begin(&p, PERCH_STORE_MEMORY)) {
        return;
    }
    perch_engine *e = engine_of(&p);
    memset(long_key, 'x', sizeof long_key);
    long_key[PERCH_KEY_CAP] = 0;
    is(open_key(e, "", 0, &id, &err), PERCH_E_INVALID, &err, "key");
    CU_ASSERT_EQUAL(id, 0);
    is(open_key(e, long_key, 0, &id, &err), PERCH_E_INVALID, &err, "key");
    is(open_key(e, "k", 1u << 9, &id, &err), PERCH_E_INVALID, &err, "flags");
    is(open_key(e, NULL, PERCH_SEQUENCE_EXISTING, &id, &err), PERCH_E_INVALID, &err, "key");
    memset(&o, 0, sizeof o);
    is(perch_sequence_open_with(e, &o, &id, &err), PERCH_E_INVALID, &err, "struct_size");
    is(perch_sequence_open_with(e, NULL, &id, &err), PERCH_OK, &err, "");
    is(perch_sequence_key(e, id, key, sizeof key, &err), PERCH_E_NOT_FOUND, &err, "without a key");
    is(perch_sequence_sync(e, id, &err), PERCH_OK, &err, "");
    id = must_open(e, "0123456789", 0);
    is(perch_sequence_key(e, id, key, 10, &err), PERCH_E_BUFFER, &err, "11 bytes");
    is(perch_sequence_key(e, id, key, 11, &err), PERCH_OK, &err, "");
    CU_ASSERT_STRING_EQUAL(key, "0123456789");
    is(perch_sequence_list(e, NULL, NULL, 0, sizeof(perch_sequence_entry), &n, &err), PERCH_OK, &err, "");
    is(perch_sequence_list(e, NULL, NULL, 0, 8, &n, &err), PERCH_E_INVALID, &err, "size of an entry");
    is(perch_sequence_remove(e, NULL, &err), PERCH_E_INVALID, &err, "key");
    perch_engine_destroy(e);
    perch_options no_path = options_of(&p, "llama");
    no_path.store_backend = PERCH_STORE_LMDB;
    no_path.store_path[0] = 0;
    is(perch_engine_create(&no_path, &e, &err), PERCH_E_CONFIG, &err, "[store] path");
    end(&p);
}

static void another_model_is_refused_by_what_differs(void) {
    place p;
    perch_error err;
    perch_sequence_id id;
    if (!begin(&p, PERCH_STORE_LMDB)) {
        return;
    }
    perch_engine *e = engine_of(&p);
    CU_ASSERT_EQUAL(turn(e, must_open(e, "k", 0), 1), PERCH_OK);
    perch_engine_destroy(e);
    perch_options o = options_of(&p, "llama");
    o.random_seed++;
    e = host_engine(&o);
    CU_ASSERT_PTR_NOT_NULL_FATAL(e);
    is(open_key(e, "k", 0, &id, &err), PERCH_E_MODEL, &err, "weights=random:7, not weights=random:8");
    is(open_key(e, "k", 0, &id, &err), PERCH_E_MODEL, &err, "weights"); /* it was given back: not E_BUSY */
    perch_engine_destroy(e);
    o = options_of(&p, "llama");
    o.session_len = 17;
    e = host_engine(&o);
    CU_ASSERT_PTR_NOT_NULL_FATAL(e);
    is(open_key(e, "k", 0, &id, &err), PERCH_E_TOO_LONG, &err, "18 tokens, session_len is 17");
    perch_engine_destroy(e);
    end(&p);
}

static void a_folder_has_one_engine(void) {
    place p;
    perch_error err;
    perch_engine *second = NULL;
    if (!begin(&p, PERCH_STORE_LMDB)) {
        return;
    }
    perch_engine *e = engine_of(&p);
    perch_options o = options_of(&p, "llama");
    is(perch_engine_create(&o, &second, &err), PERCH_E_STORE, &err, "another engine has this store");
    perch_engine_destroy(e);
    e = engine_of(&p);
    perch_engine_destroy(e);
    end(&p);
}

/* -------------------------------------------------------------------- commits -- */

static bool is_committing(perch_engine *e) {
    pthread_mutex_lock(&e->lock);
    bool is_so = e->n_committing > 0;
    pthread_mutex_unlock(&e->lock);
    return is_so;
}

/* DONE comes with the commit; everything else, and everybody else, goes on. */
static void done_waits_for_the_commit_and_nothing_else_does(void) {
    place p;
    held h;
    perch_event ev;
    perch_error err;
    perch_request_id submitted = 0;
    if (!begin(&p, PERCH_STORE_LMDB)) {
        return;
    }
    perch_engine *e = engine_of(&p);
    perch_sequence_id id = must_open(e, "k", 0);
    hold(e, &h);
    perch_request q = turn_request(e, id, 1, 10);
    q.n_completions = 3;
    CU_ASSERT_EQUAL(perch_submit(e, &q, &submitted, NULL), PERCH_OK);
    perch_event_init(&ev, sizeof ev);
    uint32_t n_done = 0, n_tokens = 0;
    while (n_done < 2) {
        CU_ASSERT_EQUAL_FATAL(perch_next(e, &ev, HOST_HANGS_MS, NULL), PERCH_OK);
        CU_ASSERT(ev.type == PERCH_EVENT_TOKENS || ev.completion > 0);
        n_done += ev.type == PERCH_EVENT_DONE;
        n_tokens += ev.completion == 0 ? (uint32_t)ev.n_tokens : 0;
    }
    while (!is_committing(e)) { /* completion 0 may be the last to end */
        usleep(1000);
    }
    perch_status status;
    while (!(status = perch_next(e, &ev, 50, NULL))) {
        CU_ASSERT(ev.type == PERCH_EVENT_TOKENS && ev.completion == 0);
        n_tokens += (uint32_t)ev.n_tokens;
    }
    CU_ASSERT_EQUAL(status, PERCH_E_TIMEOUT);
    is(perch_submit(e, &q, NULL, &err), PERCH_E_BUSY, &err, "in flight");
    CU_ASSERT_EQUAL(info_of(e, id).in_flight, 1);
    go_on(&h);
    CU_ASSERT_EQUAL(perch_next(e, &ev, HOST_HANGS_MS, NULL), PERCH_OK);
    CU_ASSERT(ev.type == PERCH_EVENT_DONE && ev.completion == 0 && ev.status == PERCH_OK);
    CU_ASSERT_EQUAL(n_tokens + ev.n_tokens, 10);
    CU_ASSERT_EQUAL(info_of(e, id).n_stored, 18);
    perch_event_clear(&ev);
    perch_engine_destroy(e);
    end(&p);
}

static void what_a_cancelled_turn_has_is_committed(void) {
    place p;
    perch_event ev;
    perch_request_id submitted = 0;
    if (!begin(&p, PERCH_STORE_LMDB)) {
        return;
    }
    perch_engine *e = engine_of(&p);
    perch_sequence_id id = must_open(e, "k", 0);
    perch_request q = turn_request(e, id, 1, 200);
    perch_event_init(&ev, sizeof ev);
    CU_ASSERT_EQUAL(perch_submit(e, &q, &submitted, NULL), PERCH_OK);
    CU_ASSERT_EQUAL(perch_next(e, &ev, HOST_HANGS_MS, NULL), PERCH_OK);
    CU_ASSERT_EQUAL(perch_cancel(e, submitted, NULL), PERCH_OK);
    while (ev.type != PERCH_EVENT_DONE) {
        CU_ASSERT_EQUAL_FATAL(perch_next(e, &ev, HOST_HANGS_MS, NULL), PERCH_OK);
    }
    tokens want = tokens_of(e, id);
    CU_ASSERT(want.n > 8);
    perch_event_clear(&ev);
    perch_engine_destroy(e);
    e = engine_of(&p);
    tokens got = tokens_of(e, must_open(e, "k", PERCH_SEQUENCE_EXISTING));
    CU_ASSERT(same(&got, &want));
    perch_engine_destroy(e);
    end(&p);
}

/* A closed sequence's turn is cancelled: retained, what it came to is stored; else nothing is left of it. */
static void a_sequence_closed_in_the_middle_of_a_turn_is_let_go_of_behind_it(void) {
    place p;
    perch_error err;
    if (!begin(&p, PERCH_STORE_LMDB)) {
        return;
    }
    perch_engine *e = engine_of(&p);
    for (uint32_t retain = 0; retain < 2; retain++) {
        perch_event ev;
        perch_sequence_id id = must_open(e, "k", retain ? PERCH_SEQUENCE_RETAIN : 0);
        perch_request q = turn_request(e, id, 1, 200);
        perch_event_init(&ev, sizeof ev);
        CU_ASSERT_EQUAL(perch_submit(e, &q, NULL, NULL), PERCH_OK);
        CU_ASSERT_EQUAL(perch_next(e, &ev, HOST_HANGS_MS, NULL), PERCH_OK);
        is(perch_sequence_close(e, id, &err), PERCH_OK, &err, "");
        uint64_t n = ev.n_tokens;
        while (ev.type != PERCH_EVENT_DONE) {
            CU_ASSERT_EQUAL_FATAL(perch_next(e, &ev, HOST_HANGS_MS, NULL), PERCH_OK);
            n += ev.n_tokens;
        }
        perch_event_clear(&ev);
        perch_status status = open_key(e, "k", PERCH_SEQUENCE_EXISTING, &id, &err);
        is(status, retain ? PERCH_OK : PERCH_E_NOT_FOUND, &err, "'k'");
        if (!status) {
            CU_ASSERT_EQUAL(info_of(e, id).n_tokens, 8 + n);
        }
    }
    perch_engine_destroy(e);
    end(&p);
}

/* ------------------------------------------------------------------- two engines -- */

static void engines_share_sequences_one_at_a_time(void) {
    place p;
    perch_error err;
    perch_sequence_id id;
    tokens want = unbroken(3);
    if (!begin(&p, PERCH_STORE_REDIS)) {
        return;
    }
    perch_engine *a = engine_of(&p), *b = engine_of(&p);
    perch_sequence_id at_a = must_open(a, "k", PERCH_SEQUENCE_RETAIN);
    CU_ASSERT_EQUAL(turn(a, at_a, 1), PERCH_OK);
    is(open_key(b, "k", 0, &id, &err), PERCH_E_LEASED, &err, "'k'");
    is(perch_sequence_remove(b, "k", &err), PERCH_E_LEASED, &err, "'k'");
    is(perch_sequence_close(a, at_a, &err), PERCH_OK, &err, "");
    store_drain(a->store);
    perch_sequence_id at_b = must_open(b, "k", PERCH_SEQUENCE_RETAIN | PERCH_SEQUENCE_EXISTING);
    CU_ASSERT_EQUAL(turn(b, at_b, 2), PERCH_OK);
    is(open_key(a, "k", 0, &id, &err), PERCH_E_LEASED, &err, "'k'");
    perch_engine_destroy(b); /* which lets go of it */
    at_a = must_open(a, "k", PERCH_SEQUENCE_EXISTING);
    CU_ASSERT_EQUAL(turn(a, at_a, 3), PERCH_OK);
    tokens got = tokens_of(a, at_a);
    CU_ASSERT(same(&got, &want));
    perch_engine_destroy(a);
    end(&p);
}

static void a_paused_engine_destroys_nothing_when_it_wakes(void) {
    place p;
    held h;
    perch_error err;
    perch_sequence_id at_b = 0;
    if (!begin(&p, PERCH_STORE_REDIS)) {
        return;
    }
    perch_options o = options_of(&p, "llama");
    perch_engine *b = engine_of(&p), *a = NULL;
    o.store_lease_ms = 100;
    a = host_engine(&o);
    CU_ASSERT_PTR_NOT_NULL_FATAL(a);
    perch_sequence_id at_a = must_open(a, "k", PERCH_SEQUENCE_RETAIN);
    CU_ASSERT_EQUAL(turn(a, at_a, 1), PERCH_OK);
    usleep(400000); /* several leases: it is renewed */
    is(open_key(b, "k", 0, &at_b, &err), PERCH_E_LEASED, &err, "'k'");
    hold(a, &h);
    perch_request q = turn_request(a, at_a, 7, 10); /* is computed, and waits for the store */
    perch_request_id submitted;
    CU_ASSERT_EQUAL(perch_submit(a, &q, &submitted, NULL), PERCH_OK);
    while (open_key(b, "k", PERCH_SEQUENCE_EXISTING, &at_b, &err) == PERCH_E_LEASED) {
        usleep(10000);
    }
    CU_ASSERT_EQUAL(turn(b, at_b, 2), PERCH_OK);
    go_on(&h);
    perch_event ev;
    perch_event_init(&ev, sizeof ev);
    do {
        CU_ASSERT_EQUAL_FATAL(perch_next(a, &ev, HOST_HANGS_MS, NULL), PERCH_OK);
    } while (ev.type != PERCH_EVENT_DONE);
    CU_ASSERT_EQUAL(ev.status, PERCH_E_LEASED);
    CU_ASSERT_EQUAL(ev.finish, PERCH_FINISH_LENGTH);
    CU_ASSERT_PTR_NOT_NULL(strstr(ev.message, "'k'"));
    perch_event_clear(&ev);
    is(perch_submit(a, &q, &submitted, &err), PERCH_E_LEASED, &err, "taken over");
    is(perch_sequence_sync(a, at_a, &err), PERCH_E_LEASED, &err, "taken over");
    is(perch_sequence_close(a, at_a, &err), PERCH_OK, &err, "");
    CU_ASSERT_EQUAL(turn(b, at_b, 3), PERCH_OK);
    tokens got = tokens_of(b, at_b), want = unbroken(3);
    CU_ASSERT(same(&got, &want));
    perch_engine_destroy(a);
    perch_engine_destroy(b);
    end(&p);
}

static void a_redis_that_hangs_is_a_status_and_steps_go_on(void) {
    place p;
    perch_error err;
    perch_sequence_id id = 0;
    if (!begin(&p, PERCH_STORE_REDIS)) {
        return;
    }
    perch_options o = options_of(&p, "llama");
    o.store_timeout_ms = 200;
    perch_engine *e = host_engine(&o);
    CU_ASSERT_PTR_NOT_NULL_FATAL(e);
    perch_sequence_id at = must_open(e, "k", 0);
    while (turn(e, at, 1) == PERCH_E_STORE && info_of(e, at).n_tokens < 200) { /* 200 ms can be little */
    }
    kill(p.redis.pid, SIGSTOP);
    uint64_t n_stored = info_of(e, at).n_stored, n_tokens = info_of(e, at).n_tokens;
    CU_ASSERT_EQUAL(n_stored, n_tokens);
    CU_ASSERT_EQUAL(turn(e, at, 2), PERCH_E_STORE);
    CU_ASSERT_EQUAL(info_of(e, at).n_stored, n_stored);
    CU_ASSERT_EQUAL(info_of(e, at).n_tokens, n_tokens + 18);
    is(open_key(e, "other", 0, &id, &err), PERCH_E_STORE, &err, "Redis at unix:");
    is(perch_sequence_sync(e, at, &err), PERCH_E_STORE, &err, "Redis at unix:");
    perch_stats stats = {.struct_size = sizeof stats};
    CU_ASSERT_EQUAL(perch_engine_stats(e, &stats, NULL), PERCH_OK);
    CU_ASSERT_EQUAL(stats.status, PERCH_OK);
    CU_ASSERT(stats.store_failures >= 3);
    kill(p.redis.pid, SIGCONT);
    perch_status status = PERCH_E_STORE;
    for (int i = 0; i < 600 && status == PERCH_E_STORE; i++) {
        usleep(100000);
        status = perch_sequence_sync(e, at, &err);
    }
    is(status, PERCH_OK, &err, "");
    CU_ASSERT_EQUAL(info_of(e, at).n_stored, n_tokens + 18);
    perch_engine_destroy(e);
    end(&p);
}

static void a_redis_that_is_not_there_kills_nothing(void) {
    place p = {.kind = PERCH_STORE_REDIS};
    perch_error err;
    perch_sequence_id id = 0, unnamed = 0;
    perch_sequence_entry page[1];
    size_t n;
    snprintf(p.redis.address, sizeof p.redis.address, "unix:/nowhere/redis.sock");
    perch_engine *e = engine_of(&p);
    is(open_key(e, "k", 0, &id, &err), PERCH_E_STORE, &err, "Redis at unix:/nowhere/redis.sock: No such file");
    is(perch_sequence_remove(e, "k", &err), PERCH_E_STORE, &err, "/nowhere");
    is(perch_sequence_list(e, NULL, page, 1, sizeof page[0], &n, &err), PERCH_E_STORE, &err, "/nowhere");
    is(perch_sequence_open(e, &unnamed, &err), PERCH_OK, &err, "");
    CU_ASSERT_EQUAL(turn(e, unnamed, 1), PERCH_E_STORE);
    CU_ASSERT_EQUAL(turn(e, unnamed, 2), PERCH_E_STORE);
    tokens got = tokens_of(e, unnamed), want = unbroken(2);
    CU_ASSERT(same(&got, &want));
    is(perch_sequence_close(e, unnamed, &err), PERCH_OK, &err, "");
    perch_engine_destroy(e);
    perch_options o = options_of(&p, "llama");
    snprintf(o.store_address, sizeof o.store_address, "host:99999");
    is(perch_engine_create(&o, &e, &err), PERCH_E_CONFIG, &err, "[store] address");
}

/* --------------------------------------------------------------------- as bytes -- */

static void an_export_is_imported_by_another_engine(void) {
    perch_options o = host_options("llama");
    perch_engine *a = host_engine(&o), *b = host_engine(&o);
    perch_error err;
    perch_sequence_id id = 0, copy = 0;
    static unsigned char bytes[8192];
    size_t n = 0, n_again = 0;
    tokens want = unbroken(2);
    CU_ASSERT_FATAL(a && b);
    id = must_open(a, "k", 0);
    CU_ASSERT_EQUAL(turn(a, id, 1), PERCH_OK);
    is(perch_sequence_export(a, id, NULL, 0, &n, &err), PERCH_E_BUFFER, &err, "bytes");
    CU_ASSERT_FATAL(n > 72 && n < sizeof bytes);
    is(perch_sequence_export(a, id, bytes, n - 1, &n, &err), PERCH_E_BUFFER, &err, "bytes");
    is(perch_sequence_export(a, id, bytes, n, &n_again, &err), PERCH_OK, &err, "");
    CU_ASSERT_EQUAL(n, n_again);
    is(perch_sequence_import(b, bytes, n, NULL, &copy, &err), PERCH_OK, &err, "");
    CU_ASSERT_EQUAL(turn(b, copy, 2), PERCH_OK);
    tokens got = tokens_of(b, copy);
    CU_ASSERT(same(&got, &want));
    perch_sequence_options named;
    perch_sequence_options_init(&named, sizeof named);
    named.key = "imported";
    named.flags = PERCH_SEQUENCE_RETAIN;
    is(perch_sequence_import(b, bytes, n, &named, &copy, &err), PERCH_OK, &err, "");
    is(perch_sequence_import(b, bytes, n, &named, &id, &err), PERCH_E_BUSY, &err, "'imported'");
    is(perch_sequence_close(b, copy, &err), PERCH_OK, &err, "");
    is(perch_sequence_import(b, bytes, n, &named, &id, &err), PERCH_E_INVALID, &err, "'imported'");
    got = tokens_of(b, must_open(b, "imported", PERCH_SEQUENCE_EXISTING));
    CU_ASSERT(got.n == 18 && !memcmp(got.of, want.of, 72));
    perch_engine_destroy(b);

    o.session_len = 17;
    b = host_engine(&o);
    is(perch_sequence_import(b, bytes, n, NULL, &copy, &err), PERCH_E_TOO_LONG, &err, "session_len is 17");
    perch_engine_destroy(b);
    perch_options other = host_options("mistral");
    b = host_engine(&other);
    is(perch_sequence_import(b, bytes, n, NULL, &copy, &err), PERCH_E_MODEL, &err, "architecture=llama, not");
    CU_ASSERT_EQUAL(copy, 0);
    perch_engine_destroy(b);
    perch_engine_destroy(a);
}

#define EACH(name)                                                                                                     \
    static void memory_##name(void) { name(PERCH_STORE_MEMORY); }                                                      \
    static void lmdb_##name(void) { name(PERCH_STORE_LMDB); }                                                          \
    static void redis_##name(void) { name(PERCH_STORE_REDIS); }
EACH(closing_removes_or_retains)
EACH(a_rewind_is_stored_as_well)

static void lmdb_goes_on(void) { a_sequence_goes_on_in_the_next_engine(PERCH_STORE_LMDB); }
static void redis_goes_on(void) { a_sequence_goes_on_in_the_next_engine(PERCH_STORE_REDIS); }

int main(int argc, char **argv) {
    static const test_case tests[] = {
#define TEST(name) {#name, name}
#define TESTS(name)                                                                                                    \
    {"memory: " #name, memory_##name}, {"lmdb: " #name, lmdb_##name}, { "redis: " #name, redis_##name }
        {"lmdb: a_sequence_goes_on_in_the_next_engine", lmdb_goes_on},
        {"redis: a_sequence_goes_on_in_the_next_engine", redis_goes_on},
        TESTS(closing_removes_or_retains),
        TESTS(a_rewind_is_stored_as_well),
        TEST(arguments_are_checked_by_name),
        TEST(another_model_is_refused_by_what_differs),
        TEST(a_folder_has_one_engine),
        TEST(done_waits_for_the_commit_and_nothing_else_does),
        TEST(what_a_cancelled_turn_has_is_committed),
        TEST(a_sequence_closed_in_the_middle_of_a_turn_is_let_go_of_behind_it),
        TEST(engines_share_sequences_one_at_a_time),
        TEST(a_paused_engine_destroys_nothing_when_it_wakes),
        TEST(a_redis_that_hangs_is_a_status_and_steps_go_on),
        TEST(a_redis_that_is_not_there_kills_nothing),
        TEST(an_export_is_imported_by_another_engine),
    };
    return test_main("stored_test", tests, sizeof tests / sizeof *tests, argc, argv);
}
