/* pattern: literal and regular searches in a text. */
#define PCRE2_CODE_UNIT_WIDTH 8
#include "engine/text/pattern.h"
#include "engine/text/utf8.h"

#include <pcre2.h>
#include <stdlib.h>
#include <string.h>

/*
 * Steps that one search may take at each place where it starts, apart from those in proportion to the text. The usual
 * patterns take a few; what needs more is about to take exponentially many.
 */
#define MATCH_STEPS 20000u
#define MATCH_STEPS_PER_BYTE 8u
/* Memory for what a search may have to come back to: a repeated group needs some at each turn. */
#define MATCH_HEAP_KIB 65536u
#define MATCH_HEAP_BYTES_PER_BYTE 256u

void pattern_free(struct pattern *pattern) {
    free(pattern->literal);
    pcre2_code_free(pattern->code);
    *pattern = (struct pattern){0};
}

uint64_t pattern_bytes(const struct pattern *pattern) {
    size_t code = 0, jit = 0;
    if (pattern->code) {
        pcre2_pattern_info(pattern->code, PCRE2_INFO_SIZE, &code);
        pcre2_pattern_info(pattern->code, PCRE2_INFO_JITSIZE, &jit);
    }
    return (uint64_t)pattern->literal_bytes + code + jit;
}

void matcher_free(struct matcher *matcher) {
    pcre2_match_data_free(matcher->data);
    pcre2_match_context_free(matcher->context);
    *matcher = (struct matcher){0};
}

perch_status pattern_literal(struct jtext text, struct pattern *out, perch_error *err) {
    *out = (struct pattern){.literal = malloc(text.n + 1), .literal_bytes = text.n};
    if (!out->literal) {
        return err_nomem(err, "a pattern");
    }
    memcpy(out->literal, text.data, text.n);
    return PERCH_OK;
}

perch_status pattern_compile(const struct jnode *node, struct jtext expression, struct pattern *out, perch_error *err) {
    /* Ruby's ^ and $ match at every line; its dot matches all but a newline, and so does PCRE2's if that ends lines. */
    static const uint32_t options = PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C;
    *out = (struct pattern){0};
    char *translated = NULL;
    size_t n = 0;
    pcre2_compile_context *context = pcre2_compile_context_create(NULL);
    perch_status status = context ? PERCH_OK : err_nomem(err, "a pattern");
    if (status == PERCH_OK) {
        status = pattern_translate(node, expression, &translated, &n, err);
    }
    if (status == PERCH_OK) {
        int code = 0;
        PCRE2_SIZE at = 0;
        pcre2_set_newline(context, PCRE2_NEWLINE_LF);
        out->code = pcre2_compile((PCRE2_SPTR)translated, n, options, &code, &at, context);
        if (!out->code && code == PCRE2_ERROR_HEAP_FAILED) {
            status = err_nomem(err, "a pattern");
        } else if (!out->code) {
            PCRE2_UCHAR reason[128] = "";
            pcre2_get_error_message(code, reason, sizeof reason);
            status = jnode_fail(node, PERCH_E_UNSUPPORTED, err, "regular expression: %s, at \"%.40s\"",
                                (const char *)reason, at < n ? translated + at : "");
        } else {
            /* Without a compiler for this machine the interpreter does the same, more slowly. */
            (void)pcre2_jit_compile(out->code, PCRE2_JIT_COMPLETE);
        }
    }
    free(translated);
    pcre2_compile_context_free(context);
    return status;
}

perch_status pattern_parse(const struct jnode *node, struct pattern *out, perch_error *err) {
    struct jnode string = jnode_get(node, "String"), regex = jnode_get(node, "Regex");
    struct jtext text;
    if (!string.value == !regex.value) {
        return jnode_fail(node, PERCH_E_FORMAT, err, "must be {\"String\": ...} or {\"Regex\": ...}");
    }
    const struct jnode *given = string.value ? &string : &regex;
    perch_status status = jnode_text(given, &text, err);
    if (status != PERCH_OK) {
        return status;
    }
    if (text.n == 0) {
        return jnode_fail(given, PERCH_E_UNSUPPORTED, err, "an empty pattern is not supported");
    }
    return given == &string ? pattern_literal(text, out, err) : pattern_compile(given, text, out, err);
}

