/*
 * config: config.json of the four architectures.
 *
 * The rule for fields (docs/adr/0010-config-fields.md). A key is used, or known to be harmless, or must have the one value that
 * perch computes with; every other key is refused unless its value says nothing (null, false, empty). A null is an absent key,
 * except where transformers makes a difference (sliding_window). Absent keys take the defaults that transformers'
 * configuration class of the architecture gives them; what every checkpoint states has none and is required.
 */
#include "engine/model/config_impl.h"
#include "engine/model/checkpoint.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define MAX_CONFIG_BYTES ((size_t)1 << 24)
#define DEFAULT_WINDOW 4096u      /* Mistral, and Qwen2/3 with use_sliding_window */
#define DEFAULT_WINDOW_LAYERS 28u /* Qwen2/3: max_window_layers */

static const char *const used_keys[] = {
    "architectures",
    "model_type",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "max_position_embeddings",
    "rms_norm_eps",
    "hidden_act",
    "tie_word_embeddings",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "torch_dtype",
    "dtype",
    "bos_token_id",
    "eos_token_id",
    "quantization_config",
    /* one value only */
    "partial_rotary_factor",
    "pretraining_tp",
    /* read with rope_scaling where its kind has a use for it; transformers reads it nowhere else */
    "original_max_position_embeddings",
    NULL,
};

static const char *const harmless_keys[] = {
    /* training */
    "initializer_range",
    "attention_dropout",
    "hidden_dropout",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "resid_pdrop",
    "embd_pdrop",
    "attn_pdrop",
    "gradient_checkpointing",
    "neftune_noise_alpha",
    "use_bfloat16",
    /* how transformers computes and what it returns */
    "use_cache",
    "attn_implementation",
    "chunk_size_feed_forward",
    "output_attentions",
    "output_hidden_states",
    "return_dict",
    "torchscript",
    "tf_legacy_loss",
    "keys_to_ignore_at_inference",
    /* where it comes from, and other tools' notes */
    "transformers_version",
    "name_or_path",
    "model_max_length",
    "max_sequence_length",
    "is_llama_config",
    "transformers.js_config",
    "unsloth_fixed",
    "unsloth_version",
    /* tokens and labels that a causal language model's forward pass never sees */
    "pad_token_id",
    "unk_token_id",
    "sep_token_id",
    "cls_token_id",
    "mask_token_id",
    "decoder_start_token_id",
    "tokenizer_class",
    "prefix",
    "finetuning_task",
    "task_specific_params",
    "problem_type",
    "id2label",
    "label2id",
    "is_decoder",
    NULL,
};

static const char *const llama_keys[] = {"attention_bias", "mlp_bias", NULL};
static const char *const mistral_keys[] = {"sliding_window", "layer_types", NULL};
static const char *const qwen_keys[] = {"attention_bias",    "use_sliding_window", "sliding_window",
                                        "max_window_layers", "layer_types",        NULL};

static const struct {
    const char *class_name, *model_type;
    const char *const *keys;
} arches[] = {
    [MODEL_LLAMA] = {"LlamaForCausalLM", "llama", llama_keys},
    [MODEL_MISTRAL] = {"MistralForCausalLM", "mistral", mistral_keys},
    [MODEL_QWEN2] = {"Qwen2ForCausalLM", "qwen2", qwen_keys},
    [MODEL_QWEN3] = {"Qwen3ForCausalLM", "qwen3", qwen_keys},
};

const char *model_arch_name(model_arch arch) { return arches[arch].model_type; }

uint32_t model_layer_window(const model_config *config, uint32_t layer) {
    return config->windowed[layer / 64] >> (layer % 64) & 1 ? config->window : 0;
}

