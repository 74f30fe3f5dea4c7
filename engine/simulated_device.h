/*
 * simulated_device: a device that computes nothing and knows how long a real one would take.
 *
 * It is a backend like the others, so that everything above it is the engine that serves: the model's forward pass calls its
 * math functions, and each adds the time of its roofline (Williams et al. 2009), the longer of its arithmetic and of its memory
 * traffic, to the step. Steps go one after the other; copies to and from the host tier go beside them, one stream for each
 * direction, not before what was queued when they were asked for. Time passes when the engine waits for the device, and when it
 * is told to; the host's own work takes none.
 *
 * Memory is accounted for and never touched. Weights have no values; logits are all zero, so every token is as likely as any
 * other, and the token that is chosen depends on the seed and its position alone.
 */
#ifndef PERCH_ENGINE_SIMULATED_DEVICE_H
#define PERCH_ENGINE_SIMULATED_DEVICE_H

#include "kernels/kernels.h"

extern const kernels_backend simulated_backend;

/* hardware: checked by the caller. E_NOMEM. The backend's `open` is this, there is no other. */
perch_status simulated_open(const perch_hardware *hardware, kernels_device **out, perch_error *err);

/* Its time since it was opened, or since it began anew. */
uint64_t simulated_now_us(const kernels_device *device);
void simulated_begin(kernels_device *device);

/* What its host's disk reads and writes, in 10^9 bytes a second. */
double simulated_disk_gbps(const kernels_device *device);

/* Time passes until then, if it isn't later already. */
void simulated_pass_time(kernels_device *device, uint64_t until_us);

#endif
