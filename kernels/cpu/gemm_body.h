/*
 * Matrix products, for one instruction set: a register tile of a few tokens × a few vectors of outputs walks along K.
 * Each output is one chain of additions in the order of K, whatever the tile's size; where K is cut into blocks the
 * sums rest in memory in between, which changes no bit of them.
 */
#include "kernels/cpu/isa.h"
#include "kernels/cpu/simd.h"

/*
 * As many accumulators as fit into the registers, 32 of AVX-512 and else 16, beside a word of the weights and one input. Few
 * tokens take more outputs instead, so that there are enough independent additions under way.
 */
#if VL == 16
#define TILE_M 6u
#define TILE_VECTORS(n_m) 4u
#elif VL == 8
#define TILE_M 6u
#define TILE_VECTORS(n_m) ((n_m) <= 3u ? 4u : 2u)
#else
#define TILE_M 2u
#define TILE_VECTORS(n_m) 4u
#endif
#define TILE_N 4u /* vectors at most */
/* Words of K whose inputs (TILE_M rows) stay in the L1 cache and whose weights (one panel) in the L2 cache. */
#define K_BLOCK 512u

/*
 * sums[m][v] (+)= Σ_k b[v][k] · x[m][k] for m < n_m tokens and n_v vectors of outputs. fresh: from 0 instead of what is
 * there. Rows of x and of sums are strides apart; vector v of word k lies at b[v] + k * b_stride.
 */
ALWAYS_INLINE void tile_body(const size_t n_m, const size_t n_v, const bool bf16, float *sums, size_t sums_stride,
                             bool fresh, const uint32_t *x, size_t x_stride, const uint32_t *const *b, size_t b_stride,
                             size_t n_words) {
    vf sum[TILE_M][TILE_N];
    for (size_t m = 0; m < n_m; m++) {
        for (size_t v = 0; v < n_v; v++) {
            sum[m][v] = fresh ? vf_set1(0.0f) : vf_load(sums + m * sums_stride + v * VL);
        }
    }
    for (size_t k = 0; k < n_words; k++) {
        vu w[TILE_N];
        for (size_t v = 0; v < n_v; v++) {
            w[v] = vu_load(b[v] + k * b_stride);
        }
        for (size_t m = 0; m < n_m; m++) {
            vu input = vu_set1(x[m * x_stride + k]);
            for (size_t v = 0; v < n_v; v++) {
                sum[m][v] =
                    bf16 ? vf_dot2(sum[m][v], w[v], input) : vf_fma(vf_from_bits(w[v]), vf_from_bits(input), sum[m][v]);
            }
        }
    }
    for (size_t m = 0; m < n_m; m++) {
        for (size_t v = 0; v < n_v; v++) {
            vf_store(sums + m * sums_stride + v * VL, sum[m][v]);
        }
    }
}

#define TILE_CASE(n)                                                                                                   \
    case n:                                                                                                            \
        tile_body(n, TILE_VECTORS(n), bf16, sums, sums_stride, fresh, x, x_stride, b, b_stride, n_words);              \
        break

/* tile_body with its constants, so that sums stay in registers. n_m in 1..TILE_M; b[TILE_VECTORS(n_m)]. */
ALWAYS_INLINE void tile_sized(size_t n_m, const bool bf16, float *sums, size_t sums_stride, bool fresh,
                              const uint32_t *x, size_t x_stride, const uint32_t *const *b, size_t b_stride,
                              size_t n_words) {
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

static void tile(size_t n_m, bool bf16, float *sums, size_t sums_stride, bool fresh, const uint32_t *x, size_t x_stride,
                 const uint32_t *const *b, size_t b_stride, size_t n_words) {
    if (bf16) {
        tile_sized(n_m, true, sums, sums_stride, fresh, x, x_stride, b, b_stride, n_words);
    } else {
        tile_sized(n_m, false, sums, sums_stride, fresh, x, x_stride, b, b_stride, n_words);
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

static void isa_gemm(const cpu_gemm *gemm, size_t panel, size_t t0, size_t t1, cpu_scratch *scratch) {
    const uint32_t *weights = gemm->panels + panel * gemm->n_words * CPU_PANEL;
    for (size_t k0 = 0; k0 < gemm->n_words; k0 += K_BLOCK) {
        size_t n_words = gemm->n_words - k0 < K_BLOCK ? gemm->n_words - k0 : K_BLOCK;
        for (size_t t = t0; t < t1; t += TILE_M) {
            size_t n_m = t1 - t < TILE_M ? t1 - t : TILE_M;
            size_t n_v = TILE_VECTORS(n_m);
            for (size_t o = 0; o < CPU_PANEL; o += n_v * VL) {
                const uint32_t *b[TILE_N];
                for (size_t v = 0; v < n_v; v++) {
                    b[v] = weights + k0 * CPU_PANEL + o + v * VL;
                }
                tile(n_m, gemm->bf16, scratch->gemm + (t - t0) * CPU_PANEL + o, CPU_PANEL, k0 == 0,
                     gemm->x + t * gemm->x_stride + k0, gemm->x_stride, b, CPU_PANEL, n_words);
            }
        }
    }
    size_t first = panel * CPU_PANEL;
    size_t n = gemm->n_out - first < CPU_PANEL ? gemm->n_out - first : CPU_PANEL;
    for (size_t t = t0; t < t1; t++) {
        gemm_store(gemm, scratch->gemm + (t - t0) * CPU_PANEL, first, n, gemm->y + t * gemm->n_out + first);
    }
}
