/*
 * launch: what the host code of the CUDA backend (C) asks of its kernels (CUDA C++). Each function queues work on a stream and
 * returns the launch's status. Pointers are device memory unless said otherwise, aligned to 16 bytes at least; "act" is the
 * backend's type, bf16 or fp16 (`dtype`), accumulation is f32. What a token gets depends on that token's inputs alone, to the
 * bit, whatever else is in the launch: no atomics on floats, fixed orders of addition, and products and sums that must come
 * out the same in two kernels are written with __fmul_rn, __fadd_rn and __fmaf_rn, which the compiler does not contract.
 *
 * Counts of a step lie in device memory (cuda_counts), so that a recorded graph serves every batch up to the size that
 * it was recorded for: grids are made for the n_tokens that the function is given, and a thread whose token, row or piece of work is
 * beyond the batch's counts does nothing.
 */
#ifndef PERCH_KERNELS_CUDA_LAUNCH_H
#define PERCH_KERNELS_CUDA_LAUNCH_H

#include "kernels/kernels.h"

#include <cuda_runtime_api.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct cuda_counts {
    uint32_t n_tokens, n_rows, n_logits;
    uint32_t n_attend; /* pieces of attention work, see attention_plan.h */
    uint32_t n_merge;
    uint32_t
        tickets[2]; /* attention's own: the next piece to be taken; 0 at upload, and again after each cuda_attention */
    uint32_t reserved;
} cuda_counts;

/*
 * A step's batch on the device: one lane's buffers, at fixed addresses. kernels_row, kernels_batch: kernels/kernels.h; a row's kv
 * holds device addresses. One transfer from pinned host memory fills it all, then cuda_feed puts in the tokens that only the device
 * knows.
 */
typedef struct cuda_batch {
    cuda_counts *counts;
    int32_t *tokens;              /* [max_step_tokens] */
    const uint32_t *token_from;   /* [max_step_tokens] */
    const uint32_t *positions;    /* [max_step_tokens] */
    const uint32_t *token_row;    /* [max_step_tokens] */
    const kernels_row *rows;      /* [max_batch_size] */
    const uint32_t *row_slot;     /* [max_batch_size] */
    const uint32_t *logit_tokens; /* [max_logit_rows] */
} cuda_batch;

/*
 * tokens[t] = chosen[token_from[t]].token (0 where that is -1) for the tokens that are not KERNELS_GIVEN; then
 * history[slot of t's row][positions[t]] = tokens[t] for all. history: int32 [slots][session_len].
 */
cudaError_t cuda_feed(cudaStream_t stream, const cuda_batch *batch, uint32_t n_tokens, const kernels_chosen *chosen,
                      int32_t *history, uint32_t session_len);

/* x[t] = row tokens[t] of weight, act [vocab][width]; x float [n_tokens][width]. */
cudaError_t cuda_embed(cudaStream_t stream, kernels_dtype dtype, const cuda_batch *batch, uint32_t n_tokens,
                       const void *weight, uint32_t width, float *x);

/* y = x / sqrt(mean(x²) + eps) * gain; x float, y act, both [n_tokens][width]; any width. */
cudaError_t cuda_rmsnorm(cudaStream_t stream, kernels_dtype dtype, const float *x, const float *gain, float eps,
                         uint32_t n_tokens, uint32_t width, void *y);

/* RMSNorm of each head's head_dim values in place: heads from x + offset (elements), rows `stride` elements apart. */
cudaError_t cuda_head_norm(cudaStream_t stream, kernels_dtype dtype, void *x, uint32_t n_tokens, uint32_t stride,
                           uint32_t offset, uint32_t n_heads, uint32_t head_dim, const float *gain, float eps);

/*
 * As kernels_backend.rope_write. In a group's run of one (layer, head), K is [16][D] and V is [16][D], row-major, act. table: float
 * [positions][D/2][2]. qkv: act [n_tokens][(n_heads + 2 n_kv_heads) * D]; D even.
 */
cudaError_t cuda_rope_write(cudaStream_t stream, kernels_dtype dtype, const cuda_batch *batch, uint32_t n_tokens,
                            const kernels_attention *attention, const float *table, void *qkv);

/* y[t][i] = silu(gate_up[t][i]) * gate_up[t][width + i], act. */
cudaError_t cuda_silu_mul(cudaStream_t stream, kernels_dtype dtype, const void *gate_up, uint32_t n_tokens,
                          uint32_t width, void *y);

/* y[j] = x[logit_tokens[j]], rows of row_bytes, for j < n. Any alignment of row_bytes. */
cudaError_t cuda_gather(cudaStream_t stream, const cuda_batch *batch, uint32_t n, const void *x, size_t row_bytes,
                        void *y);

/* y[t][i] += bias[i]; y act, or float where y_is_float. */
cudaError_t cuda_add_bias(cudaStream_t stream, kernels_dtype dtype, const float *bias, uint32_t n_tokens,
                          uint32_t width, void *y, bool y_is_float);

