/* tokenizer_test: encoding and decoding against the tokenizers library's results, and the API's promises. */
#include "engine/text/text_testing.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static const char *const fixtures[] = {"llama3", "llama2", "metaspace", "gpt2", "splits", "bare"};

/* Encodes into a buffer of its own; the caller's to free. */
static int32_t *encode(const perch_tokenizer *t, const char *text, size_t n, uint32_t flags, size_t *n_tokens) {
    perch_error err = {0};
    perch_status status = perch_tokenizer_encode(t, text, n, flags, NULL, 0, n_tokens, &err);
    CHECK_MSG(status == (*n_tokens ? PERCH_E_BUFFER : PERCH_OK), "%s", err.message);
    int32_t *tokens = malloc((*n_tokens + 1) * sizeof *tokens);
    CU_ASSERT_FATAL(tokens != NULL);
    CU_ASSERT(perch_tokenizer_encode(t, text, n, flags, tokens, *n_tokens, n_tokens, &err) == PERCH_OK);
    return tokens;
}

static void check_ids(const struct jnode *want, const char *fixture, const int32_t *got, size_t n) {
    size_t same = 0;
    for (struct jnode id = jnode_first(want); id.value && same < n && got[same] == id.value->as.integer;
         id = jnode_next(&id)) {
        same++;
    }
    CHECK_MSG(same == n && want->value->n == n, "%s: %s: text %zu differs at token %zu", fixture, want->key,
              want->parent->index, same);
}

static void check_golden_text(const perch_tokenizer *t, const char *fixture, const struct jnode *entry) {
    static const struct {
        const char *key;
        uint32_t flags;
    } ways[] = {
        {"ids", 0}, {"special_ids", PERCH_ENCODE_SPECIAL}, {"around_ids", PERCH_ENCODE_SPECIAL | PERCH_ENCODE_BOS}};
    struct jnode text = jnode_get(entry, "text");
    struct jtext bytes;
    CU_ASSERT(jnode_text(&text, &bytes, NULL) == PERCH_OK);
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) {
        struct jnode want = jnode_get(entry, ways[i].key);
        size_t n;
        int32_t *tokens = encode(t, bytes.data, bytes.n, ways[i].flags, &n);
        check_ids(&want, fixture, tokens, n);
        free(tokens);
    }
}

static void check_golden_tokens(const perch_tokenizer *t, const char *fixture, const struct jnode *entry) {
    static const char *const keys[] = {"text", "special_text"};
    struct jnode ids = jnode_get(entry, "ids");
    struct text_buf got = {0};
    int32_t tokens[256];
    size_t n = 0;
    for (struct jnode id = jnode_first(&ids); id.value && n < 256; id = jnode_next(&id)) {
        tokens[n++] = (int32_t)id.value->as.integer;
    }
    CU_ASSERT(n == ids.value->n);
    for (size_t i = 0; i < 2; i++) {
        struct jnode want = jnode_get(entry, keys[i]);
        struct jtext text;
        CU_ASSERT(jnode_text(&want, &text, NULL) == PERCH_OK);
        testing_decode(t, tokens, n, i ? PERCH_DECODE_SPECIAL : 0, &got);
        CHECK_MSG(got.n == text.n && memcmp(got.data, text.data, text.n) == 0,
                  "%s: %s: tokens %zu: \"%s\" should be \"%s\"", fixture, keys[i], entry->index, got.data, text.data);
    }
    free(got.data);
}

