/*
 * sched: which sequences are in the batch, and what each of them computes in a step.
 *
 * Theory of operation. An *item* is one completion at work on one sequence: it wants the KV of its first n_tokens tokens, and
 * grows by a token whenever the engine has sampled one. Items wait, ordered by (priority with ageing, arrival), until there
 * is a free row and memory for all the tokens they have; then they run, until they end or are preempted. The running list is kept in
 * order of (rank, arrival), rank being the aged priority that an item was admitted with.
 *
 * A step plan is made in three passes. Decode: every running item that lacks one token gets it, in order; where there is no
 * page for it, the last item of the running list is sent back to waiting, again and again until there is. So the first of the
 * list always advances. Admission: waiting items take free rows. Prefill: what is left of max_step_tokens goes in order to
 * the items that lack more; at least prefill_reserve is left, since max_batch_size + prefill_reserve <= max_step_tokens.
 *
 * An item that must wait for memory lets others overtake it, but only `bypass_limit` of them in all; then nobody is admitted
 * before it, and as running items end it gets its turn: one full-length sequence always fits the pool.
 *
 * What others have computed of an item's tokens becomes its own at admission (cache_adopt). While a running item is about to
 * compute more of them, it waits for that, as long as the common beginning grows at least every SCHED_PREFIX_STEPS steps.
 *
 * An item that has something to load (cache_load) has its row, and computes what the cache lets it compute meanwhile, perhaps nothing.
 *
 * by_prefix: of those that wait with the same priority the one with the longest cached prefix goes first, and others are overtaken
 * on that account for prefix_patience steps at most; then they go in order of arrival, before all that are not overdue.
 *
 * Pure host code over the cache: no model, no clock, no allocation after create. Not thread-safe; under the engine's lock.
 */
#ifndef PERCH_ENGINE_SCHED_H
#define PERCH_ENGINE_SCHED_H

#include "cache/cache.h"

#define SCHED_MIN_PRIORITY (-8)
#define SCHED_MAX_PRIORITY 7
#define SCHED_N_LEVELS 16

#define SCHED_NO_LOGITS UINT32_MAX

#define SCHED_PREFIX_STEPS 16u  /* without progress: it stops waiting for a prefix */
#define SCHED_PREFIX_WINDOW 64u /* items, the first in line, that are looked at for the longest prefix */

typedef enum sched_state { SCHED_OUT = 0, SCHED_WAITING, SCHED_RUNNING } sched_state;

/* Embedded in the engine's completion. The engine sets the first block before sched_add and updates n_tokens and logits_from. */
typedef struct sched_item {
    cache_entry *entry;   /* reserved as long as the item is in */
    uint32_t n_tokens;    /* of the sequence now: all of them need KV */
    uint32_t logits_from; /* logits are wanted of positions >= this; SCHED_NO_LOGITS = none */
    int32_t priority;
    const int32_t *tokens; /* the sequence's, [n_known] of n_tokens; NULL: its prefix is not looked for */
    uint32_t n_known;

    /* the scheduler's own */
    sched_state state;
    int32_t rank;          /* aged priority, fixed at admission */
    uint64_t arrival;      /* order of sched_add; kept through preemption */
    uint64_t arrival_step; /* what ageing counts from */
    uint32_t n_bypassed;   /* admissions that overtook it while it waited for memory */
    uint64_t planned_step; /* the last step that it had a row in */
    bool was_admitted;     /* since sched_add */
    bool awaits_prefix;    /* that somebody was about to compute, in step `looked_step`: */
    cache_found found;
    uint64_t looked_step;
    bool impatient;          /* it has waited for nothing: it computes its prefix itself */
    uint32_t n_match;        /* tokens that it would find, in step matched_step */
    uint64_t matched_step;   /* 0: never */
    uint64_t overtaken_step; /* when it was first overtaken for its prefix; 0: never */
    struct sched_item *prev, *next;
} sched_item;

/* What one running item computes in a step. */
typedef struct sched_row {
    sched_item *item;
    uint32_t first_position; /* = n_valid of its entry */
    uint32_t n_tokens;
    uint32_t n_logits; /* of the row's last tokens */
} sched_row;

typedef struct sched_plan {
    sched_row *rows; /* [n_rows], capacity max_batch_size */
    uint32_t n_rows;
    uint32_t n_tokens;
    uint32_t n_logits;
    uint32_t n_decode; /* the first n_decode rows lacked one token, the rest are prefill chunks */
} sched_plan;

typedef struct sched_config {
    uint32_t max_batch_size;
    uint32_t max_step_tokens;
    uint32_t prefill_reserve;
    uint32_t max_logit_rows; /* > max_batch_size */
    uint32_t age_steps;      /* 0 = no ageing */
    uint32_t bypass_limit;
    bool by_prefix;
    uint32_t prefix_patience; /* steps */
} sched_config;

/* Told when an item is admitted, before anything is computed: n_valid tokens need not be computed again, but perhaps loaded. */
typedef void (*sched_admit_fn)(void *user, sched_item *item, uint32_t n_valid);

/* Told when a running item is sent back to waiting. */
typedef void (*sched_preempt_fn)(void *user, sched_item *item);

typedef struct sched_list {
    sched_item *head, *tail;
} sched_list;

typedef struct sched {
    sched_config config;
    cache *kv;
    sched_admit_fn on_admit;
    sched_preempt_fn on_preempt; /* set after sched_init; may be NULL */
    void *user;
    sched_list waiting[SCHED_N_LEVELS]; /* by base priority, each in order of arrival */
    sched_list running;                 /* by (rank descending, arrival) */
    uint32_t n_waiting, n_running;
    uint64_t step, arrivals, preemptions, prefix_waits;
    sched_plan plan;
} sched;

/* kv is borrowed. max_logit_rows > max_batch_size >= 1, max_batch_size + prefill_reserve <= max_step_tokens: asserted. */
perch_status sched_init(sched *s, const sched_config *config, cache *kv, sched_admit_fn on_admit, void *user,
                        perch_error *err);
void sched_fini(sched *s);

/* Puts an item (SCHED_OUT) into the queue; its n_tokens >= 1 must fit the pool. O(1). */
void sched_add(sched *s, sched_item *item);

/* Takes an item out of whichever list it is in; its entry becomes idle. Not between plan and commit for a planned item. */
void sched_remove(sched *s, sched_item *item);

/* Sends a running item back to waiting. */
void sched_preempt(sched *s, sched_item *item);

/*
 * Decides the next step. Borrowed until the next call. No rows only if nothing waits and nothing runs, or if all of it depends on
 * steps that were planned before and are not published yet (cache_publish), or on copies (cache_load).
 */
const sched_plan *sched_make_plan(sched *s);

/* The step is computed, or will be before anything that comes after it: the planned tokens' KV is valid. */
void sched_commit(sched *s);

/*
 * Behind a commit: pages for the next group of every running item, as far as there are free ones, so that they are mapped
 * while the step is computed and not when it is waited for.
 */
void sched_prepare(sched *s);

#endif
