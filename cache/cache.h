/*
 * cache: who owns which page of KV memory.
 *
 * Theory of operation. Physical memory is `n_pages` pages, each reference-counted. A sequence's share of the cache is
 * an *entry*: an array of the pages that hold its KV from position 0 on, and `n_valid`, how many of its tokens have KV
 * in them. Group g (16 tokens) of an entry lies at bytes [g, g+1) * group_bytes of the entry's pages laid end to end;
 * pages need not end where groups end.
 *
 * An entry in use by the batch is *pinned* and has a *slot*, a virtual range under which its pages are mapped in order.
 * An idle entry keeps its pages and, while no one else needs it, its slot; idle entries stand in one order (policy.c). When
 * pages run out, the first of them loses pages from its tail until there is enough: what is left is a valid prefix. When slots run out the least recently used idle holder of a slot loses its slot, not its pages.
 *
 * Pages are shared between entries by fork, and copied before the first write (any page that holds a byte of a group
 * which is about to be written and has more than one owner).
 *
 * An entry that was computed can be found by others whose tokens begin alike (prefix.c): they share its pages in the same
 * way. A closed entry goes on without an owner, for just that; with policy = lru it is evicted before those that somebody may
 * come back to.
 *
 * A page whose last owner let go of it stays mapped where it was until somebody needs it. One page is never mapped at
 * two places except under the slots of several owners.
 *
 * The cache follows no device pointer: it decides, and appends kv_commands to a list that the engine executes before
 * the forward pass. Every operation is O(1) or O(pages that it moves). Nothing allocates but create, entry_create,
 * entry_reserve, entry_hint and fork; arrays are given back, and shrink, where that can't fail. Not thread-safe: the engine calls it under its lock.
 */
#ifndef PERCH_CACHE_CACHE_H
#define PERCH_CACHE_CACHE_H

#include "base/base.h"
#include "base/kv_command.h"

typedef struct cache cache;
typedef struct cache_entry cache_entry;

#define CACHE_NO_SLOT UINT32_MAX

typedef enum cache_tier { CACHE_HOST = 0, CACHE_DISK = 1, CACHE_N_TIERS = 2 } cache_tier;

/* How KV comes back that copies of exist: AUTO is as cache_costs say, the rest is for measurements. */
typedef enum cache_restore {
    CACHE_RESTORE_AUTO = 0,
    CACHE_RESTORE_LOAD = 1,
    CACHE_RESTORE_COMPUTE = 2,
    CACHE_RESTORE_BOTH = 3
} cache_restore;
/* In which order idle entries lose their pages: see policy.c. */
typedef enum cache_policy { CACHE_LRU = 0, CACHE_COST = 1 } cache_policy;

typedef struct cache_config {
    uint64_t page_bytes;
    uint64_t group_bytes;
    uint32_t n_pages;
    uint32_t n_slots;
    uint32_t session_len;   /* tokens; sizes a slot: ceil(ceil(session_len / 16) * group_bytes / page_bytes) pages */
    uint32_t chunk_pages;   /* an entry grows by multiples of this (capped at the slot); 0 = the whole slot at once */
    bool prefix_index;      /* entries find what others have computed of their tokens */
    uint32_t n_frames;      /* of the host tier, each with room for a page; 0 = there is none */
    uint32_t n_disk_frames; /* likewise of the disk tier, which needs a frame of the host tier at least */
    cache_restore restore;
    cache_policy policy;
    uint64_t hash_seed; /* of the index: unknown to tenants, so that none can make up prompts that fall together */
} cache_config;

/* Since create, but for the gauges. */
typedef struct cache_tier_stats {
    uint64_t saved_pages, restored_pages;   /* copied to the host tier, and back */
    uint64_t restored_tokens;               /* that became valid so, without being computed */
    uint64_t spilled_pages;                 /* written to the disk tier */
    uint64_t fetched_pages, fetched_tokens; /* read from there */
    uint64_t corrupt_pages;                 /* were not what had been written */
    uint64_t failed_reads, failed_writes;
    uint64_t raced_tokens;    /* computed in front while what is behind was loaded */
    uint64_t declined_tokens; /* there were copies, and computing was quicker */
    uint32_t disk_off;        /* 1: it failed again and again, and is not used any more */
    uint32_t n_demoted;       /* gauge: claims that evicted entries hold */
    uint32_t n_host_frames, n_host_full, n_disk_frames, n_disk_full; /* gauges: frames, and those that have a copy */
} cache_tier_stats;

