/* jnode: typed access to JSON with errors that name the place. */
#include "engine/text/jnode.h"
#include "engine/text/utf8.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct jnode jnode_top(const jv_doc *doc, const char *name) {
    return (struct jnode){.key = name, .value = doc->root};
}

struct jnode jnode_get(const struct jnode *object, const char *key) {
    return (struct jnode){.parent = object, .key = key, .value = jv_get(object->value, key)};
}

static struct jnode child_at(const struct jnode *parent, size_t index) {
    struct jnode child = {.parent = parent, .index = index};
    if (index < parent->value->n) {
        child.value = &parent->value->as.children[index];
        child.key = child.value->key;
    }
    return child;
}

struct jnode jnode_first(const struct jnode *list) {
    return jnode_is(list, JV_ARRAY) || jnode_is(list, JV_OBJECT) ? child_at(list, 0) : (struct jnode){.parent = list};
}

struct jnode jnode_next(const struct jnode *child) {
    return child_at(child->parent, child->index + 1);
}

struct jtext jnode_key(const struct jnode *child) {
    return (struct jtext){child->key, strlen(child->key)};
}

bool jnode_is(const struct jnode *node, jv_type type) { return node->value && node->value->type == type; }

bool jnode_absent(const struct jnode *node) { return !node->value || node->value->type == JV_NULL; }

static void put(char *out, size_t cap, size_t *n, const char *text) {
    size_t length = strlen(text), room = cap - 1 - *n;
    length = length < room ? length : room;
    memcpy(out + *n, text, length);
    *n += length;
    out[*n] = 0;
}

static void put_path(const struct jnode *node, char *out, size_t cap, size_t *n) {
    if (!node->parent) {
        /* Of a long path the end says more, and the place within the document most. */
        size_t length = strlen(node->key);
        put(out, cap, n, length > cap / 2 ? "..." : "");
        put(out, cap, n, node->key + (length > cap / 2 ? length - cap / 2 : 0));
        return;
    }
    put_path(node->parent, out, cap, n);
    if (!node->key) {
        char index[32];
        snprintf(index, sizeof index, "[%zu]", node->index);
        put(out, cap, n, index);
        return;
    }
    put(out, cap, n, node->parent->parent ? "." : ": ");
    put(out, cap, n, node->key);
}

/* A message is one line, whatever the file has in its keys and texts. */
static void one_line(char *text) {
    for (; *text; text++) {
        *text = (unsigned char)*text < 0x20 ? '?' : *text;
    }
}

perch_status jnode_fail(const struct jnode *node, perch_status status, perch_error *err, const char *format, ...) {
    char path[320] = "", reason[256];
    size_t n = 0;
    va_list args;
    va_start(args, format);
    vsnprintf(reason, sizeof reason, format, args);
    va_end(args);
    put_path(node, path, sizeof path, &n);
    one_line(path);
    one_line(reason);
    return err_set(err, status, "%s: %s", path, reason);
}

perch_status jnode_want_object(const struct jnode *node, perch_error *err) {
    return jnode_is(node, JV_OBJECT) ? PERCH_OK : jnode_fail(node, PERCH_E_FORMAT, err, "must be an object");
}

perch_status jnode_want_array(const struct jnode *node, perch_error *err) {
    return jnode_is(node, JV_ARRAY) ? PERCH_OK : jnode_fail(node, PERCH_E_FORMAT, err, "must be an array");
}

perch_status jnode_text(const struct jnode *node, struct jtext *out, perch_error *err) {
    *out = (struct jtext){"", 0};
    if (!jnode_is(node, JV_STRING)) {
        return jnode_fail(node, PERCH_E_FORMAT, err, "must be a string");
    }
    *out = (struct jtext){node->value->as.string, node->value->n};
    return PERCH_OK;
}

perch_status jnode_character(const struct jnode *node, struct jtext *out, perch_error *err) {
    perch_status status = jnode_text(node, out, err);
    return status != PERCH_OK || (out->n && utf8_length(*out->data) == out->n)
               ? status
               : jnode_fail(node, PERCH_E_FORMAT, err, "must be one character");
}

