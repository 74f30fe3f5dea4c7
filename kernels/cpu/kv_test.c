/*
 * The mapping of KV pages, both ways: what is written through one slot is read through another that has the page, what is
 * unmapped can't be reached, runs are one call, and shapes that can't work are refused when the memory is opened.
 */
#include "kernels/cpu/device.h"
#include "kernels/cpu/pair_testing.h"

#include <inttypes.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#define N_PAGES 12u
#define N_SLOTS 3u
#define PAGES_PER_SLOT 8u

/* TABLE: a group, no multiple of anything that the system has; pages hold five of them. */
#define GROUP_BYTES ((uint64_t)3 * 1024 + 64)
#define GROUPS_PER_PAGE 5u

static perch_status kv_open(side s, uint64_t page_bytes, uint32_t n_pages, uint32_t n_slots, uint32_t pages_per_slot,
                            perch_error *err) {
    const kernels_kv kv = {
        .page_bytes = page_bytes, .n_pages = n_pages, .n_slots = n_slots, .pages_per_slot = pages_per_slot};
    return s.b->kv_open(s.d, &kv, err);
}

static side open_kv(kernels_mapping mapping, uint64_t *page_bytes) {
    side s = side_open_cpu(NULL, false, 1);
    *page_bytes = mapping == KERNELS_TABLE ? GROUPS_PER_PAGE * GROUP_BYTES : s.b->kv_page_granularity(s.d) * 2;
    const kernels_kv kv = {.mapping = mapping,
                           .page_bytes = *page_bytes,
                           .group_bytes = GROUP_BYTES,
                           .n_pages = N_PAGES,
                           .n_slots = N_SLOTS,
                           .pages_per_slot = PAGES_PER_SLOT};
    CHECK_OK(s.b->kv_open(s.d, &kv, ERR));
    return s;
}

/* Runs a test with either mapping. */
static void with_both(void (*test)(kernels_mapping mapping)) {
    test(KERNELS_VMM);
    test(KERNELS_TABLE);
}

/* Where a slot's place is now. A page's bytes are one run with either mapping. */
static uint8_t *at(side s, uint32_t slot, uint32_t index) {
    kv_view view = s.b->kv_slot(s.d, slot);
    return view.blocks != NULL ? view.blocks[(size_t)index * GROUPS_PER_PAGE] : view.base + index * s.d->kv.page_bytes;
}

static void execute(side s, const kv_command *commands, size_t n) { CHECK_OK(s.b->kv_execute(s.d, commands, n, ERR)); }

static void map(side s, uint32_t slot, uint32_t index, uint32_t page) {
    execute(s, &(kv_command){.op = KV_MAP, .slot = slot, .index = index, .page = page}, 1);
}

static void unmap(side s, uint32_t slot, uint32_t index) {
    execute(s, &(kv_command){.op = KV_UNMAP, .slot = slot, .index = index}, 1);
}

/*
 * What the kernel says lies at an address: its permissions ("rw-s", "---p"), whether it is our memfd, and how many areas the
 * range up to `end` consists of.
 */
typedef struct area {
    char permissions[5];
    bool is_memfd;
    size_t n_areas;
} area;

static area area_at(const uint8_t *from, const uint8_t *end) {
    area result = {.permissions = "none"};
    FILE *maps = fopen("/proc/self/maps", "r");
    char line[1024];
    while (maps != NULL && fgets(line, sizeof line, maps) != NULL) {
        uintptr_t low, high;
        char permissions[5];
        if (sscanf(line, "%" SCNxPTR "-%" SCNxPTR " %4s", &low, &high, permissions) != 3 || high <= (uintptr_t)from ||
            low >= (uintptr_t)end) {
            continue;
        }
        if (result.n_areas++ == 0) {
            memcpy(result.permissions, permissions, sizeof permissions);
            result.is_memfd = strstr(line, "memfd:perch-kv") != NULL;
        }
    }
    if (maps != NULL) {
        fclose(maps);
    }
    return result;
}

static bool is_mapped(const uint8_t *at) {
    area a = area_at(at, at + 1);
    return a.is_memfd && strcmp(a.permissions, "rw-s") == 0;
}

