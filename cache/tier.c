/*
 * tier: copies of pages in host memory. A copy is made of a page of an idle entry and is known by the page as long as that
 * is on the device; when the entry loses the page, the entry knows the copy. Nobody owns a frame: a frame that gets another
 * content has another generation, and copies of the old one are no copies any more. A copy is good for the tokens that the entry
 * had when it was made, and for fewer once the sequence has gone on differently: so it is cut where pages are written (tier_write) and
 * where sequences are truncated (cache_truncate_copies).
 */
#include "cache/state.h"

#include <assert.h>

/* Copies under way at a time, as a share of the pages: they keep their pages from everybody. */
#define BUSY_SHARE 16u
/* Pages that are free or have copies that save sees to: a share of all, at most so many, but a full sequence. And its rhythm. */
#define SAFE_SHARE 8u
#define MOST_SAFE 1024u
#define SAVE_CALLS 4u

static uint32_t min_u32(uint32_t a, uint32_t b) { return a < b ? a : b; }

void tier_init(cache *c) {
    list_init(&c->frame_lru);
    for (uint32_t frame = 0; frame < c->config.n_frames; frame++) {
        c->frames[frame].generation = 1;
        list_push_back(&c->frame_lru, &c->frames[frame].link);
    }
}

static bool is_there(const cache *c, const cache_copy *copy) {
    return copy->generation != 0 && c->frames[copy->frame].generation == copy->generation;
}

/* Tokens whose groups have bytes in the pages up to this one: with so many it does not change any more. */
static uint32_t tokens_touching(const cache *c, uint32_t index) {
    uint64_t bytes = (index + (uint64_t)1) * c->config.page_bytes, group = c->config.group_bytes;
    uint64_t n_tokens = (bytes / group + (bytes % group != 0)) * KV_GROUP_TOKENS;
    return n_tokens < c->config.session_len ? (uint32_t)n_tokens : c->config.session_len;
}

/* Tokens whose groups end in front of this page. */
static uint32_t tokens_in_front(const cache *c, uint32_t index) {
    return (uint32_t)(index * c->config.page_bytes / c->config.group_bytes) * KV_GROUP_TOKENS;
}

static uint32_t first_page_of(const cache *c, uint32_t n_tokens) {
    return (uint32_t)(n_tokens / KV_GROUP_TOKENS * c->config.group_bytes / c->config.page_bytes);
}

/* ---------------------------------------------------------------- queues -- */

static uint64_t room_in(const cache *c, cache_direction direction) {
    const cache_queue *q = &c->queues[direction];
    return c->queue_cap - (q->end - q->begin);
}

