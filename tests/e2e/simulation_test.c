/*
 * A simulated engine decides as one that computes: the same turns, step by step, on both, and every count of what was found,
 * evicted, preempted and computed is the same; that needs a device that runs beside the host as a simulated one does, which is
 * where LD_LIBRARY_PATH has the stand-in. And its time is what its hardware says, and its own.
 */
#include "engine/impl.h"
#include "tests/e2e/host.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#define VOCAB 96
#define N_SESSIONS 16

static perch_hardware h200(void) {
    perch_hardware hardware;
    CU_ASSERT_EQUAL(perch_hardware_init(&hardware, sizeof hardware), PERCH_OK);
    return hardware;
}

static perch_engine *simulated(const perch_options *o, const perch_hardware *hardware) {
    perch_engine *e = NULL;
    perch_error err;
    return CHECK_MSG(perch_simulation_create(o, hardware, &e, &err) == PERCH_OK, "%s", err.message) ? e : NULL;
}

static perch_sequence_id open_sequence(perch_engine *e) {
    perch_sequence_id id = 0;
    perch_error err;
    CHECK_MSG(perch_sequence_open(e, &id, &err) == PERCH_OK, "%s", err.message);
    return id;
}

static perch_stats stats_of(perch_engine *e) {
    perch_stats stats = {.struct_size = sizeof stats};
    CU_ASSERT_EQUAL(perch_engine_stats(e, &stats, NULL), PERCH_OK);
    return stats;
}

/* ------------------------------------------------------------------ decisions -- */

/* What came of one turn. */
typedef struct turn {
    uint64_t prompt_tokens, cached_tokens, step; /* how many steps there were before its end */
} turn;

typedef struct traffic {
    perch_engine *e;
    test_rng rng;
    perch_sequence_id sessions[N_SESSIONS];
    uint32_t length[N_SESSIONS];
    bool busy[N_SESSIONS];
    uint32_t n_in_flight, at_once, n_submitted, n_turns, n_done;
    uint64_t n_steps;
    turn *turns; /* [n_turns] */
} traffic;

/*
 * A turn of some session that has none; a session begins with one of three prompts, is closed when it is long, and is rewound now
 * and then. No two sessions go on alike, whatever is chosen for them.
 */
static void submit_turn(traffic *t) {
    int32_t tokens[96];
    uint32_t s = (uint32_t)test_rng_below(&t->rng, N_SESSIONS), n = 0;
    uint32_t n_own = 8 + (uint32_t)test_rng_below(&t->rng, 40), n_generated = 1 + (uint32_t)test_rng_below(&t->rng, 12);
    uint64_t beginning = test_rng_below(&t->rng, 3), own = test_rng_next(&t->rng);
    bool rewinds = test_rng_below(&t->rng, 8) == 0;
    while (t->busy[s]) {
        s = (s + 1) % N_SESSIONS;
    }
    if (t->length[s] + n_own + n_generated > 200) {
        CU_ASSERT_EQUAL(perch_sequence_close(t->e, t->sessions[s], NULL), PERCH_OK);
        t->sessions[s] = 0;
    }
    if (!t->sessions[s]) {
        t->sessions[s] = open_sequence(t->e);
        t->length[s] = 0;
        host_tokens(beginning + 1, VOCAB, tokens, 48);
        n = 48;
    } else if (rewinds) {
        t->length[s] /= 2;
        CU_ASSERT_EQUAL(perch_sequence_rewind(t->e, t->sessions[s], t->length[s], NULL), PERCH_OK);
    }
    host_tokens(own, VOCAB, tokens + n, n_own);
    n += n_own;
    perch_request q = host_request(t->e, t->sessions[s], tokens, n, n_generated);
    q.flags = PERCH_REQUEST_IGNORE_EOS | PERCH_REQUEST_NO_TEXT;
    q.user_data = (uint64_t)t->n_submitted << 32 | s;
    CU_ASSERT_EQUAL(perch_submit(t->e, &q, NULL, NULL), PERCH_OK);
    t->length[s] += n + n_generated;
    t->busy[s] = true;
    t->n_in_flight++;
    t->n_submitted++;
}

