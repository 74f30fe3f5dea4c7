/*
 * step: the life of the engine, one step after the other, on one thread.
 *
 *   perch_submit → queue → [end what is due → plan → execute → forward → sample → commit] → outbox → perch_next
 *
 * The lock is held while sequences, pages and queues change, and given up for the long part in the middle. A failure there
 * is the device's: the engine is dead from then on, and says so to everybody.
 */
#include "engine/impl.h"

/* The cache's commands for this step, carried out before its forward pass. */
static perch_status execute_commands(perch_engine *e, perch_error *err) {
    size_t n;
    const kv_command *commands = cache_commands(e->kv, &n);
    perch_status status = n ? e->backend->kv_execute(e->device, commands, n, err) : PERCH_OK;
    cache_commands_clear(e->kv);
    return status;
}

static void step(perch_engine *e) {
    kernels_batch batch;
    perch_error err = {.status = PERCH_OK};
    uint64_t begin_us = time_us();

    completions_end_due(e);
    const sched_plan *plan = sched_make_plan(&e->sched);
    perch_status status = execute_commands(e, &err);
    if (!status && plan->n_rows) {
        batch_build(e, plan, &batch);
        uint64_t forward_us = time_us();

        pthread_mutex_unlock(&e->lock);
        status = model_forward(e->model, &batch, e->logit_rows, plan->n_logits, &e->logits, &err);
        uint64_t sample_us = time_us();
        if (!status) {
            batch_sample(e, plan);
        }
        pthread_mutex_lock(&e->lock);

        if (!status) {
            batch_commit(e, plan);
            uint64_t end_us = time_us();
            e->stats.steps++;
            e->stats.step_us += end_us - begin_us;
            e->stats.host_us += end_us - sample_us + forward_us - begin_us;
        }
    }
    if (status) {
        engine_poison(e, &err);
    }
}

static bool has_work(const perch_engine *e) {
    return !e->dead && (e->sched.n_waiting || e->sched.n_running || e->cancelled);
}

bool engine_step(perch_engine *e) {
    if (!has_work(e)) {
        return false;
    }
    step(e);
    return true;
}

void *step_main(void *engine) {
    perch_engine *e = engine;
    pthread_mutex_lock(&e->lock);
    while (!e->stopping) {
        if (!engine_step(e)) {
            pthread_cond_wait(&e->work, &e->lock);
        }
    }
    pthread_mutex_unlock(&e->lock);
    return NULL;
}
