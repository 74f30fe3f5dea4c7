/* forward: logits against Hugging Face transformers (tests/goldens/model), however the tokens are cut into passes. */
#include "engine/model/fields.h"
#include "engine/model/testing.h"
#include "tests/support/reference_backend.h"

#include <dirent.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define GOLDENS "tests/goldens/model"
#define TOLERANCE 1e-4
/* Of the largest logit. What bf16's 8 bits cost is the models' affair: see bf16_is_near for exact arithmetic. */
#define F16_TOLERANCE 2e-2
#define BF16_TOLERANCE 0.1
#define MAX_TOKENS 256
#define MAX_ROWS 32

typedef struct golden {
    char name[256];
    char dir[300]; /* of the weights */
    model_config config;
    int32_t tokens[MAX_TOKENS];
    uint32_t n_tokens;
    uint32_t rows[MAX_ROWS]; /* positions */
    uint32_t n_rows;
    float *logits; /* [n_rows][vocab] */
} golden;

static void parse_config(const json_t *object, const char *path, model_config *out) {
    perch_error err = {0};
    char *text = json_dumps(object, 0);
    CU_ASSERT_PTR_NOT_NULL_FATAL(text);
    perch_status status = model_config_parse(text, strlen(text), NULL, 0, path, out, &err);
    CHECK_MSG(status == PERCH_OK, "%s", err.message);
    free(text);
}

static bool same(double a, double b) { return a <= b && a >= b; }

/* What transformers writes of a model says the same as the spelling that it was given. */
static void check_saved(const model_config *a, const model_config *b, const char *name) {
    const rope_config *r = &a->rope, *q = &b->rope;
    CHECK_MSG(a->arch == b->arch && a->n_layers == b->n_layers && a->n_heads == b->n_heads &&
                  a->n_kv_heads == b->n_kv_heads && a->head_dim == b->head_dim && a->hidden_size == b->hidden_size &&
                  a->intermediate_size == b->intermediate_size && a->vocab_size == b->vocab_size &&
                  a->max_positions == b->max_positions && same((double)a->rms_eps, (double)b->rms_eps),
              "%s: sizes", name);
    CHECK_MSG(a->attention_bias == b->attention_bias && a->output_bias == b->output_bias &&
                  a->mlp_bias == b->mlp_bias && a->qk_norm == b->qk_norm && a->tied_embeddings == b->tied_embeddings &&
                  a->window == b->window && memcmp(a->windowed, b->windowed, sizeof a->windowed) == 0 &&
                  a->bos == b->bos && a->n_eos == b->n_eos,
              "%s: switches", name);
    CHECK_MSG(r->kind == q->kind && same(r->theta, q->theta) && same(r->factor, q->factor) &&
                  same(r->low_freq_factor, q->low_freq_factor) && same(r->high_freq_factor, q->high_freq_factor) &&
                  same(r->beta_fast, q->beta_fast) && same(r->beta_slow, q->beta_slow) &&
                  same(r->attention_factor, q->attention_factor) && r->truncate == q->truncate &&
                  r->original_max_positions == q->original_max_positions,
              "%s: RoPE", name);
}

static void golden_load(golden *g, const char *name) {
    char path[600];
    char *text = NULL;
    size_t n = 0;
    perch_error err = {0};
    snprintf(g->name, sizeof g->name, "%s", name);
    snprintf(path, sizeof path, GOLDENS "/%s.json", name);
    json_t *root = json_load_file(path, 0, NULL);
    CU_ASSERT_PTR_NOT_NULL_FATAL(root);
    snprintf(g->dir, sizeof g->dir, "tests/fixtures/model/%s", json_string_value(json_object_get(root, "weights")));
    model_config saved;
    parse_config(json_object_get(root, "config"), path, &g->config);
    parse_config(json_object_get(root, "saved"), path, &saved);
    check_saved(&saved, &g->config, name);
    const json_t *tokens = json_object_get(root, "tokens"), *rows = json_object_get(root, "rows");
    g->n_tokens = (uint32_t)json_array_size(tokens);
    g->n_rows = (uint32_t)json_array_size(rows);
    CU_ASSERT_TRUE_FATAL(g->n_tokens <= MAX_TOKENS && g->n_rows <= MAX_ROWS && g->n_rows > 0);
    for (uint32_t i = 0; i < g->n_tokens; i++) {
        g->tokens[i] = (int32_t)json_integer_value(json_array_get(tokens, i));
    }
    for (uint32_t i = 0; i < g->n_rows; i++) {
        g->rows[i] = (uint32_t)json_integer_value(json_array_get(rows, i));
    }
    json_decref(root);
    snprintf(path, sizeof path, GOLDENS "/%s.f32", name);
    CU_ASSERT_EQUAL_FATAL(fields_read_file(path, 1 << 20, &text, &n, &err), PERCH_OK);
    CU_ASSERT_EQUAL_FATAL(n, (size_t)g->n_rows * g->config.vocab_size * sizeof(float));
    g->logits = (float *)(void *)text;
}

