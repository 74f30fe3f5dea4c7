/* The scheduler over a real cache, without a model: what a step may hold, who goes first, and that everybody gets there. */
#include "engine/sched.h"
#include "tests/support/check.h"

#include <stdlib.h>
#include <string.h>

#define MAX_ITEMS 400u
#define MAX_TOKENS 1024u

/* An item and what it is to become: `wanted` tokens are generated behind its prompt. */
typedef struct job {
    sched_item item;
    uint32_t n_prompt, wanted;
    uint32_t n_generated;
    uint64_t added_step, admitted_step, finished_step;
    uint32_t
        overtaken; /* admissions of later arrivals with no higher priority while it waited for its first admission */
    bool admitted, finished;
    uint64_t first_overtaken_step, last_overtaken_step; /* by a later arrival of no higher priority; 0 = never */
    int32_t tokens[MAX_TOKENS];                         /* if its prefix is looked for */
} job;

typedef struct world {
    cache *kv;
    sched s;
    job jobs[MAX_ITEMS];
    uint32_t n_jobs;
    uint64_t n_ops;
} world;

static world w;

static void on_admit(void *user, sched_item *item, uint32_t n_valid) {
    (void)user;
    job *j = (job *)item;
    CHECK_MSG(n_valid < item->n_tokens, "%u of %u tokens", n_valid, item->n_tokens);
    if (!item->was_admitted) {
        CU_ASSERT_FALSE(j->admitted);
        j->admitted = true;
        j->admitted_step = w.s.step;
        for (uint32_t i = 0; i < w.n_jobs; i++) {
            job *other = &w.jobs[i];
            if (other != j && other->item.state == SCHED_WAITING && !other->admitted &&
                other->item.arrival < item->arrival && other->item.priority >= item->priority) {
                other->overtaken++;
                other->last_overtaken_step = w.s.step;
                if (other->first_overtaken_step == 0) {
                    other->first_overtaken_step = w.s.step;
                }
            }
        }
    }
}

static bool world_open(const cache_config *kv, const sched_config *config) {
    memset(&w, 0, sizeof w);
    perch_error err;
    if (!CHECK_MSG(cache_create(kv, &w.kv, &err) == PERCH_OK, "%s", err.message)) {
        return false;
    }
    return CHECK_MSG(sched_init(&w.s, config, w.kv, on_admit, NULL, &err) == PERCH_OK, "%s", err.message);
}

static void world_close(void) {
    for (uint32_t i = 0; i < w.n_jobs; i++) {
        sched_remove(&w.s, &w.jobs[i].item);
        cache_entry_destroy(w.kv, w.jobs[i].item.entry);
    }
    sched_fini(&w.s);
    cache_destroy(w.kv);
}

static job *world_add(uint32_t n_prompt, uint32_t wanted, int32_t priority) {
    job *j = &w.jobs[w.n_jobs++];
    CU_ASSERT_EQUAL_FATAL(cache_entry_create(w.kv, 0, &j->item.entry, NULL), PERCH_OK);
    CU_ASSERT_EQUAL_FATAL(cache_entry_reserve(w.kv, j->item.entry, NULL), PERCH_OK);
    j->n_prompt = n_prompt;
    j->wanted = wanted;
    j->item.n_tokens = n_prompt;
    j->item.logits_from = n_prompt - 1;
    j->item.priority = priority;
    j->added_step = w.s.step;
    sched_add(&w.s, &j->item);
    return j;
}

/* A job whose first n_alike tokens are those of every other job of the same script, and of nobody else. */
static job *world_add_alike(uint32_t script, uint32_t n_alike, uint32_t n_prompt, uint32_t wanted, int32_t priority) {
    job *j = &w.jobs[w.n_jobs];
    for (uint32_t i = 0; i < MAX_TOKENS; i++) {
        j->tokens[i] = (int32_t)(i < n_alike ? script : 1000 + w.n_jobs);
    }
    j->item.tokens = j->tokens;
    j->item.n_known = n_prompt;
    return world_add(n_prompt, wanted, priority);
}

