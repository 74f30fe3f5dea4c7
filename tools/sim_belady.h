/*
 * sim_belady: what the best replacement there could be would find of a trace's prompts, knowing all that is to come.
 *
 * It is Belady's MIN (1966): whoever is used again latest goes first, and who never is goes at once. Requests are served in the order
 * of their arrival, each at once, and take no memory but what is kept for later ones; any part of a block may be kept. A block
 * is used whenever one behind it is, so the last of a prompt always go first, and what is kept is a whole beginning: what is
 * found is what a cache of prefixes finds. No policy finds more tokens of requests in this order in the same memory.
 */
#ifndef PERCH_TOOLS_SIM_BELADY_H
#define PERCH_TOOLS_SIM_BELADY_H

#include "perch/perch.h"

#include <stddef.h>

/* A prompt: its blocks' ids and how many tokens each of them has. */
struct belady_request {
    const uint64_t *blocks; /* [n_blocks] the same id is the same tokens, and the same before them */
    uint32_t n_blocks;
    uint32_t block_tokens; /* of all blocks but the last; at least 1 */
    uint32_t n_tokens;     /* more than (n_blocks - 1) * block_tokens */
};

struct belady_found {
    uint64_t n_tokens, n_found_tokens;
    uint64_t n_blocks, n_found_blocks; /* found whole, as all before them */
};

/* requests[n] in order of arrival; those from `first` on are counted. capacity_tokens: UINT64_MAX = endless. E_NOMEM. */
perch_status belady(const struct belady_request *requests, size_t n, size_t first, uint64_t capacity_tokens,
                    struct belady_found *found, perch_error *err);

#endif
