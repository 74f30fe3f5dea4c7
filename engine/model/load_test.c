/* load: what a checkpoint must hold, what loading costs, and what happens where it fails. */
#include "engine/model/model_impl.h"
#include "engine/model/rope.h"
#include "engine/model/testing.h"
#include "tests/support/reference_backend.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char embedding[] = "model.embed_tokens.weight";
static const int32_t some_tokens[] = {3, 1, 4, 15, 92, 65, 35, 89, 79, 32, 38, 46, 26, 43, 38, 32, 79, 50, 28, 84};
#define N_SOME (sizeof some_tokens / sizeof some_tokens[0])

static model_config config_of(const char *fixture) {
    char path[300];
    model_config config;
    snprintf(path, sizeof path, "model/%s", fixture);
    CU_ASSERT_EQUAL_FATAL(model_config_load(test_fixture(path), &config, NULL), PERCH_OK);
    return config;
}

/* Loads DIR on the counting backend; whatever comes of it, nothing may be left behind. */
static perch_status load(const model_config *config, const char *dir, uint64_t fail_at, perch_error *err) {
    static const model_limits limits = {64, 8, 4, KERNELS_F32, KERNELS_WEIGHT_DTYPE};
    const kernels_backend *backend = testing_counting_backend();
    kernels_device *device = NULL;
    model *m = NULL;
    *err = (perch_error){0};
    CU_ASSERT_EQUAL_FATAL(backend->open(&(kernels_config){0}, &device, err), PERCH_OK);
    testing_counted.fail_at = fail_at;
    perch_status status = model_load(backend, device, config, &limits, dir, 7, NULL, NULL, &m, err);
    CU_ASSERT_EQUAL(m == NULL, status != PERCH_OK);
    CU_ASSERT_EQUAL(err->status, status);
    model_destroy(m);
    CU_ASSERT_EQUAL(testing_counted.live_bytes, 0);
    backend->close(device);
    return status;
}

static void expect(const model_config *config, const char *dir, perch_status want, const char *says) {
    perch_error err;
    perch_status status = load(config, dir, 0, &err);
    CHECK_MSG(status == want && strstr(err.message, says), "%s: \"%s\", wanted \"%s\"", perch_status_name(status),
              err.message, says);
}

/* ------------------------------------------------------------ what it holds -- */

static void every_missing_tensor_is_named(void) {
    static const char *const fixtures[] = {"llama-bf16", "llama-bias-f32", "qwen2-f16", "qwen3-bf16", "qwen3-bias-f32"};
    const char *dir = testing_dir_make();
    for (size_t i = 0; i < sizeof fixtures / sizeof fixtures[0]; i++) {
        model_config config = config_of(fixtures[i]);
        safetensors opened;
        testing_file file;
        testing_file_load(&file, fixtures[i], &opened);
        testing_file_write(&file, "model.safetensors");
        expect(&config, dir, PERCH_OK, "");
        for (size_t t = 0; t < opened.n_tensors; t++) {
            char says[200];
            testing_file without = file;
            testing_file_drop(&without, opened.tensors[t].name);
            testing_file_write(&without, "model.safetensors");
            snprintf(says, sizeof says, "the tensor %s is missing", opened.tensors[t].name);
            expect(&config, dir, PERCH_E_FORMAT, says);
        }
        safetensors_close(&opened);
    }
    testing_dir_remove();
}

static void unknown_tensors_are_named_unless_harmless(void) {
    static const float numbers[4] = {1, 2, 3, 4};
    model_config config = config_of("llama-bf16");
    safetensors opened;
    testing_file file;
    const char *dir = testing_dir_make();
    testing_file_load(&file, "llama-bf16", &opened);
    testing_file_add(&file, "model.layers.0.self_attn.rotary_emb.inv_freq", SAFETENSORS_F32, 4, 0, numbers);
    testing_file_write(&file, "model.safetensors");
    expect(&config, dir, PERCH_OK, "");
    testing_file_add(&file, "model.layers.0.self_attn.q_proj.bias", SAFETENSORS_F32, 4, 0, numbers);
    testing_file_write(&file, "model.safetensors");
    expect(&config, dir, PERCH_E_UNSUPPORTED, "the tensor model.layers.0.self_attn.q_proj.bias is unknown to a llama");
    config.n_layers = 1;
    testing_file_drop(&file, "model.layers.0.self_attn.q_proj.bias");
    testing_file_write(&file, "model.safetensors");
    expect(&config, dir, PERCH_E_UNSUPPORTED, "the tensor model.layers.1.");
    safetensors_close(&opened);
    testing_dir_remove();
}

