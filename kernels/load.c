/* load: the CUDA backend from its shared object, so that one build of perch runs on machines with and without CUDA. */
#include "kernels/abi.h"

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

/* Whose library it is that the dynamic linker lacks. */
static const char *owner(const char *reason) {
    return strncmp(reason, "libcuda.so", 10) == 0       ? " (it comes with the NVIDIA driver)"
           : strncmp(reason, "libcublasLt.so", 14) == 0 ? " (it is CUDA's cuBLAS)"
                                                        : "";
}

static void load(void) {
    void *library = dlopen(LIBRARY, RTLD_NOW | RTLD_LOCAL);
    if (library == NULL) {
        const char *reason = dlerror();
        reason = reason != NULL ? reason : LIBRARY " can't be loaded";
        snprintf(loaded.why, sizeof loaded.why, "no CUDA backend: %s%s", reason, owner(reason));
        return;
    }
    kernels_cuda_fn get = NULL;
    void *symbol = dlsym(library, KERNELS_CUDA_SYMBOL);
    memcpy(&get, &symbol, sizeof get); /* C has no cast from an object's address to a function's */
    const kernels_backend *backend = get != NULL ? get(KERNELS_ABI) : NULL;
    if (backend == NULL || backend->abi != KERNELS_ABI) {
        snprintf(loaded.why, sizeof loaded.why, "no CUDA backend: %s belongs to another build of perch", LIBRARY);
        return;
    }
    loaded.backend = backend;
}

perch_status kernels_cuda(const kernels_backend **out, perch_error *err) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, load);
    *out = loaded.backend;
    return loaded.backend != NULL ? PERCH_OK : err_set(err, PERCH_E_UNSUPPORTED, "%s", loaded.why);
}
