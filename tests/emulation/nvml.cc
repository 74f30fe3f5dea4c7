/*
 * A stand-in for NVML's part that the CUDA backend asks: what the emulated device has given out. A library of its own, which is loaded by
 * name as the driver's is.
 */
#include "tests/emulation/emulation.h"

#define EXPORTED __attribute__((visibility("default")))

struct nvml_memory {
    unsigned long long total, left, used;
};

extern "C" {

EXPORTED int nvmlInit_v2(void);
EXPORTED int nvmlShutdown(void);
EXPORTED int nvmlDeviceGetHandleByPciBusId_v2(const char *bus_id, void **device);
EXPORTED int nvmlDeviceGetMemoryInfo(void *device, nvml_memory *out);

int nvmlInit_v2(void) { return 0; }

int nvmlShutdown(void) { return 0; }

int nvmlDeviceGetHandleByPciBusId_v2(const char *bus_id, void **device) {
    *device = nullptr;
    return bus_id[8] == ':' ? 0 : 2;
}

int nvmlDeviceGetMemoryInfo(void *, nvml_memory *out) {
    *out = {};
    out->used = emulation_bytes();
    return 0;
}

} // extern "C"
