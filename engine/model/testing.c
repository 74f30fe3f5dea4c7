/* testing: shared by the tests of engine/model. */
#include "engine/model/testing.h"

#include "tests/support/reference_backend.h"

#include <dirent.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ------------------------------------------------------------- directory -- */

static char scratch[256];

const char *testing_dir_make(void) {
    const char *parent = getenv("TMPDIR");
    snprintf(scratch, sizeof scratch, "%s/perch-model-XXXXXX", parent ? parent : "/tmp");
    CU_ASSERT_PTR_NOT_NULL_FATAL(mkdtemp(scratch));
    return scratch;
}

void testing_dir_remove(void) {
    DIR *dir = opendir(scratch);
    CU_ASSERT_PTR_NOT_NULL_FATAL(dir);
    for (struct dirent *entry = readdir(dir); entry; entry = readdir(dir)) {
        char path[600];
        snprintf(path, sizeof path, "%s/%s", scratch, entry->d_name);
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0) {
            remove(path);
        }
    }
    closedir(dir);
    CU_ASSERT_EQUAL(rmdir(scratch), 0);
}

const char *testing_write(const char *name, const void *bytes, size_t n_bytes) {
    static char path[600];
    snprintf(path, sizeof path, "%s/%s", scratch, name);
    FILE *file = fopen(path, "wb");
    CU_ASSERT_PTR_NOT_NULL_FATAL(file);
    CU_ASSERT_EQUAL(fwrite(bytes, 1, n_bytes, file), n_bytes);
    CU_ASSERT_EQUAL(fclose(file), 0);
    return path;
}

/* ------------------------------------------------------------------ file -- */

void testing_file_load(testing_file *file, const char *fixture, safetensors *opened) {
    char path[300];
    snprintf(path, sizeof path, "model/%s/model.safetensors", fixture);
    CU_ASSERT_EQUAL_FATAL(safetensors_open(test_fixture(path), opened, NULL), PERCH_OK);
    CU_ASSERT_TRUE_FATAL(opened->n_tensors <= TESTING_MAX_TENSORS);
    memcpy(file->tensors, opened->tensors, opened->n_tensors * sizeof *file->tensors);
    file->n_tensors = opened->n_tensors;
    file->n_padding = 0;
}

safetensor *testing_file_find(testing_file *file, const char *name) {
    for (size_t i = 0; i < file->n_tensors; i++) {
        if (strcmp(file->tensors[i].name, name) == 0) {
            return &file->tensors[i];
        }
    }
    CU_FAIL_FATAL("no such tensor");
    return NULL;
}

void testing_file_drop(testing_file *file, const char *name) {
    *testing_file_find(file, name) = file->tensors[file->n_tensors - 1];
    file->n_tensors--;
}

void testing_file_add(testing_file *file, const char *name, safetensors_dtype dtype, uint64_t rows, uint64_t cols,
                      const void *data) {
    uint64_t element = dtype == SAFETENSORS_F32 || dtype == SAFETENSORS_I32 ? 4 : 2;
    CU_ASSERT_TRUE_FATAL(file->n_tensors < TESTING_MAX_TENSORS);
    file->tensors[file->n_tensors++] = (safetensor){.name = name,
                                                    .dtype = dtype,
                                                    .n_dims = cols ? 2 : 1,
                                                    .dims = {rows, cols},
                                                    .data = data,
                                                    .n_bytes = rows * (cols ? cols : 1) * element};
}

