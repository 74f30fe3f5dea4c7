/* pair: see pair_testing.h. */
#include "kernels/cpu/pair_testing.h"

#include "kernels/cpu/isa.h"
#include "tests/support/reference_backend.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const char *const *pair_isas(void) {
    static const char *const all[] = {"avx512bf16", "avx512", "avx2", "scalar"};
    static const char *names[sizeof all / sizeof all[0] + 1];
    size_t n = 0;
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) {
        const cpu_isa *isa;
        if (cpu_isa_find(all[i], true, &isa, NULL) == PERCH_OK) {
            names[n++] = all[i];
        }
    }
    return names;
}

side side_open_cpu(const char *isa, bool bf16, uint32_t n_threads) {
    side s = {.b = kernels_cpu()};
    kernels_config config = {.dtype = bf16 ? KERNELS_BF16 : KERNELS_F32, .n_threads = n_threads, .isa = isa};
    CHECK_OK(s.b->open(&config, &s.d, ERR));
    if (s.d == NULL) {
        exit(1);
    }
    return s;
}

void pair_each(uint32_t n_threads, void (*test)(const pair *p, test_rng *rng)) {
    uint64_t seed = test_seed(0x5eed);
    for (const char *const *isa = pair_isas(); *isa != NULL; isa++) {
        for (int bf16 = 0; bf16 < 2; bf16++) {
            pair p = {.cpu = side_open_cpu(*isa, bf16, n_threads), .reference = {.b = kernels_reference()}};
            p.bf16 = bf16;
            p.isa = *isa;
            kernels_config config = {.dtype = bf16 ? KERNELS_BF16 : KERNELS_F32};
            CHECK_OK(p.reference.b->open(&config, &p.reference.d, ERR));
            test_rng rng = {seed++};
            test(&p, &rng);
            p.cpu.b->close(p.cpu.d);
            p.reference.b->close(p.reference.d);
        }
    }
}

void *test_alloc(size_t bytes) {
    void *data = calloc(1, bytes > 0 ? bytes : 1);
    if (data == NULL) {
        fprintf(stderr, "out of memory\n");
        exit(1);
    }
    return data;
}

void *side_activations(side s, const float *values, size_t n) {
    size_t bytes = s.b->act_bytes(s.d);
    void *buffer = NULL;
    CHECK_OK(s.b->alloc(s.d, n * bytes, &buffer, ERR));
    if (values == NULL) {
        return buffer;
    }
    double *wide = test_alloc(n * sizeof *wide);
    for (size_t i = 0; i < n; i++) {
        wide[i] = (double)values[i];
    }
    const void *from = bytes == sizeof(double) ? (const void *)wide : (const void *)values;
    CHECK_OK(s.b->upload(s.d, buffer, from, n * bytes, ERR));
    free(wide);
    return buffer;
}

void side_read(side s, const void *activations, size_t n, double *out) {
    if (s.b->act_bytes(s.d) == sizeof(double)) {
        CHECK_OK(s.b->download(s.d, out, activations, n * sizeof(double), ERR));
        return;
    }
    side_read_floats(s, activations, n, out);
}

void side_read_floats(side s, const float *buffer, size_t n, double *out) {
    float *values = test_alloc(n * sizeof *values);
    CHECK_OK(s.b->download(s.d, values, buffer, n * sizeof *values, ERR));
    for (size_t i = 0; i < n; i++) {
        out[i] = (double)values[i];
    }
    free(values);
}

float *side_floats(side s, const float *values, size_t n) {
    void *buffer = NULL;
    CHECK_OK(s.b->alloc(s.d, n * sizeof(float), &buffer, ERR));
    if (values != NULL) {
        CHECK_OK(s.b->upload(s.d, buffer, values, n * sizeof(float), ERR));
    }
    return buffer;
}

kernels_weight *side_weight(side s, uint32_t n_out, uint32_t n_in, const float *values) {
    return side_weight_in(s, n_out, n_in, KERNELS_WEIGHT_DTYPE, values);
}

kernels_weight *side_weight_in(side s, uint32_t n_out, uint32_t n_in, kernels_weight_format format,
                               const float *values) {
    kernels_weight *weight = NULL;
    CHECK_OK(s.b->weight_create(s.d, n_out, n_in, format, &weight, ERR));
    CHECK_OK(s.b->weight_set_rows(s.d, weight, 0, n_out, KERNELS_F32, values, ERR));
    return weight;
}

void random_floats(test_rng *rng, float *out, size_t n) {
    for (size_t i = 0; i < n; i++) {
        out[i] = (float)(test_rng_unit(rng) * 2 - 1);
    }
}

void random_spread(test_rng *rng, float *out, size_t n, int spread) {
    for (size_t i = 0; i < n; i++) {
        double value = test_rng_unit(rng) * 2 - 1;
        out[i] = (float)ldexp(value, -(int)test_rng_below(rng, (uint64_t)spread + 1));
    }
}

size_t random_from(test_rng *rng, const size_t *choices, size_t n) { return choices[test_rng_below(rng, n)]; }

double worst_error(const double *got, const double *want, const double *scale, size_t n) {
    double worst = 0;
    for (size_t i = 0; i < n; i++) {
        double error = fabs(got[i] - want[i]) / (scale != NULL ? scale[i] : 1);
        if (got[i] == want[i] || (isnan(got[i]) && isnan(want[i]))) {
            continue;
        }
        worst = error > worst || isnan(error) ? error : worst;
        if (isnan(worst)) {
            return (double)INFINITY;
        }
    }
    return worst;
}