static void take_events(traffic *t, perch_event *ev) {
    while (perch_next(t->e, ev, 0, NULL) == PERCH_OK) {
        if (ev->type == PERCH_EVENT_DONE) {
            CU_ASSERT_EQUAL(ev->finish, PERCH_FINISH_LENGTH);
            t->turns[ev->user_data >> 32] = (turn){ev->prompt_tokens, ev->cached_tokens, t->n_steps};
            t->busy[ev->user_data & 0xffffffff] = false;
            t->n_in_flight--;
            t->n_done++;
        }
    }
}

/* The same turns for every engine; events are taken and turns submitted between steps. */
static perch_stats play(perch_engine *e, uint64_t seed, uint32_t at_once, uint32_t n_turns, turn *turns) {
    traffic t = {.e = e, .rng = {seed}, .at_once = at_once, .n_turns = n_turns, .turns = turns};
    perch_event ev;
    perch_event_init(&ev, sizeof ev);
    while (t.n_done < n_turns) {
        while (t.n_in_flight < t.at_once && t.n_submitted < n_turns) {
            submit_turn(&t);
        }
        pthread_mutex_lock(&e->lock);
        bool worked = engine_step(e);
        pthread_mutex_unlock(&e->lock);
        t.n_steps++;
        take_events(&t, &ev);
        if (!worked && !CHECK_MSG(t.n_done == n_turns, "nothing to do with %u turns left", n_turns - t.n_done)) {
            break;
        }
    }
    perch_event_clear(&ev);
    return stats_of(e);
}

static void check_same_counts(const perch_stats *a, const perch_stats *b) {
#define SAME(field)                                                                                                    \
    CHECK_MSG(a->field == b->field, #field ": %llu computed, %llu simulated", (unsigned long long)a->field,            \
              (unsigned long long)b->field)
    SAME(steps);
    SAME(hits);
    SAME(partial_hits);
    SAME(misses);
    SAME(first_turns);
    SAME(cached_tokens);
    SAME(prefix_tokens);
    SAME(prefix_waits);
    SAME(evictions);
    SAME(evicted_pages);
    SAME(preemptions);
    SAME(copied_pages);
    SAME(mapped_pages);
    SAME(unmapped_pages);
    SAME(prefill_tokens);
    SAME(reprefill_tokens);
    SAME(decode_tokens);
    SAME(pages_free);
    SAME(pages_cached);
#undef SAME
}

static void a_simulation_decides_as_an_engine_that_computes(void) {
    enum { N_TURNS = 300, N_SEEDS = 6 }; /* the least in which all of it happens */
    static turn computed[N_TURNS], guessed[N_TURNS];
    uint64_t n_preemptions = 0;
    for (uint64_t seed = 1; seed <= N_SEEDS; seed++) {
        perch_options o = host_options("llama");
        perch_hardware hardware = h200();
        perch_engine *real = NULL;
        perch_error err;
        o.mapping = PERCH_MAPPING_TABLE;
        o.cache_max_entry_count = (double)(1 + seed % 3);
        o.schedule = seed % 2 ? PERCH_SCHEDULE_PREFIX : PERCH_SCHEDULE_FCFS;
        if (!CHECK_MSG(engine_open(&o, false, &real, &err) == PERCH_OK, "%s", err.message)) {
            return;
        }
        if (!real->backend->async) {
            test_skip("the engine that a simulated device is compared with runs on tests/support/async_backend.c");
            perch_engine_destroy(real);
            return;
        }
        perch_engine *e = simulated(&o, &hardware);
        if (e) {
            perch_stats a = play(real, seed, 6, N_TURNS, computed), b = play(e, seed, 6, N_TURNS, guessed);
            check_same_counts(&a, &b);
            n_preemptions += a.preemptions;
            CU_ASSERT_TRUE(a.evictions > 0 && a.cached_tokens > 0 && a.prefix_tokens > 0);
            CU_ASSERT_EQUAL(memcmp(computed, guessed, sizeof computed), 0);
        }
        perch_engine_destroy(e);
        perch_engine_destroy(real);
    }
    CU_ASSERT_TRUE(n_preemptions > 0);
}

