/*
 * KV memory. The pages are one memfd, allocated in full when it is opened. With `mapping = vmm` the slots lie side by side in
 * one reserved range of addresses that can't be accessed. To map a page is to map its part of the memfd over its place, to
 * unmap it is to reserve that place again; the processor's own page tables do the rest. A page may be at several places.
 * What `mapping = table` does instead is in kv_table.c.
 *
 * Each mapped run that continues neither its neighbour's place nor its page is an area of its own to the kernel, which
 * allows a process vm.max_map_count of them. kv_open refuses shapes that could exceed it, so that no step ever does.
 */
#include "kernels/cpu/device.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

/* Areas that the rest of the process may come to need beside those it has: threads' stacks, buffers, the host's own. */
#define SPARE_AREAS 4096u
#define COPY_BYTES ((size_t)256 << 10)
#define ALLOCATE_BYTES ((size_t)64 << 20)
/* Slots begin at a multiple of this, so that huge pages can serve them. */
#define SLOT_ALIGNMENT ((size_t)2 << 20)

uint64_t cpu_kv_page_granularity(const kernels_device *device) {
    (void)device;
    return (uint64_t)sysconf(_SC_PAGESIZE);
}

/* vm.max_map_count less the areas this process has. Where the kernel does not say: no limit. */
static uint64_t areas_left(uint64_t *allowed) {
    *allowed = UINT64_MAX;
    FILE *file = fopen("/proc/sys/vm/max_map_count", "re");
    if (file == NULL) {
        return UINT64_MAX;
    }
    bool found = fscanf(file, "%" SCNu64, allowed) == 1;
    fclose(file);
    FILE *maps = found ? fopen("/proc/self/maps", "re") : NULL;
    if (maps == NULL) {
        *allowed = UINT64_MAX;
        return UINT64_MAX;
    }
    uint64_t used = SPARE_AREAS;
    for (int c = getc(maps); c != EOF; c = getc(maps)) {
        used += c == '\n';
    }
    fclose(maps);
    return *allowed > used ? *allowed - used : 0;
}

static perch_status check_vmm(const kernels_kv *config, perch_error *err) {
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
    if (config->page_bytes == 0 || config->page_bytes % page != 0) {
        return err_set(err, PERCH_E_INVALID, "page_bytes = %" PRIu64 " is no multiple of the system's page, %" PRIu64,
                       config->page_bytes, page);
    }
    /* Each place may be an area, and what is free behind a slot's last one. */
    uint64_t areas = (uint64_t)config->n_slots * ((uint64_t)config->pages_per_slot + 1);
    uint64_t allowed;
    uint64_t left = areas_left(&allowed);
    if (areas > left) {
        return err_set(err, PERCH_E_NO_ROOM,
                       "%u slots of %u pages could need %" PRIu64 " mappings; the system's vm.max_map_count of %" PRIu64
                       " leaves %" PRIu64 ": raise page_bytes (now %" PRIu64 ") or vm.max_map_count",
                       config->n_slots, config->pages_per_slot, areas, allowed, left, config->page_bytes);
    }
    return PERCH_OK;
}

static perch_status check_shape(const kernels_kv *config, perch_error *err) {
    if (config->n_pages == 0 || config->n_slots == 0 || config->pages_per_slot == 0) {
        return err_set(err, PERCH_E_INVALID, "KV memory of %u pages in %u slots of %u pages", config->n_pages,
                       config->n_slots, config->pages_per_slot);
    }
    return config->mapping == KERNELS_TABLE ? cpu_table_check(config, err) : check_vmm(config, err);
}

