/*
 * kernels: device memory, KV mapping and math behind one table of functions, a *backend*. The CPU backend (kernels/cpu) is
 * always built in. Everything is in the order of the calls; on an asynchronous device they are queued in that order, and
 * `download` waits.
 *
 * Batch invariance is the contract of every function on the path to the logits: a token's result is a function of that
 * token's own inputs, to the bit, whatever the other tokens, the number of threads, or how tokens are cut into calls.
 * Concretely: a fixed order of accumulation along K; attention reduces over KV in fixed 64-token blocks counted from
 * position 0, each block's masked entries adding exact zeros.
 *
 * Activations are arrays [n_tokens][width] of the backend's activation type, act_bytes(device) bytes an element. How weights
 * are stored is the backend's own business: a `kernels_weight` is opaque.
 */
#ifndef PERCH_KERNELS_KERNELS_H
#define PERCH_KERNELS_KERNELS_H

#include "base/base.h"
#include "base/kv_command.h"

typedef struct kernels_device kernels_device; /* one device and its queue */
typedef struct kernels_weight kernels_weight; /* a matrix [n_out][n_in] in the backend's own layout */

typedef enum kernels_dtype { KERNELS_F32 = 0, KERNELS_F16 = 1, KERNELS_BF16 = 2 } kernels_dtype;

typedef struct kernels_config {
    kernels_dtype dtype; /* F32 or BF16: weights, matrix products' inputs and KV. Accumulation is f32 always */
    uint32_t n_threads;  /* CPU: threads that compute, the caller's included; 0 = the CPUs this process may use */
    const char *isa;     /* CPU: "avx512bf16", "avx512", "scalar"; NULL = the best there is. Unknown: error */
} kernels_config;

/*
 * Where the KV of (layer, kv head) lies within a group: [layer][kv head][K 16×D | V 16×D], K after RoPE. In which order a run
 * of 16×D has its elements is the backend's own business; a token's K and V are written by rope_write alone.
 */
typedef struct kv_layout {
    uint32_t n_layers;
    uint32_t n_kv_heads;
    uint32_t head_dim;
    uint32_t element_bytes; /* 4 (f32) or 2 (bf16) */
    uint64_t group_bytes;   /* n_layers * n_kv_heads * 2 * 16 * head_dim * element_bytes */
} kv_layout;

/* How a kernel finds a sequence's groups: `blocks` NULL: group g lies at base + g * group_bytes (mapping = vmm). */
typedef struct kv_view {
    uint8_t *base;
    uint8_t *const *blocks; /* [n_groups], for mapping = table */
} kv_view;

/* One sequence's part of a step: n_tokens consecutive tokens at positions first_position... */
typedef struct kernels_row {
    kv_view kv;
    uint32_t first_token;    /* index into the packed batch */
    uint32_t n_tokens;       /* >= 1 */
    uint32_t first_position; /* tokens of the sequence that lie before, their KV valid */
} kernels_row;

/* A packed batch. All arrays are host memory and the caller's, unchanged until the step's download returns. */
typedef struct kernels_batch {
    uint32_t n_tokens;
    uint32_t n_rows;
    const int32_t *tokens;     /* [n_tokens] ids */
    const uint32_t *positions; /* [n_tokens] */
    const uint32_t *token_row; /* [n_tokens] which row a token belongs to */
    const kernels_row *rows;   /* [n_rows] */
} kernels_batch;

typedef struct kernels_attention {
    kv_layout layout;
    uint32_t layer;
    uint32_t n_heads; /* query heads, a multiple of n_kv_heads; head h reads kv head h / (n_heads / n_kv_heads) */
    uint32_t window;  /* a token at position p sees p-window+1..p; 0 = all up to p */
    float scale;      /* of q·k */
} kernels_attention;

