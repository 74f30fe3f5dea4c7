/*
 * restore_test: what comes back from the tiers and how, one case at a time: what is asked for and in which order, what the row may
 * compute meanwhile, what the costs decide, and what becomes of pages that can't be had.
 *
 * A page is a group of 16 tokens, a full sequence ten pages.
 */
#include "cache/state.h"
#include "tests/support/check.h"

#include <stdlib.h>

enum { PAGES = 10, TOKENS = 16 * PAGES };

typedef struct fixture {
    cache *c;
    cache_entry *e, *other;
    uint64_t tickets[2];
} fixture;

static fixture setup(uint32_t n_frames, uint32_t n_disk_frames, cache_restore restore) {
    const cache_config k = {.page_bytes = 64,
                            .group_bytes = 64,
                            .n_pages = 2 * PAGES,
                            .n_slots = 2,
                            .session_len = TOKENS,
                            .chunk_pages = 1,
                            .n_frames = n_frames,
                            .n_disk_frames = n_disk_frames,
                            .restore = restore};
    fixture f = {.c = NULL};
    CU_ASSERT_EQUAL_FATAL(cache_create(&k, &f.c, NULL), PERCH_OK);
    CU_ASSERT_EQUAL_FATAL(cache_entry_create(f.c, 0, &f.e, NULL), PERCH_OK);
    CU_ASSERT_EQUAL_FATAL(cache_entry_create(f.c, 0, &f.other, NULL), PERCH_OK);
    return f;
}

static void set_costs(fixture *f, double compute_us, double host_us, double disk_us) {
    const cache_costs costs = {.compute_us = compute_us, .page_us = {host_us, disk_us}};
    cache_set_costs(f->c, &costs);
}

/* All that is under way between page and host frame ends. Returns how many pages were loaded. */
static uint32_t end_copies(fixture *f) {
    cache_transfer list[64];
    uint32_t n_loads = 0;
    for (int d = 0; d < 2; d++) {
        size_t n = cache_transfers(f->c, (cache_direction)d, list, 64);
        cache_transfers_sent(f->c, (cache_direction)d, n, ++f->tickets[d]);
        cache_transfers_done(f->c, (cache_direction)d, f->tickets[d]);
        n_loads += d == CACHE_LOAD ? (uint32_t)n : 0;
    }
    return n_loads;
}

static uint32_t end_disk(fixture *f, cache_disk_outcome outcome) {
    cache_disk_request list[64];
    size_t n = cache_disk_requests(f->c, list, 64);
    for (size_t i = 0; i < n; i++) {
        cache_disk_done(f->c, list[i].disk_frame, list[i].write ? CACHE_DISK_OK : outcome);
    }
    return (uint32_t)n;
}

static void fill(fixture *f, cache_entry *e) {
    CU_ASSERT_EQUAL_FATAL(cache_entry_reserve(f->c, e, NULL), PERCH_OK);
    CU_ASSERT_EQUAL(cache_pin(f->c, e), PERCH_OK);
    CU_ASSERT_EQUAL(cache_extend(f->c, e, TOKENS), PERCH_OK);
    cache_commit(e, TOKENS);
    cache_unpin(f->c, e);
    cache_entry_release(f->c, e);
}

/* Until the ten pages that go next, if none is free, have copies. */
static void save(fixture *f) {
    for (int i = 0; i < 100; i++) {
        (void)cache_save(f->c, true);
        (void)end_copies(f);
        (void)end_disk(f, CACHE_DISK_OK);
    }
    CU_ASSERT_EQUAL(cache_disk_pending(f->c), 0);
}

static void fill_save_and_evict(fixture *f) {
    fill(f, f->e);
    fill(f, f->other);
    save(f);
    (void)cache_evict_one(f->c, 0);
    fill(f, f->e);
    save(f);
    while (cache_evict_one(f->c, 0)) {}
    CU_ASSERT_EQUAL(cache_entry_n_pages(f->e), 0);
}

/* The entry is admitted: it wants all but the last token. */
static uint32_t admit(fixture *f, cache_entry *e) {
    CU_ASSERT_EQUAL_FATAL(cache_entry_reserve(f->c, e, NULL), PERCH_OK);
    CU_ASSERT_EQUAL(cache_pin(f->c, e), PERCH_OK);
    CU_ASSERT_EQUAL(cache_extend(f->c, e, TOKENS), PERCH_OK);
    return cache_load(f->c, e, TOKENS - 1);
}

