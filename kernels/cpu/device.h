/*
 * The CPU backend's device and the functions that fill in its table, file by file.
 */
#ifndef PERCH_KERNELS_CPU_DEVICE_H
#define PERCH_KERNELS_CPU_DEVICE_H

#include "kernels/cpu/isa.h"
#include "kernels/cpu/pool.h"
#include "kernels/kernels.h"

/* bf16: inputs of matrix products are rounded into this much memory, and taken in pieces where they are larger. */
#define CPU_ROUNDED_BYTES ((size_t)16 << 20)

/* A run of zeroed memory: from mmap with huge-page advice where it is large, else from the heap. */
typedef struct cpu_region {
    void *data; /* aligned to 64 bytes, large ones to 2 MiB */
    size_t bytes;
    size_t mapped_bytes; /* 0: from the heap */
} cpu_region;

typedef struct cpu_buffer {
    cpu_region region;
    struct cpu_buffer *next;
} cpu_buffer;

/* Panels side by side, as format.h has them; outputs and inputs behind the last are 0. */
struct kernels_weight {
    cpu_region region;
    uint32_t n_out;
    uint32_t n_in;
    uint32_t n_panels;
    size_t n_words; /* of one row as products read it, whatever the format */
    size_t panel_bytes;
    cpu_format format;
    struct kernels_weight *next;
};

/* KV memory: one memfd. VMM: slots are places side by side in one reserved range. TABLE: slots are tables of addresses. */
typedef struct cpu_kv {
    int fd; /* -1: closed */
    kernels_mapping mapping;
    uint8_t *reservation; /* addresses that can't be accessed: the slots; TABLE: one group */
    size_t reserved_bytes;
    uint8_t *base; /* VMM: slot 0's place 0, aligned within the reservation */
    size_t page_bytes;
    uint32_t n_pages;
    uint32_t n_slots;
    uint32_t pages_per_slot;
    uint8_t *copy_buffer; /* what KV_COPY moves at a time */
    uint8_t *pool;        /* TABLE: all pages */
    size_t pool_bytes;
    uint8_t **blocks; /* TABLE: [n_slots][pages_per_slot][groups_per_page] where each group lies */
    size_t group_bytes;
    size_t groups_per_page;
} cpu_kv;

typedef struct cpu_host cpu_host;

struct kernels_device {
    bool bf16;
    uint32_t n_threads;
    const cpu_isa *isa;
    cpu_pool *pool;
    cpu_scratch *scratch; /* [n_threads] */
    cpu_region rounded;   /* CPU_ROUNDED_BYTES, with bf16 */
    cpu_buffer *buffers;
    kernels_weight *weights;
    cpu_kv kv;
    cpu_host *host; /* NULL: there is none */
    char description[64];
};

static inline size_t cpu_element_bytes(const kernels_device *device) {
    return device->bf16 ? sizeof(uint16_t) : sizeof(float);
}

/* memory.c. touch: every page is written, so that the memory is there; else the pages come as they are used. */
perch_status cpu_region_open(size_t bytes, bool touch, const char *what, cpu_region *out, perch_error *err);
void cpu_region_close(cpu_region *region);
perch_status cpu_alloc(kernels_device *device, size_t bytes, void **out, perch_error *err);
void cpu_free(kernels_device *device, void *buffer);
perch_status cpu_upload(kernels_device *device, void *to, const void *from_host, size_t bytes, perch_error *err);
perch_status cpu_download(kernels_device *device, void *to_host, const void *from, size_t bytes, perch_error *err);
void cpu_free_all(kernels_device *device);

/* weights.c */
uint64_t cpu_weight_bytes(const kernels_device *device, uint32_t n_out, uint32_t n_in, kernels_weight_format format);
perch_status cpu_weight_create(kernels_device *device, uint32_t n_out, uint32_t n_in, kernels_weight_format format,
                               kernels_weight **out, perch_error *err);
