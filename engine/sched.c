/* sched: see sched.h for how it works. */
#include "engine/sched.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

/* Ageing stops where it has lifted the lowest priority above the highest: from there on arrival decides. */
#define MAX_AGE_BONUS (SCHED_MAX_PRIORITY - SCHED_MIN_PRIORITY + 1)

/* How many items behind a blocked one are looked at in one step; bounds the cost of planning. */
#define BYPASS_WINDOW 16u

/* How many that wait for a prefix are passed over in one step, likewise; that takes no search. */
#define AWAITING_WINDOW 256u

/* Steps for which a match is good enough to order by. */
#define MATCH_STEPS 8u

static uint32_t min_u32(uint32_t a, uint32_t b) { return a < b ? a : b; }

/* ------------------------------------------------------------------- lists -- */

static void list_unlink(sched_list *list, sched_item *item) {
    *(item->prev ? &item->prev->next : &list->head) = item->next;
    *(item->next ? &item->next->prev : &list->tail) = item->prev;
    item->prev = item->next = NULL;
}

/* Links item behind `after` (NULL = first). */
static void list_insert_after(sched_list *list, sched_item *after, sched_item *item) {
    item->prev = after;
    item->next = after ? after->next : list->head;
    *(item->next ? &item->next->prev : &list->tail) = item;
    *(after ? &after->next : &list->head) = item;
}

static sched_list *waiting_list(sched *s, const sched_item *item) {
    return &s->waiting[item->priority - SCHED_MIN_PRIORITY];
}

/*
 * Queues by arrival. A new item goes to the end; a preempted one is older than nearly all that wait, so it is placed from the
 * front, past the few that are older still.
 */
static void waiting_insert(sched *s, sched_item *item) {
    sched_list *list = waiting_list(s, item);
    sched_item *after = list->tail;
    if (after && after->arrival > item->arrival) {
        after = NULL;
        for (sched_item *at = list->head; at && at->arrival < item->arrival; at = at->next) {
            after = at;
        }
    }
    list_insert_after(list, after, item);
    item->state = SCHED_WAITING;
    s->n_waiting++;
}

static void running_insert(sched *s, sched_item *item) {
    sched_item *after = s->running.tail;
    while (after && (after->rank < item->rank || (after->rank == item->rank && after->arrival > item->arrival))) {
        after = after->prev;
    }
    list_insert_after(&s->running, after, item);
    item->state = SCHED_RUNNING;
    s->n_running++;
}

/* --------------------------------------------------------------- life cycle -- */

perch_status sched_init(sched *s, const sched_config *config, cache *kv, sched_admit_fn on_admit, void *user,
                        perch_error *err) {
    assert(config->max_batch_size >= 1 && config->max_logit_rows > config->max_batch_size);
    assert(config->max_batch_size + config->prefill_reserve <= config->max_step_tokens);
    memset(s, 0, sizeof *s);
    s->config = *config;
    s->kv = kv;
    s->on_admit = on_admit;
    s->user = user;
    s->plan.rows = calloc(config->max_batch_size, sizeof *s->plan.rows);
    return s->plan.rows ? PERCH_OK : err_nomem(err, "the step plan");
}

void sched_fini(sched *s) {
    free(s->plan.rows);
    s->plan.rows = NULL;
}

void sched_add(sched *s, sched_item *item) {
    assert(item->state == SCHED_OUT && item->n_tokens > 0);
    item->arrival = ++s->arrivals;
    item->arrival_step = s->step;
    item->n_bypassed = 0;
    item->was_admitted = item->awaits_prefix = item->impatient = false;
    item->matched_step = item->overtaken_step = 0;
    waiting_insert(s, item);
}

void sched_remove(sched *s, sched_item *item) {
    if (item->state == SCHED_WAITING) {
        list_unlink(waiting_list(s, item), item);
        s->n_waiting--;
    } else if (item->state == SCHED_RUNNING) {
        list_unlink(&s->running, item);
        s->n_running--;
        cache_unpin(s->kv, item->entry);
    }
    item->state = SCHED_OUT;
}

