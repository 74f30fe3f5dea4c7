/* model_config: what it takes from config.json and generation_config.json, and what it refuses, by name. */
#include "engine/model/config.h"
#include "engine/model/testing.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char base_json[] =
    "{\"architectures\": [\"LlamaForCausalLM\"], \"model_type\": \"llama\", \"hidden_size\": 64, "
    "\"intermediate_size\": 96,"
    " \"num_hidden_layers\": 3, \"num_attention_heads\": 8, \"num_key_value_heads\": 4, \"vocab_size\": 128,"
    " \"max_position_embeddings\": 256, \"rms_norm_eps\": 1e-5, \"torch_dtype\": \"bfloat16\", \"hidden_act\": "
    "\"silu\"}";

/*
 * The base with fields replaced: patch is the inside of a JSON object; a value of "..." removes the key.
 * arch: "llama", "mistral", "qwen2" or "qwen3".
 */
static perch_status load(const char *arch, const char *patch, const char *generation, model_config *out,
                         perch_error *err) {
    static const char *const classes[][2] = {{"llama", "LlamaForCausalLM"},
                                             {"mistral", "MistralForCausalLM"},
                                             {"qwen2", "Qwen2ForCausalLM"},
                                             {"qwen3", "Qwen3ForCausalLM"}};
    char text[4096];
    const char *key;
    json_t *value;
    json_t *root = json_loads(base_json, 0, NULL);
    snprintf(text, sizeof text, "{%s}", patch);
    json_t *changes = json_loads(text, 0, NULL);
    CU_ASSERT_PTR_NOT_NULL_FATAL(root);
    CHECK_MSG(changes != NULL, "the test's patch %s is no JSON", text);
    for (size_t i = 0; i < 4; i++) {
        if (strcmp(arch, classes[i][0]) == 0) {
            json_object_set_new(root, "architectures", json_pack("[s]", classes[i][1]));
            json_object_set_new(root, "model_type", json_string(arch));
        }
    }
    json_object_foreach(changes, key, value) {
        const char *word = json_string_value(value);
        if (word && strcmp(word, "...") == 0) {
            json_object_del(root, key);
        } else {
            json_object_set(root, key, value);
        }
    }
    char *json = json_dumps(root, 0);
    *err = (perch_error){0};
    perch_status status =
        model_config_parse(json, strlen(json), generation, generation ? strlen(generation) : 0, "the config", out, err);
    free(json);
    json_decref(changes);
    json_decref(root);
    return status;
}

static model_config accept(const char *arch, const char *patch) {
    model_config config;
    perch_error err;
    perch_status status = load(arch, patch, NULL, &config, &err);
    CHECK_MSG(status == PERCH_OK, "%s with %s: %s", arch, patch, err.message);
    return config;
}

/* Refused with this status and a message that has `says` in it. */
static void refuse(const char *arch, const char *patch, perch_status want, const char *says) {
    model_config config;
    perch_error err;
    perch_status status = load(arch, patch, NULL, &config, &err);
    CHECK_MSG(status == want && err.status == want, "%s with %s: %s", arch, patch, perch_status_name(status));
    CHECK_MSG(strstr(err.message, says) != NULL && strncmp(err.message, "the config", 10) == 0, "%s with %s: \"%s\"",
              arch, patch, err.message);
}

static bool near(double a, double b) { return fabs(a - b) <= 1e-12 * fabs(b); }

/* ------------------------------------------------------------------ sizes -- */

static void sizes_are_taken(void) {
    model_config c = accept("llama", "");
    CU_ASSERT_EQUAL(c.arch, MODEL_LLAMA);
    CU_ASSERT_EQUAL(c.n_layers, 3);
    CU_ASSERT_EQUAL(c.n_heads, 8);
    CU_ASSERT_EQUAL(c.n_kv_heads, 4);
    CU_ASSERT_EQUAL(c.head_dim, 8);
    CU_ASSERT_EQUAL(c.hidden_size, 64);
    CU_ASSERT_EQUAL(c.intermediate_size, 96);
    CU_ASSERT_EQUAL(c.vocab_size, 128);
    CU_ASSERT_EQUAL(c.max_positions, 256);
    CU_ASSERT_DOUBLE_EQUAL(c.rms_eps, 1e-5F, 0);
    CU_ASSERT_FALSE(c.attention_bias || c.output_bias || c.mlp_bias || c.qk_norm || c.tied_embeddings || c.stored_f32);
    CU_ASSERT_STRING_EQUAL(model_arch_name(c.arch), "llama");
    CU_ASSERT_EQUAL(c.bos, 1); /* LlamaConfig's defaults */
    CU_ASSERT_EQUAL(c.n_eos, 1);
    CU_ASSERT_EQUAL(c.eos[0], 2);
}

