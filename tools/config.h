/*
 * config: a command's configuration from an INI file and from section.key=value, and back.
 */
#ifndef PERCH_TOOLS_CONFIG_H
#define PERCH_TOOLS_CONFIG_H

#include "tool.h"

#include <jansson.h>

/* Reads an INI file into tool->options and tool->bench. */
perch_status config_load(struct tool *tool, const char *file, perch_error *err);

/* Sets "section.key"; [bench] only where with_bench. */
perch_status config_set(struct tool *tool, const char *section_key, const char *value, bool with_bench,
                        perch_error *err);

/* Prints what holds now as an INI file, or as JSON. */
int config_print(struct tool *tool, bool with_bench);

/* The same as JSON, [bench] included; NULL: out of memory. */
json_t *config_json(const struct tool *tool, bool with_bench);

/* Prints all keys with type, range, default and meaning. */
int config_print_keys(const struct tool *tool);

#endif
