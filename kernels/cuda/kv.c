/*
 * KV memory. VMM: each page is physical memory of its own (cuMemCreate), made when the memory is opened; the slots are ranges
 * of addresses under which the mapping thread (mapper.c) puts them. A view of all pages side by side is always there, for copies.
 * TABLE: the pages are one allocation, and each slot has a table of its groups' addresses in device memory.
 *
 * Data is ordered by the compute stream: a copy of a page stands there between the steps before and after it, and so do the
 * changes of tables. Mappings are not. kv_execute is called under the engine's lock, so it queues copies and notes what slots are to
 * have, and waits for nothing; whoever queues what may touch a slot has that carried out first (cuda_kv_settle), which is
 * `begin`, upload and download.
 */
#include "kernels/cuda/device.h"

#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

uint64_t cuda_kv_page_granularity(const kernels_device *device) { return device->page_granularity; }

/* --- open */

static perch_status check_shape(const kernels_device *device, const kernels_kv *kv, perch_error *err) {
    bool table = kv->mapping == KERNELS_TABLE;
    uint64_t unit = table ? kv->group_bytes : device->page_granularity;
    if (device->kv.is_open) {
        return err_set(err, PERCH_E_INVALID, "the device's KV memory is open already");
    }
    if (!table && unit == 0) {
        return err_set(err, PERCH_E_UNSUPPORTED, "GPU %d, %s, can't map memory by pages: it needs mapping = table",
                       device->ordinal, device->name);
    }
    if (unit == 0 || kv->page_bytes == 0 || kv->page_bytes % unit != 0) {
        return err_set(err, PERCH_E_INVALID, "page_bytes = %" PRIu64 " is no multiple of %s, %" PRIu64 " bytes",
                       kv->page_bytes, table ? "a group" : "the GPU's page", unit);
    }
    if (kv->n_pages == 0 || kv->n_slots == 0 || kv->pages_per_slot == 0) {
        return err_set(err, PERCH_E_INVALID, "KV memory of %u pages in %u slots of %u pages", kv->n_pages, kv->n_slots,
                       kv->pages_per_slot);
    }
    size_t bytes;
    if ((uint64_t)kv->n_slots * kv->pages_per_slot > UINT32_MAX || !mul_size(kv->n_pages, kv->page_bytes, &bytes) ||
        !mul_size((size_t)kv->n_slots * kv->pages_per_slot, kv->page_bytes, &bytes)) {
        return err_set(err, PERCH_E_NO_ROOM,
                       "%u slots of %u pages of %" PRIu64 " bytes are more than can be mapped: raise page_bytes",
                       kv->n_slots, kv->pages_per_slot, kv->page_bytes);
    }
    return PERCH_OK;
}

/* A pool that does not fit is an error of the plan, with the figures. */
static perch_status no_room(const kernels_device *device, size_t bytes, perch_error *err) {
    size_t left = 0, total = 0;
    if (cudaMemGetInfo(&left, &total) != cudaSuccess) {
        (void)cudaGetLastError();
    }
    return err_set(err, PERCH_E_NO_ROOM,
                   "the KV pool of %u pages, %zu bytes, lacks %zu bytes; %zu of the %zu bytes of GPU %d are free",
                   device->kv.shape.n_pages, device->kv.pool_bytes, bytes, left, total, device->ordinal);
}

static perch_status create_pages(kernels_device *device, perch_error *err) {
    cuda_kv *kv = &device->kv;
    const CUmemAllocationProp prop = {.type = CU_MEM_ALLOCATION_TYPE_PINNED,
                                      .location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = device->handle}};
    kv->pages = calloc(kv->shape.n_pages, sizeof *kv->pages);
    if (kv->pages == NULL) {
        return err_nomem(err, "the KV pages");
    }
    for (; kv->n_created < kv->shape.n_pages; kv->n_created++) {
        CUresult e = cuMemCreate(&kv->pages[kv->n_created], kv->shape.page_bytes, &prop, 0);
        if (e == CUDA_ERROR_OUT_OF_MEMORY) {
            return no_room(device, (kv->shape.n_pages - kv->n_created) * kv->shape.page_bytes, err);
        }
        perch_status status = cuda_check_driver(device, e, "making a KV page", err);
        if (status != PERCH_OK) {
            return status;
        }
    }
    return PERCH_OK;
}

