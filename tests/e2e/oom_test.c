/*
 * Every allocation fails in turn: in creating an engine, loading a model and a tokenizer, opening sequences, submitting, steps,
 * taking events. Each time a status must come back, nothing may leak, and an engine that is there goes on: the same turn
 * afterwards gives the same tokens. Counted are the C library's allocations of this process, those of the libraries that perch
 * uses included, and the system's: mappings, memory files, threads.
 */
#include "engine/store/testing.h"
#include "tests/e2e/host.h"

#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <execinfo.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

/* ------------------------------------------------------------- the interposition -- */

void *__libc_malloc(size_t n);
void *__libc_calloc(size_t n, size_t size);
void *__libc_realloc(void *block, size_t n);
void *__libc_memalign(size_t alignment, size_t n);
void __libc_free(void *block);

static _Atomic long n_live;       /* blocks allocated and not freed */
static _Atomic long countdown;    /* the allocation that makes it 0 fails; 0 or less: none does */
static _Atomic bool keep_failing; /* and all behind it */
static _Atomic long n_failed;

static void *frames[24]; /* where the last allocation failed */
static int n_frames;

static bool fails(void) {
    if (atomic_load(&countdown) <= 0) {
        bool fail = atomic_load(&keep_failing) && atomic_load(&n_failed) > 0;
        n_failed += fail;
        return fail;
    }
    bool fail = atomic_fetch_sub(&countdown, 1) == 1;
    if (fail) {
        n_frames = backtrace(frames, sizeof frames / sizeof *frames);
    }
    n_failed += fail;
    return fail;
}

static void *counted(void *block) {
    n_live += block != NULL;
    return block;
}

void *malloc(size_t n) { return fails() ? (errno = ENOMEM, NULL) : counted(__libc_malloc(n)); }

void *calloc(size_t n, size_t size) { return fails() ? (errno = ENOMEM, NULL) : counted(__libc_calloc(n, size)); }

void *realloc(void *block, size_t n) {
    if (fails()) {
        errno = ENOMEM;
        return NULL;
    }
    void *moved = __libc_realloc(block, n);
    n_live += !block && moved;
    return moved;
}

void *aligned_alloc(size_t alignment, size_t n) {
    return fails() ? (errno = ENOMEM, NULL) : counted(__libc_memalign(alignment, n));
}

int posix_memalign(void **out, size_t alignment, size_t n) {
    *out = fails() ? NULL : counted(__libc_memalign(alignment, n));
    return *out ? 0 : ENOMEM;
}

void free(void *block) {
    n_live -= block != NULL;
    __libc_free(block);
}

void *mmap(void *at, size_t n, int protection, int flags, int fd, off_t offset) {
    if (fails()) {
        errno = ENOMEM;
        return MAP_FAILED;
    }
    return (void *)syscall(SYS_mmap, at, n, protection, flags, fd, offset);
}

int memfd_create(const char *name, unsigned flags) {
    return fails() ? (errno = ENOMEM, -1) : (int)syscall(SYS_memfd_create, name, flags);
}

typedef int (*pthread_create_fn)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);

int pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*run)(void *), void *arg) {
    static pthread_create_fn real;
    if (!real) {
        *(void **)&real = dlsym(RTLD_NEXT, "pthread_create");
    }
    return fails() ? EAGAIN : real(thread, attributes, run, arg);
}

static void failures_off(void) {
    atomic_store(&countdown, 0);
    atomic_store(&keep_failing, false);
}

/* ------------------------------------------------------------------ the scenario -- */

typedef struct outcome {
    perch_status status; /* the first failure */
    int32_t tokens[64];
    uint32_t n_tokens;
} outcome;

static perch_store backend;
static const char *store_at = ""; /* its folder or address */
static const char *disk_at;       /* the folder of a disk tier's file, or NULL */