static void defaults_are_those_of_transformers(void) {
    CU_ASSERT_EQUAL(accept("llama", "\"num_key_value_heads\": \"...\"").n_kv_heads, 8);
    CU_ASSERT_EQUAL(accept("qwen2", "\"num_key_value_heads\": null").n_kv_heads, 8);
    refuse("mistral", "\"num_key_value_heads\": \"...\"", PERCH_E_FORMAT, "num_key_value_heads is missing");
    CU_ASSERT_EQUAL(accept("qwen3", "").head_dim, 128);
    CU_ASSERT_EQUAL(accept("llama", "\"head_dim\": null").head_dim, 8);
    CU_ASSERT_EQUAL(accept("mistral", "\"head_dim\": 32").head_dim, 32);
    CU_ASSERT_DOUBLE_EQUAL(accept("llama", "\"rms_norm_eps\": \"...\"").rms_eps, 1e-6F, 0);
    CU_ASSERT_TRUE(near(accept("qwen2", "").rope.theta, 10000));
    CU_ASSERT_EQUAL(accept("qwen2", "").bos, -1);
    CU_ASSERT_EQUAL(accept("qwen2", "").n_eos, 0);
    CU_ASSERT_EQUAL(accept("llama", "\"architectures\": \"...\"").arch, MODEL_LLAMA);
    CU_ASSERT_EQUAL(accept("qwen3", "\"model_type\": \"...\"").arch, MODEL_QWEN3);
}

static void biases_belong_to_architectures(void) {
    model_config c = accept("llama", "\"attention_bias\": true, \"mlp_bias\": true, \"tie_word_embeddings\": true");
    CU_ASSERT_TRUE(c.attention_bias && c.output_bias && c.mlp_bias && c.tied_embeddings && !c.qk_norm);
    c = accept("qwen2", "\"attention_bias\": true");
    CU_ASSERT_TRUE(c.attention_bias && !c.output_bias && !c.mlp_bias);
    c = accept("qwen3", "\"attention_bias\": true");
    CU_ASSERT_TRUE(c.attention_bias && c.output_bias && c.qk_norm);
    CU_ASSERT_FALSE(accept("qwen3", "").attention_bias);
    refuse("qwen2", "\"attention_bias\": false", PERCH_E_UNSUPPORTED, "attention_bias");
    refuse("mistral", "\"attention_bias\": true", PERCH_E_UNSUPPORTED, "attention_bias");
    refuse("qwen3", "\"mlp_bias\": true", PERCH_E_UNSUPPORTED, "mlp_bias");
    (void)accept("mistral", "\"attention_bias\": false, \"mlp_bias\": false");
}

static void ranges_are_checked(void) {
    static const char *const required[] = {"hidden_size",         "intermediate_size", "num_hidden_layers",
                                           "num_attention_heads", "vocab_size",        "max_position_embeddings"};
    static const char *const bad[] = {"0", "-1", "4294967296", "9223372036854775807", "2.5", "\"8\"", "[8]", "true"};
    char patch[128];
    for (size_t i = 0; i < sizeof required / sizeof required[0]; i++) {
        snprintf(patch, sizeof patch, "\"%s\": \"...\"", required[i]);
        refuse("llama", patch, PERCH_E_FORMAT, required[i]);
        snprintf(patch, sizeof patch, "\"%s\": null", required[i]);
        refuse("llama", patch, PERCH_E_FORMAT, required[i]);
        for (size_t j = 0; j < sizeof bad / sizeof bad[0]; j++) {
            snprintf(patch, sizeof patch, "\"%s\": %s", required[i], bad[j]);
            refuse("llama", patch, PERCH_E_FORMAT, required[i]);
        }
    }
    refuse("llama", "\"num_key_value_heads\": 3", PERCH_E_FORMAT, "num_key_value_heads: 3 does not divide");
    refuse("llama", "\"num_key_value_heads\": 16", PERCH_E_FORMAT, "num_key_value_heads");
    refuse("llama", "\"hidden_size\": 66", PERCH_E_FORMAT, "head_dim");
    refuse("llama", "\"hidden_size\": 72", PERCH_E_UNSUPPORTED, "head_dim: 9");
    refuse("llama", "\"hidden_size\": 1048576, \"num_attention_heads\": 1, \"num_key_value_heads\": 1", PERCH_E_FORMAT,
           "head_dim");
    refuse("qwen3", "\"head_dim\": 7", PERCH_E_UNSUPPORTED, "head_dim: 7");
    refuse("qwen3", "\"head_dim\": 2048", PERCH_E_FORMAT, "head_dim: 2048");
    refuse("llama", "\"rms_norm_eps\": 0", PERCH_E_FORMAT, "rms_norm_eps");
    refuse("llama", "\"rms_norm_eps\": \"small\"", PERCH_E_FORMAT, "rms_norm_eps");
    refuse("llama", "\"tie_word_embeddings\": 1", PERCH_E_FORMAT, "tie_word_embeddings");
    (void)accept("llama", "\"num_hidden_layers\": 1024");
    refuse("llama", "\"num_hidden_layers\": 1025", PERCH_E_FORMAT, "num_hidden_layers");
}

