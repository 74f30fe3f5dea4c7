/* Device memory: accounts, bounds, who may touch it; virtual memory management as strict as the driver's; planned failures. */
#include "tests/emulation/testing.hh"

#include <cuda.h>

namespace {

#define CU_OK(call) CU_EXPECT(call, CUDA_SUCCESS)
#define CU_EXPECT(call, error)                                                                                         \
    do {                                                                                                               \
        const CUresult got_ = (call);                                                                                  \
        CHECK_MSG(got_ == (error), "%d, not %d", static_cast<int>(got_), static_cast<int>(error));                     \
    } while (0)

__global__ void touch(unsigned char *p, size_t n, unsigned char value) {
    for (size_t i = threadIdx.x; i < n; i += blockDim.x) {
        p[i] = value;
    }
}
cudaError_t run_touch(void *p, size_t n, unsigned char value) {
    cudaError_t e = simt::launch(touch, dim3(1), dim3(32), 0, nullptr, static_cast<unsigned char *>(p), n, value);
    return e == cudaSuccess ? cudaDeviceSynchronize() : e;
}

void with_memory(uint64_t bytes) {
    emulation_settings s = emulation_defaults();
    s.memory_bytes = bytes;
    emulation_reset(&s);
}

/* --------------------------------------------------------------------------------------------------- cudaMalloc */

void accounts(void) {
    size_t left, total;
    void *a, *b, *c;
    with_memory(10 << 20);
    OK(cudaMemGetInfo(&left, &total));
    CU_ASSERT_EQUAL(total, 10u << 20);
    CU_ASSERT_EQUAL(left, total);
    OK(cudaMalloc(&a, 1));
    OK(cudaMalloc(&b, (10 << 20) - 512));
    CU_ASSERT_EQUAL(emulation_bytes(), 10u << 20);
    EXPECT(cudaMalloc(&c, 1), cudaErrorMemoryAllocation);
    EXPECT(cudaGetLastError(), cudaErrorMemoryAllocation);
    OK(cudaGetLastError());
    OK(cudaFree(b));
    OK(cudaMemGetInfo(&left, &total));
    CU_ASSERT_EQUAL(left, (10u << 20) - 512);
    CHECK_MSG(strcmp(emulation_leaks(), "1 bytes by cudaMalloc (1)") == 0, "%s", emulation_leaks());
    OK(cudaFree(a));
    OK(cudaFree(nullptr));
    EXPECT(cudaFree(a), cudaErrorInvalidValue);
    EXPECT(cudaFreeHost(a), cudaErrorInvalidValue);
    CU_ASSERT_EQUAL(emulation_bytes(), 0);
    CU_ASSERT_EQUAL(emulation_peak_bytes(), 10u << 20);
    OK(cudaHostAlloc(&a, 100 << 20, cudaHostAllocDefault)); /* is none of the device's */
    CU_ASSERT_EQUAL(emulation_bytes(), 0);
    EXPECT(cudaFree(a), cudaErrorInvalidValue);
    OK(cudaFreeHost(a));
    CU_ASSERT(nothing_left());
}

void fresh_memory_is_nan(void) {
    unsigned char byte;
    begin_with(0);
    for (size_t n : {size_t{1}, size_t{4097}, size_t{16} << 20, (size_t{40} << 20) + 3}) {
        unsigned char *p = device_array<unsigned char>(n);
        CU_ASSERT(emulation_accessible(p, n));
        CU_ASSERT(!emulation_accessible(p, n + 1));
        CU_ASSERT_EQUAL(reinterpret_cast<uintptr_t>(p) % 256, 0);
        for (size_t at : {size_t{0}, n / 2, n - 1}) {
            OK(cudaMemcpy(&byte, p + at, 1, cudaMemcpyDeviceToHost));
            CU_ASSERT_EQUAL(byte, 0xff);
        }
        OK(run_touch(p + n / 2, n - n / 2, 7)); /* what lies before is untouched by that */
        OK(cudaMemcpy(&byte, p + n - 1, 1, cudaMemcpyDeviceToHost));
        CU_ASSERT_EQUAL(byte, 7);
        if (n > 1) {
            OK(cudaMemcpy(&byte, p + n / 2 - 1, 1, cudaMemcpyDeviceToHost));
            CU_ASSERT_EQUAL(byte, 0xff);
        }
        OK(cudaFree(p));
        CU_ASSERT(!emulation_accessible(p, 1));
    }
}

void copies_stay_within(void) {
    char host[64] = {};
    begin_with(0);
    char *d = device_array<char>(64), *e = device_array<char>(32), *pinned = pinned_array<char>(64);
    OK(cudaMemcpy(d, host, 64, cudaMemcpyHostToDevice));
    OK(cudaMemcpy(pinned, d, 64, cudaMemcpyDefault));
    OK(cudaMemcpy(d, pinned, 64, cudaMemcpyDefault));
    OK(cudaMemcpy(d, d + 32, 0, cudaMemcpyDeviceToDevice));
    EXPECT(cudaMemcpy(d, host, 65, cudaMemcpyHostToDevice), cudaErrorInvalidValue);
    EXPECT(cudaMemcpy(host, d + 1, 64, cudaMemcpyDeviceToHost), cudaErrorInvalidValue);
    EXPECT(cudaMemcpy(d, host, 64, cudaMemcpyDeviceToHost), cudaErrorInvalidValue);
    EXPECT(cudaMemcpy(host, d, 64, cudaMemcpyHostToDevice), cudaErrorInvalidValue);
    EXPECT(cudaMemcpy(e, d, 64, cudaMemcpyDeviceToDevice), cudaErrorInvalidValue);
    EXPECT(cudaMemcpy(pinned + 1, d, 64, cudaMemcpyDeviceToHost), cudaErrorInvalidValue);
    EXPECT(cudaMemset(d + 60, 0, 5), cudaErrorInvalidValue);
    EXPECT(cudaMemset(host, 0, 5), cudaErrorInvalidValue);
    OK(cudaFree(e));
    EXPECT(cudaMemcpy(e, d, 1, cudaMemcpyDeviceToDevice), cudaErrorInvalidValue);
    OK(cudaFree(d));
    OK(cudaFreeHost(pinned));
    (void)cudaGetLastError();
    CU_ASSERT(nothing_left());
}

/* The host can't read what is on the device. */
volatile int sink;
void host_reads_device(void) {
    begin_with(0);
    int *d = device_array<int>(4);
    OK(cudaMemset(d, 0, 16));
    OK(cudaDeviceSynchronize());
    sink = d[1];
}
void hosts_hands_off(void) {
    const Ending end = run_alone("host_reads_device");
    CHECK_MSG(!end.well, "%s", end.output.c_str());
    CU_ASSERT(SIMT_TSAN || end.output.find("host code touches device memory") != std::string::npos);
}

/* ------------------------------------------------------------------------------------------------ what is missing */

void no_device(void) {
    int n = -1, version;
    void *p;
    emulation_settings s = emulation_defaults();
    s.n_devices = 0;
    emulation_reset(&s);
    EXPECT(cudaGetDeviceCount(&n), cudaErrorNoDevice);
    CU_ASSERT_EQUAL(n, 0);
    EXPECT(cudaMalloc(&p, 4), cudaErrorNoDevice);
    CU_EXPECT(cuInit(0), CUDA_ERROR_NO_DEVICE);
    s.n_devices = 2;
    s.driver_version = 12080;
    emulation_reset(&s);
    EXPECT(cudaGetDeviceCount(&n), CUDART_VERSION >= 13000 ? cudaErrorInsufficientDriver : cudaSuccess);
    OK(cudaDriverGetVersion(&version));
    CU_ASSERT_EQUAL(version, 12080);
    OK(cudaRuntimeGetVersion(&version));
    CU_ASSERT_EQUAL(version, CUDART_VERSION);
    s.driver_version = CUDART_VERSION;
    emulation_reset(&s);
    OK(cudaGetDeviceCount(&n));
    CU_ASSERT_EQUAL(n, 2);
    OK(cudaSetDevice(1));
    EXPECT(cudaSetDevice(2), cudaErrorInvalidDevice);
    cudaStream_t stream;
    OK(cudaStreamCreate(&stream));
    p = device_array<char>(4);
    OK(cudaSetDevice(0)); /* another's stream */
    (void)cudaGetLastError();
    EXPECT(simt::launch(touch, dim3(1), dim3(1), 0, stream, static_cast<unsigned char *>(p), size_t{4},
                        static_cast<unsigned char>(0)),
           cudaErrorInvalidResourceHandle);
    begin_with(0);
}

/* ----------------------------------------------------------------------------------------------- planned failures */

cudaError_t take_three(void **p) {
    cudaError_t e = cudaMalloc(&p[0], 100);
    e = e == cudaSuccess ? cudaHostAlloc(&p[1], 100, 0) : e;
    e = e == cudaSuccess ? cudaMalloc(&p[2], 100) : e;
    return e;
}
void give_back(void **p) {
    (void)cudaFree(p[0]);
    (void)cudaFreeHost(p[1]);
    (void)cudaFree(p[2]);
}

void planned(void) {
    for (uint64_t n = 1;; n++) { /* each call in turn */
        void *p[3] = {};
        begin_with(0);
        emulation_fail(nullptr, n, 0);
        const cudaError_t e = take_three(p);
        CU_ASSERT_EQUAL(e == cudaSuccess, n > 3);
        give_back(p);
        CU_ASSERT(nothing_left()); /* what gives back does so though it fails */
        if (emulation_failed() == 0) {
            CU_ASSERT_EQUAL(n, 7);
            CU_ASSERT_EQUAL(emulation_calls(nullptr), 6);
            CU_ASSERT_EQUAL(emulation_calls("cudaMalloc"), 2);
            break;
        }
    }
    void *p[3] = {};
    begin_with(0);
    emulation_fail("cudaMalloc", 2, cudaErrorUnknown);
    EXPECT(take_three(p), cudaErrorUnknown);
    CU_ASSERT(p[0] && p[1] && !p[2]);
    give_back(p);
    begin_with(0);
    unsigned char *d = device_array<unsigned char>(64);
    emulation_fail("cudaLaunchKernel", 1, 0);
    EXPECT(run_touch(d, 64, 1), cudaErrorLaunchOutOfResources);
    OK(run_touch(d, 64, 1)); /* the launch's error was told, the device lives */
    emulation_fail("kernel", 1, cudaErrorIllegalAddress);
    EXPECT(run_touch(d, 64, 1), cudaErrorIllegalAddress); /* this is the end of it */
    EXPECT(cudaDeviceSynchronize(), cudaErrorIllegalAddress);
    EXPECT(cudaGetLastError(), cudaErrorIllegalAddress);
    EXPECT(cudaGetLastError(), cudaErrorIllegalAddress);
    CU_EXPECT(cuMemRelease(1), CUDA_ERROR_ILLEGAL_ADDRESS);
    EXPECT(cudaFree(d), cudaErrorIllegalAddress);
    CU_ASSERT(strstr(emulation_fault(), "planned") != nullptr);
    CU_ASSERT(nothing_left());
    begin_with(0);
}

/* ------------------------------------------------------------------------------------------ virtual memory management */

constexpr size_t kPage = 2 << 20;

CUmemAllocationProp on_device(void) {
    CUmemAllocationProp prop = {};
    prop.type = CU_MEM_ALLOCATION_TYPE_PINNED;
    prop.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
    return prop;
}
CUmemAccessDesc access_for(CUmemAccess_flags flags) {
    CUmemAccessDesc desc = {};
    desc.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
    desc.flags = flags;
    return desc;
}

struct Ranges {
    CUdeviceptr at = 0;
    CUmemGenericAllocationHandle page[2] = {};
    CUmemAccessDesc both = access_for(CU_MEM_ACCESS_FLAGS_PROT_READWRITE);
    Ranges() {
        const CUmemAllocationProp prop = on_device();
        with_memory(64 << 20);
        CU_EXPECT(cuMemAddressReserve(&at, kPage, 0, 0, 0), CUDA_ERROR_NOT_INITIALIZED);
        CU_OK(cuInit(0));
        CU_OK(cuMemAddressReserve(&at, 4 * kPage, 0, 0, 0));
        CU_OK(cuMemCreate(&page[0], kPage, &prop, 0));
        CU_OK(cuMemCreate(&page[1], kPage, &prop, 0));
    }
    void *byte(size_t i) const { return reinterpret_cast<void *>(at + i); }
    void map(size_t place, int which) {
        CU_OK(cuMemMap(at + place * kPage, kPage, 0, page[which], 0));
        CU_OK(cuMemSetAccess(at + place * kPage, kPage, &both, 1));
    }
};

void pages_are_mapped(void) {
    Ranges r;
    unsigned char byte[2];
    r.map(0, 0);
    r.map(1, 1);
    r.map(3, 0); /* a second time */
    CU_ASSERT_EQUAL(emulation_bytes(), 2 * kPage);
    CU_ASSERT(emulation_accessible(r.byte(0), 2 * kPage));
    CU_ASSERT(!emulation_accessible(r.byte(0), 2 * kPage + 1));
    OK(cudaMemcpy(byte, r.byte(kPage), 1, cudaMemcpyDeviceToHost));
    CU_ASSERT_EQUAL(byte[0], 0xff);
    OK(run_touch(r.byte(kPage - 8), 16, 5)); /* across the border */
    OK(cudaMemcpy(byte, r.byte(4 * kPage - 1), 1, cudaMemcpyDeviceToHost));
    CU_ASSERT_EQUAL(byte[0], 5); /* the same page elsewhere */
    OK(cudaMemcpy(byte, r.byte(kPage - 1), 2, cudaMemcpyDeviceToHost));
    CU_ASSERT(byte[0] == 5 && byte[1] == 5);
    CU_OK(cuMemUnmap(r.at, 2 * kPage)); /* several mappings at a time */
    CU_OK(cuMemRelease(r.page[0]));     /* still mapped once */
    CU_ASSERT_EQUAL(emulation_bytes(), 2 * kPage);
    OK(run_touch(r.byte(3 * kPage), 16, 6));
    CU_OK(cuMemUnmap(r.at + 3 * kPage, kPage));
    CU_ASSERT_EQUAL(emulation_bytes(), kPage);
    r.map(2, 1);
    OK(cudaMemcpy(byte, r.byte(2 * kPage), 1, cudaMemcpyDeviceToHost));
    CU_ASSERT_EQUAL(byte[0], 5); /* it keeps what it had */
    CU_OK(cuMemUnmap(r.at + 2 * kPage, kPage));
    CU_OK(cuMemRelease(r.page[1]));
    CU_OK(cuMemAddressFree(r.at, 4 * kPage));
    CU_ASSERT(nothing_left());
}

void wrong_mappings(void) {
    Ranges r;
    const CUmemAllocationProp prop = on_device();
    CUmemGenericAllocationHandle handle;
    CUdeviceptr other;
    CU_EXPECT(cuMemCreate(&handle, kPage + 1, &prop, 0), CUDA_ERROR_INVALID_VALUE);
    CU_EXPECT(cuMemCreate(&handle, 31 * kPage, &prop, 0), CUDA_ERROR_OUT_OF_MEMORY);
    CU_EXPECT(cuMemAddressReserve(&other, kPage / 2, 0, 0, 0), CUDA_ERROR_INVALID_VALUE);
    CU_EXPECT(cuMemAddressReserve(&other, kPage, 3, 0, 0), CUDA_ERROR_INVALID_VALUE);
    CU_EXPECT(cuMemMap(r.at + 4096, kPage, 0, r.page[0], 0), CUDA_ERROR_INVALID_VALUE);      /* not at a page */
    CU_EXPECT(cuMemMap(r.at, kPage / 2, 0, r.page[0], 0), CUDA_ERROR_INVALID_VALUE);         /* a part */
    CU_EXPECT(cuMemMap(r.at, 2 * kPage, 0, r.page[0], 0), CUDA_ERROR_INVALID_VALUE);         /* too much */
    CU_EXPECT(cuMemMap(r.at, kPage, kPage, r.page[0], 0), CUDA_ERROR_INVALID_VALUE);         /* an offset */
    CU_EXPECT(cuMemMap(r.at + 4 * kPage, kPage, 0, r.page[0], 0), CUDA_ERROR_INVALID_VALUE); /* not reserved */
    CU_EXPECT(cuMemMap(r.at, kPage, 0, 12345, 0), CUDA_ERROR_INVALID_VALUE);                 /* no handle */
    CU_EXPECT(cuMemUnmap(r.at, kPage), CUDA_ERROR_INVALID_VALUE);                            /* nothing there */
    CU_EXPECT(cuMemSetAccess(r.at, kPage, &r.both, 1), CUDA_ERROR_INVALID_VALUE);
    CU_OK(cuMemMap(r.at, kPage, 0, r.page[0], 0));
    CU_OK(cuMemMap(r.at + kPage, kPage, 0, r.page[1], 0));
    CU_EXPECT(cuMemMap(r.at, kPage, 0, r.page[1], 0), CUDA_ERROR_INVALID_VALUE); /* over another */
    CU_EXPECT(cuMemUnmap(r.at, kPage / 2), CUDA_ERROR_INVALID_VALUE);
    CU_EXPECT(cuMemUnmap(r.at + kPage / 2, kPage), CUDA_ERROR_INVALID_VALUE);
    CU_EXPECT(cuMemUnmap(r.at, 3 * kPage), CUDA_ERROR_INVALID_VALUE);
    CU_EXPECT(cuMemSetAccess(r.at, 3 * kPage, &r.both, 1), CUDA_ERROR_INVALID_VALUE);
    CU_EXPECT(cuMemSetAccess(r.at, kPage / 2, &r.both, 1), CUDA_ERROR_INVALID_VALUE);
    CU_EXPECT(cuMemAddressFree(r.at, 4 * kPage), CUDA_ERROR_INVALID_VALUE); /* something is mapped */
    CU_OK(cuMemSetAccess(r.at, 2 * kPage, &r.both, 1));
    CU_OK(cuMemRelease(r.page[0]));
    CU_EXPECT(cuMemRelease(r.page[0]), CUDA_ERROR_INVALID_VALUE); /* twice */
    CU_EXPECT(cuMemMap(r.at + 2 * kPage, kPage, 0, r.page[0], 0), CUDA_ERROR_INVALID_VALUE);
    CU_OK(cuMemUnmap(r.at, kPage));
    CU_OK(cuMemUnmap(r.at + kPage, kPage));
    CU_OK(cuMemRelease(r.page[1]));
    CU_EXPECT(cuMemAddressFree(r.at, kPage), CUDA_ERROR_INVALID_VALUE);
    CU_EXPECT(cuMemAddressFree(r.at + kPage, 3 * kPage), CUDA_ERROR_INVALID_VALUE);
    CU_OK(cuMemAddressFree(r.at, 4 * kPage));
    CU_EXPECT(cuMemAddressFree(r.at, 4 * kPage), CUDA_ERROR_INVALID_VALUE);
    CU_ASSERT(nothing_left());
}

/* What a kernel may not touch ends the device: places that are not mapped, not yet accessible, or not mapped any more. */
void unmapped_places(void) {
    if (SIMT_TSAN) {
        test_skip("under ThreadSanitizer a fault ends the process");
        return;
    }
    for (int i = 0; i < 4; i++) {
        Ranges r;
        if (i > 0) {
            CU_OK(cuMemMap(r.at, kPage, 0, r.page[0], 0));
        }
        if (i > 1) {
            CU_OK(cuMemSetAccess(r.at, kPage, &r.both, 1));
            OK(run_touch(r.byte(0), 16, 1));
        }
        if (i == 2) {
            const CUmemAccessDesc none = access_for(CU_MEM_ACCESS_FLAGS_PROT_NONE);
            CU_OK(cuMemSetAccess(r.at, kPage, &none, 1));
        }
        if (i == 3) { /* while work that needs it is queued */
            OK(simt::launch(touch, dim3(1), dim3(32), 0, nullptr, static_cast<unsigned char *>(r.byte(0)), size_t{16},
                            static_cast<unsigned char>(2)));
            CU_OK(cuMemUnmap(r.at, kPage));
            EXPECT(cudaDeviceSynchronize(), cudaErrorIllegalAddress);
        } else {
            EXPECT(run_touch(r.byte(64), 16, 1), cudaErrorIllegalAddress);
        }
        CU_ASSERT(*emulation_fault() != '\0');
    }
    begin_with(0);
}

void no_virtual_memory(void) {
    emulation_settings s = emulation_defaults();
    CUmemGenericAllocationHandle handle;
    CUdevice device;
    size_t bytes = 0;
    int can = -1;
    s.granularity = 1 << 16;
    for (int vmm = 1; vmm >= 0; vmm--) {
        s.no_vmm = !vmm;
        emulation_reset(&s);
        const CUmemAllocationProp prop = on_device();
        CU_OK(cuInit(0));
        CU_OK(cuDeviceGet(&device, 0));
        CU_OK(cuDeviceGetAttribute(&can, CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED, device));
        CU_ASSERT_EQUAL(can, vmm);
        CU_EXPECT(cuMemGetAllocationGranularity(&bytes, &prop, CU_MEM_ALLOC_GRANULARITY_MINIMUM),
                  vmm ? CUDA_SUCCESS : CUDA_ERROR_NOT_SUPPORTED);
        CU_ASSERT_EQUAL(bytes, 1u << 16);
        CU_EXPECT(cuMemCreate(&handle, 1 << 16, &prop, 0), vmm ? CUDA_SUCCESS : CUDA_ERROR_NOT_SUPPORTED);
        if (vmm) {
            CHECK_MSG(strstr(emulation_leaks(), "1 pieces of memory") != nullptr, "%s", emulation_leaks());
            CU_OK(cuMemRelease(handle));
        }
        CU_ASSERT(nothing_left());
    }
    begin_with(0);
}

} // namespace

int main(int argc, char **argv) {
    static const test_case tests[] = {
        {"memory is counted, and is not more than there is", accounts},
        {"fresh memory is NaN, in small pieces and large", fresh_memory_is_nan},
        {"copies stay within what was allocated", copies_stay_within},
        {"the host can't follow a device pointer", hosts_hands_off},
        {"no device, an old driver, two devices", no_device},
        {"calls fail as planned, kernels too", planned},
        {"pages are mapped, and mapped elsewhere", pages_are_mapped},
        {"wrong mappings are refused", wrong_mappings},
        {"places without memory are out of a kernel's reach", unmapped_places},
        {"a device without virtual memory management", no_virtual_memory},
    };
    if (argc == 3 && strcmp(argv[1], "--alone") == 0) {
        static const test_case one[] = {{"alone", host_reads_device}};
        return test_main("emulation_memory_test", one, 1, 1, argv);
    }
    return test_main("emulation_memory_test", tests, sizeof tests / sizeof *tests, argc, argv);
}
