/*
 * Conversations in more memory than the device has: what is evicted goes on in the host tier, says so, and comes back by copying,
 * with the same answers as if it had never left.
 */
#include "engine/impl.h"
#include "tests/e2e/host.h"

#include <string.h>
#include <time.h>

enum { N = 6, PROMPT = 150, GENERATED = 8, SESSION = 256 };

/* A pool for two full sequences; n_host pages for the host. */
static perch_options options_of(uint64_t n_host) {
    perch_options o = host_options("long");
    o.session_len = SESSION;
    o.max_batch_size = 2;
    o.cache_max_entry_count = 2;
    o.page_bytes = 4096;
    o.host_bytes = n_host * o.page_bytes;
    o.restore = PERCH_RESTORE_LOAD; /* whatever would be quicker */
    o.prefix_index = PERCH_OFF;
    return o;
}

static perch_stats stats_of(perch_engine *e) {
    perch_stats stats = {.struct_size = sizeof stats};
    CU_ASSERT_EQUAL(perch_engine_stats(e, &stats, NULL), PERCH_OK);
    return stats;
}

static perch_sequence_info info_of(perch_engine *e, perch_sequence_id id) {
    perch_sequence_info info = {.struct_size = sizeof info};
    CU_ASSERT_EQUAL(perch_sequence_state(e, id, &info, NULL), PERCH_OK);
    return info;
}

/* Until the engine, which has nothing else to do, has saved what it would evict next. */
static void wait_for_copies(perch_engine *e) {
    const struct timespec ms = {.tv_nsec = 1000000};
    bool busy = true;
    for (int i = 0; busy; i++) {
        pthread_mutex_lock(&e->lock);
        busy = e->unsaved || cache_transfers_pending(e->kv, CACHE_STORE);
        pthread_mutex_unlock(&e->lock);
        if (!CHECK_MSG(i < HOST_HANGS_MS, "it saves for ever")) {
            return;
        }
        nanosleep(&ms, NULL);
    }
}

/* Three turns of N conversations, round after round; the answers one behind the other. Waits for copies to end in between. */
static void talk(perch_engine *e, perch_sequence_id *ids, int32_t answers[3][N][GENERATED], uint64_t cached[3][N]) {
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < N; i++) {
            int32_t tokens[PROMPT];
            size_t n = round == 0 ? PROMPT : 10;
            host_result r = {0};
            host_tokens((uint64_t)(1000 * round + i), 96, tokens, n);
            if (round == 0) {
                CU_ASSERT_EQUAL(perch_sequence_open(e, &ids[i], NULL), PERCH_OK);
            }
            perch_request q = host_request(e, ids[i], tokens, n, GENERATED);
            q.flags |= PERCH_REQUEST_IGNORE_EOS;
            CU_ASSERT_EQUAL(host_turn(e, &q, &r), PERCH_OK);
            if (CHECK_MSG(r.n_tokens == GENERATED, "%zu tokens", r.n_tokens)) {
                memcpy(answers[round][i], r.tokens, sizeof answers[round][i]);
            }
            cached[round][i] = r.cached_tokens;
            host_result_free(&r);
            wait_for_copies(e);
        }
    }
}

static void what_was_evicted_comes_back_from_the_host(void) {
    static int32_t with[3][N][GENERATED], without[3][N][GENERATED];
    uint64_t cached[3][N], cached_without[3][N];
    perch_sequence_id ids[N], others[N];
    perch_options o = options_of(512), none = options_of(0);
    perch_engine *e = host_engine(&o), *alone = host_engine(&none);
    if (!e || !alone) {
        return;
    }
    talk(e, ids, with, cached);
    talk(alone, others, without, cached_without);
    CHECK_MSG(memcmp(with, without, sizeof with) == 0, "other answers than without the tier");
    perch_stats s = stats_of(e), t = stats_of(alone);
    printf("  %llu pages saved, %llu restored, %llu tokens; re-prefilled %llu, without the tier %llu\n",
           (unsigned long long)s.saved_pages, (unsigned long long)s.restored_pages,
           (unsigned long long)s.restored_tokens, (unsigned long long)s.reprefill_tokens,
           (unsigned long long)t.reprefill_tokens);
    CU_ASSERT_TRUE(t.reprefill_tokens > N * PROMPT / 2);
    CU_ASSERT_EQUAL(s.reprefill_tokens, 0); /* there was time to save all of it */
    CU_ASSERT_TRUE(s.restored_tokens >= t.reprefill_tokens - s.reprefill_tokens);
    CU_ASSERT_EQUAL(t.saved_pages, 0);
    uint64_t n_found = 0, n_found_without = 0, n_in_host = 0;
    for (int i = 0; i < N; i++) {
        perch_sequence_info info = info_of(e, ids[i]);
        n_found += cached[1][i] + cached[2][i];
        n_found_without += cached_without[1][i] + cached_without[2][i];
        n_in_host += info.n_host_tokens;
        CU_ASSERT_TRUE(info.n_kv_tokens + info.n_host_tokens < info.n_tokens);
        CHECK_MSG((info.residency == PERCH_SEQ_HOST) == (info.n_kv_tokens == 0 && info.n_host_tokens > 0),
                  "%d: residency %d, %llu tokens in the host", i, (int)info.residency,
                  (unsigned long long)info.n_host_tokens);
        CU_ASSERT_EQUAL(info_of(alone, others[i]).n_host_tokens, 0);
    }
    CU_ASSERT_TRUE(n_in_host > 0);
    CU_ASSERT_TRUE(n_found > n_found_without); /* usage says what was found, wherever it was */
    perch_engine_destroy(e);
    perch_engine_destroy(alone);
}

