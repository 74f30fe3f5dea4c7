/*
 * tier: transfers between pages and the host tier, and which pages are saved there ahead of eviction. A transfer is asked for, sent
 * by the engine, and done, in order in each direction; from the first to the last of these it holds its page and its frame.
 */
#include "cache/state.h"

/* Stores under way at a time, as a share of the pages: they keep their pages from everybody. */
#define BUSY_SHARE 16u
/* Pages that are free or have copies that save sees to: a share of all, at most so many, but a full sequence. And its rhythm. */
#define SAFE_SHARE 8u
#define MOST_SAFE 1024u
#define SAVE_CALLS 4u

static uint32_t min_u32(uint32_t a, uint32_t b) { return a < b ? a : b; }

void tier_init(cache *c) {
    copies_init(c);
    list_init(&c->restoring);
    list_init(&c->demoted);
    names_init(c);
    c->sweep = &c->demoted;
}

/* ---------------------------------------------------------------- queues -- */

bool tier_has_room(const cache *c, cache_direction direction) {
    const cache_queue *q = &c->queues[direction];
    return q->end - q->begin < c->queue_cap;
}

static void push(cache *c, cache_direction direction, uint32_t page, uint32_t frame, cache_entry *entry) {
    cache_queue *q = &c->queues[direction];
    q->items[q->end++ % c->queue_cap] = (cache_moving){.page = page, .frame = frame, .entry = entry};
    pool_share(c, page);
    pool_pin(c, page);
}

size_t cache_transfers(const cache *c, cache_direction direction, cache_transfer *out, size_t cap) {
    const cache_queue *q = &c->queues[direction];
    size_t n = 0;
    for (uint64_t i = q->sent; i < q->end && n < cap; i++) {
        const cache_moving *m = &q->items[i % c->queue_cap];
        out[n++] = (cache_transfer){m->page, m->frame};
    }
    return n;
}

void cache_transfers_sent(cache *c, cache_direction direction, size_t n, uint64_t ticket) {
    cache_queue *q = &c->queues[direction];
    for (size_t i = 0; i < n && q->sent < q->end; i++) {
        q->items[q->sent++ % c->queue_cap].ticket = ticket;
    }
}

uint64_t cache_transfers_pending(const cache *c, cache_direction direction) {
    const cache_queue *q = &c->queues[direction];
    return q->sent > q->begin ? q->items[q->begin % c->queue_cap].ticket : 0;
}

void cache_transfers_done(cache *c, cache_direction direction, uint64_t ticket) {
    cache_queue *q = &c->queues[direction];
    while (q->begin < q->sent && q->items[q->begin % c->queue_cap].ticket <= ticket) {
        const cache_moving *m = &q->items[q->begin++ % c->queue_cap];
        if (direction == CACHE_STORE) {
            c->tiers[CACHE_HOST].items[m->frame].filling = false;
            c->tier_stats.saved_pages++;
        } else {
            c->tier_stats.restored_pages++;
        }
        frame_let_go(c, CACHE_HOST, m->frame, true);
        pool_drop(c, m->page, true);
        if (m->entry) {
            load_arrived(c, m->entry);
        }
    }
}

void tier_load(cache *c, cache_entry *e, uint32_t index) {
    const cache_claim *claim = &e->copies[index];
    uint32_t frame = c->copies[claim->copy].frame[CACHE_HOST];
    frame_hold(c, CACHE_HOST, frame);
    push(c, CACHE_LOAD, e->pages[index], frame, e);
    c->pages[e->pages[index]].copy = *claim;
}

void tier_forget_loads(cache *c, const cache_entry *e) {
    const cache_queue *q = &c->queues[CACHE_LOAD];
    for (uint64_t i = q->begin; i < q->end; i++) {
        cache_moving *m = &q->items[i % c->queue_cap];
        if (m->entry == e) {
            m->entry = NULL;
        }
    }
}

/* ------------------------------------------------------------------ save -- */

/* Copies of e's last pages, n_pages at most. False: there is no room for more now. */
static bool save_entry(cache *c, const cache_entry *e, uint64_t n_pages) {
    const cache_queue *q = &c->queues[CACHE_STORE];
    uint64_t most = c->config.n_pages / BUSY_SHARE + 1;
    /* From the tail on, which is lost first; and of an entry's frames the last are given up first. */
    uint32_t i = cache_pages_for(c, e->n_valid);
    names_cursor at = names_begin(e);
    for (; i > 0 && n_pages > 0; n_pages--) {
        cache_page *p = &c->pages[e->pages[--i]];
        if (claim_holds(c, &p->copy) && p->copy.n_tokens >= min_u32(e->n_valid, cache_tokens_touching(c, i))) {
            continue;
        }
        if (names_find_page(c, &at, i, &p->copy)) { /* somebody else's page had the same KV */
            continue;
        }
        if (!tier_has_room(c, CACHE_STORE) || q->end - q->begin >= most) {
            return false;
        }
        uint32_t frame = disk_host_frame(c);
        if (frame == CACHE_NO_FRAME) {
            return false;
        }
        p->copy = copy_make(c, frame, i, e->n_valid);
        names_give(c, &at, p->copy.copy);
        push(c, CACHE_STORE, e->pages[i], frame, NULL);
    }
    return true;
}

void cache_save_all(cache *c) { c->saves_all = true; }

static const cache_entry *kept_at(const cache *c, const list_link *link) {
    return link == &c->kept ? NULL : (const cache_entry *)link;
}

/* Those that go first, until `wanted` pages are free or safe; or all, and then those that would go last come first. */
static void save_entries(cache *c, uint64_t wanted, uint64_t safe, uint64_t n_copies) {
    const bool all = c->saves_all;
    const cache_entry *kept = all ? kept_at(c, c->kept.prev) : NULL, *e = kept ? kept : policy_end(c, all);
    while (n_copies > 0 && e && safe < wanted) {
        uint64_t n_pages = cache_pages_for(c, e->n_valid), n = wanted - safe;
        n = n < n_pages ? n : n_pages;
        n = n < n_copies ? n : n_copies;
        if (!save_entry(c, e, n)) {
            break;
        }
        n_copies -= n;
        safe += n + e->n_pages - n_pages;
        kept = kept ? kept_at(c, kept->link.prev) : NULL;
        e = kept ? kept : e->kept ? policy_end(c, all) : policy_next(c, e, all);
    }
}

bool cache_save(cache *c, bool now) {
    const uint64_t asked_before = c->queues[CACHE_STORE].end;
    uint64_t wanted = min_u32(c->config.n_pages / SAFE_SHARE, MOST_SAFE);
    uint64_t n_copies = disk_n_distinct(c); /* for those that are next: else they would take them from one another */
    wanted = wanted > c->pages_per_slot ? wanted : c->pages_per_slot; /* whoever is admitted next may want so many */
    wanted = c->saves_all ? c->config.n_pages : wanted;
    if (n_copies == 0 || (!now && c->n_save_calls++ % SAVE_CALLS != 0)) {
        return false;
    }
    claims_sweep(c);
    bool spills = disk_spill(c);
    uint64_t safe = c->saves_all ? 0 : c->n_free;
    save_entries(c, wanted, safe, n_copies);
    return spills || c->queues[CACHE_STORE].end > asked_before;
}