/* A finished job's place is used again: its conversation goes on with a longer prompt. */
static void job_again(job *j, uint32_t n_more, uint32_t wanted, int32_t priority) {
    CU_ASSERT_EQUAL_FATAL(cache_entry_reserve(w.kv, j->item.entry, NULL), PERCH_OK);
    j->n_prompt = j->item.n_tokens + n_more;
    j->wanted = wanted;
    j->n_generated = 0;
    j->item.n_tokens = j->n_prompt;
    j->item.logits_from = j->n_prompt - 1;
    j->item.priority = priority;
    j->admitted = j->finished = false;
    j->overtaken = 0;
    j->added_step = w.s.step;
    sched_add(&w.s, &j->item);
}

static void job_finish(job *j) {
    sched_remove(&w.s, &j->item);
    cache_entry_release(w.kv, j->item.entry);
    j->finished = true;
    j->finished_step = w.s.step;
}

static void check_plan(const sched_plan *plan) {
    const sched_config *config = &w.s.config;
    uint32_t n_tokens = 0, n_logits = 0, n_prefill_waiting = 0;
    CU_ASSERT_TRUE(plan->n_rows <= config->max_batch_size);
    for (uint32_t i = 0; i < plan->n_rows; i++) {
        const sched_row *row = &plan->rows[i];
        const job *j = (const job *)row->item;
        CU_ASSERT_EQUAL(row->item->state, SCHED_RUNNING);
        CU_ASSERT_TRUE(row->n_tokens > 0);
        CU_ASSERT_TRUE(i >= plan->n_decode || row->n_tokens == 1);
        CU_ASSERT_EQUAL(row->first_position, cache_entry_n_valid(row->item->entry));
        CU_ASSERT_TRUE(row->first_position + row->n_tokens <= j->n_prompt + j->n_generated);
        CU_ASSERT_TRUE(cache_entry_slot(row->item->entry) != CACHE_NO_SLOT);
        n_tokens += row->n_tokens;
        n_logits += row->n_logits;
    }
    for (const sched_item *item = w.s.running.head; item; item = item->next) {
        n_prefill_waiting += item->planned_step != w.s.step;
    }
    CU_ASSERT_EQUAL(n_tokens, plan->n_tokens);
    CU_ASSERT_EQUAL(n_logits, plan->n_logits);
    CU_ASSERT_TRUE(n_tokens <= config->max_step_tokens);
    CU_ASSERT_TRUE(n_logits <= config->max_logit_rows);
    /* a running item is left out only if the step is full, or the room for its logits is */
    CU_ASSERT_TRUE(n_prefill_waiting == 0 || n_tokens == config->max_step_tokens || n_logits == config->max_logit_rows);
    /* the first of the running list always advances */
    CU_ASSERT_TRUE(!w.s.running.head || w.s.running.head->planned_step == w.s.step);
    /* and while there is anything to do, something is done */
    CU_ASSERT_TRUE(plan->n_rows > 0 || (w.s.n_waiting == 0 && w.s.n_running == 0));
}

/* One step as the engine would do it; generated tokens join, done jobs end. Returns the tokens computed. */
static uint32_t world_step(void) {
    const sched_plan *plan = sched_make_plan(&w.s);
    uint32_t n_tokens = plan->n_tokens;
    check_plan(plan);
    cache_commands_clear(w.kv);
    sched_commit(&w.s);
    for (uint32_t i = 0; i < plan->n_rows; i++) {
        job *j = (job *)plan->rows[i].item;
        w.n_ops++;
        if (j->item.tokens) {
            cache_publish(w.kv, j->item.entry, j->tokens, plan->rows[i].first_position + plan->rows[i].n_tokens);
        }
        if (cache_entry_n_valid(j->item.entry) == j->item.n_tokens) {
            if (j->n_generated == j->wanted) {
                job_finish(j);
            } else {
                j->n_generated++;
                j->item.n_known = ++j->item.n_tokens;
                j->item.logits_from = j->item.n_tokens - 1;
            }
        }
    }
    return n_tokens;
}

static const cache_config roomy_cache = {
    .page_bytes = 64, .group_bytes = 64, .n_pages = 4096, .n_slots = 8, .session_len = 1024, .chunk_pages = 1};
static const sched_config plain = {.max_batch_size = 8,
                                   .max_step_tokens = 64,
                                   .prefill_reserve = 16,
                                   .max_logit_rows = 16,
                                   .age_steps = 100,
                                   .bypass_limit = 8};

