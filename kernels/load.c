/* load: the CUDA backend from its shared object, so that one build of perch runs on machines with and without CUDA. */
#include "kernels/kernels.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#define LIBRARY "libperch_cuda.so.0"

/* What came of the one attempt. */
static struct {
    const kernels_backend *backend;
    char why[sizeof((perch_error *)NULL)->message];
} loaded;

static void fail(const char *what, const char *reason) {
    snprintf(loaded.why, sizeof loaded.why, "%s%s", what, reason ? reason : "it can't be loaded");
}

static void load(void) {
    void *library = dlopen(LIBRARY, RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        fail("no CUDA backend: ", dlerror());
        return;
    }
    kernels_cuda_fn get = NULL;
    void *symbol = dlsym(library, KERNELS_CUDA_SYMBOL);
    memcpy(&get, &symbol, sizeof get); /* C has no cast from an object's address to a function's */
    loaded.backend = symbol ? get(KERNELS_ABI) : NULL;
    if (!loaded.backend || loaded.backend->abi != KERNELS_ABI) {
        loaded.backend = NULL;
        fail(LIBRARY, " belongs to another build of perch");
    }
}

perch_status kernels_cuda(const kernels_backend **out, perch_error *err) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, load);
    *out = loaded.backend;
    return loaded.backend ? PERCH_OK : err_set(err, PERCH_E_UNSUPPORTED, "%s", loaded.why);
}
