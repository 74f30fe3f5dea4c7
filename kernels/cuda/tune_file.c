/*
 * The plans of matrix products in a file, so that they are timed once for a GPU, driver and cuBLASLt. Text, one file for each
 * such key; the number of multiprocessors tells apart what has the same name and is cut to size:
 *
 *   perch gemm 1
 *   NVIDIA H200 | 132 SMs | driver 13000 | cuBLASLt 130100
 *   bf16 - 6144 4096 act 3 lt 0123456789abcdef … (eight words)
 *   bf16 - 6144 4096 act 0 small
 *
 * dtype, deterministic or -, n_out, n_in, kind, bucket, path, algorithm. An algorithm's words mean something to the same version of
 * cuBLASLt alone. A file that says anything else is as good as none; a new one takes its place at once (rename). Engines that start side
 * by side share it: each adds to what the file has by then, one after the other (the folder is locked meanwhile).
 */
#include "kernels/cuda/device.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#define TITLE "perch gemm 1"
#define MAX_RECORDS 65536u

static const char *const dtype_names[] = {[KERNELS_F32] = "f32", [KERNELS_F16] = "f16", [KERNELS_BF16] = "bf16"};
static const char *const kind_names[GEMM_KINDS] = {[GEMM_ACT] = "act", [GEMM_ADD] = "add", [GEMM_F32] = "f32"};

/* --- records */

static bool same_key(const gemm_record *a, const gemm_record *b) {
    return a->n_out == b->n_out && a->n_in == b->n_in && a->bucket == b->bucket && a->dtype == b->dtype &&
           a->deterministic == b->deterministic && a->kind == b->kind;
}

static gemm_record *find_record(const gemm_records *records, const gemm_record *like) {
    for (size_t i = 0; i < records->n; i++) {
        if (same_key(&records->list[i], like)) {
            return &records->list[i];
        }
    }
    return NULL;
}

const gemm_record *cuda_records_find(const gemm_records *records, const gemm_record *like) {
    return find_record(records, like);
}

perch_status cuda_records_put(gemm_records *records, const gemm_record *record, perch_error *err) {
    gemm_record *found = find_record(records, record);
    if (found != NULL) {
        *found = *record;
        return PERCH_OK;
    }
    void *list = records->list;
    perch_status status = array_reserve(&list, &records->cap, records->n + 1, sizeof *records->list, err);
    records->list = list;
    if (status == PERCH_OK) {
        records->list[records->n++] = *record;
    }
    return status;
}

/* --- reading */

static bool find_name(const char *name, const char *const *names, size_t n, uint8_t *out) {
    for (size_t i = 0; i < n; i++) {
        if (strcmp(names[i], name) == 0) {
            *out = (uint8_t)i;
            return true;
        }
    }
    return false;
}

static bool parse_algo(const char *text, cublasLtMatmulAlgo_t *out) {
    for (size_t i = 0; i < sizeof out->data / sizeof out->data[0]; i++) {
        char *end;
        errno = 0;
        out->data[i] = strtoull(text, &end, 16);
        if (end == text || errno != 0) {
            return false;
        }
        text = end;
    }
    return *text == '\n' || *text == '\0';
}

static bool parse_record(const char *line, gemm_record *out) {
    char dtype[8], deterministic[8], kind[8], path[8];
    int used = 0;
    *out = (gemm_record){0};
    if (sscanf(line, "%7s %7s %" SCNu32 " %" SCNu32 " %7s %" SCNu32 " %7s%n", dtype, deterministic, &out->n_out,
               &out->n_in, kind, &out->bucket, path, &used) != 7 ||
        out->bucket >= GEMM_BUCKETS || !find_name(dtype, dtype_names, 3, &out->dtype) ||
        !find_name(kind, kind_names, GEMM_KINDS, &out->kind)) {
        return false;
    }
    out->deterministic = strcmp(deterministic, "det") == 0;
    if (strcmp(path, "small") == 0) {
        out->path = GEMM_SMALL;
        return line[used] == '\n' || line[used] == '\0';
    }
    out->path = GEMM_LT;
    return strcmp(path, "lt") == 0 && parse_algo(line + used, &out->algo);
}

static bool line_is(const char *line, const char *text) {
    size_t n = strlen(text);
    return strncmp(line, text, n) == 0 && (line[n] == '\n' || line[n] == '\0');
}

static perch_status read_lines(const char *key, gemm_records *out, FILE *file, perch_error *err) {
    char line[512];
    perch_status status = PERCH_OK;
    bool valid = fgets(line, sizeof line, file) != NULL && line_is(line, TITLE) &&
                 fgets(line, sizeof line, file) != NULL && line_is(line, key);
    while (valid && status == PERCH_OK && fgets(line, sizeof line, file) != NULL) {
        gemm_record record;
        valid = out->n < MAX_RECORDS && parse_record(line, &record);
        if (valid) {
            status = cuda_records_put(out, &record, err);
        }
    }
    out->n = valid ? out->n : 0;
    return status;
}

