/*
 * text: growing buffers of bytes and tokens, and the way from one to the other.
 */
#include "text.h"

#include "tool.h"

#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

perch_status grow(void **array, size_t *cap, size_t need, size_t element_bytes, perch_error *err) {
    if (need <= *cap) {
        return PERCH_OK;
    }
    size_t new_cap = *cap < 16 ? 16 : *cap;
    while (new_cap < need) {
        if (new_cap > SIZE_MAX / 2 / element_bytes) {
            return tool_nomem(err);
        }
        new_cap *= 2;
    }
    void *new_array = realloc(*array, new_cap * element_bytes);
    if (new_array == NULL) {
        return tool_nomem(err);
    }
    *array = new_array;
    *cap = new_cap;
    return PERCH_OK;
}

static perch_status text_reserve(struct text *text, size_t n_more, perch_error *err) {
    if (n_more >= SIZE_MAX - text->n_bytes) {
        return tool_nomem(err);
    }
    void *data = text->data;
    perch_status status = grow(&data, &text->cap, text->n_bytes + n_more + 1, 1, err);
    text->data = data;
    return status;
}

perch_status text_add(struct text *text, const char *data, size_t n_bytes, perch_error *err) {
    perch_status status = text_reserve(text, n_bytes, err);
    if (status != PERCH_OK) {
        return status;
    }
    if (n_bytes > 0) {
        memcpy(text->data + text->n_bytes, data, n_bytes);
    }
    text->n_bytes += n_bytes;
    text->data[text->n_bytes] = '\0';
    return PERCH_OK;
}

perch_status text_addf(struct text *text, perch_error *err, const char *format, ...) {
    va_list args;
    va_list again;
    va_start(args, format);
    va_copy(again, args);
    int n_bytes = vsnprintf(NULL, 0, format, args);
    va_end(args);
    perch_status status = n_bytes >= 0 ? text_reserve(text, (size_t)n_bytes, err) : tool_nomem(err);
    if (status == PERCH_OK) {
        vsnprintf(text->data + text->n_bytes, (size_t)n_bytes + 1, format, again);
        text->n_bytes += (size_t)n_bytes;
    }
    va_end(again);
    return status;
}

void text_free(struct text *text) {
    free(text->data);
    *text = (struct text){0};
}

static perch_status tokens_reserve(struct tokens *tokens, size_t n_more, perch_error *err) {
    if (n_more > SIZE_MAX - tokens->n) {
        return tool_nomem(err);
    }
    void *ids = tokens->ids;
    perch_status status = grow(&ids, &tokens->cap, tokens->n + n_more, sizeof(*tokens->ids), err);
    tokens->ids = ids;
    return status;
}

perch_status tokens_add(struct tokens *tokens, const int32_t *ids, size_t n, perch_error *err) {
    if (n == 0) {
        return PERCH_OK;
    }
    perch_status status = tokens_reserve(tokens, n, err);
    if (status == PERCH_OK) {
        memcpy(tokens->ids + tokens->n, ids, n * sizeof(*ids));
        tokens->n += n;
    }
    return status;
}

void tokens_free(struct tokens *tokens) {
    free(tokens->ids);
    *tokens = (struct tokens){0};
}

perch_status text_read(struct text *text, FILE *file, const char *name, perch_error *err) {
    for (;;) {
        perch_status status = text_reserve(text, 65536, err);
        if (status != PERCH_OK) {
            return status;
        }
        size_t n = fread(text->data + text->n_bytes, 1, text->cap - text->n_bytes - 1, file);
        text->n_bytes += n;
        text->data[text->n_bytes] = '\0';
        if (n == 0) {
            if (ferror(file) != 0) {
                return tool_error(err, PERCH_E_IO, "cannot read %s: %s", name, strerror(errno));
            }
            return PERCH_OK;
        }
    }
}

perch_status tokens_encode(struct tokens *tokens, const perch_tokenizer *tokenizer, const char *text, size_t n_bytes,
                           uint32_t flags, perch_error *err) {
    /* Most texts have fewer tokens than bytes; those that don't say how many they have. */
    size_t room = n_bytes + 8;
    for (;;) {
        perch_status status = tokens_reserve(tokens, room, err);
        if (status != PERCH_OK) {
            return status;
        }
        size_t n = 0;
        status = perch_tokenizer_encode(tokenizer, text, n_bytes, flags, tokens->ids + tokens->n, room, &n, err);
        if (status == PERCH_OK) {
            tokens->n += n;
        }
        if (status != PERCH_E_BUFFER || n <= room) {
            return status;
        }
        room = n;
    }
}

perch_status text_decode(struct text *text, const perch_tokenizer *tokenizer, const int32_t *ids, size_t n,
                         uint32_t flags, perch_error *err) {
    size_t room = 8 * n + 8;
    for (;;) {
        perch_status status = text_reserve(text, room, err);
        if (status != PERCH_OK) {
            return status;
        }
        size_t n_bytes = 0;
        status = perch_tokenizer_decode(tokenizer, ids, n, flags, text->data + text->n_bytes, room + 1, &n_bytes, err);
        if (status == PERCH_OK) {
            text->n_bytes += n_bytes;
        }
        if (status != PERCH_E_BUFFER || n_bytes <= room) {
            text->data[text->n_bytes] = '\0';
            return status;
        }
        room = n_bytes;
    }
}

perch_status text_chat(struct text *text, const perch_tokenizer *tokenizer, const char *format,
                       const perch_chat_message *messages, size_t n, int first, perch_error *err) {
    size_t room = 1024;
    for (;;) {
        perch_status status = text_reserve(text, room, err);
        if (status != PERCH_OK) {
            return status;
        }
        size_t n_bytes = 0;
        status = perch_chat_render(tokenizer, format, messages, n, first, text->data + text->n_bytes, room + 1,
                                   &n_bytes, err);
        if (status == PERCH_OK) {
            text->n_bytes += n_bytes;
        }
        if (status != PERCH_E_BUFFER || n_bytes <= room) {
            text->data[text->n_bytes] = '\0';
            return status;
        }
        room = n_bytes;
    }
}
