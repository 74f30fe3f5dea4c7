/*
 * disk: the engine's end of the disk tier. What the cache asks for becomes requests to the page file, whose threads read and write
 * the host tier's frames directly; what is done is polled before each plan. The step thread never waits for the disk but where it
 * has nothing else to do, and then without the lock. Whatever fails there costs a copy, and nothing else.
 */
#include "engine/impl.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* Threads that read and write: as many requests as a disk serves at a time. */
#define DISK_THREADS 4u
/* Requests that go to the file, or are polled, in one call. */
#define AT_ONCE 32u
/* How fast the disk is, is measured by reading so many. */
#define MEASURED_PAGES 16u
#define MOST_MEASURE_US 30000000u
/* The step thread's sleep while it has nothing else to do: no longer, since deadlines pass whatever the disk does. */
#define WAIT_MS 20u

/* Called by a thread of the page file's. */
static void on_done(void *engine) {
    perch_engine *e = engine;
    pthread_mutex_lock(&e->lock);
    e->disk.done = true;
    pthread_cond_broadcast(&e->work);
    pthread_mutex_unlock(&e->lock);
}

perch_status disk_open(perch_engine *e, const plan_parts *parts, uint64_t *seed, perch_error *err) {
    page_file_config config = {.path = e->options.disk_path,
                               .page_bytes = parts->cache.page_bytes,
                               .n_frames = parts->cache.n_disk_frames,
                               .max_tokens = parts->cache.prefix_index ? cache_page_tokens(&parts->cache) : 0,
                               .n_threads = DISK_THREADS,
                               .max_requests = CACHE_DISK_REQUESTS,
                               .recreate = true,
                               .notify = on_done,
                               .notify_user = e};
    if (config.n_frames == 0) {
        return PERCH_OK;
    }
    if (e->now_us) {
        return simulated_disk_open(e->device, config.page_bytes, config.max_requests, &e->disk.simulated, err);
    }
    perch_status status = fingerprint_kv_key(e, config.key, err);
    status = status ? status : page_file_open(&config, &e->disk.file, err);
    *seed = status ? 0 : page_file_info_get(e->disk.file).seed;
    return status;
}

uint64_t disk_host_bytes(uint32_t n_frames) {
    return n_frames ? page_file_host_bytes(n_frames, CACHE_DISK_REQUESTS) + n_frames * sizeof(cache_left_page) : 0;
}

void disk_close(perch_engine *e) {
    page_file_close(e->disk.file);
    simulated_disk_close(e->disk.simulated);
    e->disk.file = NULL;
    e->disk.simulated = NULL;
}

/* --------------------------------------------------------------- observed -- */

static trace_route route_of(bool write) { return write ? TRACE_HOST_TO_DISK : TRACE_DISK_TO_HOST; }

/* Requests of one kind that went together are a ticket of their route: who measures and traces wants them in order. */
static void note_sent(perch_engine *e, bool write, uint64_t first, size_t n) {
    disk_way *w = &e->disk.ways[write];
    if (w->n_sent - w->n_arrived == CACHE_DISK_REQUESTS) { /* all that went since the oldest, which takes its time */
        return;
    }
    w->batches[++w->n_sent % CACHE_DISK_REQUESTS] = (disk_batch){first, (uint32_t)n, (uint32_t)n};
    observe_sent(e, route_of(write), w->n_sent, n);
    if (!write) {
        cost_load_sent(&e->costs, CACHE_DISK, w->n_sent, n * e->plan.page_bytes, engine_now(e));
    }
}

static void note_done(perch_engine *e, bool write, uint64_t ticket) {
    disk_way *w = &e->disk.ways[write];
    uint64_t arrived = w->n_arrived;
    for (uint64_t i = arrived + 1; i <= w->n_sent; i++) {
        disk_batch *b = &w->batches[i % CACHE_DISK_REQUESTS];
        b->n_left -= ticket >= b->first && ticket < b->first + b->n;
    }
    while (w->n_arrived < w->n_sent && w->batches[(w->n_arrived + 1) % CACHE_DISK_REQUESTS].n_left == 0) {
        w->n_arrived++;
    }
    if (w->n_arrived > arrived) {
        observe_arrived(e, route_of(write), w->n_arrived);
        if (!write) {
            cost_loads_done(&e->costs, CACHE_DISK, w->n_arrived, engine_now(e));
        }
    }
}

