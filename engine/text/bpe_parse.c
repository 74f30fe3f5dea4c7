/* bpe_parse: the model part of a tokenizer.json becomes tables. */
#include "engine/text/bpe.h"
#include "engine/text/utf8.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void bpe_free(struct bpe *bpe) {
    free(bpe->merges);
    free(bpe->joints);
    *bpe = (struct bpe){0};
}

uint64_t bpe_bytes(const struct bpe *bpe) {
    return (bpe->merges ? ((uint64_t)bpe->merge_mask + 1) * sizeof *bpe->merges : 0) +
           (bpe->joints ? ((uint64_t)bpe->joint_mask + 1) * sizeof *bpe->joints : 0);
}

/* Fields that would change the result if they said anything. */
static perch_status refuse_unsupported(const struct jnode *model, perch_error *err) {
    static const char *const affixes[] = {"continuing_subword_prefix", "end_of_word_suffix"};
    struct jnode dropout = jnode_get(model, "dropout");
    if (!jnode_absent(&dropout)) {
        return jnode_fail(&dropout, PERCH_E_UNSUPPORTED, err, "dropout is not supported (only null is)");
    }
    for (size_t i = 0; i < sizeof affixes / sizeof *affixes; i++) {
        struct jnode affix = jnode_get(model, affixes[i]);
        struct jtext text = {"", 0};
        perch_status status = jnode_absent(&affix) ? PERCH_OK : jnode_text(&affix, &text, err);
        if (status != PERCH_OK) {
            return status;
        }
        if (text.n) {
            return jnode_fail(&affix, PERCH_E_UNSUPPORTED, err, "\"%s\" is not supported (only null is)", text.data);
        }
    }
    return PERCH_OK;
}

static perch_status parse_options(const struct jnode *model, const struct vocab *vocab, struct bpe *out,
                                  perch_error *err) {
    struct jnode byte_fallback = jnode_get(model, "byte_fallback"), fuse_unk = jnode_get(model, "fuse_unk");
    struct jnode ignore_merges = jnode_get(model, "ignore_merges"), unk = jnode_get(model, "unk_token");
    bool fallback;
    perch_status status = jnode_bool(&byte_fallback, false, &fallback, err);
    if (status == PERCH_OK) {
        status = jnode_bool(&fuse_unk, false, &out->fuse_unk, err);
    }
    if (status == PERCH_OK) {
        status = jnode_bool(&ignore_merges, false, &out->ignore_merges, err);
    }
    if (status != PERCH_OK) {
        return status;
    }
    for (unsigned byte = 0; byte < 256; byte++) {
        char text[8];
        int n = snprintf(text, sizeof text, "<0x%02X>", byte);
        out->bytes[byte] = fallback ? vocab_find_model(vocab, text, (size_t)n) : VOCAB_NONE;
    }
    if (jnode_absent(&unk)) {
        return PERCH_OK;
    }
    struct jtext text;
    status = jnode_text(&unk, &text, err);
    if (status != PERCH_OK) {
        return status;
    }
    out->unk = vocab_find_model(vocab, text.data, text.n);
    return out->unk != VOCAB_NONE ? PERCH_OK
                                  : jnode_fail(&unk, PERCH_E_FORMAT, err, "\"%s\" is not in the vocabulary", text.data);
}

/* Splits "left right" or ["left", "right"]. */
static perch_status parse_pair(const struct jnode *rule, struct jtext pair[2], perch_error *err) {
    struct jtext text;
    if (jnode_is(rule, JV_ARRAY)) {
        if (rule->value->n != 2) {
            return jnode_fail(rule, PERCH_E_FORMAT, err, "must be a pair of strings");
        }
        struct jnode left = jnode_first(rule), right = jnode_next(&left);
        perch_status status = jnode_text(&left, &pair[0], err);
        return status == PERCH_OK ? jnode_text(&right, &pair[1], err) : status;
    }
    perch_status status = jnode_text(rule, &text, err);
    if (status != PERCH_OK) {
        return status;
    }
    const char *space = memchr(text.data, ' ', text.n);
    size_t left = space ? (size_t)(space - text.data) : 0;
    if (!space || memchr(space + 1, ' ', text.n - left - 1)) {
        return jnode_fail(rule, PERCH_E_FORMAT, err, "must be two tokens with a space between");
    }
    pair[0] = (struct jtext){text.data, left};
    pair[1] = (struct jtext){space + 1, text.n - left - 1};
    return PERCH_OK;
}

