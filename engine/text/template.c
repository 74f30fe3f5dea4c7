/* template: the post_processor of a tokenizer.json, which puts BOS and EOS around a text. */
#include "engine/text/tokenizer.h"

#include <stdlib.h>
#include <string.h>

void template_free(struct text_template *around) {
    free(around->before);
    free(around->behind);
    *around = (struct text_template){0};
}

/* Appends the ids of a {"SpecialToken": {"id": name}} piece, which special_tokens lists under its name. */
static perch_status add_special(const struct jnode *special, const struct jnode *table, const struct vocab *vocab,
                                int32_t **ids, size_t *n_ids, perch_error *err) {
    struct jnode id = jnode_get(special, "id");
    struct jtext name;
    perch_status status = jnode_text(&id, &name, err);
    if (status != PERCH_OK) {
        return status;
    }
    struct jnode entry = jnode_get(table, name.data), list = jnode_get(&entry, "ids");
    if (!entry.value) {
        return jnode_fail(&id, PERCH_E_FORMAT, err, "special_tokens has no \"%.80s\"", name.data);
    }
    status = jnode_want_array(&list, err);
    if (status != PERCH_OK || list.value->n == 0) {
        return status;
    }
    int32_t *grown = realloc(*ids, (*n_ids + list.value->n) * sizeof **ids);
    if (!grown) {
        return err_nomem(err, "a template");
    }
    *ids = grown;
    for (struct jnode node = jnode_first(&list); node.value; node = jnode_next(&node)) {
        int64_t value;
        status = jnode_integer(&node, 0, vocab->n - 1, &value, err);
        if (status == PERCH_OK && !vocab->flags[value]) {
            status = jnode_fail(&node, PERCH_E_FORMAT, err, "no token has the id %lld", (long long)value);
        }
        if (status != PERCH_OK) {
            return status;
        }
        (*ids)[(*n_ids)++] = (int32_t)value;
    }
    return PERCH_OK;
}

static perch_status parse_single(const struct jnode *node, const struct vocab *vocab, struct text_template *out,
                                 perch_error *err) {
    struct jnode single = jnode_get(node, "single"), table = jnode_get(node, "special_tokens");
    bool seen = false;
    perch_status status = jnode_want_array(&single, err);
    for (struct jnode piece = jnode_first(&single); piece.value && status == PERCH_OK; piece = jnode_next(&piece)) {
        struct jnode special = jnode_get(&piece, "SpecialToken"), sequence = jnode_get(&piece, "Sequence");
        if (special.value) {
            status = seen ? add_special(&special, &table, vocab, &out->behind, &out->n_behind, err)
                          : add_special(&special, &table, vocab, &out->before, &out->n_before, err);
            continue;
        }
        struct jnode id = jnode_get(&sequence, "id");
        struct jtext name;
        status = jnode_text(&id, &name, err);
        if (status == PERCH_OK && (seen || strcmp(name.data, "A") != 0)) {
            status = jnode_fail(&id, PERCH_E_FORMAT, err, "a single template has the sequence A once");
        }
        seen = true;
    }
    if (status == PERCH_OK && !seen) {
        status = jnode_fail(&single, PERCH_E_FORMAT, err, "a single template has the sequence A once");
    }
    return status;
}

/* What the post-processor's components go into. */
struct target {
    const struct vocab *vocab;
    struct text_template *out;
    bool seen; /* a template */
};

static perch_status add_component(const struct jnode *node, const char *type, void *user, perch_error *err) {
    struct target *target = user;
    if (strcmp(type, "ByteLevel") == 0) {
        return PERCH_OK; /* moves offsets, which perch does not have; ids stay */
    }
    if (strcmp(type, "TemplateProcessing") != 0) {
        return jnode_unknown_type(node, type, err);
    }
    if (target->seen) {
        return jnode_fail(node, PERCH_E_UNSUPPORTED, err, "a second template is not supported");
    }
    target->seen = true;
    return parse_single(node, target->vocab, target->out, err);
}

perch_status template_parse(const struct jnode *node, const struct vocab *vocab, struct text_template *out, bool *given,
                            perch_error *err) {
    struct target target = {.vocab = vocab, .out = out};
    *out = (struct text_template){0};
    *given = !jnode_absent(node);
    perch_status status = *given ? jnode_components(node, "processors", add_component, &target, err) : PERCH_OK;
    if (status != PERCH_OK) {
        template_free(out);
    }
    return status;
}
