/*
 * kernels: device memory, KV mapping and math behind one table of functions, a *backend*. The CPU backend (kernels/cpu) is
 * always built in; the CUDA backend (kernels/cuda) is a shared object that kernels_cuda loads. Everything is in the order of the
 * calls; on an asynchronous device they are queued in that order, and `download` waits.
 *
 * Batch invariance is the contract of every function on the path to the logits: a token's result is a function of that
 * token's own inputs, to the bit, whatever the other tokens, the number of threads, or how tokens are cut into calls.
 * Concretely: a fixed order of accumulation along K; attention reduces over KV in fixed 64-token blocks counted from
 * position 0, each block's masked entries adding exact zeros.
 *
 * Activations are arrays [n_tokens][width] of the backend's activation type, act_bytes(device) bytes an element; the residual
 * stream, what embed gives and linear accumulates into, is float on every backend. How weights are stored is the backend's own
 * business: a `kernels_weight` is opaque.
 */
#ifndef PERCH_KERNELS_KERNELS_H
#define PERCH_KERNELS_KERNELS_H

#include "base/base.h"
#include "base/kv_command.h"

typedef struct kernels_device kernels_device; /* one device and its queue */
typedef struct kernels_weight kernels_weight; /* a matrix [n_out][n_in] in the backend's own layout */

typedef enum kernels_dtype { KERNELS_F32 = 0, KERNELS_F16 = 1, KERNELS_BF16 = 2 } kernels_dtype;

/* How a matrix is kept. INT8 and INT4: whole numbers with a scale for each 32 inputs of an output. */
typedef enum kernels_weight_format {
    KERNELS_WEIGHT_DTYPE = 0, /* in the device's dtype; GPUs know no other */
    KERNELS_WEIGHT_BF16 = 1,
    KERNELS_WEIGHT_INT8 = 2,
    KERNELS_WEIGHT_INT4 = 3
} kernels_weight_format;

typedef struct kernels_config {
    kernels_dtype
        dtype; /* weights, matrix products' inputs and KV; accumulation is f32 always. CPU: F32, BF16. CUDA: BF16, F16 */
    uint32_t n_threads;    /* CPU: threads that compute, the caller's included; 0 = the CPUs this process may use */
    const char *isa;       /* CPU: "avx512bf16", "avx512", "avx2", "scalar"; NULL = the best there is. Unknown: error */
    uint32_t device;       /* CUDA: index of the GPU */
    bool deterministic;    /* CUDA: a token's result is its own to the bit; the CPU knows nothing else */
    bool graphs;           /* CUDA: steps of decode rows alone are replayed as graphs */
    const char *cache_dir; /* CUDA: where the choice of GEMM algorithms is kept; NULL = nowhere */
} kernels_config;

typedef enum kernels_mapping {
    KERNELS_VMM = 0,  /* pages are mapped into contiguous virtual ranges */
    KERNELS_TABLE = 1 /* pages stay where they are; each slot has a table of its groups' addresses */
} kernels_mapping;

/* KV memory: n_pages physical pages of page_bytes; n_slots slots with pages_per_slot places each. */
typedef struct kernels_kv {
    kernels_mapping mapping;
    uint64_t page_bytes;
    uint64_t group_bytes; /* TABLE: page_bytes is a multiple of it */
    uint32_t n_pages;
    uint32_t n_slots;
    uint32_t pages_per_slot;
} kernels_kv;

/* Which way a page goes between the device and a frame of the host's. */
typedef enum kernels_direction {
    KERNELS_LOAD = 0, /* frame to page */
    KERNELS_STORE = 1 /* page to frame */
} kernels_direction;

#define KERNELS_DIRECTIONS 2u

typedef struct kernels_transfer {
    uint32_t page;
    uint32_t frame;
} kernels_transfer;

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

/*
 * How a kernel finds a sequence's groups: group g lies at blocks[g], or where `blocks` is NULL (mapping = vmm) at
 * base + g * group_bytes. All addresses are the device's, `blocks` itself too.
 */
typedef struct kv_view {
    uint8_t *base;
    uint8_t *const *blocks; /* [n_groups] */
} kv_view;

/* One sequence's part of a step: n_tokens consecutive tokens at positions first_position... */
typedef struct kernels_row {
    kv_view kv;
    uint32_t first_token;    /* index into the packed batch */
    uint32_t n_tokens;       /* >= 1 */
    uint32_t first_position; /* tokens of the sequence that lie before, their KV valid */
    uint32_t slot;           /* where the view came from */
} kernels_row;

