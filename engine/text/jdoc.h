/*
 * jdoc: reads a JSON document (RFC 8259) as a whole. Values lie in one array in the order of the text, each container
 * before its children; strings lie in one run of bytes, each closed by a 0. So a document is two allocations however
 * large it is.
 *
 * Not jansson: that drops characters, and then fails an assertion, where an allocation fails while it reads a token
 * (akheron/jansson issue 362), and it has no place for U+0000 in a key. A host's process must survive both.
 *
 * Strict: duplicate keys, lone surrogates, bytes that are no UTF-8 and anything behind the value are errors. Nesting
 * costs no stack. Numbers other than integers of 64 bits are known to be numbers, but have no value, as no tokenizer
 * needs one.
 */
#ifndef PERCH_ENGINE_TEXT_JDOC_H
#define PERCH_ENGINE_TEXT_JDOC_H

#include "base/base.h"

enum jkind { J_NULL, J_FALSE, J_TRUE, J_INTEGER, J_NUMBER, J_STRING, J_ARRAY, J_OBJECT };

struct jvalue {
    enum jkind kind;
    uint32_t key, key_bytes; /* in an object: where in text the key is */
    uint32_t end;            /* index behind the value and all that is in it */
    uint32_t n;              /* STRING: bytes; ARRAY, OBJECT: children */
    uint32_t at;             /* STRING: where in text it is */
    int64_t integer;
};

struct jdoc {
    struct jvalue *values; /* [n]; the first is the document's */
    size_t n, cap;
    char *text;
};

/* Parses json[n_bytes]; name is for messages. "name: line 3: reason": E_FORMAT; E_NOMEM. */
perch_status jdoc_parse(const char *json, size_t n_bytes, const char *name, struct jdoc *out, perch_error *err);
void jdoc_free(struct jdoc *doc);

#endif
