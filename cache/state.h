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
#include "cache/tree.h"

#define CACHE_NO_PAGE UINT32_MAX
#define CACHE_NO_NODE UINT32_MAX

#define CACHE_NO_COPY UINT32_MAX
#define CACHE_NO_FRAME UINT32_MAX

/*
 * What a copy has of a page: its bytes when the sequence had n_tokens tokens. There is none if the copy's generation is another
 * by now, or 0.
 */
typedef struct cache_claim {
    uint32_t copy, generation;
    uint32_t n_tokens;
} cache_claim;

/* The bytes of a page, in a frame of either tier or of both. */
typedef struct cache_copy {
    uint32_t frame[CACHE_N_TIERS]; /* CACHE_NO_FRAME: not there */
    uint32_t generation;           /* counts up when it lies nowhere any more; from 1 */
    uint32_t index, n_tokens;      /* which page of its sequence, which had so many tokens then */
    uint32_t next;                 /* of those that lie nowhere */

    /* names.c */
    bool is_named;
    uint32_t n_own_tokens; /* that are in c->copy_tokens */
    uint32_t next_named;   /* in its bucket */
    uint64_t name[2];
} cache_copy;

/* Room for a page. In its tier's list while nobody is busy with it. */
typedef struct cache_frame {
    list_link link;
    uint32_t copy;   /* CACHE_NO_COPY: empty */
    uint32_t n_busy; /* transfers that it takes part in, and entries that are about to load it */
    bool filling;    /* its content is not there yet, */
    bool broken;     /* and never will be: it is emptied when nobody is busy with it */
    bool used;       /* since it left the list: it returns to its end */
} cache_frame;

typedef struct cache_frames {
    cache_frame *items; /* [n], of which n_used were ever used */
    uint32_t n, n_used;
    uint32_t n_full; /* that a copy lies in */
    list_link lru;
} cache_frames;

/* A transfer between page and host frame that was asked for. It holds its page, as a pinned owner, until it is done. */
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
    cache_claim copy;    /* of what it holds */
} cache_page;

/* What the pinned holder of a slot gets back: see load.c. */
typedef struct cache_loading {
    list_link link; /* in restoring */
    cache_entry *entry;
    bool computes;       /* its row computes from the front meanwhile */
    uint32_t floor, end; /* pages that are to be loaded, from the end on; */
    uint32_t low;        /* of which [low, end) are loaded or on their way, */
    uint32_t hold_low;   /* and the frames of [hold_low, low) are held for it */
    uint32_t goal;       /* how far down it asks for now, */
    uint32_t n_asked;    /* and how many pages that were */
    uint32_t n_loading;  /* transfers that it waits for */
    uint32_t n_restored; /* tokens that are valid when all is there */
    uint32_t n_began;    /* and that were when it began */
    double page_us;      /* to load one of its pages */
} cache_loading;

typedef struct cache_slot {
    list_link link; /* in free_slots (no holder) or idle_slots (idle holder) */
    cache_entry *holder;
    cache_loading load;
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
    uint32_t n_hits;      /* turns that found just so much, and those that found what lay below it and is gone */
    cache_entry *entries; /* that hold this node and none below it */
    int32_t tokens[KV_GROUP_TOKENS];
} cache_node;

/* What it takes to make an entry ready for a write. */
typedef struct cache_growth {
    uint32_t first, end; /* the pages it has and the write touches */
    uint32_t n_pages;    /* it will have */
    uint32_t n_copies;   /* at most: pages of first..end that have other owners */
    uint32_t n_need;     /* free pages that it takes; falls as eviction leaves the entry sole owner of some of those */
} cache_growth;

/* What the host has said of an entry, where it has said anything. */
typedef struct cache_hinted {
    cache_hints hints;
    cache_entry *entry;
    uint64_t from_us; /* hints.expect_us counts from then */
    tree_node due;    /* in c->due: when it is to stand elsewhere */
    uint32_t n_pages; /* counted in c->n_kept_pages */
} cache_hinted;

/* Where entries stand in the order of eviction: see policy.c. */
#define CACHE_LEVEL_CLOSED 1u
#define CACHE_N_LEVELS (2 + 3 * (CACHE_MAX_PRIORITY - CACHE_MIN_PRIORITY + 1))
_Static_assert(CACHE_N_LEVELS <= 64, "levels_used has a bit for each");

