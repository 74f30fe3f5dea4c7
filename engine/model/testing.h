/* testing: what the tests of engine/model share: scratch directories, checkpoints made to order, a counting backend, runs. */
#ifndef PERCH_ENGINE_MODEL_TESTING_H
#define PERCH_ENGINE_MODEL_TESTING_H

#include "engine/model/model.h"
#include "engine/model/safetensors.h"
#include "tests/support/check.h"

/* --- scratch directories: made empty, removed with all they hold (one level). The path is static, one at a time */
const char *testing_dir_make(void);
void testing_dir_remove(void);
/* Writes DIR/name and returns its path (static buffer). */
const char *testing_write(const char *name, const void *bytes, size_t n_bytes);

/* --- a safetensors file in the making; tensors borrow their names and data */
#define TESTING_MAX_TENSORS 64
typedef struct testing_file {
    safetensor tensors[TESTING_MAX_TENSORS];
    size_t n_tensors;
    size_t n_padding; /* blanks behind the header's JSON */
} testing_file;

/* All tensors of a fixture's model.safetensors; `opened` keeps them alive. */
void testing_file_load(testing_file *file, const char *fixture, safetensors *opened);
safetensor *testing_file_find(testing_file *file, const char *name);
void testing_file_drop(testing_file *file, const char *name);
/* Adds a tensor [rows][cols], or [rows] where cols is 0. */
void testing_file_add(testing_file *file, const char *name, safetensors_dtype dtype, uint64_t rows, uint64_t cols,
                      const void *data);
/* Writes it into the scratch directory. */
void testing_file_write(const testing_file *file, const char *name);

/* --- the reference backend, counted: what is allocated on the device, and which call is to fail. One device at a time */
typedef struct testing_count {
    uint64_t live_bytes; /* buffers as asked for, weights by weight_bytes */
    uint64_t peak_bytes;
    uint64_t n_calls;      /* that can fail */
    uint64_t fail_at;      /* the call, counted from 1, that fails with E_DEVICE; 0 = none */
    uint64_t n_uploaded;   /* bytes */
    uint64_t n_allocs;     /* of buffers and weights */
    void (*on_rows)(void); /* called by weight_set_rows; may be NULL */
} testing_count;
extern testing_count testing_counted;
const kernels_backend *testing_counting_backend(void);

/* --- a loaded model with KV memory for one sequence */
typedef struct testing_model {
    const kernels_backend *backend;
    kernels_device *device;
    model_config config;
    model_limits limits;
    model *model;
    void *kv;
    uint32_t lane;
} testing_model;

/* Loads weights (dir NULL: random ones of seed 1); failures are the test's. Returns whether it worked. */
bool testing_model_open(testing_model *t, const kernels_backend *backend, kernels_dtype dtype,
                        const model_config *config, const char *dir, uint32_t session_len, uint32_t max_step_tokens);
void testing_model_close(testing_model *t);

/* A pass to its end, on an asynchronous backend too. */
perch_status testing_model_pass(testing_model *t, const kernels_batch *batch, perch_error *err);

/*
 * Runs tokens[n] through the model from position 0 in forward passes of `chunk` tokens. Returns [n][vocab] logits of all
 * tokens; the caller's to free.
 */
float *testing_model_run(testing_model *t, const int32_t *tokens, uint32_t n, uint32_t chunk);

/* One pass over tokens first..first+n-1 of a sequence; logits of the rows asked for (borrowed). */
const float *testing_model_step(testing_model *t, const int32_t *tokens, uint32_t first, uint32_t n,
                                const uint32_t *rows, uint32_t n_rows);

/* max |a - b| / max |b|. */
double testing_difference(const float *a, const float *b, size_t n);

#endif
