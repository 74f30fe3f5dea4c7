/* decoder_parse: the decoder part of a tokenizer.json becomes a list of stages. */
#include "engine/text/decoder.h"

#include <stdlib.h>
#include <string.h>

#define MAX_STRIP 1024

void decoder_free(struct decoder *decoder) {
    for (size_t i = 0; i < decoder->n; i++) {
        pattern_free(&decoder->stages[i].pattern);
        free(decoder->stages[i].content);
    }
    *decoder = (struct decoder){0};
}

uint64_t decoder_bytes(const struct decoder *decoder) {
    uint64_t bytes = 0;
    for (size_t i = 0; i < decoder->n; i++) {
        bytes += pattern_bytes(&decoder->stages[i].pattern) + decoder->stages[i].content_bytes;
    }
    return bytes;
}

static perch_status parse_replace(const struct jnode *node, struct decoder_stage *stage, perch_error *err) {
    struct jnode pattern = jnode_get(node, "pattern"), content = jnode_get(node, "content");
    perch_status status = pattern_parse(&pattern, &stage->pattern, err);
    return status == PERCH_OK ? jnode_copy(&content, &stage->content, &stage->content_bytes, err) : status;
}

static perch_status parse_strip(const struct jnode *node, struct decoder_stage *stage, perch_error *err) {
    struct jnode content = jnode_get(node, "content"), start = jnode_get(node, "start"), stop = jnode_get(node, "stop");
    struct jtext text;
    int64_t counts[2] = {0, 0};
    perch_status status = jnode_character(&content, &text, err);
    if (status == PERCH_OK) {
        status = jnode_integer(&start, 0, MAX_STRIP, &counts[0], err);
    }
    if (status == PERCH_OK) {
        status = jnode_integer(&stop, 0, MAX_STRIP, &counts[1], err);
    }
    if (status == PERCH_OK) {
        memcpy(stage->character, text.data, text.n);
        stage->character_bytes = text.n;
        stage->start = (size_t)counts[0];
        stage->stop = (size_t)counts[1];
    }
    return status;
}

static perch_status parse_metaspace(const struct jnode *node, struct decoder_stage *stage, perch_error *err) {
    struct jtext replacement;
    enum prepend_scheme prepend;
    bool split;
    perch_status status = metaspace_parse(node, &replacement, &prepend, &split, err);
    if (status == PERCH_OK) {
        memcpy(stage->character, replacement.data, replacement.n);
        stage->character_bytes = replacement.n;
        stage->drop_first = prepend != PREPEND_NEVER;
    }
    return status;
}

static perch_status parse_stage(const struct jnode *node, const char *type, struct decoder_stage *stage,
                                perch_error *err) {
    static const struct {
        const char *type;
        enum decoder_kind kind;
        perch_status (*parse)(const struct jnode *node, struct decoder_stage *stage, perch_error *err);
    } kinds[] = {{"Replace", DECODE_REPLACE, parse_replace},
                 {"ByteFallback", DECODE_BYTE_FALLBACK, NULL},
                 {"Fuse", DECODE_FUSE, NULL},
                 {"Strip", DECODE_STRIP, parse_strip},
                 {"ByteLevel", DECODE_BYTE_LEVEL, NULL},
                 {"Metaspace", DECODE_METASPACE, parse_metaspace}};
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        if (strcmp(type, kinds[i].type) == 0) {
            stage->kind = kinds[i].kind;
            return kinds[i].parse ? kinds[i].parse(node, stage, err) : PERCH_OK;
        }
    }
    return jnode_unknown_type(node, type, err);
}

static perch_status add_stage(const struct jnode *node, const char *type, void *user, perch_error *err) {
    struct decoder *out = user;
    if (out->n == DECODER_STAGES) {
        return jnode_fail(node, PERCH_E_UNSUPPORTED, err, "more than %u decoders", DECODER_STAGES);
    }
    struct decoder_stage *stage = &out->stages[out->n++];
    return parse_stage(node, type, stage, err);
}

perch_status decoder_parse(const struct jnode *node, struct decoder *out, perch_error *err) {
    *out = (struct decoder){0};
    if (jnode_absent(node)) {
        out->stages[out->n++].kind = DECODE_JOIN;
        return PERCH_OK;
    }
    perch_status status = jnode_components(node, "decoders", add_stage, out, err);
    bool whole = false;
    for (size_t i = 0; i < out->n; i++) {
        out->stages[i].whole = whole;
        whole = whole || out->stages[i].kind == DECODE_FUSE || out->stages[i].kind == DECODE_BYTE_LEVEL;
    }
    if (status != PERCH_OK) {
        decoder_free(out);
    }
    return status;
}
