/*
 * cache: the sequence cache as the engine sees it, put together from pages (pool.c), slots (slot.c), entries (entry.c)
 * and eviction (evict.c): how large everything is, and how an entry is pinned, grows, and becomes idle.
 */
#include "cache/state.h"

#include <stdlib.h>

/* ---------------------------------------------------------------- sizes -- */

static uint64_t ceil_div(uint64_t a, uint64_t b) { return a / b + (a % b != 0); }

uint32_t cache_pages_for(const cache *c, uint32_t n_tokens) {
    uint64_t n_groups = ceil_div(n_tokens, KV_GROUP_TOKENS);
    return (uint32_t)ceil_div(n_groups * c->config.group_bytes, c->config.page_bytes);
}

uint32_t cache_tokens_touching(const cache *c, uint32_t index) {
    uint64_t n_tokens = ceil_div((index + (uint64_t)1) * c->config.page_bytes, c->config.group_bytes) * KV_GROUP_TOKENS;
    return n_tokens < c->config.session_len ? (uint32_t)n_tokens : c->config.session_len;
}

uint32_t cache_tokens_in_front(const cache *c, uint32_t index) {
    return (uint32_t)(index * c->config.page_bytes / c->config.group_bytes) * KV_GROUP_TOKENS;
}

uint32_t cache_tokens_behind(const cache *c, uint32_t index) {
    return (uint32_t)ceil_div(index * c->config.page_bytes, c->config.group_bytes) * KV_GROUP_TOKENS;
}

uint32_t cache_first_page_of(const cache *c, uint32_t n_tokens) {
    return (uint32_t)(n_tokens / KV_GROUP_TOKENS * c->config.group_bytes / c->config.page_bytes);
}

uint32_t cache_pages_per_slot(const cache_config *config) {
    uint64_t n_groups = ceil_div(config->session_len, KV_GROUP_TOKENS), bytes;
    if (config->page_bytes == 0 || __builtin_mul_overflow(n_groups, config->group_bytes, &bytes)) {
        return 0;
    }
    uint64_t n_pages = ceil_div(bytes, config->page_bytes);
    return n_pages < CACHE_NO_PAGE ? (uint32_t)n_pages : 0;
}

typedef struct sizes {
    size_t pages, slots, places, commands, nodes, buckets, frames[CACHE_N_TIERS], copies,
        queue;                   /* bytes of the arrays */
    size_t claims;               /* what demoted entries may hold in all */
    size_t tokens, name_buckets; /* of copies that can be found */
    size_t cap_commands, n_nodes, n_buckets, queue_cap, n_claims, n_name_buckets;
} sizes;

/* Groups that can end in pages: more can't have KV, whoever they belong to. And two buckets for each. */
static bool count_nodes(const cache_config *config, sizes *out) {
    size_t in_a_page = (size_t)ceil_div(config->page_bytes, config->group_bytes);
    out->n_nodes = out->n_buckets = 0;
    if (config->prefix_index) {
        if (!mul_size(config->n_pages, in_a_page, &out->n_nodes) || out->n_nodes >= CACHE_NO_NODE) {
            return false;
        }
        for (out->n_buckets = 1; out->n_buckets < 2 * out->n_nodes;) {
            out->n_buckets *= 2;
        }
    }
    return mul_size(out->n_nodes, sizeof(cache_node), &out->nodes) &&
           mul_size(out->n_buckets, sizeof(uint32_t), &out->buckets);
}

/* The tokens of each copy and of one more, and a bucket or two for each. */
static bool count_names(const cache_config *config, size_t n_copies, sizes *out) {
    out->n_name_buckets = 0;
    if (!config->prefix_index || n_copies == 0) {
        out->tokens = out->name_buckets = 0;
        return true;
    }
    for (out->n_name_buckets = 1; out->n_name_buckets < n_copies;) {
        out->n_name_buckets *= 2;
    }
    out->name_buckets = out->n_name_buckets * sizeof(uint32_t);
    return mul_size(n_copies + 1, cache_page_tokens(config) * sizeof(int32_t), &out->tokens);
}