/* ------------------------------------------------------------- taken over -- */

static bool read_tokens(void *engine, uint32_t disk_frame, int32_t *out, uint32_t *n) {
    const perch_engine *e = engine;
    page_record record;
    bool is_there = page_file_get(e->disk.file, disk_frame, &record) && page_file_tokens(e->disk.file, disk_frame, out);
    *n = is_there ? record.n_tokens : 0;
    return is_there;
}

perch_status disk_take_over(perch_engine *e, const plan_parts *parts, perch_error *err) {
    size_t n = 0, n_frames = e->disk.file ? parts->cache.n_disk_frames : 0;
    uint32_t n_pages = e->disk.file ? page_file_info_get(e->disk.file).n_pages : 0;
    cache_left_page *left = n_pages ? calloc(n_pages, sizeof *left) : NULL;
    if (n_pages && !left) {
        return err_nomem(err, "the pages that the disk tier has");
    }
    for (uint32_t frame = 0; frame < n_frames && n < n_pages; frame++) {
        page_record record;
        if (page_file_get(e->disk.file, frame, &record) && record.n_tokens) {
            left[n++] = (cache_left_page){.disk_frame = frame,
                                          .index = record.index,
                                          .name = {record.prefix[0], record.prefix[1]},
                                          .order = record.generation};
        }
    }
    e->stats.disk_found_pages = cache_take_over(e->kv, left, n, read_tokens, e);
    free(left);
    return PERCH_OK;
}

/* --------------------------------------------------------------- measured -- */

/* Submits, and waits for all of them; *good: each went well. E_IO: the disk does not answer. */
static perch_status run(perch_engine *e, page_request *requests, size_t n, bool *good, double *us, perch_error *err) {
    page_result results[MEASURED_PAGES];
    uint64_t first, begin_us = time_us();
    perch_status status = page_file_submit(e->disk.file, requests, n, &first, err);
    *good = true;
    for (size_t n_done = 0; !status && n_done < n;) {
        size_t n_new = page_file_poll(e->disk.file, results, n);
        for (size_t i = 0; i < n_new; i++) {
            *good = *good && results[i].outcome == PAGE_OK;
        }
        n_done += n_new;
        if (n_new == 0 && time_us() - begin_us > MOST_MEASURE_US) {
            status = err_set(err, PERCH_E_IO, "[cache] disk_path: %s: no answer for %u s", e->options.disk_path,
                             MOST_MEASURE_US / 1000000u);
        } else if (n_new == 0) {
            nanosleep(&(struct timespec){0, 20000}, NULL);
        }
    }
    *us = (double)(time_us() - begin_us);
    return status;
}

/* Empty frames, which get whole pages that nobody can find; none of those with something in them is touched. */
static size_t empty_frames(const perch_engine *e, const plan_parts *parts, page_request requests[MEASURED_PAGES]) {
    size_t n = 0;
    for (uint32_t frame = 0; frame < parts->cache.n_disk_frames && n < MEASURED_PAGES; frame++) {
        page_record record;
        if (n < parts->cache.n_frames && !page_file_get(e->disk.file, frame, &record)) {
            page_request *r = &requests[n];
            *r = (page_request){.op = PAGE_WRITE, .frame = frame};
            r->data = e->backend->host_frame(e->device, (uint32_t)n++);
            r->record.n_bytes = e->plan.page_bytes;
            memset(r->data, 0x5a, e->plan.page_bytes);
        }
    }
    return n;
}

