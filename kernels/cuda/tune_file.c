/*
 * The plans of matrix products in a file, so that they are timed once for a GPU, driver and cuBLASLt. Text, one file for each
 * such key:
 *
 *   perch gemm 1
 *   NVIDIA H200 | driver 13000 | cuBLASLt 130100
 *   bf16 - 6144 4096 act 3 lt 0123456789abcdef … (eight words)
 *   bf16 - 6144 4096 act 0 small
 *
 * dtype, deterministic or -, n_out, n_in, kind, bucket, path, algorithm. An algorithm's words mean something to the same version of
 * cuBLASLt alone. A file that says anything else is as good as none; a new one takes its place at once (rename).
 */
#include "kernels/cuda/device.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
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

const gemm_record *cuda_records_find(const cuda_gemm *gemm, const gemm_record *like) {
    for (size_t i = 0; i < gemm->n_records; i++) {
        if (same_key(&gemm->records[i], like)) {
            return &gemm->records[i];
        }
    }
    return NULL;
}

perch_status cuda_records_put(cuda_gemm *gemm, const gemm_record *record, perch_error *err) {
    for (size_t i = 0; i < gemm->n_records; i++) {
        if (same_key(&gemm->records[i], record)) {
            gemm->records[i] = *record;
            return PERCH_OK;
        }
    }
    void *records = gemm->records;
    perch_status status = array_reserve(&records, &gemm->records_cap, gemm->n_records + 1, sizeof *gemm->records, err);
    gemm->records = records;
    if (status == PERCH_OK) {
        gemm->records[gemm->n_records++] = *record;
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

static perch_status read_records(cuda_gemm *gemm, FILE *file, perch_error *err) {
    char line[512];
    perch_status status = PERCH_OK;
    bool valid = fgets(line, sizeof line, file) != NULL && line_is(line, TITLE) &&
                 fgets(line, sizeof line, file) != NULL && line_is(line, gemm->key);
    while (valid && status == PERCH_OK && fgets(line, sizeof line, file) != NULL) {
        gemm_record record;
        valid = gemm->n_records < MAX_RECORDS && parse_record(line, &record);
        if (valid) {
            status = cuda_records_put(gemm, &record, err);
        }
    }
    if (!valid) {
        gemm->n_records = 0;
    }
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
    snprintf(gemm->key, sizeof gemm->key, "%s | driver %d | cuBLASLt %zu", device->name, driver, cublasLtGetVersion());
    size_t bytes = strlen(cache_dir) + 64;
    gemm->path = malloc(bytes);
    if (gemm->path == NULL) {
        return err_nomem(err, "the path of the matrix products' file");
    }
    snprintf(gemm->path, bytes, "%s/gemm-%016" PRIx64 ".txt", cache_dir, hash(gemm->key));
    FILE *file = fopen(gemm->path, "re");
    if (file != NULL) {
        status = read_records(gemm, file, err);
        fclose(file);
    }
    return status;
}

void cuda_records_close(cuda_gemm *gemm) {
    free(gemm->records);
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

void cuda_records_save(const cuda_gemm *gemm) {
    if (gemm->path == NULL) {
        return;
    }
    size_t bytes = strlen(gemm->path) + 32;
    char *temporary = malloc(bytes);
    if (temporary == NULL) {
        return;
    }
    snprintf(temporary, bytes, "%s.%ld", gemm->path, (long)getpid());
    (void)unlink(temporary); /* of a process of that number that ended in the middle */
    make_folders(temporary);
    FILE *file = fopen(temporary, "wxe");
    if (file != NULL) {
        fprintf(file, "%s\n%s\n", TITLE, gemm->key);
        for (size_t i = 0; i < gemm->n_records; i++) {
            write_record(&gemm->records[i], file);
        }
        bool written = fflush(file) == 0 && !ferror(file);
        written = fclose(file) == 0 && written;
        if (!written || rename(temporary, gemm->path) != 0) {
            (void)unlink(temporary);
        }
    }
    free(temporary);
}
