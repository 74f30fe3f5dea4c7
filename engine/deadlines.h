/* deadlines: the completions with a deadline, the earliest first: a binary heap. Only reserve allocates; the rest is O(log n). */
#ifndef PERCH_ENGINE_DEADLINES_H
#define PERCH_ENGINE_DEADLINES_H

#include "base/base.h"

/* Embedded in what has a deadline. */
typedef struct deadline {
    uint64_t at_us;
    size_t place; /* in the heap */
} deadline;

typedef struct deadlines {
    deadline **heap; /* [n] */
    size_t n, cap;
} deadlines;

void deadlines_fini(deadlines *d);

/* Makes sure that n more can be added. */
perch_status deadlines_reserve(deadlines *d, size_t n, perch_error *err);

void deadlines_add(deadlines *d, deadline *item);
void deadlines_remove(deadlines *d, deadline *item);

/* The earliest, or NULL. */
deadline *deadlines_first(const deadlines *d);

#endif
