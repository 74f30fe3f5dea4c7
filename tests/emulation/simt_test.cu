// What the emulation says of wrong kernels, and that right ones pass.
#include "kernels/cuda/ptx.cuh"
#include "tests/support/check.h"

__global__ void shifted(const int *in, int *out) {
    SHARED(int, line, [64]);
    line[threadIdx.x] = in[threadIdx.x];
    __syncthreads();
    out[threadIdx.x] = line[(threadIdx.x + 1) % 64];
}

static void right_kernel(void) {
    int host[64];
    for (int i = 0; i < 64; i++) {
        host[i] = i * i;
    }
    int *in = nullptr, *out = nullptr;
    CU_ASSERT_EQUAL_FATAL(cudaMalloc(reinterpret_cast<void **>(&in), sizeof host), cudaSuccess);
    CU_ASSERT_EQUAL_FATAL(cudaMalloc(reinterpret_cast<void **>(&out), sizeof host), cudaSuccess);
    CU_ASSERT_EQUAL(cudaMemcpy(in, host, sizeof host, cudaMemcpyHostToDevice), cudaSuccess);
    for (unsigned order = 0; order < 4; order++) {
        simt::options().order = order;
        CU_ASSERT_EQUAL(simt::launch(shifted, dim3(1), dim3(64), 0, nullptr, in, out), cudaSuccess);
        CU_ASSERT_EQUAL(cudaMemcpy(host, out, sizeof host, cudaMemcpyDeviceToHost), cudaSuccess);
        for (int i = 0; i < 64; i++) {
            CU_ASSERT_EQUAL(host[i], (i + 1) % 64 * ((i + 1) % 64));
        }
    }
    cudaFree(in);
    cudaFree(out);
}

int main(int argc, char **argv) {
    static const test_case tests[] = {{"a kernel gives the same in each order of threads", right_kernel}};
    return test_main("simt_test", tests, sizeof tests / sizeof *tests, argc, argv);
}
