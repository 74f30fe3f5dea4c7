/*
 * Which algorithm computes a product. cuBLASLt offers a few for a shape and a number of rows; which is fastest is found out by
 * timing them when the device is reserved, before any step, and kept in a file (tune_file.c). Up to CUDA_SMALL_GEMM_ROWS rows
 * cuda_small_gemm competes.
 *
 * Deterministic: a shape has one algorithm for every number of rows, none that splits the sum over n_in, and it is tried out
 * before it is trusted: equal rows must give equal bits wherever they stand and however many there are. Which one it is
 * is not a matter of time: another algorithm may give other bits, and a conversation is to go on with the same ones after a restart,
 * in another engine, or on another GPU of the kind. So what counts is the order in which cuBLASLt offers them.
 */
#include "kernels/cuda/device.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define ASKED 8           /* algorithms asked for at a time */
#define MAX_CANDIDATES 32 /* deterministic: of several numbers of rows */
/* Weights of fewer elements are read in no time, whatever the algorithm. */
#define MIN_TIMED_ELEMENTS ((size_t)1 << 18)
#define MAX_TIMED_ROWS 8192u
/* Rows that a deterministic algorithm must do at least: engines with smaller steps choose the same one. */
#define DEFAULT_ROWS 256u

typedef struct candidates {
    cublasLtMatmulAlgo_t algo[MAX_CANDIDATES];
    uint32_t n;
} candidates;

/* What products are tried on: [rows][n_in] and [rows][n_out] at the largest, n_out of float. */
typedef struct bench {
    uint8_t *x, *y;
    uint32_t rows;
    cudaEvent_t begin, end;
    uint8_t *host; /* two rows of y, or one of x */
} bench;

/* --- candidates */

static bool runs(kernels_device *device, gemm_shape *shape, gemm_kind kind, const cublasLtMatmulAlgo_t *algo,
                 uint32_t n_rows) {
    cublasLtMatmulHeuristicResult_t result;
    cuda_gemm_set_rows(shape, kind, n_rows);
    return cublasLtMatmulAlgoCheck(device->gemm.lt, device->gemm.plain, shape->w, shape->x, shape->y[kind],
                                   shape->y[kind], algo, &result) == CUBLAS_STATUS_SUCCESS &&
           result.workspaceSize <= CUDA_WORKSPACE_BYTES;
}

/* Whether each sum over n_in is one thread block's, from front to back. */
static bool is_unsplit(const cublasLtMatmulAlgo_t *algo) {
    int32_t parts = 0;
    uint32_t reduction = 0;
    size_t written;
    return cublasLtMatmulAlgoConfigGetAttribute(algo, CUBLASLT_ALGO_CONFIG_SPLITK_NUM, &parts, sizeof parts,
                                                &written) == CUBLAS_STATUS_SUCCESS &&
           cublasLtMatmulAlgoConfigGetAttribute(algo, CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME, &reduction,
                                                sizeof reduction, &written) == CUBLAS_STATUS_SUCCESS &&
           parts <= 1 && reduction == CUBLASLT_REDUCTION_SCHEME_NONE;
}

/* Numbers of rows around each power of two, ascending up to `most`; 0 behind the last. */
static uint32_t next_rows(uint32_t n, uint32_t most) {
    uint32_t power = 1;
    while (power <= n && power < GEMM_MAX_ROWS) {
        power *= 2;
    }
    /* n < power: next is power / 2 + 1, power - 1 or power */
    uint32_t next = n < power / 2 + 1 && power > 2 ? power / 2 + 1 : n < power - 1 ? power - 1 : power;
    return n >= most ? 0 : next < most ? next : most;
}

/* The most rows that a deterministic algorithm has to do. */
static uint32_t most_rows(const kernels_device *device, uint32_t n_rows) {
    const uint32_t most = device->reserved ? device->limits.max_step_tokens : 0;
    const uint32_t least = most > n_rows ? most : n_rows;
    return 1u << cuda_gemm_bucket(least > DEFAULT_ROWS ? least : DEFAULT_ROWS);
}