/* --------------------------------------------------------------- unsupported -- */

static void other_architectures_are_named(void) {
    refuse("llama", "\"architectures\": [\"GemmaForCausalLM\"], \"model_type\": \"gemma\"", PERCH_E_UNSUPPORTED,
           "GemmaForCausalLM");
    refuse("llama", "\"architectures\": [\"LlamaForSequenceClassification\"]", PERCH_E_UNSUPPORTED,
           "LlamaForSequenceClassification");
    refuse("llama", "\"architectures\": \"...\", \"model_type\": \"phi3\"", PERCH_E_UNSUPPORTED, "phi3");
    refuse("llama", "\"architectures\": \"...\", \"model_type\": \"...\"", PERCH_E_FORMAT, "architectures is missing");
    refuse("llama", "\"model_type\": \"mistral\"", PERCH_E_UNSUPPORTED, "model_type: \"mistral\"");
    refuse("llama", "\"architectures\": []", PERCH_E_FORMAT, "architectures");
    refuse("llama", "\"architectures\": [\"LlamaForCausalLM\", \"MistralForCausalLM\"]", PERCH_E_FORMAT,
           "architectures");
    refuse("llama", "\"architectures\": [7]", PERCH_E_FORMAT, "architectures");
}

static void fields_that_would_change_the_result_are_named(void) {
    refuse("llama", "\"hidden_act\": \"gelu\"", PERCH_E_UNSUPPORTED, "hidden_act: \"gelu\"");
    (void)accept("llama", "\"hidden_act\": \"swish\"");
    (void)accept("llama", "\"hidden_act\": null");
    refuse("llama", "\"partial_rotary_factor\": 0.5", PERCH_E_UNSUPPORTED, "partial_rotary_factor: 0.5");
    (void)accept("llama", "\"partial_rotary_factor\": 1.0");
    refuse("llama", "\"pretraining_tp\": 2", PERCH_E_UNSUPPORTED, "pretraining_tp: 2");
    (void)accept("llama", "\"pretraining_tp\": 1");
    refuse("llama", "\"quantization_config\": {\"quant_method\": \"gptq\"}", PERCH_E_UNSUPPORTED,
           "quantization_config");
    refuse("llama", "\"attn_logit_softcapping\": 50.0", PERCH_E_UNSUPPORTED, "attn_logit_softcapping");
    refuse("llama", "\"final_logit_softcapping\": 30.0", PERCH_E_UNSUPPORTED, "final_logit_softcapping");
    refuse("llama", "\"embedding_multiplier\": 12", PERCH_E_UNSUPPORTED, "embedding_multiplier");
    refuse("llama", "\"use_parallel_residual\": true", PERCH_E_UNSUPPORTED, "use_parallel_residual");
    refuse("llama", "\"something_new\": \"x\"", PERCH_E_UNSUPPORTED, "something_new");
    refuse("llama", "\"sliding_window\": 64", PERCH_E_UNSUPPORTED, "sliding_window");
    refuse("llama", "\"layer_types\": [\"full_attention\"]", PERCH_E_UNSUPPORTED, "layer_types");
    refuse("qwen2", "\"num_experts\": 8", PERCH_E_UNSUPPORTED, "num_experts");
    refuse("llama", "\"auto_map\": {\"AutoModel\": \"x.y\"}", PERCH_E_UNSUPPORTED, "auto_map");
    refuse("llama", "\"torch_dtype\": \"float64\"", PERCH_E_UNSUPPORTED, "torch_dtype: \"float64\"");
    refuse("llama", "\"dtype\": \"int8\"", PERCH_E_UNSUPPORTED, "dtype: \"int8\"");
}

static void fields_that_say_nothing_are_harmless(void) {
    (void)accept("llama", "\"quantization_config\": null, \"use_mrope\": false, \"pruned_heads\": {}, \"new_list\": [],"
                          "\"new_name\": \"\", \"new_value\": null, \"_name_or_path\": \"x\", \"_whatever\": 7");
    (void)accept("llama", "\"attention_dropout\": 0.1, \"initializer_range\": 0.02, \"use_cache\": true,"
                          "\"transformers_version\": \"4.57.0\", \"pad_token_id\": 0, \"unsloth_fixed\": true,"
                          "\"id2label\": {\"0\": \"A\"}, \"max_length\": 20, \"num_beams\": 1, \"temperature\": 1.0");
    CU_ASSERT_TRUE(accept("llama", "\"torch_dtype\": \"float32\"").stored_f32);
    CU_ASSERT_TRUE(accept("llama", "\"torch_dtype\": \"float16\", \"dtype\": \"float32\"").stored_f32);
}

