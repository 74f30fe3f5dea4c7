/*
 * tensors: the names of Hugging Face's layout. One list says what a checkpoint must hold, where it goes on the device and how
 * random weights are drawn instead.
 *
 * Random scales: a matrix of variance 1 / n_in keeps the size of what it multiplies; what is added to the residual stream
 * is smaller by sqrt(2 n_layers), so that it does not grow with depth (Radford et al. 2019). A tied embedding serves as
 * the head too and takes the head's scale: logits then have a spread of about 1.
 */
#include "engine/model/model_impl.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_LAYER_TENSORS 18 /* 7 matrices, 7 biases, 4 norms */

typedef struct tensor_list {
    model_tensor *tensors;
    size_t n;
    char prefix[40]; /* "model.layers.3." */
} tensor_list;

static model_tensor *add(tensor_list *list, const char *name) {
    model_tensor *t = &list->tensors[list->n++];
    memset(t, 0, sizeof *t);
    snprintf(t->name, sizeof t->name, "%s%s", list->prefix, name);
    return t;
}

/* spread: of what the matrix gives for an input of spread 1; uniform numbers of variance v reach to sqrt(3 v). */
static void add_matrix(tensor_list *list, const char *name, kernels_weight *weight, uint32_t first_row, uint32_t n_rows,
                       uint32_t n_cols, double spread) {
    model_tensor *t = add(list, name);
    t->weight = weight;
    t->first_row = first_row;
    t->n_rows = n_rows;
    t->n_cols = n_cols;
    t->amplitude = (float)(spread * sqrt(3.0 / n_cols));
}

static void add_vector(tensor_list *list, const char *name, float *vector, uint32_t n, float mean) {
    model_tensor *t = add(list, name);
    t->vector = vector;
    t->n_rows = n;
    t->mean = mean;
    t->amplitude = 0.1F;
}

static void list_layer(tensor_list *list, const model_config *c, const model_layer *layer) {
    uint32_t hidden = c->hidden_size, inner = c->intermediate_size;
    uint32_t q = c->n_heads * c->head_dim, kv = c->n_kv_heads * c->head_dim;
    double added = 1 / sqrt(2.0 * c->n_layers);
    add_vector(list, "input_layernorm.weight", layer->attention_norm, hidden, 1);
    add_matrix(list, "self_attn.q_proj.weight", layer->qkv, 0, q, hidden, 1);
    add_matrix(list, "self_attn.k_proj.weight", layer->qkv, q, kv, hidden, 1);
    add_matrix(list, "self_attn.v_proj.weight", layer->qkv, q + kv, kv, hidden, 1);
    if (c->attention_bias) {
        add_vector(list, "self_attn.q_proj.bias", layer->qkv_bias, q, 0);
        add_vector(list, "self_attn.k_proj.bias", layer->qkv_bias + q, kv, 0);
        add_vector(list, "self_attn.v_proj.bias", layer->qkv_bias + q + kv, kv, 0);
    }
    if (c->qk_norm) {
        add_vector(list, "self_attn.q_norm.weight", layer->q_norm, c->head_dim, 1);
        add_vector(list, "self_attn.k_norm.weight", layer->k_norm, c->head_dim, 1);
    }
    add_matrix(list, "self_attn.o_proj.weight", layer->output, 0, hidden, q, added);
    if (c->output_bias) {
        add_vector(list, "self_attn.o_proj.bias", layer->output_bias, hidden, 0);
    }
    add_vector(list, "post_attention_layernorm.weight", layer->mlp_norm, hidden, 1);
    add_matrix(list, "mlp.gate_proj.weight", layer->gate_up, 0, inner, hidden, 1);
    add_matrix(list, "mlp.up_proj.weight", layer->gate_up, inner, inner, hidden, 1);
    add_matrix(list, "mlp.down_proj.weight", layer->down, 0, hidden, inner, added);
    if (c->mlp_bias) {
        add_vector(list, "mlp.gate_proj.bias", layer->gate_up_bias, inner, 0);
        add_vector(list, "mlp.up_proj.bias", layer->gate_up_bias + inner, inner, 0);
        add_vector(list, "mlp.down_proj.bias", layer->down_bias, hidden, 0);
    }
}

perch_status model_tensors_list(const model *m, model_tensor **out, size_t *n, perch_error *err) {
    const model_config *c = &m->config;
    tensor_list list = {.tensors = calloc((size_t)c->n_layers * MAX_LAYER_TENSORS + 3, sizeof(model_tensor))};
    if (!list.tensors) {
        return err_nomem(err, "the list of tensors");
    }
    add_matrix(&list, "model.embed_tokens.weight", m->embedding, 0, c->vocab_size, c->hidden_size,
               c->tied_embeddings ? 1 : sqrt(c->hidden_size));
    for (uint32_t l = 0; l < c->n_layers; l++) {
        snprintf(list.prefix, sizeof list.prefix, "model.layers.%u.", l);
        list_layer(&list, c, &m->layers[l]);
    }
    list.prefix[0] = 0;
    add_vector(&list, "model.norm.weight", m->final_norm, c->hidden_size, 1);
    if (!c->tied_embeddings) {
        add_matrix(&list, "lm_head.weight", m->head, 0, c->vocab_size, c->hidden_size, 1);
    }
    *out = list.tensors;
    *n = list.n;
    return PERCH_OK;
}
