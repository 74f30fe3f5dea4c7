/*
 * prefix: which conversations begin alike. A trie over groups of 16 tokens: a node is a group together with all that lie before
 * it, and so with its KV to the bit. Nodes are found by a name, a hash over their parent's name and their tokens, and compared
 * token by token; since the parent is a node itself, equal nodes mean equal prefixes, never just equal hashes.
 *
 * An entry *holds* the nodes of the groups that it has published, and hangs in the list of the last of them; so whoever descends
 * from a held node finds an entry that has its KV. A pinned entry *promises* the nodes that it is going to compute. A node lives
 * while somebody holds or promises it. Each has KV memory in some page of those entries, so there can't be more nodes than
 * groups end in pages, and none is ever allocated after create.
 */
#include "cache/state.h"

#include <assert.h>
#include <string.h>
#include <xxhash.h>

void prefix_name(const cache *c, uint64_t name_space, const uint64_t *parent, const int32_t *tokens, uint64_t name[2]) {
    struct {
        uint64_t parent[2];
        int32_t tokens[KV_GROUP_TOKENS];
    } all = {.parent = {parent ? parent[0] : name_space, parent ? parent[1] : 0}};
    memcpy(all.tokens, tokens, sizeof all.tokens);
    XXH128_hash_t hash = XXH3_128bits_withSeed(&all, sizeof all, c->config.hash_seed);
    name[0] = hash.low64;
    name[1] = hash.high64;
}

/* Of the child of parent. */
static void name_child(const cache *c, uint64_t name_space, uint32_t parent, const int32_t *tokens, uint64_t name[2]) {
    prefix_name(c, name_space, parent == CACHE_NO_NODE ? NULL : c->nodes[parent].name, tokens, name);
}

static uint32_t *bucket_of(const cache *c, const uint64_t name[2]) { return &c->buckets[name[0] & c->bucket_mask]; }

void prefix_init(cache *c) {
    for (uint32_t i = 0; i < c->n_nodes; i++) {
        c->nodes[i].next = i + 1 < c->n_nodes ? i + 1 : CACHE_NO_NODE;
    }
    c->free_node = c->n_nodes ? 0 : CACHE_NO_NODE;
    for (uint64_t i = 0; c->n_nodes && i <= c->bucket_mask; i++) {
        c->buckets[i] = CACHE_NO_NODE;
    }
}

/* ---------------------------------------------------------------- nodes -- */

/* Names are not believed: tokens are compared, and the parent. */
static uint32_t find_named(const cache *c, const uint64_t name[2], uint64_t name_space, uint32_t parent,
                           const int32_t *tokens) {
    uint32_t node = *bucket_of(c, name);
    for (; node != CACHE_NO_NODE; node = c->nodes[node].next) {
        const cache_node *n = &c->nodes[node];
        if (n->parent == parent && n->name_space == name_space && memcmp(n->tokens, tokens, sizeof n->tokens) == 0) {
            break;
        }
    }
    return node;
}

static uint32_t find_child(const cache *c, uint64_t name_space, uint32_t parent, const int32_t *tokens) {
    uint64_t name[2];
    name_child(c, name_space, parent, tokens, name);
    return find_named(c, name, name_space, parent, tokens);
}

static uint32_t find_or_make_child(cache *c, uint64_t name_space, uint32_t parent, const int32_t *tokens) {
    uint64_t name[2];
    name_child(c, name_space, parent, tokens, name);
    uint32_t node = find_named(c, name, name_space, parent, tokens);
    if (node != CACHE_NO_NODE) {
        return node;
    }
    node = c->free_node;
    assert(node != CACHE_NO_NODE);
    cache_node *n = &c->nodes[node];
    uint32_t *bucket = bucket_of(c, name), *first = NULL;
    c->free_node = n->next;
    c->n_nodes_used++;
    *n = (cache_node){.name_space = name_space,
                      .name = {name[0], name[1]},
                      .parent = parent,
                      .next = *bucket,
                      .first_child = CACHE_NO_NODE,
                      .sibling = CACHE_NO_NODE,
                      .previous = CACHE_NO_NODE,
                      .generation = n->generation};
    memcpy(n->tokens, tokens, sizeof n->tokens);
    *bucket = node;
    if (parent != CACHE_NO_NODE) {
        first = &c->nodes[parent].first_child;
        n->sibling = *first;
        if (*first != CACHE_NO_NODE) {
            c->nodes[*first].previous = node;
        }
        *first = node;
    }
    return node;
}

static void free_if_unused(cache *c, uint32_t node) {
    cache_node *n = &c->nodes[node];
    if (n->n_holders > 0 || n->n_promises > 0) {
        return;
    }
    uint32_t *at = bucket_of(c, n->name);
    while (*at != node) {
        at = &c->nodes[*at].next;
    }
    *at = n->next;
    if (n->sibling != CACHE_NO_NODE) {
        c->nodes[n->sibling].previous = n->previous;
    }
    if (n->previous != CACHE_NO_NODE) {
        c->nodes[n->previous].sibling = n->sibling;
    } else if (n->parent != CACHE_NO_NODE) {
        c->nodes[n->parent].first_child = n->sibling;
    }
    if (n->parent != CACHE_NO_NODE) { /* whoever wanted this wanted that as well */
        c->nodes[n->parent].n_hits += n->n_hits;
    }
    n->generation++;
    n->next = c->free_node;
    c->free_node = node;
    c->n_nodes_used--;
}

/* ------------------------------------------------------------- entries -- */

static void leave_node(cache *c, cache_entry *e) {
    if (e->held != CACHE_NO_NODE) {
        *(e->peer_before ? &e->peer_before->peer : &c->nodes[e->held].entries) = e->peer;
        if (e->peer) {
            e->peer->peer_before = e->peer_before;
        }
    }
}

