/*
 * worth: whether what there are copies of is loaded or computed again, or both at once from the two ends. Of a run of pages that take L
 * to load and C to compute, with q to wait for what others load and f to compute in front of it, loading a share x takes
 * q + x L, and computing the rest f + (1 - x) C: they meet where both are the same. Loading alone is preferred where computing
 * beside it would save less than a tenth, since that takes the time from others; and so is computing alone. With costs that are not known all of
 * it is loaded.
 */
#include "cache/state.h"

#define WORTH_IT 0.9

typedef struct prospect {
    double load_us, compute_us; /* all of the run */
    double queue_us, front_us;
} prospect;

/* Tokens from..end, one behind the other. */
static double compute_us(const cache *c, uint32_t from, uint32_t end) {
    double n = end > from ? (double)end - from : 0;
    return n * (c->costs.compute_us + c->costs.compute_us_per_position * ((double)from + end) / 2);
}

static cache_tier tier_of(const cache *c, const cache_entry *e, uint32_t index) {
    return copy_lies_in(c, e->copies[index].copy, CACHE_HOST) ? CACHE_HOST : CACHE_DISK;
}

static prospect look_ahead(const cache *c, cache_loading *l) {
    const cache_entry *e = l->entry;
    prospect p = {.load_us = 0};
    bool any[CACHE_N_TIERS] = {false};
    uint32_t behind = cache_tokens_behind(c, l->floor), from = behind > e->n_valid ? behind : e->n_valid;
    for (uint32_t i = l->floor; i < l->end; i++) {
        cache_tier tier = tier_of(c, e, i);
        p.load_us += c->costs.page_us[tier];
        any[tier] = true;
    }
    l->page_us = p.load_us / (l->end - l->floor);
    for (int tier = 0; tier < CACHE_N_TIERS; tier++) {
        p.queue_us += any[tier] ? c->costs.latency_us[tier] : 0;
    }
    for (const list_link *at = c->restoring.next; at != &c->restoring; at = at->next) {
        const cache_loading *o = (const cache_loading *)at;
        uint32_t low = o->goal > o->floor ? o->goal : o->floor;
        p.queue_us += o->page_us * (o->n_loading + (o->low > low ? o->low - low : 0));
    }
    p.front_us = compute_us(c, e->n_valid, from);
    p.compute_us = compute_us(c, from, l->n_restored);
    return p;
}

static double share_of(const prospect *p) {
    double all = p->load_us + p->compute_us;
    double x = all > 0 ? (p->front_us + p->compute_us - p->queue_us) / all : 1;
    return x < 0 ? 0 : x > 1 ? 1 : x;
}

bool worth_restoring(const cache *c, cache_loading *l) {
    const cache_restore way = c->config.restore;
    prospect p = look_ahead(c, l);
    bool known = p.load_us > 0 && p.front_us + p.compute_us > 0;
    bool has_front = l->floor > cache_first_page_of(c, l->entry->n_valid);
    double x = share_of(&p), load_us = p.queue_us + p.load_us, all_us = p.front_us + p.compute_us;
    double meet_us = p.queue_us + x * p.load_us > p.front_us ? p.queue_us + x * p.load_us : p.front_us;
    if (way == CACHE_RESTORE_COMPUTE) {
        return false;
    }
    if (way == CACHE_RESTORE_AUTO && known && (x <= 0 || meet_us > WORTH_IT * all_us)) {
        return false;
    }
    bool beside = way == CACHE_RESTORE_BOTH || (way == CACHE_RESTORE_AUTO && known && meet_us <= WORTH_IT * load_us);
    l->computes = beside || has_front;
    /* What is to be computed is left to computing at first; without that, all of it is asked for. */
    l->goal = beside ? l->end : l->floor;
    return true;
}

uint32_t worth_loading(const cache *c, const cache_loading *l, uint32_t n_pages) {
    uint32_t low = l->hold_low - n_pages;
    prospect p = {.load_us = l->page_us * n_pages};
    p.compute_us = compute_us(c, cache_tokens_behind(c, low), cache_tokens_behind(c, l->hold_low));
    p.front_us = compute_us(c, l->entry->n_valid, cache_tokens_behind(c, low));
    bool known = p.load_us > 0 && p.compute_us > 0;
    uint32_t n = (uint32_t)((known ? share_of(&p) : 0.5) * n_pages + 0.5);
    return n < 1 ? 1 : n;
}
