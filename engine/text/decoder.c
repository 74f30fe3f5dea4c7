/* decoder: the stages' machines. emit() hands a piece to the next stage, or to the sink behind the last. */
#include "engine/text/decoder.h"
#include "engine/text/byte_level.h"

#include <stdlib.h>
#include <string.h>

#define BYTE_TOKEN_BYTES 6u /* <0xE2> */

static perch_status push(struct decoding *d, size_t at, const char *text, size_t n, bool end);

static perch_status put_sink(struct decoding *d, const char *text, size_t n) {
    struct text_sink *sink = &d->sink;
    if (sink->grow) {
        return buf_append(sink->grow, text, n, d->err);
    }
    if (sink->n < sink->cap && n) {
        memcpy(sink->text + sink->n, text, n < sink->cap - sink->n ? n : sink->cap - sink->n);
    }
    sink->n += n;
    return PERCH_OK;
}

static perch_status emit(struct decoding *d, size_t at, const char *text, size_t n, bool end) {
    if (n == 0 && !end) {
        return PERCH_OK;
    }
    d->n_emitted += n;
    if (d->n_emitted > d->limit) {
        return err_set(d->err, PERCH_E_UNSUPPORTED, "the tokenizer's decoder makes the text too long");
    }
    return at + 1 < d->decoder->n ? push(d, at + 1, text, n, end) : put_sink(d, text, n);
}

/* Replaces in text[n], of which the string's end is known or not; *used is how much of it is handed on. */
static perch_status replace(struct decoding *d, size_t at, const char *text, size_t n, bool end, size_t *used) {
    const struct decoder_stage *stage = &d->decoder->stages[at];
    struct match_scan scan = match_begin(&stage->pattern, &d->matcher, text, n);
    struct match match;
    bool found;
    perch_status status;
    *used = 0;
    while ((status = match_next(&scan, &found, &match, d->err)) == PERCH_OK && found) {
        status = emit(d, at, text + *used, match.start - *used, false);
        if (status == PERCH_OK) {
            status = emit(d, at, stage->content, stage->content_bytes, false);
        }
        if (status != PERCH_OK) {
            return status;
        }
        *used = match.end;
    }
    if (status != PERCH_OK) {
        return status;
    }
    size_t keep = end ? 0 : stage->pattern.literal_bytes - 1;
    size_t cut = n - *used > keep ? n - keep : *used;
    while (cut > *used && cut < n && ((unsigned char)text[cut] & 0xC0) == 0x80) {
        cut--;
    }
    status = emit(d, at, text + *used, cut - *used, end);
    *used = cut;
    return status;
}

static perch_status push_replace(struct decoding *d, size_t at, const char *text, size_t n, bool end) {
    struct decoder_state *state = &d->states[at];
    size_t used;
    if (end && state->held.n == 0) {
        return replace(d, at, text, n, true, &used);
    }
    perch_status status = buf_append(&state->held, text, n, d->err);
    /* An expression may match anything until the string has ended; a literal can't reach farther than it is long. */
    if (status != PERCH_OK || (!end && !d->decoder->stages[at].pattern.literal)) {
        return status;
    }
    status = replace(d, at, state->held.data, state->held.n, end, &used);
    if (used) {
        memmove(state->held.data, state->held.data + used, state->held.n - used);
        state->held.n -= used;
    }
    return status;
}

/* The byte of <0xE2>, or -1. As in Rust's number parser, a sign and one digit will do as well. */
static int byte_of(const struct text_buf *token) {
    static const char hex[] = "00112233445566778899aAbBcCdDeEfF";
    if (token->n != BYTE_TOKEN_BYTES || memcmp(token->data, "<0x", 3) != 0 || token->data[5] != '>') {
        return -1;
    }
    const char *high = token->data[3] == '+' ? hex : memchr(hex, token->data[3], sizeof hex - 1);
    const char *low = memchr(hex, token->data[4], sizeof hex - 1);
    return high && low ? (int)((high - hex) / 2 * 16 + (low - hex) / 2) : -1;
}

/* Hands n times U+FFFD on, each a string. */
static perch_status emit_invalid(struct decoding *d, size_t at, size_t n) {
    perch_status status = PERCH_OK;
    for (size_t i = 0; i < n && status == PERCH_OK; i++) {
        status = emit(d, at, UTF8_REPLACEMENT, UTF8_REPLACEMENT_BYTES, true);
    }
    return status;
}

static perch_status add_byte(struct decoding *d, size_t at, char byte) {
    struct decoder_state *state = &d->states[at];
    if (d->raw) {
        return put_sink(d, &byte, 1);
    }
    if (state->invalid) {
        return emit_invalid(d, at, 1);
    }
    perch_status status = buf_append(&state->bytes, &byte, 1, d->err);
    uint32_t code;
    int step = 1;
    while (status == PERCH_OK && step > 0) {
        step = utf8_step(state->bytes.data + state->checked, state->bytes.n - state->checked, &code);
        state->checked += step > 0 ? (size_t)step : 0;
    }
    if (status == PERCH_OK && step < 0) {
        /* Nothing that follows can mend the run. */
        state->invalid = true;
        status = emit_invalid(d, at, state->bytes.n);
        state->bytes.n = 0;
    }
    return status;
}

