/*
 * trace_format: records of a trace as trace events (the "Trace Event Format": https://docs.google.com/document/d/
 * 1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU). Steps are complete events (X), each in the track of its lane, with their
 * phases nested; requests and copies are asynchronous (b, e), since they overlap; gauges are counters (C).
 */
#include "engine/trace.h"

#include <assert.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* Tracks of the process: 1, 2 the lanes. */
#define TRACK_LANE 1u
#define TRACK_CACHE 10u
#define TRACK_SCHEDULER 11u

typedef struct text {
    char *data;
    size_t n, cap;
    uint32_t process;
} text;

static void add(text *t, const char *format, ...) BASE_PRINTF(2, 3);

static void add(text *t, const char *format, ...) {
    va_list args;
    va_start(args, format);
    int n = vsnprintf(t->data + t->n, t->cap - t->n, format, args);
    va_end(args);
    assert(n >= 0 && (size_t)n < t->cap - t->n); /* TRACE_MOST_TEXT is more than any record has */
    t->n += (size_t)n;
}

/* An event up to its arguments, of which add_args or a literal follows; then end_event. */
static void begin_event(text *t, const char *phase, const char *category, const char *name, uint64_t at_us) {
    add(t, ",\n{\"ph\":\"%s\",\"cat\":\"%s\",\"name\":\"%s\",\"pid\":%u,\"ts\":%llu", phase, category, name, t->process,
        (unsigned long long)at_us);
}

#define ULL(x) ((unsigned long long)(x))

/* ---------------------------------------------------------------- steps -- */

static void add_slice(text *t, uint32_t track, const char *name, uint64_t from_us, uint64_t to_us) {
    begin_event(t, "X", "step", name, from_us);
    add(t, ",\"tid\":%u,\"dur\":%llu", track, ULL(to_us > from_us ? to_us - from_us : 0));
}

static void add_step(text *t, const trace_record *r) {
    uint32_t track = TRACK_LANE + r->as.step.lane;
    uint64_t forward_us = r->as.step.forward_us ? r->as.step.forward_us : r->as.step.land_us;
    add_slice(t, track, "step", r->at_us, r->as.step.end_us);
    add(t, ",\"args\":{\"step\":%llu,\"rows\":%u,\"prefill_tokens\":%u,\"decode_tokens\":%u,\"host_us\":%llu}}",
        ULL(r->as.step.number), r->as.step.n_rows, r->as.step.n_prefill, r->as.step.n_decode, ULL(r->as.step.host_us));
    add_slice(t, track, "plan", r->at_us, r->as.step.launch_us);
    add(t, "}");
    add_slice(t, track, "forward", r->as.step.launch_us, forward_us);
    add(t, "}");
    if (r->as.step.forward_us) {
        add_slice(t, track, "sample", forward_us, r->as.step.land_us);
        add(t, "}");
    }
    add_slice(t, track, "commit", r->as.step.land_us, r->as.step.end_us);
    add(t, "}");
}

static void add_gauges(text *t, const trace_record *r) {
    begin_event(t, "C", "cache", "pages", r->at_us);
    add(t, ",\"args\":{\"live\":%u,\"cached\":%u,\"free\":%u}}", r->as.gauges.live, r->as.gauges.cached,
        r->as.gauges.free);
    begin_event(t, "C", "request", "requests", r->at_us);
    add(t, ",\"args\":{\"running\":%u,\"waiting\":%u}}", r->as.gauges.running, r->as.gauges.waiting);
}

/* ------------------------------------------------------------- requests -- */

static void begin_span(text *t, const char *phase, const char *name, uint64_t at_us, uint64_t span) {
    begin_event(t, phase, "request", name, at_us);
    add(t, ",\"tid\":%u,\"id\":\"0x%llx\"", TRACK_SCHEDULER, ULL(span));
}

static const char *phase_name(trace_phase phase) {
    static const char *const names[] = {
        [TRACE_QUEUE] = "queue", [TRACE_PREFILL] = "prefill", [TRACE_DECODE] = "decode"};
    return names[phase];
}

