/*
 * Everything that the page file asks the system for fails once, comes short, or is interrupted. Each time a status or an outcome
 * says so, nothing is left behind, no page comes back wrong, and the same works once the system gives it. And the
 * calls that are made are as few and in the order that they should be.
 */
#include "engine/tiers/page_testing.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <sys/stat.h>
#include <sys/uio.h>

/* The linker sends the library's calls here (--wrap). */
void *__real_calloc(size_t n, size_t bytes);
void *__real_malloc(size_t bytes);
void __real_free(void *data);
char *__real_strdup(const char *text);
int __real_pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*start)(void *), void *argument);
int __real_open(const char *path, int flags, ...);
int __real_flock(int fd, int operation);
int __real_fstat(int fd, struct stat *out);
int __real_ftruncate(int fd, off_t bytes);
int __real_posix_fallocate(int fd, off_t offset, off_t bytes);
int __real_fdatasync(int fd);
ssize_t __real_pread(int fd, void *data, size_t bytes, off_t offset);
ssize_t __real_pwrite(int fd, const void *data, size_t bytes, off_t offset);
ssize_t __real_preadv(int fd, const struct iovec *pieces, int n, off_t offset);
ssize_t __real_pwritev(int fd, const struct iovec *pieces, int n, off_t offset);
void *__wrap_calloc(size_t n, size_t bytes);
void *__wrap_malloc(size_t bytes);
void __wrap_free(void *data);
char *__wrap_strdup(const char *text);
int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*start)(void *), void *argument);
int __wrap_open(const char *path, int flags, ...);
int __wrap_flock(int fd, int operation);
int __wrap_fstat(int fd, struct stat *out);
int __wrap_ftruncate(int fd, off_t bytes);
int __wrap_posix_fallocate(int fd, off_t offset, off_t bytes);
int __wrap_fdatasync(int fd);
ssize_t __wrap_pread(int fd, void *data, size_t bytes, off_t offset);
ssize_t __wrap_pwrite(int fd, const void *data, size_t bytes, off_t offset);
ssize_t __wrap_preadv(int fd, const struct iovec *pieces, int n, off_t offset);
ssize_t __wrap_pwritev(int fd, const struct iovec *pieces, int n, off_t offset);

/* How a call fails: an errno, or, of those that transfer bytes, only part of them. */
enum { SHORT = -1 };

static _Atomic bool counting; /* only the library's calls count */
static _Atomic uint64_t n_calls;
static uint64_t failing_call, n_failing; /* this one fails, and so many from it on */
static int failing_by;
static const char *_Atomic failed; /* which it was */
static _Atomic int64_t n_blocks;
static bool refuse_direct;
static char calls[256]; /* a letter each: r, w: pages; R, W: header and records; s: sync. Of one thread */
static _Atomic uint32_t n_letters;

static bool fails(const char *name) {
    if (!atomic_load(&counting)) {
        return false;
    }
    const uint64_t number = atomic_fetch_add(&n_calls, 1) + 1;
    if (number < failing_call || number >= failing_call + n_failing) {
        return false;
    }
    atomic_store(&failed, name);
    return true;
}

static void log_call(char letter) {
    const uint32_t at = atomic_fetch_add(&n_letters, 1);
    if (at < sizeof calls - 1) {
        calls[at] = letter;
    }
}

static void *counted(void *data) {
    n_blocks += atomic_load(&counting) && data != NULL;
    return data;
}

void *__wrap_calloc(size_t n, size_t bytes) { return fails("calloc") ? NULL : counted(__real_calloc(n, bytes)); }

void *__wrap_malloc(size_t bytes) { return fails("malloc") ? NULL : counted(__real_malloc(bytes)); }

char *__wrap_strdup(const char *text) { return fails("strdup") ? NULL : counted(__real_strdup(text)); }

void __wrap_free(void *data) {
    n_blocks -= atomic_load(&counting) && data != NULL;
    __real_free(data);
}

int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*start)(void *), void *argument) {
    return fails("pthread_create") ? EAGAIN : __real_pthread_create(thread, attributes, start, argument);
}

/* Of a call that can't come short: with SHORT it is EIO. */
static int error_of(void) { return errno = failing_by == SHORT ? EIO : failing_by; }

