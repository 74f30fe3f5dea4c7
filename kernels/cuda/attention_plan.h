/*
 * attention_plan: cuts a batch's attention into pieces of work of like size, on the host, with integers alone; the same plan
 * serves every layer. What a piece is never changes what a token gets (launch.h), only who computes it. C11 and C++17.
 *
 * A query is a (token, head of the KV head's group); query i of a piece is token i / group, head i % group. Pieces are of two
 * kinds, each with a kernel of its own: *small* ones, all queries of a row and KV head where they are few (decode), bound by
 * the memory that K and V come from; and *tall* ones, bound by arithmetic, of which a CTA takes as many queries as K and V are read
 * for at once.
 */
#ifndef PERCH_KERNELS_CUDA_ATTENTION_PLAN_H
#define PERCH_KERNELS_CUDA_ATTENTION_PLAN_H

#include "kernels/kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

#define CUDA_BLOCK_TOKENS 64u
#define CUDA_CHUNK_TOKENS 256u /* four blocks */

#define CUDA_SMALL_QUERIES 16u /* a small piece has at most: the rows of one tensor core operation */

#define CUDA_NO_PARTIAL UINT32_MAX

/* Query tokens [first_token, first_token + n_tokens) of a row against the chunks [first_chunk, first_chunk + n_chunks), for one KV head. */
typedef struct cuda_attend_work {
    uint32_t row;
    uint32_t kv_head;
    uint32_t first_token; /* of the row's */
    uint32_t n_tokens;
    uint32_t first_chunk;
    uint32_t n_chunks;
    uint32_t
        partial; /* where its partial results begin, or CUDA_NO_PARTIAL: it sees all that its tokens see and writes the output itself */
    uint32_t n_small; /* in the first piece of a plan: so many pieces, from that one on, are small; 0 in others */
} cuda_attend_work;

/*
 * Queries of one row and KV head whose partial results are to be merged in the order of their chunks, those that the query sees
 * something of. A result is float [head_dim] output, maximum, sum, 2 unused; `partial` counts results, and that of chunk c and
 * query i is partial + (c - first_chunk) * stride + i.
 */
typedef struct cuda_merge_work {
    uint32_t row;
    uint32_t kv_head;
    uint32_t first_token;
    uint32_t n_tokens; /* as many as make CUDA_SMALL_QUERIES queries, or one */
    uint32_t partial;
    uint32_t stride;
    uint32_t first_chunk; /* the first that a token of the tile sees */
    uint32_t reserved;
} cuda_merge_work;

/* Floats of one partial result. */
#define CUDA_PARTIAL_FLOATS(head_dim) ((head_dim) + 4u)

/* Queries that one tall piece has at most (more where a single token's group is larger). */
#define CUDA_TALL_QUERIES(head_dim) ((head_dim) <= 128u ? 128u : 64u)

typedef struct cuda_attention_sizes {
    uint32_t max_attend, max_merge; /* pieces that a plan has at most */
    size_t partial_bytes;           /* of device memory for partial results */
} cuda_attention_sizes;

/*
 * limits->window is the plan's: its pieces begin where a token with such a window begins to see something, so it serves layers
 * of that window or a smaller one; of 0: all. What lies before costs nothing and has no partial results.
 */

/* n_processors: multiprocessors of the device. Depends on the limits alone: the memory plan counts with it. */
void cuda_attention_sizes_get(const kernels_limits *limits, uint32_t n_processors, cuda_attention_sizes *out);

/* Fills attend and merge (arrays of the sizes above, host memory). Never fails: where there is room for no more pieces they are larger. */
void cuda_attention_plan(const kernels_limits *limits, uint32_t n_processors, const kernels_batch *batch,
                         cuda_attend_work *attend, uint32_t *n_attend, cuda_merge_work *merge, uint32_t *n_merge);

#ifdef __cplusplus
}
#endif
#endif
