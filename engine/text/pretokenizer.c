/* pretokenizer: cutting text into words and spelling them as the vocabulary does. */
#include "engine/text/pretokenizer.h"
#include "engine/text/byte_level.h"

#include <stdlib.h>
#include <string.h>

void pretokenizer_work_free(struct pretokenizer_work *work) {
    free(work->texts[0].data);
    free(work->texts[1].data);
    free(work->words);
    free(work->spare);
    matcher_free(&work->matcher);
    *work = (struct pretokenizer_work){0};
}

/* The words that a step makes are collected in spare, and then take the others' place. */
struct cutter {
    struct pretokenizer_work *work;
    const struct pretokenizer_step *step;
    const struct word *word; /* that is cut */
    size_t n;                /* words in spare */
    size_t n_before;         /* of which come from earlier words */
    bool last_was_match;     /* of the piece before; false at a word's beginning */
    perch_error *err;
};

static perch_status put_word(struct cutter *c, size_t at, size_t n) {
    void *words = c->work->spare;
    perch_status status = array_reserve(&words, &c->work->spare_cap, c->n + 1, sizeof *c->work->spare, c->err);
    c->work->spare = words;
    if (status == PERCH_OK) {
        c->work->spare[c->n++] = (struct word){at, n, c->word->first && at == c->word->at};
    }
    return status;
}

/* Takes one piece of the word, a match or what lies between two; pieces come in order and leave nothing out. */
static perch_status put_piece(struct cutter *c, size_t at, size_t n, bool is_match) {
    bool after_match = c->last_was_match, joins = false;
    c->last_was_match = is_match;
    switch (c->step->behavior) {
    case SPLIT_REMOVED:
        return is_match ? PERCH_OK : put_word(c, at, n);
    case SPLIT_ISOLATED:
        break;
    case SPLIT_WITH_PREVIOUS:
        joins = is_match && !after_match;
        break;
    case SPLIT_WITH_NEXT:
        joins = !is_match && after_match;
        break;
    case SPLIT_CONTIGUOUS:
        joins = is_match == after_match;
        break;
    }
    if (joins && c->n > c->n_before) {
        c->work->spare[c->n - 1].n += n;
        return PERCH_OK;
    }
    return put_word(c, at, n);
}

static perch_status cut_word(struct cutter *c) {
    const char *text = c->work->text + c->word->at;
    struct match_scan scan = match_begin(&c->step->pattern, &c->work->matcher, text, c->word->n);
    struct match match;
    size_t from = 0;
    bool found;
    perch_status status;
    c->n_before = c->n;
    c->last_was_match = false;
    while ((status = match_next(&scan, &found, &match, c->err)) == PERCH_OK && found) {
        if (match.start > from) {
            status = put_piece(c, c->word->at + from, match.start - from, c->step->invert);
        }
        if (status == PERCH_OK) {
            status = put_piece(c, c->word->at + match.start, match.end - match.start, !c->step->invert);
        }
        if (status != PERCH_OK) {
            return status;
        }
        from = match.end;
    }
    if (status == PERCH_OK && from < c->word->n) {
        status = put_piece(c, c->word->at + from, c->word->n - from, c->step->invert);
    }
    return status;
}

static perch_status split(const struct pretokenizer_step *step, struct pretokenizer_work *work, perch_error *err) {
    struct cutter c = {.work = work, .step = step, .err = err};
    perch_status status = PERCH_OK;
    for (size_t i = 0; i < work->n_words && status == PERCH_OK; i++) {
        c.word = &work->words[i];
        status = cut_word(&c);
    }
    if (status != PERCH_OK) {
        return status;
    }
    struct word *words = work->words;
    size_t cap = work->words_cap;
    work->words = work->spare;
    work->words_cap = work->spare_cap;
    work->spare = words;
    work->spare_cap = cap;
    work->n_words = 0;
    for (size_t i = 0; i < c.n; i++) {
        if (work->words[i].n) {
            work->words[work->n_words++] = work->words[i];
        }
    }
    return PERCH_OK;
}

static perch_status spell_bytes(const char *text, size_t n, struct text_buf *out, perch_error *err) {
    perch_status status = n <= SIZE_MAX / 2 ? buf_reserve(out, 2 * n, err) : err_nomem(err, "a text");
    for (size_t i = 0; i < n && status == PERCH_OK; i++) {
        out->n += utf8_encode(byte_level_code((unsigned char)text[i]), out->data + out->n);
    }
    return status;
}

static perch_status spell_metaspace(const struct pretokenizer_step *step, const char *text, size_t n, bool first,
                                    struct text_buf *out, perch_error *err) {
    const char *replacement = step->replacement;
    size_t bytes = step->replacement_bytes, from = 0;
    bool has_it = n && (*text == ' ' || (n >= bytes && memcmp(text, replacement, bytes) == 0));
    bool prepend = step->prepend == PREPEND_ALWAYS || (step->prepend == PREPEND_FIRST && first);
    perch_status status = prepend && !has_it ? buf_append(out, replacement, bytes, err) : PERCH_OK;
    for (size_t i = 0; i < n && status == PERCH_OK; i++) {
        if (text[i] == ' ') {
            status = buf_append(out, text + from, i - from, err);
            if (status == PERCH_OK) {
                status = buf_append(out, replacement, bytes, err);
            }
            from = i + 1;
        }
    }
    return status == PERCH_OK ? buf_append(out, text + from, n - from, err) : status;
}

/* Writes every word anew, into the text buffer that they don't stand in. */
static perch_status spell(const struct pretokenizer_step *step, struct pretokenizer_work *work, size_t limit,
                          perch_error *err) {
    struct text_buf *out = &work->texts[work->text == work->texts[0].data];
    perch_status status = PERCH_OK;
    out->n = 0;
    for (size_t i = 0; i < work->n_words && status == PERCH_OK; i++) {
        struct word *word = &work->words[i];
        const char *text = work->text + word->at;
        size_t at = out->n;
        switch (step->kind) {
        case PRETOKENIZE_BYTE_LEVEL:
            status = spell_bytes(text, word->n, out, err);
            break;
        case PRETOKENIZE_METASPACE:
            status = spell_metaspace(step, text, word->n, word->first, out, err);
            break;
        default:
            status = *text == ' ' ? PERCH_OK : buf_append(out, " ", 1, err);
            if (status == PERCH_OK) {
                status = buf_append(out, text, word->n, err);
            }
        }
        if (status == PERCH_OK && out->n > limit) {
            status = err_set(err, PERCH_E_UNSUPPORTED, "the tokenizer's pre-tokenizer makes the text too long");
        }
        word->at = at;
        word->n = out->n - at;
    }
    work->text = out->data ? out->data : "";
    return status;
}

perch_status pretokenizer_apply(const struct pretokenizer *pretokenizer, struct pretokenizer_work *work,
                                struct jtext text, bool first, perch_error *err) {
    void *words = work->words;
    perch_status status = array_reserve(&words, &work->words_cap, 1, sizeof *work->words, err);
    work->words = words;
    if (status != PERCH_OK) {
        return status;
    }
    work->text = text.data;
    work->words[0] = (struct word){0, text.n, first};
    work->n_words = text.n ? 1 : 0;
    for (size_t i = 0; i < pretokenizer->n && status == PERCH_OK; i++) {
        const struct pretokenizer_step *step = &pretokenizer->steps[i];
        status = step->kind == PRETOKENIZE_SPLIT ? split(step, work, err) : spell(step, work, text_limit(text.n), err);
    }
    return status;
}