static void malformed_json_is_refused(void) {
    static const char *const bad[] = {"",    "{", "[]", "7", "{\"a\": 1} x", "{\"a\": 1, \"a\": 2}", "{\"a\": 1e999}",
                                      "\xff"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        model_config config;
        perch_error err = {0};
        CU_ASSERT_EQUAL(model_config_parse(bad[i], strlen(bad[i]), NULL, 0, "x.json", &config, &err), PERCH_E_FORMAT);
        CHECK_MSG(strncmp(err.message, "x.json: ", 8) == 0, "%s: %s", bad[i], err.message);
        CU_ASSERT_EQUAL(model_config_parse(bad[i], strlen(bad[i]), NULL, 0, "x.json", &config, NULL), PERCH_E_FORMAT);
    }
}

/* ----------------------------------------------------------------- window -- */

static void windows_are_layer_by_layer(void) {
    model_config c = accept("mistral", "");
    CU_ASSERT_EQUAL(c.window, 4096);
    CU_ASSERT_EQUAL(model_layer_window(&c, 0), 4096);
    c = accept("mistral", "\"sliding_window\": null");
    CU_ASSERT_EQUAL(model_layer_window(&c, 0), 0);
    c = accept("mistral", "\"sliding_window\": 32, \"num_hidden_layers\": 70");
    CU_ASSERT_TRUE(model_layer_window(&c, 0) == 32 && model_layer_window(&c, 64) == 32 &&
                   model_layer_window(&c, 69) == 32);
    c = accept("qwen2", "\"sliding_window\": 32, \"max_window_layers\": 1");
    CU_ASSERT_TRUE(c.window == 0 && model_layer_window(&c, 2) == 0);
    c = accept("qwen2", "\"use_sliding_window\": true, \"sliding_window\": 32, \"max_window_layers\": 1");
    CU_ASSERT_TRUE(model_layer_window(&c, 0) == 0 && model_layer_window(&c, 1) == 32 &&
                   model_layer_window(&c, 2) == 32);
    c = accept("qwen3", "\"use_sliding_window\": true, \"sliding_window\": 32");
    CU_ASSERT_EQUAL(model_layer_window(&c, 2), 0); /* max_window_layers is 28 */
    c = accept("qwen3", "\"use_sliding_window\": true, \"max_window_layers\": 0");
    CU_ASSERT_EQUAL(model_layer_window(&c, 0), 4096);
    c = accept("qwen2",
               "\"use_sliding_window\": true, \"sliding_window\": 32, \"max_window_layers\": 0, \"layer_types\":"
               "[\"full_attention\", \"sliding_attention\", \"full_attention\"]");
    CU_ASSERT_TRUE(model_layer_window(&c, 0) == 0 && model_layer_window(&c, 1) == 32 && model_layer_window(&c, 2) == 0);
    refuse("qwen2", "\"layer_types\": [\"full_attention\", \"sliding_attention\", \"full_attention\"]", PERCH_E_FORMAT,
           "layer_types[1]: sliding_attention without a sliding_window");
    refuse("qwen2", "\"layer_types\": [\"full_attention\"]", PERCH_E_FORMAT, "layer_types: must be a list of 3");
    refuse("qwen2", "\"layer_types\": [\"full_attention\", \"full_attention\", \"linear_attention\"]",
           PERCH_E_UNSUPPORTED, "layer_types[2]: \"linear_attention\"");
    refuse("mistral", "\"layer_types\": [\"sliding_attention\", \"full_attention\", \"sliding_attention\"]",
           PERCH_E_UNSUPPORTED, "layer_types[1]");
    refuse("mistral", "\"sliding_window\": 0", PERCH_E_FORMAT, "sliding_window: 0");
}

/* ------------------------------------------------------------------- RoPE -- */

#define SCALED(arch, inside) accept(arch, "\"rope_scaling\": {" inside "}").rope
#define NOT_SCALED(status, inside, says) refuse("llama", "\"rope_scaling\": {" inside "}", status, says)

