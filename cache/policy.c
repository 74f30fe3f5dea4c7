/*
 * policy: in which order idle entries give up their pages. An entry that becomes idle comes to stand somewhere in that order, and leaves
 * it when it is used or loses its last page; where it stands says what was known then, and nothing is looked through in between.
 *
 * There are *levels*; all of a lower one go before any of the next:
 *
 *   idle for longer than its ttl | with lru: closed | priority -8, its return overdue | … none expected | … expected | priority -7, …
 *
 * lru: each level is a list, the least recently used first. O(1).
 *
 * cost: the entry goes first that saves the least expected time for each byte. The chance that a page is wanted once more is taken
 * to fall by a factor of e with every *period* that it is idle, the period being the time for which those that came back had been
 * idle (the mean of its logarithm, so that a long night counts little); it grows with how often it was wanted
 * before, and what is saved is the cheaper of computing and loading the last page. The logarithm of all of that,
 *
 *   ln(wanted) + ln(microseconds) - idle / period,
 *
 * falls at the same rate for everybody: so the order of `used + period * (ln(wanted) + ln(microseconds))` stays right while nobody touches
 * them. That is GreedyDual-Size-Frequency (Cao and Irani 1997; Cherkasova 1998) with time as its ageing clock. The order is a
 * tree: O(log n). Closed entries and others are in one order; that somebody may come back to an entry counts as once wanted.
 *
 * An entry that is *kept* (a hint) is in no order: its pages count as those of pinned entries, until nobody could go on otherwise.
 */
#include "cache/state.h"

#include <math.h>
#include <stddef.h>
#include <stdlib.h>

/* What a level is in the keys of cost, which are microseconds: a clock's time in 30 years. */
#define LEVEL_US 1e15

/* Levels beside that of the closed ones: the expired, and three for each priority. */
#define EXPIRED 0u
#define OF_PRIORITY(priority, chance) (2u + 3u * (uint32_t)((priority)-CACHE_MIN_PRIORITY) + (chance))

/* So many times likelier, or less likely, than others is one that is expected, or overdue. cost only: to lru it is a level. */
#define EXPECTED_FACTOR 8.0

/* What was never wanted again counts as this often wanted. */
#define NEVER 0.1

/* Until returns are seen; and how much each of them says. */
#define PERIOD_US 60e6
#define RETURN_SHARE 0.01

/* Shares of the pages: that may be kept; of an entry's that go at a time with cost. */
#define KEPT_SHARE 2u
#define CHUNK_SHARE 16u

void policy_init(cache *c) {
    for (uint32_t level = 0; level < CACHE_N_LEVELS; level++) {
        list_init(&c->levels[level]);
    }
    list_init(&c->kept);
    c->log_return_us = log(PERIOD_US);
}

/* -------------------------------------------------------------- standing -- */

static cache_entry *of_standing(tree_node *node) {
    return (cache_entry *)(void *)((char *)node - offsetof(cache_entry, standing));
}

static cache_entry *of_due(tree_node *node) {
    return ((cache_hinted *)(void *)((char *)node - offsetof(cache_hinted, due)))->entry;
}

/* The next moment at which its hints mean something else; 0: none. */
static uint64_t next_change(const cache *c, const cache_entry *e) {
    const cache_hinted *h = e->hinted;
    uint64_t expires = h && h->hints.ttl_us ? e->used_us + h->hints.ttl_us : 0;
    uint64_t overdue = h && h->hints.expect_us ? h->from_us + h->hints.expect_us : 0;
    expires = expires > c->now_us ? expires : 0;
    overdue = overdue > c->now_us ? overdue : 0;
    return expires && overdue ? (expires < overdue ? expires : overdue) : expires ? expires : overdue;
}

static uint32_t level_of(const cache *c, const cache_entry *e, double *chance) {
    const cache_hinted *h = e->hinted;
    *chance = 1;
    if (e->closed && c->config.policy == CACHE_LRU) {
        return CACHE_LEVEL_CLOSED;
    }
    if (!h) {
        return OF_PRIORITY(0, 1);
    }
    if (h->hints.ttl_us && c->now_us >= e->used_us + h->hints.ttl_us) {
        return EXPIRED;
    }
    uint32_t sub = !h->hints.expect_us ? 1 : c->now_us < h->from_us + h->hints.expect_us ? 2 : 0;
    *chance = sub == 2 ? EXPECTED_FACTOR : sub == 0 ? 1 / EXPECTED_FACTOR : 1;
    return OF_PRIORITY(h->hints.priority, c->config.policy == CACHE_LRU ? sub : 1);
}

