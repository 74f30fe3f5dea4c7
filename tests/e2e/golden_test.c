/*
 * golden: the whole engine gives the logits of Hugging Face transformers (tests/goldens/model): scheduled in chunks, with KV
 * memory in slots, on the CPU, and on whatever libperch_cuda.so.0 is, if there is one.
 */
#include "engine/impl.h"
#include "tests/e2e/host.h"

#include <dirent.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define GOLDENS "tests/goldens/model"
#define FIXTURES "tests/fixtures/model"
#define MAX_TOKENS 256u
#define MAX_ROWS 32u
#define VOCAB 96u

typedef struct golden {
    char name[256];
    char dir[64]; /* a folder of its own: the golden's config.json, links to the weights */
    int32_t tokens[MAX_TOKENS];
    uint32_t n_tokens;
    uint32_t rows[MAX_ROWS]; /* positions */
    uint32_t n_rows;
    float logits[MAX_ROWS][VOCAB]; /* of those */
} golden;

/* What the tap saw, by position. */
static float seen[MAX_TOKENS + 1][VOCAB];
static uint32_t n_seen;

static void tap(void *user, const int32_t *tokens, uint32_t position, uint32_t n, const float *logits) {
    (void)user;
    (void)tokens;
    for (uint32_t i = 0; i < n && position + i <= MAX_TOKENS; i++) {
        memcpy(seen[position + i], logits + (size_t)i * VOCAB, sizeof seen[0]);
        n_seen++;
    }
}

/* ------------------------------------------------------------------- the files -- */

static void link_weights(const golden *g, const char *weights) {
    char folder[512], from[1024], to[512], *root = getcwd(NULL, 0);
    snprintf(folder, sizeof folder, FIXTURES "/%s", weights);
    DIR *dir = opendir(folder);
    CU_ASSERT_TRUE_FATAL(dir && root);
    for (struct dirent *entry = readdir(dir); entry; entry = readdir(dir)) {
        if (strstr(entry->d_name, "safetensors")) {
            snprintf(from, sizeof from, "%s/%s/%s", root, folder, entry->d_name);
            snprintf(to, sizeof to, "%s/%s", g->dir, entry->d_name);
            CU_ASSERT_EQUAL(symlink(from, to), 0);
        }
    }
    closedir(dir);
    free(root);
}

static uint32_t read_numbers(const json_t *array, uint32_t most, uint32_t *out) {
    uint32_t n = (uint32_t)json_array_size(array);
    CU_ASSERT_TRUE_FATAL(n > 0 && n <= most);
    for (uint32_t i = 0; i < n; i++) {
        out[i] = (uint32_t)json_integer_value(json_array_get(array, i));
    }
    return n;
}

static void golden_open(golden *g, const char *name) {
    char path[640];
    uint32_t tokens[MAX_TOKENS];
    const char *parent = getenv("TMPDIR");
    snprintf(g->name, sizeof g->name, "%s", name);
    snprintf(g->dir, sizeof g->dir, "%s/perch-golden-XXXXXX", parent && strlen(parent) < 40 ? parent : "/tmp");
    CU_ASSERT_PTR_NOT_NULL_FATAL(mkdtemp(g->dir));
    snprintf(path, sizeof path, GOLDENS "/%s.json", name);
    json_t *root = json_load_file(path, 0, NULL);
    CU_ASSERT_PTR_NOT_NULL_FATAL(root);
    link_weights(g, json_string_value(json_object_get(root, "weights")));
    snprintf(path, sizeof path, "%s/config.json", g->dir);
    CU_ASSERT_EQUAL(json_dump_file(json_object_get(root, "config"), path, 0), 0);
    g->n_tokens = read_numbers(json_object_get(root, "tokens"), MAX_TOKENS, tokens);
    g->n_rows = read_numbers(json_object_get(root, "rows"), MAX_ROWS, g->rows);
    for (uint32_t i = 0; i < g->n_tokens; i++) {
        g->tokens[i] = (int32_t)tokens[i];
    }
    json_decref(root);
    snprintf(path, sizeof path, GOLDENS "/%s.f32", name);
    FILE *file = fopen(path, "rb");
    CU_ASSERT_PTR_NOT_NULL_FATAL(file);
    CU_ASSERT_EQUAL(fread(g->logits, sizeof g->logits[0], g->n_rows, file), g->n_rows);
    CU_ASSERT_EQUAL(fgetc(file), EOF);
    fclose(file);
}

static void golden_close(const golden *g) {
    char path[640];
    DIR *dir = opendir(g->dir);
    for (struct dirent *entry = dir ? readdir(dir) : NULL; entry; entry = readdir(dir)) {
        snprintf(path, sizeof path, "%s/%s", g->dir, entry->d_name);
        (void)unlink(path);
    }
    if (dir) {
        closedir(dir);
    }
    CU_ASSERT_EQUAL(rmdir(g->dir), 0);
}