static void rope_kinds_are_taken_in_both_spellings(void) {
    rope_config r = accept("llama", "\"rope_theta\": 5e5, \"rope_scaling\": null").rope;
    CU_ASSERT_TRUE(r.kind == ROPE_NONE && near(r.theta, 5e5) && near(r.attention_factor, 1));
    r = accept("llama", "\"rope_parameters\": {\"rope_type\": \"default\", \"rope_theta\": 1e6}, \"rope_theta\": 7")
            .rope;
    CU_ASSERT_TRUE(r.kind == ROPE_NONE && near(r.theta, 1e6));
    r = SCALED("llama", "\"type\": \"linear\", \"factor\": 4");
    CU_ASSERT_TRUE(r.kind == ROPE_LINEAR && near(r.factor, 4));
    r = SCALED("llama", "\"rope_type\": \"dynamic\", \"factor\": 2.0, \"original_max_position_embeddings\": 256");
    CU_ASSERT_TRUE(r.kind == ROPE_DYNAMIC && near(r.factor, 2) && r.original_max_positions == 256);
    r = SCALED("llama",
               "\"rope_type\": \"llama3\", \"factor\": 8.0, \"low_freq_factor\": 1.0, \"high_freq_factor\": 4.0,"
               "\"original_max_position_embeddings\": 64");
    CU_ASSERT_TRUE(r.kind == ROPE_LLAMA3 && near(r.factor, 8) && near(r.low_freq_factor, 1) &&
                   near(r.high_freq_factor, 4) && r.original_max_positions == 64);
    r = accept("llama",
               "\"original_max_position_embeddings\": 32, \"rope_scaling\": {\"rope_type\": \"llama3\", \"factor\":"
               " 8, \"low_freq_factor\": 1, \"high_freq_factor\": 4}")
            .rope;
    CU_ASSERT_EQUAL(r.original_max_positions, 32);
    r = accept("qwen3", "\"rope_parameters\": {\"rope_type\": \"linear\", \"factor\": 2, \"rope_theta\": 3e4},"
                        "\"rope_scaling\": {\"type\": \"linear\", \"factor\": 2.0, \"rope_theta\": 3e4}")
            .rope;
    CU_ASSERT_TRUE(r.kind == ROPE_LINEAR && near(r.theta, 3e4));
    CU_ASSERT_EQUAL(SCALED("llama", "").kind, ROPE_NONE);
}

static void yarn_derives_what_is_not_said(void) {
    rope_config r = SCALED("qwen2", "\"type\": \"yarn\", \"factor\": 4.0, \"original_max_position_embeddings\": 64");
    CU_ASSERT_TRUE(r.kind == ROPE_YARN && near(r.beta_fast, 32) && near(r.beta_slow, 1) && r.truncate);
    CU_ASSERT_TRUE(near(r.attention_factor, 0.1 * log(4) + 1));
    r = SCALED(
        "llama",
        "\"rope_type\": \"yarn\", \"factor\": 4.0, \"mscale\": 1.0, \"mscale_all_dim\": 0.5, \"truncate\": false");
    CU_ASSERT_TRUE(near(r.attention_factor, (0.1 * log(4) + 1) / (0.05 * log(4) + 1)) && !r.truncate);
    CU_ASSERT_EQUAL(r.original_max_positions, 256);
    r = SCALED("llama", "\"rope_type\": \"yarn\", \"factor\": 4.0, \"mscale\": 1.0, \"mscale_all_dim\": 0");
    CU_ASSERT_TRUE(near(r.attention_factor, 0.1 * log(4) + 1));
    r = SCALED("llama", "\"rope_type\": \"yarn\", \"factor\": 4.0, \"mscale\": 1.0, \"attention_factor\": 1.25");
    CU_ASSERT_TRUE(near(r.attention_factor, 1.25));
    r = SCALED("llama", "\"rope_type\": \"yarn\", \"factor\": null, \"original_max_position_embeddings\": 64");
    CU_ASSERT_TRUE(near(r.factor, 4));
    r = SCALED("llama", "\"rope_type\": \"yarn\", \"factor\": 0.5");
    CU_ASSERT_TRUE(near(r.attention_factor, 1));
}

static void texts_may_be_as_long_as_scaling_allows(void) {
    static const struct {
        const char *scaling;
        uint32_t n;
    } cases[] = {
        {"null", 256},
        {"{\"type\": \"linear\", \"factor\": 2.5}", 640},
        {"{\"type\": \"dynamic\", \"factor\": 2}", 512},
        {"{\"type\": \"yarn\", \"factor\": 4, \"original_max_position_embeddings\": 256}", 1024},
        {"{\"type\": \"yarn\", \"factor\": 4, \"original_max_position_embeddings\": 64}", 256},
        {"{\"type\": \"llama3\", \"factor\": 8, \"low_freq_factor\": 1, \"high_freq_factor\": 4}", 256},
        {"{\"type\": \"linear\", \"factor\": 1e9}", 1u << 30},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char patch[256];
        snprintf(patch, sizeof patch, "\"rope_scaling\": %s", cases[i].scaling);
        CHECK_MSG(accept("llama", patch).max_positions == cases[i].n, "%s", cases[i].scaling);
    }
}