static void join_node(cache *c, cache_entry *e, uint32_t node) {
    e->held = node;
    e->peer = e->peer_before = NULL;
    if (node != CACHE_NO_NODE) {
        e->peer = c->nodes[node].entries;
        c->nodes[node].entries = e;
        if (e->peer) {
            e->peer->peer_before = e;
        }
    }
}

void prefix_forget_promises(cache *c, cache_entry *e) {
    while (e->n_promised > 0) {
        uint32_t node = e->promised;
        e->promised = c->nodes[node].parent;
        c->nodes[node].n_promises--;
        e->n_promised--;
        free_if_unused(c, node);
    }
}

void prefix_shrink(cache *c, cache_entry *e, uint32_t n_tokens) {
    uint32_t n_groups = n_tokens / KV_GROUP_TOKENS, node = e->held;
    prefix_forget_promises(c, e);
    if (e->n_held <= n_groups) {
        return;
    }
    leave_node(c, e);
    while (e->n_held > n_groups) {
        uint32_t parent = c->nodes[node].parent;
        c->nodes[node].n_holders--;
        e->n_held--;
        free_if_unused(c, node);
        node = parent;
    }
    join_node(c, e, node);
}

void prefix_inherit(cache *c, const cache_entry *from, cache_entry *e, uint32_t n_tokens) {
    uint32_t n_groups = n_tokens / KV_GROUP_TOKENS, node = from->held;
    for (uint32_t i = from->n_held; i > n_groups; i--) {
        node = c->nodes[node].parent;
    }
    join_node(c, e, node);
    e->n_held = from->n_held < n_groups ? from->n_held : n_groups;
    for (; node != CACHE_NO_NODE; node = c->nodes[node].parent) {
        c->nodes[node].n_holders++;
    }
}

void cache_publish(cache *c, cache_entry *e, const int32_t *tokens, uint32_t n_tokens) {
    uint32_t n_groups = (n_tokens < e->n_valid ? n_tokens : e->n_valid) / KV_GROUP_TOKENS, node = e->held;
    if (c->n_nodes == 0 || n_groups <= e->n_held) {
        return;
    }
    leave_node(c, e);
    for (; e->n_held < n_groups; e->n_held++) {
        node = find_or_make_child(c, e->name_space, node, tokens + (size_t)e->n_held * KV_GROUP_TOKENS);
        c->nodes[node].n_holders++;
        if (e->n_promised > 0) { /* the first of the promises is kept */
            c->nodes[node].n_promises--;
            e->n_promised--;
        }
    }
    join_node(c, e, node);
}

void cache_promise(cache *c, cache_entry *e, const int32_t *tokens, uint32_t n_tokens) {
    uint32_t n_ready = e->n_ready < n_tokens ? e->n_ready : n_tokens;
    if (c->n_nodes == 0 || !e->pinned) {
        return;
    }
    prefix_forget_promises(c, e);
    e->promised = e->held;
    for (uint32_t i = e->n_held; i < n_ready / KV_GROUP_TOKENS; i++) {
        e->promised = find_or_make_child(c, e->name_space, e->promised, tokens + (size_t)i * KV_GROUP_TOKENS);
        c->nodes[e->promised].n_promises++;
        e->n_promised++;
    }
}

/* --------------------------------------------------------------- search -- */

void cache_find(const cache *c, const cache_entry *e, const int32_t *tokens, uint32_t n_tokens, cache_found *out) {
    uint32_t n_groups = c->n_nodes ? n_tokens / KV_GROUP_TOKENS : 0, i = e->n_held, node = e->held;
    *out = (cache_found){.n_tokens = i * KV_GROUP_TOKENS, .node = node};
    for (; i < n_groups; i++) {
        node = find_child(c, e->name_space, node, tokens + (size_t)i * KV_GROUP_TOKENS);
        if (node == CACHE_NO_NODE) {
            break;
        }
        if (c->nodes[node].n_holders > 0) {
            out->n_tokens = (i + 1) * KV_GROUP_TOKENS;
            out->node = node;
        }
        out->last = node;
        out->generation = c->nodes[node].generation;
        out->n_promised = (i + 1) * KV_GROUP_TOKENS;
    }
    out->n_promised = out->n_promised > out->n_tokens ? out->n_promised : out->n_tokens;
}

bool cache_promise_open(const cache *c, const cache_found *found) {
    const cache_node *n = &c->nodes[found->last];
    return n->generation == found->generation && n->n_holders == 0;
}

/* Whoever holds the node: an entry that hangs there, or further down. */
static cache_entry *holder_of(const cache *c, uint32_t node) {
    while (!c->nodes[node].entries) {
        node = c->nodes[node].first_child;
        while (c->nodes[node].n_holders == 0) {
            node = c->nodes[node].sibling;
        }
    }
    return c->nodes[node].entries;
}

void cache_adopt(cache *c, cache_entry *e, const cache_found *found, uint32_t n_tokens) {
    uint32_t n = n_tokens < found->n_tokens ? n_tokens : found->n_tokens;
    if (e->pinned || !e->pages || n <= e->n_valid) {
        return;
    }
    cache_entry *holder = holder_of(c, found->node);
    prefix_shrink(c, e, 0);
    e->n_reserved++; /* keeps its arrays through this */
    while (e->n_pages > 0) {
        entry_drop_last(c, e);
        if (e->n_pages == 0) {
            entry_settle(c, e);
        }
    }
    e->n_reserved--;
    entry_share(c, holder, e, n);
    policy_found(c, holder, found->node);
    c->adopted_tokens += n;
}
