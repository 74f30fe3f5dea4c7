/*
 * Each call that the engine makes of CUDA fails in turn, from the first at creation to the last at the end: what comes back is a
 * status with a message, requests end with it, an engine that lost its device says so from then on, and nothing is left
 * behind on the device. Runs on the emulation alone (LD_LIBRARY_PATH has its folder).
 */
#include "engine/impl.h"
#include "tests/e2e/host.h"
#include "tests/emulation/emulation.h"

#include <stdio.h>
#include <string.h>

#define N_TURNS 3u

static perch_options gpu_options(void) {
    perch_options o = host_options("llama");
    o.device = PERCH_DEVICE_CUDA;
    o.max_batch_size = 2;
    o.session_len = 64;
    o.cache_max_entry_count = 2; /* two of three sequences: the third takes pages from the first */
    return o;
}

/* Turns of three sequences in the room of two. What they came to is that of the last one that failed. */
static perch_status run_turns(perch_engine *e) {
    perch_status worst = PERCH_OK;
    int32_t tokens[20];
    for (uint32_t i = 0; i < N_TURNS; i++) {
        perch_sequence_id id;
        host_result r;
        host_tokens(i, 96, tokens, 20);
        if (perch_sequence_open(e, &id, NULL) != PERCH_OK) {
            return PERCH_E_NOMEM;
        }
        perch_request q = host_request(e, id, tokens, 20, 6);
        q.flags = PERCH_REQUEST_IGNORE_EOS;
        q.sampling.temperature = i % 2;
        q.sampling.repetition_penalty = 1.1;
        perch_status status = host_turn(e, &q, &r);
        if (status == PERCH_OK && r.status != PERCH_OK) {
            status = r.status;
        }
        CHECK_MSG(status != PERCH_OK || r.n_tokens == 6, "%zu tokens", r.n_tokens);
        worst = status ? status : worst;
        if (status == PERCH_OK || r.tokens) {
            host_result_free(&r);
        }
    }
    return worst;
}

/* Creates an engine and has it answer. Returns the first failure. */
static perch_status live(const perch_options *o, bool *created) {
    perch_engine *e = NULL;
    perch_error err = {PERCH_OK, ""};
    perch_status status = perch_engine_create(o, &e, &err);
    *created = status == PERCH_OK;
    if (status) {
        CHECK_MSG(!e && err.status == status && strlen(err.message) > 10, "%s: \"%s\"", perch_status_name(status),
                  err.message);
        return status;
    }
    status = run_turns(e);
    perch_stats stats = {.struct_size = sizeof stats};
    CU_ASSERT_EQUAL(perch_engine_stats(e, &stats, NULL), PERCH_OK);
    CHECK_MSG(stats.status == PERCH_OK || status != PERCH_OK, "a dead engine whose turns were fine");
    perch_engine_destroy(e);
    return status;
}

static bool emulated(void) {
    const kernels_backend *cuda;
    if (kernels_cuda(&cuda, NULL) != PERCH_OK) {
        test_skip("no CUDA backend was found");
        return false;
    }
    return true;
}

static void every_failure_is_a_status_and_nothing_is_left(void) {
    if (!emulated()) {
        return;
    }
    perch_options o = gpu_options();
    bool created;
    emulation_reset(NULL);
    CU_ASSERT_EQUAL(live(&o, &created), PERCH_OK);
    uint64_t n_calls = emulation_calls(NULL);
    CHECK_MSG(strcmp(emulation_leaks(), "") == 0, "left over: %s", emulation_leaks());
    CHECK_MSG(n_calls > 100, "%llu calls", (unsigned long long)n_calls);

    uint64_t n_trials = test_scaled(200), n_refused = 0, n_ended = 0, n_survived = 0;
    test_rng rng = {test_seed(3)};
    for (uint64_t i = 0; i < n_trials && CU_get_number_of_failures() == 0; i++) {
        /* The first calls one after the other, then anywhere: how many there are depends on threads' timing. */
        uint64_t nth = i < n_trials / 4 ? i + 1 : 1 + test_rng_below(&rng, n_calls);
        emulation_reset(NULL);
        emulation_fail(NULL, nth, 0);
        perch_status status = live(&o, &created);
        n_refused += !created;
        n_ended += created && status != PERCH_OK;
        n_survived += status == PERCH_OK;
        /* What fails while it is given back may be lost; nothing else. */
        CHECK_MSG(created || status != PERCH_OK, "call %llu", (unsigned long long)nth);
        CHECK_MSG(strcmp(emulation_leaks(), "") == 0 || status == PERCH_OK, "call %llu fails, %s: left over: %s",
                  (unsigned long long)nth, perch_status_name(status), emulation_leaks());
    }
    printf("  %llu calls; of %llu failures %llu refused the engine, %llu ended it, %llu did no harm\n",
           (unsigned long long)n_calls, (unsigned long long)n_trials, (unsigned long long)n_refused,
           (unsigned long long)n_ended, (unsigned long long)n_survived);
    CU_ASSERT_TRUE(n_trials < 50 || (n_refused > 0 && n_ended > 0));
    emulation_reset(NULL);
}

