/*
 * jv: JSON values, read by cJSON and laid out for looking up. cJSON, because every allocation of it may fail: Jansson's
 * parser, out of memory, drops characters of long strings without a word, or aborts (docs/adr/0013). On top of cJSON this
 * refuses what would make two readings of a text: bytes that are no UTF-8, repeated keys, numbers that are no finite double,
 * U+0000 in a string (so that strings are C strings), anything behind the value.
 */
#ifndef PERCH_BASE_JV_H
#define PERCH_BASE_JV_H

#include "base/base.h"

typedef enum jv_type { JV_NULL = 0, JV_FALSE, JV_TRUE, JV_INTEGER, JV_REAL, JV_STRING, JV_ARRAY, JV_OBJECT } jv_type;

typedef struct jv {
    jv_type type;
    uint32_t n;      /* ARRAY, OBJECT: children; STRING: bytes */
    const char *key; /* of a child of an object */
    union {
        int64_t integer; /* a number without a fraction, up to 2^53 either way, where a double is exact */
        double real;
        const char *string;        /* UTF-8, 0-terminated */
        const struct jv *children; /* [n], an object's sorted by key */
    } as;
} jv;

/* A parsed text. Values and strings live until jv_free. */
typedef struct jv_doc {
    const jv *root;
    jv *values;
    void *tree; /* cJSON's */
} jv_doc;

/* E_FORMAT "where: line 3: ...", E_NOMEM; *out is then all zero. The text is not needed afterwards. */
perch_status jv_parse(const char *text, size_t n_bytes, const char *where, jv_doc *out, perch_error *err);
void jv_free(jv_doc *doc); /* fine on all zero */

/* The member of that name; NULL where there is none or where object is no object (or NULL itself). */
const jv *jv_get(const jv *object, const char *key);

/* The string, or NULL where value is none (or NULL itself). */
const char *jv_string(const jv *value);

#endif
