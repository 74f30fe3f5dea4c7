/*
 * claims: which copies pages and entries count on. A page on the device knows the copy that was made of it; when an entry loses the
 * page the claim is the entry's. A copy is good for the tokens that the entry had when it was made, and for fewer once the
 * sequence has gone on differently: so a claim is cut where pages are written (tier_write) and where sequences are
 * truncated (cache_truncate_copies). Nobody is told when a copy is void; whoever looks at a claim finds out.
 *
 * An entry that has lost all of its pages keeps an array of just what is saved of it, in the list of demoted entries; the list is
 * looked through little by little for those of which nothing is left, and what it may hold in all is bounded: beyond that
 * the entries that were demoted first have no copies any more.
 */
#include "cache/state.h"

#include <stdlib.h>

/* Claims that one sweep looks at, at most, but an entry's. */
#define SWEPT_CLAIMS 256u

static uint32_t min_u32(uint32_t a, uint32_t b) { return a < b ? a : b; }

/* --------------------------------------------------------------- arrays -- */

static void leave_demoted(cache *c, cache_entry *e) {
    if (e->demoted) {
        c->sweep = c->sweep == &e->link ? e->link.next : c->sweep;
        list_remove(&e->link);
        c->n_demoted_claims -= e->n_copies;
        e->demoted = false;
    }
}

void claims_drop(cache *c, cache_entry *e) {
    leave_demoted(c, e);
    free(e->copies);
    e->copies = NULL;
    e->n_copies = e->n_saved = 0;
}

perch_status claims_reserve(cache *c, cache_entry *e, perch_error *err) {
    uint32_t n = c->config.n_frames ? c->pages_per_slot : 0;
    if (e->n_copies < n) {
        cache_claim *all = calloc(n, sizeof *all);
        if (!all) {
            return err_nomem(err, "the copies of a cache entry");
        }
        for (uint32_t i = 0; i < e->n_copies; i++) {
            all[i] = e->copies[i];
        }
        leave_demoted(c, e);
        free(e->copies);
        e->copies = all;
        e->n_copies = n;
    }
    leave_demoted(c, e);
    return PERCH_OK;
}

static bool anything_left(const cache *c, const cache_entry *e) {
    bool found = false;
    for (uint32_t i = 0; i < e->n_copies && !found; i++) {
        found = claim_holds(c, &e->copies[i]) && e->copies[i].n_tokens > cache_tokens_in_front(c, i);
    }
    return found;
}

void claims_settle(cache *c, cache_entry *e) {
    uint32_t n = min_u32(cache_pages_for(c, e->n_saved), e->n_copies);
    leave_demoted(c, e);
    if (n == 0 || !anything_left(c, e)) {
        claims_drop(c, e);
        return;
    }
    cache_claim *rest = n < e->n_copies ? realloc(e->copies, n * sizeof *rest) : NULL;
    if (rest) {
        e->copies = rest;
        e->n_copies = n;
    }
    list_push_back(&c->demoted, &e->link);
    c->n_demoted_claims += e->n_copies;
    e->demoted = true;
    while (c->n_demoted_claims > c->max_demoted_claims) {
        claims_drop(c, (cache_entry *)c->demoted.next);
    }
}

void claims_sweep(cache *c) {
    for (uint32_t n = 0; n < SWEPT_CLAIMS && !list_empty(&c->demoted);) {
        cache_entry *e = (cache_entry *)(c->sweep == &c->demoted ? c->demoted.next : c->sweep);
        n += e->n_copies;
        c->sweep = e->link.next;
        if (!anything_left(c, e)) {
            claims_drop(c, e);
        }
        if (c->sweep == &c->demoted) {
            break;
        }
    }
}

/* --------------------------------------------------------------- claims -- */

double claims_load_us(const cache *c, const cache_entry *e, uint32_t index) {
    const cache_claim *claim = &c->pages[e->pages[index]].copy;
    if (!claim_holds(c, claim)) {
        return 0;
    }
    return c->costs.page_us[copy_lies_in(c, claim->copy, CACHE_HOST) ? CACHE_HOST : CACHE_DISK];
}

void tier_lost(cache *c, cache_entry *e, uint32_t index) {
    const cache_claim *copy = &c->pages[e->pages[index]].copy;
    if (!e->copies || !claim_holds(c, copy)) {
        return;
    }
    cache_claim *own = &e->copies[index];
    bool same = own->copy == copy->copy && own->generation == copy->generation;
    /* Whoever else has the page may have had it copied with tokens of its own behind those that they share. */
    uint32_t n_tokens = min_u32(copy->n_tokens, e->n_valid);
    *own = (cache_claim){copy->copy, copy->generation, same && own->n_tokens > n_tokens ? own->n_tokens : n_tokens};
}

void cache_truncate_copies(cache *c, cache_entry *e, uint32_t n_tokens) {
    if (!e->copies || (e->n_saved <= n_tokens && e->n_valid <= n_tokens)) {
        return;
    }
    e->n_saved = min_u32(e->n_saved, n_tokens);
    for (uint32_t i = cache_first_page_of(c, n_tokens); i < e->n_copies; i++) {
        e->copies[i].n_tokens = min_u32(e->copies[i].n_tokens, n_tokens);
    }
    if (e->demoted) {
        claims_settle(c, e);
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
