/*
 * KV memory, both mappings: what is written through one slot is read through another that has the page, copies stand where
 * they were asked for, and nothing is taken away from work that is queued, whatever the order in which the GPU gets to it.
 */
#include "kernels/cuda/backend_testing.h"

#include <sched.h>

#define N_PAGES 12u
#define N_SLOTS 3u
#define PAGES_PER_SLOT 8u
#define GROUPS_PER_PAGE 4u

static const kernels_config config = {.dtype = KERNELS_BF16};

typedef struct memory {
    kernels_device *device;
    kernels_mapping mapping;
    uint64_t page_bytes;
} memory;

static bool open_kv(memory *m, kernels_mapping mapping, uint64_t seed) {
    testing_reset(seed);
    *m = (memory){.device = testing_open(&config), .mapping = mapping};
    if (m->device == NULL) {
        return false;
    }
    uint64_t granularity = cuda()->kv_page_granularity(m->device);
    m->page_bytes = mapping == KERNELS_TABLE ? GROUPS_PER_PAGE * 4096 : granularity;
    const kernels_kv kv = {.mapping = mapping,
                           .page_bytes = m->page_bytes,
                           .group_bytes = m->page_bytes / GROUPS_PER_PAGE,
                           .n_pages = N_PAGES,
                           .n_slots = N_SLOTS,
                           .pages_per_slot = PAGES_PER_SLOT};
    CHECK_OK(cuda()->kv_open(m->device, &kv, ERR));
    return true;
}

static void with_both(void (*test)(kernels_mapping mapping)) {
    test(KERNELS_VMM);
    test(KERNELS_TABLE);
}

static void execute(const memory *m, const kv_command *commands, size_t n) {
    CHECK_OK(cuda()->kv_execute(m->device, commands, n, ERR));
}

static void map(const memory *m, uint32_t slot, uint32_t index, uint32_t page) {
    execute(m, &(kv_command){.op = KV_MAP, .slot = slot, .index = index, .page = page}, 1);
}

static void unmap(const memory *m, uint32_t slot, uint32_t index) {
    execute(m, &(kv_command){.op = KV_UNMAP, .slot = slot, .index = index}, 1);
}

static void copy(const memory *m, uint32_t page, uint32_t source) {
    execute(m, &(kv_command){.op = KV_COPY, .page = page, .source = source}, 1);
}

/* Where the group lies that the slot's view says; NULL: the table has nothing there. */
static uint8_t *group_at(const memory *m, uint32_t slot, uint32_t group) {
    kv_view view = cuda()->kv_slot(m->device, slot);
    uint8_t *address = NULL;
    if (view.blocks == NULL) {
        return view.base + group * (m->page_bytes / GROUPS_PER_PAGE);
    }
    CHECK_OK(
        cuda()->download(m->device, &address, (const void *)(uintptr_t)(view.blocks + group), sizeof address, ERR));
    return address;
}

/* A page's bytes, by the slot: each group has the value and its own number. */
static void write_place(const memory *m, uint32_t slot, uint32_t index, uint8_t value) {
    size_t group_bytes = m->page_bytes / GROUPS_PER_PAGE;
    uint8_t *bytes = malloc(group_bytes);
    for (uint32_t g = 0; g < GROUPS_PER_PAGE; g++) {
        memset(bytes, value + (int)g, group_bytes);
        CHECK_OK(cuda()->upload(m->device, group_at(m, slot, index * GROUPS_PER_PAGE + g), bytes, group_bytes, ERR));
    }
    free(bytes);
}