perch_status jnode_bool(const struct jnode *node, bool fallback, bool *out, perch_error *err) {
    *out = jnode_absent(node) ? fallback : jnode_is(node, JV_TRUE);
    return jnode_absent(node) || *out || jnode_is(node, JV_FALSE)
               ? PERCH_OK
               : jnode_fail(node, PERCH_E_FORMAT, err, "must be true or false");
}

perch_status jnode_need_bool(const struct jnode *node, bool *out, perch_error *err) {
    return jnode_absent(node) ? jnode_fail(node, PERCH_E_FORMAT, err, "is missing") : jnode_bool(node, false, out, err);
}

perch_status jnode_integer(const struct jnode *node, int64_t low, int64_t high, int64_t *out, perch_error *err) {
    if (!jnode_is(node, JV_INTEGER)) {
        return jnode_fail(node, PERCH_E_FORMAT, err, "must be an integer");
    }
    int64_t value = node->value->as.integer;
    if (value < low || value > high) {
        return jnode_fail(node, PERCH_E_FORMAT, err, "%lld is not within %lld..%lld", (long long)value, (long long)low,
                          (long long)high);
    }
    *out = value;
    return PERCH_OK;
}

perch_status jnode_choice(const struct jnode *node, const char *const *names, size_t n, size_t *out, perch_error *err) {
    struct jtext text;
    perch_status status = jnode_text(node, &text, err);
    if (status != PERCH_OK) {
        return status;
    }
    for (size_t i = 0; i < n; i++) {
        if (strcmp(text.data, names[i]) == 0) {
            *out = i;
            return PERCH_OK;
        }
    }
    return jnode_fail(node, PERCH_E_UNSUPPORTED, err, "\"%.80s\" is not supported", text.data);
}

perch_status jnode_copy(const struct jnode *node, char **out, size_t *n, perch_error *err) {
    struct jtext text;
    perch_status status = jnode_text(node, &text, err);
    if (status != PERCH_OK) {
        return status;
    }
    *out = malloc(text.n + 1);
    if (!*out) {
        return err_nomem(err, "a string");
    }
    memcpy(*out, text.data, text.n);
    *n = text.n;
    return PERCH_OK;
}

perch_status jnode_type(const struct jnode *object, const char **out, perch_error *err) {
    struct jnode type = jnode_get(object, "type");
    struct jtext text;
    perch_status status = jnode_want_object(object, err);
    if (status == PERCH_OK) {
        status = jnode_text(&type, &text, err);
        *out = text.data;
    }
    return status;
}

/* How deep sequences may stand in sequences; nobody writes even two. */
#define MAX_NESTING 16u

static perch_status components(const struct jnode *node, const char *list_key, size_t depth, jnode_leaf leaf,
                               void *user, perch_error *err) {
    const char *type;
    perch_status status = jnode_type(node, &type, err);
    if (status != PERCH_OK) {
        return status;
    }
    if (strcmp(type, "Sequence") != 0) {
        return leaf(node, type, user, err);
    }
    if (depth == MAX_NESTING) {
        return jnode_fail(node, PERCH_E_UNSUPPORTED, err, "sequences are nested too deeply");
    }
    struct jnode list = jnode_get(node, list_key);
    status = jnode_want_array(&list, err);
    for (struct jnode child = jnode_first(&list); child.value && status == PERCH_OK; child = jnode_next(&child)) {
        status = components(&child, list_key, depth + 1, leaf, user, err);
    }
    return status;
}

perch_status jnode_components(const struct jnode *node, const char *list_key, jnode_leaf leaf, void *user,
                              perch_error *err) {
    return components(node, list_key, 0, leaf, user, err);
}

perch_status jnode_unknown_type(const struct jnode *object, const char *type, perch_error *err) {
    struct jnode node = jnode_get(object, "type");
    return jnode_fail(&node, PERCH_E_UNSUPPORTED, err, "\"%.80s\" is not supported", type);
}
