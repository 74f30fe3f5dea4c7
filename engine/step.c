/*
 * step: the life of the engine, one step after the other, on one thread.
 *
 *   perch_submit → queue → [end what is due → plan → execute → launch | land → commit] → outbox → perch_next
 *
 * On a GPU a step is launched before the one before it has landed: the host plans and commits while the device computes. On
 * the CPU a step is done when it is launched, and lands at once. The lock is held while sequences, pages and queues change, and
 * given up for the long part in the middle. A failure there is the device's: the engine is dead from then on, and says so to
 * everybody.
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

/* Both times are of the step's beginning: the engine's, and the host's own. */
static perch_status launch(perch_engine *e, const sched_plan *plan, uint64_t begin_us, uint64_t host_begin_us,
                           perch_error *err) {
    flight *f = &e->flights[e->lane];
    kernels_batch batch;
    batch_build(e, plan, f, &batch);
    f->begin_us = begin_us;
    f->launch_us = engine_now(e);
    f->host_us = time_us() - host_begin_us;

    pthread_mutex_unlock(&e->lock);
    perch_status status = batch_launch(e, f, &batch, err);
    pthread_mutex_lock(&e->lock);

    if (!status) {
        batch_departed(e, f);
        e->lane = (e->lane + 1) % KERNELS_LANES;
    }
    return status;
}

static perch_status land(perch_engine *e, flight *f, perch_error *err) {
    pthread_mutex_unlock(&e->lock);
    perch_status status = batch_land(e, f, err);
    uint64_t landed_us = engine_now(e), host_landed_us = time_us();
    pthread_mutex_lock(&e->lock);

    if (!status) {
        batch_commit(e, f);
        uint64_t end_us = engine_now(e), begin_us = f->begin_us > e->last_end_us ? f->begin_us : e->last_end_us;
        e->stats.steps++;
        e->stats.step_us += end_us - begin_us;
        costs_step(e, f, end_us - begin_us);
        f->host_us += time_us() - host_landed_us;
        e->stats.host_us += f->host_us;
        observe_step(e, f, landed_us, end_us);
        e->last_end_us = end_us;
    }
    return status;
}

static void step(perch_engine *e) {
    perch_error err = {.status = PERCH_OK};
    uint64_t begin_us = engine_now(e), host_begin_us = time_us();
    flight *now = &e->flights[e->lane], *before = &e->flights[(e->lane + 1) % KERNELS_LANES];

    cache_set_time(e->kv, begin_us);
    completions_end_due(e);
    perch_status status = transfers_poll(e, &err);
    const sched_plan *plan = sched_make_plan(&e->sched);
    bool blocked = !plan->n_rows && !before->busy; /* what lands may let others go on, and makes entries idle */
    status = status ? status : execute_commands(e, &err);
    status = status ? status : transfers_send(e, blocked, &err);
    if (!status && plan->n_rows) {
        status = launch(e, plan, begin_us, host_begin_us, &err);
    }
    if (!status && now->busy && e->backend->async) {
        sched_prepare(&e->sched);
        status = execute_commands(e, &err);
    }
    if (!status && before->busy) {
        status = land(e, before, &err);
    }
    if (!status && now->busy && (now->host_chose || !e->backend->async)) {
        status = land(e, now, &err);
    }
    if (!status && blocked) {
        status = transfers_wait(e, &err); /* nothing else can be done before one of them is done */
    }
    if (status) {
        engine_poison(e, &err);
    }
    observe_pass(e);
}

static bool has_work(const perch_engine *e) {
    return !e->dead && (e->sched.n_waiting || e->sched.n_running || e->cancelled || e->flights[0].busy ||
                        e->flights[1].busy || e->unsaved || cache_transfers_pending(e->kv, CACHE_STORE) ||
                        cache_transfers_pending(e->kv, CACHE_LOAD) || cache_disk_pending(e->kv));
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
            observe_wait(e);
        }
    }
    pthread_mutex_unlock(&e->lock);
    return NULL;
}