int __wrap_open(const char *path, int flags, ...) {
    va_list rest;
    va_start(rest, flags);
    const int mode = (flags & O_CREAT) != 0 ? va_arg(rest, int) : 0;
    va_end(rest);
    if (refuse_direct && (flags & O_DIRECT) != 0) {
        errno = EINVAL;
        return -1;
    }
    return fails("open") ? (error_of(), -1) : __real_open(path, flags, mode);
}

int __wrap_flock(int fd, int operation) { return fails("flock") ? (error_of(), -1) : __real_flock(fd, operation); }

int __wrap_fstat(int fd, struct stat *out) { return fails("fstat") ? (error_of(), -1) : __real_fstat(fd, out); }

int __wrap_ftruncate(int fd, off_t bytes) {
    return fails("ftruncate") ? (error_of(), -1) : __real_ftruncate(fd, bytes);
}

int __wrap_posix_fallocate(int fd, off_t offset, off_t bytes) {
    return fails("posix_fallocate") ? error_of() : __real_posix_fallocate(fd, offset, bytes);
}

int __wrap_fdatasync(int fd) {
    log_call('s');
    return fails("fdatasync") ? (error_of(), -1) : __real_fdatasync(fd);
}

ssize_t __wrap_pread(int fd, void *data, size_t bytes, off_t offset) {
    log_call('R');
    if (fails("pread") && failing_by != SHORT) {
        return error_of(), -1;
    }
    return __real_pread(fd, data, failed != NULL && failing_by == SHORT ? (bytes + 1) / 2 : bytes, offset);
}

ssize_t __wrap_pwrite(int fd, const void *data, size_t bytes, off_t offset) {
    log_call('W');
    if (fails("pwrite") && failing_by != SHORT) {
        return error_of(), -1;
    }
    return __real_pwrite(fd, data, failed != NULL && failing_by == SHORT ? (bytes + 1) / 2 : bytes, offset);
}

/* Half of the first piece, which need not be a whole block: then nothing is moved past the page cache. */
static struct iovec half(const struct iovec *pieces) {
    return (struct iovec){pieces[0].iov_base, pieces[0].iov_len / 2 / 4096 * 4096};
}

ssize_t __wrap_preadv(int fd, const struct iovec *pieces, int n, off_t offset) {
    log_call('r');
    if (fails("preadv")) {
        const struct iovec some = half(pieces);
        return failing_by != SHORT ? (error_of(), -1) : __real_preadv(fd, &some, 1, offset);
    }
    return __real_preadv(fd, pieces, n, offset);
}

ssize_t __wrap_pwritev(int fd, const struct iovec *pieces, int n, off_t offset) {
    log_call('w');
    if (fails("pwritev")) {
        const struct iovec some = half(pieces);
        return failing_by != SHORT ? (error_of(), -1) : __real_pwritev(fd, &some, 1, offset);
    }
    return __real_pwritev(fd, pieces, n, offset);
}

/* --- */

enum { N = 4 };

typedef struct life {
    uint8_t *data; /* [2 * N] pages: those that are written, those that are read */
    uint32_t n_ok, n_failed, n_corrupt;
} life;

static void count(life *l, const page_result *results, size_t n) {
    for (size_t i = 0; i < n; i++) {
        l->n_ok += results[i].outcome == PAGE_OK;
        l->n_corrupt += results[i].outcome == PAGE_CORRUPT;
        l->n_failed += results[i].outcome == PAGE_FAILED;
        CHECK_MSG((results[i].outcome == PAGE_FAILED) == (results[i].error != 0), "outcome %d with error %d",
                  (int)results[i].outcome, results[i].error);
    }
}

/* Reads what is there; each page is what was written, or said not to be. */
static void read_all(life *l, page_file *file) {
    page_request reads[N];
    page_result results[N];
    uint32_t n = 0;
    page_record record;
    for (uint32_t i = 0; i < N; i++) {
        if (page_file_get(file, i, &record)) {
            reads[n++] = testing_read(i, l->data + (N + i) * TESTING_ROOM);
        }
    }
    memset(l->data + N * TESTING_ROOM, 0, N * TESTING_ROOM);
    if (testing_run(file, reads, n, results)) {
        count(l, results, n);
        for (uint32_t i = 0; i < n; i++) {
            CU_ASSERT(results[i].outcome != PAGE_OK || testing_has(reads[i].data, TESTING_PAGE, 10 + reads[i].frame));
        }
    }
}

