/* idtable: see idtable.h. */
#include "engine/idtable.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

void idtable_fini(idtable *t) {
    free(t->places);
    memset(t, 0, sizeof *t);
}

perch_status idtable_reserve(idtable *t, size_t n, perch_error *err) {
    size_t n_used = (size_t)t->n_objects;
    if (n_used + n > UINT32_MAX - 1) {
        return err_set(err, PERCH_E_NOMEM, "more than %u ids at once", UINT32_MAX - 1);
    }
    return array_reserve((void **)&t->places, &t->cap, n_used + n, sizeof *t->places, err);
}

uint64_t idtable_add(idtable *t, void *object) {
    uint32_t place;
    if (t->first_free) {
        place = t->first_free - 1;
        t->first_free = t->places[place].next_free;
    } else {
        assert(t->n_places < t->cap);
        place = (uint32_t)t->n_places++;
        t->places[place].generation = 0;
    }
    idtable_place *p = &t->places[place];
    p->object = object;
    p->generation++;
    p->generation += p->generation == 0;
    t->n_objects++;
    return (uint64_t)p->generation << 32 | (place + 1);
}

static idtable_place *place_of(const idtable *t, uint64_t id) {
    uint64_t place = (id & UINT32_MAX) - 1;
    if ((id & UINT32_MAX) == 0 || place >= t->n_places) {
        return NULL;
    }
    idtable_place *p = &t->places[place];
    return p->object && p->generation == id >> 32 ? p : NULL;
}

void *idtable_get(const idtable *t, uint64_t id) {
    idtable_place *p = place_of(t, id);
    return p ? p->object : NULL;
}

void *idtable_remove(idtable *t, uint64_t id) {
    idtable_place *p = place_of(t, id);
    if (!p) {
        return NULL;
    }
    void *object = p->object;
    p->object = NULL;
    p->next_free = t->first_free;
    t->first_free = (uint32_t)(p - t->places) + 1;
    t->n_objects--;
    return object;
}
