/*
 * The mapping thread: carries out MAP and UNMAP beside the step that runs, so that the step after it finds its pages.
 *
 * The GPU's page tables know nothing of streams. What is unmapped may still be read by work that is queued, so to unmap means
 * first of all to note that a place is *stale*, and until which *step* it is in use: the last one that had a row of its slot.
 * A stale place is unmapped when another page is to come there (if it is the same page again nothing has to be done at all), or in
 * the background when there are many; in either case after that step. So a slot that the running step doesn't have can be
 * mapped anew while it runs. To map is possible at any time.
 *
 * A step is known to be done when somebody has waited for its choices or by its event, which stands behind everything that
 * reaches KV. What else reaches a slot (upload, download) is done when it returns.
 *
 * A page may be at several places (prefixes that are shared). CUDA keeps such aliases consistent from one kernel to the next,
 * not within one; pages that are shared are only read.
 */
#include "kernels/cuda/device.h"

#include <pthread.h>
#include <stdlib.h>

#define NO_PLACE UINT32_MAX
/* Stale places that are left alone. */
#define MANY_STALE 4096u
/* Changes that the thread takes at once. */
#define MOST_TASKS 256u
/* Background work between two looks at what there is to do: an unmapping takes some microseconds. */
#define UNMAP_BATCH 16u
/* One lane's steps come every KERNELS_LANES, and each is waited for before the lane's next: an event is free again long since. */
#define N_EVENTS (2 * KERNELS_LANES)

typedef struct place {
    uint32_t page; /* that is mapped there, or CUDA_NO_PAGE */
    bool is_stale;
    uint64_t step;       /* stale: the last one that may reach it, 0: none */
    uint32_t next, prev; /* stale: those that became so after and before it, or NO_PLACE */
} place;

typedef struct task {
    cuda_change change;
    uint64_t step; /* the last one that has the slot */
} task;

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
    cuda_changes changes;
    bool is_busy;       /* the thread has tasks */
    uint64_t *slot_use; /* [n_slots] the last step that has it, 0: none yet */
    uint64_t done;      /* steps up to this one are */
    bool stopping;
    failure told; /* what the thread has met, for the caller */

    cudaEvent_t events[N_EVENTS]; /* of a step: its number % N_EVENTS */

    /* The thread's. */
    failure met;                      /* nothing is carried out after it */
    place *places;                    /* [n_places] */
    uint32_t oldest, newest, n_stale; /* a list */
    uint64_t passed;                  /* steps up to this one are done */
    task tasks[MOST_TASKS];
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

/* --- steps */

static bool has_passed(cuda_mapper *m, uint64_t step) {
    if (step <= m->passed) {
        return true;
    }
    cudaError_t e = cudaEventQuery(m->events[step % N_EVENTS]);
    if (e == cudaErrorNotReady) {
        (void)cudaGetLastError();
        return false;
    }
    if (!runtime_did(m, e, "asking whether a step is done")) {
        return false;
    }
    m->passed = step;
    return true;
}

static bool wait_for(cuda_mapper *m, uint64_t step) {
    if (step <= m->passed) {
        return true;
    }
    if (!runtime_did(m, cudaEventSynchronize(m->events[step % N_EVENTS]), "waiting for a step before unmapping")) {
        return false;
    }
    m->passed = step;
    return true;
}

/* --- places */

static void make_stale(cuda_mapper *m, uint32_t at, uint64_t step) {
    place *p = &m->places[at];
    if (p->page == CUDA_NO_PAGE || p->is_stale) {
        return;
    }
    p->is_stale = true;
    p->step = step;
    p->next = NO_PLACE;
    p->prev = m->newest;
    *(p->prev != NO_PLACE ? &m->places[p->prev].next : &m->oldest) = at;
    m->newest = at;
    m->n_stale++;
}

static void forget_stale(cuda_mapper *m, uint32_t at) {
    place *p = &m->places[at];
    if (p->is_stale) {
        p->is_stale = false;
        *(p->prev != NO_PLACE ? &m->places[p->prev].next : &m->oldest) = p->next;
        *(p->next != NO_PLACE ? &m->places[p->next].prev : &m->newest) = p->prev;
        m->n_stale--;
    }
}

