/* intrinsics: the device functions of CUDA C that its headers do not define for a host compiler. Part of simt.hh. */
#ifndef PERCH_TESTS_EMULATION_INTRINSICS_HH
#define PERCH_TESTS_EMULATION_INTRINSICS_HH

#include "tests/emulation/simt.hh"

/* ------------------------------------------------------------------------------------------------ synchronisation */

inline void __syncthreads(SIMT_SITE) { simt::barrier(false, "__syncthreads", file, line); }
inline int __syncthreads_count(int p, SIMT_SITE) {
    return static_cast<int>(simt::barrier(p != 0, "__syncthreads_count", file, line));
}
inline int __syncthreads_or(int p, SIMT_SITE) { return simt::barrier(p != 0, "__syncthreads_or", file, line) > 0; }
inline int __syncthreads_and(int p, SIMT_SITE) { return simt::barrier(p == 0, "__syncthreads_and", file, line) == 0; }
inline void __syncwarp(unsigned mask = ~0u, SIMT_SITE) { simt::sync_warp(mask, file, line); }
inline void __threadfence() { simt::fence(); }
inline void __threadfence_block() { simt::fence(); }

/* ------------------------------------------------------------------------------------------------ warp collectives */

namespace simt {

struct VoteOp {
    static void run(const bool *const *in, unsigned *const *out, unsigned active) {
        unsigned bits = 0;
        for (unsigned lane = 0; lane < 32; lane++) {
            bits |= static_cast<unsigned>((active >> lane & 1) && *in[lane]) << lane;
        }
        for (unsigned lane = 0; lane < 32; lane++) {
            if (out[lane]) {
                *out[lane] = bits;
            }
        }
    }
};
inline unsigned vote(unsigned mask, bool p, const char *op, const char *file, int line) {
    return warp_op<VoteOp, unsigned>(mask, p, op, file, line);
}

enum class Shuffle { idx, up, down, butterfly };
template <class T> struct ShuffleIn {
    T value;
    int argument, width;
};
template <class T, Shuffle kind> struct ShuffleOp {
    static void run(const ShuffleIn<T> *const *in, T *const *out, unsigned active) {
        for (int lane = 0; lane < 32; lane++) {
            if (!(active >> lane & 1)) {
                continue;
            }
            const int width = in[lane]->width, base = lane & ~(width - 1), a = in[lane]->argument;
            int from = kind == Shuffle::idx    ? base + (a & (width - 1))
                       : kind == Shuffle::up   ? lane - a
                       : kind == Shuffle::down ? lane + a
                                               : lane ^ a;
            if ((kind == Shuffle::up && from < base) || (kind != Shuffle::idx && from >= base + width)) {
                from = lane;
            }
            if (active >> from & 1) {
                memcpy(static_cast<void *>(out[lane]), &in[from]->value, sizeof(T));
            } else { /* undefined on a GPU */
                memset(static_cast<void *>(out[lane]), 0xff, sizeof(T));
            }
        }
    }
};
template <Shuffle kind, class T>
inline T shuffle(unsigned mask, T value, int argument, int width, const char *op, const char *file, int line) {
    if (width < 1 || width > 32 || (width & (width - 1))) {
        fail("%s %s:%d: a width of %d", op, file, line, width);
    }
    return warp_op<ShuffleOp<T, kind>, T>(mask, ShuffleIn<T>{value, argument, width}, op, file, line);
}

enum class Reduce { add, min, max, bit_and, bit_or, bit_xor };
template <class T, Reduce kind> struct ReduceOp {
    static void run(const T *const *in, T *const *out, unsigned active) {
        T r = *in[__builtin_ctz(active)];
        for (unsigned m = active & (active - 1); m; m &= m - 1) {
            const T v = *in[__builtin_ctz(m)];
            switch (kind) {
            case Reduce::add:
                r = static_cast<T>(static_cast<unsigned>(r) + static_cast<unsigned>(v));
                break;
            case Reduce::min:
                r = v < r ? v : r;
                break;
            case Reduce::max:
                r = v > r ? v : r;
                break;
            case Reduce::bit_and:
                r &= v;
                break;
            case Reduce::bit_or:
                r |= v;
                break;
            case Reduce::bit_xor:
                r ^= v;
                break;
            }
        }
        for (int lane = 0; lane < 32; lane++) {
            if (out[lane]) {
                *out[lane] = r;
            }
        }
    }
};
template <Reduce kind, class T> inline T reduce(unsigned mask, T value, const char *op, const char *file, int line) {
    static_assert(std::is_same_v<T, int> || std::is_same_v<T, unsigned>, "as on the device");
    return warp_op<ReduceOp<T, kind>, T>(mask, value, op, file, line);
}

template <class T> struct MatchOp {
    static void run(const T *const *in, unsigned *const *out, unsigned active) {
        for (unsigned lane = 0; lane < 32; lane++) {
            if (!out[lane]) {
                continue;
            }
            unsigned same = 0;
            for (unsigned other = 0; other < 32; other++) {
                same |= static_cast<unsigned>((active >> other & 1) && memcmp(in[other], in[lane], sizeof(T)) == 0)
                        << other;
            }
            *out[lane] = same;
        }
    }
};

} // namespace simt

