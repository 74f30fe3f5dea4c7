/* jdoc_test: the JSON reader takes what RFC 8259 allows and says where it does not. */
#include "engine/text/text_testing.h"

#include <stdlib.h>
#include <string.h>

static perch_status parse(const char *json, size_t n, struct jdoc *doc, perch_error *err) {
    /* Exactly the bytes there are, so that a sanitizer sees a read behind them. */
    char *copy = malloc(n ? n : 1);
    CU_ASSERT_FATAL(copy != NULL);
    memcpy(copy, json, n);
    perch_status status = jdoc_parse(copy, n, "doc", doc, err);
    free(copy);
    return status;
}

static void test_values(void) {
    static const char json[] =
        " { \"a\" : [ 1 , -2, 9223372036854775807, -9223372036854775808, 9223372036854775808, 1.5e-3, 0 ],"
        "\"b\":{},\"c\":[],\"d\":true,\"e\":false,\"f\":null,\"\":\"x\",\"g\\u0000h\":\"\\u0000\"}\r\n\t";
    static const int64_t numbers[] = {1, -2, INT64_MAX, INT64_MIN};
    const struct jdoc *doc = testing_doc(json);
    CU_ASSERT_FATAL(doc != NULL);
    struct jnode top = jnode_top(doc, "doc"), a = jnode_get(&top, "a"), b = jnode_get(&top, "b");
    struct jnode c = jnode_get(&top, "c"), d = jnode_get(&top, "d"), e = jnode_get(&top, "e"), f = jnode_get(&top, "f");
    struct jnode none = jnode_get(&top, "z"), empty = jnode_get(&top, "");
    struct jtext text;
    CU_ASSERT(jnode_is(&top, J_OBJECT) && top.value->n == 8);
    CU_ASSERT(jnode_is(&a, J_ARRAY) && a.value->n == 7);
    size_t i = 0;
    for (struct jnode number = jnode_first(&a); number.value; number = jnode_next(&number), i++) {
        CU_ASSERT(number.index == i && number.value->kind == (i == 4 || i == 5 ? J_NUMBER : J_INTEGER));
        CU_ASSERT(i >= 4 || number.value->integer == numbers[i]);
    }
    CU_ASSERT(i == 7);
    CU_ASSERT(jnode_is(&b, J_OBJECT) && b.value->n == 0 && !jnode_first(&b).value);
    CU_ASSERT(jnode_is(&c, J_ARRAY) && c.value->n == 0 && !jnode_first(&c).value);
    CU_ASSERT(jnode_is(&d, J_TRUE) && jnode_is(&e, J_FALSE) && jnode_is(&f, J_NULL) && jnode_absent(&f));
    CU_ASSERT(!none.value && jnode_absent(&none) && !jnode_first(&none).value && !jnode_get(&none, "a").value);
    CU_ASSERT(jnode_text(&empty, &text, NULL) == PERCH_OK && strcmp(text.data, "x") == 0);
    struct jnode last = jnode_first(&top);
    while (last.index < 7) {
        last = jnode_next(&last);
    }
    CU_ASSERT(jnode_key(&last).n == 3 && memcmp(jnode_key(&last).data, "g\0h", 3) == 0);
    CU_ASSERT(jnode_text(&last, &text, NULL) == PERCH_OK && text.n == 1 && *text.data == 0);
}

static void test_strings(void) {
    const struct jdoc *doc = testing_doc("\"\\\"\\\\\\/\\b\\f\\n\\r\\t\\u00e9\\u20AC\\ud83d\\udc1F\xE9\xB1\xBC\"");
    CU_ASSERT_FATAL(doc != NULL);
    CU_ASSERT_STRING_EQUAL(doc->text, "\"\\/\b\f\n\r\t\xC3\xA9\xE2\x82\xAC\xF0\x9F\x90\x9F\xE9\xB1\xBC");
}

