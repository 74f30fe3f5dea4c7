/* cuBLASLt's stand-in against products in double precision, and the traps that it has for a backend. */
#include "tests/emulation/testing.hh"

#include <cublasLt.h>

#include <vector>

namespace {

#define LT_OK(call) LT_EXPECT(call, CUBLAS_STATUS_SUCCESS)
#define LT_EXPECT(call, status)                                                                                        \
    do {                                                                                                               \
        const cublasStatus_t got_ = (call);                                                                            \
        CHECK_MSG(got_ == (status), "%s, not %s", cublasLtGetStatusName(got_), cublasLtGetStatusName(status));         \
    } while (0)

constexpr int kMost = 16; /* algorithms */

float value_of(const void *p, cudaDataType type, size_t i) {
    return type == CUDA_R_32F    ? static_cast<const float *>(p)[i]
           : type == CUDA_R_16BF ? __bfloat162float(static_cast<const __nv_bfloat16 *>(p)[i])
                                 : __half2float(static_cast<const __half *>(p)[i]);
}

/* Random numbers of a type, on the host and on the device. */
struct Matrix {
    cudaDataType type;
    std::vector<unsigned char> host;
    unsigned char *device;
    Matrix(cudaDataType t, size_t n, test_rng *rng) : type(t), host(n * (t == CUDA_R_32F ? 4 : 2)) {
        for (size_t i = 0; i < n; i++) {
            const float v = static_cast<float>(test_rng_unit(rng) - 0.5);
            if (type == CUDA_R_32F) {
                reinterpret_cast<float *>(host.data())[i] = v;
            } else if (type == CUDA_R_16BF) {
                reinterpret_cast<__nv_bfloat16 *>(host.data())[i] = __float2bfloat16(v);
            } else {
                reinterpret_cast<__half *>(host.data())[i] = __float2half(v);
            }
        }
        device = device_array<unsigned char>(host.size());
        put();
    }
    ~Matrix() { OK(cudaFree(device)); }
    Matrix(const Matrix &) = delete;
    Matrix &operator=(const Matrix &) = delete;
    void put() { OK(cudaMemcpy(device, host.data(), host.size(), cudaMemcpyHostToDevice)); }
    std::vector<unsigned char> get() const {
        std::vector<unsigned char> out(host.size());
        OK(cudaMemcpy(out.data(), device, out.size(), cudaMemcpyDeviceToHost));
        return out;
    }
    double at(size_t i) const { return static_cast<double>(value_of(host.data(), type, i)); }
};

/* y [m × n] = w^T [m × k] x [k × n], all column-major: as a backend multiplies by a weight [m][k]. */
struct Shape {
    uint64_t m, n, k;
    cudaDataType in, out;
    cublasLtHandle_t lt = nullptr;
    cublasLtMatmulDesc_t desc = nullptr;
    cublasLtMatmulPreference_t preference = nullptr;
    cublasLtMatrixLayout_t w = nullptr, x = nullptr, y = nullptr;
    Shape(uint64_t m_, uint64_t n_, uint64_t k_, cudaDataType in_, cudaDataType out_)
        : m(m_), n(n_), k(k_), in(in_), out(out_) {
        const cublasOperation_t transposed = CUBLAS_OP_T;
        const uint64_t workspace = 1 << 20;
        LT_OK(cublasLtCreate(&lt));
        LT_OK(cublasLtMatmulDescCreate(&desc, CUBLAS_COMPUTE_32F, CUDA_R_32F));
        LT_OK(cublasLtMatmulDescSetAttribute(desc, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof transposed));
        LT_OK(cublasLtMatmulPreferenceCreate(&preference));
        LT_OK(cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace,
                                                   sizeof workspace));
        LT_OK(cublasLtMatrixLayoutCreate(&w, in, k, m, static_cast<int64_t>(k)));
        LT_OK(cublasLtMatrixLayoutCreate(&x, in, k, n, static_cast<int64_t>(k)));
        LT_OK(cublasLtMatrixLayoutCreate(&y, out, m, n, static_cast<int64_t>(m)));
    }
    ~Shape() {
        LT_OK(cublasLtMatrixLayoutDestroy(w));
        LT_OK(cublasLtMatrixLayoutDestroy(x));
        LT_OK(cublasLtMatrixLayoutDestroy(y));
        LT_OK(cublasLtMatmulPreferenceDestroy(preference));
        LT_OK(cublasLtMatmulDescDestroy(desc));
        LT_OK(cublasLtDestroy(lt));
    }
    void set_columns(uint64_t columns) {
        n = columns;
        LT_OK(cublasLtMatrixLayoutSetAttribute(x, CUBLASLT_MATRIX_LAYOUT_COLS, &n, sizeof n));
        LT_OK(cublasLtMatrixLayoutSetAttribute(y, CUBLASLT_MATRIX_LAYOUT_COLS, &n, sizeof n));
    }
    void set_bias(const void *bias) {
        const cublasLtEpilogue_t epilogue = bias ? CUBLASLT_EPILOGUE_BIAS : CUBLASLT_EPILOGUE_DEFAULT;
        LT_OK(cublasLtMatmulDescSetAttribute(desc, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue, sizeof epilogue));
        LT_OK(cublasLtMatmulDescSetAttribute(desc, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias, sizeof bias));
    }
    int ask(cublasLtMatmulHeuristicResult_t *results) {
        int found = 0;
        LT_OK(cublasLtMatmulAlgoGetHeuristic(lt, desc, w, x, y, y, preference, kMost, results, &found));
        return found;
    }
    cublasStatus_t multiply(const cublasLtMatmulAlgo_t *algo, const Matrix &mw, const Matrix &mx, float beta,
                            Matrix *my, void *workspace, size_t bytes) {
        const float alpha = 1;
        return cublasLtMatmul(lt, desc, &alpha, mw.device, w, mx.device, x, &beta, my->device, y, my->device, y, algo,
                              workspace, bytes, nullptr);
    }
};

