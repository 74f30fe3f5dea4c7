/*
 * tokenizer: what a perch_tokenizer is made of. All of it is read-only once perch_tokenizer_create has returned, so
 * that any number of threads may use it; each call brings its own memory.
 *
 * Encoding: added tokens are cut out (added), what lies between is normalized (normalizer), added tokens are cut out
 * again, what lies between is cut into words (pretokenizer), and words become tokens (bpe). Decoding is in decoder.
 */
#ifndef PERCH_ENGINE_TEXT_TOKENIZER_H
#define PERCH_ENGINE_TEXT_TOKENIZER_H

#include "engine/text/added.h"
#include "engine/text/bpe.h"
#include "engine/text/chat.h"
#include "engine/text/decoder.h"
#include "engine/text/normalizer.h"
#include "engine/text/pretokenizer.h"
#include "engine/text/text.h"
#include "engine/text/vocab.h"

/* What PERCH_ENCODE_BOS puts around a text. */
struct text_template {
    int32_t *before, *behind; /* [n_before], [n_behind] */
    size_t n_before, n_behind;
};

struct perch_tokenizer {
    struct vocab vocab;
    struct bpe bpe;
    struct added added;
    struct normalizer normalizer;
    struct pretokenizer pretokenizer;
    struct decoder decoder;
    struct text_template around;
    struct chat_format chat;
    int32_t bos, eos;       /* or VOCAB_NONE */
    struct text_buf pieces; /* what each token adds in the middle of a text, one after the other */
    uint32_t *piece_ends;   /* [vocab.n] */
};

/* Reads the "post_processor"; *given false: there is none. In template.c. */
perch_status template_parse(const struct jnode *node, const struct vocab *vocab, struct text_template *out, bool *given,
                            perch_error *err);
void template_free(struct text_template *around);

#endif
