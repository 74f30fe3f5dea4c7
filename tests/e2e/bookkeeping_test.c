/*
 * What the host does for a step, the scheduler's work, the cache's and the commit, is a small part of the step's time, also beside
 * 1,000,000 demoted and 4,096 resident conversations. The step is a simulated H200's with the shape of Llama-3.1-8B; the host's time is
 * this machine's.
 */
#include "engine/impl.h"
#include "tests/e2e/host.h"

#include <stdio.h>
#include <stdlib.h>

#define N_DEMOTED 1000000u
#define N_RESIDENT 4096u
#define N_ROWS 256u
#define CONTEXT 1024u
#define TURN 64u /* tokens appended, and generated */
#define LONGEST 2048u
#define N_WINDOWS 10
#define WINDOW_STEPS 300u

typedef struct crowd {
    perch_engine *e;
    test_rng rng;
    uint32_t n, n_in_flight;     /* conversations; the last N_RESIDENT are those who come back */
    perch_sequence_id *sessions; /* [n] */
    uint32_t *lengths;           /* [n] */
    bool *busy;                  /* [n] */
    uint64_t cpu_us;             /* that steps took, and events; of this thread */
    perch_event event;
} crowd;

static perch_engine *simulated_h200(void) {
    perch_options o;
    perch_hardware hardware;
    perch_engine *e = NULL;
    perch_error err;
    CU_ASSERT_EQUAL(perch_options_init(&o, sizeof o), PERCH_OK);
    CU_ASSERT_EQUAL(perch_hardware_init(&hardware, sizeof hardware), PERCH_OK);
    snprintf(o.path, sizeof o.path, "configs/shapes/Llama-3.1-8B");
    o.weights = PERCH_WEIGHTS_RANDOM;
    o.session_len = LONGEST;
    o.max_batch_size = N_ROWS;
    o.max_step_tokens = 2048;
    o.page_bytes = (uint64_t)2 << 20; /* a group's */
    o.cache_bytes = (uint64_t)(N_RESIDENT * (CONTEXT + LONGEST) / 2 + N_ROWS * LONGEST) / 16 * o.page_bytes;
    hardware.memory_bytes = 0;
    return CHECK_MSG(perch_simulation_create(&o, &hardware, &e, &err) == PERCH_OK, "%s", err.message) ? e : NULL;
}

static void submit(crowd *c, uint32_t index, uint64_t seed, uint32_t n, uint32_t max_tokens) {
    int32_t tokens[CONTEXT];
    perch_error err;
    host_tokens(seed, 128000, tokens, n);
    perch_request q = host_request(c->e, c->sessions[index], tokens, n, max_tokens);
    q.flags = PERCH_REQUEST_IGNORE_EOS | PERCH_REQUEST_NO_TEXT;
    q.user_data = index;
    CHECK_MSG(perch_submit(c->e, &q, NULL, &err) == PERCH_OK, "%s", err.message);
    c->lengths[index] += n + max_tokens;
    c->busy[index] = true;
    c->n_in_flight++;
}

/* Waits for something to come, and takes all of it. */
static bool take(crowd *c) {
    uint64_t now_us;
    perch_error err;
    uint64_t begin_us = test_cpu_us();
    perch_status status = perch_simulation_advance(c->e, UINT64_MAX, &now_us, &err);
    c->cpu_us += test_cpu_us() - begin_us;
    if (!CHECK_MSG(status == PERCH_OK, "%s", err.message)) {
        return false;
    }
    while (perch_next(c->e, &c->event, 0, NULL) == PERCH_OK) {
        if (c->event.type == PERCH_EVENT_DONE) {
            CU_ASSERT_EQUAL(c->event.finish, PERCH_FINISH_LENGTH);
            c->busy[c->event.user_data] = false;
            c->n_in_flight--;
        }
    }
    return true;
}

/* All begin, one after the other, the last ones with a long prompt: whoever came before them is demoted. */
static bool begin_all(crowd *c) {
    perch_error err;
    bool goes_on = true;
    for (uint32_t i = 0; goes_on && i < c->n; i++) {
        goes_on = CHECK_MSG(perch_sequence_open(c->e, &c->sessions[i], &err) == PERCH_OK, "%s", err.message);
        if (goes_on) {
            submit(c, i, i + 1, i + N_RESIDENT < c->n ? 16 : CONTEXT, 0);
        }
        while (goes_on && c->n_in_flight >= 2 * N_ROWS) {
            goes_on = take(c);
        }
    }
    while (goes_on && c->n_in_flight > 0) {
        goes_on = take(c);
    }
    return goes_on;
}

