/*
 * Everything that the backend asks CUDA and the system for fails once: each call, each kernel as it runs, each allocation on the
 * host, the thread. Each time a status with a reason comes back, or nobody need notice; nothing is left behind, and the same
 * works again afterwards.
 */
#include "kernels/cuda/backend_testing.h"

#include <errno.h>
#include <pthread.h>

/* The linker sends the library's calls here (--wrap). */
void *__real_calloc(size_t n, size_t bytes);
void *__real_malloc(size_t bytes);
void *__real_realloc(void *data, size_t bytes);
void __real_free(void *data);
int __real_pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*start)(void *), void *argument);
void *__wrap_calloc(size_t n, size_t bytes);
void *__wrap_malloc(size_t bytes);
void *__wrap_realloc(void *data, size_t bytes);
void __wrap_free(void *data);
int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*start)(void *), void *argument);

static bool counting; /* only while a life lasts */
static uint64_t n_requests, failing_request;
static int64_t n_blocks; /* that are not freed */

static bool fails(void) { return counting && ++n_requests == failing_request; }

static void *counted(void *data) {
    n_blocks += counting && data != NULL;
    return data;
}

void *__wrap_calloc(size_t n, size_t bytes) { return fails() ? NULL : counted(__real_calloc(n, bytes)); }

void *__wrap_malloc(size_t bytes) { return fails() ? NULL : counted(__real_malloc(bytes)); }

void *__wrap_realloc(void *data, size_t bytes) {
    if (fails()) {
        return NULL;
    }
    void *moved = __real_realloc(data, bytes);
    n_blocks += counting && data == NULL && moved != NULL;
    return moved;
}

void __wrap_free(void *data) {
    n_blocks -= counting && data != NULL;
    __real_free(data);
}

int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*start)(void *), void *argument) {
    return fails() ? EAGAIN : __real_pthread_create(thread, attributes, start, argument);
}

/* --- a life */

enum {
    VOCAB = 24,
    HIDDEN = 16,
    DIM = 8,
    QKV = 3 * DIM,
    SESSION = 32,
    SLOTS = 2,
    STEP = 6,
    GROUP_BYTES = 2 * 16 * DIM * 2
};

static const kernels_limits limits = {
    .max_step_tokens = STEP,
    .max_batch_size = SLOTS,
    .max_logit_rows = SLOTS,
    .vocab_size = VOCAB,
    .session_len = SESSION,
    .n_heads = 1,
    .layout = {.n_layers = 1, .n_kv_heads = 1, .head_dim = DIM, .element_bytes = 2, .group_bytes = GROUP_BYTES}};

typedef struct life {
    bool table, deterministic;
    kernels_device *device;
    kernels_weight *embedding, *qkv, *output;
    float *x, *gain, *rope, *bias, *logits;
    void *normed, *qkv_out, *heads;
} life;

#define TRY(call)                                                                                                      \
    do {                                                                                                               \
        if ((status = (call)) != PERCH_OK) {                                                                           \
            return status;                                                                                             \
        }                                                                                                              \
    } while (0)

