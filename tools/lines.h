/*
 * lines: a file descriptor's lines as they come, without ever waiting for more than is there.
 */
#ifndef PERCH_TOOLS_LINES_H
#define PERCH_TOOLS_LINES_H

#include "text.h"

#include <stdbool.h>

struct lines {
    int fd;
    bool at_end; /* nothing more will come */
    struct text buffer;
    size_t start;   /* of the first line not taken */
    size_t scanned; /* no newline before here */
    size_t n_taken; /* lines so far */
};

void lines_init(struct lines *lines, int fd);
void lines_free(struct lines *lines);

/* Reads once; call it when fd can be read. E_IO. */
perch_status lines_read(struct lines *lines, perch_error *err);

/* Whether lines_take would give a line. */
bool lines_pending(const struct lines *lines);

/* Takes the next whole line (the last one need not end), without its newline; borrowed until lines_read. */
bool lines_take(struct lines *lines, const char **line, size_t *n_bytes);

#endif
