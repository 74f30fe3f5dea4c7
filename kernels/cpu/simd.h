/*
 * The vectors that the math bodies are written in: `vf` holds VL floats, `vu` VL 32-bit words. One translation unit picks
 * one instruction set by its compiler flags: AVX-512 with VL = 16, AVX2 and FMA with VL = 8, or the compiler's generic
 * vectors with VL = 4, which become SSE2, NEON or plain scalar code. Lane i of a result depends on lane i of the arguments alone, except in the
 * reductions, whose order is fixed.
 */
#ifndef PERCH_KERNELS_CPU_SIMD_H
#define PERCH_KERNELS_CPU_SIMD_H

#include <float.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define ALWAYS_INLINE static inline __attribute__((always_inline))

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__)

#include <immintrin.h>

#define VL 16u
typedef __m512 vf;
typedef __m512i vu;

ALWAYS_INLINE __mmask16 first_lanes(size_t n) { return (__mmask16)((1u << n) - 1u); }

ALWAYS_INLINE vf vf_set1(float x) { return _mm512_set1_ps(x); }

ALWAYS_INLINE vu vu_set1(uint32_t x) { return _mm512_set1_epi32((int)x); }

ALWAYS_INLINE vf vf_load(const float *p) { return _mm512_loadu_ps(p); }

ALWAYS_INLINE vu vu_load(const uint32_t *p) { return _mm512_loadu_si512(p); }

ALWAYS_INLINE void vf_store(float *p, vf x) { _mm512_storeu_ps(p, x); }

/* The first n < VL lanes; the others are 0, and their memory is not touched. */
ALWAYS_INLINE vf vf_load_n(const float *p, size_t n) { return _mm512_maskz_loadu_ps(first_lanes(n), p); }

ALWAYS_INLINE void vf_store_n(float *p, vf x, size_t n) { _mm512_mask_storeu_ps(p, first_lanes(n), x); }

ALWAYS_INLINE vf vf_load_bf16(const uint16_t *p) {
    __m256i h = _mm256_loadu_si256((const __m256i *)(const void *)p);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
}

ALWAYS_INLINE vf vf_load_bf16_n(const uint16_t *p, size_t n) {
    __m256i h = _mm256_maskz_loadu_epi16(first_lanes(n), p);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
}

ALWAYS_INLINE vf vf_add(vf a, vf b) { return _mm512_add_ps(a, b); }

ALWAYS_INLINE vf vf_sub(vf a, vf b) { return _mm512_sub_ps(a, b); }

ALWAYS_INLINE vf vf_mul(vf a, vf b) { return _mm512_mul_ps(a, b); }

ALWAYS_INLINE vf vf_div(vf a, vf b) { return _mm512_div_ps(a, b); }

ALWAYS_INLINE vf vf_sqrt(vf a) { return _mm512_sqrt_ps(a); }

/* a * b + c */
ALWAYS_INLINE vf vf_fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }

/* The larger; b where one of them is a NaN. */
ALWAYS_INLINE vf vf_max(vf a, vf b) { return _mm512_max_ps(a, b); }

ALWAYS_INLINE vf vf_neg_abs(vf a) { return _mm512_or_ps(a, _mm512_set1_ps(-0.0f)); }

/* a < limit ? below : otherwise; a NaN in a is not below. */
ALWAYS_INLINE vf vf_select_below(vf a, float limit, vf below, vf otherwise) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, _mm512_set1_ps(limit), _CMP_LT_OQ), otherwise, below);
}

ALWAYS_INLINE vf vf_from_bits(vu a) { return _mm512_castsi512_ps(a); }

ALWAYS_INLINE vu vf_bits(vf a) { return _mm512_castps_si512(a); }

ALWAYS_INLINE vu vu_add(vu a, vu b) { return _mm512_add_epi32(a, b); }

ALWAYS_INLINE vu vu_sub(vu a, vu b) { return _mm512_sub_epi32(a, b); }

ALWAYS_INLINE vu vu_shl(vu a, int n) { return _mm512_slli_epi32(a, (unsigned)n); }

ALWAYS_INLINE vu vu_shr(vu a, int n) { return _mm512_srli_epi32(a, (unsigned)n); }

