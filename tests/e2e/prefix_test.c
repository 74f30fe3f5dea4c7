/*
 * Conversations that begin alike, as a host sees them: what is found is reported, what comes out is the same, tenants are kept
 * apart, what was closed is still found, and the memory of a common prompt is there once.
 */
#include "tests/e2e/host.h"

#include <string.h>

enum { PROMPT = 200, ALIKE = 170, GENERATED = 12, GROUP = 16 };

static perch_options options_of(void) {
    perch_options o = host_options("long");
    o.session_len = 320;
    o.max_batch_size = 4;
    o.cache_max_entry_count = 12;
    o.page_bytes = 4096;
    return o;
}

/* A turn on a new sequence of the namespace: tokens 0..n_alike of the script, the rest of their own. */
static host_result turn(perch_engine *e, uint64_t tenant, uint64_t own, perch_sequence_id *id) {
    int32_t tokens[PROMPT];
    perch_sequence_options in;
    host_result r = {0};
    host_tokens(own, 96, tokens, PROMPT);
    host_tokens(1, 96, tokens, ALIKE);
    CU_ASSERT_EQUAL(perch_sequence_options_init(&in, sizeof in), PERCH_OK);
    in.cache_namespace = tenant;
    CU_ASSERT_EQUAL(perch_sequence_open_with(e, &in, id, NULL), PERCH_OK);
    perch_request q = host_request(e, *id, tokens, PROMPT, GENERATED);
    CU_ASSERT_EQUAL(host_turn(e, &q, &r), PERCH_OK);
    return r;
}

static perch_stats stats_of(perch_engine *e) {
    perch_stats stats = {.struct_size = sizeof stats};
    CU_ASSERT_EQUAL(perch_engine_stats(e, &stats, NULL), PERCH_OK);
    return stats;
}

static void check_same(const host_result *a, const host_result *b) {
    CU_ASSERT_EQUAL(a->n_tokens, GENERATED);
    CHECK_MSG(a->n_tokens == b->n_tokens && !memcmp(a->tokens, b->tokens, a->n_tokens * sizeof *a->tokens),
              "other tokens than those of an engine without the index");
}

static void what_others_computed_is_found_and_reported(void) {
    perch_options o = options_of();
    perch_engine *e = host_engine(&o);
    o.prefix_index = PERCH_OFF;
    perch_engine *alone = host_engine(&o);
    if (!e || !alone) {
        return;
    }
    perch_sequence_id first, second, other;
    host_result a = turn(e, 0, 100, &first), b = turn(e, 0, 101, &second);
    host_result c = turn(alone, 0, 100, &other), d = turn(alone, 0, 101, &other);
    CU_ASSERT_EQUAL(a.cached_tokens, 0);
    CU_ASSERT_EQUAL(b.cached_tokens, ALIKE / GROUP * GROUP);
    CU_ASSERT_EQUAL(b.prompt_tokens, PROMPT);
    CU_ASSERT_EQUAL(d.cached_tokens, 0);
    CU_ASSERT_EQUAL(stats_of(e).prefix_tokens, ALIKE / GROUP * GROUP);
    CU_ASSERT_EQUAL(stats_of(alone).prefix_tokens, 0);
    check_same(&a, &c);
    check_same(&b, &d);
    host_result_free(&a);
    host_result_free(&b);
    host_result_free(&c);
    host_result_free(&d);
    perch_engine_destroy(e);
    perch_engine_destroy(alone);
}

static void tenants_find_nothing_of_one_another(void) {
    perch_options o = options_of();
    perch_engine *e = host_engine(&o);
    perch_sequence_id id[3];
    if (!e) {
        return;
    }
    host_result a = turn(e, 1, 100, &id[0]), b = turn(e, 2, 100, &id[1]), c = turn(e, 1, 100, &id[2]);
    CU_ASSERT_EQUAL(b.cached_tokens, 0);
    CU_ASSERT_EQUAL(c.cached_tokens, PROMPT / GROUP * GROUP);
    perch_sequence_id fork;
    CU_ASSERT_EQUAL(perch_sequence_fork(e, id[1], 0, &fork, NULL), PERCH_OK);
    int32_t tokens[PROMPT];
    host_tokens(100, 96, tokens, PROMPT);
    host_tokens(1, 96, tokens, ALIKE);
    host_result d = {0};
    perch_request q = host_request(e, fork, tokens, PROMPT, GENERATED);
    CU_ASSERT_EQUAL(host_turn(e, &q, &d), PERCH_OK);
    CU_ASSERT_EQUAL(d.cached_tokens, PROMPT / GROUP * GROUP); /* its parent's namespace */
    check_same(&a, &b);
    check_same(&a, &d);
    host_result_free(&a);
    host_result_free(&b);
    host_result_free(&c);
    host_result_free(&d);
    perch_engine_destroy(e);
}