static void test_goldens(void) {
    for (size_t i = 0; i < sizeof fixtures / sizeof *fixtures; i++) {
        char path[128];
        size_t n;
        snprintf(path, sizeof path, "tests/goldens/text/%s.json", fixtures[i]);
        perch_tokenizer *t = testing_fixture(fixtures[i]);
        char *json = testing_read(path, &n);
        const jv_doc *doc = json ? testing_doc(json) : NULL;
        if (t && doc) {
            struct jnode top = jnode_top(doc, path), texts = jnode_get(&top, "encode"),
                         lists = jnode_get(&top, "decode");
            CU_ASSERT(texts.value->n >= 38 && lists.value->n >= 60);
            for (struct jnode entry = jnode_first(&texts); entry.value; entry = jnode_next(&entry)) {
                check_golden_text(t, fixtures[i], &entry);
            }
            for (struct jnode entry = jnode_first(&lists); entry.value; entry = jnode_next(&entry)) {
                check_golden_tokens(t, fixtures[i], &entry);
            }
        }
        free(json);
        perch_tokenizer_destroy(t);
    }
}

static void check_vectors(const char *name) {
    static const char mark[] = "\n__ggml_vocab_test__\n";
    char folder[256], file[300];
    const char *shared = test_shared("tokenizers");
    if (!shared) {
        return;
    }
    snprintf(folder, sizeof folder, "%s/%s", shared, name);
    perch_tokenizer *t = NULL;
    perch_error err = {0};
    CHECK_MSG(perch_tokenizer_create(folder, &t, &err) == PERCH_OK, "%s", err.message);
    size_t n_texts, n_ids, n = 0;
    snprintf(file, sizeof file, "%s/vectors.inp", folder);
    char *texts = testing_read(file, &n_texts);
    snprintf(file, sizeof file, "%s/vectors.out", folder);
    char *ids = testing_read(file, &n_ids), *line = ids;
    for (char *text = texts; t && text && line; n++) {
        char *end = strstr(text, mark), *newline = strchr(line, '\n');
        size_t length = end ? (size_t)(end - text) : strlen(text), n_tokens, at = 0;
        int32_t *tokens = encode(t, text, length, 0, &n_tokens);
        for (char *number = line; *number && *number != '\n'; at++) {
            char *after;
            long id = strtol(number, &after, 10);
            if (after == number) {
                break;
            }
            CHECK_MSG(at < n_tokens && tokens[at] == id, "%s: text %zu: token %zu should be %ld", name, n, at, id);
            number = after + strspn(after, " ");
        }
        CHECK_MSG(at == n_tokens, "%s: text %zu has %zu tokens, not %zu", name, n, n_tokens, at);
        free(tokens);
        text = end ? end + sizeof mark - 1 : NULL;
        line = newline ? newline + 1 : NULL;
    }
    CHECK_MSG(n == 47, "%zu vectors", n);
    free(texts);
    free(ids);
    perch_tokenizer_destroy(t);
}

static void test_vectors(void) {
    check_vectors("llama2");
    check_vectors("qwen2");
}

/* Encodes and decodes a text, which comes back as it was. The microseconds of CPU time that it took. */
static uint64_t there_and_back(const perch_tokenizer *t, const char *what, const char *text, size_t n) {
    uint64_t begin_us = test_cpu_us();
    size_t n_tokens = 0;
    struct text_buf back = {0};
    int32_t *tokens = malloc((n + 1) * sizeof *tokens);
    CU_ASSERT_FATAL(tokens != NULL);
    CU_ASSERT(perch_tokenizer_encode(t, text, n, 0, tokens, n + 1, &n_tokens, NULL) == PERCH_OK);
    testing_decode(t, tokens, n_tokens, 0, &back);
    CHECK_MSG(back.n == n && memcmp(back.data, text, n) == 0, "%s comes back as something else", what);
    free(back.data);
    free(tokens);
    return test_cpu_us() - begin_us;
}

/* Texts that would take quadratic time, or all memory, if anything did: 64 times as long for 8 times the text, not 8 times. */
static void check_large(const perch_tokenizer *t, const char *what, const char *text, size_t n, size_t n_eighth) {
    uint64_t eighth_us = there_and_back(t, what, text, n_eighth), whole_us = there_and_back(t, what, text, n);
    CHECK_MSG(whole_us < 32 * eighth_us + 20000, "%s: %llu us for an eighth of it, %llu us for all", what,
              (unsigned long long)eighth_us, (unsigned long long)whole_us);
}

