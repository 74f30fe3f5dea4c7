/*
 * sampling_math: the arithmetic of choosing a token, shared by the host's sampler and the device's (C11, C++17, CUDA C++), so that
 * both choose the same token from the same logits. Weights are 64-bit integers, whose sums don't depend on an order; what is
 * floating-point uses single correctly rounded operations only.
 */
#ifndef PERCH_BASE_SAMPLING_MATH_H
#define PERCH_BASE_SAMPLING_MATH_H
#endif