typedef struct kernels_backend {
    const char *name; /* "cpu" */

    /* --- device. open: E_UNSUPPORTED (isa), E_NOMEM, E_DEVICE. close(NULL) is fine and frees everything still open */
    perch_status (*open)(const kernels_config *config, kernels_device **out, perch_error *err);
    void (*close)(kernels_device *device);
    /* "cpu avx512bf16, 2 threads"; lives as long as the device */
    const char *(*describe)(const kernels_device *device);
    size_t (*act_bytes)(const kernels_device *device); /* of one activation */
    /* Bytes this process can still take on the device; on the CPU the smallest of MemAvailable and the cgroups' limits. */
    perch_status (*free_bytes)(kernels_device *device, uint64_t *out, perch_error *err);

    /* --- buffers, aligned to 64 bytes at least, zeroed. free(NULL) is fine. upload and download block */
    perch_status (*alloc)(kernels_device *device, size_t bytes, void **out, perch_error *err);
    void (*free)(kernels_device *device, void *buffer);
    perch_status (*upload)(kernels_device *device, void *to, const void *from_host, size_t bytes, perch_error *err);
    perch_status (*download)(kernels_device *device, void *to_host, const void *from, size_t bytes, perch_error *err);

    /* --- weights. weight_bytes: what weight_create will take, for the memory plan. E_NOMEM, E_UNSUPPORTED (the shape) */
    uint64_t (*weight_bytes)(const kernels_device *device, uint32_t n_out, uint32_t n_in);
    perch_status (*weight_create)(kernels_device *device, uint32_t n_out, uint32_t n_in, kernels_weight **out,
                                  perch_error *err);
    void (*weight_destroy)(kernels_device *device, kernels_weight *weight);
    /* Stores rows [first, first + n) from row-major [n][n_in] host data of the given type (rounded to nearest even). */
    perch_status (*weight_set_rows)(kernels_device *device, kernels_weight *weight, uint32_t first, uint32_t n,
                                    kernels_dtype dtype, const void *rows, perch_error *err);

    /*
     * --- KV memory: n_pages physical pages of page_bytes; n_slots virtual ranges of pages_per_slot places. kv_open takes all
     * of the pages' memory at once. E_INVALID: page_bytes is no multiple of the granularity, or already open. E_NO_ROOM, with
     * the figures: the memory is not there, or n_slots * pages_per_slot is more than the system can map (raise page_bytes).
     */
    uint64_t (*kv_page_granularity)(const kernels_device *device);
    perch_status (*kv_open)(kernels_device *device, uint64_t page_bytes, uint32_t n_pages, uint32_t n_slots,
                            uint32_t pages_per_slot, perch_error *err);
    void (*kv_close)(kernels_device *device);
    uint8_t *(*kv_slot_base)(const kernels_device *device, uint32_t slot);
    /*
     * In order; commands that continue one another are fastest side by side. E_DEVICE, or E_INVALID for a number out of
     * range: the mapping is then undefined; the caller gives the engine up.
     */
    perch_status (*kv_execute)(kernels_device *device, const kv_command *commands, size_t n, perch_error *err);

    /*
     * --- math. x, y, … are device buffers of activations; vectors (`gain`, `bias`, `table`) device buffers of float. Only
     * whole groups of KV are reached, from the first to the last one that a token sees: those must be mapped, and what they
     * hold at other positions may be anything, NaN included. E_UNSUPPORTED: head_dim (the CPU takes even ones up to 256).
     */

    /* y[t] = row tokens[t] of weight [vocab][width]. Tokens are host memory, checked by the caller. */
    perch_status (*embed)(kernels_device *device, const kernels_weight *weight, const int32_t *tokens,
                          uint32_t n_tokens, void *y, perch_error *err);
    /* y = x / sqrt(mean(x²) + eps) * gain; rows of `width`. y may be x. (Zhang & Sennrich 2019) */
    perch_status (*rmsnorm)(kernels_device *device, const void *x, const float *gain, float eps, uint32_t n_tokens,
                            uint32_t width, void *y, perch_error *err);
    /* y[t][o] = (accumulate ? y[t][o] : 0) + Σ_i weight[o][i] x[t][i] + (bias ? bias[o] : 0). y must not be x. */
    perch_status (*linear)(kernels_device *device, const kernels_weight *weight, const float *bias, const void *x,
                           uint32_t n_tokens, void *y, bool accumulate, perch_error *err);
    /* The same with f32 results, for logits: y is a device buffer of float [n_tokens][n_out]. */
    perch_status (*linear_f32)(kernels_device *device, const kernels_weight *weight, const void *x, uint32_t n_tokens,
                               float *y, perch_error *err);
    /* RMSNorm of each head's head_dim values in place: `n_heads` heads from x + offset (elements), rows `stride` apart. */
    perch_status (*head_norm)(kernels_device *device, void *x, uint32_t n_tokens, uint32_t stride, uint32_t offset,
                              uint32_t n_heads, uint32_t head_dim, const float *gain, float eps, perch_error *err);
    /*
     * qkv: [n_tokens][(n_heads + 2 n_kv_heads) * D]. Rotates q in place and k into the KV cache, and writes v there, at each
     * token's position. table: float [positions][D/2][2] (cos, sin) with any attention factor multiplied in; the pair of
     * element i is i + D/2 (Hugging Face's order).
     */
    perch_status (*rope_write)(kernels_device *device, const kernels_batch *batch, const kernels_attention *attention,
                               const float *table, void *qkv, perch_error *err);
    /* out[t] [n_heads * D] = softmax(scale q·K) V over the token's visible positions, its own included. q as above. */
    perch_status (*attention)(kernels_device *device, const kernels_batch *batch, const kernels_attention *attention,
                              const void *qkv, void *out, perch_error *err);
    /* y[t][i] = silu(gate_up[t][i]) * gate_up[t][width + i]; gate_up: [n_tokens][2 * width]. */
    perch_status (*silu_mul)(kernels_device *device, const void *gate_up, uint32_t n_tokens, uint32_t width, void *y,
                             perch_error *err);
    /* y[j] = x[indices[j]] (rows of `width`); indices are host memory. */
    perch_status (*gather)(kernels_device *device, const void *x, const uint32_t *indices, uint32_t n, uint32_t width,
                           void *y, perch_error *err);
} kernels_backend;

/* The CPU backend; static. */
const kernels_backend *kernels_cpu(void);

#endif