static void test_large_texts(void) {
    static const char *const folders[] = {"tokenizers/llama2", "tokenizers/qwen2", "stories260K"};
    static const char *const units[] = {"a", " ", "\n", " \n", "ab", "!", "\xE6\x97\xA5", "<s>", "'s", "1"};
    const size_t n = 1u << 18;
    const char *book = test_shared("text/tinyshakespeare.txt");
    char *text = malloc(n);
    if (!book || !text) {
        free(text);
        return;
    }
    size_t n_book;
    char *shakespeare = testing_read(book, &n_book);
    for (size_t i = 0; i < sizeof folders / sizeof *folders; i++) {
        perch_tokenizer *t = NULL;
        perch_error err = {0};
        CHECK_MSG(perch_tokenizer_create(test_shared(folders[i]), &t, &err) == PERCH_OK, "%s", err.message);
        for (size_t k = 0; t && k < sizeof units / sizeof *units; k++) {
            size_t length = strlen(units[k]), whole = n / length * length;
            for (size_t at = 0; at < whole; at += length) {
                memcpy(text + at, units[k], length);
            }
            check_large(t, units[k], text, whole, whole / length / 8 * length);
        }
        if (t && shakespeare) {
            check_large(t, "Shakespeare", shakespeare, n_book, n_book / 8);
        }
        perch_tokenizer_destroy(t);
    }
    free(shakespeare);
    free(text);
}

static void test_random_tokens_stream(void) {
    test_rng rng = {test_seed(11)};
    struct text_buf out = {0};
    for (size_t i = 0; i < sizeof fixtures / sizeof *fixtures; i++) {
        perch_tokenizer *t = testing_fixture(fixtures[i]);
        for (uint64_t round = 0; t && round < test_scaled(2000); round++) {
            int32_t tokens[24];
            size_t n = test_rng_below(&rng, 24);
            for (size_t k = 0; k < n; k++) {
                tokens[k] = (int32_t)test_rng_below(&rng, (uint64_t)t->vocab.n);
            }
            uint32_t flags = (test_rng_below(&rng, 2) ? PERCH_DECODE_SPECIAL : 0u) |
                             (test_rng_below(&rng, 2) ? PERCH_DECODE_CONTINUE : 0u);
            testing_decode(t, tokens, n, flags, &out);
        }
        perch_tokenizer_destroy(t);
    }
    free(out.data);
}

static void test_random_bytes_round_trip(void) {
    test_rng rng = {test_seed(12)};
    perch_tokenizer *t = testing_fixture("llama3");
    struct text_buf want = {0}, got = {0};
    for (uint64_t round = 0; t && round < test_scaled(3000); round++) {
        char text[64];
        size_t n = test_rng_below(&rng, sizeof text), n_tokens;
        want.n = 0;
        for (size_t i = 0; i < n; i++) {
            text[i] = (char)(test_rng_below(&rng, 3) ? test_rng_below(&rng, 256) : 'a' + test_rng_below(&rng, 6));
        }
        /* Each byte that belongs to no character becomes U+FFFD. */
        for (size_t i = 0; i < n;) {
            uint32_t code;
            int step = utf8_step(text + i, n - i, &code);
            CU_ASSERT_FATAL(buf_append(&want, step > 0 ? text + i : UTF8_REPLACEMENT, step > 0 ? (size_t)step : 3,
                                       NULL) == PERCH_OK);
            i += step > 0 ? (size_t)step : 1;
        }
        int32_t *tokens = encode(t, text, n, 0, &n_tokens);
        testing_decode(t, tokens, n_tokens, 0, &got);
        CHECK_MSG(got.n == want.n && (got.n == 0 || memcmp(got.data, want.data, got.n) == 0), "round %llu",
                  (unsigned long long)round);
        free(tokens);
    }
    free(want.data);
    free(got.data);
    perch_tokenizer_destroy(t);
}

