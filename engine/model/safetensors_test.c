/* safetensors and checkpoint: what the format demands is demanded, and no file can lead outside itself or its directory. */
#include "engine/model/checkpoint.h"
#include "engine/model/testing.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A file's bytes from its header's text and n_data bytes of data; the caller's to free. */
static uint8_t *file_of(const char *header, size_t n_data, size_t *n_bytes) {
    size_t n_header = strlen(header);
    *n_bytes = 8 + n_header + n_data;
    uint8_t *bytes = calloc(1, *n_bytes);
    CU_ASSERT_PTR_NOT_NULL_FATAL(bytes);
    for (unsigned i = 0; i < 8; i++) {
        bytes[i] = (uint8_t)((uint64_t)n_header >> (8 * i));
    }
    memcpy(bytes + 8, header, n_header);
    for (size_t i = 0; i < n_data; i++) {
        bytes[8 + n_header + i] = (uint8_t)i;
    }
    return bytes;
}

static perch_status parse(const char *header, size_t n_data, perch_error *err) {
    size_t n_bytes;
    safetensors file;
    uint8_t *bytes = file_of(header, n_data, &n_bytes);
    *err = (perch_error){0};
    perch_status status = safetensors_parse(bytes, n_bytes, "x.st", &file, err);
    safetensors_close(&file);
    free(bytes);
    return status;
}

#define TENSOR(name, dtype, shape, begin, end)                                                                         \
    "\"" name "\":{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":[" #begin "," #end "]}"

static void a_header_is_taken(void) {
    size_t n_bytes;
    safetensors file;
    char shape[64], tiny[5];
    uint8_t *bytes = file_of("{\"__metadata__\":{\"format\":\"pt\"}," TENSOR("b", "BF16", "[2,3]", 4, 16) "," TENSOR(
                                 "a", "F32", "[1]", 0, 4) "," TENSOR("s", "F64", "[]", 16,
                                                                     24) "," TENSOR("z", "I64", "[0,7]", 24, 24) "}   ",
                             24, &n_bytes);
    CU_ASSERT_EQUAL_FATAL(safetensors_parse(bytes, n_bytes, "x.st", &file, NULL), PERCH_OK);
    CU_ASSERT_EQUAL(file.n_tensors, 4);
    CU_ASSERT_STRING_EQUAL(file.tensors[0].name, "a");
    CU_ASSERT_STRING_EQUAL(file.tensors[1].name, "b");
    CU_ASSERT_EQUAL(file.tensors[1].dtype, SAFETENSORS_BF16);
    CU_ASSERT_EQUAL(file.tensors[1].data[0], 4);
    CU_ASSERT_EQUAL(file.tensors[1].n_bytes, 12);
    CU_ASSERT_STRING_EQUAL(safetensors_shape_text(&file.tensors[1], shape, sizeof shape), "[2, 3]");
    CU_ASSERT_STRING_EQUAL(safetensors_shape_text(&file.tensors[1], tiny, sizeof tiny), "[2, ");
    CU_ASSERT_STRING_EQUAL(safetensors_shape_text(&file.tensors[2], shape, sizeof shape), "[]");
    CU_ASSERT_EQUAL(file.tensors[3].n_bytes, 0);
    safetensors_close(&file);
    free(bytes);
    perch_error err;
    CU_ASSERT_EQUAL(parse("{}", 0, &err), PERCH_OK);
    CU_ASSERT_EQUAL(parse("{" TENSOR("q", "F4", "[4,2]", 0, 4) "," TENSOR("r", "F6_E2M3", "[4]", 4, 7) "}", 7, &err),
                    PERCH_OK);
}

