/*
 * KV memory with `mapping = table`. The pages stay where they are, side by side in one mapping of the memfd; a slot is an array
 * of its groups' addresses, and to map a page is to write down where the groups in it lie. An entry without a page points to
 * addresses that can't be accessed, as many as a group has bytes: who reads there by mistake is stopped, as with `vmm`.
 */
#include "kernels/cpu/device.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

perch_status cpu_table_check(const kernels_kv *config, perch_error *err) {
    if (config->page_bytes == 0 || config->group_bytes == 0 || config->page_bytes % config->group_bytes != 0) {
        return err_set(err, PERCH_E_INVALID,
                       "page_bytes = %" PRIu64 " is no multiple of a KV group, %" PRIu64 " bytes, as a table needs",
                       config->page_bytes, config->group_bytes);
    }
    return PERCH_OK;
}

perch_status cpu_table_plan(cpu_kv *kv, size_t group_bytes, size_t *table_bytes, perch_error *err) {
    size_t n;
    kv->group_bytes = group_bytes;
    kv->groups_per_page = kv->page_bytes / group_bytes;
    if (!mul_size((size_t)kv->n_slots * kv->pages_per_slot, kv->groups_per_page, &n) ||
        !mul_size(n, sizeof *kv->blocks, table_bytes)) {
        return err_set(err, PERCH_E_NO_ROOM, "tables of %u slots of %u pages of %zu KV groups exceed the address space",
                       kv->n_slots, kv->pages_per_slot, kv->groups_per_page);
    }
    return PERCH_OK;
}

perch_status cpu_table_open(cpu_kv *kv, size_t pool_bytes, size_t table_bytes, perch_error *err) {
    void *pool = mmap(NULL, pool_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, kv->fd, 0);
    if (pool == MAP_FAILED) {
        return err_set(err, PERCH_E_NO_ROOM, "can't map %zu bytes of KV memory: %s", pool_bytes, strerror(errno));
    }
    kv->pool = pool;
    kv->pool_bytes = pool_bytes;
    void *absent = mmap(NULL, kv->group_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (absent == MAP_FAILED) {
        return err_set(err, PERCH_E_NO_ROOM, "can't reserve %zu bytes of addresses for an absent KV group: %s",
                       kv->group_bytes, strerror(errno));
    }
    kv->reservation = absent;
    kv->reserved_bytes = kv->group_bytes;
    kv->blocks = malloc(table_bytes);
    if (kv->blocks == NULL) {
        return err_nomem(err, "the KV slots' tables");
    }
    for (size_t i = 0; i < table_bytes / sizeof *kv->blocks; i++) {
        kv->blocks[i] = kv->reservation;
    }
    return PERCH_OK;
}

void cpu_table_close(cpu_kv *kv) {
    if (kv->pool != NULL) {
        munmap(kv->pool, kv->pool_bytes);
    }
    free(kv->blocks);
}

uint8_t **cpu_table_place(const cpu_kv *kv, uint32_t slot, uint32_t index) {
    return kv->blocks + ((size_t)slot * kv->pages_per_slot + index) * kv->groups_per_page;
}

void cpu_table_execute(const cpu_kv *kv, const kv_command *c) {
    uint8_t **blocks = cpu_table_place(kv, c->slot, c->index);
    for (size_t g = 0; g < kv->groups_per_page; g++) {
        blocks[g] = c->op == KV_MAP ? kv->pool + c->page * kv->page_bytes + g * kv->group_bytes : kv->reservation;
    }
}