static const char *class_name(trace_class found) {
    static const char *const names[] = {[TRACE_FIRST_TURN] = "first turn",
                                        [TRACE_HIT] = "hit",
                                        [TRACE_MISS] = "miss",
                                        [TRACE_PARTIAL_HIT] = "partial hit",
                                        [TRACE_FORK] = "fork"};
    return names[found];
}

static void add_instant(text *t, uint32_t track, const char *category, const char *name, uint64_t at_us) {
    begin_event(t, "i", category, name, at_us);
    add(t, ",\"tid\":%u,\"s\":\"t\"", track);
}

static void add_submit(text *t, const trace_record *r) {
    begin_span(t, "b", "request", r->at_us, r->as.submit.span);
    add(t,
        ",\"args\":{\"request\":\"0x%llx\",\"completion\":%u,\"sequence\":\"0x%llx\",\"prompt_tokens\":%u,"
        "\"max_tokens\":%u,\"priority\":%d}}",
        ULL(r->as.submit.request), r->index, ULL(r->as.submit.sequence), r->as.submit.n_prompt, r->as.submit.max_tokens,
        r->as.submit.priority);
    begin_span(t, "b", phase_name(TRACE_QUEUE), r->at_us, r->as.submit.span);
    add(t, "}");
}

static void add_admit(text *t, const trace_record *r) {
    const char *found = class_name(r->as.admit.found);
    begin_span(t, "e", phase_name(TRACE_QUEUE), r->at_us, r->as.admit.span);
    add(t, "}");
    begin_span(t, "b", phase_name(TRACE_PREFILL), r->at_us, r->as.admit.span);
    add(t, ",\"args\":{\"found\":\"%s\",\"cached_tokens\":%u,\"restored_tokens\":%u}}", found, r->as.admit.n_tokens,
        r->as.admit.n_restored);
    add_instant(t, TRACK_SCHEDULER, "admission", found, r->at_us);
    add(t, ",\"args\":{\"span\":\"0x%llx\",\"cached_tokens\":%u,\"restored_tokens\":%u}}", ULL(r->as.admit.span),
        r->as.admit.n_tokens, r->as.admit.n_restored);
}

/* Sent back to waiting, or admitted again after that: both in the request's span and among the scheduler's decisions. */
static void add_turn(text *t, const trace_record *r, const char *name) {
    begin_span(t, "n", name, r->at_us, r->as.admit.span);
    add(t, "}");
    add_instant(t, TRACK_SCHEDULER, "preemption", name, r->at_us);
    add(t, ",\"args\":{\"span\":\"0x%llx\",\"cached_tokens\":%u}}", ULL(r->as.admit.span), r->as.admit.n_tokens);
}

static void add_first_token(text *t, const trace_record *r) {
    begin_span(t, "e", phase_name(TRACE_PREFILL), r->at_us, r->as.admit.span);
    add(t, "}");
    begin_span(t, "b", phase_name(TRACE_DECODE), r->at_us, r->as.admit.span);
    add(t, "}");
}

static void add_finish(text *t, const trace_record *r) {
    begin_span(t, "e", phase_name(r->as.finish.phase), r->at_us, r->as.finish.span);
    add(t, "}");
    begin_span(t, "e", "request", r->at_us, r->as.finish.span);
    add(t, ",\"args\":{\"finish\":\"%s\",\"completion_tokens\":%u}}", perch_finish_name(r->as.finish.finish),
        r->as.finish.n_tokens);
}

/* ---------------------------------------------------------------- cache -- */

static void add_evict(text *t, const trace_record *r) {
    add_instant(t, TRACK_CACHE, "eviction", r->as.evict.closed ? "evict closed" : "evict", r->at_us);
    add(t, ",\"args\":{\"pages\":%u,\"tokens_lost\":%u,\"tokens_left\":%u,\"idle_us\":%llu}}", r->as.evict.n_pages,
        r->as.evict.n_tokens - r->as.evict.n_left, r->as.evict.n_left, ULL(r->as.evict.idle_us));
}

