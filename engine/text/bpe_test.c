/* bpe_test: merging against a naive model of it, for random rules and words, short and long. */
#include "engine/text/text_testing.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A random model: letters, tokens joined from two earlier ones by a rule each, a byte, and letters that have no token. */
struct model {
    char tokens[64][64];
    size_t n_tokens, n_letters;
    struct {
        int32_t left, right, id;
    } rules[64];
    size_t n_rules;
    bool bytes, unk, fuse_unk;
};

static size_t find(const struct model *m, const char *text) {
    size_t i = 0;
    while (i < m->n_tokens && strcmp(m->tokens[i], text) != 0) {
        i++;
    }
    return i;
}

static void make_model(struct model *m, test_rng *rng) {
    *m = (struct model){.n_letters = 1 + test_rng_below(rng, 5), .bytes = test_rng_below(rng, 2)};
    m->unk = test_rng_below(rng, 2);
    m->fuse_unk = test_rng_below(rng, 2);
    for (; m->n_tokens < m->n_letters; m->n_tokens++) {
        m->tokens[m->n_tokens][0] = (char)('a' + m->n_tokens);
    }
    memcpy(m->tokens[m->n_tokens++], "<unk>", 6);
    memcpy(m->tokens[m->n_tokens++], "<0x79>", 7); /* y has bytes, z has none */
    for (size_t tries = test_rng_below(rng, 60); tries > 0 && m->n_rules < 50; tries--) {
        size_t left = test_rng_below(rng, m->n_tokens), right = test_rng_below(rng, m->n_tokens);
        char joined[128];
        snprintf(joined, sizeof joined, "%s%s", m->tokens[left], m->tokens[right]);
        size_t id = find(m, joined);
        bool known = false;
        for (size_t i = 0; i < m->n_rules; i++) {
            known = known || (m->rules[i].left == (int32_t)left && m->rules[i].right == (int32_t)right);
        }
        if (strlen(joined) > 24 || known) {
            continue;
        }
        if (id == m->n_tokens) {
            snprintf(m->tokens[m->n_tokens++], sizeof m->tokens[0], "%.24s", joined);
        }
        m->rules[m->n_rules].left = (int32_t)left;
        m->rules[m->n_rules].right = (int32_t)right;
        m->rules[m->n_rules++].id = (int32_t)id;
    }
}

static void write_json(const struct model *m, char *json, size_t cap) {
    size_t n = 0;
    n += (size_t)snprintf(json, cap, "\"model\":{\"type\":\"BPE\",\"byte_fallback\":%s,\"fuse_unk\":%s,%s\"vocab\":{",
                          m->bytes ? "true" : "false", m->fuse_unk ? "true" : "false",
                          m->unk ? "\"unk_token\":\"<unk>\"," : "");
    for (size_t i = 0; i < m->n_tokens; i++) {
        n += (size_t)snprintf(json + n, cap - n, "%s\"%s\":%zu", i ? "," : "", m->tokens[i], i);
    }
    n += (size_t)snprintf(json + n, cap - n, "},\"merges\":[");
    for (size_t i = 0; i < m->n_rules; i++) {
        n += (size_t)snprintf(json + n, cap - n, "%s[\"%s\",\"%s\"]", i ? "," : "", m->tokens[m->rules[i].left],
                              m->tokens[m->rules[i].right]);
    }
    snprintf(json + n, cap - n, "]}");
}

/* Straight from the definition: apply the first rule that applies anywhere, at its leftmost place, until none does. */
static size_t naive(const struct model *m, const char *word, size_t n, int32_t *ids) {
    size_t count = 0;
    bool unknown = false;
    for (size_t i = 0; i < n; i++) {
        char letter[2] = {word[i], 0};
        size_t id = find(m, letter);
        if (id < m->n_tokens) {
            if (unknown) {
                ids[count++] = (int32_t)m->n_letters;
            }
            unknown = false;
            ids[count++] = (int32_t)id;
        } else if (m->bytes && word[i] == 'y') {
            ids[count++] = (int32_t)m->n_letters + 1;
        } else if (m->unk) {
            if (unknown && !m->fuse_unk) {
                ids[count++] = (int32_t)m->n_letters;
            }
            unknown = true;
        }
    }
    if (unknown) {
        ids[count++] = (int32_t)m->n_letters;
    }
    for (size_t rule = 0; rule < m->n_rules;) {
        size_t at = 0;
        while (at + 1 < count && (ids[at] != m->rules[rule].left || ids[at + 1] != m->rules[rule].right)) {
            at++;
        }
        if (at + 1 >= count) {
            rule++;
            continue;
        }
        ids[at] = m->rules[rule].id;
        memmove(ids + at + 1, ids + at + 2, (count - at - 2) * sizeof *ids);
        count--;
        rule = 0;
    }
    return count;
}