static void wrong_shapes_and_types_are_named(void) {
    static const float numbers[32] = {0};
    model_config config = config_of("llama-bf16");
    safetensors opened;
    testing_file file;
    const char *dir = testing_dir_make();
    testing_file_load(&file, "llama-bf16", &opened);
    safetensor *t = testing_file_find(&file, "model.layers.1.mlp.up_proj.weight");
    t->dims[0] = 32;
    t->dims[1] = 40;
    testing_file_write(&file, "model.safetensors");
    expect(&config, dir, PERCH_E_FORMAT,
           "model.layers.1.mlp.up_proj.weight: the shape is [32, 40], but config.json makes it [40, 32]");
    t->dims[0] = 40;
    t->dims[1] = 32;
    t = testing_file_find(&file, "model.norm.weight");
    t->n_dims = 2;
    t->dims[1] = 1;
    testing_file_write(&file, "model.safetensors");
    expect(&config, dir, PERCH_E_FORMAT, "model.norm.weight: the shape is [32, 1], but config.json makes it [32]");
    testing_file_drop(&file, "model.norm.weight");
    testing_file_add(&file, "model.norm.weight", SAFETENSORS_I32, 32, 0, numbers);
    testing_file_write(&file, "model.safetensors");
    expect(&config, dir, PERCH_E_UNSUPPORTED, "model.norm.weight: dtype I32");
    safetensors_close(&opened);
    testing_dir_remove();
}

static void no_weights_at_all(void) {
    model_config config = config_of("llama-bf16");
    const char *dir = testing_dir_make();
    expect(&config, dir, PERCH_E_IO, "no weights");
    testing_dir_remove();
}

/* ------------------------------------------------------------------- tied -- */

static void tied_embeddings_may_be_stored_either_way_or_twice_alike(void) {
    model_config config = config_of("llama-head-f16"), untied = config;
    safetensors opened;
    testing_file file;
    const char *dir = testing_dir_make();
    testing_file_load(&file, "llama-head-f16", &opened);
    const safetensor head = *testing_file_find(&file, "lm_head.weight");
    testing_file_add(&file, embedding, SAFETENSORS_F16, head.dims[0], head.dims[1], head.data);
    testing_file_write(&file, "model.safetensors");
    expect(&config, dir, PERCH_OK, "");
    uint8_t *other = malloc((size_t)head.n_bytes);
    CU_ASSERT_PTR_NOT_NULL_FATAL(other);
    memcpy(other, head.data, (size_t)head.n_bytes);
    other[head.n_bytes - 1] ^= 0x40;
    testing_file_find(&file, embedding)->data = other;
    testing_file_write(&file, "model.safetensors");
    expect(&config, dir, PERCH_E_UNSUPPORTED, "model.embed_tokens.weight and lm_head.weight differ");
    untied.tied_embeddings = false;
    expect(&untied, dir, PERCH_OK, "");
    testing_file_drop(&file, "lm_head.weight");
    testing_file_write(&file, "model.safetensors");
    expect(&config, dir, PERCH_OK, "");
    expect(&untied, dir, PERCH_E_FORMAT, "the tensor lm_head.weight is missing");
    testing_file_drop(&file, embedding);
    testing_file_write(&file, "model.safetensors");
    expect(&config, dir, PERCH_E_FORMAT, "the tensor model.embed_tokens.weight is missing");
    free(other);
    safetensors_close(&opened);
    testing_dir_remove();
}

