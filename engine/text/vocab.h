/*
 * vocab: tokens by id and ids by text. The texts of all tokens lie in one run of bytes; an open-addressing table finds
 * them. The model's tokens and added tokens share it: an id is one text.
 */
#ifndef PERCH_ENGINE_TEXT_VOCAB_H
#define PERCH_ENGINE_TEXT_VOCAB_H

#include "engine/text/jnode.h"

enum {
    TOKEN_MODEL = 1u << 0,  /* the model knows it */
    TOKEN_ADDED = 1u << 1,  /* matched as a whole before the model sees the text */
    TOKEN_SPECIAL = 1u << 2 /* left out of decoded text */
};

#define VOCAB_NONE (-1)

/* Code points that find their token without hashing: all of the byte-level alphabet, and U+2581. */
#define VOCAB_CHARS 0x3000u

struct vocab {
    int32_t n;  /* ids are 0..n-1 */
    char *text; /* [text_bytes] all texts */
    size_t text_bytes;
    struct token {
        uint32_t at, n_bytes;
    } * tokens;     /* [n] where the id's text is */
    uint8_t *flags; /* [n] TOKEN_*; 0: no token has this id */
    int32_t *index; /* [index_mask + 1] an id or VOCAB_NONE, by hash of the text */
    uint32_t index_mask;
    int32_t *chars; /* [VOCAB_CHARS] the model's token for a code point, or VOCAB_NONE */
};

/* Room for ids 0..n-1, n_tokens of them used, with text_bytes of text in all. */
perch_status vocab_init(struct vocab *vocab, int32_t n, size_t n_tokens, size_t text_bytes, perch_error *err);
void vocab_free(struct vocab *vocab);

/* Takes up a token within what vocab_init was told; neither the id nor the text may be there yet. */
void vocab_add(struct vocab *vocab, int32_t id, struct jtext text, unsigned flags);

/* The id of a text, or VOCAB_NONE. */
int32_t vocab_find(const struct vocab *vocab, const char *text, size_t n);

/* The same among the model's tokens. */
int32_t vocab_find_model(const struct vocab *vocab, const char *text, size_t n);

/* The model's token for one character. */
int32_t vocab_find_char(const struct vocab *vocab, const char *text, size_t n);

static inline struct jtext vocab_text(const struct vocab *vocab, int32_t id) {
    return (struct jtext){vocab->text + vocab->tokens[id].at, vocab->tokens[id].n_bytes};
}

uint64_t vocab_bytes(const struct vocab *vocab);

#endif
