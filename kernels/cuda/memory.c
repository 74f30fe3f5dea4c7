/*
 * Device memory, and the way there and back: a ring of pinned host memory through which everything that comes from the
 * caller's memory is copied in pieces, since the GPU copies from pinned memory alone without the driver's help.
 */
#include "kernels/cuda/device.h"

#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* --- staging */

perch_status cuda_staging_open(kernels_device *device, perch_error *err) {
    cuda_staging *s = &device->staging;
    void *data = NULL;
    perch_status status = cuda_check(device, cudaHostAlloc(&data, CUDA_STAGING_BYTES, cudaHostAllocDefault),
                                     "pinned memory for copies", err);
    s->data = data;
    for (uint32_t i = 0; i < CUDA_STAGING_FENCES && status == PERCH_OK; i++) {
        status = cuda_check(device, cuda_event_create(&s->event[i]), "an event of the copies", err);
    }
    return status;
}

void cuda_staging_close(kernels_device *device) {
    cuda_staging *s = &device->staging;
    for (uint32_t i = 0; i < CUDA_STAGING_FENCES; i++) {
        if (s->event[i] != NULL) {
            (void)cudaEventDestroy(s->event[i]);
        }
    }
    if (s->data != NULL) {
        (void)cudaFreeHost(s->data);
    }
    *s = (cuda_staging){0};
}

perch_status cuda_staging_wait(kernels_device *device, uint64_t fence, perch_error *err) {
    cuda_staging *s = &device->staging;
    while (s->n_passed < fence) {
        uint32_t oldest = (uint32_t)(s->n_passed % CUDA_STAGING_FENCES);
        perch_status status = cuda_check(device, cudaEventSynchronize(s->event[oldest]), "waiting for a copy", err);
        if (status != PERCH_OK) {
            return status;
        }
        s->tail = s->position[oldest];
        s->n_passed++;
    }
    return PERCH_OK;
}

perch_status cuda_staging_fence(kernels_device *device, uint64_t *fence, perch_error *err) {
    cuda_staging *s = &device->staging;
    if (s->n_fences - s->n_passed == CUDA_STAGING_FENCES) {
        perch_status status = cuda_staging_wait(device, s->n_passed + 1, err);
        if (status != PERCH_OK) {
            return status;
        }
    }
    uint32_t at = (uint32_t)(s->n_fences % CUDA_STAGING_FENCES);
    perch_status status =
        cuda_check(device, cudaEventRecord(s->event[at], device->compute), "an event behind a copy", err);
    if (status == PERCH_OK) {
        s->position[at] = s->fenced = s->head;
        *fence = ++s->n_fences;
    }
    return status;
}

perch_status cuda_staging_take(kernels_device *device, size_t bytes, void **out, perch_error *err) {
    cuda_staging *s = &device->staging;
    assert(bytes <= CUDA_PIECE_BYTES);
    uint64_t fence;
    perch_status status = PERCH_OK;
    if (s->head - s->fenced >= CUDA_PIECE_BYTES) {
        status = cuda_staging_fence(device, &fence, err);
    }
    size_t at = (size_t)(s->head % CUDA_STAGING_BYTES);
    uint64_t begin = at + bytes > CUDA_STAGING_BYTES ? s->head + (CUDA_STAGING_BYTES - at) : s->head;
    uint64_t end = begin + cuda_align(bytes);
    while (status == PERCH_OK && end - s->tail > CUDA_STAGING_BYTES) {
        status = s->n_passed == s->n_fences ? cuda_staging_fence(device, &fence, err) : PERCH_OK;
        if (status == PERCH_OK) {
            status = cuda_staging_wait(device, s->n_passed + 1, err);
        }
    }
    if (status == PERCH_OK) {
        *out = s->data + begin % CUDA_STAGING_BYTES;
        s->head = end;
    }
    return status;
}

perch_status cuda_send(kernels_device *device, void *to, const void *from_host, size_t bytes, perch_error *err) {
    perch_status status = PERCH_OK;
    for (size_t done = 0; done < bytes && status == PERCH_OK;) {
        size_t n = bytes - done < CUDA_PIECE_BYTES ? bytes - done : CUDA_PIECE_BYTES;
        void *piece;
        status = cuda_staging_take(device, n, &piece, err);
        if (status == PERCH_OK) {
            memcpy(piece, (const uint8_t *)from_host + done, n);
            status = cuda_check(
                device, cudaMemcpyAsync((uint8_t *)to + done, piece, n, cudaMemcpyHostToDevice, device->compute),
                "a copy to the GPU", err);
        }
        done += n;
    }
    return status;
}

/* --- buffers */

perch_status cuda_free_bytes(kernels_device *device, uint64_t *out, perch_error *err) {
    size_t left = 0, total = 0;
    perch_status status = cuda_enter(device, err);
    if (status == PERCH_OK) {
        status = cuda_check(device, cudaMemGetInfo(&left, &total), "asking for the GPU's free memory", err);
    }
    *out = left;
    return status;
}

