/*
 * The CUDA backend: its table of functions, opening and closing, and what CUDA's errors become. What fails before a GPU is
 * usable says which versions and figures stand against one another; once a GPU has faulted its context is lost, and every
 * later call says so.
 */
#include "kernels/cuda/device.h"

#include "kernels/abi.h"
#include "kernels/cuda/choice.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MIN_MAJOR 8 /* bf16 matrix products, asynchronous copies to shared memory */

/* --- errors */

/* Notes what can't be got over. */
static perch_status failed(kernels_device *device, perch_status status, const char *what, const char *name,
                           const char *text, perch_error *err) {
    if (status == PERCH_E_DEVICE && device->fault.status == PERCH_OK) {
        err_set(&device->fault, PERCH_E_DEVICE, "GPU %d failed: %s: %s (%s)", device->ordinal, what, name, text);
    }
    return err_set(err, status, "GPU %d: %s: %s (%s)", device->ordinal, what, name, text);
}

perch_status cuda_check(kernels_device *device, cudaError_t e, const char *what, perch_error *err) {
    if (e == cudaSuccess) {
        return PERCH_OK;
    }
    (void)cudaGetLastError(); /* it is told here, and not again by the next launch */
    perch_status status = e == cudaErrorMemoryAllocation ? PERCH_E_NOMEM
                          : e == cudaErrorNotSupported   ? PERCH_E_UNSUPPORTED
                                                         : PERCH_E_DEVICE;
    return failed(device, status, what, cudaGetErrorName(e), cudaGetErrorString(e), err);
}

perch_status cuda_check_driver(kernels_device *device, CUresult e, const char *what, perch_error *err) {
    if (e == CUDA_SUCCESS) {
        return PERCH_OK;
    }
    const char *name = NULL, *text = NULL;
    (void)cuGetErrorName(e, &name);
    (void)cuGetErrorString(e, &text);
    perch_status status = e == CUDA_ERROR_OUT_OF_MEMORY   ? PERCH_E_NOMEM
                          : e == CUDA_ERROR_NOT_SUPPORTED ? PERCH_E_UNSUPPORTED
                                                          : PERCH_E_DEVICE;
    return failed(device, status, what, name != NULL ? name : "an unknown error", text != NULL ? text : "no text", err);
}

perch_status cuda_check_lt(kernels_device *device, cublasStatus_t e, const char *what, perch_error *err) {
    if (e == CUBLAS_STATUS_SUCCESS) {
        return PERCH_OK;
    }
    perch_status status = e == CUBLAS_STATUS_ALLOC_FAILED    ? PERCH_E_NOMEM
                          : e == CUBLAS_STATUS_NOT_SUPPORTED ? PERCH_E_UNSUPPORTED
                                                             : PERCH_E_DEVICE;
    return failed(device, status, what, cublasLtGetStatusName(e), cublasLtGetStatusString(e), err);
}

perch_status cuda_ready(const kernels_device *device, perch_error *err) {
    if (device->fault.status != PERCH_OK) {
        return err_set(err, device->fault.status, "%s", device->fault.message);
    }
    return PERCH_OK;
}

perch_status cuda_enter(kernels_device *device, perch_error *err) {
    perch_status status = cuda_ready(device, err);
    return status == PERCH_OK ? cuda_check(device, cudaSetDevice(device->ordinal), "making it current", err) : status;
}

cudaError_t cuda_event_create(cudaEvent_t *out) {
    return cudaEventCreateWithFlags(out, cudaEventDisableTiming | cudaEventBlockingSync);
}

/* --- open */

/* Why there is no GPU at all: versions of the driver and of the runtime this was built with, and what hides GPUs. */
static perch_status no_gpu(cudaError_t e, perch_error *err) {
    int driver = 0, runtime = 0;
    const char *visible = getenv("CUDA_VISIBLE_DEVICES");
    (void)cudaGetLastError();
    (void)cudaDriverGetVersion(&driver);
    (void)cudaRuntimeGetVersion(&runtime);
    if (e == cudaErrorInsufficientDriver) {
        return err_set(err, PERCH_E_UNSUPPORTED,
                       "the NVIDIA driver is too old: it has CUDA %d.%d, the CUDA backend needs %d.%d", driver / 1000,
                       driver % 1000 / 10, runtime / 1000, runtime % 1000 / 10);
    }
    return err_set(err, PERCH_E_UNSUPPORTED, "no GPU can be used: %s (%s); driver: CUDA %d.%d%s%s", cudaGetErrorName(e),
                   cudaGetErrorString(e), driver / 1000, driver % 1000 / 10,
                   visible != NULL ? ", CUDA_VISIBLE_DEVICES = " : "", visible != NULL ? visible : "");
}

