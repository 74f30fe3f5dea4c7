/* Graphs: a stream's work is recorded instead of done, and launched as often as wanted. */
#include "tests/emulation/memory.hh"
#include "tests/emulation/queue.hh"

#include <algorithm>

namespace emu {
namespace {

Capture *find_capture(uint64_t id) {
    for (Capture &c : queue().captures) {
        if (id && c.id == id) {
            return &c;
        }
    }
    return nullptr;
}

/* Whether all nodes that streams of the capture end in come before `tail`. */
bool joined(const Capture &c, const std::vector<size_t> &tail) {
    std::vector<bool> before(c.nodes.size(), false);
    std::vector<size_t> left = tail;
    while (!left.empty()) {
        const size_t at = left.back();
        left.pop_back();
        if (!before[at]) {
            before[at] = true;
            left.insert(left.end(), c.nodes[at].before.begin(), c.nodes[at].before.end());
        }
    }
    return std::all_of(before.begin(), before.end(), [](bool b) { return b; });
}

void end_capture(Capture *c) {
    for (cudaStream_t s : queue().streams) {
        if (s->capture == c->id) {
            s->capture = 0;
            s->tail.clear();
        }
    }
    queue().captures.remove_if([&](const Capture &other) { return &other == c; });
}

} // namespace

Capture *capture_of(cudaStream_t stream) { return find_capture(stream->capture); }

bool disturbs_capture() {
    bool any = false;
    for (Capture &c : queue().captures) {
        if (c.mode == cudaStreamCaptureModeGlobal ||
            (c.mode == cudaStreamCaptureModeThreadLocal && c.thread == std::this_thread::get_id())) {
            any = c.spoilt = true;
        }
    }
    return any;
}

cudaError_t capture_work(cudaStream_t stream, Work work) {
    Capture *c = capture_of(stream);
    if (c->spoilt) {
        return cudaErrorStreamCaptureInvalidated;
    }
    c->nodes.push_back({std::move(work), stream == c->origin ? 0 : stream->number, stream->tail});
    stream->tail = {c->nodes.size() - 1};
    return cudaSuccess;
}

/* A stream that waits for an event of a capture becomes part of it. */
cudaError_t capture_wait(cudaStream_t stream, cudaEvent_t event) {
    Capture *own = capture_of(stream), *other = find_capture(event->capture);
    if (!other || (own && own != other)) { /* an event from outside, or of a capture that has ended */
        if (own) {
            own->spoilt = true;
        }
        return cudaErrorStreamCaptureIsolation;
    }
    if (other->spoilt) {
        return cudaErrorStreamCaptureInvalidated;
    }
    stream->capture = other->id;
    for (size_t node : event->nodes) {
        if (std::find(stream->tail.begin(), stream->tail.end(), node) == stream->tail.end()) {
            stream->tail.push_back(node);
        }
    }
    return cudaSuccess;
}

void forget_graphs() {
    Queue &q = queue();
    while (!q.captures.empty()) {
        end_capture(&q.captures.front());
    }
    for (cudaGraph_t g : q.graphs) {
        delete g;
    }
    for (cudaGraphExec_t g : q.execs) {
        delete g;
    }
    q.graphs.clear();
    q.execs.clear();
}

} // namespace emu

using namespace emu;

