/*
 * From a block of a weight (format.h) to the words that a register tile reads, [word of K][CPU_PANEL], for one instruction
 * set. Codes are small integers, which bf16 and f32 hold exactly; their scales are left to the sums.
 */
#include "kernels/cpu/format.h"
#include "kernels/cpu/simd.h"

/* The codes of `bits` bits that begin at bit `at`, as f32. */
ALWAYS_INLINE vf vf_from_codes(vu words, int at, int bits) {
    return vf_from_int(vu_sar(vu_shl(words, 32 - bits - at), 32 - bits));
}

/* Pairs of f32 that bf16 holds exactly as words, the even one in the low half. */
ALWAYS_INLINE vu vu_pair(vf even, vf odd) { return vu_or(vu_shr(vf_bits(even), 16), vf_bits(odd)); }

/* Codes 4 w .. 4 w + 3 of VL outputs. */
ALWAYS_INLINE void unpack_int8(vu codes, const bool bf16, uint32_t *to) {
    vf value[4];
    for (int k = 0; k < 4; k++) {
        value[k] = vf_from_codes(codes, 8 * k, 8);
    }
    for (size_t k = 0; k < 4; k += 2) {
        if (bf16) {
            vu_store(to + k / 2 * CPU_PANEL, vu_pair(value[k], value[k + 1]));
        } else {
            vu_store(to + k * CPU_PANEL, vf_bits(value[k]));
            vu_store(to + (k + 1) * CPU_PANEL, vf_bits(value[k + 1]));
        }
    }
}

/* Codes 8 w .. 8 w + 7 of VL outputs. */
ALWAYS_INLINE void unpack_int4(vu codes, const bool bf16, uint32_t *to) {
    for (int k = 0; k < 8; k += 2) {
#if VL == 16
        if (bf16) {
            vu_store(to + (size_t)k / 2 * CPU_PANEL, vu_bf16_of_nibbles(codes, 2 * k));
            continue;
        }
#endif
        vf even = vf_from_codes(codes, 2 * k, 4), odd = vf_from_codes(codes, 2 * k + 16, 4);
        if (bf16) {
            vu_store(to + (size_t)k / 2 * CPU_PANEL, vu_pair(even, odd));
        } else {
            vu_store(to + (size_t)k * CPU_PANEL, vf_bits(even));
            vu_store(to + (size_t)(k + 1) * CPU_PANEL, vf_bits(odd));
        }
    }
}

ALWAYS_INLINE void unpack_words(cpu_format format, const bool bf16, const uint32_t *words, uint32_t *to) {
    size_t n = CPU_GROUP * cpu_bits(format) / 32, step = CPU_GROUP / n / (bf16 ? 2 : 1);
    for (size_t w = 0; w < n; w++) {
        for (size_t o = 0; o < CPU_PANEL; o += VL) {
            vu codes = vu_load(words + w * CPU_PANEL + o);
            uint32_t *out = to + w * step * CPU_PANEL + o;
            if (format == CPU_INT8) {
                unpack_int8(codes, bf16, out);
            } else if (format == CPU_INT4) {
                unpack_int4(codes, bf16, out);
            } else {
                vu_store(out, vu_shl(codes, 16));
                vu_store(out + CPU_PANEL, vu_and(codes, vu_set1(0xffff0000u)));
            }
        }
    }
}

/* scales: [CPU_PANEL], of formats that have any. */
static void unpack(cpu_format format, bool bf16, const uint8_t *block, uint32_t *to, float *scales) {
    const uint32_t *words = (const uint32_t *)(const void *)(block + cpu_scale_bytes(format));
    for (size_t o = 0; o < cpu_scale_bytes(format) / sizeof(uint16_t); o += VL) {
        vf_store(scales + o, vf_load_bf16((const uint16_t *)(const void *)block + o));
    }
    if (format == CPU_INT4) {
        bf16 ? unpack_words(CPU_INT4, true, words, to) : unpack_words(CPU_INT4, false, words, to);
    } else if (format == CPU_INT8) {
        bf16 ? unpack_words(CPU_INT8, true, words, to) : unpack_words(CPU_INT8, false, words, to);
    } else {
        unpack_words(CPU_BF16, false, words, to);
    }
}
