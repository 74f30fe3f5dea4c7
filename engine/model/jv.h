/*
 * jv: JSON values. A strict reader (RFC 8259) for text that may be hostile and for memory that may run out: three allocations
 * whatever the text, no recursion deeper than JV_MAX_DEPTH, and every failure a status. (Jansson's parser, out of memory, drops
 * characters of long strings without a word, or aborts.) Beyond the standard it refuses duplicate keys, numbers that
 * don't fit a double, and the character U+0000, so that strings are C strings. An integer beyond 64 bits becomes a real.
 */
#ifndef PERCH_ENGINE_MODEL_JV_H
#define PERCH_ENGINE_MODEL_JV_H

#include "base/base.h"

#define JV_MAX_DEPTH 64

typedef enum jv_type { JV_NULL = 0, JV_FALSE, JV_TRUE, JV_INTEGER, JV_REAL, JV_STRING, JV_ARRAY, JV_OBJECT } jv_type;

typedef struct jv {
    jv_type type;
    uint32_t n;      /* ARRAY, OBJECT: children; STRING: bytes */
    const char *key; /* of a child of an object */
    union {
        int64_t integer;
        double real;
        const char *string;        /* UTF-8, 0-terminated */
        const struct jv *children; /* [n], an object's sorted by key */
    } as;
} jv;

/* A parsed text. Values and strings live until jv_free. */
typedef struct jv_doc {
    const jv *root;
    jv *values;
    char *text;
} jv_doc;

/* E_FORMAT "where: line 3: ...", E_NOMEM; *out is then all zero. The text is not needed afterwards. */
perch_status jv_parse(const char *text, size_t n_bytes, const char *where, jv_doc *out, perch_error *err);
void jv_free(jv_doc *doc); /* fine on all zero */

/* The member of that name; NULL where there is none or where object is no object (or NULL itself). */
const jv *jv_get(const jv *object, const char *key);

/* The string, or NULL where value is none (or NULL itself). */
const char *jv_string(const jv *value);

#endif
