/*
 * added: tokens that are found in the text as a whole, before the model sees it. Those that are not "normalized" are
 * looked for in the text as given, the others in the normalized text between the first ones' matches, by what the
 * normalizer makes of them. At each place the longest wins.
 */
#ifndef PERCH_ENGINE_TEXT_ADDED_H
#define PERCH_ENGINE_TEXT_ADDED_H

#include "engine/text/normalizer.h"
#include "engine/text/vocab.h"

/* An entry of "added_tokens". */
struct added_token {
    struct jtext content; /* borrowed from the JSON document while parsing, from the vocabulary later */
    int32_t id;
    bool single_word; /* not beside a character of a word */
    bool lstrip;      /* takes the white space before it along */
    bool rstrip;      /* and behind */
    bool normalized;
    bool special;
};

/* A trie over bytes; node 0 is the root. */
struct added_set {
    struct added_node *nodes; /* [n] */
    size_t n, cap;
    bool starts[256]; /* whether a token begins with this byte */
};

struct added {
    struct added_token *tokens; /* [n] */
    size_t n;
    struct added_set as_given, normalized;
    struct pattern word; /* a character of a word, if a token is single_word */
};

/* A pass over a text: stretches without added tokens and added tokens by turns. */
struct added_scan {
    const struct added *added;
    const struct added_set *set;
    struct matcher *matcher;
    struct jtext text;
    bool special;                      /* special tokens count; without, they are text */
    size_t at;                         /* what lies before is searched */
    size_t done;                       /* what lies before is handed out */
    const struct added_token *pending; /* found, its text before it was handed out first */
    size_t pending_end;
};

struct added_piece {
    int32_t id; /* VOCAB_NONE: text */
    size_t start, end;
};

/* Reads the "added_tokens" list (absent: none), without the sets. contents are borrowed from the document. */
perch_status added_parse(const struct jnode *list, struct added *out, perch_error *err);

/*
 * Reads a model's "vocab" and takes up the added tokens, whose contents are borrowed from the vocabulary from then on.
 * An id is one text's and a text has one id: else E_FORMAT. In vocab_parse.c.
 */
perch_status vocab_parse(const struct jnode *node, const struct jnode *list, struct added *added, struct vocab *out,
                         perch_error *err);

/* Makes the sets. */
perch_status added_index(struct added *added, const struct normalizer *normalizer, const struct jnode *list,
                         perch_error *err);
void added_free(struct added *added);
uint64_t added_bytes(const struct added *added);

struct added_scan added_begin(const struct added *added, const struct added_set *set, struct matcher *matcher,
                              struct jtext text, bool special);

/* *more false: the text is at its end. E_NOMEM, and match_next's. */
perch_status added_next(struct added_scan *scan, bool *more, struct added_piece *out, perch_error *err);

#endif
