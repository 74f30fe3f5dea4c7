/*
 * A section is published by one word, `gate`: OPEN tells workers that they may join, the low bits count those who have, and
 * the bits between number the section. The caller works too; when no task is left it closes the gate and waits for the count
 * to fall to 0. A worker that comes late finds the gate closed and has touched nothing.
 */
#include "kernels/cpu/pool.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#define GATE_OPEN 0x80000000u
#define GATE_COUNT 0x0000ffffu
#define GATE_SECTION 0xffff0000u /* OPEN and the number, which wraps around: then a worker may sit a section out */
#define GATE_SECTION_ONE 0x00010000u
#define SPIN_US 30u

typedef struct worker {
    cpu_pool *pool;
    pthread_t thread;
    uint32_t number;
} worker;

struct cpu_pool {
    /* the section; plain fields are written only while the gate is shut and nobody is inside */
    cpu_task task;
    void *context;
    size_t n_tasks;
    uint32_t section; /* the caller's: number of the last one */
    _Alignas(64) _Atomic size_t next_task;
    _Alignas(64) _Atomic uint32_t gate;
    _Atomic uint32_t n_asleep; /* workers in, or about to be in, pthread_cond_wait */
    _Atomic bool caller_waits;
    _Atomic bool stop;
    _Alignas(64) pthread_mutex_t mutex;
    pthread_cond_t opened; /* gate is OPEN, or stop */
    pthread_cond_t left;   /* the last worker left a closed gate */
    uint64_t spin_us;      /* 0 where threads outnumber CPUs: then watching only takes time from those who work */
    uint32_t n_workers;
    worker *workers;
};

static void run_tasks(cpu_pool *pool, uint32_t thread) {
    for (;;) {
        size_t task = atomic_fetch_add_explicit(&pool->next_task, 1, memory_order_relaxed);
        if (task >= pool->n_tasks) {
            return;
        }
        pool->task(pool->context, task, thread);
    }
}

/* Whether a gate is that of a section that the worker, who last worked in `seen`, has not been in. */
static bool gate_new(uint32_t gate, uint32_t seen) { return (gate & GATE_OPEN) != 0 && (gate & GATE_SECTION) != seen; }

static bool gate_join(cpu_pool *pool, uint32_t *seen) {
    uint32_t gate = atomic_load(&pool->gate);
    while (gate_new(gate, *seen)) {
        if (atomic_compare_exchange_weak(&pool->gate, &gate, gate + 1)) {
            *seen = gate & GATE_SECTION;
            return true;
        }
    }
    return false;
}

static void gate_leave(cpu_pool *pool) {
    uint32_t before = atomic_fetch_sub(&pool->gate, 1);
    if ((before & GATE_OPEN) == 0 && (before & GATE_COUNT) == 1 && atomic_load(&pool->caller_waits)) {
        pthread_mutex_lock(&pool->mutex);
        pthread_cond_signal(&pool->left);
        pthread_mutex_unlock(&pool->mutex);
    }
}

/* Called between two looks at the gate, the i-th time; false once watching has taken too long. */
static bool spin(const cpu_pool *pool, uint32_t i, uint64_t *end_us) {
    if (pool->spin_us == 0) {
        return false;
    }
    if (i % 64 == 0) { /* reading the clock costs as much as many looks */
        uint64_t now = time_us();
        *end_us = i == 0 ? now + pool->spin_us : *end_us;
        if (now >= *end_us) {
            return false;
        }
    }
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
    return true;
}

static bool spin_until_new(const cpu_pool *pool, uint32_t seen) {
    uint64_t end_us = 0;
    for (uint32_t i = 0; !gate_new(atomic_load_explicit(&pool->gate, memory_order_relaxed), seen); i++) {
        if (!spin(pool, i, &end_us)) {
            return false;
        }
    }
    return true;
}

static bool spin_until_left(const cpu_pool *pool) {
    uint64_t end_us = 0;
    for (uint32_t i = 0; (atomic_load(&pool->gate) & GATE_COUNT) != 0; i++) {
        if (!spin(pool, i, &end_us)) {
            return false;
        }
    }
    return true;
}

static void sleep_until_new(cpu_pool *pool, uint32_t seen) {
    pthread_mutex_lock(&pool->mutex);
    atomic_fetch_add(&pool->n_asleep, 1); /* before the last look at the gate: whoever opens it then sees a sleeper */
    while (!gate_new(atomic_load(&pool->gate), seen) && !atomic_load(&pool->stop)) {
        pthread_cond_wait(&pool->opened, &pool->mutex);
    }
    atomic_fetch_sub(&pool->n_asleep, 1);
    pthread_mutex_unlock(&pool->mutex);
}

