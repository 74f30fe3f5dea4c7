/*
 * Math on rows and matrices: each operation is cut into tasks for the pool, or done at once where waking somebody would
 * take longer than the work. How it is cut shows in no bit of the result.
 */
#include "kernels/cpu/device.h"

#include <assert.h>
#include <string.h>

/* Work that one thread does sooner alone, in 3 to 6 us, than with help: values of a row operation, multiply-adds. */
#define MIN_PARALLEL_VALUES ((size_t)1 << 16)
#define MIN_PARALLEL_PRODUCTS ((size_t)1 << 17)
/* Work of one task of row operations: small enough to share out, large enough not to notice the counting. */
#define ROW_TASK_WORK ((size_t)1 << 13)

/* --- operations on rows */

typedef struct rows_job {
    void (*run)(const struct rows_job *job, size_t t);
    size_t n_tokens;
    size_t tokens_per_task;
    const kernels_device *device;
    const kernels_weight *weight;
    const kernels_batch *batch;
    const float *x;
    const float *gain;
    float *y;
    uint32_t *words;
    float eps;
    size_t width; /* of a row, in elements; of gather's in bytes */
    size_t stride;
    size_t n_heads;
} rows_job;

static void rows_task(void *context, size_t task, uint32_t thread) {
    (void)thread;
    const rows_job *job = context;
    size_t end = (task + 1) * job->tokens_per_task;
    for (size_t t = task * job->tokens_per_task; t < job->n_tokens && t < end; t++) {
        job->run(job, t);
    }
}

/* work: of one token. */
static void rows_run(kernels_device *device, rows_job *job, size_t work) {
    job->device = device;
    if (job->n_tokens * work < MIN_PARALLEL_VALUES) {
        for (size_t t = 0; t < job->n_tokens; t++) {
            job->run(job, t);
        }
        return;
    }
    job->tokens_per_task = work < ROW_TASK_WORK ? ROW_TASK_WORK / (work + 1) + 1 : 1;
    cpu_pool_run(device->pool, (job->n_tokens + job->tokens_per_task - 1) / job->tokens_per_task, rows_task, job);
}

static void embed_row(const rows_job *job, size_t t) {
    int32_t token = job->batch->tokens[t];
    assert(token >= 0 && (uint32_t)token < job->weight->n_out);
    cpu_weight_row(job->device, job->weight, (uint32_t)token, job->y + t * job->weight->n_in);
}

perch_status cpu_embed(kernels_device *device, const kernels_weight *weight, const kernels_batch *batch,
                       uint32_t n_tokens, float *y, perch_error *err) {
    (void)err;
    assert(n_tokens <= batch->n_tokens && batch->token_from == NULL);
    rows_job job = {.run = embed_row, .n_tokens = n_tokens, .weight = weight, .batch = batch, .y = y};
    rows_run(device, &job, (size_t)weight->n_in * 8);
    return PERCH_OK;
}

static void rmsnorm_row(const rows_job *job, size_t t) {
    job->device->isa->rmsnorm(job->x + t * job->width, job->gain, job->eps, job->width, job->y + t * job->width);
}

perch_status cpu_rmsnorm(kernels_device *device, const float *x, const float *gain, float eps, uint32_t n_tokens,
                         uint32_t width, void *y, perch_error *err) {
    (void)err;
    rows_job job = {.run = rmsnorm_row, .n_tokens = n_tokens, .x = x, .gain = gain, .y = y, .eps = eps, .width = width};
    rows_run(device, &job, width);
    return PERCH_OK;
}

static void head_norm_row(const rows_job *job, size_t t) {
    for (size_t head = 0; head < job->n_heads; head++) {
        float *x = job->y + t * job->stride + head * job->width;
        job->device->isa->rmsnorm(x, job->gain, job->eps, job->width, x);
    }
}

perch_status cpu_head_norm(kernels_device *device, void *x, uint32_t n_tokens, uint32_t stride, uint32_t offset,
                           uint32_t n_heads, uint32_t head_dim, const float *gain, float eps, perch_error *err) {
    (void)err;
    rows_job job = {.run = head_norm_row,
                    .n_tokens = n_tokens,
                    .gain = gain,
                    .y = (float *)x + offset,
                    .eps = eps,
                    .width = head_dim,
                    .stride = stride,
                    .n_heads = n_heads};
    rows_run(device, &job, (size_t)n_heads * head_dim);
    return PERCH_OK;
}

static void silu_mul_row(const rows_job *job, size_t t) {
    const float *gate = job->x + t * 2 * job->width;
    job->device->isa->silu_mul(gate, gate + job->width, job->width, job->y + t * job->width);
}