/* ----------------------------------------------------------------------- time -- */

/* Hardware of which only one thing takes time: all rates are beyond measure. */
static perch_hardware fast_hardware(void) {
    perch_hardware hardware = h200();
    hardware.memory_bytes = 0;
    hardware.matrix_tflops = hardware.attention_tflops = hardware.memory_gbps = hardware.host_gbps = 1e6;
    hardware.launch_us = 0;
    return hardware;
}

/* A turn in a simulation: when its first token and its end were there. */
static perch_event run_turn(perch_engine *e, perch_sequence_id conversation, uint32_t n_prompt, uint32_t n_generated,
                            uint64_t *first_us, uint64_t *end_us) {
    int32_t tokens[256];
    perch_event ev, last = {0};
    perch_error err;
    host_tokens(n_prompt, VOCAB, tokens, n_prompt);
    perch_request q = host_request(e, conversation, tokens, n_prompt, n_generated);
    q.flags = PERCH_REQUEST_IGNORE_EOS | PERCH_REQUEST_NO_TEXT;
    CHECK_MSG(perch_submit(e, &q, NULL, &err) == PERCH_OK, "%s", err.message);
    perch_event_init(&ev, sizeof ev);
    for (*first_us = 0; ev.type != PERCH_EVENT_DONE;) {
        if (!CHECK_MSG(perch_simulation_advance(e, UINT64_MAX, end_us, &err) == PERCH_OK, "%s", err.message)) {
            break;
        }
        CU_ASSERT_EQUAL(perch_next(e, &ev, 0, NULL), PERCH_OK);
        *first_us = *first_us ? *first_us : *end_us;
    }
    last = ev;
    last.storage = NULL;
    perch_event_clear(&ev);
    return last;
}

static void check_near(const char *what, double found, double wanted) {
    CHECK_MSG(fabs(found - wanted) <= 0.002 * wanted + 2, "%s: %.1f us, not %.1f", what, found, wanted);
}

/*
 * Of tests/fixtures/engine/llama: 2 layers, hidden 32, heads 4 x 8, KV heads 2 x 8, intermediate 48, vocabulary 96. A layer's
 * matrices have 64 x 32 + 32 x 32 + 96 x 32 + 32 x 48 = 7680 numbers, the output's 96 x 32.
 */
