// ptx.cuh: the few PTX instructions the kernels use, each with an emulated twin written from the PTX ISA.
#pragma once
#include "tests/emulation/simt.hh"

namespace ptx {
inline void cp_async16(void *dst, const void *src, bool pred = true) { simt::cp_async(dst, src, 16, pred ? 16 : 0); }
inline uint64_t evict_first_policy() { return 0; }
inline void cp_async16_once(void *dst, const void *src, bool valid, uint64_t) { cp_async16(dst, src, valid); }
inline void cp_async_commit() { simt::cp_async_commit(); }
template <int left> inline void cp_async_wait() { simt::cp_async_wait(left); }

struct Row {
    uint16_t v[8];
    const void *addr;
};
struct Regs4 {
    uint32_t r[4];
};
template <bool trans> struct LdMatrix {
    static void run(const Row **in, Regs4 **out, unsigned active) {
        if (active != ~0u)
            simt::fail("ldmatrix: all 32 lanes must take part");
        for (int l = 0; l < 32; l++)
            for (int m = 0; m < 4; m++) {
                int i = l / 4, j = l % 4 * 2;
                uint32_t lo = trans ? in[8 * m + j]->v[i] : in[8 * m + i]->v[j];
                uint32_t hi = trans ? in[8 * m + j + 1]->v[i] : in[8 * m + i]->v[j + 1];
                out[l]->r[m] = lo | hi << 16;
            }
        simt::B->stats.ldmatrix += 4;
        for (int m = 0; m < 4; m++) { // the 8 rows of a matrix should lie in 8 different 16-byte bank groups
            unsigned used = 0;
            for (int r = 0; r < 8; r++)
                used |= 1u << (uintptr_t(in[8 * m + r]->addr) / 16 % 8);
            simt::B->stats.ldmatrix_conflicts += 8 - __builtin_popcount(used);
        }
    }
};
template <bool trans> inline void ldmatrix(uint32_t (&d)[4], const void *row, const char *file, int line) {
    if (!simt::is_shared(row, 16) || uintptr_t(row) % 16)
        simt::fail(simt::format("ldmatrix %s:%d: row is not 16 aligned bytes of shared memory", file, line));
    Row in;
    SIMT_TSAN(__tsan_read_range(row, 16);)
    memcpy(in.v, row, 16);
    in.addr = row;
    Regs4 o = simt::warp_op<LdMatrix<trans>, Regs4>(~0u, in, "ldmatrix", file, line);
    memcpy(d, o.r, 16);
}
inline void ldmatrix_x4(uint32_t (&d)[4], const void *row, SIMT_SITE) { ldmatrix<false>(d, row, file, line); }
inline void ldmatrix_x4_trans(uint32_t (&d)[4], const void *row, SIMT_SITE) { ldmatrix<true>(d, row, file, line); }

struct MmaIn {
    float c[4];
    uint32_t a[4], b[2];
};
struct MmaOut {
    float c[4];
};
template <class T> inline float half_of(uint32_t r, int hi) {
    uint16_t bits = uint16_t(hi ? r >> 16 : r);
    T v;
    memcpy(static_cast<void *>(&v), &bits, 2);
    return float(v);
}
template <class T> struct Mma16816 { // PTX ISA, "Matrix fragments for mma.m16n8k16": g = lane / 4, t = lane % 4
    static void run(const MmaIn **in, MmaOut **out, unsigned active) {
        if (active != ~0u)
            simt::fail("mma: all 32 lanes must take part");
        float a[16][16], b[16][8], c[16][8];
        for (int l = 0; l < 32; l++) {
            int g = l / 4, t = l % 4 * 2;
            for (int h = 0; h < 2; h++) {
                for (int r = 0; r < 4; r++)
                    a[g + r % 2 * 8][t + h + r / 2 * 8] = half_of<T>(in[l]->a[r], h);
                for (int r = 0; r < 2; r++)
                    b[t + h + r * 8][g] = half_of<T>(in[l]->b[r], h);
                for (int r = 0; r < 2; r++)
                    c[g + r * 8][t + h] = in[l]->c[2 * r + h];
            }
        }
        for (int i = 0; i < 16; i++)
            for (int k = 0; k < 16; k++)
                for (int j = 0; j < 8; j++)
                    c[i][j] += a[i][k] * b[k][j];
        for (int l = 0; l < 32; l++)
            for (int h = 0; h < 2; h++)
                for (int r = 0; r < 2; r++)
                    out[l]->c[2 * r + h] = c[l / 4 + r * 8][l % 4 * 2 + h];
    }
};
template <class T> inline void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, SIMT_SITE) {
    MmaIn in{{c[0], c[1], c[2], c[3]}, {a[0], a[1], a[2], a[3]}, {b0, b1}};
    MmaOut o = simt::warp_op<Mma16816<T>, MmaOut>(~0u, in, "mma", file, line);
    memcpy(c, o.c, 16);
}
inline float ex2(float x) { // .ftz
    float y = exp2f(x);
    return y < 0x1p-126f ? 0.0f : y;
}
} // namespace ptx