/* Whether the memory is there and a file may be that large; found out before, since the kernel answers with a signal. */
static perch_status check_room(size_t bytes, size_t table_bytes, perch_error *err) {
    struct rlimit limit;
    if (bytes > INT64_MAX ||
        (getrlimit(RLIMIT_FSIZE, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY && bytes > limit.rlim_cur)) {
        return err_set(err, PERCH_E_NO_ROOM, "%zu bytes of KV memory are more than a file may have (RLIMIT_FSIZE)",
                       bytes);
    }
    uint64_t left;
    perch_status status = host_free_bytes("", &left, err);
    if (status == PERCH_OK && bytes > left) {
        status = err_set(err, PERCH_E_NO_ROOM, "%zu bytes of KV memory do not fit into the %" PRIu64 " that are free",
                         bytes, left);
    } else if (status == PERCH_OK && table_bytes > left - bytes) {
        status = err_set(err, PERCH_E_NO_ROOM,
                         "tables of %zu bytes beside %zu of KV memory do not fit into the %" PRIu64 " that are free",
                         table_bytes, bytes, left);
    }
    return status;
}

/* The physical memory: n_pages * page_bytes, taken now (docs/adr/0012). */
static perch_status open_pages(cpu_kv *kv, size_t bytes, perch_error *err) {
    kv->fd = memfd_create("perch-kv", MFD_CLOEXEC);
    if (kv->fd < 0) {
        return err_set(err, PERCH_E_DEVICE, "can't create the memfd of the KV memory: %s", strerror(errno));
    }
    if (ftruncate(kv->fd, (off_t)bytes) != 0) {
        return err_set(err, PERCH_E_NO_ROOM, "can't set the KV memory's size to %zu bytes: %s", bytes, strerror(errno));
    }
    for (size_t done = 0; done < bytes;) { /* in pieces: a signal makes the kernel give back what it has of one */
        size_t n = bytes - done < ALLOCATE_BYTES ? bytes - done : ALLOCATE_BYTES;
        if (fallocate(kv->fd, 0, (off_t)done, (off_t)n) == 0) {
            done += n;
        } else if (errno != EINTR) {
            return err_set(err, PERCH_E_NO_ROOM, "can't allocate %zu bytes of KV memory: %s", bytes, strerror(errno));
        }
    }
    return PERCH_OK;
}

static perch_status reserve_slots(cpu_kv *kv, perch_error *err) {
    size_t bytes;
    if (!mul_size((size_t)kv->n_slots * kv->pages_per_slot, kv->page_bytes, &bytes) ||
        !add_size(bytes, SLOT_ALIGNMENT, &kv->reserved_bytes)) {
        return err_set(err, PERCH_E_NO_ROOM, "%u slots of %u pages of %zu bytes exceed the address space", kv->n_slots,
                       kv->pages_per_slot, kv->page_bytes);
    }
    void *base = mmap(NULL, kv->reserved_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED) {
        return err_set(err, PERCH_E_NO_ROOM, "can't reserve %zu bytes of addresses for %u KV slots: %s",
                       kv->reserved_bytes, kv->n_slots, strerror(errno));
    }
    kv->reservation = base;
    kv->base = kv->reservation + (SLOT_ALIGNMENT - (uintptr_t)base % SLOT_ALIGNMENT) % SLOT_ALIGNMENT;
    return PERCH_OK;
}

perch_status cpu_kv_open(kernels_device *device, const kernels_kv *config, perch_error *err) {
    cpu_kv *kv = &device->kv;
    if (kv->fd >= 0) {
        return err_set(err, PERCH_E_INVALID, "the device's KV memory is open already");
    }
    perch_status status = check_shape(config, err);
    if (status != PERCH_OK) {
        return status;
    }
    kv->mapping = config->mapping;
    kv->page_bytes = (size_t)config->page_bytes;
    kv->n_pages = config->n_pages;
    kv->n_slots = config->n_slots;
    kv->pages_per_slot = config->pages_per_slot;
    const bool table = kv->mapping == KERNELS_TABLE;
    size_t bytes, table_bytes = 0;
    if (!mul_size(kv->page_bytes, kv->n_pages, &bytes)) {
        status = err_set(err, PERCH_E_NO_ROOM, "%u pages of %zu bytes", kv->n_pages, kv->page_bytes);
        goto fail;
    }
    kv->copy_buffer = malloc(COPY_BYTES);
    if (kv->copy_buffer == NULL) {
        status = err_nomem(err, "the KV copy buffer");
        goto fail;
    }
    status = table ? cpu_table_plan(kv, (size_t)config->group_bytes, &table_bytes, err) : reserve_slots(kv, err);
    if (status == PERCH_OK) {
        status = check_room(bytes, table_bytes, err);
    }
    if (status == PERCH_OK) {
        status = open_pages(kv, bytes, err);
    }
    if (status == PERCH_OK && table) {
        status = cpu_table_open(kv, bytes, table_bytes, err);
    }
    if (status != PERCH_OK) {
        goto fail;
    }
    return PERCH_OK;
fail:
    cpu_kv_close(device);
    return status;
}

void cpu_kv_close(kernels_device *device) {
    cpu_kv *kv = &device->kv;
    cpu_host_close(device);
    cpu_table_close(kv);
    if (kv->reservation != NULL) {
        munmap(kv->reservation, kv->reserved_bytes);
    }
    if (kv->fd >= 0) {
        close(kv->fd);
    }
    free(kv->copy_buffer);
    *kv = (cpu_kv){.fd = -1};
}

static uint8_t *place(const cpu_kv *kv, uint32_t slot, uint32_t index) {
    return kv->base + ((size_t)slot * kv->pages_per_slot + index) * kv->page_bytes;
}

kv_view cpu_kv_slot(const kernels_device *device, uint32_t slot) {
    const cpu_kv *kv = &device->kv;
    assert(slot < kv->n_slots);
    kv_view view = {NULL, NULL};
    if (kv->mapping == KERNELS_TABLE) {
        view.blocks = cpu_table_place(kv, slot, 0);
    } else {
        view.base = place(kv, slot, 0);
    }
    return view;
}

static perch_status map_run(const cpu_kv *kv, const kv_command *first, size_t n, perch_error *err) {
    void *at = mmap(place(kv, first->slot, first->index), n * kv->page_bytes, PROT_READ | PROT_WRITE,
                    MAP_FIXED | MAP_SHARED, kv->fd, (off_t)(first->page * kv->page_bytes));
    if (at == MAP_FAILED) {
        return err_set(err, PERCH_E_DEVICE, "can't map %zu KV pages from %u to slot %u, place %u: %s", n, first->page,
                       first->slot, first->index, strerror(errno));
    }
    return PERCH_OK;
}

static perch_status unmap_run(const cpu_kv *kv, const kv_command *first, size_t n, perch_error *err) {
    void *at = mmap(place(kv, first->slot, first->index), n * kv->page_bytes, PROT_NONE,
                    MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED) {
        return err_set(err, PERCH_E_DEVICE, "can't unmap %zu KV pages of slot %u from place %u: %s", n, first->slot,
                       first->index, strerror(errno));
    }
    return PERCH_OK;
}

bool cpu_kv_move(const cpu_kv *kv, kernels_direction direction, uint64_t offset, uint8_t *data, size_t n) {
    while (n > 0) {
        ssize_t done =
            direction == KERNELS_LOAD ? pwrite(kv->fd, data, n, (off_t)offset) : pread(kv->fd, data, n, (off_t)offset);
        if (done < 0 && errno == EINTR) {
            continue;
        }
        if (done <= 0) {
            errno = done < 0 ? errno : EIO;
            return false;
        }
        data += done;
        n -= (size_t)done;
        offset += (uint64_t)done;
    }
    return true;
}

/* Through the file: no mapping is made, so none is left to count as resident. */
static perch_status copy_page(const cpu_kv *kv, const kv_command *command, perch_error *err) {
    uint64_t from = command->source * kv->page_bytes, to = command->page * kv->page_bytes;
    for (size_t done = 0; done < kv->page_bytes; done += COPY_BYTES) {
        size_t n = kv->page_bytes - done < COPY_BYTES ? kv->page_bytes - done : COPY_BYTES;
        if (!cpu_kv_move(kv, KERNELS_STORE, from + done, kv->copy_buffer, n) ||
            !cpu_kv_move(kv, KERNELS_LOAD, to + done, kv->copy_buffer, n)) {
            return err_set(err, PERCH_E_DEVICE, "can't copy KV page %u to %u: %s", command->source, command->page,
                           strerror(errno));
        }
    }
    return PERCH_OK;
}

/* A command that could reach outside of the KV memory is a bug of the caller's, but not one to overwrite memory for. */
static bool command_fits(const cpu_kv *kv, const kv_command *c) {
    switch (c->op) {
    case KV_MAP:
        return c->slot < kv->n_slots && c->index < kv->pages_per_slot && c->page < kv->n_pages;
    case KV_UNMAP:
        return c->slot < kv->n_slots && c->index < kv->pages_per_slot;
    case KV_COPY:
        return c->page < kv->n_pages && c->source < kv->n_pages;
    default:
        return false;
    }
}

/* How many of the commands from the first on make one run of places (and pages). */
static size_t run_length(const cpu_kv *kv, const kv_command *first, size_t n) {
    size_t length = 1;
    while (length < n && command_fits(kv, &first[length]) && first[length].op == first->op &&
           first[length].slot == first->slot && first[length].index == first->index + length &&
           (first->op == KV_UNMAP || first[length].page == first->page + length)) {
        length++;
    }
    return length;
}

perch_status cpu_kv_execute(kernels_device *device, const kv_command *commands, size_t n, perch_error *err) {
    const cpu_kv *kv = &device->kv;
    for (size_t i = 0; i < n;) {
        const kv_command *c = &commands[i];
        if (!command_fits(kv, c)) {
            return err_set(err, PERCH_E_INVALID,
                           "KV command %zu (op %u, slot %u, index %u, page %u, source %u) does not fit", i, c->op,
                           c->slot, c->index, c->page, c->source);
        }
        if (kv->mapping == KERNELS_TABLE && c->op != KV_COPY) {
            cpu_table_execute(kv, c);
            i++;
            continue;
        }
        size_t length = c->op == KV_COPY ? 1 : run_length(kv, c, n - i);
        perch_status status = c->op == KV_MAP     ? map_run(kv, c, length, err)
                              : c->op == KV_UNMAP ? unmap_run(kv, c, length, err)
                                                  : copy_page(kv, c, err);
        if (status != PERCH_OK) {
            return status;
        }
        i += length;
    }
    return PERCH_OK;
}