static void decode_rows_come_first_and_prefill_fills_the_step(void) {
    if (!world_open(&roomy_cache, &plain)) {
        return;
    }
    job *a = world_add(10, 50, 0);
    CU_ASSERT_EQUAL(world_step(), 10);
    job *b = world_add(200, 5, 0);
    const sched_plan *plan = sched_make_plan(&w.s);
    CU_ASSERT_EQUAL(plan->n_rows, 2);
    CU_ASSERT_EQUAL(plan->n_decode, 1);
    CU_ASSERT_PTR_EQUAL(plan->rows[0].item, &a->item);
    CU_ASSERT_EQUAL(plan->rows[0].n_logits, 1);
    CU_ASSERT_PTR_EQUAL(plan->rows[1].item, &b->item);
    CU_ASSERT_EQUAL(plan->rows[1].n_tokens, 63);
    CU_ASSERT_EQUAL(plan->rows[1].n_logits, 0);
    world_close();
}

static void prefill_keeps_its_reserve_when_all_other_rows_decode(void) {
    sched_config tight = plain;
    tight.max_step_tokens = 24;
    if (!world_open(&roomy_cache, &tight)) {
        return;
    }
    for (uint32_t i = 0; i < 7; i++) {
        world_add(1, 400, 0);
    }
    world_step();
    world_add(300, 1, 0);
    uint32_t n = world_step();
    CU_ASSERT_EQUAL(n, 24); /* 7 rows and 17 tokens of the prompt */
    world_close();
}

static void equal_priorities_are_admitted_in_order_of_arrival(void) {
    if (!world_open(&roomy_cache, &plain)) {
        return;
    }
    for (uint32_t i = 0; i < 60; i++) {
        world_add(1 + i % 7, 1 + i * 5 % 11, 0);
    }
    while (w.s.n_waiting || w.s.n_running) {
        world_step();
    }
    for (uint32_t i = 1; i < 60; i++) {
        CU_ASSERT_TRUE(w.jobs[i - 1].admitted_step <= w.jobs[i].admitted_step);
        CU_ASSERT_EQUAL(w.jobs[i].overtaken, 0);
    }
    world_close();
}

static void higher_priority_goes_first_and_the_lowest_ages_past_it(void) {
    sched_config one_row = plain;
    one_row.max_batch_size = 1;
    one_row.age_steps = 10;
    if (!world_open(&roomy_cache, &one_row)) {
        return;
    }
    world_add(1, 5, 0);
    world_step();
    job *low = world_add(1, 1, -8);
    job *high = world_add(1, 1, 7);
    while (!high->finished) {
        world_step();
    }
    CU_ASSERT_FALSE(low->admitted);
    /* a stream of the highest priority, always one waiting: the low one still comes, once aged above it */
    for (uint32_t i = 0; i < 300 && !low->finished; i++) {
        if (w.s.n_waiting < 2) {
            world_add(1, 1, 7);
        }
        world_step();
    }
    CU_ASSERT_TRUE(low->finished);
    CHECK_MSG(low->admitted_step - low->added_step >= 150, "%llu steps",
              (unsigned long long)(low->admitted_step - low->added_step));
    world_close();
}

static void a_row_without_a_page_takes_it_from_the_youngest_of_the_lowest_priority(void) {
    cache_config small = roomy_cache;
    small.session_len = 128; /* 8 pages */
    small.n_pages = 8;
    if (!world_open(&small, &plain)) {
        return;
    }
    job *first = world_add(16, 100, 0);
    job *second = world_add(16, 60, 0);
    job *third = world_add(16, 60, 1);
    world_step();
    uint64_t preempted_before = w.s.preemptions;
    while (w.s.preemptions == preempted_before) {
        world_step();
    }
    CU_ASSERT_EQUAL(second->item.state, SCHED_WAITING); /* younger than first, lower than third */
    CU_ASSERT_EQUAL(first->item.state, SCHED_RUNNING);
    CU_ASSERT_EQUAL(third->item.state, SCHED_RUNNING);
    while (w.s.n_waiting || w.s.n_running) {
        world_step();
    }
    CU_ASSERT_TRUE(first->finished && second->finished && third->finished);
    world_close();
}

