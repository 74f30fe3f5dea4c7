/*
 * demo_data: JSON lines to conversations.
 */
#include "demo_data.h"

#include "text.h"
#include "tool.h"

#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

void demo_data_free(struct demo_data *data) {
    for (size_t i = 0; i < data->n; i++) {
        free(data->conversations[i].turns);
    }
    free(data->conversations);
    json_decref(data->lines);
    *data = (struct demo_data){0};
}

static bool is_word_byte(char c) { return isalnum((unsigned char)c) || (unsigned char)c >= 0x80; }

static bool has_word(const char *text, const char *word) {
    size_t length = strlen(word);
    for (const char *at = strstr(text, word); at != NULL; at = strstr(at + 1, word)) {
        if ((at == text || !is_word_byte(at[-1])) && !is_word_byte(at[length])) {
            return true;
        }
    }
    return false;
}

/* Finds out when the user said last what the turn asks for. */
static void find_told(struct demo_turn *turns, size_t asked) {
    for (size_t i = asked; turns[asked].check != NULL && !turns[asked].was_told && i > 0; i--) {
        turns[asked].was_told = has_word(turns[i - 1].user, turns[asked].check);
        turns[asked].told = i - 1;
    }
}

static perch_status read_turn(struct demo_turn *turn, json_t *json, perch_error *err) {
    json_t *check = json_object_get(json, "check");
    turn->user = json_string_value(json_object_get(json, "user"));
    turn->assistant = json_string_value(json_object_get(json, "assistant"));
    turn->check = json_string_value(check);
    if (turn->user == NULL || turn->assistant == NULL) {
        return tool_error(err, PERCH_E_FORMAT, "\"user\" and \"assistant\" must be strings");
    }
    if (!json_is_null(check) && (turn->check == NULL || turn->check[0] == '\0')) {
        return tool_error(err, PERCH_E_FORMAT, "\"check\" must be null or a string that is not empty");
    }
    if (turn->check != NULL && strstr(turn->assistant, turn->check) == NULL) {
        return tool_error(err, PERCH_E_FORMAT, "\"%s\" is not in the answer \"%s\"", turn->check, turn->assistant);
    }
    return PERCH_OK;
}

static perch_status read_conversation(struct demo_conversation *conversation, json_t *json, perch_error *err) {
    json_t *turns = json_object_get(json, "turns");
    conversation->name = json_string_value(json_object_get(json, "name"));
    if (conversation->name == NULL) {
        return tool_error(err, PERCH_E_FORMAT, "\"name\" must be a string");
    }
    if (!json_is_array(turns) || json_array_size(turns) == 0) {
        return tool_error(err, PERCH_E_FORMAT, "\"turns\" must be an array that is not empty");
    }
    conversation->turns = calloc(json_array_size(turns), sizeof(*conversation->turns));
    if (conversation->turns == NULL) {
        return tool_nomem(err);
    }
    conversation->n_turns = json_array_size(turns);
    for (size_t i = 0; i < conversation->n_turns; i++) {
        perch_error reason = {.status = PERCH_OK};
        perch_status status = read_turn(&conversation->turns[i], json_array_get(turns, i), &reason);
        if (status != PERCH_OK) {
            return tool_error(err, status, "turn %zu: %s", i + 1, reason.message);
        }
        find_told(conversation->turns, i);
    }
    return PERCH_OK;
}

static perch_status add_line(struct demo_data *data, const char *line, size_t n_bytes, perch_error *err) {
    json_error_t error;
    json_t *json = json_loadb(line, n_bytes, 0, &error);
    if (json == NULL) {
        return tool_error(err, PERCH_E_FORMAT, "%s", error.text);
    }
    void *conversations = data->conversations;
    perch_status status = grow(&conversations, &data->cap, data->n + 1, sizeof(*data->conversations), err);
    data->conversations = conversations;
    if (json_array_append_new(data->lines, json) != 0 && status == PERCH_OK) {
        status = tool_nomem(err);
    }
    if (status != PERCH_OK) {
        return status;
    }
    struct demo_conversation *conversation = &data->conversations[data->n++];
    *conversation = (struct demo_conversation){0};
    return read_conversation(conversation, json, err);
}

static perch_status add_lines(struct demo_data *data, const struct text *text, const char *file, perch_error *err) {
    const char *at = text->data;
    const char *end = text->data + text->n_bytes;
    for (size_t number = 1; at < end; number++) {
        const char *newline = memchr(at, '\n', (size_t)(end - at));
        size_t n_bytes = (size_t)((newline != NULL ? newline : end) - at);
        perch_error reason = {.status = PERCH_OK};
        perch_status status = n_bytes > 0 ? add_line(data, at, n_bytes, &reason) : PERCH_OK;
        if (status != PERCH_OK) {
            return tool_error(err, status, "%s:%zu: %s", file, number, reason.message);
        }
        at += n_bytes + 1;
    }
    return data->n > 0 ? PERCH_OK : tool_error(err, PERCH_E_FORMAT, "%s: no conversations", file);
}

perch_status demo_data_load(struct demo_data *data, const char *file, perch_error *err) {
    struct text text = {0};
    *data = (struct demo_data){.lines = json_array()};
    if (data->lines == NULL) {
        return tool_nomem(err);
    }
    FILE *stream = fopen(file, "rb");
    if (stream == NULL) {
        return tool_error(err, PERCH_E_IO, "cannot open %s: %s", file, strerror(errno));
    }
    perch_status status = text_read(&text, stream, file, err);
    if (status == PERCH_OK) {
        status = add_lines(data, &text, file, err);
    }
    fclose(stream);
    text_free(&text);
    return status;
}
