/*
 * The host tier: page-locked frames, and the copies between them and the KV pages, which run beside the steps on a
 * stream for each direction. A transfer comes after what is queued on `compute` when it is asked for, so that what a
 * step writes is what is stored, and what it reads is not overwritten; an event there says so. The other way round
 * nothing is queued: the caller asks for a ticket before it queues what needs the page.
 *
 *   compute   step ─ queued ─ step ─ step
 *   stream             └ copies ─ done
 *
 * Pages are reached through the view of them all side by side, which no mapping of slots ever changes.
 */
#include "kernels/cuda/device.h"

#include <assert.h>

static const char *const names[KERNELS_DIRECTIONS] = {
    [KERNELS_LOAD] = "loading KV pages", [KERNELS_STORE] = "storing KV pages"};

/* --- open and close */

static perch_status open_frames(kernels_device *device, perch_error *err) {
    cuda_host *host = &device->host;
    void *data = NULL;
    /* CUDA does not say how page-locked memory is aligned. */
    cudaError_t e = cudaHostAlloc(&data, host->shape.bytes + FRAME_ALIGNMENT, cudaHostAllocDefault);
    if (e == cudaErrorMemoryAllocation) {
        (void)cudaGetLastError();
        return err_set(err, PERCH_E_NO_ROOM, "no page-locked memory for a host tier of %u frames, %zu bytes",
                       host->shape.n_frames, host->shape.bytes);
    }
    host->memory = data;
    host->frames = host->memory + (FRAME_ALIGNMENT - (uintptr_t)data % FRAME_ALIGNMENT) % FRAME_ALIGNMENT;
    return cuda_check(device, e, "page-locked memory for the host tier", err);
}

static perch_status open_way(kernels_device *device, cuda_way *way, perch_error *err) {
    cudaError_t e = cudaStreamCreateWithFlags(&way->stream, cudaStreamNonBlocking);
    if (e == cudaSuccess) {
        e = cuda_event_create(&way->queued);
    }
    for (uint32_t i = 0; i < CUDA_TICKETS && e == cudaSuccess; i++) {
        e = cuda_event_create(&way->done[i]);
    }
    return cuda_check(device, e, "a stream and events of the host tier", err);
}

static void close_way(cuda_way *way) {
    if (way->stream != NULL) {
        (void)cudaStreamSynchronize(way->stream);
        (void)cudaStreamDestroy(way->stream);
    }
    if (way->queued != NULL) {
        (void)cudaEventDestroy(way->queued);
    }
    for (uint32_t i = 0; i < CUDA_TICKETS; i++) {
        if (way->done[i] != NULL) {
            (void)cudaEventDestroy(way->done[i]);
        }
    }
}

perch_status cuda_host_open(kernels_device *device, uint32_t n_frames, perch_error *err) {
    const cuda_kv *kv = &device->kv;
    cuda_host *host = &device->host;
    frames_shape shape;
    perch_status status = cuda_enter(device, err);
    if (status != PERCH_OK) {
        return status;
    }
    if (!kv->is_open || host->is_open) {
        return err_set(err, PERCH_E_INVALID, "the device's %s",
                       kv->is_open ? "host tier is open already" : "KV memory is not open");
    }
    status = frames_plan(kv->shape.n_pages, kv->shape.page_bytes, n_frames, &shape, err);
    if (status != PERCH_OK) {
        return status;
    }
    *host = (cuda_host){.is_open = true, .shape = shape};
    if ((status = open_way(device, &host->ways[KERNELS_LOAD], err)) != PERCH_OK ||
        (status = open_way(device, &host->ways[KERNELS_STORE], err)) != PERCH_OK ||
        (status = open_frames(device, err)) != PERCH_OK) {
        cuda_host_close(device);
    }
    return status;
}

void cuda_host_close(kernels_device *device) {
    cuda_host *host = &device->host;
    if (!host->is_open) {
        return;
    }
    (void)cudaSetDevice(device->ordinal);
    close_way(&host->ways[KERNELS_LOAD]);
    close_way(&host->ways[KERNELS_STORE]);
    if (host->memory != NULL) {
        (void)cudaFreeHost(host->memory);
    }
    *host = (cuda_host){.is_open = false};
}

