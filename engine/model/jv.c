/*
 * jv: JSON values. A first look at the text bounds the number of values: each is the root, the first in a bracket, or behind a
 * comma. Room for as many is allocated once, twice over: values wait on a stack until their container closes, and then
 * move, in one row, to where they stay. Strings are decoded in place in a copy of the text, since none becomes longer by it.
 */
#include "engine/model/jv.h"

#include <errno.h>
#include <locale.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct parser {
    char *at, *end; /* *end is 0 */
    const char *begin, *where;
    jv *stack, *values;
    size_t n_stack, n_values;
    unsigned depth;
    perch_error *err;
} parser;

static perch_status parse_value(parser *p, const char *key);

static perch_status fail(const parser *p, const char *what) {
    size_t line = 1;
    for (const char *c = p->begin; c < p->at; c++) {
        line += *c == '\n';
    }
    return err_set(p->err, PERCH_E_FORMAT, "%s: line %zu: %s", p->where, line, what);
}

static void skip_space(parser *p) {
    while (*p->at == ' ' || *p->at == '\n' || *p->at == '\r' || *p->at == '\t') {
        p->at++;
    }
}

/* ---------------------------------------------------------------- strings -- */

/* Four hexadecimal digits, or -1. */
static int32_t hex4(const char *at) {
    int32_t value = 0;
    for (int i = 0; i < 4; i++) {
        char c = at[i];
        int digit = c >= '0' && c <= '9'   ? c - '0'
                    : c >= 'a' && c <= 'f' ? c - 'a' + 10
                    : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                           : -1;
        if (digit < 0) {
            return -1; /* also at the text's closing 0, so that nothing behind it is looked at */
        }
        value = value * 16 + digit;
    }
    return value;
}

static char *put_utf8(char *to, uint32_t c) {
    if (c < 0x80) {
        *to++ = (char)c;
    } else if (c < 0x800) {
        *to++ = (char)(0xC0 | c >> 6);
        *to++ = (char)(0x80 | (c & 0x3F));
    } else if (c < 0x10000) {
        *to++ = (char)(0xE0 | c >> 12);
        *to++ = (char)(0x80 | (c >> 6 & 0x3F));
        *to++ = (char)(0x80 | (c & 0x3F));
    } else {
        *to++ = (char)(0xF0 | c >> 18);
        *to++ = (char)(0x80 | (c >> 12 & 0x3F));
        *to++ = (char)(0x80 | (c >> 6 & 0x3F));
        *to++ = (char)(0x80 | (c & 0x3F));
    }
    return to;
}

/* The bytes of the UTF-8 character at c, or 0 where there is none: no overlong forms, no surrogates, nothing beyond U+10FFFF. */
static size_t utf8_bytes(const char *at) {
    const unsigned char *c = (const unsigned char *)at;
    size_t n = c[0] < 0x80 ? 1 : c[0] < 0xC2 ? 0 : c[0] < 0xE0 ? 2 : c[0] < 0xF0 ? 3 : c[0] < 0xF5 ? 4 : 0;
    for (size_t i = 1; i < n; i++) {
        if ((c[i] & 0xC0) != 0x80) {
            return 0;
        }
    }
    bool bad = (c[0] == 0xE0 && c[1] < 0xA0) || (c[0] == 0xED && c[1] > 0x9F) || (c[0] == 0xF0 && c[1] < 0x90) ||
               (c[0] == 0xF4 && c[1] > 0x8F);
    return bad ? 0 : n;
}

/* p->at is behind the backslash. */
static perch_status parse_escape(parser *p, char **to) {
    static const char names[] = "\"\\/bfnrt", meanings[] = "\"\\/\b\f\n\r\t";
    char c = *p->at;
    const char *name = c ? strchr(names, c) : NULL;
    if (name) {
        p->at++;
        *(*to)++ = meanings[name - names];
        return PERCH_OK;
    }
    int32_t unit = c == 'u' ? hex4(p->at + 1) : -1;
    if (unit < 0) {
        return fail(p, "not an escape sequence");
    }
    uint32_t code = (uint32_t)unit;
    p->at += 5;
    if (code >= 0xD800 && code < 0xDC00 && p->at[0] == '\\' && p->at[1] == 'u') {
        int32_t low = hex4(p->at + 2);
        if (low >= 0xDC00 && low < 0xE000) {
            code = 0x10000 + ((code - 0xD800) << 10) + ((uint32_t)low - 0xDC00);
            p->at += 6;
        }
    }
    if (code == 0 || (code >= 0xD800 && code < 0xE000)) {
        return fail(p, code ? "half of a surrogate pair" : "U+0000 in a string");
    }
    *to = put_utf8(*to, code);
    return PERCH_OK;
}