/* to[i] = from[i], rounded to nearest even; from: `from_dtype` (F32, F16 or BF16), to: act. */
cudaError_t cuda_convert(cudaStream_t stream, kernels_dtype from_dtype, const void *from, kernels_dtype dtype, size_t n,
                         void *to);

/*
 * The product for few rows, where weights are read once and bandwidth is all: y[t][o] (+)= Σ_i w[o][i] x[t][i] (+ bias[o]).
 * w act [n_out][n_in], x act [n_tokens][n_in], y as in cuda_add_bias; n_tokens <= CUDA_SMALL_GEMM_ROWS, n_in a multiple of 8, else
 * cudaErrorInvalidValue. The order of addition along n_in depends on n_in alone.
 */
#define CUDA_SMALL_GEMM_ROWS 16u
cudaError_t cuda_small_gemm(cudaStream_t stream, kernels_dtype dtype, const void *w, uint32_t n_out, uint32_t n_in,
                            const void *x, uint32_t n_tokens, const float *bias, bool accumulate, void *y,
                            bool y_is_float);

/* ---------------------------------------------------------------- attention */

/* Head dims that a kernel exists for: multiples of 8 up to 256. */
bool cuda_attention_supports(uint32_t head_dim);

/*
 * kernels_backend.attention: out act [n_tokens][n_heads * D] from q in qkv (after cuda_rope_write) and the cache. work, partials: what
 * attention_plan.h says and sizes; `max_attend` and `max_merge` size the grids (the counts on the device say how much there is): for a
 * recorded graph the limits' numbers, else the plan's own. max_row_tokens: no row of the batch has more tokens (1: decode alone,
 * which saves a launch).
 *
 * The reduction is one and the same for every token, in prefill and decode: positions fall into blocks of 64 and chunks of four
 * blocks, counted from position 0. Each block has a softmax of its own (maximum m, sum l, output o); a chunk merges its
 * blocks in order, a token its chunks in order. Merge of (M, L, O) with (m, l, o): N = max(M, m), a = 2^(M - N), b = 2^(m - N);
 * M = N, L = L a + l b, O = O a + o b, where a block or chunk of which the token sees nothing leaves all as it was. Blocks that
 * no token of a piece of work sees may be left out, since they add nothing.
 */
struct cuda_attend_work;
struct cuda_merge_work;
cudaError_t cuda_attention(cudaStream_t stream, kernels_dtype dtype, const cuda_batch *batch, uint32_t max_row_tokens,
                           const kernels_attention *attention, const void *qkv, void *out,
                           const struct cuda_attend_work *attend, uint32_t max_attend,
                           const struct cuda_merge_work *merge, uint32_t max_merge, float *partials);

/* ----------------------------------------------------------------- sampling */

/*
 * One row's choice, as the device wants it; cuda_choice_fill (choice.h) makes it of a kernels_choice. The algorithm and its
 * numbers are engine/sampler.c's: integer sums and correctly rounded operations (base/sampling_math.h), so the choice is the same.
 */
typedef struct cuda_choice {
    uint32_t logit_row;
    uint32_t slot;
    uint32_t completion;
    uint32_t n_prompt;
    uint32_t n_tokens;
    uint32_t n_top;
    uint32_t top_k; /* 0 = all */
    uint32_t first_ban;
    uint32_t n_bans; /* tokens that may not be chosen: bans[first_ban...] */
    uint32_t needs;  /* CUDA_CHOICE_* */
    uint64_t seed;
    uint64_t top_p, min_p;      /* as sampling_share */
    double inverse_temperature; /* 0: greedy */
    double repetition_penalty, frequency_penalty, presence_penalty;
} cuda_choice;

/* What a choice has need of, beside the row's largest logit. */
enum {
    CUDA_CHOICE_MARKS = 1u << 0,   /* penalties or bans: logits are adjusted */
    CUDA_CHOICE_DRAW = 1u << 1,    /* temperature: a draw by weights */
    CUDA_CHOICE_FRONT = 1u << 2,   /* top-k or top-p narrow the draw down */
    CUDA_CHOICE_LOGPROBS = 1u << 3 /* the row's total, and the n_top best */
};

/* Device bytes of scratch memory for n choices. */
size_t cuda_choose_scratch_bytes(uint32_t max_choices, uint32_t vocab_size);

/*
 * chosen[i] for i < n from logits float [rows][vocab_size] (unchanged). choices, bans (int32), history (int32 [slots][session_len]),
 * chosen: device. needs: the union of the choices'; what is not in it is not launched. scratch is zeroed once by the caller, then for
 * calls in one stream; what a call needs zeroed the one before it left so. cudaErrorInvalidValue: vocab_size is 0 or above
 * SAMPLING_MAX_VOCAB.
 */
cudaError_t cuda_choose(cudaStream_t stream, const float *logits, uint32_t vocab_size, const cuda_choice *choices,
                        const int32_t *bans, uint32_t n, uint32_t needs, const int32_t *history, uint32_t session_len,
                        void *scratch, kernels_chosen *chosen);

#ifdef __cplusplus
}
#endif
#endif
