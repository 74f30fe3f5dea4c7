/*
 * abi: the number by which a backend in a shared object and the engine know that they were built from the same kernels.h. It is
 * computed by the compiler, of the size of each struct that crosses the boundary and of where its fields lie, so that a change
 * there needs nobody to remember it; and of KERNELS_MEANING, which counts what the compiler can't see. C11 and C++17.
 */
#ifndef PERCH_KERNELS_ABI_H
#define PERCH_KERNELS_ABI_H

#include "kernels/kernels.h"

#include <stddef.h>

/* Counts up when a function's arguments, or what something means, is another than before. */
#define KERNELS_MEANING 4u

/* FNV-1a, by words. */
#define ABI_MIX(h, word) (((h) ^ (uint32_t)(word)) * UINT32_C(16777619))
#define ABI_SIZE(h, type) ABI_MIX(h, sizeof(type))
#define ABI_1(h, type, a) ABI_MIX(h, offsetof(type, a))
#define ABI_2(h, type, a, b) ABI_1(ABI_1(h, type, a), type, b)
#define ABI_3(h, type, a, b, c) ABI_1(ABI_2(h, type, a, b), type, c)
#define ABI_4(h, type, a, b, c, d) ABI_2(ABI_2(h, type, a, b), type, c, d)
#define ABI_8(h, type, a, b, c, d, e, f, g, i) ABI_4(ABI_4(h, type, a, b, c, d), type, e, f, g, i)

#define ABI_PERCH_ERROR(h) ABI_2(ABI_SIZE(h, perch_error), perch_error, status, message)
#define ABI_PERCH_SAMPLING(h)                                                                                          \
    ABI_3(ABI_4(ABI_8(ABI_SIZE(h, perch_sampling), perch_sampling, struct_size, temperature, top_p, min_p, typical_p,  \
                      repetition_penalty, frequency_penalty, presence_penalty),                                        \
                perch_sampling, top_k, n_logprobs, seed, logit_bias),                                                  \
          perch_sampling, n_logit_bias, banned_tokens, n_banned_tokens)
#define ABI_KV_COMMAND(h) ABI_1(ABI_4(ABI_SIZE(h, kv_command), kv_command, op, slot, index, page), kv_command, source)
#define ABI_KERNELS_CONFIG(h)                                                                                          \
    ABI_3(ABI_4(ABI_SIZE(h, kernels_config), kernels_config, dtype, n_threads, isa, device), kernels_config,           \
          deterministic, graphs, cache_dir)
#define ABI_KERNELS_KV(h)                                                                                              \
    ABI_2(ABI_4(ABI_SIZE(h, kernels_kv), kernels_kv, mapping, page_bytes, group_bytes, n_pages), kernels_kv, n_slots,  \
          pages_per_slot)
#define ABI_KERNELS_TRANSFER(h) ABI_2(ABI_SIZE(h, kernels_transfer), kernels_transfer, page, frame)
#define ABI_KV_LAYOUT(h)                                                                                               \
    ABI_1(ABI_4(ABI_SIZE(h, kv_layout), kv_layout, n_layers, n_kv_heads, head_dim, element_bytes), kv_layout,          \
          group_bytes)
#define ABI_KV_VIEW(h) ABI_2(ABI_SIZE(h, kv_view), kv_view, base, blocks)
#define ABI_KERNELS_ROW(h)                                                                                             \
    ABI_1(ABI_4(ABI_SIZE(h, kernels_row), kernels_row, kv, first_token, n_tokens, first_position), kernels_row, slot)
#define ABI_KERNELS_BATCH(h)                                                                                           \
    ABI_1(ABI_8(ABI_SIZE(h, kernels_batch), kernels_batch, n_tokens, n_rows, n_logits, tokens, positions, token_row,   \
                rows, logit_tokens),                                                                                   \
          kernels_batch, token_from)
#define ABI_KERNELS_ATTENTION(h)                                                                                       \
    ABI_1(ABI_4(ABI_SIZE(h, kernels_attention), kernels_attention, layout, layer, n_heads, window), kernels_attention, \
          scale)
#define ABI_KERNELS_LIMITS(h)                                                                                          \
    ABI_1(ABI_8(ABI_SIZE(h, kernels_limits), kernels_limits, max_step_tokens, max_batch_size, max_logit_rows,          \
                vocab_size, session_len, n_heads, window, some_have_none),                                             \
          kernels_limits, layout)
#define ABI_KERNELS_CHOICE(h)                                                                                          \
    ABI_1(ABI_8(ABI_SIZE(h, kernels_choice), kernels_choice, logit_row, slot, completion, n_prompt, n_tokens,          \
                sampling, suppressed, n_suppressed),                                                                   \
          kernels_choice, want_logprob)
#define ABI_KERNELS_CHOSEN(h)                                                                                          \
    ABI_3(ABI_4(ABI_SIZE(h, kernels_chosen), kernels_chosen, token, logit, best, n_top), kernels_chosen, total,        \
          top_token, top_logit)
#define ABI_KERNELS_PASS(h) ABI_3(ABI_SIZE(h, kernels_pass), kernels_pass, n_tokens, n_logits, replayed)
#define ABI_KERNELS_ASYNC(h)                                                                                           \
    ABI_4(ABI_8(ABI_SIZE(h, kernels_async), kernels_async, check, prepare, context_bytes, reserve_bytes, reserve,      \
                begin, end, history),                                                                                  \
          kernels_async, can_choose, choose, wait, failed_graphs)
#define ABI_KERNELS_BACKEND(h)                                                                                         \
    ABI_4(ABI_8(ABI_8(ABI_8(ABI_8(ABI_SIZE(h, kernels_backend), kernels_backend, abi, name, async, open, close,        \
                                  describe, act_bytes, free_bytes),                                                    \
                            kernels_backend, alloc, free, upload, download, weight_bytes, weight_create,               \
                            weight_destroy, weight_set_rows),                                                          \
                      kernels_backend, kv_page_granularity, kv_open, kv_close, kv_slot, kv_execute, host_open,         \
                      host_close, host_frame),                                                                         \
                kernels_backend, transfer, transferred, transfer_wait, embed, rmsnorm, linear, linear_f32, head_norm), \
          kernels_backend, rope_write, attention, silu_mul, gather)

/* In parts, since a compiler nests no more than 256 brackets. An enumerator is an int, so the parts lose a bit. */
#define ABI_PART(h) ((int)((h)&UINT32_C(0x7fffffff)))
enum {
    ABI_PART_1 = ABI_PART(ABI_KERNELS_TRANSFER(ABI_KERNELS_KV(ABI_KERNELS_CONFIG(
        ABI_KV_COMMAND(ABI_PERCH_SAMPLING(ABI_PERCH_ERROR(ABI_MIX(UINT32_C(2166136261), KERNELS_MEANING)))))))),
    ABI_PART_2 = ABI_PART(ABI_KERNELS_LIMITS(
        ABI_KERNELS_ATTENTION(ABI_KERNELS_BATCH(ABI_KERNELS_ROW(ABI_KV_VIEW(ABI_KV_LAYOUT((uint32_t)ABI_PART_1))))))),
    ABI_PART_3 =
        ABI_PART(ABI_KERNELS_ASYNC(ABI_KERNELS_PASS(ABI_KERNELS_CHOSEN(ABI_KERNELS_CHOICE((uint32_t)ABI_PART_2)))))
};

#define KERNELS_ABI ABI_KERNELS_BACKEND((uint32_t)ABI_PART_3)

#endif
