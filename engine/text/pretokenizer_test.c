/* pretokenizer_test: how text is cut into words, step by step. */
#include "engine/text/text_testing.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Cuts text and writes the words with | between. */
static void cut(const char *json, const char *text, bool first, char *out, size_t cap) {
    const jv_doc *doc = testing_doc(json);
    struct pretokenizer pretokenizer;
    struct pretokenizer_work work = {0};
    perch_error err = {0};
    size_t n = 0;
    *out = 0;
    if (!doc) {
        return;
    }
    struct jnode top = jnode_top(doc, "p");
    if (!CHECK_MSG(pretokenizer_parse(&top, &pretokenizer, &err) == PERCH_OK, "%s", err.message)) {
        return;
    }
    CU_ASSERT(pretokenizer_apply(&pretokenizer, &work, (struct jtext){text, strlen(text)}, first, &err) == PERCH_OK);
    for (size_t i = 0; i < work.n_words; i++) {
        CU_ASSERT(work.words[i].n > 0);
        n += (size_t)snprintf(out + n, cap - n, "%s%.*s", i ? "|" : "", (int)work.words[i].n,
                              work.text + work.words[i].at);
    }
    CU_ASSERT(pretokenizer_bytes(&pretokenizer) > 0);
    pretokenizer_work_free(&work);
    pretokenizer_free(&pretokenizer);
}

static void check(const char *json, const char *text, bool first, const char *want) {
    char words[256];
    cut(json, text, first, words, sizeof words);
    CHECK_MSG(strcmp(words, want) == 0, "%s: \"%s\": %s", json, text, words);
}

