/*
 * Everything that the backend asks the system for fails once: memory, mappings, the memfd, threads. Each time an error comes
 * back, nothing is left behind, and the same works once the system gives it.
 */
#include "kernels/cpu/pair_testing.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* The linker sends the library's calls here (--wrap). */
void *__real_calloc(size_t n, size_t bytes);
void *__real_malloc(size_t bytes);
void *__real_aligned_alloc(size_t alignment, size_t bytes);
void __real_free(void *data);
void *__real_mmap(void *at, size_t bytes, int protection, int flags, int fd, off_t offset);
int __real_munmap(void *at, size_t bytes);
int __real_memfd_create(const char *name, unsigned flags);
int __real_ftruncate(int fd, off_t bytes);
int __real_fallocate(int fd, int mode, off_t offset, off_t bytes);
ssize_t __real_pread(int fd, void *data, size_t bytes, off_t offset);
ssize_t __real_pwrite(int fd, const void *data, size_t bytes, off_t offset);
int __real_pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*start)(void *), void *argument);
void *__wrap_calloc(size_t n, size_t bytes);
void *__wrap_malloc(size_t bytes);
void *__wrap_aligned_alloc(size_t alignment, size_t bytes);
void __wrap_free(void *data);
void *__wrap_mmap(void *at, size_t bytes, int protection, int flags, int fd, off_t offset);
int __wrap_munmap(void *at, size_t bytes);
int __wrap_memfd_create(const char *name, unsigned flags);
int __wrap_ftruncate(int fd, off_t bytes);
int __wrap_fallocate(int fd, int mode, off_t offset, off_t bytes);
ssize_t __wrap_pread(int fd, void *data, size_t bytes, off_t offset);
ssize_t __wrap_pwrite(int fd, const void *data, size_t bytes, off_t offset);
int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*start)(void *), void *argument);

static bool counting;         /* only the library's calls count, made while a scenario runs */
static uint64_t n_calls;      /* that may fail, so far */
static uint64_t failing_call; /* this one does */
static const char *failed;    /* which it was */
static int64_t n_blocks;      /* heap blocks that are not freed */
static int64_t mapped_bytes;  /* of new mappings, not unmapped */

static bool fails(const char *name) {
    if (!counting || ++n_calls != failing_call) {
        return false;
    }
    failed = name;
    return true;
}

static void *counted(void *data) {
    n_blocks += counting && data != NULL ? 1 : 0;
    return data;
}

void *__wrap_calloc(size_t n, size_t bytes) { return fails("calloc") ? NULL : counted(__real_calloc(n, bytes)); }

void *__wrap_malloc(size_t bytes) { return fails("malloc") ? NULL : counted(__real_malloc(bytes)); }

void *__wrap_aligned_alloc(size_t alignment, size_t bytes) {
    return fails("aligned_alloc") ? NULL : counted(__real_aligned_alloc(alignment, bytes));
}

void __wrap_free(void *data) {
    n_blocks -= counting && data != NULL ? 1 : 0;
    __real_free(data);
}

void *__wrap_mmap(void *at, size_t bytes, int protection, int flags, int fd, off_t offset) {
    if (fails("mmap")) {
        errno = ENOMEM;
        return MAP_FAILED;
    }
    void *data = __real_mmap(at, bytes, protection, flags, fd, offset);
    mapped_bytes += counting && data != MAP_FAILED && (flags & MAP_FIXED) == 0 ? (int64_t)bytes : 0;
    return data;
}

int __wrap_munmap(void *at, size_t bytes) {
    mapped_bytes -= counting ? (int64_t)bytes : 0;
    return __real_munmap(at, bytes);
}

int __wrap_memfd_create(const char *name, unsigned flags) {
    if (fails("memfd_create")) {
        errno = EMFILE;
        return -1;
    }
    return __real_memfd_create(name, flags);
}

int __wrap_ftruncate(int fd, off_t bytes) {
    if (fails("ftruncate")) {
        errno = EINVAL;
        return -1;
    }
    return __real_ftruncate(fd, bytes);
}

int __wrap_fallocate(int fd, int mode, off_t offset, off_t bytes) {
    if (fails("fallocate")) {
        errno = ENOSPC;
        return -1;
    }
    return __real_fallocate(fd, mode, offset, bytes);
}

/* The host tier's thread copies by these, while the caller waits for it. */
ssize_t __wrap_pread(int fd, void *data, size_t bytes, off_t offset) {
    if (fails("pread")) {
        errno = EIO;
        return -1;
    }
    return __real_pread(fd, data, bytes, offset);
}

ssize_t __wrap_pwrite(int fd, const void *data, size_t bytes, off_t offset) {
    if (fails("pwrite")) {
        errno = EIO;
        return -1;
    }
    return __real_pwrite(fd, data, bytes, offset);
}

