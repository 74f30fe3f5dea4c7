/*
 * cache_check: every invariant of the cache, counted afresh from the entries and held against what the cache keeps. For
 * tests; O(pages + places), and it allocates.
 */
#include "cache/state.h"

#include <stddef.h>
#include <stdlib.h>

typedef struct recount {
    uint32_t *owners;              /* [n_pages] */
    uint32_t *pinned;              /* [n_pages] */
    uint32_t *mapped;              /* [n_pages] places */
    uint32_t *live;                /* [n_pages] of which live */
    uint64_t * xor ;               /* [n_pages] of the places */
    uint8_t *free;                 /* [n_pages] is in the free list */
    cache_node *nodes;             /* [n_nodes + 1] their n_holders, n_promises */
    uint32_t *busy[CACHE_N_TIERS]; /* [n_frames], [n_disk_frames] and one */
    uint32_t n_filling;            /* frames of the disk tier that are read or written */
    uint64_t n_resident, n_closed, n_due, n_kept_pages;
} recount;

/* The nodes that an entry holds and promises are as many as it says, up to the first group. */
static const char *count_nodes(const cache *c, const cache_entry *e, recount *n) {
    uint32_t n_held = 0, n_promised = 0, node = e->n_promised ? e->promised : e->held;
    for (; node != CACHE_NO_NODE && node != e->held && n_promised <= e->n_promised; node = c->nodes[node].parent) {
        n->nodes[node].n_promises++;
        n_promised++;
    }
    bool hangs = node == CACHE_NO_NODE;
    for (const cache_entry *at = hangs ? NULL : c->nodes[node].entries; at; at = at->peer) {
        hangs = hangs || at == e;
    }
    for (; node != CACHE_NO_NODE && n_held <= e->n_held; node = c->nodes[node].parent) {
        n->nodes[node].n_holders++;
        n_held++;
    }
    return n_held != e->n_held || n_promised != e->n_promised || !hangs || (n_promised > 0 && !e->pinned)
               ? "an entry does not hold the nodes that it believes in"
           : n_held * KV_GROUP_TOKENS > e->n_valid ? "an entry holds nodes whose KV it does not have"
                                                   : NULL;
}

static const char *count_entry(const cache *c, const cache_entry *e, recount *n) {
    if (!e->pages || e->n_pages > c->pages_per_slot) {
        return "an entry has more pages than a slot, or no page array";
    }
    if (e->n_valid > c->config.session_len || cache_pages_for(c, e->n_valid) > e->n_pages) {
        return "an entry's valid tokens don't lie within its pages";
    }
    for (uint32_t i = 0; i < e->n_pages; i++) {
        if (e->pages[i] >= c->config.n_pages) {
            return "an entry has a page that does not exist";
        }
        n->owners[e->pages[i]]++;
        n->pinned[e->pages[i]] += e->pinned || e->kept;
        if (e->slot != CACHE_NO_SLOT && slot_mapped(c, e->slot, i) != e->pages[i]) {
            return "a page of an entry is not mapped under the entry's slot";
        }
    }
    return count_nodes(c, e, n);
}

static const char *check_nodes(const cache *c, const recount *n) {
    uint32_t n_used = 0;
    for (uint32_t node = 0; node < c->n_nodes; node++) {
        const cache_node *at = &c->nodes[node], *counted = &n->nodes[node];
        bool used = counted->n_holders > 0 || counted->n_promises > 0;
        n_used += used;
        if (used && (at->n_holders != counted->n_holders || at->n_promises != counted->n_promises)) {
            return "a node's count of holders or promises is wrong";
        }
    }
    return n_used == c->n_nodes_used ? NULL : "a node is in use that nobody holds or promises";
}

/* One that is in the order, or kept. */
static const char *check_idle(const cache *c, const cache_entry *e, recount *n) {
    if (e->pinned || e->n_pages == 0) {
        return "the order of eviction has an entry that is pinned, or holds no page";
    }
    if (e->slot != CACHE_NO_SLOT && (e->slot >= c->config.n_slots || c->slots[e->slot].holder != e)) {
        return "an idle entry believes in a slot that is not its own";
    }
    if (e->closed && (e->slot != CACHE_NO_SLOT || e->n_held == 0 || e->hinted)) {
        return "a closed entry has a slot, or hints, or nothing that could be found";
    }
    *(e->closed ? &n->n_closed : &n->n_resident) += 1;
    n->n_due += e->hinted && e->hinted->due.tick != 0;
    n->n_kept_pages += e->kept ? e->n_pages : 0;
    return count_entry(c, e, n);
}

