/* attention_64: the attention kernels for head dim 64, a translation unit of its own so that they compile side by side. */
#include "kernels/cuda/attend.cuh"

namespace attention {
cudaError_t attend_64(const launch &l) { return attend<64>(l); }
} // namespace attention
