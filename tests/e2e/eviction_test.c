/*
 * Eviction is invisible. A random schedule (turns, forks, rewinds, appends, cancels, several completions, over a pool that holds
 * barely more than one sequence, with forced preemptions and evictions on top) runs with every row of logits recorded under
 * the tokens that it follows from. Then the same conversations are replayed one at a time, on one thread, in a cache that
 * holds everything: tokens and logits must be the same to the bit.
 *
 * What is evicted may come back from tiers of any size, a file among them, by loading, computing or both.
 *
 * Many conversations begin alike, in two namespaces, and some are closed: the schedules share what they can through the prefix
 * index, the replay has none.
 *
 * The engine's step thread is not started: steps are driven from here, so that a seed gives the same schedule every time.
 */
#include "engine/impl.h"
#include "tests/e2e/host.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define MAX_SEQUENCES 40u
#define MAX_OPS 160u
#define MAX_PROMPT 64u
#define MAX_GENERATED 24u
#define MAX_COMPLETIONS 3u
#define LOGITS_MAP_SIZE (1u << 16)

/* ---------------------------------------------------------- logits by prefix -- */

typedef struct logits_map {
    uint64_t prefix[LOGITS_MAP_SIZE], logits[LOGITS_MAP_SIZE];
    bool checked[LOGITS_MAP_SIZE];
    uint32_t n, n_checked;
    bool checking;
    bool broken;
} logits_map;

static logits_map map;

static uint64_t hash_bytes(uint64_t hash, const void *bytes, size_t n) {
    const unsigned char *at = bytes;
    for (size_t i = 0; i < n; i++) {
        hash = (hash ^ at[i]) * 0x100000001B3u;
    }
    return hash;
}

/* Records a row, or compares it with the one that was recorded for the same tokens. */
static void note_logits(uint64_t prefix, uint64_t logits) {
    uint32_t at = (uint32_t)(prefix * 0x9E3779B97F4A7C15u >> 48) % LOGITS_MAP_SIZE;
    while (map.prefix[at] && map.prefix[at] != prefix) {
        at = (at + 1) % LOGITS_MAP_SIZE;
    }
    if (map.prefix[at]) {
        map.broken = map.broken || map.logits[at] != logits;
        map.n_checked += map.checking && !map.checked[at];
        map.checked[at] = map.checking;
    } else if (!map.checking) {
        map.prefix[at] = prefix;
        map.logits[at] = logits;
        map.n++;
    }
}

static void tap(void *user, const int32_t *tokens, uint32_t position, uint32_t n, const float *logits) {
    uint32_t vocab = *(const uint32_t *)user;
    uint64_t prefix = hash_bytes(0xCBF29CE484222325u, tokens, position * sizeof *tokens);
    for (uint32_t i = 0; i < n; i++) {
        prefix = hash_bytes(prefix, tokens + position + i, sizeof *tokens);
        note_logits(prefix, hash_bytes(1469598103934665603u, logits + (size_t)i * vocab, vocab * sizeof *logits));
    }
}

/* ------------------------------------------------------------------- history -- */

typedef enum op_kind { OP_TURN, OP_APPEND, OP_REWIND, OP_FORK } op_kind;

typedef struct op {
    op_kind kind;
    uint32_t sequence;
    uint32_t n_tokens; /* TURN, APPEND: of tokens; REWIND, FORK: kept */
    uint32_t child;    /* FORK */
    int32_t tokens[MAX_PROMPT];
    uint32_t max_tokens, n_completions, flags;
    double temperature, repetition_penalty, frequency_penalty, top_p, min_p, typical_p;
    int32_t top_k;
    uint64_t prompt_logprobs; /* hash of them, 0 = none came */
    uint64_t seed;
    perch_request_id request;
    uint32_t n_done;
    bool cut_short; /* cancelled */
    uint32_t n_generated[MAX_COMPLETIONS];
    int32_t generated[MAX_COMPLETIONS][MAX_GENERATED];
} op;

typedef struct history {
    op ops[MAX_OPS];
    uint32_t n_ops;
    uint32_t n_sequences;
    perch_sequence_id ids[MAX_SEQUENCES];
    bool closed[MAX_SEQUENCES];
    uint64_t namespaces[MAX_SEQUENCES];
    op *busy[MAX_SEQUENCES];
} history;

static history h;

