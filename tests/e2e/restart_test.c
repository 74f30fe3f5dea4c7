/*
 * An engine that ends, or is killed, and the next one: its conversations are in the store, their KV is in the disk tier's file, and
 * they go on with the tokens that they would have had. An engine that computes otherwise finds none of that KV.
 */
#include "engine/impl.h"
#include "tests/e2e/host.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { N = 6, PROMPT = 150, GENERATED = 8, SESSION = 256, ROUNDS = 2, PAGE = 4096 };

typedef int32_t answers[ROUNDS][N][GENERATED];

static char folder[] = "/tmp/perch-restart-XXXXXX";

/* A pool for two full sequences, three pages of host memory and room for all on the disk. */
static perch_options options_of(void) {
    perch_options o = host_options("long");
    o.session_len = SESSION;
    o.max_batch_size = 2;
    o.cache_max_entry_count = 2;
    o.page_bytes = PAGE;
    o.host_bytes = 3 * PAGE;
    o.disk_bytes = 600 * PAGE;
    o.restore = PERCH_RESTORE_LOAD;
    o.disk_keep_ms = 60000;
    o.store_backend = PERCH_STORE_LMDB;
    snprintf(o.disk_path, sizeof o.disk_path, "%s/pages", folder);
    snprintf(o.store_path, sizeof o.store_path, "%s/store", folder);
    return o;
}

static void wait_until_idle(perch_engine *e) {
    bool busy = true;
    for (int i = 0; busy && CHECK_MSG(i < HOST_HANGS_MS, "it saves for ever"); i++) {
        pthread_mutex_lock(&e->lock);
        busy = e->unsaved || cache_transfers_pending(e->kv, CACHE_STORE) || cache_disk_pending(e->kv);
        pthread_mutex_unlock(&e->lock);
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    }
}

/* The round-th turn of each conversation. */
static void talk(perch_engine *e, int round, answers out) {
    for (int i = 0; i < N; i++) {
        int32_t tokens[PROMPT];
        char key[24];
        perch_sequence_options named;
        perch_sequence_id id;
        host_result r = {0};
        size_t n = round == 0 ? PROMPT : 10;
        perch_error err;
        snprintf(key, sizeof key, "user-%d", i);
        CU_ASSERT_EQUAL(perch_sequence_options_init(&named, sizeof named), PERCH_OK);
        named.key = key;
        named.flags = PERCH_SEQUENCE_RETAIN | (round ? PERCH_SEQUENCE_EXISTING : 0);
        if (!CHECK_MSG(perch_sequence_open_with(e, &named, &id, &err) == PERCH_OK, "%s: %s", key, err.message)) {
            return;
        }
        host_tokens((uint64_t)(1000 * round + i), 96, tokens, n);
        perch_request q = host_request(e, id, tokens, n, GENERATED);
        q.flags |= PERCH_REQUEST_IGNORE_EOS;
        CU_ASSERT_EQUAL(host_turn(e, &q, &r), PERCH_OK);
        if (CHECK_MSG(r.n_tokens == GENERATED, "%zu tokens", r.n_tokens)) {
            memcpy(out[round][i], r.tokens, GENERATED * sizeof *r.tokens);
        }
        host_result_free(&r);
        CU_ASSERT_EQUAL(perch_sequence_close(e, id, NULL), PERCH_OK);
    }
}

static void forget(void) {
    char command[128];
    snprintf(command, sizeof command, "rm -rf %s/*", folder);
    CU_ASSERT_EQUAL(system(command), 0);
}

/* One engine with room for everything: what all others have to say. */
static const answers *expected(void) {
    static answers all;
    static bool made;
    if (!made) {
        perch_options o = options_of();
        o.cache_max_entry_count = N;
        o.disk_bytes = o.host_bytes = 0;
        perch_engine *e = host_engine(&o);
        if (e) {
            talk(e, 0, all);
            talk(e, 1, all);
        }
        perch_engine_destroy(e);
        forget();
        made = true;
    }
    return (const answers *)&all;
}

static perch_stats run_round(const perch_options *o, int round, answers got) {
    perch_stats s = {.struct_size = sizeof s};
    perch_engine *e = host_engine(o);
    if (e) {
        talk(e, round, got);
        CU_ASSERT_EQUAL(perch_engine_stats(e, &s, NULL), PERCH_OK);
    }
    perch_engine_destroy(e);
    return s;
}

static void check_round(answers got, int round) {
    CHECK_MSG(memcmp(got[round], (*expected())[round], sizeof got[round]) == 0, "round %d: other tokens", round);
}

static void the_next_engine_finds_what_this_one_had(void) {
    answers got;
    (void)expected();
    const perch_options o = options_of();
    perch_stats first = run_round(&o, 0, got);
    check_round(got, 0);
    CU_ASSERT_EQUAL(first.disk_found_pages, 0);
    perch_stats second = run_round(&o, 1, got);
    check_round(got, 1);
    printf("  %llu pages found, %llu tokens loaded, %llu computed\n", (unsigned long long)second.disk_found_pages,
           (unsigned long long)second.restored_tokens, (unsigned long long)second.prefill_tokens);
    /* All but what does not fill a page, and the turn itself. */
    CU_ASSERT_TRUE(second.disk_found_pages > N && second.corrupt_pages == 0);
    CU_ASSERT_TRUE(second.restored_tokens > N * PROMPT / 2);
    CU_ASSERT_TRUE(second.restored_tokens + second.prefill_tokens >= N * (PROMPT + GENERATED));
    forget();
}

