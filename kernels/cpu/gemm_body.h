/*
 * Matrix products, for one instruction set: a register tile of a few tokens × a few vectors of outputs walks along K.
 * Each output is one chain of additions in the order of K, whatever the tile's size; where K is cut into blocks the
 * sums rest in memory in between, which changes no bit of them.
 */
#include "kernels/cpu/isa.h"
#include "kernels/cpu/simd.h"
#include "kernels/cpu/unpack_body.h"

/*
 * TILE_VECTORS vectors of outputs for n_m tokens: as many accumulators as fit into the registers, 32 of AVX-512 and else 16,
 * beside a word of the weights and one input. A single token, which memory limits, takes a whole panel where it can, so that
 * memory is read from front to back.
 */
#if VL == 16
#define TILE_M 6u
#define TILE_VECTORS(n_m) 4u
#elif VL == 8
#define TILE_M 6u
#define TILE_VECTORS(n_m) ((n_m) == 1u ? 8u : (n_m) <= 3u ? 4u : 2u)
#else
#define TILE_M 2u
#define TILE_VECTORS(n_m) 4u
#endif
#define TILE_N 8u /* vectors at most */
/*
 * Words of K that all outputs of a panel take before the next: with many tokens their inputs (TILE_M rows) stay in the L1
 * cache and the panel's weights in the L2 cache. With few, which memory limits, a panel that takes more than one tile is read
 * in short runs, so that memory is still read nearly from front to back.
 */
#define K_BLOCK 512u
#define FEW_TOKENS (4 * TILE_M)
#define K_BLOCK_FEW (TILE_VECTORS(TILE_M) * VL < CPU_PANEL ? 16u : K_BLOCK)
/* Words of inputs that are widened to f32 at a time. */
#define WIDE_WORDS 32u

/* What a register tile works on: rows of x and of sums are strides apart; vector v of word k lies at b[v] + k * b_stride. */
typedef struct tile_at {
    float *sums;
    size_t sums_stride;
    bool fresh;          /* what is in sums does not count */
    const float *scales; /* NULL, or [outputs]: what comes is multiplied by them and then added to sums */
    const uint32_t *x;
    size_t x_stride;
    const uint32_t *b[TILE_N];
    size_t n_words;
} tile_at;

/* sum[m][v] += Σ_k b[v][k] · x[m][k], words of one f32 or, with `pairs`, of two bf16. */
ALWAYS_INLINE void tile_words(const size_t n_m, const size_t n_v, const bool pairs, const size_t b_stride,
                              const tile_at *at, vf (*sum)[TILE_N]) {
    (void)pairs;
    const uint32_t *x = at->x, *b[TILE_N];
    size_t n_words = at->n_words, x_stride = at->x_stride;
    memcpy(b, at->b, sizeof b);
    for (size_t k = 0; k < n_words; k++) {
        vu w[TILE_N];
        for (size_t v = 0; v < n_v; v++) {
            w[v] = vu_load(b[v] + k * b_stride);
        }
        for (size_t m = 0; m < n_m; m++) {
            vu input = vu_set1(x[m * x_stride + k]);
            for (size_t v = 0; v < n_v; v++) {
#if HAVE_DOT2
                if (pairs) {
                    sum[m][v] = vf_dot2(sum[m][v], w[v], input);
                    continue;
                }
#endif
                sum[m][v] = vf_fma(vf_from_bits(w[v]), vf_from_bits(input), sum[m][v]);
            }
        }
    }
}