static void fill_request(perch_engine *e, perch_request *q, const op *o) {
    *q = host_request(e, h.ids[o->sequence], o->tokens, o->n_tokens, o->max_tokens);
    q->n_completions = o->n_completions;
    q->flags = o->flags | PERCH_REQUEST_IGNORE_EOS;
    q->sampling.temperature = o->temperature;
    q->sampling.repetition_penalty = o->repetition_penalty;
    q->sampling.frequency_penalty = o->frequency_penalty;
    q->sampling.top_p = o->top_p;
    q->sampling.min_p = o->min_p;
    q->sampling.typical_p = o->typical_p;
    q->sampling.top_k = o->top_k;
    q->sampling.seed = o->seed;
    q->user_data = (uint64_t)(o - h.ops);
}

static uint32_t length_of(perch_engine *e, uint32_t index) {
    perch_sequence_info info = {.struct_size = sizeof info};
    CU_ASSERT_EQUAL_FATAL(perch_sequence_state(e, h.ids[index], &info, NULL), PERCH_OK);
    return (uint32_t)info.n_tokens;
}

static uint64_t hash_prompt_logprobs(const perch_event *ev) {
    size_t n = ev->n_prompt_logprobs;
    return n ? hash_bytes(1469598103934665603u, ev->prompt_logprobs, n * sizeof *ev->prompt_logprobs) : 0;
}

static void take_events(perch_engine *e) {
    perch_event ev;
    perch_event_init(&ev, sizeof ev);
    while (perch_next(e, &ev, 0, NULL) == PERCH_OK) {
        op *o = &h.ops[ev.user_data];
        for (size_t i = 0; i < ev.n_tokens; i++) {
            o->generated[ev.completion][o->n_generated[ev.completion]++] = ev.tokens[i];
        }
        if (ev.type == PERCH_EVENT_DONE) {
            CU_ASSERT_NOT_EQUAL(ev.finish, PERCH_FINISH_ERROR);
            o->prompt_logprobs = ev.completion == 0 ? hash_prompt_logprobs(&ev) : o->prompt_logprobs;
            o->cut_short = o->cut_short || ev.finish == PERCH_FINISH_CANCELLED;
            if (++o->n_done == o->n_completions) {
                h.busy[o->sequence] = NULL;
            }
        }
    }
    perch_event_clear(&ev);
}

static bool step(perch_engine *e) {
    pthread_mutex_lock(&e->lock);
    bool worked = engine_step(e);
    pthread_mutex_unlock(&e->lock);
    return worked;
}

/* ------------------------------------------------------------------- schedule -- */

typedef struct schedule {
    const char *model_name;
    perch_options options;
    uint32_t n_actions;
    uint32_t cancel_percent, evict_percent;
    bool evict_always; /* everything, after every token */
    bool restarts;     /* in the middle: another engine goes on */
    bool waits;        /* for the disk, now and then: next to these models it is slow */
    bool with_costs;   /* instead of what the engine measures: */
    cache_costs costs;
} schedule;

static const uint32_t vocab_of_small = 96, vocab_of_wide = 2048;

static uint32_t between(test_rng *rng, uint32_t low, uint32_t high) {
    return low + (uint32_t)test_rng_below(rng, high - low + 1);
}

/* Where the schedules run: on what libperch_cuda.so.0 is, if there is one; and what that can do. */
static bool on_gpu, with_f32 = true;
static uint64_t page_granularity = 4096;

static void find_device(void) {
    const kernels_backend *cuda;
    kernels_device *device = NULL;
    const kernels_config f32 = {.dtype = KERNELS_F32}, bf16 = {.dtype = KERNELS_BF16};
    perch_error err;
    on_gpu = kernels_cuda(&cuda, &err) == PERCH_OK;
    if (!on_gpu) {
        CHECK_MSG(getenv("PERCH_TEST_GPU") == NULL, "%s", err.message);
        return;
    }
    with_f32 = cuda->open(&f32, &device, &err) == PERCH_OK;
    if (with_f32 || CHECK_MSG(err.status == PERCH_E_UNSUPPORTED && cuda->open(&bf16, &device, &err) == PERCH_OK, "%s",
                              err.message)) {
        page_granularity = cuda->kv_page_granularity(device);
        printf("  on %s\n", cuda->describe(device));
        cuda->close(device);
    }
}

static char disk_path[64]; /* in a folder of its own, which both go in the end */