void sched_preempt(sched *s, sched_item *item) {
    assert(item->state == SCHED_RUNNING);
    sched_remove(s, item);
    waiting_insert(s, item);
    s->preemptions++;
    if (s->on_preempt) {
        s->on_preempt(s->user, item);
    }
}

/* -------------------------------------------------------------------- plan -- */

static void plan_row(sched *s, sched_item *item, uint32_t n_tokens) {
    uint32_t first = cache_entry_n_valid(item->entry);
    uint32_t end = first + n_tokens;
    uint32_t from = item->logits_from > first ? item->logits_from : first;
    sched_row *row = &s->plan.rows[s->plan.n_rows++];
    item->planned_step = s->step;
    row->item = item;
    row->first_position = first;
    row->n_tokens = n_tokens;
    row->n_logits = end > from ? end - from : 0;
    s->plan.n_tokens += n_tokens;
    s->plan.n_logits += row->n_logits;
}

static bool lacks_one(const sched_item *item) { return item->n_tokens - cache_entry_n_valid(item->entry) == 1; }

/* Decode rows, in order. Victims come from the end of the list, so none that was planned already is ever taken. */
static void plan_decode(sched *s) {
    for (sched_item *item = s->running.head, *next; item; item = next) {
        next = item->next;
        if (!lacks_one(item) || cache_entry_loading(item->entry)) {
            continue;
        }
        while (cache_extend(s->kv, item->entry, item->n_tokens) != PERCH_OK) {
            sched_item *victim = s->running.tail;
            if (victim == s->running.head && cache_yield_kept(s->kv)) { /* it is the oldest, and must go on */
                continue;
            }
            sched_preempt(s, victim);
            if (victim == item) {
                break;
            }
            next = item->next;
        }
        if (item->state == SCHED_RUNNING) {
            plan_row(s, item, 1);
        }
    }
    s->plan.n_decode = s->plan.n_rows;
}

static void plan_prefill(sched *s) {
    for (sched_item *item = s->running.head; item; item = item->next) {
        uint32_t n_valid = cache_entry_n_valid(item->entry);
        uint32_t budget = s->config.max_step_tokens - s->plan.n_tokens;
        uint32_t lacking = min_u32(item->n_tokens, cache_entry_may_compute(s->kv, item->entry)) - n_valid;
        if (budget == 0) {
            break;
        }
        if (item->planned_step == s->step) {
            continue;
        }
        uint32_t chunk = min_u32(lacking, budget);
        uint32_t logits_left = s->config.max_logit_rows - s->plan.n_logits;
        uint32_t before_logits = item->logits_from > n_valid ? item->logits_from - n_valid : 0;
        if (chunk > before_logits && chunk - before_logits > logits_left) {
            chunk = before_logits + logits_left;
        }
        if (chunk > 0) {
            plan_row(s, item, chunk);
        }
    }
}

/* --------------------------------------------------------------- admission -- */

static int32_t aged_priority(const sched *s, const sched_item *item) {
    uint64_t bonus = s->config.age_steps ? (s->step - item->arrival_step) / s->config.age_steps : 0;
    return item->priority + (bonus > MAX_AGE_BONUS ? MAX_AGE_BONUS : (int32_t)bonus);
}

/* The next candidate in order of (aged priority, arrival) among the levels' cursors; NULL if none is left. */
static sched_item *next_candidate(const sched *s, sched_item **cursors) {
    sched_item *best = NULL;
    uint32_t best_level = 0;
    int32_t best_priority = 0;
    for (uint32_t level = 0; level < SCHED_N_LEVELS; level++) {
        sched_item *item = cursors[level];
        int32_t priority = item ? aged_priority(s, item) : 0;
        if (item &&
            (!best || priority > best_priority || (priority == best_priority && item->arrival < best->arrival))) {
            best = item;
            best_level = level;
            best_priority = priority;
        }
    }
    if (best) {
        cursors[best_level] = best->next;
    }
    return best;
}