/* As many transfers may be under way as there are pages, or frames. And two claims for each copy: some are void, or shared. */
static bool count_copies(const cache_config *config, sizes *out) {
    size_t n_copies = (size_t)config->n_frames + config->n_disk_frames;
    out->queue_cap = config->n_pages < config->n_frames ? config->n_pages : config->n_frames;
    out->n_claims = 2 * n_copies;
    return mul_size(config->n_frames, sizeof(cache_frame), &out->frames[CACHE_HOST]) &&
           mul_size(config->n_disk_frames, sizeof(cache_frame), &out->frames[CACHE_DISK]) &&
           mul_size(n_copies, sizeof(cache_copy), &out->copies) &&
           mul_size(out->n_claims, sizeof(cache_claim), &out->claims) &&
           mul_size(out->queue_cap, sizeof(cache_moving), &out->queue) && count_names(config, n_copies, out);
}

/*
 * The command list is long enough for a step in which every slot is pinned anew and filled to its end, and the pages of
 * the partly valid group copied: for each place a MAP, room for the UNMAP that may follow, and room for the UNMAP of
 * what was mapped there before; for each copy its COPY, MAP and UNMAP.
 */
static bool compute_sizes(const cache_config *config, sizes *out) {
    size_t n_slots = config->n_slots, n_places, per_slot, pps = cache_pages_per_slot(config);
    size_t group_pages = (size_t)((config->group_bytes - 1) / config->page_bytes) + 2;
    size_t n_copies = group_pages < pps ? group_pages : pps;
    return mul_size(n_slots, pps, &n_places) && mul_size(3, pps + n_copies, &per_slot) &&
           mul_size(n_slots, per_slot, &out->cap_commands) &&
           mul_size(out->cap_commands, sizeof(kv_command), &out->commands) &&
           mul_size(n_places, sizeof(uint32_t), &out->places) && mul_size(n_slots, sizeof(cache_slot), &out->slots) &&
           mul_size(config->n_pages, sizeof(cache_page), &out->pages) && count_nodes(config, out) &&
           count_copies(config, out);
}

static perch_status check_config(const cache_config *config, perch_error *err) {
    if (config->page_bytes == 0 || config->group_bytes == 0 || config->session_len == 0 || config->n_slots == 0) {
        return err_set(err, PERCH_E_INVALID,
                       "cache: page_bytes %llu, group_bytes %llu, session_len %u and n_slots %u must not be 0",
                       (unsigned long long)config->page_bytes, (unsigned long long)config->group_bytes,
                       config->session_len, config->n_slots);
    }
    uint32_t pages_per_slot = cache_pages_per_slot(config);
    if (pages_per_slot == 0) {
        return err_set(err, PERCH_E_INVALID,
                       "cache: session_len %u with %llu bytes a group is more than can be addressed",
                       config->session_len, (unsigned long long)config->group_bytes);
    }
    if ((config->n_disk_frames && !config->n_frames) || config->n_disk_frames >= CACHE_NO_COPY - config->n_frames) {
        return err_set(err, PERCH_E_INVALID, "cache: a disk tier of %u frames behind a host tier of %u",
                       config->n_disk_frames, config->n_frames);
    }
    if (config->n_pages == CACHE_NO_PAGE) {
        return err_set(err, PERCH_E_INVALID, "cache: n_pages is %u, more than can be numbered", config->n_pages);
    }
    if (config->n_pages < pages_per_slot) {
        return err_set(err, PERCH_E_INVALID, "cache: n_pages is %u, but one sequence of session_len %u takes %u",
                       config->n_pages, config->session_len, pages_per_slot);
    }
    return PERCH_OK;
}

uint64_t cache_host_bytes(const cache_config *config) {
    sizes s;
    if (check_config(config, NULL) != PERCH_OK || !compute_sizes(config, &s)) {
        return 0;
    }
    return sizeof(cache) + s.pages + s.slots + s.places + s.commands + s.nodes + s.buckets + s.frames[CACHE_HOST] +
           s.frames[CACHE_DISK] + s.copies + s.claims + s.tokens + s.name_buckets + 2 * s.queue;
}

/* ------------------------------------------------------- create, destroy -- */

