/*
 * Matrix products: right for every kind, type and number of rows; deterministic to the bit whatever the number of rows; and the
 * choice of algorithms, which is made once and kept in a file.
 */
#include "kernels/cuda/backend_testing.h"

#include <dirent.h>
#include <math.h>
#include <pthread.h>
#include <sys/stat.h>
#include <unistd.h>

/* --- data */

typedef struct operands {
    kernels_dtype dtype;
    uint32_t n_out, n_in, n_rows;
    float *w, *x, *bias, *y0; /* what the device has: y0 is there before an addition */
    kernels_weight *weight;
    void *x_on, *bias_on, *y_on;
} operands;

/* Numbers that both types have, and of which sums are rounded: what is added in another order has other bits. */
static float *random_values(test_rng *rng, size_t n) {
    float *values = malloc((n > 0 ? n : 1) * sizeof *values);
    CU_ASSERT_FATAL(values != NULL);
    for (size_t i = 0; i < n; i++) {
        float magnitude = ldexpf(1 + (float)test_rng_below(rng, 128) / 128, -(int)test_rng_below(rng, 8));
        values[i] = test_rng_below(rng, 2) == 0 ? magnitude : -magnitude;
    }
    return values;
}

static void upload_acts(kernels_device *device, kernels_dtype dtype, void *to, const float *values, size_t n) {
    uint16_t *acts = malloc(n * sizeof *acts);
    for (size_t i = 0; i < n; i++) {
        acts[i] = testing_act(dtype, values[i]);
    }
    CHECK_OK(cuda()->upload(device, to, acts, n * sizeof *acts, ERR));
    free(acts);
}

static operands operands_open(kernels_device *device, test_rng *rng, kernels_dtype dtype, uint32_t n_out, uint32_t n_in,
                              uint32_t n_rows) {
    operands o = {.dtype = dtype, .n_out = n_out, .n_in = n_in, .n_rows = n_rows};
    o.w = random_values(rng, (size_t)n_out * n_in);
    o.x = random_values(rng, (size_t)n_rows * n_in);
    o.bias = random_values(rng, n_out);
    o.y0 = random_values(rng, (size_t)n_rows * n_out);
    CHECK_OK(cuda()->weight_create(device, n_out, n_in, KERNELS_WEIGHT_DTYPE, &o.weight, ERR));
    CHECK_OK(cuda()->weight_set_rows(device, o.weight, 0, n_out, KERNELS_F32, o.w, ERR));
    CHECK_OK(cuda()->alloc(device, (size_t)n_rows * n_in * 2, &o.x_on, ERR));
    CHECK_OK(cuda()->alloc(device, n_out * sizeof(float), &o.bias_on, ERR));
    CHECK_OK(cuda()->alloc(device, (size_t)n_rows * n_out * sizeof(float), &o.y_on, ERR));
    upload_acts(device, dtype, o.x_on, o.x, (size_t)n_rows * n_in);
    CHECK_OK(cuda()->upload(device, o.bias_on, o.bias, n_out * sizeof(float), ERR));
    return o;
}

static void operands_close(kernels_device *device, operands *o) {
    cuda()->weight_destroy(device, o->weight);
    cuda()->free(device, o->x_on);
    cuda()->free(device, o->bias_on);
    cuda()->free(device, o->y_on);
    free(o->w);
    free(o->x);
    free(o->bias);
    free(o->y0);
}

static void prepare(kernels_device *device, const operands *o, gemm_kind kind) {
    const float *bias = kind == GEMM_F32 ? NULL : o->bias_on;
    CHECK_OK(cuda()->async->prepare(device, o->weight, (kernels_product)kind, bias, ERR));
}

/* One product of the first n rows; its result as float. */
static void product(kernels_device *device, const operands *o, gemm_kind kind, bool with_bias, uint32_t n, float *y) {
    const size_t n_values = (size_t)n * o->n_out;
    const float *bias = with_bias ? o->bias_on : NULL;
    if (kind == GEMM_ADD) {
        CHECK_OK(cuda()->upload(device, o->y_on, o->y0, n_values * sizeof *y, ERR));
    }
    perch_status status = kind == GEMM_F32
                              ? cuda()->linear_f32(device, o->weight, o->x_on, n, o->y_on, ERR)
                              : cuda()->linear(device, o->weight, bias, o->x_on, n, o->y_on, kind == GEMM_ADD, ERR);
    CHECK_OK(status);
    if (kind == GEMM_ACT) {
        uint16_t *acts = malloc(n_values * sizeof *acts);
        CHECK_OK(cuda()->download(device, acts, o->y_on, n_values * sizeof *acts, ERR));
        for (size_t i = 0; i < n_values; i++) {
            y[i] = testing_value(o->dtype, acts[i]);
        }
        free(acts);
    } else {
        CHECK_OK(cuda()->download(device, y, o->y_on, n_values * sizeof *y, ERR));
    }
}