static void push(cache *c, cache_direction direction, uint32_t page, uint32_t frame, cache_entry *entry) {
    cache_queue *q = &c->queues[direction];
    cache_frame *f = &c->frames[frame];
    q->items[q->end++ % c->queue_cap] = (cache_moving){.page = page, .frame = frame, .entry = entry};
    if (f->n_busy++ == 0) {
        list_remove(&f->link);
    }
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

static void arrived(cache *c, cache_entry *e) {
    if (--e->n_loading == 0) {
        c->restored_tokens += e->n_restored - e->n_valid;
        cache_commit(e, e->n_restored);
    }
}

void cache_transfers_done(cache *c, cache_direction direction, uint64_t ticket) {
    cache_queue *q = &c->queues[direction];
    for (; q->begin < q->sent && q->items[q->begin % c->queue_cap].ticket <= ticket; q->begin++) {
        const cache_moving *m = &q->items[q->begin % c->queue_cap];
        cache_frame *f = &c->frames[m->frame];
        f->storing = false;
        if (--f->n_busy == 0) {
            list_push_back(&c->frame_lru, &f->link);
        }
        pool_drop(c, m->page, true);
        *(direction == CACHE_STORE ? &c->saved_pages : &c->restored_pages) += 1;
        if (m->entry) {
            arrived(c, m->entry);
        }
    }
}

/* ------------------------------------------------------------------ save -- */

/* Copies of e's last pages, n_pages at most. False: there is no room for more now. */
static bool save_entry(cache *c, const cache_entry *e, uint64_t n_pages) {
    uint64_t most = c->config.n_pages / BUSY_SHARE + 1;
    /* From the tail on, which is lost first; and of an entry's frames the last are given up first. */
    uint32_t i = cache_pages_for(c, e->n_valid);
    for (; i > 0 && n_pages > 0; n_pages--) {
        cache_page *p = &c->pages[e->pages[--i]];
        if (is_there(c, &p->copy) && p->copy.n_tokens >= min_u32(e->n_valid, tokens_touching(c, i))) {
            continue;
        }
        const cache_queue *q = &c->queues[CACHE_STORE];
        if (room_in(c, CACHE_STORE) == 0 || q->end - q->begin >= most || list_empty(&c->frame_lru)) {
            return false;
        }
        cache_frame *f = (cache_frame *)c->frame_lru.next;
        f->generation++;
        f->storing = true;
        p->copy = (cache_copy){(uint32_t)(f - c->frames), f->generation, e->n_valid};
        push(c, CACHE_STORE, e->pages[i], p->copy.frame, NULL);
    }
    return true;
}

bool cache_save(cache *c, bool now) {
    const uint64_t asked_before = c->queues[CACHE_STORE].end;
    uint64_t wanted = min_u32(c->config.n_pages / SAFE_SHARE, MOST_SAFE);
    uint64_t n_frames = c->config.n_frames; /* for those that are next: else they would take them from one another */
    wanted = wanted > c->pages_per_slot ? wanted : c->pages_per_slot; /* whoever is admitted next may want so many */
    if (n_frames == 0 || (!now && c->n_save_calls++ % SAVE_CALLS != 0)) {
        return false;
    }
    uint64_t safe = c->n_free;
    for (list_link *at = c->lru.next; n_frames > 0 && at != &c->lru && safe < wanted; at = at->next) {
        const cache_entry *e = (const cache_entry *)at;
        uint64_t n_pages = cache_pages_for(c, e->n_valid), n = wanted - safe;
        n = n < n_pages ? n : n_pages;
        n = n < n_frames ? n : n_frames;
        if (!save_entry(c, e, n)) {
            break;
        }
        n_frames -= n;
        safe += n + e->n_pages - n_pages;
    }
    return c->queues[CACHE_STORE].end > asked_before;
}

/* ------------------------------------------------------------------ load -- */

uint32_t cache_restorable(cache *c, cache_entry *e, uint32_t n_tokens) {
    e->n_restored = e->n_valid;
    if (!e->copies || e->n_saved <= e->n_valid || n_tokens <= e->n_valid) {
        return e->n_valid;
    }
    uint32_t most = min_u32(e->n_saved, n_tokens), first = first_page_of(c, e->n_valid);
    for (uint32_t i = first; most > e->n_valid && i < cache_pages_for(c, most); i++) {
        const cache_copy *copy = &e->copies[i];
        if (!is_there(c, copy) || c->frames[copy->frame].storing || i - first >= room_in(c, CACHE_LOAD)) {
            most = min_u32(most, tokens_in_front(c, i));
        } else if (copy->n_tokens < tokens_touching(c, i)) {
            most = min_u32(most, copy->n_tokens);
        }
    }
    e->n_restored = most > e->n_valid ? most : e->n_valid;
    return e->n_restored;
}

uint32_t cache_load(cache *c, cache_entry *e) {
    uint32_t end = cache_pages_for(c, e->n_restored);
    if (e->n_restored <= e->n_valid) {
        return e->n_valid;
    }
    for (uint32_t i = first_page_of(c, e->n_valid); i < end; i++) {
        assert(is_there(c, &e->copies[i])); /* only save gives frames another content */
        push(c, CACHE_LOAD, e->pages[i], e->copies[i].frame, e);
        c->pages[e->pages[i]].copy = e->copies[i];
        e->n_loading++;
    }
    return e->n_restored;
}

bool cache_entry_loading(const cache_entry *e) { return e->n_loading > 0; }

uint32_t cache_entry_n_saved(const cache *c, const cache_entry *e) {
    uint32_t n = 0;
    for (uint32_t i = e->n_pages; e->copies && e->n_saved > e->n_valid && i < cache_pages_for(c, e->n_saved); i++) {
        if (!is_there(c, &e->copies[i])) {
            break;
        }
        n = min_u32(e->n_saved, min_u32(e->copies[i].n_tokens, tokens_touching(c, i)));
    }
    return n > e->n_valid ? n - e->n_valid : 0;
}

void tier_cancel(cache *c, cache_entry *e) {
    const cache_queue *q = &c->queues[CACHE_LOAD];
    for (uint64_t i = q->begin; e->n_loading > 0 && i < q->end; i++) {
        cache_moving *m = &q->items[i % c->queue_cap];
        if (m->entry == e) {
            m->entry = NULL;
            c->pages[m->page].copy.generation = 0; /* its bytes are anything until then */
            e->n_loading--;
        }
    }
}

/* ---------------------------------------------------------------- copies -- */

void tier_lost(cache *c, cache_entry *e, uint32_t index) {
    const cache_copy *copy = &c->pages[e->pages[index]].copy;
    if (e->copies && is_there(c, copy)) {
        e->copies[index] = *copy;
        /* Whoever else has the page may have had it copied with tokens of its own behind those that they share. */
        e->copies[index].n_tokens = min_u32(copy->n_tokens, e->n_valid);
    }
}

void cache_truncate_copies(cache *c, cache_entry *e, uint32_t n_tokens) {
    if (!e->copies || (e->n_saved <= n_tokens && e->n_valid <= n_tokens)) {
        return;
    }
    e->n_saved = min_u32(e->n_saved, n_tokens);
    for (uint32_t i = first_page_of(c, n_tokens); i < c->pages_per_slot; i++) {
        e->copies[i].n_tokens = min_u32(e->copies[i].n_tokens, n_tokens);
    }
}

void tier_write(cache *c, cache_entry *e, uint32_t first, uint32_t end) {
    for (uint32_t i = first; i < end; i++) {
        cache_page *p = &c->pages[e->pages[i]];
        if (p->n_owners == 1) { /* else it is written to a page of its own, and this one stays what it is */
            p->copy.n_tokens = min_u32(p->copy.n_tokens, e->n_valid);
        }
    }
}
