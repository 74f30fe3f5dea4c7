/* pretokenizer_parse: the pre_tokenizer part of a tokenizer.json becomes a flat list of steps. */
#include "engine/text/pretokenizer.h"

#include <stdlib.h>
#include <string.h>

/* ByteLevel's own expression, GPT-2's. */
static const char gpt2[] = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";
static const char digits[] = "\\p{N}";
static const char punctuation[] = "[!-/:-@\\[-`{-~\\p{P}]";

void pretokenizer_free(struct pretokenizer *pretokenizer) {
    for (size_t i = 0; i < pretokenizer->n; i++) {
        pattern_free(&pretokenizer->steps[i].pattern);
    }
    free(pretokenizer->steps);
    *pretokenizer = (struct pretokenizer){0};
}

uint64_t pretokenizer_bytes(const struct pretokenizer *pretokenizer) {
    uint64_t bytes = pretokenizer->cap * sizeof *pretokenizer->steps;
    for (size_t i = 0; i < pretokenizer->n; i++) {
        bytes += pattern_bytes(&pretokenizer->steps[i].pattern);
    }
    return bytes;
}

static perch_status add_step(struct pretokenizer *out, enum pretokenizer_kind kind, struct pretokenizer_step **step,
                             perch_error *err) {
    void *steps = out->steps;
    perch_status status = array_reserve(&steps, &out->cap, out->n + 1, sizeof *out->steps, err);
    out->steps = steps;
    if (status == PERCH_OK) {
        *step = &out->steps[out->n++];
        **step = (struct pretokenizer_step){.kind = kind};
    }
    return status;
}

/* A Split by an expression of ours. */
static perch_status add_split(const struct jnode *node, const char *expression, enum split_behavior behavior,
                              struct pretokenizer *out, perch_error *err) {
    struct pretokenizer_step *step;
    perch_status status = add_step(out, PRETOKENIZE_SPLIT, &step, err);
    if (status != PERCH_OK) {
        return status;
    }
    step->behavior = behavior;
    return pattern_compile(node, (struct jtext){expression, strlen(expression)}, &step->pattern, err);
}

static perch_status parse_behavior(const struct jnode *node, enum split_behavior *out, perch_error *err) {
    static const char *const names[] = {[SPLIT_REMOVED] = "Removed",
                                        [SPLIT_ISOLATED] = "Isolated",
                                        [SPLIT_WITH_PREVIOUS] = "MergedWithPrevious",
                                        [SPLIT_WITH_NEXT] = "MergedWithNext",
                                        [SPLIT_CONTIGUOUS] = "Contiguous"};
    size_t choice = 0;
    perch_status status = jnode_choice(node, names, sizeof names / sizeof *names, &choice, err);
    *out = (enum split_behavior)choice;
    return status;
}

static perch_status parse_split(const struct jnode *node, struct pretokenizer *out, perch_error *err) {
    struct jnode pattern = jnode_get(node, "pattern"), behavior = jnode_get(node, "behavior");
    struct jnode invert = jnode_get(node, "invert");
    struct pretokenizer_step *step;
    perch_status status = add_step(out, PRETOKENIZE_SPLIT, &step, err);
    if (status == PERCH_OK) {
        status = parse_behavior(&behavior, &step->behavior, err);
    }
    if (status == PERCH_OK) {
        status = jnode_need_bool(&invert, &step->invert, err);
    }
    return status == PERCH_OK ? pattern_parse(&pattern, &step->pattern, err) : status;
}

static perch_status parse_byte_level(const struct jnode *node, struct pretokenizer *out, perch_error *err) {
    struct jnode prefix = jnode_get(node, "add_prefix_space"), regex = jnode_get(node, "use_regex");
    struct pretokenizer_step *step;
    bool add_prefix_space, use_regex;
    perch_status status = jnode_need_bool(&prefix, &add_prefix_space, err);
    if (status == PERCH_OK) {
        status = jnode_bool(&regex, true, &use_regex, err);
    }
    if (status == PERCH_OK && add_prefix_space) {
        status = add_step(out, PRETOKENIZE_SPACE, &step, err);
    }
    if (status == PERCH_OK && use_regex) {
        status = add_split(node, gpt2, SPLIT_ISOLATED, out, err);
    }
    return status == PERCH_OK ? add_step(out, PRETOKENIZE_BYTE_LEVEL, &step, err) : status;
}

