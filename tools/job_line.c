/*
 * job_line: a line of JSON to a job, and a finished job to a line. Every member is checked; one that is unknown is an error
 * that names it, so that a misspelt parameter is never ignored.
 */
#include "job_line.h"

#include "json_out.h"
#include "tool.h"

#include <stdlib.h>
#include <string.h>

/* -------------------------------------------------------------- sessions -- */

void job_sessions_free(struct job_sessions *sessions) {
    for (size_t i = 0; i < sessions->n; i++) {
        free(sessions->items[i]);
    }
    free(sessions->items);
    json_decref(sessions->index);
    *sessions = (struct job_sessions){0};
}

static perch_status add_session(struct job_sessions *sessions, const char *name, struct job_session **out,
                                perch_error *err) {
    void *items = sessions->items;
    perch_status status = grow(&items, &sessions->cap, sessions->n + 1, sizeof(struct job_session *), err);
    sessions->items = items;
    if (status != PERCH_OK) {
        return status;
    }
    struct job_session *session = calloc(1, sizeof(*session));
    if (session == NULL || json_object_set_new(sessions->index, name, json_integer((json_int_t)sessions->n)) != 0) {
        free(session);
        return tool_nomem(err);
    }
    sessions->items[sessions->n++] = session;
    *out = session;
    return PERCH_OK;
}

/* "1" and 1 are different sessions: their JSON is the name. */
static perch_status find_session(struct job_sessions *sessions, const json_t *json, struct job_session **out,
                                 perch_error *err) {
    if (!json_is_string(json) && !json_is_integer(json)) {
        return tool_error(err, PERCH_E_INVALID, "session: must be a string or a whole number");
    }
    if (sessions->index == NULL && (sessions->index = json_object()) == NULL) {
        return tool_nomem(err);
    }
    char *name = json_dumps(json, JSON_ENCODE_ANY);
    if (name == NULL) {
        return tool_nomem(err);
    }
    perch_status status = PERCH_OK;
    const json_t *place = json_object_get(sessions->index, name);
    if (place != NULL) {
        *out = sessions->items[json_integer_value(place)];
    } else {
        status = add_session(sessions, name, out, err);
    }
    free(name);
    return status;
}

/* ------------------------------------------------------------------ read -- */

static perch_status read_tokens(struct job *job, const json_t *json, perch_error *err) {
    if (!json_is_array(json)) {
        return tool_error(err, PERCH_E_INVALID, "tokens: must be an array of token ids");
    }
    job->has_tokens = true;
    for (size_t i = 0; i < json_array_size(json); i++) {
        const json_t *item = json_array_get(json, i);
        json_int_t id = json_integer_value(item);
        if (!json_is_integer(item) || id < 0 || id > INT32_MAX) {
            return tool_error(err, PERCH_E_INVALID, "tokens: element %zu is not a token id", i);
        }
        int32_t token = (int32_t)id;
        perch_status status = tokens_add(&job->tokens, &token, 1, err);
        if (status != PERCH_OK) {
            return status;
        }
    }
    return PERCH_OK;
}

static bool is_plain_string(const json_t *json) {
    return json_is_string(json) && strlen(json_string_value(json)) == json_string_length(json);
}

static perch_status check_messages(const json_t *json, perch_error *err) {
    if (!json_is_array(json) || json_array_size(json) == 0) {
        return tool_error(err, PERCH_E_INVALID, "messages: must be an array of {\"role\", \"content\"}");
    }
    for (size_t i = 0; i < json_array_size(json); i++) {
        const json_t *item = json_array_get(json, i);
        if (!json_is_object(item) || json_object_size(item) != 2 || !is_plain_string(json_object_get(item, "role")) ||
            !is_plain_string(json_object_get(item, "content"))) {
            return tool_error(err, PERCH_E_INVALID,
                              "messages: element %zu is not {\"role\": \"...\", \"content\": \"...\"}", i);
        }
    }
    return PERCH_OK;
}

/* {"pin": true, "priority": 0, "expect_return_ms": 0, "ttl_ms": 0}, each of them optional. */
static perch_status read_hints(struct job *job, const json_t *json, perch_error *err) {
    const char *key;
    json_t *value;
    if (!json_is_object(json) || perch_hints_init(&job->hints, sizeof(job->hints)) != PERCH_OK) {
        return tool_error(err, PERCH_E_INVALID, "hints: must be an object");
    }
    job->has_hints = true;
    json_object_foreach((json_t *)json, key, value) {
        json_int_t n = json_integer_value(value);
        bool whole = json_is_integer(value), counts = whole && n >= 0;
        if (strcmp(key, "pin") == 0 && json_is_boolean(value)) {
            job->hints.pin = json_is_true(value) ? 1 : 0;
        } else if (strcmp(key, "priority") == 0 && whole && n >= INT32_MIN && n <= INT32_MAX) {
            job->hints.priority = (int32_t)n;
        } else if (strcmp(key, "expect_return_ms") == 0 && counts) {
            job->hints.expect_return_ms = (uint64_t)n;
        } else if (strcmp(key, "ttl_ms") == 0 && counts) {
            job->hints.ttl_ms = (uint64_t)n;
        } else {
            return tool_error(
                err, PERCH_E_INVALID,
                "hints: '%s' is none of pin (true or false), priority, expect_return_ms, ttl_ms, or not a "
                "whole number",
                key);
        }
    }
    return PERCH_OK;
}