/* The largest error, in units of what rounding may do: inputs are exact, sums are of at most n_in + 2 roundings. */
static double worst(const operands *o, gemm_kind kind, bool with_bias, uint32_t n, const float *y) {
    const double unit = o->dtype == KERNELS_BF16 ? 0x1p-8 : 0x1p-11;
    double most = 0;
    for (size_t t = 0; t < n; t++) {
        for (size_t k = 0; k < o->n_out; k++) {
            double sum = kind == GEMM_ADD ? (double)o->y0[t * o->n_out + k] : 0, magnitude = fabs(sum);
            if (with_bias && kind != GEMM_F32) {
                sum += (double)o->bias[k];
                magnitude += fabs((double)o->bias[k]);
            }
            for (size_t i = 0; i < o->n_in; i++) {
                double p = (double)o->w[k * o->n_in + i] * (double)o->x[t * o->n_in + i];
                sum += p;
                magnitude += fabs(p);
            }
            double allowed = magnitude * (o->n_in + 2) * 0x1p-24 + 1e-30;
            /* Activations are rounded once, and again where the bias is added behind. */
            allowed += kind == GEMM_ACT ? 2 * unit * (fabs(sum) + fabs((double)o->bias[k])) : 0;
            double error = fabs((double)y[t * o->n_out + k] - sum) / allowed;
            most = error <= most ? most : error; /* NaN is worse than all */
        }
    }
    return most;
}

/* --- right */

static void products_are_right(void) {
    static const uint32_t row_counts[] = {1, 2, 5, 16, 17, 40};
    uint64_t seed = test_seed(5);
    test_rng rng = {seed};
    for (int round = 0; round < 4; round++) {
        const kernels_config config = {.dtype = round % 2 == 0 ? KERNELS_BF16 : KERNELS_F16,
                                       .deterministic = round >= 2};
        testing_reset(seed + (uint64_t)round);
        kernels_device *device = testing_open(&config);
        if (device == NULL) {
            return;
        }
        for (int shape = 0; shape < 4; shape++) {
            uint32_t n_out = 1 + (uint32_t)test_rng_below(&rng, 70),
                     n_in = 8 * (1 + (uint32_t)test_rng_below(&rng, 12));
            operands o = operands_open(device, &rng, config.dtype, n_out, n_in, 40);
            if (shape % 2 == 0) { /* else the bias comes behind the product */
                prepare(device, &o, GEMM_ACT);
            }
            float *y = malloc((size_t)40 * n_out * sizeof *y);
            for (size_t i = 0; i < sizeof row_counts / sizeof row_counts[0]; i++) {
                for (int kind = 0; kind < GEMM_KINDS; kind++) {
                    for (int with_bias = 0; with_bias < 2; with_bias++) {
                        uint32_t n = row_counts[i];
                        product(device, &o, (gemm_kind)kind, with_bias, n, y);
                        double error = worst(&o, (gemm_kind)kind, with_bias, n, y);
                        CHECK_MSG(error <= 1,
                                  "seed %" PRIu64 ", %u x %u, %u rows, kind %d, bias %d: %.3g times too far off", seed,
                                  n_out, n_in, n, kind, with_bias, error);
                    }
                }
            }
            CHECK_OK(cuda()->linear(device, o.weight, NULL, o.x_on, 0, o.y_on, false, ERR)); /* nothing is fine */
            free(y);
            operands_close(device, &o);
        }
        testing_close(device);
    }
}

