/* vocab: the table of tokens. */
#include "engine/text/vocab.h"
#include "engine/text/utf8.h"

#include <stdlib.h>
#include <string.h>

static uint32_t hash(const char *text, size_t n) {
    /* FNV-1a, its upper half folded in because the table takes the lower bits. */
    uint64_t h = 0xCBF29CE484222325u;
    for (size_t i = 0; i < n; i++) {
        h = (h ^ (unsigned char)text[i]) * 0x100000001B3u;
    }
    return (uint32_t)(h ^ h >> 32);
}

perch_status vocab_init(struct vocab *vocab, int32_t n, size_t n_tokens, size_t text_bytes, perch_error *err) {
    size_t slots = 16;
    while (slots < 2 * n_tokens) {
        slots *= 2;
    }
    *vocab = (struct vocab){.n = n, .index_mask = (uint32_t)(slots - 1)};
    vocab->text = malloc(text_bytes ? text_bytes : 1);
    vocab->tokens = calloc((size_t)n + 1, sizeof *vocab->tokens);
    vocab->flags = calloc((size_t)n + 1, sizeof *vocab->flags);
    vocab->index = malloc(slots * sizeof *vocab->index);
    vocab->chars = malloc(VOCAB_CHARS * sizeof *vocab->chars);
    if (!vocab->text || !vocab->tokens || !vocab->flags || !vocab->index || !vocab->chars) {
        vocab_free(vocab);
        return err_nomem(err, "a vocabulary");
    }
    for (size_t i = 0; i < slots; i++) {
        vocab->index[i] = VOCAB_NONE;
    }
    for (size_t i = 0; i < VOCAB_CHARS; i++) {
        vocab->chars[i] = VOCAB_NONE;
    }
    return PERCH_OK;
}

void vocab_free(struct vocab *vocab) {
    free(vocab->text);
    free(vocab->tokens);
    free(vocab->flags);
    free(vocab->index);
    free(vocab->chars);
    *vocab = (struct vocab){0};
}

void vocab_add(struct vocab *vocab, int32_t id, struct jtext text, unsigned flags) {
    if (text.n) {
        memcpy(vocab->text + vocab->text_bytes, text.data, text.n);
    }
    vocab->tokens[id] = (struct token){(uint32_t)vocab->text_bytes, (uint32_t)text.n};
    vocab->flags[id] = (uint8_t)flags;
    vocab->text_bytes += text.n;
    uint32_t slot = hash(text.data, text.n) & vocab->index_mask;
    while (vocab->index[slot] != VOCAB_NONE) {
        slot = (slot + 1) & vocab->index_mask;
    }
    vocab->index[slot] = id;
    if ((flags & TOKEN_MODEL) && text.n > 0 && utf8_length(*text.data) == text.n &&
        utf8_code(text.data) < VOCAB_CHARS) {
        vocab->chars[utf8_code(text.data)] = id;
    }
}

int32_t vocab_find(const struct vocab *vocab, const char *text, size_t n) {
    for (uint32_t slot = hash(text, n) & vocab->index_mask;; slot = (slot + 1) & vocab->index_mask) {
        int32_t id = vocab->index[slot];
        if (id == VOCAB_NONE) {
            return VOCAB_NONE;
        }
        struct jtext found = vocab_text(vocab, id);
        if (found.n == n && memcmp(found.data, text, n) == 0) {
            return id;
        }
    }
}

int32_t vocab_find_model(const struct vocab *vocab, const char *text, size_t n) {
    int32_t id = vocab_find(vocab, text, n);
    return id != VOCAB_NONE && (vocab->flags[id] & TOKEN_MODEL) ? id : VOCAB_NONE;
}

int32_t vocab_find_char(const struct vocab *vocab, const char *text, size_t n) {
    uint32_t code = utf8_code(text);
    return code < VOCAB_CHARS ? vocab->chars[code] : vocab_find_model(vocab, text, n);
}

uint64_t vocab_bytes(const struct vocab *vocab) {
    return vocab->text_bytes + (uint64_t)vocab->n * (sizeof *vocab->tokens + sizeof *vocab->flags) +
           ((uint64_t)vocab->index_mask + 1) * sizeof *vocab->index + VOCAB_CHARS * sizeof *vocab->chars;
}