static void the_first_of_the_list_takes_the_page_it_needs_from_the_last(void) {
    cache_config small = roomy_cache;
    small.session_len = 128; /* 8 pages */
    small.n_pages = 9;
    if (!world_open(&small, &plain)) {
        return;
    }
    job *first = world_add(55, 60, 0),
        *second = world_add(62, 60, 0); /* the second takes the last page, the first needs it */
    while (w.s.preemptions == 0) {
        world_step();
    }
    CU_ASSERT_EQUAL(first->item.state, SCHED_RUNNING);
    CU_ASSERT_EQUAL(second->item.state, SCHED_WAITING);
    CU_ASSERT_EQUAL(first->item.planned_step, w.s.step);
    world_close();
}

static void an_item_that_waits_for_memory_is_overtaken_a_bounded_number_of_times(void) {
    cache_config small = roomy_cache;
    small.session_len = 256; /* 16 pages */
    small.n_pages = 16;
    if (!world_open(&small, &plain)) {
        return;
    }
    world_add(64, 100, 0);
    world_step();
    job *large = world_add(250, 1, 0);
    uint32_t n_small = 0;
    for (uint32_t i = 0; i < 2000 && !large->admitted; i++) {
        if (w.s.n_waiting < 3 && w.n_jobs < MAX_ITEMS) {
            world_add(8, 4, 0);
            n_small++;
        }
        world_step();
    }
    CU_ASSERT_TRUE(large->admitted);
    CHECK_MSG(large->overtaken > 0 && large->overtaken <= plain.bypass_limit, "%u times of %u", large->overtaken,
              n_small);
    world_close();
}

static void logit_rows_bound_a_scoring_chunk(void) {
    if (!world_open(&roomy_cache, &plain)) {
        return;
    }
    job *j = world_add(100, 1, 0);
    j->item.logits_from = 30; /* as for prompt log-probabilities */
    const sched_plan *plan = sched_make_plan(&w.s);
    CU_ASSERT_EQUAL(plan->rows[0].n_tokens, 46);
    CU_ASSERT_EQUAL(plan->rows[0].n_logits, 16);
    world_close();
}

/* ---------------------------------------------------------------- prefixes -- */

static cache_config indexed(uint32_t n_pages) {
    cache_config kv = roomy_cache;
    kv.prefix_index = true;
    kv.n_pages = n_pages;
    return kv;
}

static void what_begins_alike_is_computed_once(void) {
    const cache_config kv = indexed(4096);
    if (!world_open(&kv, &plain)) {
        return;
    }
    for (uint32_t i = 0; i < 5; i++) {
        world_add_alike(7, 320, 330 + i, 1, 0);
    }
    job *other = world_add_alike(8, 320, 40, 1, 0);
    uint32_t n_computed = 0;
    while (w.s.n_waiting || w.s.n_running) {
        n_computed += world_step();
        const char *broken = cache_check(w.kv);
        CHECK_MSG(!broken, "%s", broken);
    }
    /* The beginning; of each its own end, and one token that it generated; and what has nothing to do with them. */
    CU_ASSERT_EQUAL(n_computed, 320 + (10 + 11 + 12 + 13 + 14) + 5 + 40 + 1);
    CU_ASSERT_EQUAL(w.s.prefix_waits, 4);
    CU_ASSERT_EQUAL(other->admitted_step, 1); /* whoever waits for no prefix goes by */
    world_close();
}

static void what_its_owner_gave_up_is_computed_by_the_next(void) {
    const cache_config kv = indexed(4096);
    if (!world_open(&kv, &plain)) {
        return;
    }
    job *first = world_add_alike(7, 600, 620, 1, 0), *second = world_add_alike(7, 600, 620, 1, 0);
    world_step();
    world_step();
    CU_ASSERT_FALSE(second->admitted);
    job_finish(first);
    uint32_t n_computed = 0;
    while (w.s.n_waiting || w.s.n_running) {
        n_computed += world_step();
    }
    CU_ASSERT_TRUE(second->finished);
    CU_ASSERT_EQUAL(n_computed, 620 - 2 * 64 + 1);
    world_close();
}