/* Whether that is what a place has, first and last bytes of its groups. */
static bool place_has(const memory *m, uint32_t slot, uint32_t index, uint8_t value) {
    size_t group_bytes = m->page_bytes / GROUPS_PER_PAGE;
    bool all = true;
    for (uint32_t g = 0; g < GROUPS_PER_PAGE; g++) {
        const uint8_t *at = group_at(m, slot, index * GROUPS_PER_PAGE + g);
        uint8_t first = 0, last = 0;
        CHECK_OK(cuda()->download(m->device, &first, at, 1, ERR));
        CHECK_OK(cuda()->download(m->device, &last, at + group_bytes - 1, 1, ERR));
        all = all && first == (uint8_t)(value + g) && last == (uint8_t)(value + g);
    }
    return all;
}

static void pages_show_on(kernels_mapping mapping) {
    memory m;
    if (!open_kv(&m, mapping, 1)) {
        return;
    }
    map(&m, 0, 0, 5);
    map(&m, 0, 1, 7);
    map(&m, 2, 3, 5);
    write_place(&m, 0, 0, 0x11);
    write_place(&m, 0, 1, 0x22);
    CU_ASSERT(place_has(&m, 2, 3, 0x11));
    write_place(&m, 2, 3, 0x33);
    CU_ASSERT(place_has(&m, 0, 0, 0x33));
    map(&m, 0, 0, 7); /* what was mapped there is replaced */
    CU_ASSERT(place_has(&m, 0, 0, 0x22) && place_has(&m, 2, 3, 0x33));
    testing_close(m.device);
}

static void a_page_shows_in_every_slot_that_has_it(void) { with_both(pages_show_on); }

/* Random commands against a model of which page is where and what it has; the GPU falls behind as it likes. */
static void random_commands_on(kernels_mapping mapping) {
    for (uint64_t round = 0; round < test_scaled(4); round++) {
        uint64_t seed = test_seed(100) + round;
        test_rng rng = {seed};
        memory m;
        uint32_t mapped[N_SLOTS][PAGES_PER_SLOT];
        uint8_t content[N_PAGES] = {0};
        if (!open_kv(&m, mapping, seed)) {
            return;
        }
        memset(mapped, 0xff, sizeof mapped);
        for (uint32_t page = 0; page < N_PAGES; page++) {
            map(&m, 0, 0, page);
            write_place(&m, 0, 0, content[page] = (uint8_t)(16 + page));
        }
        mapped[0][0] = N_PAGES - 1;
        for (int i = 0; i < 60; i++) {
            kv_command commands[6];
            size_t n = 1 + test_rng_below(&rng, 6);
            for (size_t k = 0; k < n; k++) {
                kv_command *c = &commands[k];
                c->op = (uint32_t)(1 + test_rng_below(&rng, 3));
                c->slot = (uint32_t)test_rng_below(&rng, N_SLOTS);
                c->index = (uint32_t)test_rng_below(&rng, PAGES_PER_SLOT);
                c->page = (uint32_t)test_rng_below(&rng, N_PAGES);
                c->source = (uint32_t)test_rng_below(&rng, N_PAGES);
                if (k > 0 && test_rng_below(&rng, 2) == 0) { /* goes on where the one before ended */
                    *c = commands[k - 1];
                    c->slot = (c->slot + (test_rng_below(&rng, 3) == 0)) % N_SLOTS;
                    c->index = (c->index + 1) % PAGES_PER_SLOT;
                    c->page = (c->page + 1) % N_PAGES;
                }
                if (c->op == KV_COPY) {
                    content[c->page] = content[c->source];
                } else {
                    mapped[c->slot][c->index] = c->op == KV_MAP ? c->page : UINT32_MAX;
                }
            }
            execute(&m, commands, n);
            uint32_t slot = (uint32_t)test_rng_below(&rng, N_SLOTS),
                     index = (uint32_t)test_rng_below(&rng, PAGES_PER_SLOT);
            uint32_t page = mapped[slot][index];
            if (page != UINT32_MAX) {
                CHECK_MSG(place_has(&m, slot, index, content[page]), "seed %" PRIu64 ", round %d: page %u at %u, %u",
                          seed, i, page, slot, index);
                if (test_rng_below(&rng, 4) == 0) {
                    write_place(&m, slot, index, content[page] = (uint8_t)test_rng_below(&rng, 200));
                }
            } else if (mapping == KERNELS_TABLE) {
                CU_ASSERT(group_at(&m, slot, index * GROUPS_PER_PAGE) == NULL);
            }
        }
        testing_close(m.device);
    }
}

