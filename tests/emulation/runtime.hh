/*
 * runtime: what the stand-ins for CUDA's libraries share. One lock guards everything; it is given up while queued work runs
 * (queue.hh). The device is lost for good when a kernel faults: `sticky`.
 */
#ifndef PERCH_TESTS_EMULATION_RUNTIME_HH
#define PERCH_TESTS_EMULATION_RUNTIME_HH

#include "tests/emulation/emulation.h"
#include "tests/emulation/sanitizers.hh"

#include <cublasLt.h>
#include <cuda.h>
#include <cuda_runtime_api.h>

#include <map>
#include <mutex>
#include <string>
#include <vector>

namespace emu {

typedef std::unique_lock<std::mutex> Lock;

struct Failure {
    std::string call; /* "": any */
    uint64_t left;
    int error;
};

struct Runtime {
    std::mutex mutex;
    emulation_settings settings = emulation_defaults();
    std::map<std::string, uint64_t> calls;
    uint64_t n_calls = 0, n_failed = 0;
    std::vector<Failure> failures;
    cudaError_t sticky = cudaSuccess;
    std::string fault;
    bool initialised = false; /* cuInit or a call of the runtime */
    uint64_t random = 1;
};

/* Lives until the process ends. */
Runtime &runtime();

/* splitmix64 from the seed; below(n): 0..n-1. */
uint64_t random_below(uint64_t n);

/* What a function is like, beyond its name. */
enum Trait : unsigned {
    kPlain = 0,
    kReleases = 1, /* does its work even where it fails */
    kNoDevice = 2, /* needs neither device nor driver: versions, names */
    kAnywhere = 4, /* may be called while a stream is being captured, and from a host function */
    kAsks = 8,     /* gives the device's error as its answer: cudaGetLastError */
};

/* Counts the call; the error that it is to fail with, or 0. */
int counted(const char *name, int likely);

/* The thread's last error: cudaGetLastError. */
cudaError_t &last_error();
extern __thread bool in_host_function;

/* What is wrong with the world before the function itself is asked. */
cudaError_t obstacle(unsigned traits);

void lose_device(cudaError_t error, const std::string &what);

/* One call of the runtime: body(lock) gives its error. */
template <class F> cudaError_t call(const char *name, cudaError_t likely, unsigned traits, F body) {
    Quiet quiet;
    Lock lock(runtime().mutex);
    cudaError_t e = obstacle(traits);
    const int planned = counted(name, likely);
    if (e == cudaSuccess && planned) {
        e = static_cast<cudaError_t>(planned);
    }
    if (e == cudaSuccess || (traits & kReleases)) {
        const cudaError_t own = body(lock);
        e = e == cudaSuccess ? own : e;
    }
    if (e != cudaSuccess) {
        last_error() = e;
    }
    return e;
}

/* One call of the driver. */
template <class F> CUresult driver_call(const char *name, CUresult likely, unsigned traits, F body) {
    Quiet quiet;
    Lock lock(runtime().mutex);
    const cudaError_t e = obstacle(traits); /* the numbers are the same in both */
    CUresult r = static_cast<CUresult>(e);
    if (e == cudaErrorInsufficientDriver) {
        r = CUDA_ERROR_SYSTEM_DRIVER_MISMATCH;
    }
    const int planned = counted(name, likely);
    if (r == CUDA_SUCCESS && planned) {
        r = static_cast<CUresult>(planned);
    }
    if (r == CUDA_SUCCESS && !(traits & kNoDevice) && !runtime().initialised) {
        r = CUDA_ERROR_NOT_INITIALIZED;
    }
    if (r == CUDA_SUCCESS || (traits & kReleases)) {
        const CUresult own = body(lock);
        r = r == CUDA_SUCCESS ? own : r;
    }
    return r;
}

} // namespace emu

#endif