/* What the file has now. */
static perch_status read_records(const cuda_gemm *gemm, gemm_records *out, perch_error *err) {
    FILE *file = fopen(gemm->path, "re");
    if (file == NULL) {
        return PERCH_OK;
    }
    perch_status status = read_lines(gemm->key, out, file, err);
    fclose(file);
    return status;
}

/* FNV-1a. */
static uint64_t hash(const char *text) {
    uint64_t h = 0xcbf29ce484222325u;
    for (; *text != '\0'; text++) {
        h = (h ^ (uint8_t)*text) * 0x100000001b3u;
    }
    return h;
}

perch_status cuda_records_open(kernels_device *device, const char *cache_dir, perch_error *err) {
    cuda_gemm *gemm = &device->gemm;
    int driver = 0;
    if (cache_dir == NULL) {
        return PERCH_OK;
    }
    perch_status status = cuda_check(device, cudaDriverGetVersion(&driver), "asking for the driver's version", err);
    if (status != PERCH_OK) {
        return status;
    }
    snprintf(gemm->key, sizeof gemm->key, "%s | %u SMs | driver %d | cuBLASLt %zu", device->name, device->n_processors,
             driver, cublasLtGetVersion());
    size_t bytes = strlen(cache_dir) + 64;
    gemm->path = malloc(bytes);
    if (gemm->path == NULL) {
        return err_nomem(err, "the path of the matrix products' file");
    }
    snprintf(gemm->path, bytes, "%s/gemm-%016" PRIx64 ".txt", cache_dir, hash(gemm->key));
    return read_records(gemm, &gemm->records, err);
}

void cuda_records_close(cuda_gemm *gemm) {
    free(gemm->records.list);
    free(gemm->path);
}

/* --- writing */

static void write_record(const gemm_record *r, FILE *file) {
    fprintf(file, "%s %s %" PRIu32 " %" PRIu32 " %s %" PRIu32 " %s", dtype_names[r->dtype],
            r->deterministic ? "det" : "-", r->n_out, r->n_in, kind_names[r->kind], r->bucket,
            r->path == GEMM_SMALL ? "small" : "lt");
    for (size_t i = 0; i < sizeof r->algo.data / sizeof r->algo.data[0] && r->path == GEMM_LT; i++) {
        fprintf(file, " %016" PRIx64, r->algo.data[i]);
    }
    putc('\n', file);
}

/* Makes the folders on the way to the file. */
static void make_folders(char *path) {
    for (char *slash = strchr(path + 1, '/'); slash != NULL; slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        (void)mkdir(path, 0777);
        *slash = '/';
    }
}

static void write_file(const char *path, const char *key, const gemm_records *records) {
    size_t bytes = strlen(path) + 32;
    char *temporary = malloc(bytes);
    if (temporary == NULL) {
        return;
    }
    snprintf(temporary, bytes, "%s.%ld", path, (long)getpid());
    (void)unlink(temporary); /* of a process of that number that ended in the middle */
    FILE *file = fopen(temporary, "wxe");
    if (file != NULL) {
        fprintf(file, "%s\n%s\n", TITLE, key);
        for (size_t i = 0; i < records->n; i++) {
            write_record(&records->list[i], file);
        }
        bool written = fflush(file) == 0 && !ferror(file);
        written = fclose(file) == 0 && written;
        if (!written || rename(temporary, path) != 0) {
            (void)unlink(temporary);
        }
    }
    free(temporary);
}

/* Its folder's lock, given back by close; -1: it can't be had, and then the last one who writes wins. */
static int lock_folder(char *path) {
    char *slash = strrchr(path, '/');
    *slash = '\0';
    int folder = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    *slash = '/';
    while (folder >= 0 && flock(folder, LOCK_EX) != 0 && errno == EINTR) {}
    return folder;
}

void cuda_records_save(const cuda_gemm *gemm) {
    gemm_records all = {0};
    if (gemm->path == NULL) {
        return;
    }
    make_folders(gemm->path);
    int folder = lock_folder(gemm->path);
    perch_status status = read_records(gemm, &all, NULL);
    for (size_t i = 0; i < gemm->records.n && status == PERCH_OK; i++) {
        status = cuda_records_put(&all, &gemm->records.list[i], NULL);
    }
    if (status == PERCH_OK) {
        write_file(gemm->path, gemm->key, &all);
    }
    free(all.list);
    if (folder >= 0) {
        (void)close(folder);
    }
}
