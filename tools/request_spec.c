/*
 * request_spec: the parameters of a request from flags and from JSON, by one table.
 */
#include "request_spec.h"

#include "tool.h"

#include <errno.h>
#include <math.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#define DEFAULT_MAX_TOKENS 256

enum spec_kind { SPEC_WHOLE, SPEC_SEED, SPEC_REAL, SPEC_SWITCH, SPEC_STRINGS, SPEC_TOKENS, SPEC_BIASES };

struct row {
    struct spec_field info;
    enum spec_kind kind;
    size_t offset;
    int64_t min, max;
};

#define SAYS(json_name, argument, help_text) .info.name = json_name, .info.arg = argument, .info.help = help_text
#define FIELD(value, name) .kind = value, .offset = offsetof(struct request_spec, name)
#define RANGE(from, to) .min = from, .max = to

static const struct row rows[] = {
    {SAYS("max_tokens", "N", "tokens generated at most; default 256, or what session_len leaves"),
     FIELD(SPEC_WHOLE, max_tokens), RANGE(0, UINT32_MAX)},
    {SAYS("min_tokens", "N", "nothing ends the answer before N tokens"), FIELD(SPEC_WHOLE, min_tokens),
     RANGE(0, UINT32_MAX)},
    {SAYS("temperature", "T", "0 = greedy"), FIELD(SPEC_REAL, temperature)},
    {SAYS("top_k", "K", "sample among the K likeliest tokens; 0 = all"), FIELD(SPEC_WHOLE, top_k), RANGE(0, INT32_MAX)},
    {SAYS("top_p", "P", "sample among the likeliest tokens that make up P; 1 = all"), FIELD(SPEC_REAL, top_p)},
    {SAYS("min_p", "P", "drop tokens less likely than P times the likeliest"), FIELD(SPEC_REAL, min_p)},
    {SAYS("typical_p", "P", "locally typical sampling; 1 = off"), FIELD(SPEC_REAL, typical_p)},
    {SAYS("repetition_penalty", "X", "divides the logits of all tokens so far; 1 = off"),
     FIELD(SPEC_REAL, repetition_penalty)},
    {SAYS("frequency_penalty", "X", "-2..2 for each time that a token was generated"),
     FIELD(SPEC_REAL, frequency_penalty)},
    {SAYS("presence_penalty", "X", "-2..2 for a token that was generated"), FIELD(SPEC_REAL, presence_penalty)},
    {SAYS("logit_bias", "ID=X", "added to a token's logit, -100..100 (ID=X,ID=X,...; may be repeated)"),
     FIELD(SPEC_BIASES, logit_bias)},
    {SAYS("banned_tokens", "IDS", "never generated (ID,ID,...)"), FIELD(SPEC_TOKENS, banned_tokens)},
    {SAYS("stop", "TEXT", "ends the answer and is not part of it (may be repeated)"), FIELD(SPEC_STRINGS, stop)},
    {SAYS("stop_tokens", "IDS", "end the answer (ID,ID,...)"), FIELD(SPEC_TOKENS, stop_tokens)},
    {SAYS("ignore_eos", NULL, "the end-of-sequence token is one like any other"), FIELD(SPEC_SWITCH, ignore_eos)},
    {SAYS("seed", "S", "of the random numbers, 0..2^64-1; default 0"), FIELD(SPEC_SEED, seed)},
    {SAYS("n", "N", "completions of the prompt, 1..256"), FIELD(SPEC_WHOLE, n), RANGE(1, 256)},
    {SAYS("logprobs", "N", "log-probabilities of the tokens, and of the N likeliest at each place (0..20)"),
     FIELD(SPEC_WHOLE, logprobs), RANGE(0, 20)},
    {SAYS("priority", "P", "-8..7, higher goes first"), FIELD(SPEC_WHOLE, priority), RANGE(-8, 7)},
    {SAYS("timeout_ms", "MS", "ends with what it has after this long; 0 = never"), FIELD(SPEC_WHOLE, timeout_ms),
     RANGE(0, UINT32_MAX)},
    {SAYS("special", NULL, "special tokens written out in the prompt become their ids"), FIELD(SPEC_SWITCH, special)},
};
enum { N_ROWS = sizeof(rows) / sizeof(rows[0]) };

void spec_init(struct request_spec *spec) {
    *spec = (struct request_spec){0};
    for (size_t i = 0; i < N_ROWS; i++) {
        void *field = (char *)spec + rows[i].offset;
        if (rows[i].kind == SPEC_WHOLE) {
            *(int64_t *)field = SPEC_UNSET;
        } else if (rows[i].kind == SPEC_REAL) {
            *(double *)field = (double)NAN;
        }
    }
}

