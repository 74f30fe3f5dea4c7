/*
 * bench_vary: engine options that a benchmark sets differently from variant to variant, so that one run lays them side by side.
 *
 * Variant 0, the base, has the first value of every key; each of the others has one other value of one key, and else the base's. With
 * `all` there is a variant for every combination of values, the last key's fastest.
 */
#ifndef PERCH_TOOLS_BENCH_VARY_H
#define PERCH_TOOLS_BENCH_VARY_H

#include "perch/perch.h"

#define BENCH_MAX_VARY_KEYS 8
#define BENCH_MAX_VARY_VALUES 16
#define BENCH_VARY_CAP 64       /* of a key or a value, with its 0 */
#define BENCH_VARY_TEXT_CAP 512 /* of them all, as they are written */

struct bench_vary_key {
    char name[BENCH_VARY_CAP]; /* "section.key" */
    char values[BENCH_MAX_VARY_VALUES][BENCH_VARY_CAP];
    size_t n_values; /* at least 2 */
};

struct bench_vary {
    struct bench_vary_key keys[BENCH_MAX_VARY_KEYS];
    size_t n_keys;
    uint32_t all;
};

/* "cache.mapping: vmm, table; engine.graphs: on, off"; "" is no key. E_CONFIG: the message is the reason alone. */
perch_status bench_vary_parse(const char *text, struct bench_vary *out, perch_error *err);

/* 1 where nothing varies. */
size_t bench_vary_n_variants(const struct bench_vary *vary);

/* Sets what the index-th variant sets. E_CONFIG names key and reason. */
perch_status bench_vary_apply(const struct bench_vary *vary, size_t index, perch_options *options, perch_error *err);

/* "cache.mapping=table"; the base, and with `all` every variant, has all of its keys, "" where nothing varies. Into out[cap], cut if it is longer. */
void bench_vary_name(const struct bench_vary *vary, size_t index, char *out, size_t cap);

#endif