static perch_status find_side(const struct jnode *rule, const struct vocab *vocab, struct jtext text, int32_t *id,
                              perch_error *err) {
    *id = vocab_find_model(vocab, text.data, text.n);
    return *id != VOCAB_NONE ? PERCH_OK
                             : jnode_fail(rule, PERCH_E_FORMAT, err, "no token \"%.*s\" in the vocabulary",
                                          (int)(text.n < 80 ? text.n : 80), text.data);
}

/* A pair that is there already takes the later rank. */
static void add_merge(struct bpe *bpe, int32_t left, int32_t right, uint32_t rank, int32_t id) {
    uint64_t pair = (uint64_t)left << 32 | (uint32_t)right;
    size_t slot = bpe_slot(pair, bpe->merge_mask);
    while (bpe->merges[slot].pair != UINT64_MAX && bpe->merges[slot].pair != pair) {
        slot = (slot + 1) & bpe->merge_mask;
    }
    bpe->merges[slot] = (struct bpe_merge){pair, rank, id};
}

/* Notes that a rule joins the last character of left with the first of right; an empty side joins nothing by itself. */
static void add_joint(struct bpe *bpe, struct jtext left, struct jtext right) {
    if (left.n == 0 || right.n == 0) {
        return;
    }
    uint64_t joint = (uint64_t)utf8_code(left.data + utf8_before(left.data, left.n)) << 32 | utf8_code(right.data);
    size_t slot = bpe_slot(joint, bpe->joint_mask);
    while (bpe->joints[slot] != UINT64_MAX && bpe->joints[slot] != joint) {
        slot = (slot + 1) & bpe->joint_mask;
    }
    bpe->joints[slot] = joint;
}

static perch_status parse_rule(const struct jnode *rule, const struct vocab *vocab, uint32_t rank, struct bpe *out,
                               struct text_buf *joined, perch_error *err) {
    struct jtext pair[2] = {{"", 0}, {"", 0}};
    int32_t left, right, id;
    perch_status status = parse_pair(rule, pair, err);
    if (status == PERCH_OK) {
        status = find_side(rule, vocab, pair[0], &left, err);
    }
    if (status == PERCH_OK) {
        status = find_side(rule, vocab, pair[1], &right, err);
    }
    joined->n = 0;
    if (status == PERCH_OK) {
        status = buf_append(joined, pair[0].data, pair[0].n, err);
    }
    if (status == PERCH_OK) {
        status = buf_append(joined, pair[1].data, pair[1].n, err);
    }
    if (status == PERCH_OK) {
        status = find_side(rule, vocab, (struct jtext){joined->data ? joined->data : "", joined->n}, &id, err);
    }
    if (status == PERCH_OK) {
        add_merge(out, left, right, rank, id);
        add_joint(out, pair[0], pair[1]);
    }
    return status;
}

static perch_status parse_merges(const struct jnode *merges, const struct vocab *vocab, struct bpe *out,
                                 perch_error *err) {
    static const char version[] = "#version";
    size_t slots = 16;
    perch_status status = jnode_want_array(merges, err);
    if (status != PERCH_OK) {
        return status;
    }
    while (slots < 2 * (size_t)merges->value->n) {
        slots *= 2;
    }
    out->merge_mask = out->joint_mask = slots - 1;
    out->merges = malloc(slots * sizeof *out->merges);
    out->joints = malloc(slots * sizeof *out->joints);
    if (!out->merges || !out->joints) {
        return err_nomem(err, "merge rules");
    }
    for (size_t i = 0; i < slots; i++) {
        out->merges[i].pair = UINT64_MAX;
        out->joints[i] = UINT64_MAX;
    }
    struct text_buf joined = {0};
    uint32_t rank = 0;
    for (struct jnode rule = jnode_first(merges); rule.value && status == PERCH_OK; rule = jnode_next(&rule)) {
        /* A heading that old files carried over from merges.txt. */
        if (!jnode_is(&rule, JV_STRING) || strncmp(rule.value->as.string, version, sizeof version - 1) != 0) {
            status = parse_rule(&rule, vocab, rank++, out, &joined, err);
        }
    }
    free(joined.data);
    return status;
}

perch_status bpe_parse(const struct jnode *model, const struct vocab *vocab, struct bpe *out, perch_error *err) {
    *out = (struct bpe){.unk = VOCAB_NONE};
    struct jnode merges = jnode_get(model, "merges");
    perch_status status = refuse_unsupported(model, err);
    if (status == PERCH_OK) {
        status = parse_options(model, vocab, out, err);
    }
    if (status == PERCH_OK) {
        status = parse_merges(&merges, vocab, out, err);
    }
    if (status != PERCH_OK) {
        bpe_free(out);
    }
    return status;
}
