/*
 * Weights, packed as the matrix products read them: panels of 64 outputs, each one run of memory that is walked through from
 * front to back. A row of the matrix is therefore a column of its panel; rows are stored by panels, a few inputs of up to
 * 64 rows at a time, so that both sides stay in the cache.
 */
#include "kernels/cpu/convert.h"
#include "kernels/cpu/device.h"

#include <inttypes.h>
#include <stdlib.h>

/* Words of a row that are converted at a time: one cache line. */
#define PACK_WORDS 16u

/* Fills in what follows from the shape and the format, and the bytes of all panels. */
static bool weight_shape(const kernels_device *device, uint32_t n_out, uint32_t n_in, kernels_weight_format format,
                         kernels_weight *weight, size_t *bytes) {
    weight->n_out = n_out;
    weight->n_in = n_in;
    weight->n_panels = n_out / CPU_PANEL + (n_out % CPU_PANEL != 0 ? 1 : 0);
    weight->n_words = device->bf16 ? ((size_t)n_in + 1) / 2 : n_in;
    weight->format = format == KERNELS_WEIGHT_INT8                    ? CPU_INT8
                     : format == KERNELS_WEIGHT_INT4                  ? CPU_INT4
                     : format == KERNELS_WEIGHT_BF16 && !device->bf16 ? CPU_BF16
                                                                      : CPU_WORDS;
    bool fits = weight->format == CPU_WORDS
                    ? mul_size(weight->n_words, CPU_PANEL * sizeof(uint32_t), &weight->panel_bytes)
                    : mul_size(((size_t)n_in + CPU_GROUP - 1) / CPU_GROUP, cpu_block_bytes(weight->format),
                               &weight->panel_bytes);
    return fits && mul_size(weight->n_panels, weight->panel_bytes, bytes);
}

uint64_t cpu_weight_bytes(const kernels_device *device, uint32_t n_out, uint32_t n_in, kernels_weight_format format) {
    kernels_weight weight;
    size_t bytes;
    return weight_shape(device, n_out, n_in, format, &weight, &bytes) ? bytes + sizeof weight : UINT64_MAX;
}

perch_status cpu_weight_create(kernels_device *device, uint32_t n_out, uint32_t n_in, kernels_weight_format format,
                               kernels_weight **out, perch_error *err) {
    *out = NULL;
    if (n_out == 0 || n_in == 0 || n_in > CPU_ROUNDED_BYTES / sizeof(float)) {
        return err_set(err, PERCH_E_UNSUPPORTED, "a weight of %u outputs and %u inputs", n_out, n_in);
    }
    size_t bytes;
    kernels_weight *weight = calloc(1, sizeof *weight);
    if (weight == NULL || !weight_shape(device, n_out, n_in, format, weight, &bytes)) {
        free(weight);
        return err_nomem(err, "a weight");
    }
    perch_status status = cpu_region_open(bytes, false, "a weight", &weight->region, err);
    if (status != PERCH_OK) {
        free(weight);
        return status;
    }
    weight->next = device->weights;
    device->weights = weight;
    *out = weight;
    return PERCH_OK;
}

void cpu_weight_destroy(kernels_device *device, kernels_weight *weight) {
    kernels_weight **link = &device->weights;
    while (*link != NULL && *link != weight) {
        link = &(*link)->next;
    }
    if (weight != NULL && *link == weight) {
        *link = weight->next;
        cpu_region_close(&weight->region);
        free(weight);
    }
}

void cpu_weight_destroy_all(kernels_device *device) {
    for (kernels_weight *weight = device->weights, *next; weight != NULL; weight = next) {
        next = weight->next;
        cpu_region_close(&weight->region);
        free(weight);
    }
    device->weights = NULL;
}

/* Where element (output, input) lies, counted in elements. */
static size_t element_at(const kernels_weight *weight, bool bf16, size_t output, size_t input) {
    size_t panel = output / CPU_PANEL * weight->n_words * CPU_PANEL;
    size_t lane = output % CPU_PANEL;
    return bf16 ? (panel + input / 2 * CPU_PANEL + lane) * 2 + input % 2 : panel + input * CPU_PANEL + lane;
}

typedef struct pack {
    kernels_weight *weight;
    const cpu_isa *isa;
    bool bf16;
    size_t first; /* rows [first, last) */
    size_t last;
    kernels_dtype dtype;
    const uint8_t *rows;
} pack;

/* Inputs [first, first + n) of one row. */
static void load_values(const pack *p, size_t row, size_t first, size_t n, float *values) {
    size_t source_bytes = p->dtype == KERNELS_F32 ? 4 : 2;
    const uint8_t *from = p->rows + ((row - p->first) * p->weight->n_in + first) * source_bytes;
    if (p->dtype == KERNELS_F32) {
        memcpy(values, from, n * sizeof values[0]);
        return;
    }
    for (size_t i = 0; i < n; i++) {
        uint16_t half; /* rows need not be aligned: a checkpoint's may lie anywhere in its file */
        memcpy(&half, from + i * sizeof half, sizeof half);
        values[i] = p->dtype == KERNELS_F16 ? f16_to_f32(half) : bf16_to_f32(half);
    }
}