#define KERNELS_GIVEN UINT32_MAX

/*
 * A packed batch. All arrays are host memory and the caller's, unchanged until the step's download returns; with
 * kernels_async until `begin` returns.
 */
typedef struct kernels_batch {
    uint32_t n_tokens;
    uint32_t n_rows;
    uint32_t n_logits;
    const int32_t *tokens;        /* [n_tokens] ids, checked by the caller */
    const uint32_t *positions;    /* [n_tokens] */
    const uint32_t *token_row;    /* [n_tokens] which row a token belongs to */
    const kernels_row *rows;      /* [n_rows] */
    const uint32_t *logit_tokens; /* [n_logits] ascending indices of the tokens whose logits are wanted */
    /*
     * kernels_async alone, or NULL: [n_tokens] KERNELS_GIVEN, or i: the token is the one that choice i of the other lane's
     * last `choose` has chosen, tokens[t] does not count. (Where that found none: 0.)
     */
    const uint32_t *token_from;
} kernels_batch;

typedef struct kernels_attention {
    kv_layout layout;
    uint32_t layer;
    uint32_t n_heads; /* query heads, a multiple of n_kv_heads; head h reads kv head h / (n_heads / n_kv_heads) */
    uint32_t window;  /* a token at position p sees p-window+1..p; 0 = all up to p */
    float scale;      /* of q·k */
} kernels_attention;

/* What a step can hold: for the buffers that an asynchronous backend keeps for itself. */
typedef struct kernels_limits {
    uint32_t max_step_tokens;
    uint32_t max_batch_size; /* rows, and slots */
    uint32_t max_logit_rows;
    uint32_t vocab_size;
    uint32_t session_len;
    uint32_t n_heads;
    uint32_t window;     /* the widest of the layers' sliding windows; 0: none has one */
    bool some_have_none; /* window > 0: of the layers */
    kv_layout layout;
} kernels_limits;

/* Which token follows a row; as sampler_input (engine/sampler.h), whose history is on the device. */
typedef struct kernels_choice {
    uint32_t logit_row; /* of the logits */
    uint32_t slot;      /* whose history it is */
    uint32_t completion;
    uint32_t n_prompt;              /* tokens that were given, not generated by this request */
    uint32_t n_tokens;              /* the sequence so far; the token chosen will stand at this position */
    const perch_sampling *sampling; /* borrowed until `choose` returns */
    const int32_t *suppressed;      /* [n_suppressed] may not be chosen; borrowed likewise */
    uint32_t n_suppressed;
    bool want_logprob;
} kernels_choice;

#define KERNELS_MAX_TOP 20u

/* What came of it: the numbers from which sampler_report (engine/sampler.h) computes log-probabilities, as it does on the CPU. */
typedef struct kernels_chosen {
    int32_t token;  /* -1: no token is left */
    float logit;    /* the model's, of that token */
    float best;     /* the row's largest; NaN counts as -inf */
    uint32_t n_top; /* sampling->n_logprobs, at most vocab_size */
    uint64_t total; /* sum over the row in fixed point (base/sampling_math.h); 0 unless log-probabilities are wanted */
    int32_t top_token[KERNELS_MAX_TOP]; /* best first, ties by id */
    float top_logit[KERNELS_MAX_TOP];
} kernels_chosen;

/* What becomes of a product of `linear` and `linear_f32`. */
typedef enum kernels_product {
    KERNELS_PRODUCT_ACT = 0, /* activations */
    KERNELS_PRODUCT_ADD = 1, /* is added to the residual stream */
    KERNELS_PRODUCT_F32 = 2  /* float: logits */
} kernels_product;

#define KERNELS_LANES 2u

/* What `begin` made of a batch: the counts to call the math functions with. */
typedef struct kernels_pass {
    uint32_t
        n_tokens; /* >= the batch's: a graph is made for a few batch sizes, and what lies beyond is not looked at */
    uint32_t n_logits; /* likewise */
    bool replayed;     /* the whole pass is queued already: no math function is to be called */
} kernels_pass;

/*
 * What a backend offers whose queue runs beside the host. A step is: begin, the math functions, end, choose; then the host goes
 * on, and `wait` gives the choices. Steps use the lanes 0, 1, 0, 1, …, so that one is prepared while another runs; a lane is used again
 * when it was waited for. All calls come from one thread at a time. E_DEVICE: the device is done for.
 */