/* Data at odd addresses (a header without padding) and in any order gives the same logits. */
static void tensors_may_lie_askew(void) {
    static const char *const fixtures[] = {"llama-bf16", "qwen2-f16", "llama-bias-f32"};
    for (size_t i = 0; i < sizeof fixtures / sizeof fixtures[0]; i++) {
        model_config config = config_of(fixtures[i]);
        float *straight = NULL;
        for (unsigned padding = 0; padding < 4; padding++) {
            safetensors opened;
            testing_file file;
            testing_model t;
            const char *dir = testing_dir_make();
            testing_file_load(&file, fixtures[i], &opened);
            file.n_padding = padding;
            for (size_t a = 0; padding % 2 && a < file.n_tensors / 2; a++) {
                safetensor swap = file.tensors[a];
                file.tensors[a] = file.tensors[file.n_tensors - 1 - a];
                file.tensors[file.n_tensors - 1 - a] = swap;
            }
            testing_file_write(&file, "model.safetensors");
            if (testing_model_open(&t, testing_counting_backend(), KERNELS_F32, &config, dir, 32, 32)) {
                float *logits = testing_model_run(&t, some_tokens, N_SOME, N_SOME);
                straight = straight ? straight : logits;
                CU_ASSERT_EQUAL(memcmp(straight, logits, N_SOME * config.vocab_size * sizeof(float)), 0);
                if (logits != straight) {
                    free(logits);
                }
            }
            testing_model_close(&t);
            safetensors_close(&opened);
            testing_dir_remove();
        }
        free(straight);
    }
}

/* ----------------------------------------------------------------- memory -- */

static void the_memory_plan_is_what_is_allocated(void) {
    static const char *const fixtures[] = {"llama-bf16", "llama-bias-f32", "llama-head-f16", "mistral-bf16",
                                           "qwen2-f16",  "qwen3-bf16",     "qwen3-bias-f32"};
    static const model_limits limits[] = {{1, 1, 1, KERNELS_F32, KERNELS_WEIGHT_DTYPE},
                                          {100, 24, 7, KERNELS_BF16, KERNELS_WEIGHT_DTYPE},
                                          {33, 5, 5, KERNELS_F32, KERNELS_WEIGHT_DTYPE},
                                          {8, 300, 300, KERNELS_F32, KERNELS_WEIGHT_DTYPE},
                                          {2000, 3, 40, KERNELS_F32, KERNELS_WEIGHT_DTYPE}};
    for (size_t i = 0; i < sizeof fixtures / sizeof fixtures[0]; i++) {
        for (size_t j = 0; j < sizeof limits / sizeof limits[0]; j++) {
            const kernels_backend *backend = testing_counting_backend();
            model_config config = config_of(fixtures[i]);
            char path[300];
            kernels_device *device = NULL;
            model *m = NULL;
            model_memory plan;
            perch_error err = {0};
            snprintf(path, sizeof path, "model/%s", fixtures[i]);
            CU_ASSERT_EQUAL_FATAL(backend->open(&(kernels_config){0}, &device, NULL), PERCH_OK);
            model_memory_compute(backend, device, &config, &limits[j], &plan);
            CU_ASSERT_EQUAL(testing_counted.n_calls, 0);
            perch_status status =
                model_load(backend, device, &config, &limits[j], test_fixture(path), 0, NULL, NULL, &m, &err);
            CHECK_MSG(status == PERCH_OK, "%s", err.message);
            uint64_t host_logits = (uint64_t)limits[j].max_logit_rows * config.vocab_size * sizeof(float);
            CHECK_MSG(testing_counted.live_bytes == plan.weights_bytes + plan.workspace_bytes,
                      "%s: %llu allocated, %llu + %llu planned", fixtures[i],
                      (unsigned long long)testing_counted.live_bytes, (unsigned long long)plan.weights_bytes,
                      (unsigned long long)plan.workspace_bytes);
            CU_ASSERT_EQUAL(testing_counted.peak_bytes, testing_counted.live_bytes);
            CU_ASSERT_EQUAL(plan.host_bytes, sizeof(model) + config.n_layers * sizeof(model_layer) + host_logits);
            model_destroy(m);
            CU_ASSERT_EQUAL(testing_counted.live_bytes, 0);
            backend->close(device);
        }
    }
}

