/*
 * table: columns of text, as wide as they need to be.
 */
#include "table.h"

#include "text.h"
#include "tool.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

void table_init(struct table *table, size_t n_columns) { *table = (struct table){.n_columns = n_columns}; }

void table_free(struct table *table) {
    for (size_t i = 0; i < table->n_cells; i++) {
        free(table->cells[i]);
    }
    free(table->cells);
    *table = (struct table){0};
}

perch_status table_cell(struct table *table, perch_error *err, const char *format, ...) {
    char text[512];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    void *cells = table->cells;
    perch_status status = grow(&cells, &table->cap, table->n_cells + 1, sizeof(*table->cells), err);
    table->cells = cells;
    if (status != PERCH_OK) {
        return status;
    }
    char *copy = strdup(text);
    if (copy == NULL) {
        return tool_nomem(err);
    }
    table->cells[table->n_cells++] = copy;
    return PERCH_OK;
}

/* "-" stands for a number that there is none of. */
static bool is_number(const char *text) {
    char *end = NULL;
    strtod(text, &end);
    return (end != text && *end == '\0') || strcmp(text, "-") == 0;
}

void table_print(const struct table *table, FILE *file) {
    size_t width[TABLE_MAX_COLUMNS] = {0};
    bool right[TABLE_MAX_COLUMNS] = {false};
    for (size_t c = 0; c < table->n_columns; c++) {
        right[c] = table->n_cells > table->n_columns;
        for (size_t i = c; i < table->n_cells; i += table->n_columns) {
            size_t length = strlen(table->cells[i]);
            width[c] = length > width[c] ? length : width[c];
            if (i >= table->n_columns && !is_number(table->cells[i])) {
                right[c] = false;
            }
        }
    }
    size_t c = 0;
    for (size_t i = 0; i < table->n_cells; i++) {
        bool last = c + 1 == table->n_columns || i + 1 == table->n_cells;
        if (right[c]) {
            fprintf(file, "%*s", (int)width[c], table->cells[i]);
        } else {
            fprintf(file, "%-*s", last ? 0 : (int)width[c], table->cells[i]);
        }
        fputs(last ? "\n" : "  ", file);
        c = last ? 0 : c + 1;
    }
}

void format_bytes(char *out, size_t cap, uint64_t n_bytes) {
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    double size = (double)n_bytes;
    size_t unit = 0;
    while (size >= 1024.0 && unit + 1 < sizeof(units) / sizeof(units[0])) {
        size /= 1024.0;
        unit++;
    }
    snprintf(out, cap, unit == 0 ? "%.0f %s" : "%.2f %s", size, units[unit]);
}

static bool ends_with(const char *text, const char *end) {
    size_t length = strlen(text);
    size_t end_length = strlen(end);
    return length >= end_length && strcmp(text + length - end_length, end) == 0;
}

void table_print_pairs(FILE *file, const json_t *object) {
    int width = 0;
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)object, key, value) {
        int length = (int)strlen(key);
        width = length > width ? length : width;
    }
    json_object_foreach((json_t *)object, key, value) {
        fprintf(file, "%-*s  ", width, key);
        if (json_is_string(value)) {
            fprintf(file, "%s\n", json_string_value(value));
        } else if (json_is_real(value)) {
            fprintf(file, "%.6g\n", json_real_value(value));
        } else {
            fprintf(file, "%lld", (long long)json_integer_value(value));
            if (ends_with(key, "_bytes") || strstr(key, "bytes_per") != NULL) {
                char size[32];
                format_bytes(size, sizeof(size), (uint64_t)json_integer_value(value));
                fprintf(file, "  (%s)", size);
            }
            fputc('\n', file);
        }
    }
}