/* No tier, a few pages, or many; and what is to be believed of their speed. */
static void random_tiers(test_rng *rng, schedule *s) {
    static const double page_us[] = {0.01, 1, 30, 1000};
    perch_options *o = &s->options;
    uint64_t n_host = test_rng_below(rng, 3) ? test_rng_below(rng, test_rng_below(rng, 3) ? 40 : 4) : 0;
    uint64_t n_disk = test_rng_below(rng, 2) ? 1 + test_rng_below(rng, test_rng_below(rng, 3) ? 80 : 4) : 0;
    o->host_bytes = n_host * page_granularity;
    o->disk_bytes = n_disk ? n_disk * (page_granularity + 64) + 3 * page_granularity : 0;
    o->restore = (perch_restore)test_rng_below(rng, 4);
    o->policy = test_rng_below(rng, 2) ? PERCH_POLICY_COST : PERCH_POLICY_LRU;
    snprintf(o->disk_path, sizeof o->disk_path, "%s", disk_path);
    s->waits = n_disk && test_rng_below(rng, 4);
    s->with_costs = test_rng_below(rng, 3) > 0;
    s->costs = (cache_costs){.compute_us = 1, .compute_us_per_position = 0.01, .latency_us = {1, 20}};
    s->costs.page_us[CACHE_HOST] = page_us[test_rng_below(rng, 4)];
    s->costs.page_us[CACHE_DISK] = page_us[test_rng_below(rng, 4)];
}

static schedule random_schedule(test_rng *rng) {
    const char *const names[] = {"llama", on_gpu ? "mistral24" : "mistral", "qwen2", "qwen3"};
    schedule s = {.model_name = test_rng_below(rng, 40) == 0 ? "wide" : names[test_rng_below(rng, 4)]};
    bool wide = !strcmp(s.model_name, "wide");
    s.options = host_options(s.model_name);
    perch_options *o = &s.options;
    o->device = on_gpu ? PERCH_DEVICE_CUDA : PERCH_DEVICE_CPU;
    o->dtype = test_rng_below(rng, 2) == 0 ? PERCH_DTYPE_BF16 : with_f32 ? PERCH_DTYPE_F32 : PERCH_DTYPE_F16;
    o->weight_format = on_gpu ? PERCH_WEIGHT_FORMAT_AUTO : (perch_weight_format)(test_rng_below(rng, 7) % 4);
    o->threads = between(rng, 1, 3);
    o->session_len = between(rng, 24, wide ? 60 : 180);
    o->max_batch_size = between(rng, 1, 6);
    o->prefill_reserve = between(rng, 1, 24);
    o->max_step_tokens = o->max_batch_size + o->prefill_reserve + (uint32_t)test_rng_below(rng, 40);
    o->page_bytes = page_granularity << test_rng_below(rng, 3);
    if (test_rng_below(rng, 4) == 0) {
        o->mapping = PERCH_MAPPING_TABLE;
        o->page_bytes = 0;
    }
    o->graphs = test_rng_below(rng, 4) ? PERCH_ON : PERCH_OFF;
    o->cache_chunk_size = (int32_t[]){1, 1, 2, 3, -1}[test_rng_below(rng, 5)];
    o->age_steps = between(rng, 1, 40);
    o->bypass_limit = (uint32_t)test_rng_below(rng, 8);
    random_tiers(rng, &s);
    o->prefix_index = test_rng_below(rng, 6) ? PERCH_ON : PERCH_OFF;
    o->schedule = test_rng_below(rng, 3) ? PERCH_SCHEDULE_PREFIX : PERCH_SCHEDULE_FCFS;
    o->prefix_patience = (uint32_t)test_rng_below(rng, 30);
    o->queue_size = 64;
    s.n_actions = wide ? 25 : between(rng, 20, 90);
    s.cancel_percent = (uint32_t)test_rng_below(rng, 12);
    s.evict_percent = (uint32_t)test_rng_below(rng, 40);
    s.evict_always = test_rng_below(rng, 5) == 0;
    s.restarts = test_rng_below(rng, 4) == 0;
    return s;
}

/* The pool: one full-length sequence and a few pages, up to a few sequences. */
static void choose_pool(test_rng *rng, perch_options *o) {
    perch_plan plan = {.struct_size = sizeof plan};
    perch_error err;
    o->cache_max_entry_count = 1;
    if (CHECK_MSG(perch_plan_compute(o, &plan, &err) == PERCH_OK, "%s", err.message)) {
        uint64_t least = plan.sequence_bytes / plan.page_bytes;
        o->cache_bytes = (least + (test_rng_below(rng, 3) ? test_rng_below(rng, 3 * least) : 0)) * plan.page_bytes;
    }
}