void products(void) {
    test_rng rng = {test_seed(5)};
    const cudaDataType types[][2] = {
        {CUDA_R_16BF, CUDA_R_16BF}, {CUDA_R_16F, CUDA_R_16F}, {CUDA_R_16BF, CUDA_R_32F}, {CUDA_R_16F, CUDA_R_32F}};
    for (const auto &type : types) {
        for (uint64_t n : {1u, 3u, 16u, 30u}) {
            begin_with(1);
            Shape s(13, n, 72, type[0], type[1]);
            Matrix w(type[0], 13 * 72, &rng), x(type[0], 72 * n, &rng), y(type[1], 13 * n, &rng),
                bias(type[1], 13, &rng);
            unsigned char *workspace = device_array<unsigned char>(1 << 20);
            for (int with_bias = 0; with_bias < 2; with_bias++) {
                s.set_bias(with_bias ? bias.device : nullptr);
                cublasLtMatmulHeuristicResult_t results[kMost];
                const int found = s.ask(results);
                CU_ASSERT(found >= 3);
                for (int i = 0; i < found; i++) {
                    const float beta = static_cast<float>(i % 2);
                    y.put();
                    LT_OK(s.multiply(&results[i].algo, w, x, beta, &y, workspace, 1 << 20));
                    const std::vector<unsigned char> got = y.get();
                    double worst = 0;
                    for (size_t r = 0; r < 13 * n; r++) {
                        double sum = static_cast<double>(beta) * y.at(r) + (with_bias ? bias.at(r % 13) : 0);
                        for (size_t j = 0; j < 72; j++) {
                            sum += w.at(r % 13 * 72 + j) * x.at(r / 13 * 72 + j);
                        }
                        const double error = fabs(sum - static_cast<double>(value_of(got.data(), type[1], r)));
                        worst = error <= worst ? worst : error; /* NaN too */
                    }
                    CHECK_MSG(worst < (type[1] == CUDA_R_32F ? 1e-5 : 2e-2), "n %d, algorithm %d: off by %g",
                              static_cast<int>(n), i, worst);
                }
            }
            OK(cudaFree(workspace));
        }
    }
    CU_ASSERT(nothing_left());
}

