/*
 * load: moves a checkpoint's tensors from the mapped files into the device's own layout, some MiB at a time; what has been moved
 * is dropped from memory at once, so that the weights are never there twice.
 */
#include "engine/model/checkpoint.h"
#include "engine/model/model_impl.h"

#include <stdlib.h>
#include <string.h>

#define CHUNK_BYTES ((size_t)8 << 20)

static const char embedding_name[] = "model.embed_tokens.weight";
static const char head_name[] = "lm_head.weight";

typedef struct loader {
    model *m;
    const char *dir;
    checkpoint files;
    float *floats; /* [n_floats] the longest vector */
    uint64_t done_bytes, total_bytes;
    perch_progress_fn progress;
    void *user;
    perch_error *err;
} loader;

static bool kernels_type(safetensors_dtype dtype, kernels_dtype *out) {
    *out = dtype == SAFETENSORS_F32 ? KERNELS_F32 : dtype == SAFETENSORS_F16 ? KERNELS_F16 : KERNELS_BF16;
    return dtype == SAFETENSORS_F32 || dtype == SAFETENSORS_F16 || dtype == SAFETENSORS_BF16;
}

static size_t type_bytes(kernels_dtype dtype) { return dtype == KERNELS_F32 ? 4 : 2; }

/* --------------------------------------------------------------- checking -- */

/* Buffers that old versions of transformers saved and new ones compute. */
static bool is_harmless(const char *name) {
    static const char suffix[] = ".rotary_emb.inv_freq";
    size_t n = strlen(name);
    return n >= sizeof suffix - 1 && strcmp(name + n - (sizeof suffix - 1), suffix) == 0;
}

static perch_status check_tensor(const loader *l, const model_tensor *want, const safetensor *have) {
    kernels_dtype dtype;
    char shape[96];
    if (!kernels_type(have->dtype, &dtype)) {
        return err_set(l->err, PERCH_E_UNSUPPORTED, "%s: %s: dtype %s is not supported (F32, F16 and BF16 are)", l->dir,
                       have->name, safetensors_dtype_name(have->dtype));
    }
    bool fits = want->n_cols ? have->n_dims == 2 && have->dims[0] == want->n_rows && have->dims[1] == want->n_cols
                             : have->n_dims == 1 && have->dims[0] == want->n_rows;
    if (fits) {
        return PERCH_OK;
    }
    safetensors_shape_text(have, shape, sizeof shape);
    return want->n_cols ? err_set(l->err, PERCH_E_FORMAT, "%s: %s: the shape is %s, but config.json makes it [%u, %u]",
                                  l->dir, have->name, shape, want->n_rows, want->n_cols)
                        : err_set(l->err, PERCH_E_FORMAT, "%s: %s: the shape is %s, but config.json makes it [%u]",
                                  l->dir, have->name, shape, want->n_rows);
}

/* Two stored copies of tied embeddings must be one: versions of transformers disagree on which counts otherwise. */
static perch_status check_same(const loader *l, const checkpoint_tensor *a, const checkpoint_tensor *b) {
    bool same = a->tensor.dtype == b->tensor.dtype && a->tensor.n_bytes == b->tensor.n_bytes;
    for (uint64_t at = 0; same && at < a->tensor.n_bytes; at += CHUNK_BYTES) {
        size_t n = a->tensor.n_bytes - at < CHUNK_BYTES ? (size_t)(a->tensor.n_bytes - at) : CHUNK_BYTES;
        same = memcmp(a->tensor.data + at, b->tensor.data + at, n) == 0;
        checkpoint_drop(&l->files, a, a->tensor.data + at, n);
        checkpoint_drop(&l->files, b, b->tensor.data + at, n);
    }
    return same ? PERCH_OK
                : err_set(l->err, PERCH_E_UNSUPPORTED,
                          "%s: %s and %s differ, although config.json says tie_word_embeddings", l->dir, a->tensor.name,
                          b->tensor.name);
}

/* The stored tensor that fills `want`, marked as used. */
static perch_status resolve(const loader *l, const model_tensor *want, checkpoint_tensor **out) {
    checkpoint_tensor *found = checkpoint_find(&l->files, want->name);
    if (l->m->config.tied_embeddings && strcmp(want->name, embedding_name) == 0) {
        checkpoint_tensor *head = checkpoint_find(&l->files, head_name);
        if (head && found) {
            perch_status status = check_same(l, found, head);
            if (status != PERCH_OK) {
                return status;
            }
            head->is_used = true;
        }
        found = found ? found : head;
    }
    if (!found) {
        return err_set(l->err, PERCH_E_FORMAT, "%s: the tensor %s is missing", l->dir, want->name);
    }
    found->is_used = true;
    *out = found;
    return check_tensor(l, want, &found->tensor);
}

/* A stored tensor that nothing asked for is part of another model than config.json describes. */
static perch_status check_unknown(const loader *l) {
    for (size_t i = 0; i < l->files.n_tensors; i++) {
        const checkpoint_tensor *t = &l->files.tensors[i];
        if (!t->is_used && !is_harmless(t->tensor.name)) {
            return err_set(l->err, PERCH_E_UNSUPPORTED,
                           "%s: the tensor %s is unknown to a %s model with this config.json", l->dir, t->tensor.name,
                           model_arch_name(l->m->config.arch));
        }
    }
    return PERCH_OK;
}