typedef struct cache_stats {
    uint32_t n_pages, n_free;
    uint32_t n_pinned; /* pages with a pinned owner */
    uint32_t n_idle;   /* pages with idle owners only: n_free + n_pinned + n_idle = n_pages */
    uint32_t n_slots, n_slots_pinned;
    uint64_t n_resident_entries; /* idle entries that hold pages, */
    uint64_t n_closed_entries;   /* and those that were closed and hold some */
    uint32_t n_nodes;            /* groups of tokens that the index knows */
    uint64_t adopted_tokens;     /* since create: what entries took from others */
    cache_tier_stats tiers;
    /*
     * Since create. evictions: times that an entry lost valid KV to someone else, at most once a call that evicts, closed
     * ones not counted; evicted_pages: pages that carried it. Spare pages that are taken from an idle entry are not counted.
     */
    uint64_t evictions, evicted_pages, copied_pages, maps, unmaps;
} cache_stats;

/* E_INVALID where the configuration makes no sense or one full-length sequence does not fit n_pages; E_NOMEM. */
perch_status cache_create(const cache_config *config, cache **out, perch_error *err);
void cache_destroy(cache *c); /* after its entries; NULL is fine */

uint32_t cache_pages_per_slot(const cache_config *config); /* 0 on overflow */

/*
 * An empty idle entry, some hundred bytes. destroy unpins it and lets go of its pages; close does so, too, but what it has
 * published stays to be found until somebody needs the memory. NULL is fine.
 */
perch_status cache_entry_create(cache *c, uint64_t name_space, cache_entry **out, perch_error *err);
void cache_entry_destroy(cache *c, cache_entry *e);
void cache_entry_close(cache *c, cache_entry *e);

/*
 * Gives the entry its page array (pages_per_slot numbers), which pin and extend need; released again when the entry
 * holds no page, is unpinned and entry_release was called as often as entry_reserve. Host calls only: it allocates.
 */
perch_status cache_entry_reserve(cache *c, cache_entry *e, perch_error *err);
void cache_entry_release(cache *c, cache_entry *e);

uint64_t cache_entry_namespace(const cache_entry *e);
uint32_t cache_entry_n_valid(const cache_entry *e);
uint32_t cache_entry_n_pages(const cache_entry *e);
uint64_t cache_entry_n_evictions(const cache_entry *e); /* times it lost valid KV to someone else */
uint32_t cache_entry_slot(const cache_entry *e);        /* CACHE_NO_SLOT if it has none */
bool cache_entry_pinned(const cache_entry *e);

/*
 * Would pin + extend(n_tokens) succeed now, if `reserved` of the pages that are free or idle are left alone? The entry
 * may be pinned or idle (and need not be reserved yet); slots, room for commands and copy-on-write are counted.
 * `reserved` holds for this question alone: extend knows nothing of it. O(pages of an idle entry, or that the write
 * touches).
 */
bool cache_can_hold(const cache *c, const cache_entry *e, uint32_t n_tokens, uint32_t reserved);

/*
 * Pins an idle, reserved entry, finds it a slot and maps its pages. E_AGAIN: every slot is pinned, or the command list
 * is full (see cache_commands); nothing changed. E_INVALID: pinned already, or without a page array.
 */
perch_status cache_pin(cache *c, cache_entry *e);

/*
 * Makes the pinned entry ready for its tokens [n_valid, n_tokens) to be written: pages for all n_tokens exist, are
 * mapped, and those that the write touches are its own. Evicts idle entries as needed, free pages go first. E_AGAIN:
 * not enough free or idle pages, or the command list is full (nothing changed, not even evictions). E_INVALID: not
 * pinned. E_TOO_LONG.
 *
 * It grows by whole chunks; where just the rounding doesn't fit, by the pages that are needed. chunk_pages 0 is no
 * rounding: the slot is filled to its end or the call fails. A page that is shared with idle entries alone needs no
 * free page: where there is none, they are evicted and it is the entry's own.
 */
