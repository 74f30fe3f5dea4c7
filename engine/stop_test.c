/* stop: matches and safe bytes as by searching the whole text anew at every byte, however it is cut into pushes. */
#include "engine/sampler.h"
#include "tests/support/check.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static stop_matcher *make(const char *const *strings, size_t n) {
    stop_matcher *m;
    perch_error err;
    CHECK_MSG(stop_matcher_create(strings, n, &m, &err) == PERCH_OK, "%s", err.message);
    return m;
}

/* What a matcher should say of text[n]: whether a string is complete, and how many bytes are safe. */
typedef struct verdict {
    bool matched;
    uint64_t n_safe;
} verdict;

static verdict naive(const char *const *strings, size_t n_strings, const char *text, size_t n) {
    for (size_t end = 1; end <= n; end++) {
        size_t longest = 0;
        for (size_t i = 0; i < n_strings; i++) {
            size_t length = strlen(strings[i]);
            if (length <= end && length > longest && memcmp(text + end - length, strings[i], length) == 0) {
                longest = length;
            }
        }
        if (longest > 0) {
            return (verdict){true, end - longest};
        }
    }
    size_t held = 0;
    for (size_t i = 0; i < n_strings; i++) {
        for (size_t length = strlen(strings[i]) - 1; length > held; length--) {
            if (length <= n && memcmp(text + n - length, strings[i], length) == 0) {
                held = length;
            }
        }
    }
    return (verdict){false, n - held};
}

static void check_verdict(stop_matcher *m, bool matched, verdict expected, uint64_t seed) {
    CHECK_MSG(matched == expected.matched && stop_matcher_safe(m) == expected.n_safe,
              "seed %llu: %d with %llu safe, should be %d with %llu", (unsigned long long)seed, matched,
              (unsigned long long)stop_matcher_safe(m), expected.matched, (unsigned long long)expected.n_safe);
}

static void test_random_texts(void) {
    uint64_t first = test_seed(1), rounds = test_scaled(30000), matches = 0;
    for (uint64_t round = 0; round < rounds; round++) {
        test_rng rng = {first + round};
        char texts[5][24], text[80];
        const char *strings[5];
        size_t n_strings = 1 + test_rng_below(&rng, 5), letters = 1 + test_rng_below(&rng, 3);
        size_t longest = 1 + test_rng_below(&rng, 12);
        for (size_t i = 0; i < n_strings; i++) {
            size_t n = 1 + test_rng_below(&rng, longest);
            for (size_t j = 0; j < n; j++) {
                texts[i][j] = (char)('a' + test_rng_below(&rng, letters));
            }
            texts[i][n] = 0;
            strings[i] = texts[i];
        }
        size_t n = test_rng_below(&rng, sizeof text);
        for (size_t j = 0; j < n; j++) {
            text[j] = (char)('a' + test_rng_below(&rng, letters + 1) % 4);
        }
        stop_matcher *whole = make(strings, n_strings), *pieces = make(strings, n_strings);
        check_verdict(whole, stop_matcher_push(whole, text, n), naive(strings, n_strings, text, n), first + round);
        for (size_t at = 0, step; at < n; at += step) {
            step = 1 + test_rng_below(&rng, round % 2 ? 1 : 5);
            step = step > n - at ? n - at : step;
            bool matched = stop_matcher_push(pieces, text + at, step);
            check_verdict(pieces, matched, naive(strings, n_strings, text, at + step), first + round);
        }
        matches += stop_matcher_push(whole, "", 0);
        stop_matcher_destroy(whole);
        stop_matcher_destroy(pieces);
    }
    CHECK_MSG(matches > rounds / 10 && matches < rounds * 99 / 100, "%llu of %llu texts matched",
              (unsigned long long)matches, (unsigned long long)rounds);
}

static void test_overlapping_prefixes(void) {
    const char *const strings[] = {"\n\nUser:", "\nUser", "User: "};
    stop_matcher *m = make(strings, 3);
    CU_ASSERT_FALSE(stop_matcher_push(m, "Hi\n\n", 4));
    CU_ASSERT_EQUAL(stop_matcher_safe(m), 2);
    CU_ASSERT_FALSE(stop_matcher_push(m, "Use", 3));
    CU_ASSERT_EQUAL(stop_matcher_safe(m), 2);
    CU_ASSERT_TRUE(stop_matcher_push(m, "r: x", 4)); /* "\nUser" is complete before "\n\nUser:" */
    CU_ASSERT_EQUAL(stop_matcher_safe(m), 3);
    CU_ASSERT_TRUE(stop_matcher_push(m, "more", 4));
    CU_ASSERT_EQUAL(stop_matcher_safe(m), 3);
    stop_matcher_destroy(m);
}

static void test_longest_of_those_that_end_together(void) {
    const char *const strings[] = {"c", "abc", "bc"};
    stop_matcher *m = make(strings, 3);
    CU_ASSERT_TRUE(stop_matcher_push(m, "xabc", 4));
    CU_ASSERT_EQUAL(stop_matcher_safe(m), 1);
    stop_matcher_destroy(m);
}

static void test_falling_back_to_a_border(void) {
    const char *const strings[] = {"aabaac"};
    stop_matcher *m = make(strings, 1);
    CU_ASSERT_FALSE(stop_matcher_push(m, "aabaab", 6)); /* aabaa + b: its end aab may still grow */
    CU_ASSERT_EQUAL(stop_matcher_safe(m), 3);
    CU_ASSERT_FALSE(stop_matcher_push(m, "aa", 2));
    CU_ASSERT_TRUE(stop_matcher_push(m, "c", 1));
    CU_ASSERT_EQUAL(stop_matcher_safe(m), 3);
    stop_matcher_destroy(m);
}