/* How often the last of its tokens were wanted again, those that lay behind them and are gone included. */
static double wanted(const cache *c, const cache_entry *e) {
    double n = e->held != CACHE_NO_NODE ? c->nodes[e->held].n_hits : e->n_returns;
    return n + (e->closed ? 0 : 1);
}

/* To have the last page's tokens again, beside computing as many at position 0. */
static double dearness(const cache *c, const cache_entry *e) {
    const cache_costs *costs = &c->costs;
    uint32_t index = cache_pages_for(c, e->n_valid);
    if (costs->compute_us <= 0 || index == 0) {
        return 1;
    }
    double n_tokens = (double)c->config.page_bytes / (double)c->config.group_bytes * KV_GROUP_TOKENS;
    double first = n_tokens * costs->compute_us;
    double us = first + n_tokens * e->n_valid * costs->compute_us_per_position;
    double load_us = claims_load_us(c, e, index - 1);
    return (load_us > 0 && load_us < us ? load_us : us) / first;
}

void policy_add(cache *c, cache_entry *e) {
    double chance;
    uint32_t level = level_of(c, e, &chance);
    uint64_t change = next_change(c, e);
    e->level = (uint8_t)level;
    if (c->config.policy == CACHE_COST) {
        double period = exp(c->log_return_us);
        e->standing.key = level * LEVEL_US + (double)e->used_us +
                          period * log(chance * (wanted(c, e) + NEVER) / NEVER * dearness(c, e));
        e->standing.tick = ++c->tick;
        tree_insert(&c->by_value, &e->standing);
    } else {
        list_push_back(&c->levels[level], &e->link);
        c->levels_used |= UINT64_C(1) << level;
    }
    if (change) {
        e->hinted->due.key = (double)change;
        e->hinted->due.tick = ++c->tick;
        tree_insert(&c->due, &e->hinted->due);
    }
}

void policy_remove(cache *c, cache_entry *e) {
    if (c->config.policy == CACHE_COST) {
        tree_remove(&c->by_value, &e->standing);
    } else {
        list_remove(&e->link);
        if (list_empty(&c->levels[e->level])) {
            c->levels_used &= ~(UINT64_C(1) << e->level);
        }
    }
    if (e->hinted) {
        tree_remove(&c->due, &e->hinted->due);
    }
}

/*
 * What has changed its meaning moves. With lru what moves to a list goes to the end that it would soon have come to: those who lose
 * by a hint go next.
 */
static void move_due(cache *c) {
    for (tree_node *first; (first = tree_end(&c->due, false)) && first->key <= (double)c->now_us;) {
        cache_entry *e = of_due(first);
        policy_remove(c, e);
        policy_add(c, e);
        if (c->config.policy == CACHE_LRU) {
            list_remove(&e->link);
            list_push_front(&c->levels[e->level], &e->link);
        }
    }
}

/* With lru: the entry at the end of a level's list that goes first, or last. */
static cache_entry *end_of(const cache *c, uint32_t level, bool last) {
    const list_link *list = &c->levels[level];
    return (cache_entry *)(last ? list->prev : list->next);
}

cache_entry *policy_end(cache *c, bool last) {
    move_due(c);
    if (c->config.policy == CACHE_COST) {
        tree_node *node = tree_end(&c->by_value, last);
        return node ? of_standing(node) : NULL;
    }
    if (c->levels_used == 0) {
        return NULL;
    }
    uint32_t level = last ? 63u - (uint32_t)__builtin_clzll(c->levels_used) : (uint32_t)__builtin_ctzll(c->levels_used);
    return end_of(c, level, last);
}

cache_entry *policy_next(const cache *c, const cache_entry *e, bool back) {
    if (c->config.policy == CACHE_COST) {
        tree_node *next = tree_next(&e->standing, back);
        return next ? of_standing(next) : NULL;
    }
    list_link *next = back ? e->link.prev : e->link.next;
    if (next != &c->levels[e->level]) {
        return (cache_entry *)next;
    }
    uint64_t bit = UINT64_C(1) << e->level, below = c->levels_used & (bit - 1),
             above = c->levels_used & ~(bit | (bit - 1));
    if (back) {
        return below ? end_of(c, 63u - (uint32_t)__builtin_clzll(below), true) : NULL;
    }
    return above ? end_of(c, (uint32_t)__builtin_ctzll(above), false) : NULL;
}

uint32_t policy_keep(const cache *c, const cache_entry *e) {
    /* With every page that goes the next one is worth something else; but one by one they are not worth the trouble. */
    return c->config.policy == CACHE_COST ? e->n_pages - 1 - e->n_pages / CHUNK_SHARE : 0;
}