static void test_against_naive(void) {
    test_rng rng = {test_seed(21)};
    static char json[16384];
    struct model m;
    for (uint64_t round = 0; round < test_scaled(400); round++) {
        make_model(&m, &rng);
        write_json(&m, json, sizeof json);
        perch_tokenizer *t = testing_tokenizer(json, NULL);
        if (!t) {
            return;
        }
        for (size_t k = 0; k < 20; k++) {
            /* Beyond 32 symbols another way is taken. */
            size_t n = test_rng_below(&rng, k % 4 ? 24 : 300), got;
            char word[300];
            int32_t want_ids[300], ids[300];
            for (size_t i = 0; i < n; i++) {
                word[i] = test_rng_below(&rng, 12) ? (char)('a' + test_rng_below(&rng, m.n_letters))
                                                   : (char)('x' + test_rng_below(&rng, 3));
            }
            size_t want = naive(&m, word, n, want_ids);
            CU_ASSERT(perch_tokenizer_encode(t, word, n, 0, ids, 300, &got, NULL) == PERCH_OK);
            CHECK_MSG(got == want && memcmp(ids, want_ids, got * sizeof *ids) == 0, "round %llu: \"%.*s\"",
                      (unsigned long long)round, (int)n, word);
        }
        perch_tokenizer_destroy(t);
    }
}

static void check_word(const perch_tokenizer *t, const char *word, const int32_t *want, size_t n_want) {
    int32_t ids[16];
    size_t n;
    CU_ASSERT(perch_tokenizer_encode(t, word, strlen(word), 0, ids, 16, &n, NULL) == PERCH_OK);
    CHECK_MSG(n == n_want && memcmp(ids, want, n * sizeof *ids) == 0, "\"%s\" has %zu tokens, first %d", word, n,
              ids[0]);
}

static void test_ignore_merges(void) {
    /* "cab" is a token that no rule makes. */
    static const char rules[] = "\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":1,\"c\":2,\"ab\":3,\"cab\":4},"
                                "\"merges\":[\"a b\"],\"ignore_merges\":";
    char fields[256];
    for (size_t i = 0; i < 2; i++) {
        snprintf(fields, sizeof fields, "%s%s}", rules, i ? "true" : "false");
        perch_tokenizer *t = testing_tokenizer(fields, NULL);
        if (t) {
            static const int32_t whole[] = {4}, merged[] = {2, 3}, longer[] = {2, 3, 2};
            check_word(t, "cab", i ? whole : merged, i ? 1 : 2);
            check_word(t, "cabc", longer, 3);
        }
        perch_tokenizer_destroy(t);
    }
}

/* Of two rules for one pair the later counts; the heading of an old merges.txt is none. */
static void test_repeated_rules(void) {
    perch_tokenizer *t = testing_tokenizer("\"model\":{\"vocab\":{\"a\":0,\"b\":1,\"c\":2,\"ab\":3,\"bc\":4},"
                                           "\"merges\":[\"#version: 0.2\",\"a b\",\"b c\",\"a b\"]}",
                                           NULL);
    if (t) {
        check_word(t, "abc", (const int32_t[]){0, 4}, 2);
    }
    perch_tokenizer_destroy(t);
}

int main(int argc, char **argv) {
    static const test_case tests[] = {
        {"random rules and words: as if applied one by one", test_against_naive},
        {"ignore_merges keeps whole words", test_ignore_merges},
        {"repeated rules and old headings", test_repeated_rules},
    };
    return test_main("bpe", tests, sizeof tests / sizeof *tests, argc, argv);
}