/* Why a backend must look twice: which algorithm comes first, and what it gives, depends on the number of columns. */
void traps(void) {
    test_rng rng = {test_seed(6)};
    begin_with(1);
    Shape s(8, 1, 256, CUDA_R_16BF, CUDA_R_32F);
    Matrix w(CUDA_R_16BF, 8 * 256, &rng), x(CUDA_R_16BF, 256 * 48, &rng), y(CUDA_R_32F, 8 * 48, &rng);
    cublasLtMatmulHeuristicResult_t one[kMost], many[kMost], check;
    unsigned char *workspace = device_array<unsigned char>(1 << 20);
    const int n_one = s.ask(one);
    s.set_columns(48);
    const int n_many = s.ask(many);
    CU_ASSERT(memcmp(&one[0].algo, &many[0].algo, sizeof one[0].algo) != 0);
    CU_ASSERT(n_many > n_one);
    int variant = 0, split = 0, unlike = 0, impossible = 0;
    std::vector<float> first;
    for (int i = 0; i < n_many; i++) {
        std::vector<float> column[2];
        for (uint64_t n : {1u, 48u}) {
            s.set_columns(n);
            if (cublasLtMatmulAlgoCheck(s.lt, s.desc, s.w, s.x, s.y, s.y, &many[i].algo, &check) !=
                CUBLAS_STATUS_SUCCESS) {
                impossible++;
                LT_EXPECT(s.multiply(&many[i].algo, w, x, 0, &y, workspace, 1 << 20), CUBLAS_STATUS_NOT_SUPPORTED);
                continue;
            }
            LT_OK(s.multiply(&many[i].algo, w, x, 0, &y, workspace, 1 << 20));
            const std::vector<unsigned char> got = y.get();
            const float *values = reinterpret_cast<const float *>(got.data());
            column[n > 1].assign(values, values + 8);
        }
        int32_t splits = 0;
        uint32_t reduction = 0;
        size_t written = 0;
        LT_OK(cublasLtMatmulAlgoConfigGetAttribute(&many[i].algo, CUBLASLT_ALGO_CONFIG_SPLITK_NUM, &splits,
                                                   sizeof splits, &written));
        LT_OK(cublasLtMatmulAlgoConfigGetAttribute(&many[i].algo, CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME, &reduction,
                                                   sizeof reduction, &written));
        CU_ASSERT_EQUAL(splits > 1, reduction != CUBLASLT_REDUCTION_SCHEME_NONE);
        CU_ASSERT_EQUAL(splits > 1, many[i].workspaceSize > 0);
        if (splits > 1) {
            LT_EXPECT(s.multiply(&many[i].algo, w, x, 0, &y, workspace, 16), CUBLAS_STATUS_INVALID_VALUE);
        }
        first = first.empty() ? column[1] : first;
        unlike += column[1] != first;
        split += splits > 1;
        variant += !column[0].empty() && column[0] != column[1];
    }
    CU_ASSERT(split > 0);
    CU_ASSERT(variant > 0);
    CU_ASSERT(unlike > 0);
    CU_ASSERT(impossible > 0);
    const uint32_t none = CUBLASLT_REDUCTION_SCHEME_NONE;
    LT_OK(cublasLtMatmulPreferenceSetAttribute(s.preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &none,
                                               sizeof none));
    CU_ASSERT_EQUAL(s.ask(many), n_many - split);
    OK(cudaFree(workspace));
}

void refused(void) {
    test_rng rng = {test_seed(7)};
    begin_with(1);
    Shape s(8, 4, 64, CUDA_R_16F, CUDA_R_16F);
    Matrix w(CUDA_R_16F, 8 * 64, &rng), x(CUDA_R_16F, 64 * 4, &rng), y(CUDA_R_16F, 8 * 4, &rng);
    cublasLtMatmulHeuristicResult_t results[kMost];
    CU_ASSERT(s.ask(results) > 0);
    const cublasLtMatmulAlgo_t *algo = &results[0].algo;
    unsigned char *const whole = x.device, *const workspace = device_array<unsigned char>(1 << 20);
    LT_OK(s.multiply(algo, w, x, 0, &y, workspace, 1 << 20));
    x.device = whole + 2;
    LT_EXPECT(s.multiply(algo, w, x, 0, &y, workspace, 1 << 20), CUBLAS_STATUS_INVALID_VALUE); /* goes beyond its end */
    x.device = x.host.data();
    LT_EXPECT(s.multiply(algo, w, x, 0, &y, workspace, 1 << 20), CUBLAS_STATUS_INVALID_VALUE); /* the host's */
    x.device = whole;
    s.set_columns(5);
    LT_EXPECT(s.multiply(algo, w, x, 0, &y, workspace, 1 << 20), CUBLAS_STATUS_INVALID_VALUE);
    const cublasLtMatmulAlgo_t nothing = {};
    s.set_columns(4);
    LT_EXPECT(s.multiply(&nothing, w, x, 0, &y, workspace, 1 << 20), CUBLAS_STATUS_INVALID_VALUE);
    emulation_fail("cublasLtMatmul", 1, 0);
    LT_EXPECT(s.multiply(algo, w, x, 0, &y, workspace, 1 << 20), CUBLAS_STATUS_EXECUTION_FAILED);
    LT_OK(s.multiply(algo, w, x, 0, &y, workspace, 1 << 20));
    OK(cudaFree(workspace));
}

} // namespace

int main(int argc, char **argv) {
    static const test_case tests[] = {
        {"every algorithm multiplies, with bias and without", products},
        {"algorithms differ, and one with the number of columns", traps},
        {"what is out of bounds or unknown is refused", refused},
    };
    return test_main("emulation_cublaslt_test", tests, sizeof tests / sizeof *tests, argc, argv);
}
