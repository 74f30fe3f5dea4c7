/* cost: rates that are planted in simulated steps and loads are found again, through noise, outliers and change. */
#include "engine/cost.h"

#include "tests/support/check.h"

#include <math.h>

#define PAGE_BYTES 65536u
#define STEP_TOKENS 256u

/* A machine, in microseconds. */
typedef struct machine {
    double fixed, token, position, row, row_position;
    double noise; /* relative, uniform to both sides */
    test_rng rng;
} machine;

static const machine usual = {.fixed = 900, .token = 40, .position = 0.004, .row = 120, .row_position = 0.01};

/* Planted attention is a tenth of this share's, so that the assumption is wrong and has to be corrected. */
#define ASSUMED_SHARE 0.04 /* per position; of a token */

static double time_of(machine *w, const cost_step *s) {
    double us = w->fixed + w->token * s->n_prefill + w->position * (double)s->prefill_positions + w->row * s->n_decode +
                w->row_position * (double)s->decode_positions;
    return us * (1 + w->noise * (2 * test_rng_unit(&w->rng) - 1));
}

/* A chunk of a prompt beside decode rows; prompts reach to max_position. */
static cost_step random_step(machine *w, uint32_t max_position) {
    uint32_t n_decode = (uint32_t)test_rng_below(&w->rng, 17);
    uint32_t n = 1 + (uint32_t)test_rng_below(&w->rng, STEP_TOKENS - n_decode);
    uint64_t first = test_rng_below(&w->rng, max_position);
    uint64_t context = test_rng_below(&w->rng, max_position);
    cost_step s = {.n_prefill = n,
                   .prefill_positions = n * first + (uint64_t)n * (n - 1) / 2,
                   .n_decode = n_decode,
                   .decode_positions = n_decode * context};
    s.us = time_of(w, &s);
    return s;
}

static void start(cost_model *m) { cost_init(m, PAGE_BYTES, STEP_TOKENS, 1000, 1000 * ASSUMED_SHARE / 40); }

static void learn(cost_model *m, machine *w, uint32_t n_steps, uint32_t max_position) {
    for (uint32_t i = 0; i < n_steps; i++) {
        cost_step s = random_step(w, max_position);
        cost_add_step(m, &s);
    }
}

/* What a token at that position costs in a full step with eight rows of half that context. */
static double truth(const machine *w, double position, double max_position) {
    double rows = 8 * (w->row + w->row_position * max_position / 2);
    return w->token + w->position * position + (w->fixed + rows) / (STEP_TOKENS - 8);
}

static void check_rates(const cost_model *m, const machine *w, double max_position, double tolerance,
                        const char *when) {
    cache_costs c;
    cost_get(m, &c);
    for (int i = 0; i < 2; i++) {
        double position = i * max_position, found = c.compute_us + position * c.compute_us_per_position;
        double wanted = truth(w, position, max_position);
        CHECK_MSG(fabs(found / wanted - 1) < tolerance, "%s: %.2f us at position %.0f, not %.2f", when, found, position,
                  wanted);
    }
}

static void test_unknown(void) {
    cost_model m;
    cache_costs c;
    start(&m);
    cost_add_load(&m, CACHE_HOST, PAGE_BYTES, 100);
    cost_add_step(&m, &(cost_step){.n_decode = 4, .us = 500});
    cost_get(&m, &c);
    CU_ASSERT_TRUE(c.compute_us <= 0 && c.compute_us_per_position <= 0 && c.page_us[CACHE_HOST] <= 0);
    CU_ASSERT_EQUAL(cost_break_even(&c, CACHE_HOST, PAGE_BYTES, PAGE_BYTES, 4096), 0);
}

static void test_exact(void) {
    machine w = usual;
    cost_model m;
    start(&m);
    w.rng.state = test_seed(1);
    learn(&m, &w, 600, 8192);
    check_rates(&m, &w, 8192, 0.05, "without noise");
}

static void test_noise_and_outliers(void) {
    machine w = usual;
    cost_model m;
    start(&m);
    w.noise = 0.2;
    w.rng.state = test_seed(2);
    for (uint32_t i = 0; i < 1000; i++) {
        cost_step s = random_step(&w, 8192);
        s.us *= i % 50 == 49 ? 100 : 1; /* somebody else had the machine */
        cost_add_step(&m, &s);
    }
    check_rates(&m, &w, 8192, 0.25, "with noise and outliers");
}

/* The machine becomes three times slower, or faster: the rates follow. */
static void test_change(void) {
    for (int i = 0; i < 2; i++) {
        double factor = i ? 3 : 1.0 / 3;
        machine w = usual;
        cost_model m;
        start(&m);
        w.noise = 0.1;
        w.rng.state = test_seed(3);
        learn(&m, &w, 500, 8192);
        w.fixed *= factor;
        w.token *= factor;
        w.position *= factor;
        w.row *= factor;
        w.row_position *= factor;
        learn(&m, &w, 1500, 8192);
        check_rates(&m, &w, 8192, 0.15, i ? "a slower machine" : "a faster machine");
    }
}

/* Short prompts say nothing of long contexts: there the assumption about attention holds, and no noise is extrapolated. */
static void test_short_contexts(void) {
    machine w = usual;
    cost_model m;
    cache_costs c;
    start(&m);
    w.noise = 0.2;
    w.rng.state = test_seed(4);
    for (uint32_t i = 0; i < 400; i++) {
        cost_step s = {.n_prefill = 16, .prefill_positions = 16 * 15 / 2};
        s.us = time_of(&w, &s);
        cost_add_step(&m, &s);
    }
    cost_get(&m, &c);
    double share = c.compute_us_per_position / m.rate[0], assumed = ASSUMED_SHARE / 40;
    CHECK_MSG(share > assumed / 2 && share < assumed * 2, "a position adds %.3g of a token, not %.3g", share, assumed);
}

