/* observe: see observe.h. All under the engine's lock. */
#include "engine/impl.h"

#include <stdio.h>
#include <string.h>

/* How much of what was measured before counts beside a new step. */
#define KEPT 0.98

/* ----------------------------------------------------------------- ages -- */

uint32_t observe_age_cell(uint64_t us) {
    if (us < OBSERVE_AGE_PARTS) {
        return (uint32_t)us; /* the first octaves have less than four values each */
    }
    uint32_t octave = 63u - (uint32_t)__builtin_clzll(us);
    uint32_t part = (uint32_t)(us >> (octave - 2)) & (OBSERVE_AGE_PARTS - 1);
    uint32_t cell = (octave - 1) * OBSERVE_AGE_PARTS + part;
    return cell < OBSERVE_AGE_CELLS ? cell : OBSERVE_AGE_CELLS - 1;
}

uint64_t observe_age_of(uint32_t cell) {
    if (cell < OBSERVE_AGE_PARTS) {
        return cell;
    }
    uint32_t octave = cell / OBSERVE_AGE_PARTS + 1;
    uint64_t width = UINT64_C(1) << (octave - 2);
    return (OBSERVE_AGE_PARTS + cell % OBSERVE_AGE_PARTS) * width + width / 2;
}

static uint64_t median_age(const observer *o) {
    uint64_t below = 0;
    uint32_t cell = 0;
    while (cell + 1 < OBSERVE_AGE_CELLS && below + o->ages[cell] <= o->n_ages / 2) {
        below += o->ages[cell++];
    }
    return o->n_ages ? observe_age_of(cell) : 0;
}

/* Of closed sequences nobody waits for what is lost: they are no evictions in perch_stats either. */
static void on_evict(void *engine, const cache_eviction *what) {
    perch_engine *e = engine;
    observer *o = &e->observer;
    if (!what->closed) {
        o->ages[observe_age_cell(what->idle_us)]++;
        o->n_ages++;
        o->age_us += what->idle_us;
    }
    if (o->trace) {
        trace_put(o->trace, &(trace_record){.kind = TRACE_EVICT,
                                            .at_us = time_us(),
                                            .as.evict = {.idle_us = what->idle_us,
                                                         .n_pages = what->n_pages,
                                                         .n_tokens = what->n_tokens,
                                                         .n_left = what->n_left,
                                                         .closed = what->closed}});
    }
}

/* --------------------------------------------------------- open and close -- */

static void on_preempt(void *engine, sched_item *item) {
    perch_engine *e = engine;
    const completion *c = (const completion *)item;
    if (e->observer.trace) {
        trace_put(e->observer.trace,
                  &(trace_record){.kind = TRACE_PREEMPT,
                                  .at_us = time_us(),
                                  .as.admit = {.span = c->span, .n_tokens = cache_entry_n_valid(item->entry)}});
    }
}

perch_status observe_open(perch_engine *e, perch_error *err) {
    const perch_options *o = &e->options;
    const char *slash = strrchr(o->path, '/');
    cache_watch(e->kv, on_evict, e);
    e->sched.on_preempt = on_preempt;
    return o->trace_file[0] ? trace_open(o->trace_file, slash && slash[1] ? slash + 1 : o->path,
                                         e->backend->async ? KERNELS_LANES : 1, &e->observer.trace, err)
                            : PERCH_OK;
}

void observe_close(perch_engine *e) {
    trace_close(e->observer.trace);
    e->observer.trace = NULL;
}

/* ---------------------------------------------------------------- steps -- */

static void trace_step(perch_engine *e, const flight *f, uint64_t land_us, uint64_t end_us) {
    const observer *o = &e->observer;
    uint64_t n_prefill = e->stats.prefill_tokens - o->prefill_tokens,
             n_decode = e->stats.decode_tokens - o->decode_tokens;
    trace_put(o->trace, &(trace_record){.kind = TRACE_STEP,
                                        .at_us = f->begin_us,
                                        .as.step = {.number = e->stats.steps,
                                                    .launch_us = f->launch_us,
                                                    .forward_us = f->forward_us,
                                                    .land_us = land_us,
                                                    .end_us = end_us,
                                                    .host_us = f->host_us + end_us - land_us,
                                                    .lane = e->backend->async ? (uint32_t)(f - e->flights) : 0,
                                                    .n_rows = f->n_rows,
                                                    .n_prefill = (uint32_t)n_prefill,
                                                    .n_decode = (uint32_t)n_decode}});
}

