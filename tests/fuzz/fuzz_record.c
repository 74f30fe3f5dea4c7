/*
 * fuzz_record: any bytes as an exported sequence. Reading either fails with a message, or what was found lies within the
 * bytes and, written again, reads as the same. Bytes are read as they are, and with the length and the checksum that they
 * should have, which no mutation would hit upon.
 */
#include "engine/store/record.h"

#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

/* A violation ends the fuzzing run; the input that led here is the finding. */
static void expect(bool condition) {
    if (!condition) {
        abort();
    }
}

static void expect_within(const void *part, size_t n, const uint8_t *bytes, size_t n_bytes) {
    const uint8_t *at = part;
    expect(n == 0 || (at >= bytes && n <= n_bytes && (size_t)(at - bytes) <= n_bytes - n));
}

static void expect_same(const void *a, size_t n_a, const void *b, size_t n_b) {
    expect(n_a == n_b && (n_a == 0 || memcmp(a, b, n_a) == 0));
}

static void check_round_trip(const record *r) {
    record again;
    size_t n = record_bytes(r);
    uint8_t *bytes = malloc(n);
    if (!bytes) {
        return;
    }
    record_write(r, bytes);
    expect(record_read(bytes, n, &again, NULL) == PERCH_OK);
    expect_same(r->model, r->model_bytes, again.model, again.model_bytes);
    expect_same(r->tokens, r->n_tokens * sizeof(int32_t), again.tokens, again.n_tokens * sizeof(int32_t));
    expect_same(r->key, r->key_bytes, again.key, again.key_bytes);
    expect(r->n_turns == again.n_turns && r->created_ms == again.created_ms && r->touched_ms == again.touched_ms);
    free(bytes);
}

static void read_one(const uint8_t *bytes, size_t size) {
    record r;
    perch_error err = {PERCH_OK, ""};
    perch_status status = record_read(bytes, size, &r, &err);
    expect(status == err.status && (status == PERCH_OK) == (err.message[0] == 0));
    if (!status) {
        expect_within(r.model, r.model_bytes, bytes, size);
        expect_within(r.tokens, r.n_tokens * sizeof(int32_t), bytes, size);
        expect_within(r.key, r.key_bytes, bytes, size);
        check_round_trip(&r);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    enum { LENGTH_AT = 16, HASH_BYTES = 8 };
    read_one(data, size);
    if (size >= LENGTH_AT + 2 * HASH_BYTES) {
        uint8_t *mended = malloc(size);
        if (mended) {
            uint64_t length = size;
            memcpy(mended, data, size);
            memcpy(mended + LENGTH_AT, &length, sizeof length);
            uint64_t hash = XXH3_64bits(mended, size - HASH_BYTES);
            memcpy(mended + size - HASH_BYTES, &hash, sizeof hash);
            read_one(mended, size);
            free(mended);
        }
    }
    return 0;
}