static perch_status begin_life(life *l, perch_error *err) {
    static const float values[VOCAB * HIDDEN];
    const kernels_config config = {.dtype = KERNELS_BF16, .deterministic = l->deterministic, .graphs = true};
    const kernels_backend *k = cuda();
    perch_status status;
    void *p;
    TRY(k->open(&config, &l->device, err));
    TRY(k->weight_create(l->device, VOCAB, HIDDEN, KERNELS_WEIGHT_DTYPE, &l->embedding, err));
    TRY(k->weight_create(l->device, QKV, HIDDEN, KERNELS_WEIGHT_DTYPE, &l->qkv, err));
    TRY(k->weight_create(l->device, HIDDEN, DIM, KERNELS_WEIGHT_DTYPE, &l->output, err));
    TRY(k->weight_set_rows(l->device, l->embedding, 0, VOCAB, KERNELS_F32, values, err));
    TRY(k->weight_set_rows(l->device, l->qkv, 0, QKV, KERNELS_F16, values, err));
    TRY(k->weight_set_rows(l->device, l->output, 0, HIDDEN, KERNELS_BF16, values, err));
    void **const buffers[] = {(void **)&l->x,      (void **)&l->gain, (void **)&l->rope, (void **)&l->bias,
                              (void **)&l->logits, &l->normed,        &l->qkv_out,       &l->heads};
    for (size_t i = 0; i < sizeof buffers / sizeof buffers[0]; i++) {
        TRY(k->alloc(l->device, SESSION * QKV * sizeof(float), &p, err));
        *buffers[i] = p;
    }
    TRY(k->upload(l->device, l->gain, values, HIDDEN * sizeof(float), err));
    TRY(k->async->prepare(l->device, l->embedding, KERNELS_PRODUCT_F32, NULL, err));
    TRY(k->async->prepare(l->device, l->qkv, KERNELS_PRODUCT_ACT, l->bias, err));
    TRY(k->async->prepare(l->device, l->output, KERNELS_PRODUCT_ADD, l->bias, err));
    TRY(k->async->reserve(l->device, &limits, err));
    const uint64_t page_bytes = l->table ? GROUP_BYTES : k->kv_page_granularity(l->device);
    const kernels_kv kv = {.mapping = l->table ? KERNELS_TABLE : KERNELS_VMM,
                           .page_bytes = page_bytes,
                           .group_bytes = GROUP_BYTES,
                           .n_pages = 5,
                           .n_slots = SLOTS,
                           .pages_per_slot = 2};
    TRY(k->kv_open(l->device, &kv, err));
    return k->host_open(l->device, 3, err);
}

static perch_status queue_pass(const life *l, const kernels_batch *batch, const kernels_pass *pass, perch_error *err) {
    const kernels_attention attention = {.layout = limits.layout, .n_heads = 1, .scale = 0.5f};
    const kernels_backend *k = cuda();
    kernels_device *d = l->device;
    const uint32_t n = pass->n_tokens;
    perch_status status;
    TRY(k->embed(d, l->embedding, batch, n, l->x, err));
    TRY(k->rmsnorm(d, l->x, l->gain, 1e-5f, n, HIDDEN, l->normed, err));
    TRY(k->linear(d, l->qkv, l->bias, l->normed, n, l->qkv_out, false, err));
    TRY(k->head_norm(d, l->qkv_out, n, QKV, 0, 1, DIM, l->gain, 1e-5f, err));
    TRY(k->rope_write(d, batch, &attention, l->rope, l->qkv_out, err));
    TRY(k->attention(d, batch, &attention, l->qkv_out, l->heads, err));
    TRY(k->linear(d, l->output, l->bias, l->heads, n, l->x, true, err));
    TRY(k->silu_mul(d, l->qkv_out, n, DIM, l->heads, err));
    TRY(k->rmsnorm(d, l->x, l->gain, 1e-5f, n, HIDDEN, l->normed, err));
    TRY(k->gather(d, batch, pass->n_logits, l->normed, HIDDEN * 2, l->heads, err));
    return k->linear_f32(d, l->embedding, l->heads, pass->n_logits, l->logits, err);
}

