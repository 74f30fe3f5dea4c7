/*
 * bench_churn: far more conversations than there is memory for. A Zipf-distributed choice decides whose turn is next, as many
 * at once as the concurrency says; a conversation that has grown to session_len begins anew.
 */
#include "bench_work.h"

#include <stdio.h>
#include <stdlib.h>

struct churn_session {
    perch_sequence_id sequence; /* 0 = not open */
    uint64_t n_tokens;
    bool busy;
};

struct churn {
    struct bench_run *run;
    const struct bench_model *model;
    struct rng rng;
    struct zipf zipf;
    struct churn_session *sessions; /* [config.sessions] */
    int32_t *tokens;                /* [the longest prompt] */
};

size_t bench_churn_n_runs(const struct bench_config *config) { return config->concurrency.n; }

uint32_t bench_longest(const struct bench_list *list) {
    uint32_t most = 1;
    for (uint32_t i = 0; i < list->n; i++) {
        most = list->values[i] > most ? list->values[i] : most;
    }
    return most;
}

uint32_t bench_draw(const struct bench_list *list, struct rng *rng) { return list->values[rng_below(rng, list->n)]; }

/* The drawn conversation or, if it is busy, the next one that is not; there is one, see play. */
static uint32_t choose(struct churn *churn) {
    uint32_t n = churn->run->tool->bench.sessions;
    uint32_t i = zipf_draw(&churn->zipf, &churn->rng);
    while (churn->sessions[i].busy) {
        i = (i + 1) % n;
    }
    return i;
}

static perch_status submit_turn(struct churn *churn, perch_error *err) {
    struct bench_run *run = churn->run;
    const struct bench_config *config = &run->tool->bench;
    perch_engine *engine = run->tool->engine;
    uint32_t chosen = choose(churn);
    struct churn_session *session = &churn->sessions[chosen];
    uint32_t n_prompt = bench_draw(&config->prompt_tokens, &churn->rng);
    uint32_t n_completion = bench_draw(&config->completion_tokens, &churn->rng);
    if (session->sequence != 0 && session->n_tokens + n_prompt + n_completion > churn->model->session_len) {
        perch_sequence_close(engine, session->sequence, NULL);
        *session = (struct churn_session){0};
    }
    perch_status status = PERCH_OK;
    if (session->sequence == 0) {
        status = perch_sequence_open(engine, &session->sequence, err);
    }
    bench_random_tokens(&churn->rng, churn->model, churn->tokens, n_prompt);
    if (status == PERCH_OK) {
        status = bench_run_submit(run, session->sequence, churn->tokens, n_prompt, n_completion, bench_run_now(run),
                                  chosen, err);
    }
    if (status == PERCH_OK) {
        session->busy = true;
        session->n_tokens += n_prompt + n_completion;
    }
    return status;
}

/* Keeps `concurrency` turns under way until n were submitted. */
static perch_status play_turns(struct churn *churn, uint32_t n, perch_error *err) {
    struct bench_run *run = churn->run;
    perch_status status = PERCH_OK;
    uint32_t n_submitted = 0;
    while (status == PERCH_OK && n_submitted < n && !bench_run_over(run)) {
        if (run->n_in_flight < run->concurrency) {
            status = submit_turn(churn, err);
            n_submitted++;
            continue;
        }
        struct bench_record *done;
        status = bench_run_next(run, -1, &done, err);
        if (done != NULL) {
            churn->sessions[done->owner].busy = false;
        }
    }
    return status;
}

static perch_status play(struct churn *churn, perch_error *err) {
    const struct bench_config *config = &churn->run->tool->bench;
    perch_status status = play_turns(churn, config->warmup, err);
    status = status != PERCH_OK ? status : bench_run_measure(churn->run, err);
    status = status != PERCH_OK ? status : play_turns(churn, config->turns, err);
    status = status != PERCH_OK ? status : bench_run_drain(churn->run, err);
    return status != PERCH_OK ? status : bench_run_end(churn->run, err);
}

perch_status bench_churn(struct bench_run *run, const struct bench_model *model, size_t index, perch_error *err) {
    const struct bench_config *config = &run->tool->bench;
    run->concurrency = config->concurrency.values[index];
    snprintf(run->name, sizeof(run->name), "%u sessions, %u at once", config->sessions, run->concurrency);
    uint32_t n_prompt = bench_longest(&config->prompt_tokens);
    perch_status status = bench_check_length(model, (uint64_t)n_prompt + bench_longest(&config->completion_tokens),
                                             "prompt_tokens + completion_tokens", err);
    if (status == PERCH_OK && run->concurrency > config->sessions) {
        status = tool_error(err, PERCH_E_CONFIG, "[bench] concurrency: %u turns at once of %u sessions",
                            run->concurrency, config->sessions);
    }
    if (status != PERCH_OK) {
        return status;
    }
    struct churn churn = {.run = run, .model = model, .rng = {config->seed}};
    churn.sessions = calloc(config->sessions, sizeof(*churn.sessions));
    churn.tokens = calloc(n_prompt, sizeof(*churn.tokens));
    if (churn.sessions == NULL || churn.tokens == NULL) {
        status = tool_nomem(err);
        goto end;
    }
    status = zipf_create(&churn.zipf, config->sessions, config->zipf_exponent, err);
    status = status != PERCH_OK ? status : play(&churn, err);
    for (uint32_t i = 0; i < config->sessions; i++) {
        if (churn.sessions[i].sequence != 0) {
            perch_sequence_close(run->tool->engine, churn.sessions[i].sequence, NULL);
        }
    }
end:
    zipf_free(&churn.zipf);
    free(churn.sessions);
    free(churn.tokens);
    return status;
}
