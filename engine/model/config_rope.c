/*
 * config_rope: the description of RoPE in its two spellings. `rope_scaling` stands beside a top-level rope_theta;
 * `rope_parameters` (transformers 5) holds rope_theta itself. A model that carries both must mean the same by them.
 */
#include "engine/model/config_impl.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#define MAX_FACTOR 1e9

static const char *const common_keys[] = {"rope_type", "type", "rope_theta", "partial_rotary_factor", NULL};
static const char *const no_keys[] = {NULL};
static const char *const linear_keys[] = {"factor", NULL};
static const char *const dynamic_keys[] = {"factor", "original_max_position_embeddings", NULL};
static const char *const llama3_keys[] = {"factor", "low_freq_factor", "high_freq_factor",
                                          "original_max_position_embeddings", NULL};
static const char *const yarn_keys[] = {"factor", "beta_fast",      "beta_slow", "attention_factor",
                                        "mscale", "mscale_all_dim", "truncate",  "original_max_position_embeddings",
                                        NULL};

static const struct {
    const char *name;
    rope_kind kind;
    const char *const *keys;
} kinds[] = {
    {"default", ROPE_NONE, no_keys},      {"linear", ROPE_LINEAR, linear_keys}, {"dynamic", ROPE_DYNAMIC, dynamic_keys},
    {"llama3", ROPE_LLAMA3, llama3_keys}, {"yarn", ROPE_YARN, yarn_keys},
};

static perch_status read_kind(const fields *f, rope_kind *out) {
    const char *name = "default", *old_name = NULL;
    perch_status status = field_string(f, "type", &old_name);
    if (status != PERCH_OK) {
        return status;
    }
    name = old_name ? old_name : name;
    if ((status = field_string(f, "rope_type", &name)) != PERCH_OK) {
        return status;
    }
    if (old_name && strcmp(name, old_name) != 0) {
        return err_set(f->err, PERCH_E_FORMAT, "%s: rope_type \"%.32s\" and type \"%.32s\" disagree", f->where, name,
                       old_name);
    }
    for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++) {
        if (strcmp(name, kinds[i].name) == 0) {
            const char *const *lists[] = {common_keys, kinds[i].keys};
            *out = kinds[i].kind;
            return fields_known(f, lists, 2);
        }
    }
    return err_set(f->err, PERCH_E_UNSUPPORTED, "%s: rope_type: \"%.64s\" is not supported", f->where, name);
}

/* The multiplier that keeps attention's entropy where it was (Peng et al. 2023, section 3.4). */
static double yarn_mscale(double factor, double mscale) { return factor <= 1 ? 1 : 0.1 * mscale * log(factor) + 1; }

static perch_status read_yarn(const fields *f, uint32_t max_positions, rope_config *out) {
    double mscale = 0, mscale_all_dim = 0, attention_factor = 0;
    perch_status status;
    out->beta_fast = 32;
    out->beta_slow = 1;
    out->truncate = true;
    /* Where factor is null, DeepSeek's configs mean the ratio of the two lengths. */
    out->factor = (double)max_positions / out->original_max_positions;
    if ((status = field_real(f, "factor", 0, MAX_FACTOR, FIELD_ABOVE_LOW, &out->factor)) != PERCH_OK ||
        (status = field_real(f, "beta_fast", 0, MAX_FACTOR, FIELD_ABOVE_LOW, &out->beta_fast)) != PERCH_OK ||
        (status = field_real(f, "beta_slow", 0, MAX_FACTOR, FIELD_ABOVE_LOW, &out->beta_slow)) != PERCH_OK ||
        (status = field_real(f, "mscale", 0, MAX_FACTOR, 0, &mscale)) != PERCH_OK ||
        (status = field_real(f, "mscale_all_dim", 0, MAX_FACTOR, 0, &mscale_all_dim)) != PERCH_OK ||
        (status = field_real(f, "attention_factor", 0, MAX_FACTOR, FIELD_ABOVE_LOW, &attention_factor)) != PERCH_OK ||
        (status = field_bool(f, "truncate", &out->truncate)) != PERCH_OK) {
        return status;
    }
    if (out->beta_fast < out->beta_slow) {
        return err_set(f->err, PERCH_E_FORMAT, "%s: beta_fast: %g is less than beta_slow, %g", f->where, out->beta_fast,
                       out->beta_slow);
    }
    bool has_mscales = mscale > 0 && mscale_all_dim > 0;
    out->attention_factor = attention_factor > 0 ? attention_factor
                            : has_mscales ? yarn_mscale(out->factor, mscale) / yarn_mscale(out->factor, mscale_all_dim)
                                          : yarn_mscale(out->factor, 1);
    return PERCH_OK;
}

static perch_status read_llama3(const fields *f, rope_config *out) {
    static const char *const required[] = {"factor", "low_freq_factor", "high_freq_factor"};
    double *const values[] = {&out->factor, &out->low_freq_factor, &out->high_freq_factor};
    for (size_t i = 0; i < 3; i++) {
        perch_status status = field_require(f, required[i]);
        if (status != PERCH_OK ||
            (status = field_real(f, required[i], 0, MAX_FACTOR, FIELD_ABOVE_LOW, values[i])) != PERCH_OK) {
            return status;
        }
    }
    if (out->high_freq_factor <= out->low_freq_factor) {
        return err_set(f->err, PERCH_E_FORMAT, "%s: high_freq_factor: %g is not more than low_freq_factor, %g",
                       f->where, out->high_freq_factor, out->low_freq_factor);
    }
    return PERCH_OK;
}

