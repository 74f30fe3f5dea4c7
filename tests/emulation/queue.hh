/*
 * queue: work on streams, as operations that depend on others: on the one before in their stream, and on what awaited events
 * stand for. It runs when somebody waits, on the thread that waits, one operation at a time, in an order that is drawn from the
 * seed among all legal ones; what nobody waits for yet may stay or may be done early. All functions want the runtime's lock,
 * and give it up while an operation runs.
 */
#ifndef PERCH_TESTS_EMULATION_QUEUE_HH
#define PERCH_TESTS_EMULATION_QUEUE_HH

#include "tests/emulation/runtime.hh"
#include "tests/emulation/simt.hh"

#include <condition_variable>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <thread>
#include <vector>

namespace emu {

enum class Kind { marker, kernel, copy, host };

/* Memory that an operation reads or writes, beyond what a kernel's threads do. */
struct Span {
    const void *at;
    size_t bytes;
    bool write;
    bool host; /* may be memory of the caller's */
};

struct Work {
    Kind kind = Kind::marker;
    std::string name;
    std::vector<Span> spans;
    std::function<void(const simt::Options &)> run; /* throws simt::Error; a marker has none */
};

struct Operation {
    Work work;
    simt::Options options = {0, 1};
    uint64_t number = 0, stream = 0;
    std::vector<std::shared_ptr<Operation>> before; /* until it has run */
    std::vector<std::shared_ptr<Operation>> after;
    size_t n_before = 0; /* that are not done */
    bool done = false;
    bool wanted = false; /* somebody waits for it or for what comes after */
    double time_us = 0;  /* when it was done, by the emulation's clock */
    char edge[8] = {};   /* where ThreadSanitizer's happens-before hangs */
};
typedef std::shared_ptr<Operation> OperationPtr;

struct Node { /* of a graph */
    Work work;
    uint64_t stream; /* that joined the capture; 0: the one where it began */
    std::vector<size_t> before;
};

struct Capture {
    uint64_t id;
    cudaStream_t origin;
    cudaStreamCaptureMode mode;
    std::thread::id thread;
    std::vector<Node> nodes;
    bool spoilt; /* by a call that a capture does not allow */
};

struct Queue {
    std::set<cudaStream_t> streams; /* that are alive; the legacy one is not among them */
    std::set<cudaEvent_t> events;
    std::set<cudaGraph_t> graphs;
    std::set<cudaGraphExec_t> execs;
    std::list<Capture> captures;
    cudaStream_t legacy;
    std::vector<OperationPtr> orphans; /* the last operations of blocking streams that were destroyed */
    std::vector<OperationPtr> ready;
    uint64_t n_pending = 0, n_operations = 0, n_captures = 0, n_streams = 0;
    bool running = false; /* some thread runs an operation */
    std::condition_variable ran;
    double clock_us = 0;
    /* ThreadSanitizer's threads for streams, made with them: one that is made later knows what happened in between. */
    std::map<uint64_t, void *> identities;
    uint64_t n_resets = 0;
};
Queue &queue();

cudaStream_t make_stream(bool blocking, int device);
/* NULL where there is no such stream. */
cudaStream_t find_stream(cudaStream_t stream);

/*
 * Appends work to a stream, or to what the stream is captured into. It comes after `awaited` too, where given. *out (may be
 * NULL): the operation; none under capture.
 */
cudaError_t enqueue(Lock &lock, cudaStream_t stream, Work work, const OperationPtr &awaited, OperationPtr *out);
/* An operation that comes after others, outside any stream. */
OperationPtr submit(Work work, uint64_t stream, const std::vector<OperationPtr> &before);

/* Returns when the operation is done, or the device lost: its error. */
cudaError_t finish(Lock &lock, const OperationPtr &operation);
cudaError_t finish_all(Lock &lock);
cudaError_t finish_stream(Lock &lock, cudaStream_t stream);
/* The GPU gets on by itself: now and then something is done that nobody waits for; where `must`, if there is anything. */
void drift(Lock &lock, bool must);

/* graph.cc: the capture that a stream is part of, or NULL. */
Capture *capture_of(cudaStream_t stream);
/* Whether the call, which captures do not allow, meets one; that one is spoilt. */
bool disturbs_capture();
cudaError_t capture_work(cudaStream_t stream, Work work);
cudaError_t capture_wait(cudaStream_t stream, cudaEvent_t event);
void forget_graphs();

void forget_queue();
std::string queue_leaks();

} // namespace emu

/* What the handles of cuda_runtime_api.h point to. */
struct CUstream_st {
    uint64_t number;
    bool blocking; /* waits for the legacy stream, which waits for it */
    int device;
    emu::OperationPtr last;
    uint64_t capture;         /* 0: none */
    std::vector<size_t> tail; /* nodes that the next one comes after */
};
struct CUevent_st {
    bool timing;
    emu::OperationPtr recorded;
    uint64_t capture; /* in which it was recorded last; 0: none */
    std::vector<size_t> nodes;
};
struct CUgraph_st {
    std::vector<emu::Node> nodes;
};
struct CUgraphExec_st {
    std::vector<emu::Node> nodes;
    emu::OperationPtr last; /* a graph does not overlap itself */
    uint64_t bytes;         /* of the device's memory */
};

#endif
