/*
 * kill -9 at random instants: a child process runs an engine with its sequences in LMDB and is killed in the middle of whatever it
 * does; the next one opens them again. Every turn that was committed when its DONE was fetched has to be there, nothing else than
 * what a run without a break has may be there, and what is generated from then on is what that run generates, to the bit. Their KV is
 * evicted to a file, which is written when the kill comes, and goes on from what the one before it had written.
 */
#include "engine/store/testing.h"
#include "tests/e2e/host.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#define N_SEQUENCES 4u
#define N_TURNS 8u
#define MAX_PROMPT 12u
#define N_GENERATED 6u
#define MAX_TOKENS (N_TURNS * (MAX_PROMPT + N_GENERATED))

/* What an unbroken run makes of a sequence; length[t]: where turn t begins, middle[t]: where its prompt's appended part ends. */
typedef struct reference {
    int32_t tokens[MAX_TOKENS];
    uint32_t length[N_TURNS + 1], middle[N_TURNS];
} reference;

/* What parent and children share. */
typedef struct shared {
    reference want[N_SEQUENCES];
    uint32_t committed[N_SEQUENCES]; /* tokens that the host was told are committed */
    bool removing[N_SEQUENCES];
    uint64_t n_turns, n_resumed, n_beyond;   /* beyond: more was there than had been told */
    uint64_t n_found, n_restored, n_corrupt; /* pages at a start, tokens and pages since */
    char failure[512];
} shared;

static shared *all;

static uint32_t prompt_of(uint32_t q, uint32_t turn, int32_t *tokens) {
    uint32_t n = 3 + (q * 5 + turn * 7) % (MAX_PROMPT - 2);
    host_tokens(q * 100 + turn, 96, tokens, n);
    return n;
}

static perch_request request_of(perch_engine *e, perch_sequence_id id, uint32_t q, uint32_t turn, const int32_t *tokens,
                                size_t n) {
    perch_request r = host_request(e, id, tokens, n, N_GENERATED);
    r.flags = PERCH_REQUEST_IGNORE_EOS;
    r.sampling.temperature = 0.9;
    r.sampling.repetition_penalty = 1.2;
    r.sampling.seed = q * 1000 + turn;
    r.user_data = q;
    return r;
}

/* Every other turn begins with tokens that are appended, and committed by themselves. */
static uint32_t appended(uint32_t turn, uint32_t n) { return turn % 2 ? n / 2 : 0; }

static void make_reference(void) {
    perch_options o = host_options("llama");
    perch_engine *e = host_engine(&o);
    CU_ASSERT_PTR_NOT_NULL_FATAL(e);
    for (uint32_t q = 0; q < N_SEQUENCES; q++) {
        reference *want = &all->want[q];
        perch_sequence_id id;
        size_t n = 0;
        CU_ASSERT_EQUAL(perch_sequence_open(e, &id, NULL), PERCH_OK);
        for (uint32_t turn = 0; turn < N_TURNS; turn++) {
            int32_t prompt[MAX_PROMPT];
            host_result r;
            uint32_t n_prompt = prompt_of(q, turn, prompt);
            perch_request request = request_of(e, id, q, turn, prompt, n_prompt);
            CU_ASSERT_EQUAL_FATAL(host_turn(e, &request, &r), PERCH_OK);
            host_result_free(&r);
            want->middle[turn] = want->length[turn] + appended(turn, n_prompt);
            want->length[turn + 1] = want->length[turn] + n_prompt + N_GENERATED;
        }
        CU_ASSERT_EQUAL_FATAL(perch_sequence_tokens(e, id, want->tokens, MAX_TOKENS, &n, NULL), PERCH_OK);
        CU_ASSERT_EQUAL_FATAL(n, want->length[N_TURNS]);
    }
    perch_engine_destroy(e);
}

/* ------------------------------------------------------------------- the child -- */

static void fail(const char *what, uint32_t q, uint64_t found, uint64_t other) {
    snprintf(all->failure, sizeof all->failure, "sequence %u: %s: %llu, %llu", q, what, (unsigned long long)found,
             (unsigned long long)other);
    _exit(1);
}

