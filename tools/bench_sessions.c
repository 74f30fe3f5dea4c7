/*
 * bench_sessions: conversations that begin at random, and whose users read and think between turns: open all the while, idle most
 * of it. What a day of many users comes to, which a simulation runs in minutes.
 */
#include "bench_work.h"

#include "interrupt.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

struct session {
    perch_sequence_id sequence; /* 0 = not open */
    struct rng rng;             /* its own: what others do changes nothing about it */
    uint32_t n_tokens;
    uint64_t due_us; /* its next turn */
};

struct sessions {
    struct bench_run *run;
    const struct bench_model *model;
    struct rng rng;           /* of the beginnings */
    struct session *sessions; /* [n] in the order in which they begin */
    uint32_t n, n_begun;
    uint64_t begin_us; /* the next one */
    uint32_t *idle;    /* [n_idle], room for n: a heap, whose turn is due first is first */
    uint32_t n_idle;
    uint32_t n_submitted;
    int32_t *tokens; /* scratch for a turn's */
};

size_t bench_sessions_n_runs(const struct bench_config *config) { return config->concurrency.n; }

/* Microseconds, exponentially distributed. */
static uint64_t draw_wait(struct rng *rng, double mean_s) { return (uint64_t)(-mean_s * log1p(-rng_unit(rng)) * 1e6); }

/* -------------------------------------------------------------------- idle -- */

static void push_idle(struct sessions *all, uint32_t index) {
    uint32_t at = all->n_idle++;
    while (at > 0 && all->sessions[all->idle[(at - 1) / 2]].due_us > all->sessions[index].due_us) {
        all->idle[at] = all->idle[(at - 1) / 2];
        at = (at - 1) / 2;
    }
    all->idle[at] = index;
}

static uint32_t pop_idle(struct sessions *all) {
    uint32_t first = all->idle[0];
    uint32_t last = all->idle[--all->n_idle];
    uint32_t at = 0;
    for (uint32_t child; (child = 2 * at + 1) < all->n_idle; at = child) {
        child += child + 1 < all->n_idle &&
                         all->sessions[all->idle[child + 1]].due_us < all->sessions[all->idle[child]].due_us
                     ? 1
                     : 0;
        if (all->sessions[all->idle[child]].due_us >= all->sessions[last].due_us) {
            break;
        }
        all->idle[at] = all->idle[child];
    }
    all->idle[at] = last;
    return first;
}

/* ------------------------------------------------------------------- turns -- */

static void end_session(struct sessions *all, struct session *session) {
    perch_sequence_close(all->run->tool->engine, session->sequence, NULL);
    session->sequence = 0;
}

/* A turn that session_len has no room for is not taken: the conversation is over. */
static perch_status submit_turn(struct sessions *all, uint32_t index, perch_error *err) {
    struct bench_run *run = all->run;
    const struct bench_config *config = &run->tool->bench;
    struct session *session = &all->sessions[index];
    uint32_t n_prompt = bench_draw(&config->prompt_tokens, &session->rng);
    uint32_t n_completion = bench_draw(&config->completion_tokens, &session->rng);
    if (session->n_tokens + n_prompt + n_completion > all->model->session_len) {
        end_session(all, session);
        return PERCH_OK;
    }
    bench_random_tokens(&session->rng, all->model, all->tokens, n_prompt);
    perch_status status =
        bench_run_submit(run, session->sequence, all->tokens, n_prompt, n_completion, session->due_us, index, err);
    session->n_tokens += n_prompt + n_completion;
    if (status == PERCH_OK && ++all->n_submitted == config->warmup) {
        status = bench_run_measure(run, err);
    }
    return status;
}

static perch_status begin_session(struct sessions *all, perch_error *err) {
    const struct bench_config *config = &all->run->tool->bench;
    uint32_t index = all->n_begun++;
    struct session *session = &all->sessions[index];
    struct rng seed = {config->seed << 32 | index};
    *session = (struct session){.rng = {rng_next(&seed)}, .due_us = all->begin_us};
    all->begin_us += draw_wait(&all->rng, 1.0 / config->session_rate);
    perch_status status = perch_sequence_open(all->run->tool->engine, &session->sequence, err);
    return status != PERCH_OK ? status : submit_turn(all, index, err);
}