void cpu_weight_destroy(kernels_device *device, kernels_weight *weight);
perch_status cpu_weight_set_rows(kernels_device *device, kernels_weight *weight, uint32_t first, uint32_t n,
                                 kernels_dtype dtype, const void *rows, perch_error *err);
void cpu_weight_row(const kernels_device *device, const kernels_weight *weight, uint32_t row, float *out);
void cpu_weight_destroy_all(kernels_device *device);

/* kv.c */
uint64_t cpu_kv_page_granularity(const kernels_device *device);
perch_status cpu_kv_open(kernels_device *device, const kernels_kv *kv, perch_error *err);
void cpu_kv_close(kernels_device *device);
kv_view cpu_kv_slot(const kernels_device *device, uint32_t slot);
perch_status cpu_kv_execute(kernels_device *device, const kv_command *commands, size_t n, perch_error *err);

/* All of n bytes at an offset into the pages, side by side, to or from `data`; false: errno says why not. */
bool cpu_kv_move(const cpu_kv *kv, kernels_direction direction, uint64_t offset, uint8_t *data, size_t n);

/* host.c */
perch_status cpu_host_open(kernels_device *device, uint32_t n_frames, perch_error *err);
void cpu_host_close(kernels_device *device);
uint8_t *cpu_host_frame(const kernels_device *device, uint32_t frame);
perch_status cpu_transfer(kernels_device *device, kernels_direction direction, const kernels_transfer *list, size_t n,
                          uint64_t *ticket, perch_error *err);
perch_status cpu_transferred(kernels_device *device, kernels_direction direction, uint64_t *ticket, perch_error *err);
perch_status cpu_transfer_wait(kernels_device *device, kernels_direction direction, uint64_t ticket, perch_error *err);

/* kv_table.c: what is different with mapping = table, for kv.c */
perch_status cpu_table_check(const kernels_kv *config, perch_error *err);
perch_status cpu_table_plan(cpu_kv *kv, size_t group_bytes, size_t *table_bytes, perch_error *err);
perch_status cpu_table_open(cpu_kv *kv, size_t pool_bytes, size_t table_bytes, perch_error *err);
void cpu_table_close(cpu_kv *kv);
uint8_t **cpu_table_place(const cpu_kv *kv, uint32_t slot, uint32_t index);
void cpu_table_execute(const cpu_kv *kv, const kv_command *c); /* MAP, UNMAP */

/* ops.c, attention_ops.c: the math, as kernels.h has it */
perch_status cpu_embed(kernels_device *device, const kernels_weight *weight, const kernels_batch *batch,
                       uint32_t n_tokens, float *y, perch_error *err);
perch_status cpu_rmsnorm(kernels_device *device, const float *x, const float *gain, float eps, uint32_t n_tokens,
                         uint32_t width, void *y, perch_error *err);
perch_status cpu_linear(kernels_device *device, const kernels_weight *weight, const float *bias, const void *x,
                        uint32_t n_tokens, void *y, bool accumulate, perch_error *err);
perch_status cpu_linear_f32(kernels_device *device, const kernels_weight *weight, const void *x, uint32_t n_tokens,
                            float *y, perch_error *err);
perch_status cpu_head_norm(kernels_device *device, void *x, uint32_t n_tokens, uint32_t stride, uint32_t offset,
                           uint32_t n_heads, uint32_t head_dim, const float *gain, float eps, perch_error *err);
perch_status cpu_rope_write(kernels_device *device, const kernels_batch *batch, const kernels_attention *attention,
                            const float *table, void *qkv, perch_error *err);
perch_status cpu_run_attention(kernels_device *device, const kernels_batch *batch, const kernels_attention *attention,
                               const void *qkv, void *out, perch_error *err);
perch_status cpu_silu_mul(kernels_device *device, const void *gate_up, uint32_t n_tokens, uint32_t width, void *y,
                          perch_error *err);
perch_status cpu_gather(kernels_device *device, const kernels_batch *batch, uint32_t n_logits, const void *x,
                        size_t row_bytes, void *y, perch_error *err);

#endif