struct match_scan match_begin(const struct pattern *pattern, struct matcher *matcher, const char *text, size_t n) {
    return (struct match_scan){
        .pattern = pattern, .matcher = matcher, .text = text ? text : "", .n = n, .last_end = SIZE_MAX};
}

static perch_status prepare(struct match_scan *scan, perch_error *err) {
    struct matcher *matcher = scan->matcher;
    if (!matcher->context) {
        matcher->context = pcre2_match_context_create(NULL);
    }
    if (!matcher->data) {
        matcher->data = pcre2_match_data_create(1, NULL); /* groups within a match are of no interest */
    }
    if (!matcher->context || !matcher->data) {
        return err_nomem(err, "a search");
    }
    size_t steps = scan->n < UINT32_MAX / 2 / MATCH_STEPS_PER_BYTE ? scan->n * MATCH_STEPS_PER_BYTE : UINT32_MAX / 2;
    pcre2_set_match_limit(matcher->context, (uint32_t)steps + MATCH_STEPS);
    size_t heap = scan->n / 1024 * MATCH_HEAP_BYTES_PER_BYTE;
    pcre2_set_heap_limit(matcher->context, MATCH_HEAP_KIB + (heap < UINT32_MAX / 2 ? (uint32_t)heap : UINT32_MAX / 2));
    return PERCH_OK;
}

static perch_status search(struct match_scan *scan, bool *found, struct match *out, perch_error *err) {
    const struct pattern *pattern = scan->pattern;
    if (pattern->literal) {
        const char *at =
            memmem(scan->text + scan->from, scan->n - scan->from, pattern->literal, pattern->literal_bytes);
        *found = at != NULL;
        if (at) {
            *out = (struct match){(size_t)(at - scan->text), (size_t)(at - scan->text) + pattern->literal_bytes};
        }
        return PERCH_OK;
    }
    perch_status status = scan->last_end == SIZE_MAX ? prepare(scan, err) : PERCH_OK;
    if (status != PERCH_OK) {
        return status;
    }
    int rc = PCRE2_ERROR_JIT_STACKLIMIT;
    for (uint32_t options = PCRE2_NO_UTF_CHECK; rc == PCRE2_ERROR_JIT_STACKLIMIT; options |= PCRE2_NO_JIT) {
        rc = pcre2_match(pattern->code, (PCRE2_SPTR)scan->text, scan->n, scan->from, options, scan->matcher->data,
                         scan->matcher->context);
    }
    *found = rc >= 0;
    if (rc >= 0) {
        const PCRE2_SIZE *range = pcre2_get_ovector_pointer(scan->matcher->data);
        *out = (struct match){range[0], range[1]};
        /* \K may set a match's start before the search's. */
        return out->start >= scan->from && out->end >= out->start
                   ? PERCH_OK
                   : err_set(err, PERCH_E_UNSUPPORTED, "a pattern of the tokenizer matches backwards");
    }
    switch (rc) {
    case PCRE2_ERROR_NOMATCH:
        return PERCH_OK;
    case PCRE2_ERROR_NOMEMORY:
        return err_nomem(err, "a search");
    default:
        return err_set(err, PERCH_E_UNSUPPORTED,
                       "a pattern of the tokenizer takes too much on this text (PCRE2 error %d)", rc);
    }
}

perch_status match_next(struct match_scan *scan, bool *found, struct match *out, perch_error *err) {
    for (;;) {
        *found = false;
        if (scan->from > scan->n) {
            return PERCH_OK;
        }
        perch_status status = search(scan, found, out, err);
        if (status != PERCH_OK || !*found) {
            return status;
        }
        if (out->start != out->end || out->end != scan->last_end) {
            scan->from = scan->last_end = out->end;
            return PERCH_OK;
        }
        scan->from += scan->from < scan->n ? utf8_length(scan->text[scan->from]) : 1;
    }
}