perch_status cache_extend(cache *c, cache_entry *e, uint32_t n_tokens);

/*
 * Grows the pinned entry to the pages that n_tokens (at most session_len counts) will need, mapped, if there are as many free ones:
 * nothing is evicted or copied for that, and extend still has to be called before the write. So a device that maps beside
 * its computing has done so before the page is needed. False: nothing changed.
 */
bool cache_prepare(cache *c, cache_entry *e, uint32_t n_tokens);

/* The KV of tokens [0, n_valid) is now written: from what was valid to what extend made room for, else clamped. */
void cache_commit(cache_entry *e, uint32_t n_valid);

/* Idle again, most recently used. Keeps pages and slot until someone needs them. */
void cache_unpin(cache *c, cache_entry *e);

/* Only the first n_tokens count from now on (n_valid = min); pages wholly behind their groups are freed. Any state. */
void cache_truncate(cache *c, cache_entry *e, uint32_t n_tokens);

/*
 * child (empty, idle) gets the parent's first min(n_tokens, n_valid) tokens by sharing the pages that hold them; it is
 * most recently used, without a slot. The parent may be pinned, and may still write what extend made ready: that lies
 * behind the child's tokens. Reserves the child's page array as entry_reserve does and releases it again. E_NOMEM,
 * E_INVALID (the child is not empty and idle): nothing changed.
 */
perch_status cache_fork(cache *c, cache_entry *parent, cache_entry *child, uint32_t n_tokens, perch_error *err);

/*
 * The prefix index: whole groups of tokens whose KV some entry of the namespace has, found by exact comparison. All of it does
 * nothing without config.prefix_index.
 *
 * publish: tokens [0, n_tokens) are the entry's, and no step writes their KV any more; whole groups that are valid can be found
 * from now on, until the entry loses them. promise: a pinned entry is going to compute what extend made room for, as far as
 * `tokens` is known; forgotten when it is unpinned or truncated. tokens: [n_tokens], the same as in every call before.
 */
void cache_publish(cache *c, cache_entry *e, const int32_t *tokens, uint32_t n_tokens);
void cache_promise(cache *c, cache_entry *e, const int32_t *tokens, uint32_t n_tokens);

/*
 * The tiers below the device. Idle entries that are next to be evicted are copied to frames of host memory ahead of time (save), so
 * that eviction itself never waits: it drops pages whose bytes are safe, and those that are not are computed again. Frames of the
 * host tier that are next to be used again are written to the disk tier ahead of time in the same way, so that taking one never
 * waits. What an entry has lost comes back (load) once it has pages for it: from the end on, while its row computes from
 * the front where that is worth it, until the two meet. All of it runs beside the steps; the engine carries it out and
 * reports what is done. Frames are used again in the order of last use, and whoever counted on them notices.
 */
typedef enum cache_direction { CACHE_STORE = 0, CACHE_LOAD = 1 } cache_direction;

typedef struct cache_transfer {
    uint32_t page, frame;
} cache_transfer;

/*
 * Asks for copies of the pages that will be evicted next, as far as they have none, and of frames that will be used again next, on
 * the disk. To be called every step: it looks around in one call of a few, O(1,024 pages, or those of a slot); `now`: in this
 * one. Whether it asked for any.
 */
bool cache_save(cache *c, bool now);
/* From now on save sees to all that is idle, and to all copies of the host tier: there will be no other chance. */
void cache_save_all(cache *c);

/*
 * After pin and an extend beyond n_tokens: begins to load what there are copies of, of the first n_tokens tokens, if that is quicker
 * than computing it. Returns how many tokens it has when that is done, those that are computed in front not counted;
 * n_valid if it loads nothing. Until then the entry is `loading`: it is not extended, and committed up to
 * cache_entry_may_compute at most; unpin gives it up. cache_restore_more goes on with all of them, before each plan.
 * O(pages of the n_tokens, entries that are loading)
 */