/*
 * The length that the model was trained at. For llama3 and yarn: a top-level key (Phi-3's way), else the object's own, else
 * max_position_embeddings. Dynamic scaling knows max_position_embeddings only; another number there would be ignored
 * by transformers and so means something that perch does not know.
 */
static perch_status read_original(const fields *root, const fields *f, uint32_t max_positions, rope_config *out) {
    static const char key[] = "original_max_position_embeddings";
    uint32_t inner = 0, outer = 0;
    perch_status status;
    if ((status = field_u32(f, key, 1, CONFIG_MAX_POSITIONS, &inner)) != PERCH_OK ||
        (status = field_u32(root, key, 1, CONFIG_MAX_POSITIONS, &outer)) != PERCH_OK) {
        return status;
    }
    if (out->kind == ROPE_DYNAMIC) {
        outer = max_positions;
    }
    if (inner && outer && inner != outer) {
        return err_set(f->err, PERCH_E_UNSUPPORTED, "%s: %s: %u contradicts %s, %u", f->where, key, inner,
                       out->kind == ROPE_DYNAMIC ? "max_position_embeddings" : "the one at top level", outer);
    }
    out->original_max_positions = outer ? outer : inner ? inner : max_positions;
    return PERCH_OK;
}

static perch_status read_scaling(const fields *root, const fields *f, const model_config *config, rope_config *out) {
    perch_status status;
    if ((status = read_kind(f, &out->kind)) != PERCH_OK ||
        (status = field_real(f, "rope_theta", 1, 1e18, FIELD_ABOVE_LOW, &out->theta)) != PERCH_OK ||
        (status = field_only_number(f, "partial_rotary_factor", 1)) != PERCH_OK || out->kind == ROPE_NONE) {
        return status;
    }
    if (out->kind == ROPE_LINEAR || out->kind == ROPE_DYNAMIC) {
        if ((status = field_require(f, "factor")) != PERCH_OK ||
            (status = field_real(f, "factor", 0, MAX_FACTOR, FIELD_ABOVE_LOW, &out->factor)) != PERCH_OK ||
            out->kind == ROPE_LINEAR) {
            return status;
        }
    }
    if ((status = read_original(root, f, config->max_positions, out)) != PERCH_OK) {
        return status;
    }
    if (out->kind == ROPE_DYNAMIC && config->head_dim < 4) {
        return err_set(f->err, PERCH_E_UNSUPPORTED, "%s: dynamic scaling needs a head_dim of at least 4", f->where);
    }
    return out->kind == ROPE_YARN     ? read_yarn(f, config->max_positions, out)
           : out->kind == ROPE_LLAMA3 ? read_llama3(f, out)
                                      : PERCH_OK;
}

static bool same_real(double a, double b) { return a <= b && a >= b; }

static bool same_rope(const rope_config *a, const rope_config *b) {
    return a->kind == b->kind && a->truncate == b->truncate && a->original_max_positions == b->original_max_positions &&
           same_real(a->theta, b->theta) && same_real(a->factor, b->factor) &&
           same_real(a->low_freq_factor, b->low_freq_factor) && same_real(a->high_freq_factor, b->high_freq_factor) &&
           same_real(a->beta_fast, b->beta_fast) && same_real(a->beta_slow, b->beta_slow) &&
           same_real(a->attention_factor, b->attention_factor);
}

/*
 * How long a text may be. Where max_position_embeddings states the length before scaling, the factor is still to come: always
 * for linear and dynamic, and for yarn where the original length times the factor is more. Llama 3 states the length after it.
 */
static void stretch_positions(model_config *out) {
    const rope_config *rope = &out->rope;
    double n = out->max_positions;
    n = rope->kind == ROPE_LINEAR || rope->kind == ROPE_DYNAMIC ? fmax(n, n * rope->factor) : n;
    n = rope->kind == ROPE_YARN ? fmax(n, rope->original_max_positions * rope->factor) : n;
    out->max_positions = (uint32_t)fmin(n, CONFIG_MAX_POSITIONS);
}

perch_status config_rope_read(const fields *root, model_config *out) {
    static const char *const keys[] = {"rope_parameters", "rope_scaling"};
    rope_config unscaled = {.kind = ROPE_NONE, .theta = 10000, .factor = 1, .attention_factor = 1};
    bool found = false;
    perch_status status = field_real(root, "rope_theta", 1, 1e18, FIELD_ABOVE_LOW, &unscaled.theta);
    if (status != PERCH_OK) {
        return status;
    }
    out->rope = unscaled;
    for (size_t i = 0; i < 2; i++) {
        const jv *object = jv_get(root->object, keys[i]);
        char where[PERCH_PATH_CAP];
        if (!field_is_set(root, keys[i]) || (object->type == JV_OBJECT && object->n == 0)) {
            continue;
        }
        if (object->type != JV_OBJECT) {
            return err_set(root->err, PERCH_E_FORMAT, "%s: %s: must be an object", root->where, keys[i]);
        }
        snprintf(where, sizeof where, "%s: %s", root->where, keys[i]);
        fields f = {object, where, root->err};
        rope_config rope = unscaled;
        if ((status = read_scaling(root, &f, out, &rope)) != PERCH_OK) {
            return status;
        }
        if (found && !same_rope(&rope, &out->rope)) {
            return err_set(root->err, PERCH_E_FORMAT, "%s: rope_parameters and rope_scaling disagree", root->where);
        }
        out->rope = rope;
        found = true;
    }
    stretch_positions(out);
    return PERCH_OK;
}
