/*
 * choice: a kernels_choice as cuda_choose takes it: parameters as integers and factors, the two lists of banned tokens in one,
 * and what the choice has need of.
 */
#include "kernels/cuda/choice.h"

#include "base/sampling_math.h"

#include <string.h>

bool cuda_can_choose(const kernels_choice *choice) {
    const perch_sampling *p = choice->sampling;
    return p->typical_p >= 1 && p->n_logit_bias == 0 && p->n_banned_tokens <= CUDA_MAX_BANS &&
           choice->n_suppressed <= CUDA_MAX_BANS - p->n_banned_tokens;
}

static uint32_t needs_of(const kernels_choice *choice, const cuda_choice *c) {
    bool penalized = c->repetition_penalty != 1 || c->frequency_penalty != 0 || c->presence_penalty != 0;
    bool drawn = c->inverse_temperature > 0, narrowed = c->top_k > 0 || choice->sampling->top_p < 1;
    return (penalized || c->n_bans > 0 ? CUDA_CHOICE_MARKS : 0u) | (drawn ? CUDA_CHOICE_DRAW : 0u) |
           (drawn && narrowed ? CUDA_CHOICE_FRONT : 0u) |
           (choice->want_logprob || c->n_top > 0 ? CUDA_CHOICE_LOGPROBS : 0u);
}

uint32_t cuda_choice_fill(const kernels_choice *choice, uint32_t vocab_size, uint32_t first_ban, cuda_choice *out,
                          int32_t *bans) {
    const perch_sampling *p = choice->sampling;
    const uint32_t n_banned = (uint32_t)p->n_banned_tokens, top_k = (uint32_t)p->top_k;
    *out = (cuda_choice){.logit_row = choice->logit_row,
                         .slot = choice->slot,
                         .completion = choice->completion,
                         .n_prompt = choice->n_prompt,
                         .n_tokens = choice->n_tokens,
                         .n_top = p->n_logprobs < vocab_size ? p->n_logprobs : vocab_size,
                         .top_k = top_k < vocab_size ? top_k : 0,
                         .first_ban = first_ban,
                         .n_bans = n_banned + choice->n_suppressed,
                         .seed = p->seed,
                         .top_p = sampling_share(p->top_p),
                         .min_p = sampling_share(p->min_p),
                         .inverse_temperature = p->temperature > 0 ? sampling_inverse_temperature(p->temperature) : 0,
                         .repetition_penalty = p->repetition_penalty,
                         .frequency_penalty = p->frequency_penalty,
                         .presence_penalty = p->presence_penalty};
    out->needs = needs_of(choice, out);
    if (n_banned > 0) {
        memcpy(bans + first_ban, p->banned_tokens, n_banned * sizeof *bans);
    }
    if (choice->n_suppressed > 0) {
        memcpy(bans + first_ban + n_banned, choice->suppressed, choice->n_suppressed * sizeof *bans);
    }
    return first_ban + out->n_bans;
}
