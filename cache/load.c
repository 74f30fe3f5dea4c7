/*
 * load: how an entry gets back what it has lost. It looks for the longest run of pages that it has copies of. These are asked for
 * from the end of the run downwards; in front of them its row computes meanwhile where it has to or where that is worth it (worth.c), and
 * when the two meet all of it is valid:
 *
 *      0 … n_valid → … floor … hold_low … low ………… end
 *      |  computed  |            | frames held | under way, loaded |
 *
 * Nothing is computed in a page that was asked for before its transfer is done, and no page is asked for that holds computed
 * tokens or is about to. So whichever is faster does more, whatever was expected. A group that begins in front of low
 * and ends behind it is computed, when the loading is done.
 *
 * A page that lies on the disk alone is fetched into a frame of the host tier first. Frames are held from when a page is asked
 * for until it is loaded, and only from low downwards without a gap: the first of them can always be loaded, so that
 * entries that wait for frames of one another get them in the end, however few there are. What can't be had after all, since a frame was
 * used for something else or its page came back corrupt, is computed.
 */
#include "cache/state.h"

static uint32_t min_u32(uint32_t a, uint32_t b) { return a < b ? a : b; }
static uint32_t max_u32(uint32_t a, uint32_t b) { return a > b ? a : b; }

/* ------------------------------------------------------------- the run -- */

typedef struct run {
    uint32_t first, end; /* pages */
    uint32_t n_tokens;   /* valid when they are there, and all in front of them */
    uint32_t n_gained;   /* of which they bring so many */
} run;

/* The run from page `first` to `end`, which bring n_tokens at most, if it is better than the best so far. */
static void consider(const cache *c, const cache_entry *e, uint32_t first, uint32_t end, uint32_t n_tokens, run *best) {
    uint32_t from = max_u32(e->n_valid, cache_tokens_behind(c, first));
    if (end > first && n_tokens > from && n_tokens - from > best->n_gained) {
        *best = (run){first, min_u32(end, cache_pages_for(c, n_tokens)), n_tokens, n_tokens - from};
    }
}

static bool can_load(const cache *c, const cache_claim *claim) {
    return claim_holds(c, claim) &&
           (copy_ready_in(c, claim->copy, CACHE_HOST) || copy_ready_in(c, claim->copy, CACHE_DISK));
}

static run find_run(const cache *c, const cache_entry *e, uint32_t n_tokens) {
    run best = {.n_tokens = e->n_valid};
    uint32_t most = min_u32(e->n_saved, n_tokens);
    uint32_t end = most > e->n_valid ? min_u32(cache_pages_for(c, most), e->n_copies) : 0;
    uint32_t first = cache_first_page_of(c, e->n_valid), cap = most; /* of this run's pages none is good for more */
    for (uint32_t i = first; i < end; i++) {
        const cache_claim *claim = &e->copies[i];
        bool there = can_load(c, claim);
        if (there && claim->n_tokens < min_u32(cap, cache_tokens_touching(c, i))) {
            cap = claim->n_tokens;
        }
        if (!there || i + 1 == end || i + 1 >= cache_pages_for(c, cap)) {
            consider(c, e, first, i + there, there ? cap : min_u32(cap, cache_tokens_in_front(c, i)), &best);
            first = i + 1;
            cap = most;
        }
    }
    return best;
}

cache_saved cache_entry_saved(const cache *c, const cache_entry *e) {
    run found = find_run(c, e, c->config.session_len);
    cache_saved saved = {0, 0};
    uint32_t at = max_u32(e->n_valid, cache_tokens_behind(c, found.first));
    for (uint32_t i = found.first; i < found.end; i++) {
        uint32_t end = min_u32(found.n_tokens, cache_tokens_touching(c, i));
        *(copy_lies_in(c, e->copies[i].copy, CACHE_HOST) ? &saved.n_host : &saved.n_disk) += end > at ? end - at : 0;
        at = max_u32(at, end);
    }
    return saved;
}

/* ------------------------------------------------------------ restoring -- */

static cache_loading *loading_of(const cache *c, const cache_entry *e) { return &c->slots[e->slot].load; }

/* Nothing below this page is asked for: it is computed, or was to begin with. */
static uint32_t floor_of(const cache *c, const cache_loading *l) {
    const cache_entry *e = l->entry;
    uint32_t about_to = l->computes ? cache_pages_for(c, min_u32(e->n_valid + e->stride, l->n_restored)) : 0;
    return min_u32(max_u32(l->floor, about_to), l->end);
}

/* Lets go of held frames up to this page. */
static void let_go_below(cache *c, cache_loading *l, uint32_t index) {
    for (; l->hold_low < index; l->hold_low++) {
        const cache_copy *copy = &c->copies[l->entry->copies[l->hold_low].copy];
        frame_let_go(c, CACHE_HOST, copy->frame[CACHE_HOST], false);
    }
}

static void stop(cache *c, cache_loading *l) {
    let_go_below(c, l, l->low);
    list_remove(&l->link);
    l->entry->restoring = false;
    c->tier_stats.raced_tokens += l->entry->n_valid - l->n_began;
}

void load_cancel(cache *c, cache_entry *e) {
    if (e->restoring) {
        tier_forget_loads(c, e);
        stop(c, loading_of(c, e));
    }
}

