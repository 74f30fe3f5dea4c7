/* jdoc: the JSON reader. */
#include "engine/text/jdoc.h"
#include "engine/text/utf8.h"

#include <stdlib.h>
#include <string.h>

#define NO_PARENT UINT32_MAX

struct reader {
    const char *json; /* [n] */
    size_t n, at;
    size_t text_bytes;
    uint32_t open; /* the innermost container that is not closed; while open, its end is the one around it */
    const char *name;
    struct jdoc *doc;
    perch_error *err;
};

void jdoc_free(struct jdoc *doc) {
    free(doc->values);
    free(doc->text);
    *doc = (struct jdoc){0};
}

static perch_status fail(const struct reader *r, const char *reason) {
    size_t line = 1, end = r->at < r->n ? r->at : r->n;
    for (size_t i = 0; i < end; i++) {
        line += r->json[i] == '\n';
    }
    return err_set(r->err, PERCH_E_FORMAT, "%s: line %zu: %s", r->name, line, reason);
}

static char look(const struct reader *r) { return r->at < r->n ? r->json[r->at] : '\0'; }

static void skip_space(struct reader *r) {
    while (look(r) == ' ' || look(r) == '\n' || look(r) == '\r' || look(r) == '\t') {
        r->at++;
    }
}

static int hex_value(char c) {
    return c >= '0' && c <= '9'   ? c - '0'
           : c >= 'a' && c <= 'f' ? c - 'a' + 10
           : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                  : -1;
}

/* The four digits behind \u. */
static bool read_unit(struct reader *r, uint32_t *out) {
    *out = 0;
    for (size_t i = 0; i < 4; i++, r->at++) {
        int digit = hex_value(look(r));
        if (digit < 0) {
            return false;
        }
        *out = *out << 4 | (uint32_t)digit;
    }
    return true;
}

/* Behind a backslash. The text never outgrows its place: an escape is longer than what it stands for. */
static perch_status read_escape(struct reader *r) {
    static const char plain[] = "\"\\/bfnrt", meaning[] = "\"\\/\b\f\n\r\t";
    char *text = r->doc->text + r->text_bytes;
    char c = look(r);
    const char *at = c ? strchr(plain, c) : NULL;
    if (at) {
        *text = meaning[at - plain];
        r->text_bytes++;
        r->at++;
        return PERCH_OK;
    }
    uint32_t code, low;
    if (c != 'u') {
        return fail(r, "an escape that JSON does not have");
    }
    r->at++;
    if (!read_unit(r, &code)) {
        return fail(r, "\\u without four hexadecimal digits");
    }
    if (code >= 0xD800 && code <= 0xDBFF && look(r) == '\\' && r->at + 1 < r->n && r->json[r->at + 1] == 'u') {
        r->at += 2;
        if (!read_unit(r, &low)) {
            return fail(r, "\\u without four hexadecimal digits");
        }
        if (low < 0xDC00 || low > 0xDFFF) {
            return fail(r, "half a surrogate pair");
        }
        code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
    }
    if (code >= 0xD800 && code <= 0xDFFF) {
        return fail(r, "half a surrogate pair");
    }
    r->text_bytes += utf8_encode(code, text);
    return PERCH_OK;
}

/* A string, at its opening quote. */
static perch_status read_string(struct reader *r, uint32_t *at, uint32_t *n) {
    *at = (uint32_t)r->text_bytes;
    for (r->at++; look(r) != '"';) {
        uint32_t code;
        int step = utf8_step(r->json + r->at, r->n - r->at, &code);
        if (step <= 0) {
            return fail(r, r->at < r->n ? "a byte that is not UTF-8" : "a string without an end");
        }
        if (code < 0x20) {
            return fail(r, "a control character in a string");
        }
        if (code == '\\') {
            r->at++;
            perch_status status = read_escape(r);
            if (status != PERCH_OK) {
                return status;
            }
            continue;
        }
        memcpy(r->doc->text + r->text_bytes, r->json + r->at, (size_t)step);
        r->text_bytes += (size_t)step;
        r->at += (size_t)step;
    }
    r->at++;
    *n = (uint32_t)r->text_bytes - *at;
    r->doc->text[r->text_bytes++] = 0;
    return PERCH_OK;
}

