/* text_testing: tokenizers from strings, files, and the check of streams. */
#include "engine/text/text_testing.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

char *testing_read(const char *path, size_t *n) {
    FILE *file = fopen(path, "rb");
    struct text_buf text = {0};
    char chunk[4096];
    size_t got;
    while (file && (got = fread(chunk, 1, sizeof chunk, file)) > 0) {
        CU_ASSERT_FATAL(buf_append(&text, chunk, got, NULL) == PERCH_OK);
    }
    bool fine = CHECK_MSG(file && buf_append(&text, "", 1, NULL) == PERCH_OK, "cannot read %s", path);
    if (file) {
        fclose(file);
    }
    if (!fine) {
        free(text.data);
        return NULL;
    }
    *n = text.n - 1;
    return text.data;
}

perch_tokenizer *testing_tokenizer(const char *fields, const char *config) {
    struct text_buf json = {0};
    perch_tokenizer *t = NULL;
    perch_error err = {0};
    CU_ASSERT_FATAL(buf_append(&json, "{\"version\":\"1.0\",", 17, NULL) == PERCH_OK);
    CU_ASSERT_FATAL(buf_append(&json, fields, strlen(fields), NULL) == PERCH_OK);
    CU_ASSERT_FATAL(buf_append(&json, "}", 1, NULL) == PERCH_OK);
    tokenizer_parse(json.data, json.n, config, config ? strlen(config) : 0, "test", &t, &err);
    CHECK_MSG(t != NULL, "%s", err.message);
    free(json.data);
    return t;
}

perch_tokenizer *testing_fixture(const char *name) {
    char path[128];
    perch_tokenizer *t = NULL;
    perch_error err = {0};
    snprintf(path, sizeof path, "text/%s.json", name);
    perch_tokenizer_create(test_fixture(path), &t, &err);
    CHECK_MSG(t != NULL, "%s", err.message);
    return t;
}

const jv_doc *testing_doc(const char *json) {
    static jv_doc doc;
    perch_error err = {0};
    jv_free(&doc);
    perch_status status = jv_parse(json, strlen(json), "test", &doc, &err);
    return CHECK_MSG(status == PERCH_OK, "%s", err.message) ? &doc : NULL;
}

static void check_whole(const char *text, size_t n) {
    uint32_t code;
    for (size_t i = 0; i < n;) {
        int step = utf8_step(text + i, n - i, &code);
        if (!CHECK_MSG(step > 0, "a stream ended within a character, or made one that is none")) {
            return;
        }
        i += (size_t)step;
    }
}

void testing_decode(const perch_tokenizer *t, const int32_t *tokens, size_t n, uint32_t flags, struct text_buf *out) {
    perch_tokenizer_stream *stream = NULL;
    struct text_buf joined = {0};
    const char *text;
    size_t bytes = 0;
    out->n = 0;
    CU_ASSERT(perch_tokenizer_stream_create(t, flags, &stream, NULL) == PERCH_OK);
    for (size_t i = 0; i <= n; i++) {
        CU_ASSERT((i < n ? perch_tokenizer_stream_push(stream, tokens[i], &text, &bytes, NULL)
                         : perch_tokenizer_stream_flush(stream, &text, &bytes, NULL)) == PERCH_OK);
        CU_ASSERT(text[bytes] == 0);
        check_whole(text, bytes);
        CU_ASSERT_FATAL(buf_append(&joined, text, bytes, NULL) == PERCH_OK);
    }
    perch_tokenizer_stream_destroy(stream);
    perch_status status = perch_tokenizer_decode(t, tokens, n, flags, NULL, 0, &bytes, NULL);
    CU_ASSERT(status == PERCH_E_BUFFER);
    CU_ASSERT_FATAL(buf_reserve(out, bytes + 1, NULL) == PERCH_OK);
    CU_ASSERT(perch_tokenizer_decode(t, tokens, n, flags, out->data, bytes + 1, &out->n, NULL) == PERCH_OK);
    CU_ASSERT(out->n == bytes && out->data[bytes] == 0);
    CHECK_MSG(joined.n == out->n && (joined.n == 0 || memcmp(joined.data, out->data, joined.n) == 0),
              "joined \"%.*s\", at once \"%s\"", (int)joined.n, joined.data ? joined.data : "", out->data);
    free(joined.data);
}
