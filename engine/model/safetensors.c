/* safetensors: maps one file and checks its header. */
#include "engine/model/safetensors.h"

#include "engine/model/fields.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the tensors' bytes are used as they lie");

static const struct {
    const char *name;
    unsigned bits;
} dtypes[] = {
#define DTYPE_ROW(name, bits) {#name, bits},
    SAFETENSORS_DTYPES(DTYPE_ROW)
#undef DTYPE_ROW
};

const char *safetensors_dtype_name(safetensors_dtype dtype) { return dtypes[dtype].name; }

const char *safetensors_shape_text(const safetensor *tensor, char *text, size_t cap) {
    size_t at = 0;
    for (uint32_t i = 0; i < tensor->n_dims && at < cap; i++) {
        int n = snprintf(text + at, cap - at, "%s%llu", i ? ", " : "[", (unsigned long long)tensor->dims[i]);
        at += n > 0 ? (size_t)n : 0;
    }
    if (at < cap) {
        snprintf(text + at, cap - at, "%s]", tensor->n_dims ? "" : "[");
    }
    return text;
}

/* A tensor's non-negative integer. */
static bool get_u64(const jv *value, uint64_t *out) {
    if (value->type != JV_INTEGER || value->as.integer < 0) {
        return false;
    }
    *out = (uint64_t)value->as.integer;
    return true;
}

static perch_status read_dtype(const jv *info, const char *file, safetensor *out, perch_error *err) {
    const char *name = jv_string(jv_get(info, "dtype"));
    if (!name) {
        return err_set(err, PERCH_E_FORMAT, "%s: %.128s: dtype: must be a string", file, out->name);
    }
    for (size_t i = 0; i < sizeof dtypes / sizeof dtypes[0]; i++) {
        if (strcmp(name, dtypes[i].name) == 0) {
            out->dtype = (safetensors_dtype)i;
            return PERCH_OK;
        }
    }
    return err_set(err, PERCH_E_UNSUPPORTED, "%s: %.128s: dtype: \"%.32s\" is not known", file, out->name, name);
}

/* Reads the shape; *n_bytes gets the bytes that it takes with the tensor's dtype. */
static perch_status read_shape(const jv *info, const char *file, safetensor *out, uint64_t *n_bytes, perch_error *err) {
    const jv *shape = jv_get(info, "shape");
    if (!shape || shape->type != JV_ARRAY) {
        return err_set(err, PERCH_E_FORMAT, "%s: %.128s: shape: must be a list", file, out->name);
    }
    if (shape->n > SAFETENSORS_MAX_DIMS) {
        return err_set(err, PERCH_E_UNSUPPORTED, "%s: %.128s: shape: more than %d dimensions", file, out->name,
                       SAFETENSORS_MAX_DIMS);
    }
    uint64_t n_bits = dtypes[out->dtype].bits;
    out->n_dims = shape->n;
    for (uint32_t i = 0; i < out->n_dims; i++) {
        if (!get_u64(&shape->as.children[i], &out->dims[i])) {
            return err_set(err, PERCH_E_FORMAT, "%s: %.128s: shape: must hold non-negative integers", file, out->name);
        }
        if (__builtin_mul_overflow(n_bits, out->dims[i], &n_bits)) {
            return err_set(err, PERCH_E_FORMAT, "%s: %.128s: shape: too large", file, out->name);
        }
    }
    if (n_bits % 8 != 0) {
        return err_set(err, PERCH_E_FORMAT, "%s: %.128s: shape: does not end with a whole byte", file, out->name);
    }
    *n_bytes = n_bits / 8;
    return PERCH_OK;
}

/* One entry of the header; data is where offsets count from. out->name is set already. */
static perch_status read_tensor(const jv *info, const char *file, const uint8_t *data, uint64_t data_bytes,
                                safetensor *out, perch_error *err) {
    uint64_t n_bytes = 0, begin, end;
    if (info->type != JV_OBJECT || info->n != 3) {
        return err_set(err, PERCH_E_FORMAT, "%s: %.128s: must have dtype, shape and data_offsets alone", file,
                       out->name);
    }
    perch_status status = read_dtype(info, file, out, err);
    if (status == PERCH_OK) {
        status = read_shape(info, file, out, &n_bytes, err);
    }
    if (status != PERCH_OK) {
        return status;
    }
    const jv *offsets = jv_get(info, "data_offsets");
    if (!offsets || offsets->type != JV_ARRAY || offsets->n != 2 || !get_u64(&offsets->as.children[0], &begin) ||
        !get_u64(&offsets->as.children[1], &end)) {
        return err_set(err, PERCH_E_FORMAT, "%s: %.128s: data_offsets: must be two non-negative integers", file,
                       out->name);
    }
    if (begin > end || end - begin != n_bytes) {
        char shape[96];
        return err_set(err, PERCH_E_FORMAT, "%s: %.128s: data_offsets: %llu..%llu is not %llu bytes as %s of %s takes",
                       file, out->name, (unsigned long long)begin, (unsigned long long)end, (unsigned long long)n_bytes,
                       safetensors_shape_text(out, shape, sizeof shape), dtypes[out->dtype].name);
    }
    if (end > data_bytes) {
        return err_set(err, PERCH_E_FORMAT, "%s: truncated: %.128s ends at byte %llu of %llu", file, out->name,
                       (unsigned long long)end, (unsigned long long)data_bytes);
    }
    out->data = data + begin;
    out->n_bytes = n_bytes;
    return PERCH_OK;
}

