/*
 * simt: CUDA kernels on the CPU. Every thread of a block is a fiber of one OS thread; barriers and warp collectives are the
 * only places where fibers switch, so a run is the same each time for one order of threads. Included before each C++ and .cu
 * file of the emulated backend; what kernels see of it is what kernels/cuda/simt.cuh gives them on a GPU.
 */
#ifndef PERCH_TESTS_EMULATION_SIMT_HH
#define PERCH_TESTS_EMULATION_SIMT_HH

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <initializer_list>
#include <stdexcept>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>

#if defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define SIMT_TSAN 1
#endif
#endif
#ifdef __SANITIZE_THREAD__
#define SIMT_TSAN 1
#endif
#ifndef SIMT_TSAN
#define SIMT_TSAN 0
#endif

/* To nothing: the C++ library's headers have the word in attributes. */
#undef __noinline__
#define __noinline__
#undef __launch_bounds__
#define __launch_bounds__(...)
/* Poisoned for each block and fenced in, which a plain __shared__ could not be: that one does not compile here. */
#undef __shared__
#define SHARED(T, name, ...)                                                                                           \
    static char name##_key;                                                                                            \
    typedef T name##_type __VA_ARGS__;                                                                                 \
    name##_type &name = *static_cast<name##_type *>(simt::shared_variable(&name##_key, sizeof(name##_type)))
#define DYN_SHARED(T, name) T *const name = static_cast<T *>(simt::dynamic_shared())
/* The last parameters of what stands for an instruction: where it is. */
#define SIMT_SITE const char *file = __builtin_FILE(), int line = __builtin_LINE()

/* __thread, since C++'s thread_local goes through a function where the definition is elsewhere. */
extern __thread uint3 threadIdx, blockIdx;
extern __thread dim3 blockDim, gridDim;
constexpr int warpSize = 32;

namespace simt {

struct Error : std::runtime_error {
    using std::runtime_error::runtime_error;
};

struct Options {
    unsigned order;   /* of threads and blocks: 0 forward, 1 backward, n > 1 random with seed n */
    unsigned threads; /* OS threads that share the blocks of a grid */
};
/* What a launch (or a graph's) takes with it when it is queued. PERCH_EMU_ORDER and PERCH_EMU_THREADS set it. */
Options &options();

struct Stats {
    uint64_t switches, collectives;
    uint64_t ldmatrix, ldmatrix_conflicts; /* 8x8 matrices read; rows beyond the first in one 16-byte column of banks */
};
Stats stats(); /* of all grids that have run */

/* --- for instructions (intrinsics.hh, ptx.hh), on a thread of a kernel */

/* The kernel is wrong: ends the grid; the device is lost, as after a fault. */
[[noreturn]] void fail(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* __syncthreads; gives how many threads came with `vote`. */
unsigned barrier(bool vote, const char *op, const char *file, int line);

/* A warp collective: `combine` runs once, when all living lanes of the mask have come to the same place. */
typedef void (*Combine)(const void *const *in, void *const *out, unsigned active);
void collective(Combine combine, unsigned mask, const void *in, void *out, const char *op, const char *file, int line);
void sync_warp(unsigned mask, const char *file, int line);

/* Out from a pure function of all lanes: Op::run(const In *const in[32], Out *const out[32], active mask). */
template <class Op, class Out, class In>
inline Out warp_op(unsigned mask, const In &in, const char *op, const char *file, int line) {
    Out out;
    collective(
        [](const void *const *from, void *const *to, unsigned active) {
            const In *i[32];
            Out *o[32];
            for (int lane = 0; lane < 32; lane++) {
                i[lane] = static_cast<const In *>(from[lane]);
                o[lane] = static_cast<Out *>(to[lane]);
            }
            Op::run(i, o, active);
        },
        mask, &in, &out, op, file, line);
    return out;
}

void *shared_variable(const void *key, size_t bytes);
void *dynamic_shared();
bool is_shared(const void *p, size_t bytes);
void count_ldmatrix(unsigned matrices, unsigned conflicts);

/* cp.async of `bytes`, of which source_bytes are read and the rest is zero. It lands as late as the program allows: at the wait. */
void copy_async(void *to, const void *from, size_t bytes, size_t source_bytes);
void copy_async_commit();
void copy_async_wait(size_t groups_left);

/* Atomics order nothing; with a fence before (after) they publish (see) what other threads did. */
void fence();
void before_atomic(void *p);
void after_atomic(void *p);

/* --- for the host */

struct Kernel {
    const void *function;
    dim3 grid, block;
    size_t shared_bytes;
    std::function<void()> body; /* what one thread does */
};
struct Argument {
    const void *value;
    size_t bytes;
    bool pointer;
};

/* Runs all blocks; throws engine.hh's Fault. `at`: the options as they were when it was queued. */
void run(const Kernel &kernel, const Options &at);

/* Queues a kernel on a stream of the emulated runtime; the launch's status, as cudaGetLastError gives it. */
cudaError_t enqueue(Kernel kernel, cudaStream_t stream, std::initializer_list<Argument> arguments);

template <class... P, class... A>
inline cudaError_t launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
                          A... arguments) {
    const void *function = reinterpret_cast<const void *>(kernel);
    if (shared_bytes > 48 * 1024) {
        cudaError_t e =
            cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
        if (e != cudaSuccess) {
            return e;
        }
    }
    std::tuple<P...> values(static_cast<P>(arguments)...);
    return std::apply(
        [&](const P &...value) {
            return enqueue(
                Kernel{function, grid, block, shared_bytes, [kernel, values] { std::apply(kernel, values); }}, stream,
                {Argument{&value, sizeof value, std::is_pointer_v<P>}...});
        },
        values);
}

} // namespace simt

#include "tests/emulation/intrinsics.hh"

#endif