/*
 * What others have of the first `keep` tokens becomes the item's. False: a running item is about to compute more of them, and the
 * item waits for that instead of computing it as well.
 */
static bool take_prefix(sched *s, sched_item *item, uint32_t keep) {
    if (!item->tokens) {
        return true;
    }
    bool open = item->awaits_prefix && cache_promise_open(s->kv, &item->found);
    if (open && s->step < item->looked_step + SCHED_PREFIX_STEPS) {
        return false;
    }
    cache_found found;
    cache_find(s->kv, item->entry, item->tokens, item->n_known, &found);
    bool more = min_u32(found.n_promised, keep) > min_u32(found.n_tokens, keep) &&
                min_u32(found.n_promised, keep) > cache_entry_n_valid(item->entry);
    item->impatient |= open && found.n_tokens <= item->found.n_tokens;
    if (more && !item->impatient) {
        s->prefix_waits += !item->awaits_prefix;
        item->awaits_prefix = true;
        item->found = found;
        item->looked_step = s->step;
        return false;
    }
    item->awaits_prefix = false;
    cache_adopt(s->kv, item->entry, &found, keep);
    return true;
}

/* Pages that are copied count as pinned until that is done. */
static bool moves_pages(const cache *kv) {
    cache_transfer one;
    return cache_transfers_pending(kv, CACHE_STORE) || cache_transfers_pending(kv, CACHE_LOAD) ||
           cache_transfers(kv, CACHE_STORE, &one, 1) || cache_transfers(kv, CACHE_LOAD, &one, 1);
}

/*
 * Gives a waiting item a row if there is memory for all of its tokens, beside a page for each row that already runs. At least
 * one token is computed, and all whose logits are wanted, even where the cache has them.
 */
static bool admit(sched *s, sched_item *item) {
    uint32_t keep = min_u32(item->logits_from, item->n_tokens - 1);
    if (cache_entry_n_valid(item->entry) > keep) {
        cache_truncate(s->kv, item->entry, keep);
    }
    if (!take_prefix(s, item, keep)) {
        return false;
    }
    while (!cache_can_hold(s->kv, item->entry, item->n_tokens, s->n_running)) {
        if (s->n_running > 0 || moves_pages(s->kv) || !cache_yield_kept(s->kv)) { /* nobody else will ever make room */
            return false;
        }
    }
    if (cache_pin(s->kv, item->entry) != PERCH_OK) {
        return false;
    }
    if (cache_extend(s->kv, item->entry, item->n_tokens) != PERCH_OK) {
        cache_unpin(s->kv, item->entry);
        return false;
    }
    if (!item->was_admitted) {
        cache_returned(s->kv, item->entry);
    }
    if (item->tokens) {
        cache_claim_copies(s->kv, item->entry, item->tokens, min_u32(item->n_known, keep));
    }
    uint32_t n_found = cache_load(s->kv, item->entry, keep);
    if (item->tokens) {
        cache_promise(s->kv, item->entry, item->tokens, item->n_known);
    }
    list_unlink(waiting_list(s, item), item);
    s->n_waiting--;
    item->impatient = false;
    item->rank = aged_priority(s, item);
    running_insert(s, item);
    if (s->on_admit) {
        s->on_admit(s->user, item, n_found);
    }
    item->was_admitted = true;
    return true;
}

/* Waiting items in the order in which they are to be admitted: the first ones by prefix, then by (aged priority, arrival). */
typedef struct candidates {
    sched_item *cursors[SCHED_N_LEVELS];
    sched_item *first[SCHED_PREFIX_WINDOW];
    uint32_t n_first, at;
} candidates;

