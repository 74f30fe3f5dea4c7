/* Quantization of weights: a group of inputs of one output to small integers and their scale. */
#include "kernels/cpu/format.h"

#include "kernels/cpu/convert.h"

#include <math.h>

/* INT4's first scales are the largest value divided by these: it becomes -8 and beyond, or stays inside. */
static const float int4_divisors[] = {-8.0f, -8.6f, -7.5f, -7.0f, 7.0f};

/* The nearest integers to values * factor, ties to even, within the limits. */
static void round_codes(const float *values, float factor, float least, float most, float *codes) {
    for (size_t i = 0; i < CPU_GROUP; i++) {
        float code = values[i] * factor;
        code = code < least ? least : code > most ? most : code;
        codes[i] = (code + 12582912.0f) - 12582912.0f; /* 1.5 * 2^23: leaves no bits behind the point */
    }
}

static float squared_error(const float *values, float scale, const float *codes) {
    float error = 0;
    for (size_t i = 0; i < CPU_GROUP; i++) {
        float off = values[i] - scale * codes[i];
        error += off * off;
    }
    return error;
}

static void quantize_int8(const float *values, float largest, float *codes, uint16_t *scale) {
    *scale = (uint16_t)((f32_bits(fabsf(largest) / 127.0f) + 0xffffu) >> 16); /* up: no code is beyond the limits */
    round_codes(values, 1.0f / bf16_to_f32(*scale), -127.0f, 127.0f, codes);
}

/* Each first scale gives codes; for those codes the scale is the one of least squares. */
static void quantize_int4(const float *values, float largest, float *codes, uint16_t *scale) {
    float best = INFINITY, unit[CPU_GROUP]; /* the largest is 1, so that no square overflows or vanishes */
    for (size_t i = 0; i < CPU_GROUP; i++) {
        unit[i] = values[i] / largest;
    }
    for (size_t d = 0; d < sizeof int4_divisors / sizeof int4_divisors[0]; d++) {
        float tried[CPU_GROUP], products = 0, squares = 0;
        round_codes(unit, int4_divisors[d], -8.0f, 7.0f, tried);
        for (size_t i = 0; i < CPU_GROUP; i++) {
            products += unit[i] * tried[i];
            squares += tried[i] * tried[i];
        }
        uint16_t rounded = f32_to_bf16(products / squares * largest);
        float error = squared_error(unit, bf16_to_f32(rounded) / largest, tried);
        if (error < best) {
            best = error;
            *scale = rounded;
            memcpy(codes, tried, sizeof tried);
        }
    }
}

void cpu_quantize(cpu_format format, const float *values, int8_t *codes, uint16_t *scale) {
    float largest = 0, sum = 0, rounded[CPU_GROUP] = {0};
    for (size_t i = 0; i < CPU_GROUP; i++) {
        largest = fabsf(values[i]) > fabsf(largest) ? values[i] : largest;
        sum += values[i] * 0.0f; /* NaN if any value is one, or infinite */
    }
    *scale = 0;
    if (isnan(sum)) {
        *scale = 0x7fc0;
    } else if (fabsf(largest) > 0x1p-100f) { /* below, scales would lose their bits: what is that small counts as 0 */
        (format == CPU_INT8 ? quantize_int8 : quantize_int4)(values, largest, rounded, scale);
    }
    for (size_t i = 0; i < CPU_GROUP; i++) {
        codes[i] = (int8_t)rounded[i];
    }
}
