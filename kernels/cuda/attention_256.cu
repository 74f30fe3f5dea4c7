/* attention_256: the attention kernels for head dim 256, a translation unit of its own so that they compile side by side. */
#include "kernels/cuda/attend.cuh"

namespace attention {
cudaError_t attend_256(const launch &l) { return attend<256>(l); }
} // namespace attention