/* A string at its opening quote, decoded where it stands. */
static perch_status parse_string(parser *p, const char **out, size_t *n) {
    char *start = ++p->at, *to = start;
    while (*p->at != '"') {
        if (*p->at == '\\') {
            p->at++;
            perch_status status = parse_escape(p, &to);
            if (status != PERCH_OK) {
                return status;
            }
            continue;
        }
        if ((unsigned char)*p->at < 0x20) {
            return fail(p, p->at == p->end ? "the text ends within a string" : "a control character in a string");
        }
        size_t n_char = utf8_bytes(p->at);
        if (n_char == 0) {
            return fail(p, "not UTF-8");
        }
        memmove(to, p->at, n_char);
        to += n_char;
        p->at += n_char;
    }
    p->at++;
    *to = 0;
    *out = start;
    *n = (size_t)(to - start);
    return PERCH_OK;
}

/* ---------------------------------------------------------------- numbers -- */

static bool is_digit(char c) { return c >= '0' && c <= '9'; }

/* strtod reads the decimal point of the host's locale, whichever that is. */
static bool to_real(const char *from, size_t n, double *out) {
    char text[128], *end;
    const char *point = localeconv()->decimal_point;
    size_t n_point = strlen(point), at = 0;
    for (size_t i = 0; i < n; i++) {
        if (at + n_point >= sizeof text) {
            return false;
        }
        if (from[i] == '.') {
            memcpy(text + at, point, n_point);
            at += n_point;
        } else {
            text[at++] = from[i];
        }
    }
    text[at] = 0;
    *out = strtod(text, &end);
    return *end == 0 && isfinite(*out);
}

static perch_status parse_number(parser *p, jv *out) {
    const char *start = p->at;
    bool is_integer = true;
    p->at += *p->at == '-';
    if (!is_digit(*p->at) || (*p->at == '0' && is_digit(p->at[1]))) {
        return fail(p, "not a number");
    }
    while (is_digit(*p->at)) {
        p->at++;
    }
    if (*p->at == '.') {
        is_integer = false;
        if (!is_digit(*++p->at)) {
            return fail(p, "not a number");
        }
        while (is_digit(*p->at)) {
            p->at++;
        }
    }
    if (*p->at == 'e' || *p->at == 'E') {
        is_integer = false;
        p->at++;
        p->at += *p->at == '+' || *p->at == '-';
        if (!is_digit(*p->at)) {
            return fail(p, "not a number");
        }
        while (is_digit(*p->at)) {
            p->at++;
        }
    }
    if (is_integer) {
        errno = 0;
        out->type = JV_INTEGER;
        out->as.integer = strtoll(start, NULL, 10);
        if (errno == 0) {
            return PERCH_OK;
        }
    }
    out->type = JV_REAL;
    return to_real(start, (size_t)(p->at - start), &out->as.real) ? PERCH_OK : fail(p, "a number beyond a double");
}

/* -------------------------------------------------------------- containers -- */

static int by_key(const void *a, const void *b) { return strcmp(((const jv *)a)->key, ((const jv *)b)->key); }

/* Moves the values above `base` on the stack to where they stay, as the children of out. */
static perch_status close_container(parser *p, size_t base, jv *out) {
    jv *children = p->values + p->n_values;
    size_t n = p->n_stack - base;
    if (n > UINT32_MAX) {
        return fail(p, "too many values");
    }
    memcpy(children, p->stack + base, n * sizeof *children);
    p->n_stack = base;
    p->n_values += n;
    p->depth--;
    out->n = (uint32_t)n;
    out->as.children = children;
    if (out->type == JV_OBJECT && n > 1) {
        qsort(children, n, sizeof *children, by_key);
        for (size_t i = 1; i < n; i++) {
            if (strcmp(children[i - 1].key, children[i].key) == 0) {
                char what[96];
                snprintf(what, sizeof what, "the key \"%.64s\" stands there twice", children[i].key);
                return fail(p, what);
            }
        }
    }
    return PERCH_OK;
}

