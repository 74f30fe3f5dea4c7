/* decoder_test: the stages' machines against whole lists of strings, for random decoders and tokens. */
#include "engine/text/text_testing.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* --------------------------------------------------------------- decoders as functions from lists to lists -- */

#define MAX_STRINGS 256

struct list {
    struct text_buf strings[MAX_STRINGS];
    size_t n;
};

static void list_free(struct list *list) {
    for (size_t i = 0; i < list->n; i++) {
        free(list->strings[i].data);
    }
    list->n = 0;
}

static void add(struct list *list, const char *text, size_t n) {
    CU_ASSERT_FATAL(list->n < MAX_STRINGS);
    list->strings[list->n] = (struct text_buf){0};
    CU_ASSERT_FATAL(buf_append(&list->strings[list->n++], text, n, NULL) == PERCH_OK);
}

static void add_to_last(struct list *list, const char *text, size_t n) {
    CU_ASSERT_FATAL(buf_append(&list->strings[list->n - 1], text, n, NULL) == PERCH_OK);
}

static void replace_list(const struct list *in, struct list *out, const char *what, const char *by) {
    size_t n = strlen(what);
    for (size_t i = 0; i < in->n; i++) {
        const struct text_buf *text = &in->strings[i];
        add(out, "", 0);
        for (size_t at = 0; at < text->n;) {
            bool match = text->n - at >= n && memcmp(text->data + at, what, n) == 0;
            add_to_last(out, match ? by : text->data + at, match ? strlen(by) : 1);
            at += match ? n : 1;
        }
    }
}

static int byte_token(const struct text_buf *text) {
    unsigned byte = 0;
    char copy[8] = "", back[8];
    if (text->n != 6) {
        return -1;
    }
    memcpy(copy, text->data, 6);
    /* The tokens of this test write bytes in capitals. */
    return sscanf(copy, "<0x%2X>", &byte) == 1 && snprintf(back, sizeof back, "<0x%02X>", byte & 0xFF) == 6 &&
                   strcmp(copy, back) == 0
               ? (int)byte
               : -1;
}

static bool is_valid(const struct text_buf *bytes) {
    uint32_t code;
    int step = 1;
    size_t at = 0;
    for (; at < bytes->n && step > 0; at += (size_t)step) {
        step = utf8_step(bytes->data + at, bytes->n - at, &code);
        if (step <= 0) {
            return false;
        }
    }
    return true;
}

static void fallback_list(const struct list *in, struct list *out) {
    struct text_buf run = {0};
    for (size_t i = 0; i <= in->n; i++) {
        int byte = i < in->n ? byte_token(&in->strings[i]) : -1;
        if (byte >= 0) {
            CU_ASSERT_FATAL(buf_append(&run, &(char){(char)byte}, 1, NULL) == PERCH_OK);
            continue;
        }
        if (run.n && is_valid(&run)) {
            add(out, run.data, run.n);
        } else {
            for (size_t k = 0; k < run.n; k++) {
                add(out, UTF8_REPLACEMENT, 3);
            }
        }
        run.n = 0;
        if (i < in->n) {
            add(out, in->strings[i].data, in->strings[i].n);
        }
    }
    free(run.data);
}

static void fuse_list(const struct list *in, struct list *out) {
    add(out, "", 0);
    for (size_t i = 0; i < in->n; i++) {
        add_to_last(out, in->strings[i].data, in->strings[i].n);
    }
}

static void strip_list(const struct list *in, struct list *out, char c, size_t start, size_t stop) {
    for (size_t i = 0; i < in->n; i++) {
        const struct text_buf *text = &in->strings[i];
        size_t from = 0, to = text->n;
        while (from < start && from < to && text->data[from] == c) {
            from++;
        }
        while (text->n - to < stop && to > from && text->data[to - 1] == c) {
            to--;
        }
        add(out, text->data ? text->data + from : "", to - from);
    }
}

static void metaspace_list(const struct list *in, struct list *out, bool drop_first) {
    for (size_t i = 0; i < in->n; i++) {
        add(out, "", 0);
        for (size_t at = 0; at < in->strings[i].n; at++) {
            char c = in->strings[i].data[at];
            if (c != '_') {
                add_to_last(out, &c, 1);
            } else if (i > 0 || !drop_first) {
                add_to_last(out, " ", 1);
            }
        }
    }
}