static void a_bad_header_is_refused_by_tensor(void) {
    static const struct {
        const char *header;
        size_t n_data;
        const char *says;
        perch_status status;
    } bad[] = {
        {"", 0, "not a safetensors file", PERCH_E_FORMAT},
        {" {}", 0, "not a safetensors file", PERCH_E_FORMAT},
        {"{", 0, "line 1", PERCH_E_FORMAT},
        {"{} x", 0, "line 1", PERCH_E_FORMAT},
        {"{" TENSOR("a", "F32", "[1]", 0, 4) "," TENSOR("a", "F32", "[1]", 4, 8) "}", 8, "stands there twice",
         PERCH_E_FORMAT},
        {"{" TENSOR("a", "F32", "[1]", 0, 4) "," TENSOR("b", "F32", "[1]", 2, 6) "}", 6, "b: data_offsets: overlaps",
         PERCH_E_FORMAT},
        {"{" TENSOR("a", "F32", "[1]", 0, 4) "," TENSOR("b", "F32", "[1]", 0, 4) "}", 4, "b: data_offsets: overlaps",
         PERCH_E_FORMAT},
        {"{" TENSOR("a", "F32", "[1]", 0, 4) "," TENSOR("b", "F32", "[1]", 8, 12) "}", 12,
         "b: data_offsets: leaves a hole", PERCH_E_FORMAT},
        {"{" TENSOR("a", "F32", "[1]", 4, 8) "}", 8, "a: data_offsets: leaves a hole", PERCH_E_FORMAT},
        {"{" TENSOR("a", "F32", "[1]", 0, 4) "}", 5, "1 bytes behind the last tensor", PERCH_E_FORMAT},
        {"{}", 1, "1 bytes behind the last tensor", PERCH_E_FORMAT},
        {"{" TENSOR("a", "F32", "[2]", 0, 8) "}", 4, "truncated: a ends at byte 8 of 4", PERCH_E_FORMAT},
        {"{" TENSOR("a", "F32", "[2]", 0, 4) "}", 4, "a: data_offsets: 0..4 is not 8 bytes as [2] of F32",
         PERCH_E_FORMAT},
        {"{" TENSOR("a", "F32", "[2]", 8, 0) "}", 8, "a: data_offsets", PERCH_E_FORMAT},
        {"{" TENSOR("a", "F32", "[2]", -8, 0) "}", 8, "a: data_offsets: must be two non-negative", PERCH_E_FORMAT},
        {"{" TENSOR("a", "F32", "[-1]", 0, 4) "}", 4, "a: shape: must hold non-negative", PERCH_E_FORMAT},
        {"{" TENSOR("a", "F32", "[1.5]", 0, 4) "}", 4, "a: shape", PERCH_E_FORMAT},
        {"{" TENSOR("a", "F32", "1", 0, 4) "}", 4, "a: shape: must be a list", PERCH_E_FORMAT},
        {"{" TENSOR("a", "F32", "[4294967296,4294967296,4294967296]", 0, 4) "}", 4, "a: shape: too large",
         PERCH_E_FORMAT},
        {"{" TENSOR("a", "F32", "[576460752303423488]", 0, 0) "}", 0, "a: shape", PERCH_E_FORMAT},
        {"{" TENSOR("a", "F4", "[3]", 0, 1) "}", 1, "a: shape: does not end with a whole byte", PERCH_E_FORMAT},
        {"{" TENSOR("a", "F32", "[1,1,1,1,1,1,1,1,1]", 0, 4) "}", 4, "a: shape: more than 8", PERCH_E_UNSUPPORTED},
        {"{" TENSOR("a", "Q4_K", "[1]", 0, 4) "}", 4, "a: dtype: \"Q4_K\"", PERCH_E_UNSUPPORTED},
        {"{\"a\":{\"dtype\":7,\"shape\":[1],\"data_offsets\":[0,4]}}", 4, "a: dtype", PERCH_E_FORMAT},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0]}}", 4, "a: data_offsets", PERCH_E_FORMAT},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":{}}}", 4, "a: data_offsets", PERCH_E_FORMAT},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1]}}", 4, "a: must have", PERCH_E_FORMAT},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4],\"x\":1}}", 4, "a: must have", PERCH_E_FORMAT},
        {"{\"a\":7}", 4, "a: must have", PERCH_E_FORMAT},
        {"{\"__metadata__\":7}", 0, "__metadata__", PERCH_E_FORMAT},
        {"{\"__metadata__\":{\"a\":7}}", 0, "__metadata__: a", PERCH_E_FORMAT},
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        perch_error err;
        perch_status status = parse(bad[i].header, bad[i].n_data, &err);
        CHECK_MSG(status == bad[i].status && strstr(err.message, bad[i].says) && strncmp(err.message, "x.st: ", 6) == 0,
                  "%s: %s \"%s\"", bad[i].header, perch_status_name(status), err.message);
    }
}

