/*
 * Matrix products: y = w x by cuBLASLt, or for few rows by cuda_small_gemm, as the plan of the weight's shape, of what becomes of
 * the product and of the number of rows says. Where plans come from: tune.c.
 *
 * A bias comes as float. cuda_small_gemm and the residual stream's epilogue take it like that; the epilogue of activations wants
 * activations, so it is converted once, when the product is prepared, into memory that the weight has for that. Where that was
 * not done, or an algorithm has no such epilogue, the bias is added behind it.
 */
#include "kernels/cuda/device.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* What an algorithm may count on: activations lie at 16 bytes at least (launch.h). */
#define ALIGNMENT 16u

static cudaDataType_t act_type(const kernels_device *device) {
    return device->dtype == KERNELS_BF16 ? CUDA_R_16BF : CUDA_R_16F;
}

/* --- open */

static cublasStatus_t open_desc(cublasLtEpilogue_t epilogue, cublasLtMatmulDesc_t *out) {
    const cublasOperation_t transposed = CUBLAS_OP_T;
    cublasStatus_t e = cublasLtMatmulDescCreate(out, CUBLAS_COMPUTE_32F, CUDA_R_32F);
    if (e == CUBLAS_STATUS_SUCCESS) {
        e = cublasLtMatmulDescSetAttribute(*out, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof transposed);
    }
    if (e == CUBLAS_STATUS_SUCCESS) {
        e = cublasLtMatmulDescSetAttribute(*out, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue, sizeof epilogue);
    }
    return e;
}

static cublasStatus_t open_preference(const kernels_device *device, cublasLtMatmulPreference_t *out) {
    const uint64_t workspace = CUDA_WORKSPACE_BYTES;
    const uint32_t alignment = ALIGNMENT;
    /* Deterministic: nobody adds up parts of a sum in an order of their own. */
    const uint32_t reductions = device->deterministic ? CUBLASLT_REDUCTION_SCHEME_NONE : CUBLASLT_REDUCTION_SCHEME_MASK;
    const struct {
        cublasLtMatmulPreferenceAttributes_t name;
        const void *value;
        size_t bytes;
    } attributes[] = {
        {CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace, sizeof workspace},
        {CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &reductions, sizeof reductions},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, &alignment, sizeof alignment},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, &alignment, sizeof alignment},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, &alignment, sizeof alignment},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, &alignment, sizeof alignment},
    };
    cublasStatus_t e = cublasLtMatmulPreferenceCreate(out);
    for (size_t i = 0; i < sizeof attributes / sizeof attributes[0] && e == CUBLAS_STATUS_SUCCESS; i++) {
        e = cublasLtMatmulPreferenceSetAttribute(*out, attributes[i].name, attributes[i].value, attributes[i].bytes);
    }
    return e;
}

perch_status cuda_gemm_open(kernels_device *device, const char *cache_dir, perch_error *err) {
    cuda_gemm *gemm = &device->gemm;
    void *workspace = NULL;
    perch_status status = cuda_take(device, CUDA_WORKSPACE_BYTES, "matrix products' workspace", &workspace, err);
    gemm->workspace = workspace;
    if (status == PERCH_OK) {
        status = cuda_check_lt(device, cublasLtCreate(&gemm->lt), "opening cuBLASLt", err);
    }
    if (status == PERCH_OK) {
        status = cuda_check_lt(device, open_desc(CUBLASLT_EPILOGUE_DEFAULT, &gemm->plain), "describing products", err);
    }
    if (status == PERCH_OK) {
        status = cuda_check_lt(device, open_desc(CUBLASLT_EPILOGUE_BIAS, &gemm->with_bias), "describing products", err);
    }
    if (status == PERCH_OK) {
        status = cuda_check_lt(device, open_preference(device, &gemm->preference), "describing algorithms", err);
    }
    return status == PERCH_OK ? cuda_records_open(device, cache_dir, err) : status;
}

static void close_shape(gemm_shape *shape) {
    cublasLtMatrixLayout_t layouts[] = {shape->w, shape->x, shape->y[GEMM_ACT], shape->y[GEMM_ADD], shape->y[GEMM_F32]};
    for (size_t i = 0; i < sizeof layouts / sizeof layouts[0]; i++) {
        if (layouts[i] != NULL) {
            (void)cublasLtMatrixLayoutDestroy(layouts[i]);
        }
    }
    free(shape);
}

void cuda_gemm_close(kernels_device *device) {
    cuda_gemm *gemm = &device->gemm;
    cuda_records_close(gemm);
    for (gemm_shape *shape = gemm->shapes, *next; shape != NULL; shape = next) {
        next = shape->next;
        close_shape(shape);
    }
    if (gemm->preference != NULL) {
        (void)cublasLtMatmulPreferenceDestroy(gemm->preference);
    }
    if (gemm->with_bias != NULL) {
        (void)cublasLtMatmulDescDestroy(gemm->with_bias);
    }
    if (gemm->plain != NULL) {
        (void)cublasLtMatmulDescDestroy(gemm->plain);
    }
    if (gemm->lt != NULL) {
        (void)cublasLtDestroy(gemm->lt);
    }
    (void)cudaFree(gemm->workspace);
    *gemm = (cuda_gemm){0};
}