static void a_forward_pass_allocates_nothing(void) {
    model_config config = config_of("qwen2-f16");
    testing_model t;
    if (testing_model_open(&t, testing_counting_backend(), KERNELS_F32, &config, test_fixture("model/qwen2-f16"), 64,
                           32)) {
        uint64_t n_allocs = testing_counted.n_allocs, n_uploaded = testing_counted.n_uploaded;
        free(testing_model_run(&t, some_tokens, N_SOME, 6));
        CU_ASSERT_EQUAL(testing_counted.n_allocs, n_allocs);
        CU_ASSERT_EQUAL(testing_counted.n_uploaded, n_uploaded);
    }
    testing_model_close(&t);
}

static void the_kv_layout_is_the_contract(void) {
    model_config config = config_of("qwen3-bf16");
    kv_layout layout;
    model_kv_layout(&config, KERNELS_F32, &layout);
    CU_ASSERT_TRUE(layout.n_layers == 2 && layout.n_kv_heads == 2 && layout.head_dim == 16 &&
                   layout.element_bytes == 4);
    CU_ASSERT_EQUAL(layout.group_bytes, 2 * 2 * 2 * 16 * 16 * 4);
    model_kv_layout(&config, KERNELS_BF16, &layout);
    CU_ASSERT_EQUAL(layout.element_bytes, 2);
    CU_ASSERT_EQUAL(layout.group_bytes, 2 * 2 * 2 * 16 * 16 * 2);
}

/* The table on the device has a row for every position, beyond the part that is made at once too. */
static void the_rope_table_is_whole(void) {
    enum { SESSION = 2500 };
    model_config config = config_of("llama-bf16");
    testing_model t;
    config.rope = (rope_config){
        .kind = ROPE_DYNAMIC, .theta = 500, .factor = 2, .attention_factor = 1, .original_max_positions = 1000};
    if (testing_model_open(&t, testing_counting_backend(), KERNELS_F32, &config, test_fixture("model/llama-bf16"),
                           SESSION, 1)) {
        size_t n = (size_t)SESSION * config.head_dim;
        float *want = malloc(n * sizeof *want), *have = malloc(n * sizeof *have);
        double scratch[64];
        CU_ASSERT_TRUE_FATAL(want && have && config.head_dim / 2 <= 64);
        rope_table(&config.rope, config.head_dim, 0, SESSION, scratch, want);
        CU_ASSERT_EQUAL(
            t.backend->download(t.device, have, t.model->workspace + t.model->at.rope, n * sizeof *have, NULL),
            PERCH_OK);
        CU_ASSERT_EQUAL(memcmp(have, want, n * sizeof *have), 0);
        free(want);
        free(have);
    }
    testing_model_close(&t);
}

/* --------------------------------------------------------------- residency -- */

static long peak_file_kib;

/* Resident bytes of mapped files, sampled at each call by which rows leave the mapping. */
static void sample_residency(void) {
    char line[256];
    FILE *status = fopen("/proc/self/status", "r");
    CU_ASSERT_PTR_NOT_NULL_FATAL(status);
    while (fgets(line, sizeof line, status)) {
        long kib;
        if (sscanf(line, "RssFile: %ld kB", &kib) == 1 && kib > peak_file_kib) {
            peak_file_kib = kib;
        }
    }
    fclose(status);
}

