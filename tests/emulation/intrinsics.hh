// Device functions of CUDA C that host headers lack, for simt.h's emulation. Included by simt.h.
#pragma once

// ---- synchronisation ---------------------------------------------------------------------------------------
inline void __syncthreads(SIMT_SITE) { simt::bar_sync(0, 0, "__syncthreads", file, line); }
inline void __threadfence() {}
inline void __threadfence_block() {}

namespace simt {
struct SyncOp {
    static void run(const int **, char **, unsigned) {}
};
struct VoteOp {
    static void run(const int **in, unsigned **out, unsigned active) {
        unsigned bits = 0;
        for (int l = 0; l < 32; l++)
            if (active >> l & 1 && *in[l])
                bits |= 1u << l;
        for (int l = 0; l < 32; l++)
            if (out[l])
                *out[l] = bits;
    }
};
enum ShflKind { Idx, Up, Down, Xor };
template <class T> struct ShflIn {
    T v;
    int arg, width;
};
template <class T, ShflKind kind> struct ShflOp {
    static void run(const ShflIn<T> **in, T **out, unsigned active) {
        for (int l = 0; l < 32; l++) {
            if (!(active >> l & 1))
                continue;
            int w = in[l]->width, base = l & ~(w - 1), a = in[l]->arg;
            int src = kind == Idx ? base + (a & (w - 1)) : kind == Up ? l - a : kind == Down ? l + a : l ^ a;
            if (src < base && kind == Up)
                src = l;
            if (src >= base + w && kind != Idx)
                src = l;
            if (active >> src & 1)
                memcpy(static_cast<void *>(out[l]), &in[src]->v, sizeof(T));
            else
                memset(static_cast<void *>(out[l]), 0xff, sizeof(T)); // undefined on the device
        }
    }
};
template <ShflKind kind, class T>
inline T shfl(unsigned mask, T v, int arg, int width, const char *op, const char *file, int line) {
    return warp_op<ShflOp<T, kind>, T>(mask, ShflIn<T>{v, arg, width}, op, file, line);
}
inline unsigned vote(unsigned mask, int p, const char *op, const char *file, int line) {
    return warp_op<VoteOp, unsigned>(mask, p, op, file, line);
}
} // namespace simt

inline void __syncwarp(unsigned mask = ~0u, SIMT_SITE) {
    SIMT_TSAN(__tsan_release(simt::B->sync + 8 * (16 + simt::B->cur->warp));)
    simt::warp_op<simt::SyncOp, char>(mask, 0, "__syncwarp", file, line);
    SIMT_TSAN(__tsan_acquire(simt::B->sync + 8 * (16 + simt::B->cur->warp));)
}
template <class T> inline T __shfl_sync(unsigned m, T v, int src, int width = 32, SIMT_SITE) {
    return simt::shfl<simt::Idx>(m, v, src, width, "__shfl_sync", file, line);
}
template <class T> inline T __shfl_up_sync(unsigned m, T v, unsigned d, int width = 32, SIMT_SITE) {
    return simt::shfl<simt::Up>(m, v, int(d), width, "__shfl_up_sync", file, line);
}
template <class T> inline T __shfl_down_sync(unsigned m, T v, unsigned d, int width = 32, SIMT_SITE) {
    return simt::shfl<simt::Down>(m, v, int(d), width, "__shfl_down_sync", file, line);
}
template <class T> inline T __shfl_xor_sync(unsigned m, T v, int x, int width = 32, SIMT_SITE) {
    return simt::shfl<simt::Xor>(m, v, x, width, "__shfl_xor_sync", file, line);
}
inline unsigned __ballot_sync(unsigned m, int p, SIMT_SITE) { return simt::vote(m, p, "__ballot_sync", file, line); }
inline int __any_sync(unsigned m, int p, SIMT_SITE) { return simt::vote(m, p, "__any_sync", file, line) != 0; }
inline int __all_sync(unsigned m, int p, SIMT_SITE) { return simt::vote(m, !p, "__all_sync", file, line) == 0; }