void testing_file_write(const testing_file *file, const char *name) {
    char *header = NULL, shape[64];
    size_t n_header = 0, at = 0, n_data = 0;
    FILE *stream = open_memstream(&header, &n_header);
    CU_ASSERT_PTR_NOT_NULL_FATAL(stream);
    for (size_t i = 0; i < file->n_tensors; i++) {
        const safetensor *t = &file->tensors[i];
        fprintf(stream, "%s\"%s\":{\"dtype\":\"%s\",\"shape\":%s,\"data_offsets\":[%zu,%zu]}", i ? "," : "{", t->name,
                safetensors_dtype_name(t->dtype), safetensors_shape_text(t, shape, sizeof shape), n_data,
                n_data + (size_t)t->n_bytes);
        n_data += (size_t)t->n_bytes;
    }
    fprintf(stream, "}%*s", (int)file->n_padding, "");
    fclose(stream);
    uint8_t *bytes = calloc(1, 8 + n_header + n_data);
    CU_ASSERT_PTR_NOT_NULL_FATAL(bytes);
    for (unsigned i = 0; i < 8; i++) {
        bytes[i] = (uint8_t)((uint64_t)n_header >> (8 * i));
    }
    memcpy(bytes + 8, header, n_header);
    at = 8 + n_header;
    for (size_t i = 0; i < file->n_tensors; i++) {
        memcpy(bytes + at, file->tensors[i].data, (size_t)file->tensors[i].n_bytes);
        at += (size_t)file->tensors[i].n_bytes;
    }
    testing_write(name, bytes, at);
    free(bytes);
    free(header);
}

/* --------------------------------------------------------------- counting -- */

testing_count testing_counted;

#define MAX_BLOCKS 4096
static struct {
    void *memory;
    uint64_t bytes;
} blocks[MAX_BLOCKS];
static size_t n_blocks;

static void count_alloc(void *memory, uint64_t bytes) {
    CU_ASSERT_TRUE_FATAL(n_blocks < MAX_BLOCKS);
    blocks[n_blocks].memory = memory;
    blocks[n_blocks++].bytes = bytes;
    testing_counted.n_allocs++;
    testing_counted.live_bytes += bytes;
    if (testing_counted.live_bytes > testing_counted.peak_bytes) {
        testing_counted.peak_bytes = testing_counted.live_bytes;
    }
}

static void count_free(const void *memory) {
    for (size_t i = 0; memory && i < n_blocks; i++) {
        if (blocks[i].memory == memory) {
            testing_counted.live_bytes -= blocks[i].bytes;
            blocks[i] = blocks[--n_blocks];
            return;
        }
    }
    CU_ASSERT_PTR_NULL(memory);
}

static bool fails(perch_error *err, perch_status *status) {
    testing_counted.n_calls++;
    if (testing_counted.n_calls != testing_counted.fail_at) {
        return false;
    }
    *status = err_set(err, PERCH_E_DEVICE, "made to fail");
    return true;
}

/* Each wrapper fails where it is told to, or hands on to the reference backend. */
#define WRAP(call)                                                                                                     \
    perch_status status;                                                                                               \
    if (fails(err, &status)) {                                                                                         \
        return status;                                                                                                 \
    }                                                                                                                  \
    status = kernels_reference()->call

static perch_status counted_alloc(kernels_device *d, size_t bytes, void **out, perch_error *err) {
    WRAP(alloc(d, bytes, out, err));
    if (status == PERCH_OK) {
        count_alloc(*out, bytes);
    }
    return status;
}

static void counted_free(kernels_device *d, void *buffer) {
    count_free(buffer);
    kernels_reference()->free(d, buffer);
}

static perch_status counted_upload(kernels_device *d, void *to, const void *from, size_t bytes, perch_error *err) {
    WRAP(upload(d, to, from, bytes, err));
    testing_counted.n_uploaded += bytes;
    return status;
}

static perch_status counted_download(kernels_device *d, void *to, const void *from, size_t bytes, perch_error *err) {
    WRAP(download(d, to, from, bytes, err));
    return status;
}

static perch_status counted_weight_create(kernels_device *d, uint32_t n_out, uint32_t n_in,
                                          kernels_weight_format format, kernels_weight **out, perch_error *err) {
    WRAP(weight_create(d, n_out, n_in, format, out, err));
    if (status == PERCH_OK) {
        count_alloc(*out, kernels_reference()->weight_bytes(d, n_out, n_in, format));
    }
    return status;
}

static void counted_weight_destroy(kernels_device *d, kernels_weight *weight) {
    count_free(weight);
    kernels_reference()->weight_destroy(d, weight);
}

