/*
 * sampling_row: one row of logits as the kernels of sampling.cu see it: where its scratch memory lies, what is known of it between two
 * of them, how its tokens fall to warps, and the list of tokens that a finer look is taken at.
 */
#ifndef PERCH_KERNELS_CUDA_SAMPLING_ROW_CUH
#define PERCH_KERNELS_CUDA_SAMPLING_ROW_CUH

#include "base/sampling_math.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/sampling_select.cuh"

#include <math.h>

namespace sampling_row {

using namespace sampling_select;

constexpr uint32_t SEGMENT = 256, PER_LANE = SEGMENT / 32;
constexpr uint32_t MAX_SEGMENTS = SAMPLING_MAX_VOCAB / SEGMENT;
constexpr uint32_t MAX_BLOCKS = 64;  /* of a row */
constexpr uint32_t STEPS = 1024;     /* of the histogram */
constexpr uint32_t LISTED = 2048;    /* ranks in a row's list */
constexpr uint64_t ALL = UINT64_MAX; /* a border behind every rank */

constexpr uint32_t BANNED = 1u << 31, GIVEN = 1u << 30, GENERATED = GIVEN - 1; /* of a mark; the last is a count */

static_assert(SAMPLING_MAX_VOCAB % SEGMENT == 0 && MAX_SEGMENTS % THREADS == 0 && STEPS % THREADS == 0,
              "whole threads");
static_assert(MAX_BLOCKS <= THREADS && MAX_SEGMENTS >= STEPS, "one thread a block; room for sums and for a histogram");

/* One row between its kernels. */
struct row_state {
    /* 0 between calls */
    uint32_t arrived; /* blocks of the present kernel that are done */
    uint32_t n_listed;
    uint64_t total; /* of the log softmax */
    /* by survey */
    float best; /* after penalties and bans; -inf: no token is left */
    float raw_best;
    float step;     /* factor that makes a step's number of a distance from best */
    uint32_t bound; /* the n_top best of the model's logits have keys from this on */
    /* by weigh: the border lies in steps first..last; what is before them is kept for sure */
    uint32_t first_step, last_step, n_sure;
    uint32_t reserved;
    uint64_t sure; /* their weight */
    uint64_t goal; /* top-p alone: the weight that the front must reach; with top-k it depends on what that leaves */
};

/* What one block of survey found. */
struct block_state {
    uint64_t best; /* rank */
    float raw_best, least;
};

/* Where a choice's arrays lie in its part of the scratch memory: all of one choice together, whatever their number. */
struct scratch_layout {
    size_t step_weight; /* uint64 [STEPS], 0 between calls */
    size_t step_count;  /* uint32 [STEPS], 0 between calls */
    size_t mark;        /* uint32 [vocab_size], 0 between calls */
    size_t segment_sum; /* uint64 [n_segments] */
    size_t listed;      /* uint64 [LISTED], ranks */
    size_t block;       /* block_state [MAX_BLOCKS] */
    size_t block_best;  /* uint32 [MAX_BLOCKS][n_top], keys */
    size_t bytes;
};

struct launch_arguments {
    const float *logits;
    const cuda_choice *choices;
    const int32_t *bans, *history;
    kernels_chosen *chosen;
    char *scratch;
    scratch_layout layout;
    uint32_t vocab_size, n_segments, session_len;
};

/* This block's choice: its row_state is the first thing there. */
__device__ __forceinline__ char *scratch_of(const launch_arguments &a) {
    return a.scratch + blockIdx.y * a.layout.bytes;
}
template <class T> __device__ __forceinline__ T *array_of(const launch_arguments &a, size_t at) {
    return reinterpret_cast<T *>(scratch_of(a) + at);
}
__device__ __forceinline__ row_state *state_of(const launch_arguments &a) { return array_of<row_state>(a, 0); }

/* Between threads that don't share a barrier: not from a cache that may be older than the fence. */
template <class T> __device__ __forceinline__ T fresh(const T &from) { return *const_cast<const volatile T *>(&from); }

__device__ __forceinline__ void add64(uint64_t *to, uint64_t value) {
    atomicAdd(reinterpret_cast<unsigned long long *>(to), static_cast<unsigned long long>(value));
}

/* True in the row's last block, which then sees what the others wrote (by fresh). */
__device__ __forceinline__ bool comes_last(row_state *row) {
    SHARED(uint32_t, before, [1]);
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        before[0] = atomicAdd(&row->arrived, 1u);
        __threadfence(); /* PTX: it is the thread with the ticket that acquires; the barrier passes it on */
    }
    __syncthreads();
    if (before[0] + 1 != gridDim.x) {
        return false;
    }
    if (threadIdx.x == 0) {
        row->arrived = 0;
    }
    return true;
}

/* ------------------------------------------------------------------ ranks and rows */

__device__ __forceinline__ uint64_t rank_of(float logit, uint32_t token) {
    return static_cast<uint64_t>(~sampling_key(logit)) << 32 | token;
}
__device__ __forceinline__ uint32_t token_of(uint64_t rank) { return static_cast<uint32_t>(rank); }
__device__ __forceinline__ float logit_of(uint64_t rank) { return sampling_logit(~static_cast<uint32_t>(rank >> 32)); }

