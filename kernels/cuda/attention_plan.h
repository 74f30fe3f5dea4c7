/*
 * attention_plan: cuts a batch's attention into pieces of work of like size, on the host, with integers alone; the same plan
 * serves every layer. What a piece is never changes what a token gets (launch.h), only who computes it. C11 and C++17.
 */
#ifndef PERCH_KERNELS_CUDA_ATTENTION_PLAN_H
#define PERCH_KERNELS_CUDA_ATTENTION_PLAN_H

#include "kernels/kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

#define CUDA_BLOCK_TOKENS 64u
#define CUDA_CHUNK_TOKENS 256u /* four blocks */

#define CUDA_NO_PARTIAL UINT32_MAX

/* Query tokens [first_token, first_token + n_tokens) of a row against the chunks [first_chunk, first_chunk + n_chunks), for one KV head. */
typedef struct cuda_attend_work {
    uint32_t row;
    uint32_t kv_head;
    uint32_t first_token; /* of the row's */
    uint32_t n_tokens;
    uint32_t first_chunk;
    uint32_t n_chunks;
    uint32_t partial; /* where its partial results begin, or CUDA_NO_PARTIAL: it sees all chunks and writes the output itself */
    uint32_t reserved;
} cuda_attend_work;

/* The partial results of one row's query tokens and one KV head, to be merged in the order of their chunks. */
typedef struct cuda_merge_work {
    uint32_t row;
    uint32_t kv_head;
    uint32_t first_token;
    uint32_t n_tokens;
    uint32_t partial;  /* of the first chunk */
    uint32_t n_chunks;
    uint32_t reserved[2];
} cuda_merge_work;

typedef struct cuda_attention_sizes {
    uint32_t max_attend, max_merge; /* pieces that a plan has at most */
    size_t partial_bytes;           /* of device memory for partial results */
} cuda_attention_sizes;

/* n_processors: multiprocessors of the device. Depends on the limits alone: the memory plan counts with it. */
void cuda_attention_sizes_get(const kernels_limits *limits, uint32_t n_processors, cuda_attention_sizes *out);

/* Fills attend and merge (arrays of the sizes above, host memory). Never fails: where there is room for no more pieces they are larger. */
void cuda_attention_plan(const kernels_limits *limits, uint32_t n_processors, const kernels_batch *batch,
                         cuda_attend_work *attend, uint32_t *n_attend, cuda_merge_work *merge, uint32_t *n_merge);

#ifdef __cplusplus
}
#endif
#endif