/* Lists and trees of the policy, with all that is in them. */
static const char *check_order(const cache *c, recount *n) {
    const char *broken = NULL;
    uint64_t n_by_value, n_due;
    for (uint32_t level = 0; level < CACHE_N_LEVELS && !broken; level++) {
        const list_link *list = &c->levels[level];
        broken = list_empty(list) == ((c->levels_used >> level & 1) == 0) ? NULL : "a level is not what its bit says";
        for (const list_link *at = list->next; at != list && !broken; at = at->next) {
            const cache_entry *e = (const cache_entry *)at;
            broken =
                at->next->prev != at || e->level != level || e->kept ? "a level's list is broken" : check_idle(c, e, n);
        }
    }
    broken = broken ? broken : tree_check(&c->by_value, &n_by_value);
    for (const tree_node *at = tree_end(&c->by_value, false); at && !broken; at = tree_next(at, false)) {
        const cache_entry *e = (const cache_entry *)(const void *)((const char *)at - offsetof(cache_entry, standing));
        broken = e->kept || c->levels_used ? "an entry is in two orders" : check_idle(c, e, n);
    }
    for (const list_link *at = c->kept.next; at != &c->kept && !broken; at = at->next) {
        const cache_entry *e = (const cache_entry *)at;
        broken =
            at->next->prev != at || !e->kept || !e->hinted ? "the list of kept entries is broken" : check_idle(c, e, n);
    }
    broken = broken ? broken : tree_check(&c->due, &n_due);
    return broken                              ? broken
           : n_due != n->n_due                 ? "the order by time has other entries than that of eviction"
           : n->n_kept_pages > c->n_kept_pages ? "more pages are kept than was counted"
                                               : NULL;
}

/* The entries with pages: idle ones are in the policy's order, pinned ones hold a slot. */
static const char *check_entries(const cache *c, recount *n) {
    uint32_t n_pinned_slots = 0;
    const char *order = check_order(c, n);
    if (order) {
        return order;
    }
    for (uint32_t slot = 0; slot < c->config.n_slots; slot++) {
        const cache_entry *e = c->slots[slot].holder;
        if (e && e->slot != slot) {
            return "a slot's holder believes in another slot";
        }
        if (e && e->pinned) {
            n_pinned_slots++;
            const char *broken = count_entry(c, e, n);
            if (broken) {
                return broken;
            }
        }
    }
    return n->n_resident != c->n_resident        ? "the number of resident entries is wrong"
           : n->n_closed != c->n_closed          ? "the number of closed entries is wrong"
           : n_pinned_slots != c->n_pinned_slots ? "the number of pinned slots is wrong"
                                                 : NULL;
}

/* Free slots and idle holders' slots are in their lists. */
static const char *check_slots(const cache *c) {
    uint32_t n_free = 0, n_idle = 0;
    for (const list_link *at = c->free_slots.next; at != &c->free_slots; at = at->next) {
        if (at->next->prev != at || n_free++ > c->config.n_slots || ((const cache_slot *)at)->holder) {
            return "the list of free slots is broken";
        }
    }
    for (const list_link *at = c->idle_slots.next; at != &c->idle_slots; at = at->next) {
        const cache_entry *holder = ((const cache_slot *)at)->holder;
        if (at->next->prev != at || n_idle++ > c->config.n_slots || !holder || holder->pinned) {
            return "the list of idle slots is broken";
        }
    }
    return n_free + n_idle + c->n_pinned_slots == c->config.n_slots ? NULL : "a slot is lost";
}

static const char *check_places(const cache *c, recount *n) {
    uint64_t n_places = (uint64_t)c->config.n_slots * c->pages_per_slot;
    size_t n_mapped = 0;
    for (uint64_t place = 0; place < n_places; place++) {
        if (!c->places[place]) {
            continue;
        }
        uint32_t page = c->places[place] - 1;
        if (page >= c->config.n_pages) {
            return "a place maps a page that does not exist";
        }
        n_mapped++;
        n->mapped[page]++;
        n->live[page] += slot_place_live(c, place);
        n->xor [page] ^= place;
    }
    return n_mapped != c->n_mapped                         ? "the number of mapped places is wrong"
           : c->n_commands + c->n_mapped > c->cap_commands ? "the command list could overflow"
                                                           : NULL;
}