/* The page below those that are held can't be had. What is there behind it is good once the row has computed so far. */
static void miss(const cache *c, cache_loading *l) {
    uint32_t n_valid = l->entry->n_valid;
    if (l->hold_low < l->end) {
        l->floor = l->hold_low;
    } else {
        l->end = l->low = l->hold_low = l->end - 1;
        l->n_restored = max_u32(n_valid, min_u32(l->n_restored, cache_tokens_in_front(c, l->end)));
        l->floor = l->n_restored > n_valid ? min_u32(l->floor, l->end) : l->end;
    }
    l->goal = max_u32(l->goal, l->floor);
    l->computes = l->computes || l->floor > cache_first_page_of(c, n_valid);
}

/* Holds the frame of the page below. False: not now, or it can't be had. */
static bool hold_next(cache *c, cache_loading *l) {
    const cache_claim *claim = &l->entry->copies[l->hold_low - 1];
    if (!claim_holds(c, claim)) {
        miss(c, l);
        return false;
    }
    if (!copy_lies_in(c, claim->copy, CACHE_HOST) && !disk_fetch(c, claim->copy)) {
        return false;
    }
    frame_hold(c, CACHE_HOST, c->copies[claim->copy].frame[CACHE_HOST]);
    l->hold_low--;
    return true;
}

/* Asks for the transfers of held pages, from the end on, as far as they are in the host tier. */
static void load_held(cache *c, cache_loading *l) {
    while (l->low > l->hold_low) {
        const cache_claim *claim = &l->entry->copies[l->low - 1];
        if (!claim_holds(c, claim)) { /* it was fetched, and was not what it should be */
            let_go_below(c, l, l->low);
            miss(c, l);
            return;
        }
        if (!copy_ready_in(c, claim->copy, CACHE_HOST) || !tier_has_room(c, CACHE_LOAD)) {
            return;
        }
        tier_load(c, l->entry, --l->low);
        frame_let_go(c, CACHE_HOST, c->copies[claim->copy].frame[CACHE_HOST], true);
        l->n_loading++;
    }
}

/* Where the row computes as well: what is asked for next, when most of what was asked for last is there. */
static void choose_goal(const cache *c, cache_loading *l) {
    uint32_t floor = floor_of(c, l), left = l->hold_low > floor ? l->hold_low - floor : 0;
    uint32_t under_way = l->low - l->hold_low + l->n_loading;
    if (l->computes && l->hold_low <= l->goal && left > 0 && under_way <= l->n_asked / 4) {
        l->n_asked = worth_loading(c, l, left);
        l->goal = l->hold_low - l->n_asked;
    }
}

/* Nothing more is asked for, and all that was asked for is there. */
static bool has_all(const cache *c, const cache_loading *l) {
    return l->hold_low <= floor_of(c, l) && l->low == l->hold_low && l->n_loading == 0;
}

static void go_on(cache *c, cache_loading *l) {
    cache_entry *e = l->entry;
    bool more = true;
    choose_goal(c, l);
    let_go_below(c, l, min_u32(l->low, floor_of(c, l))); /* computing was faster */
    while (more && l->hold_low > max_u32(floor_of(c, l), l->goal)) {
        more = hold_next(c, l);
    }
    load_held(c, l);
    if (!has_all(c, l)) {
        return;
    }
    bool loaded = l->low < l->end;
    if (!loaded || e->n_valid >= min_u32(l->n_restored, cache_tokens_behind(c, l->low))) { /* they have met */
        stop(c, l);
        c->tier_stats.restored_tokens += loaded ? l->n_restored - e->n_valid : 0;
        cache_commit(e, loaded ? l->n_restored : e->n_valid);
    }
}

/* Its frames are used again last, and of them those of its first pages. */
static void touch(cache *c, const cache_loading *l) {
    for (uint32_t i = l->end; i > l->floor; i--) {
        for (int tier = 0; tier < CACHE_N_TIERS; tier++) {
            uint32_t frame = c->copies[l->entry->copies[i - 1].copy].frame[tier];
            if (frame != CACHE_NO_FRAME) {
                frame_touch(c, (cache_tier)tier, frame);
            }
        }
    }
}

uint32_t cache_load(cache *c, cache_entry *e, uint32_t n_tokens) {
    run found = find_run(c, e, n_tokens);
    cache_loading *l = e->pinned ? loading_of(c, e) : NULL;
    if (!l || found.n_gained == 0) {
        return e->n_valid;
    }
    *l = (cache_loading){.entry = e,
                         .floor = found.first,
                         .end = found.end,
                         .low = found.end,
                         .hold_low = found.end,
                         .n_restored = found.n_tokens,
                         .n_began = e->n_valid};
    e->stride = 0;
    if (!worth_restoring(c, l)) {
        c->tier_stats.declined_tokens += found.n_gained;
        return e->n_valid;
    }
    touch(c, l);
    e->restoring = true;
    list_push_back(&c->restoring, &l->link);
    go_on(c, l);
    return l->n_began + found.n_gained;
}

void load_arrived(cache *c, cache_entry *e) {
    cache_loading *l = loading_of(c, e);
    l->n_loading--;
    go_on(c, l);
}

void cache_restore_more(cache *c) {
    for (list_link *at = c->restoring.next, *next; at != &c->restoring; at = next) {
        next = at->next;
        go_on(c, (cache_loading *)at);
    }
}

bool cache_entry_loading(const cache_entry *e) { return e->restoring; }

uint32_t cache_entry_may_compute(const cache *c, const cache_entry *e) {
    if (!e->restoring) {
        return UINT32_MAX;
    }
    const cache_loading *l = loading_of(c, e);
    uint32_t end = has_all(c, l) ? cache_tokens_behind(c, l->low) : cache_tokens_in_front(c, l->low);
    return l->computes ? max_u32(e->n_valid, min_u32(end, l->n_restored)) : e->n_valid;
}
