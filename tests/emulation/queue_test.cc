/* Streams and events: what is in order stays so, and what is not is found out by some seed. */
#include "tests/emulation/testing.hh"

#include <thread>

namespace {

constexpr int kSeeds = 24;
constexpr int kN = 64;

__global__ void fill(int *p, int value) { p[threadIdx.x] = value; }
__global__ void add(const int *from, int *to, int value) { to[threadIdx.x] = from[threadIdx.x] + value; }

/* Whether all of device memory p is `value`. Waits for everything. */
bool all_are(const int *p, int value) {
    int host[kN];
    OK(cudaDeviceSynchronize());
    OK(cudaMemcpy(host, p, sizeof host, cudaMemcpyDeviceToHost));
    for (int v : host) {
        if (v != value) {
            return false;
        }
    }
    return true;
}

/* Two streams, two events and memory; all of it is gone, and nothing else left, at the end. */
struct Set {
    cudaStream_t a = nullptr, b = nullptr;
    cudaEvent_t event = nullptr, other = nullptr;
    int *x, *y, *pinned;
    Set(uint64_t seed, unsigned flags) {
        begin_with(seed);
        OK(cudaStreamCreateWithFlags(&a, flags));
        OK(cudaStreamCreateWithFlags(&b, flags));
        OK(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
        OK(cudaEventCreate(&other));
        x = device_array<int>(kN);
        y = device_array<int>(kN);
        pinned = pinned_array<int>(kN);
    }
    ~Set() {
        OK(cudaFree(x));
        OK(cudaFree(y));
        OK(cudaFreeHost(pinned));
        OK(cudaEventDestroy(event));
        OK(cudaEventDestroy(other));
        OK(cudaStreamDestroy(a));
        OK(cudaStreamDestroy(b));
        CU_ASSERT(nothing_left());
    }
    void set_pinned(int value) {
        for (int i = 0; i < kN; i++) {
            pinned[i] = value;
        }
    }
    void launch_fill(cudaStream_t s, int *p, int value) { OK(simt::launch(fill, dim3(1), dim3(kN), 0, s, p, value)); }
    void launch_add(cudaStream_t s, int value) { OK(simt::launch(add, dim3(1), dim3(kN), 0, s, x, y, value)); }
};

/* Each scenario gives whether all came out as its author thinks. */
bool event_between_streams(uint64_t seed) {
    Set s(seed, cudaStreamNonBlocking);
    s.launch_fill(s.a, s.x, 5);
    OK(cudaEventRecord(s.event, s.a));
    OK(cudaStreamWaitEvent(s.b, s.event, 0));
    s.launch_add(s.b, 2);
    return all_are(s.y, 7);
}
bool no_event(uint64_t seed) {
    Set s(seed, cudaStreamNonBlocking);
    s.launch_fill(s.a, s.x, 5);
    s.launch_add(s.b, 2);
    return all_are(s.y, 7);
}
bool event_recorded_too_early(uint64_t seed) {
    Set s(seed, cudaStreamNonBlocking);
    OK(cudaEventRecord(s.event, s.a));
    s.launch_fill(s.a, s.x, 5);
    OK(cudaStreamWaitEvent(s.b, s.event, 0));
    s.launch_add(s.b, 2);
    return all_are(s.y, 7);
}
bool overwritten_while_read(uint64_t seed) {
    Set s(seed, cudaStreamNonBlocking);
    s.launch_fill(s.a, s.x, 5);
    OK(cudaEventRecord(s.event, s.a));
    OK(cudaStreamWaitEvent(s.b, s.event, 0));
    s.launch_add(s.b, 2);
    s.launch_fill(s.a, s.x, 9);
    return all_are(s.y, 7);
}
bool awaited_before_overwritten(uint64_t seed) {
    Set s(seed, cudaStreamNonBlocking);
    s.launch_fill(s.a, s.x, 5);
    OK(cudaEventRecord(s.event, s.a));
    OK(cudaStreamWaitEvent(s.b, s.event, 0));
    s.launch_add(s.b, 2);
    OK(cudaEventRecord(s.event, s.b));
    OK(cudaStreamWaitEvent(s.a, s.event, 0));
    s.launch_fill(s.a, s.x, 9);
    return all_are(s.y, 7) && all_are(s.x, 9);
}
bool pinned_reused(uint64_t seed) {
    Set s(seed, cudaStreamNonBlocking);
    s.set_pinned(3);
    OK(cudaMemcpyAsync(s.x, s.pinned, kN * sizeof(int), cudaMemcpyHostToDevice, s.a));
    s.set_pinned(4);
    return all_are(s.x, 3);
}
bool pinned_reused_after_event(uint64_t seed) {
    Set s(seed, cudaStreamNonBlocking);
    s.set_pinned(3);
    OK(cudaMemcpyAsync(s.x, s.pinned, kN * sizeof(int), cudaMemcpyHostToDevice, s.a));
    OK(cudaEventRecord(s.event, s.a));
    OK(cudaEventSynchronize(s.event));
    s.set_pinned(4);
    return all_are(s.x, 3);
}
bool pinned_filled_too_late(uint64_t seed) { /* what was queued may begin at once */
    Set s(seed, cudaStreamNonBlocking);
    s.set_pinned(3);
    OK(cudaMemcpyAsync(s.x, s.pinned, kN * sizeof(int), cudaMemcpyHostToDevice, s.a));
    OK(cudaEventRecord(s.event, s.a));
    s.set_pinned(4);
    return all_are(s.x, 4);
}
bool result_read_too_early(uint64_t seed) {
    Set s(seed, cudaStreamNonBlocking);
    s.set_pinned(0);
    s.launch_fill(s.a, s.x, 5);
    OK(cudaMemcpyAsync(s.pinned, s.x, kN * sizeof(int), cudaMemcpyDeviceToHost, s.a));
    const bool good = s.pinned[kN - 1] == 5;
    OK(cudaDeviceSynchronize());
    return good;
}
bool result_of_pageable(uint64_t seed) {
    Set s(seed, cudaStreamNonBlocking);
    int host[kN];
    s.launch_fill(s.a, s.x, 5);
    OK(cudaMemcpyAsync(host, s.x, sizeof host, cudaMemcpyDeviceToHost, s.a));
    return host[0] == 5 && host[kN - 1] == 5;
}
bool pageable_is_staged(uint64_t seed) {
    Set s(seed, cudaStreamNonBlocking);
    int host[kN];
    for (int i = 0; i < 3; i++) {
        for (int &v : host) {
            v = i;
        }
        OK(cudaMemcpyAsync(i == 0 ? s.x : s.y, host, sizeof host, cudaMemcpyHostToDevice, s.a));
    }
    return all_are(s.x, 0) && all_are(s.y, 2);
}
bool blocking_copy_and_a_stream(uint64_t seed) { /* cudaMemcpy returns when the host's memory is free again, no more */
    Set s(seed, cudaStreamNonBlocking);
    int host[kN];
    for (int &v : host) {
        v = 5;
    }
    OK(cudaMemcpy(s.x, host, sizeof host, cudaMemcpyHostToDevice));
    s.launch_add(s.b, 2);
    return all_are(s.y, 7);
}
bool blocking_copy_and_a_wait(uint64_t seed) {
    Set s(seed, cudaStreamNonBlocking);
    int host[kN];
    for (int &v : host) {
        v = 5;
    }
    OK(cudaMemcpy(s.x, host, sizeof host, cudaMemcpyHostToDevice));
    OK(cudaStreamSynchronize(nullptr));
    s.launch_add(s.b, 2);
    return all_are(s.y, 7);
}
bool legacy_orders_blocking_streams(uint64_t seed) {
    Set s(seed, cudaStreamDefault);
    s.launch_fill(s.a, s.x, 5);
    s.launch_add(nullptr, 2);                                                       /* after a */
    OK(cudaMemcpyAsync(s.x, s.y, kN * sizeof(int), cudaMemcpyDeviceToDevice, s.b)); /* after that */
    return all_are(s.x, 7);
}
bool legacy_after_a_destroyed_stream(uint64_t seed) {
    Set s(seed, cudaStreamDefault);
    cudaStream_t gone;
    OK(cudaStreamCreate(&gone));
    s.launch_fill(gone, s.x, 5);
    OK(cudaStreamDestroy(gone));
    s.launch_add(nullptr, 2);
    return all_are(s.y, 7);
}
bool legacy_ignores_others(uint64_t seed) {
    Set s(seed, cudaStreamNonBlocking);
    s.launch_fill(s.a, s.x, 5);
    s.launch_add(nullptr, 2);
    return all_are(s.y, 7);
}
bool memset_is_queued(uint64_t seed) {
    Set s(seed, cudaStreamNonBlocking);
    OK(cudaMemset(s.x, 0, kN * sizeof(int)));
    s.launch_add(s.a, 7);
    return all_are(s.y, 7);
}
bool polled(uint64_t seed) {
    Set s(seed, cudaStreamNonBlocking);
    s.launch_fill(s.a, s.x, 5);
    OK(cudaMemcpyAsync(s.pinned, s.x, kN * sizeof(int), cudaMemcpyDeviceToHost, s.a));
    OK(cudaEventRecord(s.event, s.a));
    cudaError_t e;
    int rounds = 0;
    while ((e = cudaEventQuery(s.event)) == cudaErrorNotReady && ++rounds < 100) {
        EXPECT(cudaGetLastError(), cudaErrorNotReady); /* is one of the last error's */
    }
    OK(e);
    OK(cudaStreamQuery(s.a));
    return s.pinned[0] == 5;
}
bool freed_memory_is_done_with(uint64_t seed) {
    Set s(seed, cudaStreamNonBlocking);
    int *p = device_array<int>(kN);
    s.launch_fill(s.a, p, 1);
    OK(cudaMemcpyAsync(s.x, p, kN * sizeof(int), cudaMemcpyDeviceToDevice, s.a));
    OK(cudaFree(p));
    return all_are(s.x, 1);
}

struct Scenario {
    const char *name;
    bool (*run)(uint64_t seed);
    bool right;
};
#define SCENARIO(name, right)                                                                                          \
    { #name, name, right }
const Scenario scenarios[] = {
    SCENARIO(event_between_streams, true),
    SCENARIO(no_event, false),
    SCENARIO(event_recorded_too_early, false),
    SCENARIO(overwritten_while_read, false),
    SCENARIO(awaited_before_overwritten, true),
    SCENARIO(pinned_reused, false),
    SCENARIO(pinned_reused_after_event, true),
    SCENARIO(pinned_filled_too_late, false),
    SCENARIO(result_read_too_early, false),
    SCENARIO(result_of_pageable, true),
    SCENARIO(pageable_is_staged, true),
    SCENARIO(blocking_copy_and_a_stream, false),
    SCENARIO(blocking_copy_and_a_wait, true),
    SCENARIO(legacy_orders_blocking_streams, true),
    SCENARIO(legacy_after_a_destroyed_stream, true),
    SCENARIO(legacy_ignores_others, false),
    SCENARIO(memset_is_queued, false),
    SCENARIO(polled, true),
    SCENARIO(freed_memory_is_done_with, true),
};

void orders(void) {
    for (const Scenario &s : scenarios) {
        int wrong = 0;
        for (uint64_t seed = 0; seed < kSeeds && (s.right || !SIMT_TSAN); seed++) {
            wrong += !s.run(seed);
        }
        if (s.right || !SIMT_TSAN) {
            CHECK_MSG((wrong == 0) == s.right, "%s: wrong with %d of %d seeds", s.name, wrong, kSeeds);
        }
    }
}

const char *alone;
void one_scenario(void) {
    for (const Scenario &s : scenarios) {
        if (strcmp(s.name, alone) == 0) {
            s.run(0);
        }
    }
}

/* ThreadSanitizer needs no luck: it sees what nothing puts in order, however it went. */
void races(void) {
    if (!SIMT_TSAN) {
        test_skip("built without ThreadSanitizer");
        return;
    }
    for (const Scenario &s : scenarios) {
        const Ending end = run_alone(s.name);
        CHECK_MSG(s.right == end.well && s.right == (end.output.find("data race") == std::string::npos), "%s: %s",
                  s.name, end.output.c_str());
    }
}

/* ------------------------------------------------------------------------------------------------------ the rest */

struct Note {
    int order[8], n = 0;
    cudaError_t error = cudaSuccess;
};
void note(void *data) {
    Note *n = static_cast<Note *>(data);
    n->order[n->n++] = 1;
    int device;
    n->error = cudaGetDeviceCount(&device);
    if (n->error == cudaSuccess) {
        n->error = cudaDeviceSynchronize();
    }
}

void host_functions(void) {
    for (uint64_t seed = 0; seed < 8; seed++) {
        Set s(seed, cudaStreamNonBlocking);
        Note n;
        s.launch_fill(s.a, s.x, 5);
        OK(cudaMemcpyAsync(s.pinned, s.x, kN * sizeof(int), cudaMemcpyDeviceToHost, s.a));
        OK(cudaLaunchHostFunc(s.a, note, &n));
        OK(cudaLaunchHostFunc(s.a, note, &n));
        OK(cudaStreamSynchronize(s.a));
        CU_ASSERT_EQUAL(n.n, 2);
        EXPECT(n.error, cudaErrorNotPermitted); /* it may not call CUDA */
        EXPECT(cudaGetLastError(), cudaErrorNotPermitted);
        CU_ASSERT_EQUAL(s.pinned[0], 5);
    }
}

void times(void) {
    Set s(0, cudaStreamNonBlocking);
    cudaEvent_t begin, end;
    float ms = -1;
    OK(cudaEventCreate(&begin));
    OK(cudaEventCreate(&end));
    EXPECT(cudaEventElapsedTime(&ms, begin, end), cudaErrorInvalidResourceHandle); /* not recorded */
    EXPECT(cudaGetLastError(), cudaErrorInvalidResourceHandle);
    OK(cudaEventRecord(begin, s.a));
    s.launch_fill(s.a, s.x, 5);
    OK(cudaEventRecord(end, s.a));
    OK(cudaEventRecord(s.event, s.a));
    EXPECT(cudaEventElapsedTime(&ms, begin, end), cudaErrorNotReady);
    OK(cudaEventSynchronize(end));
    OK(cudaEventElapsedTime(&ms, begin, end));
    CU_ASSERT(ms > 0 && ms < 1);
    OK(cudaEventSynchronize(s.event));
    EXPECT(cudaEventElapsedTime(&ms, begin, s.event), cudaErrorInvalidResourceHandle);
    OK(cudaEventDestroy(begin));
    OK(cudaEventDestroy(end));
    (void)cudaGetLastError();
}

void eager(void) {
    emulation_settings settings = emulation_defaults();
    settings.eager = true;
    emulation_reset(&settings);
    cudaStream_t stream;
    int *p = device_array<int>(kN), *pinned = pinned_array<int>(kN);
    OK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    OK(simt::launch(fill, dim3(1), dim3(kN), 0, stream, p, 6));
    OK(cudaMemcpyAsync(pinned, p, kN * sizeof(int), cudaMemcpyDeviceToHost, stream));
    OK(cudaStreamQuery(stream));
    CU_ASSERT_EQUAL(pinned[kN - 1], 6);
    OK(cudaFree(p));
    OK(cudaFreeHost(pinned));
    OK(cudaStreamDestroy(stream));
    CU_ASSERT(nothing_left());
}

void bad_handles(void) {
    cudaEvent_t event;
    Set s(1, cudaStreamNonBlocking);
    cudaStream_t gone;
    OK(cudaStreamCreate(&gone));
    OK(cudaEventCreate(&event));
    OK(cudaStreamDestroy(gone));
    OK(cudaEventDestroy(event));
    EXPECT(cudaStreamDestroy(gone), cudaErrorInvalidResourceHandle);
    EXPECT(cudaStreamSynchronize(gone), cudaErrorInvalidResourceHandle);
    EXPECT(cudaStreamQuery(gone), cudaErrorInvalidResourceHandle);
    EXPECT(cudaEventDestroy(event), cudaErrorInvalidResourceHandle);
    EXPECT(cudaEventRecord(event, s.a), cudaErrorInvalidResourceHandle);
    EXPECT(cudaEventRecord(s.event, gone), cudaErrorInvalidResourceHandle);
    EXPECT(cudaEventSynchronize(event), cudaErrorInvalidResourceHandle);
    EXPECT(cudaEventQuery(event), cudaErrorInvalidResourceHandle);
    EXPECT(cudaStreamWaitEvent(s.a, event, 0), cudaErrorInvalidResourceHandle);
    EXPECT(cudaLaunchHostFunc(gone, note, nullptr), cudaErrorInvalidResourceHandle);
    EXPECT(simt::launch(fill, dim3(1), dim3(kN), 0, gone, s.x, 1), cudaErrorInvalidResourceHandle);
    EXPECT(cudaMemcpyAsync(s.x, s.y, 4, cudaMemcpyDeviceToDevice, gone), cudaErrorInvalidResourceHandle);
    OK(cudaEventSynchronize(s.event)); /* one that was never recorded has come */
    OK(cudaEventQuery(s.event));
    OK(cudaStreamWaitEvent(s.a, s.event, 0));
    (void)cudaGetLastError();
}

/* Several threads, each with a stream of its own and one in common. */
void threads(void) {
    Set s(1, cudaStreamNonBlocking);
    OK(cudaMemset(s.x, 0, kN * sizeof(int)));
    OK(cudaDeviceSynchronize());
    auto work = [&](int id) {
        int *mine = nullptr, host[kN], failures = 0;
        cudaStream_t stream;
        failures += cudaMalloc(reinterpret_cast<void **>(&mine), kN * sizeof(int)) != cudaSuccess;
        failures += cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking) != cudaSuccess;
        for (int i = 0; i < 20; i++) {
            failures += simt::launch(fill, dim3(1), dim3(kN), 0, stream, mine, id * 100 + i) != cudaSuccess;
            failures +=
                simt::launch(add, dim3(1), dim3(kN), 0, s.a, static_cast<const int *>(s.x), s.x, 1) != cudaSuccess;
            failures += cudaMemcpyAsync(host, mine, sizeof host, cudaMemcpyDeviceToHost, stream) != cudaSuccess;
            failures += host[0] != id * 100 + i || host[kN - 1] != id * 100 + i;
        }
        failures += cudaStreamDestroy(stream) != cudaSuccess;
        failures += cudaFree(mine) != cudaSuccess;
        return failures;
    };
    int failures[3] = {};
    std::thread others[2];
    for (int i = 0; i < 2; i++) {
        others[i] = std::thread([&, i] { failures[i] = work(i); });
    }
    failures[2] = work(2);
    for (std::thread &t : others) {
        t.join();
    }
    CU_ASSERT_EQUAL(failures[0] + failures[1] + failures[2], 0);
    CU_ASSERT(all_are(s.x, 60));
}

} // namespace

int main(int argc, char **argv) {
    static const test_case tests[] = {
        {"what is in order is right with every seed, what is not is wrong with some", orders},
        {"ThreadSanitizer sees what is not in order", races},
        {"host functions run in their stream's order", host_functions},
        {"time passes between events", times},
        {"eager work is done when the call returns", eager},
        {"handles that are none are refused", bad_handles},
        {"several threads at a time", threads},
    };
    if (argc == 3 && strcmp(argv[1], "--alone") == 0) {
        static const test_case one[] = {{"alone", one_scenario}};
        alone = argv[2];
        return test_main("emulation_queue_test", one, 1, 1, argv);
    }
    return test_main("emulation_queue_test", tests, sizeof tests / sizeof *tests, argc, argv);
}
