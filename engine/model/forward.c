/*
 * forward: one pass over a packed batch, stage after stage. T tokens, R rows of logits; Q = n_heads * D and KV = n_kv_heads * D.
 * x is the residual stream; each half of a layer reads it normalized and adds to it.
 *
 * A backend whose queue runs beside the host may take T and R larger than the batch's; what it computes there is not looked
 * at, and lies within the workspace all the same.
 */
#include "engine/model/model_impl.h"

#include <assert.h>
#include <math.h>

/* What the caller must have made sure of. */
static void check_batch(const model *m, const kernels_batch *batch) {
    const uint32_t *logit_tokens = batch->logit_tokens;
    assert(batch->n_tokens > 0 && batch->n_tokens <= m->limits.max_step_tokens);
    assert(batch->n_logits <= m->limits.max_logit_rows);
    assert(batch->token_from == NULL || m->backend->async != NULL);
    for (uint32_t t = 0; t < batch->n_tokens; t++) {
        assert(batch->positions[t] < m->limits.session_len && batch->token_row[t] < batch->n_rows);
        if (batch->token_from == NULL || batch->token_from[t] == KERNELS_GIVEN) {
            assert(batch->tokens[t] >= 0 && (uint32_t)batch->tokens[t] < m->config.vocab_size);
        }
    }
    for (uint32_t r = 0; r < batch->n_logits; r++) {
        assert(logit_tokens[r] < batch->n_tokens && (r == 0 || logit_tokens[r] > logit_tokens[r - 1]));
    }
    (void)m, (void)logit_tokens;
}

static void check_pass(const model *m, const kernels_batch *batch, const kernels_pass *pass) {
    assert(pass->n_tokens >= batch->n_tokens && pass->n_tokens <= m->limits.max_step_tokens);
    assert(pass->n_logits >= batch->n_logits && pass->n_logits <= m->limits.max_logit_rows);
    assert(pass->n_logits <= pass->n_tokens);
    (void)m, (void)batch, (void)pass;
}

static perch_status queue_stages(model *m, const kernels_batch *batch, const kernels_pass *pass, perch_error *err) {
    const kernels_backend *k = m->backend;
    const model_config *c = &m->config;
    kernels_device *device = m->device;
    const uint32_t q_width = c->n_heads * c->head_dim;
    const uint32_t qkv_width = (c->n_heads + 2 * c->n_kv_heads) * c->head_dim;
    const float *rope = (const float *)(const void *)(m->workspace + m->at.rope); /* [session_len][D / 2][2] */
    float *x = (float *)(void *)(m->workspace + m->at.x);                         /* [T][hidden] */
    float *picked = (float *)(void *)(m->workspace + m->at.picked);               /* [R][hidden] */
    void *normed = m->workspace + m->at.normed;                                   /* [T][hidden] */
    void *qkv = m->workspace + m->at.qkv;                                         /* [T][Q + 2 KV] */
    void *heads = m->workspace + m->at.heads;                                     /* [T][Q] */
    void *gate_up = m->workspace + m->at.gate_up;                                 /* [T][2 intermediate] */
    void *gated = m->workspace + m->at.gated;                                     /* [T][intermediate] */
    float *device_logits = (float *)(void *)(m->workspace + m->at.logits);        /* [R][vocab] */
    uint32_t n = pass->n_tokens;
    perch_status s = PERCH_OK;
#define STAGE(call)                                                                                                    \
    do {                                                                                                               \
        if ((s = k->call) != PERCH_OK) {                                                                               \
            return s;                                                                                                  \
        }                                                                                                              \
    } while (0)

    /* Embedding: x = E[token] */
    STAGE(embed(device, m->embedding, batch, n, x, err));

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
        if (is_last && batch->n_logits == 0) {
            return PERCH_OK;
        }

        /* Attention over the cache: [T][Q] */
        STAGE(attention(device, batch, &attention, qkv, heads, err));
        if (is_last && batch->n_logits < batch->n_tokens) {
            /* qkv has been read: the rows that are left of heads take its place. */
            STAGE(gather(device, batch, pass->n_logits, heads, q_width * m->act_bytes, qkv, err));
            STAGE(gather(device, batch, pass->n_logits, x, c->hidden_size * sizeof *x, picked, err));
            heads = qkv;
            x = picked;
        }
        n = is_last ? pass->n_logits : n;
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
#undef STAGE
    return PERCH_OK;
}

/* Decode rows alone, each with its logits: such passes are the same but for their numbers. */
static bool is_decode(const kernels_batch *batch) {
    return batch->n_tokens == batch->n_rows && batch->n_logits == batch->n_rows;
}

perch_status model_forward(model *m, uint32_t lane, const kernels_batch *batch, perch_error *err) {
    const kernels_async *async = m->backend->async;
    kernels_pass pass = {.n_tokens = batch->n_tokens, .n_logits = batch->n_logits};
    check_batch(m, batch);
    if (async == NULL) {
        return queue_stages(m, batch, &pass, err);
    }
    perch_status status = async->begin(m->device, lane, batch, is_decode(batch) ? 1 : 0, &pass, err);
    if (status != PERCH_OK || pass.replayed) {
        return status;
    }
    check_pass(m, batch, &pass);
    status = queue_stages(m, batch, &pass, err);
    return status == PERCH_OK ? async->end(m->device, lane, err) : status;
}

const float *model_logits(const model *m) { return (const float *)(const void *)(m->workspace + m->at.logits); }

perch_status model_fetch_logits(model *m, uint32_t n_logits, const float **host, perch_error *err) {
    assert(n_logits <= m->limits.max_logit_rows);
    *host = m->host_logits;
    if (n_logits == 0) {
        return PERCH_OK;
    }
    size_t bytes = (size_t)n_logits * m->config.vocab_size * sizeof(float);
    return m->backend->download(m->device, m->host_logits, model_logits(m), bytes, err);
}