static void test_splits(void) {
    static const char text[] = "the-final--countdown-";
    static const struct {
        const char *behavior, *plain, *inverted;
    } cases[] = {
        {"Removed", "the|final|countdown", "-|-|-|-"},
        {"Isolated", "the|-|final|-|-|countdown|-", "the|-|final|-|-|countdown|-"},
        {"MergedWithPrevious", "the-|final-|-|countdown-", "the|-final|-|-countdown|-"},
        {"MergedWithNext", "the|-final|-|-countdown|-", "the-|final-|-|countdown-"},
        {"Contiguous", "the|-|final|--|countdown|-", "the|-|final|--|countdown|-"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        for (size_t k = 0; k < 4; k++) {
            char json[256];
            snprintf(json, sizeof json,
                     "{\"type\":\"Split\",\"pattern\":{\"%s\":\"-\"},\"behavior\":\"%s\",\"invert\":%s}",
                     k / 2 ? "Regex" : "String", cases[i].behavior, k % 2 ? "true" : "false");
            check(json, text, true, k % 2 ? cases[i].inverted : cases[i].plain);
            check(json, "", true, "");
            check(json, "a", true, k % 2 && i == 0 ? "" : "a");
        }
    }
}

/* What follows a match or not is a matter of one word, not of the one before it. */
static void test_words_are_cut_by_themselves(void) {
#define DIGITS "{\"type\":\"Digits\",\"individual_digits\":false}"
    static const char *const behaviors[][2] = {
        {"MergedWithPrevious", "1|-a|2|-b"}, {"MergedWithNext", "1|-a|2|-b"}, {"Contiguous", "1|-|a|2|-|b"}};
    for (size_t i = 0; i < sizeof behaviors / sizeof *behaviors; i++) {
        char json[300];
        snprintf(json, sizeof json,
                 "{\"type\":\"Sequence\",\"pretokenizers\":[" DIGITS
                 ",{\"type\":\"Split\",\"pattern\":{\"String\":\"-\"},"
                 "\"behavior\":\"%s\",\"invert\":false}]}",
                 behaviors[i][0]);
        check(json, "1-a2-b", true, i == 0 ? "1|-|a|2|-|b" : behaviors[i][1]);
    }
}

static void test_kinds(void) {
    static const struct {
        const char *json, *text;
        bool first;
        const char *words;
    } cases[] = {
        {DIGITS, "ab12c\xD9\xA3\xC2\xBD", true, "ab|12|c|\xD9\xA3\xC2\xBD"},
        {"{\"type\":\"Digits\",\"individual_digits\":true}", "ab12c", true, "ab|1|2|c"},
        {"{\"type\":\"Punctuation\"}", "a,b!?\xE3\x80\x82$c_", true, "a|,|b|!|?|\xE3\x80\x82|$|c|_"},
        {"{\"type\":\"Punctuation\",\"behavior\":\"Contiguous\"}", "a!?b", true, "a|!?|b"},
        {"{\"type\":\"Metaspace\",\"replacement\":\"_\",\"prepend_scheme\":\"always\"}", "a b", false, "_a|_b"},
        {"{\"type\":\"Metaspace\",\"replacement\":\"_\",\"prepend_scheme\":\"first\"}", "a b", false, "a|_b"},
        {"{\"type\":\"Metaspace\",\"replacement\":\"_\",\"prepend_scheme\":\"first\"}", "a b", true, "_a|_b"},
        {"{\"type\":\"Metaspace\",\"replacement\":\"_\",\"prepend_scheme\":\"never\"}", "a  b", true, "a|_|_b"},
        {"{\"type\":\"Metaspace\",\"replacement\":\"_\"}", " a", true, "_a"},
        {"{\"type\":\"Metaspace\",\"replacement\":\"_\"}", "_a", true, "_a"},
        {"{\"type\":\"Metaspace\",\"replacement\":\"\xE2\x96\x81\",\"split\":false}", "a b", true,
         "\xE2\x96\x81"
         "a\xE2\x96\x81"
         "b"},
        {"{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":false}", "a \xC3\xA9\n", true,
         "a\xC4\xA0\xC3\x83\xC2\xA9\xC4\x8A"},
        {"{\"type\":\"ByteLevel\",\"add_prefix_space\":true,\"use_regex\":false}", "a", true,
         "\xC4\xA0"
         "a"},
        {"{\"type\":\"ByteLevel\",\"add_prefix_space\":true,\"use_regex\":false}", " a", true,
         "\xC4\xA0"
         "a"},
        {"{\"type\":\"ByteLevel\",\"add_prefix_space\":false}", "I'm 12  b", true,
         "I|'m|\xC4\xA0"
         "12|\xC4\xA0|\xC4\xA0"
         "b"},
        /* Only the very first word is the first, whatever was cut off before it. */
        {"{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\",\"pattern\":{\"String\":\"-\"},\"behavior\":"
         "\"Removed\","
         "\"invert\":false},{\"type\":\"Metaspace\",\"replacement\":\"_\",\"prepend_scheme\":\"first\"}]}",
         "a-b", true, "_a|b"},
        {"{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\",\"pattern\":{\"String\":\"-\"},\"behavior\":"
         "\"Removed\","
         "\"invert\":false},{\"type\":\"Metaspace\",\"replacement\":\"_\",\"prepend_scheme\":\"first\"}]}",
         "-a", true, "a"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        check(cases[i].json, cases[i].text, cases[i].first, cases[i].words);
    }
}

/* A file may ask for a text that doubles at every step. */
static void test_growth_is_bounded(void) {
    struct text_buf json = {0};
    static const char step[] = ",{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":false}";
    static const char head[] = "{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Punctuation\"}";
    CU_ASSERT_FATAL(buf_append(&json, head, sizeof head - 1, NULL) == PERCH_OK);
    for (size_t i = 0; i < 60; i++) {
        CU_ASSERT_FATAL(buf_append(&json, step, sizeof step - 1, NULL) == PERCH_OK);
    }
    CU_ASSERT_FATAL(buf_append(&json, "]}", 3, NULL) == PERCH_OK);
    const jv_doc *doc = testing_doc(json.data);
    struct pretokenizer pretokenizer = {0};
    struct pretokenizer_work work = {0};
    perch_error err = {0};
    if (doc) {
        struct jnode top = jnode_top(doc, "p");
        CU_ASSERT(pretokenizer_parse(&top, &pretokenizer, &err) == PERCH_OK);
        CU_ASSERT(pretokenizer_apply(&pretokenizer, &work, (struct jtext){"\n", 1}, true, &err) == PERCH_E_UNSUPPORTED);
        CU_ASSERT_STRING_EQUAL(err.message, "the tokenizer's pre-tokenizer makes the text too long");
    }
    pretokenizer_work_free(&work);
    pretokenizer_free(&pretokenizer);
    free(json.data);
}

