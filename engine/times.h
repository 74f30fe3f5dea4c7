/*
 * times: how long something took again and again, as a histogram of fixed size: by powers of two of microseconds, each in four; the
 * last are 2^40 us, 12 days, and more.
 */
#ifndef PERCH_ENGINE_TIMES_H
#define PERCH_ENGINE_TIMES_H

#include "base/base.h"

#define TIMES_PARTS 4u
#define TIMES_CELLS (40u * TIMES_PARTS)

typedef struct times {
    uint64_t n, sum_us;
    uint64_t cells[TIMES_CELLS];
} times;

void times_add(times *t, uint64_t us);
void times_halve(times *t);                                  /* what is older counts half */
uint64_t times_percentile(const times *t, uint32_t percent); /* to an eighth; 0 of none */
uint32_t times_cell(uint64_t us);
uint64_t times_of(uint32_t cell); /* the middle of a cell */

#endif
