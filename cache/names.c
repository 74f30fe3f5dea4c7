/*
 * names: copies that others than their owner can find. Where the prefix index knows all groups of a page, the page's copy is named after
 * the last of them: 128 bits, made with a seed that nobody outside knows, that stand for every token up to there. Whoever comes
 * with these tokens claims the copy: a conversation that begins alike, one that was closed and is opened again, or, where the
 * copies outlive the engine on the disk, one that is opened by the next. A copy is found by its name and by which page it is, and
 * the page's own tokens are compared as well.
 */
#include "cache/state.h"

#include <stdlib.h>
#include <string.h>

static uint32_t *bucket_of(const cache *c, const uint64_t name[2], uint32_t index) {
    return &c->name_buckets[(name[0] + index) & c->name_mask];
}

static int32_t *tokens_of(const cache *c, uint32_t copy) { return c->copy_tokens + (size_t)copy * c->page_tokens; }

uint32_t cache_page_tokens(const cache_config *config) {
    uint64_t n_groups = (config->page_bytes + config->group_bytes - 1) / config->group_bytes;
    uint64_t n_tokens = n_groups * KV_GROUP_TOKENS, most = config->session_len;
    return (uint32_t)(n_tokens < most ? n_tokens : most);
}

/* The tokens that the page has and those before it have not. False: they don't end where a group does. */
static bool own_tokens(const cache *c, uint32_t index, uint32_t *first, uint32_t *end) {
    *end = cache_tokens_touching(c, index);
    *first = index > 0 ? cache_tokens_touching(c, index - 1) : 0;
    return *end % KV_GROUP_TOKENS == 0;
}

void names_init(cache *c) {
    for (uint64_t i = 0; c->name_buckets && i <= c->name_mask; i++) {
        c->name_buckets[i] = CACHE_NO_COPY;
    }
}

/* ------------------------------------------------------------- the table -- */

static uint32_t find(const cache *c, const uint64_t name[2], uint32_t index, const int32_t *tokens, uint32_t n_tokens) {
    uint32_t copy = *bucket_of(c, name, index);
    for (; copy != CACHE_NO_COPY; copy = c->copies[copy].next_named) {
        const cache_copy *k = &c->copies[copy];
        if (k->name[0] == name[0] && k->name[1] == name[1] && k->index == index && k->n_own_tokens == n_tokens &&
            memcmp(tokens_of(c, copy), tokens, n_tokens * sizeof *tokens) == 0) {
            break;
        }
    }
    return copy;
}

/* Its tokens are in their place. */
static void enter(cache *c, uint32_t copy, const uint64_t name[2], uint32_t n_tokens) {
    cache_copy *k = &c->copies[copy];
    uint32_t *bucket = bucket_of(c, name, k->index);
    memcpy(k->name, name, sizeof k->name);
    k->is_named = true;
    k->n_own_tokens = n_tokens;
    k->next_named = *bucket;
    *bucket = copy;
}

void names_take(cache *c, uint32_t copy) {
    cache_copy *k = &c->copies[copy];
    if (k->is_named) {
        uint32_t *at = bucket_of(c, k->name, k->index);
        while (*at != copy) {
            at = &c->copies[*at].next_named;
        }
        *at = k->next_named;
        k->is_named = false;
    }
}

/* ------------------------------------------------------ pages of entries -- */

names_cursor names_begin(const cache_entry *e) { return (names_cursor){e->held, e->n_held}; }

/* To the node of the first n_groups groups; false: it is not known. Only ever towards the root. */
static bool move_to(const cache *c, names_cursor *at, uint32_t n_groups) {
    while (at->n_groups > n_groups) {
        at->node = c->nodes[at->node].parent;
        at->n_groups--;
    }
    return at->n_groups == n_groups && n_groups > 0;
}

/* The page's own tokens, out of the index. */
static void copy_tokens(const cache *c, names_cursor at, uint32_t first, uint32_t end, int32_t *out) {
    for (; end > first; end -= KV_GROUP_TOKENS) {
        memcpy(out + (end - first) - KV_GROUP_TOKENS, c->nodes[at.node].tokens, sizeof c->nodes[at.node].tokens);
        at.node = c->nodes[at.node].parent;
    }
}

bool names_find_page(const cache *c, names_cursor *at, uint32_t index, cache_claim *out) {
    uint32_t first, end;
    if (!c->name_buckets || !own_tokens(c, index, &first, &end) || !move_to(c, at, end / KV_GROUP_TOKENS)) {
        return false;
    }
    int32_t *tokens = c->copy_tokens + (size_t)c->n_copies * c->page_tokens; /* room of its own */
    copy_tokens(c, *at, first, end, tokens);
    uint32_t copy = find(c, c->nodes[at->node].name, index, tokens, end - first);
    if (copy == CACHE_NO_COPY) {
        return false;
    }
    *out = (cache_claim){copy, c->copies[copy].generation, end};
    return claim_holds(c, out);
}