static bool fits(kernels_device *device, gemm_shape *shape, gemm_kind kind, const cublasLtMatmulAlgo_t *algo,
                 uint32_t n_rows) {
    if (!device->deterministic) {
        uint32_t most = 1u << cuda_gemm_bucket(n_rows);
        return runs(device, shape, kind, algo, most / 2 + 1) && runs(device, shape, kind, algo, most);
    }
    if (!is_unsplit(algo)) {
        return false;
    }
    const uint32_t most = most_rows(device, n_rows);
    for (uint32_t n = next_rows(0, most); n > 0; n = next_rows(n, most)) {
        if (!runs(device, shape, kind, algo, n)) {
            return false;
        }
    }
    return true;
}

static bool contains(const candidates *c, const cublasLtMatmulAlgo_t *algo) {
    for (uint32_t i = 0; i < c->n; i++) {
        if (memcmp(&c->algo[i], algo, sizeof *algo) == 0) {
            return true;
        }
    }
    return false;
}

/* Adds what cuBLASLt offers for that many rows, its own first choice first. There may be nothing. */
static perch_status ask(kernels_device *device, gemm_shape *shape, gemm_kind kind, uint32_t n_rows, candidates *c,
                        perch_error *err) {
    cublasLtMatmulHeuristicResult_t results[ASKED];
    int n = 0;
    cuda_gemm_set_rows(shape, kind, n_rows);
    cublasStatus_t e =
        cublasLtMatmulAlgoGetHeuristic(device->gemm.lt, device->gemm.plain, shape->w, shape->x, shape->y[kind],
                                       shape->y[kind], device->gemm.preference, ASKED, results, &n);
    if (e == CUBLAS_STATUS_NOT_SUPPORTED) {
        return PERCH_OK;
    }
    perch_status status = cuda_check_lt(device, e, "asking for a matrix product's algorithms", err);
    for (int i = 0; i < n && status == PERCH_OK; i++) {
        const cublasLtMatmulAlgo_t *algo = &results[i].algo;
        if (results[i].state == CUBLAS_STATUS_SUCCESS && c->n < MAX_CANDIDATES && !contains(c, algo) &&
            fits(device, shape, kind, algo, n_rows)) {
            c->algo[c->n++] = *algo;
        }
    }
    return status;
}

static bool small_can(const kernels_device *device, const gemm_shape *shape, uint32_t n_rows) {
    return !device->deterministic && n_rows <= CUDA_SMALL_GEMM_ROWS && shape->n_in % 8 == 0;
}

/* --- what the file had */

static gemm_record record_of(const kernels_device *device, const gemm_shape *shape, gemm_kind kind, uint32_t bucket) {
    return (gemm_record){.n_out = shape->n_out,
                         .n_in = shape->n_in,
                         .bucket = bucket,
                         .dtype = (uint8_t)device->dtype,
                         .deterministic = device->deterministic,
                         .kind = (uint8_t)kind};
}

/* Whether the file had a plan that can be used. */
static bool recall(kernels_device *device, gemm_shape *shape, gemm_kind kind, uint32_t n_rows, gemm_plan *plan) {
    const uint32_t tried = device->deterministic && n_rows > MAX_TIMED_ROWS ? MAX_TIMED_ROWS : n_rows;
    const gemm_record like = record_of(device, shape, kind, cuda_gemm_bucket(tried));
    const gemm_record *found = cuda_records_find(&device->gemm.records, &like);
    if (found == NULL || (found->path == GEMM_SMALL ? !small_can(device, shape, n_rows)
                                                    : !fits(device, shape, kind, &found->algo, n_rows))) {
        return false;
    }
    *plan = (gemm_plan){.path = (gemm_path)found->path, .algo = found->algo};
    return true;
}

/* --- timing */

static const kernels_weight *weight_of(const kernels_weight *weight, const gemm_shape *shape) {
    while (weight != NULL && weight->shape != shape) {
        weight = weight->next;
    }
    return weight;
}

