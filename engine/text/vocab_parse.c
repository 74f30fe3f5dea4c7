/* vocab_parse: a model's "vocab" and the "added_tokens" become one table. */
#include "engine/text/added.h"
#include "engine/text/vocab.h"

/*
 * The tables are indexed by id, so a file with one huge id could claim any amount of memory. Some real vocabularies
 * have holes; in none are they more than the tokens.
 */
#define HOLES_ALLOWED 1024

struct totals {
    int64_t last; /* the highest id */
    size_t n_tokens, text_bytes;
};

static perch_status count_token(const struct jnode *id, struct jtext text, struct totals *totals, perch_error *err) {
    int64_t number;
    perch_status status = jnode_integer(id, 0, INT32_MAX - 1, &number, err);
    if (status == PERCH_OK) {
        totals->last = number > totals->last ? number : totals->last;
        totals->n_tokens++;
        totals->text_bytes += text.n;
    }
    return status;
}

static perch_status add_model_tokens(const struct jnode *node, struct vocab *out, perch_error *err) {
    for (struct jnode entry = jnode_first(node); entry.value; entry = jnode_next(&entry)) {
        int32_t id = (int32_t)entry.value->as.integer;
        if (out->flags[id]) {
            return jnode_fail(&entry, PERCH_E_FORMAT, err, "another token has the id %d, too", id);
        }
        vocab_add(out, id, jnode_key(&entry), TOKEN_MODEL);
    }
    return PERCH_OK;
}

static perch_status add_added_tokens(const struct jnode *list, struct added *added, struct vocab *out,
                                     perch_error *err) {
    for (struct jnode node = jnode_first(list); node.value; node = jnode_next(&node)) {
        struct added_token *token = &added->tokens[node.index];
        struct jnode id = jnode_get(&node, "id"), content = jnode_get(&node, "content");
        unsigned flags = TOKEN_ADDED | (token->special ? TOKEN_SPECIAL : 0u);
        int32_t there = vocab_find(out, token->content.data, token->content.n);
        if (there != VOCAB_NONE && (out->flags[there] & TOKEN_ADDED)) {
            return jnode_fail(&content, PERCH_E_FORMAT, err, "was added before");
        }
        if (there != VOCAB_NONE && there != token->id) {
            return jnode_fail(&id, PERCH_E_FORMAT, err, "is %d, but the vocabulary has \"%.80s\" as %d", token->id,
                              token->content.data, there);
        }
        if (there == VOCAB_NONE && out->flags[token->id]) {
            return jnode_fail(&id, PERCH_E_FORMAT, err, "another token has the id %d, too", token->id);
        }
        if (there == VOCAB_NONE) {
            vocab_add(out, token->id, token->content, flags);
        } else {
            out->flags[there] = (uint8_t)(out->flags[there] | flags);
        }
        token->content = vocab_text(out, token->id);
    }
    return PERCH_OK;
}

perch_status vocab_parse(const struct jnode *node, const struct jnode *list, struct added *added, struct vocab *out,
                         perch_error *err) {
    struct totals totals = {.last = -1};
    perch_status status = jnode_want_object(node, err);
    for (struct jnode entry = jnode_first(node); entry.value && status == PERCH_OK; entry = jnode_next(&entry)) {
        status = count_token(&entry, jnode_key(&entry), &totals, err);
    }
    for (struct jnode token = jnode_first(list); token.value && status == PERCH_OK; token = jnode_next(&token)) {
        struct jnode id = jnode_get(&token, "id");
        status = count_token(&id, added->tokens[token.index].content, &totals, err);
    }
    if (status != PERCH_OK) {
        return status;
    }
    if (totals.n_tokens == 0) {
        return jnode_fail(node, PERCH_E_FORMAT, err, "has no tokens");
    }
    if ((uint64_t)totals.last >= 2 * (uint64_t)totals.n_tokens + HOLES_ALLOWED) {
        return jnode_fail(node, PERCH_E_FORMAT, err, "ids reach %lld, but there are only %zu tokens",
                          (long long)totals.last, totals.n_tokens);
    }
    if (totals.text_bytes > UINT32_MAX || totals.n_tokens > INT32_MAX / 4) {
        return jnode_fail(node, PERCH_E_FORMAT, err, "has too many tokens");
    }
    status = vocab_init(out, (int32_t)totals.last + 1, totals.n_tokens, totals.text_bytes, err);
    if (status == PERCH_OK) {
        status = add_model_tokens(node, out, err);
    }
    if (status == PERCH_OK) {
        status = add_added_tokens(list, added, out, err);
    }
    if (status != PERCH_OK) {
        vocab_free(out);
    }
    return status;
}
