/*
 * state: what the cache consists of, and what its files offer one another. Private to cache/.
 *
 * A *place* is one page-sized part of a slot's virtual range. c->places says what is mapped where once the commands so
 * far are executed. A place is *live* if the holder of its slot has just that page at that index; every other mapping
 * is *stale*: a leftover that nobody reads through. Kept at all times:
 *
 *   - An entry that holds a slot has all its pages mapped there.
 *   - A page that is mapped at a stale place is mapped nowhere else. So a free page has at most one place, and stale
 *     mappings never make the process look larger than its pages.
 *   - n_commands + n_mapped <= cap_commands: each mapped place has room for the UNMAP that may follow, so that
 *     the operations which can't fail (truncate, destroy, evict) never lack it.
 */
#ifndef PERCH_CACHE_STATE_H
#define PERCH_CACHE_STATE_H

#include "cache/cache.h"
#include "cache/list.h"

#define CACHE_NO_PAGE UINT32_MAX
#define CACHE_NO_NODE UINT32_MAX

/*
 * What a frame of the host tier has of a page: its bytes when the sequence had n_tokens tokens. There is none if the frame's
 * generation is another by now.
 */
typedef struct cache_copy {
    uint32_t frame, generation;
    uint32_t n_tokens;
} cache_copy;

/* A frame that nothing is copied to or from is in c->frame_lru, those that were never used first. */
typedef struct cache_frame {
    list_link link;
    uint32_t generation; /* counts up when the frame gets another content; from 1 */
    uint32_t n_busy;     /* copies under way */
    bool storing;        /* to it: its content is not there yet */
} cache_frame;

/* A copy that was asked for. It holds its page, as a pinned owner, until it is done. */
typedef struct cache_moving {
    uint64_t ticket;
    uint32_t page, frame;
    cache_entry *entry; /* LOAD: who waits for it; NULL: nobody any more */
} cache_moving;

/* Those of one direction, in order: [begin, sent) are under way, [sent, end) are to be sent. Numbers modulo cap. */
typedef struct cache_queue {
    cache_moving *items;
    uint64_t begin, sent, end;
} cache_queue;

typedef struct cache_page {
    list_link link;      /* in free_pages while n_owners is 0 */
    uint32_t n_owners;   /* entries that hold it */
    uint32_t n_pinned;   /* of which pinned */
    uint32_t n_places;   /* places where it is mapped */
    uint64_t places_xor; /* of their numbers: what is left when there is one is that one */
    cache_copy copy;     /* of what it holds */
} cache_page;

typedef struct cache_slot {
    list_link link; /* in free_slots (no holder) or idle_slots (idle holder) */
    cache_entry *holder;
} cache_slot;

/* A group of tokens behind all of its parents': see prefix.c. Those not in use are a list by `next`. */
typedef struct cache_node {
    uint64_t name_space;
    uint64_t name[2];                        /* prefix_name */
    uint32_t parent;                         /* CACHE_NO_NODE: the first group of a sequence */
    uint32_t next;                           /* in its bucket */
    uint32_t first_child, previous, sibling; /* what hangs below each parent; not kept for first groups */
    uint32_t n_holders;                      /* entries with that KV */
    uint32_t n_promises;                     /* entries that will have it */
    uint32_t generation;                     /* how often the number was given back */
    cache_entry *entries;                    /* that hold this node and none below it */
    int32_t tokens[KV_GROUP_TOKENS];
} cache_node;

/* What it takes to make an entry ready for a write. */
typedef struct cache_growth {
    uint32_t first, end; /* the pages it has and the write touches */
    uint32_t n_pages;    /* it will have */
    uint32_t n_copies;   /* at most: pages of first..end that have other owners */
    uint32_t n_need;     /* free pages that it takes; falls as eviction leaves the entry sole owner of some of those */
} cache_growth;

struct cache_entry {
    list_link link;  /* in lru, or in closed, while idle and n_pages > 0 */
    uint32_t *pages; /* [pages_per_slot], or NULL: holds none and is not reserved */
    uint64_t n_evictions;
    uint64_t used_us; /* by the cache's time: when it was last pinned, or given others' pages */
    uint32_t n_pages;
    uint32_t n_valid; /* tokens */
    uint32_t n_ready; /* tokens that extend made room for; while pinned */
    uint32_t n_reserved;
    uint32_t slot;
    bool pinned;
    bool closed; /* nobody's any more: goes with its last page */

    /* tier.c */
    cache_copy *copies;  /* [pages_per_slot] of pages that it has lost; NULL without a host tier or a page array */
    uint32_t n_saved;    /* tokens that it had when it lost them */
    uint32_t n_loading;  /* copies that it waits for; */
    uint32_t n_restored; /* then so many tokens are valid */

    /* prefix.c. The nodes that it holds are those of its first groups; what it promises follows on them. */
    uint64_t name_space;
    uint32_t held, n_held;           /* the last one, and how many */
    uint32_t promised, n_promised;   /* likewise; `promised` counts if n_promised does */
    cache_entry *peer, *peer_before; /* in the list of `held` */
};

struct cache {
    cache_config config;
    uint32_t pages_per_slot;
    cache_costs costs;
    uint64_t now_us;
    cache_evict_fn on_evict; /* may be NULL */
    void *on_evict_user;

