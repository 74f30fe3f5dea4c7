/*
 * decoder: tokens' texts to plain text. The decoder of a tokenizer.json is a list of stages, each from a list of
 * strings to a list of strings. Here each stage is a small machine that takes its strings piece by piece and hands on
 * what is certain, so that decoding at once and decoding as a stream are the same code: what can't be told yet is held
 * back until it can.
 *
 * Pieces that stages exchange are whole characters; `end` closes a string. A stage that joins all strings into one
 * (Fuse, ByteLevel) closes it only when the decoding is finished.
 */
#ifndef PERCH_ENGINE_TEXT_DECODER_H
#define PERCH_ENGINE_TEXT_DECODER_H

#include "engine/text/pretokenizer.h"

#define DECODER_STAGES 16u

enum decoder_kind {
    DECODE_REPLACE,
    DECODE_BYTE_FALLBACK, /* <0xE2> is a byte; a run of them is text, or U+FFFD each */
    DECODE_FUSE,
    DECODE_STRIP,
    DECODE_BYTE_LEVEL,
    DECODE_METASPACE,
    DECODE_JOIN /* no decoder: tokens with spaces between */
};

struct decoder_stage {
    enum decoder_kind kind;
    struct pattern pattern; /* REPLACE */
    char *content;          /* [content_bytes] what is put in its place */
    size_t content_bytes;
    char character[4]; /* STRIP: what is stripped, METASPACE: what stands for a space */
    size_t character_bytes;
    size_t start, stop; /* STRIP: how many at most */
    bool drop_first;    /* METASPACE: no spaces in the first string */
    bool whole;         /* its one string is the whole text, as a stage before it joins them */
};

struct decoder {
    struct decoder_stage stages[DECODER_STAGES];
    size_t n;
};

/* What a stage remembers. */
struct decoder_state {
    struct text_buf held;  /* the beginning of a string that must be seen further */
    struct text_buf bytes; /* bytes that are not yet whole characters, or not yet known to be valid */
    size_t checked;        /* BYTE_FALLBACK: so many of bytes are whole characters */
    size_t count;          /* STRIP: characters stripped at the start; METASPACE, JOIN: strings before this one */
    size_t trail;          /* STRIP: characters held back that may be at the end */
    bool past;             /* STRIP: past what may be stripped at the start; BYTE_FALLBACK: this string is no byte */
    bool invalid;          /* BYTE_FALLBACK: this run of bytes is not valid */
};

/* Where the text goes: appended to a buffer, or stored in the caller's as far as there is room, and counted. */
struct text_sink {
    struct text_buf *grow;
    char *text;
    size_t cap, n;
};

/* A decoding on its way. */
struct decoding {
    const struct decoder *decoder;
    struct decoder_state states[DECODER_STAGES];
    struct matcher matcher;
    struct text_sink sink;
    size_t n_emitted, limit; /* bytes that stages handed on, and may hand on for the tokens so far */
    bool resumes;            /* the text continues another: nothing is stripped at its start */
    bool raw; /* a token by itself, from the middle of a text: its bytes, valid or not, go straight to the sink */
    perch_error *err;
};

/* Reads the "decoder" of a tokenizer.json. E_FORMAT, E_UNSUPPORTED, E_NOMEM. */
perch_status decoder_parse(const struct jnode *node, struct decoder *out, perch_error *err);
void decoder_free(struct decoder *decoder);
uint64_t decoder_bytes(const struct decoder *decoder);

/* decoder, sink, resumes and raw are set; everything else is zero. err is set before each call. */
void decoding_reset(struct decoding *d);
perch_status decoding_push(struct decoding *d, struct jtext token);
perch_status decoding_finish(struct decoding *d);
void decoding_free(struct decoding *d);

#endif