extern "C" {

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
    return call("cudaStreamBeginCapture", cudaErrorUnknown, kAnywhere, [&](Lock &) {
        cudaStream_t s = find_stream(stream);
        if (!s) {
            return cudaErrorInvalidResourceHandle;
        }
        if (s == queue().legacy) {
            return cudaErrorStreamCaptureUnsupported;
        }
        if (s->capture) {
            return cudaErrorIllegalState;
        }
        s->capture = ++queue().n_captures;
        s->tail.clear();
        queue().captures.push_back({s->capture, s, mode, std::this_thread::get_id(), {}, false});
        return cudaSuccess;
    });
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph) {
    if (graph) {
        *graph = nullptr;
    }
    cudaError_t failed = call("cudaStreamEndCapture", cudaErrorUnknown, kAnywhere | kReleases, [&](Lock &) {
        cudaStream_t s = find_stream(stream);
        Capture *c = s ? capture_of(s) : nullptr;
        if (!c || !graph) {
            return c ? cudaErrorInvalidValue : cudaErrorIllegalState;
        }
        cudaError_t e = cudaSuccess;
        if (c->origin != s) {
            e = cudaErrorStreamCaptureUnmatched;
        } else if (c->mode != cudaStreamCaptureModeRelaxed && c->thread != std::this_thread::get_id()) {
            e = cudaErrorStreamCaptureWrongThread;
        } else if (c->spoilt) {
            e = cudaErrorStreamCaptureInvalidated;
        } else if (!joined(*c, s->tail)) {
            e = cudaErrorStreamCaptureUnjoined;
        } else {
            *graph = new CUgraph_st{std::move(c->nodes)};
            queue().graphs.insert(*graph);
        }
        end_capture(c);
        return e;
    });
    if (failed != cudaSuccess && graph && *graph) { /* the capture has ended all the same */
        Lock lock(runtime().mutex);
        queue().graphs.erase(*graph);
        delete *graph;
        *graph = nullptr;
    }
    return failed;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus *status) {
    return call("cudaStreamIsCapturing", cudaErrorUnknown, kAnywhere, [&](Lock &) {
        cudaStream_t s = find_stream(stream);
        if (!s || !status) {
            return cudaErrorInvalidValue;
        }
        const Capture *c = capture_of(s);
        *status = !c          ? cudaStreamCaptureStatusNone
                  : c->spoilt ? cudaStreamCaptureStatusInvalidated
                              : cudaStreamCaptureStatusActive;
        return cudaSuccess;
    });
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph, unsigned long long flags) {
    return call("cudaGraphInstantiate", cudaErrorMemoryAllocation, kAnywhere, [&](Lock &) {
        if (!exec || flags || !queue().graphs.count(graph)) {
            return cudaErrorInvalidValue;
        }
        const uint64_t bytes = runtime().settings.graph_bytes;
        if (!charge(bytes)) {
            return cudaErrorMemoryAllocation;
        }
        *exec = new CUgraphExec_st{graph->nodes, nullptr, bytes};
        queue().execs.insert(*exec);
        return cudaSuccess;
    });
}

cudaError_t cudaGraphUpload(cudaGraphExec_t exec, cudaStream_t stream) {
    return call("cudaGraphUpload", cudaErrorUnknown, kPlain, [&](Lock &lock) {
        return queue().execs.count(exec) ? enqueue(lock, stream, Work(), nullptr, nullptr) : cudaErrorInvalidValue;
    });
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
    return call("cudaGraphLaunch", cudaErrorUnknown, kAnywhere, [&](Lock &lock) {
        cudaStream_t s = find_stream(stream);
        if (!s || !queue().execs.count(exec)) {
            return s ? cudaErrorInvalidValue : cudaErrorInvalidResourceHandle;
        }
        if (Capture *c = capture_of(s)) { /* a graph within a graph: nothing here needs one */
            c->spoilt = true;
            return cudaErrorStreamCaptureUnsupported;
        }
        OperationPtr begin;
        enqueue(lock, stream, Work(), exec->last, &begin);
        std::vector<OperationPtr> made{begin};
        for (const Node &node : exec->nodes) {
            std::vector<OperationPtr> before{begin};
            for (size_t b : node.before) {
                before.push_back(made[b + 1]);
            }
            made.push_back(submit(node.work, node.stream ? node.stream : s->number, before));
        }
        s->last = exec->last = submit(Work(), s->number, made);
        drift(lock, false);
        return cudaSuccess;
    });
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
    return call("cudaGraphDestroy", cudaErrorUnknown, kReleases | kAnywhere, [&](Lock &) {
        if (!queue().graphs.erase(graph)) {
            return cudaErrorInvalidValue;
        }
        delete graph;
        return cudaSuccess;
    });
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
    return call("cudaGraphExecDestroy", cudaErrorUnknown, kReleases | kAnywhere, [&](Lock &) {
        if (!queue().execs.erase(exec)) {
            return cudaErrorInvalidValue;
        }
        discharge(exec->bytes);
        delete exec; /* launches that are under way go on */
        return cudaSuccess;
    });
}

} // extern "C"