/* Queues one step: a prompt's piece, or one token of either slot, the first chosen by the step before. */
static perch_status launch(const life *l, uint32_t number, perch_error *err) {
    static const perch_sampling sampling = {
        .temperature = 1, .top_p = 0.9, .typical_p = 1, .repetition_penalty = 1.2, .n_logprobs = 2};
    const bool decode = number > 0;
    const uint32_t n = decode ? 2 : STEP, at = decode ? STEP + number - 1 : 0, lane = number % KERNELS_LANES;
    const int32_t tokens[STEP] = {1, 2, 3, 4, 5, 6};
    const uint32_t decode_positions[] = {at, at}, positions[] = {0, 1, 2, 0, 1, 2};
    const uint32_t decode_rows[] = {0, 1}, token_row[] = {0, 0, 0, 1, 1, 1}, logit_tokens[] = {2, 5};
    const uint32_t token_from[] = {0, decode ? KERNELS_GIVEN : 0};
    const kernels_row rows[] = {{cuda()->kv_slot(l->device, 0), 0, decode ? 1 : 3, decode ? at : 0, 0},
                                {cuda()->kv_slot(l->device, 1), decode ? 1 : 3, decode ? 1 : 3, decode ? at : 0, 1}};
    const kernels_batch batch = {.n_tokens = n,
                                 .n_rows = 2,
                                 .n_logits = 2,
                                 .tokens = tokens,
                                 .positions = decode ? decode_positions : positions,
                                 .token_row = decode ? decode_rows : token_row,
                                 .rows = rows,
                                 .logit_tokens = decode ? decode_rows : logit_tokens,
                                 .token_from = decode ? token_from : NULL};
    const kernels_choice choices[] = {
        {.slot = 0, .n_prompt = 3, .n_tokens = at + 1, .sampling = &sampling},
        {.logit_row = 1, .slot = 1, .n_prompt = 3, .n_tokens = at + 1, .sampling = &sampling}};
    kernels_pass pass;
    perch_status status;
    TRY(cuda()->async->begin(l->device, lane, &batch, decode ? 1 : 0, &pass, err));
    if (!pass.replayed) {
        TRY(queue_pass(l, &batch, &pass, err));
        TRY(cuda()->async->end(l->device, lane, err));
    }
    return cuda()->async->choose(l->device, lane, l->logits, choices, 2, err);
}

/* Two pages to the host and back to others. */
static perch_status move_pages(const life *l, perch_error *err) {
    static const kernels_transfer out[] = {{1, 0}, {2, 1}}, back[] = {{4, 1}, {3, 0}};
    uint64_t ticket, done;
    perch_status status;
    TRY(cuda()->transfer(l->device, KERNELS_STORE, out, 2, &ticket, err));
    TRY(cuda()->transferred(l->device, KERNELS_STORE, &done, err));
    TRY(cuda()->transfer_wait(l->device, KERNELS_STORE, ticket, err));
    TRY(cuda()->transfer(l->device, KERNELS_LOAD, back, 2, &ticket, err));
    return cuda()->transfer_wait(l->device, KERNELS_LOAD, ticket, err);
}

static perch_status live(life *l, perch_error *err) {
    const kv_command first[] = {{.op = KV_MAP, .slot = 0, .page = 1}, {.op = KV_MAP, .slot = 1, .page = 2}};
    const kv_command more[] = {{.op = KV_COPY, .page = 3, .source = 1},
                               {.op = KV_MAP, .slot = 0, .index = 1, .page = 3},
                               {.op = KV_UNMAP, .slot = 0, .index = 1},
                               {.op = KV_MAP, .slot = 0, .index = 1, .page = 4}};
    const int32_t tokens[] = {1, 2, 3};
    const kernels_chosen *chosen;
    uint8_t bytes[100];
    perch_status status = begin_life(l, err);
    if (status != PERCH_OK) {
        return status;
    }
    TRY(cuda()->kv_execute(l->device, first, 2, err));
    for (uint32_t number = 0; number < 6; number++) { /* the graphs of both lanes are recorded, and replayed */
        TRY(launch(l, number, err));
        TRY(cuda()->kv_execute(l->device, more, number == 2 ? 4 : 0, err));
        if (number > 0) {
            TRY(cuda()->async->wait(l->device, (number - 1) % KERNELS_LANES, &chosen, err));
        }
    }
    TRY(cuda()->async->history(l->device, 0, 0, 3, tokens, err));
    TRY(move_pages(l, err));
    TRY(cuda()->download(l->device, bytes, l->logits, sizeof bytes, err));
    cuda()->weight_destroy(l->device, l->output);
    cuda()->free(l->device, l->logits);
    return cuda()->async->wait(l->device, 1, &chosen, err);
}

