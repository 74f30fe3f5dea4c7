/*
 * jnode: a value of a JSON document that knows where it stands, so that every complaint names its place:
 * "tokenizer.json: pre_tokenizer.pretokenizers[0].pattern: must be ...". Nodes live on the stack; a parent outlives its
 * children. Getters return E_FORMAT.
 */
#ifndef PERCH_ENGINE_TEXT_JNODE_H
#define PERCH_ENGINE_TEXT_JNODE_H

#include "base/jv.h"

struct jnode {
    const struct jnode *parent; /* NULL: the document */
    const char *key;            /* the document's name, or the key in the parent, or NULL: an element */
    size_t index;               /* which element */
    const jv *value;            /* NULL if the key is not there */
};

/* A string's bytes, borrowed from the document and closed by a 0 that n does not count. */
struct jtext {
    const char *data;
    size_t n;
};

struct jnode jnode_top(const jv_doc *doc, const char *name);
struct jnode jnode_get(const struct jnode *object, const char *key);

/* for (child = jnode_first(&list); child.value; child = jnode_next(&child)): the children of an array or object. */
struct jnode jnode_first(const struct jnode *list);
struct jnode jnode_next(const struct jnode *child);

/* The key of an object's child. */
struct jtext jnode_key(const struct jnode *child);

/* Not there, or null. */
bool jnode_absent(const struct jnode *node);
bool jnode_is(const struct jnode *node, jv_type type);

/* "name: a.b[2].c: message" */
perch_status jnode_fail(const struct jnode *node, perch_status status, perch_error *err, const char *format, ...)
    BASE_PRINTF(4, 5);

perch_status jnode_want_object(const struct jnode *node, perch_error *err);
perch_status jnode_want_array(const struct jnode *node, perch_error *err);
perch_status jnode_text(const struct jnode *node, struct jtext *out, perch_error *err);
perch_status jnode_character(const struct jnode *node, struct jtext *out, perch_error *err); /* a string of one */
perch_status jnode_bool(const struct jnode *node, bool fallback, bool *out, perch_error *err);
perch_status jnode_need_bool(const struct jnode *node, bool *out, perch_error *err);
perch_status jnode_integer(const struct jnode *node, int64_t low, int64_t high, int64_t *out, perch_error *err);

/* A string that is one of names[n]; E_UNSUPPORTED where it is another. */
perch_status jnode_choice(const struct jnode *node, const char *const *names, size_t n, size_t *out, perch_error *err);

/* A copy of a string on the heap, not closed by a 0. */
perch_status jnode_copy(const struct jnode *node, char **out, size_t *n, perch_error *err);

/* The string under "type" of an object. */
perch_status jnode_type(const struct jnode *object, const char **out, perch_error *err);

/*
 * Every component of a tree of them in its order: sequences ({"type": "Sequence", list_key: [...]}) are laid flat, anything
 * else goes to leaf with its type. The first failure ends it. E_UNSUPPORTED where they are nested too deeply.
 */
typedef perch_status (*jnode_leaf)(const struct jnode *node, const char *type, void *user, perch_error *err);
perch_status jnode_components(const struct jnode *node, const char *list_key, jnode_leaf leaf, void *user,
                              perch_error *err);

/* E_UNSUPPORTED for a "type" that is none of the known. */
perch_status jnode_unknown_type(const struct jnode *object, const char *type, perch_error *err);

#endif