/* The same for pairs of bf16 by products of f32: the even element's first. */
ALWAYS_INLINE void tile_widened(const size_t n_m, const size_t n_v, const size_t b_stride, const tile_at *at,
                                vf (*sum)[TILE_N]) {
    uint32_t even[TILE_M][WIDE_WORDS], odd[TILE_M][WIDE_WORDS];
    for (size_t first = 0; first < at->n_words; first += WIDE_WORDS) {
        size_t n = at->n_words - first < WIDE_WORDS ? at->n_words - first : WIDE_WORDS;
        for (size_t m = 0; m < n_m; m++) {
            const uint32_t *from = at->x + m * at->x_stride + first;
            for (size_t k = 0; k < n; k++) {
                even[m][k] = from[k] << 16;
                odd[m][k] = from[k] & 0xffff0000u;
            }
        }
        for (size_t k = 0; k < n; k++) {
            vu w[TILE_N];
            for (size_t v = 0; v < n_v; v++) {
                w[v] = vu_load(at->b[v] + (first + k) * b_stride);
            }
            for (size_t m = 0; m < n_m; m++) {
                vf input = vf_from_bits(vu_set1(even[m][k]));
                for (size_t v = 0; v < n_v; v++) {
                    sum[m][v] = vf_fma(vf_from_bits(vu_shl(w[v], 16)), input, sum[m][v]);
                }
            }
            for (size_t m = 0; m < n_m; m++) {
                vf input = vf_from_bits(vu_set1(odd[m][k]));
                for (size_t v = 0; v < n_v; v++) {
                    sum[m][v] = vf_fma(vf_from_bits(vu_and(w[v], vu_set1(0xffff0000u))), input, sum[m][v]);
                }
            }
        }
    }
}

/* sums[m][v] (+)= scales[v] · Σ_k b[v][k] · x[m][k] for m < n_m tokens and n_v vectors of outputs. */
ALWAYS_INLINE void tile_body(const size_t n_m, const size_t n_v, const bool bf16, const size_t b_stride,
                             const tile_at *at) {
    vf sum[TILE_M][TILE_N];
    for (size_t m = 0; m < n_m; m++) {
        for (size_t v = 0; v < n_v; v++) {
            const float *before = at->sums + m * at->sums_stride + v * VL;
            sum[m][v] = at->fresh || at->scales != NULL ? vf_set1(0.0f) : vf_load(before);
        }
    }
    if (bf16 && !HAVE_DOT2) {
        tile_widened(n_m, n_v, b_stride, at, sum);
    } else {
        tile_words(n_m, n_v, bf16, b_stride, at, sum);
    }
    for (size_t m = 0; m < n_m; m++) {
        for (size_t v = 0; v < n_v; v++) {
            float *to = at->sums + m * at->sums_stride + v * VL;
            if (at->scales != NULL) {
                sum[m][v] = vf_fma(vf_load(at->scales + v * VL), sum[m][v], at->fresh ? vf_set1(0.0f) : vf_load(to));
            }
            vf_store(to, sum[m][v]);
        }
    }
}

#define TILE_CASE(n)                                                                                                   \
    case n:                                                                                                            \
        tile_body(n, TILE_VECTORS(n), bf16, b_stride, at);                                                             \
        break

/* tile_body with its constants, so that sums stay in registers. */
ALWAYS_INLINE void tile_sized(size_t n_m, const bool bf16, const size_t b_stride, const tile_at *at) {
    switch (n_m) {
        TILE_CASE(1);
        TILE_CASE(2);
#if TILE_M > 2
        TILE_CASE(3);
        TILE_CASE(4);
        TILE_CASE(5);
        TILE_CASE(6);
#endif
    default:
        break;
    }
}

/* n_m in 1..TILE_M, TILE_VECTORS(n_m) vectors. */
ALWAYS_INLINE void tile(size_t n_m, bool bf16, const size_t b_stride, const tile_at *at) {
    if (bf16) {
        tile_sized(n_m, true, b_stride, at);
    } else {
        tile_sized(n_m, false, b_stride, at);
    }
}

/* y = (accumulate ? y : 0) + (sums + bias), n outputs of one token. */
static void gemm_store(const cpu_gemm *gemm, const float *sums, size_t first, size_t n, float *y) {
    for (size_t i = 0; i < n; i += VL) {
        size_t lanes = n - i < VL ? n - i : VL;
        vf sum = vf_load(sums + i); /* whole: a panel is padded */
        if (gemm->bias != NULL) {
            sum = vf_add(sum, lanes == VL ? vf_load(gemm->bias + first + i) : vf_load_n(gemm->bias + first + i, lanes));
        }
        if (gemm->accumulate) {
            sum = vf_add(lanes == VL ? vf_load(y + i) : vf_load_n(y + i, lanes), sum);
        }
        if (lanes == VL) {
            vf_store(y + i, sum);
        } else {
            vf_store_n(y + i, sum, lanes);
        }
    }
}

