/*
 * pair: for tests, the CPU backend and the reference in double side by side, fed with the same numbers.
 */
#ifndef PERCH_KERNELS_CPU_PAIR_TESTING_H
#define PERCH_KERNELS_CPU_PAIR_TESTING_H

#include "kernels/kernels.h"
#include "tests/support/check.h"

typedef struct side {
    const kernels_backend *b;
    kernels_device *d;
} side;

typedef struct pair {
    side cpu;
    side reference;
    bool bf16;
    const char *isa;
} pair;

/* Instruction sets that this processor has, NULL behind the last. */
const char *const *pair_isas(void);

/* Runs test once for each instruction set and each type, with that many threads. */
void pair_each(uint32_t n_threads, void (*test)(const pair *p, test_rng *rng));

/* Opens a CPU device alone; a failure fails the running test. */
side side_open_cpu(const char *isa, bool bf16, uint32_t n_threads);

/* A buffer of activations with these values (NULL: zeros), and back. Freed with the device. */
void *side_activations(side s, const float *values, size_t n);
void side_read(side s, const void *activations, size_t n, double *out);
/* The same for buffers of float. */
float *side_floats(side s, const float *values, size_t n);
void side_read_floats(side s, const float *buffer, size_t n, double *out);
/* A weight of row-major f32 values. */
kernels_weight *side_weight(side s, uint32_t n_out, uint32_t n_in, const float *values);
kernels_weight *side_weight_in(side s, uint32_t n_out, uint32_t n_in, kernels_weight_format format,
                               const float *values);

/* -1..1; and with magnitudes that spread over 2^-spread..1. */
void random_floats(test_rng *rng, float *out, size_t n);
void random_spread(test_rng *rng, float *out, size_t n, int spread);
size_t random_from(test_rng *rng, const size_t *choices, size_t n);

/* Like malloc, but never NULL. */
void *test_alloc(size_t bytes);

/* max |got - want| / scale; infinity where anything is a NaN that should not be. scale NULL: 1. */
double worst_error(const double *got, const double *want, const double *scale, size_t n);

#define CHECK_OK(call)                                                                                                 \
    do {                                                                                                               \
        perch_error check_error = {0};                                                                                 \
        perch_status check_status = call;                                                                              \
        CHECK_MSG(check_status == PERCH_OK, "%s: %s", #call, check_error.message);                                     \
    } while (0)
#define ERR (&check_error)

#endif