/* ------------------------------------------------- below the device -- */

/* Those in the queues hold their pages, and their host frames. */
static const char *count_queues(const cache *c, recount *n) {
    for (int direction = 0; direction < 2; direction++) {
        const cache_queue *q = &c->queues[direction];
        for (uint64_t i = q->begin; i < q->end; i++) {
            const cache_moving *m = &q->items[i % c->queue_cap];
            n->owners[m->page]++;
            n->pinned[m->page]++;
            n->busy[CACHE_HOST][m->frame]++;
            if (m->entry && (!m->entry->restoring || !c->slots[m->entry->slot].load.n_loading)) {
                return "a transfer is under way for an entry that does not know of it";
            }
        }
    }
    return NULL;
}

/* Entries that restore hold the frames of what they are about to load. */
static const char *count_restoring(const cache *c, recount *n) {
    for (const list_link *at = c->restoring.next; at != &c->restoring; at = at->next) {
        const cache_loading *l = (const cache_loading *)at;
        const cache_entry *e = l->entry;
        if (at->next->prev != at || !e->restoring || !e->pinned || &c->slots[e->slot].load != l ||
            l->end > e->n_pages) {
            return "the list of entries that restore is broken";
        }
        if (l->hold_low > l->low || l->low > l->end || l->n_loading > l->end - l->low) {
            return "an entry loads more than it has asked for";
        }
        if (l->n_loading > 0 && e->n_valid > l->n_began && cache_pages_for(c, e->n_valid) > l->low) {
            return "an entry computes in a page that it loads";
        }
        for (uint32_t i = l->hold_low; i < l->low; i++) {
            const cache_copy *copy = &c->copies[e->copies[i].copy];
            if (copy->frame[CACHE_HOST] == CACHE_NO_FRAME || copy->generation != e->copies[i].generation) {
                return "an entry holds a frame that it has lost";
            }
            n->busy[CACHE_HOST][copy->frame[CACHE_HOST]]++;
        }
    }
    return NULL;
}

static const char *check_demoted(const cache *c) {
    uint64_t n_claims = 0;
    bool has_sweep = c->sweep == &c->demoted;
    for (const list_link *at = c->demoted.next; at != &c->demoted; at = at->next) {
        const cache_entry *e = (const cache_entry *)at;
        has_sweep = has_sweep || at == c->sweep;
        n_claims += e->n_copies;
        if (at->next->prev != at || !e->demoted || e->pinned || e->n_pages || e->n_reserved || !e->copies) {
            return "the list of demoted entries is broken";
        }
    }
    return n_claims == c->n_demoted_claims && n_claims <= c->max_demoted_claims && has_sweep
               ? NULL
               : "demoted entries have another number of claims";
}

static const char *check_frames(const cache *c, cache_tier tier, recount *n) {
    const cache_frames *t = &c->tiers[tier];
    uint32_t n_lru = 0, n_busy = 0, n_full = 0;
    for (const list_link *at = t->lru.next; at != &t->lru; at = at->next) {
        if (at->next->prev != at || n_lru++ > t->n_used || ((const cache_frame *)at)->n_busy) {
            return "a list of frames is broken";
        }
    }
    for (uint32_t frame = 0; frame < t->n_used; frame++) {
        const cache_frame *f = &t->items[frame];
        n_busy += f->n_busy > 0;
        n_full += f->copy != CACHE_NO_COPY;
        /* A read or write: what is being filled, and where from. */
        uint32_t other = f->copy == CACHE_NO_COPY ? CACHE_NO_FRAME : c->copies[f->copy].frame[1 - tier];
        bool both = other != CACHE_NO_FRAME;
        bool filled = both && !f->broken && f->filling, fills = both && c->tiers[1 - tier].items[other].filling;
        fills = fills && !c->tiers[1 - tier].items[other].broken;
        n->busy[tier][frame] += filled || fills ? 1u : 0u;
        n->n_filling += tier == CACHE_DISK && (filled || fills);
        if (f->n_busy != n->busy[tier][frame]) {
            return "a frame's count of those that are busy with it is wrong";
        }
        if (f->copy != CACHE_NO_COPY && c->copies[f->copy].frame[tier] != frame) {
            return "a copy does not lie where it is";
        }
    }
    if (n_full != t->n_full) {
        return "another number of frames has copies";
    }
    return n_lru + n_busy == t->n_used ? NULL : "a frame is lost";
}