/* Likewise normalizers and decoders. */
static void test_growth_elsewhere(void) {
#define GROW(from, to) "{\"type\":\"Replace\",\"pattern\":{\"String\":\"" from "\"},\"content\":\"" to "\"}"
#define X64(x)                                                                                                         \
    x x x x x x x x x x x x x x x x x x x x x x x x x x x x x x x x x x x x x x x x x x x x x x x x x x x x x x x x x  \
        x x x x x x x
#define STEPS GROW("a", X64("b")) "," GROW("b", X64("c")) "," GROW("c", X64("d")) "," GROW("d", X64("a"))
    perch_tokenizer *normalizes =
        testing_tokenizer(TESTING_MODEL ",\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[" STEPS "]}", NULL);
    perch_error err = {0};
    int32_t ids[4];
    char text[64];
    size_t n;
    if (normalizes) {
        CU_ASSERT(perch_tokenizer_encode(normalizes, "a", 1, 0, ids, 4, &n, &err) == PERCH_E_UNSUPPORTED);
        CU_ASSERT_STRING_EQUAL(err.message, "the tokenizer's normalizer makes the text too long");
        CU_ASSERT(perch_tokenizer_encode(normalizes, "_", 1, 0, ids, 4, &n, &err) == PERCH_OK && n == 1);
    }
    perch_tokenizer_destroy(normalizes);
    /* What one token becomes is computed when the tokenizer is loaded. */
    static const char decodes[] =
        "{" TESTING_MODEL ",\"decoder\":{\"type\":\"Sequence\",\"decoders\":[" STEPS "," STEPS "]}}";
    perch_tokenizer *t = NULL;
    CU_ASSERT(tokenizer_parse(decodes, sizeof decodes - 1, NULL, 0, "file", &t, &err) == PERCH_E_UNSUPPORTED && !t);
    CU_ASSERT_STRING_EQUAL(err.message, "the tokenizer's decoder makes the text too long");
    ids[0] = ids[1] = ids[2] = ids[3] = 1;
    /* Together tokens may become what none becomes alone. */
    t = testing_tokenizer(
        TESTING_MODEL ",\"decoder\":{\"type\":\"Sequence\",\"decoders\":[{\"type\":\"Fuse\"}," GROW(
            "bb", X64("w")) "," GROW("w", X64("x")) "," GROW("x", X64("y")) "," GROW("y", X64("z")) "]}",
        NULL);
    if (t) {
        CU_ASSERT(perch_tokenizer_decode(t, ids, 1, 0, text, sizeof text, &n, &err) == PERCH_OK && n == 1);
        CU_ASSERT(perch_tokenizer_decode(t, ids, 4, 0, text, sizeof text, &n, &err) == PERCH_E_UNSUPPORTED && n == 0);
    }
    perch_tokenizer_destroy(t);
}

int main(int argc, char **argv) {
    static const test_case tests[] = {
        {"behaviors of a split", test_splits},
        {"words are cut by themselves", test_words_are_cut_by_themselves},
        {"all kinds of steps", test_kinds},
        {"growth of a text is bounded", test_growth_is_bounded},
        {"growth in normalizers and decoders is bounded", test_growth_elsewhere},
    };
    return test_main("pretokenizer", tests, sizeof tests / sizeof *tests, argc, argv);
}