uint32_t cache_load(cache *c, cache_entry *e, uint32_t n_tokens);
/* In front of that: of what of tokens [0, n_tokens) it has no copies, it may count on those of others. O(n_tokens) */
void cache_claim_copies(cache *c, cache_entry *e, const int32_t *tokens, uint32_t n_tokens);
void cache_restore_more(cache *c);
bool cache_entry_loading(const cache_entry *e);
uint32_t cache_entry_may_compute(const cache *c, const cache_entry *e); /* tokens; UINT32_MAX if it is not loading */

/* What truncate does to copies alone: for tokens whose KV the entry has lost, and that the sequence turned out not to have. */
void cache_truncate_copies(cache *c, cache_entry *e, uint32_t n_tokens);

/* Tokens beyond n_valid that could be loaded: from the host tier, and those that lie on the disk alone. O(pages) */
typedef struct cache_saved {
    uint32_t n_host, n_disk;
} cache_saved;

cache_saved cache_entry_saved(const cache *c, const cache_entry *e);

/* Copies asked for and not sent yet: the first of them, at most cap. Behind the commands of the same time. */
size_t cache_transfers(const cache *c, cache_direction direction, cache_transfer *out, size_t cap);
/* The first n of those are under way as `ticket`; tickets count up in each direction. */
void cache_transfers_sent(cache *c, cache_direction direction, size_t n, uint64_t ticket);
/* All up to that ticket are done. */
void cache_transfers_done(cache *c, cache_direction direction, uint64_t ticket);
/* The oldest ticket under way; 0: none. */
uint64_t cache_transfers_pending(const cache *c, cache_direction direction);

/* What is to be read or written: between a frame of the host tier and one of the disk tier, in any order. */
#define CACHE_DISK_REQUESTS 256u /* asked for and not done, at most */

typedef struct cache_disk_request {
    bool write;
    uint32_t frame, disk_frame;
    uint64_t n_bytes; /* of the page that count */
    uint32_t index;   /* which page of its sequence it is */
    /* write: what it can be found by later, in another cache with the same hash_seed. n_tokens 0: it can't be. */
    uint64_t name[2];
    uint32_t n_tokens;
    const int32_t *tokens; /* unchanged until the request is done */
} cache_disk_request;

typedef enum cache_disk_outcome {
    CACHE_DISK_OK = 0,
    CACHE_DISK_CORRUPT = 1, /* what was read is not what was written */
    CACHE_DISK_FAILED = 2
} cache_disk_outcome;

/* A page that an earlier cache has left in the disk tier. */
typedef struct cache_left_page {
    uint32_t disk_frame, index;
    uint64_t name[2];
    uint64_t order; /* the higher the later it was written */
} cache_left_page;

/* Reads the tokens of a page into out[cache_page_tokens], *n how many; false: it is of no use. */
typedef bool (*cache_read_tokens_fn)(void *user, uint32_t disk_frame, int32_t *out, uint32_t *n);

/* Before anything is done with the cache: pages that were left can be found. Reorders the list. How many are of use. */
uint32_t cache_take_over(cache *c, cache_left_page *pages, size_t n, cache_read_tokens_fn read, void *user);

uint32_t cache_page_tokens(const cache_config *config); /* the most tokens that go with a page */

size_t cache_disk_requests(cache *c, cache_disk_request *out, size_t cap); /* takes those that nobody has taken */
/* What was taken for this frame is done. After some failures in a row the disk tier is not used any more. */
void cache_disk_done(cache *c, uint32_t disk_frame, cache_disk_outcome outcome);
uint32_t cache_disk_pending(const cache *c); /* requests asked for and not done */

typedef struct cache_found {
    uint32_t n_tokens;         /* some entry, perhaps e, has the KV of so many of the tokens, in whole groups; */
    uint32_t n_promised;       /* so many will have it, if all goes well; >= n_tokens */
    uint32_t node;             /* private, up to the end */
    uint32_t last, generation; /* the last node that was found */
} cache_found;

/* How far the idle entry e could get. O(groups beyond those that it has published) */
void cache_find(const cache *c, const cache_entry *e, const int32_t *tokens, uint32_t n_tokens, cache_found *out);

/* Whether a promise that was found (n_promised > n_tokens) is neither kept nor broken yet. O(1) */
bool cache_promise_open(const cache *c, const cache_found *found);