static perch_status counted_set_rows(kernels_device *d, kernels_weight *weight, uint32_t first, uint32_t n,
                                     kernels_dtype dtype, const void *rows, perch_error *err) {
    CU_ASSERT_EQUAL((uintptr_t)rows % (dtype == KERNELS_F32 ? 4 : 2), 0);
    WRAP(weight_set_rows(d, weight, first, n, dtype, rows, err));
    if (testing_counted.on_rows) {
        testing_counted.on_rows();
    }
    return status;
}

static perch_status counted_embed(kernels_device *d, const kernels_weight *weight, const kernels_batch *batch,
                                  uint32_t n, float *y, perch_error *err) {
    WRAP(embed(d, weight, batch, n, y, err));
    return status;
}

static perch_status counted_rmsnorm(kernels_device *d, const float *x, const float *gain, float eps, uint32_t n,
                                    uint32_t width, void *y, perch_error *err) {
    WRAP(rmsnorm(d, x, gain, eps, n, width, y, err));
    return status;
}

static perch_status counted_linear(kernels_device *d, const kernels_weight *weight, const float *bias, const void *x,
                                   uint32_t n, void *y, bool accumulate, perch_error *err) {
    WRAP(linear(d, weight, bias, x, n, y, accumulate, err));
    return status;
}

static perch_status counted_linear_f32(kernels_device *d, const kernels_weight *weight, const void *x, uint32_t n,
                                       float *y, perch_error *err) {
    WRAP(linear_f32(d, weight, x, n, y, err));
    return status;
}

static perch_status counted_head_norm(kernels_device *d, void *x, uint32_t n, uint32_t stride, uint32_t offset,
                                      uint32_t n_heads, uint32_t head_dim, const float *gain, float eps,
                                      perch_error *err) {
    WRAP(head_norm(d, x, n, stride, offset, n_heads, head_dim, gain, eps, err));
    return status;
}

static perch_status counted_rope_write(kernels_device *d, const kernels_batch *batch, const kernels_attention *a,
                                       const float *table, void *qkv, perch_error *err) {
    WRAP(rope_write(d, batch, a, table, qkv, err));
    return status;
}

static perch_status counted_attention(kernels_device *d, const kernels_batch *batch, const kernels_attention *a,
                                      const void *qkv, void *out, perch_error *err) {
    WRAP(attention(d, batch, a, qkv, out, err));
    return status;
}

static perch_status counted_silu_mul(kernels_device *d, const void *gate_up, uint32_t n, uint32_t width, void *y,
                                     perch_error *err) {
    WRAP(silu_mul(d, gate_up, n, width, y, err));
    return status;
}

static perch_status counted_gather(kernels_device *d, const kernels_batch *batch, uint32_t n, const void *x,
                                   size_t row_bytes, void *y, perch_error *err) {
    WRAP(gather(d, batch, n, x, row_bytes, y, err));
    return status;
}

const kernels_backend *testing_counting_backend(void) {
    static kernels_backend counting;
    counting = *kernels_reference();
    counting.alloc = counted_alloc;
    counting.free = counted_free;
    counting.upload = counted_upload;
    counting.download = counted_download;
    counting.weight_create = counted_weight_create;
    counting.weight_destroy = counted_weight_destroy;
    counting.weight_set_rows = counted_set_rows;
    counting.embed = counted_embed;
    counting.rmsnorm = counted_rmsnorm;
    counting.linear = counted_linear;
    counting.linear_f32 = counted_linear_f32;
    counting.head_norm = counted_head_norm;
    counting.rope_write = counted_rope_write;
    counting.attention = counted_attention;
    counting.silu_mul = counted_silu_mul;
    counting.gather = counted_gather;
    testing_counted = (testing_count){0};
    n_blocks = 0;
    return &counting;
}

/* ------------------------------------------------------------------ runs -- */