/* A sharded checkpoint and a tokenizer, both loaded from their files. */
static perch_options small_options(void) {
    perch_options o = host_options("text");
    snprintf(o.path, sizeof o.path, "tests/fixtures/model/mistral-bf16");
    snprintf(o.tokenizer_path, sizeof o.tokenizer_path, "tests/fixtures/engine/text/tokenizer.json");
    o.weights = PERCH_WEIGHTS_FILE;
    o.threads = 2;
    o.cache_max_entry_count = 2;
    snprintf(o.trace_file, sizeof o.trace_file, "/dev/null");
    snprintf(o.stats_file, sizeof o.stats_file, "/tmp/perch-oom-%ld", (long)getpid());
    if (disk_at) {
        o.disk_bytes = 1 << 20;
        snprintf(o.disk_path, sizeof o.disk_path, "%s/kv", disk_at);
    }
    o.store_backend = backend;
    snprintf(o.store_path, sizeof o.store_path, "%s", store_at);
    if (backend == PERCH_STORE_REDIS) {
        static unsigned n; /* what an engine that could not take its leave had is its own for a while */
        snprintf(o.store_address, sizeof o.store_address, "%s", store_at);
        snprintf(o.store_prefix, sizeof o.store_prefix, "%u", n++);
    }
    return o;
}

static bool simulated; /* the engine's device and time */

static const int32_t prompt[] = {10, 20, 30, 40, 12, 22, 32, 42, 14, 33};

/* A turn with everything in it: stop strings, log-probabilities, two completions. */
static perch_status rich_request(perch_engine *e, perch_sequence_id id, perch_request_id *out) {
    static const char *const stops[] = {"never said", "nor this"};
    perch_request q = host_request(e, id, prompt, sizeof prompt / sizeof *prompt, 20);
    q.flags = PERCH_REQUEST_IGNORE_EOS | PERCH_REQUEST_PROMPT_LOGPROBS;
    q.sampling.n_logprobs = 2;
    q.sampling.temperature = 0.8;
    q.sampling.repetition_penalty = 1.1;
    q.sampling.seed = 5;
    q.n_completions = 2;
    q.stop_strings = stops;
    q.n_stop_strings = 2;
    return perch_submit(e, &q, out, NULL);
}

/* Takes events until both completions are done. E_NOMEM here must lose nothing: it is tried again. */
static perch_status take(perch_engine *e, outcome *o) {
    perch_event ev;
    perch_status first = PERCH_OK;
    uint32_t n_done = 0;
    perch_event_init(&ev, sizeof ev);
    while (n_done < 2) {
        uint64_t now_us;
        if (simulated) {
            perch_simulation_advance(e, UINT64_MAX, &now_us, NULL);
        }
        perch_status status = perch_next(e, &ev, HOST_HANGS_MS, NULL);
        if (status == PERCH_E_NOMEM) {
            first = status;
            failures_off();
            continue;
        }
        if (!CHECK_MSG(status == PERCH_OK, "perch_next: %s", perch_status_name(status))) {
            break;
        }
        if (ev.completion == 0) {
            for (size_t i = 0; i < ev.n_tokens && o->n_tokens < 64; i++) {
                o->tokens[o->n_tokens++] = ev.tokens[i];
            }
        }
        n_done += ev.type == PERCH_EVENT_DONE;
        if (ev.type == PERCH_EVENT_DONE && ev.finish == PERCH_FINISH_ERROR) {
            first = ev.status;
        }
    }
    perch_event_clear(&ev);
    return first;
}

static perch_status turn(perch_engine *e, perch_sequence_id id, outcome *o) {
    perch_request_id request;
    o->n_tokens = 0;
    perch_status status = rich_request(e, id, &request);
    return status ? status : take(e, o);
}