static void an_engine_that_computes_otherwise_finds_nothing(void) {
    answers got;
    perch_options o = options_of();
    (void)run_round(&o, 0, got);
    o.dtype = PERCH_DTYPE_BF16;
    perch_stats other = run_round(&o, 1, got);
    CU_ASSERT_EQUAL(other.disk_found_pages, 0);
    CU_ASSERT_EQUAL(other.requests_failed, 0);
    CU_ASSERT_TRUE(other.prefill_tokens > N * PROMPT);
    o.dtype = PERCH_DTYPE_AUTO; /* and its own are gone: the file was the other's meanwhile */
    o.prefix_index = PERCH_OFF;
    CU_ASSERT_EQUAL(run_round(&o, 1, got).disk_found_pages, 0);
    forget();
}

static void a_closed_conversation_is_found_by_who_begins_alike(void) {
    perch_options o = options_of();
    answers got;
    (void)run_round(&o, 0, got);
    perch_engine *e = host_engine(&o);
    perch_stats s = {.struct_size = sizeof s};
    int32_t tokens[PROMPT + 1] = {0};
    host_result r = {0};
    perch_sequence_id id;
    if (e && CHECK_MSG(perch_sequence_open(e, &id, NULL) == PERCH_OK, "no sequence")) {
        host_tokens(3, 96, tokens, PROMPT); /* user-3's first prompt */
        perch_request q = host_request(e, id, tokens, PROMPT + 1, 1);
        CU_ASSERT_EQUAL(host_turn(e, &q, &r), PERCH_OK);
        host_result_free(&r);
        CU_ASSERT_EQUAL(perch_engine_stats(e, &s, NULL), PERCH_OK);
        CHECK_MSG(s.restored_tokens > PROMPT / 2, "%llu tokens loaded", (unsigned long long)s.restored_tokens);
    }
    perch_engine_destroy(e);
    forget();
}

/* What was written by then is there, and what was not is computed. */
static void a_killed_engine_leaves_what_it_had_written(void) {
    const perch_options o = options_of();
    answers got;
    (void)expected();
    pid_t child = fork();
    if (child == 0) {
        perch_engine *e = host_engine(&o);
        talk(e, 0, got);
        wait_until_idle(e);
        kill(getpid(), SIGKILL);
    }
    int how = 0;
    CU_ASSERT_TRUE(child > 0 && waitpid(child, &how, 0) == child && WIFSIGNALED(how) && WTERMSIG(how) == SIGKILL);
    perch_stats second = run_round(&o, 1, got);
    check_round(got, 1);
    printf("  %llu pages found, %llu tokens loaded, %llu computed\n", (unsigned long long)second.disk_found_pages,
           (unsigned long long)second.restored_tokens, (unsigned long long)second.prefill_tokens);
    CU_ASSERT_TRUE(second.disk_found_pages > 0 && second.restored_tokens > 0);
    forget();
}

/* A third of the file is not what was written: noticed page by page, and nothing else is given up for it. */
static void pages_that_rot_between_two_engines_are_computed(void) {
    const perch_options o = options_of();
    answers got;
    uint8_t junk[PAGE];
    struct stat file = {.st_size = 0};
    (void)expected();
    (void)run_round(&o, 0, got);
    int fd = open(o.disk_path, O_RDWR | O_CLOEXEC);
    memset(junk, 0x77, sizeof junk);
    CU_ASSERT_TRUE(fd >= 0 && fstat(fd, &file) == 0);
    CHECK_MSG((uint64_t)file.st_size <= o.disk_bytes, "%lld bytes", (long long)file.st_size);
    for (off_t at = file.st_size - 550 * PAGE; at + PAGE <= file.st_size; at += 3 * PAGE) {
        CU_ASSERT_EQUAL(pwrite(fd, junk, PAGE, at), PAGE);
    }
    close(fd);
    perch_stats second = run_round(&o, 1, got);
    check_round(got, 1);
    printf("  %llu pages found, %llu corrupt, %llu tokens loaded, %llu computed\n",
           (unsigned long long)second.disk_found_pages, (unsigned long long)second.corrupt_pages,
           (unsigned long long)second.restored_tokens, (unsigned long long)second.prefill_tokens);
    CU_ASSERT_TRUE(second.corrupt_pages > 0 && second.restored_tokens > 0);
    CU_ASSERT_EQUAL(second.disk_status, PERCH_OK);
    forget();
}

int main(int argc, char **argv) {
    static const test_case tests[] = {
#define TEST(name) {#name, name}
        TEST(the_next_engine_finds_what_this_one_had),
        TEST(an_engine_that_computes_otherwise_finds_nothing),
        TEST(a_closed_conversation_is_found_by_who_begins_alike),
        TEST(a_killed_engine_leaves_what_it_had_written),
        TEST(pages_that_rot_between_two_engines_are_computed),
    };
    if (!mkdtemp(folder)) {
        return 1;
    }
    int code = test_main("restart_test", tests, sizeof tests / sizeof *tests, argc, argv);
    rmdir(folder);
    return code;
}