/* Products by one way over the weights of the shape in turn, so that caches don't keep them; algo NULL: cuda_small_gemm. */
static perch_status queue_products(kernels_device *device, gemm_shape *shape, gemm_kind kind,
                                   const cublasLtMatmulAlgo_t *algo, uint32_t n_rows, uint32_t n, const bench *b,
                                   perch_error *err) {
    const kernels_weight *weight = NULL;
    perch_status status = PERCH_OK;
    for (uint32_t i = 0; i < n && status == PERCH_OK; i++) {
        weight = weight != NULL ? weight_of(weight->next, shape) : NULL;
        weight = weight != NULL ? weight : weight_of(device->weights, shape);
        if (algo != NULL) {
            cublasStatus_t e =
                cuda_gemm_multiply(device, device->compute, shape, kind, algo, weight->data, b->x, n_rows, NULL, b->y);
            status = cuda_check_lt(device, e, "timing a matrix product", err);
        } else {
            cudaError_t e = cuda_small_gemm(device->compute, device->dtype, weight->data, shape->n_out, shape->n_in,
                                            b->x, n_rows, NULL, kind == GEMM_ADD, b->y, kind != GEMM_ACT);
            status = cuda_check(device, e, "timing a matrix product of few rows", err);
        }
    }
    return status;
}

static perch_status time_products(kernels_device *device, gemm_shape *shape, gemm_kind kind,
                                  const cublasLtMatmulAlgo_t *algo, uint32_t n_rows, const bench *b, float *ms,
                                  perch_error *err) {
    const uint32_t n = n_rows <= 256 ? 8 : 3;
    perch_status status = queue_products(device, shape, kind, algo, n_rows, 1, b, err); /* loads it */
    *ms = 0;
    for (int round = 0; round < 2 && status == PERCH_OK; round++) {
        float took = 0;
        status = cuda_check(device, cudaEventRecord(b->begin, device->compute), "timing a matrix product", err);
        if (status == PERCH_OK) {
            status = queue_products(device, shape, kind, algo, n_rows, n, b, err);
        }
        if (status == PERCH_OK) {
            status = cuda_check(device, cudaEventRecord(b->end, device->compute), "timing a matrix product", err);
        }
        if (status == PERCH_OK) {
            status = cuda_check(device, cudaEventSynchronize(b->end), "timing a matrix product", err);
        }
        if (status == PERCH_OK) {
            status = cuda_check(device, cudaEventElapsedTime(&took, b->begin, b->end), "timing a matrix product", err);
        }
        *ms = round == 0 || took < *ms ? took : *ms;
    }
    *ms /= (float)n;
    return status;
}

static perch_status keep(kernels_device *device, const gemm_shape *shape, gemm_kind kind, uint32_t bucket,
                         const gemm_plan *plan, perch_error *err) {
    gemm_record record = record_of(device, shape, kind, bucket);
    record.path = (uint8_t)plan->path;
    record.algo = plan->algo;
    return cuda_records_put(&device->gemm.records, &record, err);
}

/* The fastest way for one bucket. */
static perch_status tune_bucket(kernels_device *device, gemm_shape *shape, gemm_kind kind, uint32_t n_rows,
                                const bench *b, perch_error *err) {
    const uint32_t bucket = cuda_gemm_bucket(n_rows);
    gemm_plan *plan = &shape->plans[kind][bucket];
    candidates c = {.n = 0};
    perch_status status = ask(device, shape, kind, n_rows, &c, err);
    float best = 0, ms;
    for (uint32_t i = 0; i < c.n && status == PERCH_OK; i++) {
        status = time_products(device, shape, kind, &c.algo[i], n_rows, b, &ms, err);
        if (status == PERCH_OK && (plan->path == GEMM_UNKNOWN || ms < best)) {
            *plan = (gemm_plan){.path = GEMM_LT, .algo = c.algo[i]};
            best = ms;
        }
    }
    if (status == PERCH_OK && small_can(device, shape, n_rows)) {
        status = time_products(device, shape, kind, NULL, n_rows, b, &ms, err);
        if (status == PERCH_OK && (plan->path == GEMM_UNKNOWN || ms < best)) {
            *plan = (gemm_plan){.path = GEMM_SMALL};
        }
    }
    return status == PERCH_OK && plan->path != GEMM_UNKNOWN ? keep(device, shape, kind, bucket, plan, err) : status;
}

