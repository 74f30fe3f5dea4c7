/* reference_backend: every function of the kernels interface as the header's formula says it, in double. */
#include "tests/support/reference_backend.h"

#include "kernels/abi.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* Everything that a device has handed out hangs in one ring, so that close frees what is still open. */
typedef struct block {
    struct block *prev, *next;
    uint8_t padding[48]; /* what follows is aligned to 64 bytes */
} block;

struct kernels_weight {
    uint32_t n_out, n_in;
    float *values; /* [n_out][n_in], already rounded to the device's dtype; lies behind the struct */
};

struct kernels_device {
    block ring;
    kernels_dtype dtype;
    int kv_fd;        /* the physical pages; -1 = none */
    uint8_t *pool;    /* all pages, for copies */
    uint8_t *slots;   /* [n_slots][pages_per_slot] places; TABLE: one, that nothing lies in */
    uint8_t **blocks; /* TABLE: [n_slots][pages_per_slot][groups_per_page] where each group lies */
    uint64_t slots_bytes, group_bytes, groups_per_page;
    uint64_t page_bytes;
    uint32_t n_pages, pages_per_slot;
};

static void *ring_alloc(kernels_device *device, size_t bytes) {
    size_t total;
    if (!add_size(bytes, sizeof(block) + 63, &total)) {
        return NULL;
    }
    block *b = aligned_alloc(64, total / 64 * 64);
    if (!b) {
        return NULL;
    }
    memset(b, 0, total / 64 * 64);
    b->prev = &device->ring;
    b->next = device->ring.next;
    b->next->prev = b;
    device->ring.next = b;
    return b + 1;
}

static void ring_free(void *memory) {
    if (memory) {
        block *b = (block *)memory - 1;
        b->prev->next = b->next;
        b->next->prev = b->prev;
        free(b);
    }
}

static float float_of_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

