// simt.h: one CUDA C source, two compilers.
//   nvcc                  real kernels; simt::launch() is <<<...>>>.
//   g++ -DSIMT_EMULATE    every CUDA thread of a block is a fiber on one OS thread. Barriers and warp
//                         collectives are the only switch points, so a run is deterministic for one Options.
// Kernels use SHARED()/DYN_SHARED() for shared memory and simt::launch() in place of <<<>>>; the rest is CUDA C.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <cmath>
#include <cstdint>
#include <cstring>

#include <sys/mman.h>
#include <atomic>
#include <cmath>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>
#if !defined(__x86_64__) || defined(SIMT_UCONTEXT)
#define SIMT_USE_UCONTEXT 1
#include <ucontext.h>
#endif
#ifdef __has_feature // clang
#if __has_feature(address_sanitizer)
#define __SANITIZE_ADDRESS__ 1
#endif
#if __has_feature(thread_sanitizer)
#define __SANITIZE_THREAD__ 1
#endif
#endif
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define SIMT_ASAN(...) __VA_ARGS__
#else
#define SIMT_ASAN(...)
#endif
#ifdef __SANITIZE_THREAD__
#include <sanitizer/tsan_interface.h>
extern "C" void __tsan_ignore_thread_begin();
extern "C" void __tsan_ignore_thread_end();
extern "C" void __tsan_read_range(const void *, unsigned long);
extern "C" void __tsan_write_range(void *, unsigned long);
#define SIMT_TSAN(...) __VA_ARGS__
#else
#define SIMT_TSAN(...)
#endif
// Code that switches stacks must not be instrumented (TSan keeps a shadow call stack per fiber).
#define SIMT_RAW __attribute__((noinline, no_sanitize("thread")))

#undef __shared__
#define __shared__ static thread_local // works, but SHARED() is better: poisoned per block, red zones under ASan
#undef __launch_bounds__
#define __launch_bounds__(...)
#define SHARED(T, name, ...)                                                                                           \
    static char name##_key_;                                                                                           \
    typedef T name##_type_ __VA_ARGS__;                                                                                \
    name##_type_ &name = *static_cast<name##_type_ *>(simt::shared_var(&name##_key_, sizeof(name##_type_)))
#define DYN_SHARED(T, name) T *const name = static_cast<T *>(simt::dyn_shared())
#define SIMT_SITE const char *file = __builtin_FILE(), int line = __builtin_LINE()

inline thread_local uint3 threadIdx{}, blockIdx{};
inline thread_local dim3 blockDim, gridDim;
constexpr int warpSize = 32;

