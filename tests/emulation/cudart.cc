/* The CUDA runtime's calls for devices, memory, streams and events, and the launch of kernels. Graphs: graph.cc. */
#include "tests/emulation/engine.hh"
#include "tests/emulation/memory.hh"
#include "tests/emulation/queue.hh"

#include <sys/mman.h>

#include <cstdio>
#include <cstring>
#include <memory>

namespace emu {
namespace {

int &current_device() {
    static __thread int device;
    return device;
}

bool good_device(int device) { return device >= 0 && static_cast<uint32_t>(device) < runtime().settings.n_devices; }

/* The context, which the first call that needs one makes. */
void begin() { runtime().initialised = true; }

/* --------------------------------------------------------------------------------------------------- copies */

/* Whether [p, p + n) is memory of the side that `device` says; pinned memory is on both. */
bool on_side(const void *p, size_t n, bool device, Place *place) {
    bool whole;
    *place = place_of(p, n ? n : 1, &whole);
    return *place == Place::host ? !device : whole && (*place == Place::pinned || device);
}

/* The kind of a copy that leaves it to the addresses. */
cudaMemcpyKind infer(const void *to, const void *from, cudaMemcpyKind kind) {
    bool whole;
    const bool to_device = place_of(to, 1, &whole) == Place::device;
    const bool from_device = place_of(from, 1, &whole) == Place::device;
    if (kind != cudaMemcpyDefault) {
        return kind;
    }
    return to_device ? (from_device ? cudaMemcpyDeviceToDevice : cudaMemcpyHostToDevice)
                     : (from_device ? cudaMemcpyDeviceToHost : cudaMemcpyHostToHost);
}

/*
 * As NVIDIA's "API synchronization behavior" has it: from pageable memory a copy is staged before the call returns, to pageable
 * memory it is done when the call returns; pinned memory is read and written when the copy runs. A blocking copy waits, but
 * not between device memories; and one from pageable memory waits for what was queued before, not for the way to the device.
 */
cudaError_t copy(Lock &lock, void *to, const void *from, size_t n, cudaMemcpyKind kind, cudaStream_t stream,
                 bool blocking) {
    kind = infer(to, from, kind);
    const bool to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
    const bool from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
    Place to_place, from_place;
    if (!on_side(to, n, to_device, &to_place) || !on_side(from, n, from_device, &from_place)) {
        return cudaErrorInvalidValue;
    }
    cudaStream_t s = find_stream(stream);
    if (!s) {
        return cudaErrorInvalidResourceHandle;
    }
    const bool pageable = to_place == Place::host || from_place == Place::host;
    if (s->capture && (pageable || blocking)) { /* a graph would keep an address that is soon another's */
        capture_of(s)->spoilt = true;
        return cudaErrorStreamCaptureUnsupported;
    }
    Work work;
    work.kind = Kind::copy;
    work.name = "cudaMemcpy";
    work.spans.push_back({to, n, true, to_place == Place::host});
    if (from_place == Place::host) {
        if (blocking) {
            cudaError_t e = finish_stream(lock, stream);
            if (e != cudaSuccess) {
                return e;
            }
        }
        EMU_TSAN(__tsan_ignore_thread_end(); __tsan_read_range(from, n); __tsan_ignore_thread_begin();)
        const char *begin = static_cast<const char *>(from);
        auto staged = std::make_shared<std::vector<char>>(begin, begin + n);
        work.run = [=](const simt::Options &) {
            Quiet quiet;
            memcpy(to, staged->data(), n);
        };
    } else {
        work.spans.push_back({from, n, false, false});
        work.run = [=](const simt::Options &) {
            Quiet quiet;
            memmove(to, from, n);
        };
    }
    OperationPtr op;
    cudaError_t e = enqueue(lock, stream, std::move(work), nullptr, &op);
    const bool waits =
        to_place == Place::host || (blocking && kind != cudaMemcpyDeviceToDevice && from_place != Place::host);
    return e == cudaSuccess && waits ? finish(lock, op) : e;
}

cudaError_t set(Lock &lock, void *p, int value, size_t n, cudaStream_t stream) {
    bool whole;
    if (place_of(p, n ? n : 1, &whole) == Place::host || !whole) {
        return cudaErrorInvalidValue;
    }
    Work work;
    work.kind = Kind::copy;
    work.name = "cudaMemset";
    work.spans.push_back({p, n, true, false});
    work.run = [=](const simt::Options &) {
        Quiet quiet;
        memset(p, value, n);
    };
    return enqueue(lock, stream, std::move(work), nullptr, nullptr);
}

/* -------------------------------------------------------------------------------------------------- kernels */

/*
 * Whether a word could be an address where something lies, of whatever kind. Two counts side by side can look like one, or a
 * count and what the stack left beside it; and under sanitizers their shadow, which lies low, is no memory of the program's.
 */
bool is_mapped(const void *p) {
    unsigned char in_core;
    if (static_cast<uint32_t>(address(p)) < 1u << 24 || ((EMU_ASAN_ON || EMU_TSAN_ON) && address(p) < 1ull << 44)) {
        return false;
    }
    return mincore(pointer(address(p) / 4096 * 4096), 1, &in_core) == 0;
}

/* Whether a kernel that is given this address would follow it into memory that a GPU can't see. */
bool is_host_pointer(const void *p) {
    bool whole;
    return p && place_of(p, 1, &whole) == Place::host &&
           place_of(static_cast<const char *>(p) - 1, 1, &whole) == Place::host && !is_reserved(p);
}

/* Host pointers among a kernel's arguments, also within structures, where any word that could be one counts. */
std::string bad_argument(std::initializer_list<simt::Argument> arguments) {
    size_t number = 0;
    for (const simt::Argument &a : arguments) {
        for (size_t i = 0; i + sizeof(void *) <= a.bytes; i += sizeof(void *)) {
            const void *p;
            memcpy(&p, static_cast<const char *>(a.value) + i, sizeof p);
            if (is_host_pointer(p) && (a.pointer || is_mapped(p))) {
                char text[96];
                snprintf(text, sizeof text, "argument %zu, byte %zu, is out of a kernel's reach: ", number, i);
                return text + describe(p);
            }
        }
        number++;
    }
    return "";
}

} // namespace
} // namespace emu

