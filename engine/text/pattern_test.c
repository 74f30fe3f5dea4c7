/* pattern_test: expressions of Oniguruma mean in PCRE2 what they mean there, or are refused; searches end. */
#include "engine/text/text_testing.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Compiles {"Regex": json} or {"String": json}, where json is a JSON string's inside. */
static perch_status compile(const char *kind, const char *json, struct pattern *out, perch_error *err) {
    char text[1024];
    snprintf(text, sizeof text, "{\"%s\":\"%s\"}", kind, json);
    const jv_doc *doc = testing_doc(text);
    if (!doc) {
        return PERCH_E_FORMAT;
    }
    struct jnode top = jnode_top(doc, "p");
    *out = (struct pattern){0};
    return pattern_parse(&top, out, err);
}

/* Writes text with its matches in < >. */
static void mark(const struct pattern *pattern, const char *text, char *out, size_t cap) {
    struct matcher matcher = {0};
    struct match_scan scan = match_begin(pattern, &matcher, text, strlen(text));
    struct match match;
    perch_error err = {0};
    size_t from = 0, n = 0;
    bool found;
    perch_status status;
    while ((status = match_next(&scan, &found, &match, &err)) == PERCH_OK && found) {
        n += (size_t)snprintf(out + n, cap - n, "%.*s<%.*s>", (int)(match.start - from), text + from,
                              (int)(match.end - match.start), text + match.start);
        from = match.end;
    }
    CHECK_MSG(status == PERCH_OK, "%s", err.message);
    snprintf(out + n, cap - n, "%s", text + from);
    matcher_free(&matcher);
}

