/* checkpoint: one safetensors file or an index of several, as one list of tensors. */
#include "engine/model/checkpoint.h"

#include "engine/model/fields.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define MAX_INDEX_BYTES ((size_t)100000000)
#define PATH_BYTES (PERCH_PATH_CAP + 512)

static const char index_name[] = "model.safetensors.index.json";
static const char single_name[] = "model.safetensors";

static perch_status join_path(const char *dir, const char *file, char path[PATH_BYTES], perch_error *err) {
    int n = snprintf(path, PATH_BYTES, "%s/%s", dir, file);
    return n < PATH_BYTES ? PERCH_OK : err_set(err, PERCH_E_INVALID, "%.200s...: the path is too long", dir);
}

static int by_name(const void *a, const void *b) {
    return strcmp(((const checkpoint_tensor *)a)->tensor.name, ((const checkpoint_tensor *)b)->tensor.name);
}

static int name_to_tensor(const void *name, const void *tensor) {
    return strcmp(name, ((const checkpoint_tensor *)tensor)->tensor.name);
}

checkpoint_tensor *checkpoint_find(const checkpoint *c, const char *name) {
    return c->n_tensors ? bsearch(name, c->tensors, c->n_tensors, sizeof *c->tensors, name_to_tensor) : NULL;
}

void checkpoint_drop(const checkpoint *c, const checkpoint_tensor *t, const uint8_t *from, size_t n_bytes) {
    const safetensors *file = &c->files[t->file];
    size_t page = (size_t)sysconf(_SC_PAGESIZE), begin = (size_t)(from - file->map), end = begin + n_bytes;
    begin = begin / page * page;
    end = (end + page - 1) / page * page;
    end = end > file->map_bytes ? file->map_bytes : end;
    /* Nothing is lost where the system declines: the pages are the file's own and clean. */
    (void)madvise(file->map + begin, end - begin, MADV_DONTNEED);
}

void checkpoint_close(checkpoint *c) {
    for (size_t i = 0; i < c->n_files; i++) {
        if (c->files) {
            safetensors_close(&c->files[i]);
        }
    }
    free(c->files);
    free(c->file_names);
    free(c->tensors);
    jv_free(&c->index);
    memset(c, 0, sizeof *c);
}

/* Opens all files of c->file_names and lists their tensors by name. */
static perch_status open_files(const char *dir, checkpoint *c, perch_error *err) {
    char path[PATH_BYTES];
    size_t n = 0;
    perch_status status;
    c->files = calloc(c->n_files, sizeof *c->files);
    if (!c->files) {
        return err_nomem(err, "the list of files");
    }
    for (size_t i = 0; i < c->n_files; i++) {
        if ((status = join_path(dir, c->file_names[i], path, err)) != PERCH_OK ||
            (status = safetensors_open(path, &c->files[i], err)) != PERCH_OK) {
            return status;
        }
        n += c->files[i].n_tensors;
    }
    c->tensors = calloc(n ? n : 1, sizeof *c->tensors);
    if (!c->tensors) {
        return err_nomem(err, "the list of tensors");
    }
    for (size_t i = 0; i < c->n_files; i++) {
        for (size_t j = 0; j < c->files[i].n_tensors; j++) {
            c->tensors[c->n_tensors++] = (checkpoint_tensor){.tensor = c->files[i].tensors[j], .file = (uint32_t)i};
        }
    }
    qsort(c->tensors, c->n_tensors, sizeof *c->tensors, by_name);
    for (size_t i = 1; i < c->n_tensors; i++) {
        if (by_name(&c->tensors[i - 1], &c->tensors[i]) == 0) {
            return err_set(err, PERCH_E_FORMAT, "%s: %.128s is in %.100s and in %.100s", dir, c->tensors[i].tensor.name,
                           c->file_names[c->tensors[i - 1].file], c->file_names[c->tensors[i].file]);
        }
    }
    return PERCH_OK;
}

/* ----------------------------------------------------------------- index -- */

/* A file name that stays in the directory. */
static bool is_plain_name(const char *name) {
    return name[0] && strlen(name) < 256 && !strchr(name, '/') && strcmp(name, ".") != 0 && strcmp(name, "..") != 0;
}

static int by_text(const void *a, const void *b) { return strcmp(*(const char *const *)a, *(const char *const *)b); }

