/*
 * bpe: byte-pair encoding. A word becomes a row of symbols, one a character; then, as long as two neighbours have a
 * merge rule, the pair with the lowest rank (the leftmost of equals) becomes one symbol.
 */
#ifndef PERCH_ENGINE_TEXT_BPE_H
#define PERCH_ENGINE_TEXT_BPE_H

#include "engine/text/vocab.h"

struct bpe_merge {
    uint64_t pair; /* left id << 32 | right id; UINT64_MAX: the place is free */
    uint32_t rank; /* lower goes first */
    int32_t id;    /* what the two become */
};

struct bpe {
    struct bpe_merge *merges; /* [merge_mask + 1] open addressing by pair */
    size_t merge_mask;
    int32_t unk;        /* for a character that has no token; VOCAB_NONE: it is dropped */
    int32_t bytes[256]; /* byte fallback: the token <0xNN> of each byte, or VOCAB_NONE; none at all without it */
    bool fuse_unk;      /* neighbouring unknown characters are one token */
    bool ignore_merges; /* a word that is a token stays whole whatever the rules say */
    /*
     * Between which characters a rule can join: [cut_mask + 1] open addressing of last << 32 | first character of
     * rules' sides, UINT64_MAX: free. A text may be cut between any others, so that even a text without words is short
     * pieces.
     */
    uint64_t *joints;
    size_t joint_mask;
};

/* Where ids go: counted all, stored as far as there is room. */
struct id_sink {
    int32_t *ids;
    size_t cap, n;
};

static inline void sink_put(struct id_sink *sink, int32_t id) {
    if (sink->n < sink->cap) {
        sink->ids[sink->n] = id;
    }
    sink->n++;
}

/* One call's memory; all zero is empty. */
struct bpe_work {
    struct bpe_symbol *symbols;
    size_t cap, n;
    uint64_t *heap;
    size_t heap_cap, heap_n;
};

void bpe_work_free(struct bpe_work *work);

/* Reads the "model" of a tokenizer.json, its vocabulary being in vocab. E_FORMAT, E_UNSUPPORTED, E_NOMEM. */
perch_status bpe_parse(const struct jnode *model, const struct vocab *vocab, struct bpe *out, perch_error *err);
void bpe_free(struct bpe *bpe);
uint64_t bpe_bytes(const struct bpe *bpe);

/* Tokens of word[n] (well-formed UTF-8). O(n log n). E_NOMEM. */
perch_status bpe_encode(const struct bpe *bpe, const struct vocab *vocab, const char *word, size_t n,
                        struct bpe_work *work, struct id_sink *sink, perch_error *err);

static inline size_t bpe_slot(uint64_t key, size_t mask) {
    key *= 0x9E3779B97F4A7C15u;
    return (size_t)(key ^ key >> 32) & mask;
}

#endif