bool testing_model_open(testing_model *t, const kernels_backend *backend, kernels_dtype dtype,
                        const model_config *config, const char *dir, uint32_t session_len, uint32_t max_step_tokens) {
    perch_error err = {0};
    kernels_config device_config = {.dtype = dtype, .n_threads = 2, .deterministic = true, .graphs = true};
    kv_layout layout;
    *t = (testing_model){.backend = backend, .config = *config};
    t->limits = (model_limits){session_len, max_step_tokens, max_step_tokens, dtype, KERNELS_WEIGHT_DTYPE};
    perch_status status = backend->open(&device_config, &t->device, &err);
    if (status == PERCH_OK) {
        status = model_load(backend, t->device, config, &t->limits, dir, 1, NULL, NULL, &t->model, &err);
    }
    if (status == PERCH_OK) {
        model_kv_layout(config, dtype, &layout);
        size_t n_groups = (session_len + KV_GROUP_TOKENS - 1) / KV_GROUP_TOKENS;
        status = backend->alloc(t->device, n_groups * layout.group_bytes, &t->kv, &err);
    }
    if (status == PERCH_OK && backend->async && backend->async->reserve) { /* a test's own may have none */
        kernels_limits limits;
        model_kernels_limits(config, &t->limits, 2, &limits);
        status = backend->async->reserve(t->device, &limits, &err);
    }
    return CHECK_MSG(status == PERCH_OK, "%s: %s", perch_status_name(status), err.message);
}

void testing_model_close(testing_model *t) {
    if (t->device) {
        model_destroy(t->model);
        t->backend->free(t->device, t->kv);
        t->backend->close(t->device);
    }
    *t = (testing_model){0};
}

perch_status testing_model_pass(testing_model *t, const kernels_batch *batch, perch_error *err) {
    const kernels_async *async = t->backend->async && t->backend->async->choose ? t->backend->async : NULL;
    const kernels_chosen *none;
    perch_status status = model_forward(t->model, t->lane, batch, err);
    if (status == PERCH_OK && async) {
        status = async->choose(t->device, t->lane, model_logits(t->model), NULL, 0, err);
    }
    if (status == PERCH_OK && async) {
        status = async->wait(t->device, t->lane, &none, err);
        t->lane = (t->lane + 1) % KERNELS_LANES;
    }
    return status;
}

const float *testing_model_step(testing_model *t, const int32_t *tokens, uint32_t first, uint32_t n,
                                const uint32_t *rows, uint32_t n_rows) {
    uint32_t positions[512], token_row[512] = {0};
    kernels_row row = {.kv = {.base = t->kv}, .first_token = 0, .n_tokens = n, .first_position = first};
    const kernels_batch batch = {.n_tokens = n,
                                 .n_rows = 1,
                                 .n_logits = n_rows,
                                 .tokens = tokens + first,
                                 .positions = positions,
                                 .token_row = token_row,
                                 .rows = &row,
                                 .logit_tokens = rows};
    const float *logits = NULL;
    perch_error err = {0};
    CU_ASSERT_TRUE_FATAL(n <= 512);
    for (uint32_t i = 0; i < n; i++) {
        positions[i] = first + i;
    }
    perch_status status = testing_model_pass(t, &batch, &err);
    if (status == PERCH_OK) {
        status = model_fetch_logits(t->model, n_rows, &logits, &err);
    }
    CHECK_MSG(status == PERCH_OK, "%s: %s", perch_status_name(status), err.message);
    return logits;
}

float *testing_model_run(testing_model *t, const int32_t *tokens, uint32_t n, uint32_t chunk) {
    uint32_t rows[512];
    size_t vocab = t->config.vocab_size;
    float *all = calloc(n, vocab * sizeof *all);
    CU_ASSERT_PTR_NOT_NULL_FATAL(all);
    for (uint32_t i = 0; i < 512; i++) {
        rows[i] = i;
    }
    for (uint32_t first = 0; first < n; first += chunk) {
        uint32_t n_step = n - first < chunk ? n - first : chunk;
        const float *logits = testing_model_step(t, tokens, first, n_step, rows, n_step);
        memcpy(all + first * vocab, logits, n_step * vocab * sizeof *all);
    }
    return all;
}

double testing_difference(const float *a, const float *b, size_t n) {
    double difference = 0, largest = 0;
    for (size_t i = 0; i < n; i++) {
        difference = fmax(difference, fabs((double)a[i] - (double)b[i]));
        largest = fmax(largest, fabs((double)b[i]));
        if (!isfinite(a[i])) {
            return (double)INFINITY;
        }
    }
    return difference / largest;
}