/*
 * The idle, reserved entry takes found->n_tokens tokens, n_tokens at most, from whoever has them, by sharing pages as fork does,
 * and is most recently used. `found` is of this moment. Nothing happens where it has as many.
 */
void cache_adopt(cache *c, cache_entry *e, const cache_found *found, uint32_t n_tokens);

/*
 * A turn of this pinned entry's sequence begins: what it was pinned with has been wanted again. For the policy, which takes what was
 * wanted often as likelier to be wanted once more. Not for those that were merely preempted.
 */
void cache_returned(cache *c, cache_entry *e);

/*
 * What the host knows of a sequence. keep: what is on the device stays there while it is idle, until cache_yield_kept; at most half of
 * the pages may be kept. priority: of two entries the lower goes first. expect_us: so long after it became idle, or after this
 * was said in the pause that it is in, it is wanted again: until then it is likelier to come back than others, and then less. ttl_us:
 * idle for longer, it goes before all others. Both by cache_set_time's clock. 0: nothing is known.
 */
#define CACHE_MIN_PRIORITY (-8)
#define CACHE_MAX_PRIORITY 7

typedef struct cache_hints {
    int32_t priority;
    bool keep;
    uint64_t expect_us, ttl_us;
} cache_hints;

/*
 * From now on these; all 0 is as if nobody had said anything. n_tokens: that its sequence has: so much has to fit what may be
 * kept, also if it is not on the device now. Closing forgets them. E_NO_ROOM, with the figures; E_NOMEM; nothing changed then.
 */
perch_status cache_entry_hint(cache *c, cache_entry *e, const cache_hints *hints, uint32_t n_tokens, perch_error *err);
void cache_entry_hints(const cache_entry *e, cache_hints *out);

/* The least recently used of the entries that are kept can be evicted until it is used again. False: there is none. */
bool cache_yield_kept(cache *c);

/*
 * The entry that is next loses pages from its tail until it has keep_pages (or none, if those would hold no whole group). False:
 * there is no idle entry, or it has no more than that. For tests and hosts' own policies.
 */
bool cache_evict_one(cache *c, uint32_t keep_pages);

/*
 * What time it is, in microseconds, for all that follows: entries remember when they became idle. The cache looks at no clock
 * itself; without this call it is always 0.
 */
void cache_set_time(cache *c, uint64_t now_us);

/* An entry has lost valid KV to someone else. */
typedef struct cache_eviction {
    uint32_t n_pages;  /* that carried it */
    uint32_t n_tokens; /* valid ones, before and now */
    uint32_t n_left;
    bool closed;      /* nobody's any more */
    uint64_t idle_us; /* since it was last in use */
} cache_eviction;

typedef void (*cache_evict_fn)(void *user, const cache_eviction *what);

/* Tells fn of every eviction from now on, in the call that evicts: it must not change the cache. */
void cache_watch(cache *c, cache_evict_fn fn, void *user);

/*
 * What it takes to have KV that is not on the device, in microseconds, as the engine measures it. All zero, as after create: not
 * known; what can be loaded is loaded, and the KV of all tokens is worth the same.
 */
typedef struct cache_costs {
    double compute_us;              /* to compute a token at position 0, in a step of the usual load, */
    double compute_us_per_position; /* and what each position before it adds */
    double latency_us[CACHE_N_TIERS];
    double page_us[CACHE_N_TIERS]; /* to bring a page from there to the device, many at a time */
} cache_costs;

void cache_set_costs(cache *c, const cache_costs *costs); /* copied; good for what is decided from now on */

/*
 * The commands since the last clear, in order; borrowed until the next call that changes the cache. The list has room
 * for pinning every slot anew and filling it, once between two clears; beyond that, pin and extend return E_AGAIN. The
 * operations that can't fail always have room.
 */
const kv_command *cache_commands(const cache *c, size_t *n);
void cache_commands_clear(cache *c);

void cache_stats_get(const cache *c, cache_stats *out);

/* Host bytes cache_create takes, for the memory plan; 0 where it would fail. Most are touched only when used. */
uint64_t cache_host_bytes(const cache_config *config);

/* Checks every invariant in O(everything): NULL, or a static sentence that says which is broken. For tests. */
const char *cache_check(const cache *c);

#endif