/* --- deterministic */

/* x: the same row over and over, of numbers like activations. */
static perch_status fill_rows(kernels_device *device, const gemm_shape *shape, const bench *b, perch_error *err) {
    const size_t row_bytes = shape->n_in * CUDA_ACT_BYTES;
    uint64_t random = 0x9e3779b97f4a7c15u;
    for (uint32_t i = 0; i < shape->n_in; i++) {
        random = random * 6364136223846793005u + 1442695040888963407u;
        /* A sign, an exponent of 2^-4 to 2^-1 and a full mantissa. */
        uint32_t bits = (uint32_t)(random >> 40);
        uint32_t value = device->dtype == KERNELS_BF16
                             ? (bits & 0x8000u) | (123 + (bits >> 7) % 4) << 7 | (bits & 0x7fu)
                             : (bits & 0x8000u) | (11 + (bits >> 10) % 4) << 10 | (bits & 0x3ffu);
        ((uint16_t *)(void *)b->host)[i] = (uint16_t)value;
    }
    perch_status status = cuda_send(device, b->x, b->host, row_bytes, err);
    for (size_t rows = 1; rows < b->rows && status == PERCH_OK; rows *= 2) {
        size_t n = b->rows - rows < rows ? b->rows - rows : rows;
        status = cuda_check(
            device,
            cudaMemcpyAsync(b->x + rows * row_bytes, b->x, n * row_bytes, cudaMemcpyDeviceToDevice, device->compute),
            "filling a matrix", err);
    }
    return status;
}

/* Whether all rows come out alike, to the bit, with every number of rows. After fill_rows. */
static perch_status try_invariance(kernels_device *device, gemm_shape *shape, gemm_kind kind,
                                   const cublasLtMatmulAlgo_t *algo, const bench *b, bool *invariant,
                                   perch_error *err) {
    const size_t row_bytes = shape->n_out * (kind == GEMM_ACT ? CUDA_ACT_BYTES : sizeof(float));
    uint8_t *expected = b->host, *row = b->host + row_bytes;
    perch_status status = PERCH_OK;
    *invariant = true;
    for (uint32_t n = 1; n > 0 && status == PERCH_OK && *invariant; n = next_rows(n, b->rows)) {
        const uint32_t places[] = {0, n / 2, n - 1};
        status = cuda_check(device, cudaMemsetAsync(b->y, 0, n * row_bytes, device->compute), "zeroing a matrix", err);
        if (status == PERCH_OK) {
            status = queue_products(device, shape, kind, algo, n, 1, b, err);
        }
        for (size_t i = 0; i < sizeof places / sizeof places[0] && status == PERCH_OK; i++) {
            bool is_first = n == 1 && i == 0;
            status = cuda_download(device, is_first ? expected : row, b->y + places[i] * row_bytes, row_bytes, err);
            *invariant = *invariant && (is_first || status != PERCH_OK || memcmp(expected, row, row_bytes) == 0);
        }
    }
    return status;
}

/*
 * What is offered for few rows and for many, in the order of how early it stands in cuBLASLt's own lists; an algorithm that a list
 * lacks counts as if it stood behind its end.
 */
static perch_status ask_for_all(kernels_device *device, gemm_shape *shape, gemm_kind kind, candidates *out,
                                perch_error *err) {
    static const uint32_t sizes[] = {1, 16, 64, DEFAULT_ROWS};
    const uint32_t n_sizes = sizeof sizes / sizeof sizes[0];
    uint32_t rank[MAX_CANDIDATES];
    perch_status status = PERCH_OK;
    out->n = 0;
    for (uint32_t s = 0; s < n_sizes && status == PERCH_OK; s++) {
        candidates offered = {.n = 0};
        status = ask(device, shape, kind, sizes[s], &offered, err);
        for (uint32_t i = 0; i < offered.n; i++) {
            uint32_t at = 0;
            while (at < out->n && memcmp(&out->algo[at], &offered.algo[i], sizeof *out->algo) != 0) {
                at++;
            }
            if (at == out->n) {
                out->algo[out->n++] = offered.algo[i];
                rank[at] = n_sizes * ASKED;
            }
            rank[at] -= ASKED - i;
        }
    }
    for (uint32_t i = 1; i < out->n; i++) { /* equal ranks stay as they are */
        for (uint32_t k = i; k > 0 && rank[k] < rank[k - 1]; k--) {
            const cublasLtMatmulAlgo_t algo = out->algo[k];
            const uint32_t r = rank[k];
            out->algo[k] = out->algo[k - 1];
            rank[k] = rank[k - 1];
            out->algo[k - 1] = algo;
            rank[k - 1] = r;
        }
    }
    return status;
}