static void the_mapping_is_given_back_as_it_goes(void) {
    model_config config = config_of("llama-bf16");
    safetensors opened;
    testing_file file;
    config.vocab_size = 1u << 19; /* 32 MiB each, in bf16 */
    size_t n_bytes = (size_t)config.vocab_size * config.hidden_size * 2;
    uint8_t *rows = calloc(1, n_bytes);
    CU_ASSERT_PTR_NOT_NULL_FATAL(rows);
    const char *dir = testing_dir_make();
    testing_file_load(&file, "llama-bf16", &opened);
    testing_file_drop(&file, embedding);
    testing_file_drop(&file, "lm_head.weight");
    testing_file_add(&file, embedding, SAFETENSORS_BF16, config.vocab_size, config.hidden_size, rows);
    testing_file_add(&file, "lm_head.weight", SAFETENSORS_BF16, config.vocab_size, config.hidden_size, rows);
    testing_file_write(&file, "model.safetensors");
    free(rows);
    for (int tied = 0; tied < 2; tied++) {
        const model_limits limits = {8, 1, 1, KERNELS_F32, KERNELS_WEIGHT_DTYPE};
        const kernels_backend *backend = testing_counting_backend();
        kernels_device *device = NULL;
        model *m = NULL;
        perch_error err = {0};
        config.tied_embeddings = tied;
        CU_ASSERT_EQUAL_FATAL(backend->open(&(kernels_config){0}, &device, NULL), PERCH_OK);
        peak_file_kib = 0;
        sample_residency();
        long before = peak_file_kib;
        testing_counted.on_rows = sample_residency;
        perch_status status = model_load(backend, device, &config, &limits, dir, 0, NULL, NULL, &m, &err);
        CHECK_MSG(status == PERCH_OK, "%s", err.message);
        CHECK_MSG(peak_file_kib > before + 4096 && peak_file_kib - before < 20 * 1024,
                  "%ld KiB of %zu are resident at once", peak_file_kib - before, 2 * n_bytes / 1024);
        model_destroy(m);
        backend->close(device);
    }
    safetensors_close(&opened);
    testing_dir_remove();
}

/* ----------------------------------------------------------------- failure -- */

static void every_device_failure_is_reported_and_cleaned_up(void) {
    static const char *const fixtures[] = {"llama-bias-f32", "qwen3-bf16", "mistral-bf16", NULL};
    for (size_t i = 0; i < sizeof fixtures / sizeof fixtures[0]; i++) {
        model_config config = config_of(fixtures[i] ? fixtures[i] : "llama-bf16");
        char path[300];
        uint64_t n;
        snprintf(path, sizeof path, "model/%s", fixtures[i] ? fixtures[i] : "");
        for (n = 1; n < 1000; n++) {
            perch_error err;
            perch_status status = load(&config, fixtures[i] ? test_fixture(path) : NULL, n, &err);
            if (status == PERCH_OK) {
                break;
            }
            CHECK_MSG(status == PERCH_E_DEVICE && strstr(err.message, "made to fail"), "call %llu: %s",
                      (unsigned long long)n, err.message);
        }
        CU_ASSERT_TRUE(n > 20 && n < 1000);
    }
}

/* Without logits to compute, a pass ends where the last layer's keys and values are written. */
static void a_pass_without_logits_stops_at_the_cache(void) {
    model_config config = config_of("qwen3-bias-f32");
    testing_model t;
    if (testing_model_open(&t, testing_counting_backend(), KERNELS_F32, &config, test_fixture("model/qwen3-bias-f32"),
                           8, 8)) {
        testing_counted.n_calls = 0;
        (void)testing_model_step(&t, some_tokens, 0, 3, NULL, 0);
        CU_ASSERT_EQUAL(testing_counted.n_calls, 6); /* embed, norm, qkv, 2 head norms, rope */
    }
    testing_model_close(&t);
}

static void every_failing_stage_of_a_forward_pass_is_reported(void) {
    model_config config = config_of("qwen3-bias-f32");
    testing_model t;
    if (testing_model_open(&t, testing_counting_backend(), KERNELS_F32, &config, test_fixture("model/qwen3-bias-f32"),
                           8, 8)) {
        static const uint32_t positions[3] = {0, 1, 2}, token_row[3] = {0}, rows[1] = {2};
        const kernels_row row = {.kv = {.base = t.kv}, .n_tokens = 3};
        const kernels_batch batch = {.n_tokens = 3,
                                     .n_rows = 1,
                                     .n_logits = 1,
                                     .tokens = some_tokens,
                                     .positions = positions,
                                     .token_row = token_row,
                                     .rows = &row,
                                     .logit_tokens = rows};
        const float *logits;
        unsigned n;
        for (n = 1; n < 100; n++) {
            perch_error err = {0};
            testing_counted.n_calls = 0;
            testing_counted.fail_at = n;
            perch_status status = model_forward(t.model, 0, &batch, &err);
            if (status == PERCH_OK) {
                status = model_fetch_logits(t.model, 1, &logits, &err);
            }
            if (status == PERCH_OK) {
                break;
            }
            CHECK_MSG(status == PERCH_E_DEVICE && err.status == status, "call %u: %s", n, err.message);
        }
        /* embed, 2 norms, qkv, 2 head norms, rope, attention, 2 gathers, output, gate_up, silu, down, norm, head, download */
        CU_ASSERT_EQUAL(n, 18);
    }
    testing_model_close(&t);
}