static void test_dialect(void) {
    static const struct {
        const char *expression, *text, *marked;
    } cases[] = {
        /* U+180E is white space in PCRE2 alone; U+0085 in both. */
        {"\\\\s+", "a \xC2\x85\xE1\xA0\x8E\tb", "a< \xC2\x85>\xE1\xA0\x8E<\t>b"},
        {"[\\\\sx]", "x\xE1\xA0\x8E ", "<x>\xE1\xA0\x8E< >"},
        {"\\\\S+", "a\xE1\xA0\x8E b", "<a\xE1\xA0\x8E> <b>"},
        {"[^\\\\S\\n]+", "a \n\xE1\xA0\x8E\t", "a< >\n\xE1\xA0\x8E<\t>"},
        /* Words have marks; raised digits only outside a class. */
        {"\\\\w+", "ae\xCC\x81_9-\xC2\xB2", "<ae\xCC\x81_9>-<\xC2\xB2>"},
        {"[\\\\w]+", "a\xC2\xB2\xE2\x80\xBF", "<a>\xC2\xB2<\xE2\x80\xBF>"},
        {"\\\\W", "a-\xC2\xB2 ", "a<->\xC2\xB2< >"},
        {"\\\\b.", "ab cd", "<a>b< ><c>d"},
        {"\\\\B.", "ab cd", "a<b> c<d>"},
        {"\\\\h+", "xfG0 ", "x<f>G<0> "},
        {"\\\\H", "f\tG", "f<\t><G>"},
        {"[\\\\hx]+", "0xfg", "<0xf>g"},
        {"a\\\\vb",
         "a\nb a\x0b"
         "b",
         "a\nb <a\x0b"
         "b>"},
        /* Lines. The dot matches a newline with the option m. */
        {"^.|.$", "ab\ncd", "<a><b>\n<c><d>"},
        {"a.b", "a\nb a\rb", "a\nb <a\rb>"},
        {"(?m:a.b)", "a\nb", "<a\nb>"},
        {"(?m-i:a.b)", "a\nb A b", "<a\nb> A b"},
        {"(?i)ab|c", "AB C", "<AB> <C>"},
        {"(?i:'s|'ll)", "it'S I'lL", "it<'S> I<'lL>"},
        /* Counts. */
        {"xa{,2}", "xaaa x", "<xaa>a <x>"},
        {"a{2}", "aaa", "<aa>a"},
        {"a{1,}", "aaa", "<aaa>"},
        {"a{1,2}?", "aaa", "<a><a><a>"},
        {"a{,}{x}", "a{,}{x}", "<a{,}{x}>"},
        {"a++b|a", "aab a", "<aab> <a>"},
        /* Characters. */
        {"\\\\u00e9|\\\\x{e8}|\\\\x41",
         "\xC3\xA9\xC3\xA8"
         "A",
         "<\xC3\xA9><\xC3\xA8><A>"},
        {"[\\\\[\\\\]]", "[a]", "<[>a<]>"},
        {"a]}|[a-]", "a]}-", "<a]}><->"},
        {"\\\\p{Han}", "\xE3\x8B\x80\xE4\xB8\x80", "\xE3\x8B\x80<\xE4\xB8\x80>"},
        {"\\\\P{^L}\\\\p{^Lu}", "aB ab", "a<B ><ab>"},
        {"[\\\\p{Lu}\\\\p{Nd}]+", "aB9c", "a<B9>c"},
        {"(?<x>a)\\\\k<x>", "aa", "<aa>"},
        {"(?<=a)b|(?<!a)c", "abcac", "a<b><c>ac"},
        {"(?>a+)b|(?=c)", "aab c", "<aab> <>c"},
        /* An empty match right behind another is none. */
        {"a*", "baac", "<>b<aa>c<>"},
        {"x?", "\xE9\xB1\xBC", "<>\xE9\xB1\xBC<>"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct pattern pattern;
        perch_error err = {0};
        char marked[256];
        if (CHECK_MSG(compile("Regex", cases[i].expression, &pattern, &err) == PERCH_OK, "%s", err.message)) {
            mark(&pattern, cases[i].text, marked, sizeof marked);
            CHECK_MSG(strcmp(marked, cases[i].marked) == 0, "%s: %s", cases[i].expression, marked);
        }
        pattern_free(&pattern);
    }
}

static void test_refused(void) {
    static const char *const expressions[] = {
        "[a&&b]", "[a[b]]",  "[[:alpha:]]", "[]a]",     "[^]a]",     "[a",      "(?i:a",   "a{1,2}+",
        "a{2}?",  "a(?i)b",  "(?s)a",       "(?x:a)",   "(?~a)",     "(?#a)",   "(*FAIL)", "(a",
        "\\\\Qa", "\\\\N",   "\\\\g<1>",    "\\\\1(a)", "[\\\\W]",   "[\\\\H]", "[\\\\B]", "\\\\x80",
        "\\\\xg", "\\\\u12", "\\\\p{",      "\\\\pL",   "\\\\p{Zz}", "*",       "a\\\\"};
    for (size_t i = 0; i < sizeof expressions / sizeof *expressions; i++) {
        struct pattern pattern;
        perch_error err = {0};
        CHECK_MSG(compile("Regex", expressions[i], &pattern, &err) == PERCH_E_UNSUPPORTED, "%s", expressions[i]);
        CHECK_MSG(strncmp(err.message, "p: Regex: regular expression: ", 30) == 0, "%s", err.message);
        pattern_free(&pattern);
    }
}

static void test_literals(void) {
    struct pattern pattern;
    perch_error err = {0};
    char marked[64];
    CU_ASSERT(compile("String", "a.", &pattern, &err) == PERCH_OK);
    mark(&pattern, "a.a.ab", marked, sizeof marked);
    CU_ASSERT_STRING_EQUAL(marked, "<a.><a.>ab");
    CU_ASSERT(pattern_bytes(&pattern) == 2);
    pattern_free(&pattern);
    CU_ASSERT(compile("String", "", &pattern, &err) == PERCH_E_UNSUPPORTED);
    CU_ASSERT(compile("Regex", "", &pattern, &err) == PERCH_E_UNSUPPORTED);
    CU_ASSERT(compile("Glob", "a", &pattern, &err) == PERCH_E_FORMAT);
    CU_ASSERT_STRING_EQUAL(err.message, "p: must be {\"String\": ...} or {\"Regex\": ...}");
}

/* What would take for ever is an error; what takes long because the text is long is none. */
static void test_limits(void) {
    static const char *const hostile[] = {"(a+)+b", "(?:a|a)*b", "(a*)*b", "(?:a?){30}a{30}b"};
    static char text[1u << 20];
    const size_t n = sizeof text;
    memset(text, 'a', n);
    memcpy(text + 62, "cb", 2); /* the letter that all of them want is there, but in vain */
    for (size_t i = 0; i < sizeof hostile / sizeof *hostile; i++) {
        struct pattern pattern;
        struct matcher matcher = {0};
        struct match match;
        perch_error err = {0};
        bool found;
        CU_ASSERT(compile("Regex", hostile[i], &pattern, &err) == PERCH_OK);
        struct match_scan scan = match_begin(&pattern, &matcher, text, 64);
        CHECK_MSG(match_next(&scan, &found, &match, &err) == PERCH_E_UNSUPPORTED, "%s", hostile[i]);
        CHECK_MSG(strstr(err.message, "takes too much") != NULL, "%s", err.message);
        matcher_free(&matcher);
        pattern_free(&pattern);
    }
    struct pattern pattern;
    struct matcher matcher = {0};
    struct match match;
    perch_error err = {0};
    bool found;
    memset(text, ' ', n);
    CU_ASSERT(compile("Regex", "\\\\s*[\\r\\n]+|(?: )+x|\\\\s+(?!\\\\S)|\\\\s+", &pattern, &err) == PERCH_OK);
    struct match_scan scan = match_begin(&pattern, &matcher, text, n);
    CHECK_MSG(match_next(&scan, &found, &match, &err) == PERCH_OK && found && match.end == n, "%s", err.message);
    matcher_free(&matcher);
    pattern_free(&pattern);
}

int main(int argc, char **argv) {
    static const test_case tests[] = {
        {"the dialect's meaning is kept", test_dialect},
        {"what can't be kept is refused, with its place", test_refused},
        {"literal patterns", test_literals},
        {"hostile expressions end with an error", test_limits},
    };
    return test_main("pattern", tests, sizeof tests / sizeof *tests, argc, argv);
}
