/*
 * emulation: what tests ask of the emulated CUDA beyond CUDA itself: settings, calls that fail, what is left over. Every
 * function may be called from any thread. C11 and C++17.
 */
#ifndef PERCH_TESTS_EMULATION_EMULATION_H
#define PERCH_TESTS_EMULATION_EMULATION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct emulation_settings {
    uint64_t seed; /* PERCH_EMU_SEED: of the order among streams; 0: first come, first served, as late as possible */
    bool eager;    /* PERCH_EMU_EAGER: work is done when it is queued */
    uint64_t memory_bytes; /* PERCH_EMU_MEMORY: the device's */
    uint64_t granularity;  /* PERCH_EMU_GRANULARITY: of virtual memory management; a power of two, at least 64 KiB */
    uint64_t graph_bytes;  /* PERCH_EMU_GRAPH_BYTES: device memory that an executable graph takes */
    bool no_vmm;           /* PERCH_EMU_NO_VMM: the device can't do that */
    uint32_t n_devices;    /* PERCH_EMU_DEVICES: all alike */
    uint32_t n_processors; /* PERCH_EMU_PROCESSORS: multiprocessors */
    int driver_version; /* PERCH_EMU_DRIVER: cudaDriverGetVersion; too old a one fails every call, 0 is none at all */
} emulation_settings;

/* The settings as the environment has them; where it is silent: seed 1, 8 GiB, 2 MiB, one device of 16 processors. */
emulation_settings emulation_defaults(void);

/*
 * Begins anew, as a new process would: what is queued is dropped, what is left over is forgotten (handles, not addresses: those
 * are not used again), counts and planned failures are gone. NULL: the defaults.
 */
void emulation_reset(const emulation_settings *settings);

/*
 * The nth call from now (1 = the next) of the function, or of any where call is NULL, fails: with `error` (a cudaError_t, CUresult
 * or cublasStatus_t, whichever the function returns), or where that is 0 with the error that is most likely there. Functions
 * that give something back do so nevertheless. "cudaLaunchKernel" is a kernel's launch; "kernel" is its execution, and what
 * fails there is the device. Functions that can't fail are not counted. Failures add up; emulation_reset forgets them.
 */
void emulation_fail(const char *call, uint64_t nth, int error);

/* Calls since the reset; NULL: all of them. */
uint64_t emulation_calls(const char *call);

/* How many of the planned failures have come. */
uint64_t emulation_failed(void);

/* What ended the device, "" while it lives. Static buffer of the calling thread. */
const char *emulation_fault(void);

/* What is not given back yet, as "2 streams, 512 bytes by cudaMalloc (1)…"; "" where nothing is. Static buffer of the calling thread. */
const char *emulation_leaks(void);

/* Device bytes taken, and the most that ever were since the reset. */
uint64_t emulation_bytes(void);
uint64_t emulation_peak_bytes(void);

/* Whether every byte of [p, p + bytes) is device memory that a kernel could reach now. */
bool emulation_accessible(const void *p, size_t bytes);

#ifdef __cplusplus
}
#endif
#endif