/* Copies are of what was said: after a rewind and another continuation the old ones are none. */
static void copies_do_not_outlive_what_they_were_made_of(void) {
    static int32_t with[N][GENERATED], without[N][GENERATED];
    for (int tier = 0; tier < 2; tier++) {
        perch_options o = options_of(tier ? 512 : 0);
        perch_engine *e = host_engine(&o);
        perch_sequence_id ids[N];
        static int32_t answers[3][N][GENERATED];
        uint64_t cached[3][N];
        if (!e) {
            return;
        }
        talk(e, ids, answers, cached);
        for (int round = 0; round < 2; round++) {
            for (int i = 0; i < N; i++) {
                int32_t tokens[40];
                host_result r = {0};
                uint64_t keep = 60 + (uint64_t)(17 * i + 29 * round) % 60;
                CU_ASSERT_EQUAL(perch_sequence_rewind(e, ids[i], keep, NULL), PERCH_OK);
                host_tokens((uint64_t)(7000 + 100 * round + i), 96, tokens, 40);
                perch_request q = host_request(e, ids[i], tokens, 40, GENERATED);
                q.flags |= PERCH_REQUEST_IGNORE_EOS;
                CU_ASSERT_EQUAL(host_turn(e, &q, &r), PERCH_OK);
                if (CHECK_MSG(r.n_tokens == GENERATED, "%zu tokens", r.n_tokens)) {
                    memcpy((tier ? with : without)[i], r.tokens, sizeof with[i]);
                }
                host_result_free(&r);
            }
        }
        CU_ASSERT_EQUAL(stats_of(e).restored_tokens > 0, tier == 1);
        perch_engine_destroy(e);
    }
    CHECK_MSG(memcmp(with, without, sizeof with) == 0, "other answers than without the tier");
}

/* Room for fewer pages than the device has: what was copied first is given up, and computed again. */
static void a_small_tier_helps_a_little_and_is_never_wrong(void) {
    static int32_t with[3][N][GENERATED], without[3][N][GENERATED];
    uint64_t cached[3][N];
    perch_sequence_id ids[N];
    for (uint64_t n_host = 0; n_host < 20; n_host += 3) {
        perch_options o = options_of(n_host);
        perch_engine *e = host_engine(&o);
        if (!e) {
            return;
        }
        talk(e, ids, n_host ? with : without, cached);
        CHECK_MSG(n_host == 0 || memcmp(with, without, sizeof with) == 0, "%llu frames: other answers",
                  (unsigned long long)n_host);
        perch_engine_destroy(e);
    }
}

static void the_tier_is_in_the_plan(void) {
    perch_options o = options_of(100);
    o.device = PERCH_DEVICE_CPU; /* whose memory it is taken from */
    o.host_bytes += 4095;        /* whole pages only */
    perch_plan plan = {.struct_size = sizeof plan}, none = {.struct_size = sizeof none};
    CU_ASSERT_EQUAL(perch_plan_compute(&o, &plan, NULL), PERCH_OK);
    CU_ASSERT_EQUAL(plan.host_tier_bytes, 100 * 4096);
    o.host_bytes = 0;
    CU_ASSERT_EQUAL(perch_plan_compute(&o, &none, NULL), PERCH_OK);
    CU_ASSERT_TRUE(plan.total_bytes >= none.total_bytes + 100 * 4096);
    o.host_bytes = UINT64_MAX / 2;
    perch_error err;
    CU_ASSERT_EQUAL(perch_plan_compute(&o, &plan, &err), PERCH_E_NO_ROOM);
    CHECK_MSG(strstr(err.message, "host tier") != NULL, "%s", err.message);
}

int main(int argc, char **argv) {
    static const test_case tests[] = {
        {"what_was_evicted_comes_back_from_the_host", what_was_evicted_comes_back_from_the_host},
        {"copies_do_not_outlive_what_they_were_made_of", copies_do_not_outlive_what_they_were_made_of},
        {"a_small_tier_helps_a_little_and_is_never_wrong", a_small_tier_helps_a_little_and_is_never_wrong},
        {"the_tier_is_in_the_plan", the_tier_is_in_the_plan},
    };
    return test_main("host_tier_test", tests, sizeof tests / sizeof *tests, argc, argv);
}