// ---- atomics -----------------------------------------------------------------------------------------------
namespace simt {
template <class T, class F> inline T rmw(T *p, F f) {
    T old, val;
    __atomic_load(p, &old, __ATOMIC_RELAXED);
    do
        val = f(old);
    while (!__atomic_compare_exchange(p, &old, &val, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
    return old;
}
template <class T> using Id = std::common_type_t<T>; // no deduction: atomicAdd(&float, 1)
} // namespace simt
template <class T> inline T atomicAdd(T *p, simt::Id<T> v) {
    return simt::rmw(p, [v](T o) { return T(o + v); });
}
template <class T> inline T atomicSub(T *p, simt::Id<T> v) {
    return simt::rmw(p, [v](T o) { return T(o - v); });
}
template <class T> inline T atomicMax(T *p, simt::Id<T> v) {
    return simt::rmw(p, [v](T o) { return o < v ? v : o; });
}
template <class T> inline T atomicMin(T *p, simt::Id<T> v) {
    return simt::rmw(p, [v](T o) { return v < o ? v : o; });
}
template <class T> inline T atomicAnd(T *p, simt::Id<T> v) {
    return simt::rmw(p, [v](T o) { return T(o & v); });
}
template <class T> inline T atomicOr(T *p, simt::Id<T> v) {
    return simt::rmw(p, [v](T o) { return T(o | v); });
}
template <class T> inline T atomicExch(T *p, simt::Id<T> v) {
    return simt::rmw(p, [v](T) { return v; });
}
template <class T> inline T atomicCAS(T *p, simt::Id<T> expect, simt::Id<T> v) {
    return simt::rmw(p, [=](T o) { return o == expect ? v : o; });
}
inline unsigned atomicInc(unsigned *p, unsigned lim) {
    return simt::rmw(p, [lim](unsigned o) { return o >= lim ? 0u : o + 1; });
}

// ---- loads, bits, math -------------------------------------------------------------------------------------
template <class T> inline T __ldg(const T *p) { return *p; }
template <class T> inline T __ldcs(const T *p) { return *p; }
template <class T> inline T __ldcg(const T *p) { return *p; }
template <class T> inline void __stcs(T *p, simt::Id<T> v) { *p = v; }
template <class T> inline void __stcg(T *p, simt::Id<T> v) { *p = v; }
template <class To, class From> inline To simt_bits(From v) {
    To r;
    static_assert(sizeof(To) == sizeof(From));
    memcpy(&r, &v, sizeof r);
    return r;
}
inline int __float_as_int(float v) { return simt_bits<int>(v); }
inline unsigned __float_as_uint(float v) { return simt_bits<unsigned>(v); }
inline float __int_as_float(int v) { return simt_bits<float>(v); }
inline float __uint_as_float(unsigned v) { return simt_bits<float>(v); }
inline int __popc(unsigned v) { return __builtin_popcount(v); }
inline int __clz(int v) { return v ? __builtin_clz(unsigned(v)) : 32; }
inline int __ffs(int v) { return __builtin_ffs(v); }
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned(uint64_t(a) * b >> 32); }
inline float __expf(float v) { return expf(v); }
inline float __exp2f(float v) { return exp2f(v); }
inline float __logf(float v) { return logf(v); }
inline float __log2f(float v) { return log2f(v); }
inline float __sinf(float v) { return sinf(v); }
inline float __cosf(float v) { return cosf(v); }
inline void __sincosf(float v, float *s, float *c) { *s = sinf(v), *c = cosf(v); }
inline float __powf(float a, float b) { return powf(a, b); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __frcp_rn(float v) { return 1.0f / v; }
inline float __saturatef(float v) { return v < 0 ? 0.0f : v > 1 ? 1.0f : v; }
inline float rsqrtf(float v) { return 1.0f / sqrtf(v); }
template <class T> inline std::enable_if_t<std::is_arithmetic_v<T>, T> min(T a, T b) { return b < a ? b : a; }
template <class T> inline std::enable_if_t<std::is_arithmetic_v<T>, T> max(T a, T b) { return a < b ? b : a; }
inline __nv_bfloat16 __hfma(__nv_bfloat16 a, __nv_bfloat16 b, __nv_bfloat16 c) {
    return __float2bfloat16(fmaf(float(a), float(b), float(c)));
}
inline __nv_bfloat162 __hfma2(__nv_bfloat162 a, __nv_bfloat162 b, __nv_bfloat162 c) {
    return {__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)};
}

// Never contracted: each rounds once.
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fsqrt_rn(float a) { return sqrtf(a); }
inline float __frsqrt_rn(float a) { return float(1.0 / sqrt(double(a))); }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dsub_rn(double a, double b) { return a - b; }
inline double __ddiv_rn(double a, double b) { return a / b; }
inline double __dsqrt_rn(double a) { return sqrt(a); }
inline double __fma_rn(double a, double b, double c) { return fma(a, b, c); }
inline long long __double_as_longlong(double v) { return simt_bits<long long>(v); }
inline double __longlong_as_double(long long v) { return simt_bits<double>(v); }
inline int __popcll(unsigned long long v) { return __builtin_popcountll(v); }
inline int __clzll(long long v) { return v ? __builtin_clzll(static_cast<unsigned long long>(v)) : 64; }
inline int __ffsll(long long v) { return __builtin_ffsll(v); }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return static_cast<unsigned long long>(static_cast<unsigned __int128>(a) * b >> 64);
}
inline unsigned __brev(unsigned v) {
    unsigned r = 0;
    for (int i = 0; i < 32; i++)
        r |= (v >> i & 1) << (31 - i);
    return r;
}

