/*
 * table: columns of text, as wide as they need to be.
 */
#ifndef PERCH_TOOLS_TABLE_H
#define PERCH_TOOLS_TABLE_H

#include "perch/perch.h"

#include <jansson.h>
#include <stdio.h>

#define TABLE_MAX_COLUMNS 24

struct table {
    size_t n_columns;
    size_t n_cells;
    char **cells; /* row by row, owned */
    size_t cap;
};

/* n_columns is 1..TABLE_MAX_COLUMNS. The first row added is the heading. */
void table_init(struct table *table, size_t n_columns);
void table_free(struct table *table);

/* Adds the next cell of the current row, row by row. E_NOMEM. */
perch_status table_cell(struct table *table, perch_error *err, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* Numbers stand to the right, everything else to the left. */
void table_print(const struct table *table, FILE *file);

/* Prints an object's members, one a line: "key  value"; bytes (keys that end in _bytes) with their size in words. */
void table_print_pairs(FILE *file, const json_t *object);

/* "1.50 GiB" into out. */
void format_bytes(char *out, size_t cap, uint64_t n_bytes);

#endif