static void pages_show_on(kernels_mapping mapping) {
    uint64_t page_bytes;
    side s = open_kv(mapping, &page_bytes);
    map(s, 0, 0, 5);
    map(s, 0, 1, 7);
    map(s, 2, 3, 5);
    memset(at(s, 0, 0), 0x11, page_bytes);
    memset(at(s, 0, 1), 0x22, page_bytes);
    CU_ASSERT(at(s, 2, 3)[0] == 0x11 && at(s, 2, 3)[page_bytes - 1] == 0x11);
    at(s, 2, 3)[9] = 0x33;
    CU_ASSERT(at(s, 0, 0)[9] == 0x33);
    map(s, 0, 0, 7); /* what was mapped there is replaced */
    CU_ASSERT(at(s, 0, 0)[9] == 0x22);
    CU_ASSERT(at(s, 2, 3)[9] == 0x33);
    s.b->close(s.d);
}

static void a_page_shows_in_every_slot_that_has_it(void) { with_both(pages_show_on); }

static void pages_keep_on(kernels_mapping mapping) {
    uint64_t page_bytes;
    side s = open_kv(mapping, &page_bytes);
    for (uint32_t page = 0; page < N_PAGES; page++) {
        uint32_t index = page % PAGES_PER_SLOT;
        map(s, 1, index, page);
        CU_ASSERT(at(s, 1, index)[0] == 0);
        memset(at(s, 1, index), (int)page + 1, page_bytes);
        unmap(s, 1, index);
    }
    for (uint32_t page = 0; page < N_PAGES; page++) {
        map(s, 1, 4, page);
        CU_ASSERT(at(s, 1, 4)[0] == page + 1 && at(s, 1, 4)[page_bytes - 1] == page + 1);
    }
    s.b->close(s.d);
}

static void pages_keep_their_bytes_while_unmapped(void) { with_both(pages_keep_on); }

/* A slot's groups, one after the other through its table, are the bytes of its pages. */
static void a_table_has_every_group(void) {
    uint64_t page_bytes;
    side s = open_kv(KERNELS_TABLE, &page_bytes);
    uint8_t *const *blocks = s.b->kv_slot(s.d, 2).blocks;
    CU_ASSERT(s.b->kv_slot(s.d, 2).base == NULL);
    map(s, 2, 1, 11);
    map(s, 2, 0, 3);
    map(s, 2, PAGES_PER_SLOT - 1, 0);
    for (uint32_t g = 0; g < GROUPS_PER_PAGE; g++) {
        CU_ASSERT(blocks[g] == at(s, 2, 0) + g * GROUP_BYTES);
        CU_ASSERT(blocks[GROUPS_PER_PAGE + g] == blocks[g] + 8 * page_bytes); /* page 11 is 8 behind page 3 */
        CU_ASSERT(blocks[GROUPS_PER_PAGE * (PAGES_PER_SLOT - 1) + g] == blocks[g] - 3 * page_bytes);
    }
    for (uint32_t index = 2; index < PAGES_PER_SLOT - 1; index++) {
        CU_ASSERT(!is_mapped(at(s, 2, index)));
    }
    for (uint32_t slot = 0; slot < 2; slot++) { /* nor did the neighbours get anything */
        for (uint32_t index = 0; index < PAGES_PER_SLOT; index++) {
            CU_ASSERT(!is_mapped(at(s, slot, index)));
        }
    }
    s.b->close(s.d);
}

static sigjmp_buf after_fault;

static void on_fault(int signal) {
    (void)signal;
    siglongjmp(after_fault, 1);
}

/* Whether reading a byte faults. */
static bool faults(const volatile uint8_t *at) {
    struct sigaction action = {.sa_handler = on_fault, .sa_flags = SA_NODEFER}, before;
    sigaction(SIGSEGV, &action, &before);
    bool fault = sigsetjmp(after_fault, 1) != 0;
    if (!fault) {
        (void)*at;
    }
    sigaction(SIGSEGV, &before, NULL);
    return fault;
}

