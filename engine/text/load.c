/* load: finds the files of a tokenizer and reads them. */
#include "engine/text/tokenizer.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define MAX_FILE_BYTES ((size_t)1 << 30)

/* Reads a whole file. Not there: *out stays NULL where it may be absent. */
static perch_status read_file(const char *path, bool may_be_absent, char **out, size_t *n_bytes, perch_error *err) {
    struct stat info;
    perch_status status = PERCH_OK;
    char *text = NULL;
    size_t n = 0;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) {
        return may_be_absent && errno == ENOENT ? PERCH_OK : err_set(err, PERCH_E_IO, "%s: %s", path, strerror(errno));
    }
    if (fstat(fd, &info) != 0) {
        status = err_set(err, PERCH_E_IO, "%s: %s", path, strerror(errno));
    } else if (!S_ISREG(info.st_mode)) {
        status = err_set(err, PERCH_E_IO, "%s: is not a file", path);
    } else if ((uint64_t)info.st_size > MAX_FILE_BYTES) {
        status =
            err_set(err, PERCH_E_FORMAT, "%s: %lld bytes are too many for such a file", path, (long long)info.st_size);
    } else {
        text = malloc((size_t)info.st_size + 1);
        status = text ? PERCH_OK : err_nomem(err, "a file's text");
    }
    while (status == PERCH_OK && n < (size_t)info.st_size) {
        ssize_t got = read(fd, text + n, (size_t)info.st_size - n);
        if (got > 0) {
            n += (size_t)got;
        } else if (got == 0 || errno != EINTR) {
            status =
                err_set(err, PERCH_E_IO, "%s: %s", path, got ? strerror(errno) : "became shorter while it was read");
        }
    }
    close(fd);
    if (status != PERCH_OK) {
        free(text);
        return status;
    }
    *out = text;
    *n_bytes = n;
    return PERCH_OK;
}

/* Writes "folder/name" to out[PERCH_PATH_CAP]. */
static perch_status join_path(const char *folder, size_t n, const char *name, char *out, perch_error *err) {
    const char *slash = n && *name && folder[n - 1] != '/' ? "/" : "";
    int written = snprintf(out, PERCH_PATH_CAP, "%.*s%s%s", (int)n, folder, slash, name);
    return written >= 0 && written < PERCH_PATH_CAP
               ? PERCH_OK
               : err_set(err, PERCH_E_INVALID, "path: \"%.80s...\" is too long", folder);
}

/* The template in chat_template.jinja, where there is one, goes before that of the configuration. */
static perch_status load_template(const char *path, perch_tokenizer *t, perch_error *err) {
    char *text = NULL;
    size_t n = 0;
    perch_status status = read_file(path, true, &text, &n, err);
    if (status == PERCH_OK && text) {
        chat_free(&t->chat);
        status = chat_detect((struct jtext){text, n}, &t->chat, err);
    }
    free(text);
    return status;
}

perch_status perch_tokenizer_create(const char *path, perch_tokenizer **out, perch_error *err) {
    char file[PERCH_PATH_CAP], config_file[PERCH_PATH_CAP], template_file[PERCH_PATH_CAP];
    char *json = NULL, *config = NULL;
    size_t n_json = 0, n_config = 0;
    struct stat info;
    if (!path || !out) {
        return err_set(err, PERCH_E_INVALID, "%s is NULL", path ? "out" : "path");
    }
    *out = NULL;
    /* The folder is the path itself, or what comes before its last part. */
    bool is_folder = stat(path, &info) == 0 && S_ISDIR(info.st_mode);
    const char *slash = strrchr(path, '/');
    size_t folder = is_folder ? strlen(path) : slash ? (size_t)(slash - path) + 1 : 0;
    perch_status status = join_path(path, strlen(path), is_folder ? "tokenizer.json" : "", file, err);
    if (status == PERCH_OK) {
        status = join_path(path, folder, "tokenizer_config.json", config_file, err);
    }
    if (status == PERCH_OK) {
        status = join_path(path, folder, "chat_template.jinja", template_file, err);
    }
    if (status == PERCH_OK) {
        status = read_file(file, false, &json, &n_json, err);
    }
    if (status == PERCH_OK) {
        status = read_file(config_file, true, &config, &n_config, err);
    }
    if (status == PERCH_OK) {
        status = tokenizer_parse(json, n_json, config, n_config, file, out, err);
    }
    if (status == PERCH_OK) {
        status = load_template(template_file, *out, err);
    }
    if (status != PERCH_OK) {
        perch_tokenizer_destroy(*out);
        *out = NULL;
    }
    free(json);
    free(config);
    return status;
}