/* The golden's rows of the logits of all tokens, compared. */
static double golden_difference(const golden *g, const float *all) {
    double worst = 0;
    for (uint32_t i = 0; i < g->n_rows; i++) {
        size_t vocab = g->config.vocab_size;
        double d = testing_difference(all + g->rows[i] * vocab, g->logits + i * vocab, vocab);
        worst = d > worst ? d : worst;
    }
    return worst;
}

static double furthest; /* of the goldens that were checked */
static unsigned archs;  /* of those on a GPU, as bits */

static void golden_check(const golden *g, const kernels_backend *backend, kernels_dtype dtype, double tolerance) {
    static const uint32_t chunks[] = {MAX_TOKENS, 1, 13, 64};
    testing_model t;
    float *first = NULL;
    size_t bytes = (size_t)g->n_tokens * g->config.vocab_size * sizeof(float);
    if (!testing_model_open(&t, backend, dtype, &g->config, g->dir, g->n_tokens, MAX_TOKENS)) {
        testing_model_close(&t);
        return;
    }
    for (size_t i = 0; i < sizeof chunks / sizeof chunks[0]; i++) {
        float *logits = testing_model_run(&t, g->tokens, g->n_tokens, chunks[i]);
        double difference = golden_difference(g, logits);
        CHECK_MSG(difference <= tolerance, "%s on %s, %u tokens a pass: off by %.2e", g->name, backend->name, chunks[i],
                  difference);
        furthest = difference > furthest ? difference : furthest;
        if (!first) {
            first = logits;
            continue;
        }
        CHECK_MSG(memcmp(first, logits, bytes) == 0, "%s on %s: %u tokens a pass give other bits", g->name,
                  backend->name, chunks[i]);
        free(logits);
    }
    free(first);
    testing_model_close(&t);
}

static void each_golden(void (*visit)(const golden *g)) {
    DIR *dir = opendir(GOLDENS);
    unsigned n = 0;
    CU_ASSERT_PTR_NOT_NULL_FATAL(dir);
    for (struct dirent *entry = readdir(dir); entry; entry = readdir(dir)) {
        char *dot = strstr(entry->d_name, ".json");
        if (dot) {
            golden g = {0};
            *dot = 0;
            golden_load(&g, entry->d_name);
            visit(&g);
            free(g.logits);
            n++;
        }
    }
    closedir(dir);
    CHECK_MSG(n >= 19, "%u goldens", n);
}

static void check_on_reference(const golden *g) { golden_check(g, kernels_reference(), KERNELS_F32, TOLERANCE); }
static void check_on_cpu(const golden *g) { golden_check(g, kernels_cpu(), KERNELS_F32, TOLERANCE); }

static void reference_logits_are_transformers(void) { each_golden(check_on_reference); }
static void cpu_logits_are_transformers(void) { each_golden(check_on_cpu); }

/* The GPU, if a CUDA backend is found: the weights are rounded, so its logits can only be near. */
static const kernels_backend *find_cuda(void) {
    const kernels_backend *cuda = NULL;
    perch_error err;
    if (kernels_cuda(&cuda, &err) != PERCH_OK) {
        CHECK_MSG(getenv("PERCH_TEST_GPU") == NULL, "%s", err.message);
        test_skip("%s", err.message);
    }
    return cuda;
}

static void check_on_cuda(const golden *g, kernels_dtype dtype, double tolerance) {
    if (g->config.head_dim % 8 == 0) { /* all that GPUs take; each architecture has some */
        golden_check(g, find_cuda(), dtype, tolerance);
        archs |= 1u << g->config.arch;
    }
}

/* bf16 rounds activations between the products on a GPU, too: a few times what the inputs' rounding alone costs. */
static void check_on_cuda_bf16(const golden *g) {
    testing_model t;
    double exact = 0;
    if (testing_model_open(&t, kernels_reference(), KERNELS_BF16, &g->config, g->dir, g->n_tokens, g->n_tokens)) {
        float *logits = testing_model_run(&t, g->tokens, g->n_tokens, g->n_tokens);
        exact = golden_difference(g, logits);
        free(logits);
    }
    testing_model_close(&t);
    check_on_cuda(g, KERNELS_BF16, 3 * exact + F16_TOLERANCE);
}

static void check_on_cuda_f16(const golden *g) { check_on_cuda(g, KERNELS_F16, F16_TOLERANCE); }

