/* jv: what is read, and what is refused. */
#include "base/jv.h"
#include "tests/support/check.h"

#include <locale.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* From memory of its exact size, so that AddressSanitizer sees a byte too far. */
static perch_status parse(const char *text, size_t n, jv_doc *doc, perch_error *err) {
    char *copy = malloc(n ? n : 1);
    CU_ASSERT_PTR_NOT_NULL_FATAL(copy);
    for (size_t i = 0; i < n; i++) {
        copy[i] = text[i];
    }
    *err = (perch_error){0};
    perch_status status = jv_parse(copy, n, "x", doc, err);
    free(copy);
    return status;
}

static jv_doc accept(const char *text) {
    jv_doc doc;
    perch_error err;
    perch_status status = parse(text, strlen(text), &doc, &err);
    CHECK_MSG(status == PERCH_OK, "%s: %s", text, err.message);
    return doc;
}

static void refuse(const char *text, size_t n, const char *says) {
    jv_doc doc;
    perch_error err;
    perch_status status = parse(text, n, &doc, &err);
    CHECK_MSG(status == PERCH_E_FORMAT && strncmp(err.message, "x: line ", 8) == 0 && strstr(err.message, says),
              "%.*s: %s \"%s\"", (int)n, text, perch_status_name(status), err.message);
    CU_ASSERT_TRUE(!doc.root && !doc.values && !doc.tree);
    jv_free(&doc);
}

static void documents_are_read(void) {
    jv_doc doc = accept(" {\"b\": [1, -2.5e1, \"x\", true, false, null, {}, []],\n\t\"a\": {\"c\": 0, \"\": -0}}\r\n ");
    const jv *b = jv_get(doc.root, "b"), *a = jv_get(doc.root, "a");
    CU_ASSERT_TRUE_FATAL(doc.root->type == JV_OBJECT && doc.root->n == 2 && a && b);
    CU_ASSERT_STRING_EQUAL(doc.root->as.children[0].key, "a");
    CU_ASSERT_TRUE_FATAL(b->type == JV_ARRAY && b->n == 8);
    const jv *c = b->as.children;
    CU_ASSERT_TRUE(c[0].type == JV_INTEGER && c[0].as.integer == 1 && !c[0].key);
    CU_ASSERT_TRUE(c[1].type == JV_INTEGER && c[1].as.integer == -25);
    CU_ASSERT_STRING_EQUAL(jv_string(&c[2]), "x");
    CU_ASSERT_TRUE(c[3].type == JV_TRUE && c[4].type == JV_FALSE && c[5].type == JV_NULL);
    CU_ASSERT_TRUE(c[6].type == JV_OBJECT && c[6].n == 0 && c[7].type == JV_ARRAY && c[7].n == 0);
    CU_ASSERT_EQUAL(jv_get(a, "c")->as.integer, 0);
    CU_ASSERT_PTR_NOT_NULL(jv_get(a, ""));
    CU_ASSERT_PTR_NULL(jv_get(a, "d"));
    CU_ASSERT_PTR_NULL(jv_get(b, "d"));
    CU_ASSERT_PTR_NULL(jv_get(NULL, "d"));
    CU_ASSERT_PTR_NULL(jv_string(a));
    CU_ASSERT_PTR_NULL(jv_string(NULL));
    jv_free(&doc);
    doc = accept("7");
    CU_ASSERT_EQUAL(doc.root->as.integer, 7);
    jv_free(&doc);
    CU_ASSERT_PTR_NULL(doc.root);
}