/* Rows of any type, set piece by piece and of odd widths, are what an unrounded copy of them would be. */
static void rows_are_stored_as_they_are(void) {
    static const kernels_dtype types[] = {KERNELS_BF16, KERNELS_F16};
    test_rng rng = {test_seed(6)};
    for (size_t d = 0; d < 4; d++) {
        const kernels_config config = {.dtype = types[d / 2]};
        testing_reset(d);
        kernels_device *device = testing_open(&config);
        if (device == NULL) {
            return;
        }
        const uint32_t n_out = 37, n_in = 11 + (uint32_t)d;
        const size_t n = (size_t)n_out * n_in;
        float *values = random_values(&rng, n);
        uint16_t *halves = malloc(n * sizeof *halves), *stored = malloc(n * sizeof *stored);
        kernels_weight *weight = NULL;
        CHECK_OK(cuda()->weight_create(device, n_out, n_in, KERNELS_WEIGHT_DTYPE, &weight, ERR));
        for (size_t i = 0; i < n; i++) {
            halves[i] = testing_act(types[d % 2], values[i]);
        }
        for (uint32_t first = 0; first < n_out;) {
            uint32_t rows = 1 + (uint32_t)test_rng_below(&rng, 9);
            rows = rows < n_out - first ? rows : n_out - first;
            bool as_float = test_rng_below(&rng, 2) == 0;
            const void *from = as_float ? (const void *)(values + (size_t)first * n_in) : halves + (size_t)first * n_in;
            CHECK_OK(
                cuda()->weight_set_rows(device, weight, first, rows, as_float ? KERNELS_F32 : types[d % 2], from, ERR));
            first += rows;
        }
        CHECK_OK(cuda()->download(device, stored, weight->data, n * sizeof *stored, ERR));
        for (size_t i = 0; i < n; i++) {
            CU_ASSERT(stored[i] == testing_act(config.dtype, values[i]));
        }
        CHECK_ERROR(cuda()->weight_set_rows(device, weight, 36, 2, KERNELS_F32, values, ERR), PERCH_E_INVALID,
                    "rows 36..38");
        CHECK_OK(cuda()->weight_set_rows(device, weight, 37, 0, KERNELS_F32, values, ERR));
        free(values);
        free(halves);
        free(stored);
        testing_close(device);
    }
}

/* --- plans */

static const kernels_limits limits = {.max_step_tokens = 40,
                                      .max_batch_size = 4,
                                      .max_logit_rows = 6,
                                      .vocab_size = 50,
                                      .session_len = 64,
                                      .n_heads = 2,
                                      .layout = {.n_layers = 1, .n_kv_heads = 1, .head_dim = 16, .element_bytes = 2}};

/* So few rows that large weights are soon timed. */
static const kernels_limits few = {.max_step_tokens = 2,
                                   .max_batch_size = 2,
                                   .max_logit_rows = 2,
                                   .vocab_size = 50,
                                   .session_len = 64,
                                   .n_heads = 2,
                                   .layout = {.n_layers = 1, .n_kv_heads = 1, .head_dim = 16, .element_bytes = 2}};

/* Every row has the same bits among any number of rows, wherever it stands, with and without a plan made beforehand. */
static void deterministic_rows_do_not_know_one_another(void) {
    for (uint64_t round = 0; round < 4; round++) {
        test_rng rng = {test_seed(7) + round};
        const kernels_config config = {.dtype = round % 2 == 0 ? KERNELS_BF16 : KERNELS_F16, .deterministic = true};
        testing_reset(round);
        kernels_device *device = testing_open(&config);
        if (device == NULL) {
            return;
        }
        const uint32_t n_out = round == 0 ? 50 : 33, n_in = 96;
        operands o = operands_open(device, &rng, config.dtype, n_out, n_in, 40);
        const size_t row_bytes = n_out * sizeof(float);
        float *all = malloc(40 * row_bytes), *some = malloc(40 * row_bytes);
        for (int kind = 0; kind < GEMM_KINDS && round < 2; kind++) {
            prepare(device, &o, (gemm_kind)kind);
        }
        if (round < 2) {
            CHECK_OK(cuda()->async->reserve(device, &limits, ERR));
        }
        for (int kind = 0; kind < GEMM_KINDS; kind++) {
            product(device, &o, (gemm_kind)kind, kind == GEMM_ACT, 40, all);
            for (uint32_t n = 1; n < 40; n += 1 + n / 6) {
                product(device, &o, (gemm_kind)kind, kind == GEMM_ACT, n, some);
                CHECK_MSG(memcmp(all, some, n * row_bytes) == 0,
                          "round %" PRIu64 ", kind %d: %u rows have other bits than 40", round, kind, n);
            }
        }
        free(all);
        free(some);
        operands_close(device, &o);
        testing_close(device);
    }
}

