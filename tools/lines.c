/*
 * lines: a file descriptor's lines as they come.
 */
#include "lines.h"

#include "tool.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#define READ_BYTES 65536

void lines_init(struct lines *lines, int fd) { *lines = (struct lines){.fd = fd}; }

void lines_free(struct lines *lines) { text_free(&lines->buffer); }

perch_status lines_read(struct lines *lines, perch_error *err) {
    struct text *buffer = &lines->buffer;
    if (lines->start > 0) {
        buffer->n_bytes -= lines->start;
        memmove(buffer->data, buffer->data + lines->start, buffer->n_bytes);
        lines->scanned -= lines->start;
        lines->start = 0;
    }
    void *data = buffer->data;
    perch_status status = grow(&data, &buffer->cap, buffer->n_bytes + READ_BYTES, 1, err);
    buffer->data = data;
    if (status != PERCH_OK) {
        return status;
    }
    ssize_t n = read(lines->fd, buffer->data + buffer->n_bytes, READ_BYTES);
    if (n < 0) {
        bool again = errno == EINTR || errno == EAGAIN;
        return again ? PERCH_OK : tool_error(err, PERCH_E_IO, "cannot read stdin: %s", strerror(errno));
    }
    buffer->n_bytes += (size_t)n;
    lines->at_end = n == 0;
    return PERCH_OK;
}

bool lines_pending(const struct lines *lines) {
    size_t n_left = lines->buffer.n_bytes - lines->scanned;
    if (lines->at_end) {
        return lines->start < lines->buffer.n_bytes;
    }
    return n_left > 0 && memchr(lines->buffer.data + lines->scanned, '\n', n_left) != NULL;
}

bool lines_take(struct lines *lines, const char **line, size_t *n_bytes) {
    const struct text *buffer = &lines->buffer;
    if (buffer->data == NULL || lines->start == buffer->n_bytes) {
        return false;
    }
    const char *newline = memchr(buffer->data + lines->scanned, '\n', buffer->n_bytes - lines->scanned);
    if (newline == NULL && !lines->at_end) {
        lines->scanned = buffer->n_bytes;
        return false;
    }
    size_t end = newline != NULL ? (size_t)(newline - buffer->data) : buffer->n_bytes;
    *line = buffer->data + lines->start;
    *n_bytes = end - lines->start;
    lines->start = newline != NULL ? end + 1 : end;
    lines->scanned = lines->start;
    lines->n_taken++;
    return true;
}
