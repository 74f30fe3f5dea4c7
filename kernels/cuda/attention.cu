/*
 * attention: queues the kernels for a batch's pieces, small and tall (attend_small.cuh, attend_tall.cuh), and the one that
 * merges what pieces of long contexts have left in partial results.
 */
#include "kernels/cuda/attention.cuh"

#include <algorithm>

namespace attention {

cudaError_t attend_32(const launch &l);
cudaError_t attend_64(const launch &l);
cudaError_t attend_80(const launch &l);
cudaError_t attend_96(const launch &l);
cudaError_t attend_128(const launch &l);
cudaError_t attend_256(const launch &l);

constexpr uint32_t MERGE_CTAS = 3; /* on a processor */

/* ------------------------------------------------------------------------ merge */

constexpr uint32_t MERGE_THREADS = 128; /* columns at a time */
constexpr uint32_t STAGES = 4, STAGE_RESULTS = 32;
constexpr uint32_t RESULT_FLOATS = CUDA_PARTIAL_FLOATS(MERGE_THREADS); /* of a result in shared memory */
constexpr size_t MERGE_BYTES = STAGES * STAGE_RESULTS * RESULT_FLOATS * sizeof(float);

/* Some columns of one query's results. */
struct merging {
    const float *from; /* result of the first chunk */
    size_t stride;     /* floats from chunk to chunk */
    uint32_t n;        /* chunks */
    uint32_t head_dim;
    uint32_t first_column, n_columns;
};

/* Begins to load a stage; an empty group of copies where there are no more results. */
__device__ __forceinline__ void load_results(float *to, const merging &m, uint32_t stage) {
    const uint32_t pieces = m.n_columns / 4 + 1; /* of 16 bytes; the last one is maximum and sum */
    for (uint32_t i = threadIdx.x; i < STAGE_RESULTS * pieces; i += MERGE_THREADS) {
        const uint32_t result = i / pieces, c = i % pieces;
        if (stage * STAGE_RESULTS + result >= m.n) {
            break;
        }
        const float *const from = m.from + (stage * STAGE_RESULTS + result) * m.stride;
        float *const at = to + result * RESULT_FLOATS;
        if (c + 1 < pieces) {
            ptx::cp_async16(at + c * 4, from + m.first_column + c * 4);
        } else {
            ptx::cp_async16(at + MERGE_THREADS, from + m.head_dim);
        }
    }
    ptx::cp_async_commit();
}

/*
 * Merges a stage's n results: `s` and this thread's column `o`. A lane computes the factors of one result: the maximum so far is
 * the same whether it is found in steps or all at once.
 */
__device__ __forceinline__ void merge_results(state *s, float *o, const float *results, uint32_t n) {
    const uint32_t lane = threadIdx.x % 32;
    const float *const mine = results + lane * RESULT_FLOATS + MERGE_THREADS;
    const state with = lane < n ? state{mine[0], mine[1]} : nothing();
    float max = with.max;
    for (uint32_t step = 1; step < 32; step *= 2) {
        const float before = __shfl_up_sync(ALL_LANES, max, step);
        max = lane >= step ? fmaxf(before, max) : max;
    }
    const float before = __shfl_up_sync(ALL_LANES, max, 1);
    state so_far = {lane == 0 ? s->max : fmaxf(s->max, before), 0.0f};
    const factors mine_f = merge(&so_far, with);
    for (uint32_t i = 0; i < n; i++) {
        const factors f = {__shfl_sync(ALL_LANES, mine_f.old, int(i)), __shfl_sync(ALL_LANES, mine_f.added, int(i))};
        s->sum = merged(s->sum, __shfl_sync(ALL_LANES, with.sum, int(i)), f);
        *o = merged(*o, results[i * RESULT_FLOATS + threadIdx.x], f);
    }
    s->max = __shfl_sync(ALL_LANES, so_far.max, int(n - 1));
}

template <class T> __device__ __forceinline__ void merge_columns(const merging &m, float *results, T *out) {
    constexpr size_t STAGE_FLOATS = STAGE_RESULTS * RESULT_FLOATS;
    const uint32_t n_stages = (m.n + STAGE_RESULTS - 1) / STAGE_RESULTS;
    __syncthreads(); /* what was there before is done with */
    for (uint32_t i = 0; i + 1 < STAGES; i++) {
        load_results(results + i * STAGE_FLOATS, m, i);
    }
    state s = nothing();
    float o = 0.0f;
    for (uint32_t i = 0; i < n_stages; i++) {
        ptx::cp_async_wait<int(STAGES) - 2>();
        __syncthreads();
        load_results(results + (i + STAGES - 1) % STAGES * STAGE_FLOATS, m, i + STAGES - 1);
        merge_results(&s, &o, results + i % STAGES * STAGE_FLOATS, min(STAGE_RESULTS, m.n - i * STAGE_RESULTS));
    }
    ptx::cp_async_wait<0>();
    if (threadIdx.x < m.n_columns) {
        out[m.first_column + threadIdx.x] = device_math::from_float<T>(__fmul_rn(o, inverse_of(s)));
    }
}

/* One CTA merges some columns of one query at a time. The last kernel of attention, it also leaves the tickets as they were. */
template <class T> __global__ void __launch_bounds__(MERGE_THREADS) merge_partials(const params p) {
    DYN_SHARED(float, results);
    if (blockIdx.x == 0 && threadIdx.x == 0) {
        p.counts->tickets[0] = p.counts->tickets[1] = 0;
    }
    const uint32_t parts = (p.head_dim + MERGE_THREADS - 1) / MERGE_THREADS;
    const uint32_t n = p.counts->n_merge * CUDA_SMALL_QUERIES * parts;
    for (uint32_t unit = blockIdx.x; unit < n; unit += gridDim.x) {
        const cuda_merge_work work = p.merge[unit / (CUDA_SMALL_QUERIES * parts)];
        const uint32_t first_column = unit % parts * MERGE_THREADS;
        const kernels_row *const row = &p.rows[work.row];
        for (uint32_t i = unit / parts % CUDA_SMALL_QUERIES; i < work.n_tokens * p.n_group; i += CUDA_SMALL_QUERIES) {
            const uint32_t token = work.first_token + i / p.n_group;
            const range seen = seen_until(p, row->first_position + token + 1);
            const uint32_t first = seen.begin / CUDA_CHUNK_TOKENS;
            const size_t result_floats = CUDA_PARTIAL_FLOATS(p.head_dim);
            const merging m = {p.partials +
                                   (work.partial + size_t(first - work.first_chunk) * work.stride + i) * result_floats,
                               work.stride * result_floats,
                               (seen.end - 1) / CUDA_CHUNK_TOKENS + 1 - first,
                               p.head_dim,
                               first_column,
                               min(MERGE_THREADS, p.head_dim - first_column)};
            const size_t head = work.kv_head * p.n_group + i % p.n_group;
            merge_columns(m, results,
                          static_cast<T *>(p.out) +
                              ((row->first_token + token) * size_t(p.n_heads) + head) * p.head_dim);
        }
    }
}

/* ------------------------------------------------------------------------ launches */

static cudaError_t attend(const launch &l) {
    const uint32_t d = l.p.head_dim;
    return d <= 32    ? attend_32(l)
           : d <= 64  ? attend_64(l)
           : d <= 80  ? attend_80(l)
           : d <= 96  ? attend_96(l)
           : d <= 128 ? attend_128(l)
                      : attend_256(l);
}

static cudaError_t get_attribute(cudaDeviceAttr attribute, uint32_t *value) {
    int device = 0, v = 0;
    cudaError_t e = cudaGetDevice(&device);
    if (e == cudaSuccess) {
        e = cudaDeviceGetAttribute(&v, attribute, device);
    }
    *value = uint32_t(v);
    return e;
}

} // namespace attention