static void start_turn(test_rng *rng, perch_engine *e, uint32_t index, uint32_t length, uint32_t vocab) {
    uint32_t room = e->session_len - length;
    if (room < 2) {
        return;
    }
    op *o = &h.ops[h.n_ops];
    memset(o, 0, sizeof *o);
    o->kind = OP_TURN;
    o->sequence = index;
    o->n_tokens = between(rng, length ? 0 : 1, room - 1 < MAX_PROMPT ? room - 1 : MAX_PROMPT);
    o->max_tokens = between(rng, 0, room - o->n_tokens < MAX_GENERATED ? room - o->n_tokens : MAX_GENERATED);
    o->n_completions = o->max_tokens && test_rng_below(rng, 6) == 0 ? between(rng, 2, MAX_COMPLETIONS) : 1;
    o->flags = test_rng_below(rng, 4) == 0 ? PERCH_REQUEST_PROMPT_LOGPROBS : 0;
    o->temperature = test_rng_below(rng, 3) ? 0.5 + test_rng_unit(rng) : 0;
    o->repetition_penalty = test_rng_below(rng, 3) ? 1 : 1.2;
    o->top_p = test_rng_below(rng, 3) ? 1 : 0.9;
    o->top_k = test_rng_below(rng, 3) ? 0 : 20;
    o->frequency_penalty = test_rng_below(rng, 4) ? 0 : 0.7;
    o->min_p = test_rng_below(rng, 4) ? 0 : 0.05;
    o->typical_p = test_rng_below(rng, 4) ? 1 : 0.8;
    o->seed = test_rng_next(rng);
    uint32_t n_alike = length == 0 && test_rng_below(rng, 3) ? (uint32_t)test_rng_below(rng, MAX_PROMPT + 1) : 0;
    host_tokens(test_rng_next(rng), vocab, o->tokens, o->n_tokens);
    host_tokens(1 + test_rng_below(rng, 2), vocab, o->tokens, n_alike < o->n_tokens ? n_alike : o->n_tokens);
    perch_request q;
    perch_error err;
    fill_request(e, &q, o);
    q.priority = (int32_t)between(rng, 0, 3) - 2;
    if (CHECK_MSG(perch_submit(e, &q, &o->request, &err) == PERCH_OK, "%s", err.message)) {
        h.busy[index] = o;
        h.n_ops++;
    }
}

static void change_sequence(test_rng *rng, perch_engine *e, uint32_t index, uint32_t length, uint32_t vocab) {
    op *o = &h.ops[h.n_ops++];
    memset(o, 0, sizeof *o);
    o->sequence = index;
    o->n_tokens = (uint32_t)test_rng_below(rng, length + 1);
    switch (test_rng_below(rng, 3)) {
    case 0:
        o->kind = OP_REWIND;
        CU_ASSERT_EQUAL(perch_sequence_rewind(e, h.ids[index], o->n_tokens, NULL), PERCH_OK);
        break;
    case 1:
        o->kind = OP_APPEND;
        o->n_tokens = (uint32_t)test_rng_below(rng, 6);
        o->n_tokens = length + o->n_tokens < e->session_len ? o->n_tokens : 0;
        host_tokens(test_rng_next(rng), vocab, o->tokens, o->n_tokens);
        CU_ASSERT_EQUAL(perch_sequence_append(e, h.ids[index], o->tokens, o->n_tokens, NULL), PERCH_OK);
        break;
    default:
        o->kind = OP_FORK;
        o->child = h.n_sequences++;
        h.namespaces[o->child] = h.namespaces[index];
        CU_ASSERT_EQUAL(perch_sequence_fork(e, h.ids[index], o->n_tokens, &h.ids[o->child], NULL), PERCH_OK);
    }
}

/* What a host says changes when things are computed, and nothing else. */
static void hint(test_rng *rng, perch_engine *e, uint32_t index) {
    perch_hints hints;
    CU_ASSERT_EQUAL(perch_hints_init(&hints, sizeof hints), PERCH_OK);
    hints.pin = test_rng_below(rng, 3) == 0;
    hints.priority = test_rng_below(rng, 3) ? 0 : (int32_t)test_rng_below(rng, 16) - 8;
    hints.expect_return_ms = test_rng_below(rng, 3) ? 0 : test_rng_below(rng, 4);
    hints.ttl_ms = test_rng_below(rng, 3) ? 0 : test_rng_below(rng, 4);
    perch_status status = perch_sequence_hint(e, h.ids[index], &hints, NULL);
    CU_ASSERT_TRUE(status == PERCH_OK || (status == PERCH_E_NO_ROOM && hints.pin));
}

