/*
 * copies: what lies where below the device. A copy is the bytes of a page; it lies in a frame of the host tier, in one of the disk
 * tier, or in both. Nobody owns it: pages and entries have claims on it (claims.c), which name its generation. A frame that
 * gets another content lets its copy go, and a copy that lies nowhere any more is void: its generation counts up.
 *
 * There is a frame for each copy at least, so there are never more copies than frames.
 */
#include "cache/state.h"

void copies_init(cache *c) {
    c->tiers[CACHE_HOST].n = c->config.n_frames;
    c->tiers[CACHE_DISK].n = c->config.n_disk_frames;
    for (int tier = 0; tier < CACHE_N_TIERS; tier++) {
        list_init(&c->tiers[tier].lru);
    }
    c->n_copies = c->config.n_frames + c->config.n_disk_frames;
    c->free_copy = CACHE_NO_COPY;
}

bool copy_lies_in(const cache *c, uint32_t copy, cache_tier tier) {
    uint32_t frame = c->copies[copy].frame[tier];
    return frame != CACHE_NO_FRAME && !c->tiers[tier].items[frame].broken && (tier == CACHE_HOST || !c->disk_off);
}

bool copy_ready_in(const cache *c, uint32_t copy, cache_tier tier) {
    return copy_lies_in(c, copy, tier) && !c->tiers[tier].items[c->copies[copy].frame[tier]].filling;
}

bool claim_holds(const cache *c, const cache_claim *claim) {
    return claim->generation != 0 && c->copies[claim->copy].generation == claim->generation &&
           (copy_lies_in(c, claim->copy, CACHE_HOST) || copy_lies_in(c, claim->copy, CACHE_DISK));
}

/* The frame has nothing any more. */
static void empty(cache *c, cache_tier tier, cache_frame *f) {
    cache_copy *copy = f->copy != CACHE_NO_COPY ? &c->copies[f->copy] : NULL;
    if (copy) {
        c->tiers[tier].n_full--;
        copy->frame[tier] = CACHE_NO_FRAME;
        if (copy->frame[CACHE_HOST] == CACHE_NO_FRAME && copy->frame[CACHE_DISK] == CACHE_NO_FRAME) {
            names_take(c, f->copy);
            copy->generation++;
            copy->next = c->free_copy;
            c->free_copy = f->copy;
        }
    }
    f->copy = CACHE_NO_COPY;
    f->filling = f->broken = f->used = false;
}

uint32_t frame_next(const cache *c, cache_tier tier) {
    const cache_frames *t = &c->tiers[tier];
    return t->n_used < t->n       ? t->n_used
           : !list_empty(&t->lru) ? (uint32_t)((cache_frame *)t->lru.next - t->items)
                                  : CACHE_NO_FRAME;
}

uint32_t frame_take(cache *c, cache_tier tier) {
    cache_frames *t = &c->tiers[tier];
    uint32_t frame = frame_next(c, tier);
    if (frame == CACHE_NO_FRAME) {
        return frame;
    }
    cache_frame *f = &t->items[frame];
    if (frame == t->n_used) {
        t->n_used++;
        f->copy = CACHE_NO_COPY;
    } else {
        list_remove(&f->link);
        empty(c, tier, f);
    }
    f->n_busy = 1;
    return frame;
}

void frame_hold(cache *c, cache_tier tier, uint32_t frame) {
    cache_frame *f = &c->tiers[tier].items[frame];
    if (f->n_busy++ == 0) {
        list_remove(&f->link);
    }
}

void frame_let_go(cache *c, cache_tier tier, uint32_t frame, bool used) {
    cache_frames *t = &c->tiers[tier];
    cache_frame *f = &t->items[frame];
    f->used = f->used || used;
    if (--f->n_busy > 0) {
        return;
    }
    bool last = f->used && !f->broken;
    if (f->broken) {
        empty(c, tier, f);
    }
    f->used = false;
    last ? list_push_back(&t->lru, &f->link) : list_push_front(&t->lru, &f->link);
}

void frame_fill(cache *c, cache_tier tier, uint32_t frame, uint32_t copy) {
    c->tiers[tier].n_full++;
    c->tiers[tier].items[frame].copy = copy;
    c->tiers[tier].items[frame].filling = true;
    c->copies[copy].frame[tier] = frame;
}

void frame_touch(cache *c, cache_tier tier, uint32_t frame) {
    cache_frames *t = &c->tiers[tier];
    cache_frame *f = &t->items[frame];
    if (f->n_busy > 0) {
        f->used = true;
    } else {
        list_remove(&f->link);
        list_push_back(&t->lru, &f->link);
    }
}

cache_claim copy_make(cache *c, uint32_t frame, uint32_t index, uint32_t n_tokens) {
    uint32_t number = c->free_copy;
    if (number == CACHE_NO_COPY) {
        number = c->n_copies_used++;
    } else {
        c->free_copy = c->copies[number].next;
    }
    cache_copy *copy = &c->copies[number];
    copy->generation += copy->generation == 0;
    copy->frame[CACHE_DISK] = CACHE_NO_FRAME;
    copy->index = index;
    copy->n_tokens = n_tokens;
    frame_fill(c, CACHE_HOST, frame, number);
    return (cache_claim){number, copy->generation, n_tokens};
}
