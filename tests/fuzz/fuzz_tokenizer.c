/*
 * Any bytes as tokenizer.json, and as the tokenizer_config.json of a small one: loaded, or refused with a reason. What
 * loads encodes texts to ids within its range, decodes them, and its streams joined are what decoding at once gives.
 */
#include "engine/text/text.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Called by the fuzzing engine, which declares it. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define MAX_TOKENS 512
#define MAX_TEXT 65536

static char whole[MAX_TEXT], joined[MAX_TEXT];

static void require(bool condition) {
    if (!condition) {
        abort();
    }
}

static void check_stream(const perch_tokenizer *t, const int32_t *tokens, size_t n, uint32_t flags) {
    perch_tokenizer_stream *stream = NULL;
    const char *text = NULL;
    size_t n_whole = 0, n_joined = 0, n_bytes = 0;
    perch_status at_once = perch_tokenizer_decode(t, tokens, n, flags, whole, sizeof whole, &n_whole, NULL);
    require(perch_tokenizer_stream_create(t, flags, &stream, NULL) == PERCH_OK);
    perch_status status = PERCH_OK;
    for (size_t i = 0; i <= n && status == PERCH_OK; i++) {
        status = i < n ? perch_tokenizer_stream_push(stream, tokens[i], &text, &n_bytes, NULL)
                       : perch_tokenizer_stream_flush(stream, &text, &n_bytes, NULL);
        if (status == PERCH_OK && n_joined + n_bytes <= sizeof joined) {
            memcpy(joined + n_joined, text, n_bytes);
        }
        n_joined += n_bytes;
    }
    /* A decoder may be refused for what it makes of a text, by both alike. */
    require(at_once == PERCH_E_BUFFER ? status == PERCH_OK : status == at_once);
    if (status == PERCH_OK) {
        require(n_joined == n_whole && memcmp(joined, whole, n_whole < sizeof whole ? n_whole : sizeof whole - 1) == 0);
    }
    perch_tokenizer_stream_destroy(stream);
}

static void check(const perch_tokenizer *t) {
    static const char *const texts[] = {"", "Hello, world! it's 12,345 <s>x</s> <|im_end|>\n\n  ab abc",
                                        "\xE9\xB2\x88 e\xCC\x81 \xF0\x9F\x90\x9F\xFF\xC3",
                                        "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"};
    const perch_chat_message message = {"user", "x"};
    int32_t tokens[MAX_TOKENS];
    int32_t n_ids = perch_tokenizer_n_tokens(t);
    size_t n;
    require(n_ids > 0 && perch_tokenizer_bos(t) < n_ids && perch_tokenizer_eos(t) < n_ids && tokenizer_bytes(t) > 0);
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        uint32_t flags = i % 2 ? PERCH_ENCODE_BOS | PERCH_ENCODE_SPECIAL : 0;
        perch_status status =
            perch_tokenizer_encode(t, texts[i], strlen(texts[i]), flags, tokens, MAX_TOKENS, &n, NULL);
        require(status == PERCH_OK || status == PERCH_E_BUFFER || status == PERCH_E_UNSUPPORTED);
        n = status == PERCH_OK ? n : status == PERCH_E_BUFFER ? MAX_TOKENS : 0;
        for (size_t k = 0; k < n; k++) {
            size_t n_bytes;
            require(tokens[k] >= 0 && tokens[k] < n_ids && tokenizer_piece(t, tokens[k], &n_bytes) != NULL);
        }
        check_stream(t, tokens, n, i % 2 ? PERCH_DECODE_SPECIAL : PERCH_DECODE_CONTINUE);
    }
    for (int32_t k = 0; k < 64; k++) {
        tokens[k] = (int32_t)((int64_t)k * 7919 % n_ids);
    }
    check_stream(t, tokens, 64, 0);
    perch_chat_render(t, NULL, &message, 1, 1, whole, sizeof whole, &n, NULL);
}

static void parse(const char *json, size_t n_bytes, const char *config, size_t n_config_bytes) {
    perch_tokenizer *t = NULL;
    perch_error err = {0};
    perch_status status = tokenizer_parse(json, n_bytes, config, n_config_bytes, "input", &t, &err);
    if (status == PERCH_OK) {
        check(t);
    } else {
        require(!t && err.status == status && err.message[0] && !strchr(err.message, '\n'));
    }
    perch_tokenizer_destroy(t);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const char small[] =
        "{\"model\": {\"type\": \"BPE\", \"vocab\": {\"a\": 0, \"b\": 1, \"ab\": 2, \"<s>\": 3},"
        "\"merges\": [\"a b\"]}}";
    parse((const char *)data, size, NULL, 0);
    parse(small, sizeof small - 1, (const char *)data, size);
    return 0;
}