static void test_errors(void) {
#define CASE(json, reason)                                                                                             \
    { json, sizeof json - 1, reason }
    static const struct {
        const char *json;
        size_t n;
        const char *reason;
    } cases[] = {
        CASE("", "not a JSON value"),
        CASE(" \n ", "not a JSON value"),
        CASE("nul", "not a JSON value"),
        CASE("truth", "not a JSON value"),
        CASE("falsch", "not a JSON value"),
        CASE("+1", "not a JSON value"),
        CASE("-", "not a JSON value"),
        CASE("01", "not a JSON value"),
        CASE(".5", "not a JSON value"),
        CASE("1.", "a point without digits"),
        CASE("1e", "an exponent without digits"),
        CASE("1e+", "an exponent without digits"),
        CASE("1 2", "something behind the document"),
        CASE("[1,2]]", "something behind the document"),
        CASE("{\"a\":1}\0", "something behind the document"),
        CASE("[1,]", "not a JSON value"),
        CASE("[,1]", "not a JSON value"),
        CASE("[1 2]", "neither a comma nor the end of an array or object"),
        CASE("[1", "neither a comma nor the end of an array or object"),
        CASE("[[", "not a JSON value"),
        CASE("[1}", "neither a comma nor the end of an array or object"),
        CASE("{\"a\":1]", "neither a comma nor the end of an array or object"),
        CASE("{", "a member without a key"),
        CASE("{1:2}", "a member without a key"),
        CASE("{\"a\"}", "a key without a colon"),
        CASE("{\"a\":}", "not a JSON value"),
        CASE("{\"a\":1,}", "a member without a key"),
        CASE("{\"a\":1,\"b\":2,\"a\":3}", "an object that has a key twice"),
        CASE("{\"a\":1,\"\\u0061\":2}", "an object that has a key twice"),
        CASE("\"a", "a string without an end"),
        CASE("\"a\\", "an escape that JSON does not have"),
        CASE("\"\\x\"", "an escape that JSON does not have"),
        CASE("\"\\\0\"", "an escape that JSON does not have"),
        CASE("\"\\u12g4\"", "\\u without four hexadecimal digits"),
        CASE("\"\\u12", "\\u without four hexadecimal digits"),
        CASE("\"\\ud800\"", "half a surrogate pair"),
        CASE("\"\\udc00\"", "half a surrogate pair"),
        CASE("\"\\ud800\\u0041\"", "half a surrogate pair"),
        CASE("\"\\ud800\\u00\"", "\\u without four hexadecimal digits"),
        CASE("\"a\nb\"", "a control character in a string"),
        CASE("\"\0\"", "a control character in a string"),
        CASE("\"\xFF\"", "a byte that is not UTF-8"),
        CASE("\"\xC0\x80\"", "a byte that is not UTF-8"),
        CASE("\"\xED\xA0\x80\"", "a byte that is not UTF-8"),
        CASE("\"\xE9\xB1\"", "a byte that is not UTF-8"),
        CASE("\xEF\xBB\xBF{}", "not a JSON value"),
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct jdoc doc;
        perch_error err = {0};
        CHECK_MSG(parse(cases[i].json, cases[i].n, &doc, &err) == PERCH_E_FORMAT && !doc.values, "case %zu", i);
        const char *reason = strstr(err.message, ": line ");
        reason = reason ? strstr(reason + 1, ": ") : NULL;
        CHECK_MSG(reason && strcmp(reason + 2, cases[i].reason) == 0, "case %zu: %s", i, err.message);
    }
    struct jdoc doc;
    perch_error err = {0};
    CU_ASSERT(parse("[\n1,\n\n?]", 8, &doc, &err) == PERCH_E_FORMAT);
    CU_ASSERT_STRING_EQUAL(err.message, "doc: line 4: not a JSON value");
}

static void test_nesting_costs_no_stack(void) {
    const size_t depth = 1000000;
    struct jdoc doc;
    perch_error err = {0};
    char *json = malloc(2 * depth);
    CU_ASSERT_FATAL(json != NULL);
    memset(json, '[', depth);
    memset(json + depth, ']', depth);
    CU_ASSERT(jdoc_parse(json, 2 * depth, "deep", &doc, &err) == PERCH_OK && doc.n == depth);
    CU_ASSERT(doc.values[0].end == depth && doc.values[depth - 1].n == 0 && doc.values[depth - 2].n == 1);
    jdoc_free(&doc);
    CU_ASSERT(jdoc_parse(json, 2 * depth - 1, "deep", &doc, &err) == PERCH_E_FORMAT);
    free(json);
}

/* Where a node stands, in its words. */
static void test_places(void) {
    const struct jdoc *doc = testing_doc("{\"a\":[{\"b\\nc\":1},2]}");
    CU_ASSERT_FATAL(doc != NULL);
    struct jnode top = jnode_top(doc, "name.json"), a = jnode_get(&top, "a"), first = jnode_first(&a);
    struct jnode second = jnode_next(&first), inner = jnode_first(&first), absent = jnode_get(&second, "x");
    perch_error err;
    CU_ASSERT(jnode_fail(&top, PERCH_E_FORMAT, &err, "no %s", "good") == PERCH_E_FORMAT);
    CU_ASSERT_STRING_EQUAL(err.message, "name.json: no good");
    jnode_fail(&a, PERCH_E_FORMAT, &err, "x");
    CU_ASSERT_STRING_EQUAL(err.message, "name.json: a: x");
    jnode_fail(&inner, PERCH_E_FORMAT, &err, "x");
    CU_ASSERT_STRING_EQUAL(err.message, "name.json: a[0].b?c: x");
    jnode_fail(&absent, PERCH_E_UNSUPPORTED, &err, "x");
    CU_ASSERT_STRING_EQUAL(err.message, "name.json: a[1].x: x");
    char name[2000];
    memset(name, 'n', sizeof name - 1);
    name[sizeof name - 1] = 0;
    top.key = name;
    jnode_fail(&second, PERCH_E_FORMAT, &err, "the end");
    CU_ASSERT(strncmp(err.message, "...nnn", 6) == 0 && strstr(err.message, "n: a[1]: the end") != NULL);
}

int main(int argc, char **argv) {
    static const test_case tests[] = {
        {"values, integers to their limits, empty containers", test_values},
        {"escapes and surrogates", test_strings},
        {"whatever is not JSON, with the line", test_errors},
        {"nesting costs no stack", test_nesting_costs_no_stack},
        {"errors name the place", test_places},
    };
    return test_main("jdoc", tests, sizeof tests / sizeof *tests, argc, argv);
}
