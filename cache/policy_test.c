/*
 * policy: who loses pages first, by last use, by expected time saved and by what the host says. A page is a group; each entry has
 * tokens of its own unless a test says otherwise.
 */
#include "cache/state.h"

#include "tests/support/check.h"

#include <string.h>

enum { N_PAGES = 32, N_SLOTS = 4, N = 6, SECOND = 1000000 };

static cache *c;
static cache_entry *entries[N];

static void set_up(cache_policy policy) {
    const cache_config config = {.page_bytes = 64,
                                 .group_bytes = 64,
                                 .n_pages = N_PAGES,
                                 .n_slots = N_SLOTS,
                                 .session_len = 16 * 16,
                                 .chunk_pages = 1,
                                 .prefix_index = true,
                                 .policy = policy};
    CU_ASSERT_EQUAL_FATAL(cache_create(&config, &c, NULL), PERCH_OK);
    for (uint32_t i = 0; i < N; i++) {
        CU_ASSERT_EQUAL_FATAL(cache_entry_create(c, 0, &entries[i], NULL), PERCH_OK);
        CU_ASSERT_EQUAL_FATAL(cache_entry_reserve(c, entries[i], NULL), PERCH_OK);
    }
}

static void check(void) {
    const char *broken = cache_check(c);
    CHECK_MSG(!broken, "%s", broken);
}

static void tear_down(void) {
    check();
    for (uint32_t i = 0; i < N; i++) {
        cache_entry_destroy(c, entries[i]);
    }
    CU_ASSERT_EQUAL(c->n_kept_pages, 0);
    CU_ASSERT_TRUE(c->n_closed > 0 || !policy_end(c, false));
    cache_destroy(c);
}

static void at(double seconds) { cache_set_time(c, (uint64_t)(seconds * SECOND)); }

/* A turn of entry i, which has n_groups of tokens then; nobody else's unless `like` is the same. */
static void turn_like(uint32_t i, uint32_t n_groups, int32_t like) {
    int32_t tokens[256];
    cache_found found;
    uint32_t n = 16 * n_groups;
    for (uint32_t t = 0; t < n; t++) {
        tokens[t] = like * 1000 + (int32_t)t;
    }
    cache_find(c, entries[i], tokens, n, &found);
    cache_adopt(c, entries[i], &found, n);
    CU_ASSERT_EQUAL_FATAL(cache_pin(c, entries[i]), PERCH_OK);
    cache_returned(c, entries[i]);
    CU_ASSERT_EQUAL_FATAL(cache_extend(c, entries[i], n), PERCH_OK);
    cache_commit(entries[i], n);
    cache_publish(c, entries[i], tokens, n);
    cache_unpin(c, entries[i]);
    cache_commands_clear(c);
    check();
}

static void turn(uint32_t i, uint32_t n_groups) { turn_like(i, n_groups, (int32_t)i); }

static void hint(uint32_t i, cache_hints hints) {
    CU_ASSERT_EQUAL(cache_entry_hint(c, entries[i], &hints, 0, NULL), PERCH_OK);
    check();
}

static void expect_order(const char *what, const uint32_t *order, uint32_t n) {
    cache_entry *e = policy_end(c, false);
    for (uint32_t i = 0; i < n; i++, e = e ? policy_next(c, e, false) : NULL) {
        CHECK_MSG(e == entries[order[i]], "%s: entry %u is not the one at %u", what, order[i], i);
    }
    CHECK_MSG(!e, "%s: more than %u", what, n);
    e = policy_end(c, true);
    for (uint32_t i = n; i-- > 0; e = e ? policy_next(c, e, true) : NULL) {
        CHECK_MSG(e == entries[order[i]], "%s, backwards: entry %u is not the one at %u", what, order[i], i);
    }
    check();
}

#define ORDER(what, ...)                                                                                               \
    expect_order(what, (const uint32_t[]){__VA_ARGS__}, sizeof((const uint32_t[]){__VA_ARGS__}) / sizeof(uint32_t))

