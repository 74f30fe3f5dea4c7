/*
 * The host tier: frames of memory beside the KV pages, and the thread that copies from one to the other while steps go
 * on. Pages are read and written through their memfd, so that with either mapping they need no place in the address
 * space.
 *
 * What is under way stands in a ring for each direction, with room for as many copies as there are destinations: a page
 * or frame is the destination of one at a time. Loads go first: a sequence waits for them, while nobody waits for a
 * store.
 */
#include "kernels/cpu/device.h"
#include "kernels/frames.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

/* Between two looks at whether to stop. */
#define PIECE_BYTES ((size_t)1 << 20)
/* Memory is taken in multiples of this, so that it is huge pages, and frames begin where they should. */
#define MEMORY_UNIT ((size_t)2 << 20)

typedef struct run {
    uint64_t ticket; /* that is done with it; 0: more of the same call follow */
    uint32_t page, frame, n;
} run;

typedef struct way {
    run *runs; /* ring [cap], `n` of them from `first` on; the thread takes them out when they are done */
    uint32_t cap, first, n;
    uint64_t newest, done; /* tickets */
} way;

struct cpu_host {
    const cpu_kv *kv;
    frames_shape shape;
    cpu_region frames;
    pthread_t thread;
    bool is_running;
    _Atomic bool stopping;
    pthread_mutex_t lock; /* of what follows */
    pthread_cond_t work, progress;
    way ways[KERNELS_DIRECTIONS];
    perch_error failure; /* the first; nothing is copied after it */
};

/* --- the thread */

static uint8_t *frame_at(const cpu_host *host, uint32_t frame) {
    return (uint8_t *)host->frames.data + frame * host->shape.frame_bytes;
}

static perch_status copy_run(cpu_host *host, kernels_direction direction, const run *r, perch_error *err) {
    const size_t bytes = r->n * host->shape.page_bytes;
    const uint64_t offset = (uint64_t)r->page * host->shape.page_bytes;
    for (size_t at = 0; at < bytes && !atomic_load_explicit(&host->stopping, memory_order_relaxed);) {
        size_t n = bytes - at < PIECE_BYTES ? bytes - at : PIECE_BYTES;
        if (!cpu_kv_move(host->kv, direction, offset + at, frame_at(host, r->frame) + at, n)) {
            return err_set(err, PERCH_E_DEVICE, "can't %s %u KV pages from %u on: %s",
                           direction == KERNELS_LOAD ? "load" : "store", r->n, r->page, strerror(errno));
        }
        at += n;
    }
    return PERCH_OK;
}

static void *copier_thread(void *context) {
    cpu_host *host = context;
    pthread_mutex_lock(&host->lock);
    while (!atomic_load(&host->stopping)) {
        const kernels_direction direction = host->ways[KERNELS_LOAD].n > 0 ? KERNELS_LOAD : KERNELS_STORE;
        way *w = &host->ways[direction];
        if (w->n == 0 || host->failure.status != PERCH_OK) {
            pthread_cond_wait(&host->work, &host->lock);
            continue;
        }
        const run r = w->runs[w->first];
        perch_error failure = {.status = PERCH_OK};
        pthread_mutex_unlock(&host->lock);
        perch_status status = copy_run(host, direction, &r, &failure);
        pthread_mutex_lock(&host->lock);
        if (status == PERCH_OK) {
            w->first = (w->first + 1) % w->cap;
            w->n--;
            w->done = r.ticket != 0 ? r.ticket : w->done;
        } else {
            host->failure = failure;
        }
        pthread_cond_broadcast(&host->progress);
    }
    pthread_mutex_unlock(&host->lock);
    return NULL;
}

/* --- open and close */

static perch_status open_frames(cpu_host *host, perch_error *err) {
    const size_t bytes = (host->shape.bytes + MEMORY_UNIT - 1) / MEMORY_UNIT * MEMORY_UNIT;
    perch_status status = cpu_region_open(bytes, true, "the host tier", &host->frames, err);
    if (status == PERCH_E_NOMEM) {
        return err_set(err, PERCH_E_NO_ROOM, "no memory for a host tier of %u frames, %zu bytes", host->shape.n_frames,
                       bytes);
    }
    return status;
}

static perch_status open_way(way *w, uint32_t n_destinations, perch_error *err) {
    w->cap = n_destinations;
    w->runs = malloc(w->cap * sizeof *w->runs);
    return w->runs != NULL ? PERCH_OK : err_nomem(err, "the host tier's transfers");
}

static perch_status start(cpu_host *host, perch_error *err) {
    int failure = pthread_create(&host->thread, NULL, copier_thread, host);
    host->is_running = failure == 0;
    return failure == 0 ? PERCH_OK
                        : err_set(err, PERCH_E_DEVICE, "can't start the host tier's thread: %s", strerror(failure));
}