/* ----------------------------------------------------------------------- the runs -- */

/* |a - b| / |b| of all of the golden's logits, as lengths of vectors. */
static double difference(const golden *g) {
    double off = 0, length = 0;
    for (uint32_t r = 0; r < g->n_rows; r++) {
        for (uint32_t i = 0; i < VOCAB; i++) {
            double a = (double)seen[g->rows[r]][i], b = (double)g->logits[r][i];
            off += isfinite(a) ? (a - b) * (a - b) : (double)INFINITY;
            length += b * b;
        }
    }
    return sqrt(off / length);
}

typedef struct trial {
    const char *name;
    perch_device device;
    perch_dtype dtype;
    perch_mapping mapping;
    perch_weight_format weight_format;
    double tolerance;      /* of one golden */
    double mean_tolerance; /* of the root of their mean square */
    uint32_t n_goldens, n_run, n_head_sizes, n_too_long;
    double squares, worst;
} trial;

/* A prompt whose every token's logits are asked for, and a token behind it. */
static void run_prompt(perch_engine *e, const golden *g) {
    perch_sequence_id id;
    perch_error err;
    perch_event event;
    CU_ASSERT_EQUAL_FATAL(perch_event_init(&event, sizeof event), PERCH_OK);
    CU_ASSERT_EQUAL(perch_sequence_open(e, &id, NULL), PERCH_OK);
    perch_request q = host_request(e, id, g->tokens, g->n_tokens, 1);
    q.flags |= PERCH_REQUEST_PROMPT_LOGPROBS | PERCH_REQUEST_IGNORE_EOS;
    CHECK_MSG(perch_submit(e, &q, NULL, &err) == PERCH_OK, "%s: %s", g->name, err.message);
    pthread_mutex_lock(&e->lock);
    for (uint32_t i = 0; i < 10000 && engine_step(e); i++) {}
    pthread_mutex_unlock(&e->lock);
    CU_ASSERT_EQUAL(perch_next(e, &event, 0, NULL), PERCH_OK);
    CHECK_MSG(event.finish == PERCH_FINISH_LENGTH, "%s: %s", g->name, event.message ? event.message : "no end");
    perch_event_clear(&event);
}

static void check_golden(const golden *g, trial *t, uint32_t chunk) {
    perch_options o = host_options("llama");
    perch_engine *e = NULL;
    perch_error err;
    snprintf(o.path, sizeof o.path, "%s", g->dir);
    o.weights = PERCH_WEIGHTS_FILE;
    o.device = t->device;
    o.dtype = t->dtype;
    o.mapping = t->mapping;
    o.weight_format = t->weight_format;
    o.session_len = g->n_tokens + 1;
    o.max_batch_size = 1;
    o.max_step_tokens = chunk;
    o.prefill_reserve = chunk - 1;
    o.cache_max_entry_count = 2;
    perch_status status = engine_open(&o, false, &e, &err);
    bool head_size = status == PERCH_E_UNSUPPORTED && t->device == PERCH_DEVICE_CUDA && strstr(err.message, "head");
    bool too_long = status == PERCH_E_CONFIG && strstr(err.message, "positions");
    t->n_head_sizes += head_size; /* GPU kernels are made for multiples of 8 */
    t->n_too_long += too_long;    /* forward_test goes on where the engine does not */
    if (head_size || too_long) {
        return;
    }
    if (!CHECK_MSG(status == PERCH_OK, "%s on %s: %s", g->name, t->name, err.message)) {
        return;
    }
    memset(seen, 0xFF, sizeof seen); /* NaN */
    n_seen = 0;
    e->tap = tap;
    run_prompt(e, g);
    double d = difference(g);
    CHECK_MSG(n_seen >= g->n_tokens, "%s on %s: %u rows of logits for %u tokens", g->name, t->name, n_seen,
              g->n_tokens);
    CHECK_MSG(d <= t->tolerance, "%s on %s, %u tokens a step: off by %.2e", g->name, t->name, chunk, d);
    t->worst = fmax(t->worst, d);
    t->squares += d * d;
    t->n_run++;
    perch_engine_destroy(e);
}

static void check_all(trial *t) {
    DIR *dir = opendir(GOLDENS);
    CU_ASSERT_PTR_NOT_NULL_FATAL(dir);
    for (struct dirent *entry = readdir(dir); entry; entry = readdir(dir)) {
        char *dot = strstr(entry->d_name, ".json");
        if (dot) {
            golden g = {.name = ""};
            *dot = 0;
            golden_open(&g, entry->d_name);
            t->n_goldens++;
            check_golden(&g, t, MAX_TOKENS);
            check_golden(&g, t, 7);
            golden_close(&g);
        }
    }
    closedir(dir);
    double mean = sqrt(t->squares / t->n_run);
    printf("  %s: %u runs, off by %.1e, %.1e at most", t->name, t->n_run, mean, t->worst);
    printf(t->n_head_sizes ? "; %u of head sizes that it has not\n" : "\n", t->n_head_sizes);
    CHECK_MSG(mean <= t->mean_tolerance, "%s: off by %.2e", t->name, mean);
    CHECK_MSG(t->n_goldens >= 15 && t->n_run + t->n_head_sizes + t->n_too_long == 2 * t->n_goldens &&
                  t->n_run >= t->n_goldens && t->n_too_long <= 2,
              "%s: %u runs for %u goldens", t->name, t->n_run, t->n_goldens);
}

