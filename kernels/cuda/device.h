/*
 * The CUDA backend's device and the functions that fill in its table, file by file.
 *
 * Streams. Everything that computes is queued on `compute`, in the order of the calls. A lane's batch and choices go to the
 * device on `upload` and its results come back on `download`, so that the GPU does not wait for the bus; events order the three.
 * The host tier has a stream for each direction (transfer.c).
 *
 * Threads. One thread at a time calls the table; cuda_enter makes the device that thread's current one, and it stays so. The math
 * functions leave that to the calls before them. The mapping thread (mapper.c) is the only other.
 */
#ifndef PERCH_KERNELS_CUDA_DEVICE_H
#define PERCH_KERNELS_CUDA_DEVICE_H

#include "kernels/cuda/attention_plan.h"
#include "kernels/cuda/launch.h"
#include "kernels/frames.h"

#include <cublasLt.h>
#include <cuda.h>

#if defined(CUDART_VERSION) && CUDART_VERSION < 12000
#error "perch needs CUDA 12 or later"
#endif

/* What cuBLASLt may use between the kernels of one product; before that, where rows of weights are converted. */
#define CUDA_WORKSPACE_BYTES ((size_t)32 << 20)
/* Pinned memory through which data comes and goes, and the largest piece of it. */
#define CUDA_STAGING_BYTES ((size_t)16 << 20)
#define CUDA_PIECE_BYTES (CUDA_STAGING_BYTES / 4)
#define CUDA_STAGING_FENCES 8u

typedef struct cuda_buffer {
    void *data;
    struct cuda_buffer *next;
} cuda_buffer;

/* --- memory.c */

/*
 * A ring of pinned memory. Positions count bytes from the beginning of time; a fence says up to which position the GPU is done
 * once its event has come.
 */
typedef struct cuda_staging {
    uint8_t *data; /* [CUDA_STAGING_BYTES] */
    uint64_t head; /* pieces are given out from here */
    uint64_t tail; /* what lies before is free again */
    uint64_t n_fences, n_passed;
    uint64_t fenced; /* the last fence's position */
    uint64_t position[CUDA_STAGING_FENCES];
    cudaEvent_t event[CUDA_STAGING_FENCES];
} cuda_staging;

/* --- gemm.c, tune.c, tune_file.c */

/* What becomes of a product: kernels_product. */
typedef enum gemm_kind {
    GEMM_ACT = KERNELS_PRODUCT_ACT,
    GEMM_ADD = KERNELS_PRODUCT_ADD,
    GEMM_F32 = KERNELS_PRODUCT_F32,
    GEMM_KINDS = 3
} gemm_kind;

/* Rows 1, 2, 3..4, 5..8, …: each bucket has a plan for its largest number of rows. */
#define GEMM_BUCKETS 24u
#define GEMM_MAX_ROWS (1u << (GEMM_BUCKETS - 1))

typedef enum gemm_path { GEMM_UNKNOWN = 0, GEMM_LT = 1, GEMM_SMALL = 2 } gemm_path;
typedef enum gemm_bias { GEMM_BIAS_UNKNOWN = 0, GEMM_BIAS_EPILOGUE = 1, GEMM_BIAS_SEPARATE = 2 } gemm_bias;

typedef struct gemm_plan {
    gemm_path path;
    gemm_bias bias; /* how a bias is added */
    cublasLtMatmulAlgo_t algo;
} gemm_plan;

/* What weights of one shape share. Products are column-major to cuBLASLt: y^T [n_out × n] = w^T [n_in × n_out]^T x^T [n_in × n]. */
typedef struct gemm_shape {
    uint32_t n_out;
    uint32_t n_in;
    cublasLtMatrixLayout_t w;
    cublasLtMatrixLayout_t x;                  /* columns: the rows of a call */
    cublasLtMatrixLayout_t y[GEMM_KINDS];      /* likewise */
    gemm_plan plans[GEMM_KINDS][GEMM_BUCKETS]; /* deterministic: [kind][0] alone */
    bool is_to_come[GEMM_KINDS];               /* as cuda_prepare was told */
    struct gemm_shape *next;
} gemm_shape;

