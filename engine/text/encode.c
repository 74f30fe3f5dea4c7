/* encode: text to tokens. */
#include "engine/text/tokenizer.h"

#include <stdlib.h>
#include <string.h>

/* What one call needs; the tokenizer itself is shared. */
struct encoding {
    const perch_tokenizer *t;
    struct normalizer_work normalizer;
    struct pretokenizer_work pretokenizer;
    struct bpe_work bpe;
    struct matcher matcher;
    struct text_buf repaired;
    struct id_sink sink;
    bool special;
    perch_error *err;
};

static void encoding_free(struct encoding *e) {
    normalizer_work_free(&e->normalizer);
    pretokenizer_work_free(&e->pretokenizer);
    bpe_work_free(&e->bpe);
    matcher_free(&e->matcher);
    free(e->repaired.data);
}

/* Makes the text well-formed: a byte that belongs to no character becomes U+FFFD. */
static perch_status repair(struct encoding *e, struct jtext *text) {
    size_t from = 0, i = 0;
    uint32_t code;
    perch_status status = PERCH_OK;
    while (i < text->n && status == PERCH_OK) {
        int step = utf8_step(text->data + i, text->n - i, &code);
        if (step > 0) {
            i += (size_t)step;
            continue;
        }
        status = buf_append(&e->repaired, text->data + from, i - from, e->err);
        if (status == PERCH_OK) {
            status = buf_append(&e->repaired, UTF8_REPLACEMENT, UTF8_REPLACEMENT_BYTES, e->err);
        }
        from = ++i;
    }
    if (status != PERCH_OK || e->repaired.n == 0) {
        return status;
    }
    status = buf_append(&e->repaired, text->data + from, i - from, e->err);
    *text = (struct jtext){e->repaired.data, e->repaired.n};
    return status;
}

/* Text without added tokens: words, and their tokens. first: the whole text begins here. */
static perch_status encode_plain(struct encoding *e, struct jtext text, bool first) {
    struct pretokenizer_work *work = &e->pretokenizer;
    perch_status status = pretokenizer_apply(&e->t->pretokenizer, work, text, first, e->err);
    for (size_t i = 0; i < work->n_words && status == PERCH_OK; i++) {
        const struct word *word = &work->words[i];
        status = bpe_encode(&e->t->bpe, &e->t->vocab, work->text + word->at, word->n, &e->bpe, &e->sink, e->err);
    }
    return status;
}

/* What lies between added tokens of the text as it was given. */
static perch_status encode_segment(struct encoding *e, struct jtext text, bool first) {
    perch_status status = normalizer_apply(&e->t->normalizer, &e->normalizer, &text, e->err);
    if (status != PERCH_OK) {
        return status;
    }
    const struct added *added = &e->t->added;
    struct added_scan scan = added_begin(added, &added->normalized, &e->matcher, text, e->special);
    struct added_piece piece;
    bool more;
    while ((status = added_next(&scan, &more, &piece, e->err)) == PERCH_OK && more) {
        if (piece.id != VOCAB_NONE) {
            sink_put(&e->sink, piece.id);
            continue;
        }
        struct jtext plain = {text.data + piece.start, piece.end - piece.start};
        status = encode_plain(e, plain, first && piece.start == 0);
        if (status != PERCH_OK) {
            return status;
        }
    }
    return status;
}

static perch_status encode_text(struct encoding *e, struct jtext text) {
    const struct added *added = &e->t->added;
    struct added_scan scan = added_begin(added, &added->as_given, &e->matcher, text, e->special);
    struct added_piece piece;
    bool more;
    perch_status status;
    while ((status = added_next(&scan, &more, &piece, e->err)) == PERCH_OK && more) {
        if (piece.id != VOCAB_NONE) {
            sink_put(&e->sink, piece.id);
            continue;
        }
        struct jtext segment = {text.data + piece.start, piece.end - piece.start};
        status = encode_segment(e, segment, piece.start == 0);
        if (status != PERCH_OK) {
            return status;
        }
    }
    return status;
}

static void put_all(struct id_sink *sink, const int32_t *ids, size_t n) {
    for (size_t i = 0; i < n; i++) {
        sink_put(sink, ids[i]);
    }
}

perch_status perch_tokenizer_encode(const perch_tokenizer *tokenizer, const char *text, size_t n_bytes, uint32_t flags,
                                    int32_t *tokens, size_t cap, size_t *n_tokens, perch_error *err) {
    if (!tokenizer || !n_tokens || (!text && n_bytes) || (!tokens && cap)) {
        return err_set(err, PERCH_E_INVALID, "%s is NULL",
                       !tokenizer         ? "tokenizer"
                       : !n_tokens        ? "n_tokens"
                       : !text && n_bytes ? "text"
                                          : "tokens");
    }
    if (flags & ~(uint32_t)(PERCH_ENCODE_BOS | PERCH_ENCODE_SPECIAL)) {
        return err_set(err, PERCH_E_INVALID, "flags: 0x%x has more than PERCH_ENCODE_*", flags);
    }
    struct encoding e = {.t = tokenizer,
                         .sink = {.ids = tokens, .cap = cap},
                         .special = (flags & PERCH_ENCODE_SPECIAL) != 0,
                         .err = err};
    const struct text_template *around = &tokenizer->around;
    struct jtext all = {text ? text : "", n_bytes};
    *n_tokens = 0;
    perch_status status = repair(&e, &all);
    if (flags & PERCH_ENCODE_BOS) {
        put_all(&e.sink, around->before, around->n_before);
    }
    if (status == PERCH_OK) {
        status = encode_text(&e, all);
    }
    if (flags & PERCH_ENCODE_BOS) {
        put_all(&e.sink, around->behind, around->n_behind);
    }
    encoding_free(&e);
    if (status != PERCH_OK) {
        return status;
    }
    *n_tokens = e.sink.n;
    return e.sink.n <= cap ? PERCH_OK
                           : err_set(err, PERCH_E_BUFFER,
                                     "the text has %zu tokens, more than the %zu there is room for", e.sink.n, cap);
}
