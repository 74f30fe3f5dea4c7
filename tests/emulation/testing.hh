/* testing: what the tests of the emulation share. */
#ifndef PERCH_TESTS_EMULATION_TESTING_HH
#define PERCH_TESTS_EMULATION_TESTING_HH

#include "tests/emulation/emulation.h"
#include "tests/emulation/sanitizers.hh"
#include "tests/support/check.h"

#include <cuda_runtime.h>

#include <cstdio>
#include <cstring>
#include <string>
#include <unistd.h>

#define OK(call) EXPECT(call, cudaSuccess)
#define EXPECT(call, error)                                                                                            \
    do {                                                                                                               \
        const cudaError_t got_ = (call);                                                                               \
        CHECK_MSG(got_ == (error), "%s, not %s", cudaGetErrorName(got_), cudaGetErrorName(error));                     \
    } while (0)

/* A device as new, with this seed. */
inline void begin_with(uint64_t seed) {
    emulation_settings s = emulation_defaults();
    s.seed = seed;
    emulation_reset(&s);
}

template <class T> inline T *device_array(size_t n) {
    void *p = nullptr;
    EXPECT(cudaMalloc(&p, n * sizeof(T)), cudaSuccess);
    return static_cast<T *>(p);
}
template <class T> inline T *pinned_array(size_t n) {
    void *p = nullptr;
    EXPECT(cudaHostAlloc(&p, n * sizeof(T), cudaHostAllocDefault), cudaSuccess);
    return static_cast<T *>(p);
}

inline bool nothing_left() { return CHECK_MSG(*emulation_leaks() == '\0', "left over: %s", emulation_leaks()); }

/* What a process of its own says and how it ends: this program with the arguments --alone NAME. */
struct Ending {
    std::string output;
    bool well;
};
inline Ending run_alone(const char *name) {
    char path[4096];
    const ssize_t n = readlink("/proc/self/exe", path, sizeof path - 1);
    Ending end = {"", false};
    const std::string options = "TSAN_OPTIONS=\"$TSAN_OPTIONS:atexit_sleep_ms=0:symbolize=0\" ";
    const std::string command =
        "'" + std::string(path, static_cast<size_t>(n > 0 ? n : 0)) + "' --alone '" + name + "'";
    FILE *pipe = n < 0 ? nullptr : popen((options + command + " 2>&1").c_str(), "r");
    if (pipe) {
        char line[1024];
        while (fgets(line, sizeof line, pipe)) {
            end.output += line;
        }
        end.well = pclose(pipe) == 0;
    }
    return end;
}

#endif
