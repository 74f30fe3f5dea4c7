/* fields: strict reading of one JSON object, and of the file that it stands in. */
#include "engine/model/fields.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static const jv *get(const fields *f, const char *key) {
    const jv *value = jv_get(f->object, key);
    return value && value->type == JV_NULL ? NULL : value;
}

static double number_of(const jv *value) {
    return value->type == JV_INTEGER ? (double)value->as.integer : value->as.real;
}

bool field_is_set(const fields *f, const char *key) { return get(f, key) != NULL; }

perch_status field_require(const fields *f, const char *key) {
    return get(f, key) ? PERCH_OK : err_set(f->err, PERCH_E_FORMAT, "%s: %s is missing", f->where, key);
}

/* An integer within low..high. */
static perch_status get_integer(const fields *f, const char *key, int64_t low, int64_t high, int64_t *out) {
    const jv *value = get(f, key);
    if (!value) {
        return PERCH_OK;
    }
    if (value->type != JV_INTEGER) {
        return err_set(f->err, PERCH_E_FORMAT, "%s: %s: must be an integer", f->where, key);
    }
    int64_t number = value->as.integer;
    if (number < low || number > high) {
        return err_set(f->err, PERCH_E_FORMAT, "%s: %s: %lld is not within %lld..%lld", f->where, key,
                       (long long)number, (long long)low, (long long)high);
    }
    *out = number;
    return PERCH_OK;
}

perch_status field_u32(const fields *f, const char *key, uint32_t low, uint32_t high, uint32_t *out) {
    int64_t number = *out;
    perch_status status = get_integer(f, key, low, high, &number);
    *out = (uint32_t)number;
    return status;
}

perch_status field_i32(const fields *f, const char *key, int32_t low, int32_t high, int32_t *out) {
    int64_t number = *out;
    perch_status status = get_integer(f, key, low, high, &number);
    *out = (int32_t)number;
    return status;
}

perch_status field_real(const fields *f, const char *key, double low, double high, unsigned excluded, double *out) {
    const jv *value = get(f, key);
    if (!value) {
        return PERCH_OK;
    }
    if (value->type != JV_INTEGER && value->type != JV_REAL) {
        return err_set(f->err, PERCH_E_FORMAT, "%s: %s: must be a number", f->where, key);
    }
    double number = number_of(value);
    bool fits = (excluded & FIELD_ABOVE_LOW ? number > low : number >= low) &&
                (excluded & FIELD_BELOW_HIGH ? number < high : number <= high);
    if (!fits) {
        return err_set(f->err, PERCH_E_FORMAT, "%s: %s: %g is not %s %g and %s %g", f->where, key, number,
                       excluded & FIELD_ABOVE_LOW ? "above" : "at least", low,
                       excluded & FIELD_BELOW_HIGH ? "below" : "at most", high);
    }
    *out = number;
    return PERCH_OK;
}

perch_status field_bool(const fields *f, const char *key, bool *out) {
    const jv *value = get(f, key);
    if (!value) {
        return PERCH_OK;
    }
    if (value->type != JV_TRUE && value->type != JV_FALSE) {
        return err_set(f->err, PERCH_E_FORMAT, "%s: %s: must be true or false", f->where, key);
    }
    *out = value->type == JV_TRUE;
    return PERCH_OK;
}

perch_status field_string(const fields *f, const char *key, const char **out) {
    const jv *value = get(f, key);
    if (!value) {
        return PERCH_OK;
    }
    if (value->type != JV_STRING) {
        return err_set(f->err, PERCH_E_FORMAT, "%s: %s: must be a string", f->where, key);
    }
    *out = value->as.string;
    return PERCH_OK;
}

perch_status field_only_number(const fields *f, const char *key, double only) {
    const jv *value = get(f, key);
    if (!value) {
        return PERCH_OK;
    }
    if (value->type != JV_INTEGER && value->type != JV_REAL) {
        return err_set(f->err, PERCH_E_FORMAT, "%s: %s: must be a number", f->where, key);
    }
    double number = number_of(value);
    if (number < only || number > only) {
        return err_set(f->err, PERCH_E_UNSUPPORTED, "%s: %s: %g is not supported (only %g is)", f->where, key, number,
                       only);
    }
    return PERCH_OK;
}

static bool says_nothing(const jv *value) {
    return value->type == JV_NULL || value->type == JV_FALSE || (value->type >= JV_STRING && value->n == 0);
}

static bool is_listed(const char *key, const char *const *const lists[], size_t n_lists) {
    for (size_t i = 0; i < n_lists; i++) {
        for (const char *const *known = lists[i]; *known; known++) {
            if (strcmp(key, *known) == 0) {
                return true;
            }
        }
    }
    return false;
}

perch_status fields_known(const fields *f, const char *const *const lists[], size_t n_lists) {
    for (uint32_t i = 0; i < f->object->n; i++) {
        const jv *value = &f->object->as.children[i];
        if (value->key[0] != '_' && !says_nothing(value) && !is_listed(value->key, lists, n_lists)) {
            return err_set(f->err, PERCH_E_UNSUPPORTED, "%s: %.128s: not supported, and it might change the result",
                           f->where, value->key);
        }
    }
    return PERCH_OK;
}

perch_status fields_parse(const char *text, size_t n_bytes, const char *where, jv_doc *out, perch_error *err) {
    perch_status status = jv_parse(text, n_bytes, where, out, err);
    if (status == PERCH_OK && out->root->type != JV_OBJECT) {
        jv_free(out);
        status = err_set(err, PERCH_E_FORMAT, "%s: must be a JSON object", where);
    }
    return status;
}

static perch_status read_all(int fd, const char *path, char *to, size_t n_bytes, perch_error *err) {
    for (size_t at = 0; at < n_bytes;) {
        ssize_t n = read(fd, to + at, n_bytes - at);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n <= 0) {
            return err_set(err, PERCH_E_IO, "%s: %s", path,
                           n < 0 ? strerror(errno) : "became shorter while it was read");
        }
        at += (size_t)n;
    }
    return PERCH_OK;
}

perch_status fields_read_file(const char *path, size_t max_bytes, char **out, size_t *n_bytes, perch_error *err) {
    perch_status status;
    char *text = NULL;
    struct stat info;
    *out = NULL;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0 || fstat(fd, &info) != 0) {
        status = err_set(err, errno == ENOENT ? PERCH_E_NOT_FOUND : PERCH_E_IO, "%s: %s", path, strerror(errno));
        goto done;
    }
    if (!S_ISREG(info.st_mode)) {
        status = err_set(err, PERCH_E_IO, "%s: is not a file", path);
        goto done;
    }
    if ((uint64_t)info.st_size > max_bytes) {
        status = err_set(err, PERCH_E_FORMAT, "%s: %lld bytes are more than the %zu that such a file may have", path,
                         (long long)info.st_size, max_bytes);
        goto done;
    }
    text = malloc((size_t)info.st_size + 1);
    if (!text) {
        status = err_nomem(err, "a file's text");
        goto done;
    }
    status = read_all(fd, path, text, (size_t)info.st_size, err);
    if (status == PERCH_OK) {
        *out = text;
        *n_bytes = (size_t)info.st_size;
        text = NULL;
    }
done:
    free(text);
    if (fd >= 0) {
        close(fd);
    }
    return status;
}