static void random_commands_do_what_they_say(void) { with_both(random_commands_on); }

/*
 * Work is queued that reads a place; then the place's page is taken away, replaced, copied over. The work reads what was there
 * when it was queued.
 */
static void queued_work_on(kernels_mapping mapping) {
    for (uint64_t seed = 0; seed < test_scaled(12); seed++) {
        memory m;
        void *buffer = NULL;
        uint8_t *read = NULL;
        if (!open_kv(&m, mapping, seed)) {
            return;
        }
        const size_t group_bytes = m.page_bytes / GROUPS_PER_PAGE;
        read = malloc(4 * group_bytes);
        CHECK_OK(cuda()->alloc(m.device, 4 * group_bytes, &buffer, ERR));
        for (uint32_t i = 0; i < 4; i++) {
            map(&m, 1, i, i);
            write_place(&m, 1, i, (uint8_t)(10 * i));
        }
        const kernels_row row = {.slot = 1};
        const uint64_t step = ++m.device->n_steps;
        if (mapping == KERNELS_VMM) {
            cuda_mapper_begin_step(m.device->kv.mapper, step, &row, 1);
        }
        for (uint32_t i = 0; i < 4; i++) { /* queued, not waited for */
            const uint8_t *from = mapping == KERNELS_TABLE
                                      ? (const uint8_t *)(uintptr_t)m.device->kv.pool + i * m.page_bytes
                                      : group_at(&m, 1, i * GROUPS_PER_PAGE);
            CU_ASSERT(cudaMemcpyAsync((uint8_t *)buffer + i * group_bytes, from, group_bytes, cudaMemcpyDeviceToDevice,
                                      m.device->compute) == cudaSuccess);
        }
        if (mapping == KERNELS_VMM) {
            CHECK_OK(cuda_mapper_end_step(m.device->kv.mapper, step, ERR));
        }
        unmap(&m, 1, 0);
        map(&m, 1, 0, 9);
        map(&m, 1, 1, 8); /* over what is in use */
        unmap(&m, 1, 2);
        copy(&m, 3, 0);
        copy(&m, 9, 1);
        CHECK_OK(cuda_kv_settle(m.device, ERR));
        CHECK_OK(cuda()->download(m.device, read, buffer, 4 * group_bytes, ERR));
        for (uint32_t i = 0; i < 4; i++) {
            CHECK_MSG(read[i * group_bytes] == 10 * i && read[(i + 1) * group_bytes - 1] == 10 * i,
                      "seed %" PRIu64 ": place %u was read as %u", seed, i, read[i * group_bytes]);
        }
        CU_ASSERT(place_has(&m, 1, 0, 10) && place_has(&m, 1, 3, 0));
        free(read);
        testing_close(m.device);
    }
}

static void queued_work_finds_what_was_there(void) { with_both(queued_work_on); }