/* A copy's id: the ticket counts up in each route. */
static void begin_copy(text *t, const char *phase, uint64_t at_us, trace_route route, uint64_t ticket) {
    static const char *const names[] = {[TRACE_DEVICE_TO_HOST] = "device to host",
                                        [TRACE_HOST_TO_DEVICE] = "host to device",
                                        [TRACE_HOST_TO_DISK] = "host to disk",
                                        [TRACE_DISK_TO_HOST] = "disk to host"};
    begin_event(t, phase, "copy", names[route], at_us);
    add(t, ",\"tid\":%u,\"id\":\"0x%llx\"", TRACK_CACHE, ULL(ticket * TRACE_N_ROUTES + route));
}

static void add_sent(text *t, const trace_record *r) {
    begin_copy(t, "b", r->at_us, r->as.sent.route, r->as.sent.ticket);
    add(t, ",\"args\":{\"pages\":%u,\"bytes\":%llu}}", r->as.sent.n_pages, ULL(r->as.sent.n_bytes));
}

static void add_arrived(text *t, const trace_record *r) {
    begin_copy(t, "e", r->at_us, r->as.arrived.route, r->as.arrived.ticket);
    add(t, "}");
}

/* ----------------------------------------------------------------- whole -- */

static void add_name(text *t, uint32_t track, const char *name) {
    add(t, ",\n{\"ph\":\"M\",\"name\":\"thread_name\",\"pid\":%u,\"tid\":%u,\"args\":{\"name\":\"%s\"}}", t->process,
        track, name);
}

size_t trace_format_begin(char *data, size_t cap, uint32_t process, const char *name, bool two_lanes) {
    text t = {data, 0, cap, process};
    add(&t, "[\n{\"ph\":\"M\",\"name\":\"process_name\",\"pid\":%u,\"args\":{\"name\":\"perch ", process);
    for (; *name; name++) { /* what a JSON string would have to escape, and what may be no UTF-8, is left away */
        add(&t, "%c", *name < ' ' || *name > '~' || *name == '"' || *name == '\\' ? '?' : *name);
    }
    add(&t, "\"}}");
    add_name(&t, TRACK_LANE, two_lanes ? "steps, lane 0" : "steps");
    if (two_lanes) {
        add_name(&t, TRACK_LANE + 1, "steps, lane 1");
    }
    add_name(&t, TRACK_CACHE, "cache");
    add_name(&t, TRACK_SCHEDULER, "scheduler");
    return t.n;
}

size_t trace_format(char *data, size_t cap, uint32_t process, const trace_record *r) {
    text t = {data, 0, cap, process};
    switch (r->kind) {
    case TRACE_STEP:
        add_step(&t, r);
        break;
    case TRACE_GAUGES:
        add_gauges(&t, r);
        break;
    case TRACE_SUBMIT:
        add_submit(&t, r);
        break;
    case TRACE_ADMIT:
        add_admit(&t, r);
        break;
    case TRACE_READMIT:
        add_turn(&t, r, "readmit");
        break;
    case TRACE_FIRST_TOKEN:
        add_first_token(&t, r);
        break;
    case TRACE_PREEMPT:
        add_turn(&t, r, "preempt");
        break;
    case TRACE_FINISH:
        add_finish(&t, r);
        break;
    case TRACE_EVICT:
        add_evict(&t, r);
        break;
    case TRACE_SENT:
        add_sent(&t, r);
        break;
    case TRACE_ARRIVED:
        add_arrived(&t, r);
        break;
    }
    return t.n;
}

size_t trace_format_lost(char *data, size_t cap, uint32_t process, uint64_t at_us, uint64_t n) {
    text t = {data, 0, cap, process};
    begin_event(&t, "i", "trace", "events lost", at_us);
    add(&t, ",\"tid\":%u,\"s\":\"p\",\"args\":{\"n\":%llu}}", TRACK_SCHEDULER, ULL(n));
    return t.n;
}
