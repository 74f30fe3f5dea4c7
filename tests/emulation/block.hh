/*
 * block: a block of threads while it runs: what simt.cc, which has the threads take turns, and shared.cc, which has their shared
 * memory, know of it.
 */
#ifndef PERCH_TESTS_EMULATION_BLOCK_HH
#define PERCH_TESTS_EMULATION_BLOCK_HH

#include "tests/emulation/sanitizers.hh"
#include "tests/emulation/simt.hh"

#include <deque>
#include <string>
#include <vector>

#ifndef __x86_64__
#include <ucontext.h>
#endif

namespace simt {

constexpr size_t kPage = 4096;
constexpr size_t kStack = (EMU_TSAN_ON ? 128 : 256) << 10;

/* Where a thread goes on. */
struct Context {
#ifdef __x86_64__
    void *sp;
#else
    ucontext_t uc;
#endif
    void start(char *stack, void (*entry)());
    static void change(Context &from, Context &to);
};

enum class State : char { ready, barrier, warp, done };

struct Copy { /* cp.async */
    void *to;
    const void *from;
    size_t bytes, source_bytes;
};

struct Fiber {
    Context context;
    char *stack = nullptr;
    uint3 index;
    unsigned lane, warp;
    State state;
    const char *op, *file; /* where it waits */
    int line;
    unsigned mask;
    const void *in; /* a collective's operands, in the thread's own frame */
    void *out;
    Combine combine;
    bool vote;
    unsigned votes;
    std::vector<Copy> copies; /* not yet waited for */
    std::deque<size_t> groups;
    size_t open; /* copies since the last commit */
    bool fenced;
    std::vector<void *> atomics; /* since the last fence */
    void *fake_stack = nullptr, *tsan = nullptr;
};

struct Warp {
    Fiber *lane[32];
    unsigned alive, waiting;
};

/* A variable's memory: its end is at a page that can't be touched. */
struct Shared {
    const void *key;
    size_t bytes;
    char *pages, *at;
    size_t mapped; /* 0: from the heap */
    bool used;     /* by this block */
    void drop();
};

struct Block {
    std::vector<Fiber> fiber;
    std::vector<Warp> warp;
    std::vector<unsigned> order; /* of the warps */
    std::vector<Shared> shared;
    char *stacks = nullptr;
    unsigned n = 0, alive = 0, arrived = 0;
    size_t shared_bytes = 0, dynamic_bytes = 0;
    Context main;
    Fiber *current = nullptr;
    const std::function<void()> *body = nullptr;
    const void *main_stack = nullptr;
    size_t main_bytes = 0;
    void *main_tsan = nullptr;
    std::vector<void *> identities;                   /* ThreadSanitizer's threads */
    char *entry_edge = nullptr, *exit_edge = nullptr; /* ThreadSanitizer's: host → threads, threads → host */
    char *barrier_edge = nullptr;                     /* and at barriers: [0] __syncthreads, [1 + warp] __syncwarp */
    std::string error;
    cudaError_t code = cudaSuccess;
    uint64_t random = 1;
    Stats stats = {};

    ~Block();
    void grow(unsigned threads); /* throws Error */
    void free_stacks();
    void renew_threads();
    void begin(dim3 dim);
    void end(); /* forgets shared memory's contents */
    uint32_t rand();
};

extern __thread Block *block; /* whose threads run on this OS thread */

} // namespace simt

#endif