/* ----------------------------------------------------------------- order -- */

static void lru_is_the_order_of_last_use(void) {
    set_up(CACHE_LRU);
    for (uint32_t i = 0; i < 4; i++) {
        at(1 + i);
        turn(i, 2);
    }
    ORDER("used once", 0, 1, 2, 3);
    at(9);
    turn(1, 2);
    ORDER("one of them again", 0, 2, 3, 1);
    tear_down();
}

static void cost_without_any_difference_is_lru(void) {
    set_up(CACHE_COST);
    for (uint32_t i = 0; i < 4; i++) {
        at(1 + i);
        turn(i, 2);
    }
    ORDER("used once", 0, 1, 2, 3);
    tear_down();
}

/* What was wanted again and again stays longer, but not for ever. */
static void cost_keeps_what_was_wanted_often(void) {
    for (int late = 0; late < 2; late++) {
        set_up(CACHE_COST);
        for (uint32_t k = 0; k < 5; k++) {
            at(1 + k);
            turn(0, 2);
        }
        at(late ? 10000 : 10);
        turn(1, 2);
        cache_entry *first = policy_end(c, false);
        CHECK_MSG(first == entries[late ? 0 : 1], "entry %d goes first %s", first == entries[1],
                  late ? "long after" : "soon after");
        tear_down();
    }
}

/* With the same use the KV that takes longer to compute stays: the later position. */
static void cost_keeps_what_is_dear(void) {
    const cache_costs costs = {.compute_us = 10, .compute_us_per_position = 1};
    set_up(CACHE_COST);
    cache_set_costs(c, &costs);
    at(1);
    turn(0, 12);
    at(2);
    turn(1, 2);
    ORDER("the long one was used before", 1, 0);
    tear_down();
    set_up(CACHE_LRU);
    cache_set_costs(c, &costs);
    at(1);
    turn(0, 12);
    at(2);
    turn(1, 2);
    ORDER("by last use", 0, 1);
    tear_down();
}

/* What lies in front of a victim's tail may be worth more than it: then others go before that. */
static void cost_looks_anew_at_what_is_left(void) {
    set_up(CACHE_COST);
    for (uint32_t k = 0; k < 6; k++) {
        at(1 + k);
        turn(0, 2);
    }
    turn(0, 8);
    at(8);
    turn(1, 8);
    at(9);
    turn(2, 16);
    at(10);
    turn(3, 14); /* there are 32 pages */
    CHECK_MSG(cache_entry_n_pages(entries[0]) == 2 && cache_entry_n_pages(entries[1]) == 0 &&
                  cache_entry_n_pages(entries[2]) == 16,
              "%u, %u and %u pages are left", cache_entry_n_pages(entries[0]), cache_entry_n_pages(entries[1]),
              cache_entry_n_pages(entries[2]));
    tear_down();
}

/* A prefix that many began with stays, and so does its count when what lay behind it is gone. */
static void nodes_count_who_wanted_them(void) {
    set_up(CACHE_COST);
    at(1);
    turn_like(0, 4, 7);
    for (uint32_t i = 1; i < 5; i++) {
        at(1 + i);
        turn_like(i, 4, 7);
    }
    CU_ASSERT_EQUAL(c->nodes[entries[0]->held].n_hits, 4);
    for (uint32_t i = 1; i < 5; i++) {
        cache_entry_destroy(c, entries[i]);
        CU_ASSERT_EQUAL_FATAL(cache_entry_create(c, 0, &entries[i], NULL), PERCH_OK);
        CU_ASSERT_EQUAL_FATAL(cache_entry_reserve(c, entries[i], NULL), PERCH_OK);
    }
    cache_truncate(c, entries[0], 32);
    CU_ASSERT_EQUAL(c->nodes[entries[0]->held].n_hits, 4);
    at(8);
    turn(5, 2);
    ORDER("wanted by many, before", 5, 0);
    tear_down();
}

