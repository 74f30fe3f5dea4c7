/*
 * The host tier, with either mapping: transfers run beside the steps and still after what was queued before them,
 * whatever the order in which the GPU gets to its streams; runs are one copy; nobody waits who did not ask to.
 */
#include "kernels/cuda/backend_testing.h"

#define N_PAGES 12u
#define N_FRAMES 16u
#define GROUPS_PER_PAGE 4u

static const kernels_config config = {.dtype = KERNELS_BF16};

typedef struct tier {
    kernels_device *device;
    size_t page_bytes;
} tier;

static bool open_tier(tier *t, kernels_mapping mapping, uint64_t seed) {
    testing_reset(seed);
    *t = (tier){.device = testing_open(&config)};
    if (t->device == NULL) {
        return false;
    }
    t->page_bytes = mapping == KERNELS_TABLE ? GROUPS_PER_PAGE * 4096 : cuda()->kv_page_granularity(t->device);
    const kernels_kv kv = {.mapping = mapping,
                           .page_bytes = t->page_bytes,
                           .group_bytes = t->page_bytes / GROUPS_PER_PAGE,
                           .n_pages = N_PAGES,
                           .n_slots = 2,
                           .pages_per_slot = 4};
    CHECK_OK(cuda()->kv_open(t->device, &kv, ERR));
    perch_status status = cuda()->host_open(t->device, N_FRAMES, ERR);
    return CHECK_MSG(status == PERCH_OK, "%s", testing_error.message);
}

static void with_both(void (*test)(kernels_mapping mapping)) {
    test(KERNELS_VMM);
    test(KERNELS_TABLE);
}

static uint8_t *page_at(const tier *t, uint32_t page) {
    return (uint8_t *)(uintptr_t)t->device->kv.pool + page * t->page_bytes;
}

static uint8_t *frame_at(const tier *t, uint32_t frame) { return cuda()->host_frame(t->device, frame); }

/* Queued on the stream of the steps: a page that is written, a page that is read. */
static void queue_write(const tier *t, uint32_t page, uint8_t value) {
    CU_ASSERT(cudaMemsetAsync(page_at(t, page), value, t->page_bytes, t->device->compute) == cudaSuccess);
}

static void queue_read(const tier *t, uint32_t page, void *to) {
    CU_ASSERT(cudaMemcpyAsync(to, page_at(t, page), t->page_bytes, cudaMemcpyDeviceToDevice, t->device->compute) ==
              cudaSuccess);
}

/* Whether a device buffer or page is this value from end to end, as what is queued leaves it. */
static bool device_has(const tier *t, const void *at, uint8_t value) {
    uint8_t *bytes = malloc(t->page_bytes);
    CHECK_OK(cuda()->download(t->device, bytes, at, t->page_bytes, ERR));
    bool all = bytes[0] == value && memcmp(bytes, bytes + 1, t->page_bytes - 1) == 0;
    free(bytes);
    return all;
}

static bool frame_has(const tier *t, uint32_t frame, uint8_t value) {
    const uint8_t *at = frame_at(t, frame);
    return at[0] == value && memcmp(at, at + 1, t->page_bytes - 1) == 0;
}

static uint64_t transfer(const tier *t, kernels_direction direction, const kernels_transfer *list, size_t n) {
    uint64_t ticket = 0;
    CHECK_OK(cuda()->transfer(t->device, direction, list, n, &ticket, ERR));
    return ticket;
}

static void wait_for(const tier *t, kernels_direction direction, uint64_t ticket) {
    CHECK_OK(cuda()->transfer_wait(t->device, direction, ticket, ERR));
}

static uint64_t transferred(const tier *t, kernels_direction direction) {
    uint64_t ticket = 0;
    CHECK_OK(cuda()->transferred(t->device, direction, &ticket, ERR));
    return ticket;
}

static void stores_on(kernels_mapping mapping) {
    static const kernels_transfer list[] = {{2, 5}, {3, 6}, {7, 1}};
    for (uint64_t seed = 0; seed < test_scaled(12); seed++) {
        tier t;
        if (!open_tier(&t, mapping, seed)) {
            return;
        }
        for (uint32_t round = 0; round < 3; round++) {
            for (uint32_t i = 0; i < 3; i++) {
                queue_write(&t, list[i].page, (uint8_t)(100 + i));
                queue_write(&t, list[i].page, (uint8_t)(10 * round + i));
            }
            wait_for(&t, KERNELS_STORE, transfer(&t, KERNELS_STORE, list, 3));
            for (uint32_t i = 0; i < 3; i++) {
                CHECK_MSG(frame_has(&t, list[i].frame, (uint8_t)(10 * round + i)), "seed %" PRIu64 ": frame %u has %u",
                          seed, list[i].frame, *frame_at(&t, list[i].frame));
            }
        }
        testing_close(t.device);
    }
}

