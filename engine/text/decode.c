/* decode: tokens to text, at once and as a stream; what a tokenizer says of its tokens. */
#include "engine/text/tokenizer.h"

#include <stdlib.h>
#include <string.h>

struct perch_tokenizer_stream {
    const perch_tokenizer *t;
    bool special;
    perch_status broken; /* what a call failed with in the middle; what it held back is lost */
    struct decoding decoding;
    struct text_buf out;
};

static perch_status check_flags(uint32_t flags, perch_error *err) {
    return flags & ~(uint32_t)(PERCH_DECODE_SPECIAL | PERCH_DECODE_CONTINUE)
               ? err_set(err, PERCH_E_INVALID, "flags: 0x%x has more than PERCH_DECODE_*", flags)
               : PERCH_OK;
}

static bool is_id(const perch_tokenizer *t, int32_t token) { return token >= 0 && token < t->vocab.n; }

/* Special tokens are left out unless asked for, and so are ids within the range that no token has. */
static perch_status push(struct decoding *d, const perch_tokenizer *t, int32_t token, bool special) {
    unsigned flags = t->vocab.flags[token];
    if (flags == 0 || ((flags & TOKEN_SPECIAL) && !special)) {
        return PERCH_OK;
    }
    return decoding_push(d, vocab_text(&t->vocab, token));
}

perch_status perch_tokenizer_decode(const perch_tokenizer *tokenizer, const int32_t *tokens, size_t n_tokens,
                                    uint32_t flags, char *text, size_t cap, size_t *n_bytes, perch_error *err) {
    if (!tokenizer || !n_bytes || (!tokens && n_tokens) || (!text && cap)) {
        return err_set(err, PERCH_E_INVALID, "%s is NULL",
                       !tokenizer            ? "tokenizer"
                       : !n_bytes            ? "n_bytes"
                       : !tokens && n_tokens ? "tokens"
                                             : "text");
    }
    perch_status status = check_flags(flags, err);
    struct decoding d = {.decoder = &tokenizer->decoder,
                         .sink = {.text = text, .cap = cap},
                         .resumes = (flags & PERCH_DECODE_CONTINUE) != 0,
                         .err = err};
    *n_bytes = 0;
    for (size_t i = 0; i < n_tokens && status == PERCH_OK; i++) {
        if (is_id(tokenizer, tokens[i])) {
            status = push(&d, tokenizer, tokens[i], (flags & PERCH_DECODE_SPECIAL) != 0);
        } else {
            status = err_set(err, PERCH_E_INVALID, "tokens[%zu]: %d is not within 0..%d", i, tokens[i],
                             tokenizer->vocab.n - 1);
        }
    }
    if (status == PERCH_OK) {
        status = decoding_finish(&d);
    }
    decoding_free(&d);
    if (cap) {
        text[status == PERCH_OK ? (d.sink.n < cap ? d.sink.n : cap - 1) : 0] = 0;
    }
    if (status != PERCH_OK) {
        return status;
    }
    *n_bytes = d.sink.n;
    return d.sink.n < cap
               ? PERCH_OK
               : err_set(err, PERCH_E_BUFFER, "the text has %zu bytes and a 0, more than the %zu there is room for",
                         d.sink.n, cap);
}

perch_status perch_tokenizer_stream_create(const perch_tokenizer *tokenizer, uint32_t flags,
                                           perch_tokenizer_stream **out, perch_error *err) {
    if (!tokenizer || !out) {
        return err_set(err, PERCH_E_INVALID, "%s is NULL", tokenizer ? "out" : "tokenizer");
    }
    *out = NULL;
    perch_status status = check_flags(flags, err);
    if (status != PERCH_OK) {
        return status;
    }
    perch_tokenizer_stream *stream = calloc(1, sizeof *stream);
    if (!stream) {
        return err_nomem(err, "a stream");
    }
    stream->t = tokenizer;
    stream->special = (flags & PERCH_DECODE_SPECIAL) != 0;
    stream->decoding.decoder = &tokenizer->decoder;
    stream->decoding.sink.grow = &stream->out;
    stream->decoding.resumes = (flags & PERCH_DECODE_CONTINUE) != 0;
    *out = stream;
    return PERCH_OK;
}