static void teardown(fixture *f) {
    cache_entry_destroy(f->c, f->e);
    cache_entry_destroy(f->c, f->other);
    for (int i = 0; i < 20; i++) {
        (void)end_copies(f);
        (void)end_disk(f, CACHE_DISK_OK);
    }
    const char *broken = cache_check(f->c);
    CHECK_MSG(!broken, "%s", broken);
    cache_destroy(f->c);
}

/* ---------------------------------------------------------------- tests -- */

static void without_costs_all_is_loaded_from_the_end_on(void) {
    fixture f = setup(40, 0, CACHE_RESTORE_AUTO);
    cache_transfer list[PAGES];
    fill_save_and_evict(&f);
    CU_ASSERT_EQUAL(admit(&f, f.e), TOKENS - 1);
    CU_ASSERT_TRUE(cache_entry_loading(f.e));
    CU_ASSERT_EQUAL(cache_entry_may_compute(f.c, f.e), 0);
    CU_ASSERT_EQUAL(cache_transfers(f.c, CACHE_LOAD, list, PAGES), PAGES);
    CU_ASSERT_EQUAL(list[0].page, f.e->pages[PAGES - 1]);
    CU_ASSERT_EQUAL(list[PAGES - 1].page, f.e->pages[0]);
    CU_ASSERT_EQUAL(end_copies(&f), PAGES);
    CU_ASSERT_FALSE(cache_entry_loading(f.e));
    CU_ASSERT_EQUAL(cache_entry_n_valid(f.e), TOKENS - 1);
    CU_ASSERT_EQUAL(cache_entry_may_compute(f.c, f.e), UINT32_MAX);
    teardown(&f);
}

/* The way and, where both are at work, how many pages are asked for at first. */
static void costs_decide(void) {
    static const struct {
        cache_restore restore;
        double compute_us, page_us; /* of a token, of a page: 16 tokens */
        uint32_t n_pages;           /* asked for at once; 0: computed */
        bool computes;
    } cases[] = {
        {CACHE_RESTORE_AUTO, 1, 0.5, PAGES, false},   /* 32 times as fast */
        {CACHE_RESTORE_AUTO, 1, 16, PAGES / 2, true}, /* as fast: half each */
        {CACHE_RESTORE_AUTO, 1, 48, 3, true},         /* a third as fast: a quarter of them */
        {CACHE_RESTORE_AUTO, 1, 1600, 0, false},      /* it would save a hundredth */
        {CACHE_RESTORE_LOAD, 1, 1600, PAGES, false},  /* told to */
        {CACHE_RESTORE_BOTH, 1, 0.5, PAGES, true},    /* and here computing finds nothing to do */
        {CACHE_RESTORE_BOTH, 0, 0, PAGES / 2, true},  /* not known */
        {CACHE_RESTORE_COMPUTE, 1, 0.5, 0, false},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        fixture f = setup(40, 0, cases[i].restore);
        cache_stats s;
        fill_save_and_evict(&f);
        set_costs(&f, cases[i].compute_us, cases[i].page_us, 0);
        uint32_t n = admit(&f, f.e);
        cache_stats_get(f.c, &s);
        CHECK_MSG(n == (cases[i].n_pages ? TOKENS - 1 : 0), "case %zu: %u tokens", i, n);
        CHECK_MSG(s.tiers.declined_tokens == (cases[i].n_pages ? 0 : TOKENS - 1), "case %zu", i);
        CHECK_MSG(cache_entry_loading(f.e) == (cases[i].n_pages > 0), "case %zu", i);
        uint32_t most = cache_entry_may_compute(f.c, f.e), low = 16 * (PAGES - cases[i].n_pages);
        CHECK_MSG(!cases[i].n_pages || most == (cases[i].computes ? low : 0), "case %zu: may compute %u", i, most);
        n = end_copies(&f);
        CHECK_MSG(n == cases[i].n_pages, "case %zu: %u pages", i, n);
        teardown(&f);
    }
}

