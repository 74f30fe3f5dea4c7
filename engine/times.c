/* times: see times.h. */
#include "engine/times.h"

uint32_t times_cell(uint64_t us) {
    if (us < TIMES_PARTS) {
        return (uint32_t)us; /* the first octaves have less than four values each */
    }
    uint32_t octave = 63u - (uint32_t)__builtin_clzll(us);
    uint32_t part = (uint32_t)(us >> (octave - 2)) & (TIMES_PARTS - 1);
    uint32_t cell = (octave - 1) * TIMES_PARTS + part;
    return cell < TIMES_CELLS ? cell : TIMES_CELLS - 1;
}

uint64_t times_of(uint32_t cell) {
    if (cell < TIMES_PARTS) {
        return cell;
    }
    uint32_t octave = cell / TIMES_PARTS + 1;
    uint64_t width = UINT64_C(1) << (octave - 2);
    return (TIMES_PARTS + cell % TIMES_PARTS) * width + width / 2;
}

void times_add(times *t, uint64_t us) {
    t->cells[times_cell(us)]++;
    t->n++;
    t->sum_us += us;
}

void times_halve(times *t) {
    t->n = 0;
    t->sum_us /= 2;
    for (uint32_t i = 0; i < TIMES_CELLS; i++) {
        t->cells[i] /= 2;
        t->n += t->cells[i];
    }
}

uint64_t times_percentile(const times *t, uint32_t percent) {
    uint64_t below = 0, rank = t->n * percent / 100;
    uint32_t cell = 0;
    while (cell + 1 < TIMES_CELLS && below + t->cells[cell] <= rank) {
        below += t->cells[cell++];
    }
    return t->n ? times_of(cell) : 0;
}
