/* evict: the idle entry that the policy names loses pages from its tail, so that what it keeps is a valid prefix. */
#include "cache/state.h"

/* Takes v's last page; where that leaves a page of the grower with no other owner, there is one copy less to make. */
static void take_last(cache *c, cache_entry *v, const cache_entry *grower, cache_growth *growth) {
    uint32_t index = v->n_pages - 1, page = v->pages[index];
    tier_lost(c, v, index);
    entry_drop_last(c, v);
    if (growth && index >= growth->first && index < growth->end && grower->pages[index] == page &&
        c->pages[page].n_owners == 1) {
        growth->n_need--;
    }
}

static void report(const cache *c, const cache_entry *v, uint32_t n_tokens, uint32_t n_pages) {
    if (c->on_evict) {
        const cache_eviction what = {.n_pages = n_pages,
                                     .n_tokens = n_tokens,
                                     .n_left = v->n_valid,
                                     .closed = v->closed,
                                     .idle_us = c->now_us > v->used_us ? c->now_us - v->used_us : 0};
        c->on_evict(c->on_evict_user, &what);
    }
}

/*
 * Takes pages from v's tail until it has keep, or growth (may be NULL) has enough; then what holds no whole group goes,
 * too. It counts as an eviction where KV was lost, not merely spare pages.
 */
static void shorten(cache *c, cache_entry *v, uint32_t keep, const cache_entry *grower, cache_growth *growth) {
    uint32_t n_tokens = v->n_valid, n_carrying = cache_pages_for(c, n_tokens);
    v->n_saved = v->n_saved > v->n_valid ? v->n_saved : v->n_valid;
    while (v->n_pages > keep && !(growth && c->n_free >= growth->n_need)) {
        take_last(c, v, grower, growth);
    }
    uint64_t n_whole = v->n_pages * c->config.page_bytes / c->config.group_bytes;
    while (n_whole == 0 && v->n_pages > 0) {
        take_last(c, v, grower, growth);
    }
    if (v->n_pages < n_carrying) {
        /* Fewer whole groups than n_valid's tokens lay in. */
        if (v->n_pages > 0) { /* the beginning of a group that it has lost may lie in the last one */
            tier_lost(c, v, v->n_pages - 1);
        }
        v->n_valid = (uint32_t)n_whole * KV_GROUP_TOKENS;
        prefix_shrink(c, v, v->n_valid);
        v->n_evictions++;
        c->evictions += !v->closed;
        c->evicted_pages += n_carrying - v->n_pages;
        report(c, v, n_tokens, n_carrying - v->n_pages);
    }
    if (v->n_pages > 0) {
        policy_lost(c, v);
    } else if (v->closed) { /* with its last page it goes */
        policy_remove(c, v);
        c->n_closed--;
        entry_free(v);
    } else {
        entry_settle(c, v);
    }
}

void evict_for(cache *c, const cache_entry *grower, cache_growth *growth) {
    while (c->n_free < growth->n_need) {
        cache_entry *v = policy_end(c, false);
        shorten(c, v, policy_keep(c, v), grower, growth);
    }
}

bool cache_evict_one(cache *c, uint32_t keep_pages) {
    cache_entry *v = policy_end(c, false);
    if (!v || v->n_pages <= keep_pages) {
        return false;
    }
    shorten(c, v, keep_pages, NULL, NULL);
    return true;
}
