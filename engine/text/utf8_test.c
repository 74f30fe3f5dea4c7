/* utf8_test: every character there is, what is none, and the byte-level alphabet. */
#include "engine/text/byte_level.h"
#include "engine/text/text_testing.h"

#include <stdlib.h>
#include <string.h>

static void test_every_character(void) {
    size_t n_wrong = 0;
    for (uint32_t code = 0; code <= 0x10FFFF; code++) {
        char text[4];
        uint32_t back = 0;
        size_t n = utf8_encode(code, text);
        bool surrogate = code >= 0xD800 && code <= 0xDFFF;
        int step = utf8_step(text, n, &back);
        n_wrong += surrogate ? step != -1
                             : step != (int)n || back != code || utf8_code(text) != code || utf8_length(*text) != n;
        /* Any shorter piece of it is the beginning of one. */
        for (size_t cut = 1; cut < n && !surrogate; cut++) {
            n_wrong += utf8_step(text, cut, &back) != 0;
        }
    }
    CU_ASSERT(n_wrong == 0);
}

static void test_what_is_no_character(void) {
    static const struct {
        const char *text;
        size_t n;
        int step;
    } cases[] = {{"", 0, 0},
                 {"\x80", 1, -1},
                 {"\xBF\x80", 2, -1},
                 {"\xC0\x80", 2, -1},
                 {"\xC1\xBF", 2, -1},
                 {"\xC2\x41", 2, -1},
                 {"\xC2\xC2", 2, -1},
                 {"\xE0\x9F\x80", 3, -1},
                 {"\xE0\xA0", 2, 0},
                 {"\xE0\xA0\x41", 3, -2},
                 {"\xED\xA0\x80", 3, -1},
                 {"\xEF\xBF\xC0", 3, -2},
                 {"\xF0\x8F\xBF", 3, -1},
                 {"\xF0\x90\x80", 3, 0},
                 {"\xF0\x90\x80\x41", 4, -3},
                 {"\xF0\x90\x41", 3, -2},
                 {"\xF4\x90\x80\x80", 4, -1},
                 {"\xF4\x8F\xBF\xBF", 4, 4},
                 {"\xF5\x80\x80\x80", 4, -1},
                 {"\xFF", 1, -1}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        uint32_t code;
        int step = utf8_step(cases[i].text, cases[i].n, &code);
        CHECK_MSG(step == cases[i].step, "case %zu: %d", i, step);
    }
}

static void test_before(void) {
    static const char text[] = "a\xC3\xA9\xE9\xB1\xBC\xF0\x9F\x90\x9F";
    CU_ASSERT(utf8_before(text, 10) == 6 && utf8_before(text, 6) == 3 && utf8_before(text, 3) == 1);
    CU_ASSERT(utf8_before(text, 1) == 0);
}

static void test_spaces(void) {
    size_t n = 0;
    for (uint32_t code = 0; code <= 0x10FFFF; code++) {
        n += utf8_is_space(code);
    }
    CU_ASSERT(n == 25 && utf8_is_space(0x85) && utf8_is_space(0x3000) && !utf8_is_space(0x180E) &&
              !utf8_is_space(0x200B));
}

static void test_byte_level_alphabet(void) {
    bool seen[0x200] = {false};
    for (unsigned byte = 0; byte < 256; byte++) {
        uint32_t code = byte_level_code((unsigned char)byte);
        CU_ASSERT_FATAL(code < 0x200);
        CU_ASSERT(!seen[code] && byte_level_byte(code) == (int)byte);
        seen[code] = true;
    }
    CU_ASSERT(byte_level_code(' ') == 0x120 && byte_level_code('\n') == 0x10A && byte_level_code('a') == 'a');
    for (uint32_t code = 0; code < 0x300; code++) {
        CU_ASSERT((byte_level_byte(code) >= 0) == (code < 0x200 && seen[code]));
    }
}

static void test_buffers(void) {
    struct text_buf buf = {0};
    CU_ASSERT(buf_append(&buf, NULL, 0, NULL) == PERCH_OK && buf.n == 0);
    CU_ASSERT(buf_append(&buf, "abc", 3, NULL) == PERCH_OK && buf_append(&buf, "de", 2, NULL) == PERCH_OK);
    CU_ASSERT(buf.n == 5 && memcmp(buf.data, "abcde", 5) == 0);
    CU_ASSERT(buf_reserve(&buf, SIZE_MAX - 2, NULL) == PERCH_E_NOMEM && buf.n == 5);
    CU_ASSERT(buf_reserve(&buf, SIZE_MAX / 2, NULL) == PERCH_E_NOMEM && memcmp(buf.data, "abcde", 5) == 0);
    free(buf.data);
}

int main(int argc, char **argv) {
    static const test_case tests[] = {
        {"every character there and back", test_every_character},
        {"what is no character, and how much of it", test_what_is_no_character},
        {"the character before", test_before},
        {"white space", test_spaces},
        {"the byte-level alphabet", test_byte_level_alphabet},
        {"texts that grow", test_buffers},
    };
    return test_main("utf8", tests, sizeof tests / sizeof *tests, argc, argv);
}