using namespace emu;

cudaError_t simt::enqueue(Kernel kernel, cudaStream_t stream, std::initializer_list<Argument> arguments) {
    cudaError_t e = call("cudaLaunchKernel", cudaErrorLaunchOutOfResources, kAnywhere, [&](Lock &lock) {
        begin();
        cudaStream_t s = find_stream(stream);
        size_t bytes = 0;
        for (const Argument &a : arguments) {
            bytes += a.bytes;
        }
        if (!s || (s != queue().legacy && s->device != current_device())) {
            return cudaErrorInvalidResourceHandle;
        }
        if (in_host_function) {
            return cudaErrorNotPermitted;
        }
        if (bytes > 4096) {
            return cudaErrorInvalidValue;
        }
        if (cudaError_t bad = check_launch(kernel)) {
            return bad;
        }
        const std::string name = function_name(kernel.function), what = bad_argument(arguments);
        if (!what.empty()) {
            lose_device(cudaErrorIllegalAddress, name + ": " + what);
            return cudaErrorIllegalAddress;
        }
        Work work;
        work.kind = Kind::kernel;
        work.name = name;
        auto kept = std::make_shared<Kernel>(std::move(kernel));
        work.run = [kept](const Options &at) { run(*kept, at); };
        return emu::enqueue(lock, stream, std::move(work), nullptr, nullptr);
    });
    /* As <<<>>> and then cudaGetLastError: an error that nobody has asked about is told, too. */
    const cudaError_t last = cudaGetLastError();
    return e != cudaSuccess ? e : last;
}

