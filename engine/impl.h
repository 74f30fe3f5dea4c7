/*
 * impl: what an engine consists of; shared by the files of engine/, seen by no host.
 *
 * Threads. Host threads call the public functions; one *step thread* runs the batch (step.c). One mutex, `lock`, guards everything
 * below that is not marked otherwise. The step thread holds it while it plans and commits and gives it up while a step is queued,
 * computed and waited for; meanwhile what belongs to running completions (their sequence's tokens, their entry's pages) is
 * touched by nobody else: host calls on a sequence with a request in flight are refused with E_BUSY.
 *
 * Flights. A step that was launched is a *flight* until its tokens are committed. On a backend whose queue runs beside the host
 * (kernels_async) the next step is planned and launched before that: its decode rows take the tokens that are *pending*, chosen
 * but not known here yet, from the device. A completion may turn out to have ended while it has a row in flight: the row's
 * completion is then NULL, and what was computed for it is the KV of a token that the sequence really has, or nothing's.
 *
 * Life of a request. perch_submit checks and copies it into a `request` with one `completion` for each of n_completions, each with
 * a sequence of its own (the first has the host's, the others forks that live as long as they do). Everything that it will ever
 * need is allocated there. A completion is in the scheduler from submit until it ends; its fresh output
 * makes it `ready`, once, in the outbox, and perch_next copies the output from there. It is freed when its DONE event
 * has been fetched.
 */
#ifndef PERCH_ENGINE_IMPL_H
#define PERCH_ENGINE_IMPL_H

#include "cache/cache.h"
#include "engine/cost.h"
#include "engine/deadlines.h"
#include "engine/idtable.h"
#include "engine/model/model.h"
#include "engine/observe.h"
#include "engine/persist.h"
#include "engine/sampler.h"
#include "engine/sched.h"
#include "engine/simulated_disk.h"
#include "engine/tiers/page_file.h"
#include "kernels/kernels.h"

#include <pthread.h>

typedef struct completion completion;
typedef struct request request;
typedef struct flight_row flight_row;

/* One conversation. */
typedef struct sequence {
    uint64_t id;
    int32_t *tokens; /* [n_tokens], room for cap; grown by host calls only */
    size_t cap;
    uint32_t n_tokens;
    uint32_t n_computed; /* the most tokens that ever had KV, 0 after a rewind below */
    cache_entry *entry;
    request *busy;       /* in flight, or NULL */
    completion *fork_of; /* the completion that this sequence was made for, or NULL */
    bool closed;         /* freed when it is no longer busy */
    persist *persist;    /* owned; NULL where the store is to know nothing of it */
} sequence;

/* A submitted turn: what its completions share. */
struct request {
    uint64_t id;
    uint64_t user_data;
    uint32_t flags;
    uint32_t max_tokens, min_tokens;
    int32_t priority;
    uint64_t submitted_us;
    uint64_t deadline_us;     /* 0 = none */
    perch_sampling *sampling; /* owned */
    int32_t *stop_ids;        /* [n_stop_ids] owned: EOS unless ignored, then the request's stop tokens */
    size_t n_stop_ids;
    size_t n_eos; /* the first n_eos of them */
    uint32_t n_completions;
    uint32_t n_unfinished;
    uint32_t n_left;         /* whose DONE was not fetched yet */
    bool counted;            /* in engine.n_queued: not one of its completions was admitted yet */
    completion *completions; /* [n_completions] owned */
};

struct completion {
    sched_item item; /* first: the scheduler's items are completions */
    deadline due;    /* in engine.deadlines until it is finished, if the request has one */
    request *req;
    sequence *seq;
    uint64_t seq_id;
    uint32_t index;
    bool finished;
    bool committing; /* finished, and on its way to the store: its DONE waits */
    bool cancel_requested;
    bool forks_started;       /* of the first: the others have the prompt */
    uint32_t n_turn_start;    /* length of the sequence before this turn */
    uint32_t n_prompt;        /* length with the appended tokens */
    uint32_t n_cached;        /* tokens found at the first admission */
    uint32_t recomputed_from; /* at the last admission: what lies behind is computed in any case */

