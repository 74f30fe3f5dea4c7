/*
 * utf8: UTF-8 one character at a time, and text that grows.
 */
#ifndef PERCH_ENGINE_TEXT_UTF8_H
#define PERCH_ENGINE_TEXT_UTF8_H

#include "base/base.h"

#define UTF8_REPLACEMENT "\xEF\xBF\xBD" /* U+FFFD */
#define UTF8_REPLACEMENT_BYTES 3u

/*
 * Looks at the character that text[n] begins with. > 0: it is well-formed, so many bytes long, *code is its code point.
 * < 0: it is not, and the longest piece of it that begins a well-formed one (or else one byte) has -result bytes.
 * 0: the text ends within it (or n is 0).
 */
int utf8_step(const char *text, size_t n, uint32_t *code);

/* Bytes of the character that begins with this byte; the text is known to be well-formed. */
static inline size_t utf8_length(char first) {
    unsigned char byte = (unsigned char)first;
    return byte < 0x80 ? 1 : byte < 0xE0 ? 2 : byte < 0xF0 ? 3 : 4;
}

/* The code point at text, which is known to be well-formed. */
static inline uint32_t utf8_code(const char *text) {
    const unsigned char *b = (const unsigned char *)text;
    switch (utf8_length(*text)) {
    case 1:
        return b[0];
    case 2:
        return (uint32_t)(b[0] & 0x1F) << 6 | (b[1] & 0x3Fu);
    case 3:
        return (uint32_t)(b[0] & 0x0F) << 12 | (uint32_t)(b[1] & 0x3F) << 6 | (b[2] & 0x3Fu);
    default:
        return (uint32_t)(b[0] & 0x07) << 18 | (uint32_t)(b[1] & 0x3F) << 12 | (uint32_t)(b[2] & 0x3F) << 6 |
               (b[3] & 0x3Fu);
    }
}

/* Where the character begins whose last byte is text[at - 1]; at > 0. */
static inline size_t utf8_before(const char *text, size_t at) {
    do {
        at--;
    } while (at > 0 && ((unsigned char)text[at] & 0xC0) == 0x80);
    return at;
}

/* Writes a code point to out[4] and returns its bytes. */
size_t utf8_encode(uint32_t code, char *out);

/* Unicode's White_Space. */
bool utf8_is_space(uint32_t code);

/*
 * How long a text of n bytes may become in the hands of a tokenizer. Files can ask for steps that multiply it again and
 * again; those that are meant to be used come nowhere near this.
 */
static inline size_t text_limit(size_t n) { return n < SIZE_MAX / 512 ? (n + 1024) * 256 : SIZE_MAX; }

/* Text that grows; all zero is empty. The owner frees data. */
struct text_buf {
    char *data;
    size_t n, cap;
};

/* Makes room for `more` bytes behind what is there. */
perch_status buf_reserve(struct text_buf *buf, size_t more, perch_error *err);
perch_status buf_append(struct text_buf *buf, const char *text, size_t n, perch_error *err);

#endif