/* The first is kept from computing by others with a higher priority. */
static void a_prefix_that_does_not_grow_is_not_waited_for(void) {
    const cache_config kv = indexed(4096);
    if (!world_open(&kv, &plain)) {
        return;
    }
    job *slow = world_add_alike(7, 900, 1000, 1, 0);
    world_step();
    world_add(1000, 1, 5);
    world_add(1000, 1, 5);
    job *high = world_add_alike(7, 900, 1000, 1, 5);
    uint64_t added = w.s.step;
    while (!high->admitted && w.s.step < added + 100) {
        world_step();
    }
    CU_ASSERT_FALSE(slow->finished);
    CHECK_MSG(high->admitted_step - added <= 2 * SCHED_PREFIX_STEPS + 1, "after %llu steps",
              (unsigned long long)(high->admitted_step - added));
    world_close();
}

static sched_config by_prefix(uint32_t max_batch_size, uint32_t patience) {
    sched_config config = plain;
    config.max_batch_size = max_batch_size;
    config.age_steps = 0;
    config.by_prefix = true;
    config.prefix_patience = patience;
    return config;
}

static void the_longest_cached_prefix_goes_first(void) {
    const cache_config kv = indexed(4096);
    const sched_config config = by_prefix(1, 64);
    if (!world_open(&kv, &config)) {
        return;
    }
    world_add_alike(1, 200, 220, 1, 0);
    while (w.s.n_waiting || w.s.n_running) {
        world_step();
    }
    job *none = world_add_alike(2, 100, 64, 1, 0), *some = world_add_alike(1, 100, 180, 1, 0),
        *most = world_add_alike(1, 200, 201, 1, 0), *urgent = world_add_alike(3, 100, 64, 1, 1);
    while (w.s.n_waiting || w.s.n_running) {
        world_step();
    }
    CU_ASSERT_TRUE(urgent->admitted_step < most->admitted_step); /* priority comes before prefixes */
    CU_ASSERT_TRUE(most->admitted_step < some->admitted_step);
    CU_ASSERT_TRUE(some->admitted_step < none->admitted_step);
    world_close();
}

/* Random arrivals, half of which begin alike. Nobody is overtaken for more than prefix_patience steps, from the first time on. */
static void nobody_is_overtaken_for_longer_than_the_patience(void) {
    uint32_t n_overtaken = 0;
    for (uint64_t seed = 1; seed <= 40; seed++) {
        test_rng rng = {seed};
        const cache_config kv = indexed(4096);
        const sched_config config =
            by_prefix(1 + (uint32_t)test_rng_below(&rng, 4), (uint32_t)test_rng_below(&rng, 40));
        if (!world_open(&kv, &config)) {
            return;
        }
        while (w.n_jobs < 120 || w.s.n_waiting || w.s.n_running) {
            if (w.n_jobs < 120 && test_rng_below(&rng, 3) == 0) {
                bool alike = test_rng_below(&rng, 2) == 0;
                world_add_alike(1 + (uint32_t)test_rng_below(&rng, 2), alike ? 160 : 0,
                                170 + (uint32_t)test_rng_below(&rng, 60), 1 + (uint32_t)test_rng_below(&rng, 6), 0);
            }
            world_step();
        }
        for (uint32_t i = 0; i < w.n_jobs; i++) {
            const job *j = &w.jobs[i];
            bool awaited = j->tokens[0] <= 2; /* a prefix: who waits for one lets others go by of its own accord */
            n_overtaken += j->overtaken > 0;
            CHECK_MSG(j->overtaken == 0 || awaited ||
                          j->last_overtaken_step - j->first_overtaken_step <= config.prefix_patience,
                      "seed %llu: job %u was overtaken %u times, in steps %llu to %llu", (unsigned long long)seed, i,
                      j->overtaken, (unsigned long long)j->first_overtaken_step,
                      (unsigned long long)j->last_overtaken_step);
        }
        world_close();
    }
    CU_ASSERT_TRUE(n_overtaken > 100);
}

