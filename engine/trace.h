/*
 * trace: what the engine does, in a file that ui.perfetto.dev and chrome://tracing show: an array of trace events in JSON, whose
 * end may be missing, so that what a killed process leaves can be read.
 *
 * Whoever has something to tell leaves a *record* of fixed size in a ring; a thread of its own makes text of it and writes. The
 * teller never waits, allocates or calls the system: where the ring is full the record is lost and counted, and so is what
 * the file does not take; the trace says how many were lost. Tellers take turns: under the engine's lock.
 *
 * Only numbers and strings that stand in the code are written, so the text is formatted here (trace_format.c) and not built as
 * a tree by the JSON library, which would allocate for every value.
 */
#ifndef PERCH_ENGINE_TRACE_H
#define PERCH_ENGINE_TRACE_H

#include "base/base.h"

typedef struct trace trace;

/* From where to where pages are copied. */
typedef enum trace_route {
    TRACE_DEVICE_TO_HOST = 0,
    TRACE_HOST_TO_DEVICE,
    TRACE_HOST_TO_DISK,
    TRACE_DISK_TO_HOST,
    TRACE_N_ROUTES
} trace_route;

/* What was found of a sequence when it was admitted. */
typedef enum trace_class {
    TRACE_FIRST_TURN = 0,
    TRACE_HIT,
    TRACE_PARTIAL_HIT,
    TRACE_MISS,
    TRACE_FORK /* a further completion */
} trace_class;

/* Where a request is in its life. */
typedef enum trace_phase { TRACE_QUEUE = 0, TRACE_PREFILL, TRACE_DECODE } trace_phase;

typedef enum trace_kind {
    TRACE_STEP = 0,
    TRACE_GAUGES,
    TRACE_SUBMIT,
    TRACE_ADMIT,
    TRACE_READMIT,
    TRACE_FIRST_TOKEN,
    TRACE_PREEMPT,
    TRACE_FINISH,
    TRACE_EVICT,
    TRACE_SENT,
    TRACE_ARRIVED
} trace_kind;

/* One event of the engine; times in microseconds. A request's records have its `span` in common. */
typedef struct trace_record {
    trace_kind kind;
    uint32_t index; /* SUBMIT: which completion of the request */
    uint64_t at_us; /* when it happened; STEP: when it began */
    union {
        struct {
            uint64_t number, launch_us, forward_us, land_us,
                end_us; /* forward_us: its end; 0 = it is known by land_us alone */
            uint64_t host_us;
            uint32_t lane, n_rows, n_prefill, n_decode;
        } step;
        struct {
            uint32_t live, cached, free; /* pages */
            uint32_t waiting, running;
        } gauges;
        struct {
            uint64_t span, request, sequence;
            uint32_t n_prompt, max_tokens;
            int32_t priority;
        } submit;
        struct { /* ADMIT; of READMIT, FIRST_TOKEN and PREEMPT the span and n_tokens alone */
            uint64_t span;
            trace_class found;
            uint32_t n_tokens;   /* that need no computing */
            uint32_t n_restored; /* of which are copied back from a tier below */
        } admit;
        struct {
            uint64_t span;
            trace_phase phase; /* that ends with it */
            perch_finish finish;
            uint32_t n_tokens; /* generated */
        } finish;
        struct {
            uint64_t idle_us;
            uint32_t n_pages, n_tokens, n_left;
            bool closed;
        } evict;
        struct {
            trace_route route;
            uint32_t n_pages;
            uint64_t ticket, n_bytes;
        } sent;
        struct {
            trace_route route;
            uint64_t ticket;
        } arrived;
    } as;
} trace_record;

/* Host bytes that trace_open takes. */
uint64_t trace_bytes(void);

/*
 * Makes the file anew and starts the thread. name: of the process, as the viewer shows it. E_IO: it can't be opened, with the
 * reason; E_NOMEM.
 */
perch_status trace_open(const char *file, const char *name, bool two_lanes, trace **out, perch_error *err);

/* Writes what is left and ends the file. NULL is fine. */
void trace_close(trace *t);

/* Leaves a copy of the record, or counts it as lost. */
void trace_put(trace *t, const trace_record *record);

/* Records that were lost so far: no room in the ring, or the file failed. Any thread. */
uint64_t trace_n_lost(const trace *t);

/* trace_format.c: text[cap], without a 0. Each event but the first of a file begins with a comma. */
#define TRACE_MOST_TEXT 2048u /* of one record, or of the beginning without the name */

size_t trace_format_begin(char *text, size_t cap, uint32_t process, const char *name, bool two_lanes);
size_t trace_format(char *text, size_t cap, uint32_t process, const trace_record *record);
size_t trace_format_lost(char *text, size_t cap, uint32_t process, uint64_t at_us, uint64_t n);

#endif