/* Signed: copies of the highest bit come in. */
ALWAYS_INLINE vu vu_sar(vu a, int n) { return _mm512_srai_epi32(a, (unsigned)n); }

ALWAYS_INLINE vu vu_and(vu a, vu b) { return _mm512_and_si512(a, b); }

ALWAYS_INLINE vu vu_or(vu a, vu b) { return _mm512_or_si512(a, b); }

ALWAYS_INLINE void vu_store(uint32_t *p, vu x) { _mm512_storeu_si512(p, x); }

/* Signed integers to the nearest floats. */
ALWAYS_INLINE vf vf_from_int(vu a) { return _mm512_cvtepi32_ps(a); }

/* In each half of each word the signed nibble that begins at bit `at` as bf16: looked up by five bits, the highest of which is another's. */
ALWAYS_INLINE vu vu_bf16_of_nibbles(vu a, int at) {
    const __m512i low = _mm512_castsi256_si512(
        _mm256_setr_epi16(0x0000, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0, (short)0xc100, (short)0xc0e0,
                          (short)0xc0c0, (short)0xc0a0, (short)0xc080, (short)0xc040, (short)0xc000, (short)0xbf80));
    return _mm512_permutexvar_epi16(vu_shr(a, at), _mm512_shuffle_i64x2(low, low, 0x44));
}

/* Lanes are added by halves: i and i + 8, then i and i + 4, and so on. */
ALWAYS_INLINE float vf_sum(vf x) {
    __m256 by8 = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
    __m128 by4 = _mm_add_ps(_mm256_castps256_ps128(by8), _mm256_extractf128_ps(by8, 1));
    __m128 by2 = _mm_add_ps(by4, _mm_movehl_ps(by4, by4));
    return _mm_cvtss_f32(_mm_add_ss(by2, _mm_movehdup_ps(by2)));
}

/* The largest lane; there is no NaN. */
ALWAYS_INLINE float vf_max_lane(vf x) { return _mm512_reduce_max_ps(x); }

#elif defined(__AVX2__) && defined(__FMA__)

#include <immintrin.h>

#define VL 8u
typedef __m256 vf;
typedef __m256i vu;

ALWAYS_INLINE __m256i first_lanes(size_t n) {
    static const int32_t lanes[16] = {-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0};
    return _mm256_loadu_si256((const __m256i *)(const void *)(lanes + 8 - n));
}

ALWAYS_INLINE vf vf_set1(float x) { return _mm256_set1_ps(x); }

ALWAYS_INLINE vu vu_set1(uint32_t x) { return _mm256_set1_epi32((int)x); }

ALWAYS_INLINE vf vf_load(const float *p) { return _mm256_loadu_ps(p); }

ALWAYS_INLINE vu vu_load(const uint32_t *p) { return _mm256_loadu_si256((const __m256i *)(const void *)p); }

ALWAYS_INLINE void vf_store(float *p, vf x) { _mm256_storeu_ps(p, x); }

/* The first n < VL lanes; the others are 0, and their memory is not touched. */
ALWAYS_INLINE vf vf_load_n(const float *p, size_t n) { return _mm256_maskload_ps(p, first_lanes(n)); }

ALWAYS_INLINE void vf_store_n(float *p, vf x, size_t n) { _mm256_maskstore_ps(p, first_lanes(n), x); }

ALWAYS_INLINE vf vf_load_bf16(const uint16_t *p) {
    __m128i h = _mm_loadu_si128((const __m128i *)(const void *)p);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
}

ALWAYS_INLINE vf vf_load_bf16_n(const uint16_t *p, size_t n) {
    uint16_t all[VL] = {0};
    for (size_t i = 0; i < n; i++) {
        all[i] = p[i];
    }
    return vf_load_bf16(all);
}

ALWAYS_INLINE vf vf_add(vf a, vf b) { return _mm256_add_ps(a, b); }

ALWAYS_INLINE vf vf_sub(vf a, vf b) { return _mm256_sub_ps(a, b); }

ALWAYS_INLINE vf vf_mul(vf a, vf b) { return _mm256_mul_ps(a, b); }

ALWAYS_INLINE vf vf_div(vf a, vf b) { return _mm256_div_ps(a, b); }