/* However much slower the one is than was thought, the other does the rest. */
static void computing_and_loading_meet_wherever_they_are(void) {
    for (uint32_t steps_per_load = 0; steps_per_load < 6; steps_per_load++) {
        fixture f = setup(40, 0, CACHE_RESTORE_BOTH);
        cache_stats s;
        uint32_t n_steps = 0;
        fill_save_and_evict(&f);
        set_costs(&f, 1, 16, 0);
        CU_ASSERT_EQUAL(admit(&f, f.e), TOKENS - 1);
        for (; cache_entry_loading(f.e) && n_steps < 100; n_steps++) {
            cache_restore_more(f.c);
            uint32_t n_valid = cache_entry_n_valid(f.e), most = cache_entry_may_compute(f.c, f.e);
            if (steps_per_load > 0 && most > n_valid && cache_entry_loading(f.e)) {
                cache_commit(f.e, most < n_valid + 16 ? most : n_valid + 16);
            }
            if (steps_per_load == 0 || n_steps % steps_per_load == steps_per_load - 1) {
                (void)end_copies(&f);
            }
            CU_ASSERT_PTR_NULL(cache_check(f.c));
        }
        cache_stats_get(f.c, &s);
        CU_ASSERT_FALSE(cache_entry_loading(f.e));
        CU_ASSERT_EQUAL(cache_entry_n_valid(f.e), TOKENS - 1);
        CU_ASSERT_EQUAL(s.tiers.restored_tokens + s.tiers.raced_tokens, TOKENS - 1);
        CHECK_MSG((s.tiers.raced_tokens == 0) == (steps_per_load == 0), "%u", steps_per_load);
        CHECK_MSG(n_steps <= PAGES, "%u steps", n_steps);
        teardown(&f);
    }
}

/* Two sequences: where the first fills the queue, the second is computed. */
static void what_is_queued_counts(void) {
    fixture f = setup(40, 0, CACHE_RESTORE_AUTO);
    fill_save_and_evict(&f);
    set_costs(&f, 1, 1, 0); /* 10 us to load, 160 to compute */
    CU_ASSERT_EQUAL(admit(&f, f.e), TOKENS - 1);
    set_costs(&f, 0.05, 1, 0); /* 8 us to compute */
    f.c->slots[f.e->slot].load.page_us = 5;
    CU_ASSERT_EQUAL(admit(&f, f.other), 0);
    CU_ASSERT_EQUAL(end_copies(&f), PAGES);
    teardown(&f);
    f = setup(40, 0, CACHE_RESTORE_AUTO);
    fill_save_and_evict(&f);
    set_costs(&f, 0.05, 1, 0);
    CU_ASSERT_EQUAL(admit(&f, f.other), TOKENS - 1); /* the queue is empty */
    teardown(&f);
}

/* Pages whose copies are gone are computed; the longest run of the others is loaded. */
static void a_copy_that_is_gone_splits_what_is_restored(void) {
    fixture f = setup(40, 0, CACHE_RESTORE_AUTO);
    fill_save_and_evict(&f);
    f.e->copies[2].generation++; /* [0, 2) and [3, 10) are left */
    CU_ASSERT_EQUAL(cache_entry_saved(f.c, f.e).n_host, TOKENS - 3 * 16);
    CU_ASSERT_EQUAL(admit(&f, f.e), TOKENS - 1 - 3 * 16);
    CU_ASSERT_EQUAL(cache_entry_may_compute(f.c, f.e), 3 * 16);
    CU_ASSERT_EQUAL(end_copies(&f), PAGES - 3);
    CU_ASSERT_TRUE(cache_entry_loading(f.e));
    cache_commit(f.e, 3 * 16 - 1);
    cache_restore_more(f.c);
    CU_ASSERT_EQUAL(cache_entry_n_valid(f.e), 3 * 16 - 1);
    cache_commit(f.e, 3 * 16);
    cache_restore_more(f.c);
    CU_ASSERT_EQUAL(cache_entry_n_valid(f.e), TOKENS - 1);
    teardown(&f);
}

/* One host frame: page by page, through it. */
static void a_single_host_frame_is_enough(void) {
    fixture f = setup(1, 40, CACHE_RESTORE_LOAD);
    cache_stats s;
    fill_save_and_evict(&f);
    CU_ASSERT_EQUAL(cache_entry_saved(f.c, f.e).n_disk, TOKENS);
    CU_ASSERT_EQUAL(admit(&f, f.e), TOKENS - 1);
    CU_ASSERT_EQUAL(admit(&f, f.other), TOKENS - 1);
    for (int i = 0; i < 100 && (cache_entry_loading(f.e) || cache_entry_loading(f.other)); i++) {
        CU_ASSERT_TRUE(end_disk(&f, CACHE_DISK_OK) + end_copies(&f) <= 1);
        cache_restore_more(f.c);
    }
    cache_stats_get(f.c, &s);
    CU_ASSERT_EQUAL(cache_entry_n_valid(f.e), TOKENS - 1);
    CU_ASSERT_EQUAL(cache_entry_n_valid(f.other), TOKENS - 1);
    CU_ASSERT_TRUE(s.tiers.fetched_pages >= 2 * PAGES - 1 &&
                   s.tiers.fetched_pages <= 2 * PAGES); /* one was in the frame */
    teardown(&f);
}