static perch_status check_gpu(const kernels_config *config, struct cudaDeviceProp *out, perch_error *err) {
    int n = 0;
    cudaError_t e = cudaGetDeviceCount(&n);
    if (e == cudaSuccess && n == 0) {
        e = cudaErrorNoDevice;
    }
    if (e != cudaSuccess) {
        return no_gpu(e, err);
    }
    if (config->device >= (uint32_t)n) {
        return err_set(err, PERCH_E_UNSUPPORTED, "there is no GPU %u: %d can be seen, counted from 0", config->device,
                       n);
    }
    e = cudaGetDeviceProperties(out, (int)config->device);
    if (e != cudaSuccess) {
        return no_gpu(e, err);
    }
    if (out->major < MIN_MAJOR) {
        return err_set(err, PERCH_E_UNSUPPORTED, "GPU %u, %s, has compute capability %d.%d; %d.0 is the least",
                       config->device, out->name, out->major, out->minor, MIN_MAJOR);
    }
    return PERCH_OK;
}

/* The context, which the process shares with others that use CUDA in it. */
static perch_status open_context(kernels_device *device, size_t total_bytes, perch_error *err) {
    cudaError_t e = cudaSetDevice(device->ordinal);
    if (e == cudaSuccess) {
        e = cudaFree(NULL);
    }
    switch (e) {
    case cudaErrorDevicesUnavailable:
    case cudaErrorDeviceAlreadyInUse:
        (void)cudaGetLastError();
        return err_set(err, PERCH_E_DEVICE, "GPU %d, %s, is taken by another process (%s)", device->ordinal,
                       device->name, cudaGetErrorName(e));
    case cudaErrorMemoryAllocation:
        (void)cudaGetLastError();
        return err_set(err, PERCH_E_NOMEM, "GPU %d, %s, is full: of its %.1f GiB not enough is free to begin on it",
                       device->ordinal, device->name, (double)total_bytes / 1073741824.0);
    default:
        return cuda_check(device, e, "opening it", err);
    }
}

static perch_status open_granularity(kernels_device *device, perch_error *err) {
    int can = 0;
    size_t bytes = 0;
    perch_status status =
        cuda_check_driver(device, cuDeviceGet(&device->handle, device->ordinal), "asking for its handle", err);
    if (status == PERCH_OK) {
        CUresult e =
            cuDeviceGetAttribute(&can, CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED, device->handle);
        status = cuda_check_driver(device, e, "asking for virtual memory management", err);
    }
    if (status == PERCH_OK && can) {
        const CUmemAllocationProp prop = {.type = CU_MEM_ALLOCATION_TYPE_PINNED,
                                          .location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = device->handle}};
        CUresult e = cuMemGetAllocationGranularity(&bytes, &prop, CU_MEM_ALLOC_GRANULARITY_MINIMUM);
        status = cuda_check_driver(device, e, "asking for the size of its pages", err);
    }
    device->page_granularity = bytes;
    return status;
}

static perch_status open_streams(kernels_device *device, perch_error *err) {
    cudaStream_t *streams[] = {&device->compute, &device->upload, &device->download, &device->recorder.stream};
    perch_status status = PERCH_OK;
    for (size_t i = 0; i < sizeof streams / sizeof streams[0] && status == PERCH_OK; i++) {
        status =
            cuda_check(device, cudaStreamCreateWithFlags(streams[i], cudaStreamNonBlocking), "making a stream", err);
    }
    return status;
}

static void close_streams(kernels_device *device) {
    cudaStream_t streams[] = {device->compute, device->upload, device->download, device->recorder.stream};
    for (size_t i = 0; i < sizeof streams / sizeof streams[0]; i++) {
        if (streams[i] != NULL) {
            (void)cudaStreamDestroy(streams[i]);
        }
    }
}

static void cuda_close(kernels_device *device) {
    if (device == NULL) {
        return;
    }
    (void)cudaSetDevice(device->ordinal);
    /* On a GPU that is lost these and all that follow fail, and free what the host has all the same. */
    cudaStream_t streams[] = {device->compute, device->upload, device->download};
    for (size_t i = 0; i < sizeof streams / sizeof streams[0]; i++) {
        if (streams[i] != NULL) {
            (void)cudaStreamSynchronize(streams[i]);
        }
    }
    cuda_kv_close(device);
    cuda_graphs_close(device);
    cuda_unreserve(device);
    cuda_weight_destroy_all(device);
    cuda_free_all(device);
    cuda_gemm_close(device);
    cuda_staging_close(device);
    close_streams(device);
    (void)cudaGetLastError();
    free(device);
}

