/* cache_test: each rule of cache.h by itself, on caches of a few pages. The rules together: cache_model_test.c. */
#include "cache/state.h"
#include "tests/support/check.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The linker sends the library's calls of calloc here: the one numbered calloc_fails (from 0 on) returns NULL. */
void *__real_calloc(size_t n, size_t bytes);
void *__wrap_calloc(size_t n, size_t bytes);
static int calloc_fails = -1;

void *__wrap_calloc(size_t n, size_t bytes) {
    if (calloc_fails >= 0 && calloc_fails-- == 0) {
        return NULL;
    }
    return __real_calloc(n, bytes);
}

/* ------------------------------------------------------------- fixture -- */

enum { N_ENTRIES = 8 };

typedef struct fixture {
    cache *c;
    cache_entry *e[N_ENTRIES]; /* reserved */
} fixture;

/* Groups of 100 bytes, sessions of 160 tokens = 10 groups; page_bytes 100: 10 pages a slot. */
static cache_config config_of(uint64_t page_bytes, uint32_t n_pages, uint32_t n_slots, uint32_t chunk_pages) {
    return (cache_config){.page_bytes = page_bytes,
                          .group_bytes = 100,
                          .n_pages = n_pages,
                          .n_slots = n_slots,
                          .session_len = 160,
                          .chunk_pages = chunk_pages};
}

static fixture setup(cache_config config) {
    fixture f = {0};
    perch_error err = {0};
    if (cache_create(&config, &f.c, &err) != PERCH_OK) {
        CU_FAIL_FATAL("the fixture's configuration is refused");
    }
    for (int i = 0; i < N_ENTRIES; i++) {
        CU_ASSERT_EQUAL(cache_entry_create(f.c, 0, &f.e[i], &err), PERCH_OK);
        CU_ASSERT_EQUAL(cache_entry_reserve(f.c, f.e[i], &err), PERCH_OK);
    }
    return f;
}

static void check_sound(const fixture *f) {
    const char *broken = cache_check(f->c);
    CHECK_MSG(broken == NULL, "%s", broken);
}

static void teardown(fixture *f) {
    cache_stats s;
    check_sound(f);
    for (int i = 0; i < N_ENTRIES; i++) {
        cache_entry_destroy(f->c, f->e[i]);
    }
    check_sound(f);
    cache_stats_get(f->c, &s);
    CU_ASSERT_EQUAL(s.n_free, s.n_pages);
    CU_ASSERT_EQUAL(s.n_resident_entries, 0);
    cache_destroy(f->c);
}

static cache_stats stats_of(const fixture *f) {
    cache_stats s;
    cache_stats_get(f->c, &s);
    return s;
}

/* The entry gets KV for its first n_tokens and stays pinned. */
static void fill(const fixture *f, int i, uint32_t n_tokens) {
    if (!cache_entry_pinned(f->e[i])) {
        CU_ASSERT_EQUAL(cache_pin(f->c, f->e[i]), PERCH_OK);
    }
    CU_ASSERT_EQUAL(cache_extend(f->c, f->e[i], n_tokens), PERCH_OK);
    cache_commit(f->e[i], n_tokens);
    CU_ASSERT_EQUAL(cache_entry_n_valid(f->e[i]), n_tokens);
}

/* The same, and it is idle afterwards: most recently used. */
static void fill_idle(const fixture *f, int i, uint32_t n_tokens) {
    fill(f, i, n_tokens);
    cache_unpin(f->c, f->e[i]);
}

/* The commands since the last call, as text: "map 0.3=7" slot.index=page, "unmap 0.3", "copy 7>8" from > to. */
static const char *commands_of(const fixture *f) {
    static char text[4096];
    size_t n, at = 0;
    const kv_command *k = cache_commands(f->c, &n);
    text[0] = 0;
    for (size_t i = 0; i < n && at < sizeof text - 64; i++, k++) {
        const char *comma = i ? ", " : "";
        int length = k->op == KV_MAP     ? sprintf(text + at, "%smap %u.%u=%u", comma, k->slot, k->index, k->page)
                     : k->op == KV_UNMAP ? sprintf(text + at, "%sunmap %u.%u", comma, k->slot, k->index)
                                         : sprintf(text + at, "%scopy %u>%u", comma, k->source, k->page);
        at += (size_t)length;
    }
    cache_commands_clear(f->c);
    return text;
}

static void expect_commands(const fixture *f, const char *expected) {
    const char *found = commands_of(f);
    CHECK_MSG(strcmp(found, expected) == 0, "commands \"%s\", not \"%s\"", found, expected);
}

static void expect_entry(const fixture *f, int i, uint32_t n_valid, uint32_t n_pages) {
    const cache_entry *e = f->e[i];
    CHECK_MSG(cache_entry_n_valid(e) == n_valid && cache_entry_n_pages(e) == n_pages,
              "entry %d: %u tokens on %u pages, not %u on %u", i, cache_entry_n_valid(e), cache_entry_n_pages(e),
              n_valid, n_pages);
}

/* ------------------------------------------------------ create, arithmetic -- */