/* What a penalty or a ban leaves of a logit. Few tokens have a mark. */
static __device__ __attribute__((noinline)) float adjust(float logit, uint32_t mark, sampling_penalties penalties) {
    return mark & BANNED ? -INFINITY : sampling_penalize(logit, true, mark & GENERATED, penalties);
}

/* A row's logits and what is to be done with them. */
struct row_view {
    const float *logits;
    const uint32_t *mark; /* NULL: none */
    uint32_t vocab_size;
    sampling_penalties penalties;

    __device__ float adjusted(uint32_t token) const {
        const uint32_t m = mark ? mark[token] : 0;
        const float logit = logits[token];
        return m ? adjust(logit, m, penalties) : logit;
    }
};

__device__ __forceinline__ row_view row_of(const launch_arguments &a, const cuda_choice &choice) {
    row_view row;
    row.logits = a.logits + static_cast<size_t>(choice.logit_row) * a.vocab_size;
    row.mark = choice.needs & CUDA_CHOICE_MARKS ? array_of<uint32_t>(a, a.layout.mark) : nullptr;
    row.vocab_size = a.vocab_size;
    row.penalties = {choice.repetition_penalty, choice.frequency_penalty, choice.presence_penalty};
    return row;
}

/*
 * Calls f(segment, token of j = 0, logits, adjusted logits) for each segment of this warp; a lane has the tokens first + 32 j, NaN
 * where there is none.
 */
template <class F> __device__ __forceinline__ void each_segment(const row_view &row, uint32_t n_segments, F f) {
    for (uint32_t segment = blockIdx.x * WARPS + threadIdx.x / 32; segment < n_segments; segment += gridDim.x * WARPS) {
        const uint32_t first = segment * SEGMENT + threadIdx.x % 32;
        float logit[PER_LANE], adjusted[PER_LANE];
        uint32_t mark[PER_LANE];
#pragma unroll
        for (uint32_t j = 0; j < PER_LANE; j++) { /* all loads, then all that waits for them */
            const uint32_t token = first + 32 * j;
            const bool in = token < row.vocab_size;
            logit[j] = in ? row.logits[token] : NAN;
            mark[j] = in && row.mark ? row.mark[token] : 0;
        }
#pragma unroll
        for (uint32_t j = 0; j < PER_LANE; j++) {
            adjusted[j] = mark[j] ? adjust(logit[j], mark[j], row.penalties) : logit[j];
        }
        f(segment, first, logit, adjusted);
    }
}

/* ---------------------------------------------------------------------- lists */

/* Takes the rank of each lane that has one into the row's list. All lanes of the warp take part. */
__device__ __forceinline__ void list_rank(const launch_arguments &a, row_state *state, bool has, uint64_t rank) {
    const uint32_t lanes = __ballot_sync(~0u, has), lane = threadIdx.x % 32;
    if (lanes == 0) {
        return;
    }
    uint32_t first = 0;
    if (lane == 0) {
        first = atomicAdd(&state->n_listed, static_cast<uint32_t>(__popc(lanes)));
    }
    first = __shfl_sync(~0u, first, 0) + static_cast<uint32_t>(__popc(lanes & ((1u << lane) - 1)));
    if (has && first < LISTED) {
        array_of<uint64_t>(a, a.layout.listed)[first] = rank;
    }
}

/*
 * The row's list into shared memory, unless that holds less than there are. Leaves none listed. Returns how many there were; a barrier
 * lies behind.
 */
__device__ __forceinline__ uint32_t take_list(const launch_arguments &a, row_state *state, uint64_t *to) {
    const uint64_t *from = array_of<uint64_t>(a, a.layout.listed);
    const uint32_t n = fresh(state->n_listed);
    for (uint32_t i = threadIdx.x; i < n && n <= LISTED; i += THREADS) {
        to[i] = fresh(from[i]);
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        state->n_listed = 0;
    }
    return n;
}

/* ---------------------------------------------------------------------- layout */

inline uint32_t segments_of(uint32_t vocab_size) { return (vocab_size + SEGMENT - 1) / SEGMENT; }

/* Places n elements behind what is there already, aligned for any of them. */
template <class T> inline size_t place(size_t *end, size_t n) {
    const size_t at = (*end + 15) / 16 * 16;
    *end = at + n * sizeof(T);
    return at;
}

inline scratch_layout layout_of(uint32_t vocab_size) {
    scratch_layout l;
    size_t end = 0;
    place<row_state>(&end, 1);
    l.step_weight = place<uint64_t>(&end, STEPS);
    l.step_count = place<uint32_t>(&end, STEPS);
    l.mark = place<uint32_t>(&end, vocab_size);
    l.segment_sum = place<uint64_t>(&end, segments_of(vocab_size));
    l.listed = place<uint64_t>(&end, LISTED);
    l.block = place<block_state>(&end, MAX_BLOCKS);
    l.block_best = place<uint32_t>(&end, MAX_BLOCKS * KERNELS_MAX_TOP);
    l.bytes = (end + 127) / 128 * 128;
    return l;
}

} // namespace sampling_row
#endif