/* The different file names of weight_map, sorted, into c->file_names. */
static perch_status list_files(const jv *weight_map, const char *path, checkpoint *c, perch_error *err) {
    size_t last = 0;
    if (!weight_map || weight_map->type != JV_OBJECT || weight_map->n == 0) {
        return err_set(err, PERCH_E_FORMAT, "%s: weight_map: must be an object with tensors", path);
    }
    c->file_names = calloc(weight_map->n, sizeof *c->file_names);
    if (!c->file_names) {
        return err_nomem(err, "the list of files");
    }
    for (uint32_t i = 0; i < weight_map->n; i++) {
        const jv *file = &weight_map->as.children[i];
        const char *name = jv_string(file);
        if (!name || !is_plain_name(name)) {
            return err_set(err, PERCH_E_FORMAT,
                           "%s: weight_map: %.128s: \"%.128s\" is not the name of a file beside it", path, file->key,
                           name ? name : "");
        }
        c->file_names[i] = name;
    }
    qsort(c->file_names, weight_map->n, sizeof *c->file_names, by_text);
    for (uint32_t i = 1; i < weight_map->n; i++) {
        if (strcmp(c->file_names[last], c->file_names[i]) != 0) {
            c->file_names[++last] = c->file_names[i];
        }
    }
    c->n_files = last + 1;
    return PERCH_OK;
}

/* The index and the files must say the same. */
static perch_status check_index(const jv *weight_map, const char *path, const checkpoint *c, perch_error *err) {
    for (uint32_t i = 0; i < weight_map->n; i++) {
        const jv *file = &weight_map->as.children[i];
        const checkpoint_tensor *t = checkpoint_find(c, file->key);
        if (!t || strcmp(c->file_names[t->file], file->as.string) != 0) {
            return err_set(err, PERCH_E_FORMAT, "%s: weight_map: %.128s is not in %.128s", path, file->key,
                           file->as.string);
        }
    }
    for (size_t i = 0; i < c->n_tensors; i++) {
        if (!jv_get(weight_map, c->tensors[i].tensor.name)) {
            return err_set(err, PERCH_E_FORMAT, "%s: weight_map: %.128s is in %.128s, but missing here", path,
                           c->tensors[i].tensor.name, c->file_names[c->tensors[i].file]);
        }
    }
    return PERCH_OK;
}

static perch_status read_index(const char *path, jv_doc *out, perch_error *err) {
    char *text;
    size_t n_bytes;
    perch_status status = fields_read_file(path, MAX_INDEX_BYTES, &text, &n_bytes, err);
    if (status == PERCH_OK) {
        status = fields_parse(text, n_bytes, path, out, err);
        free(text);
    }
    return status;
}

static perch_status open_single(const char *dir, checkpoint *c, perch_error *err) {
    c->file_names = calloc(1, sizeof *c->file_names);
    if (!c->file_names) {
        return err_nomem(err, "the list of files");
    }
    c->file_names[0] = single_name;
    c->n_files = 1;
    return open_files(dir, c, err);
}

static perch_status open_sharded(const char *dir, const char *path, checkpoint *c, perch_error *err) {
    perch_status status = read_index(path, &c->index, err);
    if (status == PERCH_E_NOT_FOUND) {
        return err_set(err, status, "%s: has neither %s nor %s", dir, single_name, index_name);
    }
    const jv *weight_map = jv_get(c->index.root, "weight_map");
    if (status == PERCH_OK && (status = list_files(weight_map, path, c, err)) == PERCH_OK) {
        status = open_files(dir, c, err);
        status = status == PERCH_E_NOT_FOUND ? err_prefix(err, PERCH_E_IO, "%s", index_name) : status;
    }
    return status == PERCH_OK ? check_index(weight_map, path, c, err) : status;
}

perch_status checkpoint_open(const char *dir, checkpoint *out, perch_error *err) {
    char single[PATH_BYTES], index[PATH_BYTES];
    memset(out, 0, sizeof *out);
    perch_status status = join_path(dir, single_name, single, err);
    if (status == PERCH_OK) {
        status = join_path(dir, index_name, index, err);
    }
    if (status == PERCH_OK) {
        status = access(single, F_OK) == 0 ? open_single(dir, out, err) : open_sharded(dir, index, out, err);
    }
    if (status != PERCH_OK) {
        checkpoint_close(out);
    }
    return status;
}

perch_status checkpoint_probe_f32(const char *dir, bool *out, perch_error *err) {
    checkpoint c;
    perch_error reason;
    perch_status status = checkpoint_open(dir, &c, &reason);
    *out = false;
    if (status != PERCH_OK) {
        if (status == PERCH_E_NOT_FOUND) {
            return PERCH_OK;
        }
        return err_set(err, status, "%s", reason.message);
    }
    const checkpoint_tensor *t = checkpoint_find(&c, "model.embed_tokens.weight");
    if (!t && c.n_tensors > 0) {
        t = &c.tensors[0];
    }
    *out = t && t->tensor.dtype == SAFETENSORS_F32;
    checkpoint_close(&c);
    return PERCH_OK;
}
