/* deadlines: see deadlines.h. */
#include "engine/deadlines.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

void deadlines_fini(deadlines *d) {
    free(d->heap);
    memset(d, 0, sizeof *d);
}

perch_status deadlines_reserve(deadlines *d, size_t n, perch_error *err) {
    return array_reserve((void **)&d->heap, &d->cap, d->n + n, sizeof(deadline *), err);
}

static void put(deadlines *d, size_t place, deadline *item) {
    d->heap[place] = item;
    item->place = place;
}

/* Moves an item from a place towards the root, and then towards the leaves, until it stands right. */
static void settle(deadlines *d, size_t place, deadline *item) {
    while (place > 0 && d->heap[(place - 1) / 2]->at_us > item->at_us) {
        put(d, place, d->heap[(place - 1) / 2]);
        place = (place - 1) / 2;
    }
    for (size_t child; (child = 2 * place + 1) < d->n; place = child) {
        child += child + 1 < d->n && d->heap[child + 1]->at_us < d->heap[child]->at_us;
        if (d->heap[child]->at_us >= item->at_us) {
            break;
        }
        put(d, place, d->heap[child]);
    }
    put(d, place, item);
}

void deadlines_add(deadlines *d, deadline *item) {
    assert(d->n < d->cap);
    d->n++;
    settle(d, d->n - 1, item);
}

void deadlines_remove(deadlines *d, deadline *item) {
    assert(d->n > 0 && d->heap[item->place] == item);
    deadline *last = d->heap[--d->n];
    if (last != item) {
        settle(d, item->place, last);
    }
}

deadline *deadlines_first(const deadlines *d) { return d->n ? d->heap[0] : NULL; }
