/*
 * forward: one pass over a packed batch, stage after stage. T tokens, R rows of logits; Q = n_heads * D and KV = n_kv_heads * D.
 * x is the residual stream; each half of a layer reads it normalized and adds to it.
 */
#include "engine/model/model_impl.h"

#include <assert.h>
#include <math.h>

/* What the caller must have made sure of. */
static void check_batch(const model *m, const kernels_batch *batch, const uint32_t *logit_rows, uint32_t n_logit_rows) {
    assert(batch->n_tokens > 0 && batch->n_tokens <= m->limits.max_step_tokens);
    assert(n_logit_rows <= m->limits.max_logit_rows);
    for (uint32_t t = 0; t < batch->n_tokens; t++) {
        assert(batch->positions[t] < m->limits.session_len && batch->token_row[t] < batch->n_rows);
        assert(batch->tokens[t] >= 0 && (uint32_t)batch->tokens[t] < m->config.vocab_size);
    }
    for (uint32_t r = 0; r < n_logit_rows; r++) {
        assert(logit_rows[r] < batch->n_tokens && (r == 0 || logit_rows[r] > logit_rows[r - 1]));
    }
    (void)m, (void)batch, (void)logit_rows, (void)n_logit_rows;
}

perch_status model_forward(model *m, const kernels_batch *batch, const uint32_t *logit_rows, uint32_t n_logit_rows,
                           const float **logits, perch_error *err) {
    const kernels_backend *k = m->backend;
    const model_config *c = &m->config;
    kernels_device *device = m->device;
    const uint32_t q_width = c->n_heads * c->head_dim;
    const uint32_t qkv_width = (c->n_heads + 2 * c->n_kv_heads) * c->head_dim;
    const float *rope = (const float *)(const void *)(m->workspace + m->at.rope); /* [session_len][D / 2][2] */
    void *x = m->workspace + m->at.x;                                             /* [T][hidden] */
    void *normed = m->workspace + m->at.normed;                                   /* [T][hidden] */
    void *qkv = m->workspace + m->at.qkv;                                         /* [T][Q + 2 KV] */
    void *heads = m->workspace + m->at.heads;                                     /* [T][Q] */
    void *gate_up = m->workspace + m->at.gate_up;                                 /* [T][2 intermediate] */
    void *gated = m->workspace + m->at.gated;                                     /* [T][intermediate] */
    float *device_logits = (float *)(void *)(m->workspace + m->at.logits);        /* [R][vocab] */
    uint32_t n = batch->n_tokens;
    perch_status s = PERCH_OK;
#define STAGE(call)                                                                                                    \
    do {                                                                                                               \
        if ((s = k->call) != PERCH_OK) {                                                                               \
            return s;                                                                                                  \
        }                                                                                                              \
    } while (0)

    check_batch(m, batch, logit_rows, n_logit_rows);
    *logits = m->host_logits;

    /* Embedding: x = E[token] */
    STAGE(embed(device, m->embedding, batch->tokens, n, x, err));

    for (uint32_t l = 0; l < c->n_layers; l++) {
        const model_layer *layer = &m->layers[l];
        const bool is_last = l + 1 == c->n_layers;
        const kernels_attention attention = {.layout = m->layout,
                                             .layer = l,
                                             .n_heads = c->n_heads,
                                             .window = model_layer_window(c, l),
                                             .scale = (float)(1 / sqrt(c->head_dim))};

        /* Queries, keys and values: [T][hidden] -> [T][Q + 2 KV] */
        STAGE(rmsnorm(device, x, layer->attention_norm, c->rms_eps, n, c->hidden_size, normed, err));
        STAGE(linear(device, layer->qkv, layer->qkv_bias, normed, n, qkv, false, err));
        if (c->qk_norm) {
            STAGE(head_norm(device, qkv, n, qkv_width, 0, c->n_heads, c->head_dim, layer->q_norm, c->rms_eps, err));
            STAGE(head_norm(device, qkv, n, qkv_width, q_width, c->n_kv_heads, c->head_dim, layer->k_norm, c->rms_eps,
                            err));
        }

        /* Rotation by position; keys and values into the cache */
        STAGE(rope_write(device, batch, &attention, rope, qkv, err));

        /* Beyond the last layer's keys and values, only the tokens whose logits are wanted have a future. */
        if (is_last && n_logit_rows == 0) {
            return PERCH_OK;
        }

        /* Attention over the cache: [T][Q] */
        STAGE(attention(device, batch, &attention, qkv, heads, err));
        if (is_last && n_logit_rows < n) {
            /* qkv has been read and normed too: the rows that are left take their places. */
            STAGE(gather(device, heads, logit_rows, n_logit_rows, q_width, qkv, err));
            STAGE(gather(device, x, logit_rows, n_logit_rows, c->hidden_size, normed, err));
            void *all = x;
            heads = qkv;
            x = normed;
            normed = all;
            n = n_logit_rows;
        }
        STAGE(linear(device, layer->output, layer->output_bias, heads, n, x, true, err));

        /* Gated MLP: x += down(silu(gate) * up) */
        STAGE(rmsnorm(device, x, layer->mlp_norm, c->rms_eps, n, c->hidden_size, normed, err));
        STAGE(linear(device, layer->gate_up, layer->gate_up_bias, normed, n, gate_up, false, err));
        STAGE(silu_mul(device, gate_up, n, c->intermediate_size, gated, err));
        STAGE(linear(device, layer->down, layer->down_bias, gated, n, x, true, err));
    }

    /* Logits: [R][hidden] -> [R][vocab] */
    STAGE(rmsnorm(device, x, m->final_norm, c->rms_eps, n, c->hidden_size, normed, err));
    STAGE(linear_f32(device, m->head, normed, n, device_logits, err));
    STAGE(download(device, m->host_logits, device_logits, (size_t)n * c->vocab_size * sizeof(float), err));
#undef STAGE
    return PERCH_OK;
}
