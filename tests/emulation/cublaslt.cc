/*
 * cuBLASLt's part that the backend calls: products of bf16 or fp16 matrices, column-major, accumulated in float. There are
 * several algorithms, and each adds in an order of its own, so their results differ as on a GPU: some split the sum, some need
 * a workspace or many columns, and one looks harmless and yet gives a column other bits where there are more of them; with a
 * bias in the epilogue all do. Which comes first changes with the numbers of rows and columns.
 */
#include "tests/emulation/memory.hh"
#include "tests/emulation/queue.hh"
#include "tests/emulation/simt.hh"
#include "tests/emulation/ptx.hh"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <set>
#include <vector>

namespace {

struct Layout {
    cudaDataType type;
    uint64_t rows, columns;
    int64_t ld;
};
struct Desc {
    cublasOperation_t transa = CUBLAS_OP_N, transb = CUBLAS_OP_N;
    cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_DEFAULT;
    const void *bias = nullptr;
    int bias_type = -1; /* as D */
};
struct Preference {
    uint64_t workspace = 0;
    uint32_t reductions = CUBLASLT_REDUCTION_SCHEME_MASK;
    uint32_t alignment[4] = {256, 256, 256, 256};
};

/* What handles point to; the types of cublasLt.h stand for addresses alone. */
std::set<const void *> &handles() {
    static std::set<const void *> *all = new std::set<const void *>;
    return *all;
}
template <class T, class H> T *known(H handle) {
    return handles().count(handle) ? reinterpret_cast<T *>(handle) : nullptr;
}

/* An algorithm: `lanes` partial sums of every so many-th product, added up pairwise at the end. */
struct Algorithm {
    uint32_t lanes;
    int32_t splits; /* of the sum; each has its partial result in the workspace */
    uint64_t min_columns;
    bool bias;                /* has an epilogue with one */
    uint64_t variant_columns; /* from so many columns on, twice the lanes; 0: only with a bias */
    int64_t row_multiple;     /* a row's elements must be a multiple of it: 8 where rows are copied by 16 bytes */
};
constexpr Algorithm algorithms[] = {
    {8, 1, 1, true, 0, 8},  {16, 1, 1, false, 0, 1}, {4, 4, 1, true, 0, 8},
    {4, 1, 1, true, 24, 1}, {32, 1, 16, true, 0, 8}, {8, 2, 1, true, 0, 1},
};
constexpr size_t kAlgorithms = sizeof algorithms / sizeof *algorithms;
constexpr uint64_t kBiasVariantColumns = 24;
constexpr uint64_t kMagic = 0x706572636c740000; /* in the upper bits of an algorithm's first word */

const Algorithm *find_algorithm(const cublasLtMatmulAlgo_t *algo) {
    const uint64_t id = algo->data[0] - kMagic;
    return id < kAlgorithms ? &algorithms[id] : nullptr;
}

size_t element_bytes(cudaDataType type) { return type == CUDA_R_32F ? 4 : 2; }
bool half_type(cudaDataType type) { return type == CUDA_R_16BF || type == CUDA_R_16F; }

/* The number of bytes from a matrix's first element to its last. */
size_t extent(const Layout &l) {
    return (static_cast<size_t>(l.ld) * (l.columns - 1) + l.rows) * element_bytes(l.type);
}

struct Product {
    Desc desc;
    Layout a, b, c, d;
    const Algorithm *algorithm;
    float alpha, beta;
    const void *at_a, *at_b, *at_c;
    void *at_d, *workspace;
    uint64_t m() const { return d.rows; }
    uint64_t n() const { return d.columns; }
    uint64_t k() const { return desc.transa == CUBLAS_OP_N ? a.columns : a.rows; }
    size_t workspace_bytes() const {
        return algorithm->splits > 1 ? m() * n() * static_cast<size_t>(algorithm->splits) * sizeof(float) : 0;
    }
};

cublasStatus_t check(const Product &p) {
    const bool ta = p.desc.transa != CUBLAS_OP_N, tb = p.desc.transb != CUBLAS_OP_N;
    for (const Layout *l : {&p.a, &p.b, &p.c, &p.d}) {
        if (l->rows == 0 || l->columns == 0 || l->ld < static_cast<int64_t>(l->rows)) {
            return CUBLAS_STATUS_INVALID_VALUE;
        }
    }
    if ((ta ? p.a.columns : p.a.rows) != p.m() || (tb ? p.b.rows : p.b.columns) != p.n() ||
        (tb ? p.b.columns : p.b.rows) != p.k() || p.c.rows != p.m() || p.c.columns != p.n()) {
        return CUBLAS_STATUS_INVALID_VALUE;
    }
    const bool bias = p.desc.epilogue == CUBLASLT_EPILOGUE_BIAS;
    const bool types = half_type(p.a.type) && p.b.type == p.a.type && p.c.type == p.d.type &&
                       (p.d.type == p.a.type || p.d.type == CUDA_R_32F);
    if (!types || (p.desc.epilogue != CUBLASLT_EPILOGUE_DEFAULT && !bias)) {
        return CUBLAS_STATUS_NOT_SUPPORTED;
    }
    const int64_t multiple = p.algorithm->row_multiple;
    if (p.a.ld % multiple != 0 || p.b.ld % multiple != 0 || p.n() < p.algorithm->min_columns ||
        (bias && !p.algorithm->bias)) {
        return CUBLAS_STATUS_NOT_SUPPORTED;
    }
    return CUBLAS_STATUS_SUCCESS;
}

float element(const void *p, cudaDataType type, size_t i) {
    if (type == CUDA_R_32F) {
        return static_cast<const float *>(p)[i];
    }
    const uint16_t bits = static_cast<const uint16_t *>(p)[i];
    return type == CUDA_R_16BF ? ptx::to_float(bits, __nv_bfloat16()) : ptx::to_float(bits, __half());
}

void set_element(void *p, cudaDataType type, size_t i, float v) {
    if (type == CUDA_R_32F) {
        static_cast<float *>(p)[i] = v;
    } else if (type == CUDA_R_16BF) {
        static_cast<__nv_bfloat16 *>(p)[i] = __float2bfloat16(v);
    } else {
        static_cast<__half *>(p)[i] = __float2half(v);
    }
}

/* op(matrix) as rows of k floats, each padded with zeros to whole lanes. */
std::vector<float> rows_of(const void *p, const Layout &l, bool k_is_rows, uint64_t rows, uint64_t k, size_t padded) {
    std::vector<float> out(rows * padded, 0.0f);
    for (uint64_t r = 0; r < rows; r++) {
        for (uint64_t i = 0; i < k; i++) {
            const uint64_t row = k_is_rows ? i : r, column = k_is_rows ? r : i;
            out[r * padded + i] = element(p, l.type, column * static_cast<uint64_t>(l.ld) + row);
        }
    }
    return out;
}

template <unsigned lanes> float dot(const float *a, const float *b, size_t n) {
    float sum[lanes] = {};
    for (size_t i = 0; i < n; i += lanes) {
        for (unsigned j = 0; j < lanes; j++) {
            sum[j] += a[i + j] * b[i + j];
        }
    }
    for (unsigned half = lanes / 2; half > 0; half /= 2) {
        for (unsigned j = 0; j < half; j++) {
            sum[j] += sum[j + half];
        }
    }
    return sum[0];
}

typedef float (*Dot)(const float *, const float *, size_t);
Dot dot_of(unsigned lanes) { return lanes == 4 ? dot<4> : lanes == 8 ? dot<8> : lanes == 16 ? dot<16> : dot<32>; }

void multiply(const Product &p) {
    const Algorithm &algorithm = *p.algorithm;
    const bool bias = p.desc.epilogue == CUBLASLT_EPILOGUE_BIAS;
    const uint64_t variant_columns = bias ? kBiasVariantColumns : algorithm.variant_columns;
    const bool variant = variant_columns && p.n() >= variant_columns;
    const Dot dot_product = dot_of(algorithm.lanes * (variant ? 2 : 1));
    const size_t splits = static_cast<size_t>(algorithm.splits);
    const size_t part = emu::round_up((p.k() + splits - 1) / splits, 32), padded = part * splits;
    const std::vector<float> a = rows_of(p.at_a, p.a, p.desc.transa != CUBLAS_OP_N, p.m(), p.k(), padded);
    const std::vector<float> b = rows_of(p.at_b, p.b, p.desc.transb == CUBLAS_OP_N, p.n(), p.k(), padded);
    if (p.workspace) {
        memset(p.workspace, 0xff, p.workspace_bytes()); /* nobody else's while this runs */
    }
    for (uint64_t column = 0; column < p.n(); column++) {
        for (uint64_t row = 0; row < p.m(); row++) {
            const float *x = &a[row * padded], *y = &b[column * padded];
            float sum = dot_product(x, y, part);
            for (size_t s = 1; s < splits; s++) {
                sum += dot_product(x + s * part, y + s * part, part);
            }
            float v = p.alpha * sum;
            if (p.beta != 0) {
                v += p.beta * element(p.at_c, p.c.type, column * static_cast<uint64_t>(p.c.ld) + row);
            }
            if (bias) {
                const int type = p.desc.bias_type < 0 ? p.d.type : p.desc.bias_type;
                v += element(p.desc.bias, static_cast<cudaDataType>(type), row);
            }
            set_element(p.at_d, p.d.type, column * static_cast<uint64_t>(p.d.ld) + row, v);
        }
    }
}

/* One call: body gives its status. */
template <class F> cublasStatus_t call(const char *name, cublasStatus_t likely, unsigned traits, F body) {
    Quiet quiet;
    emu::Lock lock(emu::runtime().mutex);
    cublasStatus_t s = CUBLAS_STATUS_SUCCESS;
    if (const cudaError_t e = emu::obstacle(traits)) {
        s = e == emu::runtime().sticky ? CUBLAS_STATUS_EXECUTION_FAILED : CUBLAS_STATUS_NOT_INITIALIZED;
    }
    const int planned = emu::counted(name, likely);
    if (s == CUBLAS_STATUS_SUCCESS && planned) {
        s = static_cast<cublasStatus_t>(planned);
    }
    if (s == CUBLAS_STATUS_SUCCESS || (traits & emu::kReleases)) {
        const cublasStatus_t own = body(lock);
        s = s == CUBLAS_STATUS_SUCCESS ? own : s;
    }
    return s;
}

template <class T, class H> cublasStatus_t create(const char *name, H *out, const T &value) {
    return call(name, CUBLAS_STATUS_ALLOC_FAILED, emu::kAnywhere, [&](emu::Lock &) {
        T *made = new T(value);
        handles().insert(made);
        *out = reinterpret_cast<H>(made);
        return CUBLAS_STATUS_SUCCESS;
    });
}

template <class T, class H> cublasStatus_t destroy(const char *name, H handle) {
    return call(name, CUBLAS_STATUS_INTERNAL_ERROR, emu::kAnywhere | emu::kReleases, [&](emu::Lock &) {
        T *made = known<T>(handle);
        handles().erase(handle);
        delete made;
        return made ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_INVALID_VALUE;
    });
}

/* Reads an attribute's value of exactly that size. */
template <class T> cublasStatus_t read(T *to, const void *from, size_t bytes) {
    if (bytes != sizeof *to) {
        return CUBLAS_STATUS_INVALID_VALUE;
    }
    memcpy(to, from, bytes);
    return CUBLAS_STATUS_SUCCESS;
}

struct Library {
    bool open;
};

/* The operands of a question about a product; false where a handle is none. */
bool describe(Product *p, cublasLtHandle_t lt, cublasLtMatmulDesc_t desc, cublasLtMatrixLayout_t a,
              cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d) {
    if (!known<Library>(lt) || !known<Desc>(desc) || !known<Layout>(a) || !known<Layout>(b) || !known<Layout>(c) ||
        !known<Layout>(d)) {
        return false;
    }
    p->desc = *known<Desc>(desc);
    p->a = *known<Layout>(a);
    p->b = *known<Layout>(b);
    p->c = *known<Layout>(c);
    p->d = *known<Layout>(d);
    return true;
}

cublasLtMatmulHeuristicResult_t result_of(const Product &p) {
    cublasLtMatmulHeuristicResult_t r;
    memset(&r, 0, sizeof r);
    r.algo.data[0] = kMagic + static_cast<uint64_t>(p.algorithm - algorithms);
    r.workspaceSize = p.workspace_bytes();
    r.state = CUBLAS_STATUS_SUCCESS;
    r.wavesCount = 1.0f;
    return r;
}

bool reaches(const void *p, size_t bytes) {
    bool whole;
    return emu::place_of(p, bytes, &whole) == emu::Place::device && whole;
}

} // namespace