/* ------------------------------------------------------------------------------------------ random decoders -- */

static const char *const tokens[] = {
    "a",      "_a",     "_",      "__",  " ",   "  b ",   "ab",     "ba", "aab",          "<0x61>", "<0x5F>", "<0xE9>",
    "<0xB1>", "<0xBC>", "<0xFF>", "<0x", "41>", "<0x4g>", "<0x20>", "b_", "\xE9\xB1\xBC", "<0xF0>", "b",      "bb"};
#define N_TOKENS (sizeof tokens / sizeof *tokens)

enum { REPLACE_AB, REPLACE_A, EXPRESSION, FALLBACK, FUSE, STRIP, STRIP_ENDS, METASPACE, METASPACE_NEVER, N_STAGES };

static const char *const stage_json[] = {
    [REPLACE_AB] = "{\"type\":\"Replace\",\"pattern\":{\"String\":\"ab\"},\"content\":\"_x\"}",
    [REPLACE_A] = "{\"type\":\"Replace\",\"pattern\":{\"String\":\"_\"},\"content\":\" \"}",
    [EXPRESSION] = "{\"type\":\"Replace\",\"pattern\":{\"Regex\":\"b{2}\"},\"content\":\"\"}",
    [FALLBACK] = "{\"type\":\"ByteFallback\"}",
    [FUSE] = "{\"type\":\"Fuse\"}",
    [STRIP] = "{\"type\":\"Strip\",\"content\":\" \",\"start\":1,\"stop\":0}",
    [STRIP_ENDS] = "{\"type\":\"Strip\",\"content\":\"b\",\"start\":2,\"stop\":2}",
    [METASPACE] = "{\"type\":\"Metaspace\",\"replacement\":\"_\",\"prepend_scheme\":\"always\"}",
    [METASPACE_NEVER] = "{\"type\":\"Metaspace\",\"replacement\":\"_\",\"prepend_scheme\":\"never\"}",
};

static void apply(size_t stage, const struct list *in, struct list *out) {
    switch (stage) {
    case REPLACE_AB:
        replace_list(in, out, "ab", "_x");
        break;
    case REPLACE_A:
        replace_list(in, out, "_", " ");
        break;
    case EXPRESSION:
        replace_list(in, out, "bb", "");
        break;
    case FALLBACK:
        fallback_list(in, out);
        break;
    case FUSE:
        fuse_list(in, out);
        break;
    case STRIP:
        strip_list(in, out, ' ', 1, 0);
        break;
    case STRIP_ENDS:
        strip_list(in, out, 'b', 2, 2);
        break;
    default:
        metaspace_list(in, out, stage == METASPACE);
    }
}

static perch_tokenizer *make(const size_t *stages, size_t n_stages) {
    char json[4096];
    size_t n = (size_t)snprintf(json, sizeof json, "\"model\":{\"type\":\"BPE\",\"merges\":[],\"vocab\":{");
    for (size_t i = 0; i < N_TOKENS; i++) {
        n += (size_t)snprintf(json + n, sizeof json - n, "%s\"%s\":%zu", i ? "," : "", tokens[i], i);
    }
    n += (size_t)snprintf(json + n, sizeof json - n, "}},\"decoder\":{\"type\":\"Sequence\",\"decoders\":[");
    for (size_t i = 0; i < n_stages; i++) {
        n += (size_t)snprintf(json + n, sizeof json - n, "%s%s", i ? "," : "", stage_json[stages[i]]);
    }
    snprintf(json + n, sizeof json - n, "]}");
    return testing_tokenizer(json, NULL);
}

