/*
 * cache_check: every invariant of the cache, counted afresh from the entries and held against what the cache keeps. For
 * tests; O(pages + places), and it allocates.
 */
#include "cache/state.h"

#include <stdlib.h>

typedef struct recount {
    uint32_t *owners;  /* [n_pages] */
    uint32_t *pinned;  /* [n_pages] */
    uint32_t *mapped;  /* [n_pages] places */
    uint32_t *live;    /* [n_pages] of which live */
    uint64_t * xor ;   /* [n_pages] of the places */
    uint8_t *free;     /* [n_pages] is in the free list */
    cache_node *nodes; /* [n_nodes + 1] their n_holders, n_promises */
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
        n->pinned[e->pages[i]] += e->pinned;
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

/* The entries with pages: idle ones are in the LRU list, pinned ones hold a slot. */
static const char *check_entries(const cache *c, recount *n) {
    uint64_t n_resident = 0, n_closed = 0;
    uint32_t n_pinned_slots = 0;
    for (const list_link *at = c->lru.next; at != &c->lru; at = at->next) {
        const cache_entry *e = (const cache_entry *)at;
        if (at->next->prev != at || n_resident++ > c->n_resident) {
            return "the LRU list is broken";
        }
        if (e->pinned || e->closed || e->n_pages == 0) {
            return "the LRU list has an entry that is pinned, closed, or holds no page";
        }
        if (e->slot != CACHE_NO_SLOT && (e->slot >= c->config.n_slots || c->slots[e->slot].holder != e)) {
            return "an idle entry believes in a slot that is not its own";
        }
        const char *broken = count_entry(c, e, n);
        if (broken) {
            return broken;
        }
    }
    for (const list_link *at = c->closed.next; at != &c->closed; at = at->next) {
        const cache_entry *e = (const cache_entry *)at;
        if (at->next->prev != at || n_closed++ > c->n_closed || !e->closed || e->pinned || e->n_pages == 0) {
            return "the list of closed entries is broken";
        }
        if (e->slot != CACHE_NO_SLOT || e->n_held == 0) {
            return "a closed entry has a slot, or nothing that could be found";
        }
        const char *broken = count_entry(c, e, n);
        if (broken) {
            return broken;
        }
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
    return n_resident != c->n_resident           ? "the number of resident entries is wrong"
           : n_closed != c->n_closed             ? "the number of closed entries is wrong"
           : n_pinned_slots != c->n_pinned_slots ? "the number of pinned slots is wrong"
                                                 : NULL;
}

/* Free slots and idle holders' slots are in their lists; the idle ones in the order of the LRU list. */
static const char *check_slots(const cache *c) {
    uint32_t n_free = 0, n_idle = 0;
    for (const list_link *at = c->free_slots.next; at != &c->free_slots; at = at->next) {
        if (at->next->prev != at || n_free++ > c->config.n_slots || ((const cache_slot *)at)->holder) {
            return "the list of free slots is broken";
        }
    }
    const list_link *in_lru = c->lru.next;
    for (const list_link *at = c->idle_slots.next; at != &c->idle_slots; at = at->next) {
        const cache_entry *holder = ((const cache_slot *)at)->holder;
        if (at->next->prev != at || n_idle++ > c->config.n_slots || !holder || holder->pinned) {
            return "the list of idle slots is broken";
        }
        while (in_lru != &c->lru && in_lru != &holder->link) {
            in_lru = in_lru->next;
        }
        if (in_lru == &c->lru) {
            return "the idle slots are not in the order of the LRU list";
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

/* Copies under way hold their pages, and keep their frames out of the list of those that can be used again. */
static const char *check_queues(const cache *c, recount *n) {
    uint32_t n_lru = 0, n_busy = 0;
    for (int direction = 0; direction < 2; direction++) {
        const cache_queue *q = &c->queues[direction];
        for (uint64_t i = q->begin; i < q->end; i++) {
            const cache_moving *m = &q->items[i % c->queue_cap];
            n->owners[m->page]++;
            n->pinned[m->page]++;
            if (c->frames[m->frame].n_busy == 0 || (m->entry && (!m->entry->pinned || !m->entry->n_loading))) {
                return "a copy is under way for a frame or an entry that does not know of it";
            }
        }
    }
    for (const list_link *at = c->frame_lru.next; at != &c->frame_lru; at = at->next) {
        if (at->next->prev != at || n_lru++ > c->config.n_frames || ((const cache_frame *)at)->n_busy) {
            return "the list of frames is broken";
        }
    }
    for (uint32_t frame = 0; frame < c->config.n_frames; frame++) {
        n_busy += c->frames[frame].n_busy > 0;
    }
    return n_lru + n_busy == c->config.n_frames ? NULL : "a frame is lost";
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
                 calloc((size_t)c->n_nodes + 1, sizeof *n.nodes)};
    const char *broken = "out of memory for the check";
    if (n.owners && n.pinned && n.mapped && n.live && n.xor &&n.free && n.nodes) {
        broken = check_entries(c, &n);
        broken = broken ? broken : check_slots(c);
        broken = broken ? broken : check_places(c, &n);
        broken = broken ? broken : check_queues(c, &n);
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
    return broken;
}
