/*
 * random: weights without a checkpoint, for benchmarks. Every number is a hash of (seed, tensor's name, row, column): the same
 * whatever thread or rank asks, for whatever part. They are drawn in bf16, which either dtype of the device holds exactly.
 */
#include "engine/model/model_impl.h"

#include <stdlib.h>
#include <string.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "a word's low half is the first of its two numbers");

#define CHUNK_WORDS ((size_t)1 << 18) /* 1 MiB: made and consumed within the cache */

/* The finalizer of SplitMix64 (Steele et al. 2014): all input bits reach all output bits. */
static uint64_t mix(uint64_t z) {
    z += 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

static uint64_t tensor_key(uint64_t seed, const char *name) {
    uint64_t key = mix(seed);
    for (; *name; name++) {
        key = mix(key ^ (uint8_t)*name);
    }
    return key;
}

/* MurmurHash3's 32-bit finalizer: cheap in vectors, and good enough for numbers of which 8 bits survive. */
static inline uint32_t mix32(uint32_t h) {
    h = (h ^ (h >> 16)) * 0x85EBCA6Bu;
    h = (h ^ (h >> 13)) * 0xC2B2AE35u;
    return h ^ (h >> 16);
}

/* Sixteen random bits as a uniform number of -1..1. */
static inline float unit(uint32_t bits) { return (float)(int32_t)(int16_t)(uint16_t)bits * 0x1p-15F; }

static inline uint32_t bf16(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return (bits + 0x8000) >> 16;
}

/* One row as bf16 pairs, words[(n_cols + 1) / 2]. */
static void draw_row(const model_tensor *t, uint64_t key, uint32_t row, uint32_t *words) {
    uint64_t row_key = mix(key ^ row);
    uint32_t start = (uint32_t)row_key, n_words = (t->n_cols + 1) / 2;
    float amplitude = t->amplitude;
    for (uint32_t i = 0; i < n_words; i++) {
        uint32_t bits = mix32(start + i * 0x9E3779B9u);
        words[i] = bf16(unit(bits) * amplitude) | bf16(unit(bits >> 16) * amplitude) << 16;
    }
}

static perch_status draw_matrix(model *m, const model_tensor *t, uint64_t key, uint32_t *words, perch_error *err) {
    size_t row_words = ((size_t)t->n_cols + 1) / 2;
    /* Rows of an odd length would not lie one behind the other. */
    size_t n_step = t->n_cols % 2 || row_words > CHUNK_WORDS ? 1 : CHUNK_WORDS / row_words;
    for (size_t row = 0; row < t->n_rows; row += n_step) {
        size_t n = t->n_rows - row < n_step ? t->n_rows - row : n_step;
        for (size_t i = 0; i < n; i++) {
            draw_row(t, key, (uint32_t)(row + i), words + i * row_words);
        }
        perch_status status = m->backend->weight_set_rows(m->device, t->weight, t->first_row + (uint32_t)row,
                                                          (uint32_t)n, KERNELS_BF16, words, err);
        if (status != PERCH_OK) {
            return err_prefix(err, status, "%s", t->name);
        }
    }
    return PERCH_OK;
}

static perch_status draw_vector(model *m, const model_tensor *t, uint64_t key, float *values, perch_error *err) {
    for (uint32_t i = 0; i < t->n_rows; i++) {
        values[i] = t->mean + t->amplitude * unit((uint32_t)(mix(key ^ i) >> 32));
    }
    return m->backend->upload(m->device, t->vector, values, t->n_rows * sizeof *values, err);
}

perch_status model_load_random(model *m, const model_tensor *tensors, size_t n, uint64_t seed,
                               perch_progress_fn progress, void *user, perch_error *err) {
    size_t n_words = CHUNK_WORDS;
    double done = 0, total = 0;
    perch_status status = PERCH_OK;
    for (size_t i = 0; i < n; i++) {
        const model_tensor *t = &tensors[i];
        size_t need = t->vector ? t->n_rows : ((size_t)t->n_cols + 1) / 2;
        n_words = need > n_words ? need : n_words;
        total += (double)t->n_rows * (t->vector ? 1 : t->n_cols);
    }
    void *scratch = malloc(n_words * sizeof(uint32_t)); /* words of a matrix or floats of a vector */
    if (!scratch) {
        return err_nomem(err, "random rows");
    }
    for (size_t i = 0; i < n && status == PERCH_OK; i++) {
        const model_tensor *t = &tensors[i];
        uint64_t key = tensor_key(seed, t->name);
        if (progress) {
            progress(user, "weights", done / total);
        }
        status = t->vector ? draw_vector(m, t, key, scratch, err) : draw_matrix(m, t, key, scratch, err);
        done += (double)t->n_rows * (t->vector ? 1 : t->n_cols);
    }
    if (progress && status == PERCH_OK) {
        progress(user, "weights", 1);
    }
    free(scratch);
    return status;
}