/* Whatever becomes of a page that was read, the row gets to its end. */
static void a_page_that_comes_back_corrupt_is_computed(void) {
    fixture f = setup(4, 40, CACHE_RESTORE_LOAD);
    cache_stats s;
    uint32_t n_disk = 0;
    fill_save_and_evict(&f);
    CU_ASSERT_EQUAL(admit(&f, f.e), TOKENS - 1);
    for (int i = 0; i < 100 && cache_entry_loading(f.e); i++) {
        n_disk += end_disk(&f, n_disk < 4 ? CACHE_DISK_OK : CACHE_DISK_CORRUPT);
        cache_restore_more(f.c);
        (void)end_copies(&f);
        uint32_t most = cache_entry_may_compute(f.c, f.e);
        if (cache_entry_loading(f.e) && most > cache_entry_n_valid(f.e)) {
            cache_commit(f.e, most);
        }
        CU_ASSERT_PTR_NULL(cache_check(f.c));
    }
    cache_stats_get(f.c, &s);
    CU_ASSERT_FALSE(cache_entry_loading(f.e));
    CU_ASSERT_EQUAL(cache_entry_n_valid(f.e), TOKENS - 1);
    CU_ASSERT_TRUE(s.tiers.corrupt_pages > 0 && s.tiers.restored_tokens > 0 && s.tiers.raced_tokens > 0);
    teardown(&f);
}

static void a_disk_that_fails_in_a_row_is_not_used_any_more(void) {
    fixture f = setup(1, 40, CACHE_RESTORE_LOAD);
    cache_stats s;
    fill_save_and_evict(&f);
    (void)admit(&f, f.e);
    for (int i = 0; i < 100 && cache_entry_loading(f.e); i++) {
        (void)end_disk(&f, CACHE_DISK_FAILED);
        (void)end_copies(&f);
        cache_restore_more(f.c);
    }
    cache_stats_get(f.c, &s);
    CU_ASSERT_EQUAL(s.tiers.disk_off, 1);
    CU_ASSERT_EQUAL(s.tiers.failed_reads, 8);
    CU_ASSERT_EQUAL(cache_entry_saved(f.c, f.other).n_disk, 0);
    (void)cache_save(f.c, true);
    CU_ASSERT_EQUAL(cache_disk_pending(f.c), 0);
    teardown(&f);
}

/* Evicted entries keep an array of what they have saved, and none when that is gone. */
static void what_evicted_entries_keep_is_bounded(void) {
    enum { MANY = 50 };
    fixture f = setup(20, 0, CACHE_RESTORE_AUTO);
    cache_entry *all[MANY];
    cache_stats s;
    for (int i = 0; i < MANY; i++) {
        CU_ASSERT_EQUAL_FATAL(cache_entry_create(f.c, 0, &all[i], NULL), PERCH_OK);
        fill(&f, all[i]);
        fill(&f, f.other);
        save(&f);
        while (cache_evict_one(f.c, 0)) {}
        cache_stats_get(f.c, &s);
        CU_ASSERT_EQUAL(all[i]->n_copies, PAGES);
        CHECK_MSG(s.tiers.n_demoted <= 2 * 20, "%u claims", s.tiers.n_demoted);
    }
    for (int i = 0; i < 2 * MANY; i++) {
        (void)cache_save(f.c, true);
    }
    cache_stats_get(f.c, &s);
    CU_ASSERT_EQUAL(s.tiers.n_demoted, 20); /* those of two, whose copies are there */
    CU_ASSERT_PTR_NULL(all[0]->copies);
    CU_ASSERT_PTR_NOT_NULL(all[MANY - 1]->copies);
    cache_truncate(f.c, all[MANY - 1], 40);
    CU_ASSERT_EQUAL(all[MANY - 1]->n_copies, 3);
    for (int i = 0; i < MANY; i++) {
        cache_entry_destroy(f.c, all[i]);
    }
    cache_stats_get(f.c, &s);
    CU_ASSERT_EQUAL(s.tiers.n_demoted, 0);
    teardown(&f);
}

int main(int argc, char **argv) {
#define TEST(name)                                                                                                     \
    { #name, name }
    static const test_case tests[] = {
        TEST(without_costs_all_is_loaded_from_the_end_on),  TEST(costs_decide),
        TEST(computing_and_loading_meet_wherever_they_are), TEST(what_is_queued_counts),
        TEST(a_copy_that_is_gone_splits_what_is_restored),  TEST(a_single_host_frame_is_enough),
        TEST(a_page_that_comes_back_corrupt_is_computed),   TEST(a_disk_that_fails_in_a_row_is_not_used_any_more),
        TEST(what_evicted_entries_keep_is_bounded),
    };
    return test_main("restore_test", tests, sizeof tests / sizeof *tests, argc, argv);
}