static void rope_is_refused_by_name(void) {
    NOT_SCALED(PERCH_E_UNSUPPORTED, "\"rope_type\": \"longrope\", \"factor\": 2",
               "rope_scaling: rope_type: \"longrope\"");
    NOT_SCALED(PERCH_E_UNSUPPORTED, "\"type\": \"su\", \"factor\": 2", "\"su\"");
    NOT_SCALED(PERCH_E_UNSUPPORTED, "\"type\": \"mrope\", \"mrope_section\": [1]", "\"mrope\"");
    NOT_SCALED(PERCH_E_UNSUPPORTED, "\"rope_type\": \"default\", \"mrope_section\": [1]", "mrope_section");
    NOT_SCALED(PERCH_E_UNSUPPORTED, "\"type\": \"yarn\", \"factor\": 2, \"finetuned\": true", "finetuned");
    NOT_SCALED(PERCH_E_UNSUPPORTED, "\"type\": \"linear\", \"factor\": 2, \"attention_factor\": 2", "attention_factor");
    NOT_SCALED(PERCH_E_UNSUPPORTED, "\"rope_type\": \"default\", \"partial_rotary_factor\": 0.5",
               "partial_rotary_factor");
    NOT_SCALED(PERCH_E_UNSUPPORTED, "\"full_attention\": {\"rope_type\": \"default\"}", "full_attention");
    NOT_SCALED(PERCH_E_FORMAT, "\"type\": \"yarn\", \"rope_type\": \"linear\", \"factor\": 2", "disagree");
    NOT_SCALED(PERCH_E_FORMAT, "\"type\": \"linear\"", "factor is missing");
    NOT_SCALED(PERCH_E_FORMAT, "\"type\": \"dynamic\", \"factor\": 0", "factor: 0");
    NOT_SCALED(PERCH_E_FORMAT, "\"type\": \"linear\", \"factor\": \"2\"", "factor: must be a number");
    NOT_SCALED(PERCH_E_FORMAT, "\"type\": 7", "type: must be a string");
    NOT_SCALED(PERCH_E_FORMAT, "\"type\": \"llama3\", \"factor\": 8, \"low_freq_factor\": 1",
               "high_freq_factor is missing");
    NOT_SCALED(PERCH_E_FORMAT, "\"type\": \"llama3\", \"factor\": 8, \"low_freq_factor\": 4, \"high_freq_factor\": 4",
               "high_freq_factor: 4");
    NOT_SCALED(PERCH_E_FORMAT, "\"type\": \"yarn\", \"factor\": 8, \"beta_fast\": 1, \"beta_slow\": 2", "beta_fast");
    NOT_SCALED(PERCH_E_FORMAT, "\"type\": \"yarn\", \"factor\": 8, \"truncate\": 1", "truncate");
    NOT_SCALED(PERCH_E_FORMAT, "\"type\": \"default\", \"rope_theta\": 1", "rope_theta");
    NOT_SCALED(PERCH_E_UNSUPPORTED, "\"type\": \"dynamic\", \"factor\": 2, \"original_max_position_embeddings\": 128",
               "contradicts max_position_embeddings");
    refuse("llama",
           "\"original_max_position_embeddings\": 32, \"rope_scaling\": {\"type\": \"yarn\", \"factor\": 2,"
           "\"original_max_position_embeddings\": 64}",
           PERCH_E_UNSUPPORTED, "original_max_position_embeddings");
    refuse("llama", "\"rope_scaling\": \"linear\"", PERCH_E_FORMAT, "rope_scaling: must be an object");
    refuse("llama", "\"rope_theta\": 0.5", PERCH_E_FORMAT, "rope_theta: 0.5");
    refuse("llama",
           "\"rope_parameters\": {\"rope_type\": \"linear\", \"factor\": 2},"
           "\"rope_scaling\": {\"type\": \"linear\", \"factor\": 3}",
           PERCH_E_FORMAT, "disagree");
    refuse("qwen3", "\"head_dim\": 2, \"rope_scaling\": {\"type\": \"dynamic\", \"factor\": 2}", PERCH_E_UNSUPPORTED,
           "head_dim");
}

/* -------------------------------------------------------------- generation -- */

