/*
 * gpu-limits: what a GPU copies and multiplies in a second, as JSON: what perch bench compares with (bench.copy_gbps,
 * bench.matrix_tflops). Measured on random numbers, with events on the device, medians of several runs; the results of copy and
 * product are checked. It changes no setting of the GPU.
 *
 *   gpu-limits [--gpu N] [--bytes N] [--size N] [--repeats N]
 *
 *   --gpu N      index of the GPU (0)
 *   --bytes N    of each of the two buffers that are copied (4294967296, at most a third of the free memory)
 *   --size N     of the square bf16 matrices (8192)
 *   --repeats N  timed runs of everything (20)
 */
#include <cublasLt.h>
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

/* The emulation of tests/emulation, included before this file, launches kernels by a function. */
#ifdef SIMT_EMULATE
#define LAUNCH(kernel, grid, threads, ...) simt::launch(kernel, dim3(grid), dim3(threads), 0, nullptr, __VA_ARGS__)
#else
#define LAUNCH(kernel, grid, threads, ...) (kernel<<<(grid), (threads)>>>(__VA_ARGS__), cudaGetLastError())
#endif

namespace {

constexpr unsigned THREADS = 256;
constexpr unsigned IN_FLIGHT = 4;       /* loads of 16 bytes that a thread has under way */
constexpr size_t WORKSPACE = 64u << 20; /* of a matrix product */
constexpr int MAX_ALGORITHMS = 16;
constexpr unsigned WARM_UPS = 3;

struct settings {
    int gpu = 0;
    size_t bytes = static_cast<size_t>(4) << 30;
    uint32_t size = 8192;
    unsigned repeats = 20;
};

/* Of the timed runs: 10^9 bytes or 10^12 operations a second. */
struct rate {
    double median, least, most;
};

[[noreturn]] void fail(const char *what, const char *why) {
    std::fprintf(stderr, "gpu-limits: %s: %s\n", what, why);
    std::exit(1);
}

void must(cudaError_t status, const char *what) {
    if (status != cudaSuccess) {
        fail(what, cudaGetErrorString(status));
    }
}

void must(cublasStatus_t status, const char *what) {
    if (status != CUBLAS_STATUS_SUCCESS) {
        fail(what, cublasLtGetStatusString(status));
    }
}

/* --------------------------------------------------------------- kernels -- */

/* Two bf16 numbers of -1..1 in each word (the finalizer of MurmurHash3). */
__global__ void fill_kernel(uint32_t *to, size_t n_words, uint32_t seed) {
    const size_t stride = static_cast<size_t>(gridDim.x) * blockDim.x;
    for (size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < n_words; i += stride) {
        uint32_t h = static_cast<uint32_t>(i) * 0x9E3779B9u + seed;
        h = (h ^ (h >> 16)) * 0x85EBCA6Bu;
        h = (h ^ (h >> 13)) * 0xC2B2AE35u;
        h ^= h >> 16;
        const float low = static_cast<float>(static_cast<int>(h & 0xFFFF) - 32768) / 32768.0f;
        const float high = static_cast<float>(static_cast<int>(h >> 16) - 32768) / 32768.0f;
        const uint32_t a = __bfloat16_as_ushort(__float2bfloat16_rn(low));
        const uint32_t b = __bfloat16_as_ushort(__float2bfloat16_rn(high));
        to[i] = a | b << 16;
    }
}

/* n is a multiple of IN_FLIGHT times the threads of a block. */
__global__ void copy_kernel(const uint4 *from, uint4 *to, size_t n) {
    const size_t piece = static_cast<size_t>(blockDim.x) * IN_FLIGHT;
    for (size_t at = blockIdx.x * piece + threadIdx.x; at < n; at += gridDim.x * piece) {
        uint4 v[IN_FLIGHT];
#pragma unroll
        for (unsigned k = 0; k < IN_FLIGHT; k++) {
            v[k] = from[at + k * blockDim.x];
        }
#pragma unroll
        for (unsigned k = 0; k < IN_FLIGHT; k++) {
            to[at + k * blockDim.x] = v[k];
        }
    }
}

/* `never` is no word's value: so nothing is written, which the compiler cannot know. */
__global__ void read_kernel(const uint4 *from, size_t n, uint32_t never, uint32_t *out) {
    const size_t piece = static_cast<size_t>(blockDim.x) * IN_FLIGHT;
    uint32_t all = 0;
    for (size_t at = blockIdx.x * piece + threadIdx.x; at < n; at += gridDim.x * piece) {
        uint4 v[IN_FLIGHT];
#pragma unroll
        for (unsigned k = 0; k < IN_FLIGHT; k++) {
            v[k] = from[at + k * blockDim.x];
        }
#pragma unroll
        for (unsigned k = 0; k < IN_FLIGHT; k++) {
            all |= v[k].x | v[k].y | v[k].z | v[k].w;
        }
    }
    if (all == never) {
        *out = all;
    }
}

__global__ void compare_kernel(const uint32_t *a, const uint32_t *b, size_t n_words, unsigned long long *n_different) {
    const size_t stride = static_cast<size_t>(gridDim.x) * blockDim.x;
    unsigned long long n = 0;
    for (size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < n_words; i += stride) {
        n += a[i] != b[i] ? 1 : 0;
    }
    if (n > 0) {
        atomicAdd(n_different, n);
    }
}

/* ---------------------------------------------------------------- timing -- */

struct gpu {
    cudaDeviceProp properties;
    int driver = 0, runtime = 0;
    unsigned grid = 0; /* blocks that keep all processors busy */
    cudaEvent_t begin, end;
};

/* Times `run` on the device; amount: of one run, in bytes or operations; unit: 1e9 or 1e12. */
template <class F> rate measure(const gpu &g, unsigned repeats, double amount, double unit, const char *what, F run) {
    std::vector<double> rates;
    for (unsigned i = 0; i < WARM_UPS + repeats; i++) {
        float ms = 0.0f;
        must(cudaEventRecord(g.begin, nullptr), what);
        run();
        must(cudaEventRecord(g.end, nullptr), what);
        must(cudaEventSynchronize(g.end), what);
        must(cudaEventElapsedTime(&ms, g.begin, g.end), what);
        if (i >= WARM_UPS) {
            rates.push_back(amount / (std::max(static_cast<double>(ms), 1e-6) / 1e3) / unit);
        }
    }
    std::sort(rates.begin(), rates.end());
    return {rates[rates.size() / 2], rates.front(), rates.back()};
}

/* Blocks for so many threads: as many as keep the GPU busy, or fewer. */
unsigned blocks(const gpu &g, size_t n_threads) {
    return static_cast<unsigned>(std::min<size_t>(g.grid, (n_threads + THREADS - 1) / THREADS));
}

void fill(const gpu &g, void *to, size_t bytes, uint32_t seed) {
    must(LAUNCH(fill_kernel, blocks(g, bytes / 4), THREADS, static_cast<uint32_t *>(to), bytes / 4, seed),
         "filling a buffer");
}

/* ---------------------------------------------------------------- memory -- */

struct copies {
    size_t bytes; /* of a buffer */
    rate by_runtime, by_kernel, read;
};

void check_copy(const gpu &g, const void *from, const void *to, size_t bytes, unsigned long long *different,
                const char *what) {
    unsigned long long n = 0;
    must(cudaMemset(different, 0, sizeof n), what);
    must(LAUNCH(compare_kernel, blocks(g, bytes / 4), THREADS, static_cast<const uint32_t *>(from),
                static_cast<const uint32_t *>(to), bytes / 4, different),
         what);
    must(cudaMemcpy(&n, different, sizeof n, cudaMemcpyDeviceToHost), what);
    if (n > 0) {
        fail(what, "what was copied is not what was there");
    }
}

copies measure_copies(const gpu &g, const settings &s) {
    const size_t piece = static_cast<size_t>(THREADS) * IN_FLIGHT * sizeof(uint4);
    size_t free_bytes = 0, total_bytes = 0;
    must(cudaMemGetInfo(&free_bytes, &total_bytes), "asking for the free memory");
    copies c;
    c.bytes = std::min(s.bytes, free_bytes / 3) / piece * piece;
    if (c.bytes == 0) {
        fail("copies", "--bytes or the GPU's free memory is too small");
    }
    void *from = nullptr, *to = nullptr;
    unsigned long long *scratch = nullptr;
    must(cudaMalloc(&from, c.bytes), "allocating a buffer");
    must(cudaMalloc(&to, c.bytes), "allocating a buffer");
    must(cudaMalloc(reinterpret_cast<void **>(&scratch), sizeof *scratch), "allocating a buffer");
    const auto *in = static_cast<const uint4 *>(from);
    auto *out = static_cast<uint4 *>(to);
    const size_t n = c.bytes / sizeof(uint4);
    const double both = 2.0 * static_cast<double>(c.bytes);

    fill(g, from, c.bytes, 1);
    fill(g, to, c.bytes, 2);
    c.by_runtime = measure(g, s.repeats, both, 1e9, "a copy by the runtime", [&] {
        must(cudaMemcpyAsync(to, from, c.bytes, cudaMemcpyDeviceToDevice, nullptr), "a copy by the runtime");
    });
    check_copy(g, from, to, c.bytes, scratch, "a copy by the runtime");
    fill(g, to, c.bytes, 3);
    c.by_kernel = measure(g, s.repeats, both, 1e9, "a copy by a kernel", [&] {
        must(LAUNCH(copy_kernel, blocks(g, n / IN_FLIGHT), THREADS, in, out, n), "a copy by a kernel");
    });
    check_copy(g, from, to, c.bytes, scratch, "a copy by a kernel");
    c.read = measure(g, s.repeats, both / 2, 1e9, "reading", [&] {
        must(LAUNCH(read_kernel, blocks(g, n / IN_FLIGHT), THREADS, in, n, 0u, reinterpret_cast<uint32_t *>(scratch)),
             "reading");
    });
    must(cudaFree(from), "freeing a buffer");
    must(cudaFree(to), "freeing a buffer");
    must(cudaFree(scratch), "freeing a buffer");
    return c;
}

/* -------------------------------------------------------------- products -- */

struct product {
    uint32_t size;
    int n_algorithms; /* that cuBLASLt proposed, the fastest of which was measured */
    rate measured;
    double error; /* the largest of those looked at, relative to the root of the mean square */
};

/* y[n][o] = sum over i of w[o][i] x[n][i], as the model's linear layers have it: all matrices bf16, sums f32. */
struct gemm {
    cublasLtHandle_t lt;
    cublasLtMatmulDesc_t desc;
    cublasLtMatrixLayout_t layout; /* all three are square */
    void *w, *x, *y, *workspace;