/*
 * Sums of tokens [t0, t1) over n_words words from k0 on, of which `weights` is the first: [n_words][CPU_PANEL]. With scales,
 * [CPU_PANEL] for each run of scale_words, every run is a sum of its own.
 */
ALWAYS_INLINE void gemm_words(const cpu_gemm *gemm, const uint32_t *weights, const float *scales, size_t scale_words,
                              size_t k0, size_t n_words, size_t t0, size_t t1, float *sums) {
    for (size_t t = t0; t < t1; t += TILE_M) {
        size_t n_m = t1 - t < TILE_M ? t1 - t : TILE_M;
        size_t n_v = TILE_VECTORS(n_m);
        for (size_t o = 0; o < CPU_PANEL; o += n_v * VL) {
            for (size_t k = 0; k < n_words; k += scale_words) {
                tile_at at = {.sums = sums + (t - t0) * CPU_PANEL + o,
                              .sums_stride = CPU_PANEL,
                              .fresh = k0 + k == 0,
                              .scales = scales != NULL ? scales + k / scale_words * CPU_PANEL + o : NULL,
                              .x = gemm->x + t * gemm->x_stride + k0 + k,
                              .x_stride = gemm->x_stride,
                              .n_words = n_words - k < scale_words ? n_words - k : scale_words};
                for (size_t v = 0; v < n_v; v++) {
                    at.b[v] = weights + k * CPU_PANEL + o + v * VL;
                }
                tile(n_m, gemm->bf16, CPU_PANEL, &at);
            }
        }
    }
}

/* Many tokens share the unpacking, and their sums stay in the L1 cache from one block to the next. */
static void gemm_blocks(const cpu_gemm *gemm, const uint8_t *panel, size_t t0, size_t t1, cpu_scratch *scratch) {
    size_t block_words = gemm->bf16 ? CPU_GROUP / 2 : CPU_GROUP;
    size_t k_block = t1 - t0 <= FEW_TOKENS ? block_words : CPU_BLOCKS * block_words;
    const float *scales = cpu_scale_bytes(gemm->format) > 0 ? scratch->scales : NULL;
    for (size_t k0 = 0; k0 < gemm->n_words; k0 += k_block) {
        size_t n_words = gemm->n_words - k0 < k_block ? gemm->n_words - k0 : k_block;
        for (size_t k = 0; k < n_words; k += block_words) {
            unpack(gemm->format, gemm->bf16, panel + (k0 + k) / block_words * cpu_block_bytes(gemm->format),
                   scratch->unpacked + k * CPU_PANEL, scratch->scales + k / block_words * CPU_PANEL);
        }
        gemm_words(gemm, scratch->unpacked, scales, block_words, k0, n_words, t0, t1, scratch->gemm);
    }
}

static void isa_gemm(const cpu_gemm *gemm, size_t panel, size_t t0, size_t t1, cpu_scratch *scratch) {
    const uint8_t *from = gemm->panels + panel * gemm->panel_bytes;
    size_t k_block = t1 - t0 <= FEW_TOKENS ? K_BLOCK_FEW : K_BLOCK;
    if (gemm->format != CPU_WORDS) {
        gemm_blocks(gemm, from, t0, t1, scratch);
    }
    for (size_t k0 = 0; gemm->format == CPU_WORDS && k0 < gemm->n_words; k0 += k_block) {
        size_t n_words = gemm->n_words - k0 < k_block ? gemm->n_words - k0 : k_block;
        const uint32_t *weights = (const uint32_t *)(const void *)from + k0 * CPU_PANEL;
        gemm_words(gemm, weights, NULL, n_words, k0, n_words, t0, t1, scratch->gemm);
    }
    size_t first = panel * CPU_PANEL;
    size_t n = gemm->n_out - first < CPU_PANEL ? gemm->n_out - first : CPU_PANEL;
    for (size_t t = t0; t < t1; t++) {
        gemm_store(gemm, scratch->gemm + (t - t0) * CPU_PANEL, first, n, gemm->y + t * gemm->n_out + first);
    }
}