static void generation_sets_the_defaults(void) {
    model_config c;
    perch_error err;
    CU_ASSERT_EQUAL(
        load(
            "qwen2", "\"eos_token_id\": 5",
            "{\"bos_token_id\": 3, \"eos_token_id\": [7, 5, 9, 9, 1000, -1], \"do_sample\": true, \"temperature\": 0.7,"
            "\"top_p\": 0.8, \"top_k\": 20, \"min_p\": 0.05, \"typical_p\": 0.9, \"repetition_penalty\": 1.05,"
            "\"transformers_version\": \"4.37.0\", \"max_new_tokens\": 2048, \"pad_token_id\": 3}",
            &c, &err),
        PERCH_OK);
    CU_ASSERT_EQUAL(c.bos, 3);
    CU_ASSERT_TRUE(c.n_eos == 3 && c.eos[0] == 5 && c.eos[1] == 7 && c.eos[2] == 9);
    CU_ASSERT_TRUE(near(c.temperature, 0.7) && near(c.top_p, 0.8) && c.top_k == 20 && near(c.min_p, 0.05));
    CU_ASSERT_TRUE(near(c.typical_p, 0.9) && near(c.repetition_penalty, 1.05));
    CU_ASSERT_EQUAL(load("llama", "\"temperature\": 0.3, \"top_k\": 7", "{\"top_p\": 1}", &c, &err), PERCH_OK);
    CU_ASSERT_TRUE(c.temperature == 0 && near(c.top_p, 1) && c.top_k == -1 && isnan(c.min_p) && isnan(c.typical_p) &&
                   isnan(c.repetition_penalty));
    CU_ASSERT_EQUAL(load("llama", "", "{\"do_sample\": true}", &c, &err), PERCH_OK);
    CU_ASSERT_TRUE(near(c.temperature, 1));
    CU_ASSERT_EQUAL(load("llama", "", "{\"do_sample\": false, \"temperature\": 0.6}", &c, &err), PERCH_OK);
    CU_ASSERT_TRUE(c.temperature == 0);
    /* a model from before generation_config.json */
    c = accept("llama", "\"do_sample\": true, \"temperature\": 0.3, \"top_k\": 7");
    CU_ASSERT_TRUE(near(c.temperature, 0.3) && c.top_k == 7);
}

static void generation_is_refused_by_name(void) {
    static const struct {
        const char *json, *says;
        perch_status status;
    } bad[] = {
        {"{\"top_p\": 0}", "top_p: 0", PERCH_E_FORMAT},
        {"{\"top_p\": 1.5}", "top_p: 1.5", PERCH_E_FORMAT},
        {"{\"top_k\": -3}", "top_k: -3", PERCH_E_FORMAT},
        {"{\"min_p\": 1}", "min_p: 1", PERCH_E_FORMAT},
        {"{\"typical_p\": 0}", "typical_p", PERCH_E_FORMAT},
        {"{\"temperature\": -1}", "temperature", PERCH_E_FORMAT},
        {"{\"repetition_penalty\": 0}", "repetition_penalty", PERCH_E_FORMAT},
        {"{\"do_sample\": \"yes\"}", "do_sample", PERCH_E_FORMAT},
        {"{\"eos_token_id\": \"</s>\"}", "eos_token_id", PERCH_E_FORMAT},
        {"{\"eos_token_id\": [1, null]}", "eos_token_id", PERCH_E_FORMAT},
        {"{\"eos_token_id\": [1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17]}", "eos_token_id", PERCH_E_UNSUPPORTED},
        {"{\"num_beams\": 4}", "num_beams: 4", PERCH_E_UNSUPPORTED},
        {"{\"no_repeat_ngram_size\": 3}", "no_repeat_ngram_size: 3", PERCH_E_UNSUPPORTED},
        {"{\"guidance_scale\": 1.5}", "guidance_scale", PERCH_E_UNSUPPORTED},
        {"{\"suppress_tokens\": [5]}", "suppress_tokens", PERCH_E_UNSUPPORTED},
        {"{\"watermarking_config\": {\"bias\": 2}}", "watermarking_config", PERCH_E_UNSUPPORTED},
        {"{", "line 1", PERCH_E_FORMAT},
        {"[]", "must be a JSON object", PERCH_E_FORMAT},
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        model_config c;
        perch_error err;
        perch_status status = load("llama", "", bad[i].json, &c, &err);
        CHECK_MSG(status == bad[i].status && strstr(err.message, bad[i].says) &&
                      strstr(err.message, "generation_config.json"),
                  "%s: %s %s", bad[i].json, perch_status_name(status), err.message);
    }
}

/* ------------------------------------------------------------------ files -- */

static void a_directory_or_a_file_is_read(void) {
    static const char generation[] = "{\"do_sample\": true, \"temperature\": 0.5}";
    model_config c;
    perch_error err = {0};
    const char *dir = testing_dir_make();
    CU_ASSERT_EQUAL(model_config_load(dir, &c, &err), PERCH_E_IO);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.message, "config.json"));
    const char *path = testing_write("config.json", base_json, sizeof base_json - 1);
    CU_ASSERT_EQUAL(model_config_load(path, &c, &err), PERCH_OK);
    CU_ASSERT_EQUAL(model_config_load(dir, &c, &err), PERCH_OK);
    CU_ASSERT_TRUE(c.temperature == 0 && c.n_layers == 3);
    testing_write("generation_config.json", generation, sizeof generation - 1);
    CU_ASSERT_EQUAL(model_config_load(dir, &c, &err), PERCH_OK);
    CU_ASSERT_TRUE(near(c.temperature, 0.5));
    testing_write("generation_config.json", "{", 1);
    CU_ASSERT_EQUAL(model_config_load(dir, &c, &err), PERCH_E_FORMAT);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.message, "/generation_config.json: line 1"));
    testing_dir_remove();
    CU_ASSERT_EQUAL(model_config_load("tests/nowhere", &c, &err), PERCH_E_IO);
    CU_ASSERT_EQUAL(model_config_load("/dev/null", &c, &err), PERCH_E_IO);
}