/* A plan as the file has it. */
typedef struct gemm_record {
    uint32_t n_out, n_in, bucket;
    uint8_t dtype, deterministic, kind, path;
    cublasLtMatmulAlgo_t algo;
} gemm_record;

typedef struct gemm_records {
    gemm_record *list;
    size_t n, cap;
} gemm_records;

typedef struct cuda_gemm {
    cublasLtHandle_t lt;
    cublasLtMatmulDesc_t plain, with_bias;
    cublasLtMatmulPreference_t preference;
    uint8_t *workspace; /* [CUDA_WORKSPACE_BYTES] */
    gemm_shape *shapes;
    gemm_records records;
    char *path;    /* of the file of records, or NULL */
    char key[400]; /* what the records hold for */
} cuda_gemm;

struct kernels_weight {
    uint8_t *data;           /* act [n_out][n_in], then `bias` */
    uint8_t *bias;           /* act [n_out]: the one that was prepared, as cuBLASLt wants it */
    const float *float_bias; /* that one, or NULL */
    gemm_shape *shape;
    struct kernels_weight *next;
};

/* --- kv.c, changes.c, mapper.c */

#define CUDA_NO_PAGE UINT32_MAX

/* Places of all slots: slot * pages_per_slot + index. */
typedef struct cuda_change {
    uint32_t place;
    uint32_t page; /* that it is to have, or CUDA_NO_PAGE */
} cuda_change;

typedef struct cuda_changes {
    uint32_t *pages; /* [n_places] of those that are noted */
    bool *noted;     /* [n_places] */
    uint32_t *queue; /* [n_places] a ring: the n that are noted, from `first` on */
    size_t n_places, first, n;
} cuda_changes;

typedef struct cuda_mapper cuda_mapper;

typedef struct cuda_kv {
    bool is_open;
    kernels_kv shape;
    CUmemGenericAllocationHandle
        *pages; /* VMM: [n_pages]; the first n_created exist, n_viewed are in the pool's view */
    uint32_t n_created;
    uint32_t n_viewed;
    CUdeviceptr pool;  /* all pages side by side: for copies, and with TABLE for everything */
    CUdeviceptr slots; /* VMM: the slots' ranges side by side */
    size_t pool_bytes, slots_bytes;
    uint32_t groups_per_page;
    uint8_t **tables;     /* TABLE: device [n_slots][pages_per_slot * groups_per_page] */
    cuda_changes changes; /* TABLE: what the tables lack */
    cuda_mapper *mapper;  /* VMM */
} cuda_kv;

/* --- transfer.c */

/* Tickets with events of their own. Those of older ones were recorded anew: to wait for a later ticket is as good. */
#define CUDA_TICKETS 64u

typedef struct cuda_way {
    cudaStream_t stream;
    cudaEvent_t queued;             /* on `compute`: what the copies come after */
    cudaEvent_t done[CUDA_TICKETS]; /* of ticket t: [t % CUDA_TICKETS] */
    uint64_t newest, passed;        /* tickets: queued, and known to be done */
} cuda_way;

typedef struct cuda_host {
    bool is_open;
    frames_shape shape;
    uint8_t *memory; /* pinned, as CUDA gave it */
    uint8_t *frames; /* in it */
    cuda_way ways[KERNELS_DIRECTIONS];
} cuda_host;

/* --- step.c, reserve.c */

/* Plans of attention that a pass may have: for layers that see all, and for those with a window. */
#define CUDA_MAX_PLANS 2u

/* How many of everything a lane's block has room for, and where it lies. */
typedef struct lane_room {
    uint32_t tokens, rows, logits, attend[CUDA_MAX_PLANS], merge[CUDA_MAX_PLANS];
} lane_room;

typedef struct lane_layout {
    size_t counts[CUDA_MAX_PLANS]; /* of each plan: they differ in its pieces; the first is the batch's */
    size_t tokens, token_from, positions, token_row, rows, row_slot, logit_tokens;
    size_t attend[CUDA_MAX_PLANS], merge[CUDA_MAX_PLANS];
    size_t bytes;
} lane_layout;

typedef enum lane_state { LANE_FREE = 0, LANE_BEGUN = 1, LANE_QUEUED = 2 } lane_state;