static void check_round(const perch_tokenizer *t, const size_t *stages, size_t n_stages, test_rng *rng) {
    int32_t ids[16];
    size_t n = test_rng_below(rng, 16);
    struct list list = {.n = 0}, next = {.n = 0};
    struct text_buf got = {0};
    for (size_t i = 0; i < n; i++) {
        /* Bytes come in runs. */
        ids[i] = (int32_t)(i && test_rng_below(rng, 2) && tokens[ids[i - 1]][0] == '<' ? 9 + test_rng_below(rng, 10)
                                                                                       : test_rng_below(rng, N_TOKENS));
        add(&list, tokens[ids[i]], strlen(tokens[ids[i]]));
    }
    for (size_t i = 0; i < n_stages; i++) {
        apply(stages[i], &list, &next);
        list_free(&list);
        list = next;
        next.n = 0;
    }
    fuse_list(&list, &next);
    testing_decode(t, ids, n, 0, &got);
    CHECK_MSG(got.n == next.strings[0].n && (got.n == 0 || memcmp(got.data, next.strings[0].data, got.n) == 0),
              "\"%s\" should be \"%.*s\"; stages %zu %zu %zu of %zu", got.data, (int)next.strings[0].n,
              next.strings[0].n ? next.strings[0].data : "", stages[0], stages[1], stages[2], n_stages);
    list_free(&list);
    list_free(&next);
    free(got.data);
}

static void test_random_decoders(void) {
    test_rng rng = {test_seed(31)};
    for (uint64_t round = 0; round < test_scaled(1500); round++) {
        size_t stages[6], n = test_rng_below(&rng, 7);
        for (size_t i = 0; i < 6; i++) {
            stages[i] = test_rng_below(&rng, N_STAGES);
        }
        perch_tokenizer *t = make(stages, n);
        for (size_t k = 0; t && k < 20; k++) {
            check_round(t, stages, n, &rng);
        }
        perch_tokenizer_destroy(t);
    }
}

/* --------------------------------------------------------------------------------------------- single cases -- */

static void check_text(const perch_tokenizer *t, const int32_t *ids, size_t n, uint32_t flags, const char *want) {
    struct text_buf got = {0};
    testing_decode(t, ids, n, flags, &got);
    CHECK_MSG(strcmp(got.data, want) == 0, "\"%s\" should be \"%s\"", got.data, want);
    free(got.data);
}

static void check_pushed(perch_tokenizer_stream *stream, int32_t token, const char *want) {
    const char *text = NULL;
    size_t n;
    CU_ASSERT(perch_tokenizer_stream_push(stream, token, &text, &n, NULL) == PERCH_OK);
    CHECK_MSG(strcmp(text, want) == 0, "\"%s\" should be \"%s\"", text, want);
}

/* What is certain comes out at once. */
static void test_streams_do_not_wait(void) {
    static const size_t llama[] = {REPLACE_A, FALLBACK, FUSE, STRIP};
    perch_tokenizer *t = make(llama, 4);
    perch_tokenizer_stream *stream = NULL;
    const char *text;
    size_t n;
    CU_ASSERT_FATAL(t != NULL && perch_tokenizer_stream_create(t, 0, &stream, NULL) == PERCH_OK);
    check_pushed(stream, 1, "a");  /* the first space is stripped, */
    check_pushed(stream, 1, " a"); /* later ones are not */
    check_pushed(stream, 11, "");  /* <0xE9>: a character begins */
    check_pushed(stream, 12, "");  /* <0xB1> */
    check_pushed(stream, 13, "");  /* <0xBC>: whole, but the run of bytes may yet be spoilt */
    check_pushed(stream, 0,
                 "\xE9\xB1\xBC"
                 "a"); /* it was not */
    check_pushed(stream, 11, "");
    check_pushed(stream, 14, UTF8_REPLACEMENT UTF8_REPLACEMENT); /* <0xFF>: this one is spoilt, */
    check_pushed(stream, 9, UTF8_REPLACEMENT);                   /* and so is what still belongs to it */
    check_pushed(stream, 0, "a");
    check_pushed(stream, 11, "");
    CU_ASSERT(perch_tokenizer_stream_flush(stream, &text, &n, NULL) == PERCH_OK);
    CU_ASSERT_STRING_EQUAL(text, UTF8_REPLACEMENT);
    perch_tokenizer_stream_destroy(stream);
    perch_tokenizer_destroy(t);
}

