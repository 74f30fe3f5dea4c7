/* added: a trie of added tokens, and the cutting of a text at them. */
#include "engine/text/added.h"

#include <stdlib.h>
#include <string.h>

#define NO_TOKEN UINT32_MAX

struct added_node {
    uint32_t child;   /* the first, 0: none */
    uint32_t sibling; /* the next child of the same parent, 0: none */
    uint32_t token;   /* index of the token that ends here, or NO_TOKEN */
    unsigned char byte;
};

/* A word character as the regular expressions of the tokenizers library have it. */
static const char word_character[] = "\\A[\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\\x{200c}\\x{200d}]";

void added_free(struct added *added) {
    free(added->tokens);
    free(added->as_given.nodes);
    free(added->normalized.nodes);
    pattern_free(&added->word);
    *added = (struct added){0};
}

uint64_t added_bytes(const struct added *added) {
    return added->n * sizeof *added->tokens + pattern_bytes(&added->word) +
           (added->as_given.cap + added->normalized.cap) * sizeof(struct added_node);
}

static perch_status parse_token(const struct jnode *node, struct added_token *out, perch_error *err) {
    perch_status status = jnode_want_object(node, err);
    struct jnode id = jnode_get(node, "id"), content = jnode_get(node, "content");
    int64_t number = 0;
    if (status == PERCH_OK) {
        status = jnode_integer(&id, 0, INT32_MAX - 1, &number, err);
    }
    if (status == PERCH_OK) {
        status = jnode_text(&content, &out->content, err);
    }
    if (status == PERCH_OK && out->content.n == 0) {
        status = jnode_fail(&content, PERCH_E_FORMAT, err, "is empty");
    }
    out->id = (int32_t)number;
    const struct {
        const char *key;
        bool *to;
    } flags[] = {{"single_word", &out->single_word},
                 {"lstrip", &out->lstrip},
                 {"rstrip", &out->rstrip},
                 {"normalized", &out->normalized},
                 {"special", &out->special}};
    for (size_t i = 0; i < sizeof flags / sizeof *flags && status == PERCH_OK; i++) {
        struct jnode flag = jnode_get(node, flags[i].key);
        status = jnode_need_bool(&flag, flags[i].to, err);
    }
    return status;
}

perch_status added_parse(const struct jnode *list, struct added *out, perch_error *err) {
    *out = (struct added){0};
    if (jnode_absent(list)) {
        return PERCH_OK;
    }
    perch_status status = jnode_want_array(list, err);
    if (status != PERCH_OK || list->value->n == 0) {
        return status;
    }
    out->tokens = calloc(list->value->n, sizeof *out->tokens);
    if (!out->tokens) {
        return err_nomem(err, "added tokens");
    }
    for (struct jnode node = jnode_first(list); node.value && status == PERCH_OK; node = jnode_next(&node)) {
        status = parse_token(&node, &out->tokens[out->n++], err);
    }
    if (status != PERCH_OK) {
        added_free(out);
    }
    return status;
}

static perch_status add_node(struct added_set *set, unsigned char byte, perch_error *err) {
    void *nodes = set->nodes;
    perch_status status = array_reserve(&nodes, &set->cap, set->n + 1, sizeof *set->nodes, err);
    set->nodes = nodes;
    if (status == PERCH_OK) {
        set->nodes[set->n++] = (struct added_node){.token = NO_TOKEN, .byte = byte};
    }
    return status;
}

static uint32_t child_of(const struct added_set *set, uint32_t node, unsigned char byte) {
    uint32_t child = set->nodes[node].child;
    while (child && set->nodes[child].byte != byte) {
        child = set->nodes[child].sibling;
    }
    return child;
}

/* Of two tokens with one text the first to come stays. */
static perch_status insert(struct added_set *set, struct jtext text, uint32_t token, perch_error *err) {
    perch_status status = set->n ? PERCH_OK : add_node(set, 0, err);
    uint32_t node = 0;
    for (size_t i = 0; i < text.n && status == PERCH_OK; i++) {
        unsigned char byte = (unsigned char)text.data[i];
        uint32_t child = child_of(set, node, byte);
        if (!child) {
            child = (uint32_t)set->n;
            status = add_node(set, byte, err);
            if (status == PERCH_OK) {
                set->nodes[child].sibling = set->nodes[node].child;
                set->nodes[node].child = child;
            }
        }
        node = child;
    }
    if (status == PERCH_OK && text.n) {
        set->starts[(unsigned char)*text.data] = true;
        if (set->nodes[node].token == NO_TOKEN) {
            set->nodes[node].token = token;
        }
    }
    return status;
}

/* Special tokens go before others, and earlier ones before later ones. */
static perch_status index_class(struct added *added, bool special, const struct normalizer *normalizer,
                                struct normalizer_work *work, perch_error *err) {
    perch_status status = PERCH_OK;
    for (size_t i = 0; i < added->n && status == PERCH_OK; i++) {
        const struct added_token *token = &added->tokens[i];
        struct jtext text = token->content;
        if (token->special != special) {
            continue;
        }
        if (token->normalized) {
            status = normalizer_apply(normalizer, work, &text, err);
        }
        if (status == PERCH_OK) {
            status = insert(token->normalized ? &added->normalized : &added->as_given, text, (uint32_t)i, err);
        }
    }
    return status;
}