static void a_header_longer_than_the_file_is_refused(void) {
    static const struct {
        uint8_t bytes[10];
        size_t n_bytes;
        const char *says;
    } bad[] = {
        {{0}, 0, "truncated"},
        {{2, 0, 0, 0, 0, 0, 0}, 7, "truncated"},
        {{3, 0, 0, 0, 0, 0, 0, 0, '{', '}'}, 10, "truncated: the header takes 3 bytes"},
        {{1, 0xE1, 0xF5, 5, 0, 0, 0, 0, '{', '}'}, 10, "a header of 100000001 bytes"},
        {{0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, '{', '}'}, 10, "not a safetensors file"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        safetensors file;
        perch_error err = {0};
        CU_ASSERT_EQUAL(safetensors_parse(bad[i].bytes, bad[i].n_bytes, "x.st", &file, &err), PERCH_E_FORMAT);
        CHECK_MSG(strstr(err.message, bad[i].says) != NULL, "%s", err.message);
        CU_ASSERT_PTR_NULL(file.tensors);
    }
}

/* A file cut anywhere is an error that names it, never a fault. */
static void every_truncation_is_refused(void) {
    safetensors whole, file;
    const char *path = test_fixture("model/llama-bf16/model.safetensors");
    CU_ASSERT_EQUAL_FATAL(safetensors_open(path, &whole, NULL), PERCH_OK);
    testing_dir_make();
    for (size_t n = 0; n < whole.map_bytes; n += n < 64 ? 1 : 997) {
        perch_error err = {0};
        const char *cut = testing_write("model.safetensors", whole.map, n);
        CU_ASSERT_EQUAL(safetensors_open(cut, &file, &err), PERCH_E_FORMAT);
        CHECK_MSG(strncmp(err.message, cut, strlen(cut)) == 0, "%zu bytes: %s", n, err.message);
    }
    testing_dir_remove();
    safetensors_close(&whole);
}

/* Bytes changed at random: either refused, or what is accepted lies within the bytes. */
static void mutations_stay_inside(void) {
    size_t n_bytes, n_accepted = 0;
    uint8_t *good = file_of("{\"__metadata__\":{\"format\":\"pt\"}," TENSOR("a", "F32", "[2,2]", 0, 16) "," TENSOR(
                                "b", "BF16", "[3]", 16, 22) "," TENSOR("c", "U8", "[2]", 22, 24) "}",
                            24, &n_bytes);
    test_rng rng = {test_seed(11)};
    for (uint64_t i = test_scaled(20000); i > 0; i--) {
        uint8_t *bytes = malloc(n_bytes); /* of its own, so that AddressSanitizer sees a byte too far */
        safetensors file;
        CU_ASSERT_PTR_NOT_NULL_FATAL(bytes);
        memcpy(bytes, good, n_bytes);
        for (uint64_t k = 1 + test_rng_below(&rng, 3); k > 0; k--) {
            static const char alphabet[] = "0123456789[]{},:\"-.ae ";
            size_t at = (size_t)test_rng_below(&rng, n_bytes);
            bytes[at] =
                at < 8 ? (uint8_t)test_rng_next(&rng) : (uint8_t)alphabet[test_rng_below(&rng, sizeof alphabet - 1)];
        }
        if (safetensors_parse(bytes, n_bytes, "x", &file, NULL) == PERCH_OK) {
            n_accepted++;
            for (size_t t = 0; t < file.n_tensors; t++) {
                const safetensor *s = &file.tensors[t];
                CU_ASSERT_TRUE(s->data >= bytes && s->n_bytes <= (uint64_t)(bytes + n_bytes - s->data));
            }
            safetensors_close(&file);
        }
        free(bytes);
    }
    CU_ASSERT_TRUE(n_accepted > 0);
    free(good);
}

/* ------------------------------------------------------------- checkpoint -- */

static perch_status open_dir(const char *dir, perch_error *err) {
    checkpoint c;
    *err = (perch_error){0};
    perch_status status = checkpoint_open(dir, &c, err);
    checkpoint_close(&c);
    return status;
}

static void a_sharded_checkpoint_is_one(void) {
    checkpoint c;
    CU_ASSERT_EQUAL_FATAL(checkpoint_open(test_fixture("model/mistral-bf16"), &c, NULL), PERCH_OK);
    CU_ASSERT_EQUAL(c.n_files, 3);
    CU_ASSERT_EQUAL(c.n_tensors, 21);
    const checkpoint_tensor *t = checkpoint_find(&c, "model.layers.1.mlp.down_proj.weight");
    CU_ASSERT_PTR_NOT_NULL_FATAL(t);
    CU_ASSERT_TRUE(t->tensor.n_dims == 2 && t->tensor.dims[0] == 32 && t->tensor.dims[1] == 40);
    CU_ASSERT_PTR_NULL(checkpoint_find(&c, "model.layers.2.mlp.down_proj.weight"));
    checkpoint_close(&c);
}

static void an_index_must_agree_with_its_files(void) {
    static const uint8_t data[64] = {0};
    static const struct {
        const char *index, *says;
        perch_status status;
    } cases[] = {
        {"{\"weight_map\":{\"a\":\"1.st\",\"b\":\"1.st\",\"c\":\"2.st\"}}", NULL, PERCH_OK},
        {"{\"weight_map\":{\"a\":\"1.st\",\"b\":\"2.st\",\"c\":\"2.st\"}}", "b is not in 2.st", PERCH_E_FORMAT},
        {"{\"weight_map\":{\"a\":\"1.st\",\"c\":\"2.st\"}}", "b is in 1.st, but missing", PERCH_E_FORMAT},
        {"{\"weight_map\":{\"a\":\"1.st\",\"b\":\"1.st\","
         "\"c\":\"2.st\",\"d\":\"2.st\"}}",
         "d is not in 2.st", PERCH_E_FORMAT},
        {"{\"weight_map\":{\"a\":\"1.st\",\"b\":\"1.st\",\"c\":\"3.st\"}}", "3.st: No such file", PERCH_E_IO},
        {"{\"weight_map\":{\"a\":\"1.st\",\"b\":\"1.st\",\"c\":\"again.st\"}}", "c is in ", PERCH_E_FORMAT},
        {"{\"weight_map\":{\"a\":\"../1.st\"}}", "a: \"../1.st\" is not the name of a file beside it", PERCH_E_FORMAT},
        {"{\"weight_map\":{\"a\":\"/etc/passwd\"}}", "\"/etc/passwd\"", PERCH_E_FORMAT},
        {"{\"weight_map\":{\"a\":\"sub/1.st\"}}", "\"sub/1.st\"", PERCH_E_FORMAT},
        {"{\"weight_map\":{\"a\":\"..\"}}", "\"..\"", PERCH_E_FORMAT},
        {"{\"weight_map\":{\"a\":\"\"}}", "a: \"\"", PERCH_E_FORMAT},
        {"{\"weight_map\":{\"a\":\"1.st\\u0000\"}}", "line 1", PERCH_E_FORMAT},
        {"{\"weight_map\":{\"a\":7}}", "weight_map: a", PERCH_E_FORMAT},
        {"{\"weight_map\":{}}", "weight_map: must be an object", PERCH_E_FORMAT},
        {"{\"weight_map\":[]}", "weight_map: must be an object", PERCH_E_FORMAT},
        {"{}", "weight_map: must be an object", PERCH_E_FORMAT},
        {"{\"weight_map\":{\"a\":\"1.st\",\"a\":\"2.st\"}}", "stands there twice", PERCH_E_FORMAT},
    };
    const char *dir = testing_dir_make();
    testing_file one = {0}, two = {0}, again = {0};
    testing_file_add(&one, "a", SAFETENSORS_F32, 2, 2, data);
    testing_file_add(&one, "b", SAFETENSORS_BF16, 2, 0, data);
    testing_file_add(&two, "c", SAFETENSORS_F16, 3, 0, data);
    testing_file_add(&again, "a", SAFETENSORS_F16, 3, 0, data);
    testing_file_add(&again, "c", SAFETENSORS_F16, 3, 0, data);
    testing_file_write(&one, "1.st");
    testing_file_write(&two, "2.st");
    testing_file_write(&again, "again.st");
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        perch_error err;
        testing_write("model.safetensors.index.json", cases[i].index, strlen(cases[i].index));
        perch_status status = open_dir(dir, &err);
        bool says = cases[i].says ? strstr(err.message, cases[i].says) != NULL : err.message[0] == 0;
        /* the same tensor in two files is found as such, wherever the index points */
        says = says || (strstr(cases[i].index, "again") && strstr(err.message, "a is in 1.st and in again.st"));
        CHECK_MSG(status == cases[i].status && says, "%s: %s \"%s\"", cases[i].index, perch_status_name(status),
                  err.message);
    }
    testing_dir_remove();
}

