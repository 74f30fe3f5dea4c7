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

#include "kernels/cuda/sampling_row.cuh"

namespace {

using namespace sampling_select;
using namespace sampling_row;

constexpr uint32_t ENOUGH_BLOCKS = 528; /* four for each multiprocessor of a large GPU */
constexpr uint32_t MARK_BLOCKS = 8;
constexpr uint32_t MAX_ROWS = 65535; /* of a grid */

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
        state->step = range > 0 ? static_cast<float>(STEPS - 1) / range : 0;
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
    struct {
        wide_sum sum[MAX_SEGMENTS];
        uint64_t listed[LISTED];
    } last; /* of the row's last block */
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
                           uint64_t *listed, selection_memory &m) {
    SHARED(uint64_t, top, [KERNELS_MAX_TOP]);
    SHARED(uint32_t, n_found, [1]);
    const uint32_t n_listed = take_list(a, state, listed), n_top = choice.n_top;
    auto each = [&](auto f) {
        if (n_listed <= LISTED) {
            for (uint32_t i = threadIdx.x; i < n_listed; i += THREADS) {
                f(listed[i], 1);
            }
        } else {
            for (uint32_t token = threadIdx.x; token < a.vocab_size; token += THREADS) {
                f(rank_of(row.logits[token], token), 1);
            }
        }
    };
    const uint64_t border = find_border(m, false, n_top, each);
    if (threadIdx.x == 0) {
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
        report_top(a, choice, row, state, memory.last.listed, m);
    }
    if (front) {
        find_steps(a, choice, state, m);
    }
    if (direct) {
        load_sums(a, memory.last.sum);
        draw(a, choice, row, scale, least, ALL, memory.last.sum, m);
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
    const uint64_t *listed = memory.last.listed;
    const uint32_t n_listed = take_list(a, state, memory.last.listed);
    auto each = [&](auto f) {
        if (n_listed <= LISTED) {
            for (uint32_t i = threadIdx.x; i < n_listed; i += THREADS) {
                f(listed[i], sampling_weight(logit_of(listed[i]), scale));
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
    load_sums(a, memory.last.sum);
    __syncthreads();
    each([&](uint64_t rank, uint64_t weight) {
        if (rank <= border && weight >= least) {
            add(&memory.last.sum[token_of(rank) / SEGMENT], weight);
        }
    });
    draw(a, choice, row, scale, least, border, memory.last.sum, m);
}

/* ----------------------------------------------------------------------- marks */

/* 0 clears, 1 counts, the others are set. Tokens of another vocabulary are ignored. */
__device__ __forceinline__ void set_mark(uint32_t *marks, uint32_t vocab_size, int32_t token, uint32_t what) {
    if (token < 0 || static_cast<uint32_t>(token) >= vocab_size) {
        return;
    }
    if (what == 0) {
        atomicExch(&marks[token], 0u);
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