static perch_status reserve_addresses(kernels_device *device, size_t bytes, CUdeviceptr *out, perch_error *err) {
    CUresult e = cuMemAddressReserve(out, bytes, 0, 0, 0);
    if (e == CUDA_ERROR_OUT_OF_MEMORY) {
        return err_set(err, PERCH_E_NO_ROOM, "GPU %d has no %zu bytes of addresses for %u KV slots of %u pages",
                       device->ordinal, bytes, device->kv.shape.n_slots, device->kv.shape.pages_per_slot);
    }
    return cuda_check_driver(device, e, "reserving addresses for KV slots", err);
}

static perch_status view_pages(kernels_device *device, perch_error *err) {
    cuda_kv *kv = &device->kv;
    const CUmemAccessDesc access = {.location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = device->handle},
                                    .flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE};
    const size_t page_bytes = kv->shape.page_bytes;
    perch_status status = PERCH_OK;
    for (; kv->n_viewed < kv->shape.n_pages && status == PERCH_OK; kv->n_viewed += status == PERCH_OK) {
        CUresult e = cuMemMap(kv->pool + kv->n_viewed * page_bytes, page_bytes, 0, kv->pages[kv->n_viewed], 0);
        status = cuda_check_driver(device, e, "mapping the KV pages", err);
    }
    return status == PERCH_OK ? cuda_check_driver(device, cuMemSetAccess(kv->pool, kv->pool_bytes, &access, 1),
                                                  "opening the KV pages", err)
                              : status;
}

static perch_status open_vmm(kernels_device *device, perch_error *err) {
    cuda_kv *kv = &device->kv;
    kv->slots_bytes = (size_t)kv->shape.n_slots * kv->shape.pages_per_slot * kv->shape.page_bytes;
    perch_status status = create_pages(device, err);
    if (status == PERCH_OK) {
        status = reserve_addresses(device, kv->pool_bytes, &kv->pool, err);
    }
    if (status == PERCH_OK) {
        status = view_pages(device, err);
    }
    if (status == PERCH_OK) {
        status = reserve_addresses(device, kv->slots_bytes, &kv->slots, err);
    }
    return status == PERCH_OK ? cuda_mapper_open(device, &kv->mapper, err) : status;
}

static perch_status open_table(kernels_device *device, perch_error *err) {
    cuda_kv *kv = &device->kv;
    const size_t n_places = (size_t)kv->shape.n_slots * kv->shape.pages_per_slot;
    size_t table_bytes;
    void *pool = NULL, *tables = NULL;
    kv->groups_per_page = (uint32_t)(kv->shape.page_bytes / kv->shape.group_bytes);
    if (kv->shape.page_bytes / kv->shape.group_bytes > CUDA_PIECE_BYTES / sizeof(uint8_t *) ||
        !mul_size(n_places, kv->groups_per_page * sizeof(uint8_t *), &table_bytes)) {
        return err_set(err, PERCH_E_NO_ROOM, "%" PRIu64 " groups a page are more than a table can hold",
                       kv->shape.page_bytes / kv->shape.group_bytes);
    }
    perch_status status = cuda_take(device, kv->pool_bytes, "the KV pool", &pool, err);
    kv->pool = (CUdeviceptr)(uintptr_t)pool;
    if (status == PERCH_E_NOMEM) {
        return no_room(device, kv->pool_bytes, err);
    }
    if (status == PERCH_OK) {
        status = cuda_take(device, table_bytes, "the KV slots' tables", &tables, err);
        kv->tables = tables;
    }
    if (status == PERCH_E_NOMEM) {
        return no_room(device, table_bytes, err);
    }
    if (status == PERCH_OK) {
        status = cuda_check(device, cudaMemsetAsync(tables, 0, table_bytes, device->compute),
                            "emptying the KV slots' tables", err);
    }
    return status == PERCH_OK ? cuda_changes_open(&kv->changes, n_places, err) : status;
}

