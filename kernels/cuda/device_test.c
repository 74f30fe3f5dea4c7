/*
 * Opening and closing: what is wrong with a GPU is told with versions and figures; memory that is handed out is zeroed, and
 * data goes there and back unchanged however large; a GPU that has faulted stays out of use.
 */
#include "kernels/cuda/backend_testing.h"

static const kernels_config bf16 = {.dtype = KERNELS_BF16};

static void what_is_opened_is_described(void) {
    testing_reset(1);
    kernels_device *device = testing_open(&bf16);
    if (device == NULL) {
        return;
    }
    uint64_t left = 0;
    const char *text = cuda()->describe(device);
    CHECK_MSG(strncmp(text, "cuda ", 5) == 0 && strstr(text, ", sm_") != NULL && strstr(text, "driver CUDA 1") != NULL,
              "'%s'", text);
    CU_ASSERT(cuda()->act_bytes(device) == 2);
    CHECK_OK(cuda()->free_bytes(device, &left, ERR));
    CU_ASSERT(left > 0);
    CU_ASSERT(cuda()->kv_page_granularity(device) > 0);
    testing_close(device);
    cuda()->close(NULL);
}

static void an_abi_other_than_its_own_is_refused(void) {
    CU_ASSERT(perch_cuda_backend(KERNELS_ABI + 1) == NULL && perch_cuda_backend(KERNELS_ABI - 1) == NULL);
    CU_ASSERT(cuda()->abi == KERNELS_ABI && strcmp(cuda()->name, "cuda") == 0 && cuda()->async != NULL);
}

static void types_and_gpus_that_are_not_there_are_named(void) {
    kernels_device *device = NULL;
    testing_reset(1);
    CHECK_ERROR(cuda()->open(&(kernels_config){.dtype = KERNELS_F32}, &device, ERR), PERCH_E_UNSUPPORTED,
                "bf16 or f16 only");
    device = testing_open(&bf16);
    if (device == NULL) {
        return;
    }
    testing_close(device);
    CHECK_ERROR(cuda()->open(&(kernels_config){.dtype = KERNELS_BF16, .device = 77}, &device, ERR), PERCH_E_UNSUPPORTED,
                "there is no GPU 77");
    CU_ASSERT(device == NULL);
}

/* --- memory */

static uint8_t *pattern(size_t bytes, uint64_t seed) {
    test_rng rng = {seed};
    uint8_t *data = malloc(bytes + 8);
    CU_ASSERT_FATAL(data != NULL);
    for (size_t i = 0; i < bytes; i += 8) {
        uint64_t word = test_rng_next(&rng);
        memcpy(data + i, &word, sizeof word);
    }
    return data;
}

static void there_and_back(kernels_device *device, size_t bytes, size_t offset) {
    void *buffer = NULL;
    uint8_t *data = pattern(bytes + offset, bytes), *back = malloc(bytes + offset + 1);
    CHECK_OK(cuda()->alloc(device, bytes + offset, &buffer, ERR));
    CU_ASSERT((uintptr_t)buffer % 64 == 0);
    memset(back, 0xaa, bytes + offset + 1);
    CHECK_OK(cuda()->download(device, back, buffer, bytes + offset, ERR));
    bool zero = true;
    for (size_t i = 0; i < bytes + offset; i++) {
        zero = zero && back[i] == 0;
    }
    CHECK_MSG(zero, "%zu bytes that are not all zero", bytes + offset);
    CHECK_OK(cuda()->upload(device, (uint8_t *)buffer + offset, data, bytes, ERR));
    CHECK_OK(cuda()->download(device, back, (uint8_t *)buffer + offset, bytes, ERR));
    CHECK_MSG(memcmp(data, back, bytes) == 0, "%zu bytes, %zu into a buffer, came back other than they went", bytes,
              offset);
    CU_ASSERT(back[bytes + offset] == 0xaa);
    cuda()->free(device, buffer);
    free(data);
    free(back);
}