/* Turns of the residents, and one in sixteen of a demoted one's, with a full batch, for so many steps. */
static bool take_turns(crowd *c, uint64_t n_steps, perch_stats *before, perch_stats *after) {
    uint32_t n_demoted = c->n - N_RESIDENT;
    bool goes_on = true;
    *before = *after = (perch_stats){.struct_size = sizeof *before};
    CU_ASSERT_EQUAL(perch_engine_stats(c->e, before, NULL), PERCH_OK);
    for (*after = *before; goes_on && after->steps < before->steps + n_steps;) {
        while (c->n_in_flight < N_ROWS) {
            bool demoted = n_demoted && test_rng_below(&c->rng, 16) == 0;
            uint32_t i = (uint32_t)(demoted ? test_rng_below(&c->rng, n_demoted)
                                            : n_demoted + test_rng_below(&c->rng, N_RESIDENT));
            if (!c->busy[i] && c->lengths[i] + 2 * TURN > LONGEST) {
                CU_ASSERT_EQUAL(perch_sequence_rewind(c->e, c->sessions[i], CONTEXT, NULL), PERCH_OK);
                c->lengths[i] = CONTEXT;
            }
            if (!c->busy[i]) {
                submit(c, i, test_rng_next(&c->rng), TURN, TURN);
            }
        }
        goes_on = take(c);
        CU_ASSERT_EQUAL(perch_engine_stats(c->e, after, NULL), PERCH_OK);
    }
    return goes_on;
}

/*
 * The processor's time a step, of the quietest of some windows, since others use its caches as well; and the step's. It holds the
 * simulated device's own arithmetic, too.
 */
static bool time_host(uint32_t n_demoted, double *cpu_us, double *step_us) {
    crowd c = {.e = simulated_h200(), .rng = {test_seed(1)}, .n = n_demoted + N_RESIDENT};
    perch_stats before, after;
    c.sessions = calloc(c.n, sizeof *c.sessions);
    c.lengths = calloc(c.n, sizeof *c.lengths);
    c.busy = calloc(c.n, sizeof *c.busy);
    perch_event_init(&c.event, sizeof c.event);
    bool good = c.e && c.sessions && c.lengths && c.busy && begin_all(&c) && take_turns(&c, 500, &before, &after);
    double host_us = 0;
    *cpu_us = *step_us = 0;
    for (int i = 0; good && i < N_WINDOWS; i++) {
        uint64_t begin_us = c.cpu_us;
        good = take_turns(&c, WINDOW_STEPS, &before, &after);
        double n = (double)(after.steps - before.steps), cpu = (double)(c.cpu_us - begin_us) / n;
        double host = (double)(after.host_us - before.host_us) / n;
        host_us = i == 0 || host < host_us ? host : host_us;
        *cpu_us = i == 0 || cpu < *cpu_us ? cpu : *cpu_us;
        *step_us += (double)(after.step_us - before.step_us) / n / N_WINDOWS;
    }
    if (good) {
        uint64_t n_evictions = after.evictions;
        CHECK_MSG(after.sequences_open == c.n, "%llu are open", (unsigned long long)after.sequences_open);
        CHECK_MSG(after.sequences_resident + after.rows_running >= N_RESIDENT - 64, "%llu are resident",
                  (unsigned long long)after.sequences_resident);
        CU_ASSERT_TRUE(n_demoted == 0 || n_evictions > n_demoted / 2);
        printf("  %u conversations, %llu resident, %u in the batch: %.1f us of the processor's and %.1f us by the "
               "clock (host_us) for a step of %.0f us, in which %.0f rows decode\n",
               c.n, (unsigned long long)after.sequences_resident, after.rows_running, *cpu_us, host_us, *step_us,
               (double)(after.decode_tokens - before.decode_tokens) / (double)(after.steps - before.steps));
    }
    perch_engine_destroy(c.e);
    perch_event_clear(&c.event);
    free(c.sessions);
    free(c.lengths);
    free(c.busy);
    return CHECK_MSG(good, "the traffic came to an end");
}

static void it_takes_less_than_a_hundredth_of_a_step(void) {
    double alone_us, cpu_us, step_us;
    if (time_host(0, &alone_us, &step_us) && time_host(N_DEMOTED, &cpu_us, &step_us)) {
        CHECK_MSG(cpu_us < step_us / 100, "%.1f us of %.0f", cpu_us, step_us);
        /* 245 times as many: it does not grow with them, but for what the processor's caches miss */
        CHECK_MSG(cpu_us < 4 * alone_us, "%.1f us, and %.1f without demoted conversations", cpu_us, alone_us);
    }
}

int main(int argc, char **argv) {
    static const test_case tests[] = {
        {"it takes less than a hundredth of a step", it_takes_less_than_a_hundredth_of_a_step},
    };
    return test_main("bookkeeping", tests, sizeof tests / sizeof *tests, argc, argv);
}
