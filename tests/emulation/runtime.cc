/* The lock, the settings, and calls that fail because a test wants it: emulation.h but for what memory and queues know. */
#include "tests/emulation/runtime.hh"
#include "tests/emulation/memory.hh"
#include "tests/emulation/queue.hh"

#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace emu {

__thread bool in_host_function;

Runtime &runtime() {
    static Runtime *r = new Runtime;
    return *r;
}

uint64_t random_below(uint64_t n) {
    uint64_t z = runtime().random += 0x9e3779b97f4a7c15ull;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ z >> 27) * 0x94d049bb133111ebull;
    return (z ^ z >> 31) % n;
}

int counted(const char *name, int likely) {
    Runtime &r = runtime();
    r.n_calls++;
    r.calls[name]++;
    int error = 0;
    for (size_t i = 0; i < r.failures.size();) {
        Failure &f = r.failures[i];
        if ((f.call.empty() || f.call == name) && --f.left == 0) {
            error = f.error ? f.error : likely;
            r.n_failed++;
            r.failures.erase(r.failures.begin() + static_cast<ptrdiff_t>(i));
        } else {
            i++;
        }
    }
    return error;
}

cudaError_t &last_error() {
    static __thread cudaError_t error;
    return error;
}

cudaError_t obstacle(unsigned traits) {
    Runtime &r = runtime();
    if (in_host_function && !(traits & kAnywhere)) {
        return cudaErrorNotPermitted;
    }
    if (traits & kNoDevice) {
        return cudaSuccess;
    }
    if (r.settings.driver_version < CUDART_VERSION / 1000 * 1000) { /* of an earlier major version, or none */
        return cudaErrorInsufficientDriver;
    }
    if (r.settings.n_devices == 0) {
        return cudaErrorNoDevice;
    }
    if (r.sticky != cudaSuccess && !(traits & kAsks)) {
        return r.sticky;
    }
    if (!(traits & (kAnywhere | kAsks)) && disturbs_capture()) {
        return cudaErrorStreamCaptureUnsupported;
    }
    return cudaSuccess;
}

void lose_device(cudaError_t error, const std::string &what) {
    Runtime &r = runtime();
    if (r.sticky == cudaSuccess) {
        r.sticky = error;
        r.fault = what;
        fprintf(stderr, "emulation: %s: %s\n", cudaGetErrorName(error), what.c_str());
    }
}

static uint64_t number(const char *name, uint64_t otherwise) {
    const char *value = getenv(name);
    return value && *value ? strtoull(value, nullptr, 0) : otherwise;
}

/* What emulation.h hands out stays the calling thread's until it asks again. */
static const char *lend(const std::string &s) {
    static thread_local std::string kept;
    kept = s;
    return kept.c_str();
}

} // namespace emu

using namespace emu;

extern "C" {

emulation_settings emulation_defaults(void) {
    emulation_settings s = {};
    s.seed = number("PERCH_EMU_SEED", 1);
    s.eager = number("PERCH_EMU_EAGER", 0) != 0;
    s.memory_bytes = number("PERCH_EMU_MEMORY", 8ull << 30);
    s.granularity = number("PERCH_EMU_GRANULARITY", 2 << 20);
    s.graph_bytes = number("PERCH_EMU_GRAPH_BYTES", 0);
    s.no_vmm = number("PERCH_EMU_NO_VMM", 0) != 0;
    s.n_devices = static_cast<uint32_t>(number("PERCH_EMU_DEVICES", 1));
    s.n_processors = static_cast<uint32_t>(number("PERCH_EMU_PROCESSORS", 16));
    s.driver_version = static_cast<int>(number("PERCH_EMU_DRIVER", CUDART_VERSION));
    return s;
}

void emulation_reset(const emulation_settings *settings) {
    Quiet quiet;
    Runtime &r = runtime();
    Lock lock(r.mutex);
    forget_queue();
    forget_memory();
    r.settings = settings ? *settings : emulation_defaults();
    r.random = r.settings.seed;
    r.calls.clear();
    r.n_calls = r.n_failed = 0;
    r.failures.clear();
    r.sticky = cudaSuccess;
    r.fault.clear();
    r.initialised = false;
    last_error() = cudaSuccess;
}

void emulation_fail(const char *call, uint64_t nth, int error) {
    Quiet quiet;
    Lock lock(runtime().mutex);
    runtime().failures.push_back({call ? call : "", nth, error});
}

uint64_t emulation_calls(const char *call) {
    Quiet quiet;
    Runtime &r = runtime();
    Lock lock(r.mutex);
    if (!call) {
        return r.n_calls;
    }
    auto at = r.calls.find(call);
    return at == r.calls.end() ? 0 : at->second;
}

uint64_t emulation_failed(void) {
    Quiet quiet;
    Lock lock(runtime().mutex);
    return runtime().n_failed;
}

const char *emulation_fault(void) {
    Quiet quiet;
    Lock lock(runtime().mutex);
    return lend(runtime().fault);
}

const char *emulation_leaks(void) {
    Quiet quiet;
    Lock lock(runtime().mutex);
    std::string s = queue_leaks(), memory = memory_leaks();
    return lend(s.empty() || memory.empty() ? s + memory : s + ", " + memory);
}

} // extern "C"