perch_status disk_measure(perch_engine *e, const plan_parts *parts, perch_error *err) {
    page_request requests[MEASURED_PAGES];
    bool good = false;
    double us;
    size_t n = e->disk.file ? empty_frames(e, parts, requests) : 0;
    perch_status status = n ? run(e, requests, n, &good, &us, err) : PERCH_OK;
    for (size_t i = 0; i < n; i++) {
        requests[i].op = PAGE_READ;
    }
    for (int i = 0; i < 3 && !status && good; i++) {
        status = run(e, requests, 1, &good, &us, err);
        if (!status && good) {
            cost_add_load(&e->costs, CACHE_DISK, e->plan.page_bytes, us);
            status = run(e, requests, n, &good, &us, err);
        }
        if (!status && good) {
            cost_add_load(&e->costs, CACHE_DISK, n * e->plan.page_bytes, us);
        }
    }
    return status;
}

/* ----------------------------------------------------------------- submit -- */

static page_request request_of(const perch_engine *e, const cache_disk_request *asked) {
    page_request made = {.op = asked->write ? PAGE_WRITE : PAGE_READ,
                         .frame = asked->disk_frame,
                         .data = e->disk.simulated ? NULL : e->backend->host_frame(e->device, asked->frame),
                         .tokens = asked->tokens};
    made.record = (page_record){.n_bytes = asked->n_bytes,
                                .prefix = {asked->name[0], asked->name[1]},
                                .n_tokens = asked->n_tokens,
                                .index = asked->index};
    return made;
}

static void submit(perch_engine *e, bool write, page_request *requests, size_t n) {
    uint64_t first;
    if (n == 0) {
        return;
    }
    if (e->disk.simulated) {
        simulated_disk_submit(e->disk.simulated, requests, n, &first);
        note_sent(e, write, first, n);
    } else if (page_file_submit(e->disk.file, requests, n, &first, NULL)) { /* one of them can't be */
        for (size_t i = 0; n > 1 && i < n; i++) {
            submit(e, write, &requests[i], 1);
        }
        if (n == 1) {
            e->disk.error = PERCH_E_INVALID;
            cache_disk_done(e->kv, requests[0].frame, CACHE_DISK_FAILED);
        }
    } else {
        note_sent(e, write, first, n);
    }
}

void disk_submit(perch_engine *e) {
    cache_disk_request asked[AT_ONCE];
    page_request requests[2][AT_ONCE];
    for (size_t n; (n = cache_disk_requests(e->kv, asked, AT_ONCE)) > 0;) {
        size_t n_of[2] = {0, 0};
        for (size_t i = 0; i < n; i++) {
            bool write = asked[i].write;
            requests[write][n_of[write]++] = request_of(e, &asked[i]);
        }
        submit(e, false, requests[false], n_of[false]);
        submit(e, true, requests[true], n_of[true]);
    }
}

/* ------------------------------------------------------------ poll, wait -- */

static cache_disk_outcome outcome_of(perch_engine *e, const page_result *r) {
    bool full = r->outcome == PAGE_FAILED && (r->error == ENOSPC || r->error == EDQUOT);
    if (r->outcome == PAGE_OK) {
        return CACHE_DISK_OK;
    }
    e->disk.error = full ? PERCH_E_NO_ROOM : PERCH_E_IO;
    return r->outcome == PAGE_CORRUPT ? CACHE_DISK_CORRUPT : CACHE_DISK_FAILED;
}

static size_t poll(perch_engine *e, page_result *results, size_t cap) {
    return e->disk.simulated ? simulated_disk_poll(e->disk.simulated, results, cap)
           : e->disk.file    ? page_file_poll(e->disk.file, results, cap)
                             : 0;
}

void disk_poll(perch_engine *e) {
    page_result results[AT_ONCE];
    e->disk.done = false;
    for (size_t n; (n = poll(e, results, AT_ONCE)) > 0;) {
        for (size_t i = 0; i < n; i++) {
            cache_disk_done(e->kv, results[i].frame, outcome_of(e, &results[i]));
            note_done(e, results[i].op == PAGE_WRITE, results[i].ticket);
        }
    }
}

void disk_wait(perch_engine *e) {
    if (e->disk.simulated) {
        simulated_disk_wait(e->disk.simulated);
    } else if (cache_disk_pending(e->kv) && !e->disk.done && !e->stopping) {
        engine_sleep(e, WAIT_MS);
    }
}
