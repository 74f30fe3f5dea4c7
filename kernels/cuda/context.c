/*
 * What opening a GPU takes of its memory: the driver's context, cuBLASLt's handle and workspace. CUDA can't be asked what is free
 * before there is a context, so the driver's management library is, which comes with it (NVML; loaded here, as not every
 * container has it). It counts for the whole GPU: what others take or give back in between is counted too.
 */
#include "kernels/cuda/device.h"

#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

#define LIBRARY "libnvidia-ml.so.1"

/* Of NVML's interface, which keeps to what it was: 0 is success everywhere. */
typedef struct nvml_memory {
    unsigned long long total, left, used;
} nvml_memory;

typedef struct nvml {
    int (*init)(void);
    int (*shutdown)(void);
    int (*find)(const char *bus_id, void **device);
    int (*memory)(void *device, nvml_memory *out);
} nvml;

/* C has no cast from an object's address to a function's. */
static bool find_symbol(void *library, const char *name, void *function) {
    void *symbol = dlsym(library, name);
    memcpy(function, &symbol, sizeof symbol);
    return symbol != NULL;
}

bool cuda_used_bytes(const struct cudaDeviceProp *prop, uint64_t *used) {
    char bus_id[32];
    nvml n;
    void *device = NULL;
    nvml_memory memory;
    void *library = dlopen(LIBRARY, RTLD_NOW | RTLD_LOCAL);
    bool known = library != NULL && find_symbol(library, "nvmlInit_v2", &n.init) &&
                 find_symbol(library, "nvmlShutdown", &n.shutdown) &&
                 find_symbol(library, "nvmlDeviceGetHandleByPciBusId_v2", &n.find) &&
                 find_symbol(library, "nvmlDeviceGetMemoryInfo", &n.memory) && n.init() == 0;
    if (known) {
        snprintf(bus_id, sizeof bus_id, "%08x:%02x:%02x.0", (unsigned)prop->pciDomainID, (unsigned)prop->pciBusID,
                 (unsigned)prop->pciDeviceID);
        known = n.find(bus_id, &device) == 0 && n.memory(device, &memory) == 0;
        *used = known ? memory.used : 0;
        (void)n.shutdown();
    }
    if (library != NULL) {
        (void)dlclose(library);
    }
    return known;
}