extern "C" {

size_t cublasLtGetVersion(void) { return CUBLAS_VERSION; }

cublasStatus_t cublasLtCreate(cublasLtHandle_t *lt) { return create("cublasLtCreate", lt, Library{true}); }
cublasStatus_t cublasLtDestroy(cublasLtHandle_t lt) { return destroy<Library>("cublasLtDestroy", lt); }

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *layout, cudaDataType type, uint64_t rows,
                                          uint64_t columns, int64_t ld) {
    return create("cublasLtMatrixLayoutCreate", layout, Layout{type, rows, columns, ld});
}
cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout) {
    return destroy<Layout>("cublasLtMatrixLayoutDestroy", layout);
}

cublasStatus_t cublasLtMatrixLayoutSetAttribute(cublasLtMatrixLayout_t layout, cublasLtMatrixLayoutAttribute_t name,
                                                const void *value, size_t bytes) {
    return call("cublasLtMatrixLayoutSetAttribute", CUBLAS_STATUS_INVALID_VALUE, emu::kAnywhere, [&](emu::Lock &) {
        Layout *l = known<Layout>(layout);
        if (!l) {
            return CUBLAS_STATUS_INVALID_VALUE;
        }
        switch (name) {
        case CUBLASLT_MATRIX_LAYOUT_ROWS:
            return read(&l->rows, value, bytes);
        case CUBLASLT_MATRIX_LAYOUT_COLS:
            return read(&l->columns, value, bytes);
        case CUBLASLT_MATRIX_LAYOUT_LD:
            return read(&l->ld, value, bytes);
        default:
            return CUBLAS_STATUS_NOT_SUPPORTED;
        }
    });
}

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *desc, cublasComputeType_t compute, cudaDataType_t scale) {
    if (compute != CUBLAS_COMPUTE_32F || scale != CUDA_R_32F) {
        return CUBLAS_STATUS_NOT_SUPPORTED;
    }
    return create("cublasLtMatmulDescCreate", desc, Desc());
}
cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t desc) {
    return destroy<Desc>("cublasLtMatmulDescDestroy", desc);
}

cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t desc, cublasLtMatmulDescAttributes_t name,
                                              const void *value, size_t bytes) {
    return call("cublasLtMatmulDescSetAttribute", CUBLAS_STATUS_INVALID_VALUE, emu::kAnywhere, [&](emu::Lock &) {
        Desc *d = known<Desc>(desc);
        if (!d) {
            return CUBLAS_STATUS_INVALID_VALUE;
        }
        switch (name) {
        case CUBLASLT_MATMUL_DESC_TRANSA:
            return read(&d->transa, value, bytes);
        case CUBLASLT_MATMUL_DESC_TRANSB:
            return read(&d->transb, value, bytes);
        case CUBLASLT_MATMUL_DESC_EPILOGUE:
            return read(&d->epilogue, value, bytes);
        case CUBLASLT_MATMUL_DESC_BIAS_POINTER:
            return read(&d->bias, value, bytes);
        case CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE:
            return read(&d->bias_type, value, bytes);
        default:
            return CUBLAS_STATUS_NOT_SUPPORTED;
        }
    });
}

cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *preference) {
    return create("cublasLtMatmulPreferenceCreate", preference, Preference());
}
cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t preference) {
    return destroy<Preference>("cublasLtMatmulPreferenceDestroy", preference);
}

cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t preference,
                                                    cublasLtMatmulPreferenceAttributes_t name, const void *value,
                                                    size_t bytes) {
    return call("cublasLtMatmulPreferenceSetAttribute", CUBLAS_STATUS_INVALID_VALUE, emu::kAnywhere, [&](emu::Lock &) {
        Preference *p = known<Preference>(preference);
        if (!p) {
            return CUBLAS_STATUS_INVALID_VALUE;
        }
        switch (name) {
        case CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES:
            return read(&p->workspace, value, bytes);
        case CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK:
            return read(&p->reductions, value, bytes);
        case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES:
            return read(&p->alignment[0], value, bytes);
        case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES:
            return read(&p->alignment[1], value, bytes);
        case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES:
            return read(&p->alignment[2], value, bytes);
        case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES:
            return read(&p->alignment[3], value, bytes);
        default:
            return CUBLAS_STATUS_NOT_SUPPORTED;
        }
    });
}