void policy_lost(cache *c, cache_entry *e) {
    if (c->config.policy == CACHE_COST) {
        policy_remove(c, e);
        policy_add(c, e);
    }
}

/* How long it was idle tells how long others may be. A clock that stands still tells nothing. */
static void learn_return(cache *c, uint64_t used_us) {
    if (used_us > 0 && c->now_us > used_us) {
        c->log_return_us += (log((double)(c->now_us - used_us)) - c->log_return_us) * RETURN_SHARE;
    }
}

void cache_returned(cache *c, cache_entry *e) {
    if (e->held != CACHE_NO_NODE) {
        c->nodes[e->held].n_hits++;
    }
    e->n_returns++;
    learn_return(c, e->used_us);
}

void policy_found(cache *c, cache_entry *holder, uint32_t node) {
    if (!holder->pinned && holder->held == node) { /* all of it: a conversation goes on */
        learn_return(c, holder->used_us);
    }
    if (holder->closed && c->config.policy == CACHE_LRU) { /* somebody could use it: it goes later */
        policy_remove(c, holder);
        policy_add(c, holder);
    }
}

void policy_paused(const cache *c, cache_entry *e) {
    if (e->hinted) {
        e->hinted->from_us = c->now_us;
    }
}

/* ------------------------------------------------------------------ kept -- */

void policy_idle(cache *c, cache_entry *e) {
    cache_hinted *h = e->hinted;
    if (!h || !h->hints.keep || e->closed) {
        policy_add(c, e);
        return;
    }
    for (uint32_t i = 0; i < e->n_pages; i++) {
        pool_pin(c, e->pages[i]);
    }
    if (e->n_pages > h->n_pages) { /* it has grown */
        c->n_kept_pages += e->n_pages - h->n_pages;
        h->n_pages = e->n_pages;
    }
    e->kept = true;
    list_push_back(&c->kept, &e->link);
}

void policy_busy(cache *c, cache_entry *e) {
    if (!e->kept) {
        policy_remove(c, e);
        return;
    }
    for (uint32_t i = 0; i < e->n_pages; i++) {
        pool_unpin(c, e->pages[i]);
    }
    e->kept = false;
    list_remove(&e->link);
}

bool cache_yield_kept(cache *c) {
    if (list_empty(&c->kept)) {
        return false;
    }
    cache_entry *e = (cache_entry *)c->kept.next;
    policy_busy(c, e);
    policy_add(c, e);
    return true;
}

/* ----------------------------------------------------------------- hints -- */

void policy_forget(cache *c, cache_entry *e) {
    if (e->hinted) {
        c->n_kept_pages -= e->hinted->n_pages;
        free(e->hinted);
        e->hinted = NULL;
    }
}

perch_status cache_entry_hint(cache *c, cache_entry *e, const cache_hints *hints, uint32_t n_tokens, perch_error *err) {
    bool idle = !e->pinned && e->n_pages > 0;
    bool any = hints->keep || hints->priority || hints->expect_us || hints->ttl_us;
    uint32_t n_tokens_kept = n_tokens < c->config.session_len ? n_tokens : c->config.session_len;
    uint32_t n_pages = hints->keep ? cache_pages_for(c, n_tokens_kept) : 0;
    uint64_t others = c->n_kept_pages - (e->hinted ? e->hinted->n_pages : 0);
    if (hints->keep && n_pages < e->n_pages) {
        n_pages = e->n_pages;
    }
    if (hints->keep && others + n_pages > c->config.n_pages / KEPT_SHARE) {
        return err_set(err, PERCH_E_NO_ROOM,
                       "pin: %u pages, beside %llu that pinned sequences have, are more than half of the pool's %u",
                       n_pages, (unsigned long long)others, c->config.n_pages);
    }
    cache_hinted *h = any && !e->hinted ? calloc(1, sizeof *h) : e->hinted;
    if (any && !h) {
        return err_nomem(err, "a sequence's hints");
    }
    if (idle) {
        policy_busy(c, e);
    }
    if (!any) {
        policy_forget(c, e);
    } else {
        h->hints = *hints;
        h->entry = e;
        h->from_us = c->now_us;
        h->n_pages = n_pages;
        e->hinted = h;
        c->n_kept_pages = others + n_pages;
    }
    if (idle) {
        policy_idle(c, e);
    }
    return PERCH_OK;
}

void cache_entry_hints(const cache_entry *e, cache_hints *out) {
    *out = e->hinted ? e->hinted->hints : (cache_hints){.priority = 0};
}
