/*
 * sampling_check: which sampling parameters are fit to run, and the copy that a request keeps. Refusing here, by name,
 * is what lets the sampler itself trust every field.
 */
#include "engine/sampler.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static perch_status refuse(perch_error *err, const char *name, double value, const char *range) {
    return err_set(err, PERCH_E_INVALID, "%s: %g is out of range: %s", name, value, range);
}

static perch_status check_scalars(const perch_sampling *p, perch_error *err) {
    /* Each condition is the negation of what is allowed, so that NaN fails it. */
    if (!(p->temperature >= 0) || isinf(p->temperature)) {
        return refuse(err, "temperature", p->temperature, "0 <= temperature, finite");
    }
    if (!(p->top_p > 0 && p->top_p <= 1)) {
        return refuse(err, "top_p", p->top_p, "0 < top_p <= 1");
    }
    if (!(p->min_p >= 0 && p->min_p < 1)) {
        return refuse(err, "min_p", p->min_p, "0 <= min_p < 1");
    }
    if (!(p->typical_p > 0 && p->typical_p <= 1)) {
        return refuse(err, "typical_p", p->typical_p, "0 < typical_p <= 1");
    }
    if (!(p->repetition_penalty > 0) || isinf(p->repetition_penalty)) {
        return refuse(err, "repetition_penalty", p->repetition_penalty, "0 < repetition_penalty, finite");
    }
    if (!(p->frequency_penalty >= -2 && p->frequency_penalty <= 2)) {
        return refuse(err, "frequency_penalty", p->frequency_penalty, "-2..2");
    }
    if (!(p->presence_penalty >= -2 && p->presence_penalty <= 2)) {
        return refuse(err, "presence_penalty", p->presence_penalty, "-2..2");
    }
    if (p->top_k < 0) {
        return err_set(err, PERCH_E_INVALID, "top_k: %d is out of range: 0 (off) or more", p->top_k);
    }
    if (p->n_logprobs > SAMPLER_MAX_LOGPROBS) {
        return err_set(err, PERCH_E_INVALID, "n_logprobs: %u is out of range: 0..%u", p->n_logprobs,
                       SAMPLER_MAX_LOGPROBS);
    }
    return PERCH_OK;
}

static perch_status check_lists(const perch_sampling *p, uint32_t vocab_size, perch_error *err) {
    if (p->n_logit_bias > 0 && !p->logit_bias) {
        return err_set(err, PERCH_E_INVALID, "logit_bias: NULL, but n_logit_bias is %zu", p->n_logit_bias);
    }
    if (p->n_logit_bias > vocab_size || p->n_banned_tokens > vocab_size) {
        return err_set(err, PERCH_E_INVALID, "%s: more entries than the %u tokens of the vocabulary",
                       p->n_logit_bias > vocab_size ? "n_logit_bias" : "n_banned_tokens", vocab_size);
    }
    for (size_t i = 0; i < p->n_logit_bias; i++) {
        perch_logit_bias entry = p->logit_bias[i];
        if (entry.token < 0 || (uint32_t)entry.token >= vocab_size) {
            return err_set(err, PERCH_E_INVALID, "logit_bias[%zu].token: %d is out of range: 0..%u", i, entry.token,
                           vocab_size - 1);
        }
        if (!(entry.bias >= -100 && entry.bias <= 100)) {
            return err_set(err, PERCH_E_INVALID, "logit_bias[%zu].bias: %g is out of range: -100..100", i,
                           (double)entry.bias);
        }
    }
    if (p->n_banned_tokens > 0 && !p->banned_tokens) {
        return err_set(err, PERCH_E_INVALID, "banned_tokens: NULL, but n_banned_tokens is %zu", p->n_banned_tokens);
    }
    for (size_t i = 0; i < p->n_banned_tokens; i++) {
        if (p->banned_tokens[i] < 0 || (uint32_t)p->banned_tokens[i] >= vocab_size) {
            return err_set(err, PERCH_E_INVALID, "banned_tokens[%zu]: %d is out of range: 0..%u", i,
                           p->banned_tokens[i], vocab_size - 1);
        }
    }
    return PERCH_OK;
}

perch_status sampling_check(const perch_sampling *sampling, uint32_t vocab_size, perch_error *err) {
    if (sampling->struct_size != sizeof *sampling) {
        return err_set(err, PERCH_E_INVALID, "sampling.struct_size: %zu is not %zu; fill it in by perch_request_init",
                       sampling->struct_size, sizeof *sampling);
    }
    perch_status status = check_scalars(sampling, err);
    return status ? status : check_lists(sampling, vocab_size, err);
}

perch_sampling *sampling_copy(const perch_sampling *sampling) {
    size_t bias_bytes, ban_bytes, bytes;
    if (!mul_size(sampling->n_logit_bias, sizeof *sampling->logit_bias, &bias_bytes) ||
        !mul_size(sampling->n_banned_tokens, sizeof *sampling->banned_tokens, &ban_bytes) ||
        !add_size(sizeof *sampling, bias_bytes, &bytes) || !add_size(bytes, ban_bytes, &bytes)) {
        return NULL;
    }
    perch_sampling *copy = malloc(bytes);
    if (!copy) {
        return NULL;
    }
    *copy = *sampling;
    char *behind = (char *)(copy + 1);
    copy->logit_bias = NULL;
    copy->banned_tokens = NULL;
    if (bias_bytes > 0) {
        copy->logit_bias = memcpy(behind, sampling->logit_bias, bias_bytes);
    }
    if (ban_bytes > 0) {
        copy->banned_tokens = memcpy(behind + bias_bytes, sampling->banned_tokens, ban_bytes);
    }
    return copy;
}
