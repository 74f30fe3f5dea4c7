/* json: see json.h. */
#include "base/json.h"

/*
 * When memory runs out in the middle, Jansson (2.14) may leave the reason empty, call it a syntax error, or silently drop a
 * character of a long string. So what was parsed counts only if it comes out the same a second time; and an error without a
 * reason, or in a text that parses on a second try, is memory.
 */
perch_status json_parse_object(const char *text, size_t n_bytes, size_t flags, const char *name, json_t **out,
                               perch_error *err) {
    json_error_t reason = {0}, again = {0};
    json_t *first = json_loadb(text, n_bytes, flags | JSON_REJECT_DUPLICATES, &reason);
    json_t *second = json_loadb(text, n_bytes, flags | JSON_REJECT_DUPLICATES, &again);
    perch_status status = PERCH_OK;
    if (!first && !second && reason.text[0] && again.text[0]) {
        status = err_set(err, PERCH_E_FORMAT, "%s: line %d: %s", name, again.line, again.text);
    } else if (!first || !second || !json_equal(first, second)) {
        status = err_nomem(err, "a JSON document");
    } else if (!json_is_object(first)) {
        status = err_set(err, PERCH_E_FORMAT, "%s: must be a JSON object", name);
    }
    json_decref(second);
    if (status) {
        json_decref(first);
        first = NULL;
    }
    *out = first;
    return status;
}