static void random_action(test_rng *rng, perch_engine *e, uint32_t vocab) {
    if (h.n_ops == MAX_OPS) {
        return;
    }
    if (h.n_sequences < 2 || (h.n_sequences < MAX_SEQUENCES / 2 && test_rng_below(rng, 8) == 0)) {
        perch_sequence_options in;
        CU_ASSERT_EQUAL(perch_sequence_options_init(&in, sizeof in), PERCH_OK);
        in.cache_namespace = h.namespaces[h.n_sequences] = test_rng_below(rng, 4) == 0;
        CU_ASSERT_EQUAL(perch_sequence_open_with(e, &in, &h.ids[h.n_sequences++], NULL), PERCH_OK);
    }
    uint32_t index = (uint32_t)test_rng_below(rng, h.n_sequences);
    if (!h.closed[index] && test_rng_below(rng, 8) == 0) {
        hint(rng, e, index);
    }
    if (h.busy[index] || h.closed[index]) {
        return;
    }
    if (test_rng_below(rng, 30) == 0) {
        CU_ASSERT_EQUAL(perch_sequence_close(e, h.ids[index], NULL), PERCH_OK);
        h.closed[index] = true;
        return;
    }
    uint32_t length = length_of(e, index);
    if (test_rng_below(rng, 4) == 0 && h.n_sequences < MAX_SEQUENCES) {
        change_sequence(rng, e, index, length, vocab);
    } else {
        start_turn(rng, e, index, length, vocab);
    }
}

/*
 * Takes memory away as no traffic would: preempts running rows, evicts idle ones. With evict_always every row that has just
 * been given a token loses everything; one in the middle of its prompt is let go on, or it would never come to its end.
 */
static void disturb(test_rng *rng, perch_engine *e, const schedule *s) {
    pthread_mutex_lock(&e->lock);
    for (sched_item *item = e->sched.running.head, *next; item; item = next) {
        next = item->next;
        const completion *c = (const completion *)item;
        bool has_token = c->n_generated > c->n_delivered; /* events are taken after every step */
        if (s->evict_always ? has_token : test_rng_below(rng, 4) == 0) {
            sched_preempt(&e->sched, item);
        }
    }
    uint32_t keep = s->evict_always ? 0 : (uint32_t)test_rng_below(rng, 6);
    while (cache_evict_one(e->kv, keep) && (s->evict_always || test_rng_below(rng, 3))) {}
    pthread_mutex_unlock(&e->lock);
}

/* Until something that was asked of the disk is done; and a moment, for the host tier. */
static void wait_for_disk(perch_engine *e) {
    const struct timespec wait = {.tv_nsec = 50000};
    nanosleep(&wait, NULL);
    for (bool busy = true; busy; nanosleep(&wait, NULL)) {
        pthread_mutex_lock(&e->lock);
        busy = cache_disk_pending(e->kv) && !e->disk.done;
        pthread_mutex_unlock(&e->lock);
    }
}

typedef struct totals {
    uint64_t n_restarts, n_found, n_schedules, n_rows, n_evictions, n_preemptions, n_partial_hits, n_misses, n_hits,
        n_copied, n_prefix, n_restored, n_fetched, n_raced, n_declined;
} totals;

static perch_engine *open_stepped(const perch_options *options, uint32_t *vocab) {
    perch_engine *e = NULL;
    perch_error err;
    if (CHECK_MSG(engine_open(options, false, &e, &err) == PERCH_OK, "%s", err.message)) {
        e->tap = tap;
        e->tap_user = vocab;
    }
    return e;
}