static void what_is_stored_is_what_the_step_before_wrote(void) { with_both(stores_on); }

static void loads_on(kernels_mapping mapping) {
    static const kernels_transfer list[] = {{4, 0}, {5, 1}, {9, 9}};
    for (uint64_t seed = 0; seed < test_scaled(12); seed++) {
        tier t;
        void *read[3];
        if (!open_tier(&t, mapping, seed)) {
            return;
        }
        for (uint32_t i = 0; i < 3; i++) {
            CHECK_OK(cuda()->alloc(t.device, t.page_bytes, &read[i], ERR));
            queue_write(&t, list[i].page, (uint8_t)(50 + i));
            memset(frame_at(&t, list[i].frame), 60 + (int)i, t.page_bytes);
        }
        for (uint32_t i = 0; i < 3; i++) {
            queue_read(&t, list[i].page, read[i]);
        }
        wait_for(&t, KERNELS_LOAD, transfer(&t, KERNELS_LOAD, list, 3));
        for (uint32_t i = 0; i < 3; i++) {
            CHECK_MSG(device_has(&t, page_at(&t, list[i].page), (uint8_t)(60 + i)), "seed %" PRIu64 ": page %u", seed,
                      list[i].page);
            CHECK_MSG(device_has(&t, read[i], (uint8_t)(50 + i)), "seed %" PRIu64 ": page %u was loaded too early",
                      seed, list[i].page);
        }
        testing_close(t.device);
    }
}

static void a_load_waits_for_the_step_that_reads_the_page(void) { with_both(loads_on); }

/* The event of either direction is recorded again and again; each transfer has its own point among the steps. */
static void both_ways_on(kernels_mapping mapping) {
    for (uint64_t seed = 0; seed < test_scaled(8); seed++) {
        tier t;
        void *read = NULL;
        uint64_t stored[8], loaded[8];
        if (!open_tier(&t, mapping, seed)) {
            return;
        }
        CHECK_OK(cuda()->alloc(t.device, 4 * t.page_bytes, &read, ERR));
        memset(frame_at(&t, 8), 77, 4 * t.page_bytes);
        for (uint32_t i = 0; i < 4; i++) {
            const kernels_transfer out = {i, i}, back = {4 + i, 8 + i};
            queue_write(&t, i, (uint8_t)(20 + i));
            queue_write(&t, 4 + i, (uint8_t)(30 + i));
            stored[i] = transfer(&t, KERNELS_STORE, &out, 1);
            queue_read(&t, 4 + i, (uint8_t *)read + i * t.page_bytes);
            loaded[i] = transfer(&t, KERNELS_LOAD, &back, 1);
            CU_ASSERT(stored[i] == i + 1 && loaded[i] == i + 1);
        }
        for (uint32_t i = 4; i-- > 0;) { /* to wait for the last is to wait for all */
            wait_for(&t, KERNELS_STORE, stored[i]);
            wait_for(&t, KERNELS_LOAD, loaded[i]);
            CU_ASSERT(transferred(&t, KERNELS_STORE) == 4 && transferred(&t, KERNELS_LOAD) == 4);
            CHECK_MSG(frame_has(&t, i, (uint8_t)(20 + i)), "seed %" PRIu64 ": frame %u has %u", seed, i,
                      *frame_at(&t, i));
            CHECK_MSG(device_has(&t, (uint8_t *)read + i * t.page_bytes, (uint8_t)(30 + i)) &&
                          device_has(&t, page_at(&t, 4 + i), 77),
                      "seed %" PRIu64 ": page %u", seed, 4 + i);
        }
        testing_close(t.device);
    }
}

static void both_ways_run_beside_steps(void) { with_both(both_ways_on); }

