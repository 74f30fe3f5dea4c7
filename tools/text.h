/*
 * text: growing buffers of bytes and tokens, and the way from one to the other.
 */
#ifndef PERCH_TOOLS_TEXT_H
#define PERCH_TOOLS_TEXT_H

#include "perch/perch.h"

#include <stdio.h>

/* data[n_bytes], always closed by a 0 once something was added; freed by text_free. {0} is empty. */
struct text {
    char *data;
    size_t n_bytes;
    size_t cap;
};

/* ids[n]; freed by tokens_free. {0} is empty. */
struct tokens {
    int32_t *ids;
    size_t n;
    size_t cap;
};

/* Makes *array hold at least need elements, doubling; *array may be NULL with *cap 0. E_NOMEM. */
perch_status grow(void **array, size_t *cap, size_t need, size_t element_bytes, perch_error *err);

perch_status text_add(struct text *text, const char *data, size_t n_bytes, perch_error *err);
perch_status text_addf(struct text *text, perch_error *err, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
void text_free(struct text *text);

perch_status tokens_add(struct tokens *tokens, const int32_t *ids, size_t n, perch_error *err);
void tokens_free(struct tokens *tokens);

/* Adds all that is left of a file; name is for the message. E_IO. */
perch_status text_read(struct text *text, FILE *file, const char *name, perch_error *err);

/* Adds the tokens of text[n_bytes]; flags are PERCH_ENCODE_*. */
perch_status tokens_encode(struct tokens *tokens, const perch_tokenizer *tokenizer, const char *text, size_t n_bytes,
                           uint32_t flags, perch_error *err);

/* Adds the text of ids[n]; flags are PERCH_DECODE_*. */
perch_status text_decode(struct text *text, const perch_tokenizer *tokenizer, const int32_t *ids, size_t n,
                         uint32_t flags, perch_error *err);

/* Adds a rendered chat (see perch_chat_render). */
perch_status text_chat(struct text *text, const perch_tokenizer *tokenizer, const char *format,
                       const perch_chat_message *messages, size_t n, int first, perch_error *err);

#endif