perch_status cuda_kv_open(kernels_device *device, const kernels_kv *shape, perch_error *err) {
    cuda_kv *kv = &device->kv;
    perch_status status = cuda_enter(device, err);
    if (status != PERCH_OK || (status = check_shape(device, shape, err)) != PERCH_OK) {
        return status;
    }
    *kv = (cuda_kv){.is_open = true, .shape = *shape, .pool_bytes = (size_t)shape->n_pages * shape->page_bytes};
    status = shape->mapping == KERNELS_TABLE ? open_table(device, err) : open_vmm(device, err);
    if (status != PERCH_OK) {
        cuda_kv_close(device);
    }
    return status;
}

void cuda_kv_close(kernels_device *device) {
    cuda_kv *kv = &device->kv;
    if (!kv->is_open) {
        return;
    }
    cuda_host_close(device);
    (void)cudaSetDevice(device->ordinal);
    (void)cudaStreamSynchronize(device->compute);
    cuda_mapper_close(kv->mapper);
    if (kv->shape.mapping == KERNELS_TABLE) {
        cuda_changes_close(&kv->changes);
        (void)cudaFree(kv->tables);
        (void)cudaFree((void *)(uintptr_t)kv->pool);
    } else {
        for (uint32_t i = 0; i < kv->n_viewed; i++) {
            (void)cuMemUnmap(kv->pool + i * kv->shape.page_bytes, kv->shape.page_bytes);
        }
        for (uint32_t i = 0; i < kv->n_created; i++) {
            (void)cuMemRelease(kv->pages[i]);
        }
        if (kv->pool != 0) {
            (void)cuMemAddressFree(kv->pool, kv->pool_bytes);
        }
        if (kv->slots != 0) {
            (void)cuMemAddressFree(kv->slots, kv->slots_bytes);
        }
        free(kv->pages);
    }
    *kv = (cuda_kv){0};
}

/* --- commands */

static uint8_t *page_address(const cuda_kv *kv, uint32_t page) {
    return (uint8_t *)(uintptr_t)kv->pool + page * kv->shape.page_bytes;
}

static uint8_t **table_place(const cuda_kv *kv, size_t place) { return kv->tables + place * kv->groups_per_page; }

kv_view cuda_kv_slot(const kernels_device *device, uint32_t slot) {
    const cuda_kv *kv = &device->kv;
    assert(kv->is_open && slot < kv->shape.n_slots);
    if (kv->shape.mapping == KERNELS_TABLE) {
        return (kv_view){.base = NULL, .blocks = table_place(kv, (size_t)slot * kv->shape.pages_per_slot)};
    }
    uint64_t at = (uint64_t)slot * kv->shape.pages_per_slot * kv->shape.page_bytes;
    return (kv_view){.base = (uint8_t *)(uintptr_t)(kv->slots + at), .blocks = NULL};
}

