/*
 * sampling: the next token of each row, by the host's algorithm (engine/sampler.c) on the host's numbers (base/sampling_math.h), so
 * to the host's result. All sums are of integers, so it makes no difference which thread adds what, or when.
 *
 * A row is cut into segments of 256 tokens, a warp takes a segment, a few blocks take a row. A row goes through up to three
 * kernels; in each, the block that comes last finishes what needs the whole row:
 *
 *   survey   the largest logit (a greedy choice is made here), and a bound that the n best surely reach
 *   weigh    sums of weights a segment, from which a draw without filters is made; the log-softmax' total; the n best; with top-k or
 *            top-p a histogram over 1024 equal steps of the logit, which tells in which steps the last token kept must lie
 *   narrow   the tokens in those few steps are listed, the exact last one is found by radix selection, and the draw is made
 *
 * What is kept is always a front of one order, by logit and then id, which a 64-bit number stands for: the *rank*, smaller first. A
 * filter therefore comes down to one rank, the *border*. Penalties and bans come as marks, one number a token, that a kernel
 * of its own sets before and clears behind.
 */
#include "kernels/cuda/launch.h"

#include "base/sampling_math.h"
#include "kernels/cuda/simt.cuh"

#include <math.h>

namespace {

constexpr uint32_t THREADS = 256, WARPS = THREADS / 32;
constexpr uint32_t SEGMENT = 256, PER_LANE = SEGMENT / 32;
constexpr uint32_t MAX_SEGMENTS = SAMPLING_MAX_VOCAB / SEGMENT;
constexpr uint32_t MAX_BLOCKS = 64;     /* of a row */
constexpr uint32_t ENOUGH_BLOCKS = 528; /* four for each multiprocessor of a large GPU */
constexpr uint32_t STEPS = 1024;        /* of the histogram */
constexpr uint32_t LISTED =
    2048;                        /* tokens whose ranks are listed; where there are more the row is gone through again */
constexpr uint32_t DIGITS = 256; /* of the radix selection */
constexpr uint64_t ALL = UINT64_MAX; /* a border behind every rank */

constexpr uint32_t BANNED = 1u << 31, GIVEN = 1u << 30, GENERATED = GIVEN - 1; /* of a mark; the last is a count */
constexpr uint32_t MARK_BLOCKS = 8;
constexpr uint32_t MAX_ROWS = 65535; /* of a grid */

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

/* ---------------------------------------------------------------- sums of a block */

/* A sum in shared memory: 32-bit additions are the hardware's own there, 64-bit ones are not. */
struct wide_sum {
    uint32_t low, high;
};
__device__ __forceinline__ void add(wide_sum *to, uint64_t value) {
    uint32_t low = static_cast<uint32_t>(value), before = atomicAdd(&to->low, low);
    uint32_t high = static_cast<uint32_t>(value >> 32) + (before + low < low);
    if (high > 0) {
        atomicAdd(&to->high, high);
    }
}
__device__ __forceinline__ uint64_t value_of(const wide_sum &sum) {
    return static_cast<uint64_t>(sum.high) << 32 | sum.low;
}

struct adding {
    template <class T> __device__ T operator()(T a, T b) const { return a + b; }
};
struct smaller {
    template <class T> __device__ T operator()(T a, T b) const { return b < a ? b : a; }
};
struct larger {
    template <class T> __device__ T operator()(T a, T b) const { return a < b ? b : a; }
};

template <class T, class Op> __device__ __forceinline__ T warp_reduce(T value, Op op) {
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) {
        value = op(value, __shfl_xor_sync(~0u, value, distance));
    }
    return value;
}

/* The same in each thread. by_warp [WARPS] is free again behind the next barrier. */
template <class T, class Op> __device__ __forceinline__ T block_reduce(T value, Op op, T *by_warp) {
    value = warp_reduce(value, op);
    if (threadIdx.x % 32 == 0) {
        by_warp[threadIdx.x / 32] = value;
    }
    __syncthreads();
    value = by_warp[0];
#pragma unroll
    for (uint32_t w = 1; w < WARPS; w++) {
        value = op(value, by_warp[w]);
    }
    return value;
}