static void unmapped_on(kernels_mapping mapping) {
    uint64_t page_bytes;
    side s = open_kv(mapping, &page_bytes);
    uint64_t reach = mapping == KERNELS_TABLE ? GROUP_BYTES : page_bytes; /* one address's, by mistake */
    CU_ASSERT(!is_mapped(at(s, 1, 0)) && faults(at(s, 1, 0)));
    for (uint32_t i = 0; i < 3; i++) {
        map(s, 1, i, i);
    }
    CU_ASSERT(is_mapped(at(s, 1, 0)) && !faults(at(s, 1, 0)) && is_mapped(at(s, 1, 1)) && is_mapped(at(s, 1, 2)));
    CU_ASSERT(faults(at(s, 1, 3)));
    unmap(s, 1, 1);
    CU_ASSERT(is_mapped(at(s, 1, 0)) && !is_mapped(at(s, 1, 1)) && is_mapped(at(s, 1, 2)));
    CU_ASSERT(faults(at(s, 1, 1)) && faults(at(s, 1, 1) + reach - 1));
    area gone = area_at(at(s, 1, 1), at(s, 1, 1) + 1);
    CHECK_MSG(strcmp(gone.permissions, "---p") == 0, "%s", gone.permissions);
    for (uint32_t g = 0; g < GROUPS_PER_PAGE && mapping == KERNELS_TABLE; g++) {
        CU_ASSERT(faults(s.b->kv_slot(s.d, 1).blocks[GROUPS_PER_PAGE + g] + GROUP_BYTES - 1));
    }
    map(s, 1, 1, 9);
    CU_ASSERT(is_mapped(at(s, 1, 1)) && !faults(at(s, 1, 1)));
    unmap(s, 1, 7); /* what was never mapped may be unmapped */
    const uint8_t *last = at(s, 1, 0);
    s.b->kv_close(s.d);
    CU_ASSERT(!is_mapped(last));
    s.b->close(s.d);
}

static void what_is_unmapped_cannot_be_reached(void) { with_both(unmapped_on); }

static void runs_are_mapped_and_unmapped_at_once(void) {
    uint64_t page_bytes;
    side s = open_kv(KERNELS_VMM, &page_bytes);
    uint8_t *a = s.b->kv_slot(s.d, 0).base;
    kv_command commands[PAGES_PER_SLOT];
    for (uint32_t i = 0; i < PAGES_PER_SLOT; i++) {
        commands[i] = (kv_command){.op = KV_MAP, .slot = 0, .index = i, .page = i + 2};
    }
    commands[5].page = 0; /* breaks the run in two, and makes a third of one */
    execute(s, commands, PAGES_PER_SLOT);
    CHECK_MSG(area_at(a, a + 8 * page_bytes).n_areas == 3, "%zu areas", area_at(a, a + 8 * page_bytes).n_areas);
    for (uint32_t i = 0; i < PAGES_PER_SLOT; i++) {
        a[i * page_bytes] = (uint8_t)(100 + i);
        map(s, 2, 0, commands[i].page);
        CHECK_MSG(at(s, 2, 0)[0] == 100 + i, "place %u does not show page %u", i, commands[i].page);
        commands[i] = (kv_command){.op = KV_UNMAP, .slot = 0, .index = i};
    }
    execute(s, commands, PAGES_PER_SLOT);
    area left = area_at(a, a + 8 * page_bytes);
    CHECK_MSG(!left.is_memfd && left.n_areas == 1, "%zu areas, %s", left.n_areas, left.permissions);
    s.b->close(s.d);
}