static size_t skip_digits(struct reader *r) {
    size_t from = r->at;
    while (look(r) >= '0' && look(r) <= '9') {
        r->at++;
    }
    return r->at - from;
}

static perch_status read_number(struct reader *r, struct jvalue *out) {
    bool negative = look(r) == '-', fits = true;
    r->at += negative;
    size_t from = r->at, digits = skip_digits(r);
    if (digits == 0 || (digits > 1 && r->json[from] == '0')) {
        return fail(r, "not a JSON value");
    }
    int64_t value = 0;
    for (size_t i = from; i < from + digits && fits; i++) {
        int digit = r->json[i] - '0';
        fits = !__builtin_mul_overflow(value, 10, &value) &&
               !__builtin_add_overflow(value, negative ? -digit : digit, &value);
    }
    if (look(r) == '.') {
        r->at++;
        fits = false;
        if (skip_digits(r) == 0) {
            return fail(r, "a point without digits");
        }
    }
    if (look(r) == 'e' || look(r) == 'E') {
        r->at++;
        fits = false;
        r->at += look(r) == '+' || look(r) == '-';
        if (skip_digits(r) == 0) {
            return fail(r, "an exponent without digits");
        }
    }
    out->kind = fits ? J_INTEGER : J_NUMBER;
    out->integer = fits ? value : 0;
    return PERCH_OK;
}

static bool read_word(struct reader *r, const char *word) {
    size_t n = strlen(word);
    if (r->n - r->at < n || memcmp(r->json + r->at, word, n) != 0) {
        return false;
    }
    r->at += n;
    return true;
}

/* A value that is none of the containers, or the beginning of one. */
static perch_status read_value(struct reader *r, struct jvalue *out) {
    switch (look(r)) {
    case '{':
    case '[':
        out->kind = look(r) == '{' ? J_OBJECT : J_ARRAY;
        r->at++;
        return PERCH_OK;
    case '"':
        out->kind = J_STRING;
        return read_string(r, &out->at, &out->n);
    case 'n':
        out->kind = J_NULL;
        return read_word(r, "null") ? PERCH_OK : fail(r, "not a JSON value");
    case 't':
        out->kind = J_TRUE;
        return read_word(r, "true") ? PERCH_OK : fail(r, "not a JSON value");
    case 'f':
        out->kind = J_FALSE;
        return read_word(r, "false") ? PERCH_OK : fail(r, "not a JSON value");
    default:
        return read_number(r, out);
    }
}

static uint32_t hash(const char *text, size_t n) {
    uint32_t h = 0x811C9DC5u;
    for (size_t i = 0; i < n; i++) {
        h = (h ^ (unsigned char)text[i]) * 0x01000193u;
    }
    return h ^ h >> 15;
}

/* Whether two of an object's keys are the same, by a table of its members. */
static perch_status check_keys(const struct reader *r, uint32_t object) {
    const struct jvalue *values = r->doc->values;
    uint32_t n = values[object].n, slots = 4;
    if (n < 2) {
        return PERCH_OK;
    }
    while (slots < 2 * n) {
        slots *= 2;
    }
    uint32_t *table = calloc(slots, sizeof *table); /* a member's index; 0 is free, as the document is no member */
    if (!table) {
        return err_nomem(r->err, "a JSON object");
    }
    perch_status status = PERCH_OK;
    for (uint32_t i = object + 1; i < r->doc->n && status == PERCH_OK; i = values[i].end) {
        const char *key = r->doc->text + values[i].key;
        uint32_t slot = hash(key, values[i].key_bytes) & (slots - 1);
        for (; table[slot] && status == PERCH_OK; slot = (slot + 1) & (slots - 1)) {
            const struct jvalue *other = &values[table[slot]];
            if (other->key_bytes == values[i].key_bytes &&
                memcmp(r->doc->text + other->key, key, values[i].key_bytes) == 0) {
                status = fail(r, "an object that has a key twice");
            }
        }
        table[slot] = i;
    }
    free(table);
    return status;
}

