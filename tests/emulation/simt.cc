/* The engine beneath simt.hh: threads as fibers, barriers, warps, and the order in which they run. */
#include "tests/emulation/simt.hh"
#include "tests/emulation/block.hh"
#include "tests/emulation/engine.hh"

#include <sys/mman.h>

#include <atomic>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <numeric>
#include <thread>

__thread uint3 threadIdx, blockIdx;
__thread dim3 blockDim, gridDim;

namespace simt {

__thread Block *block;

/* ------------------------------------------------------------------------------------------------ switching */

#ifdef __x86_64__
/* The six registers that a callee saves, and the stack pointer. */
extern "C" __attribute__((naked, noinline, no_sanitize("address", "undefined"))) void simt_switch(void **, void *) {
    asm("pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15\n\t"
        "movq %rsp, (%rdi); movq %rsi, %rsp\n\t"
        "popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp; ret");
}
void Context::start(char *stack, void (*entry)()) {
    void **top = reinterpret_cast<void **>(stack + kStack);
    top[-1] = nullptr; /* where entry would return to */
    top[-2] = reinterpret_cast<void *>(entry);
    sp = top - 8;
}
void Context::change(Context &from, Context &to) { simt_switch(&from.sp, to.sp); }
#else
void Context::start(char *stack, void (*entry)()) {
    getcontext(&uc);
    uc.uc_stack.ss_sp = stack;
    uc.uc_stack.ss_size = kStack;
    uc.uc_link = nullptr;
    makecontext(&uc, entry, 0);
}
void Context::change(Context &from, Context &to) { swapcontext(&from.uc, &to.uc); }
#endif

namespace {

/*
 * ThreadSanitizer knows what the last 255 threads did, no more. So a block's threads share a few of its threads: those of
 * different warps never, those of a warp sometimes; and only the first blocks of a grid have threads of their own.
 */
constexpr uint64_t kFreshBlocks = 2;
[[maybe_unused]] constexpr unsigned kIdentities = 32;

struct Abandoned {}; /* unwinds the other threads of a block that failed */

std::string format_v(const char *format, va_list list) {
    char text[1024];
    vsnprintf(text, sizeof text, format, list);
    return text;
}
__attribute__((format(printf, 1, 2))) std::string text(const char *format, ...) {
    va_list list;
    va_start(list, format);
    std::string s = format_v(format, list);
    va_end(list);
    return s;
}
std::string here() {
    return text("block (%u,%u,%u) thread (%u,%u,%u): ", blockIdx.x, blockIdx.y, blockIdx.z, threadIdx.x, threadIdx.y,
                threadIdx.z);
}
/* Names of the same place are mostly the same string. */
bool differ(const char *a, const char *b) { return a != b && strcmp(a, b) != 0; }
std::string waits_at(const Fiber &f) {
    std::string s = text("%s %s:%d", f.op, f.file, f.line);
    return f.state == State::warp ? s + text(" mask %08x", f.mask) : s;
}

/* -------------------------------------------------------------------------------------------------- scheduler */

/* Back to the block's loop; returns when this thread's turn comes. */
void yield() {
    Fiber &f = *block->current;
    EMU_ASAN(__sanitizer_start_switch_fiber(f.state == State::done ? nullptr : &f.fake_stack, block->main_stack,
                                            block->main_bytes);)
    EMU_TSAN(__tsan_switch_to_fiber(block->main_tsan, __tsan_switch_to_fiber_no_sync);)
    Context::change(f.context, block->main);
    EMU_ASAN(__sanitizer_finish_switch_fiber(f.fake_stack, &block->main_stack, &block->main_bytes);)
    if (!block->error.empty()) {
        throw Abandoned();
    }
}

/* From within a Quiet, which is this thread's alone: others may be the same to ThreadSanitizer. */
void wait_for_others() {
    EMU_TSAN(__tsan_ignore_thread_end();)
    try {
        yield();
    } catch (...) {
        EMU_TSAN(__tsan_ignore_thread_begin();)
        throw;
    }
    EMU_TSAN(__tsan_ignore_thread_begin();)
}

void resume(Fiber &f) {
    Block &b = *block;
    b.current = &f;
    threadIdx = f.index;
    EMU_ASAN(void *fake; __sanitizer_start_switch_fiber(&fake, f.stack, kStack);)
    EMU_TSAN(__tsan_switch_to_fiber(f.tsan, __tsan_switch_to_fiber_no_sync);)
    Context::change(b.main, f.context);
    EMU_ASAN(__sanitizer_finish_switch_fiber(fake, nullptr, nullptr);)
    b.current = nullptr;
}

void release_barrier() {
    Block &b = *block;
    unsigned votes = 0;
    const Fiber *first = nullptr;
    for (unsigned i = 0; i < b.n; i++) {
        Fiber &f = b.fiber[i];
        if (f.state != State::barrier) {
            continue;
        }
        votes += f.vote;
        if (!first) {
            first = &f;
        } else if (f.line != first->line || differ(f.op, first->op) || differ(f.file, first->file)) {
            fail("divergent barrier: thread %td at %s, thread %u at %s", first - &b.fiber[0], waits_at(*first).c_str(),
                 i, waits_at(f).c_str());
        }
    }
    for (unsigned i = 0; i < b.n; i++) {
        if (b.fiber[i].state == State::barrier) {
            b.fiber[i].state = State::ready;
            b.fiber[i].votes = votes;
        }
    }
    b.arrived = 0;
}

void complete_warp(Warp &w, unsigned mask, unsigned active) {
    const Fiber *first = w.lane[__builtin_ctz(active)];
    const void *in[32] = {};
    void *out[32] = {};
    for (unsigned m = active; m; m &= m - 1) {
        Fiber *f = w.lane[__builtin_ctz(m)];
        if (f->mask != mask || f->combine != first->combine || f->line != first->line || differ(f->file, first->file)) {
            fail("mismatched warp collective, warp %u: lane %u at %s, lane %u at %s", first->warp, first->lane,
                 waits_at(*first).c_str(), f->lane, waits_at(*f).c_str());
        }
        in[f->lane] = f->in;
        out[f->lane] = f->out;
    }
    for (unsigned m = active; m; m &= m - 1) {
        w.lane[__builtin_ctz(m)]->state = State::ready;
    }
    first->combine(in, out, active);
    w.waiting &= ~active;
    block->stats.collectives++;
}

void exit_thread(Fiber &f) {
    Block &b = *block;
    Warp &w = b.warp[f.warp];
    w.alive &= ~(1u << f.lane);
    b.alive--;
    if (!b.error.empty()) {
        return;
    }
    for (unsigned m = w.waiting; m; m &= m - 1) { /* did a collective wait for this lane alone? */
        unsigned mask = w.lane[__builtin_ctz(m)]->mask;
        if ((w.waiting & mask & w.alive) == (mask & w.alive)) {
            complete_warp(w, mask, mask & w.alive);
            break;
        }
    }
    if (b.arrived && b.arrived == b.alive) {
        release_barrier();
    }
}

void fiber_main() {
    EMU_ASAN(__sanitizer_finish_switch_fiber(nullptr, &block->main_stack, &block->main_bytes);)
    Fiber &f = *block->current;
    EMU_TSAN(__tsan_acquire(block->entry_edge);)
    try {
        if (block->error.empty()) {
            (*block->body)();
        }
        f.state = State::done;
        Quiet quiet;
        exit_thread(f);
    } catch (const Abandoned &) {
    } catch (const std::exception &e) {
        block->error = e.what();
        block->code = cudaErrorLaunchFailure;
    }
    f.state = State::done;
    EMU_TSAN(__tsan_release(block->exit_edge);)
    yield();
    abort(); /* a thread that is done is not resumed */
}

std::string deadlock() {
    Block &b = *block;
    struct Place {
        std::string at;
        unsigned count, first;
    };
    std::vector<Place> places;
    for (unsigned i = 0; i < b.n; i++) {
        if (b.fiber[i].state == State::done) {
            continue;
        }
        std::string at = waits_at(b.fiber[i]);
        size_t k = 0;
        while (k < places.size() && places[k].at != at) {
            k++;
        }
        if (k == places.size()) {
            places.push_back({at, 0, i});
        }
        places[k].count++;
    }
    std::string s = text("deadlock in block (%u,%u,%u): %u of %u threads exited", blockIdx.x, blockIdx.y, blockIdx.z,
                         b.n - b.alive, b.n);
    for (const Place &p : places) {
        s += text("; %u wait at %s (first: thread %u)", p.count, p.at.c_str(), p.first);
    }
    return s;
}

void run_block(Block &b, dim3 at, dim3 dim, unsigned order, bool fresh) {
    blockIdx = {at.x, at.y, at.z};
    b.random = 0x9e3779b97f4a7c15ull * (order + 1) + at.x + 77 * at.y + 7777 * at.z;
    EMU_TSAN(std::vector<char> edge(8 * (b.order.size() + 1)); b.barrier_edge = edge.data();
             b.main_tsan = __tsan_get_current_fiber();)
    if (fresh) {
        b.renew_threads();
    }
    b.begin(dim);
    const unsigned warps = static_cast<unsigned>(b.order.size());
    for (unsigned i = 0; i < warps; i++) {
        b.order[i] = order == 1 ? warps - 1 - i : i;
    }
    while (b.alive && b.error.empty()) {
        for (unsigned i = warps - 1; order > 1 && i > 0; i--) {
            std::swap(b.order[i], b.order[b.rand() % (i + 1)]);
        }
        bool ran = false;
        for (unsigned w :
             b.order) { /* a warp runs until it waits for another: they drift as far apart as barriers let them */
            const unsigned flip = order > 1 ? b.rand() % 32 : order == 1 ? 31 : 0;
            for (bool again = true; again && b.error.empty();) {
                again = false;
                for (unsigned i = 0; i < 32 && b.error.empty(); i++) {
                    const unsigned t = w * 32 + (i ^ flip);
                    if (t < b.n && b.fiber[t].state == State::ready) {
                        again = ran = true;
                        b.stats.switches++;
                        resume(b.fiber[t]);
                    }
                }
            }
        }
        if (!ran && b.alive) {
            b.error = deadlock();
            b.code = cudaErrorLaunchFailure;
        }
    }
    for (unsigned i = 0; i < b.n && !b.error.empty(); i++) {
        if (b.fiber[i].state != State::done) {
            resume(b.fiber[i]);
        }
    }
    b.end();
}

/* ------------------------------------------------------------------------------------------------------- grids */

/* Atomic, since a lock would order streams that nothing else does (queue.cc). */
struct Totals {
    std::atomic<uint64_t> switches{0}, collectives{0}, ldmatrix{0}, conflicts{0};
};
Totals totals;

/* A number without a common divisor with n: its multiples visit all of 0..n-1. */
uint64_t stride_of(uint64_t n, unsigned seed) {
    uint64_t stride = (0x9e3779b97f4a7c15ull * seed >> 20) % n;
    while (std::gcd(stride, n) != 1) {
        stride = (stride + 1) % n;
    }
    return stride;
}

} // namespace

/* ------------------------------------------------------------------------------------------------------- blocks */

Block::~Block() {
    for (Shared &s : shared) {
        s.drop();
    }
#if EMU_TSAN_ON
    for (void *f : identities) {
        __tsan_destroy_fiber(f);
    }
#endif
    free_stacks();
}

void Block::free_stacks() {
    if (stacks) {
        EMU_ASAN(__asan_unpoison_memory_region(stacks, fiber.size() * (kStack + kPage));)
        munmap(stacks, fiber.size() * (kStack + kPage));
    }
}

void Block::grow(unsigned threads) {
    n = threads;
    order.resize((n + 31) / 32);
    if (n <= fiber.size()) {
        return;
    }
    void *p =
        mmap(nullptr, n * (kStack + kPage), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) {
        throw Error("no memory for the threads' stacks");
    }
    free_stacks();
    stacks = static_cast<char *>(p);
    fiber.resize(n);
    warp.resize((n + 31) / 32);
    for (unsigned i = 0; i < n; i++) { /* a page that can't be touched below each stack */
        mprotect(stacks + i * (kStack + kPage), kPage, PROT_NONE);
        fiber[i].stack = stacks + i * (kStack + kPage) + kPage;
    }
}

/* To ThreadSanitizer other threads than before, on stacks that nobody has used. */
void Block::renew_threads() {
#if EMU_TSAN_ON
    mmap(stacks, fiber.size() * (kStack + kPage), PROT_READ | PROT_WRITE,
         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
    for (void *f : identities) {
        __tsan_destroy_fiber(f);
    }
    identities.clear();
    const unsigned warps = (n + 31) / 32;
    unsigned each = 2; /* a power of two */
    while (each * 2 * warps <= kIdentities) {
        each *= 2;
    }
    for (unsigned w = 0; w < warps; w++) {
        for (unsigned i = 0; i < each; i++) {
            identities.push_back(__tsan_create_fiber(0));
        }
        const unsigned shift = each < 32 ? rand() % 32 : 0, factor = each < 32 ? rand() % 16 * 2 + 1 : 1;
        for (unsigned lane = 0; lane < 32 && w * 32 + lane < n; lane++) {
            fiber[w * 32 + lane].tsan = identities[w * each + (lane * factor + shift) % 32 / (32 / each)];
        }
    }
#endif
}

void Block::begin(dim3 dim) {
    alive = n;
    arrived = 0;
    shared_bytes = dynamic_bytes;
    for (unsigned i = 0; i < n; i++) {
        Fiber &f = fiber[i];
        f.index = {i % dim.x, i / dim.x % dim.y, i / dim.x / dim.y};
        f.lane = i % 32;
        f.warp = i / 32;
        f.state = State::ready;
        f.copies.clear();
        f.groups.clear();
        f.open = 0;
        f.fenced = false;
        f.atomics.clear();
        f.fake_stack = nullptr;
        Warp &w = warp[f.warp];
        if (f.lane == 0) {
            w.alive = w.waiting = 0;
        }
        w.alive |= 1u << f.lane;
        w.lane[f.lane] = &f;
        f.context.start(f.stack, fiber_main);
    }
}

void Block::end() {
    for (Shared &s : shared) {
        s.used = false;
        if (EMU_TSAN_ON || shared.size() > 32) { /* ThreadSanitizer forgets what a block did when memory is freed */
            s.drop();
        }
    }
    if (EMU_TSAN_ON || shared.size() > 32) {
        shared.clear();
    }
}

uint32_t Block::rand() {
    random ^= random << 13;
    random ^= random >> 7;
    random ^= random << 17;
    return static_cast<uint32_t>(random >> 32);
}

/* ---------------------------------------------------------------------------------------------- instructions */

Options &options() {
    static Options *o = [] {
        Options *v = new Options{0, 1};
        if (const char *e = getenv("PERCH_EMU_ORDER")) {
            v->order = static_cast<unsigned>(strtoul(e, nullptr, 10));
        }
        if (const char *e = getenv("PERCH_EMU_THREADS")) {
            v->threads = static_cast<unsigned>(strtoul(e, nullptr, 10));
        }
        return v;
    }();
    return *o;
}

Stats stats() { return {totals.switches, totals.collectives, totals.ldmatrix, totals.conflicts}; }

void fail(const char *format, ...) {
    va_list list;
    va_start(list, format);
    std::string what = format_v(format, list);
    va_end(list);
    throw Error(here() + what);
}

unsigned barrier(bool vote, const char *op, const char *file, int line) {
    Quiet quiet;
    Block &b = *block;
    Fiber &f = *b.current;
    f.op = op;
    f.file = file;
    f.line = line;
    f.vote = vote;
    f.state = State::barrier;
    EMU_TSAN(__tsan_release(b.barrier_edge);)
    if (++b.arrived == b.alive) {
        release_barrier();
    } else {
        wait_for_others();
    }
    EMU_TSAN(__tsan_acquire(b.barrier_edge);)
    return f.votes;
}

void collective(Combine combine, unsigned mask, const void *in, void *out, const char *op, const char *file, int line) {
    Quiet quiet;
    Fiber &f = *block->current;
    Warp &w = block->warp[f.warp];
    f.op = op;
    f.file = file;
    f.line = line;
    f.mask = mask;
    f.in = in;
    f.out = out;
    f.combine = combine;
    f.state = State::warp;
    if (!(mask >> f.lane & 1)) {
        fail("the calling lane %u is not in its own mask: %s", f.lane, waits_at(f).c_str());
    }
    w.waiting |= 1u << f.lane;
    if ((w.waiting & mask & w.alive) == (mask & w.alive)) {
        complete_warp(w, mask, mask & w.alive);
    } else {
        wait_for_others();
    }
}

void sync_warp(unsigned mask, const char *file, int line) {
    EMU_TSAN(char *edge = block->barrier_edge + 8 * (1 + block->current->warp); __tsan_release(edge);)
    collective([](const void *const *, void *const *, unsigned) {}, mask, nullptr, nullptr, "__syncwarp", file, line);
    EMU_TSAN(__tsan_acquire(edge);)
}

void fence() {
    std::atomic_thread_fence(std::memory_order_seq_cst);
    Quiet quiet;
    Fiber &f = *block->current;
    f.fenced = true;
    for (void *p : f.atomics) {
        (void)p;
        EMU_TSAN(__tsan_acquire(p);)
    }
    f.atomics.clear();
}

void before_atomic(void *p) {
    (void)p;
    if (block->current->fenced) {
        EMU_TSAN(__tsan_release(p);)
    }
}

void after_atomic(void *p) {
    before_atomic(p); /* once more: it publishes itself, too */
    Quiet quiet;
    std::vector<void *> &atomics = block->current->atomics;
    if (atomics.empty() || atomics.back() != p) {
        atomics.push_back(p);
    }
}

/* ------------------------------------------------------------------------------------------------------- grids */

bool in_kernel() { return block && block->current; }

/* Apart, so that nothing that owns memory is on the stack when it is left. */
__attribute__((noinline)) static void note_fault(cudaError_t code, const char *what) {
    block->error = here() + "touches " + what;
    block->code = code;
}

void fault(cudaError_t code, const char *what) {
    note_fault(code, what);
    block->current->state = State::done;
    yield();
    abort();
}

cudaError_t check_launch(const Kernel &k) {
    const uint64_t threads = static_cast<uint64_t>(k.block.x) * k.block.y * k.block.z;
    if (threads < 1 || threads > 1024 || k.block.z > 64 || k.grid.x < 1 || k.grid.y < 1 || k.grid.z < 1 ||
        k.grid.x > INT32_MAX || k.grid.y > 65535 || k.grid.z > 65535) {
        return cudaErrorInvalidConfiguration;
    }
    return k.shared_bytes > 227 * 1024 ? cudaErrorInvalidValue : cudaSuccess;
}

void run(const Kernel &kernel, const Options &at) {
    const unsigned threads = kernel.block.x * kernel.block.y * kernel.block.z;
    const uint64_t blocks = static_cast<uint64_t>(kernel.grid.x) * kernel.grid.y * kernel.grid.z;
    const uint64_t stride = at.order > 1 && blocks > 2 ? stride_of(blocks, at.order) : 1;
    std::atomic<uint64_t> next{0};
    std::mutex mutex;
    std::string error;
    cudaError_t code = cudaSuccess;
    char edges[16];
    EMU_TSAN(__tsan_release(&edges[0]);)
    auto work = [&] {
        Quiet quiet;
        static thread_local std::unique_ptr<Block> kept; /* stacks serve many grids */
        if (!kept) {
            kept = std::make_unique<Block>();
        }
        Block &b = *kept;
        try {
            b.grow(threads);
        } catch (const Error &e) {
            std::lock_guard<std::mutex> lock(mutex);
            error = e.what();
            code = cudaErrorMemoryAllocation;
            return;
        }
        block = &b;
        b.body = &kernel.body;
        b.dynamic_bytes = kernel.shared_bytes;
        b.entry_edge = &edges[0];
        b.exit_edge = &edges[8];
        b.error.clear();
        blockDim = kernel.block;
        gridDim = kernel.grid;
        uint64_t mine = 0;
        for (uint64_t i; (i = next++) < blocks && b.error.empty();) {
            const uint64_t k = at.order == 1 ? blocks - 1 - i : i * stride % blocks;
            run_block(b,
                      dim3(static_cast<unsigned>(k % kernel.grid.x),
                           static_cast<unsigned>(k / kernel.grid.x % kernel.grid.y),
                           static_cast<unsigned>(k / kernel.grid.x / kernel.grid.y)),
                      kernel.block, at.order, mine++ < kFreshBlocks);
        }
        block = nullptr;
        std::lock_guard<std::mutex> lock(mutex);
        if (!b.error.empty()) {
            next = blocks;
            if (error.empty()) {
                error = b.error;
                code = b.code;
            }
        }
        totals.switches += b.stats.switches;
        totals.collectives += b.stats.collectives;
        totals.ldmatrix += b.stats.ldmatrix;
        totals.conflicts += b.stats.ldmatrix_conflicts;
        b.stats = {};
    };
    std::vector<std::thread> pool;
    for (uint64_t i = 1; i < at.threads && i < blocks; i++) {
        pool.emplace_back(work);
    }
    work();
    for (std::thread &t : pool) {
        t.join();
    }
    EMU_TSAN(__tsan_acquire(&edges[8]);)
    if (!error.empty()) {
        throw Fault(code, error);
    }
}

} // namespace simt