/* Makes a file, writes, syncs, reads; opens it again, and reads. */
static perch_status live(life *l) {
    const page_file_config config = testing_config(1);
    page_file *file = NULL;
    perch_status status = page_file_open(&config, &file, &testing_error);
    if (status == PERCH_OK) {
        page_request requests[N + 1] = {[N] = {.op = PAGE_SYNC}};
        page_result results[N + 1];
        for (uint32_t i = 0; i < N; i++) {
            requests[i] = testing_write(i, l->data + i * TESTING_ROOM, 10 + i, TESTING_PAGE);
        }
        if (testing_run(file, requests, N + 1, results)) {
            count(l, results, N + 1);
        }
        read_all(l, file);
        page_file_close(file);
        status = page_file_open(&config, &file, &testing_error);
    }
    if (status == PERCH_OK) {
        read_all(l, file);
        page_file_close(file);
    }
    return status;
}

/* Lives with every call failing in turn, one at a time or two in a row (what is tried twice). */
static uint32_t fail_each(int by, uint64_t in_a_row) {
    uint32_t n = 0, n_noticed = 0;
    life l = {.data = testing_pages(2 * N)};
    failing_by = by;
    n_failing = in_a_row;
    for (failing_call = 1;; failing_call++) {
        uint8_t *data = l.data;
        l = (life){.data = data};
        testing_error = (perch_error){.status = PERCH_OK};
        atomic_store(&n_calls, 0);
        atomic_store(&n_blocks, 0);
        atomic_store(&failed, NULL);
        int before = dup(0);
        atomic_store(&counting, true);
        perch_status status = live(&l);
        atomic_store(&counting, false);
        int after = dup(0);
        close(before);
        close(after);
        const char *what = atomic_load(&failed);
        unlink(testing_path);
        CHECK_MSG(after == before + 1 && atomic_load(&n_blocks) == 0,
                  "call %" PRIu64 ", %s: %" PRId64 " blocks, fds %d, %d", failing_call, what != NULL ? what : "none",
                  atomic_load(&n_blocks), before, after);
        if (what == NULL) {
            CHECK_MSG(status == PERCH_OK && l.n_ok == 3 * N + 1, "%s, %u", testing_error.message, l.n_ok);
            break;
        }
        const bool told = status == PERCH_E_NOMEM || status == PERCH_E_IO || status == PERCH_E_NO_ROOM;
        CHECK_MSG(status == PERCH_OK || (told && testing_error.message[0] != '\0'), "call %" PRIu64 ", %s: %s '%s'",
                  failing_call, what, perch_status_name(status), testing_error.message);
        n_noticed += status != PERCH_OK || l.n_failed + l.n_corrupt > 0;
        n++;
    }
    failing_call = 0;
    free(l.data);
    CHECK_MSG(n >= 30, "only %u calls failed", n);
    return n_noticed;
}

static void every_call_may_fail(void) {
    CHECK_MSG(fail_each(EIO, 1) >= 15, "few were noticed");
    CHECK_MSG(fail_each(ENOSPC, 3) >= 15, "few were noticed");
    refuse_direct = true;
    CHECK_MSG(fail_each(EIO, 2) >= 15, "few were noticed");
    refuse_direct = false;
}

/* Whether a call that fails in this way is made again, or goes on where it stopped. */
static bool goes_on(const char *call, int by) {
    static const char *const transfers[] = {"pread", "pwrite", "preadv", "pwritev"};
    for (size_t i = 0; i < sizeof transfers / sizeof transfers[0]; i++) {
        if (strcmp(call, transfers[i]) == 0) {
            return true;
        }
    }
    return by == EINTR && (strcmp(call, "fdatasync") == 0 || strcmp(call, "posix_fallocate") == 0);
}