static perch_status parse_container(parser *p, jv *out) {
    bool is_object = *p->at == '{';
    const char closing = is_object ? '}' : ']';
    size_t base = p->n_stack, n_key;
    perch_status status;
    out->type = is_object ? JV_OBJECT : JV_ARRAY;
    if (++p->depth > JV_MAX_DEPTH) {
        return fail(p, "nested too deeply");
    }
    p->at++;
    skip_space(p);
    if (*p->at == closing) {
        p->at++;
        return close_container(p, base, out);
    }
    for (;;) {
        const char *key = NULL;
        if (is_object) {
            skip_space(p);
            if (*p->at != '"') {
                return fail(p, "a key is expected");
            }
            if ((status = parse_string(p, &key, &n_key)) != PERCH_OK) {
                return status;
            }
            skip_space(p);
            if (*p->at++ != ':') {
                p->at--;
                return fail(p, "':' is expected");
            }
        }
        if ((status = parse_value(p, key)) != PERCH_OK) {
            return status;
        }
        skip_space(p);
        if (*p->at == closing) {
            p->at++;
            return close_container(p, base, out);
        }
        if (*p->at != ',') {
            return fail(p, is_object ? "',' or '}' is expected" : "',' or ']' is expected");
        }
        p->at++;
    }
}

static bool take_word(parser *p, const char *word) {
    size_t n = strlen(word);
    if (strncmp(p->at, word, n) != 0) {
        return false;
    }
    p->at += n;
    return true;
}

/* One value, pushed onto the stack. */
static perch_status parse_value(parser *p, const char *key) {
    jv value = {.type = JV_NULL, .key = key};
    perch_status status = PERCH_OK;
    size_t n = 0;
    skip_space(p);
    if (*p->at == '"') {
        value.type = JV_STRING;
        status = parse_string(p, &value.as.string, &n);
        value.n = (uint32_t)n;
    } else if (*p->at == '{' || *p->at == '[') {
        status = parse_container(p, &value);
    } else if (*p->at == '-' || is_digit(*p->at)) {
        status = parse_number(p, &value);
    } else if (take_word(p, "true")) {
        value.type = JV_TRUE;
    } else if (take_word(p, "false")) {
        value.type = JV_FALSE;
    } else if (!take_word(p, "null")) {
        status = fail(p, p->at == p->end ? "the text ends where a value is expected" : "a value is expected");
    }
    if (status == PERCH_OK) {
        p->stack[p->n_stack++] = value;
    }
    return status;
}

/* ------------------------------------------------------------------ whole -- */

perch_status jv_parse(const char *text, size_t n_bytes, const char *where, jv_doc *out, perch_error *err) {
    parser p = {.where = where, .err = err};
    size_t n_most = 1;
    perch_status status;
    *out = (jv_doc){0};
    if (n_bytes > UINT32_MAX) {
        return err_set(err, PERCH_E_FORMAT, "%s: more than 4 GiB of JSON", where);
    }
    for (size_t i = 0; i < n_bytes; i++) {
        n_most += text[i] == ',' || text[i] == '[' || text[i] == '{';
    }
    out->text = calloc(n_bytes + 1, 1); /* closed by a 0 */
    out->values = malloc(n_most * sizeof *out->values);
    p.stack = malloc(n_most * sizeof *p.stack);
    if (!out->text || !out->values || !p.stack) {
        status = err_nomem(err, "JSON");
        goto done;
    }
    if (n_bytes > 0) {
        memcpy(out->text, text, n_bytes);
    }
    p.begin = p.at = out->text;
    p.end = out->text + n_bytes;
    p.values = out->values;
    status = parse_value(&p, NULL);
    if (status == PERCH_OK) {
        skip_space(&p);
        status = p.at == p.end ? PERCH_OK : fail(&p, "more behind the value");
    }
    if (status == PERCH_OK) {
        out->values[p.n_values] = p.stack[0];
        out->root = &out->values[p.n_values];
    }
done:
    free(p.stack);
    if (status != PERCH_OK) {
        jv_free(out);
    }
    return status;
}

void jv_free(jv_doc *doc) {
    free(doc->values);
    free(doc->text);
    *doc = (jv_doc){0};
}

static int key_to_value(const void *key, const void *value) { return strcmp(key, ((const jv *)value)->key); }

const jv *jv_get(const jv *object, const char *key) {
    return object && object->type == JV_OBJECT && object->n > 0
               ? bsearch(key, object->as.children, object->n, sizeof *object->as.children, key_to_value)
               : NULL;
}

const char *jv_string(const jv *value) { return value && value->type == JV_STRING ? value->as.string : NULL; }