uint8_t *cuda_host_frame(const kernels_device *device, uint32_t frame) {
    assert(device->host.is_open && frame < device->host.shape.n_frames);
    return device->host.frames + frame * device->host.shape.frame_bytes;
}

/* --- transfers */

static perch_status enter(kernels_device *device, perch_error *err) {
    perch_status status = cuda_enter(device, err);
    if (status == PERCH_OK && !device->host.is_open) {
        status = err_set(err, PERCH_E_INVALID, "GPU %d has no host tier", device->ordinal);
    }
    return status;
}

static cudaError_t queue_copies(kernels_device *device, kernels_direction direction, const kernels_transfer *list,
                                size_t n) {
    const frames_shape *shape = &device->host.shape;
    cudaError_t e = cudaSuccess;
    for (size_t i = 0; i < n && e == cudaSuccess;) {
        const uint32_t length = frames_run(shape, &list[i], n - i);
        uint8_t *page = (uint8_t *)(uintptr_t)device->kv.pool + list[i].page * shape->page_bytes;
        uint8_t *frame = cuda_host_frame(device, list[i].frame);
        e = cudaMemcpyAsync(direction == KERNELS_LOAD ? page : frame, direction == KERNELS_LOAD ? frame : page,
                            length * shape->page_bytes,
                            direction == KERNELS_LOAD ? cudaMemcpyHostToDevice : cudaMemcpyDeviceToHost,
                            device->host.ways[direction].stream);
        i += length;
    }
    return e;
}

perch_status cuda_transfer(kernels_device *device, kernels_direction direction, const kernels_transfer *list, size_t n,
                           uint64_t *ticket, perch_error *err) {
    perch_status status = enter(device, err);
    if (status != PERCH_OK || (status = frames_check(&device->host.shape, list, n, err)) != PERCH_OK) {
        return status;
    }
    cuda_way *way = &device->host.ways[direction];
    if (n > 0) {
        cudaError_t e = cudaEventRecord(way->queued, device->compute);
        if (e == cudaSuccess) {
            e = cudaStreamWaitEvent(way->stream, way->queued, 0);
        }
        if (e == cudaSuccess) {
            e = queue_copies(device, direction, list, n);
        }
        if (e == cudaSuccess) {
            e = cudaEventRecord(way->done[(way->newest + 1) % CUDA_TICKETS], way->stream);
        }
        if ((status = cuda_check(device, e, names[direction], err)) != PERCH_OK) {
            return status;
        }
        way->newest++;
    }
    *ticket = way->newest;
    return PERCH_OK;
}

perch_status cuda_transferred(kernels_device *device, kernels_direction direction, uint64_t *ticket, perch_error *err) {
    *ticket = 0;
    perch_status status = enter(device, err);
    if (status != PERCH_OK) {
        return status;
    }
    cuda_way *way = &device->host.ways[direction];
    while (way->passed < way->newest) {
        cudaError_t e = cudaEventQuery(way->done[(way->passed + 1) % CUDA_TICKETS]);
        if (e == cudaErrorNotReady) {
            (void)cudaGetLastError();
            break;
        }
        if ((status = cuda_check(device, e, names[direction], err)) != PERCH_OK) {
            return status;
        }
        way->passed++;
    }
    *ticket = way->passed;
    return PERCH_OK;
}

perch_status cuda_transfer_wait(kernels_device *device, kernels_direction direction, uint64_t ticket,
                                perch_error *err) {
    perch_status status = enter(device, err);
    if (status != PERCH_OK) {
        return status;
    }
    cuda_way *way = &device->host.ways[direction];
    if (ticket > way->newest) {
        return err_set(err, PERCH_E_INVALID, "waiting for transfer %" PRIu64 " of %" PRIu64, ticket, way->newest);
    }
    if (ticket <= way->passed) {
        return PERCH_OK;
    }
    status = cuda_check(device, cudaEventSynchronize(way->done[ticket % CUDA_TICKETS]), names[direction], err);
    way->passed = status == PERCH_OK ? ticket : way->passed;
    return status;
}
