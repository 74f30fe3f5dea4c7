/*
 * Weights: row-major activations [n_out][n_in], as they come from a checkpoint. Rows of another type go to the device as they
 * are and are rounded there, in the memory that matrix products use between their kernels.
 */
#include "kernels/cuda/device.h"

#include <inttypes.h>
#include <stdlib.h>

/* What the driver gives out at once: memory is taken in blocks of this size, of which small requests share one. */
#define BLOCK_BYTES ((uint64_t)2 << 20)
#define SMALL_BYTES ((uint64_t)1 << 20)

/* The converted piece lies behind the one that came. */
_Static_assert(2 * CUDA_PIECE_BYTES <= CUDA_WORKSPACE_BYTES, "a piece and its conversion must fit");

static bool matrix_bytes(uint32_t n_out, uint32_t n_in, size_t *matrix, size_t *total) {
    return mul_size(n_out, n_in, matrix) && mul_size(*matrix, CUDA_ACT_BYTES, matrix) &&
           *matrix < SIZE_MAX - 256 - n_out * CUDA_ACT_BYTES &&
           add_size(cuda_align(*matrix), n_out * CUDA_ACT_BYTES, total);
}

uint64_t cuda_weight_bytes(const kernels_device *device, uint32_t n_out, uint32_t n_in, kernels_weight_format format) {
    (void)device;
    (void)format; /* weight_create takes one alone */
    size_t matrix, total;
    if (!matrix_bytes(n_out, n_in, &matrix, &total)) {
        return UINT64_MAX;
    }
    uint64_t unit = total < SMALL_BYTES ? 512 : BLOCK_BYTES;
    return (total + unit - 1) / unit * unit;
}

perch_status cuda_weight_create(kernels_device *device, uint32_t n_out, uint32_t n_in, kernels_weight_format format,
                                kernels_weight **out, perch_error *err) {
    size_t matrix, total;
    *out = NULL;
    if (format != KERNELS_WEIGHT_DTYPE) {
        return err_set(err, PERCH_E_UNSUPPORTED, "the cuda backend keeps weights in its dtype only");
    }
    if (n_out == 0 || n_in == 0 || n_out > INT32_MAX || n_in > INT32_MAX) {
        return err_set(err, PERCH_E_UNSUPPORTED, "a weight of %u outputs and %u inputs", n_out, n_in);
    }
    perch_status status = cuda_enter(device, err);
    if (status != PERCH_OK) {
        return status;
    }
    kernels_weight *weight = calloc(1, sizeof *weight);
    if (weight == NULL || !matrix_bytes(n_out, n_in, &matrix, &total)) {
        free(weight);
        return err_nomem(err, "a weight");
    }
    void *data = NULL;
    status = cuda_gemm_shape(device, n_out, n_in, &weight->shape, err);
    if (status == PERCH_OK) {
        status = cuda_take(device, total, "a weight", &data, err);
    }
    if (status != PERCH_OK) {
        free(weight);
        return status;
    }
    weight->data = data;
    weight->bias = weight->data + cuda_align(matrix);
    weight->next = device->weights;
    device->weights = weight;
    *out = weight;
    return PERCH_OK;
}

void cuda_weight_destroy(kernels_device *device, kernels_weight *weight) {
    kernels_weight **link = &device->weights;
    while (*link != NULL && *link != weight) {
        link = &(*link)->next;
    }
    if (weight != NULL && *link == weight) {
        (void)cudaSetDevice(device->ordinal);
        *link = weight->next;
        (void)cudaFree(weight->data);
        free(weight);
    }
}

void cuda_weight_destroy_all(kernels_device *device) {
    for (kernels_weight *weight = device->weights, *next; weight != NULL; weight = next) {
        next = weight->next;
        (void)cudaFree(weight->data);
        free(weight);
    }
    device->weights = NULL;
}

/* Elements of another type. Kernels want aligned memory, which a row of odd width is not: those are put in place by a copy. */
static perch_status send_converted(kernels_device *device, kernels_dtype dtype, const void *from, size_t n, uint8_t *to,
                                   perch_error *err) {
    uint8_t *raw = device->gemm.workspace, *rounded = raw + CUDA_PIECE_BYTES;
    bool aligned = (uintptr_t)to % 16 == 0;
    perch_status status = cuda_send(device, raw, from, n * (dtype == KERNELS_F32 ? 4 : 2), err);
    if (status == PERCH_OK) {
        status = cuda_check(device, cuda_convert(device->compute, dtype, raw, device->dtype, n, aligned ? to : rounded),
                            "converting weights", err);
    }
    if (status == PERCH_OK && !aligned) {
        status = cuda_check(device,
                            cudaMemcpyAsync(to, rounded, n * CUDA_ACT_BYTES, cudaMemcpyDeviceToDevice, device->compute),
                            "moving weights", err);
    }
    return status;
}

perch_status cuda_weight_set_rows(kernels_device *device, kernels_weight *weight, uint32_t first, uint32_t n,
                                  kernels_dtype dtype, const void *rows, perch_error *err) {
    const gemm_shape *shape = weight->shape;
    if (first > shape->n_out || n > shape->n_out - first) {
        return err_set(err, PERCH_E_INVALID, "rows %u..%" PRIu64 " of a weight that has %u", first, (uint64_t)first + n,
                       shape->n_out);
    }
    perch_status status = cuda_enter(device, err);
    size_t n_elements = (size_t)n * shape->n_in, element_bytes = dtype == KERNELS_F32 ? 4 : 2;
    uint8_t *to = weight->data + (size_t)first * shape->n_in * CUDA_ACT_BYTES;
    if (status == PERCH_OK && dtype == device->dtype) {
        return cuda_send(device, to, rows, n_elements * CUDA_ACT_BYTES, err);
    }
    for (size_t done = 0; done < n_elements && status == PERCH_OK;) {
        size_t piece = n_elements - done, most = CUDA_PIECE_BYTES / element_bytes;
        piece = piece < most ? piece : most;
        status = send_converted(device, dtype, (const uint8_t *)rows + done * element_bytes, piece,
                                to + done * CUDA_ACT_BYTES, err);
        done += piece;
    }
    return status;
}
