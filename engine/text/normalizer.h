/*
 * normalizer: the rewriting of a stretch of text before it is cut into words: a list of steps, each over all of it.
 */
#ifndef PERCH_ENGINE_TEXT_NORMALIZER_H
#define PERCH_ENGINE_TEXT_NORMALIZER_H

#include "engine/text/pattern.h"
#include "engine/text/utf8.h"

enum normalizer_kind { NORMALIZE_PREPEND, NORMALIZE_REPLACE, NORMALIZE_UNICODE, NORMALIZE_LOWERCASE };

struct normalizer_step {
    enum normalizer_kind kind;
    int unicode;            /* NORMALIZE_UNICODE: utf8proc's options */
    struct pattern pattern; /* NORMALIZE_REPLACE: what */
    char *content;          /* [content_bytes] what is prepended, or put in its place */
    size_t content_bytes;
};

struct normalizer {
    struct normalizer_step *steps; /* [n] */
    size_t n, cap;
};

/* One call's memory. */
struct normalizer_work {
    struct text_buf text[2]; /* the steps' results, in turn */
    int32_t *codes;
    size_t codes_cap;
    struct matcher matcher;
};

/* Reads the "normalizer" of a tokenizer.json; absent is no steps. E_FORMAT, E_UNSUPPORTED, E_NOMEM. */
perch_status normalizer_parse(const struct jnode *node, struct normalizer *out, perch_error *err);
void normalizer_free(struct normalizer *normalizer);
uint64_t normalizer_bytes(const struct normalizer *normalizer);

/* *text is replaced by what it becomes: itself or borrowed from work, until the next call. */
perch_status normalizer_apply(const struct normalizer *normalizer, struct normalizer_work *work, struct jtext *text,
                              perch_error *err);
void normalizer_work_free(struct normalizer_work *work);

#endif