/* Neighbours in one list that must not be taken for a run. */
static void run_ends_on(kernels_mapping mapping) {
    uint64_t page_bytes;
    side s = open_kv(mapping, &page_bytes);
    const kv_command commands[] = {
        {.op = KV_MAP, .slot = 0, .index = 7, .page = 3}, {.op = KV_MAP, .slot = 1, .index = 0, .page = 4},
        {.op = KV_MAP, .slot = 1, .index = 2, .page = 5}, {.op = KV_UNMAP, .slot = 1, .index = 3},
        {.op = KV_MAP, .slot = 2, .index = 4, .page = 6}, {.op = KV_MAP, .slot = 2, .index = 4, .page = 7},
        {.op = KV_MAP, .slot = 0, .index = 5, .page = 8}, {.op = KV_MAP, .slot = 1, .index = 6, .page = 9},
        {.op = KV_UNMAP, .slot = 1, .index = 0},          {.op = KV_UNMAP, .slot = 2, .index = 1},
    };
    static const bool wanted[N_SLOTS][PAGES_PER_SLOT] = {
        {[5] = true, [7] = true}, {[2] = true, [6] = true}, {[4] = true}};
    execute(s, commands, sizeof commands / sizeof commands[0]);
    uint32_t wrong = 0;
    for (uint32_t slot = 0; slot < N_SLOTS; slot++) {
        for (uint32_t i = 0; i < PAGES_PER_SLOT; i++) {
            wrong += is_mapped(at(s, slot, i)) != wanted[slot][i];
        }
    }
    CHECK_MSG(wrong == 0, "%u places", wrong);
    at(s, 2, 4)[0] = 77;
    map(s, 0, 0, 7);
    CU_ASSERT(at(s, 0, 0)[0] == 77);
    s.b->close(s.d);
}

static void runs_end_where_the_slot_the_place_or_the_operation_changes(void) { with_both(run_ends_on); }

static uint64_t resident_bytes(void) {
    uint64_t size = 0, pages = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    CU_ASSERT(file != NULL && fscanf(file, "%" SCNu64 " %" SCNu64, &size, &pages) == 2);
    if (file != NULL) {
        fclose(file);
    }
    return pages * (uint64_t)sysconf(_SC_PAGESIZE);
}

static void copies_on(kernels_mapping mapping) {
    side s = side_open_cpu(NULL, false, 1);
    /* Several pieces, the last of them short. */
    const uint64_t page_bytes = mapping == KERNELS_TABLE ? GROUPS_PER_PAGE * 640064 : (3 << 20) + 4096;
    const kernels_kv kv = {.mapping = mapping,
                           .page_bytes = page_bytes,
                           .group_bytes = page_bytes / GROUPS_PER_PAGE,
                           .n_pages = 20,
                           .n_slots = 1,
                           .pages_per_slot = 2};
    CHECK_OK(s.b->kv_open(s.d, &kv, ERR));
    test_rng rng = {1};
    map(s, 0, 0, 3);
    uint8_t *a = at(s, 0, 0);
    for (size_t i = 0; i < page_bytes; i += 8) {
        uint64_t value = test_rng_next(&rng);
        memcpy(a + i, &value, 8);
    }
    uint64_t before = resident_bytes();
    for (uint32_t page = 4; page < 20; page++) {
        execute(s, &(kv_command){.op = KV_COPY, .page = page, .source = page - 1}, 1);
    }
    uint64_t grown = resident_bytes() - before;
    CHECK_MSG(grown < page_bytes || resident_bytes() < before, "16 copies left %" PRIu64 " bytes resident", grown);
    map(s, 0, 1, 19);
    CU_ASSERT(memcmp(a, at(s, 0, 1), page_bytes) == 0);
    a[0] ^= 1;
    CU_ASSERT(at(s, 0, 1)[0] != a[0]); /* it is a copy */
    s.b->close(s.d);
}

static void copies_are_whole_and_leave_no_mapping(void) { with_both(copies_on); }

/* In order: what a copy takes is what the commands before it have made. */
static void order_on(kernels_mapping mapping) {
    uint64_t page_bytes;
    side s = open_kv(mapping, &page_bytes);
    map(s, 0, 0, 0);
    map(s, 0, 1, 1);
    at(s, 0, 0)[0] = 1;
    at(s, 0, 1)[0] = 2;
    const kv_command commands[] = {
        {.op = KV_COPY, .page = 2, .source = 0},          {.op = KV_COPY, .page = 0, .source = 1},
        {.op = KV_COPY, .page = 1, .source = 2},          {.op = KV_MAP, .slot = 0, .index = 1, .page = 0},
        {.op = KV_MAP, .slot = 0, .index = 0, .page = 1},
    };
    execute(s, commands, 5);
    CHECK_MSG(at(s, 0, 0)[0] == 1 && at(s, 0, 1)[0] == 2, "%d, %d", at(s, 0, 0)[0], at(s, 0, 1)[0]);
    s.b->close(s.d);
}