static uint32_t match_of(const sched *s, sched_item *item) {
    if (item->tokens && (item->matched_step == 0 || s->step >= item->matched_step + MATCH_STEPS)) {
        cache_found found;
        cache_find(s->kv, item->entry, item->tokens, item->n_known, &found);
        uint32_t n_valid = cache_entry_n_valid(item->entry);
        item->n_match = found.n_tokens > n_valid ? found.n_tokens : n_valid;
        item->matched_step = s->step;
    }
    return item->n_match;
}

static bool overdue(const sched *s, const sched_item *item) {
    return item->overtaken_step && s->step - item->overtaken_step >= s->config.prefix_patience;
}

/* Whether b, who is in line behind a with the same priority, goes before it. */
static bool goes_before(const sched *s, const sched_item *b, const sched_item *a) {
    return aged_priority(s, a) == aged_priority(s, b) && !overdue(s, a) && (overdue(s, b) || b->n_match > a->n_match);
}

static void candidates_begin(sched *s, candidates *c) {
    c->n_first = c->at = 0;
    for (uint32_t level = 0; level < SCHED_N_LEVELS; level++) {
        c->cursors[level] = s->waiting[level].head;
    }
    while (s->config.by_prefix && c->n_first < SCHED_PREFIX_WINDOW) {
        sched_item *item = next_candidate(s, c->cursors);
        if (!item) {
            break;
        }
        uint32_t at = c->n_first++;
        match_of(s, item);
        for (; at > 0 && goes_before(s, item, c->first[at - 1]); at--) {
            c->first[at] = c->first[at - 1];
        }
        c->first[at] = item;
    }
}

static sched_item *candidates_next(const sched *s, candidates *c) {
    return c->at < c->n_first ? c->first[c->at++] : next_candidate(s, c->cursors);
}

/* Those that have come before an admitted item and are still in line behind it. */
static void count_overtaken(const sched *s, const candidates *c, const sched_item *admitted) {
    for (uint32_t i = c->at; i < c->n_first; i++) {
        sched_item *other = c->first[i];
        if (other->arrival < admitted->arrival && other->overtaken_step == 0) {
            other->overtaken_step = s->step;
        }
    }
}

static void plan_admission(sched *s) {
    candidates order;
    sched_item *blocked[BYPASS_WINDOW];
    uint32_t n_blocked = 0, n_awaiting = 0;
    if (s->n_waiting == 0 || s->n_running == s->config.max_batch_size) {
        return;
    }
    candidates_begin(s, &order);
    while (s->n_running < s->config.max_batch_size && n_blocked < BYPASS_WINDOW && n_awaiting < AWAITING_WINDOW) {
        sched_item *item = candidates_next(s, &order);
        if (!item) {
            return;
        }
        if (admit(s, item)) {
            count_overtaken(s, &order, item);
            for (uint32_t i = 0; i < n_blocked; i++) {
                blocked[i]->n_bypassed++;
            }
        } else if (item->awaits_prefix) {
            n_awaiting++;
        } else {
            blocked[n_blocked++] = item;
        }
        for (uint32_t i = 0; i < n_blocked; i++) {
            if (blocked[i]->n_bypassed >= s->config.bypass_limit) {
                return;
            }
        }
    }
}

const sched_plan *sched_make_plan(sched *s) {
    s->step++;
    s->plan.n_rows = s->plan.n_tokens = s->plan.n_logits = s->plan.n_decode = 0;
    plan_decode(s);
    plan_admission(s);
    plan_prefill(s);
    return &s->plan;
}

void sched_commit(sched *s) {
    for (uint32_t i = 0; i < s->plan.n_rows; i++) {
        const sched_row *row = &s->plan.rows[i];
        cache_commit(row->item->entry, row->first_position + row->n_tokens);
    }
}

void sched_prepare(sched *s) {
    for (sched_item *item = s->running.head; item; item = item->next) {
        cache_prepare(s->kv, item->entry, item->n_tokens + KV_GROUP_TOKENS);
    }
}
