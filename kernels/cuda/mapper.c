/*
 * The mapping thread: carries out MAP and UNMAP beside the step that runs, so that the step after it finds its pages.
 *
 * The GPU's page tables know nothing of streams. What is unmapped may still be read by work that is queued, so to unmap means
 * first of all to note that a place is *stale*, and behind which *fence* it may really go: an event recorded on the compute
 * stream when the command came. A stale place is unmapped when another page is to come there (if it is the same page again
 * nothing has to be done at all), or in the background when there are many. To map is possible at any time.
 *
 * A page may be at several places (prefixes that are shared). CUDA keeps such aliases consistent from one kernel to the next,
 * not within one; pages that are shared are only read.
 */
#include "kernels/cuda/device.h"

#include <pthread.h>
#include <stdlib.h>

#define NO_PAGE UINT32_MAX
#define QUEUE_COMMANDS 16384u
/* Stale places that are left alone, and all that there may be. */
#define MANY_STALE 4096u
#define MAX_STALE 16384u
/* Background work between two looks at the queue: an unmapping takes some microseconds. */
#define UNMAP_BATCH 16u
/* The oldest events are recorded anew: a wait for one of those is a wait for a later one, which is as good. */
#define N_FENCES 64u

typedef struct place {
    uint32_t page;  /* that is mapped there, or NO_PAGE */
    uint64_t fence; /* 0: in use; else it is stale, and may go when that fence has passed */
} place;

typedef struct stale_place { /* in the order in which they became so; dead if the place's fence is another by now */
    uint64_t fence;
    uint32_t place;
} stale_place;

typedef struct queued {
    kv_command command;
    uint64_t fence;
} queued;

/* The first call that failed, one of the driver's or of the runtime's, and what it was for. */
typedef struct failure {
    CUresult driver;
    cudaError_t runtime;
    const char *what;
} failure;

struct cuda_mapper {
    kernels_device *device;
    pthread_t thread;
    bool is_running;

    pthread_mutex_t lock;
    pthread_cond_t work, idle;
    queued *queue; /* [QUEUE_COMMANDS], from `first` on, `n` of them; the thread takes them out when they are done */
    uint32_t first, n;
    bool stopping;
    failure told; /* what the thread has met, for the caller */

    uint64_t n_fences; /* the caller's */
    cudaEvent_t fences[N_FENCES];

    /* The thread's. */
    failure met;   /* nothing is carried out after it */
    place *places; /* [n_slots * pages_per_slot] */
    size_t n_places;
    stale_place *stale; /* ring [MAX_STALE] */
    uint32_t stale_first, n_stale;
    uint64_t passed; /* fences up to this one have */
};

static CUdeviceptr address_of(const cuda_mapper *m, size_t at) {
    return m->device->kv.slots + at * m->device->kv.shape.page_bytes;
}

static bool stopped(const cuda_mapper *m) { return m->met.driver != CUDA_SUCCESS || m->met.runtime != cudaSuccess; }

static bool driver_did(cuda_mapper *m, CUresult e, const char *what) {
    if (e != CUDA_SUCCESS && !stopped(m)) {
        m->met = (failure){.driver = e, .what = what};
    }
    return e == CUDA_SUCCESS;
}

static bool runtime_did(cuda_mapper *m, cudaError_t e, const char *what) {
    if (e != cudaSuccess && !stopped(m)) {
        m->met = (failure){.runtime = e, .what = what};
    }
    return e == cudaSuccess;
}

/* --- fences */

static bool has_passed(cuda_mapper *m, uint64_t fence) {
    if (fence <= m->passed) {
        return true;
    }
    cudaError_t e = cudaEventQuery(m->fences[fence % N_FENCES]);
    if (e == cudaErrorNotReady) {
        (void)cudaGetLastError();
        return false;
    }
    if (!runtime_did(m, e, "asking whether a step is done")) {
        return false;
    }
    m->passed = fence;
    return true;
}

static bool wait_for(cuda_mapper *m, uint64_t fence) {
    if (fence <= m->passed) {
        return true;
    }
    if (!runtime_did(m, cudaEventSynchronize(m->fences[fence % N_FENCES]), "waiting for a step before unmapping")) {
        return false;
    }
    m->passed = fence;
    return true;
}

/* --- places */