/* A batch's buffers: pinned ones that the host fills and device ones of the same layout, and its choices'. */
typedef struct cuda_lane {
    uint8_t *host_block, *block;
    uint8_t *host_choices, *choices;      /* cuda_choice [n], then the bans of all */
    kernels_chosen *host_chosen, *chosen; /* [max_batch_size] */
    uint32_t n_chosen;
    lane_state state;
    uint64_t step;        /* its number, counted from 1 */
    cudaEvent_t uploaded; /* its batch, then its choices are on the device */
    cudaEvent_t computed; /* its choices are made */
    cudaEvent_t done;     /* and here */
} cuda_lane;

typedef struct cuda_pass_plan {
    uint32_t window; /* layers of that one or a smaller one; 0: all */
    cuda_counts *counts;
    const cuda_attend_work *attend;
    const cuda_merge_work *merge;
    uint32_t max_attend, max_merge;
} cuda_pass_plan;

/* The pass between begin and end. */
typedef struct cuda_pass {
    bool open;
    uint32_t n_tokens, n_logits;
    uint32_t max_row_tokens; /* 1: decode rows alone */
    cuda_batch batch;
    cuda_pass_plan plans[CUDA_MAX_PLANS];
    uint32_t n_plans;
} cuda_pass;

/* --- graph.c */

#define CUDA_MAX_GRAPHS 64u

typedef struct cuda_graph_key {
    uint64_t key;
    uint32_t lane, n_tokens, n_logits;
} cuda_graph_key;

typedef struct cuda_graph {
    cuda_graph_key key;
    cudaGraphExec_t exec;
} cuda_graph;

/*
 * While a pass is recorded each of its kernels is queued twice: on `compute`, where it runs, and on `stream`, which is being
 * captured and runs nothing. So a recording that fails costs the pass nothing.
 */
typedef struct cuda_recorder {
    bool wanted;  /* passes are to be replayed */
    bool enabled; /* and recorded: as long as that succeeds and there is room for graphs */
    bool on;
    bool failed;
    cudaStream_t stream;
    cuda_graph_key key;
    cuda_graph graphs[CUDA_MAX_GRAPHS];
    uint32_t n_graphs;
    uint64_t bytes;    /* that the graphs were seen to take */
    uint64_t n_failed; /* that could not be made, or launched */
} cuda_recorder;

struct kernels_device {
    int ordinal;
    CUdevice handle;
    kernels_dtype dtype;
    bool deterministic;
    uint32_t n_processors;
    uint64_t page_granularity; /* 0: no virtual memory management */
    uint64_t context_bytes;    /* 0: not known */
    perch_error fault;         /* E_DEVICE, once the GPU can't be used any more */
    cudaStream_t compute, upload, download;
    cuda_staging staging;
    cuda_gemm gemm;
    cuda_buffer *buffers;
    kernels_weight *weights;
    cuda_kv kv;
    cuda_host host;

    bool reserved;
    kernels_limits limits;
    uint8_t *arena, *host_arena; /* what reserve took: device memory, pinned memory */
    cuda_lane lanes[KERNELS_LANES];
    uint64_t n_steps;       /* that have begun */
    cuda_merge_work *merge; /* host scratch: a plan's merges before their place in the block is known */
    float *partials;
    int32_t *history; /* [max_batch_size][session_len] */
    void *choose_scratch;
    cuda_pass pass;
    cuda_recorder recorder;

    char name[256];
    char description[320];
};

/* Everything but f32 has two bytes. */
#define CUDA_ACT_BYTES ((size_t)2)

static inline size_t cuda_align(size_t bytes) { return (bytes + 255) / 256 * 256; }

/*
 * Queues `call`, an expression in `stream`, on the compute stream, and on the recorder's while a pass is recorded. status: the
 * call's, of type cudaError_t.
 */
#define CUDA_QUEUE(device, status, call)                                                                               \
    do {                                                                                                               \
        cudaStream_t stream = (device)->compute;                                                                       \
        (status) = (call);                                                                                             \
        if ((device)->recorder.on && !(device)->recorder.failed && (status) == cudaSuccess) {                          \
            stream = (device)->recorder.stream;                                                                        \
            (device)->recorder.failed = (call) != cudaSuccess;                                                         \
        }                                                                                                              \
    } while (0)