uint64_t model_n_parameters(const model_config *c) {
    uint64_t q = (uint64_t)c->n_heads * c->head_dim, kv = (uint64_t)c->n_kv_heads * c->head_dim;
    uint64_t hidden = c->hidden_size, inner = c->intermediate_size;
    uint64_t layer = hidden * (q + 2 * kv) + q * hidden + 3 * hidden * inner + 2 * hidden;
    layer += c->attention_bias ? q + 2 * kv : 0;
    layer += c->output_bias ? hidden : 0;
    layer += c->mlp_bias ? 2 * inner + hidden : 0;
    layer += c->qk_norm ? 2 * (uint64_t)c->head_dim : 0;
    return layer * c->n_layers + hidden + hidden * c->vocab_size * (c->tied_embeddings ? 1 : 2);
}

/* ------------------------------------------------------------- the parts -- */

static perch_status read_arch(const fields *f, model_arch *out) {
    const jv *classes = jv_get(f->object, "architectures");
    const char *class_name = NULL, *model_type = NULL;
    perch_status status = field_string(f, "model_type", &model_type);
    if (status != PERCH_OK) {
        return status;
    }
    if (field_is_set(f, "architectures")) {
        class_name = classes->type == JV_ARRAY && classes->n == 1 ? jv_string(&classes->as.children[0]) : NULL;
        if (!class_name) {
            return err_set(f->err, PERCH_E_FORMAT, "%s: architectures: must be a list of one name", f->where);
        }
    } else if (!model_type) {
        return err_set(f->err, PERCH_E_FORMAT, "%s: architectures is missing", f->where);
    }
    for (size_t i = 0; i < sizeof arches / sizeof arches[0]; i++) {
        if (class_name ? strcmp(class_name, arches[i].class_name) == 0
                       : strcmp(model_type, arches[i].model_type) == 0) {
            if (model_type && strcmp(model_type, arches[i].model_type) != 0) {
                return err_set(f->err, PERCH_E_UNSUPPORTED, "%s: model_type: \"%.64s\" does not belong to %s", f->where,
                               model_type, arches[i].class_name);
            }
            *out = (model_arch)i;
            return PERCH_OK;
        }
    }
    return err_set(f->err, PERCH_E_UNSUPPORTED,
                   "%s: %s: \"%.64s\" is not supported (Llama, Mistral, Qwen2 and Qwen3 for CausalLM are)", f->where,
                   class_name ? "architectures" : "model_type", class_name ? class_name : model_type);
}

/* Fields by which a known architecture could still be something else. */
static perch_status check_unsupported(const fields *f, model_arch arch) {
    const char *activation = "silu";
    perch_status status;
    if (field_is_set(f, "quantization_config")) {
        return err_set(f->err, PERCH_E_UNSUPPORTED, "%s: quantization_config: quantized weights are not supported",
                       f->where);
    }
    if ((status = field_string(f, "hidden_act", &activation)) != PERCH_OK) {
        return status;
    }
    if (strcmp(activation, "silu") != 0 && strcmp(activation, "swish") != 0) {
        return err_set(f->err, PERCH_E_UNSUPPORTED, "%s: hidden_act: \"%.64s\" is not supported (only silu is)",
                       f->where, activation);
    }
    if ((status = field_only_number(f, "partial_rotary_factor", 1)) != PERCH_OK ||
        (status = field_only_number(f, "pretraining_tp", 1)) != PERCH_OK) {
        return status;
    }
    const char *const *lists[] = {used_keys, harmless_keys, config_generation_keys, arches[arch].keys};
    return fields_known(f, lists, sizeof lists / sizeof lists[0]);
}