static void what_was_closed_is_found_until_the_memory_is_needed(void) {
    perch_options o = options_of();
    o.cache_max_entry_count = 3;
    perch_engine *e = host_engine(&o);
    perch_sequence_id id, other;
    if (!e) {
        return;
    }
    host_result a = turn(e, 0, 100, &id);
    CU_ASSERT_EQUAL(perch_sequence_close(e, id, NULL), PERCH_OK);
    CU_ASSERT_TRUE(stats_of(e).pages_cached > 0);
    CU_ASSERT_EQUAL(stats_of(e).sequences_resident, 0);
    host_result b = turn(e, 0, 100, &id);
    CU_ASSERT_EQUAL(b.cached_tokens, PROMPT / GROUP * GROUP);
    CU_ASSERT_EQUAL(perch_sequence_close(e, id, NULL), PERCH_OK);
    for (uint64_t i = 0; i < 6; i++) { /* six others, of another tenant, in a pool for three */
        host_result c = turn(e, 1 + i, 200 + i, &other);
        host_result_free(&c);
    }
    host_result d = turn(e, 0, 100, &id);
    CU_ASSERT_EQUAL(d.cached_tokens, 0);
    check_same(&a, &b);
    check_same(&a, &d);
    host_result_free(&a);
    host_result_free(&b);
    host_result_free(&d);
    perch_engine_destroy(e);
}

/* 64 sequences with a prompt of 2,048 tokens in common: one copy of it, and of each the page where it goes its own way. */
static void a_common_prompt_is_in_memory_once(void) {
    enum { COMMON = 2048, TAIL = 64, N = 64 };
    static int32_t tokens[COMMON + TAIL];
    perch_options o = options_of();
    o.session_len = COMMON + TAIL + 16;
    o.max_batch_size = 16;
    o.max_step_tokens = 512;
    o.cache_max_entry_count = 8;
    perch_engine *e = host_engine(&o);
    perch_plan plan = {.struct_size = sizeof plan};
    if (!e) {
        return;
    }
    CU_ASSERT_EQUAL(perch_engine_plan(e, &plan, NULL), PERCH_OK);
    perch_event ev;
    perch_event_init(&ev, sizeof ev);
    for (uint32_t i = 0; i < N; i++) {
        perch_sequence_id id;
        host_tokens(500 + i, 96, tokens, COMMON + TAIL);
        host_tokens(1, 96, tokens, COMMON);
        CU_ASSERT_EQUAL(perch_sequence_open(e, &id, NULL), PERCH_OK);
        perch_request q = host_request(e, id, tokens, COMMON + TAIL, 1);
        CU_ASSERT_EQUAL(perch_submit(e, &q, NULL, NULL), PERCH_OK);
    }
    for (uint32_t n_done = 0; n_done < N;) {
        if (!CHECK_MSG(perch_next(e, &ev, HOST_HANGS_MS, NULL) == PERCH_OK, "%u of %u came to their end", n_done, N)) {
            break;
        }
        n_done += ev.type == PERCH_EVENT_DONE;
    }
    perch_event_clear(&ev);
    perch_stats s = stats_of(e);
    uint64_t used = (uint64_t)s.pages_cached * plan.page_bytes;
    uint64_t least = plan.kv_bytes_per_token * (COMMON + (uint64_t)N * TAIL);
    printf(
        "  64 sequences: %.2f MiB, one copy and the tails are %.2f MiB; %llu pages were copied, %llu tokens computed\n",
        (double)used / 1048576, (double)least / 1048576, (unsigned long long)s.copied_pages,
        (unsigned long long)s.prefill_tokens);
    CU_ASSERT_EQUAL(s.evictions, 0);
    CHECK_MSG((double)used <= 1.03 * (double)least, "%llu bytes, of %llu", (unsigned long long)used,
              (unsigned long long)least);
    CU_ASSERT_EQUAL(s.prefill_tokens, COMMON + N * TAIL);
    CU_ASSERT_EQUAL(s.prefix_tokens, (N - 1) * COMMON);
    CU_ASSERT_TRUE(s.copied_pages <= N); /* the partial page, where the groups end within one */
    perch_engine_destroy(e);
}

int main(int argc, char **argv) {
    static const test_case tests[] = {
        {"what_others_computed_is_found_and_reported", what_others_computed_is_found_and_reported},
        {"tenants_find_nothing_of_one_another", tenants_find_nothing_of_one_another},
        {"what_was_closed_is_found_until_the_memory_is_needed", what_was_closed_is_found_until_the_memory_is_needed},
        {"a_common_prompt_is_in_memory_once", a_common_prompt_is_in_memory_once},
    };
    return test_main("prefix_test", tests, sizeof tests / sizeof *tests, argc, argv);
}
