/* observe: see observe.h. All under the engine's lock. */
#include "engine/impl.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

/* Requests whose times to first token count fully; then all count half. */
#define RECENT_REQUESTS 1024u

#define WRITE_EVERY_US 100000u
#define WRITE_IDLE_MS 500

/* Of closed sequences nobody waits for what is lost: they are no evictions in perch_stats either. */
static void on_evict(void *engine, const cache_eviction *what) {
    perch_engine *e = engine;
    observer *o = &e->observer;
    if (!what->closed) {
        times_add(&o->evicted, what->idle_us);
    }
    if (o->trace) {
        trace_put(o->trace, &(trace_record){.kind = TRACE_EVICT,
                                            .at_us = engine_now(e),
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
                                  .at_us = engine_now(e),
                                  .as.admit = {.span = c->span, .n_tokens = cache_entry_n_valid(item->entry)}});
    }
}

/* The last part of [model] path. */
static const char *model_name(const perch_options *o) {
    const char *slash = strrchr(o->path, '/');
    return slash && slash[1] ? slash + 1 : o->path;
}

static perch_status open_stats_file(perch_engine *e, perch_error *err) {
    stats_image about = {.begun_us = time_us(), .session_len = e->session_len};
    snprintf(about.model, sizeof about.model, "%.*s", (int)sizeof about.model - 1, model_name(&e->options));
    snprintf(about.backend, sizeof about.backend, "%s", e->plan.backend);
    return stats_file_open(e->options.stats_file, &about, &e->observer.stats_file, err);
}

perch_status observe_open(perch_engine *e, perch_error *err) {
    const perch_options *o = &e->options;
    perch_status status = PERCH_OK;
    cache_watch(e->kv, on_evict, e);
    e->sched.on_preempt = on_preempt;
    if (o->trace_file[0]) {
        status = trace_open(o->trace_file, model_name(o), e->backend->async != NULL, &e->observer.trace, err);
    }
    if (!status && o->stats_file[0]) {
        status = open_stats_file(e, err);
    }
    return status;
}

void observe_close(perch_engine *e) {
    trace_close(e->observer.trace);
    stats_file_close(e->observer.stats_file);
    e->observer.trace = NULL;
    e->observer.stats_file = NULL;
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
                                                    .host_us = f->host_us,
                                                    .lane = e->backend->async ? (uint32_t)(f - e->flights) : 0,
                                                    .n_rows = f->n_rows,
                                                    .n_prefill = (uint32_t)n_prefill,
                                                    .n_decode = (uint32_t)n_decode}});
}

void observe_step(perch_engine *e, const flight *f, uint64_t land_us, uint64_t end_us) {
    observer *o = &e->observer;
    if (o->trace) {
        trace_step(e, f, land_us, end_us);
    }
    o->prefill_tokens = e->stats.prefill_tokens;
    o->decode_tokens = e->stats.decode_tokens;
}

static void write_stats(perch_engine *e, uint64_t now_us) {
    stats_sample sample = {.at_us = now_us};
    engine_stats(e, &sample.stats);
    stats_file_write(e->observer.stats_file, &sample);
    e->observer.written_us = now_us;
}

void observe_pass(perch_engine *e) {
    observer *o = &e->observer;
    cache_stats kv;
    uint64_t now_us = o->stats_file ? time_us() : 0; /* of whoever reads it, also in a simulation */
    if (o->trace) {
        cache_stats_get(e->kv, &kv);
        trace_put(o->trace, &(trace_record){.kind = TRACE_GAUGES,
                                            .at_us = engine_now(e),
                                            .as.gauges = {.live = kv.n_pinned,
                                                          .cached = kv.n_idle,
                                                          .free = kv.n_free,
                                                          .waiting = e->n_queued,
                                                          .running = e->sched.n_running}});
    }
    if (o->stats_file && now_us - o->written_us >= WRITE_EVERY_US) {
        write_stats(e, now_us);
    }
}

void observe_wait(perch_engine *e) {
    if (!e->observer.stats_file) {
        pthread_cond_wait(&e->work, &e->lock);
        return;
    }
    write_stats(e, time_us());
    engine_sleep(e, WRITE_IDLE_MS);
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
    if (!again && found != TRACE_FORK && n_cached > 0) {
        cache_costs costs;
        cost_get(&e->costs, &costs);
        o->saved_us += cost_compute_us(&costs, n_cached);
    }
    if (o->trace) {
        trace_put(o->trace, &(trace_record){.kind = again ? TRACE_READMIT : TRACE_ADMIT,
                                            .at_us = again ? engine_now(e) : c->admitted_us,
                                            .as.admit = {.span = c->span,
                                                         .found = found,
                                                         .n_tokens = n_cached,
                                                         .n_restored = n_cached > n_valid ? n_cached - n_valid : 0}});
    }
}

void observe_first_token(perch_engine *e, const completion *c) {
    times *ttft = &e->observer.ttft;
    times_add(ttft, c->first_token_us - c->req->submitted_us);
    if (ttft->n == 2 * RECENT_REQUESTS) {
        times_halve(ttft);
    }
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
    observer *o = &e->observer;
    if (!o->has_sent[route]) { /* whoever measured before had tickets as well */
        o->has_sent[route] = true;
        o->arrived[route] = ticket - 1;
    }
    if (o->trace) {
        trace_put(o->trace, &(trace_record){.kind = TRACE_SENT,
                                            .at_us = engine_now(e),
                                            .as.sent = {.route = route,
                                                        .n_pages = (uint32_t)n_pages,
                                                        .ticket = ticket,
                                                        .n_bytes = n_pages * e->plan.page_bytes}});
    }
}

void observe_arrived(perch_engine *e, trace_route route, uint64_t ticket) {
    uint64_t *last = &e->observer.arrived[route];
    uint64_t now = e->observer.trace && *last < ticket ? engine_now(e) : 0;
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
    stats->evicted_idle_us = o->evicted.sum_us;
    stats->evicted_idle_p50_us = times_percentile(&o->evicted, 50);
    stats->ttft_p50_us = times_percentile(&o->ttft, 50);
    stats->ttft_p90_us = times_percentile(&o->ttft, 90);
    stats->ttft_p99_us = times_percentile(&o->ttft, 99);
    stats->trace_lost = o->trace ? trace_n_lost(o->trace) : 0;
}