static void bytes_come_back_as_they_went(void) {
    static const size_t sizes[] = {0,
                                   1,
                                   255,
                                   4097,
                                   CUDA_PIECE_BYTES - 1,
                                   CUDA_PIECE_BYTES,
                                   CUDA_PIECE_BYTES + 1,
                                   CUDA_STAGING_BYTES,
                                   2 * CUDA_STAGING_BYTES + 3 * CUDA_PIECE_BYTES + 77};
    for (uint64_t seed = 0; seed < 3; seed++) {
        testing_reset(seed);
        kernels_device *device = testing_open(&bf16);
        if (device == NULL) {
            return;
        }
        void *kept; /* until the device is closed, which frees it */
        CHECK_OK(cuda()->alloc(device, 1, &kept, ERR));
        for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
            there_and_back(device, sizes[i], i % 3);
        }
        cuda()->free(device, NULL);
        testing_close(device);
    }
}

/* Pieces of any size in any order keep out of one another's way while copies are under way. */
static void staging_gives_nothing_out_twice(void) {
    enum { N = 200, MOST = 1 << 19 };
    uint64_t seed = test_seed(11);
    test_rng rng = {seed};
    testing_reset(seed);
    kernels_device *device = testing_open(&bf16);
    if (device == NULL) {
        return;
    }
    void *buffer = NULL;
    size_t total = 0, sizes[N];
    uint8_t *sent = malloc((size_t)N * MOST), *back = malloc((size_t)N * MOST);
    CHECK_OK(cuda()->alloc(device, (size_t)N * MOST, &buffer, ERR));
    for (size_t i = 0; i < N; i++) {
        sizes[i] = test_rng_below(&rng, 3) == 0 ? test_rng_below(&rng, MOST) : test_rng_below(&rng, 5000);
        memset(sent + total, (int)(i % 251), sizes[i]);
        CHECK_OK(cuda_send(device, (uint8_t *)buffer + total, sent + total, sizes[i], ERR)); /* waits for nothing */
        total += sizes[i];
    }
    CHECK_OK(cuda()->download(device, back, buffer, total, ERR));
    CHECK_MSG(memcmp(sent, back, total) == 0, "seed %" PRIu64 ": %zu bytes arrived other than they were sent", seed,
              total);
    free(sent);
    free(back);
    testing_close(device);
}

static void what_does_not_fit_is_told_with_figures(void) {
    testing_reset(1);
    kernels_device *device = testing_open(&bf16);
    if (device == NULL) {
        return;
    }
    void *buffer = &buffer;
    uint64_t before = 0, after = 0;
    CHECK_OK(cuda()->free_bytes(device, &before, ERR));
    CHECK_ERROR(cuda()->alloc(device, (size_t)1 << 50, &buffer, ERR), PERCH_E_NOMEM, "1125899906842624 bytes for");
    CU_ASSERT(buffer == NULL && strstr(testing_error.message, "are free") != NULL);
    CHECK_OK(cuda()->alloc(device, 1000, &buffer, ERR)); /* the device goes on */
    cuda()->free(device, buffer);
    kernels_weight *weight = NULL;
    CHECK_STATUS(cuda()->weight_create(device, 1u << 30, 1u << 30, KERNELS_WEIGHT_DTYPE, &weight, ERR), PERCH_E_NOMEM);
    CHECK_STATUS(cuda()->weight_create(device, 0, 1, KERNELS_WEIGHT_DTYPE, &weight, ERR), PERCH_E_UNSUPPORTED);
    CU_ASSERT(weight == NULL);
    CHECK_OK(cuda()->free_bytes(device, &after, ERR));
    CU_ASSERT(before == after);
    testing_close(device);
}

static const kernels_limits small = {.max_step_tokens = 4,
                                     .max_batch_size = 2,
                                     .max_logit_rows = 2,
                                     .vocab_size = 50,
                                     .session_len = 64,
                                     .n_heads = 1,
                                     .layout = {.n_layers = 1, .n_kv_heads = 1, .head_dim = 16, .element_bytes = 2}};