static void commands_are_executed_in_order(void) { with_both(order_on); }

static void bad_commands_on(kernels_mapping mapping) {
    uint64_t page_bytes;
    side s = open_kv(mapping, &page_bytes);
    const kv_command bad[] = {
        {.op = 0},
        {.op = 4},
        {.op = KV_MAP, .slot = N_SLOTS},
        {.op = KV_MAP, .index = PAGES_PER_SLOT},
        {.op = KV_MAP, .page = N_PAGES},
        {.op = KV_UNMAP, .slot = N_SLOTS},
        {.op = KV_UNMAP, .index = PAGES_PER_SLOT},
        {.op = KV_COPY, .page = N_PAGES},
        {.op = KV_COPY, .source = N_PAGES},
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        perch_error err = {0};
        kv_command two[] = {{.op = KV_MAP, .index = PAGES_PER_SLOT - 1, .page = N_PAGES - 1}, bad[i]};
        perch_status status = s.b->kv_execute(s.d, two, 2, &err);
        CHECK_MSG(status == PERCH_E_INVALID && strstr(err.message, "command 1") != NULL, "%zu: %d %s", i, status,
                  err.message);
    }
    s.b->close(s.d);
}

static void commands_that_do_not_fit_are_refused(void) { with_both(bad_commands_on); }

static void check_kv_refused(const kernels_kv *kv, perch_status wanted, const char *mention) {
    side s = side_open_cpu(NULL, false, 1);
    perch_error err = {0};
    perch_status status = s.b->kv_open(s.d, kv, &err);
    CHECK_MSG(status == wanted && strstr(err.message, mention) != NULL, "%s: %s", perch_status_name(status),
              err.message);
    CHECK_OK(kv_open(s, s.b->kv_page_granularity(s.d), 1, 1, 1, ERR)); /* nothing was left behind */
    s.b->close(s.d);
}

static void check_refused(uint64_t page_bytes, uint32_t n_pages, uint32_t n_slots, uint32_t pages_per_slot,
                          perch_status wanted, const char *mention) {
    const kernels_kv kv = {
        .page_bytes = page_bytes, .n_pages = n_pages, .n_slots = n_slots, .pages_per_slot = pages_per_slot};
    check_kv_refused(&kv, wanted, mention);
}