/* A page that comes back to the place where it was has never gone. */
static void a_page_that_returns_costs_no_mapping(void) {
#ifdef PERCH_EMULATED
    memory m;
    CU_ASSERT_FATAL(open_kv(&m, KERNELS_VMM, 1));
    for (uint32_t i = 0; i < 5; i++) {
        map(&m, 2, i, i);
    }
    CHECK_OK(cuda_kv_settle(m.device, ERR));
    uint64_t maps = emulation_calls("cuMemMap"), unmaps = emulation_calls("cuMemUnmap");
    uint64_t accesses = emulation_calls("cuMemSetAccess");
    for (uint32_t i = 0; i < 5; i++) {
        unmap(&m, 2, i);
    }
    CHECK_OK(cuda_kv_settle(m.device, ERR));
    for (uint32_t i = 0; i < 5; i++) {
        map(&m, 2, i, i);
    }
    CHECK_OK(cuda_kv_settle(m.device, ERR));
    CU_ASSERT(emulation_calls("cuMemMap") == maps && emulation_calls("cuMemUnmap") == unmaps);
    kv_command run[6];
    for (uint32_t i = 0; i < 6; i++) { /* five replaced, one new: side by side, one change of access */
        run[i] = (kv_command){.op = KV_MAP, .slot = 2, .index = i, .page = 11 - i};
    }
    execute(&m, run, 6);
    CHECK_OK(cuda_kv_settle(m.device, ERR));
    CU_ASSERT(emulation_calls("cuMemMap") == maps + 6 && emulation_calls("cuMemUnmap") == unmaps + 5);
    CU_ASSERT(emulation_calls("cuMemSetAccess") == accesses + 1);
    testing_close(m.device);
#else
    test_skip("counts calls of the emulation");
#endif
}

#define MANY_SLOTS 64u
#define MANY_PLACES 400u

/* Where many places are stale they are unmapped beside the work, but none that is in use again. */
static void many_stale_places_are_unmapped_in_the_background(void) {
    testing_reset(3);
    kernels_device *device = testing_open(&config);
    if (device == NULL) {
        return;
    }
    const uint64_t page_bytes = cuda()->kv_page_granularity(device);
    const kernels_kv kv = {
        .page_bytes = page_bytes, .n_pages = 4, .n_slots = MANY_SLOTS, .pages_per_slot = MANY_PLACES};
    kv_command *maps = malloc(MANY_PLACES * sizeof *maps), *unmaps = malloc(MANY_PLACES * sizeof *unmaps);
    CHECK_OK(cuda()->kv_open(device, &kv, ERR));
    for (uint32_t round = 0; round < 2; round++) {
        for (uint32_t slot = 0; slot < MANY_SLOTS; slot++) {
            for (uint32_t i = 0; i < MANY_PLACES; i++) {
                maps[i] = unmaps[i] =
                    (kv_command){.op = KV_MAP, .slot = slot, .index = i, .page = (slot + i + round) % 4};
                unmaps[i].op = KV_UNMAP;
            }
            CHECK_OK(cuda()->kv_execute(device, maps, MANY_PLACES, ERR));
            CHECK_OK(cuda_kv_settle(device, ERR)); /* else there would be nothing to unmap */
            CHECK_OK(cuda()->kv_execute(device, unmaps, MANY_PLACES, ERR));
            if (slot % 8 == 7) { /* comes back before anything has happened to it but that it is stale */
                CHECK_OK(cuda_kv_settle(device, ERR));
                CHECK_OK(cuda()->kv_execute(device, maps + MANY_PLACES / 2, MANY_PLACES / 2, ERR));
            }
        }
    }
    CHECK_OK(cuda_kv_settle(device, ERR));
    bool reached = true;
    for (uint32_t slot = 7; slot < MANY_SLOTS; slot += 8) { /* what came back is there */
        for (uint32_t i = MANY_PLACES / 2; i < MANY_PLACES; i += 37) {
            uint8_t byte;
            reached = reached && cuda()->download(device, &byte, cuda()->kv_slot(device, slot).base + i * page_bytes, 1,
                                                  ERR) == PERCH_OK;
        }
    }
    CHECK_MSG(reached, "%s", testing_error.message);
#ifdef PERCH_EMULATED
    /* Two rounds map 51,200 times; had nothing been unmapped but what was in the way, so many would be left. */
    uint64_t in_the_way = (uint64_t)MANY_SLOTS * MANY_PLACES;
    CHECK_MSG(emulation_calls("cuMemUnmap") > in_the_way, "%" PRIu64 " were unmapped", emulation_calls("cuMemUnmap"));
#endif
    free(maps);
    free(unmaps);
    testing_close(device);
}