/* A vocabulary larger than the device can choose among is no reason to refuse a model: the host chooses. */
static void large_vocabularies_are_the_hosts(void) {
    const perch_sampling greedy = {.top_p = 1, .typical_p = 1, .repetition_penalty = 1};
    const kernels_choice choice = {.n_tokens = 1, .sampling = &greedy};
    kernels_limits limits = small;
    uint64_t planned[2];
    for (uint32_t larger = 0; larger < 2; larger++) {
        testing_reset(1);
        kernels_device *device = testing_open(&bf16);
        if (device == NULL) {
            return;
        }
        limits.vocab_size = (larger ? 1u << 24 : 1u << 19);
        planned[larger] = cuda()->async->reserve_bytes(device, &limits);
        CHECK_OK(cuda()->async->check(device, &limits, ERR));
        CHECK_OK(cuda()->async->reserve(device, &limits, ERR));
        CU_ASSERT(cuda()->async->can_choose(device, &choice) == !larger);
        testing_close(device);
    }
    CU_ASSERT(planned[1] <= planned[0]); /* what is not done takes no memory */
}

static void close_frees_what_is_open(void) {
    testing_reset(1);
    kernels_device *device = testing_open(&bf16);
    if (device == NULL) {
        return;
    }
    void *buffer;
    kernels_weight *weight;
    const kernels_kv kv = {
        .page_bytes = cuda()->kv_page_granularity(device), .n_pages = 3, .n_slots = 2, .pages_per_slot = 2};
    CHECK_OK(cuda()->alloc(device, 1000, &buffer, ERR));
    CHECK_OK(cuda()->weight_create(device, 24, 16, KERNELS_WEIGHT_DTYPE, &weight, ERR));
    CHECK_OK(cuda()->kv_open(device, &kv, ERR));
    testing_close(device);
}

#ifdef PERCH_EMULATED

/* --- what only the emulation can stage */

static kernels_device *open_with(emulation_settings settings) {
    kernels_device *device = NULL;
    emulation_reset(&settings);
    perch_status status = cuda()->open(&bf16, &device, ERR);
    CU_ASSERT((status == PERCH_OK) == (device != NULL));
    return device;
}

static void drivers_that_do_not_do_are_told(void) {
    emulation_settings settings = emulation_defaults();
    settings.driver_version = 11040;
    CU_ASSERT(open_with(settings) == NULL);
    CHECK_MSG(strstr(testing_error.message, "driver is too old: it has CUDA 11.4, the CUDA backend needs 1") != NULL,
              "%s", testing_error.message);
    settings = emulation_defaults();
    settings.n_devices = 0;
    CU_ASSERT(open_with(settings) == NULL);
    CHECK_MSG(strstr(testing_error.message, "cudaErrorNoDevice") != NULL, "%s", testing_error.message);
}

static void a_gpu_that_is_taken_or_full_is_told(void) {
    kernels_device *device = NULL;
    testing_reset(1);
    emulation_fail("cudaFree", 1, cudaErrorDevicesUnavailable); /* the call that makes the context */
    CHECK_ERROR(cuda()->open(&bf16, &device, ERR), PERCH_E_DEVICE, "is taken by another process");
    testing_reset(1);
    emulation_fail("cudaFree", 1, cudaErrorMemoryAllocation);
    CHECK_ERROR(cuda()->open(&bf16, &device, ERR), PERCH_E_NOMEM, "of its 8.0 GiB");
    CU_ASSERT(device == NULL);
}

static void without_virtual_memory_there_is_no_page(void) {
    emulation_settings settings = emulation_defaults();
    settings.no_vmm = true;
    kernels_device *device = open_with(settings);
    CU_ASSERT_FATAL(device != NULL);
    CU_ASSERT(cuda()->kv_page_granularity(device) == 0);
    const kernels_kv kv = {.page_bytes = 2 << 20, .n_pages = 3, .n_slots = 2, .pages_per_slot = 2};
    CHECK_ERROR(cuda()->kv_open(device, &kv, ERR), PERCH_E_UNSUPPORTED, "mapping = table");
    testing_close(device);
}

