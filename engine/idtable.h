/*
 * idtable: 64-bit ids for objects, whose stale values fail safely: (generation << 32 | place + 1). Generations of a place only
 * grow, so an id is not given out twice before 2^32 - 1 objects stood in the same place. All O(1); only reserve allocates.
 */
#ifndef PERCH_ENGINE_IDTABLE_H
#define PERCH_ENGINE_IDTABLE_H

#include "base/base.h"

typedef struct idtable_place {
    void *object;
    uint32_t generation;
    uint32_t next_free; /* place + 1, 0 = none */
} idtable_place;

typedef struct idtable {
    idtable_place *places;
    size_t n_places, cap;
    uint32_t first_free; /* place + 1 */
    uint64_t n_objects;
} idtable;

void idtable_fini(idtable *t);

/* Makes sure that the next n idtable_add cannot fail. */
perch_status idtable_reserve(idtable *t, size_t n, perch_error *err);

/* Enters an object; its id, never 0. After idtable_reserve. */
uint64_t idtable_add(idtable *t, void *object);

/* The object, or NULL for an id that is stale or was never given out. */
void *idtable_get(const idtable *t, uint64_t id);

/* Forgets it; the id is stale from now on. Returns the object or NULL. */
void *idtable_remove(idtable *t, uint64_t id);

#endif