static bool unmap(cuda_mapper *m, size_t at) {
    m->places[at].page = NO_PAGE;
    m->places[at].fence = 0;
    return driver_did(m, cuMemUnmap(address_of(m, at), m->device->kv.shape.page_bytes), "unmapping a KV page");
}

/* Unmaps the oldest stale place, if its fence has passed; with `wait` waits for that. */
static bool unmap_oldest(cuda_mapper *m, bool wait) {
    stale_place oldest = m->stale[m->stale_first];
    bool is_dead = m->places[oldest.place].fence != oldest.fence;
    if (!is_dead && !(wait ? wait_for(m, oldest.fence) : has_passed(m, oldest.fence))) {
        return false;
    }
    m->stale_first = (m->stale_first + 1) % MAX_STALE;
    m->n_stale--;
    return is_dead || unmap(m, oldest.place);
}

static bool make_stale(cuda_mapper *m, size_t at, uint64_t fence) {
    if (m->places[at].page == NO_PAGE || m->places[at].fence != 0) {
        return true;
    }
    if (m->n_stale == MAX_STALE && !unmap_oldest(m, true)) {
        return false;
    }
    m->places[at].fence = fence;
    m->stale[(m->stale_first + m->n_stale++) % MAX_STALE] = (stale_place){fence, (uint32_t)at};
    return true;
}

/* Puts the run's pages to their places: what is in the way goes first, once nobody can be reading it. */
static bool map_run(cuda_mapper *m, size_t first, const queued *run, size_t n) {
    const kernels_device *device = m->device;
    const size_t page_bytes = device->kv.shape.page_bytes;
    const CUmemAccessDesc access = {.location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = device->handle},
                                    .flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE};
    for (size_t i = 0; i < n; i++) {
        place *p = &m->places[first + i];
        if (p->page != NO_PAGE && (!wait_for(m, p->fence != 0 ? p->fence : run[i].fence) || !unmap(m, first + i))) {
            return false;
        }
        CUmemGenericAllocationHandle page = device->kv.pages[run[i].command.page];
        if (!driver_did(m, cuMemMap(address_of(m, first + i), page_bytes, 0, page, 0), "mapping a KV page")) {
            return false;
        }
        *p = (place){run[i].command.page, 0};
    }
    return driver_did(m, cuMemSetAccess(address_of(m, first), n * page_bytes, &access, 1), "opening KV pages");
}

/* Carries out commands that lie side by side; those that continue one another are made accessible at once. */
static void carry_out(cuda_mapper *m, const queued *q, size_t n) {
    for (size_t i = 0; i < n && !stopped(m);) {
        const kv_command *c = &q[i].command;
        size_t at = (size_t)c->slot * m->device->kv.shape.pages_per_slot + c->index;
        if (c->op == KV_UNMAP) {
            (void)make_stale(m, at, q[i].fence);
            i++;
            continue;
        }
        if (m->places[at].page == c->page) { /* it is there still */
            m->places[at].fence = 0;
            i++;
            continue;
        }
        size_t length = 1;
        while (i + length < n && q[i + length].command.op == KV_MAP && q[i + length].command.slot == c->slot &&
               q[i + length].command.index == c->index + length &&
               m->places[at + length].page != q[i + length].command.page) {
            length++;
        }
        (void)map_run(m, at, &q[i], length);
        i += length;
    }
}

/* Background work; false: there is none, or it would have to wait. */
static bool tidy_up(cuda_mapper *m) {
    for (uint32_t i = 0; i < UNMAP_BATCH && !stopped(m); i++) {
        if (m->n_stale <= MANY_STALE || !unmap_oldest(m, false)) {
            return false;
        }
    }
    return !stopped(m);
}

static void *mapping_thread(void *context) {
    cuda_mapper *m = context;
    bool may_tidy = true;
    (void)runtime_did(m, cudaSetDevice(m->device->ordinal), "the mapping thread");
    pthread_mutex_lock(&m->lock);
    while (!m->stopping) {
        if (m->n == 0 && !may_tidy) {
            pthread_cond_wait(&m->work, &m->lock);
            continue;
        }
        uint32_t to_end = QUEUE_COMMANDS - m->first, n = m->n < to_end ? m->n : to_end;
        const queued *from = &m->queue[m->first];
        pthread_mutex_unlock(&m->lock);
        if (n > 0) {
            carry_out(m, from, n);
        }
        may_tidy = n > 0 || tidy_up(m);
        pthread_mutex_lock(&m->lock);
        m->told = m->met;
        m->first = (m->first + n) % QUEUE_COMMANDS;
        m->n -= n;
        if (n > 0) {
            pthread_cond_signal(&m->idle);
        }
    }
    pthread_mutex_unlock(&m->lock);
    return NULL;
}