static void a_step_takes_what_its_operations_take(void) {
    perch_options o = host_options("llama");
    uint64_t first_us, end_us;
    o.max_step_tokens = 256;

    /* Arithmetic of 100 tokens: all of the matrices, but in the last layer and for logits for the last token alone, behind K and V. */
    perch_hardware hardware = fast_hardware();
    hardware.matrix_tflops = 1e-6;
    perch_engine *e = simulated(&o, &hardware);
    if (e) {
        double per_token = 2.0 * (7680 + 64 * 32), of_last = 2.0 * (7680 - 64 * 32 + 96 * 32);
        run_turn(e, open_sequence(e), 100, 2, &first_us, &end_us);
        check_near("products of a prompt", (double)first_us, 100 * per_token + of_last);
        check_near("and of a token behind it", (double)(end_us - first_us), per_token + of_last);
    }
    perch_engine_destroy(e);

    /* Memory, by a token: weights in 2 bytes each, and little else. */
    hardware = fast_hardware();
    hardware.memory_gbps = 1e-6;
    e = simulated(&o, &hardware);
    if (e) {
        run_turn(e, open_sequence(e), 1, 2, &first_us, &end_us);
        double weights_us = 2e3 * (2 * 7680 + 96 * 32), took_us = (double)(end_us - first_us);
        CHECK_MSG(took_us > weights_us && took_us < 1.2 * weights_us, "%.0f us for %.0f of weights", took_us,
                  weights_us);
        double short_us = took_us;
        run_turn(e, open_sequence(e), 201, 2, &first_us, &end_us);
        /* 200 more tokens' keys and values: 2 layers x 2 x 16 numbers of 2 bytes */
        check_near("keys and values", (double)(end_us - first_us) - short_us, 200 * 128e3);
    }
    perch_engine_destroy(e);

    /* Attention: 4 operations for each number of each head, token and token that it sees. */
    hardware = fast_hardware();
    hardware.attention_tflops = 1e-6;
    e = simulated(&o, &hardware);
    if (e) {
        run_turn(e, open_sequence(e), 100, 2, &first_us, &end_us);
        check_near("attention of a prompt", (double)first_us, 2 * 4 * 32 * (100 * 101 / 2));
        check_near("and of a token", (double)(end_us - first_us), 2 * 4 * 32 * 101);
    }
    perch_engine_destroy(e);

    /* A step itself: 64 tokens each, so 4 for the prompt. */
    hardware = fast_hardware();
    hardware.launch_us = 1000;
    o.max_step_tokens = 64;
    e = simulated(&o, &hardware);
    if (e) {
        run_turn(e, open_sequence(e), 200, 11, &first_us, &end_us);
        check_near("steps of a prompt", (double)first_us, 4000);
        check_near("steps of tokens", (double)(end_us - first_us), 10000);
        perch_stats stats = stats_of(e);
        CU_ASSERT_EQUAL(stats.steps, 14);
        check_near("the steps' times together", (double)stats.step_us, (double)end_us);
    }
    perch_engine_destroy(e);
}

static void a_window_bounds_what_attention_takes(void) {
    perch_options o = host_options("mistral"); /* 2 layers; heads as llama's; a window of some tokens */
    perch_hardware hardware = fast_hardware();
    uint64_t first_us, end_us;
    hardware.attention_tflops = 1e-6;
    o.max_step_tokens = 256;
    perch_engine *e = simulated(&o, &hardware);
    if (e) {
        const model_config *c = &e->config;
        uint32_t window = model_layer_window(c, 0), n = 100;
        CU_ASSERT_TRUE(window > 1 && window < n);
        run_turn(e, open_sequence(e), n, 2, &first_us, &end_us);
        double width = 4.0 * c->n_layers * c->n_heads * c->head_dim;
        double seen = window * (window + 1) / 2.0 + (double)(n - window) * window;
        check_near("attention of a prompt", (double)first_us, width * seen);
        check_near("and of a token", (double)(end_us - first_us), width * window);
    }
    perch_engine_destroy(e);
}

/* What was evicted comes back from the host tier, which takes time by the page, both ways beside steps. */
static void copies_take_time_beside_the_steps(void) {
    perch_options o = host_options("llama");
    perch_hardware hardware = fast_hardware();
    uint64_t first_us, end_us, begin_us;
    o.mapping = PERCH_MAPPING_TABLE;
    o.cache_max_entry_count = 1;
    o.host_bytes = 1 << 20;
    o.restore = PERCH_RESTORE_LOAD; /* computing would be quicker */
    o.max_step_tokens = 256;
    hardware.host_gbps = 1e-3; /* a page of 2 KiB in 2048 us */
    perch_engine *e = simulated(&o, &hardware);
    if (e) {
        perch_sequence_id a = open_sequence(e), b = open_sequence(e);
        CU_ASSERT_EQUAL(e->plan.page_bytes, 2048);
        run_turn(e, a, 161, 1, &first_us, &end_us);
        CU_ASSERT_EQUAL(perch_simulation_advance(e, end_us + 1000000, &end_us, NULL), PERCH_OK); /* saved meanwhile */
        run_turn(e, b, 250, 1, &first_us, &end_us);
        CU_ASSERT_EQUAL(perch_simulation_advance(e, end_us + 1000000, &begin_us, NULL), PERCH_OK);
        perch_event ev = run_turn(e, a, 30, 1, &first_us, &end_us);
        CU_ASSERT_EQUAL(ev.cached_tokens, 161);
        check_near("ten pages and a partial one", (double)(first_us - begin_us), 11 * 2048);
        CU_ASSERT_EQUAL(stats_of(e).restored_pages, 11);
    }
    perch_engine_destroy(e);
}