namespace simt {
struct Error : std::runtime_error {
    using std::runtime_error::runtime_error;
};
struct Abandoned {}; // unwinds the other fibers of a block that failed

// order: 0 forward, 1 reverse, n > 1 random with seed n. threads: OS threads that share the blocks of a grid.
struct Options {
    unsigned order = 0;
    int threads = 1;
    size_t stack = 64 << 10;
};
struct Stats {
    long switches = 0, collectives = 0, ldmatrix = 0, ldmatrix_conflicts = 0;
};
inline Stats &stats() {
    static Stats s;
    return s;
} // totals of all launches
inline Options &options() {
    static Options o = [] {
        Options v;
        if (const char *e = getenv("SIMT_ORDER"))
            v.order = unsigned(atoi(e));
        if (const char *e = getenv("SIMT_THREADS"))
            v.threads = atoi(e);
        SIMT_ASAN(v.stack = 256 << 10;) SIMT_TSAN(v.stack = 256 << 10;) return v;
    }();
    return o;
}

// ---- context switch: 6 callee-saved registers and the stack pointer ----------------------------------------
#ifdef SIMT_USE_UCONTEXT
struct Context {
    ucontext_t uc;
    void init(char *stack, size_t size, void (*fn)()) {
        getcontext(&uc);
        uc.uc_stack.ss_sp = stack;
        uc.uc_stack.ss_size = size;
        uc.uc_link = nullptr;
        makecontext(&uc, fn, 0);
    }
};
SIMT_RAW inline void swap_context(Context &from, Context &to) { swapcontext(&from.uc, &to.uc); }
#else
extern "C" __attribute__((naked, noinline, no_sanitize("thread", "address", "undefined"))) inline void
simt_swap(void ** /*save*/, void * /*to*/) {
    asm("pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15\n\t"
        "movq %rsp, (%rdi); movq %rsi, %rsp\n\t"
        "popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp; ret");
}
struct Context {
    void *sp;
    void init(char *stack, size_t size, void (*fn)()) {
        void **top = reinterpret_cast<void **>(stack + size); // 16-byte aligned
        top[-1] = nullptr;
        top[-2] = reinterpret_cast<void *>(fn);
        sp = top - 8;
    }
};
SIMT_RAW inline void swap_context(Context &from, Context &to) { simt_swap(&from.sp, to.sp); }
#endif

// The emulator's own memory accesses are no part of the kernel: hide them from TSan.
struct Quiet {
    Quiet() { SIMT_TSAN(__tsan_ignore_thread_begin();) }
    ~Quiet() { SIMT_TSAN(__tsan_ignore_thread_end();) }
};

enum class State : char { Ready, Barrier, Warp, Done };
struct Fiber;
using Combine = void (*)(Fiber **lane, unsigned active); // runs once, in the last lane that arrives
struct Copy {
    void *dst;
    const void *src;
    int bytes, src_bytes;
};
struct Fiber {
    Context ctx;
    char *stack = nullptr;
    uint3 tid;
    int lane, warp, bar;
    State state;
    const char *op, *file; // where it waits
    int line;
    unsigned mask;
    const void *in; // collective operands, in the lane's own frame
    void *out;
    Combine combine;
    std::vector<Copy> copies;   // cp.async: not yet waited for
    std::vector<size_t> groups; // copies in each committed group
    size_t open = 0;            // copies since the last commit
    void *fake = nullptr, *tsan = nullptr;
};
struct Warp {
    Fiber *lane[32];
    unsigned alive, waiting;
};
struct Bar {
    int arrived, expected;
};
struct SharedVar {
    const void *key;
    char *ptr;
    size_t size;
};

struct Block {
    std::vector<Fiber> fiber;
    std::vector<Warp> warp;
    std::vector<int> order;        // of the warps
    std::vector<SharedVar> shared; // [0] is the dynamic part
    Bar bar[16];
    int n = 0, alive = 0;
    Context main;
    Fiber *cur = nullptr;
    void (*fn)(void *) = nullptr;
    void *arg = nullptr, *main_tsan = nullptr;
    const void *main_stack = nullptr;
    size_t main_size = 0, stack_size = 0;
    char *stacks = nullptr, *sync = nullptr, *sync_begin = nullptr,
         *sync_end = nullptr; // sync: where TSan's happens-before edges hang
    std::string error;
    uint64_t rng = 1;
    Stats stats;
    uint32_t rand() {
        rng ^= rng << 13;
        rng ^= rng >> 7;
        rng ^= rng << 17;
        return uint32_t(rng >> 32);
    }
    void free_stacks() {
        if (stacks)
            munmap(stacks, fiber.size() * (stack_size + 4096));
    }
    ~Block() {
        free_stacks();
        SIMT_TSAN(for (Fiber &f : fiber) if (f.tsan) __tsan_destroy_fiber(f.tsan);)
    }
    void grow(int threads, size_t size) {
        n = threads;
        order.resize(size_t(n + 31) / 32);
        if (size_t(n) <= fiber.size() && size == stack_size)
            return;
        free_stacks();
        stack_size = size;
        fiber.resize(size_t(n)), warp.resize(size_t(n + 31) / 32);
        stacks = static_cast<char *>(mmap(nullptr, fiber.size() * (size + 4096), PROT_READ | PROT_WRITE,
                                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
        for (size_t i = 0; i < fiber.size(); i++) { // a guard page below each stack
            mprotect(stacks + i * (size + 4096), 4096, PROT_NONE);
            fiber[i].stack = stacks + i * (size + 4096) + 4096;
        }
    }
};
inline thread_local Block *B = nullptr;

SIMT_RAW inline void yield() {
    Fiber &f = *B->cur;
    SIMT_ASAN(__sanitizer_start_switch_fiber(f.state == State::Done ? nullptr : &f.fake, B->main_stack, B->main_size);)
    SIMT_TSAN(__tsan_switch_to_fiber(B->main_tsan, __tsan_switch_to_fiber_no_sync);)
    swap_context(f.ctx, B->main);
    SIMT_ASAN(__sanitizer_finish_switch_fiber(f.fake, &B->main_stack, &B->main_size);)
    if (!B->error.empty())
        throw Abandoned();
}
SIMT_RAW inline void resume(Fiber &f) {
    B->cur = &f;
    threadIdx = f.tid;
    SIMT_ASAN(void *fake; __sanitizer_start_switch_fiber(&fake, f.stack, B->stack_size);)
    SIMT_TSAN(__tsan_switch_to_fiber(f.tsan, __tsan_switch_to_fiber_no_sync);)
    swap_context(B->main, f.ctx);
    SIMT_ASAN(__sanitizer_finish_switch_fiber(fake, nullptr, nullptr);)
}

inline std::string format(const char *fmt, ...) {
    char buf[512];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(buf, sizeof buf, fmt, ap);
    va_end(ap);
    return buf;
}
inline std::string waits_at(const Fiber &f) {
    return f.state == State::Warp ? format("%s %s:%d mask %08x", f.op, f.file, f.line, f.mask)
                                  : format("%s %s:%d", f.op, f.file, f.line);
}
[[noreturn]] inline void fail(const std::string &what) { // on a fiber; launch() throws it on
    throw Error(format("block (%u,%u,%u) thread (%u,%u,%u): ", blockIdx.x, blockIdx.y, blockIdx.z, threadIdx.x,
                       threadIdx.y, threadIdx.z) +
                what);
}

// ---- barriers and warp collectives -------------------------------------------------------------------------
inline void release_barrier(int id) { // all expected threads have arrived
    const Fiber *first = nullptr;
    for (int i = 0; i < B->n; i++) {
        Fiber &f = B->fiber[size_t(i)];
        if (f.state != State::Barrier || f.bar != id)
            continue;
        if (!first)
            first = &f;
        else if (!B->bar[id].expected && (f.line != first->line || strcmp(f.file, first->file))) // __syncthreads
            fail(format("divergent barrier: thread %ld at ", first - &B->fiber[0]) + waits_at(*first) +
                 format(", thread %d at ", i) + waits_at(f));
        f.state = State::Ready;
    }
    B->bar[id] = {0, 0};
}
inline void bar_sync(int id, int count, const char *op, const char *file, int line) { // count 0: all live threads
    Quiet q;
    Fiber &f = *B->cur;
    f.op = op, f.file = file, f.line = line, f.bar = id, f.state = State::Barrier;
    SIMT_TSAN(__tsan_release(B->sync + 8 * id);)
    Bar &b = B->bar[id];
    if (b.arrived++ && b.expected != count)
        fail(format("barrier %d: thread counts differ", id));
    b.expected = count;
    if (b.arrived == (count ? count : B->alive))
        release_barrier(id);
    else
        yield();
    SIMT_TSAN(__tsan_acquire(B->sync + 8 * id);)
}
inline void complete_warp(Warp &w, unsigned mask, unsigned active) {
    const Fiber *first = w.lane[__builtin_ctz(active)];
    for (unsigned m = active; m; m &= m - 1) {
        Fiber *f = w.lane[__builtin_ctz(m)];
        if (f->mask != mask || f->combine != first->combine || f->line != first->line || strcmp(f->file, first->file))
            fail(format("mismatched warp collective, warp %d: lane %d at ", first->warp, first->lane) +
                 waits_at(*first) + format(", lane %d at ", f->lane) + waits_at(*f));
    }
    for (unsigned m = active; m; m &= m - 1)
        w.lane[__builtin_ctz(m)]->state = State::Ready;
    first->combine(w.lane, active);
    w.waiting &= ~active;
    B->stats.collectives++;
}
inline void collective(Combine combine, unsigned mask, const void *in, void *out, const char *op, const char *file,
                       int line) {
    Quiet q;
    Fiber &f = *B->cur;
    Warp &w = B->warp[size_t(f.warp)];
    f.op = op, f.file = file, f.line = line, f.mask = mask, f.in = in, f.out = out, f.combine = combine,
    f.state = State::Warp;
    if (!(mask >> f.lane & 1))
        fail("calling lane is not in its own mask: " + waits_at(f));
    w.waiting |= 1u << f.lane;
    if ((w.waiting & mask & w.alive) == (mask & w.alive))
        complete_warp(w, mask, mask & w.alive);
    else
        yield();
}
// A collective from a pure function of all lanes: Op::run(const In* in[32], Out* out[32], active mask).
template <class Op, class Out, class In>
inline Out warp_op(unsigned mask, const In &in, const char *op, const char *file, int line) {
    Out out;
    collective(
        [](Fiber **lane, unsigned active) {
            const In *i[32];
            Out *o[32];
            for (int l = 0; l < 32; l++) {
                bool on = active >> l & 1;
                i[l] = on ? static_cast<const In *>(lane[l]->in) : nullptr;
                o[l] = on ? static_cast<Out *>(lane[l]->out) : nullptr;
            }
            Op::run(i, o, active);
        },
        mask, &in, &out, op, file, line);
    return out;
}

// ---- shared memory -----------------------------------------------------------------------------------------
inline SharedVar &add_shared(const void *key, size_t size) {
    char *p = static_cast<char *>(aligned_alloc(128, (size + 127) / 128 * 128));
    memset(p, 0xff, size); // NaN: reading what nobody wrote shows
    SIMT_ASAN(__asan_poison_memory_region(p + size, (128 - size % 128) % 128);)
    B->shared.push_back({key, p, size});
    return B->shared.back();
}
inline void *shared_var(const void *key, size_t size) {
    Quiet q;
    for (SharedVar &v : B->shared)
        if (v.key == key)
            return v.ptr;
    return add_shared(key, size).ptr;
}
inline void *dyn_shared() { return B->shared[0].ptr; }
inline bool is_shared(const void *p, size_t n) {
    Quiet q;
    for (SharedVar &v : B->shared)
        if (p >= v.ptr && static_cast<const char *>(p) + n <= v.ptr + v.size)
            return true;
    return false;
}
// cp.async lands as late as the program allows: at the wait. From the issue on the target holds NaN.
inline void cp_async(void *dst, const void *src, int bytes, int src_bytes) {
    if (!is_shared(dst, size_t(bytes)))
        fail("cp.async: target is not in shared memory");
    if ((uintptr_t(dst) | uintptr_t(src)) % uintptr_t(bytes))
        fail("cp.async: misaligned");
    SIMT_TSAN(__tsan_write_range(dst, size_t(bytes));) // GCC expands short memset and memcpy uninstrumented
    memset(dst, 0xff, size_t(bytes));
    Quiet q;
    B->cur->copies.push_back({dst, src, bytes, src_bytes});
    B->cur->open++;
}
inline void cp_async_commit() {
    Quiet q;
    B->cur->groups.push_back(B->cur->open);
    B->cur->open = 0;
}
inline void cp_async_wait(size_t left) {
    Fiber &f = *B->cur;
    while (f.groups.size() > left) {
        for (size_t i = 0; i < f.groups[0]; i++) {
            Copy c = f.copies[i];
            SIMT_TSAN(__tsan_write_range(c.dst, size_t(c.bytes)); __tsan_read_range(c.src, size_t(c.src_bytes));)
            memcpy(c.dst, c.src, size_t(c.src_bytes));
            memset(static_cast<char *>(c.dst) + c.src_bytes, 0, size_t(c.bytes - c.src_bytes));
        }
        f.copies.erase(f.copies.begin(), f.copies.begin() + long(f.groups[0]));
        f.groups.erase(f.groups.begin());
    }
}

// ---- scheduler ---------------------------------------------------------------------------------------------
inline void exit_thread(Fiber &f) {
    Warp &w = B->warp[size_t(f.warp)];
    w.alive &= ~(1u << f.lane);
    B->alive--;
    if (!B->error.empty())
        return;
    for (unsigned m = w.waiting; m; m &= m - 1) { // did a collective wait for this lane alone?
        unsigned k = w.lane[__builtin_ctz(m)]->mask;
        if ((w.waiting & k & w.alive) == (k & w.alive)) {
            complete_warp(w, k, k & w.alive);
            break;
        }
    }
    if (B->bar[0].arrived && !B->bar[0].expected && B->bar[0].arrived == B->alive)
        release_barrier(0);
}
SIMT_RAW inline void fiber_main() {
    SIMT_ASAN(__sanitizer_finish_switch_fiber(nullptr, &B->main_stack, &B->main_size);)
    Fiber &f = *B->cur;
    SIMT_TSAN(__tsan_acquire(B->sync_begin);) // the host came before
    try {
        if (B->error.empty())
            B->fn(B->arg);
        f.state = State::Done;
        Quiet q;
        exit_thread(f);
    } catch (const Abandoned &) {
    } catch (const std::exception &e) {
        B->error = e.what();
    }
    f.state = State::Done;
    SIMT_TSAN(__tsan_release(B->sync_end);)
    yield();
    abort();
}
inline std::string deadlock() {
    std::string s = format("deadlock in block (%u,%u,%u): %d of %d threads exited", blockIdx.x, blockIdx.y, blockIdx.z,
                           B->n - B->alive, B->n);
    std::vector<std::pair<std::string, std::pair<int, int>>> at;
    for (int i = 0; i < B->n; i++) {
        if (B->fiber[size_t(i)].state == State::Done)
            continue;
        std::string w = waits_at(B->fiber[size_t(i)]);
        size_t k = 0;
        while (k < at.size() && at[k].first != w)
            k++;
        if (k == at.size())
            at.push_back({w, {0, i}});
        at[k].second.first++;
    }
    for (auto &a : at)
        s += format("; %d wait at %s (first: thread %d)", a.second.first, a.first.c_str(), a.second.second);
    return s;
}
SIMT_RAW inline void run_block(Block &b, dim3 idx, dim3 dim, size_t smem, unsigned order) {
    blockIdx = {idx.x, idx.y, idx.z};
    b.alive = b.n, b.rng = 0x9e3779b97f4a7c15ull * (order + 1) + idx.x + 77 * idx.y + 7777 * idx.z;
    for (Bar &x : b.bar)
        x = {0, 0};
    SIMT_TSAN(b.sync = static_cast<char *>(malloc(8 * 64)); b.main_tsan = __tsan_get_current_fiber();)
    add_shared(nullptr, smem);
    for (int i = 0; i < b.n; i++) {
        Fiber &f = b.fiber[size_t(i)];
        unsigned u = unsigned(i);
        f.tid = {u % dim.x, u / dim.x % dim.y, u / dim.x / dim.y};
        f.lane = i % 32, f.warp = i / 32, f.state = State::Ready;
        f.copies.clear(), f.groups.clear(), f.open = 0;
        Warp &w = b.warp[size_t(f.warp)];
        if (!f.lane)
            w.alive = w.waiting = 0;
        w.alive |= 1u << f.lane, w.lane[f.lane] = &f;
        f.ctx.init(f.stack, b.stack_size, fiber_main);
        SIMT_TSAN(if (!f.tsan) f.tsan = __tsan_create_fiber(0);)
    }
    const int warps = int(b.order.size());
    for (int i = 0; i < warps; i++)
        b.order[size_t(i)] = order == 1 ? warps - 1 - i : i;
    while (b.alive && b.error.empty()) {
        if (order > 1)
            for (int i = warps - 1; i > 0; i--)
                std::swap(b.order[size_t(i)], b.order[b.rand() % unsigned(i + 1)]);
        bool ran = false;
        for (int w :
             b.order) { // a warp runs until it waits for another one: warps drift as far apart as barriers let them
            const int flip = order > 1 ? int(b.rand() % 32) : order == 1 ? 31 : 0; // permutes the lanes
            for (bool again = true; again && b.error.empty();) {
                again = false;
                for (int i = 0; i < 32 && b.error.empty(); i++) {
                    const int t = w * 32 + (i ^ flip);
                    if (t >= b.n || b.fiber[size_t(t)].state != State::Ready)
                        continue;
                    again = ran = true, b.stats.switches++;
                    resume(b.fiber[size_t(t)]);
                }
            }
        }
        if (!ran && b.alive)
            b.error = deadlock();
    }
    for (int i = 0; i < b.n && !b.error.empty(); i++)
        if (b.fiber[size_t(i)].state != State::Done)
            resume(b.fiber[size_t(i)]);
    SIMT_TSAN(free(b.sync);)
    for (SharedVar &v : b.shared) {
        SIMT_ASAN(__asan_unpoison_memory_region(v.ptr, (v.size + 127) / 128 * 128);) free(v.ptr);
    }
    b.shared.clear();
}
inline void run_grid(void (*fn)(void *), void *arg, dim3 grid, dim3 dim, size_t smem) {
    if (B)
        throw Error("launch inside a kernel");
    const int n = int(dim.x * dim.y * dim.z);
    const long blocks = long(grid.x) * grid.y * grid.z;
    if (n < 1 || n > 1024 || blocks < 1 || grid.y > 65535 || grid.z > 65535 || smem > 227 * 1024)
        throw Error(format("invalid launch: grid (%u,%u,%u) block (%u,%u,%u) smem %zu", grid.x, grid.y, grid.z, dim.x,
                           dim.y, dim.z, smem));
    std::atomic<long> next{0};
    std::mutex mutex;
    std::string error;
    char sync[2];
    SIMT_TSAN(__tsan_release(&sync[0]);)
    auto work = [&] {
        Quiet q;
        static thread_local Block pool; // stacks are kept from launch to launch
        Block &b = pool;
        b.grow(n, options().stack);
        B = &b, b.fn = fn, b.arg = arg, b.sync_begin = &sync[0], b.sync_end = &sync[1], b.error.clear();
        blockDim = dim, gridDim = grid;
        for (long i; (i = next++) < blocks && b.error.empty();)
            run_block(b, dim3(unsigned(i % grid.x), unsigned(i / grid.x % grid.y), unsigned(i / grid.x / grid.y)), dim,
                      smem, options().order);
        B = nullptr;
        std::lock_guard<std::mutex> lock(mutex);
        stats().switches += b.stats.switches, stats().collectives += b.stats.collectives;
        stats().ldmatrix += b.stats.ldmatrix, stats().ldmatrix_conflicts += b.stats.ldmatrix_conflicts;
        b.stats = {};
        if (error.empty())
            error = b.error;
    };
    const int threads = int(std::min<long>(options().threads, blocks));
    std::vector<std::thread> pool;
    for (int i = 1; i < threads; i++)
        pool.emplace_back(work);
    work();
    for (auto &t : pool)
        t.join();
    SIMT_TSAN(__tsan_acquire(&sync[1]);)
    if (!error.empty())
        throw Error(error);
}
template <class... P, class... A>
inline cudaError_t launch(void (*k)(P...), dim3 grid, dim3 block, size_t smem, cudaStream_t, A... a) {
    struct Call {
        void (*k)(P...);
        std::tuple<P...> args;
    } call{k, std::tuple<P...>(static_cast<P>(a)...)};
    run_grid([](void *c) { std::apply(static_cast<Call *>(c)->k, static_cast<Call *>(c)->args); }, &call, grid, block,
             smem);
    return cudaSuccess;
}
} // namespace simt
#include "tests/emulation/intrinsics.hh"