/* device.c. what: "a copy to the GPU". E_NOMEM is the GPU's memory, E_DEVICE is for good; success: PERCH_OK. */
perch_status cuda_check(kernels_device *device, cudaError_t status, const char *what, perch_error *err);
perch_status cuda_check_driver(kernels_device *device, CUresult status, const char *what, perch_error *err);
perch_status cuda_check_lt(kernels_device *device, cublasStatus_t status, const char *what, perch_error *err);
/* The fault, if there is one. cuda_enter: and makes the device current. */
perch_status cuda_ready(const kernels_device *device, perch_error *err);
perch_status cuda_enter(kernels_device *device, perch_error *err);
/* An event that nobody takes the time of and that a thread sleeps on. */
cudaError_t cuda_event_create(cudaEvent_t *out);

/* context.c. Bytes of the GPU's memory that are in use, by anybody; false: nobody knows. Needs no context. */
bool cuda_used_bytes(const struct cudaDeviceProp *prop, uint64_t *used);

/* memory.c */
perch_status cuda_staging_open(kernels_device *device, perch_error *err);
void cuda_staging_close(kernels_device *device);
/* bytes <= CUDA_PIECE_BYTES, aligned to 256. What is to be done with it is queued on `compute` before the next is asked for. */
perch_status cuda_staging_take(kernels_device *device, size_t bytes, void **out, perch_error *err);
/* A fence behind what is queued; wait for it. */
perch_status cuda_staging_fence(kernels_device *device, uint64_t *fence, perch_error *err);
perch_status cuda_staging_wait(kernels_device *device, uint64_t fence, perch_error *err);
/* Queues a copy to the device, through staging; from_host is the caller's again on return. */
perch_status cuda_send(kernels_device *device, void *to, const void *from_host, size_t bytes, perch_error *err);
perch_status cuda_alloc(kernels_device *device, size_t bytes, void **out, perch_error *err);
void cuda_free(kernels_device *device, void *buffer);
void cuda_free_all(kernels_device *device);
perch_status cuda_upload(kernels_device *device, void *to, const void *from_host, size_t bytes, perch_error *err);
perch_status cuda_download(kernels_device *device, void *to_host, const void *from, size_t bytes, perch_error *err);
perch_status cuda_free_bytes(kernels_device *device, uint64_t *out, perch_error *err);
/* cudaMalloc with an error that has figures. */
perch_status cuda_take(kernels_device *device, size_t bytes, const char *what, void **out, perch_error *err);

/* weights.c */
uint64_t cuda_weight_bytes(const kernels_device *device, uint32_t n_out, uint32_t n_in, kernels_weight_format format);
perch_status cuda_weight_create(kernels_device *device, uint32_t n_out, uint32_t n_in, kernels_weight_format format,
                                kernels_weight **out, perch_error *err);
void cuda_weight_destroy(kernels_device *device, kernels_weight *weight);
void cuda_weight_destroy_all(kernels_device *device);
perch_status cuda_weight_set_rows(kernels_device *device, kernels_weight *weight, uint32_t first, uint32_t n,
                                  kernels_dtype dtype, const void *rows, perch_error *err);

/* gemm.c */
perch_status cuda_gemm_open(kernels_device *device, const char *cache_dir, perch_error *err);
void cuda_gemm_close(kernels_device *device);
/* The shape's layouts and plans, made at its first weight; they live as long as the device. */
perch_status cuda_gemm_shape(kernels_device *device, uint32_t n_out, uint32_t n_in, gemm_shape **out, perch_error *err);
uint32_t cuda_gemm_bucket(uint32_t n_rows);
void cuda_gemm_set_rows(gemm_shape *shape, gemm_kind kind, uint32_t n_rows);
/* y = or += w x, by an algorithm, on a stream; bias NULL or as the kind's y. */
cublasStatus_t cuda_gemm_multiply(kernels_device *device, cudaStream_t stream, gemm_shape *shape, gemm_kind kind,
                                  const cublasLtMatmulAlgo_t *algo, const void *w, const void *x, uint32_t n_rows,
                                  const void *bias, void *y);
