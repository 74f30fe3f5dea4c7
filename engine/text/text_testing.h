/* text_testing: what the tests of engine/text share. */
#ifndef PERCH_ENGINE_TEXT_TEXT_TESTING_H
#define PERCH_ENGINE_TEXT_TEXT_TESTING_H

#include "engine/text/tokenizer.h"
#include "tests/support/check.h"

/* A whole file, 0-terminated; the caller's to free. NULL after a failed assertion. */
char *testing_read(const char *path, size_t *n);

/*
 * A tokenizer whose tokenizer.json is {"version":"1.0", ...fields}, where fields gives at least the model. config may
 * be NULL. NULL after a failed assertion.
 */
perch_tokenizer *testing_tokenizer(const char *fields, const char *config);

/* A tokenizer from tests/fixtures/text/NAME.json. */
perch_tokenizer *testing_fixture(const char *name);

/* A string of JSON as a document, which lives until the next call; NULL after a failed assertion. */
const jv_doc *testing_doc(const char *json);

/* Checks that a stream gives whole characters, joined what decoding at once gives, which is left in *out. */
void testing_decode(const perch_tokenizer *t, const int32_t *tokens, size_t n, uint32_t flags, struct text_buf *out);

/* A model with the letters a..z, '_' and ' ', and the rules "a b", "ab c". */
#define TESTING_MODEL                                                                                                  \
    "\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":1,\"c\":2,\"d\":3,\" \":4,\"ab\":5,\"abc\":6,\"_\":7},"      \
    "\"merges\":[\"a b\",\"ab c\"]}"

#endif