    cublasStatus_t run(const cublasLtMatmulAlgo_t *algorithm) const {
        const float one = 1.0f, zero = 0.0f;
        return cublasLtMatmul(lt, desc, &one, w, layout, x, layout, &zero, y, layout, y, layout, algorithm, workspace,
                              WORKSPACE, nullptr);
    }
};

gemm open_gemm(const gpu &g, uint32_t size) {
    const cublasOperation_t transposed = CUBLAS_OP_T;
    const size_t bytes = static_cast<size_t>(size) * size * sizeof(__nv_bfloat16);
    gemm m;
    must(cublasLtCreate(&m.lt), "opening cuBLASLt");
    must(cublasLtMatmulDescCreate(&m.desc, CUBLAS_COMPUTE_32F, CUDA_R_32F), "describing a product");
    must(cublasLtMatmulDescSetAttribute(m.desc, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof transposed),
         "describing a product");
    must(cublasLtMatrixLayoutCreate(&m.layout, CUDA_R_16BF, size, size, size), "describing a matrix");
    must(cudaMalloc(&m.w, bytes), "allocating a matrix");
    must(cudaMalloc(&m.x, bytes), "allocating a matrix");
    must(cudaMalloc(&m.y, bytes), "allocating a matrix");
    must(cudaMalloc(&m.workspace, WORKSPACE), "allocating a workspace");
    fill(g, m.w, bytes, 4);
    fill(g, m.x, bytes, 5);
    must(cudaMemset(m.y, 0xFF, bytes), "filling a matrix"); /* NaN */
    return m;
}

void close_gemm(const gemm &m) {
    must(cudaFree(m.w), "freeing a matrix");
    must(cudaFree(m.x), "freeing a matrix");
    must(cudaFree(m.y), "freeing a matrix");
    must(cudaFree(m.workspace), "freeing a workspace");
    must(cublasLtMatrixLayoutDestroy(m.layout), "closing cuBLASLt");
    must(cublasLtMatmulDescDestroy(m.desc), "closing cuBLASLt");
    must(cublasLtDestroy(m.lt), "closing cuBLASLt");
}

std::vector<cublasLtMatmulHeuristicResult_t> propose(const gemm &m) {
    std::vector<cublasLtMatmulHeuristicResult_t> results(MAX_ALGORITHMS);
    cublasLtMatmulPreference_t preference;
    int n = 0;
    must(cublasLtMatmulPreferenceCreate(&preference), "asking for algorithms");
    must(cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &WORKSPACE,
                                              sizeof WORKSPACE),
         "asking for algorithms");
    must(cublasLtMatmulAlgoGetHeuristic(m.lt, m.desc, m.layout, m.layout, m.layout, m.layout, preference,
                                        MAX_ALGORITHMS, results.data(), &n),
         "asking for algorithms");
    must(cublasLtMatmulPreferenceDestroy(preference), "asking for algorithms");
    if (n == 0) {
        fail("asking for algorithms", "cuBLASLt has none");
    }
    results.resize(static_cast<size_t>(n));
    return results;
}