/* What is under way is cut short, and the conversations go on in another engine, which has the disk tier's file and their tokens. */
static perch_engine *restart(perch_engine *e, const schedule *s, uint32_t *vocab) {
    void *bytes[MAX_SEQUENCES] = {NULL};
    size_t n_bytes[MAX_SEQUENCES] = {0};
    for (uint32_t i = 0; i < h.n_ops; i++) {
        const op *o = &h.ops[i];
        (void)(o->request && o->n_done < o->n_completions && perch_cancel(e, o->request, NULL));
    }
    for (uint32_t i = 0; i < 100000 && step(e); i++) {
        take_events(e);
    }
    for (uint32_t i = 0; i < h.n_sequences; i++) {
        if (!h.closed[i]) {
            CU_ASSERT_EQUAL(perch_sequence_export(e, h.ids[i], NULL, 0, &n_bytes[i], NULL), PERCH_E_BUFFER);
            bytes[i] = malloc(n_bytes[i]);
            CU_ASSERT_EQUAL(perch_sequence_export(e, h.ids[i], bytes[i], n_bytes[i], &n_bytes[i], NULL), PERCH_OK);
        }
    }
    perch_engine_destroy(e);
    e = open_stepped(&s->options, vocab);
    for (uint32_t i = 0; i < h.n_sequences; i++) {
        perch_sequence_options in;
        CU_ASSERT_EQUAL(perch_sequence_options_init(&in, sizeof in), PERCH_OK);
        in.cache_namespace = h.namespaces[i];
        CU_ASSERT_TRUE(h.closed[i] || !e ||
                       perch_sequence_import(e, bytes[i], n_bytes[i], &in, &h.ids[i], NULL) == PERCH_OK);
        free(bytes[i]);
    }
    return e;
}

static perch_engine *run_schedule(test_rng *rng, perch_engine *e, const schedule *s, uint32_t *vocab_of, totals *t) {
    const uint32_t vocab = *vocab_of;
    for (uint32_t i = 0; e && i < s->n_actions; i++) {
        if (s->restarts && i == s->n_actions / 2) {
            perch_stats found = {.struct_size = sizeof found};
            e = restart(e, s, vocab_of);
            if (!e || perch_engine_stats(e, &found, NULL)) {
                break;
            }
            t->n_restarts++;
            t->n_found += found.disk_found_pages;
        }
        if (s->with_costs) {
            cache_set_costs(e->kv, &s->costs);
        }
        for (uint64_t n = test_rng_below(rng, 3); n > 0; n--) {
            random_action(rng, e, vocab);
        }
        if (test_rng_below(rng, 100) < s->cancel_percent && h.n_ops) {
            const op *o = &h.ops[test_rng_below(rng, h.n_ops)];
            perch_status status = o->request ? perch_cancel(e, o->request, NULL) : PERCH_OK;
            CU_ASSERT_TRUE(status == PERCH_OK || status == PERCH_E_NOT_FOUND);
        }
        for (uint64_t n = s->waits ? test_rng_below(rng, 8) : 0; n > 0 && step(e); n--) {
            wait_for_disk(e);
            take_events(e);
        }
        step(e);
        if (s->evict_always || test_rng_below(rng, 100) < s->evict_percent) {
            disturb(rng, e, s);
        }
        take_events(e);
    }
    for (uint32_t i = 0; e && i < 100000 && step(e); i++) {
        if (s->evict_always) {
            disturb(rng, e, s);
        }
        take_events(e);
    }
    return e;
}

/* -------------------------------------------------------------------- replay -- */

static void replay_turn(perch_engine *e, op *o) {
    uint32_t n_longest = 0;
    for (uint32_t i = 0; i < o->n_completions; i++) {
        n_longest = o->n_generated[i] > n_longest ? o->n_generated[i] : n_longest;
    }
    bool only_prompt = o->cut_short && n_longest == 0;
    if (only_prompt && !(o->flags & PERCH_REQUEST_PROMPT_LOGPROBS)) {
        CU_ASSERT_EQUAL(perch_sequence_append(e, h.ids[o->sequence], o->tokens, o->n_tokens, NULL), PERCH_OK);
        return;
    }
    op again = *o;
    again.max_tokens = o->cut_short ? n_longest : o->max_tokens;
    again.n_completions = only_prompt ? 1 : o->n_completions;
    perch_request q;
    perch_event ev;
    perch_error err;
    uint32_t n_done = 0, at[MAX_COMPLETIONS] = {0};
    fill_request(e, &q, &again);
    q.user_data = (uint64_t)(o - h.ops);
    if (!CHECK_MSG(perch_submit(e, &q, NULL, &err) == PERCH_OK, "%s", err.message)) {
        return;
    }
    perch_event_init(&ev, sizeof ev);
    while (n_done < again.n_completions && step(e)) {
        while (perch_next(e, &ev, 0, NULL) == PERCH_OK) {
            for (size_t i = 0; i < ev.n_tokens; i++) {
                uint32_t k = at[ev.completion]++;
                bool same = k >= o->n_generated[ev.completion] || o->generated[ev.completion][k] == ev.tokens[i];
                CHECK_MSG(same, "operation %u: token %u differs", (unsigned)(o - h.ops), k);
            }
            n_done += ev.type == PERCH_EVENT_DONE;
            if (ev.type == PERCH_EVENT_DONE && ev.completion == 0 && !o->cut_short) {
                CU_ASSERT_EQUAL(hash_prompt_logprobs(&ev), o->prompt_logprobs);
            }
        }
    }
    for (uint32_t i = 0; i < o->n_completions; i++) {
        CU_ASSERT_TRUE(at[i] >= o->n_generated[i]);
    }
    perch_event_clear(&ev);
    /* what was cut short at different lengths goes on from where it was */
    if (o->cut_short && o->n_generated[0] < at[0]) {
        uint32_t length = length_of(e, o->sequence);
        CU_ASSERT_EQUAL(perch_sequence_rewind(e, h.ids[o->sequence], length - (at[0] - o->n_generated[0]), NULL),
                        PERCH_OK);
    }
}

