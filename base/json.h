/* json: reading a JSON document with Jansson, the same way for everyone. May be included where Jansson is used anyway. */
#ifndef PERCH_BASE_JSON_H
#define PERCH_BASE_JSON_H

#include "base/base.h"

#include <jansson.h>

/*
 * Parses text[n_bytes], which must be one object without repeated keys; flags are Jansson's. The caller lets go of *out with
 * json_decref. E_FORMAT: "name: line N: reason". E_NOMEM.
 */
perch_status json_parse_object(const char *text, size_t n_bytes, size_t flags, const char *name, json_t **out,
                               perch_error *err);

#endif
