/* model_impl: what a model consists of; shared by the files of engine/model/. */
#ifndef PERCH_ENGINE_MODEL_MODEL_IMPL_H
#define PERCH_ENGINE_MODEL_MODEL_IMPL_H

#include "engine/model/model.h"

/*
 * One layer. D = head_dim, Q = n_heads * D, KV = n_kv_heads * D. Matrices are [n_out][n_in]; those that read the same input are
 * stacked, so that one product does for them. A NULL vector is one that the architecture does not have.
 */
typedef struct model_layer {
    kernels_weight *qkv;     /* [Q + 2 KV][hidden]: q, k, v */
    kernels_weight *output;  /* [hidden][Q] */
    kernels_weight *gate_up; /* [2 intermediate][hidden]: gate, up */
    kernels_weight *down;    /* [hidden][intermediate] */
    float *attention_norm;   /* [hidden] */
    float *mlp_norm;         /* [hidden] */
    float *q_norm;           /* [D] */
    float *k_norm;           /* [D] */
    float *qkv_bias;         /* [Q + 2 KV] */
    float *output_bias;      /* [hidden] */
    float *gate_up_bias;     /* [2 intermediate] */
    float *down_bias;        /* [hidden] */
} model_layer;

/* Where everything that a forward pass writes lies, and the RoPE table; offsets into one device buffer. */
typedef struct model_workspace {
    size_t x; /* float [max_step_tokens][hidden]: the residual stream */
    size_t
        picked; /* float [min(max_step_tokens, max_logit_rows)][hidden]: those rows of it that logits are wanted of */
    size_t normed;  /* act [max_step_tokens][hidden] */
    size_t qkv;     /* act [max_step_tokens][Q + 2 KV] */
    size_t heads;   /* act [max_step_tokens][Q]: what attention gives */
    size_t gate_up; /* act [max_step_tokens][2 intermediate] */
    size_t gated;   /* act [max_step_tokens][intermediate] */
    size_t logits;  /* float [max_logit_rows][vocab] */
    size_t rope;    /* float [session_len][D / 2][2] */
    size_t bytes;
} model_workspace;

struct model {
    const kernels_backend *backend;
    kernels_device *device;
    model_config config;
    model_limits limits;
    kv_layout layout;
    size_t act_bytes;

    kernels_weight *embedding; /* [vocab][hidden] */
    kernels_weight *head;      /* [vocab][hidden]; the embedding itself where they are tied */
    float *final_norm;         /* [hidden] */
    model_layer *layers;       /* [n_layers] */
    float *vectors;            /* the one device buffer in which all norms and biases lie */

    model_workspace at;
    uint8_t *workspace; /* device, at.bytes */
    float *host_logits; /* [max_logit_rows][vocab] */
};

/* weights.c: the empty matrices and vectors of a model, and their size. */
perch_status model_weights_create(model *m, perch_error *err);
void model_weights_destroy(model *m);
/* Tells the backend of the products that passes are made of; the weights and biases have their values. */
perch_status model_weights_prepare(const model *m, perch_error *err);
uint64_t model_weights_bytes(const kernels_backend *backend, const kernels_device *device, const model_config *config,
                             kernels_weight_format format);

/* One tensor of a checkpoint and where it belongs. */
typedef struct model_tensor {
    char name[80];          /* Hugging Face's */
    uint32_t n_rows;        /* a vector's length */
    uint32_t n_cols;        /* 0 = a vector */
    kernels_weight *weight; /* of a matrix: its rows become rows first_row... of it */
    uint32_t first_row;
    float *vector;         /* of a vector: device */
    float mean, amplitude; /* what random weights are drawn from: mean ± amplitude, uniformly */
} model_tensor;

/* tensors.c: all tensors that the model wants, in the order of use; *out is the caller's to free. Tied: the embedding alone. */
perch_status model_tensors_list(const model *m, model_tensor **out, size_t *n, perch_error *err);

/* load.c: fills the tensors from a directory. */
perch_status model_load_checkpoint(model *m, const model_tensor *tensors, size_t n, const char *dir,
                                   perch_progress_fn progress, void *user, perch_error *err);

/* random.c: fills them with numbers that depend on the seed, the tensor's name, the row and the column alone. */
perch_status model_load_random(model *m, const model_tensor *tensors, size_t n, uint64_t seed,
                               perch_progress_fn progress, void *user, perch_error *err);

#endif
