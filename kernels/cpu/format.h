/*
 * How a weight's panels are stored. WORDS is what matrix products read: [word of K][CPU_PANEL outputs]. The others are smaller;
 * a group of CPU_GROUP inputs of one panel is a *block*, one run of bytes that is unpacked to words when it is multiplied by:
 *
 *     BF16  [16 pairs of inputs][CPU_PANEL] bf16, for products in f32
 *     INT8  [CPU_PANEL] scales in bf16, then [8][CPU_PANEL] words: input 4 w + k of the group in bits 8 k.. of word w
 *     INT4  [CPU_PANEL] scales in bf16, then [4][CPU_PANEL] words: input 8 w + k in bits 16 (k % 2) + 4 (k / 2).. of word w
 *
 * A weight is its scale times its code, a signed integer: an output's and a group's own scale. Inputs behind the last have
 * code 0.
 */
#ifndef PERCH_KERNELS_CPU_FORMAT_H
#define PERCH_KERNELS_CPU_FORMAT_H

#include <stddef.h>
#include <stdint.h>

#define CPU_PANEL 64u /* outputs */
#define CPU_GROUP 32u /* inputs */

typedef enum cpu_format { CPU_WORDS, CPU_BF16, CPU_INT8, CPU_INT4 } cpu_format;

static inline size_t cpu_scale_bytes(cpu_format format) {
    return format == CPU_INT8 || format == CPU_INT4 ? CPU_PANEL * sizeof(uint16_t) : 0;
}

static inline size_t cpu_bits(cpu_format format) { return format == CPU_INT4 ? 4 : format == CPU_INT8 ? 8 : 16; }

static inline size_t cpu_block_bytes(cpu_format format) {
    return cpu_scale_bytes(format) + CPU_PANEL * CPU_GROUP * cpu_bits(format) / 8;
}

/* The word of a block (behind its scales) that has a group's input k of an output, and the bit where it begins. */
static inline size_t cpu_block_word(cpu_format format, size_t output, size_t k) {
    return k * cpu_bits(format) / 32 * CPU_PANEL + output;
}

static inline unsigned cpu_block_bit(cpu_format format, size_t k) {
    return format == CPU_INT4 ? (unsigned)(k % 2 * 16 + k % 8 / 2 * 4) : (unsigned)(k * cpu_bits(format) % 32);
}

/*
 * quantize.c: codes and scale (bf16) of a group. INT8: -127..127, the largest value's code is 127 or close to it. INT4: -8..7,
 * by the scale with the least squared error of several. A value that is no number makes the scale a NaN and every code 0.
 */
void cpu_quantize(cpu_format format, const float *values, int8_t *codes, uint16_t *scale);

#endif
