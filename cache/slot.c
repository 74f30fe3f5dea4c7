/*
 * slot: the virtual ranges. Which entry holds each, which page is mapped at each place, and the commands that bring the
 * device to the same state. Unmapping is put off until the page is wanted elsewhere: often the place is mapped over
 * before, or the page is taken again right where it is.
 */
#include "cache/state.h"

void slot_init(cache *c) {
    list_init(&c->free_slots);
    list_init(&c->idle_slots);
    for (uint32_t slot = 0; slot < c->config.n_slots; slot++) {
        list_push_back(&c->free_slots, &c->slots[slot].link);
    }
}

static uint64_t place_of(const cache *c, uint32_t slot, uint32_t index) {
    return (uint64_t)slot * c->pages_per_slot + index;
}

uint32_t slot_mapped(const cache *c, uint32_t slot, uint32_t index) {
    uint32_t mapped = c->places[place_of(c, slot, index)];
    return mapped ? mapped - 1 : CACHE_NO_PAGE;
}

bool slot_place_live(const cache *c, uint64_t place) {
    const cache_entry *holder = c->slots[place / c->pages_per_slot].holder;
    uint32_t index = (uint32_t)(place % c->pages_per_slot);
    return holder && c->places[place] && index < holder->n_pages && holder->pages[index] == c->places[place] - 1;
}

/* ------------------------------------------------------------ commands -- */

bool commands_fit(const cache *c, uint64_t n_maps, uint64_t n_copies) {
    /* A MAP takes its own record and, where nothing was mapped, room for the UNMAP to come. An UNMAP has its room. */
    return 2 * n_maps + n_copies <= c->cap_commands - c->n_commands - c->n_mapped;
}

void commands_copy(cache *c, uint32_t page, uint32_t source) {
    c->commands[c->n_commands++] = (kv_command){.op = KV_COPY, .page = page, .source = source};
    c->copied_pages++;
}

const kv_command *cache_commands(const cache *c, size_t *n) {
    *n = c->n_commands;
    return c->commands;
}

void cache_commands_clear(cache *c) { c->n_commands = 0; }

/* ------------------------------------------------------------- mapping -- */

/* The place's page is not mapped there any more. */
static void forget(cache *c, uint64_t place) {
    uint32_t page = c->places[place] - 1;
    cache_page *p = &c->pages[page];
    c->places[place] = 0;
    c->n_mapped--;
    p->places_xor ^= place;
    if (--p->n_places == 0) {
        pool_unmapped(c, page);
    }
}

static void unmap(cache *c, uint64_t place) {
    c->commands[c->n_commands++] = (kv_command){
        .op = KV_UNMAP, .slot = (uint32_t)(place / c->pages_per_slot), .index = (uint32_t)(place % c->pages_per_slot)};
    c->unmaps++;
    forget(c, place);
}

void slot_map(cache *c, uint32_t slot, uint32_t index, uint32_t page) {
    uint64_t place = place_of(c, slot, index);
    cache_page *p = &c->pages[page];
    if (c->places[place] == page + 1) {
        return;
    }
    if (p->n_places == 1 && !slot_place_live(c, p->places_xor)) {
        unmap(c, p->places_xor);
    }
    if (c->places[place]) {
        forget(c, place);
    }
    c->commands[c->n_commands++] = (kv_command){.op = KV_MAP, .slot = slot, .index = index, .page = page};
    c->maps++;
    c->places[place] = page + 1;
    c->n_mapped++;
    p->n_places++;
    p->places_xor ^= place;
}

void slot_abandon(cache *c, uint32_t slot, uint32_t index) {
    uint64_t place = place_of(c, slot, index);
    if (c->pages[c->places[place] - 1].n_places > 1) {
        unmap(c, place); /* the others are live, and stay */
    }
}

/* ------------------------------------------------------------- holders -- */

bool slot_available(const cache *c) { return c->n_pinned_slots < c->config.n_slots; }

void slot_assign(cache *c, cache_entry *e) {
    list_link *first = list_empty(&c->free_slots) ? c->idle_slots.next : c->free_slots.next;
    cache_slot *s = (cache_slot *)first;
    cache_entry *loser = s->holder;
    list_remove(&s->link);
    list_push_back(&c->idle_slots, &s->link);
    s->holder = e;
    e->slot = (uint32_t)(s - c->slots);
    for (uint32_t i = 0; i < e->n_pages; i++) {
        slot_map(c, e->slot, i, e->pages[i]);
    }
    if (loser) {
        loser->slot = CACHE_NO_SLOT;
        for (uint32_t i = e->n_pages; i < loser->n_pages; i++) {
            slot_abandon(c, e->slot, i);
        }
    }
}

void slot_pin(cache *c, uint32_t slot) {
    list_remove(&c->slots[slot].link);
    c->n_pinned_slots++;
}

void slot_unpin(cache *c, uint32_t slot) {
    list_push_back(&c->idle_slots, &c->slots[slot].link);
    c->n_pinned_slots--;
}

void slot_release(cache *c, cache_entry *idle) {
    cache_slot *s = &c->slots[idle->slot];
    list_remove(&s->link);
    list_push_front(&c->free_slots, &s->link);
    s->holder = NULL;
    idle->slot = CACHE_NO_SLOT;
}