static perch_status read_sizes(const fields *f, model_config *out) {
    static const char *const required[] = {"hidden_size",         "intermediate_size", "num_hidden_layers",
                                           "num_attention_heads", "vocab_size",        "max_position_embeddings"};
    double eps = 1e-6;
    perch_status status;
    for (size_t i = 0; i < sizeof required / sizeof required[0]; i++) {
        if ((status = field_require(f, required[i])) != PERCH_OK) {
            return status;
        }
    }
    if ((status = field_u32(f, "hidden_size", 1, CONFIG_MAX_HIDDEN, &out->hidden_size)) != PERCH_OK ||
        (status = field_u32(f, "intermediate_size", 1, CONFIG_MAX_INTERMEDIATE, &out->intermediate_size)) != PERCH_OK ||
        (status = field_u32(f, "num_hidden_layers", 1, MODEL_MAX_LAYERS, &out->n_layers)) != PERCH_OK ||
        (status = field_u32(f, "num_attention_heads", 1, CONFIG_MAX_HEADS, &out->n_heads)) != PERCH_OK ||
        (status = field_u32(f, "vocab_size", 1, CONFIG_MAX_VOCAB, &out->vocab_size)) != PERCH_OK ||
        (status = field_u32(f, "max_position_embeddings", 1, CONFIG_MAX_POSITIONS, &out->max_positions)) != PERCH_OK ||
        (status = field_real(f, "rms_norm_eps", 0, 1, FIELD_ABOVE_LOW, &eps)) != PERCH_OK) {
        return status;
    }
    out->rms_eps = (float)eps;
    /* Absent (not null), it means as many as query heads in a Llama only; elsewhere the default is an arbitrary number. */
    if (out->arch != MODEL_LLAMA && !jv_get(f->object, "num_key_value_heads")) {
        return field_require(f, "num_key_value_heads");
    }
    out->n_kv_heads = out->n_heads;
    if ((status = field_u32(f, "num_key_value_heads", 1, CONFIG_MAX_HEADS, &out->n_kv_heads)) != PERCH_OK) {
        return status;
    }
    if (out->n_heads % out->n_kv_heads != 0) {
        return err_set(f->err, PERCH_E_FORMAT, "%s: num_key_value_heads: %u does not divide num_attention_heads, %u",
                       f->where, out->n_kv_heads, out->n_heads);
    }
    return PERCH_OK;
}

static perch_status read_head_dim(const fields *f, model_config *out) {
    uint32_t head_dim = out->arch == MODEL_QWEN3 ? 128 : 0;
    perch_status status = field_u32(f, "head_dim", 2, CONFIG_MAX_HEAD_DIM, &head_dim);
    if (status != PERCH_OK) {
        return status;
    }
    if (head_dim == 0) {
        head_dim = out->hidden_size / out->n_heads;
        if (out->hidden_size % out->n_heads != 0 || head_dim > CONFIG_MAX_HEAD_DIM) {
            return err_set(f->err, PERCH_E_FORMAT,
                           "%s: head_dim is missing, and hidden_size / num_attention_heads = %u / %u is none", f->where,
                           out->hidden_size, out->n_heads);
        }
    }
    if (head_dim % 2 != 0 || head_dim == 0) {
        return err_set(f->err, PERCH_E_UNSUPPORTED, "%s: head_dim: %u is not even", f->where, head_dim);
    }
    out->head_dim = head_dim;
    return PERCH_OK;
}

static perch_status read_biases(const fields *f, model_config *out) {
    bool attention_bias = out->arch == MODEL_QWEN2;
    perch_status status = field_bool(f, "attention_bias", &attention_bias);
    if (status == PERCH_OK) {
        status = field_bool(f, "mlp_bias", &out->mlp_bias);
    }
    if (status == PERCH_OK) {
        status = field_bool(f, "tie_word_embeddings", &out->tied_embeddings);
    }
    if (status == PERCH_OK && out->arch == MODEL_QWEN2 && !attention_bias) {
        status =
            err_set(f->err, PERCH_E_UNSUPPORTED, "%s: attention_bias: a Qwen2 without it is not supported", f->where);
    }
    out->attention_bias = attention_bias;
    out->output_bias = attention_bias && out->arch != MODEL_QWEN2;
    out->qk_norm = out->arch == MODEL_QWEN3;
    return status;
}