/* A sequence as bytes, and back, under a key; let go of, and opened again. */
static perch_status by_name(perch_engine *e, perch_sequence_id id) {
    unsigned char bytes[2048];
    size_t n_bytes, n;
    perch_sequence_options options;
    perch_sequence_entry entry;
    perch_sequence_id named = 0;
    perch_sequence_options_init(&options, sizeof options);
    options.key = "a key";
    options.flags = PERCH_SEQUENCE_RETAIN;
    perch_status status = perch_sequence_remove(e, "a key", NULL); /* where the last run ended before it did that */
    if (status && status != PERCH_E_NOT_FOUND) {
        return status;
    }
    status = perch_sequence_export(e, id, bytes, sizeof bytes, &n_bytes, NULL);
    if (status || (status = perch_sequence_import(e, bytes, n_bytes, &options, &named, NULL)) ||
        (status = perch_sequence_sync(e, named, NULL)) || (status = perch_sequence_close(e, named, NULL)) ||
        (status = perch_sequence_open_with(e, &options, &named, NULL)) ||
        (status = perch_sequence_list(e, NULL, &entry, 1, sizeof entry, &n, NULL)) ||
        (status = perch_sequence_close(e, named, NULL))) {
        return status;
    }
    return perch_sequence_remove(e, "a key", NULL);
}

/* What a host does, up to the first failure. The engine is left for the caller, if there is one. */
static perch_status scenario(perch_engine **e, outcome *o) {
    perch_options options = small_options();
    perch_sequence_id id = 0, fork = 0;
    perch_hardware hardware;
    perch_hardware_init(&hardware, sizeof hardware);
    perch_status status =
        simulated ? perch_simulation_create(&options, &hardware, e, NULL) : perch_engine_create(&options, e, NULL);
    if (status || (status = perch_sequence_open(*e, &id, NULL)) || (status = turn(*e, id, o)) ||
        (status = perch_sequence_fork(*e, id, 15, &fork, NULL)) ||
        (status = perch_sequence_append(*e, id, prompt, 3, NULL)) ||
        (status = perch_sequence_rewind(*e, fork, 5, NULL)) || (status = perch_sequence_close(*e, fork, NULL))) {
        return status;
    }
    return by_name(*e, id);
}

/* --------------------------------------------------------------------- the check -- */

static uint32_t n_dead; /* engines that a failure in a step has killed */

static uint32_t count_descriptors(void) {
    uint32_t n = 0;
    DIR *dir = opendir("/proc/self/fd");
    while (dir && readdir(dir)) {
        n++;
    }
    if (dir) {
        closedir(dir);
    }
    return n;
}

static uint32_t count_memory_files(void) {
    char line[512];
    uint32_t n = 0;
    FILE *maps = fopen("/proc/self/maps", "r");
    while (maps && fgets(line, sizeof line, maps)) {
        n += strstr(line, "memfd:") != NULL;
    }
    if (maps) {
        fclose(maps);
    }
    return n;
}

/*
 * The engine goes on: a new sequence gives what it always gives. Or, where a mapping failed in the middle of a step, it is
 * dead and says so.
 */
static void check_goes_on(perch_engine *e, const outcome *good) {
    perch_sequence_id id;
    perch_stats stats = {.struct_size = sizeof stats};
    CU_ASSERT_EQUAL(perch_engine_stats(e, &stats, NULL), PERCH_OK);
    if (stats.status) {
        perch_request_id request;
        CU_ASSERT_EQUAL(stats.status, PERCH_E_DEVICE);
        CU_ASSERT_EQUAL(perch_sequence_open(e, &id, NULL), PERCH_OK);
        CU_ASSERT_EQUAL(rich_request(e, id, &request), PERCH_E_DEVICE);
        n_dead++;
        return;
    }
    outcome again = {PERCH_OK, {0}, 0};
    if (CHECK_MSG(perch_sequence_open(e, &id, NULL) == PERCH_OK, "no sequence afterwards")) {
        perch_status status = turn(e, id, &again);
        CHECK_MSG(status == PERCH_OK, "a turn afterwards: %s", perch_status_name(status));
        CHECK_MSG(again.n_tokens == good->n_tokens && !memcmp(again.tokens, good->tokens, 4 * good->n_tokens),
                  "other tokens afterwards");
    }
}