perch_status cache_create(const cache_config *config, cache **out, perch_error *err) {
    sizes s;
    *out = NULL;
    perch_status status = check_config(config, err);
    if (status != PERCH_OK) {
        return status;
    }
    if (!compute_sizes(config, &s)) {
        return err_set(err, PERCH_E_INVALID, "cache: %u slots of %u pages are more than can be addressed",
                       config->n_slots, cache_pages_per_slot(config));
    }
    cache *c = calloc(1, sizeof *c);
    if (!c) {
        return err_nomem(err, "the cache");
    }
    c->config = *config;
    c->pages_per_slot = cache_pages_per_slot(config);
    c->cap_commands = s.cap_commands;
    /* calloc: of memory that is never touched, however much it is, the system keeps nothing */
    c->pages = calloc(1, s.pages);
    c->slots = calloc(1, s.slots);
    c->places = calloc(1, s.places);
    c->commands = calloc(1, s.commands);
    c->nodes = s.nodes ? calloc(1, s.nodes) : NULL;
    c->buckets = s.nodes ? calloc(1, s.buckets) : NULL;
    if (config->n_frames) {
        c->tiers[CACHE_HOST].items = calloc(1, s.frames[CACHE_HOST]);
        c->copies = calloc(1, s.copies);
        c->queues[0].items = calloc(1, s.queue);
        c->queues[1].items = calloc(1, s.queue);
    }
    if (config->n_disk_frames) {
        c->tiers[CACHE_DISK].items = calloc(1, s.frames[CACHE_DISK]);
    }
    if (s.tokens) {
        c->copy_tokens = calloc(1, s.tokens);
        c->name_buckets = calloc(1, s.name_buckets);
        c->name_mask = s.n_name_buckets - 1;
        c->page_tokens = cache_page_tokens(config);
    }
    policy_init(c);
    if (!c->pages || !c->slots || !c->places || !c->commands || (s.nodes && (!c->nodes || !c->buckets)) ||
        (config->n_frames &&
         (!c->tiers[CACHE_HOST].items || !c->copies || !c->queues[0].items || !c->queues[1].items)) ||
        (config->n_disk_frames && !c->tiers[CACHE_DISK].items) || (s.tokens && (!c->copy_tokens || !c->name_buckets))) {
        cache_destroy(c);
        return err_nomem(err, "the cache's tables of pages, slots, commands and prefixes");
    }
    c->n_nodes = (uint32_t)s.n_nodes;
    c->bucket_mask = s.n_buckets - 1;
    pool_init(c);
    slot_init(c);
    c->queue_cap = s.queue_cap;
    c->max_demoted_claims = s.n_claims;
    prefix_init(c);
    tier_init(c);
    *out = c;
    return PERCH_OK;
}

void cache_destroy(cache *c) {
    if (!c) {
        return;
    }
    for (cache_entry *e = policy_end(c, false), *next; e; e = next) {
        next = policy_next(c, e, false);
        if (e->closed) {
            cache_entry_destroy(c, e);
        }
    }
    free(c->pages);
    free(c->slots);
    free(c->places);
    free(c->commands);
    free(c->nodes);
    free(c->buckets);
    free(c->tiers[CACHE_HOST].items);
    free(c->tiers[CACHE_DISK].items);
    free(c->copies);
    free(c->copy_tokens);
    free(c->name_buckets);
    free(c->queues[0].items);
    free(c->queues[1].items);
    free(c);
}

/* --------------------------------------------------------------- growth -- */

/* The pages it has when it grows to need pages by whole chunks. */
static uint32_t round_to_chunk(const cache *c, uint32_t need) {
    uint64_t chunk = c->config.chunk_pages;
    uint64_t rounded = chunk ? ceil_div(need, chunk) * chunk : c->pages_per_slot;
    return rounded < c->pages_per_slot ? (uint32_t)rounded : c->pages_per_slot;
}

/* Of an idle entry's pages those that no one has pinned yet: they are idle now, and will be pinned with the entry. */
static uint32_t count_idle_pages(const cache *c, const cache_entry *e) {
    uint32_t n = 0;
    for (uint32_t i = 0; !e->pinned && i < e->n_pages; i++) {
        n += c->pages[e->pages[i]].n_pinned == 0;
    }
    return n;
}

