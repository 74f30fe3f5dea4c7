/* model_config: what config.json and generation_config.json say, checked; a field that would change the result is never ignored. */
#ifndef PERCH_ENGINE_MODEL_CONFIG_H
#define PERCH_ENGINE_MODEL_CONFIG_H

#include "base/base.h"

#define MODEL_MAX_EOS 16
#define MODEL_MAX_LAYERS 1024

typedef enum model_arch { MODEL_LLAMA = 0, MODEL_MISTRAL, MODEL_QWEN2, MODEL_QWEN3 } model_arch;

typedef enum rope_kind { ROPE_NONE = 0, ROPE_LINEAR, ROPE_LLAMA3, ROPE_YARN, ROPE_DYNAMIC } rope_kind;

typedef struct rope_config {
    rope_kind kind;
    double theta;
    double factor;
    double low_freq_factor, high_freq_factor; /* llama3 */
    double beta_fast, beta_slow;              /* yarn */
    double attention_factor;         /* yarn: multiplies cos and sin; already derived where config.json is silent */
    bool truncate;                   /* yarn */
    uint32_t original_max_positions; /* llama3, yarn, dynamic */
} rope_config;

typedef struct model_config {
    model_arch arch;
    uint32_t n_layers;
    uint32_t n_heads;
    uint32_t n_kv_heads;
    uint32_t head_dim;
    uint32_t hidden_size;
    uint32_t intermediate_size;
    uint32_t vocab_size;
    uint32_t
        max_positions; /* max_position_embeddings, stretched where RoPE scaling extends it: what a text may reach */
    float rms_eps;
    rope_config rope;
    bool attention_bias; /* q, k, v have biases (Qwen2; Llama with attention_bias also has one on o) */
    bool output_bias;    /* o has a bias */
    bool mlp_bias;
    bool qk_norm; /* Qwen3 */
    bool tied_embeddings;
    uint32_t window;                          /* sliding window in tokens, 0 = none in any layer */
    uint64_t windowed[MODEL_MAX_LAYERS / 64]; /* bit l: layer l has the window; ask model_layer_window */
    int32_t bos;                              /* -1 = none */
    int32_t eos[MODEL_MAX_EOS];               /* config.json and generation_config.json together */
    uint32_t n_eos;
    bool stored_f32; /* torch_dtype (or dtype) is float32 */
    /* generation_config.json; NaN / -1 where it has none. temperature is 0 where do_sample is false or absent */
    double temperature, top_p, min_p, typical_p, repetition_penalty;
    int32_t top_k;
} model_config;

/* path: a directory (config.json, maybe generation_config.json in it) or a config.json itself. E_IO, E_FORMAT, E_UNSUPPORTED. */
perch_status model_config_load(const char *path, model_config *out, perch_error *err);

/* The same from memory, for tests and fuzzing; generation may be NULL. */
perch_status model_config_parse(const char *json, size_t n_bytes, const char *generation, size_t n_generation_bytes,
                                const char *name, model_config *out, perch_error *err);

const char *model_arch_name(model_arch arch); /* "llama", … */

/* The sliding window of a layer in tokens, 0 = it sees everything. */
uint32_t model_layer_window(const model_config *config, uint32_t layer);
uint64_t model_n_parameters(const model_config *config);

#endif