/* A run of bytes is over: it is one string if it is valid. */
static perch_status end_run(struct decoding *d, size_t at) {
    struct decoder_state *state = &d->states[at];
    size_t n = state->bytes.n, checked = state->checked;
    state->bytes.n = state->checked = 0;
    state->invalid = false;
    return checked == n ? n ? emit(d, at, state->bytes.data, n, true) : PERCH_OK : emit_invalid(d, at, n);
}

static perch_status push_byte_fallback(struct decoding *d, size_t at, const char *text, size_t n, bool end) {
    struct decoder_state *state = &d->states[at];
    perch_status status = PERCH_OK;
    if (!state->past) {
        if (n <= BYTE_TOKEN_BYTES - state->held.n) {
            status = buf_append(&state->held, text, n, d->err);
            if (status != PERCH_OK || !end) {
                return status;
            }
            n = 0;
            int byte = byte_of(&state->held);
            if (byte >= 0) {
                state->held.n = 0;
                return add_byte(d, at, (char)byte);
            }
        }
        state->past = true;
        status = end_run(d, at);
        if (status == PERCH_OK) {
            status = emit(d, at, state->held.data, state->held.n, false);
        }
        state->held.n = 0;
    }
    state->past = !end;
    return status == PERCH_OK ? emit(d, at, text, n, end) : status;
}

/* Hands on characters that were held back as they might have been at the end. */
static perch_status emit_trail(struct decoding *d, size_t at, size_t n) {
    const struct decoder_stage *stage = &d->decoder->stages[at];
    perch_status status = PERCH_OK;
    for (size_t i = 0; i < n && status == PERCH_OK; i++) {
        status = emit(d, at, stage->character, stage->character_bytes, false);
    }
    return status;
}

static bool is_at(const struct decoder_stage *stage, const char *text) {
    return utf8_length(*text) == stage->character_bytes && memcmp(text, stage->character, stage->character_bytes) == 0;
}

static perch_status push_strip(struct decoding *d, size_t at, const char *text, size_t n, bool end) {
    const struct decoder_stage *stage = &d->decoder->stages[at];
    struct decoder_state *state = &d->states[at];
    /* A piece from the middle of a text has neither its start nor its end. */
    size_t start = stage->whole && d->resumes ? 0 : stage->start, stop = stage->whole && d->raw ? 0 : stage->stop;
    size_t from = 0;
    perch_status status = PERCH_OK;
    for (size_t i = 0; i < n && status == PERCH_OK && !(state->past && stop == 0); i += utf8_length(text[i])) {
        bool is = is_at(stage, text + i);
        if (!state->past && is && state->count < start) {
            state->count++;
            from = i + stage->character_bytes;
            continue;
        }
        state->past = true;
        if (is && stop > 0) {
            status = emit(d, at, text + from, i - from, false);
            from = i + stage->character_bytes;
            if (state->trail < stop) {
                state->trail++;
            } else if (status == PERCH_OK) {
                status = emit_trail(d, at, 1);
            }
        } else if (state->trail) {
            status = emit_trail(d, at, state->trail);
            state->trail = 0;
        }
    }
    if (status == PERCH_OK) {
        status = emit(d, at, text + from, n - from, end);
    }
    if (end) {
        state->past = false;
        state->count = state->trail = 0;
    }
    return status;
}

static perch_status push_metaspace(struct decoding *d, size_t at, const char *text, size_t n, bool end) {
    const struct decoder_stage *stage = &d->decoder->stages[at];
    struct decoder_state *state = &d->states[at];
    bool drop = stage->drop_first && state->count == 0 && !d->resumes;
    size_t from = 0;
    perch_status status = PERCH_OK;
    for (size_t i = 0; i < n && status == PERCH_OK; i += utf8_length(text[i])) {
        if (is_at(stage, text + i)) {
            status = emit(d, at, text + from, i - from, false);
            if (status == PERCH_OK && !drop) {
                status = emit(d, at, " ", 1, false);
            }
            from = i + stage->character_bytes;
        }
    }
    state->count += end;
    return status == PERCH_OK ? emit(d, at, text + from, n - from, end) : status;
}

/* Appends the bytes of a string that is all of the byte-level alphabet; of any other, its own. */
static perch_status spell_out(struct decoding *d, struct text_buf *bytes, const char *text, size_t n) {
    size_t before = bytes->n;
    perch_status status = buf_reserve(bytes, n, d->err);
    for (size_t i = 0; i < n && status == PERCH_OK; i += utf8_length(text[i])) {
        int byte = byte_level_byte(utf8_code(text + i));
        if (byte < 0) {
            bytes->n = before;
            return buf_append(bytes, text, n, d->err);
        }
        bytes->data[bytes->n++] = (char)byte;
    }
    return status;
}