float number_at(const std::vector<uint16_t> &row, size_t i) {
    const uint32_t bits = static_cast<uint32_t>(row[i]) << 16;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

std::vector<uint16_t> fetch_row(const void *matrix, uint32_t size, uint32_t row) {
    std::vector<uint16_t> values(size);
    must(cudaMemcpy(values.data(), static_cast<const uint16_t *>(matrix) + static_cast<size_t>(row) * size,
                    size * sizeof(uint16_t), cudaMemcpyDeviceToHost),
         "fetching a row");
    return values;
}

/* A few rows and columns, from one corner to the other, against sums in double. */
double check_product(const gemm &m, uint32_t size) {
    const uint32_t n = std::min(size, 8u);
    double worst = 0.0, squares = 0.0;
    for (uint32_t i = 0; i < n; i++) {
        const uint32_t row = static_cast<uint32_t>(static_cast<uint64_t>(i) * (size - 1) / std::max(n - 1, 1u));
        const std::vector<uint16_t> x = fetch_row(m.x, size, row), y = fetch_row(m.y, size, row);
        for (uint32_t k = 0; k < n; k++) {
            const uint32_t column = static_cast<uint32_t>(static_cast<uint64_t>(k) * (size - 1) / std::max(n - 1, 1u));
            const std::vector<uint16_t> w = fetch_row(m.w, size, column);
            double sum = 0.0;
            for (uint32_t j = 0; j < size; j++) {
                sum += static_cast<double>(number_at(x, j)) * static_cast<double>(number_at(w, j));
            }
            const double difference = std::fabs(sum - static_cast<double>(number_at(y, column)));
            worst = difference >= 0.0 ? std::max(worst, difference) : HUGE_VAL; /* NaN: nothing was written */
            squares += sum * sum;
        }
    }
    return worst / std::sqrt(squares / (static_cast<double>(n) * n));
}

product measure_product(const gpu &g, const settings &s) {
    const gemm m = open_gemm(g, s.size);
    const auto algorithms = propose(m);
    const double flops = 2.0 * std::pow(static_cast<double>(s.size), 3);
    const char *what = "a matrix product";
    const cublasLtMatmulAlgo_t *best = nullptr;
    double best_rate = 0.0;
    for (const auto &a : algorithms) {
        if (a.state != CUBLAS_STATUS_SUCCESS || m.run(&a.algo) != CUBLAS_STATUS_SUCCESS) {
            continue;
        }
        const rate r = measure(g, 3, flops, 1e12, what, [&] { must(m.run(&a.algo), what); });
        if (r.median > best_rate) {
            best_rate = r.median;
            best = &a.algo;
        }
    }
    if (best == nullptr) {
        fail(what, "none of the algorithms that cuBLASLt proposed runs");
    }
    product p;
    p.size = s.size;
    p.n_algorithms = static_cast<int>(algorithms.size());
    p.measured = measure(g, s.repeats, flops, 1e12, what, [&] { must(m.run(best), what); });
    p.error = check_product(m, s.size);
    if (!(p.error < 0.02)) {
        fail(what, "the result is not the product");
    }
    close_gemm(m);
    return p;
}

/* --------------------------------------------------------------- program -- */

gpu open_gpu(int index) {
    gpu g;
    must(cudaSetDevice(index), "opening the GPU");
    must(cudaGetDeviceProperties(&g.properties, index), "asking for the GPU's properties");
    must(cudaDriverGetVersion(&g.driver), "asking for the driver's version");
    must(cudaRuntimeGetVersion(&g.runtime), "asking for the runtime's version");
    must(cudaEventCreate(&g.begin), "making an event");
    must(cudaEventCreate(&g.end), "making an event");
    g.grid = static_cast<unsigned>(g.properties.multiProcessorCount) * 16;
    return g;
}

uint64_t parse_number(const char *flag, const char *text, uint64_t least, uint64_t most) {
    char *end = nullptr;
    const unsigned long long value = text ? std::strtoull(text, &end, 10) : 0;
    if (!text || end == text || *end != '\0' || text[0] == '-' || value < least || value > most) {
        std::fprintf(stderr, "gpu-limits: %s takes a whole number of %llu..%llu\n", flag,
                     static_cast<unsigned long long>(least), static_cast<unsigned long long>(most));
        std::exit(2);
    }
    return value;
}

settings parse(int argc, char **argv) {
    settings s;
    for (int i = 1; i < argc; i += 2) {
        const char *value = i + 1 < argc ? argv[i + 1] : nullptr;
        if (std::strcmp(argv[i], "--gpu") == 0) {
            s.gpu = static_cast<int>(parse_number(argv[i], value, 0, 255));
        } else if (std::strcmp(argv[i], "--bytes") == 0) {
            s.bytes = parse_number(argv[i], value, 1 << 16, static_cast<uint64_t>(1) << 40);
        } else if (std::strcmp(argv[i], "--size") == 0) {
            s.size = static_cast<uint32_t>(parse_number(argv[i], value, 16, 65536));
        } else if (std::strcmp(argv[i], "--repeats") == 0) {
            s.repeats = static_cast<unsigned>(parse_number(argv[i], value, 1, 10000));
        } else {
            std::fprintf(stderr, "gpu-limits: unknown argument %s; there are --gpu, --bytes, --size and --repeats\n",
                         argv[i]);
            std::exit(2);
        }
    }
    if (s.size % 8 != 0) {
        std::fprintf(stderr, "gpu-limits: --size takes a multiple of 8\n");
        std::exit(2);
    }
    return s;
}

void print_rate(const char *name, const rate &r, const char *behind) {
    std::printf("    \"%s\": {\"median\": %.1f, \"min\": %.1f, \"max\": %.1f}%s\n", name, r.median, r.least, r.most,
                behind);
}

} // namespace