perch_status cuda_take(kernels_device *device, size_t bytes, const char *what, void **out, perch_error *err) {
    *out = NULL;
    cudaError_t e = cudaMalloc(out, bytes > 0 ? bytes : 1);
    if (e == cudaErrorMemoryAllocation) {
        size_t left = 0, total = 0;
        (void)cudaGetLastError();
        bool known = cudaMemGetInfo(&left, &total) == cudaSuccess;
        return known ? err_set(err, PERCH_E_NOMEM,
                               "GPU %d is out of memory: %zu bytes for %s, %zu of its %zu bytes are free",
                               device->ordinal, bytes, what, left, total)
                     : err_set(err, PERCH_E_NOMEM, "GPU %d is out of memory: %zu bytes for %s", device->ordinal, bytes,
                               what);
    }
    return cuda_check(device, e, what, err);
}

perch_status cuda_alloc(kernels_device *device, size_t bytes, void **out, perch_error *err) {
    *out = NULL;
    perch_status status = cuda_enter(device, err);
    if (status != PERCH_OK) {
        return status;
    }
    cuda_buffer *buffer = calloc(1, sizeof *buffer);
    if (buffer == NULL) {
        return err_nomem(err, "a device buffer");
    }
    status = cuda_take(device, bytes, "a buffer", &buffer->data, err);
    if (status == PERCH_OK && bytes > 0) {
        status = cuda_check(device, cudaMemsetAsync(buffer->data, 0, bytes, device->compute), "zeroing a buffer", err);
    }
    if (status != PERCH_OK) {
        (void)cudaFree(buffer->data);
        free(buffer);
        return status;
    }
    buffer->next = device->buffers;
    device->buffers = buffer;
    *out = buffer->data;
    return PERCH_OK;
}

/* Looks for the buffer: there are tens of them, and they are freed when the engine ends. */
void cuda_free(kernels_device *device, void *data) {
    cuda_buffer **link = &device->buffers;
    while (*link != NULL && (*link)->data != data) {
        link = &(*link)->next;
    }
    cuda_buffer *buffer = *link;
    if (data != NULL && buffer != NULL) {
        (void)cudaSetDevice(device->ordinal);
        *link = buffer->next;
        (void)cudaFree(buffer->data); /* waits for what uses it */
        free(buffer);
    }
}

void cuda_free_all(kernels_device *device) {
    for (cuda_buffer *buffer = device->buffers, *next; buffer != NULL; buffer = next) {
        next = buffer->next;
        (void)cudaFree(buffer->data);
        free(buffer);
    }
    device->buffers = NULL;
}

perch_status cuda_upload(kernels_device *device, void *to, const void *from_host, size_t bytes, perch_error *err) {
    uint64_t fence;
    perch_status status = cuda_enter(device, err);
    if (status == PERCH_OK) {
        status = cuda_kv_settle(device, err);
    }
    if (status == PERCH_OK) {
        status = cuda_send(device, to, from_host, bytes, err);
    }
    if (status == PERCH_OK) {
        status = cuda_staging_fence(device, &fence, err);
    }
    return status == PERCH_OK ? cuda_staging_wait(device, fence, err) : status;
}

/* A piece is copied out of the ring while the next one is on its way into it. */
perch_status cuda_download(kernels_device *device, void *to_host, const void *from, size_t bytes, perch_error *err) {
    void *piece = NULL;
    uint64_t fence = 0;
    perch_status status = cuda_enter(device, err);
    if (status == PERCH_OK) {
        status = cuda_kv_settle(device, err);
    }
    for (size_t begun = 0, done = 0; done < bytes && status == PERCH_OK;) {
        const void *arriving = piece;
        uint64_t arriving_fence = fence;
        size_t arriving_bytes = begun - done;
        if (begun < bytes) {
            size_t n = bytes - begun < CUDA_PIECE_BYTES ? bytes - begun : CUDA_PIECE_BYTES;
            status = cuda_staging_take(device, n, &piece, err);
            if (status == PERCH_OK) {
                status = cuda_check(
                    device,
                    cudaMemcpyAsync(piece, (const uint8_t *)from + begun, n, cudaMemcpyDeviceToHost, device->compute),
                    "a copy from the GPU", err);
            }
            if (status == PERCH_OK) {
                status = cuda_staging_fence(device, &fence, err);
            }
            begun += n;
        }
        if (arriving_bytes > 0 && status == PERCH_OK) {
            status = cuda_staging_wait(device, arriving_fence, err);
            if (status == PERCH_OK) {
                memcpy((uint8_t *)to_host + done, arriving, arriving_bytes);
            }
            done += arriving_bytes;
        }
    }
    return status;
}