static void deadlines_are_in_simulated_time(void) {
    perch_options o = host_options("llama");
    perch_hardware hardware = fast_hardware();
    perch_event ev;
    uint64_t now_us = 0;
    int32_t tokens[16];
    hardware.launch_us = 10000;
    perch_engine *e = simulated(&o, &hardware);
    if (!e) {
        return;
    }
    host_tokens(1, VOCAB, tokens, 16);
    perch_request q = host_request(e, open_sequence(e), tokens, 16, 200);
    q.flags = PERCH_REQUEST_IGNORE_EOS;
    q.timeout_ms = 95;
    CU_ASSERT_EQUAL(perch_submit(e, &q, NULL, NULL), PERCH_OK);
    perch_event_init(&ev, sizeof ev);
    while (ev.type != PERCH_EVENT_DONE && perch_simulation_advance(e, UINT64_MAX, &now_us, NULL) == PERCH_OK) {
        CU_ASSERT_EQUAL(perch_next(e, &ev, 0, NULL), PERCH_OK);
    }
    CU_ASSERT_EQUAL(ev.finish, PERCH_FINISH_TIMEOUT);
    CHECK_MSG(now_us >= 95000 && now_us <= 115000, "it ended at %llu us", (unsigned long long)now_us);
    uint64_t lived_us = ev.queue_us + ev.prefill_us + ev.decode_us; /* a step was under way at its end, and landed */
    CHECK_MSG(lived_us >= 95000 && lived_us <= 105000, "it lived for %llu us", (unsigned long long)lived_us);
    perch_event_clear(&ev);
    perch_engine_destroy(e);
}

/* Without a thread that would end it nobody waits; and time passes where it is told to, and only there. */
static void nothing_waits_and_time_stands_still(void) {
    perch_options o = host_options("llama");
    perch_hardware hardware = h200();
    perch_event ev;
    uint64_t now_us = 7;
    o.queue_size = 1;
    o.queue_full = PERCH_QUEUE_WAIT;
    perch_engine *e = simulated(&o, &hardware);
    if (!e) {
        return;
    }
    CU_ASSERT_EQUAL(perch_simulation_advance(e, 0, &now_us, NULL), PERCH_OK);
    CU_ASSERT_EQUAL(now_us, 0);
    CU_ASSERT_EQUAL(perch_simulation_advance(e, UINT64_MAX, &now_us, NULL), PERCH_E_TIMEOUT);
    CU_ASSERT_EQUAL(now_us, 0);
    CU_ASSERT_EQUAL(perch_simulation_advance(e, 123456789, &now_us, NULL), PERCH_OK);
    CU_ASSERT_EQUAL(now_us, 123456789);
    CU_ASSERT_EQUAL(perch_simulation_advance(e, 5, &now_us, NULL), PERCH_OK);
    CU_ASSERT_EQUAL(now_us, 123456789);
    perch_event_init(&ev, sizeof ev);
    CU_ASSERT_EQUAL(perch_next(e, &ev, -1, NULL), PERCH_E_TIMEOUT);
    perch_event_clear(&ev);
    int32_t token = 5;
    perch_request q = host_request(e, open_sequence(e), &token, 1, 1);
    CU_ASSERT_EQUAL(perch_submit(e, &q, NULL, NULL), PERCH_OK);
    q.sequence = open_sequence(e);
    CU_ASSERT_EQUAL(perch_submit(e, &q, NULL, NULL), PERCH_E_QUEUE_FULL);
    perch_engine_destroy(e);
}