/*
 * What it takes to write the entry's tokens [n_valid, n_tokens) once it is pinned. True if that can be had from the
 * free and the idle pages without `reserved` of them.
 *
 * A page that the write touches and that others own, too, must be copied if one of them is pinned. If they all are idle
 * it may be copied but need not be: in the worst case eviction takes it from all of them, and it is the entry's own. In
 * the same worst case every page without a pinned owner is free. So "new pages + copies that must be made <= free +
 * idle pages" is exact, although evicting one idle entry may free nothing.
 */
static bool plan_growth(const cache *c, const cache_entry *e, uint32_t n_tokens, uint32_t reserved, cache_growth *out) {
    uint32_t n_written = n_tokens > e->n_valid ? cache_pages_for(c, n_tokens) : 0;
    uint32_t exact = n_written > e->n_pages ? n_written : e->n_pages;
    uint32_t rounded = exact > e->n_pages || c->config.chunk_pages == 0 ? round_to_chunk(c, exact) : exact;
    uint32_t must_copy = 0, may_copy = 0, own_pin = e->pinned || e->kept ? 1 : 0;
    out->first = (uint32_t)(e->n_valid / KV_GROUP_TOKENS * c->config.group_bytes / c->config.page_bytes);
    out->end = n_written < e->n_pages ? n_written : e->n_pages;
    for (uint32_t i = out->first; i < out->end; i++) {
        const cache_page *p = &c->pages[e->pages[i]];
        if (p->n_owners > 1) {
            must_copy += p->n_pinned > own_pin;
            may_copy += p->n_pinned <= own_pin;
        }
    }
    uint64_t available = (uint64_t)c->config.n_pages - c->n_pinned_pages - count_idle_pages(c, e);
    available -= reserved < available ? reserved : available;
    /* Rounding must not cost another entry its page; where the whole slot is wanted at once it is no rounding. */
    uint64_t roomy = (uint64_t)(rounded - e->n_pages) + must_copy + may_copy;
    out->n_pages = c->config.chunk_pages == 0 || roomy <= available ? rounded : exact;
    out->n_copies = must_copy + may_copy;
    out->n_need = out->n_pages - e->n_pages + out->n_copies;
    return (uint64_t)(out->n_pages - e->n_pages) + must_copy <= available;
}

bool cache_can_hold(const cache *c, const cache_entry *e, uint32_t n_tokens, uint32_t reserved) {
    cache_growth growth;
    if (n_tokens > c->config.session_len || (!e->pinned && !slot_available(c)) ||
        !plan_growth(c, e, n_tokens, reserved, &growth)) {
        return false;
    }
    uint32_t to_map = growth.n_need + (e->slot == CACHE_NO_SLOT ? e->n_pages : 0);
    return commands_fit(c, to_map, growth.n_copies);
}

/* The pages e->n_pages.. of the entry, mapped. Free pages that are mapped in the right place already come first. */
static void add_pages(cache *c, cache_entry *e, uint32_t n_pages) {
    for (uint32_t i = e->n_pages; i < n_pages; i++) {
        uint32_t there = slot_mapped(c, e->slot, i);
        bool fits = there != CACHE_NO_PAGE && c->pages[there].n_owners == 0;
        e->pages[i] = fits ? there : CACHE_NO_PAGE;
        if (fits) {
            pool_claim(c, there);
        }
    }
    for (uint32_t i = e->n_pages; i < n_pages; i++) {
        if (e->pages[i] == CACHE_NO_PAGE) {
            e->pages[i] = pool_take(c);
            slot_map(c, e->slot, i, e->pages[i]);
        }
    }
    e->n_pages = n_pages;
}

/* The pages first..end become the entry's own. What holds none of its valid KV is replaced without a copy. */
static void own_pages(cache *c, cache_entry *e, const cache_growth *growth) {
    uint64_t valid_bytes = ceil_div(e->n_valid, KV_GROUP_TOKENS) * c->config.group_bytes;
    for (uint32_t i = growth->first; i < growth->end; i++) {
        uint32_t source = e->pages[i];
        if (c->pages[source].n_owners == 1) {
            continue;
        }
        uint32_t page = pool_take(c);
        if (i * c->config.page_bytes < valid_bytes) {
            commands_copy(c, page, source);
        }
        e->pages[i] = page;
        pool_drop(c, source, true);
        slot_map(c, e->slot, i, page);
    }
}