/* Closes the innermost container if its end stands here. */
static perch_status close_container(struct reader *r, bool *closed) {
    struct jvalue *container = &r->doc->values[r->open];
    *closed = look(r) == (container->kind == J_OBJECT ? '}' : ']');
    if (!*closed) {
        return PERCH_OK;
    }
    r->at++;
    perch_status status = container->kind == J_OBJECT ? check_keys(r, r->open) : PERCH_OK;
    r->open = container->end;
    container->end = (uint32_t)r->doc->n;
    return status;
}

/* Reads a key if an object is open, then a value, and takes it up. */
static perch_status read_member(struct reader *r) {
    struct jvalue value = {0};
    perch_status status = PERCH_OK;
    if (r->open != NO_PARENT && r->doc->values[r->open].kind == J_OBJECT) {
        if (look(r) != '"') {
            return fail(r, "a member without a key");
        }
        status = read_string(r, &value.key, &value.key_bytes);
        if (status != PERCH_OK) {
            return status;
        }
        skip_space(r);
        if (look(r) != ':') {
            return fail(r, "a key without a colon");
        }
        r->at++;
        skip_space(r);
    }
    status = read_value(r, &value);
    void *values = r->doc->values;
    if (status == PERCH_OK) {
        status = array_reserve(&values, &r->doc->cap, r->doc->n + 1, sizeof *r->doc->values, r->err);
        r->doc->values = values;
    }
    if (status != PERCH_OK) {
        return status;
    }
    if (r->open != NO_PARENT) {
        r->doc->values[r->open].n++;
    }
    uint32_t index = (uint32_t)r->doc->n++;
    bool container = value.kind == J_ARRAY || value.kind == J_OBJECT;
    value.end = container ? r->open : index + 1;
    r->open = container ? index : r->open;
    r->doc->values[index] = value;
    return PERCH_OK;
}

/* What stands behind a value: the ends of containers, then a comma, or the document's end. */
static perch_status read_ends(struct reader *r, bool *more) {
    for (;;) {
        skip_space(r);
        *more = r->open != NO_PARENT;
        if (!*more) {
            return r->at == r->n ? PERCH_OK : fail(r, "something behind the document");
        }
        if (look(r) == ',') {
            r->at++;
            return PERCH_OK;
        }
        bool closed;
        perch_status status = close_container(r, &closed);
        if (status != PERCH_OK || !closed) {
            return closed ? status : fail(r, "neither a comma nor the end of an array or object");
        }
    }
}

static perch_status read_document(struct reader *r) {
    bool more = true;
    while (more) {
        skip_space(r);
        perch_status status = read_member(r);
        /* A container that was just opened may be empty. */
        bool opened = status == PERCH_OK && r->open == r->doc->n - 1, closed = false;
        if (opened) {
            skip_space(r);
            status = close_container(r, &closed);
        }
        if (status == PERCH_OK && (!opened || closed)) {
            status = read_ends(r, &more);
        }
        if (status != PERCH_OK) {
            return status;
        }
    }
    return PERCH_OK;
}

perch_status jdoc_parse(const char *json, size_t n_bytes, const char *name, struct jdoc *out, perch_error *err) {
    struct reader r = {.json = json, .n = n_bytes, .open = NO_PARENT, .name = name, .doc = out, .err = err};
    *out = (struct jdoc){0};
    if (n_bytes >= NO_PARENT) {
        return err_set(err, PERCH_E_FORMAT, "%s: %zu bytes are too many", name, n_bytes);
    }
    out->text = malloc(n_bytes + 1);
    perch_status status = out->text ? read_document(&r) : err_nomem(err, "a JSON document");
    if (status != PERCH_OK) {
        jdoc_free(out);
    }
    return status;
}
