/*
 * simt: the little that kernels need beyond CUDA C so that the same source runs under the emulation in tests/emulation, whose
 * own header is included before this one there (SIMT_EMULATE): shared memory by SHARED and DYN_SHARED, launches by simt::launch.
 */
#ifndef PERCH_KERNELS_CUDA_SIMT_CUH
#define PERCH_KERNELS_CUDA_SIMT_CUH

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <math_constants.h>

#ifndef SIMT_EMULATE

/* SHARED(float, sums, [32]); */
#define SHARED(T, name, ...) __shared__ __align__(16) T name __VA_ARGS__
#define DYN_SHARED(T, name)                                                                                            \
    extern __shared__ __align__(128) unsigned char simt_dynamic[];                                                     \
    T *const name = reinterpret_cast<T *>(simt_dynamic)

namespace simt {
template <class... P, class... A>
inline cudaError_t launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
                          A... arguments) {
    if (shared_bytes > 48 * 1024) {
        cudaError_t e = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared_bytes));
        if (e != cudaSuccess) {
            return e;
        }
    }
    kernel<<<grid, block, shared_bytes, stream>>>(static_cast<P>(arguments)...);
    return cudaGetLastError();
}
} // namespace simt

#endif
#endif