static void a_directory_without_weights_says_so(void) {
    perch_error err;
    const char *dir = testing_dir_make();
    CU_ASSERT_EQUAL(open_dir(dir, &err), PERCH_E_NOT_FOUND);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.message, "neither model.safetensors nor model.safetensors.index.json"));
    testing_write("model.safetensors", "", 0);
    CU_ASSERT_EQUAL(open_dir(dir, &err), PERCH_E_FORMAT);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.message, "model.safetensors: is empty"));
    testing_dir_remove();
    CU_ASSERT_EQUAL(open_dir("tests/nowhere", &err), PERCH_E_NOT_FOUND);
}

int main(int argc, char **argv) {
    static const test_case tests[] = {
        {"a header is taken", a_header_is_taken},
        {"a bad header is refused by tensor", a_bad_header_is_refused_by_tensor},
        {"a header longer than the file is refused", a_header_longer_than_the_file_is_refused},
        {"every truncation is refused", every_truncation_is_refused},
        {"mutations stay inside", mutations_stay_inside},
        {"a sharded checkpoint is one", a_sharded_checkpoint_is_one},
        {"an index must agree with its files", an_index_must_agree_with_its_files},
        {"a directory without weights says so", a_directory_without_weights_says_so},
    };
    return test_main("safetensors", tests, sizeof tests / sizeof tests[0], argc, argv);
}
