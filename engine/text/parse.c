/* parse: the texts of tokenizer.json and tokenizer_config.json become a perch_tokenizer. */
#include "engine/text/tokenizer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Fields of the top that must say nothing. */
static perch_status check_top(const struct jnode *top, perch_error *err) {
    static const char *const refused[] = {"truncation", "padding"};
    struct jnode version = jnode_get(top, "version");
    struct jtext text = {"1.0", 3};
    perch_status status = jnode_absent(&version) ? PERCH_OK : jnode_text(&version, &text, err);
    if (status == PERCH_OK && strcmp(text.data, "1.0") != 0) {
        return jnode_fail(&version, PERCH_E_UNSUPPORTED, err, "\"%.20s\" is not supported (only 1.0 is)", text.data);
    }
    for (size_t i = 0; i < sizeof refused / sizeof *refused && status == PERCH_OK; i++) {
        struct jnode node = jnode_get(top, refused[i]);
        if (!jnode_absent(&node)) {
            status = jnode_fail(&node, PERCH_E_UNSUPPORTED, err, "%s is not supported (only null is)", refused[i]);
        }
    }
    return status;
}

/* Old files do not say that a model with merges is BPE. */
static perch_status check_model(const struct jnode *model, perch_error *err) {
    perch_status status = jnode_want_object(model, err);
    struct jnode type = jnode_get(model, "type"), merges = jnode_get(model, "merges");
    if (status == PERCH_OK && !type.value && merges.value) {
        return PERCH_OK;
    }
    struct jtext name = {"", 0};
    if (status == PERCH_OK) {
        status = jnode_text(&type, &name, err);
    }
    return status == PERCH_OK && strcmp(name.data, "BPE") != 0 ? jnode_unknown_type(model, name.data, err) : status;
}

/* What each token adds to a text that it stands in the middle of. */
static perch_status make_pieces(perch_tokenizer *t, perch_error *err) {
    struct decoding d = {
        .decoder = &t->decoder, .sink = {.grow = &t->pieces}, .resumes = true, .raw = true, .err = err};
    perch_status status = PERCH_OK;
    t->piece_ends = malloc((size_t)t->vocab.n * sizeof *t->piece_ends);
    if (!t->piece_ends) {
        return err_nomem(err, "a vocabulary");
    }
    for (int32_t id = 0; id < t->vocab.n && status == PERCH_OK; id++) {
        if (t->vocab.flags[id] && !(t->vocab.flags[id] & TOKEN_SPECIAL)) {
            status = decoding_push(&d, vocab_text(&t->vocab, id));
        }
        if (status == PERCH_OK) {
            status = decoding_finish(&d);
        }
        decoding_reset(&d);
        if (status == PERCH_OK && t->pieces.n > UINT32_MAX) {
            status = err_set(err, PERCH_E_UNSUPPORTED, "the decoder makes the tokens' texts too long");
        }
        t->piece_ends[id] = (uint32_t)t->pieces.n;
    }
    decoding_free(&d);
    return status;
}

static perch_status parse_top(const struct jnode *top, perch_tokenizer *t, bool *has_template, perch_error *err) {
    struct jnode model = jnode_get(top, "model"), vocab = jnode_get(&model, "vocab");
    struct jnode added = jnode_get(top, "added_tokens"), normalizer = jnode_get(top, "normalizer");
    struct jnode pretokenizer = jnode_get(top, "pre_tokenizer"), decoder = jnode_get(top, "decoder");
    struct jnode post_processor = jnode_get(top, "post_processor");
    perch_status status = check_top(top, err);
    if (status == PERCH_OK) {
        status = check_model(&model, err);
    }
    if (status == PERCH_OK) {
        status = added_parse(&added, &t->added, err);
    }
    if (status == PERCH_OK) {
        status = vocab_parse(&vocab, &added, &t->added, &t->vocab, err);
    }
    if (status == PERCH_OK) {
        status = bpe_parse(&model, &t->vocab, &t->bpe, err);
    }
    if (status == PERCH_OK) {
        status = normalizer_parse(&normalizer, &t->normalizer, err);
    }
    if (status == PERCH_OK) {
        status = added_index(&t->added, &t->normalizer, &added, err);
    }
    if (status == PERCH_OK) {
        status = pretokenizer_parse(&pretokenizer, &t->pretokenizer, err);
    }
    if (status == PERCH_OK) {
        status = template_parse(&post_processor, &t->vocab, &t->around, has_template, err);
    }
    if (status == PERCH_OK) {
        status = decoder_parse(&decoder, &t->decoder, err);
    }
    return status == PERCH_OK ? make_pieces(t, err) : status;
}

/* A token that the configuration names: a string, an object with "content", or null. */
static perch_status find_named(const struct jnode *config, const char *key, const perch_tokenizer *t, int32_t *out,
                               perch_error *err) {
    struct jnode node = jnode_get(config, key), content = jnode_get(&node, "content");
    const struct jnode *named = jnode_is(&node, JV_OBJECT) ? &content : &node;
    struct jtext text;
    *out = VOCAB_NONE;
    if (jnode_absent(&node)) {
        return PERCH_OK;
    }
    perch_status status = jnode_text(named, &text, err);
    if (status == PERCH_OK) {
        *out = vocab_find(&t->vocab, text.data, text.n);
    }
    return status != PERCH_OK || *out != VOCAB_NONE
               ? status
               : jnode_fail(named, PERCH_E_FORMAT, err, "the tokenizer has no \"%.80s\"", text.data);
}