extern "C" {

/* -------------------------------------------------------------------------------------------- errors and devices */

cudaError_t cudaGetLastError(void) {
    Runtime &r = runtime();
    Lock lock(r.mutex);
    const cudaError_t e = r.sticky != cudaSuccess ? r.sticky : last_error();
    last_error() = cudaSuccess;
    return e;
}

cudaError_t cudaPeekAtLastError(void) {
    Lock lock(runtime().mutex);
    return runtime().sticky != cudaSuccess ? runtime().sticky : last_error();
}

cudaError_t cudaDriverGetVersion(int *version) {
    return call("cudaDriverGetVersion", cudaErrorUnknown, kNoDevice | kAnywhere, [&](Lock &) {
        *version = runtime().settings.driver_version;
        return cudaSuccess;
    });
}

cudaError_t cudaRuntimeGetVersion(int *version) {
    return call("cudaRuntimeGetVersion", cudaErrorUnknown, kNoDevice | kAnywhere, [&](Lock &) {
        *version = CUDART_VERSION;
        return cudaSuccess;
    });
}

cudaError_t cudaGetDeviceCount(int *count) {
    *count = 0;
    return call("cudaGetDeviceCount", cudaErrorUnknown, kAnywhere, [&](Lock &) {
        begin();
        *count = static_cast<int>(runtime().settings.n_devices);
        return cudaSuccess;
    });
}

cudaError_t cudaGetDevice(int *device) {
    return call("cudaGetDevice", cudaErrorUnknown, kAnywhere, [&](Lock &) {
        begin();
        *device = current_device();
        return cudaSuccess;
    });
}

cudaError_t cudaSetDevice(int device) {
    return call("cudaSetDevice", cudaErrorDevicesUnavailable, kAnywhere, [&](Lock &) {
        begin();
        if (!good_device(device)) {
            return cudaErrorInvalidDevice;
        }
        current_device() = device;
        return cudaSuccess;
    });
}

/* An H200's, but for what the settings say. */
cudaError_t cudaGetDeviceProperties(cudaDeviceProp *prop, int device) {
    return call("cudaGetDeviceProperties", cudaErrorUnknown, kAnywhere, [&](Lock &) {
        begin();
        if (!good_device(device)) {
            return cudaErrorInvalidDevice;
        }
        memset(static_cast<void *>(prop), 0, sizeof *prop);
        snprintf(prop->name, sizeof prop->name, "Emulated GPU");
        prop->totalGlobalMem = runtime().settings.memory_bytes;
        prop->multiProcessorCount = static_cast<int>(runtime().settings.n_processors);
        prop->major = 9;
        prop->minor = 0;
        prop->warpSize = 32;
        prop->maxThreadsPerBlock = 1024;
        prop->maxThreadsPerMultiProcessor = 2048;
        prop->sharedMemPerBlock = 48 << 10;
        prop->sharedMemPerBlockOptin = 227 << 10;
        prop->sharedMemPerMultiprocessor = 228 << 10;
        prop->regsPerBlock = 65536;
        prop->l2CacheSize = 50 << 20;
        prop->unifiedAddressing = 1;
        return cudaSuccess;
    });
}

cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr attribute, int device) {
    cudaDeviceProp prop;
    cudaError_t e = cudaGetDeviceProperties(&prop, device);
    if (e != cudaSuccess) {
        return e;
    }
    return call("cudaDeviceGetAttribute", cudaErrorUnknown, kAnywhere, [&](Lock &) {
        switch (static_cast<int>(attribute)) {
        case cudaDevAttrComputeCapabilityMajor:
            *value = prop.major;
            return cudaSuccess;
        case cudaDevAttrComputeCapabilityMinor:
            *value = prop.minor;
            return cudaSuccess;
        case cudaDevAttrMultiProcessorCount:
            *value = prop.multiProcessorCount;
            return cudaSuccess;
        case cudaDevAttrMaxSharedMemoryPerBlockOptin:
            *value = static_cast<int>(prop.sharedMemPerBlockOptin);
            return cudaSuccess;
        case cudaDevAttrL2CacheSize:
            *value = prop.l2CacheSize;
            return cudaSuccess;
        default: /* one that nobody has asked for so far */
            return cudaErrorInvalidValue;
        }
    });
}

cudaError_t cudaFuncSetAttribute(const void *function, cudaFuncAttribute attribute, int value) {
    return call("cudaFuncSetAttribute", cudaErrorUnknown, kAnywhere, [&](Lock &) {
        begin();
        return function && attribute == cudaFuncAttributeMaxDynamicSharedMemorySize && value >= 0 && value <= 227 << 10
                   ? cudaSuccess
                   : cudaErrorInvalidValue;
    });
}

cudaError_t cudaDeviceSynchronize(void) {
    return call("cudaDeviceSynchronize", cudaErrorUnknown, kPlain, [&](Lock &lock) {
        begin();
        return finish_all(lock);
    });
}

/* ------------------------------------------------------------------------------------------------------- memory */

cudaError_t cudaMemGetInfo(size_t *left, size_t *total) {
    return call("cudaMemGetInfo", cudaErrorUnknown, kAnywhere, [&](Lock &) {
        begin();
        *left = free_bytes();
        *total = runtime().settings.memory_bytes;
        return cudaSuccess;
    });
}