/* layer_types says layer by layer what the other keys say with a border; where it stands it alone counts. */
static perch_status read_layer_types(const fields *f, model_config *out) {
    const jv *types = jv_get(f->object, "layer_types");
    if (types->type != JV_ARRAY || types->n != out->n_layers) {
        return err_set(f->err, PERCH_E_FORMAT, "%s: layer_types: must be a list of %u names", f->where, out->n_layers);
    }
    memset(out->windowed, 0, sizeof out->windowed);
    for (uint32_t l = 0; l < out->n_layers; l++) {
        const char *type = jv_string(&types->as.children[l]);
        if (type && strcmp(type, "sliding_attention") == 0) {
            out->windowed[l / 64] |= (uint64_t)1 << (l % 64);
        } else if (!type || strcmp(type, "full_attention") != 0) {
            return err_set(f->err, PERCH_E_UNSUPPORTED,
                           "%s: layer_types[%u]: \"%.64s\" is neither full_attention nor sliding_attention", f->where,
                           l, type ? type : "");
        }
        if (type[0] == 's' && out->window == 0) {
            return err_set(f->err, PERCH_E_FORMAT, "%s: layer_types[%u]: sliding_attention without a sliding_window",
                           f->where, l);
        }
        if (type[0] == 'f' && out->arch == MODEL_MISTRAL && out->window != 0) {
            return err_set(f->err, PERCH_E_UNSUPPORTED, "%s: layer_types[%u]: a Mistral has its window in every layer",
                           f->where, l);
        }
    }
    return PERCH_OK;
}

static perch_status read_window(const fields *f, model_config *out) {
    bool is_used = out->arch == MODEL_MISTRAL;
    uint32_t border = out->arch == MODEL_MISTRAL ? 0 : DEFAULT_WINDOW_LAYERS;
    uint32_t window = DEFAULT_WINDOW;
    perch_status status;
    if (out->arch == MODEL_LLAMA) {
        return PERCH_OK;
    }
    if ((status = field_bool(f, "use_sliding_window", &is_used)) != PERCH_OK ||
        (status = field_u32(f, "sliding_window", 1, INT32_MAX, &window)) != PERCH_OK ||
        (status = field_u32(f, "max_window_layers", 0, UINT32_MAX, &border)) != PERCH_OK) {
        return status;
    }
    /* null is "none"; only an absent key is the default. */
    is_used = is_used && (field_is_set(f, "sliding_window") || !jv_get(f->object, "sliding_window"));
    out->window = is_used ? window : 0;
    for (uint32_t l = border; is_used && l < out->n_layers; l++) {
        out->windowed[l / 64] |= (uint64_t)1 << (l % 64);
    }
    return field_is_set(f, "layer_types") ? read_layer_types(f, out) : PERCH_OK;
}

static perch_status read_dtype(const fields *f, model_config *out, bool *is_known) {
    const char *name = "auto";
    perch_status status;
    if ((status = field_string(f, "torch_dtype", &name)) != PERCH_OK ||
        (status = field_string(f, "dtype", &name)) != PERCH_OK) {
        return status;
    }
    *is_known = strcmp(name, "auto") != 0;
    out->stored_f32 = strcmp(name, "float32") == 0;
    if (*is_known && !out->stored_f32 && strcmp(name, "bfloat16") != 0 && strcmp(name, "float16") != 0) {
        return err_set(f->err, PERCH_E_UNSUPPORTED,
                       "%s: %s: \"%.64s\" is not supported (float32, float16, bfloat16 are)", f->where,
                       field_is_set(f, "dtype") ? "dtype" : "torch_dtype", name);
    }
    return PERCH_OK;
}

/* BOS and EOS that a config.json without the keys has by its class. */
static perch_status read_token_ids(const fields *f, model_config *out) {
    bool has_defaults = out->arch == MODEL_LLAMA || out->arch == MODEL_MISTRAL;
    out->bos = has_defaults && out->vocab_size > 1 && !jv_get(f->object, "bos_token_id") ? 1 : -1;
    if (has_defaults && out->vocab_size > 2 && !jv_get(f->object, "eos_token_id")) {
        out->eos[out->n_eos++] = 2;
    }
    return config_token_ids_read(f, out);
}

/* ------------------------------------------------------------- the whole -- */

