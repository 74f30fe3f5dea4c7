/* entry: one sequence's share of the cache: its page array, how much of it is valid, and how it lets go of pages. */
#include "cache/state.h"

#include <stdlib.h>

perch_status cache_entry_create(cache *c, uint64_t name_space, cache_entry **out, perch_error *err) {
    (void)c;
    cache_entry *e = calloc(1, sizeof *e);
    *out = e;
    if (!e) {
        return err_nomem(err, "a cache entry");
    }
    e->slot = CACHE_NO_SLOT;
    e->name_space = name_space;
    e->held = CACHE_NO_NODE;
    return PERCH_OK;
}

void cache_entry_destroy(cache *c, cache_entry *e) {
    if (!e) {
        return;
    }
    if (e->pinned) {
        cache_unpin(c, e);
    }
    if (e->closed) { /* nobody but this function frees it */
        e->closed = false;
        c->n_closed--;
        c->n_resident++;
    }
    cache_truncate(c, e, 0);
    claims_drop(c, e);
    policy_forget(c, e);
    entry_free(e);
}

void entry_free(cache_entry *e) {
    free(e->pages);
    free(e);
}

/* There may be as many closed entries as groups in the pool: they keep no room to grow, and no copies. */
static void give_back_room(cache *c, cache_entry *e) {
    uint32_t *pages = e->n_pages > 0 ? realloc(e->pages, e->n_pages * sizeof *pages) : NULL;
    if (pages) {
        e->pages = pages;
    }
    claims_drop(c, e);
}

void cache_entry_close(cache *c, cache_entry *e) {
    if (e && e->pinned) {
        cache_unpin(c, e);
    }
    /* What others hold as well is not worth keeping twice. */
    if (!e || e->n_held == 0 || c->nodes[e->held].n_holders > 1) {
        cache_entry_destroy(c, e);
        return;
    }
    cache_truncate(c, e, e->n_held * KV_GROUP_TOKENS);
    if (e->slot != CACHE_NO_SLOT) {
        for (uint32_t i = 0; i < e->n_pages; i++) {
            slot_abandon(c, e->slot, i);
        }
        slot_release(c, e);
    }
    policy_busy(c, e);
    policy_forget(c, e);
    give_back_room(c, e);
    e->n_reserved = 0;
    e->closed = true;
    policy_add(c, e);
    c->n_resident--;
    c->n_closed++;
}

static perch_status ensure_array(cache *c, cache_entry *e, perch_error *err) {
    if (!e->pages) {
        e->pages = calloc(c->pages_per_slot, sizeof *e->pages);
    }
    return e->pages ? claims_reserve(c, e, err) : err_nomem(err, "the page array of a cache entry");
}

perch_status cache_entry_reserve(cache *c, cache_entry *e, perch_error *err) {
    perch_status status = ensure_array(c, e, err);
    if (status == PERCH_OK) {
        e->n_reserved++;
    }
    return status;
}

static void free_arrays_if_unused(cache *c, cache_entry *e) {
    if (e->n_pages == 0 && e->n_reserved == 0 && !e->pinned) {
        free(e->pages);
        e->pages = NULL;
        claims_settle(c, e);
    }
}

void cache_entry_release(cache *c, cache_entry *e) {
    if (e->n_reserved > 0) {
        e->n_reserved--;
    }
    free_arrays_if_unused(c, e);
}

uint64_t cache_entry_namespace(const cache_entry *e) { return e->name_space; }
uint32_t cache_entry_n_valid(const cache_entry *e) { return e->n_valid; }
uint32_t cache_entry_n_pages(const cache_entry *e) { return e->n_pages; }
uint64_t cache_entry_n_evictions(const cache_entry *e) { return e->n_evictions; }
uint32_t cache_entry_slot(const cache_entry *e) { return e->slot; }
bool cache_entry_pinned(const cache_entry *e) { return e->pinned; }

void entry_drop_last(cache *c, cache_entry *e) {
    uint32_t index = --e->n_pages;
    pool_drop(c, e->pages[index], e->pinned || e->kept);
    if (e->slot != CACHE_NO_SLOT) {
        slot_abandon(c, e->slot, index);
    }
}

void entry_settle(cache *c, cache_entry *e) {
    if (e->pinned || e->n_pages > 0) {
        return;
    }
    policy_busy(c, e);
    free_arrays_if_unused(c, e);
    c->n_resident--;
    if (e->slot != CACHE_NO_SLOT) {
        slot_release(c, e);
    }
}

void cache_commit(cache_entry *e, uint32_t n_valid) {
    uint32_t written = n_valid < e->n_ready ? n_valid : e->n_ready;
    /* Never less than before: a page may be shared by now, and what was ready must lie behind the valid tokens. */
    e->stride = written > e->n_valid ? written - e->n_valid : 0;
    e->n_valid += e->stride;
}

void cache_truncate(cache *c, cache_entry *e, uint32_t n_tokens) {
    n_tokens = n_tokens < c->config.session_len ? n_tokens : c->config.session_len;
    uint32_t keep = cache_pages_for(c, n_tokens);
    prefix_shrink(c, e, n_tokens);
    cache_truncate_copies(c, e, n_tokens);
    if (e->restoring && n_tokens < c->slots[e->slot].load.n_restored) {
        load_cancel(c, e);
        e->n_ready = e->n_valid; /* some pages are being written to: extend sees to that */
    }
    e->n_valid = e->n_valid < n_tokens ? e->n_valid : n_tokens;
    e->n_ready = e->n_ready < n_tokens ? e->n_ready : n_tokens;
    if (e->n_pages <= keep) {
        return;
    }
    while (e->n_pages > keep) {
        entry_drop_last(c, e);
    }
    entry_settle(c, e);
}

void entry_share(cache *c, const cache_entry *parent, cache_entry *child, uint32_t n_valid) {
    uint32_t n_pages = cache_pages_for(c, n_valid);
    for (uint32_t i = 0; i < n_pages; i++) {
        child->pages[i] = parent->pages[i];
        pool_share(c, child->pages[i]);
    }
    child->n_pages = n_pages;
    child->n_valid = n_valid;
    child->used_us = c->now_us;
    prefix_inherit(c, parent, child, n_valid);
    policy_idle(c, child);
    c->n_resident++;
}

perch_status cache_fork(cache *c, cache_entry *parent, cache_entry *child, uint32_t n_tokens, perch_error *err) {
    if (child->pinned || child->n_pages > 0) {
        return err_set(err, PERCH_E_INVALID, "the child of a fork must be empty and idle: it has %u pages",
                       child->n_pages);
    }
    uint32_t n_valid = n_tokens < parent->n_valid ? n_tokens : parent->n_valid;
    perch_status status = n_valid > 0 ? ensure_array(c, child, err) : PERCH_OK;
    if (status != PERCH_OK) {
        return status;
    }
    cache_truncate_copies(c, child, 0); /* of what it was before, if it was evicted to the last page */
    if (n_valid > 0) {
        entry_share(c, parent, child, n_valid);
    }
    return PERCH_OK;
}