static uint16_t bf16_of_float(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    if ((bits & 0x7FFFFFFFu) > 0x7F800000u) {
        return (uint16_t)(bits >> 16 | 0x40);
    }
    return (uint16_t)((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

static double rounded(kernels_dtype dtype, double value) {
    return dtype == KERNELS_BF16 ? (double)float_of_bits((uint32_t)bf16_of_float((float)value) << 16) : value;
}

static float half_to_float(uint16_t half) {
    int exponent = half >> 10 & 31;
    double fraction = half & 1023;
    double value = exponent == 0 ? ldexp(fraction, -24) : ldexp(fraction + 1024, exponent - 25);
    if (exponent == 31) {
        value = fraction > 0 ? (double)NAN : (double)INFINITY;
    }
    return (float)(half & 0x8000 ? -value : value);
}

/* Element i of rows of a stored type. */
static float load(kernels_dtype dtype, const void *from, size_t i) {
    uint16_t half;
    float value;
    if (dtype == KERNELS_F32) {
        memcpy(&value, (const uint8_t *)from + 4 * i, 4);
        return value;
    }
    memcpy(&half, (const uint8_t *)from + 2 * i, 2);
    return dtype == KERNELS_BF16 ? float_of_bits((uint32_t)half << 16) : half_to_float(half);
}

static void store(kernels_dtype dtype, void *to, size_t i, double value) {
    float single = (float)value;
    uint16_t half = bf16_of_float(single);
    if (dtype == KERNELS_F32) {
        memcpy((uint8_t *)to + 4 * i, &single, 4);
    } else {
        memcpy((uint8_t *)to + 2 * i, &half, 2);
    }
}

/* ---------------------------------------------------------------- device -- */

static void ref_kv_close(kernels_device *device) {
    if (device->pool) {
        munmap(device->pool, device->page_bytes * device->n_pages);
    }
    if (device->slots) {
        munmap(device->slots, device->slots_bytes);
    }
    if (device->kv_fd >= 0) {
        close(device->kv_fd);
    }
    ring_free(device->blocks);
    device->kv_fd = -1;
    device->pool = device->slots = NULL;
    device->blocks = NULL;
}

static perch_status ref_open(const kernels_config *config, kernels_device **out, perch_error *err) {
    *out = NULL;
    if (config->isa && strcmp(config->isa, "reference") != 0) {
        return err_set(err, PERCH_E_UNSUPPORTED, "the reference backend has no isa \"%s\"", config->isa);
    }
    if (config->dtype != KERNELS_F32 && config->dtype != KERNELS_BF16) {
        return err_set(err, PERCH_E_UNSUPPORTED, "the reference backend computes in f32 or bf16");
    }
    kernels_device *device = calloc(1, sizeof *device);
    if (!device) {
        return err_nomem(err, "the device");
    }
    device->ring.prev = device->ring.next = &device->ring;
    device->dtype = config->dtype;
    device->kv_fd = -1;
    *out = device;
    return PERCH_OK;
}

static void ref_close(kernels_device *device) {
    if (device) {
        ref_kv_close(device);
        while (device->ring.next != &device->ring) {
            ring_free(device->ring.next + 1);
        }
        free(device);
    }
}

static const char *ref_describe(const kernels_device *device) {
    return device->dtype == KERNELS_F32 ? "reference f32, 1 thread" : "reference bf16, 1 thread";
}

static size_t ref_act_bytes(const kernels_device *device) {
    (void)device;
    return sizeof(double);
}

static perch_status ref_free_bytes(kernels_device *device, uint64_t *out, perch_error *err) {
    (void)device;
    long pages = sysconf(_SC_AVPHYS_PAGES), page = sysconf(_SC_PAGESIZE);
    if (pages < 0 || page < 0) {
        return err_set(err, PERCH_E_DEVICE, "the system does not say how much memory is free");
    }
    *out = (uint64_t)pages * (uint64_t)page;
    return PERCH_OK;
}

static perch_status ref_alloc(kernels_device *device, size_t bytes, void **out, perch_error *err) {
    *out = ring_alloc(device, bytes);
    return *out ? PERCH_OK : err_nomem(err, "a device buffer");
}

static void ref_free(kernels_device *device, void *buffer) {
    (void)device;
    ring_free(buffer);
}

static perch_status ref_copy(kernels_device *device, void *to, const void *from, size_t bytes, perch_error *err) {
    (void)device;
    (void)err;
    memcpy(to, from, bytes);
    return PERCH_OK;
}

/* --------------------------------------------------------------- weights -- */

static uint64_t ref_weight_bytes(const kernels_device *device, uint32_t n_out, uint32_t n_in,
                                 kernels_weight_format format) {
    (void)device;
    (void)format; /* weight_create takes one alone */
    return sizeof(kernels_weight) + (uint64_t)n_out * n_in * sizeof(float);
}

static perch_status ref_weight_create(kernels_device *device, uint32_t n_out, uint32_t n_in,
                                      kernels_weight_format format, kernels_weight **out, perch_error *err) {
    *out = NULL;
    if (format != KERNELS_WEIGHT_DTYPE) {
        return err_set(err, PERCH_E_UNSUPPORTED, "the reference backend keeps weights in its dtype only");
    }
    kernels_weight *weight = ring_alloc(device, ref_weight_bytes(device, n_out, n_in, format));
    *out = weight;
    if (!weight) {
        return err_nomem(err, "a weight");
    }
    *weight = (kernels_weight){n_out, n_in, (float *)(weight + 1)};
    return PERCH_OK;
}

static void ref_weight_destroy(kernels_device *device, kernels_weight *weight) {
    (void)device;
    ring_free(weight);
}

static perch_status ref_weight_set_rows(kernels_device *device, kernels_weight *weight, uint32_t first, uint32_t n,
                                        kernels_dtype dtype, const void *rows, perch_error *err) {
    if (first > weight->n_out || n > weight->n_out - first) {
        return err_set(err, PERCH_E_INVALID, "rows %u..%u of a weight with %u", first, first + n, weight->n_out);
    }
    float *to = weight->values + (size_t)first * weight->n_in;
    for (size_t i = 0; i < (size_t)n * weight->n_in; i++) {
        to[i] = (float)rounded(device->dtype, (double)load(dtype, rows, i));
    }
    return PERCH_OK;
}

/* -------------------------------------------------------------- KV memory -- */

static uint64_t ref_kv_page_granularity(const kernels_device *device) {
    (void)device;
    return (uint64_t)sysconf(_SC_PAGESIZE);
}

/* TABLE: every place is without a page at first. */
static perch_status open_table(kernels_device *device, const kernels_kv *kv, perch_error *err) {
    device->group_bytes = kv->group_bytes;
    device->groups_per_page = kv->page_bytes / kv->group_bytes;
    size_t n = (size_t)kv->n_slots * kv->pages_per_slot * device->groups_per_page;
    device->blocks = ring_alloc(device, n * sizeof *device->blocks);
    if (!device->blocks) {
        return err_nomem(err, "the KV slots' tables");
    }
    for (size_t i = 0; i < n; i++) {
        device->blocks[i] = device->slots;
    }
    return PERCH_OK;
}

static perch_status ref_kv_open(kernels_device *device, const kernels_kv *kv, perch_error *err) {
    uint64_t granularity = kv->mapping == KERNELS_TABLE ? kv->group_bytes : ref_kv_page_granularity(device);
    if (granularity == 0 || kv->page_bytes % granularity != 0 || device->kv_fd >= 0) {
        return err_set(err, PERCH_E_INVALID, "KV pages of %llu bytes, or open already",
                       (unsigned long long)kv->page_bytes);
    }
    size_t pool_bytes = kv->page_bytes * kv->n_pages;
    device->page_bytes = kv->page_bytes;
    device->n_pages = kv->n_pages;
    device->pages_per_slot = kv->pages_per_slot;
    device->slots_bytes =
        kv->page_bytes * (kv->mapping == KERNELS_TABLE ? 1 : (size_t)kv->pages_per_slot * kv->n_slots);
    device->kv_fd = memfd_create("reference-kv", MFD_CLOEXEC);
    if (device->kv_fd < 0 || ftruncate(device->kv_fd, (off_t)pool_bytes) != 0) {
        ref_kv_close(device);
        return err_set(err, PERCH_E_DEVICE, "no memory file for KV");
    }
    void *pool = mmap(NULL, pool_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, device->kv_fd, 0);
    device->pool = pool == MAP_FAILED ? NULL : pool;
    void *slots = mmap(NULL, device->slots_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    device->slots = slots == MAP_FAILED ? NULL : slots;
    if (!device->pool || !device->slots) {
        ref_kv_close(device);
        return err_set(err, PERCH_E_DEVICE, "no address space for KV");
    }
    perch_status status = kv->mapping == KERNELS_TABLE ? open_table(device, kv, err) : PERCH_OK;
    if (status != PERCH_OK) {
        ref_kv_close(device);
    }
    return status;
}

static kv_view ref_kv_slot(const kernels_device *device, uint32_t slot) {
    size_t first_place = (size_t)device->pages_per_slot * slot;
    return device->blocks ? (kv_view){.blocks = device->blocks + first_place * device->groups_per_page}
                          : (kv_view){.base = device->slots + first_place * device->page_bytes};
}

static void set_blocks(const kernels_device *device, const kv_command *c) {
    size_t first = ((size_t)device->pages_per_slot * c->slot + c->index) * device->groups_per_page;
    for (size_t g = 0; g < device->groups_per_page; g++) {
        device->blocks[first + g] =
            c->op == KV_MAP ? device->pool + c->page * device->page_bytes + g * device->group_bytes : device->slots;
    }
}

static perch_status ref_kv_execute(kernels_device *device, const kv_command *commands, size_t n, perch_error *err) {
    for (size_t i = 0; i < n; i++) {
        const kv_command *c = &commands[i];
        uint64_t bytes = device->page_bytes;
        if (c->op == KV_COPY) {
            memmove(device->pool + c->page * bytes, device->pool + c->source * bytes, bytes);
            continue;
        }
        if (device->blocks) {
            set_blocks(device, c);
            continue;
        }
        uint8_t *place = ref_kv_slot(device, c->slot).base + c->index * bytes;
        void *mapped = c->op == KV_MAP ? mmap(place, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED,
                                              device->kv_fd, (off_t)(c->page * bytes))
                                       : mmap(place, bytes, PROT_NONE,
                                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
        if (mapped == MAP_FAILED) {
            return err_set(err, PERCH_E_DEVICE, "place %u of slot %u cannot be mapped", c->index, c->slot);
        }
    }
    return PERCH_OK;
}

/* ------------------------------------------------------------------ math -- */

static perch_status ref_embed(kernels_device *device, const kernels_weight *weight, const kernels_batch *batch,
                              uint32_t n_tokens, float *y, perch_error *err) {
    (void)device;
    (void)err;
    for (size_t t = 0; t < n_tokens; t++) {
        const float *row = weight->values + (size_t)batch->tokens[t] * weight->n_in;
        memcpy(y + t * weight->n_in, row, weight->n_in * sizeof *row);
    }
    return PERCH_OK;
}

static void norm_row(double *x, const float *gain, float eps, uint32_t width) {
    double sum = 0;
    for (uint32_t i = 0; i < width; i++) {
        sum += x[i] * x[i];
    }
    double scale = 1 / sqrt(sum / width + (double)eps);
    for (uint32_t i = 0; i < width; i++) {
        x[i] *= scale * (double)gain[i];
    }
}

static perch_status ref_rmsnorm(kernels_device *device, const float *x, const float *gain, float eps, uint32_t n_tokens,
                                uint32_t width, void *y, perch_error *err) {
    (void)device;
    (void)err;
    for (size_t t = 0; t < n_tokens; t++) {
        double *row = (double *)y + t * width;
        for (uint32_t i = 0; i < width; i++) {
            row[i] = (double)x[t * width + i];
        }
        norm_row(row, gain, eps, width);
    }
    return PERCH_OK;
}

static double dot_row(const kernels_device *device, const kernels_weight *weight, uint32_t o, const double *x) {
    const float *row = weight->values + (size_t)o * weight->n_in;
    double sum = 0;
    for (uint32_t i = 0; i < weight->n_in; i++) {
        sum += (double)row[i] * rounded(device->dtype, x[i]);
    }
    return sum;
}

static perch_status ref_linear(kernels_device *device, const kernels_weight *weight, const float *bias, const void *x,
                               uint32_t n_tokens, void *y, bool accumulate, perch_error *err) {
    (void)err;
    float *residual = y;
    double *out = y;
    for (size_t t = 0; t < n_tokens; t++) {
        for (uint32_t o = 0; o < weight->n_out; o++) {
            size_t at = t * weight->n_out + o;
            double sum =
                dot_row(device, weight, o, (const double *)x + t * weight->n_in) + (bias ? (double)bias[o] : 0);
            if (accumulate) {
                residual[at] = (float)((double)residual[at] + sum);
            } else {
                out[at] = sum;
            }
        }
    }
    return PERCH_OK;
}

static perch_status ref_linear_f32(kernels_device *device, const kernels_weight *weight, const void *x,
                                   uint32_t n_tokens, float *y, perch_error *err) {
    (void)err;
    for (size_t t = 0; t < n_tokens; t++) {
        for (uint32_t o = 0; o < weight->n_out; o++) {
            y[t * weight->n_out + o] = (float)dot_row(device, weight, o, (const double *)x + t * weight->n_in);
        }
    }
    return PERCH_OK;
}

static perch_status ref_head_norm(kernels_device *device, void *x, uint32_t n_tokens, uint32_t stride, uint32_t offset,
                                  uint32_t n_heads, uint32_t head_dim, const float *gain, float eps, perch_error *err) {
    (void)device;
    (void)err;
    for (size_t t = 0; t < n_tokens; t++) {
        for (size_t h = 0; h < n_heads; h++) {
            double *head = (double *)x + t * stride + offset + h * head_dim;
            norm_row(head, gain, eps, head_dim);
        }
    }
    return PERCH_OK;
}

/* K of one kv head's group that holds `position`; V lies 16 D elements behind. */
static uint8_t *kv_tile(const kv_view *view, const kernels_attention *attention, uint32_t position, uint32_t kv_head) {
    const kv_layout *layout = &attention->layout;
    uint32_t group = position / KV_GROUP_TOKENS;
    uint8_t *base = view->blocks ? view->blocks[group] : view->base + group * layout->group_bytes;
    size_t tile = (size_t)attention->layer * layout->n_kv_heads + kv_head;
    return base + tile * 2 * KV_GROUP_TOKENS * layout->head_dim * layout->element_bytes;
}

static kernels_dtype kv_dtype(const kernels_attention *attention) {
    return attention->layout.element_bytes == 4 ? KERNELS_F32 : KERNELS_BF16;
}

static void rotate(double *head, const float *table_row, uint32_t head_dim) {
    uint32_t half = head_dim / 2;
    for (uint32_t i = 0; i < half; i++) {
        double cosine = (double)table_row[2 * i], sine = (double)table_row[2 * i + 1];
        double a = head[i], b = head[i + half];
        head[i] = a * cosine - b * sine;
        head[i + half] = b * cosine + a * sine;
    }
}

static perch_status ref_rope_write(kernels_device *device, const kernels_batch *batch,
                                   const kernels_attention *attention, const float *table, void *qkv,
                                   perch_error *err) {
    (void)device;
    (void)err;
    uint32_t d = attention->layout.head_dim, n_kv = attention->layout.n_kv_heads, n_q = attention->n_heads;
    for (uint32_t t = 0; t < batch->n_tokens; t++) {
        double *row = (double *)qkv + (size_t)t * (n_q + 2 * n_kv) * d;
        uint32_t position = batch->positions[t];
        for (uint32_t h = 0; h < n_q + n_kv; h++) {
            rotate(row + (size_t)h * d, table + (size_t)position * d, d);
        }
        for (uint32_t h = 0; h < n_kv; h++) {
            uint8_t *tile = kv_tile(&batch->rows[batch->token_row[t]].kv, attention, position, h);
            size_t at = (size_t)(position % KV_GROUP_TOKENS) * d;
            for (uint32_t i = 0; i < d; i++) {
                store(kv_dtype(attention), tile, at + i, row[(size_t)(n_q + h) * d + i]);
                store(kv_dtype(attention), tile, (size_t)KV_GROUP_TOKENS * d + at + i,
                      row[(size_t)(n_q + n_kv + h) * d + i]);
            }
        }
    }
    return PERCH_OK;
}

/* One query head over positions first..last; two passes so that no score has to be kept. */
static void attend(const kernels_device *device, const kv_view *view, const kernels_attention *attention,
                   uint32_t first, uint32_t last, uint32_t kv_head, const double *query, double *out) {
    kernels_dtype dtype = kv_dtype(attention);
    uint32_t d = attention->layout.head_dim;
    double top = -(double)INFINITY, total = 0;
    memset(out, 0, d * sizeof *out);
    for (int pass = 0; pass < 2; pass++) {
        for (uint32_t p = first; p <= last; p++) {
            const uint8_t *tile = kv_tile(view, attention, p, kv_head);
            size_t at = (size_t)(p % KV_GROUP_TOKENS) * d;
            double score = 0;
            for (uint32_t i = 0; i < d; i++) {
                score += rounded(device->dtype, query[i]) * (double)load(dtype, tile, at + i);
            }
            score *= (double)attention->scale;
            if (pass == 0) {
                top = score > top ? score : top;
                continue;
            }
            double weight = exp(score - top);
            total += weight;
            for (uint32_t i = 0; i < d; i++) {
                out[i] += weight * (double)load(dtype, tile, (size_t)KV_GROUP_TOKENS * d + at + i);
            }
        }
    }
    for (uint32_t i = 0; i < d; i++) {
        out[i] /= total;
    }
}

static perch_status ref_attention(kernels_device *device, const kernels_batch *batch,
                                  const kernels_attention *attention, const void *qkv, void *out, perch_error *err) {
    (void)err;
    uint32_t d = attention->layout.head_dim, n_kv = attention->layout.n_kv_heads, n_q = attention->n_heads;
    for (uint32_t t = 0; t < batch->n_tokens; t++) {
        uint32_t last = batch->positions[t];
        uint32_t first = attention->window && last >= attention->window ? last - attention->window + 1 : 0;
        const double *row = (const double *)qkv + (size_t)t * (n_q + 2 * n_kv) * d;
        for (uint32_t h = 0; h < n_q; h++) {
            attend(device, &batch->rows[batch->token_row[t]].kv, attention, first, last, h / (n_q / n_kv),
                   row + (size_t)h * d, (double *)out + ((size_t)t * n_q + h) * d);
        }
    }
    return PERCH_OK;
}

static perch_status ref_silu_mul(kernels_device *device, const void *gate_up, uint32_t n_tokens, uint32_t width,
                                 void *y, perch_error *err) {
    (void)device;
    (void)err;
    for (size_t t = 0; t < n_tokens; t++) {
        const double *row = (const double *)gate_up + t * 2 * width;
        for (size_t i = 0; i < width; i++) {
            ((double *)y)[t * width + i] = row[i] / (1 + exp(-row[i])) * row[width + i];
        }
    }
    return PERCH_OK;
}

static perch_status ref_gather(kernels_device *device, const kernels_batch *batch, uint32_t n_logits, const void *x,
                               size_t row_bytes, void *y, perch_error *err) {
    (void)device;
    (void)err;
    for (size_t j = 0; j < n_logits; j++) {
        memcpy((uint8_t *)y + j * row_bytes, (const uint8_t *)x + batch->logit_tokens[j] * row_bytes, row_bytes);
    }
    return PERCH_OK;
}

const kernels_backend *kernels_reference(void) {
    static const kernels_backend backend = {
        .abi = KERNELS_ABI,
        .name = "reference",
        .async = NULL,
        .open = ref_open,
        .close = ref_close,
        .describe = ref_describe,
        .act_bytes = ref_act_bytes,
        .free_bytes = ref_free_bytes,
        .alloc = ref_alloc,
        .free = ref_free,
        .upload = ref_copy,
        .download = ref_copy,
        .weight_bytes = ref_weight_bytes,
        .weight_create = ref_weight_create,
        .weight_destroy = ref_weight_destroy,
        .weight_set_rows = ref_weight_set_rows,
        .kv_page_granularity = ref_kv_page_granularity,
        .kv_open = ref_kv_open,
        .kv_close = ref_kv_close,
        .kv_slot = ref_kv_slot,
        .kv_execute = ref_kv_execute,
        .embed = ref_embed,
        .rmsnorm = ref_rmsnorm,
        .linear = ref_linear,
        .linear_f32 = ref_linear_f32,
        .head_norm = ref_head_norm,
        .rope_write = ref_rope_write,
        .attention = ref_attention,
        .silu_mul = ref_silu_mul,
        .gather = ref_gather,
    };
    return &backend;
}