/* The sum over the threads before this one; *total: over all. by_warp as above. */
__device__ __forceinline__ uint64_t block_sum_before(uint64_t value, uint64_t *by_warp, uint64_t *total) {
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    uint64_t sum = value;
#pragma unroll
    for (uint32_t distance = 1; distance < 32; distance *= 2) {
        uint64_t other = __shfl_up_sync(~0u, sum, distance);
        sum += lane >= distance ? other : 0;
    }
    if (lane == 31) {
        by_warp[warp] = sum;
    }
    __syncthreads();
    uint64_t before = 0, all = 0;
#pragma unroll
    for (uint32_t w = 0; w < WARPS; w++) {
        before += w < warp ? by_warp[w] : 0;
        all += by_warp[w];
    }
    *total = all;
    return before + sum - value;
}

/* True in the row's last block, which then sees what the others wrote (by fresh). */
__device__ __forceinline__ bool comes_last(row_state *row) {
    SHARED(uint32_t, before, [1]);
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        before[0] = atomicAdd(&row->arrived, 1u);
    }
    __syncthreads();
    if (before[0] + 1 != gridDim.x) {
        return false;
    }
    __threadfence();
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
__device__ __noinline__ float adjust(float logit, uint32_t mark, sampling_penalties penalties) {
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

/* ------------------------------------------------------------------- selection */

struct selection_memory {
    wide_sum sum[DIGITS];
    uint32_t count[DIGITS];
    uint64_t by_warp[WARPS];
    uint64_t prefix, reached, border;
    uint32_t n_left;
};

/*
 * By one warp: the digit at which the sum, so far `reached`, reaches goal; the rank's digits are extended by it.
 */
__device__ __forceinline__ void pick_digit(selection_memory &m, uint64_t goal) {
    constexpr uint32_t EACH = DIGITS / 32;
    const uint32_t lane = threadIdx.x % 32;
    uint64_t own = 0, before;
    for (uint32_t i = 0; i < EACH; i++) {
        own += value_of(m.sum[lane * EACH + i]);
    }
    before = own;
#pragma unroll
    for (uint32_t distance = 1; distance < 32; distance *= 2) {
        uint64_t other = __shfl_up_sync(~0u, before, distance);
        before += lane >= distance ? other : 0;
    }
    before += m.reached - own;
    __syncwarp(); /* each has read `reached` */
    if (before < goal && before + own >= goal) {
        uint32_t digit = lane * EACH;
        while (before + value_of(m.sum[digit]) < goal) {
            before += value_of(m.sum[digit++]);
        }
        m.prefix = m.prefix << 8 | digit;
        m.reached = before;
        m.n_left = m.count[digit];
    }
}

/*
 * By a block: the smallest rank of a set up to which the weights (unweighted: one each) add up to goal; 0 < goal, which is not
 * more than all of them. each(f) calls f(rank, weight) for the elements of the thread; ranks differ.
 */
template <class Each> __device__ uint64_t find_border(selection_memory &m, bool weighted, uint64_t goal, Each each) {
    __syncthreads();
    if (threadIdx.x == 0) {
        m.prefix = m.reached = 0;
    }
    for (uint32_t shift = 56;; shift -= 8) {
        for (uint32_t i = threadIdx.x; i < DIGITS; i += THREADS) {
            m.sum[i] = {0, 0};
            m.count[i] = 0;
        }
        __syncthreads();
        const uint64_t prefix = m.prefix;
        each([&](uint64_t rank, uint64_t weight) {
            if (shift == 56 || rank >> (shift + 8) == prefix) {
                const uint32_t digit = static_cast<uint32_t>(rank >> shift) % DIGITS;
                add(&m.sum[digit], weighted ? weight : 1);
                atomicAdd(&m.count[digit], 1u);
            }
        });
        __syncthreads();
        if (threadIdx.x < 32) {
            pick_digit(m, goal);
        }
        __syncthreads();
        if (shift == 0 || m.n_left == 1) {
            const uint64_t found = m.prefix;
            each([&](uint64_t rank, uint64_t) {
                if (rank >> shift == found) {
                    m.border = rank;
                }
            });
            __syncthreads();
            return m.border;
        }
    }
}

/* ---------------------------------------------------------------------- survey */

__global__ void __launch_bounds__(THREADS) survey(launch_arguments a) {
    SHARED(selection_memory, m, );
    SHARED(float, raw_by_warp, [WARPS]);
    SHARED(float, least_by_warp, [WARPS]);
    const cuda_choice choice = a.choices[blockIdx.y];
    const row_view row = row_of(a, choice);
    row_state *state = state_of(a);
    block_state *blocks = array_of<block_state>(a, a.layout.block);
    uint32_t *best_keys = array_of<uint32_t>(a, a.layout.block_best);
    const uint32_t n_top = choice.n_top;

    float best = -INFINITY, raw_best = -INFINITY, least = INFINITY;
    uint32_t best_token = 0;
    each_segment(row, a.n_segments, [&](uint32_t, uint32_t first, const float *logit, const float *adjusted) {
#pragma unroll
        for (uint32_t j = 0; j < PER_LANE;
             j++) { /* tokens ascend, so of equals the first stays; NaN is neither more nor less */
            best_token = adjusted[j] > best ? first + 32 * j : best_token;
            best = adjusted[j] > best ? adjusted[j] : best;
            least = adjusted[j] > -INFINITY && adjusted[j] < least ? adjusted[j] : least;
            raw_best = logit[j] > raw_best ? logit[j] : raw_best;
        }
    });
    const float own_best = raw_best;
    uint64_t rank = block_reduce(rank_of(best, best_token), smaller(), m.by_warp);
    raw_best = block_reduce(raw_best, larger(), raw_by_warp);
    least = block_reduce(least, smaller(), least_by_warp);
    if (threadIdx.x == 0) {
        blocks[blockIdx.x].best = rank;
        blocks[blockIdx.x].raw_best = raw_best;
        blocks[blockIdx.x].least = least;
    }
    if (n_top > 0) { /* the n_top best of the threads' best */
        SHARED(uint32_t, n_kept, [1]);
        const uint64_t own = rank_of(own_best, threadIdx.x);
        const uint64_t border = find_border(m, false, n_top, [&](auto f) { f(own, 1); });
        if (threadIdx.x == 0) {
            n_kept[0] = 0;
        }
        __syncthreads();
        if (own <= border) {
            best_keys[blockIdx.x * n_top + atomicAdd(&n_kept[0], 1u)] = sampling_key(own_best);
        }
    }
    if (!comes_last(state)) {
        return;
    }
    const bool has_block = threadIdx.x < gridDim.x;
    rank = block_reduce(has_block ? fresh(blocks[threadIdx.x].best) : ALL, smaller(), m.by_warp);
    raw_best = block_reduce(has_block ? fresh(blocks[threadIdx.x].raw_best) : -INFINITY, larger(), raw_by_warp);
    least = block_reduce(has_block ? fresh(blocks[threadIdx.x].least) : INFINITY, smaller(), least_by_warp);
    uint64_t bound = 0;
    if (n_top > 0) {
        bound = find_border(m, false, n_top, [&](auto f) {
            for (uint32_t i = threadIdx.x; i < gridDim.x * n_top; i += THREADS) {
                f(static_cast<uint64_t>(~fresh(best_keys[i])) << 32 | i, 1);
            }
        });
    }
    if (threadIdx.x == 0) {
        best = logit_of(rank);
        state->best = best;
        state->raw_best = raw_best;
        state->bound = ~static_cast<uint32_t>(bound >> 32);
        /* Steps from the best down to the least, or to where weights vanish. */
        float range =
            best - fmaxf(least, static_cast<float>(static_cast<double>(best) - 32.0 / choice.inverse_temperature));
        state->step = range > 0 && range <= FLT_MAX ? static_cast<float>(STEPS - 1) / range : 0;
        kernels_chosen *out = &a.chosen[blockIdx.y];
        const bool none = best == -INFINITY;
        out->token = none ? -1 : static_cast<int32_t>(token_of(rank));
        out->logit = none ? 0 : row.logits[token_of(rank)];
        out->best = raw_best;
        out->n_top = 0;
        out->total = 0;
    }
}

/* ------------------------------------------------------------------------ draw */

/*
 * By the row's last block: the token on which the random number falls among those up to border that weigh `least` at least; of
 * those, sum has each segment's. Leaves it to one thread to report.
 */
__device__ void draw(const launch_arguments &a, const cuda_choice &choice, const row_view &row, sampling_scale scale,
                     uint64_t least, uint64_t border, const wide_sum *sum, selection_memory &m) {
    SHARED(uint64_t, rest, [1]);
    SHARED(uint32_t, at, [1]);
    const uint32_t each = (a.n_segments + THREADS - 1) / THREADS, first = threadIdx.x * each;
    uint64_t own = 0, total;
    __syncthreads();
    for (uint32_t i = first; i < first + each && i < a.n_segments; i++) {
        own += value_of(sum[i]);
    }
    uint64_t before = block_sum_before(own, m.by_warp, &total);
    const uint64_t point = sampling_point(sampling_random(choice.seed, choice.n_tokens, choice.completion), total);
    if (before <= point && point < before + own) {
        uint32_t segment = first;
        while (before + value_of(sum[segment]) <= point) {
            before += value_of(sum[segment++]);
        }
        at[0] = segment;
        rest[0] = point - before;
    }
    __syncthreads();
    const uint32_t token = at[0] * SEGMENT + threadIdx.x;
    own = 0;
    if (token < a.vocab_size) {
        const float logit = row.adjusted(token);
        const uint64_t weight = sampling_weight(logit, scale);
        own = weight >= least && rank_of(logit, token) <= border ? weight : 0;
    }
    before = block_sum_before(own, m.by_warp, &total);
    if (before <= rest[0] && rest[0] < before + own) {
        a.chosen[blockIdx.y].token = static_cast<int32_t>(token);
        a.chosen[blockIdx.y].logit = row.logits[token];
    }
}

/* Sums of segments, as the blocks left them, into shared memory. */
__device__ __forceinline__ void load_sums(const launch_arguments &a, wide_sum *sum) {
    const uint64_t *from = array_of<uint64_t>(a, a.layout.segment_sum);
    for (uint32_t i = threadIdx.x; i < a.n_segments; i += THREADS) {
        const uint64_t value = fresh(from[i]);
        sum[i] = {static_cast<uint32_t>(value), static_cast<uint32_t>(value >> 32)};
    }
}

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

/* ----------------------------------------------------------------------- weigh */

__device__ __forceinline__ uint32_t step_of(float logit, float best, float step) {
    const float number = __fmul_rn(__fsub_rn(best, logit), step);
    return logit == best ? 0
                         : static_cast<uint32_t>(fminf(number, static_cast<float>(STEPS - 1))); /* of NaN: the last */
}

struct histogram {
    wide_sum weight[STEPS];
    uint32_t count[STEPS];
};

/* Of what weigh and narrow need only one at a time. */
union row_memory {
    histogram steps;
    wide_sum sum[MAX_SEGMENTS];
};

/* By the row's last block, from the histogram of all: in which steps the border lies. Leaves the histogram zeroed. */
__device__ void find_steps(const launch_arguments &a, const cuda_choice &choice, row_state *state,
                           selection_memory &m) {
    constexpr uint32_t EACH = STEPS / THREADS;
    SHARED(uint64_t, above, [1]); /* weight above the step of the k-th */
    uint64_t *weights = array_of<uint64_t>(a, a.layout.step_weight);
    uint32_t *counts = array_of<uint32_t>(a, a.layout.step_count);
    uint64_t weight[EACH], count[EACH], own_weight = 0, own_count = 0, total, n;
#pragma unroll
    for (uint32_t i = 0; i < EACH; i++) {
        const uint32_t at = threadIdx.x * EACH + i;
        own_weight += weight[i] = fresh(weights[at]);
        own_count += count[i] = fresh(counts[at]);
        weights[at] = 0;
        counts[at] = 0;
    }
    const uint64_t weight_before = block_sum_before(own_weight, m.by_warp, &total);
    __syncthreads();
    const uint64_t count_before = block_sum_before(own_count, m.by_warp, &n);
    uint64_t w = weight_before, c = count_before;
#pragma unroll
    for (uint32_t i = 0; i < EACH; i++) {
        if (choice.top_k > 0 && c < choice.top_k && choice.top_k <= c + count[i]) {
            above[0] = w;
            state->first_step = state->last_step = threadIdx.x * EACH + i;
            state->n_sure = static_cast<uint32_t>(c);
            state->sure = w;
        }
        w += weight[i];
        c += count[i];
    }
    __syncthreads();
    /* After top-k the goal is a share of what that keeps, which is known to the step only: at least what lies above it. */
    const uint64_t goal = sampling_portion(choice.top_p, choice.top_k > 0 ? above[0] : total);
    w = weight_before, c = count_before;
#pragma unroll
    for (uint32_t i = 0; i < EACH; i++) {
        if (choice.top_p != UINT64_MAX && w < goal && goal <= w + weight[i]) {
            state->first_step = threadIdx.x * EACH + i;
            state->n_sure = static_cast<uint32_t>(c);
            state->sure = w;
            if (choice.top_k == 0) {
                state->last_step = state->first_step;
                state->goal = goal;
            }
        }
        w += weight[i];
        c += count[i];
    }
}

/* By the row's last block: the n_top best of the model's own logits, from the list, or from the row where that overflowed. */
__device__ void report_top(const launch_arguments &a, const cuda_choice &choice, const row_view &row, row_state *state,
                           selection_memory &m) {
    SHARED(uint64_t, top, [KERNELS_MAX_TOP]);
    SHARED(uint32_t, n_found, [1]);
    const uint64_t *listed = array_of<uint64_t>(a, a.layout.listed);
    const uint32_t n_listed = fresh(state->n_listed), n_top = choice.n_top;
    auto each = [&](auto f) {
        if (n_listed <= LISTED) {
            for (uint32_t i = threadIdx.x; i < n_listed; i += THREADS) {
                f(fresh(listed[i]), 1);
            }
        } else {
            for (uint32_t token = threadIdx.x; token < a.vocab_size; token += THREADS) {
                f(rank_of(row.logits[token], token), 1);
            }
        }
    };
    const uint64_t border = find_border(m, false, n_top, each);
    if (threadIdx.x == 0) {
        state->n_listed = 0;
        n_found[0] = 0;
    }
    __syncthreads();
    each([&](uint64_t rank, uint64_t) {
        if (rank <= border) {
            top[atomicAdd(&n_found[0], 1u)] = rank;
        }
    });
    __syncthreads();
    if (threadIdx.x < n_top) {
        const uint64_t rank = top[threadIdx.x];
        uint32_t place = 0;
        for (uint32_t i = 0; i < n_top; i++) {
            place += top[i] < rank;
        }
        const float logit = row.logits[token_of(rank)];
        a.chosen[blockIdx.y].top_token[place] = static_cast<int32_t>(token_of(rank));
        a.chosen[blockIdx.y].top_logit[place] = logit != logit ? -INFINITY : logit;
    }
    if (threadIdx.x == 0) {
        a.chosen[blockIdx.y].n_top = n_top;
    }
}

__global__ void __launch_bounds__(THREADS, 3) weigh(launch_arguments a) {
    SHARED(selection_memory, m, );
    SHARED(row_memory, memory, );
    const cuda_choice choice = a.choices[blockIdx.y];
    row_state *state = state_of(a);
    if (!(choice.needs & (CUDA_CHOICE_DRAW | CUDA_CHOICE_LOGPROBS)) || state->best == -INFINITY) {
        return;
    }
    const row_view row = row_of(a, choice);
    const bool front = choice.needs & CUDA_CHOICE_FRONT, logprobs = choice.needs & CUDA_CHOICE_LOGPROBS;
    const bool direct = (choice.needs & CUDA_CHOICE_DRAW) && !front; /* a draw from all */
    const bool by_count = front && choice.top_k > 0, by_weight = front && choice.top_p != UINT64_MAX;
    const float best = state->best, step = state->step;
    const uint32_t bound = state->bound;
    const sampling_scale scale = sampling_scale_of(best, choice.inverse_temperature);
    const sampling_scale softmax = sampling_scale_of(state->raw_best, 1.0);
    const uint64_t least = sampling_portion(choice.min_p, SAMPLING_ONE);
    uint64_t *segment_sum = array_of<uint64_t>(a, a.layout.segment_sum);
    if (front) {
        for (uint32_t i = threadIdx.x; i < STEPS; i += THREADS) {
            memory.steps.weight[i] = {0, 0};
            memory.steps.count[i] = 0;
        }
        __syncthreads();
    }
    uint64_t total = 0;
    each_segment(row, a.n_segments, [&](uint32_t segment, uint32_t first, const float *logit, const float *adjusted) {
        if (direct) {
            uint64_t sum = 0;
#pragma unroll
            for (uint32_t j = 0; j < PER_LANE; j++) {
                const uint64_t weight = sampling_weight(adjusted[j], scale);
                sum += weight >= least ? weight : 0;
            }
            sum = warp_reduce(sum, adding());
            if (threadIdx.x % 32 == 0) {
                segment_sum[segment] = sum;
            }
        }
        if (front) {
#pragma unroll
            for (uint32_t j = 0; j < PER_LANE; j++) {
                const uint32_t at = step_of(adjusted[j], best, step);
                if (first + 32 * j < a.vocab_size) {
                    if (by_count) {
                        atomicAdd(&memory.steps.count[at], 1u);
                    }
                    if (by_weight) {
                        add(&memory.steps.weight[at], sampling_weight(adjusted[j], scale));
                    }
                }
            }
        }
        if (logprobs) {
#pragma unroll
            for (uint32_t j = 0; j < PER_LANE; j++) {
                const uint32_t token = first + 32 * j;
                total += sampling_weight(logit[j], softmax);
                if (choice.n_top > 0) {
                    list_rank(a, state, token < a.vocab_size && sampling_key(logit[j]) >= bound,
                              rank_of(logit[j], token));
                }
            }
        }
    });
    if (logprobs) {
        total = block_reduce(total, adding(), m.by_warp);
        if (threadIdx.x == 0) {
            add64(&state->total, total);
        }
    }
    if (front) {
        __syncthreads();
        for (uint32_t i = threadIdx.x; i < STEPS; i += THREADS) {
            if (memory.steps.count[i] > 0) {
                atomicAdd(&array_of<uint32_t>(a, a.layout.step_count)[i], memory.steps.count[i]);
            }
            if (value_of(memory.steps.weight[i]) > 0) {
                add64(&array_of<uint64_t>(a, a.layout.step_weight)[i], value_of(memory.steps.weight[i]));
            }
        }
    }
    if (!comes_last(state)) {
        return;
    }
    if (logprobs && threadIdx.x == 0) {
        a.chosen[blockIdx.y].total = fresh(state->total);
        state->total = 0;
    }
    if (choice.n_top > 0) {
        report_top(a, choice, row, state, m);
    }
    if (front) {
        find_steps(a, choice, state, m);
    }
    if (direct) {
        load_sums(a, memory.sum);
        draw(a, choice, row, scale, least, ALL, memory.sum, m);
    }
}

/* ---------------------------------------------------------------------- narrow */

__global__ void __launch_bounds__(THREADS, 3) narrow(launch_arguments a) {
    SHARED(selection_memory, m, );
    SHARED(row_memory, memory, );
    const cuda_choice choice = a.choices[blockIdx.y];
    row_state *state = state_of(a);
    if (!(choice.needs & CUDA_CHOICE_FRONT) || state->best == -INFINITY) {
        return;
    }
    const row_view row = row_of(a, choice);
    const float best = state->best, step = state->step;
    const uint32_t first_step = state->first_step, last_step = state->last_step;
    const sampling_scale scale = sampling_scale_of(best, choice.inverse_temperature);
    const uint64_t least = sampling_portion(choice.min_p, SAMPLING_ONE);
    uint64_t *segment_sum = array_of<uint64_t>(a, a.layout.segment_sum);
    each_segment(row, a.n_segments, [&](uint32_t segment, uint32_t first, const float *, const float *adjusted) {
        uint64_t sum = 0;
#pragma unroll
        for (uint32_t j = 0; j < PER_LANE; j++) {
            const uint32_t token = first + 32 * j;
            const uint32_t at = token < a.vocab_size ? step_of(adjusted[j], best, step) : STEPS;
            if (at < first_step) {
                const uint64_t weight = sampling_weight(adjusted[j], scale);
                sum += weight >= least ? weight : 0;
            }
            list_rank(a, state, at >= first_step && at <= last_step, rank_of(adjusted[j], token));
        }
        sum = __any_sync(~0u, sum > 0) ? warp_reduce(sum, adding()) : 0;
        if (threadIdx.x % 32 == 0) {
            segment_sum[segment] = sum;
        }
    });
    if (!comes_last(state)) {
        return;
    }
    const uint64_t *listed = array_of<uint64_t>(a, a.layout.listed);
    const uint32_t n_listed = fresh(state->n_listed);
    auto each = [&](auto f) {
        if (n_listed <= LISTED) {
            for (uint32_t i = threadIdx.x; i < n_listed; i += THREADS) {
                const uint64_t rank = fresh(listed[i]);
                f(rank, sampling_weight(logit_of(rank), scale));
            }
            return;
        }
        for (uint32_t token = threadIdx.x; token < a.vocab_size; token += THREADS) {
            const float logit = row.adjusted(token);
            const uint32_t at = step_of(logit, best, step);
            if (at >= first_step && at <= last_step) {
                f(rank_of(logit, token), sampling_weight(logit, scale));
            }
        }
    };
    uint64_t border = ALL, goal = state->goal;
    if (choice.top_k > 0) {
        border = find_border(m, false, choice.top_k - state->n_sure, each);
        uint64_t kept = 0;
        each([&](uint64_t rank, uint64_t weight) { kept += rank <= border ? weight : 0; });
        goal = sampling_portion(choice.top_p, state->sure + block_reduce(kept, adding(), m.by_warp));
    }
    if (choice.top_p != UINT64_MAX) {
        border = find_border(m, true, goal - state->sure, each);
    }
    load_sums(a, memory.sum);
    __syncthreads();
    each([&](uint64_t rank, uint64_t weight) {
        if (rank <= border && weight >= least) {
            add(&memory.sum[token_of(rank) / SEGMENT], weight);
        }
    });
    draw(a, choice, row, scale, least, border, memory.sum, m);
    if (threadIdx.x == 0) {
        state->n_listed = 0;
    }
}

/* ----------------------------------------------------------------------- marks */

/* 0 clears, 1 counts, the others are set. Tokens of another vocabulary are ignored. */
__device__ __forceinline__ void set_mark(uint32_t *marks, uint32_t vocab_size, int32_t token, uint32_t what) {
    if (token < 0 || static_cast<uint32_t>(token) >= vocab_size) {
        return;
    }
    if (what == 0) {
        marks[token] = 0;
    } else if (what == 1) {
        atomicAdd(&marks[token], 1u);
    } else {
        atomicOr(&marks[token], what);
    }
}

/* Marks what penalties and bans concern, or clears the same marks. */
__global__ void __launch_bounds__(THREADS) mark(launch_arguments a, bool clear) {
    const cuda_choice choice = a.choices[blockIdx.y];
    if (!(choice.needs & CUDA_CHOICE_MARKS)) {
        return;
    }
    uint32_t *marks = array_of<uint32_t>(a, a.layout.mark);
    const int32_t *history = a.history + static_cast<size_t>(choice.slot) * a.session_len;
    const bool counts = choice.frequency_penalty != 0.0 || choice.presence_penalty != 0.0;
    const uint32_t first = choice.repetition_penalty != 1.0 ? 0 : counts ? choice.n_prompt : choice.n_tokens;
    const uint32_t thread = blockIdx.x * THREADS + threadIdx.x, n_threads = gridDim.x * THREADS;
    for (uint32_t i = thread; i < choice.n_bans; i += n_threads) {
        set_mark(marks, a.vocab_size, a.bans[choice.first_ban + i], clear ? 0 : BANNED);
    }
    for (uint32_t i = first + thread; i < choice.n_tokens; i += n_threads) {
        set_mark(marks, a.vocab_size, history[i], clear ? 0 : i < choice.n_prompt ? GIVEN : 1);
    }
}

/* ---------------------------------------------------------------------- launch */

uint32_t segments_of(uint32_t vocab_size) { return (vocab_size + SEGMENT - 1) / SEGMENT; }

/* Places n elements behind what is there already, aligned for any of them. */
template <class T> size_t place(size_t *end, size_t n) {
    const size_t at = (*end + 15) / 16 * 16;
    *end = at + n * sizeof(T);
    return at;
}

scratch_layout layout_of(uint32_t vocab_size) {
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

} // namespace

size_t cuda_choose_scratch_bytes(uint32_t max_choices, uint32_t vocab_size) {
    return max_choices * layout_of(vocab_size).bytes;
}

cudaError_t cuda_choose(cudaStream_t stream, const float *logits, uint32_t vocab_size, const cuda_choice *choices,
                        const int32_t *bans, uint32_t n, uint32_t needs, const int32_t *history, uint32_t session_len,
                        void *scratch, kernels_chosen *chosen) {
    if (vocab_size == 0 || vocab_size > SAMPLING_MAX_VOCAB || n > MAX_ROWS) {
        return cudaErrorInvalidValue;
    }
    if (n == 0) {
        return cudaSuccess;
    }
    const uint32_t n_segments = segments_of(vocab_size), share = n < ENOUGH_BLOCKS ? ENOUGH_BLOCKS / n : 1;
    uint32_t n_blocks = (n_segments + WARPS - 1) / WARPS;
    n_blocks = n_blocks < share ? n_blocks : share;
    n_blocks = n_blocks < MAX_BLOCKS ? n_blocks : MAX_BLOCKS;
    const launch_arguments a = {
        logits,     choices,    bans,       history, chosen, static_cast<char *>(scratch), layout_of(vocab_size),
        vocab_size, n_segments, session_len};
    const dim3 grid(n_blocks, n), mark_grid(MARK_BLOCKS, n), block(THREADS);
    cudaError_t status = cudaSuccess;
    if (needs & CUDA_CHOICE_MARKS) {
        status = simt::launch(mark, mark_grid, block, 0, stream, a, false);
    }
    if (status == cudaSuccess) {
        status = simt::launch(survey, grid, block, 0, stream, a);
    }
    if (status == cudaSuccess && needs & (CUDA_CHOICE_DRAW | CUDA_CHOICE_LOGPROBS)) {
        status = simt::launch(weigh, grid, block, 0, stream, a);
    }
    if (status == cudaSuccess && needs & CUDA_CHOICE_FRONT) {
        status = simt::launch(narrow, grid, block, 0, stream, a);
    }
    if (status == cudaSuccess && needs & CUDA_CHOICE_MARKS) {
        status = simt::launch(mark, mark_grid, block, 0, stream, a, true);
    }
    return status;
}
