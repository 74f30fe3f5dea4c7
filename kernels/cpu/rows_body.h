/*
 * What is done to one row at a time, for one instruction set: the exponential, RMSNorm, SiLU, rounding to bf16.
 */
#include "kernels/cpu/convert.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/simd.h"

/*
 * e^x for x <= 0 (and a little above): 2^n * e^r with n = round(x / ln 2), |r| <= ln 2 / 2, e^r by a polynomial of degree 6
 * (minimax, relative error 3.1e-9 before rounding). Within 2 ulp. Exactly 0 below -87, where e^x nears the smallest normal
 * number; NaN for NaN.
 */
ALWAYS_INLINE vf vf_exp(vf x) {
    const float round_magic = 12582912.0f; /* 1.5 * 2^23: adding it leaves the integer part in the low bits */
    vf shifted = vf_fma(x, vf_set1(1.44269504f), vf_set1(round_magic));
    vf n = vf_sub(shifted, vf_set1(round_magic));
    vf r = vf_fma(n, vf_set1(-0.693359375f), x); /* ln 2 in two parts; the first has few bits: n times it is exact */
    r = vf_fma(n, vf_set1(2.12194440e-4f), r);
    vf p = vf_set1(1.381460199e-3f);
    p = vf_fma(p, r, vf_set1(8.368715204e-3f));
    p = vf_fma(p, r, vf_set1(4.166838789e-2f));
    p = vf_fma(p, r, vf_set1(1.666652065e-1f));
    p = vf_fma(p, r, vf_set1(4.999999345e-1f));
    p = vf_fma(p, vf_mul(r, r), r);
    p = vf_add(p, vf_set1(1.0f));
    vu exponent = vu_add(vf_bits(shifted), vu_sub(vu_set1(127u), vf_bits(vf_set1(round_magic))));
    vf power = vf_from_bits(vu_shl(exponent, 23));
    return vf_select_below(x, -87.0f, vf_set1(0.0f), vf_mul(p, power));
}

static void isa_rmsnorm(const float *x, const float *gain, float eps, size_t width, float *y) {
    vf sum[4] = {vf_set1(0.0f), vf_set1(0.0f), vf_set1(0.0f), vf_set1(0.0f)};
    size_t i = 0;
    for (; i + 4 * VL <= width; i += 4 * VL) {
        for (size_t v = 0; v < 4; v++) {
            vf a = vf_load(x + i + v * VL);
            sum[v] = vf_fma(a, a, sum[v]);
        }
    }
    for (; i < width; i += VL) {
        vf a = width - i < VL ? vf_load_n(x + i, width - i) : vf_load(x + i);
        sum[0] = vf_fma(a, a, sum[0]);
    }
    float squares = vf_sum(vf_add(vf_add(sum[0], sum[1]), vf_add(sum[2], sum[3])));
    vf scale = vf_div(vf_set1(1.0f), vf_sqrt(vf_set1(squares / (float)width + eps)));
    for (i = 0; i + VL <= width; i += VL) {
        vf_store(y + i, vf_mul(vf_mul(vf_load(x + i), scale), vf_load(gain + i)));
    }
    if (i < width) {
        vf a = vf_mul(vf_mul(vf_load_n(x + i, width - i), scale), vf_load_n(gain + i, width - i));
        vf_store_n(y + i, a, width - i);
    }
}

/* gate * sigmoid(gate) * up, sigmoid by e^-|gate|, which can't overflow. */
ALWAYS_INLINE vf silu_mul_lanes(vf gate, vf up) {
    vf one = vf_set1(1.0f);
    vf e = vf_exp(vf_neg_abs(gate));
    vf sigmoid = vf_div(vf_select_below(gate, 0.0f, e, one), vf_add(one, e));
    return vf_mul(vf_mul(gate, sigmoid), up);
}

static void isa_silu_mul(const float *gate, const float *up, size_t n, float *y) {
    size_t i = 0;
    for (; i + VL <= n; i += VL) {
        vf_store(y + i, silu_mul_lanes(vf_load(gate + i), vf_load(up + i)));
    }
    if (i < n) {
        vf_store_n(y + i, silu_mul_lanes(vf_load_n(gate + i, n - i), vf_load_n(up + i, n - i)), n - i);
    }
}

static void isa_round_bf16(const float *x, size_t n, uint32_t *words) {
    for (size_t i = 0; i < n / 2; i++) {
        words[i] = f32_to_bf16(x[2 * i]) | (uint32_t)f32_to_bf16(x[2 * i + 1]) << 16;
    }
    if (n % 2 != 0) {
        words[n / 2] = f32_to_bf16(x[n - 1]);
    }
}
