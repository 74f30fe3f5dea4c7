/* weights: which matrices and vectors a model has on its device. All vectors share one buffer. */
#include "engine/model/model_impl.h"

#include <stdlib.h>
#include <string.h>

#define VECTOR_ALIGNMENT 16u /* floats: 64 bytes */

static uint32_t q_width(const model_config *c) { return c->n_heads * c->head_dim; }

static uint32_t qkv_width(const model_config *c) { return (c->n_heads + 2 * c->n_kv_heads) * c->head_dim; }

/* Takes n floats of the buffer at base, or only counts them where base is NULL. */
static float *take(float *base, size_t *at, size_t n) {
    float *vector = base ? base + *at : NULL;
    *at += (n + VECTOR_ALIGNMENT - 1) / VECTOR_ALIGNMENT * VECTOR_ALIGNMENT;
    return vector;
}

/* Places one layer's vectors; those it does not have stay NULL. */
static void place_layer(const model_config *c, float *base, size_t *at, model_layer *layer) {
    layer->attention_norm = take(base, at, c->hidden_size);
    layer->mlp_norm = take(base, at, c->hidden_size);
    if (c->qk_norm) {
        layer->q_norm = take(base, at, c->head_dim);
        layer->k_norm = take(base, at, c->head_dim);
    }
    if (c->attention_bias) {
        layer->qkv_bias = take(base, at, qkv_width(c));
    }
    if (c->output_bias) {
        layer->output_bias = take(base, at, c->hidden_size);
    }
    if (c->mlp_bias) {
        layer->gate_up_bias = take(base, at, 2 * (size_t)c->intermediate_size);
        layer->down_bias = take(base, at, c->hidden_size);
    }
}

static size_t vector_floats(const model_config *c) {
    size_t n_layer = 0, n_final = 0;
    model_layer layer;
    place_layer(c, NULL, &n_layer, &layer);
    take(NULL, &n_final, c->hidden_size);
    return n_layer * c->n_layers + n_final;
}

/* Embedding and output head: with 4 bits a token's few numbers would lose most, so they keep 8 (docs/adr/0029). */
static kernels_weight_format vocab_format(kernels_weight_format format) {
    return format == KERNELS_WEIGHT_INT4 ? KERNELS_WEIGHT_INT8 : format;
}

uint64_t model_weights_bytes(const kernels_backend *backend, const kernels_device *device, const model_config *c,
                             kernels_weight_format format) {
    uint64_t layer = backend->weight_bytes(device, qkv_width(c), c->hidden_size, format) +
                     backend->weight_bytes(device, c->hidden_size, q_width(c), format) +
                     backend->weight_bytes(device, 2 * c->intermediate_size, c->hidden_size, format) +
                     backend->weight_bytes(device, c->hidden_size, c->intermediate_size, format);
    uint64_t vocab = backend->weight_bytes(device, c->vocab_size, c->hidden_size, vocab_format(format));
    return layer * c->n_layers + vocab * (c->tied_embeddings ? 1 : 2) + vector_floats(c) * sizeof(float);
}

perch_status model_weights_create(model *m, perch_error *err) {
    const model_config *c = &m->config;
    void *vectors = NULL;
    size_t at = 0;
    perch_status status;
    m->layers = calloc(c->n_layers, sizeof *m->layers);
    if (!m->layers) {
        return err_nomem(err, "the list of layers");
    }
    if ((status = m->backend->alloc(m->device, vector_floats(c) * sizeof(float), &vectors, err)) != PERCH_OK) {
        return status;
    }
    m->vectors = vectors;
    kernels_weight_format vocab = vocab_format(m->limits.weight_format);
    status = m->backend->weight_create(m->device, c->vocab_size, c->hidden_size, vocab, &m->embedding, err);
    if (status != PERCH_OK) {
        return status;
    }
    for (uint32_t l = 0; l < c->n_layers; l++) {
        model_layer *layer = &m->layers[l];
        const struct {
            kernels_weight **weight;
            uint32_t n_out, n_in;
        } matrices[] = {
            {&layer->qkv, qkv_width(c), c->hidden_size},
            {&layer->output, c->hidden_size, q_width(c)},
            {&layer->gate_up, 2 * c->intermediate_size, c->hidden_size},
            {&layer->down, c->hidden_size, c->intermediate_size},
        };
        for (size_t i = 0; i < sizeof matrices / sizeof matrices[0]; i++) {
            status = m->backend->weight_create(m->device, matrices[i].n_out, matrices[i].n_in, m->limits.weight_format,
                                               matrices[i].weight, err);
            if (status != PERCH_OK) {
                return status;
            }
        }
        place_layer(c, m->vectors, &at, layer);
    }
    m->final_norm = take(m->vectors, &at, c->hidden_size);
    if (c->tied_embeddings) {
        m->head = m->embedding;
        return PERCH_OK;
    }
    return m->backend->weight_create(m->device, c->vocab_size, c->hidden_size, vocab, &m->head, err);
}

perch_status model_weights_prepare(const model *m, perch_error *err) {
    const kernels_async *async = m->backend->async;
    if (!async || !async->prepare) {
        return PERCH_OK;
    }
    perch_status status = async->prepare(m->device, m->head, KERNELS_PRODUCT_F32, NULL, err);
    for (uint32_t l = 0; l < m->config.n_layers; l++) {
        const model_layer *layer = &m->layers[l];
        const struct {
            kernels_weight *weight;
            kernels_product product;
            const float *bias;
        } products[] = {
            {layer->qkv, KERNELS_PRODUCT_ACT, layer->qkv_bias},
            {layer->output, KERNELS_PRODUCT_ADD, layer->output_bias},
            {layer->gate_up, KERNELS_PRODUCT_ACT, layer->gate_up_bias},
            {layer->down, KERNELS_PRODUCT_ADD, layer->down_bias},
        };
        for (size_t i = 0; i < sizeof products / sizeof products[0] && status == PERCH_OK; i++) {
            status = async->prepare(m->device, products[i].weight, products[i].product, products[i].bias, err);
        }
    }
    return status;
}

static void destroy(const model *m, kernels_weight *weight) {
    if (weight) {
        m->backend->weight_destroy(m->device, weight);
    }
}

void model_weights_destroy(model *m) {
    for (uint32_t l = 0; m->layers && l < m->config.n_layers; l++) {
        destroy(m, m->layers[l].qkv);
        destroy(m, m->layers[l].output);
        destroy(m, m->layers[l].gate_up);
        destroy(m, m->layers[l].down);
    }
    free(m->layers);
    if (m->head != m->embedding) {
        destroy(m, m->head);
    }
    destroy(m, m->embedding);
    m->backend->free(m->device, m->vectors);
}
