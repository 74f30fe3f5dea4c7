/*
 * The CPU backend: its table of functions, opening and closing. The device is this process: "device memory" is memory, and
 * every function but the transfers to the host tier has done its work when it returns.
 */
#include "kernels/cpu/device.h"

#include "kernels/abi.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_THREADS 1024u

static void cpu_close(kernels_device *device) {
    if (device == NULL) {
        return;
    }
    cpu_kv_close(device);
    cpu_weight_destroy_all(device);
    cpu_free_all(device);
    cpu_region_close(&device->rounded);
    cpu_pool_close(device->pool);
    free(device->scratch);
    free(device);
}

static perch_status cpu_open(const kernels_config *config, kernels_device **out, perch_error *err) {
    *out = NULL;
    if (config->dtype != KERNELS_F32 && config->dtype != KERNELS_BF16) {
        return err_set(err, PERCH_E_UNSUPPORTED, "the cpu backend computes in f32 or bf16 only");
    }
    if (config->n_threads > MAX_THREADS) {
        return err_set(err, PERCH_E_INVALID, "%u threads are more than %u", config->n_threads, MAX_THREADS);
    }
    kernels_device *device = calloc(1, sizeof *device);
    if (device == NULL) {
        return err_nomem(err, "the cpu device");
    }
    device->kv.fd = -1;
    device->bf16 = config->dtype == KERNELS_BF16;
    device->n_threads = config->n_threads != 0 ? config->n_threads : cpu_count();
    device->n_threads = device->n_threads < MAX_THREADS ? device->n_threads : MAX_THREADS;
    perch_status status = cpu_isa_find(config->isa, device->bf16, &device->isa, err);
    if (status != PERCH_OK) {
        goto fail;
    }
    device->scratch = aligned_alloc(_Alignof(cpu_scratch), device->n_threads * sizeof *device->scratch);
    if (device->scratch == NULL) {
        status = err_nomem(err, "the compute threads' scratch memory");
        goto fail;
    }
    memset(device->scratch, 0, device->n_threads * sizeof *device->scratch);
    if (device->bf16) {
        status =
            cpu_region_open(CPU_ROUNDED_BYTES, false, "the matrix products' rounded inputs", &device->rounded, err);
        if (status != PERCH_OK) {
            goto fail;
        }
    }
    status = cpu_pool_open(device->n_threads, &device->pool, err);
    if (status != PERCH_OK) {
        goto fail;
    }
    snprintf(device->description, sizeof device->description, "cpu %s, %u thread%s", device->isa->name,
             device->n_threads, device->n_threads == 1 ? "" : "s");
    *out = device;
    return PERCH_OK;
fail:
    cpu_close(device);
    return status;
}

static const char *cpu_describe(const kernels_device *device) { return device->description; }

static size_t cpu_act_bytes(const kernels_device *device) {
    (void)device; /* f32 with either type: what is between the matrix products is not rounded */
    return sizeof(float);
}

static perch_status cpu_free_bytes(kernels_device *device, uint64_t *out, perch_error *err) {
    (void)device;
    return host_free_bytes("", out, err);
}

static const kernels_backend backend = {
    .abi = KERNELS_ABI,
    .name = "cpu",
    .async = NULL,
    .open = cpu_open,
    .close = cpu_close,
    .describe = cpu_describe,
    .act_bytes = cpu_act_bytes,
    .free_bytes = cpu_free_bytes,
    .alloc = cpu_alloc,
    .free = cpu_free,
    .upload = cpu_upload,
    .download = cpu_download,
    .weight_bytes = cpu_weight_bytes,
    .weight_create = cpu_weight_create,
    .weight_destroy = cpu_weight_destroy,
    .weight_set_rows = cpu_weight_set_rows,
    .kv_page_granularity = cpu_kv_page_granularity,
    .kv_open = cpu_kv_open,
    .kv_close = cpu_kv_close,
    .kv_slot = cpu_kv_slot,
    .kv_execute = cpu_kv_execute,
    .host_open = cpu_host_open,
    .host_close = cpu_host_close,
    .host_frame = cpu_host_frame,
    .transfer = cpu_transfer,
    .transferred = cpu_transferred,
    .transfer_wait = cpu_transfer_wait,
    .embed = cpu_embed,
    .rmsnorm = cpu_rmsnorm,
    .linear = cpu_linear,
    .linear_f32 = cpu_linear_f32,
    .head_norm = cpu_head_norm,
    .rope_write = cpu_rope_write,
    .attention = cpu_run_attention,
    .silu_mul = cpu_silu_mul,
    .gather = cpu_gather,
};

const kernels_backend *kernels_cpu(void) { return &backend; }