cublasStatus_t cublasLtMatmulAlgoConfigGetAttribute(const cublasLtMatmulAlgo_t *algo,
                                                    cublasLtMatmulAlgoConfigAttributes_t name, void *value,
                                                    size_t bytes, size_t *written) {
    const Algorithm *a = find_algorithm(algo);
    const int32_t id = static_cast<int32_t>(algo->data[0] - kMagic);
    const uint32_t reduction =
        a && a->splits > 1 ? CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE : CUBLASLT_REDUCTION_SCHEME_NONE;
    const void *from = name == CUBLASLT_ALGO_CONFIG_ID           ? static_cast<const void *>(&id)
                       : name == CUBLASLT_ALGO_CONFIG_SPLITK_NUM ? static_cast<const void *>(a ? &a->splits : nullptr)
                       : name == CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME ? static_cast<const void *>(&reduction)
                                                                       : nullptr;
    return call("cublasLtMatmulAlgoConfigGetAttribute", CUBLAS_STATUS_INVALID_VALUE, emu::kAnywhere, [&](emu::Lock &) {
        if (!a || !from || bytes != sizeof(int32_t)) {
            return CUBLAS_STATUS_INVALID_VALUE;
        }
        memcpy(value, from, bytes);
        if (written) {
            *written = bytes;
        }
        return CUBLAS_STATUS_SUCCESS;
    });
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t lt, cublasLtMatmulDesc_t desc, cublasLtMatrixLayout_t a,
                                              cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c,
                                              cublasLtMatrixLayout_t d, cublasLtMatmulPreference_t preference,
                                              int wanted, cublasLtMatmulHeuristicResult_t results[], int *n_results) {
    return call("cublasLtMatmulAlgoGetHeuristic", CUBLAS_STATUS_INTERNAL_ERROR, emu::kAnywhere, [&](emu::Lock &) {
        Product p;
        const Preference *limits = known<Preference>(preference);
        if (!describe(&p, lt, desc, a, b, c, d) || !limits || wanted < 1 || !results || !n_results) {
            return CUBLAS_STATUS_INVALID_VALUE;
        }
        *n_results = 0;
        uint64_t first = p.m(); /* another one for each power of two of columns */
        for (uint64_t n = p.n(); n > 1; n /= 2) {
            first++;
        }
        for (uint64_t i = 0; i < kAlgorithms && *n_results < wanted; i++) {
            p.algorithm = &algorithms[(first + i) % kAlgorithms];
            const uint32_t scheme = p.algorithm->splits > 1 ? CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE : 0;
            if ((scheme & limits->reductions) == scheme && p.workspace_bytes() <= limits->workspace &&
                check(p) == CUBLAS_STATUS_SUCCESS) {
                results[(*n_results)++] = result_of(p);
            }
        }
        return *n_results ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_NOT_SUPPORTED;
    });
}

