/* attend: launches the kernels for one head dim; included by attention_DIM.cu alone. */
#ifndef PERCH_KERNELS_CUDA_ATTEND_CUH
#define PERCH_KERNELS_CUDA_ATTEND_CUH

#include "kernels/cuda/attend_small.cuh"
#include "kernels/cuda/attend_tall.cuh"

#include <algorithm>

namespace attention {

/* No more CTAs than find room at once: each has a piece of its own from the start. */
inline dim3 grid_of(const launch &l, uint32_t most, size_t shared_bytes) {
    const uint32_t fit = uint32_t((l.shared_bytes + 1024) / (shared_bytes + 1024));
    return dim3(std::min(l.max_attend, l.n_processors * std::max(std::min(most, fit), 1u)));
}

template <class T, int DP> cudaError_t attend_typed(const launch &l) {
    if (l.small) {
        const dim3 grid = grid_of(l, small<DP>::CTAS, small<DP>::BYTES);
        const cudaError_t e =
            simt::launch(attend_small<T, DP>, grid, dim3(small<DP>::THREADS), small<DP>::BYTES, l.stream, l.p);
        if (e != cudaSuccess) {
            return e;
        }
    }
    if (l.tall) {
        const dim3 grid = grid_of(l, 1, tall<DP>::BYTES);
        return simt::launch(attend_tall<T, DP>, grid, dim3(tall<DP>::THREADS), tall<DP>::BYTES, l.stream, l.p);
    }
    return cudaSuccess;
}

template <int DP> cudaError_t attend(const launch &l) {
    return l.dtype == KERNELS_BF16 ? attend_typed<__nv_bfloat16, DP>(l) : attend_typed<__half, DP>(l);
}

} // namespace attention

#endif
