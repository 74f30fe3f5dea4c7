/*
 * trace: the ring between those who tell and the thread that writes, and what happens when the file fails: nothing, but that it is
 * counted. What was written ends behind a whole event even then.
 */
#include "engine/trace.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define RING_RECORDS 16384u /* a power of two */
#define TEXT_BYTES 65536u

/* The writer looks this often; nobody has to wake it. With steps of a millisecond the ring holds some seconds. */
#define LOOK_EVERY_MS 50

struct trace {
    trace_record *ring;    /* [RING_RECORDS] */
    _Atomic uint64_t head; /* records put: the tellers' */
    _Atomic uint64_t tail; /* records taken: the writer's */
    _Atomic uint64_t n_lost;

    pthread_mutex_t lock; /* of `stopping` alone: no teller takes it */
    pthread_cond_t stop;
    bool sync_made, thread_made, stopping;
    pthread_t thread;

    /* the writer's */
    int fd;
    bool failed;
    uint32_t process;
    char *text; /* [TEXT_BYTES] not written yet */
    size_t n_text;
    uint64_t n_in_text; /* records */
    uint64_t n_told;    /* lost records that the file tells of */
    off_t whole;        /* the file's bytes up to the end of an event */
};

uint64_t trace_bytes(void) { return sizeof(trace) + RING_RECORDS * sizeof(trace_record) + TEXT_BYTES; }

void trace_put(trace *t, const trace_record *record) {
    uint64_t head = atomic_load_explicit(&t->head, memory_order_relaxed);
    if (head - atomic_load_explicit(&t->tail, memory_order_acquire) == RING_RECORDS) {
        atomic_fetch_add_explicit(&t->n_lost, 1, memory_order_relaxed);
        return;
    }
    t->ring[head % RING_RECORDS] = *record;
    atomic_store_explicit(&t->head, head + 1, memory_order_release);
}

uint64_t trace_n_lost(const trace *t) { return atomic_load_explicit(&t->n_lost, memory_order_relaxed); }

/* --------------------------------------------------------------- writer -- */

static bool write_all(trace *t) {
    for (size_t at = 0; at < t->n_text;) {
        ssize_t n = write(t->fd, t->text + at, t->n_text - at);
        if (n < 0 && errno != EINTR) {
            return false;
        }
        at += n > 0 ? (size_t)n : 0;
    }
    return true;
}

/* A file that failed gets nothing more: it would have a hole. */
static void flush(trace *t) {
    if (!t->failed && write_all(t)) {
        t->whole += (off_t)t->n_text;
    } else {
        atomic_fetch_add_explicit(&t->n_lost, t->n_in_text, memory_order_relaxed);
        /* Where it is no file that can be cut, like a pipe, half an event stays. */
        int cut = t->failed ? 0 : ftruncate(t->fd, t->whole);
        (void)cut;
        t->failed = true;
    }
    t->n_text = 0;
    t->n_in_text = 0;
}

static void make_room(trace *t) {
    if (TEXT_BYTES - t->n_text < TRACE_MOST_TEXT) {
        flush(t);
    }
}

static void drain(trace *t) {
    uint64_t tail = atomic_load_explicit(&t->tail, memory_order_relaxed);
    uint64_t head = atomic_load_explicit(&t->head, memory_order_acquire);
    for (; tail < head; tail++) {
        make_room(t);
        t->n_text +=
            trace_format(t->text + t->n_text, TEXT_BYTES - t->n_text, t->process, &t->ring[tail % RING_RECORDS]);
        t->n_in_text++;
        atomic_store_explicit(&t->tail, tail + 1, memory_order_release);
    }
    uint64_t n_lost = trace_n_lost(t);
    if (n_lost > t->n_told) {
        make_room(t);
        t->n_text +=
            trace_format_lost(t->text + t->n_text, TEXT_BYTES - t->n_text, t->process, time_us(), n_lost - t->n_told);
        t->n_told = n_lost;
    }
    if (t->n_text > 0) {
        flush(t);
    }
}