static void cuda_logits_are_near(void) {
    if (find_cuda()) {
        furthest = 0;
        each_golden(check_on_cuda_bf16);
        printf("  bf16: within %.1e of the largest\n", furthest);
        furthest = 0;
        each_golden(check_on_cuda_f16);
        printf("  f16: within %.1e of the largest\n", furthest);
        CHECK_MSG(archs == 0xF, "architectures 0x%x", archs);
    }
}

/* After all that ran there: a fault would have stayed. */
static void cuda_lives_to_the_end(void) {
    const kernels_backend *cuda = find_cuda();
    const kernels_config config = {.dtype = KERNELS_BF16};
    kernels_device *device = NULL;
    perch_error err = {.status = PERCH_OK};
    if (cuda && CHECK_MSG(cuda->open(&config, &device, &err) == PERCH_OK, "%s", err.message)) {
        printf("  on %s\n", cuda->describe(device));
        cuda->close(device);
    }
}

/* --------------------------------------------------------------- batches -- */

/* Two sequences packed token by token into the same passes, one ahead of the other, give what each gives alone. */
static void check_packed(const golden *g) {
    testing_model t;
    const float *logits;
    uint32_t vocab = g->config.vocab_size, n = g->n_tokens, lag = n / 3, rows[2] = {0, 1};
    if (!testing_model_open(&t, kernels_cpu(), KERNELS_F32, &g->config, g->dir, n, n)) {
        testing_model_close(&t);
        return;
    }
    int32_t backwards[MAX_TOKENS];
    for (uint32_t i = 0; i < n; i++) {
        backwards[i] = g->tokens[n - 1 - i];
    }
    float *alone[2] = {testing_model_run(&t, g->tokens, n, n), testing_model_run(&t, backwards, n, n)};
    kv_layout layout;
    void *other = NULL;
    model_kv_layout(&g->config, KERNELS_F32, &layout);
    CU_ASSERT_EQUAL(t.backend->alloc(t.device, (n / KV_GROUP_TOKENS + 1) * layout.group_bytes, &other, NULL), PERCH_OK);
    (void)testing_model_step(&t, g->tokens, 0, lag, NULL, 0);
    for (uint32_t i = 0; lag + i < n; i++) {
        int32_t tokens[2] = {g->tokens[lag + i], backwards[i]};
        uint32_t positions[2] = {lag + i, i}, token_row[2] = {0, 1};
        const kernels_row batch_rows[2] = {
            {.kv = {.base = t.kv}, .first_token = 0, .n_tokens = 1, .first_position = lag + i},
            {.kv = {.base = other}, .slot = 1, .first_token = 1, .n_tokens = 1, .first_position = i}};
        const kernels_batch batch = {.n_tokens = 2,
                                     .n_rows = 2,
                                     .n_logits = 2,
                                     .tokens = tokens,
                                     .positions = positions,
                                     .token_row = token_row,
                                     .rows = batch_rows,
                                     .logit_tokens = rows};
        CU_ASSERT_EQUAL(model_forward(t.model, 0, &batch, NULL), PERCH_OK);
        CU_ASSERT_EQUAL(model_fetch_logits(t.model, 2, &logits, NULL), PERCH_OK);
        CHECK_MSG(memcmp(logits, alone[0] + (size_t)(lag + i) * vocab, vocab * sizeof(float)) == 0 &&
                      memcmp(logits + vocab, alone[1] + (size_t)i * vocab, vocab * sizeof(float)) == 0,
                  "%s: pass %u differs", g->name, i);
    }
    t.backend->free(t.device, other);
    free(alone[0]);
    free(alone[1]);
    testing_model_close(&t);
}

static void packed_sequences_do_not_see_each_other(void) { each_golden(check_packed); }

/* Only some tokens' logits, or none at all, leave the others' bits alone. */
static void check_rows(const golden *g) {
    testing_model t;
    uint32_t vocab = g->config.vocab_size, n = g->n_tokens;
    if (testing_model_open(&t, kernels_cpu(), KERNELS_F32, &g->config, g->dir, n, n)) {
        float *all = testing_model_run(&t, g->tokens, n, n);
        const float *some = testing_model_step(&t, g->tokens, 0, n, g->rows, g->n_rows);
        for (uint32_t i = 0; i < g->n_rows; i++) {
            CU_ASSERT_EQUAL(memcmp(some + (size_t)i * vocab, all + (size_t)g->rows[i] * vocab, vocab * sizeof(float)),
                            0);
        }
        uint32_t last = 0;
        (void)testing_model_step(&t, g->tokens, 0, n - 1, NULL, 0);
        const float *one = testing_model_step(&t, g->tokens, n - 1, 1, &last, 1);
        CU_ASSERT_EQUAL(memcmp(one, all + (size_t)(n - 1) * vocab, vocab * sizeof(float)), 0);
        free(all);
    }
    testing_model_close(&t);
}

static void rows_without_logits_change_nothing(void) { each_golden(check_rows); }

