/* model: what a model allocates and when it is given back. A forward pass (forward.c) allocates nothing. */
#include "engine/model/model_impl.h"
#include "engine/model/rope.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#define ALIGNMENT ((size_t)256) /* of each part of the workspace: suits any device's wide loads */
#define ROPE_CHUNK_ROWS 1024u   /* positions of the RoPE table that are computed and uploaded at once */

void model_kv_layout(const model_config *config, kernels_dtype dtype, kv_layout *out) {
    *out = (kv_layout){.n_layers = config->n_layers,
                       .n_kv_heads = config->n_kv_heads,
                       .head_dim = config->head_dim,
                       .element_bytes = dtype == KERNELS_F32 ? 4 : 2};
    out->group_bytes =
        (uint64_t)config->n_layers * config->n_kv_heads * 2 * KV_GROUP_TOKENS * config->head_dim * out->element_bytes;
}

void model_kernels_limits(const model_config *config, const model_limits *limits, uint32_t max_batch_size,
                          kernels_limits *out) {
    *out = (kernels_limits){.max_step_tokens = limits->max_step_tokens,
                            .max_batch_size = max_batch_size,
                            .max_logit_rows = limits->max_logit_rows,
                            .vocab_size = config->vocab_size,
                            .session_len = limits->session_len,
                            .n_heads = config->n_heads};
    for (uint32_t l = 0; l < config->n_layers; l++) {
        uint32_t window = model_layer_window(config, l);
        out->window = window > out->window ? window : out->window;
        out->some_have_none |= window == 0;
    }
    model_kv_layout(config, limits->dtype, &out->layout);
}

/* When a part of the workspace is in use. Parts of different phases share the same bytes; ALWAYS shares with none. */
typedef enum phase { ALWAYS, ATTENTION, MLP, LOGITS, N_PHASES } phase;

static void plan_workspace(const model_config *c, const model_limits *limits, size_t act_bytes, model_workspace *out) {
    size_t q = (size_t)c->n_heads * c->head_dim, kv = (size_t)c->n_kv_heads * c->head_dim;
    size_t n = limits->max_step_tokens, n_picked = n < limits->max_logit_rows ? n : limits->max_logit_rows;
    const struct {
        size_t *place;
        size_t n_rows, width, element_bytes;
        phase phase;
    } parts[] = {
        {&out->rope, limits->session_len, c->head_dim, sizeof(float), ALWAYS},
        {&out->x, n, c->hidden_size, sizeof(float), ALWAYS},
        {&out->picked, n_picked, c->hidden_size, sizeof(float), ALWAYS},
        {&out->normed, n, c->hidden_size, act_bytes, ALWAYS},
        {&out->qkv, n, q + 2 * kv, act_bytes, ATTENTION},
        {&out->heads, n, q, act_bytes, ATTENTION},
        {&out->gate_up, n, 2 * (size_t)c->intermediate_size, act_bytes, MLP},
        {&out->gated, n, c->intermediate_size, act_bytes, MLP},
        {&out->logits, limits->max_logit_rows, c->vocab_size, sizeof(float), LOGITS},
    };
    size_t end[N_PHASES] = {0};
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++) {
        size_t *at = &end[parts[i].phase];
        if (parts[i].phase != ALWAYS && *at == 0) {
            *at = end[ALWAYS];
        }
        *parts[i].place = *at;
        *at += (parts[i].n_rows * parts[i].width * parts[i].element_bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    }
    out->bytes = 0;
    for (int p = 0; p < N_PHASES; p++) {
        out->bytes = end[p] > out->bytes ? end[p] : out->bytes;
    }
}

static size_t host_logits_bytes(const model_config *config, const model_limits *limits) {
    return (size_t)limits->max_logit_rows * config->vocab_size * sizeof(float);
}