/* The first of those that pass. */
static perch_status tune_deterministic(kernels_device *device, gemm_shape *shape, gemm_kind kind, const bench *b,
                                       perch_error *err) {
    candidates offered = {.n = 0};
    bool invariant = false;
    uint32_t i = 0;
    perch_status status = fill_rows(device, shape, b, err);
    if (status == PERCH_OK) {
        status = ask_for_all(device, shape, kind, &offered, err);
    }
    for (; i < offered.n && status == PERCH_OK; i++) {
        status = try_invariance(device, shape, kind, &offered.algo[i], b, &invariant, err);
        if (invariant) {
            break;
        }
    }
    if (status == PERCH_OK && !invariant) {
        return err_set(err, PERCH_E_UNSUPPORTED,
                       "deterministic: of %u algorithms none gives a row the same bits among 1 and %u rows, for a "
                       "weight of %u x %u",
                       offered.n, b->rows, shape->n_out, shape->n_in);
    }
    if (status == PERCH_OK) {
        shape->plans[kind][0] = (gemm_plan){.path = GEMM_LT, .algo = offered.algo[i]};
        /* The file has it for as many rows as it was tried with: a later start with more tries again. */
        status = keep(device, shape, kind, cuda_gemm_bucket(b->rows), &shape->plans[kind][0], err);
    }
    return status;
}

/* --- plans */

static void bench_close(bench *b) {
    (void)cudaFree(b->x);
    (void)cudaFree(b->y);
    if (b->begin != NULL) {
        (void)cudaEventDestroy(b->begin);
    }
    if (b->end != NULL) {
        (void)cudaEventDestroy(b->end);
    }
    free(b->host);
    *b = (bench){0};
}

/* Room for products of one shape, of fewer rows where memory does not suffice: more are guessed. */
static perch_status bench_open(kernels_device *device, const gemm_shape *shape, uint32_t n_rows, bench *b,
                               perch_error *err) {
    perch_status status = PERCH_E_NOMEM;
    *b = (bench){0};
    for (uint32_t rows = n_rows < MAX_TIMED_ROWS ? n_rows : MAX_TIMED_ROWS; rows > 0 && status == PERCH_E_NOMEM;
         rows /= 2) {
        void *x = NULL, *y = NULL;
        status = cuda_take(device, (size_t)rows * shape->n_in * CUDA_ACT_BYTES, "trying algorithms", &x, err);
        if (status == PERCH_OK) {
            status = cuda_take(device, (size_t)rows * shape->n_out * sizeof(float), "trying algorithms", &y, err);
        }
        if (status != PERCH_OK) {
            (void)cudaFree(x);
            continue;
        }
        *b = (bench){.x = x, .y = y, .rows = rows};
    }
    if (status == PERCH_OK) {
        status = cuda_check(device, cudaEventCreate(&b->begin), "an event to time by", err);
    }
    if (status == PERCH_OK) {
        status = cuda_check(device, cudaEventCreate(&b->end), "an event to time by", err);
    }
    if (status == PERCH_OK) {
        size_t x_bytes = shape->n_in * CUDA_ACT_BYTES, y_bytes = 2 * shape->n_out * sizeof(float);
        b->host = malloc(x_bytes > y_bytes ? x_bytes : y_bytes);
        status = b->host != NULL ? PERCH_OK : err_nomem(err, "rows to compare");
    }
    return status;
}