/* A command that could reach outside of the KV memory is a bug of the caller's, but not one to overwrite memory for. */
static bool command_fits(const kernels_kv *kv, const kv_command *c) {
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

static perch_status copy_page(kernels_device *device, const kv_command *c, perch_error *err) {
    const cuda_kv *kv = &device->kv;
    return cuda_check(device,
                      cudaMemcpyAsync(page_address(kv, c->page), page_address(kv, c->source), kv->shape.page_bytes,
                                      cudaMemcpyDeviceToDevice, device->compute),
                      "copying a KV page", err);
}

/* MAP and UNMAP from the first on are noted up to the next command that is another. Returns how many. */
static size_t note_changes(kernels_device *device, const kv_command *commands, size_t n) {
    cuda_kv *kv = &device->kv;
    size_t length = 1;
    while (length < n && command_fits(&kv->shape, &commands[length]) && commands[length].op != KV_COPY) {
        length++;
    }
    if (kv->mapper != NULL) {
        cuda_mapper_push(kv->mapper, commands, length);
        return length;
    }
    for (size_t i = 0; i < length; i++) {
        const kv_command *c = &commands[i];
        cuda_changes_note(&kv->changes, (size_t)c->slot * kv->shape.pages_per_slot + c->index,
                          c->op == KV_MAP ? c->page : CUDA_NO_PAGE);
    }
    return length;
}

perch_status cuda_kv_execute(kernels_device *device, const kv_command *commands, size_t n, perch_error *err) {
    const cuda_kv *kv = &device->kv;
    perch_status status = cuda_enter(device, err);
    if (status == PERCH_OK && device->pass.open) { /* of which nobody can say yet when it is done with its slots */
        return err_set(err, PERCH_E_INVALID, "KV commands in the middle of a pass of GPU %d", device->ordinal);
    }
    for (size_t i = 0; i < n && status == PERCH_OK;) {
        const kv_command *c = &commands[i];
        if (!command_fits(&kv->shape, c)) {
            return err_set(err, PERCH_E_INVALID,
                           "KV command %zu (op %u, slot %u, index %u, page %u, source %u) does not fit", i, c->op,
                           c->slot, c->index, c->page, c->source);
        }
        if (c->op == KV_COPY) {
            status = copy_page(device, c, err);
            i++;
        } else {
            i += note_changes(device, c, n - i);
        }
    }
    return status;
}

/* --- settling */

static void fill_addresses(const cuda_kv *kv, uint32_t page, uint8_t **addresses) {
    for (uint32_t g = 0; g < kv->groups_per_page; g++) {
        addresses[g] = page != CUDA_NO_PAGE ? page_address(kv, page) + g * kv->shape.group_bytes : NULL;
    }
}

/* Changes of places side by side, as one change of the tables. */
static perch_status change_tables(kernels_device *device, const cuda_change *run, size_t n, perch_error *err) {
    const cuda_kv *kv = &device->kv;
    const size_t bytes = n * kv->groups_per_page * sizeof(uint8_t *);
    void *piece;
    perch_status status = cuda_staging_take(device, bytes, &piece, err);
    if (status != PERCH_OK) {
        return status;
    }
    for (size_t i = 0; i < n; i++) {
        fill_addresses(kv, run[i].page, (uint8_t **)piece + i * kv->groups_per_page);
    }
    return cuda_check(
        device, cudaMemcpyAsync(table_place(kv, run->place), piece, bytes, cudaMemcpyHostToDevice, device->compute),
        "changing the KV slots' tables", err);
}

static perch_status settle_tables(kernels_device *device, perch_error *err) {
    enum { MOST = 512 };
    cuda_kv *kv = &device->kv;
    const size_t of_piece = CUDA_PIECE_BYTES / (kv->groups_per_page * sizeof(uint8_t *)),
                 most = of_piece < MOST ? of_piece : MOST;
    cuda_change run[MOST], next;
    size_t n = 0;
    perch_status status = PERCH_OK;
    bool any = cuda_changes_take(&kv->changes, &next);
    while (any && status == PERCH_OK) {
        run[n++] = next;
        any = cuda_changes_take(&kv->changes, &next);
        if (!any || n == most || next.place != run[0].place + n) {
            status = change_tables(device, run, n, err);
            n = 0;
        }
    }
    return status;
}

perch_status cuda_kv_settle(kernels_device *device, perch_error *err) {
    const cuda_kv *kv = &device->kv;
    return kv->mapper != NULL ? cuda_mapper_wait(kv->mapper, err) : kv->is_open ? settle_tables(device, err) : PERCH_OK;
}