    /* in flight, at most one row in each lane */
    flight_row *rows[KERNELS_LANES];
    uint32_t n_pending;   /* tokens chosen, or being chosen, on the device that were not committed yet */
    uint32_t last_choice; /* of the last one: its index among the choices of its flight */
    uint64_t span;        /* in the trace */
    uint32_t n_history;   /* tokens that the device's history of its slot has */

    /* output, appended by the step thread; entries below n_generated never change again */
    int32_t *tokens;        /* [max_tokens] */
    float *logprobs;        /* [max_tokens] or NULL */
    perch_logprob *top;     /* [max_tokens][n_logprobs] or NULL */
    float *prompt_logprobs; /* [n_prompt - n_turn_start] or NULL */
    uint32_t n_generated;
    perch_finish finish;
    perch_status status;
    char message[200]; /* of a status */
    uint64_t admitted_us, first_token_us, finished_us;

    /* stop strings: the step thread's decoding stream and matcher, NULL without any */
    perch_tokenizer_stream *stop_stream;
    stop_matcher *stops;
    uint64_t stop_base;  /* bytes of text before the matcher began to look (min_tokens) */
    uint64_t safe_bytes; /* of the text so far, this much cannot belong to a stop string */

    /* outbox: which of it the host has */
    bool ready, delivering, dirty;
    completion *next_ready;
    uint32_t n_delivered;
    uint32_t n_decoded;
    perch_tokenizer_stream *stream; /* the host side's decoding; NULL without text */
    bool stream_broken;             /* out of memory in the middle: to be made anew from the tokens */
    const char *piece;              /* decoded but not yet in text, or NULL */
    size_t piece_bytes;
    bool flushed;
    char *text; /* [text_bytes] decoded, not yet delivered */
    size_t text_bytes, text_cap;
    uint64_t text_delivered;

    /* lists of the engine */
    completion *next_cancelled;
};

/* One row of a launched step. */
struct flight_row {
    completion *c; /* NULL: it ended meanwhile */
    uint32_t first_position, n_tokens, n_logits;
    uint32_t recomputed_from; /* the completion's, when the row was planned */
    bool is_last;             /* it ends where the sequence ends */
    bool is_sampled;          /* and a token is chosen behind it, */
    bool on_device;           /* there: choice number `choice` */
    uint32_t choice;
    perch_status status; /* of the choice */
    sampler_output sample;
};

typedef struct flight {
    bool busy;         /* launched, not committed */
    bool host_chose;   /* what depends on it can't be launched before it is committed: that's done at once */
    bool needs_logits; /* on the host */
    uint32_t n_rows, n_logits, n_choices;
    flight_row *rows;        /* [max_batch_size] */
    kernels_choice *choices; /* [max_batch_size] */
    float *kept_logits;      /* for a test's tap: the step's, owned */
    uint64_t begin_us;
    uint64_t launch_us;  /* planned by then */
    uint64_t forward_us; /* computed by then; 0: when it lands */
    uint64_t host_us;
} flight;

/* Requests to the page file that went together: n of them from the ticket `first` on. */
typedef struct disk_batch {
    uint64_t first;
    uint32_t n, n_left;
} disk_batch;

typedef struct disk_way {
    disk_batch batches[CACHE_DISK_REQUESTS]; /* by number, from 1 on: n_arrived + 1 to n_sent are under way */
    uint64_t n_sent, n_arrived;
} disk_way;

typedef struct disk_tier {
    page_file *file;           /* or NULL */
    simulated_disk *simulated; /* or NULL; a simulation's in its place */
    bool done;                 /* there may be something to poll */
    perch_status error;        /* of the last read or write that failed */
    disk_way ways[2];          /* reads, writes */
} disk_tier;