static void closed_entries(void) {
    for (int policy = 0; policy < 2; policy++) {
        set_up((cache_policy)policy);
        at(1);
        turn(0, 2);
        for (uint32_t k = 0; k < 6; k++) {
            at(2 + k);
            turn(1, 2);
        }
        cache_entry *closed = entries[1];
        cache_entry_close(c, closed);
        CU_ASSERT_EQUAL_FATAL(cache_entry_create(c, 0, &entries[1], NULL), PERCH_OK);
        CU_ASSERT_EQUAL_FATAL(cache_entry_reserve(c, entries[1], NULL), PERCH_OK);
        CHECK_MSG((policy_end(c, false) == closed) == (policy == CACHE_LRU),
                  "policy %d: a closed one that was wanted often, and an open one that was not", policy);
        tear_down();
    }
}

/* ----------------------------------------------------------------- hints -- */

static void lower_priority_goes_first(void) {
    for (int policy = 0; policy < 2; policy++) {
        set_up((cache_policy)policy);
        for (uint32_t i = 0; i < 4; i++) {
            at(1 + i);
            turn(i, 2);
        }
        hint(3, (cache_hints){.priority = -8});
        hint(0, (cache_hints){.priority = 7});
        hint(2, (cache_hints){.priority = -1});
        ORDER("by priority", 3, 2, 1, 0);
        hint(0, (cache_hints){.priority = 0});
        hint(2, (cache_hints){.priority = 0});
        CU_ASSERT_PTR_NULL(entries[0]->hinted);
        CU_ASSERT_TRUE(policy_end(c, false) == entries[3]);
        tear_down();
    }
}

static void ttl_goes_before_all_others(void) {
    for (int policy = 0; policy < 2; policy++) {
        set_up((cache_policy)policy);
        at(1);
        turn(0, 2);
        hint(0, (cache_hints){.priority = -8});
        at(2);
        turn(1, 2);
        at(3);
        turn(2, 2);
        hint(2, (cache_hints){.ttl_us = 5 * SECOND, .priority = 7});
        ORDER("before", 0, 1, 2);
        at(7.9);
        ORDER("just before", 0, 1, 2);
        at(8);
        ORDER("expired", 2, 0, 1);
        at(9);
        turn(2, 2);
        ORDER("used again", 0, 1, 2);
        tear_down();
    }
}

static void those_expected_stay_until_they_are_overdue(void) {
    for (int policy = 0; policy < 2; policy++) {
        set_up((cache_policy)policy);
        for (uint32_t i = 0; i < 3; i++) {
            at(1 + i);
            turn(i, 2);
        }
        hint(0, (cache_hints){.expect_us = 10 * SECOND}); /* from 3 on */
        ORDER("expected", 1, 2, 0);
        at(13);
        ORDER("overdue", 0, 1, 2);
        at(14);
        turn(0, 2);
        ORDER("expected once more after its turn", 1, 2, 0);
        at(24);
        ORDER("and overdue", 0, 1, 2);
        tear_down();
    }
}

