/*
 * bpe: words to tokens.
 *
 * A word is cut where no rule can join, and each piece is merged by itself. Short pieces are merged in place with a
 * scan for the lowest rank; long ones (a text whose tokenizer has no pre-tokenizer may be a megabyte of one letter) by
 * a heap of candidate pairs over linked symbols. A pair in the heap is stale if its left symbol's rank is no longer
 * the same.
 */
#include "engine/text/bpe.h"
#include "engine/text/utf8.h"

#include <stdlib.h>
#include <string.h>

#define NO_RANK UINT32_MAX
#define NO_SYMBOL UINT32_MAX
#define SHORT_PIECE 32u

struct bpe_symbol {
    int32_t id;
    uint32_t rank;       /* of the rule for this symbol and the next, or NO_RANK */
    int32_t merged;      /* what the two become */
    uint32_t prev, next; /* long pieces only */
};

void bpe_work_free(struct bpe_work *work) {
    free(work->symbols);
    free(work->heap);
    *work = (struct bpe_work){0};
}

/* Looks up the rule for left and right into left. */
static void pair_up(const struct bpe *bpe, struct bpe_symbol *left, const struct bpe_symbol *right) {
    uint64_t pair = (uint64_t)left->id << 32 | (uint32_t)right->id;
    for (size_t slot = bpe_slot(pair, bpe->merge_mask);; slot = (slot + 1) & bpe->merge_mask) {
        const struct bpe_merge *merge = &bpe->merges[slot];
        if (merge->pair == pair) {
            left->rank = merge->rank;
            left->merged = merge->id;
            return;
        }
        if (merge->pair == UINT64_MAX) {
            left->rank = NO_RANK;
            return;
        }
    }
}

static void merge_short(const struct bpe *bpe, struct bpe_symbol *s, size_t *n_symbols) {
    size_t n = *n_symbols;
    for (;;) {
        size_t best = 0;
        for (size_t i = 1; i + 1 < n; i++) {
            if (s[i].rank < s[best].rank) {
                best = i;
            }
        }
        if (n < 2 || s[best].rank == NO_RANK) {
            break;
        }
        s[best].id = s[best].merged;
        n--;
        memmove(&s[best + 1], &s[best + 2], (n - best - 1) * sizeof *s);
        if (best + 1 < n) {
            pair_up(bpe, &s[best], &s[best + 1]);
        }
        if (best > 0) {
            pair_up(bpe, &s[best - 1], &s[best]);
        }
    }
    *n_symbols = n;
}

static void sift_down(uint64_t *heap, size_t n, size_t at) {
    uint64_t moved = heap[at];
    for (size_t child; (child = 2 * at + 1) < n; at = child) {
        if (child + 1 < n && heap[child + 1] < heap[child]) {
            child++;
        }
        if (heap[child] >= moved) {
            break;
        }
        heap[at] = heap[child];
    }
    heap[at] = moved;
}

/* The heap's order is the rank, then the place: both in one number. */
static void heap_push(struct bpe_work *work, uint32_t rank, size_t place) {
    size_t at = work->heap_n++;
    uint64_t moved = (uint64_t)rank << 32 | place;
    for (size_t up; at > 0 && work->heap[up = (at - 1) / 2] > moved; at = up) {
        work->heap[at] = work->heap[up];
    }
    work->heap[at] = moved;
}

static uint64_t heap_pop(struct bpe_work *work) {
    uint64_t top = work->heap[0];
    work->heap[0] = work->heap[--work->heap_n];
    if (work->heap_n > 1) {
        sift_down(work->heap, work->heap_n, 0);
    }
    return top;
}

static perch_status merge_long(const struct bpe *bpe, struct bpe_work *work, perch_error *err) {
    struct bpe_symbol *s = work->symbols;
    size_t n = work->n;
    /* n - 1 pairs at first; each of at most n - 1 merges takes one out and puts two in. */
    void *heap = work->heap;
    perch_status status = array_reserve(&heap, &work->heap_cap, 2 * n, sizeof *work->heap, err);
    work->heap = heap;
    if (status != PERCH_OK) {
        return status;
    }
    work->heap_n = 0;
    for (size_t i = 0; i < n; i++) {
        s[i].prev = i ? (uint32_t)i - 1 : NO_SYMBOL;
        s[i].next = i + 1 < n ? (uint32_t)i + 1 : NO_SYMBOL;
        if (s[i].rank != NO_RANK) {
            work->heap[work->heap_n++] = (uint64_t)s[i].rank << 32 | i;
        }
    }
    for (size_t i = work->heap_n / 2; i-- > 0;) {
        sift_down(work->heap, work->heap_n, i);
    }
    while (work->heap_n > 0) {
        uint64_t top = heap_pop(work);
        struct bpe_symbol *left = &s[(uint32_t)top];
        if (left->rank != (uint32_t)(top >> 32)) {
            continue;
        }
        struct bpe_symbol *right = &s[left->next];
        left->id = left->merged;
        left->next = right->next;
        left->rank = right->rank = NO_RANK;
        if (left->next != NO_SYMBOL) {
            s[left->next].prev = (uint32_t)top;
            pair_up(bpe, left, &s[left->next]);
            if (left->rank != NO_RANK) {
                heap_push(work, left->rank, (uint32_t)top);
            }
        }
        if (left->prev != NO_SYMBOL) {
            struct bpe_symbol *before = &s[left->prev];
            pair_up(bpe, before, left);
            if (before->rank != NO_RANK) {
                heap_push(work, before->rank, left->prev);
            }
        }
    }
    size_t kept = 0;
    for (uint32_t i = 0; i != NO_SYMBOL; i = s[i].next) {
        s[kept++].id = s[i].id;
    }
    work->n = kept;
    return PERCH_OK;
}