void model_memory_compute(const kernels_backend *backend, kernels_device *device, const model_config *config,
                          const model_limits *limits, model_memory *out) {
    model_workspace workspace;
    plan_workspace(config, limits, backend->act_bytes(device), &workspace);
    out->weights_bytes = model_weights_bytes(backend, device, config, limits->weight_format);
    out->workspace_bytes = workspace.bytes;
    out->host_bytes = sizeof(model) + config->n_layers * sizeof(model_layer) + host_logits_bytes(config, limits);
}

static perch_status fill_rope(model *m, perch_error *err) {
    size_t row_floats = m->config.head_dim;
    float *rows = malloc(ROPE_CHUNK_ROWS * row_floats * sizeof *rows);
    double *inv_freq = malloc(row_floats / 2 * sizeof *inv_freq);
    perch_status status = rows && inv_freq ? PERCH_OK : err_nomem(err, "the RoPE table");
    for (uint32_t first = 0; first < m->limits.session_len && status == PERCH_OK; first += ROPE_CHUNK_ROWS) {
        uint32_t left = m->limits.session_len - first, n = left < ROPE_CHUNK_ROWS ? left : ROPE_CHUNK_ROWS;
        rope_table(&m->config.rope, m->config.head_dim, first, n, inv_freq, rows);
        status = m->backend->upload(m->device, m->workspace + m->at.rope + first * row_floats * sizeof *rows, rows,
                                    n * row_floats * sizeof *rows, err);
    }
    free(rows);
    free(inv_freq);
    return status;
}

static perch_status create_workspace(model *m, perch_error *err) {
    void *workspace = NULL;
    plan_workspace(&m->config, &m->limits, m->act_bytes, &m->at);
    perch_status status = m->backend->alloc(m->device, m->at.bytes, &workspace, err);
    if (status != PERCH_OK) {
        return status;
    }
    m->workspace = workspace;
    m->host_logits = malloc(host_logits_bytes(&m->config, &m->limits));
    return m->host_logits ? fill_rope(m, err) : err_nomem(err, "logits");
}

static perch_status load_weights(model *m, const char *dir, uint64_t random_seed, perch_progress_fn progress,
                                 void *progress_user, perch_error *err) {
    model_tensor *tensors = NULL;
    size_t n = 0;
    perch_status status = model_weights_create(m, err);
    if (status == PERCH_OK) {
        status = model_tensors_list(m, &tensors, &n, err);
    }
    if (status == PERCH_OK && m->backend->weight_set_rows) {
        status = dir ? model_load_checkpoint(m, tensors, n, dir, progress, progress_user, err)
                     : model_load_random(m, tensors, n, random_seed, progress, progress_user, err);
    }
    free(tensors);
    return status == PERCH_OK ? model_weights_prepare(m, err) : status;
}

perch_status model_load(const kernels_backend *backend, kernels_device *device, const model_config *config,
                        const model_limits *limits, const char *dir, uint64_t random_seed, perch_progress_fn progress,
                        void *progress_user, model **out, perch_error *err) {
    *out = NULL;
    assert(limits->session_len > 0 && limits->max_step_tokens > 0 && limits->max_logit_rows > 0);
    model *m = calloc(1, sizeof *m);
    if (!m) {
        return err_nomem(err, "the model");
    }
    m->backend = backend;
    m->device = device;
    m->config = *config;
    m->limits = *limits;
    m->act_bytes = backend->act_bytes(device);
    model_kv_layout(config, limits->dtype, &m->layout);
    perch_status status = load_weights(m, dir, random_seed, progress, progress_user, err);
    if (status == PERCH_OK) {
        status = create_workspace(m, err);
    }
    if (status != PERCH_OK) {
        model_destroy(m);
        return status;
    }
    *out = m;
    return PERCH_OK;
}

void model_destroy(model *m) {
    if (m) {
        model_weights_destroy(m);
        m->backend->free(m->device, m->workspace);
        free(m->host_logits);
        free(m);
    }
}