/* Bytes that are no character: the longest beginning of one is one U+FFFD. Texts beyond the alphabet are themselves. */
static void test_byte_level(void) {
    /* The tokens are the bytes E9, B1, BC, F0, FF, the word "a b", and one with a character outside of the alphabet. */
    perch_tokenizer *t = testing_tokenizer(
        "\"model\":{\"type\":\"BPE\",\"merges\":[],\"vocab\":{\"\xC3\xA9\":0,\"\xC2\xB1\":1,\"\xC2\xBC\":2,"
        "\"\xC3\xB0\":3,"
        "\"\xC3\xBF\":4,\"a\xC4\xA0"
        "b\":5,\"\xE9\xB1\xBC\xC4\xA0\":6}},"
        "\"decoder\":{\"type\":\"ByteLevel\",\"add_prefix_space\":true,\"trim_offsets\":true,\"use_regex\":true}",
        NULL);
    if (!t) {
        return;
    }
    check_text(t, (const int32_t[]){0, 1, 2, 5}, 4, 0,
               "\xE9\xB1\xBC"
               "a b");
    check_text(t, (const int32_t[]){0, 1, 5}, 3, 0, UTF8_REPLACEMENT "a b");
    check_text(t, (const int32_t[]){0, 1}, 2, 0, UTF8_REPLACEMENT);
    check_text(t, (const int32_t[]){4, 1, 0}, 3, 0, UTF8_REPLACEMENT UTF8_REPLACEMENT UTF8_REPLACEMENT);
    check_text(t, (const int32_t[]){3, 0, 1, 2}, 4, 0, UTF8_REPLACEMENT "\xE9\xB1\xBC");
    check_text(t, (const int32_t[]){6, 5}, 2, 0,
               "\xE9\xB1\xBC\xC4\xA0"
               "a b");
    size_t n;
    CU_ASSERT(memcmp(tokenizer_piece(t, 0, &n), "\xE9", 1) == 0 && n == 1);
    perch_tokenizer_destroy(t);
}

static void test_special_tokens(void) {
    perch_tokenizer *t = testing_tokenizer(
        TESTING_MODEL ",\"added_tokens\":[{\"id\":9,\"content\":\"<s>\",\"special\":true,\"single_word\":false,"
                      "\"lstrip\":false,\"rstrip\":false,\"normalized\":true}],\"normalizer\":{\"type\":\"Prepend\","
                      "\"prepend\":\"_\"},"
                      "\"decoder\":{\"type\":\"Fuse\"}",
        NULL);
    if (!t) {
        return;
    }
    size_t n;
    check_text(t, (const int32_t[]){9, 0, 9, 1}, 4, 0, "ab");
    check_text(t, (const int32_t[]){9, 0, 9, 1}, 4, PERCH_DECODE_SPECIAL, "<s>a<s>b");
    check_text(t, (const int32_t[]){0, 8, 1}, 3, PERCH_DECODE_SPECIAL, "ab"); /* no token has the id 8 */
    tokenizer_piece(t, 9, &n);
    CU_ASSERT(n == 0);
    perch_tokenizer_destroy(t);
}

static void test_continued(void) {
    static const size_t spaces[] = {METASPACE};
    perch_tokenizer *t = make(spaces, 1), *joined = testing_tokenizer(TESTING_MODEL, NULL);
    if (t && joined) {
        check_text(t, (const int32_t[]){1, 1}, 2, 0, "a a");
        check_text(t, (const int32_t[]){1, 1}, 2, PERCH_DECODE_CONTINUE, " a a");
        check_text(joined, (const int32_t[]){0, 1}, 2, 0, "a b");
        check_text(joined, (const int32_t[]){0, 1}, 2, PERCH_DECODE_CONTINUE, " a b");
    }
    perch_tokenizer_destroy(t);
    perch_tokenizer_destroy(joined);
}

int main(int argc, char **argv) {
    static const test_case tests[] = {
        {"random decoders: as if they had the whole list", test_random_decoders},
        {"streams don't hold back what is certain", test_streams_do_not_wait},
        {"byte level, and bytes that are no characters", test_byte_level},
        {"special tokens, and ids without a token", test_special_tokens},
        {"a continued text is not stripped", test_continued},
    };
    return test_main("decoder", tests, sizeof tests / sizeof *tests, argc, argv);
}