static const char *check_copies(const cache *c) {
    uint32_t n_free = 0, n_void = 0;
    for (uint32_t i = c->free_copy; i != CACHE_NO_COPY; i = c->copies[i].next) {
        if (n_free++ > c->n_copies_used) {
            return "the list of void copies is broken";
        }
    }
    for (uint32_t i = 0; i < c->n_copies_used; i++) {
        bool lies = false;
        for (int tier = 0; tier < CACHE_N_TIERS; tier++) {
            uint32_t frame = c->copies[i].frame[tier];
            lies = lies || frame != CACHE_NO_FRAME;
            if (frame != CACHE_NO_FRAME && c->tiers[tier].items[frame].copy != i) {
                return "a copy lies in a frame that has something else";
            }
        }
        n_void += !lies;
    }
    return n_void == n_free ? NULL : "a copy is lost";
}

static const char *check_tiers(const cache *c, recount *n) {
    const char *broken = count_queues(c, n);
    broken = broken ? broken : count_restoring(c, n);
    broken = broken ? broken : check_demoted(c);
    broken = broken ? broken : check_frames(c, CACHE_HOST, n);
    broken = broken ? broken : check_frames(c, CACHE_DISK, n);
    broken = broken ? broken : check_copies(c);
    return broken ? broken : n->n_filling != c->n_disk_pending ? "reads and writes are another number" : NULL;
}

static const char *check_pages(const cache *c, const recount *n) {
    uint32_t n_free = 0, n_pinned = 0;
    bool behind_mapped = false;
    for (const list_link *at = c->free_pages.next; at != &c->free_pages; at = at->next) {
        const cache_page *p = (const cache_page *)at;
        if (at->next->prev != at || n_free++ > c->config.n_pages || n->free[p - c->pages]++) {
            return "the list of free pages is broken";
        }
        if (p->n_places == 0 && behind_mapped) {
            return "a free page that is mapped nowhere stands behind a mapped one";
        }
        behind_mapped = p->n_places > 0;
    }
    for (uint32_t page = 0; page < c->config.n_pages; page++) {
        const cache_page *p = &c->pages[page];
        if (p->n_owners != n->owners[page] || p->n_pinned != n->pinned[page]) {
            return "a page's count of owners or pins is wrong";
        }
        if ((p->n_owners == 0) != n->free[page]) {
            return "a page without an owner is not in the free list, or one with an owner is";
        }
        if (p->n_places != n->mapped[page] || p->places_xor != n->xor [page]) {
            return "a page does not know where it is mapped";
        }
        if (n->live[page] < n->mapped[page] && n->mapped[page] > 1) {
            return "a page with a stale mapping is mapped elsewhere, too";
        }
        n_pinned += p->n_pinned > 0;
    }
    return n_free != c->n_free             ? "the number of free pages is wrong"
           : n_pinned != c->n_pinned_pages ? "the number of pinned pages is wrong"
                                           : NULL;
}

const char *cache_check(const cache *c) {
    size_t n_pages = c->config.n_pages;
    recount n = {calloc(n_pages, sizeof *n.owners),
                 calloc(n_pages, sizeof *n.pinned),
                 calloc(n_pages, sizeof *n.mapped),
                 calloc(n_pages, sizeof *n.live),
                 calloc(n_pages, sizeof *n.xor),
                 calloc(n_pages, sizeof *n.free),
                 calloc((size_t)c->n_nodes + 1, sizeof *n.nodes),
                 {calloc((size_t)c->config.n_frames + 1, sizeof **n.busy),
                  calloc((size_t)c->config.n_disk_frames + 1, sizeof **n.busy)},
                 0,
                 0,
                 0,
                 0,
                 0};
    const char *broken = "out of memory for the check";
    if (n.owners && n.pinned && n.mapped && n.live && n.xor &&n.free && n.nodes && n.busy[CACHE_HOST] &&
        n.busy[CACHE_DISK]) {
        broken = check_entries(c, &n);
        broken = broken ? broken : check_slots(c);
        broken = broken ? broken : check_places(c, &n);
        broken = broken ? broken : check_tiers(c, &n);
        broken = broken ? broken : check_pages(c, &n);
        broken = broken ? broken : check_nodes(c, &n);
    }
    free(n.owners);
    free(n.pinned);
    free(n.mapped);
    free(n.live);
    free(n.xor);
    free(n.free);
    free(n.nodes);
    free(n.busy[CACHE_HOST]);
    free(n.busy[CACHE_DISK]);
    return broken;
}