static perch_status read_root(const fields *f, model_config *out, bool *dtype_is_known) {
    perch_status status;
    if ((status = read_arch(f, &out->arch)) != PERCH_OK || (status = check_unsupported(f, out->arch)) != PERCH_OK ||
        (status = read_sizes(f, out)) != PERCH_OK || (status = read_head_dim(f, out)) != PERCH_OK ||
        (status = read_biases(f, out)) != PERCH_OK || (status = read_window(f, out)) != PERCH_OK ||
        (status = config_rope_read(f, out)) != PERCH_OK || (status = read_token_ids(f, out)) != PERCH_OK) {
        return status;
    }
    return read_dtype(f, out, dtype_is_known);
}

static perch_status read_generation(const fields *f, model_config *out) {
    const char *const *lists[] = {config_generation_keys};
    perch_status status = fields_known(f, lists, 1);
    if (status == PERCH_OK) {
        status = config_generation_read(f, out);
    }
    return status == PERCH_OK ? config_token_ids_read(f, out) : status;
}

static perch_status parse(const char *json, size_t n_bytes, const char *generation, size_t n_generation_bytes,
                          const char *name, const char *generation_name, model_config *out, bool *dtype_is_known,
                          perch_error *err) {
    jv_doc doc = {0}, generation_doc = {0};
    memset(out, 0, sizeof *out);
    perch_status status = fields_parse(json, n_bytes, name, &doc, err);
    if (status != PERCH_OK) {
        goto done;
    }
    fields f = {doc.root, name, err};
    status = read_root(&f, out, dtype_is_known);
    if (status != PERCH_OK) {
        goto done;
    }
    if (!generation) {
        /* Models from before generation_config.json keep their sampling defaults in config.json. */
        status = config_generation_read(&f, out);
        goto done;
    }
    status = fields_parse(generation, n_generation_bytes, generation_name, &generation_doc, err);
    if (status == PERCH_OK) {
        fields g = {generation_doc.root, generation_name, err};
        status = read_generation(&g, out);
    }
done:
    jv_free(&doc);
    jv_free(&generation_doc);
    return status;
}

perch_status model_config_parse(const char *json, size_t n_bytes, const char *generation, size_t n_generation_bytes,
                                const char *name, model_config *out, perch_error *err) {
    bool dtype_is_known;
    return parse(json, n_bytes, generation, n_generation_bytes, name, "generation_config.json", out, &dtype_is_known,
                 err);
}

static perch_status join_path(const char *dir, const char *file, char path[PERCH_PATH_CAP + 64], perch_error *err) {
    int n = snprintf(path, PERCH_PATH_CAP + 64, "%s/%s", dir, file);
    return n < PERCH_PATH_CAP + 64 ? PERCH_OK : err_set(err, PERCH_E_INVALID, "%.200s...: the path is too long", dir);
}

perch_status model_config_load(const char *path, model_config *out, perch_error *err) {
    char config_path[PERCH_PATH_CAP + 64], generation_path[PERCH_PATH_CAP + 64];
    char *json = NULL, *generation = NULL;
    size_t n_bytes = 0, n_generation_bytes = 0;
    bool dtype_is_known = false;
    struct stat info;
    perch_status status;
    bool is_directory = stat(path, &info) == 0 && S_ISDIR(info.st_mode);
    if ((status = join_path(path, "config.json", config_path, err)) != PERCH_OK ||
        (status = join_path(path, "generation_config.json", generation_path, err)) != PERCH_OK) {
        return status;
    }
    const char *name = is_directory ? config_path : path;
    status = fields_read_file(name, MAX_CONFIG_BYTES, &json, &n_bytes, err);
    if (status == PERCH_E_NOT_FOUND) {
        status = err_prefix(err, PERCH_E_IO, "no model there");
    }
    if (status == PERCH_OK && is_directory && access(generation_path, F_OK) == 0) {
        status = fields_read_file(generation_path, MAX_CONFIG_BYTES, &generation, &n_generation_bytes, err);
    }
    if (status == PERCH_OK) {
        status = parse(json, n_bytes, generation, n_generation_bytes, name, generation_path, out, &dtype_is_known, err);
    }
    if (status == PERCH_OK && !dtype_is_known && is_directory) {
        status = checkpoint_probe_f32(path, &out->stored_f32, err);
    }
    free(json);
    free(generation);
    return status;
}
