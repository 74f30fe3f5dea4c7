/*
 * Rotary position embedding with the write into the KV cache, and attention's cut into tasks: a run of tokens and one KV
 * head each.
 */
#include "kernels/cpu/convert.h"
#include "kernels/cpu/device.h"

#include <assert.h>

/* Work that one thread does sooner alone, in 3 to 6 us, than with help: values to rotate, multiply-adds. */
#define MIN_PARALLEL_VALUES ((size_t)1 << 14)
#define MIN_PARALLEL_PRODUCTS ((size_t)1 << 17)

typedef struct rope_job {
    const kernels_batch *batch;
    const kernels_attention *shape;
    const float *table;
    float *qkv;
    size_t stride;
    size_t tokens_per_task;
    bool bf16;
} rope_job;

/* x[i], x[i + D/2] = the pair rotated by angle i. rotation: [D/2][2] (cos, sin). */
static void rotate(float *x, const float *rotation, size_t head_dim) {
    size_t half = head_dim / 2;
    for (size_t i = 0; i < half; i++) {
        float cosine = rotation[2 * i];
        float sine = rotation[2 * i + 1];
        float a = x[i];
        float b = x[i + half];
        x[i] = a * cosine - b * sine;
        x[i + half] = b * cosine + a * sine;
    }
}

static void store_kv(const rope_job *job, uint8_t *tile, size_t slot, const float *k, const float *v) {
    size_t head_dim = job->shape->layout.head_dim;
    size_t values = (KV_GROUP_TOKENS + slot) * head_dim;
    if (job->bf16) {
        uint16_t *to = (uint16_t *)(void *)tile;
        for (size_t d = 0; d < head_dim; d++) {
            to[cpu_k_element(slot, d, true)] = f32_to_bf16(k[d]);
            to[values + d] = f32_to_bf16(v[d]);
        }
    } else {
        float *to = (float *)(void *)tile;
        for (size_t d = 0; d < head_dim; d++) {
            to[cpu_k_element(slot, d, false)] = k[d];
            to[values + d] = v[d];
        }
    }
}

static void rope_token(const rope_job *job, size_t t) {
    const kernels_attention *shape = job->shape;
    const kernels_row *row = &job->batch->rows[job->batch->token_row[t]];
    size_t head_dim = shape->layout.head_dim;
    size_t position = job->batch->positions[t];
    const float *rotation = job->table + position * head_dim;
    float *q = job->qkv + t * job->stride;
    float *k = q + shape->n_heads * head_dim;
    const float *v = k + shape->layout.n_kv_heads * head_dim;
    for (size_t head = 0; head < shape->n_heads; head++) {
        rotate(q + head * head_dim, rotation, head_dim);
    }
    for (uint32_t head = 0; head < shape->layout.n_kv_heads; head++) {
        rotate(k + head * head_dim, rotation, head_dim);
        uint8_t *tile = cpu_kv_tile(&row->kv, &shape->layout, shape->layer, head, position / KV_GROUP_TOKENS);
        store_kv(job, tile, position % KV_GROUP_TOKENS, k + head * head_dim, v + head * head_dim);
    }
}

static void rope_task(void *context, size_t task, uint32_t thread) {
    (void)thread;
    const rope_job *job = context;
    size_t end = (task + 1) * job->tokens_per_task;
    for (size_t t = task * job->tokens_per_task; t < job->batch->n_tokens && t < end; t++) {
        rope_token(job, t);
    }
}

static perch_status check_shape(const kernels_attention *shape, perch_error *err) {
    uint32_t head_dim = shape->layout.head_dim;
    if (head_dim == 0 || head_dim > CPU_MAX_HEAD_DIM || head_dim % 2 != 0) {
        return err_set(err, PERCH_E_UNSUPPORTED, "head_dim = %u: the cpu backend takes even ones up to %u", head_dim,
                       CPU_MAX_HEAD_DIM);
    }
    assert(shape->layout.n_kv_heads > 0 && shape->n_heads % shape->layout.n_kv_heads == 0);
    return PERCH_OK;
}