/* Random traffic of half-alike prompts, the same for the same seed; waits[i]: steps until job i was admitted. False: no room. */
enum { WAITERS = 120 };
static bool measure_waits(uint64_t seed, const sched_config *config, uint64_t waits[WAITERS], uint64_t *longest) {
    test_rng rng = {seed};
    const cache_config kv = indexed(4096);
    if (!world_open(&kv, config)) {
        return false;
    }
    while (w.n_jobs < WAITERS || w.s.n_waiting || w.s.n_running) {
        if (w.n_jobs < WAITERS && test_rng_below(&rng, 3) == 0) {
            uint32_t n_alike = test_rng_below(&rng, 2) == 0 ? 160 : 0;
            uint32_t script = 1 + (uint32_t)test_rng_below(&rng, 2),
                     n_prompt = 170 + (uint32_t)test_rng_below(&rng, 60);
            world_add_alike(script, n_alike, n_prompt, 1 + (uint32_t)test_rng_below(&rng, 6), 0);
        }
        world_step();
    }
    *longest = 0;
    for (uint32_t i = 0; i < WAITERS; i++) {
        const job *j = &w.jobs[i];
        uint64_t busy = j->finished_step - j->admitted_step;
        waits[i] = j->admitted_step - j->added_step;
        *longest = *longest > busy ? *longest : busy;
    }
    world_close();
    return true;
}

/* Who was overtaken for the patience finds the rows taken by those who overtook, for as long as they still run. */
static void nobody_waits_longer_than_under_fcfs_by_more_than_the_patience_and_a_turn(void) {
    uint64_t most_longer = 0;
    double sum[2] = {0, 0};
    for (uint64_t seed = 1; seed <= 60; seed++) {
        uint64_t waits[2][WAITERS], longest[2];
        test_rng rng = {seed + 1000};
        uint32_t n_rows = 1 + (uint32_t)test_rng_below(&rng, 4), patience = (uint32_t)test_rng_below(&rng, 40);
        sched_config config = by_prefix(n_rows, patience);
        bool measured = measure_waits(seed, &config, waits[1], &longest[1]);
        config.by_prefix = false;
        if (!measured || !measure_waits(seed, &config, waits[0], &longest[0])) {
            return;
        }
        for (uint32_t i = 0; i < WAITERS; i++) {
            uint64_t longer = waits[1][i] > waits[0][i] ? waits[1][i] - waits[0][i] : 0;
            uint64_t bound = patience + longest[1];
            most_longer = most_longer > longer ? most_longer : longer;
            CHECK_MSG(longer <= bound,
                      "seed %llu, %u rows: job %u waited %llu steps, %llu under fcfs, the bound is %llu more",
                      (unsigned long long)seed, n_rows, i, (unsigned long long)waits[1][i],
                      (unsigned long long)waits[0][i], (unsigned long long)bound);
            sum[0] += (double)waits[0][i];
            sum[1] += (double)waits[1][i];
        }
    }
    CU_ASSERT_TRUE(most_longer > 0);
    CHECK_MSG(sum[1] < sum[0], "by prefix %.0f steps were waited, under fcfs %.0f", sum[1], sum[0]);
}

/* ------------------------------------------------------------ random traffic -- */

static uint32_t between(test_rng *rng, uint32_t low, uint32_t high) {
    return low + (uint32_t)test_rng_below(rng, high - low + 1);
}

static void random_configs(test_rng *rng, cache_config *kv, sched_config *config) {
    kv->page_bytes = 1u << between(rng, 4, 8);
    kv->group_bytes = between(rng, 1, 12) * 16;
    kv->session_len = between(rng, 20, 300);
    kv->n_slots = between(rng, 1, 12);
    kv->chunk_pages = (uint32_t[]){1, 1, 2, 5, 0}[test_rng_below(rng, 5)];
    uint32_t least = cache_pages_per_slot(kv);
    kv->n_pages = least + (uint32_t)test_rng_below(rng, 4ull * least);
    config->max_batch_size = kv->n_slots;
    config->prefill_reserve = between(rng, 1, 20);
    config->max_step_tokens = config->max_batch_size + config->prefill_reserve + (uint32_t)test_rng_below(rng, 100);
    config->max_logit_rows = config->max_batch_size + between(rng, 1, 16);
    config->age_steps = between(rng, 1, 60);
    config->bypass_limit = (uint32_t)test_rng_below(rng, 12);
}