static void what_is_kept_is_no_victim(void) {
    for (int policy = 0; policy < 2; policy++) {
        perch_error err = {0};
        set_up((cache_policy)policy);
        at(1);
        turn(0, 8);
        hint(0, (cache_hints){.keep = true});
        at(2);
        turn(1, 8);
        ORDER("kept", 1);
        cache_stats s;
        cache_stats_get(c, &s);
        CU_ASSERT_EQUAL(s.n_pinned, 8);
        cache_hints keep = {.keep = true};
        CU_ASSERT_EQUAL(cache_entry_hint(c, entries[1], &keep, 9 * 16, &err), PERCH_E_NO_ROOM);
        CHECK_MSG(strstr(err.message, "pin") && strstr(err.message, "9 pages"), "%s", err.message);
        ORDER("refused", 1);
        CU_ASSERT_EQUAL(cache_entry_hint(c, entries[1], &keep, 8 * 16, &err), PERCH_OK);
        CU_ASSERT_PTR_NULL(policy_end(c, false));
        hint(1, (cache_hints){.priority = 0});
        CU_ASSERT_TRUE(cache_can_hold(c, entries[2], 16 * 16, 0));
        at(3);
        turn(2, 16); /* there are 24 pages beside the kept ones */
        at(4);
        turn(3, 16);
        CU_ASSERT_EQUAL(cache_entry_n_pages(entries[0]), 8);
        CU_ASSERT_FALSE(cache_evict_one(c, 16));
        while (cache_evict_one(c, 0)) {}
        CU_ASSERT_EQUAL(cache_entry_n_valid(entries[0]), 8 * 16);
        CU_ASSERT_TRUE(cache_yield_kept(c));
        CU_ASSERT_FALSE(cache_yield_kept(c));
        check();
        CU_ASSERT_TRUE(cache_evict_one(c, 2));
        CU_ASSERT_EQUAL(cache_entry_n_valid(entries[0]), 32);
        at(5);
        turn(0, 8); /* is kept again */
        CU_ASSERT_PTR_NULL(policy_end(c, false));
        cache_truncate(c, entries[0], 0); /* nothing is left to keep */
        check();
        tear_down();
    }
}

/* ------------------------------------------------------------------ tree -- */

static void trees_are_in_order_whatever_happens(void) {
    enum { NODES = 300 };
    static tree_node nodes[NODES];
    test_rng rng = {test_seed(1)};
    tree t = {NULL};
    uint64_t tick = 0, n_in = 0, n;
    for (uint64_t i = 0; i < test_scaled(20000); i++) {
        tree_node *node = &nodes[test_rng_below(&rng, NODES)];
        if (node->tick) {
            tree_remove(&t, node);
            n_in--;
        } else {
            node->key = (double)test_rng_below(&rng, 40);
            node->tick = ++tick;
            tree_insert(&t, node);
            n_in++;
        }
        if (i % 64 == 0) {
            const char *broken = tree_check(&t, &n);
            CHECK_MSG(!broken && n == n_in, "%s: %llu of %llu", broken ? broken : "some are missing",
                      (unsigned long long)n, (unsigned long long)n_in);
        }
    }
    uint32_t depth = 0;
    for (uint32_t i = 0; i < NODES; i++) {
        uint32_t d = 0;
        for (const tree_node *node = nodes[i].tick ? &nodes[i] : NULL; node; node = node->parent) {
            d++;
        }
        depth = d > depth ? d : depth;
    }
    CHECK_MSG(depth < 40, "a path of %u nodes", depth);
}

int main(int argc, char **argv) {
    const test_case tests[] = {
        {"lru_is_the_order_of_last_use", lru_is_the_order_of_last_use},
        {"cost_without_any_difference_is_lru", cost_without_any_difference_is_lru},
        {"cost_keeps_what_was_wanted_often", cost_keeps_what_was_wanted_often},
        {"cost_keeps_what_is_dear", cost_keeps_what_is_dear},
        {"cost_looks_anew_at_what_is_left", cost_looks_anew_at_what_is_left},
        {"nodes_count_who_wanted_them", nodes_count_who_wanted_them},
        {"closed_entries", closed_entries},
        {"lower_priority_goes_first", lower_priority_goes_first},
        {"ttl_goes_before_all_others", ttl_goes_before_all_others},
        {"those_expected_stay_until_they_are_overdue", those_expected_stay_until_they_are_overdue},
        {"what_is_kept_is_no_victim", what_is_kept_is_no_victim},
        {"trees_are_in_order_whatever_happens", trees_are_in_order_whatever_happens},
    };
    return test_main("policy", tests, sizeof tests / sizeof tests[0], argc, argv);
}
