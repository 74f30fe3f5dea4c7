/*
 * Every host allocation of loading a model fails in turn: a status comes back and nothing is left behind. The program is
 * linked with --wrap, so that the library's calls of malloc and its kin come here.
 */
#include "engine/model/testing.h"
#include "tests/support/reference_backend.h"

#include <stdlib.h>
#include <string.h>

void *__real_malloc(size_t n_bytes);
void *__real_calloc(size_t n, size_t n_bytes);
void *__real_realloc(void *memory, size_t n_bytes);
void *__real_aligned_alloc(size_t alignment, size_t n_bytes);
void __real_free(void *memory);
void *__wrap_malloc(size_t n_bytes);
void *__wrap_calloc(size_t n, size_t n_bytes);
void *__wrap_realloc(void *memory, size_t n_bytes);
void *__wrap_aligned_alloc(size_t alignment, size_t n_bytes);
void __wrap_free(void *memory);

static uint64_t n_calls, fail_at; /* the call, counted from 1, that fails; 0 = none */
static int64_t n_live;

static bool fails(void) { return ++n_calls == fail_at; }

void *__wrap_malloc(size_t n_bytes) {
    void *memory = fails() ? NULL : __real_malloc(n_bytes);
    n_live += memory != NULL;
    return memory;
}

void *__wrap_calloc(size_t n, size_t n_bytes) {
    void *memory = fails() ? NULL : __real_calloc(n, n_bytes);
    n_live += memory != NULL;
    return memory;
}

void *__wrap_realloc(void *memory, size_t n_bytes) {
    void *moved = fails() ? NULL : __real_realloc(memory, n_bytes);
    n_live += moved && !memory;
    return moved;
}

void *__wrap_aligned_alloc(size_t alignment, size_t n_bytes) {
    void *memory = fails() ? NULL : __real_aligned_alloc(alignment, n_bytes);
    n_live += memory != NULL;
    return memory;
}

void __wrap_free(void *memory) {
    n_live -= memory != NULL;
    __real_free(memory);
}

/* Configuration, weights and one forward pass; what allocations it made and left behind is in the counters. */
static perch_status load_and_run(const char *config_path, const char *dir, perch_error *err) {
    static const model_limits limits = {16, 2, 2, KERNELS_F32, KERNELS_WEIGHT_DTYPE};
    static const int32_t tokens[2] = {5, 7};
    static const uint32_t positions[2] = {0, 1}, token_row[2] = {0, 0}, rows[1] = {1};
    const kernels_backend *backend = kernels_reference();
    kernels_device *device = NULL;
    kv_layout layout;
    model_config config;
    model *m = NULL;
    void *kv = NULL;
    const float *logits;
    uint64_t armed = fail_at;
    fail_at = 0;
    CU_ASSERT_EQUAL_FATAL(backend->open(&(kernels_config){0}, &device, NULL), PERCH_OK);
    int64_t n_before = n_live;
    n_calls = 0;
    fail_at = armed;
    perch_status status = model_config_load(config_path, &config, err);
    if (status == PERCH_OK) {
        status = model_load(backend, device, &config, &limits, dir, 3, NULL, NULL, &m, err);
    }
    if (status == PERCH_OK) {
        uint64_t n_loaded = n_calls;
        fail_at = 0;
        model_kv_layout(&config, KERNELS_F32, &layout);
        CU_ASSERT_EQUAL_FATAL(backend->alloc(device, layout.group_bytes, &kv, NULL), PERCH_OK);
        const kernels_row row = {.kv = {.base = kv}, .n_tokens = 2};
        const kernels_batch batch = {.n_tokens = 2,
                                     .n_rows = 1,
                                     .n_logits = 1,
                                     .tokens = tokens,
                                     .positions = positions,
                                     .token_row = token_row,
                                     .rows = &row,
                                     .logit_tokens = rows};
        n_calls = 0;
        CU_ASSERT_EQUAL(model_forward(m, 0, &batch, err), PERCH_OK);
        CU_ASSERT_EQUAL(model_fetch_logits(m, 1, &logits, err), PERCH_OK);
        CU_ASSERT_EQUAL(n_calls, 0);
        n_calls = n_loaded;
    }
    fail_at = 0;
    model_destroy(m);
    backend->free(device, kv);
    CU_ASSERT_EQUAL(n_live, n_before);
    backend->close(device);
    return status;
}

static void fail_in_turn(const char *config_path, const char *dir) {
    perch_error err = {0};
    fail_at = 0;
    perch_status status = load_and_run(config_path, dir, &err);
    CHECK_MSG(status == PERCH_OK, "%s", err.message);
    uint64_t n = n_calls;
    CU_ASSERT_TRUE(n > 10);
    for (uint64_t i = 1; i <= n; i++) {
        err = (perch_error){0};
        fail_at = i;
        status = load_and_run(config_path, dir, &err);
        CHECK_MSG(status == PERCH_E_NOMEM, "allocation %llu of %llu: %s %s", (unsigned long long)i,
                  (unsigned long long)n, perch_status_name(status), err.message);
        CU_ASSERT_EQUAL(err.status, status);
        CU_ASSERT_TRUE(err.message[0] != 0);
    }
}

static void a_checkpoint(void) {
    fail_in_turn(test_fixture("model/llama-bias-f32"), test_fixture("model/llama-bias-f32"));
}

static void a_sharded_checkpoint(void) {
    fail_in_turn(test_fixture("model/mistral-bf16"), test_fixture("model/mistral-bf16"));
}

static void random_weights(void) { fail_in_turn(test_fixture("model/qwen3-bf16/config.json"), NULL); }

int main(int argc, char **argv) {
    static const test_case tests[] = {
        {"a checkpoint", a_checkpoint},
        {"a sharded checkpoint", a_sharded_checkpoint},
        {"random weights", random_weights},
    };
    return test_main("model_oom", tests, sizeof tests / sizeof tests[0], argc, argv);
}