struct cache_entry {
    union {
        list_link link;     /* lru: in its level's list, while idle and n_pages > 0. Both: in kept, or in demoted */
        tree_node standing; /* cost: in by_value likewise */
    };
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

    /* claims.c, load.c */
    bool demoted;        /* in the list of those that have nothing but copies */
    bool restoring;      /* its slot says what */
    uint32_t stride;     /* tokens that the last commit added */
    cache_claim *copies; /* [n_copies] of pages that it has lost; pages_per_slot while it is reserved or has pages */
    uint32_t n_copies;
    uint32_t n_saved; /* tokens that it had when it lost them */

    /* policy.c */
    uint8_t level;        /* of where it stands */
    uint32_t n_returns;   /* turns that it began with */
    bool kept;            /* idle, in c->kept; its pages are pinned */
    cache_hinted *hinted; /* NULL: nothing was said */

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

    cache_frames tiers[CACHE_N_TIERS];
    cache_copy *copies; /* [n_copies], of which n_copies_used were ever used; those that lie nowhere are a list */
    uint32_t n_copies, n_copies_used, free_copy;
    int32_t *
        copy_tokens; /* [n_copies + 1][page_tokens] of those with names, and room for one more; NULL: none has a name */
    uint32_t *name_buckets; /* [name_mask + 1] */
    uint64_t name_mask;
    uint32_t page_tokens;
    cache_queue queues[2]; /* by cache_direction */
    uint64_t queue_cap, n_save_calls;
    bool saves_all;                                /* cache_save_all */
    cache_disk_request asked[CACHE_DISK_REQUESTS]; /* [n_asked] that nobody has taken yet */
    uint32_t n_asked, n_disk_pending, n_spilling;  /* the latter two: also those under way */
    uint32_t n_disk_failures;                      /* since anything went well */
    bool disk_off;
    list_link restoring; /* cache_loading, in the order in which they began */
    list_link demoted;   /* entries that have copies and nothing else, and are not reserved */
    list_link *sweep;    /* the next of them that is asked whether anything is left */
    uint64_t n_demoted_claims, max_demoted_claims;
    cache_tier_stats tier_stats;

    list_link free_pages; /* those mapped nowhere first, then in the order in which they became free */
    list_link free_slots; /* the last one released first: most of its stale pages are still free */
    list_link idle_slots; /* least recently used first */

    list_link levels[CACHE_N_LEVELS]; /* lru: idle entries with pages, of each level the least recently used first */
    uint64_t levels_used;             /* bit l: levels[l] is not empty */
    tree by_value;                    /* cost: all of them */
    tree due;                         /* those who stand elsewhere with time */
    list_link kept;                   /* idle entries that are in no order, the least recently used first */
    uint64_t tick, n_kept_pages;
    double log_return_us; /* mean of the logarithm of the time for which those that came back were idle */