perch_status cpu_rope_write(kernels_device *device, const kernels_batch *batch, const kernels_attention *attention,
                            const float *table, void *qkv, perch_error *err) {
    perch_status status = check_shape(attention, err);
    if (status != PERCH_OK) {
        return status;
    }
    assert(attention->layout.element_bytes == cpu_element_bytes(device));
    size_t stride = (size_t)(attention->n_heads + 2 * attention->layout.n_kv_heads) * attention->layout.head_dim;
    rope_job job = {batch, attention, table, qkv, stride, batch->n_tokens, device->bf16};
    if (batch->n_tokens * stride < MIN_PARALLEL_VALUES) {
        rope_task(&job, 0, 0);
        return PERCH_OK;
    }
    job.tokens_per_task = KV_GROUP_TOKENS; /* mostly one group's cache lines to a thread */
    if (batch->n_tokens < device->n_threads * KV_GROUP_TOKENS) {
        job.tokens_per_task = (batch->n_tokens + device->n_threads - 1) / device->n_threads;
    }
    cpu_pool_run(device->pool, (batch->n_tokens + job.tokens_per_task - 1) / job.tokens_per_task, rope_task, &job);
    return PERCH_OK;
}

typedef struct attention_job {
    cpu_attention attention;
    const cpu_isa *isa;
    cpu_scratch *scratch; /* [n_threads] */
    size_t tokens_per_task;
    size_t n_chunks; /* of tokens */
} attention_job;

/* The last tokens first: they see the most, and what is begun last should be short. */
static void attention_task(void *context, size_t task, uint32_t thread) {
    const attention_job *job = context;
    size_t n_kv_heads = job->attention.shape->layout.n_kv_heads;
    size_t n_tokens = job->attention.batch->n_tokens;
    size_t t0 = (job->n_chunks - 1 - task / n_kv_heads) * job->tokens_per_task;
    size_t t1 = t0 + job->tokens_per_task < n_tokens ? t0 + job->tokens_per_task : n_tokens;
    job->isa->attention(&job->attention, (uint32_t)(task % n_kv_heads), t0, t1, &job->scratch[thread]);
}

/* Multiply-adds of all tokens and heads, about: two for each position seen and element. */
static size_t attention_work(const kernels_batch *batch, const kernels_attention *shape) {
    size_t seen = 0;
    for (size_t r = 0; r < batch->n_rows; r++) {
        const kernels_row *row = &batch->rows[r];
        size_t n = (size_t)row->first_position + row->n_tokens;
        n = shape->window != 0 && n > shape->window ? shape->window : n;
        seen += n * row->n_tokens;
    }
    return seen * shape->n_heads * shape->layout.head_dim * 2;
}

perch_status cpu_run_attention(kernels_device *device, const kernels_batch *batch, const kernels_attention *attention,
                               const void *qkv, void *out, perch_error *err) {
    perch_status status = check_shape(attention, err);
    if (status != PERCH_OK) {
        return status;
    }
    assert(attention->layout.element_bytes == cpu_element_bytes(device));
    size_t n_kv_heads = attention->layout.n_kv_heads;
    size_t n_group = attention->n_heads / n_kv_heads;
    size_t stride = (attention->n_heads + 2 * n_kv_heads) * attention->layout.head_dim;
    attention_job job = {.attention = {batch, attention, qkv, stride, out, device->bf16},
                         .isa = device->isa,
                         .scratch = device->scratch};
    /* As many tokens as one pass over K and V serves, but fewer where the threads would not get enough tasks. */
    size_t most = n_group < CPU_QUERIES ? CPU_QUERIES / n_group : 1;
    size_t even = batch->n_tokens * n_kv_heads / ((size_t)device->n_threads * 4);
    job.tokens_per_task = even < 1 ? 1 : even < most ? even : most;
    job.tokens_per_task = batch->n_rows == batch->n_tokens ? 1 : job.tokens_per_task;
    job.n_chunks = (batch->n_tokens + job.tokens_per_task - 1) / job.tokens_per_task;
    size_t n_tasks = job.n_chunks * n_kv_heads;
    if (attention_work(batch, attention) < MIN_PARALLEL_PRODUCTS) {
        for (size_t task = 0; task < n_tasks; task++) {
            attention_task(&job, task, 0);
        }
        return PERCH_OK;
    }
    cpu_pool_run(device->pool, n_tasks, attention_task, &job);
    return PERCH_OK;
}
