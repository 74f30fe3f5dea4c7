/* attention_96: the attention kernels for head dim 96, a translation unit of its own so that they compile side by side. */
#include "kernels/cuda/attend.cuh"

namespace attention {
cudaError_t attend_96(const launch &l) { return attend<96>(l); }
} // namespace attention