/* Free-form notes, but strings. */
static perch_status check_metadata(const jv *metadata, const char *file, perch_error *err) {
    if (metadata->type != JV_OBJECT) {
        return err_set(err, PERCH_E_FORMAT, "%s: __metadata__: must be an object", file);
    }
    for (uint32_t i = 0; i < metadata->n; i++) {
        if (metadata->as.children[i].type != JV_STRING) {
            return err_set(err, PERCH_E_FORMAT, "%s: __metadata__: %.64s: must be a string", file,
                           metadata->as.children[i].key);
        }
    }
    return PERCH_OK;
}

/* By place; empty tensors come before what begins where they do. */
static int by_offset(const void *a, const void *b) {
    const safetensor *x = a, *y = b;
    if (x->data != y->data) {
        return x->data < y->data ? -1 : 1;
    }
    return x->n_bytes != y->n_bytes ? (x->n_bytes < y->n_bytes ? -1 : 1) : strcmp(x->name, y->name);
}

static perch_status check_coverage(const safetensors *file, const char *name, const uint8_t *data, uint64_t data_bytes,
                                   perch_error *err) {
    const uint8_t *end = data;
    for (size_t i = 0; i < file->n_tensors; i++) {
        const safetensor *t = &file->tensors[i];
        if (t->data != end) {
            return err_set(err, PERCH_E_FORMAT, "%s: %.128s: data_offsets: %s what lies before it", name, t->name,
                           t->data < end ? "overlaps with" : "leaves a hole behind");
        }
        end = t->data + t->n_bytes;
    }
    if (end != data + data_bytes) {
        return err_set(err, PERCH_E_FORMAT, "%s: %llu bytes behind the last tensor", name,
                       (unsigned long long)(data + data_bytes - end));
    }
    return PERCH_OK;
}

static perch_status read_header(const jv *header, const char *name, const uint8_t *data, uint64_t data_bytes,
                                safetensors *out, perch_error *err) {
    perch_status status;
    out->tensors = calloc(header->n ? header->n : 1, sizeof *out->tensors);
    if (!out->tensors) {
        return err_nomem(err, "the list of tensors");
    }
    for (uint32_t i = 0; i < header->n; i++) {
        const jv *info = &header->as.children[i];
        if (strcmp(info->key, "__metadata__") == 0) {
            if ((status = check_metadata(info, name, err)) != PERCH_OK) {
                return status;
            }
            continue;
        }
        safetensor *t = &out->tensors[out->n_tensors];
        t->name = info->key;
        if ((status = read_tensor(info, name, data, data_bytes, t, err)) != PERCH_OK) {
            return status;
        }
        out->n_tensors++;
    }
    if (out->n_tensors > 1) {
        qsort(out->tensors, out->n_tensors, sizeof *out->tensors, by_offset);
    }
    return check_coverage(out, name, data, data_bytes, err);
}

perch_status safetensors_parse(const uint8_t *bytes, size_t n_bytes, const char *name, safetensors *out,
                               perch_error *err) {
    uint64_t n_header = 0;
    memset(out, 0, sizeof *out);
    if (n_bytes < 8) {
        return err_set(err, PERCH_E_FORMAT, "%s: truncated: %zu bytes are too few for the header's length", name,
                       n_bytes);
    }
    for (unsigned i = 0; i < 8; i++) {
        n_header |= (uint64_t)bytes[i] << (8 * i);
    }
    if (n_header > SAFETENSORS_MAX_HEADER) {
        return err_set(err, PERCH_E_FORMAT, "%s: a header of %llu bytes: not a safetensors file", name,
                       (unsigned long long)n_header);
    }
    if (n_header > n_bytes - 8) {
        return err_set(err, PERCH_E_FORMAT, "%s: truncated: the header takes %llu bytes, the file has %zu behind it",
                       name, (unsigned long long)n_header, n_bytes - 8);
    }
    if (n_header == 0 || bytes[8] != '{') {
        return err_set(err, PERCH_E_FORMAT, "%s: the header does not begin with '{': not a safetensors file", name);
    }
    perch_status status = fields_parse((const char *)bytes + 8, n_header, name, &out->header, err);
    if (status == PERCH_OK) {
        status = read_header(out->header.root, name, bytes + 8 + n_header, n_bytes - 8 - n_header, out, err);
    }
    if (status != PERCH_OK) {
        safetensors_close(out);
    }
    return status;
}

perch_status safetensors_open(const char *path, safetensors *out, perch_error *err) {
    struct stat info;
    void *map = MAP_FAILED;
    perch_status status;
    memset(out, 0, sizeof *out);
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0 || fstat(fd, &info) != 0) {
        status = err_set(err, errno == ENOENT ? PERCH_E_NOT_FOUND : PERCH_E_IO, "%s: %s", path, strerror(errno));
        goto done;
    }
    if (!S_ISREG(info.st_mode)) {
        status = err_set(err, PERCH_E_IO, "%s: is not a file", path);
        goto done;
    }
    if (info.st_size == 0) {
        status = err_set(err, PERCH_E_FORMAT, "%s: is empty", path);
        goto done;
    }
    map = mmap(NULL, (size_t)info.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (map == MAP_FAILED) {
        status = err_set(err, errno == ENOMEM ? PERCH_E_NOMEM : PERCH_E_IO, "%s: cannot be mapped: %s", path,
                         strerror(errno));
        goto done;
    }
    status = safetensors_parse(map, (size_t)info.st_size, path, out, err);
    if (status == PERCH_OK) {
        out->map = map;
        out->map_bytes = (size_t)info.st_size;
        map = MAP_FAILED;
    }
done:
    if (map != MAP_FAILED) {
        munmap(map, (size_t)info.st_size);
    }
    if (fd >= 0) {
        close(fd);
    }
    return status;
}

void safetensors_close(safetensors *file) {
    free(file->tensors);
    jv_free(&file->header);
    if (file->map) {
        munmap(file->map, file->map_bytes);
    }
    memset(file, 0, sizeof *file);
}