/* A template is a string, or one of several: then that named "default". */
static perch_status parse_chat(const struct jnode *config, perch_tokenizer *t, perch_error *err) {
    struct jnode node = jnode_get(config, "chat_template");
    struct jtext text;
    if (jnode_absent(&node)) {
        return PERCH_OK;
    }
    if (!jnode_is(&node, JV_ARRAY)) {
        perch_status status = jnode_text(&node, &text, err);
        return status == PERCH_OK ? chat_detect(text, &t->chat, err) : status;
    }
    for (struct jnode entry = jnode_first(&node); entry.value; entry = jnode_next(&entry)) {
        struct jnode name = jnode_get(&entry, "name"), body = jnode_get(&entry, "template");
        perch_status status = jnode_text(&name, &text, err);
        if (status == PERCH_OK && strcmp(text.data, "default") == 0) {
            status = jnode_text(&body, &text, err);
            return status == PERCH_OK ? chat_detect(text, &t->chat, err) : status;
        }
        if (status != PERCH_OK) {
            return status;
        }
    }
    t->chat.kind = CHAT_UNKNOWN;
    return PERCH_OK;
}

/* Without a post_processor the configuration says what is put around a text. */
static perch_status add_around(const struct jnode *config, const char *key, int32_t id, int32_t **ids, size_t *n,
                               perch_error *err) {
    struct jnode node = jnode_get(config, key);
    bool wanted;
    perch_status status = jnode_bool(&node, false, &wanted, err);
    if (status != PERCH_OK || !wanted) {
        return status;
    }
    if (id == VOCAB_NONE) {
        return jnode_fail(&node, PERCH_E_FORMAT, err, "is true, but the token is not named");
    }
    *ids = malloc(sizeof **ids);
    if (!*ids) {
        return err_nomem(err, "a template");
    }
    **ids = id;
    *n = 1;
    return PERCH_OK;
}

static perch_status parse_config(const struct jnode *config, perch_tokenizer *t, bool has_template, perch_error *err) {
    perch_status status = find_named(config, "bos_token", t, &t->bos, err);
    if (status == PERCH_OK) {
        status = find_named(config, "eos_token", t, &t->eos, err);
    }
    if (status == PERCH_OK && !has_template) {
        status = add_around(config, "add_bos_token", t->bos, &t->around.before, &t->around.n_before, err);
    }
    if (status == PERCH_OK && !has_template) {
        status = add_around(config, "add_eos_token", t->eos, &t->around.behind, &t->around.n_behind, err);
    }
    return status == PERCH_OK ? parse_chat(config, t, err) : status;
}

static perch_status parse_config_text(const char *json, size_t n_bytes, const char *name, perch_tokenizer *t,
                                      bool has_template, perch_error *err) {
    char config_name[PERCH_PATH_CAP + 32];
    jv_doc doc;
    snprintf(config_name, sizeof config_name, "%s (tokenizer_config.json)", name);
    perch_status status = jv_parse(json, n_bytes, config_name, &doc, err);
    if (status == PERCH_OK) {
        struct jnode config = jnode_top(&doc, config_name);
        status = jnode_want_object(&config, err);
        if (status == PERCH_OK) {
            status = parse_config(&config, t, has_template, err);
        }
    }
    jv_free(&doc);
    return status;
}

perch_status tokenizer_parse(const char *json, size_t n_bytes, const char *config_json, size_t n_config_bytes,
                             const char *name, perch_tokenizer **out, perch_error *err) {
    jv_doc doc;
    bool has_template = false;
    *out = NULL;
    perch_tokenizer *t = calloc(1, sizeof *t);
    if (!t) {
        return err_nomem(err, "a tokenizer");
    }
    t->bos = t->eos = VOCAB_NONE;
    perch_status status = jv_parse(json, n_bytes, name, &doc, err);
    if (status == PERCH_OK) {
        struct jnode top = jnode_top(&doc, name);
        status = jnode_want_object(&top, err);
        if (status == PERCH_OK) {
            status = parse_top(&top, t, &has_template, err);
        }
    }
    jv_free(&doc);
    if (status == PERCH_OK && config_json) {
        status = parse_config_text(config_json, n_config_bytes, name, t, has_template, err);
    }
    if (status == PERCH_OK && has_template && t->around.n_before) {
        t->bos = t->around.before[0];
    }
    if (status != PERCH_OK) {
        perch_tokenizer_destroy(t);
        return status;
    }
    *out = t;
    return PERCH_OK;
}

void perch_tokenizer_destroy(perch_tokenizer *tokenizer) {
    if (tokenizer) {
        vocab_free(&tokenizer->vocab);
        bpe_free(&tokenizer->bpe);
        added_free(&tokenizer->added);
        normalizer_free(&tokenizer->normalizer);
        pretokenizer_free(&tokenizer->pretokenizer);
        decoder_free(&tokenizer->decoder);
        template_free(&tokenizer->around);
        chat_free(&tokenizer->chat);
        free(tokenizer->pieces.data);
        free(tokenizer->piece_ends);
        free(tokenizer);
    }
}