void spec_free(struct request_spec *spec) {
    free(spec->stop);
    free(spec->logit_bias);
    tokens_free(&spec->stop_tokens);
    tokens_free(&spec->banned_tokens);
    *spec = (struct request_spec){0};
}

const struct spec_field *spec_field(size_t index) { return index < N_ROWS ? &rows[index].info : NULL; }

int spec_find(const char *name) {
    for (int i = 0; i < N_ROWS; i++) {
        const char *a = rows[i].info.name;
        const char *b = name;
        while (*a != '\0' && (*a == *b || (*a == '_' && *b == '-'))) {
            a++;
            b++;
        }
        if (*a == '\0' && *b == '\0') {
            return i;
        }
    }
    return -1;
}

static perch_status add_string(struct request_spec *spec, const char *text, perch_error *err) {
    void *stop = spec->stop;
    perch_status status = grow(&stop, &spec->stop_cap, spec->n_stop + 1, sizeof(*spec->stop), err);
    spec->stop = stop;
    if (status == PERCH_OK) {
        spec->stop[spec->n_stop++] = text;
    }
    return status;
}

static perch_status add_bias(struct request_spec *spec, int32_t token, double bias, perch_error *err) {
    void *biases = spec->logit_bias;
    perch_status status = grow(&biases, &spec->logit_bias_cap, spec->n_logit_bias + 1, sizeof(*spec->logit_bias), err);
    spec->logit_bias = biases;
    if (status == PERCH_OK) {
        spec->logit_bias[spec->n_logit_bias++] = (perch_logit_bias){token, (float)bias};
    }
    return status;
}

static perch_status check_range(const struct row *row, int64_t value, perch_error *err) {
    if (value < row->min || value > row->max) {
        return tool_error(err, PERCH_E_INVALID, "%lld is out of range (%lld..%lld)", (long long)value,
                          (long long)row->min, (long long)row->max);
    }
    return PERCH_OK;
}

/* ------------------------------------------------------------------ text -- */

static perch_status parse_whole(const char *text, const char **end, int64_t *out, perch_error *err) {
    char *stop = NULL;
    errno = 0;
    long long value = strtoll(text, &stop, 10);
    if (stop == text || errno != 0) {
        return tool_error(err, PERCH_E_INVALID, "'%s' is not a whole number", text);
    }
    *end = stop;
    *out = value;
    return PERCH_OK;
}

/* All of the text, 0..2^64-1. */
static perch_status parse_seed(struct request_spec *spec, const char *text, perch_error *err) {
    char *stop = NULL;
    errno = 0;
    unsigned long long value = strtoull(text, &stop, 10);
    if (text[0] < '0' || text[0] > '9' || *stop != '\0' || errno != 0) {
        return tool_error(err, PERCH_E_INVALID, "'%s' is not a whole number of 0..18446744073709551615", text);
    }
    spec->seed = value;
    spec->has_seed = true;
    return PERCH_OK;
}

static perch_status parse_real(const char *text, const char **end, double *out, perch_error *err) {
    char *stop = NULL;
    double value = strtod(text, &stop);
    if (stop == text || !isfinite(value)) {
        return tool_error(err, PERCH_E_INVALID, "'%s' is not a number", text);
    }
    *end = stop;
    *out = value;
    return PERCH_OK;
}

/* "5,7,9" or, with biases, "5=-1.5,7=2". */
static perch_status parse_items(struct request_spec *spec, const struct row *row, const char *text, perch_error *err) {
    const char *at = text;
    for (;;) {
        int64_t id = 0;
        double bias = 0.0;
        perch_status status = parse_whole(at, &at, &id, err);
        if (status == PERCH_OK && (id < 0 || id > INT32_MAX)) {
            status = tool_error(err, PERCH_E_INVALID, "%lld is not a token", (long long)id);
        }
        int32_t token = (int32_t)id;
        if (status == PERCH_OK && row->kind == SPEC_BIASES) {
            if (*at != '=') {
                return tool_error(err, PERCH_E_INVALID, "'%s' is not of the form ID=X", text);
            }
            status = parse_real(at + 1, &at, &bias, err);
            status = status != PERCH_OK ? status : add_bias(spec, token, bias, err);
        } else if (status == PERCH_OK) {
            status = tokens_add((struct tokens *)((char *)spec + row->offset), &token, 1, err);
        }
        if (status != PERCH_OK || *at == '\0') {
            return status;
        }
        if (*at != ',') {
            return tool_error(err, PERCH_E_INVALID, "'%s' is not a list with commas", text);
        }
        at++;
    }
}

