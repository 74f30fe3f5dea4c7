/*
 * top_data: the engines that perch top looks at: where their statistics files are, what they say, and how fast that changes.
 */
#ifndef PERCH_TOOLS_TOP_DATA_H
#define PERCH_TOOLS_TOP_DATA_H

#include "perch/perch.h"

#include <stdbool.h>
#include <stddef.h>

#define TOP_FILE_CAP (PERCH_PATH_CAP + 300)

struct top_engine {
    char file[TOP_FILE_CAP];
    perch_snapshot now, before; /* the last two that differ; before.struct_size 0: there is none yet */
    bool seen;                  /* in the last look */
};

/* How fast the counters grew between the last two snapshots; all 0 where there is one alone. */
struct top_rates {
    double prefill_tokens, decode_tokens, requests, evictions, evicted_pages; /* a second */
    double to_host_bytes, to_device_bytes;                                    /* a second */
    double to_disk_bytes, from_disk_bytes;                                    /* a second */
    double step_ms;                                                           /* mean */
    double host_share;                                                        /* of the steps' time, 0..1 */
    double
        hit_ratio; /* of the admissions that had something to find: those that found some of it; NaN: there were none */
    double cached_share; /* of the prompt tokens of that time's admissions and steps: not computed; NaN likewise */
};

struct top_engines {
    char folder[PERCH_PATH_CAP]; /* "": one file, or the engines of one process */
    const char *process;         /* its number, or NULL: all */
    char file[TOP_FILE_CAP];     /* ""; or the one */
    struct top_engine *engines;  /* [n], by name */
    size_t n, cap;
};

/*
 * Which engines: those of a process if word is a number, of a file if it is something else, else (NULL) of the file that the
 * options name, or all.
 */
perch_status top_engines_init(struct top_engines *top, const char *word, const perch_options *options,
                              perch_error *err);
void top_engines_free(struct top_engines *top);

/*
 * Looks anew: engines come and go. E_NOT_FOUND where there is none, with the reason. Of a folder's files those that can't be read are
 * left out, and where not a process was asked for, those of dead ones.
 */
perch_status top_engines_look(struct top_engines *top, perch_error *err);

struct top_rates top_engine_rates(const struct top_engine *engine);

#endif
