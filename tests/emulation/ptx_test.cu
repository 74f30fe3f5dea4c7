/* The twins of PTX instructions against what the instructions are for: a product of two matrices out of shared memory. */
#include "kernels/cuda/ptx.cuh"
#include "tests/emulation/testing.hh"

namespace {

/*
 * c [16][8] = a [16][16] b, by one warp, with b as [8][16] (its columns as rows, read as it lies) or as [16][8] (read
 * transposed). Four products at once: n = 2 of b's columns halves, so that all of an ldmatrix is used.
 */
template <class T, bool transposed> __global__ void product(const T *a, const T *b, float *c) {
    SHARED(T, sa, [16 * 16]);
    SHARED(T, sb, [16 * 16]);
    const unsigned lane = threadIdx.x;
    ptx::cp_async16(sa + lane * 8, a + lane * 8);
    ptx::cp_async16(sb + lane * 8, b + lane * 8);
    ptx::cp_async_commit();
    ptx::cp_async_wait<0>();
    __syncthreads();
    uint32_t fa[4], fb[4];
    ptx::ldmatrix_x4(fa, sa + lane % 16 * 16 + lane / 16 * 8);
    if (transposed) { /* rows k, columns n: matrices (k 0, n 0), (k 8, n 0), (k 0, n 8), (k 8, n 8) */
        ptx::ldmatrix_x4_trans(fb, sb + lane % 16 * 16 + lane / 16 * 8);
    } else { /* rows n, columns k */
        ptx::ldmatrix_x4(fb, sb + (lane % 8 + lane / 16 * 8) * 16 + lane / 8 % 2 * 8);
    }
    for (int half = 0; half < 2; half++) {
        float out[4] = {1, 1, 1, 1};
        ptx::mma<T>(out, fa, fb[2 * half], fb[2 * half + 1]);
        for (unsigned e = 0; e < 4; e++) {
            c[(lane / 4 + e / 2 * 8) * 16 + half * 8 + lane % 4 * 2 + e % 2] = out[e];
        }
    }
}

template <class T> T from_float(float v);
template <> __nv_bfloat16 from_float(float v) { return __float2bfloat16(v); }
template <> __half from_float(float v) { return __float2half(v); }

template <class T, bool transposed> void check_product(test_rng *rng) {
    T a[256], b[256];
    float c[256];
    for (int i = 0; i < 256; i++) {
        a[i] = from_float<T>(static_cast<float>(test_rng_unit(rng) * 2 - 1));
        b[i] = from_float<T>(static_cast<float>(test_rng_unit(rng) * 2 - 1));
    }
    begin_with(0);
    T *da = device_array<T>(256), *db = device_array<T>(256);
    float *dc = device_array<float>(256);
    OK(cudaMemcpy(da, a, sizeof a, cudaMemcpyHostToDevice));
    OK(cudaMemcpy(db, b, sizeof b, cudaMemcpyHostToDevice));
    OK(simt::launch(product<T, transposed>, dim3(1), dim3(32), 0, nullptr, da, db, dc));
    OK(cudaMemcpy(c, dc, sizeof c, cudaMemcpyDeviceToHost));
    for (int i = 0; i < 16; i++) {
        for (int j = 0; j < 16; j++) {
            double sum = 1;
            for (int k = 0; k < 16; k++) {
                sum += static_cast<double>(static_cast<float>(a[i * 16 + k])) *
                       static_cast<double>(static_cast<float>(transposed ? b[k * 16 + j] : b[j * 16 + k]));
            }
            CHECK_MSG(fabs(sum - static_cast<double>(c[i * 16 + j])) < 1e-5, "[%d][%d] is %g, not %g", i, j,
                      static_cast<double>(c[i * 16 + j]), sum);
        }
    }
    for (void *p : {static_cast<void *>(da), static_cast<void *>(db), static_cast<void *>(dc)}) {
        OK(cudaFree(p));
    }
}

void products(void) {
    test_rng rng = {test_seed(11)};
    check_product<__nv_bfloat16, false>(&rng);
    check_product<__nv_bfloat16, true>(&rng);
    check_product<__half, false>(&rng);
    check_product<__half, true>(&rng);
}

/* Every number of both types, special ones too, is what CUDA's own headers say. */
void halves(void) {
    for (uint32_t bits = 0; bits < 65536; bits++) {
        const uint16_t h = static_cast<uint16_t>(bits);
        __half half;
        __nv_bfloat16 bf16;
        memcpy(static_cast<void *>(&half), &h, 2);
        memcpy(static_cast<void *>(&bf16), &h, 2);
        const float want[2] = {__half2float(half), __bfloat162float(bf16)};
        const float got[2] = {ptx::to_float(h, half), ptx::to_float(h, bf16)};
        for (int i = 0; i < 2; i++) {
            if (!CHECK_MSG(memcmp(&want[i], &got[i], 4) == 0 || (std::isnan(want[i]) && std::isnan(got[i])),
                           "%04x is %g, not %g", bits, static_cast<double>(got[i]), static_cast<double>(want[i]))) {
                return;
            }
        }
    }
}

/* What was copied is there after the wait and not before; a wait may leave the youngest groups out. */
__global__ void stages(const int *from, int *out) {
    SHARED(int, s, [3 * 32 * 4]);
    const unsigned lane = threadIdx.x;
    for (unsigned i = 0; i < 3; i++) {
        ptx::cp_async16(s + i * 128 + lane * 4, from + i * 128 + lane * 4, lane != 5);
        ptx::cp_async_commit();
    }
    out[lane] = s[lane * 4]; /* too early */
    ptx::cp_async_wait<1>();
    out[32 + lane] = s[128 + lane * 4];
    out[64 + lane] = s[256 + lane * 4]; /* too early */
    ptx::cp_async_wait<0>();
    out[96 + lane] = s[256 + lane * 4 + 3];
}

void async_copies(void) {
    int in[384], out[128];
    for (int i = 0; i < 384; i++) {
        in[i] = i + 1;
    }
    begin_with(0);
    int *din = device_array<int>(384), *dout = device_array<int>(128);
    OK(cudaMemcpy(din, in, sizeof in, cudaMemcpyHostToDevice));
    OK(simt::launch(stages, dim3(1), dim3(32), 0, nullptr, din, dout));
    OK(cudaMemcpy(out, dout, sizeof out, cudaMemcpyDeviceToHost));
    for (int i = 0; i < 32; i++) {
        CU_ASSERT_EQUAL(out[i], -1);
        CU_ASSERT_EQUAL(out[32 + i], i == 5 ? 0 : 128 + i * 4 + 1);
        CU_ASSERT_EQUAL(out[64 + i], -1);
        CU_ASSERT_EQUAL(out[96 + i], i == 5 ? 0 : 256 + i * 4 + 4);
    }
    OK(cudaFree(din));
    OK(cudaFree(dout));
}

/* ------------------------------------------------------------------------------------------------- collectives */

__global__ void collectives(int *out) {
    const int lane = static_cast<int>(threadIdx.x);
    int at = 0;
    auto put = [&](long long v) { out[at++ * 32 + lane] = static_cast<int>(v); };
    put(__shfl_sync(~0u, lane * 3, 33));
    put(__shfl_sync(~0u, lane * 3, lane + 1, 8));
    put(__shfl_up_sync(~0u, lane, 3u));
    put(__shfl_up_sync(~0u, lane, 1u, 4));
    put(__shfl_down_sync(~0u, lane, 5u));
    put(__shfl_down_sync(~0u, lane, 2u, 16));
    put(__shfl_xor_sync(~0u, lane, 9));
    put(__shfl_xor_sync(~0u, 5000000000ll + lane, 1) - 5000000000ll);
    put(__ballot_sync(~0u, lane % 3 == 0));
    put(__any_sync(~0u, lane == 40) + 2 * __any_sync(~0u, lane == 4) + 4 * __all_sync(~0u, lane < 32) +
        8 * __all_sync(~0u, lane < 31));
    put(__reduce_add_sync(~0u, lane - 20));
    put(__reduce_min_sync(~0u, lane - 20));
    put(__reduce_max_sync(~0u, static_cast<unsigned>(lane)));
    put(__reduce_or_sync(~0u, 1u << lane) == ~0u);
    put(__reduce_and_sync(~0u, ~(1u << lane)));
    put(__reduce_xor_sync(~0u, static_cast<unsigned>(lane)));
    put(__match_any_sync(~0u, lane / 5));
    put(__syncthreads_count(lane < 7) + 100 * __syncthreads_or(lane == 3) + 1000 * __syncthreads_and(lane < 32) +
        10000 * __syncthreads_and(lane == 3));
    if (lane >= 8 && lane < 12) { /* a part of the warp */
        out[at * 32 + lane] = __reduce_add_sync(0xf00u, lane);
    }
}

void warps(void) {
    int out[19 * 32], want[19];
    begin_with(0);
    int *d = device_array<int>(19 * 32);
    OK(cudaMemset(d, 0, sizeof out));
    OK(simt::launch(collectives, dim3(1), dim3(32), 0, nullptr, d));
    OK(cudaMemcpy(out, d, sizeof out, cudaMemcpyDeviceToHost));
    for (int lane = 0; lane < 32; lane++) {
        unsigned same = 0;
        for (int k = 0; k < 32; k++) {
            same |= static_cast<unsigned>(k / 5 == lane / 5) << k;
        }
        const int each[19] = {3,
                              (lane / 8 * 8 + (lane + 1) % 8) * 3,
                              lane < 3 ? lane : lane - 3,
                              lane % 4 < 1 ? lane : lane - 1,
                              lane + 5 > 31 ? lane : lane + 5,
                              lane % 16 + 2 > 15 ? lane : lane + 2,
                              lane ^ 9,
                              lane ^ 1,
                              0x49249249,
                              2 + 4,
                              496 - 640,
                              -20,
                              31,
                              1,
                              0,
                              0,
                              static_cast<int>(same),
                              7 + 100 + 1000,
                              lane >= 8 && lane < 12 ? 8 + 9 + 10 + 11 : 0};
        memcpy(want, each, sizeof want);
        for (int i = 0; i < 19; i++) {
            CHECK_MSG(out[i * 32 + lane] == want[i], "collective %d, lane %d: %d, not %d", i, lane, out[i * 32 + lane],
                      want[i]);
        }
    }
    OK(cudaFree(d));
}

__global__ void atomics(unsigned *out, unsigned long long *wide, float *sum) {
    atomicAdd(&out[0], threadIdx.x);
    atomicSub(&out[1], 1u);
    atomicMax(&out[2], threadIdx.x * 7 % 97);
    atomicMin(&out[3], 1000 - threadIdx.x);
    atomicOr(&out[4], 1u << threadIdx.x % 32);
    atomicAnd(&out[5], ~(1u << threadIdx.x % 31));
    atomicXor(&out[6], threadIdx.x);
    atomicInc(&out[7], 9u);
    atomicCAS(&out[8], 0u, threadIdx.x + 1);
    atomicExch(&out[9], threadIdx.x + 1);
    atomicAdd(wide, 1ull << 40);
    atomicAdd(sum, 0.5f);
}

void atomic_operations(void) {
    unsigned out[10];
    unsigned long long wide;
    float sum;
    for (unsigned order = 0; order < 3; order++) {
        begin_with(0);
        simt::options() = {order, order + 1};
        unsigned *d = device_array<unsigned>(10);
        unsigned long long *dw = device_array<unsigned long long>(1);
        float *ds = device_array<float>(1);
        OK(cudaMemset(d, 0, sizeof out));
        OK(cudaMemset(d + 3, 0xff, 4));
        OK(cudaMemset(d + 5, 0xff, 4));
        OK(cudaMemset(dw, 0, 8));
        OK(cudaMemset(ds, 0, 4));
        OK(simt::launch(atomics, dim3(3), dim3(128), 0, nullptr, d, dw, ds));
        OK(cudaMemcpy(out, d, sizeof out, cudaMemcpyDeviceToHost));
        OK(cudaMemcpy(&wide, dw, sizeof wide, cudaMemcpyDeviceToHost));
        OK(cudaMemcpy(&sum, ds, sizeof sum, cudaMemcpyDeviceToHost));
        CU_ASSERT_EQUAL(out[0], 3 * 127 * 64);
        CU_ASSERT_EQUAL(out[1], 0u - 384);
        CU_ASSERT_EQUAL(out[2], 96);
        CU_ASSERT_EQUAL(out[3], 1000 - 127);
        CU_ASSERT_EQUAL(out[4], ~0u);
        CU_ASSERT_EQUAL(out[5], 1u << 31);
        CU_ASSERT_EQUAL(out[6], 0); /* an odd number of times all of 0..127, which is 0 */
        CU_ASSERT_EQUAL(out[7], 384 % 10);
        CU_ASSERT(out[8] >= 1 && out[8] <= 128);
        CU_ASSERT(out[9] >= 1 && out[9] <= 128);
        CU_ASSERT_EQUAL(wide, 384ull << 40);
        CU_ASSERT_EQUAL(sum, 192.0f);
        OK(cudaFree(d));
        OK(cudaFree(dw));
        OK(cudaFree(ds));
    }
    simt::options() = {0, 1};
}

} // namespace

int main(int argc, char **argv) {
    static const test_case tests[] = {
        {"ldmatrix and mma multiply matrices", products},
        {"16-bit numbers are what CUDA's headers make of them", halves},
        {"asynchronous copies land when they are waited for", async_copies},
        {"warps' collectives", warps},
        {"atomic operations", atomic_operations},
    };
    return test_main("emulation_ptx_test", tests, sizeof tests / sizeof *tests, argc, argv);
}