/* A byte-level tokenizer's pieces are the text's bytes, cut anywhere. */
static void test_pieces(void) {
    static const char text[] = "it's \xE9\xB2\x88\xE9\xB1\xBC, \xF0\x9F\x90\x9F here";
    perch_tokenizer *byte_level = testing_fixture("llama3"), *fallback = testing_fixture("llama2");
    const perch_tokenizer *both[] = {byte_level, fallback};
    for (size_t k = 0; k < 2 && byte_level && fallback; k++) {
        size_t n_tokens, n_bytes;
        struct text_buf joined = {0};
        int32_t *tokens = encode(both[k], text, sizeof text - 1, PERCH_ENCODE_BOS, &n_tokens);
        for (size_t i = 0; i < n_tokens; i++) {
            const char *piece = tokenizer_piece(both[k], tokens[i], &n_bytes);
            CU_ASSERT_FATAL(buf_append(&joined, piece, n_bytes, NULL) == PERCH_OK);
        }
        size_t lead = k; /* the second writes a space before the first word */
        CU_ASSERT(joined.n == sizeof text - 1 + lead && memcmp(joined.data + lead, text, sizeof text - 1) == 0);
        tokenizer_piece(both[k], both[k]->vocab.n, &n_bytes);
        CU_ASSERT(n_bytes == 0);
        tokenizer_piece(both[k], -1, &n_bytes);
        CU_ASSERT(n_bytes == 0);
        CU_ASSERT(tokenizer_bytes(both[k]) > 10000 && tokenizer_bytes(both[k]) < 1000000);
        free(joined.data);
        free(tokens);
    }
    perch_tokenizer_destroy(byte_level);
    perch_tokenizer_destroy(fallback);
}

static void test_continued_text_keeps_its_space(void) {
    perch_tokenizer *t = testing_fixture("llama2");
    if (!t) {
        return;
    }
    size_t n;
    struct text_buf out = {0};
    int32_t *tokens = encode(t, "perch", 5, 0, &n);
    testing_decode(t, tokens, n, 0, &out);
    CU_ASSERT_STRING_EQUAL(out.data, "perch");
    testing_decode(t, tokens, n, PERCH_DECODE_CONTINUE, &out);
    CU_ASSERT_STRING_EQUAL(out.data, " perch");
    free(out.data);
    free(tokens);
    perch_tokenizer_destroy(t);
}

static void test_buffers(void) {
    perch_tokenizer *t = testing_tokenizer(TESTING_MODEL, NULL);
    perch_error err;
    int32_t tokens[4] = {-7, -7, -7, -7};
    char text[8];
    size_t n;
    CU_ASSERT_FATAL(t != NULL);
    CU_ASSERT(perch_tokenizer_encode(t, "dddd", 4, 0, tokens, 2, &n, &err) == PERCH_E_BUFFER);
    CU_ASSERT(n == 4 && tokens[1] == 3 && tokens[2] == -7);
    CU_ASSERT(perch_tokenizer_encode(t, "dddd", 4, 0, tokens, 4, &n, &err) == PERCH_OK && n == 4);
    CU_ASSERT(perch_tokenizer_encode(t, NULL, 0, 0, NULL, 0, &n, &err) == PERCH_OK && n == 0);
    int32_t abc[2] = {6, 6}; /* without a decoder: tokens with a space between */
    CU_ASSERT(perch_tokenizer_decode(t, abc, 2, 0, text, 7, &n, &err) == PERCH_E_BUFFER && n == 7 && text[6] == 0);
    CU_ASSERT(perch_tokenizer_decode(t, abc, 2, 0, text, 8, &n, &err) == PERCH_OK && n == 7);
    CU_ASSERT_STRING_EQUAL(text, "abc abc");
    CU_ASSERT(perch_tokenizer_decode(t, abc, 0, 0, NULL, 0, &n, &err) == PERCH_E_BUFFER && n == 0);
    CU_ASSERT(perch_tokenizer_decode(t, abc, 0, 0, text, 1, &n, &err) == PERCH_OK && text[0] == 0);
    perch_tokenizer_destroy(t);
}