/* So do those of a large weight, where cuBLASLt offers algorithms that only look as if. */
static void large_weights_are_tried_out_as_well(void) {
    for (uint64_t seed = 1; seed <= 3; seed++) {
        const kernels_config config = {.dtype = KERNELS_BF16, .deterministic = seed > 1};
        kernels_limits some = few;
        test_rng rng = {seed};
        some.max_step_tokens = 26;
        testing_reset(seed);
        kernels_device *device = testing_open(&config);
        if (device == NULL) {
            return;
        }
        operands o = operands_open(device, &rng, config.dtype, 1032, config.deterministic ? 256 : 258, 26);
        const size_t row_bytes = o.n_out * sizeof(float);
        float *all = malloc(26 * row_bytes), *one = malloc(row_bytes);
        prepare(device, &o, GEMM_ACT);
        CHECK_OK(cuda()->async->reserve(device, &some, ERR));
        product(device, &o, GEMM_ACT, false, 26, all);
        product(device, &o, GEMM_ACT, false, 1, one);
        CHECK_MSG(!config.deterministic || memcmp(all, one, row_bytes) == 0,
                  "seed %" PRIu64 ": one row has other bits than 26", seed);
        CHECK_MSG(worst(&o, GEMM_ACT, false, 26, all) <= 1 && worst(&o, GEMM_ACT, false, 1, one) <= 1,
                  "seed %" PRIu64 ": too far off", seed);
        free(all);
        free(one);
        operands_close(device, &o);
        testing_close(device);
    }
}

/* Another engine, whose steps have another size and whose clock runs differently, has the same bits. */
static void steps_of_any_size_have_the_same_bits(void) {
    const kernels_config config = {.dtype = KERNELS_BF16, .deterministic = true};
    const uint32_t sizes[] = {2, 40, 200};
    float rows[3][1032];
    for (int i = 0; i < 3; i++) {
        kernels_limits some = few;
        test_rng rng = {5};
        some.max_step_tokens = sizes[i];
        testing_reset(5);
        kernels_device *device = testing_open(&config);
        if (device == NULL) {
            return;
        }
        operands o = operands_open(device, &rng, config.dtype, 1032, 256, 2);
        prepare(device, &o, GEMM_F32);
        CHECK_OK(cuda()->async->reserve(device, &some, ERR));
        product(device, &o, GEMM_F32, false, 1, rows[i]);
#ifdef PERCH_EMULATED
        CU_ASSERT_EQUAL(emulation_calls("cudaEventElapsedTime"), 0);
#endif
        operands_close(device, &o);
        testing_close(device);
    }
    CU_ASSERT(memcmp(rows[0], rows[1], sizeof rows[0]) == 0 && memcmp(rows[0], rows[2], sizeof rows[0]) == 0);
}

static char folder[64];

static size_t files_in_folder(char *name, size_t cap) {
    size_t n = 0;
    DIR *dir = opendir(folder);
    for (struct dirent *entry = dir ? readdir(dir) : NULL; entry != NULL; entry = readdir(dir)) {
        if (entry->d_name[0] != '.') {
            snprintf(name, cap, "%s/%.200s", folder, entry->d_name);
            n++;
        }
    }
    if (dir) {
        closedir(dir);
    }
    return n;
}

/* Opens a device with weights large enough to be timed, and reserves it. Calls of cuBLASLt's product, where they are counted. */
static uint64_t reserve_large(bool deterministic, const char *cache_dir, float *y) {
    const kernels_config config = {.dtype = KERNELS_BF16, .deterministic = deterministic, .cache_dir = cache_dir};
    uint64_t n_products = 0;
    test_rng rng = {3};
    testing_reset(1);
    kernels_device *device = testing_open(&config);
    if (device == NULL) {
        return 0;
    }
    operands o = operands_open(device, &rng, KERNELS_BF16, 512, 512, 2);
    prepare(device, &o, GEMM_ACT);
    CHECK_OK(cuda()->async->reserve(device, &few, ERR));
#ifdef PERCH_EMULATED
    n_products = emulation_calls("cublasLtMatmul") + emulation_calls("cudaLaunchKernel");
#endif
    product(device, &o, GEMM_ACT, false, 2, y);
    operands_close(device, &o);
    testing_close(device);
    return n_products;
}