int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*start)(void *), void *argument) {
    return fails("pthread_create") ? EAGAIN : __real_pthread_create(thread, attributes, start, argument);
}

/* A page copied to another, one to the host tier and back. */
static perch_status move_pages(kernels_device *device, perch_error *err) {
    const kernels_backend *b = kernels_cpu();
    const kv_command copy = {.op = KV_COPY, .page = 1, .source = 2};
    const kernels_transfer one = {3, 4};
    uint64_t ticket;
    perch_status status = b->host_open(device, 5, err);
    for (uint32_t i = 0; i < KERNELS_DIRECTIONS && status == PERCH_OK; i++) {
        const kernels_direction direction = i == 0 ? KERNELS_STORE : KERNELS_LOAD;
        (void)((status = b->transfer(device, direction, &one, 1, &ticket, err)) != PERCH_OK ||
               (status = b->transfer_wait(device, direction, ticket, err)) != PERCH_OK);
    }
    return status == PERCH_OK ? b->kv_execute(device, &copy, 1, err) : status;
}

/* A device's whole life: every kind of thing that can be asked for, the first failure ends it. */
static perch_status life(perch_error *err) {
    const kernels_backend *b = kernels_cpu();
    kernels_config config = {.dtype = KERNELS_BF16, .n_threads = 4};
    kernels_device *device = NULL;
    kernels_weight *small = NULL, *large = NULL;
    void *buffer = NULL, *large_buffer = NULL;
    uint64_t bytes = 0;
    perch_status status = b->open(&config, &device, err);
    if (status != PERCH_OK) {
        CHECK_MSG(device == NULL, "a device came with the error '%s'", err->message);
        return status;
    }
    uint64_t page_bytes = b->kv_page_granularity(device);
    const kernels_kv kv = {.page_bytes = page_bytes, .n_pages = 40000, .n_slots = 2, .pages_per_slot = 2};
    const kernels_kv table = {.mapping = KERNELS_TABLE,
                              .page_bytes = 5 * 128,
                              .group_bytes = 128,
                              .n_pages = 2000,
                              .n_slots = 2,
                              .pages_per_slot = 2};
    const kv_command commands[] = {{.op = KV_MAP, .page = 1}, {.op = KV_UNMAP}};
    (void)((status = b->alloc(device, 1000, &buffer, err)) != PERCH_OK ||
           (status = b->alloc(device, (size_t)3 << 20, &large_buffer, err)) != PERCH_OK ||
           (status = b->weight_create(device, 10, 10, KERNELS_WEIGHT_DTYPE, &small, err)) != PERCH_OK ||
           (status = b->weight_create(device, 2000, 2000, KERNELS_WEIGHT_DTYPE, &large, err)) != PERCH_OK ||
           (status = b->free_bytes(device, &bytes, err)) != PERCH_OK ||
           (status = b->kv_open(device, &kv, err)) != PERCH_OK || /* over two fallocates */
           (status = b->kv_execute(device, commands, 2, err)) != PERCH_OK ||
           (status = move_pages(device, err)) != PERCH_OK);
    if (status == PERCH_OK) {
        b->kv_close(device);
        (void)((status = b->kv_open(device, &table, err)) != PERCH_OK ||
               (status = b->kv_execute(device, commands, 2, err)) != PERCH_OK);
    }
    b->free(device, buffer);
    b->weight_destroy(device, small);
    b->close(device);
    return status;
}

static void every_request_to_the_system_may_fail(void) {
    uint64_t n = 0;
    for (failing_call = 1;; failing_call++) {
        perch_error err = {0};
        n_calls = 0;
        n_blocks = 0;
        mapped_bytes = 0;
        failed = NULL;
        int fd_before = dup(0);
        counting = true;
        perch_status status = life(&err);
        counting = false;
        int fd_after = dup(0);
        close(fd_before);
        close(fd_after);
        if (failed == NULL) {
            CHECK_MSG(status == PERCH_OK, "%s", err.message);
            break;
        }
        n++;
        bool named = status == PERCH_E_NOMEM || status == PERCH_E_DEVICE || status == PERCH_E_NO_ROOM;
        CHECK_MSG(named && err.message[0] != '\0', "call %" PRIu64 ", %s: %s '%s'", failing_call, failed,
                  perch_status_name(status), err.message);
        CHECK_MSG(n_blocks == 0 && mapped_bytes == 0 && fd_after == fd_before + 1,
                  "call %" PRIu64 ", %s: %" PRId64 " blocks and %" PRId64 " mapped bytes are left", failing_call,
                  failed, n_blocks, mapped_bytes);
    }
    CHECK_MSG(n >= 20, "only %" PRIu64 " calls failed", n);
}

int main(int argc, char **argv) {
    static const test_case tests[] = {
        {"every_request_to_the_system_may_fail", every_request_to_the_system_may_fail},
    };
    return test_main("cpu_failure_test", tests, sizeof tests / sizeof tests[0], argc, argv);
}
