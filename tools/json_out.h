/*
 * json_out: perch's structures as JSON. A function that returns json_t * gives a new reference, or NULL where memory ran out.
 */
#ifndef PERCH_TOOLS_JSON_OUT_H
#define PERCH_TOOLS_JSON_OUT_H

#include "perch/perch.h"

#include <jansson.h>

/* A string of text[n_bytes]; bytes that are not UTF-8 become U+FFFD. */
json_t *json_text(const char *text, size_t n_bytes);

/* An array of ids[n]. */
json_t *json_tokens(const int32_t *ids, size_t n);

json_t *json_stats(const perch_stats *stats);
json_t *json_plan(const perch_plan *plan);
json_t *json_costs(const perch_costs *costs);

/* {"section": {"key": value, …}, …}: numbers as numbers, everything else as text. */
json_t *json_options(const perch_options *options);

/* A value of an INI file: a number where it reads as one. */
json_t *json_value(const char *text);

#endif