/* --- the caller's side */

perch_status cuda_mapper_open(kernels_device *device, cuda_mapper **out, perch_error *err) {
    const kernels_kv *kv = &device->kv.shape;
    perch_status status = PERCH_OK;
    cuda_mapper *m = calloc(1, sizeof *m);
    *out = NULL;
    if (m == NULL) {
        return err_nomem(err, "the KV mapping");
    }
    m->device = device;
    m->n_places = (size_t)kv->n_slots * kv->pages_per_slot;
    m->places = malloc(m->n_places * sizeof *m->places);
    m->stale = malloc(MAX_STALE * sizeof *m->stale);
    m->queue = malloc(QUEUE_COMMANDS * sizeof *m->queue);
    pthread_mutex_init(&m->lock, NULL);
    pthread_cond_init(&m->work, NULL);
    pthread_cond_init(&m->idle, NULL);
    if (m->places == NULL || m->stale == NULL || m->queue == NULL) {
        status = err_nomem(err, "the KV mapping");
    }
    for (size_t i = 0; i < m->n_places && status == PERCH_OK; i++) {
        m->places[i] = (place){NO_PAGE, 0};
    }
    for (uint32_t i = 0; i < N_FENCES && status == PERCH_OK; i++) {
        status = cuda_check(device, cuda_event_create(&m->fences[i]), "an event of the KV mapping", err);
    }
    if (status == PERCH_OK) {
        m->is_running = pthread_create(&m->thread, NULL, mapping_thread, m) == 0;
        status = m->is_running ? PERCH_OK : err_nomem(err, "the KV mapping's thread");
    }
    if (status != PERCH_OK) {
        cuda_mapper_close(m);
        return status;
    }
    *out = m;
    return PERCH_OK;
}

void cuda_mapper_close(cuda_mapper *m) {
    if (m == NULL) {
        return;
    }
    if (m->is_running) {
        pthread_mutex_lock(&m->lock);
        m->stopping = true;
        pthread_cond_signal(&m->work);
        pthread_mutex_unlock(&m->lock);
        pthread_join(m->thread, NULL);
        for (size_t i = 0; i < m->n_places; i++) {
            if (m->places[i].page != NO_PAGE) {
                (void)cuMemUnmap(address_of(m, i), m->device->kv.shape.page_bytes);
            }
        }
    }
    for (uint32_t i = 0; i < N_FENCES; i++) {
        if (m->fences[i] != NULL) {
            (void)cudaEventDestroy(m->fences[i]);
        }
    }
    pthread_cond_destroy(&m->idle);
    pthread_cond_destroy(&m->work);
    pthread_mutex_destroy(&m->lock);
    free(m->queue);
    free(m->stale);
    free(m->places);
    free(m);
}

perch_status cuda_mapper_push(cuda_mapper *m, const kv_command *commands, size_t n, perch_error *err) {
    const uint64_t fence = m->n_fences + 1;
    perch_status status = cuda_check(m->device, cudaEventRecord(m->fences[fence % N_FENCES], m->device->compute),
                                     "an event of the KV mapping", err);
    if (status != PERCH_OK) {
        return status;
    }
    m->n_fences = fence;
    pthread_mutex_lock(&m->lock);
    for (size_t i = 0; i < n; i++) {
        while (m->n == QUEUE_COMMANDS) {
            pthread_cond_signal(&m->work);
            pthread_cond_wait(&m->idle, &m->lock);
        }
        m->queue[(m->first + m->n++) % QUEUE_COMMANDS] = (queued){commands[i], fence};
    }
    pthread_cond_signal(&m->work);
    pthread_mutex_unlock(&m->lock);
    return PERCH_OK;
}

perch_status cuda_mapper_wait(cuda_mapper *m, perch_error *err) {
    pthread_mutex_lock(&m->lock);
    while (m->n > 0) {
        pthread_cond_wait(&m->idle, &m->lock);
    }
    failure told = m->told;
    pthread_mutex_unlock(&m->lock);
    return told.driver != CUDA_SUCCESS ? cuda_check_driver(m->device, told.driver, told.what, err)
                                       : cuda_check(m->device, told.runtime, told.what, err);
}