static void *worker_main(void *argument) {
    worker *self = argument;
    cpu_pool *pool = self->pool;
    uint32_t seen = 0;
    while (!atomic_load(&pool->stop)) {
        if (gate_join(pool, &seen)) {
            run_tasks(pool, self->number);
            gate_leave(pool);
        }
        if (!spin_until_new(pool, seen)) {
            sleep_until_new(pool, seen);
        }
    }
    return NULL;
}

void cpu_pool_run(cpu_pool *pool, size_t n_tasks, cpu_task task, void *context) {
    if (pool->n_workers == 0 || n_tasks < 2) {
        for (size_t i = 0; i < n_tasks; i++) {
            task(context, i, 0);
        }
        return;
    }
    pool->task = task;
    pool->context = context;
    pool->n_tasks = n_tasks;
    atomic_store_explicit(&pool->next_task, 0, memory_order_relaxed);
    pool->section = (pool->section + GATE_SECTION_ONE) & GATE_SECTION & ~GATE_OPEN;
    atomic_store(&pool->gate, pool->section | GATE_OPEN);
    uint32_t n_asleep = atomic_load(&pool->n_asleep);
    if (n_asleep > 0) {
        pthread_mutex_lock(&pool->mutex);
        for (uint32_t i = 0; i < n_asleep && i + 1 < n_tasks; i++) {
            pthread_cond_signal(&pool->opened);
        }
        pthread_mutex_unlock(&pool->mutex);
    }
    run_tasks(pool, 0);
    atomic_fetch_and(&pool->gate, ~GATE_OPEN);
    if (spin_until_left(pool)) {
        return;
    }
    pthread_mutex_lock(&pool->mutex);
    atomic_store(&pool->caller_waits, true);
    while ((atomic_load(&pool->gate) & GATE_COUNT) != 0) {
        pthread_cond_wait(&pool->left, &pool->mutex);
    }
    atomic_store(&pool->caller_waits, false);
    pthread_mutex_unlock(&pool->mutex);
}

uint32_t cpu_count(void) {
    /* A fixed cpu_set_t holds 1024 CPUs; larger machines refuse it, and get a larger one. */
    for (int n_cpus = 1024; n_cpus <= 1 << 20; n_cpus *= 4) {
        cpu_set_t *set = CPU_ALLOC((size_t)n_cpus);
        if (set == NULL) {
            return 1;
        }
        size_t bytes = CPU_ALLOC_SIZE((size_t)n_cpus);
        int count = sched_getaffinity(0, bytes, set) == 0 ? CPU_COUNT_S(bytes, set) : 0;
        CPU_FREE(set);
        if (count > 0) {
            return (uint32_t)count;
        }
    }
    return 1;
}

static perch_status start_workers(cpu_pool *pool, uint32_t n, perch_error *err) {
    pool->workers = calloc(n, sizeof *pool->workers);
    if (pool->workers == NULL) {
        return err_nomem(err, "the thread pool");
    }
    for (uint32_t i = 0; i < n; i++) {
        pool->workers[i].pool = pool;
        pool->workers[i].number = i + 1;
        int failure = pthread_create(&pool->workers[i].thread, NULL, worker_main, &pool->workers[i]);
        if (failure != 0) {
            return err_set(err, PERCH_E_DEVICE, "can't start compute thread %u of %u: %s", i + 2, n + 1,
                           strerror(failure));
        }
        pool->n_workers++;
    }
    return PERCH_OK;
}

perch_status cpu_pool_open(uint32_t n_threads, cpu_pool **out, perch_error *err) {
    *out = NULL;
    cpu_pool *pool = aligned_alloc(_Alignof(cpu_pool), sizeof *pool);
    if (pool == NULL) {
        return err_nomem(err, "the thread pool");
    }
    memset(pool, 0, sizeof *pool);
    pool->spin_us = n_threads <= cpu_count() ? SPIN_US : 0;
    pthread_mutex_init(&pool->mutex, NULL);
    pthread_cond_init(&pool->opened, NULL);
    pthread_cond_init(&pool->left, NULL);
    perch_status status = n_threads > 1 ? start_workers(pool, n_threads - 1, err) : PERCH_OK;
    if (status != PERCH_OK) {
        cpu_pool_close(pool);
        return status;
    }
    *out = pool;
    return PERCH_OK;
}

void cpu_pool_close(cpu_pool *pool) {
    if (pool == NULL) {
        return;
    }
    pthread_mutex_lock(&pool->mutex);
    atomic_store(&pool->stop, true);
    pthread_cond_broadcast(&pool->opened);
    pthread_mutex_unlock(&pool->mutex);
    for (uint32_t i = 0; i < pool->n_workers; i++) {
        pthread_join(pool->workers[i].thread, NULL);
    }
    pthread_cond_destroy(&pool->left);
    pthread_cond_destroy(&pool->opened);
    pthread_mutex_destroy(&pool->mutex);
    free(pool->workers);
    free(pool);
}