static void a_missing_dtype_is_looked_up_in_the_tensors(void) {
    static const char no_dtype[] =
        "{\"model_type\": \"llama\", \"hidden_size\": 8, \"intermediate_size\": 8, \"num_hidden_layers\": 1,"
        "\"num_attention_heads\": 2, \"vocab_size\": 8, \"max_position_embeddings\": 8}";
    static const float data[16] = {0};
    model_config c;
    const char *dir = testing_dir_make();
    testing_write("config.json", no_dtype, sizeof no_dtype - 1);
    CU_ASSERT_EQUAL(model_config_load(dir, &c, NULL), PERCH_OK);
    CU_ASSERT_FALSE(c.stored_f32);
    testing_file file = {0};
    testing_file_add(&file, "a", SAFETENSORS_BF16, 4, 0, data);
    testing_file_add(&file, "model.embed_tokens.weight", SAFETENSORS_F32, 4, 4, data);
    testing_file_write(&file, "model.safetensors");
    CU_ASSERT_EQUAL(model_config_load(dir, &c, NULL), PERCH_OK);
    CU_ASSERT_TRUE(c.stored_f32);
    testing_file_drop(&file, "model.embed_tokens.weight");
    testing_file_write(&file, "model.safetensors");
    CU_ASSERT_EQUAL(model_config_load(dir, &c, NULL), PERCH_OK);
    CU_ASSERT_FALSE(c.stored_f32);
    testing_write("model.safetensors", "x", 1);
    CU_ASSERT_EQUAL(model_config_load(dir, &c, NULL), PERCH_E_FORMAT);
    testing_dir_remove();
}

static void public_shapes_have_their_published_parameters(void) {
    static const struct {
        const char *path;
        uint64_t n_parameters;
        uint32_t max_positions;
    } shapes[] = {
        {"configs/shapes/Llama-3.2-1B", 1235814400, 131072}, {"configs/shapes/Llama-3.1-8B", 8030261248, 131072},
        {"configs/shapes/Llama-2-7B", 6738415616, 4096},     {"configs/shapes/Qwen2.5-7B", 7615616512, 131072},
        {"configs/shapes/Mistral-7B", 7241732096, 32768},
    };
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
        model_config c;
        perch_error err = {0};
        perch_status status = model_config_load(shapes[i].path, &c, &err);
        CHECK_MSG(status == PERCH_OK, "%s", err.message);
        CHECK_MSG(model_n_parameters(&c) == shapes[i].n_parameters, "%s: %llu parameters", shapes[i].path,
                  (unsigned long long)model_n_parameters(&c));
        CU_ASSERT_EQUAL(c.max_positions, shapes[i].max_positions);
        CU_ASSERT_FALSE(c.stored_f32);
    }
}

int main(int argc, char **argv) {
    static const test_case tests[] = {
        {"sizes are taken", sizes_are_taken},
        {"defaults are those of transformers", defaults_are_those_of_transformers},
        {"biases belong to architectures", biases_belong_to_architectures},
        {"ranges are checked", ranges_are_checked},
        {"other architectures are named", other_architectures_are_named},
        {"fields that would change the result are named", fields_that_would_change_the_result_are_named},
        {"fields that say nothing are harmless", fields_that_say_nothing_are_harmless},
        {"malformed JSON is refused", malformed_json_is_refused},
        {"windows are layer by layer", windows_are_layer_by_layer},
        {"RoPE kinds are taken in both spellings", rope_kinds_are_taken_in_both_spellings},
        {"yarn derives what is not said", yarn_derives_what_is_not_said},
        {"texts may be as long as scaling allows", texts_may_be_as_long_as_scaling_allows},
        {"RoPE is refused by name", rope_is_refused_by_name},
        {"generation sets the defaults", generation_sets_the_defaults},
        {"generation is refused by name", generation_is_refused_by_name},
        {"a directory or a file is read", a_directory_or_a_file_is_read},
        {"a missing dtype is looked up in the tensors", a_missing_dtype_is_looked_up_in_the_tensors},
        {"public shapes have their published parameters", public_shapes_have_their_published_parameters},
    };
    return test_main("config", tests, sizeof tests / sizeof tests[0], argc, argv);
}
