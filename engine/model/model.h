/* model: the weights of one model on one device, and its forward pass. */
#ifndef PERCH_ENGINE_MODEL_MODEL_H
#define PERCH_ENGINE_MODEL_MODEL_H

#include "engine/model/config.h"
#include "kernels/kernels.h"

typedef struct model model;

typedef struct model_limits {
    uint32_t session_len;                /* positions: sizes the RoPE table */
    uint32_t max_step_tokens;            /* tokens of one forward */
    uint32_t max_logit_rows;             /* rows of logits of one forward */
    kernels_dtype dtype;                 /* what the device was opened with: the KV's type */
    kernels_weight_format weight_format; /* of the layers' matrices; INT4's embedding and output head are INT8 */
} model_limits;

/* What a model takes on the device, computed without loading it. */
typedef struct model_memory {
    uint64_t weights_bytes;   /* matrices, norms and biases */
    uint64_t workspace_bytes; /* activations, logits, RoPE table */
    uint64_t host_bytes;      /* everything else the model allocates, the host's copy of logits among it */
} model_memory;

void model_kv_layout(const model_config *config, kernels_dtype dtype, kv_layout *out);

/* What passes within these limits, of at most max_batch_size rows, ask of an asynchronous backend. */
void model_kernels_limits(const model_config *config, const model_limits *limits, uint32_t max_batch_size,
                          kernels_limits *out);

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
 * Queues one forward pass: at most max_step_tokens tokens, of which at most max_logit_rows want logits; none may. The lane is
 * kernels_async's; without it the pass is over on return, and the lane does not count. Allocates nothing. Failure:
 * E_DEVICE, the device is done for.
 */
perch_status model_forward(model *m, uint32_t lane, const kernels_batch *batch, perch_error *err);

/* Device memory: the logits [n_logits][vocab_size] of the pass that was queued last, until the next one's. */
const float *model_logits(const model *m);

/* The first n_logits rows of them in host memory, borrowed until the next fetch. Waits for the pass. 0 rows are fine. */
perch_status model_fetch_logits(model *m, uint32_t n_logits, const float **host, perch_error *err);

#endif