static perch_status parse_scheme(const struct jnode *node, enum prepend_scheme *out, perch_error *err) {
    static const char *const names[] = {
        [PREPEND_NEVER] = "never", [PREPEND_FIRST] = "first", [PREPEND_ALWAYS] = "always"};
    size_t choice = PREPEND_ALWAYS;
    perch_status status =
        node->value ? jnode_choice(node, names, sizeof names / sizeof *names, &choice, err) : PERCH_OK;
    *out = (enum prepend_scheme)choice;
    return status;
}

perch_status metaspace_parse(const struct jnode *node, struct jtext *replacement, enum prepend_scheme *prepend,
                             bool *split, perch_error *err) {
    struct jnode character = jnode_get(node, "replacement"), scheme = jnode_get(node, "prepend_scheme");
    struct jnode cut = jnode_get(node, "split"), prefix = jnode_get(node, "add_prefix_space");
    bool add_prefix_space;
    perch_status status = jnode_character(&character, replacement, err);
    if (status == PERCH_OK) {
        status = parse_scheme(&scheme, prepend, err);
    }
    if (status == PERCH_OK) {
        status = jnode_bool(&cut, true, split, err);
    }
    if (status == PERCH_OK) {
        status = jnode_bool(&prefix, true, &add_prefix_space, err);
    }
    if (status == PERCH_OK && !add_prefix_space && *prepend != PREPEND_NEVER) {
        status = jnode_fail(&prefix, PERCH_E_FORMAT, err, "false contradicts prepend_scheme");
    }
    return status;
}

static perch_status parse_metaspace(const struct jnode *node, struct pretokenizer *out, perch_error *err) {
    struct jtext replacement;
    enum prepend_scheme prepend;
    bool split;
    struct pretokenizer_step *step;
    perch_status status = metaspace_parse(node, &replacement, &prepend, &split, err);
    if (status == PERCH_OK) {
        status = add_step(out, PRETOKENIZE_METASPACE, &step, err);
    }
    if (status != PERCH_OK) {
        return status;
    }
    step->prepend = prepend;
    memcpy(step->replacement, replacement.data, replacement.n);
    step->replacement_bytes = replacement.n;
    if (split) {
        status = add_step(out, PRETOKENIZE_SPLIT, &step, err);
        if (status == PERCH_OK) {
            step->behavior = SPLIT_WITH_NEXT;
            status = pattern_literal(replacement, &step->pattern, err);
        }
    }
    return status;
}

static perch_status parse_digits(const struct jnode *node, struct pretokenizer *out, perch_error *err) {
    struct jnode individual = jnode_get(node, "individual_digits");
    bool single;
    perch_status status = jnode_need_bool(&individual, &single, err);
    return status == PERCH_OK ? add_split(node, digits, single ? SPLIT_ISOLATED : SPLIT_CONTIGUOUS, out, err) : status;
}

static perch_status parse_punctuation(const struct jnode *node, struct pretokenizer *out, perch_error *err) {
    struct jnode given = jnode_get(node, "behavior");
    enum split_behavior behavior = SPLIT_ISOLATED;
    perch_status status = given.value ? parse_behavior(&given, &behavior, err) : PERCH_OK;
    return status == PERCH_OK ? add_split(node, punctuation, behavior, out, err) : status;
}

static perch_status add_component(const struct jnode *node, const char *type, void *user, perch_error *err) {
    static const struct {
        const char *type;
        perch_status (*parse)(const struct jnode *node, struct pretokenizer *out, perch_error *err);
    } kinds[] = {{"Split", parse_split},
                 {"ByteLevel", parse_byte_level},
                 {"Metaspace", parse_metaspace},
                 {"Digits", parse_digits},
                 {"Punctuation", parse_punctuation}};
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        if (strcmp(type, kinds[i].type) == 0) {
            return kinds[i].parse(node, user, err);
        }
    }
    return jnode_unknown_type(node, type, err);
}

perch_status pretokenizer_parse(const struct jnode *node, struct pretokenizer *out, perch_error *err) {
    *out = (struct pretokenizer){0};
    perch_status status =
        jnode_absent(node) ? PERCH_OK : jnode_components(node, "pretokenizers", add_component, out, err);
    if (status != PERCH_OK) {
        pretokenizer_free(out);
    }
    return status;
}
