/*
 * choice: a kernels_choice as the device wants it. Pure host code: what cuda_choose (launch.h) then reads is plain numbers.
 */
#ifndef PERCH_KERNELS_CUDA_CHOICE_H
#define PERCH_KERNELS_CUDA_CHOICE_H

#include "kernels/cuda/launch.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Tokens that one choice may ban: so many times max_batch_size is what a lane's array of bans holds. */
#define CUDA_MAX_BANS 256u

/* Whether cuda_choose can make this choice; else the host does: typical_p, logit_bias, or more bans than fit. */
bool cuda_can_choose(const kernels_choice *choice);

/*
 * Fills *out, and bans[first_ban...] with the tokens that may not be chosen (at most CUDA_MAX_BANS). Returns where the next
 * choice's bans begin. Only for what cuda_can_choose takes. Host memory.
 */
uint32_t cuda_choice_fill(const kernels_choice *choice, uint32_t vocab_size, uint32_t first_ban, cuda_choice *out,
                          int32_t *bans);

#ifdef __cplusplus
}
#endif
#endif
