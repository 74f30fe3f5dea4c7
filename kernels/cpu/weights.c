/*
 * Weights, packed as the matrix products read them: panels of 64 outputs, each one run of memory that is walked through from
 * front to back. A row of the matrix is therefore a column of its panel; rows are stored by panels, a few inputs of up to
 * 64 rows at a time, so that both sides stay in the cache.
 */
#include "kernels/cpu/convert.h"
#include "kernels/cpu/device.h"

#include <inttypes.h>
#include <stdlib.h>

/* Inputs of a row that are converted at a time: one cache line of bf16. */
#define PACK_INPUTS 32u

static bool shape_bytes(const kernels_device *device, uint32_t n_out, uint32_t n_in, size_t *bytes) {
    size_t n_panels = ((size_t)n_out + CPU_PANEL - 1) / CPU_PANEL;
    size_t n_words = device->bf16 ? ((size_t)n_in + 1) / 2 : n_in;
    return mul_size(n_panels * CPU_PANEL, n_words, bytes) && mul_size(*bytes, sizeof(uint32_t), bytes);
}

uint64_t cpu_weight_bytes(const kernels_device *device, uint32_t n_out, uint32_t n_in) {
    size_t bytes;
    return shape_bytes(device, n_out, n_in, &bytes) ? bytes + sizeof(kernels_weight) : UINT64_MAX;
}

perch_status cpu_weight_create(kernels_device *device, uint32_t n_out, uint32_t n_in, kernels_weight **out,
                               perch_error *err) {
    *out = NULL;
    size_t bytes;
    kernels_weight *weight = calloc(1, sizeof *weight);
    if (weight == NULL || !shape_bytes(device, n_out, n_in, &bytes)) {
        free(weight);
        return err_nomem(err, "a weight");
    }
    perch_status status = cpu_region_open(bytes, false, "a weight", &weight->region, err);
    if (status != PERCH_OK) {
        free(weight);
        return status;
    }
    weight->n_out = n_out;
    weight->n_in = n_in;
    weight->n_panels = n_out / CPU_PANEL + (n_out % CPU_PANEL != 0 ? 1 : 0);
    weight->n_words = device->bf16 ? ((size_t)n_in + 1) / 2 : n_in;
    weight->next = device->weights;
    if (device->weights != NULL) {
        device->weights->previous = weight;
    }
    device->weights = weight;
    *out = weight;
    return PERCH_OK;
}

void cpu_weight_destroy(kernels_device *device, kernels_weight *weight) {
    if (weight == NULL) {
        return;
    }
    if (weight->previous != NULL) {
        weight->previous->next = weight->next;
    } else {
        device->weights = weight->next;
    }
    if (weight->next != NULL) {
        weight->next->previous = weight->previous;
    }
    cpu_region_close(&weight->region);
    free(weight);
}

void cpu_weight_destroy_all(kernels_device *device) {
    while (device->weights != NULL) {
        cpu_weight_destroy(device, device->weights);
    }
}

/* Where element (output, input) lies, counted in elements. */
static size_t element_at(const kernels_weight *weight, bool bf16, size_t output, size_t input) {
    size_t panel = output / CPU_PANEL * weight->n_words * CPU_PANEL;
    size_t lane = output % CPU_PANEL;
    return bf16 ? (panel + input / 2 * CPU_PANEL + lane) * 2 + input % 2 : panel + input * CPU_PANEL + lane;
}

typedef struct pack {
    kernels_weight *weight;
    bool bf16;
    size_t first; /* rows [first, last) */
    size_t last;
    kernels_dtype dtype;
    const uint8_t *rows;
} pack;

static float source_value(kernels_dtype dtype, const uint8_t *at) {
    if (dtype == KERNELS_F32) {
        float x;
        memcpy(&x, at, sizeof x);
        return x;
    }
    uint16_t h;
    memcpy(&h, at, sizeof h);
    return dtype == KERNELS_F16 ? f16_to_f32(h) : bf16_to_f32(h);
}

/* One row's inputs [i0, i1). */
static void pack_inputs(const pack *p, size_t row, size_t i0, size_t i1) {
    const kernels_weight *weight = p->weight;
    size_t source_bytes = p->dtype == KERNELS_F32 ? 4 : 2;
    const uint8_t *from = p->rows + ((row - p->first) * weight->n_in + i0) * source_bytes;
    if (p->bf16) {
        uint16_t *to = weight->region.data;
        for (size_t i = i0; i < i1; i++, from += source_bytes) {
            to[element_at(weight, true, row, i)] = f32_to_bf16(source_value(p->dtype, from));
        }
    } else {
        float *to = weight->region.data;
        for (size_t i = i0; i < i1; i++, from += source_bytes) {
            to[element_at(weight, false, row, i)] = source_value(p->dtype, from);
        }
    }
}

static void pack_panel(void *context, size_t task, uint32_t thread) {
    (void)thread;
    const pack *p = context;
    size_t panel = p->first / CPU_PANEL + task;
    size_t first = panel * CPU_PANEL > p->first ? panel * CPU_PANEL : p->first;
    size_t last = (panel + 1) * CPU_PANEL < p->last ? (panel + 1) * CPU_PANEL : p->last;
    for (size_t i0 = 0; i0 < p->weight->n_in; i0 += PACK_INPUTS) {
        size_t i1 = i0 + PACK_INPUTS < p->weight->n_in ? i0 + PACK_INPUTS : p->weight->n_in;
        for (size_t row = first; row < last; row++) {
            pack_inputs(p, row, i0, i1);
        }
    }
}

perch_status cpu_weight_set_rows(kernels_device *device, kernels_weight *weight, uint32_t first, uint32_t n,
                                 kernels_dtype dtype, const void *rows, perch_error *err) {
    if (first > weight->n_out || n > weight->n_out - first) {
        return err_set(err, PERCH_E_INVALID, "rows %u..%" PRIu64 " of a weight that has %u", first, (uint64_t)first + n,
                       weight->n_out);
    }
    if (n == 0) {
        return PERCH_OK;
    }
    pack p = {weight, device->bf16, first, (size_t)first + n, dtype, rows};
    cpu_pool_run(device->pool, (p.last - 1) / CPU_PANEL - p.first / CPU_PANEL + 1, pack_panel, &p);
    return PERCH_OK;
}

void cpu_weight_row(const kernels_device *device, const kernels_weight *weight, uint32_t row, float *out) {
    if (device->bf16) {
        const uint16_t *from = weight->region.data;
        for (size_t i = 0; i < weight->n_in; i++) {
            out[i] = bf16_to_f32(from[element_at(weight, true, row, i)]);
        }
    } else {
        const float *from = weight->region.data;
        for (size_t i = 0; i < weight->n_in; i++) {
            out[i] = from[element_at(weight, false, row, i)];
        }
    }
}