struct perch_engine {
    /* constant after create */
    perch_options options;
    perch_plan plan;
    model_config config;
    const kernels_backend *backend;
    kernels_device *device;
    uint64_t (*now_us)(const kernels_device *device); /* the time that it lives by; NULL: the system's */
    bool kv_is_open;
    model *model;
    perch_tokenizer *tokenizer; /* or NULL */
    uint32_t session_len;
    perch_sampling default_sampling;
    int event_fd;

    pthread_mutex_t lock;
    pthread_cond_t work;  /* the step thread waits for it */
    pthread_cond_t space; /* submitters wait for it */
    pthread_cond_t event; /* perch_next waits for it */
    bool sync_made, thread_made;
    pthread_t thread;
    bool stopping;
    perch_status dead; /* sticky; and why */
    perch_error dead_reason;

    store *store;
    char model_text[STORE_MODEL_CAP]; /* constant: fingerprint_make */
    void *keys;                       /* a search tree of all persists */
    uint32_t n_committing;            /* completions */

    cache *kv;
    cost_model costs; /* what the cache is told of from time to time */
    disk_tier disk;
    bool unsaved; /* since the last step with rows the cache was not asked in vain for what is to be saved */
    sched sched;
    idtable sequences, requests;
    uint32_t n_queued; /* requests of which nothing was admitted yet */
    completion *ready_head, *ready_tail;
    deadlines deadlines;
    completion *cancelled; /* asked to end */
    uint32_t n_inside;     /* host threads in perch_next, or waiting in perch_submit */
    perch_stats stats;
    observer observer;

    /* the step thread's own */
    sampler *sampler;
    flight flights[KERNELS_LANES];
    uint32_t lane;              /* of the next flight */
    uint64_t last_end_us;       /* when the last flight was committed */
    int32_t *batch_tokens;      /* [max_step_tokens] */
    uint32_t *batch_token_from; /* [max_step_tokens] */
    uint32_t *batch_positions;  /* [max_step_tokens] */
    uint32_t *batch_token_row;  /* [max_step_tokens] */
    kernels_row *batch_rows;    /* [max_batch_size] */
    uint32_t *logit_tokens;     /* [max_logit_rows] */

    /* For tests: sees logits [n][vocab] of tokens position.. of a sequence as they are committed, on the step thread. */
    void (*tap)(void *user, const int32_t *tokens, uint32_t position, uint32_t n, const float *logits);
    void *tap_user;
};

/* plan.c: the memory plan and, for create, all that it was computed from. */
typedef struct plan_parts {
    model_limits limits;
    kernels_limits step;
    cache_config cache;
    sched_config sched;
    model_memory model;
} plan_parts;

/*
 * Opens the device that the options ask for and makes the plan for it. *device is the caller's to close; NULL on failure, but for
 * E_NO_ROOM, where the plan has its figures. device = auto: the GPU if there is one that all of it fits, else the CPU, and
 * plan->note says why not the GPU.
 */
perch_status plan_open(const perch_options *options, const model_config *config, uint64_t tokenizer_host_bytes,
                       const kernels_backend **backend, kernels_device **device, plan_parts *parts, perch_plan *plan,
                       perch_error *err);
/* The plan for a device that is open. E_NO_ROOM leaves the figures that there are in the plan. */
perch_status plan_make(const perch_options *options, const kernels_backend *backend, kernels_device *device,
                       const model_config *config, uint64_t tokenizer_host_bytes, plan_parts *parts, perch_plan *plan,
                       perch_error *err);
/* Whether `auto` may go on to the CPU after this status: the GPU, not the configuration, is at fault. */
bool plan_may_use_cpu(perch_status status);
perch_status plan_load_config(const perch_options *options, model_config *config, perch_error *err);
perch_status plan_load_tokenizer(const perch_options *options, perch_tokenizer **out, perch_error *err);

/* engine.c: perch_engine_create, or without the step thread: whoever opened it calls engine_step. */
perch_status engine_open(const perch_options *options, bool start_thread, perch_engine **out, perch_error *err);

/* engine.c: perch_engine_stats under the lock; fills in all of it. */
void engine_stats(perch_engine *e, perch_stats *stats);