static void strings_are_decoded(void) {
    static const struct {
        const char *text, *want;
    } cases[] = {
        {"\"\"", ""},
        {"\"a\\\"\\\\\\/\\b\\f\\n\\r\\tz\"", "a\"\\/\b\f\n\r\tz"},
        {"\"\\u0041\\u00e9\\u20AC\\ud83D\\uDE00\"", "A\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80"},
        {"\"\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80\xF4\x8F\xBF\xBF\"",
         "\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80\xF4\x8F\xBF\xBF"},
        {"\"\x7F\"", "\x7F"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        jv_doc doc = accept(cases[i].text);
        CU_ASSERT_STRING_EQUAL(jv_string(doc.root), cases[i].want);
        CU_ASSERT_EQUAL(doc.root->n, strlen(cases[i].want));
        jv_free(&doc);
    }
}

static void numbers_are_exact(void) {
    static const struct {
        const char *text;
        jv_type type;
        int64_t integer;
        double real;
    } cases[] = {
        {"9007199254740992", JV_INTEGER, 9007199254740992, 0},
        {"-9007199254740992", JV_INTEGER, -9007199254740992, 0},
        {"9007199254740994", JV_REAL, 0, 9007199254740994.0},
        {"1e-05", JV_REAL, 0, 1e-05},
        {"0.1", JV_REAL, 0, 0.1},
        {"1E+2", JV_INTEGER, 100, 0},
        {"500000.0", JV_INTEGER, 500000, 0},
        {"2.2250738585072014e-308", JV_REAL, 0, 2.2250738585072014e-308},
        {"-0.5", JV_REAL, 0, -0.5},
    };
    static const char *const locales[] = {"C", "de_DE.UTF-8", "fr_FR.UTF-8"};
    for (size_t l = 0; l < sizeof locales / sizeof locales[0]; l++) {
        (void)setlocale(LC_NUMERIC, locales[l]); /* where it exists, with a decimal comma */
        for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
            jv_doc doc = accept(cases[i].text);
            CU_ASSERT_TRUE_FATAL(doc.root && doc.root->type == cases[i].type);
            CHECK_MSG(doc.root->type == JV_INTEGER ? doc.root->as.integer == cases[i].integer
                                                   : memcmp(&doc.root->as.real, &cases[i].real, sizeof(double)) == 0,
                      "%s in %s", cases[i].text, locales[l]);
            jv_free(&doc);
        }
    }
    (void)setlocale(LC_NUMERIC, "C");
}

static void everything_else_is_refused(void) {
    static const struct {
        const char *text, *says;
    } cases[] = {
        {"", "not JSON"},
        {"  ", "not JSON"},
        {"x", "not JSON"},
        {"nul", "not JSON"},
        {"nulll", "more behind"},
        {"1 2", "more behind"},
        {"{} {}", "more behind"},
        {"[1,]", "not JSON"},
        {"[1 2]", "not JSON"},
        {"[1", "not JSON"},
        {"[", "not JSON"},
        {"{\"a\":1,}", "not JSON"},
        {"{1:2}", "not JSON"},
        {"{\"a\" 1}", "not JSON"},
        {"{\"a\":}", "not JSON"},
        {"{\"a\":1", "not JSON"},
        {"{\"a\"", "not JSON"},
        {"{", "not JSON"},
        {"-", "not JSON"},
        {".5", "not JSON"},
        {"NaN", "not JSON"},
        {"-Infinity", "not JSON"},
        {"0x10", "more behind"},
        {"\"a", "not JSON"},
        {"\"\\", "not JSON"},
        {"\"\\x41\"", "not JSON"},
        {"\"\\u12\"", "not JSON"},
        {"\"\\ud800\"", "not JSON"},
        {"\"\\ud800\\u0041\"", "not JSON"},
        {"\"\\udc00\"", "not JSON"},
        {"\"\\u0000\"", "U+0000"},
        {"\"\\\\\\u0000\"", "U+0000"},
        {"\"\x01\"", "a control character"},
        {"\"\x80\"", "not UTF-8"},
        {"\"\xC0\xAF\"", "not UTF-8"},
        {"\"\xE0\x80\x80\"", "not UTF-8"},
        {"\"\xED\xA0\x80\"", "not UTF-8"},
        {"\"\xF4\x90\x80\x80\"", "not UTF-8"},
        {"\"\xC3\"", "not UTF-8"},
        {"\"\xE2\x82", "not UTF-8"},
        {"\"\\\xFF\"", "not UTF-8"},
        {"// no\n1", "not JSON"},
        {"'a'", "not JSON"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        refuse(cases[i].text, strlen(cases[i].text), cases[i].says);
    }
    refuse("1\0", 2, "a control character");
    refuse("\"a\0b\"", 5, "a control character");
    refuse("[1,\n2,\n\n x]", 11, "line 4: not JSON");
    jv_doc doc;
    perch_error err;
    CU_ASSERT_EQUAL(parse("[1e999]", 7, &doc, &err), PERCH_E_FORMAT);
    CU_ASSERT_STRING_EQUAL(err.message, "x: a number is beyond a double");
    doc = accept("\"\\\\u0000\""); /* a backslash, and no escape behind it */
    CU_ASSERT_STRING_EQUAL(jv_string(doc.root), "\\u0000");
    jv_free(&doc);
}

static void keys_stand_once(void) {
    static const char *const texts[] = {"{\"a\":1,\"b\":2,\"a\":3}", "{\"a\":1,\"\\u0061\":3}",
                                        "[{\"a\":{\"a\":1,\"a\":1}}]"};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        jv_doc doc;
        perch_error err;
        CU_ASSERT_EQUAL(parse(texts[i], strlen(texts[i]), &doc, &err), PERCH_E_FORMAT);
        CU_ASSERT_STRING_EQUAL(err.message, "x: the key \"a\" stands there twice");
    }
}

