/*
 * measure: what a device takes for prefill and for loads, timed on the spot, for a cost model to begin with.
 */
#ifndef PERCH_ENGINE_MEASURE_H
#define PERCH_ENGINE_MEASURE_H

#include "engine/cost.h"
#include "engine/model/model.h"

/* A device with KV memory that nobody uses: nothing is mapped, and its pages and frames may get any content. */
typedef struct measured {
    const kernels_backend *backend;
    kernels_device *device;
    uint64_t (*now_us)(const kernels_device *device); /* the time that it lives by; NULL: the system's */
    model *model;
    uint64_t page_bytes, group_bytes;
    uint32_t n_pages, n_frames;
    uint32_t lane;      /* of the next pass; kernels_async takes them in turn */
    bool all_logits;    /* of every token: then the last layer computes as much as the others */
    double layers_each; /* the time counts so many times: the model has fewer layers than the one that is meant */
} measured;

/*
 * `repeats` passes of n_tokens tokens of one sequence behind first_position others, after one that does not count; tells the
 * model unless it is NULL. *us, if not NULL: the quickest, as it was. Maps and unmaps pages at slot 0.
 */
perch_status measure_prefill(measured *at, uint32_t first_position, uint32_t n_tokens, uint32_t repeats, cost_model *m,
                             double *us, perch_error *err);

/* Loads from the host tier, of single pages and of many: at most some MiB, and a few tens of milliseconds. */
perch_status measure_loads(measured *at, cost_model *m, perch_error *err);

#endif