cudaError_t cudaMalloc(void **p, size_t bytes) {
    return call("cudaMalloc", cudaErrorMemoryAllocation, kPlain, [&](Lock &) {
        begin();
        void *made = allocate(Region::Type::malloc, bytes);
        if (made) {
            *p = made;
        } else if (bytes == 0) {
            *p = nullptr;
            return cudaSuccess;
        }
        return made ? cudaSuccess : cudaErrorMemoryAllocation;
    });
}

/* Waits for everything, as on a GPU. */
cudaError_t cudaFree(void *p) {
    return call("cudaFree", cudaErrorUnknown, kReleases, [&](Lock &lock) {
        begin();
        cudaError_t e = p ? finish_all(lock) : cudaSuccess;
        return p && !release(Region::Type::malloc, p) ? cudaErrorInvalidValue : e;
    });
}

cudaError_t cudaHostAlloc(void **p, size_t bytes, unsigned flags) {
    return call("cudaHostAlloc", cudaErrorMemoryAllocation, kPlain, [&](Lock &) {
        begin();
        if (flags > (cudaHostAllocPortable | cudaHostAllocMapped | cudaHostAllocWriteCombined)) {
            return cudaErrorInvalidValue;
        }
        void *made = allocate(Region::Type::pinned, bytes);
        if (made) {
            *p = made;
        }
        return made ? cudaSuccess : cudaErrorMemoryAllocation;
    });
}

cudaError_t cudaMallocHost(void **p, size_t bytes) { return cudaHostAlloc(p, bytes, cudaHostAllocDefault); }

cudaError_t cudaFreeHost(void *p) {
    return call("cudaFreeHost", cudaErrorUnknown, kReleases, [&](Lock &lock) {
        begin();
        cudaError_t e = p ? finish_all(lock) : cudaSuccess;
        return p && !release(Region::Type::pinned, p) ? cudaErrorInvalidValue : e;
    });
}

cudaError_t cudaMemcpy(void *to, const void *from, size_t n, cudaMemcpyKind kind) {
    return call("cudaMemcpy", cudaErrorUnknown, kPlain,
                [&](Lock &lock) { return copy(lock, to, from, n, kind, nullptr, true); });
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t n, cudaMemcpyKind kind, cudaStream_t stream) {
    return call("cudaMemcpyAsync", cudaErrorUnknown, kAnywhere,
                [&](Lock &lock) { return copy(lock, to, from, n, kind, stream, false); });
}

cudaError_t cudaMemset(void *p, int value, size_t n) {
    return call("cudaMemset", cudaErrorUnknown, kPlain, [&](Lock &lock) { return set(lock, p, value, n, nullptr); });
}

cudaError_t cudaMemsetAsync(void *p, int value, size_t n, cudaStream_t stream) {
    return call("cudaMemsetAsync", cudaErrorUnknown, kAnywhere,
                [&](Lock &lock) { return set(lock, p, value, n, stream); });
}

/* ------------------------------------------------------------------------------------------------------ streams */

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags) {
    return call("cudaStreamCreateWithFlags", cudaErrorMemoryAllocation, kAnywhere, [&](Lock &) {
        begin();
        if (flags != cudaStreamDefault && flags != cudaStreamNonBlocking) {
            return cudaErrorInvalidValue;
        }
        *stream = make_stream(flags == cudaStreamDefault, current_device());
        return cudaSuccess;
    });
}

cudaError_t cudaStreamCreate(cudaStream_t *stream) { return cudaStreamCreateWithFlags(stream, cudaStreamDefault); }

/* Returns at once; what is queued goes on. */
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    return call("cudaStreamDestroy", cudaErrorUnknown, kReleases | kAnywhere, [&](Lock &) {
        Queue &q = queue();
        if (!q.streams.count(stream)) {
            return cudaErrorInvalidResourceHandle;
        }
        if (Capture *c = capture_of(stream)) {
            c->spoilt = true;
        }
        if (stream->blocking && stream->last) {
            q.orphans.push_back(stream->last);
        }
        q.streams.erase(stream);
        delete stream;
        return cudaSuccess;
    });
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    return call("cudaStreamSynchronize", cudaErrorUnknown, kAnywhere,
                [&](Lock &lock) { return finish_stream(lock, stream); });
}