static void what_cannot_be_simulated_is_refused(void) {
    perch_options o = host_options("llama");
    perch_engine *e = NULL;
    perch_error err;
    uint64_t now_us;
    perch_hardware wrong = h200();
    wrong.memory_gbps = NAN;
    CU_ASSERT_EQUAL(perch_simulation_create(&o, &wrong, &e, &err), PERCH_E_INVALID);
    CHECK_MSG(strstr(err.message, "memory_gbps") != NULL, "%s", err.message);
    wrong = h200();
    wrong.launch_us = -1;
    CU_ASSERT_EQUAL(perch_simulation_create(&o, &wrong, &e, &err), PERCH_E_INVALID);
    CHECK_MSG(strstr(err.message, "launch_us") != NULL, "%s", err.message);
    wrong = h200();
    wrong.struct_size--;
    CU_ASSERT_EQUAL(perch_simulation_create(&o, &wrong, &e, &err), PERCH_E_INVALID);
    CU_ASSERT_EQUAL(perch_hardware_init(&wrong, 1), PERCH_E_INVALID);
    wrong = h200();
    wrong.memory_bytes = 1 << 20;
    CU_ASSERT_EQUAL(perch_simulation_create(&o, &wrong, &e, &err), PERCH_E_NO_ROOM);
    perch_hardware hardware = h200();
    o.store_backend = PERCH_STORE_LMDB;
    CU_ASSERT_EQUAL(perch_simulation_create(&o, &hardware, &e, &err), PERCH_E_CONFIG);
    CHECK_MSG(strstr(err.message, "[store] backend") != NULL, "%s", err.message);
    o = host_options("no-such-model");
    CU_ASSERT_EQUAL(perch_simulation_create(&o, &hardware, &e, &err), PERCH_E_IO);
    CU_ASSERT_PTR_NULL(e);
    o = host_options("llama");
    if (CHECK_MSG(engine_open(&o, false, &e, &err) == PERCH_OK, "%s", err.message)) {
        CU_ASSERT_EQUAL(perch_simulation_advance(e, 1, &now_us, &err), PERCH_E_INVALID);
    }
    perch_engine_destroy(e);
}

/* Probabilities are those of equally likely tokens, and what may not be chosen is not. */
static void every_token_is_as_likely_as_any_other(void) {
    perch_options o = host_options("llama");
    perch_hardware hardware = h200();
    perch_event ev;
    uint64_t now_us;
    int32_t tokens[20];
    perch_engine *e = simulated(&o, &hardware);
    if (!e) {
        return;
    }
    host_tokens(1, VOCAB, tokens, 20);
    perch_request q = host_request(e, open_sequence(e), tokens, 20, 30);
    q.flags = PERCH_REQUEST_LOGPROBS | PERCH_REQUEST_PROMPT_LOGPROBS | PERCH_REQUEST_IGNORE_EOS;
    CU_ASSERT_EQUAL(perch_submit(e, &q, NULL, NULL), PERCH_OK);
    perch_event_init(&ev, sizeof ev);
    while (ev.type != PERCH_EVENT_DONE && perch_simulation_advance(e, UINT64_MAX, &now_us, NULL) == PERCH_OK) {
        CU_ASSERT_EQUAL(perch_next(e, &ev, 0, NULL), PERCH_OK);
        for (size_t i = 0; i < ev.n_tokens; i++) {
            CU_ASSERT_DOUBLE_EQUAL((double)ev.logprobs[i], -log(VOCAB), 1e-5);
        }
    }
    CU_ASSERT_EQUAL(ev.finish, PERCH_FINISH_LENGTH);
    CU_ASSERT_EQUAL(ev.n_prompt_logprobs, 20);
    CU_ASSERT_DOUBLE_EQUAL((double)ev.prompt_logprobs[19], -log(VOCAB), 1e-5);

    /* All but one are stop tokens that may not be chosen yet. */
    int32_t stops[VOCAB];
    size_t n_stops = 0;
    for (int32_t token = 0; token < VOCAB; token++) {
        if (token != 77) {
            stops[n_stops++] = token;
        }
    }
    q = host_request(e, open_sequence(e), tokens, 20, 9);
    q.min_tokens = 8;
    q.stop_tokens = stops;
    q.n_stop_tokens = n_stops;
    CU_ASSERT_EQUAL(perch_submit(e, &q, NULL, NULL), PERCH_OK);
    uint32_t n_allowed = 0;
    do {
        CU_ASSERT_EQUAL(perch_simulation_advance(e, UINT64_MAX, &now_us, NULL), PERCH_OK);
        CU_ASSERT_EQUAL(perch_next(e, &ev, 0, NULL), PERCH_OK);
        for (size_t i = 0; i < ev.n_tokens; i++) {
            n_allowed += ev.tokens[i] == 77;
        }
    } while (ev.type != PERCH_EVENT_DONE);
    CU_ASSERT_TRUE(n_allowed >= 8);
    perch_event_clear(&ev);
    perch_engine_destroy(e);
}