static void replay(perch_engine *e) {
    uint32_t n_opened = h.n_sequences;
    bool forked[MAX_SEQUENCES] = {false};
    for (uint32_t i = 0; i < h.n_ops; i++) {
        forked[h.ops[i].child] |= h.ops[i].kind == OP_FORK;
    }
    for (uint32_t i = 0; i < n_opened; i++) {
        if (!forked[i]) {
            CU_ASSERT_EQUAL(perch_sequence_open(e, &h.ids[i], NULL), PERCH_OK);
        }
    }
    for (uint32_t i = 0; i < h.n_ops; i++) {
        op *o = &h.ops[i];
        perch_sequence_id id = h.ids[o->sequence];
        if (o->kind == OP_TURN) {
            replay_turn(e, o);
        } else if (o->kind == OP_APPEND) {
            CU_ASSERT_EQUAL(perch_sequence_append(e, id, o->tokens, o->n_tokens, NULL), PERCH_OK);
        } else if (o->kind == OP_REWIND) {
            CU_ASSERT_EQUAL(perch_sequence_rewind(e, id, o->n_tokens, NULL), PERCH_OK);
        } else {
            CU_ASSERT_EQUAL(perch_sequence_fork(e, id, o->n_tokens, &h.ids[o->child], NULL), PERCH_OK);
        }
    }
}

/* ---------------------------------------------------------------------- test -- */

static void check_one(uint64_t seed, totals *t) {
    test_rng rng = {seed};
    schedule s = random_schedule(&rng);
    uint32_t vocab = !strcmp(s.model_name, "wide") ? vocab_of_wide : vocab_of_small;
    memset(&map, 0, sizeof map);
    memset(&h, 0, sizeof h);
    choose_pool(&rng, &s.options);
    perch_engine *e = open_stepped(&s.options, &vocab);
    if (!e) {
        return;
    }
    e = run_schedule(&rng, e, &s, &vocab, t);
    if (!e) {
        return;
    }
    for (uint32_t i = 0; i < h.n_sequences; i++) {
        CHECK_MSG(!h.busy[i], "sequence %u never came to its end", i);
        const perch_hints none = {.struct_size = sizeof none}; /* those that are pinned are let go of */
        CU_ASSERT_TRUE(h.closed[i] || perch_sequence_hint(e, h.ids[i], &none, NULL) == PERCH_OK);
    }
    const char *broken = cache_check(e->kv);
    CHECK_MSG(!broken, "%s", broken);
    perch_stats stats = {.struct_size = sizeof stats};
    CU_ASSERT_EQUAL(perch_engine_stats(e, &stats, NULL), PERCH_OK);
    CHECK_MSG(stats.pages_live == 0, "%u pages are held: loads %llu, stores %llu, running %u, waiting %u",
              stats.pages_live, (unsigned long long)cache_transfers_pending(e->kv, CACHE_LOAD),
              (unsigned long long)cache_transfers_pending(e->kv, CACHE_STORE), stats.rows_running,
              stats.requests_waiting);
    perch_engine_destroy(e);

    perch_options whole = s.options;
    whole.cache_bytes = 0;
    whole.cache_max_entry_count = MAX_SEQUENCES + 4;
    whole.prefix_index = PERCH_OFF;
    whole.host_bytes = whole.disk_bytes = 0;
    whole.threads = 1;
    whole.max_batch_size = MAX_COMPLETIONS;
    whole.max_step_tokens = 256;
    whole.prefill_reserve = 200;
    map.checking = true;
    e = open_stepped(&whole, &vocab);
    if (e) {
        replay(e);
        CHECK_MSG(!map.broken, "logits differ");
        CHECK_MSG(map.n_checked == map.n, "%u rows of logits were computed, %u replayed", map.n, map.n_checked);
        perch_stats alone = {.struct_size = sizeof alone};
        CU_ASSERT_EQUAL(perch_engine_stats(e, &alone, NULL), PERCH_OK);
        CU_ASSERT_EQUAL(alone.evictions, 0);
    }
    perch_engine_destroy(e);
    t->n_schedules++;
    t->n_rows += map.n;
    t->n_evictions += stats.evictions;
    t->n_preemptions += stats.preemptions;
    t->n_hits += stats.hits;
    t->n_partial_hits += stats.partial_hits;
    t->n_misses += stats.misses;
    t->n_copied += stats.copied_pages;
    t->n_prefix += stats.prefix_tokens;
    t->n_restored += stats.restored_tokens;
    t->n_fetched += stats.fetched_pages;
    t->n_raced += stats.raced_tokens;
    t->n_declined += stats.declined_tokens;
    CU_ASSERT_EQUAL(stats.corrupt_pages + stats.failed_disk_reads + stats.failed_disk_writes, 0);
    CU_ASSERT_EQUAL(stats.disk_status, PERCH_OK);
}