namespace simt {
enum ReduceKind { Add, Min, Max, And, Or, Xor_ };
template <class T, ReduceKind kind> struct ReduceOp {
    static void run(const T **in, T **out, unsigned active) {
        T r = *in[__builtin_ctz(active)];
        for (unsigned m = active & (active - 1); m; m &= m - 1) {
            T v = *in[__builtin_ctz(m)];
            r = kind == Add   ? T(r + v)
                : kind == Min ? (v < r ? v : r)
                : kind == Max ? (v > r ? v : r)
                : kind == And ? T(r & v)
                : kind == Or  ? T(r | v)
                              : T(r ^ v);
        }
        for (int l = 0; l < 32; l++)
            if (out[l])
                *out[l] = r;
    }
};
template <class T> struct MatchOp {
    static void run(const T **in, unsigned **out, unsigned active) {
        for (int l = 0; l < 32; l++) {
            if (!out[l])
                continue;
            *out[l] = 0;
            for (int k = 0; k < 32; k++)
                if ((active >> k & 1) && *in[k] == *in[l])
                    *out[l] |= 1u << k;
        }
    }
};
template <ReduceKind kind, class T> inline T reduce(unsigned mask, T v, const char *op, const char *file, int line) {
    static_assert(std::is_integral_v<T> && sizeof(T) == 4, "as on the device");
    return warp_op<ReduceOp<T, kind>, T>(mask, v, op, file, line);
}
} // namespace simt
template <class T> inline T __reduce_add_sync(unsigned m, T v, SIMT_SITE) {
    return simt::reduce<simt::Add>(m, v, "__reduce_add_sync", file, line);
}
template <class T> inline T __reduce_min_sync(unsigned m, T v, SIMT_SITE) {
    return simt::reduce<simt::Min>(m, v, "__reduce_min_sync", file, line);
}
template <class T> inline T __reduce_max_sync(unsigned m, T v, SIMT_SITE) {
    return simt::reduce<simt::Max>(m, v, "__reduce_max_sync", file, line);
}
template <class T> inline T __reduce_and_sync(unsigned m, T v, SIMT_SITE) {
    return simt::reduce<simt::And>(m, v, "__reduce_and_sync", file, line);
}
template <class T> inline T __reduce_or_sync(unsigned m, T v, SIMT_SITE) {
    return simt::reduce<simt::Or>(m, v, "__reduce_or_sync", file, line);
}
template <class T> inline T __reduce_xor_sync(unsigned m, T v, SIMT_SITE) {
    return simt::reduce<simt::Xor_>(m, v, "__reduce_xor_sync", file, line);
}
template <class T> inline unsigned __match_any_sync(unsigned m, T v, SIMT_SITE) {
    return simt::warp_op<simt::MatchOp<T>, unsigned>(m, v, "__match_any_sync", file, line);
}
inline unsigned __activemask() { return simt::B->warp[size_t(simt::B->cur->warp)].alive; }