static bool unmap(cuda_mapper *m, uint32_t at) {
    forget_stale(m, at);
    m->places[at].page = CUDA_NO_PAGE;
    return driver_did(m, cuMemUnmap(address_of(m, at), m->device->kv.shape.page_bytes), "unmapping a KV page");
}

/* Puts the run's pages to their places: what is in the way goes first, once nobody can be reading it. */
static bool map_run(cuda_mapper *m, const task *run, size_t n) {
    const kernels_device *device = m->device;
    const size_t page_bytes = device->kv.shape.page_bytes;
    const uint32_t first = run->change.place;
    const CUmemAccessDesc access = {.location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = device->handle},
                                    .flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE};
    for (uint32_t i = 0; i < n; i++) {
        place *p = &m->places[first + i];
        if (p->page != CUDA_NO_PAGE && (!wait_for(m, p->is_stale ? p->step : run[i].step) || !unmap(m, first + i))) {
            return false;
        }
        CUmemGenericAllocationHandle page = device->kv.pages[run[i].change.page];
        if (!driver_did(m, cuMemMap(address_of(m, first + i), page_bytes, 0, page, 0), "mapping a KV page")) {
            return false;
        }
        p->page = run[i].change.page;
    }
    return driver_did(m, cuMemSetAccess(address_of(m, first), n * page_bytes, &access, 1), "opening KV pages");
}

static bool is_new(const cuda_mapper *m, const task *t) {
    return t->change.page != CUDA_NO_PAGE && m->places[t->change.place].page != t->change.page;
}

/* Carries out what was taken; pages that come side by side are made accessible at once. */
static void carry_out(cuda_mapper *m, const task *tasks, size_t n) {
    for (size_t i = 0; i < n && !stopped(m);) {
        const cuda_change *c = &tasks[i].change;
        size_t length = 1;
        if (c->page == CUDA_NO_PAGE) {
            make_stale(m, c->place, tasks[i].step);
        } else if (!is_new(m, &tasks[i])) { /* it is there still */
            forget_stale(m, c->place);
        } else {
            while (i + length < n && tasks[i + length].change.place == c->place + length &&
                   is_new(m, &tasks[i + length])) {
                length++;
            }
            (void)map_run(m, &tasks[i], length);
        }
        i += length;
    }
}

/* Background work; false: there is none, or it would have to wait. */
static bool tidy_up(cuda_mapper *m) {
    for (uint32_t i = 0; i < UNMAP_BATCH && !stopped(m); i++) {
        if (m->n_stale <= MANY_STALE || !has_passed(m, m->places[m->oldest].step) || !unmap(m, m->oldest)) {
            return false;
        }
    }
    return !stopped(m);
}

/* Under the lock. */
static uint32_t take_tasks(cuda_mapper *m) {
    uint32_t n = 0;
    while (n < MOST_TASKS && cuda_changes_take(&m->changes, &m->tasks[n].change)) {
        m->tasks[n].step = m->slot_use[m->tasks[n].change.place / m->device->kv.shape.pages_per_slot];
        n++;
    }
    m->passed = m->done > m->passed ? m->done : m->passed;
    m->is_busy = n > 0;
    return n;
}

static void *mapping_thread(void *context) {
    cuda_mapper *m = context;
    bool may_tidy = true;
    (void)runtime_did(m, cudaSetDevice(m->device->ordinal), "the mapping thread");
    pthread_mutex_lock(&m->lock);
    while (!m->stopping) {
        if (m->changes.n == 0 && !may_tidy) {
            pthread_cond_wait(&m->work, &m->lock);
            continue;
        }
        uint32_t n = take_tasks(m);
        pthread_mutex_unlock(&m->lock);
        carry_out(m, m->tasks, n);
        may_tidy = n > 0 || tidy_up(m);
        pthread_mutex_lock(&m->lock);
        m->told = m->met;
        m->is_busy = false;
        if (m->changes.n == 0) {
            pthread_cond_signal(&m->idle);
        }
    }
    pthread_mutex_unlock(&m->lock);
    return NULL;
}