perch_status spec_set_text(struct request_spec *spec, int field, const char *text, perch_error *err) {
    const struct row *row = &rows[field];
    void *to = (char *)spec + row->offset;
    const char *end = "";
    int64_t whole = 0;
    perch_status status = PERCH_OK;
    switch (row->kind) {
    case SPEC_WHOLE:
        status = parse_whole(text, &end, &whole, err);
        status = status != PERCH_OK ? status : check_range(row, whole, err);
        if (status == PERCH_OK) {
            *(int64_t *)to = whole;
        }
        break;
    case SPEC_SEED:
        status = parse_seed(spec, text, err);
        break;
    case SPEC_REAL:
        status = parse_real(text, &end, to, err);
        break;
    case SPEC_SWITCH:
        *(bool *)to = true;
        break;
    case SPEC_STRINGS:
        status = add_string(spec, text, err);
        break;
    default:
        status = parse_items(spec, row, text, err);
        break;
    }
    if (status == PERCH_OK && *end != '\0') {
        status = tool_error(err, PERCH_E_INVALID, "'%s' is not a number", text);
    }
    return status;
}

/* ------------------------------------------------------------------ JSON -- */

static perch_status json_token(const json_t *json, int32_t *out, perch_error *err) {
    json_int_t id = json_integer_value(json);
    if (!json_is_integer(json) || id < 0 || id > INT32_MAX) {
        return tool_error(err, PERCH_E_INVALID, "must be an array of token ids");
    }
    *out = (int32_t)id;
    return PERCH_OK;
}

static perch_status set_strings(struct request_spec *spec, const json_t *json, perch_error *err) {
    size_t n = json_is_array(json) ? json_array_size(json) : 1;
    for (size_t i = 0; i < n; i++) {
        const json_t *item = json_is_array(json) ? json_array_get(json, i) : json;
        if (!json_is_string(item) || strlen(json_string_value(item)) != json_string_length(item)) {
            return tool_error(err, PERCH_E_INVALID, "must be a string or an array of strings, without NUL");
        }
        perch_status status = add_string(spec, json_string_value(item), err);
        if (status != PERCH_OK) {
            return status;
        }
    }
    return PERCH_OK;
}

static perch_status set_tokens(struct tokens *to, const json_t *json, perch_error *err) {
    if (!json_is_array(json)) {
        return tool_error(err, PERCH_E_INVALID, "must be an array of token ids");
    }
    for (size_t i = 0; i < json_array_size(json); i++) {
        int32_t token = 0;
        perch_status status = json_token(json_array_get(json, i), &token, err);
        status = status != PERCH_OK ? status : tokens_add(to, &token, 1, err);
        if (status != PERCH_OK) {
            return status;
        }
    }
    return PERCH_OK;
}

static perch_status set_biases(struct request_spec *spec, const json_t *json, perch_error *err) {
    if (!json_is_object(json)) {
        return tool_error(err, PERCH_E_INVALID, "must be an object of the form {\"ID\": bias}");
    }
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)json, key, value) {
        const char *end = "";
        int64_t id = 0;
        perch_status status = parse_whole(key, &end, &id, err);
        if (status == PERCH_OK && (*end != '\0' || id < 0 || id > INT32_MAX)) {
            status = tool_error(err, PERCH_E_INVALID, "'%s' is not a token", key);
        }
        if (status == PERCH_OK && !json_is_number(value)) {
            status = tool_error(err, PERCH_E_INVALID, "the bias of %s must be a number", key);
        }
        status = status != PERCH_OK ? status : add_bias(spec, (int32_t)id, json_number_value(value), err);
        if (status != PERCH_OK) {
            return status;
        }
    }
    return PERCH_OK;
}

/* JSON's whole numbers end at 2^63-1 here; a seed beyond comes as a string. */
static perch_status set_seed(struct request_spec *spec, const json_t *json, perch_error *err) {
    if (json_is_string(json) && strlen(json_string_value(json)) == json_string_length(json)) {
        return parse_seed(spec, json_string_value(json), err);
    }
    if (!json_is_integer(json) || json_integer_value(json) < 0) {
        return tool_error(err, PERCH_E_INVALID, "must be a whole number from 0 on, or one as a string");
    }
    spec->seed = (uint64_t)json_integer_value(json);
    spec->has_seed = true;
    return PERCH_OK;
}

