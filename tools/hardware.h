/*
 * hardware: what a benchmark ran on.
 */
#ifndef PERCH_TOOLS_HARDWARE_H
#define PERCH_TOOLS_HARDWARE_H

#include <jansson.h>

/* {"cpu", "cores", "usable_cores", "memory_bytes", "system"}, a new reference; NULL: out of memory. */
json_t *hardware_json(void);

#endif
