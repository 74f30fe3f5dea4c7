/* normalizer: Prepend, Replace, Lowercase and the Unicode normalization forms. */
#include "engine/text/normalizer.h"

#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

void normalizer_free(struct normalizer *normalizer) {
    for (size_t i = 0; i < normalizer->n; i++) {
        pattern_free(&normalizer->steps[i].pattern);
        free(normalizer->steps[i].content);
    }
    free(normalizer->steps);
    *normalizer = (struct normalizer){0};
}

uint64_t normalizer_bytes(const struct normalizer *normalizer) {
    uint64_t bytes = normalizer->cap * sizeof *normalizer->steps;
    for (size_t i = 0; i < normalizer->n; i++) {
        bytes += pattern_bytes(&normalizer->steps[i].pattern) + normalizer->steps[i].content_bytes;
    }
    return bytes;
}

void normalizer_work_free(struct normalizer_work *work) {
    free(work->text[0].data);
    free(work->text[1].data);
    free(work->codes);
    matcher_free(&work->matcher);
    *work = (struct normalizer_work){0};
}

static perch_status copy_content(const struct jnode *node, const char *key, struct normalizer_step *step,
                                 perch_error *err) {
    struct jnode content = jnode_get(node, key);
    return jnode_copy(&content, &step->content, &step->content_bytes, err);
}

static perch_status parse_step(const struct jnode *node, const char *type, struct normalizer_step *step,
                               perch_error *err) {
    static const struct {
        const char *name;
        int options;
    } forms[] = {{"NFC", UTF8PROC_STABLE | UTF8PROC_COMPOSE},
                 {"NFD", UTF8PROC_STABLE | UTF8PROC_DECOMPOSE},
                 {"NFKC", UTF8PROC_STABLE | UTF8PROC_COMPOSE | UTF8PROC_COMPAT},
                 {"NFKD", UTF8PROC_STABLE | UTF8PROC_DECOMPOSE | UTF8PROC_COMPAT}};
    for (size_t i = 0; i < sizeof forms / sizeof *forms; i++) {
        if (strcmp(type, forms[i].name) == 0) {
            step->kind = NORMALIZE_UNICODE;
            step->unicode = forms[i].options;
            return PERCH_OK;
        }
    }
    if (strcmp(type, "Lowercase") == 0) {
        step->kind = NORMALIZE_LOWERCASE;
        return PERCH_OK;
    }
    if (strcmp(type, "Prepend") == 0) {
        step->kind = NORMALIZE_PREPEND;
        return copy_content(node, "prepend", step, err);
    }
    if (strcmp(type, "Replace") == 0) {
        struct jnode pattern = jnode_get(node, "pattern");
        step->kind = NORMALIZE_REPLACE;
        perch_status status = pattern_parse(&pattern, &step->pattern, err);
        return status == PERCH_OK ? copy_content(node, "content", step, err) : status;
    }
    return jnode_unknown_type(node, type, err);
}

static perch_status add_step(const struct jnode *node, const char *type, void *user, perch_error *err) {
    struct normalizer *out = user;
    void *steps = out->steps;
    perch_status status = array_reserve(&steps, &out->cap, out->n + 1, sizeof *out->steps, err);
    out->steps = steps;
    if (status != PERCH_OK) {
        return status;
    }
    struct normalizer_step *step = &out->steps[out->n++];
    *step = (struct normalizer_step){0};
    return parse_step(node, type, step, err);
}

perch_status normalizer_parse(const struct jnode *node, struct normalizer *out, perch_error *err) {
    *out = (struct normalizer){0};
    perch_status status = jnode_absent(node) ? PERCH_OK : jnode_components(node, "normalizers", add_step, out, err);
    if (status != PERCH_OK) {
        normalizer_free(out);
    }
    return status;
}

/* limit: text_limit of what the first step was given. */
static perch_status replace(const struct normalizer_step *step, struct matcher *matcher, struct jtext in, size_t limit,
                            struct text_buf *out, perch_error *err) {
    struct match_scan scan = match_begin(&step->pattern, matcher, in.data, in.n);
    struct match match;
    size_t from = 0;
    bool found;
    perch_status status;
    while ((status = match_next(&scan, &found, &match, err)) == PERCH_OK && found) {
        status = buf_append(out, in.data + from, match.start - from, err);
        if (status == PERCH_OK) {
            status = buf_append(out, step->content, step->content_bytes, err);
        }
        if (status == PERCH_OK && out->n > limit) {
            status = err_set(err, PERCH_E_UNSUPPORTED, "the tokenizer's normalizer makes the text too long");
        }
        if (status != PERCH_OK) {
            return status;
        }
        from = match.end;
    }
    return status == PERCH_OK ? buf_append(out, in.data + from, in.n - from, err) : status;
}