perch_status cuda_prepare(kernels_device *device, kernels_weight *weight, kernels_product product, const float *bias,
                          perch_error *err);
perch_status cuda_linear(kernels_device *device, const kernels_weight *weight, const float *bias, const void *x,
                         uint32_t n_tokens, void *y, bool accumulate, perch_error *err);
perch_status cuda_linear_f32(kernels_device *device, const kernels_weight *weight, const void *x, uint32_t n_tokens,
                             float *y, perch_error *err);

/*
 * tune.c. Fills in a plan without timing anything: as the records say, else cuBLASLt's own first choice; deterministic: as
 * cuda_tune does.
 */
perch_status cuda_tune_guess(kernels_device *device, gemm_shape *shape, gemm_kind kind, uint32_t n_rows,
                             perch_error *err);
/* Fills in the plans that steps within these limits need, by timing where the records lack them; writes the records. */
perch_status cuda_tune(kernels_device *device, const kernels_limits *limits, perch_error *err);

/* tune_file.c. What can't be read or written is as if it were not there. */
perch_status cuda_records_open(kernels_device *device, const char *cache_dir, perch_error *err);
void cuda_records_close(cuda_gemm *gemm);
const gemm_record *cuda_records_find(const gemm_records *records, const gemm_record *like);
/* A record of the same key is replaced. */
perch_status cuda_records_put(gemm_records *records, const gemm_record *record, perch_error *err);
/* What others have put into the file since it was read stays there. */
void cuda_records_save(const cuda_gemm *gemm);

/* kv.c */
uint64_t cuda_kv_page_granularity(const kernels_device *device);
perch_status cuda_kv_open(kernels_device *device, const kernels_kv *kv, perch_error *err);
void cuda_kv_close(kernels_device *device);
kv_view cuda_kv_slot(const kernels_device *device, uint32_t slot);
perch_status cuda_kv_execute(kernels_device *device, const kv_command *commands, size_t n, perch_error *err);
/* What kv_execute was told can be reached by what is queued next. Waits for what is in its way. */
perch_status cuda_kv_settle(kernels_device *device, perch_error *err);

/* transfer.c */
perch_status cuda_host_open(kernels_device *device, uint32_t n_frames, perch_error *err);
void cuda_host_close(kernels_device *device);
uint8_t *cuda_host_frame(const kernels_device *device, uint32_t frame);
perch_status cuda_transfer(kernels_device *device, kernels_direction direction, const kernels_transfer *list, size_t n,
                           uint64_t *ticket, perch_error *err);
perch_status cuda_transferred(kernels_device *device, kernels_direction direction, uint64_t *ticket, perch_error *err);
perch_status cuda_transfer_wait(kernels_device *device, kernels_direction direction, uint64_t ticket, perch_error *err);

/* changes.c */
perch_status cuda_changes_open(cuda_changes *changes, size_t n_places, perch_error *err);
void cuda_changes_close(cuda_changes *changes);
void cuda_changes_note(cuda_changes *changes, size_t place, uint32_t page);
/* The oldest one; false: there is none. */
bool cuda_changes_take(cuda_changes *changes, cuda_change *out);

/* mapper.c. Commands are MAP and UNMAP, in range; push notes them and does not wait. */
perch_status cuda_mapper_open(kernels_device *device, cuda_mapper **out, perch_error *err);
void cuda_mapper_close(cuda_mapper *mapper); /* waits for nothing on the GPU: the caller has; unmaps everything */
void cuda_mapper_push(cuda_mapper *mapper, const kv_command *commands, size_t n);
perch_status cuda_mapper_wait(cuda_mapper *mapper, perch_error *err); /* for all that was pushed to be mapped */
/*
 * Step `step` is going to reach the rows' slots; all of it that does is queued; it is known to be done. What it reaches is not
 * unmapped in between.
 */
void cuda_mapper_begin_step(cuda_mapper *mapper, uint64_t step, const kernels_row *rows, uint32_t n_rows);
perch_status cuda_mapper_end_step(cuda_mapper *mapper, uint64_t step, perch_error *err);
void cuda_mapper_step_done(cuda_mapper *mapper, uint64_t step);

