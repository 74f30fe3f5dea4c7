/*
 * request_spec: what a user may say about a request, as a flag (--top-k 40) or as a member of a JSON object ("top_k": 40).
 * One table serves both.
 */
#ifndef PERCH_TOOLS_REQUEST_SPEC_H
#define PERCH_TOOLS_REQUEST_SPEC_H

#include "text.h"

#include "perch/perch.h"

#include <jansson.h>
#include <stdbool.h>

#define SPEC_UNSET INT64_MIN

/* Numbers are NaN or SPEC_UNSET where nothing was said: then the engine's default holds. */
struct request_spec {
    int64_t max_tokens, min_tokens, n, logprobs, priority, timeout_ms, top_k;
    double temperature, top_p, min_p, typical_p, repetition_penalty, frequency_penalty, presence_penalty;
    bool has_seed;
    uint64_t seed;
    bool ignore_eos;
    bool special;      /* special tokens written out in the prompt become their ids */
    const char **stop; /* [n_stop], the array is owned, the strings are borrowed */
    size_t n_stop, stop_cap;
    struct tokens stop_tokens;
    struct tokens banned_tokens;
    perch_logit_bias *logit_bias; /* [n_logit_bias], owned */
    size_t n_logit_bias, logit_bias_cap;
};

struct spec_field {
    const char *name; /* in JSON; the flag has '-' for '_' */
    const char *arg;  /* NULL = a switch */
    const char *help;
};

void spec_init(struct request_spec *spec);
void spec_free(struct request_spec *spec);

/* The index-th field, or NULL. */
const struct spec_field *spec_field(size_t index);

/* The index of a field by its name as a flag ("top-k") or in JSON ("top_k"), or -1. */
int spec_find(const char *name);

/* text is NULL for a switch. The message does not name the field. What text and json point to must outlive spec. */
perch_status spec_set_text(struct request_spec *spec, int field, const char *text, perch_error *err);
perch_status spec_set_json(struct request_spec *spec, int field, const json_t *json, perch_error *err);

/* Writes what was said over a request; its arrays point into spec. */
void spec_apply(const struct request_spec *spec, perch_request *request);

/*
 * The max_tokens of a request that appends n_tokens to a sequence of n_before: what was said, else 256 or what
 * session_len leaves.
 */
uint32_t spec_max_tokens(const struct request_spec *spec, uint32_t session_len, uint64_t n_before, uint64_t n_tokens);

/*
 * E_TOO_LONG where session_len has no room for n_tokens behind n_before and, unless max_tokens is 0, for one more; what
 * ("prompt") names the tokens in the message. What max_tokens asks for beyond is perch_submit's to refuse.
 */
perch_status spec_check_length(const char *what, uint32_t session_len, uint64_t n_before, uint64_t n_tokens,
                               uint32_t max_tokens, perch_error *err);

#endif