/* --------------------------------------------------------------- progress -- */

typedef struct progress_seen {
    double last;
    unsigned n;
} progress_seen;

static void see_progress(void *user, const char *stage, double fraction) {
    progress_seen *seen = user;
    CU_ASSERT_STRING_EQUAL(stage, "weights");
    CU_ASSERT_TRUE(fraction >= seen->last && fraction <= 1);
    seen->last = fraction;
    seen->n++;
}

static void progress_runs_from_0_to_1(void) {
    static const model_limits limits = {16, 4, 4, KERNELS_F32, KERNELS_WEIGHT_DTYPE};
    model_config config = config_of("llama-bf16");
    for (int random = 0; random < 2; random++) {
        progress_seen seen = {0};
        kernels_device *device = NULL;
        model *m = NULL;
        const kernels_backend *backend = testing_counting_backend();
        CU_ASSERT_EQUAL_FATAL(backend->open(&(kernels_config){0}, &device, NULL), PERCH_OK);
        CU_ASSERT_EQUAL(model_load(backend, device, &config, &limits, random ? NULL : test_fixture("model/llama-bf16"),
                                   3, see_progress, &seen, &m, NULL),
                        PERCH_OK);
        CU_ASSERT_TRUE(seen.n > 10 && seen.last >= 1);
        model_destroy(m);
        backend->close(device);
    }
}

/* ----------------------------------------------------------------- random -- */

static float *random_logits(const model_config *config, uint64_t seed, kernels_dtype dtype, uint32_t n_threads) {
    const model_limits limits = {32, N_SOME, N_SOME, dtype, KERNELS_WEIGHT_DTYPE};
    testing_model t = {.backend = kernels_cpu(), .config = *config, .limits = limits};
    const kernels_config device_config = {.dtype = dtype, .n_threads = n_threads};
    kv_layout layout;
    perch_error err = {0};
    model_kv_layout(config, dtype, &layout);
    perch_status status = t.backend->open(&device_config, &t.device, &err);
    CHECK_MSG(status == PERCH_OK, "%s", err.message);
    status = model_load(t.backend, t.device, config, &limits, NULL, seed, NULL, NULL, &t.model, &err);
    CHECK_MSG(status == PERCH_OK, "%s", err.message);
    CU_ASSERT_EQUAL_FATAL(t.backend->alloc(t.device, 2 * layout.group_bytes, &t.kv, NULL), PERCH_OK);
    float *logits = testing_model_run(&t, some_tokens, N_SOME, N_SOME);
    testing_model_close(&t);
    return logits;
}

static double spread(const float *x, size_t n) {
    double sum = 0;
    for (size_t i = 0; i < n; i++) {
        sum += (double)x[i] * (double)x[i];
    }
    return sqrt(sum / (double)n);
}

static void random_weights_depend_on_the_seed_alone(void) {
    model_config config = config_of("qwen2-f16");
    config.hidden_size = 90; /* odd halves, odd widths */
    config.intermediate_size = 77;
    config.head_dim = 18;
    config.n_heads = 6;
    config.n_kv_heads = 3;
    size_t n = N_SOME * config.vocab_size;
    float *a = random_logits(&config, 1, KERNELS_F32, 1), *b = random_logits(&config, 1, KERNELS_F32, 3);
    float *other = random_logits(&config, 2, KERNELS_F32, 1), *bf16 = random_logits(&config, 1, KERNELS_BF16, 2);
    CU_ASSERT_EQUAL(memcmp(a, b, n * sizeof *a), 0);
    CU_ASSERT_TRUE(testing_difference(other, a, n) > 0.5);
    CU_ASSERT_TRUE(testing_difference(bf16, a, n) < 0.1); /* the same weights, in 8 bits */
    free(a);
    free(b);
    free(other);
    free(bf16);
}