perch_status added_index(struct added *added, const struct normalizer *normalizer, const struct jnode *list,
                         perch_error *err) {
    struct normalizer_work work = {0};
    perch_status status = index_class(added, true, normalizer, &work, err);
    if (status == PERCH_OK) {
        status = index_class(added, false, normalizer, &work, err);
    }
    normalizer_work_free(&work);
    bool single_word = false;
    for (size_t i = 0; i < added->n; i++) {
        single_word = single_word || added->tokens[i].single_word;
    }
    if (status == PERCH_OK && single_word) {
        struct jtext expression = {word_character, sizeof word_character - 1};
        status = pattern_compile(list, expression, &added->word, err);
    }
    return status;
}

struct added_scan added_begin(const struct added *added, const struct added_set *set, struct matcher *matcher,
                              struct jtext text, bool special) {
    return (struct added_scan){.added = added, .set = set, .matcher = matcher, .text = text, .special = special};
}

/* The longest token at scan->at, or NULL; *end is behind it. */
static const struct added_token *longest(const struct added_scan *scan, size_t *end) {
    uint32_t node = 0, best = NO_TOKEN;
    for (size_t i = scan->at; i < scan->text.n; i++) {
        node = child_of(scan->set, node, (unsigned char)scan->text.data[i]);
        if (!node) {
            break;
        }
        if (scan->set->nodes[node].token != NO_TOKEN) {
            best = scan->set->nodes[node].token;
            *end = i + 1;
        }
    }
    return best == NO_TOKEN ? NULL : &scan->added->tokens[best];
}

static perch_status is_word(const struct added_scan *scan, size_t at, bool *out, perch_error *err) {
    struct match match;
    const char *text = scan->text.data + at;
    struct match_scan search = match_begin(&scan->added->word, scan->matcher, text, utf8_length(*text));
    return match_next(&search, out, &match, err);
}

/* Whether a match stands where its token may stand. */
static perch_status admit(const struct added_scan *scan, const struct added_token *token, size_t start, size_t end,
                          bool *out, perch_error *err) {
    bool before = false, behind = false;
    perch_status status = PERCH_OK;
    *out = scan->special || !token->special;
    if (!*out || !token->single_word) {
        return PERCH_OK;
    }
    if (start > 0) {
        status = is_word(scan, utf8_before(scan->text.data, start), &before, err);
    }
    if (status == PERCH_OK && end < scan->text.n) {
        status = is_word(scan, end, &behind, err);
    }
    *out = !before && !behind;
    return status;
}

/* Finds the next token that counts: pending, from *start to pending_end; the search goes on behind the match itself. */
static perch_status find(struct added_scan *scan, size_t *start, perch_error *err) {
    const char *text = scan->text.data;
    scan->pending = NULL;
    while (scan->at < scan->text.n && scan->set->n > 0) {
        size_t end = 0;
        const struct added_token *token = scan->set->starts[(unsigned char)text[scan->at]] ? longest(scan, &end) : NULL;
        if (!token) {
            scan->at++;
            continue;
        }
        bool counts;
        *start = scan->at;
        scan->at = end;
        perch_status status = admit(scan, token, *start, end, &counts, err);
        if (status != PERCH_OK) {
            return status;
        }
        if (!counts) {
            continue;
        }
        while (token->rstrip && end < scan->text.n && utf8_is_space(utf8_code(text + end))) {
            end += utf8_length(text[end]);
        }
        while (token->lstrip && *start > scan->done && utf8_is_space(utf8_code(text + utf8_before(text, *start)))) {
            *start = utf8_before(text, *start);
        }
        if (token->lstrip && end <= scan->done) {
            continue; /* the token before took it along as white space, and so would this one: nothing is left of it */
        }
        scan->pending = token;
        scan->pending_end = end;
        return PERCH_OK;
    }
    *start = scan->text.n;
    return PERCH_OK;
}

static void take_pending(struct added_scan *scan, size_t start, struct added_piece *out) {
    *out = (struct added_piece){scan->pending->id, start, scan->pending_end};
    scan->done = scan->pending_end;
    scan->pending = NULL;
}

perch_status added_next(struct added_scan *scan, bool *more, struct added_piece *out, perch_error *err) {
    *more = true;
    if (scan->pending) {
        take_pending(scan, scan->done, out);
        return PERCH_OK;
    }
    size_t start = 0;
    perch_status status = find(scan, &start, err);
    if (status != PERCH_OK) {
        return status;
    }
    if (scan->done < start) {
        *out = (struct added_piece){VOCAB_NONE, scan->done, start};
        scan->done = start;
    } else if (scan->pending) {
        take_pending(scan, start, out);
    } else {
        *more = false;
    }
    return PERCH_OK;
}