static void must(perch_status status, const char *what, uint32_t q) {
    if (status) {
        fail(what, q, status, 0);
    }
}

/* The tokens of an open sequence are what the unbroken run has. */
static uint32_t check_tokens_of(perch_engine *e, perch_sequence_id id, uint32_t q) {
    int32_t tokens[MAX_TOKENS];
    size_t n = 0;
    must(perch_sequence_tokens(e, id, tokens, MAX_TOKENS, &n, NULL), "perch_sequence_tokens", q);
    if (memcmp(tokens, all->want[q].tokens, n * sizeof *tokens) != 0) {
        fail("other tokens than in an unbroken run", q, n, 0);
    }
    return (uint32_t)n;
}

static perch_sequence_id open_again(perch_engine *e, uint32_t q) {
    char key[16];
    perch_sequence_options o;
    perch_sequence_id id = 0;
    perch_sequence_options_init(&o, sizeof o);
    snprintf(key, sizeof key, "sequence %u", q);
    o.key = key;
    must(perch_sequence_open_with(e, &o, &id, NULL), "perch_sequence_open_with", q);
    return id;
}

/* A sequence that came back: at which turn, and in the middle of it? */
static uint32_t check_resumed(perch_engine *e, perch_sequence_id id, uint32_t q) {
    uint32_t n = check_tokens_of(e, id, q), turn = 0;
    const reference *want = &all->want[q];
    if (all->removing[q] && n == 0) {
        all->removing[q] = false;
        all->committed[q] = 0;
    }
    if (n < all->committed[q]) {
        fail("committed tokens were lost", q, n, all->committed[q]);
    }
    while (turn < N_TURNS && want->length[turn + 1] <= n) {
        turn++;
    }
    if (n != want->length[turn] && (turn == N_TURNS || n != want->middle[turn])) {
        fail("it ends where nothing was committed", q, n, turn);
    }
    all->n_resumed += n > 0;
    all->n_beyond += n > all->committed[q];
    all->committed[q] = n;
    return turn;
}

static void submit_turn(perch_engine *e, perch_sequence_id id, uint32_t q, uint32_t turn) {
    int32_t prompt[MAX_PROMPT];
    const reference *want = &all->want[q];
    uint32_t n = prompt_of(q, turn, prompt), from = all->committed[q] - want->length[turn];
    if (from < appended(turn, n)) {
        must(perch_sequence_append(e, id, prompt + from, appended(turn, n) - from, NULL), "append", q);
        must(perch_sequence_sync(e, id, NULL), "sync", q);
        from = appended(turn, n);
        all->committed[q] = want->length[turn] + from;
    }
    perch_request r = request_of(e, id, q, turn, prompt + from, n - from);
    must(perch_submit(e, &r, NULL, NULL), "perch_submit", q);
}