/* However many places are stale, none is unmapped while a step that has its slot is under way. */
static void stale_places_that_a_step_reads_stay(void) {
#ifdef PERCH_EMULATED
    enum { N_PLACES = 5000 };
    testing_reset(0); /* work is done as late as it may be */
    kernels_device *device = testing_open(&config);
    CU_ASSERT_FATAL(device != NULL);
    const uint64_t page_bytes = cuda()->kv_page_granularity(device);
    const kernels_kv kv = {.page_bytes = page_bytes, .n_pages = 1, .n_slots = 1, .pages_per_slot = N_PLACES};
    const kernels_row row = {.slot = 0};
    kv_command *commands = malloc(N_PLACES * sizeof *commands);
    uint8_t byte = 77;
    void *buffer = NULL;
    CHECK_OK(cuda()->alloc(device, 1, &buffer, ERR));
    CHECK_OK(cuda()->kv_open(device, &kv, ERR));
    for (uint32_t i = 0; i < N_PLACES; i++) {
        commands[i] = (kv_command){.op = KV_MAP, .index = i};
    }
    CHECK_OK(cuda()->kv_execute(device, commands, N_PLACES, ERR));
    CHECK_OK(cuda()->upload(device, cuda()->kv_slot(device, 0).base, &byte, 1, ERR));
    const uint64_t step = ++device->n_steps, asked = emulation_calls("cudaEventQuery");
    cuda_mapper_begin_step(device->kv.mapper, step, &row, 1);
    for (int i = 0; i < 200; i++) { /* each look at the emulated GPU lets it do some */
        CU_ASSERT(cudaMemcpyAsync(buffer, cuda()->kv_slot(device, 0).base, 1, cudaMemcpyDeviceToDevice,
                                  device->compute) == cudaSuccess);
    }
    CHECK_OK(cuda_mapper_end_step(device->kv.mapper, step, ERR));
    for (uint32_t i = 0; i < N_PLACES; i++) {
        commands[i].op = KV_UNMAP;
    }
    CHECK_OK(cuda()->kv_execute(device, commands, N_PLACES, ERR));
    while (emulation_calls("cudaEventQuery") == asked && emulation_calls("cuMemUnmap") == 0) {
        sched_yield(); /* until the mapping thread has found too many of them */
    }
    CU_ASSERT(emulation_calls("cuMemUnmap") == 0);
    byte = 0;
    CHECK_OK(cuda()->download(device, &byte, buffer, 1, ERR));
    CU_ASSERT(byte == 77);
    free(commands);
    testing_close(device);
#else
    test_skip("counts calls of the emulation");
#endif
}

/*
 * However much is asked for while the GPU is busy, kv_execute waits for nothing: the engine's lock is held. What has to wait does
 * so when it settles, and then everything is where it was wanted last.
 */
