/*
 * page_testing: what the tests of the page file share: files in a folder of their own, pages whose bytes say which they
 * are, requests that are waited for.
 */
#ifndef PERCH_ENGINE_TIERS_PAGE_TESTING_H
#define PERCH_ENGINE_TIERS_PAGE_TESTING_H

#include "engine/tiers/page_file.h"
#include "tests/support/check.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define TESTING_PAGE ((size_t)3 * 4096 + 512)
#define TESTING_ROOM ((size_t)4 * 4096) /* of a page in memory */
#define TESTING_FRAMES 40u
#define TESTING_TOKENS 24u

static char testing_folder[64];
static char testing_path[96];
static perch_error testing_error;

#define CHECK_ERROR(call, expected, text)                                                                              \
    do {                                                                                                               \
        perch_status check_status = call;                                                                              \
        CHECK_MSG(check_status == (expected) && strstr(testing_error.message, text) != NULL, "%s '%s', not %s '%s'",   \
                  perch_status_name(check_status), testing_error.message, perch_status_name(expected), text);          \
    } while (0)

static inline bool testing_begin(void) {
    const char *tmp = getenv("TMPDIR");
    snprintf(testing_folder, sizeof testing_folder, "%.40s/perch-pages-XXXXXX", tmp != NULL ? tmp : "/tmp");
    bool made = mkdtemp(testing_folder) != NULL;
    snprintf(testing_path, sizeof testing_path, "%s/pages", testing_folder);
    return made;
}

static inline void testing_end(void) {
    (void)unlink(testing_path);
    (void)rmdir(testing_folder);
}

static inline page_file_config testing_config(uint32_t n_threads) {
    return (page_file_config){.path = testing_path,
                              .page_bytes = TESTING_PAGE,
                              .n_frames = TESTING_FRAMES,
                              .max_tokens = TESTING_TOKENS,
                              .n_threads = n_threads,
                              .max_requests = 64,
                              .key = "the key of the test's own model"};
}

/* NULL after a failed check. */
static inline page_file *testing_open(uint32_t n_threads) {
    const page_file_config config = testing_config(n_threads);
    page_file *file = NULL;
    perch_status status = page_file_open(&config, &file, &testing_error);
    CHECK_MSG(status == PERCH_OK, "%s: %s", perch_status_name(status), testing_error.message);
    return file;
}

/* Room for n pages. */
static inline uint8_t *testing_pages(uint32_t n) {
    uint8_t *pages = aligned_alloc(PAGE_ALIGNMENT, n * TESTING_ROOM);
    memset(pages, 0xee, n * TESTING_ROOM);
    return pages;
}

static inline void testing_fill(uint8_t *at, size_t n, uint64_t number) {
    test_rng rng = {number};
    for (size_t i = 0; i < n; i++) {
        at[i] = (uint8_t)(test_rng_next(&rng) >> 24);
    }
}

static inline bool testing_has(const uint8_t *at, size_t n, uint64_t number) {
    test_rng rng = {number};
    size_t wrong = 0;
    for (size_t i = 0; i < n; i++) {
        wrong += at[i] != (uint8_t)(test_rng_next(&rng) >> 24);
    }
    return wrong == 0;
}

/* The tokens that are written with the page of a number; good for the next 255 calls. */
static inline const int32_t *testing_tokens(uint64_t number) {
    static int32_t room[256][TESTING_TOKENS];
    static uint32_t n;
    int32_t *tokens = room[n++ % 256];
    for (uint32_t i = 0; i < TESTING_TOKENS; i++) {
        tokens[i] = (int32_t)(number * 31 + i);
    }
    return tokens;
}

static inline bool testing_has_tokens(const page_file *file, uint32_t frame, uint64_t number) {
    int32_t tokens[TESTING_TOKENS] = {0};
    return page_file_tokens(file, frame, tokens) && memcmp(tokens, testing_tokens(number), sizeof tokens) == 0;
}

/* A write of the page that has this number from end to end. */
static inline page_request testing_write(uint32_t frame, uint8_t *data, uint64_t number, size_t n_bytes) {
    testing_fill(data, n_bytes, number);
    return (page_request){
        .op = PAGE_WRITE,
        .frame = frame,
        .data = data,
        .tokens = testing_tokens(number),
        .record = {.n_bytes = n_bytes, .prefix = {number, frame}, .n_tokens = TESTING_TOKENS, .index = 3 * frame}};
}

static inline page_request testing_read(uint32_t frame, uint8_t *data) {
    return (page_request){.op = PAGE_READ, .frame = frame, .data = data};
}

static inline bool testing_same(const page_record *a, const page_record *b) {
    return a->generation == b->generation && a->n_bytes == b->n_bytes && a->prefix[0] == b->prefix[0] &&
           a->prefix[1] == b->prefix[1] && a->tokens_checksum == b->tokens_checksum && a->n_tokens == b->n_tokens &&
           a->index == b->index;
}

/* Submits, and waits until all are done; results in the order of the requests. */
static inline bool testing_run(page_file *file, page_request *requests, size_t n, page_result *results) {
    uint64_t first = 0;
    perch_status status = page_file_submit(file, requests, n, &first, &testing_error);
    if (!CHECK_MSG(status == PERCH_OK, "%s: %s", perch_status_name(status), testing_error.message)) {
        return false;
    }
    for (size_t n_done = 0; n_done < n;) {
        page_result some[8];
        const size_t got = page_file_poll(file, some, 8);
        for (size_t i = 0; i < got; i++) {
            results[some[i].ticket - first] = some[i];
        }
        n_done += got;
        if (got == 0) {
            usleep(50);
        }
    }
    return true;
}

static inline page_outcome testing_one(page_file *file, page_request request) {
    page_result result = {.outcome = PAGE_FAILED};
    (void)testing_run(file, &request, 1, &result);
    return result.outcome;
}

#endif
