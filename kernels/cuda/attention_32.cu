/* attention_32: the attention kernels for head dim 32, a translation unit of its own so that they compile side by side. */
#include "kernels/cuda/attend.cuh"

namespace attention {
cudaError_t attend_32(const launch &l) { return attend<32>(l); }
} // namespace attention