/* A device to run on in place of what the options ask for, and its time. */
typedef struct engine_place {
    const kernels_backend *backend;
    kernels_device *device;
    uint64_t (*now_us)(const kernels_device *device);
} engine_place;

/* engine.c: the same without a step thread, on that device, which is the engine's from here on, whatever comes of it. */
perch_status engine_open_on(const perch_options *options, const engine_place *place, perch_engine **out,
                            perch_error *err);

/*
 * Microseconds of the engine's time: what deadlines, events and steps are measured by. What the host itself takes (host_us) is
 * measured by time_us, in a simulation as well.
 */
static inline uint64_t engine_now(const perch_engine *e) { return e->now_us ? e->now_us(e->device) : time_us(); }

/* engine.c: a host thread that waited (n_inside) goes; perch_engine_destroy waits until all have. Under the lock. */
void engine_leave(perch_engine *e);

/* engine.c: the step thread waits for work, for so long at most. Under the lock. */
void engine_sleep(perch_engine *e, uint32_t ms);

/* step.c. engine_step: one step, if there is anything to do; under the lock. */
bool engine_step(perch_engine *e);
void *step_main(void *engine);

/*
 * transfers.c: copies to and from the host tier: sent, their ends reported, and waited for (without the lock). idle: there is
 * nothing to compute, so it is time to save what may be evicted later.
 */
perch_status transfers_send(perch_engine *e, bool idle, perch_error *err);
perch_status transfers_poll(perch_engine *e, perch_error *err);
perch_status transfers_wait(perch_engine *e, perch_error *err);
/* At the engine's end, without its thread: what is idle goes to the disk, for as long as [cache] disk_keep_ms allows. */
void transfers_keep(perch_engine *e);

/*
 * costs.c: the cost model of a model and a device, by their plan (init); with what can be measured before the first request, in
 * a few tens of milliseconds (start); told of a step that has landed (step), and shown (stats).
 */
void costs_init(const perch_plan *plan, uint32_t max_step_tokens, cost_model *m);
perch_status costs_start(perch_engine *e, const plan_parts *parts, perch_error *err);
void costs_step(perch_engine *e, const flight *f, uint64_t us);
void costs_stats(const perch_engine *e, perch_stats *stats);

/*
 * disk.c: the disk tier's file, opened where the plan has one (when the host tier's frames are there) and closed (before they are
 * gone). What the cache asks for is submitted, and what is done reported to it; both under the lock, and neither waits. Failures
 * are the cache's to bear: none is an error here.
 */
/* *seed: for the cache. take_over: pages that were found in the file are the cache's. */
perch_status disk_open(perch_engine *e, const plan_parts *parts, uint64_t *seed, perch_error *err);
perch_status disk_take_over(perch_engine *e, const plan_parts *parts, perch_error *err);
/* How fast it is, for the cost model: before anything else is done with the file. */
perch_status disk_measure(perch_engine *e, const plan_parts *parts, perch_error *err);
void disk_close(perch_engine *e);
uint64_t disk_host_bytes(uint32_t n_frames); /* host memory that it takes beside the host tier's */
void disk_submit(perch_engine *e);
void disk_poll(perch_engine *e);
void disk_wait(perch_engine *e); /* until something is done, or anything else wakes the step thread */

/* device.c: the type that a model is computed in on a backend; the backend and its device, opened. */
/* How the options have matrices kept. */
kernels_weight_format device_weight_format(const perch_options *options);
kernels_dtype device_dtype(const perch_options *options, const model_config *config, const kernels_backend *backend);
perch_status device_open(const perch_options *options, const model_config *config, const kernels_backend *backend,
                         kernels_device **out, perch_error *err);

/*
 * batch.c: the planned step as a packed batch and a flight (build); on its way (launch, without the lock); its rows are the
 * completions' (departed); its tokens known (land, without the lock) and committed.
 */
