/*
 * trace: a recorded stream of requests.
 */
#ifndef PERCH_TOOLS_TRACE_H
#define PERCH_TOOLS_TRACE_H

#include "bench_config.h"

#include "perch/perch.h"

struct trace_request {
    double arrival_s; /* since the first */
    uint32_t prompt_tokens;
    uint32_t completion_tokens;
    size_t first_block; /* in trace.blocks */
    uint32_t n_blocks;  /* of block_tokens each, the last may be partial; 0 = the trace has none */
};

struct trace {
    struct trace_request *requests; /* [n], owned, by arrival */
    size_t n, cap;
    uint64_t *blocks; /* ids: the same id is the same tokens, and the same tokens before it */
    size_t n_blocks, blocks_cap;
    uint32_t block_tokens; /* 0 = the trace has none */
};

/* Reads at most max_requests (0 = all) of a trace. E_IO, E_FORMAT with the file's line. */
perch_status trace_read(struct trace *trace, const char *path, enum bench_trace_format format, size_t max_requests,
                        perch_error *err);

/*
 * Plays it `laps` times, one behind the other, each time with other blocks: after the mean time between requests the first
 * follows on the last. At most max_requests (0 = all) are kept. E_NOMEM.
 */
perch_status trace_lengthen(struct trace *trace, uint32_t laps, size_t max_requests, perch_error *err);
void trace_free(struct trace *trace);

#endif