perch_status cpu_host_open(kernels_device *device, uint32_t n_frames, perch_error *err) {
    const cpu_kv *kv = &device->kv;
    if (kv->fd < 0 || device->host != NULL) {
        return err_set(err, PERCH_E_INVALID, "the device's %s",
                       kv->fd < 0 ? "KV memory is not open" : "host tier is open already");
    }
    frames_shape shape;
    perch_status status = frames_plan(kv->n_pages, kv->page_bytes, n_frames, &shape, err);
    if (status != PERCH_OK) {
        return status;
    }
    cpu_host *host = calloc(1, sizeof *host);
    if (host == NULL) {
        return err_nomem(err, "the host tier");
    }
    host->kv = kv;
    host->shape = shape;
    pthread_mutex_init(&host->lock, NULL);
    pthread_cond_init(&host->work, NULL);
    pthread_cond_init(&host->progress, NULL);
    device->host = host;
    if ((status = open_way(&host->ways[KERNELS_LOAD], shape.n_pages, err)) != PERCH_OK ||
        (status = open_way(&host->ways[KERNELS_STORE], n_frames, err)) != PERCH_OK ||
        (status = open_frames(host, err)) != PERCH_OK || (status = start(host, err)) != PERCH_OK) {
        cpu_host_close(device);
    }
    return status;
}

void cpu_host_close(kernels_device *device) {
    cpu_host *host = device->host;
    if (host == NULL) {
        return;
    }
    if (host->is_running) {
        pthread_mutex_lock(&host->lock);
        atomic_store(&host->stopping, true);
        pthread_cond_signal(&host->work);
        pthread_mutex_unlock(&host->lock);
        pthread_join(host->thread, NULL);
    }
    pthread_cond_destroy(&host->progress);
    pthread_cond_destroy(&host->work);
    pthread_mutex_destroy(&host->lock);
    cpu_region_close(&host->frames);
    free(host->ways[KERNELS_LOAD].runs);
    free(host->ways[KERNELS_STORE].runs);
    free(host);
    device->host = NULL;
}

uint8_t *cpu_host_frame(const kernels_device *device, uint32_t frame) {
    assert(device->host != NULL && frame < device->host->shape.n_frames);
    return frame_at(device->host, frame);
}

/* --- transfers */

static perch_status check_open(const kernels_device *device, perch_error *err) {
    return device->host != NULL ? PERCH_OK : err_set(err, PERCH_E_INVALID, "the device has no host tier");
}

static void push(way *w, const frames_shape *shape, const kernels_transfer *list, size_t n) {
    for (size_t i = 0; i < n;) {
        uint32_t length = frames_run(shape, &list[i], n - i);
        const uint64_t ticket = i + length == n ? ++w->newest : 0;
        w->runs[(w->first + w->n++) % w->cap] = (run){ticket, list[i].page, list[i].frame, length};
        i += length;
    }
}

perch_status cpu_transfer(kernels_device *device, kernels_direction direction, const kernels_transfer *list, size_t n,
                          uint64_t *ticket, perch_error *err) {
    cpu_host *host = device->host;
    perch_status status = check_open(device, err);
    if (status != PERCH_OK || (status = frames_check(&host->shape, list, n, err)) != PERCH_OK) {
        return status;
    }
    way *w = &host->ways[direction];
    size_t n_runs = 0;
    for (size_t i = 0; i < n; i += frames_run(&host->shape, &list[i], n - i)) {
        n_runs++;
    }
    pthread_mutex_lock(&host->lock);
    if (host->failure.status != PERCH_OK) {
        status = err_set(err, host->failure.status, "%s", host->failure.message);
    } else if (n_runs > w->cap - w->n) {
        status =
            err_set(err, PERCH_E_INVALID, "%zu copies beside the %u under way are more than there are destinations, %u",
                    n_runs, w->n, w->cap);
    } else {
        push(w, &host->shape, list, n);
        *ticket = w->newest;
        pthread_cond_signal(&host->work);
    }
    pthread_mutex_unlock(&host->lock);
    return status;
}

perch_status cpu_transferred(kernels_device *device, kernels_direction direction, uint64_t *ticket, perch_error *err) {
    cpu_host *host = device->host;
    perch_status status = check_open(device, err);
    *ticket = 0;
    if (status != PERCH_OK) {
        return status;
    }
    pthread_mutex_lock(&host->lock);
    *ticket = host->ways[direction].done;
    if (host->failure.status != PERCH_OK) {
        status = err_set(err, host->failure.status, "%s", host->failure.message);
    }
    pthread_mutex_unlock(&host->lock);
    return status;
}

perch_status cpu_transfer_wait(kernels_device *device, kernels_direction direction, uint64_t ticket, perch_error *err) {
    cpu_host *host = device->host;
    perch_status status = check_open(device, err);
    if (status != PERCH_OK) {
        return status;
    }
    const way *w = &host->ways[direction];
    pthread_mutex_lock(&host->lock);
    if (ticket > w->newest) {
        status = err_set(err, PERCH_E_INVALID, "waiting for transfer %" PRIu64 " of %" PRIu64, ticket, w->newest);
    }
    while (status == PERCH_OK && w->done < ticket) {
        if (host->failure.status != PERCH_OK) {
            status = err_set(err, host->failure.status, "%s", host->failure.message);
        } else {
            pthread_cond_wait(&host->progress, &host->lock);
        }
    }
    pthread_mutex_unlock(&host->lock);
    return status;
}
