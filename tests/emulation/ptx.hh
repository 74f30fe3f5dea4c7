/*
 * ptx: twins of the functions in kernels/cuda/ptx.cuh, written from the PTX ISA ("Warp-level matrix instructions", "Data movement
 * and conversion instructions: asynchronous copy"). Included after simt.hh, before each file of the emulated backend.
 */
#ifndef PERCH_TESTS_EMULATION_PTX_HH
#define PERCH_TESTS_EMULATION_PTX_HH

#include "tests/emulation/simt.hh"

namespace ptx {

inline void cp_async16(void *dst, const void *src, bool valid = true) {
    simt::copy_async(dst, src, 16, valid ? 16 : 0);
}
inline uint64_t evict_first_policy() { return 0; }
inline void cp_async16_once(void *dst, const void *src, bool valid, uint64_t) { cp_async16(dst, src, valid); }
inline void cp_async_commit() { simt::copy_async_commit(); }
template <int left> inline void cp_async_wait() { simt::copy_async_wait(left); }

struct LdRow {
    uint16_t value[8];
    const void *at;
};
struct LdOut {
    uint32_t r[4];
};
template <bool transposed> struct LdMatrix {
    static void run(const LdRow *const *in, LdOut *const *out, unsigned active) {
        if (active != ~0u) {
            simt::fail("ldmatrix: all 32 lanes must take part, not %08x", active);
        }
        for (int lane = 0; lane < 32; lane++) { /* lane 4 i + j / 2 has elements j and j + 1 of row i */
            const int i = lane / 4, j = lane % 4 * 2;
            for (int m = 0; m < 4; m++) {
                const uint32_t low = transposed ? in[8 * m + j]->value[i] : in[8 * m + i]->value[j];
                const uint32_t high = transposed ? in[8 * m + j + 1]->value[i] : in[8 * m + i]->value[j + 1];
                out[lane]->r[m] = low | high << 16;
            }
        }
        unsigned conflicts = 0; /* the 8 rows of a matrix should lie in 8 different columns of banks */
        for (int m = 0; m < 4; m++) {
            unsigned used = 0;
            for (int row = 0; row < 8; row++) {
                used |= 1u << (reinterpret_cast<uintptr_t>(in[8 * m + row]->at) / 16 % 8);
            }
            conflicts += 8 - static_cast<unsigned>(__builtin_popcount(used));
        }
        simt::count_ldmatrix(4, conflicts);
    }
};
template <bool transposed> inline void ldmatrix(uint32_t (&d)[4], const void *row, const char *file, int line) {
    if (reinterpret_cast<uintptr_t>(row) % 16 != 0 || !simt::is_shared(row, 16)) {
        simt::fail("ldmatrix %s:%d: a row is not 16 aligned bytes of shared memory", file, line);
    }
    LdRow in;
    memcpy(in.value, row, 16);
    in.at = row;
    const LdOut out = simt::warp_op<LdMatrix<transposed>, LdOut>(~0u, in, "ldmatrix", file, line);
    memcpy(d, out.r, sizeof d);
}
inline void ldmatrix_x4(uint32_t (&d)[4], const void *row, SIMT_SITE) { ldmatrix<false>(d, row, file, line); }
inline void ldmatrix_x4_trans(uint32_t (&d)[4], const void *row, SIMT_SITE) { ldmatrix<true>(d, row, file, line); }

inline float to_float(uint16_t bits, __nv_bfloat16) { return __uint_as_float(static_cast<unsigned>(bits) << 16); }
inline float to_float(uint16_t bits, __half) {
    const unsigned magnitude = bits & 0x7fffu;
    const float sign = bits & 0x8000u ? -1.0f : 1.0f;
    if (magnitude >= 0x7c00u) { /* infinity, NaN */
        return __uint_as_float((bits & 0x8000u) << 16 | 0x7f800000u | (magnitude & 0x3ffu) << 13);
    }
    if (magnitude < 0x400u) { /* subnormal: magnitude * 2^-24 */
        return sign * static_cast<float>(magnitude) * 0x1p-24f;
    }
    return __uint_as_float((bits & 0x8000u) << 16 | ((magnitude << 13) + (112u << 23)));
}

struct MmaIn {
    float c[4];
    uint32_t a[4], b[2];
};
struct MmaOut {
    float c[4];
};
/* "Matrix fragments for mma.m16n8k16": g = lane / 4, t = lane % 4. */
template <class T> struct Mma16816 {
    static void run(const MmaIn *const *in, MmaOut *const *out, unsigned active) {
        if (active != ~0u) {
            simt::fail("mma: all 32 lanes must take part, not %08x", active);
        }
        typedef float row __attribute__((vector_size(32))); /* eight columns at once, with no check of each element */
        float a[16][16];
        row b[16], c[16];
        for (int lane = 0; lane < 32; lane++) {
            const int g = lane / 4, t = lane % 4 * 2;
            for (int half = 0; half < 2; half++) {
                const int shift = 16 * half;
                for (int r = 0; r < 4; r++) {
                    a[g + r % 2 * 8][t + half + r / 2 * 8] =
                        to_float(static_cast<uint16_t>(in[lane]->a[r] >> shift), T());
                }
                for (int r = 0; r < 2; r++) {
                    b[t + half + r * 8][g] = to_float(static_cast<uint16_t>(in[lane]->b[r] >> shift), T());
                    c[g + r * 8][t + half] = in[lane]->c[2 * r + half];
                }
            }
        }
        for (int i = 0; i < 16; i++) {
            for (int k = 0; k < 16; k++) {
                c[i] += a[i][k] * b[k];
            }
        }
        for (int lane = 0; lane < 32; lane++) {
            for (int half = 0; half < 2; half++) {
                for (int r = 0; r < 2; r++) {
                    out[lane]->c[2 * r + half] = c[lane / 4 + r * 8][lane % 4 * 2 + half];
                }
            }
        }
    }
};
template <class T> inline void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, SIMT_SITE) {
    const MmaIn in{{c[0], c[1], c[2], c[3]}, {a[0], a[1], a[2], a[3]}, {b0, b1}};
    const MmaOut out = simt::warp_op<Mma16816<T>, MmaOut>(~0u, in, "mma", file, line);
    memcpy(c, out.c, sizeof c);
}

/* ex2.approx.ftz, to a float's last bit or so: a GPU's is as good. */
inline float ex2(float x) {
    const float y = exp2f(fabsf(x) < 0x1p-126f ? 0.0f : x);
    return y < 0x1p-126f ? 0.0f : y;
}

inline uint32_t opaque(uint32_t x) { return x; }
} // namespace ptx

#endif
