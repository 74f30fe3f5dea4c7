/* Graphs: what is captured is not done, what is launched is done as it was captured, and what a capture can't have is refused. */
#include "tests/emulation/testing.hh"

#include <thread>

namespace {

constexpr int kN = 32;

__global__ void step(const int *in, int *out, int factor) { out[threadIdx.x] = in[threadIdx.x] * factor + 1; }
__global__ void sum(const int *a, const int *b, int *out) { out[threadIdx.x] = a[threadIdx.x] + b[threadIdx.x]; }

struct Set {
    cudaStream_t a, b;
    cudaEvent_t event, other;
    int *x, *y, *z, *in, *out;
    explicit Set(uint64_t seed) {
        begin_with(seed);
        OK(cudaStreamCreateWithFlags(&a, cudaStreamNonBlocking));
        OK(cudaStreamCreateWithFlags(&b, cudaStreamNonBlocking));
        OK(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
        OK(cudaEventCreateWithFlags(&other, cudaEventDisableTiming));
        x = device_array<int>(kN);
        y = device_array<int>(kN);
        z = device_array<int>(kN);
        in = pinned_array<int>(kN);
        out = pinned_array<int>(kN);
    }
    ~Set() {
        (void)cudaGetLastError();
        for (int *p : {x, y, z}) {
            OK(cudaFree(p));
        }
        OK(cudaFreeHost(in));
        OK(cudaFreeHost(out));
        OK(cudaEventDestroy(event));
        OK(cudaEventDestroy(other));
        OK(cudaStreamDestroy(a));
        OK(cudaStreamDestroy(b));
        CU_ASSERT(nothing_left());
    }
    void set_in(int value) {
        for (int i = 0; i < kN; i++) {
            in[i] = value;
        }
    }
    void up(cudaStream_t s) { OK(cudaMemcpyAsync(x, in, kN * sizeof(int), cudaMemcpyHostToDevice, s)); }
    void down(cudaStream_t s) { OK(cudaMemcpyAsync(out, z, kN * sizeof(int), cudaMemcpyDeviceToHost, s)); }
    void run_step(cudaStream_t s, int *from, int *to, int factor) {
        OK(simt::launch(step, dim3(1), dim3(kN), 0, s, from, to, factor));
    }
    void begin(cudaStreamCaptureMode mode) { OK(cudaStreamBeginCapture(a, mode)); }
    cudaGraphExec_t end() {
        cudaGraph_t graph = nullptr;
        cudaGraphExec_t exec = nullptr;
        OK(cudaStreamEndCapture(a, &graph));
        OK(cudaGraphInstantiate(&exec, graph, 0));
        OK(cudaGraphDestroy(graph));
        return exec;
    }
    /* The capture is spoilt: it ends with this error and without a graph. */
    void end_badly(cudaError_t error) {
        cudaGraph_t graph = nullptr;
        EXPECT(cudaStreamEndCapture(a, &graph), error);
        CU_ASSERT_PTR_NULL(graph);
        (void)cudaGetLastError();
    }
};

void replays(void) {
    for (uint64_t seed = 0; seed < 8; seed++) {
        Set s(seed);
        s.set_in(7);
        s.begin(cudaStreamCaptureModeThreadLocal);
        s.up(s.a);
        int factor = 3;
        s.run_step(s.a, s.x, s.y, factor);
        factor = 100; /* arguments are kept as they are */
        s.run_step(s.a, s.y, s.z, 2);
        s.down(s.a);
        const uint64_t kernels = emulation_calls("kernel");
        cudaGraphExec_t exec = s.end();
        OK(cudaDeviceSynchronize());
        CU_ASSERT_EQUAL(emulation_calls("kernel"), kernels); /* nothing has run */
        for (int i = 0; i < 4; i++) {
            s.set_in(i);
            OK(cudaGraphLaunch(exec, s.a));
            OK(cudaStreamSynchronize(s.a));
            CU_ASSERT_EQUAL(s.out[kN - 1], (i * 3 + 1) * 2 + 1);
        }
        CU_ASSERT_EQUAL(emulation_calls("kernel"), kernels + 8);
        OK(cudaGraphExecDestroy(exec));
        EXPECT(cudaGraphExecDestroy(exec), cudaErrorInvalidValue);
        EXPECT(cudaGraphLaunch(exec, s.a), cudaErrorInvalidValue);
    }
}

/* Forks to another stream and joins it; without the join's event the sum is taken too early with some seed. */
bool branches(uint64_t seed, bool join) {
    Set s(seed);
    s.set_in(1);
    s.begin(cudaStreamCaptureModeRelaxed);
    s.up(s.a);
    OK(cudaEventRecord(s.event, s.a));
    OK(cudaStreamWaitEvent(s.b, s.event, 0));
    s.run_step(s.b, s.x, s.y, 10);
    if (join) {
        OK(cudaEventRecord(s.other, s.b));
        OK(cudaStreamWaitEvent(s.a, s.other, 0));
    }
    OK(simt::launch(sum, dim3(1), dim3(kN), 0, s.a, s.x, s.y, s.z));
    if (!join) {
        OK(cudaEventRecord(s.other, s.b));
        OK(cudaStreamWaitEvent(s.a, s.other, 0));
    }
    s.down(s.a);
    cudaGraphExec_t exec = s.end();
    OK(cudaMemset(s.y, 0, kN * sizeof(int)));
    OK(cudaDeviceSynchronize());
    bool good = true;
    for (int i = 1; i < 4; i++) {
        s.set_in(i);
        OK(cudaGraphLaunch(exec, s.a));
        OK(cudaStreamSynchronize(s.a));
        good = good && s.out[0] == 11 * i + 1;
    }
    OK(cudaGraphExecDestroy(exec));
    return good;
}

void branches_join(void) {
    int wrong = 0;
    for (uint64_t seed = 0; seed < 16; seed++) {
        CU_ASSERT(branches(seed, true));
        wrong += !SIMT_TSAN && !branches(seed, false);
    }
    CU_ASSERT(wrong > 0 || SIMT_TSAN);
}

void in_a_streams_order(void) {
    for (uint64_t seed = 0; seed < 16; seed++) {
        Set s(seed);
        s.set_in(2);
        s.begin(cudaStreamCaptureModeThreadLocal);
        s.run_step(s.a, s.x, s.x, 2);
        cudaGraphExec_t exec = s.end();
        s.up(s.b); /* on another stream: waited for by an event */
        OK(cudaEventRecord(s.event, s.b));
        OK(cudaStreamWaitEvent(s.a, s.event, 0));
        OK(cudaGraphLaunch(exec, s.a));
        OK(cudaGraphLaunch(exec, s.b)); /* a graph does not overlap itself */
        OK(cudaGraphLaunch(exec, s.a));
        OK(cudaGraphExecDestroy(exec)); /* what was launched goes on */
        OK(cudaMemcpyAsync(s.out, s.x, kN * sizeof(int), cudaMemcpyDeviceToHost, s.a));
        OK(cudaStreamSynchronize(s.a));
        CU_ASSERT_EQUAL(s.out[3], ((2 * 2 + 1) * 2 + 1) * 2 + 1);
    }
}

void refused(void) {
    Set s(1);
    cudaGraph_t graph;
    int host[kN] = {};
    void *p;
    EXPECT(cudaStreamBeginCapture(nullptr, cudaStreamCaptureModeRelaxed), cudaErrorStreamCaptureUnsupported);
    EXPECT(cudaStreamEndCapture(s.a, &graph), cudaErrorIllegalState);
    (void)cudaGetLastError();

    s.begin(cudaStreamCaptureModeRelaxed);
    EXPECT(cudaStreamBeginCapture(s.a, cudaStreamCaptureModeRelaxed), cudaErrorIllegalState);
    EXPECT(cudaStreamSynchronize(s.a), cudaErrorStreamCaptureUnsupported);
    EXPECT(simt::launch(step, dim3(1), dim3(kN), 0, s.a, s.x, s.y, 1), cudaErrorStreamCaptureInvalidated);
    s.end_badly(cudaErrorStreamCaptureInvalidated);

    s.begin(cudaStreamCaptureModeRelaxed);
    EXPECT(cudaMemcpyAsync(s.x, host, sizeof host, cudaMemcpyHostToDevice, s.a), cudaErrorStreamCaptureUnsupported);
    s.end_badly(cudaErrorStreamCaptureInvalidated);

    s.begin(cudaStreamCaptureModeThreadLocal); /* what may wait for the device, on this thread */
    EXPECT(cudaMalloc(&p, 4), cudaErrorStreamCaptureUnsupported);
    s.end_badly(cudaErrorStreamCaptureInvalidated);

    s.begin(cudaStreamCaptureModeThreadLocal); /* and on another thread, where that is none of its business */
    std::thread([&] { OK(cudaMalloc(&p, 4)); }).join();
    OK(cudaGraphExecDestroy(s.end()));
    OK(cudaFree(p));

    s.begin(cudaStreamCaptureModeGlobal);
    cudaError_t e = cudaSuccess;
    std::thread([&] { e = cudaMalloc(&p, 4); }).join();
    EXPECT(e, cudaErrorStreamCaptureUnsupported);
    s.end_badly(cudaErrorStreamCaptureInvalidated);

    s.begin(cudaStreamCaptureModeThreadLocal);
    std::thread([&] { e = cudaStreamEndCapture(s.a, &graph); }).join();
    EXPECT(e, cudaErrorStreamCaptureWrongThread);

    s.begin(cudaStreamCaptureModeRelaxed); /* a stream that did not come back */
    OK(cudaEventRecord(s.event, s.a));
    OK(cudaStreamWaitEvent(s.b, s.event, 0));
    s.run_step(s.b, s.x, s.y, 1);
    EXPECT(cudaEventSynchronize(s.event), cudaErrorCapturedEvent);
    EXPECT(cudaEventQuery(s.event), cudaErrorCapturedEvent);
    (void)cudaGetLastError();
    s.end_badly(cudaErrorStreamCaptureUnjoined);
    s.run_step(s.b, s.x, s.y, 1); /* is a stream like any again */
    OK(cudaStreamSynchronize(s.b));

    OK(cudaEventRecord(s.event, s.b));
    s.begin(cudaStreamCaptureModeRelaxed); /* an event from outside */
    EXPECT(cudaStreamWaitEvent(s.a, s.event, 0), cudaErrorStreamCaptureIsolation);
    s.end_badly(cudaErrorStreamCaptureInvalidated);
}

/* While one stream is captured others work. */
void others_go_on(void) {
    Set s(3);
    cudaStreamCaptureStatus status;
    s.begin(cudaStreamCaptureModeThreadLocal);
    s.run_step(s.a, s.x, s.y, 5);
    OK(cudaStreamIsCapturing(s.a, &status));
    CU_ASSERT_EQUAL(status, cudaStreamCaptureStatusActive);
    OK(cudaStreamIsCapturing(s.b, &status));
    CU_ASSERT_EQUAL(status, cudaStreamCaptureStatusNone);
    s.set_in(4);
    s.up(s.b);
    s.run_step(s.b, s.x, s.z, 2);
    s.down(s.b);
    OK(cudaStreamSynchronize(s.b));
    CU_ASSERT_EQUAL(s.out[9], 9);
    OK(cudaGraphExecDestroy(s.end()));
}

/* A capture that a planned failure hits leaves nothing behind. */
void failures(void) {
    for (const char *call :
         {"cudaStreamBeginCapture", "cudaStreamEndCapture", "cudaGraphInstantiate", "cudaGraphLaunch"}) {
        Set s(1);
        cudaGraph_t graph = nullptr;
        cudaGraphExec_t exec = nullptr;
        emulation_fail(call, 1, 0);
        cudaError_t e = cudaStreamBeginCapture(s.a, cudaStreamCaptureModeRelaxed);
        if (e == cudaSuccess) {
            s.run_step(s.a, s.x, s.y, 1);
            e = cudaStreamEndCapture(s.a, &graph);
        }
        if (e == cudaSuccess) {
            e = cudaGraphInstantiate(&exec, graph, 0);
            OK(cudaGraphDestroy(graph));
        }
        if (e == cudaSuccess) {
            e = cudaGraphLaunch(exec, s.a);
            OK(cudaGraphExecDestroy(exec));
        }
        CHECK_MSG(e != cudaSuccess && emulation_failed() == 1, "%s: %s", call, cudaGetErrorName(e));
    }
}

} // namespace

int main(int argc, char **argv) {
    static const test_case tests[] = {
        {"a graph does what was captured, with memory as it is then", replays},
        {"branches run beside one another, and join", branches_join},
        {"a launch has its place in a stream", in_a_streams_order},
        {"what a capture can't have is refused, and spoils it", refused},
        {"streams that are not captured go on", others_go_on},
        {"a planned failure leaves nothing behind", failures},
    };
    return test_main("emulation_graph_test", tests, sizeof tests / sizeof *tests, argc, argv);
}