/* What could be got over is told once: the next kernel is not blamed for it. */
static void an_error_is_told_once(void) {
    const float rows[8 * 8] = {1};
    kernels_weight *weight;
    testing_reset(1);
    kernels_device *device = testing_open(&bf16);
    CHECK_OK(cuda()->weight_create(device, 8, 8, KERNELS_WEIGHT_DTYPE, &weight, ERR));
    emulation_fail("cudaHostAlloc", 1, cudaErrorMemoryAllocation);
    CHECK_ERROR(cuda()->async->reserve(device, &small, ERR), PERCH_E_NOMEM, "pinned memory");
    CHECK_OK(cuda()->weight_set_rows(device, weight, 0, 8, KERNELS_F32, rows, ERR)); /* which are converted */
    CHECK_OK(cuda()->async->reserve(device, &small, ERR));
    testing_close(device);
}

/* What opening it takes of the GPU counts, what others have does not. */
static void what_opening_takes_is_told(void) {
    void *others = NULL;
#ifdef __SANITIZE_ADDRESS__
    test_skip("AddressSanitizer's dlopen does not look where this program's NVML is");
    return;
#endif
    testing_reset(1);
    CU_ASSERT_FATAL(cudaMalloc(&others, 5 << 20) == cudaSuccess);
    const uint64_t before = emulation_bytes();
    kernels_device *device = testing_open(&bf16);
    CHECK_MSG(cuda()->async->context_bytes(device) == emulation_bytes() - before, "%" PRIu64 " bytes, not %" PRIu64,
              cuda()->async->context_bytes(device), emulation_bytes() - before);
    CU_ASSERT(cudaFree(others) == cudaSuccess);
    testing_close(device);
}

/* The fault is told by its name, then and for ever, and the device can be closed. */
static void a_fault_stays(void) {
    testing_reset(1);
    kernels_device *device = testing_open(&bf16);
    kernels_weight *weight;
    void *x, *y;
    uint64_t left;
    CHECK_OK(cuda()->weight_create(device, 8, 8, KERNELS_WEIGHT_DTYPE, &weight, ERR));
    CHECK_OK(cuda()->alloc(device, 1 << 12, &x, ERR));
    CHECK_OK(cuda()->alloc(device, 1 << 12, &y, ERR));
    emulation_fail("kernel", 1, cudaErrorIllegalAddress);
    CHECK_OK(cuda()->linear(device, weight, NULL, x, 1, y, false, ERR)); /* queued, no more */
    uint8_t byte = 0;
    CHECK_ERROR(cuda()->download(device, &byte, y, 1, ERR), PERCH_E_DEVICE, "cudaErrorIllegalAddress");
    CHECK_ERROR(cuda()->linear(device, weight, NULL, x, 1, y, false, ERR), PERCH_E_DEVICE, "cudaErrorIllegalAddress");
    CHECK_ERROR(cuda()->alloc(device, 1, &x, ERR), PERCH_E_DEVICE, "cudaErrorIllegalAddress");
    CHECK_ERROR(cuda()->free_bytes(device, &left, ERR), PERCH_E_DEVICE, "cudaErrorIllegalAddress");
    testing_close(device);
}

#endif

int main(int argc, char **argv) {
    static const test_case tests[] = {
        {"what_is_opened_is_described", what_is_opened_is_described},
        {"an_abi_other_than_its_own_is_refused", an_abi_other_than_its_own_is_refused},
        {"types_and_gpus_that_are_not_there_are_named", types_and_gpus_that_are_not_there_are_named},
        {"bytes_come_back_as_they_went", bytes_come_back_as_they_went},
        {"staging_gives_nothing_out_twice", staging_gives_nothing_out_twice},
        {"what_does_not_fit_is_told_with_figures", what_does_not_fit_is_told_with_figures},
        {"large_vocabularies_are_the_hosts", large_vocabularies_are_the_hosts},
        {"close_frees_what_is_open", close_frees_what_is_open},
#ifdef PERCH_EMULATED
        {"drivers_that_do_not_do_are_told", drivers_that_do_not_do_are_told},
        {"a_gpu_that_is_taken_or_full_is_told", a_gpu_that_is_taken_or_full_is_told},
        {"without_virtual_memory_there_is_no_page", without_virtual_memory_there_is_no_page},
        {"an_error_is_told_once", an_error_is_told_once},
        {"what_opening_takes_is_told", what_opening_takes_is_told},
        {"a_fault_stays", a_fault_stays},
#endif
    };
    return test_main("cuda_device_test", tests, sizeof tests / sizeof tests[0], argc, argv);
}