    uint32_t n_free;         /* pages */
    uint32_t n_pinned_pages; /* pages with a pinned owner */
    uint32_t n_pinned_slots;
    uint64_t n_resident; /* idle entries with pages that are not closed, */
    uint64_t n_closed;   /* and closed ones */
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

/* Tokens whose groups have bytes in pages up to this one; those whose groups end in front of it. */
uint32_t cache_tokens_touching(const cache *c, uint32_t index);
uint32_t cache_tokens_in_front(const cache *c, uint32_t index);
/* The first token that has no byte in front of this page. The page that the group of token n_tokens begins in. */
uint32_t cache_tokens_behind(const cache *c, uint32_t index);
uint32_t cache_first_page_of(const cache *c, uint32_t n_tokens);

/* --- copies.c. What lies where below the device. All O(1) */
void copies_init(cache *c);
bool copy_lies_in(const cache *c, uint32_t copy, cache_tier tier); /* or will, when its transfer is done */
bool copy_ready_in(const cache *c, uint32_t copy, cache_tier tier);
bool claim_holds(const cache *c, const cache_claim *claim); /* there is such a copy */
uint32_t frame_next(const cache *c, cache_tier tier);       /* the one to take; CACHE_NO_FRAME: all are busy */
uint32_t frame_take(cache *c, cache_tier tier);             /* likewise; empty, and one is busy with it */
void frame_hold(cache *c, cache_tier tier, uint32_t frame); /* one more is busy with it */
void frame_let_go(cache *c, cache_tier tier, uint32_t frame, bool used);
void frame_fill(cache *c, cache_tier tier, uint32_t frame, uint32_t copy);          /* the copy is going to lie there */
void frame_touch(cache *c, cache_tier tier, uint32_t frame);                        /* most recently used */
cache_claim copy_make(cache *c, uint32_t frame, uint32_t index, uint32_t n_tokens); /* to be filled, in a host frame */

/* --- claims.c. Which copies pages and entries count on */
perch_status claims_reserve(cache *c, cache_entry *e, perch_error *err); /* an array of full length */
void claims_settle(cache *c, cache_entry *e); /* it has no page and is not reserved: keeps what there is, no more */
void claims_drop(cache *c, cache_entry *e);
void claims_sweep(cache *c); /* looks whether some demoted entries have anything left. O(1) */
double claims_load_us(const cache *c, const cache_entry *e,
                      uint32_t index);                    /* of its page's copy; 0: there is none, or not known */
void tier_lost(cache *c, cache_entry *e, uint32_t index); /* evicted: its copy is what is left of the page */
void tier_write(cache *c, cache_entry *e, uint32_t first, uint32_t end); /* these pages are written behind n_valid */

/* --- tier.c */
void tier_init(cache *c);
bool tier_has_room(const cache *c, cache_direction direction);
void tier_load(cache *c, cache_entry *e, uint32_t index); /* asks for it, which is ready in the host tier */
void tier_forget_loads(cache *c, const cache_entry *e);   /* those that it waits for; they end by themselves */

/* --- names.c. Where in an entry's prefix somebody is, on the way towards its beginning */
typedef struct names_cursor {
    uint32_t node, n_groups;
} names_cursor;

void names_init(cache *c);
names_cursor names_begin(const cache_entry *e); /* at the last group that it has published */
/* A copy that somebody has made of what the entry's page has. O(groups that the cursor moves and the page has) */
bool names_find_page(const cache *c, names_cursor *at, uint32_t index, cache_claim *out);
void names_give(cache *c, names_cursor *at,
                uint32_t copy);           /* if the index knows its groups; it has no name. Likewise */
void names_take(cache *c, uint32_t copy); /* it is void */
void names_tell(const cache *c, uint32_t copy, cache_disk_request *out);

/* --- disk.c */
uint64_t disk_n_distinct(const cache *c); /* copies that the tiers can have, those in both counted once */
bool disk_spill(cache *c);                /* host frames that are next to be used again; whether it asked for any */
uint32_t disk_host_frame(cache *c); /* takes one, but waits for what can be written before; CACHE_NO_FRAME: not now */
bool disk_fetch(cache *c, uint32_t copy); /* to the host tier; false: not now */

/* --- worth.c */
/* Whether what was found is loaded at all; sets how (computes, goal, page_us). O(its pages + entries that restore) */
bool worth_restoring(const cache *c, cache_loading *l);
/* Of the n_pages pages below hold_low that neither loading nor computing has come to: how many of the last to load. At least one. */
uint32_t worth_loading(const cache *c, const cache_loading *l, uint32_t n_pages);

/* --- load.c */
void load_cancel(cache *c, cache_entry *e);  /* waits for nothing any more */
void load_arrived(cache *c, cache_entry *e); /* one of its transfers is done */

/* --- policy.c. O(1) with lru, O(log n) with cost, and O(pages) for entries that are kept */
void policy_init(cache *c);
void policy_idle(cache *c, cache_entry *e);         /* it has pages, and just became idle */
void policy_paused(const cache *c, cache_entry *e); /* a turn of its ends */
void policy_busy(cache *c, cache_entry *e);         /* it is idle no more, or holds no page */
void policy_add(cache *c, cache_entry *e);          /* it takes its place in the order, … */
void policy_remove(cache *c, cache_entry *e);       /* … and leaves it */
void policy_lost(cache *c, cache_entry *e);         /* it has lost pages: another place may be right */
void policy_found(cache *c, cache_entry *holder,
                  uint32_t node);             /* somebody begins with the node's tokens, which it has */
void policy_forget(cache *c, cache_entry *e); /* the hints */
/* Who gives up pages next, or last of all; and then, in that direction. NULL: there is nobody idle, or nobody more. */
cache_entry *policy_end(cache *c, bool last);
cache_entry *policy_next(const cache *c, const cache_entry *e, bool back);
uint32_t policy_keep(const cache *c, const cache_entry *e); /* how many it keeps at first */

/* --- evict.c */
/* Frees pages until there are growth->n_need, which plan_growth found to be possible. O(pages evicted) */
void evict_for(cache *c, const cache_entry *grower, cache_growth *growth);

#endif