perch_status cpu_silu_mul(kernels_device *device, const void *gate_up, uint32_t n_tokens, uint32_t width, void *y,
                          perch_error *err) {
    (void)err;
    rows_job job = {.run = silu_mul_row, .n_tokens = n_tokens, .x = gate_up, .y = y, .width = width};
    rows_run(device, &job, (size_t)width * 2);
    return PERCH_OK;
}

static void gather_row(const rows_job *job, size_t t) {
    const uint8_t *from = (const uint8_t *)(const void *)job->x;
    uint8_t *to = (uint8_t *)(void *)job->y;
    memcpy(to + t * job->width, from + job->batch->logit_tokens[t] * job->width, job->width);
}

perch_status cpu_gather(kernels_device *device, const kernels_batch *batch, uint32_t n_logits, const void *x,
                        size_t row_bytes, void *y, perch_error *err) {
    (void)err;
    assert(n_logits <= batch->n_logits);
    rows_job job = {.run = gather_row, .n_tokens = n_logits, .x = x, .batch = batch, .y = y, .width = row_bytes};
    rows_run(device, &job, row_bytes / 16);
    return PERCH_OK;
}

/* --- matrix products */

typedef struct gemm_job {
    cpu_gemm gemm;
    const cpu_isa *isa;
    cpu_scratch *scratch; /* [n_threads] */
    size_t n_tokens;
    size_t n_blocks; /* of CPU_GEMM_TOKENS tokens */
} gemm_job;

/* A panel's blocks of tokens follow one another, so that its weights are read from memory once. */
static void gemm_task(void *context, size_t task, uint32_t thread) {
    const gemm_job *job = context;
    size_t t0 = task % job->n_blocks * CPU_GEMM_TOKENS;
    size_t t1 = t0 + CPU_GEMM_TOKENS < job->n_tokens ? t0 + CPU_GEMM_TOKENS : job->n_tokens;
    job->isa->gemm(&job->gemm, task / job->n_blocks, t0, t1, &job->scratch[thread]);
}

static void gemm_run(kernels_device *device, const kernels_weight *weight, gemm_job *job) {
    job->n_blocks = (job->n_tokens + CPU_GEMM_TOKENS - 1) / CPU_GEMM_TOKENS;
    size_t n_tasks = weight->n_panels * job->n_blocks;
    if (job->n_tokens * weight->n_panels * CPU_PANEL * weight->n_in < MIN_PARALLEL_PRODUCTS) {
        for (size_t task = 0; task < n_tasks; task++) {
            gemm_task(job, task, 0);
        }
        return;
    }
    cpu_pool_run(device->pool, n_tasks, gemm_task, job);
}

static void round_row(const rows_job *job, size_t t) {
    job->device->isa->round_bf16(job->x + t * job->width, job->width, job->words + t * job->stride);
}

perch_status cpu_linear(kernels_device *device, const kernels_weight *weight, const float *bias, const void *x,
                        uint32_t n_tokens, void *y, bool accumulate, perch_error *err) {
    (void)err;
    gemm_job job = {.gemm = {.panels = weight->region.data,
                             .panel_bytes = weight->panel_bytes,
                             .format = weight->format,
                             .n_words = weight->n_words,
                             .x = x,
                             .x_stride = weight->n_words,
                             .y = y,
                             .n_out = weight->n_out,
                             .bias = bias,
                             .accumulate = accumulate,
                             .bf16 = device->bf16},
                    .isa = device->isa,
                    .scratch = device->scratch,
                    .n_tokens = n_tokens};
    if (!device->bf16) {
        gemm_run(device, weight, &job);
        return PERCH_OK;
    }
    size_t at_once = CPU_ROUNDED_BYTES / (weight->n_words * sizeof(uint32_t));
    assert(at_once > 0); /* weight_create saw to it */
    for (size_t t = 0; t < n_tokens; t += at_once) {
        job.n_tokens = n_tokens - t < at_once ? n_tokens - t : at_once;
        rows_job round = {.run = round_row,
                          .n_tokens = job.n_tokens,
                          .x = (const float *)x + t * weight->n_in,
                          .width = weight->n_in,
                          .words = device->rounded.data,
                          .stride = weight->n_words};
        rows_run(device, &round, weight->n_in);
        job.gemm.x = device->rounded.data;
        job.gemm.y = (float *)y + t * weight->n_out;
        gemm_run(device, weight, &job);
    }
    return PERCH_OK;
}

perch_status cpu_linear_f32(kernels_device *device, const kernels_weight *weight, const void *x, uint32_t n_tokens,
                            float *y, perch_error *err) {
    return cpu_linear(device, weight, NULL, x, n_tokens, y, false, err); /* activations are f32 */
}