ALWAYS_INLINE vf vf_sqrt(vf a) { return _mm256_sqrt_ps(a); }

/* a * b + c */
ALWAYS_INLINE vf vf_fma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }

/* The larger; b where one of them is a NaN. */
ALWAYS_INLINE vf vf_max(vf a, vf b) { return _mm256_max_ps(a, b); }

ALWAYS_INLINE vf vf_neg_abs(vf a) { return _mm256_or_ps(a, _mm256_set1_ps(-0.0f)); }

/* a < limit ? below : otherwise; a NaN in a is not below. */
ALWAYS_INLINE vf vf_select_below(vf a, float limit, vf below, vf otherwise) {
    return _mm256_blendv_ps(otherwise, below, _mm256_cmp_ps(a, _mm256_set1_ps(limit), _CMP_LT_OQ));
}

ALWAYS_INLINE vf vf_from_bits(vu a) { return _mm256_castsi256_ps(a); }

ALWAYS_INLINE vu vf_bits(vf a) { return _mm256_castps_si256(a); }

ALWAYS_INLINE vu vu_add(vu a, vu b) { return _mm256_add_epi32(a, b); }

ALWAYS_INLINE vu vu_sub(vu a, vu b) { return _mm256_sub_epi32(a, b); }

ALWAYS_INLINE vu vu_shl(vu a, int n) { return _mm256_slli_epi32(a, n); }

ALWAYS_INLINE vu vu_shr(vu a, int n) { return _mm256_srli_epi32(a, n); }

/* Signed: copies of the highest bit come in. */
ALWAYS_INLINE vu vu_sar(vu a, int n) { return _mm256_srai_epi32(a, n); }

ALWAYS_INLINE vu vu_and(vu a, vu b) { return _mm256_and_si256(a, b); }

ALWAYS_INLINE vu vu_or(vu a, vu b) { return _mm256_or_si256(a, b); }

ALWAYS_INLINE void vu_store(uint32_t *p, vu x) { _mm256_storeu_si256((__m256i *)(void *)p, x); }

/* Signed integers to the nearest floats. */
ALWAYS_INLINE vf vf_from_int(vu a) { return _mm256_cvtepi32_ps(a); }

/* Lanes are added by halves: i and i + 4, then i and i + 2, and so on. */
ALWAYS_INLINE float vf_sum(vf x) {
    __m128 by4 = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    __m128 by2 = _mm_add_ps(by4, _mm_movehl_ps(by4, by4));
    return _mm_cvtss_f32(_mm_add_ss(by2, _mm_movehdup_ps(by2)));
}

/* The largest lane; there is no NaN. */
ALWAYS_INLINE float vf_max_lane(vf x) {
    __m128 by4 = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    __m128 by2 = _mm_max_ps(by4, _mm_movehl_ps(by4, by4));
    return _mm_cvtss_f32(_mm_max_ss(by2, _mm_movehdup_ps(by2)));
}

#else

#define VL 4u
typedef float vf __attribute__((vector_size(16)));
typedef uint32_t vu __attribute__((vector_size(16)));
typedef int32_t vi __attribute__((vector_size(16)));

ALWAYS_INLINE vf vf_set1(float x) { return (vf){x, x, x, x}; }

ALWAYS_INLINE vu vu_set1(uint32_t x) { return (vu){x, x, x, x}; }

ALWAYS_INLINE vf vf_load(const float *p) {
    vf x;
    memcpy(&x, p, sizeof x);
    return x;
}

ALWAYS_INLINE vu vu_load(const uint32_t *p) {
    vu x;
    memcpy(&x, p, sizeof x);
    return x;
}

ALWAYS_INLINE void vf_store(float *p, vf x) { memcpy(p, &x, sizeof x); }

/* The first n < VL lanes; the others are 0, and their memory is not touched. */
ALWAYS_INLINE vf vf_load_n(const float *p, size_t n) {
    vf x = vf_set1(0.0f);
    for (size_t i = 0; i < n; i++) {
        x[i] = p[i];
    }
    return x;
}

ALWAYS_INLINE void vf_store_n(float *p, vf x, size_t n) {
    for (size_t i = 0; i < n; i++) {
        p[i] = x[i];
    }
}