int main(int argc, char **argv) {
    const settings s = parse(argc, argv);
    const gpu g = open_gpu(s.gpu);
    const copies c = measure_copies(g, s);
    const product p = measure_product(g, s);
    std::printf("{\n  \"gpu\": \"%s\",\n  \"compute_capability\": \"%d.%d\",\n  \"multiprocessors\": %d,\n"
                "  \"memory_bytes\": %zu,\n  \"l2_bytes\": %d,\n  \"cuda_driver\": %d,\n  \"cuda_runtime\": %d,\n"
                "  \"cublaslt\": %zu,\n  \"repeats\": %u,\n",
                g.properties.name, g.properties.major, g.properties.minor, g.properties.multiProcessorCount,
                g.properties.totalGlobalMem, g.properties.l2CacheSize, g.driver, g.runtime, cublasLtGetVersion(),
                s.repeats);
    std::printf("  \"copy\": {\n    \"buffer_bytes\": %zu,\n", c.bytes);
    print_rate("runtime_gbps", c.by_runtime, ",");
    print_rate("kernel_gbps", c.by_kernel, ",");
    print_rate("read_gbps", c.read, "");
    std::printf("  },\n  \"matrix\": {\n    \"size\": %u,\n    \"algorithms\": %d,\n    \"error\": %.2e,\n", p.size,
                p.n_algorithms, p.error);
    print_rate("bf16_tflops", p.measured, "");
    std::printf("  },\n  \"copy_gbps\": %.1f,\n  \"matrix_tflops\": %.1f\n}\n",
                std::max(c.by_runtime.median, c.by_kernel.median), p.measured.median);
    return 0;
}
