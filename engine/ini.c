/*
 * ini: reads an INI file. iniparser's reader is lenient: of a repeated key the last wins, a key before any section is
 * kept apart, an unclosed quote ends with the line, '#' in a bare value cuts it off, a backslash joins lines (even
 * comments), and failed allocations lose a line. So the text is first held against the grammar that perch documents,
 * line by line, and afterwards each entry found there must be one that iniparser found too.
 *
 * A line is empty, a comment (# or ;), [section], or key = value. Names consist of letters, digits, '_', '-' and '.'. A
 * value is bare, or in '...' or "..." (then # and ; mean nothing); a comment may follow it behind a space.
 */
#include "engine/ini.h"

#include <errno.h>
#include <fcntl.h>
#include <iniparser.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum {
    INI_MAX_BYTES = 256 * 1024,
    INI_MAX_ENTRIES = 1024,
    INI_MAX_LINE = 1022, /* iniparser's line buffer less newline and 0 */
    INI_MAX_NAME = 63,
    INI_DICTIONARY_BYTES = 16 * 1024 /* more than what iniparser begins with */
};

/* --------------------------------------------------------------- the file -- */

static perch_status io_error(perch_error *err, const char *file) {
    char text[128] = "";
    const char *reason = strerror_r(errno, text, sizeof text);
    return err_set(err, PERCH_E_IO, "%s: %s", file, reason);
}

/* Reads all of it at once: a pipe can't be read twice. */
static perch_status read_file(const char *file, ini *parsed, perch_error *err) {
    perch_status status = PERCH_OK;
    int fd = open(file, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        return io_error(err, file);
    }
    parsed->text = malloc(INI_MAX_BYTES + 1);
    if (!parsed->text) {
        status = err_nomem(err, file);
        goto done;
    }
    for (;;) {
        ssize_t n = read(fd, parsed->text + parsed->n_bytes, INI_MAX_BYTES + 1 - parsed->n_bytes);
        if (n == 0) {
            break;
        }
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0) {
            status = io_error(err, file);
            goto done;
        }
        parsed->n_bytes += (size_t)n;
        if (parsed->n_bytes > INI_MAX_BYTES) {
            status = err_set(err, PERCH_E_CONFIG, "%s: more than %d bytes", file, INI_MAX_BYTES);
            goto done;
        }
    }
    parsed->text[parsed->n_bytes] = 0;
done:
    close(fd);
    return status;
}

/* ------------------------------------------------------------ the grammar -- */

static bool is_space(char c) { return c == ' ' || c == '\t'; }

static char *skip_spaces(char *at) {
    while (is_space(*at)) {
        at++;
    }
    return at;
}

static bool is_name_char(char c) {
    return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_' || c == '-' || c == '.';
}

/* Makes a name at `at` lower case and returns its end; NULL where it is empty or too long. */
static char *take_name(char *at) {
    char *end = at;
    for (;; end++) {
        if (*end >= 'A' && *end <= 'Z') {
            *end = (char)(*end - 'A' + 'a');
        }
        if (!is_name_char(*end)) {
            return end > at && end - at <= INI_MAX_NAME ? end : NULL;
        }
    }
}

/* What is wrong with a value, or NULL. It isn't taken from here, but iniparser has to see the same one. */
static const char *value_fault(const char *at) {
    if (*at == '"' || *at == '\'') {
        const char *end = strchr(at + 1, *at);
        if (!end) {
            return "the quote is not closed";
        }
        for (at = end + 1; is_space(*at); at++) {}
        return *at && *at != '#' && *at != ';' ? "something follows the closing quote" : NULL;
    }
    size_t bare = strcspn(at, "#;");
    return at[bare] && bare > 0 && !is_space(at[bare - 1]) ? "a value with # or ; has to stand in quotes" : NULL;
}

