/* Names for messages: of errors, those that are used, and of kernels. */
#include "tests/emulation/engine.hh"
#include "tests/emulation/runtime.hh"

#include <cxxabi.h>
#include <dlfcn.h>
#include <elf.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <map>
#include <string>

namespace {

struct Known {
    int code;
    const char *name, *text;
};

#define KNOWN(name, text)                                                                                              \
    { name, #name, text }

const Known errors[] = {
    KNOWN(cudaSuccess, "no error"),
    KNOWN(cudaErrorInvalidValue, "invalid argument"),
    KNOWN(cudaErrorMemoryAllocation, "out of memory"),
    KNOWN(cudaErrorInitializationError, "initialization error"),
    KNOWN(cudaErrorCudartUnloading, "driver shutting down"),
    KNOWN(cudaErrorInvalidConfiguration, "invalid configuration argument"),
    KNOWN(cudaErrorInsufficientDriver, "CUDA driver version is insufficient for CUDA runtime version"),
    KNOWN(cudaErrorDevicesUnavailable, "CUDA-capable device(s) is/are busy or unavailable"),
    KNOWN(cudaErrorNoDevice, "no CUDA-capable device is detected"),
    KNOWN(cudaErrorInvalidDevice, "invalid device ordinal"),
    KNOWN(cudaErrorInvalidResourceHandle, "invalid resource handle"),
    KNOWN(cudaErrorIllegalState, "the operation cannot be performed in the present state"),
    KNOWN(cudaErrorNotReady, "device not ready"),
    KNOWN(cudaErrorIllegalAddress, "an illegal memory access was encountered"),
    KNOWN(cudaErrorLaunchOutOfResources, "too many resources requested for launch"),
    KNOWN(cudaErrorLaunchTimeout, "the launch timed out and was terminated"),
    KNOWN(cudaErrorMisalignedAddress, "misaligned address"),
    KNOWN(cudaErrorLaunchFailure, "unspecified launch failure"),
    KNOWN(cudaErrorNotPermitted, "operation not permitted"),
    KNOWN(cudaErrorNotSupported, "operation not supported"),
    KNOWN(cudaErrorSystemDriverMismatch, "system has unsupported display driver / cuda driver combination"),
    KNOWN(cudaErrorStreamCaptureUnsupported, "operation not permitted when stream is capturing"),
    KNOWN(cudaErrorStreamCaptureInvalidated, "operation failed due to a previous error during capture"),
    KNOWN(cudaErrorStreamCaptureUnmatched, "capture was not ended in the same stream as it began"),
    KNOWN(cudaErrorStreamCaptureUnjoined, "capturing stream has unjoined work"),
    KNOWN(cudaErrorStreamCaptureIsolation, "dependency created on uncaptured work in another stream"),
    KNOWN(cudaErrorStreamCaptureWrongThread, "capture was ended by another thread than began it"),
    KNOWN(cudaErrorCapturedEvent, "operation not permitted on an event last recorded in a capturing stream"),
    KNOWN(cudaErrorUnknown, "unknown error"),
};

const Known statuses[] = {
    KNOWN(CUBLAS_STATUS_SUCCESS, "success"),
    KNOWN(CUBLAS_STATUS_NOT_INITIALIZED, "the library was not initialized"),
    KNOWN(CUBLAS_STATUS_ALLOC_FAILED, "the resource allocation failed"),
    KNOWN(CUBLAS_STATUS_INVALID_VALUE, "an invalid value was passed"),
    KNOWN(CUBLAS_STATUS_EXECUTION_FAILED, "the GPU program failed to execute"),
    KNOWN(CUBLAS_STATUS_INTERNAL_ERROR, "an internal operation failed"),
    KNOWN(CUBLAS_STATUS_NOT_SUPPORTED, "the functionality is not supported"),
};

template <size_t n> const Known *find(const Known (&all)[n], int code) {
    for (const Known &k : all) {
        if (k.code == code) {
            return &k;
        }
    }
    return nullptr;
}

/* The symbol at this offset of an ELF file in memory, whose table also has what is not exported; "" where it was stripped. */
std::string symbol_in(const char *file, size_t bytes, uint64_t offset) {
    const Elf64_Ehdr *header = reinterpret_cast<const Elf64_Ehdr *>(file);
    if (bytes < sizeof *header || memcmp(header->e_ident, ELFMAG, SELFMAG) != 0) {
        return "";
    }
    const Elf64_Shdr *sections = reinterpret_cast<const Elf64_Shdr *>(file + header->e_shoff);
    for (size_t i = 0; i < header->e_shnum; i++) {
        if (sections[i].sh_type != SHT_SYMTAB) {
            continue;
        }
        const Elf64_Sym *symbols = reinterpret_cast<const Elf64_Sym *>(file + sections[i].sh_offset);
        const char *names = file + sections[sections[i].sh_link].sh_offset;
        for (size_t k = 0; k < sections[i].sh_size / sizeof *symbols; k++) {
            if (symbols[k].st_value == offset && ELF64_ST_TYPE(symbols[k].st_info) == STT_FUNC) {
                return names + symbols[k].st_name;
            }
        }
    }
    return "";
}

/* Mapped, not read: with sanitizers a program has tens of megabytes, and there are many kernels. */
std::string symbol_at(const char *path, uint64_t offset) {
    std::string name;
    struct stat about;
    const int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file >= 0 && fstat(file, &about) == 0) {
        const size_t bytes = static_cast<size_t>(about.st_size);
        void *p = mmap(nullptr, bytes, PROT_READ, MAP_PRIVATE, file, 0);
        if (p != MAP_FAILED) {
            name = symbol_in(static_cast<const char *>(p), bytes, offset);
            munmap(p, bytes);
        }
    }
    if (file >= 0) {
        close(file);
    }
    return name;
}

} // namespace