static perch_status tune_shape(kernels_device *device, gemm_shape *shape, gemm_kind kind, uint32_t most, bool *learned,
                               perch_error *err) {
    bench b = {0};
    perch_status status = PERCH_OK;
    const bool is_small = (size_t)shape->n_out * shape->n_in < MIN_TIMED_ELEMENTS;
    if (weight_of(device->weights, shape) == NULL || (is_small && !device->deterministic)) {
        return PERCH_OK;
    }
    const uint32_t last = device->deterministic ? 0 : cuda_gemm_bucket(most);
    if (device->deterministic) {
        most = most_rows(device, most);
    }
    for (uint32_t bucket = 0; bucket <= last && status == PERCH_OK; bucket++) {
        const uint32_t n_rows = device->deterministic ? most : 1u << bucket;
        if (shape->plans[kind][bucket].path != GEMM_UNKNOWN ||
            recall(device, shape, kind, n_rows, &shape->plans[kind][bucket])) {
            continue;
        }
        if (b.x == NULL) {
            status = bench_open(device, shape, device->deterministic ? most : 1u << last, &b, err);
        }
        if (status == PERCH_OK && device->deterministic && b.rows < most && b.rows < MAX_TIMED_ROWS) {
            status = err_set(err, PERCH_E_NOMEM, "deterministic: no memory to try algorithms with %u rows", most);
        } else if (status == PERCH_OK && device->deterministic) {
            status = tune_deterministic(device, shape, kind, &b, err);
        } else if (status == PERCH_OK && n_rows <= b.rows) {
            status = cuda_check(
                device, cudaMemsetAsync(b.x, 0x3c, (size_t)n_rows * shape->n_in * CUDA_ACT_BYTES, device->compute),
                "filling a matrix", err);
            if (status == PERCH_OK) {
                status = tune_bucket(device, shape, kind, n_rows, &b, err);
            }
        }
        *learned = true;
    }
    bench_close(&b);
    return status;
}

perch_status cuda_tune_guess(kernels_device *device, gemm_shape *shape, gemm_kind kind, uint32_t n_rows,
                             perch_error *err) {
    gemm_plan *plan = &shape->plans[kind][device->deterministic ? 0 : cuda_gemm_bucket(n_rows)];
    candidates c = {.n = 0};
    bool learned = false;
    if (device->deterministic) { /* nothing is used that was not tried out, with up to MAX_TIMED_ROWS rows */
        return tune_shape(device, shape, kind, n_rows, &learned, err);
    }
    if (recall(device, shape, kind, n_rows, plan)) {
        return PERCH_OK;
    }
    /* The bucket's largest number of rows: its plan doesn't depend on which of them came first. */
    perch_status status = ask(device, shape, kind, 1u << cuda_gemm_bucket(n_rows), &c, err);
    if (status != PERCH_OK) {
        return status;
    }
    if (c.n > 0) {
        *plan = (gemm_plan){.path = GEMM_LT, .algo = c.algo[0]};
    } else if (small_can(device, shape, n_rows)) {
        *plan = (gemm_plan){.path = GEMM_SMALL};
    } else {
        return err_set(err, PERCH_E_UNSUPPORTED, "cuBLASLt has no algorithm for %u rows and a weight of %u x %u",
                       n_rows, shape->n_out, shape->n_in);
    }
    return PERCH_OK;
}

perch_status cuda_tune(kernels_device *device, const kernels_limits *limits, perch_error *err) {
    bool learned = false;
    perch_status status = PERCH_OK;
    for (gemm_shape *shape = device->gemm.shapes; shape != NULL; shape = shape->next) {
        for (int kind = 0; kind < GEMM_KINDS && status == PERCH_OK; kind++) {
            uint32_t most = kind == GEMM_F32 ? limits->max_logit_rows : limits->max_step_tokens;
            if (shape->is_to_come[kind]) {
                status = tune_shape(device, shape, (gemm_kind)kind, most, &learned, err);
            }
        }
    }
    if (status == PERCH_OK && learned) {
        cuda_records_save(&device->gemm);
    }
    return status;
}