cudaError_t cudaStreamQuery(cudaStream_t stream) {
    return call("cudaStreamQuery", cudaErrorUnknown, kAnywhere, [&](Lock &lock) {
        cudaStream_t s = find_stream(stream);
        if (!s || capture_of(s)) {
            return s ? cudaErrorStreamCaptureUnsupported : cudaErrorInvalidResourceHandle;
        }
        drift(lock, true);
        return !s->last || s->last->done ? finish(lock, s->last) : cudaErrorNotReady;
    });
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags) {
    return call("cudaStreamWaitEvent", cudaErrorUnknown, kAnywhere, [&](Lock &lock) {
        cudaStream_t s = find_stream(stream);
        if (!s || !queue().events.count(event) || flags) {
            return cudaErrorInvalidResourceHandle;
        }
        if (event->capture || s->capture) {
            return capture_wait(s, event);
        }
        return event->recorded ? enqueue(lock, stream, Work(), event->recorded, nullptr) : cudaSuccess;
    });
}

cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void *data) {
    return call("cudaLaunchHostFunc", cudaErrorMemoryAllocation, kAnywhere, [&](Lock &lock) {
        Work work;
        work.kind = Kind::host;
        work.name = "cudaLaunchHostFunc";
        work.run = [=](const simt::Options &) { function(data); };
        return function ? enqueue(lock, stream, std::move(work), nullptr, nullptr) : cudaErrorInvalidValue;
    });
}

/* ------------------------------------------------------------------------------------------------------- events */

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags) {
    return call("cudaEventCreateWithFlags", cudaErrorMemoryAllocation, kAnywhere, [&](Lock &) {
        begin();
        if (flags & ~static_cast<unsigned>(cudaEventBlockingSync | cudaEventDisableTiming)) {
            return cudaErrorInvalidValue;
        }
        *event = new CUevent_st{!(flags & cudaEventDisableTiming), nullptr, 0, {}};
        queue().events.insert(*event);
        return cudaSuccess;
    });
}

cudaError_t cudaEventCreate(cudaEvent_t *event) { return cudaEventCreateWithFlags(event, cudaEventDefault); }

cudaError_t cudaEventDestroy(cudaEvent_t event) {
    return call("cudaEventDestroy", cudaErrorUnknown, kReleases | kAnywhere, [&](Lock &) {
        if (!queue().events.erase(event)) {
            return cudaErrorInvalidResourceHandle;
        }
        delete event;
        return cudaSuccess;
    });
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
    return call("cudaEventRecord", cudaErrorUnknown, kAnywhere, [&](Lock &lock) {
        cudaStream_t s = find_stream(stream);
        if (!s || !queue().events.count(event) || (s != queue().legacy && s->device != current_device())) {
            return cudaErrorInvalidResourceHandle;
        }
        event->capture = s->capture;
        event->nodes = s->tail;
        event->recorded = nullptr;
        return s->capture ? cudaSuccess : enqueue(lock, stream, Work(), nullptr, &event->recorded);
    });
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
    return call("cudaEventSynchronize", cudaErrorUnknown, kAnywhere, [&](Lock &lock) {
        if (!queue().events.count(event)) {
            return cudaErrorInvalidResourceHandle;
        }
        if (event->capture) {
            return cudaErrorCapturedEvent;
        }
        const OperationPtr op = event->recorded;
        return finish(lock, op);
    });
}

cudaError_t cudaEventQuery(cudaEvent_t event) {
    return call("cudaEventQuery", cudaErrorUnknown, kAnywhere, [&](Lock &lock) {
        if (!queue().events.count(event)) {
            return cudaErrorInvalidResourceHandle;
        }
        if (event->capture) {
            return cudaErrorCapturedEvent;
        }
        const OperationPtr op = event->recorded;
        const bool done = !op || op->done;
        if (!done) { /* who asks again and again gets there */
            drift(lock, true);
        }
        return done ? finish(lock, op) : cudaErrorNotReady;
    });
}

cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t begin, cudaEvent_t end) {
    return call("cudaEventElapsedTime", cudaErrorUnknown, kAnywhere, [&](Lock &) {
        const std::set<cudaEvent_t> &events = queue().events;
        if (!events.count(begin) || !events.count(end) || !begin->timing || !end->timing || !begin->recorded ||
            !end->recorded) {
            return cudaErrorInvalidResourceHandle;
        }
        if (!begin->recorded->done || !end->recorded->done) {
            return cudaErrorNotReady;
        }
        *ms = static_cast<float>((end->recorded->time_us - begin->recorded->time_us) * 1e-3);
        return cudaSuccess;
    });
}

} // extern "C"