/* bf16 has 8 bits: far from f32, but the same model; and the fast backend rounds where the reference does. */
static void check_bf16(const golden *g) {
    testing_model t;
    float *logits[2] = {NULL, NULL};
    const kernels_backend *backends[2] = {kernels_reference(), kernels_cpu()};
    for (int i = 0; i < 2; i++) {
        if (testing_model_open(&t, backends[i], KERNELS_BF16, &g->config, g->dir, g->n_tokens, g->n_tokens)) {
            logits[i] = testing_model_run(&t, g->tokens, g->n_tokens, g->n_tokens);
            double difference = golden_difference(g, logits[i]);
            CHECK_MSG(difference < BF16_TOLERANCE, "%s in bf16 on %s: off by %.2e", g->name, backends[i]->name,
                      difference);
        }
        testing_model_close(&t);
    }
    if (logits[0] && logits[1]) {
        double difference = testing_difference(logits[1], logits[0], (size_t)g->n_tokens * g->config.vocab_size);
        CHECK_MSG(difference < 0.02, "%s in bf16: cpu and reference differ by %.2e", g->name, difference);
    }
    free(logits[0]);
    free(logits[1]);
}

static void bf16_is_near(void) { each_golden(check_bf16); }

/* ---------------------------------------------------------- a real model -- */

static uint32_t argmax(const float *x, uint32_t n) {
    uint32_t best = 0;
    for (uint32_t i = 1; i < n; i++) {
        best = x[i] > x[best] ? i : best;
    }
    return best;
}

/* Greedy, the first n_equal tokens are as expected. */
static void stories_on(const kernels_backend *backend, kernels_dtype dtype, const char *dir, const json_t *expected,
                       uint32_t n_equal) {
    const json_t *prompt = json_object_get(expected, "prompt_ids"),
                 *generated = json_object_get(expected, "generated_ids");
    uint32_t n_prompt = (uint32_t)json_array_size(prompt), n = n_prompt + (uint32_t)json_array_size(generated);
    int32_t tokens[MAX_TOKENS];
    model_config config;
    testing_model t = {0};
    perch_error err = {0};
    CU_ASSERT_TRUE_FATAL(n_prompt > 0 && n - n_prompt >= 60 && n <= MAX_TOKENS);
    for (uint32_t i = 0; i < n_prompt; i++) {
        tokens[i] = (int32_t)json_integer_value(json_array_get(prompt, i));
    }
    perch_status status = model_config_load(dir, &config, &err);
    if (CHECK_MSG(status == PERCH_OK, "%s", err.message) &&
        testing_model_open(&t, backend, dtype, &config, dir, n, n)) {
        uint32_t row = n_prompt - 1;
        const float *logits = testing_model_step(&t, tokens, 0, n_prompt, &row, 1);
        for (uint32_t i = n_prompt; i < n_prompt + n_equal && i < n; i++) {
            int32_t want = (int32_t)json_integer_value(json_array_get(generated, i - n_prompt));
            tokens[i] = (int32_t)argmax(logits, config.vocab_size);
            CHECK_MSG(tokens[i] == want, "token %u on %s is %d, not %d", i, backend->name, tokens[i], want);
            row = 0;
            logits = testing_model_step(&t, tokens, i, 1, &row, 1);
        }
    }
    testing_model_close(&t);
}

static void stories260k_is_told_as_expected(void) {
    const char *dir = test_shared("stories260K");
    const char *expected_path = test_shared("stories260K/expected.json");
    if (!dir || !expected_path) {
        return;
    }
    json_t *expected = json_load_file(expected_path, 0, NULL);
    CU_ASSERT_PTR_NOT_NULL_FATAL(expected);
    stories_on(kernels_reference(), KERNELS_F32, dir, expected, UINT32_MAX / 2);
    stories_on(kernels_cpu(), KERNELS_F32, dir, expected, UINT32_MAX / 2);
    const kernels_backend *cuda;
    if (kernels_cuda(&cuda, NULL) == PERCH_OK) {
        stories_on(cuda, KERNELS_BF16, dir, expected, 40);
    }
    json_decref(expected);
}

int main(int argc, char **argv) {
    static const test_case tests[] = {
        {"reference: logits are transformers'", reference_logits_are_transformers},
        {"cpu: logits are transformers'", cpu_logits_are_transformers},
        {"cuda: logits are near transformers'", cuda_logits_are_near},
        {"packed sequences do not see each other", packed_sequences_do_not_see_each_other},
        {"rows without logits change nothing", rows_without_logits_change_nothing},
        {"bf16 is near", bf16_is_near},
        {"stories260K is told as expected", stories260k_is_told_as_expected},
        {"cuda: the device lives to the end", cuda_lives_to_the_end},
    };
    return test_main("forward", tests, sizeof tests / sizeof tests[0], argc, argv);
}