/* Fails the n-th allocation (and all behind it); false when the scenario ended before. */
static bool fail_at(long n, bool all, const outcome *good) {
    perch_engine *e = NULL;
    outcome o = {PERCH_OK, {0}, 0};
    uint32_t descriptors = count_descriptors();
    long live = n_live;
    n_failed = 0;
    atomic_store(&keep_failing, all);
    atomic_store(&countdown, n);
    perch_status status = scenario(&e, &o);
    bool failed = n_failed > 0;
    failures_off();
    if (e) {
        check_goes_on(e, good);
        perch_engine_destroy(e);
    }
    long n_leaked = n_live - live; /* before CUnit allocates for a failure */
    if (status) {
        bool expected = status == PERCH_E_NOMEM || status == PERCH_E_IO || status == PERCH_E_DEVICE ||
                        status == PERCH_E_NO_ROOM || (status == PERCH_E_STORE && backend);
        CHECK_MSG(expected && failed, "allocation %ld: %s", n, perch_status_name(status));
    }
    CHECK_MSG(n_leaked == 0, "allocation %ld (%s): %ld blocks leaked", n, perch_status_name(status), n_leaked);
    CHECK_MSG(count_descriptors() == descriptors, "allocation %ld: descriptors leaked", n);
    CHECK_MSG(count_memory_files() == 0, "allocation %ld: KV memory is still mapped", n);
    if (CU_get_number_of_failures() > 0) {
        printf("  the allocation that failed:\n");
        fflush(stdout);
        backtrace_symbols_fd(frames, n_frames, STDOUT_FILENO);
    }
    return failed;
}

static void every_allocation_fails(bool all) {
    outcome good = {PERCH_OK, {0}, 0};
    perch_engine *e = NULL;
    n_frames = backtrace(frames, 1); /* which allocates the first time */
    /* once unharmed: also lets the C library allocate what it keeps */
    CU_ASSERT_EQUAL(scenario(&e, &good), PERCH_OK);
    CU_ASSERT_EQUAL(good.n_tokens, 20);
    perch_engine_destroy(e);
    long n = 1;
    while (fail_at(n, all, &good) && CU_get_number_of_failures() == 0) {
        n++;
    }
    printf("  %ld allocations failed in turn, %u of them killed the engine\n", n - 1, n_dead);
    CHECK_MSG(n > (simulated ? 100 : 200), "only %ld allocations", n);
    CHECK_MSG(n_dead < 40, "%u engines died", n_dead); /* only mappings in a step may do that */
    n_dead = 0;
}

static void a_single_failed_allocation_is_a_status_and_nothing_leaks(void) { every_allocation_fails(false); }

static void so_is_memory_that_stays_short(void) { every_allocation_fails(true); }

static void so_are_both_in_a_simulation(void) {
    simulated = true;
    every_allocation_fails(false);
    every_allocation_fails(true);
    simulated = false;
}

static void so_are_both_with_a_disk_tier(void) {
    disk_at = testing_folder();
    every_allocation_fails(false);
    every_allocation_fails(true);
    testing_remove_folder(disk_at);
    disk_at = NULL;
}

static void so_are_both_with_sequences_in_lmdb(void) {
    backend = PERCH_STORE_LMDB;
    store_at = testing_folder();
    every_allocation_fails(false);
    every_allocation_fails(true);
    testing_remove_folder(store_at);
    backend = PERCH_STORE_MEMORY;
}

static void so_are_both_with_sequences_in_redis(void) {
    testing_redis r;
    const char *folder = testing_folder();
    if (testing_redis_start(&r, folder)) {
        backend = PERCH_STORE_REDIS;
        store_at = r.address;
        every_allocation_fails(false);
        every_allocation_fails(true);
        testing_redis_kill(&r);
    }
    testing_remove_folder(folder);
    backend = PERCH_STORE_MEMORY;
}

int main(int argc, char **argv) {
    static const test_case tests[] = {
#define TEST(name) {#name, name}
        TEST(a_single_failed_allocation_is_a_status_and_nothing_leaks),
        TEST(so_is_memory_that_stays_short),
        TEST(so_are_both_in_a_simulation),
        TEST(so_are_both_with_a_disk_tier),
        TEST(so_are_both_with_sequences_in_lmdb),
        TEST(so_are_both_with_sequences_in_redis),
    };
    return test_main("oom_test", tests, sizeof tests / sizeof *tests, argc, argv);
}