typedef struct kernels_async {
    /* Whether a model of this shape can run at all: E_UNSUPPORTED says what can't. NULL: any can. */
    perch_status (*check)(const kernels_device *device, const kernels_limits *limits, perch_error *err);
    /*
     * Before `reserve`, when weight and bias are what they will be: such a product is to come, with that bias or NULL, of up to
     * max_logit_rows rows for F32, else max_step_tokens. What has to be found out or converted for it is so now or in reserve, and
     * not in a step. A product that nobody has told of is E_INVALID once the device is reserved. NULL: there is nothing to
     * prepare.
     */
    perch_status (*prepare)(kernels_device *device, kernels_weight *weight, kernels_product product, const float *bias,
                            perch_error *err);
    /* Device bytes that opening took, which free_bytes no longer counts: the driver's context and the like. 0: nobody knows. */
    uint64_t (*context_bytes)(const kernels_device *device);
    /* Device bytes that `reserve` takes: batches, attention's partial results, choices and histories, graphs. */
    uint64_t (*reserve_bytes)(const kernels_device *device, const kernels_limits *limits);
    /* Once, before the first begin. E_NOMEM, E_UNSUPPORTED (a shape). */
    perch_status (*reserve)(kernels_device *device, const kernels_limits *limits, perch_error *err);
    /*
     * The batch of the math functions from here to `end`. graph_key: 0, or the same number for passes that differ in nothing but
     * their batch: such a pass may be recorded as it is queued, and replayed the next time.
     */
    perch_status (*begin)(kernels_device *device, uint32_t lane, const kernels_batch *batch, uint64_t graph_key,
                          kernels_pass *pass, perch_error *err);
    perch_status (*end)(kernels_device *device, uint32_t lane, perch_error *err);
    /* Tokens [first, first + n) of the sequence in `slot`, where choose needs what no batch since its admission contained. */
    perch_status (*history)(kernels_device *device, uint32_t slot, uint32_t first, uint32_t n, const int32_t *tokens,
                            perch_error *err);
    /* Whether `choose` takes these parameters; else the host chooses. */
    bool (*can_choose)(const kernels_device *device, const kernels_choice *choice);
    /* Queues n choices (n <= max_batch_size, 0 is fine) from logits: device float [n_logits][vocab_size]. */
    perch_status (*choose)(kernels_device *device, uint32_t lane, const float *logits, const kernels_choice *choices,
                           uint32_t n, perch_error *err);
    /* Waits for the lane's step; *out: its choices, borrowed until the lane's next choose. */
    perch_status (*wait)(kernels_device *device, uint32_t lane, const kernels_chosen **out, perch_error *err);
    /* Passes that were to be replayed and could not be recorded or launched so: they are queued. NULL: there are none. */
    uint64_t (*failed_graphs)(const kernels_device *device);
} kernels_async;

