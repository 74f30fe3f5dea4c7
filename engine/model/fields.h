/*
 * fields: reading one JSON object strictly. Each function looks up one key and leaves *out as it is where the key is
 * absent or null, so that defaults stand in the struct beforehand. A value of the wrong type or out of range is
 * an error "where: key: what is wrong".
 */
#ifndef PERCH_ENGINE_MODEL_FIELDS_H
#define PERCH_ENGINE_MODEL_FIELDS_H

#include "base/jv.h"

typedef struct fields {
    const jv *object;
    const char *where; /* "DIR/config.json", "DIR/config.json: rope_scaling" */
    perch_error *err;  /* may be NULL */
} fields;

/* The bounds of a real number: low <= x <= high, unless one is excluded. */
enum { FIELD_ABOVE_LOW = 1, FIELD_BELOW_HIGH = 2 };

/* Whether the key is there and not null. */
bool field_is_set(const fields *f, const char *key);

perch_status field_require(const fields *f, const char *key); /* E_FORMAT where it is not set */
perch_status field_u32(const fields *f, const char *key, uint32_t low, uint32_t high, uint32_t *out);
perch_status field_i32(const fields *f, const char *key, int32_t low, int32_t high, int32_t *out);
perch_status field_real(const fields *f, const char *key, double low, double high, unsigned excluded, double *out);
perch_status field_bool(const fields *f, const char *key, bool *out);
perch_status field_string(const fields *f, const char *key, const char **out); /* borrowed from the object */

/* A number that perch computes with one value only: E_UNSUPPORTED where the key is set to another. */
perch_status field_only_number(const fields *f, const char *key, double only);

/*
 * E_UNSUPPORTED naming the first key that is in none of the NULL-terminated lists. Fine without being known: keys that
 * begin with '_' (a library's private notes) and values that say nothing: null, false, "", [] and {}.
 */
perch_status fields_known(const fields *f, const char *const *const lists[], size_t n_lists);

/* jv_parse, but the text must be an object. */
perch_status fields_parse(const char *text, size_t n_bytes, const char *where, jv_doc *out, perch_error *err);

/*
 * Reads a whole file of at most max_bytes into *out (the caller's to free), not 0-terminated.
 * E_IO; E_NOT_FOUND where there is no such file; E_FORMAT where it is larger.
 */
perch_status fields_read_file(const char *path, size_t max_bytes, char **out, size_t *n_bytes, perch_error *err);

#endif
