/*
 * backend_testing: what the tests of the CUDA backend's host code share. The same sources run emulated (PERCH_EMULATED), where
 * they ask the emulation for more, and on a GPU.
 */
#ifndef PERCH_KERNELS_CUDA_BACKEND_TESTING_H
#define PERCH_KERNELS_CUDA_BACKEND_TESTING_H

#include "kernels/abi.h"
#include "kernels/cpu/convert.h"
#include "kernels/cuda/device.h"
#include "tests/support/check.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifdef PERCH_EMULATED
#include "tests/emulation/emulation.h"
#endif

const kernels_backend *perch_cuda_backend(uint32_t abi);

static inline const kernels_backend *cuda(void) { return perch_cuda_backend(KERNELS_ABI); }

/* The next call's error: CHECK_OK(cuda()->alloc(device, 1, &p, ERR)). */
static perch_error testing_error;
#define ERR (testing_error.message[0] = '\0', &testing_error)
#define CHECK_OK(call) CHECK_STATUS(call, PERCH_OK)
#define CHECK_STATUS(call, expected)                                                                                   \
    do {                                                                                                               \
        perch_status check_status = call;                                                                              \
        CHECK_MSG(check_status == (expected), "%s, not %s: %s", perch_status_name(check_status),                       \
                  perch_status_name(expected), testing_error.message);                                                 \
    } while (0)
/* Fails, and the message has the text. */
#define CHECK_ERROR(call, expected, text)                                                                              \
    do {                                                                                                               \
        perch_status check_status = call;                                                                              \
        CHECK_MSG(check_status == (expected) && strstr(testing_error.message, text) != NULL, "%s '%s', not %s '%s'",   \
                  perch_status_name(check_status), testing_error.message, perch_status_name(expected), text);          \
    } while (0)

/* Begins anew under the emulation, with the environment's settings and this seed. */
static inline void testing_reset(uint64_t seed) {
#ifdef PERCH_EMULATED
    emulation_settings settings = emulation_defaults();
    settings.seed = seed;
    settings.granularity = 64 << 10; /* small pages, so that there are many */
    emulation_reset(&settings);
#else
    (void)seed;
#endif
}

/* NULL after test_skip where there is no GPU. */
static inline kernels_device *testing_open(const kernels_config *config) {
    kernels_device *device = NULL;
    perch_status status = cuda()->open(config, &device, ERR);
    if (status == PERCH_E_UNSUPPORTED && device == NULL) {
        test_skip("%s", testing_error.message);
        return NULL;
    }
    CHECK_OK(status);
    return device;
}

/* Closes; under the emulation nothing may be left. */
static inline void testing_close(kernels_device *device) {
    cuda()->close(device);
#ifdef PERCH_EMULATED
    CHECK_MSG(emulation_leaks()[0] == '\0', "left over: %s", emulation_leaks());
#endif
}

/* For numbers that both types have: of at most eight significant bits, none below 2^-14. */
static inline uint16_t testing_act(kernels_dtype dtype, float x) {
    uint32_t u = f32_bits(x);
    if (dtype == KERNELS_BF16 || x == 0) {
        return f32_to_bf16(x);
    }
    return (uint16_t)((u >> 16 & 0x8000u) | ((u >> 23 & 0xffu) - 112) << 10 | (u >> 13 & 0x3ffu));
}

static inline float testing_value(kernels_dtype dtype, uint16_t bits) {
    return dtype == KERNELS_BF16 ? bf16_to_f32(bits) : f16_to_f32(bits);
}

#endif