static perch_status read_spec(struct job *job, const struct job_kind *kind, const char *key, const json_t *value,
                              perch_error *err) {
    int field = spec_find(key);
    bool allowed = kind->has_spec || strcmp(key, "special") == 0;
    if (field < 0 || !allowed || strcmp(spec_field((size_t)field)->name, key) != 0) {
        return tool_error(err, PERCH_E_INVALID, "unknown field '%s'", key);
    }
    perch_error reason = {.status = PERCH_OK};
    perch_status status = spec_set_json(&job->spec, field, value, &reason);
    return status == PERCH_OK ? PERCH_OK : tool_error(err, status, "%s: %s", key, reason.message);
}

static perch_status read_member(struct job *job, const struct job_kind *kind, struct job_sessions *sessions,
                                const char *key, const json_t *value, perch_error *err) {
    if (strcmp(key, "id") == 0) {
        return PERCH_OK;
    }
    if (strcmp(key, "tokens") == 0) {
        return read_tokens(job, value, err);
    }
    if (strcmp(key, kind->text_name) == 0) {
        job->text = value;
        return json_is_string(value) ? PERCH_OK
                                     : tool_error(err, PERCH_E_INVALID, "%s: must be a string", kind->text_name);
    }
    if (kind->has_messages && strcmp(key, "messages") == 0) {
        job->messages = value;
        return check_messages(value, err);
    }
    if (kind->has_messages && strcmp(key, "format") == 0) {
        job->format = json_string_value(value);
        return is_plain_string(value) ? PERCH_OK : tool_error(err, PERCH_E_INVALID, "format: must be a string");
    }
    if (kind->has_sessions && strcmp(key, "session") == 0) {
        return find_session(sessions, value, &job->session, err);
    }
    if (kind->has_sessions && strcmp(key, "hints") == 0) {
        return read_hints(job, value, err);
    }
    return read_spec(job, kind, key, value, err);
}

perch_status job_read(struct job *job, const struct job_kind *kind, struct job_sessions *sessions, const char *line,
                      size_t n_bytes, perch_error *err) {
    json_error_t where;
    job->input = json_loadb(line, n_bytes, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &where);
    if (job->input == NULL) {
        return tool_error(err, PERCH_E_FORMAT, "not JSON: %s (column %d)", where.text, where.column);
    }
    if (!json_is_object(job->input)) {
        return tool_error(err, PERCH_E_FORMAT, "not a JSON object");
    }
    const char *key;
    json_t *value;
    json_object_foreach(job->input, key, value) {
        perch_status status = read_member(job, kind, sessions, key, value, err);
        if (status != PERCH_OK) {
            return status;
        }
    }
    int n_prompts = (job->text != NULL) + (job->messages != NULL) + job->has_tokens;
    if (n_prompts != 1) {
        return tool_error(err, PERCH_E_INVALID, "exactly one of %s, tokens%s is needed", kind->text_name,
                          kind->has_messages ? ", messages" : "");
    }
    if (job->format != NULL && job->messages == NULL) {
        return tool_error(err, PERCH_E_INVALID, "format: does nothing without messages");
    }
    return PERCH_OK;
}

perch_status job_render(const struct job *job, const char *format, const perch_tokenizer *tokenizer, bool first_turn,
                        struct text *chat, perch_error *err) {
    size_t n = json_array_size(job->messages);
    perch_chat_message *messages = calloc(n, sizeof(*messages));
    if (messages == NULL) {
        return tool_nomem(err);
    }
    for (size_t i = 0; i < n; i++) {
        const json_t *item = json_array_get(job->messages, i);
        messages[i].role = json_string_value(json_object_get(item, "role"));
        messages[i].content = json_string_value(json_object_get(item, "content"));
    }
    perch_status status =
        text_chat(chat, tokenizer, job->format != NULL ? job->format : format, messages, n, first_turn ? 1 : 0, err);
    free(messages);
    return status;
}

/* ----------------------------------------------------------------- write -- */

json_t *job_line(const struct job *job, const struct job_kind *kind) {
    json_t *line = json_object();
    json_t *id = job->input != NULL ? json_object_get(job->input, "id") : NULL;
    bool failed = line == NULL;
    if (!failed && id != NULL) {
        failed = json_object_set(line, "id", id) != 0;
    }
    if (!failed && job->error.status != PERCH_OK) {
        json_t *error =
            json_pack("{s:I, s:s, s:o}", "line", (json_int_t)job->line, "status", perch_status_name(job->error.status),
                      "message", json_text(job->error.message, strlen(job->error.message)));
        failed = json_object_set_new(line, "error", error) != 0;
    } else if (!failed) {
        failed = kind->result(job, line) != PERCH_OK;
    }
    if (failed) {
        json_decref(line);
        return NULL;
    }
    return line;
}