/* --- the caller's side */

perch_status cuda_mapper_open(kernels_device *device, cuda_mapper **out, perch_error *err) {
    const kernels_kv *kv = &device->kv.shape;
    const size_t n_places = (size_t)kv->n_slots * kv->pages_per_slot;
    cuda_mapper *m = calloc(1, sizeof *m);
    *out = NULL;
    if (m == NULL) {
        return err_nomem(err, "the KV mapping");
    }
    m->device = device;
    m->oldest = m->newest = NO_PLACE;
    m->places = malloc(n_places * sizeof *m->places);
    m->slot_use = calloc(kv->n_slots, sizeof *m->slot_use);
    pthread_mutex_init(&m->lock, NULL);
    pthread_cond_init(&m->work, NULL);
    pthread_cond_init(&m->idle, NULL);
    perch_status status = m->places != NULL && m->slot_use != NULL ? PERCH_OK : err_nomem(err, "the KV mapping");
    if (status == PERCH_OK) {
        status = cuda_changes_open(&m->changes, n_places, err);
    }
    for (size_t i = 0; i < n_places && status == PERCH_OK; i++) {
        m->places[i] = (place){.page = CUDA_NO_PAGE};
    }
    for (uint32_t i = 0; i < N_EVENTS && status == PERCH_OK; i++) {
        status = cuda_check(device, cuda_event_create(&m->events[i]), "an event of the KV mapping", err);
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
        for (size_t i = 0; i < m->changes.n_places; i++) {
            if (m->places[i].page != CUDA_NO_PAGE) {
                (void)cuMemUnmap(address_of(m, i), m->device->kv.shape.page_bytes);
            }
        }
    }
    for (uint32_t i = 0; i < N_EVENTS; i++) {
        if (m->events[i] != NULL) {
            (void)cudaEventDestroy(m->events[i]);
        }
    }
    pthread_cond_destroy(&m->idle);
    pthread_cond_destroy(&m->work);
    pthread_mutex_destroy(&m->lock);
    cuda_changes_close(&m->changes);
    free(m->slot_use);
    free(m->places);
    free(m);
}

void cuda_mapper_push(cuda_mapper *m, const kv_command *commands, size_t n) {
    pthread_mutex_lock(&m->lock);
    for (size_t i = 0; i < n; i++) {
        const kv_command *c = &commands[i];
        cuda_changes_note(&m->changes, (size_t)c->slot * m->device->kv.shape.pages_per_slot + c->index,
                          c->op == KV_MAP ? c->page : CUDA_NO_PAGE);
    }
    pthread_cond_signal(&m->work);
    pthread_mutex_unlock(&m->lock);
}

perch_status cuda_mapper_wait(cuda_mapper *m, perch_error *err) {
    pthread_mutex_lock(&m->lock);
    while (m->changes.n > 0 || m->is_busy) {
        pthread_cond_wait(&m->idle, &m->lock);
    }
    failure told = m->told;
    pthread_mutex_unlock(&m->lock);
    return told.driver != CUDA_SUCCESS ? cuda_check_driver(m->device, told.driver, told.what, err)
                                       : cuda_check(m->device, told.runtime, told.what, err);
}

void cuda_mapper_begin_step(cuda_mapper *m, uint64_t step, const kernels_row *rows, uint32_t n_rows) {
    pthread_mutex_lock(&m->lock);
    for (uint32_t i = 0; i < n_rows; i++) {
        m->slot_use[rows[i].slot] = step;
    }
    pthread_mutex_unlock(&m->lock);
}

perch_status cuda_mapper_end_step(cuda_mapper *m, uint64_t step, perch_error *err) {
    return cuda_check(m->device, cudaEventRecord(m->events[step % N_EVENTS], m->device->compute),
                      "an event of the KV mapping", err);
}

void cuda_mapper_step_done(cuda_mapper *m, uint64_t step) {
    pthread_mutex_lock(&m->lock);
    m->done = step > m->done ? step : m->done;
    pthread_mutex_unlock(&m->lock);
}