static void test_bad_arguments(void) {
    perch_tokenizer *t = testing_tokenizer(TESTING_MODEL, NULL);
    perch_tokenizer_stream *stream = NULL;
    perch_error err;
    int32_t tokens[3] = {0, 8, -1};
    const char *piece;
    char text[8];
    size_t n;
    CU_ASSERT_FATAL(t != NULL);
    CU_ASSERT(perch_tokenizer_encode(NULL, "a", 1, 0, tokens, 3, &n, &err) == PERCH_E_INVALID);
    CU_ASSERT(perch_tokenizer_encode(t, NULL, 1, 0, tokens, 3, &n, &err) == PERCH_E_INVALID);
    CU_ASSERT(perch_tokenizer_encode(t, "a", 1, 0, NULL, 3, &n, &err) == PERCH_E_INVALID);
    CU_ASSERT(perch_tokenizer_encode(t, "a", 1, 0, tokens, 3, NULL, &err) == PERCH_E_INVALID);
    CU_ASSERT(perch_tokenizer_encode(t, "a", 1, PERCH_DECODE_SPECIAL, tokens, 3, &n, &err) == PERCH_E_INVALID);
    CU_ASSERT(perch_tokenizer_decode(NULL, tokens, 1, 0, text, 8, &n, &err) == PERCH_E_INVALID);
    CU_ASSERT(perch_tokenizer_decode(t, NULL, 1, 0, text, 8, &n, &err) == PERCH_E_INVALID);
    CU_ASSERT(perch_tokenizer_decode(t, tokens, 1, 0, NULL, 8, &n, &err) == PERCH_E_INVALID);
    CU_ASSERT(perch_tokenizer_decode(t, tokens, 1, 0, text, 8, NULL, &err) == PERCH_E_INVALID);
    CU_ASSERT(perch_tokenizer_decode(t, tokens, 1, PERCH_ENCODE_BOS, text, 8, &n, &err) == PERCH_E_INVALID);
    CU_ASSERT(perch_tokenizer_decode(t, tokens, 2, 0, text, 8, &n, &err) == PERCH_E_INVALID);
    CU_ASSERT_STRING_EQUAL(err.message, "tokens[1]: 8 is not within 0..7");
    CU_ASSERT(text[0] == 0);
    CU_ASSERT(perch_tokenizer_stream_create(NULL, 0, &stream, &err) == PERCH_E_INVALID);
    CU_ASSERT(perch_tokenizer_stream_create(t, 0, NULL, &err) == PERCH_E_INVALID);
    CU_ASSERT(perch_tokenizer_stream_create(t, 1u << 9, &stream, &err) == PERCH_E_INVALID);
    CU_ASSERT(perch_tokenizer_stream_create(t, 0, &stream, &err) == PERCH_OK);
    CU_ASSERT(perch_tokenizer_stream_push(NULL, 0, &piece, &n, &err) == PERCH_E_INVALID);
    CU_ASSERT(perch_tokenizer_stream_push(stream, 0, NULL, &n, &err) == PERCH_E_INVALID);
    CU_ASSERT(perch_tokenizer_stream_flush(stream, &piece, NULL, &err) == PERCH_E_INVALID);
    /* A bad id leaves the stream as it was. */
    CU_ASSERT(perch_tokenizer_stream_push(stream, 5, &piece, &n, &err) == PERCH_OK && strcmp(piece, "ab") == 0);
    CU_ASSERT(perch_tokenizer_stream_push(stream, -1, &piece, &n, &err) == PERCH_E_INVALID && n == 0);
    CU_ASSERT_STRING_EQUAL(err.message, "token: -1 is not within 0..7");
    CU_ASSERT(perch_tokenizer_stream_push(stream, 2, &piece, &n, &err) == PERCH_OK && strcmp(piece, " c") == 0);
    CU_ASSERT(perch_tokenizer_stream_flush(stream, &piece, &n, &err) == PERCH_OK && n == 0);
    /* After a flush it begins anew. */
    CU_ASSERT(perch_tokenizer_stream_push(stream, 2, &piece, &n, &err) == PERCH_OK && strcmp(piece, "c") == 0);
    CU_ASSERT(perch_tokenizer_create(NULL, &t, &err) == PERCH_E_INVALID);
    CU_ASSERT(perch_tokenizer_create("x", NULL, &err) == PERCH_E_INVALID);
    CU_ASSERT(perch_tokenizer_n_tokens(NULL) == 0 && perch_tokenizer_find(NULL, "a") == -1);
    CU_ASSERT(perch_tokenizer_find(t, NULL) == -1 && perch_tokenizer_find(t, "nothing") == -1);
    CU_ASSERT(perch_tokenizer_find(t, "abc") == 6 && perch_tokenizer_n_tokens(t) == 8);
    CU_ASSERT(perch_tokenizer_bos(NULL) == -1 && perch_tokenizer_eos(NULL) == -1);
    perch_tokenizer_stream_destroy(stream);
    perch_tokenizer_stream_destroy(NULL);
    perch_tokenizer_destroy(t);
    perch_tokenizer_destroy(NULL);
}