void names_give(cache *c, names_cursor *at, uint32_t copy) {
    uint32_t first, end, index = c->copies[copy].index;
    if (c->name_buckets && own_tokens(c, index, &first, &end) && move_to(c, at, end / KV_GROUP_TOKENS)) {
        copy_tokens(c, *at, first, end, tokens_of(c, copy));
        enter(c, copy, c->nodes[at->node].name, end - first);
    }
}

void cache_claim_copies(cache *c, cache_entry *e, const int32_t *tokens, uint32_t n_tokens) {
    uint64_t name[2] = {0, 0};
    uint32_t first, end, n_groups = e->n_held;
    if (!c->name_buckets || e->n_copies < c->pages_per_slot) {
        return;
    }
    if (n_groups > 0) {
        memcpy(name, c->nodes[e->held].name, sizeof name);
    }
    for (uint32_t i = cache_first_page_of(c, e->n_valid); i < c->pages_per_slot; i++) {
        if (!own_tokens(c, i, &first, &end) || end > n_tokens) {
            break;
        }
        for (; n_groups < end / KV_GROUP_TOKENS; n_groups++) {
            prefix_name(c, e->name_space, n_groups > 0 ? name : NULL, tokens + (size_t)n_groups * KV_GROUP_TOKENS,
                        name);
        }
        cache_claim *claim = &e->copies[i];
        if (claim_holds(c, claim) && claim->n_tokens >= end) {
            continue;
        }
        uint32_t copy = find(c, name, i, tokens + first, end - first);
        if (copy != CACHE_NO_COPY && (copy_ready_in(c, copy, CACHE_HOST) || copy_ready_in(c, copy, CACHE_DISK))) {
            *claim = (cache_claim){copy, c->copies[copy].generation, end};
            e->n_saved = e->n_saved > end ? e->n_saved : end;
        }
    }
}

/* --------------------------------------------------------------- the disk -- */

void names_tell(const cache *c, uint32_t copy, cache_disk_request *out) {
    const cache_copy *k = &c->copies[copy];
    out->index = k->index;
    if (k->is_named) {
        memcpy(out->name, k->name, sizeof out->name);
        out->n_tokens = k->n_own_tokens;
        out->tokens = tokens_of(c, copy);
    }
}

static int by_order(const void *a, const void *b) {
    const cache_left_page *x = a, *y = b;
    return (x->order > y->order) - (x->order < y->order);
}

/* The copy of a page that was left, if it can be one. */
static bool take_over(cache *c, const cache_left_page *left, cache_read_tokens_fn read, void *user) {
    uint32_t first, end, n, copy = c->n_copies_used;
    if (left->index >= c->pages_per_slot || !own_tokens(c, left->index, &first, &end) ||
        !read(user, left->disk_frame, tokens_of(c, copy), &n) || n != end - first ||
        find(c, left->name, left->index, tokens_of(c, copy), n) != CACHE_NO_COPY) {
        return false;
    }
    c->n_copies_used++;
    c->copies[copy] = (cache_copy){.frame = {[CACHE_HOST] = CACHE_NO_FRAME, [CACHE_DISK] = left->disk_frame},
                                   .generation = 1,
                                   .index = left->index,
                                   .n_tokens = end};
    c->tiers[CACHE_DISK].items[left->disk_frame].copy = copy;
    c->tiers[CACHE_DISK].n_full++;
    enter(c, copy, left->name, n);
    return true;
}

uint32_t cache_take_over(cache *c, cache_left_page *pages, size_t n, cache_read_tokens_fn read, void *user) {
    cache_frames *disk = &c->tiers[CACHE_DISK];
    uint32_t n_used = c->n_copies_used;
    if (n == 0 || !c->name_buckets) {
        return 0;
    }
    qsort(pages, n, sizeof *pages, by_order);
    for (uint32_t i = 0; i < disk->n; i++) {
        disk->items[i].copy = CACHE_NO_COPY;
    }
    for (size_t i = 0; i < n; i++) {
        if (take_over(c, &pages[i], read, user)) {
            list_push_back(&disk->lru, &disk->items[pages[i].disk_frame].link);
        }
    }
    for (uint32_t i = 0; i < disk->n; i++) {
        if (disk->items[i].copy == CACHE_NO_COPY) {
            list_push_front(&disk->lru, &disk->items[i].link);
        }
    }
    disk->n_used = disk->n;
    return c->n_copies_used - n_used;
}