static void impossible_tables_are_refused(void) {
    static const struct {
        kernels_kv kv;
        perch_status status;
        const char *mention;
    } bad[] = {
        {{KERNELS_TABLE, 1000, 128, 1, 1, 1}, PERCH_E_INVALID, "page_bytes = 1000 is no multiple of a KV group, 128"},
        {{KERNELS_TABLE, 128, 256, 1, 1, 1}, PERCH_E_INVALID, "KV group, 256"},
        {{KERNELS_TABLE, 4096, 0, 1, 1, 1}, PERCH_E_INVALID, "KV group, 0"},
        {{KERNELS_TABLE, 0, 128, 1, 1, 1}, PERCH_E_INVALID, "page_bytes = 0"},
        {{KERNELS_TABLE, 128, 128, 1, 0, 1}, PERCH_E_INVALID, "0 slots"},
        {{KERNELS_TABLE, (uint64_t)1 << 40, 1 << 20, 1, 1, 1}, PERCH_E_NO_ROOM, "are free"},
        {{KERNELS_TABLE, (uint64_t)1 << 62, (uint64_t)1 << 60, 4, 1, 1}, PERCH_E_NO_ROOM, "pages of"},
        {{KERNELS_TABLE, 1 << 20, 128, 1, 1u << 20, 1u << 10}, PERCH_E_NO_ROOM, "tables of"},
        {{KERNELS_TABLE, (uint64_t)1 << 40, 128, 1, 1u << 16, 1u << 16}, PERCH_E_NO_ROOM, "address space"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        check_kv_refused(&bad[i].kv, bad[i].status, bad[i].mention);
    }
}

static void impossible_shapes_are_refused(void) {
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
    check_refused(page + 1, 1, 1, 1, PERCH_E_INVALID, "page_bytes");
    check_refused(0, 1, 1, 1, PERCH_E_INVALID, "page_bytes");
    check_refused(page, 0, 1, 1, PERCH_E_INVALID, "0 pages");
    check_refused(page, 1, 1, 0, PERCH_E_INVALID, "0 pages");
    check_refused(page, 1, 4096, 1u << 20, PERCH_E_NO_ROOM, "raise page_bytes");
    check_refused((uint64_t)1 << 40, 1, 1, 1, PERCH_E_NO_ROOM, "are free");
    check_refused((uint64_t)1 << 40, 1, 100, 100, PERCH_E_NO_ROOM, "addresses");
    check_refused((uint64_t)1 << 62, 4, 1, 1, PERCH_E_NO_ROOM, "pages of");
    check_refused((uint64_t)1 << 44, 1, 1u << 10, 1u << 10, PERCH_E_NO_ROOM, "raise page_bytes");
    check_refused((uint64_t)1 << 56, 1, 1u << 5, 1u << 5, PERCH_E_NO_ROOM, "address space");
    side s = side_open_cpu(NULL, false, 1);
    perch_error err = {0};
    CHECK_OK(kv_open(s, page, 1, 1, 1, ERR));
    CU_ASSERT(kv_open(s, page, 1, 1, 1, &err) == PERCH_E_INVALID);
    s.b->close(s.d);
}

/* The kernel would send SIGXFSZ. */
static void a_file_size_limit_is_an_error_and_no_signal(void) {
    struct rlimit before, lowered;
    getrlimit(RLIMIT_FSIZE, &before);
    lowered = before;
    lowered.rlim_cur = 1 << 20;
    CU_ASSERT(setrlimit(RLIMIT_FSIZE, &lowered) == 0);
    check_refused((uint64_t)1 << 20, 2, 1, 1, PERCH_E_NO_ROOM, "RLIMIT_FSIZE");
    setrlimit(RLIMIT_FSIZE, &before);
}

/* The pool is taken when it is opened: the file has all of its blocks before anything is mapped. */
static void the_pool_is_allocated_at_once(void) {
    side s = side_open_cpu(NULL, false, 1);
    const uint64_t page_bytes = 1 << 20;
    const uint32_t n_pages = 70;
    struct stat file = {0};
    CHECK_OK(kv_open(s, page_bytes, n_pages, 1, n_pages, ERR));
    CU_ASSERT(fstat(s.d->kv.fd, &file) == 0);
    CHECK_MSG((uint64_t)file.st_blocks * 512 >= n_pages * page_bytes, "%lld blocks", (long long)file.st_blocks);
    s.b->close(s.d);
}

int main(int argc, char **argv) {
    static const test_case tests[] = {
        {"a_page_shows_in_every_slot_that_has_it", a_page_shows_in_every_slot_that_has_it},
        {"pages_keep_their_bytes_while_unmapped", pages_keep_their_bytes_while_unmapped},
        {"a_table_has_every_group", a_table_has_every_group},
        {"what_is_unmapped_cannot_be_reached", what_is_unmapped_cannot_be_reached},
        {"runs_are_mapped_and_unmapped_at_once", runs_are_mapped_and_unmapped_at_once},
        {"runs_end_where_the_slot_the_place_or_the_operation_changes",
         runs_end_where_the_slot_the_place_or_the_operation_changes},
        {"copies_are_whole_and_leave_no_mapping", copies_are_whole_and_leave_no_mapping},
        {"commands_are_executed_in_order", commands_are_executed_in_order},
        {"commands_that_do_not_fit_are_refused", commands_that_do_not_fit_are_refused},
        {"impossible_shapes_are_refused", impossible_shapes_are_refused},
        {"impossible_tables_are_refused", impossible_tables_are_refused},
        {"a_file_size_limit_is_an_error_and_no_signal", a_file_size_limit_is_an_error_and_no_signal},
        {"the_pool_is_allocated_at_once", the_pool_is_allocated_at_once},
    };
    return test_main("cpu_kv_test", tests, sizeof tests / sizeof tests[0], argc, argv);
}