static void test_utf8_split_across_pushes(void) {
    const char *const strings[] = {"\xE2\x82\xAC!", "\xF0\x9F\x98\x80"}; /* euro sign and '!'; a smiling face */
    stop_matcher *m = make(strings, 2);
    CU_ASSERT_FALSE(stop_matcher_push(m, "a\xE2", 2));
    CU_ASSERT_EQUAL(stop_matcher_safe(m), 1);
    CU_ASSERT_FALSE(stop_matcher_push(m, "\x82", 1));
    CU_ASSERT_FALSE(stop_matcher_push(m, "\xAC\xF0\x9F", 3));
    CU_ASSERT_EQUAL(stop_matcher_safe(m), 4); /* the euro sign is free, half a face is held */
    CU_ASSERT_FALSE(stop_matcher_push(m, "\x98", 1));
    CU_ASSERT_TRUE(stop_matcher_push(m, "\x80", 1));
    CU_ASSERT_EQUAL(stop_matcher_safe(m), 4);
    stop_matcher_destroy(m);
}

static void test_zero_bytes_in_the_text(void) {
    const char *const strings[] = {"ab"};
    stop_matcher *m = make(strings, 1);
    CU_ASSERT_FALSE(stop_matcher_push(m, "a\0b", 3));
    CU_ASSERT_EQUAL(stop_matcher_safe(m), 3);
    stop_matcher_destroy(m);
}

static void test_clone_goes_its_own_way(void) {
    const char *const strings[] = {"stop", "top!"};
    stop_matcher *m = make(strings, 2), *clone = NULL;
    CU_ASSERT_FALSE(stop_matcher_push(m, "a sto", 5));
    CU_ASSERT_EQUAL(stop_matcher_clone(m, &clone, NULL), PERCH_OK);
    CU_ASSERT_TRUE(stop_matcher_push(m, "p", 1));
    stop_matcher_destroy(m);
    CU_ASSERT_EQUAL(stop_matcher_safe(clone), 2);
    CU_ASSERT_FALSE(stop_matcher_push(clone, "ne", 2));
    CU_ASSERT_EQUAL(stop_matcher_safe(clone), 7);
    CU_ASSERT_TRUE(stop_matcher_push(clone, "top!", 4));
    CU_ASSERT_EQUAL(stop_matcher_safe(clone), 7);
    stop_matcher_destroy(clone);
}

static void test_longest_string(void) {
    char text[600], string[257];
    memset(text, 'a', sizeof text);
    memset(string, 'a', 256);
    string[255] = 'b';
    string[256] = 0;
    const char *const strings[] = {string};
    stop_matcher *m = make(strings, 1);
    CU_ASSERT_FALSE(stop_matcher_push(m, text, 600));
    CU_ASSERT_EQUAL(stop_matcher_safe(m), 600 - 255);
    CU_ASSERT_TRUE(stop_matcher_push(m, "b", 1));
    CU_ASSERT_EQUAL(stop_matcher_safe(m), 601 - 256);
    stop_matcher_destroy(m);
}

static void test_no_strings(void) {
    stop_matcher *m = make(NULL, 0);
    CU_ASSERT_FALSE(stop_matcher_push(m, "anything", 8));
    CU_ASSERT_EQUAL(stop_matcher_safe(m), 8);
    stop_matcher_destroy(m);
    stop_matcher_destroy(NULL);
}

static void test_bad_strings_are_refused_by_index(void) {
    char too_long[258];
    memset(too_long, 'x', 257);
    too_long[257] = 0;
    const struct {
        const char *strings[2], *message;
    } cases[] = {
        {{"ok", ""}, "stop_strings[1]: empty; 1..256 bytes are allowed"},
        {{too_long, "ok"}, "stop_strings[0]: too long; 1..256 bytes are allowed"},
        {{"ok", NULL}, "stop_strings[1]: NULL; 1..256 bytes are allowed"},
    };
    for (size_t i = 0; i < 3; i++) {
        perch_error err = {PERCH_OK, ""};
        stop_matcher *m;
        CU_ASSERT_EQUAL(stop_matcher_create(cases[i].strings, 2, &m, &err), PERCH_E_INVALID);
        CU_ASSERT_PTR_NULL(m);
        CU_ASSERT_STRING_EQUAL(err.message, cases[i].message);
    }
}

int main(int argc, char **argv) {
    const test_case tests[] = {
        {"random_texts_as_by_searching_anew", test_random_texts},
        {"overlapping_prefixes", test_overlapping_prefixes},
        {"longest_of_those_that_end_together", test_longest_of_those_that_end_together},
        {"falling_back_to_a_border", test_falling_back_to_a_border},
        {"utf8_split_across_pushes", test_utf8_split_across_pushes},
        {"zero_bytes_in_the_text", test_zero_bytes_in_the_text},
        {"clone_goes_its_own_way", test_clone_goes_its_own_way},
        {"longest_string", test_longest_string},
        {"no_strings", test_no_strings},
        {"bad_strings_are_refused_by_index", test_bad_strings_are_refused_by_index},
    };
    return test_main("stop", tests, sizeof tests / sizeof tests[0], argc, argv);
}