void perch_tokenizer_stream_destroy(perch_tokenizer_stream *stream) {
    if (stream) {
        decoding_free(&stream->decoding);
        free(stream->out.data);
        free(stream);
    }
}

static perch_status begin_call(perch_tokenizer_stream *stream, const char **text, size_t *n_bytes, perch_error *err) {
    if (!stream || !text || !n_bytes) {
        return err_set(err, PERCH_E_INVALID, "%s is NULL", !stream ? "stream" : !text ? "text" : "n_bytes");
    }
    *text = "";
    *n_bytes = 0;
    if (stream->broken != PERCH_OK) {
        return err_set(err, stream->broken, "the stream failed before");
    }
    stream->out.n = 0;
    stream->decoding.err = err;
    return PERCH_OK;
}

static perch_status end_call(perch_tokenizer_stream *stream, perch_status status, const char **text, size_t *n_bytes,
                             perch_error *err) {
    size_t n = stream->out.n;
    if (status == PERCH_OK) {
        status = buf_append(&stream->out, "", 1, err);
    }
    stream->broken = status;
    if (status == PERCH_OK) {
        *text = stream->out.data;
        *n_bytes = n;
    }
    return status;
}

perch_status perch_tokenizer_stream_push(perch_tokenizer_stream *stream, int32_t token, const char **text,
                                         size_t *n_bytes, perch_error *err) {
    perch_status status = begin_call(stream, text, n_bytes, err);
    if (status != PERCH_OK) {
        return status;
    }
    if (!is_id(stream->t, token)) {
        return err_set(err, PERCH_E_INVALID, "token: %d is not within 0..%d", token, stream->t->vocab.n - 1);
    }
    return end_call(stream, push(&stream->decoding, stream->t, token, stream->special), text, n_bytes, err);
}

/* Afterwards the stream is as new. */
perch_status perch_tokenizer_stream_flush(perch_tokenizer_stream *stream, const char **text, size_t *n_bytes,
                                          perch_error *err) {
    perch_status status = begin_call(stream, text, n_bytes, err);
    if (status != PERCH_OK) {
        return status;
    }
    status = decoding_finish(&stream->decoding);
    decoding_reset(&stream->decoding);
    return end_call(stream, status, text, n_bytes, err);
}

int32_t perch_tokenizer_n_tokens(const perch_tokenizer *tokenizer) { return tokenizer ? tokenizer->vocab.n : 0; }

int32_t perch_tokenizer_find(const perch_tokenizer *tokenizer, const char *content) {
    return tokenizer && content ? vocab_find(&tokenizer->vocab, content, strlen(content)) : VOCAB_NONE;
}

int32_t perch_tokenizer_bos(const perch_tokenizer *tokenizer) { return tokenizer ? tokenizer->bos : VOCAB_NONE; }

int32_t perch_tokenizer_eos(const perch_tokenizer *tokenizer) { return tokenizer ? tokenizer->eos : VOCAB_NONE; }

const char *tokenizer_piece(const perch_tokenizer *tokenizer, int32_t token, size_t *n_bytes) {
    uint32_t start = token > 0 && is_id(tokenizer, token) ? tokenizer->piece_ends[token - 1] : 0;
    *n_bytes = is_id(tokenizer, token) ? tokenizer->piece_ends[token] - start : 0;
    return *n_bytes ? tokenizer->pieces.data + start : "";
}

uint64_t tokenizer_bytes(const perch_tokenizer *tokenizer) {
    return sizeof *tokenizer + vocab_bytes(&tokenizer->vocab) + bpe_bytes(&tokenizer->bpe) +
           added_bytes(&tokenizer->added) + normalizer_bytes(&tokenizer->normalizer) +
           pretokenizer_bytes(&tokenizer->pretokenizer) + decoder_bytes(&tokenizer->decoder) +
           tokenizer->chat.system_bytes + (tokenizer->around.n_before + tokenizer->around.n_behind) * sizeof(int32_t) +
           tokenizer->pieces.cap + (uint64_t)tokenizer->vocab.n * sizeof *tokenizer->piece_ends;
}
