/*
 * pretokenizer: cuts a stretch of normalized text into words; no token of the model crosses their borders. A list of
 * steps, each of which cuts the words of the one before further or spells them otherwise.
 */
#ifndef PERCH_ENGINE_TEXT_PRETOKENIZER_H
#define PERCH_ENGINE_TEXT_PRETOKENIZER_H

#include "engine/text/pattern.h"
#include "engine/text/utf8.h"

enum pretokenizer_kind {
    PRETOKENIZE_SPLIT,      /* cut where a pattern matches */
    PRETOKENIZE_SPACE,      /* put a space before a word that has none */
    PRETOKENIZE_BYTE_LEVEL, /* write every byte as a printable character */
    PRETOKENIZE_METASPACE   /* write spaces as a character, and put it before words */
};

/* What becomes of the matches of a SPLIT. */
enum split_behavior { SPLIT_REMOVED, SPLIT_ISOLATED, SPLIT_WITH_PREVIOUS, SPLIT_WITH_NEXT, SPLIT_CONTIGUOUS };

enum prepend_scheme { PREPEND_NEVER, PREPEND_FIRST, PREPEND_ALWAYS };

struct pretokenizer_step {
    enum pretokenizer_kind kind;
    struct pattern pattern; /* SPLIT */
    enum split_behavior behavior;
    bool invert;                 /* matches are what the pattern does not match */
    enum prepend_scheme prepend; /* METASPACE */
    char replacement[4];
    size_t replacement_bytes;
};

struct pretokenizer {
    struct pretokenizer_step *steps; /* [n] */
    size_t n, cap;
};

struct word {
    size_t at, n;
    bool first; /* it stands at the very beginning of the text */
};

/* One call's memory; after pretokenizer_apply, words[n_words] within text are the result. */
struct pretokenizer_work {
    const char *text;
    struct text_buf texts[2];
    struct word *words, *spare;
    size_t n_words, words_cap, spare_cap;
    struct matcher matcher;
};

/* Reads the "pre_tokenizer" of a tokenizer.json; absent is no steps. E_FORMAT, E_UNSUPPORTED, E_NOMEM. */
perch_status pretokenizer_parse(const struct jnode *node, struct pretokenizer *out, perch_error *err);
void pretokenizer_free(struct pretokenizer *pretokenizer);
uint64_t pretokenizer_bytes(const struct pretokenizer *pretokenizer);

/* The fields of a Metaspace node, which the decoder has as well. */
perch_status metaspace_parse(const struct jnode *node, struct jtext *replacement, enum prepend_scheme *prepend,
                             bool *split, perch_error *err);

/* Cuts text; first: it stands at the very beginning. The words are valid until the next call. */
perch_status pretokenizer_apply(const struct pretokenizer *pretokenizer, struct pretokenizer_work *work,
                                struct jtext text, bool first, perch_error *err);
void pretokenizer_work_free(struct pretokenizer_work *work);

#endif