void batch_build(perch_engine *e, const sched_plan *plan, flight *f, kernels_batch *batch);
perch_status batch_launch(perch_engine *e, flight *f, const kernels_batch *batch, perch_error *err);
void batch_departed(perch_engine *e, flight *f);
perch_status batch_land(perch_engine *e, flight *f, perch_error *err);
void batch_commit(perch_engine *e, flight *f);

/* request.c; under the lock */
perch_status check_tokens(const perch_engine *e, const int32_t *tokens, size_t n, perch_error *err);
void request_free(perch_engine *e, request *r);

/* completion.c; all under the lock */
void completion_admitted(void *engine, sched_item *item, uint32_t n_valid);
void completion_cancel(perch_engine *e, completion *c);
void completion_finish(perch_engine *e, completion *c, perch_finish finish);
void completion_end(perch_engine *e,
                    completion *c); /* finished and, where there is a store, committed: the host may know */
void completion_fail(perch_engine *e, completion *c, perch_status status, const char *message);
void completion_start_forks(perch_engine *e, request *r);
void completions_end_due(perch_engine *e); /* those cancelled or past their deadline */
void engine_poison(perch_engine *e, const perch_error *why);

/* fingerprint.c: what model the tokens are of, as text; E_MODEL where `of` is another's, which says what differs. */
perch_status fingerprint_make(const perch_engine *e, char out[STORE_MODEL_CAP], perch_error *err);
perch_status fingerprint_check(const perch_engine *e, const char *of, perch_error *err);
/* What KV is of, as the key of a page file: the model and its files, type and layout, and what computes it. */
perch_status fingerprint_kv_key(const perch_engine *e, uint8_t key[PAGE_KEY_BYTES], perch_error *err);

/* events.c: what token adds to a stream's text; nothing where the model has ids that the tokenizer has not. Without the lock. */
perch_status stream_token(perch_tokenizer_stream *stream, int32_t token, const char **text, size_t *n_bytes,
                          perch_error *err);

/*
 * observe.c; under the lock. A step was committed (before last_end_us is moved on); the step thread's round is over; a
 * request was submitted, admitted with so much cached, has its first token, is finished; n_pages are on their way, what was
 * sent up to that ticket has arrived; what perch_engine_stats adds. wait: until there may be work.
 */
perch_status observe_open(perch_engine *e, perch_error *err);
void observe_close(perch_engine *e);
void observe_step(perch_engine *e, const flight *f, uint64_t land_us, uint64_t end_us);
void observe_pass(perch_engine *e);
void observe_wait(perch_engine *e);
void observe_submitted(perch_engine *e, const request *r);
void observe_admitted(perch_engine *e, const completion *c, trace_class found, uint32_t n_cached);
void observe_first_token(perch_engine *e, const completion *c);
void observe_finished(perch_engine *e, const completion *c);
void observe_sent(perch_engine *e, trace_route route, uint64_t ticket, size_t n_pages);
void observe_arrived(perch_engine *e, trace_route route, uint64_t ticket);
void observe_stats(const perch_engine *e, perch_stats *stats);

/* events.c; under the lock */
void outbox_push(perch_engine *e, completion *c);
void outbox_signal(perch_engine *e);

/* sequence.c; under the lock */
perch_status sequence_create(perch_engine *e, uint64_t cache_namespace, size_t token_cap, sequence **out,
                             perch_error *err);
/* The same for the host: the store may want to know it. flags: PERCH_SEQUENCE_RETAIN. */
perch_status sequence_open(perch_engine *e, uint64_t cache_namespace, size_t token_cap, uint32_t flags, sequence **out,
                           perch_error *err);
/* Hints for it, checked before. */
perch_status sequence_check_hints(const perch_hints *hints, perch_error *err);
perch_status sequence_hint(perch_engine *e, sequence *s, const perch_hints *hints, perch_error *err);
void sequence_free(perch_engine *e, sequence *s);
/* The open sequence of that id; E_NOT_FOUND, and E_BUSY if it is to be idle and is not. */
perch_status sequence_get(perch_engine *e, perch_sequence_id id, bool idle, sequence **out, perch_error *err);

#endif