/* ---------------------------------------------------------------- moving -- */

static void report(loader *l, uint64_t n_bytes) {
    l->done_bytes += n_bytes;
    if (l->progress) {
        l->progress(l->user, "weights", l->total_bytes ? (double)l->done_bytes / (double)l->total_bytes : 1);
    }
}

static perch_status move_matrix(loader *l, const model_tensor *to, const checkpoint_tensor *from) {
    kernels_dtype dtype;
    (void)kernels_type(from->tensor.dtype, &dtype);
    size_t row_bytes = to->n_cols * type_bytes(dtype);
    size_t n_step = CHUNK_BYTES / (row_bytes + 1) + 1;
    uint8_t *aligned = NULL;
    perch_status status = PERCH_OK;
    if ((uintptr_t)from->tensor.data % type_bytes(dtype) != 0) {
        aligned = malloc(n_step * row_bytes);
        status = aligned ? PERCH_OK : err_nomem(l->err, "rows that lie askew in their file");
    }
    for (size_t row = 0; row < to->n_rows && status == PERCH_OK; row += n_step) {
        size_t n = to->n_rows - row < n_step ? to->n_rows - row : n_step;
        const uint8_t *stored = from->tensor.data + row * row_bytes;
        const uint8_t *rows = aligned ? memcpy(aligned, stored, n * row_bytes) : stored;
        status = l->m->backend->weight_set_rows(l->m->device, to->weight, to->first_row + (uint32_t)row, (uint32_t)n,
                                                dtype, rows, l->err);
        checkpoint_drop(&l->files, from, stored, n * row_bytes);
        report(l, n * row_bytes);
    }
    free(aligned);
    return status == PERCH_OK ? PERCH_OK : err_prefix(l->err, status, "%s", from->tensor.name);
}

static float float_of_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* IEEE binary16; a subnormal is its integer fraction times 2^-24, exactly. */
static float float_of_half(uint16_t half) {
    uint32_t sign = (uint32_t)(half & 0x8000) << 16, magnitude = half & 0x7FFF;
    if (magnitude < 0x0400) {
        float value = (float)magnitude * 0x1p-24F;
        return sign ? -value : value;
    }
    uint32_t exponent_bias = magnitude >= 0x7C00 ? 255 - 31 : 127 - 15; /* infinities and NaN stay what they are */
    return float_of_bits(sign | ((magnitude << 13) + (exponent_bias << 23)));
}

static perch_status move_vector(loader *l, const model_tensor *to, const checkpoint_tensor *from) {
    const uint8_t *data = from->tensor.data;
    for (size_t i = 0; i < to->n_rows; i++) {
        if (from->tensor.dtype == SAFETENSORS_F32) {
            memcpy(&l->floats[i], data + 4 * i, 4);
            continue;
        }
        uint16_t half;
        memcpy(&half, data + 2 * i, 2);
        l->floats[i] =
            from->tensor.dtype == SAFETENSORS_F16 ? float_of_half(half) : float_of_bits((uint32_t)half << 16);
    }
    perch_status status =
        l->m->backend->upload(l->m->device, to->vector, l->floats, to->n_rows * sizeof(float), l->err);
    report(l, from->tensor.n_bytes);
    return status == PERCH_OK ? PERCH_OK : err_prefix(l->err, status, "%s", from->tensor.name);
}

perch_status model_load_checkpoint(model *m, const model_tensor *tensors, size_t n, const char *dir,
                                   perch_progress_fn progress, void *user, perch_error *err) {
    loader l = {.m = m, .dir = dir, .progress = progress, .user = user, .err = err};
    checkpoint_tensor **sources = NULL;
    size_t n_floats = 1;
    perch_status status = checkpoint_open(dir, &l.files, err);
    if (status != PERCH_OK) {
        return status == PERCH_E_NOT_FOUND ? err_prefix(err, PERCH_E_IO, "no weights") : status;
    }
    if (!(sources = calloc(n, sizeof(void *)))) {
        status = err_nomem(err, "the list of tensors");
        goto done;
    }
    for (size_t i = 0; i < n; i++) {
        if ((status = resolve(&l, &tensors[i], &sources[i])) != PERCH_OK) {
            goto done;
        }
        l.total_bytes += sources[i]->tensor.n_bytes;
        n_floats = tensors[i].n_cols == 0 && tensors[i].n_rows > n_floats ? tensors[i].n_rows : n_floats;
    }
    if ((status = check_unknown(&l)) != PERCH_OK) {
        goto done;
    }
    if (!(l.floats = malloc(n_floats * sizeof *l.floats))) {
        status = err_nomem(err, "a vector");
        goto done;
    }
    report(&l, 0);
    for (size_t i = 0; i < n && status == PERCH_OK; i++) {
        status =
            tensors[i].n_cols ? move_matrix(&l, &tensors[i], sources[i]) : move_vector(&l, &tensors[i], sources[i]);
    }
done:
    free(l.floats);
    free(sources);
    checkpoint_close(&l.files);
    return status;
}