static perch_status lowercase(struct jtext in, struct text_buf *out, perch_error *err) {
    for (size_t i = 0; i < in.n; i += utf8_length(in.data[i])) {
        char lower[8];
        uint32_t code = utf8_code(in.data + i);
        size_t n = utf8_encode((uint32_t)utf8proc_tolower((utf8proc_int32_t)code), lower);
        if (code == 0x130) { /* the one letter whose lower case is two: i and a dot above */
            memcpy(lower, "i\xCC\x87", 3);
            n = 3;
        }
        perch_status status = buf_append(out, lower, n, err);
        if (status != PERCH_OK) {
            return status;
        }
    }
    return PERCH_OK;
}

/* Brings one run of text into a normalization form. */
static perch_status normalize_run(int options, struct normalizer_work *work, const char *text, size_t n,
                                  struct text_buf *out, perch_error *err) {
    utf8proc_ssize_t codes;
    for (;;) {
        codes = utf8proc_decompose((const utf8proc_uint8_t *)text, (utf8proc_ssize_t)n, work->codes,
                                   (utf8proc_ssize_t)work->codes_cap, (utf8proc_option_t)options);
        if (codes < 0) {
            return err_set(err, PERCH_E_INVALID, "Unicode normalization: %s", utf8proc_errmsg(codes));
        }
        if ((size_t)codes <= work->codes_cap) {
            break;
        }
        void *grown = work->codes;
        perch_status status = array_reserve(&grown, &work->codes_cap, (size_t)codes, sizeof *work->codes, err);
        work->codes = grown;
        if (status != PERCH_OK) {
            return status;
        }
    }
    codes = utf8proc_normalize_utf32(work->codes, codes, (utf8proc_option_t)options);
    perch_status status = buf_reserve(out, (size_t)codes * 4, err);
    for (utf8proc_ssize_t i = 0; i < codes && status == PERCH_OK; i++) {
        out->n += utf8_encode((uint32_t)work->codes[i], out->data + out->n);
    }
    return status;
}

/* ASCII stays as it is and keeps what is around it apart, except that marks behind it may join its last character. */
static perch_status normalize_unicode(int options, struct normalizer_work *work, struct jtext in, struct text_buf *out,
                                      perch_error *err) {
    size_t at = 0;
    perch_status status = PERCH_OK;
    while (at < in.n && status == PERCH_OK) {
        size_t run = at, end;
        while (run < in.n && (unsigned char)in.data[run] < 0x80) {
            run++;
        }
        for (end = run; end < in.n && (unsigned char)in.data[end] >= 0x80; end++) {}
        run -= end > run && run > at;
        status = buf_append(out, in.data + at, run - at, err);
        if (status == PERCH_OK && end > run) {
            status = normalize_run(options, work, in.data + run, end - run, out, err);
        }
        at = end;
    }
    return status;
}

static perch_status apply_step(const struct normalizer_step *step, struct normalizer_work *work, struct jtext in,
                               size_t limit, struct text_buf *out, perch_error *err) {
    perch_status status = PERCH_OK;
    switch (step->kind) {
    case NORMALIZE_PREPEND:
        status = in.n ? buf_append(out, step->content, step->content_bytes, err) : PERCH_OK;
        return status == PERCH_OK ? buf_append(out, in.data, in.n, err) : status;
    case NORMALIZE_REPLACE:
        return replace(step, &work->matcher, in, limit, out, err);
    case NORMALIZE_UNICODE:
        return normalize_unicode(step->unicode, work, in, out, err);
    case NORMALIZE_LOWERCASE:
        return lowercase(in, out, err);
    }
    return status;
}

perch_status normalizer_apply(const struct normalizer *normalizer, struct normalizer_work *work, struct jtext *text,
                              perch_error *err) {
    perch_status status = PERCH_OK;
    size_t limit = text_limit(text->n);
    for (size_t i = 0; i < normalizer->n && status == PERCH_OK; i++) {
        struct text_buf *out = &work->text[i & 1];
        out->n = 0;
        status = apply_step(&normalizer->steps[i], work, *text, limit, out, err);
        *text = (struct jtext){out->data ? out->data : "", out->n};
    }
    return status;
}