/* --- shapes */

perch_status cuda_gemm_shape(kernels_device *device, uint32_t n_out, uint32_t n_in, gemm_shape **out,
                             perch_error *err) {
    cuda_gemm *gemm = &device->gemm;
    for (gemm_shape *shape = gemm->shapes; shape != NULL; shape = shape->next) {
        if (shape->n_out == n_out && shape->n_in == n_in) {
            *out = shape;
            return PERCH_OK;
        }
    }
    gemm_shape *shape = calloc(1, sizeof *shape);
    if (shape == NULL) {
        return err_nomem(err, "a matrix product's plans");
    }
    shape->n_out = n_out;
    shape->n_in = n_in;
    cublasStatus_t e = cublasLtMatrixLayoutCreate(&shape->w, act_type(device), n_in, n_out, n_in);
    if (e == CUBLAS_STATUS_SUCCESS) {
        e = cublasLtMatrixLayoutCreate(&shape->x, act_type(device), n_in, 1, n_in);
    }
    for (int kind = 0; kind < GEMM_KINDS && e == CUBLAS_STATUS_SUCCESS; kind++) {
        cudaDataType_t type = kind == GEMM_ACT ? act_type(device) : CUDA_R_32F;
        e = cublasLtMatrixLayoutCreate(&shape->y[kind], type, n_out, 1, n_out);
    }
    if (e != CUBLAS_STATUS_SUCCESS) {
        close_shape(shape);
        return cuda_check_lt(device, e, "describing a weight", err);
    }
    shape->next = gemm->shapes;
    gemm->shapes = shape;
    *out = shape;
    return PERCH_OK;
}

uint32_t cuda_gemm_bucket(uint32_t n_rows) {
    uint32_t bucket = 0;
    while (bucket + 1 < GEMM_BUCKETS && (1u << bucket) < n_rows) {
        bucket++;
    }
    return bucket;
}

void cuda_gemm_set_rows(gemm_shape *shape, gemm_kind kind, uint32_t n_rows) {
    const uint64_t columns = n_rows; /* of the right attribute and size, so these can't fail */
    (void)cublasLtMatrixLayoutSetAttribute(shape->x, CUBLASLT_MATRIX_LAYOUT_COLS, &columns, sizeof columns);
    (void)cublasLtMatrixLayoutSetAttribute(shape->y[kind], CUBLASLT_MATRIX_LAYOUT_COLS, &columns, sizeof columns);
}

/* --- products */

cublasStatus_t cuda_gemm_multiply(kernels_device *device, cudaStream_t stream, gemm_shape *shape, gemm_kind kind,
                                  const cublasLtMatmulAlgo_t *algo, const void *w, const void *x, uint32_t n_rows,
                                  const void *bias, void *y) {
    const cuda_gemm *gemm = &device->gemm;
    const float alpha = 1, beta = kind == GEMM_ADD ? 1 : 0;
    cublasLtMatmulDesc_t desc = bias != NULL ? gemm->with_bias : gemm->plain;
    cuda_gemm_set_rows(shape, kind, n_rows);
    if (bias != NULL) {
        cublasStatus_t e = cublasLtMatmulDescSetAttribute(desc, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias, sizeof bias);
        if (e != CUBLAS_STATUS_SUCCESS) {
            return e;
        }
    }
    return cublasLtMatmul(gemm->lt, desc, &alpha, w, shape->w, x, shape->x, &beta, y, shape->y[kind], y, shape->y[kind],
                          algo, gemm->workspace, CUDA_WORKSPACE_BYTES, stream);
}

/* Whether the plan's algorithm can add the bias itself. */
static gemm_bias find_bias(kernels_device *device, gemm_shape *shape, gemm_kind kind, const gemm_plan *plan,
                           uint32_t n_rows, const void *bias) {
    cublasLtMatmulHeuristicResult_t result;
    cublasLtMatmulDesc_t desc = device->gemm.with_bias;
    if (device->deterministic) { /* the epilogue was not tried with every number of rows, the addition needs no trial */
        return GEMM_BIAS_SEPARATE;
    }
    cuda_gemm_set_rows(shape, kind, n_rows);
    cublasStatus_t e = cublasLtMatmulDescSetAttribute(desc, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias, sizeof bias);
    if (e == CUBLAS_STATUS_SUCCESS) {
        e = cublasLtMatmulAlgoCheck(device->gemm.lt, desc, shape->w, shape->x, shape->y[kind], shape->y[kind],
                                    &plan->algo, &result);
    }
    return e == CUBLAS_STATUS_SUCCESS && result.workspaceSize <= CUDA_WORKSPACE_BYTES ? GEMM_BIAS_EPILOGUE
                                                                                      : GEMM_BIAS_SEPARATE;
}