typedef struct kernels_backend {
    uint32_t abi;               /* KERNELS_ABI (kernels/abi.h) */
    const char *name;           /* "cpu" */
    const kernels_async *async; /* NULL: everything is done when a function returns, and the host chooses tokens */

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

    /* --- weights. weight_bytes: what weight_create will take, for the memory plan. E_NOMEM, E_UNSUPPORTED (the shape, the format) */
    uint64_t (*weight_bytes)(const kernels_device *device, uint32_t n_out, uint32_t n_in, kernels_weight_format format);
    perch_status (*weight_create)(kernels_device *device, uint32_t n_out, uint32_t n_in, kernels_weight_format format,
                                  kernels_weight **out, perch_error *err);
    void (*weight_destroy)(kernels_device *device, kernels_weight *weight);
    /*
     * Stores rows [first, first + n) from row-major [n][n_in] host data of the given type (rounded to nearest even). NULL: a
     * device that computes nothing, whose weights have no values.
     */
    perch_status (*weight_set_rows)(kernels_device *device, kernels_weight *weight, uint32_t first, uint32_t n,
                                    kernels_dtype dtype, const void *rows, perch_error *err);

    /*
     * --- KV memory. kv_open takes all of the pages' memory at once. E_INVALID: page_bytes is no multiple of the granularity
     * (VMM) or of group_bytes (TABLE), or already open. E_UNSUPPORTED: the device can't do VMM. E_NO_ROOM, with the figures: the
     * memory is not there, or n_slots * pages_per_slot is more than the system can map (raise page_bytes).
     */
    uint64_t (*kv_page_granularity)(const kernels_device *device); /* of VMM; 0: it can't */
    perch_status (*kv_open)(kernels_device *device, const kernels_kv *kv, perch_error *err);
    void (*kv_close)(kernels_device *device);
    kv_view (*kv_slot)(const kernels_device *device, uint32_t slot);
    /*
     * In order, before what is queued next, and not before what is queued already has done with what is unmapped. Commands that
     * continue one another are fastest side by side. E_DEVICE, or E_INVALID for a number out of range: the mapping is then
     * undefined; the caller gives the engine up.
     */
    perch_status (*kv_execute)(kernels_device *device, const kv_command *commands, size_t n, perch_error *err);

    /*
     * --- the host tier: frames of host memory with room for a page each, page-locked where the device copies faster so.
     * host_open, after kv_open, takes the memory of all at once. E_INVALID: no KV memory, no frames, open already.
     * E_NO_ROOM, with the figures. host_close, which kv_close does too, gives up what is under way: the destinations
     * then have anything.
     */
    perch_status (*host_open)(kernels_device *device, uint32_t n_frames, perch_error *err);
    void (*host_close)(kernels_device *device);
    /* For I/O: at multiples of 4096 bytes, side by side where page_bytes is one. From any thread. */
    uint8_t *(*host_frame)(const kernels_device *device, uint32_t frame);
    /*
     * Queues copies, which run beside the steps: not before what is queued now has done with the pages, in the order of
     * the calls of one direction, and in any against those of the other. Entries whose pages and frames continue one
     * another are one large copy. Neither blocks nor allocates. Until the ticket is done the source stays as it is, and
     * nobody looks at the destination or transfers to it again; what needs a loaded page is queued after that. Tickets
     * count up from 1; that of n = 0 is the newest. E_INVALID: a number out of range, and nothing is queued.
     */
    perch_status (*transfer)(kernels_device *device, kernels_direction direction, const kernels_transfer *list,
                             size_t n, uint64_t *ticket, perch_error *err);
    /* The newest ticket that is done, as all before it are; 0: none. Never blocks. */
    perch_status (*transferred)(kernels_device *device, kernels_direction direction, uint64_t *ticket,
                                perch_error *err);
    /* Sleeps until that ticket is done. */
    perch_status (*transfer_wait)(kernels_device *device, kernels_direction direction, uint64_t ticket,
                                  perch_error *err);

    /*
     * --- math. x, y, … are device buffers of activations; vectors (`gain`, `bias`, `table`) device buffers of float. `batch` is, with
     * kernels_async, the one that `begin` was given last, and counts are those that it made. Only
     * whole groups of KV are reached, from the first to the last one that a token sees: those must be mapped, and what they
     * hold at other positions may be anything, NaN included. E_UNSUPPORTED: head_dim (the CPU takes even ones up to 256).
     */

    /* y[t] = row tokens[t] of weight [vocab][width]. */
    perch_status (*embed)(kernels_device *device, const kernels_weight *weight, const kernels_batch *batch,
                          uint32_t n_tokens, float *y, perch_error *err);
    /* y = x / sqrt(mean(x²) + eps) * gain; rows of `width`. y is no part of x. (Zhang & Sennrich 2019) */
    perch_status (*rmsnorm)(kernels_device *device, const float *x, const float *gain, float eps, uint32_t n_tokens,
                            uint32_t width, void *y, perch_error *err);
    /*
     * y[t][o] = (accumulate ? y[t][o] : 0) + Σ_i weight[o][i] x[t][i] + (bias ? bias[o] : 0). y must not be x. Where it
     * accumulates y is float (the residual stream), else of activations.
     */
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
    /* y[j] = x[logit_tokens[j]], rows of row_bytes, for j < n_logits. */
    perch_status (*gather)(kernels_device *device, const kernels_batch *batch, uint32_t n_logits, const void *x,
                           size_t row_bytes, void *y, perch_error *err);
} kernels_backend;

/* The CPU backend; static. */
const kernels_backend *kernels_cpu(void);

/*
 * The CUDA backend, from libperch_cuda.so.0 beside this library or where the dynamic linker looks; loaded once, never unloaded.
 * E_UNSUPPORTED: the library, the driver or something else that it needs is not there, or it is of another build; says what.
 */
perch_status kernels_cuda(const kernels_backend **out, perch_error *err);

/* What that library exports; NULL for another ABI than its own. */
#define KERNELS_CUDA_SYMBOL "perch_cuda_backend"
typedef const kernels_backend *(*kernels_cuda_fn)(uint32_t abi);

#endif