/* Until it is time to look again; true: the trace ends. */
static bool wait_for_more(trace *t) {
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_nsec += LOOK_EVERY_MS * 1000000L;
    until.tv_sec += until.tv_nsec / 1000000000L;
    until.tv_nsec %= 1000000000L;
    pthread_mutex_lock(&t->lock);
    while (!t->stopping && pthread_cond_timedwait(&t->stop, &t->lock, &until) == 0) {}
    bool ends = t->stopping;
    pthread_mutex_unlock(&t->lock);
    return ends;
}

static void *writer_main(void *user) {
    static const char end[] = "\n]\n";
    trace *t = user;
    while (!wait_for_more(t)) {
        drain(t);
    }
    drain(t);
    memcpy(t->text, end, sizeof end - 1);
    t->n_text = sizeof end - 1;
    flush(t);
    return NULL;
}

/* ---------------------------------------------------------- open, close -- */

static perch_status make_sync(trace *t, perch_error *err) {
    pthread_condattr_t monotonic;
    if (pthread_condattr_init(&monotonic) != 0) {
        return err_nomem(err, "the trace's condition variable");
    }
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    bool mutex = pthread_mutex_init(&t->lock, NULL) == 0;
    t->sync_made = mutex && pthread_cond_init(&t->stop, &monotonic) == 0;
    pthread_condattr_destroy(&monotonic);
    if (mutex && !t->sync_made) {
        pthread_mutex_destroy(&t->lock);
    }
    return t->sync_made ? PERCH_OK : err_nomem(err, "the trace's mutex and condition variable");
}

static perch_status open_file(trace *t, const char *file, const char *name, bool two_lanes, perch_error *err) {
    t->fd = open(file, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (t->fd < 0) {
        return err_set(err, PERCH_E_IO, "[engine] trace_file: cannot open %s: %s", file, strerror(errno));
    }
    t->n_text = trace_format_begin(t->text, TEXT_BYTES, t->process, name, two_lanes);
    return PERCH_OK;
}

/* With all signals blocked: the host's handlers run elsewhere, and a pipe without a reader, or a limit, is an errno here. */
static perch_status start_thread(trace *t, perch_error *err) {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    t->thread_made = pthread_create(&t->thread, NULL, writer_main, t) == 0;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return t->thread_made ? PERCH_OK : err_set(err, PERCH_E_NOMEM, "the trace's thread cannot be started");
}

perch_status trace_open(const char *file, const char *name, bool two_lanes, trace **out, perch_error *err) {
    trace *t = calloc(1, sizeof *t);
    *out = NULL;
    if (!t) {
        return err_nomem(err, "the trace");
    }
    t->fd = -1;
    t->process = (uint32_t)getpid();
    t->ring = calloc(RING_RECORDS, sizeof *t->ring);
    t->text = malloc(TEXT_BYTES);
    perch_status status = t->ring && t->text ? PERCH_OK : err_nomem(err, "the trace's ring");
    status = status ? status : make_sync(t, err);
    status = status ? status : open_file(t, file, name, two_lanes, err);
    status = status ? status : start_thread(t, err);
    if (status) {
        trace_close(t);
        return status;
    }
    *out = t;
    return PERCH_OK;
}

void trace_close(trace *t) {
    if (!t) {
        return;
    }
    if (t->thread_made) {
        pthread_mutex_lock(&t->lock);
        t->stopping = true;
        pthread_cond_signal(&t->stop);
        pthread_mutex_unlock(&t->lock);
        pthread_join(t->thread, NULL);
    }
    if (t->fd >= 0) {
        close(t->fd);
    }
    if (t->sync_made) {
        pthread_cond_destroy(&t->stop);
        pthread_mutex_destroy(&t->lock);
    }
    free(t->text);
    free(t->ring);
    free(t);
}