static void describe(kernels_device *device, const struct cudaDeviceProp *prop) {
    int driver = 0;
    (void)cudaDriverGetVersion(&driver);
    snprintf(device->description, sizeof device->description, "cuda %s, sm_%d%d, driver CUDA %d.%d%s", device->name,
             prop->major, prop->minor, driver / 1000, driver % 1000 / 10,
             device->deterministic ? ", deterministic" : "");
}

static perch_status cuda_open(const kernels_config *config, kernels_device **out, perch_error *err) {
    struct cudaDeviceProp prop;
    uint64_t before, after;
    *out = NULL;
    if (config->dtype != KERNELS_BF16 && config->dtype != KERNELS_F16) {
        return err_set(err, PERCH_E_UNSUPPORTED, "the CUDA backend computes in bf16 or f16 only");
    }
    perch_status status = check_gpu(config, &prop, err);
    if (status != PERCH_OK) {
        return status;
    }
    kernels_device *device = calloc(1, sizeof *device);
    if (device == NULL) {
        return err_nomem(err, "the CUDA device");
    }
    device->ordinal = (int)config->device;
    device->dtype = config->dtype;
    device->deterministic = config->deterministic;
    device->n_processors = (uint32_t)prop.multiProcessorCount;
    device->recorder.wanted = device->recorder.enabled = config->graphs;
    snprintf(device->name, sizeof device->name, "%s", prop.name);
    describe(device, &prop);
    const bool known = cuda_used_bytes(&prop, &before);
    if ((status = open_context(device, prop.totalGlobalMem, err)) != PERCH_OK ||
        (status = open_granularity(device, err)) != PERCH_OK || (status = open_streams(device, err)) != PERCH_OK ||
        (status = cuda_staging_open(device, err)) != PERCH_OK ||
        (status = cuda_gemm_open(device, config->cache_dir, err)) != PERCH_OK) {
        cuda_close(device);
        return status;
    }
    if (known && cuda_used_bytes(&prop, &after) && after > before) {
        device->context_bytes = after - before;
    }
    *out = device;
    return PERCH_OK;
}

/* --- the table */

static const char *cuda_describe(const kernels_device *device) { return device->description; }

static size_t cuda_act_bytes(const kernels_device *device) {
    (void)device;
    return CUDA_ACT_BYTES;
}

static uint64_t cuda_context_bytes(const kernels_device *device) { return device->context_bytes; }

static const kernels_async async = {
    .check = cuda_check_limits,
    .prepare = cuda_prepare,
    .context_bytes = cuda_context_bytes,
    .reserve_bytes = cuda_reserve_bytes,
    .reserve = cuda_reserve,
    .begin = cuda_begin,
    .end = cuda_end,
    .history = cuda_history,
    .can_choose = cuda_device_can_choose,
    .choose = cuda_queue_choices,
    .wait = cuda_wait,
    .failed_graphs = cuda_failed_graphs,
};

static const kernels_backend backend = {
    .abi = KERNELS_ABI,
    .name = "cuda",
    .async = &async,
    .open = cuda_open,
    .close = cuda_close,
    .describe = cuda_describe,
    .act_bytes = cuda_act_bytes,
    .free_bytes = cuda_free_bytes,
    .alloc = cuda_alloc,
    .free = cuda_free,
    .upload = cuda_upload,
    .download = cuda_download,
    .weight_bytes = cuda_weight_bytes,
    .weight_create = cuda_weight_create,
    .weight_destroy = cuda_weight_destroy,
    .weight_set_rows = cuda_weight_set_rows,
    .kv_page_granularity = cuda_kv_page_granularity,
    .kv_open = cuda_kv_open,
    .kv_close = cuda_kv_close,
    .kv_slot = cuda_kv_slot,
    .kv_execute = cuda_kv_execute,
    .host_open = cuda_host_open,
    .host_close = cuda_host_close,
    .host_frame = cuda_host_frame,
    .transfer = cuda_transfer,
    .transferred = cuda_transferred,
    .transfer_wait = cuda_transfer_wait,
    .embed = cuda_run_embed,
    .rmsnorm = cuda_run_rmsnorm,
    .linear = cuda_linear,
    .linear_f32 = cuda_linear_f32,
    .head_norm = cuda_run_head_norm,
    .rope_write = cuda_run_rope_write,
    .attention = cuda_run_attention,
    .silu_mul = cuda_run_silu_mul,
    .gather = cuda_run_gather,
};

/* The one symbol that the library exports. */
__attribute__((visibility("default"))) const kernels_backend *perch_cuda_backend(uint32_t abi);

const kernels_backend *perch_cuda_backend(uint32_t abi) { return abi == KERNELS_ABI ? &backend : NULL; }
