/* model: the weights of one model on one device, and its forward pass. */
#ifndef PERCH_ENGINE_MODEL_MODEL_H
#define PERCH_ENGINE_MODEL_MODEL_H

#include "engine/model/config.h"
#include "kernels/kernels.h"

typedef struct model model;

typedef struct model_limits {
    uint32_t session_len;     /* positions: sizes the RoPE table */
    uint32_t max_step_tokens; /* tokens of one forward */
    uint32_t max_logit_rows;  /* rows of logits of one forward */
    kernels_dtype dtype;      /* what the device was opened with: the KV's type */
} model_limits;

/* What a model takes on the device, computed without loading it. */
typedef struct model_memory {
    uint64_t weights_bytes;   /* matrices, norms and biases */
    uint64_t workspace_bytes; /* activations, logits (device and host), RoPE table */
    uint64_t host_bytes;      /* everything else the model allocates */
} model_memory;

void model_kv_layout(const model_config *config, kernels_dtype dtype, kv_layout *out);

void model_memory_compute(const kernels_backend *backend, kernels_device *device, const model_config *config,
                          const model_limits *limits, model_memory *out);

/*
 * Loads model.safetensors or the shards of model.safetensors.index.json from the directory, memory-mapped, into the
 * backend's own layout; the mapping is given back as it goes, so that the peak stays near weights_bytes. Missing, extra
 * (other than known harmless ones), wrongly shaped or typed tensors are errors that name them. dir NULL: random weights of
 * random_seed, scaled so that activations stay sane. progress may be NULL.
 */
perch_status model_load(const kernels_backend *backend, kernels_device *device, const model_config *config,
                        const model_limits *limits, const char *dir, uint64_t random_seed, perch_progress_fn progress,
                        void *progress_user, model **out, perch_error *err);
void model_destroy(model *m);

/*
 * One forward pass. logit_rows[n_logit_rows] (indices into the batch's tokens, ascending, n <= max_logit_rows) are the
 * tokens whose logits are wanted; *logits gets [n_logit_rows][vocab_size] floats in host memory, borrowed until the next call.
 * n_logit_rows may be 0. Allocates nothing. Failure: E_DEVICE, the device is done for.
 */
perch_status model_forward(model *m, const kernels_batch *batch, const uint32_t *logit_rows, uint32_t n_logit_rows,
                           const float **logits, perch_error *err);

#endif
