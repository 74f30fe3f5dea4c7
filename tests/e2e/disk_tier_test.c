/*
 * The disk tier of an engine, with a real file: conversations come back from it with the same answers; what is wrong in the file is
 * noticed and computed; a disk that fails is given up, and nothing else is.
 */
#include "engine/impl.h"
#include "tests/e2e/host.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { N = 6, PROMPT = 150, GENERATED = 8, SESSION = 256, ROUNDS = 3, PAGE = 4096 };

static char folder[] = "/tmp/perch-disk-XXXXXX";
static char path[64];

/* A pool for two full sequences, n_host pages of host memory and n_disk of disk. */
static perch_options options_of(uint64_t n_host, uint64_t n_disk, perch_restore restore) {
    perch_options o = host_options("long");
    o.session_len = SESSION;
    o.max_batch_size = 2;
    o.cache_max_entry_count = 2;
    o.page_bytes = PAGE;
    o.host_bytes = n_host * PAGE;
    o.disk_bytes = n_disk * PAGE;
    o.restore = restore;
    o.prefix_index = PERCH_OFF;
    snprintf(o.disk_path, sizeof o.disk_path, "%s", path);
    return o;
}

static perch_stats stats_of(perch_engine *e) {
    perch_stats stats = {.struct_size = sizeof stats};
    CU_ASSERT_EQUAL(perch_engine_stats(e, &stats, NULL), PERCH_OK);
    return stats;
}

/* Until the engine, which has nothing else to do, has saved and spilled what it would. */
static void wait_until_idle(perch_engine *e) {
    const struct timespec ms = {.tv_nsec = 1000000};
    bool busy = true;
    for (int i = 0; busy && CHECK_MSG(i < HOST_HANGS_MS, "it saves for ever"); i++) {
        pthread_mutex_lock(&e->lock);
        busy = e->unsaved || cache_transfers_pending(e->kv, CACHE_STORE) || cache_disk_pending(e->kv);
        pthread_mutex_unlock(&e->lock);
        nanosleep(&ms, NULL);
    }
}

static void turn(perch_engine *e, perch_sequence_id id, int round, int i, int32_t answer[GENERATED]) {
    int32_t tokens[PROMPT];
    size_t n = round == 0 ? PROMPT : 10;
    host_result r = {0};
    host_tokens((uint64_t)(1000 * round + i), 96, tokens, n);
    perch_request q = host_request(e, id, tokens, n, GENERATED);
    q.flags |= PERCH_REQUEST_IGNORE_EOS;
    CU_ASSERT_EQUAL(host_turn(e, &q, &r), PERCH_OK);
    if (CHECK_MSG(r.n_tokens == GENERATED, "%zu tokens", r.n_tokens)) {
        memcpy(answer, r.tokens, GENERATED * sizeof *answer);
    }
    host_result_free(&r);
    wait_until_idle(e);
}

typedef int32_t answers[ROUNDS][N][GENERATED];

/* Turns of N conversations, round after round. `between` is called when all of them have had another one. */
static void talk(perch_engine *e, answers out, void (*between)(perch_engine *e)) {
    perch_sequence_id ids[N];
    for (int round = 0; round < ROUNDS; round++) {
        for (int i = 0; i < N; i++) {
            if (round == 0) {
                CU_ASSERT_EQUAL(perch_sequence_open(e, &ids[i], NULL), PERCH_OK);
            }
            turn(e, ids[i], round, i, out[round][i]);
        }
        if (between) {
            between(e);
        }
    }
}

/* The same with a cache that has room for everything. */
static const answers *expected(void) {
    static answers all;
    static bool made;
    if (!made) {
        perch_options o = options_of(0, 0, PERCH_RESTORE_AUTO);
        o.cache_max_entry_count = N;
        perch_engine *e = host_engine(&o);
        if (e) {
            talk(e, all, NULL);
        }
        perch_engine_destroy(e);
        made = true;
    }
    return (const answers *)&all;
}

static perch_stats talk_with(const perch_options *o, void (*between)(perch_engine *e)) {
    static answers got;
    perch_stats s = {.struct_size = sizeof s};
    perch_engine *e = host_engine(o);
    memset(got, 0, sizeof got);
    if (e) {
        talk(e, got, between);
        s = stats_of(e);
        CHECK_MSG(memcmp(got, *expected(), sizeof got) == 0, "other answers than without evictions");
        CU_ASSERT_EQUAL(s.pages_live, 0);
        CU_ASSERT_EQUAL(s.requests_failed, 0);
    }
    perch_engine_destroy(e);
    return s;
}

/* ---------------------------------------------------------------- tests -- */