/* Hands on what is text by now. Where it is not valid, the longest piece that might have been is one U+FFFD. */
static perch_status emit_valid(struct decoding *d, size_t at, struct text_buf *bytes) {
    size_t from = 0, i = 0;
    uint32_t code;
    perch_status status = PERCH_OK;
    if (d->raw) {
        status = put_sink(d, bytes->data, bytes->n);
        bytes->n = 0;
        return status;
    }
    for (int step; status == PERCH_OK && (step = utf8_step(bytes->data + i, bytes->n - i, &code)) != 0;) {
        if (step > 0) {
            i += (size_t)step;
            continue;
        }
        status = emit(d, at, bytes->data + from, i - from, false);
        if (status == PERCH_OK) {
            status = emit(d, at, UTF8_REPLACEMENT, UTF8_REPLACEMENT_BYTES, false);
        }
        from = i += (size_t)-step;
    }
    if (status == PERCH_OK) {
        status = emit(d, at, bytes->data + from, i - from, false);
    }
    if (i) {
        memmove(bytes->data, bytes->data + i, bytes->n - i);
        bytes->n -= i;
    }
    return status;
}

static perch_status push_byte_level(struct decoding *d, size_t at, const char *text, size_t n, bool end) {
    struct decoder_state *state = &d->states[at];
    perch_status status = PERCH_OK;
    if (!end || state->held.n) {
        status = buf_append(&state->held, text, n, d->err);
        if (status != PERCH_OK || !end) {
            return status;
        }
        text = state->held.data;
        n = state->held.n;
    }
    if (n == 0) {
        return PERCH_OK;
    }
    status = spell_out(d, &state->bytes, text, n);
    state->held.n = 0;
    return status == PERCH_OK ? emit_valid(d, at, &state->bytes) : status;
}

static perch_status push_join(struct decoding *d, size_t at, const char *text, size_t n, bool end) {
    struct decoder_state *state = &d->states[at];
    perch_status status = state->count || d->resumes ? emit(d, at, " ", 1, false) : PERCH_OK;
    state->count += end;
    return status == PERCH_OK ? emit(d, at, text, n, end) : status;
}

static perch_status push(struct decoding *d, size_t at, const char *text, size_t n, bool end) {
    switch (d->decoder->stages[at].kind) {
    case DECODE_REPLACE:
        return push_replace(d, at, text, n, end);
    case DECODE_BYTE_FALLBACK:
        return push_byte_fallback(d, at, text, n, end);
    case DECODE_FUSE:
        return emit(d, at, text, n, false);
    case DECODE_STRIP:
        return push_strip(d, at, text, n, end);
    case DECODE_BYTE_LEVEL:
        return push_byte_level(d, at, text, n, end);
    case DECODE_METASPACE:
        return push_metaspace(d, at, text, n, end);
    case DECODE_JOIN:
        return push_join(d, at, text, n, end);
    }
    return PERCH_OK;
}

/* There are no more strings for a stage. */
static perch_status finish(struct decoding *d, size_t at) {
    struct decoder_state *state = &d->states[at];
    perch_status status = PERCH_OK;
    switch (d->decoder->stages[at].kind) {
    case DECODE_BYTE_FALLBACK:
        return end_run(d, at);
    case DECODE_BYTE_LEVEL:
        if (state->bytes.n) {
            state->bytes.n = 0;
            status = emit(d, at, UTF8_REPLACEMENT, UTF8_REPLACEMENT_BYTES, false);
        }
        return status == PERCH_OK ? emit(d, at, "", 0, true) : status;
    case DECODE_FUSE:
        return emit(d, at, "", 0, true);
    default:
        return PERCH_OK;
    }
}

void decoding_reset(struct decoding *d) {
    for (size_t i = 0; i < d->decoder->n; i++) {
        struct decoder_state *state = &d->states[i];
        struct text_buf held = state->held, bytes = state->bytes;
        held.n = bytes.n = 0;
        *state = (struct decoder_state){.held = held, .bytes = bytes};
    }
    d->n_emitted = d->limit = 0;
}

perch_status decoding_push(struct decoding *d, struct jtext token) {
    d->limit += text_limit(token.n);
    return d->decoder->n ? push(d, 0, token.data, token.n, true) : put_sink(d, token.data, token.n);
}

perch_status decoding_finish(struct decoding *d) {
    perch_status status = PERCH_OK;
    d->limit += text_limit(0);
    for (size_t i = 0; i < d->decoder->n && status == PERCH_OK; i++) {
        status = finish(d, i);
    }
    return status;
}

void decoding_free(struct decoding *d) {
    for (size_t i = 0; i < DECODER_STAGES; i++) {
        free(d->states[i].held.data);
        free(d->states[i].bytes.data);
    }
    matcher_free(&d->matcher);
}
