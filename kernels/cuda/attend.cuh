/* attend: launches the kernels for one head dim; included by attention_DIM.cu alone. */
#ifndef PERCH_KERNELS_CUDA_ATTEND_CUH
#define PERCH_KERNELS_CUDA_ATTEND_CUH

#include "kernels/cuda/attend_small.cuh"
#include "kernels/cuda/attend_tall.cuh"

namespace attention {

template <class T, int DP> cudaError_t attend_typed(const launch &l) {
    if (l.small_grid != 0) {
        const cudaError_t e = simt::launch(attend_small<T, DP>, dim3(l.small_grid), dim3(small<DP>::THREADS),
                                           small<DP>::BYTES, l.stream, l.p);
        if (e != cudaSuccess) {
            return e;
        }
    }
    if (l.tall_grid != 0) {
        return simt::launch(attend_tall<T, DP>, dim3(l.tall_grid), dim3(tall<DP>::THREADS), tall<DP>::BYTES, l.stream,
                            l.p);
    }
    return cudaSuccess;
}

template <int DP> cudaError_t attend(const launch &l) {
    return l.dtype == KERNELS_BF16 ? attend_typed<__nv_bfloat16, DP>(l) : attend_typed<__half, DP>(l);
}

} // namespace attention

#endif