/* Words [word, word + n_words) of one row, 0 behind its last input. */
static void convert_words(const pack *p, size_t row, size_t word, size_t n_words, uint32_t *words) {
    size_t in_word = p->bf16 ? 2 : 1, first = word * in_word, n_in = p->weight->n_in;
    size_t n = n_in - first < n_words * in_word ? n_in - first : n_words * in_word;
    float values[PACK_WORDS * 2];
    load_values(p, row, first, n, values);
    if (p->bf16) {
        p->isa->round_bf16(values, n, words);
    } else {
        memcpy(words, values, n * sizeof values[0]);
    }
}

static void pack_words(const pack *p, size_t first, size_t last, uint32_t *words) {
    const kernels_weight *weight = p->weight;
    uint32_t tile[CPU_PANEL][PACK_WORDS] = {{0}};
    for (size_t word = 0; word < weight->n_words; word += PACK_WORDS) {
        size_t n_words = weight->n_words - word < PACK_WORDS ? weight->n_words - word : PACK_WORDS;
        for (size_t row = first; row < last; row++) {
            convert_words(p, row, word, n_words, tile[row - first]);
        }
        for (size_t k = 0; k < n_words; k++) {
            uint32_t *to = words + (word + k) * CPU_PANEL;
            for (size_t row = first; row < last; row++) {
                to[row % CPU_PANEL] = tile[row - first][k];
            }
        }
    }
}

/* One row's group as words of its block, by the format's number of bits. */
static void pack_group(const pack *p, size_t row, size_t group, uint8_t *block) {
    cpu_format format = p->weight->format;
    size_t first = group * CPU_GROUP, left = p->weight->n_in - first, output = row % CPU_PANEL;
    uint32_t *words = (uint32_t *)(void *)(block + cpu_scale_bytes(format));
    uint16_t *scales = (uint16_t *)(void *)block;
    float values[CPU_GROUP] = {0};
    int8_t codes[CPU_GROUP];
    load_values(p, row, first, left < CPU_GROUP ? left : CPU_GROUP, values);
    if (format != CPU_BF16) {
        cpu_quantize(format, values, codes, &scales[output]);
    }
    uint32_t mask = UINT32_MAX >> (32 - cpu_bits(format));
    for (size_t k = 0; k < CPU_GROUP; k++) {
        uint32_t code = format == CPU_BF16 ? f32_to_bf16(values[k]) : (uint32_t)(int32_t)codes[k] & mask;
        uint32_t *word = &words[cpu_block_word(format, output, k)];
        *word = (*word & ~(mask << cpu_block_bit(format, k))) | code << cpu_block_bit(format, k);
    }
}

static void pack_panel(void *context, size_t task, uint32_t thread) {
    (void)thread;
    const pack *p = context;
    const kernels_weight *weight = p->weight;
    size_t panel = p->first / CPU_PANEL + task;
    size_t first = panel * CPU_PANEL > p->first ? panel * CPU_PANEL : p->first;
    size_t last = (panel + 1) * CPU_PANEL < p->last ? (panel + 1) * CPU_PANEL : p->last;
    uint8_t *to = (uint8_t *)weight->region.data + panel * weight->panel_bytes;
    if (weight->format == CPU_WORDS) {
        pack_words(p, first, last, (uint32_t *)(void *)to);
        return;
    }
    size_t block_bytes = cpu_block_bytes(weight->format);
    for (size_t group = 0; group < weight->panel_bytes / block_bytes; group++) {
        for (size_t row = first; row < last; row++) {
            pack_group(p, row, group, to + group * block_bytes);
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
    pack p = {weight, device->isa, device->bf16, first, (size_t)first + n, dtype, rows};
    cpu_pool_run(device->pool, (p.last - 1) / CPU_PANEL - p.first / CPU_PANEL + 1, pack_panel, &p);
    return PERCH_OK;
}

/* What `unpack` and the scales make of a row (unpack_body.h). */
static void block_row(const kernels_weight *weight, uint32_t row, float *out) {
    cpu_format format = weight->format;
    const uint8_t *panel = (const uint8_t *)weight->region.data + row / CPU_PANEL * weight->panel_bytes;
    for (size_t i = 0; i < weight->n_in; i++) {
        const uint8_t *block = panel + i / CPU_GROUP * cpu_block_bytes(format);
        const uint32_t *words = (const uint32_t *)(const void *)(block + cpu_scale_bytes(format));
        uint32_t word = words[cpu_block_word(format, row % CPU_PANEL, i % CPU_GROUP)];
        unsigned bits = (unsigned)cpu_bits(format);
        uint32_t high = word << (32 - bits - cpu_block_bit(format, i % CPU_GROUP));
        if (format == CPU_BF16) {
            out[i] = f32_from_bits(high & 0xffff0000u);
        } else {
            uint16_t scale = ((const uint16_t *)(const void *)block)[row % CPU_PANEL];
            out[i] = bf16_to_f32(scale) * (float)((int32_t)high >> (32 - bits));
        }
    }
}

void cpu_weight_row(const kernels_device *device, const kernels_weight *weight, uint32_t row, float *out) {
    if (weight->format != CPU_WORDS) {
        block_row(weight, row, out);
    } else if (device->bf16) {
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