/* BOS and EOS: the template goes before the configuration, which counts where there is no post-processor. */
static void test_bos_and_eos(void) {
#define PROCESSOR(before)                                                                                              \
    ",\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[" before                                         \
    "{\"Sequence\":{\"id\":\"A\",\"type_id\":0}}],\"special_tokens\":{\"x\":{\"id\":\"x\",\"ids\":[3],\"tokens\":["    \
    "\"d\"]}}}"
#define SPECIAL_X "{\"SpecialToken\":{\"id\":\"x\",\"type_id\":0}},"
    static const struct {
        const char *fields, *config;
        int32_t bos, eos;
        size_t n;
        int32_t ids[3];
    } cases[] = {
        {TESTING_MODEL, NULL, -1, -1, 1, {6}},
        {TESTING_MODEL, "{\"bos_token\":null,\"eos_token\":\"c\",\"model_max_length\":1e30}", -1, 2, 1, {6}},
        {TESTING_MODEL, "{\"bos_token\":{\"content\":\"b\"},\"eos_token\":{\"content\":\"c\"}}", 1, 2, 1, {6}},
        {TESTING_MODEL, "{\"bos_token\":\"b\",\"add_bos_token\":true}", 1, -1, 2, {1, 6}},
        {TESTING_MODEL, "{\"bos_token\":\"b\",\"eos_token\":\"c\",\"add_eos_token\":true}", 1, 2, 2, {6, 2}},
        {TESTING_MODEL PROCESSOR(""), "{\"bos_token\":\"b\",\"add_bos_token\":true}", 1, -1, 1, {6}},
        {TESTING_MODEL PROCESSOR(SPECIAL_X), "{\"add_bos_token\":false}", 3, -1, 2, {3, 6}},
        {TESTING_MODEL PROCESSOR(SPECIAL_X),
         "{\"bos_token\":\"b\",\"model_max_length\":1000000000000000019884624838656}",
         3,
         -1,
         2,
         {3, 6}},
        {TESTING_MODEL ",\"post_processor\":{\"type\":\"ByteLevel\",\"add_prefix_space\":true,\"trim_offsets\":true}",
         "{\"bos_token\":\"b\",\"add_bos_token\":true}",
         1,
         -1,
         1,
         {6}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        perch_tokenizer *t = testing_tokenizer(cases[i].fields, cases[i].config);
        int32_t ids[4];
        size_t n;
        if (!t) {
            continue;
        }
        CHECK_MSG(perch_tokenizer_bos(t) == cases[i].bos, "case %zu: BOS is %d", i, perch_tokenizer_bos(t));
        CHECK_MSG(perch_tokenizer_eos(t) == cases[i].eos, "case %zu: EOS is %d", i, perch_tokenizer_eos(t));
        CU_ASSERT(perch_tokenizer_encode(t, "abc", 3, PERCH_ENCODE_BOS, ids, 4, &n, NULL) == PERCH_OK);
        CHECK_MSG(n == cases[i].n && memcmp(ids, cases[i].ids, n * sizeof *ids) == 0, "case %zu", i);
        CU_ASSERT(perch_tokenizer_encode(t, "abc", 3, 0, ids, 4, &n, NULL) == PERCH_OK && n == 1);
        perch_tokenizer_destroy(t);
    }
}

/* Special tokens in the text count only where they are asked for; other added tokens always. */
static void test_special_tokens_in_text(void) {
    perch_tokenizer *t = testing_tokenizer(
        TESTING_MODEL
        ",\"added_tokens\":["
        "{\"id\":8,\"content\":\"_d\",\"special\":true,\"single_word\":false,\"lstrip\":false,\"rstrip\":false,"
        "\"normalized\":false},"
        "{\"id\":9,\"content\":\"_c\",\"special\":false,\"single_word\":false,\"lstrip\":false,\"rstrip\":false,"
        "\"normalized\":false}]",
        NULL);
    int32_t ids[8];
    size_t n;
    CU_ASSERT_FATAL(t != NULL);
    CU_ASSERT(perch_tokenizer_encode(t, "a_d_c", 5, 0, ids, 8, &n, NULL) == PERCH_OK);
    CU_ASSERT(n == 4 && ids[0] == 0 && ids[1] == 7 && ids[2] == 3 && ids[3] == 9);
    CU_ASSERT(perch_tokenizer_encode(t, "a_d_c", 5, PERCH_ENCODE_SPECIAL, ids, 8, &n, NULL) == PERCH_OK);
    CU_ASSERT(n == 3 && ids[0] == 0 && ids[1] == 8 && ids[2] == 9);
    CU_ASSERT(perch_tokenizer_find(t, "_d") == 8);
    perch_tokenizer_destroy(t);
}

/* An added token is none of the model's: not a word that stays whole, and not a character. */
static void test_added_tokens_are_not_the_models(void) {
#define ADDED(id, content)                                                                                             \
    "{\"id\":" id ",\"content\":\"" content                                                                            \
    "\",\"special\":true,\"single_word\":false,\"lstrip\":false,\"rstrip\":false,"                                     \
    "\"normalized\":false}"
    perch_tokenizer *t = testing_tokenizer(
        "\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":1},\"merges\":[],\"ignore_merges\":true},"
        "\"added_tokens\":[" ADDED("2", "ab") "," ADDED("3", "c") "," ADDED("4", "\xE9\xB1\xBC") "]",
        NULL);
    int32_t ids[8];
    size_t n;
    CU_ASSERT_FATAL(t != NULL);
    CU_ASSERT(perch_tokenizer_encode(t, "ab", 2, 0, ids, 8, &n, NULL) == PERCH_OK && n == 2 && ids[0] == 0 &&
              ids[1] == 1);
    CU_ASSERT(perch_tokenizer_encode(t, "ab", 2, PERCH_ENCODE_SPECIAL, ids, 8, &n, NULL) == PERCH_OK && n == 1 &&
              ids[0] == 2);
    CU_ASSERT(perch_tokenizer_encode(t, "c\xE9\xB1\xBC", 4, 0, ids, 8, &n, NULL) == PERCH_OK && n == 0);
    CU_ASSERT(perch_tokenizer_encode(t, "c\xE9\xB1\xBC", 4, PERCH_ENCODE_SPECIAL, ids, 8, &n, NULL) == PERCH_OK &&
              n == 2);
    perch_tokenizer_destroy(t);
}

