/*
 * Any bytes as config.json, and as the generation_config.json of a small model: accepted or refused with a reason; what
 * is accepted is a model whose sizes can be multiplied and whose RoPE table is finite.
 */
#include "engine/model/config.h"
#include "engine/model/rope.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Called by the fuzzing engine, which declares it. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(const model_config *c) {
    static const uint32_t positions[] = {0, 1, 4095, 1u << 20};
    double inv_freq[512];
    if (c->n_layers < 1 || c->n_layers > MODEL_MAX_LAYERS || c->head_dim < 2 || c->head_dim > 1024 || c->head_dim % 2 ||
        c->n_heads < 1 || c->n_kv_heads < 1 || c->n_heads % c->n_kv_heads || c->vocab_size < 1 ||
        c->max_positions < 1 || c->n_eos > MODEL_MAX_EOS || model_n_parameters(c) == 0 ||
        model_n_parameters(c) > (uint64_t)1 << 60) {
        abort();
    }
    for (uint32_t i = 0; i < c->n_eos; i++) {
        if (c->eos[i] < 0 || (uint32_t)c->eos[i] >= c->vocab_size) {
            abort();
        }
    }
    for (uint32_t l = 0; l < c->n_layers; l++) {
        if (model_layer_window(c, l) > c->window) {
            abort();
        }
    }
    for (size_t p = 0; p < sizeof positions / sizeof positions[0]; p++) {
        rope_inv_freq(&c->rope, c->head_dim, positions[p], inv_freq);
        for (uint32_t i = 0; i < c->head_dim / 2; i++) {
            if (!isfinite(inv_freq[i]) || inv_freq[i] < 0) {
                abort();
            }
        }
    }
}

static void parse(const char *json, size_t n_bytes, const char *generation, size_t n_generation_bytes) {
    model_config config;
    perch_error err = {0};
    perch_status status = model_config_parse(json, n_bytes, generation, n_generation_bytes, "input", &config, &err);
    if (status == PERCH_OK) {
        check(&config);
    } else if (err.status != status || !err.message[0]) {
        abort();
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const char small[] = "{\"model_type\": \"llama\", \"hidden_size\": 8, \"intermediate_size\": 8,"
                                "\"num_hidden_layers\": 1, \"num_attention_heads\": 2, \"vocab_size\": 32,"
                                "\"max_position_embeddings\": 64}";
    parse((const char *)data, size, NULL, 0);
    parse(small, sizeof small - 1, (const char *)data, size);
    return 0;
}
