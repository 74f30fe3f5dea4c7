/* sim_belady: see sim_belady.h. O(n log n) in the blocks of all prompts. */
#include "sim_belady.h"

#include "tool.h"

#include <stdlib.h>
#include <string.h>

#define NEVER UINT32_MAX

/* A block that may be kept. */
struct block {
    uint32_t n_kept;   /* tokens */
    uint32_t next_use; /* the request that uses it next; NEVER */
};

/* A block as it stood when it was last used; void once its next_use is another. */
struct candidate {
    uint32_t next_use, depth, block;
};

struct optimum {
    uint32_t *numbers; /* [accesses] a block's number, of each request's blocks in order */
    uint32_t *next;    /* [accesses] the request that uses it next */
    struct block *blocks;
    struct candidate *heap; /* [n_heap] who goes first is first; room for one for each access */
    size_t n_heap;
    uint64_t n_kept, capacity; /* tokens */
};

static int by_id(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a;
    uint64_t y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

/* Numbers the ids from 0 on. Returns how many there are. sorted[n_accesses] is scratch. */
static uint32_t number_blocks(const struct belady_request *requests, size_t n, uint64_t *sorted, uint32_t *numbers) {
    size_t n_accesses = 0;
    uint32_t n_blocks = 0;
    for (size_t r = 0; r < n; r++) {
        memcpy(sorted + n_accesses, requests[r].blocks, requests[r].n_blocks * sizeof(*sorted));
        n_accesses += requests[r].n_blocks;
    }
    qsort(sorted, n_accesses, sizeof(*sorted), by_id);
    for (size_t i = 0; i < n_accesses; i++) {
        if (i == 0 || sorted[i] != sorted[i - 1]) {
            sorted[n_blocks++] = sorted[i];
        }
    }
    for (size_t r = 0, at = 0; r < n; r++) {
        for (uint32_t i = 0; i < requests[r].n_blocks; i++, at++) {
            const uint64_t *found = bsearch(&requests[r].blocks[i], sorted, n_blocks, sizeof(*sorted), by_id);
            numbers[at] = (uint32_t)(found - sorted);
        }
    }
    return n_blocks;
}

/* Backwards through the requests: who was seen last is who comes next. */
static void find_next_uses(struct optimum *o, const struct belady_request *requests, size_t n, size_t n_accesses,
                           uint32_t n_blocks) {
    for (uint32_t b = 0; b < n_blocks; b++) {
        o->blocks[b] = (struct block){.next_use = NEVER};
    }
    for (size_t r = n, at = n_accesses; r-- > 0;) {
        for (uint32_t i = requests[r].n_blocks; i-- > 0;) {
            struct block *block = &o->blocks[o->numbers[--at]];
            o->next[at] = block->next_use;
            block->next_use = (uint32_t)r;
        }
    }
}

/* Whether a goes before b: what is used later, and of what is used together the last of the prompt. */
static int goes_first(const struct candidate *a, const struct candidate *b) {
    return a->next_use != b->next_use ? a->next_use > b->next_use : a->depth > b->depth;
}

static void heap_push(struct optimum *o, struct candidate c) {
    size_t at = o->n_heap++;
    while (at > 0 && goes_first(&c, &o->heap[(at - 1) / 2])) {
        o->heap[at] = o->heap[(at - 1) / 2];
        at = (at - 1) / 2;
    }
    o->heap[at] = c;
}

static void heap_pop(struct optimum *o) {
    struct candidate last = o->heap[--o->n_heap];
    size_t at = 0;
    for (size_t child; (child = 2 * at + 1) < o->n_heap; at = child) {
        child += child + 1 < o->n_heap && goes_first(&o->heap[child + 1], &o->heap[child]) ? 1 : 0;
        if (!goes_first(&o->heap[child], &last)) {
            break;
        }
        o->heap[at] = o->heap[child];
    }
    o->heap[at] = last;
}

/* Cuts what is used latest, from its end, until the rest fits. */
static void evict(struct optimum *o) {
    while (o->n_kept > o->capacity) {
        const struct candidate *first = &o->heap[0];
        struct block *block = &o->blocks[first->block];
        uint64_t over = o->n_kept - o->capacity;
        uint32_t n = 0;
        if (block->next_use == first->next_use) {
            n = over < block->n_kept ? (uint32_t)over : block->n_kept;
            block->n_kept -= n;
            o->n_kept -= n;
        }
        if (n == 0 || block->n_kept == 0) {
            heap_pop(o);
        }
    }
}

/* A request uses its blocks; `at` is its first access. */
static void serve(struct optimum *o, const struct belady_request *request, size_t at, struct belady_found *found) {
    bool goes_on = true;
    found->n_tokens += request->n_tokens;
    found->n_blocks += request->n_blocks;
    for (uint32_t i = 0; i < request->n_blocks; i++) {
        struct block *block = &o->blocks[o->numbers[at + i]];
        uint32_t begin = i * request->block_tokens;
        uint32_t n = i + 1 < request->n_blocks ? request->block_tokens : request->n_tokens - begin;
        uint32_t n_kept = block->n_kept < n ? block->n_kept : n;
        if (goes_on) {
            found->n_found_tokens += n_kept;
            found->n_found_blocks += n_kept == n ? 1 : 0;
            goes_on = n_kept == n;
        }
        uint32_t n_before = block->n_kept;
        block->next_use = o->next[at + i];
        block->n_kept = block->next_use == NEVER ? 0 : n;
        o->n_kept = o->n_kept - n_before + block->n_kept;
        if (block->n_kept > 0) {
            heap_push(o, (struct candidate){block->next_use, i, o->numbers[at + i]});
        }
        evict(o);
    }
}

perch_status belady(const struct belady_request *requests, size_t n, size_t first, uint64_t capacity_tokens,
                    struct belady_found *found, perch_error *err) {
    size_t n_accesses = 0;
    struct optimum o = {.capacity = capacity_tokens};
    perch_status status = PERCH_OK;
    *found = (struct belady_found){.n_tokens = 0};
    for (size_t r = 0; r < n; r++) {
        n_accesses += requests[r].n_blocks;
    }
    uint64_t *sorted = malloc((n_accesses + 1) * sizeof(*sorted));
    o.numbers = calloc(n_accesses + 1, sizeof(*o.numbers));
    o.next = malloc((n_accesses + 1) * sizeof(*o.next));
    o.blocks = calloc(n_accesses + 1, sizeof(*o.blocks));
    o.heap = malloc((n_accesses + 1) * sizeof(*o.heap));
    if (sorted == NULL || o.numbers == NULL || o.next == NULL || o.blocks == NULL || o.heap == NULL) {
        status = tool_nomem(err);
        goto end;
    }
    uint32_t n_blocks = number_blocks(requests, n, sorted, o.numbers);
    find_next_uses(&o, requests, n, n_accesses, n_blocks);
    for (size_t r = 0, at = 0; r < n; at += requests[r].n_blocks, r++) {
        if (r == first) {
            *found = (struct belady_found){.n_tokens = 0};
        }
        serve(&o, &requests[r], at, found);
    }
end:
    free(sorted);
    free(o.numbers);
    free(o.next);
    free(o.blocks);
    free(o.heap);
    return status;
}