static void commands_on(kernels_mapping mapping) {
#ifdef PERCH_EMULATED
    enum { N_PLACES = 30000, ROUNDS = 3 };
    testing_reset(0); /* work is done as late as it may be */
    kernels_device *device = testing_open(&config);
    CU_ASSERT_FATAL(device != NULL);
    const uint64_t page_bytes = mapping == KERNELS_TABLE ? 4096 : cuda()->kv_page_granularity(device);
    const kernels_kv kv = {.mapping = mapping,
                           .page_bytes = page_bytes,
                           .group_bytes =
                               mapping == KERNELS_TABLE ? 8 : page_bytes, /* tables of more than the staging */
                           .n_pages = 4,
                           .n_slots = 1,
                           .pages_per_slot = N_PLACES};
    kv_command *commands = malloc(N_PLACES * sizeof *commands);
    void *busy = NULL;
    CHECK_OK(cuda()->kv_open(device, &kv, ERR));
    CHECK_OK(cuda()->alloc(device, 4096, &busy, ERR));
    CHECK_OK(cuda_kv_settle(device, ERR));
    CU_ASSERT(cudaStreamSynchronize(device->compute) == cudaSuccess);
    for (int i = 0; i < 200; i++) { /* each look at the emulated GPU lets it do some */
        CU_ASSERT(cudaMemsetAsync(busy, 1, 4096, device->compute) == cudaSuccess);
    }
    const uint64_t waits = emulation_calls("cudaEventSynchronize") + emulation_calls("cudaStreamSynchronize");
    for (uint32_t round = 0; round < ROUNDS; round++) {
        for (uint32_t i = 0; i < N_PLACES; i++) {
            commands[i] =
                (kv_command){.op = round == 1 && i % 2 == 0 ? KV_UNMAP : KV_MAP, .index = i, .page = (i + round) % 4};
        }
        CHECK_OK(cuda()->kv_execute(device, commands, N_PLACES, ERR));
    }
    CU_ASSERT(cudaStreamQuery(device->compute) == cudaErrorNotReady);
    CU_ASSERT(emulation_calls("cudaEventSynchronize") + emulation_calls("cudaStreamSynchronize") == waits);
    CHECK_OK(cuda_kv_settle(device, ERR));
    for (uint32_t k = 0; k < N_PLACES; k += 1777) {
        const uint32_t i = N_PLACES - 1 - k; /* first what was asked for last */
        const uint8_t byte = (uint8_t)i, *at = cuda()->kv_slot(device, 0).base + i * page_bytes;
        uint8_t *address = NULL, found = 0;
        if (mapping == KERNELS_TABLE) {
            CHECK_OK(cuda()->download(device, &address, device->kv.tables + (size_t)i * device->kv.groups_per_page,
                                      sizeof address, ERR));
            CU_ASSERT(address == (uint8_t *)(uintptr_t)device->kv.pool + (i + ROUNDS - 1) % 4 * page_bytes);
        } else {
            CHECK_OK(cuda()->upload(device, (uint8_t *)(uintptr_t)device->kv.pool + (i + ROUNDS - 1) % 4 * page_bytes,
                                    &byte, 1, ERR));
            CHECK_OK(cuda()->download(device, &found, at, 1, ERR));
            CU_ASSERT(found == byte);
        }
    }
    free(commands);
    testing_close(device);
#else
    (void)mapping;
    test_skip("counts calls of the emulation");
#endif
}

static void commands_wait_for_nothing(void) { with_both(commands_on); }