/* ------------------------------------------------- pin, extend, unpin -- */

perch_status cache_pin(cache *c, cache_entry *e) {
    if (e->pinned || !e->pages) {
        return PERCH_E_INVALID;
    }
    if (e->slot == CACHE_NO_SLOT) {
        if (!slot_available(c) || !commands_fit(c, e->n_pages, 0)) {
            return PERCH_E_AGAIN;
        }
        slot_assign(c, e);
    }
    if (e->n_pages > 0) {
        policy_busy(c, e);
        c->n_resident--;
    }
    slot_pin(c, e->slot);
    e->pinned = true;
    e->n_ready = e->n_valid;
    for (uint32_t i = 0; i < e->n_pages; i++) {
        pool_pin(c, e->pages[i]);
    }
    return PERCH_OK;
}

perch_status cache_extend(cache *c, cache_entry *e, uint32_t n_tokens) {
    cache_growth growth;
    if (!e->pinned) {
        return PERCH_E_INVALID;
    }
    if (n_tokens > c->config.session_len) {
        return PERCH_E_TOO_LONG;
    }
    if (!plan_growth(c, e, n_tokens, 0, &growth) || !commands_fit(c, growth.n_need, growth.n_copies)) {
        return PERCH_E_AGAIN;
    }
    evict_for(c, e, &growth);
    tier_write(c, e, growth.first, growth.end);
    own_pages(c, e, &growth);
    add_pages(c, e, growth.n_pages);
    e->n_ready = n_tokens > e->n_valid ? n_tokens : e->n_valid;
    return PERCH_OK;
}

bool cache_prepare(cache *c, cache_entry *e, uint32_t n_tokens) {
    uint32_t n_pages = cache_pages_for(c, n_tokens < c->config.session_len ? n_tokens : c->config.session_len);
    if (!e->pinned || n_pages <= e->n_pages || n_pages - e->n_pages > c->n_free ||
        !commands_fit(c, n_pages - e->n_pages, 0)) {
        return false;
    }
    add_pages(c, e, n_pages);
    return true;
}

void cache_unpin(cache *c, cache_entry *e) {
    if (!e->pinned) {
        return;
    }
    e->pinned = false;
    e->used_us = c->now_us;
    policy_paused(c, e);
    prefix_forget_promises(c, e);
    load_cancel(c, e);
    for (uint32_t i = 0; i < e->n_pages; i++) {
        pool_unpin(c, e->pages[i]);
    }
    slot_unpin(c, e->slot);
    policy_idle(c, e);
    c->n_resident++;
    entry_settle(c, e);
}

/* ---------------------------------------------------------------- stats -- */

void cache_set_costs(cache *c, const cache_costs *costs) { c->costs = *costs; }

void cache_set_time(cache *c, uint64_t now_us) { c->now_us = now_us; }

void cache_watch(cache *c, cache_evict_fn fn, void *user) {
    c->on_evict = fn;
    c->on_evict_user = user;
}

void cache_stats_get(const cache *c, cache_stats *out) {
    *out = (cache_stats){
        .n_pages = c->config.n_pages,
        .n_free = c->n_free,
        .n_pinned = c->n_pinned_pages,
        .n_idle = c->config.n_pages - c->n_free - c->n_pinned_pages,
        .n_slots = c->config.n_slots,
        .n_slots_pinned = c->n_pinned_slots,
        .n_resident_entries = c->n_resident,
        .n_closed_entries = c->n_closed,
        .n_nodes = c->n_nodes_used,
        .adopted_tokens = c->adopted_tokens,
        .tiers = c->tier_stats,
        .evictions = c->evictions,
        .evicted_pages = c->evicted_pages,
        .copied_pages = c->copied_pages,
        .maps = c->maps,
        .unmaps = c->unmaps,
    };
    out->tiers.n_demoted = (uint32_t)c->n_demoted_claims;
    out->tiers.n_host_frames = c->tiers[CACHE_HOST].n;
    out->tiers.n_host_full = c->tiers[CACHE_HOST].n_full;
    out->tiers.n_disk_frames = c->tiers[CACHE_DISK].n;
    out->tiers.n_disk_full = c->tiers[CACHE_DISK].n_full;
}