/* More than there are events: the oldest share one. */
static void tickets_on(kernels_mapping mapping) {
    for (uint64_t seed = 0; seed < test_scaled(4); seed++) {
        tier t;
        uint64_t last = 0;
        if (!open_tier(&t, mapping, seed)) {
            return;
        }
        cuda()->host_close(t.device);
        CHECK_OK(cuda()->host_open(t.device, 3 * CUDA_TICKETS, ERR));
        for (uint32_t page = 0; page < N_PAGES; page++) {
            queue_write(&t, page, (uint8_t)(80 + page));
        }
        for (uint32_t i = 0; i < 3 * CUDA_TICKETS; i++) {
            const kernels_transfer one = {i % N_PAGES, i};
            CU_ASSERT(transfer(&t, KERNELS_STORE, &one, 1) == i + 1);
        }
        CU_ASSERT(transfer(&t, KERNELS_STORE, NULL, 0) == 3 * CUDA_TICKETS);
        wait_for(&t, KERNELS_STORE, 0);
        wait_for(&t, KERNELS_STORE, 5);
        CU_ASSERT(transferred(&t, KERNELS_STORE) >= 5 && transferred(&t, KERNELS_LOAD) == 0);
        wait_for(&t, KERNELS_STORE, 2 * CUDA_TICKETS + 2);
        CU_ASSERT(transferred(&t, KERNELS_STORE) >= 2 * CUDA_TICKETS + 2);
        while (last < 3 * CUDA_TICKETS) { /* who asks again and again gets there, and no step back */
            uint64_t now = transferred(&t, KERNELS_STORE);
            if (!CHECK_MSG(now >= last && now <= 3 * CUDA_TICKETS, "%" PRIu64 " after %" PRIu64, now, last)) {
                break;
            }
            last = now;
        }
        for (uint32_t i = 0; i < 3 * CUDA_TICKETS; i++) {
            CU_ASSERT(frame_has(&t, i, (uint8_t)(80 + i % N_PAGES)));
        }
        CHECK_ERROR(cuda()->transfer_wait(t.device, KERNELS_STORE, 3 * CUDA_TICKETS + 1, ERR), PERCH_E_INVALID,
                    "waiting for transfer 193 of 192");
        testing_close(t.device);
    }
}

static void tickets_count_what_is_done(void) { with_both(tickets_on); }

/* With seed 0 the GPU does nothing that nobody waits for. */
static void nobody_waits(void) {
#ifdef PERCH_EMULATED
    static const kernels_transfer out = {1, 2}, back = {3, 4};
    tier t;
    if (!open_tier(&t, KERNELS_VMM, 0)) {
        return;
    }
    CU_ASSERT(cudaDeviceSynchronize() == cudaSuccess);
    queue_write(&t, 1, 5);
    transfer(&t, KERNELS_STORE, &out, 1);
    transfer(&t, KERNELS_LOAD, &back, 1);
    CU_ASSERT(transferred(&t, KERNELS_STORE) == 0);
    wait_for(&t, KERNELS_STORE, 1);
    CU_ASSERT(frame_has(&t, 2, 5));
    testing_close(t.device);
#else
    test_skip("counts on the emulation's order");
#endif
}

static void runs_on(kernels_mapping mapping) {
#ifdef PERCH_EMULATED
    static const kernels_transfer list[] = {{0, 3}, {1, 4}, {2, 5}, {3, 7}, {5, 8}, {4, 9}, {3, 10}, {4, 11}};
    tier t;
    if (!open_tier(&t, mapping, 1)) {
        return;
    }
    for (uint32_t page = 0; page < N_PAGES; page++) {
        queue_write(&t, page, (uint8_t)(40 + page));
    }
    uint64_t before = emulation_calls("cudaMemcpyAsync");
    wait_for(&t, KERNELS_STORE, transfer(&t, KERNELS_STORE, list, 8));
    CHECK_MSG(emulation_calls("cudaMemcpyAsync") == before + 5, "%" PRIu64 " copies, not 5",
              emulation_calls("cudaMemcpyAsync") - before);
    for (size_t i = 0; i < 8; i++) {
        CU_ASSERT(frame_has(&t, list[i].frame, (uint8_t)(40 + list[i].page)));
    }
    testing_close(t.device);
#else
    (void)mapping;
    test_skip("counts calls of the emulation");
#endif
}

static void neighbours_are_one_copy(void) { with_both(runs_on); }

/* Frames begin at multiples of 4096 though pages are no such multiple: then each is a copy of its own. */
static void small_pages_have_frames_that_are_aligned(void) {
    static const kernels_transfer list[] = {{0, 3}, {1, 4}, {2, 5}};
    testing_reset(1);
    tier t = {.device = testing_open(&config), .page_bytes = 3 * 512};
    if (t.device == NULL) {
        return;
    }
    const kernels_kv kv = {.mapping = KERNELS_TABLE,
                           .page_bytes = t.page_bytes,
                           .group_bytes = 512,
                           .n_pages = 4,
                           .n_slots = 1,
                           .pages_per_slot = 4};
    CHECK_OK(cuda()->kv_open(t.device, &kv, ERR));
    CHECK_OK(cuda()->host_open(t.device, N_FRAMES, ERR));
    for (uint32_t i = 0; i < 3; i++) {
        queue_write(&t, i, (uint8_t)(70 + i));
    }
    wait_for(&t, KERNELS_STORE, transfer(&t, KERNELS_STORE, list, 3));
    for (uint32_t i = 0; i < N_FRAMES; i++) {
        CU_ASSERT((uintptr_t)frame_at(&t, i) % 4096 == 0);
    }
    CU_ASSERT(frame_has(&t, 3, 70) && frame_has(&t, 4, 71) && frame_has(&t, 5, 72));
    testing_close(t.device);
}

