/* jv: see jv.h. */
#include "base/jv.h"

#include <cjson/cJSON.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#define MAX_EXACT 9007199254740992.0 /* 2^53 */

void jv_free(jv_doc *doc) {
    free(doc->values);
    cJSON_Delete(doc->tree);
    *doc = (jv_doc){NULL, NULL, NULL};
}

/* -------------------------------------------------------------------- the text -- */

/* E_FORMAT at a place of the text, by its line. */
static perch_status fail_at(const char *text, size_t at, const char *where, const char *reason, perch_error *err) {
    size_t line = 1;
    for (size_t i = 0; i < at; i++) {
        line += text[i] == '\n';
    }
    return err_set(err, PERCH_E_FORMAT, "%s: line %zu: %s", where, line, reason);
}

/* What cJSON lets pass and no text should hold: bytes that are no UTF-8, control characters, the escape of U+0000. */
static perch_status check_text(const char *text, size_t n_bytes, const char *where, perch_error *err) {
    for (size_t at = 0; at < n_bytes;) {
        unsigned char c = (unsigned char)text[at];
        utf8proc_int32_t codepoint = c;
        utf8proc_ssize_t n = 1;
        if (c >= 0x80) {
            n = utf8proc_iterate((const utf8proc_uint8_t *)text + at, (utf8proc_ssize_t)(n_bytes - at), &codepoint);
        }
        if (n < 1) {
            return fail_at(text, at, where, "not UTF-8", err);
        }
        if (c < 0x20 && c != '\t' && c != '\n' && c != '\r') {
            return fail_at(text, at, where, "a control character", err);
        }
        if (c == '\\' && at + 1 < n_bytes) { /* of valid JSON only strings hold one */
            if (n_bytes - at >= 6 && !memcmp(text + at, "\\u0000", 6)) {
                return fail_at(text, at, where, "U+0000 in a string", err);
            }
            n = (unsigned char)text[at + 1] < 0x80 ? 2 : 1;
        }
        at += (size_t)n;
    }
    return PERCH_OK;
}

static bool is_space(char c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r'; }

/* --------------------------------------------------------------------- the tree -- */

static size_t count(const cJSON *node) {
    size_t n = 1;
    for (const cJSON *child = node->child; child; child = child->next) {
        n += count(child);
    }
    return n;
}

static int compare_keys(const void *a, const void *b) { return strcmp(((const jv *)a)->key, ((const jv *)b)->key); }

typedef struct filler {
    jv *free; /* the next unused value */
    const char *where;
    perch_error *err;
} filler;

static perch_status fill(filler *f, const cJSON *node, jv *out);

static perch_status fill_children(filler *f, const cJSON *node, jv *out) {
    jv *children = f->free;
    uint32_t n = 0;
    for (const cJSON *child = node->child; child; child = child->next) {
        n++;
    }
    f->free += n;
    out->n = n;
    out->as.children = children;
    n = 0;
    for (const cJSON *child = node->child; child; child = child->next) {
        perch_status status = fill(f, child, &children[n]);
        if (status) {
            return status;
        }
        children[n++].key = child->string;
    }
    if (out->type == JV_OBJECT && n > 1) {
        qsort(children, n, sizeof *children, compare_keys);
        for (uint32_t i = 1; i < n; i++) {
            if (!strcmp(children[i - 1].key, children[i].key)) {
                return err_set(f->err, PERCH_E_FORMAT, "%s: the key \"%.80s\" stands there twice", f->where,
                               children[i].key);
            }
        }
    }
    return PERCH_OK;
}

static perch_status fill_number(const filler *f, double number, jv *out) {
    if (!isfinite(number)) {
        return err_set(f->err, PERCH_E_FORMAT, "%s: a number is beyond a double", f->where);
    }
    if (fabs(number) <= MAX_EXACT && number == floor(number)) {
        out->type = JV_INTEGER;
        out->as.integer = (int64_t)number;
    } else {
        out->type = JV_REAL;
        out->as.real = number;
    }
    return PERCH_OK;
}

/* Recursion is as deep as cJSON let the text be nested: CJSON_NESTING_LIMIT, 1000. */
static perch_status fill(filler *f, const cJSON *node, jv *out) {
    *out = (jv){.type = JV_NULL};
    if (cJSON_IsNumber(node)) {
        return fill_number(f, node->valuedouble, out);
    }
    if (cJSON_IsArray(node) || cJSON_IsObject(node)) {
        out->type = cJSON_IsArray(node) ? JV_ARRAY : JV_OBJECT;
        return fill_children(f, node, out);
    }
    if (cJSON_IsString(node)) {
        out->type = JV_STRING;
        out->as.string = node->valuestring;
        out->n = (uint32_t)strlen(node->valuestring);
    } else if (cJSON_IsBool(node)) {
        out->type = cJSON_IsTrue(node) ? JV_TRUE : JV_FALSE;
    }
    return PERCH_OK;
}

/* ------------------------------------------------------------------------ parse -- */

static perch_status parse_tree(const char *text, size_t n_bytes, const char *where, cJSON **out, perch_error *err) {
    const char *end = text;
    /* cJSON doesn't say why it failed, but the allocator does; nothing that cJSON calls sets errno back to 0. */
    int errno_before = errno;
    errno = 0;
    *out = n_bytes ? cJSON_ParseWithLengthOpts(text, n_bytes, &end, 0) : NULL;
    bool no_memory = !*out && errno == ENOMEM;
    errno = errno_before;
    if (no_memory) {
        return err_nomem(err, "a JSON text");
    }
    size_t at = (size_t)(end - text);
    if (!*out) {
        return fail_at(text, at < n_bytes ? at : n_bytes, where, "not JSON", err);
    }
    while (at < n_bytes && is_space(text[at])) {
        at++;
    }
    return at == n_bytes ? PERCH_OK : fail_at(text, at, where, "there is more behind the value", err);
}

perch_status jv_parse(const char *text, size_t n_bytes, const char *where, jv_doc *out, perch_error *err) {
    cJSON *tree = NULL;
    *out = (jv_doc){NULL, NULL, NULL};
    perch_status status = check_text(text, n_bytes, where, err);
    if (!status) {
        status = parse_tree(text, n_bytes, where, &tree, err);
        out->tree = tree;
    }
    if (!status) {
        out->values = calloc(count(tree), sizeof *out->values);
        status = out->values ? PERCH_OK : err_nomem(err, "a JSON text");
    }
    if (!status) {
        filler f = {.free = out->values + 1, .where = where, .err = err};
        out->root = out->values;
        status = fill(&f, tree, out->values);
    }
    if (status) {
        jv_free(out);
    }
    return status;
}

/* ---------------------------------------------------------------------- look up -- */

const jv *jv_get(const jv *object, const char *key) {
    if (!object || object->type != JV_OBJECT) {
        return NULL;
    }
    const jv wanted = {.key = key};
    return bsearch(&wanted, object->as.children, object->n, sizeof wanted, compare_keys);
}

const char *jv_string(const jv *value) { return value && value->type == JV_STRING ? value->as.string : NULL; }
