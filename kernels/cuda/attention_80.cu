/* attention_80: the attention kernels for head dim 80, a translation unit of its own so that they compile side by side. */
#include "kernels/cuda/attend.cuh"

namespace attention {
cudaError_t attend_80(const launch &l) { return attend<80>(l); }
} // namespace attention