static void cpu_logits_are_transformers(void) {
    check_all(&(trial){.name = "CPU, f32",
                       .device = PERCH_DEVICE_CPU,
                       .dtype = PERCH_DTYPE_F32,
                       .tolerance = 1e-4,
                       .mean_tolerance = 1e-4});
}

/* Smaller weights against the goldens of f32: about one and a half times what was measured, at most and in the mean. */
static void quantized_logits_are_near_transformers(void) {
    static const struct {
        perch_weight_format format;
        const char *name;
        double tolerance, mean_tolerance;
    } formats[] = {{PERCH_WEIGHT_FORMAT_BF16, "bf16 weights", 3e-2, 1.1e-2},
                   {PERCH_WEIGHT_FORMAT_INT8, "int8 weights", 0.14, 6.6e-2},
                   {PERCH_WEIGHT_FORMAT_INT4, "int4 weights", 1, 0.6}};
    for (size_t i = 0; i < sizeof formats / sizeof *formats; i++) {
        check_all(&(trial){.name = formats[i].name,
                           .device = PERCH_DEVICE_CPU,
                           .dtype = PERCH_DTYPE_F32,
                           .weight_format = formats[i].format,
                           .tolerance = formats[i].tolerance,
                           .mean_tolerance = formats[i].mean_tolerance});
    }
}

/* What the GPU, or what stands in for it, can do. */
static bool gpu_opens(kernels_dtype dtype, char *name, size_t cap) {
    const kernels_backend *cuda;
    kernels_device *device = NULL;
    const kernels_config config = {.dtype = dtype};
    perch_error err;
    if (kernels_cuda(&cuda, NULL) != PERCH_OK) {
        return false;
    }
    perch_status status = cuda->open(&config, &device, &err);
    CHECK_MSG(status == PERCH_OK || status == PERCH_E_UNSUPPORTED, "%s", err.message);
    if (status == PERCH_OK) {
        snprintf(name, cap, "%s", cuda->describe(device));
    }
    cuda->close(device);
    return status == PERCH_OK;
}

/*
 * The goldens are of f32. On these models transformers itself is off by 3.4e-2 in the mean and 7.0e-2 at most in bf16, by 4e-3 and
 * 1.0e-2 in f16 (eager attention, the residual stream in 16 bits too).
 */
static void gpu_logits_are_transformers(void) {
    static const struct {
        kernels_dtype dtype;
        perch_dtype option;
        const char *name;
        double tolerance, mean_tolerance;
    } dtypes[] = {{KERNELS_F32, PERCH_DTYPE_F32, "f32", 1e-4, 1e-4},
                  {KERNELS_BF16, PERCH_DTYPE_BF16, "bf16", 5e-2, 2e-2},
                  {KERNELS_F16, PERCH_DTYPE_F16, "f16", 2e-2, 5e-3}};
    char device[256], name[320];
    bool any = false;
    for (size_t i = 0; i < sizeof dtypes / sizeof *dtypes; i++) {
        for (int table = 0; table < 2 && gpu_opens(dtypes[i].dtype, device, sizeof device); table++) {
            snprintf(name, sizeof name, "%s, %s, %s", device, dtypes[i].name, table ? "table" : "vmm");
            trial t = {.name = name,
                       .device = PERCH_DEVICE_CUDA,
                       .dtype = dtypes[i].option,
                       .mapping = table ? PERCH_MAPPING_TABLE : PERCH_MAPPING_AUTO,
                       .tolerance = dtypes[i].tolerance,
                       .mean_tolerance = dtypes[i].mean_tolerance};
            check_all(&t);
            any = true;
        }
    }
    if (!any && CHECK_MSG(getenv("PERCH_TEST_GPU") == NULL, "there is no libperch_cuda.so.0 that opens a GPU")) {
        test_skip("there is no libperch_cuda.so.0 that opens a GPU");
    }
}

int main(int argc, char **argv) {
    static const test_case tests[] = {
        {"cpu: logits are transformers'", cpu_logits_are_transformers},
        {"quantized logits are near those of transformers", quantized_logits_are_near_transformers},
        {"gpu: logits are transformers'", gpu_logits_are_transformers},
    };
    return test_main("golden_test", tests, sizeof tests / sizeof *tests, argc, argv);
}