static perch_status merge_piece(const struct bpe *bpe, struct bpe_work *work, struct id_sink *sink, perch_error *err) {
    perch_status status = PERCH_OK;
    if (work->n == 0) {
        return PERCH_OK;
    }
    for (size_t i = 0; i + 1 < work->n; i++) {
        pair_up(bpe, &work->symbols[i], &work->symbols[i + 1]);
    }
    work->symbols[work->n - 1].rank = NO_RANK;
    if (work->n <= SHORT_PIECE) {
        merge_short(bpe, work->symbols, &work->n);
    } else {
        status = merge_long(bpe, work, err);
    }
    for (size_t i = 0; i < work->n && status == PERCH_OK; i++) {
        sink_put(sink, work->symbols[i].id);
    }
    work->n = 0;
    return status;
}

static perch_status put_symbol(struct bpe_work *work, int32_t id, perch_error *err) {
    if (work->n == work->cap) {
        if (work->n >= NO_SYMBOL / 4) {
            return err_set(err, PERCH_E_INVALID, "a word of more than %u characters", NO_SYMBOL / 4);
        }
        void *symbols = work->symbols;
        perch_status status = array_reserve(&symbols, &work->cap, work->n + 1, sizeof *work->symbols, err);
        work->symbols = symbols;
        if (status != PERCH_OK) {
            return status;
        }
    }
    work->symbols[work->n++].id = id;
    return PERCH_OK;
}

/* Whether a rule may join two characters that stand side by side. */
static bool joins(const struct bpe *bpe, uint32_t last, uint32_t first) {
    uint64_t joint = (uint64_t)last << 32 | first;
    for (size_t slot = bpe_slot(joint, bpe->joint_mask);; slot = (slot + 1) & bpe->joint_mask) {
        if (bpe->joints[slot] == joint) {
            return true;
        }
        if (bpe->joints[slot] == UINT64_MAX) {
            return false;
        }
    }
}

/* The fallback of a character without a token: the tokens of all its bytes, or nothing. */
static perch_status put_bytes(const struct bpe *bpe, const char *text, size_t n, struct bpe_work *work, bool *done,
                              perch_error *err) {
    *done = true;
    for (size_t i = 0; i < n; i++) {
        *done = *done && bpe->bytes[(unsigned char)text[i]] != VOCAB_NONE;
    }
    perch_status status = PERCH_OK;
    for (size_t i = 0; i < n && *done && status == PERCH_OK; i++) {
        status = put_symbol(work, bpe->bytes[(unsigned char)text[i]], err);
    }
    return status;
}

perch_status bpe_encode(const struct bpe *bpe, const struct vocab *vocab, const char *word, size_t n,
                        struct bpe_work *work, struct id_sink *sink, perch_error *err) {
    int32_t whole = bpe->ignore_merges && n ? vocab_find_model(vocab, word, n) : VOCAB_NONE;
    if (whole != VOCAB_NONE) {
        sink_put(sink, whole);
        return PERCH_OK;
    }
    perch_status status = PERCH_OK;
    /* The character of the last symbol, if it has a token of its own: only next to such a one may the word be cut. */
    uint32_t last = UINT32_MAX;
    /* An unknown character waits for the next known one, as neighbours may fuse and byte tokens go before it. */
    bool unknown = false;
    work->n = 0;
    for (size_t at = 0, length; at < n && status == PERCH_OK; at += length) {
        length = utf8_length(word[at]);
        int32_t id = vocab_find_char(vocab, word + at, length);
        if (id != VOCAB_NONE) {
            uint32_t code = utf8_code(word + at);
            if (unknown) {
                unknown = false;
                status = put_symbol(work, bpe->unk, err);
            } else if (last != UINT32_MAX && !joins(bpe, last, code)) {
                status = merge_piece(bpe, work, sink, err);
            }
            last = code;
            if (status == PERCH_OK) {
                status = put_symbol(work, id, err);
            }
            continue;
        }
        bool done;
        last = UINT32_MAX;
        status = put_bytes(bpe, word + at, length, work, &done, err);
        if (status == PERCH_OK && !done && bpe->unk != VOCAB_NONE) {
            if (unknown && !bpe->fuse_unk) {
                status = put_symbol(work, bpe->unk, err);
            }
            unknown = true;
        }
    }
    if (status == PERCH_OK && unknown) {
        status = put_symbol(work, bpe->unk, err);
    }
    return status == PERCH_OK ? merge_piece(bpe, work, sink, err) : status;
}