/* The bias as the product's epilogue takes it; NULL: there is none, or it can't. */
static const void *epilogue_bias(kernels_device *device, const kernels_weight *weight, gemm_kind kind, gemm_plan *plan,
                                 const float *bias, uint32_t n_rows) {
    const void *as = kind != GEMM_ACT ? (const void *)bias : bias == weight->float_bias ? weight->bias : NULL;
    if (bias == NULL || as == NULL) {
        return NULL;
    }
    if (plan->bias == GEMM_BIAS_UNKNOWN) {
        plan->bias = find_bias(device, weight->shape, kind, plan, n_rows, as);
    }
    return plan->bias == GEMM_BIAS_EPILOGUE ? as : NULL;
}

static perch_status queue_lt(kernels_device *device, const kernels_weight *weight, gemm_kind kind, gemm_plan *plan,
                             const float *bias, const void *x, uint32_t n_rows, void *y, perch_error *err) {
    gemm_shape *shape = weight->shape;
    const void *fused = epilogue_bias(device, weight, kind, plan, bias, n_rows);
    cublasStatus_t lt =
        cuda_gemm_multiply(device, device->compute, shape, kind, &plan->algo, weight->data, x, n_rows, fused, y);
    perch_status status = cuda_check_lt(device, lt, "a matrix product", err);
    if (status == PERCH_OK && device->recorder.on && !device->recorder.failed) {
        device->recorder.failed = cuda_gemm_multiply(device, device->recorder.stream, shape, kind, &plan->algo,
                                                     weight->data, x, n_rows, fused, y) != CUBLAS_STATUS_SUCCESS;
    }
    if (status == PERCH_OK && bias != NULL && fused == NULL) {
        cudaError_t e;
        CUDA_QUEUE(device, e, cuda_add_bias(stream, device->dtype, bias, n_rows, shape->n_out, y, kind != GEMM_ACT));
        status = cuda_check(device, e, "adding a bias", err);
    }
    return status;
}

static perch_status queue_product(kernels_device *device, const kernels_weight *weight, gemm_kind kind,
                                  const float *bias, const void *x, uint32_t n_rows, void *y, perch_error *err) {
    gemm_shape *shape = weight->shape;
    perch_status status = cuda_ready(device, err);
    if (status != PERCH_OK || n_rows == 0) {
        return status;
    }
    if (n_rows > GEMM_MAX_ROWS) {
        return err_set(err, PERCH_E_UNSUPPORTED, "a matrix product of %u rows; %u are the most", n_rows, GEMM_MAX_ROWS);
    }
    gemm_plan *plan = &shape->plans[kind][device->deterministic ? 0 : cuda_gemm_bucket(n_rows)];
    if (plan->path == GEMM_UNKNOWN && device->reserved && (device->deterministic || !shape->is_to_come[kind])) {
        return err_set(err, PERCH_E_INVALID, "a product of kind %d by a weight of %u x %u that was not prepared",
                       (int)kind, shape->n_out, shape->n_in);
    }
    if (plan->path == GEMM_UNKNOWN) {
        status = cuda_tune_guess(device, shape, kind, n_rows, err);
    }
    if (status != PERCH_OK || plan->path == GEMM_LT) {
        return status == PERCH_OK ? queue_lt(device, weight, kind, plan, bias, x, n_rows, y, err) : status;
    }
    cudaError_t e;
    CUDA_QUEUE(device, e,
               cuda_small_gemm(stream, device->dtype, weight->data, shape->n_out, shape->n_in, x, n_rows, bias,
                               kind == GEMM_ADD, y, kind != GEMM_ACT));
    return cuda_check(device, e, "a matrix product of few rows", err);
}

perch_status cuda_prepare(kernels_device *device, kernels_weight *weight, kernels_product product, const float *bias,
                          perch_error *err) {
    perch_status status = cuda_enter(device, err);
    if (status == PERCH_OK && device->reserved) {
        return err_set(err, PERCH_E_INVALID, "GPU %d is reserved: it is too late to prepare products", device->ordinal);
    }
    if (status == PERCH_OK && bias != NULL && product == KERNELS_PRODUCT_ACT) {
        status = cuda_check(
            device, cuda_convert(device->compute, KERNELS_F32, bias, device->dtype, weight->shape->n_out, weight->bias),
            "converting a bias", err);
        weight->float_bias = bias;
    }
    weight->shape->is_to_come[product] = true;
    return status;
}

perch_status cuda_linear(kernels_device *device, const kernels_weight *weight, const float *bias, const void *x,
                         uint32_t n_tokens, void *y, bool accumulate, perch_error *err) {
    return queue_product(device, weight, accumulate ? GEMM_ADD : GEMM_ACT, bias, x, n_tokens, y, err);
}

perch_status cuda_linear_f32(kernels_device *device, const kernels_weight *weight, const void *x, uint32_t n_tokens,
                             float *y, perch_error *err) {
    return queue_product(device, weight, GEMM_F32, NULL, x, n_tokens, y, err);
}
