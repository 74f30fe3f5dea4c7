/*
 * sampling_math: the arithmetic of choosing a token, shared by the host's sampler and the device's (C11, C++17, CUDA C++), so that
 * both choose the same token from the same logits. Weights are 64-bit integers, whose sums don't depend on an order; what is
 * floating-point uses single correctly rounded operations only: nothing here is contracted, fused or left to a libm.
 */
#ifndef PERCH_BASE_SAMPLING_MATH_H
#define PERCH_BASE_SAMPLING_MATH_H

#include <float.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#ifdef __CUDACC__
#define SAMPLING_FN static __host__ __device__ __forceinline__
#else
#define SAMPLING_FN static inline
#endif

/* The weight of the likeliest token, so the resolution of all: below half of 2^-44 of it a token weighs nothing. */
#define SAMPLING_ONE (UINT64_C(1) << 44)

/* A row of so many tokens, each as likely as the likeliest, still adds up to 2^63 only. Devices choose among no more. */
#define SAMPLING_MAX_VOCAB (1u << 19)

/* ------------------------------------------------- single operations */

/* nvcc fuses a * b + c unless it is written so; the host's compilers are told not to (-ffp-contract=off). */
#ifdef __CUDA_ARCH__
#define SAMPLING_MUL(a, b) __dmul_rn((a), (b))
#define SAMPLING_ADD(a, b) __dadd_rn((a), (b))
#define SAMPLING_DIV(a, b) __ddiv_rn((a), (b))
#else
#define SAMPLING_MUL(a, b) ((a) * (b))
#define SAMPLING_ADD(a, b) ((a) + (b))
#define SAMPLING_DIV(a, b) ((a) / (b))
#endif

