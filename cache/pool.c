/* pool: the physical pages: who owns them, who has them pinned, which are free. All of it counters and one list. */
#include "cache/state.h"

void pool_init(cache *c) {
    list_init(&c->free_pages);
    for (uint32_t page = 0; page < c->config.n_pages; page++) {
        list_push_back(&c->free_pages, &c->pages[page].link);
    }
    c->n_free = c->config.n_pages;
}

void pool_claim(cache *c, uint32_t page) {
    cache_page *p = &c->pages[page];
    list_remove(&p->link);
    c->n_free--;
    p->n_owners = 1;
    p->n_pinned = 1;
    p->copy.generation = 0;
    c->n_pinned_pages++;
}

uint32_t pool_take(cache *c) {
    uint32_t page = (uint32_t)((cache_page *)c->free_pages.next - c->pages);
    pool_claim(c, page);
    return page;
}

void pool_share(cache *c, uint32_t page) { c->pages[page].n_owners++; }

void pool_pin(cache *c, uint32_t page) {
    if (c->pages[page].n_pinned++ == 0) {
        c->n_pinned_pages++;
    }
}

void pool_unpin(cache *c, uint32_t page) {
    if (--c->pages[page].n_pinned == 0) {
        c->n_pinned_pages--;
    }
}

void pool_drop(cache *c, uint32_t page, bool pinned) {
    cache_page *p = &c->pages[page];
    if (pinned) {
        pool_unpin(c, page);
    }
    if (--p->n_owners > 0) {
        return;
    }
    c->n_free++;
    if (p->n_places == 0) {
        list_push_front(&c->free_pages, &p->link);
    } else {
        /* Whoever gets its slot may find it in the right place: use it elsewhere as late as possible. */
        list_push_back(&c->free_pages, &p->link);
    }
}

void pool_unmapped(cache *c, uint32_t page) {
    cache_page *p = &c->pages[page];
    if (p->n_owners == 0) {
        list_remove(&p->link);
        list_push_front(&c->free_pages, &p->link);
    }
}