extern "C" {

bool cuda_attention_supports(uint32_t head_dim) { return head_dim != 0 && head_dim % 8 == 0 && head_dim <= 256; }

cudaError_t cuda_attention(cudaStream_t stream, kernels_dtype dtype, const cuda_batch *batch, uint32_t max_row_tokens,
                           const kernels_attention *attention, const void *qkv, void *out,
                           const cuda_attend_work *attend, uint32_t max_attend, const cuda_merge_work *merge,
                           uint32_t max_merge, float *partials) {
    using namespace attention;
    const kv_layout *const layout = &attention->layout;
    launch l = {};
    cudaError_t e = get_attribute(cudaDevAttrMultiProcessorCount, &l.n_processors);
    if (e == cudaSuccess) {
        e = get_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, &l.shared_bytes);
    }
    if (e != cudaSuccess) {
        return e;
    }
    if (!cuda_attention_supports(layout->head_dim) || layout->element_bytes != 2 || max_attend == 0 ||
        (dtype != KERNELS_BF16 && dtype != KERNELS_F16)) {
        return cudaErrorInvalidValue;
    }
    l.p.counts = batch->counts;
    l.p.rows = batch->rows;
    l.p.attend = attend;
    l.p.merge = merge;
    l.p.qkv = qkv;
    l.p.out = out;
    l.p.partials = partials;
    l.p.group_bytes = layout->group_bytes;
    l.p.head_dim = layout->head_dim;
    l.p.layer_offset = uint64_t(attention->layer) * layout->n_kv_heads * (2 * KV_GROUP_TOKENS * 2) * layout->head_dim;
    l.p.n_group = attention->n_heads / layout->n_kv_heads;
    l.p.n_heads = attention->n_heads;
    l.p.qkv_stride = (attention->n_heads + 2 * layout->n_kv_heads) * layout->head_dim;
    l.p.window = attention->window;
    l.p.scale_log2 = attention->scale * CUDART_L2E_F;
    l.dtype = dtype;
    l.stream = stream;
    l.small = l.p.n_group <= CUDA_SMALL_QUERIES;
    l.tall = uint64_t(max_row_tokens) * l.p.n_group > CUDA_SMALL_QUERIES;
    l.max_attend = max_attend;
    e = attention::attend(l);
    if (e != cudaSuccess) {
        return e;
    }
    const uint32_t merge_grid = std::min(std::max(max_merge, 1u) * CUDA_SMALL_QUERIES, MERGE_CTAS * l.n_processors);
    const auto kernel = dtype == KERNELS_BF16 ? merge_partials<__nv_bfloat16> : merge_partials<__half>;
    return simt::launch(kernel, dim3(merge_grid), dim3(MERGE_THREADS), MERGE_BYTES, stream, l.p);
}
}