static void put_file(const char *folder, const char *name, const char *text) {
    char path[256];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *file = fopen(path, "wb");
    CU_ASSERT_FATAL(file != NULL);
    CU_ASSERT(fwrite(text, 1, strlen(text), file) == strlen(text));
    CU_ASSERT(fclose(file) == 0);
}

static void test_files(void) {
    static const char *const names[] = {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "bad.json"};
    const perch_chat_message message = {"user", "d"};
    char folder[] = "/tmp/perch-tokenizer-XXXXXX", path[256], text[128], expect[512];
    perch_tokenizer *t = NULL;
    perch_error err = {0};
    size_t n;
    CU_ASSERT_FATAL(mkdtemp(folder) != NULL);
    CU_ASSERT(perch_tokenizer_create(folder, &t, &err) == PERCH_E_IO && t == NULL);
    snprintf(expect, sizeof expect, "%s/tokenizer.json: No such file or directory", folder);
    CU_ASSERT_STRING_EQUAL(err.message, expect);
    put_file(folder, names[0], "{" TESTING_MODEL "}");
    CU_ASSERT(perch_tokenizer_create(folder, &t, &err) == PERCH_OK && perch_tokenizer_eos(t) == -1);
    perch_tokenizer_destroy(t);
    /* The configuration is found beside the file, too, and a template of its own goes before the one within. */
    put_file(folder, names[1], "{\"eos_token\":\"c\",\"chat_template\":\"<|start_header_id|><|eot_id|>\"}");
    put_file(folder, names[2], "<|im_start|><|im_end|>");
    snprintf(path, sizeof path, "%s/tokenizer.json", folder);
    CU_ASSERT(perch_tokenizer_create(path, &t, &err) == PERCH_OK && perch_tokenizer_eos(t) == 2);
    CU_ASSERT(perch_chat_render(t, NULL, &message, 1, 1, text, sizeof text, &n, &err) == PERCH_OK);
    CU_ASSERT_STRING_EQUAL(text, "<|im_start|>user\nd<|im_end|>\n<|im_start|>assistant\n");
    perch_tokenizer_destroy(t);
    put_file(folder, names[1], "{\"eos_token\":\"zander\"}");
    CU_ASSERT(perch_tokenizer_create(path, &t, &err) == PERCH_E_FORMAT && t == NULL);
    snprintf(expect, sizeof expect, "%s (tokenizer_config.json): eos_token: the tokenizer has no \"zander\"", path);
    CU_ASSERT_STRING_EQUAL(err.message, expect);
    put_file(folder, names[3], "{\n\"model\":");
    snprintf(path, sizeof path, "%s/bad.json", folder);
    CU_ASSERT(perch_tokenizer_create(path, &t, &err) == PERCH_E_FORMAT);
    snprintf(expect, sizeof expect, "%s: line 2: not JSON", path);
    CU_ASSERT_STRING_EQUAL(err.message, expect);
    CU_ASSERT(perch_tokenizer_create("/dev/null", &t, &err) == PERCH_E_IO);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        snprintf(path, sizeof path, "%s/%s", folder, names[i]);
        unlink(path);
    }
    CU_ASSERT(rmdir(folder) == 0);
}

int main(int argc, char **argv) {
    static const test_case tests[] = {
        {"small tokenizers of all kinds agree with the tokenizers library", test_goldens},
        {"Llama 2's and Qwen2's vectors", test_vectors},
        {"large texts take no more than their time and come back", test_large_texts},
        {"random tokens: streams joined are the whole, in whole characters", test_random_tokens_stream},
        {"random bytes come back with U+FFFD for what is no character", test_random_bytes_round_trip},
        {"pieces joined are the text's bytes", test_pieces},
        {"a continued text keeps its leading space", test_continued_text_keeps_its_space},
        {"buffers that are too small", test_buffers},
        {"arguments that make no sense", test_bad_arguments},
        {"BOS and EOS from template and configuration", test_bos_and_eos},
        {"special tokens in the text count when asked for", test_special_tokens_in_text},
        {"added tokens are not the model's", test_added_tokens_are_not_the_models},
        {"files are found, and named in errors", test_files},
    };
    return test_main("tokenizer", tests, sizeof tests / sizeof *tests, argc, argv);
}