/* A life with what was planned to fail. What: "the 7th call of cudaMalloc". */
static perch_status try_life(bool table, bool deterministic, const char *what) {
    life l = {.table = table, .deterministic = deterministic};
    perch_error err = {.status = PERCH_OK};
    n_requests = 0;
    n_blocks = 0;
    counting = true;
    perch_status status = live(&l, &err);
    cuda()->close(l.device);
    counting = false;
    bool told = status == PERCH_OK || ((status == PERCH_E_NOMEM || status == PERCH_E_DEVICE ||
                                        status == PERCH_E_NO_ROOM || status == PERCH_E_UNSUPPORTED) &&
                                       err.message[0] != '\0');
    CHECK_MSG(told, "%s fails: %s '%s'", what, perch_status_name(status), err.message);
    CHECK_MSG(emulation_leaks()[0] == '\0' && n_blocks == 0, "%s fails: left are %s, %" PRId64 " blocks", what,
              emulation_leaks(), n_blocks);
    return status;
}

/* What the backend calls. */
static const char *const calls[] = {"cuDeviceGet",
                                    "cuDeviceGetAttribute",
                                    "cuMemAddressFree",
                                    "cuMemAddressReserve",
                                    "cuMemCreate",
                                    "cuMemGetAllocationGranularity",
                                    "cuMemMap",
                                    "cuMemRelease",
                                    "cuMemSetAccess",
                                    "cuMemUnmap",
                                    "cublasLtCreate",
                                    "cublasLtDestroy",
                                    "cublasLtMatmul",
                                    "cublasLtMatmulAlgoCheck",
                                    "cublasLtMatmulAlgoConfigGetAttribute",
                                    "cublasLtMatmulAlgoGetHeuristic",
                                    "cublasLtMatmulDescCreate",
                                    "cublasLtMatmulDescDestroy",
                                    "cublasLtMatmulDescSetAttribute",
                                    "cublasLtMatmulPreferenceCreate",
                                    "cublasLtMatmulPreferenceDestroy",
                                    "cublasLtMatmulPreferenceSetAttribute",
                                    "cublasLtMatrixLayoutCreate",
                                    "cublasLtMatrixLayoutDestroy",
                                    "cublasLtMatrixLayoutSetAttribute",
                                    "cudaDeviceGetAttribute",
                                    "cudaDriverGetVersion",
                                    "cudaEventCreateWithFlags",
                                    "cudaEventDestroy",
                                    "cudaEventElapsedTime",
                                    "cudaEventQuery",
                                    "cudaEventRecord",
                                    "cudaEventSynchronize",
                                    "cudaFree",
                                    "cudaFreeHost",
                                    "cudaFuncSetAttribute",
                                    "cudaGetDevice",
                                    "cudaGetDeviceCount",
                                    "cudaGetDeviceProperties",
                                    "cudaGraphDestroy",
                                    "cudaGraphExecDestroy",
                                    "cudaGraphInstantiate",
                                    "cudaGraphLaunch",
                                    "cudaGraphUpload",
                                    "cudaHostAlloc",
                                    "cudaLaunchKernel",
                                    "cudaMalloc",
                                    "cudaMemGetInfo",
                                    "cudaMemcpyAsync",
                                    "cudaMemsetAsync",
                                    "cudaRuntimeGetVersion",
                                    "cudaSetDevice",
                                    "cudaStreamBeginCapture",
                                    "cudaStreamCreateWithFlags",
                                    "cudaStreamDestroy",
                                    "cudaStreamEndCapture",
                                    "cudaStreamSynchronize",
                                    "cudaStreamWaitEvent"};