static void logits_are_the_same_bits_whatever_was_evicted(void) {
    totals t = {0};
    uint64_t seed = test_seed(1), n = test_scaled(3000);
    find_device();
    for (uint64_t i = 0; i < n; i++) {
        check_one(seed + i, &t);
        if (CU_get_number_of_failures() > 0) {
            CHECK_MSG(false, "PERCH_TEST_SEED=%llu PERCH_TEST_SCALE=0.001", (unsigned long long)(seed + i));
            return;
        }
    }
    printf(
        "  %llu schedules, %llu rows of logits; %llu evictions, %llu preemptions, %llu hits, %llu partial hits, %llu "
        "misses, %llu pages copied, %llu tokens found with others, %llu restored, %llu pages from the disk, %llu "
        "tokens "
        "computed beside that, %llu instead\n",
        (unsigned long long)t.n_schedules, (unsigned long long)t.n_rows, (unsigned long long)t.n_evictions,
        (unsigned long long)t.n_preemptions, (unsigned long long)t.n_hits, (unsigned long long)t.n_partial_hits,
        (unsigned long long)t.n_misses, (unsigned long long)t.n_copied, (unsigned long long)t.n_prefix,
        (unsigned long long)t.n_restored, (unsigned long long)t.n_fetched, (unsigned long long)t.n_raced,
        (unsigned long long)t.n_declined);
    printf("  %llu restarts that found %llu pages\n", (unsigned long long)t.n_restarts, (unsigned long long)t.n_found);
    /* the schedules are worth something only if these things happen in them */
    CU_ASSERT_TRUE(n < 100 || (t.n_restarts > n / 8 && t.n_found > n / 20));
    CU_ASSERT_TRUE(n < 3 || (t.n_evictions > 0 && t.n_hits + t.n_partial_hits > 0 && t.n_prefix > 0));
    CU_ASSERT_TRUE(n < 30 || (t.n_preemptions > 0 && t.n_restored > 0));
    CU_ASSERT_TRUE(n < 50 || (t.n_evictions > n && t.n_preemptions > n && t.n_hits > n / 2));
    CU_ASSERT_TRUE(n < 100 ||
                   (t.n_partial_hits > 0 && t.n_misses > 0 && t.n_copied > 0 && t.n_prefix > n && t.n_restored > n));
    CU_ASSERT_TRUE(n < 100 || (t.n_fetched > n / 10 && t.n_raced > n && t.n_declined > n));
}

/* The folder is there before a schedule runs, and gone when the process ends, however it does that. */
static void remove_disk(void) {
    unlink(disk_path);
    *strrchr(disk_path, '/') = '\0';
    rmdir(disk_path);
}

int main(int argc, char **argv) {
    static const test_case tests[] = {
        {"logits_are_the_same_bits_whatever_was_evicted", logits_are_the_same_bits_whatever_was_evicted},
    };
    const char *folder = getenv("TMPDIR");
    snprintf(disk_path, sizeof disk_path, "%.30s/perch-evict-XXXXXX", folder ? folder : "/tmp");
    if (!mkdtemp(disk_path)) {
        perror(disk_path);
        return 1;
    }
    snprintf(disk_path + strlen(disk_path), 8, "/kv");
    atexit(remove_disk);
    return test_main("eviction_test", tests, sizeof tests / sizeof *tests, argc, argv);
}
