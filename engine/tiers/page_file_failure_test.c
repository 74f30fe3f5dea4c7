/*
 * Everything that the page file asks the system for fails once, comes short, or is interrupted. Each time a status or
 * an outcome says so, nothing is left behind, no page comes back wrong, and the same works once the system gives it.
 * And the calls that are made are as few and in the order that they should be.
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
ssize_t __real_getrandom(void *data, size_t bytes, unsigned flags);
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
ssize_t __wrap_getrandom(void *data, size_t bytes, unsigned flags);
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
static bool refuse_direct; /* open does; or what is opened so refuses to transfer */
static bool refuse_transfers;
static _Atomic bool gate_shut;        /* pages that are to be written wait here */
static _Atomic uint32_t n_misaligned; /* transfers past the page cache that some disks would refuse */
static char calls[256];               /* a letter each: r, w: pages; R, W: header and records; s: sync. Of one thread */
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

static bool is_direct(int fd) { return (fcntl(fd, F_GETFL) & O_DIRECT) != 0; }

static void log_call(char letter) {
    const uint32_t at = atomic_fetch_add(&n_letters, 1);
    if (at < sizeof calls - 1) {
        calls[at] = letter;
    }
}

static void begin_log(void) {
    memset(calls, 0, sizeof calls);
    atomic_store(&n_letters, 0);
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

ssize_t __wrap_getrandom(void *data, size_t bytes, unsigned flags) {
    return fails("getrandom") ? (error_of(), -1) : __real_getrandom(data, bytes, flags);
}

ssize_t __wrap_pread(int fd, void *data, size_t bytes, off_t offset) {
    log_call('R');
    if (refuse_transfers && is_direct(fd)) {
        errno = EINVAL;
        return -1;
    }
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

static void check_alignment(int fd, const struct iovec *pieces, int n, off_t offset) {
    bool is_aligned = offset % 4096 == 0;
    for (int i = 0; i < n; i++) {
        is_aligned = is_aligned && (uintptr_t)pieces[i].iov_base % 4096 == 0 && pieces[i].iov_len % 4096 == 0;
    }
    n_misaligned += is_direct(fd) && !is_aligned;
}

/* What a transfer of pages is said to have done. */
static ssize_t shortened(const char *name, ssize_t done) {
    return fails(name) ? failing_by == SHORT ? done / 2 + 100 : (error_of(), -1) : done;
}

ssize_t __wrap_preadv(int fd, const struct iovec *pieces, int n, off_t offset) {
    log_call('r');
    check_alignment(fd, pieces, n, offset);
    return shortened("preadv", __real_preadv(fd, pieces, n, offset));
}

ssize_t __wrap_pwritev(int fd, const struct iovec *pieces, int n, off_t offset) {
    log_call('w');
    while (atomic_load(&gate_shut)) {
        usleep(100);
    }
    check_alignment(fd, pieces, n, offset);
    return shortened("pwritev", __real_pwritev(fd, pieces, n, offset));
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
    page_result results[N] = {{0}};
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
        CHECK_MSG(n_misaligned == 0, "way %d: %u transfers of parts of blocks", way, n_misaligned);
    }
    free(l.data);
}

/* One bad page costs one page; and neighbours are one transfer, records and all, with the sync behind them. */
static void neighbours_go_at_once_and_fail_alone(void) {
    begin_log();
    page_file *file = testing_open(1);
    /* A header that says that more is to come, on the disk before more comes; then the header. */
    CHECK_MSG(strncmp(calls, "WsWs", 4) == 0, "%s", calls);
    life l = {.data = testing_pages(2 * N)};
    page_request requests[N + 2] = {[N] = {.op = PAGE_SYNC, .frame = N}};
    page_result results[N + 2];
    for (uint32_t i = 0; i < N + 2; i++) {
        if (i != N) {
            requests[i] = testing_write(i, l.data + i * TESTING_ROOM, 10 + i, TESTING_PAGE);
        }
    }
    begin_log();
    CU_ASSERT(testing_run(file, requests, N + 2, results));
    CHECK_MSG(strcmp(calls, "wWWWWWswWW") == 0, "%s", calls);
    begin_log();
    read_all(&l, file);
    CHECK_MSG(strcmp(calls, "r") == 0 && l.n_ok == N, "%s, %u", calls, l.n_ok);
    /* The transfer fails, and then, of the pages by themselves, the second. */
    begin_log();
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

/* The frame has neither what was to be written nor, for sure, what was there. */
static void a_write_that_fails_leaves_an_empty_frame(void) {
    static const char *const at[] = {"pwritev", "pwrite", "pwrite"}; /* the page, its tokens and its record */
    for (uint64_t i = 0; i < 3; i++) {
        page_file *file = testing_open(1);
        life l = {.data = testing_pages(2 * N)};
        page_record record;
        CU_ASSERT(testing_one(file, testing_write(2, l.data, 12, TESTING_PAGE)) == PAGE_OK);
        failing_by = EIO;
        n_failing = 1;
        failing_call = i + 1;
        atomic_store(&n_calls, 0);
        atomic_store(&failed, NULL);
        atomic_store(&counting, true);
        CU_ASSERT(testing_one(file, testing_write(2, l.data, 13, TESTING_PAGE)) == PAGE_FAILED);
        atomic_store(&counting, false);
        CU_ASSERT(failed != NULL && strcmp(failed, at[i]) == 0 && !page_file_get(file, 2, &record));
        page_file_close(file);
        file = testing_open(1); /* page 13 lies where the record says 12 */
        CU_ASSERT(page_file_get(file, 2, &record) && testing_one(file, testing_read(2, l.data)) == PAGE_CORRUPT);
        failing_call = 0;
        free(l.data);
        page_file_close(file);
        unlink(testing_path);
    }
}

/* Whatever other threads could do: a SYNC comes after the writes before it, and reads before writes. */
static void syncs_wait_for_writes_and_reads_do_not(void) {
    for (uint32_t n_threads = 1; n_threads <= 2; n_threads++) {
        page_file *file = testing_open(n_threads);
        life l = {.data = testing_pages(3)};
        page_request requests[] = {
            testing_write(5, l.data, 1, TESTING_PAGE), {.op = PAGE_SYNC}, testing_read(9, l.data + TESTING_ROOM)};
        uint64_t first;
        CU_ASSERT(testing_one(file, testing_write(9, l.data + TESTING_ROOM, 2, TESTING_PAGE)) == PAGE_OK);
        begin_log();
        atomic_store(&gate_shut, true);
        CU_ASSERT(page_file_submit(file, requests, 1, &first, &testing_error) == PERCH_OK);
        while (atomic_load(&n_letters) == 0) {
            usleep(100);
        }
        CU_ASSERT(page_file_submit(file, requests + 1, 2, &first, &testing_error) == PERCH_OK);
        for (int i = 0; i < 5000 && atomic_load(&n_letters) < n_threads; i++) {
            usleep(1000);
        }
        usleep(20000);
        CU_ASSERT(atomic_load(&n_letters) == n_threads); /* with two threads the read is made meanwhile */
        atomic_store(&gate_shut, false);
        for (uint32_t n_done = 0; n_done < 3; usleep(100)) {
            page_result result;
            n_done += page_file_poll(file, &result, 1) == 1;
        }
        CHECK_MSG(strcmp(calls, n_threads == 1 ? "wWWrs" : "wrWWs") == 0, "%s", calls);
        free(l.data);
        page_file_close(file);
        unlink(testing_path);
    }
}

/* Requests that came together: what does not go at once goes side by side. */
static void threads_share_the_requests(void) {
    page_file *file = testing_open(3);
    uint8_t *data = testing_pages(3);
    page_request requests[3];
    uint64_t first;
    for (uint32_t i = 0; i < 3; i++) {
        requests[i] = testing_write(10 * i, data + i * TESTING_ROOM, i, TESTING_PAGE);
    }
    begin_log();
    atomic_store(&gate_shut, true);
    CU_ASSERT(page_file_submit(file, requests, 3, &first, &testing_error) == PERCH_OK);
    for (int i = 0; i < 5000 && atomic_load(&n_letters) < 3; i++) {
        usleep(1000);
    }
    CHECK_MSG(atomic_load(&n_letters) == 3, "%u of 3 writes were begun", atomic_load(&n_letters));
    atomic_store(&gate_shut, false);
    page_file_close(file);
    free(data);
    unlink(testing_path);
}

static void a_file_system_that_refuses_direct_io_is_used_through_the_cache(void) {
    for (int i = 0; i < 2; i++) {
        refuse_direct = i == 0;
        refuse_transfers = i == 1;
        page_file *file = testing_open(1);
        life l = {.data = testing_pages(2 * N)};
        page_request request = testing_write(2, l.data, 12, TESTING_PAGE);
        CU_ASSERT(!page_file_info_get(file).direct);
        CU_ASSERT(testing_one(file, request) == PAGE_OK);
        read_all(&l, file);
        CU_ASSERT(l.n_ok == 1);
        free(l.data);
        page_file_close(file);
    }
    refuse_direct = refuse_transfers = false;
    unlink(testing_path);
}

int main(int argc, char **argv) {
    static const test_case tests[] = {
        {"every_call_may_fail", every_call_may_fail},
        {"interrupted_and_short_calls_go_on", interrupted_and_short_calls_go_on},
        {"neighbours_go_at_once_and_fail_alone", neighbours_go_at_once_and_fail_alone},
        {"a_write_that_fails_leaves_an_empty_frame", a_write_that_fails_leaves_an_empty_frame},
        {"syncs_wait_for_writes_and_reads_do_not", syncs_wait_for_writes_and_reads_do_not},
        {"threads_share_the_requests", threads_share_the_requests},
        {"a_file_system_that_refuses_direct_io_is_used_through_the_cache",
         a_file_system_that_refuses_direct_io_is_used_through_the_cache},
    };
    if (!testing_begin()) {
        fprintf(stderr, "page_file_failure_test: can't make a folder %s\n", testing_folder);
        return 1;
    }
    int code = test_main("page_file_failure_test", tests, sizeof tests / sizeof tests[0], argc, argv);
    testing_end();
    return code;
}
