/* rope: the rotation of each position, for every way of scaling that config knows. */
#ifndef PERCH_ENGINE_MODEL_ROPE_H
#define PERCH_ENGINE_MODEL_ROPE_H

#include "engine/model/config.h"

/*
 * Writes table[n][head_dim / 2][2]: cos and sin of positions first..first+n-1, the attention factor multiplied in. A row is a
 * function of its position alone. inv_freq: scratch of head_dim / 2 doubles.
 */
void rope_table(const rope_config *rope, uint32_t head_dim, uint32_t first, uint32_t n, double *inv_freq, float *table);

/* The inverse frequencies [head_dim / 2] that a token at this position is rotated by, per position. */
void rope_inv_freq(const rope_config *rope, uint32_t head_dim, uint32_t position, double *inv_freq);

#endif