static void refusals_on(kernels_mapping mapping) {
    const kernels_transfer wrong_page[] = {{0, 0}, {N_PAGES, 0}}, wrong_frame = {0, N_FRAMES};
    uint64_t ticket;
    tier t;
    if (!open_tier(&t, mapping, 1)) {
        return;
    }
    memset(frame_at(&t, 0), 9, t.page_bytes);
    CHECK_ERROR(cuda()->transfer(t.device, KERNELS_STORE, wrong_page, 2, &ticket, ERR), PERCH_E_INVALID,
                "transfer 1, page 12 and frame 0: there are 12 pages and 16 frames");
    CHECK_ERROR(cuda()->transfer(t.device, KERNELS_LOAD, &wrong_frame, 1, &ticket, ERR), PERCH_E_INVALID, "frame 16");
    CHECK_ERROR(cuda()->transfer_wait(t.device, KERNELS_STORE, 1, ERR), PERCH_E_INVALID, "1 of 0");
    CU_ASSERT(cudaDeviceSynchronize() == cudaSuccess && frame_has(&t, 0, 9)); /* nothing was queued */
    CHECK_ERROR(cuda()->host_open(t.device, 1, ERR), PERCH_E_INVALID, "open already");
    cuda()->host_close(t.device);
    cuda()->host_close(t.device);
    CHECK_ERROR(cuda()->transfer(t.device, KERNELS_LOAD, wrong_page, 1, &ticket, ERR), PERCH_E_INVALID, "no host tier");
    CHECK_ERROR(cuda()->transferred(t.device, KERNELS_LOAD, &ticket, ERR), PERCH_E_INVALID, "no host tier");
    CHECK_ERROR(cuda()->transfer_wait(t.device, KERNELS_LOAD, 0, ERR), PERCH_E_INVALID, "no host tier");
    CHECK_ERROR(cuda()->host_open(t.device, 0, ERR), PERCH_E_INVALID, "0 frames");
    CHECK_ERROR(cuda()->host_open(t.device, UINT32_MAX, ERR), PERCH_E_NO_ROOM, "bytes of memory that are free");
#ifdef PERCH_EMULATED
    emulation_fail("cudaHostAlloc", 1, 0);
    CHECK_ERROR(cuda()->host_open(t.device, 3, ERR), PERCH_E_NO_ROOM, "page-locked memory for a host tier of 3 frames");
#endif
    CHECK_OK(cuda()->host_open(t.device, 3, ERR)); /* none of that left anything behind */
    cuda()->kv_close(t.device);
    CHECK_ERROR(cuda()->host_open(t.device, 3, ERR), PERCH_E_INVALID, "not open");
    testing_close(t.device);
}

static void what_cannot_be_is_refused(void) { with_both(refusals_on); }

static void closing_on(kernels_mapping mapping) {
    static const kernels_transfer out[] = {{0, 0}, {2, 3}}, back[] = {{5, 6}, {7, 9}};
    for (uint64_t seed = 0; seed < 9; seed++) {
        tier t;
        if (!open_tier(&t, mapping, seed)) {
            return;
        }
        queue_write(&t, 0, 1);
        transfer(&t, KERNELS_STORE, out, 2);
        transfer(&t, KERNELS_LOAD, back, 2);
        if (seed % 3 == 0) {
            cuda()->host_close(t.device);
        } else if (seed % 3 == 1) {
            cuda()->kv_close(t.device);
        }
        testing_close(t.device);
    }
}

static void closing_with_transfers_under_way_leaves_nothing(void) { with_both(closing_on); }

int main(int argc, char **argv) {
    static const test_case tests[] = {
        {"what_is_stored_is_what_the_step_before_wrote", what_is_stored_is_what_the_step_before_wrote},
        {"a_load_waits_for_the_step_that_reads_the_page", a_load_waits_for_the_step_that_reads_the_page},
        {"both_ways_run_beside_steps", both_ways_run_beside_steps},
        {"tickets_count_what_is_done", tickets_count_what_is_done},
        {"nobody_waits", nobody_waits},
        {"neighbours_are_one_copy", neighbours_are_one_copy},
        {"small_pages_have_frames_that_are_aligned", small_pages_have_frames_that_are_aligned},
        {"what_cannot_be_is_refused", what_cannot_be_is_refused},
        {"closing_with_transfers_under_way_leaves_nothing", closing_with_transfers_under_way_leaves_nothing},
    };
    return test_main("cuda_transfer_test", tests, sizeof tests / sizeof tests[0], argc, argv);
}
