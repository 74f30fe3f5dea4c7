/*
 * rope: rotary position embedding (Su et al. 2021) and its extensions to longer texts. Element pair i of a head turns by
 * position * inv_freq[i], where inv_freq[i] = theta^(-2i / D) unless scaled:
 *
 *   linear   all frequencies divided by the factor (Chen et al. 2023)
 *   dynamic  a larger theta beyond the trained length ("NTK-aware"), by the position alone: docs/adr/0011-dynamic-ntk.md
 *   yarn     low frequencies divided, high ones kept, a ramp between (Peng et al. 2023, section 3.2)
 *   llama3   the same idea with the border in wavelengths and an interpolation of frequencies (Llama 3.1)
 */
#include "engine/model/rope.h"

#include <math.h>

#define PI 3.14159265358979323846

/* Llama 3.1: waves that turn often within the trained length stay, those that never turn round are stretched. */
static double llama3_frequency(const rope_config *rope, double frequency) {
    double turns = rope->original_max_positions * frequency / (2 * PI);
    if (turns > rope->high_freq_factor) {
        return frequency;
    }
    if (turns < rope->low_freq_factor) {
        return frequency / rope->factor;
    }
    double kept = (turns - rope->low_freq_factor) / (rope->high_freq_factor - rope->low_freq_factor);
    return frequency * ((1 - kept) / rope->factor + kept);
}

/* The (real) index of the pair that turns n_turns times within the trained length. */
static double yarn_index(const rope_config *rope, uint32_t head_dim, double n_turns) {
    return head_dim * log(rope->original_max_positions / (n_turns * 2 * PI)) / (2 * log(rope->theta));
}

static void yarn_frequencies(const rope_config *rope, uint32_t head_dim, double *inv_freq) {
    double low = yarn_index(rope, head_dim, rope->beta_fast), high = yarn_index(rope, head_dim, rope->beta_slow);
    if (rope->truncate) {
        low = floor(low);
        high = ceil(high);
    }
    low = fmax(low, 0);
    high = fmin(high, (double)head_dim - 1);
    if (high - low == 0) {
        high += 0.001;
    }
    for (uint32_t i = 0; i < head_dim / 2; i++) {
        double stretched = fmin(fmax((i - low) / (high - low), 0), 1);
        inv_freq[i] *= stretched / rope->factor + (1 - stretched);
    }
}

void rope_inv_freq(const rope_config *rope, uint32_t head_dim, uint32_t position, double *inv_freq) {
    double theta = rope->theta;
    if (rope->kind == ROPE_DYNAMIC && position >= rope->original_max_positions) {
        double length = (double)position + 1;
        double stretch = rope->factor * length / rope->original_max_positions - (rope->factor - 1);
        theta *= pow(stretch, head_dim / (head_dim - 2.0));
    }
    for (uint32_t i = 0; i < head_dim / 2; i++) {
        double frequency = pow(theta, -2.0 * i / head_dim);
        inv_freq[i] = rope->kind == ROPE_LINEAR   ? frequency / rope->factor
                      : rope->kind == ROPE_LLAMA3 ? llama3_frequency(rope, frequency)
                                                  : frequency;
    }
    if (rope->kind == ROPE_YARN) {
        yarn_frequencies(rope, head_dim, inv_freq);
    }
}

void rope_table(const rope_config *rope, uint32_t head_dim, uint32_t first, uint32_t n, double *inv_freq,
                float *table) {
    uint32_t half = head_dim / 2;
    for (uint32_t t = 0; t < n; t++) {
        uint32_t position = first + t;
        if (t == 0 || (rope->kind == ROPE_DYNAMIC && position >= rope->original_max_positions)) {
            rope_inv_freq(rope, head_dim, position, inv_freq);
        }
        for (uint32_t i = 0; i < half; i++) {
            float *pair = table + ((size_t)t * half + i) * 2;
            pair[0] = (float)(cos(position * inv_freq[i]) * rope->attention_factor);
            pair[1] = (float)(sin(position * inv_freq[i]) * rope->attention_factor);
        }
    }
}