#define SIMT_SHUFFLE(name, kind, type)                                                                                 \
    template <class T> inline T name(unsigned mask, T value, type argument, int width = 32, SIMT_SITE) {               \
        return simt::shuffle<simt::Shuffle::kind>(mask, value, static_cast<int>(argument), width, #name, file, line);  \
    }
SIMT_SHUFFLE(__shfl_sync, idx, int)
SIMT_SHUFFLE(__shfl_up_sync, up, unsigned)
SIMT_SHUFFLE(__shfl_down_sync, down, unsigned)
SIMT_SHUFFLE(__shfl_xor_sync, butterfly, int)
#undef SIMT_SHUFFLE

#define SIMT_REDUCE(name, kind)                                                                                        \
    template <class T> inline T name(unsigned mask, T value, SIMT_SITE) {                                              \
        return simt::reduce<simt::Reduce::kind>(mask, value, #name, file, line);                                       \
    }
SIMT_REDUCE(__reduce_add_sync, add)
SIMT_REDUCE(__reduce_min_sync, min)
SIMT_REDUCE(__reduce_max_sync, max)
SIMT_REDUCE(__reduce_and_sync, bit_and)
SIMT_REDUCE(__reduce_or_sync, bit_or)
SIMT_REDUCE(__reduce_xor_sync, bit_xor)
#undef SIMT_REDUCE

inline unsigned __ballot_sync(unsigned mask, int p, SIMT_SITE) {
    return simt::vote(mask, p != 0, "__ballot_sync", file, line);
}
inline int __any_sync(unsigned mask, int p, SIMT_SITE) {
    return simt::vote(mask, p != 0, "__any_sync", file, line) != 0;
}
inline int __all_sync(unsigned mask, int p, SIMT_SITE) {
    return simt::vote(mask, p == 0, "__all_sync", file, line) == 0;
}
template <class T> inline unsigned __match_any_sync(unsigned mask, T value, SIMT_SITE) {
    return simt::warp_op<simt::MatchOp<T>, unsigned>(mask, value, "__match_any_sync", file, line);
}

/* ------------------------------------------------------------------------------------------------------- atomics */

namespace simt {

template <class T, class F> inline T update(T *p, F change) {
    T old, value;
#if SIMT_TSAN
    before_atomic(p);
#endif
    __atomic_load(p, &old, __ATOMIC_RELAXED);
    do {
        value = change(old);
    } while (!__atomic_compare_exchange(p, &old, &value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
#if SIMT_TSAN
    after_atomic(p);
#endif
    return old;
}
template <class T> using Same = std::common_type_t<T>; /* is not deduced: atomicAdd(&count, 1) */

} // namespace simt

#define SIMT_ATOMIC(name, expression)                                                                                  \
    template <class T> inline T name(T *p, simt::Same<T> v) {                                                          \
        return simt::update(p, [v](T old) { return static_cast<T>(expression); });                                     \
    }
SIMT_ATOMIC(atomicAdd, old + v)
SIMT_ATOMIC(atomicSub, old - v)
SIMT_ATOMIC(atomicMax, old < v ? v : old)
SIMT_ATOMIC(atomicMin, v < old ? v : old)
SIMT_ATOMIC(atomicAnd, old &v)
SIMT_ATOMIC(atomicOr, old | v)
SIMT_ATOMIC(atomicXor, old ^ v)
SIMT_ATOMIC(atomicInc, old >= v ? 0 : old + 1)
#undef SIMT_ATOMIC
template <class T> inline T atomicExch(T *p, simt::Same<T> v) {
    return simt::update(p, [v](T) { return v; });
}
template <class T> inline T atomicCAS(T *p, simt::Same<T> expected, simt::Same<T> v) {
    return simt::update(p, [=](T old) { return old == expected ? v : old; });
}

/* --------------------------------------------------------------------------------------------- loads, bits, numbers */

template <class T> inline T __ldg(const T *p) { return *p; }
template <class T> inline T __ldcs(const T *p) { return *p; }
template <class T> inline T __ldcg(const T *p) { return *p; }
template <class T> inline void __stcs(T *p, simt::Same<T> v) { *p = v; }
template <class T> inline void __stcg(T *p, simt::Same<T> v) { *p = v; }

namespace simt {
template <class To, class From> inline To bits(From v) {
    static_assert(sizeof(To) == sizeof(From), "the same bits");
    To r;
    memcpy(&r, &v, sizeof r);
    return r;
}
} // namespace simt
inline int __float_as_int(float v) { return simt::bits<int>(v); }
inline unsigned __float_as_uint(float v) { return simt::bits<unsigned>(v); }
inline float __int_as_float(int v) { return simt::bits<float>(v); }
inline float __uint_as_float(unsigned v) { return simt::bits<float>(v); }
inline long long __double_as_longlong(double v) { return simt::bits<long long>(v); }
inline double __longlong_as_double(long long v) { return simt::bits<double>(v); }
inline int __popc(unsigned v) { return __builtin_popcount(v); }
inline int __popcll(unsigned long long v) { return __builtin_popcountll(v); }
inline int __clz(int v) { return v ? __builtin_clz(static_cast<unsigned>(v)) : 32; }
inline int __clzll(long long v) { return v ? __builtin_clzll(static_cast<unsigned long long>(v)) : 64; }
inline int __ffs(int v) { return __builtin_ffs(v); }
inline int __ffsll(long long v) { return __builtin_ffsll(v); }
inline unsigned __brev(unsigned v) {
    unsigned r = 0;
    for (unsigned i = 0; i < 32; i++) {
        r |= (v >> i & 1) << (31 - i);
    }
    return r;
}
inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>(static_cast<uint64_t>(a) * b >> 32); }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    __extension__ typedef unsigned __int128 wide;
    return static_cast<unsigned long long>(static_cast<wide>(a) * b >> 64);
}

/* Rounded once each; nothing here is contracted (-ffp-contract=off). */
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float __fsqrt_rn(float v) { return sqrtf(v); }
inline float __frcp_rn(float v) { return 1.0f / v; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dsub_rn(double a, double b) { return a - b; }
inline double __ddiv_rn(double a, double b) { return a / b; }
inline double __dsqrt_rn(double v) { return sqrt(v); }
inline double __fma_rn(double a, double b, double c) { return fma(a, b, c); }
/* 1 / sqrt, rounded once: double has more than twice a float's bits. */
inline float __frsqrt_rn(float v) { return static_cast<float>(1.0 / sqrt(static_cast<double>(v))); }
inline float rsqrtf(float v) { return 1.0f / sqrtf(v); }
inline float __expf(float v) { return expf(v); }
inline float __logf(float v) { return logf(v); }
inline float __log2f(float v) { return log2f(v); }
inline float __powf(float a, float b) { return powf(a, b); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __saturatef(float v) { return v < 0 ? 0.0f : v > 1 ? 1.0f : v; }
inline unsigned long long __double2ull_rz(double v) { return static_cast<unsigned long long>(v); }
inline long long __double2ll_rz(double v) { return static_cast<long long>(v); }
inline double __ull2double_rn(unsigned long long v) { return static_cast<double>(v); }
inline double __ll2double_rn(long long v) { return static_cast<double>(v); }
template <class T> inline std::enable_if_t<std::is_arithmetic_v<T>, T> min(T a, T b) { return b < a ? b : a; }
template <class T> inline std::enable_if_t<std::is_arithmetic_v<T>, T> max(T a, T b) { return a < b ? b : a; }

#endif