static void shapes_that_do_not_do_are_refused(void) {
    testing_reset(1);
    kernels_device *device = testing_open(&config);
    if (device == NULL) {
        return;
    }
    const uint64_t unit = cuda()->kv_page_granularity(device);
    kernels_kv kv = {.page_bytes = unit, .n_pages = 4, .n_slots = 2, .pages_per_slot = 2, .group_bytes = 4096};
    kernels_kv bad = kv;
    bad.page_bytes = unit + 4096;
    CHECK_ERROR(cuda()->kv_open(device, &bad, ERR), PERCH_E_INVALID, "no multiple of the GPU's page");
    bad = kv;
    bad.n_slots = 0;
    CHECK_ERROR(cuda()->kv_open(device, &bad, ERR), PERCH_E_INVALID, "0 slots");
    bad = kv;
    bad.mapping = KERNELS_TABLE;
    bad.page_bytes = 4096 + 512;
    CHECK_ERROR(cuda()->kv_open(device, &bad, ERR), PERCH_E_INVALID, "no multiple of a group");
    bad = kv;
    bad.n_slots = bad.pages_per_slot = UINT32_MAX;
    CHECK_ERROR(cuda()->kv_open(device, &bad, ERR), PERCH_E_NO_ROOM, "raise page_bytes");
    for (int mapping = KERNELS_VMM; mapping <= KERNELS_TABLE; mapping++) {
        bad = kv;
        bad.mapping = (kernels_mapping)mapping;
        bad.page_bytes = (uint64_t)1 << 30;
        bad.group_bytes = (uint64_t)1 << 20;
        bad.n_pages = 1000;
        CHECK_ERROR(cuda()->kv_open(device, &bad, ERR), PERCH_E_NO_ROOM, "1000 pages");
        CU_ASSERT(strstr(testing_error.message, "are free") != NULL);
    }
    CHECK_OK(cuda()->kv_open(device, &kv, ERR)); /* none of that left anything behind */
    CHECK_ERROR(cuda()->kv_open(device, &kv, ERR), PERCH_E_INVALID, "open already");
    const kv_command wrong[] = {{.op = KV_MAP, .slot = 2},
                                {.op = KV_MAP, .index = 2},
                                {.op = KV_MAP, .page = 4},
                                {.op = KV_UNMAP, .slot = 2},
                                {.op = KV_UNMAP, .index = 2},
                                {.op = KV_COPY, .page = 4},
                                {.op = KV_COPY, .source = 4},
                                {.op = 0},
                                {.op = 4}};
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        const kv_command two[] = {{.op = KV_MAP, .page = 1}, wrong[i]};
        CHECK_ERROR(cuda()->kv_execute(device, two, 2, ERR), PERCH_E_INVALID, "KV command 1");
    }
    cuda()->kv_close(device);
    CHECK_OK(cuda()->kv_open(device, &kv, ERR));
    testing_close(device);
}

/* What the mapping thread meets is told by the next that waits for it. */
static void a_mapping_that_fails_is_told(void) {
#ifdef PERCH_EMULATED
    static const char *const calls[] = {"cuMemMap", "cuMemSetAccess", "cuMemUnmap"};
    for (size_t i = 0; i < sizeof calls / sizeof calls[0]; i++) {
        memory m;
        uint8_t byte;
        CU_ASSERT_FATAL(open_kv(&m, KERNELS_VMM, 1));
        map(&m, 0, 0, 0);
        CHECK_OK(cuda_kv_settle(m.device, ERR));
        emulation_fail(calls[i], 1, CUDA_ERROR_UNKNOWN);
        const kv_command commands[] = {{.op = KV_UNMAP}, {.op = KV_MAP, .page = 1}};
        CHECK_OK(cuda()->kv_execute(m.device, commands, 2, ERR));
        perch_status status = cuda()->download(m.device, &byte, group_at(&m, 0, 0), 1, ERR);
        CHECK_MSG(status == PERCH_E_DEVICE && emulation_failed() == 1 && strstr(testing_error.message, "KV") != NULL,
                  "%s: %s %s", calls[i], perch_status_name(status), testing_error.message);
        testing_close(m.device);
    }
#else
    test_skip("has calls fail");
#endif
}

int main(int argc, char **argv) {
    static const test_case tests[] = {
        {"a_page_shows_in_every_slot_that_has_it", a_page_shows_in_every_slot_that_has_it},
        {"random_commands_do_what_they_say", random_commands_do_what_they_say},
        {"queued_work_finds_what_was_there", queued_work_finds_what_was_there},
        {"a_page_that_returns_costs_no_mapping", a_page_that_returns_costs_no_mapping},
        {"many_stale_places_are_unmapped_in_the_background", many_stale_places_are_unmapped_in_the_background},
        {"stale_places_that_a_step_reads_stay", stale_places_that_a_step_reads_stay},
        {"commands_wait_for_nothing", commands_wait_for_nothing},
        {"shapes_that_do_not_do_are_refused", shapes_that_do_not_do_are_refused},
        {"a_mapping_that_fails_is_told", a_mapping_that_fails_is_told},
    };
    return test_main("cuda_kv_test", tests, sizeof tests / sizeof tests[0], argc, argv);
}