cublasStatus_t cublasLtMatmulAlgoCheck(cublasLtHandle_t lt, cublasLtMatmulDesc_t desc, cublasLtMatrixLayout_t a,
                                       cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                       const cublasLtMatmulAlgo_t *algo, cublasLtMatmulHeuristicResult_t *result) {
    return call("cublasLtMatmulAlgoCheck", CUBLAS_STATUS_INTERNAL_ERROR, emu::kAnywhere, [&](emu::Lock &) {
        Product p;
        if (!describe(&p, lt, desc, a, b, c, d) || !(p.algorithm = find_algorithm(algo))) {
            return CUBLAS_STATUS_INVALID_VALUE;
        }
        const cublasStatus_t s = check(p);
        if (s == CUBLAS_STATUS_SUCCESS) {
            *result = result_of(p);
        }
        return s;
    });
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t lt, cublasLtMatmulDesc_t desc, const void *alpha, const void *A,
                              cublasLtMatrixLayout_t a, const void *B, cublasLtMatrixLayout_t b, const void *beta,
                              const void *C, cublasLtMatrixLayout_t c, void *D, cublasLtMatrixLayout_t d,
                              const cublasLtMatmulAlgo_t *algo, void *workspace, size_t workspace_bytes,
                              cudaStream_t stream) {
    return call("cublasLtMatmul", CUBLAS_STATUS_EXECUTION_FAILED, emu::kAnywhere, [&](emu::Lock &lock) {
        Product p;
        if (!describe(&p, lt, desc, a, b, c, d) || !algo || !(p.algorithm = find_algorithm(algo))) {
            return CUBLAS_STATUS_INVALID_VALUE;
        }
        const cublasStatus_t s = check(p);
        if (s != CUBLAS_STATUS_SUCCESS) {
            return s;
        }
        memcpy(&p.alpha, alpha, sizeof p.alpha);
        memcpy(&p.beta, beta, sizeof p.beta);
        p.at_a = A;
        p.at_b = B;
        p.at_c = C;
        p.at_d = D;
        p.workspace = p.workspace_bytes() ? workspace : nullptr;
        const size_t bias_bytes = p.desc.epilogue == CUBLASLT_EPILOGUE_BIAS ? p.m() * 2 : 0;
        if (p.workspace_bytes() > workspace_bytes || (p.workspace_bytes() && !reaches(workspace, workspace_bytes)) ||
            !reaches(A, extent(p.a)) || !reaches(B, extent(p.b)) || !reaches(D, extent(p.d)) ||
            (p.beta != 0 && !reaches(C, extent(p.c))) || (bias_bytes && !reaches(p.desc.bias, bias_bytes))) {
            return CUBLAS_STATUS_INVALID_VALUE;
        }
        if ((emu::address(A) | emu::address(B) | emu::address(C) | emu::address(D)) % 16 != 0) {
            return CUBLAS_STATUS_NOT_SUPPORTED;
        }
        emu::Work work;
        work.kind = emu::Kind::kernel;
        work.name = "cublasLtMatmul";
        work.spans = {{A, extent(p.a), false, false}, {B, extent(p.b), false, false}, {D, extent(p.d), true, false}};
        if (p.beta != 0) {
            work.spans.push_back({C, extent(p.c), false, false});
        }
        if (bias_bytes) {
            work.spans.push_back({p.desc.bias, bias_bytes, false, false});
        }
        if (p.workspace) {
            work.spans.push_back({p.workspace, p.workspace_bytes(), true, false});
        }
        work.run = [p](const simt::Options &) {
            Quiet quiet;
            multiply(p);
        };
        return emu::enqueue(lock, stream, std::move(work), nullptr, nullptr) == cudaSuccess
                   ? CUBLAS_STATUS_SUCCESS
                   : CUBLAS_STATUS_EXECUTION_FAILED;
    });
}

} // extern "C"