/* math.c */
perch_status cuda_run_embed(kernels_device *device, const kernels_weight *weight, const kernels_batch *batch,
                            uint32_t n_tokens, float *y, perch_error *err);
perch_status cuda_run_rmsnorm(kernels_device *device, const float *x, const float *gain, float eps, uint32_t n_tokens,
                              uint32_t width, void *y, perch_error *err);
perch_status cuda_run_head_norm(kernels_device *device, void *x, uint32_t n_tokens, uint32_t stride, uint32_t offset,
                                uint32_t n_heads, uint32_t head_dim, const float *gain, float eps, perch_error *err);
perch_status cuda_run_rope_write(kernels_device *device, const kernels_batch *batch, const kernels_attention *attention,
                                 const float *table, void *qkv, perch_error *err);
perch_status cuda_run_attention(kernels_device *device, const kernels_batch *batch, const kernels_attention *attention,
                                const void *qkv, void *out, perch_error *err);
perch_status cuda_run_silu_mul(kernels_device *device, const void *gate_up, uint32_t n_tokens, uint32_t width, void *y,
                               perch_error *err);
perch_status cuda_run_gather(kernels_device *device, const kernels_batch *batch, uint32_t n_logits, const void *x,
                             size_t row_bytes, void *y, perch_error *err);

/* reserve.c */
perch_status cuda_check_limits(const kernels_device *device, const kernels_limits *limits, perch_error *err);
uint64_t cuda_reserve_bytes(const kernels_device *device, const kernels_limits *limits);
perch_status cuda_reserve(kernels_device *device, const kernels_limits *limits, perch_error *err);
void cuda_unreserve(kernels_device *device);
void cuda_lane_layout(const lane_room *room, lane_layout *out);
/* The numbers of rows that graphs are made for: the smallest power of two that holds n, at most `most`. */
uint32_t cuda_graph_rows(uint32_t n, uint32_t most);
/* The most rows of such a pass. */
uint32_t cuda_graph_most(const kernels_limits *limits);
/* Whether tokens can be chosen on the device: not in larger vocabularies than its weights are made for. */
bool cuda_chooses(const kernels_limits *limits);
/* How many plans of attention passes have, and the limits to make plan i with: what has a window comes last. */
uint32_t cuda_plans(const kernels_limits *limits);
kernels_limits cuda_plan_limits(const kernels_limits *limits, uint32_t i);
/* The limits of a pass of that many rows, one token each: how its attention is cut, and the room for that. */
kernels_limits cuda_graph_limits(const kernels_limits *limits, uint32_t n_rows);

/* step.c */
perch_status cuda_begin(kernels_device *device, uint32_t lane, const kernels_batch *batch, uint64_t graph_key,
                        kernels_pass *pass, perch_error *err);
perch_status cuda_end(kernels_device *device, uint32_t lane, perch_error *err);
perch_status cuda_history(kernels_device *device, uint32_t slot, uint32_t first, uint32_t n, const int32_t *tokens,
                          perch_error *err);
bool cuda_device_can_choose(const kernels_device *device, const kernels_choice *choice);
perch_status cuda_queue_choices(kernels_device *device, uint32_t lane, const float *logits,
                                const kernels_choice *choices, uint32_t n, perch_error *err);
perch_status cuda_wait(kernels_device *device, uint32_t lane, const kernels_chosen **out, perch_error *err);

/* graph.c */
#define CUDA_GRAPH_BYTES ((uint64_t)64 << 20) /* device memory that graphs may take together */
/* Queues the pass's graph; false: there is none, or none that can be launched, and the pass is to be queued. */
bool cuda_graph_replay(kernels_device *device, const cuda_graph_key *key);
uint64_t cuda_failed_graphs(const kernels_device *device);
/* Both leave no error behind: what can't be recorded is not replayed. */
void cuda_record_begin(kernels_device *device, const cuda_graph_key *key);
void cuda_record_end(kernels_device *device);
void cuda_graphs_close(kernels_device *device);

#endif