ALWAYS_INLINE vf vf_load_bf16(const uint16_t *p) {
    vu u = {p[0], p[1], p[2], p[3]};
    return (vf)(u << 16);
}

ALWAYS_INLINE vf vf_load_bf16_n(const uint16_t *p, size_t n) {
    vu u = vu_set1(0);
    for (size_t i = 0; i < n; i++) {
        u[i] = p[i];
    }
    return (vf)(u << 16);
}

ALWAYS_INLINE vf vf_add(vf a, vf b) { return a + b; }

ALWAYS_INLINE vf vf_sub(vf a, vf b) { return a - b; }

ALWAYS_INLINE vf vf_mul(vf a, vf b) { return a * b; }

ALWAYS_INLINE vf vf_div(vf a, vf b) { return a / b; }

ALWAYS_INLINE vf vf_sqrt(vf a) { return (vf){sqrtf(a[0]), sqrtf(a[1]), sqrtf(a[2]), sqrtf(a[3])}; }

/* a * b + c: two roundings, since a fused one would be a library call on processors that have none. */
ALWAYS_INLINE vf vf_fma(vf a, vf b, vf c) { return a * b + c; }

ALWAYS_INLINE vf vf_blend(vu mask, vf yes, vf no) { return (vf)((mask & (vu)yes) | (~mask & (vu)no)); }

/* The larger; b where one of them is a NaN. */
ALWAYS_INLINE vf vf_max(vf a, vf b) { return vf_blend((vu)(a > b), a, b); }

ALWAYS_INLINE vf vf_neg_abs(vf a) { return (vf)((vu)a | 0x80000000u); }

/* a < limit ? below : otherwise; a NaN in a is not below. */
ALWAYS_INLINE vf vf_select_below(vf a, float limit, vf below, vf otherwise) {
    return vf_blend((vu)(a < vf_set1(limit)), below, otherwise);
}

ALWAYS_INLINE vf vf_from_bits(vu a) { return (vf)a; }

ALWAYS_INLINE vu vf_bits(vf a) { return (vu)a; }

ALWAYS_INLINE vu vu_add(vu a, vu b) { return a + b; }

ALWAYS_INLINE vu vu_sub(vu a, vu b) { return a - b; }

ALWAYS_INLINE vu vu_shl(vu a, int n) { return a << n; }

ALWAYS_INLINE vu vu_shr(vu a, int n) { return a >> n; }

/* Signed: copies of the highest bit come in. */
ALWAYS_INLINE vu vu_sar(vu a, int n) { return (vu)((vi)a >> n); }

ALWAYS_INLINE vu vu_and(vu a, vu b) { return a & b; }

ALWAYS_INLINE vu vu_or(vu a, vu b) { return a | b; }

ALWAYS_INLINE void vu_store(uint32_t *p, vu x) { memcpy(p, &x, sizeof x); }

/* Signed integers to the nearest floats. */
ALWAYS_INLINE vf vf_from_int(vu a) { return __builtin_convertvector((vi)a, vf); }

/* Lanes are added by halves: 0 and 2, 1 and 3, then their sums. */
ALWAYS_INLINE float vf_sum(vf x) { return (x[0] + x[2]) + (x[1] + x[3]); }

/* The largest lane; there is no NaN. */
ALWAYS_INLINE float vf_max_lane(vf x) {
    float a = x[0] > x[1] ? x[0] : x[1];
    float b = x[2] > x[3] ? x[2] : x[3];
    return a > b ? a : b;
}

#endif

/* Whether words, each a pair of bf16, are best multiplied as they are; else both are widened to f32 before. */
#define HAVE_DOT2 (VL == 16)
#if HAVE_DOT2
/* c + the product of words w and x (the even element in the low half), summed into f32. */
ALWAYS_INLINE vf vf_dot2(vf c, vu w, vu x) {
#if defined(__AVX512BF16__)
    return _mm512_dpbf16_ps(c, (__m512bh)w, (__m512bh)x);
#else
    vu high = vu_set1(0xffff0000u);
    c = vf_fma(vf_from_bits(vu_shl(w, 16)), vf_from_bits(vu_shl(x, 16)), c);
    return vf_fma(vf_from_bits(vu_and(w, high)), vf_from_bits(vu_and(x, high)), c);
#endif
}
#endif

#endif