static void test_loads(void) {
    cost_model m;
    cache_costs c;
    machine w = usual;
    test_rng rng = {test_seed(5)};
    start(&m);
    learn(&m, &w, 20, 1024);
    for (uint32_t i = 0; i < 300; i++) {
        uint64_t n_bytes = (1 + test_rng_below(&rng, 32)) * PAGE_BYTES;
        double us = 150 + (double)n_bytes / 5000; /* 5 GB/s */
        us *= i % 40 == 39 ? 50 : 0.9 + 0.2 * test_rng_unit(&rng);
        cost_add_load(&m, CACHE_HOST, n_bytes, us);
        cost_add_load(&m, CACHE_DISK, PAGE_BYTES, 4000); /* always the same: nothing tells latency from rate */
    }
    cost_get(&m, &c);
    CHECK_MSG(fabs(c.latency_us[CACHE_HOST] / 150 - 1) < 0.5, "a latency of %.1f us, not 150",
              c.latency_us[CACHE_HOST]);
    CHECK_MSG(fabs(c.page_us[CACHE_HOST] / (PAGE_BYTES / 5000.0) - 1) < 0.3, "%.2f us a page", c.page_us[CACHE_HOST]);
    double one = cost_load_us(&c, CACHE_DISK, 1);
    CHECK_MSG(fabs(one / 4000 - 1) < 0.05, "a page from disk takes %.1f us", one);
}

/* What is queued before a load counts for its time, and not for its bytes alone. */
static void test_queued_loads(void) {
    cost_model m;
    cache_costs c;
    machine w = usual;
    uint64_t now = 1000, ticket = 0;
    start(&m);
    learn(&m, &w, 20, 1024);
    for (uint32_t i = 0; i < 200; i++) {
        uint32_t n = 1 + i % 5;
        for (uint32_t k = 0; k < n; k++) {
            cost_load_sent(&m, CACHE_DISK, ++ticket, PAGE_BYTES, now);
        }
        for (uint32_t k = 0; k < n; k++) {
            cost_loads_done(&m, CACHE_DISK, ticket - n + 1 + k, now + 500 + 100 * (k + 1));
        }
        now += 10000;
    }
    cost_get(&m, &c);
    CHECK_MSG(fabs(c.page_us[CACHE_DISK] / 100 - 1) < 0.05 && fabs(c.latency_us[CACHE_DISK] / 500 - 1) < 0.05,
              "%.1f us a page and %.1f of latency, not 100 and 500", c.page_us[CACHE_DISK], c.latency_us[CACHE_DISK]);
    CU_ASSERT_EQUAL(m.links[CACHE_DISK].under_way_bytes, 0);
}

/* More under way than there is room to remember: nothing is lost count of. */
static void test_many_loads(void) {
    cost_model m;
    start(&m);
    for (uint64_t ticket = 1; ticket <= 3 * COST_UNDER_WAY; ticket++) {
        cost_load_sent(&m, CACHE_HOST, ticket, PAGE_BYTES, ticket);
    }
    CU_ASSERT_EQUAL(m.links[CACHE_HOST].under_way_bytes, 3 * COST_UNDER_WAY * PAGE_BYTES);
    cost_loads_done(&m, CACHE_HOST, COST_UNDER_WAY - 1, 100000);
    CU_ASSERT_EQUAL(m.links[CACHE_HOST].under_way_bytes, (2 * COST_UNDER_WAY + 1) * PAGE_BYTES);
    cost_loads_done(&m, CACHE_HOST, 3 * COST_UNDER_WAY, 100000);
    CU_ASSERT_EQUAL(m.links[CACHE_HOST].under_way_bytes, 0);
    CU_ASSERT_EQUAL(m.links[CACHE_HOST].n_sent, 0);
    CU_ASSERT_EQUAL(m.links[CACHE_HOST].n_loads, 2);
}

static void test_break_even(void) {
    /* A page has 64 tokens. n tokens: n * 10 + n * (n - 1) / 2 * 0.1 against 5000 + n / 64 * 320, so from 640 or so on. */
    cache_costs c = {.compute_us = 10, .compute_us_per_position = 0.1, .latency_us = {5000}, .page_us = {320}};
    uint32_t n = cost_break_even(&c, CACHE_HOST, 4096, 1024, 4096), least = 0;
    for (uint32_t k = 16; k <= 4096 && !least; k += 16) {
        double compute = 10.0 * k + 0.1 * k * (k - 1.0) / 2, load = 5000 + (k + 63) / 64 * 320;
        least = load < compute ? k : 0;
    }
    CHECK_MSG(n == least && n > 200, "from %u tokens on, not %u", n, least);
    c.page_us[CACHE_HOST] = 1e6;
    CU_ASSERT_EQUAL(cost_break_even(&c, CACHE_HOST, 4096, 1024, 4096), 0);
    CU_ASSERT_EQUAL(cost_break_even(&c, CACHE_DISK, 4096, 1024, 4096), 0);
}

int main(int argc, char **argv) {
    const test_case tests[] = {
        {"nothing_is_known_before_prefill_was_seen", test_unknown},
        {"planted_rates_are_found", test_exact},
        {"noise_and_outliers_do_little", test_noise_and_outliers},
        {"rates_follow_the_machine", test_change},
        {"short_contexts_say_nothing_of_long_ones", test_short_contexts},
        {"latency_and_rate_of_loads", test_loads},
        {"queued_loads_count_what_is_before_them", test_queued_loads},
        {"more_loads_than_are_remembered", test_many_loads},
        {"break_even", test_break_even},
    };
    return test_main("cost", tests, sizeof tests / sizeof tests[0], argc, argv);
}