/* Of the same call the first few, and then fewer and fewer: 1, 2, 3, 4, 6, 8, 11, … with PERCH_TEST_SCALE = 1. */
static uint64_t next_nth(uint64_t nth) {
    uint64_t share = test_scaled(100);
    return nth + 1 + nth / 4 + (share < 100 ? 2 * nth : 0);
}

/* Both mappings, with either kind of products. */
static void in_each_way(void (*test)(bool table, bool deterministic)) {
    test(false, true);
    test(true, false);
}

static void calls_on(bool table, bool deterministic) {
    enum { N_CALLS = sizeof calls / sizeof calls[0] };
    uint64_t counts[N_CALLS], known = 0, n_tried = 0, n_told = 0;
    testing_reset(1);
    CU_ASSERT(try_life(table, deterministic, "nothing") == PERCH_OK);
    for (size_t c = 0; c < N_CALLS; c++) {
        known += counts[c] = emulation_calls(calls[c]);
    }
    CHECK_MSG(known + emulation_calls("kernel") == emulation_calls(NULL),
              "%" PRIu64 " calls have names that the test does not know",
              emulation_calls(NULL) - emulation_calls("kernel") - known);
    for (size_t c = 0; c < N_CALLS; c++) {
        for (uint64_t nth = 1; nth <= counts[c]; nth = next_nth(nth), n_tried++) {
            char what[80];
            snprintf(what, sizeof what, "call %" PRIu64 " of %s", nth, calls[c]);
            testing_reset(nth);
            emulation_fail(calls[c], nth, 0);
            n_told += try_life(table, deterministic, what) != PERCH_OK;
        }
    }
    CHECK_MSG(n_tried > 60 && n_told > n_tried / 2, "of %" PRIu64 " calls that failed %" PRIu64 " were told", n_tried,
              n_told);
}

static void every_call_may_fail(void) { in_each_way(calls_on); }

static void kernels_on(bool table, bool deterministic) {
    testing_reset(1);
    CU_ASSERT(try_life(table, deterministic, "nothing") == PERCH_OK);
    const uint64_t n = emulation_calls("kernel");
    for (uint64_t i = 1; i <= n; i = next_nth(i)) {
        char what[40];
        snprintf(what, sizeof what, "kernel %" PRIu64, i);
        testing_reset(i);
        emulation_fail("kernel", i, cudaErrorLaunchFailure);
        CHECK_MSG(try_life(table, deterministic, what) == PERCH_E_DEVICE, "%s of %" PRIu64 " failed unnoticed", what,
                  n);
    }
    CHECK_MSG(n > 40, "%" PRIu64 " kernels", n);
}

static void every_kernel_may_fault(void) { in_each_way(kernels_on); }

static void requests_on(bool table, bool deterministic) {
    uint64_t n = 0;
    for (failing_request = 1;; failing_request++) {
        char what[40];
        snprintf(what, sizeof what, "request %" PRIu64 " to the host", failing_request);
        testing_reset(1);
        perch_status status = try_life(table, deterministic, what);
        if (n_requests < failing_request) {
            CU_ASSERT(status == PERCH_OK);
            break;
        }
        CHECK_MSG(status == PERCH_E_NOMEM, "%s: %s", what, perch_status_name(status));
        n++;
    }
    failing_request = 0;
    CHECK_MSG(n >= 12, "only %" PRIu64 " requests failed", n);
}

static void every_request_to_the_host_may_fail(void) { in_each_way(requests_on); }

int main(int argc, char **argv) {
    static const test_case tests[] = {
        {"every_call_may_fail", every_call_may_fail},
        {"every_kernel_may_fault", every_kernel_may_fault},
        {"every_request_to_the_host_may_fail", every_request_to_the_host_may_fail},
    };
    return test_main("cuda_failure_test", tests, sizeof tests / sizeof tests[0], argc, argv);
}
