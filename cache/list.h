/* list: intrusive circular lists with a sentinel. A link is its struct's first member: a cast leads back. */
#ifndef PERCH_CACHE_LIST_H
#define PERCH_CACHE_LIST_H

#include <stdbool.h>

typedef struct list_link {
    struct list_link *prev, *next;
} list_link;

static inline void list_init(list_link *sentinel) { sentinel->prev = sentinel->next = sentinel; }

static inline bool list_empty(const list_link *sentinel) { return sentinel->next == sentinel; }

static inline void list_push_front(list_link *sentinel, list_link *link) {
    link->prev = sentinel;
    link->next = sentinel->next;
    sentinel->next->prev = link;
    sentinel->next = link;
}

/* In front of whatever follows the last one: the sentinel. */
static inline void list_push_back(list_link *sentinel, list_link *link) { list_push_front(sentinel->prev, link); }

static inline void list_remove(list_link *link) {
    link->prev->next = link->next;
    link->next->prev = link->prev;
}

#endif