static void what_was_evicted_comes_back_from_the_disk_in_every_way(void) {
    static const char *const names[] = {"auto", "load", "compute", "both"};
    for (int way = PERCH_RESTORE_AUTO; way <= PERCH_RESTORE_BOTH; way++) {
        for (uint64_t n_host = 0; n_host <= 3; n_host += 3) {
            perch_options o = options_of(n_host, 600, (perch_restore)way);
            perch_stats s = talk_with(&o, NULL);
            printf(
                "  %s, %llu host frames: %llu pages spilled, %llu fetched, %llu tokens restored, %llu computed beside "
                "that, %llu instead, %llu in all\n",
                names[way], (unsigned long long)n_host, (unsigned long long)s.spilled_pages,
                (unsigned long long)s.fetched_pages, (unsigned long long)s.restored_tokens,
                (unsigned long long)s.raced_tokens, (unsigned long long)s.declined_tokens,
                (unsigned long long)s.reprefill_tokens);
            CU_ASSERT_TRUE(s.spilled_pages > N);
            CU_ASSERT_EQUAL(s.corrupt_pages + s.failed_disk_reads + s.failed_disk_writes, 0);
            CU_ASSERT_TRUE(s.restored_tokens + s.reprefill_tokens > N * PROMPT);
            CU_ASSERT_TRUE(way != PERCH_RESTORE_LOAD || (s.reprefill_tokens == 0 && s.fetched_pages > N));
            CU_ASSERT_TRUE(way != PERCH_RESTORE_LOAD || s.fetched_tokens > N * PROMPT / 2 || n_host == 0);
            CU_ASSERT_TRUE(way != PERCH_RESTORE_COMPUTE ||
                           (s.restored_tokens == 0 && s.declined_tokens == s.reprefill_tokens));
        }
    }
}

/* Whatever is in the file's frames by now. */
static void spoil(perch_engine *e) {
    struct stat file;
    uint8_t junk[PAGE];
    int fd = open(path, O_RDWR);
    wait_until_idle(e);
    memset(junk, 0x5a, sizeof junk);
    if (CHECK_MSG(fd >= 0 && fstat(fd, &file) == 0, "%s", path)) {
        for (off_t at = file.st_size - 500 * PAGE; at + PAGE <= file.st_size; at += 2 * PAGE) { /* every other page */
            CU_ASSERT_EQUAL(pwrite(fd, junk, PAGE, at), PAGE);
        }
        close(fd);
    }
}

static void pages_that_rot_are_noticed_and_computed(void) {
    for (uint64_t n_host = 0; n_host <= 3; n_host += 3) {
        perch_options o = options_of(n_host, 520, PERCH_RESTORE_LOAD);
        perch_stats s = talk_with(&o, spoil);
        printf("  %llu pages fetched, %llu corrupt, %llu tokens restored, %llu computed\n",
               (unsigned long long)s.fetched_pages, (unsigned long long)s.corrupt_pages,
               (unsigned long long)s.restored_tokens, (unsigned long long)s.reprefill_tokens);
        CU_ASSERT_TRUE(s.corrupt_pages > 0);
        CU_ASSERT_TRUE(s.reprefill_tokens > 0);
    }
}

/* A file that ends earlier than it did: reads come short. */
static void cut(perch_engine *e) {
    wait_until_idle(e);
    CU_ASSERT_EQUAL(truncate(path, 16 * PAGE), 0);
}

static void a_file_that_was_cut_off_is_noticed_and_computed(void) {
    perch_options o = options_of(3, 600, PERCH_RESTORE_LOAD);
    perch_stats s = talk_with(&o, cut);
    printf("  %llu pages fetched, %llu corrupt\n", (unsigned long long)s.fetched_pages,
           (unsigned long long)s.corrupt_pages);
    CU_ASSERT_TRUE(s.corrupt_pages > 0);
    CU_ASSERT_TRUE(s.reprefill_tokens > 0);
}

/* From now on nothing can be written behind so many bytes of a file. */
static void allow(rlim_t n_bytes) {
    struct rlimit limit;
    CU_ASSERT_EQUAL(getrlimit(RLIMIT_FSIZE, &limit), 0);
    limit.rlim_cur = n_bytes < limit.rlim_max ? n_bytes : limit.rlim_max;
    CU_ASSERT_EQUAL(setrlimit(RLIMIT_FSIZE, &limit), 0);
}

/* The pages of KV memory are a file as well: the disk's is larger. */
static void fill(perch_engine *e) {
    perch_plan plan = {.struct_size = sizeof plan};
    CU_ASSERT_EQUAL(perch_engine_plan(e, &plan, NULL), PERCH_OK);
    allow(plan.pool_bytes);
}

static void a_disk_that_fails_again_and_again_is_given_up_and_nothing_else_is(void) {
    perch_options o = options_of(3, 600, PERCH_RESTORE_LOAD);
    signal(SIGXFSZ, SIG_IGN);
    (void)expected();
    perch_stats s = talk_with(&o, fill);
    allow(RLIM_INFINITY);
    printf("  %llu pages spilled, %llu failed: %s\n", (unsigned long long)s.spilled_pages,
           (unsigned long long)s.failed_disk_writes, perch_status_name(s.disk_status));
    CU_ASSERT_EQUAL(s.status, PERCH_OK);
    CU_ASSERT_EQUAL(s.disk_status, PERCH_E_IO);
    CU_ASSERT_TRUE(s.failed_disk_writes >= 8 && s.failed_disk_writes < 100);
    CU_ASSERT_TRUE(s.reprefill_tokens > 0);
}

