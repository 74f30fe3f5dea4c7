/*
 * config_generation: the defaults of sampling. A request says for itself what it wants, so that lengths, output switches
 * and the like are nobody's loss here; but a search or a filter that transformers would apply by default and perch does
 * not have is refused, for text would differ without a word.
 */
#include "engine/model/config_impl.h"

#include <float.h>
#include <math.h>

/* Read below, or without influence on which token is chosen (lengths, speed, output, speculation that is exact). */
const char *const config_generation_keys[] = {
    /* used */
    "do_sample",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "typical_p",
    "repetition_penalty",
    "bos_token_id",
    "eos_token_id",
    /* one value only, checked below */
    "num_beams",
    "num_beam_groups",
    "no_repeat_ngram_size",
    "encoder_no_repeat_ngram_size",
    "encoder_repetition_penalty",
    "diversity_penalty",
    "epsilon_cutoff",
    "eta_cutoff",
    "penalty_alpha",
    "guidance_scale",
    /* harmless: the request's own business */
    "max_length",
    "max_new_tokens",
    "min_length",
    "min_new_tokens",
    "max_time",
    "num_return_sequences",
    /* harmless: beams alone read them */
    "length_penalty",
    "early_stopping",
    "low_memory",
    /* harmless: how it is computed, cached, guessed ahead or shown */
    "use_cache",
    "cache_implementation",
    "cache_config",
    "max_cache_len",
    "renormalize_logits",
    "remove_invalid_values",
    "output_attentions",
    "output_hidden_states",
    "output_scores",
    "output_logits",
    "return_dict_in_generate",
    "is_assistant",
    "num_assistant_tokens",
    "num_assistant_tokens_schedule",
    "assistant_confidence_threshold",
    "prompt_lookup_num_tokens",
    "max_matching_ngram_size",
    "assistant_early_exit",
    "assistant_lookbehind",
    "target_lookbehind",
    "compile_config",
    "disable_compile",
    "continuous_batching_config",
    "prefill_chunk_size",
    "transformers_version",
    /* harmless: padding never enters a packed batch; an encoder there is none */
    "pad_token_id",
    "decoder_start_token_id",
    /* harmless: what some chat models keep for their own chat scripts */
    "chat_format",
    "max_window_size",
    NULL,
};

static const struct {
    const char *key;
    double only;
} only_numbers[] = {
    {"num_beams", 1},
    {"num_beam_groups", 1},
    {"no_repeat_ngram_size", 0},
    {"encoder_no_repeat_ngram_size", 0},
    {"encoder_repetition_penalty", 1},
    {"diversity_penalty", 0},
    {"epsilon_cutoff", 0},
    {"eta_cutoff", 0},
    {"penalty_alpha", 0},
    {"guidance_scale", 1},
};

perch_status config_generation_read(const fields *f, model_config *out) {
    bool do_sample = false;
    double temperature = 1;
    perch_status status = PERCH_OK;
    for (size_t i = 0; i < sizeof only_numbers / sizeof only_numbers[0] && status == PERCH_OK; i++) {
        status = field_only_number(f, only_numbers[i].key, only_numbers[i].only);
    }
    out->top_p = out->min_p = out->typical_p = out->repetition_penalty = (double)NAN;
    out->top_k = -1;
    if (status != PERCH_OK || (status = field_bool(f, "do_sample", &do_sample)) != PERCH_OK ||
        (status = field_real(f, "temperature", 0, DBL_MAX, 0, &temperature)) != PERCH_OK ||
        (status = field_real(f, "top_p", 0, 1, FIELD_ABOVE_LOW, &out->top_p)) != PERCH_OK ||
        (status = field_i32(f, "top_k", 0, INT32_MAX, &out->top_k)) != PERCH_OK ||
        (status = field_real(f, "min_p", 0, 1, FIELD_BELOW_HIGH, &out->min_p)) != PERCH_OK ||
        (status = field_real(f, "typical_p", 0, 1, FIELD_ABOVE_LOW, &out->typical_p)) != PERCH_OK ||
        (status = field_real(f, "repetition_penalty", 0, DBL_MAX, FIELD_ABOVE_LOW, &out->repetition_penalty)) !=
            PERCH_OK) {
        return status;
    }
    out->temperature = do_sample ? temperature : 0;
    return PERCH_OK;
}

/* One more EOS, unless it is there already. An id outside the vocabulary names no token and can never be generated. */
static perch_status add_eos(const fields *f, const jv *value, model_config *out) {
    if (value->type != JV_INTEGER) {
        return err_set(f->err, PERCH_E_FORMAT, "%s: eos_token_id: must be an integer or a list of integers", f->where);
    }
    int64_t id = value->as.integer;
    if (id < 0 || id >= out->vocab_size) {
        return PERCH_OK;
    }
    for (uint32_t i = 0; i < out->n_eos; i++) {
        if (out->eos[i] == id) {
            return PERCH_OK;
        }
    }
    if (out->n_eos == MODEL_MAX_EOS) {
        return err_set(f->err, PERCH_E_UNSUPPORTED, "%s: eos_token_id: more than %d different ids", f->where,
                       MODEL_MAX_EOS);
    }
    out->eos[out->n_eos++] = (int32_t)id;
    return PERCH_OK;
}

perch_status config_token_ids_read(const fields *f, model_config *out) {
    const jv *eos = jv_get(f->object, "eos_token_id");
    perch_status status = PERCH_OK;
    if (eos && eos->type == JV_ARRAY) {
        for (uint32_t i = 0; i < eos->n && status == PERCH_OK; i++) {
            status = add_eos(f, &eos->as.children[i], out);
        }
    } else if (eos && eos->type != JV_NULL) {
        status = add_eos(f, eos, out);
    }
    int32_t bos = -1;
    if (status == PERCH_OK) {
        status = field_i32(f, "bos_token_id", INT32_MIN, INT32_MAX, &bos);
    }
    if (status == PERCH_OK && out->bos < 0 && bos >= 0 && (uint32_t)bos < out->vocab_size) {
        out->bos = bos;
    }
    return status;
}