/* Tiers are in it, whose copies end in simulated time. */
static void the_same_traffic_takes_the_same_time(void) {
    enum { N_TURNS = 300 };
    static turn turns[2][N_TURNS];
    perch_options o = host_options("llama");
    perch_hardware hardware = h200();
    uint64_t now_us[2] = {0, 1};
    perch_stats stats[2];
    o.mapping = PERCH_MAPPING_TABLE;
    o.cache_max_entry_count = 2;
    o.host_bytes = 64 << 10; /* 32 pages */
    o.disk_bytes = 4 << 20;
    snprintf(o.disk_path, sizeof o.disk_path, "/nothing/is/written/there");
    o.restore = PERCH_RESTORE_LOAD;
    hardware.host_gbps = 0.5;
    hardware.disk_gbps = 0.1;
    for (int i = 0; i < 2; i++) {
        perch_engine *e = simulated(&o, &hardware);
        if (!e) {
            return;
        }
        stats[i] = play(e, 5, 5, N_TURNS, turns[i]);
        CU_ASSERT_EQUAL(perch_simulation_advance(e, 0, &now_us[i], NULL), PERCH_OK);
        CHECK_MSG(cache_check(e->kv) == NULL, "%s", cache_check(e->kv));
        perch_engine_destroy(e);
    }
    CU_ASSERT_EQUAL(now_us[0], now_us[1]);
    CU_ASSERT_EQUAL(memcmp(turns[0], turns[1], sizeof turns[0]), 0);
    CU_ASSERT_TRUE(stats[0].restored_pages > 0 && stats[0].spilled_pages > 0 && stats[0].fetched_pages > 0);
    CU_ASSERT_EQUAL(stats[0].disk_status, PERCH_OK);
    stats[0].host_us = stats[1].host_us; /* that of this machine */
    CU_ASSERT_EQUAL(memcmp(&stats[0], &stats[1], sizeof stats[0]), 0);
}

int main(int argc, char **argv) {
    static const test_case tests[] = {
        {"a simulation decides as an engine that computes", a_simulation_decides_as_an_engine_that_computes},
        {"a step takes what its operations take", a_step_takes_what_its_operations_take},
        {"a window bounds what attention takes", a_window_bounds_what_attention_takes},
        {"copies take time beside the steps", copies_take_time_beside_the_steps},
        {"deadlines are in simulated time", deadlines_are_in_simulated_time},
        {"nothing waits and time stands still", nothing_waits_and_time_stands_still},
        {"what cannot be simulated is refused", what_cannot_be_simulated_is_refused},
        {"every token is as likely as any other", every_token_is_as_likely_as_any_other},
        {"the same traffic takes the same time", the_same_traffic_takes_the_same_time},
    };
    return test_main("simulation", tests, sizeof tests / sizeof *tests, argc, argv);
}