static void plans_are_kept_in_a_file(void) {
    float *first = malloc(2 * 512 * sizeof *first), *again = malloc(2 * 512 * sizeof *again);
    char parent[32] = "/tmp/perch-gemm-XXXXXX", name[300] = "", kept[300] = "", text[4096];
    CU_ASSERT_FATAL(mkdtemp(parent) != NULL);
    snprintf(folder, sizeof folder, "%s/a/b", parent); /* made on the way */
    uint64_t timed = reserve_large(false, folder, first);
    CHECK_MSG(files_in_folder(kept, sizeof kept) == 1, "%zu files", files_in_folder(kept, sizeof kept));
    uint64_t found = reserve_large(false, folder, again);
    CU_ASSERT(memcmp(first, again, 2 * 512 * sizeof *first) == 0);
#ifdef PERCH_EMULATED
    CHECK_MSG(timed > found + 20, "%" PRIu64 " products to find out, %" PRIu64 " with the file", timed, found);
#else
    (void)timed, (void)found;
#endif
    FILE *file = fopen(kept, "r");
    CU_ASSERT_FATAL(file != NULL);
    size_t bytes = fread(text, 1, sizeof text - 1, file);
    fclose(file);
    text[bytes] = '\0';
    CHECK_MSG(strncmp(text, "perch gemm 1\n", 13) == 0 && strstr(text, "bf16 - 512 512 act 0 ") != NULL &&
                  strstr(text, "bf16 - 512 512 act 1 ") != NULL,
              "%s", text);
    reserve_large(true, folder, again); /* has plans of its own, in the same file */
    file = fopen(kept, "r");
    CU_ASSERT_FATAL(file != NULL);
    bytes = fread(text, 1, sizeof text - 1, file);
    fclose(file);
    text[bytes] = '\0';
    CU_ASSERT(strstr(text, "bf16 - 512 512 act 1 ") != NULL &&
              strstr(text, "bf16 det 512 512 act 8 lt ") /* tried with up to 2^8 rows */ != NULL);

    /* What is no such file is as if it weren't there, and is replaced. */
    const char *const wrong[] = {"%s\nbf16 - 512 512 act 1 lt 0 0 0 0 0 0 0 0\n",
                                 "perch gemm 1\nanother GPU\nbf16 - 512 512 act 0 small\nbf16 - 512 512 act 1 small\n",
                                 "",
                                 "perch gemm 1\n",
                                 "perch gemm 2\nsomething\n",
                                 "%s\ngarbage\n",
                                 "%s\nbf16 - 512 512 act 0 lt 12 34\n",
                                 "%s\nbf16 - 512 512 act 99 small\n"};
    char head[600];
    char *second_line = strchr(text, '\n') + 1;
    *strchr(second_line, '\n') = '\0';
    snprintf(head, sizeof head, "perch gemm 1\n%s", second_line);
    const uint64_t n_wrong = 1 + test_scaled(sizeof wrong / sizeof wrong[0]);
    for (size_t i = 0; i < n_wrong && i < sizeof wrong / sizeof wrong[0]; i++) {
        file = fopen(kept, "w");
        CU_ASSERT_FATAL(file != NULL);
        const char *rest = strncmp(wrong[i], "%s", 2) == 0 ? wrong[i] + 2 : NULL;
        fprintf(file, "%s%s", rest ? head : wrong[i], rest ? rest : "");
        fclose(file);
        CHECK_MSG(reserve_large(false, folder, again) == timed, "file %zu was used", i);
        CU_ASSERT(memcmp(first, again, 2 * 512 * sizeof *first) == 0);
        uint64_t once_more = reserve_large(false, folder, again);
        CHECK_MSG(once_more <= found, "file %zu was not replaced: %" PRIu64 " products", i, once_more);
    }
    CU_ASSERT(files_in_folder(name, sizeof name) == 1);
    unlink(kept);
    rmdir(folder);
    snprintf(folder, sizeof folder, "%s/a", parent);
    rmdir(folder);
    rmdir(parent);
    free(first);
    free(again);
}

#define N_SAVERS 3u
#define N_SAVES 15u

typedef struct saver {
    cuda_gemm gemm; /* of which nothing but the records and their file is used */
    uint32_t number;
    bool failed;
} saver;

static void *save_some(void *context) {
    saver *s = context;
    for (uint32_t i = 0; i < N_SAVES && !s->failed; i++) {
        const gemm_record record = {.n_out = s->number + 1, .n_in = i + 1, .dtype = KERNELS_BF16, .path = GEMM_SMALL};
        s->failed = cuda_records_put(&s->gemm.records, &record, NULL) != PERCH_OK;
        cuda_records_save(&s->gemm);
    }
    return NULL;
}

