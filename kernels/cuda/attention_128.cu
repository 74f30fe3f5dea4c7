/* attention_128: the attention kernels for head dim 128, a translation unit of its own so that they compile side by side. */
#include "kernels/cuda/attend.cuh"

namespace attention {
cudaError_t attend_128(const launch &l) { return attend<128>(l); }
} // namespace attention