static double correlation(const float *a, const float *b, size_t n) {
    double sum = 0;
    for (size_t i = 0; i < n; i++) {
        sum += (double)a[i] * (double)b[i];
    }
    return sum / (double)n / spread(a, n) / spread(b, n);
}

/* Rows, neighbours in a row, and matrices have nothing to do with one another, as far as n numbers can tell. */
static void random_weights_are_random(void) {
    enum { N = 4096 };
    static const int32_t tokens[4] = {0, 1, 2, 64};
    static float rows[2][4][N];
    const kernels_batch batch = {.n_tokens = 4, .tokens = tokens};
    model_config config = config_of("llama-bf16");
    testing_model t;
    config.hidden_size = N;
    config.intermediate_size = 8;
    if (testing_model_open(&t, kernels_reference(), KERNELS_F32, &config, NULL, 1, 1)) {
        const kernels_weight *weights[2] = {t.model->embedding, t.model->head};
        for (int w = 0; w < 2; w++) {
            CU_ASSERT_EQUAL(t.backend->embed(t.device, weights[w], &batch, 4, rows[w][0], NULL), PERCH_OK);
            CU_ASSERT_DOUBLE_EQUAL(spread(rows[w][0], N), w ? 1 / sqrt(N) : 1, w ? 0.001 : 0.05);
        }
        const double most = 5 / sqrt(N);
        for (int r = 1; r < 4; r++) {
            CU_ASSERT_TRUE(fabs(correlation(rows[0][0], rows[0][r], N)) < most);
            CU_ASSERT_TRUE(fabs(correlation(rows[0][r], rows[1][r], N)) < most);
        }
        for (int lag = 1; lag < 5; lag++) {
            CU_ASSERT_TRUE(fabs(correlation(rows[0][0], rows[0][0] + lag, N - (size_t)lag)) < most);
        }
    }
    testing_model_close(&t);
}

static void random_activations_stay_sane(void) {
    model_config config = config_of("llama-bf16");
    config.hidden_size = 128;
    config.intermediate_size = 320;
    config.head_dim = 32;
    for (int i = 0; i < 4; i++) {
        config.n_layers = i % 2 ? 48 : 2;
        config.tied_embeddings = i / 2;
        float *logits = random_logits(&config, 5, KERNELS_F32, 2);
        double s = spread(logits, N_SOME * config.vocab_size);
        CHECK_MSG(s > 0.3 && s < 3, "logits of %u layers spread by %g", config.n_layers, s);
        free(logits);
    }
}

int main(int argc, char **argv) {
    static const test_case tests[] = {
        {"every missing tensor is named", every_missing_tensor_is_named},
        {"unknown tensors are named unless harmless", unknown_tensors_are_named_unless_harmless},
        {"wrong shapes and types are named", wrong_shapes_and_types_are_named},
        {"no weights at all", no_weights_at_all},
        {"tied embeddings may be stored either way or twice alike",
         tied_embeddings_may_be_stored_either_way_or_twice_alike},
        {"tensors may lie askew", tensors_may_lie_askew},
        {"the memory plan is what is allocated", the_memory_plan_is_what_is_allocated},
        {"a forward pass allocates nothing", a_forward_pass_allocates_nothing},
        {"the KV layout is the contract", the_kv_layout_is_the_contract},
        {"the RoPE table is whole", the_rope_table_is_whole},
        {"the mapping is given back as it goes", the_mapping_is_given_back_as_it_goes},
        {"every device failure is reported and cleaned up", every_device_failure_is_reported_and_cleaned_up},
        {"a pass without logits stops at the cache", a_pass_without_logits_stops_at_the_cache},
        {"every failing stage of a forward pass is reported", every_failing_stage_of_a_forward_pass_is_reported},
        {"progress runs from 0 to 1", progress_runs_from_0_to_1},
        {"random weights depend on the seed alone", random_weights_depend_on_the_seed_alone},
        {"random weights are random", random_weights_are_random},
        {"random activations stay sane", random_activations_stay_sane},
    };
    return test_main("load", tests, sizeof tests / sizeof tests[0], argc, argv);
}
