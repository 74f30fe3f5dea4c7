/* The order in which queued work runs. */
#include "tests/emulation/queue.hh"
#include "tests/emulation/engine.hh"
#include "tests/emulation/memory.hh"

#include <algorithm>

namespace emu {
namespace {

/* ------------------------------------------------------------------------------------------------- running */

void depend(const OperationPtr &op, const OperationPtr &on) {
    if (!on) {
        return;
    }
    op->before.push_back(on);
    if (!on->done) {
        op->n_before++;
        on->after.push_back(op);
    }
}

void complete(const OperationPtr &op) {
    Queue &q = queue();
    op->done = true;
    q.clock_us += 1 + static_cast<double>(random_below(9000)) * 1e-3;
    op->time_us = q.clock_us;
    for (const OperationPtr &next : op->after) {
        if (--next->n_before == 0) {
            queue().ready.push_back(next);
        }
    }
    op->after.clear();
    q.n_pending--;
}

/* The device is lost: nothing that is queued will run. */
void drop_pending() {
    Queue &q = queue();
    while (!q.ready.empty()) {
        OperationPtr op = q.ready.back();
        q.ready.pop_back();
        op->work = Work();
        op->before.clear();
        complete(op);
    }
}

/* To ThreadSanitizer this thread becomes another, to which only what was queued before and what was awaited has happened. */
void *become_stream(Operation &op) {
    void *host = nullptr;
#if EMU_TSAN_ON
    host = __tsan_get_current_fiber();
    __tsan_switch_to_fiber(queue().identities.at(op.stream), __tsan_switch_to_fiber_no_sync);
    __tsan_acquire(op.edge);
    for (const OperationPtr &b : op.before) {
        __tsan_acquire(b->edge);
    }
    for (const Span &s : op.work.spans) {
        s.write ? __tsan_write_range(const_cast<void *>(s.at), s.bytes) : __tsan_read_range(s.at, s.bytes);
    }
#else
    (void)op;
#endif
    return host;
}

void become_host(Operation &op, void *host) {
    (void)op;
    (void)host;
    EMU_TSAN(__tsan_release(op.edge);)
    EMU_TSAN(__tsan_switch_to_fiber(host, __tsan_switch_to_fiber_no_sync);)
}

/* As the stream: nothing in it may take a lock, which would order more than the stream does. */
void execute(const OperationPtr &op) {
    std::string fault;
    cudaError_t code = cudaSuccess;
    void *const host = become_stream(*op);
    in_host_function = op->work.kind == Kind::host;
    try {
        if (op->work.run) {
            op->work.run(op->options);
        }
    } catch (const simt::Fault &e) {
        fault = op->work.name + ": " + e.what();
        code = e.code;
    }
    in_host_function = false;
    become_host(*op, host);
    if (code != cudaSuccess) {
        Lock lock(runtime().mutex);
        lose_device(code, fault);
    }
}

/* What is wrong with the memory that an operation is about to touch; "" where nothing is. */
std::string bad_span(const Work &work) {
    for (const Span &s : work.spans) {
        bool whole;
        const Place place = place_of(s.at, s.bytes, &whole);
        if (s.bytes && !(place == Place::host ? s.host : whole)) {
            return work.name + (s.write ? " writes " : " reads ") + std::to_string(s.bytes) + " bytes at " +
                   describe(s.at);
        }
    }
    return "";
}

void run_one(Lock &lock, const OperationPtr &op) {
    Queue &q = queue();
    const Work &work = op->work;
    q.ready.erase(std::find(q.ready.begin(), q.ready.end(), op));
    const int planned = work.kind == Kind::kernel ? counted("kernel", cudaErrorLaunchFailure) : 0;
    const std::string bad = bad_span(work);
    if (planned) {
        lose_device(static_cast<cudaError_t>(planned), "a planned fault in " + work.name);
    } else if (!bad.empty()) {
        lose_device(cudaErrorIllegalAddress, bad);
    } else if (work.kind == Kind::marker) {
        execute(op);
    } else {
        q.running = true;
        expose_device(work.kind != Kind::host);
        lock.unlock();
        execute(op);
        lock.lock();
        q.running = false;
    }
    op->work = Work();
    op->before.clear();
    complete(op);
    if (runtime().sticky != cudaSuccess) {
        drop_pending();
    }
    q.ran.notify_all();
}

/* Marks what must run for op's sake. */
void want(const OperationPtr &op) {
    std::vector<Operation *> left{op.get()};
    while (!left.empty()) {
        Operation *at = left.back();
        left.pop_back();
        if (at->done || at->wanted) {
            continue;
        }
        at->wanted = true;
        for (const OperationPtr &b : at->before) {
            left.push_back(b.get());
        }
    }
}

/* How likely each stream is to be chosen, for the time of one wait: some are starved, as a busy GPU might. */
struct Mood {
    bool wanted_only, ordered;
    uint64_t salt;
    explicit Mood(bool must) {
        ordered = runtime().settings.seed == 0;
        wanted_only = must && (ordered || random_below(2) == 0);
        salt = ordered ? 0 : random_below(UINT64_MAX);
    }
    uint64_t weight(const Operation &op) const {
        static const uint64_t weights[4] = {1, 1, 8, 64};
        return weights[(op.stream * 0x9e3779b97f4a7c15ull ^ salt) >> 20 & 3];
    }
};

/* What runs next; NULL: nothing that the mood allows. */
OperationPtr choose(const Mood &mood) {
    Queue &q = queue();
    OperationPtr chosen;
    uint64_t total = 0;
    for (const OperationPtr &op : q.ready) {
        if (mood.wanted_only && !op->wanted) {
            continue;
        }
        if (mood.ordered) {
            chosen = !chosen || op->number < chosen->number ? op : chosen;
            continue;
        }
        total += mood.weight(*op);
        if (random_below(total) < mood.weight(*op)) {
            chosen = op;
        }
    }
    return chosen;
}

/* Runs operations until enough() says so, or none is left that could. */
template <class Enough> void progress(Lock &lock, const Mood &mood, Enough enough) {
    Queue &q = queue();
    const uint64_t resets = q.n_resets;
    while (!enough() && resets == q.n_resets) {
        if (q.running) {
            q.ran.wait(lock);
            continue;
        }
        OperationPtr op = choose(mood);
        if (!op) {
            break;
        }
        run_one(lock, op);
    }
    if (!q.running) {
        expose_device(false);
    }
}

/* What an operation on this stream comes after. */
std::vector<OperationPtr> before_on(cudaStream_t s) {
    Queue &q = queue();
    std::vector<OperationPtr> before{s->last};
    if (s == q.legacy) {
        for (cudaStream_t other : q.streams) {
            if (other->blocking) {
                before.push_back(other->last);
            }
        }
        before.insert(before.end(), q.orphans.begin(), q.orphans.end());
        q.orphans.clear();
    } else if (s->blocking) {
        before.push_back(q.legacy->last);
    }
    return before;
}

void acquire(const OperationPtr &op) {
    if (op) {
        EMU_TSAN(__tsan_acquire(op->edge);)
    }
}

} // namespace

Queue &queue() {
    static Queue *q = [] {
        Queue *made = new Queue;
        made->legacy = new CUstream_st{0, true, 0, nullptr, 0, {}};
        EMU_TSAN(made->identities[0] = __tsan_create_fiber(0);)
        return made;
    }();
    return *q;
}

cudaStream_t make_stream(bool blocking, int device) {
    Queue &q = queue();
    cudaStream_t stream = new CUstream_st{++q.n_streams, blocking, device, nullptr, 0, {}};
    EMU_TSAN(q.identities[stream->number] = __tsan_create_fiber(0);)
    q.streams.insert(stream);
    return stream;
}

cudaStream_t find_stream(cudaStream_t stream) {
    Queue &q = queue();
    if (stream == nullptr || stream == cudaStreamLegacy) {
        return q.legacy;
    }
    return q.streams.count(stream) ? stream : nullptr;
}

void drift(Lock &lock, bool must) {
    const uint64_t seed = runtime().settings.seed;
    static const uint64_t chances[4] = {0, 0, 8, 2}; /* one in so many, by seed; 0: never */
    if (runtime().settings.eager) {
        finish_all(lock);
    } else if (must || (seed && chances[seed % 4] && random_below(chances[seed % 4]) == 0)) {
        uint64_t left = 1 + random_below(4);
        progress(lock, Mood(false), [&] { return left-- == 0; });
    }
}

OperationPtr submit(Work work, uint64_t stream, const std::vector<OperationPtr> &before) {
    Queue &q = queue();
    OperationPtr op = std::make_shared<Operation>();
    op->work = std::move(work);
    op->options = simt::options();
    op->number = q.n_operations++;
    op->stream = stream;
    for (const OperationPtr &b : before) {
        depend(op, b);
    }
    q.n_pending++;
    EMU_TSAN(__tsan_release(op->edge);)
    if (op->n_before == 0) {
        q.ready.push_back(op);
    }
    return op;
}

cudaError_t enqueue(Lock &lock, cudaStream_t stream, Work work, const OperationPtr &awaited, OperationPtr *out) {
    cudaStream_t s = find_stream(stream);
    if (!s) {
        return cudaErrorInvalidResourceHandle;
    }
    if (s->capture) {
        return capture_work(s, std::move(work));
    }
    std::vector<OperationPtr> before = before_on(s);
    before.push_back(awaited);
    OperationPtr op = s->last = submit(std::move(work), s->number, before);
    if (out) {
        *out = op;
    }
    drift(lock, false);
    return cudaSuccess;
}

cudaError_t finish(Lock &lock, const OperationPtr &op) {
    if (op && !op->done) {
        want(op);
        progress(lock, Mood(true), [&] { return op->done; });
    }
    acquire(op);
    return runtime().sticky;
}

cudaError_t finish_all(Lock &lock) {
    Queue &q = queue();
    std::vector<OperationPtr> last = before_on(q.legacy);
    for (cudaStream_t s : q.streams) {
        last.push_back(s->last);
    }
    progress(lock, Mood(false), [&] { return q.n_pending == 0; });
    for (const OperationPtr &op : last) {
        acquire(op);
    }
    return runtime().sticky;
}

cudaError_t finish_stream(Lock &lock, cudaStream_t stream) {
    cudaStream_t s = find_stream(stream);
    if (!s) {
        return cudaErrorInvalidResourceHandle;
    }
    if (Capture *c = capture_of(s)) {
        c->spoilt = true;
        return cudaErrorStreamCaptureUnsupported;
    }
    if (s == queue().legacy) { /* and all streams that it waits for */
        OperationPtr op;
        enqueue(lock, stream, Work(), nullptr, &op);
        return finish(lock, op);
    }
    const OperationPtr last = s->last;
    return finish(lock, last);
}

void forget_queue() {
    Queue &q = queue();
    q.n_resets++;
    drop_pending();
    forget_graphs();
    for (cudaStream_t s : q.streams) {
        delete s;
    }
    for (cudaEvent_t e : q.events) {
        delete e;
    }
    q.streams.clear();
    q.events.clear();
    q.orphans.clear();
    q.legacy->last = nullptr;
    q.n_streams = 0;
    while (q.identities.size() > 1) {
        EMU_TSAN(__tsan_destroy_fiber(q.identities.rbegin()->second);)
        q.identities.erase(std::prev(q.identities.end()));
    }
    q.clock_us = 0;
}
std::string queue_leaks() {
    const Queue &q = queue();
    std::string s;
    auto add = [&](size_t n, const char *what) {
        if (n) {
            s += (s.empty() ? "" : ", ") + std::to_string(n) + " " + what;
        }
    };
    add(q.streams.size(), "streams");
    add(q.events.size(), "events");
    add(q.graphs.size(), "graphs");
    add(q.execs.size(), "executable graphs");
    add(q.captures.size(), "captures");
    add(q.n_pending, "operations");
    return s;
}

} // namespace emu
