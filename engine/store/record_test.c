/* Exported sequences: what is written is read; what was changed, cut off or is of a later version is refused. */
#include "engine/store/record.h"
#include "tests/support/check.h"

#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

static const char of_model[] = "architecture=llama vocab_size=96";

/* An export of n tokens; with a key where it is not NULL. To be freed. */
static unsigned char *make(size_t n, const char *key, size_t *n_bytes) {
    int32_t *tokens = malloc(n * sizeof *tokens + 1);
    CU_ASSERT_PTR_NOT_NULL_FATAL(tokens);
    for (size_t i = 0; i < n; i++) {
        tokens[i] = (int32_t)(i * 2654435761u);
    }
    const record r = {.model = of_model,
                      .model_bytes = sizeof of_model - 1,
                      .n_turns = 3,
                      .created_ms = 1700000000000,
                      .touched_ms = 1700000001000,
                      .tokens = tokens,
                      .n_tokens = n,
                      .key = key,
                      .key_bytes = key ? strlen(key) : 0};
    *n_bytes = record_bytes(&r);
    unsigned char *bytes = malloc(*n_bytes);
    CU_ASSERT_PTR_NOT_NULL_FATAL(bytes);
    record_write(&r, bytes);
    free(tokens);
    return bytes;
}

static void seal(unsigned char *bytes, size_t n_bytes) {
    uint64_t hash = XXH3_64bits(bytes, n_bytes - 8);
    memcpy(bytes + n_bytes - 8, &hash, 8);
}

static void what_is_written_is_read(void) {
    for (size_t n = 0; n < 300; n += n < 3 ? 1 : 99) {
        const char *key = n % 2 ? "a key" : NULL;
        size_t n_bytes;
        unsigned char *bytes = make(n, key, &n_bytes);
        record r;
        CU_ASSERT_EQUAL(record_read(bytes, n_bytes, &r, NULL), PERCH_OK);
        CU_ASSERT(r.model_bytes == sizeof of_model - 1 && !memcmp(r.model, of_model, r.model_bytes));
        CU_ASSERT(r.n_turns == 3 && r.created_ms == 1700000000000 && r.touched_ms == 1700000001000);
        CU_ASSERT_EQUAL(r.n_tokens, n);
        for (size_t i = 0; i < r.n_tokens; i++) {
            int32_t token;
            memcpy(&token, (const char *)r.tokens + 4 * i, 4);
            CU_ASSERT_EQUAL(token, (int32_t)(i * 2654435761u));
        }
        CU_ASSERT(key ? r.key_bytes == 5 && !memcmp(r.key, key, 5) : r.key == NULL);
        free(bytes);
    }
}

static void every_flipped_bit_and_every_length_is_told(void) {
    size_t n_bytes;
    unsigned char *bytes = make(20, "k", &n_bytes);
    record r;
    perch_error err;
    for (size_t bit = 0; bit < n_bytes * 8; bit++) {
        bytes[bit / 8] ^= (unsigned char)(1u << bit % 8);
        CHECK_MSG(record_read(bytes, n_bytes, &r, &err) == PERCH_E_FORMAT, "bit %zu", bit);
        bytes[bit / 8] ^= (unsigned char)(1u << bit % 8);
    }
    for (size_t n = 0; n < n_bytes; n++) {
        CHECK_MSG(record_read(bytes, n, &r, &err) == PERCH_E_FORMAT, "%zu bytes", n);
    }
    CU_ASSERT_EQUAL(record_read(bytes, n_bytes, &r, &err), PERCH_OK);
    free(bytes);
}

static void put_u32(unsigned char *at, uint32_t number) { memcpy(at, &number, 4); }

/* Changes that a checksum does not tell, since it is right. */
static void nonsense_with_a_right_checksum_is_refused(void) {
    size_t n_bytes;
    unsigned char *good = make(20, "k", &n_bytes), *bytes = malloc(n_bytes);
    CU_ASSERT_PTR_NOT_NULL_FATAL(bytes);
    record r;
    perch_error err;
    const struct {
        size_t at;
        uint32_t number;
        perch_status status;
        const char *piece;
    } changes[] = {
        {8, 2, PERCH_E_UNSUPPORTED, "version 2"},
        {12, 2, PERCH_E_FORMAT, "missing"},
        {12, 1000, PERCH_E_FORMAT, "too many"},
        {12, 40, PERCH_E_FORMAT, "too many"},
        {24 + 24, 1, PERCH_E_FORMAT, "twice"},
        {24 + 24 + 16, 23, PERCH_E_FORMAT, "META"},
        {24 + 48 + 8, 100000, PERCH_E_FORMAT, "outside"},
        {24 + 48 + 16, 79, PERCH_E_FORMAT, "within a token"},
        {24 + 48 + 20, 1, PERCH_E_FORMAT, "outside"},
        {24 + 48, 77, PERCH_E_UNSUPPORTED, "section 77"},
        {24 + 72, 77, PERCH_OK, ""}, /* not required: passed over */
    };
    for (size_t i = 0; i < sizeof changes / sizeof *changes; i++) {
        memcpy(bytes, good, n_bytes);
        put_u32(bytes + changes[i].at, changes[i].number);
        seal(bytes, n_bytes);
        perch_status status = record_read(bytes, n_bytes, &r, &err);
        CHECK_MSG(status == changes[i].status && (!status || strstr(err.message, changes[i].piece)),
                  "change %zu: %s, \"%s\"", i, perch_status_name(status), status ? err.message : "");
    }
    CU_ASSERT_PTR_NULL(r.key);
    free(bytes);
    free(good);
}

int main(int argc, char **argv) {
    static const test_case tests[] = {
#define TEST(name) {#name, name}
        TEST(what_is_written_is_read),
        TEST(every_flipped_bit_and_every_length_is_told),
        TEST(nonsense_with_a_right_checksum_is_refused),
    };
    return test_main("record_test", tests, sizeof tests / sizeof *tests, argc, argv);
}