SAMPLING_FN uint64_t sampling_bits(double value) {
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

SAMPLING_FN double sampling_double(uint64_t bits) {
    double value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* The upper half of a * b. */
SAMPLING_FN uint64_t sampling_mul_high(uint64_t a, uint64_t b) {
#ifdef __CUDA_ARCH__
    return __umul64hi(a, b);
#else
    __extension__ typedef unsigned __int128 wide;
    return (uint64_t)((wide)a * b >> 64);
#endif
}

/* ----------------------------------------------------------- weights */

/*
 * e^x * 2^scale to about 1 ulp, for |x| <= 64 and results that are normal; elsewhere anything, but it returns. x = k ln 2 + r with
 * |r| <= ln 2 / 2 in two steps (Cody and Waite 1980), then e^r by a polynomial of degree 11 (from interpolation at Chebyshev's
 * nodes, relative error 2^-55.7), then k by the exponent's bits.
 */
SAMPLING_FN double sampling_exp(double x, uint32_t scale) {
    const double round = 0x1.8p52; /* added, it rounds to an integer, which then stands in the lowest bits */
    double shifted = SAMPLING_ADD(SAMPLING_MUL(x, 0x1.71547652b82fep0), round);
    double k = SAMPLING_ADD(shifted, -round);
    /* The first part of ln 2 has 32 bits, so its product with k is exact. */
    double r =
        SAMPLING_ADD(SAMPLING_ADD(x, SAMPLING_MUL(k, -0x1.62e42feep-1)), SAMPLING_MUL(k, -0x1.a39ef35793c76p-33));
    double r2 = SAMPLING_MUL(r, r);
    double q = SAMPLING_ADD(0x1.289185613a3d6p-22, SAMPLING_MUL(r, 0x1.af38a9b0ec855p-26));
    q = SAMPLING_ADD(SAMPLING_ADD(0x1.a019b90d2ae7ap-16, SAMPLING_MUL(r, 0x1.71de0dae63bb3p-19)), SAMPLING_MUL(r2, q));
    q = SAMPLING_ADD(SAMPLING_ADD(0x1.6c16c1788bd90p-10, SAMPLING_MUL(r, 0x1.a01a01a7c41d5p-13)), SAMPLING_MUL(r2, q));
    q = SAMPLING_ADD(SAMPLING_ADD(0x1.5555555553d63p-5, SAMPLING_MUL(r, 0x1.11111111109b3p-7)), SAMPLING_MUL(r2, q));
    q = SAMPLING_ADD(SAMPLING_ADD(0x1.0000000000001p-1, SAMPLING_MUL(r, 0x1.5555555555556p-3)), SAMPLING_MUL(r2, q));
    double e = SAMPLING_ADD(1.0, SAMPLING_ADD(r, SAMPLING_MUL(r2, q)));
    return sampling_double(sampling_bits(e) + (sampling_bits(shifted) << 52) + ((uint64_t)scale << 52));
}

/* Of a temperature above 0. Finite, so that the largest logit's distance from itself stays 0. */
SAMPLING_FN double sampling_inverse_temperature(double temperature) {
    double inverse = SAMPLING_DIV(1.0, temperature);
    return inverse <= DBL_MAX ? inverse : DBL_MAX;
}

/* What makes weights of a row's logits. */
typedef struct sampling_scale {
    double best;                /* the largest */
    double inverse_temperature; /* the temperature itself never divides */
    double least;               /* -33: what is less counts as that */
} sampling_scale;

#define SAMPLING_INFINITE 0x1p1023 /* what an infinite logit counts as */

/* best: the row's largest logit, neither NaN nor -inf. */
SAMPLING_FN sampling_scale sampling_scale_of(float best, double inverse_temperature) {
    sampling_scale scale;
    scale.best = (double)best > SAMPLING_INFINITE ? SAMPLING_INFINITE : (double)best;
    scale.inverse_temperature = inverse_temperature;
    /* A sum that a compiler cannot know: of a constant it makes a branch in the loop over the row instead of a vector. */
    scale.least = SAMPLING_ADD(SAMPLING_ADD(scale.best, -scale.best), -33.0);
    return scale;
}

/*
 * e^((logit - best) / temperature) in units of 1 / SAMPLING_ONE, rounded to nearest even, for logits up to the best, which weighs
 * SAMPLING_ONE. NaN and -inf weigh nothing.
 */
SAMPLING_FN uint64_t sampling_weight(float logit, sampling_scale scale) {
    double value = (double)logit > SAMPLING_INFINITE ? SAMPLING_INFINITE : (double)logit;
    double x = SAMPLING_MUL(SAMPLING_ADD(value, -scale.best), scale.inverse_temperature);
    x = x > scale.least ? x : scale.least; /* also of NaN; e^-32 already rounds to nothing */
    /* Numbers from 2^52 on have no fraction: adding it rounds, and what was added up stands in the lowest bits. */
    return sampling_bits(SAMPLING_ADD(sampling_exp(x, 44), 0x1p52)) - sampling_bits(0x1p52);
}

/* By how many bits the weights of a row of more tokens than SAMPLING_MAX_VOCAB are shortened, so that they add up to no more. */
SAMPLING_FN uint32_t sampling_shift(uint32_t vocab_size) {
    uint32_t shift = 0;
    while ((uint64_t)SAMPLING_MAX_VOCAB << shift < vocab_size) {
        shift++;
    }
    return shift;
}

/* ----------------------------------------------------- shares of sums */

/* 0 <= p <= 1 in units of 2^-64; 1 is the largest number, and what is more than 0 is not 0. */
SAMPLING_FN uint64_t sampling_share(double p) {
    uint64_t share = p >= 1.0 ? UINT64_MAX : (uint64_t)SAMPLING_MUL(p, 0x1p64);
    return p > 0.0 && share == 0 ? 1 : share;
}

/* The least integer that is no less than this share of total; total itself for the share of 1. */
SAMPLING_FN uint64_t sampling_portion(uint64_t share, uint64_t total) {
    return sampling_mul_high(share, total) + (share * total != 0);
}

/* -------------------------------------------------------- the draw */

/* Philox4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC 2011, section 3.3). */
SAMPLING_FN void sampling_philox(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4]) {
    uint32_t x0 = counter[0], x1 = counter[1], x2 = counter[2], x3 = counter[3];
    uint32_t k0 = key[0], k1 = key[1];
    for (int round = 0; round < 10; round++) {
        uint64_t p0 = (uint64_t)0xD2511F53u * x0;
        uint64_t p1 = (uint64_t)0xCD9E8D57u * x2;
        x0 = (uint32_t)(p1 >> 32) ^ x1 ^ k0;
        x1 = (uint32_t)p1;
        x2 = (uint32_t)(p0 >> 32) ^ x3 ^ k1;
        x3 = (uint32_t)p0;
        k0 += 0x9E3779B9u; /* the golden ratio */
        k1 += 0xBB67AE85u; /* sqrt(3) - 1 */
    }
    out[0] = x0;
    out[1] = x1;
    out[2] = x2;
    out[3] = x3;
}

/* A random number of seed, position and completion alone. */
SAMPLING_FN uint64_t sampling_random(uint64_t seed, uint64_t position, uint32_t completion) {
    const uint32_t counter[4] = {(uint32_t)position, (uint32_t)(position >> 32), completion, 0};
    const uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
    uint32_t word[4];
    sampling_philox(counter, key, word);
    return (uint64_t)word[0] << 32 | word[1];
}

/* The point of 0..total-1 that it falls on; the token is the first at which the sum of weights, by id, exceeds it. */
SAMPLING_FN uint64_t sampling_point(uint64_t random, uint64_t total) { return sampling_mul_high(random, total); }

/* -------------------------------------------- penalties and the order */

typedef struct sampling_penalties {
    double repetition, frequency, presence;
} sampling_penalties;

SAMPLING_FN double sampling_within_range(double value) {
    const double most = FLT_MAX;
    return value > most ? most : value < -most ? -most : value;
}

/*
 * seen: the token stands in the sequence; count: how often this request generated it. A finite logit stays finite however
 * extreme the parameters; NaN and infinities pass through.
 */
SAMPLING_FN float sampling_penalize(float logit, bool seen, uint32_t count, sampling_penalties penalties) {
    double value = (double)logit;
    if (!(logit >= -FLT_MAX && logit <= FLT_MAX)) {
        return logit;
    }
    if (seen && penalties.repetition != 1.0) {
        value = value > 0.0 ? SAMPLING_DIV(value, penalties.repetition) : SAMPLING_MUL(value, penalties.repetition);
        value = sampling_within_range(value);
    }
    if (count > 0) {
        double loss = SAMPLING_ADD(SAMPLING_MUL(penalties.frequency, (double)count), penalties.presence);
        value = sampling_within_range(SAMPLING_ADD(value, -loss));
    }
    return (float)value;
}

/* Numbers that sort as logits do: both zeros are one, NaN is -inf. */
SAMPLING_FN uint32_t sampling_key(float logit) {
    uint32_t bits;
    memcpy(&bits, &logit, sizeof bits);
    bits = logit != logit ? 0xFF800000u : bits == 0x80000000u ? 0 : bits;
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}

/* The logit that has this key. */
SAMPLING_FN float sampling_logit(uint32_t key) {
    uint32_t bits = key >> 31 ? key & 0x7FFFFFFFu : ~key;
    float logit;
    memcpy(&logit, &bits, sizeof logit);
    return logit;
}

#endif