static perch_status add_entry(ini *parsed, const char *section, const char *key, perch_error *err) {
    if (parsed->n_entries == INI_MAX_ENTRIES) {
        return err_set(err, PERCH_E_CONFIG, "more than %d sections and keys", INI_MAX_ENTRIES);
    }
    perch_status status =
        array_reserve((void **)&parsed->entries, &parsed->cap, parsed->n_entries + 1, sizeof *parsed->entries, err);
    if (status == PERCH_OK) {
        parsed->entries[parsed->n_entries++] = (ini_entry){section, key, NULL};
    }
    return status;
}

static perch_status line_error(perch_error *err, unsigned line, const char *reason) {
    return err_set(err, PERCH_E_CONFIG, "line %u: %s", line, reason);
}

static perch_status take_section(ini *parsed, char *at, unsigned line, const char **section, perch_error *err) {
    at = skip_spaces(at + 1);
    char *end = take_name(at);
    char *close = end ? skip_spaces(end) : NULL;
    if (!close || *close != ']' || *skip_spaces(close + 1)) {
        return line_error(err, line, "[section] is expected, and nothing behind it");
    }
    *end = 0;
    *section = at;
    return add_entry(parsed, at, NULL, err);
}

static perch_status take_key(ini *parsed, char *at, unsigned line, const char *section, perch_error *err) {
    char *end = take_name(at);
    char *equals = end ? skip_spaces(end) : NULL;
    if (!equals || *equals != '=') {
        return line_error(err, line, "[section] or key = value is expected");
    }
    const char *fault = value_fault(skip_spaces(equals + 1));
    if (fault) {
        return line_error(err, line, fault);
    }
    *end = 0;
    if (!section) {
        return err_set(err, PERCH_E_CONFIG, "line %u: the key %s stands before any [section]", line, at);
    }
    for (size_t i = 0; i < parsed->n_entries; i++) {
        const ini_entry *other = &parsed->entries[i];
        if (other->key && strcmp(other->key, at) == 0 && strcmp(other->section, section) == 0) {
            return err_set(err, PERCH_E_CONFIG, "[%s] %s: repeated", section, at);
        }
    }
    return add_entry(parsed, section, at, err);
}

/* What is wrong with a line's bytes, or NULL. n: up to the newline. */
static const char *line_fault(const char *line, size_t n) {
    if (n > INI_MAX_LINE) {
        return "longer than 1022 bytes";
    }
    for (size_t i = 0; i < n; i++) {
        unsigned char c = (unsigned char)line[i];
        if ((c < ' ' && c != '\t') || c == 0x7F) {
            return "holds a control character";
        }
    }
    while (n > 0 && is_space(line[n - 1])) {
        n--;
    }
    return n > 0 && line[n - 1] == '\\' ? "ends in a backslash; lines can't be continued" : NULL;
}

/* Cuts the text into lines and lists what they say. Writes zeros behind the names. */
static perch_status scan(ini *parsed, perch_error *err) {
    const char *section = NULL;
    perch_status status = PERCH_OK;
    char *at = parsed->text, *end = parsed->text + parsed->n_bytes;
    for (unsigned line = 1; at < end && !status; line++) {
        char *newline = memchr(at, '\n', (size_t)(end - at));
        char *next = newline ? newline + 1 : end;
        char *stop = newline ? newline : end;
        if (stop > at && stop[-1] == '\r') {
            stop--;
        }
        const char *fault = line_fault(at, (size_t)(stop - at));
        *stop = 0;
        at = skip_spaces(at);
        if (fault) {
            status = line_error(err, line, fault);
        } else if (*at == '[') {
            status = take_section(parsed, at, line, &section, err);
        } else if (*at && *at != '#' && *at != ';') {
            status = take_key(parsed, at, line, section, err);
        }
        at = next;
    }
    return status;
}

/* -------------------------------------------------------------- iniparser -- */