static void interrupted_and_short_calls_go_on(void) {
    life l = {.data = testing_pages(2 * N)};
    static const int ways[] = {EINTR, SHORT};
    for (int way = 0; way < 4; way++) {
        uint32_t n = 0;
        const char *what = "";
        refuse_direct = way >= 2;
        failing_by = ways[way % 2];
        n_failing = 1;
        for (failing_call = 1; what != NULL; failing_call++) {
            l = (life){.data = l.data};
            atomic_store(&n_calls, 0);
            atomic_store(&failed, NULL);
            atomic_store(&counting, true);
            perch_status status = live(&l);
            atomic_store(&counting, false);
            what = atomic_load(&failed);
            unlink(testing_path);
            if (what != NULL && goes_on(what, failing_by)) {
                n++;
                CHECK_MSG(status == PERCH_OK && l.n_ok == 3 * N + 1, "way %d, call %" PRIu64 ", %s: %s '%s', %u done",
                          way, failing_call, what, perch_status_name(status), testing_error.message, l.n_ok);
            }
        }
        failing_call = 0;
        refuse_direct = false;
        CHECK_MSG(n >= 8, "way %d: only %u calls", way, n);
    }
    free(l.data);
}

/* One bad page costs one page; and neighbours are one transfer, records and all, with the sync behind them. */
static void neighbours_go_at_once_and_fail_alone(void) {
    page_file *file = testing_open(1);
    life l = {.data = testing_pages(2 * N)};
    page_request requests[N + 2] = {[N] = {.op = PAGE_SYNC}};
    page_result results[N + 2];
    for (uint32_t i = 0; i < N + 2; i++) {
        if (i != N) {
            requests[i] = testing_write(i, l.data + i * TESTING_ROOM, 10 + i, TESTING_PAGE);
        }
    }
    memset(calls, 0, sizeof calls);
    atomic_store(&n_letters, 0);
    CU_ASSERT(testing_run(file, requests, N + 2, results));
    CHECK_MSG(strcmp(calls, "wWswW") == 0, "%s", calls);
    memset(calls, 0, sizeof calls);
    atomic_store(&n_letters, 0);
    read_all(&l, file);
    CHECK_MSG(strcmp(calls, "r") == 0 && l.n_ok == N, "%s, %u", calls, l.n_ok);
    /* The transfer fails, and then, of the pages by themselves, the second. */
    memset(calls, 0, sizeof calls);
    atomic_store(&n_letters, 0);
    atomic_store(&n_calls, 0);
    l = (life){.data = l.data};
    failing_by = EIO;
    failing_call = 1;
    n_failing = 2;
    atomic_store(&counting, true);
    read_all(&l, file);
    atomic_store(&counting, false);
    failing_call = 0;
    CHECK_MSG(strcmp(calls, "rrrrr") == 0 && l.n_ok == N - 1 && l.n_failed == 1, "%s, %u", calls, l.n_ok);
    read_all(&l, file); /* it is still there */
    CU_ASSERT(l.n_ok == 2 * N - 1);
    free(l.data);
    page_file_close(file);
    unlink(testing_path);
}

static void a_file_system_that_refuses_direct_io_is_read_through_the_cache(void) {
    for (int i = 0; i < 2; i++) {
        refuse_direct = i == 1;
        page_file *file = testing_open(1);
        life l = {.data = testing_pages(2 * N)};
        page_request request = testing_write(2, l.data, 12, TESTING_PAGE);
        CU_ASSERT(!refuse_direct || !page_file_info_get(file).direct);
        CU_ASSERT(testing_one(file, request) == PAGE_OK);
        read_all(&l, file);
        CU_ASSERT(l.n_ok == 1);
        free(l.data);
        page_file_close(file);
    }
    refuse_direct = false;
    unlink(testing_path);
}

int main(int argc, char **argv) {
    static const test_case tests[] = {
        {"every_call_may_fail", every_call_may_fail},
        {"interrupted_and_short_calls_go_on", interrupted_and_short_calls_go_on},
        {"neighbours_go_at_once_and_fail_alone", neighbours_go_at_once_and_fail_alone},
        {"a_file_system_that_refuses_direct_io_is_read_through_the_cache",
         a_file_system_that_refuses_direct_io_is_read_through_the_cache},
    };
    if (!testing_begin()) {
        fprintf(stderr, "page_file_failure_test: can't make a folder %s\n", testing_folder);
        return 1;
    }
    int code = test_main("page_file_failure_test", tests, sizeof tests / sizeof tests[0], argc, argv);
    testing_end();
    return code;
}
