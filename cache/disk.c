/*
 * disk: copies between the host tier and the disk tier. Frames of the host tier that are next to be used again are written ahead of
 * need (spilled), so that taking one loses nothing; what lies on the disk alone is read into a frame of the host tier (fetched)
 * before it is loaded. Requests end in any order. One that fails, or a page that is not what was written, costs that copy; a
 * disk that fails again and again is not used any more.
 */
#include "cache/state.h"

#include <assert.h>

/* Host frames, the next to be used again, that are to be empty or on the disk as well: a share of all, within these bounds. */
#define SAFE_SHARE 8u
#define LEAST_SAFE 32u
#define MOST_SAFE 1024u
/* Writes that may be asked for at a time: reads, which somebody waits for, always find room. */
#define MOST_SPILLS (CACHE_DISK_REQUESTS / 4)
/* Failures in a row after which it is given up. */
#define MOST_FAILURES 8u

static uint32_t min_u32(uint32_t a, uint32_t b) { return a < b ? a : b; }

/* Tokens of a copy whose groups begin in its page, or in front of it. */
static uint32_t tokens_of(const cache *c, const cache_copy *k) {
    return min_u32(k->n_tokens, cache_tokens_touching(c, k->index)) - cache_tokens_in_front(c, k->index);
}

static void ask(cache *c, bool write, uint32_t copy) {
    const cache_copy *k = &c->copies[copy];
    uint32_t n_groups = (uint32_t)((k->n_tokens + KV_GROUP_TOKENS - 1) / KV_GROUP_TOKENS);
    uint64_t bytes = n_groups * c->config.group_bytes - k->index * c->config.page_bytes;
    assert(c->n_disk_pending < CACHE_DISK_REQUESTS && c->n_asked < CACHE_DISK_REQUESTS);
    c->asked[c->n_asked++] = (cache_disk_request){
        .write = write,
        .frame = k->frame[CACHE_HOST],
        .disk_frame = k->frame[CACHE_DISK],
        .n_bytes = bytes < c->config.page_bytes ? bytes : c->config.page_bytes,
    };
    names_tell(c, copy, &c->asked[c->n_asked - 1]);
    c->n_disk_pending++;
    c->n_spilling += write;
}

/* ---------------------------------------------------------------- spill -- */

/* Can the content of a host frame, which nobody is busy with, be written to the disk now? */
static bool could_spill(const cache *c, uint32_t frame) {
    uint32_t copy = c->tiers[CACHE_HOST].items[frame].copy;
    return !c->disk_off && copy != CACHE_NO_COPY && !copy_lies_in(c, copy, CACHE_DISK) && c->n_spilling < MOST_SPILLS &&
           c->n_disk_pending < CACHE_DISK_REQUESTS && frame_next(c, CACHE_DISK) != CACHE_NO_FRAME;
}

/* Host frames that are to be empty or on the disk as well. */
static uint32_t n_safe(const cache *c) {
    uint32_t n = c->config.n_frames / SAFE_SHARE;
    if (c->saves_all) {
        return min_u32(c->config.n_frames, c->config.n_disk_frames);
    }
    n = n < LEAST_SAFE ? LEAST_SAFE : min_u32(n, MOST_SAFE);
    return min_u32(n, (c->config.n_disk_frames + 1) / 2); /* or they would take the frames there from one another */
}

uint64_t disk_n_distinct(const cache *c) {
    uint64_t n_host = c->config.n_frames, n_twice = n_safe(c);
    return c->disk_off || c->config.n_disk_frames == 0
               ? n_host
               : c->config.n_disk_frames + (n_host > n_twice ? n_host - n_twice : 0);
}

bool disk_spill(cache *c) {
    const cache_frames *host = &c->tiers[CACHE_HOST];
    uint32_t n_asked = c->n_asked, n = n_safe(c);
    uint32_t n_looked = host->n - host->n_used;
    for (list_link *at = host->lru.next, *next; at != &host->lru && n_looked < n; at = next, n_looked++) {
        uint32_t frame = (uint32_t)((cache_frame *)at - host->items);
        next = at->next;
        if (could_spill(c, frame)) {
            uint32_t copy = host->items[frame].copy;
            frame_hold(c, CACHE_HOST, frame);
            frame_fill(c, CACHE_DISK, frame_take(c, CACHE_DISK), copy);
            ask(c, true, copy);
        }
    }
    return c->n_asked > n_asked;
}

uint32_t disk_host_frame(cache *c) {
    uint32_t frame = frame_next(c, CACHE_HOST);
    if (frame != CACHE_NO_FRAME && frame < c->tiers[CACHE_HOST].n_used && could_spill(c, frame)) {
        disk_spill(c);
        return CACHE_NO_FRAME;
    }
    return frame_take(c, CACHE_HOST);
}

/* ---------------------------------------------------------------- fetch -- */

bool disk_fetch(cache *c, uint32_t copy) {
    if (c->n_disk_pending >= CACHE_DISK_REQUESTS) {
        return false;
    }
    uint32_t frame = disk_host_frame(c);
    if (frame == CACHE_NO_FRAME) {
        return false;
    }
    frame_hold(c, CACHE_DISK, c->copies[copy].frame[CACHE_DISK]);
    frame_fill(c, CACHE_HOST, frame, copy);
    ask(c, false, copy);
    return true;
}

/* ----------------------------------------------------------------- ends -- */

size_t cache_disk_requests(cache *c, cache_disk_request *out, size_t cap) {
    uint32_t n = c->n_asked < cap ? c->n_asked : (uint32_t)cap;
    for (uint32_t i = 0; i < n; i++) {
        out[i] = c->asked[i];
    }
    for (uint32_t i = n; i < c->n_asked; i++) {
        c->asked[i - n] = c->asked[i];
    }
    c->n_asked -= n;
    return n;
}

void cache_disk_done(cache *c, uint32_t disk_frame, cache_disk_outcome outcome) {
    cache_tier_stats *s = &c->tier_stats;
    cache_frame *disk = &c->tiers[CACHE_DISK].items[disk_frame];
    uint32_t host_frame = c->copies[disk->copy].frame[CACHE_HOST];
    cache_frame *host = &c->tiers[CACHE_HOST].items[host_frame];
    bool write = disk->filling, good = outcome == CACHE_DISK_OK;
    c->n_disk_pending--;
    c->n_spilling -= write;
    c->n_disk_failures = good ? 0 : c->n_disk_failures + 1;
    s->disk_off = c->disk_off = c->disk_off || c->n_disk_failures >= MOST_FAILURES;
    *(good                            ? (write ? &s->spilled_pages : &s->fetched_pages)
      : outcome == CACHE_DISK_CORRUPT ? &s->corrupt_pages
      : write                         ? &s->failed_writes
                                      : &s->failed_reads) += 1;
    s->fetched_tokens += good && !write ? tokens_of(c, &c->copies[disk->copy]) : 0;
    disk->filling = false;
    disk->broken = !good;
    if (!write) {
        host->filling = host->broken = !good;
    }
    frame_let_go(c, CACHE_HOST, host_frame, !write);
    frame_let_go(c, CACHE_DISK, disk_frame, true);
}

uint32_t cache_disk_pending(const cache *c) { return c->n_disk_pending; }