/* After each turn it goes on with the same probability. */
static void finish_turn(struct sessions *all, const struct bench_record *record) {
    const struct bench_config *config = &all->run->tool->bench;
    struct session *session = &all->sessions[record->owner];
    if (rng_unit(&session->rng) < 1.0 / config->session_turns) {
        end_session(all, session);
        return;
    }
    session->due_us = bench_run_now(all->run) + draw_wait(&session->rng, config->think_seconds);
    push_idle(all, record->owner);
}

/* When the next turn is due; UINT64_MAX: none before another one ends. */
static uint64_t next_due(const struct sessions *all) {
    uint64_t due_us = all->n_begun < all->n ? all->begin_us : UINT64_MAX;
    uint64_t idle_us = all->n_idle > 0 ? all->sessions[all->idle[0]].due_us : UINT64_MAX;
    return idle_us < due_us ? idle_us : due_us;
}

static perch_status take_turns(struct sessions *all, perch_error *err) {
    struct bench_run *run = all->run;
    uint32_t limit = run->concurrency < all->model->queue_size ? run->concurrency : all->model->queue_size;
    perch_status status = PERCH_OK;
    for (uint64_t due_us; status == PERCH_OK && !bench_run_over(run);) {
        due_us = next_due(all);
        if (due_us == UINT64_MAX && run->n_in_flight == 0) {
            break;
        }
        uint64_t now_us = bench_run_now(run);
        int64_t wait_us = due_us == UINT64_MAX || run->n_in_flight >= limit ? -1
                          : due_us <= now_us                                ? 0
                          : due_us - now_us < 1000000                       ? (int64_t)(due_us - now_us)
                                                                            : 1000000;
        if (wait_us != 0) {
            struct bench_record *done;
            status = bench_run_next(run, wait_us, &done, err);
            if (done != NULL) {
                finish_turn(all, done);
            }
        } else if (all->n_begun < all->n && due_us == all->begin_us) {
            status = begin_session(all, err);
        } else {
            status = submit_turn(all, pop_idle(all), err);
        }
    }
    return status;
}

static perch_status play(struct sessions *all, perch_error *err) {
    struct bench_run *run = all->run;
    perch_status status = run->tool->bench.warmup == 0 ? bench_run_measure(run, err) : PERCH_OK;
    status = status != PERCH_OK ? status : take_turns(all, err);
    if (status == PERCH_OK && !run->measuring && !interrupt_came()) {
        status = tool_error(err, PERCH_E_CONFIG, "[bench] warmup: there were only %u turns", all->n_submitted);
    }
    status = status != PERCH_OK ? status : bench_run_drain(run, err);
    return status != PERCH_OK ? status : bench_run_end(run, err);
}

perch_status bench_sessions(struct bench_run *run, const struct bench_model *model, size_t index, perch_error *err) {
    const struct bench_config *config = &run->tool->bench;
    struct sessions all = {.run = run, .model = model, .rng = {config->seed}, .n = config->sessions};
    uint32_t n_prompt = bench_longest(&config->prompt_tokens);
    run->concurrency = config->concurrency.values[index];
    snprintf(run->name, sizeof(run->name), "%u sessions, %g a second", config->sessions, config->session_rate);
    perch_status status = bench_check_length(model, (uint64_t)n_prompt + bench_longest(&config->completion_tokens),
                                             "prompt_tokens + completion_tokens", err);
    if (status != PERCH_OK) {
        return status;
    }
    all.sessions = calloc(all.n, sizeof(*all.sessions));
    all.idle = calloc(all.n, sizeof(*all.idle));
    all.tokens = calloc(n_prompt, sizeof(*all.tokens));
    status = all.sessions == NULL || all.idle == NULL || all.tokens == NULL ? tool_nomem(err) : play(&all, err);
    for (uint32_t i = 0; all.sessions != NULL && i < all.n_begun; i++) {
        if (all.sessions[i].sequence != 0) {
            end_session(&all, &all.sessions[i]);
        }
    }
    free(all.sessions);
    free(all.idle);
    free(all.tokens);
    return status;
}