/* What a user may meet: no GPU, an old driver, a GPU that is full. device = auto then is the CPU, with the reason. */
static void what_is_wrong_with_the_gpu_is_said(void) {
    if (!emulated()) {
        return;
    }
    static const struct {
        const char *what, *text;
    } cases[] = {{"no device", ""}, {"old driver", "driver"}, {"full", "out of memory"}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        emulation_settings s = emulation_defaults();
        s.n_devices = i == 0 ? 0 : 1;
        s.driver_version = i == 1 ? 11040 : s.driver_version;
        s.memory_bytes = i == 2 ? (uint64_t)1 << 20 : s.memory_bytes;
        emulation_reset(&s);
        perch_options o = gpu_options();
        perch_engine *e = NULL;
        perch_error err = {PERCH_OK, ""};
        perch_status status = perch_engine_create(&o, &e, &err);
        CHECK_MSG(status != PERCH_OK && !e && strstr(err.message, cases[i].text), "%s: %s", cases[i].what, err.message);
        printf("  %s: %s: %s\n", cases[i].what, perch_status_name(status), err.message);
        o.device = PERCH_DEVICE_AUTO;
        CHECK_MSG(perch_engine_create(&o, &e, &err) == PERCH_OK, "%s: auto: %s", cases[i].what, err.message);
        if (e) {
            perch_plan plan = {.struct_size = sizeof plan};
            CU_ASSERT_EQUAL(perch_engine_plan(e, &plan, NULL), PERCH_OK);
            CHECK_MSG(strncmp(plan.backend, "cpu", 3) == 0 && strlen(plan.note) > 10 && plan.gpu_status != PERCH_OK,
                      "%s: %s, \"%s\"", cases[i].what, plan.backend, plan.note);
            CU_ASSERT_EQUAL(run_turns(e), PERCH_OK);
            perch_engine_destroy(e);
        }
        CHECK_MSG(strcmp(emulation_leaks(), "") == 0, "%s: left over: %s", cases[i].what, emulation_leaks());
    }
    emulation_reset(NULL);
}

/* What only shows when the model is loaded: auto is the CPU then, too. A head dim that GPUs don't take shows in the plan. */
static void auto_is_the_cpu_whatever_the_gpu_lacks(void) {
    if (!emulated()) {
        return;
    }
    for (int i = 0; i < 3; i++) {
        static const char *const calls[] = {NULL, "cuMemCreate", "cudaHostAlloc"};
        perch_options o = gpu_options();
        perch_error err = {PERCH_OK, ""};
        perch_engine *e = NULL;
        emulation_reset(NULL);
        if (calls[i]) {
            emulation_fail(calls[i], i == 1 ? 1 : 2, 0);
        } else {
            snprintf(o.path, sizeof o.path, "tests/fixtures/engine/mistral");
        }
        o.device = PERCH_DEVICE_AUTO;
        if (CHECK_MSG(perch_engine_create(&o, &e, &err) == PERCH_OK, "%d: %s", i, err.message)) {
            perch_plan plan = {.struct_size = sizeof plan};
            CU_ASSERT_EQUAL(perch_engine_plan(e, &plan, NULL), PERCH_OK);
            CHECK_MSG(strncmp(plan.backend, "cpu", 3) == 0 && plan.gpu_status != PERCH_OK && strlen(plan.note) > 10,
                      "%d: %s, \"%s\"", i, plan.backend, plan.note);
            CU_ASSERT_EQUAL(run_turns(e), PERCH_OK);
        }
        perch_engine_destroy(e);
        CHECK_MSG(strcmp(emulation_leaks(), "") == 0, "%d: left over: %s", i, emulation_leaks());
    }
    emulation_reset(NULL);
}

/* The plan holds: the device never has more taken than it said. */
static void the_plan_holds(void) {
    if (!emulated()) {
        return;
    }
    emulation_reset(NULL);
    uint64_t before = emulation_bytes();
    perch_options o = gpu_options();
    perch_engine *e = host_engine(&o);
    if (!e) {
        return;
    }
    perch_plan plan = {.struct_size = sizeof plan};
    CU_ASSERT_EQUAL(perch_engine_plan(e, &plan, NULL), PERCH_OK);
    CU_ASSERT_EQUAL(run_turns(e), PERCH_OK);
    uint64_t most = emulation_peak_bytes() - before;
    /* The emulation's context takes nothing: it is the workspace of matrix products. */
    CHECK_MSG(plan.context_bytes >= (uint64_t)32 << 20 && plan.context_bytes <= (uint64_t)34 << 20,
              "%llu bytes of context", (unsigned long long)plan.context_bytes);
    CHECK_MSG(most <= plan.total_bytes + plan.context_bytes, "%llu bytes were taken, %llu planned",
              (unsigned long long)most, (unsigned long long)(plan.total_bytes + plan.context_bytes));
    printf("  %.1f MiB at most of %.1f planned\n", (double)most / 1048576, (double)plan.total_bytes / 1048576);
    perch_engine_destroy(e);
}

int main(int argc, char **argv) {
    static const test_case tests[] = {
        {"the_plan_holds", the_plan_holds},
        {"what_is_wrong_with_the_gpu_is_said", what_is_wrong_with_the_gpu_is_said},
        {"auto_is_the_cpu_whatever_the_gpu_lacks", auto_is_the_cpu_whatever_the_gpu_lacks},
        {"every_failure_is_a_status_and_nothing_is_left", every_failure_is_a_status_and_nothing_is_left},
    };
    return test_main("gpu_failure_test", tests, sizeof tests / sizeof *tests, argc, argv);
}
