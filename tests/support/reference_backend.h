/*
 * reference_backend: the kernels interface once more, as plainly as it can be written: one thread, activations in double, sums
 * in double, no tiles. It is the oracle that fast backends are measured against, and what the model is tested on without one.
 *
 * What it rounds, and nothing else: weights to the device's dtype when they are set, the inputs of matrix products (and the
 * query) to it where it is bf16, K and V when they are written, and the residual stream, which is float on every backend, when
 * something is added to it.
 */
#ifndef PERCH_TESTS_SUPPORT_REFERENCE_BACKEND_H
#define PERCH_TESTS_SUPPORT_REFERENCE_BACKEND_H

#include "kernels/kernels.h"

/* Static. kernels_config: dtype F32 or BF16; isa NULL or "reference"; n_threads does nothing. */
const kernels_backend *kernels_reference(void);

#endif