/* Runs turns of all sequences at once, for ever. A sequence whose last turn is done is removed and begins anew. */
static void run_child(const char *folder) {
    perch_options o = host_options("llama");
    perch_engine *e;
    perch_event ev;
    perch_sequence_id ids[N_SEQUENCES];
    uint32_t turns[N_SEQUENCES];
    perch_stats stats = {.struct_size = sizeof stats};
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    o.store_backend = PERCH_STORE_LMDB;
    snprintf(o.store_path, sizeof o.store_path, "%s/store", folder);
    o.session_len = MAX_TOKENS;
    o.cache_max_entry_count = 1;
    o.page_bytes = 4096;
    o.host_bytes = 4 * o.page_bytes;
    o.disk_bytes = 100 * o.page_bytes;
    o.restore = PERCH_RESTORE_LOAD;
    snprintf(o.disk_path, sizeof o.disk_path, "%s/pages", folder);
    must(perch_engine_create(&o, &e, NULL), "perch_engine_create", 0);
    must(perch_engine_stats(e, &stats, NULL), "perch_engine_stats", 0);
    all->n_found += stats.disk_found_pages;
    for (uint32_t q = 0; q < N_SEQUENCES; q++) {
        ids[q] = open_again(e, q);
        turns[q] = check_resumed(e, ids[q], q);
    }
    perch_event_init(&ev, sizeof ev);
    for (uint32_t q = 0; q < N_SEQUENCES; q++) {
        while (turns[q] == N_TURNS) {
            all->removing[q] = true;
            must(perch_sequence_close(e, ids[q], NULL), "perch_sequence_close", q);
            ids[q] = open_again(e, q);
            turns[q] = check_resumed(e, ids[q], q);
        }
        submit_turn(e, ids[q], q, turns[q]);
    }
    for (;;) {
        must(perch_next(e, &ev, -1, NULL), "perch_next", 0);
        if (ev.type == PERCH_EVENT_DONE) {
            uint32_t q = (uint32_t)ev.user_data;
            must(ev.status, "DONE", q);
            all->committed[q] = all->want[q].length[++turns[q]];
            all->n_turns++;
            all->n_restored -= stats.restored_tokens;
            all->n_corrupt -= stats.corrupt_pages;
            must(perch_engine_stats(e, &stats, NULL), "perch_engine_stats", q);
            all->n_restored += stats.restored_tokens;
            all->n_corrupt += stats.corrupt_pages;
            if (check_tokens_of(e, ids[q], q) != all->committed[q]) {
                fail("a turn of another length", q, turns[q], 0);
            }
            if (turns[q] == N_TURNS) {
                all->removing[q] = true;
                must(perch_sequence_close(e, ids[q], NULL), "perch_sequence_close", q);
                ids[q] = open_again(e, q);
                turns[q] = check_resumed(e, ids[q], q);
            }
            submit_turn(e, ids[q], q, turns[q]);
        }
    }
}

/* ------------------------------------------------------------------ the parent -- */

static void no_committed_turn_is_lost_by_kill_9(void) {
    test_rng rng = {test_seed(9)};
    char folder[64];
    all = mmap(NULL, sizeof *all, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CU_ASSERT_FATAL(all != MAP_FAILED);
    snprintf(folder, sizeof folder, "%s", testing_folder());
    make_reference();
    uint64_t n_kills = test_scaled(200);
    for (uint64_t i = 0; i < n_kills && !all->failure[0]; i++) {
        int state = 0;
        uint64_t n_turns = all->n_turns, after_us = test_rng_below(&rng, 250000);
        pid_t child = fork();
        CU_ASSERT_FATAL(child >= 0);
        if (child == 0) {
            run_child(folder);
        }
        usleep((useconds_t)after_us);
        /* on a slow machine the instants lie further apart, so that something is done in between */
        for (int k = 0; i % 4 == 0 && k < 60000 && all->n_turns == n_turns && !all->failure[0]; k++) {
            usleep(1000);
        }
        kill(child, SIGKILL);
        waitpid(child, &state, 0);
        CHECK_MSG(WIFSIGNALED(state) && !all->failure[0], "kill %llu: %s", (unsigned long long)i, all->failure);
    }
    printf(
        "  %llu kills, %llu turns committed, %llu times a sequence was resumed, %llu of them with more than was told\n",
        (unsigned long long)n_kills, (unsigned long long)all->n_turns, (unsigned long long)all->n_resumed,
        (unsigned long long)all->n_beyond);
    printf("  %llu pages were found, %llu tokens loaded, %llu pages corrupt\n", (unsigned long long)all->n_found,
           (unsigned long long)all->n_restored, (unsigned long long)all->n_corrupt);
    CU_ASSERT(n_kills < 50 || (all->n_found > n_kills && all->n_restored > n_kills));
    CU_ASSERT(all->n_turns >= n_kills / 4 && all->n_resumed >= n_kills / 2);
    testing_remove_folder(folder);
    munmap(all, sizeof *all);
}

int main(int argc, char **argv) {
    static const test_case tests[] = {{"no_committed_turn_is_lost_by_kill_9", no_committed_turn_is_lost_by_kill_9}};
    return test_main("crash_test", tests, sizeof tests / sizeof *tests, argc, argv);
}
