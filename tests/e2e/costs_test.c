/* What KV takes to compute and to load is known when an engine starts, corrected by what it does, and measured without one. */
#include "engine/impl.h"
#include "tests/e2e/host.h"

#include <math.h>

static perch_options options_of(uint64_t n_host_pages) {
    perch_options o = host_options("long");
    o.session_len = 256;
    o.max_batch_size = 2;
    o.cache_max_entry_count = 2;
    o.page_bytes = 4096;
    o.host_bytes = n_host_pages * o.page_bytes;
    return o;
}

static perch_stats stats_of(perch_engine *e) {
    perch_stats stats = {.struct_size = sizeof stats};
    CU_ASSERT_EQUAL(perch_engine_stats(e, &stats, NULL), PERCH_OK);
    return stats;
}

static void turn(perch_engine *e) {
    perch_sequence_id id;
    int32_t tokens[100];
    host_result r = {0};
    CU_ASSERT_EQUAL(perch_sequence_open(e, &id, NULL), PERCH_OK);
    host_tokens(7, 96, tokens, 100);
    perch_request q = host_request(e, id, tokens, 100, 4);
    CU_ASSERT_EQUAL(host_turn(e, &q, &r), PERCH_OK);
    host_result_free(&r);
    CU_ASSERT_EQUAL(perch_sequence_close(e, id, NULL), PERCH_OK);
}

static void a_new_engine_knows_its_rates(void) {
    for (int tier = 0; tier < 2; tier++) {
        perch_options o = options_of(tier ? 64 : 0);
        perch_engine *e = host_engine(&o);
        if (!e) {
            return;
        }
        perch_stats s = stats_of(e);
        CHECK_MSG(s.prefill_us > 0 && s.prefill_us_8k > s.prefill_us, "%.3f us a token, %.3f far behind", s.prefill_us,
                  s.prefill_us_8k);
        CHECK_MSG((s.host_mbps > 0) == (tier == 1), "%.1f MB/s from the host", s.host_mbps);
        CU_ASSERT_TRUE(s.disk_mbps <= 0 && s.disk_latency_us <= 0);
        CU_ASSERT_EQUAL(s.prefill_tokens, 0); /* what was timed is nobody's */
        CU_ASSERT_EQUAL(s.steps, 0);
        CU_ASSERT_EQUAL(s.mapped_pages, 0);
        perch_engine_destroy(e);
    }
}

/* Twenty times as long for each step, as it seems: the rates follow. */
static void steps_correct_the_rates(void) {
    perch_options o = options_of(0);
    perch_engine *e = host_engine(&o);
    if (!e) {
        return;
    }
    uint64_t n_steps = e->costs.n_steps;
    turn(e);
    CU_ASSERT_TRUE(e->costs.n_steps > n_steps);
    pthread_mutex_lock(&e->lock);
    flight_row row = {.n_tokens = 64};
    flight f = {.n_rows = 1, .rows = &row};
    perch_stats s = {0};
    costs_stats(e, &s);
    double before = s.prefill_us;
    for (int i = 0; i < 2000; i++) {
        costs_step(e, &f, (uint64_t)(before * 64 * 20) + 20);
    }
    costs_stats(e, &s);
    pthread_mutex_unlock(&e->lock);
    CHECK_MSG(s.prefill_us > 3 * before, "%.3f us a token, and before the machine slowed down %.3f", s.prefill_us,
              before);
    perch_engine_destroy(e);
}

static void rates_are_measured_without_an_engine(void) {
    perch_options o = options_of(0);
    perch_costs c = {.struct_size = sizeof c};
    perch_plan plan = {.struct_size = sizeof plan};
    perch_error err = {0};
    CHECK_MSG(perch_costs_measure(&o, &c, &err) == PERCH_OK, "%s", err.message);
    CU_ASSERT_EQUAL(perch_plan_compute(&o, &plan, NULL), PERCH_OK);
    CHECK_MSG(c.prefill_us > 0 && c.prefill_us_per_position > 0 && c.host_mbps > 0 && !c.note[0],
              "%.3f us, %.3g a position, %.1f MB/s: %s", c.prefill_us, c.prefill_us_per_position, c.host_mbps, c.note);
    CU_ASSERT_EQUAL(c.n_layers_measured, 1);
    CU_ASSERT_EQUAL(c.n_positions, 256);
    CU_ASSERT_TRUE(c.n_step_tokens >= 1 && c.n_step_tokens <= o.max_step_tokens);
    uint32_t n = c.host_break_even ? c.host_break_even : plan.session_len;
    CU_ASSERT_TRUE(n % KV_GROUP_TOKENS == 0 && n <= plan.session_len);
    uint64_t group = plan.group_bytes, page = plan.page_bytes;
    double pages = (double)((n / KV_GROUP_TOKENS * group + page - 1) / page);
    double load = c.host_latency_us + pages * (double)page / c.host_mbps;
    double compute = n * c.prefill_us + n * (n - 1.0) / 2 * c.prefill_us_per_position;
    CHECK_MSG((load < compute) == (c.host_break_even > 0), "%u tokens: %.1f us to load, %.1f to compute", n, load,
              compute);
}

static void bad_input_is_refused(void) {
    perch_options o = options_of(0);
    perch_costs c = {.struct_size = sizeof c};
    perch_error err = {0};
    CU_ASSERT_EQUAL(perch_costs_measure(NULL, &c, &err), PERCH_E_INVALID);
    CU_ASSERT_EQUAL(perch_costs_measure(&o, NULL, &err), PERCH_E_INVALID);
    c.struct_size = 1;
    CU_ASSERT_EQUAL(perch_costs_measure(&o, &c, &err), PERCH_E_INVALID);
    c.struct_size = sizeof c;
    o.cache_bytes = 4096;
    CU_ASSERT_EQUAL(perch_costs_measure(&o, &c, &err), PERCH_E_NO_ROOM);
    o.path[0] = 0;
    CU_ASSERT_EQUAL(perch_costs_measure(&o, &c, &err), PERCH_E_CONFIG);
}

int main(int argc, char **argv) {
    const test_case tests[] = {
        {"a_new_engine_knows_its_rates", a_new_engine_knows_its_rates},
        {"steps_correct_the_rates", steps_correct_the_rates},
        {"rates_are_measured_without_an_engine", rates_are_measured_without_an_engine},
        {"bad_input_is_refused", bad_input_is_refused},
    };
    return test_main("costs", tests, sizeof tests / sizeof tests[0], argc, argv);
}