/* iniparser has one error callback for the whole process and prints where there is none. */
static pthread_mutex_t iniparser_lock = PTHREAD_MUTEX_INITIALIZER;
static _Thread_local char complaint[256]; /* the first of a load */
static _Thread_local bool out_of_memory;

BASE_PRINTF(1, 2) static int on_iniparser_error(const char *format, ...) {
    va_list args;
    if (complaint[0]) {
        return 0;
    }
    out_of_memory = errno == ENOMEM || strstr(format, "memory");
    va_start(args, format);
    vsnprintf(complaint, sizeof complaint, format, args);
    va_end(args);
    complaint[strcspn(complaint, "\n")] = 0;
    return 0;
}

/* The text as iniparser wants it: a file that can be opened by name. Returns the descriptor or -1. */
static int text_as_file(const ini *parsed, char *name, size_t cap) {
    int fd = memfd_create("perch.ini", MFD_CLOEXEC);
    for (size_t done = 0; fd >= 0 && done < parsed->n_bytes;) {
        ssize_t n = write(fd, parsed->text + done, parsed->n_bytes - done);
        if (n > 0) {
            done += (size_t)n;
        } else if (errno != EINTR) {
            close(fd);
            fd = -1;
        }
    }
    snprintf(name, cap, "/proc/self/fd/%d", fd);
    return fd;
}

static perch_status read_values(ini *parsed, const char *name, const char *file, perch_error *err) {
    /* iniparser (4.1) makes its empty dictionary without looking whether it got the memory: look before it does. */
    void *room = malloc(INI_DICTIONARY_BYTES);
    if (!room) {
        return err_nomem(err, file);
    }
    free(room);
    pthread_mutex_lock(&iniparser_lock);
    complaint[0] = 0;
    out_of_memory = false;
    iniparser_set_error_callback(on_iniparser_error);
    parsed->values = iniparser_load(name);
    iniparser_set_error_callback(NULL);
    pthread_mutex_unlock(&iniparser_lock);
    if (complaint[0] && !out_of_memory) {
        return err_set(err, PERCH_E_IO, "%s: %s", file, complaint);
    }
    return parsed->values && !complaint[0] ? PERCH_OK : err_nomem(err, file);
}

/* The grammar leaves iniparser nothing to refuse, so what is missing was lost for want of memory. */
static perch_status link_values(ini *parsed, const char *file, perch_error *err) {
    for (size_t i = 0; i < parsed->n_entries; i++) {
        ini_entry *entry = &parsed->entries[i];
        char name[2 * INI_MAX_NAME + 2];
        if (entry->key) {
            snprintf(name, sizeof name, "%s:%s", entry->section, entry->key);
            entry->value = iniparser_getstring(parsed->values, name, NULL);
            if (!entry->value) {
                return err_nomem(err, file);
            }
        }
    }
    return PERCH_OK;
}

perch_status ini_load(const char *file, ini **out, perch_error *err) {
    char name[32];
    int fd = -1;
    ini *parsed = calloc(1, sizeof *parsed);
    if (!parsed) {
        return err_nomem(err, file);
    }
    perch_status status = read_file(file, parsed, err);
    if (status) {
        goto fail;
    }
    fd = text_as_file(parsed, name, sizeof name);
    if (fd < 0) {
        status = io_error(err, file);
        goto fail;
    }
    if ((status = scan(parsed, err))) {
        err_prefix(err, status, "%s", file);
        goto fail;
    }
    if ((status = read_values(parsed, name, file, err)) || (status = link_values(parsed, file, err))) {
        goto fail;
    }
    close(fd);
    *out = parsed;
    return PERCH_OK;
fail:
    if (fd >= 0) {
        close(fd);
    }
    ini_destroy(parsed);
    return status;
}

void ini_destroy(ini *parsed) {
    if (parsed) {
        if (parsed->values) {
            iniparser_freedict(parsed->values);
        }
        free(parsed->entries);
        free(parsed->text);
        free(parsed);
    }
}