void observe_step(perch_engine *e, const flight *f, uint64_t land_us, uint64_t end_us) {
    observer *o = &e->observer;
    uint64_t n_prefill = e->stats.prefill_tokens - o->prefill_tokens, begin_us = f->begin_us;
    begin_us = begin_us > e->last_end_us ? begin_us : e->last_end_us;
    if (n_prefill > 3ull * f->n_rows) { /* what other rows decode beside it counts little */
        o->prefill_us = o->prefill_us * KEPT + (double)(end_us - begin_us);
        o->prefill_step_tokens = o->prefill_step_tokens * KEPT + (double)n_prefill;
    }
    if (o->trace) {
        trace_step(e, f, land_us, end_us);
    }
    o->prefill_tokens = e->stats.prefill_tokens;
    o->decode_tokens = e->stats.decode_tokens;
}

void observe_pass(perch_engine *e) {
    cache_stats kv;
    if (e->observer.trace) {
        cache_stats_get(e->kv, &kv);
        trace_put(e->observer.trace, &(trace_record){.kind = TRACE_GAUGES,
                                                     .at_us = time_us(),
                                                     .as.gauges = {.live = kv.n_pinned,
                                                                   .cached = kv.n_idle,
                                                                   .free = kv.n_free,
                                                                   .waiting = e->n_queued,
                                                                   .running = e->sched.n_running}});
    }
}

/* ------------------------------------------------------------- requests -- */

void observe_submitted(perch_engine *e, const request *r) {
    for (uint32_t i = 0; e->observer.trace && i < r->n_completions; i++) {
        completion *c = &r->completions[i];
        c->span = ++e->observer.n_spans;
        trace_put(e->observer.trace, &(trace_record){.kind = TRACE_SUBMIT,
                                                     .index = i,
                                                     .at_us = r->submitted_us,
                                                     .as.submit = {.span = c->span,
                                                                   .request = r->id,
                                                                   .sequence = c->seq_id,
                                                                   .n_prompt = c->n_prompt,
                                                                   .max_tokens = r->max_tokens,
                                                                   .priority = r->priority}});
    }
}

void observe_admitted(perch_engine *e, const completion *c, trace_class found, uint32_t n_cached) {
    observer *o = &e->observer;
    bool again = c->item.was_admitted;
    uint32_t n_valid = cache_entry_n_valid(c->item.entry);
    if (!again && found != TRACE_FORK && o->prefill_step_tokens > 0) {
        o->saved_us += n_cached * o->prefill_us / o->prefill_step_tokens;
    }
    if (o->trace) {
        trace_put(o->trace, &(trace_record){.kind = again ? TRACE_READMIT : TRACE_ADMIT,
                                            .at_us = again ? time_us() : c->admitted_us,
                                            .as.admit = {.span = c->span,
                                                         .found = found,
                                                         .n_tokens = n_cached,
                                                         .n_restored = n_cached > n_valid ? n_cached - n_valid : 0}});
    }
}

void observe_first_token(perch_engine *e, const completion *c) {
    if (e->observer.trace) {
        trace_put(
            e->observer.trace,
            &(trace_record){.kind = TRACE_FIRST_TOKEN, .at_us = c->first_token_us, .as.admit = {.span = c->span}});
    }
}

void observe_finished(perch_engine *e, const completion *c) {
    trace_phase phase = !c->admitted_us ? TRACE_QUEUE : !c->first_token_us ? TRACE_PREFILL : TRACE_DECODE;
    if (e->observer.trace) {
        trace_put(e->observer.trace,
                  &(trace_record){
                      .kind = TRACE_FINISH,
                      .at_us = c->finished_us,
                      .as.finish = {.span = c->span, .phase = phase, .finish = c->finish, .n_tokens = c->n_generated}});
    }
}

/* --------------------------------------------------------------- copies -- */

void observe_sent(perch_engine *e, trace_route route, uint64_t ticket, size_t n_pages) {
    if (e->observer.trace) {
        trace_put(e->observer.trace, &(trace_record){.kind = TRACE_SENT,
                                                     .at_us = time_us(),
                                                     .as.sent = {.route = route,
                                                                 .n_pages = (uint32_t)n_pages,
                                                                 .ticket = ticket,
                                                                 .n_bytes = n_pages * e->plan.page_bytes}});
    }
}

void observe_arrived(perch_engine *e, trace_route route, uint64_t ticket) {
    uint64_t *last = &e->observer.arrived[route];
    uint64_t now = e->observer.trace && *last < ticket ? time_us() : 0;
    for (; e->observer.trace && *last < ticket; ++*last) {
        trace_put(
            e->observer.trace,
            &(trace_record){.kind = TRACE_ARRIVED, .at_us = now, .as.arrived = {.route = route, .ticket = *last + 1}});
    }
}

/* ---------------------------------------------------------------- stats -- */

void observe_stats(const perch_engine *e, perch_stats *stats) {
    const observer *o = &e->observer;
    stats->saved_us = (uint64_t)o->saved_us;
    stats->evicted_idle_us = o->age_us;
    stats->evicted_idle_p50_us = median_age(o);
    stats->trace_lost = o->trace ? trace_n_lost(o->trace) : 0;
}