std::string simt::function_name(const void *function) {
    static std::map<const void *, std::string> known; /* under the runtime's lock */
    auto at = known.find(function);
    if (at != known.end()) {
        return at->second;
    }
    std::string name = "a kernel";
    Dl_info info;
    if (dladdr(function, &info)) {
        const uint64_t offset =
            static_cast<uint64_t>(static_cast<const char *>(function) - static_cast<const char *>(info.dli_fbase));
        const std::string mangled = symbol_at(info.dli_fname, offset);
        char *plain = abi::__cxa_demangle(mangled.c_str(), nullptr, nullptr, nullptr);
        if (!mangled.empty()) {
            name = plain ? plain : mangled.c_str();
            const std::string noise = "(anonymous namespace)::";
            for (size_t k; (k = name.find(noise)) != std::string::npos;) {
                name.erase(k, noise.size());
            }
        }
        free(plain);
    }
    return known[function] = name.substr(0, name.find('('));
}

extern "C" {

const char *cudaGetErrorName(cudaError_t error) {
    const Known *k = find(errors, error);
    return k ? k->name : "unrecognized error code";
}

const char *cudaGetErrorString(cudaError_t error) {
    const Known *k = find(errors, error);
    return k ? k->text : "unrecognized error code";
}

/* The driver's errors have the runtime's numbers. */
CUresult cuGetErrorName(CUresult error, const char **text) {
    const Known *k = find(errors, error);
    *text = k ? k->name : nullptr;
    return k ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuGetErrorString(CUresult error, const char **text) {
    const Known *k = find(errors, error);
    *text = k ? k->text : nullptr;
    return k ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

const char *cublasLtGetStatusName(cublasStatus_t status) {
    const Known *k = find(statuses, status);
    return k ? k->name : "unknown status";
}

const char *cublasLtGetStatusString(cublasStatus_t status) {
    const Known *k = find(statuses, status);
    return k ? k->text : "unknown status";
}

} // extern "C"
