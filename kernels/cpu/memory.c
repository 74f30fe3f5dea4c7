/*
 * Buffers. Everything that is handed out has been touched: memory that the plan counts is taken when the engine starts, not
 * found missing in a step.
 */
#include "kernels/cpu/device.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define HUGE_BYTES ((size_t)2 << 20)
#define ALIGNMENT ((size_t)64)

/* Maps bytes rounded up to the system's page at an address that is a multiple of HUGE_BYTES. */
static void *map_aligned(size_t bytes, size_t *mapped_bytes) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    size_t want;
    if (!add_size(bytes, HUGE_BYTES + page, &want)) {
        return NULL;
    }
    size_t length = (bytes + page - 1) / page * page;
    uint8_t *raw = mmap(NULL, length + HUGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (raw == MAP_FAILED) {
        return NULL;
    }
    size_t before = (HUGE_BYTES - (uintptr_t)raw % HUGE_BYTES) % HUGE_BYTES;
    if (before > 0) {
        munmap(raw, before);
    }
    if (HUGE_BYTES - before > 0) {
        munmap(raw + before + length, HUGE_BYTES - before);
    }
    *mapped_bytes = length;
    return raw + before;
}

perch_status cpu_region_open(size_t bytes, bool touch, const char *what, cpu_region *out, perch_error *err) {
    *out = (cpu_region){.bytes = bytes};
    size_t rounded;
    if (!add_size(bytes, ALIGNMENT, &rounded)) {
        return err_nomem(err, what);
    }
    if (bytes >= HUGE_BYTES) {
        out->data = map_aligned(bytes, &out->mapped_bytes);
    } else {
        rounded = bytes == 0 ? ALIGNMENT : (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
        out->data = aligned_alloc(ALIGNMENT, rounded);
    }
    if (out->data == NULL) {
        *out = (cpu_region){0};
        return err_set(err, PERCH_E_NOMEM, "out of memory: %zu bytes for %s", bytes, what);
    }
    if (out->mapped_bytes > 0) {
        (void)madvise(out->data, out->mapped_bytes, MADV_HUGEPAGE); /* advice: without it pages are small */
    }
    if (touch || out->mapped_bytes == 0) {
        memset(out->data, 0, out->mapped_bytes > 0 ? bytes : rounded);
    }
    return PERCH_OK;
}

void cpu_region_close(cpu_region *region) {
    if (region->mapped_bytes > 0) {
        munmap(region->data, region->mapped_bytes);
    } else {
        free(region->data);
    }
    *region = (cpu_region){0};
}

perch_status cpu_alloc(kernels_device *device, size_t bytes, void **out, perch_error *err) {
    *out = NULL;
    cpu_buffer *buffer = calloc(1, sizeof *buffer);
    if (buffer == NULL) {
        return err_nomem(err, "a device buffer");
    }
    perch_status status = cpu_region_open(bytes, true, "a device buffer", &buffer->region, err);
    if (status != PERCH_OK) {
        free(buffer);
        return status;
    }
    buffer->next = device->buffers;
    device->buffers = buffer;
    *out = buffer->region.data;
    return PERCH_OK;
}

/* Looks for the buffer: there are tens of them, and they are freed when the engine ends. */
void cpu_free(kernels_device *device, void *data) {
    cpu_buffer **link = &device->buffers;
    while (*link != NULL && (*link)->region.data != data) {
        link = &(*link)->next;
    }
    cpu_buffer *buffer = *link;
    if (data != NULL && buffer != NULL) {
        *link = buffer->next;
        cpu_region_close(&buffer->region);
        free(buffer);
    }
}

void cpu_free_all(kernels_device *device) {
    for (cpu_buffer *buffer = device->buffers, *next; buffer != NULL; buffer = next) {
        next = buffer->next;
        cpu_region_close(&buffer->region);
        free(buffer);
    }
    device->buffers = NULL;
}

perch_status cpu_upload(kernels_device *device, void *to, const void *from_host, size_t bytes, perch_error *err) {
    (void)device;
    (void)err;
    if (bytes > 0) {
        memcpy(to, from_host, bytes);
    }
    return PERCH_OK;
}

perch_status cpu_download(kernels_device *device, void *to_host, const void *from, size_t bytes, perch_error *err) {
    return cpu_upload(device, to_host, from, bytes, err);
}