    cache_page *pages;    /* [n_pages] */
    cache_slot *slots;    /* [n_slots] */
    uint32_t *places;     /* [n_slots][pages_per_slot] number of the page mapped there + 1; 0 = none */
    kv_command *commands; /* [cap_commands] */
    size_t n_commands, cap_commands;
    size_t n_mapped; /* places where something is mapped */

    cache_node *nodes; /* [n_nodes], none without the index */
    uint32_t *buckets; /* [bucket_mask + 1] */
    uint64_t bucket_mask;
    uint32_t n_nodes, n_nodes_used, free_node;

    cache_frame *frames; /* [config.n_frames] */
    list_link frame_lru;
    cache_queue queues[2]; /* by cache_direction */
    uint64_t queue_cap, n_save_calls;
    uint64_t saved_pages, restored_pages, restored_tokens;

    list_link free_pages; /* those mapped nowhere first, then in the order in which they became free */
    list_link free_slots; /* the last one released first: most of its stale pages are still free */
    list_link idle_slots; /* least recently used first */
    list_link lru;        /* idle entries with pages, least recently used first */
    list_link closed;     /* likewise those that were closed: they go before all others */

    uint32_t n_free;         /* pages */
    uint32_t n_pinned_pages; /* pages with a pinned owner */
    uint32_t n_pinned_slots;
    uint64_t n_resident; /* entries in lru */
    uint64_t n_closed;   /* in closed */
    uint64_t adopted_tokens, evictions, evicted_pages, copied_pages, maps, unmaps;
};

/* pages needed for the KV of n_tokens <= session_len tokens */
uint32_t cache_pages_for(const cache *c, uint32_t n_tokens);

/* --- pool.c: pages, their owners and pins. All O(1) */
void pool_init(cache *c);
void pool_claim(cache *c, uint32_t page);             /* a free page gets its first owner, which is pinned */
uint32_t pool_take(cache *c);                         /* claims any free page; there must be one */
void pool_share(cache *c, uint32_t page);             /* one more owner, idle */
void pool_pin(cache *c, uint32_t page);               /* one of its owners is pinned now */
void pool_unpin(cache *c, uint32_t page);             /* … or idle again */
void pool_drop(cache *c, uint32_t page, bool pinned); /* an owner lets go; the last one frees the page */
void pool_unmapped(cache *c, uint32_t page);          /* its last place is gone: if free, it is the one to take first */

/* --- slot.c: who holds a slot, what is mapped where, the commands. O(1) unless it says otherwise */
void slot_init(cache *c);
bool slot_available(const cache *c);            /* is one free or held by an idle entry? */
void slot_assign(cache *c, cache_entry *e);     /* an available one; maps e's pages. O(pages of e and the old holder) */
void slot_pin(cache *c, uint32_t slot);         /* its idle holder is pinned now */
void slot_unpin(cache *c, uint32_t slot);       /* its holder is idle now, most recently used */
void slot_release(cache *c, cache_entry *idle); /* free again; idle holds no page any more */
uint32_t slot_mapped(const cache *c, uint32_t slot, uint32_t index); /* page or CACHE_NO_PAGE */
void slot_map(cache *c, uint32_t slot, uint32_t index, uint32_t page);
void slot_abandon(cache *c, uint32_t slot, uint32_t index); /* the place goes stale */
bool slot_place_live(const cache *c, uint64_t place);

bool commands_fit(const cache *c, uint64_t n_maps, uint64_t n_copies); /* whatever those maps replace or unmap */
void commands_copy(cache *c, uint32_t page, uint32_t source);

/* --- entry.c */
void entry_free(cache_entry *e);                /* its memory alone */
void entry_drop_last(cache *c, cache_entry *e); /* lets go of its last page; O(1) */
void entry_settle(cache *c, cache_entry *e);    /* after that: idle and without pages it leaves LRU list and slot */

/* The idle, empty child with a page array gets the parent's first n_valid tokens. O(pages + groups) */
void entry_share(cache *c, const cache_entry *parent, cache_entry *child, uint32_t n_valid);

/* --- prefix.c. O(groups that change) */
void prefix_init(cache *c);
void prefix_shrink(cache *c, cache_entry *e, uint32_t n_tokens); /* holds only what lies within n_tokens */
void prefix_inherit(cache *c, const cache_entry *from, cache_entry *e, uint32_t n_tokens);
void prefix_forget_promises(cache *c, cache_entry *e);
/* 128 bits that stand for a group of tokens together with all before it (parent: of the group before, NULL = it is the first). */
void prefix_name(const cache *c, uint64_t name_space, const uint64_t *parent, const int32_t *tokens, uint64_t name[2]);

/* --- tier.c */
void tier_init(cache *c);
void tier_lost(cache *c, cache_entry *e, uint32_t index); /* evicted: its copy is what is left of the page */
void tier_write(cache *c, cache_entry *e, uint32_t first, uint32_t end); /* these pages are written behind n_valid */
void tier_cancel(cache *c, cache_entry *e);                              /* waits for nothing any more */

/* --- evict.c. Who gives up pages next; NULL: there is nobody idle */
cache_entry *evict_next(const cache *c);
/* Frees pages until there are growth->n_need, which plan_growth found to be possible. O(pages evicted) */
void evict_for(cache *c, const cache_entry *grower, cache_growth *growth);

#endif