static void depth_is_limited(void) {
    enum { DEEP = 1000 };
    char text[2 * DEEP + 2];
    memset(text, '[', DEEP + 1);
    memset(text + DEEP + 1, ']', DEEP + 1);
    refuse(text, sizeof text, "not JSON");
    jv_doc doc;
    perch_error err;
    CU_ASSERT_EQUAL(parse(text + 1, sizeof text - 2, &doc, &err), PERCH_OK);
    jv_free(&doc);
}

/* Many members: sorted, found, and a repeated one is seen wherever it stands. */
static void large_objects_are_indexed(void) {
    enum { N = 5000 };
    char *text = malloc(N * 16 + 64);
    size_t at = 0;
    CU_ASSERT_PTR_NOT_NULL_FATAL(text);
    for (unsigned i = 0; i < N; i++) {
        at += (size_t)sprintf(text + at, "%c\"k%u\":%u", i ? ',' : '{', i * 7919 % N, i);
    }
    strcpy(text + at, "}");
    jv_doc doc = accept(text);
    for (unsigned i = 0; i < N; i++) {
        char key[16];
        snprintf(key, sizeof key, "k%u", i * 7919 % N);
        const jv *value = jv_get(doc.root, key);
        CU_ASSERT_TRUE(value && value->as.integer == i);
    }
    jv_free(&doc);
    strcpy(text + at, ",\"k77\":0}");
    perch_error err;
    CU_ASSERT_EQUAL(parse(text, strlen(text), &doc, &err), PERCH_E_FORMAT);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.message, "\"k77\" stands there twice"));
    free(text);
}

/* Random texts from JSON's alphabet never read beyond their end, and what is accepted is whole. */
static size_t count(const jv *value) {
    size_t n = 1;
    CU_ASSERT_TRUE(value->type <= JV_OBJECT);
    for (uint32_t i = 0; value->type >= JV_ARRAY && i < value->n; i++) {
        CU_ASSERT_EQUAL(value->as.children[i].key != NULL, value->type == JV_OBJECT);
        n += count(&value->as.children[i]);
    }
    return n;
}

static void random_texts_are_safe(void) {
    static const char *const words[] = {"{",       "}",        "[",    "]",  ",",    ":",      "\"a\"",    "\"b\"",
                                        "\"",      "1",        "-2.5", "e3", "true", "null",   " ",        "\n",
                                        "\\u00e9", "\xC3\xA9", "\xC3", "0",  "\\",   "\"a\":", "{\"c\":1}"};
    test_rng rng = {test_seed(3)};
    size_t n_accepted = 0;
    for (uint64_t i = test_scaled(100000); i > 0; i--) {
        char text[128];
        size_t n = 0;
        for (uint64_t k = test_rng_below(&rng, 12); k > 0; k--) {
            const char *word = words[test_rng_below(&rng, sizeof words / sizeof words[0])];
            memcpy(text + n, word, strlen(word));
            n += strlen(word);
        }
        jv_doc doc;
        perch_error err;
        if (parse(text, n, &doc, &err) == PERCH_OK) {
            n_accepted++;
            CU_ASSERT_TRUE(count(doc.root) >= 1);
            jv_free(&doc);
        }
    }
    CU_ASSERT_TRUE(n_accepted > 100);
}

int main(int argc, char **argv) {
    static const test_case tests[] = {
        {"documents are read", documents_are_read},
        {"strings are decoded", strings_are_decoded},
        {"numbers are exact", numbers_are_exact},
        {"everything else is refused", everything_else_is_refused},
        {"keys stand once", keys_stand_once},
        {"depth is limited", depth_is_limited},
        {"large objects are indexed", large_objects_are_indexed},
        {"random texts are safe", random_texts_are_safe},
    };
    return test_main("jv_test", tests, sizeof tests / sizeof tests[0], argc, argv);
}