static void a_sequence_says_where_it_is(void) {
    perch_options o = options_of(3, 600, PERCH_RESTORE_AUTO);
    perch_engine *e = host_engine(&o);
    perch_sequence_id ids[N];
    int32_t answer[GENERATED];
    uint32_t n_on_disk = 0;
    if (!e) {
        return;
    }
    for (int i = 0; i < N; i++) {
        CU_ASSERT_EQUAL(perch_sequence_open(e, &ids[i], NULL), PERCH_OK);
        turn(e, ids[i], 0, i, answer);
    }
    for (int i = 0; i < N; i++) {
        perch_sequence_info info = {.struct_size = sizeof info};
        CU_ASSERT_EQUAL(perch_sequence_state(e, ids[i], &info, NULL), PERCH_OK);
        CU_ASSERT_TRUE(info.n_kv_tokens + info.n_host_tokens + info.n_disk_tokens < info.n_tokens);
        bool below = info.n_kv_tokens == 0;
        CU_ASSERT_EQUAL(info.residency == PERCH_SEQ_HOST, below && info.n_host_tokens > 0);
        CU_ASSERT_EQUAL(info.residency == PERCH_SEQ_DISK, below && info.n_host_tokens == 0 && info.n_disk_tokens > 0);
        n_on_disk += info.n_disk_tokens > 0;
    }
    CU_ASSERT_TRUE(n_on_disk > 0);
    perch_engine_destroy(e);
}

static void the_plan_has_the_file_and_the_frames_on_the_way_to_it(void) {
    perch_options o = options_of(0, 100, PERCH_RESTORE_AUTO);
    perch_plan plan = {.struct_size = sizeof plan}, none = {.struct_size = sizeof none};
    perch_error err;
    o.device = PERCH_DEVICE_CPU; /* whose memory it is taken from */
    CU_ASSERT_EQUAL(perch_plan_compute(&o, &plan, NULL), PERCH_OK);
    CU_ASSERT_EQUAL(plan.disk_tier_bytes, 100 * PAGE);
    CU_ASSERT_TRUE(plan.staging_bytes > 0 && plan.host_tier_bytes == 0);
    o.host_bytes = PAGE;
    CU_ASSERT_EQUAL(perch_plan_compute(&o, &plan, NULL), PERCH_OK);
    CU_ASSERT_EQUAL(plan.staging_bytes, 0);
    o.host_bytes = 0;
    o.disk_bytes = PAGE; /* less than a page and what goes with it */
    CU_ASSERT_EQUAL(perch_plan_compute(&o, &none, NULL), PERCH_OK);
    CU_ASSERT_EQUAL(none.disk_tier_bytes + none.staging_bytes, 0);
    CU_ASSERT_TRUE(plan.total_bytes > none.total_bytes);
    o.disk_path[0] = 0;
    CU_ASSERT_EQUAL(perch_plan_compute(&o, &none, &err), PERCH_E_CONFIG);
    CHECK_MSG(strstr(err.message, "disk_path") != NULL, "%s", err.message);
}

static void a_file_that_cannot_be_had_is_an_error_that_names_it(void) {
    perch_options o = options_of(0, 100, PERCH_RESTORE_AUTO);
    perch_engine *e = NULL, *first = host_engine(&o);
    perch_error err;
    CU_ASSERT_EQUAL(perch_engine_create(&o, &e, &err), PERCH_E_AGAIN); /* another engine has it */
    CHECK_MSG(strstr(err.message, path) != NULL, "%s", err.message);
    perch_engine_destroy(first);
    snprintf(o.disk_path, sizeof o.disk_path, "%s/there/is/none", folder);
    CU_ASSERT_EQUAL(perch_engine_create(&o, &e, &err), PERCH_E_IO);
    CHECK_MSG(strstr(err.message, "there/is/none") != NULL, "%s", err.message);
    CU_ASSERT_PTR_NULL(e);
}

static void remove_file(void) {
    unlink(path);
    rmdir(folder);
}

int main(int argc, char **argv) {
#define TEST(name)                                                                                                     \
    { #name, name }
    static const test_case tests[] = {
        TEST(what_was_evicted_comes_back_from_the_disk_in_every_way),
        TEST(pages_that_rot_are_noticed_and_computed),
        TEST(a_file_that_was_cut_off_is_noticed_and_computed),
        TEST(a_disk_that_fails_again_and_again_is_given_up_and_nothing_else_is),
        TEST(a_sequence_says_where_it_is),
        TEST(the_plan_has_the_file_and_the_frames_on_the_way_to_it),
        TEST(a_file_that_cannot_be_had_is_an_error_that_names_it),
    };
    if (!mkdtemp(folder)) {
        perror(folder);
        return 1;
    }
    snprintf(path, sizeof path, "%s/kv", folder);
    atexit(remove_file);
    return test_main("disk_tier_test", tests, sizeof tests / sizeof *tests, argc, argv);
}
