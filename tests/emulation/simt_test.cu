/*
 * What the emulation says of wrong kernels, and that it says nothing of right ones. A fault ends the device; what only a
 * sanitizer sees ends the process, so those run in processes of their own.
 */
#include "kernels/cuda/ptx.cuh"
#include "tests/emulation/testing.hh"

#if SIMT_TSAN
#define BUILD tsan
#elif EMU_ASAN_ON
#define BUILD asan
#else
#define BUILD plain
#endif

namespace {

/* ---------------------------------------------------------------------------------------------- wrong meetings */

__global__ void barrier_and_warp(int *out) {
    if (threadIdx.x != 0) {
        __syncthreads();
    } else {
        __syncwarp();
    }
    out[threadIdx.x] = 1;
}
__global__ void two_barriers(int *out) {
    if (threadIdx.x & 1) {
        __syncthreads();
    } else {
        __syncthreads();
    }
    out[threadIdx.x] = 1;
}
__global__ void barrier_and_shuffle(int *out) {
    if (threadIdx.x < 40) {
        __syncthreads();
    }
    out[threadIdx.x] = __shfl_xor_sync(~0u, static_cast<int>(threadIdx.x), 1);
}
__global__ void barrier_in_a_part(int *out) {
    if (threadIdx.x < 32) {
        __syncthreads();
    } else if (threadIdx.x == 63) {
        out[0] = __syncthreads_or(1);
    }
    __syncthreads();
}
__global__ void foreign_mask(int *out) { out[threadIdx.x] = __shfl_xor_sync(0x0000ffffu, 1, 1); }
__global__ void mixed_masks(int *out) {
    out[threadIdx.x] = __shfl_xor_sync(threadIdx.x < 16 ? ~0u : 0xffff0000u, 1, 1);
    __syncwarp();
}
__global__ void mixed_places(int *out) {
    if (threadIdx.x & 1) {
        out[threadIdx.x] = __shfl_xor_sync(~0u, 1, 1);
    } else {
        out[threadIdx.x] = __shfl_xor_sync(~0u, 2, 1);
    }
}
__global__ void width_of_five(int *out) { out[threadIdx.x] = __shfl_down_sync(~0u, 1, 1, 5); }
__global__ void lane_is_gone(int *out) {
    if (threadIdx.x == 7) {
        return;
    }
    float c[4] = {};
    const uint32_t a[4] = {};
    ptx::mma<__nv_bfloat16>(c, a, 0, 0);
    out[threadIdx.x] = static_cast<int>(c[0]);
}
__global__ void parts_of_warps(int *out) { /* allowed: disjoint masks, lanes that are gone */
    const int lane = static_cast<int>(threadIdx.x % 32);
    if (lane == 31) {
        return;
    }
    int v = static_cast<int>(threadIdx.x);
    if (lane < 16) {
        v += __shfl_xor_sync(0x0000ffffu, v, 1);
    } else {
        v += __shfl_down_sync(0x7fff0000u, v, 1, 16);
    }
    __syncthreads();
    out[threadIdx.x] = v + static_cast<int>(__ballot_sync(~0u, v & 1) >> 31);
}

/* ------------------------------------------------------------------------------------------------- wrong places */

__global__ void async_to_global(int *out) { ptx::cp_async16(out, out + 64); }
__global__ void async_from_odd(int *out) {
    SHARED(int, s, [32 * 4]);
    ptx::cp_async16(s + threadIdx.x * 4, out + 1);
}
__global__ void matrix_from_global(int *out) {
    uint32_t d[4];
    ptx::ldmatrix_x4(d, out + threadIdx.x * 4);
    out[threadIdx.x] = static_cast<int>(d[0]);
}
__global__ void behind_global(int *out) { out[threadIdx.x + 256 - 31] = 1; }
__global__ void before_global(int *out) { out[static_cast<int>(threadIdx.x) - 1024] = 1; }
__global__ void null(int *out) {
    int *volatile p = out[0] ? out : nullptr;
    p[threadIdx.x] = 1;
}
__global__ void behind_shared(int *out) {
    SHARED(int, s, [36]);
    int *p = s;
    p[threadIdx.x + 8] = 1; /* 36 is one past the end */
    out[threadIdx.x] = 0;
}
__global__ void behind_dynamic(int *out) {
    DYN_SHARED(int, s);
    s[threadIdx.x + 1] = 1;
    out[threadIdx.x] = 0;
}
__global__ void too_much_shared(int *out) {
    SHARED(int, s, [12289]);
    s[threadIdx.x] = 1;
    out[threadIdx.x] = s[0];
}
__global__ void all_of_shared(int *out) {
    SHARED(int, s, [12288]);
    DYN_SHARED(int, more);
    s[12287 - threadIdx.x] = more[45823 - threadIdx.x] = 1;
    out[threadIdx.x] = s[12287 - threadIdx.x];
}
__global__ void odd_vector(int *out) { *reinterpret_cast<uint2 *>(out + 1) = make_uint2(1, 2); }

/* ------------------------------------------------------------------------------------------------------- races */

__global__ void no_barrier(int *out) { /* in the order of threads it looks right */
    SHARED(int, s, [256]);
    s[threadIdx.x] = static_cast<int>(threadIdx.x);
    out[threadIdx.x] = threadIdx.x ? s[threadIdx.x - 1] : 0;
}
__global__ void with_barrier(int *out) {
    SHARED(int, s, [64]);
    s[threadIdx.x] = static_cast<int>(threadIdx.x);
    __syncthreads();
    out[threadIdx.x] = s[threadIdx.x ^ 63];
}
__global__ void warp_by_shuffle(int *out) { /* a shuffle orders no memory */
    SHARED(int, s, [32]);
    s[threadIdx.x] = static_cast<int>(threadIdx.x);
    const int v = __shfl_xor_sync(~0u, 1, 1);
    out[threadIdx.x] = s[threadIdx.x ^ 1] + v;
}
__global__ void warp_by_syncwarp(int *out) {
    SHARED(int, s, [32]);
    s[threadIdx.x] = static_cast<int>(threadIdx.x);
    __syncwarp();
    out[threadIdx.x] = s[threadIdx.x ^ 1];
}
__global__ void vector_race(int *out) {
    SHARED(float, s, [256]);
    *reinterpret_cast<uint4 *>(s + 4 * threadIdx.x) = make_uint4(1, 2, 3, 4);
    const uint4 v = *reinterpret_cast<const uint4 *>(s + 4 * (threadIdx.x ^ 32));
    out[threadIdx.x] = static_cast<int>(v.x + v.w);
}
__global__ void async_without_barrier(int *out) { /* one's own copies are there, others' may not be */
    SHARED(int, s, [32 * 4]);
    ptx::cp_async16(s + threadIdx.x * 4, out + threadIdx.x * 4);
    ptx::cp_async_commit();
    ptx::cp_async_wait<0>();
    out[128 + threadIdx.x] = s[(threadIdx.x * 4 + 4) % 128];
}
__global__ void async_with_barrier(int *out) {
    SHARED(int, s, [32 * 4]);
    ptx::cp_async16(s + threadIdx.x * 4, out + threadIdx.x * 4, threadIdx.x < 31);
    ptx::cp_async_commit();
    ptx::cp_async_wait<0>();
    __syncthreads();
    out[128 + threadIdx.x] = s[(threadIdx.x * 4 + 4) % 128];
}
__global__ void blocks_on_one_place(int *out) { out[(threadIdx.x + blockIdx.x) % 256] = static_cast<int>(blockIdx.x); }
__global__ void blocks_by_atomics(int *out) { atomicAdd(&out[threadIdx.x % 2], 1); }

/* The last block adds up what all have left. Fences: before the ticket is drawn, and after, by the thread that has it. */
enum Fences { none, both, not_its_own };
template <Fences fences> __global__ void last_block(int *out) {
    SHARED(unsigned, ticket, [1]);
    if (threadIdx.x < 7) {
        out[8 + blockIdx.x * 7 + threadIdx.x] = 1;
    }
    if (fences != none) {
        __threadfence();
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        ticket[0] = atomicAdd(reinterpret_cast<unsigned *>(out), 1u);
        if (fences == both) {
            __threadfence();
        }
    }
    __syncthreads();
    if (ticket[0] + 1 == gridDim.x && threadIdx.x < 7) {
        if (fences == not_its_own && threadIdx.x > 0) { /* the others have not seen the ticket */
            __threadfence();
        }
        int sum = 0;
        for (unsigned i = 0; i < gridDim.x; i++) {
            sum += out[8 + i * 7 + (threadIdx.x + 1) % 7];
        }
        out[1 + threadIdx.x] = sum;
    }
}

/* ------------------------------------------------------------------------------------------------------- the table */

/* What each build says; "" nothing at all, NULL: not tried there. A fault's message, or a sanitizer's. */
struct Case {
    const char *name;
    void (*kernel)(int *);
    unsigned blocks, threads;
    size_t shared_bytes;
    const char *plain, *asan, *tsan;
};
#define SAME(text) text, text, text
#define CASE(kernel) #kernel, kernel
const Case cases[] = {
    {CASE(barrier_and_warp), 1, 128, 0, SAME("deadlock in block (0,0,0)")},
    {CASE(two_barriers), 1, 64, 0, SAME("divergent barrier")},
    {CASE(barrier_and_shuffle), 1, 64, 0, SAME("wait at __shfl_xor_sync")},
    {CASE(barrier_in_a_part), 1, 64, 0, SAME("divergent barrier")},
    {CASE(foreign_mask), 1, 32, 0, SAME("not in its own mask")},
    {CASE(mixed_masks), 1, 32, 0, SAME("mismatched warp collective")},
    {CASE(mixed_places), 1, 32, 0, SAME("mismatched warp collective")},
    {CASE(width_of_five), 1, 32, 0, SAME("a width of 5")},
    {CASE(lane_is_gone), 1, 32, 0, SAME("all 32 lanes must take part")},
    {CASE(parts_of_warps), 1, 64, 0, SAME("")},
    {CASE(async_to_global), 1, 32, 0, SAME("not 16 bytes of shared memory")},
    {CASE(async_from_odd), 1, 32, 0, SAME("not aligned to 16")},
    {CASE(matrix_from_global), 1, 32, 0, SAME("not 16 aligned bytes of shared memory")},
    {CASE(behind_global), 1, 32, 0, "bytes behind 1024 by cudaMalloc", "bytes behind 1024 by cudaMalloc", nullptr},
    {CASE(before_global), 1, 32, 0, "bytes before 1024 by cudaMalloc", "bytes before 1024 by cudaMalloc", nullptr},
    {CASE(null), 1, 32, 0, "no memory of the device's", nullptr, nullptr},
    {CASE(behind_shared), 1, 32, 0, "byte 144 of 144 bytes of shared memory", "AddressSanitizer", nullptr},
    {CASE(behind_dynamic), 1, 32, 128, "byte 128 of 128 bytes of shared memory", "AddressSanitizer", nullptr},
    {CASE(too_much_shared), 1, 32, 0, SAME("more than a block can have")},
    {CASE(all_of_shared), 1, 32, 45824 * 4, SAME("")},
    {CASE(odd_vector), 1, 1, 0, "", "misaligned address", ""},
    {CASE(no_barrier), 1, 256, 0, "", "", "data race"},
    {CASE(with_barrier), 1, 64, 0, SAME("")},
    {CASE(warp_by_shuffle), 1, 32, 0, "", "", "data race"},
    {CASE(warp_by_syncwarp), 1, 32, 0, SAME("")},
    {CASE(vector_race), 1, 64, 0, "", "", "data race"},
    {CASE(async_without_barrier), 1, 32, 0, "", "", "data race"},
    {CASE(async_with_barrier), 1, 32, 0, SAME("")},
    {CASE(blocks_on_one_place), 2, 256, 0, "", "", "data race"},
    {CASE(blocks_by_atomics), 2, 64, 0, SAME("")},
    {CASE(last_block<none>), 4, 256, 0, "", "", "data race"},
    {CASE(last_block<both>), 4, 256, 0, SAME("")},
    {CASE(last_block<not_its_own>), 4, 256, 0, "", "", "data race"},
};

/* Runs a case; says what the device has died of. */
void run_case(const Case &c) {
    begin_with(0);
    int *out = device_array<int>(256);
    OK(cudaMemset(out, 0, 256 * sizeof(int)));
    OK(simt::launch(c.kernel, dim3(c.blocks), dim3(c.threads), c.shared_bytes, nullptr, out));
    const cudaError_t e = cudaDeviceSynchronize();
    CHECK_MSG((e != cudaSuccess) == (*emulation_fault() != '\0'), "%s and \"%s\"", cudaGetErrorName(e),
              emulation_fault());
    EXPECT(cudaFree(out), e);
}

const char *alone;
void run_case_alone(void) {
    for (const Case &c : cases) {
        if (strcmp(c.name, alone) == 0) {
            run_case(c);
        }
    }
}

bool is_sanitizers(const char *text) {
    return strstr(text, "Sanitizer") || strstr(text, "data race") || strstr(text, "misaligned address");
}

void wrong_kernels(void) {
    for (const Case &c : cases) {
        if (!c.BUILD) {
            continue;
        }
        if (is_sanitizers(c.BUILD)) {
            const Ending end = run_alone(c.name);
            CHECK_MSG(!end.well && end.output.find(c.BUILD) != std::string::npos, "%s: %s", c.name, end.output.c_str());
            continue;
        }
        run_case(c);
        const bool good = *c.BUILD ? strstr(emulation_fault(), c.BUILD) != nullptr : *emulation_fault() == '\0';
        CHECK_MSG(good, "%s: \"%s\", not \"%s\"", c.name, emulation_fault(), c.BUILD);
    }
    begin_with(0);
}

/* --------------------------------------------------------------------------------------------------- other things */

void bad_launches(void) {
    begin_with(0);
    int *out = device_array<int>(64);
    EXPECT(simt::launch(with_barrier, dim3(1), dim3(1025), 0, nullptr, out), cudaErrorInvalidConfiguration);
    EXPECT(simt::launch(with_barrier, dim3(0), dim3(64), 0, nullptr, out), cudaErrorInvalidConfiguration);
    EXPECT(simt::launch(with_barrier, dim3(1, 65536), dim3(64), 0, nullptr, out), cudaErrorInvalidConfiguration);
    EXPECT(simt::launch(with_barrier, dim3(1), dim3(64), 228 << 10, nullptr, out), cudaErrorInvalidValue);
    EXPECT(simt::launch(with_barrier, dim3(1), dim3(64), 0, nullptr, out),
           cudaErrorInvalidValue); /* still the last one */
    OK(simt::launch(with_barrier, dim3(1), dim3(64), 0, nullptr, out));
    OK(cudaFree(out));
    CU_ASSERT(nothing_left());
}

struct Wrapped {
    uint32_t n;
    const int *p;
};
__global__ void reads_wrapped(Wrapped in, int *out) { out[threadIdx.x] = in.p[threadIdx.x]; }

void host_pointers(void) {
    static int here[32];
    int *gone;
    for (int i = 0; i < 3; i++) {
        begin_with(0);
        int *out = device_array<int>(32);
        const char *text = "out of a kernel's reach";
        if (i == 0) {
            EXPECT(simt::launch(with_barrier, dim3(1), dim3(32), 0, nullptr, here), cudaErrorIllegalAddress);
        } else if (i == 1) {
            EXPECT(simt::launch(reads_wrapped, dim3(1), dim3(32), 0, nullptr, Wrapped{32, here}, out),
                   cudaErrorIllegalAddress);
        } else {
            gone = device_array<int>(32);
            OK(cudaFree(gone));
            EXPECT(simt::launch(with_barrier, dim3(1), dim3(32), 0, nullptr, gone), cudaErrorIllegalAddress);
            text = "that were freed";
        }
        CHECK_MSG(strstr(emulation_fault(), text) != nullptr, "%s", emulation_fault());
    }
    begin_with(0);
    int *out = device_array<int>(32), *pinned = pinned_array<int>(32);
    for (int i = 0; i < 32; i++) {
        pinned[i] = i;
    }
    OK(simt::launch(reads_wrapped, dim3(1), dim3(32), 0, nullptr, Wrapped{32, pinned}, out));
    OK(simt::launch(reads_wrapped, dim3(1), dim3(32), 0, nullptr, Wrapped{32, out}, out + 0));
    OK(cudaMemcpy(here, out, sizeof here, cudaMemcpyDeviceToHost));
    CU_ASSERT_EQUAL(here[31], 31);
    OK(cudaFree(out));
    OK(cudaFreeHost(pinned));
}

__global__ void where_am_i(int *out) {
    const unsigned block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    const unsigned thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
    out[block * blockDim.x * blockDim.y * blockDim.z + thread] += static_cast<int>(block * 1000 + thread);
}

void every_thread_once(void) {
    const dim3 grid(3, 2, 5), block(5, 3, 7);
    const int blocks = 30, threads = 105;
    int *host = new int[blocks * threads];
    for (unsigned order = 0; order < 6; order++) {
        begin_with(0);
        simt::options() = {order, order == 5 ? 3u : 1u};
        int *out = device_array<int>(blocks * threads);
        OK(cudaMemset(out, 0, blocks * threads * sizeof(int)));
        OK(simt::launch(where_am_i, grid, block, 0, nullptr, out));
        OK(cudaMemcpy(host, out, blocks * threads * sizeof(int), cudaMemcpyDeviceToHost));
        for (int i = 0; i < blocks * threads; i++) {
            if (!CHECK_MSG(host[i] == i / threads * 1000 + i % threads, "order %u, thread %d: %d", order, i, host[i])) {
                break;
            }
        }
        OK(cudaFree(out));
    }
    simt::options() = {0, 1};
    delete[] host;
}

/* What depends on the order of threads shows: the race that the forward order hides. */
void orders_differ(void) {
    int host[64], wrong = 0;
    for (unsigned order = 0; order < 4 && !SIMT_TSAN; order++) {
        begin_with(0);
        simt::options().order = order;
        int *out = device_array<int>(64);
        OK(simt::launch(no_barrier, dim3(1), dim3(64), 0, nullptr, out));
        OK(cudaMemcpy(host, out, sizeof host, cudaMemcpyDeviceToHost));
        for (int i = 1; i < 64; i++) {
            wrong += (host[i] != i - 1) * (order ? 1 : 1000);
        }
        OK(cudaFree(out));
    }
    simt::options().order = 0;
    CHECK_MSG(SIMT_TSAN || (wrong > 0 && wrong < 1000), "%d", wrong);
}

} // namespace

int main(int argc, char **argv) {
    static const test_case tests[] = {
        {"wrong kernels are found out, right ones left alone", wrong_kernels},
        {"launches that a GPU refuses are refused", bad_launches},
        {"kernels may not follow the host's pointers", host_pointers},
        {"every thread runs once, in each order and by several OS threads", every_thread_once},
        {"a race shows in some order of threads", orders_differ},
    };
    if (argc == 3 && strcmp(argv[1], "--alone") == 0) {
        static const test_case one[] = {{"alone", run_case_alone}};
        alone = argv[2];
        return test_main("emulation_simt_test", one, 1, 1, argv);
    }
    return test_main("emulation_simt_test", tests, sizeof tests / sizeof *tests, argc, argv);
}