static void create_refuses_what_makes_no_sense(void) {
    const struct {
        cache_config config;
        const char *names;
    } cases[] = {
        {{.page_bytes = 0, .group_bytes = 100, .n_pages = 10, .n_slots = 1, .session_len = 160}, "page_bytes"},
        {{.page_bytes = 100, .group_bytes = 0, .n_pages = 10, .n_slots = 1, .session_len = 160}, "group_bytes"},
        {{.page_bytes = 100, .group_bytes = 100, .n_pages = 10, .n_slots = 0, .session_len = 160}, "n_slots"},
        {{.page_bytes = 100, .group_bytes = 100, .n_pages = 10, .n_slots = 1, .session_len = 0}, "session_len"},
        {{.page_bytes = 100, .group_bytes = 100, .n_pages = 9, .n_slots = 1, .session_len = 160}, "n_pages is 9"},
        {{.page_bytes = 100, .group_bytes = 100, .n_pages = UINT32_MAX, .n_slots = 1, .session_len = 160}, "numbered"},
        {{.page_bytes = 1, .group_bytes = UINT64_MAX / 4, .n_pages = 9, .n_slots = 1, .session_len = 160}, "addressed"},
        {{.page_bytes = 1, .group_bytes = UINT32_MAX, .n_pages = 9, .n_slots = 1, .session_len = 160}, "addressed"},
        {{.page_bytes = 1,
          .group_bytes = UINT32_MAX - 1,
          .n_pages = UINT32_MAX - 1,
          .n_slots = UINT32_MAX,
          .session_len = 16},
         "slots"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        perch_error err = {0};
        cache *c = (cache *)&err;
        CU_ASSERT_EQUAL(cache_create(&cases[i].config, &c, &err), PERCH_E_INVALID);
        CU_ASSERT_PTR_NULL(c);
        CU_ASSERT_EQUAL(err.status, PERCH_E_INVALID);
        CHECK_MSG(strstr(err.message, cases[i].names) != NULL, "case %zu: \"%s\"", i, err.message);
        CU_ASSERT_EQUAL(cache_create(&cases[i].config, &c, NULL), PERCH_E_INVALID);
        CU_ASSERT_EQUAL(cache_host_bytes(&cases[i].config), 0);
    }
}

static void pages_per_slot_rounds_up_twice(void) {
    cache_config k = {.page_bytes = 64, .group_bytes = 100, .session_len = 33};
    CU_ASSERT_EQUAL(cache_pages_per_slot(&k), 5); /* 3 groups, 300 bytes */
    k.session_len = 32;
    CU_ASSERT_EQUAL(cache_pages_per_slot(&k), 4); /* 200 bytes */
    k.page_bytes = 4096;
    CU_ASSERT_EQUAL(cache_pages_per_slot(&k), 1);
    k.group_bytes = UINT64_MAX;
    CU_ASSERT_EQUAL(cache_pages_per_slot(&k), 0);
    k.page_bytes = 0;
    CU_ASSERT_EQUAL(cache_pages_per_slot(&k), 0);
}

static void create_and_reserve_survive_any_failing_allocation(void) {
    cache_config k = config_of(100, 10, 2, 1);
    perch_error err;
    cache *c = NULL;
    int n_failures = 0;
    for (;; n_failures++) {
        calloc_fails = n_failures;
        err = (perch_error){0};
        perch_status status = cache_create(&k, &c, &err);
        calloc_fails = -1;
        if (status == PERCH_OK) {
            break;
        }
        CU_ASSERT_EQUAL(status, PERCH_E_NOMEM);
        CU_ASSERT_PTR_NULL(c);
        CU_ASSERT_NOT_EQUAL(err.message[0], 0);
    }
    CU_ASSERT_EQUAL(n_failures, 5); /* the cache and its four tables */

    cache_entry *e = NULL, *child = NULL;
    calloc_fails = 0;
    CU_ASSERT_EQUAL(cache_entry_create(c, 0, &e, &err), PERCH_E_NOMEM);
    CU_ASSERT_PTR_NULL(e);
    CU_ASSERT_EQUAL_FATAL(cache_entry_create(c, 0, &e, &err), PERCH_OK);
    CU_ASSERT_EQUAL_FATAL(cache_entry_create(c, 0, &child, &err), PERCH_OK);
    calloc_fails = 0;
    CU_ASSERT_EQUAL(cache_entry_reserve(c, e, &err), PERCH_E_NOMEM);
    CU_ASSERT_EQUAL(cache_pin(c, e), PERCH_E_INVALID);
    CU_ASSERT_EQUAL(cache_entry_reserve(c, e, &err), PERCH_OK);
    CU_ASSERT_EQUAL(cache_pin(c, e), PERCH_OK);
    CU_ASSERT_EQUAL(cache_extend(c, e, 20), PERCH_OK);
    cache_commit(e, 20);

    calloc_fails = 0;
    CU_ASSERT_EQUAL(cache_fork(c, e, child, 20, &err), PERCH_E_NOMEM);
    CU_ASSERT_EQUAL(cache_entry_n_pages(child), 0);
    CU_ASSERT_EQUAL(cache_entry_n_valid(child), 0);
    CU_ASSERT_PTR_NULL(cache_check(c));
    for (int i = 0; i < 6; i++) {
        calloc_fails = i;
        CU_ASSERT_PTR_NOT_NULL(cache_check(c)); /* says that it could not check */
    }
    calloc_fails = -1;
    CU_ASSERT_EQUAL(cache_fork(c, e, child, 20, &err), PERCH_OK);
    cache_entry_destroy(c, e);
    cache_entry_destroy(c, child);
    cache_entry_destroy(c, NULL);
    cache_destroy(c);
    cache_destroy(NULL);
}

static void host_bytes_grow_with_pages_and_slots(void) {
    cache_config k = config_of(100, 10, 2, 1);
    uint64_t base = cache_host_bytes(&k);
    CU_ASSERT(base > 10 * sizeof(cache_page));
    k.n_pages += 1000;
    uint64_t more_pages = cache_host_bytes(&k);
    CU_ASSERT_EQUAL(more_pages - base, 1000 * sizeof(cache_page));
    k.n_slots += 10;
    CU_ASSERT(cache_host_bytes(&k) >= more_pages + 10 * (sizeof(cache_slot) + 10 * sizeof(uint32_t)));
}

/* ------------------------------------------------------------ pin, slots -- */

static void misuse_is_a_status(void) {
    fixture f = setup(config_of(100, 10, 2, 1));
    perch_error err = {0};
    cache_entry *bare;
    CU_ASSERT_EQUAL_FATAL(cache_entry_create(f.c, 0, &bare, &err), PERCH_OK);
    CU_ASSERT_EQUAL(cache_pin(f.c, bare), PERCH_E_INVALID);         /* not reserved */
    CU_ASSERT_EQUAL(cache_extend(f.c, f.e[0], 1), PERCH_E_INVALID); /* not pinned */
    CU_ASSERT_EQUAL(cache_pin(f.c, f.e[0]), PERCH_OK);
    CU_ASSERT_EQUAL(cache_pin(f.c, f.e[0]), PERCH_E_INVALID); /* pinned already */
    CU_ASSERT_EQUAL(cache_extend(f.c, f.e[0], 161), PERCH_E_TOO_LONG);
    CU_ASSERT_FALSE(cache_can_hold(f.c, f.e[0], 161, 0));
    cache_commit(f.e[0], 7); /* nothing was made ready */
    expect_entry(&f, 0, 0, 0);
    CU_ASSERT_EQUAL(cache_extend(f.c, f.e[0], 20), PERCH_OK);
    cache_commit(f.e[0], 30);
    expect_entry(&f, 0, 20, 2);
    cache_commit(f.e[0], 10);
    expect_entry(&f, 0, 20, 2);
    cache_unpin(f.c, f.e[1]); /* not pinned: nothing happens */
    CU_ASSERT_EQUAL(cache_fork(f.c, f.e[0], f.e[0], 20, &err), PERCH_E_INVALID);
    CU_ASSERT(strstr(err.message, "child") != NULL);
    cache_entry_destroy(f.c, bare);
    teardown(&f);
}

static void a_growing_entry_maps_its_pages_in_order(void) {
    fixture f = setup(config_of(100, 10, 2, 1));
    CU_ASSERT_EQUAL(cache_entry_slot(f.e[0]), CACHE_NO_SLOT);
    fill(&f, 0, 17);
    CU_ASSERT_EQUAL(cache_entry_slot(f.e[0]), 0);
    expect_commands(&f, "map 0.0=0, map 0.1=1");
    fill(&f, 0, 32); /* the second group's page is there */
    expect_commands(&f, "");
    fill(&f, 0, 33);
    expect_commands(&f, "map 0.2=2");
    CU_ASSERT_EQUAL(stats_of(&f).maps, 3);
    CU_ASSERT_EQUAL(stats_of(&f).n_pinned, 3);
    teardown(&f);
}

static void pages_need_not_end_where_groups_end(void) {
    fixture f = setup(config_of(64, 16, 1, 1));
    fill(&f, 0, 16);
    expect_entry(&f, 0, 16, 2); /* 100 bytes */
    fill(&f, 0, 32);
    expect_entry(&f, 0, 32, 4); /* 200 */
    fill(&f, 0, 160);
    expect_entry(&f, 0, 160, 16); /* 1000 */
    teardown(&f);
    f = setup(config_of(1000, 1, 1, 1));
    fill(&f, 0, 160);
    expect_entry(&f, 0, 160, 1);
    teardown(&f);
}

static void an_entry_that_kept_its_slot_is_pinned_without_a_command(void) {
    fixture f = setup(config_of(100, 10, 2, 1));
    fill_idle(&f, 0, 40);
    commands_of(&f);
    fill_idle(&f, 1, 16);
    commands_of(&f);
    CU_ASSERT_EQUAL(cache_pin(f.c, f.e[0]), PERCH_OK);
    expect_commands(&f, "");
    CU_ASSERT_EQUAL(cache_entry_slot(f.e[0]), 0);
    teardown(&f);
}

static void the_least_recently_used_holder_loses_its_slot_but_no_page(void) {
    fixture f = setup(config_of(100, 10, 2, 1));
    fill_idle(&f, 0, 48);
    fill_idle(&f, 1, 16);
    CU_ASSERT_EQUAL(cache_pin(f.c, f.e[0]), PERCH_OK);
    cache_unpin(f.c, f.e[0]); /* now entry 1 is the least recently used */
    commands_of(&f);
    fill(&f, 2, 32);
    CU_ASSERT_EQUAL(cache_entry_slot(f.e[2]), 1);
    CU_ASSERT_EQUAL(cache_entry_slot(f.e[1]), CACHE_NO_SLOT);
    CU_ASSERT_EQUAL(cache_entry_slot(f.e[0]), 0);
    expect_entry(&f, 1, 16, 1);
    expect_commands(&f, "map 1.0=4, map 1.1=5"); /* MAP replaces: no UNMAP */
    CU_ASSERT_EQUAL(stats_of(&f).evictions, 0);
    /* Entry 1 comes back under the slot of entry 0, whose pages beyond stay mapped: nobody else needs them. */
    CU_ASSERT_EQUAL(cache_pin(f.c, f.e[1]), PERCH_OK);
    expect_commands(&f, "map 0.0=3");
    check_sound(&f);
    /* Entry 0 comes back elsewhere: what was left of it under its old slot goes. */
    cache_unpin(f.c, f.e[2]);
    commands_of(&f);
    CU_ASSERT_EQUAL(cache_pin(f.c, f.e[0]), PERCH_OK);
    expect_commands(&f, "map 1.0=0, unmap 0.1, map 1.1=1, unmap 0.2, map 1.2=2");
    teardown(&f);
}

static void pin_with_every_slot_pinned_changes_nothing(void) {
    fixture f = setup(config_of(100, 20, 2, 1));
    fill(&f, 0, 16);
    fill(&f, 1, 16);
    commands_of(&f);
    cache_stats before = stats_of(&f);
    CU_ASSERT_EQUAL(before.n_slots_pinned, 2);
    CU_ASSERT_FALSE(cache_can_hold(f.c, f.e[2], 1, 0));
    CU_ASSERT_EQUAL(cache_pin(f.c, f.e[2]), PERCH_E_AGAIN);
    CU_ASSERT_FALSE(cache_entry_pinned(f.e[2]));
    cache_stats after = stats_of(&f);
    CU_ASSERT_EQUAL(memcmp(&before, &after, sizeof before), 0);
    expect_commands(&f, "");
    cache_unpin(f.c, f.e[1]);
    CU_ASSERT_TRUE(cache_can_hold(f.c, f.e[2], 1, 0));
    CU_ASSERT_EQUAL(cache_pin(f.c, f.e[2]), PERCH_OK);
    teardown(&f);
}

static void an_idle_entry_without_pages_keeps_no_slot(void) {
    fixture f = setup(config_of(100, 10, 1, 1));
    CU_ASSERT_EQUAL(cache_pin(f.c, f.e[0]), PERCH_OK);
    CU_ASSERT_EQUAL(cache_entry_slot(f.e[0]), 0);
    cache_unpin(f.c, f.e[0]);
    CU_ASSERT_EQUAL(cache_entry_slot(f.e[0]), CACHE_NO_SLOT);
    CU_ASSERT_EQUAL(stats_of(&f).n_resident_entries, 0);
    fill_idle(&f, 0, 16);
    CU_ASSERT_EQUAL(cache_entry_slot(f.e[0]), 0);
    CU_ASSERT_EQUAL(stats_of(&f).n_resident_entries, 1);
    cache_truncate(f.c, f.e[0], 0);
    CU_ASSERT_EQUAL(cache_entry_slot(f.e[0]), CACHE_NO_SLOT);
    CU_ASSERT_EQUAL(stats_of(&f).n_resident_entries, 0);
    teardown(&f);
}

static void the_page_array_lives_as_long_as_someone_needs_it(void) {
    fixture f = setup(config_of(100, 10, 1, 1));
    cache_entry *e = f.e[0];
    CU_ASSERT_EQUAL(cache_entry_reserve(f.c, e, NULL), PERCH_OK);
    cache_entry_release(f.c, e);
    fill(&f, 0, 16); /* still reserved once */
    cache_entry_release(f.c, e);
    CU_ASSERT_PTR_NOT_NULL(e->pages);
    cache_truncate(f.c, e, 0);
    CU_ASSERT_PTR_NOT_NULL(e->pages); /* pinned */
    fill_idle(&f, 0, 16);
    CU_ASSERT_PTR_NOT_NULL(e->pages);
    CU_ASSERT_EQUAL(cache_pin(f.c, e), PERCH_OK);
    cache_unpin(f.c, e);
    CU_ASSERT_TRUE(cache_evict_one(f.c, 0));
    CU_ASSERT_PTR_NULL(e->pages);
    CU_ASSERT_EQUAL(cache_pin(f.c, e), PERCH_E_INVALID);
    cache_entry_release(f.c, e); /* once too often: nothing happens */
    CU_ASSERT_EQUAL(cache_entry_reserve(f.c, e, NULL), PERCH_OK);
    cache_entry_release(f.c, e);
    CU_ASSERT_PTR_NULL(e->pages);
    teardown(&f);
}

/* ----------------------------------------------------------- lazy unmapping -- */

static void the_pages_of_an_ended_sequence_are_taken_again_where_they_are(void) {
    fixture f = setup(config_of(100, 20, 2, 1));
    fill_idle(&f, 0, 48);
    fill(&f, 1, 16);
    cache_entry_destroy(f.c, f.e[0]);
    f.e[0] = NULL;
    commands_of(&f);
    fill(&f, 2, 48);
    expect_commands(&f, ""); /* the same slot, the same pages, still mapped */
    CU_ASSERT_EQUAL(cache_entry_slot(f.e[2]), 0);
    CU_ASSERT_EQUAL(stats_of(&f).unmaps, 0);
    teardown(&f);
}

static void the_slot_released_last_is_given_out_first(void) {
    fixture f = setup(config_of(100, 20, 3, 1));
    for (int i = 0; i < 3; i++) {
        fill_idle(&f, i, 16);
    }
    cache_truncate(f.c, f.e[1], 0);
    cache_truncate(f.c, f.e[0], 0);
    cache_truncate(f.c, f.e[2], 0);
    fill(&f, 3, 16);
    CU_ASSERT_EQUAL(cache_entry_slot(f.e[3]), 2);
    fill(&f, 4, 16);
    CU_ASSERT_EQUAL(cache_entry_slot(f.e[4]), 0);
    CU_ASSERT_EQUAL(stats_of(&f).maps, 3); /* those of the first three */
    teardown(&f);
}

static void a_free_page_is_unmapped_when_it_is_wanted_elsewhere_and_not_before(void) {
    fixture f = setup(config_of(100, 11, 2, 1));
    fill(&f, 0, 48);
    fill(&f, 1, 16 * 7);
    commands_of(&f);
    cache_truncate(f.c, f.e[0], 16);
    expect_commands(&f, ""); /* pages 1 and 2 are free, and mapped */
    CU_ASSERT_EQUAL(stats_of(&f).n_free, 3);
    fill(&f, 1, 16 * 8);
    expect_commands(&f, "map 1.7=10"); /* the free page that is mapped nowhere goes first */
    fill(&f, 1, 16 * 9);
    expect_commands(&f,
                    "unmap 0.2, map 1.8=2"); /* the front of a slot stays longest: it is what the next holder needs */
    fill(&f, 0, 32);
    expect_commands(&f, ""); /* page 1 is where it was */
    teardown(&f);
}

static void a_shared_page_is_unmapped_where_its_owner_left(void) {
    fixture f = setup(config_of(100, 20, 2, 1));
    fill(&f, 0, 32);
    CU_ASSERT_EQUAL(cache_fork(f.c, f.e[0], f.e[1], 32, NULL), PERCH_OK);
    commands_of(&f);
    CU_ASSERT_EQUAL(cache_pin(f.c, f.e[1]), PERCH_OK);
    expect_commands(&f, "map 1.0=0, map 1.1=1"); /* under both slots */
    cache_truncate(f.c, f.e[1], 16);
    expect_commands(&f, "unmap 1.1");
    cache_entry_destroy(f.c, f.e[0]);
    f.e[0] = NULL;
    expect_commands(&f, "unmap 0.0"); /* 0.1's page is free now, and may stay */
    teardown(&f);
}

/* ------------------------------------------------------------- eviction -- */

static void free_pages_go_before_idle_ones(void) {
    fixture f = setup(config_of(100, 10, 2, 1));
    fill_idle(&f, 0, 80);
    fill(&f, 1, 80);
    expect_entry(&f, 0, 80, 5);
    CU_ASSERT_EQUAL(stats_of(&f).evictions, 0);
    CU_ASSERT_EQUAL(stats_of(&f).n_free, 0);
    fill(&f, 1, 81);
    expect_entry(&f, 0, 64, 4);
    CU_ASSERT_EQUAL(stats_of(&f).evictions, 1);
    teardown(&f);
}

static void the_least_recently_used_loses_its_tail_and_keeps_its_place(void) {
    fixture f = setup(config_of(100, 10, 4, 1));
    fill_idle(&f, 0, 40);
    fill_idle(&f, 1, 40);
    fill_idle(&f, 2, 40);
    fill(&f, 3, 16);
    fill(&f, 3, 32); /* takes one page from entry 0 */
    expect_entry(&f, 0, 32, 2);
    expect_entry(&f, 1, 40, 3);
    fill(&f, 3, 48);
    expect_entry(&f, 0, 16, 1); /* again from entry 0 */
    fill(&f, 3, 80);
    expect_entry(&f, 0, 0, 0); /* then from entry 1 */
    expect_entry(&f, 1, 32, 2);
    expect_entry(&f, 2, 40, 3);
    CU_ASSERT_EQUAL(cache_entry_n_evictions(f.e[0]), 3);
    CU_ASSERT_EQUAL(cache_entry_n_evictions(f.e[1]), 1);
    CU_ASSERT_EQUAL(cache_entry_n_evictions(f.e[2]), 0);
    CU_ASSERT_EQUAL(stats_of(&f).evictions, 4);
    CU_ASSERT_EQUAL(stats_of(&f).evicted_pages, 4);
    CU_ASSERT_EQUAL(stats_of(&f).n_resident_entries, 2);
    teardown(&f);
}

typedef struct told {
    cache_eviction last;
    int n;
} told;

static void on_evict(void *user, const cache_eviction *what) {
    told *t = user;
    t->last = *what;
    t->n++;
}

static void who_watches_is_told_what_was_lost_and_how_long_it_was_idle(void) {
    fixture f = setup(config_of(100, 10, 3, 1));
    told t = {.n = 0};
    cache_set_time(f.c, 1000);
    fill_idle(&f, 0, 64); /* 4 pages, idle since 1000 */
    cache_set_time(f.c, 1700);
    fill_idle(&f, 1, 32); /* 2 pages */
    cache_watch(f.c, on_evict, &t);
    CU_ASSERT_TRUE(cache_evict_one(f.c, 1));
    CU_ASSERT_EQUAL(t.n, 1);
    CU_ASSERT_EQUAL(t.last.n_pages, 3);
    CU_ASSERT_EQUAL(t.last.n_tokens, 64);
    CU_ASSERT_EQUAL(t.last.n_left, 16);
    CU_ASSERT_EQUAL(t.last.idle_us, 700);
    CU_ASSERT_FALSE(t.last.closed);
    cache_set_time(f.c, 5000);
    CU_ASSERT_EQUAL(cache_pin(f.c, f.e[0]), PERCH_OK); /* in use: it is younger than the other one now */
    cache_unpin(f.c, f.e[0]);
    cache_set_time(f.c, 5010);
    CU_ASSERT_TRUE(cache_evict_one(f.c, 0));
    CU_ASSERT_EQUAL(t.last.idle_us, 5010 - 1700);
    CU_ASSERT_TRUE(cache_evict_one(f.c, 0));
    CU_ASSERT_EQUAL(t.last.idle_us, 10);
    CU_ASSERT_EQUAL(t.last.n_left, 0);
    CU_ASSERT_EQUAL(t.n, 3);
    teardown(&f);
}

static void pinning_makes_an_entry_safe_and_unpinning_most_recent(void) {
    fixture f = setup(config_of(100, 10, 4, 1));
    fill_idle(&f, 0, 64);
    fill_idle(&f, 1, 64);
    CU_ASSERT_EQUAL(cache_pin(f.c, f.e[0]), PERCH_OK);
    fill(&f, 3, 48);
    expect_entry(&f, 0, 64, 4);
    expect_entry(&f, 1, 48, 3);
    cache_unpin(f.c, f.e[0]);
    fill(&f, 3, 96);
    expect_entry(&f, 0, 64, 4);
    expect_entry(&f, 1, 0, 0);
    teardown(&f);
}

static void what_eviction_leaves_is_whole_groups(void) {
    fixture f = setup(config_of(64, 16, 2, 1));
    fill_idle(&f, 0, 40);                                         /* 300 bytes: 5 pages */
    fill(&f, 1, 16 * 6);                                          /* 600 bytes: 10 pages */
    expect_entry(&f, 0, 40, 5);                                   /* one page is free */
    CU_ASSERT_EQUAL(cache_extend(f.c, f.e[1], 16 * 7), PERCH_OK); /* 11 pages */
    CU_ASSERT_EQUAL(cache_extend(f.c, f.e[1], 16 * 8), PERCH_OK); /* 13: takes 2 */
    expect_entry(&f, 0, 16, 3);                                   /* 192 bytes hold one group */
    CU_ASSERT_EQUAL(stats_of(&f).evicted_pages, 2);
    CU_ASSERT_TRUE(cache_evict_one(f.c, 2));
    expect_entry(&f, 0, 16, 2); /* the third page was spare by now */
    CU_ASSERT_EQUAL(stats_of(&f).evicted_pages, 2);
    CU_ASSERT_EQUAL(cache_entry_n_evictions(f.e[0]), 1);
    CU_ASSERT_TRUE(cache_evict_one(f.c, 1)); /* 64 bytes hold no group: both pages go */
    expect_entry(&f, 0, 0, 0);
    CU_ASSERT_EQUAL(stats_of(&f).evicted_pages, 4);
    CU_ASSERT_EQUAL(cache_entry_n_evictions(f.e[0]), 2);
    teardown(&f);
}

static void spare_pages_of_an_idle_entry_go_first_and_are_no_eviction(void) {
    fixture f = setup(config_of(100, 10, 2, 4));
    fill_idle(&f, 0, 20);
    expect_entry(&f, 0, 20, 4);
    fill(&f, 1, 128);
    expect_entry(&f, 0, 20, 2);
    CU_ASSERT_EQUAL(stats_of(&f).evictions, 0);
    CU_ASSERT_EQUAL(stats_of(&f).evicted_pages, 0);
    CU_ASSERT_EQUAL(cache_entry_n_evictions(f.e[0]), 0);
    teardown(&f);
}

static void evict_one_takes_the_oldest_down_to_what_it_may_keep(void) {
    fixture f = setup(config_of(100, 20, 4, 1));
    CU_ASSERT_FALSE(cache_evict_one(f.c, 0)); /* nobody there */
    fill_idle(&f, 0, 64);
    fill_idle(&f, 1, 64);
    fill(&f, 2, 64);
    CU_ASSERT_TRUE(cache_evict_one(f.c, 3));
    expect_entry(&f, 0, 48, 3);
    CU_ASSERT_FALSE(cache_evict_one(f.c, 3)); /* the oldest has no more than that */
    CU_ASSERT_TRUE(cache_evict_one(f.c, 0));
    CU_ASSERT_TRUE(cache_evict_one(f.c, 0));
    expect_entry(&f, 0, 0, 0);
    expect_entry(&f, 1, 0, 0);
    CU_ASSERT_FALSE(cache_evict_one(f.c, 0)); /* only a pinned one is left */
    expect_entry(&f, 2, 64, 4);
    teardown(&f);
}

/* --------------------------------------------------------------- growth -- */

static void extend_is_all_or_nothing(void) {
    fixture f = setup(config_of(100, 10, 3, 1));
    fill(&f, 0, 80);
    fill_idle(&f, 1, 32);
    fill(&f, 2, 16);
    commands_of(&f);
    cache_stats before = stats_of(&f);
    CU_ASSERT_FALSE(cache_can_hold(f.c, f.e[2], 16 * 6, 0)); /* 5 pages, 2 + 2 to be had */
    CU_ASSERT_EQUAL(cache_extend(f.c, f.e[2], 16 * 6), PERCH_E_AGAIN);
    cache_stats after = stats_of(&f);
    CU_ASSERT_EQUAL(memcmp(&before, &after, sizeof before), 0);
    expect_commands(&f, "");
    expect_entry(&f, 1, 32, 2);
    expect_entry(&f, 2, 16, 1);
    CU_ASSERT_TRUE(cache_can_hold(f.c, f.e[2], 16 * 5, 0));
    CU_ASSERT_EQUAL(cache_extend(f.c, f.e[2], 16 * 5), PERCH_OK);
    expect_entry(&f, 1, 0, 0);
    teardown(&f);
}

static void growth_comes_in_chunks_up_to_the_end_of_the_slot(void) {
    fixture f = setup(config_of(100, 20, 3, 4));
    fill(&f, 0, 1);
    expect_entry(&f, 0, 1, 4);
    fill(&f, 0, 64);
    expect_entry(&f, 0, 64, 4);
    fill(&f, 0, 65);
    expect_entry(&f, 0, 65, 8);
    fill(&f, 0, 129);
    expect_entry(&f, 0, 129, 10); /* not 12 */
    teardown(&f);
}

static void rounding_that_does_not_fit_is_left_out(void) {
    fixture f = setup(config_of(100, 10, 3, 4));
    fill(&f, 0, 64);
    fill(&f, 1, 16);
    fill(&f, 2, 16); /* 4 + 4 of 10 are taken: no whole chunk */
    expect_entry(&f, 2, 16, 1);
    fill(&f, 2, 17);
    expect_entry(&f, 2, 17, 2);
    CU_ASSERT_EQUAL(cache_extend(f.c, f.e[2], 33), PERCH_E_AGAIN);
    teardown(&f);
}

static void chunk_0_fills_the_slot_or_fails(void) {
    fixture f = setup(config_of(100, 15, 3, 0));
    fill(&f, 0, 1);
    expect_entry(&f, 0, 1, 10);
    CU_ASSERT_EQUAL(cache_pin(f.c, f.e[1]), PERCH_OK);
    CU_ASSERT_FALSE(cache_can_hold(f.c, f.e[1], 1, 0));
    CU_ASSERT_EQUAL(cache_extend(f.c, f.e[1], 1), PERCH_E_AGAIN);
    expect_entry(&f, 1, 0, 0);
    cache_unpin(f.c, f.e[0]);
    fill_idle(&f, 1, 1);
    expect_entry(&f, 1, 1, 10);
    expect_entry(&f, 0, 1, 5); /* lost spare pages only */
    fill(&f, 0, 17);
    expect_entry(&f, 0, 17, 10); /* filled again although its own pages would have done */
    teardown(&f);
}

static void can_hold_leaves_reserved_pages_alone(void) {
    fixture f = setup(config_of(100, 10, 3, 1));
    fill_idle(&f, 0, 48);
    fill_idle(&f, 1, 48);
    /* Entry 0, pinned, would have 4 free + 3 idle pages left. */
    CU_ASSERT_TRUE(cache_can_hold(f.c, f.e[0], 160, 0));
    CU_ASSERT_FALSE(cache_can_hold(f.c, f.e[0], 160, 1));
    CU_ASSERT_TRUE(cache_can_hold(f.c, f.e[0], 144, 1));
    CU_ASSERT_TRUE(cache_can_hold(f.c, f.e[0], 48, 7));
    CU_ASSERT_TRUE(cache_can_hold(f.c, f.e[0], 48, UINT32_MAX));
    CU_ASSERT_FALSE(cache_can_hold(f.c, f.e[0], 49, UINT32_MAX));
    CU_ASSERT_EQUAL(cache_pin(f.c, f.e[0]), PERCH_OK);
    CU_ASSERT_FALSE(cache_can_hold(f.c, f.e[0], 160, 1));
    CU_ASSERT_TRUE(cache_can_hold(f.c, f.e[0], 144, 1));
    teardown(&f);
}

/* ----------------------------------------------------------------- forks -- */

static void a_fork_shares_pages_and_takes_none(void) {
    fixture f = setup(config_of(100, 10, 3, 1));
    fill(&f, 0, 40);
    CU_ASSERT_EQUAL(cache_extend(f.c, f.e[0], 80), PERCH_OK);
    commands_of(&f);
    CU_ASSERT_EQUAL(cache_fork(f.c, f.e[0], f.e[1], 100, NULL), PERCH_OK);
    expect_entry(&f, 1, 40, 3); /* what is valid, with the partial page, without the spare ones */
    CU_ASSERT_EQUAL(cache_fork(f.c, f.e[0], f.e[2], 20, NULL), PERCH_OK);
    expect_entry(&f, 2, 20, 2);
    CU_ASSERT_EQUAL(cache_fork(f.c, f.e[0], f.e[3], 0, NULL), PERCH_OK);
    expect_entry(&f, 3, 0, 0);
    CU_ASSERT_EQUAL(cache_fork(f.c, f.e[3], f.e[4], 10, NULL), PERCH_OK); /* of an empty one */
    expect_entry(&f, 4, 0, 0);
    CU_ASSERT_EQUAL(cache_entry_slot(f.e[1]), CACHE_NO_SLOT);
    CU_ASSERT_FALSE(cache_entry_pinned(f.e[1]));
    CU_ASSERT_EQUAL(cache_fork(f.c, f.e[0], f.e[1], 1, NULL), PERCH_E_INVALID); /* not empty */
    CU_ASSERT_EQUAL(stats_of(&f).n_pinned, 5);
    CU_ASSERT_EQUAL(stats_of(&f).n_idle, 0);
    CU_ASSERT_EQUAL(stats_of(&f).n_resident_entries, 2);
    expect_commands(&f, "");
    teardown(&f);
}

static void a_child_needs_no_reservation_to_be_forked_or_pinned(void) {
    fixture f = setup(config_of(100, 10, 3, 1));
    cache_entry *child;
    CU_ASSERT_EQUAL_FATAL(cache_entry_create(f.c, 0, &child, NULL), PERCH_OK);
    fill_idle(&f, 0, 40);
    CU_ASSERT_EQUAL(cache_fork(f.c, f.e[0], child, 40, NULL), PERCH_OK);
    CU_ASSERT_EQUAL(cache_pin(f.c, child), PERCH_OK);
    cache_unpin(f.c, child);
    cache_truncate(f.c, child, 0);
    CU_ASSERT_PTR_NULL(child->pages);
    cache_entry_destroy(f.c, child);
    teardown(&f);
}

static void a_shared_page_is_copied_once_before_the_first_write(void) {
    fixture f = setup(config_of(100, 10, 3, 1));
    fill(&f, 0, 40);
    CU_ASSERT_EQUAL(cache_fork(f.c, f.e[0], f.e[1], 40, NULL), PERCH_OK);
    commands_of(&f);
    fill(&f, 0, 41);
    expect_commands(&f, "copy 2>3, map 0.2=3");
    fill(&f, 0, 42);
    expect_commands(&f, "");
    fill(&f, 1, 41); /* the last owner writes without a copy */
    expect_commands(&f, "map 1.0=0, map 1.1=1, map 1.2=2");
    CU_ASSERT_EQUAL(stats_of(&f).copied_pages, 1);
    CU_ASSERT_EQUAL(cache_extend(f.c, f.e[1], 41), PERCH_OK); /* nothing to write: nothing to do */
    expect_commands(&f, "");
    teardown(&f);
}

static void every_page_of_a_partly_valid_group_is_copied(void) {
    fixture f = setup(config_of(40, 50, 3, 1));
    fill(&f, 0, 20); /* groups at 0 and 100: pages 0..4, the second group from page 2 on */
    CU_ASSERT_EQUAL(cache_fork(f.c, f.e[0], f.e[1], 20, NULL), PERCH_OK);
    commands_of(&f);
    fill(&f, 0, 21);
    expect_commands(&f, "copy 2>5, map 0.2=5, copy 3>6, map 0.3=6, copy 4>7, map 0.4=7");
    teardown(&f);
}

static void a_page_is_copied_for_the_group_before_the_written_one(void) {
    fixture f = setup(config_of(64, 50, 3, 1));
    fill(&f, 0, 16); /* the group ends in page 1, where the next begins */
    CU_ASSERT_EQUAL(cache_fork(f.c, f.e[0], f.e[1], 16, NULL), PERCH_OK);
    commands_of(&f);
    fill(&f, 1, 17);
    expect_commands(&f, "map 1.0=0, map 1.1=1, copy 1>2, map 1.1=2, map 1.2=3, map 1.3=4");
    teardown(&f);
}

static void a_shared_page_without_valid_kv_is_replaced_without_a_copy(void) {
    fixture f = setup(config_of(64, 16, 3, 1));
    fill_idle(&f, 0, 32); /* pages 0..3 */
    CU_ASSERT_EQUAL(cache_fork(f.c, f.e[0], f.e[1], 32, NULL), PERCH_OK);
    CU_ASSERT_TRUE(cache_evict_one(f.c, 3)); /* one group; page 2 holds a part of the lost one */
    expect_entry(&f, 0, 16, 3);
    CU_ASSERT_EQUAL(cache_pin(f.c, f.e[0]), PERCH_OK);
    commands_of(&f);
    fill(&f, 0, 32);
    expect_commands(&f, "copy 1>4, map 0.1=4, map 0.2=5, map 0.3=6");
    teardown(&f);
}

static void pages_of_a_pinned_sharer_are_not_counted_as_idle(void) {
    fixture f = setup(config_of(100, 10, 3, 1));
    fill(&f, 0, 64);
    CU_ASSERT_EQUAL(cache_fork(f.c, f.e[0], f.e[1], 64, NULL), PERCH_OK);
    fill_idle(&f, 2, 64);
    /* 4 pinned (and shared with an idle entry), 4 idle, 2 free: entry 0 can have 6 more. */
    CU_ASSERT_EQUAL(stats_of(&f).n_pinned, 4);
    CU_ASSERT_EQUAL(stats_of(&f).n_idle, 4);
    CU_ASSERT_TRUE(cache_can_hold(f.c, f.e[0], 160, 0));
    CU_ASSERT_FALSE(cache_can_hold(f.c, f.e[0], 160, 1));
    /* Evicting entry 1, the oldest, frees nothing; the loop goes on. */
    fill(&f, 0, 112);
    expect_entry(&f, 1, 0, 0);
    expect_entry(&f, 2, 48, 3);
    teardown(&f);
}

static void where_no_page_is_left_idle_sharers_give_way_instead_of_a_copy(void) {
    fixture f = setup(config_of(100, 10, 3, 0));
    fill(&f, 0, 150); /* all pages */
    CU_ASSERT_EQUAL(cache_fork(f.c, f.e[0], f.e[1], 150, NULL), PERCH_OK);
    CU_ASSERT_EQUAL(cache_fork(f.c, f.e[0], f.e[2], 40, NULL), PERCH_OK);
    commands_of(&f);
    CU_ASSERT_TRUE(cache_can_hold(f.c, f.e[0], 151, 0));
    fill(&f, 0, 151); /* else the only row could never go on */
    expect_commands(&f, "");
    expect_entry(&f, 1, 144, 9);
    expect_entry(&f, 2, 40, 3);
    CU_ASSERT_EQUAL(cache_entry_n_evictions(f.e[1]), 1);
    teardown(&f);
}

static void a_page_that_another_pinned_entry_shares_must_be_copied(void) {
    fixture f = setup(config_of(100, 10, 3, 1));
    fill(&f, 0, 152);
    CU_ASSERT_EQUAL(cache_fork(f.c, f.e[0], f.e[1], 152, NULL), PERCH_OK);
    CU_ASSERT_EQUAL(cache_pin(f.c, f.e[1]), PERCH_OK);
    commands_of(&f);
    CU_ASSERT_FALSE(cache_can_hold(f.c, f.e[0], 153, 0));
    CU_ASSERT_EQUAL(cache_extend(f.c, f.e[0], 153), PERCH_E_AGAIN);
    expect_commands(&f, "");
    cache_truncate(f.c, f.e[1], 140);
    CU_ASSERT_EQUAL(cache_extend(f.c, f.e[0], 153), PERCH_OK);
    expect_commands(&f, "unmap 1.9");
    teardown(&f);
}

/* -------------------------------------------------------------- truncate -- */

static void truncate_frees_the_pages_behind_the_last_group(void) {
    fixture f = setup(config_of(100, 10, 3, 1));
    fill(&f, 0, 100);
    expect_entry(&f, 0, 100, 7);
    cache_truncate(f.c, f.e[0], 160);
    expect_entry(&f, 0, 100, 7);
    cache_truncate(f.c, f.e[0], 33);
    expect_entry(&f, 0, 33, 3);
    cache_commit(f.e[0], 100); /* extend's promise ended there, too */
    expect_entry(&f, 0, 33, 3);
    CU_ASSERT_EQUAL(stats_of(&f).n_free, 7);
    cache_unpin(f.c, f.e[0]);
    cache_truncate(f.c, f.e[0], 32);
    expect_entry(&f, 0, 32, 2);
    CU_ASSERT_EQUAL(stats_of(&f).evictions, 0);
    CU_ASSERT_EQUAL(stats_of(&f).unmaps, 0);
    teardown(&f);
}

static void destroying_a_pinned_entry_unpins_it_first(void) {
    fixture f = setup(config_of(100, 10, 1, 1));
    fill(&f, 0, 100);
    cache_entry_destroy(f.c, f.e[0]);
    f.e[0] = NULL;
    CU_ASSERT_EQUAL(stats_of(&f).n_slots_pinned, 0);
    CU_ASSERT_EQUAL(stats_of(&f).n_pinned, 0);
    CU_ASSERT_EQUAL(cache_pin(f.c, f.e[1]), PERCH_OK);
    teardown(&f);
}

/* --------------------------------------------------------- the command list -- */

static void one_step_that_pins_and_fills_every_slot_has_room(void) {
    fixture f = setup(config_of(7, 150 * 8, 4, 1));
    for (int round = 0; round < 3; round++) {
        /* Each step: four other entries take all the slots, share or copy, and grow to the end. */
        for (int i = 0; i < 4; i++) {
            int e = (round % 2) * 4 + i;
            cache_truncate(f.c, f.e[e], 8);
            CU_ASSERT_EQUAL(cache_pin(f.c, f.e[e]), PERCH_OK);
            CU_ASSERT_EQUAL(cache_extend(f.c, f.e[e], 160), PERCH_OK);
        }
        check_sound(&f);
        cache_commands_clear(f.c);
        for (int i = 0; i < 4; i++) {
            cache_commit(f.e[(round % 2) * 4 + i], 160);
            cache_unpin(f.c, f.e[(round % 2) * 4 + i]);
        }
    }
    teardown(&f);
}

static void a_full_command_list_is_E_AGAIN_before_anything_changed(void) {
    fixture f = setup(config_of(100, 40, 1, 1));
    size_t n;
    int turn = 0;
    fill_idle(&f, 0, 100);
    fill_idle(&f, 1, 100);
    fill_idle(&f, 2, 20);
    perch_status status = PERCH_OK;
    for (; turn < 1000; turn++) { /* two entries take the one slot from each other */
        CU_ASSERT_EQUAL(cache_can_hold(f.c, f.e[turn % 2], 100, 0),
                        (status = cache_pin(f.c, f.e[turn % 2])) == PERCH_OK);
        if (status != PERCH_OK) {
            break;
        }
        cache_unpin(f.c, f.e[turn % 2]);
    }
    CU_ASSERT_EQUAL(status, PERCH_E_AGAIN);
    cache_commands(f.c, &n);
    CHECK_MSG(n >= 10 && n <= f.c->cap_commands, "%zu commands", n);
    check_sound(&f);
    CU_ASSERT_EQUAL(cache_pin(f.c, f.e[2]), PERCH_OK); /* a small one still fits */
    CU_ASSERT_FALSE(cache_can_hold(f.c, f.e[2], 160, 0));
    CU_ASSERT_EQUAL(cache_extend(f.c, f.e[2], 160), PERCH_E_AGAIN);
    expect_entry(&f, 2, 20, 2);
    /* What can't fail has room. */
    for (int i = 0; i < 3; i++) {
        cache_entry_destroy(f.c, f.e[i]);
        f.e[i] = NULL;
    }
    check_sound(&f);
    cache_commands_clear(f.c);
    fill(&f, 3, 160);
    teardown(&f);
}

/* ------------------------------------------------------------------ scale -- */

typedef struct crowd {
    cache *c;
    cache_entry **entries;
    cache_entry *busy;
    uint32_t n;
} crowd;

/* n idle entries with n_tokens each, and a busy one; n_pages counts one page an entry. */
static crowd crowd_create(uint32_t n, uint32_t n_tokens, uint32_t n_pages) {
    crowd w = {.n = n, .entries = calloc(n, sizeof *w.entries)};
    cache_config k = config_of(100, n_pages, 8, 1);
    CU_ASSERT_PTR_NOT_NULL_FATAL(w.entries);
    CU_ASSERT_EQUAL_FATAL(cache_create(&k, &w.c, NULL), PERCH_OK);
    for (uint32_t i = 0; i < n; i++) {
        CU_ASSERT_EQUAL_FATAL(cache_entry_create(w.c, 0, &w.entries[i], NULL), PERCH_OK);
        if (n_tokens > 0) {
            cache_entry_reserve(w.c, w.entries[i], NULL);
            cache_pin(w.c, w.entries[i]);
            cache_extend(w.c, w.entries[i], n_tokens);
            cache_commit(w.entries[i], n_tokens);
            cache_unpin(w.c, w.entries[i]);
            cache_commands_clear(w.c);
        }
    }
    CU_ASSERT_EQUAL_FATAL(cache_entry_create(w.c, 0, &w.busy, NULL), PERCH_OK);
    CU_ASSERT_EQUAL_FATAL(cache_entry_reserve(w.c, w.busy, NULL), PERCH_OK);
    return w;
}

static void crowd_destroy(crowd *w) {
    for (uint32_t i = 0; i < w->n; i++) {
        cache_entry_destroy(w->c, w->entries[i]);
    }
    cache_entry_destroy(w->c, w->busy);
    cache_destroy(w->c);
    free(w->entries);
}

/* Microseconds of CPU time for 20,000 turns of pin, extend by two pages, commit, unpin, rewind; the best of five. */
static uint64_t time_turns(crowd *w) {
    uint64_t best = UINT64_MAX;
    for (int attempt = 0; attempt < 5; attempt++) {
        uint64_t begin = test_cpu_us();
        for (int i = 0; i < 20000; i++) {
            if (cache_pin(w->c, w->busy) != PERCH_OK || cache_extend(w->c, w->busy, 32) != PERCH_OK) {
                CU_FAIL_FATAL("a turn fails");
            }
            cache_commit(w->busy, 32);
            cache_unpin(w->c, w->busy);
            cache_truncate(w->c, w->busy, i % 2 ? 0 : 8);
            cache_commands_clear(w->c);
        }
        uint64_t took = test_cpu_us() - begin;
        best = took < best ? took : best;
    }
    return best;
}

static void expect_same_time(uint32_t n, uint32_t n_tokens) {
    crowd few = crowd_create(10, n_tokens, 10 * (n_tokens > 0) + 12),
          many = crowd_create(n, n_tokens, n * (n_tokens > 0) + 12);
    uint64_t few_us = time_turns(&few), many_us = time_turns(&many);
    /* A single pass over the crowd in a turn would be a factor of 1,000 at least. */
    CHECK_MSG(many_us < 20 * few_us + 20000, "20,000 turns take %llu us beside %u entries, %llu us beside 10",
              (unsigned long long)many_us, n, (unsigned long long)few_us);
    crowd_destroy(&few);
    crowd_destroy(&many);
}

static void a_million_empty_entries_cost_no_time_and_little_memory(void) {
    CU_ASSERT(sizeof(cache_entry) <= 192);
    expect_same_time(1000000, 0);
}

static void a_hundred_thousand_resident_entries_cost_no_time(void) { expect_same_time(100000, 16); }

static void eviction_takes_the_same_time_however_many_wait_for_it(void) {
    uint64_t took[2];
    for (int i = 0; i < 2; i++) {
        uint32_t n = i ? 100000 : 5000;
        crowd w = crowd_create(n, 16, n); /* no page is free */
        uint64_t begin = test_cpu_us();
        for (uint32_t turn = 0; turn < 5000;
             turn++) { /* the oldest loses its page to the one that was evicted longest ago */
            cache_entry *e = w.entries[turn];
            CU_ASSERT_TRUE(cache_evict_one(w.c, 0));
            CU_ASSERT_EQUAL(cache_entry_n_pages(e), 0);
            CU_ASSERT(cache_pin(w.c, e) == PERCH_OK && cache_extend(w.c, e, 16) == PERCH_OK);
            cache_commit(e, 16);
            cache_unpin(w.c, e);
            cache_commands_clear(w.c);
        }
        took[i] = test_cpu_us() - begin;
        CU_ASSERT_PTR_NULL(cache_check(w.c));
        crowd_destroy(&w);
    }
    CHECK_MSG(took[1] < 20 * took[0] + 20000, "%llu us beside 100,000 entries, %llu us beside 5,000",
              (unsigned long long)took[1], (unsigned long long)took[0]);
}

/* ---------------------------------------------------- cache_check itself -- */

static void check_finds_a_broken_cache(void) {
    fixture f = setup(config_of(100, 20, 2, 1));
    fill_idle(&f, 0, 40);
    fill(&f, 1, 40);
    check_sound(&f);
#define EXPECT_BROKEN(damage, repair)                                                                                  \
    damage;                                                                                                            \
    CU_ASSERT_PTR_NOT_NULL(cache_check(f.c));                                                                          \
    repair;                                                                                                            \
    check_sound(&f)
    EXPECT_BROKEN(f.c->n_free--, f.c->n_free++);
    EXPECT_BROKEN(f.c->n_pinned_pages--, f.c->n_pinned_pages++);
    EXPECT_BROKEN(f.c->n_pinned_slots--, f.c->n_pinned_slots++);
    EXPECT_BROKEN(f.c->n_resident++, f.c->n_resident--);
    EXPECT_BROKEN(f.c->n_mapped++, f.c->n_mapped--);
    EXPECT_BROKEN(f.c->pages[0].n_owners++, f.c->pages[0].n_owners--);
    EXPECT_BROKEN(f.c->pages[0].n_pinned++, f.c->pages[0].n_pinned--);
    EXPECT_BROKEN(f.c->pages[0].n_places++, f.c->pages[0].n_places--);
    EXPECT_BROKEN(f.c->pages[0].places_xor ^= 8, f.c->pages[0].places_xor ^= 8);
    EXPECT_BROKEN(f.c->places[0] = 2, f.c->places[0] = 1);
    EXPECT_BROKEN(f.c->places[0] = 99, f.c->places[0] = 1);
    EXPECT_BROKEN(f.e[0]->n_valid = 64, f.e[0]->n_valid = 40);
    EXPECT_BROKEN(f.e[0]->n_pages = 11, f.e[0]->n_pages = 3);
    EXPECT_BROKEN(f.e[0]->pages[1] = 77, f.e[0]->pages[1] = 1);
    EXPECT_BROKEN(f.e[0]->slot = 1, f.e[0]->slot = 0);
    EXPECT_BROKEN(f.e[1]->slot = 0, f.e[1]->slot = 1);
    EXPECT_BROKEN(f.e[0]->pinned = true, f.e[0]->pinned = false);
    EXPECT_BROKEN(f.c->slots[0].holder = NULL, f.c->slots[0].holder = f.e[0]);
    EXPECT_BROKEN(f.c->cap_commands = 3, f.c->cap_commands = 3 * 2 * (10 + 2));
#undef EXPECT_BROKEN
    teardown(&f);
}

int main(int argc, char **argv) {
#define TEST(name)                                                                                                     \
    { #name, name }
    static const test_case tests[] = {
        TEST(create_refuses_what_makes_no_sense),
        TEST(pages_per_slot_rounds_up_twice),
        TEST(create_and_reserve_survive_any_failing_allocation),
        TEST(host_bytes_grow_with_pages_and_slots),
        TEST(misuse_is_a_status),
        TEST(a_growing_entry_maps_its_pages_in_order),
        TEST(pages_need_not_end_where_groups_end),
        TEST(an_entry_that_kept_its_slot_is_pinned_without_a_command),
        TEST(the_least_recently_used_holder_loses_its_slot_but_no_page),
        TEST(pin_with_every_slot_pinned_changes_nothing),
        TEST(an_idle_entry_without_pages_keeps_no_slot),
        TEST(the_page_array_lives_as_long_as_someone_needs_it),
        TEST(the_pages_of_an_ended_sequence_are_taken_again_where_they_are),
        TEST(the_slot_released_last_is_given_out_first),
        TEST(a_free_page_is_unmapped_when_it_is_wanted_elsewhere_and_not_before),
        TEST(a_shared_page_is_unmapped_where_its_owner_left),
        TEST(free_pages_go_before_idle_ones),
        TEST(the_least_recently_used_loses_its_tail_and_keeps_its_place),
        TEST(who_watches_is_told_what_was_lost_and_how_long_it_was_idle),
        TEST(pinning_makes_an_entry_safe_and_unpinning_most_recent),
        TEST(what_eviction_leaves_is_whole_groups),
        TEST(spare_pages_of_an_idle_entry_go_first_and_are_no_eviction),
        TEST(evict_one_takes_the_oldest_down_to_what_it_may_keep),
        TEST(extend_is_all_or_nothing),
        TEST(growth_comes_in_chunks_up_to_the_end_of_the_slot),
        TEST(rounding_that_does_not_fit_is_left_out),
        TEST(chunk_0_fills_the_slot_or_fails),
        TEST(can_hold_leaves_reserved_pages_alone),
        TEST(a_fork_shares_pages_and_takes_none),
        TEST(a_child_needs_no_reservation_to_be_forked_or_pinned),
        TEST(a_shared_page_is_copied_once_before_the_first_write),
        TEST(every_page_of_a_partly_valid_group_is_copied),
        TEST(a_page_is_copied_for_the_group_before_the_written_one),
        TEST(a_shared_page_without_valid_kv_is_replaced_without_a_copy),
        TEST(pages_of_a_pinned_sharer_are_not_counted_as_idle),
        TEST(where_no_page_is_left_idle_sharers_give_way_instead_of_a_copy),
        TEST(a_page_that_another_pinned_entry_shares_must_be_copied),
        TEST(truncate_frees_the_pages_behind_the_last_group),
        TEST(destroying_a_pinned_entry_unpins_it_first),
        TEST(one_step_that_pins_and_fills_every_slot_has_room),
        TEST(a_full_command_list_is_E_AGAIN_before_anything_changed),
        TEST(a_million_empty_entries_cost_no_time_and_little_memory),
        TEST(a_hundred_thousand_resident_entries_cost_no_time),
        TEST(eviction_takes_the_same_time_however_many_wait_for_it),
        TEST(check_finds_a_broken_cache),
    };
#undef TEST
    return test_main("cache_test", tests, sizeof tests / sizeof *tests, argc, argv);
}
