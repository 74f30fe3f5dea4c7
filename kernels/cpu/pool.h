/*
 * pool: threads that work through the tasks of one parallel section after another.
 *
 * A step of the engine is hundreds of sections of some microseconds each. So a worker that has run out of tasks watches for
 * the next section for some ten microseconds before it sleeps, and a section waits for the workers that joined it, never for
 * one that is still waking up: with a worker asleep the others do its share. An idle pool uses no CPU.
 *
 * One thread at a time may call cpu_pool_run. Tasks are handed out in order, each to whichever thread comes first.
 */
#ifndef PERCH_KERNELS_CPU_POOL_H
#define PERCH_KERNELS_CPU_POOL_H

#include "base/base.h"

typedef struct cpu_pool cpu_pool;

/* thread: 0..n_threads-1, 0 being the caller of cpu_pool_run. */
typedef void (*cpu_task)(void *context, size_t task, uint32_t thread);

/* n_threads >= 1, the caller's included. E_NOMEM, E_DEVICE (a thread could not be started): nothing is left behind. */
perch_status cpu_pool_open(uint32_t n_threads, cpu_pool **out, perch_error *err);
void cpu_pool_close(cpu_pool *pool);

/* Runs tasks 0..n_tasks-1; all are done when it returns, and what they wrote is visible to the caller. */
void cpu_pool_run(cpu_pool *pool, size_t n_tasks, cpu_task task, void *context);

/* The CPUs that this process may run on (sched_getaffinity); at least 1. */
uint32_t cpu_count(void);

#endif
