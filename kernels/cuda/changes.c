/*
 * changes: which places of the slots are to have another page than they have. A place is noted once, with the page that it is to
 * have at last; so there is room for all that can be asked however far behind the one is who carries it out, and nobody who
 * asks ever waits. What was asked for in between is never done, since nothing was queued that could have seen it.
 */
#include "kernels/cuda/device.h"

#include <stdlib.h>

perch_status cuda_changes_open(cuda_changes *c, size_t n_places, perch_error *err) {
    c->n_places = n_places;
    c->pages = malloc(n_places * sizeof *c->pages);
    c->noted = calloc(n_places, sizeof *c->noted);
    c->queue = malloc(n_places * sizeof *c->queue);
    return c->pages != NULL && c->noted != NULL && c->queue != NULL ? PERCH_OK
                                                                    : err_nomem(err, "the KV slots' changes");
}

void cuda_changes_close(cuda_changes *c) {
    free(c->pages);
    free(c->noted);
    free(c->queue);
    *c = (cuda_changes){0};
}

void cuda_changes_note(cuda_changes *c, size_t place, uint32_t page) {
    c->pages[place] = page;
    if (!c->noted[place]) {
        c->noted[place] = true;
        c->queue[(c->first + c->n++) % c->n_places] = (uint32_t)place;
    }
}

bool cuda_changes_take(cuda_changes *c, cuda_change *out) {
    if (c->n == 0) {
        return false;
    }
    out->place = c->queue[c->first];
    out->page = c->pages[out->place];
    c->noted[out->place] = false;
    c->first = (c->first + 1) % c->n_places;
    c->n--;
    return true;
}