/* Engines that start side by side and have each found out something else: the file has all of it. */
static void what_others_have_found_out_stays_in_the_file(void) {
    static saver savers[N_SAVERS];
    pthread_t threads[N_SAVERS];
    char parent[32] = "/tmp/perch-gemm-XXXXXX", name[300];
    const kernels_config config = {.dtype = KERNELS_BF16, .cache_dir = parent};
    CU_ASSERT_FATAL(mkdtemp(parent) != NULL);
    testing_reset(1);
    kernels_device *device = testing_open(&config);
    if (device == NULL) {
        rmdir(parent);
        return;
    }
    CHECK_MSG(strstr(device->gemm.key, " SMs | ") != NULL, "%s", device->gemm.key);
    for (uint32_t i = 0; i < N_SAVERS; i++) {
        savers[i] = (saver){.number = i, .gemm = {.path = strdup(device->gemm.path)}};
        memcpy(savers[i].gemm.key, device->gemm.key, sizeof device->gemm.key);
        CU_ASSERT_FATAL(pthread_create(&threads[i], NULL, save_some, &savers[i]) == 0);
    }
    for (uint32_t i = 0; i < N_SAVERS; i++) {
        pthread_join(threads[i], NULL);
        CU_ASSERT(!savers[i].failed);
        cuda_records_close(&savers[i].gemm);
    }
    testing_close(device);
    device = testing_open(&config);
    CHECK_MSG(device->gemm.records.n == N_SAVERS * N_SAVES, "%zu records", device->gemm.records.n);
    for (uint32_t i = 0; i < N_SAVERS * N_SAVES; i++) {
        const gemm_record like = {.n_out = i % N_SAVERS + 1, .n_in = i / N_SAVERS + 1, .dtype = KERNELS_BF16};
        CU_ASSERT(cuda_records_find(&device->gemm.records, &like) != NULL);
    }
    testing_close(device);
    snprintf(folder, sizeof folder, "%s", parent);
    CU_ASSERT(files_in_folder(name, sizeof name) == 1);
    unlink(name);
    rmdir(parent);
}

/* Where the file can't be written nothing is wrong. */
static void a_folder_that_cannot_be_had_is_no_error(void) {
    float *y = malloc(2 * 512 * sizeof *y);
    (void)reserve_large(false, "/dev/null/perch", y);
    (void)reserve_large(true, NULL, y);
    free(y);
}

/* A product is done by the same plan after reserve as before, and reserve takes back what it tried with. */
static void reserve_gives_back_what_it_tried_with(void) {
    for (int deterministic = 0; deterministic < 2; deterministic++) {
        const kernels_config config = {.dtype = KERNELS_BF16, .deterministic = deterministic};
        test_rng rng = {4};
        uint64_t before = 0, after = 0;
        testing_reset(1);
        kernels_device *device = testing_open(&config);
        if (device == NULL) {
            return;
        }
        operands o = operands_open(device, &rng, KERNELS_BF16, 600, 480, 1);
        prepare(device, &o, GEMM_ADD);
        CHECK_OK(cuda()->free_bytes(device, &before, ERR));
        CHECK_OK(cuda()->async->reserve(device, &few, ERR));
        CHECK_OK(cuda()->free_bytes(device, &after, ERR));
        CHECK_MSG(before - after <= cuda()->async->reserve_bytes(device, &few),
                  "%" PRIu64 " bytes were taken, %" PRIu64 " planned", before - after,
                  cuda()->async->reserve_bytes(device, &few));
        CHECK_ERROR(cuda()->async->reserve(device, &few, ERR), PERCH_E_INVALID, "reserved already");
        operands_close(device, &o);
        testing_close(device);
    }
}

