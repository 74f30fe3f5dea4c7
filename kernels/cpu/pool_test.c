/*
 * The thread pool: every task runs once, in sections of every size and shape that follow one another closely or after a
 * sleep; what tasks wrote is seen by the caller; an idle pool uses no CPU.
 */
#include "kernels/cpu/pool.h"
#include "tests/support/check.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MAX_TASKS 300u

typedef struct section {
    uint8_t runs[MAX_TASKS]; /* plain: a task's own, and the caller's afterwards */
    uint32_t n_threads;
    uint32_t work;
    _Atomic uint32_t wrong_threads;
    _Atomic uint32_t inside[64]; /* tasks that a thread is in: more than one would share scratch memory */
} section;

static void count_run(void *context, size_t task, uint32_t thread) {
    section *s = context;
    if (thread >= s->n_threads || atomic_fetch_add(&s->inside[thread], 1) != 0) {
        atomic_fetch_add(&s->wrong_threads, 1);
        return;
    }
    for (volatile uint32_t i = 0; i < s->work; i++) {}
    s->runs[task]++;
    atomic_fetch_sub(&s->inside[thread], 1);
}

static cpu_pool *open_pool(uint32_t n_threads) {
    cpu_pool *pool = NULL;
    perch_error err = {0};
    CHECK_MSG(cpu_pool_open(n_threads, &pool, &err) == PERCH_OK, "%s", err.message);
    return pool;
}

static void every_task_runs_once(void) {
    static const uint32_t thread_counts[] = {1, 2, 3, 5, 16};
    test_rng rng = {test_seed(5)};
    section *s = calloc(1, sizeof *s);
    for (size_t k = 0; s != NULL && k < 5; k++) {
        cpu_pool *pool = open_pool(thread_counts[k]);
        s->n_threads = thread_counts[k];
        for (uint64_t i = 0; pool != NULL && i < test_scaled(2000); i++) {
            size_t n = test_rng_below(&rng, test_rng_below(&rng, 2) ? MAX_TASKS + 1 : 5), wrong = 0;
            s->work = (uint32_t)test_rng_below(&rng, 200);
            memset(s->runs, 0, sizeof s->runs);
            cpu_pool_run(pool, n, count_run, s);
            for (size_t t = 0; t < MAX_TASKS; t++) {
                wrong += s->runs[t] != (t < n ? 1 : 0);
            }
            if (wrong > 0 || atomic_load(&s->wrong_threads) > 0) {
                CHECK_MSG(false, "%u threads, %zu tasks: %zu not run once", thread_counts[k], n, wrong);
                break;
            }
            if (i % 200 == 0) {
                usleep(500); /* long enough for the workers to fall asleep */
            }
        }
        cpu_pool_close(pool);
    }
    free(s);
}

typedef struct meeting {
    _Atomic uint32_t arrived;
    uint32_t wanted;
    bool timed_out;
} meeting;

/* Ends when as many threads are in the section as the pool has, or after minutes that no machine takes to wake them. */
static void meet(void *context, size_t task, uint32_t thread) {
    (void)task;
    meeting *m = context;
    atomic_fetch_add(&m->arrived, 1);
    for (uint64_t end = time_us() + 300000000; atomic_load(&m->arrived) < m->wanted;) {
        if (time_us() > end) {
            m->timed_out = m->timed_out || thread == 0;
            return;
        }
        sched_yield();
    }
}

static void all_threads_take_part_also_after_a_sleep(void) {
    cpu_pool *pool = open_pool(4);
    for (int i = 0; pool != NULL && i < 20; i++) {
        meeting m = {.wanted = 4};
        cpu_pool_run(pool, 4, meet, &m);
        if (!CHECK_MSG(!m.timed_out, "section %d: %u of 4 threads came", i, atomic_load(&m.arrived))) {
            break;
        }
        usleep(i % 2 ? 3000 : 0);
    }
    cpu_pool_close(pool);
}

static void an_idle_pool_uses_no_cpu(void) {
    cpu_pool *pool = open_pool(2);
    section *s = calloc(1, sizeof *s);
    if (pool != NULL && s != NULL) {
        s->n_threads = 2;
        cpu_pool_run(pool, 50, count_run, s);
        double share = test_idle_share();
        CHECK_MSG(share < 0.01, "%.2f %% of a CPU", 100 * share);
    }
    free(s);
    cpu_pool_close(pool);
}

static void cpu_count_honours_the_affinity(void) {
    cpu_set_t before, one;
    CU_ASSERT(sched_getaffinity(0, sizeof before, &before) == 0);
    CHECK_MSG(cpu_count() == (uint32_t)CPU_COUNT(&before), "%u", cpu_count());
    CPU_ZERO(&one);
    for (size_t cpu = 0; CPU_COUNT(&one) == 0 && cpu < CPU_SETSIZE; cpu++) {
        if (CPU_ISSET(cpu, &before)) {
            CPU_SET(cpu, &one);
        }
    }
    CU_ASSERT(sched_setaffinity(0, sizeof one, &one) == 0);
    CHECK_MSG(cpu_count() == 1, "%u", cpu_count());
    CU_ASSERT(sched_setaffinity(0, sizeof before, &before) == 0);
}

int main(int argc, char **argv) {
    static const test_case tests[] = {
        {"every_task_runs_once", every_task_runs_once},
        {"all_threads_take_part_also_after_a_sleep", all_threads_take_part_also_after_a_sleep},
        {"an_idle_pool_uses_no_cpu", an_idle_pool_uses_no_cpu},
        {"cpu_count_honours_the_affinity", cpu_count_honours_the_affinity},
    };
    return test_main("cpu_pool_test", tests, sizeof tests / sizeof tests[0], argc, argv);
}