perch_status spec_set_json(struct request_spec *spec, int field, const json_t *json, perch_error *err) {
    const struct row *row = &rows[field];
    void *to = (char *)spec + row->offset;
    switch (row->kind) {
    case SPEC_WHOLE:
        if (!json_is_integer(json)) {
            return tool_error(err, PERCH_E_INVALID, "must be a whole number");
        }
        *(int64_t *)to = json_integer_value(json);
        return check_range(row, json_integer_value(json), err);
    case SPEC_SEED:
        return set_seed(spec, json, err);
    case SPEC_REAL:
        if (!json_is_number(json)) {
            return tool_error(err, PERCH_E_INVALID, "must be a number");
        }
        *(double *)to = json_number_value(json);
        return PERCH_OK;
    case SPEC_SWITCH:
        if (!json_is_boolean(json)) {
            return tool_error(err, PERCH_E_INVALID, "must be true or false");
        }
        *(bool *)to = json_is_true(json);
        return PERCH_OK;
    case SPEC_STRINGS:
        return set_strings(spec, json, err);
    case SPEC_TOKENS:
        return set_tokens(to, json, err);
    case SPEC_BIASES:
        return set_biases(spec, json, err);
    }
    return PERCH_OK;
}

/* ----------------------------------------------------------------- apply -- */

static void apply_real(double value, double *to) {
    if (!isnan(value)) {
        *to = value;
    }
}

void spec_apply(const struct request_spec *spec, perch_request *request) {
    perch_sampling *sampling = &request->sampling;
    apply_real(spec->temperature, &sampling->temperature);
    apply_real(spec->top_p, &sampling->top_p);
    apply_real(spec->min_p, &sampling->min_p);
    apply_real(spec->typical_p, &sampling->typical_p);
    apply_real(spec->repetition_penalty, &sampling->repetition_penalty);
    apply_real(spec->frequency_penalty, &sampling->frequency_penalty);
    apply_real(spec->presence_penalty, &sampling->presence_penalty);
    sampling->top_k = spec->top_k != SPEC_UNSET ? (int32_t)spec->top_k : sampling->top_k;
    sampling->seed = spec->has_seed ? spec->seed : sampling->seed;
    sampling->logit_bias = spec->logit_bias;
    sampling->n_logit_bias = spec->n_logit_bias;
    sampling->banned_tokens = spec->banned_tokens.ids;
    sampling->n_banned_tokens = spec->banned_tokens.n;
    if (spec->logprobs != SPEC_UNSET) {
        sampling->n_logprobs = (uint32_t)spec->logprobs;
        request->flags |= PERCH_REQUEST_LOGPROBS;
    }
    request->flags |= spec->ignore_eos ? PERCH_REQUEST_IGNORE_EOS : 0u;
    request->min_tokens = spec->min_tokens != SPEC_UNSET ? (uint32_t)spec->min_tokens : request->min_tokens;
    request->n_completions = spec->n != SPEC_UNSET ? (uint32_t)spec->n : request->n_completions;
    request->priority = spec->priority != SPEC_UNSET ? (int32_t)spec->priority : request->priority;
    request->timeout_ms = spec->timeout_ms != SPEC_UNSET ? (uint32_t)spec->timeout_ms : request->timeout_ms;
    request->stop_tokens = spec->stop_tokens.ids;
    request->n_stop_tokens = spec->stop_tokens.n;
    request->stop_strings = spec->stop;
    request->n_stop_strings = spec->n_stop;
}

uint32_t spec_max_tokens(const struct request_spec *spec, uint32_t session_len, uint64_t n_before, uint64_t n_tokens) {
    if (spec->max_tokens != SPEC_UNSET) {
        return (uint32_t)spec->max_tokens;
    }
    uint64_t used = n_before + n_tokens;
    uint64_t left = used < session_len ? session_len - used : 0;
    /* At least 1, so that a prompt too long is refused instead of answered with nothing. */
    return left > DEFAULT_MAX_TOKENS ? DEFAULT_MAX_TOKENS : left == 0 ? 1 : (uint32_t)left;
}

perch_status spec_check_length(const char *what, uint32_t session_len, uint64_t n_before, uint64_t n_tokens,
                               uint32_t max_tokens, perch_error *err) {
    uint64_t used = n_before + n_tokens;
    if (used < session_len || (used == session_len && max_tokens == 0)) {
        return PERCH_OK;
    }
    if (n_before > 0) {
        return tool_error(err, PERCH_E_TOO_LONG, "the session is full: %llu tokens and the %s's %llu, session_len = %u",
                          (unsigned long long)n_before, what, (unsigned long long)n_tokens, session_len);
    }
    return tool_error(err, PERCH_E_TOO_LONG, "the %s's %llu tokens %s session_len = %u", what,
                      (unsigned long long)n_tokens, used == session_len ? "leave no room to generate in" : "exceed",
                      session_len);
}
