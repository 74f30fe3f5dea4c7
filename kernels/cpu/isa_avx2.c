/* The math on AVX2 with FMA: Haswell, Zen and later, so most processors that lack AVX-512. bf16 is widened to f32. */
#include "kernels/cpu/gemm_body.h"
#include "kernels/cpu/rows_body.h"

#include "kernels/cpu/attention_body.h"

const cpu_isa cpu_isa_avx2 = {"avx2", isa_gemm, isa_attention, isa_rmsnorm, isa_silu_mul, isa_round_bf16};
