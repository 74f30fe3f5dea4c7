/*
 * The math functions of the table that are one kernel each. The batch is on the device since `begin`: what the caller passes
 * for it says nothing that the pass doesn't.
 */
#include "kernels/cuda/device.h"

/* A function that reads the batch is called between begin and end. */
static perch_status in_pass(const kernels_device *device, const char *function, perch_error *err) {
    perch_status status = cuda_ready(device, err);
    return status != PERCH_OK || device->pass.open
               ? status
               : err_set(err, PERCH_E_INVALID, "%s: no pass has begun on GPU %d", function, device->ordinal);
}

perch_status cuda_run_embed(kernels_device *device, const kernels_weight *weight, const kernels_batch *batch,
                            uint32_t n_tokens, float *y, perch_error *err) {
    (void)batch;
    perch_status status = in_pass(device, "embed", err);
    if (status != PERCH_OK) {
        return status;
    }
    cudaError_t e;
    CUDA_QUEUE(device, e,
               cuda_embed(stream, device->dtype, &device->pass.batch, n_tokens, weight->data, weight->shape->n_in, y));
    return cuda_check(device, e, "embed", err);
}

perch_status cuda_run_rmsnorm(kernels_device *device, const float *x, const float *gain, float eps, uint32_t n_tokens,
                              uint32_t width, void *y, perch_error *err) {
    perch_status status = cuda_ready(device, err);
    if (status != PERCH_OK || n_tokens == 0) {
        return status;
    }
    cudaError_t e;
    CUDA_QUEUE(device, e, cuda_rmsnorm(stream, device->dtype, x, gain, eps, n_tokens, width, y));
    return cuda_check(device, e, "rmsnorm", err);
}

perch_status cuda_run_head_norm(kernels_device *device, void *x, uint32_t n_tokens, uint32_t stride, uint32_t offset,
                                uint32_t n_heads, uint32_t head_dim, const float *gain, float eps, perch_error *err) {
    perch_status status = cuda_ready(device, err);
    if (status != PERCH_OK || n_tokens == 0) {
        return status;
    }
    cudaError_t e;
    CUDA_QUEUE(device, e,
               cuda_head_norm(stream, device->dtype, x, n_tokens, stride, offset, n_heads, head_dim, gain, eps));
    return cuda_check(device, e, "head_norm", err);
}

static perch_status check_head_dim(const kernels_attention *attention, perch_error *err) {
    uint32_t head_dim = attention->layout.head_dim;
    if (!cuda_attention_supports(head_dim)) {
        return err_set(err, PERCH_E_UNSUPPORTED, "head_dim = %u: the CUDA backend takes multiples of 8 up to 256",
                       head_dim);
    }
    return PERCH_OK;
}

perch_status cuda_run_rope_write(kernels_device *device, const kernels_batch *batch, const kernels_attention *attention,
                                 const float *table, void *qkv, perch_error *err) {
    (void)batch;
    perch_status status = in_pass(device, "rope_write", err);
    if (status != PERCH_OK || (status = check_head_dim(attention, err)) != PERCH_OK) {
        return status;
    }
    const cuda_pass *pass = &device->pass;
    cudaError_t e;
    CUDA_QUEUE(device, e, cuda_rope_write(stream, device->dtype, &pass->batch, pass->n_tokens, attention, table, qkv));
    return cuda_check(device, e, "rope_write", err);
}

/* The narrowest plan that has all that such a layer sees. */
static const cuda_pass_plan *find_plan(const cuda_pass *pass, uint32_t window) {
    for (uint32_t i = pass->n_plans; i-- > 0;) {
        const cuda_pass_plan *plan = &pass->plans[i];
        if (plan->window == 0 || (window != 0 && window <= plan->window)) {
            return plan;
        }
    }
    return NULL;
}

perch_status cuda_run_attention(kernels_device *device, const kernels_batch *batch, const kernels_attention *attention,
                                const void *qkv, void *out, perch_error *err) {
    (void)batch;
    perch_status status = in_pass(device, "attention", err);
    if (status != PERCH_OK || (status = check_head_dim(attention, err)) != PERCH_OK) {
        return status;
    }
    const cuda_pass *pass = &device->pass;
    const cuda_pass_plan *plan = find_plan(pass, attention->window);
    if (plan == NULL) {
        return err_set(err, PERCH_E_INVALID, "attention with a window of %u; reserved are windows of up to %u",
                       attention->window, device->limits.window);
    }
    cuda_batch planned = pass->batch;
    planned.counts = plan->counts;
    cudaError_t e;
    CUDA_QUEUE(device, e,
               cuda_attention(stream, device->dtype, &planned, pass->max_row_tokens, attention, qkv, out, plan->attend,
                              plan->max_attend, plan->merge, plan->max_merge, device->partials));
    return cuda_check(device, e, "attention", err);
}

perch_status cuda_run_silu_mul(kernels_device *device, const void *gate_up, uint32_t n_tokens, uint32_t width, void *y,
                               perch_error *err) {
    perch_status status = cuda_ready(device, err);
    if (status != PERCH_OK || n_tokens == 0) {
        return status;
    }
    cudaError_t e;
    CUDA_QUEUE(device, e, cuda_silu_mul(stream, device->dtype, gate_up, n_tokens, width, y));
    return cuda_check(device, e, "silu_mul", err);
}

perch_status cuda_run_gather(kernels_device *device, const kernels_batch *batch, uint32_t n_logits, const void *x,
                             size_t row_bytes, void *y, perch_error *err) {
    (void)batch;
    perch_status status = in_pass(device, "gather", err);
    if (status != PERCH_OK || n_logits == 0) {
        return status;
    }
    cudaError_t e;
    CUDA_QUEUE(device, e, cuda_gather(stream, &device->pass.batch, n_logits, x, row_bytes, y));
    return cuda_check(device, e, "gather", err);
}