/* One session: conversations come, go on, are cancelled and end, and at last everything that was asked for is done. */
static void random_session(test_rng *rng, uint64_t seed) {
    cache_config kv;
    sched_config config;
    random_configs(rng, &kv, &config);
    if (!world_open(&kv, &config)) {
        return;
    }
    uint32_t most_jobs = between(rng, 2, 60);
    for (uint32_t i = 0; i < 400; i++) {
        uint64_t what = test_rng_below(rng, 10);
        int32_t priority = (int32_t)between(rng, 0, 3) - 1;
        if (what < 4 && w.n_jobs < most_jobs) {
            uint32_t n_prompt = between(rng, 1, kv.session_len - 1);
            world_add(n_prompt, (uint32_t)test_rng_below(rng, kv.session_len - n_prompt) + 1, priority);
        } else if (what < 6 && w.n_jobs > 0) {
            job *j = &w.jobs[test_rng_below(rng, w.n_jobs)];
            if (j->finished && j->item.n_tokens + 2 <= kv.session_len) {
                uint32_t n_more = between(rng, 1, kv.session_len - j->item.n_tokens - 1);
                job_again(j, n_more, kv.session_len - j->item.n_tokens - n_more, priority);
            } else if (!j->finished && what == 5) {
                job_finish(j); /* cancelled */
            }
        }
        world_step();
        const char *broken = cache_check(w.kv);
        if (!CHECK_MSG(!broken, "seed %llu, step %u: %s", (unsigned long long)seed, i, broken)) {
            break;
        }
    }
    /* Forward progress: with no new arrivals, all is done in a number of steps that the work bounds. */
    uint64_t limit = w.s.step + 200ull * w.n_jobs * kv.session_len;
    while ((w.s.n_waiting || w.s.n_running) && w.s.step < limit) {
        world_step();
    }
    for (uint32_t i = 0; i < w.n_jobs; i++) {
        CHECK_MSG(w.jobs[i].finished, "seed %llu: job %u starved", (unsigned long long)seed, i);
        CHECK_MSG(w.jobs[i].overtaken <= config.bypass_limit, "seed %llu: job %u overtaken %u times of %u",
                  (unsigned long long)seed, i, w.jobs[i].overtaken, config.bypass_limit);
    }
    cache_stats stats;
    cache_stats_get(w.kv, &stats);
    CU_ASSERT_EQUAL(stats.n_pinned, 0);
    CU_ASSERT_EQUAL(stats.n_free + stats.n_idle, stats.n_pages);
    world_close();
}

static void random_traffic_always_ends_and_never_breaks_the_cache(void) {
    uint64_t seed = test_seed(20261), wanted = test_scaled(1000000), n_ops = 0;
    for (uint64_t i = 0; n_ops < wanted; i++) {
        test_rng rng = {seed + i};
        random_session(&rng, seed + i);
        n_ops += w.n_ops;
        if (CU_get_number_of_failures() > 0) {
            return;
        }
    }
}

int main(int argc, char **argv) {
    static const test_case tests[] = {
#define TEST(name) {#name, name}
        TEST(decode_rows_come_first_and_prefill_fills_the_step),
        TEST(prefill_keeps_its_reserve_when_all_other_rows_decode),
        TEST(equal_priorities_are_admitted_in_order_of_arrival),
        TEST(higher_priority_goes_first_and_the_lowest_ages_past_it),
        TEST(a_row_without_a_page_takes_it_from_the_youngest_of_the_lowest_priority),
        TEST(the_first_of_the_list_takes_the_page_it_needs_from_the_last),
        TEST(an_item_that_waits_for_memory_is_overtaken_a_bounded_number_of_times),
        TEST(logit_rows_bound_a_scoring_chunk),
        TEST(what_begins_alike_is_computed_once),
        TEST(what_its_owner_gave_up_is_computed_by_the_next),
        TEST(a_prefix_that_does_not_grow_is_not_waited_for),
        TEST(the_longest_cached_prefix_goes_first),
        TEST(nobody_is_overtaken_for_longer_than_the_patience),
        TEST(nobody_waits_longer_than_under_fcfs_by_more_than_the_patience_and_a_turn),
        TEST(random_traffic_always_ends_and_never_breaks_the_cache),
    };
    return test_main("sched_test", tests, sizeof tests / sizeof *tests, argc, argv);
}