/* What was prepared is found out in reserve, whatever the shape looks like; what was not is refused, and not found out in a step. */
static void steps_find_nothing_out(void) {
    for (int deterministic = 0; deterministic < 2; deterministic++) {
        const kernels_config config = {.dtype = KERNELS_BF16, .deterministic = deterministic};
        test_rng rng = {5};
        float *y = malloc((size_t)2 * 50 * sizeof *y);
        testing_reset(1);
        kernels_device *device = testing_open(&config);
        if (device == NULL) {
            free(y);
            return;
        }
        operands o = operands_open(device, &rng, KERNELS_BF16, 50, 48, 2); /* as many rows as the vocabulary */
        prepare(device, &o, GEMM_ACT);
        prepare(device, &o, GEMM_ADD);
        CHECK_OK(cuda()->async->reserve(device, &few, ERR));
        CHECK_ERROR(cuda()->async->prepare(device, o.weight, KERNELS_PRODUCT_F32, NULL, ERR), PERCH_E_INVALID,
                    "too late");
#ifdef PERCH_EMULATED
        const uint64_t mallocs = emulation_calls("cudaMalloc"), frees = emulation_calls("cudaFree"),
                       asked = emulation_calls("cublasLtMatmulAlgoGetHeuristic");
#endif
        for (uint32_t n = 1; n <= 2; n++) {
            product(device, &o, GEMM_ACT, true, n, y);
            CU_ASSERT(worst(&o, GEMM_ACT, true, n, y) <= 1);
            product(device, &o, GEMM_ADD, true, n, y);
            CU_ASSERT(worst(&o, GEMM_ADD, true, n, y) <= 1);
        }
#ifdef PERCH_EMULATED
        CU_ASSERT(emulation_calls("cudaMalloc") == mallocs && emulation_calls("cudaFree") == frees);
        CU_ASSERT(!deterministic || emulation_calls("cublasLtMatmulAlgoGetHeuristic") == asked);
#endif
        CHECK_ERROR(cuda()->linear_f32(device, o.weight, o.x_on, 1, o.y_on, ERR), PERCH_E_INVALID, "not prepared");
        free(y);
        operands_close(device, &o);
        testing_close(device);
    }
}

/* A bias that was prepared costs a product no kernel of its own: not when it is first used, nor later. */
static void a_bias_is_converted_once(void) {
#ifdef PERCH_EMULATED
    static const gemm_kind kinds[] = {GEMM_ACT, GEMM_ADD};
    const kernels_config config = {.dtype = KERNELS_F16};
    test_rng rng = {6};
    float y[24 * 33];
    testing_reset(1);
    kernels_device *device = testing_open(&config);
    CU_ASSERT_FATAL(device != NULL);
    operands o = operands_open(device, &rng, KERNELS_F16, 33, 72, 24);
    prepare(device, &o, GEMM_ACT);
    prepare(device, &o, GEMM_ADD);
    for (size_t i = 0; i < 6; i++) {
        const gemm_kind kind = kinds[i % 2];
        uint64_t launches[2];
        for (int with_bias = 0; with_bias < 2; with_bias++) {
            const uint64_t before = emulation_calls("cudaLaunchKernel");
            product(device, &o, kind, with_bias, 24, y);
            launches[with_bias] = emulation_calls("cudaLaunchKernel") - before;
            CU_ASSERT(worst(&o, kind, with_bias, 24, y) <= 1);
        }
        CHECK_MSG(launches[0] == launches[1], "kind %d: %" PRIu64 " kernels with a bias, %" PRIu64 " without",
                  (int)kind, launches[1], launches[0]);
    }
    operands_close(device, &o);
    testing_close(device);
#else
    test_skip("counts calls of the emulation");
#endif
}

int main(int argc, char **argv) {
    static const test_case tests[] = {
        {"products_are_right", products_are_right},
        {"rows_are_stored_as_they_are", rows_are_stored_as_they_are},
        {"deterministic_rows_do_not_know_one_another", deterministic_rows_do_not_know_one_another},
        {"steps_find_nothing_out", steps_find_nothing_out},
        {"a_bias_is_converted_once", a_bias_is_converted_once},
        {"what_others_have_found_out_stays_in_the_file", what_others_have_found_out_stays_in_the_file},
        {"large_weights_are_tried_out_as_well", large_weights_are_tried_out_as_well},
        {"steps_of_any_size_have_the_same_bits", steps_of_any_size_have_the_same_bits},
        {"plans_are_kept_in_a_file", plans_are_kept_in_a_file},
        {"a_folder_that_cannot_be_had_is_no_error", a_folder_that_cannot_be_had_is_no_error},
        {"reserve_gives_back_what_it_tried_with", reserve_gives_back_what_it_tried_with},
    };
    return test_main("cuda_gemm_test", tests, sizeof tests / sizeof tests[0], argc, argv);
}
